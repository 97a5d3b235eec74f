/* The watch thread: deadlines of calls, headroom of the disk. And the node's metrics, refreshed when they are read. */
#include "common/err.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/log.h"
#include "common/version.h"
#include "node/member/member.h"
#include "node/node_impl.h"
#include "storage/kernel/kernel.h"

/* ---- disk ---- */

void node_watch_disk(struct node *node)
{
    uint64_t free_bytes, total_bytes;
    struct err err;
    if (vfs_free_space(node->options.vfs, node->dir.path, &free_bytes, &total_bytes, &err) != OMEN_OK) {
        LOG_WARN("disk.check", "error=\"%s\"", err.message);
        return;
    }
    atomic_store(&node->disk_free, free_bytes);
    atomic_store(&node->disk_total, total_bytes);
    /* Writes that were let in and are not on disk yet will take some of it. */
    double percent = 100, left_bytes = (double)free_bytes - (double)atomic_load(&node->env.inflight_bytes);
    if (total_bytes > 0) percent = left_bytes < 0 ? 0 : 100 * left_bytes / (double)total_bytes;
    double headroom = left_bytes - node->options.disk_min_free_percent / 100 * (double)total_bytes;
    bool full = percent < node->options.disk_min_free_percent;
    /* A quarter: segments and chunks are taken whole and not filled, so more goes than is written. */
    atomic_store(&node->env.disk_headroom,
            node->options.disk_min_free_percent == 0 ? INT64_MAX / 2 : (int64_t)(headroom / 4));
    if (full) {
        pthread_mutex_lock(&node->env.disk_lock);
        snprintf(node->env.disk_text, sizeof node->env.disk_text,
                "the disk has %.1f %% free, below "
                "disk.min_free_percent %.1f: reads and deletes are served, other writes are not",
                percent, node->options.disk_min_free_percent);
        pthread_mutex_unlock(&node->env.disk_lock);
    }
    bool was = atomic_exchange(&node->env.disk_full, full);
    if (full && !was)
        LOG_WARN("disk.full", "free_percent=%.1f free_bytes=%llu", percent, (unsigned long long)free_bytes);
    if (!full && was)
        LOG_INFO("disk.room", "free_percent=%.1f free_bytes=%llu", percent, (unsigned long long)free_bytes);
}

/* ---- thread ---- */

static void sweep_shards(struct node *node)
{
    bool stopped = false, waits = false, damaged = false;
    uint64_t after = 0;
    for (;;) { /* one at a time: a sweep answers calls, which must not happen under the table's lock */
        struct shard_host *shard = NULL;
        pthread_rwlock_rdlock(&node->table_lock);
        for (uint32_t i = 0; i < node->slot_count && shard == NULL; i++) {
            if (node->slots[i].shard_id > after) shard = node->slots[i].shard;
        }
        if (shard != NULL) shard_host_hold(shard);
        pthread_rwlock_unlock(&node->table_lock);
        if (shard == NULL) break;
        after = shard_host_id(shard);
        shard_host_sweep(shard);
        struct shard_store_stats store;
        struct replica_status replica;
        shard_host_stats(shard, &store, &replica);
        /* A full disk is no damage: it goes on when there is room (CORRECTNESS D2). */
        stopped |= (store.stopped != OMEN_OK && store.stopped != OMEN_EFULL) || replica.stopped != OMEN_OK;
        waits |= replica.disk_full;
        damaged |= store.damaged;
        shard_host_unhold(shard);
    }
    atomic_store(&node->shard_waits, waits);
    atomic_store(&node->shard_damaged, damaged);
    atomic_store(&node->shard_stopped, stopped);
}

static void *watch_main(void *arg)
{
    struct node *node = arg;
    pthread_setname_np(pthread_self(), "omen-watch");
    pthread_mutex_lock(&node->watch_lock);
    while (!node->watch_stop) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += NODE_SWEEP_MS * 1000000L;
        if (until.tv_nsec >= 1000000000L) {
            until.tv_nsec -= 1000000000L;
            until.tv_sec++;
        }
        pthread_cond_timedwait(&node->watch_wake, &node->watch_lock, &until);
        if (node->watch_stop) break;
        pthread_mutex_unlock(&node->watch_lock);
        sweep_shards(node);
        uint64_t now_ns = clock_monotonic_ns(node->options.clock);
        if (now_ns - node->disk_checked_ns >= NODE_DISK_CHECK_NS) {
            node->disk_checked_ns = now_ns;
            node_watch_disk(node);
        }
        pthread_mutex_lock(&node->watch_lock);
    }
    pthread_mutex_unlock(&node->watch_lock);
    return NULL;
}

