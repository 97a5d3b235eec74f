/* What the files of node/member/ share; nobody else includes this.
 *
 *   member.c             life, threads, what routers ask
 *   member_join.c        init, being taken in, taking others in, hello
 *   member_base.c        copies of the state, to and from other nodes
 *   member_reconcile.c   replicas here as the state wants them
 *   member_report.c      what the leader is told, and tells
 *   member_clock.c       whose clock is off, of the reports
 *   member_digest.c      whose points are not those of the others, of the reports
 *   member_peer.c        requests of other nodes
 *   member_drive.c       operations, at the leader
 *   member_group.c       who votes in the cluster group, at the leader
 *   member_admin.c       requests of operators; member_status.c: the large one
 *   member_plan.c        of those: draining and rebalancing, round by round
 *   member_version.c     the level up to which formats may be proposed
 *   member_collections.c changes of collections and aliases
 *   member_propose.c     entries of the cluster group; member_wait.c: waiting for an answer
 *
 * Locks: `lock` guards what follows it in struct member and is held for moments only, never while another room is
 * called. */
#ifndef OMEN_NODE_MEMBER_MEMBER_IMPL_H
#define OMEN_NODE_MEMBER_MEMBER_IMPL_H

#include <pthread.h>
#include <stdatomic.h>

#include "common/placement/map_index.h"
#include "node/cluster/cluster.h"
#include "node/fetch.h"
#include "node/member/clock_skew.h"
#include "node/member/fields.h"
#include "node/member/member.h"
#include "node/member/peer.h"
#include "node/member/replica_digests.h"
#include "node/node_impl.h"

#define MEMBER_TICK_MS 100u          /* how often the agent looks at the state */
#define MEMBER_REPORT_MS 1000u       /* between reports without a reason */
#define MEMBER_HELLO_MS 1000u        /* between rounds of hello; five times as long once all have answered */
#define MEMBER_DOWN_NS 5000000000ull /* no report for so long: down */
#define MEMBER_PEER_MS 2000u         /* a peer is waited for */
#define MEMBER_COMMAND_MS 5000u      /* a command to a shard's leader */
#define MEMBER_DRIVE_MS 200u         /* between turns of the driver */
#define MEMBER_SETTLE_NS 5000000000ull /* a new leader judges nobody before it could have heard of all */
#define MEMBER_CATALOG_MS 10000u       /* an entry of the cluster group is waited for */
#define MEMBER_ADMIN_THREADS 2u
#define MEMBER_ADMIN_QUEUE_MAX 64u
#define MEMBER_NODES_MAX GROUP_MEMBERS_MAX /* each hosts a replica of the cluster group */
#define MEMBER_SEEDS_MAX 128u
#define MEMBER_TAILS_MAX 64u          /* full tails that the others are told of, of a node; more are let be */
#define MEMBER_REPLICAS_MAX 16384u    /* rows of one report */
#define MEMBER_MOVES_PER_NODE 2u      /* operations that copy from or to one node at once */
#define MEMBER_RETRY_NS 1000000000ull /* a replica that could not be opened is tried again */

enum member_phase { MEMBER_UNJOINED, MEMBER_OPENING, MEMBER_MEMBER, MEMBER_REMOVED };

/* One replica as its node reports it. */
struct report_row {
    uint64_t group, replica_id, term, applied, bytes, points, fetch_done, fetch_total;
    bool leader, ready, fetching, damaged, voter, standby, is_member, tail_full;
    bool stopped; /* at an entry that it cannot apply, or at an error of its own */
    struct replica_digests digests;
};

/* A replica that the others of its shard contradict; replica_id 0 = none. */
struct odd_replica {
    uint64_t shard_id, replica_id, sequence; /* sequence: at which */
    uint32_t node_id;
};

/* What a node knows of its clock. */
struct clock_report {
    bool off;        /* it takes itself for one that may not lead */
    uint32_t leader; /* whose monotone clock the offset is against; 0 = not known */
    uint64_t life;   /* of that clock */
    struct clock_span offset;
};

/* What a node says of itself, and when it was heard. */
struct node_report {
    uint32_t node_id; /* 0 = none */
    uint64_t heard_ns;
    uint64_t disk_free, disk_total;
    struct node_memory memory;
    uint32_t level; /* of its build: common/feature.h */
    bool disk_full, memory_full;
    struct clock_report clock;
    char why[200];           /* not ready; "" = ready */
    struct report_row *rows; /* [count] owned, ascending by group */
    uint32_t count;
};

