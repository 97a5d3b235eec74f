/* The append stream of one replica: chunk files of units, each unit one log entry or one derived entry, searched in
 * place through a read-only map.
 *
 *   chunk:  header 4096 B, then units back to back, each at a multiple of 64 (formats: storage/FORMAT.md)
 *   unit:   header 64 B {type, sequence, part, previous header's crc, its own place, crc} + body (an entry)
 *
 * Written by pwritev and read through the map: a full disk or an I/O error is a return code and never SIGBUS, and a
 * stray pointer cannot damage data. Chunks are preallocated and their directory synced before use (CORRECTNESS D1).
 *
 * What is valid is decided from outside: the end position and chain of a checkpoint. Units chain by the crc of the
 * header before them and name their own place, so a stale unit of an earlier life of the file, or one that was written
 * to the wrong place, is never taken for one of ours even inside the checkpointed range.
 *
 * Threads: one appender; stream_sync_* by one checkpointer beside it; stream_prepare and stream_make_room by any; bodies by
 * any reader.
 * Determinism: positions depend on the sizes of chunks, on the entries and on what was allocated when; nothing in results
 * depends on positions. */
#ifndef OMEN_STORAGE_STREAM_H
#define OMEN_STORAGE_STREAM_H

#include "common/vfs.h"

#define STREAM_CHUNK_HEADER_BYTES 4096u
#define STREAM_UNIT_HEADER_BYTES 64u
#define STREAM_CHUNK_BYTES_MIN 16384u
#define STREAM_CHUNK_BYTES_MAX (1u << 30)
#define STREAM_CHUNKS_MAX (1u << 20) /* files of one replica */

enum stream_unit_type {
    STREAM_UNIT_ENTRY = 1,
    STREAM_UNIT_DERIVED = 2,
    STREAM_UNIT_CHUNK_END = 3,
    STREAM_UNIT_COMPACTED = 4 /* at the begin of a chunk: the table of what is left of its units */
};

/* Where a unit's header begins, or where the next one would: chunk 1.. and byte in its file. {0, 0} = before the first.
 * The logical order is (chunk, offset). */
struct stream_position {
    uint32_t chunk, offset;
};

static inline uint64_t stream_position_pack(struct stream_position p)
{
    return (uint64_t)p.chunk << 32 | p.offset;
}

/* An end and the crc of the unit header that ends there: what a checkpoint stores. */
struct stream_end {
    struct stream_position position;
    uint32_t chain;
};

struct stream_unit {
    enum stream_unit_type type;
    uint64_t sequence;
    uint32_t part; /* 0 for the entry, 1.. for the derived units of its sequence */
    const uint8_t
            *body; /* in the map: 64-byte aligned, lives until stream_close; NULL: nothing is left of it */
    uint32_t body_bytes;
    struct stream_position
            position; /* of the header, where it was appended: stays when the chunk is compacted */
    bool compacted;   /* its body is what a compaction left, not what was appended */
};

struct stream_options {
    struct vfs *vfs; /* borrowed */
    const char *dir; /* ".../stream"; copied */
    uint64_t shard_id, replica_id;
    /* Size of chunk files: the first one's, each next one's twice that, up to chunk_bytes (which wins when it is less). So a
     * small collection takes little disk. A larger unit gets a larger file. Files made under other sizes are fine. */
    uint32_t first_chunk_bytes, chunk_bytes;
};

struct stream;

/* Map the chunks up to `end` and whole, allocated ones that follow it without a gap: the units that the log delivers again
 * find the room they had, also on a full disk. Remove other files. OMEN_ECORRUPT names a chunk that is
 * missing, too short or has a bad header. Units are not looked at: read them with stream_next. */
OMEN_CHECKED enum omen_err stream_open(const struct stream_options *options, struct stream_end end,
        struct stream **stream_out, struct err *err);
void stream_close(struct stream *stream);

/* Walk the units up to the end in order, verifying headers and chain; bodies with stream_unit_check. `*at` starts as
 * {{0,0},0}. `*end_out` true: there is none left, and the chain agreed with the end's. */
OMEN_CHECKED enum omen_err stream_next(struct stream *stream, struct stream_end *at,
        struct stream_unit *unit_out, bool *end_out, struct err *err);
/* Header and body of a unit against their checksums, read from the file: a disk that cannot read them is an OMEN_EIO here,
 * where touching the map would be a SIGBUS. OMEN_ECORRUPT with file and offset. Any thread. */
OMEN_CHECKED enum omen_err stream_unit_check(struct stream *stream, const struct stream_unit *unit,
        struct err *err);
/* OMEN_ECORRUPT naming the file and offset of `position`. */
enum omen_err stream_corrupt(const struct stream *stream, struct stream_position position, const char *what,
        struct err *err);

/* Append one unit. `body` is an entry (its bytes 12..15 are the crc32c of 16..len; len a multiple of 64). On failure
 * nothing is appended: OMEN_EFULL when no chunk could be allocated, OMEN_EIO. */
