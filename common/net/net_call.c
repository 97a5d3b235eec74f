/* Calls of a client: who asks, until when, and what became of it.
 *
 *   FREE -> WAITING (no connection yet) -> GIVEN (to it) -> ENDING -> FREE, or for a blocking caller ENDED -> FREE
 *
 * Never left: OMEN_EUNAVAILABLE, the caller may go elsewhere. May have left: OMEN_EUNKNOWN. A call is ended by
 * whoever takes it out of the outstanding ones under the lock: the reply, its deadline, the end of the connection,
 * the closing of the client. A reply finds its call by the id, which carries how often the slot was used: one that
 * comes late finds none.
 *
 * A blocking caller watches its own deadline; those of asynchronous calls are one sleep of nng's, to the next of
 * them. */
#include <time.h>

#include "common/check.h"
#include "common/net/net_client_impl.h"

#define ID_REQUEST 0x80000000u /* ends the hops before it */
#define ID_SLOT_BITS 12
#define ID_SLOT_MASK ((1u << ID_SLOT_BITS) - 1)
_Static_assert(NET_CALLS_MAX <= 1u << ID_SLOT_BITS, "slots fit their bits");

/* ---- the outstanding ones (under client->lock) ----------------------------------------------------------------- */

static void outstanding_append(struct net_client *client, struct net_call *call)
{
    call->next = NULL;
    call->prev = client->last;
    *(call->prev != NULL ? &call->prev->next : &client->first) = call;
    client->last = call;
}

/* From here on the call is the calling thread's to end. */
static void call_seize(struct net_call *call)
{
    struct net_client *client = call->client;
    CHECK(call->state == CALL_WAITING || call->state == CALL_GIVEN);
    call->state = CALL_ENDING;
    *(call->prev != NULL ? &call->prev->next : &client->first) = call->next;
    *(call->next != NULL ? &call->next->prev : &client->last) = call->prev;
}

static struct net_call *call_find(struct net_client *client, uint32_t id)
{
    uint32_t slot = id & ID_SLOT_MASK;
    struct net_call *call = slot < client->calls_count ? client->calls[slot] : NULL;
    bool outstanding = call != NULL && call->id == id &&
            (call->state == CALL_WAITING || call->state == CALL_GIVEN);
    return outstanding ? call : NULL;
}

/* A free slot, with an id that was not used for long; the client is not full. */
static struct net_call *call_take(struct net_client *client)
{
    struct net_call *call = client->pool;
    if (call != NULL) {
        client->pool = call->next;
        uint32_t use = (call->id & ~ID_REQUEST) + (1u << ID_SLOT_BITS);
        call->id = ID_REQUEST | (use & ~ID_REQUEST);
    } else {
        call = mem_must_calloc(1, sizeof *call);
        call->client = client;
        call->id = ID_REQUEST | client->calls_count;
        net_cond_init(&call->ended);
        client->calls = mem_must_realloc(client->calls, (client->calls_count + 1) * sizeof *client->calls);
        client->calls[client->calls_count++] = call;
    }
    client->busy++;
    return call;
}

static void call_release(struct net_call *call)
{
    struct net_client *client = call->client;
    call->state = CALL_FREE;
    call->next = client->pool;
    client->pool = call;
    client->busy--;
    if (client->closing) pthread_cond_signal(&client->changed);
}

static nng_time call_limit_ms(const struct net_call *call)
{
    bool waiting = call->state == CALL_WAITING && call->send_by_ms < call->deadline_ms;
    return waiting ? call->send_by_ms : call->deadline_ms;
}

/* Has the timer go off by then. */
static void timer_set(struct net_client *client, nng_time at_ms)
{
    if (client->timer_busy) {
        if (at_ms < client->timer_ms) nng_aio_cancel(client->timer_aio); /* goes off now, and is set anew */
        return;
    }
    nng_time now_ms = nng_clock();
    client->timer_busy = true;
    client->timer_ms = at_ms;
    nng_sleep_aio(at_ms > now_ms ? (nng_duration)(at_ms - now_ms) : 0, client->timer_aio);
}

/* ---- ends (without the lock; the call was seized) -------------------------------------------------------------- */

