/* Life of the world's nodes, its storms and its calm. See raft_world.h. */
#include "common/err.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/mem.h"
#include "consensus/members.h"
#include "tests/support/raft_world_impl.h"

/* ---- chance, notes, breaches ---- */

static uint64_t rnd(struct world *w)
{
    w->rng ^= w->rng << 13;
    w->rng ^= w->rng >> 7;
    w->rng ^= w->rng << 17;
    return w->rng;
}
uint64_t world_below(struct world *w, uint64_t n) { return rnd(w) % n; }
bool world_chance(struct world *w, uint32_t per_mille) { return world_below(w, 1000) < per_mille; }

void world_note(struct world *w, const char *what, uint64_t a, uint64_t b, uint64_t c)
{
    uint64_t parts[] = { w->now_ms, (uint64_t)(uint8_t)what[0] << 8 | (uint8_t)what[1], a, b, c };
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        w->hash = (w->hash ^ parts[i]) * 0x9e3779b97f4a7c15ull;
        w->hash ^= w->hash >> 29;
    }
    if (w->trace) {
        printf("%8" PRIu64 " %-10s %" PRIu64 " %" PRIu64 " %" PRIx64 "\n", w->now_ms, what, a, b, c);
    }
}

void world_fail(struct world *w, const char *fmt, ...)
{
    char text[1000];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    fflush(stdout);
    fprintf(stderr, "seed %" PRIu64 " at %" PRIu64 " ms: %s\n", w->seed, w->now_ms, text);
    abort();
}

/* ---- up ---- */

/* Reading back gives the log a copy: the disk keeps its own. Segments that were released may be gone. */
static struct pending *disk_read(struct world_replica *r)
{
    struct world *w = r->world;
    uint64_t id = r->slot + 1;
    struct pending *p = pending_take(&r->node->disk, id, r->replica_id);
    struct pending_set again = { 0 };
    bool good = true;
    if (p != NULL) {
        uint64_t from = p->count > 0 ? p->entries[0]->index : 0;
        if (r->released >= from && from != 0) from += world_below(w, r->released - from + 2);
        struct node_log_record record = { .group = id, .replica = r->replica_id };
        record.kind = NODE_LOG_HARD_STATE;
        record.term = p->term;
        record.body = &p->vote;
        record.len = 8;
        if (p->term != 0) good = pending_replay(&again, &record) == OMEN_OK;
        record.kind = NODE_LOG_SNAPSHOT;
        record.term = p->base_term;
        record.index = p->base_index;
        record.body = p->base;
        record.len = p->base_len;
        if (p->base_index != 0) good = good && pending_replay(&again, &record) == OMEN_OK;
        record.kind = NODE_LOG_ENTRY;
        for (uint32_t i = 0; i < p->count; i++) {
            const struct pending_entry *e = p->entries[i];
            record.term = e->term;
            record.index = e->index;
            record.entry_type = e->type;
            record.body = e->body;
            record.len = e->len;
            if (e->index >= from) good = good && pending_replay(&again, &record) == OMEN_OK;
        }
        pending_put(&r->node->disk, p);
    }
    if (!good) world_fail(w, "replica %" PRIu64 ": its log does not read back", r->replica_id);
    struct pending *copy = pending_take(&again, id, r->replica_id);
    pending_set_fini(&again);
    if (copy == NULL) {
        copy = mem_must_calloc(1, sizeof *copy);
        copy->group = id;
        copy->replica_id = r->replica_id;
    }
    return copy;
}

static uint64_t base_sequence(struct world *w, const struct pending *pending)
{
    struct group_base base;
    if (group_base_decode(pending->base, pending->base_len, &base) != OMEN_OK)
        world_fail(w, "a base does not read back");
    uint64_t sequence = base.sequence;
    mem_free(base.members);
    return sequence;
}

