/* Builds a sealed graph: codes, order, near neighbours by partition and multiplication, pruned links, packed
 * rows, leaders.
 *
 * Memory beside rows and finished graph: build_bytes(). Threads: control->threads; see parallel.h.
 * Determinism: not between thread counts (sealed_prune.c). */
#include <math.h>
#include <string.h>

#include "common/check.h"
#include "common/mem.h"
#include "storage/index/compact_build.h"
#include "storage/kernel/kernel.h"

#define SAMPLE_ROWS 4096 /* for mean and code step */

/* ---- the space: mean, step, losslessness ---- */

static bool row_is_bytes(const float *row, uint32_t dim)
{
    for (uint32_t i = 0; i < dim; i++)
        if (!(row[i] >= 0 && row[i] <= 255 && row[i] == (float)(int)row[i])) return false;
    return true;
}

#define REDUCE_SAMPLE 3072 /* rows that the components are trained on */
#define REDUCE_SAMPLE_FLOATS (12u << 20)
#define REDUCE_SHARE 0.92f      /* of the squared length: more components when fewer keep less */
#define REDUCE_SHARE_LEAST 0.5f /* rows that spread evenly in all directions stay as they are */

/* Fewest components, of two numbers that fill whole blocks of codes, that keep enough. */
static enum omen_err space_reduce(struct sealed *s, const struct index_control *control)
{
    static const uint32_t kept[] = { 127, SEALED_REDUCED_MAX };
    uint32_t dim = s->rows.dim,
             n = REDUCE_SAMPLE_FLOATS / dim < REDUCE_SAMPLE ? REDUCE_SAMPLE_FLOATS / dim : REDUCE_SAMPLE;
    if (n > s->count) n = s->count;
    if (dim < SEALED_REDUCE_DIM || n < 2 * SEALED_REDUCED_MAX) return OMEN_OK;
    float *sample = mem_alloc_aligned(64, (size_t)n * dim * sizeof(float));
    enum omen_err rc = sample == NULL ? OMEN_ENOMEM : OMEN_OK;
    for (size_t i = 0; rc == OMEN_OK && i < sizeof kept / sizeof kept[0]; i++) {
        for (uint32_t row = 0; row < n; row++)
            memcpy(sample + (size_t)row * dim, build_row(s, (uint32_t)((uint64_t)row * s->count / n)),
                    dim * sizeof(float));
        pca_free(&s->pca);
        if (control->progress != NULL)
            control->progress(control->arg, "reduce", i, sizeof kept / sizeof kept[0]);
        rc = pca_train(sample, n, dim, kept[i], s->rows.metric != METRIC_IP, s->seed, control->stop,
                control->arg, &s->pca);
        if (rc == OMEN_OK && s->pca.share >= REDUCE_SHARE) break;
    }
    if (rc == OMEN_OK && s->pca.share < REDUCE_SHARE_LEAST) pca_free(&s->pca);
    mem_free(sample);
    if (rc == OMEN_OK) rc = pca_coarsen(&s->pca);
    if (rc == OMEN_OK) sealed_dim_set(s, s->pca.kept);
    return rc;
}

static void space_measure(struct sealed *s)
{
    s->lossless = s->rows.metric == METRIC_L2 && s->pca.kept == 0;
    s->norm_max = 0;
    for (uint32_t slot = 0; slot < s->count; slot++) {
        if (s->lossless && !row_is_bytes(build_row(s, slot), s->rows.dim)) s->lossless = false;
        if (s->rows.metric == METRIC_IP)
            s->norm_max = fmaxf(s->norm_max,
                    kernel_get()->dot_f32(build_row(s, slot), build_row(s, slot), s->rows.dim));
    }
    uint32_t samples = s->count < SAMPLE_ROWS ? s->count : SAMPLE_ROWS;
    double sums[CODE_DIM_MAX] = { 0 };
    float v[CODE_DIM_MAX] __attribute__((aligned(64)));
    for (uint32_t i = 0; i < samples; i++) {
        sealed_internal(s, build_row(s, (uint32_t)((uint64_t)i * s->count / samples)), true, v);
        for (uint32_t j = 0; j < s->dim; j++) sums[j] += v[j];
    }
    for (uint32_t j = 0; j < s->dim; j++) s->mean[j] = samples == 0 ? 0 : (float)(sums[j] / samples);
}

