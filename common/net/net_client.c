/* Client side of request/reply: one req0 socket with one dialer per endpoint, one context per outstanding call.
 *
 *   FREE --start--> SENDING --taken by the connection--> RECEIVING --reply, reset, timeout--> FREE
 *   SENDING: queued in req0, nothing has left: ends as OMEN_EUNAVAILABLE.  RECEIVING: may have arrived: OMEN_EUNKNOWN.
 *
 * req0 would resend by itself, on a timer and when a connection breaks; a write could then run twice. RESENDTIME is
 * infinite, which in nng 1.5 also turns the second into NNG_ECONNRESET.
 * nng tells nobody that a connection attempt was refused. So we watch connections come and go: without one for
 * NET_CONNECT_GRACE_MS (nng tries again every 10-100 ms) calls fail at once, and a lost one fails what is queued.
 *
 * Threads: callbacks on nng's task threads; blocking calls use an aio without a callback, which nng completes without a
 * hop through its task queue. `lock` guards lists, counters and states; nng is only told to cancel under it (its
 * cancel paths never call back synchronously into us). */
#include "common/net/net.h"

#include <pthread.h>
#include <time.h>

#include <nng/nng.h>
#include <nng/protocol/reqrep0/req.h>
#include <nng/supplemental/util/platform.h>

#include "common/check.h"
#include "common/net/net_nng.h"

enum call_state { CALL_FREE, CALL_SENDING, CALL_RECEIVING };

struct net_call {
    struct net_client *client;
    nng_ctx ctx;
    nng_aio *aio; /* owned; with a callback when `async` */
    bool async;
    enum call_state state; /* under client->lock */
    uint64_t ticket;       /* which use of this slot, under client->lock */
    nng_time deadline_ms;
    net_done done;
    void *arg;
    struct net_call *prev, *next; /* outstanding; `next` alone in the pools */
};

struct net_client {
    nng_socket socket;
    nng_dialer dialer;
    char url[NET_URL_BYTES_MAX + 1];
    size_t message_bytes_max;

    pthread_mutex_t lock;
    pthread_cond_t calls_changed;
    struct net_call *outstanding;
    struct net_call *pools[2]; /* free calls: [0] blocking, [1] asynchronous */
    uint32_t outstanding_count;
    uint32_t starting; /* threads inside call_send */
    uint64_t tickets;
    bool closing;

    bool connected;
    bool redialing;
    nng_pipe pipe;      /* the connection, while connected */
    nng_time lost_ms;   /* when it was last lost, or the client opened */
    nng_time dialed_ms; /* when the present dialer was made */
    nng_time heard_ms;  /* last reply, or connect; 0 = never connected yet */
};

/* ---- the connection -------------------------------------------------------------------------------------------- */

static void connection_added(nng_pipe pipe, nng_pipe_ev event, void *arg)
{
    struct net_client *client = arg;
    pthread_mutex_lock(&client->lock);
    client->connected = true;
    client->pipe = pipe;
    client->heard_ms = nng_clock();
    pthread_mutex_unlock(&client->lock);
}

static void connection_removed(nng_pipe pipe, nng_pipe_ev event, void *arg)
{
    struct net_client *client = arg;
    pthread_mutex_lock(&client->lock);
    if (client->connected && nng_pipe_id(client->pipe) == nng_pipe_id(pipe)) {
        client->connected = false;
        client->lost_ms = nng_clock();
        for (struct net_call *call = client->outstanding; call != NULL; call = call->next) {
            if (call->state == CALL_SENDING)
                nng_aio_cancel(call->aio); /* has not left: the caller may go elsewhere */
        }
    }
    pthread_mutex_unlock(&client->lock);
}

