/* Server side of request/reply: connections (net_conn.h) and a fixed number of contexts, one per request in service.
 *
 *   context:  FREE --frame and a free context--> HANDLING --net_reply--> SENDING --taken by the kernel, peer gone-->
 *   FREE
 *   peer:     in the pool --accepted--> open --ended--> in the pool            (structs are kept until the server
 *   stops)
 *
 * When all contexts are busy, a connection keeps its next frame and is not read any further: that is the
 * back-pressure. Such peers wait in line, and a context that gets free is given to the first of them. Likewise when
 * there is no room for more of a large frame (net_room.h).
 *
 * Threads: callbacks run on nng's task threads. `lock` guards everything of the server; it may be taken under a
 * connection's lock (`reserve`), never the other way round, and is not held over a handler. Nothing of a request is
 * touched after its handler was called. */
#include "common/net/net.h"

#include <pthread.h>
#include <time.h>

#include <nng/nng.h>
#include <nng/supplemental/util/platform.h>

#include "common/check.h"
#include "common/net/net_conn.h"

enum request_state { REQUEST_FREE, REQUEST_RESERVED, REQUEST_HANDLING, REQUEST_SENDING };

struct peer;

struct net_request {
    struct net_server *server;
    struct peer *peer;
    uint64_t generation;     /* of the connection that it came by */
    struct net_frame *frame; /* owned while HANDLING */
    size_t header_bytes;     /* hops and id, which the reply repeats */
    size_t reply_bytes;      /* counted in server->waiting_bytes while SENDING */
    enum request_state state;
    struct net_request *next; /* while FREE */
};

struct peer {
    struct net_conn conn;
    struct net_server *server;
    struct net_request *reserved; /* for its next frame, on the way out of the line; under server->lock */
    struct net_room_peer room;    /* for what comes in by it; under server->lock */
    bool waiting;                 /* in line for a context */
    struct peer *prev_waiting, *next_waiting;
    struct peer *next_pooled, *next; /* `next`: all there are */
};

struct net_server {
    nng_stream_listener *listener;
    nng_aio *accept_aio, *pause_aio,
            *kick_aio; /* owned; sleeping and others never share one: nng 1.5 would take the
                                                   timeout of the other for a sleep that ended well */
    uint16_t port;
    void (*handle)(void *arg, struct net_request *request, struct bytes message);
    void *arg;
    struct net_conn_options conn_options;
    struct net_request *requests; /* [contexts] owned */
    uint32_t contexts;

    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct net_request *free_requests;
    uint32_t serving; /* requests RESERVED or HANDLING: a handler has them, or will */
    uint32_t sending;
    struct peer *peers, *pool; /* all there are, owned; those not open */
    uint32_t open;             /* peers that are */
    struct peer *first_waiting, *last_waiting;
    bool accepting, kicking; /* callbacks that will still come */
    bool stopping;
    struct net_room room;
    struct metric_counter *held_up;
    uint64_t waiting_bytes; /* replies in REQUEST_SENDING */
    nng_time last_reply_ms; /* 0 = none yet */
};

/* ---- contexts (all under server->lock) ------------------------------------------------------------------------- */

static void waiting_remove(struct net_server *server, struct peer *peer)
{
    if (!peer->waiting) return;
    peer->waiting = false;
    *(peer->prev_waiting != NULL ? &peer->prev_waiting->next_waiting
                                 : &server->first_waiting) = peer->next_waiting;
    *(peer->next_waiting != NULL ? &peer->next_waiting->prev_waiting
                                 : &server->last_waiting) = peer->prev_waiting;
}

static void waiting_append(struct net_server *server, struct peer *peer)
{
    peer->waiting = true;
    peer->next_waiting = NULL;
    peer->prev_waiting = server->last_waiting;
    *(peer->prev_waiting != NULL ? &peer->prev_waiting->next_waiting : &server->first_waiting) = peer;
    server->last_waiting = peer;
}

static struct net_request *request_take(struct net_server *server)
{
    struct net_request *request = server->free_requests;
    server->free_requests = request->next;
    request->state = REQUEST_RESERVED;
    server->serving++;
    return request;
}

/* The next peer in line, with a context for it; NULL when there is none of either. To be resumed without the lock. */
static struct peer *waiting_take(struct net_server *server)
{
    struct peer *peer = server->first_waiting;
    if (peer == NULL || server->free_requests == NULL || server->stopping) return NULL;
    waiting_remove(server, peer);
    peer->reserved = request_take(server);
    return peer;
}

/* Those in line are served soon, on a thread of nng's: for callers that must not run handlers. */
static void waiting_kick(struct net_server *server)
{
    bool due = (server->first_waiting != NULL && server->free_requests != NULL) ||
            net_room_due(&server->room);
    if (server->kicking || server->stopping || !due) return;
    server->kicking = true;
    nng_sleep_aio(1, server->kick_aio);
}