enum omen_err node_watch_start(struct node *node, struct err *err)
{
    sweep_shards(node); /* so that /readyz is right from the first moment */
    int rc = pthread_create(&node->watch_thread, NULL, watch_main, node);
    if (rc != 0) return err_os(err, rc, "start a thread for", "the watch");
    node->watch_started = true;
    return OMEN_OK;
}

void node_watch_stop(struct node *node)
{
    if (!node->watch_started) return;
    pthread_mutex_lock(&node->watch_lock);
    node->watch_stop = true;
    pthread_cond_signal(&node->watch_wake);
    pthread_mutex_unlock(&node->watch_lock);
    pthread_join(node->watch_thread, NULL);
    node->watch_started = false;
}

/* ---- metrics ---- */

static uint64_t resident_bytes(void)
{
    FILE *f = fopen("/proc/self/statm", "re");
    if (f == NULL) return 0;
    unsigned long long size = 0, resident = 0;
    int n = fscanf(f, "%llu %llu", &size, &resident);
    fclose(f);
    return n == 2 ? resident * (uint64_t)sysconf(_SC_PAGESIZE) : 0;
}

/* A counter that is kept elsewhere: brought up to its value. */
static void counter_follow(struct metric_counter *counter, uint64_t value)
{
    atomic_store_explicit(&counter->value, value, memory_order_relaxed);
}

#define SHARE_PPM 1e6 /* gauges are whole numbers */

static void collect_recall(const struct shard_slot *slot)
{
    const struct shard_gauges *g = &slot->gauges;
    struct shard_recall_stats recall;
    shard_host_recall_stats(slot->shard, &recall);
    struct recall_estimate e = recall_estimate(&recall.counts);
    metric_set(g->recall, (int64_t)(e.recall * SHARE_PPM));
    metric_set(g->recall_low, (int64_t)(e.low * SHARE_PPM));
    metric_set(g->recall_high, (int64_t)(e.high * SHARE_PPM));
    metric_set(g->recall_searches, (int64_t)recall.counts.searches);
    metric_set(g->recall_boost, recall.boost);
    counter_follow(g->recall_compared, recall.compared);
}

static void collect_index(const struct shard_slot *slot, uint64_t applied,
        const struct shard_index_stats *index)
{
    const struct shard_gauges *g = &slot->gauges;
    struct index_work work;
    shard_host_index_work(slot->shard, &work);
    metric_set(g->index_lag, (int64_t)(applied > index->indexed ? applied - index->indexed : 0));
    metric_set(g->index_segments, (int64_t)index->segments);
    metric_set(g->index_work_rows, (int64_t)work.rows);
    metric_set(g->index_work_percent, (int64_t)work.percent);
    metric_set(g->index_work_left, (int64_t)(work.seconds_left > 0 ? work.seconds_left : 0));
}

/* Returns whether it is damaged. */
static bool collect_shard(const struct shard_slot *slot)
{
    struct shard_store_stats store;
    struct replica_status replica;
    shard_host_stats(slot->shard, &store, &replica);
    const struct shard_gauges *g = &slot->gauges;
    metric_set(g->points, (int64_t)store.points);
    metric_set(g->applied, (int64_t)store.applied);
    metric_set(g->durable, (int64_t)store.durable);
    struct shard_index_stats index;
    shard_host_index_stats(slot->shard, &index);
    metric_set(g->unindexed, (int64_t)(index.tail_rows < store.points ? index.tail_rows : store.points));
    collect_index(slot, store.applied, &index);
    metric_set(g->stream_bytes, (int64_t)store.stream_bytes);
    metric_set(g->meta_bytes, (int64_t)store.meta_bytes);
    metric_set(g->delta_bytes, (int64_t)store.delta_bytes);
    metric_set(g->applied_ops, (int64_t)store.applied_ops);
    metric_set(g->by_filter, store.intents);
    metric_set(g->inflight_bytes, (int64_t)replica.inflight_bytes);
    metric_set(g->stopped, store.stopped != OMEN_OK || replica.stopped != OMEN_OK);
    collect_recall(slot);
    return store.damaged;
}

