/* Peers, dialing, listening and the door of the transport: see transport.h. */
#include "common/err.h"

#include <stdlib.h>
#include <string.h>

#include "common/check.h"
#include "common/log.h"
#include "consensus/transport_impl.h"

#define BACKOFF_FIRST_MS 50u
#define BACKOFF_MAX_MS 1000u
#define LISTEN_BACKLOG 64

uint64_t transport_now(const struct transport *t) { return t->options.now_ms(t->options.arg); }

/* "host:port", "[v6]:port"; the host is copied without brackets. */
static enum omen_err address_split(const char *address, char host[256], char port[8], struct err *err)
{
    const char *colon = strrchr(address, ':');
    size_t len = colon == NULL ? 0 : (size_t)(colon - address);
    const char *begin = address;
    if (len >= 2 && begin[0] == '[' && begin[len - 1] == ']') {
        begin++;
        len -= 2;
    }
    char *end = NULL;
    long number = colon == NULL ? -1 : strtol(colon + 1, &end, 10);
    if (len == 0 || len >= 256 || number < 0 || number > 65535 || end == colon + 1 || *end != '\0' ||
            strlen(colon + 1) >= 8)
        return err_set(err, OMEN_EINVAL, "address", "\"%s\" is not host:port", address);
    memcpy(host, begin, len);
    host[len] = '\0';
    strcpy(port, colon + 1);
    return OMEN_OK;
}

/* ---- peers ---- */

struct peer *peer_find(struct transport *t, uint64_t node_id)
{
    struct peer *p = t->peers;
    while (p != NULL && p->node_id != node_id) p = p->next;
    return p;
}

static struct peer *peer_get(struct transport *t, uint64_t node_id)
{
    struct peer *p = peer_find(t, node_id);
    if (p != NULL || t->peer_count == TRANSPORT_PEERS_MAX) return p;
    p = mem_must_calloc(1, sizeof *p);
    p->node_id = node_id;
    p->lookup.data = p;
    p->backoff_ms = BACKOFF_FIRST_MS;
    p->dial_ms = transport_now(t) + (node_id < t->options.node_id ? TRANSPORT_YIELD_MS : 0);
    p->next = t->peers;
    t->peers = p;
    t->peer_count++;
    return p;
}

/* Was `c` dialed by the side with the lower id? */
static bool preferred(const struct transport *t, const struct conn *c)
{
    return c->dialed == (t->options.node_id < c->node_id);
}

bool peer_opened(struct transport *t, struct conn *c)
{
    struct peer *p = peer_get(t, c->node_id);
    if (p == NULL) return false;
    if (p->dialing == c) p->dialing = NULL;
    if (p->open != NULL && preferred(t, p->open) && !preferred(t, c)) return false;
    struct conn *old = p->open;
    p->open = c;
    p->backoff_ms = BACKOFF_FIRST_MS;
    if (old != NULL) conn_close(old, NULL);
    return true;
}

void peer_closed(struct transport *t, struct conn *c)
{
    struct peer *p = peer_find(t, c->node_id);
    if (p == NULL || (p->open != c && p->dialing != c)) return;
    uint64_t now = transport_now(t);
    if (p->open == c) p->open = NULL;
    if (p->dialing == c) {
        p->dialing = NULL;
        p->backoff_ms = p->backoff_ms * 2 > BACKOFF_MAX_MS ? BACKOFF_MAX_MS : p->backoff_ms * 2;
    }
    p->dial_ms = now + (p->node_id < t->options.node_id ? TRANSPORT_YIELD_MS : p->backoff_ms);
}

static void on_lookup(uv_getaddrinfo_t *lookup, int status, struct addrinfo *found)
{
    struct peer *p = lookup->data;
    struct transport *t = lookup->loop->data;
    p->looking_up = false;
    if (status == 0 && !t->closing && !p->forgotten && p->open == NULL && p->dialing == NULL) {
        p->dialing = conn_new(t, true, p->node_id);
        conn_dial(p->dialing, found->ai_addr);
    }
    if (status == 0) uv_freeaddrinfo(found);
    p->dial_ms = transport_now(t) + BACKOFF_MAX_MS;
    transport_handle_closed(t);
}

static void peer_dial(struct transport *t, struct peer *p)
{
    struct addrinfo hints = { .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM };
    struct sockaddr_storage address;
    if (uv_ip4_addr(p->host, atoi(p->port), (struct sockaddr_in *)&address) == 0 ||
            uv_ip6_addr(p->host, atoi(p->port), (struct sockaddr_in6 *)&address) == 0) {
        p->dialing = conn_new(t, true, p->node_id);
        conn_dial(p->dialing, (struct sockaddr *)&address);
    } else if (uv_getaddrinfo(t->uv, &p->lookup, on_lookup, p->host, p->port, &hints) == 0) {
        p->looking_up = true;
    }
}

