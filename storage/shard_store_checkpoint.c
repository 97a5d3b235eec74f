/* Checkpoints and merges, beside apply and readers.
 *
 *   capture {applied, end of the stream, chunks written; freeze the delta when it is due}   under the apply lock
 *   sync the chunks -> write the CHECKPOINT slot and sync it                                durable from here
 *   merge the frozen delta into LMDB -> drop it from the version -> CHECKSUM                 when there is one
 *   compact chunks most of whose rows LMDB knows to be dead                                  a step of it
 *
 * LMDB is never ahead of a durable checkpoint. A merge that finds the disk full is tried again at the next checkpoint;
 * its delta stays frozen and readable. A failed sync is never repeated: the store stops (CORRECTNESS C2). */
#include "common/err.h"

#include "storage/shard_store_impl.h"

#include "common/check.h"
#include "common/log.h"
#include "common/mem.h"

/* What is made durable together. */
struct capture {
    uint64_t sequence;
    struct stream_end end;
    struct stream_sync sync;
};

/* Set the active delta aside for LMDB. apply_mutex held, between entries. */
static enum omen_err freeze(struct shard_store *s, struct stream_end end)
{
    struct op_range ops;
    enum omen_err rc = op_table_pin(s->ops, &ops);
    if (rc != OMEN_OK) return rc;
    struct delta *fresh = delta_new();
    pthread_mutex_lock(&s->version_mutex);
    s->frozen = s->active;
    s->active = fresh;
    s->frozen_ops = ops;
    s->frozen_intents = intent_set_ref(s->intents);
    s->frozen_state = (struct meta_state){ .sequence = s->applied,
        .log_time_ms = s->log_time_ms,
        .points = s->points,
        .op_first = ops.first,
        .op_next = ops.next,
        .end = end };
    pthread_mutex_unlock(&s->version_mutex);
    return OMEN_OK;
}

static enum omen_err capture_take(struct shard_store *s, struct capture *c, struct err *err)
{
    pthread_mutex_lock(&s->apply_mutex);
    enum omen_err rc = s->stopped == OMEN_EFULL || s->stopped == OMEN_ENOMEM ? OMEN_OK : s->stopped;
    if (rc != OMEN_OK) {
        if (err != NULL) *err = s->stopped_err;
    } else {
        c->sequence = atomic_load_explicit(&s->applied, memory_order_relaxed);
        c->end = stream_end(s->stream);
        bool due = s->frozen == NULL && delta_count(s->active) > 0 &&
                (delta_bytes(s->active) >= s->delta_bytes_max || store_compact_wants_merge(s));
        if (due && freeze(s, c->end) == OMEN_OK)
            (void)log_repeat_ends(&s->freeze_fails);
        else if (due && log_repeat_tells(&s->freeze_fails))
            LOG_WARN("store.merge_waits", "dir=\"%s\" times=%u error=no_memory", s->dir,
                    s->freeze_fails.times);
        rc = stream_sync_begin(s->stream, &c->sync); /* last: what it takes must be synced */
        if (rc != OMEN_OK) err_set(err, rc, NULL, "capturing a checkpoint of %s", s->dir);
    }
    pthread_mutex_unlock(&s->apply_mutex);
    return rc;
}

/* For good: what could not be synced may be gone from the page cache, and trying again would not notice. So not even a
 * full disk is something to resume from here. */
static enum omen_err stop_here(struct shard_store *s, enum omen_err rc, struct err *local, struct err *err)
{
    if (rc == OMEN_EFULL || rc == OMEN_ENOMEM) rc = local->code = OMEN_EIO;
    pthread_mutex_lock(&s->apply_mutex);
    store_stop(s, rc, local);
    pthread_mutex_unlock(&s->apply_mutex);
    if (err != NULL) *err = *local;
    return rc;
}

static enum omen_err capture_persist(struct shard_store *s, struct capture *c, struct err *err)
{
    enum omen_err rc = stream_sync_run(&c->sync, err);
    if (rc != OMEN_OK) return rc;
    /* Nothing new: the second slot is brought up too, or an idle shard would hold the log of the node for ever. */
    if (c->sequence == s->last.sequence && c->sequence == s->older.sequence) return OMEN_OK;
    struct checkpoint next = { s->last.generation + 1, c->sequence, c->end };
    rc = checkpoint_file_write(s->checkpoint_file, &next, err);
    if (rc != OMEN_OK) return rc;
    s->older = s->last;
    s->last = next;
    atomic_store(&s->durable, next.sequence);
    atomic_store(&s->log_needed, s->older.sequence);
    return OMEN_OK;
}

