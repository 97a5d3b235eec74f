/* Filtered search of the sealed graph, for any bitmap: three plans and the choice between them.
 *
 *   gather  every row that passes, in full: exact.
 *   scan    the flat 1-bit codes of all slots under the bitmap. A row is read in full when its estimate less some
 *           standard errors is nearer than the k-th found so far; the number of standard errors follows from the
 *           recall target, the number of rows from the data. A run of slots is looked at twice: its nearest estimates
 *           are read first and bound the rest, a third of the rows in full (1,000 to 20,000 rows: 50 to 130).
 *   walk    best first over the graph; rows that fail are bridges by their estimates in the rows of their
 *           neighbours. It ends when no candidate is nearer than the `effort` nearest nodes that pass: so the local share
 *           of passing rows decides how far it goes, as in NaviX (Sehgal & Salihoglu, VLDB 2025), and a filter
 *           that holds around the query costs no more than none.
 *
 * The exact plans' costs follow from the number of passing rows. The walk's are not known beforehand, it may be
 * anything between a search without filter and the whole graph. So it starts, and while it goes on what is left
 * of it is estimated from the share that passed so far; it is given up for the better exact plan when that is
 * cheaper than the rest, and at the latest when it has cost as much. That bounds the cost by twice the
 * better plan, and a failed start costs little beside an exact plan or is not made.
 * Threads: no state. Determinism: a function of the graph and the search. */
#include "storage/index/sealed_filter.h"

#include <math.h>

#include "common/mem.h"
#include "storage/index/compact.h"
#include "storage/index/sealed_walk.h"
#include "storage/kernel/kernel.h"

#define POLL_ROWS 1024  /* gathered between two polls of `stop` */
#define POLL_GROUPS 512 /* scanned between two polls */
#define GATHER_AHEAD 8  /* rows asked for before they are scored */
#define POOL_FIRST 1024 /* candidates of a walk before its heap grows */
#define SCAN_AHEAD 4    /* groups asked for before their turn: 15.2 GB/s of codes without, 18.0 with */
#define SCAN_PENDING 32 /* candidates of a scan that are rescored together */
#define SCAN_ROWS 300   /* rows that a scan reads in full, as far as that is known beforehand, */
#define SCAN_ROWS_PER_K 30
#define RUN_ROWS_MAX 65536 /* of a run that is scanned in two looks; one estimate each is kept */
#define RUN_FIRST 6        /* of its nearest estimates, besides k, read in full after the first look */
#define RUN_ROWS 40        /* as SCAN_ROWS, of such a run */
#define RUN_ROWS_PER_K 6
#define SEALED_EFFORT_LAST 2048 /* of a forced walk when no effort reaches the target */

/* Nanoseconds on one core of the machine of README.md, by padded dimension. Only proportions matter. */
struct filter_costs {
    double hop, enter, gather_row, scan_group;
};

static struct filter_costs costs_of(const struct sealed *s)
{
    double d = s->padded;
    return (struct filter_costs){ .hop = 200 + 2.0 * d,
        .enter = 1500 + 10 * d,
        .gather_row = 12 + 0.3 * d,
        .scan_group = 10 + 0.3 * d };
}

/* Standard errors of the 1-bit estimate that a row in scan is given: a row as near as the k-th is missed with at
 * most the chance that is left above the target. */
static float scan_sigmas(float recall_target)
{
    static const struct {
        float recall, sigmas;
    } table[] = { { 0.8f, 0.2f }, { 0.9f, 0.6f }, { 0.95f, 0.9f }, { 0.99f, 1.5f }, { 0.999f, 2.3f } };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        if (recall_target <= table[i].recall) return table[i].sigmas;
    return 5;
}

/* ---- gather ---- */