static void step_measure(struct build *b)
{
    float v[CODE_DIM_MAX] __attribute__((aligned(64))), largest = 0;
    uint32_t samples = b->n < SAMPLE_ROWS ? b->n : SAMPLE_ROWS;
    for (uint32_t i = 0; i < samples; i++) {
        sealed_internal(b->s, build_row(b->s, (uint32_t)((uint64_t)i * b->n / samples)), true, v);
        sealed_rotate(b->s, v);
        for (uint32_t j = 0; j < b->padded; j++) largest = fmaxf(largest, fabsf(v[j]));
    }
    b->code_step = largest > 0 ? largest / CODE_TILE_MAX : 1;
    if (!(b->code_step >= 0x1p-126f)) b->code_step = 0x1p-126f;
}

static bool codes_range(void *arg, uint32_t thread, uint32_t first, uint32_t end)
{
    struct build *b = arg;
    float v[CODE_DIM_MAX] __attribute__((aligned(64))), inverse = 1 / b->code_step;
    (void)thread;
    for (uint32_t node = first; node < end; node++) {
        int8_t *code = b->codes + (size_t)node * b->padded;
        int32_t norm = 0, sum = 0;
        sealed_internal(b->s, build_row(b->s, b->order[node]), true, v);
        sealed_rotate(b->s, v);
        for (uint32_t j = 0; j < b->padded; j++) {
            float scaled = v[j] * inverse;
            int32_t c = (int32_t)(scaled + (scaled >= 0 ? 0.5f : -0.5f));
            c = scaled > CODE_TILE_MAX ? CODE_TILE_MAX : scaled < -CODE_TILE_MAX ? -CODE_TILE_MAX : c;
            code[j] = (int8_t)c;
            norm += c * c;
            sum += c;
        }
        b->norms[node] = norm;
        b->sums[node] = sum;
    }
    return true;
}

enum omen_err build_encode(struct build *b)
{
    return parallel_for(b->control, "encode", b->total, 1024, codes_range, b);
}

/* Nodes in an order of place: all that is known of them moves. The held-out ones stay at the end. */
static enum omen_err nodes_reorder(struct build *b)
{
    size_t mapped, total = b->total;
    uint32_t *from = mem_alloc(total * sizeof *from), *order = mem_alloc(total * sizeof *order);
    int32_t *norms = mem_alloc(total * sizeof *norms), *sums = mem_alloc(total * sizeof *sums);
    int8_t *codes = sealed_pages_new(total * b->padded, &mapped);
    enum omen_err rc = OMEN_ENOMEM;
    if (from != NULL && order != NULL && norms != NULL && sums != NULL && codes != NULL)
        rc = build_order(b, from);
    if (rc != OMEN_OK) {
        mem_free(order);
        mem_free(norms);
        mem_free(sums);
        sealed_pages_free(codes, mapped);
        mem_free(from);
        return rc;
    }
    for (uint32_t node = 0; node < b->total; node++) {
        uint32_t old = node < b->n ? from[node] : node;
        memcpy(codes + (size_t)node * b->padded, build_code(b, old), b->padded);
        order[node] = b->order[old];
        norms[node] = b->norms[old];
        sums[node] = b->sums[old];
    }
    sealed_pages_free(b->codes, b->codes_mapped);
    mem_free(b->norms);
    mem_free(b->sums);
    mem_free(b->order);
    mem_free(from);
    b->order = order;
    b->codes = codes;
    b->codes_mapped = mapped;
    b->norms = norms;
    b->sums = sums;
    return OMEN_OK;
}

/* Held-out slots lie evenly among all and go to the end. */
static void order_init(struct build *b)
{
    uint32_t linked = 0, held = b->n, next = 0;
    for (uint32_t slot = 0; slot < b->total; slot++) {
        uint32_t at = (uint32_t)((uint64_t)next * b->total / (b->held_out + 1)) +
                b->total / (b->held_out + 1) / 2;
        if (next < b->held_out && slot == at) {
            b->order[held++] = slot;
            next++;
        } else
            b->order[linked++] = slot;
    }
    CHECK(linked == b->n && held == b->total);
}

