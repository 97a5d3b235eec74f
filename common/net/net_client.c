/* Client side of request/reply: one connection per endpoint (net_conn.h), kept up, and the calls over it
 * (net_call.c).
 *
 *   IDLE -> DIALING -> OPEN (greeting, then connected) -> PAUSE (10-100 ms) -> DIALING -> ...
 *
 * Nothing is ever sent twice: a connection that breaks takes what was given to it along.
 *
 * Threads: callbacks on nng's task threads. `lock` guards calls and link; it is held over the start of an operation
 * of nng's, none of which calls back before it returns, and not over events or `done`. */
#include "common/net/net.h"

#include "common/check.h"
#include "common/net/net_client_impl.h"

static struct net_client *client_of(struct net_conn *conn)
{
    return (struct net_client *)((char *)conn - offsetof(struct net_client, conn));
}

/* ---- the link -------------------------------------------------------------------------------------------------- */

/* Under the lock: the end of what the link was in, and the next thing to do. */
static void link_next(struct net_client *client, enum link_state next)
{
    client->link = client->closing ? LINK_IDLE : next;
    if (client->link == LINK_DIALING) nng_stream_dialer_dial(client->dialer, client->dial_aio);
    if (client->link == LINK_PAUSE) {
        nng_sleep_aio((nng_duration)client->pause_ms, client->pause_aio);
        client->pause_ms = client->pause_ms * 2 < NET_RECONNECT_MAX_MS ? client->pause_ms * 2
                                                                       : NET_RECONNECT_MAX_MS;
    }
    if (client->link == LINK_IDLE) pthread_cond_signal(&client->changed);
}

static void paused(void *arg)
{
    struct net_client *client = arg;
    pthread_mutex_lock(&client->lock);
    link_next(client, LINK_DIALING);
    pthread_mutex_unlock(&client->lock);
}

static void dialed(void *arg)
{
    struct net_client *client = arg;
    nng_stream *stream = nng_aio_result(client->dial_aio) == 0 ? nng_aio_get_output(client->dial_aio, 0)
                                                               : NULL;
    pthread_mutex_lock(&client->lock);
    if (stream != NULL && client->closing) {
        nng_stream_close(stream);
        nng_stream_free(stream);
        stream = NULL;
    }
    bool open = stream != NULL && net_conn_open(&client->conn, stream);
    link_next(client, open ? LINK_OPEN : LINK_PAUSE);
    pthread_mutex_unlock(&client->lock);
}

/* ---- events of the connection ---------------------------------------------------------------------------------- */

static void opened(struct net_conn *conn) { calls_opened(client_of(conn), conn->generation); }

static bool message(struct net_conn *conn, uint64_t generation, struct net_frame *frame, void *reserved)
{
    return calls_reply(client_of(conn), frame);
}

static void left(struct net_conn *conn, struct net_frame *frame, enum net_left how)
{
    uint32_t id = (uint32_t)frame->tag;
    mem_free(frame);
    if (how == NET_LEFT_UNSENT) calls_unsent(client_of(conn), id);
}

static void ended(struct net_conn *conn, uint64_t generation)
{
    struct net_client *client = client_of(conn);
    calls_lost(client, generation);
    pthread_mutex_lock(&client->lock);
    link_next(client, LINK_PAUSE);
    pthread_mutex_unlock(&client->lock);
}

static const struct net_conn_events events = {
    .opened = opened,
    .message = message,
    .left = left,
    .ended = ended,
};

/* ---- open and close -------------------------------------------------------------------------------------------- */

/* Two frames of their own, also when optimised, for deploy/check/tsan.supp: of a caller of nng TSan sees only who
 * called it. */
static __attribute__((noinline)) void dialer_free_once(struct net_client *client)
{
    if (client->dialer != NULL) nng_stream_dialer_free(client->dialer);
    client->dialer = NULL;
}

static __attribute__((noinline)) void dialer_free(struct net_client *client)
{
    dialer_free_once(client);
    __asm__ volatile("" ::: "memory"); /* no tail call */
}

static void client_free(struct net_client *client, bool conn_made)
{
    nng_aio *aios[] = { client->dial_aio, client->pause_aio, client->timer_aio };
    for (size_t i = 0; i < 3; i++) {
        if (aios[i] != NULL) nng_aio_free(aios[i]);
    }
    if (conn_made) net_conn_fini(&client->conn);
    dialer_free(client);
    for (uint32_t i = 0; i < client->calls_count; i++) {
        pthread_cond_destroy(&client->calls[i]->ended);
        mem_free(client->calls[i]);
    }
    mem_free(client->calls);
    pthread_cond_destroy(&client->changed);
    pthread_mutex_destroy(&client->lock);
    mem_free(client);
}

static int client_dialer(struct net_client *client)
{
    int rv = nng_stream_dialer_alloc(&client->dialer, client->url);
    if (rv == 0 && strncmp(client->url, "tcp", 3) == 0) {
        (void)nng_stream_dialer_set_bool(client->dialer, NNG_OPT_TCP_NODELAY, true);
        (void)nng_stream_dialer_set_bool(client->dialer, NNG_OPT_TCP_KEEPALIVE, true);
    }
    return rv;
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
    client->conn_options = (struct net_conn_options){ .events = &events,
        .protocol = NET_PROTOCOL_REQ,
        .peer_protocol = NET_PROTOCOL_REP,
        .ipc = net_url_is_ipc(url),
        .frame_bytes_max = message_bytes_max + NET_ID_BYTES,
        .frame_ms = NET_FRAME_PAUSE_MS,
        .frame_mib_ms = NET_FRAME_MIB_MS }; /* a server may be busy for long: deadlines are the calls' */
    client->lost_ms = nng_clock();
    client->pause_ms = NET_RECONNECT_MIN_MS;
    pthread_mutex_init(&client->lock, NULL);
    net_cond_init(&client->changed);
    int rv = net_conn_init(&client->conn, &client->conn_options);
    bool conn_made = rv == 0;
    if (rv == 0) rv = nng_aio_alloc(&client->dial_aio, dialed, client);
    if (rv == 0) rv = nng_aio_alloc(&client->pause_aio, paused, client);
    if (rv == 0) rv = nng_aio_alloc(&client->timer_aio, calls_timer, client);
    if (rv == 0) rv = client_dialer(client);
    if (rv != 0) {
        client_free(client, conn_made);
        return net_err(err, rv, "connect to", url);
    }
    nng_aio_set_timeout(client->dial_aio, NET_DIAL_MS);
    pthread_mutex_lock(&client->lock);
    link_next(client, LINK_DIALING);
    pthread_mutex_unlock(&client->lock);
    *client_out = client;
    return OMEN_OK;
}

void net_client_close(struct net_client *client)
{
    pthread_mutex_lock(&client->lock);
    client->closing = true;
    pthread_mutex_unlock(&client->lock);
    calls_cancel(client); /* no further ones begin */
    nng_stream_dialer_close(client->dialer);
    nng_aio_cancel(client->pause_aio);
    net_conn_close(&client->conn, 0);
    pthread_mutex_lock(&client->lock);
    while (client->busy > 0 || client->ending > 0 || client->timer_busy || client->link != LINK_IDLE)
        pthread_cond_wait(&client->changed, &client->lock);
    pthread_mutex_unlock(&client->lock);
    client_free(client, true);
}
