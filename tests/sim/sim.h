/* Shards on Raft groups in the simulated world (tests/support/raft_world.h). Real is what a node runs between its
 * threads and the outside: node/shard_* (writes, reads, leadership, generations of the store), the replica's door,
 * barriers and apply of consensus/, raft's core, and all of storage/. Simulated are clock, network, disk and node
 * log, and whatever has a thread of its own, stepped by the world instead: loops, apply workers, checkpoint thread,
 * room keeper, search pool, fetcher.
 *
 *   client --message--> node: shard_host_submit --> entry --> raft --> apply --> done --message--> client
 *
 * The seam is the linker's: calls of the functions in sim_doors.c come here (--wrap, Makefile), so that no line of
 * the product is compiled differently.
 *
 *   sim_disk.c     a node's disk: vfs_sim, LMDB's files, power cuts at any change, no room
 *   sim_lmdb.c     LMDB finds no room
 *   sim_node.c     a node's host and its steps; opening and closing of shards
 *   sim_doors.c    what the product calls instead of threads
 *   sim_fetch.c    whom a copy of a checkpoint is asked of, and leases
 *   sim_pull.c     the copying
 *   sim_damage.c   bits that flip on disks, and who notices
 *   sim_heal.c     what the leader of the cluster group does: replacing damaged replicas
 *   sim_client.c   clients: requests, retries, what must hold of answers
 *   sim_model.c    what the shards should hold, from what was committed
 *   sim.c          one seed: storm, calm, all down, calm
 *
 * Threads: none. Determinism: alike for like seeds; world.hash tells. */
#ifndef OMEN_TESTS_SIM_SIM_H
#define OMEN_TESTS_SIM_SIM_H

#include "node/shard_host_impl.h"
#include "tests/support/raft_world.h"
#include "tests/support/vfs_hook.h"
#include "tests/support/vfs_sim.h"

#define SIM_DIM 4u
#define SIM_POINTS 24u /* ids 1 .. */
#define SIM_CLIENTS 8u
#define SIM_OPS_MAX 4u /* of a request */
#define SIM_APPLIED_MAX 20000u
#define SIM_RETENTION_MS 6000u
#define SIM_WALL_MS 1700000000000ull /* wall time is this and the world's */
#define SIM_PATH_BYTES 600u

struct sim;

/* ---- model ---- */

struct model_row {
    bool there;
    uint64_t version, expires_ms;
    float vector[SIM_DIM];
    int64_t n, t; /* members of the payload; -1: absent */
};
struct model_rows { /* after one sequence */
    uint64_t log_time_ms;
    struct model_row rows[SIM_POINTS];
};
struct model_op { /* an op id that was applied */
    uint64_t client, seq, sequence;
    uint32_t affected;
};
struct model {
    uint64_t sequence;
    struct model_rows *after[WORLD_INDEXES_MAX];
    struct model_op ops[SIM_APPLIED_MAX];
    uint32_t op_count;
    struct store_digest
            digests[WORLD_INDEXES_MAX]; /* of replicas, by sequence; `sequence` 0: none has told one */
    uint64_t acknowledged;              /* the highest sequence that a client was told */
    struct collection_schema schema;
};
void model_init(struct model *m);
void model_fini(struct model *m);
/* Sequence m->sequence + 1; NULL or what is wrong with it. */
const char *model_commit(struct model *m, uint64_t sequence, const void *entry, uint32_t len);
const struct model_op *model_find(const struct model *m, uint64_t client,
        uint64_t seq); /* NULL = not applied */
/* NULL, or how the row differs from what was read at `sequence` and `now_ms`; `point` NULL: not found. */
const char *model_compare(const struct model *m, uint64_t sequence, uint64_t now_ms, uint64_t id,
        const struct point_view *point);
uint32_t model_count(const struct model *m, uint64_t sequence, uint64_t now_ms);
/* NULL, or that a replica told another digest of the same sequence. */
const char *model_digests(struct model *m, const struct store_digest *digests, uint32_t count);
/* NULL, or what is wrong with the hits of a search for the nearest `k`. */
const char *model_search(const struct model *m, uint64_t sequence, uint64_t now_ms,
        const struct search_params *search, const struct hit *hits, uint32_t count);

/* ---- disk ---- */

