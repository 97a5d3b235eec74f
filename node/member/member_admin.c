/* Requests of operators: the actions of omenctl's cluster commands, as docs (common/wire/PROTOCOL.md, op "cluster").
 * Changes are entries of the cluster group, so only its leader makes them; others answer OMEN_ENOTLEADER with who
 * does. And changes of collections, which wait until every new shard has a leader. */
#include "common/err.h"

#include <stdio.h>

#include "common/check.h"
#include "common/log.h"
#include "common/placement/map_index.h"
#include "node/member/member_impl.h"

#define ADOPT_WAIT_MS 10000u
#define CREATE_WAIT_MS 10000u
#define POLL_MS 50u

typedef enum omen_err (*action)(struct member *m, const struct admin_ask *ask, struct doc_builder *reply,
        uint32_t *leader_out, struct err *err);

/* ---- nodes ---- */

enum omen_err node_known(const struct cluster_state *state, uint32_t node_id, struct err *err)
{
    const struct cluster_node *n = cluster_state_node(state, node_id);
    if (n != NULL && n->state != CLUSTER_NODE_REMOVED) return OMEN_OK;
    return err_set(err, OMEN_ENOTFOUND, "node_id", "there is no node %u", node_id);
}

enum omen_err node_state_set(struct member *m, const struct admin_ask *ask, uint32_t node_id,
        enum cluster_node_state state, uint32_t *leader_out, struct err *err)
{
    struct cluster_change change = { .kind = CLUSTER_CHANGE_NODE_STATE,
        .node_id = node_id,
        .node_state = state,
        .asked_as = ask->asked_as };
    return member_change(m, &change, NULL, leader_out, err);
}

/* What was told of the cluster's making, if it was asked for under this op id. */
static bool init_told(struct member *m, const struct op_id *asked_as)
{
    if (!member_is_open(m)) return false;
    struct cluster_state *state = member_state(m);
    bool told = cluster_state_result(state, asked_as, CLUSTER_CHANGE_INIT) != NULL;
    cluster_state_unref(state);
    return told;
}

static enum omen_err act_init(struct member *m, const struct admin_ask *ask, struct doc_builder *reply,
        uint32_t *leader_out, struct err *err)
{
    char name[CLUSTER_NAME_BYTES_MAX + 1], id[32];
    struct doc given = doc_member(ask->doc, (struct bytes){ (const uint8_t *)"name", 4 });
    if (!field_text(ask->doc, "name", name, sizeof name) && given.data != NULL)
        return err_set(err, OMEN_EINVAL, "name", "is a text of at most %d bytes", CLUSTER_NAME_BYTES_MAX);
    enum omen_err rc = OMEN_OK;
    if (!init_told(m, &ask->asked_as)) {
        rc = cluster_op_id_timely(&ask->asked_as, clock_wall_ms(m->node->options.clock), err);
        if (rc == OMEN_OK) rc = member_found(m, name, &ask->asked_as, err);
    }
    bool sure = rc == OMEN_OK ||
            rc == OMEN_EEXISTS; /* the latter once it is known whose doing the cluster is */
    for (uint32_t waited = 0; sure && waited < CREATE_WAIT_MS; waited += POLL_MS) {
        if (atomic_load(&m->shards_open)) break; /* the first entry is applied, the map is published */
        if (!member_sleep(m, POLL_MS)) break;
    }
    if (rc == OMEN_EEXISTS && init_told(m, &ask->asked_as)) rc = OMEN_OK;
    if (sure && !atomic_load(&m->shards_open))
        rc = err_set(err, OMEN_EUNKNOWN, "", "the cluster is begun, its first entry is not recorded yet");
    if (rc != OMEN_OK) return rc;
    snprintf(id, sizeof id, "%llu", (unsigned long long)m->node->dir.identity.cluster_id);
    put_text(reply, "cluster_id", id);
    put_u64(reply, "node_id", 1); /* who makes a cluster is its first node; any member may be asked again */
    return OMEN_OK;
}

/* The node that has this address in the state, once it is there. */
static uint32_t node_by_address(struct member *m, const char *address)
{
    struct cluster_state *state = member_state(m);
    uint32_t node_id = 0;
    for (uint32_t i = 0; i < state->node_count; i++)
        if (state->nodes[i].state != CLUSTER_NODE_REMOVED && strcmp(state->nodes[i].address, address) == 0)
            node_id = state->nodes[i].node_id;
    cluster_state_unref(state);
    return node_id;
}

