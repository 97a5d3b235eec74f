/* The catalog's state machine. Apply works on a copy of the state and swaps it in, so readers keep what they hold.
 *
 * Threads: apply on an apply worker, checkpoint on the checkpoint thread, catalog_map anywhere; `mutex` guards
 * `state`. Cost: a change copies the state, a few KB per collection; changes are rare. */
#include "common/err.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "common/check.h"
#include "common/log.h"
#include "node/cluster/state.h"

struct catalog {
    struct vfs *vfs;
    char path[4096];
    pthread_mutex_t
            file_mutex; /* one writer of the file: a checkpoint may run beside an import, which is newer */
    pthread_mutex_t mutex;
    struct cluster_state *state; /* guarded by mutex; immutable */
    _Atomic uint64_t applied, durable;
};

/* ---- fsm ---- */

static void state_swap(struct catalog *catalog, struct cluster_state *next)
{
    pthread_mutex_lock(&catalog->mutex);
    struct cluster_state *old = catalog->state;
    catalog->state = next;
    pthread_mutex_unlock(&catalog->mutex);
    cluster_state_unref(old);
}

static enum omen_err fsm_apply(void *self, uint64_t sequence, const void *entry, uint32_t len,
        void *proposal_arg, struct err *err)
{
    struct catalog *catalog = self;
    if (sequence <= atomic_load(&catalog->applied)) return OMEN_OK;
    struct cluster_entry decoded;
    enum omen_err rc = cluster_entry_decode(entry, len, &decoded, err);
    if (rc != OMEN_OK) return rc;
    if (!cluster_entry_known(decoded.kind)) { /* a rejection here would be an application elsewhere */
        cluster_entry_fini(&decoded);
        return err_set(err, OMEN_EVERSION, "",
                "entry %llu of the cluster group is of kind %u, which this build, of level %u, does not know",
                (unsigned long long)sequence, decoded.kind, feature_level());
    }
    struct catalog_outcome nobody, *outcome = proposal_arg != NULL ? proposal_arg : &nobody;
    memset(outcome, 0, sizeof *outcome);

    /* Only apply changes the state, so it may be read without the lock here. */
    bool map_changed = false;
    struct cluster_state *next = cluster_state_clone(catalog->state);
    bool settled = next != NULL && cluster_result_settles(next, &decoded, outcome);
    if (next == NULL)
        rc = OMEN_ENOMEM;
    else if (settled)
        rc = OMEN_OK; /* asked for twice: nothing more happens */
    else if (decoded.kind < CLUSTER_CHANGE_INIT)
        rc = cluster_apply_collections(next, &decoded, outcome, &map_changed);
    else
        rc = cluster_apply_cluster(next, &decoded, outcome, &map_changed);
    if (rc == OMEN_OK && outcome->code == OMEN_OK && !settled)
        rc = cluster_result_keep(next, &decoded, outcome);
    cluster_entry_fini(&decoded);
    if (rc == OMEN_OK &&
            outcome->code != OMEN_OK) { /* rejected: the state is as before, but for its sequence */
        cluster_state_unref(next);
        map_changed = false;
        next = cluster_state_clone(catalog->state);
        if (next == NULL) rc = OMEN_ENOMEM;
    }
    if (rc == OMEN_OK && next->version > feature_level()) {
        rc = cluster_version_refuse("the cluster", next->version, err);
        cluster_state_unref(next);
        return rc;
    }
    if (rc != OMEN_OK) {
        cluster_state_unref(next);
        return err_set(err, rc, "", "no memory to change the catalog");
    }
    if (map_changed) next->map->epoch++;
    next->sequence = sequence;
    state_swap(catalog, next);
    atomic_store(&catalog->applied, sequence);
    return OMEN_OK;
}

static uint64_t fsm_applied(void *self) { return atomic_load(&((struct catalog *)self)->applied); }
static uint64_t fsm_log_needed_from(void *self) { return atomic_load(&((struct catalog *)self)->durable); }

static enum omen_err state_write(struct catalog *catalog, const struct cluster_state *state, struct err *err)
{
    struct buf b;
    buf_init(&b);
    cluster_state_encode(state, &b);
    enum omen_err rc = b.failed ? err_set(err, OMEN_ENOMEM, "", "no memory to write the catalog")
                                : catalog_file_replace(catalog->vfs, catalog->path, b.data, b.len, err);
    buf_fini(&b);
    return rc;
}

static enum omen_err fsm_checkpoint(void *self, struct err *err)
{
    struct catalog *catalog = self;
    enum omen_err rc = OMEN_OK;
    pthread_mutex_lock(&catalog->file_mutex);
    struct cluster_state *state = cluster_state_acquire(catalog);
    if (state->sequence > atomic_load(&catalog->durable)) {
        rc = state_write(catalog, state, err);
        if (rc == OMEN_OK) atomic_store(&catalog->durable, state->sequence);
    }
    pthread_mutex_unlock(&catalog->file_mutex);
    cluster_state_unref(state);
    return rc;
}

void catalog_export(struct catalog *catalog, struct buf *out, uint64_t *sequence_out)
{
    struct cluster_state *state = cluster_state_acquire(catalog);
    *sequence_out = state->sequence;
    cluster_state_encode(state, out);
    cluster_state_unref(state);
}