float sealed_row_distance(const struct sealed *s, const float *query, uint32_t slot)
{
    const float *row = s->rows.data + (size_t)slot * s->rows.stride_floats;
    float d = s->rows.metric == METRIC_L2 ? kernel_get()->l2sq_f32(query, row, s->rows.dim)
                                          : -kernel_get()->dot_f32(query, row, s->rows.dim);
    return isnan(d) ? INFINITY : d;
}

static inline void full_prefetch(const struct sealed *s, uint32_t slot)
{
    const char *row = (const char *)(s->rows.data + (size_t)slot * s->rows.stride_floats);
    size_t bytes = s->rows.dim * sizeof(float);
    for (size_t at = 0; at < bytes && at < 1024; at += 64) __builtin_prefetch(row + at, 0, 3);
}

static void offer(const struct index_search *search, struct index_heap *heap, float distance, uint32_t slot)
{
    if (search->has_distance_max && !(distance <= search->distance_max)) return;
    index_heap_push(heap, (struct index_hit){ distance, slot });
}

static bool stopped(const struct index_search *search)
{
    return search->stop != NULL && search->stop(search->stop_arg);
}

/* Of slots [first, first + 64): `first` is a multiple of 64 below sealed_end. */
static uint64_t filter_word(const struct sealed *s, const struct index_search *search, uint32_t first)
{
    uint32_t end = sealed_end(s, search), n = end - first < 64 ? end - first : 64;
    uint64_t word = n == 64 ? UINT64_MAX : (UINT64_C(1) << n) - 1;
    if (first < sealed_first(search)) word &= UINT64_MAX << (sealed_first(search) - first);
    return search->filter == NULL ? word : word & search->filter[first / 64];
}

enum omen_err sealed_gather(const struct sealed *s, const struct index_search *search,
        struct index_hit *hits_out, uint32_t *count_out, struct index_cost *cost)
{
    struct index_heap heap = { hits_out, search->k, 0 };
    uint32_t ahead[GATHER_AHEAD], taken = 0, polled = 0; /* a ring of slots whose rows are on their way */
    for (uint32_t first = sealed_first(search) & ~63u; first < sealed_end(s, search); first += 64) {
        uint64_t word = filter_word(s, search, first);
        for (; word != 0; word &= word - 1) {
            uint32_t *place = &ahead[taken % GATHER_AHEAD];
            if (taken >= GATHER_AHEAD)
                offer(search, &heap, sealed_row_distance(s, search->query, *place), *place);
            *place = first + (uint32_t)__builtin_ctzll(word);
            full_prefetch(s, *place);
            taken++;
        }
        if (taken - polled < POLL_ROWS && first % (POLL_ROWS * 64) != 0) continue;
        polled = taken;
        if (stopped(search)) return OMEN_EDEADLINE;
    }
    for (uint32_t i = taken < GATHER_AHEAD ? 0 : taken - GATHER_AHEAD; i < taken; i++)
        offer(search, &heap, sealed_row_distance(s, search->query, ahead[i % GATHER_AHEAD]),
                ahead[i % GATHER_AHEAD]);
    cost->rescored += taken;
    cost->gathers++;
    index_heap_sort(&heap);
    *count_out = heap.count;
    return OMEN_OK;
}

/* ---- scan ---- */

struct scan {
    const struct sealed *s;
    const struct index_search *search;
    struct index_heap heap; /* final distances */
    float base;             /* |q - mean|^2 */
    float query_sq;         /* |q|^2, of the stretched query */
    float stretch;
    float near;  /* an estimate below this, error allowed for, may enter the heap */
    float error; /* allowed for, by the largest |g| of a group */
    uint32_t pending[SCAN_PENDING];
    uint32_t pending_count, rescored;
};

/* The heap's bound as a squared distance of the space that estimates are of. */
static float scan_near(const struct scan *c)
{
    float d = index_heap_bound(&c->heap);
    if (c->search->has_distance_max) d = fminf(d, c->search->distance_max);
    if (c->s->rows.metric == METRIC_L2) return d;
    return c->query_sq + (c->s->rows.metric == METRIC_IP ? c->s->norm_max : 1) + 2 * c->stretch * d;
}

