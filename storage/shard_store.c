/* Opening and closing a shard store, its figures and its scrubber. The door is shard_store.h, the map of the room's files
 * shard_store_impl.h. */
#include "common/err.h"

#include "storage/shard_store_impl.h"

#include <stdio.h>

#include "common/check.h"
#include "common/log.h"
#include "common/mem.h"

void shard_store_options_default(struct shard_store_options *options)
{
    *options = (struct shard_store_options){
        .first_chunk_bytes = 1ull << 20,
        .chunk_bytes = 64ull << 20,
        .delta_bytes_max = 64ull << 20,
        .op_table_max = 1000000,
        .op_retention_ms = 120000,
    };
}

static enum omen_err options_check(const struct shard_store_options *o, struct err *err)
{
    if (o->vfs == NULL || o->dir == NULL || o->schema == NULL)
        return err_set(err, OMEN_EINVAL, "options", "vfs, dir and schema are needed");
    if (strlen(o->dir) + 64 > STORE_PATH_BYTES) return err_set(err, OMEN_ETOOBIG, "dir", "path is too long");
    if (o->chunk_bytes < STREAM_CHUNK_BYTES_MIN || o->chunk_bytes > STREAM_CHUNK_BYTES_MAX ||
            o->chunk_bytes % 4096 != 0)
        return err_set(err, OMEN_EINVAL, "chunk_bytes", "must be a multiple of 4096 from %u to %u",
                STREAM_CHUNK_BYTES_MIN, STREAM_CHUNK_BYTES_MAX);
    if (o->first_chunk_bytes < STREAM_CHUNK_BYTES_MIN || o->first_chunk_bytes > STREAM_CHUNK_BYTES_MAX ||
            o->first_chunk_bytes % 4096 != 0)
        return err_set(err, OMEN_EINVAL, "first_chunk_bytes", "must be a multiple of 4096 from %u to %u",
                STREAM_CHUNK_BYTES_MIN, STREAM_CHUNK_BYTES_MAX);
    if (o->schema->field_count > OMEN_VECTOR_FIELDS_MAX)
        return err_set(err, OMEN_EINVAL, "schema", "at most %d vector fields", OMEN_VECTOR_FIELDS_MAX);
    for (uint32_t i = 0; i < o->schema->field_count; i++)
        if (o->schema->fields[i].dim == 0 || o->schema->fields[i].dim > OMEN_DIM_MAX)
            return err_set(err, OMEN_EINVAL, "schema", "dim of field %u must be 1 to %d", i, OMEN_DIM_MAX);
    return OMEN_OK;
}

static void store_path(const struct shard_store *s, const char *name, char out[STORE_PATH_BYTES])
{
    CHECK(snprintf(out, STORE_PATH_BYTES, "%s/%s", s->dir, name) < STORE_PATH_BYTES);
}

static bool any_chunk(void *arg, const char *name)
{
    size_t len = strlen(name);
    if (len < 6 || strcmp(name + len - 6, ".chunk") != 0) return true;
    *(bool *)arg = true;
    return false;
}

/* Finish a creation: CHECKPOINT comes last and atomically, so a store without one holds nothing yet. One that does hold
 * something has lost its CHECKPOINT. */
static enum omen_err checkpoint_create(struct shard_store *s, const char *path,
        const struct meta_state *state, struct err *err)
{
    char stream_dir[STORE_PATH_BYTES];
    bool chunks = false;
    store_path(s, "stream", stream_dir);
    enum omen_err rc = vfs_list(s->vfs, stream_dir, any_chunk, &chunks, err);
    if (rc != OMEN_OK) return rc;
    if (chunks || state->sequence != s->base_sequence)
        return err_corrupt(err, path, 0,
                "file is missing although there are data: bring it, or the shard, back from a backup");
    return checkpoint_file_create(s->vfs, path, s->shard_id, s->replica_id, s->base_sequence,
            (struct stream_end){ { 0, 0 }, 0 }, err);
}

