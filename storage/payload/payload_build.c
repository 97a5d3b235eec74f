/* Building a payload index: which paths there are, then one walk over all payloads per path, whose section is written
 * before the next begins. See payload_index_impl.h for the bytes. */
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/crc32c.h"
#include "common/mem.h"
#include "storage/payload/payload_gather.h"

/* ---- its section ---- */

static int known_compare(const void *a, const void *b)
{
    return payload_hash_compare(((const struct known_value *)a)->hash, ((const struct known_value *)b)->hash);
}

static int keyed_compare(const void *a, const void *b)
{
    const struct keyed_row *x = a, *y = b;
    if (x->key != y->key) return x->key < y->key ? -1 : 1;
    return (x->row > y->row) - (x->row < y->row);
}

static void section_pad(struct buf *out) { buf_append_zero(out, (8 - out->len % 8) % 8); }

static void u32_put(struct buf *out, uint32_t v)
{
    uint8_t bytes[4];
    store_u32(bytes, v);
    buf_append(out, bytes, sizeof bytes);
}

static void u64_put(struct buf *out, uint64_t v)
{
    uint8_t bytes[8];
    store_u64(bytes, v);
    buf_append(out, bytes, sizeof bytes);
}

/* Values in order of their hashes, then for each the rows that have it. */
static bool values_put(struct payload_gather *g, struct buf *out)
{
    const struct posting *postings = (const struct posting *)(const void *)g->postings.data;
    uint32_t count = 0, total = (uint32_t)(g->postings.len / sizeof *postings);
    for (uint32_t i = 0; i < g->table_cap; i++)
        if (g->table[i].id != UINT32_MAX) g->table[count++] = g->table[i];
    CHECK(count == g->value_count);
    uint32_t *next = mem_calloc((size_t)count + 2, sizeof *next),
             *rank = mem_alloc((count + 1) * sizeof *rank);
    uint32_t *rows = mem_alloc(((size_t)total + 1) * sizeof *rows);
    bool ok = next != NULL && rank != NULL && rows != NULL;
    if (ok) {
        if (count > 0) qsort(g->table, count, sizeof *g->table, known_compare);
        for (uint32_t i = 0; i < count; i++) rank[g->table[i].id] = i;
        for (uint32_t i = 0; i < count; i++) {
            u64_put(out, g->table[i].hash.hi);
            u64_put(out, g->table[i].hash.lo);
        }
        for (uint32_t i = 0; i < total; i++) next[rank[postings[i].value] + 1]++;
        for (uint32_t i = 0; i < count; i++) next[i + 1] += next[i];
        for (uint32_t i = 0; i <= count; i++) u32_put(out, next[i]);
        section_pad(out);
        for (uint32_t i = 0; i < total; i++) rows[next[rank[postings[i].value]]++] = postings[i].row;
        for (uint32_t i = 0; i < total; i++) u32_put(out, rows[i]);
        section_pad(out);
    }
    mem_free(next);
    mem_free(rank);
    mem_free(rows);
    return ok;
}

static void column_put(struct buf *column, struct buf *out)
{
    struct keyed_row *items = (struct keyed_row *)(void *)column->data;
    size_t count = column->len / sizeof *items;
    if (count > 0) qsort(items, count, sizeof *items, keyed_compare);
    for (size_t i = 0; i < count; i++) u64_put(out, (uint64_t)items[i].key);
    for (size_t i = 0; i < count; i++) u32_put(out, items[i].row);
    section_pad(out);
}

static int placed_compare(const void *a, const void *b)
{
    const struct placed_row *x = a, *y = b;
    if (x->order != y->order) return x->order < y->order ? -1 : 1;
    return (x->row > y->row) - (x->row < y->row);
}

static void places_put(struct buf *places, struct buf *out)
{
    struct placed_row *items = (struct placed_row *)(void *)places->data;
    size_t count = places->len / sizeof *items;
    if (count > 0) qsort(items, count, sizeof *items, placed_compare);
    for (size_t i = 0; i < count; i++) buf_append(out, &items[i].place, sizeof items[i].place);
    for (size_t i = 0; i < count; i++) u32_put(out, items[i].row);
    section_pad(out);
}

/* A section as it goes to the file, piece by piece. */
struct section {
    struct vfs_file *file;
    uint64_t offset, bytes; /* where it begins; what is written of it */
    uint32_t crc;
};

