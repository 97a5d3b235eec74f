/* Which living rows expire, soonest first, so that apply can let them die when log time has passed them: they then count
 * as deleted everywhere (points, segments, merges) and their space is given back like that of others. Answers never wait
 * for it, every read looks at the time itself (CORRECTNESS A3).
 *
 * A binary heap. A row that died otherwise stays in it until its time or until stale ones are half of it: whoever takes
 * one out looks whether it lives. Rebuilt at open from the rows that live.
 * Threads: the apply worker. */
#ifndef OMEN_STORAGE_EXPIRY_H
#define OMEN_STORAGE_EXPIRY_H

#include "storage/stream/blocks.h"

struct expiry_item {
    uint64_t expires_ms;
    struct row_ref row;
};

struct expiry {
    struct expiry_item *items; /* [cap], owned; a heap of `count` */
    uint32_t count, cap;
    uint64_t living; /* of them, at most: rows added less those that died */
};

void expiry_fini(struct expiry *x);
/* Room for `count` more. OMEN_ENOMEM. */
OMEN_CHECKED enum omen_err expiry_reserve(struct expiry *x, uint32_t count, struct err *err);
/* A row lives and expires; there is room. */
void expiry_add(struct expiry *x, uint64_t expires_ms, struct row_ref row);
/* A row that was added has died. `blocks` says of each whether it lives when stale ones are thrown out. */
void expiry_died(struct expiry *x, const struct blocks *blocks);
/* When the soonest expires, UINT64_MAX: none does. It may have died already. */
static inline uint64_t expiry_next_ms(const struct expiry *x)
{
    return x->count > 0 ? x->items[0].expires_ms : UINT64_MAX;
}
/* Take the soonest out; there is one. Putting it back is expiry_put_back, for which there is room then. */
struct expiry_item expiry_take(struct expiry *x);
void expiry_put_back(struct expiry *x, struct expiry_item item);

#endif