/* Takes the reply, if there is one. */
static void call_end(struct net_call *call, enum omen_err result, struct net_frame *reply)
{
    struct net_client *client = call->client;
    if (call->async) {
        struct bytes body = { NULL, 0 };
        if (reply != NULL) {
            body.data = net_frame_content(reply) + NET_ID_BYTES;
            body.len = reply->len - NET_ID_BYTES;
        }
        call->done(call->arg, result, body);
        mem_free(reply);
    }
    pthread_mutex_lock(&client->lock);
    if (call->async) {
        call_release(call);
    } else {
        call->result = result;
        call->reply = reply;
        call->state = CALL_ENDED;
        pthread_cond_signal(&call->ended);
    }
    pthread_mutex_unlock(&client->lock);
}

/* Several, linked by `next`. */
static void calls_end(struct net_call *list, enum omen_err result)
{
    while (list != NULL) {
        struct net_call *call = list;
        list = call->next;
        mem_free(call->frame);
        call->frame = NULL;
        call_end(call, result, NULL);
    }
}

/* What it means that the time of a call is up. */
static enum omen_err call_expired(struct net_call *call)
{
    struct net_client *client = call->client;
    struct net_frame *unsent = call->frame;
    call->frame = NULL;
    if (unsent == NULL) unsent = net_conn_withdraw(&client->conn, call->generation, call->id);
    if (unsent != NULL) {
        mem_free(unsent);
        return OMEN_EUNAVAILABLE;
    }
    pthread_mutex_lock(&client->lock);
    bool silent = client->connected && client->generation == call->generation &&
            nng_clock() - client->heard_ms > NET_SILENCE_MS;
    pthread_mutex_unlock(&client->lock);
    if (silent) net_conn_close(&client->conn, call->generation); /* a dead peer that sent no reset */
    return OMEN_EUNKNOWN;
}

/* ---- what happens to them -------------------------------------------------------------------------------------- */

/* Seizes those of one life of the connection, or with generation 0 all blocking or all asynchronous ones. */
static struct net_call *calls_seize(struct net_client *client, uint64_t generation, bool async)
{
    struct net_call *list = NULL, **end = &list;
    for (struct net_call *call = client->first, *next; call != NULL; call = next) {
        next = call->next;
        bool meant = generation == 0 ? call->async == async
                                     : call->state == CALL_GIVEN && call->generation == generation;
        if (!meant) continue;
        call_seize(call);
        call->next = NULL;
        *end = call;
        end = &call->next;
    }
    return list;
}

void calls_opened(struct net_client *client, uint64_t generation)
{
    pthread_mutex_lock(&client->lock);
    client->connected = true;
    client->generation = generation;
    client->heard_ms = nng_clock();
    client->pause_ms = NET_RECONNECT_MIN_MS;
    /* When the connection is closing already, they wait on for the next one. */
    for (struct net_call *call = client->first; call != NULL; call = call->next) {
        if (call->state != CALL_WAITING) continue;
        if (!net_conn_send(&client->conn, generation, call->frame)) break;
        call->state = CALL_GIVEN;
        call->generation = generation;
        call->frame = NULL;
    }
    pthread_mutex_unlock(&client->lock);
}

void calls_lost(struct net_client *client, uint64_t generation)
{
    pthread_mutex_lock(&client->lock);
    if (client->connected) client->lost_ms = nng_clock();
    client->connected = false;
    bool closing = client->closing;
    struct net_call *list = calls_seize(client, generation, false);
    pthread_mutex_unlock(&client->lock);
    calls_end(list, closing ? OMEN_ECANCELED : OMEN_EUNKNOWN);
}

void calls_cancel(struct net_client *client)
{
    pthread_mutex_lock(&client->lock);
    struct net_call *list = calls_seize(client, 0, false);
    timer_set(client, 0); /* `done` of the others runs where it always does */
    pthread_mutex_unlock(&client->lock);
    calls_end(list, OMEN_ECANCELED);
}

bool calls_reply(struct net_client *client, struct net_frame *frame)
{
    uint32_t id = frame->len >= NET_ID_BYTES ? load_u32_be(net_frame_content(frame)) : 0;
    pthread_mutex_lock(&client->lock);
    client->heard_ms = nng_clock();
    struct net_call *call = call_find(client, id);
    if (call != NULL) call_seize(call);
    pthread_mutex_unlock(&client->lock);
    if (call != NULL)
        call_end(call, OMEN_OK, frame);
    else
        mem_free(frame);
    return id & ID_REQUEST;
}

void calls_unsent(struct net_client *client, uint32_t id)
{
    pthread_mutex_lock(&client->lock);
    enum omen_err result = client->closing ? OMEN_ECANCELED : OMEN_EUNAVAILABLE;
    struct net_call *call = call_find(client, id);
    if (call != NULL) call_seize(call);
    pthread_mutex_unlock(&client->lock);
    if (call != NULL) call_end(call, result, NULL);
}

