/* Points by filter, not by distance; see shard_select.h.
 *
 *   blocks:   [ batch of segments | batch | ... ) [ in none yet )
 *             a batch that the view is old enough for: its segments; else, and past them, payload by payload
 * Every point is in one segment of one field at most, so those of one field are asked, the one that covers most; points
 * that have no vector of that field are found in the batch's blocks. */
#include "storage/shard_select.h"

#include <stdlib.h>

#include "common/mem.h"
#include "storage/payload/filter_eval.h"
#include "storage/shard_index_impl.h"

#define POLL_BYTES (64u << 10)
#define ROW_BYTES 256u /* what a row costs besides its payload, for polling */

struct selection {
    const struct store_view *view;
    const struct read_limit *limit;
    struct segment_select q;
    void (*told)(void *arg, struct row_ref row); /* NULL: they are only counted */
    void *arg;
    uint64_t count, polled;
};

static bool limit_stop(void *arg)
{
    const struct read_limit *limit = arg;
    return limit->stop(limit->arg);
}

static void selection_init(struct selection *sel, const struct store_view *view, const struct filter *filter,
        const struct read_limit *limit)
{
    const struct shard_store *s = view->store;
    *sel = (struct selection){ .view = view, .limit = limit };
    sel->q = (struct segment_select){
        .view_sequence = view->sequence,
        .now_ms = view->now_ms,
        .died_last = atomic_load_explicit(&s->died_last, memory_order_acquire),
        .none_expired = view->now_ms < view->pin->expires_next_ms,
        .filter = filter,
        .stop = limit != NULL && limit->stop != NULL ? limit_stop : NULL,
        .stop_arg = (void *)(uintptr_t)limit,
    };
}

/* ---- payload by payload ---- */

static enum omen_err row_ask(struct selection *sel, const struct block *b, struct row_ref ref,
        uint32_t unless)
{
    struct entry_op op;
    if (!block_row_visible(b, ref.op, sel->q.view_sequence, sel->q.now_ms)) return OMEN_OK;
    entry_op_at(&b->entry, ref.op, &op);
    if (unless < OMEN_VECTOR_FIELDS_MAX && op.rows[unless] != ENTRY_NO_ROW) return OMEN_OK;
    sel->polled += ROW_BYTES + op.payload.len;
    if (sel->polled >= POLL_BYTES) {
        sel->polled = 0;
        if (sel->q.stop != NULL && sel->q.stop(sel->q.stop_arg)) return OMEN_EDEADLINE;
    }
    if (!filter_match(sel->q.filter, op.key.id, op.payload)) return OMEN_OK;
    sel->count++;
    if (sel->told != NULL) sel->told(sel->arg, ref);
    return OMEN_OK;
}

/* Points of blocks [from, end) but those with a vector of field `unless` (OMEN_VECTOR_FIELDS_MAX: none). */
static enum omen_err blocks_ask(struct selection *sel, uint32_t from, uint32_t end, uint32_t unless)
{
    const struct blocks *blocks = sel->view->store->blocks;
    enum omen_err rc = OMEN_OK;
    for (uint32_t i = from; i < end && rc == OMEN_OK; i++) {
        const struct block *b = blocks_at(blocks, i);
        if (b->sequence > sel->q.view_sequence) break;
        for (uint32_t op = 0; op < b->entry.op_count && rc == OMEN_OK; op++)
            rc = row_ask(sel, b, (struct row_ref){ i, op }, unless);
    }
    return rc;
}

/* ---- segments ---- */

static uint32_t field_covering_most(const struct shard_store *s, const struct segment_set *set)
{
    uint32_t best = 0;
    for (uint32_t f = 1; f < s->schema.field_count; f++)
        if (set->covered[f] > set->covered[best]) best = f;
    return best;
}

static enum omen_err batch_ask(struct selection *sel, const struct segment_set *set,
        const struct segment_batch *batch)
{
    struct segment_info info;
    segment_info(set->items[batch->first], &info);
    if (sel->view->sequence < batch->as_of)
        return blocks_ask(sel, info.first_block, info.end_block, OMEN_VECTOR_FIELDS_MAX);
    enum omen_err rc = OMEN_OK;
    for (uint32_t i = batch->first; i < batch->end && rc == OMEN_OK; i++) {
        uint64_t count = 0;
        if (sel->told != NULL)
            rc = segment_select(set->items[i], &sel->q, sel->told, sel->arg);
        else
            rc = segment_count(set->items[i], &sel->q, &count);
        sel->count += count;
    }
    if (rc != OMEN_OK || segment_blocks_listed(set->items[batch->first])) return rc;
    return blocks_ask(sel, info.first_block, info.end_block, batch->field);
}

