/* Server side of request/reply: rep0 with N contexts, each with its own aio, each a small state machine:
 *
 *   RECEIVING --request--> HANDLING --net_reply--> SENDING --sent, peer gone, timeout--> RECEIVING
 *   RECEIVING --stopping--> IDLE        SENDING --stopping--> IDLE        RECEIVING --error--> PAUSED --> RECEIVING
 *   RECEIVING: waits in rep0.  HANDLING: the handler owns it.  SENDING: rep0 owns the reply.  IDLE: for good.
 *
 * Threads: callbacks run on nng's task threads; `lock` guards states and counters and is never held over a call into nng
 * or the handler. A context whose callback still runs may already be replied to from another thread: nothing of a
 * request is touched after its handler was called.
 * When all contexts are busy, rep0 reads no further from the connections: that is the back-pressure. */
#include "common/net/net.h"

#include <pthread.h>
#include <time.h>

#include <nng/nng.h>
#include <nng/protocol/reqrep0/rep.h>
#include <nng/supplemental/util/platform.h>

#include "common/check.h"
#include "common/net/net_nng.h"

enum request_state { REQUEST_IDLE, REQUEST_RECEIVING, REQUEST_HANDLING, REQUEST_SENDING, REQUEST_PAUSED };

struct net_request {
    struct net_server *server;
    nng_ctx ctx;
    nng_aio *aio;             /* owned; at most one operation at a time */
    nng_msg *message;         /* owned while HANDLING */
    nng_pipe pipe;            /* where the request came from, to cut a peer that does not read */
    size_t reply_bytes;       /* counted in server->waiting_bytes while SENDING */
    enum request_state state; /* under server->lock */
};

struct net_server {
    nng_socket socket;
    nng_listener listener;
    uint16_t port;
    void (*handle)(void *arg, struct net_request *request, struct bytes message);
    void *arg;
    struct net_request *requests; /* [contexts] owned */
    uint32_t contexts;

    pthread_mutex_t lock;
    pthread_cond_t idle_changed;
    uint32_t idle; /* requests in REQUEST_IDLE */
    uint32_t peers;
    uint64_t waiting_bytes; /* replies in REQUEST_SENDING */
    bool stopping;
    nng_time last_reply_ms; /* 0 = none yet */
};

static void request_receive(struct net_request *request)
{
    struct net_server *server = request->server;
    pthread_mutex_lock(&server->lock);
    if (request->state == REQUEST_SENDING) {
        server->last_reply_ms = nng_clock();
        server->waiting_bytes -= request->reply_bytes;
    }
    bool stop = server->stopping;
    request->state = stop ? REQUEST_IDLE : REQUEST_RECEIVING;
    if (stop) {
        server->idle++;
        pthread_cond_signal(&server->idle_changed);
    }
    pthread_mutex_unlock(&server->lock);
    if (stop) return; /* the server may be gone from here on */
    nng_aio_set_timeout(request->aio, NNG_DURATION_INFINITE);
    nng_ctx_recv(request->ctx, request->aio);
}

static void request_set_state(struct net_request *request, enum request_state state)
{
    pthread_mutex_lock(&request->server->lock);
    request->state = state;
    pthread_mutex_unlock(&request->server->lock);
}

static void request_received(struct net_request *request)
{
    int rv = nng_aio_result(request->aio);
    if (rv == NNG_ECANCELED || rv == NNG_ECLOSED) { /* only net_server_stop does that */
        request_receive(request);
        return;
    }
    if (rv != 0) { /* out of memory, say: neither spin nor die */
        request_set_state(request, REQUEST_PAUSED);
        nng_sleep_aio(20, request->aio);
        return;
    }
    struct net_server *server = request->server;
    request->message = nng_aio_get_msg(request->aio);
    nng_aio_set_msg(request->aio, NULL);
    request->pipe = nng_msg_get_pipe(request->message);
    struct bytes body = { nng_msg_body(request->message), nng_msg_len(request->message) };
    request_set_state(request, REQUEST_HANDLING);
    server->handle(server->arg, request, body);
}

