/* What an attempt's end means for its call: believed or not, settled or tried again, and what is said in the end. The table
 * stands in remote_call.c. Threads: the network's; everything under the call's lock. */
#include "common/err.h"

#include <stdio.h>
#include <string.h>

#include "common/check.h"
#include "router/remote_call.h"

/* ---- what an attempt's end means ---- */

static enum verdict verdict_of_read(const struct remote_call *rc, enum omen_err code)
{
    switch (code) {
    case OMEN_EUNAVAILABLE:
    case OMEN_EUNKNOWN:
    case OMEN_ENOTLEADER: return AGAIN;
    case OMEN_EBUSY:
    case OMEN_EIO:
    case OMEN_ECORRUPT:
    case OMEN_ENOMEM:
    case OMEN_EINTERNAL: return AGAIN_ELSEWHERE;
    default: return SETTLED;
    }
}

/* Whether `code` tells what became of a write of which an earlier attempt may have been carried out. Of a change that was
 * made the repetition is told its outcome, so one that is refused because something is there was not. */
static bool tells(const struct shard_call *call, enum omen_err code)
{
    if (code == OMEN_EEXISTS) return call->kind != CALL_WRITE && has_op_id(call);
    return code == OMEN_OK || code == OMEN_EINVAL || code == OMEN_ETOOBIG || code == OMEN_ENOTFOUND;
}

static enum verdict verdict_of_write(const struct remote_call *rc, enum omen_err code)
{
    if (code == OMEN_ENOTLEADER || code == OMEN_EUNAVAILABLE) return AGAIN;
    if (code == OMEN_EUNKNOWN) return has_op_id(rc->call) ? AGAIN : SETTLED;
    if (!rc->uncertain) return SETTLED;
    return code == OMEN_EBUSY || code == OMEN_EWRONGEPOCH ? AGAIN : SETTLED;
}

enum verdict call_verdict(const struct remote_call *rc, enum omen_err code)
{
    return call_is_read(rc->call) ? verdict_of_read(rc, code) : verdict_of_write(rc, code);
}

void call_conclude(struct remote_call *rc)
{
    struct shard_call *call = rc->call;
    bool late = call->deadline_ns != 0 && remote_now_ns(rc->remote) >= call->deadline_ns;
    char why[200], subject[SUBJECT_BYTES];
    snprintf(why, sizeof why, "%.190s", call->err.message);
    if (call_is_read(call)) {
        bool silent = call->code == OMEN_EUNKNOWN || call->code == OMEN_ENOTLEADER ||
                call->code == OMEN_EUNAVAILABLE;
        if (silent) {
            call->code = err_set(&call->err, late ? OMEN_EDEADLINE : OMEN_EUNAVAILABLE, "", "%s%s",
                    subject_of(call, subject), why);
        }
        return;
    }
    if (rc->uncertain && !tells(call, call->code)) {
        call->code = err_set(&call->err, OMEN_EUNKNOWN, call->err.field,
                "%sthe %s may have been carried out (%u attempts; last: %s)", subject_of(call, subject),
                call->kind == CALL_WRITE ? "write" : "change", rc->attempts, why);
        count(rc->remote->metrics.unknown);
    } else if (call->code == OMEN_ENOTLEADER) {
        call->code = err_set(&call->err, OMEN_EUNAVAILABLE, "", "%sthere is no leader now",
                subject_of(call, subject));
    }
}

/* ---- answers ---- */

/* Decodes into call->out, call->code and call->err; needs the lock. What cannot be believed is no answer. */
static enum omen_err reply_take(struct remote_call *rc, const struct attempt *attempt, struct bytes message,
        struct shard_reply_info *info, struct err *err)
{
    struct remote *remote = rc->remote;
    struct shard_envelope e;
    enum omen_err result = shard_message_open(message, SHARD_REPLY, &remote->options.key, &e, err);
    if (result == OMEN_OK && (e.nonce != attempt->nonce || e.kind != (uint8_t)rc->call->kind))
        result = err_set(err, OMEN_EPROTO, "", "the reply is to another request");
    if (result != OMEN_OK) {
        count(remote->metrics.unproven);
        return result;
    }
    uint64_t held = atomic_fetch_add(&remote->reply_bytes, e.body.len);
    rc->reply_bytes += e.body.len;
    if (e.body.len > REMOTE_SMALL_BYTES && held + e.body.len > REMOTE_REPLY_BYTES_MAX) {
        result = err_set(err, OMEN_EBUSY, "", "the router holds as many answers as it may");
        err->retry_after_ms = REMOTE_BACKOFF_MS_MAX;
        return result;
    }
    void *body = arena_copy(&rc->arena, e.body.data, e.body.len);
    if (body == NULL) return err_set(err, OMEN_ENOMEM, "", "the answer needs too much memory");
    return shard_reply_decode((struct bytes){ body, e.body.len }, rc->schema, &rc->arena, rc->call, info,
            err);
}

/* Outputs of an attempt that did not settle the call are of no use. Needs the lock. */
static void outputs_drop(struct remote_call *rc)
{
    atomic_fetch_sub(&rc->remote->reply_bytes, rc->reply_bytes);
    rc->reply_bytes = 0;
    arena_reset(&rc->arena);
    memset(&rc->call->out, 0, sizeof rc->call->out);
}

