/* Raft groups in a world of their own: simulated clock, network and disk, all choices from one seed. The code
 * under test is what runs in production between the sockets and the disk: raft's core, raft_group, the frames'
 * codec, the records of the node log and their replay.
 *
 * The network loses, delays, reorders, duplicates and is cut in two, one way or both. A disk takes its time; a
 * crash keeps some of what was on its way, in order; it is full for a while. Replicas crash and come back,
 * checkpoint, fetch bases; members come and go. Checked at each step:
 *   - at one index all replicas commit the same entry, for ever;
 *   - one term has one leader;
 *   - a base is installed only where a checkpoint reaches that far.
 * And at the end, when the network is whole and all are up: everything acknowledged is committed at each
 * member, and something new can be written. A seed that acknowledged little has failed too.
 *
 *   OMEN_SEED=n repeats one; OMEN_SEEDS=m runs that many (default 150), from n or 1 on. */
#include "common/err.h"

#include <check.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/crc32c.h"
#include "common/log.h"
#include "common/mem.h"
#include "consensus/members.h"
#include "consensus/replica_raft_impl.h"

#define NODES 5u
#define STEP_MS 5u
#define STORM_STEPS 6000u /* 30 s */
#define CALM_STEPS 4000u
#define INDEXES_MAX 20000u
#define MESSAGES_MAX 4096u
#define TERMS_MAX 4096u

struct message {
    uint64_t at_ms;
    uint32_t to; /* slot of the node */
    uint64_t from_node;
    uint8_t *bytes;
    size_t len;
};

struct node {
    uint64_t replica_id;      /* 0: none lives here */
    struct raft_group *group; /* NULL: down */
    struct pending_set disk;  /* what the log holds: kept as a replay would give it */
    uint64_t released;
    uint64_t refused_from;                        /* on a full disk: as the log has it */
    struct group_append *writing, **writing_tail; /* in order */
    uint64_t write_at_ms, full_until_ms, up_at_ms;
    uint64_t durable;  /* the machine's checkpoint, in commands */
    uint64_t sequence; /* delivered, in commands */
    uint64_t want;     /* a base at least so far, 0 = none wanted */
    uint64_t fetch_at_ms;
};

struct world {
    uint64_t rng, now_ms;
    struct node nodes[NODES];
    struct message messages[MESSAGES_MAX];
    uint32_t message_count;
    bool cut[NODES][NODES]; /* from, to */
    uint32_t loss_per_mille;
    struct { /* by index: what was committed there */
        bool set, acknowledged;
        uint32_t crc, len;
        enum node_log_entry_type type;
        uint64_t sequence;
    } log[INDEXES_MAX];
    uint64_t leader_of_term[TERMS_MAX];
    uint64_t proposed, acknowledged, highest_acknowledged, elections, crashes, installs, changes, truncations;
    uint64_t next_replica, word;
    bool change_out;
    uint64_t removing; /* replica whose removal is under way */
    uint64_t removed;  /* and is committed: its node may forget it */
};

static struct world *w;

static uint64_t rnd(void)
{
    w->rng ^= w->rng << 13;
    w->rng ^= w->rng >> 7;
    w->rng ^= w->rng << 17;
    return w->rng;
}
static uint64_t below(uint64_t n) { return rnd() % n; }
static bool chance(uint32_t per_mille) { return below(1000) < per_mille; }

static struct node *node_of(void *arg) { return arg; }
static uint32_t slot_of(const struct node *n) { return (uint32_t)(n - w->nodes); }

/* ---- what a group asks for ---- */

static void io_append(void *arg, struct group_append *append)
{
    struct node *n = node_of(arg);
    append->next = NULL;
    *n->writing_tail = append;
    n->writing_tail = &append->next;
    if (n->writing == append) n->write_at_ms = w->now_ms + below(chance(30) ? 300 : 12);
}

