/* The bytes of a segment's rows and slots, little-endian.
 *
 * <number>.rows v1: 64-byte header, then rows of stride x f32, rest of the stride zero.
 *   0 magic "OMSR" | 4 u16 version | 6 u16 field | 8 u32 dim | 12 u32 stride in floats | 16 u64 rows |
 *   24 u32 crc32c of the rows | 28 zero [32] | 60 u32 crc32c of 0..59
 * <number>.slots v2: 128-byte header, then u32 of every part of the batch that it holds, ascending, then {u32 block,
 * u32 op} of every row, in order of rows. v1 ends its header at 64: it is all of a batch of one part.
 *   0 magic "OMSS" | 4 u16 version | 6 u16 field | 8 u32 dim | 12 u32 first block | 16 u32 end block | 20 u32 rows |
 *   24 u64 sequence of the first block | 32 u64 sequence of the last | 40 f32 recall target |
 *   44 u32 crc32c of all after the header | 48 u64 as of which sequence | 56 u32 flags (1: of one group; v1: zero) |
 *   60 u32 crc32c of 0..59 | 64 u64 batch | 72 u32 parts of the batch | 76 u32 parts held | 80 zero [44] |
 *   124 u32 crc32c of 64..123
 * <number>.graph is storage/index's. */
#include <string.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/crc32c.h"
#include "common/mem.h"
#include "storage/segment/route.h"
#include "storage/segment/segment_impl.h"

#define ROWS_MAGIC 0x52534d4fu  /* "OMSR" */
#define SLOTS_MAGIC 0x53534d4fu /* "OMSS" */
#define SEGMENT_VERSION 1
#define SLOTS_VERSION 2
#define HEADER_BYTES 64u
#define SLOTS_HEADER_BYTES 128u /* v2 */
#define SLOTS_OWN 1u
#define WRITE_ROWS 1024u /* copied and written at once */
#define SLOT_BYTES 8u

static enum omen_err header_check(const uint8_t *h, uint32_t magic, uint16_t newest, const char *path,
        struct err *err)
{
    if (load_u32(h) != magic) return err_corrupt(err, path, 0, "wrong magic");
    if (load_u16(h + 4) < SEGMENT_VERSION || load_u16(h + 4) > newest)
        return err_set(err, OMEN_EVERSION, "", "%s: format version %u, this program knows up to %u", path,
                load_u16(h + 4), newest);
    if (load_u32(h + 60) != crc32c(0, h, 60))
        return err_corrupt(err, path, 60, "wrong checksum of the header");
    return OMEN_OK;
}

/* ---- rows ---- */

static void row_copy(const struct segment *s, uint32_t slot, float *out)
{
    struct row_ref ref = s->slots[slot];
    const struct entry *e = &blocks_at(s->blocks, ref.block)->entry;
    struct entry_op op;
    entry_op_at(e, ref.op, &op);
    CHECK(op.rows[s->field] != ENTRY_NO_ROW);
    memcpy(out, entry_row(e, s->field, op.rows[s->field], s->dim), s->dim * sizeof *out);
    memset(out + s->dim, 0, (s->stride_floats - s->dim) * sizeof *out);
}

static enum omen_err rows_body_write(struct segment *s, const struct index_control *control,
        struct vfs_file *file, uint32_t *crc_out, struct err *err)
{
    size_t row_bytes = s->stride_floats * sizeof(float);
    float *buffer = mem_alloc_aligned(64, WRITE_ROWS * row_bytes);
    if (buffer == NULL) return err_set(err, OMEN_ENOMEM, "", "no memory to write a segment's rows");
    enum omen_err rc = OMEN_OK;
    uint32_t crc = 0;
    for (uint32_t at = 0; rc == OMEN_OK && at < s->count;) {
        uint32_t n = s->count - at < WRITE_ROWS ? s->count - at : WRITE_ROWS;
        for (uint32_t i = 0; i < n; i++) row_copy(s, at + i, buffer + i * s->stride_floats);
        crc = crc32c(crc, buffer, n * row_bytes);
        rc = vfs_pwrite(file, buffer, n * row_bytes, HEADER_BYTES + at * row_bytes, err);
        at += n;
        if (rc == OMEN_OK && control->stop != NULL && control->stop(control->arg))
            rc = err_set(err, OMEN_ECANCELED, "", "the segment is not wanted any more");
    }
    mem_free(buffer);
    *crc_out = crc;
    return rc;
}

