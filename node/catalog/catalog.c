/* The catalog's state machine. Apply works on a copy of the map and swaps it in, so readers keep what they hold.
 *
 * Threads: apply on an apply worker, checkpoint on the checkpoint thread, catalog_map anywhere; `mutex` guards `state`.
 * Cost: a change copies the map, a few KB per collection; changes are rare. */
#include "common/err.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "common/check.h"
#include "common/log.h"
#include "node/catalog/catalog.h"
#include "node/catalog/catalog_format.h"

struct catalog {
    struct vfs *vfs;
    char path[4096];
    pthread_mutex_t mutex;
    struct catalog_state state; /* guarded by mutex */
    _Atomic uint64_t applied, durable;
};

/* ---- changes: `state` is the new one, being made; rejections leave it to be thrown away ---- */

static struct map_collection *collection_by_name(struct map *map, const char *name)
{
    for (uint32_t i = 0; i < map->collection_count; i++) {
        if (strcmp(map->collections[i].name, name) == 0) return &map->collections[i];
    }
    return NULL;
}

/* Position of alias `name`, or where it would go. */
static uint32_t alias_position(const struct map *map, const char *name, bool *found_out)
{
    uint32_t i = 0;
    while (i < map->alias_count && strcmp(map->aliases[i].name, name) < 0) i++;
    *found_out = i < map->alias_count && strcmp(map->aliases[i].name, name) == 0;
    return i;
}

static enum omen_err name_free(struct map *map, const char *name, struct err *err)
{
    bool is_alias;
    alias_position(map, name, &is_alias);
    if (is_alias) return err_set(err, OMEN_EEXISTS, "collection", "\"%s\" is an alias", name);
    if (collection_by_name(map, name) != NULL) {
        return err_set(err, OMEN_EEXISTS, "collection", "collection \"%s\" exists", name);
    }
    return OMEN_OK;
}

static enum omen_err check_create(struct map *map, const struct catalog_entry *entry, struct err *err)
{
    const struct catalog_change *change = &entry->change;
    enum omen_err rc = map_check_name(change->name, strlen(change->name), "collection", err);
    if (rc == OMEN_OK) rc = map_check_schema(&change->schema, err);
    if (rc == OMEN_OK) rc = name_free(map, change->name, err);
    if (rc != OMEN_OK) return rc;
    if (change->shard_count == 0 || change->shard_count > OMEN_SHARDS_MAX) {
        return err_set(err, OMEN_EINVAL, "shards", "must be 1 to %d, got %u", OMEN_SHARDS_MAX,
                change->shard_count);
    }
    if (change->replication == 0 || change->replication > entry->node_count) {
        return err_set(err, OMEN_EINVAL, "replication", "is %u, there %s %u node%s to hold replicas",
                change->replication, entry->node_count == 1 ? "is" : "are", entry->node_count,
                entry->node_count == 1 ? "" : "s");
    }
    if (!(change->recall_target > 0 && change->recall_target <= 1)) {
        return err_set(err, OMEN_EINVAL, "recall_target", "must be above 0 and at most 1");
    }
    if (map->collection_count >= OMEN_COLLECTIONS_MAX) {
        return err_set(err, OMEN_ETOOBIG, "collection", "there are %d collections, the limit",
                OMEN_COLLECTIONS_MAX);
    }
    uint64_t shards = change->shard_count;
    for (uint32_t i = 0; i < map->collection_count; i++) shards += map->collections[i].shard_count;
    if (shards > CATALOG_SHARDS_MAX) {
        return err_set(err, OMEN_ETOOBIG, "shards", "there would be %llu shards in all, the limit is %u",
                (unsigned long long)shards, CATALOG_SHARDS_MAX);
    }
    return OMEN_OK;
}

/* Shards in order of slots; replicas go round the nodes so that neighbours lie on different ones. */
static void place_shards(struct catalog_state *state, const struct catalog_entry *entry,
        struct map_collection *c)
{
    map_cut_slots(c->shards, c->shard_count);
    for (uint32_t i = 0; i < c->shard_count; i++) {
        struct map_shard *shard = &c->shards[i];
        shard->shard_id = state->next_group++;
        shard->replica_count = entry->change.replication;
        for (uint32_t r = 0; r < shard->replica_count; r++) {
            shard->replica_ids[r] = state->next_replica++;
            shard->node_ids[r] = entry->node_ids[(i + r) % entry->node_count];
        }
    }
}

