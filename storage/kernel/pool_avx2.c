/* The candidate pool's merge with AVX2, also used beside AVX-512.
 *
 * New keys are ranked against the whole pool by vector comparisons, all at once and before anything is written:
 * one insertion after the other is a chain of loads that wait for the stores before them (a third of a search's
 * time at pool 56 on Zen 3). Threads: no state. */
#include "common/err.h"

#ifdef __x86_64__
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("avx2")
#endif

#include "storage/kernel/code_isa.h"

#include <immintrin.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define LINEAR_KEYS 64 /* from here on counting beats halving */

ALWAYS_INLINE __m256i load(const uint64_t *p) { return _mm256_loadu_si256((const __m256i *)(const void *)p); }
ALWAYS_INLINE void store(uint64_t *p, __m256i v) { _mm256_storeu_si256((__m256i *)(void *)p, v); }

/* How many of count keys are below `key`; keys past the end are read up to the next multiple of four, and not
 * counted. */
ALWAYS_INLINE uint32_t below(const uint64_t *keys, uint32_t count, __m256i key)
{
    const __m256i place = _mm256_set_epi64x(3, 2, 1, 0);
    __m256i sum = _mm256_setzero_si256();
    uint32_t i = 0;
    for (; i + 4 <= count; i += 4) sum = _mm256_sub_epi64(sum, _mm256_cmpgt_epi64(key, load(keys + i)));
    __m256i inside = _mm256_cmpgt_epi64(_mm256_set1_epi64x((long long)(count - i)), place);
    sum = _mm256_sub_epi64(sum, _mm256_and_si256(inside, _mm256_cmpgt_epi64(key, load(keys + i))));
    __m128i two = _mm_add_epi64(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    return (uint32_t)(_mm_cvtsi128_si32(two) + _mm_extract_epi32(two, 2));
}

ALWAYS_INLINE uint32_t rank(const uint64_t *keys, uint32_t count, uint64_t key)
{
    uint32_t low = 0, n = count;
    while (n > LINEAR_KEYS) {
        uint32_t half = (n + 1) / 2;
        low += half & (0u - (uint32_t)(keys[low + half - 1] < key));
        n -= half;
    }
    return low + below(keys + low, n, _mm256_set1_epi64x((long long)key));
}

/* The few new keys in order. Equal ones, which no sound graph has in one row, fall on one place: then one after
 * the other. */
ALWAYS_INLINE void sort_few(const uint64_t *fresh, uint32_t n, uint64_t *sorted)
{
    uint32_t taken = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = below(fresh, n, _mm256_set1_epi64x((long long)fresh[i]));
        sorted[at] = fresh[i];
        taken |= 1u << at;
    }
    if (taken == (n == 32 ? UINT32_MAX : (1u << n) - 1)) return;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = i;
        for (; at > 0 && sorted[at - 1] > fresh[i]; at--) sorted[at] = sorted[at - 1];
        sorted[at] = fresh[i];
    }
}

uint32_t pool_merge_avx2(const uint64_t *keys, uint32_t count, uint32_t cap, const uint64_t *fresh,
        uint32_t n, uint64_t *out)
{
    uint64_t sorted[CODE_GROUP];
    uint32_t ranks[CODE_GROUP] = { 0 }, from = 0, i = 0;
    sort_few(fresh, n, sorted);
    for (uint32_t j = 0; j < n; j++) ranks[j] = rank(keys, count, sorted[j]);
    for (; i < n && ranks[i] + i < cap; from = ranks[i++]) { /* fours reach too far: what follows covers it */
        for (uint32_t j = from; j < ranks[i]; j += 4) store(out + j + i, load(keys + j));
        out[ranks[i] + i] = sorted[i];
    }
    for (uint32_t j = from; j < count && j + i < cap; j += 4) store(out + j + i, load(keys + j));
    return ranks[0];
}

#endif
