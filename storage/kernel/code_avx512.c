/* Code kernels with AVX-512 (F, BW, VL, DQ, VNNI). Equal to code_scalar.c: integer sums do not depend on
 * order, the f32 parts are the same fused operations on the same lanes. Threads: no state. */
#include "common/err.h"

#ifdef __x86_64__
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")
#pragma GCC optimize("fp-contract=off")
#endif

#include "storage/kernel/code_isa.h"

#include <immintrin.h>
#include <string.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* Sums of one half (16 vectors): bytes of four lanes, widened; lanes are added at the end. */
ALWAYS_INLINE __m512i widen_add(__m512i sum16, __m512i bytes)
{
    __m512i low = _mm512_cvtepu8_epi16(_mm512_castsi512_si256(bytes));
    __m512i high = _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(bytes, 1));
    return _mm512_add_epi16(sum16, _mm512_add_epi16(low, high));
}

ALWAYS_INLINE __m512 sums_f32(__m512i sum16)
{
    __m256i sum = _mm256_add_epi16(_mm512_castsi512_si256(sum16), _mm512_extracti64x4_epi64(sum16, 1));
    return _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(sum));
}

ALWAYS_INLINE __m512 estimate_16(const struct code_query *query, __m512i sum16, const uint16_t *f,
        const uint16_t *g, const struct code_factors *factors, __m512 base)
{
    __m512 sum = _mm512_fmadd_ps(sums_f32(sum16), _mm512_set1_ps(query->scale), _mm512_set1_ps(query->bias));
    __m512 g32 = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)g));
    __m512 f32 = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)f));
    __m512 e = _mm512_fmadd_ps(_mm512_mul_ps(g32, _mm512_set1_ps(factors->g_scale)), sum, base);
    e = _mm512_fmadd_ps(f32, _mm512_set1_ps(factors->f_scale), e);
    return _mm512_max_ps(e, _mm512_setzero_ps());
}

static uint32_t estimate_32_avx512(const struct code_query *query, const uint8_t *codes,
        const struct code_factors *factors, float base, float bound, float estimates_out[CODE_GROUP])
{
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512i sum_lo = _mm512_setzero_si512(), sum_hi = _mm512_setzero_si512();
    const uint8_t *lut = query->lut;
    for (uint32_t d = 0; d < query->dim; d += 64, codes += 256, lut += 256) {
        __m512i lo = _mm512_setzero_si512(), hi = _mm512_setzero_si512();
#pragma GCC unroll 4
        for (int b = 0; b < 4; b++) {
            __m512i c = _mm512_load_si512(codes + b * 64), table = _mm512_load_si512(lut + b * 64);
            lo = _mm512_add_epi8(lo, _mm512_shuffle_epi8(table, _mm512_and_si512(c, nibble)));
            c = _mm512_and_si512(_mm512_srli_epi16(c, 4), nibble);
            hi = _mm512_add_epi8(hi, _mm512_shuffle_epi8(table, c));
        }
        sum_lo = widen_add(sum_lo, lo);
        sum_hi = widen_add(sum_hi, hi);
    }
    __m512 base16 = _mm512_set1_ps(base), bound16 = _mm512_set1_ps(bound);
    __m512 e0 = estimate_16(query, sum_lo, factors->f, factors->g, factors, base16);
    __m512 e1 = estimate_16(query, sum_hi, factors->f + 16, factors->g + 16, factors, base16);
    _mm512_storeu_ps(estimates_out, e0);
    _mm512_storeu_ps(estimates_out + 16, e1);
    return (uint32_t)_mm512_cmp_ps_mask(e0, bound16, _CMP_LT_OQ) |
            (uint32_t)_mm512_cmp_ps_mask(e1, bound16, _CMP_LT_OQ) << 16;
}

static float l2sq_f32_u8_avx512(const float *query, const uint8_t *code, float lo, float scale, uint32_t dim)
{
    const __m512 lo16 = _mm512_set1_ps(lo), scale16 = _mm512_set1_ps(scale);
    __m512 acc = _mm512_setzero_ps();
    uint32_t i = 0;
    for (; i + 16 <= dim; i += 16) {
        __m512 c = _mm512_cvtepi32_ps(
                _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(code + i))));
        __m512 d = _mm512_sub_ps(_mm512_loadu_ps(query + i), _mm512_fmadd_ps(scale16, c, lo16));
        acc = _mm512_fmadd_ps(d, d, acc);
    }
    if (i < dim) {
        __mmask16 m = (__mmask16)((1u << (dim - i)) - 1);
        __m512 c = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(m, code + i)));
        __m512 d = _mm512_maskz_sub_ps(m, _mm512_maskz_loadu_ps(m, query + i),
                _mm512_fmadd_ps(scale16, c, lo16));
        acc = _mm512_fmadd_ps(d, d, acc);
    }
    __m256 s8 = _mm256_add_ps(_mm512_castps512_ps256(acc), _mm512_extractf32x8_ps(acc, 1));
    __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
}

