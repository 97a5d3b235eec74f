/* Frames over a stream: see net_conn.h. Two things to hold on to in here. An operation is begun only under the lock,
 * on a stream that is not closing, because nng leaves one begun later without an end. And the thread that ends the
 * last operation or event of a closing connection (conn_unlock) is the one that takes it apart. */
#include "common/net/net_conn.h"

#include <assert.h>

#include "common/check.h"

#define GREETING_BYTES 8
#define ASSEMBLE_STEP_BYTES                                                                                  \
    (1u << 20) /* what is announced costs NET_ROOM_FREE_BYTES, then this, then twice it, .. */

static_assert(NET_STAGING_BYTES < NET_ROOM_FREE_BYTES, "a frame that has just begun needs no more room");

struct net_frame *net_frame_new(size_t content_bytes)
{
    struct net_frame *frame = mem_alloc(sizeof *frame + NET_CONTENT_AT + content_bytes);
    if (frame == NULL) return NULL;
    *frame = (struct net_frame){ .len = content_bytes, .cap = content_bytes };
    return frame;
}

/* ---- the end --------------------------------------------------------------------------------------------------- */

static void conn_begin_end(struct net_conn *conn)
{
    if (conn->closing) return;
    conn->closing = true;
    conn->parked = false;
    nng_stream_close(conn->stream); /* ends what is under way, later, on other threads */
}

/* Releases the lock; takes the connection apart when it is closing and nobody is in it any more. */
static void conn_unlock(struct net_conn *conn)
{
    if (!conn->closing || conn->rx_busy || conn->tx_busy || conn->events > 0) {
        pthread_mutex_unlock(&conn->lock);
        return;
    }
    nng_stream *stream = conn->stream;
    struct net_frame *queue = conn->queue;
    uint64_t generation = conn->generation;
    mem_free(conn->incoming);
    conn->incoming = conn->queue = NULL;
    conn->queue_end = &conn->queue;
    conn->stream = NULL;
    conn->closing = false;
    pthread_mutex_unlock(&conn->lock);
    const struct net_conn_events *events = conn->options->events;
    nng_stream_free(stream);
    while (queue != NULL) {
        struct net_frame *frame = queue;
        queue = frame->next;
        if (frame->greeting)
            mem_free(frame);
        else
            events->left(conn, frame, frame->started ? NET_LEFT_MAYBE : NET_LEFT_UNSENT);
    }
    events->ended(conn, generation); /* the connection may be in its next life, or gone, from here on */
}

/* ---- sending --------------------------------------------------------------------------------------------------- */

static size_t prefix_bytes(const struct net_conn *conn, const struct net_frame *frame)
{
    return frame->greeting ? 0 : conn->options->ipc ? 9 : 8;
}

/* How long the kernel may still take for the first frame. A peer that sips gets no more time than one that takes
 * nothing. */
static nng_duration head_left_ms(const struct net_conn *conn)
{
    const struct net_conn_options *o = conn->options;
    if (o->send_timeout_ms == 0 || conn->queue == NULL) return NNG_DURATION_INFINITE;
    uint64_t most_ms = o->send_timeout_ms + (uint64_t)o->send_mib_ms * (conn->queue->len >> 20);
    uint64_t spent_ms = nng_clock() - conn->head_since_ms;
    return spent_ms < most_ms ? (nng_duration)(most_ms - spent_ms) : NNG_DURATION_ZERO;
}

