/* Scalar and binary quantizers: packed levels of 8 to 1 bits of a centred, randomly rotated vector.
 *
 * Rotation makes the components alike, so that one step serves all of them.
 * Scalar: level c stands for step * (c - top/2), one step for the segment: the one with the least squared
 * error over the sample, which cuts off a little at both ends. Nothing beside the levels.
 * Binary: RaBitQ (Gao & Long, SIGMOD 2024) and its extension to more bits (Gao et al., SIGMOD 2025): levels u =
 * c - top/2 whose direction comes nearest to that of r, and two factors, so that
 *     |q - r|^2 ~ |q|^2 + F + G <u, q>     F = |r|^2     G = -2 |r|^2 / <u, r>
 * is unbiased over rotations. Departs from the paper: the best of a few steps instead of all, as the cosine
 * hardly differs.
 * Threads: no state. */
#include <math.h>
#include <string.h>

#include "common/check.h"
#include "storage/kernel/kernel.h"
#include "storage/quant/quant_impl.h"

#define STEP_TRIES 40  /* widths of the scalar range that are compared */
#define BINS 4096      /* of the histogram they are compared on */
#define SCALE_TRIES 12 /* steps that are compared per extended code */
#define SCALE_LOWEST 0.45f
#define SMALLEST 0x1p-126f

static uint32_t top_level(const struct quant *quant) { return (1u << quant->params.bits) - 1; }

static uint8_t level(float value, float inverse, float half, float top)
{
    float x = value * inverse + half + 0.5f;
    return (uint8_t)(!(x > 0) ? 0 : x > top ? top : x); /* NaN, from an overflow, is the lowest */
}

/* ---- scalar ---- */

static double width_error(const uint64_t bins[BINS], double bin, double width, double top)
{
    double step = 2 * width / top, error = 0;
    for (uint32_t i = 0; i < BINS; i++) {
        double v = (i + 0.5) * bin;
        double d = v > width ? v - width : step / sqrt(12.0);
        error += (double)bins[i] * d * d;
    }
    return error;
}

static enum omen_err scalar_train(struct quant *quant, const float *rows, size_t stride, uint32_t count,
        const struct quant_control *control)
{
    float z[QUANT_DIM_MAX] __attribute__((aligned(64))), largest = 0;
    uint64_t bins[BINS] = { 0 };
    double top = top_level(quant), best = INFINITY;
    for (uint32_t pass = 0; pass < 2; pass++) {
        float per_bin = largest > 0 ? BINS / largest : 0;
        for (uint32_t row = 0; row < count; row++) {
            if (row % 256 == 0 && quant_stopped(control, row + (uint64_t)pass * count, 2 * (uint64_t)count))
                return OMEN_ECANCELED;
            quant_turn(quant, rows + row * stride, false, z);
            for (uint32_t i = 0; i < quant->padded; i++) {
                float v = fabsf(z[i]), at = v * per_bin;
                if (pass == 0)
                    largest = fmaxf(largest, v);
                else
                    bins[at < BINS - 1 ? (uint32_t)at : BINS - 1]++;
            }
        }
    }
    float width = largest;
    for (uint32_t t = 1; t <= STEP_TRIES; t++) {
        double w = (double)largest * t / STEP_TRIES, error = width_error(bins, largest / BINS, w, top);
        if (error >= best) continue;
        best = error;
        width = (float)w;
    }
    quant->step = 2 * width / (float)top;
    if (!(quant->step >= SMALLEST)) quant->step = SMALLEST;
    double values = (double)count * quant->padded;
    quant->spread = values > 0 ? 2 * (float)sqrt(best / values)
                               : 0; /* of d^2: 2 d times that of a component */
    return OMEN_OK;
}

