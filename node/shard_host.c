/* A shard's life, its state machine as consensus sees it, and the counting of calls in flight.
 * Writes are in shard_write.c, reads in shard_read.c. */
#include "common/err.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/check.h"
#include "common/log.h"
#include "node/shard_host_impl.h"

#define ELECTION_MS 800                    /* as replica_host_options_default has it */
#define IMMEDIATE_ROWS_MIN 1000u           /* fewer are scanned as fast as they are walked */
#define INDEX_CHECKPOINT_NS 1000000000ull  /* between two checkpoints for the index's sake */
#define WORTHY_CHECKPOINT_NS 3000000000ull /* after any, before one for a tail that nobody waits for */
#define BULK_MS_MAX 600000u                /* that a bulk load may announce at once */
#define RETIRE_POLL_MS 50 /* how often deadlines are looked at while a retired shard waits for its calls */

void shard_env_init(struct shard_env *env)
{
    pthread_mutex_init(&env->disk_lock, NULL);
    pthread_mutex_init(&env->reads_lock, NULL);
    if (env->election_ms == 0) env->election_ms = ELECTION_MS;
    if (env->behind_bytes == 0) env->behind_bytes = SHARD_BEHIND_BYTES;
    if (env->grace_ms == 0) env->grace_ms = SHARD_GRACE_MS;
}

void shard_env_fini(struct shard_env *env)
{
    shard_read_free_kept(env);
    pthread_mutex_destroy(&env->reads_lock);
    pthread_mutex_destroy(&env->disk_lock);
}

/* ---- calls ---- */

void shard_call_fail(struct shard_call *call, enum omen_err code, const char *fmt, ...)
{
    char text[ERR_MESSAGE_BYTES];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    call->code = err_set(&call->err, code, "", "%s", text);
    call->done(call);
}

bool shard_call_late(const struct shard_host *shard, const struct shard_call *call)
{
    return call->deadline_ns != 0 && clock_monotonic_ns(shard->env->clock) >= call->deadline_ns;
}

bool shard_call_begin(struct shard_host *shard, struct shard_call *call, struct call_state *state)
{
    pthread_mutex_lock(&shard->call_lock);
    enum omen_err refuse = shard->refuse;
    if (refuse == OMEN_OK) shard->calls++;
    pthread_mutex_unlock(&shard->call_lock);
    if (refuse == OMEN_OK) {
        state->shard = shard;
        call->service_data = state;
        return true;
    }
    call->code = refuse;
    err_set(&call->err, refuse, refuse == OMEN_ENOTFOUND ? "collection" : "",
            refuse == OMEN_ENOTFOUND ? "the collection was dropped" : "the node is stopping");
    return false;
}

void shard_call_end(struct shard_host *shard)
{
    pthread_mutex_lock(&shard->call_lock);
    CHECK(shard->calls > 0);
    if (--shard->calls == 0) pthread_cond_broadcast(&shard->calls_idle);
    pthread_mutex_unlock(&shard->call_lock);
}

void shard_host_hold(struct shard_host *shard)
{
    pthread_mutex_lock(&shard->call_lock);
    shard->calls++;
    pthread_mutex_unlock(&shard->call_lock);
}

void shard_host_unhold(struct shard_host *shard) { shard_call_end(shard); }

void shard_host_submit(struct shard_host *shard, struct shard_call *call)
{
    call->code = OMEN_OK;
    err_clear(&call->err);
    if (call->kind == CALL_WRITE) {
        shard_write_submit(shard, call);
    } else {
        shard_read_submit(shard, call);
    }
}

void shard_host_release(struct shard_call *call)
{
    struct call_state *state = call->service_data;
    if (state == NULL) return; /* refused before it was taken */
    call->service_data = NULL;
    struct shard_host *shard = state->shard;
    if (state->is_read) {
        shard_read_release((struct shard_read *)state);
    } else {
        shard_write_release((struct shard_write *)state);
    }
    shard_call_end(shard);
}

bool shard_host_make_room(struct shard_host *shard) { return shard_write_make_room(shard); }