static void answer_learn(struct remote_call *rc, const struct attempt *attempt)
{
    struct remote *remote = rc->remote;
    struct shard_call *call = rc->call;
    if (call->code == OMEN_OK && rc->place != NULL) {
        remote_learn(rc->place, rc->route, call, attempt->node_id, call_needs_leader(call));
        if (call_is_read(call))
            latency_note(remote, call->kind, attempt->endpoint, remote_now_ns(remote) - attempt->began_ns);
        if (attempt->hedge) count(remote->metrics.hedge_wins);
    } else if (call->code == OMEN_OK) {
        if (rc->routing != NULL) atomic_store(&remote->catalog_node, attempt->node_id);
    } else if (call->code == OMEN_ENOTLEADER) {
        count(remote->metrics.not_leader);
        if (rc->route != NULL) {
            uint32_t was = attempt->node_id;
            if (call->leader_hint != 0 && call->leader_hint != was)
                atomic_store(&rc->route->leader, call->leader_hint);
            else
                atomic_compare_exchange_strong(&rc->route->leader, &was, 0);
        } else if (call->leader_hint != 0) {
            atomic_store(&remote->catalog_node, call->leader_hint);
        }
    }
}

static void finish_with_map(void *arg)
{
    struct remote_call *rc = arg;
    pthread_mutex_lock(&rc->lock);
    call_conclude(rc);
    call_finish(rc);
    call_unref(rc);
}

/* A map came along, or must be fetched before the caller can go on. Needs the lock, gives it back; false: the call is
 * finished, or will be when the map is there. */
static bool map_settle(struct remote_call *rc, struct map *map)
{
    struct shard_call *call = rc->call;
    struct remote *remote = rc->remote;
    bool changed = call->code == OMEN_EWRONGEPOCH || (call->kind == CALL_CATALOG && call->code == OMEN_OK);
    if (map != NULL) remote_map_install(remote, map);
    map_unref(map);
    if (call->code == OMEN_EWRONGEPOCH) count(remote->metrics.wrong_epoch);
    /* A node that came is known by its address only when it was heard of in a round of polls. */
    bool members = call->kind == CALL_CLUSTER && !call_is_read(call) && call->code == OMEN_OK;
    if (!members && (!changed || map != NULL)) return true;
    atomic_fetch_add(&rc->refs, 1);
    pthread_mutex_unlock(&rc->lock);
    remote_refresh(remote, finish_with_map, rc);
    return false;
}

void attempt_judge(struct remote_call *rc)
{
    struct shard_call *call = rc->call;
    bool read = call_is_read(call);
    enum verdict verdict = call_verdict(rc, call->code);
    if (!read && call->code == OMEN_EUNKNOWN) rc->uncertain = true;
    if (verdict == SETTLED) {
        if (call->code != OMEN_OK) call_conclude(rc);
        call_finish(rc);
        return;
    }
    outputs_drop(rc);
    if (rc->flying > 0) { /* the hedge, or the one that was hedged, may still settle it */
        pthread_mutex_unlock(&rc->lock);
        return;
    }
    timer_cancel(rc, &rc->hedge_timer);
    if (verdict == AGAIN_ELSEWHERE && call_pick(rc).endpoint == NULL) {
        call_conclude(rc);
        call_finish(rc);
        return;
    }
    if (call->code == OMEN_EBUSY && !read) {
        call_later(rc);
        return;
    }
    if (call->code == OMEN_ENOTLEADER &&
            call->leader_hint != 0) { /* asked again although it was tried: it leads now */
        for (uint32_t i = 0; i < rc->tried_count; i++)
            if (rc->tried[i] == call->leader_hint && rc->attempts % 4 != 0) rc->tried[i] = 0;
    }
    call_again(rc);
}

static void attempt_end(struct remote_call *rc, struct attempt *attempt, enum omen_err result,
        struct bytes message)
{
    struct remote *remote = rc->remote;
    struct shard_reply_info info = { .map = NULL };
    struct err err;
    err_clear(&err);
    pthread_mutex_lock(&rc->lock);
    if (!flight_remove(rc, attempt) || rc->finished) {
        pthread_mutex_unlock(&rc->lock);
        return;
    }
    struct shard_call *call = rc->call;
    if (result == OMEN_OK) {
        result = reply_take(rc, attempt, message, &info, &err);
        /* Whether an answer that cannot be read was carried out, nobody knows. */
        if (result != OMEN_OK && result != OMEN_EBUSY) result = OMEN_EUNKNOWN;
    } else {
        endpoint_down(remote, attempt->endpoint);
        if (result == OMEN_ECANCELED) result = OMEN_EUNKNOWN;
    }
    if (result != OMEN_OK) {
        call->code = err_set(&call->err, result, "", "%s: %s", attempt->endpoint->address,
                err.message[0] != '\0'                ? err.message
                        : result == OMEN_EUNAVAILABLE ? "not connected"
                                                      : "no answer");
        call->err.retry_after_ms = err.retry_after_ms;
    } else {
        answer_learn(rc, attempt);
        if (call->code == OMEN_ECANCELED) call->code = OMEN_EUNKNOWN; /* begun, and stopped half-way */
        if (!map_settle(rc, info.map)) return;
    }
    attempt_judge(rc);
}

void attempt_done(void *arg, enum omen_err result, struct bytes message)
{
    struct attempt *attempt = arg;
    struct remote_call *rc = attempt->rc;
    atomic_fetch_sub(&attempt->endpoint->outstanding, 1);
    attempt_unlink(attempt);
    if (result == OMEN_OK) endpoint_heard(attempt->rc->remote, attempt->endpoint);
    attempt_end(rc, attempt, result, message);
    endpoint_unref(attempt->endpoint);
    mem_free(attempt);
    call_unref(rc);
}
