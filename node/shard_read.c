/* Reads: made ready (token or barrier), run on a worker or at once, held until released.
 *
 *   submit --linearizable--> WAITING for replica_barrier --+
 *     |    --session, token ahead--> WAITING for apply ----+--> search pool --> run --> done --> release
 *     +----gets, plain counts, stats: at once on the caller's thread -----------^
 *   WAITING --deadline or retirement--> done(EDEADLINE)
 *
 * A waiting read is in shard->waiting under read_lock; whoever takes it out owns it. A barrier cannot be cancelled, so its
 * callback has a small struct of its own that forgets a read answered before. */
#include "common/err.h"

#include <string.h>

#include "common/check.h"
#include "node/shard_host_impl.h"
#include "storage/kernel/kernel.h"

#define READ_ARENA_FIRST_BYTES (64u << 10)
#define READ_ARENA_KEEP_BYTES (1u << 20)

/* One outstanding replica_barrier. `read` is NULL once the read was answered otherwise; guarded by read_lock. */
struct barrier_wait {
    struct shard_host *shard;
    struct shard_read *read;
};

/* ---- read states ---- */

static struct shard_read *read_new(struct shard_env *env)
{
    pthread_mutex_lock(&env->reads_lock);
    struct shard_read *read = env->reads;
    if (read != NULL) {
        env->reads = read->next;
        env->reads_kept--;
    }
    pthread_mutex_unlock(&env->reads_lock);
    if (read != NULL) {
        struct arena arena = read->arena;
        memset(read, 0, sizeof *read);
        read->arena = arena;
        return read;
    }
    read = mem_must_calloc(1, sizeof *read);
    arena_init(&read->arena, READ_ARENA_FIRST_BYTES, env->read_arena_bytes_max);
    return read;
}

static void read_free(struct shard_env *env, struct shard_read *read)
{
    bool keep = read->arena.reserved_bytes <= READ_ARENA_KEEP_BYTES;
    if (keep) {
        arena_reset(&read->arena);
        pthread_mutex_lock(&env->reads_lock);
        keep = env->reads_kept < READ_STATES_KEPT;
        if (keep) {
            read->next = env->reads;
            env->reads = read;
            env->reads_kept++;
        }
        pthread_mutex_unlock(&env->reads_lock);
    }
    if (keep) return;
    arena_fini(&read->arena);
    mem_free(read);
}

void shard_read_free_kept(struct shard_env *env)
{
    while (env->reads != NULL) {
        struct shard_read *read = env->reads;
        env->reads = read->next;
        arena_fini(&read->arena);
        mem_free(read);
    }
}

void shard_read_release(struct shard_read *read)
{
    if (read->view_held) store_view_release(&read->view);
    read_free(read->state.shard->env, read);
}

/* ---- running ---- */

static bool read_stop(void *arg)
{
    const struct shard_read *read = arg;
    const struct shard_host *shard = read->state.shard;
    return atomic_load_explicit(&shard->stopping, memory_order_relaxed) || shard_call_late(shard, read->call);
}

/* Queries under cosine are normalised here, like the vectors they meet. */
static enum omen_err search_params_copy(struct shard_read *read, struct search_params **params_out)
{
    const struct collection_schema *schema = &read->state.shard->schema;
    const struct shard_call *call = read->call;
    uint32_t count = call->in.search.count;
    struct search_params *params = arena_copy(&read->arena, call->in.search.searches, sizeof *params * count);
    if (params == NULL) return OMEN_ENOMEM;
    for (uint32_t i = 0; i < count; i++) {
        CHECK(params[i].field < schema->field_count);
        if (read->boost >= RECALL_BOOST_MAX) params[i].exact = true;
        const struct vector_field *field = &schema->fields[params[i].field];
        if (field->metric != METRIC_COSINE) continue;
        float *query = arena_alloc_aligned(&read->arena, 64, 4 * (size_t)field->dim);
        if (query == NULL) return OMEN_ENOMEM;
        memcpy(query, params[i].query, 4 * (size_t)field->dim);
        vector_normalise(query, field->dim);
        params[i].query = query;
    }
    *params_out = params;
    return OMEN_OK;
}

