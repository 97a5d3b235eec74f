/* A replica of a Raft group: one step of raft's core and what it asks for. See raft_group.h. */
#include "common/err.h"

#include <string.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/crc32c.h"
#include "common/log.h"
#include "consensus/members.h"
#include "consensus/raft_group_impl.h"

/* ---- one step ---- */

uint64_t group_term_at(const struct raft_group *g, uint64_t index)
{
    const struct log_slot *s = group_log_get(&g->log, index);
    return s != NULL ? s->term : index == g->base.index ? g->base.term : 0;
}

void group_lose_tags(struct raft_group *g, uint64_t from, enum omen_err rc)
{
    if (from < g->log.first) from = g->log.first;
    for (uint64_t i = from; i <= g->log.last; i++) {
        struct log_slot *s = group_log_get(&g->log, i);
        void *tag = s->tag;
        s->tag = NULL;
        if (tag != NULL) g->options.io->lost(g->options.io_arg, s->type, tag, rc);
    }
}

static void update_apply(struct raft_group *g, struct raft_update *update, const struct raft_entry *entries,
        const struct log_slot *slots)
{
    if (update->flags & (RAFT_UPDATE_CURRENT_TERM | RAFT_UPDATE_VOTED_FOR)) group_append_hard_state(g);
    g->entries_taken = (update->flags & (RAFT_UPDATE_ENTRIES)) != 0;
    if (g->entries_taken) {
        const struct raft_entry *batch = update->entries.batch;
        bool ours = batch != &g->raft.barrier;
        group_append_entries(g, update->entries.index, batch, update->entries.n,
                ours ? slots + (batch - entries) : NULL);
        if (!ours) raft_free(g->raft.barrier.buf.base);
    }
    if (update->flags & (RAFT_UPDATE_SNAPSHOT)) group_install(g, &update->snapshot.metadata);
    if (update->flags & (RAFT_UPDATE_MESSAGES)) {
        for (unsigned i = 0; i < update->messages.n; i++) group_message_send(g, &update->messages.batch[i]);
    }
}

int group_step(struct raft_group *g, struct raft_event *event, const struct raft_entry *entries,
        const struct log_slot *slots)
{
    struct raft_update update;
    bool led = g->raft.state == RAFT_LEADER;
    event->time = g->now_ms;
    event->capacity = g->waits ? GROUP_CAPACITY_WAITS : g->is_short ? GROUP_CAPACITY_SHORT : 0;
    memset(&update, 0, sizeof update);
    int rv = raft_step(&g->raft, event, &update);
    if (rv == RAFT_NOMEM) panic("raft: out of memory");
    if (rv != 0) return rv;
    update_apply(g, &update, entries, slots);
    if (led && g->raft.state != RAFT_LEADER) {
        /* What is committed is applied whoever leads; the rest may be committed by another leader, or not. */
        group_lose_tags(g, raft_commit_index(&g->raft) + 1, OMEN_EUNKNOWN);
    }
    return 0;
}

static void group_fail(struct raft_group *g, int rv)
{
    g->failed = OMEN_ECORRUPT;
    LOG_ERROR("raft.failed", "group=%llu replica=%llu reason=\"%s\"", (unsigned long long)g->options.group,
            (unsigned long long)g->options.replica_id, raft_strerror(rv));
    group_lose_tags(g, g->log.first, OMEN_EUNKNOWN);
    g->options.io->role_changed(g->options.io_arg);
}

/* Entries committed by a majority and durable here, in order. */
static void deliver(struct raft_group *g)
{
    for (;;) {
        uint64_t limit = raft_commit_index(&g->raft);
        if (limit > g->raft.last_stored) limit = g->raft.last_stored;
        if (g->installing || g->delivered >= limit) return;
        struct log_slot *s = group_log_get(&g->log, ++g->delivered);
        CHECK(s != NULL);
        struct group_commit commit = {
            .index = g->delivered,
            .sequence = s->sequence,
            .type = s->type,
            .owner = s->owner,
            .data = s->data,
            .len = s->len,
            .tag = s->tag,
        };
        s->tag = NULL;
        g->options.io->commit(g->options.io_arg, &commit);
        if (s->type != NODE_LOG_CHANGE) continue;
        struct raft_event event = { .type = RAFT_CONFIGURATION };
        event.configuration.index = g->delivered;
        CHECK(group_configuration(s->data, s->len, &event.configuration.conf) == 0);
        int rv = group_step(g, &event, NULL, NULL);
        CHECK(rv == 0);
        group_members_refresh(g);
        if (g->change.active && g->change.change != GROUP_TRANSFER && g->change.submitted)
            group_change_end(g, OMEN_OK);
    }
}