/* OMEN_ENOMEM is a local fault: it stops the replica and changes nothing. */
static enum omen_err apply_create(struct catalog_state *state, const struct catalog_entry *entry,
        struct catalog_outcome *outcome)
{
    struct map *map = state->map;
    const struct catalog_change *change = &entry->change;
    outcome->code = check_create(map, entry, &outcome->err);
    if (outcome->code != OMEN_OK) return OMEN_OK;
    struct map_collection *grown = mem_realloc(map->collections, (map->collection_count + 1) * sizeof *grown);
    if (grown == NULL) return OMEN_ENOMEM;
    map->collections = grown;
    struct map_shard *shards = mem_calloc(change->shard_count, sizeof *shards);
    if (shards == NULL) return OMEN_ENOMEM;
    uint32_t at = 0;
    while (at < map->collection_count && strcmp(grown[at].name, change->name) < 0) at++;
    memmove(grown + at + 1, grown + at, (map->collection_count - at) * sizeof *grown);
    map->collection_count++;
    struct map_collection *c = &grown[at];
    memset(c, 0, sizeof *c);
    c->id = state->next_collection++;
    memcpy(c->name, change->name, sizeof c->name);
    c->schema = change->schema;
    c->recall_target = change->recall_target;
    c->replication = change->replication;
    c->created_ms = entry->log_time_ms;
    c->shards = shards;
    c->shard_count = change->shard_count;
    place_shards(state, entry, c);
    outcome->collection_id = c->id;
    return OMEN_OK;
}

static void apply_drop(struct catalog_state *state, const struct catalog_change *change,
        struct catalog_outcome *outcome)
{
    struct map *map = state->map;
    struct map_collection *c = collection_by_name(map, change->name);
    if (c == NULL) {
        bool is_alias;
        alias_position(map, change->name, &is_alias);
        outcome->code = err_set(&outcome->err, OMEN_ENOTFOUND, "collection",
                is_alias ? "\"%s\" is an alias: drop the alias, or the collection by its own name"
                         : "no collection \"%s\"",
                change->name);
        return;
    }
    outcome->collection_id = c->id;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < map->alias_count; i++) {
        if (map->aliases[i].collection_id != c->id) map->aliases[kept++] = map->aliases[i];
    }
    map->alias_count = kept;
    mem_free(c->shards);
    uint32_t at = (uint32_t)(c - map->collections);
    memmove(c, c + 1, (map->collection_count - at - 1) * sizeof *c);
    map->collection_count--;
}

static enum omen_err apply_alias_set(struct catalog_state *state, const struct catalog_change *change,
        struct catalog_outcome *outcome)
{
    struct map *map = state->map;
    struct err *err = &outcome->err;
    outcome->code = map_check_name(change->name, strlen(change->name), "alias", err);
    if (outcome->code != OMEN_OK) return OMEN_OK;
    const struct map_collection *target = map_find(map, change->target, strlen(change->target));
    if (target == NULL) {
        outcome->code = err_set(err, OMEN_ENOTFOUND, "collection", "no collection \"%s\"", change->target);
        return OMEN_OK;
    }
    if (collection_by_name(map, change->name) != NULL) {
        outcome->code = err_set(err, OMEN_EEXISTS, "alias", "\"%s\" is a collection", change->name);
        return OMEN_OK;
    }
    bool found;
    uint32_t at = alias_position(map, change->name, &found);
    outcome->collection_id = target->id;
    if (found) { /* moving an alias is how readers are switched over at once */
        map->aliases[at].collection_id = target->id;
        return OMEN_OK;
    }
    if (map->alias_count >= OMEN_ALIASES_MAX) {
        outcome->code = err_set(err, OMEN_ETOOBIG, "alias", "there are %d aliases, the limit",
                OMEN_ALIASES_MAX);
        return OMEN_OK;
    }
    struct map_alias *grown = mem_realloc(map->aliases, (map->alias_count + 1) * sizeof *grown);
    if (grown == NULL) return OMEN_ENOMEM;
    map->aliases = grown;
    memmove(grown + at + 1, grown + at, (map->alias_count - at) * sizeof *grown);
    map->alias_count++;
    memset(&grown[at], 0, sizeof grown[at]);
    memcpy(grown[at].name, change->name, sizeof grown[at].name);
    grown[at].collection_id = target->id;
    return OMEN_OK;
}

static void apply_alias_drop(struct catalog_state *state, const struct catalog_change *change,
        struct catalog_outcome *outcome)
{
    struct map *map = state->map;
    bool found;
    uint32_t at = alias_position(map, change->name, &found);
    if (!found) {
        outcome->code = err_set(&outcome->err, OMEN_ENOTFOUND, "alias", "no alias \"%s\"", change->name);
        return;
    }
    outcome->collection_id = map->aliases[at].collection_id;
    memmove(&map->aliases[at], &map->aliases[at + 1], (map->alias_count - at - 1) * sizeof *map->aliases);
    map->alias_count--;
}

static enum omen_err change_apply(struct catalog_state *state, const struct catalog_entry *entry,
        struct catalog_outcome *outcome)
{
    switch (entry->change.kind) {
    case CATALOG_CREATE: return apply_create(state, entry, outcome);
    case CATALOG_DROP: apply_drop(state, &entry->change, outcome); return OMEN_OK;
    case CATALOG_ALIAS_SET: return apply_alias_set(state, &entry->change, outcome);
    case CATALOG_ALIAS_DROP: apply_alias_drop(state, &entry->change, outcome); return OMEN_OK;
    }
    outcome->code = err_set(&outcome->err, OMEN_EVERSION, "", "unknown change of the catalog");
    return OMEN_OK;
}

/* ---- fsm ---- */

