/* One request over all its attempts: which endpoint, when to try again, and what to tell the caller in the end.
 *
 *   attempt ends with       the next one                                    spends a round
 *   UNAVAILABLE, UNKNOWN    at the next endpoint; backoff after a full turn   per full turn
 *   BUSY                    same endpoint, after retry-after and jitter       no: only the deadline bounds it
 *   NOT_LEADER, WRONG_EPOCH same endpoint, backoff                            yes
 *   anything else           none
 *
 * A hand-over of leadership whose outcome is unknown is not tried again: it is not recorded and so has no op id.
 *
 * A write that may have been carried out once (UNKNOWN) stays uncertain until an attempt with the same op id is
 * answered; giving up before that is reported as OMEN_EUNKNOWN, whatever the last attempt said.
 * Threads: an `attempts` has one owner at a time. */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"
#include "tools/client/client_impl.h"

uint64_t client_now_ns(void) { return clock_monotonic_ns(clock_system()); }

void client_sleep_ms(uint32_t ms)
{
    struct timespec left = { .tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000L };
    while (nanosleep(&left, &left) != 0) {}
}

static bool op_is_write(enum wire_op op) { return op >= WIRE_UPSERT && op <= WIRE_DELETE_PAYLOAD; }

static bool op_changes(enum wire_op op)
{
    return op_is_write(op) || op == WIRE_COLLECTION_CREATE || op == WIRE_COLLECTION_DROP ||
            op == WIRE_COLLECTION_SET || op == WIRE_ALIAS_SET || op == WIRE_ALIAS_DROP;
}

/* splitmix64 over a shared counter: 0 .. bound - 1. Only spreads clients in time, nothing rests on its quality. */
static uint32_t draw_below(struct omen_client *client, uint32_t bound)
{
    uint64_t z = client->id + 0x9e3779b97f4a7c15u * atomic_fetch_add(&client->draws, 1);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)((z ^ (z >> 31)) % (bound == 0 ? 1 : bound));
}

void attempts_begin(struct omen_client *client, enum wire_op op, struct attempts *a_out)
{
    *a_out = (struct attempts){
        .op = op,
        .changes = op_changes(op),
        .has_op_id = op_changes(op),
        .deadline_ns = client_now_ns() + (uint64_t)client->timeout_ms * 1000000u,
        .endpoint = atomic_load(&client->endpoint_good),
        .rounds_left = client->retries,
        .backoff_ms = CLIENT_BACKOFF_MS_MIN,
    };
}

uint32_t attempts_left_ms(const struct attempts *a)
{
    uint64_t now_ns = client_now_ns();
    return now_ns >= a->deadline_ns ? 0 : (uint32_t)((a->deadline_ns - now_ns + 999999u) / 1000000u);
}

uint32_t attempts_timeout_ms(const struct omen_client *client, const struct attempts *a)
{
    uint32_t left_ms = attempts_left_ms(a);
    if (client->endpoint_count == 1) return left_ms;
    uint32_t share_ms = left_ms / 2 < CLIENT_ATTEMPT_MS_MIN ? CLIENT_ATTEMPT_MS_MIN : left_ms / 2;
    return share_ms < left_ms ? share_ms : left_ms;
}

/* After an uncertain attempt these alone still say that the request itself can never have been applied, or that what it
 * was about is gone. */
static bool says_never(enum omen_err code)
{
    return code == OMEN_EINVAL || code == OMEN_ETOOBIG || code == OMEN_ENOTFOUND;
}

