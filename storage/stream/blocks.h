/* The rows of the stream: one block per unit, one row per operation, each with the sequence at which it died.
 *
 * Append-only in pages, so that a reader never sees a table move: lock-free for readers, one writer. The first
 * pages are small and double, or every small collection would take the memory of a full one.
 * A row is visible at sequence s when its block's sequence <= s and (died == 0 or died > s). Rows that never were a
 * point's state (deletes, payload operations, superseded inside their own entry, duplicates) are born dead: died is
 * their own sequence. A row that expires is absent from then on whether or not it has died yet (CORRECTNESS A3). */
#ifndef OMEN_STORAGE_BLOCKS_H
#define OMEN_STORAGE_BLOCKS_H

#include <stdatomic.h>

#include "storage/entry.h"
#include "storage/stream/stream.h"

#define BLOCKS_PAGE 1024u /* blocks per page, from block 1024 on; before it pages of 16, 16, 32, 64 .. 512 */
#define BLOCKS_FIRST_PAGE 16u
#define BLOCKS_SMALL_PAGES 7u /* that hold the first 1024 */
#define BLOCKS_PER_BOOK 1024u /* pages of a book */
#define BLOCKS_BOOKS 64u
#define BLOCKS_PAGES_MAX (BLOCKS_BOOKS * BLOCKS_PER_BOOK) /* 67 million units in one replica */

struct block {
    uint64_t sequence;
    struct entry entry; /* attached to the mapped bytes */
    struct stream_unit unit;
    _Atomic uint64_t *died; /* [entry.op_count], owned; NULL: the unit was given up, all rows are long dead */
    uint32_t *
            digests; /* [entry.op_count], in the memory of `died`; of upserts, for who stages the block to fill in */
    _Atomic uint32_t live;   /* rows with died = 0; the writer's count, read by who looks for dead space */
    uint64_t rows_before;    /* of all blocks before it; of a block: those of the field that has most */
    uint64_t expires_min_ms; /* the first of its rows to expire; UINT64_MAX = none does */
};

/* A row: block (position in the table) and op. */
struct row_ref {
    uint32_t block, op;
};
#define ROW_NONE ((struct row_ref){ UINT32_MAX, UINT32_MAX })
static inline bool row_is_none(struct row_ref r) { return r.block == UINT32_MAX; }
static inline bool row_equal(struct row_ref a, struct row_ref b)
{
    return a.block == b.block && a.op == b.op;
}

struct blocks_book {
    struct block *_Atomic pages[BLOCKS_PER_BOOK];
};

struct blocks {
    struct blocks_book *_Atomic books[BLOCKS_BOOKS];
    _Atomic uint32_t count;     /* published */
    _Atomic uint64_t row_count; /* ops of all blocks */
};

struct blocks *blocks_new(void);
void blocks_free(struct blocks *blocks);

/* Get a block ready at the end of the table, all rows dead since `sequence`, seen by nobody. `staged` blocks lie before
 * it already. OMEN_EFULL at the limit, OMEN_ENOMEM. Writer. */
OMEN_CHECKED enum omen_err blocks_stage(struct blocks *blocks, uint32_t staged,
        const struct stream_unit *unit, const struct entry *entry, struct err *err);
void blocks_unstage(struct blocks *blocks, uint32_t staged); /* drop all staged ones */
void blocks_publish(struct blocks *blocks, uint32_t staged); /* let readers see them */

/* Where a block lies: page, the page's first block, and how many the page holds. */
struct blocks_place {
    uint32_t page, first, count;
};

static inline struct blocks_place blocks_place(uint32_t i)
{
    if (i >= BLOCKS_PAGE) {
        uint32_t page = BLOCKS_SMALL_PAGES - 1 + i / BLOCKS_PAGE;
        return (struct blocks_place){ page, i & ~(BLOCKS_PAGE - 1), BLOCKS_PAGE };
    }
    if (i < BLOCKS_FIRST_PAGE) return (struct blocks_place){ 0, 0, BLOCKS_FIRST_PAGE };
    uint32_t page = (uint32_t)__builtin_clz(BLOCKS_FIRST_PAGE) - (uint32_t)__builtin_clz(i) + 1;
    return (struct blocks_place){ page, BLOCKS_FIRST_PAGE << (page - 1), BLOCKS_FIRST_PAGE << (page - 1) };
}

