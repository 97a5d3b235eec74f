/* What the files of a group share; nobody else includes this.
 *
 *   raft_group.c          start, stop, ticks, frames, proposals; one step of the core and what it asks for
 *   raft_group_send.c     messages as frames, held back until a hard state is durable
 *   raft_group_append.c   appends to the node log, refusals, bases
 *   raft_group_change.c   membership, transfer, what is told to the outside */
#ifndef OMEN_CONSENSUS_RAFT_GROUP_IMPL_H
#define OMEN_CONSENSUS_RAFT_GROUP_IMPL_H

#include "consensus/raft_group.h"

/* In a message's capacity; 0: has room, or is of a release that does not say. */
#define GROUP_CAPACITY_SHORT 1u
#define GROUP_CAPACITY_WAITS 2u

/* A change under way: submitted, or waiting for the new voter to catch up, or a transfer. */
struct change_state {
    bool active, submitted;
    enum group_change change;
    struct replica_member member;
    void *tag;
    uint64_t deadline_ms; /* of a transfer */
};

/* What io->role_changed was last called for. */
struct reported_role {
    bool leads;
    uint64_t leader, term;
};

struct raft_group {
    struct group_options options;
    struct raft raft;
    struct group_log log;
    struct group_base base; /* what raft's trail calls the snapshot */
    uint64_t now_ms;
    uint64_t delivered; /* last index given to io->commit, or in the base */
    uint64_t heard_ms;  /* when a leader of our term was heard last; 0 = never */
    struct {
        uint64_t replica_id, ms;
        bool is_short, waits;
    } answers[GROUP_MEMBERS_MAX]; /* when and how each follower answered last; replica_id 0 = free */
    uint64_t led_index;           /* the highest that a leader said is committed */
    uint64_t level_index;         /* once delivered, we are level; 0 = not known yet */
    bool level;                   /* see replica_status.caught_up */
    bool started, stopped;
    bool is_short, waits;                       /* what raft_group_set_short said */
    const struct raft_request_vote *vote_asked; /* by the message being taken; NULL = none */
    bool entries_taken;                         /* by the last step */
    uint64_t verified_term,
            verified_index; /* up to here the log is that of the leader of this term: compared */
    enum omen_err failed;   /* the core refused to go on: a conflict below the commit index */

    uint64_t append_id; /* of the last append */
    uint32_t appends_out;
    struct group_append *refused; /* by id; not empty while the disk is full */
    uint64_t retry_ms;

    uint32_t hard_out; /* hard states given out and not durable */
    struct frame_out *held_head, **held_tail;
    uint32_t held_count;

    bool base_out;                              /* our own snapshot is being written */
    bool installing;                            /* the core has accepted one, its record is being written */
    struct group_base next_base;                /* of base_out or installing */
    uint64_t next_trailing_bytes;               /* of base_out */
    struct raft_snapshot_metadata install_meta; /* of installing: the core's configuration comes back to it */
    bool fetching;
    struct group_base ready_base; /* fetched and durable, not yet given to the core */

    struct replica_member members[GROUP_MEMBERS_MAX];
    uint32_t member_count;
    struct change_state change;
    struct reported_role reported;
};

/* raft_group.c */
/* One event and all it asks for; entries and slots are those of a message or proposal. RAFT_NOMEM ends the
 * process. */
int group_step(struct raft_group *g, struct raft_event *event, const struct raft_entry *entries,
        const struct log_slot *slots);
/* Whether the vote asked for is to be given although the core refused it; then it is noted and on its way to
 * the log. */
bool group_vote_as_stranger(struct raft_group *g, uint64_t candidate);
uint64_t group_term_at(const struct raft_group *g, uint64_t index); /* 0 = not in memory any more */
void group_settle(struct raft_group *g);                            /* after every call from outside */
void group_lose_tags(struct raft_group *g, uint64_t from, enum omen_err rc);

/* raft_group_send.c */
void group_message_send(struct raft_group *g, const struct raft_message *message);
void group_held_flush(struct raft_group *g);
void group_held_free(struct raft_group *g);

/* raft_group_append.c */
void group_append_hard_state(struct raft_group *g);
void group_append_entries(struct raft_group *g, uint64_t index, const struct raft_entry *batch, uint32_t n,
        const struct log_slot *slots);
void group_append_base(struct raft_group *g);
void group_install(struct raft_group *g, const struct raft_snapshot_metadata *metadata);
void group_retry(struct raft_group *g);
void group_refused_free(struct raft_group *g);
void group_base_free(struct group_base *base);
void group_ready_base_step(struct raft_group *g);
int group_configuration(const uint8_t *members, uint32_t len, struct raft_configuration *out);

/* raft_group_change.c */
void group_members_refresh(struct raft_group *g);
void group_change_settle(struct raft_group *g);
void group_role_settle(struct raft_group *g);
void group_change_end(struct raft_group *g, enum omen_err rc);

#endif
