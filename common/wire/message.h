/* The client protocol: one catalogue of requests and replies, encoded as msgpack (the only home of msgpack.h is this
 * folder). PROTOCOL.md is the specification from which a client can be written; this header is its C face.
 *
 * Decoding trusts nothing: sizes, counts, depth and types are checked before anything is allocated; errors name the
 * field. Decoded requests borrow from the message bytes and from `arena`; vectors stay where they arrived, without a copy,
 * as little-endian f32 (maybe unaligned: readers memcpy or load unaligned).
 *
 * Validation in two steps: message_decode_request knows no schema (shape of the message, limits); the router then
 * resolves the collection and checks dims, fields, shard keys against it. */
#ifndef OMEN_COMMON_WIRE_MESSAGE_H
#define OMEN_COMMON_WIRE_MESSAGE_H

#include "common/placement/shard_call.h"
#include "common/query/filter.h"
#include "common/query/point.h"

#define WIRE_VERSION_MIN 1
#define WIRE_VERSION_MAX 1
#define WIRE_MESSAGE_BYTES_MAX (48u << 20) /* also nng's RECVMAXSZ */
#define WIRE_API_KEY_BYTES_MAX 256
#define WIRE_ELEMENTS_MAX 2000000 /* values in one message, map keys included */
#define WIRE_DEPTH_MAX 32         /* nested arrays and maps, the outermost included; msgpack-c's own limit */
#define WIRE_TOKENS_MAX 1024
#define WIRE_PATHS_MAX 256 /* of one selection or delete_payload */
#define WIRE_CURSOR_BYTES_MAX 1024
#define WIRE_CLIENT_NAME_BYTES_MAX 128
#define WIRE_DEADLINE_MS_MAX 3600000u
#define WIRE_SCROLL_LIMIT_DEFAULT 100
#define WIRE_K_DEFAULT 10
#define WIRE_RECALL_TARGET_DEFAULT 0.95f
#define WIRE_REPLICATION_MAX 7
#define WIRE_INDEX_BYTES_MAX (1u << 20)   /* of what is told of a collection's indexes, as a doc */
#define WIRE_EXPLAIN_BYTES_MAX (8u << 20) /* of one reply, as a doc */

enum wire_op {
    WIRE_HELLO = 1, /* versions, limits, server name and version; needs no key */
    WIRE_COLLECTION_CREATE,
    WIRE_COLLECTION_LIST,
    WIRE_COLLECTION_DESCRIBE,
    WIRE_COLLECTION_DROP,
    WIRE_ALIAS_SET,
    WIRE_ALIAS_DROP,
    WIRE_UPSERT,
    WIRE_DELETE,
    WIRE_SET_PAYLOAD,
    WIRE_OVERWRITE_PAYLOAD,
    WIRE_DELETE_PAYLOAD,
    WIRE_GET,
    WIRE_SCROLL,
    WIRE_COUNT,
    WIRE_SEARCH,
    WIRE_STATUS,         /* server status for omenctl */
    WIRE_CLUSTER,        /* members, moves and state of the cluster: an object to it, an object back */
    WIRE_COLLECTION_SET, /* options of a collection */
    WIRE_OP_COUNT
};
const char *wire_op_name(enum wire_op op); /* "points.upsert", as on the wire */

/* Roles needed by each op; used by the router's authentication. */
enum wire_role { WIRE_ROLE_NONE = 0, WIRE_ROLE_READ = 1, WIRE_ROLE_WRITE = 2, WIRE_ROLE_ADMIN = 3 };
enum wire_role wire_op_role(enum wire_op op); /* WIRE_CLUSTER: to look; what changes needs admin */

/* Of a WIRE_CLUSTER request: whether it does more than look. An action that is not known does. */
bool wire_cluster_changes(struct doc request);
/* Whether what it does is recorded with its op id, so that it may be asked again: every change but a hand-over of
 * leadership. */
