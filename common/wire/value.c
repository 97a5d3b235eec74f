/* Reading msgpack objects: one function per type of member, each with its range, each error naming the field.
 * Integers of any width are integers; a float member takes integers too; str and bin are never taken for each other. */
#include "common/wire/value.h"

#include <math.h>
#include <stdio.h>

enum omen_err reader_init(struct reader *r, struct bytes message, struct arena *arena, struct err *err)
{
    *r = (struct reader){ .arena = arena, .err = err };
    msgpack_unpacked_init(&r->unpacked);
    enum omen_err rc = wire_scan(message, err);
    if (rc != OMEN_OK) return rc;
    size_t offset = 0;
    msgpack_unpack_return rv = msgpack_unpack_next(&r->unpacked, (const char *)message.data, message.len,
            &offset);
    if (rv == MSGPACK_UNPACK_NOMEM_ERROR)
        return err_set(err, OMEN_ENOMEM, NULL, "no memory to decode the message");
    if ((rv != MSGPACK_UNPACK_SUCCESS && rv != MSGPACK_UNPACK_EXTRA_BYTES) || offset != message.len) {
        return err_set(err, OMEN_EPROTO, NULL, "malformed msgpack");
    }
    if (r->unpacked.data.type != MSGPACK_OBJECT_MAP)
        return err_set(err, OMEN_EPROTO, NULL, "message is not a map");
    return OMEN_OK;
}

void reader_fini(struct reader *r)
{
    msgpack_unpacked_destroy(&r->unpacked);
    doc_builder_free(r->builder);
}

bool bytes_equal(struct bytes a, const char *text)
{
    size_t len = strlen(text);
    return a.len == len && memcmp(a.data, text, len) == 0;
}

void prefix_slot(struct err *err, const char *name, uint32_t slot)
{
    char prefix[ERR_FIELD_BYTES];
    snprintf(prefix, sizeof prefix, "%s[%u]", name, slot);
    err_prefix(err, prefix);
}

static const char *type_name(const msgpack_object *v)
{
    switch (v->type) {
    case MSGPACK_OBJECT_NIL: return "nil";
    case MSGPACK_OBJECT_BOOLEAN: return "bool";
    case MSGPACK_OBJECT_POSITIVE_INTEGER:
    case MSGPACK_OBJECT_NEGATIVE_INTEGER: return "int";
    case MSGPACK_OBJECT_FLOAT32:
    case MSGPACK_OBJECT_FLOAT64: return "float";
    case MSGPACK_OBJECT_STR: return "str";
    case MSGPACK_OBJECT_ARRAY: return "array";
    case MSGPACK_OBJECT_MAP: return "map";
    case MSGPACK_OBJECT_BIN: return "bin";
    case MSGPACK_OBJECT_EXT: break;
    }
    return "extension";
}

enum omen_err read_expected(struct reader *r, const msgpack_object *v, const char *what)
{
    return err_set(r->err, OMEN_EINVAL, NULL, "expected %s, got %s", what, type_name(v));
}

enum omen_err read_alloc(struct reader *r, size_t count, size_t bytes, void *ptr_out)
{
    void *p = arena_alloc(r->arena, count * bytes); /* counts are bounded by the message: no overflow */
    if (p == NULL) return err_set(r->err, OMEN_ENOMEM, NULL, "the request needs too much memory");
    memcpy(ptr_out, &p, sizeof p);
    return OMEN_OK;
}

/* ---- scalars --------------------------------------------------------------------------------------------------- */

enum omen_err read_u64(struct reader *r, const msgpack_object *v, uint64_t min, uint64_t max, uint64_t *out)
{
    if (v->type == MSGPACK_OBJECT_NEGATIVE_INTEGER) {
        return err_set(r->err, OMEN_EINVAL, NULL, "must be %llu to %llu, got %lld", (unsigned long long)min,
                (unsigned long long)max, (long long)v->via.i64);
    }
    if (v->type != MSGPACK_OBJECT_POSITIVE_INTEGER) return read_expected(r, v, "int");
    if (v->via.u64 < min || v->via.u64 > max) {
        return err_set(r->err, v->via.u64 > max && max != 0 ? OMEN_ETOOBIG : OMEN_EINVAL, NULL,
                "must be %llu to %llu, got %llu", (unsigned long long)min, (unsigned long long)max,
                (unsigned long long)v->via.u64);
    }
    *out = v->via.u64;
    return OMEN_OK;
}

enum omen_err read_u32(struct reader *r, const msgpack_object *v, uint32_t min, uint32_t max, uint32_t *out)
{
    uint64_t wide = 0;
    enum omen_err rc = read_u64(r, v, min, max, &wide);
    if (rc == OMEN_OK) *out = (uint32_t)wide;
    return rc;
}

