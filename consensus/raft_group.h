/* One replica of a Raft group around raft's core: its log in memory, its votes, its messages, its snapshots.
 * Does no input or output itself: struct group_io does, so that a simulation can be that too.
 *
 *                       +-- hard state, entries, base --> io->append ... raft_group_appended
 *   frame, proposal, -->| raft_step
 *   tick, appended      +-- messages --> held until the hard state before them is durable --> io->send
 *                       +-- commit index --> entries that are durable here too --> io->commit
 *
 *   Role:  FOLLOWER --no leader heard--> CANDIDATE --majority--> LEADER     any --higher term--> FOLLOWER
 *
 * What this file adds to the core, and why:
 *   - Votes and terms are appended to the node log like entries; messages that follow wait for them. The loop
 *     never waits for a disk, so 64 elections at once share a few syncs.
 *   - An entry counts as stored only if the append that carried *it* is durable: the same (index, term) may be
 *     truncated and come again while the first append is still on its way.
 *   - An append refused by a full disk is kept and tried again in order; no entry after it goes out (D2).
 *   - A follower whose disk is short of room says so in its answers (the core's field for capacity, which it leaves alone
 *     when no threshold is set), so that its leader hears of it within a heartbeat.
 *   - A message with a configuration that is not its first entry is taken in two steps: the core notes the
 *     index of the message's first new entry as the configuration's.
 *   - An append that reaches below what is committed here is moved up to there before the core sees it.
 *   - A follower acknowledges no more than it has compared with this leader's log: the core acknowledges all that it
 *     has stored, also what an earlier leader left behind the entries compared so far, and the leader would commit
 *     it.
 *   - A refused pre-vote carries the refuser's term, or a candidate with an old term never stands for good.
 *   - A replica that is no voter in the configuration it knows votes all the same when it is asked.
 *   - A snapshot offered by the leader is given to the core only when its base is durable here (C4): until
 *     then this replica is an ordinary follower with its old log, whose votes rest on what it holds.
 *   - Our own snapshot is told to the core when our checkpoint is durable, never before (C5).
 *
 * Threads: the loop that owns it, all functions. Determinism: alike for like calls, seed and clock. */
#ifndef OMEN_CONSENSUS_RAFT_GROUP_H
#define OMEN_CONSENSUS_RAFT_GROUP_H

#include "consensus/frame.h"
#include "consensus/loop.h"
#include "consensus/replica.h"

#define GROUP_HELD_FRAMES_MAX 1024u /* waiting for a hard state; the oldest is dropped, raft asks again */
#define GROUP_INFLIGHT_ENTRIES 64u  /* not yet acknowledged, per follower */
#define GROUP_FULL_RETRY_MS 200u

struct raft_group;

/* One append to the node log: hard state, entries, a base, or a truncation and entries. */
struct group_append {
    struct node_log_append append; /* first */
    struct raft_group *group;
    struct group_append *next; /* the group's */
    uint64_t id;
    uint64_t first, last; /* entries; first > last = none */
    bool hard_state, base;
    enum omen_err result; /* for whoever brings it back */
    uint64_t vote;
    uint8_t *body;                    /* of a base record */
    struct shared **owners;           /* [last - first + 1] */
    struct loop_task task;            /* io's: brings it back to the loop */
    struct node_log_record records[]; /* append.records */
};

/* A committed entry in the order of the log. */
struct group_commit {
    uint64_t index, sequence;
    enum node_log_entry_type type;
    struct shared *owner; /* borrowed for the call */
    const uint8_t *data;
    uint32_t len;
    void *tag; /* of whoever proposed it here, in this term; else NULL */
};

struct group_io {
    void (*append)(void *arg, struct group_append *append); /* raft_group_appended later, in order */
    void (*send)(void *arg, struct frame_out *frame);       /* takes it; may drop it */
    void (*commit)(void *arg, const struct group_commit *entry);
    /* The tag's entry was not committed in our term: OMEN_EUNKNOWN for what was appended, else a refusal. */
    void (*lost)(void *arg, enum node_log_entry_type type, void *tag, enum omen_err rc);
    /* A base >= sequence is wanted. True: it is here and durable. Else it is being fetched, from the node if
     * possible, and raft_group_install or _install_failed follows. */
    bool (*fetch)(void *arg, uint64_t sequence, uint64_t node_id);
    /* The log now begins after a base that was put in place: at `sequence`. */
    void (*installed)(void *arg, uint64_t sequence);
    void (*released)(void *arg, uint64_t index); /* the node log may drop entries up to here */
    void (*role_changed)(void *arg);
    void (*changed)(void *arg, void *tag, enum omen_err rc); /* membership change or transfer is over */
    /* FRAME_BARRIER: a follower asks; FRAME_BARRIER_RESULT: the leader answers. */
    void (*barrier)(void *arg, enum frame_type type, uint64_t node_id, uint64_t from,
            const struct frame_barrier *barrier);
    /* Is this a command that the log's reserve is for, too? May be NULL: none is. */
    bool (*vital)(void *arg, const void *data, uint32_t len);
};

