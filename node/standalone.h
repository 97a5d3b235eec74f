/* A node in one process over one data directory, with the HTTP pages beside it; and with a router of its own, which is the
 * embedded default, or with a port for routers that are processes of their own, or both. */
#ifndef OMEN_NODE_STANDALONE_H
#define OMEN_NODE_STANDALONE_H

#include "node/config.h"

struct standalone;

/*  OPENING --node, router--> READY --standalone_stop--> STOPPING --> (gone)
 * The HTTP pages are there from OPENING on: /readyz answers 503 with the reason until READY. */
OMEN_CHECKED enum omen_err standalone_start(const struct node_config *config, bool with_router,
        struct standalone **standalone_out, struct err *err);
/* Refuses new requests, finishes those in service, checkpoints every shard. */
void standalone_stop(struct standalone *standalone);

/* The real addresses, with the port that ":0" became; "" where there is none. */
const char *standalone_url(const struct standalone *standalone);
const char *standalone_node_url(const struct standalone *standalone);
const char *standalone_http_url(const struct standalone *standalone);

#endif
