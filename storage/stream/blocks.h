/* The rows of the stream: one block per unit, one row per operation, each with the sequence at which it died.
 *
 * Append-only in pages of a fixed size, so that a reader never sees a table move: lock-free for readers, one writer.
 * A row is visible at sequence s when its block's sequence <= s and (died == 0 or died > s). Rows that never were a
 * point's state (deletes, payload operations, superseded inside their own entry, duplicates) are born dead: died is
 * their own sequence. */
#ifndef OMEN_STORAGE_BLOCKS_H
#define OMEN_STORAGE_BLOCKS_H

#include <stdatomic.h>

#include "storage/entry.h"
#include "storage/stream/stream.h"

#define BLOCKS_PAGE 1024u       /* blocks per page */
#define BLOCKS_PAGES_MAX 65536u /* 67 million units in one replica */

struct block {
    uint64_t sequence;
    struct entry entry; /* attached to the mapped bytes */
    struct stream_unit unit;
    _Atomic uint64_t *died; /* [entry.op_count], owned */
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

struct blocks {
    struct block *_Atomic pages[BLOCKS_PAGES_MAX];
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

static inline struct block *blocks_at(const struct blocks *blocks, uint32_t i)
{
    return atomic_load_explicit(&blocks->pages[i / BLOCKS_PAGE], memory_order_acquire) + i % BLOCKS_PAGE;
}

static inline uint32_t blocks_count(const struct blocks *blocks)
{
    return atomic_load_explicit(&blocks->count, memory_order_acquire);
}

static inline bool block_row_visible(const struct block *b, uint32_t op, uint64_t sequence)
{
    uint64_t died = atomic_load_explicit(&b->died[op], memory_order_relaxed);
    return b->sequence <= sequence && (died == 0 || died > sequence);
}

/* The published block whose unit stands at `position`; UINT32_MAX when there is none. O(log blocks). */
uint32_t blocks_find(const struct blocks *blocks, struct stream_position position);

#endif
