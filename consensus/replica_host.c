/* The host of all replicas of a node: the log, the workers, what the log held at start, and the checkpoint
 * thread.
 *
 * A checkpoint is due for a replica when checkpoint_log_bytes have gone through it, when
 * checkpoint_interval_ns has passed and something was applied, or when the log is over its limit and the
 * replica is the one that holds its oldest segment (an idle shard must not pin the log, C1). Time comes from
 * options.clock and decides only when, never what. See replica_impl.h for locks and threads. */
#include "common/err.h"

#include <string.h>
#include <time.h>

#include "common/check.h"
#include "common/log.h"
#include "common/mem.h"
#include "consensus/replica_impl.h"

void replica_host_options_default(struct replica_host_options *options)
{
    *options = (struct replica_host_options){
        .clock = clock_system(),
        .apply_workers = 1,
        .checkpoint_log_bytes = 64ull << 20,
        .checkpoint_interval_ns = 30ull * 1000000000,
        .group_inflight_bytes_max = 64ull << 20,
        .host_inflight_bytes_max = 256ull << 20,
        .apply_backlog_bytes_max = 128ull << 20,
        .cluster = { .loops = 1, .election_ms = 800, .heartbeat_ms = 100, .trailing_bytes = 16ull << 20 },
    };
    node_log_options_default(&options->log);
}

/* ---- appends that wait ---- */

struct waiter {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    bool over;
    enum omen_err result;
};

static void waiter_done(struct node_log_append *append, enum omen_err result)
{
    struct waiter *w = append->arg;
    pthread_mutex_lock(&w->mutex);
    w->over = true;
    w->result = result;
    pthread_cond_signal(&w->cond);
    pthread_mutex_unlock(&w->mutex);
}

enum omen_err log_append_wait(struct node_log *log, const struct node_log_record *records, uint32_t count,
        enum node_log_claim claim)
{
    struct waiter w = { .mutex = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER };
    struct node_log_append append = { .records = records,
        .count = count,
        .claim = claim,
        .done = waiter_done,
        .arg = &w };
    node_log_append(log, &append);
    pthread_mutex_lock(&w.mutex);
    while (!w.over) pthread_cond_wait(&w.cond, &w.mutex);
    pthread_mutex_unlock(&w.mutex);
    pthread_cond_destroy(&w.cond);
    pthread_mutex_destroy(&w.mutex);
    return w.result;
}

/* ---- replicas and what the log holds for them ---- */

static bool group_is_open(const struct replica_host *host, uint64_t group)
{
    for (const struct replica *r = host->replicas; r != NULL; r = r->next) {
        if (r->group == group) return true;
    }
    return false;
}

static bool group_was_closed(const struct replica_host *host, uint64_t group)
{
    for (uint32_t i = 0; i < host->closed_count; i++) {
        if (host->closed_groups[i] == group) return true;
    }
    return false;
}

/* Opened before in this life: what was pending then is gone, the log has it. */
static enum omen_err pending_read_back(struct replica_host *host, uint64_t group, uint64_t replica_id,
        struct pending **pending_out, struct err *err)
{
    struct pending_set set = { 0 };
    enum omen_err rc = node_log_read_group(host->log, group, pending_replay, &set, err);
    if (rc == OMEN_OK) *pending_out = pending_take(&set, group, replica_id);
    pending_set_fini(&set);
    return rc;
}

enum omen_err host_pending_take(struct replica_host *host, uint64_t group, uint64_t replica_id,
        struct pending **pending_out, struct err *err)
{
    pthread_mutex_lock(&host->mutex);
    bool open = group_is_open(host, group);
    bool again = group_was_closed(host, group);
    *pending_out = open ? NULL : pending_take(&host->pending, group, replica_id);
    pthread_mutex_unlock(&host->mutex);
    if (open)
        return err_set(err, OMEN_EEXISTS, NULL, "group %llu is open already", (unsigned long long)group);
    enum omen_err rc = OMEN_OK;
    if (*pending_out == NULL && again) rc = pending_read_back(host, group, replica_id, pending_out, err);
    if (rc == OMEN_OK && *pending_out == NULL) {
        *pending_out = mem_must_calloc(1, sizeof **pending_out);
        (*pending_out)->group = group;
        (*pending_out)->replica_id = replica_id;
    }
    return rc;
}

