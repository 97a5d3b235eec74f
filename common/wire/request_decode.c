/* Requests from bytes: the envelope, hello and the catalog here; writes in request_points.c, reads in request_reads.c.
 *
 * Order of work: wire_scan over the raw bytes, msgpack's object tree, `v` and `op` (so that even a refused request can be
 * answered in its version), then the members by name, then their types and ranges. Everything a request says is checked
 * here except what needs the collection's schema. */
#include "common/wire/request.h"

#include <math.h>

enum omen_err in_member(struct request_reader *q, enum member member, enum omen_err rc)
{
    if (rc != OMEN_OK) err_prefix(q->r.err, MEMBER_NAMES[member]);
    return rc;
}

enum omen_err need_member(struct request_reader *q, enum member member)
{
    if (q->members[member] != NULL) return OMEN_OK;
    return err_set(q->r.err, OMEN_EINVAL, MEMBER_NAMES[member], "is needed by %s", wire_op_name(q->out->op));
}

/* A member of the outermost map by name, before the map as a whole is checked. */
static const msgpack_object *peek_member(const msgpack_object *map, const char *name)
{
    for (uint32_t i = 0; i < map->via.map.size; i++) {
        const msgpack_object_kv *kv = &map->via.map.ptr[i];
        if (kv->key.type != MSGPACK_OBJECT_STR) continue;
        struct bytes key = { (const uint8_t *)kv->key.via.str.ptr, kv->key.via.str.size };
        if (bytes_equal(key, name)) return &kv->val;
    }
    return NULL;
}

static enum omen_err decode_version_and_op(struct request_reader *q)
{
    struct reader *r = &q->r;
    const msgpack_object *map = &r->unpacked.data;
    const msgpack_object *op = peek_member(map, "op");
    if (op == NULL) return err_set(r->err, OMEN_EPROTO, "op", "is missing");
    struct bytes name;
    enum omen_err rc = in_member(q, M_OP, read_str(r, op, 64, &name));
    if (rc != OMEN_OK) return rc;
    bool known = op_parse(name, &q->out->op);
    const msgpack_object *v = peek_member(map, "v");
    if (v == NULL)
        return err_set(r->err, OMEN_EPROTO, "v", "is missing (protocol version, %d)", WIRE_VERSION_MAX);
    uint64_t version = 0;
    rc = in_member(q, M_V, read_u64(r, v, 0, UINT64_MAX, &version));
    if (rc != OMEN_OK) return rc;
    if (version < WIRE_VERSION_MIN || version > WIRE_VERSION_MAX) {
        return err_set(r->err, OMEN_EVERSION, "v", "version %llu is not spoken here, only %d to %d",
                (unsigned long long)version, WIRE_VERSION_MIN, WIRE_VERSION_MAX);
    }
    q->out->version = (uint32_t)version;
    if (!known) {
        return err_set(r->err, OMEN_EPROTO, "op", "unknown operation \"%.*s\"", (int)name.len,
                (const char *)name.data);
    }
    return OMEN_OK;
}

static enum omen_err decode_consistency(struct request_reader *q)
{
    const msgpack_object *v = q->members[M_CONSISTENCY];
    if (v == NULL) return OMEN_OK;
    struct bytes name;
    enum omen_err rc = read_str(&q->r, v, 64, &name);
    if (rc != OMEN_OK) return rc;
    for (int i = 0; i < 3; i++) {
        if (!bytes_equal(name, CONSISTENCY_NAMES[i])) continue;
        q->out->consistency = (enum consistency)i;
        return OMEN_OK;
    }
    return err_set(q->r.err, OMEN_EINVAL, NULL, "must be session, eventual or linearizable");
}

/* A name as map_check_name has it, borrowed. */
static enum omen_err decode_name(struct request_reader *q, enum member member, struct bytes *out)
{
    enum omen_err rc = need_member(q, member);
    if (rc != OMEN_OK) return rc;
    rc = in_member(q, member, read_str(&q->r, q->members[member], OMEN_NAME_BYTES_MAX, out));
    if (rc != OMEN_OK) return rc;
    return map_check_name((const char *)out->data, out->len, MEMBER_NAMES[member], q->r.err);
}

