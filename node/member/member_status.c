/* The cluster on a page: what the state says and what the nodes reported, for omenctl cluster status. */
#include "common/err.h"

#include <stdio.h>

#include "common/placement/map_index.h"
#include "node/member/member_impl.h"

static const char *const node_states[] = { "", "active", "draining", "removed" };

static void cluster_put(struct member *m, const struct cluster_state *state, struct doc_builder *b)
{
    struct replica_status status;
    char id[32];
    replica_status(m->node->catalog_replica, &status);
    snprintf(id, sizeof id, "%llu", (unsigned long long)state->cluster_id);
    begin_object(b, "cluster");
    put_text(b, "id", id);
    put_text(b, "name", state->name);
    put_u64(b, "leader_node", member_leader(m));
    put_u64(b, "term", status.term);
    put_u64(b, "epoch", state->map->epoch);
    put_u64(b, "version", state->version);
    put_bool(b, "version_held", state->version_held);
    put_u64(b, "throttle_bytes_per_s", state->throttle_bytes_per_s);
    put_bool(b, "reports", member_leads(m)); /* false: not the leader, so it has not heard from the others */
    doc_end(b);
}

static void node_put(struct member *m, const struct cluster_state *state, const struct cluster_node *n,
        const struct replica_member *members, uint32_t member_count, struct doc_builder *b)
{
    struct clock_span median;
    uint64_t now = member_now_ns(m), replicas = 0, leaders = 0, bytes = 0, points = 0;
    bool voter = false;
    for (uint32_t i = 0; i < member_count; i++)
        voter |= members[i].replica_id == n->catalog_replica_id && members[i].role == REPLICA_VOTER;
    doc_begin_object(b);
    put_u64(b, "node_id", n->node_id);
    put_text(b, "address", n->address);
    put_text(b, "raft_address", n->raft_address);
    put_text(b, "labels", n->labels);
    put_text(b, "state", node_states[n->state]);
    put_bool(b, "voter", voter);
    pthread_mutex_lock(&m->lock);
    const struct node_report *r = member_report_of(m, n->node_id);
    for (uint32_t i = 0; r != NULL && i < r->count; i++) {
        if (r->rows[i].group == CATALOG_GROUP) continue;
        replicas++;
        leaders += r->rows[i].leader;
        bytes += r->rows[i].bytes;
        points += r->rows[i].points;
    }
    put_bool(b, "up", r != NULL);
    put_bool(b, "ready", r != NULL && r->why[0] == '\0');
    put_text(b, "why", r == NULL ? "not heard of" : r->why);
    put_u64(b, "report_age_ms", r == NULL ? 0 : (now - r->heard_ns) / 1000000);
    put_u64(b, "level", r == NULL ? 0 : r->level);
    put_u64(b, "disk_free", r == NULL ? 0 : r->disk_free);
    put_u64(b, "disk_total", r == NULL ? 0 : r->disk_total);
    if (r != NULL) node_memory_put(&r->memory, b);
    clock_status_put(m, r, clock_median_now(m, state, &median) ? &median : NULL, b);
    put_u64(b, "replicas", replicas);
    put_u64(b, "leaders", leaders);
    put_u64(b, "bytes", bytes);
    put_u64(b, "points", points);
    pthread_mutex_unlock(&m->lock);
    doc_end(b);
}

static const char *role_name(const struct report_row *row)
{
    if (row == NULL || !row->is_member) return "none";
    return row->voter ? "voter" : row->standby ? "standby" : "spare";
}

/* Of one that the map names. Needs lock. */
static bool differs(struct member *m, const struct map_shard *shard, uint64_t replica_id)
{
    for (uint32_t r = 0; r < shard->replica_count; r++)
        if (shard->replica_ids[r] == replica_id) return member_replica_differs(m, shard, r);
    return false;
}

static void replica_put(struct member *m, const struct map_shard *shard, uint64_t replica_id,
        uint32_t node_id, uint64_t newest, struct doc_builder *b)
{
    doc_begin_object(b);
    put_u64(b, "replica_id", replica_id);
    put_u64(b, "node_id", node_id);
    pthread_mutex_lock(&m->lock);
    const struct node_report *report = member_report_of(m, node_id);
    const struct report_row *row = report_row_of(report, shard->shard_id, replica_id);
    const char *state = report == NULL      ? "down"
            : row == NULL                   ? "missing"
            : row->damaged                  ? "damaged"
            : row->stopped                  ? "stopped"
            : differs(m, shard, replica_id) ? "differs"
            : row->fetching                 ? "fetching"
            : row->ready                    ? "ready"
                                            : "behind";
    put_text(b, "role", role_name(row));
    put_text(b, "state", state);
    put_bool(b, "leader", row != NULL && row->leader);
    put_bool(b, "ready", row != NULL && row->ready);
    put_u64(b, "term", row == NULL ? 0 : row->term);
    put_u64(b, "applied", row == NULL ? 0 : row->applied);
    put_u64(b, "lag", row == NULL || row->applied > newest ? 0 : newest - row->applied);
    put_u64(b, "bytes", row == NULL ? 0 : row->bytes);
    put_u64(b, "points", row == NULL ? 0 : row->points);
    put_u64(b, "stale_ms", report == NULL ? 0 : (member_now_ns(m) - report->heard_ns) / 1000000);
    pthread_mutex_unlock(&m->lock);
    doc_end(b);
}