/* Seizes the asynchronous ones whose time is up; *next_ms_out: when the next one's is, or UINT64_MAX. */
static struct net_call *calls_due(struct net_client *client, nng_time *next_ms_out)
{
    struct net_call *list = NULL, **end = &list;
    nng_time now_ms = nng_clock();
    *next_ms_out = UINT64_MAX;
    for (struct net_call *call = client->first, *next; call != NULL; call = next) {
        next = call->next;
        if (!call->async) continue;
        nng_time limit_ms = call_limit_ms(call);
        if (limit_ms > now_ms) {
            if (limit_ms < *next_ms_out) *next_ms_out = limit_ms;
            continue;
        }
        call_seize(call);
        call->next = NULL;
        *end = call;
        end = &call->next;
    }
    return list;
}

void calls_timer(void *arg)
{
    struct net_client *client = arg;
    nng_time next_ms = UINT64_MAX;
    pthread_mutex_lock(&client->lock);
    bool closing = client->closing;
    struct net_call *list = closing ? calls_seize(client, 0, true) : calls_due(client, &next_ms);
    client->ending++; /* the client stays until those are ended */
    client->timer_busy = false;
    if (next_ms != UINT64_MAX) timer_set(client, next_ms);
    pthread_mutex_unlock(&client->lock);
    if (closing) calls_end(list, OMEN_ECANCELED);
    while (!closing && list != NULL) {
        struct net_call *call = list;
        list = call->next;
        call_end(call, call_expired(call), NULL);
    }
    pthread_mutex_lock(&client->lock);
    client->ending--;
    if (client->closing) pthread_cond_signal(&client->changed);
    pthread_mutex_unlock(&client->lock);
}

/* ---- calling --------------------------------------------------------------------------------------------------- */

/* How long a call may wait to be sent: its whole time when connected, the rest of the grace when not. */
static uint32_t client_send_wait_ms(const struct net_client *client, uint32_t timeout_ms)
{
    if (client->connected) return timeout_ms;
    nng_time without_ms = nng_clock() - client->lost_ms;
    uint32_t allowed_ms = client->heard_ms == 0 ? NET_FIRST_CONNECT_MS : NET_CONNECT_GRACE_MS;
    uint32_t grace_ms = without_ms < allowed_ms ? (uint32_t)(allowed_ms - without_ms) : 0;
    return grace_ms < timeout_ms ? grace_ms : timeout_ms;
}

static enum omen_err err_unavailable(const struct net_client *client, struct err *err)
{
    return err_set(err, OMEN_EUNAVAILABLE, NULL, "%s: not connected, the request was not sent", client->url);
}

static enum omen_err err_canceled(const struct net_client *client, struct err *err)
{
    return err_set(err, OMEN_ECANCELED, NULL, "%s: the client is being closed", client->url);
}

/* Whether a call may begin now. Under the lock. */
static enum omen_err client_admit(const struct net_client *client, uint32_t timeout_ms, struct err *err)
{
    if (client->closing) return err_canceled(client, err);
    if (client->busy >= NET_CALLS_MAX) {
        enum omen_err rc = err_set(err, OMEN_EBUSY, NULL, "%s: %d calls are outstanding", client->url,
                NET_CALLS_MAX);
        if (err != NULL) err->retry_after_ms = 10;
        return rc;
    }
    return client_send_wait_ms(client, timeout_ms) > 0 ? OMEN_OK : err_unavailable(client, err);
}

/* A frame with room for the id, for a message that may go out. */
static enum omen_err frame_make(const struct net_client *client, struct bytes message, uint32_t timeout_ms,
        struct net_frame **frame_out, struct err *err)
{
    if (message.len > client->message_bytes_max) {
        return err_set(err, OMEN_ETOOBIG, NULL, "request of %zu bytes exceeds the limit of %zu", message.len,
                client->message_bytes_max);
    }
    if (timeout_ms == 0) return err_set(err, OMEN_EDEADLINE, NULL, "no time is left for the call");
    struct net_frame *frame = *frame_out = net_frame_new(NET_ID_BYTES + message.len);
    if (frame == NULL)
        return err_set(err, OMEN_ENOMEM, NULL, "no memory for a request of %zu bytes", message.len);
    if (message.len > 0) memcpy(net_frame_content(frame) + NET_ID_BYTES, message.data, message.len);
    return OMEN_OK;
}

/* Begins a call; after OMEN_OK it is on its way, and an asynchronous one may be over. On an error `done` is not
 * called; never is it called in here, where the caller may hold what `done` needs. */
