/* A group's appends to the node log: hard states, entries, bases; what happens when they are durable, and
 * when the disk is full. See raft_group.h.
 *
 *   (made) --> with io --durable--> told to the core
 *     |           | disk full
 *     |           v
 *     +------> refused: kept in order of their ids, given out again every GROUP_FULL_RETRY_MS
 * While one is refused all later entries join it: the log must not get them in another order. Hard states and bases go
 * past: no entry says anything about them, they find room in the log's reserve where entries do not, and a base is what
 * makes room. A hard state that was refused itself may be overtaken by a later one: it says what is true when it is
 * given out again, or a term that was left would come back at the next start. */
#include "common/err.h"

#include <string.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/crc32c.h"
#include "common/log.h"
#include "consensus/members.h"
#include "consensus/raft_group_impl.h"

#define BASE_VERSION 1u
#define BASE_HEADER_BYTES                                                                                    \
    24u /* 0 u32 version | 4 u32 members bytes | 8 u64 sequence | 16 u64 members index */
#define DESCRIPTION_MAGIC 0x42524d4fu /* "OMRB" */
#define DESCRIPTION_HEADER_BYTES 24u  /* 0 magic | 4 u32 bytes of the base | 8 u64 index | 16 u64 term */

/* ---- bases as bytes ---- */

uint8_t *group_base_encode(const struct group_base *base, uint32_t *len_out)
{
    uint32_t len = BASE_HEADER_BYTES + base->members_len;
    uint8_t *data = mem_must_alloc(len);
    store_u32(data, BASE_VERSION);
    store_u32(data + 4, base->members_len);
    store_u64(data + 8, base->sequence);
    store_u64(data + 16, base->members_index);
    memcpy(data + BASE_HEADER_BYTES, base->members, base->members_len);
    CHECK(len <= NODE_LOG_SNAPSHOT_BYTES_MAX);
    *len_out = len;
    return data;
}

enum omen_err group_base_decode(const uint8_t *data, size_t len, struct group_base *base_out)
{
    uint32_t count;
    if (len < BASE_HEADER_BYTES || len > NODE_LOG_SNAPSHOT_BYTES_MAX || load_u32(data) != BASE_VERSION)
        return OMEN_ECORRUPT;
    uint32_t members_len = load_u32(data + 4);
    if (members_len != len - BASE_HEADER_BYTES) return OMEN_ECORRUPT;
    if (members_decode(data + BASE_HEADER_BYTES, members_len, NULL, &count) != OMEN_OK) return OMEN_ECORRUPT;
    base_out->sequence = load_u64(data + 8);
    base_out->members_index = load_u64(data + 16);
    base_out->members_len = members_len;
    base_out->members = mem_must_alloc(members_len);
    memcpy(base_out->members, data + BASE_HEADER_BYTES, members_len);
    return OMEN_OK;
}

void group_base_free(struct group_base *base)
{
    mem_free(base->members);
    *base = (struct group_base){ 0 };
}

static struct group_base base_take(struct group_base *base)
{
    struct group_base taken = *base;
    *base = (struct group_base){ 0 };
    return taken;
}

int group_configuration(const uint8_t *members, uint32_t len, struct raft_configuration *out)
{
    struct raft_buffer buf = { (void *)(uintptr_t)members, len };
    return raft_configuration_decode(&buf, out);
}

/* ---- appends ---- */

static struct group_append *append_new(struct raft_group *g, uint32_t records, uint32_t owners)
{
    struct group_append *a = mem_must_calloc(1, sizeof *a + records * sizeof a->records[0]);
    a->group = g;
    a->id = ++g->append_id;
    a->first = 1;
    if (owners > 0) a->owners = mem_must_calloc(owners, sizeof(struct shared *));
    a->append.records = a->records;
    a->append.count = records;
    return a;
}

