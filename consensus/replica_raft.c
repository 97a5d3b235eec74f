/* A replica of a Raft group: between the door (any thread), the group on its loop, the node log and the apply
 * queue. See replica.h and replica_raft_impl.h.
 *
 *   propose --list--> loop: raft_group_propose --append--> log thread --task--> loop: raft_group_appended
 *   group's commit --> apply queue of the replica, as a group of one member does it
 *
 * The number that replica.c calls an entry's index is, in a Raft group, the number of commands up to it. */
#include "common/err.h"

#include <inttypes.h>
#include <string.h>

#include "common/check.h"
#include "common/crc32c.h"
#include "common/log.h"
#include "consensus/members.h"
#include "consensus/replica_raft_impl.h"

/* ---- answers ---- */

enum omen_err raft_refusal(struct replica *r, enum omen_err rc, struct err *err)
{
    struct replica_member leader;
    switch (rc) {
    case OMEN_ENOTLEADER:
        if (replica_leader(r, &leader))
            return err_set(err, rc, NULL, "this replica does not lead; node %" PRIu64 " does",
                    leader.node_id);
        return err_set(err, rc, NULL, "this replica does not lead, and knows of no leader");
    case OMEN_EBUSY: return replica_busy(err, "leadership is being handed over", 1);
    case OMEN_EFULL:
        return err_set(err, rc, NULL,
                "the disk is full; reads go on, writes are refused until there is room");
    case OMEN_EUNKNOWN: return err_set(err, rc, NULL, "leadership was lost while the write was in flight");
    case OMEN_ECANCELED: return err_set(err, rc, NULL, "the replica is being closed");
    case OMEN_EUNAVAILABLE: return err_set(err, rc, NULL, "no leader answers");
    default: return err_set(err, rc, NULL, "raft: %s", err_name(rc));
    }
}

void raft_proposal_end(struct replica *r, struct work *work, enum omen_err rc)
{
    struct err err = { 0 };
    (void)raft_refusal(r, rc, &err);
    replica_inflight_end(r, work->len);
    work->done(work->done_arg, rc, 0, &err);
    shared_release(work->owner);
    mem_free(work);
}

/* ---- how full the disk is ---- */

/* What the leader lets in may find no room here: in the log, in the machine now, or in the machine before long. Said before
 * whatever answers it. */
static void short_tell(struct replica_raft *m)
{
    struct replica *r = m->replica;
    pthread_mutex_lock(&r->mutex);
    bool waits = r->disk_full;
    pthread_mutex_unlock(&r->mutex);
    bool is_short = node_log_is_short(r->host->log) ||
            (r->fsm.is_short != NULL && r->fsm.is_short(r->fsm.self));
    raft_group_set_short(m->group, is_short, waits || raft_group_disk_full(m->group));
}

/* What the others said, for whoever proposes next. */
static void short_hear(struct replica_raft *m)
{
    atomic_store(&m->majority_short, raft_group_majority_is_short(m->group));
}

bool replica_raft_is_short(const struct replica *r) { return atomic_load(&r->raft->majority_short); }

/* ---- what the group asks for ---- */

static void append_back(struct loop_task *task)
{
    struct group_append *a = (struct group_append *)((char *)task - offsetof(struct group_append, task));
    struct replica_raft *m = raft_group_io_arg(a->group);
    struct replica *r = m->replica;
    short_tell(m);
    raft_group_appended(m->group, a, net_now_ms(m->loop->net));
    if (!m->stopping || raft_group_appends(m->group) > 0) return;
    pthread_mutex_lock(&r->mutex);
    m->drained = true;
    pthread_cond_broadcast(&r->idle);
    pthread_mutex_unlock(&r->mutex);
}

/* Log thread. */
static void append_done(struct node_log_append *append, enum omen_err result)
{
    struct group_append *a = (struct group_append *)append;
    struct replica_raft *m = raft_group_io_arg(a->group);
    a->result = result;
    if (result == OMEN_EFULL) {
        atomic_store(&m->replica->host->log_short, true); /* a checkpoint may free a segment */
        checkpoint_wake(m->replica->host);
    }
    a->task.run = append_back;
    loop_post(m->loop->loop, &a->task);
}

static void io_append(void *arg, struct group_append *append)
{
    struct replica_raft *m = arg;
    append->append.done = append_done;
    node_log_append(m->replica->host->log, &append->append);
}

static void io_send(void *arg, struct frame_out *frame)
{
    struct replica_raft *m = arg;
    transport_send(m->loop->net->transport, frame);
}

