/* Arguments of the API to a request: ids, JSON, filters, selections. JSON is parsed here, once; the finished values lie
 * one after the other in the scratch's arena.
 * Threads: the scratch's owner. */
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/json.h"
#include "tools/client/client_impl.h"

static const uint8_t EMPTY_OBJECT[9] = { DOC_OBJECT };

struct bytes client_bytes(const char *s)
{
    return (struct bytes){ (const uint8_t *)(s == NULL ? "" : s), s == NULL ? 0 : strlen(s) };
}

static enum omen_err no_memory(struct err *err)
{
    return err_set(err, OMEN_ENOMEM, NULL, "no memory for the request");
}

point_id build_id(const omen_id *id)
{
    if (!id->is_uuid) return (point_id){ .lo = id->number, .kind = POINT_ID_U64 };
    return (point_id){ .hi = load_u64_be(id->uuid), .lo = load_u64_be(id->uuid + 8), .kind = POINT_ID_UUID };
}

enum omen_err build_ids(const omen_id *ids, size_t count, struct arena *arena, const point_id **ids_out,
        struct err *err)
{
    point_id *out = arena_alloc(arena, count * sizeof *out);
    if (out == NULL) return no_memory(err);
    for (size_t i = 0; i < count; i++) out[i] = build_id(&ids[i]);
    *ids_out = out;
    return OMEN_OK;
}

/* A JSON error says where in the text; the sentence is told with what the text is. */
static enum omen_err name_json(struct err *err, enum omen_err rc, const char *what)
{
    char message[ERR_MESSAGE_BYTES];
    snprintf(message, sizeof message, "%s", err->message);
    err_prefix(err, what);
    char field[ERR_FIELD_BYTES];
    snprintf(field, sizeof field, "%s", err->field);
    return err_set(err, rc, field, "%s: %s", what, message);
}

/* Parsed into the scratch's arena; the error knows its place in the text alone. */
static enum omen_err parse_json(const char *json, uint32_t limit_bytes, struct scratch *s,
        struct doc *doc_out, struct err *err)
{
    struct doc doc;
    doc_builder_reset(s->builder, limit_bytes);
    enum omen_err rc = json_parse(json, strlen(json), s->builder, &doc, err);
    if (rc != OMEN_OK) return rc;
    uint8_t *copy = arena_copy(&s->arena, doc.data, doc.len);
    if (copy == NULL) return no_memory(err);
    *doc_out = (struct doc){ copy, doc.len };
    return OMEN_OK;
}

enum omen_err build_doc(const char *json, uint32_t limit_bytes, const char *what, struct scratch *s,
        struct doc *doc_out, struct err *err)
{
    enum omen_err rc = parse_json(json, limit_bytes, s, doc_out, err);
    return rc == OMEN_OK ? rc : name_json(err, rc, what);
}

enum omen_err build_docs(const char *const *json, size_t count, const char *what, struct doc missing,
        struct scratch *s, const struct doc **docs_out, struct err *err)
{
    *docs_out = NULL;
    if (json == NULL) return OMEN_OK;
    struct doc *docs = arena_alloc(&s->arena, count * sizeof *docs);
    if (docs == NULL) return no_memory(err);
    for (size_t i = 0; i < count; i++) {
        docs[i] = missing;
        if (json[i] == NULL) continue;
        enum omen_err rc = parse_json(json[i], DOC_BYTES_MAX, s, &docs[i], err);
        if (rc == OMEN_OK) continue;
        char name[64];
        snprintf(name, sizeof name, "%s[%zu]", what, i);
        return name_json(err, rc, name);
    }
    *docs_out = docs;
    return OMEN_OK;
}

enum omen_err build_filter(const char *json, struct scratch *s, const struct filter **filter_out,
        struct doc *doc_out, struct err *err)
{
    *filter_out = NULL;
    *doc_out = (struct doc){ 0 };
    if (json == NULL || json[strspn(json, " \t\r\n")] == '\0') return OMEN_OK;
    struct doc doc;
    enum omen_err rc = build_doc(json, DOC_FILTER_BYTES_MAX, "filter", s, &doc, err);
    if (rc != OMEN_OK) return rc;
    rc = filter_parse(doc, &s->arena, filter_out, err); /* refused here already, with the place named */
    if (rc == OMEN_OK && *filter_out != NULL) *doc_out = doc;
    return rc;
}