enum omen_err read_bool(struct reader *r, const msgpack_object *v, bool *out)
{
    if (v->type != MSGPACK_OBJECT_BOOLEAN) return read_expected(r, v, "bool");
    *out = v->via.boolean;
    return OMEN_OK;
}

enum omen_err read_f64(struct reader *r, const msgpack_object *v, double *out)
{
    switch (v->type) {
    case MSGPACK_OBJECT_FLOAT32:
    case MSGPACK_OBJECT_FLOAT64: *out = v->via.f64; return OMEN_OK;
    case MSGPACK_OBJECT_POSITIVE_INTEGER: *out = (double)v->via.u64; return OMEN_OK;
    case MSGPACK_OBJECT_NEGATIVE_INTEGER: *out = (double)v->via.i64; return OMEN_OK;
    default: return read_expected(r, v, "number");
    }
}

static enum omen_err check_length(struct reader *r, size_t len, size_t max)
{
    if (len <= max) return OMEN_OK;
    return err_set(r->err, OMEN_ETOOBIG, NULL, "%zu bytes, the limit is %zu", len, max);
}

enum omen_err read_str(struct reader *r, const msgpack_object *v, size_t bytes_max, struct bytes *out)
{
    if (v->type != MSGPACK_OBJECT_STR) return read_expected(r, v, "str");
    enum omen_err rc = check_length(r, v->via.str.size, bytes_max);
    if (rc != OMEN_OK) return rc;
    if (!utf8_valid(v->via.str.ptr, v->via.str.size)) {
        return err_set(r->err, OMEN_EINVAL, NULL, "not valid UTF-8");
    }
    *out = (struct bytes){ (const uint8_t *)v->via.str.ptr, v->via.str.size };
    return OMEN_OK;
}

enum omen_err read_bin(struct reader *r, const msgpack_object *v, size_t bytes_max, struct bytes *out)
{
    if (v->type != MSGPACK_OBJECT_BIN) return read_expected(r, v, "bin");
    enum omen_err rc = check_length(r, v->via.bin.size, bytes_max);
    if (rc != OMEN_OK) return rc;
    *out = (struct bytes){ (const uint8_t *)v->via.bin.ptr, v->via.bin.size };
    return OMEN_OK;
}

enum omen_err read_array(struct reader *r, const msgpack_object *v, uint32_t min, uint32_t max,
        msgpack_object_array *out)
{
    if (v->type != MSGPACK_OBJECT_ARRAY) return read_expected(r, v, "array");
    uint32_t size = v->via.array.size;
    if (size < min)
        return err_set(r->err, OMEN_EINVAL, NULL, "%u elements, at least %u are needed", size, min);
    if (size > max) return err_set(r->err, OMEN_ETOOBIG, NULL, "%u elements, the limit is %u", size, max);
    *out = v->via.array;
    return OMEN_OK;
}

enum omen_err map_collect(struct reader *r, const msgpack_object *map, const char *const *names,
        uint32_t count, uint64_t allowed, const msgpack_object **slots)
{
    if (map->type != MSGPACK_OBJECT_MAP) return read_expected(r, map, "map");
    uint64_t seen = 0;
    for (uint32_t i = 0; i < count; i++) slots[i] = NULL;
    for (uint32_t i = 0; i < map->via.map.size; i++) {
        const msgpack_object_kv *kv = &map->via.map.ptr[i];
        if (kv->key.type != MSGPACK_OBJECT_STR) {
            return err_set(r->err, OMEN_EINVAL, NULL, "keys must be str, got %s", type_name(&kv->key));
        }
        struct bytes key = { (const uint8_t *)kv->key.via.str.ptr, kv->key.via.str.size };
        uint32_t slot = 0;
        while (slot < count && !bytes_equal(key, names[slot])) slot++;
        char text[64];
        snprintf(text, sizeof text, "%.*s", key.len < 60 ? (int)key.len : 60, (const char *)key.data);
        if (slot == count || (allowed >> slot & 1) == 0) {
            return err_set(r->err, OMEN_EINVAL, text, "unknown member");
        }
        if (seen >> slot & 1) return err_set(r->err, OMEN_EINVAL, text, "given twice");
        seen |= 1ull << slot;
        if (kv->val.type != MSGPACK_OBJECT_NIL) slots[slot] = &kv->val;
    }
    return OMEN_OK;
}

/* ---- ids and tokens -------------------------------------------------------------------------------------------- */