static void scan_rescore(struct scan *c)
{
    for (uint32_t i = 0; i < c->pending_count; i++) {
        uint32_t slot = c->pending[i];
        offer(c->search, &c->heap, sealed_row_distance(c->s, c->search->query, slot), slot);
    }
    c->rescored += c->pending_count;
    c->pending_count = 0;
    c->near = scan_near(c);
}

static void scan_group(struct scan *c, const struct code_kernel *kernel, const struct code_query *query,
        uint32_t group, uint32_t pass)
{
    const struct sealed *s = c->s;
    const uint8_t *codes = s->flat.groups + (size_t)group * s->flat.group_bytes;
    const uint16_t *f = (const uint16_t *)(const void *)(codes + rabitq_codes_bytes(s->padded));
    float g_scale = s->flat.scales[group * 2 + 1], estimates[CODE_GROUP];
    struct code_factors factors = { f, f + CODE_GROUP, s->flat.scales[group * 2], g_scale };
    for (uint32_t at = 0; at < s->flat.group_bytes; at += 64) /* past the end is harmless */
        __builtin_prefetch(codes + (size_t)SCAN_AHEAD * s->flat.group_bytes + at, 0, 3);
    uint32_t mask = pass &
            kernel->estimate_32(query, codes, &factors, c->base, c->near + c->error * g_scale, estimates);
    for (; mask != 0; mask &= mask - 1) {
        uint32_t slot = group * CODE_GROUP + (uint32_t)__builtin_ctz(mask);
        full_prefetch(s, slot);
        c->pending[c->pending_count++] = slot;
        if (c->pending_count == SCAN_PENDING) scan_rescore(c);
    }
}

static bool run_is_short(const struct sealed *s, const struct index_search *search)
{
    return search->run_end != 0 && sealed_end(s, search) - sealed_first(search) <= RUN_ROWS_MAX;
}

/* A run's codes, looked at twice. */
struct run {
    struct scan *c;
    uint32_t begin, groups;  /* of its first group the first slot */
    float *estimates;        /* [groups][CODE_GROUP] */
    uint32_t *near;          /* [groups] bits: may be looked at again */
    struct index_heap first; /* the nearest by their estimates */
};

static float run_error(const struct run *run, uint32_t g)
{
    const struct sealed *s = run->c->s;
    return run->c->error * s->flat.scales[(run->begin / CODE_GROUP + g) * 2 + 1];
}

/* The group's estimates. Those less than two errors beyond the farthest of `first` are near. */
static void run_look(struct run *run, const struct code_kernel *kernel, const struct code_query *query,
        uint32_t g)
{
    const struct sealed *s = run->c->s;
    uint32_t group = run->begin / CODE_GROUP + g;
    const uint8_t *codes = s->flat.groups + (size_t)group * s->flat.group_bytes;
    const uint16_t *f = (const uint16_t *)(const void *)(codes + rabitq_codes_bytes(s->padded));
    struct code_factors factors = { f, f + CODE_GROUP, s->flat.scales[group * 2],
        s->flat.scales[group * 2 + 1] };
    float *estimates = run->estimates + (size_t)g * CODE_GROUP;
    uint64_t pass = filter_word(s, run->c->search, group * CODE_GROUP & ~63u) >> (group * CODE_GROUP % 64);
    uint32_t mask = (uint32_t)pass &
            kernel->estimate_32(query, codes, &factors, run->c->base,
                    index_heap_bound(&run->first) + 2 * run_error(run, g), estimates);
    run->near[g] = mask;
    for (; mask != 0; mask &= mask - 1) {
        uint32_t i = (uint32_t)__builtin_ctz(mask);
        if (estimates[i] < index_heap_bound(&run->first))
            index_heap_push(&run->first, (struct index_hit){ estimates[i], group * CODE_GROUP + i });
    }
}

