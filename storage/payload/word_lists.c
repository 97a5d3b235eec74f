/* Lists of rows in chunks; see word_lists.h. */
#include "storage/payload/word_lists.h"

#include <string.h>

#include "storage/payload/rowbits.h"

#define CHUNK_WORDS (WORD_CHUNK_ROWS / 64)

struct chunk {
    uint32_t number, rows;
    const uint16_t *units; /* after the head */
};

/* The chunk at *at, which is moved behind it. False: there is none, or not all of it. */
static bool chunk_next(struct word_list list, size_t *at, struct chunk *chunk_out)
{
    if (list.count - *at < WORD_CHUNK_HEAD) return false;
    const uint16_t *head = list.units + *at;
    *chunk_out = (struct chunk){ head[0], head[1] + 1u, head + WORD_CHUNK_HEAD };
    size_t units = word_chunk_units(chunk_out->rows);
    if (units > list.count - *at) return false;
    *at += units;
    return true;
}

static bool chunk_is_list(const struct chunk *chunk) { return chunk->rows <= WORD_CHUNK_LIST; }

/* Bits of a chunk as u64; the units lie on any even address. */
static uint64_t chunk_word(const struct chunk *chunk, uint32_t i)
{
    uint64_t word;
    memcpy(&word, chunk->units + (size_t)i * 4, sizeof word);
    return word;
}

static const char *listed_wrong(const struct chunk *chunk, uint32_t limit)
{
    for (uint32_t i = 1; i < chunk->rows; i++)
        if (chunk->units[i] <= chunk->units[i - 1]) return "rows of a word out of order";
    return chunk->units[chunk->rows - 1] < limit ? NULL : "a row past the end";
}

static const char *bits_wrong(const struct chunk *chunk, uint32_t limit)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < CHUNK_WORDS; i++) {
        uint64_t word = chunk_word(chunk, i);
        uint64_t past = limit >= (i + 1) * 64 ? 0 : limit <= i * 64 ? UINT64_MAX : UINT64_MAX << (limit % 64);
        if ((word & past) != 0) return "a row past the end";
        count += (uint32_t)__builtin_popcountll(word);
    }
    return count == chunk->rows ? NULL : "a word has another number of rows";
}

const char *word_list_wrong(struct word_list list, uint32_t rows)
{
    struct chunk chunk;
    uint32_t next = 0;
    if (list.count == 0) return "a word without rows";
    for (size_t at = 0; at < list.count;) {
        if (!chunk_next(list, &at, &chunk)) return "rows of a word cut off";
        uint64_t first = (uint64_t)chunk.number * WORD_CHUNK_ROWS;
        if (chunk.number < next) return "rows of a word out of order";
        if (first >= rows) return "a row past the end";
        uint32_t limit = rows - first < WORD_CHUNK_ROWS ? (uint32_t)(rows - first) : WORD_CHUNK_ROWS;
        const char *wrong = chunk_is_list(&chunk) ? listed_wrong(&chunk, limit) : bits_wrong(&chunk, limit);
        if (wrong != NULL) return wrong;
        next = chunk.number + 1;
    }
    return NULL;
}

uint64_t word_list_rows(struct word_list list)
{
    struct chunk chunk;
    uint64_t rows = 0;
    for (size_t at = 0; chunk_next(list, &at, &chunk);) rows += chunk.rows;
    return rows;
}

static void chunk_or(const struct chunk *chunk, uint64_t *restrict words)
{
    if (chunk_is_list(chunk)) {
        for (uint32_t i = 0; i < chunk->rows; i++) rowbits_add(words, chunk->units[i]);
    } else {
        for (uint32_t i = 0; i < CHUNK_WORDS; i++) words[i] |= chunk_word(chunk, i);
    }
}

static void chunk_and(const struct chunk *chunk, uint64_t *restrict words)
{
    if (chunk_is_list(chunk)) {
        uint64_t listed[CHUNK_WORDS] = { 0 };
        chunk_or(chunk, listed);
        for (uint32_t i = 0; i < CHUNK_WORDS; i++) words[i] &= listed[i];
    } else {
        for (uint32_t i = 0; i < CHUNK_WORDS; i++) words[i] &= chunk_word(chunk, i);
    }
}

void word_list_or(struct word_list list, uint64_t *words)
{
    struct chunk chunk;
    for (size_t at = 0; chunk_next(list, &at, &chunk);)
        chunk_or(&chunk, words + (size_t)chunk.number * CHUNK_WORDS);
}

void word_list_and(struct word_list list, uint64_t *words, uint32_t rows)
{
    struct chunk chunk;
    size_t clean = 0, end = rowbits_words(rows); /* words before `clean` are done */
    for (size_t at = 0; chunk_next(list, &at, &chunk);) {
        size_t first = (size_t)chunk.number * CHUNK_WORDS;
        if (first > clean) memset(words + clean, 0, (first - clean) * sizeof *words);
        chunk_and(&chunk, words + first);
        clean = first + CHUNK_WORDS;
    }
    if (end > clean) memset(words + clean, 0, (end - clean) * sizeof *words);
}
