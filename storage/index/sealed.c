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
#include "storage/index/compact.h"
#include "storage/index/sealed_filter.h"
#include "storage/kernel/kernel.h"

static void sealed_scratch_free(struct index_scratch *scratch)
{
    mem_free(scratch->query);
    mem_free(scratch->rotated);
    mem_free(scratch->lut);
    mem_free(scratch->pool);
    mem_free(scratch->seen);
    mem_free(scratch->visited);
    mem_free(scratch->hits);
    mem_free(scratch->near);
    compact_scratch_free(scratch->compact);
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
    scratch->seen = mem_alloc_aligned(64, SEALED_SEEN_MIN * sizeof(uint32_t));
    scratch->seen_cap = SEALED_SEEN_MIN;
    if (s->compact != NULL) scratch->compact = compact_scratch_new(s->compact);
    if (scratch->query == NULL || scratch->rotated == NULL || scratch->lut == NULL || scratch->seen == NULL ||
            (s->compact != NULL && scratch->compact == NULL)) {
        sealed_scratch_free(scratch);
        return NULL;
    }
    return scratch;
}

enum omen_err sealed_visited_reserve(struct index_scratch *scratch, uint32_t count)
{
    if (scratch->visited_cap >= count) return OMEN_OK;
    mem_free(scratch->visited);
    scratch->visited_cap = 0;
    scratch->visited = mem_alloc(count * sizeof *scratch->visited);
    if (scratch->visited == NULL) return OMEN_ENOMEM;
    scratch->visited_cap = count;
    return OMEN_OK;
}