static enum omen_err decode_envelope(struct request_reader *q)
{
    struct wire_request *out = q->out;
    struct reader *r = &q->r;
    enum omen_err rc = OMEN_OK;
    if (q->members[M_KEY] != NULL) {
        rc = in_member(q, M_KEY, read_str(r, q->members[M_KEY], WIRE_API_KEY_BYTES_MAX, &out->api_key));
    }
    if (rc == OMEN_OK && q->members[M_DEADLINE_MS] != NULL) {
        rc = in_member(q, M_DEADLINE_MS,
                read_u32(r, q->members[M_DEADLINE_MS], 0, WIRE_DEADLINE_MS_MAX, &out->deadline_ms));
    }
    if (rc == OMEN_OK) rc = in_member(q, M_CONSISTENCY, decode_consistency(q));
    if (rc == OMEN_OK && q->members[M_TOKENS] != NULL) {
        rc = in_member(q, M_TOKENS,
                read_tokens(r, q->members[M_TOKENS], WIRE_TOKENS_MAX, &out->tokens, &out->token_count));
    }
    if (rc == OMEN_OK && q->members[M_ALLOW_PARTIAL] != NULL) {
        rc = in_member(q, M_ALLOW_PARTIAL, read_bool(r, q->members[M_ALLOW_PARTIAL], &out->allow_partial));
    }
    if (rc == OMEN_OK && op_takes_collection(out->op)) rc = decode_name(q, M_COLLECTION, &out->collection);
    return rc;
}

static enum omen_err decode_hello(struct request_reader *q)
{
    struct reader *r = &q->r;
    uint32_t range[2] = { WIRE_VERSION_MIN, WIRE_VERSION_MIN };
    enum omen_err rc = OMEN_OK;
    if (q->members[M_VERSIONS] != NULL) {
        msgpack_object_array array;
        rc = read_array(r, q->members[M_VERSIONS], 2, 2, &array);
        for (uint32_t i = 0; rc == OMEN_OK && i < 2; i++) {
            rc = read_u32(r, &array.ptr[i], 1, UINT32_MAX, &range[i]);
            if (rc != OMEN_OK) prefix_slot(r->err, "", i);
        }
        if (rc == OMEN_OK && range[0] > range[1])
            rc = err_set(r->err, OMEN_EINVAL, NULL, "must be [min, max]");
        rc = in_member(q, M_VERSIONS, rc);
    }
    if (rc != OMEN_OK) return rc;
    if (range[1] < WIRE_VERSION_MIN || range[0] > WIRE_VERSION_MAX) {
        return err_set(r->err, OMEN_EVERSION, "versions",
                "no version in common: %u to %u asked, %d to %d spoken here", range[0], range[1],
                WIRE_VERSION_MIN, WIRE_VERSION_MAX);
    }
    q->out->hello.version_min = range[0];
    q->out->hello.version_max = range[1];
    if (q->members[M_CLIENT] == NULL) return OMEN_OK;
    return in_member(q, M_CLIENT,
            read_str(r, q->members[M_CLIENT], WIRE_CLIENT_NAME_BYTES_MAX, &q->out->hello.client_name));
}

/* ---- catalog --------------------------------------------------------------------------------------------------- */

static enum omen_err decode_vector_field(struct request_reader *q, const msgpack_object *v,
        struct vector_field *field)
{
    static const char *const names[] = { "dim", "metric" };
    const msgpack_object *slots[2];
    struct reader *r = &q->r;
    enum omen_err rc = map_collect(r, v, names, 2, 3, slots);
    if (rc != OMEN_OK) return rc;
    if (slots[0] == NULL) return err_set(r->err, OMEN_EINVAL, "dim", "is needed");
    rc = read_u32(r, slots[0], 1, OMEN_DIM_MAX, &field->dim);
    if (rc != OMEN_OK) {
        err_prefix(r->err, "dim");
        return rc;
    }
    field->metric = METRIC_COSINE;
    if (slots[1] == NULL) return OMEN_OK;
    struct bytes metric;
    rc = read_str(r, slots[1], 64, &metric);
    if (rc == OMEN_OK && !metric_parse((const char *)metric.data, metric.len, &field->metric)) {
        rc = err_set(r->err, OMEN_EINVAL, NULL, "must be l2, ip or cosine");
    }
    if (rc != OMEN_OK) err_prefix(r->err, "metric");
    return rc;
}

/* Name of a vector field as the key of a map: "" or a name; copied with its NUL. */
static enum omen_err decode_field_name(struct request_reader *q, const msgpack_object *key, char *name_out)
{
    struct bytes name;
    enum omen_err rc = read_str(&q->r, key, OMEN_NAME_BYTES_MAX, &name);
    if (rc != OMEN_OK) return rc;
    if (name.len > 0) {
        char shown[64];
        snprintf(shown, sizeof shown, "%.*s", name.len < 60 ? (int)name.len : 60, (const char *)name.data);
        rc = map_check_name((const char *)name.data, name.len, shown, q->r.err);
        if (rc != OMEN_OK) return rc;
    }
    memcpy(name_out, name.data, name.len);
    name_out[name.len] = '\0';
    return OMEN_OK;
}

