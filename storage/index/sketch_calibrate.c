/* Calibration of a tail sketch: recall by effort on its newest rows, which a search that ends before them has
 * not seen.
 *
 * Nothing has to be held back: a search with slot_end = s knows nothing of row s but the leaders, and those
 * come from the older half. Truth is one exact scan shared by all queries. As in
 * sealed_calibrate.c a hit counts when its distance is at most the k-th true one times (1 + 1e-5), and the
 * curve keeps recall less 1.65 standard errors. Threads: beside writer and readers; points of the curve are
 * stored one by one, a search may see some old and some new ones, each true of its moment. */
#include <string.h>

#include "common/mem.h"
#include "storage/index/sketch_impl.h"

#define QUERIES 256
#define QUERY_SHARE 40 /* at most every 40th row is a query */
#define ROWS_MIN 2000
#define TRUTH_K 100
#define TRUTH_QUERIES 32
#define TRUTH_TILE 256
#define TIE 1e-5f
#define CONFIDENCE 1.65
#define RECALL_ENOUGH 0.9995
#define CURVE_SLACK 0.005f /* as in sealed_common.c */

const uint32_t sketch_efforts[SKETCH_CURVE_POINTS] = { 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024,
    2048 };
static const uint32_t curve_k[SKETCH_CURVE_KS] = { 1, 10, 100 };

static float curve_at(const struct sketch *s, uint32_t row, uint32_t i)
{
    uint32_t bits = atomic_load_explicit(&s->curve_recall[row][i], memory_order_relaxed);
    float recall;
    memcpy(&recall, &bits, sizeof recall);
    return recall;
}

static void curve_put(struct sketch *s, uint32_t row, uint32_t i, float recall)
{
    uint32_t bits;
    memcpy(&bits, &recall, sizeof bits);
    atomic_store_explicit(&s->curve_recall[row][i], bits, memory_order_relaxed);
}

uint32_t sketch_effort(const struct sketch *s, uint32_t k, float recall_target)
{
    uint32_t points = atomic_load_explicit(&s->curve_points, memory_order_acquire), row = 0;
    if (points == 0) return 0;
    while (row + 1 < SKETCH_CURVE_KS && curve_k[row] < k) row++;
    for (uint32_t i = 0; i < points; i++) {
        float recall = curve_at(s, row, i);
        if (recall < recall_target) continue;
        if (i == 0) return sketch_efforts[0];
        float below = curve_at(s, row, i - 1), span = recall - below;
        float part = span > 0 ? (recall_target - below) / span : 1;
        if (!(part >= 0 && part <= 1)) part = 1; /* points of two calibrations */
        return sketch_efforts[i - 1] +
                (uint32_t)ceilf(part * (float)(sketch_efforts[i] - sketch_efforts[i - 1]));
    }
    return recall_target <= curve_at(s, row, points - 1) + CURVE_SLACK ? sketch_efforts[points - 1]
                                                                       : SKETCH_EFFORT_SCAN;
}

struct calibration {
    struct sketch *s;
    sketch_alive_fn *alive;
    void *alive_arg;
    const struct index_control *control;
    uint32_t end, queries;
    float *bounds; /* [queries][SKETCH_CURVE_KS] */
    float *query_rows, *tile, *distances;
    struct index_hit *hits;   /* [queries][TRUTH_K]; later [TRUTH_K] of one search */
    struct index_heap *heaps; /* [queries] on them */
    struct sketch_scratch *scratch;
};

static bool stopped(const struct calibration *c)
{
    return c->control != NULL && c->control->stop != NULL && c->control->stop(c->control->arg);
}

/* Copies live rows from *slot on to the tile, and their number; moves *slot on. */
static uint32_t tile_fill(const struct calibration *c, uint32_t *slot)
{
    uint32_t n = 0;
    for (; *slot < c->end && n < TRUTH_TILE; ++*slot) {
        if (c->alive != NULL && !c->alive(c->alive_arg, *slot)) continue;
        memcpy(c->tile + (size_t)n++ * c->s->dim, c->s->row(c->s->row_arg, *slot), c->s->dim * sizeof(float));
    }
    return n;
}

/* Offers a tile of `n` rows to queries [first, first + count). */
static void tile_offer(struct calibration *c, uint32_t first, uint32_t count, uint32_t n)
{
    const struct kernel *kernel = kernel_get();
    uint32_t dim = c->s->dim;
    (c->s->metric == METRIC_L2 ? kernel->l2sq_f32_block
                               : kernel->negdot_f32_block)(c->query_rows + (size_t)first * dim, dim, count,
            c->tile, dim, n, dim, c->distances);
    for (uint32_t q = 0; q < count; q++) {
        struct index_heap *heap = &c->heaps[first + q];
        for (uint32_t i = 0; i < n; i++) {
            float d = c->distances[(size_t)q * n + i];
            if (d < index_heap_bound(heap)) index_heap_push(heap, (struct index_hit){ d, i });
        }
    }
}

/* One pass over the rows, each of which is looked up once, for all queries; 32 of them at a time. */
static enum omen_err truth_find(struct calibration *c)
{
    uint32_t dim = c->s->dim, n;
    for (uint32_t q = 0; q < c->queries; q++) {
        memcpy(c->query_rows + (size_t)q * dim, c->s->row(c->s->row_arg, c->end + q), dim * sizeof(float));
        c->heaps[q] = (struct index_heap){ c->hits + (size_t)q * TRUTH_K, TRUTH_K, 0 };
    }
    for (uint32_t slot = 0; (n = tile_fill(c, &slot)) > 0;) {
        if (stopped(c)) return OMEN_ECANCELED;
        for (uint32_t first = 0; first < c->queries; first += TRUTH_QUERIES)
            tile_offer(c, first, c->queries - first < TRUTH_QUERIES ? c->queries - first : TRUTH_QUERIES, n);
    }
    for (uint32_t q = 0; q < c->queries; q++) {
        struct index_heap *heap = &c->heaps[q];
        index_heap_sort(heap);
        for (uint32_t j = 0; j < SKETCH_CURVE_KS; j++) {
            float d = heap->count < curve_k[j] ? INFINITY : heap->hits[curve_k[j] - 1].distance;
            c->bounds[(size_t)q * SKETCH_CURVE_KS + j] = d + fabsf(d) * TIE;
        }
    }
    return OMEN_OK;
}

