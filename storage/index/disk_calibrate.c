/* Calibration of a disk graph: recall by slack of the stop rule, on rows that walks do not see.
 *
 * The sealed builder links about 1,000 rows last; here they count as absent (no walk enters, estimates or returns
 * them) and serve as queries. Without them others lack at most a 40th of their links, so recall is rather a little
 * too low than too high. As in sealed_calibrate.c a hit counts when its distance is at most the k-th true one times
 * (1 + 1e-5), and the curve keeps recall less 1.65 standard errors. Units are still in memory. Threads:
 * control->threads. */
#include <math.h>
#include <string.h>

#include "common/mem.h"
#include "storage/index/disk_impl.h"
#include "storage/index/parallel.h"
#include "storage/kernel/kernel.h"

#define TRUTH_K 100
#define TRUTH_TILE 512
#define TRUTH_QUERIES 32
#define TIE 1e-5f
#define CONFIDENCE 1.65
#define RECALL_ENOUGH 0.9995

static const uint32_t curve_k[DISK_CURVE_KS] = { 1, 10, 100 };
static const uint32_t slacks[DISK_CURVE_POINTS] = { 850, 900, 940, 970, 1000, 1020, 1040, 1060, 1080, 1100,
    1130, 1160, 1200, 1250, 1300, 1400, 1500, 1700, 2000, 2500 };

struct calibration {
    struct disk *d;
    const struct index_rows *rows;
    const uint32_t *queries; /* [count] nodes */
    uint32_t count, slack_milli;
    float *bounds; /* [count][DISK_CURVE_KS] */
    float *recall; /* [count][DISK_CURVE_KS] of the slack at hand */
};

static const float *node_row(const struct calibration *c, uint32_t node)
{
    return c->rows->data + (size_t)c->d->slots[node] * c->rows->stride_floats;
}

struct truth {
    float *queries, *rows, *distances;
    struct index_hit *hits; /* [TRUTH_QUERIES][TRUTH_K] */
};

/* The next present rows from *node on into the tile, and their number. */
static uint32_t tile_fill(const struct calibration *c, struct truth *t, uint32_t *node)
{
    uint32_t n = 0, dim = c->d->dim;
    for (; *node < c->d->count && n < TRUTH_TILE; ++*node)
        if (!index_bit(c->d->absent, *node))
            memcpy(t->rows + (size_t)n++ * dim, node_row(c, *node), dim * sizeof(float));
    return n;
}

static void truth_block(struct calibration *c, struct truth *t, uint32_t first, uint32_t count)
{
    const struct kernel *kernel = kernel_get();
    uint32_t dim = c->d->dim, n;
    struct index_heap heaps[TRUTH_QUERIES];
    for (uint32_t q = 0; q < count; q++) {
        memcpy(t->queries + (size_t)q * dim, node_row(c, c->queries[first + q]), dim * sizeof(float));
        heaps[q] = (struct index_heap){ t->hits + (size_t)q * TRUTH_K, TRUTH_K, 0 };
    }
    for (uint32_t node = 0; (n = tile_fill(c, t, &node)) > 0;) {
        (c->rows->metric == METRIC_L2 ? kernel->l2sq_f32_block : kernel->negdot_f32_block)(t->queries, dim,
                count, t->rows, dim, n, dim, t->distances);
        for (uint32_t q = 0; q < count; q++) {
            for (uint32_t i = 0; i < n; i++) {
                float d = t->distances[(size_t)q * n + i];
                if (d < index_heap_bound(&heaps[q])) index_heap_push(&heaps[q], (struct index_hit){ d, i });
            }
        }
    }
    for (uint32_t q = 0; q < count; q++) {
        index_heap_sort(&heaps[q]);
        for (uint32_t j = 0; j < DISK_CURVE_KS; j++) {
            float d = heaps[q].count < curve_k[j] ? INFINITY : heaps[q].hits[curve_k[j] - 1].distance;
            c->bounds[(size_t)(first + q) * DISK_CURVE_KS + j] = d + fabsf(d) * TIE;
        }
    }
}