static enum omen_err selection_run(struct selection *sel)
{
    struct shard_store *s = sel->view->store;
    struct segment_set *set = segment_set_acquire(s);
    uint32_t field = set == NULL ? 0 : field_covering_most(s, set),
             covered = set == NULL ? 0 : set->covered[field];
    enum omen_err rc = OMEN_OK;
    for (uint32_t i = 0; set != NULL && i < set->batch_count && rc == OMEN_OK; i++)
        if (set->batches[i].field == field) rc = batch_ask(sel, set, &set->batches[i]);
    segment_set_release(set);
    return rc == OMEN_OK ? blocks_ask(sel, covered, blocks_count(s->blocks), OMEN_VECTOR_FIELDS_MAX) : rc;
}

enum omen_err select_count(const struct store_view *view, const struct filter *filter,
        const struct read_limit *limit, uint64_t *count_out)
{
    struct selection sel;
    selection_init(&sel, view, filter, limit);
    enum omen_err rc = selection_run(&sel);
    *count_out = sel.count;
    return rc;
}

/* ---- the first in order of key ---- */

#define WALK_NS 300.0 /* a point in order of key, and its payload asked */
#define FIND_NS 100.0 /* a row that may pass, and its key */
#define TAIL_NS 60.0  /* a row that is in no segment, its payload asked */

bool select_first_pays(const struct store_view *view, const struct filter *filter, uint32_t limit)
{
    struct shard_store *s = view->store;
    struct segment_set *set = segment_set_acquire(s);
    if (set == NULL) return false;
    uint32_t field = field_covering_most(s, set);
    double points = (double)view->pin->points, pass = 0, tail = 0;
    for (uint32_t i = 0; i < set->batch_count; i++) {
        const struct segment_batch *batch = &set->batches[i];
        for (uint32_t n = batch->first; n < batch->end && batch->field == field; n++)
            pass += segment_select_estimate(set->items[n], filter);
    }
    tail = (double)blocks_rows(s->blocks, set->covered[field], blocks_count(s->blocks));
    segment_set_release(set);
    double walked = pass <= limit ? points : points * limit / pass;
    return pass * FIND_NS + tail * TAIL_NS < walked * WALK_NS;
}

struct keyed {
    struct point_key key;
    struct row_ref row;
};

/* The smallest keys so far, the largest of these on top. */
struct first {
    const struct shard_store *store;
    const struct point_key *after;
    struct keyed *items; /* [cap] a heap */
    uint32_t count, cap;
};

static void heap_down(struct first *f, uint32_t at)
{
    for (uint32_t child; (child = 2 * at + 1) < f->count; at = child) {
        if (child + 1 < f->count && point_key_compare(&f->items[child + 1].key, &f->items[child].key) > 0)
            child++;
        if (point_key_compare(&f->items[at].key, &f->items[child].key) >= 0) return;
        struct keyed swap = f->items[at];
        f->items[at] = f->items[child];
        f->items[child] = swap;
    }
}

static void heap_up(struct first *f, uint32_t at)
{
    for (; at > 0; at = (at - 1) / 2) {
        struct keyed *up = &f->items[(at - 1) / 2];
        if (point_key_compare(&up->key, &f->items[at].key) >= 0) return;
        struct keyed swap = *up;
        *up = f->items[at];
        f->items[at] = swap;
    }
}

static void first_add(void *arg, struct row_ref row)
{
    struct first *f = arg;
    struct entry_op op;
    row_op(f->store, row, &op);
    if (f->after != NULL && point_key_compare(&op.key, f->after) <= 0) return;
    const struct keyed item = { op.key, row };
    if (f->count < f->cap) {
        f->items[f->count] = item;
        heap_up(f, f->count++);
    } else if (point_key_compare(&op.key, &f->items[0].key) < 0) {
        f->items[0] = item;
        heap_down(f, 0);
    }
}

static int keyed_compare(const void *a, const void *b)
{
    return point_key_compare(&((const struct keyed *)a)->key, &((const struct keyed *)b)->key);
}

enum omen_err select_first(const struct store_view *view, const struct filter *filter,
        const struct point_key *after, uint32_t limit, const struct read_limit *read_limit,
        struct arena *arena, struct row_ref *rows_out, uint32_t *count_out, bool *more_out)
{
    struct selection sel;
    struct first first = { .store = view->store, .after = after, .cap = limit + 1 };
    first.items = arena_alloc(arena, first.cap * sizeof *first.items);
    if (first.items == NULL) return OMEN_ENOMEM;
    selection_init(&sel, view, filter, read_limit);
    sel.told = first_add;
    sel.arg = &first;
    enum omen_err rc = selection_run(&sel);
    if (rc != OMEN_OK) return rc;
    if (first.count > 0) qsort(first.items, first.count, sizeof *first.items, keyed_compare);
    *more_out = first.count > limit;
    *count_out = *more_out ? limit : first.count;
    for (uint32_t i = 0; i < *count_out; i++) rows_out[i] = first.items[i].row;
    return OMEN_OK;
}
