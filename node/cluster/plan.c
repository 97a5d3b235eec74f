/* See plan.h. Weights are bytes and a little for each replica, so that empty shards are spread as well. */
#include "node/cluster/plan.h"

#include <stdio.h>
#include <string.h>

#include "common/check.h"
#include "common/mem.h"

#define REPLICA_WEIGHT 65536u /* what a replica counts beside its bytes */
#define TOLERANCE 20          /* a twentieth of the mean is even enough */

struct bin {
    const struct cluster_node *node;
    uint64_t weight;
    bool takes; /* active */
};

struct item { /* one shard */
    const struct map_shard *shard;
    uint64_t collection_id, bytes;
    uint32_t node_ids[OMEN_REPLICAS_MAX]; /* as planned so far */
    bool fixed;                           /* moved by this plan, or by an operation under way */
};

struct board {
    const struct cluster_state *state;
    struct bin bins[CLUSTER_NODES_MAX];
    uint32_t bin_count;
    struct item *items;
    uint32_t item_count;
    struct plan_move *moves;
    uint32_t move_count;
};

static uint64_t weight_of(const struct item *item) { return item->bytes + REPLICA_WEIGHT; }

static struct bin *bin_of(struct board *b, uint32_t node_id)
{
    for (uint32_t i = 0; i < b->bin_count; i++)
        if (b->bins[i].node->node_id == node_id) return &b->bins[i];
    return NULL;
}

static uint64_t size_of(const struct plan_size *sizes, uint32_t count, uint64_t shard_id)
{
    uint32_t low = 0, high = count;
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (sizes[mid].shard_id < shard_id)
            low = mid + 1;
        else
            high = mid;
    }
    return low < count && sizes[low].shard_id == shard_id ? sizes[low].bytes : 0;
}

static bool moving(const struct cluster_state *state, uint64_t shard_id)
{
    for (uint32_t i = 0; i < state->op_count; i++)
        if (state->ops[i].shard_id == shard_id) return true;
    return false;
}

static void board_fini(struct board *b)
{
    mem_free(b->items);
    mem_free(b->moves);
}

static enum omen_err board_init(struct board *b, const struct cluster_state *state,
        const struct plan_size *sizes, uint32_t size_count, struct err *err)
{
    *b = (struct board){ .state = state };
    uint32_t shards = 0;
    for (uint32_t c = 0; c < state->map->collection_count; c++)
        shards += state->map->collections[c].shard_count;
    b->items = mem_calloc((size_t)shards + 1, sizeof *b->items);
    b->moves = mem_calloc((size_t)shards + 1, sizeof *b->moves);
    if (b->items == NULL || b->moves == NULL) {
        board_fini(b);
        return err_set(err, OMEN_ENOMEM, "", "no memory for a plan");
    }
    for (uint32_t i = 0; i < state->node_count; i++) {
        const struct cluster_node *n = &state->nodes[i];
        if (n->state != CLUSTER_NODE_REMOVED)
            b->bins[b->bin_count++] = (struct bin){ n, 0, n->state == CLUSTER_NODE_ACTIVE };
    }
    for (uint32_t c = 0; c < state->map->collection_count; c++) {
        const struct map_collection *collection = &state->map->collections[c];
        for (uint32_t s = 0; s < collection->shard_count; s++) {
            const struct map_shard *shard = &collection->shards[s];
            struct item *item = &b->items[b->item_count++];
            *item = (struct item){ .shard = shard,
                .collection_id = collection->id,
                .bytes = size_of(sizes, size_count, shard->shard_id),
                .fixed = moving(state, shard->shard_id) };
            memcpy(item->node_ids, shard->node_ids, sizeof item->node_ids);
            for (uint32_t r = 0; r < shard->replica_count; r++) {
                struct bin *bin = bin_of(b, shard->node_ids[r]);
                if (bin != NULL) bin->weight += weight_of(item);
            }
        }
    }
    return OMEN_OK;
}

/* How many other replicas of the shard would fail together with one on `node`. */
static uint32_t crowd(struct board *b, const struct item *item, uint32_t without,
        const struct cluster_node *node)
{
    uint32_t n = 0;
    for (uint32_t r = 0; r < item->shard->replica_count; r++) {
        const struct bin *bin = r == without ? NULL : bin_of(b, item->node_ids[r]);
        n += bin != NULL && cluster_same_domain(bin->node, node);
    }
    return n;
}

static bool holds(const struct item *item, uint32_t node_id)
{
    for (uint32_t r = 0; r < item->shard->replica_count; r++)
        if (item->node_ids[r] == node_id) return true;
    return false;
}

static struct plan_move *move_make(struct board *b, struct item *item, uint32_t replica, struct bin *from,
        struct bin *to)
{
    struct plan_move *move = &b->moves[b->move_count++];
    *move = (struct plan_move){
        .shard_id = item->shard->shard_id,
        .collection_id = item->collection_id,
        .from_replica = item->shard->replica_ids[replica],
        .from_node = item->node_ids[replica],
        .to_node = to->node->node_id,
        .bytes = item->bytes,
    };
    if (from != NULL) from->weight -= weight_of(item);
    to->weight += weight_of(item);
    item->node_ids[replica] = to->node->node_id;
    item->fixed = true;
    return move;
}

static void moves_give(struct board *b, struct plan_move **moves_out, uint32_t *count_out)
{
    *moves_out = b->moves;
    *count_out = b->move_count;
    b->moves = NULL;
}

/* ---- rebalance ---- */

