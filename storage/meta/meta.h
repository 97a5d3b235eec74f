/* LMDB of one replica: point key -> newest location, the table of applied ops, and the state it all belongs to.
 *
 * Written rarely, by a merge: one synced transaction that takes the file from the state after one sequence to the state
 * after a later one (CORRECTNESS D5). LMDB has no checksums, so:
 *   - every value carries a crc over key and value: a mismatch is OMEN_ECORRUPT, never served;
 *   - meta/CHECKSUM holds size and crc of the whole data.mdb and is verified before LMDB maps the file (a flipped
 *     branch page could make LMDB crash). A merge runs under a durable meta/MERGING marker; when that is found at open,
 *     the merge was interrupted: LMDB's own two meta pages decide, every value is verified, CHECKSUM is written anew.
 *
 * Keys: 'p' + point key (33 B) | 's' state | 'i' identity and schema | 'o' + u64 BE chunk number of applied ops | 'n' +
 * u64 BE sequence + u32 BE part of a write by filter that is under way.
 * Formats: storage/FORMAT.md. This is the only home of lmdb.h.
 *
 * Threads: reads through transactions, any thread, one at a time per transaction; merges by one thread beside them.
 * The vfs serves CHECKSUM and MERGING; LMDB itself always uses the real file system. */
#ifndef OMEN_STORAGE_META_H
#define OMEN_STORAGE_META_H

#include "common/vfs.h"
#include "storage/meta/intent.h"
#include "storage/meta/op_table.h"
#include "storage/stream/stream.h"

#define META_READERS_MAX 1024        /* transactions alive */
#define META_MAP_BYTES (64ull << 30) /* address space, not memory; the file never grows past it */

struct meta_identity {
    uint64_t shard_id, replica_id, base_sequence;
    const struct collection_schema *schema; /* borrowed */
};

/* What the points and ops in the file are the state after. */
struct meta_state {
    uint64_t sequence;
    uint64_t log_time_ms;
    uint64_t points;            /* live keys */
    uint64_t op_first, op_next; /* numbers of the applied ops kept */
    struct stream_end end;      /* of the stream after `sequence` */
};

/* Where a point's row lies: unit header's position and op within the unit. */
struct meta_location {
    struct stream_position position;
    uint32_t op;
    uint64_t version; /* sequence that wrote it */
};

struct meta;
/* Open; creates when nothing is there. identity->base_sequence is taken for a new file; `base_out` is the stored one.
 * OMEN_ECORRUPT names the file; OMEN_EINVAL: other identity or schema. */
OMEN_CHECKED enum omen_err meta_open(struct vfs *vfs, const char *dir, const struct meta_identity *identity,
        struct meta **meta_out, struct meta_state *state_out, uint64_t *base_out, struct err *err);
void meta_close(struct meta *meta); /* all transactions freed before */
uint64_t meta_bytes(const struct meta *meta);

/* ---- reading ---- */

struct meta_txn;
/* A new transaction, at rest. OMEN_EBUSY past META_READERS_MAX. */
OMEN_CHECKED enum omen_err meta_txn_new(struct meta *meta, struct meta_txn **txn_out, struct err *err);
OMEN_CHECKED enum omen_err meta_txn_begin(struct meta_txn *txn, struct err *err); /* see the last commit */
void meta_txn_end(struct meta_txn *txn);                                          /* at rest again */
void meta_txn_free(struct meta_txn *txn);

OMEN_CHECKED enum omen_err meta_get(struct meta_txn *txn, const struct point_key *key,
        struct meta_location *location_out, bool *found_out, struct err *err);

struct meta_cursor; /* ends before its transaction does */
/* At the first point >= `from` (NULL = the first one). */
OMEN_CHECKED enum omen_err meta_cursor_open(struct meta_txn *txn, const struct point_key *from,
        struct meta_cursor **cursor_out, struct err *err);
/* Next point; *found_out false at the end. */
OMEN_CHECKED enum omen_err meta_cursor_next(struct meta_cursor *cursor, struct point_key *key_out,
        struct meta_location *location_out, bool *found_out, struct err *err);
void meta_cursor_close(struct meta_cursor *cursor); /* NULL is fine */

/* Every applied op in order of number. `each` returning an error stops. */
OMEN_CHECKED enum omen_err meta_ops(struct meta_txn *txn, const struct meta_state *state,
        enum omen_err (*each)(void *arg, const struct op_record *record), void *arg, struct err *err);

/* Every open write by filter, in order of sequence and part, into an empty set that is not published yet. */
OMEN_CHECKED enum omen_err meta_intents(struct meta_txn *txn, struct intent_set *set, struct err *err);

/* ---- merging ---- */

struct meta_merge;
/* `points`: at most so many puts follow; ops, intents: those of meta_merge_ops and _intents. The space that all of them
 * may take is allocated here, before anything is changed. OMEN_EFULL, from here or any function below: the old state
 * stands, readers go on, the merge may be tried again when there is room. OMEN_EIO: LMDB or the disk is broken. */
OMEN_CHECKED enum omen_err meta_merge_begin(struct meta *meta, uint64_t points, const struct op_range *ops,
        const struct intent_set *intents, struct meta_merge **merge_out, struct err *err);
/* Keys in ascending order are fastest. location NULL = the point is gone (fine when it was not there). */
OMEN_CHECKED enum omen_err meta_merge_put(struct meta_merge *merge, const struct point_key *key,
        const struct meta_location *location, struct err *err);
/* Replace the applied ops by those of the range; chunks written before are not written again. */
OMEN_CHECKED enum omen_err meta_merge_ops(struct meta_merge *merge, const struct op_range *ops,
        struct err *err);
/* Replace the open writes by filter by those of the set. */
OMEN_CHECKED enum omen_err meta_merge_intents(struct meta_merge *merge, const struct intent_set *set,
        struct err *err);
/* Commit, synced. OMEN_EFULL: nothing changed, may be tried again. `merge` is gone either way. */
OMEN_CHECKED enum omen_err meta_merge_commit(struct meta_merge *merge, const struct meta_state *state,
        struct err *err);
/* Give a merge up after a function of it failed with `rc`: the code to go on with, OMEN_EFULL when a full disk was behind
 * an OMEN_EIO. `merge` is gone. */
enum omen_err meta_merge_fail(struct meta_merge *merge, enum omen_err rc, struct err *err);
/* After a commit: write CHECKSUM for data.mdb as it is and remove the marker. Failure loses nothing: the marker stays,
 * and the next seal or open makes up for it. */
OMEN_CHECKED enum omen_err meta_seal(struct meta *meta, struct err *err);

/* ---- copies for another replica ---- */

/* A consistent copy of the whole file as `dir`/data.mdb, in the real file system; the directory is there. Beside readers and
 * merges; waits for a merge under way. Not synced. */
OMEN_CHECKED enum omen_err meta_copy(struct meta *meta, const char *dir, struct err *err);
/* Make a copied `dir`/data.mdb the one of `identity`; it must be of the same shard and schema, and of the replica
 * `from_replica` (or adopted before). May be repeated after a crash. */
OMEN_CHECKED enum omen_err meta_adopt(struct vfs *vfs, const char *dir, uint64_t from_replica,
        const struct meta_identity *identity, struct err *err);

#endif