static void scalar_encode(const struct quant *quant, const float *vector, uint8_t *code_out)
{
    float z[QUANT_DIM_MAX] __attribute__((aligned(64)));
    uint8_t levels[QUANT_DIM_MAX];
    float top = (float)top_level(quant), inverse = 1 / quant->step;
    quant_turn(quant, vector, false, z);
    for (uint32_t i = 0; i < quant->padded; i++) levels[i] = level(z[i], inverse, top / 2, top);
    packed_store(levels, quant->padded, quant->params.bits, code_out);
}

/* ---- binary ---- */

/* Levels of r at the step whose code has the largest cosine with r; <u, r> of it. */
static double levels_best(const float *r, uint32_t n, uint32_t bits, uint8_t *levels_out)
{
    uint8_t tried[QUANT_DIM_MAX];
    float top = (float)((1u << bits) - 1), largest = 0;
    double best = -1, product_best = 0;
    for (uint32_t i = 0; i < n; i++) largest = fmaxf(largest, fabsf(r[i]));
    for (uint32_t t = 0; t < SCALE_TRIES; t++) {
        float part = 1 - (1 - SCALE_LOWEST) * (float)t / (SCALE_TRIES - 1);
        float step = largest * part / ((top + 1) / 2);
        double product = 0, square = 0;
        if (!(step >= SMALLEST)) step = SMALLEST;
        float inverse = 1 / step;
        for (uint32_t i = 0; i < n; i++) {
            tried[i] = level(r[i], inverse, top / 2, top);
            double u = (double)tried[i] - top / 2;
            product += u * r[i];
            square += u * u;
        }
        double cosine = product / sqrt(square); /* times |r| */
        if (!(cosine > best)) continue;
        best = cosine;
        product_best = product;
        memcpy(levels_out, tried, n);
        if (bits == 1) break; /* signs at any step */
    }
    return product_best;
}

static void binary_code(const struct quant *quant, const float *r, uint8_t *code_out, double *cosine_out)
{
    uint8_t levels[QUANT_DIM_MAX];
    uint32_t n = quant->padded, bits = quant->params.bits;
    float factors[2] = { 0, 0 };
    memset(levels, 1 << (bits - 1), n);
    double square = 0, product = levels_best(r, n, bits, levels), length = 0;
    for (uint32_t i = 0; i < n; i++) {
        double u = (double)levels[i] - top_level(quant) / 2.0;
        square += (double)r[i] * r[i];
        length += u * u;
    }
    if (product > 0) {
        factors[0] = (float)square;
        factors[1] = (float)(-2 * square / product);
        if (!isfinite(factors[1])) factors[1] = 0; /* denormal: as good as a copy of the centre */
    }
    packed_store(levels, n, bits, code_out);
    memcpy(code_out + packed_bytes(n, bits), factors, sizeof factors);
    if (cosine_out != NULL) *cosine_out = square > 0 ? product / sqrt(square * length) : 1;
}

static enum omen_err binary_train(struct quant *quant, const float *rows, size_t stride, uint32_t count,
        const struct quant_control *control)
{
    float z[QUANT_DIM_MAX] __attribute__((aligned(64)));
    uint8_t code[QUANT_DIM_MAX + PACKED_FACTORS_BYTES];
    double tangents = 0, lengths = 0;
    uint32_t samples = count < 1024 ? count : 1024;
    for (uint32_t i = 0; i < samples; i++) {
        double cosine;
        if (i % 64 == 0 && quant_stopped(control, i, samples)) return OMEN_ECANCELED;
        quant_turn(quant, rows + (uint64_t)i * count / samples * stride, false, z);
        binary_code(quant, z, code, &cosine);
        if (cosine > 0) tangents += fmax(1 / (cosine * cosine) - 1, 0);
        lengths += sqrt((double)kernel_get()->dot_f32(z, z, quant->padded));
    }
    if (samples == 0) return OMEN_OK;
    quant->spread = 2 * (float)sqrt(tangents / samples / (quant->padded - 1));
    quant->radius = (float)(lengths / samples);
    return OMEN_OK;
}

