/* Apply: one log entry becomes part of the shard.
 *
 *   parse -> append to the stream (unpublished) -> plan (outcomes, derived units) -> commit -> publish `applied`
 *
 * Everything that can fail comes before the commit, and is taken back when it does: the stream's end is rewound, staged
 * blocks and op records are dropped. So a full disk changes nothing and the same entry is applied when there is room
 * (CORRECTNESS D2). */
#include "common/err.h"

#include "storage/shard_store_impl.h"

#include "common/check.h"
#include "common/log.h"

enum omen_err store_stop(struct shard_store *s, enum omen_err rc, const struct err *err)
{
    s->stopped = rc;
    s->stopped_err = *err;
    atomic_store(&s->stopped_stat, (int)rc);
    LOG_ERROR("store.stopped", "dir=\"%s\" shard=%llu error=%s message=\"%s\"", s->dir,
            (unsigned long long)s->shard_id, err_name(rc), err->message);
    return rc;
}

/* Failures that pass when there is room again. */
static bool transient(enum omen_err rc) { return rc == OMEN_EFULL || rc == OMEN_ENOMEM; }

/* `intents`: as they are now; NULL: as before. */
static void publish(struct shard_store *s, uint64_t sequence, uint64_t points, uint32_t staged,
        struct intent_set *intents)
{
    struct intent_set *before = NULL;
    pthread_mutex_lock(&s->version_mutex);
    blocks_publish(s->blocks, staged);
    if (intents != NULL) {
        before = s->intents;
        s->intents = intents;
    }
    s->points = points;
    s->view_log_time_ms = s->log_time_ms;
    s->expires_next_ms = expiry_next_ms(&s->expiry);
    store_digests_note(s, sequence);
    atomic_store_explicit(&s->applied, sequence, memory_order_release);
    pthread_mutex_unlock(&s->version_mutex);
    intent_set_unref(before);
    atomic_store_explicit(&s->op_count, op_table_count(s->ops), memory_order_relaxed);
}

enum omen_err apply_staged(struct shard_store *s, uint64_t sequence, const struct entry *entry,
        struct plan_units *units, struct apply_outcome *outcomes, struct err *err)
{
    uint64_t ops_before = op_table_next(s->ops), log_time_before = s->log_time_ms;
    if (entry->log_time_ms > s->log_time_ms) s->log_time_ms = entry->log_time_ms;
    pthread_mutex_lock(&s->version_mutex);
    view_pin_take(s, &s->apply_pin);
    pthread_mutex_unlock(&s->version_mutex);
    enum omen_err rc = plan_entry(s->plan, s, sequence, entry, units, outcomes, err);
    if (rc == OMEN_OK) {
        uint64_t points = plan_commit(s->plan, s, s->apply_pin.points);
        op_table_expire(s->ops, s->log_time_ms, s->op_retention_ms);
        publish(s, sequence, points, units->staged, plan_intents_take(s->plan));
    } else {
        plan_abandon(s->plan, s);
        op_table_undo(s->ops, ops_before);
        s->log_time_ms = log_time_before;
        blocks_unstage(s->blocks, units->staged);
    }
    view_pin_drop(&s->apply_pin);
    return rc;
}

/* A checked entry that is next in line. apply_mutex held. */
static enum omen_err apply_next(struct shard_store *s, uint64_t sequence, const void *bytes,
        const struct entry *parsed, struct apply_outcome *outcomes, struct err *err)
{
    struct stream_end before = stream_end(s->stream);
    struct stream_unit unit;
    struct plan_units units = { 0 };
    enum omen_err rc = stream_append(s->stream, STREAM_UNIT_ENTRY, sequence, 0, bytes, parsed->total_bytes,
            &unit, err);
    if (rc != OMEN_OK) return rc;
    struct entry entry;
    entry_attach(unit.body, &s->schema, &entry);
    rc = store_block_stage(s, 0, &unit, &entry, err);
    if (rc == OMEN_OK) {
        units.staged = 1;
        rc = apply_staged(s, sequence, &entry, &units, outcomes, err);
    }
    if (rc != OMEN_OK) stream_rewind(s->stream, before);
    return rc;
}

enum omen_err shard_store_apply(struct shard_store *store, uint64_t sequence, const void *entry, size_t len,
        struct apply_outcome *outcomes, struct err *err)
{
    struct entry parsed;
    struct err local;
    pthread_mutex_lock(&store->apply_mutex);
    enum omen_err rc = store->stopped;
    if (rc != OMEN_OK && !transient(rc)) {
        if (err != NULL) *err = store->stopped_err;
        goto out;
    }
    uint64_t applied = atomic_load_explicit(&store->applied, memory_order_relaxed);
    rc = OMEN_OK;
    if (sequence <= applied) goto out;
    CHECK(sequence == applied + 1);
    /* Not deep: the checksum was verified where the bytes came from, and is again when the stream is scanned. */
    err_clear(&local);
    rc = entry_parse(entry, len, &store->schema, false, &parsed, &local);
    if (rc == OMEN_OK && parsed.derived)
        rc = err_set(&local, OMEN_ECORRUPT, NULL, "derived entry in the log");
    if (rc == OMEN_OK) rc = apply_next(store, sequence, entry, &parsed, outcomes, &local);
    if (rc != OMEN_OK && rc != store->stopped) store_stop(store, rc, &local);
    if (rc != OMEN_OK && err != NULL) *err = local;
    if (rc == OMEN_OK && store->stopped != OMEN_OK) {
        LOG_INFO("store.resumed", "dir=\"%s\" shard=%llu", store->dir, (unsigned long long)store->shard_id);
        store->stopped = OMEN_OK;
        atomic_store(&store->stopped_stat, OMEN_OK);
    }
out:
    pthread_mutex_unlock(&store->apply_mutex);
    return rc;
}
