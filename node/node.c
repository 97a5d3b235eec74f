/* The node: opens a data directory, keeps the table of its shards, and is the shard_service that routers ask.
 *
 * Threads: calls come in on the network's; this file takes table_lock for the look-up only. Shards are put into the table
 * and taken out by node_open, node_close and the catalog's thread. */
#include "common/err.h"

#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#include "common/check.h"
#include "common/log.h"
#include "node/member/fields.h"
#include "node/member/member.h"
#include "node/fetch.h"
#include "node/node_impl.h"
#include "node/ship.h"

#define MIB (1ull << 20)
#define DELTA_SHARE 8u /* of the memory budget: a shard's delta is merged when it is larger */
#define DELTA_BYTES_MIN MIB
#define LOG_SHARE                                                                                            \
    2u /* of the memory budget: what the log keeps, which is read into memory at the next start */
#define LOG_SEGMENT_SHARE 8u /* of that: a segment, and what a shard writes between two checkpoints */
#define LOG_SEGMENT_MIN (4 * MIB)
#define TAIL_ROWS_MAX 2000000u /* scanned by sketch in some hundred microseconds */

void node_options_default(struct node_options *options)
{
    *options = (struct node_options){
        .data_dir = "omendb-data",
        .vfs = vfs_posix(),
        .clock = clock_system(),
        .search_queue_max = 1024,
        .read_arena_bytes_max = 128 * MIB,
        .shard_inflight_bytes_max = 64 * MIB,
        .node_inflight_bytes_max = 256 * MIB,
        .shards_max = 1024,
        .disk_min_free_percent = 10,
        .recall_cpu_percent = 1,
        .index_threads = 1,
        .index_tail_rows_max = TAIL_ROWS_MAX,
    };
    replica_host_options_default(&options->host);
    shard_store_options_default(&options->store);
}

/* ---- the table ---- */

/* Position of the first slot whose id is not below `shard_id`; needs table_lock. */
static uint32_t table_position(const struct node *node, uint64_t shard_id)
{
    uint32_t low = 0, high = node->slot_count;
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (node->slots[mid].shard_id < shard_id) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    return low;
}

enum omen_err node_shard_open(struct node *node, const struct map_collection *collection,
        const struct map_shard *shard, uint64_t replica_id, const struct node_shard_raft *raft,
        struct err *err)
{
    char dir[NODE_PATH_BYTES_MAX];
    data_dir_shard_path(&node->dir, shard->shard_id, replica_id, dir);
    struct shard_host_options options = {
        .env = &node->env,
        .dir = dir,
        .shard_id = shard->shard_id,
        .replica_id = replica_id,
        .collection_id = collection->id,
        .base_sequence = shard->base_sequence,
        .schema = &collection->schema,
        .collection_name = collection->name,
        .recall_target = collection->recall_target,
        .options = collection->options,
        .raft = raft != NULL,
    };
    if (raft != NULL) {
        options.node_id = node_number(node);
        options.peers = raft->peers;
        options.bootstrap = raft->bootstrap;
        options.bootstrap_count = raft->bootstrap_count;
    }
    struct shard_host *host;
    enum omen_err rc = shard_host_open(&options, &host, err);
    if (rc != OMEN_OK) return rc;
    struct shard_slot slot = { .shard_id = shard->shard_id, .shard = host };
    node_metrics_shard(node, &slot, collection->name);
    pthread_rwlock_wrlock(&node->table_lock);
    CHECK(node->slot_count < NODE_SHARDS_MAX);
    node->slots = mem_must_realloc(node->slots, (node->slot_count + 1) * sizeof *node->slots);
    uint32_t at = table_position(node, shard->shard_id);
    memmove(&node->slots[at + 1], &node->slots[at], (node->slot_count - at) * sizeof *node->slots);
    node->slots[at] = slot;
    node->slot_count++;
    pthread_rwlock_unlock(&node->table_lock);
    return OMEN_OK;
}

struct shard_host *node_shard_take(struct node *node, uint64_t shard_id)
{
    struct shard_host *shard = NULL;
    pthread_rwlock_wrlock(&node->table_lock);
    uint32_t at = table_position(node, shard_id);
    if (at < node->slot_count && node->slots[at].shard_id == shard_id) {
        shard = node->slots[at].shard;
        memmove(&node->slots[at], &node->slots[at + 1], (node->slot_count - at - 1) * sizeof *node->slots);
        node->slot_count--;
        node_metrics_shard_drop(node, shard_id); /* under the lock, so that no collector holds its gauges */
    }
    pthread_rwlock_unlock(&node->table_lock);
    return shard;
}

