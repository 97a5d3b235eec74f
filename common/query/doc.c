/* Payload values: validation of untrusted bytes, and the readers too large to be inline. The form is drawn in
 * doc.h.
 * Pure functions: no allocation, no clock, no locale; any thread. Recursion is bounded by DOC_DEPTH_MAX. */
#include "common/query/doc.h"

#include <assert.h>
#include <math.h>

#include "common/check.h"
#include "common/query/doc_place.h"
#include "common/utf8.h"

/* ---- UTF-8 ------------------------------------------------------------------------------------------- */

bool utf8_valid(const void *data, size_t len)
{
    const uint8_t *p = data;
    size_t i = 0;
    while (i < len) {
        while (len - i >= 8 && (load_u64(p + i) & UINT64_C(0x8080808080808080)) == 0) i += 8;
        if (i == len) break;
        size_t n = utf8_sequence_bytes(p + i, len - i);
        if (n == 0) return false;
        i += n;
    }
    return true;
}

/* ---- validation -------------------------------------------------------------------------------------- */

struct validator {
    const uint8_t *base; /* first byte of the whole doc */
    struct err *err;
};

static enum omen_err fail(const struct validator *v, enum omen_err code, const struct doc_place *place,
        const uint8_t *at, const char *what)
{
    if (v->err == NULL) return code;
    char field[ERR_FIELD_BYTES];
    doc_place_format(place, field);
    return err_set(v->err, code, field, "%s at byte %zu", what, (size_t)(at - v->base));
}

static enum omen_err validate_value(const struct validator *v, const uint8_t *p, const uint8_t *end,
        uint32_t depth, const struct doc_place *place, const uint8_t **next_out);

static enum omen_err validate_string(const struct validator *v, const uint8_t *p, const uint8_t *end,
        const struct doc_place *place, const uint8_t **next_out)
{
    if (end - p < 5) return fail(v, OMEN_EINVAL, place, p, "truncated string");
    uint32_t len = load_u32(p + 1);
    if (len > (size_t)(end - p - 5))
        return fail(v, OMEN_EINVAL, place, p, "string is longer than its container");
    if (!utf8_valid(p + 5, len)) return fail(v, OMEN_EINVAL, place, p, "string is not valid UTF-8");
    *next_out = p + 5 + len;
    return OMEN_OK;
}

static enum omen_err validate_array(const struct validator *v, const uint8_t *p, const uint8_t *end,
        uint32_t count, uint32_t depth, const struct doc_place *place)
{
    for (uint32_t i = 0; i < count; i++) {
        struct doc_place here = { .up = place, .slot = i };
        enum omen_err rc = validate_value(v, p, end, depth, &here, &p);
        if (rc != OMEN_OK) return rc;
    }
    if (p != end) return fail(v, OMEN_EINVAL, place, p, "array has bytes after its last element");
    return OMEN_OK;
}

static enum omen_err validate_object(const struct validator *v, const uint8_t *p, const uint8_t *end,
        uint32_t count, uint32_t depth, const struct doc_place *place)
{
    struct bytes before = { NULL, 0 };
    for (uint32_t i = 0; i < count; i++) {
        if (end - p < 2) return fail(v, OMEN_EINVAL, place, p, "truncated key");
        struct bytes key = { p + 2, load_u16(p) };
        if (key.len > (size_t)(end - p - 2))
            return fail(v, OMEN_EINVAL, place, p, "key is longer than its object");
        struct doc_place here = { .up = place, .key = key };
        if (key.len > DOC_KEY_BYTES_MAX)
            return fail(v, OMEN_ETOOBIG, &here, p, "key is longer than 255 bytes");
        if (!utf8_valid(key.data, key.len)) return fail(v, OMEN_EINVAL, &here, p, "key is not valid UTF-8");
        int order = i == 0 ? -1 : doc_key_compare(before, key);
        if (order == 0) return fail(v, OMEN_EINVAL, &here, p, "duplicate key");
        if (order > 0) return fail(v, OMEN_EINVAL, &here, p, "keys are not in ascending order");
        before = key;
        enum omen_err rc = validate_value(v, key.data + key.len, end, depth, &here, &p);
        if (rc != OMEN_OK) return rc;
    }
    if (p != end) return fail(v, OMEN_EINVAL, place, p, "object has bytes after its last member");
    return OMEN_OK;
}