/* What the bound lets in, but for what was read. Near is enough unless the bound lies an error beyond the farthest of
 * `first`: what was not near then had an estimate that is two errors beyond at least. */
static void run_look_again(struct run *run, float farthest, uint32_t g)
{
    struct scan *c = run->c;
    float error = run_error(run, g);
    const float *estimates = run->estimates + (size_t)g * CODE_GROUP;
    uint32_t slot = run->begin + g * CODE_GROUP, mask = run->near[g];
    if (!(c->near <= farthest + error))
        mask = (uint32_t)(filter_word(c->s, c->search, slot & ~63u) >> (slot % 64));
    for (; mask != 0; mask &= mask - 1) {
        uint32_t i = (uint32_t)__builtin_ctz(mask);
        if (!(estimates[i] < c->near + error)) continue;
        full_prefetch(c->s, slot + i);
        c->pending[c->pending_count++] = slot + i;
        if (c->pending_count == SCAN_PENDING) scan_rescore(c);
    }
}

/* The nearest by their estimates are read first, so that of the others only those are read that the bound lets in which
 * these give, and not the many that it lets in while it is wide. */
static enum omen_err run_scan(struct scan *c, struct index_scratch *scratch, struct index_cost *cost)
{
    const struct code_kernel *kernel = code_kernel_get();
    struct run run = { .c = c, .begin = sealed_first(c->search) & ~(CODE_GROUP - 1) };
    run.groups = (sealed_end(c->s, c->search) - run.begin + CODE_GROUP - 1) / CODE_GROUP;
    uint32_t want = c->search->k + RUN_FIRST;
    enum omen_err rc = sealed_scratch_reserve(scratch, run.groups * (CODE_GROUP + 1) / 4 + 1, want);
    if (rc != OMEN_OK) return rc;
    run.estimates = (float *)(void *)scratch->pool;
    run.near = (uint32_t *)(void *)(run.estimates + (size_t)run.groups * CODE_GROUP);
    run.first = (struct index_heap){ scratch->hits, want, 0 };
    for (uint32_t g = 0; g < run.groups; g++) {
        run_look(&run, kernel, &scratch->code, g);
        if (g % POLL_GROUPS == 0 && stopped(c->search)) return OMEN_EDEADLINE;
    }
    cost->estimates += (uint64_t)run.groups * CODE_GROUP;
    float farthest = index_heap_bound(&run.first);
    for (uint32_t i = 0; i < run.first.count; i++) {
        full_prefetch(c->s, run.first.hits[i].slot);
        run.estimates[run.first.hits[i].slot - run.begin] = INFINITY;
    }
    for (uint32_t i = 0; i < run.first.count; i++) {
        uint32_t slot = run.first.hits[i].slot;
        offer(c->search, &c->heap, sealed_row_distance(c->s, c->search->query, slot), slot);
    }
    c->rescored = run.first.count;
    c->near = scan_near(c);
    for (uint32_t g = 0; g < run.groups; g++) run_look_again(&run, farthest, g);
    return OMEN_OK;
}

static enum omen_err bits_scan(struct scan *c, struct index_scratch *scratch, struct index_cost *cost)
{
    const struct code_kernel *kernel = code_kernel_get();
    const struct sealed *s = c->s;
    const struct index_search *search = c->search;
    for (uint32_t first = sealed_first(search) & ~63u; first < sealed_end(s, search); first += 64) {
        uint64_t word = filter_word(s, search, first);
        uint32_t group = first / CODE_GROUP;
        if ((uint32_t)word != 0) scan_group(c, kernel, &scratch->code, group, (uint32_t)word);
        if (word >> 32 != 0) scan_group(c, kernel, &scratch->code, group + 1, (uint32_t)(word >> 32));
        cost->estimates += (uint64_t)CODE_GROUP * (((uint32_t)word != 0) + (word >> 32 != 0));
        if (first % (POLL_GROUPS * CODE_GROUP) == 0 && stopped(search)) return OMEN_EDEADLINE;
    }
    return OMEN_OK;
}