/* What a leader says is committed counts only once an entry of its own term is (Raft, section 8): after an election, or a
 * restart of all, it may know of less than earlier leaders have acknowledged. */
static void level_settle(struct raft_group *g)
{
    uint64_t term = raft_current_term(&g->raft), committed = raft_commit_index(&g->raft);
    if (g->level) return;
    if (g->level_index == 0) {
        if (!raft_group_is_leader(g) && g->heard_ms == 0) return;
        if (group_term_at(g, g->delivered) != term) return;
        g->level_index = g->led_index > committed ? g->led_index : committed;
    }
    g->level = g->delivered >= g->level_index;
}

void group_settle(struct raft_group *g)
{
    if (g->failed != OMEN_OK || !g->started || g->stopped) return;
    deliver(g);
    level_settle(g);
    group_ready_base_step(g);
    group_change_settle(g);
    group_role_settle(g);
}

/* ---- start and stop ---- */

/* A hard state refused by a full disk may be overtaken by the entries behind it. Nothing was said in that term:
 * every message waits for its hard state. */
static void load_term_raise(struct group_load *load)
{
    uint64_t term = load->count > 0 ? load->slots[load->count - 1].term : load->base.term;
    if (term <= load->term) return;
    load->term = term;
    load->vote = 0;
}

static enum omen_err load_check(const struct group_load *load, struct err *err)
{
    const char *what = NULL;
    uint32_t count;
    if (load->base.index != 0 &&
            members_decode(load->base.members, load->base.members_len, NULL, &count) != OMEN_OK)
        what = "the base's configuration is malformed";
    if (load->base.index == 0 && load->count > 0 &&
            (load->first_index != 1 || load->slots[0].type != NODE_LOG_CHANGE))
        what = "the log has no base and does not begin with a configuration";
    if (load->base.index != 0 && load->count > 0 && load->first_index > load->base.index + 1)
        what = "entries between base and log are missing";
    if (load->base.index != 0 && load->count > 0 && load->first_index + load->count - 1 < load->base.index)
        what = "the log ends before its base";
    uint64_t term = 0;
    for (uint32_t i = 0; what == NULL && i < load->count; i++) {
        const struct log_slot *s = &load->slots[i];
        if (s->term < term || s->term == 0 || s->term > load->term)
            what = "terms of entries are out of order";
        if (s->type == NODE_LOG_CHANGE && members_decode(s->data, s->len, NULL, &count) != OMEN_OK)
            what = "an entry's configuration is malformed";
        if (load->first_index + i == load->base.index && s->term != load->base.term)
            what = "base and log differ in their term";
        term = s->term;
    }
    return what == NULL ? OMEN_OK : err_set(err, OMEN_ECORRUPT, NULL, "raft log: %s", what);
}

/* Sequence before the first slot, counted back from the base. */
static uint64_t first_sequence(const struct group_load *load)
{
    if (load->base.index == 0) return 0;
    uint64_t sequence = load->base.sequence;
    for (uint32_t i = 0; i < load->count && load->first_index + i <= load->base.index; i++) {
        if (load->slots[i].type == NODE_LOG_COMMAND) sequence--;
    }
    return sequence;
}

