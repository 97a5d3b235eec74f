/* Chunk files of the append stream: open, append, sync. The contract and the reasons are in stream.h. */
#include "common/err.h"

#include "storage/stream/stream.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/crc32c.h"
#include "common/log.h"
#include "common/mem.h"
#include "storage/stream/stream_impl.h"

#define STREAM_WRITEBACK_BYTES                                                                               \
    (8u << 20) /* hand dirty pages to the kernel in such steps, so a checkpoint finds few */

#define STREAM_CHECK_BYTES (64u << 10) /* a unit is checked in such parts */

void stream_chunk_path(const struct stream *s, uint32_t number, char out[STREAM_PATH_BYTES])
{
    char name[STREAM_CHUNK_NAME_BYTES];
    stream_chunk_name(number, name);
    snprintf(out, STREAM_PATH_BYTES, "%s/%s", s->dir, name);
}

void stream_chunk_close(struct stream_chunk *c)
{
    if (c == NULL) return;
    if (c->map != NULL) vfs_unmap(c->file, c->map, c->file_bytes);
    vfs_close(c->file);
    mem_free(c);
}

enum omen_err stream_corrupt(const struct stream *stream, struct stream_position position, const char *what,
        struct err *err)
{
    char path[STREAM_PATH_BYTES];
    stream_chunk_path(stream, position.chunk, path);
    return err_corrupt(err, path, position.offset, what);
}

/* ---- open ---- */

/* Names to remove: those that are no chunk of the table. */
struct listing {
    uint32_t chunk_count;
    struct buf doomed; /* NUL-terminated names */
};

/* Chunk number of a file name, 0 when it is none of ours. */
static uint32_t chunk_number_of(const char *name)
{
    if (strlen(name) != 22 || strcmp(name + 16, ".chunk") != 0) return 0;
    uint64_t v = 0;
    for (int i = 0; i < 16; i++) {
        char c = name[i];
        int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
        if (digit < 0) return 0;
        v = v << 4 | (uint64_t)digit;
    }
    return v <= STREAM_CHUNKS_MAX ? (uint32_t)v : 0;
}

static bool listing_each(void *arg, const char *name)
{
    struct listing *l = arg;
    uint32_t number = chunk_number_of(name);
    if (number == 0 || number > l->chunk_count) buf_append(&l->doomed, name, strlen(name) + 1);
    return true;
}

/* Files nobody knows go, and chunks past the checkpoint that are not kept as room: the log delivers their units again. */
static enum omen_err remove_strays(struct stream *s, struct err *err)
{
    struct listing l = { .chunk_count = s->chunk_count };
    buf_init(&l.doomed);
    enum omen_err rc = vfs_list(s->vfs, s->dir, listing_each, &l, err);
    if (rc == OMEN_OK && l.doomed.failed) rc = err_set(err, OMEN_ENOMEM, NULL, "listing %s", s->dir);
    for (size_t at = 0; rc == OMEN_OK && at < l.doomed.len;) {
        const char *name = (const char *)l.doomed.data + at;
        char path[STREAM_PATH_BYTES];
        snprintf(path, sizeof path, "%s/%s", s->dir, name);
        rc = vfs_unlink(s->vfs, path, err);
        at += strlen(name) + 1;
    }
    if (rc == OMEN_OK && l.doomed.len > 0) rc = vfs_sync_dir(s->vfs, s->dir, err);
    buf_fini(&l.doomed);
    return rc;
}

static enum omen_err table_reserve(struct stream *s, uint32_t count)
{
    if (count <= s->chunk_cap) return OMEN_OK;
    uint32_t cap = s->chunk_cap ? s->chunk_cap * 2 : 16;
    while (cap < count) cap *= 2;
    struct stream_chunk **grown = mem_realloc(s->chunks, cap * sizeof *grown);
    if (grown == NULL) return OMEN_ENOMEM;
    s->chunks = grown;
    s->chunk_cap = cap;
    return OMEN_OK;
}

