/* Plans of moves: asked for by operators. What should move is the planner's business (node/cluster/plan.h); here are the
 * sizes that nodes reported, and the moves as they are recorded and told. */
#include "common/err.h"

#include <stdio.h>

#include "common/placement/map_index.h"
#include "node/cluster/plan.h"
#include "node/member/member_impl.h"

static struct plan_size *sizes_collect(struct member *m, const struct cluster_state *state,
        uint32_t *count_out)
{
    struct map_index *index = map_index_new(state->map);
    *count_out = 0;
    if (index == NULL) return NULL;
    struct plan_size *sizes = mem_must_calloc(index->count + 1, sizeof *sizes);
    for (uint32_t i = 0; i < index->count; i++) {
        struct shard_report report;
        member_shard_report(m, index->places[i].shard, &report);
        sizes[(*count_out)++] = (struct plan_size){ index->places[i].shard_id, report.bytes };
    }
    map_index_unref(index);
    return sizes;
}

static void moves_put(const struct cluster_state *state, const struct plan_move *moves, uint32_t count,
        struct doc_builder *b)
{
    uint64_t total = 0;
    begin_array(b, "moves");
    for (uint32_t i = 0; i < count; i++) {
        const struct map_collection *c = map_find_id(state->map, moves[i].collection_id);
        total += moves[i].bytes;
        doc_begin_object(b);
        put_u64(b, "shard_id", moves[i].shard_id);
        put_text(b, "collection", c == NULL ? "" : c->name);
        put_u64(b, "from_node", moves[i].from_node);
        put_u64(b, "to_node", moves[i].to_node);
        put_u64(b, "bytes", moves[i].bytes);
        put_text(b, "why", moves[i].why);
        doc_end(b);
    }
    doc_end(b);
    put_u64(b, "bytes_total", total);
}

static enum omen_err moves_start(struct member *m, const struct admin_ask *ask, const struct plan_move *moves,
        uint32_t count, enum cluster_op_why why, uint64_t *plan_id_out, uint32_t *leader_out, struct err *err)
{
    *plan_id_out = 0;
    if (count == 0) return OMEN_OK;
    struct cluster_move *asked = mem_must_calloc(count, sizeof *asked);
    for (uint32_t i = 0; i < count; i++)
        asked[i] = (struct cluster_move){ moves[i].shard_id, moves[i].from_replica, moves[i].to_node };
    struct cluster_change change = { .kind = CLUSTER_CHANGE_OPS_START,
        .why = why,
        .moves = asked,
        .move_count = count,
        .asked_as = ask->asked_as };
    struct catalog_outcome outcome;
    enum omen_err rc = member_change(m, &change, &outcome, leader_out, err);
    if (rc == OMEN_OK) *plan_id_out = outcome.plan_id;
    mem_free(asked);
    return rc;
}

enum omen_err plan_rebalance_ask(struct member *m, const struct admin_ask *ask, struct doc_builder *reply,
        uint32_t *leader_out, struct err *err)
{
    struct cluster_state *state = member_state(m);
    uint32_t size_count, count = 0;
    uint64_t minimum = 0, plan_id = 0;
    struct plan_size *sizes = sizes_collect(m, state, &size_count);
    struct plan_move *moves = NULL;
    enum omen_err rc = plan_rebalance(state, sizes, size_count, &moves, &count, &minimum, err);
    if (rc == OMEN_OK && field_bool(ask->doc, "apply"))
        rc = moves_start(m, ask, moves, count, OP_WHY_REBALANCE, &plan_id, leader_out, err);
    if (rc == OMEN_OK) {
        put_u64(reply, "plan_id", plan_id);
        put_u64(reply, "bytes_minimum", minimum);
        moves_put(state, moves, count, reply);
    }
    mem_free(moves);
    mem_free(sizes);
    cluster_state_unref(state);
    return rc;
}

enum omen_err plan_drain_ask(struct member *m, const struct admin_ask *ask, struct doc_builder *reply,
        uint32_t *leader_out, struct err *err)
{
    struct cluster_state *state = member_state(m);
    uint32_t node_id = field_u32(ask->doc, "node_id"), size_count, count = 0;
    uint64_t plan_id = 0;
    struct plan_size *sizes = sizes_collect(m, state, &size_count);
    struct plan_move *moves = NULL;
    enum omen_err rc = node_known(state, node_id, err);
    if (rc == OMEN_OK) rc = plan_drain(state, node_id, sizes, size_count, &moves, &count, err);
    bool dry = field_bool(ask->doc, "dry_run");
    if (rc == OMEN_OK && !dry) rc = node_state_set(m, ask, node_id, CLUSTER_NODE_DRAINING, leader_out, err);
    if (rc == OMEN_OK && !dry)
        rc = moves_start(m, ask, moves, count, OP_WHY_DRAIN, &plan_id, leader_out, err);
    if (rc == OMEN_OK) {
        put_u64(reply, "plan_id", plan_id);
        moves_put(state, moves, count, reply);
    }
    mem_free(moves);
    mem_free(sizes);
    cluster_state_unref(state);
    return rc;
}

/* The moves that are still known of: the bytes of each were told the first time only. */
void plan_tell(const struct cluster_state *state, const struct cluster_result *r, struct doc_builder *reply)
{
    put_u64(reply, "plan_id", r->plan_id);
    begin_array(reply, "moves");
    for (uint32_t i = 0; i < state->op_count + state->history_count; i++) {
        const struct cluster_op *op = i < state->history_count ? &state->history[i]
                                                               : &state->ops[i - state->history_count];
        const struct map_collection *c = map_find_id(state->map, op->collection_id);
        if (op->plan_id != r->plan_id) continue;
        doc_begin_object(reply);
        put_u64(reply, "shard_id", op->shard_id);
        put_text(reply, "collection", c == NULL ? "" : c->name);
        put_u64(reply, "from_node", op->from_node);
        put_u64(reply, "to_node", op->to_node);
        put_u64(reply, "bytes", 0);
        put_text(reply, "why", "begun before");
        doc_end(reply);
    }
    doc_end(reply);
    put_u64(reply, "bytes_total", 0);
    put_u64(reply, "bytes_minimum", 0);
}
