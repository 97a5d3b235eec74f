/* Changes of the catalog, and what they entail on this node.
 *
 * A change is recorded (proposed, committed, applied) before anything is done about it, so a crash in between is healed at
 * the next start: shards that the catalog names are opened, created if need be; directories that it no longer names are
 * removed (CORRECTNESS C7).
 *
 *   create: recorded -> directories and replicas opened -> map published -> answered
 *           an open that fails -> a drop is recorded -> what was opened is removed -> answered with the reason
 *   drop:   recorded -> map published -> calls in flight end -> replica dropped from the log -> files removed -> answered
 *
 * One thread, one change at a time; callers wait in a bounded queue. */
#include "common/err.h"

#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#include "common/check.h"
#include "common/log.h"
#include "node/member/member.h"
#include "node/node_impl.h"

struct catalog_call {
    struct shard_call *call;
    struct catalog_call *next;
};

/* ---- proposing ---- */

struct proposal {
    pthread_mutex_t mutex;
    pthread_cond_t done;
    bool finished;
    enum omen_err result;
    struct err err;
    struct catalog_outcome outcome;
};

static void proposal_done(void *arg, enum omen_err result, uint64_t sequence, const struct err *err)
{
    struct proposal *p = arg;
    pthread_mutex_lock(&p->mutex);
    p->finished = true;
    p->result = result;
    if (result != OMEN_OK && err != NULL) p->err = *err;
    pthread_cond_signal(&p->done);
    pthread_mutex_unlock(&p->mutex);
}

/* Record a change and wait until it is applied. */
static enum omen_err catalog_propose(struct node *node, const struct catalog_change *change,
        uint64_t *collection_id_out, struct err *err)
{
    uint32_t node_id = (uint32_t)node->dir.identity.node_id;
    uint8_t *entry;
    uint32_t len;
    enum omen_err rc = catalog_entry_encode(change, clock_wall_ms(node->options.clock), &node_id, 1, 1,
            &entry, &len);
    if (rc != OMEN_OK) return err_set(err, rc, "", "no memory to record the change");
    struct proposal p = { .finished = false };
    pthread_mutex_init(&p.mutex, NULL);
    pthread_cond_init(&p.done, NULL);
    replica_propose(node->catalog_replica, entry, len, &p.outcome, proposal_done, &p);
    pthread_mutex_lock(&p.mutex);
    while (!p.finished) pthread_cond_wait(&p.done, &p.mutex);
    pthread_mutex_unlock(&p.mutex);
    pthread_cond_destroy(&p.done);
    pthread_mutex_destroy(&p.mutex);
    rc = p.result != OMEN_OK ? p.result : p.outcome.code;
    *collection_id_out = p.outcome.collection_id;
    if (rc == OMEN_OK) return OMEN_OK;
    *err = p.result != OMEN_OK ? p.err : p.outcome.err;
    if (err->code != rc) err_set(err, rc, "", "the change could not be recorded: %s", err_name(rc));
    return rc;
}

/* ---- effects ---- */

static void shard_remove(struct node *node, const struct map_shard *shard)
{
    struct shard_host *host = node_shard_take(node, shard->shard_id);
    if (host != NULL) {
        shard_host_retire(host, OMEN_ENOTFOUND);
        shard_host_drop(host);
    } else {
        replica_host_forget(node->replica_host, shard->shard_id);
    }
    char dir[NODE_PATH_BYTES_MAX];
    data_dir_shard_path(&node->dir, shard->shard_id, shard->replica_ids[0], dir);
    struct err err;
    /* What is left behind goes at the next start. */
    if (vfs_remove_tree(node->options.vfs, dir, &err) != OMEN_OK)
        LOG_WARN("shard.remove", "error=\"%s\"", err.message);
    LOG_INFO("shard.drop", "shard=%llu", (unsigned long long)shard->shard_id);
}

static void collection_remove(struct node *node, const struct map_collection *collection)
{
    for (uint32_t i = 0; i < collection->shard_count; i++) shard_remove(node, &collection->shards[i]);
}

