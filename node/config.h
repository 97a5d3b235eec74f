/* The configuration of omen-node: one table of keys, documented in deploy/omendb.yaml, and its way into the node's
 * options. What concerns the router is read from struct node_config by standalone.c. */
#ifndef OMEN_NODE_CONFIG_H
#define OMEN_NODE_CONFIG_H

#include "common/process/secrets.h"
#include "node/node.h"

struct node_config {
    char *listen, *http_listen, *data_dir;
    char *node_listen, *node_advertise, *cluster_secret, *cluster_secret_file;
    char *cluster_listen, *cluster_advertise, *cluster_join, *cluster_labels;
    int log_level, log_format;
    uint64_t cluster_move_grace_ns;
    struct config_list api_keys;
    uint64_t node_requests_in_service;
    uint64_t requests_in_service, default_deadline_ns, max_deadline_ns, shards, read_bytes;
    uint64_t chunk_bytes, delta_bytes_max, applied_ops_max;
    uint64_t wal_segment_bytes, wal_bytes_max, wal_batch_bytes_max;
    uint64_t checkpoint_interval_ns, checkpoint_log_bytes;
    uint64_t write_shard_bytes, write_node_bytes, apply_threads;
    uint64_t search_threads, search_queue;
    double disk_min_free_percent, recall_cpu_percent;
    uint64_t memory_budget;
    bool index_disabled;
    uint64_t index_threads, index_rows_min, index_memory_bytes, index_tail_rows_max;
};

extern const struct config_key node_config_keys[]; /* ends with name == NULL */

/* Into options that were filled with their defaults. Strings are borrowed from the config. */
void node_config_node(const struct node_config *config, struct node_options *options);

/* What makes it a member of a cluster; all zero without cluster.listen. Addresses are checked and live in `arena`;
 * the rest is borrowed from the config. OMEN_EINVAL names the key. */
OMEN_CHECKED enum omen_err node_config_cluster(const struct node_config *config, struct arena *arena,
        struct node_cluster_options *options_out, struct err *err);

#endif