static uint64_t mean_weight(const struct board *b)
{
    uint64_t sum = 0;
    uint32_t n = 0;
    for (uint32_t i = 0; i < b->bin_count; i++) {
        if (!b->bins[i].takes) continue;
        sum += b->bins[i].weight;
        n++;
    }
    return n == 0 ? 0 : sum / n;
}

struct choice {
    struct item *item;
    uint32_t replica;
    uint64_t weight;
};

/* The replica on `from` that fills what is missing on `to` best: the largest of at most `gap`. */
static bool choose(struct board *b, const struct bin *from, const struct bin *to, uint64_t gap,
        struct choice *out)
{
    *out = (struct choice){ NULL, 0, 0 };
    for (uint32_t i = 0; i < b->item_count; i++) {
        struct item *item = &b->items[i];
        uint64_t weight = weight_of(item);
        if (item->fixed || weight > gap || weight <= out->weight || holds(item, to->node->node_id)) continue;
        for (uint32_t r = 0; r < item->shard->replica_count; r++) {
            if (item->node_ids[r] != from->node->node_id) continue;
            if (crowd(b, item, r, to->node) > crowd(b, item, r, from->node)) continue;
            *out = (struct choice){ item, r, weight };
        }
    }
    return out->item != NULL;
}

static bool rebalance_step(struct board *b, uint64_t mean)
{
    struct choice best = { NULL, 0, 0 };
    struct bin *best_from = NULL, *best_to = NULL;
    for (uint32_t f = 0; f < b->bin_count; f++) {
        struct bin *from = &b->bins[f];
        if (!from->takes || from->weight <= mean + mean / TOLERANCE) continue;
        for (uint32_t t = 0; t < b->bin_count; t++) {
            struct bin *to = &b->bins[t];
            if (!to->takes || to->weight >= mean) continue;
            /* Of what is too much here and missing there the larger may be filled: both come nearer to the mean
             * then. */
            uint64_t much = from->weight - mean, little = mean - to->weight;
            uint64_t gap = much > little ? much : little;
            struct choice c;
            if (gap >= much + little || !choose(b, from, to, gap, &c) || c.weight <= best.weight) continue;
            best = c;
            best_from = from;
            best_to = to;
        }
    }
    if (best.item == NULL) return false;
    uint64_t over = best_from->weight, under = best_to->weight;
    struct plan_move *move = move_make(b, best.item, best.replica, best_from, best_to);
    snprintf(move->why, sizeof move->why, "node %u holds %llu %% of the mean, node %u %llu %%",
            best_from->node->node_id, (unsigned long long)(100 * over / mean), best_to->node->node_id,
            (unsigned long long)(100 * under / mean));
    return true;
}

enum omen_err plan_rebalance(const struct cluster_state *state, const struct plan_size *sizes,
        uint32_t size_count, struct plan_move **moves_out, uint32_t *count_out, uint64_t *bytes_minimum_out,
        struct err *err)
{
    struct board b;
    *moves_out = NULL;
    *count_out = 0;
    *bytes_minimum_out = 0;
    enum omen_err rc = board_init(&b, state, sizes, size_count, err);
    if (rc != OMEN_OK) return rc;
    uint64_t mean = mean_weight(&b);
    for (uint32_t i = 0; i < b.bin_count; i++)
        if (b.bins[i].takes && b.bins[i].weight > mean) *bytes_minimum_out += b.bins[i].weight - mean;
    while (mean > 0 && b.move_count < b.item_count && b.move_count < CLUSTER_MOVES_MAX &&
            rebalance_step(&b, mean))
        continue;
    moves_give(&b, moves_out, count_out);
    board_fini(&b);
    return OMEN_OK;
}

/* ---- drain ---- */

static struct bin *drain_target(struct board *b, const struct item *item, uint32_t replica)
{
    struct bin *best = NULL;
    uint32_t best_crowd = 0;
    for (uint32_t i = 0; i < b->bin_count; i++) {
        struct bin *bin = &b->bins[i];
        if (!bin->takes || holds(item, bin->node->node_id)) continue;
        uint32_t n = crowd(b, item, replica, bin->node);
        if (best != NULL && (n > best_crowd || (n == best_crowd && bin->weight >= best->weight))) continue;
        best = bin;
        best_crowd = n;
    }
    return best;
}

enum omen_err plan_drain(const struct cluster_state *state, uint32_t node_id, const struct plan_size *sizes,
        uint32_t size_count, struct plan_move **moves_out, uint32_t *count_out, struct err *err)
{
    struct board b;
    *moves_out = NULL;
    *count_out = 0;
    enum omen_err rc = board_init(&b, state, sizes, size_count, err);
    if (rc != OMEN_OK) return rc;
    struct bin *from = bin_of(&b, node_id);
    if (from != NULL) from->takes = false;
    for (uint32_t i = 0; rc == OMEN_OK && i < b.item_count && b.move_count < CLUSTER_MOVES_MAX; i++) {
        struct item *item = &b.items[i];
        for (uint32_t r = 0; !item->fixed && r < item->shard->replica_count; r++) {
            if (item->node_ids[r] != node_id) continue;
            struct bin *to = drain_target(&b, item, r);
            if (to == NULL) {
                rc = err_set(err, OMEN_EUNAVAILABLE, "node_id",
                        "a replica of shard %llu has nowhere to go: every other active node holds one",
                        (unsigned long long)item->shard->shard_id);
                break;
            }
            struct plan_move *move = move_make(&b, item, r, from, to);
            snprintf(move->why, sizeof move->why, "node %u is drained", node_id);
        }
    }
    if (rc == OMEN_OK) moves_give(&b, moves_out, count_out);
    board_fini(&b);
    return rc;
}
