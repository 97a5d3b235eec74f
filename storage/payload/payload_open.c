/* Opening a payload index: mapped as it lies, every byte and every number in it checked, then the bitmaps that are kept
 * in memory are made of the lists. Nothing of roaring's own format is ever read: its decoder of this version does not
 * look at what it is given. */
#include <stdatomic.h>
#include <roaring/roaring.h>
#include <string.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/crc32c.h"
#include "common/mem.h"
#include "storage/payload/payload_index_impl.h"

struct opening {
    struct payload_index *index;
    const char *path;
    struct err *err;
};

static enum omen_err corrupt(const struct opening *o, const void *at, const char *what)
{
    return err_corrupt(o->err, o->path, (uint64_t)((const uint8_t *)at - o->index->map), what);
}

/* ---- what a section holds, checked ---- */

struct cursor {
    const uint8_t *at;
};

static const void *take(struct cursor *c, uint64_t bytes)
{
    const void *here = c->at;
    c->at += (bytes + 7) & ~UINT64_C(7);
    return here;
}

static const char *rows_wrong(const uint32_t *rows, uint32_t count, uint32_t row_count, bool ascending)
{
    for (uint32_t i = 0; i < count; i++) {
        if (rows[i] >= row_count) return "a row past the end";
        if (ascending && i > 0 && rows[i] <= rows[i - 1]) return "rows out of order";
    }
    return NULL;
}

static enum omen_err values_take(const struct opening *o, struct cursor *c, const uint8_t *entry,
        struct payload_field *f)
{
    uint32_t postings = load_u32(entry + 24);
    f->value_count = load_u32(entry + 16);
    f->values = take(c, (uint64_t)f->value_count * sizeof *f->values);
    f->firsts = take(c, ((uint64_t)f->value_count + 1) * sizeof *f->firsts);
    f->postings = take(c, (uint64_t)postings * sizeof *f->postings);
    if (f->firsts[0] != 0 || f->firsts[f->value_count] != postings)
        return corrupt(o, f->firsts, "lists of rows of another length");
    for (uint32_t i = 0; i < f->value_count; i++) {
        if (i > 0 && payload_hash_compare(f->values[i - 1], f->values[i]) >= 0)
            return corrupt(o, &f->values[i], "values out of order");
        if (f->firsts[i + 1] <= f->firsts[i] || f->firsts[i + 1] > postings)
            return corrupt(o, &f->firsts[i], "a value without rows");
        const char *wrong = rows_wrong(f->postings + f->firsts[i], f->firsts[i + 1] - f->firsts[i],
                o->index->rows, true);
        if (wrong != NULL) return corrupt(o, f->postings + f->firsts[i], wrong);
    }
    return OMEN_OK;
}

static enum omen_err keys_take(const struct opening *o, struct cursor *c, uint32_t count,
        const int64_t **keys_out, const uint32_t **rows_out)
{
    *keys_out = take(c, (uint64_t)count * sizeof **keys_out);
    *rows_out = take(c, (uint64_t)count * sizeof **rows_out);
    for (uint32_t i = 1; i < count; i++)
        if ((*keys_out)[i] < (*keys_out)[i - 1]) return corrupt(o, *keys_out + i, "numbers out of order");
    const char *wrong = rows_wrong(*rows_out, count, o->index->rows, false);
    return wrong == NULL ? OMEN_OK : corrupt(o, *rows_out, wrong);
}

static enum omen_err column_take(const struct opening *o, struct cursor *c, const uint8_t *counts,
        struct payload_column *column)
{
    column->count = load_u32(counts);
    column->many_count = load_u32(counts + 4);
    enum omen_err rc = keys_take(o, c, column->count, &column->keys, &column->rows);
    return rc == OMEN_OK ? keys_take(o, c, column->many_count, &column->many_keys, &column->many_rows) : rc;
}

