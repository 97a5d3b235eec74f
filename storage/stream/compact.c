/* Compacted chunks: what is left of a chunk whose rows have mostly died, in a smaller file of the same number.
 *
 *   header | unit header (type 4, chain of the first unit) + table of the units that were there | bodies of what is left
 *
 * A unit keeps its position, its sequence and the numbers of its ops, so locations in LMDB, rows of segments and the
 * chain of units stay as they are. The file is written beside, synced, mapped and renamed over the old one: after a crash
 * there is the one or the other, and both give the same rows. */
#include "common/err.h"

#include <stdio.h>
#include <string.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/log.h"
#include "common/mem.h"
#include "storage/stream/stream_impl.h"

#define TABLE_AT (STREAM_CHUNK_HEADER_BYTES + STREAM_UNIT_HEADER_BYTES)
#define FILE_ALIGN 4096u

/* ---- reading ---- */

enum omen_err stream_compacted_open(struct stream *s, struct stream_chunk *c, struct err *err)
{
    struct unit_header h;
    const struct stream_position at = { c->number, STREAM_CHUNK_HEADER_BYTES };
    if (c->file_bytes < TABLE_AT || unit_header_decode(c->map + STREAM_CHUNK_HEADER_BYTES, &h) != NULL ||
            h.type != STREAM_UNIT_COMPACTED)
        return OMEN_OK; /* what else is wrong with it, reading the units says */
    const char *wrong = stream_position_pack(h.position) == stream_position_pack(at)
            ? compact_table_decode(c->map, c->file_bytes, &h, &c->compacted)
            : "unit of another place";
    return wrong == NULL ? OMEN_OK : stream_corrupt(s, at, wrong, err);
}

