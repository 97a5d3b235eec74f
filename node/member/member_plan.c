/* Plans of moves, at the leader: asked for by operators, and carried on round by round by the driver. What should
 * move is the planner's business (node/cluster/plan.h); here are the sizes that nodes reported, the rounds, and what
 * is told of them.
 *
 * One loop for all: when no operation of a plan is under way it is planned again. Something is left: that is the
 * next round. Nothing: the plan ends. So a drain sees what came to its node by an older plan, a rebalance moves a
 * shard's second replica when its first has moved, and more moves than fit one entry come one entry after the other.
 * What a drain finds no place for waits while the rest moves, and is named in the status.
 *
 * It ends because every round brings the cluster nearer to being even (plan.h), and a rebalance because its rounds
 * are counted. Nothing of it is kept here: who leads next goes on with what is recorded. */
#include "common/err.h"

#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "common/placement/map_index.h"
#include "node/cluster/plan.h"
#include "node/member/member_impl.h"

#define FORECAST_ROUNDS 8u
#define ROUND_PAUSE_NS 1000000000ull /* between two looks */

/* What is planned with: the state without nodes that are down, and what a replica of each shard holds. */
struct plan_view {
    struct cluster_state *state;
    struct plan_size *sizes; /* [size_count] */
    uint32_t size_count;
    bool some_down; /* of the nodes */
};

static void view_fini(struct plan_view *v)
{
    mem_free(v->sizes);
    cluster_state_unref(v->state);
    *v = (struct plan_view){ .state = NULL };
}

/* OMEN_EUNAVAILABLE: a leader that is new does not know sizes yet, nor who is down; OMEN_ENOMEM. */
static enum omen_err view_take(struct member *m, const struct cluster_state *state, struct plan_view *out,
        struct err *err)
{
    uint32_t down[MEMBER_NODES_MAX], down_count = 0;
    bool settled = member_now_ns(m) - atomic_load(&m->led_since_ns) >= MEMBER_SETTLE_NS;
    *out = (struct plan_view){ .state = NULL };
    pthread_mutex_lock(&m->lock);
    for (uint32_t i = 0; i < state->node_count && down_count < MEMBER_NODES_MAX; i++)
        if (state->nodes[i].state != CLUSTER_NODE_REMOVED &&
                member_report_of(m, state->nodes[i].node_id) == NULL)
            down[down_count++] = state->nodes[i].node_id;
    pthread_mutex_unlock(&m->lock);
    if (down_count > 0 && !settled) {
        (void)err_set(err, OMEN_EUNAVAILABLE, "", "not every node has reported to the new leader yet");
        err->retry_after_ms = 500;
        return OMEN_EUNAVAILABLE;
    }
    out->some_down = down_count > 0;
    struct map_index *index = map_index_new(state->map);
    out->state = plan_state_without(state, down, down_count);
    if (index == NULL || out->state == NULL) {
        map_index_unref(index);
        view_fini(out);
        return err_set(err, OMEN_ENOMEM, "", "no memory for a plan");
    }
    out->sizes = mem_must_calloc(index->count + 1, sizeof *out->sizes);
    for (uint32_t i = 0; i < index->count; i++) {
        struct shard_report report;
        member_shard_report(m, index->places[i].shard, &report);
        out->sizes[out->size_count++] = (struct plan_size){ index->places[i].shard_id, report.bytes };
    }
    map_index_unref(index);
    return OMEN_OK;
}

/* ---- rounds ---- */

/* Moves to be made at once, and what is expected after them. */
struct round {
    struct plan_rounds all;
    uint32_t ahead;
    uint64_t bytes_ahead;
    struct plan_stuck stuck;
};

static uint64_t size_of(const struct plan_view *v, uint64_t shard_id)
{
    uint32_t low = 0, high = v->size_count;
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (v->sizes[mid].shard_id < shard_id)
            low = mid + 1;
        else
            high = mid;
    }
    return low < v->size_count && v->sizes[low].shard_id == shard_id ? v->sizes[low].bytes : 0;
}

/* Replicas that are, or will be, on a node when the moves of this round are gone: to be drained later. */
static void drain_ahead(const struct plan_view *v, uint32_t node_id, struct round *round)
{
    const struct map *map = v->state->map;
    int64_t count = -(int64_t)round->all.count, bytes = -(int64_t)round->all.bytes_total;
    for (uint32_t c = 0; c < map->collection_count; c++)
        for (uint32_t s = 0; s < map->collections[c].shard_count; s++)
            for (uint32_t r = 0; r < map->collections[c].shards[s].replica_count; r++) {
                if (map->collections[c].shards[s].node_ids[r] != node_id) continue;
                count++;
                bytes += (int64_t)size_of(v, map->collections[c].shards[s].shard_id);
            }
    for (uint32_t i = 0; i < v->state->op_count; i++) {
        const struct cluster_op *op = &v->state->ops[i];
        if (op->step == OP_SWITCH || op->step == OP_CANCELING) continue; /* as the map says */
        int64_t change = (op->to_node == node_id) - (op->from_node == node_id);
        count += change;
        bytes += change * (int64_t)size_of(v, op->shard_id);
    }
    round->ahead = count > 0 ? (uint32_t)count : 0;
    round->bytes_ahead = bytes > 0 ? (uint64_t)bytes : 0;
}