enum omen_err read_id(struct reader *r, const msgpack_object *v, point_id *out)
{
    if (v->type == MSGPACK_OBJECT_POSITIVE_INTEGER) {
        *out = (point_id){ .lo = v->via.u64, .kind = POINT_ID_U64 };
        return OMEN_OK;
    }
    if (v->type != MSGPACK_OBJECT_STR) return read_expected(r, v, "id (int from 0, or UUID as str)");
    point_id id;
    if (point_id_parse(v->via.str.ptr, v->via.str.size, &id) != OMEN_OK || id.kind != POINT_ID_UUID) {
        return err_set(r->err, OMEN_EINVAL, NULL, "str is not a UUID");
    }
    *out = id;
    return OMEN_OK;
}

static enum omen_err read_ids_bin(struct reader *r, const msgpack_object *v, uint32_t min, uint32_t max,
        const point_id **ids_out, uint32_t *count_out)
{
    size_t len = v->via.bin.size;
    if (len % 8 != 0) return err_set(r->err, OMEN_EINVAL, NULL, "%zu bytes are not a multiple of 8", len);
    if (len / 8 < min)
        return err_set(r->err, OMEN_EINVAL, NULL, "%zu ids, at least %u are needed", len / 8, min);
    if (len / 8 > max) return err_set(r->err, OMEN_ETOOBIG, NULL, "%zu ids, the limit is %u", len / 8, max);
    uint32_t count = (uint32_t)(len / 8);
    point_id *ids = NULL;
    enum omen_err rc = read_alloc(r, count, sizeof *ids, &ids);
    if (rc != OMEN_OK) return rc;
    for (uint32_t i = 0; i < count; i++) {
        ids[i] = (point_id){ .lo = load_u64(v->via.bin.ptr + 8ull * i), .kind = POINT_ID_U64 };
    }
    *ids_out = ids;
    *count_out = count;
    return OMEN_OK;
}

enum omen_err read_ids(struct reader *r, const msgpack_object *v, uint32_t min, uint32_t max,
        const point_id **ids_out, uint32_t *count_out)
{
    if (v->type == MSGPACK_OBJECT_BIN) return read_ids_bin(r, v, min, max, ids_out, count_out);
    msgpack_object_array array;
    if (v->type != MSGPACK_OBJECT_ARRAY) return read_expected(r, v, "bin of u64, or array of ids");
    enum omen_err rc = read_array(r, v, min, max, &array);
    if (rc != OMEN_OK) return rc;
    point_id *ids = NULL;
    rc = read_alloc(r, array.size, sizeof *ids, &ids);
    for (uint32_t i = 0; rc == OMEN_OK && i < array.size; i++) {
        rc = read_id(r, &array.ptr[i], &ids[i]);
        if (rc != OMEN_OK) prefix_slot(r->err, "", i);
    }
    if (rc != OMEN_OK) return rc;
    *ids_out = ids;
    *count_out = array.size;
    return OMEN_OK;
}

enum omen_err read_token(struct reader *r, const msgpack_object *v, struct token *out)
{
    uint64_t *const parts[3] = { &out->incarnation, &out->shard, &out->sequence };
    msgpack_object_array array;
    enum omen_err rc = read_array(r, v, 3, 3, &array);
    for (uint32_t i = 0; rc == OMEN_OK && i < 3; i++) {
        rc = read_u64(r, &array.ptr[i], 0, UINT64_MAX, parts[i]);
        if (rc != OMEN_OK) prefix_slot(r->err, "", i);
    }
    return rc;
}

enum omen_err read_tokens(struct reader *r, const msgpack_object *v, uint32_t max,
        const struct token **tokens_out, uint32_t *count_out)
{
    msgpack_object_array array;
    enum omen_err rc = read_array(r, v, 0, max, &array);
    if (rc != OMEN_OK) return rc;
    struct token *tokens = NULL;
    rc = read_alloc(r, array.size, sizeof *tokens, &tokens);
    for (uint32_t i = 0; rc == OMEN_OK && i < array.size; i++) {
        rc = read_token(r, &array.ptr[i], &tokens[i]);
        if (rc != OMEN_OK) prefix_slot(r->err, "", i);
    }
    if (rc != OMEN_OK) return rc;
    *tokens_out = tokens;
    *count_out = array.size;
    return OMEN_OK;
}

/* ---- documents ------------------------------------------------------------------------------------------------- */

static enum omen_err put_value(struct reader *r, const msgpack_object *v);

