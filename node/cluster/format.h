/* Little-endian fields written to a buf and read with bounds; shared by entry_format.c and state_format.c. */
#ifndef OMEN_NODE_CLUSTER_FORMAT_H
#define OMEN_NODE_CLUSTER_FORMAT_H

#include "common/bytes.h"
#include "common/check.h"
#include "common/crc32c.h"
#include "common/mem.h"
#include "common/query/point.h"

/* Of everything but the checksum itself. */
static inline uint32_t crc_around(const uint8_t *data, size_t len, size_t crc_at)
{
    return crc32c(crc32c(0, data, crc_at), data + crc_at + 4, len - crc_at - 4);
}

static inline void put_u16(struct buf *b, uint16_t v) { buf_append(b, &v, sizeof v); }
static inline void put_u32(struct buf *b, uint32_t v) { buf_append(b, &v, sizeof v); }
static inline void put_u64(struct buf *b, uint64_t v) { buf_append(b, &v, sizeof v); }
static inline void put_f32(struct buf *b, float v) { buf_append(b, &v, sizeof v); }

static inline void put_text(struct buf *b, const char *text)
{
    size_t len = strlen(text);
    CHECK(len <= UINT16_MAX);
    put_u16(b, (uint16_t)len);
    buf_append(b, text, len);
}

/* `failed` sticks; reads past it give zeros. */
struct reader {
    const uint8_t *data;
    size_t len, at;
    bool failed;
};

static inline const uint8_t *take(struct reader *in, size_t n)
{
    static const uint8_t zeros[8];
    if (in->failed || !range_fits(in->at, n, in->len)) {
        in->failed = true;
        return zeros;
    }
    in->at += n;
    return in->data + in->at - n;
}

static inline uint16_t take_u16(struct reader *in) { return load_u16(take(in, 2)); }
static inline uint32_t take_u32(struct reader *in) { return load_u32(take(in, 4)); }
static inline uint64_t take_u64(struct reader *in) { return load_u64(take(in, 8)); }

static inline float take_f32(struct reader *in)
{
    float v;
    memcpy(&v, take(in, 4), sizeof v);
    return v;
}

/* u32 length, bytes; absent = 0. */
static inline void put_doc(struct buf *b, struct doc doc)
{
    put_u32(b, doc.data == NULL ? 0 : doc.len);
    if (doc.data != NULL) buf_append(b, doc.data, doc.len);
}

/* Validated; borrows. */
static inline struct doc take_doc(struct reader *in, uint32_t bytes_max)
{
    struct doc doc = { NULL, 0 };
    uint32_t len = take_u32(in);
    if (len == 0 || in->failed) return doc;
    if (len > bytes_max || !range_fits(in->at, len, in->len)) {
        in->failed = true;
        return doc;
    }
    struct bytes bytes = { in->data + in->at, len };
    in->at += len;
    if (doc_validate(bytes, bytes_max, &doc, NULL) != OMEN_OK) {
        in->failed = true;
        return (struct doc){ NULL, 0 };
    }
    return doc;
}

/* `out` [bytes_max + 1], NUL-terminated. */
static inline void take_text(struct reader *in, char *out, size_t bytes_max)
{
    size_t len = take_u16(in);
    out[0] = '\0';
    if (len > bytes_max) in->failed = true;
    const uint8_t *text = take(in, in->failed ? 0 : len);
    if (in->failed) return;
    if (memchr(text, 0, len) != NULL) in->failed = true;
    memcpy(out, text, len);
    out[len] = '\0';
}

/* A count that is followed by at least `item_bytes` each: held against what is left before anything is allocated for
 * it. */
static inline uint32_t take_count(struct reader *in, uint32_t max, size_t item_bytes)
{
    uint32_t count = take_u32(in);
    if (count > max || (uint64_t)count * item_bytes > in->len - in->at) in->failed = true;
    return in->failed ? 0 : count;
}

static inline void put_schema(struct buf *b, const struct collection_schema *schema)
{
    put_text(b, schema->shard_key);
    put_u32(b, schema->field_count);
    for (uint32_t i = 0; i < schema->field_count; i++) {
        put_text(b, schema->fields[i].name);
        put_u32(b, schema->fields[i].dim);
        put_u32(b, (uint32_t)schema->fields[i].metric);
    }
}

static inline void take_schema(struct reader *in, struct collection_schema *schema)
{
    take_text(in, schema->shard_key, DOC_PATH_BYTES_MAX);
    uint32_t count = take_u32(in);
    if (count > OMEN_VECTOR_FIELDS_MAX) {
        in->failed = true;
        return;
    }
    schema->field_count = count;
    for (uint32_t i = 0; i < count; i++) {
        take_text(in, schema->fields[i].name, OMEN_NAME_BYTES_MAX);
        schema->fields[i].dim = take_u32(in);
        uint32_t metric = take_u32(in);
        if (metric > METRIC_COSINE) in->failed = true;
        schema->fields[i].metric = in->failed ? METRIC_L2 : (enum metric)metric;
    }
}

#endif
