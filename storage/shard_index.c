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
#define TAIL_SHARE 64u /* of what is covered: a larger tail is worth a graph */
#define DEAD_SHARE 5u  /* a fifth */
#define DEAD_EVERY 64u /* steps between two looks at all rows */

void index_policy_default(struct index_policy *policy)
{
    *policy = (struct index_policy){ .rows_min = ROWS_MIN,
        .tail_rows_min = TAIL_ROWS_MIN,
        .recall_target = 0.95f,
        .memory_left = UINT64_MAX,
        .ripe_ms = UINT64_MAX };
}

/* ---- the set ---- */

static struct segment_set *set_new(uint32_t count)
{
    struct segment_set *set = mem_calloc(1, sizeof *set + count * sizeof set->items[0]);
    if (set != NULL) atomic_init(&set->refs, 1);
    return set;
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
    mem_free(set);
}

static void set_publish(struct shard_store *s, struct segment_set *set)
{
    struct store_index *ix = &s->index;
    for (uint32_t i = 0; i < set->count; i++) {
        struct segment_info info;
        segment_info(set->items[i], &info);
        if (info.end_block > set->covered[info.field]) set->covered[info.field] = info.end_block;
    }
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
    s->index.set = NULL;
    s->index.tails = NULL;
    pthread_mutex_destroy(&s->index.mutex);
}

static struct segment_spec spec_of(struct shard_store *s, const struct index_policy *policy, const char *dir)
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
        .by_shard_key = policy->by_shard_key,
    };
}

static enum omen_err dir_make(struct shard_store *s, char out[STORE_PATH_BYTES], struct err *err)
{
    CHECK(snprintf(out, STORE_PATH_BYTES, "%s/segments", s->dir) < STORE_PATH_BYTES);
    bool there;
    enum omen_err rc = vfs_exists(s->vfs, out, &there, err);
    if (rc != OMEN_OK || there) return rc;
    rc = vfs_mkdir(s->vfs, out, err);
    return rc == OMEN_OK ? vfs_sync_dir(s->vfs, s->dir, err) : rc;
}

/* ---- what is there at open ---- */

struct found {
    uint64_t *numbers; /* owned */
    uint32_t count, cap;
};

static bool found_each(void *arg, const char *name)
{
    struct found *f = arg;
    char *end;
    uint64_t number = strtoull(name, &end, 16);
    if (end != name + 16 || *end != '.' || number == 0) return true; /* not ours, or a .tmp of a crash */
    for (uint32_t i = 0; i < f->count; i++)
        if (f->numbers[i] == number) return true;
    if (f->count == f->cap) {
        f->cap = f->cap == 0 ? 16 : 2 * f->cap;
        f->numbers = mem_must_realloc(f->numbers, f->cap * sizeof *f->numbers);
    }
    f->numbers[f->count++] = number;
    return true;
}

/* By field, then first block, the longer one first: the order in which a gapless cover is picked. */
static int segment_compare(const void *a, const void *b)
{
    struct segment_info x, y;
    segment_info(*(struct segment *const *)a, &x);
    segment_info(*(struct segment *const *)b, &y);
    if (x.field != y.field) return x.field < y.field ? -1 : 1;
    if (x.first_block != y.first_block) return x.first_block < y.first_block ? -1 : 1;
    return (x.end_block < y.end_block) - (x.end_block > y.end_block);
}

/* Blocks in which no row lives need no segment. */
static bool all_dead(const struct shard_store *s, uint32_t from, uint32_t end)
{
    for (; from < end; from++)
        if (atomic_load_explicit(&blocks_at(s->blocks, from)->live, memory_order_relaxed) > 0) return false;
    return true;
}

/* Keep those that cover blocks from 0 on without an overlap or a gap in which something lives; the others are the rest of
 * interrupted merges. */
static struct segment_set *cover_pick(const struct shard_store *s, struct segment **opened, uint32_t count)
{
    struct segment_set *set = set_new(count);
    uint32_t covered[OMEN_VECTOR_FIELDS_MAX] = { 0 };
    qsort(opened, count, sizeof *opened, segment_compare);
    for (uint32_t i = 0; i < count; i++) {
        struct segment_info info;
        segment_info(opened[i], &info);
        if (set != NULL && info.first_block >= covered[info.field] &&
                all_dead(s, covered[info.field], info.first_block)) {
            set->items[set->count++] = opened[i];
            covered[info.field] = info.end_block;
            continue;
        }
        segment_remove_files(opened[i]);
        segment_unref(opened[i]);
    }
    return set;
}

