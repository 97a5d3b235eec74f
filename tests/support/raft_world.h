/* Raft groups in a world of their own: simulated clock, network and disks, all choices from one seed. What runs in
 * production between the sockets and the disk is real: raft's core, raft_group, the frames' codec, the records of the
 * node log and their replay. What the groups' entries do is the machine's: they count in
 * tests/property/test_raft_group.c, and are the writes of shards in tests/sim, where also most of a node is real.
 *
 * The network loses, delays, reorders, duplicates and is cut in two, one way or both. A node has one disk and one log for
 * all its replicas; a disk takes its time, is full for a while, alone or with all others, when the log has no more than its
 * reserve, and a crash keeps a part in front of what was on its way.
 * Replicas checkpoint, fetch bases; members come and go. Checked at each step, and a breach ends the process:
 *   - at one index all replicas of a group commit the same entry, for ever;
 *   - one term of a group has one leader;
 *   - what a replica commits of its own proposals is durable on a majority;
 *   - a base is installed, and a log begins after a base, only where the machine's durable state reaches that far.
 *
 * Left out: the bytes of the node log (tests/property/test_node_log.c crashes those); here a disk holds records.
 * Threads: none. Determinism: alike for like seeds, calls and machines; world.hash tells. */
#ifndef OMEN_TESTS_SUPPORT_RAFT_WORLD_H
#define OMEN_TESTS_SUPPORT_RAFT_WORLD_H

#include "consensus/replica_raft_impl.h"

#define WORLD_NODES 5u
#define WORLD_GROUPS_MAX 3u
#define WORLD_STEP_MS 5u
#define WORLD_ELECTION_MS 400u
#define WORLD_HEARTBEAT_MS 80u
#define WORLD_CLIENTS WORLD_NODES /* where messages of the machine's clients come from and go to */
#define WORLD_INDEXES_MAX 20000u
#define WORLD_TERMS_MAX 4096u

struct world;
struct world_node;

/* A group's place on a node. */
struct world_replica {
    struct world *world;
    struct world_node *node;
    uint32_t slot;            /* of the group: its id - 1 */
    uint64_t replica_id;      /* 0: none lives here */
    struct raft_group *group; /* NULL: down */
    uint64_t up_at_ms;        /* when it is tried again */
    uint64_t released;        /* the log may have forgotten entries up to here */
    uint64_t refused_from;    /* on a full disk: as the log has it */
    uint64_t sequence;        /* delivered, in commands */
    uint64_t durable;         /* of the machine, as far as the log may rely on it */
    uint64_t incoming;        /* a base that was fetched reaches this far; 0 = none */
    uint64_t want;            /* a base at least so far, 0 = none wanted */
    uint64_t fetch_at_ms;
    struct world_replica *fetch_peer; /* was asked; its description is here */
    uint64_t fetch_peer_id;
    struct buf description;
    uint64_t described;
    bool given_up; /* its data are damaged: it stays down until its node is up again, or world_replace */
    void *machine; /* the machine's */
};

struct world_node {
    struct world *world;
    uint32_t place; /* node id - 1 */
    bool up;
    bool cut; /* the machine's: it stops at once */
    uint64_t up_at_ms, full_until_ms;
    uint32_t reserve,
            reserve_max; /* while the disk is full: appends that the log has kept room for; at its beginning */
    struct pending_set disk;                      /* what the log holds: kept as a replay would give it */
    struct group_append *writing, **writing_tail; /* in order */
    uint64_t write_at_ms;
    struct world_replica replicas[WORLD_GROUPS_MAX];
    void *machine; /* the machine's */
};

/* What entries do, and whatever else of a node is to be real. Each may be NULL, then the world does the least that
 * will do; of the functions that stand for a part of a replica (from `open` to `close`) all or none. Called from
 * within the group (lost to barrier) they do not call it back. */
struct world_machine {
    /* Make r->group with raft_group_new, of world_group_io and r, and start it; `pending` is what the log holds,
     * taken over. r->durable: the log may begin after it. False: not now (a full disk, a cut). */
    bool (*open)(struct world_replica *r, struct pending *pending);
    void (*tick)(struct world_replica *r);
    void (*frame)(struct world_replica *r, struct frame *frame, uint64_t node_id);
    bool (*fetch)(struct world_replica *r, uint64_t sequence, uint64_t node_id); /* as group_io's */
    void (*checkpoint)(struct world_replica *r); /* sets r->durable, tells raft */
    void (*close)(struct world_replica *r); /* the group is stopped, nothing is in the log's hands: free it */