enum omen_err raft_group_new(const struct group_options *options, struct group_load *load, uint64_t now_ms,
        struct raft_group **group_out, struct err *err)
{
    *group_out = NULL;
    load_term_raise(load);
    enum omen_err rc = load_check(load, err);
    if (rc != OMEN_OK) return rc;
    struct raft_group *g = mem_must_calloc(1, sizeof *g);
    char address[MEMBER_ADDRESS_BYTES];
    g->options = *options;
    g->now_ms = now_ms;
    g->held_tail = &g->held_head;
    member_address(options->node_id, options->replica_id, address);
    if (raft_init(&g->raft, NULL, NULL, options->replica_id, address) != 0) panic("raft: out of memory");
    g->raft.tracer = NULL; /* it formats into static memory, from every thread */
    g->raft.now = now_ms;
    raft_seed(&g->raft, options->seed);
    raft_set_heartbeat_timeout(&g->raft, (unsigned)options->heartbeat_ms);
    raft_set_election_timeout(&g->raft, (unsigned)options->election_ms);
    raft_set_pre_vote(&g->raft, true);
    raft_set_max_inflight_entries(&g->raft, GROUP_INFLIGHT_ENTRIES);
    g->base = load->base;
    g->raft.current_term = load->term;
    g->raft.voted_for = load->vote;
    group_log_init(&g->log, load->count > 0 ? load->first_index : load->base.index + 1,
            load->count > 0 ? first_sequence(load) : load->base.sequence);
    for (uint32_t i = 0; i < load->count; i++) group_log_append(&g->log, &load->slots[i]);
    mem_free(load->slots);
    load->slots = NULL;
    g->delivered = load->base.index;
    *group_out = g;
    return OMEN_OK;
}

void raft_group_start(struct raft_group *g, uint64_t now_ms)
{
    uint32_t count = (uint32_t)(g->log.last + 1 - g->log.first);
    struct raft_event event = { .type = RAFT_START };
    struct raft_snapshot_metadata base = { .index = g->base.index, .term = g->base.term };
    struct raft_entry *entries = count > 0 ? raft_calloc(count, sizeof *entries) : NULL;
    if (count > 0 && entries == NULL) panic("raft: out of memory");
    for (uint32_t i = 0; i < count; i++) {
        const struct log_slot *s = group_log_get(&g->log, g->log.first + i);
        entries[i].term = s->term;
        entries[i].type = (enum raft_entry_type)(s->type + RAFT_COMMAND);
        entries[i].buf.base = (void *)(uintptr_t)s->data;
        entries[i].buf.len = s->len;
    }
    event.start.term = g->raft.current_term;
    event.start.voted_for = g->raft.voted_for;
    event.start.start_index = g->log.first;
    event.start.entries = entries;
    event.start.n_entries = count;
    if (g->base.index != 0) {
        base.configuration_index = g->base.members_index;
        CHECK(group_configuration(g->base.members, g->base.members_len, &base.configuration) == 0);
        event.start.metadata = &base;
    }
    g->now_ms = now_ms;
    g->started = true;
    int rv = group_step(g, &event, NULL, NULL);
    CHECK(rv == 0); /* the parts were checked */
    raft_free(entries);
    group_members_refresh(g);
    group_settle(g);
}

void raft_group_stop(struct raft_group *g)
{
    if (g->stopped) return;
    g->stopped = true;
    group_lose_tags(g, g->log.first, OMEN_EUNKNOWN);
    if (g->change.active) group_change_end(g, OMEN_EUNKNOWN);
    group_refused_free(g);
}

void raft_group_free(struct raft_group *g)
{
    if (g == NULL) return;
    CHECK(g->appends_out == 0);
    raft_group_stop(g);
    group_held_free(g);
    if (g->installing) raft_configuration_close(&g->install_meta.configuration);
    raft_close(&g->raft, NULL);
    group_log_fini(&g->log);
    group_base_free(&g->base);
    group_base_free(&g->next_base);
    group_base_free(&g->ready_base);
    mem_free(g);
}

void *raft_group_io_arg(const struct raft_group *g) { return g->options.io_arg; }

uint32_t raft_group_appends(const struct raft_group *g) { return g->appends_out; }

/* ---- from outside ---- */

static bool idle(struct raft_group *g, uint64_t now_ms)
{
    if (now_ms > g->now_ms) g->now_ms = now_ms; /* the core takes a step back for a bug */
    return g->stopped || !g->started || g->failed != OMEN_OK;
}

void raft_group_tick(struct raft_group *g, uint64_t now_ms)
{
    if (idle(g, now_ms)) return;
    if (g->refused != NULL && now_ms >= g->retry_ms) group_retry(g);
    if (now_ms < raft_timeout(&g->raft) && !g->change.active) return;
    if (now_ms >= raft_timeout(&g->raft)) {
        struct raft_event event = { .type = RAFT_TIMEOUT };
        int rv = group_step(g, &event, NULL, NULL);
        CHECK(rv == 0);
    }
    group_settle(g);
}