static void message_add(uint32_t to, uint64_t from_node, const struct frame_out *f)
{
    if (w->message_count == MESSAGES_MAX) return;
    struct message *m = &w->messages[w->message_count++];
    *m = (struct message){ .at_ms = w->now_ms + below(chance(20) ? 900 : 25),
        .to = to,
        .from_node = from_node };
    m->bytes = mem_must_alloc(f->bytes);
    for (uint32_t i = 0; i < f->piece_count; i++) {
        memcpy(m->bytes + m->len, f->pieces[i].data, f->pieces[i].len);
        m->len += f->pieces[i].len;
    }
}

static void io_send(void *arg, struct frame_out *frame)
{
    struct node *n = node_of(arg);
    uint32_t to = (uint32_t)frame->node - 1;
    ck_assert_uint_lt(to, NODES);
    if (!w->cut[slot_of(n)][to] && !chance(w->loss_per_mille)) {
        message_add(to, slot_of(n) + 1, frame);
        if (chance(15)) message_add(to, slot_of(n) + 1, frame);
    }
    frame_out_free(frame);
}

static void io_commit(void *arg, const struct group_commit *entry)
{
    struct node *n = node_of(arg);
    ck_assert_uint_lt(entry->index, INDEXES_MAX);
    uint32_t crc = crc32c(0, entry->data, entry->len);
    typeof(&w->log[0]) e = &w->log[entry->index];
    if (!e->set) {
        e->set = true;
        e->crc = crc;
        e->len = entry->len;
        e->type = entry->type;
        e->sequence = entry->sequence;
    }
    ck_assert_msg(e->crc == crc && e->len == entry->len && e->type == entry->type &&
                    e->sequence == entry->sequence,
            "index %" PRIu64 ": replicas committed different entries", entry->index);
    ck_assert_uint_eq(entry->sequence, n->sequence + (entry->type == NODE_LOG_COMMAND ? 1 : 0));
    n->sequence = entry->sequence;
    if (entry->tag == NULL) return;
    e->acknowledged = true;
    w->acknowledged++;
    if (entry->index > w->highest_acknowledged) w->highest_acknowledged = entry->index;
}

static void io_lost(void *arg, enum node_log_entry_type type, void *tag, enum omen_err rc) {}

static bool io_fetch(void *arg, uint64_t sequence, uint64_t node_id)
{
    struct node *n = node_of(arg);
    if (n->durable >= sequence && chance(500)) return true;
    n->want = sequence;
    n->fetch_at_ms = w->now_ms + below(600);
    return false;
}

static void io_installed(void *arg, uint64_t sequence)
{
    struct node *n = node_of(arg);
    ck_assert_uint_ge(n->durable, sequence);
    n->sequence = sequence;
    w->installs++;
}

static void io_released(void *arg, uint64_t index)
{
    struct node *n = node_of(arg);
    if (index > n->released) n->released = index;
}

static void io_role_changed(void *arg)
{
    struct node *n = node_of(arg);
    struct replica_status s;
    raft_group_status(n->group, &s);
    if (!s.leader) return;
    ck_assert_uint_lt(s.term, TERMS_MAX);
    if (w->leader_of_term[s.term] == 0) w->elections++;
    ck_assert_msg(w->leader_of_term[s.term] == 0 || w->leader_of_term[s.term] == n->replica_id,
            "term %" PRIu64 " has two leaders", s.term);
    w->leader_of_term[s.term] = n->replica_id;
}

static void io_changed(void *arg, void *tag, enum omen_err rc)
{
    w->change_out = false;
    if (rc == OMEN_OK) w->changes++;
    if (rc == OMEN_OK) w->removed = w->removing;
    w->removing = 0;
}

static void io_barrier(void *arg, enum frame_type type, uint64_t node_id, uint64_t from,
        const struct frame_barrier *barrier)
{
}

static const struct group_io io = { io_append, io_send, io_commit, io_lost, io_fetch, io_installed,
    io_released, io_role_changed, io_changed, io_barrier };

/* ---- disks ---- */

