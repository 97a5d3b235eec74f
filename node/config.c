/* The table of keys. A key added here is documented in deploy/omendb.yaml: tests/unit/test_node_config.c compares. */
#include "common/err.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "node/cluster/cluster.h"
#include "node/config.h"
#include "node/node_port.h"
#include "node/search_pool.h"
#include "storage/shard_index.h"

#define KIB (1ull << 10)
#define MIB (1ull << 20)
#define GIB (1ull << 30)
#define MS_NS 1000000ull
#define S_NS (1000 * MS_NS)
#define HOUR_NS (3600 * S_NS)
#define CLUSTER_JOIN_MAX 64

static const char *const log_levels[] = { "debug", "info", "warn", "error", NULL };
static const char *const log_formats[] = { "text", "json", NULL };

#define AT(field) .offset = offsetof(struct node_config, field)

const struct config_key node_config_keys[] = {
    { .name = "listen",
            .type = CONFIG_STRING,
            AT(listen),
            .default_text = "tcp://127.0.0.1:7700",
            .help = "where clients connect; port 0 takes a free one" },
    { .name = "http_listen",
            .type = CONFIG_STRING,
            AT(http_listen),
            .default_text = "http://127.0.0.1:7701",
            .help = "where /metrics, /healthz and /readyz are served" },
    { .name = "data_dir",
            .type = CONFIG_STRING,
            AT(data_dir),
            .default_text = "omendb-data",
            .help = "directory that holds everything; created when missing" },
    { .name = "node.listen",
            .type = CONFIG_STRING,
            AT(node_listen),
            .default_text = "",
            .help = "where routers connect, e.g. tcp://127.0.0.1:7710; none = no routers but our own" },
    { .name = "node.advertise",
            .type = CONFIG_STRING,
            AT(node_advertise),
            .default_text = "",
            .help = "address by which routers reach node.listen; none = the one they found us at" },
    { .name = "node.requests_in_service",
            .type = CONFIG_U64,
            AT(node_requests_in_service),
            .default_text = "1024",
            .min = 1,
            .max = NODE_PORT_REQUESTS_MAX,
            .help = "calls of routers served at once; above it they are told to retry" },
    { .name = "cluster.secret",
            .type = CONFIG_STRING,
            AT(cluster_secret),
            .default_text = "",
            .help = "what nodes and routers prove to each other, 16 to 256 bytes; or give secret_file" },
    { .name = "cluster.secret_file",
            .type = CONFIG_STRING,
            AT(cluster_secret_file),
            .default_text = "",
            .help = "file whose first line is the secret; needed with node.listen" },
    { .name = "cluster.listen",
            .type = CONFIG_STRING,
            AT(cluster_listen),
            .default_text = "",
            .help = "numeric host:port for other nodes' replicas; makes the node a member of a cluster" },
    { .name = "cluster.advertise",
            .type = CONFIG_STRING,
            AT(cluster_advertise),
            .default_text = "",
            .help = "numeric host:port by which other nodes reach cluster.listen; none = the same" },
    { .name = "cluster.join",
            .type = CONFIG_STRING,
            AT(cluster_join),
            .default_text = "",
            .help = "node.listen addresses of others, with commas: an empty node asks them to be taken in" },
    { .name = "cluster.labels",
            .type = CONFIG_STRING,
            AT(cluster_labels),
            .default_text = "",
            .help = "e.g. zone=a,rack=2; replicas are spread over the first; none = over nodes" },
    { .name = "cluster.move_grace",
            .type = CONFIG_DURATION,
            AT(cluster_move_grace_ns),
            .default_text = "60s",
            .min = 0,
            .max = 24 * HOUR_NS,
            .help = "a move to a node that is down for so long is given up; its plan finds another node" },
    { .name = "log.level",
            .type = CONFIG_ENUM,
            AT(log_level),
            .default_text = "info",
            .choices = log_levels,
            .help = "debug, info, warn or error" },
    { .name = "log.format",
            .type = CONFIG_ENUM,
            AT(log_format),
            .default_text = "text",
            .choices = log_formats,
            .help = "text or json, one line per event on stderr" },
    { .name = "auth.keys",
            .type = CONFIG_LIST,
            AT(api_keys),
            .default_text = "",
            .item_keys = api_key_item_keys,
            .item_bytes = sizeof(struct api_key_item),
            .item_count_max = API_KEYS_MAX,
            .help = "API keys; without any, everybody who can connect may do everything" },
    { .name = "limits.requests_in_service",
            .type = CONFIG_U64,
            AT(requests_in_service),
            .default_text = "256",
            .min = 1,
            .max = 3000,
            .help = "requests served at once; above it clients are told to retry" },
    { .name = "limits.default_deadline",
            .type = CONFIG_DURATION,
            AT(default_deadline_ns),
            .default_text = "30s",
            .min = MS_NS,
            .max = HOUR_NS,
            .help = "deadline of requests that give none" },
    { .name = "limits.max_deadline",
            .type = CONFIG_DURATION,
            AT(max_deadline_ns),
            .default_text = "300s",
            .min = MS_NS,
            .max = HOUR_NS,
            .help = "longer deadlines are cut to this" },
    { .name = "limits.shards",
            .type = CONFIG_U64,
            AT(shards),
            .default_text = "1024",
            .min = 1,
            .max = 65536,
            .help = "shards this node will hold; each takes files, memory and disk" },
    { .name = "limits.read_bytes",
            .type = CONFIG_BYTES,
            AT(read_bytes),
            .default_text = "128MiB",
            .min = MIB,
            .max = 4 * GIB,
            .help = "memory that one read of one shard may use for its result" },
    { .name = "storage.chunk_bytes",
            .type = CONFIG_BYTES,
            AT(chunk_bytes),
            .default_text = "64MiB",
            .min = 64 * KIB,
            .max = GIB,
            .help = "size of the append stream's files, a multiple of 4096" },
    { .name = "storage.delta_bytes_max",
            .type = CONFIG_BYTES,
            AT(delta_bytes_max),
            .default_text = "64MiB",
            .min = 64 * KIB,
            .max = 16 * GIB,
            .help = "metadata kept in memory per shard before it is merged on disk" },
    { .name = "storage.applied_ops_max",
            .type = CONFIG_U64,
            AT(applied_ops_max),
            .default_text = "1000000",
            .min = 1000,
            .max = 100000000,
            .help = "op ids remembered per shard, so that a retried write is applied once" },
    { .name = "wal.segment_bytes",
            .type = CONFIG_BYTES,
            AT(wal_segment_bytes),
            .default_text = "32MiB",
            .min = 64 * KIB,
            .max = GIB,
            .help = "size of the write-ahead log's files" },
    { .name = "wal.bytes_max",
            .type = CONFIG_BYTES,
            AT(wal_bytes_max),
            .default_text = "256MiB",
            .min = MIB,
            .max = 64 * GIB,
            .help = "above it the shard that holds the oldest entries is checkpointed" },
    { .name = "wal.batch_bytes_max",
            .type = CONFIG_BYTES,
            AT(wal_batch_bytes_max),
            .default_text = "4MiB",
            .min = 64 * KIB,
            .max = 256 * MIB,
            .help = "log bytes written and synced at once" },
    { .name = "checkpoint.interval",
            .type = CONFIG_DURATION,
            AT(checkpoint_interval_ns),
            .default_text = "30s",
            .min = 100 * MS_NS,
            .max = 24 * HOUR_NS,
            .help = "a shard that was written to is checkpointed this often" },
    { .name = "checkpoint.log_bytes",
            .type = CONFIG_BYTES,
            AT(checkpoint_log_bytes),
            .default_text = "64MiB",
            .min = 64 * KIB,
            .max = 64 * GIB,
            .help = "or after this much log since its last checkpoint" },
    { .name = "write.shard_inflight_bytes",
            .type = CONFIG_BYTES,
            AT(write_shard_bytes),
            .default_text = "64MiB",
            .min = MIB,
            .max = 16 * GIB,
            .help = "writes queued per shard; above it clients are told to retry" },
    { .name = "write.node_inflight_bytes",
            .type = CONFIG_BYTES,
            AT(write_node_bytes),
            .default_text = "256MiB",
            .min = MIB,
            .max = 64 * GIB,
            .help = "the same for all shards together" },
    { .name = "write.apply_threads",
            .type = CONFIG_U64,
            AT(apply_threads),
            .default_text = "1",
            .min = 1,
            .max = 64,
            .help = "threads that apply logged writes; a shard belongs to one of them" },
    { .name = "search.threads",
            .type = CONFIG_U64,
            AT(search_threads),
            .default_text = "0",
            .min = 0,
            .max = SEARCH_THREADS_MAX,
            .help = "threads for searches and scans; 0 = one per core" },
    { .name = "search.queue",
            .type = CONFIG_U64,
            AT(search_queue),
            .default_text = "1024",
            .min = 1,
            .max = 1000000,
            .help = "reads waiting for a thread; above it clients are told to retry" },
    { .name = "memory.budget",
            .type = CONFIG_BYTES,
            AT(memory_budget),
            .default_text = "0",
            .help = "memory for graphs, tables and deltas: less, and graphs are compact, then mapped; 0 = half of the "
                    "machine's or cgroup's" },
    { .name = "index.disabled",
            .type = CONFIG_BOOL,
            AT(index_disabled),
            .default_text = "false",
            .help = "build no graphs: every search looks at every point" },
    { .name = "index.threads",
            .type = CONFIG_U64,
            AT(index_threads),
            .default_text = "1",
            .min = 1,
            .max = INDEX_THREADS_MAX,
            .help = "threads that build one graph, at a lower priority than searches" },
    { .name = "index.rows_min",
            .type = CONFIG_U64,
            AT(index_rows_min),
            .default_text = "10000",
            .min = 100,
            .max = 100000000,
            .help = "so many points that are in no graph yet are worth one; fewer are scanned" },
    { .name = "index.tail_rows_max",
            .type = CONFIG_U64,
            AT(index_tail_rows_max),
            .default_text = "2000000",
            .min = 0,
            .max = 1000000000,
            .help = "so many points of a shard that are in no graph yet slow its writes down; 0 = no bound" },
    { .name = "index.memory_bytes",
            .type = CONFIG_BYTES,
            AT(index_memory_bytes),
            .default_text = "0",
            .help = "graphs are kept in memory up to here and mapped above; 0 = what memory.budget leaves" },
    { .name = "recall.cpu_percent",
            .type = CONFIG_F64,
            AT(recall_cpu_percent),
            .default_text = "1",
            .min = 0,
            .max = 100,
            .help = "of one core, at most, for answering live searches exactly too; 0 = not measured" },
    { .name = "disk.min_free_percent",
            .type = CONFIG_F64,
            AT(disk_min_free_percent),
            .default_text = "10",
            .min = 0,
            .max = 90,
            .help = "below this much free disk only reads and deletes are served; 0 = never refuse" },
    { .name = NULL },
};