static int message_step(struct raft_group *g, struct raft_message *message, const struct raft_entry *entries,
        const struct log_slot *slots)
{
    struct raft_event event = { .type = RAFT_RECEIVE };
    event.receive.message = message;
    return group_step(g, &event, entries, slots);
}

/* How far the log here is known to be that of the leader of `a`: same index and term, same log before (5.3 of the
 * paper). Before a step, for what the core answers at once, and after it, for what it answers when the new entries
 * are stored. */
static void append_verify(struct raft_group *g, const struct raft_append_entries *a,
        const struct log_slot *slots, uint32_t n)
{
    uint64_t at = a->prev_log_index;
    if (a->term < g->verified_term || a->term < g->raft.current_term) return;
    if (at > 0 && group_term_at(g, at) != a->prev_log_term) return;
    for (uint32_t i = 0; i < n && group_term_at(g, at + 1) == slots[i].term; i++) at++;
    if (a->term > g->verified_term) g->verified_index = 0;
    g->verified_term = a->term;
    if (at > g->verified_index) g->verified_index = at;
}

/* One piece of an append: entries [from, from + n) of the frame. */
static int append_piece(struct raft_group *g, struct frame *f, struct raft_entry *entries, uint32_t from,
        uint32_t n)
{
    struct raft_message message = f->message;
    struct raft_append_entries *a = &message.append_entries;
    a->entries = n > 0 ? entries + from : NULL;
    a->n_entries = n;
    a->prev_log_index += from;
    if (from > 0) a->prev_log_term = f->slots[from - 1].term;
    const struct raft_append_entries asked = *a;
    append_verify(g, &asked, f->slots + from, n);
    if (n == 0) return message_step(g, &message, NULL, NULL);
    /* The core frees the batch when it does not want the entries; else it is ours again. */
    void *token = raft_malloc(8);
    if (token == NULL) panic("raft: out of memory");
    for (uint32_t i = from; i < from + n; i++) entries[i].batch = token;
    int rv = message_step(g, &message, entries + from, f->slots + from);
    if (rv == 0 && g->entries_taken) raft_free(token);
    if (rv == 0) append_verify(g, &asked, f->slots + from, n);
    return rv;
}

/* What is committed here the leader has too: an append that reaches below is moved up to there. The core would
 * compare it with entries we have dropped, refuse it, be sent more and at last append all from the first index
 * on behind what it has. */
static int append_move_up(struct raft_group *g, struct frame *f)
{
    struct raft_append_entries *a = &f->message.append_entries;
    uint64_t committed = raft_commit_index(&g->raft), skip = 0;
    if (g->installing || a->term < g->raft.current_term || a->prev_log_index >= committed) return 0;
    uint64_t prev_term = group_term_at(g, a->prev_log_index);
    if (prev_term != 0 && prev_term != a->prev_log_term) return RAFT_SHUTDOWN;
    for (; skip < f->header.entry_count && a->prev_log_index + skip < committed; skip++) {
        uint64_t term = group_term_at(g, a->prev_log_index + 1 + skip);
        if (term != 0 && term != f->slots[skip].term) return RAFT_SHUTDOWN;
    }
    f->header.entry_count -= (uint32_t)skip;
    a->n_entries = f->header.entry_count;
    memmove(f->slots, f->slots + skip, f->header.entry_count * sizeof f->slots[0]);
    a->prev_log_index = committed;
    a->prev_log_term = group_term_at(g, committed);
    CHECK(a->prev_log_term != 0);
    return 0;
}

static int append_receive(struct raft_group *g, struct frame *f, bool strip)
{
    if (g->raft.state == RAFT_LEADER && f->message.append_entries.term == g->raft.current_term) {
        /* Two leaders of one term: somebody voted twice. The core takes this for impossible. */
        LOG_ERROR("raft.two_leaders", "group=%llu term=%llu replica=%llu other=%llu",
                (unsigned long long)g->options.group, (unsigned long long)g->raft.current_term,
                (unsigned long long)g->options.replica_id, (unsigned long long)f->header.from);
        return 0;
    }
    int rv = append_move_up(g, f);
    uint32_t count = strip ? 0 : f->header.entry_count;
    if (rv != 0 || count == 0) return rv != 0 ? rv : append_piece(g, f, NULL, 0, 0);
    struct raft_entry *entries = mem_must_calloc(count, sizeof *entries);
    for (uint32_t i = 0; i < count; i++) {
        const struct log_slot *s = &f->slots[i];
        entries[i].term = s->term;
        entries[i].type = (enum raft_entry_type)(s->type + RAFT_COMMAND);
        entries[i].buf.base = (void *)(uintptr_t)s->data;
        entries[i].buf.len = s->len;
    }
    for (uint32_t from = 0; rv == 0 && from < count;) {
        uint32_t n = 1;
        while (from + n < count && f->slots[from + n].type != NODE_LOG_CHANGE) n++;
        rv = append_piece(g, f, entries, from, n);
        from += n;
    }
    mem_free(entries);
    return rv;
}

