/* Disk graph (DiskANN, Subramanya et al., NeurIPS 2019) with several rows to a page (PageANN, arXiv 2509.25487).
 *
 * The pool of candidates is ordered by estimates from codes in RAM. A round takes the units of the nearest unread
 * candidates, as many as BEAM, and reads them in one batch; all rows of a unit get their exact distance, and the
 * links of those that the pool would still take are estimated. The walk ends when the pool holds no unread row that
 * is at most `slack` times as far as the k-th row found: easy queries read 15 units, hard ones 60, and no more of
 * them go wrong than of others (README.md).
 * Departs from DiskANN: it starts from the nearest of many leaders (every 16th row, one scan of 1-bit codes in
 * RAM), so that the first round already reads near rows; codes are RaBitQ's with several bits, not PQ; rows of a
 * unit are neighbours, so a read answers for several. Links are those of the sealed graph's builder. ip walks the
 * space augmented to equal norms, as the sealed graph does. Threads: immutable but for the cache, which locks.
 * Determinism: local and rebuildable, never replicated. */
#include "storage/index/disk.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/check.h"
#include "common/mem.h"
#include "storage/index/disk_impl.h"
#include "storage/index/sealed_impl.h"
#include "storage/kernel/kernel.h"

#define BEAM 8             /* units of a round */
#define ENTRIES 32         /* nearest leaders that get into the pool */
#define SLACK_DEFAULT 1200 /* thousandths, without calibration */
#define SEEN_MIN 8192      /* places of the table of estimated rows; grows at half */
#define NODE_NONE UINT32_MAX
#define SEEN_UNIT (1u << 31) /* the table holds units that were read too */
#define SCAN_TILE 256        /* rows estimated at once by a scan of codes */
#define SCAN_READ(k) (2 * (k) + 40)
#define SCAN_POLL_ROWS 16384
/* What plans cost, at 128-d on the machine of README.md: only their proportion matters. */
#define BLOCK_NS 15000.0 /* a unit read in a batch, checked, its links estimated */
#define ESTIMATE_NS 40.0 /* a code that lies anywhere */
#define BIT_NS 1.0       /* a row that a scan passes over */
#define WALK_BLOCKS 20.0 /* units of a walk, and two for each row wanted */
#define STREAM_NS 6000.0 /* a unit read in sequence */

struct index_scratch {
    struct disk_io io;
    float *inner; /* [dim] the query, stretched under ip */
    float *z;     /* [padded] the rotated query */
    uint8_t *lut; /* [padded * 4] */
    struct code_query code;
    struct quant_query *query;
    uint64_t *pool; /* [pool_cap + 8] estimate bits << 32 | node << 1 | read, ascending */
    uint32_t pool_cap;
    uint32_t *seen; /* [seen_cap] nodes that were estimated or read, open addressing */
    uint32_t seen_cap, seen_count;
    struct index_hit *near; /* [near_cap] of a scan of codes */
    uint32_t near_cap;
    uint32_t links[DISK_BEAM_MAX * 64]; /* of one unit or more: ids to be estimated */
    float estimates[DISK_BEAM_MAX * 64];
};
#define LINKS_MAX (DISK_BEAM_MAX * 64)

static void disk_scratch_free(struct index_scratch *scratch)
{
    disk_io_fini(&scratch->io);
    quant_query_free(scratch->query);
    mem_free(scratch->inner);
    mem_free(scratch->z);
    mem_free(scratch->lut);
    mem_free(scratch->pool);
    mem_free(scratch->seen);
    mem_free(scratch->near);
    mem_free(scratch);
}

static struct index_scratch *disk_scratch_new(const struct index *index)
{
    const struct disk *d = (const struct disk *)index;
    struct index_scratch *scratch = mem_calloc(1, sizeof *scratch);
    if (scratch == NULL) return NULL;
    bool fine = disk_io_init(d, &scratch->io);
    scratch->inner = mem_alloc_aligned(64, d->padded * sizeof(float));
    scratch->z = mem_alloc_aligned(64, d->padded * sizeof(float));
    scratch->lut = mem_alloc_aligned(64, (size_t)d->padded * 4);
    scratch->seen = mem_alloc_aligned(64, SEEN_MIN * sizeof(uint32_t));
    scratch->seen_cap = SEEN_MIN;
    scratch->query = d->count == 0 ? NULL : quant_query_new(d->quant);
    if (fine && scratch->inner != NULL && scratch->z != NULL && scratch->lut != NULL &&
            scratch->seen != NULL && (scratch->query != NULL || d->count == 0))
        return scratch;
    disk_scratch_free(scratch);
    return NULL;
}