static void group_up(struct world_replica *r, struct pending *pending)
{
    struct world *w = r->world;
    struct group_load load;
    struct err err = { 0 };
    if (raft_load_make(pending, &load, &err) != OMEN_OK)
        world_fail(w, "replica %" PRIu64 ": %s", r->replica_id, err.message);
    pending_free(pending);
    if (r->incoming > r->durable) r->durable = r->incoming;
    r->sequence = load.base.sequence;
    struct group_options o = { .group = r->slot + 1,
        .replica_id = r->replica_id,
        .node_id = r->node->place + 1,
        .election_ms = WORLD_ELECTION_MS,
        .heartbeat_ms = WORLD_HEARTBEAT_MS,
        .seed = (uint32_t)rnd(w),
        .io = &world_group_io,
        .io_arg = r };
    if (raft_group_new(&o, &load, w->now_ms, &r->group, &err) != OMEN_OK)
        world_fail(w, "replica %" PRIu64 ": %s", r->replica_id, err.message);
    raft_group_start(r->group, w->now_ms);
}

static void replica_up(struct world_replica *r)
{
    struct world *w = r->world;
    struct pending *pending = disk_read(r);
    uint64_t base = 0;
    r->given_up = false;
    if (pending->base_index != 0) base = base_sequence(w, pending);
    r->sequence = base;
    if (w->machine->open == NULL) {
        group_up(r, pending);
    } else if (!w->machine->open(r, pending)) {
        r->up_at_ms = w->now_ms + 200;
        return;
    }
    r->incoming = 0;
    if (r->durable < base) /* C4, C5: a base in the log is a base on disk */
        world_fail(w, "replica %" PRIu64 ": the log begins after %" PRIu64 ", durable is %" PRIu64,
                r->replica_id, base, r->durable);
    world_note(w, "up", r->replica_id, base, r->durable);
}

static void node_up(struct world_node *n)
{
    n->up = true;
    n->cut = false;
    if (n->world->machine->up != NULL) n->world->machine->up(n);
    for (uint32_t g = 0; g < n->world->group_count; g++) {
        if (n->replicas[g].replica_id != 0) replica_up(&n->replicas[g]);
    }
}

/* ---- down ---- */

static void replica_rest(struct world_replica *r)
{
    r->group = NULL;
    r->want = r->refused_from = 0;
    r->fetch_peer = NULL;
    buf_fini(&r->description);
    buf_init(&r->description);
}

/* Stopped: its appends have come back. */
static void group_end(struct world_replica *r)
{
    const struct world_machine *m = r->world->machine;
    if (r->group != NULL && m->close != NULL)
        m->close(r);
    else if (r->group != NULL)
        raft_group_free(r->group);
    replica_rest(r);
}

void world_crash(struct world_node *n)
{
    struct world *w = n->world;
    if (!n->up) return;
    world_note(w, "crash", n->place, 0, 0);
    n->up = false;
    if (w->machine->crash != NULL) w->machine->crash(n);
    for (uint32_t g = 0; g < w->group_count; g++) {
        if (n->replicas[g].group != NULL) raft_group_stop(n->replicas[g].group);
    }
    world_disk_crash(n);
    for (uint32_t g = 0; g < w->group_count; g++) group_end(&n->replicas[g]);
    if (w->machine->down != NULL) w->machine->down(n);
    n->up_at_ms = w->now_ms + 50 + world_below(w, 1500);
}

static void replica_begin(struct world_node *n, uint32_t slot, uint64_t replica_id)
{
    struct world_replica *r = &n->replicas[slot];
    *r = (struct world_replica){ .world = n->world, .node = n, .slot = slot, .replica_id = replica_id };
    buf_init(&r->description);
}

static void replica_end(struct world_replica *r)
{
    struct world *w = r->world;
    if (r->replica_id == 0) return;
    world_note(w, "end", r->replica_id, 0, 0);
    if (r->group != NULL) {
        raft_group_stop(r->group);
        world_disk_forget(r->node, r);
    }
    group_end(r);
    if (w->machine->end != NULL) w->machine->end(r);
    pending_free(pending_take(&r->node->disk, r->slot + 1, r->replica_id));
    replica_begin(r->node, r->slot, 0);
}

