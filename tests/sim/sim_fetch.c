/* What fetch.c and ship.c do with threads: whom a fetch asks and when, and leases served by ranges. The copying itself is
 * the product's (sim_pull.c), as are the source's lease and all that a shard does with a copy (node/shard_base.c,
 * storage/shard_lease.c). */
#include "common/err.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/check.h"
#include "common/crc32c.h"
#include "tests/sim/sim.h"

#define TRIES_MAX 3u
#define LEASE_MS 3000u /* of silence */

static struct world *world_of(const struct sim_shard *s) { return s->r->world; }

/* ---- leases ---- */

static void lease_end(struct sim_lease *l)
{
    l->source.close(l->checkpoint.self);
    *l = (struct sim_lease){ 0 };
}

void sim_fetch_source_gone(struct sim_shard *source)
{
    struct sim_node *node = source->node;
    for (uint32_t i = 0; i < SIM_LEASES; i++)
        if (node->leases[i].id != 0 && node->leases[i].slot == source->r->slot) lease_end(&node->leases[i]);
}

void sim_leases_step(struct sim_node *node)
{
    uint64_t now_ms = node->sim->w->now_ms;
    for (uint32_t i = 0; i < SIM_LEASES; i++)
        if (node->leases[i].id != 0 && now_ms - node->leases[i].used_ms > LEASE_MS)
            lease_end(&node->leases[i]);
}

static struct sim_lease *lease_of(struct sim_node *node, uint64_t id)
{
    for (uint32_t i = 0; i < SIM_LEASES; i++)
        if (node->leases[i].id == id) return &node->leases[i];
    return NULL;
}

static enum omen_err serve_lease(struct sim_node *node, const struct file_request *r,
        struct file_reply *reply)
{
    const struct ship_source *source = &node->shards[r->group - 1].source;
    struct sim_lease *l = lease_of(node, 0);
    if (source->arg == NULL) return err_set(&reply->err, OMEN_ENOTFOUND, "", "nobody serves files here");
    if (l == NULL) return err_set(&reply->err, OMEN_EBUSY, "", "as many leases as there may be");
    enum omen_err rc = source->open(source->arg, r->sequence, &l->checkpoint, &reply->err);
    if (rc != OMEN_OK) return rc;
    l->id = ++node->sim->lease_count;
    l->slot = (uint32_t)r->group - 1;
    l->source = *source;
    l->used_ms = node->sim->w->now_ms;
    const struct ship_checkpoint *c = &l->checkpoint;
    reply->lease = l->id;
    reply->lease_ms = LEASE_MS;
    reply->replica_id = c->replica_id;
    reply->sequence = c->sequence;
    reply->base_sequence = c->base_sequence;
    reply->description = c->description;
    reply->manifest = c->manifest;
    reply->files = c->files;
    reply->file_count = c->file_count;
    return OMEN_OK;
}

static enum omen_err serve_read(struct sim_lease *l, const struct file_request *r, uint8_t **data_out,
        struct file_reply *reply)
{
    const struct ship_checkpoint *c = &l->checkpoint;
    if (r->file >= c->file_count || !range_fits(r->offset, r->len, c->files[r->file].bytes))
        return err_set(&reply->err, OMEN_EINVAL, "", "the range lies outside the file");
    *data_out = mem_must_alloc(r->len);
    enum omen_err rc = l->source.read(c->self, r->file, r->offset, *data_out, r->len, &reply->err);
    if (rc != OMEN_OK) return rc;
    reply->data = (struct bytes){ *data_out, r->len };
    reply->data_crc = crc32c(0, *data_out, r->len);
    reply->has_file_crc = r->offset + r->len == c->files[r->file].bytes;
    return reply->has_file_crc ? l->source.sum(c->self, r->file, &reply->file_crc, &reply->err) : OMEN_OK;
}

