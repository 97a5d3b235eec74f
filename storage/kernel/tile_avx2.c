/* Products of 8-bit codes in tiles of 32 rows with AVX2: what the sealed graph's builder spends its time in.
 *
 * Codes lie within +-CODE_TILE_MAX and packed bytes within 1..127, so that two byte products and their sum with
 * two more fit 16 bits: 4 * 127 * 63 = 32,004. Then four multiplying instructions do what six do when bytes are
 * widened first, and no widening is left: 5.5 times the rate of the widening form. Threads: no state. */
#include "common/err.h"

#ifdef __x86_64__
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("avx2,fma,f16c")
#pragma GCC optimize("fp-contract=off")
#endif

#include "storage/kernel/code_isa.h"

#include <immintrin.h>
#include <string.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))

ALWAYS_INLINE __m256i load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
ALWAYS_INLINE void store(void *p, __m256i v) { _mm256_storeu_si256((__m256i *)p, v); }

/* Eight rows of eight 32-bit words: words become rows. */
ALWAYS_INLINE void transpose_8(__m256i r[8])
{
    __m256i a[8], b[8];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        a[2 * i] = _mm256_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        b[4 * i] = _mm256_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 1] = _mm256_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 2] = _mm256_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
        b[4 * i + 3] = _mm256_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x20);
        r[i + 4] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x31);
    }
}

void pack_tile_avx2(const int8_t *const *rows, uint32_t count, uint32_t dim, uint8_t *packed_out)
{
    const __m256i offset = _mm256_set1_epi8(CODE_TILE_OFFSET);
    for (uint32_t d = 0; d < dim; d += 32) {
        for (uint32_t part = 0; part < CODE_TILE_ROWS; part += 8) {
            __m256i r[8];
#pragma GCC unroll 8
            for (uint32_t i = 0; i < 8; i++)
                r[i] = part + i < count ? _mm256_add_epi8(load(rows[part + i] + d), offset)
                                        : _mm256_setzero_si256();
            transpose_8(r);
#pragma GCC unroll 8
            for (uint32_t i = 0; i < 8; i++)
                store(packed_out + ((size_t)(d / 4 + i) * CODE_TILE_ROWS + part) * 4, r[i]);
        }
    }
}

ALWAYS_INLINE __m256i four_of(const int8_t *row)
{
    int32_t four;
    memcpy(&four, row, sizeof four);
    return _mm256_set1_epi32(four);
}

#define TILE_A 2 /* rows at a time: 8 accumulators, and what is loaded serves both */

ALWAYS_INLINE void dot_rows(const int8_t *const *rows, uint32_t n, uint32_t dim, const uint8_t *packed,
        int32_t *dots_out, size_t stride)
{
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i acc[TILE_A][4];
    for (uint32_t a = 0; a < n; a++)
        for (uint32_t part = 0; part < 4; part++) acc[a][part] = _mm256_setzero_si256();
    for (uint32_t d = 0; d < dim; d += 8) {
        const uint8_t *p = packed + (size_t)d * CODE_TILE_ROWS;
        __m256i q0[TILE_A], q1[TILE_A];
#pragma GCC unroll 2
        for (uint32_t a = 0; a < n; a++) {
            q0[a] = four_of(rows[a] + d);
            q1[a] = four_of(rows[a] + d + 4);
        }
#pragma GCC unroll 4
        for (uint32_t part = 0; part < 4; part++) {
            __m256i p0 = load(p + part * 32), p1 = load(p + 4 * CODE_TILE_ROWS + part * 32);
#pragma GCC unroll 2
            for (uint32_t a = 0; a < n; a++) {
                __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(p0, q0[a]),
                        _mm256_maddubs_epi16(p1, q1[a]));
                acc[a][part] = _mm256_add_epi32(acc[a][part], _mm256_madd_epi16(pairs, ones));
            }
        }
    }
    for (uint32_t a = 0; a < n; a++)
        for (uint32_t part = 0; part < 4; part++) store(dots_out + a * stride + part * 8, acc[a][part]);
}

void dot_tile_avx2(const int8_t *const *rows, uint32_t count, uint32_t dim, const uint8_t *packed,
        int32_t *dots_out, size_t stride)
{
    uint32_t a = 0;
    for (; a + TILE_A <= count; a += TILE_A)
        dot_rows(rows + a, TILE_A, dim, packed, dots_out + a * stride, stride);
    if (a < count) dot_rows(rows + a, 1, dim, packed, dots_out + a * stride, stride);
}

