/* The world's disk and network, and what is checked when a group asks for something. See raft_world.h. */
#include "common/err.h"

#include <inttypes.h>
#include <string.h>

#include "common/bytes.h"
#include "common/crc32c.h"
#include "common/mem.h"
#include "tests/support/raft_world_impl.h"

/* ---- network ---- */

static void message_add(struct world *w, uint32_t from, uint32_t to, bool frame, uint8_t *bytes, size_t len)
{
    if (w->message_count == MESSAGES_MAX) {
        mem_free(bytes);
        return;
    }
    uint64_t delay_ms = world_below(w, world_chance(w, 20) ? 900 : 25);
    w->messages[w->message_count++] = (struct world_message){ w->now_ms + delay_ms, from, to, frame, bytes,
        len };
}

static void message_send(struct world *w, uint32_t from, uint32_t to, bool frame, const uint8_t *bytes,
        size_t len)
{
    if (w->cut[from][to] || world_chance(w, w->loss_per_mille)) return;
    for (int times = world_chance(w, 15) ? 2 : 1; times > 0; times--) {
        uint8_t *copy = mem_must_alloc(len);
        memcpy(copy, bytes, len);
        message_add(w, from, to, frame, copy, len);
    }
}

void world_send(struct world *w, uint32_t from, uint32_t to, const void *bytes, size_t len)
{
    message_send(w, from, to, false, bytes, len);
}

static void io_send(void *arg, struct frame_out *frame)
{
    struct world_replica *r = arg;
    struct world *w = r->world;
    uint32_t to = (uint32_t)frame->node - 1;
    if (to >= WORLD_NODES) world_fail(w, "a frame for node %" PRIu64, (uint64_t)frame->node);
    uint8_t *bytes = mem_must_alloc(frame->bytes);
    size_t len = 0;
    for (uint32_t i = 0; i < frame->piece_count; i++) {
        memcpy(bytes + len, frame->pieces[i].data, frame->pieces[i].len);
        len += frame->pieces[i].len;
    }
    message_send(w, r->node->place, to, true, bytes, len);
    mem_free(bytes);
    frame_out_free(frame);
}

static struct world_replica *replica_find(struct world_node *n, uint64_t replica_id)
{
    for (uint32_t g = 0; g < n->world->group_count; g++) {
        if (n->replicas[g].replica_id == replica_id) return &n->replicas[g];
    }
    return NULL;
}

static void frame_deliver(struct world *w, const struct world_message *m)
{
    struct frame_header header;
    struct frame *frame;
    if (frame_header_decode(m->bytes, &header, NULL) != OMEN_OK)
        world_fail(w, "a frame's header does not decode");
    uint8_t *body = mem_alloc_aligned(64, header.body_bytes + 1);
    memcpy(body, m->bytes + FRAME_HEADER_BYTES, header.body_bytes);
    if (frame_decode(&header, body, &frame, NULL) != OMEN_OK) world_fail(w, "a frame does not decode");
    struct world_replica *r = replica_find(&w->nodes[m->to], header.to);
    world_note(w, "frame", m->to, header.to, crc32c(header.type, m->bytes, m->len - 4));
    if (r != NULL && r->group != NULL && w->machine->frame != NULL)
        w->machine->frame(r, frame, m->from + 1);
    else if (r != NULL && r->group != NULL)
        raft_group_frame(r->group, frame, m->from + 1, world_chance(w, 5), w->now_ms);
    else
        frame_free(frame);
}

void world_messages_deliver(struct world *w)
{
    for (uint32_t i = 0; i < w->message_count;) {
        if (w->messages[i].at_ms > w->now_ms) {
            i++;
            continue;
        }
        struct world_message m = w->messages[i];
        w->messages[i] = w->messages[--w->message_count];
        if (m.frame)
            frame_deliver(w, &m);
        else if (w->machine->message != NULL)
            w->machine->message(w, m.from, m.to, m.bytes, m.len);
        mem_free(m.bytes);
    }
}

