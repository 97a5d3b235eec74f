/* Replies as a client sees them: the first byte chooses the op, the rest is the message. A server is trusted no more than
 * anybody: decoding ends with a reply whose every row can be read, or an error. */
#include <stddef.h>
#include <stdint.h>

#include "common/check.h"
#include "common/wire/message.h"

/* Touch every byte that a caller may touch. */
static uint64_t read_point(const struct wire_reply *reply, const struct point_view *point)
{
    uint64_t sum = point->id.lo + point->version;
    for (size_t i = 0; i < point->key.canonical.len; i++) sum += point->key.canonical.data[i];
    for (uint32_t i = 0; i < point->payload.len; i++) sum += point->payload.data[i];
    for (uint32_t f = 0; f < OMEN_VECTOR_FIELDS_MAX; f++) {
        if (point->vectors[f] == NULL) continue;
        CHECK(reply->schema != NULL && f < reply->schema->field_count);
        for (uint32_t i = 0; i < reply->schema->fields[f].dim; i++) {
            uint32_t bits;
            memcpy(&bits, &point->vectors[f][i], sizeof bits);
            sum += bits;
        }
    }
    return sum;
}

static uint64_t read_reply(const struct wire_reply *reply)
{
    uint64_t sum = 0;
    if (reply->code != OMEN_OK) return strlen(reply->err.message) + strlen(reply->err.field);
    if (reply->op == WIRE_GET || reply->op == WIRE_SCROLL) {
        for (uint32_t i = 0; i < reply->points.count; i++) sum += read_point(reply, &reply->points.points[i]);
    }
    if (reply->op == WIRE_SEARCH) {
        for (uint32_t s = 0; s < reply->search.count; s++) {
            const struct wire_search_result *result = &reply->search.results[s];
            for (uint32_t i = 0; i < result->count; i++) sum += read_point(reply, &result->hits[i].point);
        }
        for (uint32_t i = 0; i < reply->search.explain.len; i++) sum += reply->search.explain.data[i];
    }
    if (reply->op == WIRE_COLLECTION_LIST || reply->op == WIRE_COLLECTION_DESCRIBE) {
        for (uint32_t i = 0; i < reply->collections.count; i++) {
            const struct wire_collection_info *info = &reply->collections.items[i];
            sum += info->collection->schema.field_count;
            for (uint32_t s = 0; info->shards != NULL && s < info->collection->shard_count; s++) {
                sum += info->shards[s].points + info->collection->shards[s].shard_id;
            }
        }
    }
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static volatile uint64_t sink;
    if (size == 0) return 0;
    struct arena arena;
    struct wire_reply reply;
    struct err err = { 0 };
    enum wire_op op = (enum wire_op)(1 + data[0] % (WIRE_OP_COUNT - 1));
    arena_init(&arena, 4096, 64u << 20);
    enum omen_err rc = message_decode_reply((struct bytes){ data + 1, size - 1 }, op, &arena, &reply, &err);
    if (rc == OMEN_OK)
        sink = sink + read_reply(&reply);
    else
        CHECK(rc == OMEN_EPROTO || rc == OMEN_ENOMEM);
    arena_fini(&arena);
    return 0;
}
