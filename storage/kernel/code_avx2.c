/* Code kernels with AVX2, FMA and F16C; equal to code_scalar.c as code_avx512.c is. The 16 lanes are two
 * registers. Threads: no state. */
#include "common/err.h"

#ifdef __x86_64__
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("avx2,fma,f16c")
#pragma GCC optimize("fp-contract=off")
#endif

#include "storage/kernel/code_isa.h"

#include <stdbool.h>

#include <immintrin.h>
#include <string.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))

ALWAYS_INLINE __m256i load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }

/* Bytes added up as 16-bit numbers without crossing lanes: whole words, of which the odd bytes are taken off
 * again at the end, and the odd bytes. */
struct sums16 {
    __m256i words, odd;
};

ALWAYS_INLINE void sums16_add(struct sums16 *sums, __m256i bytes)
{
    sums->words = _mm256_add_epi16(sums->words, bytes);
    sums->odd = _mm256_add_epi16(sums->odd, _mm256_srli_epi16(bytes, 8));
}

/* Sums of 16 vectors, both lanes together: the first eight, the second eight. */
ALWAYS_INLINE void sums16_end(const struct sums16 *sums, __m128i out[2])
{
    __m256i even = _mm256_sub_epi16(sums->words, _mm256_slli_epi16(sums->odd, 8));
    __m128i e = _mm_add_epi16(_mm256_castsi256_si128(even), _mm256_extracti128_si256(even, 1));
    __m128i o = _mm_add_epi16(_mm256_castsi256_si128(sums->odd), _mm256_extracti128_si256(sums->odd, 1));
    out[0] = _mm_unpacklo_epi16(e, o);
    out[1] = _mm_unpackhi_epi16(e, o);
}

ALWAYS_INLINE uint32_t estimate_8(const struct code_query *query, __m128i sum16, uint32_t first,
        const struct code_factors *factors, float base, float bound, float *estimates_out)
{
    __m256 sum = _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(sum16));
    sum = _mm256_fmadd_ps(sum, _mm256_set1_ps(query->scale), _mm256_set1_ps(query->bias));
    __m256 g = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(factors->g + first)));
    __m256 f = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(factors->f + first)));
    __m256 e = _mm256_fmadd_ps(_mm256_mul_ps(g, _mm256_set1_ps(factors->g_scale)), sum, _mm256_set1_ps(base));
    e = _mm256_max_ps(_mm256_fmadd_ps(f, _mm256_set1_ps(factors->f_scale), e), _mm256_setzero_ps());
    _mm256_storeu_ps(estimates_out + first, e);
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(e, _mm256_set1_ps(bound), _CMP_LT_OQ)) << first;
}

static uint32_t estimate_32_avx2(const struct code_query *query, const uint8_t *codes,
        const struct code_factors *factors, float base, float bound, float estimates_out[CODE_GROUP])
{
    const __m256i nibble = _mm256_set1_epi8(15);
    struct sums16 low = { _mm256_setzero_si256(), _mm256_setzero_si256() }, high = low;
    for (size_t at = 0; at < (size_t)query->dim * 4; at += 128) { /* four entries share bytes */
        __m256i lo = _mm256_setzero_si256(), hi = _mm256_setzero_si256();
#pragma GCC unroll 4
        for (uint32_t b = 0; b < 128; b += 32) { /* two lanes at a time */
            __m256i c = load(codes + at + b), table = load(query->lut + at + b);
            lo = _mm256_add_epi8(lo, _mm256_shuffle_epi8(table, _mm256_and_si256(c, nibble)));
            c = _mm256_and_si256(_mm256_srli_epi16(c, 4), nibble);
            hi = _mm256_add_epi8(hi, _mm256_shuffle_epi8(table, c));
        }
        sums16_add(&low, lo);
        sums16_add(&high, hi);
    }
    __m128i sums[4];
    sums16_end(&low, sums);
    sums16_end(&high, sums + 2);
    uint32_t mask = 0;
#pragma GCC unroll 4
    for (uint32_t i = 0; i < 4; i++)
        mask |= estimate_8(query, sums[i], i * 8, factors, base, bound, estimates_out);
    return mask;
}