static enum omen_err run_search(struct shard_read *read, const struct read_limit *limit)
{
    struct shard_call *call = read->call;
    uint32_t count = call->in.search.count;
    struct search_params *params;
    struct search_stats stats = { 0 };
    enum omen_err rc = search_params_copy(read, &params);
    call->out.search.hits = arena_calloc(&read->arena, count + 1, sizeof *call->out.search.hits);
    call->out.search.counts = arena_calloc(&read->arena, count + 1, sizeof *call->out.search.counts);
    if (rc != OMEN_OK || call->out.search.hits == NULL || call->out.search.counts == NULL) {
        return err_set(&call->err, OMEN_ENOMEM, "", "the search needs too much memory");
    }
    shard_explain_begin(read);
    rc = shard_store_search(&read->view, params, count, limit, &read->arena, call->out.search.hits,
            call->out.search.counts, &stats, &call->err);
    call->out.search.rows_scanned = stats.rows_scanned;
    if (rc == OMEN_OK) shard_recall_keep(read, params);
    return rc;
}

static enum omen_err run_get(struct shard_read *read)
{
    struct shard_call *call = read->call;
    uint32_t count = call->in.get.count;
    struct get_request *requests = arena_alloc(&read->arena, sizeof *requests * ((size_t)count + 1));
    if (requests == NULL) return err_set(&call->err, OMEN_ENOMEM, "", "the request needs too much memory");
    for (uint32_t i = 0; i < count; i++) {
        const struct call_get *item = &call->in.get.items[i];
        requests[i] = (struct get_request){ item->id, item->key, item->any_key };
    }
    return shard_store_get(&read->view, requests, count, &call->in.get.selection, &read->arena,
            &call->out.points.points, &call->out.points.count, &call->err);
}

static void run_stats(struct shard_read *read)
{
    struct shard_store_stats s;
    struct replica_status replica;
    struct shard_index_stats index;
    shard_host_stats(read->state.shard, &s, &replica);
    struct shard_recall_stats recall;
    shard_host_index_stats(read->state.shard, &index);
    shard_host_recall_stats(read->state.shard, &recall);
    read->call->out.stats = (struct shard_stats){
        .points = s.points,
        .applied = s.applied,
        .durable = s.durable,
        .stream_bytes = s.stream_bytes,
        .meta_bytes = s.meta_bytes,
        .unindexed = index.tail_rows < s.points ? index.tail_rows : s.points,
        .applied_ops = s.applied_ops,
        .recall = recall.counts,
        .recall_boost = recall.boost,
    };
    if (read->call->in.stats.detail) read->call->out.stats.detail = shard_detail(read);
}

static enum omen_err read_run_kind(struct shard_read *read)
{
    struct shard_call *call = read->call;
    const struct read_limit limit = { read_stop, read };
    switch (call->kind) {
    case CALL_SEARCH: return run_search(read, &limit);
    case CALL_GET: return run_get(read);
    case CALL_SCROLL:
        return shard_store_scroll(&read->view, call->in.scroll.after, call->in.scroll.limit,
                call->in.scroll.filter, &call->in.scroll.selection, &limit, &read->arena,
                &call->out.points.points, &call->out.points.count, &call->out.points.more, &call->err);
    case CALL_COUNT:
        return shard_store_count(&read->view, call->in.count.filter, &limit, &call->out.count.points,
                &call->err);
    case CALL_STATS: run_stats(read); return OMEN_OK;
    case CALL_WRITE:
    case CALL_CATALOG:
    case CALL_CLUSTER: break;
    }
    return err_set(&call->err, OMEN_EINTERNAL, "", "no read");
}

static void read_run(struct shard_read *read)
{
    struct shard_host *shard = read->state.shard;
    struct shard_call *call = read->call;
    if (shard_call_late(shard, call)) {
        shard_call_fail(call, OMEN_EDEADLINE, "the deadline passed before the read was begun");
        return;
    }
    /* Never waits: views go when calls on other shards end too, and those may need this thread. */
    struct shard_store *store = shard_host_store_hold(shard);
    if (store == NULL) {
        shard_call_fail(call, OMEN_EUNAVAILABLE, "shard %llu has no data to read here now",
                (unsigned long long)shard->shard_id);
        return;
    }
    call->code = store_view_try_acquire(store, &read->view, &call->err);
    shard_host_store_unhold(shard);
    if (call->code != OMEN_OK) {
        if (shard->env->refused_busy != NULL) metric_add(shard->env->refused_busy, 1);
        call->done(call);
        return;
    }
    read->view_held = true;
    read->boost = atomic_load_explicit(&shard->recall.boost, memory_order_relaxed);
    read->view.recall_target = recall_meter_ask(atomic_load_explicit(&shard->recall_target,
                                                        memory_order_relaxed),
            read->boost, &read->view.effort);
    store_view_at(&read->view, call->now_ms != 0 ? call->now_ms : clock_wall_ms(shard->env->clock));
    call->sequence = read->view.sequence;
    uint64_t began_ns = clock_monotonic_ns(shard->env->clock);
    call->code = read_run_kind(read);
    uint64_t ended_ns = clock_monotonic_ns(shard->env->clock);
    call->engine_ns = ended_ns - began_ns;
    if (call->kind == CALL_SEARCH && call->in.search.explain && call->code == OMEN_OK)
        shard_explain_end(read, began_ns, ended_ns);
    if (call->kind == CALL_SEARCH && shard->env->engine_seconds != NULL) {
        metric_observe_ns(shard->env->engine_seconds, call->engine_ns);
    }
    if (call->code == OMEN_EDEADLINE && atomic_load(&shard->stopping)) {
        call->code = err_set(&call->err, OMEN_EUNAVAILABLE, "", "the shard is being closed");
    } else if (call->code != OMEN_OK && call->err.code != call->code) {
        err_set(&call->err, call->code, "",
                call->code == OMEN_EDEADLINE ? "the deadline passed while reading"
                                             : "shard %llu could not read",
                (unsigned long long)shard->shard_id);
    }
    call->done(call);
}

