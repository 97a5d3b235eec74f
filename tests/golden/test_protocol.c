/* The test vectors of common/wire/PROTOCOL.md, one file each under tests/golden/protocol/: the codec writes exactly these
 * bytes, reads them back to the same, and the page shows them. OMEN_GOLDEN_WRITE=1 writes the files anew, for a new version
 * of the protocol only: bytes once released must be understood for ever. Runs in the root of the repository. */
#include <arpa/inet.h>
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "common/json.h"
#include "common/net/net.h"
#include "common/wire/message.h"
#include "tests/support/golden.h"

#define STR(text) ((struct bytes){ (const uint8_t *)(text), strlen(text) })
#define FOLDER "tests/golden/protocol/"
#define PAGE "common/wire/PROTOCOL.md"

static struct arena arena;
static struct buf out;
static struct err err;

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

static struct doc json(const char *text)
{
    struct doc doc;
    struct doc_builder *builder = doc_builder_new(DOC_BYTES_MAX);
    ck_assert_int_eq(json_parse(text, strlen(text), builder, &doc, &err), OMEN_OK);
    struct doc copy = { arena_copy(&arena, doc.data, doc.len), doc.len };
    doc_builder_free(builder);
    return copy;
}

/* ---- files ---- */

static char *read_text(const char *path)
{
    FILE *f = fopen(path, "rb");
    ck_assert_msg(f != NULL, "cannot open %s (run in the root of the repository)", path);
    char *text = calloc(1, 1 << 20);
    size_t len = fread(text, 1, (1 << 20) - 1, f);
    text[len] = '\0';
    fclose(f);
    return text;
}

/* `out` holds what the file `name` says, and the page shows the file's text. */
static void expect_file(const char *name)
{
    char path[128];
    snprintf(path, sizeof path, FOLDER "%s.hex", name);
    if (getenv("OMEN_GOLDEN_WRITE") != NULL) {
        golden_write(path, (struct bytes){ out.data, out.len }, " "); /* the page is next, by hand */
        return;
    }
    char *text = read_text(path), *page = read_text(PAGE);
    static uint8_t bytes[65536];
    size_t len = golden_read(path, bytes, sizeof bytes);
    ck_assert_msg(len == out.len && memcmp(bytes, out.data, len) == 0, "%s: the codec writes other bytes",
            path);
    ck_assert_msg(strstr(page, text) != NULL, "%s is not shown in " PAGE, path);
    free(text);
    free(page);
}

static void expect_request(const char *name, const struct wire_request *request)
{
    struct wire_request back;
    ck_assert_int_eq(message_encode_request(request, &out, &err), OMEN_OK);
    expect_file(name);
    enum omen_err rc = message_decode_request((struct bytes){ out.data, out.len }, &arena, &back, &err);
    ck_assert_msg(rc == OMEN_OK, "%s: %s %s", name, err.field, err.message);
    struct buf again;
    buf_init(&again);
    ck_assert_int_eq(message_encode_request(&back, &again, &err), OMEN_OK);
    ck_assert(again.len == out.len && memcmp(again.data, out.data, out.len) == 0);
    buf_fini(&again);
}

static struct wire_reply expect_reply(const char *name, const struct wire_reply *reply)
{
    struct wire_reply back;
    ck_assert_int_eq(message_encode_reply(reply, &out), OMEN_OK);
    expect_file(name);
    enum omen_err rc = message_decode_reply((struct bytes){ out.data, out.len }, reply->op, &arena, &back,
            &err);
    ck_assert_msg(rc == OMEN_OK, "%s: %s %s", name, err.field, err.message);
    return back;
}

/* ---- vectors ---- */

static struct wire_request hello(void)
{
    struct wire_request q = { .op = WIRE_HELLO };
    q.hello.client_name = STR("example");
    return q;
}

START_TEST(hello_is_as_released)
{
    struct wire_request q = hello();
    expect_request("hello_request", &q);
}
END_TEST

START_TEST(create_is_as_released)
{
    struct wire_request q = { .op = WIRE_COLLECTION_CREATE, .api_key = STR("secret") };
    strcpy(q.catalog.name, "docs");
    q.catalog.schema.field_count = 1;
    q.catalog.schema.fields[0] = (struct vector_field){ .name = "", .dim = 2, .metric = METRIC_COSINE };
    strcpy(q.catalog.schema.shard_key, "tenant");
    q.catalog.shard_count = 2;
    expect_request("create_request", &q);
}
END_TEST

