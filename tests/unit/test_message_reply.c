/* Replies of the client protocol: each survives the round trip with every column, and a damaged one is an error. */
#include <check.h>

#include "common/json.h"
#include "common/wire/message.h"

#define STR(text) ((struct bytes){ (const uint8_t *)(text), strlen(text) })

static struct arena arena;
static struct buf message;
static struct doc_builder *builder;
static struct err err;

static void setup(void)
{
    arena_init(&arena, 4096, 256u << 20);
    buf_init(&message);
    builder = doc_builder_new(DOC_BYTES_MAX);
    err_clear(&err);
}

static void teardown(void)
{
    doc_builder_free(builder);
    buf_fini(&message);
    arena_fini(&arena);
}

static struct bytes message_bytes(void) { return (struct bytes){ message.data, message.len }; }

static struct doc json(const char *text)
{
    struct doc doc;
    doc_builder_reset(builder, DOC_BYTES_MAX);
    ck_assert_msg(json_parse(text, strlen(text), builder, &doc, &err) == OMEN_OK, "%s: %s", text,
            err.message);
    return (struct doc){ arena_copy(&arena, doc.data, doc.len), doc.len };
}

static struct wire_reply reply_trip(const struct wire_reply *reply)
{
    struct wire_reply out;
    buf_clear(&message);
    ck_assert_int_eq(message_encode_reply(reply, &message), OMEN_OK);
    enum omen_err rc = message_decode_reply(message_bytes(), reply->op, &arena, &out, &err);
    ck_assert_msg(rc == OMEN_OK, "%s: %s: %s", wire_op_name(reply->op), err.field, err.message);
    return out;
}

START_TEST(hits_survive_with_every_column)
{
    struct collection_schema schema = { .field_count = 2 };
    schema.fields[0] = (struct vector_field){ .name = "", .dim = 2, .metric = METRIC_COSINE };
    schema.fields[1] = (struct vector_field){ .name = "title", .dim = 3, .metric = METRIC_L2 };
    float a[2] = { 1, 2 }, b[3] = { 3, 4, 5 };
    static const uint8_t key_text[] = { 1, 'x' }, key_bool[] = { 2, 1 };
    static const uint8_t key_int[] = { 3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe };
    struct hit hits[3] = {
        { .score = 0.9f,
                .point = { .id = { .lo = 5 },
                        .key = { { key_text, 2 } },
                        .version = 77,
                        .expires_ms = 1790000000000,
                        .payload = json("{\"a\":1}"),
                        .vectors = { a, b } } },
        { .score = 0.8f,
                .point = { .id = { .hi = 1, .lo = 2, .kind = POINT_ID_UUID },
                        .key = { { key_bool, 2 } },
                        .vectors = { a, NULL } } },
        { .score = 0.7f,
                .point = { .id = { .lo = UINT64_MAX }, .key = { { key_int, 9 } }, .version = UINT64_MAX } },
    };
    struct wire_search_result results[2] = { { .hits = hits, .count = 3 }, { .count = 0, .field = 1 } };
    struct token tokens[1] = { { 1, 2, 3 } };
    struct wire_reply reply = { .op = WIRE_SEARCH,
        .schema = &schema,
        .tokens = tokens,
        .token_count = 1,
        .engine_ns = 5000 };
    reply.search.results = results;
    reply.search.count = 2;
    reply.search.shards_asked = 1;
    reply.search.shards_total = 4;
    reply.search.rows_scanned = 1000;
    struct wire_reply out = reply_trip(&reply);
    ck_assert_uint_eq(out.search.count, 2);
    ck_assert(out.search.results[0].higher_is_nearer && !out.search.results[1].higher_is_nearer);
    const struct hit *got = out.search.results[0].hits;
    ck_assert_uint_eq(out.search.results[0].count, 3);
    ck_assert_uint_eq(out.search.results[1].count, 0);
    for (int i = 0; i < 3; i++) {
        ck_assert(got[i].score == hits[i].score);
        ck_assert(point_id_equal(got[i].point.id, hits[i].point.id));
        ck_assert_uint_eq(got[i].point.version, hits[i].point.version);
        ck_assert_uint_eq(got[i].point.expires_ms, hits[i].point.expires_ms);
        ck_assert_uint_eq(got[i].point.key.canonical.len, hits[i].point.key.canonical.len);
        ck_assert_mem_eq(got[i].point.key.canonical.data, hits[i].point.key.canonical.data,
                got[i].point.key.canonical.len);
    }
    ck_assert(doc_equal(got[0].point.payload, hits[0].point.payload));
    ck_assert_ptr_null(got[1].point.payload.data);
    ck_assert_uint_eq(out.schema->field_count, 2);
    ck_assert_str_eq(out.schema->fields[1].name, "title");
    ck_assert_uint_eq(out.schema->fields[1].dim, 3);
    ck_assert_mem_eq(got[0].point.vectors[1], b, sizeof b);
    ck_assert_mem_eq(got[1].point.vectors[0], a, sizeof a);
    ck_assert_ptr_null(got[1].point.vectors[1]);
    ck_assert_ptr_null(got[2].point.vectors[0]);
    ck_assert_uint_eq(out.token_count, 1);
    ck_assert_uint_eq(out.engine_ns, 5000);
    ck_assert_uint_eq(out.search.rows_scanned, 1000);
}
END_TEST

