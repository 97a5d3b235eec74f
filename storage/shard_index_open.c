/* The segments that are there when a store is opened: which of them stand for its blocks, and which are the rest of
 * interrupted work. See shard_index.h.
 *
 * A batch stands for its blocks when every one of its parts is held by a segment, the newest one that holds it: what
 * was built later inside a batch takes the place of what it was built from, whose files may not have gone yet. */
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "common/mem.h"
#include "storage/shard_index_impl.h"

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

static int order(uint64_t a, uint64_t b) { return (a > b) - (a < b); }

static bool same_batch(const struct segment_info *x, const struct segment_info *y)
{
    return x->field == y->field && x->first_block == y->first_block && x->end_block == y->end_block &&
            x->batch == y->batch && x->batch_parts == y->batch_parts;
}

/* By field, then first block, the longer batch first, the newer first, and in it the newer segment first: the order
 * in which a gapless cover is picked. */
static int segment_compare(const void *a, const void *b)
{
    struct segment_info x, y;
    segment_info(*(struct segment *const *)a, &x);
    segment_info(*(struct segment *const *)b, &y);
    if (x.field != y.field) return order(x.field, y.field);
    if (x.first_block != y.first_block) return order(x.first_block, y.first_block);
    if (x.end_block != y.end_block) return order(y.end_block, x.end_block);
    if (x.batch != y.batch) return order(y.batch, x.batch);
    if (x.batch_parts != y.batch_parts) return order(x.batch_parts, y.batch_parts);
    return order(y.number, x.number);
}

static int rows_compare(const void *a, const void *b)
{
    struct segment_info x, y;
    segment_info(*(struct segment *const *)a, &x);
    segment_info(*(struct segment *const *)b, &y);
    return x.rows != y.rows ? order(y.rows, x.rows) : order(x.number, y.number);
}

static void segment_drop(struct segment *segment)
{
    segment_remove_files(segment);
    segment_unref(segment);
}

/* Blocks in which no row lives need no segment. */
static bool all_dead(const struct shard_store *s, uint32_t from, uint32_t end)
{
    for (; from < end; from++)
        if (atomic_load_explicit(&blocks_at(s->blocks, from)->live, memory_order_relaxed) > 0) return false;
    return true;
}

/* Of one batch's segments, newest first: move those that hold its parts to the front, the largest first; how many.
 * 0: a part is missing. */
static uint32_t batch_pick(struct segment **items, uint32_t count)
{
    bool held[ROUTE_PARTS_MAX] = { false };
    struct segment_info info = { .batch_parts = 0 };
    uint32_t kept = 0, parts = 0;
    for (uint32_t i = 0; i < count; i++) {
        bool stale = false;
        segment_info(items[i], &info);
        for (uint32_t p = 0; p < info.part_count; p++) stale |= held[info.parts[p]];
        if (stale) continue;
        for (uint32_t p = 0; p < info.part_count; p++) held[info.parts[p]] = true;
        parts += info.part_count;
        struct segment *item = items[i];
        items[i] = items[kept];
        items[kept++] = item;
    }
    if (parts < info.batch_parts) return 0;
    qsort(items, kept, sizeof(struct segment *), rows_compare);
    return kept;
}

/* Keep the batches that cover blocks from 0 on without an overlap or a gap in which something lives. */
static struct segment_set *cover_pick(const struct shard_store *s, struct segment **opened, uint32_t count)
{
    struct segment_set *set = segment_set_new(count);
    uint32_t covered[OMEN_VECTOR_FIELDS_MAX] = { 0 };
    if (set == NULL) { /* their files are as good as before */
        while (count > 0) segment_unref(opened[--count]);
        return NULL;
    }
    qsort(opened, count, sizeof(struct segment *), segment_compare);
    for (uint32_t from = 0, end; from < count; from = end) {
        struct segment_info info, next;
        segment_info(opened[from], &info);
        for (end = from + 1; end < count; end++) {
            segment_info(opened[end], &next);
            if (!same_batch(&info, &next)) break;
        }
        uint32_t kept = batch_pick(opened + from, end - from);
        bool fits = info.first_block >= covered[info.field] &&
                all_dead(s, covered[info.field], info.first_block);
        if (!fits) kept = 0;
        for (uint32_t i = from; i < from + kept; i++) set->items[set->count++] = opened[i];
        for (uint32_t i = from + kept; i < end; i++) segment_drop(opened[i]);
        if (kept > 0) covered[info.field] = info.end_block;
    }
    return set;
}

enum omen_err segment_set_load(struct shard_store *s, const struct index_policy *policy,
        const struct index_control *control, struct err *err)
{
    char dir[STORE_PATH_BYTES];
    struct found found = { NULL, 0, 0 };
    enum omen_err rc = index_dir_make(s, dir, err);
    if (rc == OMEN_OK) rc = vfs_list(s->vfs, dir, found_each, &found, err);
    struct segment **opened = mem_must_calloc(found.count + 1, sizeof(struct segment *));
    uint32_t count = 0;
    uint64_t builds = policy->memory_whole / BUILD_SHARE;
    uint64_t left = policy->memory_left > builds ? policy->memory_left - builds : 0;
    struct segment_spec spec = index_spec_of(s, policy, dir);
    for (uint32_t i = 0; rc == OMEN_OK && i < found.count; i++) {
        struct err why;
        spec.number = found.numbers[i];
        uint64_t bytes = segment_graph_bytes(&spec);
        spec.pin = policy->pin && bytes <= left;
        if (spec.number >= s->index.next_number) s->index.next_number = spec.number + 1;
        bool stop = control != NULL && control->stop != NULL && control->stop(control->arg);
        enum omen_err open = stop ? OMEN_ECANCELED : segment_open(&spec, control, &opened[count], &why);
        if (open == OMEN_OK) {
            if (spec.pin) left -= bytes;
            count++;
            continue;
        }
        if (open == OMEN_ECANCELED) { /* begun anew by the next step */
            rc = err_set(err, open, "", "told to stop");
            while (count > 0) segment_unref(opened[--count]);
            break;
        }
        LOG_INFO("segment.remove", "dir=\"%s\" number=%llu reason=\"%s\"", dir,
                (unsigned long long)spec.number, why.message);
        segment_remove_number(s->vfs, dir, spec.number);
    }
    struct segment_set *set = rc == OMEN_OK ? cover_pick(s, opened, count) : NULL;
    if (rc == OMEN_OK && set == NULL) rc = err_set(err, OMEN_ENOMEM, "", "no memory for a set of segments");
    if (rc == OMEN_OK) {
        s->index.loaded = true;
        segment_set_publish(s, set);
    }
    mem_free(opened);
    mem_free(found.numbers);
    return rc;
}