/* The leader offers a snapshot: ask for its base; the leader offers again until we have it. */
static int install_offer(struct raft_group *g, struct frame *f, uint64_t node_id)
{
    const struct raft_install_snapshot *s = &f->message.install_snapshot;
    if (s->term < g->raft.current_term || g->installing || g->base_out || g->base.index >= s->last_index)
        return 0;
    if (g->fetching || g->ready_base.members != NULL) return 0;
    /* Its heartbeats keep us follower; the offer itself need not be shown to the core. */
    g->fetching = true;
    if (!g->options.io->fetch(g->options.io_arg, f->sequence, node_id)) return 0;
    g->fetching = false;
    g->ready_base = (struct group_base){ .index = s->last_index,
        .term = s->last_term,
        .sequence = f->sequence,
        .members_index = s->conf_index,
        .members_len = f->members_len };
    g->ready_base.members = mem_must_alloc(f->members_len);
    memcpy(g->ready_base.members, f->members, f->members_len);
    return 0;
}

static bool member_is_elsewhere(const struct raft_group *g, uint64_t replica_id, uint64_t node_id)
{
    const struct replica_member *m = members_find(g->members, g->member_count, replica_id);
    return m != NULL && m->node_id != node_id;
}

/* A follower refuses votes while it hears from a leader (4.2.3 of the dissertation: within the least election
 * time). The core refuses until it stands itself, so an election would wait for the slower of two followers,
 * and for a third timer when the slower one's log is the shorter. */
static int vote_receive(struct raft_group *g, struct frame *f)
{
    bool silent = g->now_ms - g->raft.election_timer_start >= g->options.election_ms;
    if (g->raft.state == RAFT_FOLLOWER && silent) f->message.request_vote.disrupt_leader = true;
    g->vote_asked = &f->message.request_vote;
    int rv = message_step(g, &f->message, NULL, NULL);
    g->vote_asked = NULL;
    return rv;
}

/* Who is no voter in the configuration it knows is asked for a vote by one who knows another: its own may be
 * one that was never committed, and without its vote nobody could tell it. The candidate counts by its own
 * configuration (4.1 of the dissertation); the core refuses. */
bool group_vote_as_stranger(struct raft_group *g, uint64_t candidate)
{
    const struct raft_request_vote *v = g->vote_asked;
    const struct replica_member *me = members_find(g->members, g->member_count, g->options.replica_id);
    bool known = me != NULL && me->role == REPLICA_VOTER;
    bool led = g->raft.state == RAFT_FOLLOWER && g->raft.follower_state.current_leader.id != 0;
    if (v == NULL || v->candidate_id != candidate || known || g->installing) return false;
    if (g->raft.state != RAFT_FOLLOWER || (led && !v->disrupt_leader)) return false;
    if (v->term < g->raft.current_term || (!v->pre_vote && v->term != g->raft.current_term)) return false;
    uint64_t last = raft_last_index(&g->raft), term = last == 0 ? 0 : group_term_at(g, last);
    if (v->last_log_term < term || (v->last_log_term == term && v->last_log_index < last)) return false;
    if (v->pre_vote) return true;
    if (g->raft.voted_for != 0 && g->raft.voted_for != candidate) return false;
    g->raft.voted_for = candidate;
    g->raft.election_timer_start = g->now_ms;
    group_append_hard_state(g);
    return true;
}

/* A refusal that was overtaken by a later acknowledgement makes the core step back behind what is acknowledged,
 * where it waits for ever. It is a sign of life and no more: it acknowledges nothing that was not before. */