bool shard_host_scrub(struct shard_host *shard, uint64_t bytes, struct scrub_result *result_out)
{
    struct err err;
    struct shard_store_stats stats = { 0 };
    enum omen_err rc = OMEN_OK;
    *result_out = (struct scrub_result){ 0 };
    struct shard_store *store = shard_host_store_hold(shard);
    if (store == NULL) return true;
    shard_store_stats(store, &stats);
    bool known = stats.damaged;
    if (!known) {
        rc = shard_store_scrub(store, bytes, result_out, &err);
        shard_store_stats(store, &stats);
    }
    shard_host_store_unhold(shard);
    if (known) return true;
    if (rc == OMEN_OK) return result_out->wrapped;
    if (stats.damaged && shard->group != NULL) shard_group_damaged(shard, &err, true);
    LOG_ERROR(stats.damaged ? "shard.damaged" : "shard.scrub",
            "shard=%llu collection=%s error=%s message=\"%s\"", (unsigned long long)shard->shard_id,
            shard->collection_name, err_name(rc), err.message);
    return true;
}

struct index_stop {
    struct shard_host *shard;
    _Atomic bool *stop;
};

static bool index_stopped(void *arg)
{
    const struct index_stop *s = arg;
    return atomic_load(s->stop) || atomic_load(&s->shard->stopping) || atomic_load(&s->shard->store) == NULL;
}

static void index_told(void *arg, const char *phase, uint64_t done, uint64_t total)
{
    struct shard_host *shard = ((struct index_stop *)arg)->shard;
    index_progress_told(&shard->progress, phase, done, total, clock_monotonic_ns(shard->env->clock));
}

void shard_host_set_options(struct shard_host *shard, float recall_target,
        const struct collection_options *options)
{
    atomic_store(&shard->recall_target, recall_target);
    pthread_mutex_lock(&shard->options_lock);
    shard->options = *options;
    pthread_mutex_unlock(&shard->options_lock);
}

/* When and how the collection wants its points indexed. */
static void policy_rules(const struct collection_options *o, struct index_policy *policy)
{
    struct route_rules *rules = &policy->rules;
    bool aware = o->segments == SEGMENTS_PAYLOAD_AWARE, timed = o->segments == SEGMENTS_TIME_BASED;
    rules->by_shard_key = aware && o->tenant_path[0] == '\0';
    rules->tenant = aware ? o->tenant_path : NULL;
    rules->time = aware || timed ? o->time_path : NULL;
    rules->time_bucket_ms = options_time_bucket_ms(o);
    rules->type = aware ? o->type_path : NULL;
    rules->own_rows = options_tenant_points(o);
    if (timed && o->time_path[0] == '\0') policy->bucket_ms = options_time_bucket_ms(o);
}

/* The policy borrows from `options_out`. */
static void policy_of_options(struct shard_host *shard, struct collection_options *options_out,
        struct index_policy *policy)
{
    static const enum quant_profile QUANTIZATIONS[] = { [QUANTIZE_ADAPTIVE] = QUANT_BALANCED,
        [QUANTIZE_CONSERVATIVE] = QUANT_CONSERVATIVE,
        [QUANTIZE_AGGRESSIVE] = QUANT_AGGRESSIVE };
    pthread_mutex_lock(&shard->options_lock);
    *options_out = shard->options;
    const struct collection_options o = *options_out;
    pthread_mutex_unlock(&shard->options_lock);
    float recall_target = atomic_load(&shard->recall_target);
    if (recall_target > 0) policy->recall_target = recall_target;
    policy->quantization = QUANTIZATIONS[o.quantization];
    policy->payload_first = options_out->payload_indexes;
    policy_rules(options_out, policy);
    if (o.write_mode == WRITE_IMMEDIATE_INDEX) {
        policy->eager = true;
        if (policy->rows_min > IMMEDIATE_ROWS_MIN) policy->rows_min = IMMEDIATE_ROWS_MIN;
    }
    uint64_t now_ms = clock_wall_ms(shard->env->clock);
    /* Built once, of all of it. A loader that dies, or whose clock is wrong, holds nothing up for long. */
    if (now_ms < o.bulk_until_ms && o.bulk_until_ms - now_ms <= BULK_MS_MAX)
        policy->ripe_ms = 0;
    else if (o.write_mode == WRITE_STREAM_ONLY) {
        uint64_t delay_ms = options_index_delay_ms(&o);
        policy->ripe_ms = now_ms > delay_ms ? now_ms - delay_ms : 0;
    }
}

