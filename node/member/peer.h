/* Calls from node to node: one doc there, one doc back, over the node port and under the cluster secret
 * (common/wire/shard_message.h, SHARD_KIND_PEER). For what is rare and small: joining, reports, commands.
 * Connections are kept by address.
 *
 * A request is {"do": action, ...}. A reply that tells an error has {"code": enum omen_err, "message", "field"};
 * peer_call turns it into that error. Nothing that comes back is trusted: it is validated as a doc, and its members
 * are read with defaults.
 *
 * Threads: any. */
#ifndef OMEN_NODE_MEMBER_PEER_H
#define OMEN_NODE_MEMBER_PEER_H

#include "common/mem.h"
#include "common/query/doc.h"
#include "common/siphash.h"

#define PEER_DOC_BYTES_MAX (4u << 20)
#define PEER_ADDRESSES_MAX 256u /* connections kept; the one that was not used for longest goes */

struct peers;

struct peers *peers_new(const struct siphash_key *key);
/* No call may be under way. NULL is fine. */
void peers_free(struct peers *peers);

struct peer_reply {
    struct doc doc; /* an object, borrowed from `bytes` */
    struct buf bytes;
};
void peer_reply_fini(struct peer_reply *reply);

/* Ask and wait. `reply_out` is to be finished in every case. Errors: OMEN_EUNAVAILABLE (not sent), OMEN_EUNKNOWN
 * (sent, no answer), OMEN_EAUTH (another secret), OMEN_EPROTO, and whatever the other node says. */
OMEN_CHECKED enum omen_err peer_call(struct peers *peers, const char *address, struct doc request,
        uint32_t timeout_ms, struct peer_reply *reply_out, struct err *err);

/* The members of a reply that tells an error, into an object begun by the caller. */
void peer_reply_error(struct doc_builder *b, const struct err *err);

#endif
