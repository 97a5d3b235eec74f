/* Apply workers: each takes replicas in turn and hands their committed entries, in order, to the state
 * machine.
 *
 * A replica is in the hands of at most one worker (`scheduled`), so its machine needs no lock against itself.
 * One that meets a full disk is parked and tried again every APPLY_RETRY_MS (D2); the worker's other groups
 * go on. Threads: see replica_impl.h. Determinism: the order of apply is the order of the log; nothing else
 * reaches the machine. */
#include "common/err.h"

#include <time.h>

#include "common/check.h"
#include "common/log.h"
#include "common/mem.h"
#include "consensus/replica_impl.h"

/* ---- queues ---- */

static void worker_push(struct worker *w, struct replica *r)
{
    pthread_mutex_lock(&w->mutex);
    r->run_next = NULL;
    *w->run_tail = r;
    w->run_tail = &r->run_next;
    pthread_cond_signal(&w->wake);
    pthread_mutex_unlock(&w->mutex);
}

static void worker_park(struct worker *w, struct replica *r)
{
    pthread_mutex_lock(&w->mutex);
    r->run_next = w->parked;
    w->parked = r;
    pthread_mutex_unlock(&w->mutex);
}

void worker_kick(struct worker *w)
{
    pthread_mutex_lock(&w->mutex);
    w->kick = true;
    pthread_cond_signal(&w->wake);
    pthread_mutex_unlock(&w->mutex);
}

void replica_enqueue(struct replica *r, struct work *work)
{
    work->next = NULL;
    *r->queue_tail = work;
    r->queue_tail = &work->next;
    if (r->scheduled) return;
    r->scheduled = true;
    worker_push(r->worker, r);
}

static struct work *queue_pop(struct replica *r)
{
    struct work *work = r->queue_head;
    if (work == NULL) return NULL;
    r->queue_head = work->next;
    if (r->queue_head == NULL) r->queue_tail = &r->queue_head;
    return work;
}

static void queue_push_front(struct replica *r, struct work *work)
{
    work->next = r->queue_head;
    if (r->queue_head == NULL) r->queue_tail = &work->next;
    r->queue_head = work;
}

/* ---- one piece of work ---- */

void replica_stop(struct replica *r, enum omen_err rc, const struct err *err)
{
    pthread_mutex_lock(&r->mutex);
    bool first = r->stopped == OMEN_OK;
    if (first) {
        r->stopped = rc;
        r->disk_full = false;
        r->stop_err = *err;
        r->stop_err.code = rc;
        if (err->message[0] == '\0')
            (void)err_set(&r->stop_err, rc, NULL, "replica stopped: %s", err_name(rc));
    }
    pthread_mutex_unlock(&r->mutex);
    if (first) {
        LOG_ERROR("replica.stop", "group=%llu replica=%llu error=%s reason=\"%s\"",
                (unsigned long long)r->group, (unsigned long long)r->replica_id, err_name(rc), err->message);
    }
}

/* The limits are given back before `done`, so that it may propose again. */
static void work_finish(struct replica *r, struct work *work, enum omen_err rc, const struct err *err)
{
    if (work->owner != NULL) {
        pthread_mutex_lock(&r->mutex);
        r->backlog_bytes -= work->len;
        pthread_mutex_unlock(&r->mutex);
        shared_release(work->owner);
    }
    if (work->kind == WORK_PROPOSAL) {
        struct host_metrics *m = &r->host->metrics;
        replica_inflight_end(r, work->len);
        if (m->commit != NULL && rc == OMEN_OK)
            metric_observe_ns(m->commit, clock_monotonic_ns(r->host->options.clock) - work->began_ns);
        if (work->owner == NULL) mem_free(work->entry);
    }
    if (work->done != NULL) work->done(work->done_arg, rc, replica_sequence(r, work->index), err);
    mem_free(work);
}

static void barrier_finish(struct replica *r, struct work *work)
{
    pthread_mutex_lock(&r->mutex);
    r->barriers--;
    enum omen_err rc = r->stopped;
    struct err err = r->stop_err;
    work->index = r->applied;
    pthread_mutex_unlock(&r->mutex);
    work_finish(r, work, rc, rc == OMEN_OK ? NULL : &err);
}