/* Hands the first frames of the queue to the kernel. Under the lock, nothing in flight, not closing. */
static void conn_send_next(struct net_conn *conn)
{
    nng_iov iov[NET_SEND_FRAMES];
    uint32_t count = 0;
    if (conn->head_sent == 0) conn->head_since_ms = nng_clock();
    nng_duration left_ms = head_left_ms(conn);
    if (left_ms == NNG_DURATION_ZERO) { /* which nng would take for no operation at all */
        conn_begin_end(conn);
        return;
    }
    for (struct net_frame *f = conn->queue; f != NULL && count < NET_SEND_FRAMES; f = f->next) {
        size_t prefix = prefix_bytes(conn, f), gone = count == 0 ? conn->head_sent : 0;
        iov[count].iov_buf = net_frame_content(f) - prefix + gone;
        iov[count++].iov_len = prefix + f->len - gone;
        f->started = true;
    }
    if (count == 0) return;
    CHECK(nng_aio_set_iov(conn->tx, count, iov) == 0);
    nng_aio_set_timeout(conn->tx, left_ms);
    conn->flying = count;
    conn->tx_busy = true;
    nng_stream_send(conn->stream, conn->tx);
}

/* Takes what the kernel has taken off the queue. Returns the frames that are through. */
static struct net_frame *conn_take_sent(struct net_conn *conn, size_t bytes)
{
    struct net_frame *sent = NULL, **sent_end = &sent;
    bytes += conn->head_sent;
    while (conn->flying > 0 && bytes >= prefix_bytes(conn, conn->queue) + conn->queue->len) {
        struct net_frame *frame = conn->queue;
        bytes -= prefix_bytes(conn, frame) + frame->len;
        conn->queue = frame->next;
        conn->flying--;
        frame->next = NULL;
        conn->head_since_ms = nng_clock();
        *sent_end = frame;
        sent_end = &frame->next;
    }
    if (conn->queue == NULL) conn->queue_end = &conn->queue;
    conn->head_sent = bytes;
    struct net_frame *f = conn->queue;
    for (uint32_t i = 0; i < conn->flying; i++, f = f->next) f->started = i == 0 && bytes > 0;
    conn->flying = 0;
    return sent;
}

static void conn_sent(void *arg)
{
    struct net_conn *conn = arg;
    pthread_mutex_lock(&conn->lock);
    struct net_frame *sent = NULL;
    conn->tx_busy = false;
    if (nng_aio_result(conn->tx) != 0) {
        conn_begin_end(conn);
    } else {
        sent = conn_take_sent(conn, nng_aio_count(conn->tx));
        if (!conn->closing) conn_send_next(conn);
    }
    conn->events++;
    pthread_mutex_unlock(&conn->lock);
    while (sent != NULL) {
        struct net_frame *frame = sent;
        sent = frame->next;
        if (frame->greeting)
            mem_free(frame);
        else
            conn->options->events->left(conn, frame, NET_LEFT_SENT);
    }
    pthread_mutex_lock(&conn->lock);
    conn->events--;
    conn_unlock(conn);
}

bool net_conn_send(struct net_conn *conn, uint64_t generation, struct net_frame *frame)
{
    CHECK(!frame->greeting);
    uint8_t *content = net_frame_content(frame);
    store_u64_be(content - 8, frame->len);
    content[-9] = 1;
    frame->next = NULL;
    frame->started = false;
    pthread_mutex_lock(&conn->lock);
    bool open = conn->stream != NULL && !conn->closing && conn->generation == generation;
    if (open) {
        *conn->queue_end = frame;
        conn->queue_end = &frame->next;
        if (!conn->tx_busy) conn_send_next(conn);
    }
    pthread_mutex_unlock(&conn->lock);
    return open;
}

struct net_frame *net_conn_withdraw(struct net_conn *conn, uint64_t generation, uint64_t tag)
{
    struct net_frame *found = NULL;
    pthread_mutex_lock(&conn->lock);
    if (conn->stream != NULL && conn->generation == generation) {
        struct net_frame **at = &conn->queue;
        while (*at != NULL && ((*at)->greeting || (*at)->tag != tag)) at = &(*at)->next;
        if (*at != NULL && !(*at)->started) {
            found = *at;
            *at = found->next;
            if (conn->queue_end == &found->next) conn->queue_end = at;
        }
    }
    pthread_mutex_unlock(&conn->lock);
    return found;
}

/* ---- receiving ------------------------------------------------------------------------------------------------- */

