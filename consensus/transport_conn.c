/* One connection between two nodes: see transport.h for the drawing. */
#include "common/err.h"

#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/log.h"
#include "consensus/transport_impl.h"

struct conn *conn_new(struct transport *t, bool dialed, uint64_t node_id)
{
    struct conn *c = mem_must_calloc(1, sizeof *c);
    c->t = t;
    c->dialed = dialed;
    c->node_id = node_id;
    c->state = dialed ? CONN_DIALING : CONN_ACCEPTED;
    c->began_ms = c->received_ms = c->sent_ms = transport_now(t);
    c->out_tail = &c->out_head;
    CHECK(uv_tcp_init(t->uv, &c->tcp) == 0);
    c->tcp.data = c->connect.data = c->write.data = c->reply_write.data = c;
    c->next = t->conns;
    t->conns = c;
    if (!dialed) t->strangers++;
    return c;
}

/* ---- closing ---- */

static void on_closed(uv_handle_t *handle)
{
    struct conn *c = handle->data;
    struct transport *t = c->t;
    struct conn **link = &t->conns;
    while (*link != c) link = &(*link)->next;
    *link = c->next;
    while (c->out_head != NULL) {
        struct frame_out *frame = c->out_head;
        c->out_head = frame->next;
        frame_out_free(frame);
    }
    mem_free(c->body);
    mem_free(c);
    transport_handle_closed(t);
}

void conn_close(struct conn *c, const char *why)
{
    if (c->state == CONN_CLOSING) return;
    if (why != NULL) {
        LOG_INFO("raft.connection_closed", "node=%llu dialed=%d reason=\"%s\"",
                (unsigned long long)c->node_id, c->dialed, why);
    }
    if (c->state == CONN_OPEN)
        atomic_fetch_sub_explicit(&c->t->counters.connections, 1, memory_order_relaxed);
    if (!c->dialed && c->state != CONN_OPEN) c->t->strangers--;
    c->state = CONN_CLOSING;
    peer_closed(c->t, c);
    if (c->polite) return; /* on_reply_written closes */
    uv_close((uv_handle_t *)&c->tcp, on_closed);
}

/* ---- handshake out ---- */

static void staging_take(struct conn *c);

static void on_reply_written(uv_write_t *write, int status)
{
    struct conn *c = write->data;
    c->replying = false;
    if (c->polite && !uv_is_closing((uv_handle_t *)&c->tcp)) uv_close((uv_handle_t *)&c->tcp, on_closed);
    if (c->state == CONN_CLOSING) return;
    if (status != 0)
        conn_close(c, "cannot write");
    else
        staging_take(c);
}

static void reply_write(struct conn *c, uint32_t len)
{
    uv_buf_t buf = uv_buf_init((char *)c->reply, len);
    CHECK(!c->replying);
    c->replying = true;
    if (uv_write(&c->reply_write, (uv_stream_t *)&c->tcp, &buf, 1, on_reply_written) != 0) {
        c->polite = false;
        conn_close(c, "cannot write");
    }
}

static void reply_send(struct conn *c, enum handshake_kind kind, enum handshake_code code)
{
    struct handshake_reply reply = { .kind = kind, .code = code, .node = c->t->options.node_id };
    const struct transport_options *o = &c->t->options;
    if (kind == HANDSHAKE_CHALLENGE)
        memcpy(reply.value, c->handshake.acceptor_nonce, sizeof reply.value);
    else if (code == HANDSHAKE_OK)
        handshake_mac(&c->handshake, kind == HANDSHAKE_PROOF, c->t->secret, o->secret_len, reply.value);
    handshake_reply_encode(&reply, c->reply);
    c->polite = code != HANDSHAKE_OK;
    reply_write(c, HANDSHAKE_REPLY_BYTES);
}

static void refuse(struct conn *c, enum handshake_kind kind, enum handshake_code code)
{
    LOG_WARN("raft.refused", "node=%llu reason=\"%s\"", (unsigned long long)c->node_id,
            handshake_code_text(code));
    reply_send(c, kind, code);
    conn_close(c, NULL);
}

static void garbage(struct conn *c, const char *why)
{
    counter_add(&c->t->counters.refused_garbage, 1);
    conn_close(c, why);
}

/* ---- handshake in; each returns how many bytes it took, 0 = not enough or closed ---- */

static void conn_opened(struct conn *c)
{
    if (!c->dialed) c->t->strangers--;
    c->state = CONN_OPEN;
    counter_add(&c->t->counters.connections, 1);
    if (!peer_opened(c->t, c)) {
        conn_close(c, NULL);
        return;
    }
    LOG_INFO("raft.connected", "node=%llu dialed=%d", (unsigned long long)c->node_id, c->dialed);
}

