/* Calibration of a sealed graph: recall as a function of effort on rows that are not in it yet.
 *
 * Rows that are already linked would lie as queries (0.955 measured where real ones got 0.847), so about
 * 1,000 rows are kept back, searched for, and inserted afterwards. Their true neighbours come from one exact
 * scan with queries in blocks. A hit counts when its distance is at most the k-th true one times (1 + 1e-5).
 * The curve keeps recall less 1.65 standard errors, so that unseen queries reach the target with 95 %
 * confidence. Threads: control->threads. Determinism: follows from the graph. */
#include <math.h>
#include <string.h>

#include "common/mem.h"
#include "storage/index/sealed_build.h"
#include "storage/index/sealed_filter.h"
#include "storage/kernel/kernel.h"

#define TRUTH_K 100
#define TRUTH_TILE 512   /* rows */
#define TRUTH_QUERIES 32 /* that share a tile */
#define TIE 1e-5f
#define CONFIDENCE 1.65
#define RECALL_ENOUGH 0.998 /* of the largest k: higher efforts are not tried */

static const uint32_t curve_k[SEALED_CURVE_KS] = { 1, 10, 100 };
static const uint32_t efforts[] = { 10, 16, 24, 32, 48, 64, 96, 144, 216, 320, 512, 1024, 2048 };
#define EFFORTS (sizeof efforts / sizeof efforts[0])
static_assert(EFFORTS <= SEALED_CURVE_POINTS, "a curve holds all efforts");
/* Slacks of the stop rule less 1, times a scale: distances of some spaces (inner products) lie all close together,
 * and there the scale is smaller. */
static const float slacks[] = { -.2f, -.1f, -.05f, 0, .03f, .06f, .09f, .12f, .16f, .2f, .27f, .4f, .6f, 1 };
#define SLACKS (sizeof slacks / sizeof slacks[0])
static_assert(SLACKS <= SEALED_CURVE_POINTS, "a curve holds all slacks");
#define SLACK_SCALES 5     /* 1, 1/4, 1/16 ... */
#define SLACK_PROBE 5      /* a scale is small enough when this slack does not yet find nearly all */
#define SLACK_PROBED 0.99f /* recall for k = 10 */
#define SLACK_DECAY 0.015f /* of a scale of 1: .02 and .03 did as well, .07 worse */
#define BELOW 0.8f
/* From this effort on, where nearly all queries find nearly all, and for k = 100, whose recall differs less from query
 * to query, a share of the queries tells enough: calibration was half of building 50,000 rows. */
#define EFFORT_DEAR 144
#define QUERIES_DEAR 4 /* every so many */
#define QUERIES_100 2
#define QUERIES_LEAST 250 /* never fewer of them than this */

struct calibration {
    struct build *b;
    float *bounds; /* [held_out][SEALED_CURVE_KS] */
    float *recall; /* [held_out][SEALED_CURVE_KS] of the effort at hand */
    struct sealed_pace pace;
    uint32_t row_first, row_end; /* of the curves that the walks at hand are for; k is the last one's */
    uint32_t queries, one_in;    /* how many walk now: every so many of the held-out ones */
};

static const float *node_row(const struct build *b, uint32_t node)
{
    return b->s->rows.data + (size_t)b->order[node] * b->s->rows.stride_floats;
}

/* The true neighbours are found among linked rows only: held-out slots are passed over. */
struct truth {
    float *queries, *rows, *distances;
    struct index_hit *hits; /* [TRUTH_QUERIES][TRUTH_K] */
};

static void truth_block(struct calibration *c, struct truth *t, uint32_t first, uint32_t count)
{
    struct build *b = c->b;
    uint32_t dim = b->s->rows.dim;
    const struct kernel *kernel = kernel_get();
    struct index_heap heaps[TRUTH_QUERIES];
    for (uint32_t q = 0; q < count; q++) {
        memcpy(t->queries + (size_t)q * dim, node_row(b, b->n + first + q), dim * sizeof(float));
        heaps[q] = (struct index_heap){ t->hits + (size_t)q * TRUTH_K, TRUTH_K, 0 };
    }
    for (uint32_t at = 0; at < b->n; at += TRUTH_TILE) {
        uint32_t n = b->n - at < TRUTH_TILE ? b->n - at : TRUTH_TILE;
        for (uint32_t i = 0; i < n; i++)
            memcpy(t->rows + (size_t)i * dim, node_row(b, at + i), dim * sizeof(float));
        (b->s->rows.metric == METRIC_L2 ? kernel->l2sq_f32_block : kernel->negdot_f32_block)(t->queries, dim,
                count, t->rows, dim, n, dim, t->distances);
        for (uint32_t q = 0; q < count; q++) {
            for (uint32_t i = 0; i < n; i++) {
                float d = t->distances[(size_t)q * n + i];
                if (d < index_heap_bound(&heaps[q]))
                    index_heap_push(&heaps[q], (struct index_hit){ d, at + i });
            }
        }
    }
    for (uint32_t q = 0; q < count; q++) {
        index_heap_sort(&heaps[q]);
        for (uint32_t j = 0; j < SEALED_CURVE_KS; j++) {
            float d = heaps[q].hits[curve_k[j] - 1].distance;
            c->bounds[(size_t)(first + q) * SEALED_CURVE_KS + j] = d + fabsf(d) * TIE;
        }
    }
}