static void binary_encode(const struct quant *quant, const float *vector, uint8_t *code_out)
{
    float z[QUANT_DIM_MAX] __attribute__((aligned(64)));
    quant_turn(quant, vector, false, z);
    binary_code(quant, z, code_out, NULL);
}

/* ---- queries of both ---- */

static bool coded_query_init(const struct quant *quant, struct quant_query *query)
{
    bool wide = quant->params.bits == 8;
    query->levels = mem_alloc_aligned(64, quant->padded * (wide ? sizeof(int16_t) : sizeof(int8_t)));
    query->packed = (struct packed_query){ .wide = wide ? query->levels : NULL,
        .narrow = wide ? NULL : query->levels,
        .dim = quant->padded,
        .bits = quant->params.bits,
        .factors = quant->params.kind == QUANT_BINARY };
    return query->levels != NULL;
}

/* Query components as integers of one scale, the largest as large as there is room for; their sum. */
static int64_t query_levels(const struct quant *quant, struct quant_query *query, float *scale_out)
{
    const float *q = query->exact;
    float largest = 0, most = query->packed.wide != NULL ? PACKED_WIDE_MAX : PACKED_NARROW_MAX;
    int64_t sum = 0;
    for (uint32_t i = 0; i < quant->padded; i++) largest = fmaxf(largest, fabsf(q[i]));
    float scale = largest / most;
    if (!(scale >= SMALLEST)) scale = SMALLEST;
    float inverse = 1 / scale;
    for (uint32_t i = 0; i < quant->padded; i++) {
        float x = q[i] * inverse;
        int32_t v = (int32_t)(x + (x < 0 ? -0.5f : 0.5f));
        sum += v;
        if (query->packed.wide != NULL)
            ((int16_t *)query->levels)[i] = (int16_t)v;
        else
            ((int8_t *)query->levels)[i] = (int8_t)v;
    }
    *scale_out = scale;
    return sum;
}

static void coded_prepare(const struct quant *quant, const float *vector, struct quant_query *query)
{
    struct packed_query *p = &query->packed;
    bool l2 = query->metric == METRIC_L2;
    float scale, half = (float)top_level(quant) / 2, offset = 0;
    quant_turn(quant, vector, !l2, query->memory);
    query->exact = query->memory;
    float square = kernel_get()->dot_f32(query->exact, query->exact, quant->padded);
    query->length = sqrtf(square);
    float sum = (float)query_levels(quant, query, &scale) * scale;
    if (!l2 && quant->mean != NULL) offset = -kernel_get()->dot_f32(vector, quant->mean, quant->dim);
    p->floor = l2 ? 0 : -INFINITY;
    if (p->factors) {
        p->dot_scale = l2 ? scale : scale / 2;
        p->bias = -half * sum * (l2 ? 1 : 0.5f);
        p->f_scale = l2 ? 1 : 0;
        p->base = l2 ? square : offset;
    } else {
        float step = quant->step;
        p->dot_scale = (l2 ? -2 : -1) * step * scale;
        p->square_scale = l2 ? step * step : 0;
        p->base = l2 ? square + 2 * step * half * sum + step * step * half * half * (float)quant->padded
                     : offset + step * half * sum;
    }
}

static void coded_estimate(const struct quant *quant, const struct quant_query *query, const uint8_t *codes,
        size_t stride, const uint32_t *ids, uint32_t count, float *estimates_out)
{
    (void)quant;
    packed_kernel_get()->estimate(&query->packed, codes, stride, ids, count, estimates_out);
}

const struct quant_ops quant_scalar_ops = {
    .kind = QUANT_SCALAR,
    .train = scalar_train,
    .encode = scalar_encode,
    .query_init = coded_query_init,
    .prepare = coded_prepare,
    .estimate = coded_estimate,
};

const struct quant_ops quant_binary_ops = {
    .kind = QUANT_BINARY,
    .train = binary_train,
    .encode = binary_encode,
    .query_init = coded_query_init,
    .prepare = coded_prepare,
    .estimate = coded_estimate,
};