static uint32_t hello_take(struct conn *c)
{
    const struct transport_options *o = &c->t->options;
    if (c->staged < HANDSHAKE_HELLO_BYTES) return 0;
    enum omen_err rc = handshake_hello_decode(c->staging, &c->handshake);
    if (rc == OMEN_EPROTO) {
        garbage(c, "not a handshake");
        return 0;
    }
    c->node_id = c->handshake.dialer;
    enum handshake_code code = HANDSHAKE_OK;
    if (rc == OMEN_EVERSION)
        code = HANDSHAKE_WRONG_VERSION;
    else if (c->handshake.cluster != o->cluster_id)
        code = HANDSHAKE_WRONG_CLUSTER;
    else if (c->handshake.acceptor != o->node_id || c->handshake.dialer == o->node_id)
        code = HANDSHAKE_WRONG_NODE;
    if (code != HANDSHAKE_OK) {
        counter_add(code == HANDSHAKE_WRONG_CLUSTER ? &c->t->counters.refused_cluster
                                                    : &c->t->counters.refused_garbage,
                1);
        refuse(c, HANDSHAKE_CHALLENGE, code);
        return 0;
    }
    handshake_nonce(c->handshake.acceptor_nonce);
    c->state = CONN_CHALLENGED;
    reply_send(c, HANDSHAKE_CHALLENGE, HANDSHAKE_OK);
    return HANDSHAKE_HELLO_BYTES;
}

/* Reads a reply and looks at its code; false: closed. */
static bool reply_take(struct conn *c, enum handshake_kind kind, struct handshake_reply *reply)
{
    if (handshake_reply_decode(c->staging, kind, reply) != OMEN_OK) {
        garbage(c, "not a handshake");
        return false;
    }
    if (reply->code != HANDSHAKE_OK) {
        conn_close(c, handshake_code_text(reply->code));
        return false;
    }
    return true;
}

static bool mac_good(const struct conn *c, bool of_dialer, const uint8_t mac[HANDSHAKE_MAC_BYTES])
{
    uint8_t want[HANDSHAKE_MAC_BYTES];
    handshake_mac(&c->handshake, of_dialer, c->t->secret, c->t->options.secret_len, want);
    return handshake_mac_equal(want, mac);
}

static uint32_t reply_step(struct conn *c)
{
    struct handshake_reply reply;
    if (c->staged < HANDSHAKE_REPLY_BYTES) return 0;
    switch (c->state) {
    case CONN_HELLO_SENT:
        if (!reply_take(c, HANDSHAKE_CHALLENGE, &reply)) return 0;
        if (reply.node != c->node_id) {
            conn_close(c, handshake_code_text(HANDSHAKE_WRONG_NODE));
            return 0;
        }
        memcpy(c->handshake.acceptor_nonce, reply.value, HANDSHAKE_NONCE_BYTES);
        c->state = CONN_PROOF_SENT;
        reply_send(c, HANDSHAKE_PROOF, HANDSHAKE_OK);
        break;
    case CONN_CHALLENGED:
        if (!reply_take(c, HANDSHAKE_PROOF, &reply)) return 0;
        if (!mac_good(c, true, reply.value)) {
            counter_add(&c->t->counters.refused_secret, 1);
            refuse(c, HANDSHAKE_ACCEPT, HANDSHAKE_WRONG_SECRET);
            return 0;
        }
        reply_send(c, HANDSHAKE_ACCEPT, HANDSHAKE_OK);
        if (c->state != CONN_CLOSING) conn_opened(c);
        break;
    case CONN_PROOF_SENT:
        if (!reply_take(c, HANDSHAKE_ACCEPT, &reply)) return 0;
        if (!mac_good(c, false, reply.value)) {
            counter_add(&c->t->counters.refused_secret, 1);
            conn_close(c, "the other node does not know the secret");
            return 0;
        }
        conn_opened(c);
        break;
    case CONN_DIALING:
    case CONN_ACCEPTED:
    case CONN_OPEN:
    case CONN_CLOSING: return 0;
    }
    return HANDSHAKE_REPLY_BYTES;
}

/* ---- frames in ---- */

static void bad_frame(struct conn *c, const struct err *err)
{
    counter_add(&c->t->counters.refused_frames, 1);
    conn_close(c, err->message);
}

/* The body is whole. */
static void frame_finish(struct conn *c)
{
    struct frame *frame;
    struct err err = { 0 };
    uint8_t *body = c->body;
    c->body = NULL;
    enum omen_err rc = frame_decode(&c->header, body, &frame, &err);
    if (rc != OMEN_OK) {
        bad_frame(c, &err);
        return;
    }
    counter_add(&c->t->counters.frames_in, 1);
    if (c->header.type == FRAME_PING)
        frame_free(frame);
    else
        c->t->options.on_frame(c->t->options.arg, c->node_id, frame);
}

