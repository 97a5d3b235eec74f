/* Changes of nodes and operations. See cluster.h for what follows what; the drawing of an operation:
 *
 *   ADD --> CATCH_UP --> SWITCH --> END          ADD, CATCH_UP --cancel--> CANCELING --> END
 *    +---- (nothing to add) ----^                any --its shard was dropped--> END
 *
 * A step to CANCELING is the driver's: its target is down, and its plan, unlike after a cancel, goes on.
 *
 * Entering SWITCH is what moves the replica in the map: before it routers read from the source, from it on from the
 * target. */
#include "common/err.h"

#include <stdio.h>
#include <string.h>

#include "common/check.h"
#include "node/cluster/state.h"

#define REJECT(code_, field_, ...)                                                                           \
    (outcome->code = err_set(&outcome->err, (code_), (field_), __VA_ARGS__), OMEN_OK)

/* ---- nodes ---- */

static struct cluster_node *node_of(struct cluster_state *state, uint32_t node_id)
{
    return (struct cluster_node *)(uintptr_t)cluster_state_node(state, node_id);
}

static uint32_t nodes_alive(const struct cluster_state *state)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < state->node_count; i++) n += state->nodes[i].state != CLUSTER_NODE_REMOVED;
    return n;
}

/* Room for one more in the table: the node that was removed first is forgotten. */
static void node_forget(struct cluster_state *state)
{
    for (uint32_t i = 0; state->node_count >= CLUSTER_NODES_MAX && i < state->node_count; i++) {
        if (state->nodes[i].state != CLUSTER_NODE_REMOVED) continue;
        cluster_remove(state->nodes, &state->node_count, i, sizeof *state->nodes);
        return;
    }
}

static enum omen_err node_insert(struct cluster_state *state, const struct cluster_entry *entry,
        struct catalog_outcome *outcome)
{
    const struct cluster_change *change = &entry->cluster;
    struct cluster_node *node = cluster_insert(&state->nodes, &state->node_count, state->node_count,
            sizeof *node);
    if (node == NULL) return OMEN_ENOMEM;
    node->node_id = state->next_node++;
    node->state = CLUSTER_NODE_ACTIVE;
    node->catalog_replica_id = node->node_id == 1 ? 1 : state->next_replica++;
    node->birth = change->birth;
    memcpy(node->address, change->address, sizeof node->address);
    memcpy(node->raft_address, change->raft_address, sizeof node->raft_address);
    memcpy(node->labels, change->labels, sizeof node->labels);
    node->added_ms = entry->log_time_ms;
    outcome->node_id = node->node_id;
    outcome->catalog_replica_id = node->catalog_replica_id;
    return OMEN_OK;
}

static enum omen_err apply_init(struct cluster_state *state, const struct cluster_entry *entry,
        struct catalog_outcome *outcome)
{
    const struct cluster_change *change = &entry->cluster;
    if (state->cluster_id != 0 || state->map->collection_count > 0)
        return REJECT(OMEN_EEXISTS, "", "the cluster was begun before");
    if (change->cluster_id == 0 || change->incarnation != state->map->incarnation)
        return REJECT(OMEN_EINVAL, "",
                "a cluster begins with an id, and with the incarnation of its first node");
    state->cluster_id = change->cluster_id;
    memcpy(state->name, change->name, sizeof state->name);
    if (change->level > state->version) state->version = change->level;
    return node_insert(state, entry, outcome);
}