static enum omen_err chunk_open_existing(struct stream *s, uint32_t number, struct err *err)
{
    char path[STREAM_PATH_BYTES];
    stream_chunk_path(s, number, path);
    bool there = false;
    enum omen_err rc = vfs_exists(s->vfs, path, &there, err);
    if (rc != OMEN_OK) return rc;
    if (!there) return err_corrupt(err, path, 0, "chunk is missing");
    rc = table_reserve(s, number);
    if (rc != OMEN_OK) return err_set(err, rc, NULL, "table of chunks");
    struct stream_chunk *c = mem_must_calloc(1, sizeof *c);
    c->number = number;
    uint64_t size = 0;
    rc = vfs_open(s->vfs, path, VFS_READ | VFS_WRITE, &c->file, err);
    if (rc != OMEN_OK) goto err_chunk;
    rc = vfs_size(c->file, &size, err);
    if (rc != OMEN_OK) goto err_chunk;
    if (size < STREAM_CHUNK_HEADER_BYTES || size > UINT32_MAX) {
        rc = err_corrupt(err, path, 0, "size of the chunk file");
        goto err_chunk;
    }
    c->file_bytes = (uint32_t)size;
    rc = vfs_map(c->file, size, &c->map, err);
    if (rc != OMEN_OK) goto err_chunk;
    struct chunk_header h;
    const char *wrong = chunk_header_decode(c->map, &h);
    if (wrong == NULL && h.file_bytes != size) wrong = "size differs from the chunk header";
    if (wrong == NULL && h.chunk != number) wrong = "header of another chunk";
    if (wrong == NULL && (h.shard_id != s->shard_id || h.replica_id != s->replica_id))
        wrong = "chunk of another replica";
    if (wrong != NULL) {
        rc = err_corrupt(err, path, 0, wrong);
        goto err_chunk;
    }
    s->chunks[s->chunk_count++] = c;
    s->allocated_bytes += size;
    return OMEN_OK;
err_chunk:
    stream_chunk_close(c);
    return rc;
}

/* Chunks past the end hold nothing of ours, but the space that the entries to be delivered again were given before. */
static void keep_prepared(struct stream *s)
{
    for (;;) {
        char path[STREAM_PATH_BYTES];
        struct err err;
        bool there = false;
        uint32_t number = s->chunk_count + 1;
        stream_chunk_path(s, number, path);
        if (number > STREAM_CHUNKS_MAX || vfs_exists(s->vfs, path, &there, &err) != OMEN_OK || !there) return;
        if (chunk_open_existing(s, number, &err) != OMEN_OK) return;
        struct stream_chunk *c = s->chunks[number - 1];
        /* Again: a crash may have kept the length and lost the space. */
        if (vfs_allocate(c->file, c->file_bytes, &err) == OMEN_OK) continue;
        s->chunk_count--;
        s->allocated_bytes -= c->file_bytes;
        stream_chunk_close(c);
        return;
    }
}

enum omen_err stream_open(const struct stream_options *options, struct stream_end end,
        struct stream **stream_out, struct err *err)
{
    *stream_out = NULL;
    if (options->chunk_bytes < STREAM_CHUNK_BYTES_MIN || options->chunk_bytes > STREAM_CHUNK_BYTES_MAX ||
            options->chunk_bytes % 4096 != 0)
        return err_set(err, OMEN_EINVAL, "chunk_bytes", "must be a multiple of 4096 from %u to %u",
                STREAM_CHUNK_BYTES_MIN, STREAM_CHUNK_BYTES_MAX);
    if (options->first_chunk_bytes < STREAM_CHUNK_BYTES_MIN || options->first_chunk_bytes % 4096 != 0)
        return err_set(err, OMEN_EINVAL, "first_chunk_bytes", "must be a multiple of 4096 from %u",
                STREAM_CHUNK_BYTES_MIN);
    struct stream *s = mem_must_calloc(1, sizeof *s);
    s->vfs = options->vfs;
    s->dir = mem_must_strdup(options->dir);
    s->shard_id = options->shard_id;
    s->replica_id = options->replica_id;
    s->first_chunk_bytes = options->first_chunk_bytes;
    s->chunk_bytes = options->chunk_bytes;
    s->end = end;
    atomic_init(&s->published, stream_position_pack(end.position));
    s->written_back = end.position.offset;
    pthread_mutex_init(&s->create_mutex, NULL);
    pthread_mutex_init(&s->mutex, NULL);
    enum omen_err rc = OMEN_OK;
    for (uint32_t n = 1; n <= end.position.chunk && rc == OMEN_OK; n++) {
        rc = chunk_open_existing(s, n, err);
        if (rc == OMEN_OK) rc = stream_compacted_open(s, s->chunks[n - 1], err);
    }
    if (rc == OMEN_OK && end.position.chunk > 0 &&
            end.position.offset > s->chunks[end.position.chunk - 1]->file_bytes)
        rc = stream_corrupt(s, end.position, "chunk ends before the checkpoint", err);
    if (rc == OMEN_OK) {
        keep_prepared(s);
        rc = remove_strays(s, err);
    }
    if (rc == OMEN_OK && end.position.chunk > 0) s->writing = s->chunks[end.position.chunk - 1];
    if (rc != OMEN_OK) {
        stream_close(s);
        return rc;
    }
    *stream_out = s;
    return OMEN_OK;
}