struct shard_host *node_shard_hold(struct node *node, uint64_t shard_id)
{
    pthread_rwlock_rdlock(&node->table_lock);
    uint32_t at = table_position(node, shard_id);
    struct shard_host *shard = at < node->slot_count && node->slots[at].shard_id == shard_id
            ? node->slots[at].shard
            : NULL;
    if (shard != NULL) shard_host_hold(shard);
    pthread_rwlock_unlock(&node->table_lock);
    return shard;
}

/* To the shards that are open here. Needs the table lock. */
static void options_spread(struct node *node, const struct map *map)
{
    for (uint32_t i = 0; i < map->collection_count; i++) {
        const struct map_collection *c = &map->collections[i];
        for (uint32_t s = 0; s < c->shard_count; s++) {
            uint32_t at = table_position(node, c->shards[s].shard_id);
            if (at < node->slot_count && node->slots[at].shard_id == c->shards[s].shard_id)
                shard_host_set_options(node->slots[at].shard, c->recall_target, &c->options);
        }
    }
}

void node_map_publish(struct node *node, struct map *map)
{
    pthread_rwlock_wrlock(&node->table_lock);
    struct map *old = node->map;
    node->map = map;
    options_spread(node, map);
    pthread_rwlock_unlock(&node->table_lock);
    if (old != NULL) map_unref(old);
}

/* ---- service ---- */

static void service_submit(void *self, struct shard_call *call)
{
    struct node *node = self;
    call->service_data = NULL;
    if (call->kind == CALL_CATALOG) {
        node_catalog_submit(node, call);
        return;
    }
    if (call->kind == CALL_CLUSTER && node->member != NULL) {
        member_cluster_call(node->member, call);
        return;
    }
    if (call->kind == CALL_CLUSTER) {
        call->code = err_set(&call->err, OMEN_EINVAL, "", "this is a single node, it has no cluster");
        call->done(call);
        return;
    }
    struct shard_host *shard = node_shard_hold(node, call->shard_id);
    if (shard == NULL && node->member != NULL) { /* not open yet, or moved: another replica may serve */
        call->code = err_set(&call->err, OMEN_EUNAVAILABLE, "", "shard %llu is not open on this node",
                (unsigned long long)call->shard_id);
        call->done(call);
        return;
    }
    if (shard == NULL) {
        call->code = err_set(&call->err, OMEN_ENOTFOUND, "collection",
                "shard %llu is not here: the collection was dropped", (unsigned long long)call->shard_id);
        call->done(call);
        return;
    }
    shard_host_submit(shard, call);
    shard_host_unhold(shard);
}

static void service_release(void *self, struct shard_call *call)
{
    if (call->kind < CALL_CATALOG) shard_host_release(call);
    if (call->kind == CALL_CLUSTER) member_cluster_release(call);
}

static struct map *service_map_acquire(void *self)
{
    struct node *node = self;
    pthread_rwlock_rdlock(&node->table_lock);
    struct map *map = node->map == NULL ? NULL : map_ref(node->map);
    pthread_rwlock_unlock(&node->table_lock);
    return map;
}

static const char *service_not_ready(void *self)
{
    struct node *node = self;
    if (atomic_load(&node->stopping)) return "stopping";
    const char *why = node->member == NULL ? NULL : member_not_ready(node->member);
    if (why != NULL) return why;
    if (atomic_load(&node->shard_damaged))
        return "a shard is damaged and serves nothing, the log names file and offset";
    if (atomic_load(&node->shard_stopped)) return "a shard has stopped taking writes, see the log";
    if (atomic_load(&node->shard_waits)) return "a shard waits for room on the disk";
    if (atomic_load(&node->env.disk_full))
        return "the disk is nearly full: only reads and deletes are served";
    return NULL;
}

static void status_log(struct node *node, struct doc_builder *b)
{
    struct node_log_stats log;
    if (!atomic_load(&node->host_open)) return;
    replica_host_log_stats(node->replica_host, &log);
    doc_key(b, "log", 3);
    doc_begin_object(b);
    put_u64(b, "bytes", log.bytes);
    put_u64(b, "syncs", log.syncs);
    put_u64(b, "appends", log.appends);
    put_u64(b, "records", log.records);
    put_u64(b, "bytes_written", log.bytes_written);
    doc_end(b);
}

