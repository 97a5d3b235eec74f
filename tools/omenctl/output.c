/* See output.h. */
#include "tools/omenctl/output.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/check.h"
#include "common/query/point.h"
#include "tools/omenctl/args.h"

#define JSON_DOC_BYTES_MAX (64u << 20)

/* ---- failures ---- */

static int exit_code(omen_code code)
{
    if (code == OMEN_EUNAVAILABLE) return EXIT_UNREACHABLE;
    return code == OMEN_ENOTFOUND ? EXIT_NOT_FOUND : EXIT_FAILED;
}

int fail_text(omen_code code, const char *field, const char *message)
{
    bool told = field[0] == '\0' || strncmp(message, field, strlen(field)) == 0;
    fflush(stdout);
    fprintf(stderr, "omenctl: %s (%s%s%s)\n", message, omen_error_name(code), told ? "" : ", field ",
            told ? "" : field);
    return exit_code(code);
}

int fail_with(omen_code code)
{
    omen_op_id id;
    int exit = fail_text(code, omen_last_error_field(), omen_last_error());
    if (code == OMEN_EUNKNOWN && omen_last_change_id(&id))
        fprintf(stderr,
                "omenctl: the same again with --op-id %llu-%llu-%llu tells, or makes it; within 10 minutes\n",
                (unsigned long long)id.client, (unsigned long long)id.seq, (unsigned long long)id.issue_ms);
    return exit;
}

int fail_local(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    fflush(stdout);
    fputs("omenctl: ", stderr);
    vfprintf(stderr, fmt, args);
    fputc('\n', stderr);
    va_end(args);
    return EXIT_FAILED;
}

/* ---- ids ---- */

bool id_of_text(const char *text, size_t len, omen_id *id_out)
{
    point_id point;
    if (point_id_parse(text, len, &point) != OMEN_OK) return false;
    *id_out = (omen_id){ .is_uuid = point.kind == POINT_ID_UUID };
    if (!id_out->is_uuid) {
        id_out->number = point.lo;
        return true;
    }
    store_u64_be(id_out->uuid, point.hi);
    store_u64_be(id_out->uuid + 8, point.lo);
    return true;
}

bool id_of_doc(struct doc value, omen_id *id_out)
{
    if (value.data == NULL) return false;
    if (doc_type(value) == DOC_STRING)
        return id_of_text((const char *)doc_string(value).data, doc_string(value).len, id_out);
    if (doc_type(value) != DOC_I64 || doc_i64(value) < 0) return false;
    *id_out = (omen_id){ .number = (uint64_t)doc_i64(value) };
    return true;
}

/* ---- values as JSON ---- */

void format_id(const omen_id *id, char text_out[POINT_ID_TEXT_BYTES])
{
    point_id point = { .lo = id->number, .kind = POINT_ID_U64 };
    if (id->is_uuid)
        point = (point_id){ .hi = load_u64_be(id->uuid),
            .lo = load_u64_be(id->uuid + 8),
            .kind = POINT_ID_UUID };
    point_id_format(point, text_out);
}

void put_id(struct buf *out, const omen_id *id)
{
    char text[POINT_ID_TEXT_BYTES];
    format_id(id, text);
    buf_printf(out, id->is_uuid ? "\"%s\"" : "%s", text);
}

void put_float(struct buf *out, float v)
{
    char text[32];
    for (int precision = 6; precision <= 9; precision++) {
        snprintf(text, sizeof text, "%.*g", precision, (double)v);
        if (strtof(text, NULL) == v) break;
    }
    buf_printf(out, "%s", text);
}

void put_string(struct buf *out, const char *s)
{
    json_write_string((struct bytes){ (const uint8_t *)s, strlen(s) }, out);
}

static void put_vector(struct buf *out, const omen_vectors *vector)
{
    for (uint32_t i = 0; i < vector->dim; i++) {
        buf_append(out, i == 0 ? "[" : ",", 1);
        put_float(out, vector->data[i]);
    }
    buf_append(out, "]", 1);
}

static void put_vectors(struct buf *out, const omen_point *point)
{
    if (point->vector_count == 0) return;
    if (point->vector_count == 1 && point->vectors[0].field[0] == '\0') {
        buf_printf(out, ",\"vector\":");
        put_vector(out, &point->vectors[0]);
        return;
    }
    buf_printf(out, ",\"vectors\":{");
    for (uint32_t i = 0; i < point->vector_count; i++) {
        if (i > 0) buf_append(out, ",", 1);
        put_string(out, point->vectors[i].field);
        buf_append(out, ":", 1);
        put_vector(out, &point->vectors[i]);
    }
    buf_append(out, "}", 1);
}

