/* Log entries for tests. */
#include "common/err.h"
#include "common/check.h"
#include "tests/support/entry_support.h"

#include <stdio.h>

static void set_field(struct vector_field *field, const char *name, uint32_t dim, enum metric metric)
{
    snprintf(field->name, sizeof field->name, "%s", name);
    field->dim = dim;
    field->metric = metric;
}

struct collection_schema test_schema_simple(uint32_t dim, const char *shard_key)
{
    struct collection_schema schema = { .field_count = 1 };
    set_field(&schema.fields[0], "", dim, METRIC_L2);
    snprintf(schema.shard_key, sizeof schema.shard_key, "%s", shard_key);
    return schema;
}

struct collection_schema test_schema_three(bool keyed)
{
    struct collection_schema schema = test_schema_simple(4, keyed ? "tenant" : "");
    schema.field_count = 3;
    set_field(&schema.fields[1], "text", 17, METRIC_COSINE);
    set_field(&schema.fields[2], "image", 33, METRIC_IP);
    return schema;
}

static void add_again(struct entry_builder *b, const struct entry *e, const struct collection_schema *schema,
        uint32_t i)
{
    struct entry_op parsed;
    entry_op_at(e, i, &parsed);
    struct point_op op = {
        .kind = parsed.kind,
        .id = parsed.key.id,
        .key = { parsed.shard_key },
        .any_key = parsed.any_key,
        .payload = parsed.payload,
        .expires_ms = parsed.expires_ms,
        .if_version = parsed.if_version,
    };
    for (uint32_t f = 0; f < schema->field_count; f++) {
        if (parsed.rows[f] == ENTRY_NO_ROW) continue;
        op.vectors[f] = entry_row(e, f, parsed.rows[f], schema->fields[f].dim);
    }
    enum omen_err rc = entry_builder_add(b, &op);
    CHECK(rc == OMEN_OK);
}

uint8_t *test_entry_rebuild(const struct entry *entry, const struct collection_schema *schema,
        uint32_t *len_out)
{
    struct entry_builder *b = entry_builder_new(schema);
    for (uint32_t r = 0; r < entry->request_count; r++) {
        struct entry_request request;
        entry_request_at(entry, r, &request);
        entry_builder_begin_request(b, request.op_id);
        struct entry_intent intent;
        enum omen_err put = entry_intent_at(entry, r, &intent) ? entry_builder_put_intent(b, &intent)
                                                               : OMEN_OK;
        CHECK(put == OMEN_OK);
        for (uint32_t i = 0; i < request.op_count; i++) add_again(b, entry, schema, request.first_op + i);
    }
    if (entry->request_count == 0) {
        for (uint32_t i = 0; i < entry->op_count; i++) add_again(b, entry, schema, i);
    }
    uint8_t *bytes = NULL;
    enum omen_err rc = entry_builder_finish(b, entry->log_time_ms, entry->epoch, entry->derived, &bytes,
            len_out);
    CHECK(rc == OMEN_OK);
    entry_builder_free(b);
    return bytes;
}
