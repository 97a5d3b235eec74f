/* Replicas: propose, barrier, close; and all of a group of one member. See replica.h for the contract and
 * replica_impl.h for the drawing, the locks and the other files.
 *
 * A group of one member is committed when the log is synced; one of several when raft says so
 * (replica_raft.c). What is before that, admission, and after it, apply queue and outcomes, is the same.
 * Threads: any may call; done callbacks as replica.h says. */
#include "common/err.h"

#include <string.h>

#include "common/check.h"
#include "common/hash.h"
#include "common/log.h"
#include "common/mem.h"
#include "consensus/replica_impl.h"

/* ---- propose ---- */

static void metric_count(struct metric_counter *counter)
{
    if (counter != NULL) metric_add(counter, 1);
}

void replica_inflight_end(struct replica *r, uint32_t len)
{
    pthread_mutex_lock(&r->mutex);
    r->inflight_bytes -= len;
    r->inflight_count--;
    pthread_mutex_unlock(&r->mutex);
    atomic_fetch_sub_explicit(&r->host->inflight_bytes, len, memory_order_relaxed);
    struct metric_gauge *gauge = r->host->metrics.inflight_bytes;
    if (gauge != NULL) metric_gauge_add(gauge, -(int64_t)len);
}

/* With one member an entry is committed when it is durable here. Log thread. */
static void entry_committed(struct node_log_append *append, enum omen_err result)
{
    struct work *work = (struct work *)append;
    struct replica *r = work->replica;
    pthread_mutex_lock(&r->mutex);
    if (result == OMEN_OK) {
        CHECK(work->index == r->committed + 1);
        r->committed = work->index;
        r->bytes_since_checkpoint += work->len;
        if (r->bytes_since_checkpoint >= r->host->options.checkpoint_log_bytes) checkpoint_wake(r->host);
        replica_enqueue(r, work);
        if (--r->appends == 0) pthread_cond_broadcast(&r->idle);
        pthread_mutex_unlock(&r->mutex);
        return;
    }
    CHECK(result == OMEN_EFULL); /* anything else ended the process */
    r->log_full = true;
    pthread_mutex_unlock(&r->mutex);
    replica_inflight_end(r, work->len);
    struct err err = { 0 };
    (void)err_set(&err, OMEN_EFULL, NULL, "the disk is full: no room for another segment of the log");
    atomic_store(&r->host->log_short, true); /* a checkpoint may free one */
    checkpoint_wake(r->host);
    work->done(work->done_arg, OMEN_EFULL, 0, &err);
    mem_free(work->entry);
    mem_free(work);
    pthread_mutex_lock(&r->mutex);
    if (--r->appends == 0) {
        /* Every entry after the refused one was refused too: the next proposal takes its index. */
        r->next_index = r->committed + 1;
        r->log_full = false;
        pthread_cond_broadcast(&r->idle);
    }
    pthread_mutex_unlock(&r->mutex);
}

enum omen_err replica_busy(struct err *err, const char *what, uint64_t limit)
{
    enum omen_err rc = err_set(err, OMEN_EBUSY, NULL, "%s (limit %llu)", what, (unsigned long long)limit);
    err->retry_after_ms = BUSY_RETRY_MS;
    return rc;
}

/* Only what is vital is let in: there is the reserve of the log here, or not even room elsewhere. */
static bool is_short(const struct replica *r)
{
    return node_log_is_short(r->host->log) || (r->raft != NULL && replica_raft_is_short(r));
}

/* May an entry of `len` bytes be taken now? Mutex held. A single entry is taken whatever its size when none
 * is in flight. */
static enum omen_err admit(struct replica *r, uint32_t len, bool only_vital, bool vital, struct err *err)
{
    const struct replica_host_options *o = &r->host->options;
    if (r->stopped != OMEN_OK) {
        *err = r->stop_err;
        return r->stopped;
    }
    if (r->closing) return err_set(err, OMEN_ECANCELED, NULL, "the replica is being closed");
    if (r->disk_full || r->log_full)
        return err_set(err, OMEN_EFULL, NULL,
                "the disk is full; reads go on, writes are refused until there is room");
    if (only_vital && !vital)
        return err_set(err, OMEN_EFULL, NULL,
                "the disk is full, here or where a majority of replicas is: what is left is kept for deletes; reads go "
                "on, writes are refused until there is room");
    if (r->inflight_count > 0 && r->inflight_bytes + len > o->group_inflight_bytes_max)
        return replica_busy(err, "too many bytes in flight for this shard", o->group_inflight_bytes_max);
    if (r->inflight_count >= PROPOSALS_MAX)
        return replica_busy(err, "too many writes in flight", PROPOSALS_MAX);
    if (node_log_far_over(r->host->log))
        return replica_busy(err, "the log waits for a checkpoint", o->log.bytes_max);
    uint64_t others = atomic_fetch_add_explicit(&r->host->inflight_bytes, len, memory_order_relaxed);
    if (others > 0 && others + len > o->host_inflight_bytes_max) {
        atomic_fetch_sub_explicit(&r->host->inflight_bytes, len, memory_order_relaxed);
        return replica_busy(err, "too many bytes in flight on this node", o->host_inflight_bytes_max);
    }
    return OMEN_OK;
}