void stream_close(struct stream *stream)
{
    if (stream == NULL) return;
    for (uint32_t i = 0; i < stream->chunk_count; i++) stream_chunk_close(stream->chunks[i]);
    while (stream->retired != NULL) {
        struct stream_chunk *c = stream->retired;
        stream->retired = c->retired_next;
        stream_chunk_close(c);
    }
    pthread_mutex_destroy(&stream->mutex);
    pthread_mutex_destroy(&stream->create_mutex);
    mem_free(stream->chunks);
    mem_free(stream->dir);
    mem_free(stream);
}

/* ---- read ---- */

static bool position_before(struct stream_position a, struct stream_position b)
{
    return stream_position_pack(a) < stream_position_pack(b);
}

enum omen_err stream_next(struct stream *stream, struct stream_end *at, struct stream_unit *unit_out,
        bool *end_out, struct err *err)
{
    *end_out = false;
    for (;;) {
        struct stream_position end = stream->end.position, p = at->position;
        if (stream_position_pack(p) == stream_position_pack(end)) {
            if (at->chain != stream->end.chain)
                return stream_corrupt(stream, p, "chain ends differently", err);
            *end_out = true;
            return OMEN_OK;
        }
        if (p.chunk > 0 && stream->chunks[p.chunk - 1]->compacted.items != NULL) {
            bool found = false;
            enum omen_err rc = stream_compacted_next(stream, stream->chunks[p.chunk - 1], at, unit_out,
                    &found, err);
            if (rc != OMEN_OK || found) return rc;
            continue;
        }
        uint32_t chunk_end = p.chunk == 0 ? 0 : stream->chunks[p.chunk - 1]->file_bytes;
        if (chunk_end - p.offset < STREAM_UNIT_HEADER_BYTES) { /* no room was left even for an end mark */
            p = (struct stream_position){ p.chunk + 1, STREAM_CHUNK_HEADER_BYTES };
            if (p.chunk > end.chunk) return stream_corrupt(stream, at->position, "units end too early", err);
            at->position = p;
            continue;
        }
        const uint8_t *base = stream->chunks[p.chunk - 1]->map;
        struct unit_header h;
        const char *wrong = unit_header_decode(base + p.offset, &h);
        if (wrong == NULL && stream_position_pack(h.position) != stream_position_pack(p))
            wrong = "unit of another place";
        if (wrong == NULL && h.type == STREAM_UNIT_COMPACTED) wrong = "table of a compacted chunk";
        if (wrong == NULL && h.chain != at->chain) wrong = "unit does not follow the one before";
        if (wrong == NULL &&
                !range_fits((uint64_t)p.offset + STREAM_UNIT_HEADER_BYTES, h.body_bytes, chunk_end))
            wrong = "unit is longer than its chunk";
        if (wrong == NULL && h.body_bytes > 0 &&
                memcmp(base + p.offset + STREAM_UNIT_HEADER_BYTES, h.body_head, STREAM_BODY_HEAD_BYTES) != 0)
            wrong = "head of the entry";
        if (wrong != NULL) return stream_corrupt(stream, p, wrong, err);
        struct stream_position after = { p.chunk, p.offset + STREAM_UNIT_HEADER_BYTES + h.body_bytes };
        if (h.type == STREAM_UNIT_CHUNK_END)
            after = (struct stream_position){ p.chunk + 1, STREAM_CHUNK_HEADER_BYTES };
        if (position_before(end, after))
            return stream_corrupt(stream, p, "unit reaches past the checkpoint", err);
        at->position = after;
        at->chain = h.crc;
        if (h.type == STREAM_UNIT_CHUNK_END) continue;
        *unit_out = (struct stream_unit){ .type = h.type,
            .sequence = h.sequence,
            .part = h.part,
            .body = base + p.offset + STREAM_UNIT_HEADER_BYTES,
            .body_bytes = h.body_bytes,
            .position = p };
        return OMEN_OK;
    }
}

struct stream_chunk *stream_chunk_in_use(struct stream *s, uint32_t number)
{
    pthread_mutex_lock(&s->mutex);
    struct stream_chunk *c = s->chunks[number - 1];
    pthread_mutex_unlock(&s->mutex);
    return c;
}