/* ---- disk ---- */

static void io_append(void *arg, struct group_append *append)
{
    struct world_replica *r = arg;
    struct world_node *n = r->node;
    struct world *w = r->world;
    append->next = NULL;
    *n->writing_tail = append;
    n->writing_tail = &append->next;
    if (n->writing == append) n->write_at_ms = w->now_ms + world_below(w, world_chance(w, 30) ? 300 : 12);
}

static struct world_replica *replica_of(const struct group_append *a) { return raft_group_io_arg(a->group); }

/* The append's records are in the log from now on. */
static void disk_take(struct world_node *n, const struct group_append *a)
{
    struct world *w = n->world;
    for (uint32_t i = 0; i < a->append.count; i++) {
        if (a->append.records[i].kind == NODE_LOG_TRUNCATE) w->counts.truncations++;
        if (w->mutations.forget_votes && a->append.records[i].kind == NODE_LOG_HARD_STATE &&
                world_chance(w, 300))
            continue;
        if (pending_replay(&n->disk, &a->append.records[i]) != OMEN_OK)
            world_fail(w, "node %u: the log's records do not follow each other", n->place + 1);
    }
    world_note(w, "durable", n->place, a->first, a->last);
}

static struct group_append *writing_pop(struct world_node *n)
{
    struct group_append *a = n->writing;
    n->writing = a->next;
    if (n->writing == NULL) n->writing_tail = &n->writing;
    return a;
}

/* As the log does it: what has no entry may fit where entries do not, and entries behind refused ones are refused until
 * those come again, lower ones, or a truncation that voids them. */
static bool disk_refuses(struct world_replica *r, const struct group_append *a)
{
    for (uint32_t i = 0; i < a->append.count; i++) {
        const struct node_log_record *record = &a->append.records[i];
        if (record->kind != NODE_LOG_ENTRY && record->kind != NODE_LOG_TRUNCATE) continue;
        bool after = r->refused_from != 0 && record->index > r->refused_from;
        if (after && record->kind == NODE_LOG_ENTRY) return true;
        if (!after) r->refused_from = 0;
    }
    return false;
}

/* As the log does it: on a full disk there is its reserve, and what is less urgent leaves a part of it to the rest. */
static bool disk_gives(struct world_node *n, const struct group_append *a)
{
    uint32_t leaves = n->reserve_max;
    if (n->world->now_ms >= n->full_until_ms) return true;
    if (a->append.claim == NODE_LOG_OWED) leaves /= 2;
    if (a->append.claim == NODE_LOG_VITAL) leaves /= 4;
    if (a->append.claim == NODE_LOG_LAST) leaves = 0;
    if (n->reserve <= leaves) return false;
    n->reserve--;
    return true;
}

void world_disk_step(struct world_node *n)
{
    struct world *w = n->world;
    if (n->writing == NULL || w->now_ms < n->write_at_ms) return;
    uint64_t count = 1 + world_below(w, 6);
    for (uint64_t i = 0; i < count && n->writing != NULL; i++) {
        struct group_append *a = writing_pop(n);
        struct world_replica *r = replica_of(a);
        bool entries = a->first <= a->last;
        bool refused = disk_refuses(r, a);
        a->result = refused || !disk_gives(n, a) ? OMEN_EFULL : OMEN_OK;
        if (entries && a->result == OMEN_EFULL && !refused) r->refused_from = a->first;
        if (a->result == OMEN_OK && !(w->mutations.lying_sync && entries && world_chance(w, 30)))
            disk_take(n, a);
        raft_group_appended(r->group, a, w->now_ms);
    }
    n->write_at_ms = w->now_ms + world_below(w, 12);
}