void node_config_node(const struct node_config *config, struct node_options *options)
{
    options->data_dir = config->data_dir;
    options->search_threads = (uint32_t)config->search_threads;
    options->search_queue_max = (uint32_t)config->search_queue;
    options->read_arena_bytes_max = config->read_bytes;
    options->shard_inflight_bytes_max = config->write_shard_bytes;
    options->node_inflight_bytes_max = config->write_node_bytes;
    options->shards_max = (uint32_t)config->shards;
    options->memory_budget = config->memory_budget;
    options->index_disabled = config->index_disabled;
    options->index_threads = (uint32_t)config->index_threads;
    options->index_rows_min = (uint32_t)config->index_rows_min;
    options->index_memory_bytes = config->index_memory_bytes;
    options->index_tail_rows_max = config->index_tail_rows_max;
    options->recall_cpu_percent = config->recall_cpu_percent;
    options->disk_min_free_percent = config->disk_min_free_percent;
    options->store.chunk_bytes = config->chunk_bytes;
    options->store.delta_bytes_max = config->delta_bytes_max;
    options->store.op_table_max = (uint32_t)config->applied_ops_max;
    options->host.apply_workers = (uint32_t)config->apply_threads;
    options->host.checkpoint_interval_ns = config->checkpoint_interval_ns;
    options->host.checkpoint_log_bytes = config->checkpoint_log_bytes;
    /* Entries add their tables to what admission counted; the log's own bounds must not refuse what it let in. */
    options->host.group_inflight_bytes_max = 2 * config->write_shard_bytes + 2 * (uint64_t)ENTRY_BYTES_MAX;
    options->host.host_inflight_bytes_max = 2 * config->write_node_bytes + 2 * (uint64_t)ENTRY_BYTES_MAX;
    options->host.log.segment_bytes = config->wal_segment_bytes;
    options->host.log.bytes_max = config->wal_bytes_max;
    options->host.log.batch_bytes_max = config->wal_batch_bytes_max;
}