static enum omen_err adopt_ask(struct member *m, const char *address, char *known_as, struct err *err)
{
    struct doc_builder *b = doc_builder_new(4096);
    struct doc request;
    if (b == NULL) return err_set(err, OMEN_ENOMEM, "", "no memory");
    doc_begin_object(b);
    put_text(b, "do", "adopt");
    put_text(b, "seed", m->node->options.cluster.address);
    doc_end(b);
    struct peer_reply reply = { .doc = { NULL, 0 } };
    buf_init(&reply.bytes);
    enum omen_err rc = doc_builder_finish(b, &request, err);
    if (rc == OMEN_OK) rc = peer_call(m->peers, address, request, MEMBER_PEER_MS, &reply, err);
    bool ours = rc == OMEN_EEXISTS && field_u64(reply.doc, "cluster_id") == m->node->dir.identity.cluster_id;
    if (ours) rc = OMEN_OK; /* taken in before */
    if (rc == OMEN_OK) (void)field_text(reply.doc, "address", known_as, OMEN_ADDRESS_BYTES_MAX + 1);
    peer_reply_fini(&reply);
    doc_builder_free(b);
    return rc;
}

static enum omen_err labels_take(struct doc request, bool needed, char *out, struct err *err)
{
    struct doc given = doc_member(request, (struct bytes){ (const uint8_t *)"labels", 6 });
    if (given.data == NULL && !needed) {
        out[0] = '\0';
        return OMEN_OK;
    }
    if (field_text(request, "labels", out, CLUSTER_LABELS_BYTES_MAX + 1)) return OMEN_OK;
    return err_set(err, OMEN_EINVAL, "labels", "is a text like zone=a,rack=2 of at most %d bytes",
            CLUSTER_LABELS_BYTES_MAX);
}

static enum omen_err labels_set(struct member *m, const struct admin_ask *ask, uint32_t node_id,
        const char *labels, uint32_t *leader_out, struct err *err)
{
    struct cluster_change change = { .kind = CLUSTER_CHANGE_NODE_UPDATE,
        .node_id = node_id,
        .asked_as = ask->asked_as };
    snprintf(change.labels, sizeof change.labels, "%s", labels);
    struct cluster_state *state = member_state(m);
    const struct cluster_node *n = cluster_state_node(state, node_id);
    enum omen_err rc = node_known(state, node_id, err);
    if (rc == OMEN_OK) {
        memcpy(change.address, n->address, sizeof change.address);
        memcpy(change.raft_address, n->raft_address, sizeof change.raft_address);
    }
    cluster_state_unref(state);
    return rc == OMEN_OK ? member_change(m, &change, NULL, leader_out, err) : rc;
}

static enum omen_err act_node_add(struct member *m, const struct admin_ask *ask, struct doc_builder *reply,
        uint32_t *leader_out, struct err *err)
{
    char address[OMEN_ADDRESS_BYTES_MAX + 1], known_as[OMEN_ADDRESS_BYTES_MAX + 1] = "";
    char labels[CLUSTER_LABELS_BYTES_MAX + 1]; /* beside those of its own configuration: these count */
    if (!field_text(ask->doc, "address", address, sizeof address) || address[0] == '\0')
        return err_set(err, OMEN_EINVAL, "address",
                "names the node port of the node to add, tcp://host:port");
    enum omen_err rc = labels_take(ask->doc, false, labels, err);
    if (rc == OMEN_OK) rc = adopt_ask(m, address, known_as, err);
    uint32_t node_id = 0;
    for (uint32_t waited = 0; rc == OMEN_OK && node_id == 0 && waited < ADOPT_WAIT_MS; waited += POLL_MS) {
        node_id = node_by_address(m, known_as);
        if (node_id == 0 && !member_sleep(m, POLL_MS)) break;
    }
    if (rc == OMEN_OK && node_id == 0)
        rc = err_set(err, OMEN_EUNKNOWN, "address",
                "the node at %s was told to join and has not done so yet; its log says why", address);
    if (rc == OMEN_OK && labels[0] != '\0') rc = labels_set(m, ask, node_id, labels, leader_out, err);
    if (rc == OMEN_OK) put_u64(reply, "node_id", node_id);
    return rc;
}