void world_disk_crash(struct world_node *n)
{
    struct world *w = n->world;
    bool kept = true;
    while (n->writing != NULL) {
        struct group_append *a = writing_pop(n);
        kept = kept && world_chance(w, 600) && disk_gives(n, a);
        if (kept && !disk_refuses(replica_of(a), a)) disk_take(n, a);
        a->result = OMEN_OK;
        raft_group_appended(replica_of(a)->group, a, w->now_ms); /* stopped: only freed */
    }
}

void world_disk_forget(struct world_node *n, struct world_replica *r)
{
    struct group_append *all = n->writing;
    n->writing = NULL;
    n->writing_tail = &n->writing;
    while (all != NULL) {
        struct group_append *a = all;
        all = a->next;
        a->next = NULL;
        if (replica_of(a) == r) {
            a->result = OMEN_OK;
            raft_group_appended(r->group, a, n->world->now_ms);
        } else {
            *n->writing_tail = a;
            n->writing_tail = &a->next;
        }
    }
}

/* ---- what is committed ---- */

/* Whether the replica's disk holds the entry, or a state that contains it. */
static bool holds(struct world_replica *r, uint64_t index, uint32_t crc, uint64_t sequence)
{
    bool found = false;
    for (uint32_t i = 0; i < r->node->disk.count && !found; i++) {
        const struct pending *p = r->node->disk.items[i];
        if (p->group != r->slot + 1 || p->replica_id != r->replica_id) continue;
        if (p->base_index >= index) return true;
        if (p->count == 0 || p->entries[0]->index > index) return r->durable >= sequence;
        if (p->entries[p->count - 1]->index < index) return false;
        const struct pending_entry *e = p->entries[index - p->entries[0]->index];
        found = crc32c(0, e->body, e->len) == crc;
    }
    return found;
}

/* What its proposer calls committed is durable on a majority of the voters. While members change, which voters count is
 * the core's affair. */
static void majority_check(struct world_replica *r, const struct group_commit *entry, uint32_t crc)
{
    struct world *w = r->world;
    uint32_t count, voters = 0, have = 0;
    const struct replica_member *m = raft_group_members(r->group, &count);
    if (w->groups[r->slot].change_out || w->groups[r->slot].lost) return;
    for (uint32_t i = 0; i < count; i++) {
        struct world_replica *other = &w->nodes[m[i].node_id - 1].replicas[r->slot];
        if (m[i].role != REPLICA_VOTER) continue;
        voters++;
        have += other->replica_id == m[i].replica_id && holds(other, entry->index, crc, entry->sequence);
    }
    if (have * 2 <= voters)
        world_fail(w, "group %u index %" PRIu64 ": committed by its proposer, durable on %u of %u voters",
                r->slot + 1, entry->index, have, voters);
}

static void io_commit(void *arg, const struct group_commit *entry)
{
    struct world_replica *r = arg;
    struct world *w = r->world;
    struct world_group *g = &w->groups[r->slot];
    if (entry->index >= WORLD_INDEXES_MAX) world_fail(w, "too many entries");
    uint32_t crc = crc32c(0, entry->data, entry->len);
    struct world_commit *e = &g->log[entry->index];
    if (!e->set) *e = (struct world_commit){ true, false, crc, entry->len, entry->type, entry->sequence };
    if (e->crc != crc || e->len != entry->len || e->type != entry->type || e->sequence != entry->sequence)
        world_fail(w, "group %u index %" PRIu64 ": replicas committed different entries", r->slot + 1,
                entry->index);
    if (entry->sequence != r->sequence + (entry->type == NODE_LOG_COMMAND ? 1 : 0))
        world_fail(w, "group %u index %" PRIu64 ": sequence %" PRIu64 " after %" PRIu64, r->slot + 1,
                entry->index, entry->sequence, r->sequence);
    r->sequence = entry->sequence;
    world_note(w, "commit", r->replica_id, entry->index, crc);
    if (entry->tag != NULL) {
        majority_check(r, entry, crc);
        e->acknowledged = true;
        w->counts.acknowledged++;
        if (entry->index > g->highest_acknowledged) g->highest_acknowledged = entry->index;
    }
    if (w->machine->commit != NULL) w->machine->commit(r, entry);
}

