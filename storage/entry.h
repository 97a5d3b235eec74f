/* A log entry: the bytes that are proposed, fsynced in the log, and copied once, as they are, into the
 * stream, where their vectors are searched in place. One entry carries the operations of several requests
 * (target <= 512 KiB).
 *
 * Entry v3 (v2 when no request is part of a write by filter, v1 when moreover no op has an expiry or a version),
 * little-endian, 64-byte aligned, total a multiple of 64:
 *   header 128 B:  0 magic "OMEE" | 4 u16 version | 6 u16 flags (bit 0: derived) | 8 u32 total_bytes |
 *     12 u32 crc32c of bytes 16..total | 16 u64 log_time_ms | 24 u64 epoch | 32 u32 request_count |
 *     36 u32 op_count | 40 u16 field_count | 42 u16 op_stride | 44 u32 requests_off | 48 u32 ops_off |
 *     52 u32 row_ops_off | 56 u32 heap_off | 60 u32 heap_bytes | 64 field_count x { u32 column_off,
 *     u32 row_count }, rest zero
 *   requests: request_count x 40 B { u64 client, u64 seq, u64 issue_ms, u32 first_op, u32 op_count,
 *     u32 intent_off, u32 intent_len } (of the heap; 0, 0 = no part of a write by filter; v1, v2 always)
 *   ops: op_count x op_stride (= align8(60 + 4*field_count)):
 *     0 u8 kind | 1 u8 id_kind | 2 u8 flags (bit 0: any_key) | 3 u8 zero | 4 u32 key_len | 8 u64 id_hi |
 *     16 u64 id_lo | 24 u64 key_hi | 32 u64 key_lo | 40 u32 key_off | 44 u32 doc_off | 48 u32 doc_len |
 *     52 u64 expires_ms of an upsert, if_version of another op, 0 = none; v1 always 0 |
 *     60 field_count x u32 row (ENTRY_NO_ROW = no vector)                            (offsets into the heap)
 *   row_ops: for each field in turn row_count x u32, the op a row belongs to
 *   heap: canonical shard keys and payload docs; of a request that is part of a write by filter its intent first:
 *     begin: 0 u8 1 | 1 u8 kind of operation | 2 u16 zero | 4 u32 filter_len | 8 u32 payload_len | 12 u32 zero |
 *       16 filter doc | payload doc; no operations follow
 *     step, 64 B: 0 u8 2 | 1 u8 flags (bit 0: ends, bit 1: has a cursor) | 2 u16 code, 0 unless it ends |
 *       4 u32 part and 8 u64 sequence of the begin | 16 u32 steps before this one | 20 zero [4] |
 *       24 cursor, a point key | 57 zero [7]; its operations are no upserts
 *   columns: per field row_count rows of `dim` f32, each row padded with zeros to a multiple of 16 floats
 *     (64 B), column_off 64-byte aligned. Cosine vectors are already normalised: apply does no arithmetic.
 *
 * A *derived* entry has the same shape and is written to the stream by apply itself, never to the log: the
 * full points that payload operations produced (vectors copied), so that every live row of the stream is a
 * whole point. */
#ifndef OMEN_STORAGE_ENTRY_H
#define OMEN_STORAGE_ENTRY_H

#include "common/query/point.h"

#define ENTRY_VERSION 3
#define ENTRY_VERSION_TIMED 2 /* of an entry without intents */
#define ENTRY_VERSION_PLAIN 1 /* of an entry without expiries and versions: every release reads it */
#define ENTRY_HEADER_BYTES 128
#define ENTRY_REQUEST_BYTES 40
#define ENTRY_ALIGN 64
#define ENTRY_NO_ROW UINT32_MAX
#define ENTRY_TARGET_BYTES (512u << 10) /* coalescing stops here */
#define ENTRY_BYTES_MAX (48u << 20)     /* hard: one request of OMEN_BATCH_BYTES_MAX and its tables fit */
#define ENTRY_REQUESTS_MAX 4096

#define ENTRY_OP_TIME_OFF 52 /* in an op: expires_ms or if_version */
#define ENTRY_OP_ROWS_OFF 60 /* in an op: its row of each field */

/* A write by filter is recorded before its pages are (CORRECTNESS A5): the entry and the request in it that began it. */
struct intent_id {
    uint64_t sequence; /* that it is evaluated at; 0 = none */
    uint32_t part;     /* request of the entry */
};
static inline bool intent_id_equal(struct intent_id a, struct intent_id b)
{
    return a.sequence == b.sequence && a.part == b.part;
}

enum entry_intent_kind { ENTRY_INTENT_NONE, ENTRY_INTENT_BEGIN, ENTRY_INTENT_STEP };
/* What a request has to do with one. */
struct entry_intent {
    enum entry_intent_kind kind;
    enum point_op_kind op;      /* BEGIN: done to every point that matches; no upsert */
    struct doc filter, payload; /* BEGIN */
    struct intent_id id;        /* STEP: of which write */
    uint32_t step;              /* STEP: how many were before */
    bool ends;                  /* STEP: the last; `code` is what becomes of the write */
    enum omen_err code;
    bool has_cursor; /* STEP: all points up to this key are done; only the last may have none */
    struct point_key cursor;
};

static inline uint32_t entry_row_stride(uint32_t dim) { return (dim + 15) & ~15u; } /* in floats */