static bool truth_range(void *arg, uint32_t thread, uint32_t first, uint32_t end)
{
    struct calibration *c = arg;
    uint32_t dim = c->b->s->rows.dim;
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

/* What one thread searches with. */
struct searcher {
    struct index_scratch *scratch;
    struct index_hit *visited, *copy; /* [want of the largest k] */
    struct index_hit answer[TRUTH_K];
};

/* One query at the effort at hand: share of the true neighbours that a search for each k would return. */
static enum omen_err recall_of(struct calibration *c, uint32_t query, struct searcher *own)
{
    const struct sealed *s = c->b->s;
    uint32_t k = curve_k[c->row_end - 1], want = sealed_want(s, k, c->pace.effort), found = 0;
    struct index_search search = { .query = node_row(c->b, c->b->n + query), .k = k };
    struct index_cost cost = { 0 };
    enum omen_err rc = sealed_walk(s, &search, c->pace, want, own->scratch, own->visited, &found, &cost);
    if (rc != OMEN_OK) return rc;
    uint32_t looked = c->pace.slack != INFINITY ? (uint32_t)cost.hops : c->pace.effort;
    for (uint32_t j = c->row_first; j < c->row_end; j++) {
        float bound = c->bounds[(size_t)query * SEALED_CURVE_KS + j];
        uint32_t count = sealed_want(s, curve_k[j], looked), answers, near = 0;
        if (count > found) count = found;
        memcpy(own->copy, own->visited, count * sizeof *own->copy);
        search.k = curve_k[j];
        sealed_finish(s, &search, own->scratch->stretch, own->copy, count, own->answer, &answers, &cost);
        for (uint32_t i = 0; i < answers; i++) near += own->answer[i].distance <= bound;
        c->recall[(size_t)query * SEALED_CURVE_KS + j] = (float)near / (float)curve_k[j];
    }
    return OMEN_OK;
}

static bool recall_range(void *arg, uint32_t thread, uint32_t first, uint32_t end)
{
    struct calibration *c = arg;
    uint32_t want = sealed_want(c->b->s, TRUTH_K, c->pace.effort);
    struct searcher *own = mem_alloc(sizeof *own);
    (void)thread;
    if (own == NULL) return false;
    own->scratch = index_scratch_new(&c->b->s->base);
    own->visited = mem_alloc(want * sizeof *own->visited);
    own->copy = mem_alloc(want * sizeof *own->copy);
    bool fine = own->scratch != NULL && own->visited != NULL && own->copy != NULL;
    for (uint32_t i = first; fine && i < end; i++) fine = recall_of(c, i * c->one_in, own) == OMEN_OK;
    index_scratch_free(&c->b->s->base, own->scratch);
    mem_free(own->visited);
    mem_free(own->copy);
    mem_free(own);
    return fine;
}

static float careful_mean(const struct calibration *c, uint32_t j)
{
    double sum = 0, squares = 0, n = c->queries;
    for (uint32_t i = 0; i < c->queries; i++) {
        uint32_t q = i * c->one_in;
        double r = c->recall[(size_t)q * SEALED_CURVE_KS + j];
        sum += r;
        squares += r * r;
    }
    double mean = sum / n, variance = squares / n - mean * mean;
    return (float)(mean - CONFIDENCE * sqrt((variance > 0 ? variance : 0) / n));
}

static float below_share(const struct calibration *c, uint32_t j)
{
    uint32_t below = 0;
    for (uint32_t i = 0; i < c->queries; i++)
        below += c->recall[(size_t)i * c->one_in * SEALED_CURVE_KS + j] < BELOW;
    return (float)below / (float)c->queries;
}

static enum omen_err walks_run(struct calibration *c, struct sealed_pace pace, uint32_t row_first,
        uint32_t row_end, uint32_t one_in)
{
    while (one_in > 1 && c->b->held_out / one_in < QUERIES_LEAST) one_in--;
    c->one_in = one_in;
    c->queries = (c->b->held_out + one_in - 1) / one_in;
    c->pace = pace;
    if (c->pace.effort > c->b->n) c->pace.effort = c->b->n;
    c->row_first = row_first;
    c->row_end = row_end;
    return parallel_for(c->b->control, "calibrate", c->queries, 32, recall_range, c);
}

/* By the width of the pool, one walk for all k. */
static enum omen_err calibrate_efforts(struct calibration *c)
{
    struct sealed_curve *curve = &c->b->s->curve;
    for (uint32_t i = 0; i < EFFORTS && efforts[i] < c->b->n; i++) {
        enum omen_err rc = walks_run(c, (struct sealed_pace){ efforts[i], INFINITY, 0 }, 0, SEALED_CURVE_KS,
                efforts[i] < EFFORT_DEAR ? 1 : QUERIES_DEAR);
        if (rc != OMEN_OK) return rc;
        curve->effort[i] = efforts[i];
        for (uint32_t j = 0; j < SEALED_CURVE_KS; j++) /* noise: it never falls */
            curve->recall[j][i] = fmaxf(careful_mean(c, j), i > 0 ? curve->recall[j][i - 1] : -1);
        curve->points = i + 1;
        if (curve->recall[SEALED_CURVE_KS - 1][i] >= RECALL_ENOUGH) break;
    }
    return OMEN_OK;
}

static enum omen_err slack_scale(struct calibration *c, float *scale_out)
{
    *scale_out = 1;
    for (uint32_t i = 0; i + 1 < SLACK_SCALES; i++) {
        struct sealed_pace pace = { SEALED_RULE_EFFORT, 1 + slacks[SLACK_PROBE] * *scale_out, 0 };
        enum omen_err rc = walks_run(c, pace, 0, 2, 1);
        if (rc != OMEN_OK || careful_mean(c, 1) < SLACK_PROBED) return rc;
        *scale_out /= 4;
    }
    return OMEN_OK;
}

/* One point of the curves row_first .. row_end - 1; those that have all they need stay as they are. */
static enum omen_err slack_point(struct calibration *c, struct sealed_pace pace, uint32_t i,
        uint32_t row_first, uint32_t row_end, uint32_t one_in)
{
    struct sealed_curve *curve = &c->b->s->curve;
    float before = 1;
    for (uint32_t j = row_first; j < row_end; j++)
        before = fminf(before, i > 0 ? curve->slack_recall[j][i - 1] : 0);
    enum omen_err rc = before >= RECALL_ENOUGH ? OMEN_OK : walks_run(c, pace, row_first, row_end, one_in);
    for (uint32_t j = row_first; rc == OMEN_OK && j < row_end; j++) { /* noise: recall never falls */
        float recall = i > 0 ? curve->slack_recall[j][i - 1] : -1,
              below = i > 0 ? curve->slack_below[j][i - 1] : 1;
        bool enough = before >= RECALL_ENOUGH;
        curve->slack_recall[j][i] = enough ? recall : fmaxf(careful_mean(c, j), recall);
        curve->slack_below[j][i] = enough ? below : fminf(below_share(c, j), below);
    }
    return rc;
}

/* By the slack of the stop rule; k = 1 and 10 look at the same distance and share a walk. */
static enum omen_err calibrate_slacks(struct calibration *c)
{
    struct sealed_curve *curve = &c->b->s->curve;
    float scale;
    enum omen_err rc = slack_scale(c, &scale);
    if (rc == OMEN_OK && c->b->s->compact == NULL) curve->decay = SLACK_DECAY * scale;
    for (uint32_t i = 0; rc == OMEN_OK && i < SLACKS; i++) {
        struct sealed_pace pace = { SEALED_RULE_EFFORT, 1 + slacks[i] * scale, curve->decay };
        curve->slack[i] = pace.slack;
        rc = slack_point(c, pace, i, 0, 2, 1);
        if (rc == OMEN_OK) rc = slack_point(c, pace, i, 2, SEALED_CURVE_KS, QUERIES_100);
        if (rc != OMEN_OK) break;
        curve->slack_points = i + 1;
        float least = 1;
        for (uint32_t j = 0; j < SEALED_CURVE_KS; j++) least = fminf(least, curve->slack_recall[j][i]);
        if (least >= RECALL_ENOUGH) break;
    }
    return rc;
}

enum omen_err build_calibrate(struct build *b)
{
    size_t cells = (size_t)b->held_out * SEALED_CURVE_KS;
    struct calibration c = { .b = b,
        .bounds = mem_alloc(cells * sizeof(float)),
        .recall = mem_alloc(cells * sizeof(float)) };
    enum omen_err rc = c.bounds == NULL || c.recall == NULL ? OMEN_ENOMEM : OMEN_OK;
    if (rc == OMEN_OK) rc = parallel_for(b->control, "truth", b->held_out, TRUTH_QUERIES, truth_range, &c);
    if (rc == OMEN_OK) rc = calibrate_efforts(&c);
    if (rc == OMEN_OK) rc = calibrate_slacks(&c);
    b->s->curve.queries = b->held_out;
    mem_free(c.bounds);
    mem_free(c.recall);
    return rc;
}
