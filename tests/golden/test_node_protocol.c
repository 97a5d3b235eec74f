/* The messages between routers and nodes, version 1, byte for byte: one file each under tests/golden/node_protocol/. The
 * codec writes exactly these bytes and reads them back. OMEN_GOLDEN_WRITE=1 writes the files anew, for a new version of the
 * protocol only: routers and nodes of two releases work side by side while a cluster is upgraded. Runs in the root of the
 * repository. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/crc32c.h"
#include "common/wire/file_message.h"
#include "tests/support/call_support.h"
#include "tests/support/golden.h"

#define FOLDER "tests/golden/node_protocol/"

static struct arena arena;
static struct buf out;
static struct err err;

/* Two fields, "" of dim 2 and "b" of dim 1; shard key "tenant". */
static const struct collection_schema schema = {
    .field_count = 2,
    .fields = { { "", 2, METRIC_COSINE }, { "b", 1, METRIC_L2 } },
    .shard_key = "tenant",
};

static const float vector2[2] = { 1.0f, -0.5f }, vector1[1] = { 0.25f };
static const uint8_t key_a[] = { 1, 'a' };

static void setup(void)
{
    arena_init(&arena, 4096, 0);
    buf_init(&out);
}

static void teardown(void)
{
    buf_fini(&out);
    arena_fini(&arena);
}

static void expect_file(const char *name)
{
    char path[128];
    static uint8_t bytes[65536];
    snprintf(path, sizeof path, FOLDER "%s.hex", name);
    if (getenv("OMEN_GOLDEN_WRITE") != NULL) {
        golden_write(path, (struct bytes){ out.data, out.len }, " ");
        return;
    }
    size_t len = golden_read(path, bytes, sizeof bytes);
    ck_assert_msg(len == out.len && memcmp(bytes, out.data, len) == 0, "%s: the codec writes other bytes",
            path);
}

static struct shard_call call_of(enum shard_call_kind kind)
{
    return (struct shard_call){ .kind = kind,
        .shard_id = 11,
        .collection_id = 3,
        .epoch = 5,
        .incarnation = 0x0123456789abcdef,
        .token_sequence = 42 };
}

static void expect_request(const char *name, const struct shard_call *call)
{
    struct shard_call back;
    struct shard_request_info info;
    buf_clear(&out);
    shard_request_encode(call, &schema, 1500, &out);
    expect_file(name);
    enum omen_err rc = shard_request_decode((uint8_t)call->kind, (struct bytes){ out.data, out.len }, &arena,
            &back, &info, &err);
    ck_assert_msg(rc == OMEN_OK, "%s: %s", err.field, err.message);
    ck_assert_uint_eq(info.deadline_ms, 1500);
    ck_assert_uint_eq(back.shard_id, 11);
    struct buf again;
    buf_init(&again);
    if (call->kind >= CALL_CATALOG) { /* all of it came over */
        shard_request_encode(&back, &schema, 1500, &again);
        ck_assert(again.len == out.len && memcmp(again.data, out.data, out.len) == 0);
    }
    buf_fini(&again);
}

static void expect_reply(const char *name, struct shard_call *call, struct map *map)
{
    struct shard_reply_info info = { .epoch = 6, .map = map, .node_id = 2 }, info_back;
    struct shard_call back = *call;
    back.stale = !call->stale;
    buf_clear(&out);
    shard_reply_encode(call, &schema, &info, &out);
    expect_file(name);
    enum omen_err rc = shard_reply_decode((struct bytes){ out.data, out.len }, &schema, &arena, &back,
            &info_back, &err);
    ck_assert_msg(rc == OMEN_OK, "%s: %s", err.field, err.message);
    ck_assert_int_eq(back.code, call->code);
    ck_assert_int_eq(back.stale, call->stale);
    map_unref(info_back.map);
}

/* ---- requests ---- */

START_TEST(write_request)
{
    const struct point_op ops[] = {
        { .kind = POINT_UPSERT,
                .id = { 0, 7, POINT_ID_U64 },
                .key = { { key_a, 2 } },
                .payload = call_json(&arena, "{\"tenant\": \"a\", \"year\": 2026}"),
                .vectors = { vector2, vector1 } },
        { .kind = POINT_DELETE, .id = { 1, 2, POINT_ID_UUID }, .any_key = true },
        { .kind = POINT_DELETE_PAYLOAD,
                .id = { 0, 8, POINT_ID_U64 },
                .key = { { key_a, 2 } },
                .payload = call_json(&arena, "[\"year\"]") },
    };
    struct shard_call call = call_of(CALL_WRITE);
    call.in.write.ops = ops;
    call.in.write.count = 3;
    call.in.write.op_id = (struct op_id){ 0x1122334455667788, 9, 1790000000000 };
    expect_request("write_request", &call);
}
END_TEST

