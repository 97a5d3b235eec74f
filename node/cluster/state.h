/* What the files of node/cluster/ share: a state in the making, entries decoded, and bytes read with bounds.
 *
 *   catalog.c             the machine: apply, checkpoint, who reads
 *   state.c               snapshots: copies, references, look-ups
 *   change_collections.c  collections, aliases, placement
 *   change_cluster.c      nodes, operations;  change_plans.c  what they are begun for
 *   results.c             what became of changes, for those that are asked for twice
 *   entry_format.c        entries as bytes;  state_format.c  the CATALOG file;  format.h  README.md has the tables
 *   catalog_file.c        how that is replaced, on a full disk too */
#ifndef OMEN_NODE_CLUSTER_STATE_H
#define OMEN_NODE_CLUSTER_STATE_H

#include "node/cluster/cluster.h"

/* An entry, of either kind. */
struct cluster_entry {
    uint16_t kind;
    uint64_t log_time_ms;
    struct catalog_change catalog;        /* kind < CLUSTER_CHANGE_INIT */
    struct op_id asked_as;                /* client 0 = none */
    uint32_t node_ids[CLUSTER_NODES_MAX]; /* where to place, the preferred first */
    uint32_t node_count, willing;         /* those from `willing` on: only if there are no others */
    struct cluster_change cluster;        /* else; `moves` is owned: cluster_entry_fini */
};
OMEN_CHECKED enum omen_err cluster_entry_decode(const void *bytes, size_t len,
        struct cluster_entry *entry_out, struct err *err);
bool cluster_entry_known(uint16_t kind); /* to this build */
/* Whether what may be an entry goes on where the log has nothing but its reserve: what gives room back, what brings it
 * (nodes, moves to them), and what carries those on to their end. A loop of other changes, however small, would use the
 * reserve up, and votes and deletes with it. */
bool cluster_entry_vital(const uint8_t *data, size_t len);
void cluster_entry_fini(struct cluster_entry *entry);

/* ---- state.c ---- */
OMEN_CHECKED struct cluster_state *cluster_state_new(uint64_t incarnation); /* NULL: no memory */
OMEN_CHECKED struct cluster_state *cluster_state_clone(
        const struct cluster_state *state); /* refs 1; NULL: no memory */
struct cluster_state *cluster_state_ref(struct cluster_state *state);
/* One more item, zeroed, at `at`; NULL: no memory. */
void *cluster_insert(void *items_at, uint32_t *count, uint32_t at, size_t item_bytes);
void cluster_remove(void *items, uint32_t *count, uint32_t at, size_t item_bytes);
struct map_shard *cluster_map_shard(struct cluster_state *state, uint64_t shard_id,
        struct map_collection **collection_out);

/* ---- changes: `state` is the new one, being made; a rejection leaves it to be thrown away ----
 * OMEN_ENOMEM is a local fault. *map_changed: the map's epoch must rise. */
OMEN_CHECKED enum omen_err cluster_apply_collections(struct cluster_state *state,
        const struct cluster_entry *entry, struct catalog_outcome *outcome, bool *map_changed);
OMEN_CHECKED enum omen_err cluster_apply_cluster(struct cluster_state *state,
        const struct cluster_entry *entry, struct catalog_outcome *outcome, bool *map_changed);

/* Sets that this build is older than the cluster: OMEN_EVERSION. `whose` begins the sentence. */
enum omen_err cluster_version_refuse(const char *whose, uint32_t version, struct err *err);

/* ---- change_cluster.c, for plans ---- */
/* Begin an operation for each move of the entry. A move that cannot be made: outcome->code. OMEN_ENOMEM. */
OMEN_CHECKED enum omen_err cluster_ops_begin(struct cluster_state *state, const struct cluster_entry *entry,
        enum cluster_op_why why, uint64_t plan_id, struct catalog_outcome *outcome);

/* ---- change_plans.c ---- */
OMEN_CHECKED enum omen_err cluster_apply_plans(struct cluster_state *state, const struct cluster_entry *entry,
        struct catalog_outcome *outcome);
/* No further round of the plan, or with 0 of any; how many those are. One without operations ends at once. */
OMEN_CHECKED enum omen_err cluster_plans_cancel(struct cluster_state *state, uint64_t plan_id,
        uint64_t log_time_ms, uint32_t *count_out);
/* The operation is not under way any more: its plan counts it, and ends if it was the last of one that is to. */
OMEN_CHECKED enum omen_err cluster_plan_count(struct cluster_state *state, const struct cluster_op *ended);

/* ---- results.c ---- */
/* Whether the change was made before, or may have been: the outcome is then all there is to it. */
bool cluster_result_settles(const struct cluster_state *state, const struct cluster_entry *entry,
        struct catalog_outcome *outcome);
/* Keep the outcome of a change that was made; those that are older make room. OMEN_ENOMEM. */
OMEN_CHECKED enum omen_err cluster_result_keep(struct cluster_state *state, const struct cluster_entry *entry,
        const struct catalog_outcome *outcome);

/* ---- the file ---- */
void cluster_state_encode(const struct cluster_state *state, struct buf *out); /* out->failed: no memory */
/* As vfs_replace_file, and where there is no room for that, into a file that was allocated for it. */
OMEN_CHECKED enum omen_err catalog_file_replace(struct vfs *vfs, const char *path, const uint8_t *data,
        size_t len, struct err *err);
/* Sees to that file being there, for a CATALOG of about `len` bytes; tells the log when it cannot be. */
void catalog_room_keep(struct vfs *vfs, const char *path, size_t len);
/* `path` names the file in errors. */
OMEN_CHECKED enum omen_err cluster_state_decode(const uint8_t *bytes, size_t len, const char *path,
        struct cluster_state **state_out, struct err *err);

#endif
