/* The protocol between routers and nodes: struct shard_call (common/placement/shard_call.h) and the map as bytes, inside an
 * envelope that proves the cluster secret. NODE_PROTOCOL.md has the tables; tests/golden/node_protocol/ the bytes.
 *
 * Plain little-endian structures, no msgpack: this hop carries every vector once more, so they travel as they lie, payloads
 * and filters as docs, and a node's ops point into the message. Nothing is trusted although its sender holds the secret: a
 * count is held against the bytes that are left before anything is allocated for it, docs, paths, keys, names and slots are
 * validated, vectors are finite.
 *
 * Threads: any; the functions keep no state. */
#ifndef OMEN_COMMON_WIRE_SHARD_MESSAGE_H
#define OMEN_COMMON_WIRE_SHARD_MESSAGE_H

#include "common/placement/shard_call.h"
#include "common/siphash.h"

#define SHARD_MESSAGE_VERSION 1
#define SHARD_MESSAGE_BYTES_MAX (96u << 20) /* also nng's RECVMAXSZ on the node port and in routers */
#define SHARD_MESSAGE_HEADER_BYTES 32
#define SHARD_PATHS_MAX 256 /* of one selection */
#define SHARD_DEADLINE_MS_MAX 3600000u
#define SHARD_HITS_MAX 1000000u /* hits, or points, of one reply */
#define SHARD_STATUS_BYTES_MAX (64u << 10)
#define SHARD_REASON_BYTES_MAX 200 /* of why a node is not ready */

/* ---- envelope ---- */

enum shard_message_type {
    SHARD_REQUEST = 1,
    SHARD_REPLY = 2,
    SHARD_REFUSAL = 3, /* to who did not prove the secret: no tag, no body but a code */
};

/* What a message is about: a shard_call_kind, or one of these. */
#define SHARD_KIND_POLL 64 /* who are you, how are you, is there a newer map */
#define SHARD_KIND_FILE 66 /* ranges of a checkpoint's files, between nodes: file_message.h */
#define SHARD_KIND_PEER 65 /* between nodes: a doc, an object {"do": action, ...}; the answer is one too */

/* Header v1, 32 bytes:  0 magic "OMRC" | 4 u16 version | 6 u8 type | 7 u8 kind | 8 u64 nonce | 16 tag [16].
 * The tag is siphash128 under the cluster key of bytes 0..16 and of everything after the header. A reply repeats the nonce
 * of its request, so it answers that request and no other. */
struct shard_envelope {
    enum shard_message_type type;
    uint8_t kind;
    uint64_t nonce;
    struct bytes body;
};

/* An empty header at the end of `out` (which must be empty); the body follows, then the seal. */
void shard_message_begin(struct buf *out, enum shard_message_type type, uint8_t kind, uint64_t nonce);
/* The tag of a finished message; again after a byte of it was changed. */
void shard_message_seal(uint8_t *message, size_t len, const struct siphash_key *key);
/* A finished SHARD_REFUSAL. */
void shard_message_refuse(struct buf *out, uint64_t nonce, enum omen_err code);

/* Untrusted bytes. Errors: OMEN_EPROTO (no message of ours, or of another type than `type`), OMEN_EVERSION, OMEN_EAUTH (the
 * tag is not of this key; also for a refusal where a reply was expected). `nonce` is set as soon as the header could be
 * read, else 0. Cost: one keyed hash over the message. */
OMEN_CHECKED enum omen_err shard_message_open(struct bytes message, enum shard_message_type type,
        const struct siphash_key *key, struct shard_envelope *envelope_out, struct err *err);

/* ---- shard calls ---- */

/* Inputs of a call, appended to `out`. `schema` is the collection's (dims of vectors; not used by STATS, CATALOG and
 * CLUSTER, which may give NULL). The deadline travels as `deadline_ms` from its arrival on, 0 = none; it lies at
 * SHARD_REQUEST_DEADLINE_OFFSET of the message, to be changed when the same request is sent again. */
#define SHARD_REQUEST_DEADLINE_OFFSET (SHARD_MESSAGE_HEADER_BYTES + 4)
void shard_request_encode(const struct shard_call *call, const struct collection_schema *schema,
        uint32_t deadline_ms, struct buf *out);

/* What the decoded call does not say by itself. */
struct shard_request_info {
    uint32_t deadline_ms;
    uint32_t dims[OMEN_VECTOR_FIELDS_MAX]; /* as the sender knows them: the node compares with its schema */
    uint32_t field_count;                  /* 0 where no vectors are sent */
    uint32_t vector_mask;                  /* fields that some selection asks for */
};
/* `call_out` is zeroed, then its inputs are set, deadline_ns not; everything borrows from `body` and `arena`. Errors:
 * OMEN_EPROTO (structure), OMEN_EINVAL and OMEN_ETOOBIG (a value; `field` names it), OMEN_ENOMEM (arena's limit). */
OMEN_CHECKED enum omen_err shard_request_decode(uint8_t kind, struct bytes body, struct arena *arena,
        struct shard_call *call_out, struct shard_request_info *info_out, struct err *err);

/* What every reply of a node says beside the call's outputs. */
struct shard_reply_info {
    uint64_t epoch; /* of the node's map */
    struct map *
            map; /* newer than what the call was routed with, or NULL. Encode borrows, decode gives a reference */
    uint32_t node_id;
};
/* Outputs of a call that is done. */
void shard_reply_encode(const struct shard_call *call, const struct collection_schema *schema,
        const struct shard_reply_info *info, struct buf *out);
/* Into `call`, whose inputs are those that were sent (kind and counts are compared). All outputs borrow from `body` and
 * `arena`: `body` must be 4-byte aligned and stay. Sets call->code and call->err as the node said; an error of decoding
 * itself is returned and leaves the outputs unspecified. info_out->map is NULL then. */
OMEN_CHECKED enum omen_err shard_reply_decode(struct bytes body, const struct collection_schema *schema,
        struct arena *arena, struct shard_call *call, struct shard_reply_info *info_out, struct err *err);

/* ---- map and nodes ---- */

void shard_map_encode(const struct map *map, struct buf *out);
/* A map of its own, one reference. Everything that map.h promises is checked: order and form of names, schemas, slots
 * without a gap, limits. */
OMEN_CHECKED enum omen_err shard_map_decode(struct bytes bytes, struct map **map_out, struct err *err);

struct shard_poll { /* a request */
    uint64_t have_incarnation,
            have_epoch; /* a newer map, or one of another incarnation, comes with the reply */
    bool with_status;
};
void shard_poll_encode(const struct shard_poll *poll, struct buf *out);
OMEN_CHECKED enum omen_err shard_poll_decode(struct bytes body, struct shard_poll *poll_out, struct err *err);

struct shard_poll_reply {
    uint32_t node_id; /* 0 = not part of a cluster yet */
    uint64_t epoch;
    struct map *map;              /* newer than asked with, or NULL; as in shard_reply_info */
    const struct map_node *nodes; /* [node_count] all that the node knows, itself included */
    uint32_t node_count;
    struct bytes not_ready; /* why, as text; empty = ready */
    struct doc status;      /* an object, or absent */
};
void shard_poll_reply_encode(const struct shard_poll_reply *reply, struct buf *out);
/* Nodes in `arena`; not_ready and status borrow from `body`. */
OMEN_CHECKED enum omen_err shard_poll_reply_decode(struct bytes body, struct arena *arena,
        struct shard_poll_reply *reply_out, struct err *err);

#endif