static int client_dial(struct net_client *client, nng_dialer *dialer_out)
{
    int rv = nng_dialer_create(dialer_out, client->socket, client->url);
    if (rv != 0) return rv;
    (void)nng_dialer_set_ms(*dialer_out, NNG_OPT_RECONNMINT, NET_RECONNECT_MIN_MS);
    (void)nng_dialer_set_ms(*dialer_out, NNG_OPT_RECONNMAXT, NET_RECONNECT_MAX_MS);
    if (strncmp(client->url, "tcp", 3) == 0) {
        (void)nng_dialer_set_bool(*dialer_out, NNG_OPT_TCP_NODELAY, true);
        (void)nng_dialer_set_bool(*dialer_out, NNG_OPT_TCP_KEEPALIVE, true);
    }
    rv = nng_dialer_start(*dialer_out, NNG_FLAG_NONBLOCK);
    if (rv != 0) (void)nng_dialer_close(*dialer_out);
    return rv;
}

/* A connection attempt whose packets are dropped blocks nng's dialer for minutes: replace the dialer. */
static void client_redial_if_stuck(struct net_client *client)
{
    nng_time now_ms = nng_clock();
    pthread_mutex_lock(&client->lock);
    bool redial = !client->connected && !client->redialing && !client->closing &&
            now_ms - client->lost_ms > NET_REDIAL_MS && now_ms - client->dialed_ms > NET_REDIAL_MS;
    nng_dialer old = client->dialer;
    if (redial) {
        client->redialing = true;
        client->dialed_ms = now_ms;
    }
    pthread_mutex_unlock(&client->lock);
    if (!redial) return;
    (void)nng_dialer_close(old);
    nng_dialer fresh = NNG_DIALER_INITIALIZER;
    (void)client_dial(client, &fresh); /* failing for want of memory, it is tried again after NET_REDIAL_MS */
    pthread_mutex_lock(&client->lock);
    client->dialer = fresh;
    client->redialing = false;
    pthread_cond_signal(&client->calls_changed);
    pthread_mutex_unlock(&client->lock);
}

/* ---- calls ----------------------------------------------------------------------------------------------------- */

static void call_step(void *arg);

static void call_free(struct net_call *call)
{
    if (call->aio != NULL) nng_aio_free(call->aio);
    mem_free(call);
}

static int call_new(struct net_client *client, bool async, struct net_call **call_out)
{
    struct net_call *call = mem_must_calloc(1, sizeof *call);
    call->client = client;
    call->async = async;
    int rv = nng_aio_alloc(&call->aio, async ? call_step : NULL, call);
    if (rv == 0) rv = nng_ctx_open(&call->ctx, client->socket);
    if (rv == 0) rv = nng_ctx_set_ms(call->ctx, NNG_OPT_REQ_RESENDTIME, NNG_DURATION_INFINITE);
    if (rv != 0) {
        call_free(call);
        return rv;
    }
    *call_out = call;
    return 0;
}

static void outstanding_add(struct net_client *client, struct net_call *call)
{
    call->prev = NULL;
    call->next = client->outstanding;
    if (call->next != NULL) call->next->prev = call;
    client->outstanding = call;
}

static void outstanding_remove(struct net_client *client, struct net_call *call)
{
    if (call->prev != NULL)
        call->prev->next = call->next;
    else
        client->outstanding = call->next;
    if (call->next != NULL) call->next->prev = call->prev;
}

/* Back to the pool. The client may be freed by net_client_close right after. */
static void call_release(struct net_call *call, bool heard)
{
    struct net_client *client = call->client;
    pthread_mutex_lock(&client->lock);
    call->state = CALL_FREE;
    outstanding_remove(client, call);
    call->next = client->pools[call->async];
    client->pools[call->async] = call;
    client->outstanding_count--;
    if (heard) client->heard_ms = nng_clock();
    if (client->closing) pthread_cond_signal(&client->calls_changed);
    pthread_mutex_unlock(&client->lock);
}

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

/* What call_send keeps beside the call, which may be over and in other hands before call_send returns. */
struct call_start {
    uint32_t send_wait_ms;
    uint64_t ticket;
    bool was_connected;
};