/* The append's records are in the log from now on. */
static void disk_take(struct node *n, const struct group_append *a)
{
    for (uint32_t i = 0; i < a->append.count; i++) {
        if (a->append.records[i].kind == NODE_LOG_TRUNCATE) w->truncations++;
        ck_assert_int_eq(pending_replay(&n->disk, &a->append.records[i]), OMEN_OK);
    }
}

static struct group_append *writing_pop(struct node *n)
{
    struct group_append *a = n->writing;
    n->writing = a->next;
    if (n->writing == NULL) n->writing_tail = &n->writing;
    return a;
}

/* As the log does it: what has no entry may fit where entries do not, and entries behind refused ones are
 * refused until those come again, lower ones, or a truncation that voids them. */
static bool disk_refuses(struct node *n, const struct group_append *a)
{
    for (uint32_t i = 0; i < a->append.count; i++) {
        const struct node_log_record *r = &a->append.records[i];
        if (r->kind != NODE_LOG_ENTRY && r->kind != NODE_LOG_TRUNCATE) continue;
        bool after = n->refused_from != 0 && r->index > n->refused_from;
        if (after && r->kind == NODE_LOG_ENTRY) return true;
        if (!after) n->refused_from = 0;
    }
    return false;
}

/* One sync takes what is there; it all comes back, in order. */
static void disk_step(struct node *n)
{
    if (n->writing == NULL || w->now_ms < n->write_at_ms) return;
    uint64_t count = 1 + below(6);
    bool full = w->now_ms < n->full_until_ms;
    for (uint64_t i = 0; i < count && n->writing != NULL; i++) {
        struct group_append *a = writing_pop(n);
        bool entries = a->first <= a->last;
        bool refused = disk_refuses(n, a);
        a->result = refused || (full && (entries || chance(500))) ? OMEN_EFULL : OMEN_OK;
        if (entries && a->result == OMEN_EFULL && !refused) n->refused_from = a->first;
        if (a->result == OMEN_OK) disk_take(n, a);
        raft_group_appended(n->group, a, w->now_ms);
    }
    n->write_at_ms = w->now_ms + below(12);
}

/* ---- up and down ---- */

static void node_up(struct node *n)
{
    struct group_load load;
    struct err err = { 0 };
    /* Reading back gives the log a copy: the disk keeps its own. */
    struct pending *p = pending_take(&n->disk, 1, n->replica_id);
    struct pending_set again = { 0 };
    if (p == NULL) {
        p = mem_must_calloc(1, sizeof *p);
        p->group = 1;
        p->replica_id = n->replica_id;
    }
    uint64_t from = p->count > 0 ? p->entries[0]->index : 0;
    if (n->released >= from && from != 0) from += below(n->released - from + 2); /* segments may be gone */
    struct node_log_record hard = { .group = 1,
        .replica = n->replica_id,
        .term = p->term,
        .kind = NODE_LOG_HARD_STATE,
        .body = &p->vote,
        .len = 8 };
    struct node_log_record base = { .group = 1,
        .replica = n->replica_id,
        .term = p->base_term,
        .index = p->base_index,
        .kind = NODE_LOG_SNAPSHOT,
        .body = p->base,
        .len = p->base_len };
    if (p->term != 0) ck_assert_int_eq(pending_replay(&again, &hard), OMEN_OK);
    if (p->base_index != 0) ck_assert_int_eq(pending_replay(&again, &base), OMEN_OK);
    for (uint32_t i = 0; i < p->count; i++) {
        const struct pending_entry *e = p->entries[i];
        struct node_log_record r = { .group = 1,
            .replica = n->replica_id,
            .term = e->term,
            .index = e->index,
            .kind = NODE_LOG_ENTRY,
            .entry_type = e->type,
            .body = e->body,
            .len = e->len };
        if (e->index >= from) ck_assert_int_eq(pending_replay(&again, &r), OMEN_OK);
    }
    struct pending *copy = pending_take(&again, 1, n->replica_id);
    pending_put(&n->disk, p);
    if (copy == NULL) {
        copy = mem_must_calloc(1, sizeof *copy);
        copy->group = 1;
        copy->replica_id = n->replica_id;
    }
    ck_assert_int_eq(raft_load_make(copy, &load, &err), OMEN_OK);
    ck_assert_uint_ge(n->durable, load.base.sequence); /* C4, C5: a base in the log is a base on disk */
    n->sequence = load.base.sequence;
    struct group_options o = { .group = 1,
        .replica_id = n->replica_id,
        .node_id = slot_of(n) + 1,
        .election_ms = 400,
        .heartbeat_ms = 80,
        .seed = (uint32_t)rnd(),
        .io = &io,
        .io_arg = n };
    ck_assert_msg(raft_group_new(&o, &load, w->now_ms, &n->group, &err) == OMEN_OK, "%s", err.message);
    pending_free(copy);
    pending_set_fini(&again);
    raft_group_start(n->group, w->now_ms);
}