/* `node_id` 0: rebalance. round->all is to be finished in every case. */
static enum omen_err round_plan(const struct plan_view *v, uint32_t node_id, struct round *round,
        struct err *err)
{
    struct plan_rounds *all = &round->all;
    *round = (struct round){ .ahead = 0 };
    if (node_id == 0) {
        enum omen_err rc = plan_rebalance_rounds(v->state, v->sizes, v->size_count, FORECAST_ROUNDS, all,
                err);
        if (rc != OMEN_OK) return rc;
        round->ahead = all->count - all->first_count;
        round->bytes_ahead = all->bytes_total - all->bytes_first;
        return OMEN_OK;
    }
    enum omen_err rc = plan_drain(v->state, node_id, v->sizes, v->size_count, &all->moves, &all->count,
            &round->stuck, err);
    if (rc != OMEN_OK) return rc;
    all->first_count = all->count;
    for (uint32_t i = 0; i < all->count; i++) {
        all->moves[i].round = 1;
        all->bytes_total += all->moves[i].bytes;
    }
    all->bytes_first = all->bytes_total;
    drain_ahead(v, node_id, round);
    return OMEN_OK;
}

static enum omen_err round_record(struct member *m, struct cluster_change *change, const struct round *round,
        struct catalog_outcome *outcome_out, uint32_t *leader_out, struct err *err)
{
    uint32_t count = round->all.first_count;
    struct cluster_move *moves = mem_must_calloc(count + 1, sizeof *moves);
    for (uint32_t i = 0; i < count; i++) {
        const struct plan_move *p = &round->all.moves[i];
        moves[i] = (struct cluster_move){ p->shard_id, p->from_replica, p->to_node, p->bytes };
    }
    change->moves = moves;
    change->move_count = count;
    change->ahead = round->ahead;
    change->bytes_ahead = round->bytes_ahead;
    enum omen_err rc = member_change(m, change, outcome_out, leader_out, err);
    change->moves = NULL;
    mem_free(moves);
    return rc;
}

/* ---- the driver's turn ---- */

/* "": none any more. There is a place for each plan that may be under way; those of plans that ended are taken. */
static void trouble_set(struct member *m, const struct cluster_state *state, uint64_t plan_id,
        const char *text)
{
    struct plan_trouble *at = NULL;
    pthread_mutex_lock(&m->lock);
    for (uint32_t i = 0; i < CLUSTER_PLANS_MAX; i++) {
        struct plan_trouble *t = &m->plan_troubles[i];
        bool known = false;
        for (uint32_t k = 0; k < state->plan_count; k++) known |= state->plans[k].plan_id == t->plan_id;
        if (!known) t->plan_id = 0;
        if (t->plan_id == plan_id || (at == NULL && t->plan_id == 0)) at = t;
        if (t->plan_id == plan_id) break;
    }
    if (at != NULL && text[0] == '\0')
        at->plan_id = 0;
    else if (at != NULL) {
        at->plan_id = plan_id;
        snprintf(at->text, sizeof at->text, "%.*s", (int)sizeof at->text - 1, text);
    }
    pthread_mutex_unlock(&m->lock);
}

static void trouble_get(struct member *m, uint64_t plan_id, char *text_out)
{
    text_out[0] = '\0';
    pthread_mutex_lock(&m->lock);
    for (uint32_t i = 0; i < CLUSTER_PLANS_MAX; i++)
        if (m->plan_troubles[i].plan_id == plan_id)
            memcpy(text_out, m->plan_troubles[i].text, sizeof m->plan_troubles[i].text);
    pthread_mutex_unlock(&m->lock);
}

