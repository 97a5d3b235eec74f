/* The k nearest candidates seen so far: a bounded max-heap in the order of hit_compare (distance, id, key
 * hash), so that the same candidates give the same answer in whatever order they were seen.
 *
 * Threads: one owner. Determinism: the content depends on the set of candidates pushed, never on their
 * order. */
#ifndef OMEN_STORAGE_INDEX_TOPK_H
#define OMEN_STORAGE_INDEX_TOPK_H

#include <assert.h>
#include <math.h>

#include "common/query/point.h"

/* One cache line. */
struct topk_candidate {
    float distance; /* smaller is nearer; never NaN */
    uint32_t row;   /* caller's: row in its block */
    struct point_key key;
    uint64_t location[2]; /* caller's: where the point lies; not compared */
};
static_assert(sizeof(struct topk_candidate) == 64, "a heap level should cost one cache line");

struct topk {
    struct topk_candidate *items; /* [k], heap with the farthest first; borrowed from the arena */
    uint32_t k;
    uint32_t count; /* 0..k */
};

/* Room for k candidates (64 B each) from `arena`. k is 1..OMEN_K_MAX: a caller that knows how many rows are
 * live passes the smaller of the two. OMEN_EINVAL, OMEN_ENOMEM. */
OMEN_CHECKED enum omen_err topk_init(struct topk *t, struct arena *arena, uint32_t k);

int topk_compare(const struct topk_candidate *a, const struct topk_candidate *b); /* as hit_compare */

/* A distance above this cannot enter any more; one equal to it may, by its id. +inf while there is room. */
static inline float topk_bound(const struct topk *t)
{
    return t->count < t->k ? INFINITY : t->items[0].distance;
}

/* Would topk_push take it? Only distance and key are looked at. */
bool topk_accepts(const struct topk *t, const struct topk_candidate *candidate);
/* Copies the candidate in when it is among the k nearest; false when not. O(log k). */
bool topk_push(struct topk *t, const struct topk_candidate *candidate);

/* Sort in place, nearest first: items[0..count). Nothing may be pushed afterwards until topk_clear. */
void topk_sort(struct topk *t);
void topk_clear(struct topk *t);

#endif