/* Of what was being written a part in front is there. */
static void node_crash(struct node *n)
{
    if (n->group == NULL) return;
    raft_group_stop(n->group);
    bool kept = true;
    while (n->writing != NULL) {
        struct group_append *a = writing_pop(n);
        kept = kept && w->now_ms >= n->full_until_ms && chance(600);
        if (kept) disk_take(n, a);
        a->result = OMEN_OK;
        raft_group_appended(n->group, a, w->now_ms); /* stopped: only freed */
    }
    raft_group_free(n->group);
    n->group = NULL;
    n->want = n->refused_from = 0;
    n->up_at_ms = w->now_ms + 50 + below(1500);
}

static void node_begin(struct node *n, uint64_t replica_id)
{
    *n = (struct node){ .replica_id = replica_id };
    n->writing_tail = &n->writing;
}

static void node_end(struct node *n)
{
    node_crash(n);
    pending_set_fini(&n->disk);
    node_begin(n, 0);
}

/* ---- what happens ---- */

static struct node *leader_any(void)
{
    for (uint32_t i = 0; i < NODES; i++) {
        struct node *n = &w->nodes[(i + below(NODES)) % NODES];
        if (n->group != NULL && raft_group_is_leader(n->group)) return n;
    }
    return NULL;
}

static void propose(struct node *n)
{
    struct group_proposal p[4];
    uint32_t count = 1 + (uint32_t)below(4);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t len = 8 * (1 + (uint32_t)below(20));
        uint8_t *data = mem_must_calloc(1, len);
        store_u64(data, ++w->word);
        p[i] = (struct group_proposal){ shared_new(data), data, len, (void *)(uintptr_t)w->word };
    }
    w->proposed += count;
    if (raft_group_propose(n->group, p, count, w->now_ms) == OMEN_OK) return;
    for (uint32_t i = 0; i < count; i++) shared_release(p[i].owner);
}

static void checkpoint(struct node *n)
{
    if (n->sequence > n->durable) n->durable = n->sequence;
    raft_group_checkpointed(n->group, n->durable, below(2000), w->now_ms);
}

/* The base comes from whoever has one that reaches far enough. */
static void fetch_step(struct node *n)
{
    if (n->want == 0 || w->now_ms < n->fetch_at_ms) return;
    uint64_t want = n->want, sequence = 0;
    n->want = 0;
    for (uint32_t i = 0; i < NODES; i++) {
        struct node *peer = &w->nodes[i];
        struct buf description;
        if (peer == n || peer->group == NULL) continue;
        buf_init(&description);
        if (raft_group_describe(peer->group, &description, &sequence) && sequence >= want && chance(800)) {
            if (peer->durable > n->durable) n->durable = peer->durable;
            ck_assert_int_eq(raft_group_install(n->group, description.data, description.len, w->now_ms, NULL),
                    OMEN_OK);
            buf_fini(&description);
            return;
        }
        buf_fini(&description);
    }
    raft_group_install_failed(n->group);
}

static uint32_t voters_of(const struct node *n, bool *me_out)
{
    uint32_t count, voters = 0;
    const struct replica_member *m = raft_group_members(n->group, &count);
    *me_out = false;
    for (uint32_t i = 0; i < count; i++) {
        voters += m[i].role == REPLICA_VOTER;
        *me_out = *me_out || m[i].replica_id == n->replica_id;
    }
    return voters;
}