START_TEST(points_and_cursor_survive)
{
    struct point_view points[2] = { { .id = { .lo = 1 }, .version = 1 },
        { .id = { .lo = 2 }, .version = 2 } };
    struct wire_reply reply = { .op = WIRE_SCROLL };
    reply.points.points = points;
    reply.points.count = 2;
    reply.points.cursor = STR("next");
    struct wire_reply out = reply_trip(&reply);
    ck_assert_uint_eq(out.points.count, 2);
    ck_assert_uint_eq(out.points.points[1].id.lo, 2);
    ck_assert_uint_eq(out.points.cursor.len, 4);
    reply.points.cursor.len = 0;
    reply.points.count = 0;
    reply.points.points = NULL;
    out = reply_trip(&reply);
    ck_assert_uint_eq(out.points.count, 0);
    ck_assert_uint_eq(out.points.cursor.len, 0);
}
END_TEST

START_TEST(collections_survive)
{
    struct map_shard shards[2] = { { .shard_id = 5, .slot_first = 0, .slot_count = 2048 },
        { .shard_id = 6, .slot_first = 2048, .slot_count = 2048 } };
    struct map_collection c = { .id = 9,
        .name = "docs",
        .recall_target = 0.9f,
        .replication = 1,
        .created_ms = 123,
        .shards = shards,
        .shard_count = 2 };
    c.schema.field_count = 1;
    c.schema.fields[0] = (struct vector_field){ .name = "", .dim = 4, .metric = METRIC_IP };
    strcpy(c.schema.shard_key, "tenant");
    struct map_alias alias = { .name = "now", .collection_id = 9 };
    struct map map = { .collections = &c, .collection_count = 1, .aliases = &alias, .alias_count = 1 };
    struct shard_stats stats[2] = { { .points = 10, .applied = 4 }, { .points = 20, .durable = 3 } };
    struct wire_collection_info info = { .collection = &c, .points = 30, .stream_bytes = 5, .shards = stats };
    struct wire_reply reply = { .op = WIRE_COLLECTION_DESCRIBE };
    reply.collections.items = &info;
    reply.collections.count = 1;
    reply.collections.map = &map;
    struct wire_reply out = reply_trip(&reply);
    ck_assert_uint_eq(out.collections.count, 1);
    const struct wire_collection_info *got = out.collections.items;
    ck_assert_str_eq(got->collection->name, "docs");
    ck_assert_uint_eq(got->points, 30);
    ck_assert_uint_eq(got->shards[1].points, 20);
    ck_assert_uint_eq(got->collection->shards[1].slot_first, 2048);
    ck_assert_mem_eq(&got->collection->schema, &c.schema, sizeof c.schema);
    ck_assert_str_eq(out.collections.map->aliases[0].name, "now");
}
END_TEST

START_TEST(small_replies_survive)
{
    struct wire_reply hello = { .op = WIRE_HELLO };
    hello.hello.version = 1;
    hello.hello.server_version = "0.1.0";
    hello.hello.commit = "abc";
    hello.hello.now_ms = 1790000000123;
    ck_assert_str_eq(reply_trip(&hello).hello.commit, "abc");
    ck_assert_uint_eq(reply_trip(&hello).hello.now_ms, 1790000000123);
    struct wire_reply created = { .op = WIRE_COLLECTION_CREATE };
    created.created.collection_id = 12;
    ck_assert_uint_eq(reply_trip(&created).created.collection_id, 12);
    struct wire_reply count = { .op = WIRE_COUNT };
    count.count.points = UINT64_MAX;
    ck_assert_uint_eq(reply_trip(&count).count.points, UINT64_MAX);
    struct wire_reply status = { .op = WIRE_STATUS };
    status.status.doc = json("{\"ready\":true}");
    ck_assert(doc_equal(reply_trip(&status).status.doc, status.status.doc));
    struct wire_reply cluster = { .op = WIRE_CLUSTER };
    cluster.cluster.reply = json("{\"nodes\":[{\"node_id\":1}]}");
    ck_assert(doc_equal(reply_trip(&cluster).cluster.reply, cluster.cluster.reply));
    reply_trip(&(struct wire_reply){ .op = WIRE_ALIAS_SET });
    struct wire_shard_outcome shards[2] = { { 7, OMEN_OK, 3 }, { 8, OMEN_EUNKNOWN, 0 } };
    struct wire_reply write = { .op = WIRE_UPSERT };
    write.write.affected = 3;
    write.write.duplicate = true;
    write.write.shards = shards;
    write.write.shard_count = 2;
    struct wire_reply out = reply_trip(&write);
    ck_assert(out.write.duplicate && out.write.affected == 3);
    ck_assert_int_eq(out.write.shards[1].code, OMEN_EUNKNOWN);
}
END_TEST

