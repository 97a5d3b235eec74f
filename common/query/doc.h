/* Payload values: one encoded, self-delimiting, skippable form ("doc") for payloads in requests, in the log,
 * in the stream and under filters, so that a payload is encoded once where it enters and only walked
 * afterwards.
 *
 *   doc := tag u8, then by tag (little-endian, unaligned)
 *     0 null | 1 false | 2 true | 3 i64: 8 bytes | 4 f64: 8 bytes (never NaN/Inf)
 *     5 string: u32 len, UTF-8 bytes
 *     6 array:  u32 body_bytes, u32 count, count docs
 *     7 object: u32 body_bytes, u32 count, count x (u16 key_len, key bytes, doc), keys ascending by bytes
 * body_bytes counts what follows the count. Depth is at most DOC_DEPTH_MAX, a whole doc at most
 * DOC_BYTES_MAX.
 * Equal values have equal bytes (one form per value), so a hash of the bytes is a hash of the payload.
 * The form is part of the storage formats: storage/FORMAT.md, golden files. */
#ifndef OMEN_COMMON_QUERY_DOC_H
#define OMEN_COMMON_QUERY_DOC_H

#include "common/bytes.h"
#include "common/err.h"
#include "common/mem.h"

#define DOC_DEPTH_MAX 32          /* nested arrays and objects; FILTER_DEPTH_MAX levels of must [..] fit */
#define DOC_BYTES_MAX (64 * 1024) /* one point's payload */
#define DOC_FILTER_BYTES_MAX (1024 * 1024) /* a filter given as a doc: has_id and any lists are long */
#define DOC_KEY_BYTES_MAX 255
#define DOC_PATH_BYTES_MAX 1024

enum doc_type { DOC_NULL, DOC_FALSE, DOC_TRUE, DOC_I64, DOC_F64, DOC_STRING, DOC_ARRAY, DOC_OBJECT };

/* A borrowed, validated value. Plain data. */
struct doc {
    const uint8_t *data; /* at the tag; NULL = absent */
    uint32_t len;        /* whole encoded length */
};

/* Check untrusted bytes once, where they enter: structure, lengths, depth, UTF-8, key order, finite numbers,
 * no trailing bytes, at most `limit_bytes`. Everything below trusts a doc that passed. -0.0 stays as it is.
 * Errors: OMEN_ETOOBIG (limit_bytes, depth, key length), else OMEN_EINVAL; the field is the path inside the
 * doc, the sentence names the byte. Cost: one pass, no allocation. */
OMEN_CHECKED enum omen_err doc_validate(struct bytes bytes, uint32_t limit_bytes, struct doc *doc_out,
        struct err *err);

/* Well-formed UTF-8 as RFC 3629 has it: no overlong forms, no surrogates, nothing above U+10FFFF. NUL is
 * allowed. */
bool utf8_valid(const void *data, size_t len);

/* Readers of a validated doc. Small and inline: filters run them once per point and condition. */
static inline enum doc_type doc_type(struct doc doc) { return (enum doc_type)doc.data[0]; }

/* Of a DOC_I64. */
static inline int64_t doc_i64(struct doc doc) { return (int64_t)load_u64(doc.data + 1); }

/* Of a DOC_F64, or a DOC_I64 converted. */
static inline double doc_f64(struct doc doc)
{
    if (doc.data[0] == DOC_I64) return (double)doc_i64(doc);
    double v;
    memcpy(&v, doc.data + 1, sizeof v);
    return v;
}

static inline bool doc_is_number(struct doc doc) { return doc.data[0] == DOC_I64 || doc.data[0] == DOC_F64; }

/* Of a DOC_STRING; not NUL-terminated. */
static inline struct bytes doc_string(struct doc doc)
{
    return (struct bytes){ doc.data + 5, load_u32(doc.data + 1) };
}

/* Elements of an array, members of an object; else 0. */
static inline uint32_t doc_count(struct doc doc)
{
    return doc.data[0] >= DOC_ARRAY ? load_u32(doc.data + 5) : 0;
}

/* Encoded length of the validated value at `data`. */
static inline uint32_t doc_encoded_bytes(const uint8_t *data)
{
    switch (data[0]) {
    case DOC_I64:
    case DOC_F64: return 9;
    case DOC_STRING: return 5 + load_u32(data + 1);
    case DOC_ARRAY:
    case DOC_OBJECT: return 9 + load_u32(data + 1);
    default: return 1;
    }
}

/* Iterate an array or object: struct doc_iter it = doc_iter(d); while (doc_next(&it, &key, &value)) ...
 * `key` is empty in arrays; `key_out` may be NULL. Any other type (or an absent doc) has nothing to
 * iterate. */
struct doc_iter {
    const uint8_t *next;
    uint32_t left;
    bool object;
};

static inline struct doc_iter doc_iter(struct doc doc)
{
    if (doc.data == NULL || doc.data[0] < DOC_ARRAY) return (struct doc_iter){ NULL, 0, false };
    return (struct doc_iter){ doc.data + 9, load_u32(doc.data + 5), doc.data[0] == DOC_OBJECT };
}

static inline bool doc_next(struct doc_iter *it, struct bytes *key_out, struct doc *value_out)
{
    if (it->left == 0) return false;
    struct bytes key = { NULL, 0 };
    const uint8_t *p = it->next;
    if (it->object) {
        key = (struct bytes){ p + 2, load_u16(p) };
        p += 2 + key.len;
    }
    if (key_out != NULL) *key_out = key;
    *value_out = (struct doc){ p, doc_encoded_bytes(p) };
    it->next = p + value_out->len;
    it->left--;
    return true;
}