static enum omen_err section_write(struct section *s, const void *data, size_t bytes, struct err *err)
{
    if (bytes == 0) return OMEN_OK;
    s->crc = crc32c(s->crc, data, bytes);
    enum omen_err rc = vfs_pwrite(s->file, data, bytes, s->offset + s->bytes, err);
    s->bytes += bytes;
    return rc;
}

static enum omen_err piece_write(struct section *s, struct buf *piece, bool ok, struct err *err)
{
    if (!ok || piece->failed) return err_set(err, OMEN_ENOMEM, "", "no memory for a payload index");
    enum omen_err rc = section_write(s, piece->data, piece->len, err);
    buf_clear(piece);
    return rc;
}

static void text_fill(struct payload_gather *g, struct doc value)
{
    if (doc_type(value) == DOC_STRING) words_fill(&g->words, g->row, doc_string(value));
}

static bool texts_fill(void *arg, struct doc value)
{
    struct doc_iter it = doc_iter(value);
    struct doc element;
    if (doc_type(value) != DOC_ARRAY) text_fill(arg, value);
    while (doc_type(value) == DOC_ARRAY && doc_next(&it, NULL, &element)) text_fill(arg, element);
    return true;
}

/* The lists of words, part by part; after one more walk over all payloads for each, where they were not noted. */
static enum omen_err lists_write(struct payload_gather *g, struct section *s, struct err *err)
{
    static const uint8_t zero[8];
    const struct payload_source *source = g->source;
    struct words_build *words = &g->words;
    enum omen_err rc = OMEN_OK;
    while (rc == OMEN_OK && words_part_begin(words)) {
        bool noted = words_fill_noted(words);
        for (g->row = 0; !noted && rc == OMEN_OK && g->row < source->count; g->row++) {
            point_id id;
            struct doc payload;
            bool there = source->row(source->arg, g->row, &id, &payload) && payload.data != NULL;
            if (there) doc_path_each(g->path, payload, false, texts_fill, g);
            rc = payload_stop_ask(source, g->row, err);
        }
        if (rc == OMEN_OK && !words->failed)
            rc = section_write(s, words->part, (words->part_end - words->part_first) * sizeof *words->part,
                    err);
    }
    if (words->failed) return err_set(err, OMEN_ENOMEM, "", "no memory for a payload index");
    return rc == OMEN_OK ? section_write(s, zero, (8 - s->bytes % 8) % 8, err) : rc;
}

static uint32_t items_of(const struct buf *items, size_t item_bytes)
{
    return (uint32_t)(items->len / item_bytes);
}

static void entry_make(const struct payload_gather *g, const struct section *s,
        uint8_t entry[PAYLOAD_FIELD_BYTES])
{
    const bool field = g->path != NULL;
    uint32_t flags = g->flags | (field ? PAYLOAD_PLACES : 0) |
            (field && !g->words.given_up ? PAYLOAD_WORDS : 0);
    memset(entry, 0, PAYLOAD_FIELD_BYTES);
    store_u32(entry, field ? (uint32_t)doc_path_text(g->path).len : 0);
    store_u32(entry + 4, flags);
    store_u64(entry + 8, s->bytes);
    store_u32(entry + 16, g->value_count);
    store_u32(entry + 20, s->crc);
    store_u32(entry + 24, items_of(&g->postings, sizeof(struct posting)));
    store_u32(entry + 28, items_of(&g->numbers, sizeof(struct keyed_row)));
    store_u32(entry + 32, items_of(&g->many_numbers, sizeof(struct keyed_row)));
    store_u32(entry + 36, items_of(&g->times, sizeof(struct keyed_row)));
    store_u32(entry + 40, items_of(&g->many_times, sizeof(struct keyed_row)));
    store_u32(entry + 44, g->words.count);
    store_u64(entry + 48, g->words.count == 0 ? 0 : g->words.units);
    store_u32(entry + 56, items_of(&g->places, sizeof(struct placed_row)));
    store_u32(entry + 60, items_of(&g->many_places, sizeof(struct placed_row)));
}