static void append_free(struct group_append *a)
{
    if (a->owners != NULL) {
        for (uint64_t i = 0; i <= a->last - a->first; i++) shared_release(a->owners[i]);
    }
    mem_free(a->owners);
    mem_free(a->body);
    mem_free(a);
}

static void refused_insert(struct raft_group *g, struct group_append *a)
{
    struct group_append **link = &g->refused;
    while (*link != NULL && (*link)->id < a->id) link = &(*link)->next;
    a->next = *link;
    *link = a;
}

static void append_submit(struct raft_group *g, struct group_append *a)
{
    if (g->refused != NULL && a->first <= a->last) {
        refused_insert(g, a);
        return;
    }
    g->appends_out++;
    g->options.io->append(g->options.io_arg, a);
}

static struct node_log_record record_of(const struct raft_group *g, enum node_log_kind kind)
{
    return (struct node_log_record){ .group = g->options.group,
        .replica = g->options.replica_id,
        .kind = kind };
}

static void hard_state_say(const struct raft_group *g, struct group_append *a)
{
    a->vote = raft_voted_for((struct raft *)(uintptr_t)&g->raft);
    a->records[0].term = raft_current_term((struct raft *)(uintptr_t)&g->raft);
}

void group_append_hard_state(struct raft_group *g)
{
    struct group_append *a = append_new(g, 1, 0);
    a->hard_state = true;
    a->append.claim = NODE_LOG_LAST;
    a->records[0] = record_of(g, NODE_LOG_HARD_STATE);
    a->records[0].body = &a->vote;
    a->records[0].len = sizeof a->vote;
    hard_state_say(g, a);
    g->hard_out++;
    append_submit(g, a);
}

static bool entry_is_vital(const struct raft_group *g, const struct log_slot *slot)
{
    const struct group_io *io = g->options.io;
    return slot->type != NODE_LOG_COMMAND ||
            (io->vital != NULL && io->vital(g->options.io_arg, slot->data, slot->len));
}

void group_append_entries(struct raft_group *g, uint64_t index, const struct raft_entry *batch, uint32_t n,
        const struct log_slot *slots)
{
    bool truncates = index <= g->log.last;
    CHECK(index >= g->log.first);
    CHECK(index <= g->log.last + 1);
    CHECK(index > g->delivered);
    struct group_append *a = append_new(g, n + (truncates ? 1 : 0), n);
    struct node_log_record *record = a->records;
    a->first = index;
    a->last = index + n - 1;
    a->append.claim = NODE_LOG_VITAL;
    if (truncates) {
        group_lose_tags(g, index, OMEN_EUNKNOWN);
        group_log_truncate(&g->log, index);
        *record = record_of(g, NODE_LOG_TRUNCATE);
        record++->index = index;
    }
    for (uint32_t i = 0; i < n; i++, record++) {
        struct log_slot slot;
        if (slots != NULL) {
            slot = slots[i];
            slot.owner = shared_hold(slot.owner);
        } else { /* the core's own: a barrier after an election */
            void *data = mem_must_alloc(batch[i].buf.len);
            memcpy(data, batch[i].buf.base, batch[i].buf.len);
            slot = (struct log_slot){ .term = batch[i].term,
                .owner = shared_new(data),
                .data = data,
                .len = (uint32_t)batch[i].buf.len,
                .type = NODE_LOG_BARRIER };
            slot.crc = crc32c(0, data, slot.len);
        }
        if (!entry_is_vital(g, &slot)) a->append.claim = NODE_LOG_OWED;
        slot.append_id = a->id;
        a->owners[i] = shared_hold(slot.owner);
        *record = record_of(g, NODE_LOG_ENTRY);
        record->term = slot.term;
        record->index = index + i;
        record->entry_type = slot.type;
        record->body = slot.data;
        record->len = slot.len;
        group_log_append(&g->log, &slot);
    }
    append_submit(g, a);
}