/* What this node knows of another, from hellos and from the leader's answers. */
struct node_view {
    uint32_t node_id;                                                                   /* 0 = free */
    uint64_t hello_ns;                                                                  /* last answer */
    char address[OMEN_ADDRESS_BYTES_MAX + 1], raft_address[OMEN_ADDRESS_BYTES_MAX + 1]; /* as it says now */
    char raft_told[OMEN_ADDRESS_BYTES_MAX + 1];   /* what our transport was told */
    bool disk_full, memory_full, clock_off, down; /* this and below: as the leader says */
    uint64_t tails_full
            [MEMBER_TAILS_MAX]; /* groups whose replica there lets no more points wait for an index */
    uint32_t tails_full_count;
};

struct plan_trouble {
    uint64_t plan_id; /* 0 = free */
    char text[200];
};

struct member {
    struct node *node;
    struct peers *peers;
    struct search_pool *admin;
    struct shard_peers shard_peers;
    struct replica_fsm group_fsm; /* the catalog's */
    struct fetch base_fetch;
    char base_dir[NODE_PATH_BYTES_MAX]; /* the fetcher's */
    _Atomic enum member_phase phase;
    _Atomic bool stopping, report_soon, shards_open;
    _Atomic bool group_stopped;    /* `stopped` is written, once */
    _Atomic uint64_t led_since_ns; /* 0: does not lead the cluster group */
    pthread_t agent, talker, driver;
    bool agent_started, talker_started, driver_started;
    uint64_t reconciled;  /* the agent's: sequence of the state it has made true */
    bool reconcile_again; /* something could not be done */
    uint64_t retry_ns, checkpoint_ns;
    uint64_t spread_ns;          /* the driver's: no transfer before */
    uint64_t plans_ns;           /* the driver's: no look at plans before */
    uint64_t digests_ns, odd_ns; /* the driver's: no look at digests, no other odd replica before */
    uint64_t checkpointed;       /* sequence */
    struct clock_watch clock;    /* the talker's */
    _Atomic uint64_t clock_life; /* of our monotone clock: another after a restart or a step */

    pthread_mutex_t lock;
    pthread_cond_t wake;        /* monotonic; broadcast when something is to be looked at at once */
    struct op_id init_asked_as; /* who asked for the cluster that is being made here */
    bool founding;              /* init is under way here, or was and made the cluster */
    struct plan_trouble plan_troubles[CLUSTER_PLANS_MAX]; /* what keeps plans from going on */
    char stopped[200]; /* why the machine of the cluster group has; "" = it has not */
    char trouble[200]; /* why it is not a member yet, or why a replica could not be opened */
    char seeds[MEMBER_SEEDS_MAX]
              [OMEN_ADDRESS_BYTES_MAX + 1]; /* cluster.join, PEERS, and who said that it takes us in */
    uint32_t seed_count;
    struct node_view views[MEMBER_NODES_MAX];
    struct node_report reports[MEMBER_NODES_MAX]; /* at the leader */
    struct odd_replica odd; /* at the leader: the last that was found; its node is told */
};

/* member.c */
uint64_t member_now_ns(const struct member *m);
void member_wake(struct member *m);
/* Sleep until woken or `ms` have passed; false: stopping. */
bool member_sleep(struct member *m, uint32_t ms);
void member_trouble(struct member *m, const struct err *err); /* NULL: none */
/* Open host, catalog and the cluster group under the identity; then it is a MEMBER. */
OMEN_CHECKED enum omen_err member_open(struct member *m, struct err *err);
bool member_is_open(const struct member *m);
/* The state, referenced; cluster_state_unref it. Only when it is open. */
struct cluster_state *member_state(struct member *m);
uint32_t member_id(const struct member *m);

/* member_wait.c: one answer of a replica, by replica_done. Two own it, who waits and who answers. */
struct waiter {
    _Atomic uint32_t refs;
    pthread_mutex_t mutex;
    pthread_cond_t done; /* monotonic */
    bool finished;       /* the rest is written before */
    enum omen_err result;
    struct err err;
    struct catalog_outcome outcome; /* of a proposal: its arg, written by apply */
};
struct waiter *waiter_new(void);
void waiter_done(void *arg, enum omen_err result, uint64_t sequence, const struct err *err); /* arg: it */
/* false: no answer within `ms`. `*err` is set when the result is not OK. */
bool waiter_wait(struct waiter *w, uint32_t ms, enum omen_err *result_out, struct err *err);
void waiter_unref(struct waiter *w); /* by who waited, once */