/* crc32c of a body from its bytes 16 on; what comes before them goes to `head`. */
static enum omen_err body_read(struct vfs_file *file, uint64_t offset, uint32_t body_bytes,
        uint8_t head[STREAM_BODY_HEAD_BYTES], uint32_t *crc_out, struct err *err)
{
    uint8_t *part = mem_must_alloc(STREAM_CHECK_BYTES);
    enum omen_err rc = OMEN_OK;
    *crc_out = 0;
    for (uint32_t at = 0; at < body_bytes && rc == OMEN_OK;) {
        uint32_t len = body_bytes - at < STREAM_CHECK_BYTES ? body_bytes - at : STREAM_CHECK_BYTES;
        uint32_t skip = at == 0 ? STREAM_BODY_HEAD_BYTES : 0;
        rc = vfs_pread(file, part, len, offset + at, err);
        if (rc != OMEN_OK) break;
        if (at == 0) memcpy(head, part, STREAM_BODY_HEAD_BYTES);
        *crc_out = crc32c(*crc_out, part + skip, len - skip);
        at += len;
    }
    mem_free(part);
    return rc;
}

enum omen_err stream_unit_check(struct stream *stream, const struct stream_unit *unit, struct err *err)
{
    struct unit_header h;
    uint8_t header[STREAM_UNIT_HEADER_BYTES], head[STREAM_BODY_HEAD_BYTES];
    uint32_t crc = 0;
    const struct stream_chunk *c = stream_chunk_in_use(stream, unit->position.chunk);
    struct vfs_file *file = c->file;
    if (unit->body == NULL) return OMEN_OK; /* nothing is left of it */
    /* Its chunk was compacted since the unit was looked up; what is left of it is checked the next time. */
    if ((uintptr_t)unit->body - (uintptr_t)c->map >= c->file_bytes) return OMEN_OK;
    if (unit->compacted) {
        enum omen_err read = body_read(file, (uint64_t)(unit->body - c->map), unit->body_bytes, head, &crc,
                err);
        if (read != OMEN_OK || crc == load_u32(head + 12)) return read;
        return stream_corrupt(stream, unit->position, "entry checksum", err);
    }
    enum omen_err rc = vfs_pread(file, header, sizeof header, unit->position.offset, err);
    if (rc == OMEN_OK)
        rc = body_read(file, (uint64_t)unit->position.offset + sizeof header, unit->body_bytes, head, &crc,
                err);
    if (rc != OMEN_OK) return rc;
    const char *wrong = unit_header_decode(header, &h);
    if (wrong == NULL && (h.body_bytes != unit->body_bytes || h.sequence != unit->sequence))
        wrong = "unit header changed";
    if (wrong == NULL && memcmp(h.body_head, head, sizeof head) != 0) wrong = "head of the entry";
    if (wrong == NULL && crc != load_u32(h.body_head + 12)) wrong = "entry checksum";
    return wrong == NULL ? OMEN_OK : stream_corrupt(stream, unit->position, wrong, err);
}

/* ---- append ---- */

/* Make chunk file `number` of `file_bytes`: allocated, headed, its name durable. The caller holds create_mutex. */
static enum omen_err chunk_create(struct stream *s, uint32_t number, uint32_t file_bytes,
        struct stream_chunk **chunk_out, struct err *err)
{
    char path[STREAM_PATH_BYTES];
    stream_chunk_path(s, number, path);
    struct stream_chunk *c = mem_must_calloc(1, sizeof *c);
    uint8_t *header = mem_must_alloc(STREAM_CHUNK_HEADER_BYTES);
    c->number = number;
    c->file_bytes = file_bytes;
    enum omen_err rc = vfs_open(s->vfs, path, VFS_READ | VFS_WRITE | VFS_CREATE, &c->file, err);
    if (rc == OMEN_OK) rc = vfs_allocate(c->file, file_bytes, err);
    if (rc == OMEN_OK) {
        struct chunk_header h = { s->shard_id, s->replica_id, number, file_bytes };
        chunk_header_encode(&h, header);
        rc = vfs_pwrite(c->file, header, STREAM_CHUNK_HEADER_BYTES, 0, err);
    }
    if (rc == OMEN_OK) rc = vfs_sync_dir(s->vfs, s->dir, err);
    if (rc == OMEN_OK) rc = vfs_map(c->file, file_bytes, &c->map, err);
    mem_free(header);
    if (rc != OMEN_OK) {
        bool opened = c->file != NULL;
        stream_chunk_close(c);
        struct err ignored; /* give the space back; if that fails too, the next open removes the file */
        if (opened && vfs_unlink(s->vfs, path, &ignored) != OMEN_OK)
            LOG_WARN("stream.unlink", "path=\"%s\"", path);
        return rc;
    }
    *chunk_out = c;
    return OMEN_OK;
}