bool wire_cluster_recorded(struct doc request);

/* Names of vector fields as the client gave them; resolved to schema positions by the router. */
struct wire_vector_column {
    struct bytes field;  /* "" unnamed */
    const uint8_t *data; /* [count][dim] little-endian f32, unaligned */
    uint64_t bytes;      /* a multiple of 4 * count, checked */
};

struct wire_selection {
    bool with_payload;
    bool payload_include;
    const struct doc_path *const *payload_paths;
    uint32_t payload_path_count;
    bool with_all_vectors;
    const struct bytes *vector_fields; /* names */
    uint32_t vector_field_count;
};

struct wire_search {
    struct bytes field; /* vector field name */
    struct bytes query; /* raw f32 bytes; empty when by_id */
    bool by_id;         /* query is the stored vector of this point, which is left out of the result */
    point_id query_id;
    struct doc query_key; /* shard key value of the point, absent if none */
    uint32_t k, offset;
    bool exact; /* look at every row */
    bool has_score_threshold;
    float score_threshold;
    const struct filter *filter; /* parsed by decode */
    struct doc filter_doc;       /* as given; encode writes this one, absent = none */
    struct wire_selection selection;
};

struct wire_request {
    enum wire_op op;
    uint32_t version;
    struct bytes api_key;
    struct bytes collection; /* name or alias */
    uint32_t deadline_ms;    /* relative; 0 = server's default */
    enum consistency consistency;
    bool allow_partial; /* reads: rather an answer without the shards that cannot be reached than none */
    const struct token *tokens; /* session tokens the client holds */
    uint32_t token_count;
    union {
        struct {
            uint32_t version_min, version_max;
            struct bytes client_name;
        } hello;
        struct catalog_change catalog; /* create, set, drop, alias.*: names and options already checked */
        struct {                       /* all writes of points */
            struct op_id op_id;
            uint32_t count;
            const point_id *ids;        /* [count] */
            const struct doc *payloads; /* [count] or NULL; upsert, set, overwrite. Checked to be objects */
            const struct doc *keys;     /* [count] shard key values, or NULL; delete and payload ops */
            const struct wire_vector_column *columns;
            uint32_t column_count; /* upsert */
            const uint64_t *
                    expires_ms; /* [count] Unix ms from which on a point is absent, 0 = never, or NULL; upsert */
            struct doc payload_paths; /* delete_payload: array of path strings, each checked to parse */
            /* Given instead of ids (count 0; `payloads` then has one): all points that match. As in wire_search. */
            const struct filter *filter;
            struct doc filter_doc;
            enum write_wait wait;
        } write;
        struct {
            const point_id *ids;
            const struct doc *keys;
            uint32_t count;
            struct wire_selection selection;
        } get;
        struct {
            struct bytes cursor;
            uint32_t limit;
            const struct filter *filter; /* these two as in wire_search */
            struct doc filter_doc;
            struct wire_selection selection;
        } scroll;
        struct {
            const struct filter *filter;
            struct doc filter_doc;
        } count;
        struct {
            const struct wire_search *searches;
            uint32_t count;
            bool explain; /* tell how they were answered */
        } search;
        struct {
            struct doc request;    /* an object with a member "do", a string */
            struct op_id asked_as; /* of a change; client 0 = none */
        } cluster;
    };
};

/* Role needed by a request: that of its op until the rest is decoded. */
enum wire_role wire_request_role(const struct wire_request *request);

/* Op and API key of a request before anything is decoded or allocated for it: so that a stranger's message costs one pass
 * over its headers. What cannot be found is 0 and empty; decode says what is wrong. Borrows from `message`. The members
 * may lie (come twice, be malformed further on): what decode returns is what counts. */
void message_peek(struct bytes message, enum wire_op *op_out, struct bytes *api_key_out);

/* Decode and validate. `arena` carries the limits of what may be allocated. On error `request_out->op` and `version` are
 * set as far as they were understood, so that the reply can be encoded. */
