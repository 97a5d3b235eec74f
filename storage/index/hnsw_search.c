/* A search: walk on codes, final distances from the f32 rows, exact scan where that is cheaper or the walk
 * fell short.
 *
 * Filters: the walk keeps failing neighbours as bridges. It gets as many distances as the exact scan of the
 * matches would cost; when these are used up the scan answers, so a filter costs at most about twice the
 * better plan whatever its correlation with the vectors.
 * Threads: any, each with its scratch, no lock. Determinism: distances and their order, not which neighbours
 * are found. */
#include "storage/index/hnsw_impl.h"

#include <math.h>

#include "storage/index/index_impl.h"

#define POOL_PER_EF_FILTERED 64
#define SCAN_POLL_ROWS (INDEX_POLL_HOPS * 16)
#define RESCORE_SPARE 16 /* rows rescored at most beyond 3/2 k */
#define RESCORE_BEYOND 2 /* and at least beyond k */
#define ROWS_AHEAD 3     /* asked for behind these */

/* ---- one search --------------------------------------------------------------------------------------- */

struct request {
    struct hnsw *h;
    const struct index_search *search;
    struct index_scratch *scratch;
    struct index_heap heap;         /* over the caller's hits_out */
    const struct hnsw_codes *codes; /* of the walk */
    double key_scale,
            distance_scale; /* of the pool's keys and of final distances, to be alike but for a constant */
    struct index_cost cost;
};

/* Its final distance. */
static float score(struct request *r, uint32_t node)
{
    const struct hnsw *h = r->h;
    const float *v = hnsw_vector(h, node);
    float d = h->index.metric == METRIC_L2 ? h->kernel->l2sq_f32(r->search->query, v, h->index.dim)
                                           : -h->kernel->dot_f32(r->search->query, v, h->index.dim);
    if (!(d == d)) d = INFINITY; /* a dot product that overflowed both ways */
    index_heap_push(&r->heap, (struct index_hit){ d, h->slots[node] });
    return d;
}

static bool passes(const struct index_search *search, uint32_t slot)
{
    return search->filter == NULL || index_bit(search->filter, slot);
}

static bool stopped(const struct index_search *search)
{
    return search->stop != NULL && search->stop(search->stop_arg);
}

/* Every live node that passes. */
static enum omen_err scan_all(struct request *r)
{
    uint32_t nodes = atomic_load_explicit(&r->h->node_count, memory_order_acquire);
    r->heap.count = 0;
    for (uint32_t node = 0; node < nodes; node++) {
        if (node % SCAN_POLL_ROWS == 0 && stopped(r->search)) return OMEN_EDEADLINE;
        if (hnsw_state(r->h, node) != HNSW_LIVE || !passes(r->search, r->h->slots[node])) continue;
        (void)score(r, node);
        r->cost.distances++;
    }
    return OMEN_OK;
}

/* The matches of a filter, found by its bits: for few of them. Rows are asked for one word of bits ahead. */
static enum omen_err scan_matches(struct request *r)
{
    uint32_t end = atomic_load_explicit(&r->h->slot_end, memory_order_acquire), polled = 0;
    r->heap.count = 0;
    for (uint32_t from = 0; from < end; from += 64) {
        uint64_t bits = r->search->filter[from / 64];
        if (end - from < 64) bits &= (1ull << (end - from)) - 1;
        uint32_t batch[64], count = 0;
        for (; bits != 0; bits &= bits - 1) {
            uint32_t node = atomic_load(&r->h->nodes[from + (uint32_t)__builtin_ctzll(bits)]) - 1;
            if (node == HNSW_NONE) continue;
            batch[count++] = node;
            __builtin_prefetch(hnsw_vector(r->h, node));
        }
        for (uint32_t i = 0; i < count; i++)
            if (hnsw_state(r->h, batch[i]) == HNSW_LIVE) (void)score(r, batch[i]);
        r->cost.distances += count;
        polled += count + 1;
        if (polled < SCAN_POLL_ROWS) continue;
        polled = 0;
        if (stopped(r->search)) return OMEN_EDEADLINE;
    }
    return OMEN_OK;
}

