/* The candidates of a walk under the stop rule, and the nodes that it visited; private to storage/index.
 *
 * Candidates stand in two parts. The nearest few dozen are in order, and what comes is merged into them; the rest
 * lies behind in no order, and its nearest move up when those in front run out. A hard query has hundreds of
 * candidates within its limit, most of which it never gets to: kept in order all of them were a fifth of its time
 * (patch-784). What was expanded is not kept. Threads: no state. */
#ifndef OMEN_STORAGE_INDEX_SEALED_POOL_H
#define OMEN_STORAGE_INDEX_SEALED_POOL_H

#include "common/check.h"
#include "storage/index/sealed_walk.h"

#define FRONT_MOST 96   /* in order */
#define FRONT_SPILL 16  /* stay there when there are more */
#define FRONT_FEW 4     /* left there: more move up, so that those to be prefetched are known; */
#define FRONT_MOVES 12  /* so many, */
#define FRONT_SHARE 6   /* of more behind one in so many, so that what is behind is seldom gone through, */
#define BEHIND_MANY 256 /* in another manner from here on, */
#define FRONT_ROOM (2 * CODE_GROUP) /* never more than this */
#define BEHIND_LEAST 256            /* places: half of them take a whole front */
static_assert(BEHIND_LEAST / 2 >= FRONT_MOST + CODE_GROUP - FRONT_SPILL, "a spilt front fits after halving");

/* The `want` least keys to the front, in order. */
void sealed_keys_least(uint64_t *keys, uint32_t count, uint32_t want);

struct candidates {
    uint64_t buffers[2][FRONT_MOST + CODE_GROUP + 8];
    uint64_t *front, *other; /* ascending, all before every key behind; where the next front is written */
    uint32_t count, cursor;  /* of the front; those before `cursor` are expanded */
    uint64_t *behind;        /* [behind_cap + 8], the scratch's */
    uint64_t *moving;        /* as long, the scratch's: what moves up */
    uint32_t behind_count, behind_cap;
    uint64_t behind_least;
};

/* The first `count` of `behind`, ascending, become the front: the entries of a walk. The memory has room for twice
 * behind_cap + 8; behind_cap is at least BEHIND_LEAST. */
static inline void candidates_init(struct candidates *c, uint64_t *behind, uint32_t count,
        uint32_t behind_cap)
{
    c->front = c->buffers[0];
    c->other = c->buffers[1];
    memcpy(c->front, behind, count * sizeof *behind);
    c->count = count;
    c->cursor = c->behind_count = 0;
    c->behind = behind;
    c->moving = behind + behind_cap + 8;
    c->behind_cap = behind_cap;
    c->behind_least = UINT64_MAX;
}

/* Behind is full: its nearer half stays. Few walks of few queries ever come here. */
void sealed_candidates_halve(struct candidates *c);
/* The nearest of those behind into the front, at most 32; those from `limit` on are let go. */
void sealed_candidates_move(struct candidates *c, const struct code_kernel *kernel, uint64_t limit);

/* Keys of one row's neighbours before they go to either part. */
struct arrivals {
    uint64_t keys[CODE_GROUP + 4]; /* nearer than all behind */
    uint32_t count;
};

/* Room for `n` more behind; for a row's neighbours before candidate_arrives. */
static inline void candidates_reserve(struct candidates *c, uint32_t n)
{
    if (c->behind_count + n > c->behind_cap) sealed_candidates_halve(c);
}

/* Without a branch: which part it is cannot be foretold. */
static inline void candidate_arrives(struct candidates *c, struct arrivals *a, uint64_t key)
{
    bool near = key < c->behind_least;
    a->keys[a->count] = key;
    a->count += near;
    c->behind[c->behind_count] = key;
    c->behind_count += !near;
}

/* n keys, 1..32, in any order, into the front; fresh has room for n + 4. */
static inline void candidates_merge(struct candidates *c, const struct code_kernel *kernel,
        const uint64_t *fresh, uint32_t n)
{
    uint32_t live = c->count - c->cursor;
    (void)kernel->pool_merge(c->front + c->cursor, live, FRONT_MOST + CODE_GROUP, fresh, n, c->other);
    uint64_t *other = c->front;
    c->front = c->other;
    c->other = other;
    c->cursor = 0;
    c->count = live + n;
    if (c->count <= FRONT_MOST) return;
    candidates_reserve(c, c->count - FRONT_SPILL);
    memcpy(c->behind + c->behind_count, c->front + FRONT_SPILL, (c->count - FRONT_SPILL) * sizeof *c->front);
    c->behind_count += c->count - FRONT_SPILL;
    c->behind_least = c->front[FRONT_SPILL];
    c->count = FRONT_SPILL;
}

#endif
