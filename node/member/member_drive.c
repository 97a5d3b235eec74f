/* The driver: at the leader of the cluster group, carries every recorded operation on by a step when it can
 * (CORRECTNESS K2).
 *
 *   ADD       the target has opened its empty replica -> its group takes it in: SPARE, then STANDBY, which gets the
 *   log
 *   CATCH_UP  the target says that it has caught up -> VOTER
 *   SWITCH    (the map names the target now) the source leads no more, and is no member any more -> END
 *   CANCELING the target is no member any more -> END
 *   A target that is down for cluster.move_grace before SWITCH is given up: CANCELING. Its plan finds another.
 *
 * A step is committed before its successor is begun, every action may be repeated, nothing is kept here between
 * turns: whoever leads next goes on. A damaged replica is replaced without being asked for, when a quorum of others
 * is well (D3). */
#include "common/err.h"

#include <stdio.h>

#include "common/check.h"
#include "common/log.h"
#include "common/placement/map_index.h"
#include "node/member/member_impl.h"

#define LEADERS_SETTLE_NS                                                                                    \
    15000000000ull                     /* of leading the cluster group, before leaders of shards are spread */
#define LEADERS_PAUSE_NS 3000000000ull /* between two transfers */

/* ---- recording ---- */

static void step_record(struct member *m, const struct cluster_op *op, enum cluster_op_step to)
{
    struct cluster_change change = { .kind = CLUSTER_CHANGE_OP_STEP,
        .op_id = op->op_id,
        .step_from = op->step,
        .step_to = to };
    struct err err;
    if (member_change(m, &change, NULL, NULL, &err) != OMEN_OK)
        LOG_WARN("operation.step", "op=%llu step=%d error=\"%s\"", (unsigned long long)op->op_id, (int)to,
                err.message);
    else
        LOG_INFO("operation.step", "op=%llu shard=%llu step=%s", (unsigned long long)op->op_id,
                (unsigned long long)op->shard_id, cluster_op_step_name(to));
}

static bool command(struct member *m, const struct cluster_op *op, const struct shard_report *shard,
        enum member_command what, uint64_t replica_id, uint32_t node_id)
{
    struct err err;
    enum omen_err rc = member_command(m, shard->leader_node, op->shard_id, what, replica_id, node_id, &err);
    if (rc == OMEN_OK) return true;
    LOG_DEBUG("operation.command", "op=%llu shard=%llu command=%d error=\"%s\"",
            (unsigned long long)op->op_id, (unsigned long long)op->shard_id, (int)what, err.message);
    return false;
}

/* The target's own report; false: not heard of. */
static bool target_row(struct member *m, const struct cluster_op *op, struct report_row *out)
{
    pthread_mutex_lock(&m->lock);
    const struct report_row *row = report_row_of(member_report_of(m, op->to_node), op->shard_id,
            op->to_replica);
    if (row != NULL) *out = *row;
    pthread_mutex_unlock(&m->lock);
    return row != NULL;
}

/* ---- steps ---- */

static void run_add(struct member *m, const struct cluster_op *op, const struct shard_report *shard)
{
    struct report_row row;
    if (op->to_replica == 0) {
        step_record(m, op, OP_SWITCH);
        return;
    }
    if (!target_row(m, op, &row)) return;
    if (!command(m, op, shard, COMMAND_ADD, op->to_replica, op->to_node)) return;
    if (!command(m, op, shard, COMMAND_STANDBY, op->to_replica, op->to_node)) return;
    step_record(m, op, OP_CATCH_UP);
}

static void run_catch_up(struct member *m, const struct cluster_op *op, const struct shard_report *shard)
{
    struct report_row row;
    if (!target_row(m, op, &row) || !row.ready || row.fetching || row.damaged) return;
    if (command(m, op, shard, COMMAND_VOTER, op->to_replica, op->to_node)) step_record(m, op, OP_SWITCH);
}

static void run_switch(struct member *m, const struct cluster_op *op, const struct shard_report *shard)
{
    if (op->from_replica != 0) {
        if (shard->leader_replica == op->from_replica) {
            (void)command(m, op, shard, COMMAND_TRANSFER, op->to_replica, op->to_node);
            return; /* who leads is told by the next reports */
        }
        if (!command(m, op, shard, COMMAND_REMOVE, op->from_replica, op->from_node)) return;
    }
    step_record(m, op, OP_END);
}

