/* Shared by the .c files of this room only: reading msgpack objects with errors that name the field, and writing them
 * straight into a buf. The only header that includes msgpack.h.
 *
 * Errors carry the place relative to the value being read ("" = the value itself); whoever descends prefixes the member's
 * name or "[slot]" with err_prefix on the way up. */
#ifndef OMEN_COMMON_WIRE_VALUE_H
#define OMEN_COMMON_WIRE_VALUE_H

#include <msgpack.h>

#include "common/wire/message.h"

/* ---- reading --------------------------------------------------------------------------------------------------- */

/* What one decode needs; all borrowed, the doc builder owned and made when first needed. */
struct reader {
    struct arena *arena;
    struct doc_builder *builder;
    msgpack_unpacked unpacked; /* owns the object tree; strings and bins point into the message */
    struct err *err;
};

/* Scan, unpack and check that `message` is one map. Pair with reader_fini, also after an error. */
OMEN_CHECKED enum omen_err reader_init(struct reader *r, struct bytes message, struct arena *arena,
        struct err *err);
void reader_fini(struct reader *r);

/* Structural pass over untrusted bytes, before anything is allocated for them: one value and nothing after it, every
 * announced length within the bytes that are left, depth, total number of elements, no extension types. The error's field
 * is the top-level member reached. Cost: one pass over headers; contents of str and bin are skipped. */
OMEN_CHECKED enum omen_err wire_scan(struct bytes message, struct err *err);

/* Sort the members of a map into `slots` [count] by their position in `names`; absent and nil give NULL. A key that is no
 * str, is not in `names`, is not in the `allowed` bits or comes twice is an error that names it. At most 64 names. */
OMEN_CHECKED enum omen_err map_collect(struct reader *r, const msgpack_object *map, const char *const *names,
        uint32_t count, uint64_t allowed, const msgpack_object **slots);

OMEN_CHECKED enum omen_err read_u64(struct reader *r, const msgpack_object *v, uint64_t min, uint64_t max,
        uint64_t *out);
OMEN_CHECKED enum omen_err read_u32(struct reader *r, const msgpack_object *v, uint32_t min, uint32_t max,
        uint32_t *out);
OMEN_CHECKED enum omen_err read_bool(struct reader *r, const msgpack_object *v, bool *out);
/* Float or integer. */
OMEN_CHECKED enum omen_err read_f64(struct reader *r, const msgpack_object *v, double *out);
/* Valid UTF-8 of at most `bytes_max`. */
OMEN_CHECKED enum omen_err read_str(struct reader *r, const msgpack_object *v, size_t bytes_max,
        struct bytes *out);
OMEN_CHECKED enum omen_err read_bin(struct reader *r, const msgpack_object *v, size_t bytes_max,
        struct bytes *out);
OMEN_CHECKED enum omen_err read_array(struct reader *r, const msgpack_object *v, uint32_t min, uint32_t max,
        msgpack_object_array *out);
OMEN_CHECKED enum omen_err read_id(struct reader *r, const msgpack_object *v, point_id *out);
/* bin of u64, or array of ids: [*count_out] in the arena. */
OMEN_CHECKED enum omen_err read_ids(struct reader *r, const msgpack_object *v, uint32_t min, uint32_t max,
        const point_id **ids_out, uint32_t *count_out);
/* Any value as a doc in the arena. */
OMEN_CHECKED enum omen_err read_doc(struct reader *r, const msgpack_object *v, uint32_t limit_bytes,
        struct doc *doc_out);
/* Array of exactly `count` values, nil = absent: payloads (`objects`) or shard key values. */
OMEN_CHECKED enum omen_err read_docs(struct reader *r, const msgpack_object *v, uint32_t count, bool objects,
        struct doc **docs_out);
OMEN_CHECKED enum omen_err read_token(struct reader *r, const msgpack_object *v, struct token *out);
OMEN_CHECKED enum omen_err read_tokens(struct reader *r, const msgpack_object *v, uint32_t max,
        const struct token **tokens_out, uint32_t *count_out);

/* Arena memory or an error that says the request needs too much. */
OMEN_CHECKED enum omen_err read_alloc(struct reader *r, size_t count, size_t bytes, void *ptr_out);
enum omen_err read_expected(struct reader *r, const msgpack_object *v, const char *what);
void prefix_slot(struct err *err, const char *name, uint32_t slot); /* "name[slot]"; name may be "" */
bool bytes_equal(struct bytes a, const char *text);

/* ---- writing --------------------------------------------------------------------------------------------------- */

/* A packer over a buf. Failures stick in the buf. */
void packer_init(msgpack_packer *pk, struct buf *out);
void pack_str(msgpack_packer *pk, const char *text);
void pack_bytes_str(msgpack_packer *pk, struct bytes text);
void pack_bin(msgpack_packer *pk, const void *data, size_t len);
void pack_doc(msgpack_packer *pk, struct doc doc); /* absent = nil */
void pack_id(msgpack_packer *pk, point_id id);
void pack_shard_key(msgpack_packer *pk, struct shard_key key); /* canonical bytes as a value; empty = nil */
void pack_token(msgpack_packer *pk, const struct token *token);
void pack_bool(msgpack_packer *pk, bool v);

#endif