/* The first unit at or after an offset. */
static uint32_t item_from(const struct compact_table *t, uint32_t offset)
{
    uint32_t low = 0, high = t->count;
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        struct compact_item item;
        compact_item_at(t, mid, &item);
        if (item.offset < offset)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

static void unit_of_item(const struct stream_chunk *c, const struct compact_item *item,
        struct stream_unit *unit_out)
{
    *unit_out = (struct stream_unit){ .type = item->part == 0 ? STREAM_UNIT_ENTRY : STREAM_UNIT_DERIVED,
        .sequence = item->sequence,
        .part = item->part,
        .body = item->body_offset == 0 ? NULL : c->map + item->body_offset,
        .body_bytes = item->body_bytes,
        .position = { c->number, item->offset },
        .compacted = true };
}

enum omen_err stream_compacted_next(struct stream *s, const struct stream_chunk *c, struct stream_end *at,
        struct stream_unit *unit_out, bool *found_out, struct err *err)
{
    const struct compact_table *t = &c->compacted;
    uint32_t i = item_from(t, at->position.offset);
    *found_out = i < t->count;
    if (at->position.offset == STREAM_CHUNK_HEADER_BYTES && at->chain != t->chain_first)
        return stream_corrupt(s, at->position, "unit does not follow the one before", err);
    if (c->number >= s->end.position.chunk)
        return stream_corrupt(s, at->position, "the last chunk is a compacted one", err);
    if (*found_out) {
        struct compact_item item;
        compact_item_at(t, i++, &item);
        unit_of_item(c, &item, unit_out);
        at->position.offset = item.offset + 64;
    }
    if (i < t->count) return OMEN_OK;
    at->position = (struct stream_position){ c->number + 1, STREAM_CHUNK_HEADER_BYTES };
    at->chain = t->chain_last;
    return OMEN_OK;
}

/* ---- making one ---- */

uint64_t stream_compacted_bytes(uint32_t count, uint64_t bodies_bytes)
{
    uint64_t bytes = align_up(TABLE_AT + compact_table_bytes(count) + bodies_bytes, FILE_ALIGN);
    return bytes > STREAM_COMPACTED_BYTES_MIN ? bytes : STREAM_COMPACTED_BYTES_MIN;
}

bool stream_compactable(struct stream *stream, uint32_t chunk, struct stream_end end)
{
    struct unit_header h;
    bool before = chunk + 1 < end.position.chunk ||
            (chunk + 1 == end.position.chunk && end.position.offset > STREAM_CHUNK_HEADER_BYTES);
    return chunk > 0 && before &&
            unit_header_decode(stream_chunk_in_use(stream, chunk + 1)->map + STREAM_CHUNK_HEADER_BYTES, &h) ==
            NULL;
}

/* The chain before the first unit of a chunk. */
static enum omen_err chain_at(struct stream *s, uint32_t chunk, uint32_t *chain_out, struct err *err)
{
    struct unit_header h;
    const char *wrong = unit_header_decode(stream_chunk_in_use(s, chunk)->map + STREAM_CHUNK_HEADER_BYTES,
            &h);
    *chain_out = wrong == NULL ? h.chain : 0;
    if (wrong == NULL) return OMEN_OK;
    return stream_corrupt(s, (struct stream_position){ chunk, STREAM_CHUNK_HEADER_BYTES }, wrong, err);
}

/* The whole file. */
static enum omen_err image_make(struct stream *s, uint32_t chunk, const struct stream_kept *units,
        uint32_t count, uint8_t **image_out, uint32_t *bytes_out, struct err *err)
{
    uint64_t bodies = 0;
    uint32_t chain_last;
    struct unit_header h = { .type = STREAM_UNIT_COMPACTED,
        .body_bytes = (uint32_t)compact_table_bytes(count),
        .position = { chunk, STREAM_CHUNK_HEADER_BYTES } };
    enum omen_err rc = chain_at(s, chunk, &h.chain, err);
    if (rc == OMEN_OK) rc = chain_at(s, chunk + 1, &chain_last, err);
    if (rc != OMEN_OK) return rc;
    for (uint32_t i = 0; i < count; i++) bodies += units[i].body_bytes;
    uint64_t bytes = stream_compacted_bytes(count, bodies);
    if (bytes > UINT32_MAX) return err_set(err, OMEN_ETOOBIG, NULL, "chunk %u would not get smaller", chunk);
    uint8_t *image = mem_alloc_aligned(64, bytes);
    struct compact_item *items = mem_alloc((count + 1) * sizeof *items);
    if (image == NULL || items == NULL) {
        mem_free(image);
        mem_free(items);
        return err_set(err, OMEN_ENOMEM, NULL, "no memory to compact a chunk");
    }
    memset(image, 0, bytes);
    uint32_t at = TABLE_AT + h.body_bytes;
    for (uint32_t i = 0; i < count; i++) {
        const struct stream_kept *u = &units[i];
        CHECK(u->position.chunk == chunk && u->body_bytes % 64 == 0 &&
                (u->body_bytes > 0) == (u->body != NULL));
        items[i] = (struct compact_item){ u->sequence, u->position.offset, u->part, u->body != NULL ? at : 0,
            u->body_bytes };
        if (u->body != NULL) memcpy(image + at, u->body, u->body_bytes);
        at += u->body_bytes;
        h.sequence = u->sequence;
    }
    compact_table_encode(items, count, chain_last, image + TABLE_AT);
    memcpy(h.body_head, image + TABLE_AT, STREAM_BODY_HEAD_BYTES);
    unit_header_encode(&h, image + STREAM_CHUNK_HEADER_BYTES);
    chunk_header_encode(&(struct chunk_header){ s->shard_id, s->replica_id, chunk, (uint32_t)bytes }, image);
    mem_free(items);
    *image_out = image;
    *bytes_out = (uint32_t)bytes;
    return OMEN_OK;
}

/* Beside the old file: written, synced and mapped. */
static enum omen_err image_write(struct stream *s, const char *path, const uint8_t *image,
        struct stream_chunk *c, struct err *err)
{
    enum omen_err rc = vfs_open(s->vfs, path, VFS_READ | VFS_WRITE | VFS_CREATE, &c->file, err);
    if (rc == OMEN_OK) rc = vfs_truncate(c->file, 0, err);
    if (rc == OMEN_OK) rc = vfs_allocate(c->file, c->file_bytes, err);
    if (rc == OMEN_OK) rc = vfs_pwrite(c->file, image, c->file_bytes, 0, err);
    if (rc == OMEN_OK) rc = vfs_datasync(c->file, err);
    return rc == OMEN_OK ? vfs_map(c->file, c->file_bytes, &c->map, err) : rc;
}

/* From here on it is the chunk. Its name is synced as far as that goes: the old file would do as well. */
static enum omen_err image_publish(struct stream *s, const char *from, struct stream_chunk *c,
        struct stream_chunk **old_out, struct err *err)
{
    char path[STREAM_PATH_BYTES];
    stream_chunk_path(s, c->number, path);
    enum omen_err rc = vfs_rename(s->vfs, from, path, err);
    if (rc != OMEN_OK) return rc;
    struct err ignored;
    if (vfs_sync_dir(s->vfs, s->dir, &ignored) != OMEN_OK)
        LOG_WARN("stream.compact", "path=\"%s\" error=\"%s\"", path, ignored.message);
    pthread_mutex_lock(&s->mutex);
    *old_out = s->chunks[c->number - 1];
    stream_chunk_advise(s, c);
    s->chunks[c->number - 1] = c;
    s->allocated_bytes = s->allocated_bytes - (*old_out)->file_bytes + c->file_bytes;
    pthread_mutex_unlock(&s->mutex);
    return OMEN_OK;
}

enum omen_err stream_compact(struct stream *stream, uint32_t chunk, const struct stream_kept *units,
        uint32_t count, struct stream_unit *units_out, struct stream_chunk **old_out, struct err *err)
{
    char name[STREAM_CHUNK_NAME_BYTES], path[STREAM_PATH_BYTES];
    uint8_t *image = NULL;
    struct stream_chunk *c = mem_must_calloc(1, sizeof *c);
    c->number = chunk;
    stream_chunk_name(chunk, name);
    snprintf(path, sizeof path, "%s/%s.compact", stream->dir, name);
    enum omen_err rc = image_make(stream, chunk, units, count, &image, &c->file_bytes, err);
    /* The old file's space comes back later; what is left of a full disk until then is the log's. */
    if (rc == OMEN_OK) rc = stream_space_check(stream, 0, 2ull * c->file_bytes, err);
    if (rc == OMEN_OK) rc = image_write(stream, path, image, c, err);
    if (rc == OMEN_OK) rc = stream_compacted_open(stream, c, err);
    if (rc == OMEN_OK) rc = image_publish(stream, path, c, old_out, err);
    mem_free(image);
    if (rc != OMEN_OK) {
        struct err ignored; /* what stays is removed by the next open */
        if (c->file != NULL && vfs_unlink(stream->vfs, path, &ignored) != OMEN_OK)
            LOG_WARN("stream.unlink", "path=\"%s\"", path);
        stream_chunk_close(c);
        return rc;
    }
    for (uint32_t i = 0; i < count; i++) {
        struct compact_item item;
        compact_item_at(&c->compacted, i, &item);
        unit_of_item(c, &item, &units_out[i]);
    }
    return OMEN_OK;
}

void stream_chunk_drop(struct stream_chunk *old) { stream_chunk_close(old); }