/* The directories, their names durable: also those of files that an interrupted start made and did not get to sync. */
static enum omen_err dirs_make(struct shard_store *s, struct err *err)
{
    static const char *const names[] = { "stream", "meta" };
    char path[STORE_PATH_BYTES], parent[STORE_PATH_BYTES];
    enum omen_err rc = vfs_mkdir(s->vfs, s->dir, err);
    for (size_t i = 0; i < 2 && rc == OMEN_OK; i++) {
        store_path(s, names[i], path);
        rc = vfs_mkdir(s->vfs, path, err);
        if (rc == OMEN_OK) rc = vfs_sync_dir(s->vfs, path, err);
    }
    if (rc == OMEN_OK) rc = vfs_sync_dir(s->vfs, s->dir, err);
    memcpy(parent, s->dir, sizeof parent);
    char *slash = strrchr(parent, '/');
    if (slash == NULL || rc != OMEN_OK) return rc;
    slash[slash == parent] = '\0';
    return vfs_sync_dir(s->vfs, parent, err);
}

/* Metadata, checkpoint and stream; *end_out = what is durable. */
static enum omen_err files_open(struct shard_store *s, const struct shard_store_options *o,
        struct meta_state *state, struct checkpoint *end_out, struct err *err)
{
    char meta_dir[STORE_PATH_BYTES], stream_dir[STORE_PATH_BYTES], checkpoint_path[STORE_PATH_BYTES];
    store_path(s, "meta", meta_dir);
    store_path(s, "stream", stream_dir);
    store_path(s, "CHECKPOINT", checkpoint_path);
    enum omen_err rc = dirs_make(s, err);
    if (rc != OMEN_OK) return rc;
    struct meta_identity identity = { s->shard_id, s->replica_id, o->base_sequence, &s->schema };
    rc = meta_open(s->vfs, meta_dir, &identity, &s->meta, state, &s->base_sequence, err);
    if (rc != OMEN_OK) return rc;
    bool there = false;
    rc = vfs_exists(s->vfs, checkpoint_path, &there, err);
    if (rc == OMEN_OK && !there) rc = checkpoint_create(s, checkpoint_path, state, err);
    if (rc == OMEN_OK)
        rc = checkpoint_file_open(s->vfs, checkpoint_path, s->shard_id, s->replica_id, &s->checkpoint_file,
                &s->last, &s->older, err);
    if (rc != OMEN_OK) return rc;
    /* LMDB's state is a durable checkpoint too: it stands in when the newer slot is damaged. */
    *end_out = s->last;
    if (state->sequence > end_out->sequence) {
        end_out->sequence = state->sequence;
        end_out->end = state->end;
    }
    struct stream_options so = { s->vfs, stream_dir, s->shard_id, s->replica_id,
        (uint32_t)o->first_chunk_bytes, (uint32_t)o->chunk_bytes };
    return stream_open(&so, end_out->end, &s->stream, err);
}

static enum omen_err store_init(struct shard_store *s, const struct shard_store_options *o, struct err *err)
{
    s->vfs = o->vfs;
    snprintf(s->dir, sizeof s->dir, "%s", o->dir);
    s->shard_id = o->shard_id;
    s->replica_id = o->replica_id;
    s->base_sequence = o->base_sequence;
    s->schema = *o->schema;
    s->chunk_bytes = o->chunk_bytes;
    s->delta_bytes_max = o->delta_bytes_max;
    s->op_retention_ms = o->op_retention_ms;
    s->op_table_max = o->op_table_max;
    pthread_mutex_init(&s->apply_mutex, NULL);
    pthread_mutex_init(&s->version_mutex, NULL);
    pthread_mutex_init(&s->checkpoint_mutex, NULL);
    pthread_cond_init(&s->view_released, NULL);
    arena_init(&s->schema_arena, 1024, 0);
    s->blocks = blocks_new();
    s->active = delta_new();
    s->plan = plan_new(&s->schema);
    s->intents = intent_set_copy(NULL);
    if (s->intents == NULL) return err_set(err, OMEN_ENOMEM, NULL, "no memory to open %s", s->dir);
    s->expires_next_ms = UINT64_MAX;
    if (s->schema.shard_key[0] == '\0') return OMEN_OK;
    return doc_path_parse(s->schema.shard_key, strlen(s->schema.shard_key), &s->schema_arena,
            &s->shard_key_path, err);
}