static void status_totals(struct node *node, struct doc_builder *b)
{
    uint64_t points = 0, stream_bytes = 0, meta_bytes = 0, stopped = 0, damaged = 0;
    pthread_rwlock_rdlock(&node->table_lock);
    uint32_t count = node->slot_count;
    for (uint32_t i = 0; i < count; i++) {
        struct shard_store_stats store;
        struct replica_status replica;
        shard_host_stats(node->slots[i].shard, &store, &replica);
        points += store.points;
        stream_bytes += store.stream_bytes;
        meta_bytes += store.meta_bytes;
        stopped += store.stopped != OMEN_OK || replica.stopped != OMEN_OK;
        damaged += store.damaged;
    }
    pthread_rwlock_unlock(&node->table_lock);
    put_u64(b, "shards_open", count);
    put_u64(b, "shards_stopped", stopped);
    put_u64(b, "shards_damaged", damaged);
    put_u64(b, "points", points);
    put_u64(b, "stream_bytes", stream_bytes);
    put_u64(b, "meta_bytes", meta_bytes);
}

static void status_memory(struct node *node, struct doc_builder *b)
{
    struct node_memory m;
    node_memory_look(node);
    node_memory_get(node, &m);
    node_memory_put(&m, b);
}

static void service_status(void *self, struct doc_builder *b)
{
    struct node *node = self;
    char text[32];
    put_u64(b, "id", node->dir.identity.node_id);
    snprintf(text, sizeof text, "%llu", (unsigned long long)node->dir.identity.incarnation);
    put_text(b, "incarnation", text);
    put_text(b, "data_dir", node->dir.path);
    put_u64(b, "data_created_ms", node->dir.identity.created_ms);
    put_u64(b, "disk_free_bytes", atomic_load(&node->disk_free));
    put_u64(b, "disk_total_bytes", atomic_load(&node->disk_total));
    doc_key(b, "disk_full", 9);
    doc_put_bool(b, atomic_load(&node->env.disk_full));
    put_u64(b, "search_threads", search_pool_threads(node->env.pool));
    put_u64(b, "search_queue", search_pool_depth(node->env.pool));
    put_u64(b, "write_inflight_bytes", atomic_load(&node->env.inflight_bytes));
    status_totals(node, b);
    status_memory(node, b);
    if (node->member != NULL) member_status(node->member, b);
    status_log(node, b);
}

uint32_t node_number(const struct node *node) { return (uint32_t)node->dir.identity.node_id; }

uint32_t node_members(struct node *node, struct map_node *nodes_out)
{
    return member_nodes(node->member, nodes_out);
}

void node_peer_request(struct node *node, struct doc request, struct doc_builder *reply)
{
    member_peer(node->member, request, reply);
}

struct ship *node_ship(struct node *node) { return node->env.ship; }

const struct shard_service *node_service(struct node *node) { return &node->service; }

/* ---- life ---- */

static void node_disk_look(void *arg) { node_watch_disk(arg); }

static void env_fill(struct node *node)
{
    const struct node_options *o = &node->options;
    struct shard_env *env = &node->env;
    env->vfs = o->vfs;
    env->clock = o->clock;
    env->store = o->store;
    uint64_t delta_bytes = node_memory_budget(node) / DELTA_SHARE;
    if (delta_bytes < DELTA_BYTES_MIN) delta_bytes = DELTA_BYTES_MIN;
    if (env->store.delta_bytes_max > delta_bytes) env->store.delta_bytes_max = delta_bytes;
    env->read_arena_bytes_max = o->read_arena_bytes_max;
    env->shard_inflight_bytes_max = o->shard_inflight_bytes_max;
    env->node_inflight_bytes_max = o->node_inflight_bytes_max;
    env->tail_rows_max = o->index_disabled ? 0 : o->index_tail_rows_max;
    env->election_ms = o->host.cluster.election_ms;
    env->indexes = !o->index_disabled;
    env->recalls = o->recall_cpu_percent > 0;
    env->disk_look = node_disk_look;
    env->disk_arg = node;
}

static uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* A small node has a small log: entries are in memory until a checkpoint lets go of them, and all that the log holds is at
 * a start. (A node with 107 MiB was killed at its start by a log of 107 MB that it had written with 40 MB of memory.) */
static void log_fit(struct replica_host_options *host, uint64_t bytes)
{
    uint64_t segment = bytes / LOG_SEGMENT_SHARE / MIB * MIB;
    if (segment < LOG_SEGMENT_MIN) segment = LOG_SEGMENT_MIN;
    if (bytes < LOG_SEGMENT_SHARE * LOG_SEGMENT_MIN) bytes = LOG_SEGMENT_SHARE * LOG_SEGMENT_MIN;
    host->log.segment_bytes = least(host->log.segment_bytes, segment);
    host->log.bytes_max = least(host->log.bytes_max, bytes);
    host->checkpoint_log_bytes = least(host->checkpoint_log_bytes, segment);
}

enum omen_err node_host_open(struct node *node, struct err *err)
{
    const struct node_cluster_options *cluster = &node->options.cluster;
    char log_dir[NODE_PATH_BYTES_MAX];
    data_dir_path(&node->dir, "log", log_dir);
    struct replica_host_options host = node->options.host;
    host.log.vfs = node->options.vfs;
    host.log.dir = log_dir;
    host.log.node_id = node->dir.identity.node_id;
    log_fit(&host, node_memory_budget(node) / LOG_SHARE);
    host.clock = node->options.clock;
    host.metrics = node->options.metrics;
    if (cluster->member) {
        host.cluster.cluster_id = node->dir.identity.cluster_id;
        host.cluster.secret = (const uint8_t *)&cluster->key; /* both are derived from the cluster's secret */
        host.cluster.secret_len = sizeof cluster->key;
        host.cluster.listen = cluster->listen;
    }
    enum omen_err rc = replica_host_open(&host, &node->replica_host, err);
    if (rc != OMEN_OK) return rc;
    node->env.replica_host = node->replica_host;
    atomic_store(&node->host_open, true);
    return OMEN_OK;
}

static enum omen_err catalog_host(struct node *node, struct err *err)
{
    char dir[NODE_PATH_BYTES_MAX];
    data_dir_path(&node->dir, "catalog", dir);
    enum omen_err rc = catalog_open(node->options.vfs, dir, node->dir.identity.incarnation, &node->catalog,
            err);
    if (rc != OMEN_OK) return rc;
    struct replica_fsm fsm;
    catalog_fsm(node->catalog, &fsm);
    rc = replica_open(node->replica_host, CATALOG_GROUP, 1, 0, &fsm, &node->catalog_replica, err);
    if (rc != OMEN_OK) {
        catalog_close(node->catalog);
        node->catalog = NULL;
    }
    return rc;
}

static void shards_close(struct node *node)
{
    while (node->slot_count > 0) {
        struct shard_host *shard = node_shard_take(node, node->slots[node->slot_count - 1].shard_id);
        shard_host_retire(shard, OMEN_EUNAVAILABLE);
        shard_host_close(shard);
    }
}

/* Undo whatever node_open has done so far. */
static void node_free(struct node *node)
{
    shards_close(node);
    room_keeper_stop(node->env.rooms);
    if (node->map != NULL) map_unref(node->map);
    if (node->member != NULL) member_base_stop(node->member);
    if (node->catalog_replica != NULL) replica_close(node->catalog_replica, true);
    if (node->member != NULL) member_base_stop(node->member); /* raft may have asked until it was closed */
    member_free(node->member);
    if (node->catalog != NULL) catalog_close(node->catalog);
    fetcher_stop(node->env.fetcher);
    ship_stop(node->env.ship);
    if (node->env.pool != NULL) search_pool_stop(node->env.pool);
    if (node->replica_host != NULL) replica_host_close(node->replica_host);
    data_dir_close(&node->dir);
    shard_env_fini(&node->env);
    pthread_cond_destroy(&node->scrub_wake);
    pthread_mutex_destroy(&node->scrub_lock);
    pthread_mutex_destroy(&node->memory_lock);
    pthread_cond_destroy(&node->watch_wake);
    pthread_mutex_destroy(&node->watch_lock);
    pthread_cond_destroy(&node->catalog_wake);
    pthread_mutex_destroy(&node->catalog_lock);
    pthread_rwlock_destroy(&node->table_lock);
    mem_free(node->slots);
    mem_free(node);
}