/* next_base as a record; what it replaces of the log is voided before it when it is an install. */
void group_append_base(struct raft_group *g)
{
    struct group_append *a = append_new(g, g->installing ? 2 : 1, 0);
    struct node_log_record *record = a->records;
    uint32_t len;
    a->base = true;
    a->append.claim = NODE_LOG_LAST;
    a->body = group_base_encode(&g->next_base, &len);
    if (g->installing) {
        *record = record_of(g, NODE_LOG_TRUNCATE);
        record++->index = 1;
    }
    *record = record_of(g, NODE_LOG_SNAPSHOT);
    record->term = g->next_base.term;
    record->index = g->next_base.index;
    record->body = a->body;
    record->len = len;
    append_submit(g, a);
}

/* ---- refused ---- */

/* Nothing in it is part of the log any more: truncated meanwhile. */
static bool append_superseded(const struct raft_group *g, const struct group_append *a)
{
    if (a->hard_state || a->base || a->first > a->last) return false;
    const struct log_slot *s = group_log_get(&g->log, a->first);
    return s == NULL || s->append_id != a->id;
}

void group_retry(struct raft_group *g)
{
    if (g->appends_out > 0) return; /* those behind the refused one come back first */
    struct group_append *a = g->refused;
    g->refused = NULL;
    while (a != NULL) {
        struct group_append *next = a->next;
        if (a->hard_state) hard_state_say(g, a);
        if (append_superseded(g, a))
            append_free(a);
        else
            append_submit(g, a);
        a = next;
    }
}

void group_refused_free(struct raft_group *g)
{
    while (g->refused != NULL) {
        struct group_append *a = g->refused;
        g->refused = a->next;
        append_free(a);
    }
}

bool raft_group_disk_full(const struct raft_group *g) { return g->refused != NULL; }

/* ---- durable ---- */

/* The highest index of the append whose entries are still those it carried. */
static uint64_t append_current(const struct raft_group *g, const struct group_append *a)
{
    uint64_t last = a->first - 1;
    for (uint64_t i = a->first; i <= a->last; i++) {
        const struct log_slot *s = group_log_get(&g->log, i);
        if (s == NULL || s->append_id != a->id) break;
        last = i;
    }
    return last;
}

static void entries_durable(struct raft_group *g, const struct group_append *a)
{
    uint64_t last = append_current(g, a);
    /* None of it may be in the log any more: truncated while it was on its way. Then it says nothing, least of all
     * about the entries before it, which may be others by now and not durable. */
    if (last < a->first || g->installing || last <= g->raft.last_stored) return;
    struct raft_event event = { .type = RAFT_PERSISTED_ENTRIES };
    event.persisted_entries.index = last;
    int rv = group_step(g, &event, NULL, NULL);
    CHECK(rv == 0);
}

/* How much of the log before the new base is kept: whole entries, at most `bytes`, never what the core has
 * forgotten already. */
static unsigned trailing_count(const struct raft_group *g, uint64_t index, uint64_t bytes)
{
    unsigned n = 0;
    while (index - n >= g->log.first) {
        const struct log_slot *s = group_log_get(&g->log, index - n);
        if (s->len > bytes) break;
        bytes -= s->len;
        n++;
    }
    return n;
}

static void own_base_durable(struct raft_group *g)
{
    struct raft_event event = { .type = RAFT_SNAPSHOT };
    struct raft_snapshot_metadata *m = &event.snapshot.metadata;
    group_base_free(&g->base);
    g->base = base_take(&g->next_base);
    g->base_out = false;
    m->index = g->base.index;
    m->term = g->base.term;
    m->configuration_index = g->base.members_index;
    CHECK(group_configuration(g->base.members, g->base.members_len, &m->configuration) == 0);
    unsigned trailing = trailing_count(g, g->base.index, g->next_trailing_bytes);
    event.snapshot.trailing = trailing;
    int rv = group_step(g, &event, NULL, NULL);
    CHECK(rv == 0);
    /* As the core does it: nothing goes when that many entries are not there. */
    if (g->base.index - trailing >= g->log.first) group_log_trim(&g->log, g->base.index - trailing);
    /* What is kept before the base is for followers that lag a little: memory is enough for that. */
    g->options.io->released(g->options.io_arg, g->base.index);
}