START_TEST(drop_is_as_released)
{
    struct wire_request q = { .op = WIRE_COLLECTION_DROP };
    strcpy(q.catalog.name, "docs");
    q.catalog.asked_as = (struct op_id){ 0x0123456789abcdef, 3, 1790000000000 };
    expect_request("drop_request", &q);
}
END_TEST

START_TEST(options_are_as_released)
{
    struct wire_request q = { .op = WIRE_COLLECTION_SET };
    strcpy(q.catalog.name, "docs");
    q.catalog.options = json("{\"profile\":\"speed\",\"index_delay_ms\":10000}");
    expect_request("set_request", &q);
}
END_TEST

START_TEST(upsert_is_as_released)
{
    static const float rows[2][2] = { { 1, 0 }, { 0.5f, -0.5f } };
    point_id ids[2] = { { .lo = 1 }, { .lo = 2 } };
    struct doc payloads[2] = { json("{\"tenant\":\"a\",\"year\":2026}"),
        json("{\"tenant\":\"b\",\"tags\":[\"x\",null,1.5]}") };
    struct wire_vector_column column = { STR(""), (const uint8_t *)rows, sizeof rows };
    struct wire_request q = { .op = WIRE_UPSERT, .collection = STR("docs"), .deadline_ms = 5000 };
    q.write.op_id = (struct op_id){ 0x0123456789abcdef, 1, 1790000000000 };
    q.write.count = 2;
    q.write.ids = ids;
    q.write.payloads = payloads;
    q.write.columns = &column;
    q.write.column_count = 1;
    expect_request("upsert_request", &q);
}
END_TEST

START_TEST(expiring_upsert_is_as_released)
{
    static const float row[2] = { 1, 0 };
    static const uint64_t times[1] = { 1790000060000 };
    point_id ids[1] = { { .lo = 1 } };
    struct wire_vector_column column = { STR(""), (const uint8_t *)row, sizeof row };
    struct wire_request q = { .op = WIRE_UPSERT, .collection = STR("docs") };
    q.write.count = 1;
    q.write.ids = ids;
    q.write.columns = &column;
    q.write.column_count = 1;
    q.write.expires_ms = times;
    expect_request("upsert_expiring_request", &q);
}
END_TEST

START_TEST(delete_by_filter_is_as_released)
{
    struct wire_request q = { .op = WIRE_DELETE, .collection = STR("docs") };
    q.write.op_id = (struct op_id){ 0x0123456789abcdef, 2, 1790000000000 };
    q.write.filter_doc = json("{\"must\":[{\"key\":\"year\",\"range\":{\"lt\":1970}}]}");
    expect_request("delete_filter_request", &q);
}
END_TEST

START_TEST(cluster_is_as_released)
{
    struct wire_request q = { .op = WIRE_CLUSTER };
    q.cluster.request = json(
            "{\"do\":\"node_add\",\"address\":\"tcp://10.0.0.4:7710\",\"labels\":\"zone=a\"}");
    expect_request("cluster_request", &q);
}
END_TEST

START_TEST(rebalance_is_as_released)
{
    struct wire_request q = { .op = WIRE_CLUSTER };
    q.cluster.request = json("{\"do\":\"rebalance\",\"apply\":true}");
    q.cluster.asked_as = (struct op_id){ 0x0123456789abcdef, 4, 1790000000000 };
    expect_request("rebalance_request", &q);
}
END_TEST

START_TEST(cluster_reply_is_as_released)
{
    struct wire_reply reply = { .op = WIRE_CLUSTER };
    reply.cluster.reply = json("{\"node_id\":4}");
    ck_assert(doc_equal(expect_reply("cluster_reply", &reply).cluster.reply, reply.cluster.reply));
}
END_TEST

START_TEST(search_is_as_released)
{
    static const float query[2] = { 1, 0 };
    struct token token = { 1, 2, 3 };
    struct wire_search search = { .query = { (const uint8_t *)query, sizeof query },
        .k = 5,
        .filter_doc = json("{\"must\":[{\"key\":\"tenant\",\"match\":{\"value\":\"a\"}}]}") };
    search.selection.with_payload = true;
    struct wire_request q = { .op = WIRE_SEARCH,
        .collection = STR("docs"),
        .tokens = &token,
        .token_count = 1 };
    q.search.searches = &search;
    q.search.count = 1;
    expect_request("search_request", &q);
    q.search.explain = true;
    buf_clear(&out);
    expect_request("search_explain_request", &q);
}
END_TEST