START_TEST(partial_replies_name_the_shards_that_are_missing)
{
    static const uint64_t missing[] = { 12, UINT64_MAX };
    static const enum wire_op ops[] = { WIRE_COUNT, WIRE_GET, WIRE_SCROLL, WIRE_SEARCH };
    for (int i = 0; i < 4; i++) {
        struct collection_schema schema = { .field_count = 1, .fields = { { .dim = 2 } } };
        struct wire_reply reply = { .op = ops[i], .schema = &schema };
        struct wire_reply out = reply_trip(&reply);
        ck_assert_uint_eq(out.shards_missing_count, 0);
        ck_assert(!out.stale);
        ck_assert_ptr_null(memmem(message.data, message.len, "partial", 7));
        ck_assert_ptr_null(memmem(message.data, message.len, "stale", 5));
        reply.stale = true;
        ck_assert(reply_trip(&reply).stale);
        ck_assert_ptr_nonnull(memmem(message.data, message.len, "\xa5stale\xc3", 7));
        reply.shards_missing = missing;
        reply.shards_missing_count = 2;
        out = reply_trip(&reply);
        ck_assert_uint_eq(out.shards_missing_count, 2);
        ck_assert_uint_eq(out.shards_missing[0], 12);
        ck_assert_uint_eq(out.shards_missing[1], UINT64_MAX);
        ck_assert_ptr_nonnull(memmem(message.data, message.len, "\xa7partial\xc3", 9));
    }
}
END_TEST

START_TEST(a_search_is_explained_only_when_asked)
{
    struct collection_schema schema = { .field_count = 1, .fields = { { .dim = 2 } } };
    struct wire_reply reply = { .op = WIRE_SEARCH, .schema = &schema };
    struct wire_reply out = reply_trip(&reply);
    ck_assert_ptr_null(out.search.explain.data);
    ck_assert_ptr_null(memmem(message.data, message.len, "explain", 7));
    reply.search.explain = json("{\"shards\":[{\"parts\":[{\"plan\":\"walk\",\"us\":1.5}]}]}");
    out = reply_trip(&reply);
    ck_assert(doc_equal(out.search.explain, reply.search.explain));
}
END_TEST

START_TEST(errors_survive_with_the_shards_of_a_write)
{
    struct wire_shard_outcome shards[1] = { { 7, OMEN_EUNKNOWN, 0 } };
    struct wire_reply reply = { .op = WIRE_DELETE, .code = OMEN_EBUSY };
    err_set(&reply.err, OMEN_EBUSY, "ids", "too much at once");
    reply.err.retry_after_ms = 50;
    reply.write.shards = shards;
    reply.write.shard_count = 1;
    struct wire_reply out = reply_trip(&reply);
    ck_assert_int_eq(out.code, OMEN_EBUSY);
    ck_assert_str_eq(out.err.field, "ids");
    ck_assert_str_eq(out.err.message, "too much at once");
    ck_assert_uint_eq(out.err.retry_after_ms, 50);
    ck_assert_uint_eq(out.write.shard_count, 1);
    ck_assert_uint_eq(out.write.shards[0].shard, 7);
}
END_TEST

START_TEST(damaged_replies_are_protocol_errors)
{
    struct hit hits[2] = { { .point = { .id = { .lo = 5 }, .payload = json("{\"a\":1}") } },
        { .point = { .id = { .lo = 6 } } } };
    struct wire_search_result result = { .hits = hits, .count = 2 };
    struct wire_reply reply = { .op = WIRE_SEARCH }, out;
    reply.search.results = &result;
    reply.search.count = 1;
    ck_assert_int_eq(message_encode_reply(&reply, &message), OMEN_OK);
    for (size_t len = 0; len < message.len; len++) {
        enum omen_err rc = message_decode_reply((struct bytes){ message.data, len }, WIRE_SEARCH, &arena,
                &out, &err);
        ck_assert_int_eq(rc, OMEN_EPROTO);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("message_reply");
    TCase *replies = tcase_create("replies");
    tcase_add_checked_fixture(replies, setup, teardown);
    suite_add_tcase(suite, replies);
    tcase_add_test(replies, hits_survive_with_every_column);
    tcase_add_test(replies, points_and_cursor_survive);
    tcase_add_test(replies, collections_survive);
    tcase_add_test(replies, small_replies_survive);
    tcase_add_test(replies, partial_replies_name_the_shards_that_are_missing);
    tcase_add_test(replies, a_search_is_explained_only_when_asked);
    tcase_add_test(replies, errors_survive_with_the_shards_of_a_write);
    tcase_add_test(replies, damaged_replies_are_protocol_errors);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}
