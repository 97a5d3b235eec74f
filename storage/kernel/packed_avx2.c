/* Kernels over packed codes with AVX2: codes are spread to bytes in registers and multiplied with the query's
 * bytes in pairs. Equal to packed_scalar.c: integer sums do not depend on order.
 *
 * Four codes side by side: their loads are in flight together and one tree sums all four. A 16-bit sum of
 * pairs overflows after so many blocks as wide_after() says; then it is widened. Threads: no state. */
#include "common/err.h"

#ifdef __x86_64__
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("avx2,fma")
#pragma GCC optimize("fp-contract=off")
#endif

#include "storage/kernel/packed_isa.h"

#include <immintrin.h>
#include <string.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define AT_ONCE 4

ALWAYS_INLINE __m256i load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }

/* 64 components of one block as two registers of bytes. */
ALWAYS_INLINE void spread(const uint8_t *code, uint32_t bits, __m256i *low, __m256i *high)
{
    if (bits == 4 || bits == 6) {
        const __m256i nibble = _mm256_set1_epi8(15);
        __m256i c = load(code);
        *low = _mm256_and_si256(c, nibble);
        *high = _mm256_and_si256(_mm256_srli_epi16(c, 4), nibble);
    }
    if (bits == 2 || bits == 6) {
        const __m256i two = _mm256_set1_epi8(3), by = _mm256_set_epi32(2, 2, 2, 2, 0, 0, 0, 0);
        const uint8_t *at = bits == 6 ? code + 32 : code;
        __m256i c = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)at));
        __m256i l = _mm256_and_si256(_mm256_srlv_epi32(c, by), two);
        __m256i h = _mm256_and_si256(_mm256_srlv_epi32(_mm256_srli_epi32(c, 4), by), two);
        *low = bits == 2 ? l : _mm256_or_si256(*low, _mm256_slli_epi16(l, 4));
        *high = bits == 2 ? h : _mm256_or_si256(*high, _mm256_slli_epi16(h, 4));
    }
    if (bits == 1) {
        const __m256i one = _mm256_set1_epi8(1), by = _mm256_set_epi64x(3, 2, 1, 0);
        int64_t eight;
        memcpy(&eight, code, sizeof eight);
        __m256i c = _mm256_set1_epi64x(eight);
        *low = _mm256_and_si256(_mm256_srlv_epi64(c, by), one);
        *high = _mm256_and_si256(_mm256_srlv_epi64(_mm256_srli_epi64(c, 4), by), one);
    }
}

/* Blocks whose products fit 16 bits: 4 * 127 * largest level each. */
ALWAYS_INLINE uint32_t wide_after(uint32_t bits)
{
    return bits == 1 ? 64 : bits == 2 ? 21 : bits == 4 ? 4 : 1;
}

ALWAYS_INLINE void sums_narrow(const struct packed_query *query, const uint8_t *const *codes, uint32_t n,
        uint32_t bits, bool square, __m256i dots[AT_ONCE], __m256i squares[AT_ONCE])
{
    const __m256i ones = _mm256_set1_epi16(1), top = _mm256_set1_epi8((char)((1u << bits) - 1));
    uint32_t blocks = query->dim / 64;
    for (uint32_t first = 0; first < blocks; first += wide_after(bits)) {
        uint32_t end = blocks - first < wide_after(bits) ? blocks : first + wide_after(bits);
        __m256i dot[AT_ONCE], sq[AT_ONCE];
#pragma GCC unroll 4
        for (uint32_t v = 0; v < n; v++) dot[v] = sq[v] = _mm256_setzero_si256();
        for (uint32_t b = first; b < end; b++) {
            __m256i q_low = load(query->narrow + b * 64), q_high = load(query->narrow + b * 64 + 32);
#pragma GCC unroll 4
            for (uint32_t v = 0; v < n; v++) {
                __m256i low, high;
                spread(codes[v] + (size_t)b * 8 * bits, bits, &low, &high);
                dot[v] = _mm256_add_epi16(dot[v],
                        _mm256_add_epi16(_mm256_maddubs_epi16(low, q_low),
                                _mm256_maddubs_epi16(high, q_high)));
                if (square)
                    sq[v] = _mm256_add_epi16(sq[v],
                            _mm256_add_epi16(_mm256_maddubs_epi16(low, _mm256_sub_epi8(low, top)),
                                    _mm256_maddubs_epi16(high, _mm256_sub_epi8(high, top))));
            }
        }
#pragma GCC unroll 4
        for (uint32_t v = 0; v < n; v++) {
            dots[v] = _mm256_add_epi32(dots[v], _mm256_madd_epi16(dot[v], ones));
            if (square) squares[v] = _mm256_add_epi32(squares[v], _mm256_madd_epi16(sq[v], ones));
        }
    }
}