static void work_append(struct replica *r, struct work *work)
{
    work->index = r->next_index++;
    work->record = (struct node_log_record){
        .group = r->group,
        .replica = r->replica_id,
        .term = REPLICA_TERM,
        .index = work->index,
        .kind = NODE_LOG_ENTRY,
        .body = work->entry,
        .len = work->len,
    };
    work->append = (struct node_log_append){ .records = &work->record,
        .count = 1,
        .claim = work->vital ? NODE_LOG_VITAL : NODE_LOG_PLAIN,
        .done = entry_committed };
    r->appends++;
    node_log_append(r->host->log,
            &work->append); /* under the mutex: the log's order is the order of indexes */
}

static bool entry_is_vital(struct replica *r, const void *entry, uint32_t len)
{
    return r->fsm.vital != NULL && r->fsm.vital(r->fsm.self, entry, len);
}

bool replica_entry_is_vital(struct replica *r, const void *entry, uint32_t len)
{
    return is_short(r) && entry_is_vital(r, entry, len);
}

void replica_propose(struct replica *r, uint8_t *entry, uint32_t len, void *proposal_arg, replica_done done,
        void *done_arg)
{
    struct host_metrics *m = &r->host->metrics;
    struct err err = { 0 };
    metric_count(m->proposals);
    if (len == 0 || len % 8 != 0 || len > REPLICA_ENTRY_BYTES_MAX) {
        enum omen_err rc = err_set(&err, len > REPLICA_ENTRY_BYTES_MAX ? OMEN_ETOOBIG : OMEN_EINVAL, NULL,
                "entry of %u bytes: must be a multiple of 8 between 8 and %u", len, REPLICA_ENTRY_BYTES_MAX);
        mem_free(entry);
        done(done_arg, rc, 0, &err);
        return;
    }
    struct work *work = mem_must_calloc(1, sizeof *work);
    bool only_vital = is_short(r); /* asked once: an entry is not judged by two answers */
    *work = (struct work){
        .kind = WORK_PROPOSAL,
        .replica = r,
        .entry = entry,
        .len = len,
        .proposal_arg = proposal_arg,
        .vital = only_vital && entry_is_vital(r, entry, len),
        .done = done,
        .done_arg = done_arg,
        .began_ns = m->commit != NULL ? clock_monotonic_ns(r->host->options.clock) : 0,
    };
    pthread_mutex_lock(&r->mutex);
    enum omen_err rc = admit(r, len, only_vital, work->vital, &err);
    if (rc == OMEN_OK) {
        if (m->inflight_bytes != NULL) metric_gauge_add(m->inflight_bytes, len);
        r->inflight_bytes += len;
        r->inflight_count++;
        if (r->raft != NULL)
            replica_raft_propose(r, work);
        else
            work_append(r, work);
    }
    pthread_mutex_unlock(&r->mutex);
    if (rc == OMEN_OK) return;
    metric_count(m->refused);
    mem_free(entry);
    mem_free(work);
    done(done_arg, rc, 0, &err);
}

/* ---- barrier ---- */

void replica_barrier(struct replica *r, replica_done done, void *done_arg)
{
    if (r->raft != NULL) {
        replica_raft_barrier(r, done, done_arg);
        return;
    }
    struct err err = { 0 };
    enum omen_err rc = OMEN_OK;
    bool now = true;
    pthread_mutex_lock(&r->mutex);
    uint64_t applied = r->applied;
    if (r->stopped != OMEN_OK) {
        rc = r->stopped;
        err = r->stop_err;
    } else if (r->closing) {
        rc = err_set(&err, OMEN_ECANCELED, NULL, "the replica is being closed");
    } else if (r->applied < r->committed) {
        if (r->barriers >= BARRIERS_MAX) {
            rc = replica_busy(&err, "too many reads wait for this shard", BARRIERS_MAX);
        } else {
            struct work *work = mem_must_calloc(1, sizeof *work);
            *work = (struct work){ .kind = WORK_BARRIER, .replica = r, .done = done, .done_arg = done_arg };
            r->barriers++;
            replica_enqueue(r, work);
            now = false;
        }
    }
    pthread_mutex_unlock(&r->mutex);
    if (now)
        done(done_arg, rc, rc == OMEN_OK ? replica_sequence(r, applied) : 0, rc == OMEN_OK ? NULL : &err);
}