static float l2sq_f32_u8_avx2(const float *query, const uint8_t *code, float lo, float scale, uint32_t dim)
{
    const __m256 lo8 = _mm256_set1_ps(lo), scale8 = _mm256_set1_ps(scale);
    float lanes[16];
    __m256 acc0 = _mm256_setzero_ps(), acc1 = _mm256_setzero_ps();
    uint32_t i = 0;
    for (; i + 16 <= dim; i += 16) {
        __m128i c = _mm_loadu_si128((const __m128i *)(const void *)(code + i));
        __m256 c0 = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(c));
        __m256 c1 = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(c, 8)));
        __m256 d0 = _mm256_sub_ps(_mm256_loadu_ps(query + i), _mm256_fmadd_ps(scale8, c0, lo8));
        __m256 d1 = _mm256_sub_ps(_mm256_loadu_ps(query + i + 8), _mm256_fmadd_ps(scale8, c1, lo8));
        acc0 = _mm256_fmadd_ps(d0, d0, acc0);
        acc1 = _mm256_fmadd_ps(d1, d1, acc1);
    }
    _mm256_storeu_ps(lanes, acc0);
    _mm256_storeu_ps(lanes + 8, acc1);
    for (uint32_t j = 0; i < dim; i++, j++) {
        float d = query[i] - __builtin_fmaf(scale, (float)code[i], lo);
        lanes[j] = __builtin_fmaf(d, d, lanes[j]);
    }
    for (uint32_t half = 8; half > 0; half /= 2)
        for (uint32_t j = 0; j < half; j++) lanes[j] += lanes[j + half];
    return lanes[0];
}

static uint64_t occlude_64_avx2(const int32_t *dots, const int32_t *norms, int32_t norm, const float *reach,
        float alpha)
{
    uint64_t mask = 0;
    for (uint32_t i = 0; i < 64; i += 8) {
        __m256i d = _mm256_add_epi32(load(norms + i), _mm256_set1_epi32(norm));
        d = _mm256_sub_epi32(d, _mm256_slli_epi32(load(dots + i), 1));
        __m256 scaled = _mm256_mul_ps(_mm256_set1_ps(alpha), _mm256_cvtepi32_ps(d));
        mask |= (uint64_t)(uint32_t)_mm256_movemask_ps(
                        _mm256_cmp_ps(scaled, _mm256_loadu_ps(reach + i), _CMP_LE_OQ))
                << i;
    }
    return mask;
}

static float sum_8(__m256 v)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

static void sign_code_avx2(const float *z, const float *centre, uint32_t dim, uint8_t *signs_out,
        float sums_out[3])
{
    const __m256 zero = _mm256_setzero_ps(), minus = _mm256_set1_ps(-0.0f);
    __m256 absolute = zero, square = zero, product = zero;
    for (uint32_t i = 0; i < dim; i += 8) {
        __m256 c = centre == NULL ? zero : _mm256_loadu_ps(centre + i),
               r = _mm256_sub_ps(_mm256_loadu_ps(z + i), c);
        __m256 positive = _mm256_cmp_ps(r, zero, _CMP_GE_OQ);
        signs_out[i / 8] = (uint8_t)_mm256_movemask_ps(positive);
        absolute = _mm256_add_ps(absolute, _mm256_andnot_ps(minus, r));
        square = _mm256_fmadd_ps(r, r, square);
        product = _mm256_add_ps(product, _mm256_xor_ps(c, _mm256_andnot_ps(positive, minus)));
    }
    sums_out[0] = sum_8(absolute);
    sums_out[1] = sum_8(square);
    sums_out[2] = sum_8(product);
}

static void widen_f16_avx2(const uint16_t *f16, uint32_t dim, float *out)
{
    for (uint32_t i = 0; i < dim; i += 8)
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(f16 + i))));
}

/* Positions are unpredictable:
 * the search has no branch on them, and what moves up moves by four. */
static uint32_t pool_insert_avx2(uint64_t *keys, uint32_t *count, uint32_t cap, uint64_t key)
{
    uint32_t low = 0, n = *count;
    while (n > 0) {
        uint32_t half = (n + 1) / 2;
        low += half & (0u - (uint32_t)(keys[low + half - 1] < key)); /* written so that it stays one */
        n -= half;
    }
    if (low >= cap) return low;
    uint32_t last = *count < cap ? (*count)++ : cap - 1;
    __m256i moved = load(keys + low); /* whole fours: what lies past `last` may be overwritten */
    for (uint32_t from = low; from < last; from += 4) {
        __m256i next = load(keys + from + 4);
        _mm256_storeu_si256((__m256i *)(void *)(keys + from + 1), moved);
        moved = next;
    }
    keys[low] = key;
    return low;
}

/* Eight entries of one lane's table: entry n holds the components whose bit is set in n, added in order of
 * dims. */
