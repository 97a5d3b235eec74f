/* Calibration of a disk graph: recall by slack of the stop rule, on rows that walks do not see.
 *
 * The sealed builder links about 1,000 rows last; here they count as absent (no walk enters, estimates or returns
 * them) and serve as queries. Without them others lack at most a 40th of their links, so recall is rather a little
 * too low than too high. Small segments would have too few of them (125 of 5,000 rows: 1.65 standard errors are 0.02
 * and more, and that much too much would be delivered), so other rows take turns at being absent. As in
 * sealed_calibrate.c a hit counts when its distance is at most the k-th true one times (1 + 1e-5), and the curve keeps
 * recall less 1.65 standard errors. Units are still in memory. Threads: control->threads. */
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
static const uint32_t slacks[DISK_CURVE_POINTS] = { 500, 700, 800, 850, 900, 940, 970, 1000, 1025, 1050, 1075,
    1100, 1130, 1160, 1200, 1250, 1300, 1400, 1600, 2000 };

struct calibration {
    struct disk *d;
    const struct index_rows *rows;
    const uint32_t *queries; /* of the pass at hand, as are bounds and recall: nodes */
    uint32_t slack_milli;
    float *bounds; /* [queries][DISK_CURVE_KS] */
    float *recall; /* [queries][DISK_CURVE_KS] of the slack at hand */
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

static float careful_mean(const float *recall, uint32_t count, uint32_t j)
{
    double sum = 0, squares = 0, n = count;
    for (uint32_t q = 0; q < count; q++) {
        double r = recall[(size_t)q * DISK_CURVE_KS + j];
        sum += r;
        squares += r * r;
    }
    double mean = sum / n, variance = squares / n - mean * mean;
    return (float)(mean - CONFIDENCE * sqrt((variance > 0 ? variance : 0) / n));
}

/* fn over the queries of every pass, with its rows absent. */
static enum omen_err passes_run(struct calibration *c, const struct disk_pass *passes, uint32_t pass_count,
        float *bounds, float *recall, const char *phase, parallel_fn *fn, const struct index_control *control)
{
    enum omen_err rc = OMEN_OK;
    for (uint32_t p = 0, done = 0; rc == OMEN_OK && p < pass_count; done += passes[p++].count) {
        c->queries = passes[p].queries;
        c->bounds = bounds + (size_t)done * DISK_CURVE_KS;
        c->recall = recall + (size_t)done * DISK_CURVE_KS;
        c->d->absent = passes[p].absent;
        rc = parallel_for(control, phase, passes[p].count, TRUTH_QUERIES, fn, c);
        c->d->absent = NULL;
    }
    return rc;
}

enum omen_err disk_calibrate(struct disk *d, const struct index_rows *rows, const struct disk_pass *passes,
        uint32_t pass_count, const struct index_control *control)
{
    struct disk_curve *curve = &d->curve;
    uint32_t queries = 0;
    for (uint32_t p = 0; p < pass_count; p++) queries += passes[p].count;
    size_t cells = (size_t)queries * DISK_CURVE_KS;
    struct calibration c = { .d = d, .rows = rows };
    float *bounds = mem_alloc(cells * sizeof(float)), *recall = mem_alloc(cells * sizeof(float));
    enum omen_err rc = bounds == NULL || recall == NULL ? OMEN_ENOMEM : OMEN_OK;
    if (rc == OMEN_OK) rc = passes_run(&c, passes, pass_count, bounds, recall, "truth", truth_range, control);
    bool enough = false;
    for (uint32_t i = 0; rc == OMEN_OK && !enough && i < DISK_CURVE_POINTS; i++) {
        c.slack_milli = slacks[i];
        rc = passes_run(&c, passes, pass_count, bounds, recall, "calibrate", recall_range, control);
        if (rc != OMEN_OK) break;
        curve->slack_milli[i] = slacks[i];
        enough = true;
        for (uint32_t j = 0; j < DISK_CURVE_KS; j++) {
            curve->recall[j][i] = careful_mean(recall, queries, j);
            if (i > 0) curve->recall[j][i] = fmaxf(curve->recall[j][i], curve->recall[j][i - 1]);
            enough = enough && curve->recall[j][i] >= RECALL_ENOUGH;
        }
        curve->points = i + 1;
    }
    curve->queries = queries;
    mem_free(bounds);
    mem_free(recall);
    return rc;
}