/* ---- open ---- */

/* Puts what the log holds above the machine's state into the apply queue. */
static enum omen_err redeliver(struct replica *r, const struct pending *p, struct err *err)
{
    uint64_t applied = r->applied;
    uint64_t first = p->count > 0 ? p->entries[0]->index : 0;
    uint64_t last = p->count > 0 ? p->entries[p->count - 1]->index : 0;
    if (first > r->applied + 1)
        return err_set(err, OMEN_ECORRUPT, NULL,
                "group %llu: the log begins at sequence %llu, the state machine ends at %llu",
                (unsigned long long)r->group, (unsigned long long)replica_sequence(r, first),
                (unsigned long long)replica_sequence(r, r->applied));
    if (p->count > 0 && last < r->applied) {
        LOG_WARN("replica.log_behind", "group=%llu log=%llu applied=%llu", (unsigned long long)r->group,
                (unsigned long long)replica_sequence(r, last),
                (unsigned long long)replica_sequence(r, r->applied));
    }
    r->committed = last > r->applied ? last : r->applied;
    r->next_index = r->committed + 1;
    for (uint32_t i = 0; i < p->count; i++) {
        struct pending_entry *e = p->entries[i];
        if (e->index <= applied) continue;
        struct work *work = mem_must_calloc(1, sizeof *work);
        *work = (struct work){ .kind = WORK_REDELIVERY,
            .replica = r,
            .index = e->index,
            .entry = e->body,
            .len = e->len };
        r->bytes_since_checkpoint += e->len;
        pthread_mutex_lock(&r->mutex);
        replica_enqueue(r, work);
        pthread_mutex_unlock(&r->mutex);
    }
    return OMEN_OK;
}

/* Waits until the redelivery is done, or until it waits for room (D2): the rest is applied when there is some.
 * Meanwhile barriers queue behind it and tokens are ahead of what is applied, so no reader who may count on an
 * acknowledged write misses it. */
static enum omen_err redelivery_wait(struct replica *r, struct err *err)
{
    pthread_mutex_lock(&r->mutex);
    while (r->scheduled && !r->disk_full) pthread_cond_wait(&r->idle, &r->mutex);
    enum omen_err rc = r->stopped;
    if (rc != OMEN_OK && err != NULL) *err = r->stop_err;
    pthread_mutex_unlock(&r->mutex);
    return rc;
}

struct replica *replica_new(struct replica_host *host, uint64_t group, uint64_t replica_id,
        uint64_t first_sequence, const struct replica_fsm *fsm)
{
    struct replica *r = mem_must_calloc(1, sizeof *r);
    r->host = host;
    r->worker = &host->workers[hash64(&group, sizeof group) % host->worker_count];
    r->fsm = *fsm;
    r->group = group;
    r->replica_id = replica_id;
    r->first_sequence = first_sequence;
    r->queue_tail = &r->queue_head;
    r->applied = replica_index(r, fsm->applied(fsm->self));
    r->committed = r->applied;
    r->next_index = r->applied + 1;
    r->checkpoint_applied = r->applied;
    r->checkpoint_ns = clock_monotonic_ns(host->options.clock);
    pthread_mutex_init(&r->mutex, NULL);
    pthread_cond_init(&r->idle, NULL);
    pthread_mutex_init(&r->checkpoint_mutex, NULL);
    return r;
}

void replica_free(struct replica *r)
{
    if (r->raft != NULL) replica_raft_free(r);
    pending_free(r->redelivered);
    pthread_mutex_destroy(&r->checkpoint_mutex);
    pthread_cond_destroy(&r->idle);
    pthread_mutex_destroy(&r->mutex);
    mem_free(r);
}

static enum omen_err hard_state_write(struct replica *r, struct err *err)
{
    uint64_t vote = r->replica_id;
    struct node_log_record record = {
        .group = r->group,
        .replica = r->replica_id,
        .term = REPLICA_TERM,
        .kind = NODE_LOG_HARD_STATE,
        .body = &vote,
        .len = sizeof vote,
    };
    enum omen_err rc = log_append_wait(r->host->log, &record, 1, NODE_LOG_LAST); /* a start needs no room */
    if (rc == OMEN_EFULL)
        return err_set(err, rc, NULL, "no room for the first log segment of group %llu",
                (unsigned long long)r->group);
    return rc;
}