static enum omen_err apply_node_add(struct cluster_state *state, const struct cluster_entry *entry,
        struct catalog_outcome *outcome)
{
    const struct cluster_change *change = &entry->cluster;
    if (state->cluster_id == 0) return REJECT(OMEN_EUNAVAILABLE, "", "the cluster was not begun yet");
    if (change->birth == 0 || change->address[0] == '\0' || change->raft_address[0] == '\0')
        return REJECT(OMEN_EINVAL, "address", "a node is added with its addresses and its birth");
    uint32_t level = change->level == 0 ? FEATURE_NONE : change->level;
    if (level < state->version)
        return REJECT(OMEN_EVERSION, "",
                "the cluster is at version %u, the build of the node at %s reads up to version %u",
                state->version, change->address, level);
    for (uint32_t i = 0; i < state->node_count; i++) {
        const struct cluster_node *n = &state->nodes[i];
        if (n->birth == change->birth && n->state == CLUSTER_NODE_REMOVED)
            return REJECT(OMEN_EEXISTS, "address",
                    "node %u was removed; it comes back only with an empty disk", n->node_id);
        if (n->state == CLUSTER_NODE_REMOVED) continue;
        if (n->birth == change->birth) { /* asked twice */
            outcome->node_id = n->node_id;
            outcome->catalog_replica_id = n->catalog_replica_id;
            return OMEN_OK;
        }
        if (strcmp(n->address, change->address) == 0)
            return REJECT(OMEN_EEXISTS, "address",
                    "node %u has the address %s, with other data: remove it first, or start it with its data",
                    n->node_id, n->address);
    }
    if (nodes_alive(state) >= CLUSTER_NODES_MAX)
        return REJECT(OMEN_ETOOBIG, "address", "there are %u nodes, the limit", CLUSTER_NODES_MAX);
    node_forget(state);
    return node_insert(state, entry, outcome);
}

static enum omen_err apply_node_update(struct cluster_state *state, const struct cluster_entry *entry,
        struct catalog_outcome *outcome)
{
    const struct cluster_change *change = &entry->cluster;
    struct cluster_node *node = node_of(state, change->node_id);
    if (node == NULL || node->state == CLUSTER_NODE_REMOVED)
        return REJECT(OMEN_ENOTFOUND, "node_id", "there is no node %u", change->node_id);
    if (change->address[0] == '\0' || change->raft_address[0] == '\0')
        return REJECT(OMEN_EINVAL, "address", "a node has addresses");
    memcpy(node->address, change->address, sizeof node->address);
    memcpy(node->raft_address, change->raft_address, sizeof node->raft_address);
    memcpy(node->labels, change->labels, sizeof node->labels);
    outcome->node_id = node->node_id;
    return OMEN_OK;
}

static enum omen_err apply_node_state(struct cluster_state *state, const struct cluster_entry *entry,
        struct catalog_outcome *outcome)
{
    const struct cluster_change *change = &entry->cluster;
    struct cluster_node *node = node_of(state, change->node_id);
    if (node == NULL || node->state == CLUSTER_NODE_REMOVED)
        return REJECT(OMEN_ENOTFOUND, "node_id", "there is no node %u", change->node_id);
    if (change->node_state < CLUSTER_NODE_ACTIVE || change->node_state > CLUSTER_NODE_REMOVED)
        return REJECT(OMEN_EINVAL, "node_state", "is not known");
    if (change->node_state == CLUSTER_NODE_REMOVED) {
        uint64_t shard_id = cluster_state_shard_on(state, node->node_id);
        if (shard_id != 0)
            return REJECT(OMEN_EBUSY, "node_id",
                    "node %u still holds replicas, of shard %llu among others: drain it first", node->node_id,
                    (unsigned long long)shard_id);
        if (nodes_alive(state) == 1)
            return REJECT(OMEN_EINVAL, "node_id", "node %u is the last", node->node_id);
    }
    node->state = change->node_state;
    outcome->node_id = node->node_id;
    const struct cluster_plan *drain = cluster_state_plan_for(state, node->node_id);
    uint32_t ended;
    if (drain == NULL || node->state == CLUSTER_NODE_DRAINING) return OMEN_OK;
    return cluster_plans_cancel(state, drain->plan_id, entry->log_time_ms, &ended);
}

/* ---- the version ---- */

/* Its proposer has heard of every node up to entry->node_id that it reads as much; a node that was added since may
 * not. */
static enum omen_err apply_version_raise(struct cluster_state *state, const struct cluster_entry *entry,
        struct catalog_outcome *outcome)
{
    const struct cluster_change *change = &entry->cluster;
    if (state->version_held)
        return REJECT(OMEN_EBUSY, "", "the cluster's version is held at %u", state->version);
    if (change->level <= state->version)
        return REJECT(OMEN_EINVAL, "", "the cluster is at version %u already", state->version);
    if ((uint64_t)change->node_id + 1 != state->next_node)
        return REJECT(OMEN_EBUSY, "", "a node was added meanwhile");
    state->version = change->level;
    return OMEN_OK;
}

