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

static enum omen_err refusal(struct replica *r, enum omen_err rc, struct err *err)
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

static void proposal_end(struct replica *r, struct work *work, enum omen_err rc)
{
    struct err err = { 0 };
    (void)refusal(r, rc, &err);
    replica_inflight_end(r, work->len);
    work->done(work->done_arg, rc, 0, &err);
    shared_release(work->owner);
    mem_free(work);
}

static void barriers_end(struct replica *r, struct work *works, enum omen_err rc)
{
    struct err err = { 0 };
    (void)refusal(r, rc, &err);
    while (works != NULL) {
        struct work *work = works;
        works = work->next;
        pthread_mutex_lock(&r->mutex);
        r->barriers--;
        pthread_mutex_unlock(&r->mutex);
        work->done(work->done_arg, rc, 0, &err);
        mem_free(work);
    }
}

/* Everything committed before them is in the apply queue: they go behind it (C8). */
static void barriers_enqueue(struct replica *r, struct work *works)
{
    pthread_mutex_lock(&r->mutex);
    while (works != NULL) {
        struct work *next = works->next;
        replica_enqueue(r, works);
        works = next;
    }
    pthread_mutex_unlock(&r->mutex);
}

static void askers_answer(struct replica_raft *m, struct barrier_asker *askers, enum omen_err rc,
        uint64_t sequence)
{
    while (askers != NULL) {
        struct barrier_asker *a = askers;
        askers = a->next;
        struct frame_barrier answer = { .token = a->token, .sequence = sequence, .code = (uint32_t)rc };
        raft_group_send_barrier(m->group, FRAME_BARRIER_RESULT, a->node_id, a->replica_id, &answer);
        mem_free(a);
    }
}

/* ---- what the group asks for ---- */

static void append_back(struct loop_task *task)
{
    struct group_append *a = (struct group_append *)((char *)task - offsetof(struct group_append, task));
    struct replica_raft *m = raft_group_io_arg(a->group);
    struct replica *r = m->replica;
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

/* Answered by the leader, and committed here. */
static void held_release(struct replica_raft *m, uint64_t committed)
{
    if (m->held == NULL || committed < m->held_index) return;
    struct work *works = m->held;
    m->held = NULL;
    barriers_enqueue(m->replica, works);
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
        m->barrier_out = false;
        barriers_enqueue(m->replica, batch->works);
        askers_answer(m, batch->askers, OMEN_OK, entry->sequence);
        mem_free(batch);
    }
    held_release(m, entry->sequence);
}

static void io_lost(void *arg, enum node_log_entry_type type, void *tag, enum omen_err rc)
{
    struct replica_raft *m = arg;
    if (type == NODE_LOG_COMMAND) {
        proposal_end(m->replica, tag, rc);
        return;
    }
    struct barrier_batch *batch = tag;
    m->barrier_out = false;
    barriers_end(m->replica, batch->works, OMEN_ENOTLEADER);
    askers_answer(m, batch->askers, OMEN_ENOTLEADER, 0);
    mem_free(batch);
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
    replica_enqueue(r, work);
    pthread_mutex_unlock(&r->mutex);
    m->durable = sequence;
    held_release(m, sequence);
}

static void io_released(void *arg, uint64_t index)
{
    struct replica_raft *m = arg;
    node_log_release(m->replica->host->log, m->replica->group, m->replica->replica_id, index);
}

/* What other threads see of the group. */
static void status_refresh(struct replica_raft *m)
{
    struct replica *r = m->replica;
    uint32_t count;
    const struct replica_member *members = raft_group_members(m->group, &count);
    pthread_mutex_lock(&r->mutex);
    raft_group_status(m->group, &m->status);
    m->status.member_count = count;
    m->status.disk_full = raft_group_disk_full(m->group);
    memcpy(m->members, members, count * sizeof members[0]);
    (void)raft_group_leader(m->group, &m->leader);
    pthread_mutex_unlock(&r->mutex);
}