/* Builds one entry. Reused: reset, begin_request, add ops, finish. Owner: one thread. */
struct entry_builder;
struct entry_builder *entry_builder_new(const struct collection_schema *schema); /* copies the schema */
void entry_builder_free(struct entry_builder *b);
void entry_builder_reset(struct entry_builder *b);
void entry_builder_begin_request(struct entry_builder *b, struct op_id op_id);
/* What the request just begun has to do with a write by filter; before its first operation. Copied. Must be well formed
 * (CHECKed). OMEN_ETOOBIG, OMEN_ENOMEM: nothing added. */
OMEN_CHECKED enum omen_err entry_builder_put_intent(struct entry_builder *b,
        const struct entry_intent *intent);
size_t entry_intent_bytes(const struct entry_intent *intent); /* that it takes of an entry */
/* Copies key, payload and vectors. The op must have been validated against the schema (CHECKed here); in a
 * builder without requests (for a derived entry) ops stand alone. OMEN_ETOOBIG past ENTRY_BYTES_MAX,
 * OMEN_ENOMEM: nothing added. */
OMEN_CHECKED enum omen_err entry_builder_add(struct entry_builder *b, const struct point_op *op);
size_t entry_builder_bytes(const struct entry_builder *b); /* what finish would give now */
uint32_t entry_builder_op_count(const struct entry_builder *b);
uint32_t entry_builder_request_count(
        const struct entry_builder *b); /* begin_request at ENTRY_REQUESTS_MAX is a bug */
/* Lay out, stamp, checksum. The bytes are a fresh 64-byte aligned allocation owned by the caller (mem_free).
 * The builder keeps its content until reset. A derived entry holds upserts only and may have no requests;
 * others have at least one. */
OMEN_CHECKED enum omen_err entry_builder_finish(struct entry_builder *b, uint64_t log_time_ms, uint64_t epoch,
        bool derived, uint8_t **entry_out, uint32_t *len_out);

/* A parsed view over entry bytes; borrows them. */
struct entry {
    const uint8_t *base;
    uint32_t total_bytes, request_count, op_count, field_count, op_stride;
    uint64_t log_time_ms, epoch;
    bool derived;
    bool timed;   /* some op may have an expiry or a version */
    bool intents; /* some request has an intent */
    const uint8_t *requests, *ops, *heap;
    const uint32_t *row_ops[OMEN_VECTOR_FIELDS_MAX];
    const float *columns[OMEN_VECTOR_FIELDS_MAX];
    uint32_t row_count[OMEN_VECTOR_FIELDS_MAX];
};

struct entry_request {
    struct op_id op_id;
    uint32_t first_op, op_count;
};
struct entry_op {
    enum point_op_kind kind;
    bool any_key;
    uint64_t expires_ms; /* upserts; 0 = never */
    uint64_t if_version; /* others; 0 = none */
    struct point_key key;
    struct bytes shard_key;
    struct doc payload;                    /* validated structurally by entry_parse(deep = true) */
    uint32_t rows[OMEN_VECTOR_FIELDS_MAX]; /* ENTRY_NO_ROW = none; fields past field_count are ENTRY_NO_ROW */
};

/* Check everything an untrusted entry could lie about: magic, version, sizes, every offset and count against
 * the total, alignment, op kinds, row tables, request ranges, and with `deep` the CRC, every doc and every
 * float's finiteness. `schema` gives field count and dims. OMEN_ECORRUPT with the reason and the offset; OMEN_EVERSION:
 * of a later release. The
 * layout is canonical: every offset follows from the counts, rows of a field are numbered in the order of
 * their ops, the heap holds keys and docs in the order of their ops, all without gaps or overlap, so content
 * has one encoding. `bytes` must be 8-byte aligned (CHECKed); `len` must be the entry's total. Cost:
 * O(op_count); with `deep` one pass. */
OMEN_CHECKED enum omen_err entry_parse(const void *bytes, size_t len, const struct collection_schema *schema,
        bool deep, struct entry *entry_out, struct err *err);
/* The view over bytes that passed entry_parse before (deep when they came from outside) and have not changed.
 * O(1). */
void entry_attach(const void *bytes, const struct collection_schema *schema, struct entry *entry_out);
void entry_request_at(const struct entry *e, uint32_t i, struct entry_request *request_out);
void entry_op_at(const struct entry *e, uint32_t i, struct entry_op *op_out);
/* Of the request, when it is part of a write by filter. Docs borrow from the entry. */
bool entry_intent_at(const struct entry *e, uint32_t request, struct entry_intent *intent_out);
/* Whether the bytes are an entry, as entry_parse without `deep` finds, that only deletes points, also by filter.
 * O(op_count). */
bool entry_only_deletes(const void *bytes, size_t len, const struct collection_schema *schema);
/* When the point of operation `i` expires, 0 = never; cheaper than entry_op_at. */
static inline uint64_t entry_expires_ms(const struct entry *e, uint32_t i)
{
    const uint8_t *o = e->ops + (size_t)i * e->op_stride;
    return e->timed && o[0] == POINT_UPSERT ? load_u64(o + ENTRY_OP_TIME_OFF) : 0;
}
/* Which row of the field operation `i` brings, or ENTRY_NO_ROW; cheaper than entry_op_at. */
static inline uint32_t entry_op_row(const struct entry *e, uint32_t i, uint32_t field)
{
    return load_u32(e->ops + (size_t)i * e->op_stride + ENTRY_OP_ROWS_OFF + 4 * (size_t)field);
}
static inline const float *entry_row(const struct entry *e, uint32_t field, uint32_t row, uint32_t dim)
{
    return e->columns[field] + (size_t)row * entry_row_stride(dim);
}

#endif
