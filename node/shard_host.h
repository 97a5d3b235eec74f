/* One shard's replica on this node: the store, its place in the log, the batching of its writes, the readiness of its reads.
 *
 *   OPEN --shard_host_retire--> RETIRED (refuses new calls) --calls and proposals in flight end--> close or drop --> (gone)
 *
 * A write:  QUEUED --built into an entry--> PROPOSED --applied--> done(OK or typed rejection)
 *              | deadline: EDEADLINE            | deadline: EUNKNOWN (the entry may still be applied)
 * A read:   (WAITING for its token's sequence, or for the barrier) --> in the search pool, or at once --> done --> released
 *
 * Threads: submit, release and stats from any; sweep from one. See the .c files for who runs what. */
#ifndef OMEN_NODE_SHARD_HOST_H
#define OMEN_NODE_SHARD_HOST_H

#include <pthread.h>
#include <stdatomic.h>

#include "common/clock.h"
#include "common/metrics.h"
#include "common/placement/shard_call.h"
#include "consensus/replica.h"
#include "node/room_keeper.h"
#include "node/search_pool.h"
#include "storage/shard_store.h"

#define SHARD_PROPOSALS_MAX 2u         /* entries in flight; more would only queue behind the same sync */
#define SHARD_WRITES_QUEUED_MAX 16384u /* requests waiting to be built into an entry */
#define SHARD_READS_WAITING_MAX 4096u  /* reads waiting for a sequence or a barrier */
#define READ_STATES_KEPT 64u           /* idle read states with their arenas, per node */
#define READ_INLINE_POINTS_MAX 64u     /* gets of at most this many points run on the caller's thread */

/* What the shards of a node share; owned by the node, outlives its shards. */
struct shard_env {
    struct vfs *vfs;
    struct clock *clock;
    struct replica_host *replica_host;
    struct search_pool *pool;
    struct shard_store_options store; /* template */
    uint64_t read_arena_bytes_max;
    uint64_t shard_inflight_bytes_max;
    uint64_t node_inflight_bytes_max;
    struct room_keeper *rooms;
    _Atomic uint64_t inflight_bytes; /* of all shards */
    /* Bytes that may be written before the disk is looked at again, counting down by what was let in. */
    _Atomic int64_t disk_headroom;
    void (*disk_look)(void *arg); /* any thread; NULL = nobody looks */
    void *disk_arg;
    _Atomic bool disk_full; /* writes but deletes are refused; disk_text says why */
    pthread_mutex_t disk_lock;
    char disk_text[200]; /* guarded by disk_lock */
    pthread_mutex_t reads_lock;
    struct shard_read *reads; /* idle read states, guarded by reads_lock */
    uint32_t reads_kept;
    struct metric_counter *refused_busy, *refused_full, *entries, *entry_requests; /* NULL without metrics */
    struct metric_histogram *engine_seconds;
};
void shard_env_init(struct shard_env *env);
void shard_env_fini(struct shard_env *env);

struct shard_host;

struct shard_host_options {
    struct shard_env *env;
    const char *dir; /* created when missing */
    uint64_t shard_id, replica_id, collection_id, base_sequence;
    const struct collection_schema *schema; /* copied */
    const char *collection_name;            /* copied; for logs and metrics */
};

/* Blocks until every entry that the log holds for the shard is applied, or waits for room on a full disk. */
OMEN_CHECKED enum omen_err shard_host_open(const struct shard_host_options *options,
        struct shard_host **shard_out, struct err *err);
/* Refuse new calls from now on, with `code`; waits until those in flight are done and released. */
void shard_host_retire(struct shard_host *shard, enum omen_err code);
/* Both need a retired shard and free it. Close checkpoints; drop takes it out of the log and leaves its files
 * to the caller. */
void shard_host_close(struct shard_host *shard);
void shard_host_drop(struct shard_host *shard);

/* Keep a shard from being freed while it is used without a call; short. hold needs something that keeps it from being
 * retired meanwhile (the node's table lock). */
void shard_host_hold(struct shard_host *shard);
void shard_host_unhold(struct shard_host *shard);

/* The service's submit and release for calls of one shard; the caller holds the shard until submit returns. */
void shard_host_submit(struct shard_host *shard, struct shard_call *call);
void shard_host_release(struct shard_call *call);
/* For room_keeper_start. */
bool shard_host_make_room(struct shard_host *shard);
/* Have the store check about `bytes` of its stream; see shard_store_scrub. True: this shard's round is over. One thread. */
bool shard_host_scrub(struct shard_host *shard, uint64_t bytes, struct scrub_result *result_out);
/* End calls whose deadline has passed. */
void shard_host_sweep(struct shard_host *shard);

uint64_t shard_host_id(const struct shard_host *shard);
const char *shard_host_collection(const struct shard_host *shard);
void shard_host_stats(struct shard_host *shard, struct shard_store_stats *store_out,
        struct replica_status *replica_out);

#endif
