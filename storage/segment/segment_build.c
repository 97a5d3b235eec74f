/* Building and opening segments; see segment.h for the order of writes. */
#include <stdlib.h>
#include <string.h>

#include "common/check.h"
#include "common/mem.h"
#include "storage/segment/segment_impl.h"

/* The spec's rows and place in a batch. */
static enum omen_err spec_take(struct segment *s, const struct segment_spec *spec, struct err *err)
{
    static const uint32_t FIRST[1] = { 0 };
    bool whole = spec->batch == 0;
    const uint32_t *parts = whole ? FIRST : spec->parts;
    s->count = spec->row_count;
    s->batch = whole ? spec->number : spec->batch;
    s->batch_parts = whole ? 1 : spec->batch_parts;
    s->part_count = whole ? 1 : spec->part_count;
    s->own = spec->own;
    CHECK(s->part_count > 0 && s->part_count <= s->batch_parts && s->count <= INDEX_SLOTS_MAX);
    s->slots = mem_alloc(((size_t)s->count + 1) * sizeof *s->slots);
    s->parts = mem_alloc(s->part_count * sizeof *s->parts);
    if (s->slots == NULL || s->parts == NULL)
        return err_set(err, OMEN_ENOMEM, "", "no memory for a segment's slots");
    if (s->count > 0) memcpy(s->slots, spec->rows, s->count * sizeof *s->slots);
    memcpy(s->parts, parts, s->part_count * sizeof *s->parts);
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
    if (s->count == 0) return;
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

/* What is not storage/index's to tell. */
static void phase_begins(const struct segment *s, const struct index_control *control, const char *phase)
{
    if (control->progress != NULL) control->progress(control->arg, phase, 0, s->count);
}

enum omen_err segment_build(const struct segment_spec *spec, const struct index_control *control,
        struct segment **segment_out, struct err *err)
{
    CHECK(spec->first_block < spec->end_block && spec->end_block <= blocks_count(spec->blocks));
    *segment_out = NULL;
    struct segment *s = segment_new(spec);
    if (s == NULL) return err_set(err, OMEN_ENOMEM, "", "no memory for a segment");
    enum omen_err rc = spec_take(s, spec, err);
    bool rows = s->count > 0;
    if (rc == OMEN_OK && rows) phase_begins(s, control, "rows");
    if (rc == OMEN_OK && rows) rc = segment_rows_write(s, control, err);
    if (rc == OMEN_OK && rows) rc = graph_build(s, spec, control, err);
    if (rc == OMEN_OK && rows) phase_begins(s, control, "payload");
    if (rc == OMEN_OK && rows) rc = segment_payload_build(s, spec->payload_first, control, err);
    if (rc == OMEN_OK && (rows || s->part_count < s->batch_parts)) rc = segment_slots_write(s, err);
    if (rc != OMEN_OK) {
        segment_remove_files(s);
        segment_unref(s);
        return rc;
    }
    sizes_take(s);
    *segment_out = s;
    return OMEN_OK;
}

uint64_t segment_graph_bytes(const struct segment_spec *spec)
{
    char path[SEGMENT_PATH_BYTES];
    struct vfs_file *file;
    uint64_t bytes = 0;
    struct err ignored;
    segment_path(spec->dir, spec->number, SEGMENT_GRAPH, path);
    if (vfs_open(spec->vfs, path, VFS_READ, &file, &ignored) != OMEN_OK) return 0;
    if (vfs_size(file, &bytes, &ignored) != OMEN_OK) bytes = 0;
    vfs_close(file);
    return bytes;
}

enum omen_err segment_open(const struct segment_spec *spec, const struct index_control *control,
        struct segment **segment_out, struct err *err)
{
    *segment_out = NULL;
    struct segment *s = segment_new(spec);
    if (s == NULL) return err_set(err, OMEN_ENOMEM, "", "no memory for a segment");
    enum omen_err rc = segment_slots_read(s, err);
    if (rc == OMEN_OK && s->count == 0) {
        *segment_out = s;
        return OMEN_OK;
    }
    if (rc == OMEN_OK) rc = segment_rows_map(s, err);
    if (rc == OMEN_OK) {
        char path[SEGMENT_PATH_BYTES];
        struct index_rows rows;
        segment_rows(s, &rows);
        segment_path(s->dir, s->number, SEGMENT_GRAPH, path);
        rc = index_map(s->vfs, path, &rows, spec->pin, &s->index, err);
        s->pinned = spec->pin;
    }
    if (rc == OMEN_OK && spec->like != NULL)
        s->payload = payload_index_ref(spec->like->payload);
    else if (rc == OMEN_OK)
        rc = segment_payload_open(s, spec->payload_first, control, err);
    if (rc != OMEN_OK) {
        segment_unref(s);
        return rc;
    }
    sizes_take(s);
    *segment_out = s;
    return OMEN_OK;
}
