/* Clients: each has one write at a time and repeats it, with its op id, at any node until somebody says what became of it;
 * reads in between. What a request says follows from (seed, client, seq), so messages carry names alone.
 *
 * What must hold, checked as answers are made and as they arrive:
 *   - a write that was acknowledged is in the log once, at the sequence and with the count that was said;
 *   - one that was refused for its age was too old;
 *   - a read says what the shard held at the sequence it names, at the time it was for;
 *   - a linearizable one names at least the highest sequence acknowledged to anybody before it was asked, one of a session
 *     at least the session's token. */
#include "common/err.h"

#include <inttypes.h>
#include <string.h>

#include "tests/sim/sim.h"

enum message_kind { MESSAGE_WRITE = 1, MESSAGE_READ, MESSAGE_ANSWER };

struct message {
    uint32_t kind, client, slot, attempt;
    uint64_t seq, issue_ms;
    uint64_t now_ms, floor;                   /* READ */
    uint32_t consistency;                     /* READ */
    uint32_t code, hint, affected, duplicate; /* ANSWER */
    uint64_t sequence;
};

/* ---- what a request says ---- */

static uint64_t mix(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

/* {name: value}; see doc.h. */
static struct doc payload(uint8_t *out, char name, uint64_t value)
{
    out[0] = DOC_OBJECT;
    store_u32(out + 1, 2 + 1 + 9);
    store_u32(out + 5, 1);
    store_u16(out + 9, 1);
    out[11] = (uint8_t)name;
    out[12] = DOC_I64;
    store_u64(out + 13, value);
    return (struct doc){ out, 21 };
}

static void op_make(struct sim_call *c, uint32_t i, uint64_t *rng, const struct message *m)
{
    struct point_op *op = &c->ops[i];
    uint64_t dice = mix(rng) % 100;
    op->id = (point_id){ 0, 1 + mix(rng) % SIM_POINTS, POINT_ID_U64 };
    op->kind = dice < 55 ? POINT_UPSERT : dice < 78 ? POINT_DELETE : POINT_SET_PAYLOAD;
    if (op->kind == POINT_SET_PAYLOAD) op->payload = payload(c->docs[i], 't', m->seq);
    if (op->kind != POINT_UPSERT) return;
    op->payload = payload(c->docs[i], 'n', m->seq);
    if (mix(rng) % 100 < 15) op->expires_ms = m->issue_ms + 100 + mix(rng) % 4000;
    const float vector[SIM_DIM] = { (float)m->client, (float)m->seq, (float)i, (float)op->id.lo };
    memcpy(c->vectors[i], vector, sizeof vector);
    op->vectors[0] = c->vectors[i];
}

static void write_make(struct sim_call *c, const struct sim *sim, const struct message *m)
{
    uint64_t rng = sim->seed * 1000003 + m->client * 65537 + m->seq;
    uint32_t count = 1 + (uint32_t)(mix(&rng) % SIM_OPS_MAX);
    for (uint32_t i = 0; i < count; i++) op_make(c, i, &rng, m);
    c->call.kind = CALL_WRITE;
    c->call.in.write.ops = c->ops;
    c->call.in.write.count = count;
    c->call.in.write.op_id = (struct op_id){ m->client + 1, m->seq, m->issue_ms };
}

static void read_make(struct sim_call *c, const struct sim *sim, const struct message *m)
{
    static const struct point_selection everything = { .with_payload = true, .vector_mask = 1 };
    c->call.consistency = (enum consistency)m->consistency;
    c->call.token_sequence = m->consistency == CONSISTENCY_SESSION ? m->floor : 0;
    c->call.now_ms = m->now_ms;
    c->floor = m->consistency == CONSISTENCY_EVENTUAL ? 0 : m->floor;
    if (m->seq % 3 == 0) {
        c->call.kind = CALL_SCROLL;
        c->call.in.scroll.limit = SIM_POINTS + 1;
        c->call.in.scroll.selection = everything;
        return;
    }
    if (m->seq % 3 == 1) {
        const float query[SIM_DIM] = { (float)(m->seq % SIM_CLIENTS), (float)(m->seq / 8), 1,
            (float)(m->seq % SIM_POINTS) };
        memcpy(c->vectors[0], query, sizeof query);
        c->search = (struct search_params){ .query = c->vectors[0],
            .k = 1 + (uint32_t)(m->seq / 3 % 8),
            .exact = m->seq % 2 == 0,
            .selection = everything };
        c->call.kind = CALL_SEARCH;
        c->call.in.search.searches = &c->search;
        c->call.in.search.count = 1;
        return;
    }
    c->call.kind = CALL_GET;
    c->call.in.get.items = c->items;
    c->call.in.get.count = 2;
    c->call.in.get.selection = everything;
    for (uint32_t i = 0; i < 2; i++)
        c->items[i].id = (point_id){ 0, 1 + (m->seq / 3 + i) % SIM_POINTS, POINT_ID_U64 };
}

/* ---- what was read ---- */

static const struct point_view *view_find(const struct point_view *points, uint32_t count, uint64_t id)
{
    for (uint32_t i = 0; i < count; i++)
        if (points[i].id.lo == id) return &points[i];
    return NULL;
}

static const char *all_compare(const struct model *m, uint64_t sequence, uint64_t now_ms,
        const struct point_view *points, uint32_t count)
{
    if (count != model_count(m, sequence, now_ms)) return "another number of points";
    const char *wrong = NULL;
    for (uint64_t id = 1; id <= SIM_POINTS && wrong == NULL; id++)
        wrong = model_compare(m, sequence, now_ms, id, view_find(points, count, id));
    return wrong;
}

const char *sim_store_compare(struct model *m, struct shard_store *store)
{
    static const struct point_selection everything = { .with_payload = true, .vector_mask = 1 };
    struct store_view view;
    struct point_view *points = NULL;
    struct arena arena;
    uint32_t count = 0;
    bool more = false;
    const char *wrong = "a scroll failed";
    arena_init(&arena, 1 << 14, 0);
    store_view_acquire(store, &view);
    if (shard_store_scroll(&view, NULL, SIM_POINTS + 1, NULL, &everything, NULL, &arena, &points, &count,
                &more, NULL) == OMEN_OK)
        wrong = all_compare(m, view.sequence, 0, points, count);
    store_view_release(&view);
    arena_fini(&arena);
    return wrong;
}

static const char *read_wrong(const struct sim_call *c)
{
    const struct shard_call *call = &c->call;
    const struct model *m = c->model;
    const char *wrong = NULL;
    if (call->sequence < c->floor) return "a read is stale";
    if (call->sequence > m->sequence) return "a read from the future";
    if (call->kind == CALL_SCROLL)
        return all_compare(m, call->sequence, call->now_ms, call->out.points.points, call->out.points.count);
    if (call->kind == CALL_SEARCH)
        return model_search(m, call->sequence, call->now_ms, &c->search, call->out.search.hits[0],
                call->out.search.counts[0]);
    for (uint32_t i = 0; i < call->in.get.count && wrong == NULL; i++) {
        uint64_t id = c->items[i].id.lo;
        wrong = model_compare(m, call->sequence, call->now_ms, id,
                view_find(call->out.points.points, call->out.points.count, id));
    }
    return wrong;
}

/* ---- at a node ---- */

static const char *write_wrong(const struct sim_call *c, bool flipped)
{
    const struct shard_call *call = &c->call;
    const struct op_id *id = &call->in.write.op_id;
    if (call->code == OMEN_EOPEXPIRED) {
        uint64_t newest = c->model->after[c->model->sequence]->log_time_ms;
        return id->issue_ms + SIM_RETENTION_MS < newest ? NULL : "a young op id is refused for its age";
    }
    if (call->code == OMEN_EINVAL || call->code == OMEN_ETOOBIG || (call->code == OMEN_ECORRUPT && !flipped))
        return "a good write is refused for good";
    if (call->code != OMEN_OK) return NULL;
    const struct model_op *op = model_find(c->model, id->client, id->seq);
    if (op == NULL) return "an acknowledged write was not committed";
    if (op->sequence != call->sequence) return "a write was acknowledged at another sequence than applied";
    if (op->affected != call->out.write.affected && !flipped)
        return "a write was acknowledged with another count";
    return NULL;
}

static void call_done(struct shard_call *call)
{
    struct sim_call *c = (struct sim_call *)call;
    struct sim *sim = c->node->sim;
    struct world *w = sim->w;
    bool write = call->kind == CALL_WRITE;
    bool flipped = sim_is_flipped(&c->node->shards[call->shard_id - 1]);
    const char *wrong = write ? write_wrong(c, flipped) : call->code == OMEN_OK ? read_wrong(c) : NULL;
    if (wrong != NULL && flipped && !write) { /* it has not noticed yet */
        wrong = NULL;
        sim->counts.unjudged++;
    }
    if (wrong != NULL)
        world_fail(w, "node %u shard %" PRIu64 " client %u seq %" PRIu64 " %s, sequence %" PRIu64 ": %s",
                c->node->n->place + 1, call->shard_id, c->client, call->in.write.op_id.seq,
                err_name(call->code), call->sequence, wrong);
    c->done = true;
    c->release_at_ms = w->now_ms + world_below(w, 40);
    world_note(w, write ? "write" : "read", c->client, call->code, call->sequence);
    sim->counts.refused += call->code != OMEN_OK;
    if (!write) {
        sim->counts.reads += call->code == OMEN_OK;
        sim->counts.searches += call->code == OMEN_OK && call->kind == CALL_SEARCH;
        sim->counts.linearizable += call->code == OMEN_OK && call->consistency == CONSISTENCY_LINEARIZABLE;
        return;
    }
    if (c->node->dying) return;
    struct message m = { .kind = MESSAGE_ANSWER,
        .client = c->client,
        .slot = (uint32_t)call->shard_id - 1,
        .attempt = c->attempt,
        .seq = call->in.write.op_id.seq,
        .code = (uint32_t)call->code,
        .hint = call->leader_hint,
        .affected = call->out.write.affected,
        .duplicate = call->code == OMEN_OK && call->out.write.duplicate,
        .sequence = call->sequence };
    world_send(w, c->node->n->place, WORLD_CLIENTS, &m, sizeof m);
}

static void call_release(struct sim_node *node, struct sim_call **link)
{
    struct sim_call *c = *link;
    *link = c->next;
    shard_host_release(&c->call);
    mem_free(c);
}

void sim_calls_step(struct sim_node *node, bool all)
{
    for (struct sim_call **link = &node->calls; *link != NULL;) {
        if ((*link)->done && (all || node->sim->w->now_ms >= (*link)->release_at_ms))
            call_release(node, link);
        else
            link = &(*link)->next;
    }
}

void sim_calls_release(struct sim_node *node, struct shard_host *host)
{
    for (struct sim_call **link = &node->calls; *link != NULL;) {
        if ((*link)->call.shard_id != host->shard_id) {
            link = &(*link)->next;
            continue;
        }
        if (!(*link)->done) world_fail(node->sim->w, "a call is not answered when its shard ends");
        call_release(node, link);
    }
}

static void call_begin(struct sim_node *node, const struct message *m)
{
    struct sim_shard *s = &node->shards[m->slot];
    struct world *w = node->sim->w;
    if (!node->n->up || node->n->cut || s->host == NULL || s->r->group == NULL) return;
    struct sim_call *c = mem_must_calloc(1, sizeof *c);
    c->next = node->calls;
    node->calls = c;
    c->node = node;
    c->client = m->client;
    c->attempt = m->attempt;
    c->model = &node->sim->models[m->slot];
    c->call.shard_id = m->slot + 1;
    c->call.collection_id = 1;
    c->call.deadline_ns = (w->now_ms + 100 + world_below(w, 1500)) * 1000000;
    c->call.done = call_done;
    if (m->kind == MESSAGE_WRITE)
        write_make(c, node->sim, m);
    else
        read_make(c, node->sim, m);
    shard_host_submit(s->host, &c->call);
}

/* ---- at a client ---- */

static void answer_take(struct sim *sim, const struct message *m)
{
    struct sim_client *c = &sim->clients[m->client];
    struct model *model = &sim->models[m->slot];
    struct world *w = sim->w;
    if (m->code == OMEN_OK && m->sequence > model->acknowledged) model->acknowledged = m->sequence;
    if (!c->busy || c->seq != m->seq) return; /* late */
    bool over = m->code == OMEN_OK || m->code == OMEN_EOPEXPIRED;
    if (m->code == OMEN_OK && m->sequence > c->token[m->slot]) c->token[m->slot] = m->sequence;
    sim->counts.writes += m->code == OMEN_OK;
    sim->counts.duplicates += m->duplicate;
    sim->counts.expired += m->code == OMEN_EOPEXPIRED;
    if (over) c->busy = false;
    if (over || m->attempt != c->attempt) return;
    c->retry_at_ms = w->now_ms + world_below(w, 60);
    if (m->hint != 0) c->node = m->hint - 1;
}

void sim_message(struct world *w, uint32_t from, uint32_t to, const uint8_t *bytes, size_t len)
{
    struct sim *sim = w->arg;
    struct message m;
    memcpy(&m, bytes, sizeof m);
    if (to == WORLD_CLIENTS)
        answer_take(sim, &m);
    else
        call_begin(&sim->nodes[to], &m);
}

static void write_send(struct sim *sim, uint32_t client)
{
    struct sim_client *c = &sim->clients[client];
    struct world *w = sim->w;
    struct message m = { .kind = MESSAGE_WRITE,
        .client = client,
        .slot = c->slot,
        .attempt = ++c->attempt,
        .seq = c->seq,
        .issue_ms = c->issue_ms };
    c->retry_at_ms = w->now_ms + 100 + world_below(w, 400);
    world_send(w, WORLD_CLIENTS, c->node, &m, sizeof m);
    c->node = (uint32_t)world_below(w, WORLD_NODES); /* unless a hint says better */
}

static void write_begin(struct sim *sim, uint32_t client)
{
    struct sim_client *c = &sim->clients[client];
    c->busy = true;
    c->seq++;
    c->attempt = 0;
    c->issue_ms = SIM_WALL_MS + sim->w->now_ms;
    c->slot = (uint32_t)world_below(sim->w, sim->w->group_count);
    write_send(sim, client);
}

static void read_send(struct sim *sim, uint32_t client)
{
    struct sim_client *c = &sim->clients[client];
    struct world *w = sim->w;
    uint32_t slot = (uint32_t)world_below(w, w->group_count);
    struct message m = { .kind = MESSAGE_READ,
        .client = client,
        .slot = slot,
        .seq = ++c->reads,
        .now_ms = SIM_WALL_MS + w->now_ms,
        .consistency = (uint32_t)world_below(w, 3) };
    m.floor = m.consistency == CONSISTENCY_LINEARIZABLE ? sim->models[slot].acknowledged : c->token[slot];
    world_send(w, WORLD_CLIENTS, (uint32_t)world_below(w, WORLD_NODES), &m, sizeof m);
}

void sim_clients_step(struct sim *sim)
{
    for (uint32_t i = 0; i < SIM_CLIENTS; i++) {
        struct sim_client *c = &sim->clients[i];
        if (c->busy && sim->w->now_ms >= c->retry_at_ms) write_send(sim, i);
        if (!c->busy && !sim->quiet && world_chance(sim->w, 200)) write_begin(sim, i);
        if (world_chance(sim->w, 30)) read_send(sim, i);
    }
}

bool sim_clients_idle(const struct sim *sim)
{
    bool busy = false;
    for (uint32_t i = 0; i < SIM_CLIENTS; i++) busy |= sim->clients[i].busy;
    return !busy;
}