static enum omen_err decode_schema_fields(struct request_reader *q, struct collection_schema *schema)
{
    const msgpack_object *v = q->members[M_VECTORS];
    if (v->type != MSGPACK_OBJECT_MAP) return read_expected(&q->r, v, "map");
    if (v->via.map.size == 0 || v->via.map.size > OMEN_VECTOR_FIELDS_MAX) {
        return err_set(q->r.err, v->via.map.size == 0 ? OMEN_EINVAL : OMEN_ETOOBIG, NULL,
                "%u fields, 1 to %d are allowed", v->via.map.size, OMEN_VECTOR_FIELDS_MAX);
    }
    for (uint32_t i = 0; i < v->via.map.size; i++) {
        struct vector_field *field = &schema->fields[i];
        enum omen_err rc = decode_field_name(q, &v->via.map.ptr[i].key, field->name);
        if (rc != OMEN_OK) return rc;
        rc = decode_vector_field(q, &v->via.map.ptr[i].val, field);
        for (uint32_t j = 0; rc == OMEN_OK && j < i; j++) {
            if (strcmp(schema->fields[j].name, field->name) == 0) {
                rc = err_set(q->r.err, OMEN_EINVAL, NULL, "given twice");
            }
        }
        if (rc != OMEN_OK) {
            err_prefix(q->r.err, field->name[0] == '\0' ? "\"\"" : field->name);
            return rc;
        }
        schema->field_count++;
    }
    return OMEN_OK;
}

static enum omen_err decode_recall_target(struct request_reader *q, float *out)
{
    if (q->members[M_RECALL_TARGET] == NULL) return OMEN_OK;
    double target = 0;
    enum omen_err rc = read_f64(&q->r, q->members[M_RECALL_TARGET], &target);
    if (rc != OMEN_OK) return rc;
    if (!(target > 0 && target <= 1))
        return err_set(q->r.err, OMEN_EINVAL, NULL, "must be above 0 and at most 1");
    *out = (float)target;
    return OMEN_OK;
}

/* What the collection's options will be is checked where they are kept; whether these can be any, here. They may say the
 * recall target too. */
static enum omen_err decode_options(struct request_reader *q, struct catalog_change *change)
{
    struct collection_options options = { .profile = PROFILE_NONE };
    if (q->members[M_OPTIONS] == NULL) return OMEN_OK;
    enum omen_err rc = read_doc(&q->r, q->members[M_OPTIONS], OPTIONS_DOC_BYTES_MAX, &change->options);
    if (rc != OMEN_OK) return rc;
    return collection_options_change(&options, &change->recall_target, change->options, q->r.err);
}

static enum omen_err decode_create(struct request_reader *q)
{
    struct catalog_change *change = &q->out->catalog;
    struct reader *r = &q->r;
    change->shard_count = 1;
    change->replication = 1;
    enum omen_err rc = need_member(q, M_VECTORS);
    if (rc == OMEN_OK) rc = in_member(q, M_VECTORS, decode_schema_fields(q, &change->schema));
    if (rc == OMEN_OK && q->members[M_SHARD_KEY] != NULL) {
        struct bytes path;
        rc = in_member(q, M_SHARD_KEY, read_str(r, q->members[M_SHARD_KEY], DOC_PATH_BYTES_MAX, &path));
        if (rc == OMEN_OK && memchr(path.data, '\0', path.len) != NULL) {
            rc = err_set(r->err, OMEN_EINVAL, "shard_key", "holds a NUL byte");
        }
        if (rc == OMEN_OK) memcpy(change->schema.shard_key, path.data, path.len);
    }
    if (rc == OMEN_OK && q->members[M_SHARDS] != NULL) {
        rc = in_member(q, M_SHARDS,
                read_u32(r, q->members[M_SHARDS], 1, OMEN_SHARDS_MAX, &change->shard_count));
    }
    if (rc == OMEN_OK && q->members[M_REPLICATION] != NULL) {
        rc = in_member(q, M_REPLICATION,
                read_u32(r, q->members[M_REPLICATION], 1, WIRE_REPLICATION_MAX, &change->replication));
    }
    change->recall_target = WIRE_RECALL_TARGET_DEFAULT;
    if (rc == OMEN_OK) rc = in_member(q, M_OPTIONS, decode_options(q, change));
    if (rc == OMEN_OK) rc = in_member(q, M_RECALL_TARGET, decode_recall_target(q, &change->recall_target));
    if (rc == OMEN_OK) rc = map_check_schema(&change->schema, r->err);
    return rc;
}