START_TEST(expiring_requests)
{
    const struct point_op op = { .kind = POINT_UPSERT,
        .id = { 0, 7, POINT_ID_U64 },
        .key = { { key_a, 2 } },
        .payload = call_json(&arena, "{\"tenant\": \"a\"}"),
        .expires_ms = 1790000060000,
        .vectors = { vector2 } };
    struct shard_call call = call_of(CALL_WRITE);
    call.in.write.ops = &op;
    call.in.write.count = 1;
    expect_request("write_expiring_request", &call);
    struct point_op every = { .kind = POINT_DELETE };
    call = call_of(CALL_WRITE);
    call.in.write.ops = &every;
    call.in.write.count = 1;
    call.in.write.wait = WAIT_INDEXED;
    call.in.write.filter_doc = call_json(&arena,
            "{\"must\": [{\"key\": \"year\", \"range\": {\"lt\": 1970}}]}");
    expect_request("write_filter_request", &call);
    call = call_of(CALL_COUNT);
    call.now_ms = 1790000000000;
    expect_request("count_now_request", &call);
}
END_TEST

static const struct doc_path *path_of(const char *text)
{
    const struct doc_path *path;
    ck_assert_int_eq(doc_path_parse(text, strlen(text), &arena, &path, &err), OMEN_OK);
    return path;
}

START_TEST(read_requests)
{
    const struct doc_path *paths[] = { path_of("a.b"), path_of("tags[]") };
    struct doc filter_doc = call_json(&arena,
            "{\"must\": [{\"key\": \"tenant\", \"match\": {\"value\": \"a\"}}]}");
    const struct filter *filter;
    ck_assert_int_eq(filter_parse(filter_doc, &arena, &filter, &err), OMEN_OK);
    struct point_selection selection = { .with_payload = true,
        .payload_include = true,
        .payload_paths = paths,
        .payload_path_count = 2,
        .vector_mask = 2 };
    const struct search_params searches[] = {
        { .field = 0,
                .query = vector2,
                .k = 10,
                .filter = filter,
                .filter_doc = filter_doc,
                .selection = selection },
        { .field = 1, .query = vector1, .k = 3, .has_score_threshold = true, .score_threshold = 0.5f },
    };
    struct shard_call call = call_of(CALL_SEARCH);
    call.in.search.searches = searches;
    call.in.search.count = 2;
    expect_request("search_request", &call);
    call.in.search.explain = true;
    expect_request("search_explain_request", &call);

    const struct call_get items[] = { { { 0, 7, POINT_ID_U64 }, { { key_a, 2 } }, false },
        { { 1, 2, POINT_ID_UUID }, { { NULL, 0 } }, true } };
    call = call_of(CALL_GET);
    call.consistency = CONSISTENCY_LINEARIZABLE;
    call.in.get.items = items;
    call.in.get.count = 2;
    call.in.get.selection = selection;
    expect_request("get_request", &call);

    struct point_key after = point_key_make(items[0].id, items[0].key);
    call = call_of(CALL_SCROLL);
    call.in.scroll.after = &after;
    call.in.scroll.limit = 100;
    call.in.scroll.filter = filter;
    call.in.scroll.filter_doc = filter_doc;
    expect_request("scroll_request", &call);

    call = call_of(CALL_COUNT);
    expect_request("count_request", &call);
    call = call_of(CALL_STATS);
    expect_request("stats_request", &call);
    call.in.stats.detail = true;
    expect_request("stats_detail_request", &call);
}
END_TEST

START_TEST(catalog_request)
{
    struct shard_call call = call_of(CALL_CATALOG);
    call.in.catalog = (struct catalog_change){ .kind = CATALOG_CREATE,
        .name = "docs",
        .schema = schema,
        .shard_count = 4,
        .replication = 3,
        .recall_target = 0.95f };
    expect_request("catalog_request", &call);
    call.in.catalog.options = call_json(&arena, "{\"profile\": \"speed\", \"index_delay_ms\": 10000}");
    expect_request("catalog_options_request", &call);
    call.in.catalog = (struct catalog_change){ .kind = CATALOG_SET,
        .name = "docs",
        .options = call_json(&arena, "{\"recall_target\": 0.5}") };
    expect_request("catalog_set_request", &call);
    call.in.catalog = (struct catalog_change){ .kind = CATALOG_DROP,
        .name = "docs",
        .asked_as = { 0x1122334455667788, 9, 1790000000000 } };
    expect_request("catalog_asked_request", &call);
}
END_TEST

