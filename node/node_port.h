/* The port on which a node serves routers: shard calls as bytes (common/wire/shard_message.h), handed to a
 * shard_service.
 *
 *   RECEIVED --secret, decode, epoch, schema--> SUBMITTED --done--> ENCODED --net_reply--> (pooled)
 *      +------- refused: counted, answered at once, nothing allocated for it -------^
 *
 * Nothing that comes in is trusted, though its sender holds the secret: storage's preconditions (schema, shard keys,
 * dims) are checked here, since the router that checked them first is another process.
 * Threads: RECEIVED on the network's; the rest on the thread that ends the call. */
#ifndef OMEN_NODE_NODE_PORT_H
#define OMEN_NODE_NODE_PORT_H

#include "common/clock.h"
#include "common/metrics.h"
#include "common/net/net.h"
#include "common/placement/shard_call.h"
#include "common/query/doc.h"
#include "common/siphash.h"

#define NODE_PORT_REQUESTS_MAX 3000u
#define NODE_PORT_ARENA_BYTES_MAX (64u << 20) /* what one request may need beside its message */
#define NODE_PORT_BYTES_MAX (512u << 20)      /* message bytes of all requests in service: OMEN_EBUSY above */
#define NODE_PORT_PEER_THREADS 4u
#define NODE_PORT_PEER_QUEUE_MAX 256u
#define NODE_PORT_MAP_ITEMS_MAX                                                                              \
    2000u /* collections and shards of a map that travels with a refusal; larger ones are polled */

struct node_port;
struct ship;

struct node_port_options {
    const char *url;
    const struct shard_service *service; /* borrowed */
    struct clock *clock;                 /* borrowed */
    struct metrics *metrics;             /* borrowed; may be NULL */
    struct siphash_key key;
    uint32_t node_id;      /* 0 = not part of a cluster yet */
    const char *advertise; /* where routers reach this node; "" = where they reached it */
    struct ship *ship;     /* borrowed: files for other nodes; NULL = none are served */
    uint32_t requests_max; /* in service; OMEN_EBUSY above. 1 .. NODE_PORT_REQUESTS_MAX */
    uint32_t (*node_number)(
            void *arg); /* what `node_id` is, where the cluster gives it later; NULL = never changes */
    /* A request of another node, and its reply as members of an object that was begun: node/member/peer.h. On a
     * thread of the port's own, of which there are a few: may block for seconds. NULL = there are no other nodes. */
    void (*peer)(void *arg, struct doc request, struct doc_builder *reply);
    /* Every node that is known, this one included: fills nodes_out [OMEN_NODES_MAX], returns how many. NULL = this
     * alone. */
    uint32_t (*nodes)(void *arg, struct map_node *nodes_out);
    void *arg;
};

OMEN_CHECKED enum omen_err node_port_start(const struct node_port_options *options,
        struct node_port **port_out, struct err *err);
uint16_t node_port_number(const struct node_port *port); /* the one chosen for ":0" */
/* Takes no more requests, answers those in service, waits for their calls. Before the service is closed. */
void node_port_stop(struct node_port *port);

#endif
