/* Building docs in their canonical form: arrays and objects are written in place with their sizes filled in
 * when they end; members fed out of order are sorted then.
 * Threads: one per builder. Determinism: equal values give equal bytes, whatever the order they were
 * fed in. */
#include "common/query/doc.h"

#include <math.h>
#include <stdlib.h>

#include "common/check.h"
#include "common/query/doc_place.h"

#define CONTAINER_HEADER_BYTES 9 /* tag, body_bytes, count */

struct member {
    uint32_t offset; /* of key_len, in out */
    uint32_t bytes;  /* key_len, key and value; known once the object ends */
};

/* An array or object that has begun and not ended. */
struct frame {
    uint32_t start;        /* of its tag, in out */
    uint32_t count;        /* elements or members begun */
    uint32_t first_member; /* objects: position of its first in members */
    bool object;
    bool sorted;    /* members came in ascending order so far */
    bool key_given; /* a key waits for its value */
};

struct doc_builder {
    struct buf out;
    struct buf sorted;      /* scratch: the body of an object being put in order */
    struct member *members; /* of all open objects, innermost last; owned */
    uint32_t member_count, member_cap;
    struct frame frames[DOC_DEPTH_MAX];
    uint32_t depth; /* frames in use */
    uint32_t limit_bytes;
    bool have_root; /* the outermost value has begun */
    struct err err; /* sticks until reset */
};

struct doc_builder *doc_builder_new(uint32_t limit_bytes)
{
    struct doc_builder *b = mem_must_calloc(1, sizeof *b);
    buf_init(&b->out);
    buf_init(&b->sorted);
    b->limit_bytes = limit_bytes;
    return b;
}

void doc_builder_free(struct doc_builder *b)
{
    if (b == NULL) return;
    buf_fini(&b->out);
    buf_fini(&b->sorted);
    mem_free(b->members);
    mem_free(b);
}

void doc_builder_reset(struct doc_builder *b, uint32_t limit_bytes)
{
    if (b->out.failed) { /* sticks in a buf: begin with a new one */
        buf_fini(&b->out);
        buf_init(&b->out);
    }
    if (b->sorted.failed) {
        buf_fini(&b->sorted);
        buf_init(&b->sorted);
    }
    buf_clear(&b->out);
    b->member_count = 0;
    b->depth = 0;
    b->limit_bytes = limit_bytes;
    b->have_root = false;
    err_clear(&b->err);
}

/* ---- errors ------------------------------------------------------------------------------------------ */

static bool failed(const struct doc_builder *b) { return b->err.code != OMEN_OK; }

static struct bytes member_key(const struct doc_builder *b, const struct member *m)
{
    const uint8_t *p = b->out.data + m->offset;
    return (struct bytes){ p + 2, load_u16(p) };
}

/* Field = the path of the value being put; `key` is a key that is not in `out` yet, or empty with
 * data NULL. */
static void fail_at(struct doc_builder *b, enum omen_err code, struct bytes key, const char *what)
{
    struct doc_place links[DOC_DEPTH_MAX + 1];
    const struct doc_place *place = NULL;
    uint32_t members_end = b->member_count;
    for (uint32_t i = b->depth; i-- > 0;) { /* members of inner frames lie behind those of outer ones */
        const struct frame *f = &b->frames[i];
        links[i] = (struct doc_place){ .up = i == 0 ? NULL : &links[i - 1] };
        if (f->object) {
            if (members_end > f->first_member)
                links[i].key = member_key(b, &b->members[members_end - 1]);
            else
                links[i].key = (struct bytes){ (const uint8_t *)"", 0 };
            members_end = f->first_member;
        } else {
            links[i].slot = f->count == 0 ? 0 : f->count - 1;
        }
    }
    if (b->depth > 0) place = &links[b->depth - 1];
    if (key.data != NULL) {
        CHECK(b->depth > 0);
        links[b->depth - 1].key = key;
    }
    char field[ERR_FIELD_BYTES];
    doc_place_format(place, field);
    err_set(&b->err, code, field, "%s", what);
}

static void fail(struct doc_builder *b, enum omen_err code, const char *what)
{
    fail_at(b, code, (struct bytes){ NULL, 0 }, what);
}

/* ---- values ------------------------------------------------------------------------------------------ */

