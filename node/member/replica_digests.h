/* Do the replicas of a shard hold the same points? From digests that each told at sequences of its own (CORRECTNESS A7;
 * what is hashed: storage/shard_store.h).
 *
 * A replica is the odd one when more than half of the shard's replicas agree with each other and each of these
 * contradicts it: then its files are not what the log made of them, and it is replaced. Without such a majority nobody
 * can tell who is right: it is told, and left to people.
 * Threads: pure functions. Determinism: yes. */
#ifndef OMEN_NODE_MEMBER_REPLICA_DIGESTS_H
#define OMEN_NODE_MEMBER_REPLICA_DIGESTS_H

#include <stdbool.h>

#include "common/placement/map.h"
#include "storage/shard_store.h"

struct replica_digests {
    uint32_t version; /* STORE_DIGEST_VERSION of who made them; 0 = none */
    uint32_t count;
    struct store_digest items[STORE_DIGESTS_MAX];
};

enum digests_relation {
    DIGESTS_UNKNOWN, /* no sequence in common, or another version */
    DIGESTS_AGREE,
    DIGESTS_DIFFER /* at one sequence at least */
};
/* `sequence_out` (or NULL): the last that they have in common and which says so. */
enum digests_relation digests_relation(const struct replica_digests *a, const struct replica_digests *b,
        uint64_t *sequence_out);

#define DIGESTS_NONE UINT32_MAX
/* `replicas` [count], NULL = nothing known of it. Index of the odd one, or DIGESTS_NONE. */
uint32_t digests_odd(const struct replica_digests *const *replicas, uint32_t count);
/* Does any of the others contradict replica `i`? */
bool digests_contradicted(const struct replica_digests *const *replicas, uint32_t count, uint32_t i);

#endif