    void (*commit)(struct world_replica *r, const struct group_commit *entry);
    void (*lost)(struct world_replica *r, enum node_log_entry_type type, void *tag, enum omen_err rc);
    void (*installed)(struct world_replica *r, uint64_t sequence);
    void (*role)(struct world_replica *r);
    void (*changed)(struct world_replica *r, void *tag, enum omen_err rc); /* of what the machine asked for */
    void (*barrier)(struct world_replica *r, enum frame_type type, uint64_t node_id, uint64_t from,
            const struct frame_barrier *barrier);
    bool (*vital)(struct world_replica *r, const void *data, uint32_t len);

    void (*up)(struct world_node *n);     /* before its replicas are */
    void (*crash)(struct world_node *n);  /* this very moment: all that runs on it is about to be freed */
    void (*down)(struct world_node *n);   /* it has been */
    void (*end)(struct world_replica *r); /* the replica ends for good; closed */
    void (*node_step)(struct world_node *n);
    void (*step)(struct world_replica *r);
    void (*disk_full)(struct world_node *n, bool full);
    void (*message)(struct world *w, uint32_t from, uint32_t to, const uint8_t *bytes, size_t len);
};

/* Deliberate bugs of the world, to see that they are found. */
struct world_mutations {
    bool forget_votes; /* a crash loses hard states that counted as durable */
    bool lying_sync;   /* and entries */
};

struct world_commit { /* what was committed at an index */
    bool set, acknowledged;
    uint32_t crc, len;
    enum node_log_entry_type type;
    uint64_t sequence;
};

struct world_group {
    struct world_commit log[WORLD_INDEXES_MAX];
    uint64_t leader_of_term[WORLD_TERMS_MAX];
    uint64_t highest_acknowledged; /* index */
    bool change_out;
    bool held;         /* by the machine: the storm changes no members */
    bool lost;         /* so is a voter's log: what it acknowledged is not where majority_check looks */
    uint64_t removing; /* replica whose removal is under way */
    uint64_t removed;  /* and is committed: its node may forget it */
};

struct world_counts {
    uint64_t proposed, acknowledged, elections, crashes, installs, changes, truncations;
};

struct world {
    uint64_t rng, now_ms, seed;
    uint64_t hash; /* of everything that happened */
    bool trace;    /* print it */
    uint32_t group_count;
    struct world_node nodes[WORLD_NODES];
    struct world_group groups[WORLD_GROUPS_MAX];
    struct world_message *messages;
    uint32_t message_count;
    bool cut[WORLD_NODES + 1][WORLD_NODES + 1]; /* from, to */
    uint32_t loss_per_mille;
    uint32_t
            rage_per_mille; /* of the crashes, full disks, cuts and changes that a storm has; 0 = all of them */
    uint64_t next_replica;
    struct world_counts counts;
    struct world_mutations mutations;
    const struct world_machine *machine; /* borrowed */
    void *arg;                           /* the machine's */
};

/* Three replicas of each group on nodes in turn, bootstrapped; nothing is up until world_up. */
struct world *world_new(uint64_t seed, uint32_t group_count, const struct world_machine *machine, void *arg);
void world_up(struct world *w);
void world_free(struct world *w);

/* One WORLD_STEP_MS. storm: things break. */
void world_step(struct world *w, bool storm);
/* The network is whole, no disk is full, from now on. */
void world_heal(struct world *w);
/* Every member of each leader's configuration that gets the log has committed as far as its leader. */
bool world_settled(struct world *w);
void world_print(struct world *w); /* one line per replica */

uint64_t world_below(struct world *w, uint64_t n);
bool world_chance(struct world *w, uint32_t per_mille);

struct world_replica *world_leader(struct world *w,
        uint32_t slot); /* one of those that believe so; NULL = none */
/* Takes `data` (mem_free) in every case. */
enum omen_err world_propose(struct world_replica *r, uint8_t *data, uint32_t len, void *tag);
/* As a message of the machine, `from` and `to` nodes' places or WORLD_CLIENTS. Copies. */
void world_send(struct world *w, uint32_t from, uint32_t to, const void *bytes, size_t len);

/* The group's io: its arg is the world_replica. */
extern const struct group_io world_group_io;
/* The node stops now, and comes back some time later. */
void world_crash(struct world_node *n);
/* The replica ends, and an empty one of a new id, which is returned, takes its place on the node. */
uint64_t world_replace(struct world_replica *r);
/* What the replica has in the log goes. */
void world_forget(struct world_replica *r);

/* Into the hash, and out when traced. `what` is a literal. */
void world_note(struct world *w, const char *what, uint64_t a, uint64_t b, uint64_t c);
/* A breach: the seed and the sentence on stderr, and abort. */
_Noreturn void world_fail(struct world *w, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