void replica_release_log(struct replica *r)
{
    if (r->raft != NULL) {
        replica_raft_release_log(r);
        return;
    }
    uint64_t sequence = r->fsm.log_needed_from(r->fsm.self);
    node_log_release(r->host->log, r->group, r->replica_id, replica_index(r, sequence));
}

/* Nothing is in flight any more when it returns. */
static void replica_drain(struct replica *r)
{
    pthread_mutex_lock(&r->mutex);
    r->closing = true;
    if (r->disk_full) worker_kick(r->worker); /* one last try, then the rest is answered EUNKNOWN */
    pthread_mutex_unlock(&r->mutex);
    if (r->raft != NULL) replica_raft_drain(r);
    pthread_mutex_lock(&r->mutex);
    while (r->appends > 0 || r->scheduled) pthread_cond_wait(&r->idle, &r->mutex);
    pthread_mutex_unlock(&r->mutex);
}

enum omen_err replica_open(struct replica_host *host, uint64_t group, uint64_t replica_id,
        uint64_t first_sequence, const struct replica_fsm *fsm, struct replica **replica_out, struct err *err)
{
    *replica_out = NULL;
    struct pending *pending = NULL;
    enum omen_err rc = host_pending_take(host, group, replica_id, &pending, err);
    if (rc != OMEN_OK) return rc;
    struct replica *r = replica_new(host, group, replica_id, first_sequence, fsm);
    if (pending->base_index != 0 || (pending->count > 0 && pending->entries[0]->type != NODE_LOG_COMMAND))
        rc = err_set(err, OMEN_EINVAL, "group", "group %llu is a Raft group", (unsigned long long)group);
    if (rc == OMEN_OK) rc = redeliver(r, pending, err);
    if (rc == OMEN_OK) rc = redelivery_wait(r, err);
    if (rc == OMEN_OK && pending->term == 0) rc = hard_state_write(r, err);
    if (rc != OMEN_OK) {
        replica_drain(r);
        host_pending_return(host, pending);
        replica_free(r);
        return rc;
    }
    r->redelivered = pending;
    replica_release_log(r);
    host_replica_add(host, r);
    *replica_out = r;
    return OMEN_OK;
}

/* ---- close ---- */

static void close_and_free(struct replica *r, bool checkpoint)
{
    replica_drain(r);
    pthread_mutex_lock(&r->mutex);
    bool stopped = r->stopped != OMEN_OK;
    pthread_mutex_unlock(&r->mutex);
    host_replica_remove(r->host, r);
    struct err err = { 0 };
    if (checkpoint && !stopped && replica_checkpoint(r, &err) != OMEN_OK) {
        LOG_WARN("replica.last_checkpoint", "group=%llu reason=\"%s\"", (unsigned long long)r->group,
                err.message);
    }
    replica_free(r);
}

void replica_close(struct replica *r, bool checkpoint)
{
    if (r != NULL) close_and_free(r, checkpoint);
}

void replica_drop(struct replica *r)
{
    if (r == NULL) return;
    struct replica_host *host = r->host;
    uint64_t group = r->group, replica_id = r->replica_id;
    close_and_free(r, false);
    host_group_drop(host, group, replica_id);
}

void replica_halt(struct replica *r, enum omen_err rc, const struct err *err, bool forever)
{
    replica_stop(r, rc, err);
    if (forever) node_log_release(r->host->log, r->group, r->replica_id, UINT64_MAX);
}

/* ---- status ---- */

void replica_status(struct replica *r, struct replica_status *status_out)
{
    uint64_t needed_from = r->fsm.log_needed_from(r->fsm.self);
    pthread_mutex_lock(&r->mutex);
    *status_out = (struct replica_status){
        .group = r->group,
        .replica_id = r->replica_id,
        .term = REPLICA_TERM,
        .last_index = r->next_index - 1,
        .applied = replica_sequence(r, r->applied),
        .log_needed_from = needed_from,
        .inflight_bytes = r->inflight_bytes,
        .inflight_count = r->inflight_count,
        .checkpoints = r->checkpoints,
        .checkpoint_ns = r->checkpoint_ns,
        .stopped = r->stopped,
        .disk_full = r->disk_full || r->log_full || node_log_is_short(r->host->log),
        .waits = r->disk_full || r->log_full,
        .leader = r->stopped == OMEN_OK,
    };
    if (r->raft != NULL) replica_raft_status(r, status_out);
    pthread_mutex_unlock(&r->mutex);
}
