/* Which replicas should move where: pure functions over the cluster's state and the sizes that nodes reported.
 * Nothing here is replicated: the moves are proposed, and checked again when they are recorded (OPS_START).
 *
 * No plan puts two replicas of a shard on one node, or more of them into one failure domain than there were; shards
 * with an operation under way are left alone, and count where they go. Threads: any. */
#ifndef OMEN_NODE_CLUSTER_PLAN_H
#define OMEN_NODE_CLUSTER_PLAN_H

#include "node/cluster/cluster.h"

#define PLAN_STUCK_NAMED 4u

struct plan_size {            /* ascending by shard */
    uint64_t shard_id, bytes; /* of one replica */
};

struct plan_move {
    uint64_t shard_id, collection_id, from_replica;
    uint32_t from_node, to_node;
    uint32_t round; /* from 1; of plan_rebalance_rounds */
    uint64_t bytes;
    char why[120]; /* for people */
};

/* Moves that even out bytes, and replicas of empty shards, over the active nodes, the largest first; of the plans
 * that end at least as even, nearly the one that moves least (plan_rebalance.c has the rule). Replicas that share a
 * failure domain without need are moved apart as well. None when every node is within a twentieth of the mean, or
 * no move would help enough.
 *
 * At most one replica of a shard is moved, and at most CLUSTER_MOVES_MAX in all: where more is needed, as when
 * several nodes came at once, plan again when these have ended (plan_rebalance_rounds). That ends: every round brings
 * down how many replicas share a domain without need, or else how much lies above the mean, by 4/9 of what it moves.
 *
 * moves_out: [*count_out] the caller's (mem_free). bytes_minimum_out: what lies above the mean on fuller nodes,
 * which is what had to be moved if bytes could be moved one by one. OMEN_ENOMEM. */
OMEN_CHECKED enum omen_err plan_rebalance(const struct cluster_state *state, const struct plan_size *sizes,
        uint32_t size_count, struct plan_move **moves_out, uint32_t *count_out, uint64_t *bytes_minimum_out,
        struct err *err);

/* Rebalancing to its end: rounds of moves, each as plan_rebalance gives them when those before it have ended. What later
 * rounds come to is a forecast, since shards change meanwhile: who carries the plan out makes each round anew. */
struct plan_rounds {
    struct plan_move *moves; /* [count] round by round; owned */
    uint32_t count, first_count, rounds;
    bool more; /* there would be more rounds */
    uint64_t bytes_first, bytes_total, bytes_minimum;
};
/* At most `rounds_max` of them. OMEN_ENOMEM. */
OMEN_CHECKED enum omen_err plan_rebalance_rounds(const struct cluster_state *state,
        const struct plan_size *sizes, uint32_t size_count, uint32_t rounds_max, struct plan_rounds *out,
        struct err *err);
void plan_rounds_fini(struct plan_rounds *rounds);

/* A copy of the state, to plan with, in which these nodes neither take replicas nor are to be evened out with the
 * others: they are down. NULL: no memory. */
OMEN_CHECKED struct cluster_state *plan_state_without(const struct cluster_state *state,
        const uint32_t *node_ids, uint32_t count);

/* Replicas that have nowhere to go: every other active node that is up holds one of the shard. */
struct plan_stuck {
    uint32_t count;
    uint64_t shard_ids[PLAN_STUCK_NAMED]; /* of the first of them */
};
/* A sentence that names them; "" when there are none. */
void plan_stuck_text(const struct plan_stuck *stuck, char *out, size_t cap);

/* Moves that take every replica off a node that can be taken off it, each to an active node in the failure domain with
 * the fewest of the shard's other replicas, the emptiest of those. Those that have nowhere to go are told, the others
 * move all the same. Shards with an operation under way, and what is beyond CLUSTER_MOVES_MAX, are left out: plan again
 * when those have ended. OMEN_ENOMEM. */
OMEN_CHECKED enum omen_err plan_drain(const struct cluster_state *state, uint32_t node_id,
        const struct plan_size *sizes, uint32_t size_count, struct plan_move **moves_out, uint32_t *count_out,
        struct plan_stuck *stuck_out, struct err *err);

#endif
