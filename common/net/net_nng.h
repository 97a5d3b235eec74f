/* Shared by the .c files of this room only: limits, and the one place where nng's error numbers become ours. */
#ifndef OMEN_COMMON_NET_NNG_H
#define OMEN_COMMON_NET_NNG_H

#include <nng/nng.h>

#include "common/err.h"

/* Bytes that req/rep put before our body inside the frame that RECVMAXSZ measures: one request id. */
#define NET_FRAME_HEADER_BYTES 4

#define NET_URL_BYTES_MAX 128 /* nng's own limit for addresses */
#define NET_CONTEXTS_MAX 4096 /* requests in service per server */
#define NET_CONTEXTS_DEFAULT 128
#define NET_PEERS_MAX 4096 /* connections per server; further ones are cut before their first byte is read */
#define NET_REPLY_TIMEOUT_MS                                                                                 \
    30000                      /* a peer that does not read its replies for so long loses its connection */
#define NET_STOP_LINGER_MS 100 /* after the last reply, for the kernel to take what nng still holds */
#define NET_STOP_POLL_MS 5

#define NET_CALLS_MAX 4096       /* outstanding calls per client */
#define NET_CONNECT_GRACE_MS 200 /* without a connection for so long, calls fail at once */
#define NET_FIRST_CONNECT_MS 500 /* likewise before the first connection */
#define NET_RECONNECT_MIN_MS 10
#define NET_RECONNECT_MAX_MS 100
#define NET_REDIAL_MS 5000   /* an attempt that hangs (packets dropped) is given up and begun anew */
#define NET_SILENCE_MS 15000 /* a call timed out and no reply came for so long: the connection is dead */

/* Setting up a socket failed: `what` and the URL go into the sentence. */
enum omen_err net_err(struct err *err, int nng_error, const char *what, const char *url);

#endif
