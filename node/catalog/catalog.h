/* The catalog: which collections and aliases exist and how their shards are placed. A replicated state machine of its own
 * group; in this version of one replica.
 *
 * Deterministic: everything a change needs (log time, nodes to place on) is in its entry; ids come from counters that are
 * part of the state and never reuse a value (CORRECTNESS I3, C6). A change that cannot be done is a typed rejection, the
 * same on every replica. The state is an immutable `struct map` that a change replaces as a whole.
 *
 * Persisted by checkpoint as one file, catalog/CATALOG, replaced atomically. Formats: README.md of node/. */
#ifndef OMEN_NODE_CATALOG_H
#define OMEN_NODE_CATALOG_H

#include "common/placement/shard_call.h"
#include "common/vfs.h"
#include "consensus/replica.h"

#define CATALOG_GROUP 1u /* its group id; shards get ids from 2 on */
#define CATALOG_REPLICATION_MAX 8u
#define CATALOG_SHARDS_MAX 65536u /* of all collections */
#define CATALOG_FILE_BYTES_MAX (256u << 20)
#define CATALOG_ENTRY_BYTES_MAX (64u << 10)

struct catalog;

/* What became of a proposed change: given as the proposal's arg. */
struct catalog_outcome {
    enum omen_err code;
    struct err err;
    uint64_t collection_id; /* created, dropped, or the alias's target */
};

/* Read `dir`/CATALOG, or begin empty under `incarnation`. OMEN_ECORRUPT names the file; a file of another incarnation is
 * one of those. */
OMEN_CHECKED enum omen_err catalog_open(struct vfs *vfs, const char *dir, uint64_t incarnation,
        struct catalog **catalog_out, struct err *err);
void catalog_close(struct catalog *catalog);

/* To be hosted as group CATALOG_GROUP; borrows the catalog. */
void catalog_fsm(struct catalog *catalog, struct replica_fsm *fsm_out);

/* The newest applied state, referenced: map_unref it. Any thread. */
struct map *catalog_map(struct catalog *catalog);
/* Every group id given out so far is below this. */
uint64_t catalog_next_group(struct catalog *catalog);

/* A change as an entry to propose (mem_free), a multiple of 8 bytes. `node_ids` [node_count]: nodes that shards of a new
 * collection may be placed on. OMEN_ENOMEM only. */
OMEN_CHECKED enum omen_err catalog_entry_encode(const struct catalog_change *change, uint64_t log_time_ms,
        const uint32_t *node_ids, uint32_t node_count, uint8_t **entry_out, uint32_t *len_out);

#endif
