/* Calibration of the mutable HNSW: recall as a function of effort, on rows kept back from the build and inserted
 * afterwards (a row already linked finds itself and its neighbours too easily).
 *
 * A hit counts when its distance is at most the k-th true one times (1 + 1e-5). The curve keeps the mean less 1.65
 * standard errors. It describes the rows of the build; points inserted and removed later follow it as long as they are
 * of the same kind.
 * Threads: control->threads for the truth, one for the searches. Determinism: follows from the graph. */
#include "storage/index/hnsw_impl.h"

#include <math.h>

#include "storage/index/index_impl.h"
#include "storage/index/parallel.h"

#define HELD_OUT_DEFAULT 1000
#define HELD_OUT_SHARE 20 /* at most a row in this many */
#define HELD_OUT_MIN 50   /* fewer say nothing */
#define TRUTH_QUERIES 32  /* that share a pass over the rows */
#define TRUTH_TILE 512    /* rows */
#define K_MAX 100
#define TIE 1e-5f
#define CONFIDENCE 1.65
#define EFFORT_DEAR 128 /* from here on recall is nearly 1 and its spread small: every fourth row will do, */
#define DEAR_EVERY 4
#define EFFORT_LAST 448 /* from here on every eighth, */
#define LAST_EVERY 8
#define QUERIES_LEAST 100     /* but never fewer than these */
#define RECALL_ENOUGH 0.9995f /* for one k: higher efforts are not tried */

static const uint32_t curve_k[HNSW_CURVE_KS] = { 1, 10, 100 };
static const uint32_t efforts[HNSW_CURVE_POINTS] = { 10, 14, 18, 24, 32, 40, 48, 56, 64, 80, 100, 128, 160,
    200, 256, 320, 448, 640, 1024, 2048 };

uint32_t hnsw_held_out_every(const struct index_rows *rows, const struct index_params *params)
{
    uint64_t wanted = params->held_out == 0 ? HELD_OUT_DEFAULT : params->held_out;
    if (params->held_out == UINT32_MAX) return 0;
    if (wanted > rows->count / HELD_OUT_SHARE) wanted = rows->count / HELD_OUT_SHARE;
    return wanted < HELD_OUT_MIN ? 0 : (uint32_t)(rows->count / wanted);
}

struct calibration {
    struct hnsw *h;
    const struct index_rows *rows;
    uint32_t every, count; /* held-out rows are every, 2 * every, ... less one */
    float *bounds;         /* [count][HNSW_CURVE_KS] */
};

static const float *held_out_row(const struct calibration *c, uint32_t i)
{
    return c->rows->data + ((size_t)(i + 1) * c->every - 1) * c->rows->stride_floats;
}

static void truth_tile(const struct calibration *c, const float *queries, uint32_t count, uint32_t from,
        float *distances, struct index_heap *heaps)
{
    const struct kernel *kernel = c->h->kernel;
    uint32_t dim = c->rows->dim, n = c->rows->count - from < TRUTH_TILE ? c->rows->count - from : TRUTH_TILE;
    size_t stride = c->rows->stride_floats;
    (c->rows->metric == METRIC_L2 ? kernel->l2sq_f32_block : kernel->negdot_f32_block)(queries, dim, count,
            c->rows->data + from * stride, stride, n, dim, distances);
    for (uint32_t q = 0; q < count; q++) {
        for (uint32_t i = 0; i < n; i++) {
            float d = distances[(size_t)q * n + i];
            if (d < index_heap_bound(&heaps[q]) && (from + i + 1) % c->every != 0)
                index_heap_push(&heaps[q], (struct index_hit){ d, from + i });
        }
    }
}

static bool truth_range(void *arg, uint32_t thread, uint32_t first, uint32_t end)
{
    struct calibration *c = arg;
    uint32_t dim = c->rows->dim, count = end - first;
    struct index_heap heaps[TRUTH_QUERIES];
    float *queries = mem_alloc_aligned(64, (size_t)count * dim * sizeof *queries);
    float *distances = mem_alloc_aligned(64, (size_t)count * TRUTH_TILE * sizeof *distances);
    struct index_hit *hits = mem_alloc((size_t)count * K_MAX * sizeof *hits);
    bool ok = queries != NULL && distances != NULL && hits != NULL;
    for (uint32_t q = 0; ok && q < count; q++) {
        memcpy(queries + (size_t)q * dim, held_out_row(c, first + q), dim * sizeof *queries);
        heaps[q] = (struct index_heap){ hits + (size_t)q * K_MAX, K_MAX, 0 };
    }
    for (uint32_t from = 0; ok && from < c->rows->count; from += TRUTH_TILE)
        truth_tile(c, queries, count, from, distances, heaps);
    for (uint32_t q = 0; ok && q < count; q++) {
        index_heap_sort(&heaps[q]);
        for (uint32_t j = 0; j < HNSW_CURVE_KS; j++) {
            float d = heaps[q].hits[curve_k[j] - 1].distance;
            c->bounds[(size_t)(first + q) * HNSW_CURVE_KS + j] = d + fabsf(d) * TIE;
        }
    }
    mem_free(queries);
    mem_free(distances);
    mem_free(hits);
    return ok;
}

/* Sums of one effort's recall over the held-out rows, for each k. */
struct sums {
    double recall[HNSW_CURVE_KS], squares[HNSW_CURVE_KS], count;
};

