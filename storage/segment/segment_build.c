/* Building and opening segments; see segment.h for the order of writes. */
#include <stdlib.h>
#include <string.h>

#include "common/check.h"
#include "common/mem.h"
#include "storage/segment/segment_impl.h"

/* The rows of the field that a view at `as_of` sees, in order of blocks. What such a view sees is in it, and so is
 * what a later one sees: a row of these blocks that lives then lived at as_of as well. */
static enum omen_err slots_collect(struct segment *s, struct err *err)
{
    uint64_t most = 0;
    for (uint32_t b = s->first_block; b < s->end_block; b++)
        most += blocks_at(s->blocks, b)->entry.row_count[s->field];
    if (most > INDEX_SLOTS_MAX) return err_set(err, OMEN_ETOOBIG, "", "more rows than a segment may have");
    s->slots = mem_alloc((most + 1) * sizeof *s->slots);
    if (s->slots == NULL) return err_set(err, OMEN_ENOMEM, "", "no memory for a segment's slots");
    for (uint32_t b = s->first_block; b < s->end_block; b++) {
        const struct block *block = blocks_at(s->blocks, b);
        for (uint32_t op = 0; op < block->entry.op_count; op++) {
            struct entry_op parsed;
            if (!block_row_visible(block, op, s->as_of, 0)) continue;
            entry_op_at(&block->entry, op, &parsed);
            if (parsed.rows[s->field] == ENTRY_NO_ROW) continue;
            CHECK(s->count < most);
            s->slots[s->count++] = (struct row_ref){ b, op };
        }
    }
    return OMEN_OK;
}

struct keyed_row {
    uint64_t key_hi, key_lo;
    struct row_ref row;
};

static int keyed_compare(const void *a, const void *b)
{
    const struct keyed_row *x = a, *y = b;
    if (x->key_hi != y->key_hi) return x->key_hi < y->key_hi ? -1 : 1;
    if (x->key_lo != y->key_lo) return x->key_lo < y->key_lo ? -1 : 1;
    if (x->row.block != y->row.block) return x->row.block < y->row.block ? -1 : 1;
    return (x->row.op > y->row.op) - (x->row.op < y->row.op);
}

/* By hash of the shard key, then as they were written. */
static enum omen_err slots_group(struct segment *s, struct err *err)
{
    struct keyed_row *rows = mem_alloc(((size_t)s->count + 1) * sizeof *rows);
    if (rows == NULL) return err_set(err, OMEN_ENOMEM, "", "no memory to order a segment's rows");
    for (uint32_t i = 0; i < s->count; i++) {
        struct entry_op op;
        entry_op_at(&blocks_at(s->blocks, s->slots[i].block)->entry, s->slots[i].op, &op);
        rows[i] = (struct keyed_row){ op.key.key_hi, op.key.key_lo, s->slots[i] };
    }
    qsort(rows, s->count, sizeof *rows, keyed_compare);
    for (uint32_t i = 0; i < s->count; i++) s->slots[i] = rows[i].row;
    mem_free(rows);
    return OMEN_OK;
}

/* Layout and codes, of what the layouts can hold; the rest is left to calibration. One step shorter than the recall
 * target begins with: the compact layout where that comes to product or binary codes. One step longer: where memory
 * asks for the compact layout, rows of f16 or whole bytes in it rather than the shortest codes that will do. */
static void codes_choose(const struct segment_spec *spec, struct index_params *params)
{
    enum quant_kind kind = quant_choose(spec->recall_target, spec->quantization);
    bool shorter = spec->quantization == QUANT_AGGRESSIVE && kind > QUANT_SCALAR;
    if (spec->compact || shorter) params->layout = INDEX_LAYOUT_COMPACT;
    if (!spec->compact || spec->quantization != QUANT_CONSERVATIVE) return;
    params->quant = kind == QUANT_NONE ? INDEX_QUANT_NONE : INDEX_QUANT_SCALAR;
    params->bits = kind == QUANT_NONE ? 16 : 8;
}