static enum omen_err rows_file_map(struct segment *s, const char *path, struct err *err)
{
    enum omen_err rc = vfs_open(s->vfs, path, VFS_READ, &s->rows_file, err);
    if (rc != OMEN_OK) return rc;
    s->rows_bytes = HEADER_BYTES + (uint64_t)s->count * s->stride_floats * sizeof(float);
    uint64_t size;
    rc = vfs_size(s->rows_file, &size, err);
    if (rc == OMEN_OK && size != s->rows_bytes) rc = err_corrupt(err, path, 0, "wrong length");
    return rc == OMEN_OK ? vfs_map(s->rows_file, s->rows_bytes, &s->rows_map, err) : rc;
}

enum omen_err segment_rows_write(struct segment *s, const struct index_control *control, struct err *err)
{
    char path[SEGMENT_PATH_BYTES];
    struct vfs_file *file;
    uint8_t h[HEADER_BYTES] = { 0 };
    uint32_t crc = 0;
    segment_path(s->dir, s->number, SEGMENT_ROWS, path);
    enum omen_err rc = vfs_open(s->vfs, path, VFS_WRITE | VFS_CREATE, &file, err);
    if (rc != OMEN_OK) return rc;
    uint64_t bytes = HEADER_BYTES + (uint64_t)s->count * s->stride_floats * sizeof(float);
    rc = vfs_allocate(file, bytes, err); /* a mapped file with holes would be a SIGBUS on a full disk */
    if (rc == OMEN_OK) rc = vfs_truncate(file, bytes, err);
    if (rc == OMEN_OK) rc = rows_body_write(s, control, file, &crc, err);
    store_u32(h, ROWS_MAGIC);
    store_u16(h + 4, SEGMENT_VERSION);
    store_u16(h + 6, (uint16_t)s->field);
    store_u32(h + 8, s->dim);
    store_u32(h + 12, (uint32_t)s->stride_floats);
    store_u64(h + 16, s->count);
    store_u32(h + 24, crc);
    store_u32(h + 60, crc32c(0, h, 60));
    if (rc == OMEN_OK) rc = vfs_pwrite(file, h, sizeof h, 0, err);
    if (rc == OMEN_OK) rc = vfs_datasync(file, err);
    vfs_close(file);
    if (rc == OMEN_OK) rc = rows_file_map(s, path, err);
    if (rc == OMEN_OK) vfs_advise(s->vfs, s->rows_map, s->rows_bytes, VFS_ACCESS_RANDOM);
    return rc;
}

enum omen_err segment_rows_map(struct segment *s, struct err *err)
{
    char path[SEGMENT_PATH_BYTES];
    segment_path(s->dir, s->number, SEGMENT_ROWS, path);
    enum omen_err rc = rows_file_map(s, path, err);
    if (rc != OMEN_OK) return rc;
    const uint8_t *h = s->rows_map;
    rc = header_check(h, ROWS_MAGIC, SEGMENT_VERSION, path, err);
    if (rc != OMEN_OK) return rc;
    bool same = load_u16(h + 6) == s->field && load_u32(h + 8) == s->dim &&
            load_u32(h + 12) == s->stride_floats && load_u64(h + 16) == s->count;
    if (!same) return err_corrupt(err, path, 6, "not the rows of these slots");
    if (load_u32(h + 24) != crc32c(0, h + HEADER_BYTES, s->rows_bytes - HEADER_BYTES))
        return err_corrupt(err, path, 24, "wrong checksum of the rows");
    vfs_advise(s->vfs, s->rows_map, s->rows_bytes, VFS_ACCESS_RANDOM); /* from here on */
    return OMEN_OK;
}

/* ---- slots ---- */

