/* The candidates of a walk under the stop rule, and the nodes that it visited; private to storage/index.
 *
 * Candidates stand in two parts. The nearest few are in order, and what comes is merged into them; the rest lies
 * behind in buckets by the leading bits of its estimate, in no order within one, and the nearest bucket moves up when
 * those in front run out. A hard query has hundreds of candidates within its limit, most of which it never gets
 * to: kept in order they were a fifth of its time (patch-784), in one heap behind the front still an eighth.
 * Which bucket a key falls into is a matter of speed only: they leave in order whatever keys there are. What was
 * expanded is not kept. Threads: no state. */
#ifndef OMEN_STORAGE_INDEX_SEALED_POOL_H
#define OMEN_STORAGE_INDEX_SEALED_POOL_H

#include "common/check.h"
#include "storage/index/sealed_walk.h"

#define FRONT_MOST 48         /* in order */
#define FRONT_SPILL 12        /* stay there when there are more */
#define FRONT_FEW 4           /* left there: more move up, so that those to be prefetched are known */
#define FRONT_ROOM CODE_GROUP /* so many at once */
#define BEHIND_LEAST 256      /* places: half of them take a whole front */
#define BUCKETS 512           /* 64 to an octave of the estimate, */
#define BUCKETS_NEARER 384    /* three octaves below that of the first candidate */
#define BUCKET_SHIFT 48       /* of a key; those nearer or farther than all buckets are in the outermost */
#define BEHIND_NONE UINT32_MAX
static_assert(FRONT_FEW + FRONT_ROOM <= FRONT_MOST, "what moves up stays");
static_assert(BEHIND_LEAST / 2 >= FRONT_MOST + CODE_GROUP - FRONT_SPILL, "a spilt front fits after halving");

/* The `want` least keys to the front, in order. */
void sealed_keys_least(uint64_t *keys, uint32_t count, uint32_t want);

struct candidates {
    uint64_t buffers[2][FRONT_MOST + CODE_GROUP + 8];
    uint64_t *front, *other; /* ascending, all before every key behind; where the next front is written */
    uint32_t count, cursor;  /* of the front; those before `cursor` are expanded */
    uint64_t edge;           /* keys from here on lie behind */
    uint64_t *behind;        /* [behind_cap + 1], the scratch's; places are given out once */
    uint64_t *moving;        /* [behind_cap + 8], the scratch's: what moves up */
    uint32_t *next;          /* [behind_cap + 1], the scratch's: the place behind this one in its bucket */
    uint32_t behind_used, behind_cap;
    int32_t bucket_first; /* leading bits of the first bucket's keys */
    uint64_t filled[BUCKETS / 64];
    uint32_t heads[BUCKETS]; /* place, BEHIND_NONE = empty */
};

/* Of 8 bytes, for behind_cap places. */
static inline uint32_t candidates_room(uint32_t behind_cap)
{
    return 2 * (behind_cap + 8) + (behind_cap + 8) / 2 + 8;
}

/* The first `count` of `memory`, ascending, become the front: the entries of a walk. The memory has room for
 * candidates_room(behind_cap), behind_cap is even and at least BEHIND_LEAST. */
static inline void candidates_init(struct candidates *c, uint64_t *memory, uint32_t count,
        uint32_t behind_cap)
{
    c->front = c->buffers[0];
    c->other = c->buffers[1];
    memcpy(c->front, memory, count * sizeof *memory);
    c->count = count;
    c->cursor = c->behind_used = 0;
    c->edge = UINT64_MAX;
    c->behind = memory;
    c->moving = memory + behind_cap + 8;
    c->next = (uint32_t *)(void *)(memory + 2 * ((size_t)behind_cap + 8));
    c->behind_cap = behind_cap;
    c->bucket_first = (int32_t)((count > 0 ? c->front[0] : 0) >> BUCKET_SHIFT) - BUCKETS_NEARER;
    memset(c->filled, 0, sizeof c->filled);
    memset(c->heads, 0xff, sizeof c->heads);
}

static inline uint32_t candidates_bucket(int32_t first, uint64_t key)
{
    int32_t bucket = (int32_t)(key >> BUCKET_SHIFT) - first;
    bucket = bucket < 0 ? 0 : bucket;
    return (uint32_t)(bucket < BUCKETS - 1 ? bucket : BUCKETS - 1);
}

static inline bool candidates_behind(const struct candidates *c)
{
    uint64_t some = 0;
    for (uint32_t i = 0; i < BUCKETS / 64; i++) some |= c->filled[i];
    return some != 0;
}

/* No place is left behind: they are given out anew, and at most half of them kept, the nearest. */
void sealed_candidates_halve(struct candidates *c);
/* The nearest of those behind into the front, some 4 to 32; those from `limit` on are let go. */
void sealed_candidates_move(struct candidates *c, const struct code_kernel *kernel, uint64_t limit);
/* All but the first few of the front go behind. */
void sealed_candidates_spill(struct candidates *c);

/* n keys, at most 32, in any order: those nearer than all behind to near_out, how many; the others behind. Without a
 * branch: which it is cannot be foretold. */
static inline uint32_t candidates_arrive(struct candidates *c, const uint64_t *keys, uint32_t n,
        uint64_t near_out[CODE_GROUP])
{
    if (c->behind_used + n > c->behind_cap) sealed_candidates_halve(c);
    uint64_t *behind = c->behind, *filled = c->filled, edge = c->edge;
    uint32_t *next = c->next, *heads = c->heads, used = c->behind_used, near = 0;
    int32_t first = c->bucket_first;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t key = keys[i];
        bool far = key >= edge;
        uint32_t bucket = candidates_bucket(first, key), head = heads[bucket];
        near_out[near] = behind[used] = key; /* one of them is written over by the next */
        next[used] = head;
        heads[bucket] = far ? used : head;
        filled[bucket / 64] |= (uint64_t)far << bucket % 64;
        near += !far;
        used += far;
    }
    c->behind_used = used;
    return near;
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
    if (c->count > FRONT_MOST) sealed_candidates_spill(c);
}

#endif
