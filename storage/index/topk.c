/* Bounded max-heap over candidates, in an array: children of i are 2i+1 and 2i+2, the farthest is at 0.
 * Sorting is the second half of heapsort on the same array: no memory, no comparison callback.
 *
 * Threads: one owner. Determinism: topk_compare is a total order on distinct keys. */
#include "common/err.h"
#include "common/check.h"
#include "storage/index/topk.h"

enum omen_err topk_init(struct topk *t, struct arena *arena, uint32_t k)
{
    if (k == 0 || k > OMEN_K_MAX) return OMEN_EINVAL;
    struct topk_candidate *items = arena_alloc_aligned(arena, sizeof *items, k * sizeof *items);
    if (items == NULL) return OMEN_ENOMEM;
    *t = (struct topk){ .items = items, .k = k, .count = 0 };
    return OMEN_OK;
}

int topk_compare(const struct topk_candidate *a, const struct topk_candidate *b)
{
    if (a->distance != b->distance) return a->distance < b->distance ? -1 : 1;
    return point_key_compare(&a->key, &b->key);
}

/* Let `moved` sink from the hole at `hole` to its place among items[0..count). */
static void sift_down(struct topk_candidate *items, uint32_t count, uint32_t hole,
        struct topk_candidate moved)
{
    for (;;) {
        uint32_t child = 2 * hole + 1;
        if (child >= count) break;
        if (child + 1 < count && topk_compare(&items[child + 1], &items[child]) > 0) child++;
        if (topk_compare(&items[child], &moved) <= 0) break;
        items[hole] = items[child];
        hole = child;
    }
    items[hole] = moved;
}

static void sift_up(struct topk_candidate *items, uint32_t hole, const struct topk_candidate *moved)
{
    while (hole > 0) {
        uint32_t parent = (hole - 1) / 2;
        if (topk_compare(&items[parent], moved) >= 0) break;
        items[hole] = items[parent];
        hole = parent;
    }
    items[hole] = *moved;
}

bool topk_accepts(const struct topk *t, const struct topk_candidate *candidate)
{
    return t->count < t->k || topk_compare(candidate, &t->items[0]) < 0;
}

bool topk_push(struct topk *t, const struct topk_candidate *candidate)
{
    CHECK(candidate->distance == candidate->distance);
    if (!topk_accepts(t, candidate)) return false;
    if (t->count < t->k)
        sift_up(t->items, t->count++, candidate);
    else
        sift_down(t->items, t->count, 0, *candidate);
    return true;
}

void topk_sort(struct topk *t)
{
    for (uint32_t left = t->count; left > 1; left--) {
        struct topk_candidate moved = t->items[left - 1];
        t->items[left - 1] = t->items[0];
        sift_down(t->items, left - 1, 0, moved);
    }
}

void topk_clear(struct topk *t) { t->count = 0; }