enum omen_err sealed_scratch_reserve(struct index_scratch *scratch, uint32_t pool, uint32_t hits)
{
    if (scratch->pool_cap < pool) {
        mem_free(scratch->pool);
        scratch->pool_cap = 0;
        scratch->pool = mem_alloc_aligned(64, 2 * ((size_t)pool + 8) * sizeof(uint64_t));
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

void sealed_query_prepare(const struct sealed *s, const float *query, struct index_scratch *scratch)
{
    sealed_internal(s, query, false, scratch->query);
    scratch->stretch = 1;
    if (s->rows.metric ==
            METRIC_IP) { /* as long as the longest row: answers do not depend on a query's length, and
                                          neither may the walk and what calibration says of it */
        float squared = kernel_get()->dot_f32(query, query, s->rows.dim);
        if (squared > 0 && s->norm_max > 0) scratch->stretch = sqrtf(s->norm_max / squared);
        if (!isfinite(scratch->stretch)) scratch->stretch = 1;
        for (uint32_t i = 0; i < s->padded; i++) scratch->query[i] *= scratch->stretch;
    }
    memcpy(scratch->rotated, scratch->query, s->padded * sizeof(float));
    sealed_rotate(s, scratch->rotated);
    rabitq_prepare(scratch->rotated, s->padded, scratch->lut, &scratch->code);
}

#define EFFORT_DEFAULT 64 /* without calibration */
#define GATHER_ROWS 2000  /* fewer rows than this are scored one by one */

/* ---- rescoring ---- */

#define RESCORE_BEYOND 2 /* k: rows that are rescored whatever they say, at least INDEX_ERROR_ROWS of them */

static void full_prefetch(const struct sealed *s, const struct index_hit *hits, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        const char *full = (const char *)(s->rows.data + (size_t)hits[i].slot * s->rows.stride_floats);
        for (uint32_t at = 0; at < s->rows.dim * sizeof(float); at += 64) __builtin_prefetch(full + at, 0, 3);
    }
}

struct rescoring {
    const struct sealed *s;
    const struct index_search *search;
    struct index_heap heap;
    float scale; /* of a final distance, to be a squared one of the walk's space but for a constant */
    struct index_error error;
};

static void rescore(struct rescoring *r, struct index_hit hit)
{
    float d = sealed_row_distance(r->s, r->search->query, hit.slot);
    index_error_add(&r->error, (double)r->scale * d - hit.distance);
    if (r->search->has_distance_max && !(d <= r->search->distance_max)) return;
    index_heap_push(&r->heap, (struct index_hit){ d, hit.slot });
}

/* Rows whose distances by the walk are beyond this are not among the k nearest, as far as the errors of the rows
 * so far tell. */
static float rescore_limit(const struct rescoring *r)
{
    float bound = index_heap_bound(&r->heap);
    if (r->search->has_distance_max) bound = fminf(bound, r->search->distance_max);
    return index_error_limit(&r->error, (double)r->scale * bound);
}

/* In two steps, so that the rows of each are on their way together. */
static void rescore_all(struct rescoring *r, struct index_hit *visited, uint32_t count)
{
    uint32_t first = r->search->k + RESCORE_BEYOND;
    if (first < INDEX_ERROR_ROWS) first = INDEX_ERROR_ROWS;
    if (first > count) first = count;
    full_prefetch(r->s, visited, first);
    for (uint32_t i = 0; i < first; i++) rescore(r, visited[i]);
    float limit = first < count ? rescore_limit(r) : 0;
    uint32_t end = first;
    while (end < count && visited[end].distance <= limit) end++;
    full_prefetch(r->s, visited + first, end - first);
    for (uint32_t i = first; i < end && visited[i].distance <= limit; i++) {
        rescore(r, visited[i]);
        limit = fminf(limit, rescore_limit(r));
    }
}

void sealed_finish(const struct sealed *s, const struct index_search *search, float stretch,
        struct index_hit *visited, uint32_t count, struct index_hit *hits_out, uint32_t *count_out,
        struct index_cost *cost)
{
    struct rescoring r = { s, search, { hits_out, search->k, 0 },
        s->rows.metric == METRIC_L2 ? 1 : 2 * stretch, { 0, 0, 0 } };
    for (uint32_t i = 0; i < count; i++) visited[i].slot = sealed_slot(s, visited[i].slot);
    if (s->lossless && s->rows.metric == METRIC_L2) { /* the walk's distances are final */
        for (uint32_t i = 0; i < count && r.heap.count < search->k; i++)
            if (!search->has_distance_max || visited[i].distance <= search->distance_max)
                hits_out[r.heap.count++] = visited[i];
    } else {
        rescore_all(&r, visited, count);
        index_heap_sort(&r.heap);
    }
    cost->rescored += r.error.count;
    cost->walks++;
    *count_out = r.heap.count;
}

/* ---- search ---- */

static enum omen_err sealed_search(const struct index *index, const struct index_search *search,
        struct index_scratch *scratch, struct index_hit *hits_out, uint32_t *count_out,
        struct index_cost *cost)
{
    const struct sealed *s = (const struct sealed *)index;
    *count_out = 0;
    if (s->count == 0) return OMEN_OK;
    float target = search->recall_target > 0 ? search->recall_target : s->recall_target;
    if (search->filter != NULL || search->run_end != 0 || search->plan != INDEX_PLAN_AUTO) {
        uint32_t effort = search->effort != 0 ? search->effort : sealed_effort(s, search->k, target);
        return sealed_filtered(s, search, effort != 0 ? effort : EFFORT_DEFAULT, scratch, hits_out, count_out,
                cost);
    }
    struct sealed_pace pace = { search->effort, INFINITY, 0 };
    bool reached = pace.effort != 0 || sealed_pace_choose(s, search->k, target, &pace);
    if (!reached || s->count <= GATHER_ROWS || search->k >= s->count / 4)
        return sealed_gather(s, search, hits_out, count_out, cost);
    if (pace.effort == 0) pace.effort = EFFORT_DEFAULT;
    if (pace.effort < search->k) pace.effort = search->k;
    if (pace.effort > s->count) pace.effort = s->count;
    uint32_t want = sealed_want(s, search->k, pace.effort), found = 0;
    bool ruled = pace.slack != INFINITY;
    enum omen_err rc = sealed_scratch_reserve(scratch, pace.effort, want);
    if (rc == OMEN_OK) rc = sealed_walk(s, search, pace, want, scratch, scratch->hits, &found, cost);
    if (rc == OMEN_OK && found < search->k &&
            ruled) { /* many copies in the pool: the same nodes again and again */
        pace.slack = INFINITY;
        rc = sealed_walk(s, search, pace, want, scratch, scratch->hits, &found, cost);
    }
    if (rc != OMEN_OK) return rc;
    if (found < search->k) {
        cost->aborted++;
        return sealed_gather(s, search, hits_out, count_out, cost);
    }
    sealed_finish(s, search, scratch->stretch, scratch->hits, found, hits_out, count_out, cost);
    return OMEN_OK;
}

/* Of the fast layout the node's own vector: neighbours are met by shorter codes first. */
static void sealed_stats_codes(const struct sealed *s, struct index_stats *stats)
{
    static const enum index_quant quants[QUANT_KIND_COUNT] = { [QUANT_NONE] = INDEX_QUANT_NONE,
        [QUANT_SCALAR] = INDEX_QUANT_SCALAR,
        [QUANT_PRODUCT] = INDEX_QUANT_PRODUCT,
        [QUANT_BINARY] = INDEX_QUANT_BINARY };
    const struct quant *codes = s->compact != NULL ? s->compact->quant : NULL;
    stats->quant = codes != NULL ? quants[quant_kind(codes)] : INDEX_QUANT_SCALAR;
    stats->bits = codes != NULL ? quant_bits(codes) : 8;
}

static void sealed_stats(const struct index *index, bool deep, struct index_stats *stats_out)
{
    const struct sealed *s = (const struct sealed *)index;
    (void)deep;
    stats_out->slot_count = stats_out->live_count = s->count;
    uint64_t flat_groups = (s->flat.count + CODE_GROUP - 1) / CODE_GROUP;
    uint64_t leader_groups = s->leaders.codes.count / CODE_GROUP;
    leader_groups += (s->leaders.middles.count + CODE_GROUP - 1) / CODE_GROUP;
    stats_out->memory_bytes = (uint64_t)s->count * s->layout.row_bytes +
            flat_groups * (s->flat.group_bytes + 8) + leader_groups * (s->flat.group_bytes + 8) +
            s->leaders.codes.count * 4 + sizeof *s + s->padded * 4 + pca_memory_bytes(&s->pca);
    if (s->compact != NULL) stats_out->memory_bytes += compact_memory_bytes(s);
    for (uint32_t node = 0; node < s->count; node++) stats_out->links += sealed_degree(s, node);
    stats_out->layer_count = 1;
    uint32_t effort = sealed_effort(s, 10, s->recall_target);
    stats_out->effort_default = effort == SEALED_EFFORT_SCAN ? 0 : (float)effort;
    stats_out->layout = s->compact != NULL ? INDEX_LAYOUT_COMPACT : INDEX_LAYOUT_FAST;
    sealed_stats_codes(s, stats_out);
    if (!(s->lossless && s->rows.metric == METRIC_L2))
        stats_out->rescore_bytes = (uint64_t)sealed_want(s, 10, effort == SEALED_EFFORT_SCAN ? 0 : effort) *
                s->rows.dim * sizeof(float);
}

const struct index_ops sealed_ops = {
    .kind = INDEX_SEALED,
    .takes_runs = true,
    .free = sealed_free,
    .scratch_new = sealed_scratch_new,
    .scratch_free = sealed_scratch_free,
    .search = sealed_search,
    .save = sealed_save,
    .stats = sealed_stats,
};