static void slots_header_put(const struct segment *s, uint32_t crc, uint8_t h[SLOTS_HEADER_BYTES])
{
    memset(h, 0, SLOTS_HEADER_BYTES);
    store_u32(h, SLOTS_MAGIC);
    store_u16(h + 4, SLOTS_VERSION);
    store_u16(h + 6, (uint16_t)s->field);
    store_u32(h + 8, s->dim);
    store_u32(h + 12, s->first_block);
    store_u32(h + 16, s->end_block);
    store_u32(h + 20, s->count);
    store_u64(h + 24, blocks_at(s->blocks, s->first_block)->sequence);
    store_u64(h + 32, blocks_at(s->blocks, s->end_block - 1)->sequence);
    memcpy(h + 40, &s->recall_target, sizeof s->recall_target);
    store_u32(h + 44, crc);
    store_u64(h + 48, s->as_of);
    store_u32(h + 56, s->own ? SLOTS_OWN : 0);
    store_u32(h + 60, crc32c(0, h, 60));
    store_u64(h + 64, s->batch);
    store_u32(h + 72, s->batch_parts);
    store_u32(h + 76, s->part_count);
    store_u32(h + 124, crc32c(0, h + 64, 60));
}

enum omen_err segment_slots_write(struct segment *s, struct err *err)
{
    char path[SEGMENT_PATH_BYTES];
    size_t body = 4 * (size_t)s->part_count + (size_t)s->count * SLOT_BYTES;
    uint8_t *bytes = mem_calloc(1, SLOTS_HEADER_BYTES + body);
    if (bytes == NULL) return err_set(err, OMEN_ENOMEM, "", "no memory to write a segment's slots");
    uint8_t *at = bytes + SLOTS_HEADER_BYTES;
    for (uint32_t i = 0; i < s->part_count; i++, at += 4) store_u32(at, s->parts[i]);
    for (uint32_t i = 0; i < s->count; i++, at += SLOT_BYTES) {
        store_u32(at, s->slots[i].block);
        store_u32(at + 4, s->slots[i].op);
    }
    slots_header_put(s, crc32c(0, bytes + SLOTS_HEADER_BYTES, body), bytes);
    segment_path(s->dir, s->number, SEGMENT_SLOTS, path);
    enum omen_err rc = vfs_replace_file(s->vfs, path, bytes, SLOTS_HEADER_BYTES + body, err);
    mem_free(bytes);
    return rc;
}

/* Of a row that is dead nobody asks more than that, and of a compacted chunk there is no more. */
static bool slot_is_row(const struct segment *s, struct row_ref ref)
{
    const struct block *b = blocks_at(s->blocks, ref.block);
    struct entry_op op;
    if (b->died == NULL) return true;
    if (ref.op >= b->entry.op_count) return false;
    if (block_row_died(b, ref.op) != 0) return true;
    entry_op_at(&b->entry, ref.op, &op);
    return op.kind == POINT_UPSERT && op.rows[s->field] != ENTRY_NO_ROW;
}

/* Every slot must name a row of the field in the range: a search reads through it without looking. */
static enum omen_err slots_take(struct segment *s, const uint8_t *bytes, size_t from, const char *path,
        struct err *err)
{
    s->slots = mem_alloc(((size_t)s->count + 1) * sizeof *s->slots);
    if (s->slots == NULL) return err_set(err, OMEN_ENOMEM, "", "no memory for a segment's slots");
    for (uint32_t i = 0; i < s->count; i++) {
        const uint8_t *p = bytes + from + (size_t)i * SLOT_BYTES;
        struct row_ref ref = { load_u32(p), load_u32(p + 4) };
        if (ref.block < s->first_block || ref.block >= s->end_block || !slot_is_row(s, ref))
            return err_corrupt(err, path, (uint64_t)(p - bytes), "a slot names no row");
        s->slots[i] = ref;
    }
    return OMEN_OK;
}

