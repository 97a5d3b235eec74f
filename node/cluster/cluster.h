/* The cluster group's state: which nodes, collections, aliases and shards there are, how they are placed, and which
 * operations are under way. A replicated state machine, of one replica on a single node, of one per node in a
 * cluster.
 *
 * Deterministic: everything a change needs is in its entry; ids come from counters that are part of the state and
 * never reuse a value (CORRECTNESS I3, C6). A change that cannot be done is a typed rejection, the same on every
 * replica. The state is an immutable snapshot that a change replaces as a whole; readers hold references. */
#ifndef OMEN_NODE_CLUSTER_CLUSTER_H
#define OMEN_NODE_CLUSTER_CLUSTER_H

#include "common/feature.h"
#include "common/placement/shard_call.h"
#include "common/vfs.h"
#include "consensus/replica.h"

#define CATALOG_GROUP 1u /* its group id; shards get ids from 2 on */
#define CATALOG_REPLICATION_MAX 8u
#define CATALOG_SHARDS_MAX 65536u /* of all collections */
#define CATALOG_FILE_BYTES_MAX (256u << 20)
#define CATALOG_ENTRY_BYTES_MAX (64u << 10)
#define CLUSTER_LABELS_BYTES_MAX 255
#define CLUSTER_NAME_BYTES_MAX 63
#define CLUSTER_HISTORY_MAX 64u
#define CLUSTER_RESULTS_MAX 1024u
#define CLUSTER_RESULT_MS 600000u /* of log time, for which an outcome is kept, if that many fit */
#define CLUSTER_AHEAD_MS                                                                                     \
    5000u /* an op id that was issued further ahead of the leader's clock is refused before it is recorded */
#define CLUSTER_OPS_MAX 4096u
#define CLUSTER_MOVES_MAX 1024u /* of one OPS_START, of one round of a plan */
#define CLUSTER_PLANS_MAX 65u   /* a drain of each node, and one rebalance */
#define CLUSTER_PLAN_HISTORY_MAX 16u
#define CLUSTER_PLAN_ROUNDS_MAX 256u /* of a rebalance */
#define CLUSTER_NODES_MAX                                                                                    \
    64u /* = GROUP_MEMBERS_MAX: every node hosts a replica of the cluster group; removed ones leave the table */

enum cluster_node_state { CLUSTER_NODE_ACTIVE = 1, CLUSTER_NODE_DRAINING = 2, CLUSTER_NODE_REMOVED = 3 };

struct cluster_node {
    uint32_t node_id; /* never 0, never reused */
    enum cluster_node_state state;
    uint64_t catalog_replica_id;                   /* its replica of the cluster group */
    uint64_t birth;                                /* of its disk's contents */
    char address[OMEN_ADDRESS_BYTES_MAX + 1];      /* node port, "tcp://host:port" */
    char raft_address[OMEN_ADDRESS_BYTES_MAX + 1]; /* "host:port" */
    char labels[CLUSTER_LABELS_BYTES_MAX +
            1]; /* up to the first comma: the failure domain; "" = the node itself */
    uint64_t added_ms;
};

enum cluster_op_step { OP_ADD = 1, OP_CATCH_UP = 2, OP_SWITCH = 3, OP_CANCELING = 4, OP_END = 5 };
enum cluster_op_why { OP_WHY_MOVE = 1, OP_WHY_REBALANCE = 2, OP_WHY_DRAIN = 3, OP_WHY_DAMAGED = 4 };
const char *cluster_op_step_name(
        enum cluster_op_step step); /* "add", "catch_up", "switch", "canceling", "end" */
const char *cluster_op_why_name(enum cluster_op_why why); /* "move", "rebalance", "drain", "damaged" */

struct cluster_op {
    uint64_t op_id, plan_id, shard_id, collection_id;
    uint64_t from_replica, to_replica; /* 0 = absent */
    uint32_t from_node, to_node;       /* 0 = absent; may be equal: a replica replaced where it is */
    enum cluster_op_step step;
    enum cluster_op_why why;
    uint64_t started_ms, changed_ms;
    uint64_t bytes; /* of a plan's: what its replica held when it was begun */
    bool canceled;  /* in the history: it was */
    bool given_up;  /* by the driver, since the target was down for too long; then it is canceled as well */
};

/* What is to be reached by moves, some rounds of them: after each it is planned again, until nothing is left to move. */
struct cluster_plan {
    uint64_t plan_id;
    enum cluster_op_why why; /* REBALANCE or DRAIN */
    uint32_t node_id;        /* DRAIN: of which */
    uint64_t started_ms, changed_ms;
    uint32_t rounds;                /* begun */
    uint32_t begun, done, canceled; /* moves of all rounds; the others are under way */
    uint32_t ahead;                 /* moves of later rounds, as it looked when the last was begun */
    uint64_t bytes_begun, bytes_done, bytes_ahead;
    bool ending; /* it was canceled: no further round, it ends with its operations */
};

