/* Changes of plans: what is to be reached by rounds of moves. The leader's driver makes the rounds (node/member/); here is
 * what may follow what.
 *
 *   PLAN_START --> under way --PLAN_STEP with moves--> the next round
 *                      |-------PLAN_STEP without------> ended: nothing is left to move
 *                      +--canceled, or its node is drained no more--> ending --its last operation ends--> ended
 *
 * One drain a node and one rebalance at a time: who asks for a second one joins the first, and its moves are one more round
 * of that. A plan that is ending begins nothing any more, whoever still plans for it: its steps are refused. */
#include "common/err.h"

#include "node/cluster/state.h"

#define REJECT(code_, field_, ...)                                                                           \
    (outcome->code = err_set(&outcome->err, (code_), (field_), __VA_ARGS__), OMEN_OK)

static struct cluster_plan *plan_of(struct cluster_state *state, uint64_t plan_id)
{
    return (struct cluster_plan *)(uintptr_t)cluster_state_plan(state, plan_id);
}

static bool has_operations(const struct cluster_state *state, uint64_t plan_id)
{
    for (uint32_t i = 0; i < state->op_count; i++)
        if (state->ops[i].plan_id == plan_id) return true;
    return false;
}

/* To the history; the oldest there makes room. */
static enum omen_err plan_end(struct cluster_state *state, struct cluster_plan *plan, uint64_t log_time_ms)
{
    struct cluster_plan ended = *plan;
    ended.changed_ms = log_time_ms;
    ended.ahead = 0;
    ended.bytes_ahead = 0;
    cluster_remove(state->plans, &state->plan_count, (uint32_t)(plan - state->plans), sizeof *plan);
    if (state->plan_history_count == CLUSTER_PLAN_HISTORY_MAX)
        cluster_remove(state->plan_history, &state->plan_history_count, 0, sizeof *plan);
    struct cluster_plan *kept = cluster_insert(&state->plan_history, &state->plan_history_count,
            state->plan_history_count, sizeof *kept);
    if (kept == NULL) return OMEN_ENOMEM;
    *kept = ended;
    return OMEN_OK;
}

/* ---- rounds ---- */

static enum omen_err round_begin(struct cluster_state *state, struct cluster_plan *plan,
        const struct cluster_entry *entry, struct catalog_outcome *outcome)
{
    const struct cluster_change *change = &entry->cluster;
    enum omen_err rc = cluster_ops_begin(state, entry, plan->why, plan->plan_id, outcome);
    if (rc != OMEN_OK || outcome->code != OMEN_OK) return rc;
    plan->changed_ms = entry->log_time_ms;
    plan->rounds += change->move_count > 0;
    plan->begun += change->move_count;
    plan->ahead = change->ahead;
    plan->bytes_ahead = change->bytes_ahead;
    for (uint32_t i = 0; i < change->move_count; i++) plan->bytes_begun += change->moves[i].bytes;
    return OMEN_OK;
}

static enum omen_err apply_start(struct cluster_state *state, const struct cluster_entry *entry,
        struct catalog_outcome *outcome)
{
    const struct cluster_change *change = &entry->cluster;
    bool drains = change->why == OP_WHY_DRAIN;
    if (!(drains ? change->node_id != 0 : change->why == OP_WHY_REBALANCE && change->node_id == 0))
        return REJECT(OMEN_EINVAL, "why", "a plan drains a node, or rebalances all");
    if (drains) {
        struct cluster_node *node = (struct cluster_node *)(uintptr_t)cluster_state_node(state,
                change->node_id);
        if (node == NULL || node->state == CLUSTER_NODE_REMOVED)
            return REJECT(OMEN_ENOTFOUND, "node_id", "there is no node %u", change->node_id);
        node->state = CLUSTER_NODE_DRAINING;
    }
    struct cluster_plan *plan = (struct cluster_plan *)(uintptr_t)cluster_state_plan_for(state,
            change->node_id);
    if (plan != NULL) { /* joined; if it was ending, it goes on */
        plan->ending = false;
        return round_begin(state, plan, entry, outcome);
    }
    if (state->plan_count >= CLUSTER_PLANS_MAX)
        return REJECT(OMEN_EBUSY, "", "at most %u plans may be under way", CLUSTER_PLANS_MAX);
    plan = cluster_insert(&state->plans, &state->plan_count, state->plan_count, sizeof *plan);
    if (plan == NULL) return OMEN_ENOMEM;
    *plan = (struct cluster_plan){ .plan_id = state->next_op++,
        .why = change->why,
        .node_id = change->node_id,
        .started_ms = entry->log_time_ms };
    return round_begin(state, plan, entry, outcome);
}

static enum omen_err apply_step(struct cluster_state *state, const struct cluster_entry *entry,
        struct catalog_outcome *outcome)
{
    const struct cluster_change *change = &entry->cluster;
    struct cluster_plan *plan = plan_of(state, change->plan_id);
    if (plan == NULL || plan->ending)
        return REJECT(OMEN_ENOTFOUND, "plan_id", "plan %llu is over", (unsigned long long)change->plan_id);
    if (change->move_count > 0) return round_begin(state, plan, entry, outcome);
    if (has_operations(state, plan->plan_id) ||
            (plan->node_id != 0 && cluster_state_shard_on(state, plan->node_id) != 0))
        return REJECT(OMEN_EBUSY, "plan_id", "plan %llu has something left to do",
                (unsigned long long)change->plan_id);
    outcome->plan_id = plan->plan_id;
    return plan_end(state, plan, entry->log_time_ms);
}

enum omen_err cluster_apply_plans(struct cluster_state *state, const struct cluster_entry *entry,
        struct catalog_outcome *outcome)
{
    return entry->cluster.kind == CLUSTER_CHANGE_PLAN_START ? apply_start(state, entry, outcome)
                                                            : apply_step(state, entry, outcome);
}

/* ---- what happens to their operations and nodes ---- */

enum omen_err cluster_plans_cancel(struct cluster_state *state, uint64_t plan_id, uint64_t log_time_ms,
        uint32_t *count_out)
{
    *count_out = 0;
    for (uint32_t i = state->plan_count; i > 0; i--) {
        struct cluster_plan *plan = &state->plans[i - 1];
        if ((plan_id != 0 && plan->plan_id != plan_id) || plan->ending) continue;
        plan->ending = true;
        plan->ahead = 0;
        plan->bytes_ahead = 0;
        plan->changed_ms = log_time_ms;
        ++*count_out;
        if (has_operations(state, plan->plan_id)) continue;
        if (plan_end(state, plan, log_time_ms) != OMEN_OK) return OMEN_ENOMEM;
    }
    return OMEN_OK;
}

enum omen_err cluster_plan_count(struct cluster_state *state, const struct cluster_op *ended)
{
    struct cluster_plan *plan = plan_of(state, ended->plan_id);
    if (plan == NULL) return OMEN_OK;
    if (ended->canceled) {
        plan->canceled++;
    } else {
        plan->done++;
        plan->bytes_done += ended->bytes;
    }
    if (!plan->ending || has_operations(state, plan->plan_id)) return OMEN_OK;
    return plan_end(state, plan, ended->changed_ms);
}