/* Give up chunks from `number` on, which hold nothing (allocated ahead, or left by a rewind): too small for the unit at
 * hand. Closed with the stream only, because a sync may be using them. create_mutex held. */
static enum omen_err chunks_retire(struct stream *s, uint32_t number, struct err *err)
{
    for (;;) {
        char path[STREAM_PATH_BYTES];
        pthread_mutex_lock(&s->mutex);
        uint32_t in_use = (uint32_t)(atomic_load_explicit(&s->published, memory_order_relaxed) >> 32);
        struct stream_chunk *c = s->chunk_count >= number && s->chunk_count > in_use
                ? s->chunks[s->chunk_count - 1]
                : NULL;
        if (c != NULL) {
            s->chunk_count--;
            s->allocated_bytes -= c->file_bytes;
            c->retired_next = s->retired;
            s->retired = c;
        }
        pthread_mutex_unlock(&s->mutex);
        if (c == NULL) return OMEN_OK;
        stream_chunk_path(s, c->number, path);
        enum omen_err rc = vfs_unlink(s->vfs, path, err);
        if (rc != OMEN_OK) return rc;
    }
}

/* Size that chunk `number` has when no unit needs a larger one. */
static uint64_t chunk_bytes_usual(const struct stream *s, uint32_t number)
{
    uint32_t doublings = number - 1 < 31 ? number - 1 : 31;
    uint64_t bytes = (uint64_t)s->first_chunk_bytes << doublings;
    return bytes < s->chunk_bytes ? bytes : s->chunk_bytes;
}

/* Size of the file to make for chunk `number` when it is to hold a unit. */
static uint64_t chunk_bytes_for(const struct stream *s, uint32_t number, uint64_t unit_bytes)
{
    uint64_t need = align_up(STREAM_CHUNK_HEADER_BYTES + unit_bytes, 4096),
             usual = chunk_bytes_usual(s, number);
    return need < usual ? usual : need;
}

/* The first chunk from `number` on that holds a unit, NULL when it would have to be made. Chunks before it stay unused: were
 * one of them replaced by a larger one instead, an entry that turned out smaller than admission counted could move those
 * after it to where no file is large enough, and apply would have to allocate. mutex held. */
static struct stream_chunk *chunk_ready(const struct stream *s, uint32_t number, uint64_t unit_bytes)
{
    for (; number <= s->chunk_count; number++) {
        struct stream_chunk *c = s->chunks[number - 1];
        if (unit_bytes <= c->file_bytes - STREAM_CHUNK_HEADER_BYTES) return c;
    }
    return NULL;
}

/* Is there space for a chunk, with what the ones that it replaces give back? Asked before anything is tried: an allocation
 * that fails half way takes all there is from the log for a moment, and chunks given up for nothing are room lost.
 * create_mutex held. */
static enum omen_err space_check(struct stream *s, uint32_t number, uint64_t file_bytes, struct err *err)
{
    uint64_t given_up = 0;
    for (uint32_t n = number; n <= s->chunk_count; n++) given_up += s->chunks[n - 1]->file_bytes;
    return stream_space_check(s, given_up, file_bytes, err);
}

enum omen_err stream_space_check(struct stream *s, uint64_t given_up, uint64_t file_bytes, struct err *err)
{
    uint64_t free_bytes = 0, total_bytes = 0;
    enum omen_err rc = vfs_free_space(s->vfs, s->dir, &free_bytes, &total_bytes, err);
    free_bytes += given_up;
    if (rc == OMEN_OK && free_bytes < file_bytes)
        rc = err_set(err, OMEN_EFULL, NULL, "a chunk of %llu bytes does not fit %s, %llu are free",
                (unsigned long long)file_bytes, s->dir, (unsigned long long)free_bytes);
    return rc;
}