/* A replica more, a role, a replica less, or another leader. */
static void change_members(struct node *leader)
{
    uint32_t count;
    bool me;
    const struct replica_member *m = raft_group_members(leader->group, &count);
    uint32_t pick = (uint32_t)below(count), voters = voters_of(leader, &me);
    struct replica_member member = m[pick];
    enum group_change change = GROUP_TRANSFER;
    if (count < NODES && chance(400)) {
        uint32_t slot = (uint32_t)below(NODES);
        if (w->nodes[slot].replica_id != 0) return;
        node_begin(&w->nodes[slot], w->next_replica);
        node_up(&w->nodes[slot]);
        member = (struct replica_member){ w->next_replica++, slot + 1, REPLICA_SPARE };
        change = GROUP_ADD;
    } else if (member.role != REPLICA_VOTER) {
        member.role = member.role == REPLICA_SPARE && chance(500) ? REPLICA_STANDBY : REPLICA_VOTER;
        change = GROUP_ASSIGN;
    } else if (voters > 2 && chance(400)) {
        change = GROUP_REMOVE;
    }
    w->removing = change == GROUP_REMOVE ? member.replica_id : 0;
    w->change_out = true; /* it may be over before the call returns */
    if (raft_group_change(leader->group, change, &member, NULL, w->now_ms, NULL) == OMEN_OK) return;
    w->change_out = false;
    w->removing = 0;
    if (change == GROUP_ADD) node_end(&w->nodes[member.node_id - 1]);
}

static void cut_choose(void)
{
    uint32_t alone = (uint32_t)below(NODES), other = (uint32_t)below(NODES), kind = (uint32_t)below(4);
    memset(w->cut, 0, sizeof w->cut);
    for (uint32_t i = 0; i < NODES; i++) {
        if (kind == 0) w->cut[alone][i] = true;                    /* mute */
        if (kind == 1) w->cut[i][alone] = true;                    /* deaf */
        if (kind == 2) w->cut[alone][i] = w->cut[i][alone] = true; /* gone */
        if (kind == 3) w->cut[other][i] = w->cut[i][alone] = true; /* one deaf, one mute */
    }
}

static void deliver_messages(void)
{
    for (uint32_t i = 0; i < w->message_count;) {
        struct message *m = &w->messages[i];
        if (m->at_ms > w->now_ms) {
            i++;
            continue;
        }
        struct message taken = *m;
        w->messages[i] = w->messages[--w->message_count];
        struct node *n = &w->nodes[taken.to];
        struct frame_header header;
        struct frame *frame;
        ck_assert_int_eq(frame_header_decode(taken.bytes, &header, NULL), OMEN_OK);
        uint8_t *body = mem_alloc_aligned(64, header.body_bytes + 1);
        memcpy(body, taken.bytes + FRAME_HEADER_BYTES, header.body_bytes);
        mem_free(taken.bytes);
        ck_assert_int_eq(frame_decode(&header, body, &frame, NULL), OMEN_OK);
        if (n->group != NULL && header.to == n->replica_id)
            raft_group_frame(n->group, frame, taken.from_node, chance(5), w->now_ms);
        else
            frame_free(frame);
    }
}

static void step(bool storm, bool writes)
{
    w->now_ms += STEP_MS;
    deliver_messages();
    for (uint32_t i = 0; i < NODES; i++) {
        struct node *n = &w->nodes[i];
        if (n->replica_id != 0 && n->replica_id == w->removed) node_end(n); /* raft does not tell it */
        if (n->replica_id == 0) continue;
        if (n->group == NULL && w->now_ms >= n->up_at_ms) node_up(n);
        if (n->group == NULL) continue;
        disk_step(n);
        raft_group_tick(n->group, w->now_ms);
        fetch_step(n);
        if (chance(4)) checkpoint(n);
        if (!storm) continue;
        if (chance(1)) {
            node_crash(n);
            w->crashes++;
        } else if (chance(1)) {
            n->full_until_ms = w->now_ms + below(1500);
        }
    }
    struct node *leader = leader_any();
    if (leader != NULL && writes && chance(200)) propose(leader);
    if (!storm) return;
    if (leader != NULL && !w->change_out && chance(8)) change_members(leader);
    if (chance(3)) cut_choose();
    if (chance(6)) memset(w->cut, 0, sizeof w->cut);
    if (chance(3)) w->loss_per_mille = chance(500) ? 0 : (uint32_t)below(200);
}

