/* What a point is called and what a request about points says: ids, shard keys, operations, search
 * parameters, hits.
 * Shared by wire, router, node, storage and the client, so that each field has one name and one meaning.
 * All structs are plain, borrow their bytes from the request they were decoded from, and own nothing. */
#ifndef OMEN_COMMON_QUERY_POINT_H
#define OMEN_COMMON_QUERY_POINT_H

#include "common/bytes.h"
#include "common/query/doc.h"

#define OMEN_DIM_MAX 4096
#define OMEN_K_MAX 10000            /* k + offset */
#define OMEN_BATCH_POINTS_MAX 10000 /* points in one write request */
#define OMEN_BATCH_BYTES_MAX (32u << 20)
#define OMEN_BATCH_SEARCHES_MAX 1000
#define OMEN_VECTOR_FIELDS_MAX 8
/* Of collections, aliases, vector fields: [A-Za-z0-9_.-], not starting with '.'. */
#define OMEN_NAME_BYTES_MAX 128
#define OMEN_SHARD_KEY_BYTES_MAX 512
#define OMEN_SCROLL_LIMIT_MAX 10000
#define OMEN_EXPIRES_MS_MAX INT64_MAX /* Unix time in ms */

enum point_id_kind { POINT_ID_U64 = 0, POINT_ID_UUID = 1 };

/* u64, or UUID as 16 bytes. Order: numbers before UUIDs, numbers by value, UUIDs by bytes. */
typedef struct {
    uint64_t hi, lo; /* U64: hi 0, lo the number. UUID: big-endian halves */
    uint8_t kind;
} point_id;

#define POINT_ID_TEXT_BYTES 37 /* with the NUL */
int point_id_compare(point_id a, point_id b);
static inline bool point_id_equal(point_id a, point_id b)
{
    return a.lo == b.lo && a.hi == b.hi && a.kind == b.kind;
}
void point_id_format(point_id id, char text_out[POINT_ID_TEXT_BYTES]); /* decimal, or 8-4-4-4-12 */
/* A number without sign or leading zeros, or a UUID with or without its hyphens, in any case. OMEN_EINVAL on
 * anything else, numbers past 2^64 - 1 included; `id_out` untouched then. */
OMEN_CHECKED enum omen_err point_id_parse(const char *text, size_t len, point_id *id_out);

/* Shard key in canonical bytes (CORRECTNESS I1): tag u8 then value. 1 string: UTF-8 bytes. 2 bool: 0/1.
 * 3 i64: 8 bytes big-endian two's complement. Empty = the collection has no shard key. At most
 * OMEN_SHARD_KEY_BYTES_MAX with the tag. Part of the protocol: tests/golden/shard_keys.txt. */
struct shard_key {
    struct bytes canonical;
};
/* From a payload value; floats, arrays, objects, null and an absent value are OMEN_EINVAL naming `path`, a
 * string that is too long OMEN_ETOOBIG. Bytes live in `arena`. */
OMEN_CHECKED enum omen_err shard_key_from_doc(struct doc value, const char *path, struct arena *arena,
        struct shard_key *key_out, struct err *err);

/* Whether bytes from outside are the canonical form of a key that can be (empty is none of them). */
bool shard_key_valid(struct bytes canonical);

/* What LMDB, the delta, merge and results are keyed by: id first, so that a request by id without the shard
 * key is a range. Bytes compare as (id, hash). */
#define POINT_KEY_BYTES 33
struct point_key {
    point_id id;
    uint64_t key_hi, key_lo; /* hash128(canonical shard key); 0,0 without one */
};
struct point_key point_key_make(point_id id, struct shard_key key);
int point_key_compare(const struct point_key *a, const struct point_key *b);
/* kind u8 | id hi | id lo | key_hi | key_lo, all big-endian: memcmp order is point_key_compare order. */
void point_key_encode(const struct point_key *key, uint8_t out[POINT_KEY_BYTES]);
void point_key_decode(const uint8_t in[POINT_KEY_BYTES], struct point_key *key_out);

/* Slot of a point, 0..4095: hash64(canonical shard key bytes, or without one: 'i' and the id as in
 * point_key_encode, which is kind u8, hi, lo big-endian: 18 bytes) mod 4096. */
#define OMEN_SLOT_COUNT 4096
uint32_t point_slot(point_id id, struct shard_key key);

/* First NaN or infinity of `count` little-endian f32, maybe unaligned: false and where it is. */
bool floats_finite(const uint8_t *data, uint64_t count, uint64_t *position_out);

