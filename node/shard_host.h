/* One shard's replica on this node: the store, its place in the log, the batching of its writes, the readiness of
 * its reads.
 *
 * Alone (standalone mode) or one of a Raft group (`raft`): then writes are taken by the leader only, reads as K3 of
 * the design has it, and a replica that fell behind the log gets a peer's checkpoint (fetch.h).
 *
 *   OPEN --shard_host_retire--> RETIRED (refuses new calls) --calls and proposals in flight end--> close or drop -->
 *   (gone)
 *
 * A write:  QUEUED --built into an entry--> PROPOSED --applied--> done(OK or typed rejection)
 *              | deadline: EDEADLINE            | deadline: EUNKNOWN (the entry may still be applied)
 * A read:   (WAITING for its token's sequence, or for the barrier) --> in the search pool, or at once --> done -->
 * released
 *
 * Threads: submit, release and stats from any; sweep from one. See the .c files for who runs what. */
#ifndef OMEN_NODE_SHARD_HOST_H
#define OMEN_NODE_SHARD_HOST_H

#include <pthread.h>
#include <stdatomic.h>

#include "common/clock.h"
#include "common/metrics.h"
#include "common/placement/shard_call.h"
#include "common/recall.h"
#include "common/siphash.h"
#include "consensus/replica.h"
#include "node/index_progress.h"
#include "node/room_keeper.h"
#include "node/search_pool.h"
#include "storage/shard_index.h"
#include "storage/shard_store.h"

#define SHARD_PROPOSALS_MAX 2u         /* entries in flight; more would only queue behind the same sync */
#define SHARD_WRITES_QUEUED_MAX 16384u /* requests waiting to be built into an entry */
#define SHARD_INDEX_WAITS_MAX 4096u    /* writes that are answered when they are indexed */
#define SHARD_READS_WAITING_MAX 4096u  /* reads waiting for a sequence or a barrier */
#define SHARD_READY_LAG_ENTRIES 64u
#define SHARD_READY_LAG_BYTES (1u << 20)
#define SHARD_BEHIND_BYTES                                                                                   \
    (12u << 20)               /* less than a leader keeps of its log: further behind takes a copy of it all */
#define SHARD_GRACE_MS 10000u /* how long writes wait for a minority that is behind, or whose disk is full */
#define SHARD_SILENT_ELECTIONS 2u  /* without a leader for so many election times: eventual reads only (K3) */
#define READ_STATES_KEPT 64u       /* idle read states with their arenas, per node */
#define READ_INLINE_POINTS_MAX 64u /* gets of at most this many points run on the caller's thread */

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
    struct ship *ship;               /* of Raft groups: serves checkpoints to other nodes; NULL = does not */
    struct fetcher *fetcher;         /* of Raft groups: brings theirs; NULL = stays behind */
    uint64_t behind_bytes, grace_ms; /* SHARD_BEHIND_BYTES, SHARD_GRACE_MS; 0 = these */
    bool recalls;                    /* somebody calls shard_host_recall */
    bool indexes;                    /* somebody calls shard_host_index */
    uint64_t election_ms;            /* of Raft groups; as the replica_host has it */
    struct room_keeper *rooms;
    _Atomic bool memory_full;  /* what cannot be had smaller passes memory.budget: only deletes and reads */
    _Atomic bool memory_short; /* the files that searches read do not fit in memory */
    uint64_t tail_rows_max;    /* rows of a shard in no segment, past which writes wait; 0 = no bound */
    _Atomic uint64_t inflight_bytes; /* of all shards */
    /* Bytes that may be written before the disk is looked at again, counting down by what was let in. */
    _Atomic int64_t disk_headroom;
    void (*disk_look)(void *arg); /* any thread; NULL = nobody looks */
    void *disk_arg;
    _Atomic bool clock_off; /* this node's clock is so far off the cluster's median that it may not lead */
    _Atomic int64_t clock_skew_ms;    /* ahead of it, as last told */
    _Atomic uint32_t replicas_differ; /* at the leader of the cluster group: of all shards, as last seen */
    _Atomic bool disk_full;           /* writes but deletes are refused; disk_text says why */
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

/* What keeps a replica, or its node, from taking more writes; bits. */
enum peer_short {
    PEER_DISK_FULL = 1,
    PEER_MEMORY_FULL = 2,
    PEER_TAIL_FULL = 4, /* of the shard asked for: index.tail_rows_max */
    PEER_CLOCK_OFF = 8, /* it may not lead (CORRECTNESS A3) */
};

/* What a replica asks of the node about the others. All functions: any thread, must not block. */
struct shard_peers {
    void *arg;
    /* Node port of a node, "tcp://host:port"; false when it is not known. */
    bool (*address)(void *arg, uint32_t node_id, char *out /* [OMEN_ADDRESS_BYTES_MAX + 1] */);
    /* Nodes of a shard's replicas, as placed: a new replica knows of none itself. [FETCH_CANDIDATES_MAX]; may be
     * NULL. */
    uint32_t (*replicas)(void *arg, uint64_t shard_id, uint32_t *nodes_out);
    struct siphash_key key; /* of messages between nodes */
    unsigned (*short_of)(void *arg, uint32_t node_id,
            uint64_t shard_id);      /* as far as is known; NULL = of nothing */
    void (*changed)(void *arg);      /* leadership, damage or readiness of a replica: report soon */
    uint64_t (*throttle)(void *arg); /* bytes per second that catching up may take; 0 = no limit */
    uint32_t (*level)(void *arg);    /* the cluster's version; NULL = the build's own level */
};