uint64_t world_replace(struct world_replica *r)
{
    struct world_node *n = r->node;
    uint64_t id = n->world->next_replica++;
    n->world->groups[r->slot].lost = true;
    replica_end(r);
    replica_begin(n, r->slot, id);
    if (n->up) replica_up(r);
    return id;
}

void world_forget(struct world_replica *r)
{
    pending_free(pending_take(&r->node->disk, r->slot + 1, r->replica_id));
    r->world->groups[r->slot].lost = true;
}

/* ---- what happens ---- */

struct world_replica *world_leader(struct world *w, uint32_t slot)
{
    uint64_t from = world_below(w, WORLD_NODES);
    for (uint32_t i = 0; i < WORLD_NODES; i++) {
        struct world_replica *r = &w->nodes[(i + from) % WORLD_NODES].replicas[slot];
        if (r->group != NULL && raft_group_is_leader(r->group)) return r;
    }
    return NULL;
}

enum omen_err world_propose(struct world_replica *r, uint8_t *data, uint32_t len, void *tag)
{
    struct group_proposal p = { shared_new(data), data, len, tag };
    r->world->counts.proposed++;
    world_note(r->world, "propose", r->replica_id, len, 0);
    enum omen_err rc = raft_group_propose(r->group, &p, 1, r->world->now_ms);
    if (rc != OMEN_OK) shared_release(p.owner);
    return rc;
}

static void checkpoint(struct world_replica *r)
{
    struct world *w = r->world;
    if (w->machine->checkpoint != NULL) {
        w->machine->checkpoint(r);
    } else {
        r->durable = r->sequence;
        raft_group_checkpointed(r->group, r->durable, world_below(w, 2000), w->now_ms);
    }
    world_note(w, "checkpoint", r->replica_id, r->durable, 0);
}

/* Who is asked has described its base, and some time later its checkpoint is taken. */
static void fetch_begin(struct world_replica *r)
{
    struct world *w = r->world;
    uint64_t from = world_below(w, WORLD_NODES);
    for (uint32_t i = 0; i < WORLD_NODES; i++) {
        struct world_replica *peer = &w->nodes[(i + from) % WORLD_NODES].replicas[r->slot];
        if (peer == r || peer->group == NULL) continue;
        r->description.len = 0;
        if (!raft_group_describe(peer->group, &r->description, &r->described)) continue;
        if (r->described < r->want || !world_chance(w, 800)) continue;
        r->fetch_peer = peer;
        r->fetch_peer_id = peer->replica_id;
        r->fetch_at_ms = w->now_ms + world_below(w, 300);
        return;
    }
    r->want = 0;
    raft_group_install_failed(r->group);
}

static void fetch_end(struct world_replica *r)
{
    struct world *w = r->world;
    struct world_replica *peer = r->fetch_peer;
    uint64_t reached = 0;
    r->want = 0;
    r->fetch_peer = NULL;
    if (peer->replica_id == r->fetch_peer_id && peer->group != NULL) reached = peer->durable;
    world_note(w, "fetched", r->replica_id, r->fetch_peer_id, reached);
    if (reached > r->incoming) r->incoming = reached;
    struct err err = { 0 };
    if (reached < r->described)
        raft_group_install_failed(r->group);
    else if (raft_group_install(r->group, r->description.data, r->description.len, w->now_ms, &err) !=
            OMEN_OK)
        world_fail(w, "replica %" PRIu64 ": %s", r->replica_id, err.message);
}

static void fetch_step(struct world_replica *r)
{
    if (r->want == 0 || r->world->now_ms < r->fetch_at_ms) return;
    if (r->fetch_peer == NULL)
        fetch_begin(r);
    else
        fetch_end(r);
}

static uint32_t voters_of(const struct world_replica *r)
{
    uint32_t count, voters = 0;
    const struct replica_member *m = raft_group_members(r->group, &count);
    for (uint32_t i = 0; i < count; i++) voters += m[i].role == REPLICA_VOTER;
    return voters;
}