/* Between frames a peer may be silent for ever, inside of one it may not: neither for long at a time, nor byte by byte,
 * since what it has begun takes room. */
static nng_duration read_timeout_ms(const struct net_conn *conn)
{
    if (!conn->greeted) return NET_GREETING_MS;
    if (conn->incoming == NULL) return NNG_DURATION_INFINITE;
    uint64_t ms = conn->incoming_left_ms < conn->options->frame_ms ? conn->incoming_left_ms
                                                                   : conn->options->frame_ms;
    return ms == 0 ? 1 : (nng_duration)ms; /* nng takes 0 for no operation at all */
}

/* Reads on: into the frame being assembled, and what comes after it into the staging. Under the lock, with rx_busy.
 * */
static void conn_read(struct net_conn *conn)
{
    nng_iov iov[2];
    uint32_t count = 0;
    if (conn->incoming != NULL) {
        struct net_frame *f = conn->incoming;
        iov[count].iov_buf = net_frame_content(f) + f->len;
        iov[count++].iov_len = f->cap - f->len;
    }
    if (conn->staged_at > 0) {
        memmove(conn->staging, conn->staging + conn->staged_at, conn->staged_len);
        conn->staged_at = 0;
    }
    /* While a frame grows by doubling, the bytes after its room are still its own. */
    if (conn->incoming == NULL || conn->incoming->cap == conn->incoming_bytes) {
        iov[count].iov_buf = conn->staging + conn->staged_len;
        iov[count++].iov_len = NET_STAGING_BYTES - conn->staged_len;
    }
    CHECK(nng_aio_set_iov(conn->rx, count, iov) == 0);
    nng_aio_set_timeout(conn->rx, read_timeout_ms(conn));
    conn->read_ms = nng_clock();
    nng_stream_recv(conn->stream, conn->rx);
}

/* So long it took to come, whatever it was. */
static void read_ended(struct net_conn *conn)
{
    uint64_t spent_ms = nng_clock() - conn->read_ms;
    conn->incoming_left_ms -= spent_ms < conn->incoming_left_ms ? spent_ms : conn->incoming_left_ms;
}

static const uint8_t *staged(const struct net_conn *conn) { return conn->staging + conn->staged_at; }

static void staged_skip(struct net_conn *conn, size_t bytes)
{
    conn->staged_at += bytes;
    conn->staged_len -= bytes;
}

enum parsed { PARSED_MORE, PARSED_GREETING, PARSED_FRAME, PARSED_NO_ROOM, PARSED_BAD };

static enum parsed parse_greeting(struct net_conn *conn)
{
    if (conn->staged_len < GREETING_BYTES) return PARSED_MORE;
    const uint8_t expected[GREETING_BYTES] = { 0, 'S', 'P', 0, 0, conn->options->peer_protocol, 0, 0 };
    if (memcmp(staged(conn), expected, sizeof expected) != 0) return PARSED_BAD;
    staged_skip(conn, GREETING_BYTES);
    conn->greeted = true;
    return PARSED_GREETING;
}

/* The length that stands first in the staging, when it is there whole. */
static enum parsed parse_length(const struct net_conn *conn, size_t *prefix_out, uint64_t *bytes_out)
{
    size_t prefix = *prefix_out = conn->options->ipc ? 9 : 8;
    if (conn->staged_len < prefix) return PARSED_MORE;
    if (conn->options->ipc && staged(conn)[0] != 1) return PARSED_BAD;
    *bytes_out = load_u64_be(staged(conn) + prefix - 8);
    return *bytes_out > conn->options->frame_bytes_max ? PARSED_BAD : PARSED_FRAME;
}

