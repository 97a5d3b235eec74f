/* The consensus room's door: replicated state machines behind propose and barrier.
 *
 * A group is either of one member, this node, and committed when the node log is synced (replica_open), or a
 * Raft group of replicas on several nodes (replica_open_group). Callers see the same functions.
 *
 *   propose -> node log (group commit) -> committed -> apply worker -> fsm->apply -> done callback
 *   propose -> raft's loop -> node log, followers -> majority -> apply worker -> fsm->apply -> done callback
 *
 * A sequence is first_sequence + the number of commands so far; raft's own entries have none.
 *
 * Every entry is delivered to its fsm once per process life and in order; entries at or below fsm->applied()
 * are skipped on restart. A group's entries are applied by one worker (hash of the group id); workers are
 * shared by groups. */
#ifndef OMEN_CONSENSUS_REPLICA_H
#define OMEN_CONSENSUS_REPLICA_H

#include "common/clock.h"
#include "common/mem.h"
#include "common/metrics.h"
#include "common/vfs.h"
#include "consensus/node_log.h"

#define GROUP_MEMBERS_MAX 64u

enum replica_member_role {
    REPLICA_STANDBY = 0, /* gets the log, does not vote */
    REPLICA_VOTER = 1,
    REPLICA_SPARE = 2, /* gets nothing, does not vote */
};

/* One replica of a group. */
struct replica_member {
    uint64_t replica_id; /* never 0, never reused */
    uint64_t node_id;
    enum replica_member_role role;
};

struct replica_host; /* all replicas of this node: log, apply workers, checkpoint thread */
struct replica;

/* A state machine. All functions but applied/durable may block on disk. */
struct replica_fsm {
    void *self;
    /* Apply worker thread. `entry` is 16-byte aligned at least. `proposal_arg` is what was given to
     * replica_propose when this process proposed the entry, NULL on replay: the place for per-request
     * outcomes. OMEN_EFULL: the host waits and retries the same entry (D2). Any other error stops the
     * replica: later proposals answer that error, and in its Raft group it neither leads, votes nor stores any
     * more, so that the others go on without it. */
    enum omen_err (*apply)(void *self, uint64_t sequence, const void *entry, uint32_t len, void *proposal_arg,
            struct err *err);
    uint64_t (*applied)(void *self);                          /* last applied sequence */
    uint64_t (*log_needed_from)(void *self);                  /* log up to here may be dropped */
    enum omen_err (*checkpoint)(void *self, struct err *err); /* checkpoint thread */
    /* Is this a command that goes on while the log has nothing but its reserve (D2)? Asked only then, of bytes that nobody
     * has checked yet; any thread, cheap. NULL: none is. */
    bool (*vital)(void *self, const void *entry, uint32_t len);
    /* Room for the entries to come was looked for here and not found. Any thread, cheap. NULL: never. */
    bool (*is_short)(void *self);
};