static enum omen_err conclude(struct omen_client *client, const struct attempts *a, enum omen_err code,
        struct err *err)
{
    if (code == OMEN_OK) return code;
    const char *url = client->endpoints[a->endpoint].url;
    if (!a->changes) {
        if (code != OMEN_EUNKNOWN) return code;
        code = attempts_left_ms(a) == 0 ? OMEN_EDEADLINE : OMEN_EUNAVAILABLE;
        return err_set(err, code, NULL, "no reply from %s in %u attempts and %u ms", url, a->count,
                client->timeout_ms - attempts_left_ms(a));
    }
    if (a->partial)
        return err_set(err, OMEN_EUNKNOWN, err->field,
                "outcome unknown: carried out in some shards, not in all (%s)", err->message);
    if (!a->uncertain) {
        if (code == OMEN_EOPEXPIRED)
            return err_set(err, code, NULL,
                    "the op id is too old for the server: is this machine's clock right?");
        return code;
    }
    /* Wished for and true, whoever did it. */
    if (code == OMEN_ENOTFOUND && (a->op == WIRE_COLLECTION_DROP || a->op == WIRE_ALIAS_DROP)) {
        err_clear(err);
        return OMEN_OK;
    }
    if (says_never(code)) return code;
    if (code == OMEN_EEXISTS && a->has_op_id) return code; /* had it been ours, we were told so */
    if (code == OMEN_EEXISTS)
        return err_set(err, OMEN_EUNKNOWN, err->field,
                "outcome unknown: an earlier attempt may have done it (%s)", err->message);
    return err_set(err, OMEN_EUNKNOWN, err->field,
            "outcome unknown: the request may have been carried out (%u attempts; last: %s)", a->count,
            err->message);
}

static bool give_up(struct omen_client *client, const struct attempts *a, enum omen_err code, struct err *err,
        enum omen_err *code_out)
{
    *code_out = conclude(client, a, code, err);
    return false;
}

bool attempts_again(struct omen_client *client, struct attempts *a, enum omen_err code, struct err *err,
        uint32_t *wait_ms_out, enum omen_err *code_out)
{
    *wait_ms_out = 0;
    a->count++;
    if (!err_retryable(code) && code != OMEN_ECANCELED) atomic_store(&client->endpoint_good, a->endpoint);
    if (code == OMEN_OK) return give_up(client, a, code, err, code_out);
    if (code == OMEN_EUNKNOWN || code == OMEN_ECANCELED) a->uncertain = true;
    bool once = a->changes && !a->has_op_id && a->uncertain;
    if (!err_retryable(code) || once) return give_up(client, a, code, err, code_out);

    bool move_on = code == OMEN_EUNAVAILABLE || code == OMEN_EUNKNOWN;
    uint32_t next = move_on ? (a->endpoint + 1) % client->endpoint_count : a->endpoint;
    if (move_on && ++a->endpoints_failed < client->endpoint_count && attempts_left_ms(a) > 0) {
        a->endpoint = next;
        return true;
    }
    uint32_t wait_ms = a->backoff_ms / 2 + draw_below(client, a->backoff_ms);
    if (code == OMEN_EBUSY) {
        if (wait_ms < err->retry_after_ms)
            wait_ms = err->retry_after_ms + draw_below(client, err->retry_after_ms / 2 + 1);
    } else {
        if (a->rounds_left == 0) return give_up(client, a, code, err, code_out);
        a->rounds_left--;
    }
    if (wait_ms >= attempts_left_ms(a)) return give_up(client, a, code, err, code_out);
    a->backoff_ms = a->backoff_ms * 2 > CLIENT_BACKOFF_MS_MAX ? CLIENT_BACKOFF_MS_MAX : a->backoff_ms * 2;
    a->endpoints_failed = 0;
    a->endpoint = next;
    *wait_ms_out = wait_ms;
    return true;
}

/* ---- hello ---- */

