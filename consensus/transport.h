/* Frames between nodes: one TCP connection per pair, for all groups.
 *
 * Either node may dial; the one with the higher id waits TRANSPORT_YIELD_MS first. Of two connections to one
 * node the one dialed by the lower id stays, of two dialed by the same side the newer. A broken one is dialed
 * again, after 50 ms, doubling to 1 s. Frames to a node without a connection are dropped: raft sends again.
 *
 *   A connection:  DIALING --> HELLO SENT --challenge--> PROOF SENT --accept--> OPEN
 *                  ACCEPTED --hello--> CHALLENGED --proof--> OPEN
 *                  any --error, refused, silent, garbage--> CLOSING --> (gone)
 *
 * Before OPEN a peer has 2 s, gets fixed-size messages only and causes no allocation; at most
 * TRANSPORT_STRANGERS_MAX of them at a time. See handshake.h and frame.h for what is checked.
 *
 * Threads: transport_send and transport_stats from any; the rest from the loop, or before it is started. */
#ifndef OMEN_CONSENSUS_TRANSPORT_H
#define OMEN_CONSENSUS_TRANSPORT_H

#include "consensus/frame.h"
#include "consensus/loop.h"
#include "consensus/replica.h"

#define TRANSPORT_UNSENT_BYTES_MAX (32u << 20) /* per connection: frames with entries are dropped above */
#define TRANSPORT_UNSENT_SMALL_MAX (1u << 20)  /* on top of it, for frames without */
#define TRANSPORT_STRANGERS_MAX 64u            /* accepted and not yet authenticated */
#define TRANSPORT_PEERS_MAX 1024u
#define TRANSPORT_HANDSHAKE_MS 2000u
#define TRANSPORT_YIELD_MS 400u
#define TRANSPORT_PING_MS 1000u
#define TRANSPORT_SILENT_MS 5000u       /* nothing received: closed */
#define TRANSPORT_USER_TIMEOUT_MS 5000u /* nothing acknowledged by the peer's kernel: closed */

struct transport;

struct transport_options {
    struct loop *loop;
    uint64_t cluster_id, node_id; /* neither 0 */
    const uint8_t *secret;        /* copied */
    uint32_t secret_len;
    const char *listen; /* "host:port", host numeric; port 0 takes a free one; NULL = dials only */
    uint64_t (*now_ms)(void *arg);
    /* On the loop. Takes the frame. */
    void (*on_frame)(void *arg, uint64_t node_id, struct frame *frame);
    void *arg;
};

/* Binds and listens; nothing is accepted before the loop runs. OMEN_EINVAL, OMEN_EIO. */
OMEN_CHECKED enum omen_err transport_new(const struct transport_options *options,
        struct transport **transport_out, struct err *err);
uint16_t transport_port(const struct transport *t); /* of the listener, 0 = none */

/* Where a node listens ("host:port"; a name is resolved at each attempt). Replaces what was known; NULL
 * forgets it and closes. */
OMEN_CHECKED enum omen_err transport_set_peer(struct transport *t, uint64_t node_id, const char *address,
        struct err *err);
void transport_send(struct transport *t, struct frame_out *frame); /* takes it */
void transport_tick(struct transport *t);                          /* from the loop's tick */

void transport_stats(struct transport *t, struct replica_net_stats *stats_out);
bool transport_connected(struct transport *t, uint64_t node_id); /* loop only */

/* Closes everything; `done` on the loop when the last handle is gone, after which transport_free may be
 * called from any thread. */
void transport_close(struct transport *t, void (*done)(void *arg), void *arg);
void transport_free(struct transport *t);

#endif