/* Which parts of which batch. *slots_out: where slots begin. */
static enum omen_err batch_take(struct segment *s, const uint8_t *bytes, size_t len, const char *path,
        size_t *slots_out, struct err *err)
{
    bool plain = load_u16(bytes + 4) == SEGMENT_VERSION;
    s->batch = s->number;
    s->batch_parts = s->part_count = 1;
    *slots_out = HEADER_BYTES;
    if (!plain) {
        if (len < SLOTS_HEADER_BYTES) return err_corrupt(err, path, 0, "shorter than its header");
        if (load_u32(bytes + 124) != crc32c(0, bytes + 64, 60))
            return err_corrupt(err, path, 124, "wrong checksum of the header");
        s->own = (load_u32(bytes + 56) & SLOTS_OWN) != 0;
        s->batch = load_u64(bytes + 64);
        s->batch_parts = load_u32(bytes + 72);
        s->part_count = load_u32(bytes + 76);
        if (s->batch == 0 || s->batch > s->number || s->part_count == 0 || s->part_count > s->batch_parts ||
                s->batch_parts > ROUTE_PARTS_MAX)
            return err_corrupt(err, path, 64, "no part of a batch");
        *slots_out = SLOTS_HEADER_BYTES + 4 * (size_t)s->part_count;
    }
    if ((s->count == 0 && s->part_count == s->batch_parts) || s->count > INDEX_SLOTS_MAX ||
            len != *slots_out + (uint64_t)s->count * SLOT_BYTES)
        return err_corrupt(err, path, 20, "wrong length");
    s->parts = mem_calloc(s->part_count, sizeof *s->parts);
    if (s->parts == NULL) return err_set(err, OMEN_ENOMEM, "", "no memory for a segment's slots");
    for (uint32_t i = 0; !plain && i < s->part_count; i++) {
        s->parts[i] = load_u32(bytes + SLOTS_HEADER_BYTES + 4 * (size_t)i);
        if (s->parts[i] >= s->batch_parts || (i > 0 && s->parts[i] <= s->parts[i - 1]))
            return err_corrupt(err, path, SLOTS_HEADER_BYTES + 4 * (uint64_t)i, "no part of its batch");
    }
    return OMEN_OK;
}

static enum omen_err slots_parse(struct segment *s, const uint8_t *bytes, size_t len, const char *path,
        struct err *err)
{
    size_t slots;
    if (len < HEADER_BYTES) return err_corrupt(err, path, 0, "shorter than its header");
    enum omen_err rc = header_check(bytes, SLOTS_MAGIC, SLOTS_VERSION, path, err);
    if (rc != OMEN_OK) return rc;
    size_t header = load_u16(bytes + 4) == SEGMENT_VERSION ? HEADER_BYTES : SLOTS_HEADER_BYTES;
    s->field = load_u16(bytes + 6);
    s->first_block = load_u32(bytes + 12);
    s->end_block = load_u32(bytes + 16);
    s->count = load_u32(bytes + 20);
    memcpy(&s->recall_target, bytes + 40, sizeof s->recall_target);
    s->as_of = load_u64(bytes + 48);
    if (s->field >= s->schema->field_count || load_u32(bytes + 8) != s->schema->fields[s->field].dim)
        return err_corrupt(err, path, 6, "of another schema");
    s->dim = s->schema->fields[s->field].dim;
    s->metric = s->schema->fields[s->field].metric;
    s->stride_floats = entry_row_stride(s->dim);
    rc = batch_take(s, bytes, len, path, &slots, err);
    if (rc != OMEN_OK) return rc;
    if (load_u32(bytes + 44) != crc32c(0, bytes + header, len - header))
        return err_corrupt(err, path, 44, "wrong checksum of the slots");
    if (!(s->recall_target > 0 && s->recall_target <= 1))
        return err_corrupt(err, path, 40, "no recall target");
    bool ours = s->first_block < s->end_block && s->end_block <= blocks_count(s->blocks) &&
            load_u64(bytes + 24) == blocks_at(s->blocks, s->first_block)->sequence &&
            load_u64(bytes + 32) == blocks_at(s->blocks, s->end_block - 1)->sequence;
    if (!ours) return err_set(err, OMEN_EINVAL, "", "%s: of another stream than this one", path);
    return slots_take(s, bytes, slots, path, err);
}

enum omen_err segment_slots_read(struct segment *s, struct err *err)
{
    char path[SEGMENT_PATH_BYTES];
    uint8_t *bytes;
    size_t len;
    segment_path(s->dir, s->number, SEGMENT_SLOTS, path);
    enum omen_err rc = vfs_read_file(s->vfs, path,
            SLOTS_HEADER_BYTES + 4 * (size_t)ROUTE_PARTS_MAX + (size_t)INDEX_SLOTS_MAX * SLOT_BYTES, &bytes,
            &len, err);
    if (rc != OMEN_OK) return rc;
    rc = slots_parse(s, bytes, len, path, err);
    mem_free(bytes);
    return rc;
}
