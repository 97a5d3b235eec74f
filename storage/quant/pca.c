/* Principal components by subspace iteration; see pca.h. Threads: no state. */
#include "storage/quant/pca.h"

#include <math.h>
#include <string.h>

#include "common/check.h"
#include "common/mem.h"
#include "common/query/point.h"
#include "storage/kernel/code.h"
#include "storage/quant/rotation.h"

#define TOO_SHORT 1e-4f /* of a direction after what it shares with earlier ones is taken off: noise */

/* Memory of a training run. */
struct training {
    float *rows;    /* [count][dim], the caller's */
    float *columns; /* [dim][count]: the same, transposed */
    float *scores;  /* [kept][count]: products of directions and rows, negated */
    uint32_t count, dim, kept;
};

static float direction_random(uint64_t seed, uint32_t i, uint32_t j)
{
    return (float)(rotation_random(seed, (uint64_t)i << 32 | j) >> 40) * 0x1p-23f - 1;
}

static void scale(float *v, uint32_t dim, float factor)
{
    for (uint32_t j = 0; j < dim; j++) v[j] *= factor;
}

/* Take off what row i shares with the rows before it, twice, because once leaves a rest of rounding; its length
 * now against before. */
static float direction_clear(float *basis, uint32_t i, uint32_t dim)
{
    const struct kernel *kernel = kernel_get();
    float *row = basis + (size_t)i * dim, before = sqrtf(kernel->dot_f32(row, row, dim));
    for (int twice = 0; twice < 2; twice++) {
        for (uint32_t k = 0; k < i; k++) {
            const float *other = basis + (size_t)k * dim;
            float shared = kernel->dot_f32(row, other, dim);
            for (uint32_t j = 0; j < dim; j++) row[j] -= shared * other[j];
        }
    }
    float after = sqrtf(kernel->dot_f32(row, row, dim));
    return before > 0 ? after / before : 0;
}

/* Rows to an orthonormal set. A direction that the others span already (a sample of lower rank) is replaced by a
 * random one. */
static void orthonormalise(float *basis, uint32_t kept, uint32_t dim, uint64_t seed)
{
    for (uint32_t i = 0; i < kept; i++) {
        float *row = basis + (size_t)i * dim, largest = 0;
        for (uint32_t j = 0; j < dim; j++) largest = fmaxf(largest, fabsf(row[j]));
        bool fine = largest >= 0x1p-100f && largest <= 0x1p100f;
        if (fine) scale(row, dim, 1 / largest);
        for (uint32_t attempt = 0; !fine || direction_clear(basis, i, dim) < TOO_SHORT; attempt++) {
            for (uint32_t j = 0; j < dim; j++) row[j] = direction_random(seed + attempt + 1, i, j);
            fine = true;
        }
        scale(row, dim, 1 / sqrtf(kernel_get()->dot_f32(row, row, dim)));
    }
}

static void centre(struct training *t, float *mean)
{
    for (uint32_t j = 0; j < t->dim; j++) {
        double sum = 0;
        for (uint32_t i = 0; i < t->count; i++) sum += t->rows[(size_t)i * t->dim + j];
        mean[j] = (float)(sum / t->count);
    }
    for (uint32_t i = 0; i < t->count; i++)
        for (uint32_t j = 0; j < t->dim; j++) t->rows[(size_t)i * t->dim + j] -= mean[j];
}

/* Scores of the directions as they are, and the share of the squared length that they keep. */
static float score(struct training *t, const float *basis)
{
    kernel_get()->negdot_f32_block(basis, t->dim, t->kept, t->rows, t->dim, t->count, t->dim, t->scores);
    double kept = 0, whole = 0;
    for (size_t i = 0; i < (size_t)t->kept * t->count; i++) kept += (double)t->scores[i] * t->scores[i];
    for (size_t i = 0; i < (size_t)t->count * t->dim; i++) whole += (double)t->rows[i] * t->rows[i];
    return whole > 0 ? (float)fmin(kept / whole, 1) : 1;
}