/* Room for the rest of the frame, or for twice as much as is there. PARSED_MORE when there is. */
static enum parsed incoming_grow(struct net_conn *conn)
{
    const struct net_conn_events *events = conn->options->events;
    struct net_frame *f = conn->incoming;
    size_t cap = f->cap < ASSEMBLE_STEP_BYTES ? ASSEMBLE_STEP_BYTES : f->cap * 2;
    if (cap > conn->incoming_bytes) cap = conn->incoming_bytes;
    if (events->room != NULL && !events->room(conn, cap)) return PARSED_NO_ROOM;
    f = mem_realloc(f, sizeof *f + NET_CONTENT_AT + cap);
    if (f == NULL) return PARSED_BAD;
    f->cap = cap;
    conn->incoming = f;
    return PARSED_MORE;
}

static bool incoming_begin(struct net_conn *conn, size_t bytes)
{
    const struct net_conn_options *o = conn->options;
    conn->incoming = net_frame_new(bytes < NET_ROOM_FREE_BYTES ? bytes : NET_ROOM_FREE_BYTES);
    if (conn->incoming == NULL) return false;
    conn->incoming->len = 0;
    conn->incoming_bytes = bytes;
    conn->incoming_left_ms = o->frame_ms + (uint64_t)o->frame_mib_ms * (bytes >> 20);
    return true;
}

/* Takes from the staging what belongs to the frame being assembled, or begins one. */
static enum parsed parse_frame(struct net_conn *conn)
{
    if (conn->incoming == NULL) {
        size_t prefix;
        uint64_t bytes = 0;
        enum parsed length = parse_length(conn, &prefix, &bytes);
        if (length != PARSED_FRAME) return length;
        staged_skip(conn, prefix);
        if (!incoming_begin(conn, bytes)) return PARSED_BAD;
    }
    struct net_frame *f = conn->incoming;
    size_t take = f->cap - f->len < conn->staged_len ? f->cap - f->len : conn->staged_len;
    memcpy(net_frame_content(f) + f->len, staged(conn), take);
    staged_skip(conn, take);
    f->len += take;
    if (f->len == conn->incoming_bytes) return PARSED_FRAME;
    enum parsed room = f->len == f->cap ? incoming_grow(conn) : PARSED_MORE;
    if (room != PARSED_MORE) return room;
    return conn->staged_len > 0 ? parse_frame(conn) : PARSED_MORE;
}

/* Hands one frame out. When no further one is there already, reading goes on before the receiver sees it, so that the
 * frames of one connection are worked on by several threads; returns false when reading is in other hands, or over.
 * */
static bool conn_hand_out(struct net_conn *conn, void *reserved)
{
    struct net_frame *frame = conn->incoming;
    const struct net_conn_events *events = conn->options->events;
    uint64_t generation = conn->generation;
    conn->incoming = NULL;
    if (frame->cap > NET_ROOM_FREE_BYTES && events->room != NULL) (void)events->room(conn, 0);
    enum parsed next = parse_frame(
            conn); /* before the next read: the staging may be full of the next one's beginning */
    CHECK(next != PARSED_NO_ROOM);
    if (next == PARSED_MORE) conn_read(conn);
    if (next == PARSED_BAD) {
        conn_begin_end(conn);
        conn->rx_busy = false;
    }
    conn->events++;
    pthread_mutex_unlock(&conn->lock);
    bool sense = events->message(conn, generation, frame, reserved);
    pthread_mutex_lock(&conn->lock);
    conn->events--;
    if (!sense) conn_begin_end(conn);
    return next == PARSED_FRAME;
}

/* Works through what was read. Called under the lock with rx_busy, which is given on or up; releases the lock. */
static void conn_pump(struct net_conn *conn)
{
    const struct net_conn_events *events = conn->options->events;
    while (!conn->closing) {
        void *reserved = NULL;
        enum parsed parsed = conn->greeted ? parse_frame(conn) : parse_greeting(conn);
        if (parsed == PARSED_MORE) {
            conn_read(conn);
            pthread_mutex_unlock(&conn->lock);
            return;
        }
        if (parsed == PARSED_NO_ROOM) {
            conn->parked = true;
            break;
        }
        if (parsed == PARSED_BAD) {
            conn_begin_end(conn);
        } else if (parsed == PARSED_GREETING) {
            conn->events++;
            pthread_mutex_unlock(&conn->lock);
            if (events->opened != NULL) events->opened(conn);
            pthread_mutex_lock(&conn->lock);
            conn->events--;
        } else if (events->reserve != NULL && (reserved = events->reserve(conn)) == NULL) {
            conn->parked = true;
            break;
        } else if (!conn_hand_out(conn, reserved)) {
            conn_unlock(conn);
            return;
        }
    }
    conn->rx_busy = false;
    conn_unlock(conn);
}

