/* What the files of the replica door share; nobody else includes this.
 *
 *   replica.c          propose, barrier, open, close, status
 *   replica_apply.c    apply workers
 *   replica_pending.c  what the log held at start
 *   replica_host.c     host, checkpoint thread
 *   replica_raft.c     a replica of a Raft group: what goes to its loop and what comes back
 *   replica_raft_barrier.c, replica_raft_open.c   its reads; its members, bases, open and close
 *   replica_net.c      loops, connections, which group a frame is for
 *
 * Locks, in this order: host->mutex, replica->mutex, worker->mutex, the node log's own. No callback of a
 * caller and no function of a state machine runs under one of them.
 *
 *   An entry:  QUEUED --synced--> COMMITTED --worker--> APPLIED --done(OK)
 *                |  disk full: done(EFULL)      | replica stopped, or closed while it waits: done(EUNKNOWN)
 *   A replica: RUNNING --apply says EFULL--> WAITING --room--> RUNNING     any --other error--> STOPPED
 *              any --close--> CLOSING --nothing in flight--> (gone) */
#ifndef OMEN_CONSENSUS_REPLICA_IMPL_H
#define OMEN_CONSENSUS_REPLICA_IMPL_H

#include <pthread.h>
#include <stdatomic.h>

#include "common/err.h"
#include "common/log.h"
#include "consensus/replica.h"
#include "consensus/shared.h"

#define APPLY_RUN_MAX 64u   /* entries of one group before another group of the worker has its turn */
#define APPLY_RETRY_MS 200u /* how often an entry that met a full disk is tried again */
#define CHECKPOINT_POLL_MS 100u
#define BARRIERS_MAX 65536u                 /* waiting, per group */
#define PROPOSALS_MAX (1u << 20)            /* in flight, per group: bounds the bookkeeping of tiny entries */
#define REPLICA_ENTRY_BYTES_MAX (64u << 20) /* one entry; the target is 512 KB */
#define APPLY_WORKERS_MAX 256u
#define BUSY_RETRY_MS 20u
#define REPLICA_TERM 1u /* of a group of one */

enum work_kind { WORK_PROPOSAL, WORK_REDELIVERY, WORK_BARRIER, WORK_SWITCH };

/* One thing in a replica's apply queue. */
struct work {
    struct node_log_append append; /* first: the log gives it back */
    struct node_log_record record;
    enum work_kind kind;
    struct replica *replica;
    struct work *next;
    uint64_t index; /* of an entry */
    uint8_t *entry; /* owned by a proposal; borrowed by a redelivery */
    uint32_t len;
    struct shared *owner; /* of the entry, in a Raft group; NULL = as said above */
    bool vital;           /* of a proposal: the log's reserve is for it too */
    void *proposal_arg;
    replica_done done; /* NULL: redelivery */
    void *done_arg;
    uint64_t began_ns;
};

struct worker {
    struct replica_host *host;
    pthread_t thread;
    bool started;
    pthread_mutex_t mutex;
    pthread_cond_t wake;                  /* monotonic clock */
    struct replica *run_head, **run_tail; /* replicas with work, in turn */
    struct replica *parked;               /* replicas waiting for room */
    bool kick;                            /* try the parked ones now */
    bool stopping;
};

struct replica {
    struct replica_host *host;
    struct worker *worker;
    struct replica_fsm fsm;
    struct replica_bases bases; /* of a Raft group */
    uint64_t group, replica_id, first_sequence;

    pthread_mutex_t mutex;
    pthread_cond_t idle; /* work or append finished */
    struct work *queue_head, **queue_tail;
    bool scheduled; /* in the worker's hands: running, queued to run, or parked */
    bool closing;
    bool log_full;               /* refuse until no append is in the log's hands */
    bool disk_full;              /* waiting for room */
    struct pending *redelivered; /* owned: entries of the log that wait for room borrow from it */
    uint64_t next_index;         /* given to the next proposal */
    uint64_t committed;          /* last durable index */
    uint64_t applied;            /* last applied index */
    uint64_t appends;            /* in the log's hands */
    uint64_t inflight_bytes, inflight_count;
    uint32_t barriers;
    uint32_t switches;         /* in the apply queue, of a Raft group */
    uint64_t backlog_bytes;    /* in the apply queue, of a Raft group */
    struct replica_raft *raft; /* NULL: a group of one member */
    uint64_t bytes_since_checkpoint, checkpoints;
    uint64_t checkpoint_applied;        /* index applied when the last checkpoint began */
    uint64_t checkpoint_ns;             /* when it was tried last */
    struct log_repeat checkpoint_fails; /* the checkpoint thread's */
    enum omen_err stopped;              /* OMEN_OK while running */
    struct err stop_err;

    pthread_mutex_t checkpoint_mutex; /* one checkpoint at a time; taken before all others */
    uint32_t users;                   /* host->mutex: the checkpoint thread works on it */
    struct replica *next;             /* host->mutex: list of open replicas */
    struct replica *run_next;         /* worker->mutex */
};

/* An entry the log held at start. */
struct pending_entry {
    uint64_t index, term;
    uint32_t len;
    enum node_log_entry_type type;
    _Alignas(16) uint8_t body[]; /* as aligned as a proposal's memory: machines read it in place */
};