void sim_ship_serve(struct sim_node *node, struct bytes body, struct buf *out)
{
    struct file_request r;
    struct file_reply reply = { 0 };
    struct sim_lease *l = NULL;
    uint8_t *data = NULL;
    enum omen_err rc = file_request_decode(body, &r, &reply.err);
    if (rc != OMEN_OK) world_fail(node->sim->w, "a request for files does not decode");
    if (r.op == FILE_LEASE) {
        rc = serve_lease(node, &r, &reply);
    } else {
        l = lease_of(node, r.lease);
        if (l == NULL) rc = err_set(&reply.err, OMEN_ENOTFOUND, "", "the lease has ended");
    }
    if (l != NULL) l->used_ms = node->sim->w->now_ms;
    if (rc == OMEN_OK && r.op == FILE_READ) rc = serve_read(l, &r, &data, &reply);
    reply.code = rc;
    file_reply_encode(r.op, &reply, out);
    if (l != NULL && r.op == FILE_RELEASE) lease_end(l);
    mem_free(data);
}

/* ---- a fetch ---- */

void sim_fetch_drop(struct sim_shard *s)
{
    struct sim_pull *pull = s->fetch.pull;
    s->fetch.state = SIM_FETCH_IDLE;
    s->fetch.pull = NULL;
    if (pull != NULL) sim_pull_free(pull);
}

static void fetch_failed(struct sim_shard *s, const struct err *why)
{
    struct sim_fetch *f = &s->fetch;
    f->state = SIM_FETCH_BEGUN;
    f->at_ms = world_of(s)->now_ms + (100u << f->tries);
    if (f->tries++ < TRIES_MAX) return;
    f->state = SIM_FETCH_IDLE;
    f->fetch->ended(f->fetch->arg, why->code, (struct bytes){ NULL, 0 }, why);
}

/* What is wanted is here, durable. */
static void fetch_done(struct sim_shard *s, struct bytes description)
{
    struct sim_fetch *f = &s->fetch;
    uint64_t reaches = shard_store_applied(s->host->group->next);
    if (reaches > s->r->incoming) s->r->incoming = reaches;
    s->node->sim->counts.fetches++;
    world_note(world_of(s), "fetched", s->r->replica_id, reaches, 0);
    f->state = SIM_FETCH_IDLE;
    f->fetch->ended(f->fetch->arg, OMEN_OK, description, NULL);
}

/* One of those that a fetch may ask. */
static void fetch_begin_one(struct sim_shard *s)
{
    struct fetch *fetch = s->fetch.fetch;
    uint32_t nodes[FETCH_CANDIDATES_MAX + 1], count = fetch->candidates(fetch->arg, nodes);
    struct err err = { 0 };
    if (fetch->node_id != 0) nodes[count++] = fetch->node_id;
    uint32_t place = count > 0 ? nodes[world_below(world_of(s), count)] - 1 : s->node->n->place;
    (void)err_set(&err, OMEN_EUNAVAILABLE, "", "nobody to ask");
    if (place == s->node->n->place) {
        fetch_failed(s, &err);
        return;
    }
    s->fetch.pull = sim_pull_new(s, place);
    s->fetch.state = SIM_FETCH_COPIES;
}

static void fetch_look(struct sim_shard *s)
{
    struct replica_status status;
    struct buf description;
    struct fetch *fetch = s->fetch.fetch;
    replica_status(s->host->replica, &status);
    if (status.switching) return; /* the product waits as well */
    buf_init(&description);
    if (fetch->here(fetch->arg, fetch->sequence, &description) == OMEN_OK)
        fetch_done(s, (struct bytes){ description.data, description.len });
    else
        fetch_begin_one(s);
    buf_fini(&description);
}

static void fetch_copy(struct sim_shard *s)
{
    struct sim_pull *pull = s->fetch.pull;
    if (!sim_pull_step(pull)) return;
    s->fetch.pull = NULL;
    if (pull->rc == OMEN_OK) {
        fetch_done(s, (struct bytes){ pull->description.data, pull->description.len });
    } else {
        s->node->sim->counts.copies_failed++;
        fetch_failed(s, &pull->err);
    }
    sim_pull_free(pull);
}

void sim_fetch_step(struct sim_shard *s)
{
    struct sim_fetch *f = &s->fetch;
    if (f->state == SIM_FETCH_BEGUN && world_of(s)->now_ms >= f->at_ms)
        fetch_look(s);
    else if (f->state == SIM_FETCH_COPIES)
        fetch_copy(s);
}