/* Have a chunk from `number` on in the table that holds a unit: `number` itself when it must be made. create_mutex held. */
static enum omen_err chunk_ensure(struct stream *s, uint32_t number, uint64_t unit_bytes, struct err *err)
{
    uint64_t file_bytes = chunk_bytes_for(s, number, unit_bytes);
    if (number > STREAM_CHUNKS_MAX || file_bytes > UINT32_MAX)
        return err_set(err, OMEN_EFULL, NULL, "too many chunks in %s", s->dir);
    pthread_mutex_lock(&s->mutex);
    bool ready = chunk_ready(s, number, unit_bytes) != NULL;
    enum omen_err rc = table_reserve(s, number);
    pthread_mutex_unlock(&s->mutex);
    if (rc != OMEN_OK) return err_set(err, rc, NULL, "table of chunks");
    if (ready) return OMEN_OK;
    rc = space_check(s, number, file_bytes, err);
    if (rc == OMEN_OK) rc = chunks_retire(s, number, err);
    struct stream_chunk *c = NULL;
    if (rc == OMEN_OK && s->chunk_count + 1 != number) return OMEN_OK; /* the appender went on: look again */
    if (rc == OMEN_OK) rc = chunk_create(s, number, (uint32_t)file_bytes, &c, err);
    if (rc != OMEN_OK) return rc;
    pthread_mutex_lock(&s->mutex);
    stream_chunk_advise(s, c);
    s->chunks[s->chunk_count++] = c;
    s->allocated_bytes += c->file_bytes;
    pthread_mutex_unlock(&s->mutex);
    return OMEN_OK;
}

static enum omen_err unit_write(struct stream_chunk *c, struct unit_header *h, const void *body,
        struct err *err)
{
    CHECK(c->number == h->position.chunk);
    uint8_t header[STREAM_UNIT_HEADER_BYTES];
    unit_header_encode(h, header);
    struct iovec iov[2] = { { header, sizeof header }, { NULL, h->body_bytes } };
    memcpy(&iov[1].iov_base, &body, sizeof body); /* iovec is not const-correct */
    CHECK(range_fits(h->position.offset, sizeof header + (uint64_t)h->body_bytes, c->file_bytes));
    c->dirty = true;
    return vfs_pwritev(c->file, iov, h->body_bytes > 0 ? 2 : 1, h->position.offset, err);
}

/* The chunk to go on in. In use from here on: `published` says so, and whoever prepares chunks leaves it alone, and those
 * before it. */
static enum omen_err next_chunk(struct stream *s, uint32_t number, uint64_t unit_bytes,
        struct stream_chunk **next_out, struct err *err)
{
    for (bool tried = false;; tried = true) {
        pthread_mutex_lock(&s->mutex);
        struct stream_chunk *c = chunk_ready(s, number, unit_bytes);
        if (c != NULL) {
            struct stream_position begin = { c->number, STREAM_CHUNK_HEADER_BYTES };
            atomic_store_explicit(&s->published, stream_position_pack(begin), memory_order_relaxed);
        }
        pthread_mutex_unlock(&s->mutex);
        *next_out = c;
        if (c != NULL) return OMEN_OK;
        CHECK(!tried);
        pthread_mutex_lock(&s->create_mutex);
        enum omen_err rc = chunk_ensure(s, number, unit_bytes, err);
        pthread_mutex_unlock(&s->create_mutex);
        if (rc != OMEN_OK) return rc;
    }
}

/* Say that the rest of a chunk is unused, where there is room to say so. */
static enum omen_err chunk_end_write(struct stream_chunk *c, uint64_t sequence, struct stream_end *at,
        struct err *err)
{
    struct unit_header h = { .type = STREAM_UNIT_CHUNK_END,
        .sequence = sequence,
        .chain = at->chain,
        .position = at->position };
    if (c->file_bytes - at->position.offset >= STREAM_UNIT_HEADER_BYTES) {
        enum omen_err rc = unit_write(c, &h, NULL, err);
        if (rc != OMEN_OK) return rc;
        at->chain = h.crc;
    }
    at->position = (struct stream_position){ at->position.chunk + 1, STREAM_CHUNK_HEADER_BYTES };
    return OMEN_OK;
}

/* Move to the next chunk that holds it when a unit of `unit_bytes` does not fit the current one. */
static enum omen_err chunk_roll(struct stream *s, uint64_t sequence, uint64_t unit_bytes, struct err *err)
{
    struct stream_end at = s->end;
    uint32_t left = s->writing == NULL ? 0 : s->writing->file_bytes - at.position.offset;
    if (s->writing != NULL && unit_bytes <= left) return OMEN_OK;
    struct stream_chunk *next;
    enum omen_err rc = next_chunk(s, at.position.chunk + 1, unit_bytes, &next, err);
    if (rc != OMEN_OK) return rc;
    if (s->writing == NULL) at.position = (struct stream_position){ 1, STREAM_CHUNK_HEADER_BYTES };
    while (at.position.chunk < next->number) {
        rc = chunk_end_write(stream_chunk_in_use(s, at.position.chunk), sequence, &at, err);
        if (rc != OMEN_OK) return rc;
    }
    if (s->writing != NULL)
        vfs_writeback_hint(s->writing->file, s->written_back, s->end.position.offset - s->written_back);
    s->writing = next;
    s->written_back = STREAM_CHUNK_HEADER_BYTES;
    s->end = at;
    return OMEN_OK;
}