static bool truth_range(void *arg, uint32_t thread, uint32_t first, uint32_t end)
{
    struct calibration *c = arg;
    uint32_t dim = c->d->dim;
    (void)thread;
    struct truth t = { mem_alloc_aligned(64, (size_t)TRUTH_QUERIES * dim * sizeof(float)),
        mem_alloc_aligned(64, (size_t)TRUTH_TILE * dim * sizeof(float)),
        mem_alloc_aligned(64, (size_t)TRUTH_TILE * TRUTH_QUERIES * sizeof(float)),
        mem_alloc((size_t)TRUTH_QUERIES * TRUTH_K * sizeof(struct index_hit)) };
    bool fine = t.queries != NULL && t.rows != NULL && t.distances != NULL && t.hits != NULL;
    if (fine) truth_block(c, &t, first, end - first);
    mem_free(t.queries);
    mem_free(t.rows);
    mem_free(t.distances);
    mem_free(t.hits);
    return fine;
}

static bool recall_range(void *arg, uint32_t thread, uint32_t first, uint32_t end)
{
    struct calibration *c = arg;
    struct index_scratch *scratch = index_scratch_new(&c->d->base);
    struct index_hit hits[TRUTH_K];
    bool fine = scratch != NULL;
    (void)thread;
    for (uint32_t cell = first * DISK_CURVE_KS; fine && cell < end * DISK_CURVE_KS; cell++) {
        uint32_t k = curve_k[cell % DISK_CURVE_KS], found = 0, near = 0;
        struct index_search search = { .query = node_row(c, c->queries[cell / DISK_CURVE_KS]), .k = k };
        struct index_cost cost = { 0 };
        uint64_t passed;
        fine = disk_walk(c->d, &search, disk_effort_of(c->slack_milli, k), scratch, hits, &found, &passed,
                       &cost) == OMEN_OK;
        for (uint32_t i = 0; fine && i < found; i++) near += hits[i].distance <= c->bounds[cell];
        c->recall[cell] = (float)(near < k ? near : k) / (float)k;
    }
    if (scratch != NULL) index_scratch_free(&c->d->base, scratch);
    return fine;
}

static float careful_mean(const struct calibration *c, uint32_t j)
{
    double sum = 0, squares = 0, n = c->count;
    for (uint32_t q = 0; q < c->count; q++) {
        double r = c->recall[(size_t)q * DISK_CURVE_KS + j];
        sum += r;
        squares += r * r;
    }
    double mean = sum / n, variance = squares / n - mean * mean;
    return (float)(mean - CONFIDENCE * sqrt((variance > 0 ? variance : 0) / n));
}

enum omen_err disk_calibrate(struct disk *d, const struct index_rows *rows, const uint32_t *queries,
        uint32_t query_count, const struct index_control *control)
{
    size_t cells = (size_t)query_count * DISK_CURVE_KS;
    struct disk_curve *curve = &d->curve;
    struct calibration c = { d, rows, queries, query_count, 0, mem_alloc(cells * sizeof(float)),
        mem_alloc(cells * sizeof(float)) };
    enum omen_err rc = c.bounds == NULL || c.recall == NULL ? OMEN_ENOMEM : OMEN_OK;
    if (rc == OMEN_OK) rc = parallel_for(control, "truth", query_count, TRUTH_QUERIES, truth_range, &c);
    for (uint32_t i = 0; rc == OMEN_OK && i < DISK_CURVE_POINTS; i++) {
        c.slack_milli = slacks[i];
        rc = parallel_for(control, "calibrate", query_count, 64, recall_range, &c);
        if (rc != OMEN_OK) break;
        curve->slack_milli[i] = slacks[i];
        for (uint32_t j = 0; j < DISK_CURVE_KS; j++) {
            curve->recall[j][i] = careful_mean(&c, j);
            if (i > 0) curve->recall[j][i] = fmaxf(curve->recall[j][i], curve->recall[j][i - 1]);
        }
        curve->points = i + 1;
        bool enough = true;
        for (uint32_t j = 0; j < DISK_CURVE_KS; j++) enough = enough && curve->recall[j][i] >= RECALL_ENOUGH;
        if (enough) break;
    }
    curve->queries = query_count;
    mem_free(c.bounds);
    mem_free(c.recall);
    return rc;
}