static enum omen_err call_start(struct net_client *client, const struct net_call *wish, struct bytes message,
        uint32_t timeout_ms, struct net_call **call_out, struct err *err)
{
    struct net_frame *frame;
    enum omen_err rc = frame_make(client, message, timeout_ms, &frame, err);
    if (rc != OMEN_OK) return rc;
    if (timeout_ms > INT32_MAX) timeout_ms = INT32_MAX;
    pthread_mutex_lock(&client->lock);
    rc = client_admit(client, timeout_ms, err);
    if (rc != OMEN_OK) {
        pthread_mutex_unlock(&client->lock);
        mem_free(frame);
        return rc;
    }
    struct net_call *call = *call_out = call_take(client);
    nng_time now_ms = nng_clock();
    store_u32_be(net_frame_content(frame), call->id);
    frame->tag = call->id;
    /* Under the lock, so that a connection that ends now knows of the call, or the call of its end. */
    bool given = client->connected && net_conn_send(&client->conn, client->generation, frame);
    call->async = wish->async;
    call->done = wish->done;
    call->arg = wish->arg;
    call->deadline_ms = now_ms + timeout_ms;
    uint32_t wait_ms = client_send_wait_ms(client, timeout_ms);
    if (client->connected && wait_ms > NET_CONNECT_GRACE_MS)
        wait_ms = NET_CONNECT_GRACE_MS;  /* it is ending */
    call->send_by_ms = now_ms + wait_ms; /* looked at while CALL_WAITING */
    call->state = given ? CALL_GIVEN : CALL_WAITING;
    call->generation = client->generation;
    call->frame = given ? NULL : frame;
    outstanding_append(client, call);
    if (call->async) timer_set(client, call_limit_ms(call));
    pthread_mutex_unlock(&client->lock);
    return OMEN_OK;
}

enum omen_err net_call_start(struct net_client *client, struct bytes message, uint32_t timeout_ms,
        net_done done, void *arg, struct err *err)
{
    CHECK(done != NULL);
    struct net_call *call;
    struct net_call wish = { .async = true, .done = done, .arg = arg };
    return call_start(client, &wish, message, timeout_ms, &call, err);
}

/* Until the call has ended or its time is up. Releases the call. */
static enum omen_err call_wait(struct net_call *call, struct net_frame **reply_out, bool *expired_out)
{
    struct net_client *client = call->client;
    *expired_out = false;
    pthread_mutex_lock(&client->lock);
    while (call->state != CALL_ENDED) {
        nng_time now_ms = nng_clock(), limit_ms = call_limit_ms(call);
        if (call->state == CALL_ENDING) {
            pthread_cond_wait(&call->ended, &client->lock);
        } else if (limit_ms > now_ms) {
            struct timespec until = net_cond_deadline((uint32_t)(limit_ms - now_ms));
            (void)pthread_cond_timedwait(&call->ended, &client->lock, &until);
        } else {
            call_seize(call);
            pthread_mutex_unlock(&client->lock);
            enum omen_err result = call_expired(call);
            pthread_mutex_lock(&client->lock);
            call->result = result;
            call->reply = NULL;
            call->state = CALL_ENDED;
            *expired_out = true;
        }
    }
    enum omen_err result = call->result;
    *reply_out = call->reply;
    call_release(call);
    pthread_mutex_unlock(&client->lock);
    return result;
}

enum omen_err net_call(struct net_client *client, struct bytes message, uint32_t timeout_ms,
        struct buf *reply, struct err *err)
{
    struct net_call *call;
    struct net_call wish = { .async = false };
    enum omen_err rc = call_start(client, &wish, message, timeout_ms, &call, err);
    if (rc != OMEN_OK) return rc;
    struct net_frame *frame;
    bool expired;
    rc = call_wait(call, &frame, &expired);
    if (rc == OMEN_ECANCELED) return err_canceled(client, err);
    if (rc == OMEN_EUNAVAILABLE) return err_unavailable(client, err);
    if (rc != OMEN_OK) {
        return err_set(err, rc, NULL, "%s: no reply (%s); the request may have been carried out", client->url,
                expired ? "deadline passed" : "connection lost");
    }
    buf_append(reply, net_frame_content(frame) + NET_ID_BYTES, frame->len - NET_ID_BYTES);
    mem_free(frame);
    return reply->failed ? err_set(err, OMEN_ENOMEM, NULL, "no memory for the reply") : OMEN_OK;
}