/* Is there something that the index should have at once? */
static bool index_pressed(struct shard_host *shard, struct shard_store *store,
        const struct index_policy *policy, bool loaded)
{
    uint64_t tail = shard_index_tail_rows(store);
    bool urgent = policy->tail_rows_max != 0 && tail > 0 && tail >= policy->tail_rows_max / 2;
    return atomic_load(&shard->index_wait_count) > 0 || urgent ||
            ((policy->eager || loaded) && tail >= policy->rows_min);
}

/* Only what is in a durable checkpoint is indexed. Who wants it at once, or has writes waiting for it, does not wait
 * for the next one's time; what a bulk load brought is taken as a whole; and a tail that is worth a graph gets one when
 * the last checkpoint, whoever made it, is a while ago. Not called while the disk is nearly full. */
static void checkpoint_for_index(struct shard_host *shard, const struct index_policy *policy)
{
    uint64_t now_ns = clock_monotonic_ns(shard->env->clock);
    bool loading = policy->ripe_ms == 0, loaded = shard->bulk_loading && !loading;
    shard->bulk_loading = loading;
    if (shard->replica == NULL || (!loaded && now_ns < shard->index_checkpoint_ns)) return;
    struct shard_store *store = shard_host_store_hold(shard);
    if (store == NULL) return;
    struct replica_status status;
    replica_status(shard->replica, &status);
    bool rested = now_ns >= status.checkpoint_ns + WORTHY_CHECKPOINT_NS;
    bool due = shard_store_durable(store) < shard_store_applied(store) &&
            (index_pressed(shard, store, policy, loaded) ||
                    (rested && shard_index_wants_checkpoint(store, policy)));
    shard_host_store_unhold(shard);
    if (!due) return;
    struct err err; /* what fails is told where it is tried next; the index does without */
    (void)!replica_checkpoint(shard->replica, &err);
    shard->index_checkpoint_ns = clock_monotonic_ns(shard->env->clock) + INDEX_CHECKPOINT_NS;
}

enum omen_err shard_host_index(struct shard_host *shard, const struct index_policy *policy, uint32_t threads,
        _Atomic bool *stop, bool *worked_out, struct err *err)
{
    struct index_stop s = { shard, stop };
    struct index_control control = {
        .threads = threads,
        .stop = index_stopped,
        .progress = index_told,
        .arg = &s,
    };
    struct index_policy own = *policy;
    struct collection_options options;
    *worked_out = false;
    policy_of_options(shard, &options, &own);
    checkpoint_for_index(shard, &own);
    struct shard_store *store = shard_host_store_hold(shard);
    if (store == NULL) return OMEN_OK;
    index_progress_begin(&shard->progress, clock_monotonic_ns(shard->env->clock));
    enum omen_err rc = shard_index_step(store, &own, &control, worked_out, err);
    index_progress_end(&shard->progress);
    if (atomic_load(&shard->index_wait_count) > 0) shard_wait_passed(shard, shard_index_settled(store, &own));
    shard_host_store_unhold(shard);
    return rc;
}

enum omen_err shard_host_index_tail(struct shard_host *shard, const struct index_policy *policy,
        _Atomic bool *stop, bool *worked_out, struct err *err)
{
    struct index_stop s = { shard, stop };
    struct index_control control = { .threads = 1, .stop = index_stopped, .arg = &s };
    struct index_policy own = *policy;
    struct collection_options options;
    *worked_out = false;
    policy_of_options(shard, &options, &own);
    struct shard_store *store = shard_host_store_hold(shard);
    if (store == NULL) return OMEN_OK;
    enum omen_err rc = shard_index_tail(store, &own, &control, worked_out, err);
    shard_host_store_unhold(shard);
    return rc;
}