struct cluster_shard {
    uint64_t shard_id;
    uint32_t initial_count; /* the members that its group was begun with */
    uint64_t initial_replica_ids[OMEN_REPLICAS_MAX];
    uint32_t initial_node_ids[OMEN_REPLICAS_MAX];
};

/* A change that was made and may be asked for again under its op id: what was told then. Several kinds may share one id:
 * a drain is two changes. */
struct cluster_result {
    struct op_id asked_as;
    uint64_t log_time_ms;
    uint32_t kind, node_id; /* as in the outcome */
    uint64_t collection_id, catalog_replica_id, plan_id, first_op_id;
    uint32_t op_count;
};

struct cluster_state {
    uint64_t sequence;   /* last applied entry */
    uint64_t cluster_id; /* 0: no CLUSTER_INIT yet, or a single node's */
    char name[CLUSTER_NAME_BYTES_MAX + 1];
    uint32_t version;  /* the level up to which formats may be proposed; never lowered (common/feature.h) */
    bool version_held; /* it is not raised until it is let go */
    uint64_t throttle_bytes_per_s; /* of copies between nodes, per node; 0 = none */
    uint64_t next_collection, next_group, next_replica, next_node, next_op;
    struct cluster_node *nodes; /* [node_count] ascending by id */
    uint32_t node_count;
    struct cluster_op *ops; /* [op_count] ascending by id: under way */
    uint32_t op_count;
    struct cluster_op *history; /* [history_count] ended, oldest first */
    uint32_t history_count;
    struct cluster_plan *plans; /* [plan_count] ascending by id: under way */
    uint32_t plan_count;
    struct cluster_plan *plan_history; /* [plan_history_count] ended, oldest first */
    uint32_t plan_history_count;
    struct cluster_shard *shards; /* [shard_count] ascending by id */
    uint32_t shard_count;
    struct cluster_result *results; /* [result_count] in order of the log */
    uint32_t result_count;
    uint64_t results_lost_ms; /* an op id that was issued up to then may be one that is not kept any more */
    struct map *map;          /* one reference of ours */
    _Atomic uint32_t refs;
};

struct catalog;
struct cluster_state *cluster_state_acquire(struct catalog *catalog); /* newest applied; any thread */
void cluster_state_unref(struct cluster_state *state);                /* NULL is fine */
const struct cluster_node *cluster_state_node(const struct cluster_state *state,
        uint32_t node_id); /* NULL: unknown */
const struct cluster_shard *cluster_state_shard(const struct cluster_state *state, uint64_t shard_id);
/* Under way; NULL: none. */
const struct cluster_plan *cluster_state_plan(const struct cluster_state *state, uint64_t plan_id);
/* The drain of a node, or with 0 the rebalance, that is under way; NULL: none. */
const struct cluster_plan *cluster_state_plan_for(const struct cluster_state *state, uint32_t node_id);
/* The operation of a shard, of which there is one at most; NULL: none. */
const struct cluster_op *cluster_state_op_of(const struct cluster_state *state, uint64_t shard_id);
/* A shard that names the node, by the map or an operation; 0: none does. */
uint64_t cluster_state_shard_on(const struct cluster_state *state, uint32_t node_id);
/* OMEN_EINVAL: the op id was issued so far ahead of `now_ms`, the leader's clock, that keeping and forgetting it would
 * have the ids of all clients before then refused. Asked before a change is proposed, and only where it is known, behind
 * a barrier, that it was not made already: a leader whose clock is a little behind the last one's must not say that it
 * never was. */
OMEN_CHECKED enum omen_err cluster_op_id_timely(const struct op_id *asked_as, uint64_t now_ms,
        struct err *err);
/* What became of a change of this kind that was asked for under this id; NULL: not made, or too long ago. */
const struct cluster_result *cluster_state_result(const struct cluster_state *state,
        const struct op_id *asked_as, uint32_t kind);
/* Whether what fails one may fail the other at the same time: the same node, or the same first label. */
bool cluster_same_domain(const struct cluster_node *a, const struct cluster_node *b);

/* ---- changes ---- */

enum cluster_change_kind { /* beside catalog_change_kind; one numbering of entries */
    CLUSTER_CHANGE_INIT = 16,
    CLUSTER_CHANGE_NODE_ADD = 17,
    CLUSTER_CHANGE_NODE_UPDATE = 18,
    CLUSTER_CHANGE_NODE_STATE = 19,
    CLUSTER_CHANGE_OPS_START = 20,
    CLUSTER_CHANGE_OP_STEP = 21,
    CLUSTER_CHANGE_OP_CANCEL = 22,
    CLUSTER_CHANGE_THROTTLE = 23,
    CLUSTER_CHANGE_PLAN_START = 24, /* a drain also makes its node DRAINING */
    CLUSTER_CHANGE_PLAN_STEP = 25,  /* the next round; without moves: nothing is left, it ends */
    CLUSTER_CHANGE_VERSION_RAISE = 26,
    CLUSTER_CHANGE_VERSION_HOLD = 27,
};
/* What a change is said with; feature_may(state->version, ..) tells whether it may be proposed. The first RAISE is
 * what makes itself readable: every node has said by then that it is. */