START_TEST(cluster_request)
{
    struct shard_call call = call_of(CALL_CLUSTER);
    call.in.cluster.request = call_json(&arena,
            "{\"do\": \"node_add\", \"address\": \"tcp://127.0.0.1:7710\"}");
    expect_request("cluster_request", &call);
    call.in.cluster.request = call_json(&arena, "{\"do\": \"rebalance\", \"apply\": true}");
    call.in.cluster.asked_as = (struct op_id){ 0x1122334455667788, 10, 1790000000000 };
    expect_request("cluster_asked_request", &call);
}
END_TEST

/* ---- replies ---- */

START_TEST(replies)
{
    struct shard_call call = call_of(CALL_WRITE);
    call.sequence = 77;
    call.engine_ns = 1000;
    call.out.write.affected = 3;
    call.out.write.duplicate = true;
    expect_reply("write_reply", &call, NULL);

    struct hit hits[2] = {
        { .score = 0.5f,
                .distance = -0.5f,
                .point = { .id = { 0, 7, POINT_ID_U64 },
                        .key = { { key_a, 2 } },
                        .version = 70,
                        .payload = call_json(&arena, "{\"tenant\": \"a\"}"),
                        .vectors = { vector2, vector1 } } },
        { .score = 0.25f,
                .distance = -0.25f,
                .point = { .id = { 1, 2, POINT_ID_UUID }, .key = { { key_a, 2 } }, .version = 71 } },
    };
    struct hit *lists[1] = { hits };
    uint32_t counts[1] = { 2 };
    const struct search_params search = { .k = 5 };
    call = call_of(CALL_SEARCH);
    call.sequence = 78;
    call.in.search.searches = &search;
    call.in.search.count = 1;
    call.out.search.hits = lists;
    call.out.search.counts = counts;
    call.out.search.rows_scanned = 1000;
    expect_reply("search_reply", &call, NULL);
    call.in.search.explain = true;
    call.out.search.explain = call_json(&arena, "{\"role\": \"leader\", \"parts\": []}");
    expect_reply("search_explain_reply", &call, NULL);

    struct point_view points[2] = { hits[0].point, hits[1].point };
    struct point_view expiring = { .id = { 0, 7, POINT_ID_U64 }, .version = 3, .expires_ms = 1790000060000 };
    call = call_of(CALL_GET);
    call.out.points.points = &expiring;
    call.out.points.count = 1;
    expect_reply("get_expiring_reply", &call, NULL);
    call = call_of(CALL_SCROLL);
    call.in.scroll.limit = 2;
    call.out.points.points = points;
    call.out.points.count = 2;
    call.out.points.more = true;
    expect_reply("scroll_reply", &call, NULL);

    call = call_of(CALL_COUNT);
    call.out.count.points = 1234567890123;
    expect_reply("count_reply", &call, NULL);
    call.stale = true;
    expect_reply("count_stale_reply", &call, NULL);
    call = call_of(CALL_STATS);
    call.out.stats = (struct shard_stats){ .points = 1,
        .applied = 2,
        .durable = 3,
        .stream_bytes = 4,
        .meta_bytes = 5,
        .unindexed = 6,
        .applied_ops = 7 };
    expect_reply("stats_reply", &call, NULL);
    recall_counts_take(&call.out.stats.recall, 9, 10);
    recall_counts_take(&call.out.stats.recall, 10, 10);
    call.out.stats.recall_boost = 2;
    expect_reply("stats_recall_reply", &call, NULL);
    call.in.stats.detail = true;
    call.out.stats.detail = call_json(&arena, "{\"lag\": 3, \"segments\": 2}");
    expect_reply("stats_detail_reply", &call, NULL);
    call = call_of(CALL_CATALOG);
    call.out.catalog.collection_id = 4;
    expect_reply("catalog_reply", &call, NULL);
    call = call_of(CALL_CLUSTER);
    call.out.cluster.reply = call_json(&arena, "{\"node_id\": 4}");
    expect_reply("cluster_reply", &call, NULL);
}
END_TEST