/* Takes a call out of the pool (or makes one) and enters it as outstanding in CALL_SENDING. */
static enum omen_err call_take(struct net_client *client, bool async, uint32_t timeout_ms,
        struct call_start *start_out, struct net_call **call_out, struct err *err)
{
    pthread_mutex_lock(&client->lock);
    bool closing = client->closing;
    bool full = client->outstanding_count >= NET_CALLS_MAX;
    start_out->send_wait_ms = client_send_wait_ms(client, timeout_ms);
    start_out->was_connected = client->connected;
    bool taken = !closing && !full && start_out->send_wait_ms > 0;
    struct net_call *call = NULL;
    if (taken) {
        client->outstanding_count++; /* a place is taken before the lock is left to allocate */
        client->starting++;
        call = client->pools[async];
        if (call != NULL) client->pools[async] = call->next;
    }
    pthread_mutex_unlock(&client->lock);
    if (closing) return err_set(err, OMEN_ECANCELED, NULL, "%s: the client is being closed", client->url);
    if (full) {
        enum omen_err rc = err_set(err, OMEN_EBUSY, NULL, "%s: %d calls are outstanding", client->url,
                NET_CALLS_MAX);
        if (err != NULL) err->retry_after_ms = 10;
        return rc;
    }
    if (!taken) return err_unavailable(client, err);

    int rv = call == NULL ? call_new(client, async, &call) : 0;
    pthread_mutex_lock(&client->lock);
    if (rv == 0) {
        outstanding_add(client, call);
        call->state = CALL_SENDING;
        call->ticket = start_out->ticket = ++client->tickets;
    } else {
        client->outstanding_count--;
        client->starting--;
        if (client->closing) pthread_cond_signal(&client->calls_changed);
    }
    pthread_mutex_unlock(&client->lock);
    if (rv != 0) return net_err(err, rv, "call", client->url);
    *call_out = call;
    return OMEN_OK;
}

/* The connection may have been lost between call_take and the queue of req0, where connection_removed could not yet
 * cancel the call. The call may also be over and its slot in use again: hence the ticket. */
static void call_started(struct net_client *client, struct net_call *call, const struct call_start *start)
{
    pthread_mutex_lock(&client->lock);
    if (start->was_connected && !client->connected && call->ticket == start->ticket &&
            call->state == CALL_SENDING) {
        nng_aio_cancel(call->aio);
    }
    client->starting--;
    if (client->closing) pthread_cond_signal(&client->calls_changed);
    pthread_mutex_unlock(&client->lock);
}

/* Everything up to handing the message to req0. After OMEN_OK the aio is under way. */
static enum omen_err call_send(struct net_client *client, bool async, struct bytes message,
        uint32_t timeout_ms, net_done done, void *arg, struct net_call **call_out, struct err *err)
{
    if (message.len > client->message_bytes_max) {
        return err_set(err, OMEN_ETOOBIG, NULL, "request of %zu bytes exceeds the limit of %zu", message.len,
                client->message_bytes_max);
    }
    if (timeout_ms == 0) return err_set(err, OMEN_EDEADLINE, NULL, "no time is left for the call");
    if (timeout_ms > INT32_MAX) timeout_ms = INT32_MAX;
    client_redial_if_stuck(client);
    nng_msg *out = NULL;
    if (nng_msg_alloc(&out, message.len) != 0) {
        return err_set(err, OMEN_ENOMEM, NULL, "no memory for a request of %zu bytes", message.len);
    }
    if (message.len > 0) memcpy(nng_msg_body(out), message.data, message.len);
    struct call_start start = { 0 };
    struct net_call *call = NULL;
    enum omen_err rc = call_take(client, async, timeout_ms, &start, &call, err);
    if (rc != OMEN_OK) {
        nng_msg_free(out);
        return rc;
    }
    call->done = done;
    call->arg = arg;
    call->deadline_ms = nng_clock() + timeout_ms;
    *call_out = call;
    nng_aio_set_msg(call->aio, out);
    nng_aio_set_timeout(call->aio, (nng_duration)start.send_wait_ms);
    nng_ctx_send(call->ctx, call->aio);
    call_started(client, call, &start);
    return OMEN_OK;
}

