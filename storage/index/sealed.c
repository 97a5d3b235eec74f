/* The sealed graph in the *fast* layout: SymphonyQG (Gou et al., SIGMOD 2025) for one immutable segment.
 *
 * A row holds all that a hop needs: 1-bit codes of its 32 neighbours relative to the node itself, packed for
 * fast scan, their ids and factors, and the node's own vector in 8 bits. One hop: fetch the row whole, take
 * the exact distance of the node, 32 estimates by byte shuffles, keep those below the pool's worst. Visited
 * nodes have exact distances, so rescoring is implicit; when 8 bits do not hold the row exactly, the nearest
 * few are rescored from the segment's rows. Departs from the paper: the walk starts from the nearest of some
 * 4,096 sampled leaders (one scan of their 1-bit codes) instead of one entry node; codes are centred by the
 * segment's mean; scales of the f16 factors are per row. ip walks the L2-augmented space (x, sqrt(R^2 -
 * |x|^2)); final distances are always those of storage/kernel. Filters: sealed_filter.c.
 * Threads: immutable; any number of readers. Determinism: local and rebuildable, never replicated. */
#include <math.h>
#include <string.h>

#include "common/check.h"
#include "common/mem.h"
#include "storage/index/sealed_filter.h"
#include "storage/kernel/kernel.h"

#define SEEN_MIN 2048 /* places of the table of expanded nodes; grows at half */
#define PREFETCH_ROWS 3
#define NODE_NONE UINT32_MAX

static void sealed_scratch_free(struct index_scratch *scratch)
{
    mem_free(scratch->query);
    mem_free(scratch->rotated);
    mem_free(scratch->lut);
    mem_free(scratch->pool);
    mem_free(scratch->seen);
    mem_free(scratch->hits);
    mem_free(scratch);
}

static struct index_scratch *sealed_scratch_new(const struct index *index)
{
    const struct sealed *s = (const struct sealed *)index;
    struct index_scratch *scratch = mem_calloc(1, sizeof *scratch);
    if (scratch == NULL) return NULL;
    scratch->query = mem_alloc_aligned(64, s->padded * sizeof(float));
    scratch->rotated = mem_alloc_aligned(64, s->padded * sizeof(float));
    scratch->lut = mem_alloc_aligned(64, (size_t)s->padded * 4);
    scratch->seen = mem_alloc_aligned(64, SEEN_MIN * sizeof(uint32_t));
    scratch->seen_cap = SEEN_MIN;
    if (scratch->query == NULL || scratch->rotated == NULL || scratch->lut == NULL || scratch->seen == NULL) {
        sealed_scratch_free(scratch);
        return NULL;
    }
    return scratch;
}

enum omen_err sealed_scratch_reserve(struct index_scratch *scratch, uint32_t pool, uint32_t hits)
{
    if (scratch->pool_cap < pool) {
        mem_free(scratch->pool);
        scratch->pool_cap = 0;
        scratch->pool = mem_alloc_aligned(64, ((size_t)pool + 8) * sizeof(uint64_t));
        if (scratch->pool == NULL) return OMEN_ENOMEM;
        scratch->pool_cap = pool;
    }
    if (scratch->hits_cap < hits) {
        mem_free(scratch->hits);
        scratch->hits_cap = 0;
        scratch->hits = mem_alloc(hits * sizeof(struct index_hit));
        if (scratch->hits == NULL) return OMEN_ENOMEM;
        scratch->hits_cap = hits;
    }
    return OMEN_OK;
}

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

static enum omen_err seen_grow(struct index_scratch *scratch)
{
    uint32_t *old = scratch->seen, old_cap = scratch->seen_cap;
    uint32_t *grown = mem_alloc_aligned(64, (size_t)old_cap * 2 * sizeof(uint32_t));
    if (grown == NULL) return OMEN_ENOMEM;
    scratch->seen = grown;
    scratch->seen_cap = old_cap * 2;
    memset(grown, 0xff, (size_t)old_cap * 2 * sizeof(uint32_t));
    for (uint32_t i = 0; i < old_cap; i++)
        if (old[i] != NODE_NONE) grown[seen_place(scratch, old[i])] = old[i];
    mem_free(old);
    return OMEN_OK;
}

/* ---- the pool ---- */

static inline uint64_t pool_key(float estimate, uint32_t node)
{
    uint32_t bits; /* of a float >= 0: they order as the floats do */
    memcpy(&bits, &estimate, sizeof bits);
    return (uint64_t)bits << 32 | (uint64_t)node << 1;
}
static inline uint32_t pool_node(uint64_t key) { return (uint32_t)key >> 1; }
static inline float pool_estimate(uint64_t key)
{
    uint32_t bits = (uint32_t)(key >> 32);
    float estimate;
    memcpy(&estimate, &bits, sizeof estimate);
    return estimate;
}

static inline void row_prefetch(const struct sealed *s, uint32_t node)
{
    const uint8_t *row = sealed_row(s, node);
    for (uint32_t at = 0; at < s->layout.row_bytes; at += 64) __builtin_prefetch(row + at, 0, 3);
}

