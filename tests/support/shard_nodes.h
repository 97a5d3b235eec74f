/* Replicas of one shard on several nodes in one process: a replica host each with real TCP between them, over a
 * directory of its own, and what a shard_host needs of a node. Time is real; nothing asserts on it but through wide
 * limits. */
#ifndef OMEN_TESTS_SUPPORT_SHARD_NODES_H
#define OMEN_TESTS_SUPPORT_SHARD_NODES_H

#include "node/fetch.h"
#include "node/node_port.h"
#include "node/shard_host.h"
#include "node/ship.h"

#define SHARD_NODES_MAX 5u
#define SHARD_NODES_WAIT_MS 45000u
#define SHARD_NODES_DIM 8u
#define SHARD_NODES_GROUP 11u

struct shard_nodes;

struct shard_node {
    struct shard_nodes *nodes;
    uint32_t node_id;
    char dir[300];
    struct replica_host *host; /* NULL while down */
    struct shard_env env;
    struct shard_peers peers;
    pthread_mutex_t lock; /* guards `shard` against the sweeper */
    struct shard_host *shard;
    uint64_t replica_id; /* of `shard` */
    uint16_t port;       /* of raft; the same over restarts */
    struct node_port *file_server;
    uint16_t file_port; /* of the port that serves files; the same over restarts */
    struct vfs *vfs;    /* of its shard; NULL = the real one */
    _Atomic uint32_t changes;
    _Atomic unsigned lacks; /* enum peer_short, as the others are told */
};

struct shard_nodes {
    char dir[256];
    struct shard_node nodes[SHARD_NODES_MAX];
    uint32_t count;
    struct replica_host_options host; /* template */
    struct shard_store_options store; /* template */
    struct collection_schema schema;
    struct siphash_key key;
    _Atomic uint64_t throttle;
    pthread_t sweeper;
    _Atomic bool stop;
};

/* `count` nodes, none up. */
void shard_nodes_init(struct shard_nodes *n, uint32_t count);
void shard_nodes_fini(struct shard_nodes *n); /* takes down what is up, removes the directories */
void shard_node_up(struct shard_nodes *n, uint32_t i);
/* A replica of the group; `members` of its first configuration or NULL. */
void shard_node_open(struct shard_nodes *n, uint32_t i, uint64_t replica_id,
        const struct replica_member *members, uint32_t count);
void shard_node_close(struct shard_nodes *n, uint32_t i);
void shard_node_down(struct shard_nodes *n, uint32_t i); /* the replica too */
/* All up; replicas 1..voters on nodes 1..voters begin the group. */
void shard_nodes_start(struct shard_nodes *n, uint32_t voters);
void shard_nodes_reopen(struct shard_nodes *n, uint32_t i); /* up again, with the replica it had */

/* Who may propose; waits. `but`: not this one, UINT32_MAX = any. */
uint32_t shard_nodes_leader(struct shard_nodes *n, uint32_t but);
/* Submit at a node and wait; release with shard_host_release. */
enum omen_err shard_node_run(struct shard_node *node, struct shard_call *call);
/* One point, its id in the vector's first component. */
enum omen_err shard_node_upsert(struct shard_node *node, uint64_t id, struct op_id op_id,
        struct shard_call *call);
/* Points first .. first + count - 1 in one request at the leader, each with `bytes` of payload. Returns the
 * sequence. */
uint64_t shard_nodes_fill(struct shard_nodes *n, uint64_t first, uint32_t count, uint32_t bytes);
/* The same, once: its answer. */
uint64_t shard_nodes_fill_once(struct shard_nodes *n, uint64_t first, uint32_t count, uint32_t bytes,
        enum omen_err *rc_out);
/* Nothing is applied at the node until it is let go. */
void shard_nodes_hold_apply(struct shard_node *node, bool hold);
/* Two checkpoints at every replica: the log may be dropped up to there. */
void shard_nodes_checkpoint(struct shard_nodes *n);
/* At whoever leads, retried with the same op id until OK. Returns the sequence. */
uint64_t shard_nodes_upsert(struct shard_nodes *n, uint64_t id, struct op_id op_id);
/* Points of a replica, or UINT64_MAX with the error in *code_out; without a code_out one that is unavailable is
 * asked again. */
uint64_t shard_node_count(struct shard_node *node, enum consistency consistency, uint64_t token,
        enum omen_err *code_out);
void shard_node_wait_applied(struct shard_node *node, uint64_t sequence);
void shard_node_wait_ready(struct shard_node *node);
enum omen_err shard_node_change(struct shard_node *node, char kind, uint64_t replica_id, uint64_t arg);

#endif