/* Path, bits, values, numbers and times; then words; then places. */
static enum omen_err section_make(struct payload_gather *g, struct section *s, struct buf *piece,
        struct err *err)
{
    if (g->path != NULL) {
        struct bytes text = doc_path_text(g->path);
        buf_append(piece, text.data, text.len);
        section_pad(piece);
        for (int b = 0; b < PAYLOAD_BITS; b++)
            for (size_t i = 0; i < rowbits_words(g->source->count); i++) u64_put(piece, g->bits[b][i]);
    }
    bool ok = values_put(g, piece);
    column_put(&g->numbers, piece);
    column_put(&g->many_numbers, piece);
    column_put(&g->times, piece);
    column_put(&g->many_times, piece);
    enum omen_err rc = piece_write(s, piece, ok, err);
    if (rc != OMEN_OK) return rc;
    words_put(&g->words, piece);
    rc = piece_write(s, piece, true, err);
    if (rc == OMEN_OK) rc = lists_write(g, s, err);
    if (rc != OMEN_OK) return rc;
    places_put(&g->places, piece);
    places_put(&g->many_places, piece);
    return piece_write(s, piece, true, err);
}

/* ---- the file ---- */

/* One field: gather, lay out, write at *offset. */
static enum omen_err field_write(const struct payload_source *source, const struct payload_path *path,
        struct vfs_file *file, uint64_t *offset, uint8_t entry[PAYLOAD_FIELD_BYTES], struct err *err)
{
    struct payload_gather g;
    struct buf piece;
    struct section section = { .file = file, .offset = *offset };
    if (!payload_gather_init(&g, source, path))
        return err_set(err, OMEN_ENOMEM, "", "no memory for a payload index");
    buf_init(&piece);
    enum omen_err rc = payload_gather_run(&g, err);
    if (rc == OMEN_OK) rc = section_make(&g, &section, &piece, err);
    if (rc == OMEN_OK) entry_make(&g, &section, entry);
    *offset += section.bytes;
    buf_fini(&piece);
    payload_gather_fini(&g);
    return rc;
}

static enum omen_err file_write(const struct payload_source *source, const struct payload_paths *paths,
        struct vfs_file *file, struct arena *arena, struct err *err)
{
    uint32_t count = paths->count + 1;
    size_t head_bytes = PAYLOAD_HEADER_BYTES + (size_t)count * PAYLOAD_FIELD_BYTES;
    uint8_t *head = arena_calloc(arena, 1, head_bytes), *entries = head + PAYLOAD_HEADER_BYTES;
    if (head == NULL) return err_set(err, OMEN_ENOMEM, "", "no memory for a payload index");
    uint64_t offset = head_bytes;
    enum omen_err rc = field_write(source, NULL, file, &offset, entries, err);
    for (uint32_t f = 0; rc == OMEN_OK && f < paths->count; f++)
        rc = field_write(source, &paths->items[f], file, &offset,
                entries + (size_t)(f + 1) * PAYLOAD_FIELD_BYTES, err);
    store_u32(head, PAYLOAD_MAGIC);
    store_u16(head + 4, PAYLOAD_VERSION);
    store_u16(head + 6, paths->complete ? PAYLOAD_COMPLETE : 0);
    store_u32(head + 8, source->count);
    store_u32(head + 12, count);
    store_u64(head + 16, offset);
    store_u32(head + 24, crc32c(0, entries, head_bytes - PAYLOAD_HEADER_BYTES));
    store_u32(head + 60, crc32c(0, head, 60));
    if (rc == OMEN_OK) rc = vfs_pwrite(file, head, head_bytes, 0, err);
    if (rc == OMEN_OK) rc = vfs_truncate(file, offset, err); /* what an earlier, longer one left */
    return rc == OMEN_OK ? vfs_datasync(file, err) : rc;
}

enum omen_err payload_index_build(const struct payload_source *source, struct vfs *vfs, const char *path,
        struct err *err)
{
    struct arena arena;
    struct payload_paths paths;
    struct vfs_file *file;
    arena_init(&arena, 1 << 14, 0);
    enum omen_err rc = payload_paths_find(source, &arena, &paths, err);
    if (rc == OMEN_OK) rc = vfs_open(vfs, path, VFS_WRITE | VFS_CREATE, &file, err);
    if (rc == OMEN_OK) {
        rc = file_write(source, &paths, file, &arena, err);
        vfs_close(file);
    }
    arena_fini(&arena);
    return rc;
}
