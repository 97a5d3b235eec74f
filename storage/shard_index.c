/* Which segments a store has, and which it should build next. See shard_index.h.
 *
 * The set of segments is an immutable list, replaced as a whole: a search takes a reference and needs no lock after
 * that. Any list serves any view, since the stream decides what is visible. A replaced segment's files go at once
 * (readers hold its memory and mappings), the new one's are durable before. */
#include "storage/shard_index.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/check.h"
#include "common/log.h"
#include "common/mem.h"
#include "storage/shard_index_impl.h"

#define ROWS_MIN 10000u
#define TAIL_ROWS_MIN 4096u
#define OWN_ROWS 20000u
#define TAIL_SHARE 64u /* of what is covered: a larger tail is worth a graph */
#define BUILD_ROWS_LEAST 4096u
#define DEAD_SHARE 5u  /* a fifth */
#define DEAD_EVERY 64u /* steps between two looks at all rows */

void index_policy_default(struct index_policy *policy)
{
    *policy = (struct index_policy){ .rows_min = ROWS_MIN,
        .tail_rows_min = TAIL_ROWS_MIN,
        .recall_target = 0.95f,
        .rules = { .own_rows = OWN_ROWS },
        .memory_left = UINT64_MAX,
        .memory_whole = UINT64_MAX,
        .ripe_ms = UINT64_MAX };
}

/* ---- the set ---- */

struct segment_set *segment_set_new(uint32_t count)
{
    struct segment_set *set = mem_calloc(1, sizeof *set + count * sizeof set->items[0]);
    if (set == NULL) return NULL;
    atomic_init(&set->refs, 1);
    set->batches = mem_calloc((size_t)count + 1, sizeof *set->batches);
    if (set->batches != NULL) return set;
    mem_free(set);
    return NULL;
}

struct segment_set *segment_set_acquire(struct shard_store *s)
{
    struct store_index *ix = &s->index;
    pthread_mutex_lock(&ix->mutex);
    struct segment_set *set = ix->set;
    if (set != NULL) atomic_fetch_add_explicit(&set->refs, 1, memory_order_relaxed);
    pthread_mutex_unlock(&ix->mutex);
    return set;
}

void segment_set_release(struct segment_set *set)
{
    if (set == NULL || atomic_fetch_sub_explicit(&set->refs, 1, memory_order_acq_rel) > 1) return;
    for (uint32_t i = 0; i < set->count; i++) segment_unref(set->items[i]);
    mem_free(set->batches);
    mem_free(set);
}

/* Segments of one batch lie together: where those of the item's end. */
static uint32_t batch_end(const struct segment_set *set, uint32_t item)
{
    struct segment_info one, next;
    segment_info(set->items[item], &one);
    while (++item < set->count) {
        segment_info(set->items[item], &next);
        if (next.batch != one.batch || next.field != one.field) break;
    }
    return item;
}

static void batch_tell(const struct segment_set *set, uint32_t first, struct segment_batch *batch_out)
{
    struct segment_info info;
    *batch_out = (struct segment_batch){ .first = first, .end = batch_end(set, first) };
    for (uint32_t i = first; i < batch_out->end; i++) {
        segment_info(set->items[i], &info);
        batch_out->field = info.field;
        if (info.as_of > batch_out->as_of) batch_out->as_of = info.as_of;
    }
}

void segment_set_publish(struct shard_store *s, struct segment_set *set)
{
    struct store_index *ix = &s->index;
    for (uint32_t i = 0; i < set->count; i++) {
        struct segment_info info;
        segment_info(set->items[i], &info);
        if (info.end_block > set->covered[info.field]) set->covered[info.field] = info.end_block;
    }
    for (uint32_t i = 0; i < set->count; i = set->batches[set->batch_count++].end)
        batch_tell(set, i, &set->batches[set->batch_count]);
    pthread_mutex_lock(&ix->mutex);
    struct segment_set *old = ix->set;
    ix->set = set;
    pthread_mutex_unlock(&ix->mutex);
    segment_set_release(old);
}

void store_index_init(struct shard_store *s)
{
    pthread_mutex_init(&s->index.mutex, NULL);
    s->index.next_number = 1;
}

