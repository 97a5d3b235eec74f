/* Distances with AVX-512: the 16 lanes of scalar.c are one zmm register, tails are masked loads of zeros.
 *
 * One row has one accumulator, as the definition wants, and a chain of fused adds takes 4 cycles a link; so
 * the scan works on several rows side by side, which hides the latency, and sums the trees of eight rows
 * together. Bit-equal to scalar.c: same lanes, same order, same tree (addition commutes, so a transposed tree
 * has the same bits). Threads: no state. Compiled above the ABI floor: called only after kernel.c asked the
 * CPU. */
#include "common/err.h"

#ifdef __x86_64__
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
#pragma GCC optimize("fp-contract=off")
#endif

#include "storage/kernel/kernel_isa.h"

#include <immintrin.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define ROWS_PER_SUM 8 /* rows whose trees are summed together */

/* Measured on one core of a shared Sapphire Rapids VM, l2 over 1.5 GB of 128-d rows in 2 MiB pages, best of 4
 * passes: 19.1 GB/s (4 KiB pages 17.8; 768-d 18.1; 1024-d 16.9). A plain one-stream AVX-512 sum of the same
 * memory read 14.8 in the same run: it is a yardstick, not the roof, which is not known.
 * Chosen from a sweep of {1, 2, 4, 8} rows x {1, 4, 8} KiB ahead x hint, one run each, in a trial build with
 * -funroll-loops; equal code varied there by about 1 GB/s, so only the large differences mean anything: the
 * non-temporal hint is far worse (6-12), one row at a time somewhat (16-17.5). Four rows, 4 KiB, L2 was the best
 * (19.7), but two rows or eight are within the noise. Why it beats the sum was not examined. */
#define ROWS_AT_ONCE 4
#define PREFETCH_BYTES 4096

enum form { FORM_L2SQ, FORM_DOT };

ALWAYS_INLINE __m512 accumulate(enum form form, __m512 acc, __m512 q, __m512 r)
{
    if (form == FORM_DOT) return _mm512_fmadd_ps(q, r, acc);
    __m512 d = _mm512_sub_ps(q, r);
    return _mm512_fmadd_ps(d, d, acc);
}

ALWAYS_INLINE __mmask16 tail_mask(uint32_t dim) { return (__mmask16)((1u << (dim % KERNEL_LANES)) - 1); }

ALWAYS_INLINE float tree_sum(__m512 lanes)
{
    __m256 s8 = _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps(lanes, 1));
    __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
}

ALWAYS_INLINE float one_row(enum form form, const float *a, const float *b, uint32_t dim)
{
    __m512 acc = _mm512_setzero_ps();
    uint32_t i = 0;
    for (; i + KERNEL_LANES <= dim; i += KERNEL_LANES) {
        acc = accumulate(form, acc, _mm512_loadu_ps(a + i), _mm512_loadu_ps(b + i));
    }
    if (i < dim) {
        __mmask16 m = tail_mask(dim);
        acc = accumulate(form, acc, _mm512_maskz_loadu_ps(m, a + i), _mm512_maskz_loadu_ps(m, b + i));
    }
    return tree_sum(acc);
}

/* The trees of two registers at a time: lanes i and i+8 of both land in one register, and so on down. */
ALWAYS_INLINE __m256 tree_sum_8(const __m512 acc[ROWS_PER_SUM])
{
    __m512 s8[4]; /* 8 sums of row 2j below, of row 2j+1 above */
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        __m512 lo = _mm512_shuffle_f32x4(acc[2 * j], acc[2 * j + 1], _MM_SHUFFLE(1, 0, 1, 0));
        __m512 hi = _mm512_shuffle_f32x4(acc[2 * j], acc[2 * j + 1], _MM_SHUFFLE(3, 2, 3, 2));
        s8[j] = _mm512_add_ps(lo, hi);
    }
    __m512 s4[2]; /* 128-bit parts: rows 4j, 4j+1, 4j+2, 4j+3 */
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++) {
        __m512 lo = _mm512_shuffle_f32x4(s8[2 * j], s8[2 * j + 1], _MM_SHUFFLE(2, 0, 2, 0));
        __m512 hi = _mm512_shuffle_f32x4(s8[2 * j], s8[2 * j + 1], _MM_SHUFFLE(3, 1, 3, 1));
        s4[j] = _mm512_add_ps(lo, hi);
    }
    /* Now within the 128-bit parts: lanes {0,1} + {2,3}, part p holding rows p and p+4. */
    __m512 s2 = _mm512_add_ps(_mm512_shuffle_ps(s4[0], s4[1], _MM_SHUFFLE(1, 0, 1, 0)),
            _mm512_shuffle_ps(s4[0], s4[1], _MM_SHUFFLE(3, 2, 3, 2)));
    __m512 s1 = _mm512_add_ps(s2, _mm512_movehdup_ps(s2)); /* lanes 0 and 2 of each part: rows p and p+4 */
    const __m512i pick = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 14, 10, 6, 2, 12, 8, 4, 0);
    return _mm512_castps512_ps256(_mm512_permutexvar_ps(pick, s1));
}