/* The first endpoint settles the version; the others must speak it too, because a kept message is sent to any. */
static enum omen_err greet_on(struct omen_client *client, struct endpoint *endpoint, struct scratch *s,
        uint32_t timeout_ms, struct err *err)
{
    uint32_t agreed = atomic_load(&client->version);
    struct wire_request request = { .op = WIRE_HELLO, .version = 1 }; /* hello has this form for all time */
    request.hello.version_min = agreed == 0 ? WIRE_VERSION_MIN : agreed;
    request.hello.version_max = agreed == 0 ? WIRE_VERSION_MAX : agreed;
    request.hello.client_name = client_bytes(client->client_name);
    buf_clear(&s->message);
    buf_clear(&s->reply);
    enum omen_err rc = message_encode_request(&request, &s->message, err);
    if (rc != OMEN_OK) return rc;
    struct bytes message = { s->message.data, s->message.len };
    uint64_t began_ns = client_now_ns();
    rc = net_call(endpoint->net, message, timeout_ms, &s->reply, err);
    if (rc == OMEN_EUNKNOWN)
        return err_set(err, OMEN_EUNAVAILABLE, NULL, "%s does not answer", endpoint->url);
    if (rc != OMEN_OK) return rc;
    struct wire_reply reply;
    rc = message_decode_reply((struct bytes){ s->reply.data, s->reply.len }, WIRE_HELLO, &s->arena, &reply,
            err);
    if (rc != OMEN_OK) return rc;
    if (reply.code != OMEN_OK) {
        *err = reply.err;
        return reply.code;
    }
    uint32_t version = reply.hello.version;
    if (version < WIRE_VERSION_MIN || version > WIRE_VERSION_MAX)
        return err_set(err, OMEN_EVERSION, NULL, "%s speaks protocol version %u, this client %d to %d",
                endpoint->url, version, WIRE_VERSION_MIN, WIRE_VERSION_MAX);
    if (reply.hello.now_ms != 0 && reply.hello.now_ms < INT64_MAX)
        atomic_store(&client->server_clock_ms,
                (int64_t)reply.hello.now_ms - (int64_t)((began_ns + client_now_ns()) / 2000000u));
    uint32_t none = 0;
    if (!atomic_compare_exchange_strong(&client->version, &none, version) && none != version)
        return err_set(err, OMEN_EVERSION, NULL, "%s speaks protocol version %u, the other endpoints %u",
                endpoint->url, version, none);
    atomic_store(&endpoint->greeted, true);
    return OMEN_OK;
}

enum omen_err client_greet(struct omen_client *client, struct attempts *a, struct err *err)
{
    struct endpoint *endpoint = &client->endpoints[a->endpoint];
    if (atomic_load(&endpoint->greeted)) return OMEN_OK;
    uint32_t timeout_ms = attempts_timeout_ms(client, a);
    if (timeout_ms == 0) return err_set(err, OMEN_EDEADLINE, NULL, "no time is left for the call");
    if (client->endpoint_count > 1 && timeout_ms > CLIENT_HELLO_TIMEOUT_MS)
        timeout_ms = CLIENT_HELLO_TIMEOUT_MS;
    struct scratch *s = scratch_take(client);
    if (s == NULL) return err_set(err, OMEN_ENOMEM, NULL, "no memory for a request");
    enum omen_err rc = greet_on(client, endpoint, s, timeout_ms, err);
    scratch_give(client, s);
    return rc;
}

/* ---- one attempt ---- */

enum omen_err client_take_reply(struct omen_client *client, struct attempts *a, struct bytes reply,
        struct arena *arena, struct wire_reply *reply_out, struct err *err)
{
    enum omen_err rc = message_decode_reply(reply, a->op, arena, reply_out, err);
    if (rc != OMEN_OK) {
        a->uncertain = true; /* it was received, and maybe carried out */
        return rc;
    }
    tokens_merge(&client->tokens, reply_out->tokens, reply_out->token_count);
    if (reply_out->code == OMEN_OK) return OMEN_OK;
    *err = reply_out->err;
    if (op_is_write(a->op)) {
        for (uint32_t i = 0; i < reply_out->write.shard_count; i++) {
            enum omen_err shard = reply_out->write.shards[i].code;
            if (shard == OMEN_OK) a->partial = true;
            if (shard == OMEN_EUNKNOWN) a->uncertain = true;
        }
        if (reply_out->code == OMEN_EDEADLINE) a->uncertain = true;
    }
    /* The server stopped the request, not we: another attempt may be answered. */
    return reply_out->code == OMEN_ECANCELED ? err->code = OMEN_EUNKNOWN : reply_out->code;
}

enum omen_err client_encode(struct omen_client *client, struct wire_request *request, struct arena *arena,
        const struct attempts *a, struct buf *out, struct err *err)
{
    request->version = atomic_load(&client->version);
    request->api_key = client_bytes(client->api_key);
    request->deadline_ms = attempts_left_ms(a);
    if (request->deadline_ms > WIRE_DEADLINE_MS_MAX) request->deadline_ms = WIRE_DEADLINE_MS_MAX;
    enum omen_err rc = arena == NULL
            ? OMEN_OK
            : tokens_copy(&client->tokens, arena, &request->tokens, &request->token_count, err);
    if (rc != OMEN_OK) return rc;
    buf_clear(out);
    rc = message_encode_request(request, out, err);
    if (rc == OMEN_OK && out->failed) rc = err_set(err, OMEN_ENOMEM, NULL, "no memory for the request");
    if (rc == OMEN_OK && out->len > WIRE_MESSAGE_BYTES_MAX)
        rc = err_set(err, OMEN_ETOOBIG, NULL,
                "the request has %zu bytes, at most %u are allowed: send fewer points", out->len,
                WIRE_MESSAGE_BYTES_MAX);
    return rc;
}

