/* Rows of a write against the collection's schema: vector columns (known field, exact size, finite), shard keys (present,
 * of a type that can be one, never changed), and from them the ops that shards get. All rows are checked before any is
 * sent, so a batch is refused as a whole.
 *
 * Vectors are not copied here: ops point into the message, maybe unaligned, and the node copies each row once into the log
 * entry, normalising it there when the metric is cosine. */
#include "common/err.h"

#include <stdio.h>
#include <string.h>

#include "router/request.h"

/* "vectors" for the unnamed field, else "vectors.<name>". */
static void column_name(struct bytes field, char out[ERR_FIELD_BYTES])
{
    if (field.len == 0) {
        snprintf(out, ERR_FIELD_BYTES, "vectors");
    } else {
        snprintf(out, ERR_FIELD_BYTES, "vectors.%.*s", (int)(field.len < 80 ? field.len : 80),
                (const char *)field.data);
    }
}

static enum omen_err validate_column(struct request *r, const struct wire_vector_column *column,
        uint32_t *field_out, struct err *err)
{
    const struct collection_schema *schema = &r->collection->schema;
    char where[ERR_FIELD_BYTES];
    column_name(column->field, where);
    enum omen_err rc = resolve_field(schema, column->field, where, field_out, err);
    if (rc != OMEN_OK) return rc;
    uint64_t count = r->wire.write.count;
    uint32_t dim = schema->fields[*field_out].dim;
    if (column->bytes != count * dim * 4) {
        return err_set(err, OMEN_EINVAL, where,
                "expected %u x 4 bytes per point, %llu in all for %llu points, got "
                "%llu",
                dim, (unsigned long long)(count * dim * 4), (unsigned long long)count,
                (unsigned long long)column->bytes);
    }
    uint64_t position;
    if (floats_finite(column->data, count * dim, &position)) return OMEN_OK;
    return err_set(err, OMEN_EINVAL, where, "point %llu, component %llu is NaN or infinite",
            (unsigned long long)(position / dim), (unsigned long long)(position % dim));
}

static enum omen_err validate_columns(struct request *r, struct point_op *ops, struct err *err)
{
    uint32_t seen = 0;
    for (uint32_t c = 0; c < r->wire.write.column_count; c++) {
        const struct wire_vector_column *column = &r->wire.write.columns[c];
        uint32_t field;
        enum omen_err rc = validate_column(r, column, &field, err);
        if (rc != OMEN_OK) return rc;
        if (seen & 1u << field) {
            char where[ERR_FIELD_BYTES];
            column_name(column->field, where);
            return err_set(err, OMEN_EINVAL, where, "is given twice");
        }
        seen |= 1u << field;
        size_t row_bytes = 4 * (size_t)r->collection->schema.fields[field].dim;
        for (uint32_t i = 0; i < r->wire.write.count; i++) {
            ops[i].vectors[field] = (const float *)(const void *)(column->data + i * row_bytes);
        }
    }
    return OMEN_OK;
}

/* ---- shard keys ---- */

/* One segment of a path's text as bytes: "a" of a.b, odd.key of "odd.key".x; a [] suffix is skipped. */
static struct bytes path_segment(const char **text)
{
    const char *s = *text, *first = s, *end;
    if (*s == '"') {
        first = ++s;
        while (*s != '\0' && *s != '"') s++;
        end = s;
        if (*s == '"') s++;
    } else {
        while (*s != '\0' && *s != '.' && *s != '[') s++;
        end = s;
    }
    while (*s != '\0' && *s != '.') s++;
    if (*s == '.') s++;
    *text = s;
    return (struct bytes){ (const uint8_t *)first, (size_t)(end - first) };
}

static bool bytes_equal(struct bytes a, struct bytes b)
{
    return a.len == b.len && memcmp(a.data, b.data, a.len) == 0;
}

/* Whether removing `path` removes the shard key: it names the key itself or what holds it. */
static bool path_covers_key(const char *path, const char *shard_key)
{
    while (*path != '\0') {
        if (*shard_key == '\0')
            return true; /* below the key: the key is no object, so nothing; refuse all the same */
        if (!bytes_equal(path_segment(&path), path_segment(&shard_key))) return false;
    }
    return true;
}