/* Space for `bytes` more at the end of out, already counted; NULL (and the error set) past the limit. */
static uint8_t *grow(struct doc_builder *b, size_t bytes)
{
    if (!range_fits(b->out.len, bytes, b->limit_bytes)) {
        err_set(&b->err, OMEN_ETOOBIG, NULL, "value is longer than the limit of %u bytes", b->limit_bytes);
        return NULL;
    }
    uint8_t *p = b->out.cap - b->out.len >= bytes ? b->out.data + b->out.len : buf_reserve(&b->out, bytes);
    if (p == NULL) {
        fail(b, OMEN_ENOMEM, "out of memory");
        return NULL;
    }
    b->out.len += bytes;
    return p;
}

/* The place of the next value is right: false when an error sticks already. */
static bool begin_value(struct doc_builder *b)
{
    if (failed(b)) return false;
    if (b->depth == 0) {
        CHECK(!b->have_root);
        b->have_root = true;
        return true;
    }
    struct frame *f = &b->frames[b->depth - 1];
    if (f->object) {
        CHECK(f->key_given);
        f->key_given = false;
    } else {
        f->count++;
    }
    return true;
}

static void put_tag(struct doc_builder *b, enum doc_type tag)
{
    if (!begin_value(b)) return;
    uint8_t *p = grow(b, 1);
    if (p != NULL) p[0] = (uint8_t)tag;
}

static void put_number(struct doc_builder *b, enum doc_type tag, uint64_t bits)
{
    uint8_t *p = grow(b, 9);
    if (p == NULL) return;
    p[0] = (uint8_t)tag;
    store_u64(p + 1, bits);
}

void doc_put_null(struct doc_builder *b) { put_tag(b, DOC_NULL); }

void doc_put_bool(struct doc_builder *b, bool v) { put_tag(b, v ? DOC_TRUE : DOC_FALSE); }

void doc_put_i64(struct doc_builder *b, int64_t v)
{
    if (begin_value(b)) put_number(b, DOC_I64, (uint64_t)v);
}

void doc_put_f64(struct doc_builder *b, double v)
{
    if (!begin_value(b)) return;
    if (!isfinite(v)) {
        fail(b, OMEN_EINVAL, "number is not finite");
        return;
    }
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    put_number(b, DOC_F64, bits);
}

void doc_put_string(struct doc_builder *b, const char *s, size_t len)
{
    if (!begin_value(b)) return;
    if (len > b->limit_bytes) { /* also bounds the work and fits u32 */
        fail(b, OMEN_ETOOBIG, "string is longer than the limit of the whole value");
        return;
    }
    if (!utf8_valid(s, len)) {
        fail(b, OMEN_EINVAL, "string is not valid UTF-8");
        return;
    }
    uint8_t *p = grow(b, 5 + len);
    if (p == NULL) return;
    p[0] = DOC_STRING;
    store_u32(p + 1, (uint32_t)len);
    if (len > 0) memcpy(p + 5, s, len);
}

void doc_put_doc(struct doc_builder *b, struct doc value)
{
    CHECK(value.data != NULL);
    if (!begin_value(b)) return;
    if (doc_depth(value) > DOC_DEPTH_MAX - b->depth) {
        fail(b, OMEN_ETOOBIG, "nested deeper than 32 levels");
        return;
    }
    uint8_t *p = grow(b, value.len);
    if (p != NULL) memcpy(p, value.data, value.len);
}

/* ---- arrays and objects ------------------------------------------------------------------------------ */

static void begin_container(struct doc_builder *b, enum doc_type tag)
{
    if (!begin_value(b)) return;
    if (b->depth == DOC_DEPTH_MAX) {
        fail(b, OMEN_ETOOBIG, "nested deeper than 32 levels");
        return;
    }
    uint8_t *p = grow(b, CONTAINER_HEADER_BYTES);
    if (p == NULL) return;
    p[0] = (uint8_t)tag;
    b->frames[b->depth++] = (struct frame){
        .start = (uint32_t)(p - b->out.data),
        .first_member = b->member_count,
        .object = tag == DOC_OBJECT,
        .sorted = true,
    };
}

void doc_begin_array(struct doc_builder *b) { begin_container(b, DOC_ARRAY); }

void doc_begin_object(struct doc_builder *b) { begin_container(b, DOC_OBJECT); }