static enum omen_err words_take(const struct opening *o, struct cursor *c, const uint8_t *entry,
        struct payload_field *f)
{
    uint64_t units = load_u64(entry + 48);
    f->word_count = load_u32(entry + 44);
    f->words = take(c, (uint64_t)f->word_count * sizeof *f->words);
    f->word_firsts = take(c, ((uint64_t)f->word_count + 1) * sizeof *f->word_firsts);
    f->word_units = take(c, units * sizeof *f->word_units);
    if (f->word_firsts[0] != 0 || f->word_firsts[f->word_count] != units)
        return corrupt(o, f->word_firsts, "lists of words of another length");
    for (uint32_t i = 0; i < f->word_count; i++) {
        if (i > 0 && payload_hash_compare(f->words[i - 1], f->words[i]) >= 0)
            return corrupt(o, &f->words[i], "words out of order");
        if (f->word_firsts[i + 1] <= f->word_firsts[i] || f->word_firsts[i + 1] > units)
            return corrupt(o, &f->word_firsts[i], "a word without rows");
        const char *wrong = word_list_wrong(payload_word_list(f, i), o->index->rows);
        if (wrong != NULL) return corrupt(o, f->word_units + f->word_firsts[i], wrong);
    }
    return OMEN_OK;
}

static enum omen_err places_take(const struct opening *o, struct cursor *c, uint32_t count,
        const uint32_t **rows_out, struct place_tree *tree)
{
    const struct geo_point *places = take(c, (uint64_t)count * sizeof *places);
    *rows_out = take(c, (uint64_t)count * sizeof **rows_out);
    for (uint32_t i = 0; i < count; i++)
        if (!(places[i].lon >= -180 && places[i].lon <= 180 && places[i].lat >= -90 && places[i].lat <= 90))
            return corrupt(o, &places[i], "a place that is none");
    const char *wrong = rows_wrong(*rows_out, count, o->index->rows, false);
    if (wrong != NULL) return corrupt(o, *rows_out, wrong);
    return place_tree_init(tree, places, count)
            ? OMEN_OK
            : err_set(o->err, OMEN_ENOMEM, "", "no memory for a payload index");
}

/* What version 1 has not. */
static enum omen_err special_take(const struct opening *o, struct cursor *c, const uint8_t *entry,
        struct payload_field *f)
{
    f->places.count = load_u32(entry + 56);
    f->places.many_count = load_u32(entry + 60);
    enum omen_err rc = words_take(o, c, entry, f);
    if (rc == OMEN_OK) rc = places_take(o, c, f->places.count, &f->places.rows, &f->tree);
    if (rc == OMEN_OK) rc = places_take(o, c, f->places.many_count, &f->places.many_rows, &f->many_tree);
    return rc;
}

static uint64_t padded(uint64_t bytes) { return (bytes + 7) & ~UINT64_C(7); }

static uint64_t column_bytes(const uint8_t *counts)
{
    uint64_t count = load_u32(counts), many = load_u32(counts + 4);
    return 8 * count + padded(4 * count) + 8 * many + padded(4 * many);
}

static uint64_t special_bytes(const uint8_t *entry)
{
    uint64_t words = load_u32(entry + 44), places = load_u32(entry + 56), many = load_u32(entry + 60);
    return 16 * words + padded(4 * (words + 1)) + padded(2 * load_u64(entry + 48)) + 16 * places +
            padded(4 * places) + 16 * many + padded(4 * many);
}

static uint64_t section_bytes(const uint8_t *entry, uint32_t rows, uint32_t version)
{
    uint64_t text = load_u32(entry), values = load_u32(entry + 16);
    uint64_t bits = text == 0 ? 0 : PAYLOAD_BITS * rowbits_words(rows) * 8;
    return (version == 1 ? 0 : special_bytes(entry)) + padded(text) + bits + 16 * values +
            padded(4 * (values + 1)) + padded(4 * (uint64_t)load_u32(entry + 24)) + column_bytes(entry + 28) +
            column_bytes(entry + 36);
}

