/* What replica_raft.c, replica_raft_barrier.c, replica_raft_open.c and replica_net.c share; nobody else
 * includes this.
 *
 * A replica of a Raft group lives on one loop (hash of the group). Fields marked (m) are guarded by the
 * replica's mutex, the rest belong to the loop. */
#ifndef OMEN_CONSENSUS_REPLICA_RAFT_IMPL_H
#define OMEN_CONSENSUS_REPLICA_RAFT_IMPL_H

#include "consensus/raft_group.h"
#include "consensus/replica_impl.h"
#include "consensus/transport.h"

#define NET_BUCKETS 256u /* of a loop's table of groups */
#define NET_LOOPS_MAX 64u
#define BARRIER_ASK_MS 2000u  /* a leader's answer is waited for that long */
#define BASE_REFRESH_MS 5000u /* how often raft's own entries after the base are moved below it */

/* Another replica that waits for our next barrier. */
struct barrier_asker {
    struct barrier_asker *next;
    uint64_t node_id, replica_id, token;
};

/* What waits for one barrier entry. */
struct barrier_batch {
    struct work *works;
    struct barrier_asker *askers;
};

struct replica_raft {
    struct replica *replica;
    struct net_loop *loop;
    struct raft_group *group;
    struct replica_raft *next; /* in its bucket */
    void (*on_leader_change)(void *arg, bool leads, const struct replica_member *leader, uint64_t term);
    void *on_leader_arg;

    struct work *proposals, **proposals_tail; /* (m) */
    struct work *barriers, **barriers_tail;   /* (m) */
    bool durable_rose;                        /* (m) */
    bool posted;                              /* (m) the task below */
    struct loop_task task;
    bool drained;                 /* (m) nothing is in the log's hands any more, and nothing will be */
    struct replica_status status; /* (m) */
    bool level;                   /* (m) the group has caught up: what is applied has when it reaches this: */
    uint64_t level_sequence;      /* (m) */
    struct replica_member members[GROUP_MEMBERS_MAX];     /* (m) */
    struct replica_follower followers[GROUP_MEMBERS_MAX]; /* (m) */
    uint32_t follower_count;                              /* (m) */
    struct replica_member leader;                         /* (m) replica_id 0: not known */

    bool stopping;
    uint64_t durable;                   /* index of the machine's last durable command */
    uint64_t base_ms;                   /* when the base was last moved */
    bool barrier_out;                   /* one entry is on its way */
    struct barrier_asker *askers;       /* wait for the next one */
    struct work *asked;                 /* wait for the leader's answer to `token` */
    uint64_t token, asked_of, asked_ms; /* asked_of: the leader's replica id */
    struct work *held;                  /* answered: wait until `held_index` is committed here */
    uint64_t held_index;
    bool leads, told;
    _Atomic uint64_t keep_bytes; /* replica_keep_log's */
    bool inert;                  /* the machine stopped: this replica takes no part any more */
    _Atomic bool leading;        /* for replica_silent_ms */
    _Atomic bool majority_short; /* for replica_raft_is_short */
    _Atomic uint64_t heard_ms;   /* the same */
    uint64_t told_leader, told_term;
};

struct net_loop {
    struct raft_net *net;
    struct loop *loop;
    bool first; /* has the transport */
    struct replica_raft *buckets[NET_BUCKETS];
};

struct raft_net {
    struct replica_host *host;
    struct net_loop *loops;
    uint32_t loop_count;
    struct transport *transport;
    _Atomic uint64_t homeless;
    pthread_mutex_t mutex; /* guards closed */
    pthread_cond_t cond;
    bool closed;
};

/* replica_net.c */
struct net_loop *net_loop_of(struct raft_net *net, uint64_t group);
void net_add(struct replica_raft *m);
void net_remove(struct replica_raft *m);
uint64_t net_now_ms(const struct raft_net *net);
uint32_t net_random(void);

/* A change of members on its way. */
struct change_request {
    struct loop_task task; /* first */
    struct replica_raft *m;
    enum group_change change;
    struct replica_member member;
    replica_done done;
    void *done_arg;
};

/* replica_raft.c */
extern const struct group_io raft_io;
void raft_task_run(struct loop_task *task); /* replica_raft.task */
void raft_status_refresh(struct replica_raft *m);
void raft_change_end(struct change_request *c, enum omen_err rc, const struct err *err);
void raft_proposal_end(struct replica *r, struct work *work, enum omen_err rc);
/* The sentence to a code; returns it. */
enum omen_err raft_refusal(struct replica *r, enum omen_err rc, struct err *err);
void replica_raft_tick(struct replica_raft *m, uint64_t now_ms);
void replica_raft_frame(struct replica_raft *m, struct frame *frame, uint64_t node_id, uint64_t now_ms);

/* replica_raft_open.c: entries become slots; their memory goes over. */
OMEN_CHECKED enum omen_err raft_load_make(struct pending *p, struct group_load *load, struct err *err);

/* replica_raft_barrier.c; loop only */
void barriers_run(struct replica_raft *m, uint64_t now_ms); /* whatever waits goes on its way */
void barriers_tick(struct replica_raft *m, uint64_t now_ms);
void barriers_committed(struct replica_raft *m, struct barrier_batch *batch, uint64_t sequence);
void barriers_lost(struct replica_raft *m, struct barrier_batch *batch, enum omen_err rc);
void barriers_release(struct replica_raft *m,
        uint64_t committed); /* commands up to here are committed here */
void barriers_frame(void *arg, enum frame_type type, uint64_t node_id, uint64_t from,
        const struct frame_barrier *barrier);
void barriers_drain(struct replica_raft *m);

#endif