/* ---- a member of a cluster ---- */

/* "host:port" with a port that is no wildcard: others must find it there. */
static enum omen_err check_address(const char *key, const char *text, const char *scheme, struct err *err)
{
    size_t skip = strlen(scheme);
    const char *colon = strrchr(text, ':');
    bool good = strncmp(text, scheme, skip) == 0 && colon != NULL && colon > text + skip &&
            strlen(text) <= OMEN_ADDRESS_BYTES_MAX;
    char *end = NULL;
    unsigned long port = good ? strtoul(colon + 1, &end, 10) : 0;
    if (good && *end == '\0' && port > 0 && port <= 65535) return OMEN_OK;
    return err_set(err, OMEN_EINVAL, key, "%s: \"%s\" is not %shost:port, by which other nodes find this one",
            key, text, scheme);
}

static enum omen_err join_parse(const char *text, struct arena *arena, struct node_cluster_options *out,
        struct err *err)
{
    static const char between[] = ", \t";
    const char **addresses = arena_calloc(arena, CLUSTER_JOIN_MAX, sizeof *addresses);
    if (addresses == NULL) return err_set(err, OMEN_ENOMEM, "cluster.join", "no memory");
    for (const char *at = text + strspn(text, between); *at != '\0'; at += strspn(at, between)) {
        size_t len = strcspn(at, between);
        if (out->join_count == CLUSTER_JOIN_MAX)
            return err_set(err, OMEN_EINVAL, "cluster.join", "cluster.join: at most %d addresses",
                    CLUSTER_JOIN_MAX);
        const char *address = arena_strdup(arena, at, len);
        if (address == NULL) return err_set(err, OMEN_ENOMEM, "cluster.join", "no memory");
        enum omen_err rc = check_address("cluster.join", address, "tcp://", err);
        if (rc != OMEN_OK) return rc;
        addresses[out->join_count++] = address;
        at += len;
    }
    out->join = addresses;
    return OMEN_OK;
}