static enum omen_err import_decode(struct catalog *catalog, struct bytes bytes,
        struct cluster_state **state_out, bool *newer_out, struct err *err)
{
    enum omen_err rc = cluster_state_decode(bytes.data, bytes.len, catalog->path, state_out, err);
    if (rc != OMEN_OK) return rc;
    struct cluster_state *have = cluster_state_acquire(catalog);
    *newer_out = (*state_out)->sequence > have->sequence;
    if ((*state_out)->map->incarnation != have->map->incarnation)
        rc = err_set(err, OMEN_EINVAL, "", "a base of the cluster group of another incarnation");
    cluster_state_unref(have);
    if (rc != OMEN_OK) cluster_state_unref(*state_out);
    return rc;
}

enum omen_err catalog_import_check(struct catalog *catalog, struct bytes bytes, struct err *err)
{
    struct cluster_state *state;
    bool newer;
    enum omen_err rc = import_decode(catalog, bytes, &state, &newer, err);
    if (rc == OMEN_OK) cluster_state_unref(state);
    return rc;
}

enum omen_err catalog_import(struct catalog *catalog, struct bytes bytes, struct err *err)
{
    struct cluster_state *state;
    bool newer;
    enum omen_err rc = import_decode(catalog, bytes, &state, &newer, err);
    if (rc != OMEN_OK) return rc;
    pthread_mutex_lock(&catalog->file_mutex);
    if (newer) rc = state_write(catalog, state, err);
    if (rc == OMEN_OK && newer) {
        atomic_store(&catalog->durable, state->sequence);
        atomic_store(&catalog->applied, state->sequence);
        state_swap(catalog, state);
        state = NULL;
    }
    pthread_mutex_unlock(&catalog->file_mutex);
    cluster_state_unref(state);
    return rc;
}

static bool fsm_vital(void *self, const void *entry, uint32_t len) { return cluster_entry_vital(entry, len); }

void catalog_fsm(struct catalog *catalog, struct replica_fsm *fsm_out)
{
    *fsm_out = (struct replica_fsm){
        .self = catalog,
        .apply = fsm_apply,
        .applied = fsm_applied,
        .log_needed_from = fsm_log_needed_from,
        .checkpoint = fsm_checkpoint,
        .vital = fsm_vital,
    };
}

/* ---- life ---- */

static enum omen_err state_load(struct catalog *catalog, uint64_t incarnation, size_t *len_out,
        struct err *err)
{
    bool there;
    *len_out = 0;
    enum omen_err rc = vfs_exists(catalog->vfs, catalog->path, &there, err);
    if (rc != OMEN_OK) return rc;
    if (!there) {
        catalog->state = cluster_state_new(incarnation);
        return catalog->state == NULL ? err_set(err, OMEN_ENOMEM, "", "no memory for the catalog") : OMEN_OK;
    }
    uint8_t *bytes;
    rc = vfs_read_file(catalog->vfs, catalog->path, CATALOG_FILE_BYTES_MAX, &bytes, len_out, err);
    if (rc != OMEN_OK) return rc;
    rc = cluster_state_decode(bytes, *len_out, catalog->path, &catalog->state, err);
    mem_free(bytes);
    if (rc != OMEN_OK) return rc;
    if (catalog->state->map->incarnation == incarnation) return OMEN_OK;
    cluster_state_unref(catalog->state);
    return err_corrupt(err, catalog->path, 40, "the catalog is of another incarnation than NODE");
}

enum omen_err catalog_open(struct vfs *vfs, const char *dir, uint64_t incarnation,
        struct catalog **catalog_out, struct err *err)
{
    *catalog_out = NULL;
    struct catalog *catalog = mem_must_calloc(1, sizeof *catalog);
    catalog->vfs = vfs;
    int len = snprintf(catalog->path, sizeof catalog->path, "%s/CATALOG", dir);
    CHECK(len > 0 && (size_t)len < sizeof catalog->path);
    size_t file_len;
    enum omen_err rc = state_load(catalog, incarnation, &file_len, err);
    if (rc != OMEN_OK) {
        mem_free(catalog);
        return rc;
    }
    catalog_room_keep(vfs, catalog->path, file_len);
    pthread_mutex_init(&catalog->mutex, NULL);
    pthread_mutex_init(&catalog->file_mutex, NULL);
    atomic_init(&catalog->applied, catalog->state->sequence);
    atomic_init(&catalog->durable, catalog->state->sequence);
    *catalog_out = catalog;
    return OMEN_OK;
}

void catalog_close(struct catalog *catalog)
{
    cluster_state_unref(catalog->state);
    pthread_mutex_destroy(&catalog->file_mutex);
    pthread_mutex_destroy(&catalog->mutex);
    mem_free(catalog);
}

struct cluster_state *cluster_state_acquire(struct catalog *catalog)
{
    pthread_mutex_lock(&catalog->mutex);
    struct cluster_state *state = cluster_state_ref(catalog->state);
    pthread_mutex_unlock(&catalog->mutex);
    return state;
}

struct map *catalog_map(struct catalog *catalog)
{
    pthread_mutex_lock(&catalog->mutex);
    struct map *map = map_ref(catalog->state->map);
    pthread_mutex_unlock(&catalog->mutex);
    return map;
}

uint32_t catalog_version(struct catalog *catalog)
{
    pthread_mutex_lock(&catalog->mutex);
    uint32_t version = catalog->state->version;
    pthread_mutex_unlock(&catalog->mutex);
    return version;
}

uint64_t catalog_next_group(struct catalog *catalog)
{
    pthread_mutex_lock(&catalog->mutex);
    uint64_t next = catalog->state->next_group;
    pthread_mutex_unlock(&catalog->mutex);
    return next;
}
