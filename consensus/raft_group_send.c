/* A group's messages as frames. Those that follow a hard state wait until it is durable: no vote is heard
 * before it cannot be forgotten. See raft_group.h. */
#include "common/err.h"

#include "common/check.h"
#include "consensus/members.h"
#include "consensus/raft_group_impl.h"

static void group_send(struct raft_group *g, struct frame_out *frame)
{
    if (g->hard_out == 0) {
        g->options.io->send(g->options.io_arg, frame);
        return;
    }
    if (g->held_count == GROUP_HELD_FRAMES_MAX) {
        struct frame_out *oldest = g->held_head;
        g->held_head = oldest->next;
        if (g->held_head == NULL) g->held_tail = &g->held_head;
        g->held_count--;
        frame_out_free(oldest);
    }
    frame->next = NULL;
    *g->held_tail = frame;
    g->held_tail = &frame->next;
    g->held_count++;
}

static struct frame_out *held_take(struct raft_group *g)
{
    struct frame_out *first = g->held_head;
    g->held_head = NULL;
    g->held_tail = &g->held_head;
    g->held_count = 0;
    return first;
}

void group_held_flush(struct raft_group *g)
{
    struct frame_out *frame = held_take(g);
    while (frame != NULL) {
        struct frame_out *next = frame->next;
        g->options.io->send(g->options.io_arg, frame);
        frame = next;
    }
}

void group_held_free(struct raft_group *g)
{
    struct frame_out *frame = held_take(g);
    while (frame != NULL) {
        struct frame_out *next = frame->next;
        frame_out_free(frame);
        frame = next;
    }
}

static void frame_send(struct raft_group *g, struct frame_parts *parts, uint64_t node_id)
{
    parts->group = g->options.group;
    parts->from = g->options.replica_id;
    struct frame_out *frame = frame_encode(parts);
    frame->node = node_id;
    group_send(g, frame);
}

/* How many of the `left` entries from `index` on go into one frame. A configuration begins a frame. */
static uint32_t run_length(const struct raft_group *g, uint64_t index, uint32_t left)
{
    uint64_t bytes = 0;
    uint32_t n = 0;
    while (n < left && n < FRAME_ENTRIES_MAX) {
        const struct log_slot *s = group_log_get(&g->log, index + n);
        CHECK(s != NULL);
        bytes += s->len;
        if (n > 0 && (bytes > FRAME_ENTRIES_BYTES_TARGET || s->type == NODE_LOG_CHANGE)) break;
        n++;
    }
    return n;
}

static void append_send(struct raft_group *g, const struct raft_message *message, uint64_t node_id)
{
    struct raft_message part = *message;
    struct raft_append_entries *a = &part.append_entries;
    uint32_t left = a->n_entries;
    do {
        a->n_entries = run_length(g, a->prev_log_index + 1, left);
        struct frame_parts parts = { .type = FRAME_APPEND,
            .to = part.server_id,
            .message = &part,
            .log = &g->log };
        frame_send(g, &parts, node_id);
        left -= a->n_entries;
        a->prev_log_index += a->n_entries;
        if (left > 0) a->prev_log_term = group_log_get(&g->log, a->prev_log_index)->term;
    } while (left > 0);
}

/* The core refuses a pre-vote of a lower term with that lower term: a candidate with the longest log and an old
 * term would be refused for ever and never learn why. It does take a term from a refusal. */
static const struct raft_message *vote_result(struct raft_group *g, struct raft_message *message)
{
    struct raft_request_vote_result *r = &message->request_vote_result;
    if (!r->vote_granted && group_vote_as_stranger(g, message->server_id)) r->vote_granted = true;
    if (r->pre_vote && !r->vote_granted && r->term < raft_current_term(&g->raft))
        r->term = raft_current_term(&g->raft);
    return message;
}

/* Some refusals of the core carry no last index, but what was on its stack. An acknowledgement says no more than what was
 * compared with this leader's log, or is committed and so in every leader's, and is stored. */
static const struct raft_message *append_result(const struct raft_group *g, struct raft_message *message)
{
    struct raft_append_entries_result *r = &message->append_entries_result;
    uint64_t sure = raft_commit_index(&g->raft);
    if (r->rejected > 0) r->last_log_index = g->raft.last_stored;
    if (g->verified_term == raft_current_term(&g->raft) && g->verified_index > sure) sure = g->verified_index;
    if (sure > g->raft.last_stored) sure = g->raft.last_stored;
    if (r->rejected == 0 && r->last_log_index > sure) r->last_log_index = sure;
    return message;
}

void group_message_send(struct raft_group *g, const struct raft_message *message)
{
    uint64_t node_id, replica_id;
    CHECK(member_address_parse(message->server_address, &node_id, &replica_id));
    struct frame_parts parts = { .to = message->server_id, .message = message };
    struct raft_message copy;
    switch (message->type) {
    case RAFT_APPEND_ENTRIES: append_send(g, message, node_id); return;
    case RAFT_APPEND_ENTRIES_RESULT:
        parts.type = FRAME_APPEND_RESULT;
        copy = *message;
        parts.message = append_result(g, &copy);
        break;
    case RAFT_REQUEST_VOTE: parts.type = FRAME_VOTE; break;
    case RAFT_REQUEST_VOTE_RESULT:
        parts.type = FRAME_VOTE_RESULT;
        copy = *message;
        parts.message = vote_result(g, &copy);
        break;
    case RAFT_TIMEOUT_NOW: parts.type = FRAME_TIMEOUT_NOW; break;
    case RAFT_INSTALL_SNAPSHOT:
        parts.type = FRAME_INSTALL;
        CHECK(message->install_snapshot.last_index == g->base.index);
        parts.sequence = g->base.sequence;
        parts.members = g->base.members;
        parts.members_len = g->base.members_len;
        break;
    }
    frame_send(g, &parts, node_id);
}

void raft_group_send_barrier(struct raft_group *g, enum frame_type type, uint64_t to_node,
        uint64_t to_replica, const struct frame_barrier *barrier)
{
    struct frame_parts parts = { .type = type, .to = to_replica, .barrier = barrier };
    frame_send(g, &parts, to_node);
}