static void io_lost(void *arg, enum node_log_entry_type type, void *tag, enum omen_err rc)
{
    struct world_replica *r = arg;
    if (r->world->machine->lost != NULL) r->world->machine->lost(r, type, tag, rc);
}

/* ---- bases, roles, members ---- */

static bool io_fetch(void *arg, uint64_t sequence, uint64_t node_id)
{
    struct world_replica *r = arg;
    struct world *w = r->world;
    if (w->machine->fetch != NULL) return w->machine->fetch(r, sequence, node_id);
    if (r->durable >= sequence && world_chance(w, 500)) return true;
    r->want = sequence;
    r->fetch_peer = NULL;
    r->fetch_at_ms = w->now_ms + world_below(w, 600);
    return false;
}

static void io_installed(void *arg, uint64_t sequence)
{
    struct world_replica *r = arg;
    struct world *w = r->world;
    if (r->durable < sequence && r->incoming < sequence)
        world_fail(w,
                "replica %" PRIu64 ": a base at %" PRIu64 " was installed, durable are %" PRIu64
                " and %" PRIu64,
                r->replica_id, sequence, r->durable, r->incoming);
    r->sequence = sequence;
    if (sequence > r->durable) r->durable = sequence;
    w->counts.installs++;
    world_note(w, "installed", r->replica_id, sequence, 0);
    if (w->machine->installed != NULL) w->machine->installed(r, sequence);
}

static void io_released(void *arg, uint64_t index)
{
    struct world_replica *r = arg;
    if (index <= r->released) return;
    r->released = index;
    r->node->reserve = r->node->reserve_max; /* and a segment with it */
}

static void role_check(struct world_replica *r)
{
    struct world *w = r->world;
    uint64_t *leader_of_term = w->groups[r->slot].leader_of_term;
    struct replica_status s;
    raft_group_status(r->group, &s);
    world_note(w, "role", r->replica_id, s.term, s.leader);
    if (!s.leader) return;
    if (s.term >= WORLD_TERMS_MAX) world_fail(w, "too many terms");
    if (leader_of_term[s.term] == 0) w->counts.elections++;
    if (leader_of_term[s.term] != 0 && leader_of_term[s.term] != r->replica_id)
        world_fail(w, "group %u term %" PRIu64 " has two leaders", r->slot + 1, s.term);
    leader_of_term[s.term] = r->replica_id;
}

static void io_role_changed(void *arg)
{
    struct world_replica *r = arg;
    role_check(r);
    if (r->world->machine->role != NULL) r->world->machine->role(r);
}

static void io_changed(void *arg, void *tag, enum omen_err rc)
{
    struct world_replica *r = arg;
    struct world_group *g = &r->world->groups[r->slot];
    if (tag != NULL) { /* not one of ours */
        r->world->machine->changed(r, tag, rc);
        return;
    }
    g->change_out = false;
    if (rc == OMEN_OK) r->world->counts.changes++;
    if (rc == OMEN_OK) g->removed = g->removing;
    g->removing = 0;
}

static void io_barrier(void *arg, enum frame_type type, uint64_t node_id, uint64_t from,
        const struct frame_barrier *barrier)
{
    struct world_replica *r = arg;
    if (r->world->machine->barrier != NULL) r->world->machine->barrier(r, type, node_id, from, barrier);
}

static bool io_vital(void *arg, const void *data, uint32_t len)
{
    struct world_replica *r = arg;
    if (r->world->machine->vital != NULL) return r->world->machine->vital(r, data, len);
    return (crc32c(0, data, len) & 1) != 0;
}

const struct group_io world_group_io = { io_append, io_send, io_commit, io_lost, io_fetch, io_installed,
    io_released, io_role_changed, io_changed, io_barrier, io_vital };