static enum omen_err bits_take(const struct opening *o, struct cursor *c, struct payload_field *f)
{
    uint32_t rows = o->index->rows;
    for (int b = 0; b < PAYLOAD_BITS; b++) {
        f->bits[b] = take(c, rowbits_words(rows) * sizeof(uint64_t));
        if (rows % 64 != 0 && f->bits[b][rows / 64] >> (rows % 64) != 0)
            return corrupt(o, &f->bits[b][rows / 64], "bits past the last row");
    }
    return OMEN_OK;
}

static enum omen_err field_take(const struct opening *o, const uint8_t *entry, const uint8_t *section,
        struct payload_field *f)
{
    struct cursor c = { section };
    uint32_t text_bytes = load_u32(entry);
    if (load_u32(entry + 20) != crc32c(0, section, load_u64(entry + 8)))
        return corrupt(o, section, "wrong checksum of a field");
    const uint8_t *text = take(&c, text_bytes);
    char *copy = mem_calloc(1, text_bytes + 1);
    if (copy == NULL) return err_set(o->err, OMEN_ENOMEM, "", "no memory for a payload index");
    memcpy(copy, text, text_bytes);
    f->path = copy;
    f->flags = load_u32(entry + 4);
    enum omen_err rc = text_bytes == 0 ? OMEN_OK : bits_take(o, &c, f);
    if (rc == OMEN_OK) rc = values_take(o, &c, entry, f);
    if (rc == OMEN_OK) rc = column_take(o, &c, entry + 28, &f->numbers);
    if (rc == OMEN_OK) rc = column_take(o, &c, entry + 36, &f->times);
    if (rc == OMEN_OK && o->index->version > 1) rc = special_take(o, &c, entry, f);
    return rc;
}

/* ---- the header and the directory ---- */

static enum omen_err header_check(const struct opening *o, uint32_t rows)
{
    struct payload_index *index = o->index;
    const uint8_t *h = index->map;
    if (load_u32(h) != PAYLOAD_MAGIC) return corrupt(o, h, "wrong magic");
    index->version = load_u16(h + 4);
    if (index->version < PAYLOAD_VERSION_OLDEST || index->version > PAYLOAD_VERSION)
        return err_set(o->err, OMEN_EVERSION, "", "%s: format version %u, this program knows up to %d",
                o->path, index->version, PAYLOAD_VERSION);
    if (load_u32(h + 60) != crc32c(0, h, 60)) return corrupt(o, h + 60, "wrong checksum of the header");
    index->rows = load_u32(h + 8);
    index->field_count = load_u32(h + 12);
    index->complete = (load_u16(h + 6) & PAYLOAD_COMPLETE) != 0;
    if (index->rows != rows) return corrupt(o, h + 8, "not of this segment");
    uint64_t head = PAYLOAD_HEADER_BYTES + (uint64_t)index->field_count * PAYLOAD_FIELD_BYTES;
    if (index->field_count == 0 || index->field_count > PAYLOAD_FIELDS_MAX + 1 || head > index->bytes ||
            load_u64(h + 16) != index->bytes)
        return corrupt(o, h + 12, "wrong length");
    if (load_u32(h + 24) != crc32c(0, h + PAYLOAD_HEADER_BYTES, head - PAYLOAD_HEADER_BYTES))
        return corrupt(o, h + 24, "wrong checksum of the directory");
    return OMEN_OK;
}

static enum omen_err entry_check(const struct opening *o, const uint8_t *entry, uint32_t i, uint64_t left)
{
    static const uint8_t zero[20];
    uint32_t text = load_u32(entry), version = o->index->version;
    uint32_t flags = version == 1 ? PAYLOAD_FIELD_FLAGS_1 : PAYLOAD_FIELD_FLAGS;
    if ((text == 0) != (i == 0) || text > DOC_PATH_BYTES_MAX)
        return corrupt(o, entry, "wrong length of a path");
    if ((load_u32(entry + 4) & ~flags) != 0 || (version == 1 && memcmp(entry + 44, zero, sizeof zero) != 0))
        return corrupt(o, entry + 4, "unknown flags of a field");
    if (version > 1 && load_u64(entry + 48) > left) return corrupt(o, entry + 48, "wrong length of a field");
    uint64_t bytes = section_bytes(entry, o->index->rows, version);
    if (load_u64(entry + 8) != bytes || bytes > left) return corrupt(o, entry + 8, "wrong length of a field");
    return OMEN_OK;
}