enum omen_err sealed_scan(const struct sealed *s, const struct index_search *search,
        struct index_scratch *scratch, struct index_hit *hits_out, uint32_t *count_out,
        struct index_cost *cost)
{
    const struct kernel *f32 = kernel_get();
    struct scan c = { .s = s, .search = search, .heap = { hits_out, search->k, 0 } };
    sealed_query_prepare(s, search->query, scratch);
    c.base = f32->dot_f32(scratch->rotated, scratch->rotated, s->padded);
    c.stretch = scratch->stretch;
    c.query_sq = f32->dot_f32(search->query, search->query, s->rows.dim) * c.stretch * c.stretch;
    c.near = scan_near(&c);
    /* |r| = |g| sum|r_j| / (2 |r|), and sum|r_j| is sqrt(2 D / pi) |r| after rotation; the largest |g| of a group
     * is 32768 of its scales. */
    float target = search->recall_target > 0 ? search->recall_target : s->recall_target;
    c.error = scan_sigmas(target) * rabitq_error(s->padded) * sqrtf(c.base) * 32768 *
            sqrtf((float)s->padded * (float)M_2_PI) / 2;
    enum omen_err rc = run_is_short(s, search) ? run_scan(&c, scratch, cost) : bits_scan(&c, scratch, cost);
    if (rc != OMEN_OK) return rc;
    scan_rescore(&c);
    cost->rescored += c.rescored;
    cost->scans++;
    index_heap_sort(&c.heap);
    *count_out = c.heap.count;
    return OMEN_OK;
}

/* ---- walk ---- */

#define WALK_CHECK_HOPS 8  /* between two looks at the share that passes */
#define WALK_PROBE_HOPS 16 /* before a walk is judged for the first time */
#define WALK_AHEAD 3       /* rows asked for: the next ones most often lie first in the heap */
#define WALK_ARITY 4       /* of the candidates' heap */

struct filter_walk {
    const struct sealed *s;
    const struct index_search *search;
    struct index_scratch *scratch; /* its pool holds the candidates: a heap, the nearest estimate first */
    struct index_heap found;       /* passing nodes by their own codes, as many as may be rescored */
    struct index_heap near; /* the nearest of them: no candidate farther than all of these is expanded */
    uint32_t count;         /* candidates */
    uint32_t passed, hops, entered;
    uint32_t k, effort; /* effort: the pool's width of a search without filter */
    bool forced;
    double hop_ns, enter_ns, instead_ns; /* instead: of the plan to fall back to */
};

/* Passing nodes whose distance bounds a walk, from the pool width that a search without filter needs: the same
 * recall was seen for a width of 19, 32, 51, 125 and 174 at 9, 12, 16, 32 and 43 of them when all pass, and at
 * fewer when less do, because the walk then crosses all of a wider neighbourhood. In the compact layout the width
 * itself counts nodes by their own codes. */
static uint32_t walk_near(const struct sealed *s, uint32_t k, uint32_t effort, double share)
{
    double all = s->compact != NULL ? effort : 5 + 0.25 * effort;
    double near = all * (0.4 + 0.6 * pow(share < 1 ? share : 1, 0.7));
    return (uint32_t)ceil(fmax(near, 0.75 * k));
}

static void candidate_push(struct filter_walk *w, uint64_t key)
{
    uint64_t *heap = w->scratch->pool;
    uint32_t i = w->count++;
    for (; i > 0; i = (i - 1) / WALK_ARITY) {
        uint64_t parent = heap[(i - 1) / WALK_ARITY];
        if (parent <= key) break;
        heap[i] = parent;
    }
    heap[i] = key;
}