ALWAYS_INLINE __m256i lut_8(const __m256 *members, __m128 z4, float low, __m256 inverse)
{
    __m256 z = _mm256_broadcast_ps(&z4), sum = _mm256_setzero_ps();
    sum = _mm256_add_ps(sum, _mm256_and_ps(members[0], _mm256_permute_ps(z, 0x00)));
    sum = _mm256_add_ps(sum, _mm256_and_ps(members[1], _mm256_permute_ps(z, 0x55)));
    sum = _mm256_add_ps(sum, _mm256_and_ps(members[2], _mm256_permute_ps(z, 0xaa)));
    sum = _mm256_add_ps(sum, _mm256_and_ps(members[3], _mm256_permute_ps(z, 0xff)));
    sum = _mm256_mul_ps(_mm256_sub_ps(sum, _mm256_set1_ps(low)), inverse);
    __m256i level = _mm256_cvttps_epi32(_mm256_add_ps(sum, _mm256_set1_ps(0.5f)));
    level = _mm256_min_epi32(level, _mm256_set1_epi32(CODE_LUT_MAX));
    return _mm256_max_epi32(level, _mm256_setzero_si256());
}

static void lut_build_avx2(const float *z, uint32_t dim, float inverse, uint8_t *lut_out)
{
    const __m256i n = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
    __m256 first[4], second[4];
    for (int j = 0; j < 3; j++) {
        __m256i bit = _mm256_set1_epi32(1 << j);
        first[j] = second[j] = _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(n, bit), bit));
    }
    first[3] = _mm256_setzero_ps();
    second[3] = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
    for (uint32_t i = 0; i < dim; i += 4) {
        float low = 0;
        for (uint32_t j = 0; j < 4; j++) low += z[i + j] < 0 ? z[i + j] : 0;
        __m128 z4 = _mm_loadu_ps(z + i);
        __m256i a = lut_8(first, z4, low, _mm256_set1_ps(inverse));
        __m256i b = lut_8(second, z4, low, _mm256_set1_ps(inverse));
        __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
        _mm_storeu_si128((__m128i *)(void *)(lut_out + (size_t)i * 4),
                _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
    }
}

static void narrow_f16_avx2(const float *v, uint32_t dim, uint16_t *f16_out)
{
    for (uint32_t i = 0; i < dim; i += 8)
        _mm_storeu_si128((__m128i *)(void *)(f16_out + i),
                _mm256_cvtps_ph(_mm256_loadu_ps(v + i), _MM_FROUND_TO_NEAREST_INT));
}

/* x + y in the places where `second` has no bit, x - y in the others; y is `swapped` seen from x. */
#define BUTTERFLY(v, swapped, second)                                                                        \
    _mm256_blend_ps(_mm256_add_ps(v, swapped), _mm256_sub_ps(swapped, v), second)

static void hadamard_avx2(float *v, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += 8) {
        __m256 x = _mm256_loadu_ps(v + i);
        x = BUTTERFLY(x, _mm256_permute_ps(x, 0xb1), 0xaa);
        x = BUTTERFLY(x, _mm256_permute_ps(x, 0x4e), 0xcc);
        x = BUTTERFLY(x, _mm256_permute2f128_ps(x, x, 0x01), 0xf0);
        _mm256_storeu_ps(v + i, x);
    }
    for (uint32_t half = 8; half < n; half *= 2) {
        for (uint32_t a = 0; a < n; a += 2 * half) {
            for (uint32_t j = a; j < a + half; j += 8) {
                __m256 x = _mm256_loadu_ps(v + j), y = _mm256_loadu_ps(v + j + half);
                _mm256_storeu_ps(v + j, _mm256_add_ps(x, y));
                _mm256_storeu_ps(v + j + half, _mm256_sub_ps(x, y));
            }
        }
    }
}

const struct code_kernel code_kernel_avx2 = {
    .isa = KERNEL_AVX2,
    .estimate_32 = estimate_32_avx2,
    .l2sq_f32_u8 = l2sq_f32_u8_avx2,
    .pack_tile = pack_tile_avx2,
    .dot_tile = dot_tile_avx2,
    .split_i8 = split_i8_avx2,
    .select_32 = select_32_avx2,
    .occlude_64 = occlude_64_avx2,
    .sign_code = sign_code_avx2,
    .widen_f16 = widen_f16_avx2,
    .pool_insert = pool_insert_avx2,
    .pool_merge = pool_merge_avx2,
    .lut_build = lut_build_avx2,
    .narrow_f16 = narrow_f16_avx2,
    .l2sq_f32_f16 = l2sq_f32_f16_avx2,
    .dot_f32_f16 = dot_f32_f16_avx2,
    .hadamard = hadamard_avx2,
};

#endif
