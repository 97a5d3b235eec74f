/* Words of bits, and roaring bitmaps poured into them container by container; see rowbits.h. */
#include "storage/payload/rowbits.h"

#include <roaring/roaring.h>
#include <string.h>

#include <roaring/containers/containers.h>

#define CHUNK_WORDS 1024u /* of the 65,536 rows of a container */

void rowbits_none(uint64_t *words, uint32_t rows) { memset(words, 0, rowbits_words(rows) * sizeof *words); }

static void tail_clear(uint64_t *words, uint32_t rows)
{
    if (rows % 64 != 0) words[rows / 64] &= (UINT64_C(1) << (rows % 64)) - 1;
}

void rowbits_all(uint64_t *words, uint32_t rows)
{
    memset(words, 0xff, rowbits_words(rows) * sizeof *words);
    tail_clear(words, rows);
}

void rowbits_run(uint64_t *words, uint32_t rows, uint32_t first, uint32_t end)
{
    rowbits_none(words, rows);
    for (uint32_t at = first; at < end;) {
        uint32_t bit = at % 64, n = end - at < 64 - bit ? end - at : 64 - bit;
        words[at / 64] |= (n == 64 ? UINT64_MAX : (UINT64_C(1) << n) - 1) << bit;
        at += n;
    }
}

void rowbits_and(uint64_t *restrict words, const uint64_t *restrict other, uint32_t rows)
{
    for (size_t i = 0, n = rowbits_words(rows); i < n; i++) words[i] &= other[i];
}

void rowbits_or(uint64_t *restrict words, const uint64_t *restrict other, uint32_t rows)
{
    for (size_t i = 0, n = rowbits_words(rows); i < n; i++) words[i] |= other[i];
}

void rowbits_and_not(uint64_t *restrict words, const uint64_t *restrict other, uint32_t rows)
{
    for (size_t i = 0, n = rowbits_words(rows); i < n; i++) words[i] &= ~other[i];
}

void rowbits_not(uint64_t *words, uint32_t rows)
{
    for (size_t i = 0, n = rowbits_words(rows); i < n; i++) words[i] = ~words[i];
    tail_clear(words, rows);
}

bool rowbits_meet(const uint64_t *a, const uint64_t *b, uint32_t rows)
{
    for (size_t i = 0, n = rowbits_words(rows); i < n; i++)
        if ((a[i] & b[i]) != 0) return true;
    return false;
}

/* Sums of bits in fields of 2, 4 and 8 bits: the ABI floor has no instruction for it, and a call per word costs more. */
static uint64_t bytes_of_bits(uint64_t v)
{
    v -= v >> 1 & UINT64_C(0x5555555555555555);
    v = (v & UINT64_C(0x3333333333333333)) + (v >> 2 & UINT64_C(0x3333333333333333));
    return (v + (v >> 4)) & UINT64_C(0x0f0f0f0f0f0f0f0f);
}

static uint64_t count_floor(const uint64_t *words, size_t n)
{
    uint64_t total = 0;
    for (size_t i = 0; i < n;) { /* a byte holds the sums of 31 words */
        size_t end = n - i > 31 ? i + 31 : n;
        uint64_t bytes = 0;
        for (; i < end; i++) bytes += bytes_of_bits(words[i]);
        uint64_t pairs = (bytes & UINT64_C(0x00ff00ff00ff00ff)) + (bytes >> 8 & UINT64_C(0x00ff00ff00ff00ff));
        total += (pairs * UINT64_C(0x0001000100010001)) >> 48;
    }
    return total;
}

#if defined(__x86_64__)
__attribute__((target("popcnt"))) static uint64_t count_popcnt(const uint64_t *words, size_t n)
{
    uint64_t total = 0;
    for (size_t i = 0; i < n; i++) total += (uint64_t)__builtin_popcountll(words[i]);
    return total;
}
#endif

uint64_t rowbits_count(const uint64_t *words, uint32_t rows)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("popcnt")) return count_popcnt(words, rowbits_words(rows));
#endif
    return count_floor(words, rowbits_words(rows));
}

void rowbits_or_list(uint64_t *words, const uint32_t *list, size_t count)
{
    for (size_t i = 0; i < count; i++) rowbits_add(words, list[i]);
}

/* Rows [first, first + length] of a chunk, set or cleared. */
static void run_put(uint64_t *words, uint32_t first, uint32_t length, bool set)
{
    uint32_t last = first + length;
    for (uint32_t w = first / 64; w <= last / 64; w++) {
        uint64_t mask = UINT64_MAX;
        if (w == first / 64) mask &= UINT64_MAX << (first % 64);
        if (w == last / 64) mask &= UINT64_MAX >> (63 - last % 64);
        words[w] = set ? words[w] | mask : words[w] & ~mask;
    }
}

static void bitset_put(uint64_t *restrict words, const uint64_t *restrict bits, bool set)
{
    if (set) {
        for (uint32_t i = 0; i < CHUNK_WORDS; i++) words[i] |= bits[i];
    } else {
        for (uint32_t i = 0; i < CHUNK_WORDS; i++) words[i] &= ~bits[i];
    }
}

static void array_put(uint64_t *words, const uint16_t *rows, int32_t count, bool set)
{
    if (set) {
        for (int32_t i = 0; i < count; i++) words[rows[i] / 64] |= UINT64_C(1) << (rows[i] % 64);
    } else {
        for (int32_t i = 0; i < count; i++) words[rows[i] / 64] &= ~(UINT64_C(1) << (rows[i] % 64));
    }
}

static void container_put(uint64_t *words, const void *container, uint8_t type, bool set)
{
    if (type == SHARED_CONTAINER_TYPE_CODE) container = container_unwrap_shared(container, &type);
    if (type == BITSET_CONTAINER_TYPE_CODE) {
        bitset_put(words, ((const bitset_container_t *)container)->array, set);
    } else if (type == ARRAY_CONTAINER_TYPE_CODE) {
        const array_container_t *array = container;
        array_put(words, array->array, array->cardinality, set);
    } else {
        const run_container_t *runs = container;
        for (int32_t i = 0; i < runs->n_runs; i++)
            run_put(words, runs->runs[i].value, runs->runs[i].length, set);
    }
}

static void roaring_put(uint64_t *words, const struct roaring_bitmap_s *set, bool value)
{
    const roaring_array_t *array = &set->high_low_container;
    for (int32_t i = 0; i < array->size; i++)
        container_put(words + (size_t)array->keys[i] * CHUNK_WORDS, array->containers[i], array->typecodes[i],
                value);
}

void rowbits_or_roaring(uint64_t *words, const struct roaring_bitmap_s *set)
{
    roaring_put(words, set, true);
}

void rowbits_and_not_roaring(uint64_t *words, const struct roaring_bitmap_s *set)
{
    roaring_put(words, set, false);
}
