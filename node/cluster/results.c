/* What became of changes, kept for those that are asked for a second time: a client that heard nothing repeats a change
 * under its op id, and is told what was told the first time (CORRECTNESS A4).
 *
 * Only changes that were made are kept. One that was rejected changed nothing, so a repetition is judged anew.
 * Bounded by number and by age in log time. What is let go moves `results_lost_ms` to when it was issued: an id that
 * was issued no later than that and is not here may have been used before, so it is refused, never carried out. An id
 * from the future would move that too far, and others' ids would be refused with it: the leader does not propose it
 * (cluster_op_id_timely), and apply refuses it when it is as far ahead as outcomes are kept. */
#include "common/err.h"

#include "common/check.h"
#include "node/cluster/state.h"

const struct cluster_result *cluster_state_result(const struct cluster_state *state,
        const struct op_id *asked_as, uint32_t kind)
{
    if (asked_as->client == 0) return NULL;
    for (uint32_t i = state->result_count; i > 0; i--) {
        const struct cluster_result *r = &state->results[i - 1];
        if (r->asked_as.client == asked_as->client && r->asked_as.seq == asked_as->seq && r->kind == kind)
            return r;
    }
    return NULL;
}

enum omen_err cluster_op_id_timely(const struct op_id *asked_as, uint64_t now_ms, struct err *err)
{
    if (asked_as->client == 0 || asked_as->issue_ms <= now_ms ||
            asked_as->issue_ms - now_ms <= CLUSTER_AHEAD_MS)
        return OMEN_OK;
    return err_set(err, OMEN_EINVAL, "op_id[2]",
            "issued at %llu ms, which is %llu ms ahead of the cluster's time, %llu ms; at most %u ms are allowed: "
            "set the client's clock",
            (unsigned long long)asked_as->issue_ms, (unsigned long long)(asked_as->issue_ms - now_ms),
            (unsigned long long)now_ms, CLUSTER_AHEAD_MS);
}

bool cluster_result_settles(const struct cluster_state *state, const struct cluster_entry *entry,
        struct catalog_outcome *outcome)
{
    const struct op_id *id = &entry->asked_as;
    if (id->client == 0) return false;
    const struct cluster_result *r = cluster_state_result(state, id, entry->kind);
    if (r != NULL) {
        *outcome = (struct catalog_outcome){ .code = OMEN_OK,
            .collection_id = r->collection_id,
            .node_id = r->node_id,
            .catalog_replica_id = r->catalog_replica_id,
            .plan_id = r->plan_id,
            .first_op_id = r->first_op_id,
            .op_count = r->op_count };
        return true;
    }
    bool old = id->issue_ms <= state->results_lost_ms ||
            (entry->log_time_ms > CLUSTER_RESULT_MS && id->issue_ms < entry->log_time_ms - CLUSTER_RESULT_MS);
    bool ahead = id->issue_ms > entry->log_time_ms && id->issue_ms - entry->log_time_ms > CLUSTER_RESULT_MS;
    if (!old && !ahead) return false;
    outcome->code = err_set(&outcome->err, OMEN_EOPEXPIRED, "op_id",
            old ? "the change was asked for too long ago to tell whether it was made"
                : "the change was asked for in the future: is that machine's clock right?");
    return true;
}

static void result_drop_first(struct cluster_state *state)
{
    uint64_t issue_ms = state->results[0].asked_as.issue_ms;
    if (issue_ms > state->results_lost_ms) state->results_lost_ms = issue_ms;
    cluster_remove(state->results, &state->result_count, 0, sizeof *state->results);
}

enum omen_err cluster_result_keep(struct cluster_state *state, const struct cluster_entry *entry,
        const struct catalog_outcome *outcome)
{
    if (entry->asked_as.client == 0) return OMEN_OK;
    CHECK(outcome->code == OMEN_OK);
    while (state->result_count > 0 &&
            (state->result_count == CLUSTER_RESULTS_MAX ||
                    (entry->log_time_ms > CLUSTER_RESULT_MS &&
                            state->results[0].log_time_ms < entry->log_time_ms - CLUSTER_RESULT_MS)))
        result_drop_first(state);
    struct cluster_result *r = cluster_insert(&state->results, &state->result_count, state->result_count,
            sizeof *r);
    if (r == NULL) return OMEN_ENOMEM;
    *r = (struct cluster_result){ .asked_as = entry->asked_as,
        .log_time_ms = entry->log_time_ms,
        .kind = entry->kind,
        .node_id = outcome->node_id,
        .collection_id = outcome->collection_id,
        .catalog_replica_id = outcome->catalog_replica_id,
        .plan_id = outcome->plan_id,
        .first_op_id = outcome->first_op_id,
        .op_count = outcome->op_count };
    return OMEN_OK;
}