/* Recall of all queries at one effort, less 1.65 standard errors. */
static enum omen_err recall_measure(struct calibration *c, uint32_t effort, float recall_out[SKETCH_CURVE_KS])
{
    double sum[SKETCH_CURVE_KS] = { 0 }, squares[SKETCH_CURVE_KS] = { 0 };
    for (uint32_t q = 0; q < c->queries; q++) {
        struct sketch_search search = {
            .base = { .query = c->s->row(c->s->row_arg, c->end + q), .k = TRUTH_K, .effort = effort },
            .slot_end = c->end,
            .alive = c->alive,
            .alive_arg = c->alive_arg
        };
        uint32_t found, near[SKETCH_CURVE_KS] = { 0 };
        if (stopped(c)) return OMEN_ECANCELED;
        enum omen_err rc = sketch_search(c->s, &search, c->scratch, c->hits, &found, NULL);
        if (rc != OMEN_OK) return rc;
        for (uint32_t j = 0; j < SKETCH_CURVE_KS; j++) {
            for (uint32_t i = 0; i < found && i < curve_k[j]; i++)
                near[j] += c->hits[i].distance <= c->bounds[(size_t)q * SKETCH_CURVE_KS + j];
            double r = (double)near[j] / curve_k[j];
            sum[j] += r;
            squares[j] += r * r;
        }
    }
    for (uint32_t j = 0; j < SKETCH_CURVE_KS; j++) {
        double mean = sum[j] / c->queries, variance = squares[j] / c->queries - mean * mean;
        recall_out[j] = (float)(mean - CONFIDENCE * sqrt((variance > 0 ? variance : 0) / c->queries));
    }
    return OMEN_OK;
}

static enum omen_err curve_measure(struct calibration *c)
{
    float last[SKETCH_CURVE_KS] = { 0 };
    uint32_t points = 0;
    for (bool enough = false; !enough && points < SKETCH_CURVE_POINTS; points++) {
        float recall[SKETCH_CURVE_KS];
        enum omen_err rc = recall_measure(c, sketch_efforts[points], recall);
        if (rc != OMEN_OK) return rc;
        for (uint32_t j = 0; j < SKETCH_CURVE_KS; j++) {
            last[j] = fmaxf(last[j], recall[j]); /* noise: it never falls */
            curve_put(c->s, j, points, last[j]);
        }
        enough = last[SKETCH_CURVE_KS - 1] >= RECALL_ENOUGH;
    }
    atomic_store_explicit(&c->s->curve_points, points, memory_order_release);
    return OMEN_OK;
}

enum omen_err sketch_calibrate(struct sketch *s, sketch_alive_fn *alive, void *alive_arg,
        const struct index_control *control)
{
    uint32_t count = sketch_count(s);
    if (count < ROWS_MIN) return OMEN_OK;
    struct calibration c = { .s = s, .alive = alive, .alive_arg = alive_arg, .control = control };
    c.queries = count / QUERY_SHARE < QUERIES ? count / QUERY_SHARE : QUERIES;
    c.end = count - c.queries;
    c.bounds = mem_alloc((size_t)c.queries * SKETCH_CURVE_KS * sizeof(float));
    c.query_rows = mem_alloc_aligned(64, (size_t)c.queries * s->dim * sizeof(float));
    c.tile = mem_alloc_aligned(64, (size_t)TRUTH_TILE * s->dim * sizeof(float));
    c.distances = mem_alloc((size_t)TRUTH_TILE * TRUTH_QUERIES * sizeof(float));
    c.hits = mem_alloc((size_t)c.queries * TRUTH_K * sizeof *c.hits);
    c.heaps = mem_alloc(c.queries * sizeof *c.heaps);
    c.scratch = sketch_scratch_new(s);
    bool fine = c.bounds != NULL && c.query_rows != NULL && c.tile != NULL && c.distances != NULL &&
            c.hits != NULL && c.heaps != NULL && c.scratch != NULL;
    enum omen_err rc = fine ? truth_find(&c) : OMEN_ENOMEM;
    if (rc == OMEN_OK) rc = curve_measure(&c);
    mem_free(c.bounds);
    mem_free(c.query_rows);
    mem_free(c.tile);
    mem_free(c.distances);
    mem_free(c.hits);
    mem_free(c.heaps);
    sketch_scratch_free(c.scratch);
    return rc;
}

void sketch_curve(const struct sketch *s, struct sketch_curve *curve_out)
{
    curve_out->points = atomic_load_explicit(&s->curve_points, memory_order_acquire);
    for (uint32_t j = 0; j < SKETCH_CURVE_KS; j++)
        for (uint32_t i = 0; i < curve_out->points; i++) curve_out->recall[j][i] = curve_at(s, j, i);
}

void sketch_curve_set(struct sketch *s, const struct sketch_curve *curve)
{
    for (uint32_t j = 0; j < SKETCH_CURVE_KS; j++)
        for (uint32_t i = 0; i < curve->points; i++) curve_put(s, j, i, curve->recall[j][i]);
    atomic_store_explicit(&s->curve_points, curve->points, memory_order_release);
}
