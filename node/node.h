/* The node room's door: one data directory, the replicas in it, and the service that routers ask.
 *
 *   OPENING --identity, log, catalog, every shard the catalog names--> READY --stop--> STOPPING --checkpoint--> (gone)
 *
 * Data directory: LOCK (flock while open), NODE (identity), log/ (write-ahead log of all replicas), catalog/ (the catalog's
 * checkpoint), shards/<group>-<replica>/ (one shard_store each). README.md has the formats of NODE and catalog/. */
#ifndef OMEN_NODE_NODE_H
#define OMEN_NODE_NODE_H

#include "common/clock.h"
#include "common/metrics.h"
#include "common/placement/shard_call.h"
#include "common/siphash.h"
#include "common/vfs.h"
#include "consensus/replica.h"
#include "storage/shard_store.h"

struct node;
struct ship;

/* What makes a node a member of a cluster (node/member/README.md); all zero: it is by itself. */
struct node_cluster_options {
    bool member;
    struct siphash_key key;   /* of the cluster's secret */
    const char *listen;       /* numeric "host:port" for the replicas of other nodes */
    const char *raft_address; /* by which others reach it */
    const char *address;      /* by which routers and nodes reach the node port, "tcp://host:port" */
    const char *labels;       /* "zone=a,rack=2": the first is the failure domain; "" = the node itself */
    const char *const *join;  /* [join_count] node ports of others that an empty node asks to be taken in */
    uint32_t join_count;
    uint64_t move_grace_ns; /* a move whose target is down for longer is given up */
};

struct node_options {
    const char *data_dir;
    struct vfs *vfs;                     /* borrowed */
    struct clock *clock;                 /* borrowed */
    struct metrics *metrics;             /* borrowed; may be NULL */
    struct node_cluster_options cluster; /* strings are borrowed for the node's life */
    struct replica_host_options host; /* log.dir, log.node_id, vfs, clock and metrics are set by node_open */
    struct shard_store_options store; /* template: limits only */
    uint32_t search_threads;          /* 0 = one per core */
    uint32_t search_queue_max;        /* reads waiting for a thread; OMEN_EBUSY above; default 1024 */
    uint64_t read_arena_bytes_max;    /* memory of one read's result; default 128 MiB */
    uint64_t
            shard_inflight_bytes_max; /* write bytes queued and proposed, per shard; OMEN_EBUSY above; 64 MiB */
    uint64_t node_inflight_bytes_max; /* of all shards; 256 MiB */
    uint32_t shards_max;              /* open shards; creating more is OMEN_ETOOBIG; default 1024 */
    bool index_disabled;              /* no graphs: every search is exact */
    uint64_t memory_budget;  /* of what the node keeps in memory; 0 = half of the machine's or cgroup's */
    uint32_t index_threads;  /* of one build; default 1 */
    uint32_t index_rows_min; /* rows that are worth a graph; 0 = storage's own */
    uint64_t index_tail_rows_max; /* of a shard in no graph: past it writes come again later; 0 = no bound */
    uint64_t
            index_memory_bytes; /* graphs are kept in memory up to here, mapped above; 0 = what the budget leaves */
    /* Of one core, that live recall may take at most; default 1; 0 = none is measured. */
    double recall_cpu_percent;
    double disk_min_free_percent; /* writes but deletes are refused below; default 10; 0 = off */
};
void node_options_default(struct node_options *options);

/* Blocks until every shard is open and every logged entry applied. OMEN_EBUSY: the directory is another process's.
 * OMEN_ECORRUPT names file and offset; nothing is changed then (CORRECTNESS D3). */
OMEN_CHECKED enum omen_err node_open(const struct node_options *options, struct node **node_out,
        struct err *err);
/* Ends what is outstanding, checkpoints every shard. The metrics registry must not be rendered any more: it reads us. */
void node_close(struct node *node);

uint32_t node_number(const struct node *node); /* its id, as placements name it; 0 = in no cluster yet */

/* Of a member; for its node port (node_port_options). */
uint32_t node_members(struct node *node, struct map_node *nodes_out);
void node_peer_request(struct node *node, struct doc request, struct doc_builder *reply);

/* Valid until node_close. */
struct ship *node_ship(struct node *node); /* for the node port; NULL in standalone mode */
const struct shard_service *node_service(struct node *node);

#endif
