/* Writes from msgpack: columns of ids, vectors, payloads and shard key values that must agree on the number of points. */
#include "common/wire/request.h"

/* A column [count][dim] f32: dim is the router's business, but every row must have the same whole number of floats. */
static enum omen_err decode_column(struct request_reader *q, struct bytes field, const msgpack_object *v,
        struct wire_vector_column *column)
{
    struct bytes data;
    uint32_t count = q->out->write.count;
    enum omen_err rc = read_bin(&q->r, v, OMEN_BATCH_BYTES_MAX, &data);
    if (rc != OMEN_OK) return rc;
    if (data.len == 0 || data.len % (4ull * count) != 0) {
        return err_set(q->r.err, OMEN_EINVAL, NULL, "%zu bytes are not %u rows of equally many f32", data.len,
                count);
    }
    *column = (struct wire_vector_column){ .field = field, .data = data.data, .bytes = data.len };
    return OMEN_OK;
}

static enum omen_err decode_columns_map(struct request_reader *q, const msgpack_object *v,
        struct wire_vector_column *columns)
{
    for (uint32_t i = 0; i < v->via.map.size; i++) {
        const msgpack_object_kv *kv = &v->via.map.ptr[i];
        struct bytes field;
        enum omen_err rc = read_str(&q->r, &kv->key, OMEN_NAME_BYTES_MAX, &field);
        if (rc != OMEN_OK) return rc;
        rc = decode_column(q, field, &kv->val, &columns[i]);
        for (uint32_t j = 0; rc == OMEN_OK && j < i; j++) {
            if (columns[j].field.len == field.len &&
                    memcmp(columns[j].field.data, field.data, field.len) == 0) {
                rc = err_set(q->r.err, OMEN_EINVAL, NULL, "given twice");
            }
        }
        if (rc != OMEN_OK) {
            char name[ERR_FIELD_BYTES];
            snprintf(name, sizeof name, "%.*s", field.len < 80 ? (int)field.len : 80,
                    (const char *)field.data);
            err_prefix(q->r.err, field.len == 0 ? "\"\"" : name);
            return rc;
        }
        q->out->write.column_count++;
    }
    return OMEN_OK;
}

static enum omen_err decode_columns(struct request_reader *q)
{
    const msgpack_object *v = q->members[M_VECTORS];
    bool map = v->type == MSGPACK_OBJECT_MAP;
    if (!map && v->type != MSGPACK_OBJECT_BIN)
        return read_expected(&q->r, v, "bin, or map of field name to bin");
    uint32_t fields = map ? v->via.map.size : 1;
    if (fields == 0 || fields > OMEN_VECTOR_FIELDS_MAX) {
        return err_set(q->r.err, fields == 0 ? OMEN_EINVAL : OMEN_ETOOBIG, NULL,
                "%u fields, 1 to %d are allowed", fields, OMEN_VECTOR_FIELDS_MAX);
    }
    struct wire_vector_column *columns = NULL;
    enum omen_err rc = read_alloc(&q->r, fields, sizeof *columns, &columns);
    if (rc != OMEN_OK) return rc;
    q->out->write.columns = columns;
    if (map) return decode_columns_map(q, v, columns);
    q->out->write.column_count = 1;
    return decode_column(q, (struct bytes){ (const uint8_t *)"", 0 }, v, columns);
}

/* nil in set and overwrite is an empty object: those ops always carry one. */
static enum omen_err decode_payloads(struct request_reader *q, bool required, uint32_t count)
{
    static const uint8_t empty_object[9] = { DOC_OBJECT };
    enum omen_err rc = required ? need_member(q, M_PAYLOADS) : OMEN_OK;
    if (rc != OMEN_OK || q->members[M_PAYLOADS] == NULL) return rc;
    struct doc *docs = NULL;
    rc = in_member(q, M_PAYLOADS, read_docs(&q->r, q->members[M_PAYLOADS], count, true, &docs));
    if (rc != OMEN_OK) return rc;
    for (uint32_t i = 0; required && i < count; i++) {
        if (docs[i].data == NULL) docs[i] = (struct doc){ empty_object, sizeof empty_object };
    }
    q->out->write.payloads = docs;
    return OMEN_OK;
}