static int result_receive(struct raft_group *g, struct frame *f)
{
    struct raft_append_entries_result *r = &f->message.append_entries_result;
    raft_index match = 0;
    bool ours = r->term == g->raft.current_term && raft_match_index(&g->raft, f->header.from, &match) == 0;
    if (ours && r->rejected > 0 && r->rejected <= match) {
        r->rejected = 0;
        r->last_log_index = match;
    }
    if (ours && r->last_log_index < match) r->last_log_index = match;
    return message_step(g, &f->message, NULL, NULL);
}

/* A sign of life of a leader; the core keeps no time of it that votes do not move. */
static void leader_heard(struct raft_group *g, uint64_t term, uint64_t committed)
{
    if (term < g->raft.current_term) return;
    g->heard_ms = g->now_ms;
    if (committed > g->led_index) g->led_index = committed;
}

uint64_t raft_group_heard_ms(const struct raft_group *g) { return g->heard_ms; }

void raft_group_set_short(struct raft_group *g, bool is_short, bool waits)
{
    g->is_short = is_short || waits;
    g->waits = waits;
}

static bool voter_is_short(const struct raft_group *g, uint64_t replica_id)
{
    if (replica_id == g->options.replica_id) return g->is_short;
    for (uint32_t i = 0; i < GROUP_MEMBERS_MAX && g->answers[i].replica_id != 0; i++)
        if (g->answers[i].replica_id == replica_id) return g->answers[i].is_short;
    return false;
}

bool raft_group_majority_is_short(const struct raft_group *g)
{
    uint32_t voters = 0, good = 0;
    if (!raft_group_is_leader(g)) return false;
    for (uint32_t i = 0; i < g->member_count; i++) {
        if (g->members[i].role != REPLICA_VOTER) continue;
        voters++;
        good += !voter_is_short(g, g->members[i].replica_id);
    }
    return good <= voters / 2;
}

/* While entries are refused no more are taken: they would only wait with them. But those that void refused ones are, or
 * a replica that refused what an earlier leader let in would never be rid of it, and take nothing of the next one. */
static bool refused_strips(const struct raft_group *g, const struct frame *f)
{
    const struct raft_append_entries *a = &f->message.append_entries;
    if (g->refused == NULL) return false;
    if (a->term < g->raft.current_term) return true;
    for (uint32_t i = 0; i < f->header.entry_count; i++) {
        uint64_t term = group_term_at(g, a->prev_log_index + 1 + i);
        if (term != 0 && term != f->slots[i].term) return false;
    }
    return true;
}

/* Places of members that are gone are taken by others; the table is as long as the configuration can be. */
static void answer_note(struct raft_group *g, uint64_t replica_id, unsigned capacity)
{
    uint32_t at = 0, oldest = 0;
    while (at < GROUP_MEMBERS_MAX && g->answers[at].replica_id != replica_id &&
            g->answers[at].replica_id != 0) {
        if (g->answers[at].ms < g->answers[oldest].ms) oldest = at;
        at++;
    }
    if (at == GROUP_MEMBERS_MAX) at = oldest;
    g->answers[at].replica_id = replica_id;
    g->answers[at].ms = g->now_ms;
    g->answers[at].waits = capacity == GROUP_CAPACITY_WAITS;
    g->answers[at].is_short = capacity == GROUP_CAPACITY_SHORT || g->answers[at].waits;
}

static int frame_receive(struct raft_group *g, struct frame *f, uint64_t node_id, bool strip)
{
    const struct raft_append_entries *a = &f->message.append_entries;
    const struct raft_install_snapshot *s = &f->message.install_snapshot;
    if (f->header.type == FRAME_APPEND) leader_heard(g, a->term, a->leader_commit);
    if (f->header.type == FRAME_APPEND_RESULT)
        answer_note(g, f->header.from, f->message.append_entries_result.capacity);
    if (f->header.type == FRAME_INSTALL) leader_heard(g, s->term, s->last_index);
    switch (f->header.type) {
    case FRAME_APPEND: return append_receive(g, f, strip || refused_strips(g, f)); /* D2 */
    case FRAME_INSTALL: return install_offer(g, f, node_id);
    case FRAME_VOTE_RESULT:
        /* In another state the core reads its union wrongly and may take the term of a late pre-vote. */
        return g->raft.state == RAFT_CANDIDATE ? message_step(g, &f->message, NULL, NULL) : 0;
    case FRAME_VOTE: return vote_receive(g, f);
    case FRAME_APPEND_RESULT: return result_receive(g, f);
    case FRAME_TIMEOUT_NOW: return message_step(g, &f->message, NULL, NULL);
    case FRAME_BARRIER:
    case FRAME_BARRIER_RESULT:
        g->options.io->barrier(g->options.io_arg, f->header.type, node_id, f->header.from, &f->barrier);
        return 0;
    case FRAME_PING: break;
    }
    return 0;
}

