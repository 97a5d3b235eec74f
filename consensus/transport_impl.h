/* What the files of the transport share; nobody else includes this.
 *
 *   transport.c        options, peers, dialing, listener, the door
 *   transport_conn.c   one connection: handshake, frames in and out
 *
 * Everything belongs to the loop but what is guarded by `mutex`. */
#ifndef OMEN_CONSENSUS_TRANSPORT_IMPL_H
#define OMEN_CONSENSUS_TRANSPORT_IMPL_H

#include <pthread.h>
#include <stdatomic.h>
#include <uv.h>

#include "common/err.h"
#include "consensus/handshake.h"
#include "consensus/transport.h"

#define CONN_STAGING_BYTES (64u << 10)
#define CONN_BODY_FIRST_BYTES (1u << 20) /* of a body that is announced; at least CONN_STAGING_BYTES */
#define CONN_WRITE_PIECES 512u           /* handed to one write */

enum conn_state {
    CONN_DIALING,
    CONN_HELLO_SENT,
    CONN_PROOF_SENT,
    CONN_ACCEPTED,
    CONN_CHALLENGED,
    CONN_OPEN,
    CONN_CLOSING
};

struct conn {
    struct transport *t;
    struct conn *next; /* t->conns */
    uv_tcp_t tcp;
    uv_connect_t connect;
    enum conn_state state;
    bool dialed;      /* by us */
    bool polite;      /* closing: what is being written goes out first */
    uint64_t node_id; /* 0 until the hello, for an accepted one */
    uint64_t began_ms, received_ms, sent_ms;
    struct handshake handshake;
    uint8_t reply[HANDSHAKE_HELLO_BYTES]; /* handshake message being written */
    uv_write_t reply_write;
    bool replying; /* it is with libuv */

    uint8_t staging[CONN_STAGING_BYTES]; /* [staged] bytes not yet understood */
    uint32_t staged;
    struct frame_header header; /* of the frame whose body is being read */
    uint8_t *body;              /* mem_alloc'ed, body_cap and one more */
    uint64_t body_read, body_cap;

    struct frame_out *out_head, **out_tail; /* not yet written whole */
    uint64_t out_offset;                    /* bytes of the head that are written */
    uint64_t unsent_bytes;
    bool writing; /* a write is with libuv */
    uv_write_t write;
    uint64_t writing_bytes;
};

struct peer {
    struct peer *next;
    uint64_t node_id;
    char host[256], port[8];
    struct conn *open;    /* the one in use */
    struct conn *dialing; /* ours, not yet open */
    uv_getaddrinfo_t lookup;
    bool looking_up, forgotten;
    uint64_t dial_ms; /* not before */
    uint32_t backoff_ms;
};

struct transport_counters {
    _Atomic uint64_t connections, frames_in, frames_out, bytes_in, bytes_out, frames_dropped;
    _Atomic uint64_t refused_garbage, refused_secret, refused_cluster, refused_strangers, refused_frames;
    _Atomic uint64_t unsent_bytes, unsent_bytes_max;
};

struct transport {
    struct transport_options options;
    uint8_t secret[HANDSHAKE_SECRET_BYTES_MAX];
    uv_loop_t *uv;
    uv_tcp_t listener;
    bool listening;
    uint16_t port;
    uv_prepare_t prepare; /* writes what the last turn of the loop has queued */
    struct conn *conns;
    struct peer *peers;
    uint32_t peer_count, strangers;
    struct transport_counters counters;

    pthread_mutex_t mutex; /* guards the inbox */
    struct frame_out *inbox_head, **inbox_tail;
    bool inbox_posted;
    struct loop_task inbox_task;

    bool closing;
    uint32_t handles; /* open handles and look-ups, after `closing` */
    void (*close_done)(void *arg);
    void *close_arg;
};

/* transport_conn.c */
struct conn *conn_new(struct transport *t, bool dialed, uint64_t node_id);
void conn_dial(struct conn *c, const struct sockaddr *address);
void conn_accepted(struct conn *c);
void conn_close(struct conn *c, const char *why); /* why NULL: said already, or not worth a line */
void conn_queue(struct conn *c, struct frame_out *frame);
void conn_flush(struct conn *c);
void conn_tick(struct conn *c, uint64_t now_ms);

/* transport.c */
struct peer *peer_find(struct transport *t, uint64_t node_id);
/* The connection is authenticated; false: another one is kept instead. */
bool peer_opened(struct transport *t, struct conn *c);
void peer_closed(struct transport *t, struct conn *c);
void transport_handle_closed(struct transport *t);
uint64_t transport_now(const struct transport *t);

static inline void counter_add(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

#endif
