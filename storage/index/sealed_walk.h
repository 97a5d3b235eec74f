/* What the walks of the sealed graph are made of: the table of expanded nodes, keys of the pool, the entry; private
 * to storage/index. sealed_walk.c walks without a filter, sealed_filter.c under one. */
#ifndef OMEN_STORAGE_INDEX_SEALED_WALK_H
#define OMEN_STORAGE_INDEX_SEALED_WALK_H

#include <math.h>
#include <string.h>

#include "storage/index/sealed_filter.h"

#define NODE_NONE UINT32_MAX

/* ---- expanded nodes ---- */

static inline uint32_t seen_place(const struct index_scratch *scratch, uint32_t node)
{
    uint32_t i = node * 0x9e3779b1u >> 8 & (scratch->seen_cap - 1);
    while (scratch->seen[i] != node && scratch->seen[i] != NODE_NONE) i = (i + 1) & (scratch->seen_cap - 1);
    return i;
}

static inline bool seen_has(const struct index_scratch *scratch, uint32_t node)
{
    return scratch->seen[seen_place(scratch, node)] == node;
}

enum omen_err sealed_seen_grow(struct index_scratch *scratch);

/* Begins a walk: nothing is expanded. */
static inline void seen_clear(struct index_scratch *scratch)
{
    scratch->seen_cap = SEALED_SEEN_MIN;
    memset(scratch->seen, 0xff, scratch->seen_cap * sizeof(uint32_t));
    scratch->seen_count = 0;
}

/* Marks `node`; *fresh_out = it was not marked before. OMEN_ENOMEM. */
static inline enum omen_err seen_add(struct index_scratch *scratch, uint32_t node, bool *fresh_out)
{
    uint32_t place = seen_place(scratch, node);
    *fresh_out = scratch->seen[place] != node;
    if (!*fresh_out) return OMEN_OK;
    scratch->seen[place] = node;
    return ++scratch->seen_count * 2 > scratch->seen_cap ? sealed_seen_grow(scratch) : OMEN_OK;
}

/* ---- the pool: keys of estimate, node, two flags; they order as the estimates do ---- */

#define KEY_EXPANDED 1u
#define KEY_FETCHED 2u
static_assert(INDEX_SLOTS_MAX <= 1u << 30, "a node and two flags share 32 bits");

static inline uint64_t pool_key(float estimate, uint32_t node)
{
    uint32_t bits; /* of a float >= 0 */
    memcpy(&bits, &estimate, sizeof bits);
    return (uint64_t)bits << 32 | (uint64_t)node << 2;
}
static inline uint32_t pool_node(uint64_t key) { return (uint32_t)key >> 2; }
static inline float pool_estimate(uint64_t key)
{
    uint32_t bits = (uint32_t)(key >> 32);
    float estimate;
    memcpy(&estimate, &bits, sizeof estimate);
    return estimate;
}

static inline void row_prefetch(const struct sealed *s, uint32_t node)
{
    const uint8_t *row = sealed_row(s, node), *end = row + s->layout.row_bytes;
    for (; row < end; row += 64) __builtin_prefetch(row, 0, 3);
}

/* ---- the entry ---- */

/* The nearest leaders by their 1-bit codes, into the pool, ascending: of the groups whose middles are nearest, and of
 * the groups that are always looked at. Returns how many estimates that took. */
uint32_t sealed_enter(const struct sealed *s, struct index_scratch *scratch, uint32_t *count, uint32_t cap);

#endif