/* Curves first .. end - 1, whose searches at this effort are one walk: no k is above it but where there is one k. */
static enum omen_err measure(const struct calibration *c, uint32_t effort, uint32_t first, uint32_t end,
        struct index_scratch *scratch, struct sums *sums)
{
    struct index_hit hits[HNSW_CURVE_KS][K_MAX];
    uint32_t every = effort >= EFFORT_LAST ? LAST_EVERY : effort >= EFFORT_DEAR ? DEAR_EVERY : 1;
    while (every > 1 && c->count / every < QUERIES_LEAST) every--;
    *sums = (struct sums){ .count = 0 };
    for (uint32_t i = 0; i < c->count; i += every, sums->count++) {
        struct index_search s = { .query = held_out_row(c, i), .effort = effort };
        uint32_t counts[HNSW_CURVE_KS];
        enum omen_err rc = hnsw_search_ks(c->h, &s, curve_k + first, end - first, scratch, hits[0], K_MAX,
                counts);
        if (rc != OMEN_OK) return rc;
        for (uint32_t j = first; j < end; j++) {
            uint32_t near = 0;
            for (uint32_t x = 0; x < counts[j - first]; x++)
                near += hits[j - first][x].distance <= c->bounds[(size_t)i * HNSW_CURVE_KS + j];
            double recall = (double)near / curve_k[j];
            sums->recall[j] += recall;
            sums->squares[j] += recall * recall;
        }
    }
    return OMEN_OK;
}

/* Mean recall, less the allowance for chance. */
static float careful_mean(const struct sums *sums, uint32_t j)
{
    double mean = sums->recall[j] / sums->count, variance = sums->squares[j] / sums->count - mean * mean;
    return (float)(mean - CONFIDENCE * sqrt((variance > 0 ? variance : 0) / sums->count));
}

/* Point p of all curves. An effort below k is k: the point before it says the same. What was good enough stays so. */
static enum omen_err point(const struct calibration *c, uint32_t p, struct index_scratch *scratch,
        struct hnsw_curve *curve)
{
    struct sums sums;
    enum omen_err rc = OMEN_OK;
    uint32_t first = 0, end = 0;
    while (end < HNSW_CURVE_KS && curve_k[end] <= efforts[p]) end++;
    while (p > 0 && first < end && curve->recall[first][p - 1] >= RECALL_ENOUGH) first++;
    for (uint32_t j = 0; p > 0 && j < HNSW_CURVE_KS; j++) curve->recall[j][p] = curve->recall[j][p - 1];
    if (first < end) rc = measure(c, efforts[p], first, end, scratch, &sums);
    for (uint32_t j = first; rc == OMEN_OK && j < end; j++) curve->recall[j][p] = careful_mean(&sums, j);
    for (uint32_t j = end; rc == OMEN_OK && p == 0 && j < HNSW_CURVE_KS; j++) {
        rc = measure(c, curve_k[j], j, j + 1, scratch, &sums);
        if (rc == OMEN_OK) curve->recall[j][0] = careful_mean(&sums, j);
    }
    return rc;
}

enum omen_err hnsw_calibrate(struct hnsw *h, const struct index_rows *rows, uint32_t every,
        const struct index_control *control)
{
    struct calibration c = { h, rows, every, rows->count / every, NULL };
    struct hnsw_curve curve = { 0 };
    struct index_scratch *scratch = hnsw_scratch_new(&h->index);
    c.bounds = mem_alloc((size_t)c.count * HNSW_CURVE_KS * sizeof *c.bounds);
    enum omen_err rc = scratch == NULL || c.bounds == NULL ? OMEN_ENOMEM : OMEN_OK;
    if (rc == OMEN_OK) rc = parallel_for(control, "calibrate", c.count, TRUTH_QUERIES, truth_range, &c);
    for (uint32_t p = 0; rc == OMEN_OK && p < HNSW_CURVE_POINTS; p++) {
        bool enough = true;
        rc = point(&c, p, scratch, &curve);
        for (uint32_t j = 0; j < HNSW_CURVE_KS; j++) enough = enough && curve.recall[j][p] >= RECALL_ENOUGH;
        curve.points = p + 1;
        if (control->stop != NULL && control->stop(control->arg)) rc = OMEN_ECANCELED;
        if (enough) break;
    }
    if (rc == OMEN_OK) h->curve = curve;
    hnsw_scratch_free(scratch);
    mem_free(c.bounds);
    return rc;
}

uint32_t hnsw_effort_for(const struct hnsw *h, uint32_t k, float target)
{
    const struct hnsw_curve *curve = &h->curve;
    if (target == 0) target = h->recall_target;
    uint32_t j = k == 1 ? 0 : k <= 10 ? 1 : 2, p = 0;
    const float *recall = curve->recall[j];
    if (curve->points == 0) return HNSW_EFFORT_DEFAULT > 2 * k ? HNSW_EFFORT_DEFAULT : 2 * k;
    while (p + 1 < curve->points && recall[p] < target) p++;
    float effort = (float)efforts[p];
    if (p > 0 && recall[p] >= target && recall[p] > recall[p - 1]) {
        float share = (recall[p] - target) / (recall[p] - recall[p - 1]);
        effort -= share * (float)(efforts[p] - efforts[p - 1]);
    }
    if (k > K_MAX) effort *= (float)k / K_MAX;
    effort = ceilf(effort);
    return effort < INDEX_EFFORT_MAX ? (uint32_t)effort : INDEX_EFFORT_MAX;
}