static void collect_raft(struct node *node)
{
    const struct node_gauges *g = &node->gauges;
    struct replica_net_stats s;
    replica_host_net_stats(node->replica_host, &s);
    metric_set(g->raft_connections, (int64_t)s.connections);
    metric_set(g->raft_unsent, (int64_t)s.unsent_bytes);
    counter_follow(g->raft_frames_in, s.frames_in);
    counter_follow(g->raft_frames_out, s.frames_out);
    counter_follow(g->raft_bytes_in, s.bytes_in);
    counter_follow(g->raft_bytes_out, s.bytes_out);
    counter_follow(g->raft_dropped, s.frames_dropped);
    const uint64_t refused[NODE_RAFT_REFUSALS] = { s.refused_garbage, s.refused_secret, s.refused_cluster,
        s.refused_strangers, s.refused_frames };
    for (uint32_t i = 0; i < NODE_RAFT_REFUSALS; i++) counter_follow(g->raft_refused[i], refused[i]);
}

static void node_collect(void *arg)
{
    struct node *node = arg;
    const struct node_gauges *g = &node->gauges;
    struct node_log_stats log = { 0 };
    if (atomic_load(&node->host_open)) replica_host_log_stats(node->replica_host, &log);
    if (g->raft_connections != NULL && atomic_load(&node->host_open)) collect_raft(node);
    counter_follow(g->log_syncs, log.syncs);
    counter_follow(g->log_appends, log.appends);
    counter_follow(g->log_written, log.bytes_written);
    metric_set(g->log_bytes, (int64_t)log.bytes);
    metric_set(g->log_spares, log.spares);
    counter_follow(g->recall_cpu, atomic_load(&node->recall_cpu_ns) / 1000000);
    metric_set(g->disk_free, (int64_t)atomic_load(&node->disk_free));
    metric_set(g->disk_total, (int64_t)atomic_load(&node->disk_total));
    metric_set(g->disk_full, atomic_load(&node->env.disk_full));
    metric_set(g->replicas_differ, atomic_load(&node->env.replicas_differ));
    metric_set(g->clock_off, atomic_load(&node->env.clock_off));
    metric_set(g->clock_skew, atomic_load(&node->env.clock_skew_ms));
    metric_set(g->queue_depth, search_pool_depth(node->env.pool));
    metric_set(g->inflight, (int64_t)atomic_load(&node->env.inflight_bytes));
    metric_set(g->resident, (int64_t)resident_bytes());
    struct node_memory memory;
    node_memory_look(node);
    node_memory_get(node, &memory);
    metric_set(g->memory_budget, (int64_t)memory.budget);
    metric_set(g->memory_rows, (int64_t)memory.rows);
    metric_set(g->memory_deltas, (int64_t)memory.deltas);
    metric_set(g->memory_sketches, (int64_t)memory.sketches);
    metric_set(g->memory_pinned, (int64_t)memory.pinned);
    metric_set(g->memory_mapped, (int64_t)memory.mapped);
    if (g->cluster_version != NULL) metric_set(g->cluster_version, member_version(node->member));
    metric_set(g->uptime,
            (int64_t)((clock_monotonic_ns(node->options.clock) - node->opened_ns) / 1000000000ull));
    pthread_rwlock_rdlock(&node->table_lock);
    int64_t damaged = 0;
    metric_set(g->shards, node->slot_count);
    metric_set(g->collections, node->map == NULL ? 0 : node->map->collection_count);
    for (uint32_t i = 0; i < node->slot_count; i++) damaged += collect_shard(&node->slots[i]);
    metric_set(g->shards_damaged, damaged);
    pthread_rwlock_unlock(&node->table_lock);
}

static void raft_metrics_register(struct metrics *m, struct node_gauges *g)
{
    static const char *const reasons[NODE_RAFT_REFUSALS] = { "garbage", "secret", "cluster", "strangers",
        "frame" };
    g->raft_connections = metrics_gauge(m, "omendb_raft_connections", "Connections to other nodes now", NULL);
    g->raft_unsent = metrics_gauge(m, "omendb_raft_unsent_bytes",
            "Bytes that wait for the slowest of them, lately", NULL);
    g->raft_frames_in = metrics_counter(m, "omendb_raft_frames_in_total", "Messages of other nodes", NULL);
    g->raft_frames_out = metrics_counter(m, "omendb_raft_frames_out_total", "Messages to other nodes", NULL);
    g->raft_bytes_in = metrics_counter(m, "omendb_raft_bytes_in_total", "Bytes from other nodes", NULL);
    g->raft_bytes_out = metrics_counter(m, "omendb_raft_bytes_out_total", "Bytes to other nodes", NULL);
    g->raft_dropped = metrics_counter(m, "omendb_raft_frames_dropped_total",
            "Messages dropped: no connection, or too much unsent", NULL);
    for (uint32_t i = 0; i < NODE_RAFT_REFUSALS; i++) {
        char labels[40];
        snprintf(labels, sizeof labels, "reason=\"%s\"", reasons[i]);
        g->raft_refused[i] = metrics_counter(m, "omendb_raft_refused_total",
                "Connections refused on the port of the cluster, or closed for what they sent", labels);
    }
}