/* The change is recorded: open the new shards. When one cannot be opened the collection is dropped again. */
static enum omen_err create_effects(struct node *node, const char *name, struct err *err)
{
    struct map *map = catalog_map(node->catalog);
    const struct map_collection *collection = map_find(map, name, strlen(name));
    CHECK(collection != NULL); /* nobody else changes the catalog */
    enum omen_err rc = OMEN_OK;
    for (uint32_t i = 0; rc == OMEN_OK && i < collection->shard_count; i++) {
        rc = node_shard_open(node, collection, &collection->shards[i], collection->shards[i].replica_ids[0],
                NULL, err);
    }
    if (rc == OMEN_OK) {
        LOG_INFO("collection.create", "collection=%s id=%llu shards=%u", collection->name,
                (unsigned long long)collection->id, collection->shard_count);
        node_map_publish(node, map_ref(map));
    } else {
        LOG_ERROR("collection.create", "collection=%s error=\"%s\"", collection->name, err->message);
        struct catalog_change undo = { .kind = CATALOG_DROP };
        memcpy(undo.name, collection->name, sizeof undo.name);
        struct err undo_err;
        uint64_t id;
        if (catalog_propose(node, &undo, &id, &undo_err) == OMEN_OK) {
            collection_remove(node, collection);
            node_map_publish(node, catalog_map(node->catalog));
        } else { /* stays in the catalog, unpublished; the next start opens it */
            LOG_ERROR("collection.create", "collection=%s undo_error=\"%s\"", collection->name,
                    undo_err.message);
        }
    }
    map_unref(map);
    return rc;
}

static void drop_effects(struct node *node, struct map *before, uint64_t collection_id)
{
    const struct map_collection *collection = map_find_id(before, collection_id);
    node_map_publish(node, catalog_map(node->catalog));
    if (collection == NULL) return;
    LOG_INFO("collection.drop", "collection=%s id=%llu", collection->name,
            (unsigned long long)collection->id);
    collection_remove(node, collection);
}

static bool count_file(void *arg, const char *name)
{
    ++*(uint64_t *)arg;
    return true;
}

/* A process out of file descriptors can do nothing right: streams do not grow, the log does not go on. So a
 * quarter of what the limit allows is left to the shards there are. */
static enum omen_err files_admit(uint32_t shard_count, struct err *err)
{
    struct rlimit limit;
    struct err ignored;
    uint64_t open_files = 0, need = (uint64_t)shard_count * NODE_FILES_PER_SHARD;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return OMEN_OK;
    if (vfs_list(vfs_posix(), "/proc/self/fd", count_file, &open_files, &ignored) != OMEN_OK) return OMEN_OK;
    if (open_files + need <= limit.rlim_cur / 4 * 3) return OMEN_OK;
    return err_set(err, OMEN_ETOOBIG, "shards",
            "%u more shards take about %llu files, %llu of the %llu that this process may have are open: raise "
            "its limit (ulimit -n, LimitNOFILE=)",
            shard_count, (unsigned long long)need, (unsigned long long)open_files,
            (unsigned long long)limit.rlim_cur);
}

/* Refusals for want of room, which apply may not make itself (CORRECTNESS A1). */
static enum omen_err create_admit(struct node *node, const struct catalog_change *change, struct err *err)
{
    if (atomic_load(&node->env.disk_full)) {
        pthread_mutex_lock(&node->env.disk_lock);
        err_set(err, OMEN_EFULL, "", "%s", node->env.disk_text);
        pthread_mutex_unlock(&node->env.disk_lock);
        return OMEN_EFULL;
    }
    uint64_t shards = (uint64_t)node->slot_count +
            change->shard_count; /* only this thread changes slot_count */
    if (shards > node->options.shards_max) {
        return err_set(err, OMEN_ETOOBIG, "shards", "this node would hold %llu shards, limits.shards is %u",
                (unsigned long long)shards, node->options.shards_max);
    }
    return files_admit(change->shard_count, err);
}

/* Whether it was made before under its op id: then `call` gets the first outcome and nothing else happens. One that was
 * undone, or whose collection was dropped since, is told as that. */