/* 16 rows of 16 dwords (64 dims) transposed in registers. */
ALWAYS_INLINE void transpose_16(__m512i r[16])
{
    __m512i t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) { /* 128-bit part p of r[4i+j] is column 4p+j of rows 4i..4i+3 */
        __m512i a = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88),
                b = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88);
        __m512i c = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd),
                d = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
        t[j] = _mm512_shuffle_i32x4(a, b, 0x88);
        t[8 + j] = _mm512_shuffle_i32x4(a, b, 0xdd);
        t[4 + j] = _mm512_shuffle_i32x4(c, d, 0x88);
        t[12 + j] = _mm512_shuffle_i32x4(c, d, 0xdd);
    }
    memcpy(r, t, sizeof t);
}

static void pack_tile_avx512(const int8_t *const *rows, uint32_t count, uint32_t dim, uint8_t *packed_out)
{
    const __m512i offset = _mm512_set1_epi8(CODE_TILE_OFFSET);
    for (uint32_t d = 0; d < dim; d += 64) {
        for (uint32_t half = 0; half < 2; half++) {
            __m512i r[16];
#pragma GCC unroll 16
            for (uint32_t i = 0; i < 16; i++)
                r[i] = half * 16 + i < count
                        ? _mm512_add_epi8(_mm512_loadu_si512(rows[half * 16 + i] + d), offset)
                        : _mm512_setzero_si512();
            transpose_16(r);
#pragma GCC unroll 16
            for (uint32_t i = 0; i < 16; i++)
                _mm512_store_si512(packed_out + ((size_t)(d / 4 + i) * CODE_TILE_ROWS + half * 16) * 4, r[i]);
        }
    }
}

#define TILE_A 8 /* rows at a time: 16 accumulators */

ALWAYS_INLINE void dot_rows(const int8_t *const *rows, uint32_t n, uint32_t dim, const uint8_t *packed,
        int32_t *dots_out, size_t stride)
{
    __m512i acc[TILE_A][2];
#pragma GCC unroll 8
    for (uint32_t a = 0; a < n; a++) acc[a][0] = acc[a][1] = _mm512_setzero_si512();
    for (uint32_t d = 0; d < dim; d += 4) {
        __m512i b0 = _mm512_load_si512(packed + (size_t)d * CODE_TILE_ROWS);
        __m512i b1 = _mm512_load_si512(packed + (size_t)d * CODE_TILE_ROWS + 64);
#pragma GCC unroll 8
        for (uint32_t a = 0; a < n; a++) {
            int32_t four;
            memcpy(&four, rows[a] + d, sizeof four);
            __m512i q = _mm512_set1_epi32(four);
            acc[a][0] = _mm512_dpbusd_epi32(acc[a][0], b0, q);
            acc[a][1] = _mm512_dpbusd_epi32(acc[a][1], b1, q);
        }
    }
#pragma GCC unroll 8
    for (uint32_t a = 0; a < n; a++) {
        _mm512_storeu_si512(dots_out + a * stride, acc[a][0]);
        _mm512_storeu_si512(dots_out + a * stride + 16, acc[a][1]);
    }
}

static void dot_tile_avx512(const int8_t *const *rows, uint32_t count, uint32_t dim, const uint8_t *packed,
        int32_t *dots_out, size_t stride)
{
    uint32_t a = 0;
    for (; a + TILE_A <= count; a += TILE_A)
        dot_rows(rows + a, TILE_A, dim, packed, dots_out + a * stride, stride);
    for (; a < count; a++) dot_rows(rows + a, 1, dim, packed, dots_out + a * stride, stride);
}

