/* Shared by the .c files of this room only: names of operations and request members, and the steps of decoding. */
#ifndef OMEN_COMMON_WIRE_REQUEST_H
#define OMEN_COMMON_WIRE_REQUEST_H

#include "common/wire/value.h"

/* Members of a request map, in the order of MEMBER_NAMES. */
enum member {
    M_V,
    M_OP,
    M_COLLECTION,
    M_KEY,
    M_DEADLINE_MS,
    M_CONSISTENCY,
    M_TOKENS, /* every op */
    M_VERSIONS,
    M_CLIENT, /* hello */
    M_VECTORS,
    M_SHARD_KEY,
    M_SHARDS,
    M_REPLICATION,
    M_RECALL_TARGET,
    M_OPTIONS, /* create, set; vectors also upsert */
    M_ALIAS,
    M_IDS,
    M_PAYLOADS,
    M_KEYS,
    M_PATHS,
    M_OP_ID, /* and every change of the catalog or the cluster */
    M_EXPIRES_MS,
    M_WAIT, /* writes, get */
    M_CURSOR,
    M_LIMIT,
    M_FILTER,
    M_WITH_PAYLOAD,
    M_WITH_VECTORS,
    M_SEARCHES,
    M_ALLOW_PARTIAL, /* reads */
    M_REQUEST,       /* cluster */
    M_EXPLAIN,       /* search */
    M_COUNT
};
extern const char *const MEMBER_NAMES[M_COUNT];
#define BIT(m) (1ull << (m))

/* Members of one search. */
enum search_member {
    S_VECTOR,
    S_FIELD,
    S_ID,
    S_KEY,
    S_K,
    S_OFFSET,
    S_SCORE_THRESHOLD,
    S_EXACT,
    S_FILTER,
    S_WITH_PAYLOAD,
    S_WITH_VECTORS,
    S_COUNT
};
extern const char *const SEARCH_MEMBER_NAMES[S_COUNT];

extern const char *const CONSISTENCY_NAMES[3];

/* ops.c. The members an op takes beside those of every op; whether it needs a collection. */
bool op_parse(struct bytes name, enum wire_op *op_out);
uint64_t op_members(enum wire_op op);
bool op_takes_collection(enum wire_op op);

/* A request being decoded: its members by enum member, NULL when not given. */
struct request_reader {
    struct reader r;
    const msgpack_object *members[M_COUNT];
    struct wire_request *out;
};

/* request_points.c and request_reads.c. Errors carry the member's name. */
OMEN_CHECKED enum omen_err decode_write(struct request_reader *q);
/* The member `op_id`; left alone when it was not given. */
OMEN_CHECKED enum omen_err decode_op_id(struct request_reader *q, struct op_id *out);
OMEN_CHECKED enum omen_err decode_get_ids(struct request_reader *q);
/* The member `filter`; both outputs absent when it was not given. */
OMEN_CHECKED enum omen_err decode_filter(struct request_reader *q, const struct filter **filter_out,
        struct doc *doc_out);
OMEN_CHECKED enum omen_err decode_get(struct request_reader *q);
OMEN_CHECKED enum omen_err decode_scroll(struct request_reader *q);
OMEN_CHECKED enum omen_err decode_count(struct request_reader *q);
OMEN_CHECKED enum omen_err decode_search(struct request_reader *q);

/* Prefix the error with the member's name and return `rc`. OK passes. */
enum omen_err in_member(struct request_reader *q, enum member member, enum omen_err rc);
/* The member, or an error that it is needed. */
OMEN_CHECKED enum omen_err need_member(struct request_reader *q, enum member member);

#endif