/* The order of keys in an object: by bytes, a prefix first. */
static inline int doc_key_compare(struct bytes a, struct bytes b)
{
    size_t n = a.len < b.len ? a.len : b.len;
    int order = n == 0 ? 0 : memcmp(a.data, b.data, n);
    return order != 0 ? order : (a.len > b.len) - (a.len < b.len);
}

/* Member of an object by key; {NULL,0} when absent or not an object. Cost: the members before it. */
struct doc doc_member(struct doc object, struct bytes key);
/* Same type and value; 1 and 1.0 are equal numbers, compared exactly (2^53 + 1 is no double), and so are 0.0
 * and -0.0.
 * Two absent docs are equal. */
bool doc_equal(struct doc a, struct doc b);
/* Order of the encoded bytes (shorter first when one begins the other): for sorted sets of values. Unlike
 * doc_equal it tells 1 from 1.0. */
int doc_compare_bytes(struct doc a, struct doc b);
/* Levels of arrays and objects: 0 for a scalar. */
uint32_t doc_depth(struct doc doc);

/* Building. Objects may be fed in any key order: they are sorted when ended; a duplicate key is OMEN_EINVAL
 * there.
 * Errors (the same as doc_validate's, and OMEN_ENOMEM) stick and are reported by doc_builder_finish; what is
 * put after the first is ignored. Calls that do not nest (a value without its key, an end too many, a finish
 * too early) are bugs and CHECKed. Memory: at most about 2 x limit_bytes and 8 bytes per open member.
 * Threads: one. */
struct doc_builder;
struct doc_builder *doc_builder_new(uint32_t limit_bytes);
void doc_builder_free(struct doc_builder *b);
void doc_builder_reset(struct doc_builder *b, uint32_t limit_bytes);
void doc_put_null(struct doc_builder *b);
void doc_put_bool(struct doc_builder *b, bool v);
void doc_put_i64(struct doc_builder *b, int64_t v);
void doc_put_f64(struct doc_builder *b, double v);
void doc_put_string(struct doc_builder *b, const char *s, size_t len);
void doc_put_doc(struct doc_builder *b, struct doc value); /* copies */
void doc_begin_array(struct doc_builder *b);
void doc_begin_object(struct doc_builder *b);
void doc_key(struct doc_builder *b, const char *key, size_t len); /* before each member's value */
void doc_end(struct doc_builder *b);
/* The finished value, borrowed until the next reset or free. The error's field is the path of the offending
 * value. */
OMEN_CHECKED enum omen_err doc_builder_finish(struct doc_builder *b, struct doc *doc_out, struct err *err);

#define DOC_PATH_STEPS_MAX DOC_DEPTH_MAX /* a longer path could lead nowhere */

/* A payload path as Qdrant's users write it: "section", "a.b", "tags[]" (every element), "tags[0]",
 * "items[].price", "\"odd.key\".x". Parsed once, walked many times. Lives in `arena`, with a copy of the
 * text.
 * Errors: OMEN_ETOOBIG (DOC_PATH_BYTES_MAX, DOC_PATH_STEPS_MAX, DOC_KEY_BYTES_MAX), OMEN_EINVAL, OMEN_ENOMEM;
 * the sentence quotes the path and names the byte, the field is left to the caller. */
struct doc_path;
OMEN_CHECKED enum omen_err doc_path_parse(const char *text, size_t len, struct arena *arena,
        const struct doc_path **path_out, struct err *err);
struct bytes doc_path_text(const struct doc_path *path); /* as it was given; NUL-terminated */
bool doc_path_has_arrays(const struct doc_path *path);   /* holds a [] or [n] */
/* Call `each` for every value at the path; arrays at the end of a path are also opened (one level), as Qdrant
 * does, when `open_arrays`: an empty one then gives no value. Stops when it returns false; returns false when
 * stopped.
 * An absent root has no values. */
bool doc_path_each(const struct doc_path *path, struct doc root, bool open_arrays,
        bool (*each)(void *arg, struct doc value), void *arg);
/* First value at the path, not opening arrays; {NULL,0} when absent. */
struct doc doc_path_first(const struct doc_path *path, struct doc root);

/* Payload operations, used by apply: deterministic, no clock, no locale. Results are appended to `out`, which
 * is as before on an error. `base` absent = {}; a base or patch that is no object is OMEN_EINVAL.
 * merge: members of `patch` replace those of `base` (top level, as Qdrant's set_payload; a null is stored as
 * a null).
 * remove: drop what is at `paths`; "tags[]" leaves an empty array, "tags[0]" and "tags[1]" together drop the
 * first two.
 * Result over DOC_BYTES_MAX is OMEN_ETOOBIG. */
OMEN_CHECKED enum omen_err doc_merge(struct doc base, struct doc patch, struct buf *out, struct err *err);
OMEN_CHECKED enum omen_err doc_remove(struct doc base, const struct doc_path *const *paths,
        uint32_t path_count, struct buf *out, struct err *err);
/* Keep only (`include`) or all but (`exclude`) the given paths; for what a search returns. Arrays and objects
 * on the way to an included path are kept, emptied of the rest, so that elements of different arrays stay
 * aligned; scalars there are dropped. */
OMEN_CHECKED enum omen_err doc_select(struct doc base, const struct doc_path *const *paths,
        uint32_t path_count, bool include, struct buf *out, struct err *err);

#endif
