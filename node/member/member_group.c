/* Who is in the cluster group: every node as a standby that follows, a few of them as voters. At its leader; one
 * change a turn.
 *
 *   voters wanted: 1 below three nodes, 3 from three on, 5 from five on; of nodes that are active, up, and in
 *   different failure domains where that can be had. One that drains, or has been down for GROUP_REPLACE_NS, is
 *   replaced when there is another: first one more, then one less, so the group never rests on fewer than before. */
#include "common/err.h"

#include "common/log.h"
#include "node/member/member_impl.h"

#define GROUP_REPLACE_NS 60000000000ull

struct seat {
    const struct cluster_node *node;
    bool is_member, voter, up, good; /* good: may vote */
    bool lost;                       /* down for long */
    bool unfit;                      /* to lead: its disk is full, or its clock off */
};

struct seats {
    struct seat items[MEMBER_NODES_MAX];
    uint32_t count, voters, good_voters, good;
};

static void act(struct member *m, enum member_command command, uint64_t replica_id, uint32_t node_id)
{
    struct err err;
    enum omen_err rc = replica_command(m->node->catalog_replica, command, replica_id, node_id, &err);
    if (rc == OMEN_OK)
        LOG_INFO("cluster.group", "node=%u replica=%llu change=%d", node_id, (unsigned long long)replica_id,
                (int)command);
    else
        LOG_DEBUG("cluster.group", "node=%u change=%d error=\"%s\"", node_id, (int)command, err.message);
}

static void seats_fill(struct member *m, const struct cluster_state *state,
        const struct replica_member *members, uint32_t member_count, struct seats *out)
{
    uint64_t now = member_now_ns(m);
    *out = (struct seats){ .count = 0 };
    pthread_mutex_lock(&m->lock);
    for (uint32_t i = 0; i < state->node_count && out->count < MEMBER_NODES_MAX; i++) {
        const struct cluster_node *n = &state->nodes[i];
        if (n->state == CLUSTER_NODE_REMOVED) continue;
        struct seat *s = &out->items[out->count++];
        *s = (struct seat){ .node = n };
        for (uint32_t k = 0; k < member_count; k++) {
            if (members[k].replica_id != n->catalog_replica_id) continue;
            s->is_member = members[k].role != REPLICA_SPARE;
            s->voter = members[k].role == REPLICA_VOTER;
        }
        uint64_t heard_ns = 0;
        for (uint32_t k = 0; k < MEMBER_NODES_MAX; k++)
            if (m->reports[k].node_id == n->node_id) heard_ns = m->reports[k].heard_ns;
        uint64_t led_ns = atomic_load(&m->led_since_ns), silent_since = heard_ns > led_ns ? heard_ns : led_ns;
        const struct node_report *report = member_report_of(m, n->node_id);
        s->up = report != NULL;
        s->unfit = s->up && (report->disk_full || report->clock.off);
        s->lost = now - silent_since > GROUP_REPLACE_NS;
        s->good = n->state == CLUSTER_NODE_ACTIVE && s->up && s->is_member;
        out->voters += s->voter;
        out->good += s->good;
        out->good_voters += s->voter && s->good;
    }
    pthread_mutex_unlock(&m->lock);
}

static uint32_t voters_wanted(const struct seats *s)
{
    uint32_t nodes = 0;
    for (uint32_t i = 0; i < s->count; i++) nodes += s->items[i].node->state == CLUSTER_NODE_ACTIVE;
    return nodes >= 5 ? 5 : nodes >= 3 ? 3 : 1;
}

static uint32_t voters_in_domain(const struct seats *s, const struct cluster_node *node)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->count; i++)
        n += s->items[i].voter && s->items[i].node != node && cluster_same_domain(s->items[i].node, node);
    return n;
}

/* The standby that should vote next: in the domain with the fewest voters. NULL: none is fit. */
static const struct cluster_node *promotable(const struct seats *s)
{
    const struct cluster_node *best = NULL;
    uint32_t best_crowd = UINT32_MAX;
    for (uint32_t i = 0; i < s->count; i++) {
        const struct seat *seat = &s->items[i];
        uint32_t crowd = voters_in_domain(s, seat->node);
        if (seat->voter || !seat->good || crowd >= best_crowd) continue;
        best = seat->node;
        best_crowd = crowd;
    }
    return best;
}