enum omen_err node_config_cluster(const struct node_config *config, struct arena *arena,
        struct node_cluster_options *out, struct err *err)
{
    *out = (struct node_cluster_options){ .member = false };
    if (config->cluster_listen[0] == '\0') return OMEN_OK;
    if (config->node_listen[0] == '\0')
        return err_set(err, OMEN_EINVAL, "node.listen",
                "node.listen: a member of a cluster needs it, tcp://host:port");
    out->member = true;
    out->listen = config->cluster_listen;
    out->raft_address = config->cluster_advertise[0] != '\0' ? config->cluster_advertise
                                                             : config->cluster_listen;
    out->address = config->node_advertise[0] != '\0' ? config->node_advertise : config->node_listen;
    out->labels = config->cluster_labels;
    out->move_grace_ns = config->cluster_move_grace_ns;
    enum omen_err rc = cluster_key_read(config->cluster_secret, config->cluster_secret_file, vfs_posix(),
            &out->key, err);
    if (rc == OMEN_OK) rc = check_address("cluster.listen", config->cluster_listen, "", err);
    if (rc == OMEN_OK) rc = check_address("cluster.advertise", out->raft_address, "", err);
    if (rc == OMEN_OK) rc = check_address("node.advertise", out->address, "tcp://", err);
    if (rc == OMEN_OK && strlen(out->labels) > CLUSTER_LABELS_BYTES_MAX)
        rc = err_set(err, OMEN_EINVAL, "cluster.labels", "cluster.labels: at most %d bytes",
                CLUSTER_LABELS_BYTES_MAX);
    return rc == OMEN_OK ? join_parse(config->cluster_join, arena, out, err) : rc;
}