void raft_group_frame(struct raft_group *g, struct frame *f, uint64_t node_id, bool strip, uint64_t now_ms)
{
    char address[MEMBER_ADDRESS_BYTES];
    bool drop = idle(g, now_ms) || f->header.to != g->options.replica_id ||
            f->header.from == g->options.replica_id || member_is_elsewhere(g, f->header.from, node_id);
    if (!drop) {
        member_address(node_id, f->header.from, address);
        f->message.server_address = address;
        int rv = frame_receive(g, f, node_id, strip);
        if (rv != 0) group_fail(g, rv);
        group_settle(g);
    }
    frame_free(f);
}

enum omen_err raft_group_propose(struct raft_group *g, const struct group_proposal *proposals, uint32_t count,
        uint64_t now_ms)
{
    CHECK(count > 0 && count <= GROUP_PROPOSALS_MAX);
    if (idle(g, now_ms)) return g->failed != OMEN_OK ? g->failed : OMEN_ECANCELED;
    if (g->raft.state != RAFT_LEADER) return OMEN_ENOTLEADER;
    if (raft_transferee(&g->raft) != 0) return OMEN_EBUSY;
    if (g->refused != NULL) return OMEN_EFULL;
    struct raft_entry entries[GROUP_PROPOSALS_MAX];
    struct log_slot slots[GROUP_PROPOSALS_MAX];
    memset(entries, 0, count * sizeof entries[0]);
    for (uint32_t i = 0; i < count; i++) {
        const struct group_proposal *p = &proposals[i];
        entries[i].term = g->raft.current_term;
        entries[i].type = RAFT_COMMAND;
        entries[i].buf.base = (void *)(uintptr_t)p->data;
        entries[i].buf.len = p->len;
        entries[i].batch = entries; /* the core wants one and leaves a submitted one alone */
        slots[i] = (struct log_slot){ .term = g->raft.current_term,
            .owner = p->owner,
            .data = p->data,
            .len = p->len,
            .crc = crc32c(0, p->data, p->len),
            .type = NODE_LOG_COMMAND,
            .tag = p->tag };
    }
    struct raft_event event = { .type = RAFT_SUBMIT };
    event.submit.entries = entries;
    event.submit.n = count;
    int rv = group_step(g, &event, entries, slots);
    if (rv != 0) return OMEN_ENOTLEADER;
    for (uint32_t i = 0; i < count; i++) shared_release(proposals[i].owner); /* the log holds its own */
    group_settle(g);
    return OMEN_OK;
}

enum omen_err raft_group_barrier(struct raft_group *g, void *tag, uint64_t now_ms)
{
    if (idle(g, now_ms)) return g->failed != OMEN_OK ? g->failed : OMEN_ECANCELED;
    if (g->raft.state != RAFT_LEADER) return OMEN_ENOTLEADER;
    if (raft_transferee(&g->raft) != 0) return OMEN_EBUSY;
    if (g->refused != NULL) return OMEN_EFULL;
    uint8_t *data = mem_must_calloc(1, 8);
    struct log_slot slot = { .term = g->raft.current_term,
        .owner = shared_new(data),
        .data = data,
        .len = 8,
        .crc = crc32c(0, data, 8),
        .type = NODE_LOG_BARRIER,
        .tag = tag };
    struct raft_entry entry = { .term = slot.term, .type = RAFT_BARRIER, .buf = { data, 8 }, .batch = data };
    struct raft_event event = { .type = RAFT_SUBMIT };
    event.submit.entries = &entry;
    event.submit.n = 1;
    int rv = group_step(g, &event, &entry, &slot);
    shared_release(slot.owner);
    if (rv != 0) return OMEN_ENOTLEADER;
    group_settle(g);
    return OMEN_OK;
}