static void request_sent(struct net_request *request)
{
    if (nng_aio_result(request->aio) != 0) {
        nng_msg *unsent = nng_aio_get_msg(request->aio);
        nng_aio_set_msg(request->aio, NULL);
        if (unsent != NULL) nng_msg_free(unsent);
        if (nng_aio_result(request->aio) == NNG_ETIMEDOUT) (void)nng_pipe_close(request->pipe);
    }
    request_receive(request);
}

static void request_step(void *arg)
{
    struct net_request *request = arg;
    pthread_mutex_lock(&request->server->lock);
    enum request_state state = request->state;
    pthread_mutex_unlock(&request->server->lock);
    switch (state) {
    case REQUEST_RECEIVING: request_received(request); return;
    case REQUEST_SENDING: request_sent(request); return;
    case REQUEST_PAUSED: request_receive(request); return;
    case REQUEST_IDLE:
    case REQUEST_HANDLING: break;
    }
    panic("net: a request completed in state %d", (int)state);
}

bool net_reply_fits(const struct net_request *request, size_t reply_bytes)
{
    struct net_server *server = request->server;
    pthread_mutex_lock(&server->lock);
    uint64_t waiting = server->waiting_bytes;
    pthread_mutex_unlock(&server->lock);
    return waiting == 0 || reply_bytes <= NET_REPLY_SMALL_BYTES ||
            range_fits(waiting, reply_bytes, NET_REPLIES_BYTES_MAX);
}

void net_reply(struct net_request *request, struct bytes reply)
{
    struct net_server *server = request->server;
    CHECK(request->message != NULL);
    nng_msg *out = NULL;
    if (nng_msg_alloc(&out, reply.len) == 0) {
        if (reply.len > 0) memcpy(nng_msg_body(out), reply.data, reply.len);
        nng_msg_free(request->message);
    } else { /* no memory for the reply: an empty one, which no client takes for an answer, ends the request */
        out = request->message;
        nng_msg_clear(out);
    }
    request->message = NULL;
    pthread_mutex_lock(&server->lock);
    CHECK(request->state == REQUEST_HANDLING);
    request->state = REQUEST_SENDING;
    request->reply_bytes = nng_msg_len(out);
    server->waiting_bytes += request->reply_bytes;
    pthread_mutex_unlock(&server->lock);
    nng_aio_set_msg(request->aio, out);
    nng_aio_set_timeout(request->aio, NET_REPLY_TIMEOUT_MS);
    nng_ctx_send(request->ctx, request->aio);
}

/* Before a connection is added: refuse those over the limit, and all while stopping. */
static void peer_added(nng_pipe pipe, nng_pipe_ev event, void *arg)
{
    struct net_server *server = arg;
    pthread_mutex_lock(&server->lock);
    bool refuse = ++server->peers > NET_PEERS_MAX || server->stopping;
    pthread_mutex_unlock(&server->lock);
    if (refuse) (void)nng_pipe_close(pipe);
}

static void peer_removed(nng_pipe pipe, nng_pipe_ev event, void *arg)
{
    struct net_server *server = arg;
    pthread_mutex_lock(&server->lock);
    CHECK(server->peers > 0);
    server->peers--;
    pthread_mutex_unlock(&server->lock);
}

static int server_listen(struct net_server *server, const struct net_server_options *options)
{
    int rv = nng_socket_set_size(server->socket, NNG_OPT_RECVMAXSZ,
            options->message_bytes_max + NET_FRAME_HEADER_BYTES);
    if (rv == 0) rv = nng_pipe_notify(server->socket, NNG_PIPE_EV_ADD_PRE, peer_added, server);
    if (rv == 0) rv = nng_pipe_notify(server->socket, NNG_PIPE_EV_REM_POST, peer_removed, server);
    if (rv == 0) rv = nng_listener_create(&server->listener, server->socket, options->url);
    if (rv != 0) return rv;
    bool tcp = strncmp(options->url, "tcp", 3) == 0;
    if (tcp) {
        (void)nng_listener_set_bool(server->listener, NNG_OPT_TCP_NODELAY, true);
        (void)nng_listener_set_bool(server->listener, NNG_OPT_TCP_KEEPALIVE, true);
    }
    rv = nng_listener_start(server->listener, 0);
    if (rv != 0 || !tcp) return rv;
    int port = 0;
    rv = nng_listener_get_int(server->listener, NNG_OPT_TCP_BOUND_PORT, &port);
    server->port = (uint16_t)port;
    return rv;
}