static enum omen_err fsm_apply(void *self, uint64_t sequence, const void *entry, uint32_t len,
        void *proposal_arg, struct err *err)
{
    struct catalog *catalog = self;
    if (sequence <= atomic_load(&catalog->applied)) return OMEN_OK;
    struct catalog_entry decoded;
    enum omen_err rc = catalog_entry_decode(entry, len, &decoded, err);
    if (rc != OMEN_OK) return rc;
    struct catalog_outcome nobody, *outcome = proposal_arg != NULL ? proposal_arg : &nobody;
    memset(outcome, 0, sizeof *outcome);

    /* Only apply changes the state, so it may be read without the lock here. */
    struct catalog_state next = catalog->state;
    next.map = map_clone(catalog->state.map);
    rc = next.map == NULL ? OMEN_ENOMEM : change_apply(&next, &decoded, outcome);
    if (rc != OMEN_OK) {
        if (next.map != NULL) map_unref(next.map);
        return err_set(err, rc, "", "no memory to change the catalog");
    }
    struct map *unused = next.map;
    pthread_mutex_lock(&catalog->mutex);
    if (outcome->code == OMEN_OK) {
        next.map->epoch++;
        unused = catalog->state.map;
        catalog->state = next;
    }
    catalog->state.sequence = sequence;
    pthread_mutex_unlock(&catalog->mutex);
    map_unref(unused);
    atomic_store(&catalog->applied, sequence);
    return OMEN_OK;
}

static uint64_t fsm_applied(void *self) { return atomic_load(&((struct catalog *)self)->applied); }
static uint64_t fsm_log_needed_from(void *self) { return atomic_load(&((struct catalog *)self)->durable); }

static enum omen_err fsm_checkpoint(void *self, struct err *err)
{
    struct catalog *catalog = self;
    pthread_mutex_lock(&catalog->mutex);
    struct catalog_state state = catalog->state;
    map_ref(state.map);
    pthread_mutex_unlock(&catalog->mutex);
    enum omen_err rc = OMEN_OK;
    if (state.sequence > atomic_load(&catalog->durable)) {
        struct buf b;
        buf_init(&b);
        catalog_state_encode(&state, &b);
        rc = b.failed ? err_set(err, OMEN_ENOMEM, "", "no memory to write the catalog")
                      : vfs_replace_file(catalog->vfs, catalog->path, b.data, b.len, err);
        buf_fini(&b);
        if (rc == OMEN_OK) atomic_store(&catalog->durable, state.sequence);
    }
    map_unref(state.map);
    return rc;
}

void catalog_fsm(struct catalog *catalog, struct replica_fsm *fsm_out)
{
    *fsm_out = (struct replica_fsm){
        .self = catalog,
        .apply = fsm_apply,
        .applied = fsm_applied,
        .log_needed_from = fsm_log_needed_from,
        .checkpoint = fsm_checkpoint,
    };
}

/* ---- life ---- */

static enum omen_err state_load(struct catalog *catalog, uint64_t incarnation, struct err *err)
{
    bool there;
    enum omen_err rc = vfs_exists(catalog->vfs, catalog->path, &there, err);
    if (rc != OMEN_OK) return rc;
    if (!there) {
        struct map *map = mem_calloc(1, sizeof *map);
        if (map == NULL) return err_set(err, OMEN_ENOMEM, "", "no memory for the catalog");
        map->epoch = 1;
        map->incarnation = incarnation;
        atomic_init(&map->refs, 1);
        catalog->state = (struct catalog_state){ 0, 1, CATALOG_GROUP + 1, 2, map };
        return OMEN_OK;
    }
    uint8_t *bytes;
    size_t len;
    rc = vfs_read_file(catalog->vfs, catalog->path, CATALOG_FILE_BYTES_MAX, &bytes, &len, err);
    if (rc != OMEN_OK) return rc;
    rc = catalog_state_decode(bytes, len, catalog->path, &catalog->state, err);
    mem_free(bytes);
    if (rc != OMEN_OK) return rc;
    if (catalog->state.map->incarnation == incarnation) return OMEN_OK;
    map_unref(catalog->state.map);
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
    enum omen_err rc = state_load(catalog, incarnation, err);
    if (rc != OMEN_OK) {
        mem_free(catalog);
        return rc;
    }
    pthread_mutex_init(&catalog->mutex, NULL);
    atomic_init(&catalog->applied, catalog->state.sequence);
    atomic_init(&catalog->durable, catalog->state.sequence);
    *catalog_out = catalog;
    return OMEN_OK;
}

void catalog_close(struct catalog *catalog)
{
    map_unref(catalog->state.map);
    pthread_mutex_destroy(&catalog->mutex);
    mem_free(catalog);
}

struct map *catalog_map(struct catalog *catalog)
{
    pthread_mutex_lock(&catalog->mutex);
    struct map *map = map_ref(catalog->state.map);
    pthread_mutex_unlock(&catalog->mutex);
    return map;
}

uint64_t catalog_next_group(struct catalog *catalog)
{
    pthread_mutex_lock(&catalog->mutex);
    uint64_t next = catalog->state.next_group;
    pthread_mutex_unlock(&catalog->mutex);
    return next;
}