static enum omen_err decode_keys(struct request_reader *q, uint32_t count, const struct doc **keys_out)
{
    if (q->members[M_KEYS] == NULL) return OMEN_OK;
    struct doc *docs = NULL;
    enum omen_err rc = in_member(q, M_KEYS, read_docs(&q->r, q->members[M_KEYS], count, false, &docs));
    if (rc == OMEN_OK) *keys_out = docs;
    return rc;
}

static enum omen_err decode_paths(struct request_reader *q)
{
    enum omen_err rc = need_member(q, M_PATHS);
    if (rc != OMEN_OK) return rc;
    msgpack_object_array array;
    rc = read_array(&q->r, q->members[M_PATHS], 1, WIRE_PATHS_MAX, &array);
    for (uint32_t i = 0; rc == OMEN_OK && i < array.size; i++) {
        struct bytes text;
        const struct doc_path *path;
        rc = read_str(&q->r, &array.ptr[i], DOC_PATH_BYTES_MAX, &text);
        if (rc == OMEN_OK)
            rc = doc_path_parse((const char *)text.data, text.len, q->r.arena, &path, q->r.err);
        if (rc != OMEN_OK) prefix_slot(q->r.err, "", i);
    }
    if (rc == OMEN_OK) rc = read_doc(&q->r, q->members[M_PATHS], DOC_BYTES_MAX, &q->out->write.payload_paths);
    return in_member(q, M_PATHS, rc);
}

static enum omen_err check_expiry(struct request_reader *q, uint64_t expires_ms, uint32_t i)
{
    if (expires_ms <= OMEN_EXPIRES_MS_MAX) return OMEN_OK;
    enum omen_err rc = err_set(q->r.err, OMEN_ETOOBIG, NULL, "no Unix time in ms");
    prefix_slot(q->r.err, "", i);
    return rc;
}

/* One time for all points, or a column: bin of u64, or array of integers and nil. */
static enum omen_err decode_expires(struct request_reader *q)
{
    const msgpack_object *v = q->members[M_EXPIRES_MS];
    uint32_t count = q->out->write.count;
    uint64_t *times = NULL;
    if (v == NULL) return OMEN_OK;
    enum omen_err rc = read_alloc(&q->r, count, sizeof *times, &times);
    if (rc != OMEN_OK) return rc;
    q->out->write.expires_ms = times;
    if (v->type == MSGPACK_OBJECT_BIN) {
        struct bytes data;
        rc = read_bin(&q->r, v, 8ull * count, &data);
        if (rc != OMEN_OK) return rc;
        if (data.len != 8ull * count)
            return err_set(q->r.err, OMEN_EINVAL, NULL, "%zu bytes are not %u u64", data.len, count);
        memcpy(times, data.data, data.len);
        for (uint32_t i = 0; rc == OMEN_OK && i < count; i++) rc = check_expiry(q, times[i], i);
        return rc;
    }
    if (v->type == MSGPACK_OBJECT_ARRAY) {
        msgpack_object_array array;
        rc = read_array(&q->r, v, count, count, &array);
        for (uint32_t i = 0; rc == OMEN_OK && i < count; i++) {
            times[i] = 0;
            if (array.ptr[i].type == MSGPACK_OBJECT_NIL) continue;
            rc = read_u64(&q->r, &array.ptr[i], 0, OMEN_EXPIRES_MS_MAX, &times[i]);
            if (rc != OMEN_OK) prefix_slot(q->r.err, "", i);
        }
        return rc;
    }
    uint64_t one = 0;
    rc = read_u64(&q->r, v, 0, OMEN_EXPIRES_MS_MAX, &one);
    for (uint32_t i = 0; rc == OMEN_OK && i < count; i++) times[i] = one;
    return rc;
}

enum omen_err decode_op_id(struct request_reader *q, struct op_id *out)
{
    if (q->members[M_OP_ID] == NULL) return OMEN_OK;
    struct token parts; /* the same shape: three u64 */
    enum omen_err rc = in_member(q, M_OP_ID, read_token(&q->r, q->members[M_OP_ID], &parts));
    if (rc != OMEN_OK) return rc;
    *out = (struct op_id){ parts.incarnation, parts.shard, parts.sequence };
    return OMEN_OK;
}