enum metric { METRIC_L2 = 0, METRIC_IP = 1, METRIC_COSINE = 2 };
const char *metric_name(enum metric metric); /* "l2", "ip", "cosine" */
bool metric_parse(const char *text, size_t len, enum metric *metric_out);
bool metric_higher_is_nearer(enum metric metric); /* ip and cosine */

struct vector_field {
    char name[OMEN_NAME_BYTES_MAX + 1]; /* "" for the unnamed one */
    uint32_t dim;
    enum metric metric;
};

/* Fixed at creation; what online change may alter lives beside it in the catalog. */
struct collection_schema {
    struct vector_field fields[OMEN_VECTOR_FIELDS_MAX];
    uint32_t field_count;
    char shard_key[DOC_PATH_BYTES_MAX + 1]; /* payload path, "" = none */
};

enum point_op_kind {
    POINT_UPSERT = 1, /* vectors and payload replace whatever was there */
    POINT_DELETE = 2,
    POINT_SET_PAYLOAD = 3, /* merge `payload` over the old one */
    POINT_OVERWRITE_PAYLOAD = 4,
    POINT_DELETE_PAYLOAD = 5, /* drop the members named in `payload`, an array of path strings */
};

struct point_op {
    enum point_op_kind kind;
    point_id id;
    struct shard_key key; /* empty without shard key, and for "any key" by-id requests */
    bool any_key;         /* id alone given although the collection has a shard key: acts on every match */
    struct doc payload;   /* absent = {} for upserts */
    uint64_t
            expires_ms; /* upserts: Unix time from which on the point is absent; 0 = never (CORRECTNESS A3) */
    uint64_t
            if_version; /* other kinds: passes over a point that was written after this sequence; 0 = none is */
    /* [dim] f32 by schema field, maybe unaligned; NULL = not given */
    const float *vectors[OMEN_VECTOR_FIELDS_MAX];
};

/* {client, seq, issue time} of the request that carries the ops; kept over retries (CORRECTNESS A4). */
struct op_id {
    uint64_t client; /* random per client process, never 0; 0 = none given, applied at least once */
    uint64_t seq;
    uint64_t issue_ms; /* client's wall clock */
};

/* When a write is answered. */
enum write_wait {
    WAIT_COMMITTED, /* fsynced by a majority and visible: what every promise is about */
    WAIT_ACCEPTED,  /* in the leader's hands; it may be lost, and what became of it is not told */
    WAIT_INDEXED,   /* committed, and in the index of the leader's replica */
};

enum consistency { CONSISTENCY_SESSION = 0, CONSISTENCY_EVENTUAL = 1, CONSISTENCY_LINEARIZABLE = 2 };

/* Returned by writes and reads, given back by session reads. */
struct token {
    uint64_t incarnation;
    uint64_t shard;
    uint64_t sequence;
};

/* Which parts of a point a reply carries. */
struct point_selection {
    bool with_payload;
    bool payload_include; /* paths are to keep; else to leave out */
    const struct doc_path *const *payload_paths;
    uint32_t payload_path_count; /* 0 with with_payload = everything */
    uint32_t vector_mask;        /* bit i = schema field i */
};

struct filter;

struct search_params {
    uint32_t field;     /* schema field searched */
    const float *query; /* [dim] f32, normalised already under METRIC_COSINE, 4-byte aligned */
    uint32_t k;         /* 1 .. OMEN_K_MAX, offset included by the router */
    bool has_score_threshold;
    float score_threshold;       /* in reported scores: at least (ip, cosine) or at most (l2) this */
    bool exact;                  /* look at every row rather than walk graphs */
    const struct filter *filter; /* NULL = all */
    struct doc filter_doc; /* what `filter` was parsed from, for who sends it on; absent = NULL filter */
    struct point_selection selection;
};

/* A point as a reply carries it. */
struct point_view {
    point_id id;
    struct shard_key key;                         /* canonical; empty when the collection has none */
    uint64_t version;                             /* sequence of the entry that wrote it */
    uint64_t expires_ms;                          /* 0 = never */
    struct doc payload;                           /* absent unless selected */
    const float *vectors[OMEN_VECTOR_FIELDS_MAX]; /* NULL unless selected and present */
};

struct hit {
    float score;    /* as reported, see score_of_distance() */
    float distance; /* what we rank by: squared l2, or -dot; smaller is nearer */
    struct point_view point;
};

/* Reported score of a ranking distance: l2 -> sqrt(distance), a distance that rounding made negative counting
 * as 0; ip, cosine -> -distance, never -0. */
float score_of_distance(enum metric metric, float distance);
/* Order of hits everywhere: by distance, ties by id, then by key hash. */
int hit_compare(const struct hit *a, const struct hit *b);

#endif