enum omen_err transport_set_peer(struct transport *t, uint64_t node_id, const char *address, struct err *err)
{
    char host[256] = "", port[8] = "";
    if (node_id == 0 || node_id == t->options.node_id)
        return err_set(err, OMEN_EINVAL, "node", "must be another node");
    if (address != NULL) {
        enum omen_err rc = address_split(address, host, port, err);
        if (rc != OMEN_OK) return rc;
    }
    struct peer *p = peer_get(t, node_id);
    if (p == NULL) return err_set(err, OMEN_ETOOBIG, "node", "limit is %u nodes", TRANSPORT_PEERS_MAX);
    bool same = strcmp(p->host, host) == 0 && strcmp(p->port, port) == 0;
    memcpy(p->host, host, sizeof host);
    memcpy(p->port, port, sizeof port);
    p->forgotten = address == NULL;
    if (same) return OMEN_OK;
    if (p->open != NULL) conn_close(p->open, "address changed");
    if (p->dialing != NULL) conn_close(p->dialing, NULL);
    return OMEN_OK;
}

bool transport_connected(struct transport *t, uint64_t node_id)
{
    const struct peer *p = peer_find(t, node_id);
    return p != NULL && p->open != NULL;
}

/* ---- listening ---- */

static void on_connection(uv_stream_t *listener, int status)
{
    struct transport *t = listener->data;
    if (status != 0 || t->closing) return;
    struct conn *c = conn_new(t, false, 0);
    if (uv_accept(listener, (uv_stream_t *)&c->tcp) != 0) {
        conn_close(c, NULL);
        return;
    }
    if (t->strangers > TRANSPORT_STRANGERS_MAX) {
        counter_add(&t->counters.refused_strangers, 1);
        conn_close(c, NULL);
        return;
    }
    conn_accepted(c);
}

static enum omen_err listen_open(struct transport *t, const char *address, struct err *err)
{
    char host[256], port[8];
    struct sockaddr_storage sa;
    enum omen_err rc = address_split(address, host, port, err);
    if (rc != OMEN_OK) return rc;
    if (uv_ip4_addr(host, atoi(port), (struct sockaddr_in *)&sa) != 0 &&
            uv_ip6_addr(host, atoi(port), (struct sockaddr_in6 *)&sa) != 0)
        return err_set(err, OMEN_EINVAL, "address", "\"%s\": give a numeric address to listen on", address);
    int rv = uv_tcp_bind(&t->listener, (struct sockaddr *)&sa, 0);
    if (rv == 0) rv = uv_listen((uv_stream_t *)&t->listener, LISTEN_BACKLOG, on_connection);
    if (rv != 0)
        return err_set(err, OMEN_EIO, "address", "cannot listen on %s: %s", address, uv_strerror(rv));
    int len = sizeof sa;
    CHECK(uv_tcp_getsockname(&t->listener, (struct sockaddr *)&sa, &len) == 0);
    t->port = ntohs(sa.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&sa)->sin6_port
                                             : ((struct sockaddr_in *)&sa)->sin_port);
    t->listening = true;
    return OMEN_OK;
}

uint16_t transport_port(const struct transport *t) { return t->port; }

/* ---- sending ---- */

static void send_now(struct transport *t, struct frame_out *frame)
{
    struct peer *p = peer_find(t, frame->node);
    if (p != NULL && p->open != NULL) {
        conn_queue(p->open, frame);
        return;
    }
    counter_add(&t->counters.frames_dropped, 1);
    frame_out_free(frame);
}

static void inbox_run(struct loop_task *task)
{
    struct transport *t = (struct transport *)((char *)task - offsetof(struct transport, inbox_task));
    pthread_mutex_lock(&t->mutex);
    struct frame_out *frame = t->inbox_head;
    t->inbox_head = NULL;
    t->inbox_tail = &t->inbox_head;
    t->inbox_posted = false;
    pthread_mutex_unlock(&t->mutex);
    while (frame != NULL) {
        struct frame_out *next = frame->next;
        send_now(t, frame);
        frame = next;
    }
}

void transport_send(struct transport *t, struct frame_out *frame)
{
    if (loop_is_current(t->options.loop)) {
        send_now(t, frame);
        return;
    }
    frame->next = NULL;
    pthread_mutex_lock(&t->mutex);
    *t->inbox_tail = frame;
    t->inbox_tail = &frame->next;
    bool post = !t->inbox_posted;
    t->inbox_posted = true;
    pthread_mutex_unlock(&t->mutex);
    if (post) loop_post(t->options.loop, &t->inbox_task);
}

static void on_prepare(uv_prepare_t *prepare)
{
    struct transport *t = prepare->data;
    for (struct peer *p = t->peers; p != NULL; p = p->next) {
        if (p->open != NULL) conn_flush(p->open);
    }
}

