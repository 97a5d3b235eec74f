/* Words of texts counted and listed; see payload_words.h. */
#include "storage/payload/payload_words.h"

#include <stdlib.h>
#include <string.h>

#include "common/check.h"
#include "common/mem.h"
#include "common/query/words.h"
#include "storage/payload/payload_index_impl.h"

#define WORDS_LOOK 65536u /* words from which on a table that grows asks whether they are worth it */

#define WORDS_FREE_BYTES (64u << 10) /* not worth a thought */

/* A word's rows: while counted, u16 of its chunks but the present one; while filled, where that one begins. */
struct word_rows {
    struct hash128 hash;
    uint64_t units;
    uint32_t row;      /* the last; UINT32_MAX = none yet */
    uint32_t in_chunk; /* rows of the present chunk */
    uint32_t first;    /* of its list, once counted */
    uint32_t met;      /* before so many others */
};

void words_init(struct words_build *w, bool wanted, uint64_t memory_max)
{
    *w = (struct words_build){ .wanted = wanted,
        .memory_max = memory_max,
        .last_row = UINT32_MAX,
        .noted_row = UINT32_MAX,
        .notes = true };
    buf_init(&w->noted);
}

static void words_drop(struct words_build *w)
{
    mem_free(w->words);
    mem_free(w->table);
    mem_free(w->part);
    buf_fini(&w->noted);
    w->notes = false;
    w->words = NULL;
    w->table = NULL;
    w->part = NULL;
    w->count = w->cap = w->table_cap = 0;
}

void words_fini(struct words_build *w) { words_drop(w); }

static void give_up(struct words_build *w)
{
    words_drop(w);
    w->units = 0;
    w->given_up = true;
}

/* Names of no sense, like UUIDs, have words that nobody else has: 20 bytes for each and nothing found by it. */
static bool worth(const struct words_build *w, uint64_t units)
{
    return w->wanted ||
            20 * (uint64_t)w->count + 2 * units <= WORDS_FREE_BYTES + w->text_bytes + 4 * (uint64_t)w->rows;
}

static void table_place(struct words_build *w, uint32_t i)
{
    uint32_t at = (uint32_t)w->words[i].hash.lo & (w->table_cap - 1);
    while (w->table[at] != 0) at = (at + 1) & (w->table_cap - 1);
    w->table[at] = i + 1;
}

static bool table_make(struct words_build *w, uint32_t cap)
{
    uint32_t *table = mem_calloc(cap, sizeof *table);
    if (table == NULL) return false;
    mem_free(w->table);
    w->table = table;
    w->table_cap = cap;
    for (uint32_t i = 0; i < w->count; i++) table_place(w, i);
    return true;
}

/* Room for one more word. */
static bool words_grow(struct words_build *w)
{
    uint32_t cap = w->cap == 0 ? 512 : 2 * w->cap;
    uint64_t bytes = (uint64_t)cap * (sizeof *w->words + 2 * sizeof *w->table);
    if (w->count < w->cap) return true;
    if (cap > UINT32_MAX / 4 || bytes > w->memory_max || (w->count >= WORDS_LOOK && !worth(w, 0))) {
        give_up(w);
        return false;
    }
    struct word_rows *grown = mem_realloc(w->words, cap * sizeof *grown);
    if (grown != NULL) {
        w->words = grown;
        w->cap = cap;
    }
    if (grown != NULL && table_make(w, 2 * cap)) return true;
    w->failed = true;
    return false;
}

static struct word_rows *word_find(struct words_build *w, struct hash128 hash)
{
    for (uint32_t at = (uint32_t)hash.lo & (w->table_cap - 1); w->table_cap > 0;
            at = (at + 1) & (w->table_cap - 1)) {
        if (w->table[at] == 0) return NULL;
        struct word_rows *word = &w->words[w->table[at] - 1];
        if (payload_hash_compare(word->hash, hash) == 0) return word;
    }
    return NULL;
}

/* The row has the word, which it was not noted to have. */
static void word_note(struct words_build *w, uint32_t row, uint32_t word, bool first)
{
    const uint32_t items[3] = { UINT32_MAX, row, word };
    if (!w->notes) return;
    if (first)
        buf_append(&w->noted, items, sizeof items);
    else
        buf_append(&w->noted, &word, sizeof word);
    if (!w->noted.failed && w->noted.len <= w->memory_max / 2) return;
    buf_fini(&w->noted);
    w->notes = false;
}

static void word_count(struct words_build *w, uint32_t row, struct hash128 hash)
{
    struct word_rows *word = word_find(w, hash);
    if (word == NULL) {
        if (!words_grow(w)) return;
        word = &w->words[w->count++];
        *word = (struct word_rows){ .hash = hash, .row = UINT32_MAX, .met = w->count - 1 };
        table_place(w, w->count - 1);
    }
    if (word->row == row) return;
    word_note(w, row, word->met, w->noted_row != row);
    w->noted_row = row;
    if (word->in_chunk > 0 && word->row / WORD_CHUNK_ROWS != row / WORD_CHUNK_ROWS) {
        word->units += word_chunk_units(word->in_chunk);
        word->in_chunk = 0;
    }
    word->row = row;
    word->in_chunk++;
}

void words_add(struct words_build *w, uint32_t row, struct bytes text)
{
    uint8_t word[WORD_BYTES_MAX];
    size_t at = 0, len;
    w->text_bytes += text.len;
    w->rows += w->last_row != row;
    w->last_row = row;
    while (!w->given_up && !w->failed && (len = words_next(text, &at, word)) > 0)
        word_count(w, row, hash128(word, len));
}