static void select_32_avx512(const int32_t *dots, const int32_t *bias, uint32_t first_id,
        struct code_top16 *top)
{
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i before = _mm512_sub_epi32(lane, _mm512_set1_epi32(1));
    for (uint32_t half = 0; half < 2; half++) {
        __m512i dot = _mm512_loadu_si512(dots + half * 16), b = _mm512_loadu_si512(bias + half * 16);
        __m512i v = _mm512_sub_epi32(b, _mm512_slli_epi32(dot, 1));
        __mmask16 m = _mm512_cmplt_epi32_mask(v, _mm512_set1_epi32(top->value[15]));
        if (m == 0) continue;
        int32_t values[16] __attribute__((aligned(64)));
        _mm512_store_si512(values, v);
        __m512i sorted = _mm512_load_si512(top->value), ids = _mm512_loadu_si512(top->id);
        for (; m != 0; m &= (__mmask16)(m - 1)) {
            uint32_t i = (uint32_t)__builtin_ctz(m);
            __m512i x = _mm512_set1_epi32(values[i]);
            __mmask16 after = _mm512_cmpgt_epi32_mask(sorted,
                    x); /* these move up by one; a suffix, as it is sorted */
            __mmask16 here = (__mmask16)(after & ~(after << 1));
            __m512i from = _mm512_mask_mov_epi32(lane, after, before);
            sorted = _mm512_mask_mov_epi32(_mm512_permutexvar_epi32(from, sorted), here, x);
            ids = _mm512_mask_mov_epi32(_mm512_permutexvar_epi32(from, ids), here,
                    _mm512_set1_epi32((int)(first_id + half * 16 + i)));
        }
        _mm512_store_si512(top->value, sorted);
        _mm512_storeu_si512(top->id, ids);
    }
}

static uint64_t occlude_64_avx512(const int32_t *dots, const int32_t *norms, int32_t norm, const float *reach,
        float alpha)
{
    uint64_t mask = 0;
#pragma GCC unroll 4
    for (uint32_t i = 0; i < 64; i += 16) {
        __m512i d = _mm512_add_epi32(_mm512_loadu_si512(norms + i), _mm512_set1_epi32(norm));
        d = _mm512_sub_epi32(d, _mm512_slli_epi32(_mm512_loadu_si512(dots + i), 1));
        __m512 scaled = _mm512_mul_ps(_mm512_set1_ps(alpha), _mm512_cvtepi32_ps(d));
        mask |= (uint64_t)_mm512_cmp_ps_mask(scaled, _mm512_loadu_ps(reach + i), _CMP_LE_OQ) << i;
    }
    return mask;
}

static void sign_code_avx512(const float *z, const float *centre, uint32_t dim, uint8_t *signs_out,
        float sums_out[3])
{
    const __m512 zero = _mm512_setzero_ps();
    __m512 absolute = zero, square = zero, product = zero;
    for (uint32_t i = 0; i < dim; i += 16) {
        __m512 c = centre == NULL ? zero : _mm512_loadu_ps(centre + i),
               r = _mm512_sub_ps(_mm512_loadu_ps(z + i), c);
        __mmask16 positive = _mm512_cmp_ps_mask(r, zero, _CMP_GE_OQ);
        memcpy(signs_out + i / 8, &positive, sizeof positive);
        absolute = _mm512_add_ps(absolute, _mm512_abs_ps(r));
        square = _mm512_fmadd_ps(r, r, square);
        product = _mm512_add_ps(product, _mm512_mask_sub_ps(c, (__mmask16)~positive, zero, c));
    }
    sums_out[0] = _mm512_reduce_add_ps(absolute);
    sums_out[1] = _mm512_reduce_add_ps(square);
    sums_out[2] = _mm512_reduce_add_ps(product);
}

static void widen_f16_avx512(const uint16_t *f16, uint32_t dim, float *out)
{
    for (uint32_t i = 0; i < dim; i += 16)
        _mm512_storeu_ps(out + i,
                _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(f16 + i))));
}

ALWAYS_INLINE __m512 butterfly(__m512 v, __m512i swap, __mmask16 upper)
{
    __m512 other = _mm512_permutexvar_ps(swap, v);
    return _mm512_mask_sub_ps(_mm512_add_ps(v, other), upper, other, v);
}

/* Keys below the new one are counted eight at a time, from the end, where most new ones belong; those above
 * move up on the way. */
static uint32_t pool_insert_avx512(uint64_t *keys, uint32_t *count, uint32_t cap, uint64_t key)
{
    const __m512i x = _mm512_set1_epi64((long long)key);
    uint32_t n = *count;
    if (n == cap) {
        if (cap == 0 || keys[n - 1] <= key) return cap;
        n--; /* the largest is overwritten */
    } else
        *count = n + 1;
    uint32_t at = n;
    while (at >= 8) {
        __m512i block = _mm512_loadu_si512(keys + at - 8);
        __mmask8 above = _mm512_cmpgt_epu64_mask(block, x); /* a suffix: they are sorted */
        _mm512_mask_storeu_epi64(keys + at - 7, above, block);
        if (above != 0xff) {
            at -= (uint32_t)__builtin_popcount(above);
            keys[at] = key;
            return at;
        }
        at -= 8;
    }
    __mmask8 valid = (__mmask8)((1u << at) - 1);
    __m512i block = _mm512_maskz_loadu_epi64(valid, keys);
    __mmask8 above = _mm512_mask_cmpgt_epu64_mask(valid, block, x);
    _mm512_mask_storeu_epi64(keys + 1, above, block);
    at -= (uint32_t)__builtin_popcount(above);
    keys[at] = key;
    return at;
}