/* member_propose.c: record an entry and wait until it is applied here. Takes `entry`. OMEN_ENOTLEADER: `leader_out`
 * (or NULL) is the node that leads, 0 = not known. OMEN_EUNKNOWN: it may still be applied. Typed rejections as the
 * machine gives them. */
OMEN_CHECKED enum omen_err member_propose(struct member *m, uint8_t *entry, uint32_t len,
        struct catalog_outcome *outcome_out, uint32_t *leader_out, struct err *err);
/* A change with the wall clock's time. */
OMEN_CHECKED enum omen_err member_change(struct member *m, const struct cluster_change *change,
        struct catalog_outcome *outcome_out, uint32_t *leader_out, struct err *err);
/* Whether a change may be proposed under this op id, as cluster_op_id_timely; also what member_barrier says. */
OMEN_CHECKED enum omen_err member_op_id_timely(struct member *m, const struct op_id *asked_as, uint32_t kind,
        uint32_t *leader_out, struct err *err);
/* Wait until everything that was recorded so far is applied here. OMEN_ENOTLEADER, OMEN_EUNAVAILABLE: nothing was
 * done. */
OMEN_CHECKED enum omen_err member_barrier(struct member *m, uint32_t *leader_out, struct err *err);
uint32_t member_leader(struct member *m); /* node that leads the cluster group; 0 = not known */
bool member_leads(struct member *m);

/* member_join.c */
void member_join_turn(struct member *m); /* agent, UNJOINED: ask the seeds */
/* Begin a cluster with this node as its first. */
OMEN_CHECKED enum omen_err member_found(struct member *m, const char *name, const struct op_id *asked_as,
        struct err *err);
void member_found_turn(struct member *m);  /* agent: the first entry, if it is not there yet */
void member_hello_round(struct member *m); /* talker */
void peer_hello(struct member *m, struct doc request, struct doc_builder *reply);
OMEN_CHECKED enum omen_err peer_join(struct member *m, struct doc request, struct doc_builder *reply,
        struct err *err);
OMEN_CHECKED enum omen_err peer_adopt(struct member *m, struct doc request, struct doc_builder *reply,
        struct err *err);
void member_seed_add(struct member *m, const char *address); /* one more to ask; known ones are left out */
void member_seeds_read(struct member *m);                    /* those of the PEERS file */
void member_peers_refresh(struct member *m,
        const struct cluster_state *state); /* where raft finds the others */
void member_addresses_turn(struct member *m, const struct cluster_state *state); /* driver */
struct node_view *member_view(struct member *m, uint32_t node_id,
        bool make); /* needs lock; NULL = none, or no room */

/* member_base.c */
void member_base_init(struct member *m);     /* ship and fetcher run */
void member_base_register(struct member *m); /* the cluster group is open */
void member_base_fetch(void *self, uint64_t sequence, uint64_t node_id);
OMEN_CHECKED enum omen_err member_base_switch(void *self, uint64_t sequence, struct err *err);

/* member_reconcile.c; agent */
void member_reconcile_turn(struct member *m);

/* member_report.c */
void member_report_round(struct member *m); /* talker */
OMEN_CHECKED enum omen_err peer_report(struct member *m, struct doc request, struct doc_builder *reply,
        struct err *err);
/* Needs lock; NULL = not heard of lately. */
const struct node_report *member_report_of(struct member *m, uint32_t node_id);
/* For how long a node has not been heard of, by this leader; 0: it is up. Needs lock. */
uint64_t member_silence_ns(struct member *m, uint32_t node_id);
const struct report_row *report_row_of(const struct node_report *report, uint64_t group, uint64_t replica_id);
/* What the leader's reports say of a shard. */
struct shard_report {
    uint32_t leader_node;           /* 0 = nobody says that it leads */
    uint64_t leader_replica, bytes; /* bytes: the largest */
    uint32_t ready;                 /* voters that are */
};
void member_shard_report(struct member *m, const struct map_shard *shard, struct shard_report *out);
void reports_clear(struct member *m);