static void run_cancel(struct member *m, const struct cluster_op *op, const struct shard_report *shard)
{
    if (op->to_replica != 0) {
        if (shard->leader_replica == op->to_replica) {
            (void)command(m, op, shard, COMMAND_TRANSFER, 0, 0); /* to whoever has most of the log */
            return;
        }
        if (!command(m, op, shard, COMMAND_REMOVE, op->to_replica, op->to_node)) return;
    }
    step_record(m, op, OP_END);
}

/* The target is down, and was for so long that another should be looked for. Not before a version of the cluster in which
 * that can be said. */
static bool is_hopeless(struct member *m, const struct cluster_state *state, const struct cluster_op *op)
{
    uint64_t grace_ns = m->node->options.cluster.move_grace_ns;
    bool early = op->step == OP_ADD || op->step == OP_CATCH_UP;
    if (!early || op->to_node == 0 || op->to_node == op->from_node ||
            !feature_may(state->version, FEATURE_GIVE_UP))
        return false;
    pthread_mutex_lock(&m->lock);
    uint64_t silence_ns = member_silence_ns(m, op->to_node);
    pthread_mutex_unlock(&m->lock);
    return silence_ns > grace_ns + MEMBER_DOWN_NS;
}

/* How many operations copy from or to a node now: those past ADD count. */
static uint32_t copies_of(const struct cluster_state *state, uint32_t node_id)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < state->op_count; i++) {
        const struct cluster_op *op = &state->ops[i];
        n += op->step == OP_CATCH_UP && node_id != 0 && (op->from_node == node_id || op->to_node == node_id);
    }
    return n;
}

static void op_run(struct member *m, const struct cluster_state *state, const struct map_index *index,
        const struct cluster_op *op)
{
    const struct map_place *place = map_index_find(index, op->shard_id);
    if (place == NULL) { /* its collection was dropped meanwhile */
        step_record(m, op, OP_END);
        return;
    }
    if (is_hopeless(m, state, op)) {
        step_record(m, op, OP_CANCELING);
        return;
    }
    struct shard_report shard;
    member_shard_report(m, place->shard, &shard);
    if (shard.leader_node == 0) return;
    switch (op->step) {
    case OP_ADD:
        if (copies_of(state, op->to_node) < MEMBER_MOVES_PER_NODE &&
                copies_of(state, op->from_node) < MEMBER_MOVES_PER_NODE)
            run_add(m, op, &shard);
        break;
    case OP_CATCH_UP: run_catch_up(m, op, &shard); break;
    case OP_SWITCH: run_switch(m, op, &shard); break;
    case OP_CANCELING: run_cancel(m, op, &shard); break;
    case OP_END: break;
    }
}

/* ---- damage ---- */

struct damaged {
    uint64_t shard_id, replica_id;
    uint32_t node_id;
};

static bool damaged_next(struct member *m, const struct map_index *index, const struct cluster_state *state,
        struct damaged *out)
{
    for (uint32_t i = 0; i < index->count; i++) {
        const struct map_shard *shard = index->places[i].shard;
        if (cluster_state_op_of(state, shard->shard_id) != NULL) continue;
        struct shard_report report;
        member_shard_report(m, shard, &report);
        if (report.leader_node == 0 || report.ready < shard->replica_count / 2 + 1) continue;
        for (uint32_t r = 0; r < shard->replica_count; r++) {
            pthread_mutex_lock(&m->lock);
            const struct report_row *row = report_row_of(member_report_of(m, shard->node_ids[r]),
                    shard->shard_id, shard->replica_ids[r]);
            bool damaged = row != NULL && row->damaged;
            pthread_mutex_unlock(&m->lock);
            if (!damaged) continue;
            *out = (struct damaged){ shard->shard_id, shard->replica_ids[r], shard->node_ids[r] };
            return true;
        }
    }
    return false;
}

/* Replaced on the node where it is: that is where placement wanted it, and the disk may have lost one bit only. */
static void damage_repair(struct member *m, const struct map_index *index, const struct cluster_state *state)
{
    struct damaged d;
    if (!damaged_next(m, index, state, &d)) return;
    struct cluster_move move = { .shard_id = d.shard_id, .from_replica = d.replica_id, .to_node = d.node_id };
    struct cluster_change change = { .kind = CLUSTER_CHANGE_OPS_START,
        .why = OP_WHY_DAMAGED,
        .moves = &move,
        .move_count = 1 };
    struct err err;
    enum omen_err rc = member_change(m, &change, NULL, NULL, &err);
    LOG_WARN("shard.replace", "shard=%llu replica=%llu node=%u result=\"%s\"", (unsigned long long)d.shard_id,
            (unsigned long long)d.replica_id, d.node_id, rc == OMEN_OK ? "begun" : err.message);
}

