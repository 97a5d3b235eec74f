/* Request/reply over nng: the only home of nng headers.
 *
 * The frames are those of the Scalability Protocols (PROTOCOL.md, "Transport") over nng's byte streams; net_conn.h
 * tells why not over its sockets. Server: N contexts (N = requests in service; beyond it connections are not read:
 * back-pressure). Client: one connection per endpoint, many outstanding requests, no resend (a write must never run
 * twice by the transport's own will). Limits: message size, contexts, deadlines, all explicit.
 * URLs: tcp://127.0.0.1:7700, ipc:///path. */
#ifndef OMEN_COMMON_NET_NET_H
#define OMEN_COMMON_NET_NET_H

#include "common/bytes.h"
#include "common/err.h"
#include "common/mem.h"
#include "common/metrics.h"

#define NET_REPLIES_BYTES_MAX (256u << 20) /* replies of one server that its peers have not taken yet */
#define NET_REPLY_SMALL_BYTES (64u << 10)  /* always fits: the outcome of a write must not be withheld */

struct net_server;
struct net_request; /* one request in service; owned by the handler until net_reply */

struct net_server_options {
    const char *url;
    uint32_t contexts;        /* requests in service, default 128, 1..4096 */
    size_t message_bytes_max; /* larger announcements cut the connection */
    uint64_t
            room_bytes_max; /* of messages above 64 KiB that are still coming in, default 256 MiB: net_room.h */
    uint32_t
            frame_ms; /* for a message to come in, and a second per MiB; default 30,000: slower ones are cut */
    struct metric_counter *held_up; /* counts those that had to wait for room, or NULL; borrowed */
    /* Called on an nng thread for each request: must not block for long; hand over to a worker and net_reply later
     * from any thread. `message` is valid until net_reply. */
    void (*handle)(void *arg, struct net_request *request, struct bytes message);
    void *arg;
};

OMEN_CHECKED enum omen_err net_server_start(const struct net_server_options *options,
        struct net_server **server_out, struct err *err);
/* The port chosen for ":0". 0 for ipc. */
uint16_t net_server_port(const struct net_server *server);
/* Stop taking requests, wait until every handler has replied, free. */
void net_server_stop(struct net_server *server);
/* Send the reply (copied; at most what the peer's client takes) and end the request. Exactly once per request; a
 * vanished peer is ignored. */
void net_reply(struct net_request *request, struct bytes reply);
/* Whether a reply of this size keeps what waits to be taken by slow peers below NET_REPLIES_BYTES_MAX for the whole
 * server; if not, the handler should answer BUSY in few bytes instead. Small replies always fit, and any does when
 * none waits. */
bool net_reply_fits(const struct net_request *request, size_t reply_bytes);

struct net_client;
struct net_call; /* one outstanding request */

/* Connects in the background and reconnects by itself. Without a connection for 200 ms (500 ms before the first one)
 * calls end with OMEN_EUNAVAILABLE at once, whatever their timeout, so that the caller can go to another endpoint. */
OMEN_CHECKED enum omen_err net_client_open(const char *url, size_t message_bytes_max,
        struct net_client **client_out, struct err *err);
void net_client_close(
        struct net_client *client); /* outstanding calls end with OMEN_ECANCELED; not from `done` */

/* Asynchronous: `done` runs on an nng thread, never within net_call_start, with the reply (valid during the call) or
 * an error: OMEN_EUNAVAILABLE (never sent: not connected), OMEN_EUNKNOWN (sent, connection lost or deadline passed
 * before the reply). */
typedef void (*net_done)(void *arg, enum omen_err result, struct bytes reply);
OMEN_CHECKED enum omen_err net_call_start(struct net_client *client, struct bytes message,
        uint32_t timeout_ms, net_done done, void *arg, struct err *err);
/* Blocking; the reply is appended to `reply`. */
OMEN_CHECKED enum omen_err net_call(struct net_client *client, struct bytes message, uint32_t timeout_ms,
        struct buf *reply, struct err *err);

/* Small HTTP server for GET pages (metrics, health). Handlers run on nng threads; they fill `body`. */
struct net_http;
struct net_http_page {
    const char *path;
    /* Returns the HTTP status; sets *content_type_out (static). */
    int (*handle)(void *arg, struct buf *body, const char **content_type_out);
    void *arg;
};
OMEN_CHECKED enum omen_err net_http_start(const char *url, const struct net_http_page *pages,
        uint32_t page_count, struct net_http **http_out, struct err *err); /* "http://127.0.0.1:7701" */
uint16_t net_http_port(const struct net_http *http);
void net_http_stop(struct net_http *http);

#endif