/* SENDING ended well: wait for the reply in the time that is left. */
static void call_receive(struct net_call *call)
{
    pthread_mutex_lock(&call->client->lock);
    call->state = CALL_RECEIVING;
    pthread_mutex_unlock(&call->client->lock);
    nng_time now_ms = nng_clock();
    nng_duration left_ms = call->deadline_ms > now_ms ? (nng_duration)(call->deadline_ms - now_ms) : 1;
    nng_aio_set_timeout(call->aio, left_ms);
    nng_ctx_recv(call->ctx, call->aio);
}

/* The result of an aio that failed in `state`; frees a message that was not sent. */
static enum omen_err call_failed(struct net_call *call, enum call_state state)
{
    struct net_client *client = call->client;
    int rv = nng_aio_result(call->aio);
    if (state == CALL_SENDING) {
        nng_msg *unsent = nng_aio_get_msg(call->aio);
        nng_aio_set_msg(call->aio, NULL);
        if (unsent != NULL) nng_msg_free(unsent);
    }
    pthread_mutex_lock(&client->lock);
    bool closing = client->closing;
    bool silent = state == CALL_RECEIVING && rv == NNG_ETIMEDOUT && client->connected &&
            nng_clock() - client->heard_ms > NET_SILENCE_MS;
    nng_pipe pipe = client->pipe;
    pthread_mutex_unlock(&client->lock);
    if (silent) (void)nng_pipe_close(pipe); /* a dead peer that sent no reset; the dialer connects anew */
    if (closing) return OMEN_ECANCELED;
    return state == CALL_SENDING ? OMEN_EUNAVAILABLE : OMEN_EUNKNOWN;
}

/* Callback of asynchronous calls. */
static void call_step(void *arg)
{
    struct net_call *call = arg;
    pthread_mutex_lock(&call->client->lock);
    enum call_state state = call->state;
    pthread_mutex_unlock(&call->client->lock);
    CHECK(state != CALL_FREE);
    bool ok = nng_aio_result(call->aio) == 0;
    if (ok && state == CALL_SENDING) {
        call_receive(call);
        return;
    }
    enum omen_err result = OMEN_OK;
    nng_msg *message = NULL;
    struct bytes reply = { NULL, 0 };
    if (ok) {
        message = nng_aio_get_msg(call->aio);
        nng_aio_set_msg(call->aio, NULL);
        reply = (struct bytes){ nng_msg_body(message), nng_msg_len(message) };
    } else {
        result = call_failed(call, state);
    }
    call->done(call->arg, result, reply);
    if (message != NULL) nng_msg_free(message);
    call_release(call, ok);
}

enum omen_err net_call_start(struct net_client *client, struct bytes message, uint32_t timeout_ms,
        net_done done, void *arg, struct err *err)
{
    CHECK(done != NULL);
    struct net_call *call = NULL;
    return call_send(client, true, message, timeout_ms, done, arg, &call, err);
}