/* The next round of a plan of which nothing is under way, or its end. */
static void plan_step(struct member *m, const struct cluster_state *state, const struct cluster_plan *plan)
{
    struct plan_view view;
    struct round round = { .ahead = 0 };
    struct err err;
    struct cluster_change change = { .kind = CLUSTER_CHANGE_PLAN_STEP, .plan_id = plan->plan_id };
    enum omen_err rc = view_take(m, state, &view, &err);
    if (rc == OMEN_OK) rc = round_plan(&view, plan->node_id, &round, &err);
    bool last = plan->node_id == 0 && plan->rounds >= CLUSTER_PLAN_ROUNDS_MAX;
    if (last) round.all.first_count = 0;
    bool ends = rc == OMEN_OK && round.all.first_count == 0;
    bool waits = ends && plan->node_id != 0 && cluster_state_shard_on(state, plan->node_id) != 0;
    if (rc == OMEN_OK && !waits) rc = round_record(m, &change, &round, NULL, NULL, &err);
    if (rc == OMEN_OK && !waits)
        LOG_INFO("plan.round", "plan=%llu why=%s round=%u moves=%u bytes=%llu ahead=%u%s",
                (unsigned long long)plan->plan_id, cluster_op_why_name(plan->why), plan->rounds + !ends,
                round.all.first_count, (unsigned long long)round.all.bytes_first, round.ahead,
                ends ? " end=true" : "");
    char stuck[sizeof m->plan_troubles[0].text];
    plan_stuck_text(&round.stuck, stuck, sizeof stuck);
    trouble_set(m, state, plan->plan_id,
            rc != OMEN_OK              ? err.message
                    : stuck[0] != '\0' ? stuck
                    : waits            ? "operations of other plans move its replicas first"
                                       : "");
    plan_rounds_fini(&round.all);
    view_fini(&view);
}

void member_plans_turn(struct member *m, const struct cluster_state *state)
{
    uint64_t now = member_now_ns(m);
    if (state->plan_count == 0 || now < m->plans_ns) return;
    for (uint32_t i = 0; i < state->plan_count && !atomic_load(&m->stopping); i++) {
        const struct cluster_plan *plan = &state->plans[i];
        bool under_way = plan->ending;
        for (uint32_t k = 0; k < state->op_count; k++) under_way |= state->ops[k].plan_id == plan->plan_id;
        if (under_way) continue;
        plan_step(m, state, plan);
        m->plans_ns = now + ROUND_PAUSE_NS;
    }
}

/* ---- requests ---- */

static void moves_put(const struct cluster_state *state, const struct plan_rounds *plan,
        struct doc_builder *b)
{
    begin_array(b, "moves");
    for (uint32_t i = 0; i < plan->count; i++) {
        const struct plan_move *move = &plan->moves[i];
        const struct map_collection *c = map_find_id(state->map, move->collection_id);
        doc_begin_object(b);
        put_u64(b, "shard_id", move->shard_id);
        put_text(b, "collection", c == NULL ? "" : c->name);
        put_u64(b, "from_node", move->from_node);
        put_u64(b, "to_node", move->to_node);
        put_u64(b, "bytes", move->bytes);
        put_u64(b, "round", move->round);
        put_text(b, "why", move->why);
        doc_end(b);
    }
    doc_end(b);
    put_u64(b, "bytes_total", plan->bytes_total);
    put_bool(b, "more", plan->more);
}

enum omen_err plan_rebalance_ask(struct member *m, const struct admin_ask *ask, struct doc_builder *reply,
        uint32_t *leader_out, struct err *err)
{
    struct cluster_state *state = member_state(m);
    const struct cluster_plan *under_way = cluster_state_plan_for(state, 0);
    struct plan_view view;
    struct round round = { .ahead = 0 };
    struct cluster_change change = { .kind = CLUSTER_CHANGE_PLAN_START,
        .why = OP_WHY_REBALANCE,
        .asked_as = ask->asked_as };
    struct catalog_outcome outcome = { .plan_id = under_way == NULL ? 0 : under_way->plan_id };
    bool apply = field_bool(ask->doc, "apply");
    enum omen_err rc = view_take(m, state, &view, err);
    if (rc == OMEN_OK) rc = round_plan(&view, 0, &round, err);
    if (rc == OMEN_OK && apply && round.all.count > 0)
        rc = round_record(m, &change, &round, &outcome, leader_out, err);
    if (rc == OMEN_OK) {
        put_u64(reply, "plan_id", apply ? outcome.plan_id : 0);
        put_u64(reply, "bytes_minimum", round.all.bytes_minimum);
        moves_put(state, &round.all, reply);
    }
    plan_rounds_fini(&round.all);
    view_fini(&view);
    cluster_state_unref(state);
    return rc;
}

/* Something is being moved off the node already, or to be: by a drain of it, or by an operation. */
static bool leaves(const struct cluster_state *state, uint32_t node_id)
{
    bool found = cluster_state_plan_for(state, node_id) != NULL;
    for (uint32_t i = 0; i < state->op_count; i++)
        found |= state->ops[i].from_node == node_id && state->ops[i].step != OP_CANCELING;
    return found;
}