/* A replica more, a role, a replica less, or another leader. No leader removes itself (leadership is moved first): while
 * that is not committed, those who have it may not stand and the others are behind. */
static void change_members(struct world_replica *leader)
{
    struct world *w = leader->world;
    struct world_group *g = &w->groups[leader->slot];
    uint32_t count;
    const struct replica_member *m = raft_group_members(leader->group, &count);
    struct replica_member member = m[world_below(w, count)];
    enum group_change change = GROUP_TRANSFER;
    if (count < WORLD_NODES && world_chance(w, 400)) {
        struct world_node *n = &w->nodes[world_below(w, WORLD_NODES)];
        if (n->replicas[leader->slot].replica_id != 0) return;
        replica_begin(n, leader->slot, w->next_replica);
        if (n->up) replica_up(&n->replicas[leader->slot]);
        member = (struct replica_member){ w->next_replica++, n->place + 1, REPLICA_SPARE };
        change = GROUP_ADD;
    } else if (member.role != REPLICA_VOTER) {
        member.role = member.role == REPLICA_SPARE && world_chance(w, 500) ? REPLICA_STANDBY : REPLICA_VOTER;
        change = GROUP_ASSIGN;
    } else if (voters_of(leader) > 2 && member.replica_id != leader->replica_id && world_chance(w, 400)) {
        change = GROUP_REMOVE;
    }
    g->removing = change == GROUP_REMOVE ? member.replica_id : 0;
    g->change_out = true; /* it may be over before the call returns */
    world_note(w, "change", member.replica_id, change, member.role);
    if (raft_group_change(leader->group, change, &member, NULL, w->now_ms, NULL) == OMEN_OK) return;
    g->change_out = false;
    g->removing = 0;
    if (change == GROUP_ADD) replica_end(&w->nodes[member.node_id - 1].replicas[leader->slot]);
}

static void cut_choose(struct world *w)
{
    uint32_t alone = (uint32_t)world_below(w, WORLD_NODES), other = (uint32_t)world_below(w, WORLD_NODES);
    uint32_t kind = (uint32_t)world_below(w, 4);
    uint32_t ends = WORLD_NODES + (world_chance(w, 500) ? 1 : 0); /* are clients behind the cut? */
    memset(w->cut, 0, sizeof w->cut);
    for (uint32_t i = 0; i < ends; i++) {
        if (kind == 0) w->cut[alone][i] = true;                    /* mute */
        if (kind == 1) w->cut[i][alone] = true;                    /* deaf */
        if (kind == 2) w->cut[alone][i] = w->cut[i][alone] = true; /* gone */
        if (kind == 3) w->cut[other][i] = w->cut[i][alone] = true; /* one deaf, one mute */
    }
    world_note(w, "cut", kind, alone, other);
}

static void disk_full(struct world_node *n, bool full)
{
    world_note(n->world, "full", n->place, full, 0);
    if (n->world->machine->disk_full != NULL) n->world->machine->disk_full(n, full);
}

static void disk_fill(struct world_node *n)
{
    struct world *w = n->world;
    if (!n->up || n->cut) return;
    n->full_until_ms = w->now_ms + world_below(w, world_chance(w, 200) ? 5000 : 1500);
    n->reserve = n->reserve_max = (uint32_t)world_below(w, 60);
    disk_full(n, true);
}

static void replica_step(struct world_replica *r)
{
    struct world *w = r->world;
    if (r->replica_id != 0 && r->replica_id == w->groups[r->slot].removed)
        replica_end(r); /* raft does not tell it */
    if (r->replica_id == 0) return;
    if (r->group == NULL && !r->given_up && w->now_ms >= r->up_at_ms) replica_up(r);
    if (r->group == NULL) return;
    if (w->machine->tick != NULL)
        w->machine->tick(r);
    else
        raft_group_tick(r->group, w->now_ms);
    fetch_step(r);
    if (w->machine->step != NULL) w->machine->step(r);
    if (world_chance(w, 4)) checkpoint(r);
}