static uint64_t candidate_pop(struct filter_walk *w)
{
    uint64_t *heap = w->scratch->pool, first = heap[0], key = heap[--w->count];
    uint32_t i = 0;
    for (;;) {
        uint32_t child = i * WALK_ARITY + 1, end = child + WALK_ARITY, least = child;
        if (child >= w->count) break;
        if (end > w->count) end = w->count;
        for (uint32_t c = child + 1; c < end; c++)
            if (heap[c] < heap[least]) least = c;
        if (key <= heap[least]) break;
        heap[i] = heap[least];
        i = least;
    }
    heap[i] = key;
    return first;
}

/* Room for the neighbours of one more node, what is in the heap kept. */
static enum omen_err candidates_reserve(struct filter_walk *w)
{
    struct index_scratch *scratch = w->scratch;
    if (w->count + SEALED_DEGREE <= scratch->pool_cap) return OMEN_OK;
    uint64_t *grown = mem_alloc_aligned(64, ((size_t)scratch->pool_cap * 2 + 8) * sizeof(uint64_t));
    if (grown == NULL) return OMEN_ENOMEM;
    memcpy(grown, scratch->pool, w->count * sizeof(uint64_t));
    mem_free(scratch->pool);
    scratch->pool = grown;
    scratch->pool_cap *= 2;
    return OMEN_OK;
}

/* The share that passes around the query decides how far the walk goes. False: another plan is cheaper than
 * what is left to do, even if more pass from here on than did so far. */
static bool walk_judge(struct filter_walk *w)
{
    double hopeful = (w->passed + 1.0) / (w->hops + 1.0), ring = (w->passed + 2.0) / (0.8 * w->hops);
    if (w->passed >= w->k / 2 + 1) {
        uint32_t near = walk_near(w->s, w->k, w->effort, ring);
        for (; w->near.k > near; w->near.k--)
            if (w->near.count == w->near.k) index_heap_pop(&w->near);
    }
    uint32_t wanted = w->near.k > w->k ? w->near.k : w->k;
    if (w->forced || w->passed >= wanted) return true;
    double left_ns = (wanted - w->passed) / hopeful * w->hop_ns;
    double spent_ns = w->enter_ns + w->hops * w->hop_ns;
    return left_ns <= (spent_ns <= w->instead_ns ? w->instead_ns : w->instead_ns / 8);
}

/* No candidate farther than this is expanded. */
static float walk_bound(const struct filter_walk *w)
{
    return w->passed < w->k ? INFINITY : index_heap_bound(&w->near);
}

/* In the compact layout nodes pass when they are met: their codes are read then. */
static enum omen_err walk_hop_compact(struct filter_walk *w, uint32_t node)
{
    uint32_t ids[SEALED_DEGREE + 1], count;
    float estimates[SEALED_DEGREE + 1], bound = walk_bound(w);
    enum omen_err rc = compact_neighbours(w->s, w->scratch, node, ids, estimates, &count);
    if (rc != OMEN_OK) return rc;
    w->passed += sealed_passes(w->search, sealed_slot(w->s, node));
    for (uint32_t i = 0; i < count; i++) {
        if (ids[i] != node && estimates[i] < bound) candidate_push(w, pool_key(estimates[i], ids[i]));
        if (!sealed_passes(w->search, sealed_slot(w->s, ids[i]))) continue;
        index_heap_push(&w->found, (struct index_hit){ estimates[i], ids[i] });
        index_heap_push(&w->near, (struct index_hit){ estimates[i], ids[i] });
    }
    w->hops++;
    for (uint32_t i = 0; i < w->count && i < WALK_AHEAD; i++)
        row_prefetch(w->s, pool_node(w->scratch->pool[i]));
    return OMEN_OK;
}