/* The voter that should cease to: one that drains or is lost, else the one in the most crowded domain. */
static const struct cluster_node *demotable(const struct member *m, const struct seats *s)
{
    const struct cluster_node *best = NULL;
    uint32_t best_score = 0;
    for (uint32_t i = 0; i < s->count; i++) {
        const struct seat *seat = &s->items[i];
        if (!seat->voter) continue;
        uint32_t score = 1 + voters_in_domain(s, seat->node);
        if (seat->node->node_id == member_id(m)) score = 1; /* ourselves last: we lead */
        if (seat->node->state != CLUSTER_NODE_ACTIVE) score += 2000;
        if (seat->lost) score += 1000;
        if (score <= best_score) continue;
        best = seat->node;
        best_score = score;
    }
    return best;
}

static bool members_settle(struct member *m, const struct cluster_state *state, const struct seats *s,
        const struct replica_member *members, uint32_t member_count)
{
    for (uint32_t i = 0; i < s->count; i++) {
        const struct cluster_node *n = s->items[i].node;
        if (s->items[i].is_member) continue;
        act(m, COMMAND_ADD, n->catalog_replica_id, n->node_id);
        act(m, COMMAND_STANDBY, n->catalog_replica_id, n->node_id);
        return true;
    }
    for (uint32_t i = 0; i < member_count; i++) {
        const struct cluster_node *n = cluster_state_node(state, (uint32_t)members[i].node_id);
        if (n == NULL || n->state != CLUSTER_NODE_REMOVED) continue;
        if (n->node_id == member_id(m))
            act(m, COMMAND_TRANSFER, 0, 0); /* who leads next removes us */
        else
            act(m, COMMAND_REMOVE, members[i].replica_id, n->node_id);
        return true;
    }
    return false;
}

/* A leader without room for what it should record, or whose clock would date it wrongly, hands over to a voter that is
 * fit. */
static bool give_way_when_unfit(struct member *m, const struct seats *s)
{
    struct replica_status status;
    replica_status(m->node->catalog_replica, &status);
    const struct shard_env *env = &m->node->env;
    if (!status.disk_full && !atomic_load(&env->disk_full) && !atomic_load(&env->clock_off)) return false;
    for (uint32_t i = 0; i < s->count; i++) {
        const struct seat *seat = &s->items[i];
        if (!seat->voter || !seat->good || seat->unfit || seat->node->node_id == member_id(m)) continue;
        act(m, COMMAND_TRANSFER, seat->node->catalog_replica_id, seat->node->node_id);
        return true;
    }
    return false;
}

void member_group_turn(struct member *m, const struct cluster_state *state)
{
    struct replica_member members[GROUP_MEMBERS_MAX];
    uint32_t member_count;
    struct seats s;
    replica_members(m->node->catalog_replica, members, &member_count);
    seats_fill(m, state, members, member_count, &s);
    if (give_way_when_unfit(m, &s)) return;
    if (members_settle(m, state, &s, members, member_count)) return;
    if (member_now_ns(m) - atomic_load(&m->led_since_ns) < MEMBER_SETTLE_NS && s.good < s.count) return;
    uint32_t wanted = voters_wanted(&s);
    if (wanted > s.good && s.voters >= wanted) wanted = s.voters; /* nobody to take a place */
    const struct cluster_node *more = promotable(&s), *less = demotable(m, &s);
    bool bad = less != NULL && less->state != CLUSTER_NODE_ACTIVE;
    for (uint32_t i = 0; i < s.count; i++) bad |= s.items[i].voter && s.items[i].lost;
    if (more != NULL && (s.voters < wanted || (bad && s.voters == wanted))) {
        act(m, COMMAND_VOTER, more->catalog_replica_id, more->node_id);
    } else if (less != NULL && s.voters > wanted) {
        if (less->node_id == member_id(m))
            act(m, COMMAND_TRANSFER, 0, 0);
        else
            act(m, COMMAND_STANDBY, less->catalog_replica_id, less->node_id);
    }
}
