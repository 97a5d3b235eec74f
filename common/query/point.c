/* Names of points and of shards' slots: ids, shard keys, the keys of metadata, scores and the order of hits.
 * Canonical bytes, hashes and slots are part of the protocol and of the disk formats
 * (tests/golden/shard_keys.txt).
 * Pure functions, any thread. */
#include "common/query/point.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include "common/hash.h"

/* ---- ids --------------------------------------------------------------------------------------------- */

static int u64_compare(uint64_t a, uint64_t b) { return (a > b) - (a < b); }

int point_id_compare(point_id a, point_id b)
{
    if (a.kind != b.kind) return a.kind < b.kind ? -1 : 1;
    if (a.hi != b.hi) return u64_compare(a.hi, b.hi);
    return u64_compare(a.lo, b.lo);
}

void point_id_format(point_id id, char text_out[POINT_ID_TEXT_BYTES])
{
    if (id.kind == POINT_ID_U64) {
        snprintf(text_out, POINT_ID_TEXT_BYTES, "%" PRIu64, id.lo);
        return;
    }
    static const char hex[] = "0123456789abcdef";
    char *p = text_out;
    for (int nibble = 0; nibble < 32; nibble++) {
        if (nibble == 8 || nibble == 12 || nibble == 16 || nibble == 20) *p++ = '-';
        uint64_t half = nibble < 16 ? id.hi : id.lo;
        *p++ = hex[(half >> (60 - 4 * (nibble % 16))) & 15];
    }
    *p = '\0';
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

static enum omen_err uuid_parse(const char *text, size_t len, point_id *id_out)
{
    uint64_t halves[2] = { 0, 0 };
    size_t nibble = 0;
    for (size_t i = 0; i < len; i++) {
        if (len == 36 && (i == 8 || i == 13 || i == 18 || i == 23)) {
            if (text[i] != '-') return OMEN_EINVAL;
            continue;
        }
        int v = hex_value(text[i]);
        if (v < 0) return OMEN_EINVAL;
        halves[nibble / 16] = halves[nibble / 16] << 4 | (uint64_t)v;
        nibble++;
    }
    *id_out = (point_id){ .hi = halves[0], .lo = halves[1], .kind = POINT_ID_UUID };
    return OMEN_OK;
}

enum omen_err point_id_parse(const char *text, size_t len, point_id *id_out)
{
    if (len == 36 || len == 32) return uuid_parse(text, len, id_out);
    if (len == 0 || len > 20 || (text[0] == '0' && len > 1)) return OMEN_EINVAL;
    uint64_t v = 0;
    for (size_t i = 0; i < len; i++) {
        if (text[i] < '0' || text[i] > '9') return OMEN_EINVAL;
        uint64_t digit = (uint64_t)(text[i] - '0');
        if (v > (UINT64_MAX - digit) / 10) return OMEN_EINVAL;
        v = v * 10 + digit;
    }
    *id_out = (point_id){ .hi = 0, .lo = v, .kind = POINT_ID_U64 };
    return OMEN_OK;
}

/* ---- shard keys -------------------------------------------------------------------------------------- */

enum { SHARD_KEY_STRING = 1, SHARD_KEY_BOOL = 2, SHARD_KEY_I64 = 3 }; /* tags of the canonical form */

static enum omen_err refuse_shard_key(struct doc value, const char *path, struct err *err)
{
    static const char *const got[] = {
        [DOC_NULL] = "null",
        [DOC_F64] = "a floating-point number",
        [DOC_ARRAY] = "an array",
        [DOC_OBJECT] = "an object",
    };
    if (value.data == NULL) return err_set(err, OMEN_EINVAL, path, "the shard key is missing");
    return err_set(err, OMEN_EINVAL, path, "the shard key must be a string, a bool or an integer, not %s",
            got[doc_type(value)]);
}

enum omen_err shard_key_from_doc(struct doc value, const char *path, struct arena *arena,
        struct shard_key *key_out, struct err *err)
{
    enum doc_type type = value.data == NULL ? DOC_NULL : doc_type(value);
    struct bytes text = { NULL, 0 };
    size_t len = 2;
    if (type == DOC_STRING) {
        text = doc_string(value);
        len = 1 + text.len;
        if (len > OMEN_SHARD_KEY_BYTES_MAX)
            return err_set(err, OMEN_ETOOBIG, path,
                    "the shard key is a string of %zu bytes, at most %d are allowed", text.len,
                    OMEN_SHARD_KEY_BYTES_MAX - 1);
    } else if (type == DOC_I64) {
        len = 9;
    } else if (type != DOC_FALSE && type != DOC_TRUE) {
        return refuse_shard_key(value, path, err);
    }
    uint8_t *p = arena_alloc(arena, len);
    if (p == NULL) return err_set(err, OMEN_ENOMEM, path, "out of memory for the shard key");
    if (type == DOC_STRING) {
        p[0] = SHARD_KEY_STRING;
        memcpy(p + 1, text.data, text.len);
    } else if (type == DOC_I64) {
        p[0] = SHARD_KEY_I64;
        store_u64_be(p + 1, (uint64_t)doc_i64(value));
    } else {
        p[0] = SHARD_KEY_BOOL;
        p[1] = type == DOC_TRUE;
    }
    key_out->canonical = (struct bytes){ p, len };
    return OMEN_OK;
}

bool shard_key_valid(struct bytes c)
{
    if (c.len == 0 || c.len > OMEN_SHARD_KEY_BYTES_MAX) return false;
    switch (c.data[0]) {
    case SHARD_KEY_STRING: return utf8_valid(c.data + 1, c.len - 1);
    case SHARD_KEY_BOOL: return c.len == 2 && c.data[1] <= 1;
    case SHARD_KEY_I64: return c.len == 9;
    default: return false;
    }
}

/* ---- keys of metadata, slots ------------------------------------------------------------------------- */

#define POINT_ID_ENCODED_BYTES 17
static_assert(POINT_ID_ENCODED_BYTES + 16 == POINT_KEY_BYTES, "the point key is part of the storage format");

static void id_encode(point_id id, uint8_t out[POINT_ID_ENCODED_BYTES])
{
    out[0] = id.kind;
    store_u64_be(out + 1, id.hi);
    store_u64_be(out + 9, id.lo);
}

struct point_key point_key_make(point_id id, struct shard_key key)
{
    struct hash128 h = { 0, 0 };
    if (key.canonical.len > 0) h = hash128(key.canonical.data, key.canonical.len);
    return (struct point_key){ .id = id, .key_hi = h.hi, .key_lo = h.lo };
}

int point_key_compare(const struct point_key *a, const struct point_key *b)
{
    int order = point_id_compare(a->id, b->id);
    if (order != 0) return order;
    if (a->key_hi != b->key_hi) return u64_compare(a->key_hi, b->key_hi);
    return u64_compare(a->key_lo, b->key_lo);
}

void point_key_encode(const struct point_key *key, uint8_t out[POINT_KEY_BYTES])
{
    id_encode(key->id, out);
    store_u64_be(out + 17, key->key_hi);
    store_u64_be(out + 25, key->key_lo);
}

void point_key_decode(const uint8_t in[POINT_KEY_BYTES], struct point_key *key_out)
{
    *key_out = (struct point_key){
        .id = { .hi = load_u64_be(in + 1), .lo = load_u64_be(in + 9), .kind = in[0] },
        .key_hi = load_u64_be(in + 17),
        .key_lo = load_u64_be(in + 25),
    };
}

uint32_t point_slot(point_id id, struct shard_key key)
{
    if (key.canonical.len > 0)
        return (uint32_t)(hash64(key.canonical.data, key.canonical.len) % OMEN_SLOT_COUNT);
    uint8_t tagged[1 + POINT_ID_ENCODED_BYTES];
    tagged[0] = 'i'; /* no canonical shard key begins so */
    id_encode(id, tagged + 1);
    return (uint32_t)(hash64(tagged, sizeof tagged) % OMEN_SLOT_COUNT);
}

/* ---- vectors ----------------------------------------------------------------------------------------- */

#define EXPONENT_BITS 0x7f800000u /* all set: NaN or infinity */

bool floats_finite(const uint8_t *data, uint64_t count, uint64_t *position_out)
{
    /* In blocks without a branch, so that the compiler can use vector instructions. */
    for (uint64_t first = 0; first < count; first += 1024) {
        uint64_t end = count - first < 1024 ? count : first + 1024;
        uint32_t bad = 0;
        for (uint64_t i = first; i < end; i++)
            bad |= (load_u32(data + 4 * i) & EXPONENT_BITS) == EXPONENT_BITS;
        if (!bad) continue;
        for (uint64_t i = first; i < end; i++) {
            if ((load_u32(data + 4 * i) & EXPONENT_BITS) != EXPONENT_BITS) continue;
            *position_out = i;
            return false;
        }
    }
    return true;
}

/* ---- metrics and hits -------------------------------------------------------------------------------- */

static const char
        *const metric_names[] = { [METRIC_L2] = "l2", [METRIC_IP] = "ip", [METRIC_COSINE] = "cosine" };

const char *metric_name(enum metric metric)
{
    return (unsigned)metric <= METRIC_COSINE ? metric_names[metric] : "unknown";
}

bool metric_parse(const char *text, size_t len, enum metric *metric_out)
{
    for (int m = METRIC_L2; m <= METRIC_COSINE; m++) {
        if (strlen(metric_names[m]) != len || memcmp(metric_names[m], text, len) != 0) continue;
        *metric_out = (enum metric)m;
        return true;
    }
    return false;
}

bool metric_higher_is_nearer(enum metric metric) { return metric != METRIC_L2; }

float score_of_distance(enum metric metric, float distance)
{
    if (metric_higher_is_nearer(metric)) return 0.0f - distance;
    return distance > 0.0f ? sqrtf(distance) : 0.0f;
}

int hit_compare(const struct hit *a, const struct hit *b)
{
    if (a->distance != b->distance) return a->distance < b->distance ? -1 : 1;
    int order = point_id_compare(a->point.id, b->point.id);
    if (order != 0) return order;
    struct point_key ka = point_key_make(a->point.id, a->point.key);
    struct point_key kb = point_key_make(b->point.id, b->point.key);
    return point_key_compare(&ka, &kb);
}
