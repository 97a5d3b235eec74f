/* The storage room's door: one replica of one shard on local disk.
 *
 * Writes come as log entries in sequence order (apply); the entry is copied once into the append stream and searched
 * there in place. Reads take a view: the state after one sequence, unaffected by later writes (multi-version by
 * {born, died} sequence per row). A checkpoint makes everything up to its sequence durable; after a crash the store
 * opens at its last checkpoint and the log re-delivers the rest.
 *
 *   CLOSED --open: lmdb, stream scan, cut to checkpoint--> OPEN --apply/checkpoint--> OPEN --close--> CLOSED
 *   OPEN --I/O error or disk full in apply--> STOPPED (reads go on; apply answers the first error for ever, but
 *   OMEN_EFULL is retried with the same entry once there is room; shard_store_has_room keeps it from happening)
 *   OPEN, STOPPED --scrub finds damage--> DAMAGED (apply and reads answer what was found)
 *
 * The room never reads a clock, draws random numbers or opens a socket: time comes in entries and arguments.
 *
 * Directory: stream/NNNNNNNNNNNNNNNN.chunk, meta/ (LMDB), CHECKPOINT. Formats: storage/FORMAT.md. */
#ifndef OMEN_STORAGE_SHARD_STORE_H
#define OMEN_STORAGE_SHARD_STORE_H

#include "common/query/filter.h"
#include "common/query/point.h"
#include "common/vfs.h"
#include "storage/entry.h"
#include "storage/meta/intent.h"
#include "storage/search_explain.h"

struct shard_store;

struct shard_store_options {
    struct vfs *vfs; /* borrowed, outlives the store (LMDB alone goes to the real file system) */
    const char *dir; /* created when missing */
    uint64_t shard_id, replica_id;          /* checked against what the files say */
    const struct collection_schema *schema; /* copied; must equal the stored one */
    uint64_t base_sequence;                 /* sequence before the first entry; counts at creation only */
    uint64_t
            first_chunk_bytes; /* default 1 MiB; each next chunk is twice the one before, up to chunk_bytes */
    uint64_t chunk_bytes;      /* default 64 MiB; both a multiple of 4096; tests use 64 KiB */
    uint64_t delta_bytes_max;  /* merge into LMDB past this; default 64 MiB */
    uint32_t op_table_max;     /* applied ops remembered; default 1,000,000 */
    uint64_t op_retention_ms;  /* log time an op id lives; default 120,000 */
};
void shard_store_options_default(struct shard_store_options *options);

/* Open or create. Scans the stream after LMDB's sequence and checks every CRC up to the checkpoint; what lies past
 * the checkpoint is cut. OMEN_ECORRUPT names file and offset. Cost: reads the stream once. */
OMEN_CHECKED enum omen_err shard_store_open(const struct shard_store_options *options,
        struct shard_store **store_out, struct err *err);
/* Waits for views to be released. Does not checkpoint. */
void shard_store_close(struct shard_store *store);

/* What became of one request of an entry. */
struct apply_outcome {
    /* OK; OPEXPIRED; ETOOBIG (a merged payload, or more than 256 MiB of changed points in one entry); EINVAL (a
     * payload operation that touches the shard key or names no path; issued further ahead of log time than
     * op_retention_ms); EBUSY (a write by filter under this op id is under way: `intent` names it; or INTENTS_MAX are);
     * ECANCELED (a step of a write by filter that is not where the step goes on from). Same on every replica; other than
     * OK: nothing of the request was done, but of a write by filter that ended so, its steps were. */
    enum omen_err code;
    uint32_t affected; /* points written or deleted; of the last step of a write by filter: by all of it */
    uint64_t sequence; /* of the entry that applied it first (earlier for a duplicate) */
    bool duplicate;    /* op id was applied before; nothing done now */
    struct intent_id intent; /* of a write by filter that was begun now, or is under way; sequence 0 = none */
};

/* Apply entry `sequence` (must be applied + 1; lower ones are skipped and answer OK with no outcomes filled, higher
 * ones are a bug and CHECKed). `outcomes` [request_count of the entry] or NULL. Visible to views taken after it
 * returns. Thread: one apply worker. Blocks: memcpy into the page cache, now and then a chunk allocation. */
OMEN_CHECKED enum omen_err shard_store_apply(struct shard_store *store, uint64_t sequence, const void *entry,
        size_t len, struct apply_outcome *outcomes, struct err *err);

/* What became of an op that was applied and is remembered; false: it is not known here. One that is a write by filter
 * under way is EBUSY with its `intent`, as apply would answer. Any thread, may wait for apply. */
bool shard_store_op_outcome(struct shard_store *store, const struct op_id *op_id,
        struct apply_outcome *outcome_out);

