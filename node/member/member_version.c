/* The cluster's version: what every node can read, so that formats of that level may be proposed (common/feature.h).
 *
 * Each node reports the level of its build. When all that were not removed are up and report more than the recorded
 * version, the leader of the cluster group records what they have in common; nobody is asked, unless an operator has the
 * version held, to be able to go back to the build before. What is recorded is never taken back. A node that is added
 * between the reports and the entry makes the entry void (apply checks), and one of an older build is not added at
 * all. */
#include "common/err.h"

#include "common/log.h"
#include "node/member/member_impl.h"

/* What all nodes read, as far as is known now; 0: some are not heard of. */
static uint32_t level_in_common(struct member *m, const struct cluster_state *state)
{
    uint32_t common = UINT32_MAX;
    pthread_mutex_lock(&m->lock);
    for (uint32_t i = 0; i < state->node_count; i++) {
        if (state->nodes[i].state == CLUSTER_NODE_REMOVED) continue;
        const struct node_report *r = member_report_of(m, state->nodes[i].node_id);
        uint32_t level = r == NULL ? 0 : r->level;
        if (level < common) common = level;
    }
    pthread_mutex_unlock(&m->lock);
    return state->node_count == 0 ? 0 : common;
}

void member_version_turn(struct member *m, const struct cluster_state *state)
{
    if (state->version_held || state->version >= feature_level()) return;
    uint32_t level = level_in_common(m, state);
    if (level <= state->version) return;
    struct cluster_change change = { .kind = CLUSTER_CHANGE_VERSION_RAISE,
        .level = level,
        .node_id = (uint32_t)(state->next_node - 1) };
    struct err err;
    if (member_change(m, &change, NULL, NULL, &err) == OMEN_OK)
        LOG_INFO("cluster.version", "version=%u before=%u", level, state->version);
    else
        LOG_WARN("cluster.version", "version=%u error=\"%s\"", level, err.message);
}

void version_tell(const struct cluster_state *state, const struct cluster_result *result,
        struct doc_builder *reply)
{
    put_u64(reply, "version", state->version);
    put_bool(reply, "held", state->version_held);
}

enum omen_err version_ask(struct member *m, const struct admin_ask *ask, struct doc_builder *reply,
        uint32_t *leader_out, struct err *err)
{
    struct doc hold = field_doc(ask->doc, "hold");
    enum omen_err rc = OMEN_OK;
    if (hold.data != NULL && doc_type(hold) != DOC_TRUE && doc_type(hold) != DOC_FALSE)
        return err_set(err, OMEN_EINVAL, "hold", "is true or false");
    if (hold.data != NULL) {
        struct cluster_change change = { .kind = CLUSTER_CHANGE_VERSION_HOLD,
            .held = doc_type(hold) == DOC_TRUE,
            .asked_as = ask->asked_as };
        rc = member_change(m, &change, NULL, leader_out, err);
    }
    if (rc != OMEN_OK) return rc;
    struct cluster_state *state = member_state(m);
    version_tell(state, NULL, reply);
    begin_array(reply, "nodes");
    pthread_mutex_lock(&m->lock);
    for (uint32_t i = 0; i < state->node_count; i++) {
        const struct cluster_node *n = &state->nodes[i];
        if (n->state == CLUSTER_NODE_REMOVED) continue;
        const struct node_report *r = member_report_of(m, n->node_id);
        doc_begin_object(reply);
        put_u64(reply, "node_id", n->node_id);
        put_bool(reply, "up", r != NULL);
        put_u64(reply, "level", r == NULL ? 0 : r->level);
        doc_end(reply);
    }
    pthread_mutex_unlock(&m->lock);
    doc_end(reply);
    cluster_state_unref(state);
    return OMEN_OK;
}