static enum omen_err decode_wait(struct request_reader *q)
{
    if (q->members[M_WAIT] == NULL) return OMEN_OK;
    struct bytes level;
    enum omen_err rc = read_str(&q->r, q->members[M_WAIT], 64, &level);
    if (rc != OMEN_OK) return rc;
    q->out->write.wait = WAIT_COMMITTED;
    if (bytes_equal(level, "accepted")) q->out->write.wait = WAIT_ACCEPTED;
    if (bytes_equal(level, "indexed")) q->out->write.wait = WAIT_INDEXED;
    bool committed = bytes_equal(level, "committed") || bytes_equal(level, "durable"); /* its first name */
    if (committed || q->out->write.wait != WAIT_COMMITTED) return OMEN_OK;
    return err_set(q->r.err, OMEN_EINVAL, NULL, "must be accepted, committed or indexed");
}

static enum omen_err check_batch_bytes(struct request_reader *q)
{
    uint64_t vectors = 0, payloads = 0;
    for (uint32_t i = 0; i < q->out->write.column_count; i++) vectors += q->out->write.columns[i].bytes;
    uint32_t rows = q->out->write.filter_doc.data != NULL ? 1 : q->out->write.count;
    for (uint32_t i = 0; q->out->write.payloads != NULL && i < rows; i++) {
        payloads += q->out->write.payloads[i].len;
    }
    if (vectors + payloads <= OMEN_BATCH_BYTES_MAX) return OMEN_OK;
    return err_set(q->r.err, OMEN_ETOOBIG, vectors >= payloads ? "vectors" : "payloads",
            "batch of %llu bytes, the limit is %u", (unsigned long long)(vectors + payloads),
            OMEN_BATCH_BYTES_MAX);
}

/* Which points: ids, or a filter instead of them and their keys. */
static enum omen_err decode_targets(struct request_reader *q)
{
    if (q->members[M_FILTER] == NULL) {
        enum omen_err rc = need_member(q, M_IDS);
        if (rc != OMEN_OK) return rc;
        return in_member(q, M_IDS,
                read_ids(&q->r, q->members[M_IDS], 1, OMEN_BATCH_POINTS_MAX, &q->out->write.ids,
                        &q->out->write.count));
    }
    if (q->members[M_IDS] != NULL || q->members[M_KEYS] != NULL)
        return err_set(q->r.err, OMEN_EINVAL, MEMBER_NAMES[q->members[M_IDS] != NULL ? M_IDS : M_KEYS],
                "does not go with a filter");
    return decode_filter(q, &q->out->write.filter, &q->out->write.filter_doc);
}

enum omen_err decode_write(struct request_reader *q)
{
    enum wire_op op = q->out->op;
    enum omen_err rc = decode_targets(q);
    uint32_t rows = q->out->write.filter_doc.data != NULL ? 1 : q->out->write.count;
    if (rc == OMEN_OK && op == WIRE_UPSERT) {
        rc = need_member(q, M_VECTORS);
        if (rc == OMEN_OK) rc = in_member(q, M_VECTORS, decode_columns(q));
    }
    if (rc == OMEN_OK) rc = decode_payloads(q, op == WIRE_SET_PAYLOAD || op == WIRE_OVERWRITE_PAYLOAD, rows);
    if (rc == OMEN_OK) rc = decode_keys(q, q->out->write.count, &q->out->write.keys);
    if (rc == OMEN_OK && op == WIRE_DELETE_PAYLOAD) rc = decode_paths(q);
    if (rc == OMEN_OK) rc = in_member(q, M_EXPIRES_MS, decode_expires(q));
    if (rc == OMEN_OK) rc = decode_op_id(q, &q->out->write.op_id);
    if (rc == OMEN_OK) rc = in_member(q, M_WAIT, decode_wait(q));
    return rc == OMEN_OK ? check_batch_bytes(q) : rc;
}

enum omen_err decode_get_ids(struct request_reader *q)
{
    enum omen_err rc = need_member(q, M_IDS);
    if (rc == OMEN_OK) {
        rc = in_member(q, M_IDS,
                read_ids(&q->r, q->members[M_IDS], 1, OMEN_BATCH_POINTS_MAX, &q->out->get.ids,
                        &q->out->get.count));
    }
    return rc == OMEN_OK ? decode_keys(q, q->out->get.count, &q->out->get.keys) : rc;
}