static enum omen_err act_activate(struct member *m, const struct admin_ask *ask, struct doc_builder *reply,
        uint32_t *leader_out, struct err *err)
{
    return node_state_set(m, ask, field_u32(ask->doc, "node_id"), CLUSTER_NODE_ACTIVE, leader_out, err);
}

static enum omen_err act_remove(struct member *m, const struct admin_ask *ask, struct doc_builder *reply,
        uint32_t *leader_out, struct err *err)
{
    uint32_t node_id = field_u32(ask->doc, "node_id");
    if (node_id == member_id(m)) { /* somebody else must lead the group that forgets us */
        struct err ignored;
        enum omen_err rc = replica_command(m->node->catalog_replica, COMMAND_TRANSFER, 0, 0, &ignored);
        *leader_out = member_leader(m);
        return err_set(err, OMEN_EBUSY, "node_id",
                rc == OMEN_OK ? "the node led the cluster group: leadership is handed over, try again"
                              : "the node leads the cluster group and nobody else can yet: try again");
    }
    return node_state_set(m, ask, node_id, CLUSTER_NODE_REMOVED, leader_out, err);
}

static enum omen_err act_label(struct member *m, const struct admin_ask *ask, struct doc_builder *reply,
        uint32_t *leader_out, struct err *err)
{
    char labels[CLUSTER_LABELS_BYTES_MAX + 1];
    enum omen_err rc = labels_take(ask->doc, true, labels, err);
    return rc == OMEN_OK ? labels_set(m, ask, field_u32(ask->doc, "node_id"), labels, leader_out, err) : rc;
}

/* ---- shards ---- */

static const struct map_place *shard_known(const struct map_index *index, uint64_t shard_id, struct err *err)
{
    const struct map_place *place = map_index_find(index, shard_id);
    if (place == NULL)
        (void)err_set(err, OMEN_ENOTFOUND, "shard_id", "there is no shard %llu",
                (unsigned long long)shard_id);
    return place;
}

static uint64_t replica_on(const struct map_shard *shard, uint32_t node_id)
{
    for (uint32_t r = 0; r < shard->replica_count; r++)
        if (shard->node_ids[r] == node_id) return shard->replica_ids[r];
    return 0;
}

static enum omen_err act_move(struct member *m, const struct admin_ask *ask, struct doc_builder *reply,
        uint32_t *leader_out, struct err *err)
{
    struct cluster_state *state = member_state(m);
    struct map_index *index = map_index_new(state->map);
    struct cluster_move move = { .shard_id = field_u64(ask->doc, "shard_id"),
        .to_node = field_u32(ask->doc, "to_node") };
    uint32_t from_node = field_u32(ask->doc, "from_node");
    const struct map_place *place = index == NULL ? NULL : shard_known(index, move.shard_id, err);
    enum omen_err rc = place == NULL ? OMEN_ENOTFOUND : OMEN_OK;
    if (rc == OMEN_OK) {
        move.from_replica = replica_on(place->shard, from_node);
        if (move.from_replica == 0 && from_node != 0)
            rc = err_set(err, OMEN_ENOTFOUND, "from_node", "node %u holds no replica of shard %llu",
                    from_node, (unsigned long long)move.shard_id);
    }
    struct cluster_change change = { .kind = CLUSTER_CHANGE_OPS_START,
        .why = OP_WHY_MOVE,
        .moves = &move,
        .move_count = 1,
        .asked_as = ask->asked_as };
    struct catalog_outcome outcome;
    if (rc == OMEN_OK) rc = member_change(m, &change, &outcome, leader_out, err);
    if (rc == OMEN_OK) put_u64(reply, "op_id", outcome.first_op_id);
    map_index_unref(index);
    cluster_state_unref(state);
    return rc;
}