/* Room for twice what has come of the body, or for all of it. */
static void body_grow(struct conn *c)
{
    uint64_t cap = c->body_cap * 2 < c->header.body_bytes ? c->body_cap * 2 : c->header.body_bytes;
    uint8_t *body = mem_realloc(c->body, cap + 1);
    if (body == NULL) {
        conn_close(c, "no memory for a frame");
        return;
    }
    c->body = body;
    c->body_cap = cap;
}

/* A header, and what is staged of its body; the rest is read in place, into room that grows as it comes: what is
 * announced costs CONN_BODY_FIRST_BYTES. */
static uint32_t frame_begin(struct conn *c, uint32_t at)
{
    struct err err = { 0 };
    if (c->staged - at < FRAME_HEADER_BYTES) return 0;
    if (frame_header_decode(c->staging + at, &c->header, &err) != OMEN_OK) {
        bad_frame(c, &err);
        return 0;
    }
    c->body_cap = c->header.body_bytes < CONN_BODY_FIRST_BYTES ? c->header.body_bytes : CONN_BODY_FIRST_BYTES;
    c->body = mem_alloc(c->body_cap + 1);
    if (c->body == NULL) {
        conn_close(c, "no memory for a frame");
        return 0;
    }
    uint64_t have = c->staged - at - FRAME_HEADER_BYTES;
    c->body_read = have < c->header.body_bytes ? have : c->header.body_bytes;
    memcpy(c->body, c->staging + at + FRAME_HEADER_BYTES, c->body_read);
    uint32_t used = FRAME_HEADER_BYTES + (uint32_t)c->body_read;
    if (c->body_read == c->header.body_bytes) frame_finish(c);
    return used;
}

/* Understands as much as is staged; what came before it was asked for waits until our message is out. */
static void staging_take(struct conn *c)
{
    uint32_t at = 0;
    while (c->state != CONN_CLOSING && c->body == NULL && !c->replying) {
        uint32_t used;
        if (c->state == CONN_OPEN) {
            used = frame_begin(c, at);
        } else {
            if (at > 0) {
                memmove(c->staging, c->staging + at, c->staged - at);
                c->staged -= at;
                at = 0;
            }
            used = c->state == CONN_ACCEPTED ? hello_take(c) : reply_step(c);
        }
        if (used == 0) break;
        at += used;
    }
    if (at > 0 && at < c->staged) memmove(c->staging, c->staging + at, c->staged - at);
    c->staged -= at;
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    struct conn *c = handle->data;
    (void)suggested;
    if (c->body != NULL)
        *buf = uv_buf_init((char *)c->body + c->body_read, (unsigned)(c->body_cap - c->body_read));
    else
        *buf = uv_buf_init((char *)c->staging + c->staged, CONN_STAGING_BYTES - c->staged);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct conn *c = stream->data;
    (void)buf;
    if (c->state == CONN_CLOSING || n == 0) return;
    if (n < 0) {
        conn_close(c, n == UV_EOF ? "closed by the other node" : uv_strerror((int)n));
        return;
    }
    c->received_ms = transport_now(c->t);
    counter_add(&c->t->counters.bytes_in, (uint64_t)n);
    if (c->body != NULL) {
        c->body_read += (uint64_t)n;
        if (c->body_read == c->header.body_bytes)
            frame_finish(c);
        else if (c->body_read == c->body_cap)
            body_grow(c);
        return;
    }
    c->staged += (uint32_t)n;
    staging_take(c);
}

/* ---- beginning ---- */

static bool conn_begin(struct conn *c)
{
    uv_os_fd_t fd;
    unsigned timeout_ms = TRANSPORT_USER_TIMEOUT_MS;
    (void)uv_tcp_nodelay(&c->tcp, 1);
    if (uv_fileno((uv_handle_t *)&c->tcp, &fd) != 0 ||
            setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout_ms, sizeof timeout_ms) != 0 ||
            uv_read_start((uv_stream_t *)&c->tcp, on_alloc, on_read) != 0) {
        conn_close(c, "cannot set up a connection");
        return false;
    }
    return true;
}

static void on_connect(uv_connect_t *connect, int status)
{
    struct conn *c = connect->data;
    if (c->state == CONN_CLOSING) return;
    if (status != 0) {
        conn_close(c, NULL); /* tried again; whether it is missed the peers' states tell */
        return;
    }
    if (!conn_begin(c)) return;
    c->handshake.cluster = c->t->options.cluster_id;
    c->handshake.dialer = c->t->options.node_id;
    c->handshake.acceptor = c->node_id;
    handshake_nonce(c->handshake.dialer_nonce);
    handshake_hello_encode(&c->handshake, c->reply);
    c->state = CONN_HELLO_SENT;
    reply_write(c, HANDSHAKE_HELLO_BYTES);
}

