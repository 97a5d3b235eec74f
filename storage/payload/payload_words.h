/* The words of one path's texts while a payload index is built; private to storage/payload.
 *
 *   COUNTING --words_add for every text, rows ascending--> words_end --> FILLING, a part at a time: words_part_begin, then
 *   words_fill_noted, or words_fill for every text again, rows ascending: the part's lists are there; until no part is left
 *
 * The texts are read once to learn how long every list is. What words each row has is noted, and the lists are filled from
 * that; where it is too much to keep, the texts are read again, once for all lists that fit in memory together. So memory
 * is bounded, whatever the texts. */
#ifndef OMEN_STORAGE_PAYLOAD_PAYLOAD_WORDS_H
#define OMEN_STORAGE_PAYLOAD_PAYLOAD_WORDS_H

#include <stdbool.h>

#include "common/bytes.h"
#include "common/hash.h"
#include "common/mem.h"

struct word_rows;
struct words_build {
    struct word_rows *words; /* [count] owned; ascending by hash once they are counted */
    uint32_t count, cap;
    uint32_t *table; /* [table_cap] owned; open addressing: position of a word + 1, 0 = free */
    uint32_t table_cap;
    struct buf
            noted; /* UINT32_MAX, row, then the words that the row has, by when they were met first; row by row */
    bool notes;          /* they are kept: as long as they take no more than lists may */
    uint64_t units;      /* u16 of all lists, once they are counted */
    uint64_t text_bytes; /* of all texts */
    uint64_t memory_max;
    uint32_t rows, last_row; /* that have a text; the latest of them */
    uint32_t noted_row;      /* the latest that a word was noted of */
    bool wanted;             /* also when they take more than the texts */
    bool given_up;           /* too many words: the path goes without */
    bool failed;             /* no memory */
    uint16_t *part;          /* [part_end - part_first] owned */
    uint64_t part_first, part_end;
};

/* `wanted`: asked for. `memory_max`: what distinct words, and what lists at one time, may take. */
void words_init(struct words_build *w, bool wanted, uint64_t memory_max);
void words_fini(struct words_build *w);
void words_add(struct words_build *w, uint32_t row, struct bytes text);
/* All texts are counted. What is listed for nothing is given up: the words of texts take no more than these. */
void words_end(struct words_build *w);
/* Words and where their lists begin, as the file has them, appended to `out`. */
void words_put(const struct words_build *w, struct buf *out);
bool words_part_begin(struct words_build *w); /* false: all parts were filled, or no memory (failed) */
void words_fill(struct words_build *w, uint32_t row, struct bytes text);
/* The part, without the texts. False: they were not noted. */
bool words_fill_noted(struct words_build *w);

#endif
