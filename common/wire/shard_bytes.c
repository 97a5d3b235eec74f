/* Reading and writing the pieces of messages between servers; see shard_bytes.h. */
#include "common/wire/shard_bytes.h"

#include "common/check.h"

/* ---- writing ---- */

void put_text(struct buf *out, const char *text, size_t bytes_max)
{
    put_bytes16(out, (struct bytes){ (const uint8_t *)text, strnlen(text, bytes_max) });
}

void put_bytes16(struct buf *out, struct bytes bytes)
{
    CHECK(bytes.len <= UINT16_MAX);
    put_u16(out, (uint16_t)bytes.len);
    if (bytes.len > 0) buf_append(out, bytes.data, bytes.len);
}

void put_doc(struct buf *out, struct doc doc)
{
    put_u32(out, doc.data == NULL ? 0 : doc.len);
    if (doc.data != NULL) buf_append(out, doc.data, doc.len);
}

void put_id(struct buf *out, point_id id)
{
    put_u8(out, id.kind);
    put_u64(out, id.lo);
    if (id.kind == POINT_ID_UUID) put_u64(out, id.hi);
}

void put_align4(struct buf *out)
{
    static const uint8_t zeros[4];
    if (out->len % 4 != 0) buf_append(out, zeros, 4 - out->len % 4);
}

/* ---- reading ---- */

struct wire_in wire_in(struct bytes bytes, struct arena *arena, struct err *err)
{
    static const uint8_t nothing[1];
    const uint8_t *base = bytes.data == NULL ? nothing : bytes.data;
    err_clear(err);
    return (struct wire_in){ base, base, base + bytes.len, arena, err };
}

void in_fail(struct wire_in *in, enum omen_err code, const char *field, const char *what)
{
    if (in->err->code == OMEN_OK) {
        err_set(in->err, code, field, "%s, at byte %zu of %zu", what, (size_t)(in->at - in->base),
                (size_t)(in->end - in->base));
    }
    in->at = in->end;
}

const uint8_t *in_take(struct wire_in *in, size_t len, const char *field)
{
    if (len <= in_left(in)) {
        const uint8_t *p = in->at;
        in->at += len;
        return in_ok(in) ? p : NULL;
    }
    in_fail(in, OMEN_EPROTO, field, "the message ends before its value does");
    return NULL;
}

float in_f32(struct wire_in *in, const char *field)
{
    const uint8_t *p = in_take(in, 4, field);
    float v = 0;
    if (p != NULL) memcpy(&v, p, sizeof v);
    if (v == v) return v;
    in_fail(in, OMEN_EINVAL, field, "is not a number");
    return 0;
}

bool in_bool(struct wire_in *in, const char *field) { return in_flags(in, 1, field) != 0; }

uint8_t in_flags(struct wire_in *in, uint8_t known, const char *field)
{
    uint8_t flags = in_u8(in, field);
    if ((flags & ~known) == 0) return flags;
    in_fail(in, OMEN_EPROTO, field, "has a bit that means nothing");
    return 0;
}

uint32_t in_count(struct wire_in *in, uint32_t max, size_t bytes_each, const char *field)
{
    uint32_t count = in_u32(in, field);
    if (count > max) {
        in_fail(in, OMEN_ETOOBIG, field, "announces more than the limit");
        return 0;
    }
    if ((uint64_t)count * bytes_each <= in_left(in)) return count;
    in_fail(in, OMEN_EPROTO, field, "announces more than the message has bytes for");
    return 0;
}

struct bytes in_bytes16(struct wire_in *in, size_t bytes_max, const char *field)
{
    size_t len = in_u16(in, field);
    if (len > bytes_max) {
        in_fail(in, OMEN_ETOOBIG, field, "is longer than the limit");
        len = 0;
    }
    const uint8_t *p = in_take(in, len, field);
    return (struct bytes){ p, p == NULL ? 0 : len };
}

void in_text(struct wire_in *in, char *out, size_t bytes_max, const char *field)
{
    struct bytes text = in_bytes16(in, bytes_max, field);
    if (text.len > 0 && (!utf8_valid(text.data, text.len) || memchr(text.data, 0, text.len) != NULL)) {
        in_fail(in, OMEN_EINVAL, field, "is no text");
        text.len = 0;
    }
    if (text.len > 0) memcpy(out, text.data, text.len);
    out[text.len] = '\0';
}

struct doc in_doc(struct wire_in *in, uint32_t limit_bytes, const char *field)
{
    struct doc doc = { NULL, 0 };
    uint32_t len = in_u32(in, field);
    const uint8_t *p = in_take(in, len, field);
    if (p == NULL || len == 0) return doc;
    struct err why;
    err_clear(&why);
    if (doc_validate((struct bytes){ p, len }, limit_bytes, &doc, &why) == OMEN_OK) return doc;
    in_fail(in, why.code, field, why.message);
    return (struct doc){ NULL, 0 };
}

point_id in_id(struct wire_in *in, const char *field)
{
    point_id id = { 0, 0, 0 };
    uint8_t kind = in_u8(in, field);
    if (kind > POINT_ID_UUID) {
        in_fail(in, OMEN_EPROTO, field, "is an id of no known kind");
        return id;
    }
    id.kind = kind;
    id.lo = in_u64(in, field);
    if (kind == POINT_ID_UUID) id.hi = in_u64(in, field);
    return id;
}

struct shard_key in_key(struct wire_in *in, const char *field)
{
    struct bytes canonical = in_bytes16(in, OMEN_SHARD_KEY_BYTES_MAX, field);
    if (canonical.len > 0 && !shard_key_valid(canonical)) {
        in_fail(in, OMEN_EINVAL, field, "is no canonical shard key");
        canonical.len = 0;
    }
    return (struct shard_key){ { canonical.len == 0 ? NULL : canonical.data, canonical.len } };
}

void in_align4(struct wire_in *in)
{
    size_t at = (size_t)(in->at - in->base);
    const uint8_t *p = in_take(in, (4 - at % 4) % 4, "padding");
    for (size_t i = at; p != NULL && i % 4 != 0; i++) {
        if (p[i - at] != 0) in_fail(in, OMEN_EPROTO, "padding", "is not zero");
    }
}

void *in_alloc(struct wire_in *in, size_t count, size_t bytes_each)
{
    if (!in_ok(in)) return NULL;
    void *p = arena_calloc(in->arena, count + 1, bytes_each);
    if (p == NULL) in_fail(in, OMEN_ENOMEM, "", "the message needs too much memory");
    return p;
}

enum omen_err in_end(struct wire_in *in)
{
    if (in->at != in->end) in_fail(in, OMEN_EPROTO, "", "bytes after the end of the message");
    return in->err->code;
}