static bool shard_names(const struct map_shard *shard, uint64_t replica_id)
{
    for (uint32_t r = 0; r < shard->replica_count; r++)
        if (shard->replica_ids[r] == replica_id) return true;
    return false;
}

/* The furthest that any replica has applied. */
static uint64_t newest_applied(struct member *m, uint64_t shard_id)
{
    uint64_t newest = 0;
    pthread_mutex_lock(&m->lock);
    for (uint32_t i = 0; i < MEMBER_NODES_MAX; i++) {
        const struct node_report *r = &m->reports[i];
        for (uint32_t k = 0; r->node_id != 0 && k < r->count; k++)
            if (r->rows[k].group == shard_id && r->rows[k].applied > newest) newest = r->rows[k].applied;
    }
    pthread_mutex_unlock(&m->lock);
    return newest;
}

static void shard_put(struct member *m, const struct cluster_state *state, const struct map_place *place,
        struct doc_builder *b)
{
    const struct map_shard *shard = place->shard;
    uint64_t newest = newest_applied(m, shard->shard_id);
    doc_begin_object(b);
    put_u64(b, "shard_id", shard->shard_id);
    put_text(b, "collection", place->collection->name);
    put_u64(b, "slot_first", shard->slot_first);
    put_u64(b, "slot_count", shard->slot_count);
    begin_array(b, "replicas");
    for (uint32_t r = 0; r < shard->replica_count; r++)
        replica_put(m, shard, shard->replica_ids[r], shard->node_ids[r], newest, b);
    const struct cluster_op *op = cluster_state_op_of(state, shard->shard_id);
    if (op != NULL && op->to_replica != 0 && !shard_names(shard, op->to_replica))
        replica_put(m, shard, op->to_replica, op->to_node, newest, b);
    if (op != NULL && op->from_replica != 0 && !shard_names(shard, op->from_replica))
        replica_put(m, shard, op->from_replica, op->from_node, newest, b);
    doc_end(b);
    doc_end(b);
}

static void op_put(struct member *m, const struct map_index *index, const struct cluster_op *op,
        struct doc_builder *b)
{
    const struct map_place *place = map_index_find(index, op->shard_id);
    struct shard_report report = { 0 };
    if (place != NULL) member_shard_report(m, place->shard, &report);
    doc_begin_object(b);
    put_u64(b, "op_id", op->op_id);
    put_u64(b, "plan_id", op->plan_id);
    put_u64(b, "shard_id", op->shard_id);
    put_text(b, "collection", place == NULL ? "" : place->collection->name);
    put_u64(b, "from_node", op->from_node);
    put_u64(b, "to_node", op->to_node);
    put_text(b, "step", cluster_op_step_name(op->step));
    put_text(b, "why", cluster_op_why_name(op->why));
    put_u64(b, "started_ms", op->started_ms);
    put_u64(b, "changed_ms", op->changed_ms);
    put_u64(b, "bytes", op->bytes);
    pthread_mutex_lock(&m->lock);
    const struct node_report *target = member_report_of(m, op->to_node);
    const struct report_row *row = report_row_of(target, op->shard_id, op->to_replica);
    put_u64(b, "bytes_done", row == NULL ? 0 : row->fetch_done);
    put_u64(b, "bytes_total", row == NULL ? 0 : row->fetch_total);
    const char *trouble = op->given_up           ? "given up: the target node was down for too long"
            : op->to_node != 0 && target == NULL ? "the target node is not heard of"
            : op->to_replica != 0 && row == NULL ? "the target has not opened its replica yet"
            : report.leader_node == 0            ? "the shard has no leader"
                                                 : "";
    put_text(b, "trouble", trouble);
    pthread_mutex_unlock(&m->lock);
    doc_end(b);
}

static void ended_put(const struct cluster_op *op, struct doc_builder *b)
{
    doc_begin_object(b);
    put_u64(b, "op_id", op->op_id);
    put_u64(b, "plan_id", op->plan_id);
    put_u64(b, "shard_id", op->shard_id);
    put_u64(b, "from_node", op->from_node);
    put_u64(b, "to_node", op->to_node);
    put_text(b, "why", cluster_op_why_name(op->why));
    put_text(b, "outcome", op->canceled ? "canceled" : "done");
    put_text(b, "reason", op->given_up ? "the target node was down for too long" : "");
    put_u64(b, "started_ms", op->started_ms);
    put_u64(b, "ended_ms", op->changed_ms);
    doc_end(b);
}

void member_status_reply(struct member *m, struct doc_builder *b)
{
    struct cluster_state *state = member_state(m);
    struct map_index *index = map_index_new(state->map);
    struct replica_member members[GROUP_MEMBERS_MAX];
    uint32_t member_count;
    replica_members(m->node->catalog_replica, members, &member_count);
    cluster_put(m, state, b);
    begin_array(b, "nodes");
    for (uint32_t i = 0; i < state->node_count; i++)
        node_put(m, state, &state->nodes[i], members, member_count, b);
    doc_end(b);
    begin_array(b, "shards");
    for (uint32_t i = 0; index != NULL && i < index->count; i++) shard_put(m, state, &index->places[i], b);
    doc_end(b);
    plans_put(m, state, b);
    begin_array(b, "operations");
    for (uint32_t i = 0; index != NULL && i < state->op_count; i++) op_put(m, index, &state->ops[i], b);
    doc_end(b);
    begin_array(b, "history");
    for (uint32_t i = 0; i < state->history_count; i++) ended_put(&state->history[i], b);
    doc_end(b);
    map_index_unref(index);
    cluster_state_unref(state);
}
