/* A group's members, changes of them, transfer of leadership, and what is told to the outside. See
 * raft_group.h.
 *
 *   A change:  (none) --> CATCHING UP (a new voter) --near enough--> SUBMITTED --committed--> (none), OK
 *                             | unreachable, too slow                  | leadership lost
 *                             v                                        v
 *                        EUNAVAILABLE                              EUNKNOWN */
#include "common/err.h"

#include <string.h>

#include "common/check.h"
#include "common/crc32c.h"
#include "common/log.h"
#include "consensus/members.h"
#include "consensus/raft_group_impl.h"

#define TRANSFER_ELECTIONS 4u /* election times after which a transfer without a new leader is given up */

/* ---- members ---- */

/* The configuration in use, committed or not; addresses were checked when it came. */
void group_members_refresh(struct raft_group *g)
{
    const struct raft_configuration *c = &g->raft.configuration;
    CHECK(c->n <= GROUP_MEMBERS_MAX);
    g->member_count = c->n;
    for (unsigned i = 0; i < c->n; i++) {
        struct replica_member *m = &g->members[i];
        CHECK(member_address_parse(c->servers[i].address, &m->node_id, &m->replica_id));
        m->role = (enum replica_member_role)c->servers[i].role;
    }
}

const struct replica_member *raft_group_members(const struct raft_group *g, uint32_t *count_out)
{
    *count_out = g->member_count;
    return g->members;
}

bool raft_group_is_leader(const struct raft_group *g)
{
    return g->started && !g->stopped && g->failed == OMEN_OK && g->raft.state == RAFT_LEADER;
}

bool raft_group_leader(const struct raft_group *g, struct replica_member *leader_out)
{
    raft_id id = 0;
    const char *address = NULL;
    *leader_out = (struct replica_member){ 0 };
    if (!g->started || g->stopped || g->failed != OMEN_OK) return false;
    raft_leader((struct raft *)(uintptr_t)&g->raft, &id, &address);
    if (id == 0 || address == NULL) return false;
    leader_out->role = REPLICA_VOTER;
    return member_address_parse(address, &leader_out->node_id, &leader_out->replica_id);
}

void group_role_settle(struct raft_group *g)
{
    struct replica_member leader;
    (void)raft_group_leader(g, &leader);
    struct reported_role now = { g->raft.state == RAFT_LEADER, leader.replica_id,
        raft_current_term(&g->raft) };
    group_members_refresh(g);
    if (now.leads == g->reported.leads && now.leader == g->reported.leader && now.term == g->reported.term)
        return;
    bool told = now.leads != g->reported.leads || now.leader != g->reported.leader;
    g->reported = now;
    if (told) {
        LOG_INFO("raft.role", "group=%llu replica=%llu term=%llu role=%s leader=%llu",
                (unsigned long long)g->options.group, (unsigned long long)g->options.replica_id,
                (unsigned long long)now.term, raft_state_name(g->raft.state), (unsigned long long)now.leader);
    }
    g->options.io->role_changed(g->options.io_arg);
}

/* ---- changes ---- */

void group_change_end(struct raft_group *g, enum omen_err rc)
{
    void *tag = g->change.tag;
    g->change = (struct change_state){ 0 };
    g->options.io->changed(g->options.io_arg, tag, rc);
}

/* Submits `members` as the new configuration. */
static int configuration_submit(struct raft_group *g, const struct replica_member *members, uint32_t count)
{
    uint32_t len;
    uint8_t *data = members_encode(members, count, &len);
    struct log_slot slot = { .term = g->raft.current_term,
        .owner = shared_new(data),
        .data = data,
        .len = len,
        .crc = crc32c(0, data, len),
        .type = NODE_LOG_CHANGE };
    struct raft_entry entry = { .term = slot.term, .type = RAFT_CHANGE, .buf = { data, len }, .batch = data };
    struct raft_event event = { .type = RAFT_SUBMIT };
    event.submit.entries = &entry;
    event.submit.n = 1;
    int rv = group_step(g, &event, &entry, &slot);
    shared_release(slot.owner);
    return rv;
}

static int change_submit(struct raft_group *g)
{
    struct replica_member members[GROUP_MEMBERS_MAX];
    uint32_t count = 0;
    const struct change_state *c = &g->change;
    for (uint32_t i = 0; i < g->member_count; i++) {
        members[count] = g->members[i];
        if (members[count].replica_id == c->member.replica_id) {
            if (c->change == GROUP_REMOVE) continue;
            members[count].role = c->member.role;
        }
        count++;
    }
    if (c->change == GROUP_ADD) members[count++] = c->member;
    g->change.submitted = true;
    return configuration_submit(g, members, count);
}

