/* Product quantizer (Jegou, Douze & Schmid 2011): the vector in pieces, each by the nearest of 256 or 16
 * centroids.
 *
 * Codebooks by k-means on the sample, started from spread-out rows of it and repaired when a centroid has lost
 * all its rows. A query has a table of its distance to every centroid of every piece; an estimate adds up one
 * entry per piece. 8-bit codes are a byte per piece; of 4-bit codes piece j lies in byte j / 2, even ones low.
 * Pieces are cut from the vector as it is: rotated ones would all look alike. Where dim is no multiple, the
 * first pieces are one component longer. Threads: no state. */
#include <math.h>
#include <string.h>

#include "common/check.h"
#include "storage/kernel/kernel.h"
#include "storage/quant/quant_impl.h"

#define ROUNDS 12 /* of k-means */

struct piece {
    uint32_t first, dims;
};

static struct piece piece_of(const struct quant *quant, uint32_t j)
{
    uint32_t m = quant->params.subvectors, dims = quant->dim / m, longer = quant->dim % m;
    return (struct piece){ j * dims + (j < longer ? j : longer), dims + (j < longer) };
}

static uint32_t longest(const struct quant *quant)
{
    return (quant->dim + quant->params.subvectors - 1) / quant->params.subvectors;
}

static uint32_t centroid_count(const struct quant *quant) { return 1u << quant->params.bits; }

static float *book_of(const struct quant *quant, uint32_t j)
{
    return quant->books + ((size_t)j << quant->params.bits) * longest(quant);
}

static float piece_distance(const float *a, const float *b, uint32_t dims)
{
    float sum = 0;
    for (uint32_t i = 0; i < dims; i++) sum += (a[i] - b[i]) * (a[i] - b[i]);
    return sum;
}

static uint32_t nearest_centroid(const struct quant *quant, uint32_t j, const float *v, float *distance_out)
{
    const float *book = book_of(quant, j);
    struct piece piece = piece_of(quant, j);
    uint32_t best = 0;
    float least = INFINITY;
    for (uint32_t c = 0; c < centroid_count(quant); c++) {
        float d = piece_distance(v + piece.first, book + (size_t)c * longest(quant), piece.dims);
        if (d >= least) continue;
        least = d;
        best = c;
    }
    *distance_out = least;
    return best;
}

/* ---- training ---- */

/* One pass of k-means over one piece; the squared error before it moved. sums [centroids][longest], counts
 * [centroids]. */
static double book_round(struct quant *quant, uint32_t j, const float *rows, size_t stride, uint32_t count,
        double *sums, uint32_t *counts)
{
    struct piece piece = piece_of(quant, j);
    float *book = book_of(quant, j), farthest = -1;
    uint32_t far_row = 0, centroids = centroid_count(quant);
    double error = 0;
    memset(sums, 0, (size_t)centroids * longest(quant) * sizeof *sums);
    memset(counts, 0, centroids * sizeof *counts);
    for (uint32_t row = 0; row < count; row++) {
        float d;
        const float *v = rows + row * stride;
        uint32_t c = nearest_centroid(quant, j, v, &d);
        for (uint32_t i = 0; i < piece.dims; i++) sums[c * longest(quant) + i] += v[piece.first + i];
        counts[c]++;
        error += d;
        if (d <= farthest) continue;
        farthest = d;
        far_row = row;
    }
    for (uint32_t c = 0; c < centroids; c++) {
        float *centroid = book + (size_t)c * longest(quant);
        if (counts[c] == 0) { /* to the row that is worst off, and another one the next time */
            if (farthest > 0)
                memcpy(centroid, rows + far_row * stride + piece.first, piece.dims * sizeof(float));
            farthest = 0;
            continue;
        }
        for (uint32_t i = 0; i < piece.dims; i++)
            centroid[i] = (float)(sums[c * longest(quant) + i] / counts[c]);
    }
    return error;
}

