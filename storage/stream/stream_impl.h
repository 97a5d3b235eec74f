/* What stream.c and compact.c share. */
#ifndef OMEN_STORAGE_STREAM_STREAM_IMPL_H
#define OMEN_STORAGE_STREAM_STREAM_IMPL_H

#include <pthread.h>
#include <stdatomic.h>

#include "common/log.h"
#include "storage/stream/format.h"

#define STREAM_PATH_BYTES 4096

struct stream_chunk {
    struct vfs_file *file;
    const uint8_t *map; /* [file_bytes], read only */
    uint32_t number, file_bytes;
    bool dirty;                     /* written since the last stream_sync_begin; appender's lock */
    struct compact_table compacted; /* its items NULL: units as they were appended */
    struct stream_chunk *retired_next;
};

struct stream {
    struct vfs *vfs;
    char *dir;
    uint64_t shard_id, replica_id;
    uint32_t first_chunk_bytes, chunk_bytes;
    struct stream_end end; /* appender's */
    struct stream_chunk
            *writing;      /* appender's: the chunk of `end`, NULL before the first; the table may move */
    uint32_t written_back; /* offset in the current chunk up to which writeback was started */
    pthread_mutex_t
            create_mutex; /* one makes or removes chunk files; taken before `mutex`, which is never held over disk */
    pthread_mutex_t mutex;           /* chunk table below */
    struct stream_chunk **chunks;    /* [chunk_cap], slot i = chunk i + 1 */
    uint32_t chunk_count, chunk_cap; /* chunks past the current one are allocated ahead or left by a rewind */
    _Atomic uint64_t published;      /* copy of end.position, packed; its chunk changes under `mutex` */
    uint64_t allocated_bytes;
    struct log_repeat prepare_fails; /* of whoever makes checkpoints */
    _Atomic bool scattered;          /* changes under `mutex`; how the maps of the table are advised */
    struct stream_chunk *retired;    /* replaced before they held a published unit; closed at the end */
};

/* OMEN_EFULL when so many bytes are not free, those of files about to be given up counted. */
OMEN_CHECKED enum omen_err stream_space_check(struct stream *s, uint64_t given_up, uint64_t file_bytes,
        struct err *err);
void stream_chunk_path(const struct stream *s, uint32_t number, char out[STREAM_PATH_BYTES]);
/* Closed and freed; NULL is fine. */
void stream_chunk_close(struct stream_chunk *c);
/* It is mapped and about to be in the table: advise its map as the others'. Needs `mutex`. */
void stream_chunk_advise(struct stream *s, const struct stream_chunk *c);
/* A chunk that holds units: nobody takes it away, but for a compaction, which its caller keeps off. */
struct stream_chunk *stream_chunk_in_use(struct stream *s, uint32_t number);
/* compact.c: the next unit of a compacted chunk, and where to go on. */
OMEN_CHECKED enum omen_err stream_compacted_next(struct stream *s, const struct stream_chunk *c,
        struct stream_end *at, struct stream_unit *unit_out, bool *found_out, struct err *err);
/* compact.c: look whether a chunk of the checkpoint's range is a compacted one. */
OMEN_CHECKED enum omen_err stream_compacted_open(struct stream *s, struct stream_chunk *c, struct err *err);

#endif