static void conn_received(void *arg)
{
    struct net_conn *conn = arg;
    pthread_mutex_lock(&conn->lock);
    if (nng_aio_result(conn->rx) != 0) conn_begin_end(conn);
    if (conn->incoming != NULL) read_ended(conn);
    size_t bytes = nng_aio_count(conn->rx);
    struct net_frame *f = conn->incoming;
    if (!conn->closing && f != NULL && conn->incoming_left_ms == 0) conn_begin_end(conn);
    if (!conn->closing && f != NULL) {
        size_t take = f->cap - f->len < bytes ? f->cap - f->len : bytes;
        f->len += take;
        bytes -= take;
    }
    if (!conn->closing) conn->staged_len += bytes;
    conn_pump(conn);
}

void net_conn_resume(struct net_conn *conn)
{
    pthread_mutex_lock(&conn->lock);
    if (!conn->parked) {
        pthread_mutex_unlock(&conn->lock);
        return;
    }
    conn->parked = false;
    conn->rx_busy = true;
    conn_pump(conn);
}

/* ---- open and close -------------------------------------------------------------------------------------------- */

int net_conn_init(struct net_conn *conn, const struct net_conn_options *options)
{
    *conn = (struct net_conn){ .options = options, .queue_end = &conn->queue };
    pthread_mutex_init(&conn->lock, NULL);
    int rv = nng_aio_alloc(&conn->rx, conn_received, conn);
    if (rv == 0) rv = nng_aio_alloc(&conn->tx, conn_sent, conn);
    if (rv != 0) net_conn_fini(conn);
    return rv;
}

void net_conn_fini(struct net_conn *conn)
{
    CHECK(conn->stream == NULL);
    if (conn->rx != NULL) nng_aio_free(conn->rx);
    if (conn->tx != NULL) nng_aio_free(conn->tx);
    mem_free(conn->staging);
    pthread_mutex_destroy(&conn->lock);
}

bool net_conn_open(struct net_conn *conn, nng_stream *stream)
{
    struct net_frame *greeting = net_frame_new(GREETING_BYTES);
    if (conn->staging == NULL) conn->staging = mem_alloc(NET_STAGING_BYTES);
    if (greeting == NULL || conn->staging == NULL) {
        mem_free(greeting);
        nng_stream_close(stream);
        nng_stream_free(stream);
        return false;
    }
    const uint8_t hello[GREETING_BYTES] = { 0, 'S', 'P', 0, 0, conn->options->protocol, 0, 0 };
    memcpy(net_frame_content(greeting), hello, sizeof hello);
    greeting->greeting = true;
    pthread_mutex_lock(&conn->lock);
    CHECK(conn->stream == NULL);
    conn->stream = stream;
    conn->generation++;
    conn->greeted = false;
    conn->staged_at = conn->staged_len = 0;
    conn->queue = greeting;
    conn->queue_end = &greeting->next;
    conn->head_sent = 0;
    conn_send_next(conn);
    conn->rx_busy = true;
    conn_read(conn);
    pthread_mutex_unlock(&conn->lock);
    return true;
}

void net_conn_close(struct net_conn *conn, uint64_t generation)
{
    pthread_mutex_lock(&conn->lock);
    if (conn->stream != NULL && (generation == 0 || conn->generation == generation)) {
        conn_begin_end(conn);
        conn_unlock(conn);
        return;
    }
    pthread_mutex_unlock(&conn->lock);
}