void host_pending_return(struct replica_host *host, struct pending *pending)
{
    pthread_mutex_lock(&host->mutex);
    if (pending->term == 0 && pending->count == 0 && pending->base_index == 0)
        pending_free(pending); /* the log knows nothing of it */
    else
        pending_put(&host->pending, pending);
    pthread_mutex_unlock(&host->mutex);
}

void host_replica_add(struct replica_host *host, struct replica *r)
{
    pthread_mutex_lock(&host->mutex);
    r->next = host->replicas;
    host->replicas = r;
    pthread_mutex_unlock(&host->mutex);
}

/* What the log holds of the group was given out: it is read again for whoever opens it next. */
static void closed_note(struct replica_host *host, uint64_t group)
{
    if (group_was_closed(host, group)) return;
    if (host->closed_count == host->closed_cap) {
        host->closed_cap = host->closed_cap == 0 ? 16 : host->closed_cap * 2;
        host->closed_groups = mem_must_realloc(host->closed_groups,
                host->closed_cap * sizeof *host->closed_groups);
    }
    host->closed_groups[host->closed_count++] = group;
}

void host_replica_remove(struct replica_host *host, struct replica *r)
{
    pthread_mutex_lock(&host->mutex);
    struct replica **link = &host->replicas;
    while (*link != r) link = &(*link)->next;
    *link = r->next;
    while (r->users > 0) pthread_cond_wait(&host->changed, &host->mutex);
    closed_note(host, r->group);
    pthread_mutex_unlock(&host->mutex);
}

void host_replica_closed(struct replica_host *host, uint64_t group)
{
    pthread_mutex_lock(&host->mutex);
    closed_note(host, group);
    pthread_mutex_unlock(&host->mutex);
}

/* On a full disk the record is not written: the group then appears at the next start and is forgotten
 * there. */
void host_group_drop(struct replica_host *host, uint64_t group, uint64_t replica_id)
{
    struct node_log_record record = { .group = group, .replica = replica_id, .kind = NODE_LOG_DROP_GROUP };
    enum omen_err rc = log_append_wait(host->log, &record, 1, NODE_LOG_LAST); /* lets go of segments */
    if (rc != OMEN_OK) {
        LOG_WARN("replica.drop", "group=%llu error=%s", (unsigned long long)group, err_name(rc));
        node_log_release(host->log, group, replica_id, UINT64_MAX);
    }
}

void replica_host_forget(struct replica_host *host, uint64_t group)
{
    for (;;) {
        pthread_mutex_lock(&host->mutex);
        struct pending *pending = pending_take_group(&host->pending, group);
        pthread_mutex_unlock(&host->mutex);
        if (pending == NULL) return;
        host_group_drop(host, group, pending->replica_id);
        pending_free(pending);
    }
}

void replica_host_forget_replica(struct replica_host *host, uint64_t group, uint64_t replica_id)
{
    pthread_mutex_lock(&host->mutex);
    struct pending *pending = pending_take(&host->pending, group, replica_id);
    pthread_mutex_unlock(&host->mutex);
    pending_free(pending);
    host_group_drop(host, group, replica_id);
}

/* ---- checkpoints ---- */