/* The next two to be expanded: the first is on its way when its turn comes, the second most often by then
 * already here. */
static inline void prefetch_ahead(const struct sealed *s, const uint64_t *pool, uint32_t cursor,
        uint32_t count)
{
    for (uint32_t found = 0; cursor < count && found < PREFETCH_ROWS; cursor++) {
        if (pool[cursor] & 1) continue;
        row_prefetch(s, pool_node(pool[cursor]));
        found++;
    }
}

/* The nearest leaders by their 1-bit codes, into the pool. */
static void walk_enter(const struct sealed *s, struct index_scratch *scratch,
        const struct code_kernel *kernel, float base, uint32_t *count, uint32_t cap)
{
    uint64_t best[SEALED_ENTRIES + 8];
    uint32_t best_count = 0;
    float estimates[CODE_GROUP], bound = INFINITY;
    for (uint32_t first = 0; first < s->leaders.count; first += CODE_GROUP) {
        uint32_t group = first / CODE_GROUP;
        const uint8_t *codes = s->leaders.groups + (size_t)group * s->leaders.group_bytes;
        const uint16_t *f = (const uint16_t *)(const void *)(codes + rabitq_codes_bytes(s->padded));
        struct code_factors factors = { f, f + CODE_GROUP, s->leaders.scales[group * 2],
            s->leaders.scales[group * 2 + 1] };
        uint32_t mask = kernel->estimate_32(&scratch->code, codes, &factors, base, bound, estimates);
        for (; mask != 0; mask &= mask - 1) {
            uint32_t i = (uint32_t)__builtin_ctz(mask);
            (void)kernel->pool_insert(best, &best_count, SEALED_ENTRIES,
                    pool_key(estimates[i], s->leader_nodes[first + i]));
            if (best_count == SEALED_ENTRIES) bound = pool_estimate(best[SEALED_ENTRIES - 1]);
        }
    }
    for (uint32_t i = 0; i < best_count; i++) {
        (void)kernel->pool_insert(scratch->pool, count, cap, best[i]);
        row_prefetch(s, pool_node(best[i]));
    }
}

void sealed_query_prepare(const struct sealed *s, const float *query, struct index_scratch *scratch)
{
    sealed_internal(s, query, false, scratch->query);
    memcpy(scratch->rotated, scratch->query, s->padded * sizeof(float));
    sealed_rotate(s, scratch->rotated);
    rabitq_prepare(scratch->rotated, s->padded, scratch->lut, &scratch->code);
}

enum omen_err sealed_walk(const struct sealed *s, const struct index_search *search, uint32_t effort,
        uint32_t want, struct index_scratch *scratch, struct index_hit *hits_out, uint32_t *count_out,
        struct index_cost *cost)
{
    const struct code_kernel *kernel = code_kernel_get();
    enum omen_err rc = sealed_scratch_reserve(scratch, effort, 0);
    if (rc != OMEN_OK) return rc;
    sealed_query_prepare(s, search->query, scratch);
    memset(scratch->seen, 0xff, scratch->seen_cap * sizeof(uint32_t));
    scratch->seen_count = 0;
    uint64_t *pool = scratch->pool;
    uint32_t count = 0, cursor = 0, hops = 0;
    struct index_heap found = { hits_out, want, 0 };
    float mean_base = kernel_get()->dot_f32(scratch->rotated, scratch->rotated, s->padded);
    walk_enter(s, scratch, kernel, mean_base, &count, effort);
    while (cursor < count) {
        uint64_t key = pool[cursor];
        if (key & 1) {
            cursor++;
            continue;
        }
        pool[cursor++] = key | 1;
        uint32_t node = pool_node(key), place = seen_place(scratch, node);
        if (scratch->seen[place] == node) continue;
        scratch->seen[place] = node;
        if (++scratch->seen_count * 2 > scratch->seen_cap && seen_grow(scratch) != OMEN_OK)
            return OMEN_ENOMEM;
        uint8_t *row = sealed_row(s, node);
        const struct sealed_head *head = sealed_head(s, row);
        float exact = kernel->l2sq_f32_u8(scratch->query, row + s->layout.own, head->own_lo, head->own_scale,
                s->dim);
        if (search->filter == NULL || index_bit(search->filter, head->slot))
            index_heap_push(&found, (struct index_hit){ exact, node });
        float bound = count == effort ? pool_estimate(pool[count - 1]) : INFINITY, estimates[CODE_GROUP];
        struct code_factors factors = { (const uint16_t *)(void *)(row + s->layout.f),
            (const uint16_t *)(void *)(row + s->layout.g), head->f_scale, head->g_scale };
        uint32_t mask = kernel->estimate_32(&scratch->code, row, &factors, exact, bound, estimates);
        const uint32_t *ids = sealed_ids(s, row);
        for (; mask != 0; mask &= mask - 1) {
            uint32_t i = (uint32_t)__builtin_ctz(mask);
            if (seen_has(scratch, ids[i])) continue;
            uint32_t at = kernel->pool_insert(pool, &count, effort, pool_key(estimates[i], ids[i]));
            if (at < cursor) cursor = at;
        }
        prefetch_ahead(s, pool, cursor, count);
        if (++hops % INDEX_POLL_HOPS == 0 && search->stop != NULL && search->stop(search->stop_arg))
            return OMEN_EDEADLINE;
    }
    index_heap_sort(&found);
    *count_out = found.count;
    cost->hops += hops;
    cost->distances += hops;
    cost->estimates += (uint64_t)hops * SEALED_DEGREE + s->leaders.count;
    cost->effort += effort;
    return OMEN_OK;
}