static enum omen_err fields_take(const struct opening *o)
{
    struct payload_index *index = o->index;
    uint64_t at = PAYLOAD_HEADER_BYTES + (uint64_t)index->field_count * PAYLOAD_FIELD_BYTES;
    index->fields = mem_calloc(index->field_count, sizeof *index->fields);
    if (index->fields == NULL) return err_set(o->err, OMEN_ENOMEM, "", "no memory for a payload index");
    for (uint32_t i = 0; i < index->field_count; i++) {
        const uint8_t *entry = index->map + PAYLOAD_HEADER_BYTES + (uint64_t)i * PAYLOAD_FIELD_BYTES;
        enum omen_err rc = entry_check(o, entry, i, index->bytes - at);
        if (rc == OMEN_OK) rc = field_take(o, entry, index->map + at, &index->fields[i]);
        if (rc != OMEN_OK) return rc;
        if (i > 0 && strcmp(index->fields[i - 1].path, index->fields[i].path) >= 0)
            return corrupt(o, entry, "paths out of order");
        at += load_u64(entry + 8);
    }
    return at == index->bytes ? OMEN_OK : corrupt(o, index->map, "wrong length");
}

/* ---- what is kept in memory ---- */

static bool dense_make(struct payload_index *index, struct payload_field *f)
{
    uint32_t most = 0;
    for (uint32_t i = 0; i < f->value_count; i++)
        if (f->firsts[i + 1] - f->firsts[i] > most) most = f->firsts[i + 1] - f->firsts[i];
    if (most < PAYLOAD_DENSE) return true;
    f->dense = mem_calloc(f->value_count, sizeof(struct roaring_bitmap_s *));
    if (f->dense == NULL) return false;
    index->memory_bytes += f->value_count * sizeof(struct roaring_bitmap_s *);
    for (uint32_t i = 0; i < f->value_count; i++) {
        uint32_t count = f->firsts[i + 1] - f->firsts[i];
        if (count < PAYLOAD_DENSE) continue;
        f->dense[i] = roaring_bitmap_of_ptr(count, f->postings + f->firsts[i]);
        if (f->dense[i] == NULL) return false;
        roaring_bitmap_run_optimize(f->dense[i]);
        index->memory_bytes += roaring_bitmap_portable_size_in_bytes(f->dense[i]);
    }
    return true;
}

static bool prefixes_make(struct payload_index *index, struct payload_column *column)
{
    uint32_t step = PAYLOAD_PREFIX_ROWS;
    while (column->count / step > PAYLOAD_PREFIXES_MAX) step *= 2;
    uint32_t count = column->count / step;
    if (count == 0) return true;
    column->prefixes = mem_calloc(count, sizeof(struct roaring_bitmap_s *));
    if (column->prefixes == NULL) return false;
    column->prefix_step = step;
    column->prefix_count = count;
    for (uint32_t i = 0; i < count; i++) {
        struct roaring_bitmap_s *set = i == 0 ? roaring_bitmap_create()
                                              : roaring_bitmap_copy(column->prefixes[i - 1]);
        if (set == NULL) return false;
        column->prefixes[i] = set;
        roaring_bitmap_add_many(set, step, column->rows + (size_t)i * step);
    }
    for (uint32_t i = 0; i < count; i++) {
        roaring_bitmap_run_optimize(column->prefixes[i]);
        index->memory_bytes += roaring_bitmap_portable_size_in_bytes(column->prefixes[i]);
    }
    return true;
}

