/* What the planners share: nodes as bins with a load, shards as items that may be moved once. Only plan.c,
 * plan_rebalance.c and plan_board.c include this.
 *
 * Loads are weights, not bytes: a replica weighs its bytes and a little, so that empty shards are spread as well.
 * Replicas on their way count where they go: a plan made while another runs does not do the same again. */
#ifndef OMEN_NODE_CLUSTER_PLAN_BOARD_H
#define OMEN_NODE_CLUSTER_PLAN_BOARD_H

#include <assert.h>

#include "node/cluster/plan.h"

#define PLAN_REPLICA_WEIGHT 65536u /* what a replica weighs beside its bytes */
#define PLAN_NO_BIN UINT8_MAX

static_assert(CLUSTER_NODES_MAX < PLAN_NO_BIN, "a bin's number fits a byte");

struct plan_bin {
    const struct cluster_node *node;
    uint64_t load; /* as planned so far */
    uint64_t load_at_first;
    uint32_t domain; /* equal: fail together */
    bool takes;      /* active */
};

struct plan_item { /* one shard */
    const struct map_shard *shard;
    uint64_t collection_id, bytes, weight;
    uint8_t bins
            [OMEN_REPLICAS_MAX]; /* where its replicas are, as planned so far; PLAN_NO_BIN: on a node that is gone */
    uint8_t from, to;            /* bins, of its move */
    uint8_t moved;               /* which replica this plan moves; PLAN_NO_BIN: none */
    bool fixed;                  /* an operation is under way */
    const char *reason;          /* of the move; NULL: by loads */
};

/* A replica where it is at first. */
struct plan_slot {
    uint32_t item;
    uint8_t replica;
};

struct plan_board {
    const struct cluster_state *state;
    struct plan_bin bins[CLUSTER_NODES_MAX];
    uint32_t bin_count, taking;
    uint64_t mean;           /* load of the bins that take */
    struct plan_item *items; /* [item_count] ascending by shard; owned */
    uint32_t item_count, move_count;
    struct plan_slot *slots; /* those of bin b: slot_first[b] .. slot_first[b + 1]; owned */
    uint32_t slot_first[CLUSTER_NODES_MAX + 1];
};

/* `sizes` [size_count] ascending by shard. OMEN_ENOMEM. */
OMEN_CHECKED enum omen_err plan_board_init(struct plan_board *b, const struct cluster_state *state,
        const struct plan_size *sizes, uint32_t size_count, struct err *err);
void plan_board_fini(struct plan_board *b);
uint8_t plan_board_bin(const struct plan_board *b, uint32_t node_id); /* PLAN_NO_BIN: not there, or removed */
void plan_board_mean(struct plan_board *b);                           /* anew, after `takes` changed */

/* How many other replicas of the shard would fail together with its replica `replica` if that were in `bin`. */
uint32_t plan_crowd(const struct plan_board *b, const struct plan_item *item, uint32_t replica, uint8_t bin);
/* Whether a replica may be put there: it takes replicas, and holds none of this shard. */
bool plan_may(const struct plan_board *b, const struct plan_item *item, uint8_t bin);
/* Move and take back; at most one move of an item. */
void plan_move_do(struct plan_board *b, struct plan_item *item, uint32_t replica, uint8_t to);
void plan_move_undo(struct plan_board *b, struct plan_item *item);
/* The moves as the caller gets them, the largest first. OMEN_ENOMEM. */
OMEN_CHECKED enum omen_err plan_moves_give(const struct plan_board *b, struct plan_move **moves_out,
        uint32_t *count_out, struct err *err);

#endif