START_TEST(search_reply_is_as_released)
{
    static const uint8_t key[] = { 1, 'a' };
    struct collection_schema schema = { .field_count = 1 };
    schema.fields[0] = (struct vector_field){ .name = "", .dim = 2, .metric = METRIC_COSINE };
    struct hit hit = { .score = 1,
        .point = { .id = { .lo = 1 },
                .key = { { key, 2 } },
                .version = 3,
                .payload = json("{\"tenant\":\"a\",\"year\":2026}") } };
    struct wire_search_result result = { .hits = &hit, .count = 1 };
    struct token token = { 1, 2, 3 };
    struct wire_reply reply = { .op = WIRE_SEARCH,
        .schema = &schema,
        .tokens = &token,
        .token_count = 1,
        .engine_ns = 42000 };
    reply.search.results = &result;
    reply.search.count = 1;
    reply.search.rows_scanned = 1;
    reply.search.shards_asked = 1;
    reply.search.shards_total = 2;
    struct wire_reply back = expect_reply("search_reply", &reply);
    ck_assert_uint_eq(back.search.results[0].hits[0].point.version, 3);
    ck_assert(back.search.results[0].higher_is_nearer);
    reply.search.explain = json("{\"collection\":\"docs\",\"shards_total\":2}");
    buf_clear(&out);
    back = expect_reply("search_explain_reply", &reply);
    ck_assert(doc_equal(back.search.explain, reply.search.explain));
}
END_TEST

START_TEST(write_reply_is_as_released)
{
    struct wire_shard_outcome shards[2] = { { 2, OMEN_OK, 1 }, { 3, OMEN_OK, 1 } };
    struct token tokens[2] = { { 1, 2, 3 }, { 1, 3, 9 } };
    struct wire_reply reply = { .op = WIRE_UPSERT, .tokens = tokens, .token_count = 2 };
    reply.write.affected = 2;
    reply.write.shards = shards;
    reply.write.shard_count = 2;
    ck_assert_uint_eq(expect_reply("upsert_reply", &reply).write.affected, 2);
}
END_TEST

START_TEST(error_reply_is_as_released)
{
    struct wire_reply reply = { .op = WIRE_SEARCH, .code = OMEN_EINVAL };
    err_set(&reply.err, OMEN_EINVAL, "searches[0].k", "must be 1 to 10000, got 0");
    struct wire_reply back = expect_reply("error_reply", &reply);
    ck_assert_int_eq(back.code, OMEN_EINVAL);
    ck_assert_str_eq(back.err.field, "searches[0].k");
}
END_TEST

/* ---- shard keys and slots: lines of `value | canonical bytes | slot` ---- */

static void append_key(struct buf *lines, const char *value)
{
    struct shard_key key;
    ck_assert_int_eq(shard_key_from_doc(json(value), "key", &arena, &key, &err), OMEN_OK);
    buf_printf(lines, "%s | ", value);
    for (size_t i = 0; i < key.canonical.len; i++) buf_printf(lines, "%02x", key.canonical.data[i]);
    buf_printf(lines, " | %u\n", point_slot((point_id){ 0, 0, 0 }, key));
}

static void append_id(struct buf *lines, const char *text)
{
    point_id id;
    uint8_t encoded[POINT_KEY_BYTES];
    ck_assert_int_eq(point_id_parse(text, strlen(text), &id), OMEN_OK);
    struct point_key key = { .id = id };
    point_key_encode(&key, encoded);
    buf_printf(lines, "id %s | 69", text);
    for (size_t i = 0; i < 17; i++) buf_printf(lines, "%02x", encoded[i]);
    buf_printf(lines, " | %u\n", point_slot(id, (struct shard_key){ { NULL, 0 } }));
}

START_TEST(shard_keys_and_slots_are_as_released)
{
    static const char *const values[] = { "\"\"", "\"a\"", "\"tenant-42\"", "\"\xc3\xa9\"", "false", "true",
        "0", "1", "-1", "9223372036854775807" };
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) append_key(&out, values[i]);
    append_id(&out, "0");
    append_id(&out, "1");
    append_id(&out, "18446744073709551615");
    append_id(&out, "00112233-4455-6677-8899-aabbccddeeff");
    buf_append(&out, "", 1);
    const char *path = FOLDER "shard_keys.txt";
    if (getenv("OMEN_GOLDEN_WRITE") != NULL) {
        FILE *f = fopen(path, "wb");
        fwrite(out.data, 1, out.len - 1, f);
        fclose(f);
        return;
    }
    char *text = read_text(path), *page = read_text(PAGE);
    ck_assert_str_eq((const char *)out.data, text);
    ck_assert_msg(strstr(page, text) != NULL, "%s is not shown in " PAGE, path);
    free(text);
    free(page);
}
END_TEST

