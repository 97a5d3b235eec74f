/* The shard_service of a router that stands before other processes: calls become messages to the nodes that the map names.
 *
 * What it adds to a call: the replica that should answer (the leader for writes and linearizable reads, else the least
 * loaded one that is fresh enough for the token), another attempt where an attempt cannot have done harm, a second replica
 * when the first is slower than most (hedging, a bounded share of the load). What it never does: send a write again that may
 * have been carried out, unless the write has an op id; call an unknown outcome anything else.
 *
 * Threads: submit and release from any; `done` on the network's or the remote's own thread. */
#ifndef OMEN_ROUTER_REMOTE_H
#define OMEN_ROUTER_REMOTE_H

#include "common/clock.h"
#include "common/metrics.h"
#include "common/placement/shard_call.h"
#include "common/siphash.h"

#define REMOTE_SEEDS_MAX 64

struct remote;

struct remote_options {
    const char *const *seeds; /* [seed_count] addresses of nodes to begin with; copied */
    uint32_t seed_count;
    struct siphash_key key;
    struct clock *clock;     /* borrowed */
    struct metrics *metrics; /* borrowed; may be NULL */
    uint64_t poll_ns;        /* how often every node is asked for a newer map; default 1 s */
    uint64_t retry_ns;       /* a call is tried again for so long, within its deadline; default 5 s */
    uint32_t hedge_percent;  /* of reads that may be sent to a second replica; 0 = never; default 5 */
};
void remote_options_default(struct remote_options *options);

/* Returns at once; not_ready says whether a node has given a map yet. OMEN_EINVAL names an address that is none. */
OMEN_CHECKED enum omen_err remote_start(const struct remote_options *options, struct remote **remote_out,
        struct err *err);
/* Every call must have been released. */
void remote_stop(struct remote *remote);
const struct shard_service *remote_service(struct remote *remote);

#endif
