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

void scatter_call_init(struct request *r, uint32_t i, enum shard_call_kind kind, uint32_t shard_position)
{
    CHECK(i < r->call_count);
    struct shard_call *call = &r->calls[i];
    r->call_shards[i] = shard_position;
    call->kind = kind;
    call->epoch = r->map->epoch;
    call->deadline_ns = r->deadline_ns;
    call->consistency = r->wire.consistency;
    call->arg = r;
    if (r->collection == NULL) return; /* the catalog's call */
    call->collection_id = r->collection->id;
    call->shard_id = r->collection->shards[shard_position].shard_id;
    call->token_sequence = token_sequence_of(r, call->shard_id);
}

static void calls_down(struct request *r)
{
    if (atomic_fetch_sub_explicit(&r->calls_pending, 1, memory_order_acq_rel) == 1) r->gathered(r);
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

enum omen_err scatter_tokens(struct request *r)
{
    struct token *tokens = arena_calloc(&r->arena, r->call_count + 1, sizeof *tokens);
    if (tokens == NULL) return err_set(&r->reply.err, OMEN_ENOMEM, "", "the request needs too much memory");
    uint32_t count = 0;
    for (uint32_t i = 0; i < r->call_count; i++) {
        const struct shard_call *call = &r->calls[i];
        if (call->engine_ns > r->reply.engine_ns) r->reply.engine_ns = call->engine_ns;
        if (call->code != OMEN_OK) continue;
        tokens[count++] = (struct token){ r->map->incarnation, call->shard_id, call->sequence };
    }
    r->reply.tokens = tokens;
    r->reply.token_count = count;
    return OMEN_OK;
}
