/* Changes of collections and aliases in a cluster: recorded by the leader of the cluster group; what they entail
 * follows on every node from the state (member_reconcile.c). A create is answered when every new shard has a leader,
 * so that the next write finds one. */
#include "common/err.h"

#include "common/check.h"
#include "common/log.h"
#include "node/member/member_impl.h"

#define CREATE_WAIT_MS 10000u
#define POLL_MS 20u

/* Active nodes in the order in which new replicas should go to them, more room first. Those that are up and have room
 * are willing and come first; the others are a last resort. */
static uint32_t nodes_preferred(struct member *m, const struct cluster_state *state, uint32_t *node_ids,
        uint32_t *willing_out)
{
    uint64_t weight[MEMBER_NODES_MAX];
    uint32_t n = 0;
    *willing_out = 0;
    pthread_mutex_lock(&m->lock);
    for (uint32_t i = 0; i < state->node_count && n < MEMBER_NODES_MAX; i++) {
        if (state->nodes[i].state != CLUSTER_NODE_ACTIVE) continue;
        const struct node_report *r = member_report_of(m, state->nodes[i].node_id);
        /* In steps of an eighth of the disk: equal nodes stay in the order of their ids. */
        uint64_t w = r == NULL || r->disk_full || r->disk_total == 0
                ? 0
                : 1 + 8 * r->disk_free / (r->disk_total + 1);
        *willing_out += w > 0;
        uint32_t at = n++;
        for (; at > 0 && weight[at - 1] < w; at--) {
            weight[at] = weight[at - 1];
            node_ids[at] = node_ids[at - 1];
        }
        weight[at] = w;
        node_ids[at] = state->nodes[i].node_id;
    }
    pthread_mutex_unlock(&m->lock);
    return n;
}

static bool shards_led(struct member *m, uint64_t collection_id)
{
    struct cluster_state *state = member_state(m);
    const struct map_collection *c = map_find_id(state->map, collection_id);
    bool led = true;
    for (uint32_t i = 0; c != NULL && led && i < c->shard_count; i++) {
        struct shard_report report;
        member_shard_report(m, &c->shards[i], &report);
        led = report.leader_node != 0;
    }
    cluster_state_unref(state);
    return led;
}

/* Created is created: one that nobody leads yet is told as such in the log, and writes to it are tried again. */
static void create_wait(struct member *m, uint64_t collection_id, uint64_t deadline_ns)
{
    uint64_t until = member_now_ns(m) + CREATE_WAIT_MS * 1000000ull;
    if (deadline_ns != 0 && deadline_ns < until) until = deadline_ns;
    while (!shards_led(m, collection_id)) {
        if (member_now_ns(m) >= until || !member_sleep(m, POLL_MS)) {
            LOG_WARN("collection.create", "id=%llu reason=\"not every shard has a leader yet\"",
                    (unsigned long long)collection_id);
            return;
        }
    }
}

void member_catalog_call(struct member *m, struct shard_call *call)
{
    struct err *err = &call->err;
    err_clear(err);
    call->leader_hint = 0;
    if (!member_leads(m)) {
        uint32_t leader = member_leader(m);
        call->leader_hint = leader == member_id(m) ? 0 : leader;
        call->code = err_set(err, call->leader_hint == 0 ? OMEN_EUNAVAILABLE : OMEN_ENOTLEADER, "",
                "this node does not lead the cluster group");
        call->done(call);
        return;
    }
    const struct catalog_change *change = &call->in.catalog;
    call->code = member_op_id_timely(m, &change->asked_as, (uint32_t)change->kind, &call->leader_hint, err);
    if (call->code != OMEN_OK) {
        call->done(call);
        return;
    }
    uint32_t node_ids[MEMBER_NODES_MAX], count, willing, len;
    uint8_t *entry;
    struct cluster_state *state = member_state(m);
    count = nodes_preferred(m, state, node_ids, &willing);
    cluster_state_unref(state);
    enum omen_err rc = catalog_entry_encode(change, clock_wall_ms(m->node->options.clock), node_ids, count,
            willing, &entry, &len);
    struct catalog_outcome outcome = { .code = OMEN_OK };
    if (rc != OMEN_OK)
        (void)err_set(err, rc, "", "no memory to record the change");
    else
        rc = member_propose(m, entry, len, &outcome, &call->leader_hint, err);
    if (rc == OMEN_OK && change->kind == CATALOG_CREATE)
        create_wait(m, outcome.collection_id, call->deadline_ns);
    if (rc == OMEN_OK) { /* the reply brings the map that shows it */
        state = member_state(m);
        node_map_publish(m->node, map_ref(state->map));
        cluster_state_unref(state);
    }
    call->out.catalog.collection_id = outcome.collection_id;
    call->code = rc;
    call->done(call);
}
