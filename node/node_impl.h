/* What node.c, node_catalog.c and node_watch.c share. */
#ifndef OMEN_NODE_NODE_IMPL_H
#define OMEN_NODE_NODE_IMPL_H

#include <pthread.h>
#include <stdatomic.h>

#include "node/cluster/cluster.h"
#include "node/data_dir.h"
#include "node/node.h"
#include "node/shard_host.h"

#define NODE_CATALOG_CALLS_MAX 64u /* catalog changes waiting; OMEN_EBUSY above */
#define NODE_SWEEP_MS 100u         /* how often deadlines are looked at */
#define NODE_DISK_CHECK_NS 1000000000ull
#define NODE_SHARDS_MAX CATALOG_SHARDS_MAX
#define NODE_FILES_PER_SHARD 8u /* of a small one: LMDB's four, the checkpoint, a chunk, and some to grow */

/* One open shard's gauges; made and dropped with it. */
struct shard_gauges {
    struct metric_gauge *points, *applied, *durable, *unindexed, *index_lag, *index_segments,
            *index_work_rows, *index_work_percent, *index_work_left, *stream_bytes, *meta_bytes, *delta_bytes,
            *applied_ops, *by_filter, *inflight_bytes, *stopped;
    struct metric_gauge *recall, *recall_low, *recall_high, *recall_searches, *recall_boost;
    struct metric_counter *recall_compared;
};

struct shard_slot {
    uint64_t shard_id;
    struct shard_host *shard;
    struct shard_gauges gauges;
};

#define NODE_RAFT_REFUSALS 5u /* reasons */

struct node_gauges {
    struct metric_gauge *disk_free, *disk_total, *disk_full, *queue_depth, *log_bytes, *log_spares,
            *collections, *shards, *inflight, *resident, *uptime;
    struct metric_gauge *memory_budget, *memory_rows, *memory_deltas, *memory_sketches, *memory_pinned,
            *memory_mapped;
    struct metric_gauge *shards_damaged, *replicas_differ, *clock_off, *clock_skew;
    struct metric_gauge *cluster_version; /* NULL of a node by itself */
    struct metric_counter *log_syncs, *log_appends, *log_written, *scrubbed, *recall_cpu;
    /* Of the connections between members; NULL of a node by itself. */
    struct metric_gauge *raft_connections, *raft_unsent;
    struct metric_counter *raft_frames_in, *raft_frames_out, *raft_bytes_in, *raft_bytes_out, *raft_dropped;
    struct metric_counter *raft_refused[NODE_RAFT_REFUSALS];
};

/* Bytes, as node_memory.c counts them. */
struct node_memory {
    uint64_t budget, fixed, pinned, mapped;
    uint64_t rows, deltas, sketches; /* of fixed */
    uint64_t taken; /* fixed and pinned, or what the process was seen to have, if that is more */
    uint64_t files; /* streams and segments' rows */
};

struct member;

/* How a shard is opened as a member of a Raft group; the group of one of a node by itself has none of this. */
struct node_shard_raft {
    const struct shard_peers *peers;
    const struct replica_member
            *bootstrap; /* [bootstrap_count] first configuration, written when nothing is there */
    uint32_t bootstrap_count;
};

struct node {
    struct node_options options;
    struct member *member;  /* NULL: by itself */
    _Atomic bool host_open; /* replica_host is there */
    struct data_dir dir;
    struct shard_env env;
    struct shard_service service;
    struct replica_host *replica_host;
    struct catalog *catalog;
    struct replica *catalog_replica;
    uint64_t opened_ns;
    _Atomic bool stopping;
    _Atomic bool shard_waits;   /* one waits for room on the disk */
    _Atomic bool shard_stopped; /* one cannot apply any more */
    _Atomic bool shard_damaged; /* one was found damaged and serves nothing */

    pthread_rwlock_t table_lock; /* guards the table and `map` */
    struct shard_slot *slots;    /* [slot_count] ascending by shard_id */
    uint32_t slot_count;
    struct map *map; /* published: every shard it names is open */