static bool catalog_settled(struct node *node, struct shard_call *call)
{
    const struct catalog_change *change = &call->in.catalog;
    struct cluster_state *state = cluster_state_acquire(node->catalog);
    const struct cluster_result *r = cluster_state_result(state, &change->asked_as, (uint32_t)change->kind);
    bool gone = r != NULL && change->kind == CATALOG_CREATE &&
            map_find_id(state->map, r->collection_id) == NULL;
    err_clear(&call->err);
    call->out.catalog.collection_id = r == NULL ? 0 : r->collection_id;
    call->code = !gone ? OMEN_OK
                       : err_set(&call->err, OMEN_ENOTFOUND, "collection",
                                 "collection \"%s\" was created and is gone again", change->name);
    bool settled = r != NULL;
    cluster_state_unref(state);
    return settled;
}

static void catalog_run(struct node *node, struct shard_call *call)
{
    const struct catalog_change *change = &call->in.catalog;
    struct err *err = &call->err;
    err_clear(err);
    struct map *before = catalog_map(node->catalog);
    enum omen_err rc = cluster_op_id_timely(&change->asked_as, clock_wall_ms(node->options.clock), err);
    if (rc == OMEN_OK && change->kind == CATALOG_CREATE) rc = create_admit(node, change, err);
    uint64_t collection_id = 0;
    if (rc == OMEN_OK) rc = catalog_propose(node, change, &collection_id, err);
    if (rc == OMEN_OK) {
        if (change->kind == CATALOG_CREATE) {
            rc = create_effects(node, change->name, err);
        } else if (change->kind == CATALOG_DROP) {
            drop_effects(node, before, collection_id);
        } else {
            node_map_publish(node, catalog_map(node->catalog));
        }
    }
    map_unref(before);
    call->out.catalog.collection_id = collection_id;
    call->code = rc;
    call->done(call);
}

/* ---- thread and queue ---- */

static void *catalog_main(void *arg)
{
    struct node *node = arg;
    pthread_setname_np(pthread_self(), "omen-catalog");
    pthread_mutex_lock(&node->catalog_lock);
    for (;;) {
        while (node->catalog_head == NULL && !node->catalog_stop) {
            pthread_cond_wait(&node->catalog_wake, &node->catalog_lock);
        }
        struct catalog_call *item = node->catalog_head;
        if (item == NULL) break;
        node->catalog_head = item->next;
        if (node->catalog_head == NULL) node->catalog_tail = &node->catalog_head;
        node->catalog_queued--;
        pthread_mutex_unlock(&node->catalog_lock);
        struct shard_call *call = item->call;
        mem_free(item);
        bool late = call->deadline_ns != 0 && clock_monotonic_ns(node->options.clock) >= call->deadline_ns;
        if (late) {
            call->code = err_set(&call->err, OMEN_EDEADLINE, "",
                    "the deadline passed before the change was begun");
            call->done(call);
        } else if (node->member != NULL) {
            member_catalog_call(node->member, call);
        } else if (catalog_settled(node, call)) {
            call->done(call);
        } else {
            catalog_run(node, call);
        }
        pthread_mutex_lock(&node->catalog_lock);
    }
    pthread_mutex_unlock(&node->catalog_lock);
    return NULL;
}

void node_catalog_submit(struct node *node, struct shard_call *call)
{
    struct catalog_call *item = mem_must_calloc(1, sizeof *item);
    item->call = call;
    pthread_mutex_lock(&node->catalog_lock);
    bool stopping = node->catalog_stop;
    bool taken = !stopping && node->catalog_queued < NODE_CATALOG_CALLS_MAX;
    if (taken) {
        *node->catalog_tail = item;
        node->catalog_tail = &item->next;
        node->catalog_queued++;
        pthread_cond_signal(&node->catalog_wake);
    }
    pthread_mutex_unlock(&node->catalog_lock);
    if (taken) return;
    mem_free(item);
    call->code = err_set(&call->err, stopping ? OMEN_EUNAVAILABLE : OMEN_EBUSY, "",
            stopping ? "the node is stopping" : "too many changes of collections are waiting");
    if (!stopping) call->err.retry_after_ms = 200;
    call->done(call);
}

enum omen_err node_catalog_start(struct node *node, struct err *err)
{
    int rc = pthread_create(&node->catalog_thread, NULL, catalog_main, node);
    if (rc != 0) return err_os(err, rc, "start a thread for", "the catalog");
    node->catalog_started = true;
    return OMEN_OK;
}