static enum omen_err act_transfer(struct member *m, const struct admin_ask *ask, struct doc_builder *reply,
        uint32_t *leader_out, struct err *err)
{
    struct cluster_state *state = member_state(m);
    struct map_index *index = map_index_new(state->map);
    uint64_t shard_id = field_u64(ask->doc, "shard_id"), to_replica = 0;
    uint32_t to_node = field_u32(ask->doc, "to_node");
    const struct map_place *place = index == NULL ? NULL : shard_known(index, shard_id, err);
    enum omen_err rc = place == NULL ? OMEN_ENOTFOUND : OMEN_OK;
    if (rc == OMEN_OK && to_node != 0) {
        to_replica = replica_on(place->shard, to_node);
        if (to_replica == 0)
            rc = err_set(err, OMEN_ENOTFOUND, "to_node", "node %u holds no replica of shard %llu", to_node,
                    (unsigned long long)shard_id);
    }
    struct shard_report report = { 0 };
    if (rc == OMEN_OK) member_shard_report(m, place->shard, &report);
    if (rc == OMEN_OK)
        rc = member_command(m, report.leader_node, shard_id, COMMAND_TRANSFER, to_replica, to_node, err);
    if (rc == OMEN_OK) put_u64(reply, "node_id", to_node);
    map_index_unref(index);
    cluster_state_unref(state);
    return rc;
}

/* ---- operations ---- */

static enum omen_err act_cancel(struct member *m, const struct admin_ask *ask, struct doc_builder *reply,
        uint32_t *leader_out, struct err *err)
{
    struct cluster_change change = { .kind = CLUSTER_CHANGE_OP_CANCEL,
        .op_id = field_u64(ask->doc, "op_id"),
        .plan_id = field_u64(ask->doc, "plan_id"),
        .asked_as = ask->asked_as };
    if (change.op_id == 0 && change.plan_id == 0 && !field_bool(ask->doc, "all"))
        return err_set(err, OMEN_EINVAL, "op_id", "give op_id, plan_id or all");
    struct catalog_outcome outcome;
    enum omen_err rc = member_change(m, &change, &outcome, leader_out, err);
    if (rc == OMEN_OK) put_u64(reply, "canceled", outcome.op_count);
    return rc;
}

static enum omen_err act_throttle(struct member *m, const struct admin_ask *ask, struct doc_builder *reply,
        uint32_t *leader_out, struct err *err)
{
    struct cluster_change change = { .kind = CLUSTER_CHANGE_THROTTLE,
        .throttle_bytes_per_s = field_u64(ask->doc, "bytes_per_s"),
        .asked_as = ask->asked_as };
    return member_change(m, &change, NULL, leader_out, err);
}

/* ---- what was asked before ---- */

static void tell_nothing(const struct cluster_state *state, const struct cluster_result *r,
        struct doc_builder *reply)
{
}

static void tell_op(const struct cluster_state *state, const struct cluster_result *r,
        struct doc_builder *reply)
{
    put_u64(reply, "op_id", r->first_op_id);
}

static void tell_canceled(const struct cluster_state *state, const struct cluster_result *r,
        struct doc_builder *reply)
{
    put_u64(reply, "canceled", r->op_count);
}

/* ---- dispatch ---- */

static const struct {
    const char *name;
    action act;
    enum cluster_change_kind
            kind; /* of its change, the last if it makes several; 0: asked again, it does the same */
    void (*tell)(const struct cluster_state *state, const struct cluster_result *result,
            struct doc_builder *reply); /* what was told of it the first time */
} actions[] = {
    { "node_add", act_node_add, 0, NULL },
    { "node_drain", plan_drain_ask, CLUSTER_CHANGE_PLAN_START, plan_tell },
    { "node_activate", act_activate, CLUSTER_CHANGE_NODE_STATE, tell_nothing },
    { "node_remove", act_remove, CLUSTER_CHANGE_NODE_STATE, tell_nothing },
    { "node_label", act_label, CLUSTER_CHANGE_NODE_UPDATE, tell_nothing },
    { "replica_move", act_move, CLUSTER_CHANGE_OPS_START, tell_op },
    { "leader_transfer", act_transfer, 0, NULL },
    { "rebalance", plan_rebalance_ask, CLUSTER_CHANGE_PLAN_START, plan_tell },
    { "cancel", act_cancel, CLUSTER_CHANGE_OP_CANCEL, tell_canceled },
    { "throttle", act_throttle, CLUSTER_CHANGE_THROTTLE, tell_nothing },
    { "version", version_ask, CLUSTER_CHANGE_VERSION_HOLD, version_tell },
};

