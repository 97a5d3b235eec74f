/* Distances with AVX2 and FMA: the 16 lanes of scalar.c are two ymm registers, tails are masked loads of
 * zeros.
 *
 * Bit-equal to scalar.c: same lanes, same order, same tree. Four rows side by side fill the 16 registers and
 * hide the latency of the two chains of a row. Threads: no state. Compiled above the ABI floor: called only
 * after kernel.c asked the CPU. */
#include "common/err.h"

#ifdef __x86_64__
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("avx2,fma")
#pragma GCC optimize("fp-contract=off")
#endif

#include "storage/kernel/kernel_isa.h"

#include <immintrin.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define ROWS_AT_ONCE 4
#define HALF (KERNEL_LANES / 2)

enum form { FORM_L2SQ, FORM_DOT };

struct lanes {
    __m256 low, high;
};

ALWAYS_INLINE __m256 fuse(enum form form, __m256 acc, __m256 q, __m256 r)
{
    if (form == FORM_DOT) return _mm256_fmadd_ps(q, r, acc);
    __m256 d = _mm256_sub_ps(q, r);
    return _mm256_fmadd_ps(d, d, acc);
}

/* -1 in the first `n` of 8 lanes, n 0..8. */
ALWAYS_INLINE __m256i mask_first(uint32_t n)
{
    const __m256i lane = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), lane);
}

ALWAYS_INLINE float tree_sum(struct lanes acc)
{
    __m256 s8 = _mm256_add_ps(acc.low, acc.high);
    __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
}

/* Sums of `n` rows (a constant: 1 or ROWS_AT_ONCE). */
ALWAYS_INLINE void some_rows(enum form form, const float *query, const float *rows, size_t stride,
        uint32_t dim, int n, float *sums_out)
{
    struct lanes acc[ROWS_AT_ONCE];
#pragma GCC unroll 4
    for (int r = 0; r < n; r++) acc[r] = (struct lanes){ _mm256_setzero_ps(), _mm256_setzero_ps() };
    uint32_t i = 0;
    for (; i + KERNEL_LANES <= dim; i += KERNEL_LANES) {
        __m256 low = _mm256_loadu_ps(query + i), high = _mm256_loadu_ps(query + i + HALF);
#pragma GCC unroll 4
        for (int r = 0; r < n; r++) {
            const float *row = rows + (size_t)r * stride + i;
            acc[r].low = fuse(form, acc[r].low, low, _mm256_loadu_ps(row));
            acc[r].high = fuse(form, acc[r].high, high, _mm256_loadu_ps(row + HALF));
        }
    }
    if (i < dim) {
        uint32_t left = dim - i;
        __m256i m_low = mask_first(left < HALF ? left : HALF),
                m_high = mask_first(left > HALF ? left - HALF : 0);
        __m256 low = _mm256_maskload_ps(query + i, m_low),
               high = _mm256_maskload_ps(query + i + HALF, m_high);
#pragma GCC unroll 4
        for (int r = 0; r < n; r++) {
            const float *row = rows + (size_t)r * stride + i;
            acc[r].low = fuse(form, acc[r].low, low, _mm256_maskload_ps(row, m_low));
            acc[r].high = fuse(form, acc[r].high, high, _mm256_maskload_ps(row + HALF, m_high));
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < n; r++) sums_out[r] = tree_sum(acc[r]);
}

/* Rows that come from memory (`streamed`) are read one after the other and without a prefetch, which leaves the
 * order to the processor's own: 16.9 GB/s on Zen 3, where four rows side by side had 13.1 with or without one (omen-bench
 * scan; plain reading 21-24). */
ALWAYS_INLINE void scan(enum form form, const float *query, const float *rows, size_t stride, uint32_t count,
        uint32_t dim, bool streamed, float *distances_out)
{
    uint32_t r = 0;
    for (; !streamed && r + ROWS_AT_ONCE <= count; r += ROWS_AT_ONCE)
        some_rows(form, query, rows + (size_t)r * stride, stride, dim, ROWS_AT_ONCE, distances_out + r);
    for (; r < count; r++)
        some_rows(form, query, rows + (size_t)r * stride, stride, dim, 1, distances_out + r);
    if (form == FORM_DOT) {
        for (r = 0; r < count; r++) distances_out[r] = -distances_out[r];
    }
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

static float l2sq_f32_avx2(const float *a, const float *b, uint32_t dim)
{
    float sum;
    some_rows(FORM_L2SQ, a, b, 0, dim, 1, &sum);
    return sum;
}

static float dot_f32_avx2(const float *a, const float *b, uint32_t dim)
{
    float sum;
    some_rows(FORM_DOT, a, b, 0, dim, 1, &sum);
    return sum;
}

static void l2sq_f32_rows_avx2(const float *query, const float *rows, size_t stride_floats, uint32_t count,
        uint32_t dim, float *distances_out)
{
    scan(FORM_L2SQ, query, rows, stride_floats, count, dim, true, distances_out);
}

static void negdot_f32_rows_avx2(const float *query, const float *rows, size_t stride_floats, uint32_t count,
        uint32_t dim, float *distances_out)
{
    scan(FORM_DOT, query, rows, stride_floats, count, dim, true, distances_out);
}

static void l2sq_f32_block_avx2(const float *queries, size_t query_stride_floats, uint32_t query_count,
        const float *rows, size_t stride_floats, uint32_t count, uint32_t dim, float *distances_out)
{
    block(FORM_L2SQ, queries, query_stride_floats, query_count, rows, stride_floats, count, dim,
            distances_out);
}

static void negdot_f32_block_avx2(const float *queries, size_t query_stride_floats, uint32_t query_count,
        const float *rows, size_t stride_floats, uint32_t count, uint32_t dim, float *distances_out)
{
    block(FORM_DOT, queries, query_stride_floats, query_count, rows, stride_floats, count, dim,
            distances_out);
}

const struct kernel kernel_avx2 = {
    .isa = KERNEL_AVX2,
    .l2sq_f32 = l2sq_f32_avx2,
    .dot_f32 = dot_f32_avx2,
    .l2sq_f32_rows = l2sq_f32_rows_avx2,
    .negdot_f32_rows = negdot_f32_rows_avx2,
    .l2sq_f32_block = l2sq_f32_block_avx2,
    .negdot_f32_block = negdot_f32_block_avx2,
};

#endif
