/* Writes of points: split by slot, one call per shard touched, outcomes summed.
 *
 * Shards commit on their own, so a request over several can be done in one and refused in another. The answer is then the
 * refusal (or UNKNOWN when a shard cannot tell), its sentence says how many shards did it, and a retry with the same op id
 * is applied only where it was not. */
#include "common/err.h"

#include <stdio.h>
#include <string.h>

#include "router/request.h"

/* Ops of one shard, filled in two passes: count, then place. */
struct split {
    uint32_t *counts;         /* [shard_count] */
    uint32_t *positions;      /* [count] shard of each op, or SPLIT_ALL */
    struct point_op **placed; /* [shard_count] */
};

#define SPLIT_ALL UINT32_MAX

static enum omen_err split_count(struct request *r, const struct point_op *ops, struct split *split,
        struct err *err)
{
    const struct map_collection *collection = r->collection;
    uint32_t count = r->wire.write.count;
    split->counts = arena_calloc(&r->arena, collection->shard_count, sizeof *split->counts);
    split->positions = arena_alloc(&r->arena, sizeof *split->positions * ((size_t)count + 1));
    split->placed = arena_calloc(&r->arena, collection->shard_count, sizeof *split->placed);
    if (split->counts == NULL || split->positions == NULL || split->placed == NULL) {
        return err_set(err, OMEN_ENOMEM, "", "the request needs too much memory");
    }
    for (uint32_t i = 0; i < count; i++) {
        if (ops[i].any_key) {
            split->positions[i] = SPLIT_ALL;
            for (uint32_t s = 0; s < collection->shard_count; s++) split->counts[s]++;
            continue;
        }
        const struct map_shard *shard = map_shard_of_slot(collection, point_slot(ops[i].id, ops[i].key));
        split->positions[i] = (uint32_t)(shard - collection->shards);
        split->counts[split->positions[i]]++;
    }
    return OMEN_OK;
}

static enum omen_err split_place(struct request *r, struct point_op *ops, struct split *split,
        struct err *err)
{
    uint32_t shard_count = r->collection->shard_count, count = r->wire.write.count;
    if (shard_count == 1) { /* in order already */
        split->placed[0] = ops;
        return OMEN_OK;
    }
    uint32_t *at = arena_calloc(&r->arena, shard_count, sizeof *at);
    if (at == NULL) return err_set(err, OMEN_ENOMEM, "", "the request needs too much memory");
    for (uint32_t s = 0; s < shard_count; s++) {
        if (split->counts[s] == 0) continue;
        split->placed[s] = arena_alloc(&r->arena, sizeof **split->placed * (size_t)split->counts[s]);
        if (split->placed[s] == NULL)
            return err_set(err, OMEN_ENOMEM, "", "the request needs too much memory");
    }
    for (uint32_t i = 0; i < count; i++) {
        if (split->positions[i] != SPLIT_ALL) {
            uint32_t s = split->positions[i];
            split->placed[s][at[s]++] = ops[i];
            continue;
        }
        for (uint32_t s = 0; s < shard_count; s++) split->placed[s][at[s]++] = ops[i];
    }
    return OMEN_OK;
}

/* One operation for all that match: a call to every shard that can hold one. */
static enum omen_err filter_scatter(struct request *r, const struct point_op *op, struct err *err)
{
    uint8_t *shards = NULL;
    uint32_t touched = 0;
    enum omen_err rc = resolve_filter_shards(r, r->wire.write.filter, &shards, err);
    if (rc != OMEN_OK) return rc;
    for (uint32_t s = 0; s < r->collection->shard_count; s++) touched += shards[s];
    rc = scatter_prepare(r, touched, err);
    if (rc != OMEN_OK) return rc;
    for (uint32_t s = 0, i = 0; s < r->collection->shard_count; s++) {
        if (shards[s] == 0) continue;
        scatter_call_init(r, i, CALL_WRITE, s);
        r->calls[i].in.write.ops = op;
        r->calls[i].in.write.count = 1;
        r->calls[i].in.write.op_id = r->wire.write.op_id;
        r->calls[i].in.write.wait = r->wire.write.wait;
        r->calls[i].in.write.filter = r->wire.write.filter;
        r->calls[i].in.write.filter_doc = r->wire.write.filter_doc;
        i++;
    }
    return OMEN_OK;
}