static int word_compare(const void *a, const void *b)
{
    return payload_hash_compare(((const struct word_rows *)a)->hash, ((const struct word_rows *)b)->hash);
}

void words_end(struct words_build *w)
{
    if (w->given_up || w->failed || w->count == 0) return;
    uint64_t units = 0;
    qsort(w->words, w->count, sizeof *w->words, word_compare);
    for (uint32_t i = 0; i < w->count; i++) {
        struct word_rows *word = &w->words[i];
        uint64_t own = word->units + word_chunk_units(word->in_chunk);
        word->first = (uint32_t)units;
        word->units = units; /* of its present chunk, from now on */
        units += own;
        word->row = UINT32_MAX;
        word->in_chunk = 0;
        if (units > UINT32_MAX) break;
    }
    w->units = units;
    if (units > UINT32_MAX || !worth(w, units)) {
        give_up(w);
        return;
    }
    if (!w->notes && !table_make(w, w->table_cap)) w->failed = true;
}

void words_put(const struct words_build *w, struct buf *out)
{
    uint8_t bytes[16];
    for (uint32_t i = 0; i < w->count; i++) {
        store_u64(bytes, w->words[i].hash.hi);
        store_u64(bytes + 8, w->words[i].hash.lo);
        buf_append(out, bytes, 16);
    }
    for (uint32_t i = 0; i <= w->count; i++) {
        store_u32(bytes, i < w->count ? w->words[i].first : (uint32_t)w->units);
        buf_append(out, bytes, 4);
    }
    buf_append_zero(out, (8 - out->len % 8) % 8);
}

/* The next lists that fit the memory; one at least. */
bool words_part_begin(struct words_build *w)
{
    uint64_t first = w->part_end, most = first + w->memory_max / sizeof *w->part, end = first;
    uint32_t low = 0, high = w->count;
    if (first >= w->units) return false;
    while (low < high) { /* the last word whose list begins at or before `most` */
        uint32_t mid = low + (high - low) / 2;
        if (w->words[mid].first <= most)
            low = mid + 1;
        else
            high = mid;
    }
    end = w->units <= most ? w->units : w->words[low - 1].first;
    if (end <= first) end = low < w->count ? w->words[low].first : w->units; /* one list is longer */
    mem_free(w->part);
    w->part = mem_calloc(end - first, sizeof *w->part);
    w->part_first = first;
    w->part_end = end;
    w->failed = w->part == NULL;
    return !w->failed;
}

/* Of more rows than are listed: a bit each, in the place of the list. */
static void chunk_turn(uint16_t *rows)
{
    uint16_t listed[WORD_CHUNK_LIST];
    memcpy(listed, rows, sizeof listed);
    memset(rows, 0, sizeof listed);
    for (uint32_t i = 0; i < WORD_CHUNK_LIST; i++) rows[listed[i] / 16] |= (uint16_t)(1u << (listed[i] % 16));
}

static void word_fill(struct words_build *w, struct word_rows *word, uint32_t row)
{
    if (word->row == row) return;
    if (word->in_chunk > 0 && word->row / WORD_CHUNK_ROWS != row / WORD_CHUNK_ROWS) {
        word->units += word_chunk_units(word->in_chunk);
        word->in_chunk = 0;
    }
    CHECK(word->units + word_chunk_units(word->in_chunk + 1) <= w->part_end);
    uint16_t *head = w->part + (word->units - w->part_first), *rows = head + WORD_CHUNK_HEAD;
    uint16_t low = (uint16_t)(row % WORD_CHUNK_ROWS);
    if (word->in_chunk < WORD_CHUNK_LIST) {
        rows[word->in_chunk] = low;
    } else {
        if (word->in_chunk == WORD_CHUNK_LIST) chunk_turn(rows);
        rows[low / 16] |= (uint16_t)(1u << (low % 16));
    }
    head[0] = (uint16_t)(row / WORD_CHUNK_ROWS);
    head[1] = (uint16_t)word->in_chunk++; /* rows, less one */
    word->row = row;
}

void words_fill(struct words_build *w, uint32_t row, struct bytes text)
{
    uint8_t bytes[WORD_BYTES_MAX];
    size_t at = 0, len;
    while ((len = words_next(text, &at, bytes)) > 0) {
        struct word_rows *word = word_find(w, hash128(bytes, len));
        CHECK(word != NULL); /* it was counted */
        if (word->first >= w->part_first && word->first < w->part_end) word_fill(w, word, row);
    }
}

bool words_fill_noted(struct words_build *w)
{
    const uint32_t *noted = (const uint32_t *)(const void *)w->noted.data;
    size_t count = w->noted.len / sizeof *noted;
    uint32_t row = 0;
    uint32_t *where = w->notes ? mem_alloc((w->count + 1) * sizeof *where) : NULL; /* by when it was met */
    w->failed |= w->notes && where == NULL;
    if (where == NULL) return w->notes;
    for (uint32_t i = 0; i < w->count; i++) where[w->words[i].met] = i;
    for (size_t i = 0; i < count; i++) {
        if (noted[i] == UINT32_MAX) {
            row = noted[++i];
            continue;
        }
        struct word_rows *word = &w->words[where[noted[i]]];
        if (word->first >= w->part_first && word->first < w->part_end) word_fill(w, word, row);
    }
    mem_free(where);
    return true;
}