static void read_task(struct search_task *task)
{
    read_run((struct shard_read *)((char *)task - offsetof(struct shard_read, task)));
}

static void read_queue(struct shard_read *read)
{
    struct shard_env *env = read->state.shard->env;
    read->task.run = read_task;
    if (search_pool_submit(env->pool, &read->task)) return;
    if (env->refused_busy != NULL) metric_add(env->refused_busy, 1);
    read->call->err.retry_after_ms = 0;
    read->call->code = err_set(&read->call->err, OMEN_EBUSY, "", "too many searches are waiting");
    read->call->err.retry_after_ms = 20;
    read->call->done(read->call);
}

static bool read_is_short(const struct shard_call *call)
{
    return call->kind == CALL_STATS || (call->kind == CALL_COUNT && call->in.count.filter == NULL) ||
            (call->kind == CALL_GET && call->in.get.count <= READ_INLINE_POINTS_MAX);
}

/* ---- waiting ---- */

/* Needs read_lock. */
static bool waiting_add(struct shard_host *shard, struct shard_read *read)
{
    if (shard->waiting_count >= SHARD_READS_WAITING_MAX) return false;
    shard->waiting_count++;
    read->next = shard->waiting;
    read->link = &shard->waiting;
    if (read->next != NULL) read->next->link = &read->next;
    shard->waiting = read;
    if (read->wanted_sequence != 0) atomic_fetch_add(&shard->token_waits, 1);
    return true;
}

/* Needs read_lock. */
static void waiting_remove(struct shard_host *shard, struct shard_read *read)
{
    *read->link = read->next;
    if (read->next != NULL) read->next->link = read->link;
    shard->waiting_count--;
    if (read->wanted_sequence != 0) atomic_fetch_sub(&shard->token_waits, 1);
    if (read->barrier != NULL) read->barrier->read = NULL;
    read->barrier = NULL;
}

static void waiting_refused(struct shard_read *read)
{
    read->call->code = err_set(&read->call->err, OMEN_EBUSY, "", "too many reads are waiting for writes");
    read->call->err.retry_after_ms = 20;
    read->call->done(read->call);
}

static void wait_for_sequence(struct shard_host *shard, struct shard_read *read, uint64_t sequence)
{
    read->wanted_sequence = sequence;
    pthread_mutex_lock(&shard->read_lock);
    bool added = waiting_add(shard, read);
    /* Looked at again after token_waits rose: apply either saw it, or had published before. */
    bool ready = added && shard_host_applied(shard) >= sequence;
    if (ready) waiting_remove(shard, read);
    pthread_mutex_unlock(&shard->read_lock);
    if (!added) {
        waiting_refused(read);
    } else if (ready) {
        read_queue(read);
    }
}

void shard_read_applied(struct shard_host *shard, uint64_t sequence)
{
    if (atomic_load(&shard->token_waits) == 0) return;
    struct shard_read *ready = NULL;
    pthread_mutex_lock(&shard->read_lock);
    for (struct shard_read *read = shard->waiting, *next; read != NULL; read = next) {
        next = read->next;
        if (read->wanted_sequence == 0 || read->wanted_sequence > sequence) continue;
        waiting_remove(shard, read);
        read->next = ready;
        ready = read;
    }
    pthread_mutex_unlock(&shard->read_lock);
    while (ready != NULL) {
        struct shard_read *read = ready;
        ready = ready->next;
        read_queue(read);
    }
}