enum omen_err replica_checkpoint(struct replica *r, struct err *err)
{
    struct err local = { 0 };
    pthread_mutex_lock(&r->checkpoint_mutex);
    pthread_mutex_lock(&r->mutex);
    enum omen_err rc = r->stopped;
    if (rc != OMEN_OK) local = r->stop_err;
    uint64_t applied = r->applied;
    uint64_t bytes = r->bytes_since_checkpoint;
    r->checkpoint_ns = clock_monotonic_ns(r->host->options.clock);
    pthread_mutex_unlock(&r->mutex);
    if (rc == OMEN_OK) {
        rc = r->fsm.checkpoint(r->fsm.self, &local);
        struct host_metrics *m = &r->host->metrics;
        struct metric_counter *counter = rc == OMEN_OK ? m->checkpoints : m->checkpoint_failures;
        if (counter != NULL) metric_add(counter, 1);
        if (rc == OMEN_OK) {
            replica_release_log(r);
            pthread_mutex_lock(&r->mutex);
            r->checkpoint_applied = applied;
            r->bytes_since_checkpoint -= bytes;
            r->checkpoints++;
            pthread_mutex_unlock(&r->mutex);
        } else if (rc != OMEN_EFULL && rc != OMEN_EBUSY && rc != OMEN_ENOMEM) {
            replica_stop(r, rc, &local); /* what is durable is not known any more (C2) */
        }
    }
    pthread_mutex_unlock(&r->checkpoint_mutex);
    if (rc != OMEN_OK && err != NULL) *err = local;
    return rc;
}

static bool checkpoint_due(struct replica *r, uint64_t now, uint64_t oldest_group)
{
    const struct replica_host_options *o = &r->host->options;
    pthread_mutex_lock(&r->mutex);
    bool fresh = r->applied > r->checkpoint_applied;
    bool due = fresh && r->bytes_since_checkpoint >= o->checkpoint_log_bytes;
    due = due || (fresh && now - r->checkpoint_ns >= o->checkpoint_interval_ns);
    /* A machine may keep the log of the checkpoint before its last one; when nothing new comes, only another
     * checkpoint lets go of it. */
    bool pinning = r->fsm.log_needed_from(r->fsm.self) < replica_sequence(r, r->applied);
    due = due || (r->group == oldest_group && (fresh || pinning));
    due = due && r->stopped == OMEN_OK && !r->closing;
    /* A failed attempt (full disk) is not repeated at every turn. */
    due = due && (r->checkpoint_ns == 0 || now - r->checkpoint_ns >= (uint64_t)CHECKPOINT_POLL_MS * 1000000);
    pthread_mutex_unlock(&r->mutex);
    return due;
}

/* One replica that is due, held against being freed; NULL when none is. */
static struct replica *checkpoint_pick(struct replica_host *host, uint64_t oldest_group)
{
    uint64_t now = clock_monotonic_ns(host->options.clock);
    pthread_mutex_lock(&host->mutex);
    struct replica *r = host->replicas;
    while (r != NULL && !checkpoint_due(r, now, oldest_group)) r = r->next;
    if (r != NULL) r->users++;
    pthread_mutex_unlock(&host->mutex);
    return r;
}

static void checkpoint_turn(struct replica_host *host)
{
    struct node_log_stats stats;
    node_log_stats(host->log, &stats);
    if (host->metrics.log_bytes != NULL) metric_set(host->metrics.log_bytes, (int64_t)stats.bytes);
    bool log_short = atomic_exchange(&host->log_short, false) || node_log_is_short(host->log);
    for (;;) {
        struct replica *r = checkpoint_pick(host, stats.over_limit || log_short ? stats.oldest_group : 0);
        if (r == NULL) return;
        struct err err = { 0 };
        if (replica_checkpoint(r, &err) == OMEN_OK)
            (void)log_repeat_ends(&r->checkpoint_fails);
        else if (log_repeat_tells(&r->checkpoint_fails))
            LOG_WARN("replica.checkpoint", "group=%llu times=%u reason=\"%s\"", (unsigned long long)r->group,
                    r->checkpoint_fails.times, err.message);
        pthread_mutex_lock(&host->mutex);
        r->users--;
        bool stopping = host->stopping;
        pthread_cond_broadcast(&host->changed);
        pthread_mutex_unlock(&host->mutex);
        if (stopping) return;
        node_log_stats(host->log, &stats);
    }
}

void checkpoint_wake(struct replica_host *host)
{
    /* Without the host's mutex (the caller holds a replica's): a lost wake-up costs one poll interval. */
    pthread_cond_broadcast(&host->changed);
}