static void entry_abandon(struct replica *r, struct work *work, const char *why)
{
    struct err err = { 0 };
    (void)err_set(&err, OMEN_EUNKNOWN, NULL, "%s while the write was in flight; it may be applied later",
            why);
    work_finish(r, work, OMEN_EUNKNOWN, &err);
}

static enum omen_err entry_apply(struct replica *r, struct work *work, struct err *err)
{
    struct host_metrics *m = &r->host->metrics;
    uint64_t began = m->apply != NULL ? clock_monotonic_ns(r->host->options.clock) : 0;
    enum omen_err rc = r->fsm.apply(r->fsm.self, replica_sequence(r, work->index), work->entry, work->len,
            work->proposal_arg, err);
    if (m->apply != NULL) metric_observe_ns(m->apply, clock_monotonic_ns(r->host->options.clock) - began);
    if (m->applied != NULL && rc == OMEN_OK) metric_add(m->applied, 1);
    return rc;
}

/* The machine got as far by the log as the base that was fetched meanwhile. The log begins after that base now, so what
 * is applied must be durable before the base may go. */
static enum omen_err base_pass_over(struct replica *r, struct err *err)
{
    enum omen_err rc = replica_checkpoint(r, err);
    if (rc == OMEN_OK && r->bases.pass_over != NULL) r->bases.pass_over(r->fsm.self);
    return rc == OMEN_EBUSY || rc == OMEN_ENOMEM ? OMEN_EFULL : rc; /* tried again as well */
}

/* Entries up to `index` are in a base fetched from another replica: the machine goes over to it. What it then
 * holds may reach further; those entries come again and are passed over. True: the disk is full,
 * it is to be tried again. */
static bool base_switch(struct replica *r, uint64_t index)
{
    struct err err = { 0 };
    uint64_t sequence = replica_sequence(r, index);
    enum omen_err rc = OMEN_OK;
    if (r->fsm.applied(r->fsm.self) < sequence) {
        if (r->bases.switch_base == NULL) rc = err_set(&err, OMEN_ECORRUPT, NULL, "no base to go over to");
        if (rc == OMEN_OK) rc = r->bases.switch_base(r->fsm.self, sequence, &err);
        if (rc == OMEN_OK && r->fsm.applied(r->fsm.self) < sequence)
            rc = err_set(&err, OMEN_ECORRUPT, NULL, "the base ends before its sequence");
    } else {
        rc = base_pass_over(r, &err);
    }
    pthread_mutex_lock(&r->mutex);
    if (rc == OMEN_OK) r->applied = replica_index(r, r->fsm.applied(r->fsm.self));
    bool wait = rc == OMEN_EFULL && !r->closing;
    pthread_mutex_unlock(&r->mutex);
    if (rc != OMEN_OK && !wait) replica_stop(r, rc, &err);
    return wait;
}

/* False as entry_run. A replica that is being closed goes over at its next open. */
static bool switch_run(struct replica *r, struct work *work, bool stopped)
{
    bool wait = !stopped && base_switch(r, work->index);
    pthread_mutex_lock(&r->mutex);
    if (wait) {
        queue_push_front(r, work);
    } else {
        r->switches--;
    }
    r->disk_full = wait;
    pthread_mutex_unlock(&r->mutex);
    if (!wait) mem_free(work);
    return !wait;
}

/* False: the disk is full, the entry is back at the head of the queue and the replica is to be parked. */
static bool entry_run(struct replica *r, struct work *work)
{
    struct err err = { 0 };
    if (r->raft != NULL &&
            work->index <= r->applied) { /* in the base we went over to; `applied` is this thread's */
        work_finish(r, work, OMEN_OK, NULL);
        return true;
    }
    enum omen_err rc = entry_apply(r, work, &err);
    pthread_mutex_lock(&r->mutex);
    if (rc == OMEN_OK) {
        CHECK(work->index == r->applied + 1);
        r->applied = work->index;
        r->disk_full = false;
    }
    bool closing = r->closing;
    bool wait = rc == OMEN_EFULL && !closing;
    bool first = wait && !r->disk_full;
    if (wait) {
        r->disk_full = true;
        queue_push_front(r, work);
        pthread_cond_broadcast(&r->idle); /* whoever opens it goes on */
    }
    pthread_mutex_unlock(&r->mutex);
    if (first) {
        LOG_WARN("replica.disk_full", "group=%llu sequence=%llu reason=\"%s\"", (unsigned long long)r->group,
                (unsigned long long)replica_sequence(r, work->index), err.message);
    }
    if (wait) return false;
    if (rc == OMEN_OK) {
        work_finish(r, work, OMEN_OK, NULL);
        return true;
    }
    replica_stop(r, rc, &err);
    entry_abandon(r, work, rc == OMEN_EFULL ? "closed on a full disk" : "replica stopped");
    return true;
}