static void request_free(struct net_server *server, struct net_request *request)
{
    if (request->state == REQUEST_SENDING) {
        server->sending--;
        server->waiting_bytes -= request->reply_bytes;
    } else {
        server->serving--;
    }
    request->state = REQUEST_FREE;
    request->next = server->free_requests;
    server->free_requests = request;
    if (server->stopping) pthread_cond_signal(&server->changed);
}

static void kicked(void *arg)
{
    struct net_server *server = arg;
    pthread_mutex_lock(&server->lock);
    for (struct peer *peer; (peer = waiting_take(server)) != NULL;) {
        pthread_mutex_unlock(&server->lock);
        net_conn_resume(&peer->conn);
        pthread_mutex_lock(&server->lock);
    }
    for (struct net_room_peer *room; !server->stopping && (room = net_room_next(&server->room)) != NULL;) {
        pthread_mutex_unlock(&server->lock);
        net_conn_resume(&((struct peer *)((char *)room - offsetof(struct peer, room)))->conn);
        pthread_mutex_lock(&server->lock);
    }
    server->kicking = false;
    if (server->stopping) pthread_cond_signal(&server->changed);
    pthread_mutex_unlock(&server->lock);
}

/* ---- requests -------------------------------------------------------------------------------------------------- */

static struct peer *peer_of(struct net_conn *conn)
{
    return (struct peer *)((char *)conn - offsetof(struct peer, conn));
}

static void *peer_reserve(struct net_conn *conn)
{
    struct peer *peer = peer_of(conn);
    struct net_server *server = peer->server;
    pthread_mutex_lock(&server->lock);
    waiting_remove(server,
            peer); /* a resume meant for an earlier life of the peer may find it in line again */
    struct net_request *request = peer->reserved;
    peer->reserved = NULL;
    if (request == NULL && !server->stopping) {
        if (server->free_requests != NULL)
            request = request_take(server);
        else
            waiting_append(server, peer);
    }
    pthread_mutex_unlock(&server->lock);
    return request;
}

static bool peer_room(struct net_conn *conn, size_t bytes)
{
    struct peer *peer = peer_of(conn);
    struct net_server *server = peer->server;
    bool has = true;
    pthread_mutex_lock(&server->lock);
    if (bytes == 0)
        net_room_leave(&server->room, &peer->room);
    else
        has = net_room_ask(&server->room, &peer->room, bytes);
    waiting_kick(server);
    pthread_mutex_unlock(&server->lock);
    if (!has && server->held_up != NULL) metric_add(server->held_up, 1);
    return has;
}

/* Bytes of hops and request id: words up to the first with the highest bit set. 0 = none of that kind. */
static size_t header_parse(struct net_frame *frame)
{
    const uint8_t *content = net_frame_content(frame);
    for (size_t at = 0; at + NET_ID_BYTES <= frame->len && at < NET_HEADER_BYTES_MAX; at += NET_ID_BYTES) {
        if (content[at] & 0x80) return at + NET_ID_BYTES;
    }
    return 0;
}

static bool peer_message(struct net_conn *conn, uint64_t generation, struct net_frame *frame, void *reserved)
{
    struct peer *peer = peer_of(conn);
    struct net_request *request = reserved;
    struct net_server *server = peer->server;
    size_t header_bytes = header_parse(frame);
    pthread_mutex_lock(&server->lock);
    if (header_bytes > 0) {
        request->state = REQUEST_HANDLING;
    } else {
        request_free(server, request);
        waiting_kick(server);
    }
    pthread_mutex_unlock(&server->lock);
    if (header_bytes == 0) {
        mem_free(frame);
        return false;
    }
    request->peer = peer;
    request->generation = generation;
    request->frame = frame;
    request->header_bytes = header_bytes;
    struct bytes body = { net_frame_content(frame) + header_bytes, frame->len - header_bytes };
    server->handle(server->arg, request, body);
    return true;
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
    CHECK(request->frame != NULL);
    struct net_frame *out = net_frame_new(request->header_bytes + reply.len);
    if (out != NULL) {
        memcpy(net_frame_content(out), net_frame_content(request->frame), request->header_bytes);
        if (reply.len > 0) memcpy(net_frame_content(out) + request->header_bytes, reply.data, reply.len);
        mem_free(request->frame);
    } else { /* no memory for the reply: an empty one, which no client takes for an answer, ends the request */
        out = request->frame;
        out->len = request->header_bytes;
    }
    request->frame = NULL;
    out->owner = request;
    pthread_mutex_lock(&server->lock);
    CHECK(request->state == REQUEST_HANDLING);
    request->state = REQUEST_SENDING;
    request->reply_bytes = out->len;
    server->serving--;
    server->sending++;
    server->waiting_bytes += request->reply_bytes;
    pthread_mutex_unlock(&server->lock);
    if (net_conn_send(&request->peer->conn, request->generation, out)) return; /* the request may be over */
    mem_free(out);
    pthread_mutex_lock(&server->lock);
    request_free(server, request);
    waiting_kick(server);
    pthread_mutex_unlock(&server->lock);
}