static enum omen_err bitmaps_make(struct payload_index *index, struct err *err)
{
    index->memory_bytes = sizeof *index + index->field_count * sizeof *index->fields;
    for (uint32_t i = 0; i < index->field_count; i++) {
        struct payload_field *f = &index->fields[i];
        bool ok = dense_make(index, f);
        if (i > 0)
            ok = ok && prefixes_make(index, &f->numbers) && prefixes_make(index, &f->times) &&
                    prefixes_make(index, &f->places);
        index->memory_bytes += place_tree_bytes(&f->tree) + place_tree_bytes(&f->many_tree);
        if (!ok) return err_set(err, OMEN_ENOMEM, "", "no memory for a payload index");
    }
    return OMEN_OK;
}

static void column_fini(struct payload_column *column)
{
    for (uint32_t i = 0; i < column->prefix_count; i++)
        if (column->prefixes[i] != NULL) roaring_bitmap_free(column->prefixes[i]);
    mem_free(column->prefixes);
}

struct payload_index *payload_index_ref(struct payload_index *index)
{
    if (index != NULL) atomic_fetch_add(&index->more_refs, 1);
    return index;
}

void payload_index_free(struct payload_index *index)
{
    if (index == NULL || atomic_fetch_sub(&index->more_refs, 1) > 0) return;
    for (uint32_t i = 0; index->fields != NULL && i < index->field_count; i++) {
        struct payload_field *f = &index->fields[i];
        for (uint32_t v = 0; f->dense != NULL && v < f->value_count; v++)
            if (f->dense[v] != NULL) roaring_bitmap_free(f->dense[v]);
        mem_free(f->dense);
        column_fini(&f->numbers);
        column_fini(&f->times);
        column_fini(&f->places);
        place_tree_fini(&f->tree);
        place_tree_fini(&f->many_tree);
        mem_free((char *)(uintptr_t)f->path);
    }
    mem_free(index->fields);
    if (index->map != NULL) vfs_unmap(index->file, index->map, index->bytes);
    vfs_close(index->file);
    mem_free(index);
}

static enum omen_err file_map(const struct opening *o, struct vfs *vfs)
{
    struct payload_index *index = o->index;
    enum omen_err rc = vfs_open(vfs, o->path, VFS_READ, &index->file, o->err);
    if (rc == OMEN_OK) rc = vfs_size(index->file, &index->bytes, o->err);
    if (rc != OMEN_OK) return rc;
    if (index->bytes < PAYLOAD_HEADER_BYTES)
        return err_corrupt(o->err, o->path, 0, "shorter than its header");
    return vfs_map(index->file, index->bytes, &index->map, o->err);
}

enum omen_err payload_index_open(struct vfs *vfs, const char *path, uint32_t rows,
        struct payload_index **index_out, struct err *err)
{
    *index_out = NULL;
    struct payload_index *index = mem_calloc(1, sizeof *index);
    if (index == NULL) return err_set(err, OMEN_ENOMEM, "", "no memory for a payload index");
    const struct opening o = { index, path, err };
    enum omen_err rc = file_map(&o, vfs);
    if (rc == OMEN_OK) rc = header_check(&o, rows);
    if (rc == OMEN_OK) rc = fields_take(&o);
    if (rc == OMEN_OK) rc = bitmaps_make(index, err);
    if (rc != OMEN_OK) {
        payload_index_free(index);
        return rc;
    }
    *index_out = index;
    return OMEN_OK;
}

void payload_index_stats(const struct payload_index *index, struct payload_index_stats *stats_out)
{
    *stats_out = (struct payload_index_stats){ index->field_count - 1, index->complete, index->memory_bytes,
        index->bytes };
}

void payload_index_field(const struct payload_index *index, uint32_t i, struct payload_field_info *info_out)
{
    CHECK(i + 1 < index->field_count);
    const struct payload_field *f = &index->fields[i + 1];
    *info_out = (struct payload_field_info){ .path = f->path,
        .values = f->value_count,
        .numbers = f->numbers.count + f->numbers.many_count,
        .times = f->times.count + f->times.many_count,
        .words = f->word_count,
        .places = f->places.count + f->places.many_count,
        .has_words = (f->flags & PAYLOAD_WORDS) != 0 };
}
