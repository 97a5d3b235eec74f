/* Shared by the shard_*.c files of this room only: writing little-endian values to a buf, and reading them from untrusted
 * bytes. A reader that ran over the end or met a bad value says so from then on: everything read is 0 or empty, so a
 * decoder checks at its end and before it allocates. */
#ifndef OMEN_COMMON_WIRE_SHARD_BYTES_H
#define OMEN_COMMON_WIRE_SHARD_BYTES_H

#include "common/wire/shard_message.h"

static inline void put_u8(struct buf *out, uint8_t v) { buf_append(out, &v, 1); }
static inline void put_u16(struct buf *out, uint16_t v) { buf_append(out, &v, sizeof v); }
static inline void put_u32(struct buf *out, uint32_t v) { buf_append(out, &v, sizeof v); }
static inline void put_u64(struct buf *out, uint64_t v) { buf_append(out, &v, sizeof v); }
static inline void put_f32(struct buf *out, float v) { buf_append(out, &v, sizeof v); }
void put_text(struct buf *out, const char *text, size_t bytes_max); /* u16 length, bytes; cut at bytes_max */
void put_bytes16(struct buf *out, struct bytes bytes);              /* u16 length, bytes; CHECKed to fit */
void put_doc(struct buf *out, struct doc doc);                      /* u32 length, bytes; absent = 0 */
void put_id(struct buf *out, point_id id);                          /* u8 kind, u64 lo, UUIDs also u64 hi */
void put_align4(struct buf *out);                                   /* zeros up to a multiple of 4 */

struct wire_in {
    const uint8_t *base, *at, *end; /* `base`: what alignment counts from */
    struct arena *arena;
    struct err *err; /* never NULL; its code is what the first failure was, OMEN_OK before */
};

struct wire_in wire_in(struct bytes bytes, struct arena *arena, struct err *err);
static inline bool in_ok(const struct wire_in *in) { return in->err->code == OMEN_OK; }
static inline size_t in_left(const struct wire_in *in) { return (size_t)(in->end - in->at); }
/* The first failure stays. Puts the reader at its end. */
void in_fail(struct wire_in *in, enum omen_err code, const char *field, const char *what);
/* `len` bytes, or NULL after a failure. */
const uint8_t *in_take(struct wire_in *in, size_t len, const char *field);

static inline uint8_t in_u8(struct wire_in *in, const char *field)
{
    const uint8_t *p = in_take(in, 1, field);
    return p == NULL ? 0 : p[0];
}
static inline uint16_t in_u16(struct wire_in *in, const char *field)
{
    const uint8_t *p = in_take(in, 2, field);
    return p == NULL ? 0 : load_u16(p);
}
static inline uint32_t in_u32(struct wire_in *in, const char *field)
{
    const uint8_t *p = in_take(in, 4, field);
    return p == NULL ? 0 : load_u32(p);
}
static inline uint64_t in_u64(struct wire_in *in, const char *field)
{
    const uint8_t *p = in_take(in, 8, field);
    return p == NULL ? 0 : load_u64(p);
}
float in_f32(struct wire_in *in, const char *field); /* any but NaN */
bool in_bool(struct wire_in *in, const char *field); /* 0 or 1 */
uint8_t in_flags(struct wire_in *in, uint8_t known, const char *field);
/* At most `max`, and each of them will take at least `bytes_each` of what is left. */
uint32_t in_count(struct wire_in *in, uint32_t max, size_t bytes_each, const char *field);
struct bytes in_bytes16(struct wire_in *in, size_t bytes_max, const char *field);
/* UTF-8 without NULs, copied with its NUL into out[bytes_max + 1]. */
void in_text(struct wire_in *in, char *out, size_t bytes_max, const char *field);
struct doc in_doc(struct wire_in *in, uint32_t limit_bytes,
        const char *field); /* validated; absent for length 0 */
point_id in_id(struct wire_in *in, const char *field);
struct shard_key in_key(struct wire_in *in, const char *field);
void in_align4(struct wire_in *in);
/* [count][bytes_each] zeroed in the arena; NULL after a failure, never for count 0. */
void *in_alloc(struct wire_in *in, size_t count, size_t bytes_each);
/* Nothing may be left. The code of the first failure. */
OMEN_CHECKED enum omen_err in_end(struct wire_in *in);

/* shard_map.c */
void put_schema(struct buf *out, const struct collection_schema *schema);
void in_schema(struct wire_in *in, struct collection_schema *out);
void put_map(struct buf *out, const struct map *map); /* u32 length, map; NULL = 0 */
struct map *in_map(struct wire_in *in);

#endif