    pthread_mutex_t catalog_lock; /* guards the queue and the outcome of the proposal in flight */
    pthread_cond_t catalog_wake;
    struct catalog_call *catalog_head, **catalog_tail;
    uint32_t catalog_queued;
    bool catalog_stop;
    pthread_t catalog_thread;
    bool catalog_started;

    pthread_mutex_t watch_lock;
    pthread_cond_t watch_wake; /* monotonic clock */
    bool watch_stop;
    pthread_t watch_thread;
    bool watch_started;
    uint64_t disk_checked_ns;

    pthread_mutex_t memory_lock; /* guards the members down to memory_limit_ns */
    struct node_memory memory;
    uint64_t memory_trim_ns;
    uint64_t memory_limit; /* that the system sets; 0 = not looked at yet */
    uint64_t memory_limit_ns;

    _Atomic bool index_stop;
    pthread_t index_thread, tail_thread;
    bool index_started, tail_started;

    _Atomic bool recall_stop;
    pthread_t recall_thread;
    bool recall_started;
    _Atomic uint64_t recall_cpu_ns; /* that it took */

    pthread_mutex_t scrub_lock; /* guards scrub_stop */
    pthread_cond_t scrub_wake;  /* monotonic clock */
    bool scrub_stop;
    pthread_t scrub_thread;
    bool scrub_started;
    uint64_t scrub_after; /* shards up to this id had their turn; the thread's */

    struct node_gauges gauges;
    _Atomic uint64_t disk_free, disk_total;
};

/* node.c */
OMEN_CHECKED enum omen_err node_host_open(struct node *node, struct err *err);
/* `raft` NULL: a group of one. */
OMEN_CHECKED enum omen_err node_shard_open(struct node *node, const struct map_collection *collection,
        const struct map_shard *shard, uint64_t replica_id, const struct node_shard_raft *raft,
        struct err *err);
/* NULL when it is not open here; to be unheld. */
struct shard_host *node_shard_hold(struct node *node, uint64_t shard_id);
/* Takes the shard out of the table; NULL when it is not there. */
struct shard_host *node_shard_take(struct node *node, uint64_t shard_id);
void node_map_publish(struct node *node, struct map *map); /* takes over one reference */

/* node_catalog.c: changes of the catalog, one after the other, on a thread of their own. */
OMEN_CHECKED enum omen_err node_catalog_start(struct node *node, struct err *err);
void node_catalog_stop(struct node *node);
void node_catalog_submit(struct node *node, struct shard_call *call);
/* At start: remove directories of shards that the catalog dropped, open all that it names. */
OMEN_CHECKED enum omen_err node_catalog_heal(struct node *node, struct err *err);

/* node_watch.c: deadlines, disk headroom. */
OMEN_CHECKED enum omen_err node_watch_start(struct node *node, struct err *err);
void node_watch_stop(struct node *node);
void node_watch_disk(struct node *node);

/* node_scrub.c: checksums of what lies on disk, slowly and for ever. */
OMEN_CHECKED enum omen_err node_scrub_start(struct node *node, struct err *err);
void node_scrub_stop(struct node *node);

/* node_index.c: graphs over what was written, in the background. */
OMEN_CHECKED enum omen_err node_index_start(struct node *node, struct err *err);
void node_index_stop(struct node *node);

/* node_memory.c: what memory goes for. */
uint64_t node_memory_budget(struct node *node);
void node_memory_look(struct node *node);
void node_memory_get(struct node *node, struct node_memory *memory_out); /* as it was when last looked at */
/* As the member "memory" of an object, and from the value of one: what is not there is 0. */
void node_memory_put(const struct node_memory *memory, struct doc_builder *b);
void node_memory_parse(struct doc memory, struct node_memory *memory_out);

/* node_recall.c: live searches answered exactly as well, in the background. */
OMEN_CHECKED enum omen_err node_recall_start(struct node *node, struct err *err);
void node_recall_stop(struct node *node);

/* node_watch.c: metrics. */
void node_metrics_register(struct node *node);
void node_metrics_collect(struct node *node); /* from now on a render reads the node */
void node_metrics_shard(struct node *node, struct shard_slot *slot, const char *collection);
void node_metrics_shard_drop(struct node *node, uint64_t shard_id);

#endif