static enum omen_err build_paths(const char *const *paths, struct scratch *s, struct wire_selection *out,
        struct err *err)
{
    uint32_t count = 0;
    while (paths[count] != NULL) count++;
    const struct doc_path **parsed = arena_alloc(&s->arena, (count + 1) * sizeof *parsed);
    if (parsed == NULL) return no_memory(err);
    for (uint32_t i = 0; i < count; i++) {
        enum omen_err rc = doc_path_parse(paths[i], strlen(paths[i]), &s->arena, &parsed[i], err);
        if (rc != OMEN_OK) return rc;
    }
    out->payload_paths = parsed;
    out->payload_path_count = count;
    return OMEN_OK;
}

enum omen_err build_selection(const omen_select *select, struct scratch *s, struct wire_selection *out,
        struct err *err)
{
    *out = (struct wire_selection){ 0 };
    if (select == NULL) return OMEN_OK;
    if (select->payload_include != NULL && select->payload_exclude != NULL)
        return err_set(err, OMEN_EINVAL, "select",
                "payload_include and payload_exclude cannot both be given");
    out->with_all_vectors = select->with_vectors;
    out->with_payload = select->with_payload;
    const char *const *paths = select->payload_include != NULL ? select->payload_include
                                                               : select->payload_exclude;
    if (paths == NULL) return OMEN_OK;
    out->with_payload = true;
    out->payload_include = select->payload_include != NULL;
    return build_paths(paths, s, out, err);
}

enum omen_err build_consistency(const char *text, enum consistency *out, struct err *err)
{
    if (text == NULL || strcmp(text, "session") == 0)
        *out = CONSISTENCY_SESSION;
    else if (strcmp(text, "eventual") == 0)
        *out = CONSISTENCY_EVENTUAL;
    else if (strcmp(text, "linearizable") == 0)
        *out = CONSISTENCY_LINEARIZABLE;
    else
        return err_set(err, OMEN_EINVAL, "consistency", "\"%s\" is none of session, eventual, linearizable",
                text);
    return OMEN_OK;
}

/* ---- writes ---- */

static enum omen_err build_columns(const struct write_args *args, struct scratch *s,
        struct wire_request *request, struct err *err)
{
    if (args->column_count == 0 || args->column_count > OMEN_VECTOR_FIELDS_MAX)
        return err_set(err, OMEN_EINVAL, "vectors", "%u vector fields, 1 to %d are allowed",
                args->column_count, OMEN_VECTOR_FIELDS_MAX);
    struct wire_vector_column *columns = arena_calloc(&s->arena, args->column_count, sizeof *columns);
    if (columns == NULL) return no_memory(err);
    for (uint32_t i = 0; i < args->column_count; i++) {
        const omen_vectors *column = &args->columns[i];
        if (column->data == NULL) return err_set(err, OMEN_EINVAL, "vectors", "no vectors are given");
        if (column->dim == 0 || column->dim > OMEN_DIM_MAX)
            return err_set(err, OMEN_EINVAL, "vectors", "dimension %u is not between 1 and %d", column->dim,
                    OMEN_DIM_MAX);
        columns[i] = (struct wire_vector_column){ client_bytes(column->field), (const uint8_t *)column->data,
            (uint64_t)args->count * column->dim * sizeof(float) };
    }
    request->write.columns = columns;
    request->write.column_count = args->column_count;
    return OMEN_OK;
}

/* The time is made absolute here, once: a retry must carry the same. */
static enum omen_err build_expires(const struct write_args *args, struct scratch *s,
        struct wire_request *request, struct err *err)
{
    request->write.expires_ms = args->expires_ms;
    if (args->ttl_ms == 0) return OMEN_OK;
    if (args->expires_ms != NULL)
        return err_set(err, OMEN_EINVAL, "ttl_ms", "expires_ms and ttl_ms exclude each other");
    uint64_t now_ms = clock_wall_ms(clock_system());
    if (args->ttl_ms > OMEN_EXPIRES_MS_MAX - now_ms)
        return err_set(err, OMEN_ETOOBIG, "ttl_ms", "is further away than time is counted");
    uint64_t *times = arena_alloc(&s->arena, args->count * sizeof *times);
    if (times == NULL) return no_memory(err);
    for (size_t i = 0; i < args->count; i++) times[i] = now_ms + args->ttl_ms;
    request->write.expires_ms = times;
    return OMEN_OK;
}