void store_index_fini(struct shard_store *s)
{
    segment_set_release(s->index.set);
    tail_set_release(s->index.tails);
    mem_free(s->index.tails_known);
    s->index.set = NULL;
    s->index.tails = NULL;
    pthread_mutex_destroy(&s->index.mutex);
}

struct segment_spec index_spec_of(struct shard_store *s, const struct index_policy *policy, const char *dir)
{
    return (struct segment_spec){
        .vfs = s->vfs,
        .dir = dir,
        .blocks = s->blocks,
        .schema = &s->schema,
        .recall_target = policy->recall_target > 0 && policy->recall_target <= 1 ? policy->recall_target
                                                                                 : 0.95f,
        .pin = policy->pin,
        .quantization = policy->quantization,
        .payload_first = policy->payload_first,
    };
}

enum omen_err index_dir_make(struct shard_store *s, char out[STORE_PATH_BYTES], struct err *err)
{
    CHECK(snprintf(out, STORE_PATH_BYTES, "%s/segments", s->dir) < STORE_PATH_BYTES);
    bool there;
    enum omen_err rc = vfs_exists(s->vfs, out, &there, err);
    if (rc != OMEN_OK || there) return rc;
    rc = vfs_mkdir(s->vfs, out, err);
    return rc == OMEN_OK ? vfs_sync_dir(s->vfs, s->dir, err) : rc;
}

/* ---- memory ---- */

/* Bytes a row, about, as storage/index/README.md has them: rows of many dimensions are reduced. */
static uint64_t row_share(const struct shard_store *s, uint32_t field)
{
    uint32_t dim = s->schema.fields[field].dim;
    return dim < 256 ? dim : 256;
}
static uint64_t fast_bytes(const struct shard_store *s, uint32_t field)
{
    return 8 * row_share(s, field) + 64;
}
static uint64_t compact_bytes(const struct shard_store *s, const struct index_policy *policy, uint32_t field)
{
    uint64_t codes = policy->quantization == QUANT_CONSERVATIVE ? 2 * row_share(s, field)
                                                                : 0; /* rows of f16 */
    return 2 * row_share(s, field) + 64 + codes;
}
static uint64_t build_bytes(const struct shard_store *s, uint32_t field)
{
    return fast_bytes(s, field) + 6 * row_share(s, field) + 64 +
            4 * s->schema.fields[field].dim; /* the rows */
}

/* How many rows can be built at once. So few always can: what they take for a while is part of the node's reserve, and
 * without it a node short of memory would never come to the end of its tail. */
static uint64_t rows_buildable(const struct shard_store *s, const struct index_policy *policy, uint32_t field)
{
    uint64_t rows = policy->memory_left / build_bytes(s, field);
    return rows > BUILD_ROWS_LEAST ? rows : BUILD_ROWS_LEAST;
}

static void layout_choose(const struct shard_store *s, const struct index_policy *policy, uint32_t field,
        uint64_t rows, struct segment_spec *spec)
{
    uint64_t left = policy->memory_left / 2; /* the other half for what comes after it */
    uint64_t builds = policy->memory_whole / BUILD_SHARE;
    if (policy->memory_left - left < builds)
        left = policy->memory_left > builds ? policy->memory_left - builds : 0;
    if (!policy->pin || rows * fast_bytes(s, field) <= left) return;
    spec->compact = true;
    spec->pin = rows * compact_bytes(s, policy, field) <= left;
}