static enum omen_err decode_catalog(struct request_reader *q)
{
    struct wire_request *out = q->out;
    struct bytes name = out->collection;
    enum omen_err rc = OMEN_OK;
    switch (out->op) {
    case WIRE_COLLECTION_CREATE:
        out->catalog.kind = CATALOG_CREATE;
        rc = decode_create(q);
        break;
    case WIRE_COLLECTION_DROP: out->catalog.kind = CATALOG_DROP; break;
    case WIRE_COLLECTION_SET:
        out->catalog.kind = CATALOG_SET;
        rc = need_member(q, M_OPTIONS);
        if (rc == OMEN_OK) rc = in_member(q, M_OPTIONS, decode_options(q, &out->catalog));
        break;
    case WIRE_ALIAS_SET:
        out->catalog.kind = CATALOG_ALIAS_SET;
        memcpy(out->catalog.target, out->collection.data, out->collection.len);
        rc = decode_name(q, M_ALIAS, &name);
        break;
    default:
        out->catalog.kind = CATALOG_ALIAS_DROP;
        rc = decode_name(q, M_ALIAS, &name);
        break;
    }
    if (rc == OMEN_OK) rc = decode_op_id(q, &out->catalog.asked_as);
    if (rc == OMEN_OK) memcpy(out->catalog.name, name.data, name.len);
    return rc;
}

/* ---- cluster --------------------------------------------------------------------------------------------------- */

/* Which actions there are, and what they take, is the cluster's business: routers carry those of the next release too. */
static enum omen_err decode_cluster(struct request_reader *q)
{
    struct doc *request = &q->out->cluster.request, what = { NULL, 0 };
    enum omen_err rc = need_member(q, M_REQUEST);
    if (rc == OMEN_OK)
        rc = in_member(q, M_REQUEST,
                read_doc(&q->r, q->members[M_REQUEST], CLUSTER_REQUEST_BYTES_MAX, request));
    if (rc != OMEN_OK) return rc;
    if (doc_type(*request) != DOC_OBJECT) return err_set(q->r.err, OMEN_EINVAL, "request", "must be a map");
    what = doc_member(*request, (struct bytes){ (const uint8_t *)"do", 2 });
    if (what.data != NULL && doc_type(what) == DOC_STRING) return decode_op_id(q, &q->out->cluster.asked_as);
    return err_set(q->r.err, OMEN_EINVAL, "request.do", "must be a str: what is to be done");
}

/* ---- door ------------------------------------------------------------------------------------------------------ */

static enum omen_err decode_operation(struct request_reader *q)
{
    switch (q->out->op) {
    case WIRE_HELLO: return decode_hello(q);
    case WIRE_COLLECTION_CREATE:
    case WIRE_COLLECTION_DROP:
    case WIRE_COLLECTION_SET:
    case WIRE_ALIAS_SET:
    case WIRE_ALIAS_DROP: return decode_catalog(q);
    case WIRE_UPSERT:
    case WIRE_DELETE:
    case WIRE_SET_PAYLOAD:
    case WIRE_OVERWRITE_PAYLOAD:
    case WIRE_DELETE_PAYLOAD: return decode_write(q);
    case WIRE_GET: return decode_get(q);
    case WIRE_SCROLL: return decode_scroll(q);
    case WIRE_COUNT: return decode_count(q);
    case WIRE_SEARCH: return decode_search(q);
    case WIRE_CLUSTER: return decode_cluster(q);
    default: return OMEN_OK; /* list, describe, status: nothing of their own */
    }
}

enum omen_err message_decode_request(struct bytes message, struct arena *arena,
        struct wire_request *request_out, struct err *err)
{
    memset(request_out, 0, sizeof *request_out);
    if (message.len > WIRE_MESSAGE_BYTES_MAX) {
        return err_set(err, OMEN_ETOOBIG, NULL, "message of %zu bytes, the limit is %u", message.len,
                WIRE_MESSAGE_BYTES_MAX);
    }
    struct request_reader q = { .out = request_out };
    enum omen_err rc = reader_init(&q.r, message, arena, err);
    if (rc == OMEN_OK) rc = decode_version_and_op(&q);
    if (rc == OMEN_OK) {
        rc = map_collect(&q.r, &q.r.unpacked.data, MEMBER_NAMES, M_COUNT, op_members(request_out->op),
                q.members);
    }
    if (rc == OMEN_OK) rc = decode_envelope(&q);
    if (rc == OMEN_OK) rc = decode_operation(&q);
    reader_fini(&q.r);
    return rc;
}