/* A reply has left, or never will. On its way out of the connection's own sending it may run the next in line. */
static void peer_left(struct net_conn *conn, struct net_frame *frame, enum net_left how)
{
    struct net_request *request = frame->owner;
    struct net_server *server = request->server;
    struct peer *next = NULL;
    mem_free(frame);
    pthread_mutex_lock(&server->lock);
    request_free(server, request);
    if (how == NET_LEFT_SENT) {
        server->last_reply_ms = nng_clock();
        next = waiting_take(server);
    } else {
        waiting_kick(server);
    }
    pthread_mutex_unlock(&server->lock);
    if (next != NULL) net_conn_resume(&next->conn);
}

/* ---- peers ----------------------------------------------------------------------------------------------------- */

static void peer_ended(struct net_conn *conn, uint64_t generation)
{
    struct peer *peer = peer_of(conn);
    struct net_server *server = peer->server;
    pthread_mutex_lock(&server->lock);
    waiting_remove(server, peer);
    if (peer->reserved != NULL) {
        request_free(server, peer->reserved);
        peer->reserved = NULL;
    }
    net_room_leave(&server->room, &peer->room);
    waiting_kick(server);
    peer->next_pooled = server->pool;
    server->pool = peer;
    server->open--;
    if (server->stopping) pthread_cond_signal(&server->changed);
    pthread_mutex_unlock(&server->lock);
}

static const struct net_conn_events peer_events = {
    .reserve = peer_reserve,
    .room = peer_room,
    .message = peer_message,
    .left = peer_left,
    .ended = peer_ended,
};

/* A peer for a new connection, counted as open; NULL when there are too many, no memory, or the end has begun. */
static struct peer *peer_take(struct net_server *server)
{
    pthread_mutex_lock(&server->lock);
    bool refuse = server->open >= NET_PEERS_MAX || server->stopping;
    struct peer *peer = refuse ? NULL : server->pool;
    if (peer != NULL) server->pool = peer->next_pooled;
    if (!refuse) server->open++;
    pthread_mutex_unlock(&server->lock);
    if (refuse || peer != NULL) return peer;
    peer = mem_must_calloc(1, sizeof *peer);
    peer->server = server;
    bool made = net_conn_init(&peer->conn, &server->conn_options) == 0;
    pthread_mutex_lock(&server->lock);
    if (made) {
        peer->next = server->peers;
        server->peers = peer;
    } else {
        server->open--;
    }
    pthread_mutex_unlock(&server->lock);
    if (!made) mem_free(peer);
    return made ? peer : NULL;
}

static void accept_next(struct net_server *server, bool pause)
{
    pthread_mutex_lock(&server->lock);
    server->accepting = !server->stopping;
    if (!server->accepting)
        pthread_cond_signal(&server->changed);
    else if (pause)
        nng_sleep_aio(NET_ACCEPT_PAUSE_MS, server->pause_aio);
    else
        nng_stream_listener_accept(server->listener, server->accept_aio);
    pthread_mutex_unlock(&server->lock);
}

static void accept_paused(void *arg) { accept_next(arg, false); }

static void accepted(void *arg)
{
    struct net_server *server = arg;
    int rv = nng_aio_result(server->accept_aio);
    if (rv == 0) {
        nng_stream *stream = nng_aio_get_output(server->accept_aio, 0);
        struct peer *peer = peer_take(server);
        if (peer == NULL) {
            nng_stream_close(stream);
            nng_stream_free(stream);
        } else if (!net_conn_open(&peer->conn, stream)) {
            peer_ended(&peer->conn, 0);
        }
    }
    accept_next(server, rv != 0); /* out of descriptors, say: neither spin nor die */
}

/* ---- start and stop -------------------------------------------------------------------------------------------- */

static int server_listen(struct net_server *server, const char *url)
{
    int rv = nng_stream_listener_alloc(&server->listener, url);
    if (rv != 0) return rv;
    bool tcp = strncmp(url, "tcp", 3) == 0;
    if (tcp) {
        (void)nng_stream_listener_set_bool(server->listener, NNG_OPT_TCP_NODELAY, true);
        (void)nng_stream_listener_set_bool(server->listener, NNG_OPT_TCP_KEEPALIVE, true);
    }
    rv = nng_stream_listener_listen(server->listener);
    if (rv != 0 || !tcp) return rv;
    int port = 0;
    rv = nng_stream_listener_get_int(server->listener, NNG_OPT_TCP_BOUND_PORT, &port);
    server->port = (uint16_t)port;
    return rv;
}