/* OMEN_EOPEXPIRED when the op id was issued longer than the retention before this log time: whether it was applied may be
 * forgotten. OMEN_EINVAL when as far ahead of it. What apply judges every request by. */
enum omen_err store_op_id_timely(const struct op_id *id, uint64_t log_time_ms, uint64_t retention_ms);

/* Writes by filter that are under way, as of what is applied: a reference of the caller's. Any thread. */
struct intent_set *shard_store_intents(struct shard_store *store);

uint64_t shard_store_applied(const struct shard_store *store); /* visible; any thread */
uint64_t shard_store_log_time(
        struct shard_store *store); /* of what is applied; any thread, may wait for apply */
uint64_t shard_store_durable(const struct shard_store *store); /* last durable checkpoint; any thread */
/* The log may be dropped up to here: the checkpoint before the last one, so that one damaged record loses nothing. */
uint64_t shard_store_log_needed_from(const struct shard_store *store);

/* Make all applied so far durable: sync the stream, then the checkpoint record; merges the delta into LMDB when it is
 * past its bound. Thread: one checkpointer, beside apply and readers. Blocks on the disk. */
OMEN_CHECKED enum omen_err shard_store_checkpoint(struct shard_store *store, uint64_t *durable_out,
        struct err *err);

/* ---- room (CORRECTNESS A1: apply never refuses for lack of it, admission does) ---- */

/* What a write needs of the stream, at most: the entry it becomes and the whole points that its payload operations
 * derive, by the sizes those points have now. Needs of requests that share an entry add up. A point that grows
 * between admission and apply can need more; then apply allocates, or waits on a full disk (OMEN_EFULL). */
struct write_need {
    uint64_t entry_bytes, derived_bytes;
    uint64_t derived_point_bytes; /* of the largest */
};
/* Any thread; looks points up when there are payload operations. OMEN_EBUSY, OMEN_ENOMEM, OMEN_EIO, OMEN_ECORRUPT. */
OMEN_CHECKED enum omen_err shard_store_need(struct shard_store *store, const struct point_op *ops,
        uint32_t count, struct write_need *need_out, struct err *err);
void write_need_add(struct write_need *sum, const struct write_need *need);

#define STORE_NEEDS_MAX 8u
/* What else is to be left: nothing; room for deletes on a disk that is full (CORRECTNESS D2); half a chunk, for what
 * comes next. */
enum store_spare { STORE_SPARE_NONE, STORE_SPARE_DELETES, STORE_SPARE_AHEAD };
/* Do entries of these needs [count, at most STORE_NEEDS_MAX, in their order] fit what is allocated? Any thread,
 * cheap. */
bool shard_store_has_room(struct shard_store *store, const struct write_need *needs, uint32_t count,
        enum store_spare spare);
/* Allocate until they do. OMEN_EFULL, OMEN_EIO: the store goes on as before. Any thread; blocks on the disk, apply
 * hardly. */
OMEN_CHECKED enum omen_err shard_store_make_room(struct shard_store *store, const struct write_need *needs,
        uint32_t count, enum store_spare spare, struct err *err);

/* A fixed state to read. Cheap; any thread; hold it for one request. Everything a read returns borrows from the view
 * (or the arena) and dies with it. */
struct store_view {
    struct shard_store *store;
    uint64_t sequence;
    uint64_t now_ms;      /* points that expire then or earlier are absent; log time of `sequence` at least */
    struct view_pin *pin; /* the room's own */
    float recall_target; /* of searches through graphs, the caller's after acquire; 0 = what they were built for */
    uint32_t effort; /* likewise: width of the walk, whatever calibration says; 0 = as it says */
    struct search_explain
            *explain; /* what searches did, the caller's after acquire, zeroed; NULL = not asked */
};
void store_view_acquire(struct shard_store *store, struct store_view *view_out);
/* The same, but OMEN_EBUSY instead of waiting when too many views live: for threads that others' releases depend on.
 * */
OMEN_CHECKED enum omen_err store_view_try_acquire(struct shard_store *store, struct store_view *view_out,
        struct err *err);
void store_view_release(struct store_view *view);
/* Read as of the time that a query carries: never before log time, so a point that has gone does not come back. */
static inline void store_view_at(struct store_view *view, uint64_t now_ms)
{
    if (now_ms > view->now_ms) view->now_ms = now_ms;
}

/* Polled about every 64 KiB of scanned data: true = give up with OMEN_EDEADLINE. NULL = never. */
struct read_limit {
    bool (*stop)(void *arg);
    void *arg;
};