static void row_prefetch(const struct hnsw *h, uint32_t node)
{
    const char *row = (const char *)hnsw_vector(h, node);
    size_t bytes = h->index.dim * sizeof(float);
    for (size_t at = 0; at < bytes && at < 512; at += 64) __builtin_prefetch(row + at);
}

/* Final distances of the best of the pool: of k and a few, then as far as the error of the codes seen in these lets
 * rows in. */
static void rescore(struct request *r)
{
    const struct index_scratch *s = r->scratch;
    uint32_t first = r->heap.k + RESCORE_BEYOND, asked = 0, found = 0;
    uint32_t want = r->heap.k + r->heap.k / 2 + RESCORE_SPARE;
    struct index_error error = { 0 };
    if (first < INDEX_ERROR_ROWS) first = INDEX_ERROR_ROWS;
    for (uint32_t i = 0; i < s->pool_count && found < want; i++) {
        for (; asked < s->pool_count && (asked < first || asked <= i + ROWS_AHEAD); asked++)
            row_prefetch(r->h, hnsw_pool_node(s->pool[asked]));
        uint32_t node = hnsw_pool_node(s->pool[i]);
        if (!(s->pool[i] & HNSW_POOL_COUNTED) || hnsw_state(r->h, node) != HNSW_LIVE) continue;
        double walked = (double)hnsw_key_value(r->codes, hnsw_pool_key(s->pool[i])) * r->key_scale;
        if (found >= first && r->codes->lift == NULL) { /* lifted points have coarse codes */
            double bound = (double)index_heap_bound(&r->heap) * r->distance_scale;
            if (walked > (double)index_error_limit(&error, bound)) break;
        }
        index_error_add(&error, (double)score(r, node) * r->distance_scale - walked);
        found++;
    }
    r->cost.rescored += found;
    r->cost.distances += found;
}

static enum omen_err walk(struct request *r, uint32_t ef, uint64_t distances_max, bool *done_out)
{
    struct hnsw *h = r->h;
    struct index_scratch *s = r->scratch;
    struct hnsw_codes *codes = atomic_load_explicit(&h->codes, memory_order_acquire);
    uint64_t entry = atomic_load(&h->entry);
    *done_out = false;
    if ((uint32_t)entry == HNSW_NONE) return OMEN_OK;
    uint64_t bridges = atomic_load_explicit(&h->dead_count, memory_order_relaxed);
    if (r->search->filter != NULL) bridges += (uint64_t)ef * POOL_PER_EF_FILTERED;
    uint64_t pool = ef + bridges < HNSW_POOL_MAX ? ef + bridges : HNSW_POOL_MAX;
    if (!hnsw_scratch_begin(s, codes, (uint32_t)pool)) return OMEN_ENOMEM;
    struct hnsw_probe probe;
    hnsw_probe_query(h, codes, r->search->query, s->code, &probe);
    r->codes = codes;
    r->key_scale = codes->quantized ? (double)codes->step * codes->step : 1;
    r->distance_scale = h->index.metric == METRIC_L2 ? 1 : 2 * (double)probe.scale;
    struct hnsw_walk w = { .h = h,
        .codes = codes,
        .probe = &probe,
        .scratch = s,
        .ahead = true,
        .filter = r->search->filter,
        .stop = r->search->stop,
        .stop_arg = r->search->stop_arg,
        .distances_max = distances_max };
    uint32_t seeds[HNSW_SEEDS], seed_count = hnsw_seeds(&w, entry, 0, seeds);
    enum hnsw_walk_end end = hnsw_beam(&w, seeds, seed_count, 0, ef);
    r->cost.hops += w.hops;
    r->cost.distances += w.distances;
    if (end == HNSW_WALK_STOPPED) return OMEN_EDEADLINE;
    if (end == HNSW_WALK_BUDGET) return OMEN_OK;
    rescore(r);
    *done_out = true;
    return OMEN_OK;
}

static uint64_t matches(const struct request *r)
{
    const struct index_search *search = r->search;
    if (search->filter_count != 0) return search->filter_count;
    uint32_t end = atomic_load_explicit(&r->h->slot_end, memory_order_acquire);
    uint64_t count = 0;
    for (uint32_t from = 0; from < end; from += 64) {
        uint64_t bits = search->filter[from / 64];
        if (end - from < 64) bits &= (1ull << (end - from)) - 1;
        count += (uint64_t)__builtin_popcountll(bits);
    }
    return count;
}

