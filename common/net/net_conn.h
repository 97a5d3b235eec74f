/* One connection that speaks the frames of the Scalability Protocols (PROTOCOL.md, "Transport") over an nng byte
 * stream. Both sides of the room are built on it; only they include it.
 *
 * Why not nng's rep0 and req0 sockets: closing one of their connections between two reads (or partial writes) of a
 * frame makes nng 1.5.2 begin the next one on an operation that is already stopped. Nobody then ends the operation
 * of the socket, and the process's only reaper thread waits for it for ever, and with it every close that comes later
 * (sp/transport/tcp/tcp.c, tcptran_pipe_recv_cb). A peer that hangs up at the wrong moment was enough; a node that
 * was stopped under load hung. Over streams the operations are ours, and an operation is begun only on an open
 * stream.
 *
 * A connection is *open* from net_conn_open to its `ended` event, and may be opened again after that: its
 * `generation` tells one life from the next. Events are called without the connection's lock, on nng's task threads;
 * `left` and `ended` also on a thread that calls net_conn_close.
 *
 *   stream -> staging (16 KiB) -> frame being assembled -> `reserve` -> `message`         (one thread at a time,
 *   `rx_busy`)
 *   net_conn_send -> queue -> up to NET_SEND_FRAMES at once -> `left`                      (`tx_busy`) */
#ifndef OMEN_COMMON_NET_CONN_H
#define OMEN_COMMON_NET_CONN_H

#include <pthread.h>

#include <nng/nng.h>
#include <nng/supplemental/util/platform.h>

#include "common/bytes.h"
#include "common/mem.h"
#include "common/net/net_nng.h"
#include "common/net/net_room.h"

#define NET_STAGING_BYTES (16u << 10)
#define NET_SEND_FRAMES 8 /* nng takes eight ranges at once */
#define NET_CONTENT_AT                                                                                       \
    12 /* in net_frame.bytes: the length before it, a request's body after its id on 16 bytes */
#define NET_ID_BYTES 4          /* a request id, or one hop before it */
#define NET_HEADER_BYTES_MAX 64 /* hops and id: as many as nng lets through */

/* What is between two lengths on the wire. One allocation. */
struct net_frame {
    struct net_frame *next;
    void *owner;                                  /* of who sends it */
    uint64_t tag;                                 /* likewise; net_conn_withdraw finds a frame by it */
    size_t len;                                   /* of the content */
    size_t cap;                                   /* of the content, >= len */
    bool started;                                 /* a byte of it may have left */
    bool greeting;                                /* of the connection itself */
    uint8_t bytes[] __attribute__((aligned(16))); /* [NET_CONTENT_AT + cap] */
};

/* NULL when out of memory. Freed with mem_free. */
struct net_frame *net_frame_new(size_t content_bytes);
static inline uint8_t *net_frame_content(struct net_frame *frame) { return frame->bytes + NET_CONTENT_AT; }

enum net_left {
    NET_LEFT_SENT,  /* the kernel has all of it */
    NET_LEFT_MAYBE, /* the connection ended while it was on its way */
    NET_LEFT_UNSENT /* the connection ended before its first byte */
};

struct net_conn;

struct net_conn_events {
    /* The peer has sent its greeting. May be NULL. */
    void (*opened)(struct net_conn *conn);
    /* Called under the connection's lock before a message is handed out: what the receiver wants to find there with
     * it, or NULL: not now, nothing is read until net_conn_resume. May be NULL: always. */
    void *(*reserve)(struct net_conn *conn);
    /* Called under the connection's lock: the frame being assembled needs so much room in all, more than
     * NET_ROOM_FREE_BYTES; 0 gives back what it had, when it was handed out. False: not now, nothing is read until
     * net_conn_resume. After `ended` the connection has none. May be NULL: always. */
    bool (*room)(struct net_conn *conn, size_t bytes);
    /* A whole frame, now the receiver's. False = it makes no sense: the connection is cut. */
    bool (*message)(struct net_conn *conn, uint64_t generation, struct net_frame *frame, void *reserved);
    /* A frame that was given to net_conn_send, now the sender's again. */
    void (*left)(struct net_conn *conn, struct net_frame *frame, enum net_left how);
    /* The last event of this life; the stream is gone. */
    void (*ended)(struct net_conn *conn, uint64_t generation);
};

struct net_conn_options {
    const struct net_conn_events *events; /* borrowed */
    uint8_t protocol, peer_protocol;      /* 0x30 req, 0x31 rep */
    bool ipc;                             /* one byte 01 before each length */
    size_t frame_bytes_max;               /* a longer announcement cuts the connection */
    uint32_t send_timeout_ms; /* for the first frame of the queue to be taken whole; 0 = for ever */
    uint32_t send_mib_ms;     /* and so much more for every MiB of it */
    uint32_t
            frame_ms; /* for a frame to come in once it has begun, and for each pause within it; waiting for room or a
                        * context does not count */
    uint32_t frame_mib_ms; /* and so much more for every MiB that is announced */
};

struct net_conn {
    const struct net_conn_options *options; /* borrowed */
    nng_aio *rx, *tx;                       /* owned; each at most one operation at a time */
    pthread_mutex_t lock;                   /* all below, except what belongs to whom `rx_busy` speaks of */
    nng_stream *stream;                     /* owned; NULL when not open */
    uint64_t generation;
    bool rx_busy;    /* an operation or a thread has the reading side */
    bool tx_busy;    /* an operation has the first frames of the queue */
    uint32_t events; /* threads inside `message` or `left`: `ended` comes after them */
    bool closing, greeted;
    bool parked;      /* a whole frame waits for `reserve`, or a part of one for `room` */
    uint8_t *staging; /* [NET_STAGING_BYTES] owned, made at the first open */
    size_t staged_at, staged_len;
    struct net_frame *incoming; /* owned; being assembled: `len` so far, incoming_bytes to be */
    size_t incoming_bytes;
    uint64_t incoming_left_ms;            /* for it to come in, when the present read began */
    nng_time read_ms;                     /* when that was */
    struct net_frame *queue, **queue_end; /* owned; the first may be partly gone */
    uint32_t flying;                      /* of them, in the present operation */
    size_t head_sent;                     /* bytes of the first that are gone, its prefix included */
    nng_time head_since_ms;               /* when it became the first */
};

/* Not open yet. nng's error number, or 0. */
int net_conn_init(struct net_conn *conn, const struct net_conn_options *options);
/* Not open any more. Waits for callbacks to return: not from one. */
void net_conn_fini(struct net_conn *conn);

/* Takes the stream, sends the greeting and waits for the peer's, at most NET_GREETING_MS. On an error (no memory) the
 * stream is freed and no event comes. */
bool net_conn_open(struct net_conn *conn, nng_stream *stream);
/* False when that life of the connection is over: the frame stays the caller's. */
bool net_conn_send(struct net_conn *conn, uint64_t generation, struct net_frame *frame);
/* Takes a frame with this tag back out of the queue, as long as no byte of it can have left; NULL when it is too
 * late. */
struct net_frame *net_conn_withdraw(struct net_conn *conn, uint64_t generation, uint64_t tag);
/* After `reserve` said no. Messages are handed out on the calling thread. Nothing when there is nothing to resume. */
void net_conn_resume(struct net_conn *conn);
/* Begins the end; `ended` comes later, or within. Nothing when not open, or (generation not 0) when that life is
 * over. */
void net_conn_close(struct net_conn *conn, uint64_t generation);

#endif