static void command_commit(struct replica_raft *m, const struct group_commit *entry)
{
    struct replica *r = m->replica;
    struct work *work = entry->tag;
    if (work == NULL) {
        work = mem_must_calloc(1, sizeof *work);
        *work = (struct work){ .kind = WORK_REDELIVERY,
            .replica = r,
            .len = entry->len,
            .entry = (uint8_t *)(uintptr_t)entry->data,
            .owner = shared_hold(entry->owner) };
    }
    work->index = entry->sequence;
    pthread_mutex_lock(&r->mutex);
    r->committed = entry->sequence;
    bool known = entry->sequence <= r->applied; /* the machine was there before the start */
    if (!known) {
        r->backlog_bytes += work->len;
        r->bytes_since_checkpoint += work->len;
        if (r->bytes_since_checkpoint >= r->host->options.checkpoint_log_bytes) checkpoint_wake(r->host);
        replica_enqueue(r, work);
    }
    pthread_mutex_unlock(&r->mutex);
    if (!known) return;
    CHECK(work->kind == WORK_REDELIVERY);
    shared_release(work->owner);
    mem_free(work);
}

static void io_commit(void *arg, const struct group_commit *entry)
{
    struct replica_raft *m = arg;
    struct barrier_batch *batch = entry->tag;
    if (entry->type == NODE_LOG_COMMAND) {
        command_commit(m, entry);
    } else if (entry->type == NODE_LOG_BARRIER && batch != NULL) {
        barriers_committed(m, batch, entry->sequence);
    }
    barriers_release(m, entry->sequence);
}

static void io_lost(void *arg, enum node_log_entry_type type, void *tag, enum omen_err rc)
{
    struct replica_raft *m = arg;
    if (type == NODE_LOG_COMMAND) {
        raft_proposal_end(m->replica, tag, rc);
        return;
    }
    barriers_lost(m, tag, OMEN_ENOTLEADER);
}

static bool io_fetch(void *arg, uint64_t sequence, uint64_t node_id)
{
    struct replica_raft *m = arg;
    struct replica *r = m->replica;
    if (m->durable >= sequence) return true;
    if (r->bases.fetch == NULL) {
        LOG_WARN("raft.behind", "group=%" PRIu64 " replica=%" PRIu64 " needed=%" PRIu64, r->group,
                r->replica_id, replica_sequence(r, sequence));
        return false;
    }
    LOG_INFO("raft.fetch", "group=%" PRIu64 " replica=%" PRIu64 " node=%" PRIu64 " needed=%" PRIu64, r->group,
            r->replica_id, node_id, replica_sequence(r, sequence));
    r->bases.fetch(r->fsm.self, replica_sequence(r, sequence), node_id);
    return false;
}

static void io_installed(void *arg, uint64_t sequence)
{
    struct replica_raft *m = arg;
    struct replica *r = m->replica;
    struct work *work = mem_must_calloc(1, sizeof *work);
    *work = (struct work){ .kind = WORK_SWITCH, .replica = r, .index = sequence };
    pthread_mutex_lock(&r->mutex);
    r->committed = sequence;
    r->switches++;
    replica_enqueue(r, work);
    pthread_mutex_unlock(&r->mutex);
    m->durable = sequence;
    barriers_release(m, sequence);
}

static void io_released(void *arg, uint64_t index)
{
    struct replica_raft *m = arg;
    node_log_release(m->replica->host->log, m->replica->group, m->replica->replica_id, index);
}

static bool io_vital(void *arg, const void *data, uint32_t len)
{
    struct replica_raft *m = arg;
    return replica_entry_is_vital(m->replica, data, len);
}

/* What other threads see of the group. */
void raft_status_refresh(struct replica_raft *m)
{
    struct replica *r = m->replica;
    uint32_t count;
    const struct replica_member *members = raft_group_members(m->group, &count);
    pthread_mutex_lock(&r->mutex);
    raft_group_status(m->group, &m->status);
    if (m->status.caught_up && !m->level) {
        m->level = true;
        m->level_sequence = r->committed;
    }
    m->status.member_count = count;
    m->status.disk_full = raft_group_disk_full(m->group);
    memcpy(m->members, members, count * sizeof members[0]);
    m->follower_count = raft_group_followers(m->group, m->followers);
    (void)raft_group_leader(m->group, &m->leader);
    pthread_mutex_unlock(&r->mutex);
    atomic_store(&m->leading, raft_group_is_leader(m->group));
    atomic_store(&m->heard_ms, raft_group_heard_ms(m->group));
}

static void io_role_changed(void *arg)
{
    struct replica_raft *m = arg;
    raft_status_refresh(m);
    bool leads = raft_group_is_leader(m->group);
    bool same = m->told && m->leads == leads && m->told_leader == m->leader.replica_id &&
            m->told_term == m->status.term;
    m->told = true;
    m->leads = leads;
    m->told_leader = m->leader.replica_id;
    m->told_term = m->status.term;
    if (!same && m->on_leader_change != NULL)
        m->on_leader_change(m->on_leader_arg, leads, &m->leader, m->status.term);
}

void raft_change_end(struct change_request *c, enum omen_err rc, const struct err *err)
{
    c->done(c->done_arg, rc, 0, rc == OMEN_OK ? NULL : err);
    mem_free(c);
}

static void io_changed(void *arg, void *tag, enum omen_err rc)
{
    struct replica_raft *m = arg;
    struct err err = { 0 };
    raft_status_refresh(m);
    if (rc == OMEN_EUNAVAILABLE)
        (void)err_set(&err, rc, NULL, "the replica could not catch up in time");
    else if (rc != OMEN_OK)
        (void)err_set(&err, rc, NULL, "leadership was lost during the change of members");
    raft_change_end(tag, rc, &err);
}