/* Four registers of words within +-127 as bytes, in order. */
ALWAYS_INLINE __m256i bytes_of(const __m256 words[4])
{
    __m256i a = _mm256_packs_epi32(_mm256_cvtps_epi32(words[0]), _mm256_cvtps_epi32(words[1]));
    __m256i b = _mm256_packs_epi32(_mm256_cvtps_epi32(words[2]), _mm256_cvtps_epi32(words[3]));
    return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(a, b), _mm256_set_epi32(7, 3, 6, 2, 5, 1, 4, 0));
}

void split_i8_avx2(const float *v, uint32_t dim, float inverse, int8_t *high_out, int8_t *low_out)
{
    const __m256 scale = _mm256_set1_ps(inverse), part = _mm256_set1_ps(1.0f / CODE_SPLIT_BASE),
                 base = _mm256_set1_ps(CODE_SPLIT_BASE);
    for (uint32_t i = 0; i < dim; i += 32) {
        __m256 high[4], low[4];
#pragma GCC unroll 4
        for (uint32_t j = 0; j < 4; j++) {
            __m256 whole = _mm256_round_ps(_mm256_mul_ps(_mm256_loadu_ps(v + i + j * 8), scale), 0);
            high[j] = _mm256_round_ps(_mm256_mul_ps(whole, part), 0);
            low[j] = _mm256_sub_ps(whole, _mm256_mul_ps(high[j], base));
        }
        store(high_out + i, bytes_of(high));
        store(low_out + i, bytes_of(low));
    }
}

/* Words one place on: the last of `before`, then the first seven of `words`. */
ALWAYS_INLINE __m256i moved(__m256i before, __m256i words)
{
    return _mm256_alignr_epi8(words, _mm256_permute2x128_si256(before, words, 0x21), 12);
}

/* `old` where nothing changes; past that `fresh` in the first place, then what stood one place before. */
ALWAYS_INLINE __m256i pushed(__m256i old, __m256i fresh, __m256i after, __m256i old_moved,
        __m256i after_moved)
{
    return _mm256_blendv_epi8(old, _mm256_blendv_epi8(fresh, old_moved, after_moved), after);
}

/* Insertion without branches in four registers: one after the other in memory took 1.7 us for the 16 nearest of 1,000,
 * a sixth of a build. */
void select_32_avx2(const int32_t *dots, const int32_t *bias, uint32_t first_id, struct code_top16 *top)
{
    const __m256i worst = _mm256_set1_epi32(top->value[15]);
    int32_t values[32] __attribute__((aligned(32)));
    uint32_t nearer = 0;
#pragma GCC unroll 4
    for (uint32_t i = 0; i < 32; i += 8) {
        __m256i v = _mm256_sub_epi32(load(bias + i), _mm256_slli_epi32(load(dots + i), 1));
        store(values + i, v);
        nearer |= (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(worst, v))) << i;
    }
    if (nearer == 0) return;
    __m256i v0 = load(top->value), v1 = load(top->value + 8), id0 = load(top->id), id1 = load(top->id + 8);
    for (; nearer != 0; nearer &= nearer - 1) {
        uint32_t i = (uint32_t)__builtin_ctz(nearer);
        __m256i value = _mm256_set1_epi32(values[i]), id = _mm256_set1_epi32((int32_t)(first_id + i));
        __m256i after0 = _mm256_cmpgt_epi32(v0, value), after1 = _mm256_cmpgt_epi32(v1, value);
        v1 = pushed(v1, value, after1, moved(v0, v1), moved(after0, after1));
        id1 = pushed(id1, id, after1, moved(id0, id1), moved(after0, after1));
        v0 = pushed(v0, value, after0, moved(_mm256_setzero_si256(), v0),
                moved(_mm256_setzero_si256(), after0));
        id0 = pushed(id0, id, after0, moved(_mm256_setzero_si256(), id0),
                moved(_mm256_setzero_si256(), after0));
    }
    store(top->value, v0);
    store(top->value + 8, v1);
    store(top->id, id0);
    store(top->id + 8, id1);
}

#endif