struct sim_disk {
    struct sim *sim;
    uint32_t place;
    struct vfs_sim *vfs;
    struct vfs_hook hook;      /* what the node is given */
    char root[SIM_PATH_BYTES]; /* of it: a real directory of that name holds LMDB's files */
    uint64_t cut_in;           /* changes until the power is cut; 0 = never */
    bool is_cut;
    struct vfs_sim *photo; /* what will be found after it */
    /* LMDB's file that may be committed to just now, and what it was before. */
    char watched[SIM_PATH_BYTES + 64];
    uint8_t *before;
    size_t before_len;
    uint64_t commit_at; /* cut_in when it was first seen to have changed; 0 = has not */
    bool undo;          /* the commit did not reach the disk */
    /* The last directory whose copied files became a store, and of LMDB's among them; see sim_pull.c. */
    char adopted_dir[SIM_PATH_BYTES + 64];
    uint32_t adopted_crc, adopting_crc;
};
void sim_disk_init(struct sim_disk *d, struct sim *sim, uint32_t place, uint64_t seed);
void sim_disk_fini(struct sim_disk *d);
void sim_disk_cut(struct sim_disk *d); /* the photo is taken now, if it was not */
struct sim_disk *sim_disk_of(const char *path);
void sim_lmdb_begin(void);               /* of a seed: nothing of the one before is left */
bool sim_disk_refuses(const char *path); /* what asks for room there finds none now */
void sim_disk_fill(struct sim_disk *d, bool full);
void sim_disk_restart(struct sim_disk *d);                      /* on what the photo shows */
void sim_disk_watch(struct sim_disk *d, const char *store_dir); /* until _unwatch LMDB may commit there */
void sim_disk_unwatch(struct sim_disk *d);

/* ---- nodes ---- */

struct sim_clock {
    struct clock base; /* first */
    struct sim_node *node;
};

struct sim_tasks { /* what loop.h calls a loop */
    struct loop_task *head, **tail;
};

enum fetch_state { SIM_FETCH_IDLE, SIM_FETCH_BEGUN, SIM_FETCH_COPIES };
struct sim_fetch {
    enum fetch_state state;
    struct fetch *fetch;
    uint64_t at_ms;
    uint32_t tries;
    struct sim_pull *pull; /* COPIES */
};

/* One attempt at one node: a thread that takes turns with the world. */
struct sim_request;
struct sim_pull {
    struct sim_shard *s;
    struct fetch *of;   /* the shard's; its functions are called through ours: */
    struct fetch fetch; /* what fetch_pull is given */
    uint32_t source;    /* place */
    bool prepared;
    struct sim_request *requests;
    pthread_t thread;
    pthread_mutex_t lock; /* guards pulls, over */
    pthread_cond_t turned;
    bool pulls; /* its turn */
    bool over;  /* rc, err and description are set */
    enum omen_err rc;
    struct err err;
    struct buf description;
};

#define SIM_LEASES 16u
struct sim_lease { /* of a checkpoint of this node's */
    uint64_t id, used_ms;
    uint32_t slot;
    struct ship_source source;
    struct ship_checkpoint checkpoint;
};

struct sim_shard {
    struct sim_node *node;
    struct world_replica *r;
    struct shard_host *host;   /* NULL: not open */
    struct replica_raft *raft; /* as the product made it; NULL: not open */
    bool room_asked;
    uint64_t room_at_ms;
    struct ship_source source; /* .arg NULL: not registered */
    struct sim_fetch fetch;
    uint64_t compared; /* applied, and equal to the model */
};

struct sim_node {
    struct sim *sim;
    struct world_node *n;
    struct sim_disk disk;
    struct sim_clock clock;
    int64_t skew_ms;
    bool dying;  /* all that ends now ends unheard */
    bool ending; /* every deadline has passed */
    struct shard_env env;
    struct shard_peers peers;
    struct replica_host host;
    struct worker worker;
    struct raft_net net;
    struct net_loop loop;
    struct sim_tasks tasks;
    struct search_task *searches, **searches_tail;
    struct fetch_task *fetch_tasks;
    struct sim_shard shards[WORLD_GROUPS_MAX];
    struct sim_lease leases[SIM_LEASES];
    struct sim_call *calls;
    uint64_t slow_until_ms; /* apply pauses */
};

/* ---- damage ---- */

enum flip_kind {
    FLIP_STREAM,
    FLIP_LMDB,
    FLIP_SEGMENT,
    FLIP_SMALL,
    FLIP_KINDS
}; /* SMALL: CHECKPOINT and the like */
enum flip_notice { NOTICE_NONE, NOTICE_OPEN, NOTICE_SCRUB, NOTICE_APPLY };

/* A replica's data are not what was written, from here on until it is replaced. */
struct sim_flip {
    uint64_t replica_id; /* 0: none */
    enum flip_kind kind;
    bool running; /* while it was open */
    enum flip_notice noticed;
};

/* One replacement, as the cluster group records it; see sim_heal.c. */
enum heal_step { HEAL_NONE, HEAL_ADD, HEAL_CATCH_UP, HEAL_SWITCH };
struct sim_heal {
    enum heal_step step;
    uint64_t from, to; /* replicas */
    uint32_t node;     /* place */
    uint64_t call;     /* number of the command that is out; 0 = none */
};

