/* Distances with NEON: the 16 lanes of scalar.c are four registers, tails are copies padded with zeros.
 *
 * Bit-equal to scalar.c: same lanes, same order, same tree; FMLA is fused. Two rows side by side hide the latency
 * of their chains. Every aarch64 CPU has NEON, so nothing is asked. Not measured: there was no such machine.
 * Threads: no state. */
#include "common/err.h"

#ifdef __aarch64__
#ifndef __clang__
#pragma GCC optimize("fp-contract=off")
#endif

#include "storage/kernel/kernel_isa.h"

#include <arm_neon.h>
#include <string.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define ROWS_AT_ONCE 2
#define PREFETCH_BYTES 4096 /* as in avx2.c */

enum form { FORM_L2SQ, FORM_DOT };

struct lanes {
    float32x4_t part[4];
};

ALWAYS_INLINE void fuse(enum form form, struct lanes *acc, const float *q, const float *r)
{
#pragma GCC unroll 4
    for (int p = 0; p < 4; p++) {
        float32x4_t a = vld1q_f32(q + 4 * p), b = vld1q_f32(r + 4 * p);
        if (form == FORM_L2SQ) a = b = vsubq_f32(a, b);
        acc->part[p] = vfmaq_f32(acc->part[p], a, b);
    }
}

ALWAYS_INLINE float tree_sum(const struct lanes *acc)
{
    float32x4_t s = vaddq_f32(vaddq_f32(acc->part[0], acc->part[2]), vaddq_f32(acc->part[1], acc->part[3]));
    float32x2_t two = vadd_f32(vget_low_f32(s), vget_high_f32(s));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

/* Sums of `n` rows (a constant: 1 or ROWS_AT_ONCE). */
ALWAYS_INLINE void some_rows(enum form form, const float *query, const float *rows, size_t stride,
        uint32_t dim, int n, bool prefetch, float *sums_out)
{
    struct lanes acc[ROWS_AT_ONCE];
    for (int r = 0; r < n; r++)
        for (int p = 0; p < 4; p++) acc[r].part[p] = vdupq_n_f32(0);
    uint32_t i = 0;
    for (; i + KERNEL_LANES <= dim; i += KERNEL_LANES) {
#pragma GCC unroll 2
        for (int r = 0; r < n; r++) {
            const float *row = rows + (size_t)r * stride + i;
            if (prefetch) __builtin_prefetch((const char *)row + PREFETCH_BYTES, 0, 3);
            fuse(form, &acc[r], query + i, row);
        }
    }
    for (int r = 0; i < dim && r < n; r++) {
        float q[KERNEL_LANES] = { 0 }, row[KERNEL_LANES] = { 0 };
        memcpy(q, query + i, (dim - i) * sizeof(float));
        memcpy(row, rows + (size_t)r * stride + i, (dim - i) * sizeof(float));
        fuse(form, &acc[r], q, row);
    }
    for (int r = 0; r < n; r++) sums_out[r] = tree_sum(&acc[r]);
}

ALWAYS_INLINE void scan(enum form form, const float *query, const float *rows, size_t stride, uint32_t count,
        uint32_t dim, bool prefetch, float *distances_out)
{
    uint32_t r = 0;
    for (; r + ROWS_AT_ONCE <= count; r += ROWS_AT_ONCE)
        some_rows(form, query, rows + (size_t)r * stride, stride, dim, ROWS_AT_ONCE, prefetch,
                distances_out + r);
    for (; r < count; r++)
        some_rows(form, query, rows + (size_t)r * stride, stride, dim, 1, false, distances_out + r);
    for (r = 0; form == FORM_DOT && r < count; r++) distances_out[r] = -distances_out[r];
}

ALWAYS_INLINE void block(enum form form, const float *queries, size_t query_stride, uint32_t query_count,
        const float *rows, size_t stride, uint32_t count, uint32_t dim, float *distances_out)
{
    uint32_t step = (uint32_t)(KERNEL_BLOCK_BYTES / (stride * sizeof(float))) / ROWS_AT_ONCE * ROWS_AT_ONCE;
    if (step == 0) step = ROWS_AT_ONCE;
    for (uint32_t from = 0; from < count; from += step) {
        uint32_t n = count - from < step ? count - from : step;
        const float *part = rows + (size_t)from * stride;
        for (uint32_t q = 0; q < query_count; q++) {
            float *out = distances_out + (size_t)q * count + from;
            if (q == 0)
                scan(form, queries, part, stride, n, dim, true, out);
            else
                scan(form, queries + q * query_stride, part, stride, n, dim, false, out);
        }
    }
}

static float l2sq_f32_neon(const float *a, const float *b, uint32_t dim)
{
    float sum;
    some_rows(FORM_L2SQ, a, b, 0, dim, 1, false, &sum);
    return sum;
}

static float dot_f32_neon(const float *a, const float *b, uint32_t dim)
{
    float sum;
    some_rows(FORM_DOT, a, b, 0, dim, 1, false, &sum);
    return sum;
}

static void l2sq_f32_rows_neon(const float *query, const float *rows, size_t stride_floats, uint32_t count,
        uint32_t dim, float *distances_out)
{
    scan(FORM_L2SQ, query, rows, stride_floats, count, dim, true, distances_out);
}

static void negdot_f32_rows_neon(const float *query, const float *rows, size_t stride_floats, uint32_t count,
        uint32_t dim, float *distances_out)
{
    scan(FORM_DOT, query, rows, stride_floats, count, dim, true, distances_out);
}

static void l2sq_f32_block_neon(const float *queries, size_t query_stride_floats, uint32_t query_count,
        const float *rows, size_t stride_floats, uint32_t count, uint32_t dim, float *distances_out)
{
    block(FORM_L2SQ, queries, query_stride_floats, query_count, rows, stride_floats, count, dim,
            distances_out);
}

static void negdot_f32_block_neon(const float *queries, size_t query_stride_floats, uint32_t query_count,
        const float *rows, size_t stride_floats, uint32_t count, uint32_t dim, float *distances_out)
{
    block(FORM_DOT, queries, query_stride_floats, query_count, rows, stride_floats, count, dim,
            distances_out);
}

const struct kernel kernel_neon = {
    .isa = KERNEL_NEON,
    .l2sq_f32 = l2sq_f32_neon,
    .dot_f32 = dot_f32_neon,
    .l2sq_f32_rows = l2sq_f32_rows_neon,
    .negdot_f32_rows = negdot_f32_rows_neon,
    .l2sq_f32_block = l2sq_f32_block_neon,
    .negdot_f32_block = negdot_f32_block_neon,
};

#endif