void transport_tick(struct transport *t)
{
    uint64_t now = transport_now(t);
    if (t->closing) return;
    struct conn *next;
    for (struct conn *c = t->conns; c != NULL; c = next) {
        next = c->next;
        conn_tick(c, now);
    }
    for (struct peer *p = t->peers; p != NULL; p = p->next) {
        bool idle = p->open == NULL && p->dialing == NULL && !p->looking_up;
        if (idle && p->port[0] != '\0' && now >= p->dial_ms) peer_dial(t, p);
    }
}

/* ---- open and close ---- */

static enum omen_err options_check(const struct transport_options *o, struct err *err)
{
    if (o->secret_len < HANDSHAKE_SECRET_BYTES_MIN || o->secret_len > HANDSHAKE_SECRET_BYTES_MAX)
        return err_set(err, OMEN_EINVAL, "secret", "must have between %u and %u bytes",
                HANDSHAKE_SECRET_BYTES_MIN, HANDSHAKE_SECRET_BYTES_MAX);
    if (o->cluster_id == 0 || o->node_id == 0)
        return err_set(err, OMEN_EINVAL, o->cluster_id == 0 ? "cluster_id" : "node_id", "must not be 0");
    return OMEN_OK;
}

enum omen_err transport_new(const struct transport_options *options, struct transport **transport_out,
        struct err *err)
{
    *transport_out = NULL;
    enum omen_err rc = options_check(options, err);
    if (rc != OMEN_OK) return rc;
    struct transport *t = mem_must_calloc(1, sizeof *t);
    t->options = *options;
    memcpy(t->secret, options->secret, options->secret_len);
    t->options.secret = t->secret;
    t->uv = loop_uv(options->loop);
    t->uv->data = t;
    t->inbox_tail = &t->inbox_head;
    t->inbox_task.run = inbox_run;
    pthread_mutex_init(&t->mutex, NULL);
    CHECK(uv_tcp_init(t->uv, &t->listener) == 0);
    CHECK(uv_prepare_init(t->uv, &t->prepare) == 0);
    CHECK(uv_prepare_start(&t->prepare, on_prepare) == 0);
    t->listener.data = t->prepare.data = t;
    *transport_out = t;
    if (options->listen != NULL) rc = listen_open(t, options->listen, err);
    return rc;
}

static uint32_t handles_count(const struct transport *t)
{
    uint32_t n = 2; /* listener, prepare */
    for (const struct conn *c = t->conns; c != NULL; c = c->next) n++;
    for (const struct peer *p = t->peers; p != NULL; p = p->next) n += p->looking_up;
    return n;
}

void transport_handle_closed(struct transport *t)
{
    if (!t->closing || --t->handles > 0) return;
    if (t->close_done != NULL) t->close_done(t->close_arg);
}

static void on_own_closed(uv_handle_t *handle) { transport_handle_closed(handle->data); }

void transport_close(struct transport *t, void (*done)(void *arg), void *arg)
{
    t->close_done = done;
    t->close_arg = arg;
    t->closing = true;
    t->handles = handles_count(t);
    struct conn *next;
    for (struct conn *c = t->conns; c != NULL; c = next) {
        next = c->next;
        if (c->state != CONN_CLOSING) conn_close(c, NULL);
    }
    for (struct peer *p = t->peers; p != NULL; p = p->next) {
        if (p->looking_up) (void)uv_cancel((uv_req_t *)&p->lookup);
    }
    uv_close((uv_handle_t *)&t->listener, on_own_closed);
    uv_close((uv_handle_t *)&t->prepare, on_own_closed);
}

void transport_free(struct transport *t)
{
    if (t == NULL) return;
    while (t->peers != NULL) {
        struct peer *p = t->peers;
        t->peers = p->next;
        mem_free(p);
    }
    while (t->inbox_head != NULL) {
        struct frame_out *frame = t->inbox_head;
        t->inbox_head = frame->next;
        frame_out_free(frame);
    }
    pthread_mutex_destroy(&t->mutex);
    memset(t->secret, 0, sizeof t->secret);
    mem_free(t);
}

static uint64_t read_counter(_Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

void transport_stats(struct transport *t, struct replica_net_stats *out)
{
    struct transport_counters *n = &t->counters;
    *out = (struct replica_net_stats){
        .connections = read_counter(&n->connections),
        .frames_in = read_counter(&n->frames_in),
        .frames_out = read_counter(&n->frames_out),
        .bytes_in = read_counter(&n->bytes_in),
        .bytes_out = read_counter(&n->bytes_out),
        .frames_dropped = read_counter(&n->frames_dropped),
        .refused_garbage = read_counter(&n->refused_garbage),
        .refused_secret = read_counter(&n->refused_secret),
        .refused_cluster = read_counter(&n->refused_cluster),
        .refused_strangers = read_counter(&n->refused_strangers),
        .refused_frames = read_counter(&n->refused_frames),
        .unsent_bytes = read_counter(&n->unsent_bytes),
        .unsent_bytes_max = read_counter(&n->unsent_bytes_max),
    };
}