enum omen_err stream_append(struct stream *stream, enum stream_unit_type type, uint64_t sequence,
        uint32_t part, const void *body, uint32_t body_bytes, struct stream_unit *unit_out, struct err *err)
{
    CHECK(body_bytes >= 64 && body_bytes % 64 == 0);
    struct stream_end before = stream->end;
    uint64_t unit_bytes = STREAM_UNIT_HEADER_BYTES + (uint64_t)body_bytes;
    enum omen_err rc = chunk_roll(stream, sequence, unit_bytes, err);
    struct unit_header h = { type, sequence, body_bytes, part, stream->end.chain, { 0 }, stream->end.position,
        0 };
    memcpy(h.body_head, body, STREAM_BODY_HEAD_BYTES);
    if (rc == OMEN_OK) rc = unit_write(stream->writing, &h, body, err);
    if (rc != OMEN_OK) {
        stream_rewind(stream, before);
        return rc;
    }
    struct stream_chunk *c = stream->writing;
    *unit_out = (struct stream_unit){ .type = type,
        .sequence = sequence,
        .part = part,
        .body = c->map + h.position.offset + STREAM_UNIT_HEADER_BYTES,
        .body_bytes = body_bytes,
        .position = h.position };
    stream->end.position.offset += (uint32_t)unit_bytes;
    stream->end.chain = h.crc;
    uint32_t dirty = stream->end.position.offset - stream->written_back;
    if (dirty >= STREAM_WRITEBACK_BYTES) {
        vfs_writeback_hint(c->file, stream->written_back, dirty);
        stream->written_back = stream->end.position.offset;
    }
    atomic_store_explicit(&stream->published, stream_position_pack(stream->end.position),
            memory_order_relaxed);
    return OMEN_OK;
}

struct stream_end stream_end(const struct stream *stream) { return stream->end; }

void stream_rewind(struct stream *stream, struct stream_end end)
{
    CHECK(!position_before(stream->end.position, end.position));
    stream->end = end;
    stream->written_back = end.position.offset;
    pthread_mutex_lock(&stream->mutex);
    stream->writing = end.position.chunk == 0 ? NULL : stream->chunks[end.position.chunk - 1];
    atomic_store_explicit(&stream->published, stream_position_pack(end.position), memory_order_relaxed);
    pthread_mutex_unlock(&stream->mutex);
}

/* ---- sync ---- */

enum omen_err stream_sync_begin(struct stream *stream, struct stream_sync *sync_out)
{
    uint32_t count = 0;
    *sync_out = (struct stream_sync){ 0 };
    pthread_mutex_lock(&stream->mutex);
    for (uint32_t i = 0; i < stream->chunk_count; i++) count += stream->chunks[i]->dirty;
    sync_out->chunks = mem_alloc((count + 1) * sizeof *sync_out->chunks);
    for (uint32_t i = 0; i < stream->chunk_count && sync_out->chunks != NULL; i++) {
        if (!stream->chunks[i]->dirty) continue;
        stream->chunks[i]->dirty = false;
        sync_out->chunks[sync_out->count++] = stream->chunks[i];
    }
    pthread_mutex_unlock(&stream->mutex);
    return sync_out->chunks == NULL ? OMEN_ENOMEM : OMEN_OK;
}

enum omen_err stream_sync_run(struct stream_sync *sync, struct err *err)
{
    enum omen_err rc = OMEN_OK;
    for (uint32_t i = 0; i < sync->count && rc == OMEN_OK; i++) rc = vfs_datasync(sync->chunks[i]->file, err);
    mem_free(sync->chunks);
    *sync = (struct stream_sync){ 0 };
    return rc;
}

/* A chunk that is lacking. */
struct gap {
    uint32_t number;
    uint64_t unit_bytes;
};

static bool unit_fits(const struct stream *s, struct stream_position *at, uint64_t unit_bytes,
        struct gap *gap_out)
{
    uint64_t file_bytes = at->chunk == 0 ? 0 : s->chunks[at->chunk - 1]->file_bytes;
    if (unit_bytes > file_bytes - at->offset) {
        const struct stream_chunk *next = chunk_ready(s, at->chunk + 1, unit_bytes);
        *gap_out = (struct gap){ at->chunk + 1, unit_bytes };
        if (next == NULL) return false;
        *at = (struct stream_position){ next->number, STREAM_CHUNK_HEADER_BYTES };
    }
    at->offset += (uint32_t)unit_bytes;
    return true;
}