void shard_host_memory(struct shard_host *shard, struct shard_index_memory *memory_out, uint64_t *deltas_io)
{
    struct shard_store_stats stats;
    *memory_out = (struct shard_index_memory){ 0 };
    struct shard_store *store = shard_host_store_hold(shard);
    if (store == NULL) return;
    shard_index_memory(store, memory_out);
    shard_store_stats(store, &stats);
    *deltas_io += stats.delta_bytes;
    shard_host_store_unhold(shard);
}

void shard_host_index_stats(struct shard_host *shard, struct shard_index_stats *stats_out)
{
    *stats_out = (struct shard_index_stats){ 0 };
    struct shard_store *store = shard_host_store_hold(shard);
    if (store == NULL) return;
    shard_index_stats(store, stats_out);
    shard_host_store_unhold(shard);
}

void shard_host_index_work(struct shard_host *shard, struct index_work *work_out)
{
    index_progress_read(&shard->progress, clock_monotonic_ns(shard->env->clock), work_out);
}

void shard_host_sweep(struct shard_host *shard)
{
    shard_write_sweep(shard);
    shard_wait_sweep(shard);
    shard_intent_sweep(shard);
    shard_age_sweep(shard);
    shard_read_sweep(shard);
    if (shard->group != NULL) shard_group_sweep(shard);
}

/* ---- state machine ---- */

static enum omen_err fsm_apply(void *self, uint64_t sequence, const void *entry, uint32_t len,
        void *proposal_arg, struct err *err)
{
    struct shard_host *shard = self;
    struct write_batch *batch = proposal_arg;
    struct shard_store *store = atomic_load(&shard->store); /* this worker alone replaces it */
    enum omen_err rc = shard_store_apply(store, sequence, entry, len, batch != NULL ? batch->outcomes : NULL,
            err);
    if (rc == OMEN_OK) {
        if (shard->group != NULL) atomic_store(&shard->group->blank, false);
        shard_read_applied(shard, sequence);
        if (batch == NULL && shard->group != NULL && atomic_load(&shard->group->open))
            shard_write_applied(shard);
    } else if (rc == OMEN_ECORRUPT && shard->group != NULL) {
        shard_group_damaged(shard, err, false);
    }
    return rc;
}

static uint64_t fsm_applied(void *self)
{
    struct shard_host *shard = self;
    struct shard_store *store = shard_host_store_hold(shard);
    if (store == NULL) return atomic_load(&shard->group->applied);
    uint64_t applied = shard_store_applied(store);
    shard_host_store_unhold(shard);
    return applied;
}

uint64_t shard_host_applied(struct shard_host *shard) { return fsm_applied(shard); }

static uint64_t fsm_log_needed_from(void *self)
{
    struct shard_host *shard = self;
    struct shard_store *store = shard_host_store_hold(shard);
    if (store == NULL) return atomic_load(&shard->group->needed_from);
    uint64_t needed_from = shard_store_log_needed_from(store);
    shard_host_store_unhold(shard);
    return needed_from;
}

static enum omen_err fsm_checkpoint(void *self, struct err *err)
{
    struct shard_host *shard = self;
    uint64_t durable;
    struct shard_store *store = shard_host_store_hold(shard);
    if (store == NULL) return err_set(err, OMEN_EBUSY, "", "the store is being replaced by a newer one");
    enum omen_err rc = shard_store_checkpoint(store, &durable, err);
    shard_host_store_unhold(shard);
    return rc;
}

static bool fsm_vital(void *self, const void *entry, uint32_t len)
{
    const struct shard_host *shard = self;
    return entry_only_deletes(entry, len, &shard->schema);
}

static bool fsm_is_short(void *self) { return atomic_load(&((struct shard_host *)self)->ahead_full); }

const struct replica_fsm shard_host_fsm = {
    .apply = fsm_apply,
    .applied = fsm_applied,
    .log_needed_from = fsm_log_needed_from,
    .checkpoint = fsm_checkpoint,
    .vital = fsm_vital,
    .is_short = fsm_is_short,
};

/* ---- life ---- */