void node_metrics_register(struct node *node)
{
    struct metrics *m = node->options.metrics;
    struct node_gauges *g = &node->gauges;
    g->disk_free = metrics_gauge(m, "omendb_node_disk_free_bytes", "Free bytes of the data directory's disk",
            NULL);
    g->disk_total = metrics_gauge(m, "omendb_node_disk_total_bytes", "Size of the data directory's disk",
            NULL);
    g->disk_full = metrics_gauge(m, "omendb_node_disk_full", "1 while writes are refused for want of disk",
            NULL);
    g->replicas_differ = metrics_gauge(m, "omendb_cluster_replicas_differ",
            "Replicas that do not hold the points of the others; seen by the cluster's leader", NULL);
    g->clock_off = metrics_gauge(m, "omendb_node_clock_off",
            "1 while the clock is more than 500 ms off the cluster's median: this node may not lead", NULL);
    g->clock_skew = metrics_gauge(m, "omendb_node_clock_skew_milliseconds",
            "The clock ahead of the cluster's median, as last told; of fewer than three nodes there is none",
            NULL);
    g->queue_depth = metrics_gauge(m, "omendb_node_search_queue_depth", "Reads waiting for a search thread",
            NULL);
    g->log_spares = metrics_gauge(m, "omendb_node_log_spares",
            "Log segments allocated and not in use; below 5 on a full disk: its reserve", NULL);
    g->log_bytes = metrics_gauge(m, "omendb_node_log_bytes", "Bytes of the write-ahead log still needed",
            NULL);
    g->collections = metrics_gauge(m, "omendb_node_collections", "Collections", NULL);
    g->shards = metrics_gauge(m, "omendb_node_shards", "Shards open", NULL);
    g->shards_damaged = metrics_gauge(m, "omendb_node_shards_damaged",
            "Shards in which the scrubber found damage; they serve nothing", NULL);
    g->scrubbed = metrics_counter(m, "omendb_node_scrubbed_bytes_total",
            "Bytes of streams read again and compared with their checksums", NULL);
    g->recall_cpu = metrics_counter(m, "omendb_node_recall_cpu_milliseconds_total",
            "CPU time that live recall took", NULL);
    g->inflight = metrics_gauge(m, "omendb_node_write_inflight_bytes", "Bytes of writes queued or proposed",
            NULL);
    static const char help[] = "What memory goes for; mapped graphs are the system's to take back";
    const char *name = "omendb_node_memory_bytes";
    g->memory_budget = metrics_gauge(m, "omendb_node_memory_budget_bytes", "memory.budget", NULL);
    g->memory_rows = metrics_gauge(m, name, help, "component=\"rows\"");
    g->memory_deltas = metrics_gauge(m, name, help, "component=\"deltas\"");
    g->memory_sketches = metrics_gauge(m, name, help, "component=\"sketches\"");
    g->memory_pinned = metrics_gauge(m, name, help, "component=\"graphs\"");
    g->memory_mapped = metrics_gauge(m, name, help, "component=\"mapped_graphs\"");
    g->resident = metrics_gauge(m, "omendb_process_resident_bytes", "Resident memory, mapped files included",
            NULL);
    g->uptime = metrics_gauge(m, "omendb_node_uptime_seconds", "Seconds since the node was opened", NULL);
    g->log_syncs = metrics_counter(m, "omendb_node_log_syncs_total", "Syncs of the write-ahead log", NULL);
    g->log_appends = metrics_counter(m, "omendb_node_log_appends_total", "Appends to the write-ahead log",
            NULL);
    g->log_written = metrics_counter(m, "omendb_node_log_written_bytes_total", "Bytes written to the log",
            NULL);
    metric_set(metrics_gauge(m, "omendb_node_feature_level", "Formats up to which this build reads", NULL),
            feature_level());
    if (node->options.cluster.member) {
        raft_metrics_register(m, g);
        g->cluster_version = metrics_gauge(m, "omendb_cluster_version",
                "Feature level up to which formats may be proposed; 0: in no cluster yet", NULL);
    }
    struct shard_env *env = &node->env;
    env->refused_busy = metrics_counter(m, "omendb_node_refused_total", "Calls refused at admission",
            "reason=\"busy\"");
    env->refused_full = metrics_counter(m, "omendb_node_refused_total", "Calls refused at admission",
            "reason=\"full\"");
    env->entries = metrics_counter(m, "omendb_node_entries_total", "Log entries proposed by writes", NULL);
    env->entry_requests = metrics_counter(m, "omendb_node_entry_requests_total",
            "Write requests in those entries", NULL);
    env->engine_seconds = metrics_histogram(m, "omendb_node_search_engine_seconds",
            "Time of one search call inside storage", NULL);
    char labels[256];
    snprintf(labels, sizeof labels, "version=\"%s\",commit=\"%s\",isa=\"%s\"", OMEN_VERSION, version_commit(),
            kernel_isa_name(kernel_get()->isa));
    metric_set(metrics_gauge(m, "omendb_build_info", "Always 1; labels say what runs", labels), 1);
}