/* ---- a seed ---- */

static void world_begin(uint64_t seed)
{
    struct replica_member members[3];
    uint32_t len;
    uint64_t vote = 0;
    w = mem_must_calloc(1, sizeof *w);
    w->rng = seed * 0x9e3779b97f4a7c15ull + 1;
    for (int i = 0; i < 8; i++) (void)rnd();
    w->now_ms = 1000;
    for (uint32_t i = 0; i < NODES; i++) node_begin(&w->nodes[i], i < 3 ? i + 1 : 0);
    w->next_replica = 10;
    for (uint32_t i = 0; i < 3; i++) members[i] = (struct replica_member){ i + 1, i + 1, REPLICA_VOTER };
    uint8_t *body = members_encode(members, 3, &len);
    for (uint32_t i = 0; i < 3; i++) {
        struct node_log_record records[] = {
            { .group = 1, .replica = i + 1, .term = 1, .kind = NODE_LOG_HARD_STATE, .body = &vote, .len = 8 },
            { .group = 1,
                    .replica = i + 1,
                    .term = 1,
                    .index = 1,
                    .kind = NODE_LOG_ENTRY,
                    .entry_type = NODE_LOG_CHANGE,
                    .body = body,
                    .len = len },
        };
        for (uint32_t r = 0; r < 2; r++)
            ck_assert_int_eq(pending_replay(&w->nodes[i].disk, &records[r]), OMEN_OK);
        node_up(&w->nodes[i]);
    }
    mem_free(body);
}

static void world_end(void)
{
    for (uint32_t i = 0; i < NODES; i++) node_end(&w->nodes[i]);
    for (uint32_t i = 0; i < w->message_count; i++) mem_free(w->messages[i].bytes);
    mem_free(w);
}

/* Every member of the leader's configuration that gets the log has committed as far as the leader. */
static bool settled(void)
{
    struct node *leader = leader_any();
    struct replica_status mine, s;
    uint32_t count;
    if (leader == NULL) return false;
    raft_group_status(leader->group, &mine);
    if (mine.commit_index < w->highest_acknowledged || mine.commit_index < mine.last_index) return false;
    const struct replica_member *m = raft_group_members(leader->group, &count);
    for (uint32_t i = 0; i < count; i++) {
        const struct node *n = &w->nodes[m[i].node_id - 1];
        if (m[i].role == REPLICA_SPARE) continue;
        if (n->replica_id != m[i].replica_id || n->group == NULL) return false;
        raft_group_status(n->group, &s);
        if (s.commit_index < w->highest_acknowledged || n->sequence < leader->sequence) return false;
    }
    return true;
}

static void calm(void)
{
    memset(w->cut, 0, sizeof w->cut);
    w->loss_per_mille = 0;
    for (uint32_t i = 0; i < NODES; i++) w->nodes[i].full_until_ms = 0;
    uint64_t before = w->acknowledged;
    for (uint32_t i = 0; i < CALM_STEPS; i++) {
        bool enough = w->acknowledged > before + 10;
        step(false, !enough);
        if (enough && i % 16 == 0 && settled()) return;
    }
    for (uint32_t i = 0; i < NODES; i++) {
        const struct node *n = &w->nodes[i];
        struct replica_status s;
        if (n->group == NULL) continue;
        raft_group_status(n->group, &s);
        printf("node %u replica %" PRIu64 " role %d%s%s leader %" PRIu64 " term %" PRIu64 " last %" PRIu64
               " stored %" PRIu64 " commit %" PRIu64 " sequence %" PRIu64 " base %" PRIu64 " durable %" PRIu64
               "%s%s\n",
                i + 1, n->replica_id, s.role, s.is_member ? "" : " (none)", s.leader ? " leads" : "",
                s.leader_replica, s.term, s.last_index, s.stored_index, s.commit_index, n->sequence,
                s.base_sequence, n->durable, s.fetching ? " fetching" : "",
                raft_group_disk_full(n->group) ? " full" : "");
    }
    ck_abort_msg("no progress in calm: %" PRIu64 " acknowledged in it", w->acknowledged - before);
}

