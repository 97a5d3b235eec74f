/* The consensus room's door: replicated state machines behind propose and barrier.
 *
 * In this version a group has one replica, this node, and is committed when the node log is synced. The next
 * one puts the raft core between propose and the log; callers see the same functions, more roles, and
 * OMEN_ENOTLEADER.
 *
 *   propose -> node log (group commit) -> committed -> apply worker -> fsm->apply -> done callback
 *
 * Every entry is delivered to its fsm once per process life and in order; entries at or below fsm->applied()
 * are skipped on restart. A group's entries are applied by one worker (hash of the group id); workers are
 * shared by groups. */
#ifndef OMEN_CONSENSUS_REPLICA_H
#define OMEN_CONSENSUS_REPLICA_H

#include "common/clock.h"
#include "common/metrics.h"
#include "common/vfs.h"
#include "consensus/node_log.h"

struct replica_host; /* all replicas of this node: log, apply workers, checkpoint thread */
struct replica;

/* A state machine. All functions but applied/durable may block on disk. */
struct replica_fsm {
    void *self;
    /* Apply worker thread. `entry` is 16-byte aligned at least. `proposal_arg` is what was given to
     * replica_propose when this process proposed the entry, NULL on replay: the place for per-request
     * outcomes. OMEN_EFULL: the host waits and retries the same entry (D2). Any other error stops the
     * replica: later proposals answer that error. */
    enum omen_err (*apply)(void *self, uint64_t sequence, const void *entry, uint32_t len, void *proposal_arg,
            struct err *err);
    uint64_t (*applied)(void *self);                          /* last applied sequence */
    uint64_t (*log_needed_from)(void *self);                  /* log up to here may be dropped */
    enum omen_err (*checkpoint)(void *self, struct err *err); /* checkpoint thread */
};

struct replica_host_options {
    struct node_log_options log;
    struct clock *clock;
    struct metrics *metrics;           /* may be NULL */
    uint32_t apply_workers;            /* default 1 */
    uint64_t checkpoint_log_bytes;     /* per group since its last checkpoint; default 64 MiB */
    uint64_t checkpoint_interval_ns;   /* default 30 s, only when something was applied */
    uint64_t group_inflight_bytes_max; /* proposed, not yet applied; default 64 MiB: OMEN_EBUSY above */
    uint64_t host_inflight_bytes_max;  /* default 256 MiB */
};
void replica_host_options_default(struct replica_host_options *options);

/* Opens the log and reads it back: entries of groups that are then opened are re-delivered to them, entries
 * of groups never opened are kept until replica_host_forget. */
OMEN_CHECKED enum omen_err replica_host_open(const struct replica_host_options *options,
        struct replica_host **host_out, struct err *err);
/* Every replica must be closed before. */
void replica_host_close(struct replica_host *host);

/* Create or re-open a replica; returns when every entry the log holds for it is applied, or when the disk is
 * too full for that (replica_status tells): then they wait for room, and barriers wait for them.
 * `first_sequence` is the sequence before the first entry (shard base). group ids are never reused. */
OMEN_CHECKED enum omen_err replica_open(struct replica_host *host, uint64_t group, uint64_t replica_id,
        uint64_t first_sequence, const struct replica_fsm *fsm, struct replica **replica_out,
        struct err *err);
/* Waits for proposals in flight, makes a last checkpoint when `checkpoint`, and frees. */
void replica_close(struct replica *replica, bool checkpoint);
/* Close and write DROP_GROUP, so that the log keeps nothing of it. The caller removes the fsm's files
 * afterwards. */
void replica_drop(struct replica *replica);
/* The group is known to be dropped although its DROP_GROUP record was not written (crash in between). */
void replica_host_forget(struct replica_host *host, uint64_t group);

/* done: on an apply worker (or the log thread, or the caller's on immediate refusal); must not block.
 * OK: applied and visible, `sequence` is its own. OMEN_EBUSY, OMEN_EFULL: not taken. OMEN_EUNKNOWN: taken,
 * outcome not known (stopped while in flight). Takes ownership of `entry` (mem_free) in every case. len must
 * be a multiple of 8. */
typedef void (*replica_done)(void *arg, enum omen_err result, uint64_t sequence, const struct err *err);
void replica_propose(struct replica *replica, uint8_t *entry, uint32_t len, void *proposal_arg,
        replica_done done, void *done_arg);

/* Calls done(arg, OK, sequence) when everything committed before the call is applied here: a linearizable
 * read may start. May call back on the caller's thread. */
void replica_barrier(struct replica *replica, replica_done done, void *done_arg);

struct replica_status {
    uint64_t group, replica_id, term, last_index, applied, log_needed_from;
    uint64_t inflight_bytes, inflight_count, checkpoints;
    enum omen_err stopped;
    bool disk_full; /* waiting for room */
    bool leader;
};
void replica_status(struct replica *replica, struct replica_status *status_out);
void replica_host_log_stats(struct replica_host *host, struct node_log_stats *stats_out);
/* Checkpoint now, on the caller's thread. */
OMEN_CHECKED enum omen_err replica_checkpoint(struct replica *replica, struct err *err);

#endif