static void io_role_changed(void *arg)
{
    struct replica_raft *m = arg;
    status_refresh(m);
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

/* A change of members on its way. */
struct change_request {
    struct loop_task task; /* first */
    struct replica_raft *m;
    enum group_change change;
    struct replica_member member;
    replica_done done;
    void *done_arg;
};

static void change_end(struct change_request *c, enum omen_err rc, const struct err *err)
{
    c->done(c->done_arg, rc, 0, rc == OMEN_OK ? NULL : err);
    mem_free(c);
}

static void io_changed(void *arg, void *tag, enum omen_err rc)
{
    struct replica_raft *m = arg;
    struct err err = { 0 };
    status_refresh(m);
    if (rc == OMEN_EUNAVAILABLE)
        (void)err_set(&err, rc, NULL, "the replica could not catch up in time");
    else if (rc != OMEN_OK)
        (void)err_set(&err, rc, NULL, "leadership was lost during the change of members");
    change_end(tag, rc, &err);
}

static void io_barrier(void *arg, enum frame_type type, uint64_t node_id, uint64_t from,
        const struct frame_barrier *barrier);

static const struct group_io raft_io = {
    .append = io_append,
    .send = io_send,
    .commit = io_commit,
    .lost = io_lost,
    .fetch = io_fetch,
    .installed = io_installed,
    .released = io_released,
    .role_changed = io_role_changed,
    .changed = io_changed,
    .barrier = io_barrier,
};

/* ---- barriers ---- */

/* One entry for all who wait; the next one when it is committed. */
static void barrier_submit(struct replica_raft *m, uint64_t now_ms)
{
    struct replica *r = m->replica;
    if (m->barrier_out) return;
    pthread_mutex_lock(&r->mutex);
    struct work *works = m->barriers;
    m->barriers = NULL;
    m->barriers_tail = &m->barriers;
    pthread_mutex_unlock(&r->mutex);
    if (works == NULL && m->askers == NULL) return;
    struct barrier_batch *batch = mem_must_alloc(sizeof *batch);
    *batch = (struct barrier_batch){ works, m->askers };
    m->askers = NULL;
    m->barrier_out = true;
    enum omen_err rc = raft_group_barrier(m->group, batch, now_ms);
    if (rc == OMEN_OK) return;
    m->barrier_out = false;
    barriers_end(r, batch->works, rc);
    askers_answer(m, batch->askers, rc, 0);
    mem_free(batch);
}

/* A follower asks its leader from where on a read may start; one question at a time. */
static void barrier_forward(struct replica_raft *m, uint64_t now_ms)
{
    struct replica *r = m->replica;
    struct replica_member leader;
    if (m->asked != NULL) return;
    pthread_mutex_lock(&r->mutex);
    struct work *works = m->barriers;
    m->barriers = NULL;
    m->barriers_tail = &m->barriers;
    pthread_mutex_unlock(&r->mutex);
    if (works == NULL) return;
    if (!raft_group_leader(m->group, &leader) || m->held != NULL) {
        barriers_end(r, works, m->held != NULL ? OMEN_EUNAVAILABLE : OMEN_ENOTLEADER);
        return;
    }
    m->asked = works;
    m->asked_ms = now_ms;
    struct frame_barrier question = { .token = ++m->token };
    raft_group_send_barrier(m->group, FRAME_BARRIER, leader.node_id, leader.replica_id, &question);
}

static void barriers_run(struct replica_raft *m, uint64_t now_ms)
{
    if (raft_group_is_leader(m->group) || m->askers != NULL)
        barrier_submit(m, now_ms);
    else
        barrier_forward(m, now_ms);
}

static void barrier_answered(struct replica_raft *m, const struct frame_barrier *answer)
{
    if (m->asked == NULL || answer->token != m->token) return;
    struct work *works = m->asked;
    m->asked = NULL;
    if (answer->code != OMEN_OK) {
        barriers_end(m->replica, works, OMEN_ENOTLEADER);
        return;
    }
    m->held = works;
    m->held_index = answer->sequence;
    m->asked_ms = net_now_ms(m->loop->net);
    held_release(m, m->replica->committed); /* written by this thread only */
}

static void io_barrier(void *arg, enum frame_type type, uint64_t node_id, uint64_t from,
        const struct frame_barrier *barrier)
{
    struct replica_raft *m = arg;
    if (type == FRAME_BARRIER_RESULT) {
        barrier_answered(m, barrier);
        return;
    }
    struct barrier_asker *a = mem_must_alloc(sizeof *a);
    *a = (struct barrier_asker){ .next = m->askers,
        .node_id = node_id,
        .replica_id = from,
        .token = barrier->token };
    m->askers = a;
}

void replica_raft_barrier(struct replica *r, replica_done done, void *done_arg)
{
    struct replica_raft *m = r->raft;
    struct err err = { 0 };
    enum omen_err rc = OMEN_OK;
    bool post = false;
    pthread_mutex_lock(&r->mutex);
    if (r->stopped != OMEN_OK) {
        rc = r->stopped;
        err = r->stop_err;
    } else if (r->closing) {
        rc = err_set(&err, OMEN_ECANCELED, NULL, "the replica is being closed");
    } else if (r->barriers >= BARRIERS_MAX) {
        rc = replica_busy(&err, "too many reads wait for this shard", BARRIERS_MAX);
    } else {
        struct work *work = mem_must_calloc(1, sizeof *work);
        *work = (struct work){ .kind = WORK_BARRIER, .replica = r, .done = done, .done_arg = done_arg };
        r->barriers++;
        *m->barriers_tail = work;
        m->barriers_tail = &work->next;
        post = !m->posted;
        m->posted = true;
    }
    pthread_mutex_unlock(&r->mutex);
    if (post) loop_post(m->loop->loop, &m->task);
    if (rc != OMEN_OK) done(done_arg, rc, 0, &err);
}

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
            proposal_end(m->replica, batch[i], rc);
        }
    }
}