/* Of a storm: never drawn for when it does not count, so that seeds without stay what they were. */
static bool strikes(struct world *w, uint32_t per_mille)
{
    return world_chance(w, per_mille) && (w->rage_per_mille == 0 || world_chance(w, w->rage_per_mille));
}

static void node_step(struct world_node *n, bool storm)
{
    struct world *w = n->world;
    if (!n->up && w->now_ms >= n->up_at_ms) node_up(n);
    for (uint32_t g = 0; g < w->group_count && !n->up; g++) {
        struct world_replica *r = &n->replicas[g];
        if (r->replica_id != 0 && r->replica_id == w->groups[g].removed) replica_end(r);
    }
    if (!n->up) return;
    if (!n->cut) world_disk_step(n);
    if (!n->cut && w->machine->node_step != NULL) w->machine->node_step(n);
    for (uint32_t g = 0; g < w->group_count && !n->cut; g++) replica_step(&n->replicas[g]);
    if (n->cut) {
        world_crash(n);
        w->counts.crashes++;
        return;
    }
    if (n->full_until_ms != 0 && w->now_ms >= n->full_until_ms) {
        n->full_until_ms = 0;
        disk_full(n, false);
    }
    if (!storm) return;
    if (strikes(w, 1)) {
        world_crash(n);
        w->counts.crashes++;
    } else if (strikes(w, 1)) {
        if (world_chance(w, 300)) {
            for (uint32_t i = 0; i < WORLD_NODES; i++) disk_fill(&w->nodes[i]);
        } else {
            disk_fill(n);
        }
    }
}

void world_step(struct world *w, bool storm)
{
    w->now_ms += WORLD_STEP_MS;
    world_messages_deliver(w);
    for (uint32_t i = 0; i < WORLD_NODES; i++) node_step(&w->nodes[i], storm);
    if (!storm) return;
    for (uint32_t g = 0; g < w->group_count; g++) {
        struct world_replica *leader = world_leader(w, g);
        if (leader != NULL && !w->groups[g].change_out && !w->groups[g].held && strikes(w, 8))
            change_members(leader);
    }
    if (strikes(w, 3)) cut_choose(w);
    if (world_chance(w, 6)) memset(w->cut, 0, sizeof w->cut);
    if (world_chance(w, 3)) w->loss_per_mille = world_chance(w, 500) ? 0 : (uint32_t)world_below(w, 200);
}

void world_heal(struct world *w)
{
    memset(w->cut, 0, sizeof w->cut);
    w->loss_per_mille = 0;
    for (uint32_t i = 0; i < WORLD_NODES; i++) {
        if (w->nodes[i].full_until_ms != 0) disk_full(&w->nodes[i], false);
        w->nodes[i].full_until_ms = 0;
    }
}

/* ---- begin and end ---- */

static void bootstrap(struct world *w, uint32_t slot)
{
    struct replica_member members[3];
    uint64_t vote = 0;
    uint32_t len;
    for (uint32_t i = 0; i < 3; i++) {
        members[i] = (struct replica_member){ ++w->next_replica, (slot + i) % WORLD_NODES + 1,
            REPLICA_VOTER };
    }
    uint8_t *body = members_encode(members, 3, &len);
    for (uint32_t i = 0; i < 3; i++) {
        struct world_node *n = &w->nodes[members[i].node_id - 1];
        struct node_log_record hard = { .group = slot + 1,
            .replica = members[i].replica_id,
            .term = 1,
            .kind = NODE_LOG_HARD_STATE,
            .body = &vote,
            .len = 8 };
        struct node_log_record first = hard;
        first.kind = NODE_LOG_ENTRY;
        first.entry_type = NODE_LOG_CHANGE;
        first.index = 1;
        first.body = body;
        first.len = len;
        replica_begin(n, slot, members[i].replica_id);
        if (pending_replay(&n->disk, &hard) != OMEN_OK || pending_replay(&n->disk, &first) != OMEN_OK)
            world_fail(w, "bootstrap");
    }
    mem_free(body);
}

