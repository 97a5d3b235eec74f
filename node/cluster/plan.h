/* Which replicas should move where: pure functions over the cluster's state and the sizes that nodes reported.
 * Nothing here is replicated: the moves are proposed, and checked again when they are recorded (OPS_START).
 *
 * No plan puts two replicas of a shard on one node, or makes a shard's failure domains fewer; shards with an
 * operation under way are left alone. Threads: any. Cost: shards x nodes per move. */
#ifndef OMEN_NODE_CLUSTER_PLAN_H
#define OMEN_NODE_CLUSTER_PLAN_H

#include "node/cluster/cluster.h"

struct plan_size {            /* ascending by shard */
    uint64_t shard_id, bytes; /* of one replica */
};

struct plan_move {
    uint64_t shard_id, collection_id, from_replica;
    uint32_t from_node, to_node;
    uint64_t bytes;
    char why[120]; /* for people */
};

/* Moves that even out bytes, then replicas, over the active nodes: from the fullest to the emptiest while that
 * brings both nearer to the mean, none of more than is missing there, so that what is moved stays near the minimum.
 * None when every node is within a twentieth of the mean, or no replica is small enough to help.
 * moves_out: the caller's (mem_free). bytes_minimum_out: what lies above the mean on fuller nodes; no plan that
 * evens out moves less. OMEN_ENOMEM. */
OMEN_CHECKED enum omen_err plan_rebalance(const struct cluster_state *state, const struct plan_size *sizes,
        uint32_t size_count, struct plan_move **moves_out, uint32_t *count_out, uint64_t *bytes_minimum_out,
        struct err *err);

/* Moves that take every replica off a node, each to an active node in another failure domain than the shard's other
 * replicas where there is one, the emptiest of those. OMEN_EUNAVAILABLE: some replica has nowhere to go (names the
 * shard); OMEN_ENOMEM. */
OMEN_CHECKED enum omen_err plan_drain(const struct cluster_state *state, uint32_t node_id,
        const struct plan_size *sizes, uint32_t size_count, struct plan_move **moves_out, uint32_t *count_out,
        struct err *err);

#endif