/* What a base is, beside its files: of the log up to `index`. */
struct group_base {
    uint64_t index, term, sequence, members_index;
    uint8_t *members; /* owned; NULL while there is no base */
    uint32_t members_len;
};

struct group_options {
    uint64_t group, replica_id, node_id;
    uint64_t election_ms, heartbeat_ms;
    uint32_t seed;
    const struct group_io *io;
    void *io_arg;
};

/* What the node log held. Everything is taken over. */
struct group_load {
    uint64_t term, vote;
    struct group_base base;
    uint64_t first_index; /* of the first slot */
    struct log_slot *slots;
    uint32_t count;
};

/* OMEN_ECORRUPT when the parts do not fit each other. Nothing is called back before raft_group_start. */
OMEN_CHECKED enum omen_err raft_group_new(const struct group_options *options, struct group_load *load,
        uint64_t now_ms, struct raft_group **group_out, struct err *err);
void raft_group_start(struct raft_group *g, uint64_t now_ms);
/* Everything waiting is lost; appends given out must have come back. */
void raft_group_stop(struct raft_group *g);
void raft_group_free(struct raft_group *g);
uint32_t raft_group_appends(const struct raft_group *g); /* given out and not come back */

void raft_group_tick(struct raft_group *g, uint64_t now_ms);
/* Takes the frame. `node_id`: whose connection it came by. `strip`: leave the entries out, we have no room. */
void raft_group_frame(struct raft_group *g, struct frame *frame, uint64_t node_id, bool strip,
        uint64_t now_ms);
/* result is in the append; frees it. */
void raft_group_appended(struct raft_group *g, struct group_append *append, uint64_t now_ms);

struct group_proposal {
    struct shared *owner; /* one reference, taken over on success */
    const uint8_t *data;
    uint32_t len;
    void *tag;
};
#define GROUP_PROPOSALS_MAX 256u
/* All or none: OMEN_ENOTLEADER, OMEN_EBUSY while leadership is being transferred, OMEN_EFULL. */
OMEN_CHECKED enum omen_err raft_group_propose(struct raft_group *g, const struct group_proposal *proposals,
        uint32_t count, uint64_t now_ms);
/* Commits a barrier: io->commit with its tag. */
OMEN_CHECKED enum omen_err raft_group_barrier(struct raft_group *g, void *tag, uint64_t now_ms);

enum group_change { GROUP_ADD, GROUP_ASSIGN, GROUP_REMOVE, GROUP_TRANSFER };
/* One at a time: OMEN_EBUSY. The answer comes by io->changed. */
OMEN_CHECKED enum omen_err raft_group_change(struct raft_group *g, enum group_change change,
        const struct replica_member *member, void *tag, uint64_t now_ms, struct err *err);

/* The state machine's durable sequence rose: snapshot there, keep `trailing_bytes` of log before it. */
void raft_group_checkpointed(struct raft_group *g, uint64_t sequence, uint64_t trailing_bytes,
        uint64_t now_ms);

/* The base asked for by io->fetch is durable; `description` is what raft_group_describe gave there. */
OMEN_CHECKED enum omen_err raft_group_install(struct raft_group *g, const uint8_t *description, size_t len,
        uint64_t now_ms, struct err *err);
void raft_group_install_failed(struct raft_group *g);
/* Bytes that describe the base at our last snapshot; false while there is none. */
bool raft_group_describe(const struct raft_group *g, struct buf *out, uint64_t *sequence_out);

void raft_group_send_barrier(struct raft_group *g, enum frame_type type, uint64_t to_node,
        uint64_t to_replica, const struct frame_barrier *barrier);

void raft_group_status(const struct raft_group *g, struct replica_status *status);
/* At the leader; [GROUP_MEMBERS_MAX]. Returns how many. */
uint32_t raft_group_followers(const struct raft_group *g, struct replica_follower *followers_out);
uint64_t raft_group_stored(const struct raft_group *g);
uint64_t raft_group_heard_ms(const struct raft_group *g); /* a leader of our term, last; 0 = never */
bool raft_group_disk_full(const struct raft_group *g);
/* Whether there is room here for what a leader may let in, or (`waits`) not even for what it has let in already: goes with
 * every answer from now on. */
void raft_group_set_short(struct raft_group *g, bool is_short, bool waits);
/* Leads, and as many voters are short, this one among them, that the others are no majority. Who has not answered yet is
 * taken not to be. */
bool raft_group_majority_is_short(const struct raft_group *g);
const struct replica_member *raft_group_members(const struct raft_group *g, uint32_t *count_out);
bool raft_group_leader(const struct raft_group *g, struct replica_member *leader_out);
bool raft_group_is_leader(const struct raft_group *g);
void *raft_group_io_arg(const struct raft_group *g);

/* Base record of the node log. */
uint8_t *group_base_encode(const struct group_base *base, uint32_t *len_out);
OMEN_CHECKED enum omen_err group_base_decode(const uint8_t *data, size_t len, struct group_base *base_out);

#endif