/* ---- merge ---- */

static enum omen_err merge_points(struct shard_store *s, struct meta_merge *m, struct err *err)
{
    struct delta_iter it;
    enum omen_err rc = OMEN_OK;
    delta_iter_seek(s->frozen, NULL, s->frozen_state.sequence, &it);
    for (; rc == OMEN_OK && delta_iter_valid(&it); delta_iter_next(&it)) {
        if (row_is_none(it.row)) {
            rc = meta_merge_put(m, &it.key, NULL, err);
            continue;
        }
        struct meta_location l = { blocks_at(s->blocks, it.row.block)->unit.position, it.row.op, it.version };
        rc = meta_merge_put(m, &it.key, &l, err);
    }
    return rc;
}

static enum omen_err merge_write(struct shard_store *s, struct err *err)
{
    struct meta_merge *m;
    enum omen_err rc = meta_merge_begin(s->meta, delta_count(s->frozen), &s->frozen_ops, s->frozen_intents,
            &m, err);
    if (rc != OMEN_OK) return rc;
    rc = merge_points(s, m, err);
    if (rc == OMEN_OK) rc = meta_merge_ops(m, &s->frozen_ops, err);
    if (rc == OMEN_OK) rc = meta_merge_intents(m, s->frozen_intents, err);
    if (rc != OMEN_OK) return meta_merge_fail(m, rc, err);
    return meta_merge_commit(m, &s->frozen_state, err);
}

/* LMDB has it: views from now on need the frozen delta no more; older ones keep their reference. */
static void frozen_drop(struct shard_store *s)
{
    pthread_mutex_lock(&s->apply_mutex);
    op_table_unpin(s->ops, &s->frozen_ops);
    pthread_mutex_lock(&s->version_mutex);
    struct delta *frozen = s->frozen;
    s->frozen = NULL;
    pthread_mutex_unlock(&s->version_mutex);
    pthread_mutex_unlock(&s->apply_mutex);
    delta_unref(frozen);
    intent_set_unref(s->frozen_intents);
    s->frozen_intents = NULL;
}

static enum omen_err merge(struct shard_store *s, struct err *err)
{
    CHECK(s->frozen_state.sequence <= atomic_load(&s->durable));
    enum omen_err rc = merge_write(s, err);
    if (rc != OMEN_OK) return rc;
    frozen_drop(s);
    rc = meta_seal(s->meta, err);
    if (rc == OMEN_OK)
        s->compact.merged = (struct checkpoint){ .sequence = s->frozen_state.sequence,
            .end = s->frozen_state.end };
    return rc;
}

enum omen_err shard_store_checkpoint(struct shard_store *store, uint64_t *durable_out, struct err *err)
{
    struct capture c = { 0 };
    struct err local;
    err_clear(&local);
    pthread_mutex_lock(&store->checkpoint_mutex);
    enum omen_err rc = capture_take(store, &c, err);
    if (rc == OMEN_OK) {
        rc = capture_persist(store, &c, &local);
        if (rc != OMEN_OK) rc = stop_here(store, rc, &local, err);
    }
    if (rc == OMEN_OK && store->frozen != NULL) {
        rc = merge(store, &local);
        if (rc == OMEN_OK && log_repeat_ends(&store->merge_fails))
            LOG_INFO("store.merge_goes_on", "dir=\"%s\"", store->dir);
        if (rc == OMEN_EFULL || rc == OMEN_ENOMEM) { /* the checkpoint stands; the merge waits for room */
            if (log_repeat_tells(&store->merge_fails))
                LOG_WARN("store.merge_waits", "dir=\"%s\" times=%u error=\"%s\"", store->dir,
                        store->merge_fails.times, local.message);
            rc = OMEN_OK;
        }
        if (rc != OMEN_OK) rc = stop_here(store, rc, &local, err);
    }
    if (rc == OMEN_OK) store_compact_step(store);
    if (rc == OMEN_OK) stream_prepare(store->stream);
    if (durable_out != NULL) *durable_out = atomic_load(&store->durable);
    pthread_mutex_unlock(&store->checkpoint_mutex);
    return rc;
}
