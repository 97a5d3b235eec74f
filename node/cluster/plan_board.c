/* See plan_board.h. */
#include "node/cluster/plan_board.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/check.h"
#include "common/mem.h"
#include "common/placement/map_index.h"

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

uint8_t plan_board_bin(const struct plan_board *b, uint32_t node_id)
{
    for (uint32_t i = 0; i < b->bin_count; i++)
        if (b->bins[i].node->node_id == node_id) return (uint8_t)i;
    return PLAN_NO_BIN;
}

static void bins_fill(struct plan_board *b)
{
    for (uint32_t i = 0; i < b->state->node_count; i++) {
        const struct cluster_node *n = &b->state->nodes[i];
        if (n->state == CLUSTER_NODE_REMOVED || b->bin_count == CLUSTER_NODES_MAX) continue;
        struct plan_bin *bin = &b->bins[b->bin_count];
        *bin = (struct plan_bin){ .node = n,
            .domain = b->bin_count,
            .takes = n->state == CLUSTER_NODE_ACTIVE };
        for (uint32_t k = 0; k < b->bin_count; k++)
            if (cluster_same_domain(b->bins[k].node, n)) bin->domain = b->bins[k].domain;
        b->bin_count++;
    }
}

static struct plan_item *item_of(struct plan_board *b, uint64_t shard_id)
{
    uint32_t low = 0, high = b->item_count;
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (b->items[mid].shard->shard_id < shard_id)
            low = mid + 1;
        else
            high = mid;
    }
    return low < b->item_count && b->items[low].shard->shard_id == shard_id ? &b->items[low] : NULL;
}

static void item_fill(struct plan_board *b, struct plan_item *item, const struct map_place *place,
        uint64_t bytes)
{
    *item = (struct plan_item){ .shard = place->shard,
        .collection_id = place->collection->id,
        .bytes = bytes < UINT64_MAX / (2 * OMEN_REPLICAS_MAX * CATALOG_SHARDS_MAX)
                ? bytes
                : UINT64_MAX / (2 * OMEN_REPLICAS_MAX * CATALOG_SHARDS_MAX), /* sums never overflow */
        .moved = PLAN_NO_BIN };
    item->weight = item->bytes + PLAN_REPLICA_WEIGHT;
    for (uint32_t r = 0; r < place->shard->replica_count; r++)
        item->bins[r] = plan_board_bin(b, place->shard->node_ids[r]);
}

/* Replicas on their way are where they go. An operation that only adds one makes room in `bins` for nothing: its
 * load counts. */
static void ops_take_effect(struct plan_board *b)
{
    for (uint32_t i = 0; i < b->state->op_count; i++) {
        const struct cluster_op *op = &b->state->ops[i];
        struct plan_item *item = item_of(b, op->shard_id);
        if (item == NULL) continue;
        item->fixed = true;
        if (op->step != OP_ADD && op->step != OP_CATCH_UP) continue;
        uint8_t from = plan_board_bin(b, op->from_node), to = plan_board_bin(b, op->to_node);
        if (from != PLAN_NO_BIN) b->bins[from].load -= item->weight;
        if (to != PLAN_NO_BIN) b->bins[to].load += item->weight;
    }
}

static void slots_fill(struct plan_board *b)
{
    uint32_t next[CLUSTER_NODES_MAX] = { 0 };
    for (uint32_t i = 0; i < b->item_count; i++)
        for (uint32_t r = 0; r < b->items[i].shard->replica_count; r++)
            if (b->items[i].bins[r] != PLAN_NO_BIN) next[b->items[i].bins[r]]++;
    for (uint32_t k = 0; k < b->bin_count; k++) b->slot_first[k + 1] = b->slot_first[k] + next[k];
    memcpy(next, b->slot_first, sizeof next);
    for (uint32_t i = 0; i < b->item_count; i++) {
        const struct plan_item *item = &b->items[i];
        for (uint32_t r = 0; r < item->shard->replica_count; r++) {
            if (item->bins[r] == PLAN_NO_BIN) continue;
            b->slots[next[item->bins[r]]++] = (struct plan_slot){ i, (uint8_t)r };
            b->bins[item->bins[r]].load += item->weight;
        }
    }
}

void plan_board_mean(struct plan_board *b)
{
    uint64_t sum = 0;
    b->taking = 0;
    for (uint32_t i = 0; i < b->bin_count; i++) {
        if (!b->bins[i].takes) continue;
        sum += b->bins[i].load;
        b->taking++;
    }
    b->mean = b->taking == 0 ? 0 : sum / b->taking;
}

