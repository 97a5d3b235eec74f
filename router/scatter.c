/* One call per shard, submitted together; the last one to be done carries the request on.
 *
 * calls_pending starts at the number of calls plus one for the submitter, so a service that answers inside submit cannot
 * finish the request while it is still being scattered. */
#include "common/err.h"

#include <stdio.h>

#include "common/check.h"
#include "router/request.h"

enum omen_err scatter_prepare(struct request *r, uint32_t count, struct err *err)
{
    scatter_release(r);
    r->calls = arena_calloc(&r->arena, count + 1, sizeof *r->calls);
    r->call_shards = arena_calloc(&r->arena, count + 1, sizeof *r->call_shards);
    if (r->calls == NULL || r->call_shards == NULL) {
        r->calls = NULL;
        return err_set(err, OMEN_ENOMEM, "", "the request needs too much memory");
    }
    r->call_count = count;
    return OMEN_OK;
}

/* A reply without the shards that are silent must leave before the client stops waiting for it. */
static uint64_t partial_margin_ns(const struct request *r)
{
    if (!r->wire.allow_partial) return 0;
    uint64_t tenth_ns = (r->deadline_ns - r->started_ns) / 10,
             most_ns = ROUTER_PARTIAL_MARGIN_MS * 1000000ull;
    return tenth_ns < most_ns ? tenth_ns : most_ns;
}

void scatter_call_init(struct request *r, uint32_t i, enum shard_call_kind kind, uint32_t shard_position)
{
    CHECK(i < r->call_count);
    struct shard_call *call = &r->calls[i];
    r->call_shards[i] = shard_position;
    call->kind = kind;
    if (r->map != NULL) { /* none is needed to ask about the cluster */
        call->epoch = r->map->epoch;
        call->incarnation = r->map->incarnation;
    }
    call->deadline_ns = r->deadline_ns - partial_margin_ns(r);
    call->consistency = r->wire.consistency;
    call->arg = r;
    if (r->collection == NULL) return; /* the catalog's call, or the cluster's */
    call->collection_id = r->collection->id;
    call->shard_id = r->collection->shards[shard_position].shard_id;
    call->token_sequence = token_sequence_of(r, call->shard_id);
    if (kind != CALL_WRITE && kind != CALL_STATS) call->now_ms = r->now_ms;
}

/* Calls that were routed by an old map did nothing; the request begins anew unless that would do again, and not just once,
 * what other shards have done already: a write without an op id. */
static bool begins_anew(const struct request *r)
{
    bool wrong = false, done = false;
    for (uint32_t i = 0; i < r->call_count; i++) {
        const struct shard_call *call = &r->calls[i];
        wrong |= call->code == OMEN_EWRONGEPOCH;
        if (call->kind != CALL_WRITE || call->in.write.op_id.client != 0) continue;
        done |= call->code == OMEN_OK || call->code == OMEN_EUNKNOWN;
    }
    return wrong && !done && r->restarts < ROUTER_RESTARTS_MAX;
}

static void calls_down(struct request *r)
{
    if (atomic_fetch_sub_explicit(&r->calls_pending, 1, memory_order_acq_rel) > 1) return;
    if (begins_anew(r))
        request_restart(r);
    else
        r->gathered(r);
}

static void call_done(struct shard_call *call) { calls_down(call->arg); }

void scatter_go(struct request *r, void (*gathered)(struct request *r))
{
    const struct shard_service *service = r->router->options.service;
    r->gathered = gathered;
    r->calls_submitted = true;
    atomic_store_explicit(&r->calls_pending, r->call_count + 1, memory_order_relaxed);
    for (uint32_t i = 0; i < r->call_count; i++) r->calls[i].done = call_done;
    for (uint32_t i = 0; i < r->call_count; i++) service->submit(service->self, &r->calls[i]);
    calls_down(r);
}

void scatter_release(struct request *r)
{
    const struct shard_service *service = r->router->options.service;
    for (uint32_t i = 0; r->calls_submitted && i < r->call_count; i++) {
        service->release(service->self, &r->calls[i]);
    }
    r->calls_submitted = false;
    r->call_count = 0;
    r->calls = NULL;
}

enum omen_err scatter_error(struct request *r)
{
    for (uint32_t i = 0; i < r->call_count; i++) {
        const struct shard_call *call = &r->calls[i];
        if (call->code == OMEN_OK) continue;
        r->reply.err = call->err;
        if (r->reply.err.code != call->code) {
            err_set(&r->reply.err, call->code, "", "shard %llu: %s", (unsigned long long)call->shard_id,
                    err_name(call->code));
        }
        return call->code;
    }
    return OMEN_OK;
}

/* Whether a shard that ended so could have been reached another time. */
static bool counts_as_missing(enum omen_err code)
{
    switch (code) {
    case OMEN_EBUSY:
    case OMEN_EDEADLINE:
    case OMEN_EUNKNOWN:
    case OMEN_ECORRUPT:
    case OMEN_EIO:
    case OMEN_ENOMEM:
    case OMEN_EWRONGEPOCH:
    case OMEN_ENOTLEADER:
    case OMEN_EUNAVAILABLE:
    case OMEN_ECANCELED:
    case OMEN_EINTERNAL: return true;
    default: return false;
    }
}

enum omen_err scatter_settle(struct request *r)
{
    uint32_t failed = 0, missing = 0;
    for (uint32_t i = 0; i < r->call_count; i++) {
        failed += r->calls[i].code != OMEN_OK;
        missing += counts_as_missing(r->calls[i].code);
    }
    if (failed == 0) return OMEN_OK;
    if (!r->wire.allow_partial || missing < failed || missing == r->call_count) return scatter_error(r);
    uint64_t *shards = arena_calloc(&r->arena, missing, sizeof *shards);
    if (shards == NULL) return err_set(&r->reply.err, OMEN_ENOMEM, "", "the request needs too much memory");
    r->reply.shards_missing = shards;
    for (uint32_t i = 0; i < r->call_count; i++) {
        if (r->calls[i].code != OMEN_OK) shards[r->reply.shards_missing_count++] = r->calls[i].shard_id;
    }
    return OMEN_OK;
}

enum omen_err scatter_tokens(struct request *r)
{
    struct token *tokens = arena_calloc(&r->arena, r->call_count + 1, sizeof *tokens);
    if (tokens == NULL) return err_set(&r->reply.err, OMEN_ENOMEM, "", "the request needs too much memory");
    uint32_t count = 0;
    for (uint32_t i = 0; i < r->call_count; i++) {
        const struct shard_call *call = &r->calls[i];
        if (call->engine_ns > r->reply.engine_ns) r->reply.engine_ns = call->engine_ns;
        if (call->code != OMEN_OK) continue;
        r->reply.stale |= call->stale;
        if (call->kind == CALL_WRITE && call->sequence == 0) continue; /* accepted: it has none yet */
        tokens[count++] = (struct token){ r->map->incarnation, call->shard_id, call->sequence };
    }
    r->reply.tokens = tokens;
    r->reply.token_count = count;
    return OMEN_OK;
}
