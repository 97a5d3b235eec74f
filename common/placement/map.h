/* The map: which collections exist, how their slots are cut into shards, which nodes hold the replicas.
 * Immutable snapshots under one epoch; the catalog's state machine (node/catalog) makes them, routers cache
 * them.
 * Pure data and functions: no clock, no network, no files. */
#ifndef OMEN_COMMON_PLACEMENT_MAP_H
#define OMEN_COMMON_PLACEMENT_MAP_H

#include <stdatomic.h>

#include "common/placement/options.h"
#include "common/query/point.h"

#define OMEN_COLLECTIONS_MAX 10000
#define OMEN_ALIASES_MAX 10000
#define OMEN_SHARDS_MAX 256 /* per collection, a power of two is not required */
#define OMEN_REPLICAS_MAX 8 /* of one shard */
#define OMEN_NODES_MAX 1024
#define OMEN_ADDRESS_BYTES_MAX 127 /* "tcp://host:port" */

struct map_shard {
    uint64_t shard_id;               /* = raft group id; never reused */
    uint32_t slot_first, slot_count; /* contiguous range of the 4096 slots */
    uint64_t base_sequence;
    uint64_t replica_ids[OMEN_REPLICAS_MAX];
    uint32_t node_ids[OMEN_REPLICAS_MAX]; /* beside replica_ids */
    uint32_t replica_count;
};

struct map_collection {
    uint64_t id; /* never reused; requests carry it between rooms, not the name */
    char name[OMEN_NAME_BYTES_MAX + 1];
    struct collection_schema schema;
    float recall_target; /* 0 < r <= 1; exact search reaches any */
    struct collection_options options;
    uint32_t replication;
    uint64_t created_ms;
    struct map_shard *shards; /* [shard_count], in order of slot_first, owned by the map */
    uint32_t shard_count;
};

struct map_alias {
    char name[OMEN_NAME_BYTES_MAX + 1];
    uint64_t collection_id;
};

struct map {
    uint64_t epoch;                     /* rises with every change */
    uint64_t incarnation;               /* of the cluster; part of tokens */
    struct map_collection *collections; /* [collection_count] sorted by name */
    uint32_t collection_count;
    struct map_alias *aliases; /* [alias_count] sorted by name */
    uint32_t alias_count;
    _Atomic uint32_t refs;
};

/* Where a node is reached, beside the map: addresses change without an epoch. */
struct map_node {
    uint32_t node_id;                         /* never 0 */
    char address[OMEN_ADDRESS_BYTES_MAX + 1]; /* "" = not known: where the node was asked already */
};

struct map *map_ref(struct map *map); /* returns map */
void map_unref(struct map *map);      /* frees at zero, with mem_free what the map owns; NULL is fine */
/* Deep, refs = 1, for the next epoch; NULL when out of memory. */
struct map *map_clone(const struct map *map);

/* By name or alias; NULL when unknown. Binary search; a name comes before an alias. */
const struct map_collection *map_find(const struct map *map, const char *name, size_t len);
/* NULL when unknown. Looks through all collections (they are sorted by name). */
const struct map_collection *map_find_id(const struct map *map, uint64_t collection_id);
/* `slot` < OMEN_SLOT_COUNT; the collection's shards cover every slot (CHECKed). */
const struct map_shard *map_shard_of_slot(const struct map_collection *collection, uint32_t slot);
/* Cut 4096 slots into `shard_count` nearly equal contiguous ranges: fills slot_first/slot_count. */
void map_cut_slots(struct map_shard *shards, uint32_t shard_count);
/* Name rules of OMEN_NAME_BYTES_MAX's comment; the error names `field`. OMEN_EINVAL, OMEN_ETOOBIG. */
OMEN_CHECKED enum omen_err map_check_name(const char *name, size_t len, const char *field, struct err *err);
/* dims, metrics, names, count, shard key path; errors name "vectors", "vectors[1].dim" or "shard_key". */
OMEN_CHECKED enum omen_err map_check_schema(const struct collection_schema *schema, struct err *err);

#endif