/* The largest graph in memory of its own becomes a mapped one. *done_out false: there is none. */
static enum omen_err graph_unpin(struct shard_store *s, const struct segment_set *set,
        const struct index_policy *policy, bool *done_out, struct err *err)
{
    struct segment_info info, largest = { 0 };
    char dir[STORE_PATH_BYTES];
    uint32_t at = set->count;
    for (uint32_t i = 0; i < set->count; i++) {
        segment_info(set->items[i], &info);
        if (!info.pinned || info.memory_bytes <= largest.memory_bytes) continue;
        largest = info;
        at = i;
    }
    *done_out = at < set->count;
    if (!*done_out) return OMEN_OK;
    enum omen_err rc = index_dir_make(s, dir, err);
    if (rc != OMEN_OK) return rc;
    struct segment_spec spec = index_spec_of(s, policy, dir);
    struct segment *mapped;
    spec.number = largest.number;
    spec.pin = false;
    spec.like = set->items[at];
    rc = segment_open(&spec, NULL, &mapped, err);
    if (rc != OMEN_OK) return rc;
    struct segment_set *next = segment_set_new(set->count);
    if (next == NULL) {
        segment_unref(mapped);
        return err_set(err, OMEN_ENOMEM, "", "no memory for a set of segments");
    }
    next->count = set->count;
    for (uint32_t i = 0; i < set->count; i++) next->items[i] = i == at ? mapped : segment_ref(set->items[i]);
    LOG_INFO("segment.mapped", "dir=\"%s\" number=%llu bytes=%llu", s->dir,
            (unsigned long long)largest.number, (unsigned long long)largest.memory_bytes);
    segment_set_publish(s, next);
    return OMEN_OK;
}

/* ---- what to build next ---- */

/* What to build: the rows of a range of a field's blocks, in place of items [first, first + taken) of the set, which are
 * whole batches. Or, `inside` a batch, those of some of its segments. */
struct job {
    uint32_t field, first_block, end_block, first, taken;
    uint64_t rows;
    bool inside, own;                           /* own: what is made inside is a group's own segment */
    uint64_t gone[(ROUTE_PARTS_MAX + 63) / 64]; /* inside: bit i is item first + i */
};

static void job_take(struct job *job, uint32_t item)
{
    uint32_t i = item - job->first;
    job->gone[i / 64] |= UINT64_C(1) << (i % 64);
}

/* Does what is made stand in the item's place? */
static bool job_takes(const struct job *job, uint32_t item)
{
    if (item < job->first || item >= job->first + job->taken) return false;
    uint32_t i = item - job->first;
    return !job->inside || (job->gone[i / 64] >> (i % 64) & 1) != 0;
}

static uint32_t batch_first(const struct segment_set *set, uint32_t item)
{
    struct segment_info one, before;
    segment_info(set->items[item], &one);
    for (; item > 0; item--) {
        segment_info(set->items[item - 1], &before);
        if (before.batch != one.batch || before.field != one.field) break;
    }
    return item;
}

static uint64_t items_rows(const struct segment_set *set, uint32_t from, uint32_t end)
{
    struct segment_info info;
    uint64_t rows = 0;
    for (; from < end; from++) {
        segment_info(set->items[from], &info);
        rows += info.rows;
    }
    return rows;
}