static enum omen_err attempt(struct omen_client *client, struct wire_request *request, struct scratch *s,
        struct arena *reply_arena, struct attempts *a, struct wire_reply *reply_out, struct err *err)
{
    enum omen_err rc = client_greet(client, a, err);
    if (rc != OMEN_OK) return rc;
    if (s->message.len == 0) {
        rc = client_encode(client, request, &s->arena, a, &s->message, err);
        if (rc != OMEN_OK) return rc;
    }
    struct endpoint *endpoint = &client->endpoints[a->endpoint];
    buf_clear(&s->reply);
    struct bytes message = { s->message.data, s->message.len };
    rc = net_call(endpoint->net, message, attempts_timeout_ms(client, a), &s->reply, err);
    if (rc != OMEN_OK) {
        atomic_store(&endpoint->greeted, false); /* another server may answer there next */
        return rc;
    }
    return client_take_reply(client, a, (struct bytes){ s->reply.data, s->reply.len }, reply_arena, reply_out,
            err);
}

/* The cluster was restored from a backup since: what was seen of the old one is forgotten, and the request sent anew. */
static bool tokens_refused(enum omen_err code, const struct err *err, const struct wire_request *request)
{
    return code == OMEN_EINVAL && request->token_count > 0 && strncmp(err->field, "tokens", 6) == 0;
}

static struct op_id *request_op_id(struct wire_request *request)
{
    if (request->op == WIRE_CLUSTER) return &request->cluster.asked_as;
    return op_is_write(request->op)   ? &request->write.op_id
            : op_changes(request->op) ? &request->catalog.asked_as
                                      : NULL;
}

/* Our clock, or the server's when we went by that, is so far ahead of the leader's that the op id was refused, before
 * anything was begun: from now on issue times are by the other one, and the request gets a new id. */
static bool op_id_anew(struct omen_client *client, const struct attempts *a, enum omen_err code,
        const struct err *err, struct wire_request *request)
{
    struct op_id *id = request_op_id(request);
    if (code != OMEN_EINVAL || strcmp(err->field, "op_id[2]") != 0 || id == NULL ||
            id->client != client->id || a->uncertain || a->partial ||
            atomic_load(&client->server_clock_ms) == 0)
        return false;
    struct op_id anew = build_op_id(client);
    if (anew.issue_ms + 1000 >= id->issue_ms) { /* else another thread has changed over already */
        atomic_store(&client->by_server, !atomic_load(&client->by_server));
        anew = build_op_id(client);
    }
    *id = anew;
    return true;
}

enum omen_err client_call(struct omen_client *client, struct wire_request *request, struct scratch *s,
        struct arena *reply_arena, struct wire_reply *reply_out, struct err *err)
{
    struct attempts a;
    attempts_begin(client, request->op, &a);
    if (request->op == WIRE_CLUSTER) {
        a.changes = wire_cluster_changes(request->cluster.request);
        a.has_op_id = request->cluster.asked_as.client != 0;
    }
    buf_clear(&s->message);
    bool forgot = false, renamed = false;
    for (;;) {
        err_clear(err);
        enum omen_err rc = attempt(client, request, s, reply_arena, &a, reply_out, err), final;
        uint32_t wait_ms;
        if (!forgot && tokens_refused(rc, err, request)) {
            tokens_forget(&client->tokens);
            buf_clear(&s->message);
            forgot = true;
            continue;
        }
        if (!renamed && op_id_anew(client, &a, rc, err, request)) {
            buf_clear(&s->message);
            renamed = true;
            continue;
        }
        if (!attempts_again(client, &a, rc, err, &wait_ms, &final)) return final;
        if (wait_ms > 0) client_sleep_ms(wait_ms);
    }
}