/* The shard key that a payload carries; `row` names it in errors. */
static enum omen_err key_of_payload(struct request *r, struct doc payload, uint32_t row,
        struct shard_key *key_out, struct err *err)
{
    const char *path = r->collection->schema.shard_key;
    char where[ERR_FIELD_BYTES];
    snprintf(where, sizeof where, "payloads[%u].%.70s", row, path);
    struct doc value = { NULL, 0 };
    if (payload.data != NULL) value = doc_path_first(r->shard_key_path, payload);
    if (value.data == NULL) {
        return err_set(err, OMEN_EINVAL, where,
                "is missing: it is the collection's shard key, every point needs it");
    }
    return shard_key_from_doc(value, where, &r->arena, key_out, err);
}

static enum omen_err validate_upsert_row(struct request *r, uint32_t i, struct point_op *op, struct err *err)
{
    if (r->wire.write.payloads != NULL) op->payload = r->wire.write.payloads[i];
    if (r->wire.write.expires_ms != NULL) op->expires_ms = r->wire.write.expires_ms[i];
    if (r->shard_key_path == NULL) return OMEN_OK;
    return key_of_payload(r, op->payload, i, &op->key, err);
}

static enum omen_err row_key(struct request *r, uint32_t i, struct point_op *op, struct err *err)
{
    struct doc key = { NULL, 0 };
    if (r->wire.write.keys != NULL) key = r->wire.write.keys[i];
    return resolve_key(r, key, "keys", NULL, i, &op->key, &op->any_key, err);
}

/* A patch replaces whole top-level members, so it may not hold the one that the shard key lives in. */
static enum omen_err set_keeps_key(struct request *r, uint32_t i, struct point_op *op, struct err *err)
{
    op->payload = r->wire.write.payloads[i];
    if (r->shard_key_path == NULL) return OMEN_OK;
    const char *path = r->collection->schema.shard_key;
    struct bytes member = path_segment(&path);
    if (doc_member(op->payload, member).data == NULL) return OMEN_OK;
    char where[ERR_FIELD_BYTES];
    snprintf(where, sizeof where, "payloads[%u].%.*s", i, (int)(member.len < 70 ? member.len : 70),
            (const char *)member.data);
    return err_set(err, OMEN_EINVAL, where,
            "holds the shard key \"%.100s\", which cannot change: delete the point and "
            "insert it anew",
            r->collection->schema.shard_key);
}

static enum omen_err validate_set_row(struct request *r, uint32_t i, struct point_op *op, struct err *err)
{
    enum omen_err rc = set_keeps_key(r, i, op, err);
    return rc == OMEN_OK ? row_key(r, i, op, err) : rc;
}

/* The new payload must carry the point's shard key; that also says which point is meant. */
static enum omen_err validate_overwrite_row(struct request *r, uint32_t i, struct point_op *op,
        struct err *err)
{
    op->payload = r->wire.write.payloads[i];
    enum omen_err rc = row_key(r, i, op, err);
    if (rc != OMEN_OK || r->shard_key_path == NULL) return rc;
    struct shard_key in_payload;
    rc = key_of_payload(r, op->payload, i, &in_payload, err);
    if (rc != OMEN_OK) return rc;
    if (!op->any_key && !bytes_equal(op->key.canonical, in_payload.canonical)) {
        char where[ERR_FIELD_BYTES];
        snprintf(where, sizeof where, "payloads[%u].%.70s", i, r->collection->schema.shard_key);
        return err_set(err, OMEN_EINVAL, where, "differs from keys[%u]: the shard key cannot change", i);
    }
    op->key = in_payload;
    op->any_key = false;
    return OMEN_OK;
}