static enum omen_err segments_load(struct shard_store *s, const struct index_policy *policy, struct err *err)
{
    char dir[STORE_PATH_BYTES];
    struct found found = { NULL, 0, 0 };
    enum omen_err rc = dir_make(s, dir, err);
    if (rc == OMEN_OK) rc = vfs_list(s->vfs, dir, found_each, &found, err);
    struct segment **opened = mem_must_calloc(found.count + 1, sizeof *opened);
    uint32_t count = 0;
    struct segment_spec spec = spec_of(s, policy, dir);
    for (uint32_t i = 0; rc == OMEN_OK && i < found.count; i++) {
        struct err why;
        spec.number = found.numbers[i];
        if (spec.number >= s->index.next_number) s->index.next_number = spec.number + 1;
        if (segment_open(&spec, &opened[count], &why) == OMEN_OK) {
            count++;
            continue;
        }
        LOG_INFO("segment.remove", "dir=\"%s\" number=%llu reason=\"%s\"", dir,
                (unsigned long long)spec.number, why.message);
        segment_remove_number(s->vfs, dir, spec.number);
    }
    struct segment_set *set = rc == OMEN_OK ? cover_pick(s, opened, count) : NULL;
    if (rc == OMEN_OK && set == NULL) rc = err_set(err, OMEN_ENOMEM, "", "no memory for a set of segments");
    if (rc == OMEN_OK) {
        s->index.loaded = true;
        set_publish(s, set);
    }
    mem_free(opened);
    mem_free(found.numbers);
    return rc;
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
    return fast_bytes(s, field) + 6 * row_share(s, field) + 64;
}

/* How many rows can be built at once. */
static uint64_t rows_buildable(const struct shard_store *s, const struct index_policy *policy, uint32_t field)
{
    return policy->memory_left / build_bytes(s, field);
}

static void layout_choose(const struct shard_store *s, const struct index_policy *policy, uint32_t field,
        uint64_t rows, struct segment_spec *spec)
{
    uint64_t left = policy->memory_left / 2; /* the other half for what comes after it */
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
    enum omen_err rc = dir_make(s, dir, err);
    if (rc != OMEN_OK) return rc;
    struct segment_spec spec = spec_of(s, policy, dir);
    struct segment *mapped;
    spec.number = largest.number;
    spec.pin = false;
    rc = segment_open(&spec, &mapped, err);
    if (rc != OMEN_OK) return rc;
    struct segment_set *next = set_new(set->count);
    if (next == NULL) {
        segment_unref(mapped);
        return err_set(err, OMEN_ENOMEM, "", "no memory for a set of segments");
    }
    next->count = set->count;
    for (uint32_t i = 0; i < set->count; i++) next->items[i] = i == at ? mapped : segment_ref(set->items[i]);
    LOG_INFO("segment.mapped", "dir=\"%s\" number=%llu bytes=%llu", s->dir,
            (unsigned long long)largest.number, (unsigned long long)largest.memory_bytes);
    set_publish(s, next);
    return OMEN_OK;
}

/* ---- what to build next ---- */

/* A range of a field's blocks, and the segments that it takes the place of: items [first, first + taken). */
struct job {
    uint32_t field, first_block, end_block, first, taken;
    uint64_t rows;
};

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
    uint64_t tail = rows_between(s, field, covered, end_block), in_segments = 0;
    field_range(set, field, &first, &end);
    for (uint32_t i = first; i < end; i++) {
        struct segment_info info;
        segment_info(set->items[i], &info);
        in_segments += info.rows;
    }
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
    while (job_out->first > first) { /* the last segments that are no larger than what comes after them */
        struct segment_info info;
        segment_info(set->items[job_out->first - 1], &info);
        if (info.rows > job_out->rows || info.rows + job_out->rows > most) break;
        if (!same_bucket(s, policy, info.first_block, covered)) break;
        job_out->rows += info.rows;
        job_out->first_block = info.first_block;
        job_out->first--;
        job_out->taken++;
    }
    return true;
}