void node_metrics_collect(struct node *node)
{
    metrics_add_collector(node->options.metrics, node_collect, node);
}

void node_metrics_shard(struct node *node, struct shard_slot *slot, const char *collection)
{
    struct metrics *m = node->options.metrics;
    if (m == NULL) return;
    char labels[OMEN_NAME_BYTES_MAX + 64];
    snprintf(labels, sizeof labels, "collection=\"%s\",shard=\"%llu\"", collection,
            (unsigned long long)slot->shard_id);
    struct shard_gauges *g = &slot->gauges;
    g->points = metrics_gauge(m, "omendb_node_points", "Live points", labels);
    g->applied = metrics_gauge(m, "omendb_node_applied_sequence", "Last sequence applied", labels);
    g->durable = metrics_gauge(m, "omendb_node_durable_sequence", "Sequence of the last checkpoint", labels);
    g->unindexed = metrics_gauge(m, "omendb_node_unindexed_points", "Live points not in an index yet",
            labels);
    g->index_lag = metrics_gauge(m, "omendb_node_index_lag_entries",
            "Entries applied since the last one up to which every row is in a segment", labels);
    g->index_segments = metrics_gauge(m, "omendb_node_index_segments", "Segments of the index", labels);
    g->index_work_rows = metrics_gauge(m, "omendb_node_index_work_rows",
            "Rows of the segment that is being built, 0 = none is", labels);
    g->index_work_percent = metrics_gauge(m, "omendb_node_index_work_percent", "How far it is", labels);
    g->index_work_left = metrics_gauge(m, "omendb_node_index_work_left_seconds",
            "How long it will still take, about; 0 = none is built, or it is too early to tell", labels);
    g->stream_bytes = metrics_gauge(m, "omendb_node_stream_bytes", "Bytes of the append stream", labels);
    g->meta_bytes = metrics_gauge(m, "omendb_node_meta_bytes", "Bytes of the metadata store", labels);
    g->delta_bytes = metrics_gauge(m, "omendb_node_delta_bytes", "Memory of metadata not yet merged", labels);
    g->applied_ops = metrics_gauge(m, "omendb_node_applied_ops", "Op ids remembered", labels);
    g->by_filter = metrics_gauge(m, "omendb_node_writes_by_filter",
            "Writes by filter that are recorded and under way", labels);
    g->inflight_bytes = metrics_gauge(m, "omendb_node_shard_inflight_bytes",
            "Bytes proposed, not yet applied", labels);
    g->recall = metrics_gauge(m, "omendb_node_recall_ppm",
            "Measured recall of live searches at this replica, in millionths; counts with searches > 0",
            labels);
    g->recall_low = metrics_gauge(m, "omendb_node_recall_low_ppm",
            "Lower end of its interval of 95 % confidence", labels);
    g->recall_high = metrics_gauge(m, "omendb_node_recall_high_ppm",
            "Upper end of its interval of 95 % confidence", labels);
    g->recall_searches = metrics_gauge(m, "omendb_node_recall_searches",
            "Searches that the measured recall is of", labels);
    g->recall_boost = metrics_gauge(m, "omendb_node_recall_boost",
            "Steps of search effort above the calibrated one", labels);
    g->recall_compared = metrics_counter(m, "omendb_node_recall_searches_total",
            "Live searches that were answered exactly as well", labels);
    g->stopped = metrics_gauge(m, "omendb_node_shard_stopped", "1 when the shard cannot apply any more",
            labels);
}

void node_metrics_shard_drop(struct node *node, uint64_t shard_id)
{
    if (node->options.metrics == NULL) return;
    char label[64];
    snprintf(label, sizeof label, "shard=\"%llu\"", (unsigned long long)shard_id);
    metrics_drop(node->options.metrics, label);
}