/* ---- operations ---- */

static struct cluster_op *op_of_shard(struct cluster_state *state, uint64_t shard_id)
{
    for (uint32_t i = 0; i < state->op_count; i++)
        if (state->ops[i].shard_id == shard_id) return &state->ops[i];
    return NULL;
}

static uint32_t replica_slot(const struct map_shard *shard, uint64_t replica_id)
{
    uint32_t r = 0;
    while (r < shard->replica_count && shard->replica_ids[r] != replica_id) r++;
    return r;
}

static enum omen_err move_check(struct cluster_state *state, const struct cluster_move *move,
        const struct map_shard *shard, struct err *err)
{
    unsigned long long id = move->shard_id;
    if (shard == NULL) return err_set(err, OMEN_ENOTFOUND, "shard_id", "there is no shard %llu", id);
    if (op_of_shard(state, move->shard_id) != NULL)
        return err_set(err, OMEN_EBUSY, "shard_id", "an operation of shard %llu is under way", id);
    uint32_t from = replica_slot(shard, move->from_replica);
    if (move->from_replica != 0 && from == shard->replica_count)
        return err_set(err, OMEN_ENOTFOUND, "from_node", "shard %llu has no replica %llu", id,
                (unsigned long long)move->from_replica);
    if (move->from_replica == 0 && move->to_node == 0)
        return err_set(err, OMEN_EINVAL, "to_node", "a move has a source, a target or both");
    if (move->to_node == 0)
        return shard->replica_count > 1
                ? OMEN_OK
                : err_set(err, OMEN_EINVAL, "from_node", "it is the last replica of shard %llu", id);
    bool in_place = move->from_replica != 0 && shard->node_ids[from] == move->to_node;
    const struct cluster_node *node = cluster_state_node(state, move->to_node);
    if (node == NULL || node->state == CLUSTER_NODE_REMOVED ||
            (node->state != CLUSTER_NODE_ACTIVE && !in_place))
        return err_set(err, OMEN_EINVAL, "to_node", "node %u takes no replicas: it is not an active node",
                move->to_node);
    for (uint32_t r = 0; r < shard->replica_count; r++)
        if (shard->node_ids[r] == move->to_node && !in_place)
            return err_set(err, OMEN_EEXISTS, "to_node", "node %u holds a replica of shard %llu already",
                    move->to_node, id);
    if (move->from_replica == 0 && shard->replica_count == OMEN_REPLICAS_MAX)
        return err_set(err, OMEN_ETOOBIG, "to_node", "a shard has at most %d replicas", OMEN_REPLICAS_MAX);
    return OMEN_OK;
}

enum omen_err cluster_ops_begin(struct cluster_state *state, const struct cluster_entry *entry,
        enum cluster_op_why why, uint64_t plan_id, struct catalog_outcome *outcome)
{
    const struct cluster_change *change = &entry->cluster;
    if (state->op_count + change->move_count > CLUSTER_OPS_MAX)
        return REJECT(OMEN_EBUSY, "moves", "at most %u operations may be under way", CLUSTER_OPS_MAX);
    outcome->first_op_id = state->next_op;
    outcome->plan_id = plan_id;
    outcome->op_count = change->move_count;
    for (uint32_t i = 0; i < change->move_count; i++) {
        const struct cluster_move *move = &change->moves[i];
        struct map_collection *collection = NULL;
        struct map_shard *shard = cluster_map_shard(state, move->shard_id, &collection);
        outcome->code = move_check(state, move, shard, &outcome->err);
        if (outcome->code != OMEN_OK) return OMEN_OK;
        struct cluster_op *op = cluster_insert(&state->ops, &state->op_count, state->op_count, sizeof *op);
        if (op == NULL) return OMEN_ENOMEM;
        *op = (struct cluster_op){
            .op_id = state->next_op++,
            .plan_id = plan_id,
            .shard_id = move->shard_id,
            .collection_id = collection->id,
            .from_replica = move->from_replica,
            .to_node = move->to_node,
            .step = OP_ADD,
            .why = why,
            .bytes = move->bytes,
            .started_ms = entry->log_time_ms,
            .changed_ms = entry->log_time_ms,
        };
        if (move->from_replica != 0) op->from_node = shard->node_ids[replica_slot(shard, move->from_replica)];
        if (move->to_node != 0) op->to_replica = state->next_replica++;
    }
    return OMEN_OK;
}