static void install_durable(struct raft_group *g)
{
    struct raft_event event = { .type = RAFT_PERSISTED_SNAPSHOT };
    event.persisted_snapshot.metadata = g->install_meta;
    event.persisted_snapshot.last = true;
    g->install_meta.configuration = (struct raft_configuration){ 0 };
    group_base_free(&g->base);
    g->base = base_take(&g->next_base);
    g->installing = false;
    g->delivered = g->base.index;
    int rv = group_step(g, &event, NULL, NULL);
    CHECK(rv == 0);
    LOG_INFO("raft.installed", "group=%llu replica=%llu index=%llu sequence=%llu",
            (unsigned long long)g->options.group, (unsigned long long)g->options.replica_id,
            (unsigned long long)g->base.index, (unsigned long long)g->base.sequence);
    group_members_refresh(g);
    g->options.io->installed(g->options.io_arg, g->base.sequence);
    g->options.io->released(g->options.io_arg, g->base.index);
}

void raft_group_appended(struct raft_group *g, struct group_append *a, uint64_t now_ms)
{
    CHECK(g->appends_out > 0);
    g->appends_out--;
    if (now_ms > g->now_ms) g->now_ms = now_ms;
    if (g->stopped || g->failed != OMEN_OK) {
        append_free(a);
        return;
    }
    if (a->result == OMEN_EFULL) {
        if (g->refused == NULL) {
            LOG_WARN("raft.disk_full", "group=%llu replica=%llu", (unsigned long long)g->options.group,
                    (unsigned long long)g->options.replica_id);
        }
        g->retry_ms = g->now_ms + GROUP_FULL_RETRY_MS;
        refused_insert(g, a);
        return;
    }
    CHECK(a->result == OMEN_OK); /* anything else ended the process (C2) */
    if (a->hard_state && --g->hard_out == 0) group_held_flush(g);
    if (a->first <= a->last) entries_durable(g, a);
    if (a->base && g->installing)
        install_durable(g);
    else if (a->base)
        own_base_durable(g);
    append_free(a);
    group_settle(g);
}

/* ---- bases ---- */

/* Configuration in force at `index`, which is committed: the last one in the log, or the base's. */
static void members_at(const struct raft_group *g, uint64_t index, struct group_base *base)
{
    const uint8_t *members = g->base.members;
    base->members_len = g->base.members_len;
    base->members_index = g->base.members_index;
    for (uint64_t i = index; i >= g->log.first && i > g->base.index; i--) {
        const struct log_slot *s = group_log_get(&g->log, i);
        if (s->type != NODE_LOG_CHANGE) continue;
        members = s->data;
        base->members_len = s->len;
        base->members_index = i;
        break;
    }
    CHECK(members != NULL);
    base->members = mem_must_alloc(base->members_len);
    memcpy(base->members, members, base->members_len);
}

void raft_group_checkpointed(struct raft_group *g, uint64_t sequence, uint64_t trailing_bytes,
        uint64_t now_ms)
{
    if (now_ms > g->now_ms) g->now_ms = now_ms;
    if (g->stopped || !g->started || g->failed != OMEN_OK || g->base_out || g->installing) return;
    uint64_t index = group_log_index_of(&g->log, sequence);
    if (index > g->delivered) index = g->delivered;
    if (index <= g->base.index) return;
    const struct log_slot *s = group_log_get(&g->log, index);
    CHECK(s != NULL);
    g->next_base = (struct group_base){ .index = index, .term = s->term, .sequence = s->sequence };
    members_at(g, index, &g->next_base);
    g->next_trailing_bytes = trailing_bytes;
    g->base_out = true;
    group_append_base(g);
}