void conn_dial(struct conn *c, const struct sockaddr *address)
{
    if (uv_tcp_connect(&c->connect, &c->tcp, address, on_connect) != 0) conn_close(c, "cannot dial");
}

void conn_accepted(struct conn *c) { (void)conn_begin(c); }

/* ---- frames out ---- */

static void unsent_note(struct conn *c)
{
    struct transport_counters *n = &c->t->counters;
    atomic_store_explicit(&n->unsent_bytes, c->unsent_bytes, memory_order_relaxed);
    if (c->unsent_bytes > atomic_load_explicit(&n->unsent_bytes_max, memory_order_relaxed))
        atomic_store_explicit(&n->unsent_bytes_max, c->unsent_bytes, memory_order_relaxed);
}

void conn_queue(struct conn *c, struct frame_out *frame)
{
    uint64_t limit = TRANSPORT_UNSENT_BYTES_MAX + (frame->owner_count == 0 ? TRANSPORT_UNSENT_SMALL_MAX : 0u);
    bool fits = c->unsent_bytes + frame->bytes <= limit || (c->unsent_bytes == 0 && frame->owner_count > 0);
    if (c->state != CONN_OPEN || !fits) {
        counter_add(&c->t->counters.frames_dropped, 1);
        frame_out_free(frame);
        return;
    }
    frame->next = NULL;
    *c->out_tail = frame;
    c->out_tail = &frame->next;
    c->unsent_bytes += frame->bytes;
    unsent_note(c);
}

/* `n` more bytes are out. */
static void out_advance(struct conn *c, uint64_t n)
{
    c->unsent_bytes -= n;
    c->sent_ms = transport_now(c->t);
    counter_add(&c->t->counters.bytes_out, n);
    n += c->out_offset;
    while (c->out_head != NULL && n >= c->out_head->bytes) {
        struct frame_out *frame = c->out_head;
        n -= frame->bytes;
        c->out_head = frame->next;
        if (c->out_head == NULL) c->out_tail = &c->out_head;
        counter_add(&c->t->counters.frames_out, 1);
        frame_out_free(frame);
    }
    c->out_offset = n;
    unsent_note(c);
}

static unsigned out_gather(const struct conn *c, uv_buf_t bufs[CONN_WRITE_PIECES], uint64_t *bytes_out)
{
    uint64_t skip = c->out_offset;
    unsigned n = 0;
    *bytes_out = 0;
    for (const struct frame_out *f = c->out_head; f != NULL; f = f->next) {
        for (uint32_t i = 0; i < f->piece_count; i++) {
            const struct frame_piece *p = &f->pieces[i];
            if (skip >= p->len) {
                skip -= p->len;
                continue;
            }
            if (n == CONN_WRITE_PIECES) return n;
            bufs[n++] = uv_buf_init((char *)(uintptr_t)p->data + skip, (unsigned)(p->len - skip));
            *bytes_out += p->len - skip;
            skip = 0;
        }
    }
    return n;
}

static void on_written(uv_write_t *write, int status)
{
    struct conn *c = write->data;
    c->writing = false;
    if (c->state != CONN_OPEN) return;
    if (status != 0) {
        conn_close(c, uv_strerror(status));
        return;
    }
    out_advance(c, c->writing_bytes);
    conn_flush(c);
}

/* At once as long as the socket takes it; then one write is left with libuv, so that what is unsent is ours to
 * count. */
void conn_flush(struct conn *c)
{
    uv_buf_t bufs[CONN_WRITE_PIECES];
    while (c->state == CONN_OPEN && !c->writing && c->out_head != NULL) {
        uint64_t bytes;
        unsigned n = out_gather(c, bufs, &bytes);
        int rv = uv_try_write((uv_stream_t *)&c->tcp, bufs, n);
        if (rv >= 0) {
            out_advance(c, (uint64_t)rv);
            continue;
        }
        if (rv == UV_EAGAIN) {
            rv = uv_write(&c->write, (uv_stream_t *)&c->tcp, bufs, n, on_written);
            c->writing = rv == 0;
            c->writing_bytes = bytes;
        }
        if (rv < 0) conn_close(c, uv_strerror(rv));
    }
}

void conn_tick(struct conn *c, uint64_t now_ms)
{
    if (c->state == CONN_CLOSING) return;
    if (c->state != CONN_OPEN) {
        if (now_ms - c->began_ms > TRANSPORT_HANDSHAKE_MS)
            conn_close(c, c->dialed ? NULL : "no handshake in time");
        return;
    }
    if (now_ms - c->received_ms > TRANSPORT_SILENT_MS) {
        conn_close(c, "silent for too long");
        return;
    }
    if (now_ms - c->sent_ms >= TRANSPORT_PING_MS && c->out_head == NULL) {
        struct frame_parts parts = { .type = FRAME_PING };
        conn_queue(c, frame_encode(&parts));
    }
}
