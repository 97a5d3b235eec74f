/* Entries of the cluster group: proposed, waited for, told. */
#include "common/err.h"

#include "common/check.h"
#include "node/member/member_impl.h"

uint32_t member_leader(struct member *m)
{
    struct replica_member leader;
    if (!member_is_open(m) || !replica_leader(m->node->catalog_replica, &leader)) return 0;
    return (uint32_t)leader.node_id;
}

bool member_leads(struct member *m)
{
    struct replica_status status;
    if (!member_is_open(m)) return false;
    replica_status(m->node->catalog_replica, &status);
    return status.leader;
}

enum omen_err member_propose(struct member *m, uint8_t *entry, uint32_t len,
        struct catalog_outcome *outcome_out, uint32_t *leader_out, struct err *err)
{
    struct waiter *w = waiter_new();
    replica_propose(m->node->catalog_replica, entry, len, &w->outcome, waiter_done, w);
    enum omen_err rc;
    if (!waiter_wait(w, MEMBER_CATALOG_MS, &rc, err)) {
        rc = err_set(err, OMEN_EUNKNOWN, "",
                "the cluster group has not answered for %u s: the change may still be made",
                MEMBER_CATALOG_MS / 1000);
    } else if (rc != OMEN_OK) {
        if (err->code != rc) (void)err_set(err, rc, "", "the change could not be recorded: %s", err_name(rc));
    } else {
        rc = w->outcome.code;
        if (rc != OMEN_OK) *err = w->outcome.err;
        if (outcome_out != NULL) *outcome_out = w->outcome;
    }
    waiter_unref(w);
    if (leader_out != NULL) *leader_out = rc == OMEN_ENOTLEADER ? member_leader(m) : 0;
    if (rc == OMEN_OK) member_wake(m);
    return rc;
}

enum omen_err member_change(struct member *m, const struct cluster_change *change,
        struct catalog_outcome *outcome_out, uint32_t *leader_out, struct err *err)
{
    uint8_t *entry;
    uint32_t len, version = catalog_version(m->node->catalog);
    enum feature feature = cluster_change_feature(change->kind);
    bool raises = change->kind == CLUSTER_CHANGE_VERSION_RAISE && feature_may(change->level, feature);
    if (!raises && !feature_may(version, feature))
        return err_set(err, OMEN_EVERSION, "",
                "the cluster is at version %u, this takes version %u: some node is of an older build",
                version, (unsigned)feature);
    enum omen_err rc = cluster_entry_encode(change, clock_wall_ms(m->node->options.clock), &entry, &len);
    if (rc != OMEN_OK) return err_set(err, rc, "", "no memory to record the change");
    return member_propose(m, entry, len, outcome_out, leader_out, err);
}

enum omen_err member_op_id_timely(struct member *m, const struct op_id *asked_as, uint32_t kind,
        uint32_t *leader_out, struct err *err)
{
    uint64_t now_ms = clock_wall_ms(m->node->options.clock);
    if (cluster_op_id_timely(asked_as, now_ms, err) == OMEN_OK) return OMEN_OK;
    enum omen_err rc = member_barrier(m, leader_out, err);
    if (rc != OMEN_OK) return rc;
    struct cluster_state *state = member_state(m);
    bool made = cluster_state_result(state, asked_as, kind) != NULL;
    cluster_state_unref(state);
    return made ? OMEN_OK : cluster_op_id_timely(asked_as, now_ms, err);
}

enum omen_err member_barrier(struct member *m, uint32_t *leader_out, struct err *err)
{
    struct waiter *w = waiter_new();
    replica_barrier(m->node->catalog_replica, waiter_done, w);
    enum omen_err rc;
    bool finished = waiter_wait(w, MEMBER_CATALOG_MS, &rc, err);
    waiter_unref(w);
    if (finished && rc == OMEN_OK) return OMEN_OK;
    if (finished && rc == OMEN_ENOTLEADER) {
        *leader_out = member_leader(m);
        return err->code == rc ? rc : err_set(err, rc, "", "this node does not lead the cluster group");
    }
    return err_set(err, OMEN_EUNAVAILABLE, "",
            "the cluster group does not confirm who leads it: nothing was begun");
}