static struct node *node_new(const struct node_options *options)
{
    struct node *node = mem_must_calloc(1, sizeof *node);
    node->options = *options;
    node->dir.lock_fd = -1;
    node->catalog_tail = &node->catalog_head;
    node->opened_ns = clock_monotonic_ns(options->clock);
    pthread_rwlock_init(&node->table_lock, NULL);
    pthread_mutex_init(&node->catalog_lock, NULL);
    pthread_cond_init(&node->catalog_wake, NULL);
    pthread_mutex_init(&node->watch_lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&node->watch_wake, &attr);
    pthread_mutex_init(&node->scrub_lock, NULL);
    pthread_mutex_init(&node->memory_lock, NULL);
    pthread_cond_init(&node->scrub_wake, &attr);
    pthread_condattr_destroy(&attr);
    shard_env_init(&node->env);
    node->service = (struct shard_service){
        .self = node,
        .submit = service_submit,
        .release = service_release,
        .map_acquire = service_map_acquire,
        .not_ready = service_not_ready,
        .status = service_status,
    };
    return node;
}

/* As many files as we may have: shells and service managers often give 1,024, the limit itself is far above. */
static void files_raise(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
        LOG_WARN("node.files", "limit=%llu", (unsigned long long)limit.rlim_max);
}

/* Log, catalog and every shard that it names. A member opens all that when it is one. */
static enum omen_err single_open(struct node *node, struct err *err)
{
    enum omen_err rc = node_host_open(node, err);
    if (rc == OMEN_OK) rc = catalog_host(node, err);
    if (rc == OMEN_OK) rc = node_catalog_heal(node, err);
    if (rc == OMEN_OK) node_map_publish(node, catalog_map(node->catalog));
    return rc;
}

static enum omen_err threads_start(struct node *node, struct err *err)
{
    enum omen_err rc = node_catalog_start(node, err);
    if (rc == OMEN_OK) rc = node_watch_start(node, err);
    if (rc == OMEN_OK) rc = node_scrub_start(node, err);
    if (rc == OMEN_OK) rc = node_index_start(node, err);
    if (rc == OMEN_OK) rc = node_recall_start(node, err);
    if (rc == OMEN_OK && node->member != NULL) rc = member_start(node->member, err);
    return rc;
}

static void threads_stop(struct node *node)
{
    node_catalog_stop(node);
    if (node->member != NULL) member_stop(node->member);
    node_recall_stop(node);
    node_index_stop(node);
    node_scrub_stop(node);
    node_watch_stop(node); /* retiring shards look after their deadlines themselves */
}

enum omen_err node_open(const struct node_options *options, struct node **node_out, struct err *err)
{
    *node_out = NULL;
    files_raise();
    struct node *node = node_new(options);
    bool member = options->cluster.member;
    enum omen_err rc = data_dir_open(&node->dir, options->vfs, options->data_dir,
            member ? DATA_DIR_MEMBER : DATA_DIR_SINGLE, options->clock, err);
    if (rc == OMEN_OK)
        rc = search_pool_start(options->search_threads, options->search_queue_max, &node->env.pool, err);
    if (rc == OMEN_OK) rc = room_keeper_start(shard_host_make_room, &node->env.rooms, err);
    if (rc == OMEN_OK) {
        env_fill(node);
        if (options->metrics != NULL) node_metrics_register(node);
        node_watch_disk(node);
        if (member) node->member = member_new(node);
    }
    const struct ship_options ship = { .clock = options->clock };
    if (rc == OMEN_OK && member) rc = ship_start(&ship, &node->env.ship, err);
    if (rc == OMEN_OK && member) rc = fetcher_start(options->vfs, options->clock, &node->env.fetcher, err);
    if (rc == OMEN_OK && !member) rc = single_open(node, err);
    if (rc == OMEN_OK) rc = threads_start(node, err);
    if (rc != OMEN_OK) {
        threads_stop(node);
        node_free(node);
        return rc;
    }
    if (options->metrics != NULL) node_metrics_collect(node);
    LOG_INFO("node.open", "data_dir=%s node=%llu shards=%u", node->dir.path,
            (unsigned long long)node->dir.identity.node_id, node->slot_count);
    *node_out = node;
    return OMEN_OK;
}

void node_close(struct node *node)
{
    atomic_store(&node->stopping, true);
    threads_stop(node);
    node_free(node);
}