static enum omen_err put_map(struct reader *r, const msgpack_object *v)
{
    doc_begin_object(r->builder);
    for (uint32_t i = 0; i < v->via.map.size; i++) {
        const msgpack_object_kv *kv = &v->via.map.ptr[i];
        if (kv->key.type != MSGPACK_OBJECT_STR) {
            return err_set(r->err, OMEN_EINVAL, NULL, "keys must be str, got %s", type_name(&kv->key));
        }
        doc_key(r->builder, kv->key.via.str.ptr, kv->key.via.str.size);
        enum omen_err rc = put_value(r, &kv->val);
        if (rc != OMEN_OK) {
            char key[ERR_FIELD_BYTES];
            uint32_t len = kv->key.via.str.size < sizeof key ? kv->key.via.str.size : sizeof key - 1;
            snprintf(key, sizeof key, "%.*s", (int)len, kv->key.via.str.ptr);
            err_prefix(r->err, key);
            return rc;
        }
    }
    doc_end(r->builder);
    return OMEN_OK;
}

static enum omen_err put_array(struct reader *r, const msgpack_object *v)
{
    doc_begin_array(r->builder);
    for (uint32_t i = 0; i < v->via.array.size; i++) {
        enum omen_err rc = put_value(r, &v->via.array.ptr[i]);
        if (rc != OMEN_OK) {
            prefix_slot(r->err, "", i);
            return rc;
        }
    }
    doc_end(r->builder);
    return OMEN_OK;
}

/* What the builder refuses (size, depth, UTF-8, duplicates, NaN) sticks in it and is reported by doc_builder_finish.
 * Depth of the recursion is bounded by wire_scan. */
static enum omen_err put_value(struct reader *r, const msgpack_object *v)
{
    switch (v->type) {
    case MSGPACK_OBJECT_NIL: doc_put_null(r->builder); return OMEN_OK;
    case MSGPACK_OBJECT_BOOLEAN: doc_put_bool(r->builder, v->via.boolean); return OMEN_OK;
    case MSGPACK_OBJECT_POSITIVE_INTEGER:
        if (v->via.u64 > INT64_MAX) {
            return err_set(r->err, OMEN_EINVAL, NULL, "integer %llu is above 2^63 - 1",
                    (unsigned long long)v->via.u64);
        }
        doc_put_i64(r->builder, (int64_t)v->via.u64);
        return OMEN_OK;
    case MSGPACK_OBJECT_NEGATIVE_INTEGER: doc_put_i64(r->builder, v->via.i64); return OMEN_OK;
    case MSGPACK_OBJECT_FLOAT32:
    case MSGPACK_OBJECT_FLOAT64: doc_put_f64(r->builder, v->via.f64); return OMEN_OK;
    case MSGPACK_OBJECT_STR: doc_put_string(r->builder, v->via.str.ptr, v->via.str.size); return OMEN_OK;
    case MSGPACK_OBJECT_ARRAY: return put_array(r, v);
    case MSGPACK_OBJECT_MAP: return put_map(r, v);
    case MSGPACK_OBJECT_BIN:
    case MSGPACK_OBJECT_EXT: break;
    }
    return read_expected(r, v, "nil, bool, number, str, array or map");
}

enum omen_err read_doc(struct reader *r, const msgpack_object *v, uint32_t limit_bytes, struct doc *doc_out)
{
    if (r->builder == NULL) r->builder = doc_builder_new(limit_bytes);
    doc_builder_reset(r->builder, limit_bytes);
    enum omen_err rc = put_value(r, v);
    if (rc != OMEN_OK) return rc;
    struct doc doc;
    rc = doc_builder_finish(r->builder, &doc, r->err);
    if (rc != OMEN_OK) return rc;
    uint8_t *copy = NULL;
    rc = read_alloc(r, doc.len, 1, &copy);
    if (rc != OMEN_OK) return rc;
    memcpy(copy, doc.data, doc.len);
    *doc_out = (struct doc){ copy, doc.len };
    return OMEN_OK;
}

enum omen_err read_docs(struct reader *r, const msgpack_object *v, uint32_t count, bool objects,
        struct doc **docs_out)
{
    if (v->type != MSGPACK_OBJECT_ARRAY) return read_expected(r, v, "array");
    if (v->via.array.size != count) {
        return err_set(r->err, OMEN_EINVAL, NULL, "%u elements, but there are %u points", v->via.array.size,
                count);
    }
    struct doc *docs = NULL;
    enum omen_err rc = read_alloc(r, count, sizeof *docs, &docs);
    for (uint32_t i = 0; rc == OMEN_OK && i < count; i++) {
        const msgpack_object *item = &v->via.array.ptr[i];
        docs[i] = (struct doc){ NULL, 0 };
        if (item->type == MSGPACK_OBJECT_NIL) continue;
        if (objects && item->type != MSGPACK_OBJECT_MAP)
            rc = read_expected(r, item, "map or nil");
        else
            rc = read_doc(r, item, DOC_BYTES_MAX, &docs[i]);
        if (rc != OMEN_OK) prefix_slot(r->err, "", i);
    }
    if (rc == OMEN_OK) *docs_out = docs;
    return rc;
}