void put_point(struct buf *out, const omen_point *point, bool with_score)
{
    buf_printf(out, "{\"id\":");
    put_id(out, &point->id);
    if (with_score) {
        buf_printf(out, ",\"score\":");
        put_float(out, point->score);
    }
    buf_printf(out, ",\"version\":%llu", (unsigned long long)point->version);
    if (point->expires_ms != 0)
        buf_printf(out, ",\"expires_ms\":%llu", (unsigned long long)point->expires_ms);
    if (point->shard_key_json != NULL) buf_printf(out, ",\"shard_key\":%s", point->shard_key_json);
    if (point->payload_json != NULL) {
        buf_printf(out, ",\"payload\":");
        buf_append(out, point->payload_json, strlen(point->payload_json));
    }
    put_vectors(out, point);
    buf_append(out, "}", 1);
}

void put_line(struct buf *out)
{
    buf_append(out, "\n", 1);
    if (out->failed) panic("no memory for the output");
    fwrite(out->data, 1, out->len, stdout);
    buf_clear(out);
}

/* ---- JSON read ---- */

enum omen_err json_text_init(struct json_text *t, const char *text, size_t len, struct err *err)
{
    t->builder = doc_builder_new(JSON_DOC_BYTES_MAX);
    if (t->builder == NULL) panic("out of memory");
    enum omen_err rc = json_parse(text, len, t->builder, &t->doc, err);
    if (rc != OMEN_OK) json_text_fini(t);
    return rc;
}

void json_text_fini(struct json_text *t)
{
    doc_builder_free(t->builder);
    t->builder = NULL;
}

struct doc doc_get(struct doc object, const char *key)
{
    if (object.data == NULL || doc_type(object) != DOC_OBJECT) return (struct doc){ NULL, 0 };
    return doc_member(object, (struct bytes){ (const uint8_t *)key, strlen(key) });
}

uint64_t doc_get_u64(struct doc object, const char *key)
{
    struct doc value = doc_get(object, key);
    return value.data == NULL || doc_type(value) != DOC_I64 ? 0 : (uint64_t)doc_i64(value);
}

int64_t doc_get_i64(struct doc object, const char *key) { return (int64_t)doc_get_u64(object, key); }

struct bytes doc_get_string(struct doc object, const char *key)
{
    struct doc value = doc_get(object, key);
    if (value.data == NULL || doc_type(value) != DOC_STRING) return (struct bytes){ NULL, 0 };
    return doc_string(value);
}

/* ---- cells ---- */

void table_doc(struct table *table, struct doc value)
{
    struct buf text;
    buf_init(&text);
    if (value.data != NULL && doc_type(value) == DOC_STRING) {
        struct bytes s = doc_string(value);
        buf_append(&text, s.data, s.len);
    } else if (value.data != NULL) {
        json_write(value, &text);
    }
    table_cell(table, text.len == 0 ? "" : (const char *)text.data, text.len);
    buf_fini(&text);
}

void table_point_id(struct table *table, const omen_id *id)
{
    char text[POINT_ID_TEXT_BYTES];
    format_id(id, text);
    table_cell(table, text, strlen(text));
}

void table_payload(struct table *table, const char *payload_json, const char *const *paths,
        uint32_t path_count)
{
    const char *json = payload_json == NULL ? "" : payload_json;
    if (path_count == 0) {
        table_cell(table, json, strlen(json));
        return;
    }
    struct json_text payload;
    bool have = payload_json != NULL && json_text_init(&payload, json, strlen(json), NULL) == OMEN_OK;
    struct arena arena;
    arena_init(&arena, 1024, 0);
    for (uint32_t i = 0; i < path_count; i++) {
        const struct doc_path *path;
        struct doc value = { NULL, 0 };
        if (have && doc_path_parse(paths[i], strlen(paths[i]), &arena, &path, NULL) == OMEN_OK)
            value = doc_path_first(path, payload.doc);
        table_doc(table, value);
    }
    arena_fini(&arena);
    if (have) json_text_fini(&payload);
}

void format_bytes(uint64_t bytes, char out[16])
{
    static const char *const UNITS[] = { "B", "kB", "MB", "GB", "TB", "PB" };
    double v = (double)bytes;
    int unit = 0;
    while (v >= 999.95 && unit < 5) {
        v /= 1000;
        unit++;
    }
    snprintf(out, 16, unit == 0 ? "%.0f %s" : "%.1f %s", v, UNITS[unit]);
}

void tell_stale(bool stale)
{
    if (!stale) return;
    fflush(stdout);
    fprintf(stderr,
            "omenctl: the answer is stale: a replica that gave it is behind, or out of touch with its "
            "leader\n");
}