enum omen_err net_call(struct net_client *client, struct bytes message, uint32_t timeout_ms,
        struct buf *reply, struct err *err)
{
    struct net_call *call = NULL;
    enum omen_err rc = call_send(client, false, message, timeout_ms, NULL, NULL, &call, err);
    if (rc != OMEN_OK) return rc;
    nng_aio_wait(call->aio);
    if (nng_aio_result(call->aio) != 0) {
        rc = call_failed(call, CALL_SENDING);
        call_release(call, false);
        if (rc == OMEN_ECANCELED) return err_set(err, rc, NULL, "%s: the client was closed", client->url);
        return err_unavailable(client, err);
    }
    call_receive(call);
    nng_aio_wait(call->aio);
    int rv = nng_aio_result(call->aio);
    if (rv != 0) {
        rc = call_failed(call, CALL_RECEIVING);
        err_set(err, rc, NULL, "%s: no reply (%s); the request may have been carried out", client->url,
                rv == NNG_ETIMEDOUT ? "deadline passed" : "connection lost");
        call_release(call, false);
        return rc;
    }
    nng_msg *message_in = nng_aio_get_msg(call->aio);
    nng_aio_set_msg(call->aio, NULL);
    buf_append(reply, nng_msg_body(message_in), nng_msg_len(message_in));
    if (reply->failed) rc = err_set(err, OMEN_ENOMEM, NULL, "no memory for the reply");
    nng_msg_free(message_in);
    call_release(call, true);
    return rc;
}

/* ---- open and close -------------------------------------------------------------------------------------------- */

static void client_free(struct net_client *client)
{
    (void)nng_close(client->socket); /* closes contexts, dialer and connection, and waits for them */
    for (int async = 0; async < 2; async++) {
        for (struct net_call *call = client->pools[async]; call != NULL;) {
            struct net_call *next = call->next;
            call_free(call);
            call = next;
        }
    }
    pthread_cond_destroy(&client->calls_changed);
    pthread_mutex_destroy(&client->lock);
    mem_free(client);
}

enum omen_err net_client_open(const char *url, size_t message_bytes_max, struct net_client **client_out,
        struct err *err)
{
    *client_out = NULL;
    if (strlen(url) > NET_URL_BYTES_MAX) {
        return err_set(err, OMEN_EINVAL, NULL, "address is longer than %d bytes", NET_URL_BYTES_MAX);
    }
    struct net_client *client = mem_must_calloc(1, sizeof *client);
    memcpy(client->url, url, strlen(url) + 1);
    client->message_bytes_max = message_bytes_max;
    client->lost_ms = client->dialed_ms = nng_clock();
    pthread_mutex_init(&client->lock, NULL);
    pthread_cond_init(&client->calls_changed, NULL);
    int rv = nng_req0_open(&client->socket);
    if (rv == 0) {
        rv = nng_socket_set_size(client->socket, NNG_OPT_RECVMAXSZ,
                message_bytes_max + NET_FRAME_HEADER_BYTES);
    }
    if (rv == 0) rv = nng_socket_set_ms(client->socket, NNG_OPT_REQ_RESENDTIME, NNG_DURATION_INFINITE);
    if (rv == 0) rv = nng_pipe_notify(client->socket, NNG_PIPE_EV_ADD_PRE, connection_added, client);
    if (rv == 0) rv = nng_pipe_notify(client->socket, NNG_PIPE_EV_REM_POST, connection_removed, client);
    if (rv == 0) rv = client_dial(client, &client->dialer);
    if (rv != 0) {
        client_free(client);
        return net_err(err, rv, "connect to", url);
    }
    *client_out = client;
    return OMEN_OK;
}

void net_client_close(struct net_client *client)
{
    pthread_mutex_lock(&client->lock);
    client->closing = true;
    while (client->outstanding_count > 0 || client->starting > 0 || client->redialing) {
        /* Again and again: a call between two operations is not there to be cancelled. */
        for (struct net_call *call = client->outstanding; call != NULL; call = call->next)
            nng_aio_cancel(call->aio);
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += NET_STOP_POLL_MS * 1000000L;
        if (until.tv_nsec >= 1000000000L) {
            until.tv_nsec -= 1000000000L;
            until.tv_sec++;
        }
        (void)pthread_cond_timedwait(&client->calls_changed, &client->lock, &until);
    }
    pthread_mutex_unlock(&client->lock);
    client_free(client);
}