enum omen_err plan_drain_ask(struct member *m, const struct admin_ask *ask, struct doc_builder *reply,
        uint32_t *leader_out, struct err *err)
{
    struct cluster_state *state = member_state(m);
    struct plan_view view = { .state = NULL };
    struct round round = { .ahead = 0 };
    struct cluster_change change = { .kind = CLUSTER_CHANGE_PLAN_START,
        .why = OP_WHY_DRAIN,
        .node_id = field_u32(ask->doc, "node_id"),
        .asked_as = ask->asked_as };
    struct catalog_outcome outcome = { .plan_id = 0 };
    char stuck[sizeof m->plan_troubles[0].text];
    enum omen_err rc = node_known(state, change.node_id, err);
    if (rc == OMEN_OK) rc = view_take(m, state, &view, err);
    if (rc == OMEN_OK) rc = round_plan(&view, change.node_id, &round, err);
    plan_stuck_text(&round.stuck, stuck, sizeof stuck);
    /* Clients ask again while it is unavailable: a node may come up. */
    if (rc == OMEN_OK && stuck[0] != '\0' && round.all.count == 0 && !leaves(state, change.node_id))
        rc = err_set(err, view.some_down ? OMEN_EUNAVAILABLE : OMEN_EINVAL, "node_id", "%s", stuck);
    if (rc == OMEN_OK && !field_bool(ask->doc, "dry_run"))
        rc = round_record(m, &change, &round, &outcome, leader_out, err);
    if (rc == OMEN_OK) {
        put_u64(reply, "plan_id", outcome.plan_id);
        put_text(reply, "trouble", stuck);
        moves_put(state, &round.all, reply);
    }
    plan_rounds_fini(&round.all);
    view_fini(&view);
    cluster_state_unref(state);
    return rc;
}

/* The moves that are still known of: why each was to be made was told the first time only. */
void plan_tell(const struct cluster_state *state, const struct cluster_result *r, struct doc_builder *reply)
{
    uint64_t total = 0;
    put_u64(reply, "plan_id", r->plan_id);
    begin_array(reply, "moves");
    for (uint32_t i = 0; i < state->op_count + state->history_count; i++) {
        const struct cluster_op *op = i < state->history_count ? &state->history[i]
                                                               : &state->ops[i - state->history_count];
        const struct map_collection *c = map_find_id(state->map, op->collection_id);
        if (op->plan_id != r->plan_id) continue;
        total += op->bytes;
        doc_begin_object(reply);
        put_u64(reply, "shard_id", op->shard_id);
        put_text(reply, "collection", c == NULL ? "" : c->name);
        put_u64(reply, "from_node", op->from_node);
        put_u64(reply, "to_node", op->to_node);
        put_u64(reply, "bytes", op->bytes);
        put_text(reply, "why", "begun before");
        doc_end(reply);
    }
    doc_end(reply);
    put_u64(reply, "bytes_total", total);
    put_u64(reply, "bytes_minimum", 0);
    put_bool(reply, "more", false);
}

/* ---- status ---- */

static void plan_put(const struct cluster_plan *plan, const char *trouble, struct doc_builder *b)
{
    doc_begin_object(b);
    put_u64(b, "plan_id", plan->plan_id);
    put_text(b, "why", cluster_op_why_name(plan->why));
    put_u64(b, "node_id", plan->node_id);
    put_u64(b, "started_ms", plan->started_ms);
    put_u64(b, "rounds", plan->rounds);
    put_u64(b, "moves_begun", plan->begun);
    put_u64(b, "moves_done", plan->done);
    put_u64(b, "moves_canceled", plan->canceled);
    put_u64(b, "moves_ahead", plan->ahead);
    put_u64(b, "bytes_begun", plan->bytes_begun);
    put_u64(b, "bytes_done", plan->bytes_done);
    put_u64(b, "bytes_ahead", plan->bytes_ahead);
    put_bool(b, "canceled", plan->ending);
    if (trouble == NULL)
        put_u64(b, "ended_ms", plan->changed_ms);
    else
        put_text(b, "trouble", utf8_valid(trouble, strlen(trouble)) ? trouble : "");
    doc_end(b);
}

void plans_put(struct member *m, const struct cluster_state *state, struct doc_builder *b)
{
    char trouble[sizeof m->plan_troubles[0].text];
    begin_array(b, "plans");
    for (uint32_t i = 0; i < state->plan_count; i++) {
        trouble_get(m, state->plans[i].plan_id, trouble);
        plan_put(&state->plans[i], trouble, b);
    }
    doc_end(b);
    begin_array(b, "plans_ended");
    for (uint32_t i = 0; i < state->plan_history_count; i++) plan_put(&state->plan_history[i], NULL, b);
    doc_end(b);
}
