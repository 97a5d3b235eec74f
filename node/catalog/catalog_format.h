/* Bytes of catalog entries and of the catalog file. Shared by catalog.c and catalog_format.c. */
#ifndef OMEN_NODE_CATALOG_FORMAT_H
#define OMEN_NODE_CATALOG_FORMAT_H

#include "node/catalog/catalog.h"

/* The whole state. */
struct catalog_state {
    uint64_t sequence; /* last applied entry */
    uint64_t next_collection, next_group, next_replica;
    struct map *map; /* one reference */
};

/* A change with what its proposer added. */
struct catalog_entry {
    struct catalog_change change;
    uint64_t log_time_ms;
    uint32_t node_ids[CATALOG_REPLICATION_MAX];
    uint32_t node_count;
};

/* Checks structure, lengths and CRC; names and schema are for apply to judge. OMEN_ECORRUPT. */
OMEN_CHECKED enum omen_err catalog_entry_decode(const void *bytes, size_t len,
        struct catalog_entry *entry_out, struct err *err);

void catalog_state_encode(const struct catalog_state *state, struct buf *out); /* out->failed: no memory */
/* `path` names the file in errors. */
OMEN_CHECKED enum omen_err catalog_state_decode(const uint8_t *bytes, size_t len, const char *path,
        struct catalog_state *state_out, struct err *err);

#endif