static void server_free(struct net_server *server)
{
    for (struct peer *peer = server->peers; peer != NULL;) {
        struct peer *next = peer->next;
        net_conn_fini(&peer->conn);
        mem_free(peer);
        peer = next;
    }
    nng_aio *aios[] = { server->accept_aio, server->pause_aio, server->kick_aio };
    for (size_t i = 0; i < 3; i++) {
        if (aios[i] != NULL) nng_aio_free(aios[i]);
    }
    if (server->listener != NULL) nng_stream_listener_free(server->listener);
    pthread_cond_destroy(&server->changed);
    pthread_mutex_destroy(&server->lock);
    mem_free(server->requests);
    mem_free(server);
}

static struct net_server *server_new(const struct net_server_options *options, uint32_t contexts)
{
    struct net_server *server = mem_must_calloc(1, sizeof *server);
    server->handle = options->handle;
    server->arg = options->arg;
    server->conn_options = (struct net_conn_options){ .events = &peer_events,
        .protocol = NET_PROTOCOL_REP,
        .peer_protocol = NET_PROTOCOL_REQ,
        .ipc = net_url_is_ipc(options->url),
        .frame_bytes_max = options->message_bytes_max + NET_ID_BYTES,
        .send_timeout_ms = NET_REPLY_TIMEOUT_MS,
        .send_mib_ms = NET_REPLY_MIB_MS,
        .frame_ms = options->frame_ms > 0 ? options->frame_ms : NET_FRAME_PAUSE_MS,
        .frame_mib_ms = NET_FRAME_MIB_MS };
    server->room.bytes_max = options->room_bytes_max > 0 ? options->room_bytes_max : NET_ROOM_BYTES_MAX;
    server->held_up = options->held_up;
    server->contexts = contexts;
    server->requests = mem_must_calloc(contexts, sizeof *server->requests);
    for (uint32_t i = 0; i < contexts; i++) {
        server->requests[i].server = server;
        server->requests[i].next = server->free_requests;
        server->free_requests = &server->requests[i];
    }
    net_cond_init(&server->changed);
    pthread_mutex_init(&server->lock, NULL);
    return server;
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
    struct net_server *server = server_new(options, contexts);
    int rv = nng_aio_alloc(&server->accept_aio, accepted, server);
    if (rv == 0) rv = nng_aio_alloc(&server->pause_aio, accept_paused, server);
    if (rv == 0) rv = nng_aio_alloc(&server->kick_aio, kicked, server);
    if (rv == 0) rv = server_listen(server, options->url);
    if (rv != 0) {
        server_free(server);
        return net_err(err, rv, "listen on", options->url);
    }
    accept_next(server, false);
    *server_out = server;
    return OMEN_OK;
}

uint16_t net_server_port(const struct net_server *server) { return server->port; }

/* Every request answered, and the answers taken by the kernel, or by nobody within NET_STOP_FLUSH_MS. */
static void server_drain(struct net_server *server)
{
    pthread_mutex_lock(&server->lock);
    while (server->serving > 0) pthread_cond_wait(&server->changed, &server->lock);
    struct timespec until = net_cond_deadline(NET_STOP_FLUSH_MS);
    while (server->sending > 0 && pthread_cond_timedwait(&server->changed, &server->lock, &until) == 0) {}
    nng_time last_reply_ms = server->last_reply_ms;
    pthread_mutex_unlock(&server->lock);
    if (last_reply_ms == 0) return;
    nng_time since_ms = nng_clock() - last_reply_ms;
    if (since_ms < NET_STOP_LINGER_MS) nng_msleep((nng_duration)(NET_STOP_LINGER_MS - since_ms));
}

void net_server_stop(struct net_server *server)
{
    pthread_mutex_lock(&server->lock);
    server->stopping = true;
    pthread_mutex_unlock(&server->lock);
    nng_stream_listener_close(server->listener);
    nng_aio_cancel(server->pause_aio);
    pthread_mutex_lock(&server->lock);
    while (server->accepting) pthread_cond_wait(&server->changed, &server->lock);
    struct peer *peers = server->peers; /* no more are made from here on */
    pthread_mutex_unlock(&server->lock);
    server_drain(server);
    for (struct peer *peer = peers; peer != NULL; peer = peer->next) net_conn_close(&peer->conn, 0);
    pthread_mutex_lock(&server->lock);
    /* A reply to a peer that is gone may still be on its way through net_reply. */
    while (server->open > 0 || server->kicking || server->sending > 0)
        pthread_cond_wait(&server->changed, &server->lock);
    pthread_mutex_unlock(&server->lock);
    server_free(server);
}