static enum omen_err apply_ops_start(struct cluster_state *state, const struct cluster_entry *entry,
        struct catalog_outcome *outcome)
{
    const struct cluster_change *change = &entry->cluster;
    uint64_t plan_id = change->plan_id != 0 ? change->plan_id : state->next_op;
    if (change->move_count == 0) return REJECT(OMEN_EINVAL, "moves", "there is nothing to do");
    return cluster_ops_begin(state, entry, change->why, plan_id, outcome);
}

/* What the operation takes for granted of the shard: its source is there, or there is room for one more. */
static bool switch_fits(const struct map_shard *shard, const struct cluster_op *op)
{
    if (op->from_replica != 0) return replica_slot(shard, op->from_replica) < shard->replica_count;
    return shard->replica_count < OMEN_REPLICAS_MAX;
}

/* The map names the target instead of the source. */
static void op_switch(struct map_shard *shard, const struct cluster_op *op)
{
    uint32_t from = replica_slot(shard, op->from_replica), n = shard->replica_count;
    if (op->to_replica == 0) {
        CHECK(from < n);
        memmove(&shard->replica_ids[from], &shard->replica_ids[from + 1],
                (n - from - 1) * sizeof shard->replica_ids[0]);
        memmove(&shard->node_ids[from], &shard->node_ids[from + 1],
                (n - from - 1) * sizeof shard->node_ids[0]);
        shard->replica_count--;
        return;
    }
    if (op->from_replica == 0) {
        CHECK(n < OMEN_REPLICAS_MAX);
        from = shard->replica_count++;
    }
    shard->replica_ids[from] = op->to_replica;
    shard->node_ids[from] = op->to_node;
}

/* One that is replaced where it is has its files set aside by now: there is nothing to go back to. */
static bool may_give_up(const struct cluster_state *state, const struct cluster_op *op)
{
    return feature_may(state->version, FEATURE_GIVE_UP) && op->to_node != 0 && op->to_node != op->from_node &&
            (op->step == OP_ADD || op->step == OP_CATCH_UP);
}

static bool step_allowed(const struct cluster_state *state, const struct cluster_op *op,
        enum cluster_op_step to)
{
    if (to == OP_CANCELING) return may_give_up(state, op);
    switch (op->step) {
    case OP_ADD: return op->to_replica != 0 ? to == OP_CATCH_UP : to == OP_SWITCH;
    case OP_CATCH_UP: return to == OP_SWITCH;
    case OP_SWITCH:
    case OP_CANCELING: return to == OP_END;
    case OP_END: break;
    }
    return false;
}

static enum omen_err op_end(struct cluster_state *state, uint32_t at, bool gone)
{
    struct cluster_op ended = state->ops[at];
    ended.canceled = gone || ended.step == OP_CANCELING;
    ended.step = OP_END;
    cluster_remove(state->ops, &state->op_count, at, sizeof *state->ops);
    if (state->history_count == CLUSTER_HISTORY_MAX)
        cluster_remove(state->history, &state->history_count, 0, sizeof *state->history);
    struct cluster_op *kept = cluster_insert(&state->history, &state->history_count, state->history_count,
            sizeof *kept);
    if (kept == NULL) return OMEN_ENOMEM;
    *kept = ended;
    return cluster_plan_count(state, &ended);
}