/* Blocks whose entries are in a durable checkpoint: after a crash they are there again, the same. */
static uint32_t durable_end(const struct shard_store *s)
{
    uint64_t durable = atomic_load(&s->durable);
    uint32_t low = 0, high = blocks_count(s->blocks);
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (blocks_at(s->blocks, mid)->sequence <= durable)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

/* Of blocks [from, end), in order of log time: the first that was written after `ms`. */
static uint32_t written_after(const struct shard_store *s, uint32_t from, uint32_t end, uint64_t ms)
{
    while (from < end) {
        uint32_t mid = from + (end - from) / 2;
        if (blocks_at(s->blocks, mid)->entry.log_time_ms <= ms)
            from = mid + 1;
        else
            end = mid;
    }
    return from;
}

static uint64_t rows_between(const struct shard_store *s, uint32_t field, uint32_t from, uint32_t end)
{
    uint64_t rows = 0;
    for (uint32_t b = from; b < end; b++) rows += blocks_at(s->blocks, b)->entry.row_count[field];
    return rows;
}

/* ---- time buckets ---- */

static uint64_t bucket_of(const struct shard_store *s, const struct index_policy *policy, uint32_t block)
{
    return blocks_at(s->blocks, block)->entry.log_time_ms / policy->bucket_ms;
}

static bool same_bucket(const struct shard_store *s, const struct index_policy *policy, uint32_t a,
        uint32_t b)
{
    return policy->bucket_ms == 0 || bucket_of(s, policy, a) == bucket_of(s, policy, b);
}

/* Of blocks [from, end): the end of the first bucket by which there are rows worth a graph. */
static uint32_t bucket_end(const struct shard_store *s, const struct index_policy *policy, uint32_t field,
        uint32_t from, uint32_t end)
{
    uint64_t rows = 0;
    if (policy->bucket_ms == 0) return end;
    for (uint32_t b = from; b < end; b++) {
        rows += blocks_at(s->blocks, b)->entry.row_count[field];
        if (rows < policy->rows_min) continue;
        return written_after(s, b, end, (bucket_of(s, policy, b) + 1) * policy->bucket_ms - 1);
    }
    return end;
}

/* The segments of a field lie together in the set, in order of blocks. */
static void field_range(const struct segment_set *set, uint32_t field, uint32_t *first_out, uint32_t *end_out)
{
    *first_out = *end_out = 0;
    for (uint32_t i = 0; i < set->count; i++) {
        struct segment_info info;
        segment_info(set->items[i], &info);
        if (info.field < field) *first_out = *end_out = i + 1;
        if (info.field == field) *end_out = i + 1;
    }
}

/* So long a tail that writes are soon told to wait for it. */
static bool tail_urgent(const struct shard_store *s, const struct segment_set *set,
        const struct index_policy *policy, uint32_t field)
{
    return policy->tail_rows_max != 0 &&
            blocks_rows(s->blocks, set->covered[field], blocks_count(s->blocks)) >= policy->tail_rows_max / 2;
}

static bool tail_job(const struct shard_store *s, const struct segment_set *set,
        const struct index_policy *policy, uint32_t field, uint32_t end_block, struct job *job_out)
{
    uint32_t first, end, covered = set->covered[field];
    if (end_block <= covered) return false;
    uint32_t whole = bucket_end(s, policy, field, covered, end_block);
    bool ended = whole < end_block; /* nothing more will be written there */
    end_block = whole;
    uint64_t tail = rows_between(s, field, covered, end_block);
    field_range(set, field, &first, &end);
    uint64_t in_segments = items_rows(set, first, end);
    bool soon = ended || policy->eager, now = tail_urgent(s, set, policy, field);
    if (tail == 0 && !now) return false; /* urgent, an empty segment steps over what was compacted away */
    if (!now && (tail < policy->rows_min || (!soon && tail < in_segments / TAIL_SHARE))) return false;
    uint64_t most = rows_buildable(s, policy, field);
    while (tail > most && end_block > covered + 1) { /* as much as there is memory to build */
        end_block -= (end_block - covered) / 2;
        tail = rows_between(s, field, covered, end_block);
    }
    if (tail > most) return false;
    *job_out = (struct job){ .field = field,
        .first_block = covered,
        .end_block = end_block,
        .first = end,
        .rows = tail };
    while (job_out->first > first) { /* the last batches that are no larger than what comes after them */
        struct segment_info info;
        uint32_t at = batch_first(set, job_out->first - 1);
        uint64_t rows = items_rows(set, at, job_out->first);
        segment_info(set->items[at], &info);
        if (rows > job_out->rows || rows + job_out->rows > most) break;
        if (!same_bucket(s, policy, info.first_block, covered)) break;
        job_out->rows += rows;
        job_out->first_block = info.first_block;
        job_out->taken += job_out->first - at;
        job_out->first = at;
    }
    return true;
}

/* A batch of the set as a job that takes nothing yet; whole, when it is one segment. */
static void batch_job(const struct segment_set *set, uint32_t first, uint32_t end, struct job *job_out)
{
    struct segment_info info;
    segment_info(set->items[first], &info);
    *job_out = (struct job){ info.field, info.first_block, info.end_block, first, end - first, 0,
        info.batch_parts > 1, false, { 0 } };
}

static void batch_job_take(const struct segment_set *set, uint32_t item, struct job *job)
{
    struct segment_info info;
    segment_info(set->items[item], &info);
    job_take(job, item);
    job->own = info.own && job->rows == 0; /* alone it stays what it was */
    job->rows += info.rows;
}

/* Groups that have lost half of what a segment of their own takes go back to the smallest segment of those that share one,
 * if that is not so large that it would be built anew for next to nothing; without one they make it together. */
static bool back_job(const struct segment_set *set, const struct index_policy *policy, uint32_t first,
        uint32_t end, struct job *job_out)
{
    uint32_t shared = end, back = 0;
    uint64_t shared_rows = 0, living = 0;
    batch_job(set, first, end, job_out);
    for (uint32_t i = first; i < end; i++) {
        struct segment_info info;
        segment_info(set->items[i], &info);
        uint64_t lives = info.own ? info.rows - segment_dead(set->items[i]) : 0;
        if (info.own && lives < policy->rules.own_rows / 2) {
            batch_job_take(set, i, job_out);
            living += lives;
            back++;
        } else if (!info.own && (shared == end || info.rows < shared_rows)) {
            shared = i;
            shared_rows = info.rows;
        }
    }
    if (back == 0 || (shared < end && shared_rows > living * TAIL_SHARE)) return false;
    if (shared < end) batch_job_take(set, shared, job_out);
    job_out->own = false;
    return true;
}

static bool dead_job(const struct shard_store *s, const struct segment_set *set,
        const struct index_policy *policy, struct job *job_out)
{
    for (uint32_t first = 0, end; first < set->count; first = end) {
        struct segment_info info;
        end = batch_end(set, first);
        segment_info(set->items[first], &info);
        uint64_t most = rows_buildable(s, policy, info.field);
        if (back_job(set, policy, first, end, job_out) && job_out->rows <= most) return true;
        for (uint32_t i = first; i < end; i++) {
            segment_info(set->items[i], &info);
            if (info.rows > most || segment_dead(set->items[i]) <= info.rows / DEAD_SHARE) continue;
            batch_job(set, first, end, job_out);
            batch_job_take(set, i, job_out);
            return true;
        }
    }
    return false;
}

static bool renew_job(const struct shard_store *s, const struct segment_set *set, struct job *job_out)
{
    uint64_t below = atomic_load(&s->index.renew_below);
    for (uint32_t i = 0; i < set->count; i++) {
        struct segment_info info;
        segment_info(set->items[i], &info);
        if (info.number >= below) continue;
        batch_job(set, batch_first(set, i), batch_end(set, i), job_out);
        batch_job_take(set, i, job_out);
        return true;
    }
    return false;
}

static bool job_find(struct shard_store *s, const struct segment_set *set, const struct index_policy *policy,
        struct job *job_out)
{
    uint32_t durable = durable_end(s), ripe = written_after(s, 0, durable, policy->ripe_ms);
    for (uint32_t f = 0; f < s->schema.field_count; f++)
        if (tail_job(s, set, policy, f, tail_urgent(s, set, policy, f) ? durable : ripe, job_out))
            return true;
    if (renew_job(s, set, job_out)) return true;
    pthread_mutex_lock(&s->version_mutex);
    uint64_t dead = atomic_load(&s->blocks->row_count) - s->points;
    pthread_mutex_unlock(&s->version_mutex);
    if (dead == s->index.dead_seen || ++s->index.dead_steps < DEAD_EVERY) return false;
    s->index.dead_steps = 0;
    s->index.dead_seen = dead;
    return dead_job(s, set, policy, job_out);
}

/* ---- building ---- */

struct made {
    struct segment *segments[ROUTE_PARTS_MAX];
    uint32_t count;
};

/* The set with the job's segments replaced by `made`, whose references it takes. NULL: no memory. */
static struct segment_set *set_with(const struct segment_set *set, const struct job *job,
        const struct made *made)
{
    struct segment_set *next = segment_set_new(set->count + made->count);
    bool put = false;
    if (next == NULL) return NULL;
    for (uint32_t i = 0; i <= set->count; i++) {
        if (!put && (i == set->count || job_takes(job, i) || (job->taken == 0 && i == job->first))) {
            for (uint32_t m = 0; m < made->count; m++) next->items[next->count++] = made->segments[m];
            put = true;
        }
        if (i == set->count || job_takes(job, i)) continue;
        next->items[next->count++] = segment_ref(set->items[i]);
    }
    return next;
}

static struct route_rules rules_of(const struct shard_store *s, const struct index_policy *policy)
{
    struct route_rules rules = policy->rules;
    if (s->schema.shard_key[0] == '\0') rules.by_shard_key = false;
    return rules;
}

/* What lives of the segments that a job inside a batch takes, by the rules, and which parts they hold. */
static enum omen_err inside_collect(const struct shard_store *s, const struct segment_set *set,
        const struct index_policy *policy, const struct job *job, struct segment_spec *spec, uint32_t *parts,
        struct route_plan *plan, struct err *err)
{
    struct route_rules rules = rules_of(s, policy);
    bool held[ROUTE_PARTS_MAX] = { false };
    rules.own_rows = 0; /* they are cut already */
    *plan = (struct route_plan){ .rows = mem_alloc((job->rows + 1) * sizeof *plan->rows),
        .parts = mem_calloc(1, sizeof *plan->parts),
        .part_count = 1 };
    spec->own = job->own;
    spec->parts = parts;
    if (plan->rows == NULL || plan->parts == NULL)
        return err_set(err, OMEN_ENOMEM, "", "no memory for a segment's slots");
    for (uint32_t i = job->first; i < job->first + job->taken; i++) {
        struct segment_info info;
        if (!job_takes(job, i)) continue;
        segment_info(set->items[i], &info);
        plan->count += segment_living(set->items[i], spec->as_of, plan->rows + plan->count);
        for (uint32_t p = 0; p < info.part_count; p++) held[info.parts[p]] = true;
        spec->batch = info.batch;
        spec->batch_parts = info.batch_parts;
    }
    for (uint32_t p = 0; p < spec->batch_parts; p++)
        if (held[p]) parts[spec->part_count++] = p;
    plan->parts[0].count = plan->count;
    return plan->count == 0 ? OMEN_OK : route_group(s->blocks, &rules, plan, err);
}

static void made_drop(struct made *made)
{
    for (uint32_t i = 0; i < made->count; i++) {
        segment_remove_files(made->segments[i]);
        segment_unref(made->segments[i]);
    }
    made->count = 0;
}

/* A segment for each part of the plan; without rows one all the same. On error none is left. */
static enum omen_err plan_build(struct shard_store *s, const struct route_plan *plan, bool inside,
        struct segment_spec *spec, const struct index_control *control, struct made *made, struct err *err)
{
    enum omen_err rc = OMEN_OK;
    uint32_t count = plan->part_count == 0 ? 1 : plan->part_count;
    uint64_t batch = s->index.next_number;
    for (uint32_t p = 0; rc == OMEN_OK && p < count; p++) {
        spec->number = s->index.next_number++;
        spec->row_count = plan->part_count == 0 ? 0 : plan->parts[p].count;
        spec->rows = spec->row_count == 0 ? NULL : plan->rows + plan->parts[p].first;
        if (!inside) {
            spec->batch = count == 1 ? 0 : batch;
            spec->batch_parts = count;
            spec->parts = &p;
            spec->part_count = 1;
            spec->own = plan->part_count != 0 && plan->parts[p].own && count > 1;
        }
        rc = segment_build(spec, control, &made->segments[made->count], err);
        made->count += rc == OMEN_OK;
    }
    if (rc != OMEN_OK) made_drop(made);
    return rc;
}

static void made_tell(struct shard_store *s, const struct job *job, const struct made *made)
{
    for (uint32_t i = 0; i < made->count; i++) {
        struct segment_info info;
        segment_info(made->segments[i], &info);
        atomic_fetch_add(&s->index.built_rows, info.rows);
        LOG_INFO("segment.built",
                "dir=\"%s\" number=%llu batch=%llu field=%u rows=%u own=%d blocks=%u-%u replaced=%u "
                "bytes=%llu",
                s->dir, (unsigned long long)info.number, (unsigned long long)info.batch, info.field,
                info.rows, info.own, info.first_block, info.end_block, job->taken,
                (unsigned long long)info.memory_bytes);
    }
}

static enum omen_err job_run(struct shard_store *s, const struct segment_set *set,
        const struct index_policy *policy, const struct job *job, const struct index_control *control,
        struct err *err)
{
    char dir[STORE_PATH_BYTES];
    uint32_t parts[ROUTE_PARTS_MAX];
    struct route_plan plan;
    struct made made = { .count = 0 };
    const struct route_rules rules = rules_of(s, policy);
    enum omen_err rc = index_dir_make(s, dir, err);
    if (rc != OMEN_OK) return rc;
    struct segment_spec spec = index_spec_of(s, policy, dir);
    spec.field = job->field;
    spec.first_block = job->first_block;
    spec.end_block = job->end_block;
    spec.as_of = shard_store_applied(s);
    layout_choose(s, policy, job->field, job->rows, &spec);
    if (job->end_block > set->covered[job->field]) atomic_fetch_add(&s->index.jobs, 1);
    if (job->inside) {
        rc = inside_collect(s, set, policy, job, &spec, parts, &plan, err);
    } else {
        rc = route_collect(s->blocks, job->field, job->first_block, job->end_block, spec.as_of, &plan, err);
        if (rc == OMEN_OK) rc = route_group(s->blocks, &rules, &plan, err);
    }
    if (rc == OMEN_OK) rc = plan_build(s, &plan, job->inside, &spec, control, &made, err);
    route_plan_fini(&plan);
    if (rc != OMEN_OK) return rc;
    struct segment_set *next = set_with(set, job, &made);
    if (next == NULL) {
        made_drop(&made);
        return err_set(err, OMEN_ENOMEM, "", "no memory for a set of segments");
    }
    made_tell(s, job, &made);
    segment_set_publish(s, next);
    for (uint32_t i = 0; i < set->count; i++)
        if (job_takes(job, i)) segment_remove_files(set->items[i]);
    return OMEN_OK;
}

enum omen_err shard_index_step(struct shard_store *store, const struct index_policy *policy,
        const struct index_control *control, bool *worked_out, struct err *err)
{
    *worked_out = false;
    enum omen_err rc = store_serves(store, err);
    if (rc != OMEN_OK) return rc;
    if (!store->index.loaded) {
        uint32_t era = store_hold(store);
        rc = segment_set_load(store, policy, control, err);
        store_unhold(store, era);
        *worked_out = rc == OMEN_OK;
        return rc;
    }
    uint32_t era = store_hold(store); /* before the sequence is read that the segment is as of */
    struct segment_set *set = segment_set_acquire(store);
    struct job job;
    bool unpinned = false;
    if (policy->memory_over) rc = graph_unpin(store, set, policy, &unpinned, err);
    *worked_out = unpinned && rc == OMEN_OK;
    if (rc == OMEN_OK && !unpinned && job_find(store, set, policy, &job)) {
        rc = job_run(store, set, policy, &job, control, err);
        *worked_out = rc == OMEN_OK;
    }
    segment_set_release(set);
    store_unhold(store, era);
    return rc;
}

void shard_index_renew(struct shard_store *store)
{
    struct segment_set *set = segment_set_acquire(store);
    uint64_t below = 0;
    for (uint32_t i = 0; set != NULL && i < set->count; i++) {
        struct segment_info info;
        segment_info(set->items[i], &info);
        if (info.number >= below) below = info.number + 1;
    }
    segment_set_release(set);
    atomic_store(&store->index.renew_below, below);
}

uint64_t shard_index_settled(struct shard_store *store, const struct index_policy *policy)
{
    uint64_t durable = atomic_load(&store->durable);
    struct segment_set *set = segment_set_acquire(store);
    struct job job;
    if (set == NULL) return 0;
    uint32_t era = store_hold(store);
    uint32_t ripe = written_after(store, 0, durable_end(store), policy->ripe_ms), end = ripe;
    for (uint32_t f = 0; f < store->schema.field_count; f++)
        if (tail_job(store, set, policy, f, ripe, &job) && set->covered[f] < end) end = set->covered[f];
    segment_set_release(set);
    uint64_t next = end == blocks_count(store->blocks) ? UINT64_MAX : blocks_at(store->blocks, end)->sequence;
    store_unhold(store, era);
    if (next > durable) return durable; /* entries without rows included */
    return end == 0 ? 0 : next - 1;
}

bool shard_index_wants_checkpoint(struct shard_store *store, const struct index_policy *policy)
{
    struct segment_set *set = segment_set_acquire(store);
    struct job job;
    bool wants = false;
    if (set == NULL) return false;
    uint32_t era = store_hold(store);
    uint32_t ripe = written_after(store, 0, blocks_count(store->blocks), policy->ripe_ms);
    for (uint32_t f = 0; f < store->schema.field_count && !wants; f++)
        wants = tail_job(store, set, policy, f, ripe, &job);
    segment_set_release(set);
    store_unhold(store, era);
    return wants;
}

void shard_index_memory(struct shard_store *store, struct shard_index_memory *memory_out)
{
    *memory_out = (struct shard_index_memory){ .sketches = tail_memory_bytes(store) };
    struct segment_set *set = segment_set_acquire(store);
    for (uint32_t i = 0; set != NULL && i < set->count; i++) {
        struct segment_info info;
        segment_info(set->items[i], &info);
        memory_out->rows += info.kept_bytes;
        memory_out->files += (uint64_t)info.rows * store->schema.fields[info.field].dim * sizeof(float);
        if (info.pinned)
            memory_out->pinned += info.memory_bytes - info.kept_bytes;
        else
            memory_out->mapped += info.memory_bytes - info.kept_bytes;
    }
    segment_set_release(set);
    uint64_t stream_bytes, chunks;
    stream_usage(store->stream, &stream_bytes, &chunks);
    memory_out->files += stream_bytes;
    memory_out->rows += (uint64_t)blocks_count(store->blocks) * sizeof(struct block) +
            atomic_load(&store->blocks->row_count) * (sizeof(uint64_t) + sizeof(uint32_t));
}

uint64_t shard_index_tail_rows(struct shard_store *store)
{
    uint32_t end = blocks_count(store->blocks), covered = end;
    struct segment_set *set = segment_set_acquire(store);
    for (uint32_t f = 0; f < store->schema.field_count; f++)
        if (set == NULL || set->covered[f] < covered) covered = set == NULL ? 0 : set->covered[f];
    segment_set_release(set);
    uint32_t era = store_hold(store);
    uint64_t rows = blocks_rows(store->blocks, covered, end);
    store_unhold(store, era);
    return rows;
}

/* Of the last entry before the first of blocks [from, end) that has rows of the field; UINT64_MAX: none has. */
static uint64_t sequence_before_rows(const struct shard_store *s, uint32_t field, uint32_t from, uint32_t end)
{
    for (; from < end; from++)
        if (blocks_at(s->blocks, from)->entry.row_count[field] > 0)
            return blocks_at(s->blocks, from)->sequence - 1;
    return UINT64_MAX;
}

void shard_index_stats(struct shard_store *store, struct shard_index_stats *stats_out)
{
    *stats_out = (struct shard_index_stats){ .built_rows = atomic_load(&store->index.built_rows) };
    struct segment_set *set = segment_set_acquire(store);
    for (uint32_t i = 0; set != NULL && i < set->count; i++) {
        struct segment_info info;
        segment_info(set->items[i], &info);
        stats_out->segments++;
        if (info.number > stats_out->newest) stats_out->newest = info.number;
        stats_out->renewing += info.number < atomic_load(&store->index.renew_below);
        stats_out->own_segments += info.own;
        stats_out->rows += info.rows;
        stats_out->memory_bytes += info.memory_bytes;
        stats_out->disk_bytes += info.disk_bytes;
    }
    stats_out->indexed = shard_store_applied(store);
    uint32_t end = blocks_count(store->blocks), era = store_hold(store);
    for (uint32_t f = 0; f < store->schema.field_count; f++) {
        uint32_t covered = set == NULL ? 0 : set->covered[f];
        stats_out->tail_rows += rows_between(store, f, covered, end);
        uint64_t before = sequence_before_rows(store, f, covered, end);
        if (before < stats_out->indexed) stats_out->indexed = before;
    }
    store_unhold(store, era);
    segment_set_release(set);
}