static void checkpointed(struct replica_raft *m, uint64_t now_ms)
{
    m->base_ms = now_ms;
    raft_group_checkpointed(m->group, m->durable, m->loop->net->host->options.cluster.trailing_bytes, now_ms);
}

static void task_run(struct loop_task *task)
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

void replica_raft_tick(struct replica_raft *m, uint64_t now_ms)
{
    if (m->stopping) return;
    raft_group_tick(m->group, now_ms);
    barriers_run(m, now_ms);
    if ((m->asked != NULL || m->held != NULL) && now_ms - m->asked_ms > BARRIER_ASK_MS) {
        struct work *works = m->asked != NULL ? m->asked : m->held;
        *(m->asked != NULL ? &m->asked : &m->held) = NULL;
        barriers_end(m->replica, works, OMEN_EUNAVAILABLE);
    }
    if (now_ms - m->base_ms >= BASE_REFRESH_MS) checkpointed(m, now_ms);
    status_refresh(m);
}

void replica_raft_frame(struct replica_raft *m, struct frame *frame, uint64_t node_id, uint64_t now_ms)
{
    struct replica *r = m->replica;
    struct replica_host *host = r->host;
    pthread_mutex_lock(&r->mutex);
    bool strip = r->backlog_bytes > host->options.apply_backlog_bytes_max || r->stopped != OMEN_OK;
    pthread_mutex_unlock(&r->mutex);
    strip = strip || atomic_load_explicit(&host->log_over, memory_order_relaxed);
    raft_group_frame(m->group, frame, node_id, strip, now_ms);
    if (m->askers != NULL) barriers_run(m, now_ms);
}

/* ---- members ---- */

static void change_run(struct loop_task *task)
{
    struct change_request *c = (struct change_request *)task;
    struct replica_raft *m = c->m;
    struct err err = { 0 };
    enum omen_err rc = m->stopping
            ? err_set(&err, OMEN_ECANCELED, NULL, "the replica is being closed")
            : raft_group_change(m->group, c->change, &c->member, c, net_now_ms(m->loop->net), &err);
    if (rc == OMEN_ENOTLEADER) rc = refusal(m->replica, rc, &err);
    if (rc != OMEN_OK) change_end(c, rc, &err);
}

static void change_ask(struct replica *r, enum group_change change, const struct replica_member *member,
        replica_done done, void *arg)
{
    struct err err = { 0 };
    if (r->raft == NULL) {
        done(arg, err_set(&err, OMEN_EINVAL, NULL, "a group of one member has no others"), 0, &err);
        return;
    }
    struct change_request *c = mem_must_alloc(sizeof *c);
    *c = (struct change_request){ .task = { .run = change_run },
        .m = r->raft,
        .change = change,
        .member = *member,
        .done = done,
        .done_arg = arg };
    loop_post(r->raft->loop->loop, &c->task);
}