void node_catalog_stop(struct node *node)
{
    if (!node->catalog_started) return;
    pthread_mutex_lock(&node->catalog_lock);
    node->catalog_stop = true;
    pthread_cond_signal(&node->catalog_wake);
    pthread_mutex_unlock(&node->catalog_lock);
    pthread_join(node->catalog_thread, NULL);
    node->catalog_started = false;
}

/* ---- healing at start ---- */

struct orphan_scan {
    struct node *node;
    struct map *map;
    uint64_t next_group;
    uint64_t (*orphans)[2]; /* {group, replica} */
    uint32_t count;
    uint64_t ahead; /* a group the catalog has never given out; 0 = none */
};

static bool map_has_replica(const struct map *map, uint64_t group, uint64_t replica_id)
{
    for (uint32_t i = 0; i < map->collection_count; i++) {
        for (uint32_t s = 0; s < map->collections[i].shard_count; s++) {
            const struct map_shard *shard = &map->collections[i].shards[s];
            if (shard->shard_id == group) return shard->replica_ids[0] == replica_id;
        }
    }
    return false;
}

static bool orphan_each(void *arg, const char *name)
{
    struct orphan_scan *scan = arg;
    uint64_t group, replica_id;
    if (!data_dir_parse_shard_name(name, &group, &replica_id)) {
        LOG_WARN("shard.unknown_file", "name=%s", name); /* not ours: left alone */
        return true;
    }
    if (map_has_replica(scan->map, group, replica_id)) return true;
    if (group >= scan->next_group) {
        scan->ahead = group;
        return false;
    }
    scan->orphans = mem_must_realloc(scan->orphans, (scan->count + 1) * sizeof *scan->orphans);
    scan->orphans[scan->count][0] = group;
    scan->orphans[scan->count][1] = replica_id;
    scan->count++;
    return true;
}

/* Directories of dropped shards go. One that the catalog cannot have dropped means that the catalog is not the one
 * these data were written with: then nothing is touched. */
static enum omen_err orphans_remove(struct node *node, struct map *map, struct err *err)
{
    char shards[NODE_PATH_BYTES_MAX], dir[NODE_PATH_BYTES_MAX];
    data_dir_path(&node->dir, "shards", shards);
    struct orphan_scan scan = { .node = node, .map = map, .next_group = catalog_next_group(node->catalog) };
    enum omen_err rc = vfs_list(node->options.vfs, shards, orphan_each, &scan, err);
    if (rc == OMEN_OK && scan.ahead != 0) {
        rc = err_set(err, OMEN_ECORRUPT, "",
                "%s holds shard %llu, but the catalog has only given out ids below %llu: the "
                "catalog is older than the data, nothing was changed",
                shards, (unsigned long long)scan.ahead, (unsigned long long)scan.next_group);
    }
    for (uint32_t i = 0; rc == OMEN_OK && i < scan.count; i++) {
        replica_host_forget(node->replica_host, scan.orphans[i][0]);
        data_dir_shard_path(&node->dir, scan.orphans[i][0], scan.orphans[i][1], dir);
        LOG_INFO("shard.remove", "dir=%s reason=dropped", dir);
        rc = vfs_remove_tree(node->options.vfs, dir, err);
    }
    mem_free(scan.orphans);
    return rc;
}

enum omen_err node_catalog_heal(struct node *node, struct err *err)
{
    struct map *map = catalog_map(node->catalog);
    enum omen_err rc = orphans_remove(node, map, err);
    for (uint32_t i = 0; rc == OMEN_OK && i < map->collection_count; i++) {
        const struct map_collection *collection = &map->collections[i];
        for (uint32_t s = 0; rc == OMEN_OK && s < collection->shard_count; s++) {
            rc = node_shard_open(node, collection, &collection->shards[s],
                    collection->shards[s].replica_ids[0], NULL, err);
        }
        if (rc != OMEN_OK)
            LOG_ERROR("collection.open", "collection=%s error=\"%s\"", collection->name, err->message);
    }
    map_unref(map);
    return rc;
}