static enum omen_err scratch_reserve(struct index_scratch *scratch, uint32_t pool, uint32_t near)
{
    if (scratch->pool_cap < pool) {
        mem_free(scratch->pool);
        scratch->pool_cap = 0;
        scratch->pool = mem_alloc_aligned(64, ((size_t)pool + 8) * sizeof(uint64_t));
        if (scratch->pool == NULL) return OMEN_ENOMEM;
        scratch->pool_cap = pool;
    }
    if (scratch->near_cap < near) {
        mem_free(scratch->near);
        scratch->near_cap = 0;
        scratch->near = mem_alloc(near * sizeof *scratch->near);
        if (scratch->near == NULL) return OMEN_ENOMEM;
        scratch->near_cap = near;
    }
    return OMEN_OK;
}

/* ---- rows that were estimated or read ---- */

static inline uint32_t seen_place(const struct index_scratch *scratch, uint32_t node)
{
    uint32_t i = node * 0x9e3779b1u >> 4 & (scratch->seen_cap - 1);
    while (scratch->seen[i] != node && scratch->seen[i] != NODE_NONE) i = (i + 1) & (scratch->seen_cap - 1);
    return i;
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

/* Room for `more` rows without growing. */
static enum omen_err seen_reserve(struct index_scratch *scratch, uint32_t more)
{
    enum omen_err rc = OMEN_OK;
    while (rc == OMEN_OK && (scratch->seen_count + more) * 2 > scratch->seen_cap) rc = seen_grow(scratch);
    return rc;
}

/* Was it new? */
static inline bool seen_add(struct index_scratch *scratch, uint32_t node)
{
    uint32_t place = seen_place(scratch, node);
    if (scratch->seen[place] == node) return false;
    scratch->seen[place] = node;
    scratch->seen_count++;
    return true;
}

/* ---- the pool ---- */

static inline uint64_t pool_key(float estimate, uint32_t node)
{
    uint32_t bits; /* of a float >= 0: they order as the floats do */
    estimate = estimate > 0 ? estimate : 0;
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

/* ---- distances ---- */

void disk_rotate(const struct disk *d, const float *vector, bool augment, float *out)
{
    memcpy(out, vector, d->dim * sizeof(float));
    memset(out + d->dim, 0, (d->padded - d->dim) * sizeof(float));
    if (d->base.metric == METRIC_IP && augment) {
        float left = d->norm_max - kernel_get()->dot_f32(vector, vector, d->dim);
        out[d->dim] = left > 0 ? sqrtf(left) : 0;
    }
    for (uint32_t i = 0; i < d->padded; i++) out[i] -= d->mean[i];
    rotation_apply(&d->rotation, out);
}

static inline float final_distance(const struct disk *d, const float *query, const float *row)
{
    float v = d->base.metric == METRIC_L2 ? kernel_get()->l2sq_f32(query, row, d->dim)
                                          : -kernel_get()->dot_f32(query, row, d->dim);
    return isnan(v) ? INFINITY : v;
}

struct walk {
    const struct disk *d;
    const struct index_search *search;
    struct index_scratch *scratch;
    struct index_cost *cost;
    uint32_t effort, count, cursor; /* the pool: its width, its rows, the first that may be unread */
    float slack;                    /* of the stop rule, infinite = none */
    float shift;                    /* squared distance of the walk's space = final * scale + shift */
    float scale;
    struct index_heap found;
    uint64_t passed; /* rows read that the filter lets through */
};

static void walk_init(struct walk *w, const struct disk *d, const struct index_search *search,
        struct index_scratch *scratch, struct index_hit *hits_out, struct index_cost *cost)
{
    *w = (struct walk){ .d = d, .search = search, .scratch = scratch, .cost = cost, .scale = 1 };
    w->found = (struct index_heap){ hits_out, search->k, 0 };
    float squared = kernel_get()->dot_f32(search->query, search->query, d->dim), stretch = 1;
    memcpy(scratch->inner, search->query, d->dim * sizeof(float));
    if (d->base.metric == METRIC_IP && squared > 0 && d->norm_max > 0) {
        stretch = sqrtf(d->norm_max / squared); /* as long as the rows: else all distances are nearly alike */
        for (uint32_t i = 0; i < d->dim; i++) scratch->inner[i] *= stretch;
        squared = d->norm_max;
    }
    disk_rotate(d, scratch->inner, false, scratch->z);
    quant_prepare(d->quant, METRIC_L2, scratch->z, scratch->query);
    if (d->base.metric == METRIC_L2) return;
    w->scale = 2 * stretch;
    w->shift = squared + (d->base.metric == METRIC_IP ? d->norm_max : 1);
}

static inline float pool_bound(const struct walk *w)
{
    return w->count == w->effort ? pool_estimate(w->scratch->pool[w->count - 1]) : INFINITY;
}

static inline void pool_offer(struct walk *w, uint64_t key)
{
    uint32_t at = code_kernel_get()->pool_insert(w->scratch->pool, &w->count, w->effort, key);
    if (at < w->cursor) w->cursor = at;
}

/* A row that was read: may it be returned? Its distance. */
static inline float record_offer(struct walk *w, const uint8_t *record)
{
    float v = final_distance(w->d, w->search->query, disk_vector(record));
    uint32_t slot = disk_slot(w->d, record);
    w->cost->distances++;
    if (w->search->filter != NULL && !index_bit(w->search->filter, slot)) return v;
    w->passed++;
    if (w->search->has_distance_max && !(v <= w->search->distance_max)) return v;
    index_heap_push(&w->found, (struct index_hit){ v, slot });
    return v;
}

/* ---- the walk ---- */

/* Estimates of `count` rows that were not seen before, into the pool. */
static void estimate_offer(struct walk *w, uint32_t count)
{
    struct index_scratch *scratch = w->scratch;
    quant_estimate(w->d->quant, scratch->query, w->d->codes, w->d->code_bytes, scratch->links, count,
            scratch->estimates);
    w->cost->estimates += count;
    for (uint32_t i = 0; i < count; i++)
        if (scratch->estimates[i] < pool_bound(w))
            pool_offer(w, pool_key(scratch->estimates[i], scratch->links[i]));
}

static void walk_enter(struct walk *w)
{
    const struct disk *d = w->d;
    struct index_scratch *scratch = w->scratch;
    const struct code_kernel *kernel = code_kernel_get();
    size_t codes_bytes = rabitq_codes_bytes(d->padded);
    uint64_t best[ENTRIES + 8];
    uint32_t best_count = 0;
    float estimates[CODE_GROUP], bound = INFINITY;
    rabitq_prepare(scratch->z, d->padded, scratch->lut, &scratch->code);
    float base = kernel_get()->dot_f32(scratch->z, scratch->z, d->padded);
    for (uint32_t first = 0; first < d->leader_count; first += CODE_GROUP) {
        uint32_t group = first / CODE_GROUP;
        const uint8_t *codes = d->leader_groups + group * (codes_bytes + CODE_GROUP * 4);
        const uint16_t *f = (const uint16_t *)(const void *)(codes + codes_bytes);
        struct code_factors factors = { f, f + CODE_GROUP, d->leader_scales[group * 2],
            d->leader_scales[group * 2 + 1] };
        uint32_t mask = kernel->estimate_32(&scratch->code, codes, &factors, base, bound, estimates);
        for (; mask != 0; mask &= mask - 1) {
            uint32_t i = (uint32_t)__builtin_ctz(mask), node = d->leader_nodes[first + i];
            if (d->absent != NULL && index_bit(d->absent, node)) continue;
            (void)kernel->pool_insert(best, &best_count, ENTRIES, pool_key(estimates[i], node));
            if (best_count == ENTRIES) bound = pool_estimate(best[ENTRIES - 1]);
        }
    }
    uint32_t n = 0;
    for (uint32_t i = 0; i < best_count; i++)
        if (seen_add(scratch, pool_node(best[i]))) scratch->links[n++] = pool_node(best[i]);
    w->cost->estimates += d->leader_count;
    estimate_offer(w, n);
}

/* The units of the nearest unread rows. A unit is read once: all its rows were looked at then. */
static uint32_t units_choose(struct walk *w, uint32_t units[DISK_BEAM_MAX], uint32_t most)
{
    uint64_t *pool = w->scratch->pool;
    uint32_t n = 0, i = w->cursor;
    float far = INFINITY;
    if (w->found.count == w->found.k) far = w->slack * (w->found.hits[0].distance * w->scale + w->shift);
    for (; i < w->count && n < most; i++) {
        if (pool[i] & 1) continue;
        if (pool_estimate(pool[i]) > far) break;
        uint32_t unit = pool_node(pool[i]) / w->d->layout.unit_nodes;
        pool[i] |= 1;
        if (seen_add(w->scratch, unit | SEEN_UNIT)) units[n++] = unit;
    }
    w->cursor = i;
    return n;
}

/* Ids of a record's links that were not seen, after the `n` that wait; how many wait now. */
static uint32_t links_take(struct walk *w, const uint8_t *record, uint32_t n)
{
    const uint32_t *links = disk_links(w->d, record);
    for (uint32_t j = 0; j < disk_degree(w->d, record); j++) {
        if (w->d->absent != NULL && index_bit(w->d->absent, links[j])) continue;
        if (seen_add(w->scratch, links[j])) w->scratch->links[n++] = links[j];
    }
    return n;
}

/* A row of a unit is in the pool already, under its estimate, or it comes in under its distance if that is near
 * enough: in either case its links are looked at. Whoever is farther than all in the pool is not. */
static enum omen_err unit_expand(struct walk *w, uint32_t number, const uint8_t *unit)
{
    const struct disk *d = w->d;
    uint32_t first = number * d->layout.unit_nodes, nodes = disk_unit_nodes(d, number), n = 0;
    for (uint32_t i = 0; i < nodes; i++) {
        const uint8_t *record = disk_record(d, unit, i);
        if (d->absent != NULL && index_bit(d->absent, first + i)) continue;
        enum omen_err rc = seen_reserve(w->scratch, DISK_DEGREE + 1);
        if (rc != OMEN_OK) return rc;
        float inner = record_offer(w, record) * w->scale + w->shift;
        bool fresh = seen_add(w->scratch, first + i);
        if (inner > pool_bound(w)) continue;
        if (fresh) pool_offer(w, pool_key(inner, first + i) | 1);
        w->cost->hops++;
        if (n + DISK_DEGREE > LINKS_MAX) {
            estimate_offer(w, n);
            n = 0;
        }
        n = links_take(w, record, n);
    }
    estimate_offer(w, n);
    return OMEN_OK;
}

enum omen_err disk_walk(const struct disk *d, const struct index_search *search, struct disk_effort effort,
        struct index_scratch *scratch, struct index_hit *hits_out, uint32_t *count_out, uint64_t *passed_out,
        struct index_cost *cost)
{
    struct walk w;
    uint32_t units[DISK_BEAM_MAX], n;
    const uint8_t *data[DISK_BEAM_MAX];
    enum omen_err rc = scratch_reserve(scratch, effort.width, 0);
    if (rc != OMEN_OK) return rc;
    walk_init(&w, d, search, scratch, hits_out, cost);
    w.effort = effort.width;
    w.slack = effort.slack;
    memset(scratch->seen, 0xff, scratch->seen_cap * sizeof(uint32_t));
    scratch->seen_count = 0;
    walk_enter(&w);
    while (rc == OMEN_OK) {
        rc = seen_reserve(scratch, DISK_BEAM_MAX);
        if (rc != OMEN_OK || (n = units_choose(&w, units, BEAM)) == 0) break;
        if (search->stop != NULL && search->stop(search->stop_arg)) return OMEN_EDEADLINE;
        rc = disk_units_read(d, &scratch->io, units, n, data, search->err, cost);
        for (uint32_t i = 0; rc == OMEN_OK && i < n; i++) rc = unit_expand(&w, units[i], data[i]);
    }
    if (rc != OMEN_OK) return rc;
    cost->effort += effort.width;
    cost->walks++;
    index_heap_sort(&w.found);
    *count_out = w.found.count;
    *passed_out = w.passed;
    return OMEN_OK;
}

/* ---- scans ---- */

/* Every row, unit by unit. */
static enum omen_err scan_rows(struct walk *w, uint32_t *count_out)
{
    const struct disk *d = w->d;
    uint32_t units[DISK_BEAM_MAX], total = disk_unit_count(d);
    const uint8_t *data[DISK_BEAM_MAX];
    for (uint32_t first = 0; first < total; first += DISK_BEAM_MAX) {
        uint32_t n = total - first < DISK_BEAM_MAX ? total - first : DISK_BEAM_MAX;
        for (uint32_t i = 0; i < n; i++) units[i] = first + i;
        if (w->search->stop != NULL && w->search->stop(w->search->stop_arg)) return OMEN_EDEADLINE;
        enum omen_err rc = disk_units_read(d, &w->scratch->io, units, n, data, w->search->err, w->cost);
        if (rc != OMEN_OK) return rc;
        for (uint32_t i = 0; i < n; i++)
            for (uint32_t j = 0; j < disk_unit_nodes(d, units[i]); j++)
                (void)record_offer(w, disk_record(d, data[i], j));
    }
    w->cost->gathers++;
    index_heap_sort(&w->found);
    *count_out = w->found.count;
    return OMEN_OK;
}

static int compare_nodes(const void *a, const void *b)
{
    uint32_t x = ((const struct index_hit *)a)->slot, y = ((const struct index_hit *)b)->slot;
    return (x > y) - (x < y);
}

/* The rows of w->scratch->near (by node), in the order of their units, a beam of units at a time. */
static enum omen_err near_read(struct walk *w, uint32_t count)
{
    const struct disk *d = w->d;
    struct index_hit *near = w->scratch->near;
    uint32_t per = d->layout.unit_nodes, units[DISK_BEAM_MAX], at = 0;
    const uint8_t *data[DISK_BEAM_MAX];
    qsort(near, count, sizeof *near, compare_nodes);
    while (at < count) {
        uint32_t n = 0, end = at;
        for (; end < count; end++) {
            uint32_t unit = near[end].slot / per;
            if (n > 0 && units[n - 1] == unit) continue;
            if (n == DISK_BEAM_MAX) break;
            units[n++] = unit;
        }
        if (w->search->stop != NULL && w->search->stop(w->search->stop_arg)) return OMEN_EDEADLINE;
        enum omen_err rc = disk_units_read(d, &w->scratch->io, units, n, data, w->search->err, w->cost);
        if (rc != OMEN_OK) return rc;
        for (uint32_t i = 0; at < end; at++) {
            if (units[i] != near[at].slot / per) i++;
            (void)record_offer(w, disk_record(d, data[i], near[at].slot % per));
        }
    }
    return OMEN_OK;
}

/* Codes of the rows that pass, by node; the nearest are read. Exact when that are all. */
static enum omen_err scan_codes(struct walk *w, uint32_t *count_out)
{
    const struct disk *d = w->d;
    struct index_scratch *scratch = w->scratch;
    uint32_t want = SCAN_READ(w->search->k), n = 0;
    enum omen_err rc = scratch_reserve(scratch, 0, want);
    if (rc != OMEN_OK) return rc;
    struct index_heap near = { scratch->near, want, 0 };
    for (uint32_t node = 0; node < d->count; node++) {
        if (node % SCAN_POLL_ROWS == 0 && w->search->stop != NULL && w->search->stop(w->search->stop_arg))
            return OMEN_EDEADLINE;
        if (w->search->filter == NULL || index_bit(w->search->filter, d->slots[node]))
            scratch->links[n++] = node;
        if (n < SCAN_TILE && node + 1 < d->count) continue;
        quant_estimate(d->quant, scratch->query, d->codes, d->code_bytes, scratch->links, n,
                scratch->estimates);
        for (uint32_t i = 0; i < n; i++)
            if (scratch->estimates[i] < index_heap_bound(&near) || near.count < want)
                index_heap_push(&near, (struct index_hit){ scratch->estimates[i], scratch->links[i] });
        w->cost->estimates += n;
        n = 0;
    }
    rc = near_read(w, near.count);
    if (rc != OMEN_OK) return rc;
    w->cost->rescored += near.count;
    w->cost->scans++;
    index_heap_sort(&w->found);
    *count_out = w->found.count;
    return OMEN_OK;
}

/* ---- search ---- */

static const uint32_t curve_k[DISK_CURVE_KS] = { 1, 10, 100 };
#define CURVE_SLACK 0.005f /* as in sealed_common.c */

/* The pool is wide enough that the stop rule, not the width, ends nearly all walks. */
struct disk_effort disk_effort_of(uint32_t slack_milli, uint32_t k)
{
    float slack = (float)slack_milli / 1000, squared = slack * slack;
    float width = 100 * squared * squared + 2 * (float)k;
    return (struct disk_effort){ width < INDEX_EFFORT_MAX ? (uint32_t)width : INDEX_EFFORT_MAX, slack };
}

uint32_t disk_slack(const struct disk *d, uint32_t k, float recall_target)
{
    const struct disk_curve *curve = &d->curve;
    if (curve->points == 0) return 0;
    uint32_t row = 0; /* the curve of the next larger k is the careful choice */
    while (row + 1 < DISK_CURVE_KS && curve_k[row] < k) row++;
    const float *recall = curve->recall[row];
    for (uint32_t i = 0; i < curve->points; i++) {
        if (recall[i] < recall_target) continue;
        if (i == 0) return curve->slack_milli[0];
        float part = (recall_target - recall[i - 1]) / (recall[i] - recall[i - 1]);
        return curve->slack_milli[i - 1] +
                (uint32_t)ceilf(part * (float)(curve->slack_milli[i] - curve->slack_milli[i - 1]));
    }
    return recall_target <= recall[curve->points - 1] + CURVE_SLACK ? curve->slack_milli[curve->points - 1]
                                                                    : DISK_SLACK_SCAN;
}

/* The plan asked for, or the one that costs least; the pool is widened for a walk under a filter. */
static enum index_plan plan_choose(const struct disk *d, const struct index_search *search, uint64_t passing,
        struct disk_effort *effort)
{
    double share = (double)passing / d->count, wide = (double)effort->width / share;
    double walk_ns = (WALK_BLOCKS + 2.0 * search->k) / share * BLOCK_NS;
    double scan_ns = d->count * BIT_NS + (double)passing * ESTIMATE_NS + SCAN_READ(search->k) * BLOCK_NS;
    double gather_ns = disk_unit_count(d) * STREAM_NS;
    enum index_plan plan = search->plan;
    if (plan == INDEX_PLAN_AUTO && passing <= SCAN_READ(search->k)) plan = INDEX_PLAN_SCAN;
    if (plan == INDEX_PLAN_AUTO && effort->width == 0) plan = INDEX_PLAN_GATHER;
    if (plan == INDEX_PLAN_AUTO && passing == d->count && search->k < d->count / 4) plan = INDEX_PLAN_WALK;
    if (plan == INDEX_PLAN_AUTO)
        plan = gather_ns < walk_ns && gather_ns < scan_ns ? INDEX_PLAN_GATHER
                : scan_ns < walk_ns                       ? INDEX_PLAN_SCAN
                                                          : INDEX_PLAN_WALK;
    effort->width = wide > INDEX_EFFORT_MAX ? INDEX_EFFORT_MAX : (uint32_t)wide;
    if (effort->width < search->k) effort->width = search->k;
    if (effort->width > d->count) effort->width = d->count;
    return plan;
}

/* What to do for a search: as wide as it says, or as far as calibration says; width 0 = no walk will do. */
static struct disk_effort effort_choose(const struct disk *d, const struct index_search *search)
{
    if (search->effort > 0) return (struct disk_effort){ search->effort, INFINITY };
    uint32_t slack = disk_slack(d, search->k,
            search->recall_target > 0 ? search->recall_target : d->recall_target);
    if (slack == DISK_SLACK_SCAN) return (struct disk_effort){ 0, INFINITY };
    return disk_effort_of(slack == 0 ? SLACK_DEFAULT : slack, search->k);
}

static enum omen_err disk_search(const struct index *index, const struct index_search *search,
        struct index_scratch *scratch, struct index_hit *hits_out, uint32_t *count_out,
        struct index_cost *cost)
{
    const struct disk *d = (const struct disk *)index;
    struct walk w;
    *count_out = 0;
    uint64_t passing = search->filter == NULL ? d->count
            : search->filter_count != 0       ? search->filter_count
                                              : index_bits_count(search->filter, d->count);
    if (d->count == 0 || passing == 0) return OMEN_OK;
    struct disk_effort effort = effort_choose(d, search);
    enum index_plan plan = plan_choose(d, search, passing, &effort);
    if (plan == INDEX_PLAN_WALK) {
        uint64_t passed = 0;
        enum omen_err rc = disk_walk(d, search, effort, scratch, hits_out, count_out, &passed, cost);
        if (rc != OMEN_OK || passed >= search->k || passed == passing) return rc;
    }
    walk_init(&w, d, search, scratch, hits_out, cost);
    return plan == INDEX_PLAN_SCAN ? scan_codes(&w, count_out) : scan_rows(&w, count_out);
}

static void disk_stats(const struct index *index, bool deep, struct index_stats *stats_out)
{
    const struct disk *d = (const struct disk *)index;
    (void)deep;
    uint64_t groups = (d->leader_count + CODE_GROUP - 1) / CODE_GROUP;
    stats_out->slot_count = stats_out->live_count = d->count;
    stats_out->memory_bytes = sizeof *d + (uint64_t)d->count * (d->code_bytes + sizeof(uint32_t)) +
            d->leader_count * sizeof(uint32_t) +
            groups * (rabitq_codes_bytes(d->padded) + CODE_GROUP * 4 + 8) + d->padded * sizeof(float) +
            disk_cache_bytes(d->cache);
    if (d->units != NULL) stats_out->memory_bytes += (uint64_t)disk_unit_count(d) * d->layout.unit_bytes;
    stats_out->layer_count = 1;
    uint32_t slack = disk_slack(d, 10, d->recall_target);
    stats_out->effort_default = slack == DISK_SLACK_SCAN || slack == 0
            ? 0
            : (float)disk_effort_of(slack, 10).width;
}

struct disk *disk_new(const struct index_rows *rows)
{
    struct disk *d = mem_calloc(1, sizeof *d);
    if (d == NULL) return NULL;
    d->base = (struct index){ &disk_ops, rows->dim, rows->metric };
    d->count = rows->count;
    d->dim = rows->dim;
    d->inner = rows->dim + (rows->metric == METRIC_IP);
    d->padded = (d->inner + CODE_DIM_ALIGN - 1) / CODE_DIM_ALIGN * CODE_DIM_ALIGN;
    d->layout.record_bytes = d->dim * (uint32_t)sizeof(float) +
            (DISK_DEGREE + 2) * (uint32_t)sizeof(uint32_t);
    uint32_t one = DISK_UNIT_HEAD + d->layout.record_bytes;
    d->layout.unit_bytes = (one + DISK_PAGE - 1) / DISK_PAGE * DISK_PAGE;
    d->layout.unit_nodes = (d->layout.unit_bytes - DISK_UNIT_HEAD) / d->layout.record_bytes;
    return d;
}

void disk_free(struct index *index)
{
    struct disk *d = (struct disk *)index;
    disk_cache_free(d->cache);
    vfs_close(d->file);
    sealed_pages_free(d->units, d->units_mapped);
    sealed_pages_free(d->codes, d->codes_mapped);
    quant_free(d->quant);
    mem_free(d->mean);
    mem_free(d->slots);
    mem_free(d->leader_nodes);
    mem_free(d->leader_groups);
    mem_free(d->leader_scales);
    mem_free(d->path);
    mem_free(d);
}

const struct index_ops disk_ops = {
    .kind = INDEX_DISK,
    .free = disk_free,
    .scratch_new = disk_scratch_new,
    .scratch_free = disk_scratch_free,
    .search = disk_search,
    .save = disk_save,
    .stats = disk_stats,
};