static void store_free(struct shard_store *s)
{
    store_index_fini(s);
    store_compact_fini(s);
    while (s->free_pins != NULL) {
        struct view_pin *pin = s->free_pins;
        s->free_pins = pin->next;
        meta_txn_free(pin->txn);
        mem_free(pin);
    }
    meta_txn_free(s->apply_pin.txn);
    if (s->frozen_ops.chunks != NULL) op_table_unpin(s->ops, &s->frozen_ops);
    op_table_free(s->ops);
    plan_free(s->plan);
    intent_set_unref(s->intents);
    intent_set_unref(s->frozen_intents);
    expiry_fini(&s->expiry);
    delta_unref(s->active);
    delta_unref(s->frozen);
    blocks_free(s->blocks);
    stream_close(s->stream);
    checkpoint_file_close(s->checkpoint_file);
    meta_close(s->meta);
    arena_fini(&s->schema_arena);
    pthread_cond_destroy(&s->view_released);
    pthread_mutex_destroy(&s->checkpoint_mutex);
    pthread_mutex_destroy(&s->version_mutex);
    pthread_mutex_destroy(&s->apply_mutex);
    mem_free(s);
}

enum omen_err shard_store_open(const struct shard_store_options *options, struct shard_store **store_out,
        struct err *err)
{
    *store_out = NULL;
    enum omen_err rc = options_check(options, err);
    if (rc != OMEN_OK) return rc;
    struct meta_state state;
    struct checkpoint end = { 0 };
    struct shard_store *s = mem_must_calloc(1, sizeof *s);
    store_index_init(s);
    store_compact_init(s);
    rc = store_init(s, options, err);
    if (rc == OMEN_OK) rc = files_open(s, options, &state, &end, err);
    if (rc == OMEN_OK) rc = meta_txn_new(s->meta, &s->apply_pin.txn, err);
    if (rc == OMEN_OK) rc = store_recover(s, &state, end.sequence, err);
    if (rc != OMEN_OK) {
        store_free(s);
        return rc;
    }
    store_leases_forget(s);
    atomic_store(&s->durable, end.sequence);
    atomic_store(&s->log_needed, s->older.sequence);
    LOG_INFO("store.open", "dir=\"%s\" shard=%llu sequence=%llu points=%llu", s->dir,
            (unsigned long long)s->shard_id, (unsigned long long)end.sequence, (unsigned long long)s->points);
    *store_out = s;
    return OMEN_OK;
}

void shard_store_close(struct shard_store *store)
{
    if (store == NULL) return;
    pthread_mutex_lock(&store->version_mutex);
    while (store->view_count > 0) pthread_cond_wait(&store->view_released, &store->version_mutex);
    pthread_mutex_unlock(&store->version_mutex);
    store_free(store);
}

uint64_t shard_store_applied(const struct shard_store *store)
{
    return atomic_load_explicit(&store->applied, memory_order_acquire);
}

bool shard_store_op_outcome(struct shard_store *store, const struct op_id *op_id,
        struct apply_outcome *outcome_out)
{
    if (op_id->client == 0) return false;
    pthread_mutex_lock(&store->apply_mutex);
    const struct op_record *r = op_table_find(store->ops, op_id->client, op_id->seq);
    const struct intent *open = intent_set_find_op(store->intents, op_id);
    if (r != NULL)
        *outcome_out = (struct apply_outcome){ .code = (enum omen_err)r->code,
            .affected = r->affected,
            .sequence = r->sequence,
            .duplicate = true };
    if (open != NULL)
        *outcome_out = (struct apply_outcome){ .code = OMEN_EBUSY,
            .sequence = open->work->id.sequence,
            .intent = open->work->id };
    pthread_mutex_unlock(&store->apply_mutex);
    return r != NULL || open != NULL;
}