struct search_stats {
    uint64_t segments_walked, segments_scanned; /* by graph; read whole: of after the view */
    uint64_t segments_pruned;                   /* nothing there can pass the filter */
    uint64_t sketches_searched;                 /* parts of the tail */
    uint64_t hops;                              /* nodes of graphs */
    uint64_t rows_scanned, distances_computed, filter_evaluated, bytes_read;
};

/* The k nearest for `count` searches: exact among rows that are in no segment (shard_index.h), at the segments'
 * recall target among the others, exact throughout for a search that says so. Searches on the same field share one
 * pass. hits_out[i] is allocated in `arena` [hit_counts_out[i]], nearest first (hit_compare). Selected payload and
 * vectors borrow from the view; payload selection copies go to the arena. Errors: EINVAL, EDEADLINE, ENOMEM,
 * ECORRUPT. */
OMEN_CHECKED enum omen_err shard_store_search(const struct store_view *view,
        const struct search_params *searches, uint32_t count, const struct read_limit *limit,
        struct arena *arena, struct hit **hits_out, uint32_t *hit_counts_out, struct search_stats *stats_out,
        struct err *err);

/* Points by key; `any_key` in a request returns every match of the id. Missing ones are left out. */
struct get_request {
    point_id id;
    struct shard_key key;
    bool any_key;
};
OMEN_CHECKED enum omen_err shard_store_get(const struct store_view *view, const struct get_request *requests,
        uint32_t count, const struct point_selection *selection, struct arena *arena,
        struct point_view **points_out, uint32_t *count_out, struct err *err);

/* Next `limit` live matching points in order of point key, after `after` (NULL = from the start). `more_out`: whether
 * another page may exist. Stable: a point that is there throughout is returned exactly once over the pages. */
OMEN_CHECKED enum omen_err shard_store_scroll(const struct store_view *view, const struct point_key *after,
        uint32_t limit, const struct filter *filter, const struct point_selection *selection,
        const struct read_limit *read_limit, struct arena *arena, struct point_view **points_out,
        uint32_t *count_out, bool *more_out, struct err *err);

/* Exact number of live points, or of those that match. Without filter: no scan, unless points expired since the last
 * write; then those that expire are looked at. */
OMEN_CHECKED enum omen_err shard_store_count(const struct store_view *view, const struct filter *filter,
        const struct read_limit *limit, uint64_t *count_out, struct err *err);

struct shard_store_stats {
    uint64_t applied, durable, points, rows_dead;
    uint64_t stream_bytes, stream_chunks, delta_bytes, meta_bytes, applied_ops;
    uint64_t given_back_bytes; /* of chunks, by compacting them since open */
    uint64_t op_table_full;    /* 1 when admission must answer BUSY */
    uint32_t intents;          /* writes by filter that are under way */
    uint64_t
            expires_next_ms; /* the soonest that a point counted in `points` expires; UINT64_MAX = none does */
    enum omen_err stopped;   /* OMEN_OK, or why apply stopped */
    bool damaged;            /* by what the scrubber found; nothing is served */
};
void shard_store_stats(struct shard_store *store, struct shard_store_stats *stats_out);

/* ---- what replicas compare (CORRECTNESS A7) ---- */

/* Order-free digest of the live points after one sequence: shard key, id, version, expiry, payload and vectors of each;
 * and of the writes by filter under way.
 * Replicas that differ at one sequence hold different points; two that agree may do so by chance once in 2^32. Compare
 * only digests of one version of it: what is hashed may change with a release, its number then does. */
#define STORE_DIGEST_VERSION 1u
#define STORE_DIGESTS_MAX 7u /* the newest, and that of the last multiple of 16, 128, 1,024 .. 524,288 */
struct store_digest {
    uint64_t sequence, sum;
};
/* Those that are known, so that replicas which are never at the same sequence when they are asked have one in common all
 * the same. None is known where points expired that have not died yet, as only so many die with one entry; nor of
 * sequences before the checkpoint that was opened. Any thread, cheap. */
uint32_t shard_store_digests(struct shard_store *store, struct store_digest digests_out[STORE_DIGESTS_MAX]);

struct scrub_result {
    uint64_t bytes; /* checked now */
    bool wrapped;   /* the last unit was among them: the next call begins with the first */
};
/* Re-check the CRCs of the next stream units, about `bytes` of them, going round; for an idle scrubber, one
 * thread. OMEN_ECORRUPT and OMEN_EIO name file and offset and are DAMAGED: from then on apply and every read of
 * the store answer them, because what else is wrong is not known. */
OMEN_CHECKED enum omen_err shard_store_scrub(struct shard_store *store, uint64_t bytes,
        struct scrub_result *result_out, struct err *err);

#endif
