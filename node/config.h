/* The configuration of omen-node: one table of keys, documented in deploy/omendb.yaml, and its way into the node's
 * options. What concerns the router is read from struct node_config by standalone.c. */
#ifndef OMEN_NODE_CONFIG_H
#define OMEN_NODE_CONFIG_H

#include "common/config.h"
#include "common/wire/message.h"
#include "node/node.h"

#define NODE_API_KEYS_MAX 256

struct node_config_key { /* one item of auth.keys */
    char *name, *key, *key_file;
    int role;
};

/* The same, read and checked. */
struct node_api_key {
    char name[64];
    char key[WIRE_API_KEY_BYTES_MAX + 1];
    enum wire_role role;
};

struct node_config {
    char *listen, *http_listen, *data_dir;
    int log_level, log_format;
    struct config_list api_keys;
    uint64_t requests_in_service, default_deadline_ns, max_deadline_ns, shards, read_bytes;
    uint64_t chunk_bytes, delta_bytes_max, applied_ops_max;
    uint64_t wal_segment_bytes, wal_bytes_max, wal_batch_bytes_max;
    uint64_t checkpoint_interval_ns, checkpoint_log_bytes;
    uint64_t write_shard_bytes, write_node_bytes, apply_threads;
    uint64_t search_threads, search_queue;
    double disk_min_free_percent;
};

extern const struct config_key node_config_keys[]; /* ends with name == NULL */

/* Into options that were filled with their defaults. Strings are borrowed from the config. */
void node_config_node(const struct node_config *config, struct node_options *options);
/* Reads key files. `keys_out` [NODE_API_KEYS_MAX]. Errors name auth.keys[i]. */
OMEN_CHECKED enum omen_err node_config_api_keys(const struct node_config *config, struct vfs *vfs,
        struct node_api_key *keys_out, uint32_t *count_out, struct err *err);

/* --help-config: every key with type, default and meaning, to stdout. */
void node_config_print(void);

#endif