struct intent_set *shard_store_intents(struct shard_store *store)
{
    pthread_mutex_lock(&store->version_mutex);
    struct intent_set *set = intent_set_ref(store->intents);
    pthread_mutex_unlock(&store->version_mutex);
    return set;
}

uint64_t shard_store_log_time(struct shard_store *store)
{
    pthread_mutex_lock(&store->apply_mutex);
    uint64_t log_time_ms = store->log_time_ms;
    pthread_mutex_unlock(&store->apply_mutex);
    return log_time_ms;
}

uint64_t shard_store_durable(const struct shard_store *store) { return atomic_load(&store->durable); }
uint64_t shard_store_log_needed_from(const struct shard_store *store)
{
    return atomic_load(&store->log_needed);
}

void shard_store_stats(struct shard_store *store, struct shard_store_stats *stats_out)
{
    struct shard_store_stats stats = { .durable = atomic_load(&store->durable) };
    pthread_mutex_lock(&store->version_mutex);
    stats.applied = store->applied;
    stats.points = store->points;
    stats.expires_next_ms = store->expires_next_ms;
    stats.intents = store->intents->count;
    stats.delta_bytes = delta_bytes(store->active) + (store->frozen != NULL ? delta_bytes(store->frozen) : 0);
    stats.rows_dead = atomic_load(&store->blocks->row_count) - store->points;
    pthread_mutex_unlock(&store->version_mutex);
    stream_usage(store->stream, &stats.stream_bytes, &stats.stream_chunks);
    stats.given_back_bytes = atomic_load(&store->compact.given_back_bytes);
    stats.meta_bytes = meta_bytes(store->meta);
    stats.applied_ops = atomic_load(&store->op_count);
    stats.op_table_full = stats.applied_ops >= store->op_table_max;
    stats.stopped = (enum omen_err)atomic_load(&store->stopped_stat);
    stats.damaged = atomic_load(&store->damaged);
    *stats_out = stats;
}

/* The first finding stays. Reads look at `damaged` only, so its text is complete before. */
static void store_damage(struct shard_store *s, enum omen_err rc, const struct err *found)
{
    if (atomic_load(&s->damaged)) return;
    s->damage_err = *found;
    atomic_store(&s->damaged, true);
    pthread_mutex_lock(&s->apply_mutex);
    store_stop(s, rc, found);
    pthread_mutex_unlock(&s->apply_mutex);
}

enum omen_err shard_store_scrub(struct shard_store *store, uint64_t bytes, struct scrub_result *result_out,
        struct err *err)
{
    uint32_t count = blocks_count(store->blocks), era = store_hold(store);
    struct scrub_result result = { .wrapped = count == 0 };
    enum omen_err rc = OMEN_OK;
    while (rc == OMEN_OK && result.bytes < bytes && !result.wrapped) {
        struct err found;
        err_clear(&found);
        const struct stream_unit *unit = &blocks_at(store->blocks, store->scrub_next)->unit;
        rc = stream_unit_check(store->stream, unit, &found);
        if (rc == OMEN_ECORRUPT || rc == OMEN_EIO) store_damage(store, rc, &found);
        if (rc != OMEN_OK && err != NULL) *err = found;
        result.bytes += STREAM_UNIT_HEADER_BYTES + (uint64_t)unit->body_bytes;
        result.wrapped = ++store->scrub_next >= count;
        if (result.wrapped) store->scrub_next = 0;
    }
    store_unhold(store, era);
    if (result_out != NULL) *result_out = result;
    return rc;
}