static bool members_reserve(struct doc_builder *b)
{
    if (b->member_count < b->member_cap) return true;
    uint32_t cap = b->member_cap == 0
            ? 64
            : 2 * b->member_cap; /* a member takes 3 bytes of the limit: no overflow */
    struct member *members = mem_realloc(b->members, cap * sizeof *members);
    if (members == NULL) {
        fail(b, OMEN_ENOMEM, "out of memory");
        return false;
    }
    b->members = members;
    b->member_cap = cap;
    return true;
}

void doc_key(struct doc_builder *b, const char *key, size_t len)
{
    if (failed(b)) return;
    CHECK(b->depth > 0);
    struct frame *f = &b->frames[b->depth - 1];
    CHECK(f->object);
    CHECK(!f->key_given);
    struct bytes k = { len == 0 ? (const uint8_t *)"" : (const uint8_t *)key, len };
    if (len > DOC_KEY_BYTES_MAX) {
        fail_at(b, OMEN_ETOOBIG, k, "key is longer than 255 bytes");
        return;
    }
    if (!utf8_valid(k.data, k.len)) {
        fail_at(b, OMEN_EINVAL, k, "key is not valid UTF-8");
        return;
    }
    if (!members_reserve(b)) return;
    uint32_t offset = (uint32_t)b->out.len;
    uint8_t *p = grow(b, 2 + len);
    if (p == NULL) return;
    store_u16(p, (uint16_t)len);
    memcpy(p + 2, k.data, len);
    if (f->count > 0 && f->sorted)
        f->sorted = doc_key_compare(member_key(b, &b->members[b->member_count - 1]), k) < 0;
    b->members[b->member_count++] = (struct member){ offset, 0 };
    f->count++;
    f->key_given = true;
}

static int member_order(const void *a, const void *b, void *builder)
{
    return doc_key_compare(member_key(builder, a), member_key(builder, b));
}

/* Put the members of an ended object in order. Equal keys are an error, so the order needs no stable sort. */
static void sort_members(struct doc_builder *b, const struct frame *f)
{
    struct member *members = b->members + f->first_member;
    for (uint32_t i = 0; i < f->count; i++) {
        uint32_t end = i + 1 < f->count ? members[i + 1].offset : (uint32_t)b->out.len;
        members[i].bytes = end - members[i].offset;
    }
    qsort_r(members, f->count, sizeof *members, member_order, b);
    for (uint32_t i = 1; i < f->count; i++) {
        if (member_order(&members[i - 1], &members[i], b) != 0) continue;
        fail_at(b, OMEN_EINVAL, member_key(b, &members[i]), "duplicate key");
        return;
    }
    buf_clear(&b->sorted);
    for (uint32_t i = 0; i < f->count; i++)
        buf_append(&b->sorted, b->out.data + members[i].offset, members[i].bytes);
    if (b->sorted.failed) {
        fail(b, OMEN_ENOMEM, "out of memory");
        return;
    }
    uint8_t *body = b->out.data + f->start + CONTAINER_HEADER_BYTES;
    CHECK(b->sorted.len == b->out.len - f->start - CONTAINER_HEADER_BYTES);
    memcpy(body, b->sorted.data, b->sorted.len);
}

void doc_end(struct doc_builder *b)
{
    if (failed(b)) return;
    CHECK(b->depth > 0);
    const struct frame *f = &b->frames[b->depth - 1];
    CHECK(!f->key_given);
    if (!f->sorted) sort_members(b, f);
    if (failed(b)) return;
    uint8_t *p = b->out.data + f->start;
    store_u32(p + 1, (uint32_t)(b->out.len - f->start - CONTAINER_HEADER_BYTES));
    store_u32(p + 5, f->count);
    b->member_count = f->first_member;
    b->depth--;
}

enum omen_err doc_builder_finish(struct doc_builder *b, struct doc *doc_out, struct err *err)
{
    *doc_out = (struct doc){ NULL, 0 };
    if (failed(b)) {
        if (err != NULL) *err = b->err;
        return b->err.code;
    }
    CHECK(b->depth == 0);
    CHECK(b->have_root);
    *doc_out = (struct doc){ b->out.data, (uint32_t)b->out.len };
    return OMEN_OK;
}