OMEN_CHECKED enum omen_err message_decode_request(struct bytes message, struct arena *arena,
        struct wire_request *request_out, struct err *err);

/* Client side: the same struct to bytes, appended to `out`. Checks only what has no encoding; the server checks the rest.
 * Filters are written from `filter_doc`. Errors: OMEN_EINVAL, OMEN_ENOMEM, OMEN_ETOOBIG (WIRE_MESSAGE_BYTES_MAX). */
OMEN_CHECKED enum omen_err message_encode_request(const struct wire_request *request, struct buf *out,
        struct err *err);

struct wire_collection_info {
    const struct map_collection *collection;
    uint64_t points, stream_bytes, meta_bytes, unindexed, applied_ops;
    struct recall_estimate recall; /* measured on live searches; counts when recall_searches > 0 */
    uint64_t recall_searches;
    uint64_t recall_boost;            /* of the shard with most of it */
    const struct shard_stats *shards; /* [collection->shard_count], or NULL when not asked (list) */
    struct doc index; /* an object: how far indexing is, memory, payload indexes; absent when not asked */
};

struct wire_search_result {
    const struct hit *hits;
    uint32_t count;
    uint32_t field;        /* schema position searched; encode takes the metric from there */
    bool higher_is_nearer; /* set by decode */
};

struct wire_shard_outcome {
    uint64_t shard;
    enum omen_err code;
    uint32_t count;
};

struct wire_reply {
    enum wire_op op;
    enum omen_err code; /* not OK: only `err` is encoded (and the shards of a write) */
    struct err err;
    const struct collection_schema
            *schema;            /* names of vector fields and metric for points and hits; may be NULL */
    const struct token *tokens; /* of the shards touched */
    uint32_t token_count;
    uint64_t engine_ns; /* longest time inside storage */
    /* Reads that allow it: these shards did not answer, the result is without their points. Empty = complete. */
    const uint64_t *shards_missing;
    uint32_t shards_missing_count;
    bool stale; /* eventual reads: a replica knew that it was behind when it answered */
    union {
        struct {
            uint32_t version;
            const char *server_version, *commit;
            uint64_t now_ms; /* the server's wall clock; 0 = not told */
        } hello;
        struct {
            const struct wire_collection_info *items;
            uint32_t count;
            const struct map *map;
        } collections; /* list, describe */
        struct {
            uint64_t collection_id;
        } created;
        /* Encoded beside an error too: what became of each shard's part. */
        struct {
            uint32_t affected;
            bool duplicate;
            const struct wire_shard_outcome *shards;
            uint32_t shard_count;
        } write;
        struct {
            const struct point_view *points;
            uint32_t count;
            struct bytes cursor;
        } points; /* get, scroll; empty cursor = end */
        struct {
            uint64_t points;
        } count;
        struct {
            const struct wire_search_result *results;
            uint32_t count;
            uint64_t rows_scanned;
            uint32_t shards_asked, shards_total;
            struct doc explain; /* an object; absent when not asked */
        } search;
        struct {
            struct doc doc;
        } status;
        struct {
            struct doc reply; /* an object */
        } cluster;
    };
};

/* Server side. Shard keys are decoded from canonical bytes to msgpack values. */
OMEN_CHECKED enum omen_err message_encode_reply(const struct wire_reply *reply, struct buf *out);

/* Client side: replies decode to owned, aligned copies in `arena`, `schema` and `map` included (never map_unref that one).
 * OMEN_OK also for a well-formed error reply: look at reply_out->code. `schema` holds the names and dims of the vector
 * fields that came back and is what point_view.vectors is indexed by (its metrics are not known); NULL when none came. */
OMEN_CHECKED enum omen_err message_decode_reply(struct bytes message, enum wire_op op, struct arena *arena,
        struct wire_reply *reply_out, struct err *err);

#endif