extern const struct world_machine sim_machine;

struct sim_shard *sim_shard_of(const struct shard_host *host);
void sim_shard_fail(struct sim_shard *s, const char *what); /* a breach */
void sim_tasks_run(struct sim_node *node);
void sim_searches_run(struct sim_node *node, uint32_t most);
extern struct sim_shard *sim_opening; /* whose open is under way */
void sim_node_init(struct sim_node *node, struct sim *sim, struct world_node *n);

/* sim_fetch.c */
void sim_fetch_step(struct sim_shard *s);
void sim_fetch_drop(struct sim_shard *s);             /* the copy and its lease */
void sim_fetch_source_gone(struct sim_shard *source); /* leases of it */
void sim_leases_step(struct sim_node *node);
void sim_ship_serve(struct sim_node *node, struct bytes body,
        struct buf *out); /* a request for files, its reply */

/* sim_pull.c */
struct sim_pull *sim_pull_new(struct sim_shard *s, uint32_t source);
bool sim_pull_step(struct sim_pull *pull); /* its turn; true: it is over */
void sim_pull_free(struct sim_pull *pull); /* ends it when it is not */

/* sim_damage.c */
void sim_damage_step(struct sim *sim);
void sim_damage_power_cut(struct sim *sim); /* all nodes are down at once, and bits may flip meanwhile */
bool sim_is_flipped(const struct sim_shard *s);
/* The product says that a replica is damaged: a breach if nothing ever happened to it. */
void sim_damage_noticed(struct sim_shard *s, enum flip_notice how);

/* sim_heal.c */
void sim_heal_step(struct sim *sim);
bool sim_heal_idle(const struct sim *sim);

/* ---- clients ---- */

struct sim_call {           /* at a node, from submit to release */
    struct shard_call call; /* first */
    struct sim_call *next;
    struct sim_node *node;
    struct model *model;
    uint32_t client, attempt;
    uint64_t floor; /* a read must be of this sequence at least */
    bool done;
    uint64_t release_at_ms;
    struct point_op ops[SIM_OPS_MAX];
    float vectors[SIM_OPS_MAX][SIM_DIM];
    uint8_t docs[SIM_OPS_MAX][64];
    struct call_get items[SIM_OPS_MAX];
    struct search_params search;
};
void sim_calls_step(struct sim_node *node,
        bool all); /* releases those whose time has come, or all that are done */
void sim_calls_release(struct sim_node *node, struct shard_host *host); /* all of it; all are done */
/* NULL, or how what is applied differs from the model. */
const char *sim_store_compare(struct model *m, struct shard_store *store);

struct sim_client {
    uint64_t seq, issue_ms;
    uint32_t slot; /* group */
    bool busy;
    uint32_t attempt, node; /* asked now */
    uint64_t retry_at_ms;
    uint64_t token[WORLD_GROUPS_MAX];
    uint64_t reads; /* sent */
};

struct sim_counts {
    uint64_t writes, duplicates, expired, reads, linearizable, searches, segments, refused, power_cuts,
            undone, fetches, compared, merges;
    uint64_t flips, flips_of[FLIP_KINDS], flips_running, noticed_open, noticed_scrub, noticed_apply;
    uint64_t replaced, copies_refused, unjudged, names_refused, lmdb_refused, full_met, copies_failed,
            resumed;
};

struct sim {
    struct world *w;
    uint64_t seed;
    char dir[SIM_PATH_BYTES];
    struct sim_node nodes[WORLD_NODES];
    struct model models[WORLD_GROUPS_MAX];
    struct sim_client clients[SIM_CLIENTS];
    struct shard_store_options store;
    struct sim_flip flips[WORLD_GROUPS_MAX][WORLD_NODES];
    struct sim_heal heals[WORLD_GROUPS_MAX];
    uint64_t heal_calls, heal_calls_ended, lease_count;
    bool flips_come;   /* bits flip in this seed */
    uint32_t scrub_ms; /* between two turns of a shard's scrubber; a seed may have none */
    bool storm;        /* disks are cut, apply pauses */
    bool quiet;        /* clients begin nothing new */
    struct sim_counts counts;
};
void sim_clients_step(struct sim *sim);
void sim_message(struct world *w, uint32_t from, uint32_t to, const uint8_t *bytes, size_t len);
bool sim_clients_idle(const struct sim *sim);

struct sim_options {
    uint64_t seed;
    const char *dir; /* for LMDB's files */
    bool trace;
    struct world_mutations mutations;
};
/* Run one seed to its end; a breach ends the process. Returns the hash of all that happened. */
uint64_t sim_run(const struct sim_options *options, struct sim_counts *totals,
        struct world_counts *world_totals);

#endif