/* Bytes of the need's first unit: of spare room by the chunk that it would begin in. */
static uint64_t need_unit_bytes(const struct stream *s, const struct stream_need *need,
        struct stream_position at)
{
    if (need->chunk_part == 0) return need->entry_bytes;
    uint64_t chunk_bytes = at.chunk == 0 ? chunk_bytes_usual(s, 1) : s->chunks[at.chunk - 1]->file_bytes;
    uint64_t part = chunk_bytes / need->chunk_part;
    return part < need->entry_bytes ? part : need->entry_bytes;
}

/* Lays the units out as appends would. mutex held. */
static bool needs_fit(const struct stream *s, const struct stream_need *needs, uint32_t count,
        struct gap *gap_out)
{
    uint64_t published = atomic_load_explicit(&s->published, memory_order_relaxed);
    struct stream_position at = { (uint32_t)(published >> 32), (uint32_t)published };
    for (uint32_t i = 0; i < count; i++) {
        if (!unit_fits(s, &at, need_unit_bytes(s, &needs[i], at), gap_out)) return false;
        for (uint32_t u = 0; u < needs[i].derived_units; u++)
            if (!unit_fits(s, &at, needs[i].derived_unit_bytes, gap_out)) return false;
    }
    return true;
}

bool stream_has_room(struct stream *stream, const struct stream_need *needs, uint32_t count)
{
    struct gap gap;
    pthread_mutex_lock(&stream->mutex);
    bool fits = needs_fit(stream, needs, count, &gap);
    pthread_mutex_unlock(&stream->mutex);
    return fits;
}

enum omen_err stream_make_room(struct stream *stream, const struct stream_need *needs, uint32_t count,
        struct err *err)
{
    enum omen_err rc = OMEN_OK;
    pthread_mutex_lock(&stream->create_mutex);
    while (rc == OMEN_OK) {
        struct gap gap;
        pthread_mutex_lock(&stream->mutex);
        bool fits = needs_fit(stream, needs, count, &gap);
        pthread_mutex_unlock(&stream->mutex);
        if (fits) break;
        rc = chunk_ensure(stream, gap.number, gap.unit_bytes, err);
    }
    pthread_mutex_unlock(&stream->create_mutex);
    return rc;
}

void stream_prepare(struct stream *stream)
{
    struct err err;
    struct stream_need half = { .entry_bytes = stream->chunk_bytes, .chunk_part = 2 };
    bool begun = atomic_load_explicit(&stream->published, memory_order_relaxed) != 0;
    if (!begun) return;
    if (stream_make_room(stream, &half, 1, &err) == OMEN_OK)
        (void)log_repeat_ends(&stream->prepare_fails);
    else if (log_repeat_tells(&stream->prepare_fails))
        LOG_WARN("stream.prepare", "times=%u error=\"%s\"", stream->prepare_fails.times, err.message);
}

void stream_chunk_advise(struct stream *s, const struct stream_chunk *c)
{
    if (atomic_load(&s->scattered)) vfs_advise(s->vfs, c->map, c->file_bytes, VFS_ACCESS_RANDOM);
}

void stream_scatter(struct stream *stream, bool scattered)
{
    if (stream_is_scattered(stream) == scattered) return;
    pthread_mutex_lock(&stream->mutex);
    atomic_store(&stream->scattered, scattered);
    for (uint32_t i = 0; i < stream->chunk_count; i++)
        vfs_advise(stream->vfs, stream->chunks[i]->map, stream->chunks[i]->file_bytes,
                scattered ? VFS_ACCESS_RANDOM : VFS_ACCESS_NORMAL);
    pthread_mutex_unlock(&stream->mutex);
}

bool stream_is_scattered(const struct stream *stream)
{
    return atomic_load_explicit(&stream->scattered, memory_order_relaxed);
}

void stream_soon(const struct stream *stream, const uint8_t *from, uint64_t bytes)
{
    vfs_advise(stream->vfs, from, bytes, VFS_ACCESS_SOON);
}

void stream_usage(struct stream *stream, uint64_t *bytes_out, uint64_t *chunks_out)
{
    pthread_mutex_lock(&stream->mutex);
    *bytes_out = stream->allocated_bytes;
    *chunks_out = stream->chunk_count;
    pthread_mutex_unlock(&stream->mutex);
}

uint32_t stream_chunk_bytes(struct stream *stream, uint32_t number)
{
    return stream_chunk_in_use(stream, number)->file_bytes;
}
