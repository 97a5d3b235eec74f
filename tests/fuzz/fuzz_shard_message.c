/* Bodies of the node protocol, behind the envelope: whatever arrives, decoding ends with something valid or an error that
 * has a sentence, within the arena's limit; what was accepted encodes to the very same bytes, for it has one form only.
 * The first byte chooses: 0..7 requests by kind, 16..23 replies by kind, 24 that of an explained search, 25 of detailed
 * stats, 32 a map, 33 a poll, 34 its reply,
 * 48 a request for files, 49..52 replies to one. */
#include <stddef.h>
#include <stdint.h>

#include "common/check.h"
#include "common/wire/file_message.h"
#include "common/wire/shard_message.h"

static void expect_same(const struct buf *b, const uint8_t *data, size_t size)
{
    CHECK(b->len == size);
    CHECK(memcmp(b->data, data, size) == 0);
}

static void schema_of(const struct shard_request_info *info, struct collection_schema *schema)
{
    memset(schema, 0, sizeof *schema);
    schema->field_count = info->field_count;
    for (uint32_t f = 0; f < info->field_count; f++) schema->fields[f].dim = info->dims[f];
}

static enum omen_err run_request(uint8_t kind, const uint8_t *data, size_t size, struct arena *arena,
        struct err *err)
{
    struct shard_call call;
    struct shard_request_info info;
    struct collection_schema schema;
    struct buf b;
    enum omen_err rc = shard_request_decode(kind, (struct bytes){ data, size }, arena, &call, &info, err);
    if (rc != OMEN_OK) return rc;
    schema_of(&info, &schema);
    buf_init(&b);
    shard_request_encode(&call, &schema, info.deadline_ms, &b);
    expect_same(&b, data, size);
    buf_fini(&b);
    return OMEN_OK;
}

static enum omen_err run_reply(uint8_t kind, bool more, const uint8_t *data, size_t size, struct arena *arena,
        struct err *err)
{
    static const struct search_params searches[2] = { { .k = 3 }, { .k = 1000 } };
    static const struct collection_schema schema = { .field_count = 2,
        .fields = { { .dim = 2 }, { "b", 3, 0 } } };
    struct shard_call call = { .kind = (enum shard_call_kind)kind };
    struct shard_reply_info info;
    struct buf b;
    if (kind == CALL_SEARCH) call.in.search.searches = searches, call.in.search.count = 2;
    if (kind == CALL_SEARCH) call.in.search.explain = more;
    if (kind == CALL_STATS) call.in.stats.detail = more;
    if (kind == CALL_SCROLL) call.in.scroll.limit = 100;
    uint8_t *aligned = arena_copy(arena, data, size);
    CHECK(aligned != NULL);
    enum omen_err rc = shard_reply_decode((struct bytes){ aligned, size }, &schema, arena, &call, &info, err);
    if (rc != OMEN_OK) return rc;
    buf_init(&b);
    shard_reply_encode(&call, &schema, &info, &b); /* sentences may have been mended: not the same bytes */
    CHECK(!b.failed);
    buf_fini(&b);
    map_unref(info.map);
    return OMEN_OK;
}

static enum omen_err run_map(const uint8_t *data, size_t size, struct err *err)
{
    struct map *map;
    struct buf b;
    enum omen_err rc = shard_map_decode((struct bytes){ data, size }, &map, err);
    if (rc != OMEN_OK) return rc;
    for (uint32_t i = 0; i < map->collection_count; i++) /* CHECKs that the slots leave no gap */
        for (uint32_t slot = 0; slot < OMEN_SLOT_COUNT; slot += 97)
            (void)map_shard_of_slot(&map->collections[i], slot);
    buf_init(&b);
    shard_map_encode(map, &b);
    expect_same(&b, data, size);
    buf_fini(&b);
    map_unref(map);
    return OMEN_OK;
}

static enum omen_err run_poll(const uint8_t *data, size_t size, struct err *err)
{
    struct shard_poll poll;
    struct buf b;
    enum omen_err rc = shard_poll_decode((struct bytes){ data, size }, &poll, err);
    if (rc != OMEN_OK) return rc;
    buf_init(&b);
    shard_poll_encode(&poll, &b);
    expect_same(&b, data, size);
    buf_fini(&b);
    return OMEN_OK;
}

static enum omen_err run_poll_reply(const uint8_t *data, size_t size, struct arena *arena, struct err *err)
{
    struct shard_poll_reply reply;
    struct buf b;
    enum omen_err rc = shard_poll_reply_decode((struct bytes){ data, size }, arena, &reply, err);
    if (rc != OMEN_OK) return rc;
    buf_init(&b);
    shard_poll_reply_encode(&reply, &b);
    expect_same(&b, data, size);
    buf_fini(&b);
    map_unref(reply.map);
    return OMEN_OK;
}

static enum omen_err run_file_request(const uint8_t *data, size_t size, struct err *err)
{
    struct file_request request;
    struct buf b;
    enum omen_err rc = file_request_decode((struct bytes){ data, size }, &request, err);
    if (rc != OMEN_OK) return rc;
    buf_init(&b);
    file_request_encode(&request, &b);
    expect_same(&b, data, size);
    buf_fini(&b);
    return OMEN_OK;
}

static enum omen_err run_file_reply(enum file_op op, const uint8_t *data, size_t size, struct arena *arena,
        struct err *err)
{
    struct file_reply reply;
    struct buf b;
    enum omen_err rc = file_reply_decode(op, (struct bytes){ data, size }, arena, &reply, err);
    if (rc != OMEN_OK || reply.code != OMEN_OK) return rc;
    buf_init(&b);
    file_reply_encode(op, &reply, &b);
    expect_same(&b, data, size);
    buf_fini(&b);
    return OMEN_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) return 0;
    struct arena arena;
    struct err err = { 0 };
    uint8_t what = data[0];
    enum omen_err rc = OMEN_OK;
    arena_init(&arena, 4096, 64u << 20);
    if (what < 16) {
        rc = run_request(what, data + 1, size - 1, &arena, &err);
    } else if (what < 16 + SHARD_CALL_KINDS) {
        rc = run_reply(what - 16, false, data + 1, size - 1, &arena, &err);
    } else if (what == 24 || what == 25) {
        rc = run_reply(what == 24 ? CALL_SEARCH : CALL_STATS, true, data + 1, size - 1, &arena, &err);
    } else if (what == 32) {
        rc = run_map(data + 1, size - 1, &err);
    } else if (what == 33) {
        rc = run_poll(data + 1, size - 1, &err);
    } else if (what == 34) {
        rc = run_poll_reply(data + 1, size - 1, &arena, &err);
    } else if (what == 48) {
        rc = run_file_request(data + 1, size - 1, &err);
    } else if (what > 48 && what <= 48 + FILE_RELEASE) {
        rc = run_file_reply((enum file_op)(what - 48), data + 1, size - 1, &arena, &err);
    }
    CHECK(err.code == rc);
    CHECK(rc == OMEN_OK || err.message[0] != '\0');
    arena_fini(&arena);
    return 0;
}