static enum omen_err graph_build(struct segment *s, const struct segment_spec *spec,
        const struct index_control *control, struct err *err)
{
    char path[SEGMENT_PATH_BYTES];
    struct index_rows rows;
    struct index_params params = { .recall_target = spec->recall_target, .seed = spec->number };
    codes_choose(spec, &params);
    segment_rows(s, &rows);
    enum omen_err rc = index_build(INDEX_SEALED, &rows, &params, control, &s->index, err);
    if (rc != OMEN_OK) return rc;
    segment_path(s->dir, s->number, SEGMENT_GRAPH, path);
    rc = index_save(s->index, s->vfs, path, err);
    s->pinned = spec->pin;
    if (rc != OMEN_OK || spec->pin) return rc;
    index_free(s->index);
    s->index = NULL;
    return index_map(s->vfs, path, &rows, false, &s->index, err);
}

static void sizes_take(struct segment *s)
{
    struct index_stats stats;
    index_stats(s->index, false, &stats);
    s->about = (struct explain_index){ .kind = index_kind_name(s->index->ops->kind),
        .layout = index_layout_name(stats.layout),
        .quant = index_quant_name(stats.quant),
        .bits = stats.bits };
    s->kept_bytes = (uint64_t)s->count * sizeof *s->slots;
    s->memory_bytes = stats.memory_bytes + s->kept_bytes;
    if (s->payload != NULL) {
        struct payload_index_stats payload;
        payload_index_stats(s->payload, &payload);
        s->memory_bytes += payload.memory_bytes;
        s->kept_bytes += payload.memory_bytes;
    }
    for (int f = 0; f < SEGMENT_FILES; f++) {
        char path[SEGMENT_PATH_BYTES];
        struct vfs_file *file;
        uint64_t bytes;
        struct err ignored;
        segment_path(s->dir, s->number, (enum segment_file)f, path);
        if (vfs_open(s->vfs, path, VFS_READ, &file, &ignored) != OMEN_OK) continue;
        if (vfs_size(file, &bytes, &ignored) == OMEN_OK) s->disk_bytes += bytes;
        vfs_close(file);
    }
}

enum omen_err segment_build(const struct segment_spec *spec, const struct index_control *control,
        struct segment **segment_out, struct err *err)
{
    CHECK(spec->first_block < spec->end_block && spec->end_block <= blocks_count(spec->blocks));
    *segment_out = NULL;
    struct segment *s = segment_new(spec);
    if (s == NULL) return err_set(err, OMEN_ENOMEM, "", "no memory for a segment");
    enum omen_err rc = slots_collect(s, err);
    if (rc == OMEN_OK && s->count == 0) {
        *segment_out = s;
        return OMEN_OK;
    }
    if (rc == OMEN_OK && spec->by_shard_key && spec->schema->shard_key[0] != '\0') rc = slots_group(s, err);
    if (rc == OMEN_OK) rc = segment_rows_write(s, control, err);
    if (rc == OMEN_OK) rc = graph_build(s, spec, control, err);
    if (rc == OMEN_OK) rc = segment_payload_build(s, control, err);
    if (rc == OMEN_OK) rc = segment_slots_write(s, err);
    if (rc != OMEN_OK) {
        segment_remove_files(s);
        segment_unref(s);
        return rc;
    }
    sizes_take(s);
    *segment_out = s;
    return OMEN_OK;
}

enum omen_err segment_open(const struct segment_spec *spec, struct segment **segment_out, struct err *err)
{
    *segment_out = NULL;
    struct segment *s = segment_new(spec);
    if (s == NULL) return err_set(err, OMEN_ENOMEM, "", "no memory for a segment");
    enum omen_err rc = segment_slots_read(s, err);
    if (rc == OMEN_OK) rc = segment_rows_map(s, err);
    if (rc == OMEN_OK) {
        char path[SEGMENT_PATH_BYTES];
        struct index_rows rows;
        segment_rows(s, &rows);
        segment_path(s->dir, s->number, SEGMENT_GRAPH, path);
        rc = index_map(s->vfs, path, &rows, spec->pin, &s->index, err);
        s->pinned = spec->pin;
    }
    if (rc != OMEN_OK) {
        segment_unref(s);
        return rc;
    }
    segment_payload_open(s);
    sizes_take(s);
    *segment_out = s;
    return OMEN_OK;
}
