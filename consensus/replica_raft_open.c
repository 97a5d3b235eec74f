/* Replicas of Raft groups: bootstrap, open, close; members and bases. See replica.h and replica_raft_impl.h.
 * Threads: any; what is the group's runs on its loop. */
#include "common/err.h"

#include <inttypes.h>
#include <string.h>

#include "common/check.h"
#include "common/crc32c.h"
#include "common/log.h"
#include "consensus/members.h"
#include "consensus/replica_raft_impl.h"

/* ---- members ---- */

static void change_run(struct loop_task *task)
{
    struct change_request *c = (struct change_request *)task;
    struct replica_raft *m = c->m;
    struct err err = { 0 };
    enum omen_err rc = m->stopping
            ? err_set(&err, OMEN_ECANCELED, NULL, "the replica is being closed")
            : raft_group_change(m->group, c->change, &c->member, c, net_now_ms(m->loop->net), &err);
    if (rc == OMEN_ENOTLEADER) rc = raft_refusal(m->replica, rc, &err);
    if (rc != OMEN_OK) raft_change_end(c, rc, &err);
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

void replica_followers(struct replica *r, struct replica_follower *followers_out, uint32_t *count_out)
{
    *count_out = 0;
    if (r->raft == NULL) return;
    pthread_mutex_lock(&r->mutex);
    *count_out = r->raft->follower_count;
    memcpy(followers_out, r->raft->followers, *count_out * sizeof followers_out[0]);
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
    out->switching = r->switches > 0;
    out->lag_entries = s->lag_entries + (r->committed > r->applied ? r->committed - r->applied : 0);
    out->lag_unseen = s->lag_unseen;
    out->backlog_bytes = r->backlog_bytes;
    out->caught_up = r->raft->level && r->applied >= r->raft->level_sequence;
    out->silent_ms = replica_silent_ms(r);
    out->disk_full = out->disk_full || s->disk_full;
    out->waits = out->waits || s->disk_full;
}

uint64_t replica_silent_ms(struct replica *r)
{
    const struct replica_raft *m = r->raft;
    if (m == NULL || atomic_load(&m->leading)) return 0;
    uint64_t heard_ms = atomic_load(&m->heard_ms), now_ms = net_now_ms(m->loop->net);
    if (heard_ms == 0) return UINT64_MAX;
    return now_ms > heard_ms ? now_ms - heard_ms : 0;
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

void replica_keep_log(struct replica *r, uint64_t bytes)
{
    uint64_t most = r->host->options.log.bytes_max / 4;
    if (r->raft != NULL) atomic_store(&r->raft->keep_bytes, bytes < most ? bytes : most);
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
    rc = log_append_wait(host->log, records, 2, NODE_LOG_VITAL);
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
enum omen_err raft_load_make(struct pending *p, struct group_load *load, struct err *err)
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
    raft_status_refresh(m);
}

static void raft_attach(struct replica *r, const struct replica_group_options *options,
        struct raft_group *group, struct replica_raft *m)
{
    m->replica = r;
    m->group = group;
    m->on_leader_change = options->on_leader_change;
    m->on_leader_arg = options->arg;
    m->task.run = raft_task_run;
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
    rc = raft_load_make(pending, &load, err);
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
    struct work *proposals = m->proposals;
    m->proposals = NULL;
    m->proposals_tail = &m->proposals;
    pthread_mutex_unlock(&r->mutex);
    while (proposals != NULL) {
        struct work *work = proposals;
        proposals = work->next;
        raft_proposal_end(r, work, OMEN_ECANCELED);
    }
    barriers_drain(m);
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