/* ---- frames, against a real server ---- */

static void answer_hello(void *arg, struct net_request *request, struct bytes message)
{
    struct arena local;
    struct wire_request q;
    struct buf reply_bytes;
    struct wire_reply reply = { .op = WIRE_HELLO };
    arena_init(&local, 4096, 0);
    buf_init(&reply_bytes);
    reply.code = message_decode_request(message, &local, &q, &reply.err);
    reply.op = WIRE_ALIAS_SET; /* the shortest reply there is: ok and engine_us */
    if (message_encode_reply(&reply, &reply_bytes) == OMEN_OK) {
        net_reply(request, (struct bytes){ reply_bytes.data, reply_bytes.len });
    }
    buf_fini(&reply_bytes);
    arena_fini(&local);
}

static void read_exactly(int fd, uint8_t *bytes, size_t len)
{
    for (size_t got = 0; got < len;) {
        ssize_t n = read(fd, bytes + got, len - got);
        ck_assert_int_gt(n, 0);
        got += (size_t)n;
    }
}

START_TEST(frames_are_as_released)
{
    static const uint8_t opening[8] = { 0, 'S', 'P', 0, 0, 0x30, 0, 0 },
                         theirs[8] = { 0, 'S', 'P', 0, 0, 0x31, 0, 0 };
    uint8_t header[12] = { 0 }, bytes[256];
    struct net_server *server = NULL;
    struct net_server_options options = { .url = "tcp://127.0.0.1:0",
        .contexts = 1,
        .message_bytes_max = 1 << 20,
        .handle = answer_hello };
    ck_assert_int_eq(net_server_start(&options, &server, &err), OMEN_OK);
    struct wire_request q = hello();
    struct buf body;
    buf_init(&body);
    ck_assert_int_eq(message_encode_request(&q, &body, &err), OMEN_OK);
    buf_append(&out, opening, sizeof opening);
    store_u64_be(header, body.len + 4);
    store_u64_be(header + 8 - 4,
            (body.len + 4) << 32 | 0x80000001); /* length's low half, then the request id */
    buf_append(&out, header, sizeof header);
    buf_append(&out, body.data, body.len);
    buf_fini(&body);
    expect_file("tcp_client_bytes");

    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = { .sin_family = AF_INET,
        .sin_port = htons(net_server_port(server)),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    ck_assert_int_eq(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    ck_assert_int_eq(write(fd, out.data, out.len), (ssize_t)out.len);
    read_exactly(fd, bytes, 8 + 12);
    ck_assert_mem_eq(bytes, theirs, sizeof theirs);
    uint64_t len = load_u64_be(bytes + 8);
    ck_assert_uint_lt(len, 200);
    read_exactly(fd, bytes + 20, len - 4);
    close(fd);
    net_server_stop(server);
    buf_clear(&out);
    buf_append(&out, bytes, 8 + 8 + len);
    expect_file("tcp_server_bytes");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("protocol");
    TCase *vectors = tcase_create("vectors");
    tcase_add_checked_fixture(vectors, setup, teardown);
    suite_add_tcase(suite, vectors);
    tcase_add_test(vectors, hello_is_as_released);
    tcase_add_test(vectors, create_is_as_released);
    tcase_add_test(vectors, drop_is_as_released);
    tcase_add_test(vectors, options_are_as_released);
    tcase_add_test(vectors, upsert_is_as_released);
    tcase_add_test(vectors, expiring_upsert_is_as_released);
    tcase_add_test(vectors, delete_by_filter_is_as_released);
    tcase_add_test(vectors, cluster_is_as_released);
    tcase_add_test(vectors, rebalance_is_as_released);
    tcase_add_test(vectors, cluster_reply_is_as_released);
    tcase_add_test(vectors, search_is_as_released);
    tcase_add_test(vectors, search_reply_is_as_released);
    tcase_add_test(vectors, write_reply_is_as_released);
    tcase_add_test(vectors, error_reply_is_as_released);
    tcase_add_test(vectors, shard_keys_and_slots_are_as_released);
    tcase_add_test(vectors, frames_are_as_released);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}