static void lut_build_avx512(const float *z, uint32_t dim, float inverse, uint8_t *lut_out)
{
    static const __mmask16 with[4] = { 0xaaaa, 0xcccc, 0xf0f0, 0xff00 }; /* nibbles that have bit j */
    const __m512 scale = _mm512_set1_ps(inverse), half = _mm512_set1_ps(0.5f), zero = _mm512_setzero_ps();
    const __m512i most = _mm512_set1_epi32(CODE_LUT_MAX);
    for (uint32_t i = 0; i < dim; i += 4) {
        __m512 sum = zero, low = zero;
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            __m512 component = _mm512_set1_ps(z[i + (uint32_t)j]);
            sum = _mm512_add_ps(sum, _mm512_maskz_mov_ps(with[j], component));
            low = _mm512_add_ps(low, _mm512_min_ps(component, zero));
        }
        __m512i level = _mm512_cvttps_epi32(
                _mm512_add_ps(_mm512_mul_ps(_mm512_sub_ps(sum, low), scale), half));
        level = _mm512_max_epi32(_mm512_min_epi32(level, most), _mm512_setzero_si512());
        _mm_storeu_si128((__m128i *)(void *)(lut_out + (size_t)i * 4), _mm512_cvtepi32_epi8(level));
    }
}

static void narrow_f16_avx512(const float *v, uint32_t dim, uint16_t *f16_out)
{
    for (uint32_t i = 0; i < dim; i += 16)
        _mm256_storeu_si256((__m256i *)(void *)(f16_out + i),
                _mm512_cvtps_ph(_mm512_loadu_ps(v + i), _MM_FROUND_TO_NEAREST_INT));
}

static void hadamard_avx512(float *v, uint32_t n)
{
    const __m512i i = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i x1 = _mm512_xor_si512(i, _mm512_set1_epi32(1)),
                  x2 = _mm512_xor_si512(i, _mm512_set1_epi32(2));
    const __m512i x4 = _mm512_xor_si512(i, _mm512_set1_epi32(4)),
                  x8 = _mm512_xor_si512(i, _mm512_set1_epi32(8));
    for (uint32_t j = 0; j < n; j += 16) {
        __m512 r = _mm512_loadu_ps(v + j);
        r = butterfly(r, x1, 0xaaaa);
        r = butterfly(r, x2, 0xcccc);
        r = butterfly(r, x4, 0xf0f0);
        _mm512_storeu_ps(v + j, butterfly(r, x8, 0xff00));
    }
    for (uint32_t half = 16; half < n; half *= 2) {
        for (uint32_t a = 0; a < n; a += 2 * half) {
            for (uint32_t j = a; j < a + half; j += 16) {
                __m512 x = _mm512_loadu_ps(v + j), y = _mm512_loadu_ps(v + j + half);
                _mm512_storeu_ps(v + j, _mm512_add_ps(x, y));
                _mm512_storeu_ps(v + j + half, _mm512_sub_ps(x, y));
            }
        }
    }
}

const struct code_kernel code_kernel_avx512 = {
    .isa = KERNEL_AVX512,
    .estimate_32 = estimate_32_avx512,
    .l2sq_f32_u8 = l2sq_f32_u8_avx512,
    .pack_tile = pack_tile_avx512,
    .dot_tile = dot_tile_avx512,
    .split_i8 = split_i8_avx2,
    .select_32 = select_32_avx512,
    .occlude_64 = occlude_64_avx512,
    .sign_code = sign_code_avx512,
    .widen_f16 = widen_f16_avx512,
    .pool_insert = pool_insert_avx512,
    .pool_merge = pool_merge_avx2,
    .lut_build = lut_build_avx512,
    .narrow_f16 = narrow_f16_avx512,
    .l2sq_f32_f16 = l2sq_f32_f16_avx2,
    .dot_f32_f16 = dot_f32_f16_avx2,
    .hadamard = hadamard_avx512,
};

#endif
