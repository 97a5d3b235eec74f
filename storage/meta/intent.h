/* Writes by filter that are under way (CORRECTNESS A5), as the shard knows them: replicated state, a function of the
 * entries alone.
 *
 *   entry BEGIN at sequence i --> OPEN{cursor, steps, affected} --step: bounded writes of (id, if version <= i)--> OPEN
 *                                   --last step--> gone; its outcome is in the table of applied ops
 *
 * Where one is: a point key. All points up to it that matched at i are done. Points are kept in order of their keys on
 * every replica, however its chunks, deltas and segments lie, and a point never changes its key; so a cursor of one
 * replica means the same at the next leader. (Ranges of hashed ids would do as well, but the store has no order by hash:
 * each range would be a scan of all points.)
 *
 * A set is never changed once it is published: apply makes the next one and swaps it in, so that a failed entry is undone
 * by dropping it, and a merge, or the leader's work, keeps the one it took. What is to be done (`work`) is shared by them.
 * Threads: any; who has a reference reads without a lock. */
#ifndef OMEN_STORAGE_META_INTENT_H
#define OMEN_STORAGE_META_INTENT_H

#include <stdatomic.h>

#include "storage/entry.h"

#define INTENTS_MAX 16u /* open at once in a shard; one more is BUSY. At most 1.1 MB each */

/* What is to be done. */
struct intent_work {
    _Atomic uint32_t refs;
    struct intent_id id;
    struct op_id op_id; /* client 0: nobody will ask again */
    enum point_op_kind op;
    struct doc filter, payload; /* in `bytes` */
    uint8_t bytes[];
};

struct intent {
    struct intent_work *work; /* a reference of the set's */
    uint32_t steps;
    bool has_cursor;
    struct point_key cursor;
    uint64_t affected; /* points so far */
};

struct intent_set {
    _Atomic uint32_t refs;
    uint32_t count;
    struct intent items[INTENTS_MAX];
};

/* One reference. NULL: no memory. `from` NULL = empty. */
struct intent_set *intent_set_copy(const struct intent_set *from);
struct intent_set *intent_set_ref(struct intent_set *set);
void intent_set_unref(struct intent_set *set); /* NULL is fine */

struct intent *intent_set_find(struct intent_set *set, struct intent_id id); /* NULL: not open */
/* The one under this op id. */
struct intent *intent_set_find_op(struct intent_set *set, const struct op_id *op_id);
/* Of a set that is not published yet. OMEN_ENOMEM. There must be room. */
OMEN_CHECKED enum omen_err intent_set_add(struct intent_set *set, struct intent_id id,
        const struct op_id *op_id, const struct entry_intent *begin);
void intent_set_remove(struct intent_set *set, struct intent *item); /* the others keep their order */

/* Value v1 of data.mdb, key 'n' + u64 BE sequence + u32 BE part.  0 u32 crc (the room's) | 4 u16 version | 6 u8 kind of
 * operation | 7 u8 flags (bit 0: has a cursor) | 8 u64 client | 16 u64 seq | 24 u64 issue_ms | 32 u64 affected |
 * 40 u32 steps | 44 u32 filter bytes | 48 u32 payload bytes | 52 cursor, a point key | 85 zero [3] | 88 filter, payload */
#define INTENT_HEAD_BYTES 88u
size_t intent_bytes(const struct intent *intent);
void intent_encode(const struct intent *intent, uint8_t *out); /* all but the crc */
/* Into a set with room. OMEN_ECORRUPT, OMEN_ENOMEM. */
OMEN_CHECKED enum omen_err intent_decode(struct intent_id id, const uint8_t *in, size_t len,
        struct intent_set *set);

#endif