/* ---- the whole ---- */

static void build_fini(struct build *b)
{
    mem_free(b->order);
    sealed_pages_free(b->codes, b->codes_mapped);
    mem_free(b->norms);
    mem_free(b->sums);
    sealed_pages_free(b->lists, b->lists_mapped);
    mem_free(b->links);
    mem_free(b->degrees);
    mem_free(b->strict);
    mem_free(b->reverse);
    mem_free(b->reverse_counts);
    mem_free(b->locks);
}

static bool build_init(struct build *b)
{
    size_t n = b->total;
    b->order = mem_alloc(n * sizeof *b->order);
    b->codes = sealed_pages_new(n * b->padded, &b->codes_mapped);
    b->norms = mem_alloc(n * sizeof *b->norms);
    b->sums = mem_alloc(n * sizeof *b->sums);
    if (!b->merging) b->lists = sealed_pages_new(n * b->list_rows * sizeof *b->lists, &b->lists_mapped);
    b->links = mem_alloc(n * SEALED_DEGREE * sizeof *b->links);
    b->degrees = mem_calloc(n, 1);
    b->strict = mem_calloc(n, 1);
    b->reverse = mem_alloc(n * BUILD_REVERSE * sizeof *b->reverse);
    b->reverse_counts = mem_calloc(n, 1);
    b->locks = mem_calloc(BUILD_LOCKS, sizeof *b->locks);
    return b->order != NULL && b->codes != NULL && b->norms != NULL && b->sums != NULL &&
            (b->merging || b->lists != NULL) && b->links != NULL && b->degrees != NULL && b->strict != NULL &&
            b->reverse != NULL && b->reverse_counts != NULL && b->locks != NULL;
}

static enum omen_err build_run(struct build *b)
{
    enum omen_err rc = build_encode(b);
    if (rc == OMEN_OK) rc = nodes_reorder(b);
    if (rc == OMEN_OK) rc = build_multiply(b);
    if (rc == OMEN_OK) rc = build_prune(b);
    if (rc != OMEN_OK) return rc;
    sealed_pages_free(b->lists, b->lists_mapped);
    b->lists = NULL;
    return build_pack(b, true);
}

#define HELD_OUT 1000 /* rows kept back for calibration */
#define HELD_OUT_SHARE                                                                                       \
    40 /* at most every 40th: a segment of many inserted rows is not the one that was calibrated */
#define HELD_OUT_ROWS 2000 /* smaller segments are not calibrated: too few queries to say anything */

static uint32_t held_out_count(const struct index_params *params, uint32_t count)
{
    if (count < HELD_OUT_ROWS || params->held_out == UINT32_MAX) return 0;
    uint32_t held_out = params->held_out == 0 ? HELD_OUT : params->held_out;
    return held_out > count / HELD_OUT_SHARE ? count / HELD_OUT_SHARE : held_out;
}

/* Bytes of a row beside it and the finished graph at the worst moment: lists and rotated rows take turns. */
static uint64_t build_row_bytes(uint32_t padded, uint32_t list_bytes)
{
    uint64_t rotated = (uint64_t)padded * 2;
    uint64_t rest = padded + SEALED_DEGREE * 4 + BUILD_REVERSE * 4 +
            15; /* order, norms, sums, three counters */
    return rest + (list_bytes > rotated ? list_bytes : rotated);
}

/* The longest lists that the bound on memory has room for. */
static enum omen_err list_choose(struct build *b)
{
    uint64_t most = b->control->memory_bytes_max;
    for (b->list_rows = BUILD_LIST;; b->list_rows -= BUILD_LIST_STEP) {
        uint32_t bytes = b->merging ? BUILD_MERGE_BYTES : b->list_rows * (uint32_t)sizeof(struct build_near);
        uint64_t wanted = b->total * build_row_bytes(b->padded, bytes);
        if (most == 0 || wanted <= most) return OMEN_OK;
        b->refused_bytes = wanted;
        if (b->merging || b->list_rows <= BUILD_LIST_LEAST) return OMEN_ENOMEM;
    }
}

