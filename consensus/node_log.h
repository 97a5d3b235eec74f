/* The node write-ahead log (CORRECTNESS C1-C3): one log per node shared by all its replicas. Appends of all
 * groups that arrive while a sync is running are written and synced together as one batch (group commit).
 *
 * Directory of segments NNNNNNNNNNNNNNNN.log, allocated and zero-filled ahead, recycled when nothing in them
 * is needed. Segment: header 4096 B {magic "OMNL", version, node id, segment number, first batch number,
 * previous segment number and the offset at which it ended, crc}; then batches, each aligned to 4096:
 *   batch header 64 B {magic, crc32c of header, crc32c of body, segment number, batch number, body bytes,
 *   record count} records: 48 B {group, replica, term, index, kind, len} + body padded to 8
 * Batch numbers rise by one without gap. Torn or corrupt (C3): a bad batch followed by any valid later batch
 * is corruption (OMEN_ECORRUPT, file and offset); only a bad last batch is a torn tail and is left behind:
 * the next segment's header says where the previous one ended.
 * A write or sync error panics the process before anybody hears of it (C2), except a full disk: see
 * node_log_append.
 *
 * The reserve (CORRECTNESS D2): NODE_LOG_RESERVE segments, allocated ahead, that stay through restarts. While the disk gives
 * no more, an append may take of them what its claim says, so that what makes room, or tells that there is none, goes on.
 * What is released refills it, and so does the disk as soon as it has room (looked at every NODE_LOG_REFILL_MS). A log
 * that cannot have it, on a disk that is full from the start, works without. */
#ifndef OMEN_CONSENSUS_NODE_LOG_H
#define OMEN_CONSENSUS_NODE_LOG_H

#include "common/clock.h"
#include "common/vfs.h"

struct node_log;

enum node_log_kind {
    NODE_LOG_ENTRY = 1,      /* body: the entry */
    NODE_LOG_TRUNCATE = 2,   /* entries of the group from `index` on are void */
    NODE_LOG_HARD_STATE = 3, /* body: u64 vote; `term` is the current term. Carried into every new segment */
    NODE_LOG_DROP_GROUP = 4, /* the replica is gone; nothing of it is needed */
    NODE_LOG_SNAPSHOT = 5,   /* entries up to `index`, of `term`, are in a durable base; body: what describes
                              * it, at most NODE_LOG_SNAPSHOT_BYTES_MAX. Carried into every new segment */
};
#define NODE_LOG_SNAPSHOT_BYTES_MAX (16u << 10)

/* What an entry is. All but commands are the consensus room's own and never reach a state machine. */
enum node_log_entry_type { NODE_LOG_COMMAND = 0, NODE_LOG_BARRIER = 1, NODE_LOG_CHANGE = 2 };

#define NODE_LOG_RESERVE 4u                 /* segments */
#define NODE_LOG_RESERVE_BYTES (4ull << 20) /* of each; segment_bytes when that is less */
#define NODE_LOG_REFILL_MS 200u

/* How many segments of the reserve an append leaves to others: see node_log_claim_leaves. */
enum node_log_claim {
    NODE_LOG_PLAIN = 0, /* all: what a client may be refused */
    NODE_LOG_OWED,      /* half: what a leader has let in, here or elsewhere */
    NODE_LOG_VITAL,     /* the last: barriers, configurations, deletes, what brings room to the cluster */
    NODE_LOG_LAST,      /* none: votes, also the first one of a group, and bases, which let go of segments */
};

struct node_log_record {
    uint64_t group, replica, term, index;
    enum node_log_kind kind;
    enum node_log_entry_type entry_type; /* of an entry; else NODE_LOG_COMMAND */
    const void *body;
    uint32_t len;
};

struct node_log_options {
    struct vfs *vfs;
    const char *dir; /* created when missing */
    uint64_t node_id;
    uint64_t
            segment_bytes; /* default 32 MiB; larger single batches get a segment of their own size, those of the
                                * reserve may be smaller */
    uint64_t bytes_max;    /* default 256 MiB: above it need_checkpoint fires for the oldest group */
    uint64_t batch_bytes_max;  /* default 4 MiB of records per sync */
    bool test_ack_before_sync; /* MUTATION for tests/fault: acknowledges before the sync */
};
void node_log_options_default(struct node_log_options *options);

/* Open, verify everything, and call `replay` for every record in log order (a later TRUNCATE or DROP_GROUP is
 * the caller's to honour; entries already released may appear and must be skipped by index). Bodies are valid
 * during the call only. */
OMEN_CHECKED enum omen_err node_log_open(const struct node_log_options *options,
        enum omen_err (*replay)(void *arg, const struct node_log_record *record), void *arg,
        struct node_log **log_out, struct err *err);
/* Completes what is queued, then stops the log thread. */
void node_log_close(struct node_log *log);

/* One asynchronous append; the caller owns the struct and everything it points to until `done`.
 * `done` runs on the log thread, in submission order per log: return quickly, never block.
 * result: OK when durable; OMEN_EFULL when no segment could be allocated and the reserve is not for this claim (nothing
 * was written: the caller may retry later); anything else panicked. After an EFULL the entries of the group that follow
 * the refused one get EFULL too, until that index, or a lower one, is appended again or truncated: entries already
 * queued behind it leave no hole. */
struct node_log_append {
    const struct node_log_record *records;
    uint32_t count;
    enum node_log_claim claim;
    void (*done)(struct node_log_append *append, enum omen_err result);
    void *arg;
    struct node_log_append *next; /* the log's */
};
void node_log_append(struct node_log *log, struct node_log_append *append); /* any thread */

/* Entries of the group up to `index` are not needed any more. Any thread. */
void node_log_release(struct node_log *log, uint64_t group, uint64_t replica, uint64_t index);

/* Calls `replay` for every durable record of the group, in log order, reading the segments again: for a
 * replica opened a second time in one life of the process. Blocks on disk; appends go on, recycling waits.
 * Any thread but the log's. */
OMEN_CHECKED enum omen_err node_log_read_group(struct node_log *log, uint64_t group,
        enum omen_err (*replay)(void *arg, const struct node_log_record *record), void *arg, struct err *err);

struct node_log_stats {
    uint64_t bytes; /* of all segments holding needed records */
    uint64_t syncs, appends, records, bytes_written;
    uint64_t oldest_group; /* whose checkpoint would free the oldest segment; 0 = none */
    bool over_limit;       /* bytes > bytes_max */
    uint32_t spares;       /* segments ready to be used, the reserve's among them */
};
void node_log_stats(struct node_log *log, struct node_log_stats *stats_out);
/* bytes > 1.5 * bytes_max: nothing more should be proposed until a checkpoint let go of some. True from the segment on that
 * crosses the bound, however long a checkpoint takes. Any thread, no lock. */
bool node_log_far_over(const struct node_log *log);
/* The disk gives no more and plain appends are refused: there is the reserve, or what is left of it. Any thread, no lock. */
bool node_log_is_short(const struct node_log *log);

#endif
