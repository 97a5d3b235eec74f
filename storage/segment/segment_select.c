/* All rows of a segment that a view sees and a filter passes: counted, or told one by one. The payload index says which
 * pass; those of them that have died are taken off as a set, which is kept from one question to the next while nothing
 * dies. Where the index does not know or points expire, rows are asked one by one, those that may pass alone. */
#include <string.h>

#include "common/check.h"
#include "common/mem.h"
#include "storage/payload/filter_eval.h"
#include "storage/payload/rowbits.h"
#include "storage/segment/segment_impl.h"

#define STOP_ROWS 4096u /* asked or told between two polls of `stop` */
#define DEAD_SHARE 8u   /* of the rows: to ask as many costs as much as to make the set of the dead */

/* Rows that died at or before `as_of`. */
struct segment_dead {
    _Atomic uint32_t refs;
    uint64_t as_of, count;
    uint64_t bits[];
};

void segment_dead_unref(struct segment_dead *dead)
{
    if (dead != NULL && atomic_fetch_sub_explicit(&dead->refs, 1, memory_order_acq_rel) == 1) mem_free(dead);
}

static bool row_dead(const struct segment *s, uint32_t row, uint64_t as_of)
{
    struct row_ref ref = s->slots[row];
    return !block_row_visible(blocks_at(s->blocks, ref.block), ref.op, as_of, 0);
}

static struct segment_dead *dead_make(const struct segment *s, uint64_t as_of)
{
    size_t words = rowbits_words(s->count);
    struct segment_dead *dead = mem_calloc(1, sizeof *dead + words * sizeof *dead->bits);
    if (dead == NULL) return NULL;
    atomic_init(&dead->refs, 1);
    dead->as_of = as_of;
    for (uint32_t i = 0; i < s->count; i++)
        if (row_dead(s, i, as_of)) rowbits_add(dead->bits, i);
    dead->count = rowbits_count(dead->bits, s->count);
    return dead;
}

/* Nothing died between the two sequences, as far as who looks at the later one can know. */
static bool dead_serves(const struct segment_dead *dead, const struct segment_select *q)
{
    uint64_t earlier = dead->as_of < q->view_sequence ? dead->as_of : q->view_sequence;
    return dead->as_of == q->view_sequence || q->died_last <= earlier;
}

/* Those that the view does not see, with a reference; NULL: it is cheaper to ask `rows` rows, or no memory. */
static struct segment_dead *dead_get(struct segment *s, const struct segment_select *q, uint64_t rows)
{
    pthread_mutex_lock(&s->mutex);
    struct segment_dead *dead = s->dead;
    if (dead != NULL && dead_serves(dead, q))
        atomic_fetch_add_explicit(&dead->refs, 1, memory_order_relaxed);
    else
        dead = NULL;
    pthread_mutex_unlock(&s->mutex);
    if (dead != NULL || rows < s->count / DEAD_SHARE) return dead;
    dead = dead_make(s, q->view_sequence);
    if (dead == NULL) return NULL;
    atomic_fetch_add_explicit(&dead->refs, 1, memory_order_relaxed);
    pthread_mutex_lock(&s->mutex);
    struct segment_dead *before = s->dead;
    s->dead = dead;
    pthread_mutex_unlock(&s->mutex);
    segment_dead_unref(before);
    return dead;
}

/* ---- the rows ---- */

struct selecting {
    struct segment *s;
    const struct segment_select *q;
    struct payload_answer answer;
    struct segment_scratch *scratch;
};

/* What the payload index knows; without one all rows may pass. */
static enum omen_err select_begin(struct selecting *sel)
{
    struct segment *s = sel->s;
    const struct filter *filter = sel->q->filter;
    sel->scratch = segment_scratch_get(s);
    if (sel->scratch == NULL) return OMEN_ENOMEM;
    if (sel->scratch->sets == NULL) sel->scratch->sets = payload_scratch_new();
    if (sel->scratch->sets == NULL) return OMEN_ENOMEM;
    if (s->payload != NULL) return payload_index_filter(s->payload, filter, sel->scratch->sets, &sel->answer);
    sel->answer.exact = filter == NULL;
    sel->answer.count = s->count;
    return payload_scratch_rows(sel->scratch->sets, s->count, &sel->answer.rows);
}

static void select_end(struct selecting *sel)
{
    if (sel->scratch != NULL) segment_scratch_put(sel->s, sel->scratch);
}