static inline struct block *blocks_at(const struct blocks *blocks, uint32_t i)
{
    struct blocks_place at = blocks_place(i);
    struct blocks_book *book = atomic_load_explicit(&blocks->books[at.page / BLOCKS_PER_BOOK],
            memory_order_acquire);
    return atomic_load_explicit(&book->pages[at.page % BLOCKS_PER_BOOK], memory_order_acquire) +
            (i - at.first);
}

static inline uint32_t blocks_count(const struct blocks *blocks)
{
    return atomic_load_explicit(&blocks->count, memory_order_acquire);
}

static inline uint64_t block_rows(const struct block *b)
{
    uint32_t rows = 0;
    for (uint32_t f = 0; f < OMEN_VECTOR_FIELDS_MAX; f++)
        if (b->entry.row_count[f] > rows) rows = b->entry.row_count[f];
    return rows;
}

/* Rows of published blocks [from, end), about: of the field that has most of them. */
static inline uint64_t blocks_rows(const struct blocks *blocks, uint32_t from, uint32_t end)
{
    if (from >= end) return 0;
    const struct block *last = blocks_at(blocks, end - 1);
    return last->rows_before + block_rows(last) - blocks_at(blocks, from)->rows_before;
}

/* When the row died; 0 = it lives. What a writer asks. */
static inline uint64_t block_row_died(const struct block *b, uint32_t op)
{
    return b->died == NULL ? 1 : atomic_load_explicit(&b->died[op], memory_order_relaxed);
}

/* Has the row's time come? */
static inline bool block_row_expired(const struct block *b, uint32_t op, uint64_t now_ms)
{
    if (now_ms < b->expires_min_ms) return false;
    uint64_t expires_ms = entry_expires_ms(&b->entry, op);
    return expires_ms != 0 && expires_ms <= now_ms;
}

/* Does a view at `sequence` see the row at `now_ms`? With now 0 nothing has expired. */
static inline bool block_row_visible(const struct block *b, uint32_t op, uint64_t sequence, uint64_t now_ms)
{
    if (b->died == NULL) return false;
    uint64_t died = atomic_load_explicit(&b->died[op], memory_order_relaxed);
    return b->sequence <= sequence && (died == 0 || died > sequence) && !block_row_expired(b, op, now_ms);
}

/* A row of the newest block that is staged or published comes to life, or dies at `sequence`. Writer. */
static inline void block_row_live(struct block *b, uint32_t op)
{
    atomic_store_explicit(&b->died[op], 0, memory_order_relaxed);
    atomic_fetch_add_explicit(&b->live, 1, memory_order_relaxed);
}
static inline void block_row_die(struct block *b, uint32_t op, uint64_t sequence)
{
    atomic_store_explicit(&b->died[op], sequence, memory_order_relaxed);
    atomic_fetch_sub_explicit(&b->live, 1, memory_order_relaxed);
}

/* What readers of before may still look at. */
struct blocks_replaced {
    struct block **pages; /* [page_count] owned, as what they point to */
    uint32_t page_count;
    _Atomic uint64_t **died; /* [died_count] of units that were given up */
    uint32_t died_count;
};
/* Blocks [first, first + count) lie elsewhere from now on: `units` [count], an entry of the same ops or nothing. Rows
 * that are to be seen by any view from now on are in both. Pages of the table are copied and swapped: who holds a block
 * goes on with the old one until blocks_replaced_free. Writer. */
void blocks_replace(struct blocks *blocks, uint32_t first, uint32_t count, const struct stream_unit *units,
        const struct collection_schema *schema, struct blocks_replaced *replaced_out);
void blocks_replaced_free(struct blocks_replaced *replaced);

/* The first published block whose unit stands at or after `position`. O(log blocks). */
uint32_t blocks_lower_bound(const struct blocks *blocks, struct stream_position position);
/* The published block whose unit stands at `position`; UINT32_MAX when there is none. O(log blocks). */
uint32_t blocks_find(const struct blocks *blocks, struct stream_position position);

#endif