/* What the log holds of one replica: filled at start, or when a replica is opened again. */
struct pending {
    uint64_t group, replica_id;
    uint64_t term, vote;            /* 0: no hard state seen */
    uint64_t base_index, base_term; /* of the last snapshot record, 0 = none */
    uint8_t *base;                  /* its body, owned */
    uint32_t base_len;
    struct pending_entry **entries; /* owned, indexes without gap */
    uint32_t count, cap;
};

struct pending_set {
    struct pending **items; /* owned, sorted by (group, replica) */
    uint32_t count, cap;
};

struct host_metrics {
    struct metric_counter *proposals, *refused, *applied, *checkpoints, *checkpoint_failures;
    struct metric_histogram *commit, *apply;
    struct metric_gauge *inflight_bytes, *log_bytes;
};

struct replica_host {
    struct replica_host_options options;
    struct node_log *log;
    struct worker *workers;
    uint32_t worker_count;
    struct host_metrics metrics; /* handles, all NULL without a registry */
    _Atomic uint64_t inflight_bytes;
    _Atomic bool log_short; /* the disk is full: whoever holds the oldest segment is to let go of it */

    pthread_mutex_t mutex;
    pthread_cond_t changed; /* users of a replica fell to 0; checkpoint thread: something is due */
    struct replica *replicas;
    struct pending_set pending;
    uint64_t *closed_groups; /* opened and closed in this life: the log is read again */
    uint32_t closed_count, closed_cap;
    struct raft_net *net; /* loops and connections; NULL: not in a cluster */
    pthread_t checkpoint_thread;
    bool checkpoint_started, stopping;
};

/* replica_apply.c */
OMEN_CHECKED enum omen_err workers_start(struct replica_host *host, struct err *err);
void workers_stop(struct replica_host *host);
void replica_enqueue(struct replica *replica, struct work *work); /* replica->mutex held */
void worker_kick(struct worker *worker);
bool worker_turn(struct worker *worker); /* one replica's; false: none had work. The worker's thread alone */
void replica_stop(struct replica *replica, enum omen_err rc, const struct err *err); /* any thread */

/* replica_pending.c */
enum omen_err pending_replay(void *arg, const struct node_log_record *record); /* arg: struct pending_set */
struct pending *pending_take(struct pending_set *set, uint64_t group,
        uint64_t replica_id); /* removed; NULL = none */
struct pending *pending_take_group(struct pending_set *set, uint64_t group);
void pending_put(struct pending_set *set, struct pending *pending);
void pending_free(struct pending *pending);
void pending_set_fini(struct pending_set *set);

/* replica.c */
void replica_release_log(struct replica *replica);
struct replica *replica_new(struct replica_host *host, uint64_t group, uint64_t replica_id,
        uint64_t first_sequence, const struct replica_fsm *fsm);
void replica_free(struct replica *replica);
enum omen_err replica_busy(struct err *err, const char *what, uint64_t limit);
/* May it take of the log's reserve? Only asked of the machine while there is nothing else. */
bool replica_entry_is_vital(struct replica *replica, const void *entry, uint32_t len);
/* What an entry holds of the limits is given back. */
void replica_inflight_end(struct replica *replica, uint32_t len);

/* replica_raft.c and replica_net.c */
OMEN_CHECKED enum omen_err raft_net_open(struct replica_host *host, struct err *err);
void raft_net_close(struct replica_host *host);
void replica_raft_propose(struct replica *replica, struct work *work); /* admitted, mutex held */
void replica_raft_barrier(struct replica *replica, replica_done done, void *done_arg);
void replica_raft_release_log(struct replica *replica); /* the machine's durable sequence may have risen */
void replica_raft_drain(
        struct replica *replica); /* out of the loop's hands; nothing new is queued for apply */
void replica_raft_free(struct replica *replica);
void replica_raft_status(struct replica *replica, struct replica_status *status); /* mutex held */
bool replica_raft_is_short(
        const struct replica *replica); /* leads, and the disks of a majority are short of room */

/* replica_host.c */
OMEN_CHECKED enum omen_err log_append_wait(struct node_log *log, const struct node_log_record *records,
        uint32_t count, enum node_log_claim claim);
void checkpoint_wake(struct replica_host *host);
/* What the log holds for a replica about to be opened; empty when nothing. OMEN_EEXISTS when the group is
 * open. */
OMEN_CHECKED enum omen_err host_pending_take(struct replica_host *host, uint64_t group, uint64_t replica_id,
        struct pending **pending_out, struct err *err);
void host_pending_return(struct replica_host *host, struct pending *pending); /* the open failed */
void host_replica_add(struct replica_host *host, struct replica *replica);
void host_replica_remove(struct replica_host *host,
        struct replica *replica);                                    /* waits for the checkpoint thread */
void host_replica_closed(struct replica_host *host, uint64_t group); /* its pending entries are used up */
void host_group_drop(struct replica_host *host, uint64_t group, uint64_t replica_id);

static inline uint64_t replica_sequence(const struct replica *r, uint64_t index)
{
    return r->first_sequence + index;
}
static inline uint64_t replica_index(const struct replica *r, uint64_t sequence)
{
    return sequence > r->first_sequence ? sequence - r->first_sequence : 0;
}

#endif