enum feature cluster_change_feature(enum cluster_change_kind kind);

/* A move as it is asked for: from_replica 0 = one more replica, to_node 0 = one less. */
struct cluster_move {
    uint64_t shard_id, from_replica;
    uint32_t to_node;
    uint64_t bytes; /* PLAN_START, PLAN_STEP: of the replica, as far as is known */
};

struct cluster_change {
    enum cluster_change_kind kind;
    uint64_t cluster_id, incarnation;      /* INIT */
    char name[CLUSTER_NAME_BYTES_MAX + 1]; /* INIT */
    uint64_t birth;                        /* INIT, NODE_ADD */
    uint32_t
            node_id; /* NODE_UPDATE, NODE_STATE, PLAN_START of a drain; VERSION_RAISE: the last that was added */
    uint32_t
            level; /* INIT, NODE_ADD: of the node's build, 0 = of one that does not say; VERSION_RAISE: to which */
    bool held; /* VERSION_HOLD */
    enum cluster_node_state node_state;
    char address[OMEN_ADDRESS_BYTES_MAX + 1],
            raft_address[OMEN_ADDRESS_BYTES_MAX + 1]; /* INIT, NODE_ADD, NODE_UPDATE */
    char labels[CLUSTER_LABELS_BYTES_MAX + 1];
    enum cluster_op_why why;          /* OPS_START, PLAN_START */
    const struct cluster_move *moves; /* OPS_START, PLAN_START, PLAN_STEP [move_count], borrowed */
    uint32_t move_count;
    uint32_t ahead; /* PLAN_*: moves of later rounds, as it looks now, and their bytes */
    uint64_t bytes_ahead;
    uint64_t op_id, plan_id; /* OP_STEP: op_id; PLAN_STEP: plan_id; OP_CANCEL: one of them, both 0 = all */
    enum cluster_op_step step_from, step_to; /* OP_STEP */
    uint64_t throttle_bytes_per_s;           /* THROTTLE */
    struct op_id asked_as;                   /* by whoever may ask again; client 0 = none */
};
/* The same for a change of the cluster. */
OMEN_CHECKED enum omen_err cluster_entry_encode(const struct cluster_change *change, uint64_t log_time_ms,
        uint8_t **entry_out, uint32_t *len_out);

/* What became of a proposed change: given as the proposal's arg. */
struct catalog_outcome {
    enum omen_err code;
    struct err err;
    uint64_t collection_id;      /* created, dropped, or the alias's target */
    uint32_t node_id;            /* INIT, NODE_ADD */
    uint64_t catalog_replica_id; /* INIT, NODE_ADD */
    uint64_t plan_id;            /* OPS_START, PLAN_* */
    uint64_t first_op_id;        /* OPS_START, PLAN_*: the others follow; OP_CANCEL: unused */
    uint32_t op_count;           /* OPS_START, PLAN_*: begun; OP_CANCEL: canceled */
};

/* Read `dir`/CATALOG, or begin empty under `incarnation`. OMEN_ECORRUPT names the file; a file of another
 * incarnation is one of those. */
OMEN_CHECKED enum omen_err catalog_open(struct vfs *vfs, const char *dir, uint64_t incarnation,
        struct catalog **catalog_out, struct err *err);
void catalog_close(struct catalog *catalog);
/* To be hosted as group CATALOG_GROUP; borrows the catalog. */
void catalog_fsm(struct catalog *catalog, struct replica_fsm *fsm_out);
/* The newest applied map, referenced: map_unref it. Any thread. */
struct map *catalog_map(struct catalog *catalog);
/* The cluster's version, as applied here: it may be higher by now. Any thread, cheap. */
uint32_t catalog_version(struct catalog *catalog);
/* Every group id given out so far is below this. */
uint64_t catalog_next_group(struct catalog *catalog);
/* The whole state as the bytes of a CATALOG file, appended to `out` (out->failed: no memory), and the sequence it
 * stands at. */
void catalog_export(struct catalog *catalog, struct buf *out, uint64_t *sequence_out);
/* Take over another replica's state when it is newer: durable, then visible. Not beside apply. */
OMEN_CHECKED enum omen_err catalog_import_check(struct catalog *catalog, struct bytes bytes,
        struct err *err); /* would it */
OMEN_CHECKED enum omen_err catalog_import(struct catalog *catalog, struct bytes bytes, struct err *err);
/* A change of collections or aliases as an entry to propose (mem_free), a multiple of 8 bytes. `node_ids`
 * [node_count], at most CLUSTER_NODES_MAX: where shards of a new collection may be placed, the preferred first; those
 * from `willing` on are a last resort, and so are active nodes that are not named. willing == node_count: none is.
 * OMEN_ENOMEM only. */
OMEN_CHECKED enum omen_err catalog_entry_encode(const struct catalog_change *change, uint64_t log_time_ms,
        const uint32_t *node_ids, uint32_t node_count, uint32_t willing, uint8_t **entry_out,
        uint32_t *len_out);

#endif
