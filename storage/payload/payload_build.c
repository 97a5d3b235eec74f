/* Building a payload index: which paths there are, then one walk over all payloads per path, whose section is written
 * before the next begins. See payload_index_impl.h for the bytes. */
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/crc32c.h"
#include "common/mem.h"
#include "storage/payload/payload_build.h"

#define GATHER_BYTES_MIN (64u << 20) /* of one path's values at a time, and so much more a row */
#define GATHER_ROW_BYTES 256u
#define STOP_EVERY 4096u /* rows between two looks at `stop` */

/* ---- one field's rows ---- */

struct keyed_row {
    int64_t key;
    uint32_t row;
};

struct posting {
    uint32_t value, row; /* value: by first appearance */
};

struct known_value {
    struct hash128 hash;
    uint32_t id, last_row;
};

/* What a walk over all rows gathers of one path. */
struct gather {
    const struct payload_source *source;
    const struct doc_path *path; /* NULL: ids */
    uint32_t row, elements;      /* the current one, and its elements that are not null */
    uint32_t flags;
    uint64_t *bits[PAYLOAD_BITS]; /* owned */
    struct known_value *table;    /* [table_cap] owned; open addressing, id UINT32_MAX = free */
    uint32_t table_cap, value_count;
    struct buf postings;       /* struct posting, in order of rows */
    struct buf numbers, times; /* struct keyed_row */
    struct buf many_numbers, many_times;
    bool failed; /* no memory */
};

static void gather_fini(struct gather *g)
{
    for (int b = 0; b < PAYLOAD_BITS; b++) mem_free(g->bits[b]);
    mem_free(g->table);
    buf_fini(&g->postings);
    buf_fini(&g->numbers);
    buf_fini(&g->times);
    buf_fini(&g->many_numbers);
    buf_fini(&g->many_times);
}

static bool gather_init(struct gather *g, const struct payload_source *source, const struct doc_path *path)
{
    *g = (struct gather){ .source = source, .path = path };
    buf_init(&g->postings);
    buf_init(&g->numbers);
    buf_init(&g->times);
    buf_init(&g->many_numbers);
    buf_init(&g->many_times);
    for (int b = 0; b < PAYLOAD_BITS; b++) {
        g->bits[b] = mem_calloc(rowbits_words(source->count) + 1, sizeof(uint64_t));
        if (g->bits[b] == NULL) g->failed = true;
    }
    if (g->failed) gather_fini(g);
    return !g->failed;
}

static bool table_grow(struct gather *g)
{
    uint32_t cap = g->table_cap == 0 ? 1024 : 2 * g->table_cap;
    struct known_value *grown = mem_alloc((size_t)cap * sizeof *grown);
    if (grown == NULL) return false;
    for (uint32_t i = 0; i < cap; i++) grown[i].id = UINT32_MAX;
    for (uint32_t i = 0; i < g->table_cap; i++) {
        if (g->table[i].id == UINT32_MAX) continue;
        uint32_t at = (uint32_t)g->table[i].hash.lo & (cap - 1);
        while (grown[at].id != UINT32_MAX) at = (at + 1) & (cap - 1);
        grown[at] = g->table[i];
    }
    mem_free(g->table);
    g->table = grown;
    g->table_cap = cap;
    return true;
}

static void value_add(struct gather *g, struct hash128 hash)
{
    if (g->value_count >= g->table_cap / 2 && !table_grow(g)) {
        g->failed = true;
        return;
    }
    uint32_t at = (uint32_t)hash.lo & (g->table_cap - 1);
    while (g->table[at].id != UINT32_MAX && payload_hash_compare(g->table[at].hash, hash) != 0)
        at = (at + 1) & (g->table_cap - 1);
    struct known_value *known = &g->table[at];
    if (known->id == UINT32_MAX) *known = (struct known_value){ hash, g->value_count++, UINT32_MAX };
    if (known->last_row == g->row) return;
    known->last_row = g->row;
    const struct posting posting = { known->id, g->row };
    buf_append(&g->postings, &posting, sizeof posting);
}