static bool dead_job(const struct shard_store *s, const struct segment_set *set,
        const struct index_policy *policy, struct job *job_out)
{
    for (uint32_t i = 0; i < set->count; i++) {
        struct segment_info info;
        segment_info(set->items[i], &info);
        if (info.rows > rows_buildable(s, policy, info.field)) continue;
        if (segment_dead(set->items[i]) <= info.rows / DEAD_SHARE) continue;
        *job_out = (struct job){ info.field, info.first_block, info.end_block, i, 1, info.rows };
        return true;
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
        *job_out = (struct job){ info.field, info.first_block, info.end_block, i, 1, info.rows };
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

/* The set with the job's segments replaced by `made`, whose reference it takes. */
static struct segment_set *set_with(const struct segment_set *set, const struct job *job,
        struct segment *made)
{
    struct segment_set *next = set_new(set->count + 1);
    if (next == NULL) return NULL;
    for (uint32_t i = 0; i <= set->count; i++) {
        if (i == job->first) next->items[next->count++] = made;
        if (i == set->count || (i >= job->first && i < job->first + job->taken)) continue;
        next->items[next->count++] = segment_ref(set->items[i]);
    }
    return next;
}

static enum omen_err job_run(struct shard_store *s, const struct segment_set *set,
        const struct index_policy *policy, const struct job *job, const struct index_control *control,
        struct err *err)
{
    char dir[STORE_PATH_BYTES];
    enum omen_err rc = dir_make(s, dir, err);
    if (rc != OMEN_OK) return rc;
    struct segment_spec spec = spec_of(s, policy, dir);
    struct segment *made;
    spec.field = job->field;
    spec.first_block = job->first_block;
    spec.end_block = job->end_block;
    spec.as_of = shard_store_applied(s);
    spec.number = s->index.next_number++;
    layout_choose(s, policy, job->field, job->rows, &spec);
    if (job->end_block > set->covered[job->field]) atomic_fetch_add(&s->index.jobs, 1);
    rc = segment_build(&spec, control, &made, err);
    if (rc != OMEN_OK) return rc;
    struct segment_set *next = set_with(set, job, made);
    if (next == NULL) {
        segment_remove_files(made);
        segment_unref(made);
        return err_set(err, OMEN_ENOMEM, "", "no memory for a set of segments");
    }
    struct segment_info info;
    segment_info(made, &info);
    atomic_fetch_add(&s->index.built_rows, info.rows);
    LOG_INFO("segment.built", "dir=\"%s\" number=%llu field=%u rows=%u blocks=%u-%u replaced=%u bytes=%llu",
            s->dir, (unsigned long long)info.number, info.field, info.rows, info.first_block, info.end_block,
            job->taken, (unsigned long long)info.memory_bytes);
    set_publish(s, next);
    for (uint32_t i = 0; i < job->taken; i++) segment_remove_files(set->items[job->first + i]);
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
        rc = segments_load(store, policy, err);
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

void shard_index_memory(struct shard_store *store, struct shard_index_memory *memory_out)
{
    *memory_out = (struct shard_index_memory){ .sketches = tail_memory_bytes(store) };
    struct segment_set *set = segment_set_acquire(store);
    for (uint32_t i = 0; set != NULL && i < set->count; i++) {
        struct segment_info info;
        segment_info(set->items[i], &info);
        memory_out->rows += info.kept_bytes;
        if (info.pinned)
            memory_out->pinned += info.memory_bytes - info.kept_bytes;
        else
            memory_out->mapped += info.memory_bytes - info.kept_bytes;
    }
    segment_set_release(set);
    memory_out->rows += (uint64_t)blocks_count(store->blocks) * sizeof(struct block) +
            atomic_load(&store->blocks->row_count) * sizeof(uint64_t);
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
        stats_out->rows += info.rows;
        stats_out->memory_bytes += info.memory_bytes;
        stats_out->disk_bytes += info.disk_bytes;
    }
    uint32_t end = blocks_count(store->blocks), era = store_hold(store);
    for (uint32_t f = 0; f < store->schema.field_count; f++)
        stats_out->tail_rows += rows_between(store, f, set == NULL ? 0 : set->covered[f], end);
    store_unhold(store, era);
    segment_set_release(set);
}