static void barrier_done(void *arg, enum omen_err result, uint64_t sequence, const struct err *err)
{
    struct barrier_wait *wait = arg;
    struct shard_host *shard = wait->shard;
    pthread_mutex_lock(&shard->read_lock);
    struct shard_read *read = wait->read;
    if (read != NULL) waiting_remove(shard, read);
    pthread_mutex_unlock(&shard->read_lock);
    mem_free(wait);
    if (read == NULL) return;
    if (result == OMEN_OK) {
        read_queue(read);
        return;
    }
    read->call->code = result;
    if (err != NULL) read->call->err = *err;
    if (result == OMEN_ENOTLEADER && shard->group != NULL)
        read->call->leader_hint = atomic_load(&shard->group->leader_node);
    if (read->call->err.code != result)
        err_set(&read->call->err, result, "", "no linearizable read: %s", err_name(result));
    read->call->done(read->call);
}

static void wait_for_barrier(struct shard_host *shard, struct shard_read *read)
{
    struct barrier_wait *wait = mem_must_calloc(1, sizeof *wait);
    wait->shard = shard;
    wait->read = read;
    read->barrier = wait;
    pthread_mutex_lock(&shard->read_lock);
    bool added = waiting_add(shard, read);
    pthread_mutex_unlock(&shard->read_lock);
    if (!added) {
        read->barrier = NULL;
        mem_free(wait);
        waiting_refused(read);
        return;
    }
    replica_barrier(shard->replica, barrier_done, wait);
}

/* With the reason, and in time for it to arrive: the client counts the same deadline. */
static bool read_held_by_full_disk(const struct shard_read *read, const struct replica_status *status)
{
    uint64_t deadline_ns = read->call->deadline_ns;
    return status->disk_full && deadline_ns != 0 &&
            clock_monotonic_ns(read->state.shard->env->clock) + SHARD_FULL_AHEAD_NS >= deadline_ns;
}

void shard_read_sweep(struct shard_host *shard)
{
    struct shard_read *late = NULL;
    struct replica_status status = { 0 };
    if (shard->replica != NULL) replica_status(shard->replica, &status);
    bool alone = shard_group_is_silent(
            shard); /* what a token waits for may never come here, but elsewhere (K3) */
    pthread_mutex_lock(&shard->read_lock);
    for (struct shard_read *read = shard->waiting, *next; read != NULL; read = next) {
        next = read->next;
        bool elsewhere = alone && read->wanted_sequence != 0;
        if (!read_stop(read) && !read_held_by_full_disk(read, &status) && !elsewhere) continue;
        waiting_remove(shard, read);
        read->next = late;
        late = read;
    }
    pthread_mutex_unlock(&shard->read_lock);
    while (late != NULL) {
        struct shard_read *read = late;
        late = late->next;
        if (status.disk_full) {
            shard_call_fail(read->call, OMEN_EFULL,
                    "the disk is full: shard %llu has applied up to sequence %llu, "
                    "later writes wait for room",
                    (unsigned long long)shard->shard_id, (unsigned long long)status.applied);
        } else if (alone && read->wanted_sequence != 0 && !read_stop(read)) {
            shard_call_fail(read->call, OMEN_EUNAVAILABLE,
                    "this replica of shard %llu has not reached sequence %llu, and has heard from no leader for too "
                    "long",
                    (unsigned long long)shard->shard_id, (unsigned long long)read->wanted_sequence);
        } else if (read->wanted_sequence != 0) {
            shard_call_fail(read->call, OMEN_EDEADLINE,
                    "shard %llu has not reached sequence %llu of the session's token",
                    (unsigned long long)shard->shard_id, (unsigned long long)read->wanted_sequence);
        } else {
            shard_call_fail(read->call, OMEN_EDEADLINE,
                    "the deadline passed while waiting for earlier writes");
        }
    }
}

void shard_read_submit(struct shard_host *shard, struct shard_call *call)
{
    struct shard_read *read = read_new(shard->env);
    read->call = call;
    read->state.is_read = true;
    if (!shard_call_begin(shard, call, &read->state)) {
        read_free(shard->env, read);
        call->done(call);
        return;
    }
    memset(&call->out, 0, sizeof call->out);
    if (call->kind == CALL_SEARCH && call->in.search.explain)
        read->submitted_ns = clock_monotonic_ns(shard->env->clock);
    bool stats = call->kind == CALL_STATS;
    if (!stats && shard->group != NULL && !shard_group_may_read(shard, call)) {
        call->done(call);
        return;
    }
    if (!stats && call->consistency == CONSISTENCY_LINEARIZABLE) {
        wait_for_barrier(shard, read);
    } else if (!stats && call->consistency == CONSISTENCY_SESSION &&
            call->token_sequence > shard_host_applied(shard)) {
        wait_for_sequence(shard, read, call->token_sequence);
    } else if (read_is_short(call)) {
        read_run(read);
    } else {
        read_queue(read);
    }
}