struct shard_host_options {
    struct shard_env *env;
    const char *dir; /* created when missing */
    uint64_t shard_id, replica_id, collection_id, base_sequence;
    const struct collection_schema *schema; /* copied */
    const char *collection_name;            /* copied; for logs and metrics */
    float recall_target;                    /* of searches through graphs; 0 = storage's own */
    struct collection_options options;

    bool raft; /* a replica of a Raft group: shard_id is the group; false: the members below count for nothing */
    uint32_t node_id;
    const struct shard_peers *peers; /* outlives the shard */
    /* The recorded initial members, when this replica is one of them: written when nothing of the group is here yet.
     * NULL: it is added by the group's leader. */
    const struct replica_member *bootstrap;
    uint32_t bootstrap_count;
};

/* Alone: blocks until every entry that the log holds for the shard is applied, or waits for room on a full disk. In
 * a Raft group it waits for neither entries nor a leader, and damaged files are no error: the replica is there,
 * serves nothing, takes no part in its group, and says so in its status. */
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
/* Have the store check about `bytes` of its stream; see shard_store_scrub. True: this shard's round is over. One
 * thread. */
bool shard_host_scrub(struct shard_host *shard, uint64_t bytes, struct scrub_result *result_out);
/* Have the store do the next piece of indexing; see shard_index_step. `policy` but for what the collection says.
 * Given up with OMEN_ECANCELED when *stop, when the shard is retired, or when its store is replaced. One thread. */
OMEN_CHECKED enum omen_err shard_host_index(struct shard_host *shard, const struct index_policy *policy,
        uint32_t threads, _Atomic bool *stop, bool *worked_out, struct err *err);
/* The same for the next rows of its tail; see shard_index_tail. One thread, beside the one above. */
OMEN_CHECKED enum omen_err shard_host_index_tail(struct shard_host *shard, const struct index_policy *policy,
        _Atomic bool *stop, bool *worked_out, struct err *err);
/* Memory of its indexes and tables; what its deltas take is added to *deltas_io. Cheap. */
void shard_host_memory(struct shard_host *shard, struct shard_index_memory *memory_out, uint64_t *deltas_io);
void shard_host_index_stats(struct shard_host *shard, struct shard_index_stats *stats_out);
/* What is being built now. Any thread. */
void shard_host_index_work(struct shard_host *shard, struct index_work *work_out);
/* Live recall (recall_meter.h): how many searches wait to be compared; compare them, in one pass over the shard's
 * rows, and draw the conclusions. Given up when *stop or when the shard is retired. One thread; no more memory than
 * a read has. The number of searches compared. */
uint32_t shard_host_recall_kept(struct shard_host *shard);
uint32_t shard_host_recall(struct shard_host *shard, _Atomic bool *stop);
struct shard_recall_stats {
    struct recall_counts counts; /* of the last searches compared, all with the effort there is now */
    uint64_t compared;           /* searches, since open */
    uint32_t boost;              /* steps of effort above what the target asks for by calibration */
};
void shard_host_recall_stats(struct shard_host *shard, struct shard_recall_stats *stats_out);
/* End calls whose deadline has passed. */
void shard_host_sweep(struct shard_host *shard);

/* They were changed. Any thread. */
void shard_host_set_options(struct shard_host *shard, float recall_target,
        const struct collection_options *options);

/* What is reported of a replica. */
struct shard_host_status {
    struct replica_status replica; /* all 0 but the ids when damage kept it from being opened */
    uint64_t applied, bytes, points;
    /* Serves: in touch with a leader, at most SHARD_READY_LAG_ENTRIES or SHARD_READY_LAG_BYTES behind it, not
     * fetching a base, store fine. */
    bool ready;
    bool fetching;                    /* a peer's checkpoint */
    bool tail_full;                   /* index.tail_rows_max is reached */
    uint64_t fetch_done, fetch_total; /* bytes; 0, 0 until the peer has said */
    bool damaged;                     /* serves nothing; its files are kept until it is dropped */
    char trouble[ERR_MESSAGE_BYTES];  /* why it is damaged or the last fetch failed; "" = nothing */
};
void shard_host_status(struct shard_host *shard, struct shard_host_status *status_out);
/* Of the points here, to be compared with those of the other replicas: shard_store_digests; 0: there are none now. */
uint32_t shard_host_digests(struct shard_host *shard, struct store_digest digests_out[STORE_DIGESTS_MAX]);
/* The others do not have the points that replica `replica_id` has: if that is this one, it serves nothing from now
 * on, like one whose files are damaged. Any thread. */
void shard_host_distrust(struct shard_host *shard, uint64_t replica_id, const struct err *why);
/* For changes of members, and of who leads; NULL when damage kept it from being opened. Lives as long as the shard.
 * */
struct replica *shard_host_replica(struct shard_host *shard);

uint64_t shard_host_id(const struct shard_host *shard);
const char *shard_host_collection(const struct shard_host *shard);
void shard_host_stats(struct shard_host *shard, struct shard_store_stats *store_out,
        struct replica_status *replica_out);

#endif