static enum omen_err apply_op_step(struct cluster_state *state, const struct cluster_entry *entry,
        struct catalog_outcome *outcome, bool *map_changed)
{
    const struct cluster_change *change = &entry->cluster;
    uint32_t at = 0;
    while (at < state->op_count && state->ops[at].op_id != change->op_id) at++;
    if (at == state->op_count)
        return REJECT(OMEN_ENOTFOUND, "op_id", "there is no operation %llu",
                (unsigned long long)change->op_id);
    struct cluster_op *op = &state->ops[at];
    struct map_shard *shard = cluster_map_shard(state, op->shard_id, NULL);
    bool gone = shard == NULL && change->step_to == OP_END;
    if (op->step != change->step_from || !(gone || step_allowed(state, op, change->step_to)))
        return REJECT(OMEN_EINVAL, "step", "operation %llu is at %s, which is not followed by %s",
                (unsigned long long)op->op_id, cluster_op_step_name(op->step),
                cluster_op_step_name(change->step_to));
    op->changed_ms = entry->log_time_ms;
    if (change->step_to == OP_END) return op_end(state, at, gone);
    if (change->step_to == OP_SWITCH) {
        if (shard == NULL) return REJECT(OMEN_ENOTFOUND, "shard_id", "its collection was dropped");
        if (!switch_fits(shard, op))
            return REJECT(OMEN_EINVAL, "step",
                    "the shard's replicas are not those that the operation was begun with");
        op_switch(shard, op);
        *map_changed = true;
    }
    if (change->step_to == OP_CANCELING) op->given_up = true;
    op->step = change->step_to;
    return OMEN_OK;
}

static enum omen_err apply_op_cancel(struct cluster_state *state, const struct cluster_entry *entry,
        struct catalog_outcome *outcome)
{
    const struct cluster_change *change = &entry->cluster;
    bool all = change->op_id == 0 && change->plan_id == 0;
    uint32_t found = 0, canceled = 0, plans = 0;
    uint64_t plan_id = change->plan_id;
    for (uint32_t i = 0; i < state->op_count; i++) {
        struct cluster_op *op = &state->ops[i];
        if (!all && op->op_id != change->op_id && (change->plan_id == 0 || op->plan_id != change->plan_id))
            continue;
        found++;
        if (op->op_id == change->op_id) plan_id = op->plan_id; /* or its plan would begin it again */
        if (op->step != OP_ADD && op->step != OP_CATCH_UP) continue;
        op->step = OP_CANCELING;
        op->changed_ms = entry->log_time_ms;
        canceled++;
    }
    if (all || plan_id != 0) {
        enum omen_err rc = cluster_plans_cancel(state, plan_id, entry->log_time_ms, &plans);
        if (rc != OMEN_OK) return rc;
    }
    if (found == 0 && plans == 0 && !all)
        return REJECT(OMEN_ENOTFOUND, "op_id", "there is no such operation under way");
    if (found > 0 && canceled == 0 && plans == 0)
        return REJECT(OMEN_EINVAL, "op_id", "it is past the step up to which it can be canceled");
    outcome->op_count = canceled;
    return OMEN_OK;
}

enum omen_err cluster_apply_cluster(struct cluster_state *state, const struct cluster_entry *entry,
        struct catalog_outcome *outcome, bool *map_changed)
{
    switch (entry->cluster.kind) {
    case CLUSTER_CHANGE_INIT: *map_changed = true; return apply_init(state, entry, outcome);
    case CLUSTER_CHANGE_NODE_ADD: return apply_node_add(state, entry, outcome);
    case CLUSTER_CHANGE_NODE_UPDATE: return apply_node_update(state, entry, outcome);
    case CLUSTER_CHANGE_NODE_STATE: return apply_node_state(state, entry, outcome);
    case CLUSTER_CHANGE_OPS_START: return apply_ops_start(state, entry, outcome);
    case CLUSTER_CHANGE_OP_STEP: return apply_op_step(state, entry, outcome, map_changed);
    case CLUSTER_CHANGE_OP_CANCEL: return apply_op_cancel(state, entry, outcome);
    case CLUSTER_CHANGE_PLAN_START:
    case CLUSTER_CHANGE_PLAN_STEP: return cluster_apply_plans(state, entry, outcome);
    case CLUSTER_CHANGE_VERSION_RAISE: return apply_version_raise(state, entry, outcome);
    case CLUSTER_CHANGE_VERSION_HOLD: state->version_held = entry->cluster.held; return OMEN_OK;
    case CLUSTER_CHANGE_THROTTLE:
        state->throttle_bytes_per_s = entry->cluster.throttle_bytes_per_s;
        return OMEN_OK;
    }
    return REJECT(OMEN_EVERSION, "", "unknown change of the cluster");
}