OMEN_CHECKED enum omen_err stream_append(struct stream *stream, enum stream_unit_type type, uint64_t sequence,
        uint32_t part, const void *body, uint32_t body_bytes, struct stream_unit *unit_out, struct err *err);
struct stream_end stream_end(const struct stream *stream); /* appender's thread */
void stream_rewind(struct stream *stream,
        struct stream_end end); /* forget units appended after `end` was taken */

/* Chunks written since the last call are collected by _begin (appender stopped, i.e. under its lock) and synced by
 * _run (appender going on). A failed sync is final for the store. */
struct stream_sync {
    struct stream_chunk **chunks;
    uint32_t count;
};
OMEN_CHECKED enum omen_err stream_sync_begin(struct stream *stream, struct stream_sync *sync_out);
OMEN_CHECKED enum omen_err stream_sync_run(struct stream_sync *sync,
        struct err *err); /* frees what _begin took */

/* Allocate the next chunk ahead once the current one is half full. Failure is no error: the appender will meet it. */
void stream_prepare(struct stream *stream);

/* What is to be appended: one unit of `entry_bytes`, then `derived_units` of at most `derived_unit_bytes`; bodies with
 * their headers. Upper bounds do: a unit goes where the one before ends, or into the first later chunk that holds it, so
 * smaller ones never end further on. */
struct stream_need {
    uint64_t entry_bytes, derived_unit_bytes;
    uint32_t derived_units;
    uint32_t
            chunk_part; /* not 0: no entry but spare room, the chunk's size over this there, entry_bytes at most */
};
/* Do these fit what is allocated, in this order, after all that is appended already? Any thread; never blocks on disk. */
bool stream_has_room(struct stream *stream, const struct stream_need *needs, uint32_t count);
/* Allocate chunks until they do. OMEN_EFULL when there is no space: what could be had is kept. Any thread; blocks on disk,
 * the appender beside it only when it needs a chunk itself. */
OMEN_CHECKED enum omen_err stream_make_room(struct stream *stream, const struct stream_need *needs,
        uint32_t count, struct err *err);

uint32_t stream_chunk_bytes(struct stream *stream,
        uint32_t number); /* size of a chunk that holds units; any thread */

/* ---- space of dead rows (compact.c) ---- */

/* What stays of a unit. */
struct stream_kept {
    uint64_t sequence;
    uint32_t part, body_bytes;
    struct stream_position position;
    const void *body; /* an entry, its crc in bytes 12..15; NULL: nothing */
};
#define STREAM_COMPACTED_BYTES_MIN STREAM_CHUNK_BYTES_MIN
uint64_t stream_compacted_bytes(uint32_t count, uint64_t bodies_bytes); /* size of the file that this makes */
/* Can it be? Units follow it, so that nothing is appended to it and its last chain is known. */
bool stream_compactable(struct stream *stream, uint32_t chunk, struct stream_end end);
/* Replace a chunk, whole and atomically, by one that holds what is left of its units [count], all of them, in order.
 * The units keep their positions, so whatever names one stays right; `units_out` says where they lie now. *old_out is
 * the map that readers may still look at: stream_chunk_drop it when they are gone. On an error nothing has changed.
 * Thread: the checkpointer, beside the appender and readers. OMEN_EFULL, OMEN_EIO. */
OMEN_CHECKED enum omen_err stream_compact(struct stream *stream, uint32_t chunk,
        const struct stream_kept *units, uint32_t count, struct stream_unit *units_out,
        struct stream_chunk **old_out, struct err *err);
void stream_chunk_drop(struct stream_chunk *old); /* NULL is fine */

/* ---- copies of another replica's chunks ---- */

#define STREAM_CHUNK_NAME_BYTES 23u
void stream_chunk_name(uint32_t number, char out[STREAM_CHUNK_NAME_BYTES]);
/* Make a copied file chunk `number` of this replica: its header is written, space up to `file_bytes` allocated, all of it
 * synced. Units name their place and not their replica, so they stay. May be repeated. */
OMEN_CHECKED enum omen_err stream_adopt_chunk(struct vfs *vfs, const char *dir, uint64_t shard_id,
        uint64_t replica_id, uint32_t number, uint32_t file_bytes, struct err *err);

/* Memory does not hold the chunks: what is read of them here and there shall not bring along what lies around it, and
 * who reads a stretch of them asks for it with stream_soon. Any thread; cheap when nothing changes. */
void stream_scatter(struct stream *stream, bool scattered);
bool stream_is_scattered(const struct stream *stream);
/* Bodies that follow one another in a chunk will be read next. Any thread. */
void stream_soon(const struct stream *stream, const uint8_t *from, uint64_t bytes);

void stream_usage(struct stream *stream, uint64_t *bytes_out,
        uint64_t *chunks_out); /* any thread; allocated */

#endif