static struct map *a_map(void)
{
    struct map *map = mem_must_calloc(1, sizeof *map);
    atomic_init(&map->refs, 1);
    map->epoch = 6;
    map->incarnation = 0x0123456789abcdef;
    map->collections = mem_must_calloc(1, sizeof *map->collections);
    map->collection_count = 1;
    struct map_collection *c = map->collections;
    *c = (struct map_collection){ .id = 3,
        .name = "docs",
        .schema = schema,
        .recall_target = 0.95f,
        .replication = 2,
        .created_ms = 1790000000000,
        .shard_count = 2 };
    c->shards = mem_must_calloc(2, sizeof *c->shards);
    map_cut_slots(c->shards, 2);
    for (uint32_t i = 0; i < 2; i++) {
        c->shards[i].shard_id = 11 + i;
        c->shards[i].replica_count = 2;
        for (uint32_t r = 0; r < 2; r++) {
            c->shards[i].replica_ids[r] = 1 + r;
            c->shards[i].node_ids[r] = 1 + (i + r) % 3;
        }
    }
    map->aliases = mem_must_calloc(1, sizeof *map->aliases);
    map->alias_count = 1;
    map->aliases[0] = (struct map_alias){ "current", 3 };
    return map;
}

START_TEST(refusals)
{
    struct map *map = a_map();
    struct shard_call call = call_of(CALL_WRITE);
    call.code = err_set(&call.err, OMEN_EWRONGEPOCH, "", "routed by map 5, the node has 6");
    expect_reply("wrong_epoch_reply", &call, map);
    call = call_of(CALL_WRITE);
    call.code = err_set(&call.err, OMEN_ENOTLEADER, "", "another one leads");
    call.leader_hint = 3;
    expect_reply("not_leader_reply", &call, NULL);
    call = call_of(CALL_SEARCH);
    call.code = err_set(&call.err, OMEN_EBUSY, "searches", "too many searches are waiting");
    call.err.retry_after_ms = 20;
    expect_reply("busy_reply", &call, NULL);
    map_unref(map);
}
END_TEST

START_TEST(polls)
{
    struct shard_poll poll = { 0x0123456789abcdef, 5, true };
    shard_poll_encode(&poll, &out);
    expect_file("poll_request");

    struct map *map = a_map();
    const struct map_node nodes[] = { { 1, "tcp://10.0.0.1:7710" }, { 2, "" } };
    struct shard_poll_reply reply = { .node_id = 2, .epoch = 6, .map = map, .nodes = nodes, .node_count = 2 },
                            back;
    reply.status = call_json(&arena, "{\"points\": 5}");
    buf_clear(&out);
    shard_poll_reply_encode(&reply, &out);
    expect_file("poll_reply");
    ck_assert_int_eq(shard_poll_reply_decode((struct bytes){ out.data, out.len }, &arena, &back, &err),
            OMEN_OK);
    ck_assert_uint_eq(back.map->collections[0].shards[1].node_ids[1], 3);
    map_unref(back.map);
    map->collections[0].options = (struct collection_options){ .profile = PROFILE_SPEED,
        .write_mode = WRITE_STREAM_ONLY,
        .quantization = QUANTIZE_AGGRESSIVE,
        .index_delay_ms = 10000 };
    buf_clear(&out);
    shard_poll_reply_encode(&reply, &out);
    expect_file("poll_options_reply");
    ck_assert_int_eq(shard_poll_reply_decode((struct bytes){ out.data, out.len }, &arena, &back, &err),
            OMEN_OK);
    ck_assert(collection_options_equal(&back.map->collections[0].options, &map->collections[0].options));
    map_unref(back.map);
    map_unref(map);
}
END_TEST

static void file_request(const char *name, const struct file_request *request)
{
    struct file_request back;
    buf_clear(&out);
    file_request_encode(request, &out);
    expect_file(name);
    ck_assert_int_eq(file_request_decode((struct bytes){ out.data, out.len }, &back, &err), OMEN_OK);
    ck_assert_int_eq(back.op, request->op);
    ck_assert_uint_eq(back.lease, request->lease);
    ck_assert_uint_eq(back.offset, request->offset);
}

static void file_reply(const char *name, enum file_op op, const struct file_reply *reply,
        struct file_reply *back)
{
    buf_clear(&out);
    file_reply_encode(op, reply, &out);
    expect_file(name);
    ck_assert_int_eq(file_reply_decode(op, (struct bytes){ out.data, out.len }, &arena, back, &err), OMEN_OK);
}