/* One sentence for a request that some shards refused; UNKNOWN outranks every refusal. */
static enum omen_err write_failure(struct request *r, uint32_t failed)
{
    const struct shard_call *worst = NULL;
    for (uint32_t i = 0; i < r->call_count; i++) {
        const struct shard_call *call = &r->calls[i];
        if (call->code == OMEN_OK) continue;
        if (worst == NULL || (call->code == OMEN_EUNKNOWN && worst->code != OMEN_EUNKNOWN)) worst = call;
    }
    struct err *err = &r->reply.err;
    if (r->call_count == 1) {
        *err = worst->err;
        err->code = worst->code;
        if (err->message[0] == '\0') err_set(err, worst->code, "", "%s", err_name(worst->code));
        return worst->code;
    }
    err_set(err, worst->code, worst->err.field, "%u of %u shards applied their part; shard %llu: %.300s",
            r->call_count - failed, r->call_count, (unsigned long long)worst->shard_id,
            worst->err.message[0] == '\0' ? err_name(worst->code) : worst->err.message);
    err->retry_after_ms = worst->err.retry_after_ms;
    return worst->code;
}

static void write_gathered(struct request *r)
{
    struct wire_reply *reply = &r->reply;
    struct wire_shard_outcome *outcomes = arena_calloc(&r->arena, r->call_count + 1, sizeof *outcomes);
    if (outcomes == NULL) {
        request_finish(r, err_set(&reply->err, OMEN_EUNKNOWN, "", "out of memory after the write was sent"));
        return;
    }
    uint32_t failed = 0;
    reply->write.duplicate = r->call_count > 0;
    for (uint32_t i = 0; i < r->call_count; i++) {
        const struct shard_call *call = &r->calls[i];
        outcomes[i] = (struct wire_shard_outcome){ call->shard_id, call->code, 0 };
        if (call->code != OMEN_OK) {
            failed++;
            continue;
        }
        outcomes[i].count = call->out.write.affected;
        reply->write.affected += call->out.write.affected;
        reply->write.duplicate &= call->out.write.duplicate;
    }
    reply->write.shards = outcomes;
    reply->write.shard_count = r->call_count;
    enum omen_err rc = scatter_tokens(r);
    if (rc != OMEN_OK) {
        request_finish(r, err_set(&reply->err, OMEN_EUNKNOWN, "", "out of memory after the write was sent"));
        return;
    }
    request_finish(r, failed > 0 ? write_failure(r, failed) : OMEN_OK);
}

static enum omen_err write_scatter(struct request *r, struct err *err)
{
    enum omen_err rc = resolve_collection(r, err);
    struct point_op *ops = NULL;
    if (rc == OMEN_OK) rc = validate_write(r, &ops, err);
    struct split split;
    if (rc == OMEN_OK && r->wire.write.filter_doc.data != NULL) return filter_scatter(r, ops, err);
    if (rc == OMEN_OK) rc = split_count(r, ops, &split, err);
    if (rc == OMEN_OK) rc = split_place(r, ops, &split, err);
    if (rc != OMEN_OK) return rc;
    uint32_t touched = 0;
    for (uint32_t s = 0; s < r->collection->shard_count; s++) touched += split.counts[s] > 0;
    rc = scatter_prepare(r, touched, err);
    if (rc != OMEN_OK) return rc;
    for (uint32_t s = 0, i = 0; s < r->collection->shard_count; s++) {
        if (split.counts[s] == 0) continue;
        scatter_call_init(r, i, CALL_WRITE, s);
        r->calls[i].in.write.ops = split.placed[s];
        r->calls[i].in.write.count = split.counts[s];
        r->calls[i].in.write.op_id = r->wire.write.op_id;
        r->calls[i].in.write.wait = r->wire.write.wait;
        i++;
    }
    return OMEN_OK;
}

void op_write(struct request *r)
{
    enum omen_err rc = write_scatter(r, &r->reply.err);
    if (rc != OMEN_OK) {
        request_finish(r, rc);
    } else {
        scatter_go(r, write_gathered);
    }
}