void replica_add(struct replica *r, uint64_t replica_id, uint64_t node_id, replica_done done, void *arg)
{
    struct replica_member member = { replica_id, node_id, REPLICA_SPARE };
    change_ask(r, GROUP_ADD, &member, done, arg);
}

void replica_assign(struct replica *r, uint64_t replica_id, enum replica_member_role role, replica_done done,
        void *arg)
{
    struct replica_member member = { replica_id, 0, role };
    change_ask(r, GROUP_ASSIGN, &member, done, arg);
}

void replica_remove(struct replica *r, uint64_t replica_id, replica_done done, void *arg)
{
    struct replica_member member = { replica_id, 0, REPLICA_SPARE };
    change_ask(r, GROUP_REMOVE, &member, done, arg);
}

void replica_transfer(struct replica *r, uint64_t replica_id, replica_done done, void *arg)
{
    struct replica_member member = { replica_id, 0, REPLICA_VOTER };
    change_ask(r, GROUP_TRANSFER, &member, done, arg);
}

void replica_members(struct replica *r, struct replica_member *members_out, uint32_t *count_out)
{
    *count_out = 0;
    if (r->raft == NULL) return;
    pthread_mutex_lock(&r->mutex);
    *count_out = r->raft->status.member_count;
    memcpy(members_out, r->raft->members, *count_out * sizeof members_out[0]);
    pthread_mutex_unlock(&r->mutex);
}

bool replica_leader(struct replica *r, struct replica_member *leader_out)
{
    *leader_out = (struct replica_member){ 0 };
    if (r->raft == NULL) return false;
    pthread_mutex_lock(&r->mutex);
    *leader_out = r->raft->leader;
    pthread_mutex_unlock(&r->mutex);
    return leader_out->replica_id != 0;
}

void replica_raft_status(struct replica *r, struct replica_status *out)
{
    const struct replica_status *s = &r->raft->status;
    out->term = s->term;
    out->last_index = s->last_index;
    out->stored_index = s->stored_index;
    out->commit_index = s->commit_index;
    out->base_sequence = replica_sequence(r, s->base_sequence);
    out->log_bytes = s->log_bytes;
    out->leader = s->leader && r->stopped == OMEN_OK;
    out->leader_replica = s->leader_replica;
    out->leader_node = s->leader_node;
    out->member_count = s->member_count;
    out->role = s->role;
    out->is_member = s->is_member;
    out->fetching = s->fetching;
    out->disk_full = out->disk_full || s->disk_full;
}

/* ---- bases ---- */

struct base_call {
    struct replica_raft *m;
    struct buf *out;
    uint64_t sequence;
    const void *description;
    size_t len;
    enum omen_err rc;
    struct err *err;
};

static void describe_run(void *arg)
{
    struct base_call *c = arg;
    c->rc = raft_group_describe(c->m->group, c->out, &c->sequence) ? OMEN_OK : OMEN_ENOTFOUND;
}

enum omen_err replica_base_describe(struct replica *r, struct buf *out, uint64_t *sequence_out)
{
    struct base_call c = { .m = r->raft, .out = out };
    if (r->raft == NULL) return OMEN_ENOTFOUND;
    loop_call(r->raft->loop->loop, describe_run, &c);
    *sequence_out = replica_sequence(r, c.sequence);
    return c.rc;
}

static void ready_run(void *arg)
{
    struct base_call *c = arg;
    c->rc = raft_group_install(c->m->group, c->description, c->len, net_now_ms(c->m->loop->net), c->err);
}

enum omen_err replica_base_ready(struct replica *r, const void *description, size_t len, struct err *err)
{
    CHECK(r->raft != NULL);
    struct base_call c = { .m = r->raft, .description = description, .len = len, .err = err };
    loop_call(r->raft->loop->loop, ready_run, &c);
    return c.rc;
}

static void failed_run(void *arg)
{
    struct base_call *c = arg;
    raft_group_install_failed(c->m->group);
}

void replica_base_failed(struct replica *r)
{
    CHECK(r->raft != NULL);
    struct base_call c = { .m = r->raft };
    loop_call(r->raft->loop->loop, failed_run, &c);
}

/* ---- bootstrap, open, close ---- */