static enum omen_err iterate(struct training *t, uint64_t seed, bool (*stop)(void *arg), void *stop_arg,
        struct pca *pca)
{
    for (uint32_t i = 0; i < t->kept; i++)
        for (uint32_t j = 0; j < t->dim; j++)
            pca->basis[(size_t)i * t->dim + j] = direction_random(seed, i, j);
    orthonormalise(pca->basis, t->kept, t->dim, seed);
    for (uint32_t i = 0; i < t->count; i++)
        for (uint32_t j = 0; j < t->dim; j++)
            t->columns[(size_t)j * t->count + i] = t->rows[(size_t)i * t->dim + j];
    for (uint32_t round = 0; round < PCA_ROUNDS; round++) {
        if (stop != NULL && stop(stop_arg)) return OMEN_ECANCELED;
        (void)score(t, pca->basis);
        kernel_get()->negdot_f32_block(t->scores, t->count, t->kept, t->columns, t->count, t->dim, t->count,
                pca->basis);
        orthonormalise(pca->basis, t->kept, t->dim, seed);
    }
    pca->share = score(t, pca->basis);
    return OMEN_OK;
}

enum omen_err pca_train(float *sample, uint32_t count, uint32_t dim, uint32_t kept, bool centred,
        uint64_t seed, bool (*stop)(void *arg), void *stop_arg, struct pca *pca_out)
{
    CHECK(count > 0 && kept > 0 && kept <= dim);
    struct training t = { .rows = sample, .count = count, .dim = dim, .kept = kept };
    *pca_out = (struct pca){ .dim = dim, .kept = kept };
    pca_out->mean = mem_calloc(dim, sizeof(float));
    pca_out->basis = mem_alloc_aligned(64, (size_t)kept * dim * sizeof(float));
    t.columns = mem_alloc_aligned(64, (size_t)count * dim * sizeof(float));
    t.scores = mem_alloc_aligned(64, (size_t)count * kept * sizeof(float));
    enum omen_err rc = pca_out->mean == NULL || pca_out->basis == NULL || t.columns == NULL ||
                    t.scores == NULL
            ? OMEN_ENOMEM
            : OMEN_OK;
    if (rc == OMEN_OK) {
        if (centred) centre(&t, pca_out->mean);
        rc = iterate(&t, seed, stop, stop_arg, pca_out);
    }
    mem_free(t.columns);
    mem_free(t.scores);
    if (rc != OMEN_OK) pca_free(pca_out);
    return rc;
}

/* ---- the coarse form ---- */

#define COARSE_ERROR_MAX                                                                                     \
    2e-3f /* squared, of a direction of length 1: few components that tower over the rest */

static uint32_t coarse_dim(const struct pca *pca) { return (pca->dim + 31) / 32 * 32; }
/* Places, at least one of them empty: what a query gives there is what the offset of the codes adds everywhere. */
static uint32_t coarse_places(const struct pca *pca)
{
    return (pca->kept + 1 + CODE_TILE_ROWS - 1) / CODE_TILE_ROWS * CODE_TILE_ROWS;
}
#define COARSE_PLACES_MAX 288

/* One direction as codes [coarse_dim]; the squared length of what they miss. */
static float direction_code(const struct pca *pca, uint32_t i, int8_t *codes)
{
    const float *row = pca->basis + (size_t)i * pca->dim;
    float largest = 0, missed = 0;
    for (uint32_t j = 0; j < pca->dim; j++) {
        if (!isfinite(row[j])) return INFINITY; /* read from a file */
        largest = fmaxf(largest, fabsf(row[j]));
    }
    float step = largest / CODE_TILE_MAX, inverse = 1 / step;
    if (!isfinite(inverse)) return INFINITY;
    pca->coarse_scale[i] = step;
    for (uint32_t j = 0; j < pca->dim; j++) {
        codes[j] = (int8_t)rintf(row[j] * inverse);
        missed += (row[j] - (float)codes[j] * step) * (row[j] - (float)codes[j] * step);
    }
    return missed;
}

static void coarse_drop(struct pca *pca)
{
    mem_free(pca->coarse);
    mem_free(pca->coarse_scale);
    pca->coarse = NULL;
    pca->coarse_scale = NULL;
}

