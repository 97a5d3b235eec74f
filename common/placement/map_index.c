/* See map_index.h. */
#include "common/placement/map_index.h"

#include <stdlib.h>

#include "common/check.h"
#include "common/mem.h"

static int place_order(const void *a, const void *b)
{
    uint64_t x = ((const struct map_place *)a)->shard_id, y = ((const struct map_place *)b)->shard_id;
    return (x > y) - (x < y);
}

struct map_index *map_index_new(struct map *map)
{
    size_t count = 0;
    for (uint32_t i = 0; i < map->collection_count; i++) count += map->collections[i].shard_count;
    struct map_index *index = mem_calloc(1, sizeof *index);
    struct map_place *places = mem_calloc(count + 1, sizeof *places);
    if (index == NULL || places == NULL) {
        mem_free(index);
        mem_free(places);
        return NULL;
    }
    size_t at = 0;
    for (uint32_t i = 0; i < map->collection_count; i++) {
        const struct map_collection *c = &map->collections[i];
        for (uint32_t s = 0; s < c->shard_count; s++)
            places[at++] = (struct map_place){ c->shards[s].shard_id, c, &c->shards[s] };
    }
    qsort(places, count, sizeof *places, place_order);
    index->map = map_ref(map);
    index->places = places;
    index->count = (uint32_t)count;
    atomic_init(&index->refs, 1);
    return index;
}

struct map_index *map_index_ref(struct map_index *index)
{
    uint32_t before = atomic_fetch_add_explicit(&index->refs, 1, memory_order_relaxed);
    CHECK(before > 0);
    return index;
}

void map_index_unref(struct map_index *index)
{
    if (index == NULL) return;
    uint32_t before = atomic_fetch_sub_explicit(&index->refs, 1, memory_order_acq_rel);
    CHECK(before > 0);
    if (before > 1) return;
    map_unref(index->map);
    mem_free(index->places);
    mem_free(index);
}

const struct map_place *map_index_find(const struct map_index *index, uint64_t shard_id)
{
    uint32_t low = 0, high = index->count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (index->places[middle].shard_id < shard_id)
            low = middle + 1;
        else
            high = middle;
    }
    return low < index->count && index->places[low].shard_id == shard_id ? &index->places[low] : NULL;
}