static void *checkpoint_main(void *arg)
{
    struct replica_host *host = arg;
    pthread_mutex_lock(&host->mutex);
    while (!host->stopping) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += (long)CHECKPOINT_POLL_MS * 1000000;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        (void)pthread_cond_timedwait(&host->changed, &host->mutex, &until);
        pthread_mutex_unlock(&host->mutex);
        checkpoint_turn(host);
        pthread_mutex_lock(&host->mutex);
    }
    pthread_mutex_unlock(&host->mutex);
    return NULL;
}

/* ---- open and close ---- */

static void metrics_open(struct replica_host *host)
{
    struct metrics *m = host->options.metrics;
    if (m == NULL) return;
    host->metrics = (struct host_metrics){
        .proposals = metrics_counter(m, "omendb_consensus_proposals_total", "Entries proposed", NULL),
        .refused = metrics_counter(m, "omendb_consensus_refused_total", "Entries refused at admission", NULL),
        .applied = metrics_counter(m, "omendb_consensus_applied_total", "Entries applied", NULL),
        .checkpoints = metrics_counter(m, "omendb_consensus_checkpoints_total", "Durable checkpoints", NULL),
        .checkpoint_failures = metrics_counter(m, "omendb_consensus_checkpoint_failures_total",
                "Checkpoints that failed", NULL),
        .commit = metrics_histogram(m, "omendb_consensus_commit_seconds", "Propose to applied", NULL),
        .apply = metrics_histogram(m, "omendb_consensus_apply_seconds", "One entry's apply", NULL),
        .inflight_bytes = metrics_gauge(m, "omendb_consensus_inflight_bytes", "Proposed and not yet applied",
                NULL),
        .log_bytes = metrics_gauge(m, "omendb_consensus_log_bytes", "Node log segments still needed", NULL),
    };
}

static OMEN_CHECKED enum omen_err host_start(struct replica_host *host, struct err *err)
{
    enum omen_err rc = node_log_open(&host->options.log, pending_replay, &host->pending, &host->log, err);
    if (rc == OMEN_OK) rc = workers_start(host, err);
    if (rc == OMEN_OK && host->options.cluster.cluster_id != 0) rc = raft_net_open(host, err);
    if (rc != OMEN_OK) return rc;
    if (pthread_create(&host->checkpoint_thread, NULL, checkpoint_main, host) != 0)
        return err_set(err, OMEN_ENOMEM, NULL, "cannot start the checkpoint thread");
    host->checkpoint_started = true;
    return OMEN_OK;
}

enum omen_err replica_host_open(const struct replica_host_options *options, struct replica_host **host_out,
        struct err *err)
{
    *host_out = NULL;
    if (options->apply_workers == 0 || options->apply_workers > APPLY_WORKERS_MAX)
        return err_set(err, OMEN_EINVAL, "apply_workers", "must be between 1 and %u", APPLY_WORKERS_MAX);
    struct replica_host *host = mem_must_calloc(1, sizeof *host);
    host->options = *options;
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&host->mutex, NULL);
    pthread_cond_init(&host->changed, &attr);
    pthread_condattr_destroy(&attr);
    metrics_open(host);
    enum omen_err rc = host_start(host, err);
    if (rc != OMEN_OK) {
        replica_host_close(host);
        return rc;
    }
    *host_out = host;
    return OMEN_OK;
}

void replica_host_close(struct replica_host *host)
{
    if (host == NULL) return;
    pthread_mutex_lock(&host->mutex);
    CHECK(host->replicas == NULL);
    host->stopping = true;
    pthread_cond_broadcast(&host->changed);
    pthread_mutex_unlock(&host->mutex);
    if (host->checkpoint_started) pthread_join(host->checkpoint_thread, NULL);
    raft_net_close(host);
    node_log_close(host->log);
    workers_stop(host);
    pending_set_fini(&host->pending);
    mem_free(host->closed_groups);
    pthread_cond_destroy(&host->changed);
    pthread_mutex_destroy(&host->mutex);
    mem_free(host);
}

void replica_host_log_stats(struct replica_host *host, struct node_log_stats *stats_out)
{
    node_log_stats(host->log, stats_out);
}