/* ---- search ---- */

#define EFFORT_DEFAULT 64 /* without calibration */

static enum omen_err sealed_search(const struct index *index, const struct index_search *search,
        struct index_scratch *scratch, struct index_hit *hits_out, uint32_t *count_out,
        struct index_cost *cost)
{
    const struct sealed *s = (const struct sealed *)index;
    *count_out = 0;
    if (s->count == 0) return OMEN_OK;
    uint64_t passing = search->filter == NULL ? s->count
            : search->filter_count != 0       ? search->filter_count
                                              : index_bits_count(search->filter, s->count);
    uint32_t effort = search->effort;
    if (effort == 0)
        effort = sealed_effort(s, search->k,
                search->recall_target > 0 ? search->recall_target : s->recall_target);
    if (effort == 0) effort = EFFORT_DEFAULT;
    enum index_plan plan = sealed_plan(s, search, passing, &effort);
    if (plan == INDEX_PLAN_GATHER) return sealed_gather(s, search, hits_out, count_out, cost);
    if (plan == INDEX_PLAN_SCAN) return sealed_scan(s, search, scratch, hits_out, count_out, cost);
    if (effort < search->k) effort = search->k;
    if (effort > s->count) effort = s->count;
    uint32_t want = sealed_want(s, search->k), found = 0;
    bool exact = s->lossless && s->rows.metric == METRIC_L2;
    enum omen_err rc = sealed_scratch_reserve(scratch, effort, want);
    if (rc == OMEN_OK) rc = sealed_walk(s, search, effort, want, scratch, scratch->hits, &found, cost);
    if (rc != OMEN_OK) return rc;
    if (found < search->k) {
        cost->aborted++;
        return sealed_gather(s, search, hits_out, count_out, cost);
    }
    cost->walks++;
    struct index_heap heap = { hits_out, search->k, 0 };
    for (uint32_t i = 0; i < found; i++) {
        scratch->hits[i].slot = sealed_head(s, sealed_row(s, scratch->hits[i].slot))->slot;
        const char *full = (const char *)(s->rows.data +
                (size_t)scratch->hits[i].slot * s->rows.stride_floats);
        for (uint32_t at = 0; !exact && at < s->rows.dim * sizeof(float); at += 64)
            __builtin_prefetch(full + at, 0, 3);
    }
    for (uint32_t i = 0; i < found; i++) {
        uint32_t slot = scratch->hits[i].slot;
        float d = exact ? scratch->hits[i].distance : sealed_row_distance(s, search->query, slot);
        if (search->has_distance_max && !(d <= search->distance_max)) continue;
        index_heap_push(&heap, (struct index_hit){ d, slot });
    }
    if (!exact) cost->rescored += found;
    index_heap_sort(&heap);
    *count_out = heap.count;
    return OMEN_OK;
}

static void sealed_stats(const struct index *index, bool deep, struct index_stats *stats_out)
{
    const struct sealed *s = (const struct sealed *)index;
    (void)deep;
    stats_out->slot_count = stats_out->live_count = s->count;
    uint64_t flat_groups = (s->flat.count + CODE_GROUP - 1) / CODE_GROUP;
    uint64_t leader_groups = (s->leaders.count + CODE_GROUP - 1) / CODE_GROUP;
    stats_out->memory_bytes = (uint64_t)s->count * s->layout.row_bytes +
            flat_groups * (s->flat.group_bytes + 8) + leader_groups * (s->leaders.group_bytes + 8) +
            s->leaders.count * 4 + sizeof *s + s->padded * 4;
    for (uint32_t node = 0; node < s->count; node++)
        stats_out->links += sealed_head(s, sealed_row(s, node))->degree;
    stats_out->layer_count = 1;
    uint32_t effort = sealed_effort(s, 10, s->recall_target);
    stats_out->effort_default = effort == SEALED_EFFORT_SCAN ? 0 : (float)effort;
    if (!(s->lossless && s->rows.metric == METRIC_L2))
        stats_out->rescore_bytes = (uint64_t)sealed_want(s, 10) * s->rows.dim * sizeof(float);
}

const struct index_ops sealed_ops = {
    .kind = INDEX_SEALED,
    .free = sealed_free,
    .scratch_new = sealed_scratch_new,
    .scratch_free = sealed_scratch_free,
    .search = sealed_search,
    .save = sealed_save,
    .stats = sealed_stats,
};