static enum omen_err answer(struct request *r, uint32_t ef)
{
    uint64_t live = atomic_load_explicit(&r->h->live_count, memory_order_relaxed);
    uint64_t match = r->search->filter == NULL ? live : matches(r);
    uint64_t budget = UINT64_MAX;
    bool done = false;
    if (live == 0 || match == 0) return OMEN_OK;
    enum index_plan plan = r->search->plan;
    if (plan == INDEX_PLAN_GATHER) {
        r->cost.gathers++;
        return r->search->filter == NULL ? scan_all(r) : scan_matches(r);
    }
    if (r->search->filter != NULL && plan != INDEX_PLAN_WALK) {
        /* The walk needs some ef * M * live / match distances, the scan `match` of them. */
        if (match * match <= (uint64_t)ef * r->h->M * live) {
            r->cost.gathers++;
            return scan_matches(r);
        }
        budget = match;
    }
    enum omen_err rc = walk(r, ef, budget, &done);
    if (rc != OMEN_OK) return rc;
    uint64_t wanted = match < r->heap.k ? match : r->heap.k;
    if (done && r->heap.count >= wanted) {
        r->cost.walks++;
        return OMEN_OK;
    }
    r->cost.gathers++;
    r->cost.aborted++;
    return r->search->filter == NULL ? scan_all(r) : scan_matches(r);
}

enum omen_err hnsw_search_ks(struct hnsw *h, const struct index_search *search, const uint32_t *ks,
        uint32_t k_count, struct index_scratch *scratch, struct index_hit *hits_out, uint32_t stride,
        uint32_t *counts_out)
{
    struct index_search each = *search;
    struct request r = { .h = h, .search = &each, .scratch = scratch };
    enum omen_err rc = OMEN_OK;
    hnsw_pin(h, scratch->pin);
    for (uint32_t i = 0; rc == OMEN_OK && i < k_count; i++) {
        each.k = ks[k_count - 1 - i];
        r.heap = (struct index_heap){ hits_out + (size_t)(k_count - 1 - i) * stride, each.k, 0 };
        if (i == 0) rc = answer(&r, each.effort);
        bool walked = r.cost.walks > 0; /* the pool is as a walk for any of them leaves it */
        if (i > 0 && walked) rescore(&r);
        if (i > 0 && !walked) rc = answer(&r, each.effort);
        index_heap_sort(&r.heap);
        counts_out[k_count - 1 - i] = r.heap.count;
    }
    hnsw_unpin(scratch->pin);
    return rc;
}

enum omen_err hnsw_search(const struct index *index, const struct index_search *search,
        struct index_scratch *scratch, struct index_hit *hits_out, uint32_t *count_out,
        struct index_cost *cost)
{
    struct hnsw *h = hnsw_of(index);
    if (search->k == 0 || search->k > OMEN_K_MAX || search->effort > INDEX_EFFORT_MAX) return OMEN_EINVAL;
    uint32_t ef = search->effort;
    if (ef == 0) ef = hnsw_effort_for(h, search->k, search->recall_target);
    if (ef < search->k) ef = search->k;
    struct request r = { .h = h, .search = search, .scratch = scratch, .heap = { hits_out, search->k, 0 } };
    hnsw_pin(h, scratch->pin);
    enum omen_err rc = answer(&r, ef);
    hnsw_unpin(scratch->pin);
    if (cost != NULL) {
        cost->distances += r.cost.distances;
        cost->hops += r.cost.hops;
        cost->rescored += r.cost.rescored;
        cost->effort += ef;
        cost->walks += r.cost.walks;
        cost->gathers += r.cost.gathers;
        cost->aborted += r.cost.aborted;
    }
    if (rc != OMEN_OK) return rc;
    index_heap_sort(&r.heap);
    uint32_t count = r.heap.count;
    while (search->has_distance_max && count > 0 && hits_out[count - 1].distance > search->distance_max)
        count--;
    *count_out = count;
    return OMEN_OK;
}