bool raft_group_describe(const struct raft_group *g, struct buf *out, uint64_t *sequence_out)
{
    if (g->base.index == 0) return false;
    uint32_t len;
    uint8_t header[DESCRIPTION_HEADER_BYTES], *body = group_base_encode(&g->base, &len);
    store_u32(header, DESCRIPTION_MAGIC);
    store_u32(header + 4, len);
    store_u64(header + 8, g->base.index);
    store_u64(header + 16, g->base.term);
    buf_append(out, header, sizeof header);
    buf_append(out, body, len);
    mem_free(body);
    *sequence_out = g->base.sequence;
    return !out->failed;
}

enum omen_err raft_group_install(struct raft_group *g, const uint8_t *description, size_t len,
        uint64_t now_ms, struct err *err)
{
    struct group_base base = { 0 };
    if (now_ms > g->now_ms) g->now_ms = now_ms;
    g->fetching = false;
    if (len < DESCRIPTION_HEADER_BYTES || load_u32(description) != DESCRIPTION_MAGIC ||
            load_u32(description + 4) != len - DESCRIPTION_HEADER_BYTES ||
            group_base_decode(description + DESCRIPTION_HEADER_BYTES, len - DESCRIPTION_HEADER_BYTES,
                    &base) != OMEN_OK)
        return err_set(err, OMEN_EPROTO, NULL, "malformed description of a base");
    base.index = load_u64(description + 8);
    base.term = load_u64(description + 16);
    if (base.index == 0 || base.term == 0 || base.members_index == 0 || base.members_index > base.index ||
            base.sequence > base.index) {
        group_base_free(&base);
        return err_set(err, OMEN_EPROTO, NULL, "description of an impossible base");
    }
    group_base_free(&g->ready_base);
    g->ready_base = base;
    group_settle(g);
    return OMEN_OK;
}

void raft_group_install_failed(struct raft_group *g) { g->fetching = false; }

/* Shows the fetched base to the core as the leader's snapshot, once it can take it: with a leader, and with no
 * snapshot of our own on its way (C5). */
void group_ready_base_step(struct raft_group *g)
{
    struct group_base *base = &g->ready_base;
    if (base->members == NULL || g->base_out || g->installing) return;
    if (base->index <= g->delivered) {
        group_base_free(base); /* the log was faster */
        return;
    }
    raft_id leader = 0;
    const char *address = NULL;
    if (g->raft.state == RAFT_FOLLOWER) raft_leader(&g->raft, &leader, &address);
    if (leader == 0) return;
    struct raft_message message = { .type = RAFT_INSTALL_SNAPSHOT,
        .server_id = leader,
        .server_address = address };
    struct raft_install_snapshot *s = &message.install_snapshot;
    s->term = g->raft.current_term;
    s->last_index = base->index;
    s->last_term = base->term;
    s->conf_index = base->members_index;
    CHECK(group_configuration(base->members, base->members_len, &s->conf) == 0);
    struct raft_event event = { .type = RAFT_RECEIVE };
    event.receive.message = &message;
    int rv = group_step(g, &event, NULL, NULL); /* group_install when the core wants it */
    CHECK(rv == 0);
    group_base_free(base);
}

void group_install(struct raft_group *g, const struct raft_snapshot_metadata *metadata)
{
    CHECK(metadata->index == g->ready_base.index);
    CHECK(!g->base_out);
    g->next_base = base_take(&g->ready_base);
    g->install_meta = *metadata;
    g->installing = true;
    group_lose_tags(g, g->log.first, OMEN_EUNKNOWN);
    group_log_fini(&g->log);
    group_log_init(&g->log, g->next_base.index + 1, g->next_base.sequence);
    group_append_base(g);
}

uint64_t raft_group_stored(const struct raft_group *g) { return g->raft.last_stored; }