enum omen_err replica_bootstrap(struct replica_host *host, uint64_t group, uint64_t replica_id,
        const struct replica_member *members, uint32_t count, struct err *err)
{
    enum omen_err rc = members_check(members, count, err);
    if (rc != OMEN_OK) return rc;
    const struct replica_member *me = members_find(members, count, replica_id);
    if (me == NULL || me->node_id != host->options.log.node_id)
        return err_set(err, OMEN_EINVAL, "members", "this node's replica %" PRIu64 " is not among them",
                replica_id);
    struct pending *pending;
    rc = host_pending_take(host, group, replica_id, &pending, err);
    if (rc != OMEN_OK) return rc;
    if (pending->term != 0 || pending->count > 0 || pending->base_index != 0) {
        host_pending_return(host, pending);
        return err_set(err, OMEN_EEXISTS, "group", "group %" PRIu64 " has begun already", group);
    }
    pending_free(pending);
    uint64_t vote = 0;
    uint32_t len;
    uint8_t *body = members_encode(members, count, &len);
    struct node_log_record records[] = {
        { .group = group,
                .replica = replica_id,
                .term = 1,
                .kind = NODE_LOG_HARD_STATE,
                .body = &vote,
                .len = 8 },
        { .group = group,
                .replica = replica_id,
                .term = 1,
                .index = 1,
                .kind = NODE_LOG_ENTRY,
                .entry_type = NODE_LOG_CHANGE,
                .body = body,
                .len = len },
    };
    rc = log_append_wait(host->log, records, 2);
    if (rc == OMEN_OK) {
        pthread_mutex_lock(&host->mutex);
        for (uint32_t i = 0; rc == OMEN_OK && i < 2; i++) rc = pending_replay(&host->pending, &records[i]);
        pthread_mutex_unlock(&host->mutex);
    }
    mem_free(body);
    return rc == OMEN_EFULL ? err_set(err, rc, NULL, "the disk is full: no room for the group's first entry")
                            : rc;
}

/* Entries become slots; their memory goes over. */
static enum omen_err load_make(struct pending *p, struct group_load *load, struct err *err)
{
    *load = (struct group_load){ .term = p->term, .vote = p->vote, .count = p->count };
    if (p->base_index != 0) {
        if (group_base_decode(p->base, p->base_len, &load->base) != OMEN_OK)
            return err_set(err, OMEN_ECORRUPT, NULL, "group %" PRIu64 ": malformed snapshot record",
                    p->group);
        load->base.index = p->base_index;
        load->base.term = p->base_term;
    }
    if (p->count == 0) return OMEN_OK;
    load->first_index = p->entries[0]->index;
    load->slots = mem_must_calloc(p->count, sizeof *load->slots);
    for (uint32_t i = 0; i < p->count; i++) {
        struct pending_entry *e = p->entries[i];
        load->slots[i] = (struct log_slot){ .term = e->term,
            .owner = shared_new(e),
            .data = e->body,
            .len = e->len,
            .crc = crc32c(0, e->body, e->len),
            .type = e->type };
    }
    p->count = 0;
    return OMEN_OK;
}

static void load_free(struct group_load *load)
{
    for (uint32_t i = 0; load->slots != NULL && i < load->count; i++) shared_release(load->slots[i].owner);
    mem_free(load->slots);
    mem_free(load->base.members);
}

/* After a crash between an install's record and the switch the machine is still at its old base. */
static enum omen_err base_check(struct replica *r, uint64_t base, struct err *err)
{
    uint64_t sequence = replica_sequence(r, base);
    if (r->fsm.applied(r->fsm.self) >= sequence) return OMEN_OK;
    enum omen_err rc = OMEN_OK;
    if (r->bases.switch_base != NULL) rc = r->bases.switch_base(r->fsm.self, sequence, err);
    if (rc == OMEN_OK && r->fsm.applied(r->fsm.self) < sequence)
        rc = err_set(err, OMEN_ECORRUPT, NULL,
                "group %" PRIu64 ": the log begins after sequence %" PRIu64
                ", the state machine ends at %" PRIu64,
                r->group, sequence, r->fsm.applied(r->fsm.self));
    r->applied = r->committed = r->checkpoint_applied = replica_index(r, r->fsm.applied(r->fsm.self));
    return rc;
}

static void start_run(void *arg)
{
    struct replica_raft *m = arg;
    net_add(m);
    raft_group_start(m->group, net_now_ms(m->loop->net));
    status_refresh(m);
}

