/* What a search of the sealed graph shares with its plans under filters: the searching thread's memory and the
 * plans themselves; private to storage/index. See sealed_filter.c. */
#ifndef OMEN_STORAGE_INDEX_SEALED_FILTER_H
#define OMEN_STORAGE_INDEX_SEALED_FILTER_H

#include "storage/index/sealed_impl.h"

#define SEALED_SEEN_MIN 512 /* places of the table of expanded nodes; grows at half */

struct compact_scratch;

struct index_scratch {
    float *query;   /* [padded] internal, unrotated */
    float *rotated; /* [padded] */
    float stretch;  /* of the query: ip only, else 1 */
    uint8_t *lut;   /* [padded * 4] */
    struct code_query code;
    uint64_t *pool; /* [2][pool_cap + 8] estimate bits << 32 | node << 2 | flags, ascending */
    uint32_t pool_cap;
    uint32_t *seen; /* [seen_cap] expanded nodes, open addressing, NODE_NONE = free */
    uint32_t seen_cap, seen_count;
    uint64_t *visited; /* [visited_cap] nodes of a walk: distance bits << 32 | node */
    uint32_t visited_cap;
    struct index_hit *hits; /* [hits_cap] */
    uint32_t hits_cap;
    struct index_hit *near; /* [near_cap] the distances that the stop rule looks at */
    uint32_t near_cap;
    struct compact_scratch *compact; /* compact.h, owned; NULL in the fast layout */
};

/* Room for a pool and for hits; OMEN_ENOMEM leaves none of what had to grow. */
enum omen_err sealed_scratch_reserve(struct index_scratch *scratch, uint32_t pool, uint32_t hits);
enum omen_err sealed_visited_reserve(struct index_scratch *scratch, uint32_t count);
/* The query's internal and rotated vector and its look-up table, into `scratch`. */
void sealed_query_prepare(const struct sealed *s, const float *query, struct index_scratch *scratch);

/* Slots that may pass lie in [first, end). */
static inline uint32_t sealed_first(const struct index_search *search) { return search->run_first; }
static inline uint32_t sealed_end(const struct sealed *s, const struct index_search *search)
{
    return search->run_end != 0 && search->run_end < s->count ? search->run_end : s->count;
}
static inline bool sealed_passes(const struct index_search *search, uint32_t slot)
{
    if (search->run_end != 0) return slot >= search->run_first && slot < search->run_end;
    return search->filter == NULL || index_bit(search->filter, slot);
}

/* Answers `search` under its filter or run, or by the plan it names: by whatever costs least. `effort` is that of a walk
 * without filter, SEALED_EFFORT_SCAN when no effort reaches the target. */
enum omen_err sealed_filtered(const struct sealed *s, const struct index_search *search, uint32_t effort,
        struct index_scratch *scratch, struct index_hit *hits_out, uint32_t *count_out,
        struct index_cost *cost);

/* Visited nodes of a walk (nearest first, slots still node numbers, overwritten) into hits with final distances. The
 * first k and a few are rescored from their full rows, then those that the error seen in these lets in. `stretch`
 * is the query's. */
void sealed_finish(const struct sealed *s, const struct index_search *search, float stretch,
        struct index_hit *visited, uint32_t count, struct index_hit *hits_out, uint32_t *count_out,
        struct index_cost *cost);

/* Final distance of a row: that of storage/kernel, NaN counted as infinite. */
float sealed_row_distance(const struct sealed *s, const float *query, uint32_t slot);

/* Every row that passes, by its full vector: few are wanted, or the walk did not find enough. */
enum omen_err sealed_gather(const struct sealed *s, const struct index_search *search,
        struct index_hit *hits_out, uint32_t *count_out, struct index_cost *cost);

/* Slots by their flat 1-bit codes under the filter's bits, in order of slots; those whose error bound lets them
 * be among the k nearest are rescored. */
enum omen_err sealed_scan(const struct sealed *s, const struct index_search *search,
        struct index_scratch *scratch, struct index_hit *hits_out, uint32_t *count_out,
        struct index_cost *cost);

#endif
