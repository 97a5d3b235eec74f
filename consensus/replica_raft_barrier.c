/* Linearizable reads of a Raft group (C8): one barrier entry for all who wait, then markers behind what was
 * committed before it in the apply queue. A follower asks its leader from where on a read may start.
 *
 *   At a leader:    WAITING --entry submitted--> in a batch --committed--> marker in the apply queue --> done
 *   At a follower:  WAITING --question sent--> ASKED --answer--> HELD --committed so far here--> marker --> done
 *   ASKED --another one leads, or this one--> WAITING: who was asked may never answer
 *   any --no leader, leadership lost, BARRIER_ASK_MS--> done(ENOTLEADER, EUNAVAILABLE) */
#include "common/err.h"

#include "consensus/replica_raft_impl.h"

static void barriers_end(struct replica *r, struct work *works, enum omen_err rc)
{
    struct err err = { 0 };
    (void)raft_refusal(r, rc, &err);
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

/* Answered by the leader, and committed here. */
void barriers_release(struct replica_raft *m, uint64_t committed)
{
    if (m->held == NULL || committed < m->held_index) return;
    struct work *works = m->held;
    m->held = NULL;
    barriers_enqueue(m->replica, works);
}

void barriers_committed(struct replica_raft *m, struct barrier_batch *batch, uint64_t sequence)
{
    m->barrier_out = false;
    barriers_enqueue(m->replica, batch->works);
    askers_answer(m, batch->askers, OMEN_OK, sequence);
    mem_free(batch);
}

void barriers_lost(struct replica_raft *m, struct barrier_batch *batch, enum omen_err rc)
{
    m->barrier_out = false;
    barriers_end(m->replica, batch->works, rc);
    askers_answer(m, batch->askers, rc, 0);
    mem_free(batch);
}

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
    barriers_lost(m, batch, rc);
}

/* Of a leader that is none any more no answer comes that could be waited for: they wait for the next one's. A late answer
 * finds another token. */
static void asked_in_vain(struct replica_raft *m)
{
    struct replica *r = m->replica;
    struct replica_member leader;
    if (m->asked == NULL) return;
    if (raft_group_leader(m->group, &leader) && leader.replica_id == m->asked_of) return;
    struct work **tail = &m->asked;
    while (*tail != NULL) tail = &(*tail)->next;
    pthread_mutex_lock(&r->mutex);
    *tail = m->barriers;
    if (m->barriers == NULL) m->barriers_tail = tail;
    m->barriers = m->asked;
    pthread_mutex_unlock(&r->mutex);
    m->asked = NULL;
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
    m->asked_of = leader.replica_id;
    m->asked_ms = now_ms;
    struct frame_barrier question = { .token = ++m->token };
    raft_group_send_barrier(m->group, FRAME_BARRIER, leader.node_id, leader.replica_id, &question);
}

void barriers_run(struct replica_raft *m, uint64_t now_ms)
{
    asked_in_vain(m);
    if (raft_group_is_leader(m->group) || m->askers != NULL)
        barrier_submit(m, now_ms);
    else
        barrier_forward(m, now_ms);
}

/* Whoever waited too long for the leader's answer, or to have come so far here, is told so. */
void barriers_tick(struct replica_raft *m, uint64_t now_ms)
{
    barriers_run(m, now_ms);
    if ((m->asked == NULL && m->held == NULL) || now_ms - m->asked_ms <= BARRIER_ASK_MS) return;
    struct work **works = m->asked != NULL ? &m->asked : &m->held;
    struct work *late = *works;
    *works = NULL;
    barriers_end(m->replica, late, OMEN_EUNAVAILABLE);
}

void barriers_drain(struct replica_raft *m)
{
    struct replica *r = m->replica;
    pthread_mutex_lock(&r->mutex);
    struct work *works = m->barriers;
    m->barriers = NULL;
    m->barriers_tail = &m->barriers;
    pthread_mutex_unlock(&r->mutex);
    barriers_end(r, works, OMEN_ECANCELED);
    barriers_end(r, m->asked, OMEN_ECANCELED);
    barriers_end(r, m->held, OMEN_ECANCELED);
    m->asked = m->held = NULL;
    askers_answer(m, m->askers, OMEN_ENOTLEADER, 0);
    m->askers = NULL;
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
    barriers_release(m, m->replica->committed); /* written by this thread only */
}

void barriers_frame(void *arg, enum frame_type type, uint64_t node_id, uint64_t from,
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