static void raft_attach(struct replica *r, const struct replica_group_options *options,
        struct raft_group *group, struct replica_raft *m)
{
    m->replica = r;
    m->group = group;
    m->on_leader_change = options->on_leader_change;
    m->on_leader_arg = options->arg;
    m->task.run = task_run;
    m->proposals_tail = &m->proposals;
    m->barriers_tail = &m->barriers;
    m->durable = replica_index(r, r->fsm.log_needed_from(r->fsm.self));
    r->raft = m;
}

enum omen_err replica_open_group(struct replica_host *host, const struct replica_group_options *options,
        struct replica **replica_out, struct err *err)
{
    *replica_out = NULL;
    if (host->net == NULL) return err_set(err, OMEN_EINVAL, "cluster_id", "this host is not in a cluster");
    struct pending *pending = NULL;
    enum omen_err rc = host_pending_take(host, options->group, options->replica_id, &pending, err);
    if (rc != OMEN_OK) return rc;
    struct replica *r = replica_new(host, options->group, options->replica_id, options->first_sequence,
            options->fsm);
    r->bases = options->bases;
    struct replica_raft *m = mem_must_calloc(1, sizeof *m);
    struct group_load load = { 0 };
    struct raft_group *group = NULL;
    const struct replica_cluster_options *c = &host->options.cluster;
    m->loop = net_loop_of(host->net, options->group);
    struct group_options g = {
        .group = options->group,
        .replica_id = options->replica_id,
        .node_id = host->options.log.node_id,
        .election_ms = c->election_ms,
        .heartbeat_ms = c->heartbeat_ms,
        .seed = net_random(),
        .io = &raft_io,
        .io_arg = m,
    };
    rc = load_make(pending, &load, err);
    if (rc == OMEN_OK) rc = base_check(r, load.base.sequence, err);
    if (rc == OMEN_OK) rc = raft_group_new(&g, &load, net_now_ms(host->net), &group, err);
    pending_free(pending);
    if (rc != OMEN_OK) {
        load_free(&load);
        mem_free(m);
        host_replica_closed(host, options->group);
        replica_free(r);
        return rc;
    }
    raft_attach(r, options, group, m);
    host_replica_add(host, r);
    loop_call(m->loop->loop, start_run, m);
    *replica_out = r;
    return OMEN_OK;
}

static void drain_run(void *arg)
{
    struct replica_raft *m = arg;
    struct replica *r = m->replica;
    net_remove(m);
    m->stopping = true;
    raft_group_stop(m->group);
    pthread_mutex_lock(&r->mutex);
    struct work *proposals = m->proposals, *barriers = m->barriers;
    m->proposals = m->barriers = NULL;
    m->proposals_tail = &m->proposals;
    m->barriers_tail = &m->barriers;
    pthread_mutex_unlock(&r->mutex);
    while (proposals != NULL) {
        struct work *work = proposals;
        proposals = work->next;
        proposal_end(r, work, OMEN_ECANCELED);
    }
    barriers_end(r, barriers, OMEN_ECANCELED);
    barriers_end(r, m->asked, OMEN_ECANCELED);
    barriers_end(r, m->held, OMEN_ECANCELED);
    m->asked = m->held = NULL;
    askers_answer(m, m->askers, OMEN_ENOTLEADER, 0);
    m->askers = NULL;
    pthread_mutex_lock(&r->mutex);
    m->drained = m->drained || raft_group_appends(m->group) == 0;
    pthread_mutex_unlock(&r->mutex);
}

void replica_raft_drain(struct replica *r)
{
    struct replica_raft *m = r->raft;
    if (!m->stopping) loop_call(m->loop->loop, drain_run, m);
    pthread_mutex_lock(&r->mutex);
    while (!m->drained) pthread_cond_wait(&r->idle, &r->mutex);
    pthread_mutex_unlock(&r->mutex);
}

static void free_run(void *arg)
{
    struct replica_raft *m = arg;
    raft_group_free(m->group);
}

/* Whatever was posted to the loop before has run when this has. */
void replica_raft_free(struct replica *r)
{
    struct replica_raft *m = r->raft;
    loop_call(m->loop->loop, free_run, m);
    mem_free(m);
}