/* Contexts and aios of all requests; on error those already made are released with the server. */
static int requests_open(struct net_server *server)
{
    for (uint32_t i = 0; i < server->contexts; i++) {
        struct net_request *request = &server->requests[i];
        request->server = server;
        int rv = nng_aio_alloc(&request->aio, request_step, request);
        if (rv != 0) return rv;
        rv = nng_ctx_open(&request->ctx, server->socket);
        if (rv != 0) return rv;
    }
    return 0;
}

static void server_free(struct net_server *server)
{
    (void)nng_close(server->socket); /* closes contexts, listener and connections, and waits for them */
    for (uint32_t i = 0; i < server->contexts; i++) {
        if (server->requests[i].aio != NULL) nng_aio_free(server->requests[i].aio);
    }
    pthread_cond_destroy(&server->idle_changed);
    pthread_mutex_destroy(&server->lock);
    mem_free(server->requests);
    mem_free(server);
}

enum omen_err net_server_start(const struct net_server_options *options, struct net_server **server_out,
        struct err *err)
{
    *server_out = NULL;
    uint32_t contexts = options->contexts == 0 ? NET_CONTEXTS_DEFAULT : options->contexts;
    if (contexts > NET_CONTEXTS_MAX) {
        return err_set(err, OMEN_EINVAL, "contexts", "must be 1 to %d, got %u", NET_CONTEXTS_MAX, contexts);
    }
    CHECK(options->handle != NULL);
    CHECK(options->message_bytes_max > 0);
    struct net_server *server = mem_must_calloc(1, sizeof *server);
    server->handle = options->handle;
    server->arg = options->arg;
    server->contexts = contexts;
    server->requests = mem_must_calloc(contexts, sizeof *server->requests);
    pthread_mutex_init(&server->lock, NULL);
    pthread_cond_init(&server->idle_changed, NULL);
    int rv = nng_rep0_open(&server->socket);
    if (rv == 0) rv = requests_open(server);
    if (rv == 0) rv = server_listen(server, options);
    if (rv != 0) {
        server_free(server);
        return net_err(err, rv, "listen on", options->url);
    }
    for (uint32_t i = 0; i < contexts; i++) request_receive(&server->requests[i]);
    *server_out = server;
    return OMEN_OK;
}

uint16_t net_server_port(const struct net_server *server) { return server->port; }

void net_server_stop(struct net_server *server)
{
    /* The listener stays open until the end: closing it would close its connections, and with them the replies. */
    pthread_mutex_lock(&server->lock);
    server->stopping = true;
    while (server->idle < server->contexts) {
        /* Cancelled again and again: a request on its way into rep0 is not there yet when it is first cancelled. */
        pthread_mutex_unlock(&server->lock);
        for (uint32_t i = 0; i < server->contexts; i++) {
            struct net_request *request = &server->requests[i];
            pthread_mutex_lock(&server->lock);
            bool cancel = request->state == REQUEST_RECEIVING;
            pthread_mutex_unlock(&server->lock);
            if (cancel) nng_aio_cancel(request->aio);
        }
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += NET_STOP_POLL_MS * 1000000L;
        if (until.tv_nsec >= 1000000000L) {
            until.tv_nsec -= 1000000000L;
            until.tv_sec++;
        }
        pthread_mutex_lock(&server->lock);
        if (server->idle < server->contexts) {
            (void)pthread_cond_timedwait(&server->idle_changed, &server->lock, &until);
        }
    }
    nng_time last_reply_ms = server->last_reply_ms;
    pthread_mutex_unlock(&server->lock);
    /* rep0 calls a reply sent when the connection has taken it over; closing now could cut its end. */
    if (last_reply_ms != 0) {
        nng_time since_ms = nng_clock() - last_reply_ms;
        if (since_ms < NET_STOP_LINGER_MS) nng_msleep((nng_duration)(NET_STOP_LINGER_MS - since_ms));
    }
    server_free(server);
}
