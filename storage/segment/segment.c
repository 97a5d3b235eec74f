/* A segment's life; see segment.h. */
#include "storage/segment/segment.h"

#include <stdio.h>
#include <string.h>

#include "common/check.h"
#include "common/mem.h"
#include "storage/segment/segment_impl.h"

void segment_path(const char *dir, uint64_t number, enum segment_file file, char out[SEGMENT_PATH_BYTES])
{
    static const char *const endings[SEGMENT_FILES] = { "rows", "graph", "payload", "slots" };
    snprintf(out, SEGMENT_PATH_BYTES, "%.*s/%016llx.%s", SEGMENT_PATH_BYTES - 64, dir,
            (unsigned long long)number, endings[file]);
}

struct segment *segment_new(const struct segment_spec *spec)
{
    struct segment *s = mem_calloc(1, sizeof *s);
    if (s == NULL) return NULL;
    s->vfs = spec->vfs;
    snprintf(s->dir, sizeof s->dir, "%s", spec->dir);
    s->blocks = spec->blocks;
    s->schema = spec->schema;
    s->number = spec->number;
    s->field = spec->field;
    s->first_block = spec->first_block;
    s->end_block = spec->end_block;
    s->recall_target = spec->recall_target;
    s->as_of = spec->as_of;
    s->dim = spec->schema->fields[spec->field].dim;
    s->metric = spec->schema->fields[spec->field].metric;
    s->stride_floats = entry_row_stride(s->dim);
    atomic_init(&s->refs, 1);
    pthread_mutex_init(&s->mutex, NULL);
    return s;
}

struct segment *segment_ref(struct segment *segment)
{
    uint32_t before = atomic_fetch_add_explicit(&segment->refs, 1, memory_order_relaxed);
    CHECK(before > 0);
    return segment;
}

void segment_unref(struct segment *s)
{
    if (s == NULL) return;
    uint32_t before = atomic_fetch_sub_explicit(&s->refs, 1, memory_order_acq_rel);
    CHECK(before > 0);
    if (before > 1) return;
    while (s->idle != NULL) {
        struct segment_scratch *scratch = s->idle;
        s->idle = scratch->next;
        index_scratch_free(s->index, scratch->scratch);
        payload_scratch_free(scratch->sets);
        mem_free(scratch->hits);
        mem_free(scratch);
    }
    index_free(s->index);
    payload_index_free(s->payload);
    segment_dead_unref(s->dead);
    if (s->rows_map != NULL) vfs_unmap(s->rows_file, s->rows_map, s->rows_bytes);
    vfs_close(s->rows_file);
    mem_free(s->slots);
    mem_free(s->parts);
    pthread_mutex_destroy(&s->mutex);
    mem_free(s);
}

void segment_remove_number(struct vfs *vfs, const char *dir, uint64_t number)
{
    char path[SEGMENT_PATH_BYTES];
    struct err ignored;
    for (int f = SEGMENT_FILES - 1; f >= 0; f--) { /* slots first: without them it is none */
        segment_path(dir, number, (enum segment_file)f, path);
        if (vfs_unlink(vfs, path, &ignored) != OMEN_OK) continue;
    }
}

void segment_remove_files(const struct segment *s) { segment_remove_number(s->vfs, s->dir, s->number); }

void segment_rows(const struct segment *s, struct index_rows *rows_out)
{
    *rows_out = (struct index_rows){
        .data = (const float *)(const void *)(s->rows_map + 64),
        .stride_floats = s->stride_floats,
        .count = s->count,
        .dim = s->dim,
        .metric = s->metric,
    };
}

void segment_info(const struct segment *s, struct segment_info *info_out)
{
    *info_out = (struct segment_info){
        .number = s->number,
        .field = s->field,
        .first_block = s->first_block,
        .end_block = s->end_block,
        .rows = s->count,
        .as_of = s->as_of,
        .memory_bytes = s->memory_bytes,
        .kept_bytes = s->kept_bytes,
        .pinned = s->pinned,
        .disk_bytes = s->disk_bytes,
        .recall_target = s->recall_target,
        .batch = s->batch,
        .batch_parts = s->batch_parts,
        .parts = s->parts,
        .part_count = s->part_count,
        .own = s->own,
        .index = s->about,
    };
    info_out->index.pinned = s->pinned;
}

const struct payload_index *segment_payload(const struct segment *s) { return s->payload; }

uint32_t segment_dead(const struct segment *s)
{
    uint32_t dead = 0;
    for (uint32_t i = 0; i < s->count; i++)
        dead += !block_row_visible(blocks_at(s->blocks, s->slots[i].block), s->slots[i].op, UINT64_MAX, 0);
    return dead;
}

uint32_t segment_living(const struct segment *s, uint64_t as_of, struct row_ref *rows_out)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < s->count; i++)
        if (block_row_visible(blocks_at(s->blocks, s->slots[i].block), s->slots[i].op, as_of, 0))
            rows_out[count++] = s->slots[i];
    return count;
}