static void walk_hop(struct filter_walk *w, const struct code_kernel *kernel, uint32_t node)
{
    struct index_scratch *scratch = w->scratch;
    const struct sealed *s = w->s;
    const uint8_t *row = sealed_row(s, node);
    const struct sealed_head *head = sealed_head(s, row);
    const uint32_t *ids = sealed_ids(s, row);
    struct code_factors factors = { (const uint16_t *)(const void *)(row + s->layout.f),
        (const uint16_t *)(const void *)(row + s->layout.g), head->f_scale, head->g_scale };
    float estimates[CODE_GROUP],
            exact = kernel->l2sq_f32_u8(scratch->query, row + s->layout.own, head->own_lo, head->own_scale,
                    s->dim);
    if (sealed_passes(w->search, head->slot)) {
        index_heap_push(&w->found, (struct index_hit){ exact, node });
        index_heap_push(&w->near, (struct index_hit){ exact, node });
        w->passed++;
    }
    uint32_t mask = kernel->estimate_32(&scratch->code, row, &factors, exact, walk_bound(w), estimates);
    for (; mask != 0; mask &= mask - 1) {
        uint32_t i = (uint32_t)__builtin_ctz(mask);
        if (!seen_has(scratch, ids[i])) candidate_push(w, pool_key(estimates[i], ids[i]));
    }
    w->hops++;
    for (uint32_t i = 0; i < w->count && i < WALK_AHEAD; i++) row_prefetch(w->s, pool_node(scratch->pool[i]));
}

/* *done_out = false: given up. */
static enum omen_err walk_run(struct filter_walk *w, bool *done_out)
{
    const struct code_kernel *kernel = code_kernel_get();
    struct index_scratch *scratch = w->scratch;
    *done_out = false;
    sealed_query_prepare(w->s, w->search->query, scratch);
    seen_clear(scratch);
    if (w->s->compact != NULL) compact_begin(w->s, scratch);
    w->entered = sealed_enter(w->s, scratch, &w->count, SEALED_ENTRIES); /* ascending, so a heap */
    while (w->count > 0) {
        if (candidates_reserve(w) != OMEN_OK) return OMEN_ENOMEM;
        uint64_t key = candidate_pop(w);
        if (pool_estimate(key) > walk_bound(w)) break;
        bool fresh;
        if (seen_add(scratch, pool_node(key), &fresh) != OMEN_OK) return OMEN_ENOMEM;
        if (!fresh) continue;
        if (w->s->compact == NULL)
            walk_hop(w, kernel, pool_node(key));
        else if (walk_hop_compact(w, pool_node(key)) != OMEN_OK)
            return OMEN_ENOMEM;
        if (w->hops % INDEX_POLL_HOPS == 0 && stopped(w->search)) return OMEN_EDEADLINE;
        if (w->hops >= WALK_PROBE_HOPS && w->hops % WALK_CHECK_HOPS == 0 && !walk_judge(w)) return OMEN_OK;
    }
    *done_out = w->passed >= w->k || w->forced;
    return OMEN_OK;
}

/* ---- the choice ---- */

struct plans {
    struct filter_costs costs;
    double gather_ns, scan_ns;
    enum index_plan exact; /* the cheaper of the two */
};

static void plans_weigh(const struct sealed *s, const struct index_search *search, uint64_t passing,
        struct plans *plans)
{
    double share = (double)passing / s->count, groups = (double)s->count / CODE_GROUP;
    plans->costs = costs_of(s);
    plans->gather_ns = (double)passing * plans->costs.gather_row;
    if (search->run_end != 0)
        groups = (double)passing / CODE_GROUP + 1;
    else /* those in which a row passes, if these lie anyhow */
        groups *= 1 - pow(1 - share, CODE_GROUP);
    /* Rows in full by what was seen, see README.md. */
    double rows = run_is_short(s, search) ? RUN_ROWS + RUN_ROWS_PER_K * search->k
                                          : SCAN_ROWS + SCAN_ROWS_PER_K * search->k;
    plans->scan_ns = groups * plans->costs.scan_group + rows * plans->costs.gather_row;
    plans->exact = plans->gather_ns <= plans->scan_ns ? INDEX_PLAN_GATHER : INDEX_PLAN_SCAN;
}

