/* Payload values: one encoded, self-delimiting, skippable form ("doc") for payloads in requests, in the log, in the
 * stream and under filters, so that a payload is encoded once where it enters and only walked afterwards.
 *
 *   doc := tag u8, then by tag (little-endian, unaligned)
 *     0 null | 1 false | 2 true | 3 i64: 8 bytes | 4 f64: 8 bytes (never NaN/Inf)
 *     5 string: u32 len, UTF-8 bytes
 *     6 array:  u32 body_bytes, u32 count, count docs
 *     7 object: u32 body_bytes, u32 count, count x (u16 key_len, key bytes, doc), keys strictly ascending by bytes
 * body_bytes counts what follows the count. Depth is at most DOC_DEPTH_MAX, a whole doc at most DOC_BYTES_MAX.
 * Equal values have equal bytes (one form per value), so a hash of the bytes is a hash of the payload.
 * The form is part of the storage formats: storage/FORMAT.md, golden files. */
#ifndef OMEN_COMMON_QUERY_DOC_H
#define OMEN_COMMON_QUERY_DOC_H

#include "common/bytes.h"
#include "common/err.h"
#include "common/mem.h"

#define DOC_DEPTH_MAX 16            /* nested arrays and objects */
#define DOC_BYTES_MAX (64 * 1024)   /* one point's payload */
#define DOC_FILTER_BYTES_MAX (1024 * 1024) /* a filter given as a doc: has_id and any lists are long */
#define DOC_KEY_BYTES_MAX 255
#define DOC_PATH_BYTES_MAX 1024

enum doc_type { DOC_NULL, DOC_FALSE, DOC_TRUE, DOC_I64, DOC_F64, DOC_STRING, DOC_ARRAY, DOC_OBJECT };

/* A borrowed, validated value. Plain data. */
struct doc {
    const uint8_t *data; /* at the tag; NULL = absent */
    uint32_t len;        /* whole encoded length */
};

/* Check untrusted bytes once, where they enter: structure, lengths, depth, UTF-8, key order, finite numbers, no
 * trailing bytes, at most `limit_bytes`. Everything below trusts a doc that passed. */
OMEN_CHECKED enum omen_err doc_validate(struct bytes bytes, uint32_t limit_bytes, struct doc *doc_out, struct err *err);

enum doc_type doc_type(struct doc doc);
int64_t doc_i64(struct doc doc);              /* DOC_I64 */
double doc_f64(struct doc doc);               /* DOC_F64, or DOC_I64 converted */
bool doc_is_number(struct doc doc);
struct bytes doc_string(struct doc doc);      /* DOC_STRING; not NUL-terminated */
uint32_t doc_count(struct doc doc);           /* elements of an array, members of an object */

/* Iterate an array or object: struct doc_iter it = doc_iter(d); while (doc_next(&it, &key, &value)) ...
 * `key` is empty in arrays; `key_out` may be NULL. */
struct doc_iter { const uint8_t *next; uint32_t left; bool object; };
struct doc_iter doc_iter(struct doc doc);
bool doc_next(struct doc_iter *it, struct bytes *key_out, struct doc *value_out);

/* Member of an object by key; {NULL,0} when absent or not an object. */
struct doc doc_member(struct doc object, struct bytes key);
bool doc_equal(struct doc a, struct doc b);  /* same type and value; 1 and 1.0 are equal numbers */

/* Building. Objects may be fed in any key order: they are sorted when ended; a duplicate key is OMEN_EINVAL there.
 * Errors stick and are reported by doc_builder_finish. Threads: one. */
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
/* The finished value, borrowed until the next reset or free. The error's field is the path of the offending value. */
OMEN_CHECKED enum omen_err doc_builder_finish(struct doc_builder *b, struct doc *doc_out, struct err *err);

/* A payload path as Qdrant's users write it: "section", "a.b", "tags[]" (every element), "items[].price",
 * "\"odd.key\".x". Parsed once, walked many times. */
struct doc_path;
OMEN_CHECKED enum omen_err doc_path_parse(const char *text, size_t len, struct arena *arena,
        const struct doc_path **path_out, struct err *err);
struct bytes doc_path_text(const struct doc_path *path);
/* Call `each` for every value at the path; arrays at the end of a path are also opened, as Qdrant does, when
 * `open_arrays`. Stops when it returns false; returns false when stopped. */
bool doc_path_each(const struct doc_path *path, struct doc root, bool open_arrays,
        bool (*each)(void *arg, struct doc value), void *arg);
/* First value at the path, not opening arrays; {NULL,0} when absent. */
struct doc doc_path_first(const struct doc_path *path, struct doc root);

/* Payload operations, used by apply: deterministic, no clock, no locale. Results are appended to `out`.
 * merge: members of `patch` replace those of `base` (top level, as Qdrant's set_payload; `base` absent = {}).
 * remove: drop the members at `paths`. Result over DOC_BYTES_MAX is OMEN_ETOOBIG. */
OMEN_CHECKED enum omen_err doc_merge(struct doc base, struct doc patch, struct buf *out, struct err *err);
OMEN_CHECKED enum omen_err doc_remove(struct doc base, const struct doc_path *const *paths, uint32_t path_count,
        struct buf *out, struct err *err);
/* Keep only (`include`) or all but (`exclude`) the given paths; for what a search returns. */
OMEN_CHECKED enum omen_err doc_select(struct doc base, const struct doc_path *const *paths, uint32_t path_count,
        bool include, struct buf *out, struct err *err);

#endif