/* A voter that is far behind would stall commits: raft's catch-up rounds come first. */
static int catch_up_begin(struct raft_group *g)
{
    struct raft_event event = { .type = RAFT_CATCH_UP };
    event.catch_up.server_id = g->change.member.replica_id;
    return group_step(g, &event, NULL, NULL);
}

/* Catching up ends when something is acknowledged: one that has everything already would never end. */
static bool has_all(const struct raft_group *g, uint64_t replica_id)
{
    raft_index match = 0;
    return raft_match_index(&g->raft, replica_id, &match) == 0 && match == g->log.last;
}

static int transfer_begin(struct raft_group *g)
{
    struct raft_event event = { .type = RAFT_TRANSFER };
    event.transfer.server_id = g->change.member.replica_id;
    g->change.deadline_ms = g->now_ms + TRANSFER_ELECTIONS * g->options.election_ms;
    int rv = group_step(g, &event, NULL, NULL);
    if (rv == 0) g->change.member.replica_id = raft_transferee(&g->raft);
    return rv;
}

static enum omen_err change_check(const struct raft_group *g, enum group_change change,
        const struct replica_member *m, struct err *err)
{
    const struct replica_member *known = members_find(g->members, g->member_count, m->replica_id);
    uint32_t voters = 0;
    for (uint32_t i = 0; i < g->member_count; i++) voters += g->members[i].role == REPLICA_VOTER;
    if (change == GROUP_TRANSFER && m->replica_id == 0) return OMEN_OK;
    if (m->replica_id == 0) return err_set(err, OMEN_EINVAL, "replica", "must not be 0");
    if (change == GROUP_ADD) {
        if (m->node_id == 0) return err_set(err, OMEN_EINVAL, "node", "must not be 0");
        if (known != NULL) return err_set(err, OMEN_EEXISTS, "replica", "is a member already");
        if (g->member_count == GROUP_MEMBERS_MAX)
            return err_set(err, OMEN_ETOOBIG, "members", "limit is %u", GROUP_MEMBERS_MAX);
        return OMEN_OK;
    }
    if (known == NULL) return err_set(err, OMEN_ENOTFOUND, "replica", "is not a member");
    bool takes_vote = known->role == REPLICA_VOTER &&
            (change == GROUP_REMOVE || (change == GROUP_ASSIGN && m->role != REPLICA_VOTER));
    if (takes_vote && voters == 1) return err_set(err, OMEN_EINVAL, "replica", "is the last voter");
    /* Until that is committed whoever has it may not stand for it, and whoever has not is behind: nobody leads when it
     * crashes. */
    if (takes_vote && known->replica_id == g->options.replica_id)
        return err_set(err, OMEN_EINVAL, "replica", "leads: hand leadership over before it loses its vote");
    if (change == GROUP_ASSIGN && (unsigned)m->role > REPLICA_SPARE)
        return err_set(err, OMEN_EINVAL, "role", "is not known");
    if (change == GROUP_ASSIGN && known->role == m->role)
        return err_set(err, OMEN_EEXISTS, "role", "the replica has it already");
    if (change == GROUP_TRANSFER && known->role != REPLICA_VOTER)
        return err_set(err, OMEN_EINVAL, "replica", "does not vote");
    if (change == GROUP_TRANSFER && known->replica_id == g->options.replica_id)
        return err_set(err, OMEN_EEXISTS, "replica", "leads already");
    return OMEN_OK;
}

static enum omen_err change_error(int rv, struct err *err)
{
    switch (rv) {
    case 0: return OMEN_OK;
    case RAFT_NOTLEADER: return err_set(err, OMEN_ENOTLEADER, NULL, "this replica does not lead its group");
    case RAFT_CANTCHANGE: return err_set(err, OMEN_EBUSY, NULL, "another change of members is under way");
    case RAFT_NOTFOUND: return err_set(err, OMEN_ENOTFOUND, NULL, "there is no other voter");
    default: return err_set(err, OMEN_EINVAL, NULL, "raft refuses: %s", raft_strerror(rv));
    }
}

enum omen_err raft_group_change(struct raft_group *g, enum group_change change,
        const struct replica_member *member, void *tag, uint64_t now_ms, struct err *err)
{
    if (now_ms > g->now_ms) g->now_ms = now_ms;
    if (!raft_group_is_leader(g)) return change_error(RAFT_NOTLEADER, err);
    if (g->change.active || raft_transferee(&g->raft) != 0 || g->raft.configuration_uncommitted_index != 0 ||
            g->raft.leader_state.promotee_id != 0)
        return change_error(RAFT_CANTCHANGE, err);
    enum omen_err rc = change_check(g, change, member, err);
    if (rc != OMEN_OK) return rc;
    g->change = (struct change_state){ .active = true, .change = change, .member = *member, .tag = tag };
    int rv;
    if (change == GROUP_ADD) g->change.member.role = REPLICA_SPARE;
    if (change == GROUP_TRANSFER)
        rv = transfer_begin(g);
    else if (change == GROUP_ASSIGN && member->role == REPLICA_VOTER && !has_all(g, member->replica_id))
        rv = catch_up_begin(g);
    else
        rv = change_submit(g);
    if (rv != 0) {
        g->change = (struct change_state){ 0 };
        return change_error(rv, err);
    }
    group_settle(g);
    return OMEN_OK;
}

