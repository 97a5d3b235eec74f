/* Shared by the .c files of this room only: limits, and what nng, clocks and URLs need in several of them. */
#ifndef OMEN_COMMON_NET_NNG_H
#define OMEN_COMMON_NET_NNG_H

#include <pthread.h>
#include <time.h>

#include <nng/nng.h>

#include "common/err.h"

#define NET_URL_BYTES_MAX 128 /* nng's own limit for addresses */
#define NET_CONTEXTS_MAX 4096 /* requests in service per server */
#define NET_CONTEXTS_DEFAULT 128
#define NET_PEERS_MAX 4096 /* connections per server; further ones are cut before their first byte is read */
#define NET_GREETING_MS 5000 /* for the first 8 bytes of a connection */
#define NET_REPLY_TIMEOUT_MS                                                                                 \
    30000                        /* a peer that has not taken the first of its replies after so long is cut */
#define NET_REPLY_MIB_MS 1000    /* but has this much longer for each MiB of it */
#define NET_FRAME_PAUSE_MS 30000 /* a peer that sends nothing for so long in the middle of a frame is cut, */
#define NET_FRAME_MIB_MS 1000    /* or that takes so much longer for each MiB of it */
#define NET_STOP_FLUSH_MS 2000   /* for the last replies to be taken, once a server stops */
#define NET_STOP_LINGER_MS 100   /* after the last reply, for a peer to read it before the connection goes */
#define NET_ACCEPT_PAUSE_MS 50   /* out of descriptors or memory: before the next attempt */

#define NET_CALLS_MAX 4096       /* outstanding calls per client */
#define NET_CONNECT_GRACE_MS 200 /* without a connection for so long, calls fail at once */
#define NET_FIRST_CONNECT_MS 500 /* likewise before the first connection */
#define NET_RECONNECT_MIN_MS 10
#define NET_RECONNECT_MAX_MS 100
#define NET_DIAL_MS 5000     /* an attempt that hangs (packets dropped) is given up and begun anew */
#define NET_SILENCE_MS 15000 /* a call timed out and no reply came for so long: the connection is dead */

#define NET_PROTOCOL_REQ 0x30
#define NET_PROTOCOL_REP 0x31

/* Setting up a socket failed: `what` and the URL go into the sentence. */
enum omen_err net_err(struct err *err, int nng_error, const char *what, const char *url);

/* A condition that waits by the monotonic clock, and a deadline for it. */
void net_cond_init(pthread_cond_t *cond);
struct timespec net_cond_deadline(uint32_t ms);

bool net_url_is_ipc(const char *url);

#endif