/* member_clock.c: what reports and their answers say of clocks (clock_skew.h). */
void clock_begin(struct member *m);
void clock_look(struct member *m); /* talker, each tick: have the clocks stepped? */
void clock_report_put(struct member *m, struct doc_builder *b); /* talker */
void clock_report_parse(struct doc request, struct clock_report *out);
void clock_answer_put(struct member *m, uint32_t node_id, struct doc_builder *reply); /* at the leader */
/* Talker; of a call that began at `began_ns` of our monotone clock and has just ended. */
void clock_answer_take(struct member *m, struct doc reply, uint32_t leader, uint64_t began_ns);
/* Where the median is by the reports of now. Needs lock; false: not known. */
bool clock_median_now(struct member *m, const struct cluster_state *state, struct clock_span *median_out);
/* How far a node is off it, for a status. Needs lock; `median` NULL: not known. */
void clock_status_put(struct member *m, const struct node_report *r, const struct clock_span *median,
        struct doc_builder *b);

/* member_digest.c: digests of replicas in reports, and the replica that the others contradict (replica_digests.h) */
void digests_put(struct doc_builder *b, const struct replica_digests *d); /* into a row */
void digests_take(struct doc_iter *it, struct replica_digests *out);
void member_digest_turn(struct member *m, const struct map_index *index,
        const struct cluster_state *state);                                            /* driver */
void digest_answer_put(struct member *m, uint32_t node_id, struct doc_builder *reply); /* at the leader */
void digest_answer_take(struct member *m, struct doc reply);                           /* talker */
/* Is replica `r` of the shard the odd one, or, where there is none, contradicted by another? Needs lock. */
bool member_replica_differs(struct member *m, const struct map_shard *shard, uint32_t r);

/* member_peer.c: a command to the leader of a group, here or elsewhere. */
enum member_command { COMMAND_ADD, COMMAND_STANDBY, COMMAND_VOTER, COMMAND_REMOVE, COMMAND_TRANSFER };
OMEN_CHECKED enum omen_err member_command(struct member *m, uint32_t leader_node, uint64_t group,
        enum member_command command, uint64_t replica_id, uint32_t node_id, struct err *err);
OMEN_CHECKED enum omen_err peer_command(struct member *m, struct doc request, struct err *err);
/* One on this node's replica of a group, waited for. */
OMEN_CHECKED enum omen_err replica_command(struct replica *replica, enum member_command command,
        uint64_t replica_id, uint32_t node_id, struct err *err);

/* member_drive.c, member_group.c; driver, leader only */
void member_drive_turn(struct member *m, const struct cluster_state *state);
void member_plans_turn(struct member *m, const struct cluster_state *state); /* member_plan.c */
void member_group_turn(struct member *m, const struct cluster_state *state);
void member_version_turn(struct member *m, const struct cluster_state *state); /* member_version.c */

/* member_admin.c, member_plan.c, member_status.c: requests of operators, at the leader */

/* What is asked, and under which op id; client 0 = none. */
struct admin_ask {
    struct doc doc; /* an object {"do": action, ..} */
    struct op_id asked_as;
};

OMEN_CHECKED enum omen_err node_known(const struct cluster_state *state, uint32_t node_id, struct err *err);
OMEN_CHECKED enum omen_err node_state_set(struct member *m, const struct admin_ask *ask, uint32_t node_id,
        enum cluster_node_state state, uint32_t *leader_out, struct err *err);
OMEN_CHECKED enum omen_err plan_rebalance_ask(struct member *m, const struct admin_ask *ask,
        struct doc_builder *reply, uint32_t *leader_out, struct err *err);
OMEN_CHECKED enum omen_err plan_drain_ask(struct member *m, const struct admin_ask *ask,
        struct doc_builder *reply, uint32_t *leader_out, struct err *err);
OMEN_CHECKED enum omen_err version_ask(struct member *m, const struct admin_ask *ask,
        struct doc_builder *reply, uint32_t *leader_out, struct err *err);
/* What was told of a change of the version. */
void version_tell(const struct cluster_state *state, const struct cluster_result *result,
        struct doc_builder *reply);
void plans_put(struct member *m, const struct cluster_state *state, struct doc_builder *b); /* of a status */
/* What was told of a plan that was begun. */
void plan_tell(const struct cluster_state *state, const struct cluster_result *result,
        struct doc_builder *reply);
void member_status_reply(struct member *m, struct doc_builder *reply);

#endif