static void run(uint64_t seed, uint64_t *totals)
{
    world_begin(seed);
    for (uint32_t i = 0; i < STORM_STEPS; i++) step(true, true);
    calm();
    for (uint64_t i = 1; i <= w->highest_acknowledged; i++) ck_assert(w->log[i].set);
    ck_assert_msg(w->acknowledged > 20, "seed %" PRIu64 " acknowledged only %" PRIu64, seed, w->acknowledged);
    totals[0] += w->acknowledged;
    totals[1] += w->elections;
    totals[2] += w->crashes;
    totals[3] += w->installs;
    totals[4] += w->changes;
    totals[5] += w->truncations;
    if (getenv("OMEN_TRACE") != NULL) {
        printf("seed %" PRIu64 ": acknowledged %" PRIu64 "/%" PRIu64 " elections %" PRIu64 " crashes %" PRIu64
               " installs %" PRIu64 " changes %" PRIu64 " truncations %" PRIu64 " rng %016" PRIx64 "\n",
                seed, w->acknowledged, w->proposed, w->elections, w->crashes, w->installs, w->changes,
                w->truncations, w->rng);
    }
    world_end();
}

START_TEST(replicas_agree_whatever_happens)
{
    uint64_t first = 1, count = 150, totals[6] = { 0 };
    if (getenv("OMEN_SEED") != NULL) {
        first = strtoull(getenv("OMEN_SEED"), NULL, 10);
        count = 1;
    }
    if (getenv("OMEN_SEEDS") != NULL) count = strtoull(getenv("OMEN_SEEDS"), NULL, 10);
    log_configure(count == 1 ? LOG_LEVEL_INFO : LOG_LEVEL_ERROR + 1, LOG_FORMAT_TEXT, 2);
    for (uint64_t seed = first; seed < first + count; seed++) {
        printf("seed %" PRIu64 "\n", seed); /* the last one printed is the one that failed */
        run(seed, totals);
    }
    printf("%" PRIu64 " seeds: acknowledged %" PRIu64 " elections %" PRIu64 " crashes %" PRIu64
           " installs %" PRIu64 " changes %" PRIu64 " truncations %" PRIu64 "\n",
            count, totals[0], totals[1], totals[2], totals[3], totals[4], totals[5]);
    /* The storm must be one. */
    if (count >= 50) {
        for (int i = 0; i < 6; i++) ck_assert_uint_gt(totals[i], count / 4);
    }
}
END_TEST

START_TEST(a_seed_gives_the_same_run)
{
    uint64_t rng[2], acknowledged[2];
    log_configure(LOG_LEVEL_ERROR + 1, LOG_FORMAT_TEXT, 2);
    for (int i = 0; i < 2; i++) {
        world_begin(7);
        for (uint32_t n = 0; n < STORM_STEPS; n++) step(true, true);
        rng[i] = w->rng;
        acknowledged[i] = w->acknowledged;
        world_end();
    }
    ck_assert_uint_eq(rng[0], rng[1]);
    ck_assert_uint_eq(acknowledged[0], acknowledged[1]);
}
END_TEST

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    Suite *s = suite_create("raft_group");
    TCase *tc = tcase_create("simulation");
    tcase_set_timeout(tc, 1200);
    tcase_add_test(tc, replicas_agree_whatever_happens);
    tcase_add_test(tc, a_seed_gives_the_same_run);
    suite_add_tcase(s, tc);
    SRunner *runner = srunner_create(s);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}