struct world *world_new(uint64_t seed, uint32_t group_count, const struct world_machine *machine, void *arg)
{
    struct world *w = mem_must_calloc(1, sizeof *w);
    w->seed = seed;
    w->rng = seed * 0x9e3779b97f4a7c15ull + 1;
    for (int i = 0; i < 8; i++) (void)rnd(w);
    w->now_ms = 1000;
    w->machine = machine;
    w->arg = arg;
    w->group_count = group_count;
    w->messages = mem_must_alloc(MESSAGES_MAX * sizeof *w->messages);
    for (uint32_t i = 0; i < WORLD_NODES; i++) {
        struct world_node *n = &w->nodes[i];
        n->world = w;
        n->place = i;
        n->writing_tail = &n->writing;
        for (uint32_t g = 0; g < WORLD_GROUPS_MAX; g++) replica_begin(n, g, 0);
    }
    for (uint32_t g = 0; g < group_count; g++) bootstrap(w, g);
    w->next_replica += 10;
    return w;
}

void world_up(struct world *w)
{
    for (uint32_t i = 0; i < WORLD_NODES; i++) node_up(&w->nodes[i]);
}

void world_free(struct world *w)
{
    for (uint32_t i = 0; i < WORLD_NODES; i++) {
        world_crash(&w->nodes[i]);
        for (uint32_t g = 0; g < w->group_count; g++) replica_end(&w->nodes[i].replicas[g]);
        pending_set_fini(&w->nodes[i].disk);
    }
    for (uint32_t i = 0; i < w->message_count; i++) mem_free(w->messages[i].bytes);
    mem_free(w->messages);
    mem_free(w);
}

static bool group_settled(struct world *w, uint32_t slot)
{
    const struct world_group *g = &w->groups[slot];
    struct world_replica *leader = world_leader(w, slot);
    struct replica_status mine, s;
    uint32_t count;
    if (leader == NULL) return false;
    raft_group_status(leader->group, &mine);
    if (mine.commit_index < g->highest_acknowledged || mine.commit_index < mine.last_index) return false;
    const struct replica_member *m = raft_group_members(leader->group, &count);
    for (uint32_t i = 0; i < count; i++) {
        const struct world_replica *r = &w->nodes[m[i].node_id - 1].replicas[slot];
        if (m[i].role == REPLICA_SPARE) continue;
        if (r->replica_id != m[i].replica_id || r->group == NULL) return false;
        raft_group_status(r->group, &s);
        if (s.commit_index < g->highest_acknowledged || r->sequence < leader->sequence) return false;
    }
    return true;
}

bool world_settled(struct world *w)
{
    for (uint32_t g = 0; g < w->group_count; g++) {
        if (!group_settled(w, g)) return false;
    }
    return true;
}

void world_print(struct world *w)
{
    for (uint32_t i = 0; i < WORLD_NODES * w->group_count; i++) {
        const struct world_replica *r = &w->nodes[i % WORLD_NODES].replicas[i / WORLD_NODES];
        struct replica_status s;
        if (r->replica_id == 0 || r->group == NULL) continue;
        raft_group_status(r->group, &s);
        printf("group %u node %u replica %" PRIu64 " role %d%s%s leader %" PRIu64 " term %" PRIu64
               " last %" PRIu64 " stored %" PRIu64 " commit %" PRIu64 " sequence %" PRIu64 " base %" PRIu64
               " durable %" PRIu64 "%s%s\n",
                r->slot + 1, r->node->place + 1, r->replica_id, s.role, s.is_member ? "" : " (none)",
                s.leader ? " leads" : "", s.leader_replica, s.term, s.last_index, s.stored_index,
                s.commit_index, r->sequence, s.base_sequence, r->durable, s.fetching ? " fetching" : "",
                raft_group_disk_full(r->group) ? " full" : "");
    }
}