/* ROWS_AT_ONCE rows into their accumulators, and the lines that the scan needs next on their way into L2. */
ALWAYS_INLINE void add_rows(enum form form, const float *query, const float *rows, size_t stride,
        uint32_t dim, bool prefetch, __m512 acc[ROWS_AT_ONCE])
{
    uint32_t i = 0;
#pragma GCC unroll 8
    for (int r = 0; r < ROWS_AT_ONCE; r++) acc[r] = _mm512_setzero_ps();
    for (; i + KERNEL_LANES <= dim; i += KERNEL_LANES) {
        __m512 q = _mm512_loadu_ps(query + i);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS_AT_ONCE; r++) {
            const float *row = rows + (size_t)r * stride + i;
            if (prefetch) _mm_prefetch((const char *)row + PREFETCH_BYTES, _MM_HINT_T1);
            acc[r] = accumulate(form, acc[r], q, _mm512_loadu_ps(row));
        }
    }
    if (i < dim) {
        __mmask16 m = tail_mask(dim);
        __m512 q = _mm512_maskz_loadu_ps(m, query + i);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS_AT_ONCE; r++) {
            acc[r] = accumulate(form, acc[r], q, _mm512_maskz_loadu_ps(m, rows + (size_t)r * stride + i));
        }
    }
}

ALWAYS_INLINE void scan(enum form form, const float *query, const float *rows, size_t stride, uint32_t count,
        uint32_t dim, bool prefetch, float *distances_out)
{
    const __m256 sign = _mm256_set1_ps(form == FORM_DOT ? -0.0f : 0.0f);
    uint32_t r = 0;
    for (; r + ROWS_PER_SUM <= count; r += ROWS_PER_SUM) {
        const float *part = rows + (size_t)r * stride;
        __m512 acc[ROWS_PER_SUM];
        add_rows(form, query, part, stride, dim, prefetch, acc);
        add_rows(form, query, part + ROWS_AT_ONCE * stride, stride, dim, prefetch, acc + ROWS_AT_ONCE);
        _mm256_storeu_ps(distances_out + r, _mm256_xor_ps(tree_sum_8(acc), sign));
    }
    for (; r < count; r++) {
        float sum = one_row(form, query, rows + (size_t)r * stride, dim);
        distances_out[r] = form == FORM_DOT ? -sum : sum;
    }
}

ALWAYS_INLINE void block(enum form form, const float *queries, size_t query_stride, uint32_t query_count,
        const float *rows, size_t stride, uint32_t count, uint32_t dim, float *distances_out)
{
    uint32_t step = (uint32_t)(KERNEL_BLOCK_BYTES / (stride * sizeof(float))) / ROWS_PER_SUM * ROWS_PER_SUM;
    if (step == 0) step = ROWS_PER_SUM;
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

static float l2sq_f32_avx512(const float *a, const float *b, uint32_t dim)
{
    return one_row(FORM_L2SQ, a, b, dim);
}
static float dot_f32_avx512(const float *a, const float *b, uint32_t dim)
{
    return one_row(FORM_DOT, a, b, dim);
}

static void l2sq_f32_rows_avx512(const float *query, const float *rows, size_t stride_floats, uint32_t count,
        uint32_t dim, float *distances_out)
{
    scan(FORM_L2SQ, query, rows, stride_floats, count, dim, true, distances_out);
}

static void negdot_f32_rows_avx512(const float *query, const float *rows, size_t stride_floats,
        uint32_t count, uint32_t dim, float *distances_out)
{
    scan(FORM_DOT, query, rows, stride_floats, count, dim, true, distances_out);
}

static void l2sq_f32_block_avx512(const float *queries, size_t query_stride_floats, uint32_t query_count,
        const float *rows, size_t stride_floats, uint32_t count, uint32_t dim, float *distances_out)
{
    block(FORM_L2SQ, queries, query_stride_floats, query_count, rows, stride_floats, count, dim,
            distances_out);
}

static void negdot_f32_block_avx512(const float *queries, size_t query_stride_floats, uint32_t query_count,
        const float *rows, size_t stride_floats, uint32_t count, uint32_t dim, float *distances_out)
{
    block(FORM_DOT, queries, query_stride_floats, query_count, rows, stride_floats, count, dim,
            distances_out);
}

const struct kernel kernel_avx512 = {
    .isa = KERNEL_AVX512,
    .l2sq_f32 = l2sq_f32_avx512,
    .dot_f32 = dot_f32_avx512,
    .l2sq_f32_rows = l2sq_f32_rows_avx512,
    .negdot_f32_rows = negdot_f32_rows_avx512,
    .l2sq_f32_block = l2sq_f32_block_avx512,
    .negdot_f32_block = negdot_f32_block_avx512,
};

#endif
