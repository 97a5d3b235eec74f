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

#define RETIRE_POLL_MS 50 /* how often deadlines are looked at while a retired shard waits for its calls */

void shard_env_init(struct shard_env *env)
{
    pthread_mutex_init(&env->disk_lock, NULL);
    pthread_mutex_init(&env->reads_lock, NULL);
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
    struct shard_store_stats stats;
    *result_out = (struct scrub_result){ 0 };
    shard_store_stats(shard->store, &stats);
    if (stats.damaged) return true;
    enum omen_err rc = shard_store_scrub(shard->store, bytes, result_out, &err);
    if (rc == OMEN_OK) return result_out->wrapped;
    shard_store_stats(shard->store, &stats);
    LOG_ERROR(stats.damaged ? "shard.damaged" : "shard.scrub",
            "shard=%llu collection=%s error=%s message=\"%s\"", (unsigned long long)shard->shard_id,
            shard->collection_name, err_name(rc), err.message);
    return true;
}

void shard_host_sweep(struct shard_host *shard)
{
    shard_write_sweep(shard);
    shard_read_sweep(shard);
}

/* ---- state machine ---- */

static enum omen_err fsm_apply(void *self, uint64_t sequence, const void *entry, uint32_t len,
        void *proposal_arg, struct err *err)
{
    struct shard_host *shard = self;
    struct write_batch *batch = proposal_arg;
    enum omen_err rc = shard_store_apply(shard->store, sequence, entry, len,
            batch != NULL ? batch->outcomes : NULL, err);
    if (rc == OMEN_OK) shard_read_applied(shard, sequence);
    return rc;
}

static uint64_t fsm_applied(void *self) { return shard_store_applied(((struct shard_host *)self)->store); }

static uint64_t fsm_log_needed_from(void *self)
{
    return shard_store_log_needed_from(((struct shard_host *)self)->store);
}

static enum omen_err fsm_checkpoint(void *self, struct err *err)
{
    uint64_t durable;
    return shard_store_checkpoint(((struct shard_host *)self)->store, &durable, err);
}

/* ---- life ---- */

static enum omen_err store_open(struct shard_host *shard, const struct shard_host_options *o, struct err *err)
{
    struct vfs *vfs = o->env->vfs;
    enum omen_err rc = vfs_mkdir(vfs, o->dir, err);
    char parent[4096];
    snprintf(parent, sizeof parent, "%s", o->dir);
    char *slash = strrchr(parent, '/');
    if (slash != NULL) *slash = '\0';
    if (rc == OMEN_OK && slash != NULL) rc = vfs_sync_dir(vfs, parent, err);
    if (rc != OMEN_OK) return rc;
    struct shard_store_options store = o->env->store;
    store.vfs = vfs;
    store.dir = o->dir;
    store.shard_id = o->shard_id;
    store.replica_id = o->replica_id;
    store.schema = &shard->schema;
    store.base_sequence = o->base_sequence;
    return shard_store_open(&store, &shard->store, err);
}

static void shard_free(struct shard_host *shard)
{
    entry_builder_free(shard->builder);
    mem_free(shard->row);
    pthread_mutex_destroy(&shard->read_lock);
    pthread_mutex_destroy(&shard->write_lock);
    pthread_cond_destroy(&shard->calls_idle);
    pthread_mutex_destroy(&shard->call_lock);
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
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&shard->calls_idle, &attr);
    pthread_condattr_destroy(&attr);
    return shard;
}

enum omen_err shard_host_open(const struct shard_host_options *options, struct shard_host **shard_out,
        struct err *err)
{
    *shard_out = NULL;
    struct shard_host *shard = shard_new(options);
    if (shard->builder == NULL) {
        shard_free(shard);
        return err_set(err, OMEN_ENOMEM, "", "no memory to open shard %llu",
                (unsigned long long)options->shard_id);
    }
    enum omen_err rc = store_open(shard, options, err);
    if (rc != OMEN_OK) goto err_after_new;
    struct replica_fsm fsm = {
        .self = shard,
        .apply = fsm_apply,
        .applied = fsm_applied,
        .log_needed_from = fsm_log_needed_from,
        .checkpoint = fsm_checkpoint,
    };
    rc = replica_open(options->env->replica_host, options->shard_id, options->replica_id,
            options->base_sequence, &fsm, &shard->replica, err);
    if (rc != OMEN_OK) goto err_after_store;
    struct shard_store_stats stats;
    shard_store_stats(shard->store, &stats);
    LOG_INFO("shard.open", "shard=%llu replica=%llu collection=%s points=%llu applied=%llu durable=%llu",
            (unsigned long long)shard->shard_id, (unsigned long long)shard->replica_id,
            shard->collection_name, (unsigned long long)stats.points, (unsigned long long)stats.applied,
            (unsigned long long)stats.durable);
    *shard_out = shard;
    return OMEN_OK;
err_after_store:
    shard_store_close(shard->store);
err_after_new:
    shard_free(shard);
    return rc;
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
    CHECK(shard->calls == 0 && shard->queue_head == NULL && shard->flying == NULL && shard->waiting == NULL);
    shard_store_close(shard->store);
    shard_free(shard);
}

void shard_host_close(struct shard_host *shard)
{
    replica_close(shard->replica, true);
    room_keeper_forget(shard->env->rooms, &shard->room_ticket);
    shard_end(shard);
}

void shard_host_drop(struct shard_host *shard)
{
    replica_drop(shard->replica);
    room_keeper_forget(shard->env->rooms, &shard->room_ticket);
    shard_end(shard);
}

uint64_t shard_host_id(const struct shard_host *shard) { return shard->shard_id; }
const char *shard_host_collection(const struct shard_host *shard) { return shard->collection_name; }

void shard_host_stats(struct shard_host *shard, struct shard_store_stats *store_out,
        struct replica_status *replica_out)
{
    shard_store_stats(shard->store, store_out);
    replica_status(shard->replica, replica_out);
    replica_out->disk_full |= shard_write_is_full(shard);
}