enum omen_err shard_host_store_open(struct shard_host *shard, const char *dir, uint64_t base_sequence,
        struct shard_store **store_out, struct err *err)
{
    struct vfs *vfs = shard->env->vfs;
    enum omen_err rc = vfs_mkdir(vfs, dir, err);
    char parent[4096];
    snprintf(parent, sizeof parent, "%s", dir);
    char *slash = strrchr(parent, '/');
    if (slash != NULL) *slash = '\0';
    if (rc == OMEN_OK && slash != NULL) rc = vfs_sync_dir(vfs, parent, err);
    if (rc != OMEN_OK) return rc;
    struct shard_store_options store = shard->env->store;
    store.vfs = vfs;
    store.dir = dir;
    store.shard_id = shard->shard_id;
    store.replica_id = shard->replica_id;
    store.schema = &shard->schema;
    store.base_sequence = base_sequence;
    return shard_store_open(&store, store_out, err);
}

static void shard_free(struct shard_host *shard)
{
    entry_builder_free(shard->builder);
    mem_free(shard->row);
    recall_meter_fini(&shard->recall);
    index_progress_fini(&shard->progress);
    pthread_mutex_destroy(&shard->options_lock);
    pthread_mutex_destroy(&shard->intent_lock);
    pthread_mutex_destroy(&shard->read_lock);
    pthread_mutex_destroy(&shard->write_lock);
    pthread_cond_destroy(&shard->calls_idle);
    pthread_mutex_destroy(&shard->call_lock);
    shard_group_free(shard);
    mem_free(shard);
}

static struct shard_host *shard_new(const struct shard_host_options *o)
{
    struct shard_host *shard = mem_must_calloc(1, sizeof *shard);
    shard->env = o->env;
    shard->shard_id = o->shard_id;
    shard->replica_id = o->replica_id;
    shard->collection_id = o->collection_id;
    shard->schema = *o->schema;
    atomic_init(&shard->recall_target, o->recall_target);
    shard->options = o->options;
    recall_meter_init(&shard->recall, o->replica_id);
    index_progress_init(&shard->progress);
    pthread_mutex_init(&shard->options_lock, NULL);
    snprintf(shard->collection_name, sizeof shard->collection_name, "%s", o->collection_name);
    shard->builder = entry_builder_new(&shard->schema);
    size_t components = 0;
    for (uint32_t f = 0; f < shard->schema.field_count; f++) components += shard->schema.fields[f].dim;
    shard->row = mem_must_alloc(components * sizeof *shard->row);
    shard->queue_tail = &shard->queue_head;
    shard->room_ticket.shard = shard;
    pthread_mutex_init(&shard->call_lock, NULL);
    pthread_mutex_init(&shard->write_lock, NULL);
    pthread_mutex_init(&shard->read_lock, NULL);
    pthread_mutex_init(&shard->intent_lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&shard->calls_idle, &attr);
    pthread_condattr_destroy(&attr);
    return shard;
}

static enum omen_err open_alone(struct shard_host *shard, const struct shard_host_options *o, struct err *err)
{
    struct shard_store *store = NULL;
    struct replica_fsm fsm = shard_host_fsm;
    fsm.self = shard;
    enum omen_err rc = shard_host_store_open(shard, o->dir, o->base_sequence, &store, err);
    if (rc != OMEN_OK) return rc;
    atomic_store(&shard->store, store);
    return replica_open(o->env->replica_host, o->shard_id, o->replica_id, o->base_sequence, &fsm,
            &shard->replica, err);
}

enum omen_err shard_host_open(const struct shard_host_options *options, struct shard_host **shard_out,
        struct err *err)
{
    *shard_out = NULL;
    struct shard_host *shard = shard_new(options);
    enum omen_err rc = OMEN_OK;
    if (shard->builder == NULL)
        rc = err_set(err, OMEN_ENOMEM, "", "no memory to open shard %llu",
                (unsigned long long)options->shard_id);
    if (rc == OMEN_OK)
        rc = options->raft ? shard_group_open(shard, options, err) : open_alone(shard, options, err);
    if (rc != OMEN_OK) {
        if (shard->group != NULL) shard_base_close(shard);
        shard_store_close(atomic_load(&shard->store));
        shard_free(shard);
        return rc;
    }
    struct shard_store_stats stats;
    struct replica_status replica;
    shard_host_stats(shard, &stats, &replica);
    LOG_INFO("shard.open",
            "shard=%llu replica=%llu collection=%s points=%llu applied=%llu durable=%llu damaged=%d",
            (unsigned long long)shard->shard_id, (unsigned long long)shard->replica_id,
            shard->collection_name, (unsigned long long)stats.points, (unsigned long long)stats.applied,
            (unsigned long long)stats.durable, (int)stats.damaged);
    *shard_out = shard;
    return OMEN_OK;
}