/* The layout that the parameters ask for, once D is known. */
static enum omen_err layout_choose(struct sealed *s, const struct index_params *params, struct err *err)
{
    if (!compact_wanted(params, s->padded)) {
        if (params->quant != INDEX_QUANT_NONE && params->quant != INDEX_QUANT_PRODUCT) return OMEN_OK;
        return err_set(err, OMEN_EINVAL, "quant", "the fast layout holds binary codes and 8-bit rows, not %s",
                index_quant_name(params->quant));
    }
    enum omen_err rc = compact_check(params, s->padded, err);
    if (rc != OMEN_OK) return rc;
    s->compact = compact_new();
    if (s->compact == NULL) return OMEN_ENOMEM;
    sealed_dim_set(s, s->pca.kept);
    return OMEN_OK;
}

static enum omen_err space_init(struct sealed *s, const struct index_params *params,
        const struct index_control *control, struct err *err)
{
    s->recall_target = params->recall_target > 0 ? params->recall_target : 0.95f;
    s->seed = params->seed;
    enum omen_err rc = space_reduce(s, control);
    if (rc == OMEN_OK) rc = layout_choose(s, params, err);
    if (rc != OMEN_OK) return rc;
    rotation_init(&s->rotation, s->dim, s->seed);
    s->mean = mem_calloc(s->padded, sizeof(float));
    if (s->mean == NULL) return OMEN_ENOMEM;
    if (s->count > 0) space_measure(s);
    if (s->compact != NULL) s->lossless = false;
    return OMEN_OK;
}

enum omen_err build_begin(struct build *b, const struct index_rows *rows, const struct index_params *params,
        const struct index_control *control, struct err *err)
{
    *b = (struct build){ .s = sealed_new(rows), .params = params, .control = control };
    struct sealed *s = b->s;
    if (s == NULL) return OMEN_ENOMEM;
    enum omen_err rc = space_init(s, params, control, err);
    if (rc != OMEN_OK) return rc;
    b->held_out = held_out_count(params, s->count);
    b->total = s->count;
    b->n = s->count - b->held_out;
    b->padded = s->padded;
    b->threads = parallel_threads(control);
    /* A row of the fast layout estimates all places anyway. */
    b->fill_to = s->compact == NULL || s->dim <= COMPACT_FULL_DIM ? SEALED_DEGREE : COMPACT_DEGREE_LEAST;
    return OMEN_OK;
}

enum omen_err build_rows(struct build *b, bool merging)
{
    b->merging = merging;
    enum omen_err rc = list_choose(b);
    if (rc != OMEN_OK) return rc;
    b->refused_bytes = 0;
    if (!build_init(b)) return OMEN_ENOMEM;
    step_measure(b);
    order_init(b);
    return OMEN_OK;
}

enum omen_err build_end(struct build *b, enum omen_err rc, struct index **index_out, struct err *err)
{
    build_fini(b);
    if (rc == OMEN_OK) {
        *index_out = &b->s->base;
        return OMEN_OK;
    }
    if (b->s != NULL) sealed_free(&b->s->base);
    if (rc == OMEN_EINVAL) return rc; /* who found it said what is wrong */
    if (b->refused_bytes != 0)
        return err_set(err, rc, "memory_bytes_max", "the build takes %llu bytes",
                (unsigned long long)b->refused_bytes);
    return err_set(err, rc, NULL,
            rc == OMEN_ECANCELED ? "the build was cancelled" : "no memory to build the index");
}

enum omen_err index_sealed_build(const struct index_rows *rows, const struct index_params *params,
        const struct index_control *control, struct index **index_out, struct err *err)
{
    struct build b;
    enum omen_err rc = build_begin(&b, rows, params, control, err);
    if (rc == OMEN_OK && rows->count > 0) rc = build_rows(&b, false);
    if (rc == OMEN_OK && rows->count > 0) rc = build_run(&b);
    return build_end(&b, rc, index_out, err);
}