static void key_add(struct buf *to, int64_t key, uint32_t row)
{
    const struct keyed_row item = { key, row };
    buf_append(to, &item, sizeof item);
}

static void element_add(struct gather *g, struct doc value)
{
    int64_t us;
    if (doc_type(value) == DOC_NULL) return;
    g->elements++;
    switch (doc_type(value)) {
    case DOC_STRING: {
        struct bytes text = doc_string(value);
        if (datetime_parse((const char *)text.data, text.len, &us)) key_add(&g->times, us, g->row);
    } /* fall through */
    case DOC_FALSE:
    case DOC_TRUE:
    case DOC_I64: value_add(g, hash128(value.data, value.len)); break;
    default: break;
    }
    if (doc_is_number(value)) key_add(&g->numbers, payload_number_key(doc_f64(value)), g->row);
}

static void bit_add(struct gather *g, enum payload_bits bits) { rowbits_add(g->bits[bits], g->row); }

static bool value_gather(void *arg, struct doc value)
{
    struct gather *g = arg;
    enum doc_type type = doc_type(value);
    bit_add(g, PAYLOAD_BITS_THERE);
    if (type == DOC_NULL) bit_add(g, PAYLOAD_BITS_NULL);
    if (type == DOC_NULL || type == DOC_ARRAY) bit_add(g, PAYLOAD_BITS_ODD);
    if (type != DOC_NULL && (type != DOC_ARRAY || doc_count(value) > 0)) bit_add(g, PAYLOAD_BITS_FULL);
    if (type != DOC_ARRAY) {
        if (type != DOC_NULL) g->flags |= PAYLOAD_SCALARS;
        element_add(g, value);
        return true;
    }
    struct doc_iter it = doc_iter(value);
    struct doc element;
    while (doc_next(&it, NULL, &element)) {
        if (doc_type(element) == DOC_NULL) bit_add(g, PAYLOAD_BITS_NULL);
        if (doc_type(element) == DOC_ARRAY) g->flags |= PAYLOAD_NESTED_ARRAYS;
        element_add(g, element);
    }
    return true;
}

/* What the row added to a column goes apart when it is more than one. */
static void row_sort_out(struct buf *column, struct buf *many, size_t before)
{
    if (column->failed || column->len <= before + sizeof(struct keyed_row)) return;
    buf_append(many, column->data + before, column->len - before);
    column->len = before;
}

static void row_gather(struct gather *g, point_id id, struct doc payload)
{
    size_t numbers = g->numbers.len, times = g->times.len;
    if (g->path == NULL) {
        key_add(id.kind == POINT_ID_U64 ? &g->numbers : &g->times, (int64_t)id.lo, g->row);
        return;
    }
    g->elements = 0;
    if (payload.data != NULL) doc_path_each(g->path, payload, false, value_gather, g);
    if (g->elements > 0) bit_add(g, PAYLOAD_BITS_SOME);
    if (g->elements > 1) bit_add(g, PAYLOAD_BITS_MANY);
    row_sort_out(&g->numbers, &g->many_numbers, numbers);
    row_sort_out(&g->times, &g->many_times, times);
}

/* Arrays of thousands of values in every row must not cost what the node has: then the segment goes without. */
static bool gather_too_big(const struct gather *g)
{
    uint64_t bytes = (uint64_t)g->postings.cap + g->numbers.cap + g->times.cap + g->many_numbers.cap +
            g->many_times.cap;
    return bytes > GATHER_BYTES_MIN + GATHER_ROW_BYTES * (uint64_t)g->source->count;
}