static enum omen_err build_wait(const char *text, enum write_wait *out, struct err *err)
{
    if (text == NULL || strcmp(text, "committed") == 0)
        *out = WAIT_COMMITTED;
    else if (strcmp(text, "accepted") == 0)
        *out = WAIT_ACCEPTED;
    else if (strcmp(text, "indexed") == 0)
        *out = WAIT_INDEXED;
    else
        return err_set(err, OMEN_EINVAL, "wait", "\"%s\" is none of accepted, committed, indexed", text);
    return OMEN_OK;
}

/* The array of path strings that delete_payload carries. */
static enum omen_err build_path_list(const struct write_args *args, struct scratch *s,
        struct wire_request *request, struct err *err)
{
    if (args->path_count == 0 || args->paths == NULL)
        return err_set(err, OMEN_EINVAL, "paths", "no payload path is given");
    doc_builder_reset(s->builder, DOC_BYTES_MAX);
    doc_begin_array(s->builder);
    for (uint32_t i = 0; i < args->path_count; i++) {
        if (args->paths[i] == NULL) return err_set(err, OMEN_EINVAL, "paths", "paths[%u] is NULL", i);
        doc_put_string(s->builder, args->paths[i], strlen(args->paths[i]));
    }
    doc_end(s->builder);
    struct doc doc;
    enum omen_err rc = doc_builder_finish(s->builder, &doc, err);
    if (rc != OMEN_OK) {
        err_prefix(err, "paths");
        return rc;
    }
    uint8_t *copy = arena_copy(&s->arena, doc.data, doc.len);
    if (copy == NULL) return no_memory(err);
    request->write.payload_paths = (struct doc){ copy, doc.len };
    return OMEN_OK;
}

struct op_id build_op_id(struct omen_client *client)
{
    int64_t now_ms = (int64_t)clock_wall_ms(clock_system());
    if (atomic_load(&client->by_server))
        now_ms = atomic_load(&client->server_clock_ms) + (int64_t)(client_now_ns() / 1000000u);
    return (struct op_id){ client->id, atomic_fetch_add(&client->seq, 1) + 1, (uint64_t)now_ms };
}

enum omen_err build_write(struct omen_client *client, const struct write_args *args, struct scratch *s,
        struct wire_request *request_out, struct err *err)
{
    struct wire_request *request = request_out;
    *request = (struct wire_request){ .op = args->op, .collection = client_bytes(args->collection) };
    if (args->collection == NULL) return err_set(err, OMEN_EINVAL, "collection", "no collection is given");
    bool by_filter = args->filter != NULL;
    if (!by_filter && (args->count == 0 || args->ids == NULL))
        return err_set(err, OMEN_EINVAL, "ids", "no points are given");
    if (args->count > OMEN_BATCH_POINTS_MAX)
        return err_set(err, OMEN_ETOOBIG, "ids", "%zu points in one request, at most %d are allowed",
                args->count, OMEN_BATCH_POINTS_MAX);
    if (args->payloads_json == NULL && (args->op == WIRE_SET_PAYLOAD || args->op == WIRE_OVERWRITE_PAYLOAD))
        return err_set(err, OMEN_EINVAL, "payloads", "no payloads are given");
    request->write.count = (uint32_t)args->count;
    enum omen_err rc = OMEN_OK;
    if (by_filter)
        rc = build_doc(args->filter, DOC_FILTER_BYTES_MAX, "filter", s, &request->write.filter_doc, err);
    else
        rc = build_ids(args->ids, args->count, &s->arena, &request->write.ids, err);
    struct doc empty = { EMPTY_OBJECT, sizeof EMPTY_OBJECT }, none = { NULL, 0 };
    if (rc == OMEN_OK)
        rc = build_docs(args->payloads_json, by_filter ? 1 : args->count, "payloads", empty, s,
                &request->write.payloads, err);
    if (rc == OMEN_OK)
        rc = build_docs(args->keys_json, args->count, "shard_keys", none, s, &request->write.keys, err);
    if (rc == OMEN_OK && args->op == WIRE_UPSERT) rc = build_columns(args, s, request, err);
    if (rc == OMEN_OK && args->op == WIRE_UPSERT) rc = build_expires(args, s, request, err);
    if (rc == OMEN_OK) rc = build_wait(args->wait, &request->write.wait, err);
    if (rc == OMEN_OK && args->op == WIRE_DELETE_PAYLOAD) rc = build_path_list(args, s, request, err);
    if (rc != OMEN_OK) return rc;
    request->write.op_id = build_op_id(client);
    return OMEN_OK;
}
