/* The catalog's entry and file on arbitrary bytes. Half of the inputs get their checksum repaired, or hardly any
 * mutation would get past it. What is taken for a catalog must be one: it is walked and written again. */
#include "common/err.h"

#include <string.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/crc32c.h"
#include "node/cluster/state.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void repair(uint8_t *bytes, size_t len, size_t crc_at)
{
    if (len < crc_at + 4) return;
    store_u32(bytes + crc_at, crc32c(crc32c(0, bytes, crc_at), bytes + crc_at + 4, len - crc_at - 4));
}

static void walk_state(const struct cluster_state *state)
{
    const struct map *map = state->map;
    struct buf again;
    buf_init(&again);
    for (uint32_t i = 0; i < map->collection_count; i++) {
        const struct map_collection *c = &map->collections[i];
        CHECK(map_find(map, c->name, strlen(c->name)) != NULL);
        CHECK(c->shard_count > 0 && c->shard_count <= OMEN_SHARDS_MAX);
        for (uint32_t slot = 0; slot < OMEN_SLOT_COUNT; slot += 511)
            CHECK(map_shard_of_slot(c, slot) != NULL);
    }
    cluster_state_encode(state, &again);
    CHECK(!again.failed);
    buf_fini(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1) return 0;
    size_t len = size - 1;
    uint8_t *bytes = mem_must_alloc(len + 1); /* exact end, so that ASan sees a read past it */
    struct cluster_entry entry;
    struct cluster_state *state;
    struct err err;
    memcpy(bytes, data + 1, len);
    if (data[0] & 1) repair(bytes, len, 12);
    if (cluster_entry_decode(bytes, len, &entry, &err) == OMEN_OK) {
        CHECK(memchr(entry.catalog.name, '\0', sizeof entry.catalog.name) != NULL);
        CHECK(memchr(entry.cluster.address, '\0', sizeof entry.cluster.address) != NULL);
        CHECK(entry.node_count <= CLUSTER_NODES_MAX && entry.cluster.move_count <= CLUSTER_MOVES_MAX);
        cluster_entry_fini(&entry);
    }
    memcpy(bytes, data + 1, len);
    if (data[0] & 1) repair(bytes, len, 16);
    if (cluster_state_decode(bytes, len, "fuzz", &state, &err) == OMEN_OK) {
        walk_state(state);
        cluster_state_unref(state);
    }
    mem_free(bytes);
    return 0;
}