static enum index_plan plan_choose(const struct sealed *s, const struct index_search *search,
        uint64_t passing, uint32_t effort, const struct plans *plans)
{
    if (search->plan != INDEX_PLAN_AUTO) return search->plan;
    if (search->k >= passing / 4) return INDEX_PLAN_GATHER;
    if (effort == SEALED_EFFORT_SCAN) return INDEX_PLAN_GATHER;
    const struct filter_costs *costs = &plans->costs;
    double exact_ns = fmin(plans->gather_ns, plans->scan_ns);
    double walk_ns = costs->enter +
            fmax(2.5 * walk_near(s, search->k, effort, 1), 4 * WALK_PROBE_HOPS) * costs->hop;
    return exact_ns <= walk_ns ? plans->exact : INDEX_PLAN_WALK;
}

static enum omen_err exact_run(const struct sealed *s, const struct index_search *search,
        enum index_plan plan, struct index_scratch *scratch, struct index_hit *hits_out, uint32_t *count_out,
        struct index_cost *cost)
{
    return plan == INDEX_PLAN_SCAN ? sealed_scan(s, search, scratch, hits_out, count_out, cost)
                                   : sealed_gather(s, search, hits_out, count_out, cost);
}

enum omen_err sealed_filtered(const struct sealed *s, const struct index_search *search, uint32_t effort,
        struct index_scratch *scratch, struct index_hit *hits_out, uint32_t *count_out,
        struct index_cost *cost)
{
    uint64_t passing = search->run_end != 0 ? sealed_end(s, search) - sealed_first(search)
            : search->filter == NULL        ? s->count
            : search->filter_count != 0     ? search->filter_count
                                            : index_bits_count(search->filter, s->count);
    if (passing == 0) return OMEN_OK;
    struct plans plans;
    plans_weigh(s, search, passing, &plans);
    enum index_plan plan = plan_choose(s, search, passing, effort, &plans);
    if (effort == SEALED_EFFORT_SCAN) effort = SEALED_EFFORT_LAST;
    if (plan != INDEX_PLAN_WALK) return exact_run(s, search, plan, scratch, hits_out, count_out, cost);
    struct filter_walk w = { .s = s,
        .search = search,
        .scratch = scratch,
        .k = search->k < passing ? search->k : (uint32_t)passing,
        .effort = effort,
        .forced = search->plan == INDEX_PLAN_WALK,
        .hop_ns = plans.costs.hop,
        .enter_ns = plans.costs.enter,
        .instead_ns = fmin(plans.gather_ns, plans.scan_ns) };
    uint32_t want = sealed_want(s, search->k, effort);
    uint32_t near = walk_near(s, w.k, effort, 1);
    if (near > passing) near = (uint32_t)passing;
    enum omen_err rc = sealed_scratch_reserve(scratch, POOL_FIRST, want + near);
    if (rc != OMEN_OK) return rc;
    w.found = (struct index_heap){ scratch->hits, want, 0 };
    w.near = (struct index_heap){ scratch->hits + want, near, 0 };
    bool done;
    rc = walk_run(&w, &done);
    if (rc != OMEN_OK) return rc;
    cost->hops += w.hops;
    cost->distances += w.hops;
    cost->estimates += (uint64_t)w.hops * SEALED_DEGREE + w.entered;
    cost->effort += w.near.k;
    if (!done || w.found.count < w.k) {
        cost->aborted++;
        return exact_run(s, search, plans.exact, scratch, hits_out, count_out, cost);
    }
    index_heap_sort(&w.found);
    if (w.found.count < want) want = w.found.count;
    sealed_finish(s, search, scratch->stretch, scratch->hits, want, hits_out, count_out, cost);
    return OMEN_OK;
}