static enum omen_err validate_value(const struct validator *v, const uint8_t *p, const uint8_t *end,
        uint32_t depth, const struct doc_place *place, const uint8_t **next_out)
{
    if (p == end) return fail(v, OMEN_EINVAL, place, p, "value is missing");
    switch (p[0]) {
    case DOC_NULL:
    case DOC_FALSE:
    case DOC_TRUE: *next_out = p + 1; return OMEN_OK;
    case DOC_I64:
    case DOC_F64:
        if (end - p < 9) return fail(v, OMEN_EINVAL, place, p, "truncated number");
        if (p[0] == DOC_F64 && !isfinite(doc_f64((struct doc){ p, 9 })))
            return fail(v, OMEN_EINVAL, place, p, "number is not finite");
        *next_out = p + 9;
        return OMEN_OK;
    case DOC_STRING: return validate_string(v, p, end, place, next_out);
    case DOC_ARRAY:
    case DOC_OBJECT: break;
    default: return fail(v, OMEN_EINVAL, place, p, "unknown type tag");
    }
    if (end - p < 9) return fail(v, OMEN_EINVAL, place, p, "truncated array or object");
    if (depth == DOC_DEPTH_MAX) return fail(v, OMEN_ETOOBIG, place, p, "nested deeper than 32 levels");
    uint32_t body_bytes = load_u32(p + 1), count = load_u32(p + 5);
    if (body_bytes > (size_t)(end - p - 9))
        return fail(v, OMEN_EINVAL, place, p, "array or object is longer than its container");
    *next_out = p + 9 + body_bytes;
    return p[0] == DOC_ARRAY ? validate_array(v, p + 9, *next_out, count, depth + 1, place)
                             : validate_object(v, p + 9, *next_out, count, depth + 1, place);
}

static_assert(DOC_DEPTH_MAX == 32 && DOC_KEY_BYTES_MAX == 255,
        "limits are spelled out in the sentences above");

enum omen_err doc_validate(struct bytes bytes, uint32_t limit_bytes, struct doc *doc_out, struct err *err)
{
    *doc_out = (struct doc){ NULL, 0 };
    if (bytes.len > limit_bytes)
        return err_set(err, OMEN_ETOOBIG, NULL, "value is %zu bytes long, the limit is %u", bytes.len,
                limit_bytes);
    if (bytes.len == 0) return err_set(err, OMEN_EINVAL, NULL, "value is missing at byte 0");
    const struct validator v = { bytes.data, err };
    const uint8_t *end = bytes.data + bytes.len, *next;
    enum omen_err rc = validate_value(&v, bytes.data, end, 0, NULL, &next);
    if (rc != OMEN_OK) return rc;
    if (next != end) return fail(&v, OMEN_EINVAL, NULL, next, "bytes after the value");
    *doc_out = (struct doc){ bytes.data, (uint32_t)bytes.len };
    return OMEN_OK;
}

/* ---- readers ----------------------------------------------------------------------------------------- */

struct doc doc_member(struct doc object, struct bytes key)
{
    if (object.data == NULL || doc_type(object) != DOC_OBJECT) return (struct doc){ NULL, 0 };
    struct doc_iter it = doc_iter(object);
    struct bytes k;
    struct doc value;
    while (doc_next(&it, &k, &value)) {
        int order = doc_key_compare(k, key);
        if (order == 0) return value;
        if (order > 0) break; /* keys ascend */
    }
    return (struct doc){ NULL, 0 };
}

/* Exactly: a double equals an integer only if it is that integer, not if the integer rounds to it. */
static bool i64_equals_f64(int64_t i, double f)
{
    if (!(f >= -0x1p63 && f < 0x1p63)) return false;
    return (double)(int64_t)f == f && (int64_t)f == i;
}

static bool number_equal(struct doc a, struct doc b)
{
    bool a_int = doc_type(a) == DOC_I64, b_int = doc_type(b) == DOC_I64;
    if (a_int && b_int) return doc_i64(a) == doc_i64(b);
    if (a_int) return i64_equals_f64(doc_i64(a), doc_f64(b));
    if (b_int) return i64_equals_f64(doc_i64(b), doc_f64(a));
    return doc_f64(a) == doc_f64(b);
}

bool doc_equal(struct doc a, struct doc b)
{
    if (a.data == NULL || b.data == NULL) return a.data == b.data;
    if (a.len == b.len && memcmp(a.data, b.data, a.len) == 0) return true;
    if (doc_is_number(a) && doc_is_number(b)) return number_equal(a, b);
    if (doc_type(a) != doc_type(b) || doc_type(a) < DOC_ARRAY) return false;
    if (a.len != b.len || doc_count(a) != doc_count(b)) return false; /* all numbers have one length */
    struct doc_iter ia = doc_iter(a), ib = doc_iter(b);
    struct bytes ka, kb;
    struct doc va, vb;
    while (doc_next(&ia, &ka, &va)) {
        CHECK(doc_next(&ib, &kb, &vb)); /* the counts are equal */
        if (doc_key_compare(ka, kb) != 0 || !doc_equal(va, vb)) return false;
    }
    return true;
}

int doc_compare_bytes(struct doc a, struct doc b)
{
    return doc_key_compare((struct bytes){ a.data, a.len }, (struct bytes){ b.data, b.len });
}

uint32_t doc_depth(struct doc doc)
{
    if (doc_type(doc) < DOC_ARRAY) return 0;
    struct doc_iter it = doc_iter(doc);
    struct doc value;
    uint32_t deepest = 0;
    while (doc_next(&it, NULL, &value)) {
        uint32_t depth = doc_depth(value);
        if (depth > deepest) deepest = depth;
    }
    return deepest + 1;
}