static void replica_run(struct worker *w, struct replica *r)
{
    for (uint32_t n = 0; n < APPLY_RUN_MAX; n++) {
        pthread_mutex_lock(&r->mutex);
        struct work *work = queue_pop(r);
        bool stopped = r->stopped != OMEN_OK;
        if (work == NULL) {
            r->scheduled = false;
            pthread_cond_broadcast(&r->idle);
            pthread_mutex_unlock(&r->mutex);
            return; /* the replica may be gone from here on */
        }
        pthread_mutex_unlock(&r->mutex);
        if (work->kind == WORK_BARRIER) {
            barrier_finish(r, work);
        } else if (work->kind == WORK_SWITCH) {
            if (!switch_run(r, work, stopped)) {
                worker_park(w, r);
                return;
            }
        } else if (stopped) {
            entry_abandon(r, work, "replica stopped");
        } else if (!entry_run(r, work)) {
            worker_park(w, r);
            return;
        }
    }
    worker_push(w, r);
}

/* ---- threads ---- */

static void timed_wait(struct worker *w, uint32_t ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += (long)ms * 1000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    if (pthread_cond_timedwait(&w->wake, &w->mutex, &until) != 0) w->kick = true;
}

static void parked_resume(struct worker *w)
{
    w->kick = false;
    while (w->parked != NULL) {
        struct replica *r = w->parked;
        w->parked = r->run_next;
        r->run_next = NULL;
        *w->run_tail = r;
        w->run_tail = &r->run_next;
    }
}

bool worker_turn(struct worker *w)
{
    pthread_mutex_lock(&w->mutex);
    if (w->kick) parked_resume(w);
    struct replica *r = w->run_head;
    if (r != NULL) w->run_head = r->run_next;
    if (w->run_head == NULL) w->run_tail = &w->run_head;
    pthread_mutex_unlock(&w->mutex);
    if (r != NULL) replica_run(w, r);
    return r != NULL;
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    pthread_mutex_lock(&w->mutex);
    for (;;) {
        if (w->kick || w->run_head != NULL) {
            pthread_mutex_unlock(&w->mutex);
            while (worker_turn(w)) continue;
            pthread_mutex_lock(&w->mutex);
        } else if (w->stopping) {
            break;
        } else if (w->parked != NULL) {
            timed_wait(w, APPLY_RETRY_MS);
        } else {
            pthread_cond_wait(&w->wake, &w->mutex);
        }
    }
    CHECK(w->parked == NULL); /* every replica was closed before */
    pthread_mutex_unlock(&w->mutex);
    return NULL;
}

enum omen_err workers_start(struct replica_host *host, struct err *err)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    host->worker_count = host->options.apply_workers;
    host->workers = mem_must_calloc(host->worker_count, sizeof *host->workers);
    enum omen_err rc = OMEN_OK;
    for (uint32_t i = 0; i < host->worker_count; i++) {
        struct worker *w = &host->workers[i];
        w->host = host;
        w->run_tail = &w->run_head;
        pthread_mutex_init(&w->mutex, NULL);
        pthread_cond_init(&w->wake, &attr);
        if (rc == OMEN_OK && pthread_create(&w->thread, NULL, worker_main, w) != 0)
            rc = err_set(err, OMEN_ENOMEM, NULL, "cannot start apply worker %u", i);
        else if (rc == OMEN_OK)
            w->started = true;
    }
    pthread_condattr_destroy(&attr);
    return rc;
}

void workers_stop(struct replica_host *host)
{
    for (uint32_t i = 0; i < host->worker_count; i++) {
        struct worker *w = &host->workers[i];
        pthread_mutex_lock(&w->mutex);
        w->stopping = true;
        pthread_cond_broadcast(&w->wake);
        pthread_mutex_unlock(&w->mutex);
        if (w->started) pthread_join(w->thread, NULL);
        pthread_cond_destroy(&w->wake);
        pthread_mutex_destroy(&w->mutex);
    }
    mem_free(host->workers);
}