void shard_host_retire(struct shard_host *shard, enum omen_err code)
{
    atomic_store(&shard->stopping, true);
    pthread_mutex_lock(&shard->call_lock);
    shard->refuse = code;
    while (shard->calls > 0) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += RETIRE_POLL_MS * 1000000L;
        if (until.tv_nsec >= 1000000000L) {
            until.tv_nsec -= 1000000000L;
            until.tv_sec++;
        }
        if (pthread_cond_timedwait(&shard->calls_idle, &shard->call_lock, &until) != ETIMEDOUT) continue;
        pthread_mutex_unlock(&shard->call_lock);
        shard_host_sweep(shard); /* nobody else does any more */
        pthread_mutex_lock(&shard->call_lock);
    }
    pthread_mutex_unlock(&shard->call_lock);
}

static void shard_end(struct shard_host *shard)
{
    CHECK(shard->calls == 0 && shard->queue_head == NULL && shard->flying == NULL && shard->waiting == NULL &&
            shard->intent_runs == NULL);
    room_keeper_forget(shard->env->rooms, &shard->room_ticket);
    CHECK(atomic_load(&shard->store_users) == 0);
    if (shard->group != NULL) shard_base_close(shard);
    shard_store_close(atomic_load(&shard->store));
    shard_free(shard);
}

void shard_host_close(struct shard_host *shard)
{
    if (shard->group != NULL) shard_base_stop(shard);
    replica_close(shard->replica, true);
    shard_end(shard);
}

void shard_host_drop(struct shard_host *shard)
{
    if (shard->group != NULL) shard_base_stop(shard);
    if (shard->replica != NULL)
        replica_drop(shard->replica);
    else
        replica_host_forget_replica(shard->env->replica_host, shard->shard_id, shard->replica_id);
    shard_end(shard);
}

bool shard_host_tail_is_full(struct shard_host *shard)
{
    uint64_t most = shard->env->tail_rows_max;
    struct shard_store *store = most == 0 ? NULL : shard_host_store_hold(shard);
    if (store == NULL) return false;
    bool full = shard_index_tail_rows(store) >= most;
    shard_host_store_unhold(shard);
    return full;
}

uint64_t shard_host_id(const struct shard_host *shard) { return shard->shard_id; }
const char *shard_host_collection(const struct shard_host *shard) { return shard->collection_name; }

void shard_host_stats(struct shard_host *shard, struct shard_store_stats *store_out,
        struct replica_status *replica_out)
{
    struct shard_store *store = shard_host_store_hold(shard);
    *store_out = (struct shard_store_stats){ 0 };
    *replica_out = (struct replica_status){ .group = shard->shard_id, .replica_id = shard->replica_id };
    if (store != NULL) {
        shard_store_stats(store, store_out);
        shard_host_store_unhold(shard);
    }
    if (shard->group != NULL) store_out->damaged |= shard_group_is_damaged(shard);
    if (shard->replica == NULL) return;
    replica_status(shard->replica, replica_out);
    replica_out->disk_full |= shard_write_is_full(shard);
}

uint32_t shard_host_digests(struct shard_host *shard, struct store_digest digests_out[STORE_DIGESTS_MAX])
{
    struct shard_store *store = shard_host_store_hold(shard);
    if (store == NULL) return 0;
    uint32_t count = shard_store_digests(store, digests_out);
    shard_host_store_unhold(shard);
    return count;
}

struct replica *shard_host_replica(struct shard_host *shard) { return shard->replica; }