enum omen_err plan_board_init(struct plan_board *b, const struct cluster_state *state,
        const struct plan_size *sizes, uint32_t size_count, struct err *err)
{
    *b = (struct plan_board){ .state = state };
    struct map_index *index = map_index_new(state->map);
    uint32_t shards = index == NULL ? 0 : index->count;
    b->items = mem_calloc((size_t)shards + 1, sizeof *b->items);
    b->slots = mem_calloc((size_t)shards * OMEN_REPLICAS_MAX + 1, sizeof *b->slots);
    if (index == NULL || b->items == NULL || b->slots == NULL) {
        map_index_unref(index);
        plan_board_fini(b);
        return err_set(err, OMEN_ENOMEM, "", "no memory for a plan");
    }
    bins_fill(b);
    for (uint32_t i = 0; i < shards; i++) {
        const struct map_place *place = &index->places[i];
        item_fill(b, &b->items[b->item_count++], place, size_of(sizes, size_count, place->shard_id));
    }
    map_index_unref(index); /* the state keeps the map */
    slots_fill(b);
    ops_take_effect(b);
    plan_board_mean(b);
    for (uint32_t i = 0; i < b->bin_count; i++) b->bins[i].load_at_first = b->bins[i].load;
    return OMEN_OK;
}

void plan_board_fini(struct plan_board *b)
{
    mem_free(b->items);
    mem_free(b->slots);
    b->items = NULL;
    b->slots = NULL;
}

uint32_t plan_crowd(const struct plan_board *b, const struct plan_item *item, uint32_t replica, uint8_t bin)
{
    uint32_t n = 0;
    for (uint32_t r = 0; r < item->shard->replica_count; r++)
        n += r != replica && item->bins[r] != PLAN_NO_BIN &&
                b->bins[item->bins[r]].domain == b->bins[bin].domain;
    return n;
}

bool plan_may(const struct plan_board *b, const struct plan_item *item, uint8_t bin)
{
    if (!b->bins[bin].takes) return false;
    for (uint32_t r = 0; r < item->shard->replica_count; r++)
        if (item->bins[r] == bin) return false;
    return true;
}

void plan_move_do(struct plan_board *b, struct plan_item *item, uint32_t replica, uint8_t to)
{
    CHECK(item->moved == PLAN_NO_BIN && !item->fixed && plan_may(b, item, to));
    item->moved = (uint8_t)replica;
    item->from = item->bins[replica];
    item->to = to;
    item->bins[replica] = to;
    b->bins[item->from].load -= item->weight;
    b->bins[to].load += item->weight;
    b->move_count++;
}

void plan_move_undo(struct plan_board *b, struct plan_item *item)
{
    CHECK(item->moved != PLAN_NO_BIN);
    item->bins[item->moved] = item->from;
    b->bins[item->from].load += item->weight;
    b->bins[item->to].load -= item->weight;
    item->moved = PLAN_NO_BIN;
    item->reason = NULL;
    b->move_count--;
}

static unsigned long long percent(const struct plan_board *b, const struct plan_bin *bin)
{
    return b->mean == 0 ? 100 : bin->load_at_first / (b->mean / 100 + 1);
}

static void move_give(const struct plan_board *b, const struct plan_item *item, struct plan_move *move)
{
    const struct plan_bin *from = &b->bins[item->from], *to = &b->bins[item->to];
    *move = (struct plan_move){
        .shard_id = item->shard->shard_id,
        .collection_id = item->collection_id,
        .from_replica = item->shard->replica_ids[item->moved],
        .from_node = from->node->node_id,
        .to_node = to->node->node_id,
        .bytes = item->bytes,
    };
    if (item->reason != NULL)
        snprintf(move->why, sizeof move->why, "%s", item->reason);
    else
        snprintf(move->why, sizeof move->why, "node %u holds %llu %% of the mean, node %u %llu %%",
                from->node->node_id, percent(b, from), to->node->node_id, percent(b, to));
}

static int move_compare(const void *x, const void *y)
{
    const struct plan_move *a = x, *b = y;
    if (a->bytes != b->bytes) return a->bytes > b->bytes ? -1 : 1;
    return a->shard_id < b->shard_id ? -1 : a->shard_id > b->shard_id;
}

enum omen_err plan_moves_give(const struct plan_board *b, struct plan_move **moves_out, uint32_t *count_out,
        struct err *err)
{
    struct plan_move *moves = mem_calloc((size_t)b->move_count + 1, sizeof *moves);
    if (moves == NULL) return err_set(err, OMEN_ENOMEM, "", "no memory for a plan");
    uint32_t n = 0;
    for (uint32_t i = 0; i < b->item_count; i++)
        if (b->items[i].moved != PLAN_NO_BIN) move_give(b, &b->items[i], &moves[n++]);
    CHECK(n == b->move_count);
    qsort(moves, n, sizeof *moves, move_compare);
    *moves_out = moves;
    *count_out = n;
    return OMEN_OK;
}
