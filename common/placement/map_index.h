/* A map with its shards in order of their ids: what a call names is found in a few steps, however many collections there
 * are. Immutable, shared by references. */
#ifndef OMEN_COMMON_PLACEMENT_MAP_INDEX_H
#define OMEN_COMMON_PLACEMENT_MAP_INDEX_H

#include "common/placement/map.h"

struct map_place {
    uint64_t shard_id;
    const struct map_collection *collection;
    const struct map_shard *shard;
};

struct map_index {
    struct map *map;          /* one reference of ours */
    struct map_place *places; /* [count] ascending by shard_id, owned */
    uint32_t count;
    _Atomic uint32_t refs;
};

/* Takes a reference of its own on `map`. NULL when out of memory. Cost: sorts the shards. */
struct map_index *map_index_new(struct map *map);
struct map_index *map_index_ref(struct map_index *index);
void map_index_unref(struct map_index *index); /* NULL is fine */
/* NULL when the map has no such shard. */
const struct map_place *map_index_find(const struct map_index *index, uint64_t shard_id);

#endif
