/* Sets of a segment's rows as words, one bit a row: what filters are computed in and what graphs are searched under.
 * Sets that stay in memory are roaring bitmaps or ascending lists; they are only ever poured into words.
 *
 * A set of `rows` rows has rowbits_words(rows) words; bits past the last row are zero, always.
 * Threads: none of its own. The only home of roaring's containers. */
#ifndef OMEN_STORAGE_PAYLOAD_ROWBITS_H
#define OMEN_STORAGE_PAYLOAD_ROWBITS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct roaring_bitmap_s;

static inline size_t rowbits_words(uint32_t rows) { return ((size_t)rows + 63) / 64; }
/* Of a buffer that roaring bitmaps are poured into: their containers are whole. */
static inline size_t rowbits_capacity(uint32_t rows) { return (rowbits_words(rows) + 1023) & ~(size_t)1023; }
static inline bool rowbits_has(const uint64_t *words, uint32_t row)
{
    return words[row / 64] >> (row % 64) & 1;
}
static inline void rowbits_add(uint64_t *words, uint32_t row)
{
    words[row / 64] |= UINT64_C(1) << (row % 64);
}

void rowbits_none(uint64_t *words, uint32_t rows);
void rowbits_all(uint64_t *words, uint32_t rows);
void rowbits_run(uint64_t *words, uint32_t rows, uint32_t first, uint32_t end); /* exactly [first, end) */
void rowbits_and(uint64_t *words, const uint64_t *other, uint32_t rows);
void rowbits_or(uint64_t *words, const uint64_t *other, uint32_t rows);
void rowbits_and_not(uint64_t *words, const uint64_t *other, uint32_t rows);
void rowbits_not(uint64_t *words, uint32_t rows);
bool rowbits_meet(const uint64_t *a, const uint64_t *b, uint32_t rows); /* a row in both */
uint64_t rowbits_count(const uint64_t *words, uint32_t rows);

void rowbits_or_list(uint64_t *words, const uint32_t *list, size_t count);
/* `words` has rowbits_capacity(rows), all members of the set are below `rows`. Cost: 8 KiB copied per 65,536 rows
 * where it is dense. */
void rowbits_or_roaring(uint64_t *words, const struct roaring_bitmap_s *set);
void rowbits_and_not_roaring(uint64_t *words, const struct roaring_bitmap_s *set);

#endif
