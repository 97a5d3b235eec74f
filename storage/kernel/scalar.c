/* Distances in plain C: the definition that every other ISA must equal to the last bit.
 *
 * 16 lanes of f32; component i goes to lane i % 16 by one fused multiply-add; the last group is filled up
 * with zeros in all lanes; then the fixed tree 8, 4, 2, 1. Every product is fused, so nothing depends on the
 * compiler's contraction. Where the CPU's floor has no FMA, fmaf is libm's (exact, about 2 ns): this file is
 * for correctness, not for speed. Threads: no state. */
#include "common/err.h"
#include "storage/kernel/kernel_isa.h"

#include <math.h>

static float tree_sum(float lanes[KERNEL_LANES])
{
    for (uint32_t half = KERNEL_LANES / 2; half > 0; half /= 2) {
        for (uint32_t i = 0; i < half; i++) lanes[i] += lanes[i + half];
    }
    return lanes[0];
}

static float l2sq_f32_scalar(const float *a, const float *b, uint32_t dim)
{
    float lanes[KERNEL_LANES] = { 0 };
    for (uint32_t base = 0; base < dim; base += KERNEL_LANES) {
        for (uint32_t i = 0; i < KERNEL_LANES; i++) {
            float d = base + i < dim ? a[base + i] - b[base + i] : 0.0f;
            lanes[i] = fmaf(d, d, lanes[i]);
        }
    }
    return tree_sum(lanes);
}

static float dot_f32_scalar(const float *a, const float *b, uint32_t dim)
{
    float lanes[KERNEL_LANES] = { 0 };
    for (uint32_t base = 0; base < dim; base += KERNEL_LANES) {
        for (uint32_t i = 0; i < KERNEL_LANES; i++) {
            float x = base + i < dim ? a[base + i] : 0.0f;
            float y = base + i < dim ? b[base + i] : 0.0f;
            lanes[i] = fmaf(x, y, lanes[i]);
        }
    }
    return tree_sum(lanes);
}

static void l2sq_f32_rows_scalar(const float *query, const float *rows, size_t stride_floats, uint32_t count,
        uint32_t dim, float *distances_out)
{
    for (uint32_t r = 0; r < count; r++)
        distances_out[r] = l2sq_f32_scalar(query, rows + r * stride_floats, dim);
}

static void negdot_f32_rows_scalar(const float *query, const float *rows, size_t stride_floats,
        uint32_t count, uint32_t dim, float *distances_out)
{
    for (uint32_t r = 0; r < count; r++)
        distances_out[r] = -dot_f32_scalar(query, rows + r * stride_floats, dim);
}

static void l2sq_f32_block_scalar(const float *queries, size_t query_stride_floats, uint32_t query_count,
        const float *rows, size_t stride_floats, uint32_t count, uint32_t dim, float *distances_out)
{
    for (uint32_t q = 0; q < query_count; q++) {
        l2sq_f32_rows_scalar(queries + q * query_stride_floats, rows, stride_floats, count, dim,
                distances_out + (size_t)q * count);
    }
}

static void negdot_f32_block_scalar(const float *queries, size_t query_stride_floats, uint32_t query_count,
        const float *rows, size_t stride_floats, uint32_t count, uint32_t dim, float *distances_out)
{
    for (uint32_t q = 0; q < query_count; q++) {
        negdot_f32_rows_scalar(queries + q * query_stride_floats, rows, stride_floats, count, dim,
                distances_out + (size_t)q * count);
    }
}

const struct kernel kernel_scalar = {
    .isa = KERNEL_SCALAR,
    .l2sq_f32 = l2sq_f32_scalar,
    .dot_f32 = dot_f32_scalar,
    .l2sq_f32_rows = l2sq_f32_rows_scalar,
    .negdot_f32_rows = negdot_f32_rows_scalar,
    .l2sq_f32_block = l2sq_f32_block_scalar,
    .negdot_f32_block = negdot_f32_block_scalar,
};