static void transfer_settle(struct raft_group *g)
{
    struct replica_member leader;
    if (raft_transferee(&g->raft) != 0) return;
    if (g->raft.state == RAFT_LEADER) {
        group_change_end(g, OMEN_EUNAVAILABLE); /* the other one did not catch up in time */
    } else if (raft_group_leader(g, &leader)) {
        group_change_end(g, leader.replica_id == g->change.member.replica_id ? OMEN_OK : OMEN_EUNAVAILABLE);
    } else if (g->now_ms >= g->change.deadline_ms) {
        group_change_end(g, OMEN_EUNKNOWN);
    }
}

static void catch_up_settle(struct raft_group *g)
{
    int status = RAFT_CATCH_UP_NONE;
    int rv = raft_catch_up(&g->raft, g->change.member.replica_id, &status);
    CHECK(rv == 0); /* we lead, and it is a member */
    if (status == RAFT_CATCH_UP_ABORTED) group_change_end(g, OMEN_EUNAVAILABLE);
    if (status != RAFT_CATCH_UP_FINISHED) return;
    if (change_submit(g) != 0) group_change_end(g, OMEN_EBUSY);
}

void group_change_settle(struct raft_group *g)
{
    if (!g->change.active) return;
    if (g->change.change == GROUP_TRANSFER) {
        transfer_settle(g);
    } else if (g->raft.state != RAFT_LEADER) {
        group_change_end(g, g->change.submitted ? OMEN_EUNKNOWN : OMEN_ENOTLEADER);
    } else if (!g->change.submitted) {
        catch_up_settle(g);
    }
}

/* ---- status ---- */

static void answer_last(const struct raft_group *g, struct replica_follower *f)
{
    f->silent_ms = UINT64_MAX;
    for (uint32_t i = 0; i < GROUP_MEMBERS_MAX && g->answers[i].replica_id != 0; i++) {
        if (g->answers[i].replica_id != f->member.replica_id) continue;
        f->silent_ms = g->now_ms - g->answers[i].ms;
        f->is_short = g->answers[i].is_short;
        f->waits = g->answers[i].waits;
    }
}

uint32_t raft_group_followers(const struct raft_group *g, struct replica_follower *followers_out)
{
    uint32_t count = 0;
    uint64_t entries = g->log.last + 1 - g->log.first;
    if (!raft_group_is_leader(g)) return 0;
    for (uint32_t i = 0; i < g->member_count; i++) {
        raft_index match = 0;
        if (g->members[i].replica_id == g->options.replica_id) continue;
        if (raft_match_index((struct raft *)(uintptr_t)&g->raft, g->members[i].replica_id, &match) != 0)
            continue;
        uint64_t behind = g->log.last > match ? g->log.last - match : 0;
        if (behind > entries) behind = entries;
        followers_out[count] = (struct replica_follower){ .member = g->members[i],
            .lag_bytes = entries > 0 ? (uint64_t)((double)g->log.bytes / (double)entries * (double)behind)
                                     : 0 };
        answer_last(g, &followers_out[count++]);
    }
    return count;
}

void raft_group_status(const struct raft_group *g, struct replica_status *status)
{
    struct replica_member leader;
    (void)raft_group_leader(g, &leader);
    status->term = raft_current_term(&g->raft);
    status->last_index = g->log.last;
    status->stored_index = g->raft.last_stored;
    status->commit_index = raft_commit_index(&g->raft);
    status->base_sequence = g->base.sequence;
    status->log_bytes = g->log.bytes;
    status->leader = raft_group_is_leader(g);
    status->leader_replica = leader.replica_id;
    status->leader_node = leader.node_id;
    status->member_count = g->member_count;
    status->fetching = g->fetching;
    uint64_t known = g->led_index > status->commit_index ? g->led_index : status->commit_index;
    status->lag_entries = known > g->delivered ? known - g->delivered : 0;
    status->caught_up = g->level;
    status->lag_unseen = known > g->log.last ? known - g->log.last : 0;
    const struct replica_member *me = members_find(g->members, g->member_count, g->options.replica_id);
    status->is_member = me != NULL;
    status->role = me != NULL ? me->role : REPLICA_SPARE;
}