ALWAYS_INLINE void sums_wide(const struct packed_query *query, const uint8_t *const *codes, uint32_t n,
        bool square, __m256i dots[AT_ONCE], __m256i squares[AT_ONCE])
{
    const __m256i top = _mm256_set1_epi16(255);
    for (uint32_t i = 0; i < query->dim; i += 16) {
        __m256i q = load(query->wide + i);
#pragma GCC unroll 4
        for (uint32_t v = 0; v < n; v++) {
            __m256i c = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(codes[v] + i)));
            dots[v] = _mm256_add_epi32(dots[v], _mm256_madd_epi16(c, q));
            if (square)
                squares[v] = _mm256_add_epi32(squares[v], _mm256_madd_epi16(c, _mm256_sub_epi16(c, top)));
        }
    }
}

/* The sum of each of four registers. */
ALWAYS_INLINE __m128i sum_four(const __m256i v[AT_ONCE])
{
    __m256i pairs = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
    return _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
}

/* f and g of four codes. */
ALWAYS_INLINE void factors_load(const uint8_t *const *codes, size_t at, __m128 *f, __m128 *g)
{
    __m128i a = _mm_loadl_epi64((const __m128i *)(const void *)(codes[0] + at)),
            b = _mm_loadl_epi64((const __m128i *)(const void *)(codes[1] + at)),
            c = _mm_loadl_epi64((const __m128i *)(const void *)(codes[2] + at)),
            d = _mm_loadl_epi64((const __m128i *)(const void *)(codes[3] + at));
    __m128i ab = _mm_unpacklo_epi32(a, b), cd = _mm_unpacklo_epi32(c, d);
    *f = _mm_castsi128_ps(_mm_unpacklo_epi64(ab, cd));
    *g = _mm_castsi128_ps(_mm_unpackhi_epi64(ab, cd));
}

ALWAYS_INLINE __m128 estimate_four(const struct packed_query *query, const uint8_t *const *codes,
        uint32_t bits, bool factors)
{
    __m256i dots[AT_ONCE], squares[AT_ONCE];
#pragma GCC unroll 4
    for (uint32_t v = 0; v < AT_ONCE; v++) dots[v] = squares[v] = _mm256_setzero_si256();
    if (bits == 8)
        sums_wide(query, codes, AT_ONCE, !factors, dots, squares);
    else
        sums_narrow(query, codes, AT_ONCE, bits, !factors, dots, squares);
    __m128 dot = _mm_cvtepi32_ps(sum_four(dots)), scale = _mm_set1_ps(query->dot_scale), e;
    if (factors) {
        __m128 f, g;
        factors_load(codes, packed_bytes(query->dim, bits), &f, &g);
        e = _mm_fmadd_ps(g, _mm_fmadd_ps(dot, scale, _mm_set1_ps(query->bias)),
                _mm_fmadd_ps(f, _mm_set1_ps(query->f_scale), _mm_set1_ps(query->base)));
    } else {
        e = _mm_fmadd_ps(dot, scale, _mm_set1_ps(query->base));
        e = _mm_fmadd_ps(_mm_cvtepi32_ps(sum_four(squares)), _mm_set1_ps(query->square_scale), e);
    }
    return _mm_max_ps(e, _mm_set1_ps(query->floor));
}

ALWAYS_INLINE void estimate_all(const struct packed_query *query, const uint8_t *codes, size_t stride,
        const uint32_t *ids, uint32_t count, uint32_t bits, bool factors, float *estimates_out)
{
    for (uint32_t i = 0; i < count; i += AT_ONCE) {
        const uint8_t *four[AT_ONCE];
        for (uint32_t v = 0; v < AT_ONCE; v++) { /* the last ones may stand for those that are missing */
            uint32_t at = i + v < count ? i + v : count - 1;
            four[v] = codes + stride * (ids == NULL ? at : ids[at]);
        }
        __m128 e = estimate_four(query, four, bits, factors);
        if (count - i >= AT_ONCE)
            _mm_storeu_ps(estimates_out + i, e);
        else {
            float some[AT_ONCE];
            _mm_storeu_ps(some, e);
            memcpy(estimates_out + i, some, (count - i) * sizeof(float));
        }
    }
}

static void estimate_avx2(const struct packed_query *query, const uint8_t *codes, size_t stride,
        const uint32_t *ids, uint32_t count, float *estimates_out)
{
    switch (query->bits * 2 + query->factors) {
    case 16: estimate_all(query, codes, stride, ids, count, 8, false, estimates_out); break;
    case 17: estimate_all(query, codes, stride, ids, count, 8, true, estimates_out); break;
    case 12: estimate_all(query, codes, stride, ids, count, 6, false, estimates_out); break;
    case 13: estimate_all(query, codes, stride, ids, count, 6, true, estimates_out); break;
    case 8: estimate_all(query, codes, stride, ids, count, 4, false, estimates_out); break;
    case 9: estimate_all(query, codes, stride, ids, count, 4, true, estimates_out); break;
    case 4: estimate_all(query, codes, stride, ids, count, 2, false, estimates_out); break;
    case 5: estimate_all(query, codes, stride, ids, count, 2, true, estimates_out); break;
    case 2: estimate_all(query, codes, stride, ids, count, 1, false, estimates_out); break;
    default: estimate_all(query, codes, stride, ids, count, 1, true, estimates_out); break;
    }
}

const struct packed_kernel packed_kernel_avx2 = { .isa = KERNEL_AVX2, .estimate = estimate_avx2 };

#endif