static enum omen_err gather_run(struct gather *g, struct err *err)
{
    const struct payload_source *source = g->source;
    for (g->row = 0; g->row < source->count; g->row++) {
        point_id id;
        struct doc payload;
        if (source->row(source->arg, g->row, &id, &payload)) row_gather(g, id, payload);
        if (g->row % STOP_EVERY == 0 && source->stop != NULL && source->stop(source->arg))
            return err_set(err, OMEN_ECANCELED, "", "the segment is not wanted any more");
        if (gather_too_big(g))
            return err_set(err, OMEN_ETOOBIG, "",
                    "the values at one path take more memory than a payload index may");
    }
    g->failed |= g->postings.failed || g->numbers.failed || g->times.failed || g->many_numbers.failed ||
            g->many_times.failed;
    if (g->failed) return err_set(err, OMEN_ENOMEM, "", "no memory for a payload index");
    if (g->postings.len / sizeof(struct posting) > UINT32_MAX / 2 ||
            g->many_numbers.len / sizeof(struct keyed_row) > UINT32_MAX / 2 ||
            g->many_times.len / sizeof(struct keyed_row) > UINT32_MAX / 2)
        return err_set(err, OMEN_ETOOBIG, "", "more values at one path than a payload index may have");
    return OMEN_OK;
}

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
static bool values_put(struct gather *g, struct buf *out)
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

static enum omen_err section_make(struct gather *g, struct buf *out, uint8_t entry[PAYLOAD_FIELD_BYTES],
        struct err *err)
{
    buf_clear(out);
    if (g->path != NULL) {
        struct bytes text = doc_path_text(g->path);
        buf_append(out, text.data, text.len);
        section_pad(out);
        for (int b = 0; b < PAYLOAD_BITS; b++)
            for (size_t i = 0; i < rowbits_words(g->source->count); i++) u64_put(out, g->bits[b][i]);
    }
    uint32_t postings = (uint32_t)(g->postings.len / sizeof(struct posting));
    bool ok = values_put(g, out);
    column_put(&g->numbers, out);
    column_put(&g->many_numbers, out);
    column_put(&g->times, out);
    column_put(&g->many_times, out);
    if (!ok || out->failed) return err_set(err, OMEN_ENOMEM, "", "no memory for a payload index");
    memset(entry, 0, PAYLOAD_FIELD_BYTES);
    store_u32(entry, g->path == NULL ? 0 : (uint32_t)doc_path_text(g->path).len);
    store_u32(entry + 4, g->flags);
    store_u64(entry + 8, out->len);
    store_u32(entry + 16, g->value_count);
    store_u32(entry + 20, crc32c(0, out->data, out->len));
    store_u32(entry + 24, postings);
    store_u32(entry + 28, (uint32_t)(g->numbers.len / sizeof(struct keyed_row)));
    store_u32(entry + 32, (uint32_t)(g->many_numbers.len / sizeof(struct keyed_row)));
    store_u32(entry + 36, (uint32_t)(g->times.len / sizeof(struct keyed_row)));
    store_u32(entry + 40, (uint32_t)(g->many_times.len / sizeof(struct keyed_row)));
    return OMEN_OK;
}

/* ---- the file ---- */

/* One field: gather, lay out, write at *offset. */
static enum omen_err field_write(const struct payload_source *source, const struct doc_path *path,
        struct vfs_file *file, uint64_t *offset, uint8_t entry[PAYLOAD_FIELD_BYTES], struct err *err)
{
    struct gather g;
    struct buf section;
    if (!gather_init(&g, source, path)) return err_set(err, OMEN_ENOMEM, "", "no memory for a payload index");
    buf_init(&section);
    enum omen_err rc = gather_run(&g, err);
    if (rc == OMEN_OK) rc = section_make(&g, &section, entry, err);
    if (rc == OMEN_OK && section.len > 0) rc = vfs_pwrite(file, section.data, section.len, *offset, err);
    *offset += section.len;
    buf_fini(&section);
    gather_fini(&g);
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
        rc = field_write(source, paths->items[f], file, &offset,
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
