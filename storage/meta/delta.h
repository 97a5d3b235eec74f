/* What happened to points since the last merge into LMDB: a skip list over (point key, newest sequence first), so that
 * a view finds the state at its own sequence exactly and a scroll walks keys in order.
 *
 * The shape is LevelDB's memtable (db/skiplist.h): one writer, any number of readers without locks; nodes live in an
 * arena and are never unlinked; a node is complete before a release store links it.
 * Determinism: tower heights come from a fixed generator seeded alike everywhere; they change speed only. */
#ifndef OMEN_STORAGE_DELTA_H
#define OMEN_STORAGE_DELTA_H

#include "common/query/point.h"
#include "storage/stream/blocks.h"

struct delta;
struct delta_node; /* opaque; lives as long as the delta */

struct delta *delta_new(void);                /* one reference */
struct delta *delta_ref(struct delta *delta); /* NULL is fine */
void delta_unref(struct delta *delta);        /* NULL is fine; any thread */

/* Where a key stands or would stand: what a lookup of the writer leaves behind for the put that follows, so that a write
 * walks the list once. Stays right while the writer puts other keys. */
#define DELTA_SPOT_LEVELS 4
struct delta_spot {
    struct delta_node *before[DELTA_SPOT_LEVELS];
};

/* The newest state of `key`, as delta_get at the newest sequence. Writer only. */
bool delta_find(struct delta *delta, const struct point_key *key, struct delta_spot *spot_out,
        struct row_ref *row_out);

/* State of `key` from `sequence` on: a row, or ROW_NONE for a tombstone. At most once per (key, sequence), sequences of
 * a key never falling. `spot` of this key, or NULL. Writer only. Panics when memory is out. */
void delta_put(struct delta *delta, const struct point_key *key, uint64_t sequence, struct row_ref row,
        const struct delta_spot *spot);

/* The newest state at `sequence`: false when the delta says nothing; else a row or ROW_NONE. Any thread. */
bool delta_get(const struct delta *delta, const struct point_key *key, uint64_t sequence,
        struct row_ref *row_out);

/* Walk keys in order, each with its newest state at `sequence`; keys written later only are skipped. */
struct delta_iter {
    const struct delta_node *node; /* NULL at the end */
    uint64_t sequence;
    struct point_key key;
    struct row_ref row;
    uint64_t version; /* sequence that wrote `row` */
};
/* At the first key >= `from` (NULL = the first). */
void delta_iter_seek(const struct delta *delta, const struct point_key *from, uint64_t sequence,
        struct delta_iter *it_out);
void delta_iter_next(struct delta_iter *it);
static inline bool delta_iter_valid(const struct delta_iter *it) { return it->node != NULL; }

uint64_t delta_bytes(const struct delta *delta); /* any thread */
uint64_t delta_count(const struct delta *delta); /* nodes; any thread */

#endif
