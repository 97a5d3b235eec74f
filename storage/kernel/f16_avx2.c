/* Distances between an f32 query and f16 rows with AVX2 and F16C: widened as they are read, then the lanes and the tree
 * of avx2.c. Half of the bytes of f32 rows; three significant digits. Threads: no state. */
#include "common/err.h"

#ifdef __x86_64__
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("avx2,fma,f16c")
#pragma GCC optimize("fp-contract=off")
#endif

#include "storage/kernel/code_isa.h"

#include <immintrin.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))

ALWAYS_INLINE __m256 wide(const uint16_t *row)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)row));
}

ALWAYS_INLINE float tree_sum(__m256 low, __m256 high)
{
    __m256 s8 = _mm256_add_ps(low, high);
    __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
}

float l2sq_f32_f16_avx2(const float *query, const uint16_t *row, uint32_t dim)
{
    __m256 low = _mm256_setzero_ps(), high = _mm256_setzero_ps();
    for (uint32_t i = 0; i < dim; i += 16) {
        __m256 a = _mm256_sub_ps(_mm256_loadu_ps(query + i), wide(row + i));
        __m256 b = _mm256_sub_ps(_mm256_loadu_ps(query + i + 8), wide(row + i + 8));
        low = _mm256_fmadd_ps(a, a, low);
        high = _mm256_fmadd_ps(b, b, high);
    }
    return tree_sum(low, high);
}

float dot_f32_f16_avx2(const float *query, const uint16_t *row, uint32_t dim)
{
    __m256 low = _mm256_setzero_ps(), high = _mm256_setzero_ps();
    for (uint32_t i = 0; i < dim; i += 16) {
        low = _mm256_fmadd_ps(_mm256_loadu_ps(query + i), wide(row + i), low);
        high = _mm256_fmadd_ps(_mm256_loadu_ps(query + i + 8), wide(row + i + 8), high);
    }
    return tree_sum(low, high);
}

#endif