static enum omen_err product_train(struct quant *quant, const float *rows, size_t stride, uint32_t count,
        const struct quant_control *control)
{
    uint32_t m = quant->params.subvectors, centroids = centroid_count(quant);
    double *sums = mem_alloc((size_t)centroids * longest(quant) * sizeof *sums), error = 0;
    uint32_t *counts = mem_alloc(centroids * sizeof *counts);
    enum omen_err rc = sums == NULL || counts == NULL ? OMEN_ENOMEM : OMEN_OK;
    for (uint32_t j = 0; rc == OMEN_OK && count > 0 && j < m; j++) {
        struct piece piece = piece_of(quant, j);
        for (uint32_t c = 0; c < centroids; c++) {
            uint64_t row = rotation_random(quant->params.seed, (uint64_t)j << 32 | c) % count;
            memcpy(book_of(quant, j) + (size_t)c * longest(quant), rows + row * stride + piece.first,
                    piece.dims * sizeof(float));
        }
        double now = 0;
        for (uint32_t round = 0; rc == OMEN_OK && round < ROUNDS; round++) {
            if (quant_stopped(control, (uint64_t)j * ROUNDS + round, (uint64_t)m * ROUNDS))
                rc = OMEN_ECANCELED;
            else
                now = book_round(quant, j, rows, stride, count, sums, counts);
        }
        error += now;
    }
    mem_free(sums);
    mem_free(counts);
    if (count > 0) quant->spread = 2 * (float)sqrt(error / ((double)count * quant->dim));
    return rc;
}

/* ---- codes ---- */

static void product_encode(const struct quant *quant, const float *vector, uint8_t *code_out)
{
    memset(code_out, 0, quant->code_bytes);
    for (uint32_t j = 0; j < quant->params.subvectors; j++) {
        float ignored;
        uint32_t c = nearest_centroid(quant, j, vector, &ignored);
        if (quant->params.bits == 8)
            code_out[j] = (uint8_t)c;
        else
            code_out[j / 2] |= (uint8_t)(c << j % 2 * 4);
    }
}

static bool product_query_init(const struct quant *quant, struct quant_query *query)
{
    query->table = mem_alloc_aligned(64, ((size_t)quant->params.subvectors << quant->params.bits) * 4);
    return query->table != NULL;
}

static void product_prepare(const struct quant *quant, const float *vector, struct quant_query *query)
{
    float *entry = query->table;
    for (uint32_t j = 0; j < quant->params.subvectors; j++) {
        struct piece piece = piece_of(quant, j);
        const float *centroid = book_of(quant, j), *v = vector + piece.first;
        for (uint32_t c = 0; c < centroid_count(quant); c++, centroid += longest(quant)) {
            float sum = 0;
            for (uint32_t i = 0; query->metric != METRIC_L2 && i < piece.dims; i++) sum -= v[i] * centroid[i];
            *entry++ = query->metric == METRIC_L2 ? piece_distance(v, centroid, piece.dims) : sum;
        }
    }
    query->length = sqrtf(kernel_get()->dot_f32(vector, vector, quant->dim));
}

static void product_estimate(const struct quant *quant, const struct quant_query *query, const uint8_t *codes,
        size_t stride, const uint32_t *ids, uint32_t count, float *estimates_out)
{
    uint32_t m = quant->params.subvectors;
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *code = codes + stride * (ids == NULL ? i : ids[i]);
        const float *table = query->table;
        float sums[4] = { 0 }; /* chains that run side by side */
        if (quant->params.bits == 8)
            for (uint32_t j = 0; j < m; j++, table += 256) sums[j % 4] += table[code[j]];
        else
            for (uint32_t j = 0; j < m; j++, table += 16) sums[j % 4] += table[code[j / 2] >> j % 2 * 4 & 15];
        estimates_out[i] = (sums[0] + sums[2]) + (sums[1] + sums[3]);
    }
}

const struct quant_ops quant_product_ops = {
    .kind = QUANT_PRODUCT,
    .train = product_train,
    .encode = product_encode,
    .query_init = product_query_init,
    .prepare = product_prepare,
    .estimate = product_estimate,
};