static bool row_selected(const struct selecting *sel, struct row_ref ref)
{
    const struct block *block = blocks_at(sel->s->blocks, ref.block);
    const struct segment_select *q = sel->q;
    if (!block_row_visible(block, ref.op, q->view_sequence, q->now_ms)) return false;
    if (sel->answer.exact) return true;
    struct entry_op op;
    entry_op_at(&block->entry, ref.op, &op);
    return filter_match(q->filter, op.key.id, op.payload);
}

/* Every row that may pass is asked; `told` (or NULL) hears of those that do. */
static enum omen_err rows_ask(const struct selecting *sel, void (*told)(void *arg, struct row_ref row),
        void *arg, uint64_t *count_out)
{
    const struct segment_select *q = sel->q;
    uint64_t count = 0;
    uint32_t asked = 0;
    for (size_t w = 0; w < rowbits_words(sel->s->count); w++) {
        for (uint64_t left = sel->answer.rows[w]; left != 0; left &= left - 1) {
            struct row_ref ref = sel->s->slots[w * 64 + (uint32_t)__builtin_ctzll(left)];
            if (++asked % STOP_ROWS == 0 && q->stop != NULL && q->stop(q->stop_arg)) return OMEN_EDEADLINE;
            if (!row_selected(sel, ref)) continue;
            count++;
            if (told != NULL) told(arg, ref);
        }
    }
    *count_out = count;
    return OMEN_OK;
}

static bool none_can(const struct segment *s, const struct segment_select *q)
{
    return s->count == 0 || segment_select_estimate(s, q->filter) == 0;
}

double segment_select_estimate(const struct segment *s, const struct filter *filter)
{
    struct payload_estimate estimate;
    if (s->count == 0) return 0;
    if (s->payload == NULL) return s->count;
    payload_index_estimate(s->payload, filter, &estimate);
    return estimate.pruned != EXPLAIN_NOT_PRUNED ? 0 : estimate.rows;
}

enum omen_err segment_count(struct segment *s, const struct segment_select *q, uint64_t *count_out)
{
    struct selecting sel = { .s = s, .q = q };
    *count_out = 0;
    if (none_can(s, q)) return OMEN_OK;
    enum omen_err rc = select_begin(&sel);
    if (rc == OMEN_OK) {
        bool by_sets = sel.answer.exact && q->none_expired;
        struct segment_dead *dead = by_sets ? dead_get(s, q, sel.answer.count) : NULL;
        if (dead == NULL) {
            rc = rows_ask(&sel, NULL, NULL, count_out);
        } else {
            if (dead->count > 0) rowbits_and_not(sel.answer.rows, dead->bits, s->count);
            *count_out = dead->count > 0 ? rowbits_count(sel.answer.rows, s->count) : sel.answer.count;
        }
        segment_dead_unref(dead);
    }
    select_end(&sel);
    return rc;
}

enum omen_err segment_select(struct segment *s, const struct segment_select *q,
        void (*told)(void *arg, struct row_ref row), void *arg)
{
    struct selecting sel = { .s = s, .q = q };
    uint64_t ignored;
    if (none_can(s, q)) return OMEN_OK;
    enum omen_err rc = select_begin(&sel);
    if (rc == OMEN_OK) rc = rows_ask(&sel, told, arg, &ignored);
    select_end(&sel);
    return rc;
}

/* ---- rows that are in no segment of the field, because they have none there ---- */

static bool op_unlisted(const struct entry *e, uint32_t op, uint32_t field)
{
    struct entry_op parsed;
    entry_op_at(e, op, &parsed);
    return parsed.kind == POINT_UPSERT && parsed.rows[field] == ENTRY_NO_ROW;
}

static bool block_has_unlisted(const struct block *b, uint32_t field)
{
    bool unlisted = false;
    if (b->died == NULL || b->entry.row_count[field] == b->entry.op_count) return false;
    for (uint32_t op = 0; op < b->entry.op_count && !unlisted; op++)
        unlisted = op_unlisted(&b->entry, op, field);
    return unlisted;
}

bool segment_blocks_listed(struct segment *s)
{
    enum segment_listed known = atomic_load_explicit(&s->listed, memory_order_relaxed);
    for (uint32_t i = s->first_block; known == SEGMENT_LISTED_UNKNOWN && i < s->end_block; i++)
        if (block_has_unlisted(blocks_at(s->blocks, i), s->field)) known = SEGMENT_LISTED_SOME;
    if (known == SEGMENT_LISTED_UNKNOWN) known = SEGMENT_LISTED_ALL;
    atomic_store_explicit(&s->listed, known, memory_order_relaxed);
    return known == SEGMENT_LISTED_ALL;
}