/* ---- leaders ---- */

struct lead_count {
    uint32_t node_id, leads;
};

static struct lead_count *lead_of(struct lead_count *counts, uint32_t count, uint32_t node_id)
{
    for (uint32_t i = 0; i < count; i++)
        if (counts[i].node_id == node_id) return &counts[i];
    return NULL;
}

/* The ready replica of a shard on the node that leads least, if that is at least two less than its leader's node
 * does. */
static bool transfer_target(struct member *m, const struct map_shard *shard,
        const struct shard_report *report, struct lead_count *counts, uint32_t count,
        uint64_t *replica_id_out, uint32_t *node_id_out)
{
    const struct lead_count *from = lead_of(counts, count, report->leader_node), *best = NULL;
    if (from == NULL || report->ready < shard->replica_count) return false;
    for (uint32_t r = 0; r < shard->replica_count; r++) {
        const struct lead_count *to = lead_of(counts, count, shard->node_ids[r]);
        if (to == NULL || to->leads + 2 > from->leads || (best != NULL && to->leads >= best->leads)) continue;
        best = to;
        *replica_id_out = shard->replica_ids[r];
        *node_id_out = shard->node_ids[r];
    }
    return best != NULL;
}

/* Leaders take the writes: after nodes came and went they are spread again, one shard at a time, of shards of which
 * every replica is ready, so that nobody waits for more than the hand-over. */
static void leaders_spread(struct member *m, const struct map_index *index, const struct cluster_state *state)
{
    struct lead_count counts[MEMBER_NODES_MAX];
    uint32_t count = 0;
    uint64_t now = member_now_ns(m), replica_id = 0;
    uint32_t node_id = 0;
    if (state->op_count > 0 || now - atomic_load(&m->led_since_ns) < LEADERS_SETTLE_NS || now < m->spread_ns)
        return;
    pthread_mutex_lock(&m->lock);
    for (uint32_t i = 0; i < state->node_count && count < MEMBER_NODES_MAX; i++) {
        const struct node_report *report = member_report_of(m, state->nodes[i].node_id);
        bool bad = report != NULL && (report->disk_full || report->clock.off); /* it leads nothing */
        if (state->nodes[i].state == CLUSTER_NODE_ACTIVE && !bad)
            counts[count++] = (struct lead_count){ state->nodes[i].node_id, 0 };
    }
    pthread_mutex_unlock(&m->lock);
    for (uint32_t i = 0; i < index->count; i++) {
        struct shard_report report;
        member_shard_report(m, index->places[i].shard, &report);
        struct lead_count *c = lead_of(counts, count, report.leader_node);
        if (c != NULL) c->leads++;
    }
    for (uint32_t i = 0; i < index->count; i++) {
        const struct map_shard *shard = index->places[i].shard;
        struct shard_report report;
        struct err err;
        member_shard_report(m, shard, &report);
        if (!transfer_target(m, shard, &report, counts, count, &replica_id, &node_id)) continue;
        m->spread_ns = now + LEADERS_PAUSE_NS; /* until the reports show it */
        enum omen_err rc = member_command(m, report.leader_node, shard->shard_id, COMMAND_TRANSFER,
                replica_id, node_id, &err);
        LOG_INFO("leader.spread", "shard=%llu from=%u to=%u result=%s", (unsigned long long)shard->shard_id,
                report.leader_node, node_id, err_name(rc));
        return;
    }
}

/* ---- the turn ---- */

void member_drive_turn(struct member *m, const struct cluster_state *state)
{
    struct map_index *index = map_index_new(state->map);
    if (index == NULL) return;
    for (uint32_t i = 0; i < state->op_count && !atomic_load(&m->stopping); i++)
        op_run(m, state, index, &state->ops[i]);
    member_digest_turn(m, index, state);
    damage_repair(m, index, state);
    member_plans_turn(m, state);
    leaders_spread(m, index, state);
    map_index_unref(index);
}
