/* See router_support.h. */
#include "common/err.h"

#include <string.h>

#include "common/check.h"
#include "common/json.h"
#include "tests/support/router_support.h"

struct pending_reply {
    struct router_rig *rig;
    enum wire_op op;
    struct buf message;
};

void rig_start(struct router_rig *rig, const struct collection_schema *schema, uint32_t shards,
        const struct api_key *keys, uint32_t key_count, uint32_t requests_max)
{
    memset(rig, 0, sizeof *rig);
    rig->fake = fake_service_new(schema, shards);
    rig->metrics = metrics_new();
    arena_init(&rig->arena, 64 << 10, 0);
    struct router_options options;
    router_options_default(&options);
    options.service = &rig->fake->service;
    options.clock = clock_system();
    options.metrics = rig->metrics;
    options.api_keys = keys;
    options.api_key_count = key_count;
    if (requests_max != 0) options.requests_max = requests_max;
    CHECK(router_new(&options, &rig->router, NULL) == OMEN_OK);
}

void rig_stop(struct router_rig *rig)
{
    router_free(rig->router);
    fake_service_free(rig->fake);
    metrics_free(rig->metrics);
    arena_fini(&rig->arena);
}

struct wire_request rig_request(enum wire_op op)
{
    struct wire_request request = { .op = op, .version = WIRE_VERSION_MAX };
    request.collection = (struct bytes){ (const uint8_t *)"c", 1 };
    return request;
}

static void respond(void *arg, struct bytes reply)
{
    struct pending_reply *pending = arg;
    struct router_rig *rig = pending->rig;
    void *copy = arena_copy(&rig->arena, reply.data, reply.len);
    struct err err;
    err_clear(&err);
    memset(&rig->reply, 0, sizeof rig->reply);
    enum omen_err rc = message_decode_reply((struct bytes){ copy, reply.len }, pending->op, &rig->arena,
            &rig->reply, &err);
    rig->code = rc != OMEN_OK ? rc : rig->reply.code;
    rig->replies++;
    buf_fini(&pending->message);
    mem_free(pending);
}

enum omen_err rig_ask(struct router_rig *rig, const struct wire_request *request)
{
    struct pending_reply *pending = mem_must_calloc(1, sizeof *pending);
    pending->rig = rig;
    pending->op = request->op;
    buf_init(&pending->message);
    struct err err;
    CHECK(message_encode_request(request, &pending->message, &err) == OMEN_OK);
    router_handle(rig->router, (struct bytes){ pending->message.data, pending->message.len }, respond,
            pending);
    return rig->code;
}

struct doc rig_json(struct router_rig *rig, const char *text)
{
    struct doc_builder *b = doc_builder_new(DOC_BYTES_MAX);
    struct doc doc;
    struct err err;
    CHECK(json_parse(text, strlen(text), b, &doc, &err) == OMEN_OK);
    struct doc copy = { arena_copy(&rig->arena, doc.data, doc.len), doc.len };
    doc_builder_free(b);
    return copy;
}

enum omen_err rig_upsert(struct router_rig *rig, uint64_t first, uint32_t count, const struct doc *payloads)
{
    uint32_t dim = rig->fake->map->collections[0].schema.fields[0].dim;
    point_id *ids = arena_calloc(&rig->arena, count, sizeof *ids);
    float *rows = arena_calloc(&rig->arena, (size_t)count * dim, sizeof *rows);
    for (uint32_t i = 0; i < count; i++) {
        ids[i].lo = first + i;
        rows[(size_t)i * dim] = (float)(first + i);
    }
    struct wire_vector_column column = { { (const uint8_t *)"", 0 }, (const uint8_t *)rows,
        4ull * count * dim };
    struct wire_request request = rig_request(WIRE_UPSERT);
    request.write.count = count;
    request.write.ids = ids;
    request.write.columns = &column;
    request.write.column_count = 1;
    request.write.payloads = payloads;
    return rig_ask(rig, &request);
}