enum omen_err pca_coarsen(struct pca *pca)
{
    coarse_drop(pca);
    if (pca->kept == 0) return OMEN_OK;
    uint32_t dim = coarse_dim(pca), places = coarse_places(pca);
    int8_t *codes = mem_calloc((size_t)CODE_TILE_ROWS, dim);
    pca->coarse = mem_alloc_aligned(64, (size_t)places * dim);
    pca->coarse_scale = mem_calloc(places, sizeof(float));
    bool fine = codes != NULL && pca->coarse != NULL && pca->coarse_scale != NULL;
    float worst = 0;
    for (uint32_t first = 0; fine && first < places; first += CODE_TILE_ROWS) {
        const int8_t *rows[CODE_TILE_ROWS];
        memset(codes, 0, (size_t)CODE_TILE_ROWS * dim);
        for (uint32_t i = 0; i < CODE_TILE_ROWS; i++) {
            rows[i] = codes + (size_t)i * dim;
            if (first + i < pca->kept)
                worst = fmaxf(worst, direction_code(pca, first + i, codes + (size_t)i * dim));
        }
        code_kernel_get()->pack_tile(rows, CODE_TILE_ROWS, dim, pca->coarse + (size_t)first * dim);
    }
    mem_free(codes);
    if (!fine || worst > COARSE_ERROR_MAX) coarse_drop(pca);
    return fine ? OMEN_OK : OMEN_ENOMEM;
}

void pca_apply_coarse(const struct pca *pca, const float *v, float *out)
{
    float centred[OMEN_DIM_MAX + 32] __attribute__((aligned(64)));
    int8_t split[2][OMEN_DIM_MAX + 32] __attribute__((aligned(64)));
    const struct code_kernel *kernel = code_kernel_get();
    uint32_t dim = coarse_dim(pca), places = coarse_places(pca);
    CHECK(pca->dim <= OMEN_DIM_MAX && places <= COARSE_PLACES_MAX);
    for (uint32_t j = 0; j < pca->dim; j++) centred[j] = v[j] - pca->mean[j];
    for (uint32_t j = pca->dim; j < dim; j++) centred[j] = 0;
    /* No component is longer than the whole; a little is left for rounding. */
    float length = sqrtf(kernel_get()->dot_f32(centred, centred, pca->dim)) * 1.001f,
          inverse = CODE_SPLIT_MAX / length;
    if (pca->coarse == NULL || !(length > 0x1p-60f && length < 0x1p60f)) {
        pca_apply(pca, v, out, NULL);
        return;
    }
    kernel->split_i8(centred, dim, inverse, split[0], split[1]);
    const int8_t *rows[2] = { split[0], split[1] };
    int32_t dots[2][COARSE_PLACES_MAX];
    for (uint32_t first = 0; first < places; first += CODE_TILE_ROWS)
        kernel->dot_tile(rows, 2, dim, pca->coarse + (size_t)first * dim, dots[0] + first, COARSE_PLACES_MAX);
    int32_t high_offset = dots[0][pca->kept], low_offset = dots[1][pca->kept];
    float step = length / CODE_SPLIT_MAX;
    for (uint32_t i = 0; i < pca->kept; i++) {
        float high = (float)(dots[0][i] - high_offset), low = (float)(dots[1][i] - low_offset);
        out[i] = (high * CODE_SPLIT_BASE + low) * (step * pca->coarse_scale[i]);
    }
}

uint64_t pca_memory_bytes(const struct pca *pca)
{
    if (pca->kept == 0) return 0;
    uint64_t coarse = pca->coarse == NULL ? 0 : (uint64_t)coarse_places(pca) * (coarse_dim(pca) + 8);
    return ((uint64_t)pca->kept + 1) * pca->dim * sizeof(float) + coarse;
}

void pca_free(struct pca *pca)
{
    mem_free(pca->mean);
    mem_free(pca->basis);
    mem_free(pca->coarse);
    mem_free(pca->coarse_scale);
    *pca = (struct pca){ 0 };
}

void pca_apply(const struct pca *pca, const float *v, float *out, float *rest_out)
{
    float centred[OMEN_DIM_MAX] __attribute__((aligned(64)));
    CHECK(pca->dim <= OMEN_DIM_MAX);
    for (uint32_t j = 0; j < pca->dim; j++) centred[j] = v[j] - pca->mean[j];
    kernel_get()->negdot_f32_rows(centred, pca->basis, pca->dim, pca->kept, pca->dim, out);
    for (uint32_t i = 0; i < pca->kept; i++) out[i] = -out[i];
    if (rest_out == NULL) return;
    float rest = kernel_get()->dot_f32(centred, centred, pca->dim) -
            kernel_get()->dot_f32(out, out, pca->kept);
    *rest_out = rest > 0 ? rest : 0;
}