/* Looked up before anything is planned or checked: what a repetition finds is changed by its first. */
static enum omen_err action_run(struct member *m, size_t i, const struct admin_ask *ask,
        struct doc_builder *reply, uint32_t *leader_out, struct err *err)
{
    if (ask->asked_as.client == 0 || actions[i].kind == 0)
        return actions[i].act(m, ask, reply, leader_out, err);
    enum omen_err rc = member_barrier(m, leader_out,
            err); /* the first may have been made by the leader before us */
    if (rc != OMEN_OK) return rc;
    struct cluster_state *state = member_state(m);
    const struct cluster_result *r = cluster_state_result(state, &ask->asked_as, (uint32_t)actions[i].kind);
    if (r != NULL) actions[i].tell(state, r, reply);
    bool made = r != NULL;
    cluster_state_unref(state);
    if (made) return OMEN_OK;
    rc = cluster_op_id_timely(&ask->asked_as, clock_wall_ms(m->node->options.clock), err);
    return rc == OMEN_OK ? actions[i].act(m, ask, reply, leader_out, err) : rc;
}

static enum omen_err member_admin(struct member *m, const struct admin_ask *ask, struct doc_builder *reply,
        uint32_t *leader_out, struct err *err)
{
    *leader_out = 0;
    if (field_is(ask->doc, "do", "init")) return act_init(m, ask, reply, leader_out, err);
    if (!member_is_open(m))
        return err_set(err, OMEN_EUNAVAILABLE, "",
                "this node is not part of a cluster yet: omenctl cluster init");
    bool leads = member_leads(m);
    uint32_t leader = member_leader(m);
    if (field_is(ask->doc, "do", "status") && (leads || leader == 0)) {
        member_status_reply(m, reply);
        return OMEN_OK;
    }
    if (!leads) {
        *leader_out = leader == member_id(m) ? 0 : leader;
        return err_set(err, leader == 0 ? OMEN_EUNAVAILABLE : OMEN_ENOTLEADER, "",
                leader == 0 ? "the cluster group has no leader: a majority of its voters is not reachable"
                            : "node %u leads the cluster group",
                leader);
    }
    for (size_t i = 0; i < sizeof actions / sizeof *actions; i++)
        if (field_is(ask->doc, "do", actions[i].name)) return action_run(m, i, ask, reply, leader_out, err);
    return err_set(err, OMEN_EINVAL, "do", "is not known");
}

/* One call on a thread of the pool; its reply lives until release. */
struct admin_call {
    struct search_task task;
    struct member *member;
    struct shard_call *call;
    struct doc_builder *reply;
};

static void admin_run(struct search_task *task)
{
    struct admin_call *a = (struct admin_call *)((char *)task - offsetof(struct admin_call, task));
    struct shard_call *call = a->call;
    err_clear(&call->err);
    doc_begin_object(a->reply);
    const struct admin_ask ask = { call->in.cluster.request, call->in.cluster.asked_as };
    call->code = member_admin(a->member, &ask, a->reply, &call->leader_hint, &call->err);
    doc_end(a->reply);
    struct doc reply;
    enum omen_err rc = doc_builder_finish(a->reply, &reply, &call->err);
    if (call->code == OMEN_OK) call->code = rc;
    call->out.cluster.reply = call->code == OMEN_OK ? reply : (struct doc){ NULL, 0 };
    call->done(call);
}

void member_cluster_call(struct member *m, struct shard_call *call)
{
    struct admin_call *a = mem_must_calloc(1, sizeof *a);
    a->member = m;
    a->call = call;
    a->task.run = admin_run;
    a->reply = doc_builder_new(CLUSTER_REPLY_BYTES_MAX);
    call->service_data = a;
    if (a->reply != NULL && search_pool_submit(m->admin, &a->task)) return;
    call->code = err_set(&call->err, OMEN_EBUSY, "", "too many requests of operators wait");
    call->err.retry_after_ms = 200;
    call->done(call);
}

void member_cluster_release(struct shard_call *call)
{
    struct admin_call *a = call->service_data;
    call->service_data = NULL;
    if (a == NULL) return;
    if (a->reply != NULL) doc_builder_free(a->reply);
    mem_free(a);
}