START_TEST(files)
{
    const struct file_entry entries[] = { { "meta/data.mdb", 32768, false },
        { "stream/0000000000000001.chunk", 5000, true } };
    struct file_reply back, lease = { .lease = 77, .lease_ms = 30000, .replica_id = 3, .sequence = 120 };
    lease.base_sequence = 100;
    lease.description = (struct bytes){ (const uint8_t *)"described", 9 };
    lease.manifest = (struct bytes){ (const uint8_t *)"manifest", 8 };
    lease.files = entries;
    lease.file_count = 2;
    file_request("file_lease_request",
            &(struct file_request){ .op = FILE_LEASE, .group = 9, .sequence = 90 });
    file_reply("file_lease_reply", FILE_LEASE, &lease, &back);
    ck_assert_str_eq(back.files[1].name, entries[1].name);
    ck_assert(back.files[1].grows && !back.files[0].grows);
    file_request("file_read_request",
            &(struct file_request){ .op = FILE_READ, .lease = 77, .file = 1, .offset = 4096, .len = 904 });
    struct file_reply range = { .data = { (const uint8_t *)"bytes", 5 }, .data_crc = crc32c(0, "bytes", 5) };
    range.has_file_crc = true;
    range.file_crc = 0x01020304;
    file_reply("file_read_reply", FILE_READ, &range, &back);
    ck_assert_uint_eq(back.data.len, 5);
    out.data[out.len - 1] ^= 1;
    ck_assert_int_eq(file_reply_decode(FILE_READ, (struct bytes){ out.data, out.len }, &arena, &back, &err),
            OMEN_EPROTO);
    file_request("file_release_request", &(struct file_request){ .op = FILE_RELEASE, .lease = 77 });
    struct file_reply refused = { .code = OMEN_EBUSY };
    err_set(&refused.err, OMEN_EBUSY, "", "too many");
    refused.err.retry_after_ms = 200;
    file_reply("file_refused_reply", FILE_RELEASE, &refused, &back);
    ck_assert_str_eq(back.err.message, "too many");
    ck_assert_uint_eq(back.err.retry_after_ms, 200);
}
END_TEST

/* Names that lead elsewhere. */
START_TEST(names_of_files_stay_below_their_directory)
{
    static const char *const bad[] = { "", "/etc/passwd", "../up", "a/../b", "a//b", "a/", ".hidden", "a b",
        "a/.b", "a\\b" };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct file_entry entry = { .bytes = 1 };
        snprintf(entry.name, sizeof entry.name, "%s", bad[i]);
        struct file_reply back, lease = { .lease = 1, .files = &entry, .file_count = 1 };
        buf_clear(&out);
        file_reply_encode(FILE_LEASE, &lease, &out);
        ck_assert_int_eq(file_reply_decode(FILE_LEASE, (struct bytes){ out.data, out.len }, &arena, &back,
                                 &err),
                OMEN_EPROTO);
    }
}
END_TEST

/* A whole message as it crosses the network, sealed by the secret "the secret of these tests". */
START_TEST(sealed_messages)
{
    struct siphash_key key;
    struct shard_envelope e;
    siphash_key_from_secret((struct bytes){ (const uint8_t *)"the secret of these tests", 25 }, &key);
    struct shard_call call = call_of(CALL_STATS);
    shard_message_begin(&out, SHARD_REQUEST, CALL_STATS, 0x1020304050607080);
    shard_request_encode(&call, NULL, 1500, &out);
    shard_message_seal(out.data, out.len, &key);
    expect_file("sealed_request");
    ck_assert_int_eq(shard_message_open((struct bytes){ out.data, out.len }, SHARD_REQUEST, &key, &e, &err),
            OMEN_OK);
    buf_clear(&out);
    shard_message_refuse(&out, 0x1020304050607080, OMEN_EAUTH);
    expect_file("refusal");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("node_protocol");
    TCase *tcase = tcase_create("node_protocol");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, write_request);
    tcase_add_test(tcase, expiring_requests);
    tcase_add_test(tcase, read_requests);
    tcase_add_test(tcase, catalog_request);
    tcase_add_test(tcase, cluster_request);
    tcase_add_test(tcase, replies);
    tcase_add_test(tcase, refusals);
    tcase_add_test(tcase, polls);
    tcase_add_test(tcase, files);
    tcase_add_test(tcase, names_of_files_stay_below_their_directory);
    tcase_add_test(tcase, sealed_messages);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}
