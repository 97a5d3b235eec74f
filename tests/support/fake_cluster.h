/* Several nodes in one process: fake shard services behind real node ports, over one tiny replicated state. A node can hold
 * its calls, fail them, lag, give wrong hints, have an old map, or be gone. For tests of the router's way to its nodes. */
#ifndef OMEN_TESTS_SUPPORT_FAKE_CLUSTER_H
#define OMEN_TESTS_SUPPORT_FAKE_CLUSTER_H

#include <pthread.h>
#include <stdatomic.h>

#include "common/metrics.h"
#include "node/node_port.h"

#define FAKE_NODES_MAX 4u
#define FAKE_HELD_MAX 256u
#define FAKE_OPS_MAX 4096u

struct fake_cluster;

struct fake_node {
    struct fake_cluster *cluster;
    struct shard_service service;
    struct node_port *port; /* NULL: gone */
    struct metrics *metrics;
    uint32_t id; /* 1 .. node_count */
    char address[OMEN_ADDRESS_BYTES_MAX + 1];
    /* How it behaves; under cluster->lock. */
    bool hold;           /* keep calls until fake_let_go */
    bool stale;          /* say of reads that they are */
    uint32_t fail_count; /* answer so many calls with fail_code */
    enum omen_err fail_code;
    enum omen_err fail_next; /* and then one more with this; OMEN_OK = no */
    uint32_t unknown_count;  /* apply so many writes, and say that the outcome is not known */
    uint32_t hint;           /* given with NOT_LEADER instead of the leader; UINT32_MAX = none */
    uint64_t sequence;       /* how far it has applied */
    struct map *map;         /* what it knows */
    uint32_t calls[SHARD_CALL_KINDS];
    struct shard_call *held[FAKE_HELD_MAX];
    uint32_t held_count;
    int32_t outstanding; /* submitted and not released */
};

struct fake_cluster {
    pthread_mutex_t lock;
    struct siphash_key key;
    struct fake_node nodes[FAKE_NODES_MAX]; /* [0] is node 1 */
    uint32_t node_count;
    uint32_t leader; /* of every shard; 0 = none */
    uint64_t sequence;
    uint64_t writes; /* applied, duplicates not counted */
    struct op_id ops[FAKE_OPS_MAX];
    uint32_t op_count;
};

/* Collection "c" (id 3), one field of dim 2, `shards` shards 11, 12, ..; every shard on all nodes, or (`spread`) shard i on
 * node 1 + i % node_count alone. Node 1 leads. */
struct fake_cluster *fake_cluster_new(uint32_t node_count, uint32_t shards, bool spread);
void fake_cluster_free(struct fake_cluster *cluster); /* checks that every call was given back */
struct fake_node *fake_node_at(struct fake_cluster *cluster, uint32_t id);
void fake_node_kill(struct fake_cluster *cluster, uint32_t id);
void fake_node_revive(struct fake_cluster *cluster, uint32_t id); /* at the same address */
void fake_cluster_unjoin(struct fake_cluster *cluster);      /* no map, no ids: before a cluster is made */
void fake_let_go(struct fake_cluster *cluster, uint32_t id); /* answers what was held, holds no more */
/* All nodes but `except` (0 = none) get a copy of the map with a higher epoch, changed by `change` (may be NULL). */
void fake_map_advance(struct fake_cluster *cluster, uint32_t except, void (*change)(struct map *map));
uint32_t fake_calls(struct fake_cluster *cluster, uint32_t id, enum shard_call_kind kind);
/* A metric's value as the node's page shows it; 0 when it is not there. */
uint64_t fake_metric(struct metrics *metrics, const char *name_and_labels);

#endif