/* What makes a host one of a cluster's. */
struct replica_cluster_options {
    uint64_t cluster_id;   /* 0: Raft groups cannot be opened here */
    const uint8_t *secret; /* [secret_len] 16..1024, copied: what the nodes of a cluster share */
    uint32_t secret_len;
    const char *listen;      /* "numeric host:port" for other nodes, port 0 = any free; NULL = dials only */
    uint32_t loops;          /* default 1; groups are spread over them */
    uint32_t election_ms;    /* default 800: a follower that hears nothing for 1 to 2 of it stands */
    uint32_t heartbeat_ms;   /* default 100 */
    uint64_t trailing_bytes; /* default 16 MiB: log kept in memory for followers that lag, per group */
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
    uint64_t apply_backlog_bytes_max;  /* default 128 MiB: a follower with more takes no entries */
    struct replica_cluster_options cluster;
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
/* ---- Raft groups ---- */

/* Where another node listens for us, "host:port"; NULL forgets it. Nodes find each other only by this. Any
 * thread. */
OMEN_CHECKED enum omen_err replica_host_set_peer(struct replica_host *host, uint64_t node_id,
        const char *address, struct err *err);
uint16_t replica_host_port(const struct replica_host *host); /* that it listens on; 0 = does not */

/* Write a new group's first configuration, for this replica: once on each of the members, which must all be
 * given the same list, before replica_open_group. Groups come to be in no other way (C7). OMEN_EEXISTS when
 * the log holds anything of the replica. Blocks on the disk. */
OMEN_CHECKED enum omen_err replica_bootstrap(struct replica_host *host, uint64_t group, uint64_t replica_id,
        const struct replica_member *members, uint32_t count, struct err *err);

/* How a replica that is too far behind the log gets a peer's checkpoint; both NULL: it stays behind. `self` is
 * the state machine's. */
struct replica_bases {
    /* Get a checkpoint whose sequence is at least `sequence`, from `node_id` or another READY replica, with
     * what replica_base_describe gave there before the checkpoint was leased; make all of it durable beside
     * the present state; then call replica_base_ready, or replica_base_failed. On raft's loop: must not block
     * or call the door. Called once until one of the two is. */
    void (*fetch)(void *self, uint64_t sequence, uint64_t node_id);
    /* The log now begins after that checkpoint: use it. Apply worker, or the opener after a crash in between.
     * An error stops the replica. */
    enum omen_err (*switch_base)(void *self, uint64_t sequence, struct err *err);
    /* It is not needed: the state reached as far without it, and is durable. Apply worker. May be NULL. */
    void (*pass_over)(void *self);
};

struct replica_group_options {
    uint64_t group, replica_id;
    uint64_t first_sequence;
    const struct replica_fsm *fsm; /* copied */
    struct replica_bases bases;
    /* This replica began or ceased to lead, or learned of another leader; or NULL. On raft's loop: must not
     * block or call the door. leader: replica_id 0 = not known. */
    void (*on_leader_change)(void *arg, bool leads, const struct replica_member *leader, uint64_t term);
    void *arg;
};
/* Open a replica of a Raft group; replica_propose, _barrier, _status, _checkpoint, _close and _drop are the
 * same. One that was neither bootstrapped nor added yet has an empty log and waits for a leader. Does not wait
 * for a leader or for entries to be applied: which ones are committed only a leader tells. */
OMEN_CHECKED enum omen_err replica_open_group(struct replica_host *host,
        const struct replica_group_options *options, struct replica **replica_out, struct err *err);

/* Members as this replica knows them, committed or not. members_out: [GROUP_MEMBERS_MAX]. */
void replica_members(struct replica *replica, struct replica_member *members_out, uint32_t *count_out);
/* The leader this replica knows of; false when none. */
bool replica_leader(struct replica *replica, struct replica_member *leader_out);

/* Another member as its leader sees it; at most LOOP_TICK_MS old. */
struct replica_follower {
    struct replica_member member;
    uint64_t
            /* about: of the leader's log that it has not said to hold; entries are taken for equally long */
            lag_bytes;
    uint64_t silent_ms; /* since its last answer to this leader; UINT64_MAX: none yet */
    bool is_short;      /* and that said that its disk is short of room */
    bool waits;         /* even for what it has to store or apply already */
};
/* followers_out: [GROUP_MEMBERS_MAX]. None at a replica that does not lead. */
void replica_followers(struct replica *replica, struct replica_follower *followers_out, uint32_t *count_out);

/* Changes of members: at the leader, one at a time (OMEN_EBUSY). A leader's own vote is not taken (OMEN_EINVAL):
 * leadership is handed over first. done: on raft's loop or the caller's thread, sequence 0. OK: committed.
 * OMEN_EUNAVAILABLE: a new voter could not catch up, or the new leader did not take over. OMEN_EUNKNOWN: leadership
 * was lost meanwhile. A removed replica is not told by raft. */
typedef void (*replica_done)(void *arg, enum omen_err result, uint64_t sequence, const struct err *err);
void replica_add(struct replica *replica, uint64_t replica_id, uint64_t node_id, replica_done done,
        void *arg);
void replica_assign(struct replica *replica, uint64_t replica_id, enum replica_member_role role,
        replica_done done, void *arg);
void replica_remove(struct replica *replica, uint64_t replica_id, replica_done done, void *arg);
/* To this voter, or with 0 to the one that has most of the log. */
void replica_transfer(struct replica *replica, uint64_t replica_id, replica_done done, void *arg);

/* Describe the base that a checkpoint made from now on can be installed on: opaque bytes, appended to `out`
 * with the base's sequence. Any later checkpoint will do. OMEN_ENOTFOUND while the log is whole. */
OMEN_CHECKED enum omen_err replica_base_describe(struct replica *replica, struct buf *out,
        uint64_t *sequence_out);
/* Keep at least so many bytes of log in memory before the base from now on (a quarter of the node log's limit at
 * most), for a replica that is copying a checkpoint meanwhile; 0 = as options.cluster.trailing_bytes says. Any
 * thread. */
void replica_keep_log(struct replica *replica, uint64_t bytes);
/* The answers to bases.fetch. */
OMEN_CHECKED enum omen_err replica_base_ready(struct replica *replica, const void *description, size_t len,
        struct err *err);
void replica_base_failed(struct replica *replica);

/* What went over the connections to other nodes. */
struct replica_net_stats {
    uint64_t connections; /* open now */
    uint64_t frames_in, frames_out, bytes_in, bytes_out;
    uint64_t frames_dropped;  /* no connection, or too many bytes unsent */
    uint64_t frames_homeless; /* for replicas that are not here */
    uint64_t refused_garbage, refused_secret, refused_cluster, refused_strangers, refused_frames;
    uint64_t unsent_bytes, unsent_bytes_max; /* of one connection: lately, ever */
};
void replica_host_net_stats(struct replica_host *host, struct replica_net_stats *stats_out);

/* ---- all groups ---- */

/* Waits for proposals in flight, makes a last checkpoint when `checkpoint`, and frees. */
void replica_close(struct replica *replica, bool checkpoint);
/* Close and write DROP_GROUP, so that the log keeps nothing of it. The caller removes the fsm's files
 * afterwards. */
void replica_drop(struct replica *replica);
/* The group is known to be dropped although its DROP_GROUP record was not written (crash in between). */
void replica_host_forget(struct replica_host *host, uint64_t group);
/* The same of one replica of it: another may be here by now. It is not open. */
void replica_host_forget_replica(struct replica_host *host, uint64_t group, uint64_t replica_id);

/* done: on an apply worker (or the log thread, or the caller's on immediate refusal); must not block.
 * OK: applied and visible, `sequence` is its own. OMEN_EBUSY, OMEN_EFULL, OMEN_ENOTLEADER: not taken. While the log has
 * nothing but its reserve only vital entries are.
 * OMEN_EUNKNOWN: taken, outcome not known (stopped, or leadership lost, while in flight). Takes ownership of
 * `entry` (mem_free) in every case. len must be a multiple of 8. */
void replica_propose(struct replica *replica, uint8_t *entry, uint32_t len, void *proposal_arg,
        replica_done done, void *done_arg);

/* Calls done(arg, OK, sequence) when everything committed before the call is applied here: a linearizable
 * read may start. A Raft group commits a barrier first, one for all that wait (C8); a follower asks its leader.
 * May call back on the caller's thread. */
void replica_barrier(struct replica *replica, replica_done done, void *done_arg);

struct replica_status {
    uint64_t group, replica_id, term, last_index, applied, log_needed_from;
    uint64_t inflight_bytes, inflight_count, checkpoints;
    uint64_t checkpoint_ns; /* when the last one began, or the replica was opened; host's clock */
    enum omen_err stopped;
    bool disk_full; /* waiting for room, or only what is vital is taken */
    bool waits;     /* what is committed, or was let in, finds no room in the machine or in the log */
    bool leader;
    /* Of a replica of a Raft group; at most LOOP_TICK_MS old. */
    uint64_t stored_index, commit_index;  /* raft's */
    uint64_t base_sequence;               /* the log in memory may begin after it */
    uint64_t log_bytes;                   /* in memory */
    uint64_t leader_replica, leader_node; /* 0 = not known */
    uint32_t member_count;
    enum replica_member_role role;
    bool is_member; /* of the configuration it knows */
    bool fetching;  /* a base */
    bool switching; /* one is in the log, bases.switch_base has not returned yet */
    /* Entries that a leader is known to have committed and that are not applied here. */
    uint64_t lag_entries;
    uint64_t lag_unseen;    /* of those, the ones that are not even in the log here */
    uint64_t backlog_bytes; /* of those that are here already */
    /* Once in this life all was applied that had been committed before. Until then nothing, not even a lag of 0,
     * says how old what it holds is. */
    bool caught_up;
    uint64_t silent_ms; /* as replica_silent_ms */
};
void replica_status(struct replica *replica, struct replica_status *status_out);
/* How long ago a leader of this replica's term was heard: 0 at the leader and in a group of one member,
 * UINT64_MAX when none ever was (K3). Cheap. */
uint64_t replica_silent_ms(struct replica *replica);
/* Stop it as if apply had answered `rc`: what it holds was found damaged. Any thread. With `forever` nothing of
 * its log is kept from being dropped any more: the caller has made durable that it is never opened again. */
void replica_halt(struct replica *replica, enum omen_err rc, const struct err *err, bool forever);
void replica_host_log_stats(struct replica_host *host, struct node_log_stats *stats_out);
/* Checkpoint now, on the caller's thread. */
OMEN_CHECKED enum omen_err replica_checkpoint(struct replica *replica, struct err *err);

#endif