static enum omen_err validate_removed_paths(struct request *r, struct err *err)
{
    if (r->shard_key_path == NULL) return OMEN_OK;
    struct doc_iter it = doc_iter(r->wire.write.payload_paths);
    struct doc value;
    for (uint32_t i = 0; doc_next(&it, NULL, &value); i++) {
        struct bytes text = doc_string(value);
        char *path = arena_strdup(&r->arena, (const char *)text.data, text.len);
        if (path == NULL) return err_set(err, OMEN_ENOMEM, "", "the request needs too much memory");
        if (!path_covers_key(path, r->collection->schema.shard_key)) continue;
        char where[ERR_FIELD_BYTES];
        snprintf(where, sizeof where, "paths[%u]", i);
        return err_set(err, OMEN_EINVAL, where, "would remove the shard key \"%.100s\"",
                r->collection->schema.shard_key);
    }
    return OMEN_OK;
}

static enum omen_err validate_row(struct request *r, uint32_t i, struct point_op *op, struct err *err)
{
    switch (op->kind) {
    case POINT_UPSERT: return validate_upsert_row(r, i, op, err);
    case POINT_DELETE: return row_key(r, i, op, err);
    case POINT_SET_PAYLOAD: return validate_set_row(r, i, op, err);
    case POINT_OVERWRITE_PAYLOAD: return validate_overwrite_row(r, i, op, err);
    case POINT_DELETE_PAYLOAD: op->payload = r->wire.write.payload_paths; return row_key(r, i, op, err);
    }
    return err_set(err, OMEN_EINTERNAL, "", "unknown kind of write");
}

static enum point_op_kind kind_of_op(enum wire_op op)
{
    switch (op) {
    case WIRE_DELETE: return POINT_DELETE;
    case WIRE_SET_PAYLOAD: return POINT_SET_PAYLOAD;
    case WIRE_OVERWRITE_PAYLOAD: return POINT_OVERWRITE_PAYLOAD;
    case WIRE_DELETE_PAYLOAD: return POINT_DELETE_PAYLOAD;
    default: return POINT_UPSERT;
    }
}

/* The operation that every match gets. Points of several keys cannot all get one payload that carries their key. */
static enum omen_err validate_by_filter(struct request *r, struct point_op *op, struct err *err)
{
    switch (op->kind) {
    case POINT_SET_PAYLOAD: return set_keeps_key(r, 0, op, err);
    case POINT_DELETE_PAYLOAD: op->payload = r->wire.write.payload_paths; return OMEN_OK;
    case POINT_OVERWRITE_PAYLOAD:
        op->payload = r->wire.write.payloads[0];
        if (r->shard_key_path == NULL) return OMEN_OK;
        return err_set(err, OMEN_EINVAL, "filter",
                "payloads of points with a shard key are overwritten by id: each must keep its key");
    default: return OMEN_OK;
    }
}

enum omen_err validate_write(struct request *r, struct point_op **ops_out, struct err *err)
{
    bool by_filter = r->wire.write.filter_doc.data != NULL;
    uint32_t count = by_filter ? 1 : r->wire.write.count;
    struct point_op *ops = arena_calloc(&r->arena, (size_t)count + 1, sizeof *ops);
    if (ops == NULL) return err_set(err, OMEN_ENOMEM, "", "the request needs too much memory");
    enum point_op_kind kind = kind_of_op(r->wire.op);
    bool patches = kind == POINT_SET_PAYLOAD || kind == POINT_OVERWRITE_PAYLOAD;
    if (patches && r->wire.write.payloads == NULL) return err_set(err, OMEN_EINVAL, "payloads", "is missing");
    enum omen_err rc = OMEN_OK;
    if (kind == POINT_UPSERT) rc = validate_columns(r, ops, err);
    if (kind == POINT_DELETE_PAYLOAD) rc = validate_removed_paths(r, err);
    for (uint32_t i = 0; rc == OMEN_OK && i < count; i++) {
        ops[i].kind = kind;
        if (by_filter) {
            rc = validate_by_filter(r, &ops[i], err);
            continue;
        }
        ops[i].id = r->wire.write.ids[i];
        rc = validate_row(r, i, &ops[i], err);
    }
    *ops_out = ops;
    return rc;
}
