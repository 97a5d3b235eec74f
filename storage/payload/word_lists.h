/* Lists of rows as the words of texts have them: short, mapped as they lie, and poured into words of bits without a copy.
 *
 * A list is a run of chunks, ascending, one for each 65,536 rows of which it has some. A chunk, in u16 little-endian:
 *   its number | rows in it, less one | the low halves of the rows, ascending; of more than 4,096 rows 4,096 u16 instead,
 *   one bit a row (bit r % 16 of u16 r / 16)
 * These are roaring's containers in a form that can be checked to the last bit: roaring's own decoder does not look at
 * what it is given.
 * Threads: none of its own. */
#ifndef OMEN_STORAGE_PAYLOAD_WORD_LISTS_H
#define OMEN_STORAGE_PAYLOAD_WORD_LISTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WORD_CHUNK_ROWS 65536u
#define WORD_CHUNK_HEAD 2u    /* u16 before the rows */
#define WORD_CHUNK_LIST 4096u /* rows of a chunk that are listed at most; and u16 of one that has more */

struct word_list {
    const uint16_t *units; /* [count] */
    size_t count;
};

static inline size_t word_chunk_units(uint32_t rows)
{
    return WORD_CHUNK_HEAD + (rows <= WORD_CHUNK_LIST ? rows : WORD_CHUNK_LIST);
}

/* What is wrong with a list of rows below `rows`; NULL: nothing. Everything below trusts a list that passed. */
const char *word_list_wrong(struct word_list list, uint32_t rows);
uint64_t word_list_rows(struct word_list list); /* cost: its chunks */
/* words |= list, words &= list; both have rowbits_capacity(rows) of the rows that the list was checked against. */
void word_list_or(struct word_list list, uint64_t *words);
void word_list_and(struct word_list list, uint64_t *words, uint32_t rows);

#endif
