/* The router room's door: stateless front of the database. Takes client messages, authenticates, resolves the collection,
 * validates against its schema, hashes payload keys to slots, asks only the shards that can hold an answer, merges, replies.
 *
 * Threads: handlers run on the network's threads; nothing blocks there; the last shard to answer merges and replies. */
#ifndef OMEN_ROUTER_ROUTER_H
#define OMEN_ROUTER_ROUTER_H

#include "common/clock.h"
#include "common/metrics.h"
#include "common/placement/shard_call.h"
#include "common/process/secrets.h"

struct router;

struct router_options {
    const char *listen_url;              /* tcp://127.0.0.1:7700 */
    const struct shard_service *service; /* borrowed */
    struct clock *clock;
    struct metrics *metrics;
    const struct api_key *api_keys; /* [api_key_count] copied; 0 = no authentication */
    uint32_t api_key_count;
    uint32_t requests_max;        /* in service at once, default 256 */
    uint64_t default_deadline_ns; /* default 30 s */
    uint64_t max_deadline_ns;     /* default 300 s */
};
void router_options_default(struct router_options *options);

OMEN_CHECKED enum omen_err router_start(const struct router_options *options, struct router **router_out,
        struct err *err);
uint16_t router_port(const struct router *router);
void router_stop(struct router *router); /* refuses new requests, finishes those in service */

#endif