const struct group_io raft_io = {
    .append = io_append,
    .send = io_send,
    .commit = io_commit,
    .lost = io_lost,
    .fetch = io_fetch,
    .installed = io_installed,
    .released = io_released,
    .role_changed = io_role_changed,
    .changed = io_changed,
    .barrier = barriers_frame,
    .vital = io_vital,
};

/* ---- from the door to the loop ---- */

void replica_raft_propose(struct replica *r, struct work *work)
{
    struct replica_raft *m = r->raft;
    work->owner = shared_new(work->entry);
    work->next = NULL;
    *m->proposals_tail = work;
    m->proposals_tail = &work->next;
    if (!m->posted) loop_post(m->loop->loop, &m->task);
    m->posted = true;
}

static void proposals_run(struct replica_raft *m, struct work *works, uint64_t now_ms)
{
    while (works != NULL) {
        struct group_proposal proposals[GROUP_PROPOSALS_MAX];
        struct work *batch[GROUP_PROPOSALS_MAX];
        uint32_t n = 0;
        for (; works != NULL && n < GROUP_PROPOSALS_MAX; works = works->next, n++) {
            batch[n] = works;
            proposals[n] = (struct group_proposal){ shared_hold(works->owner), works->entry, works->len,
                works };
        }
        enum omen_err rc = raft_group_propose(m->group, proposals, n, now_ms);
        if (rc == OMEN_OK) continue; /* the works may be gone already */
        for (uint32_t i = 0; i < n; i++) {
            shared_release(proposals[i].owner);
            raft_proposal_end(m->replica, batch[i], rc);
        }
    }
}

static void checkpointed(struct replica_raft *m, uint64_t now_ms)
{
    uint64_t trailing = m->loop->net->host->options.cluster.trailing_bytes,
             keep = atomic_load(&m->keep_bytes);
    m->base_ms = now_ms;
    raft_group_checkpointed(m->group, m->durable, keep > trailing ? keep : trailing, now_ms);
}

void raft_task_run(struct loop_task *task)
{
    struct replica_raft *m = (struct replica_raft *)((char *)task - offsetof(struct replica_raft, task));
    struct replica *r = m->replica;
    uint64_t now_ms = net_now_ms(m->loop->net);
    pthread_mutex_lock(&r->mutex);
    struct work *proposals = m->proposals;
    bool durable_rose = m->durable_rose;
    m->proposals = NULL;
    m->proposals_tail = &m->proposals;
    m->posted = m->durable_rose = false;
    pthread_mutex_unlock(&r->mutex);
    proposals_run(m, proposals, now_ms);
    barriers_run(m, now_ms);
    if (!durable_rose) return;
    uint64_t durable = replica_index(r, r->fsm.log_needed_from(r->fsm.self));
    if (durable > m->durable) m->durable = durable;
    checkpointed(m, now_ms);
}

void replica_raft_release_log(struct replica *r)
{
    struct replica_raft *m = r->raft;
    pthread_mutex_lock(&r->mutex);
    bool post = !m->posted;
    m->durable_rose = true;
    m->posted = true;
    pthread_mutex_unlock(&r->mutex);
    if (post) loop_post(m->loop->loop, &m->task);
}

/* A machine that stopped (damage, an I/O error) must not be led by, counted or waited for. */
static void go_inert(struct replica_raft *m)
{
    if (m->inert || m->stopping) return;
    m->inert = true;
    raft_group_stop(m->group);
    barriers_drain(m);
    io_role_changed(m);
}

static bool is_stopped(struct replica *r)
{
    pthread_mutex_lock(&r->mutex);
    bool stopped = r->stopped != OMEN_OK;
    pthread_mutex_unlock(&r->mutex);
    return stopped;
}

void replica_raft_tick(struct replica_raft *m, uint64_t now_ms)
{
    if (is_stopped(m->replica)) go_inert(m);
    if (m->stopping || m->inert) return;
    short_tell(m);
    raft_group_tick(m->group, now_ms);
    barriers_tick(m, now_ms);
    if (now_ms - m->base_ms >= BASE_REFRESH_MS) checkpointed(m, now_ms);
    raft_status_refresh(m);
    short_hear(m);
}

void replica_raft_frame(struct replica_raft *m, struct frame *frame, uint64_t node_id, uint64_t now_ms)
{
    struct replica *r = m->replica;
    struct replica_host *host = r->host;
    if (is_stopped(r)) go_inert(m);
    pthread_mutex_lock(&r->mutex);
    bool strip = r->backlog_bytes > host->options.apply_backlog_bytes_max;
    pthread_mutex_unlock(&r->mutex);
    strip = strip || node_log_far_over(host->log);
    short_tell(m);
    raft_group_frame(m->group, frame, node_id, strip, now_ms);
    short_hear(m);
    atomic_store(&m->heard_ms, raft_group_heard_ms(m->group));
    if (m->askers != NULL) barriers_run(m, now_ms);
}
