/* Requests of the client protocol: every op survives the round trip, every kind of bad input is an error that
 * names its field. Messages are made by hand with the packer of common/wire. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "common/json.h"
#include "common/wire/value.h"

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

/* ---- hand-made messages: {"v":1,"op":op,"collection":"c", ...} ---- */

static int append(void *out, const char *data, size_t len)
{
    buf_append(out, data, len);
    return 0;
}

static msgpack_packer pk;

static void put(const char *text)
{
    msgpack_pack_str(&pk, strlen(text));
    msgpack_pack_str_body(&pk, text, strlen(text));
}

static void put_bin(const char *name, const void *data, size_t len)
{
    put(name);
    msgpack_pack_bin(&pk, len);
    msgpack_pack_bin_body(&pk, data, len);
}

static void put_int(const char *name, int64_t v)
{
    put(name);
    msgpack_pack_int64(&pk, v);
}

/* Begins a request of `op` with `more` members to follow. */
static void begin(const char *op, size_t more)
{
    buf_clear(&message);
    msgpack_packer_init(&pk, &message, append);
    msgpack_pack_map(&pk, 3 + more);
    put_int("v", 1);
    put("op");
    put(op);
    put("collection");
    put("c");
}

/* A search request whose one search has `more` members to follow, the vector given already. */
static void begin_search(size_t more)
{
    static const float zero[2];
    begin("points.search", 1);
    put("searches");
    msgpack_pack_array(&pk, 1);
    msgpack_pack_map(&pk, 1 + more);
    put_bin("vector", zero, sizeof zero);
}

/* An upsert of one point whose payload follows. */
static void begin_payload(void)
{
    static const uint64_t id = 1;
    static const float zero[2];
    begin("points.upsert", 3);
    put_bin("ids", &id, sizeof id);
    put_bin("vectors", zero, sizeof zero);
    put("payloads");
    msgpack_pack_array(&pk, 1);
}

static enum omen_err decode(struct wire_request *out)
{
    arena_reset(&arena);
    err_clear(&err);
    /* An exact copy on the heap, so that a read past the end is seen by the sanitizer. */
    uint8_t *copy = mem_alloc(message.len == 0 ? 1 : message.len);
    if (message.len > 0) memcpy(copy, message.data, message.len);
    enum omen_err rc = message_decode_request((struct bytes){ copy, message.len }, &arena, out, &err);
    mem_free(copy);
    return rc;
}

static void expect_error(enum omen_err code, const char *field)
{
    struct wire_request out;
    enum omen_err rc = decode(&out);
    ck_assert_msg(rc == code, "expected %s, got %s (%s: %s)", err_name(code), err_name(rc), err.field,
            err.message);
    ck_assert_str_eq(err.field, field);
    ck_assert_int_ne(err.message[0], '\0');
}

static struct doc json(const char *text)
{
    struct doc doc;
    doc_builder_reset(builder, DOC_BYTES_MAX);
    ck_assert_msg(json_parse(text, strlen(text), builder, &doc, &err) == OMEN_OK, "%s: %s", text,
            err.message);
    return (struct doc){ arena_copy(&arena, doc.data, doc.len), doc.len };
}

/* Encode, decode, encode again: the same bytes. Returns the decoded request. */
static struct wire_request round_trip(const struct wire_request *request)
{
    struct wire_request out;
    struct buf again;
    buf_init(&again);
    buf_clear(&message);
    ck_assert_msg(message_encode_request(request, &message, &err) == OMEN_OK, "%s", err.message);
    enum omen_err rc = message_decode_request(message_bytes(), &arena, &out, &err);
    ck_assert_msg(rc == OMEN_OK, "%s: %s: %s", wire_op_name(request->op), err.field, err.message);
    ck_assert_int_eq(out.op, request->op);
    ck_assert_int_eq(message_encode_request(&out, &again, &err), OMEN_OK);
    ck_assert_uint_eq(again.len, message.len);
    ck_assert_mem_eq(again.data, message.data, again.len);
    buf_fini(&again);
    return out;
}

/* ---- round trips of requests ---- */

START_TEST(envelope_and_hello_survive)
{
    struct token tokens[2] = { { 1, 2, 3 }, { UINT64_MAX, 5, 6 } };
    struct wire_request q = { .op = WIRE_HELLO,
        .api_key = STR("secret"),
        .deadline_ms = 1234,
        .consistency = CONSISTENCY_LINEARIZABLE,
        .tokens = tokens,
        .token_count = 2 };
    q.hello.version_min = 1;
    q.hello.version_max = 7;
    q.hello.client_name = STR("test");
    struct wire_request out = round_trip(&q);
    ck_assert_uint_eq(out.version, 1);
    ck_assert_uint_eq(out.deadline_ms, 1234);
    ck_assert_int_eq(out.consistency, CONSISTENCY_LINEARIZABLE);
    ck_assert_uint_eq(out.token_count, 2);
    ck_assert_mem_eq(out.tokens, tokens, sizeof tokens);
    ck_assert_uint_eq(out.hello.version_max, 7);
    ck_assert_uint_eq(out.api_key.len, 6);
}
END_TEST

START_TEST(catalog_ops_survive)
{
    struct wire_request q = { .op = WIRE_COLLECTION_CREATE };
    strcpy(q.catalog.name, "docs");
    strcpy(q.catalog.schema.fields[0].name, "");
    q.catalog.schema.fields[0].dim = 128;
    q.catalog.schema.fields[0].metric = METRIC_L2;
    strcpy(q.catalog.schema.fields[1].name, "title");
    q.catalog.schema.fields[1].dim = OMEN_DIM_MAX;
    q.catalog.schema.fields[1].metric = METRIC_COSINE;
    q.catalog.schema.field_count = 2;
    strcpy(q.catalog.schema.shard_key, "tenant.id");
    q.catalog.shard_count = 4;
    q.catalog.replication = 3;
    q.catalog.recall_target = 0.99f;
    struct wire_request out = round_trip(&q);
    ck_assert_int_eq(out.catalog.kind, CATALOG_CREATE);
    ck_assert_str_eq(out.catalog.name, "docs");
    ck_assert_mem_eq(&out.catalog.schema, &q.catalog.schema, sizeof q.catalog.schema);
    ck_assert(out.catalog.recall_target == 0.99f);

    q.catalog.options = json("{\"profile\": \"speed\", \"index_delay_ms\": 5}");
    out = round_trip(&q);
    ck_assert(doc_equal(out.catalog.options, q.catalog.options));
    ck_assert(out.catalog.recall_target == 0.99f); /* given apart, it counts over the profile's */
    q.catalog.recall_target = 0;
    buf_clear(&message);
    ck_assert_int_eq(message_encode_request(&q, &message, &err), OMEN_OK);
    ck_assert_int_eq(decode(&out), OMEN_OK);
    ck_assert(out.catalog.recall_target == 0.85f);
    struct wire_request options = { .op = WIRE_COLLECTION_SET };
    strcpy(options.catalog.name, "docs");
    options.catalog.options = json("{\"recall_target\": 0.7}");
    out = round_trip(&options);
    ck_assert_int_eq(out.catalog.kind, CATALOG_SET);
    ck_assert_str_eq(out.catalog.name, "docs");
    ck_assert(doc_equal(out.catalog.options, options.catalog.options));

    struct wire_request set = { .op = WIRE_ALIAS_SET };
    strcpy(set.catalog.name, "current");
    strcpy(set.catalog.target, "docs");
    out = round_trip(&set);
    ck_assert_str_eq(out.catalog.name, "current");
    ck_assert_str_eq(out.catalog.target, "docs");

    struct wire_request drop = { .op = WIRE_ALIAS_DROP };
    strcpy(drop.catalog.name, "current");
    ck_assert_str_eq(round_trip(&drop).catalog.name, "current");
    struct wire_request gone = { .op = WIRE_COLLECTION_DROP };
    strcpy(gone.catalog.name, "docs");
    ck_assert_int_eq(round_trip(&gone).catalog.kind, CATALOG_DROP);
    round_trip(&(struct wire_request){ .op = WIRE_COLLECTION_LIST });
    round_trip(&(struct wire_request){ .op = WIRE_COLLECTION_DESCRIBE, .collection = STR("docs") });
    round_trip(&(struct wire_request){ .op = WIRE_STATUS });
}
END_TEST

START_TEST(options_that_are_none_are_refused_by_key)
{
    struct wire_request set = { .op = WIRE_COLLECTION_SET };
    strcpy(set.catalog.name, "docs");
    buf_clear(&message);
    ck_assert_int_eq(message_encode_request(&set, &message, &err), OMEN_OK);
    expect_error(OMEN_EINVAL, "options");
    static const char *const wrong[][2] = { { "{\"write_mode\": 1}", "options.write_mode" },
        { "{\"colour\": \"red\"}", "options.colour" }, { "[1]", "options" } };
    for (int i = 0; i < 3; i++) {
        set.catalog.options = json(wrong[i][0]);
        buf_clear(&message);
        ck_assert_int_eq(message_encode_request(&set, &message, &err), OMEN_OK);
        expect_error(OMEN_EINVAL, wrong[i][1]);
    }
}
END_TEST

static enum wire_role role_of_cluster(const char *text, bool *changes_out)
{
    struct wire_request request = { .op = WIRE_CLUSTER }, back;
    request.cluster.request = json(text);
    buf_clear(&message);
    ck_assert_int_eq(message_encode_request(&request, &message, &err), OMEN_OK);
    ck_assert_int_eq(decode(&back), OMEN_OK);
    *changes_out = wire_cluster_changes(back.cluster.request);
    return wire_request_role(&back);
}

START_TEST(who_looks_at_the_cluster_need_not_be_admin_and_who_changes_it_must)
{
    static const struct {
        const char *text;
        bool changes;
        enum wire_role role;
    } cases[] = {
        { "{\"do\": \"status\"}", false, WIRE_ROLE_READ },
        { "{\"do\": \"rebalance\"}", false, WIRE_ROLE_ADMIN },
        { "{\"do\": \"rebalance\", \"apply\": false}", false, WIRE_ROLE_ADMIN },
        { "{\"do\": \"rebalance\", \"apply\": true}", true, WIRE_ROLE_ADMIN },
        { "{\"do\": \"node_drain\", \"node_id\": 1, \"dry_run\": true}", false, WIRE_ROLE_ADMIN },
        { "{\"do\": \"node_drain\", \"node_id\": 1}", true, WIRE_ROLE_ADMIN },
        { "{\"do\": \"init\"}", true, WIRE_ROLE_ADMIN },
        { "{\"do\": \"of the next release\"}", true, WIRE_ROLE_ADMIN },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        bool changes;
        ck_assert_msg(role_of_cluster(cases[i].text, &changes) == cases[i].role, "%s", cases[i].text);
        ck_assert_msg(changes == cases[i].changes, "%s", cases[i].text);
    }
    struct wire_request undecoded = { .op = WIRE_CLUSTER };
    ck_assert_int_eq(wire_request_role(&undecoded), WIRE_ROLE_READ);
}
END_TEST

START_TEST(a_cluster_request_says_what_is_to_be_done)
{
    buf_clear(&message);
    msgpack_packer_init(&pk, &message, append);
    msgpack_pack_map(&pk, 2);
    put_int("v", 1);
    put("op");
    put("cluster");
    expect_error(OMEN_EINVAL, "request");
    static const char *const wrong[] = { "{}", "{\"do\": 1}", "{\"do\": null}", "[]", "\"status\"" };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        struct wire_request request = { .op = WIRE_CLUSTER };
        request.cluster.request = json(wrong[i]);
        buf_clear(&message);
        ck_assert_int_eq(message_encode_request(&request, &message, &err), OMEN_OK);
        expect_error(OMEN_EINVAL, i < 3 ? "request.do" : "request");
    }
}
END_TEST

START_TEST(writes_survive)
{
    float rows[2][3] = { { 1, 2, 3 }, { 4, 5, 6 } };
    point_id ids[2] = { { .lo = UINT64_MAX }, { .lo = 7 } };
    struct doc payloads[2] = { json("{\"a\":[1,2.5,null,true,{\"b\":\"\xc3\xa9\"}],\"n\":-9}"), { NULL, 0 } };
    struct doc keys[2] = { json("\"tenant\""), json("-3") };
    struct wire_vector_column columns[2] = { { STR(""), (uint8_t *)rows, sizeof rows },
        { STR("title"), (uint8_t *)rows, 16 } };
    struct wire_request q = { .op = WIRE_UPSERT, .collection = STR("docs") };
    q.write.op_id = (struct op_id){ 11, 12, 13 };
    q.write.count = 2;
    q.write.ids = ids;
    q.write.payloads = payloads;
    q.write.columns = columns;
    q.write.column_count = 2;
    q.write.wait = WAIT_INDEXED;
    struct wire_request out = round_trip(&q);
    ck_assert_uint_eq(out.write.count, 2);
    ck_assert(point_id_equal(out.write.ids[0], ids[0]));
    ck_assert_uint_eq(out.write.op_id.issue_ms, 13);
    ck_assert_int_eq(out.write.wait, WAIT_INDEXED);
    ck_assert_ptr_null(out.write.expires_ms);
    ck_assert_uint_eq(out.write.columns[0].bytes, sizeof rows);
    ck_assert_mem_eq(out.write.columns[0].data, rows, sizeof rows);
    ck_assert(doc_equal(out.write.payloads[0], payloads[0]));
    ck_assert_ptr_null(out.write.payloads[1].data);

    const uint64_t times[2] = { 0, INT64_MAX };
    q.write.expires_ms = times;
    q.write.wait = WAIT_ACCEPTED;
    out = round_trip(&q);
    ck_assert_mem_eq(out.write.expires_ms, times, sizeof times);
    ck_assert_int_eq(out.write.wait, WAIT_ACCEPTED);
    q.write.expires_ms = NULL;

    struct wire_request all = { .op = WIRE_SET_PAYLOAD, .collection = STR("docs") };
    all.write.payloads = payloads;
    all.write.filter_doc = json("{\"must\":[{\"key\":\"n\",\"range\":{\"lt\":1}}]}");
    out = round_trip(&all);
    ck_assert_ptr_nonnull(out.write.filter);
    ck_assert(doc_equal(out.write.payloads[0], payloads[0]));
    ck_assert_uint_eq(out.write.count, 0);

    ids[1] = (point_id){ .hi = 1, .lo = 2, .kind = POINT_ID_UUID };
    struct wire_request del = { .op = WIRE_DELETE, .collection = STR("docs") };
    del.write.count = 2;
    del.write.ids = ids;
    del.write.keys = keys;
    out = round_trip(&del);
    ck_assert(point_id_equal(out.write.ids[1], ids[1]));
    ck_assert(doc_equal(out.write.keys[1], keys[1]));

    struct wire_request set = { .op = WIRE_SET_PAYLOAD, .collection = STR("docs") };
    set.write.count = 1;
    set.write.ids = ids;
    set.write.payloads = payloads;
    round_trip(&set);
    set.op = WIRE_OVERWRITE_PAYLOAD;
    round_trip(&set);
    struct wire_request cut = { .op = WIRE_DELETE_PAYLOAD, .collection = STR("docs") };
    cut.write.count = 1;
    cut.write.ids = ids;
    cut.write.payload_paths = json("[\"a.b\",\"tags\"]");
    out = round_trip(&cut);
    ck_assert_uint_eq(doc_count(out.write.payload_paths), 2);
}
END_TEST

START_TEST(reads_survive)
{
    float query[4] = { 1, -1, 0.5f, 0 };
    const struct doc_path *path;
    ck_assert_int_eq(doc_path_parse("a.b", 3, &arena, &path, &err), OMEN_OK);
    struct bytes fields[1] = { STR("title") };
    struct wire_search searches[2] = {
        { .field = STR("title"),
                .query = { (uint8_t *)query, sizeof query },
                .k = 10,
                .offset = 5,
                .has_score_threshold = true,
                .score_threshold = 0.5f,
                .filter_doc = json("{\"must\":[{\"key\":\"a\",\"match\":{\"value\":1}}]}") },
        { .by_id = true, .query_id = { .lo = 9 }, .query_key = json("true"), .k = OMEN_K_MAX }
    };
    searches[0].selection = (struct wire_selection){ .with_payload = true,
        .payload_include = true,
        .payload_paths = &path,
        .payload_path_count = 1,
        .vector_fields = fields,
        .vector_field_count = 1 };
    searches[1].selection = (struct wire_selection){ .with_payload = true,
        .payload_paths = &path,
        .payload_path_count = 1,
        .with_all_vectors = true };
    struct wire_request q = { .op = WIRE_SEARCH, .collection = STR("docs") };
    q.search.searches = searches;
    q.search.count = 2;
    struct wire_request out = round_trip(&q);
    ck_assert_uint_eq(out.search.count, 2);
    const struct wire_search *s = out.search.searches;
    ck_assert_mem_eq(s[0].query.data, query, sizeof query);
    ck_assert_ptr_nonnull(s[0].filter);
    ck_assert(s[0].selection.payload_include);
    ck_assert(!s[1].selection.payload_include && s[1].selection.with_all_vectors);
    ck_assert(s[1].by_id && s[1].query_id.lo == 9 && doc_type(s[1].query_key) == DOC_TRUE);

    point_id ids[1] = { { .lo = 1 } };
    struct wire_request get = { .op = WIRE_GET, .collection = STR("docs") };
    get.get.ids = ids;
    get.get.count = 1;
    get.get.selection.with_payload = true;
    round_trip(&get);
    struct wire_request scroll = { .op = WIRE_SCROLL, .collection = STR("docs") };
    scroll.scroll.cursor = STR("opaque");
    scroll.scroll.limit = 17;
    scroll.scroll.filter_doc = json("{\"must\":[{\"has_id\":[1,2]}]}");
    out = round_trip(&scroll);
    ck_assert_uint_eq(out.scroll.limit, 17);
    ck_assert_ptr_nonnull(out.scroll.filter);
    ck_assert(!out.scroll.selection.with_payload);
    struct wire_request count = { .op = WIRE_COUNT, .collection = STR("docs") };
    count.count.filter_doc = json("{\"must_not\":[{\"is_null\":{\"key\":\"a\"}}]}");
    ck_assert_ptr_nonnull(round_trip(&count).count.filter);
}
END_TEST

START_TEST(reads_may_allow_partial_answers_and_writes_may_not)
{
    static const enum wire_op reads[] = { WIRE_COUNT, WIRE_SCROLL };
    for (int i = 0; i < 2; i++) {
        struct wire_request request = { .op = reads[i], .collection = STR("c") };
        struct wire_request back = round_trip(&request);
        ck_assert(!back.allow_partial);
        request.allow_partial = true;
        back = round_trip(&request);
        ck_assert(back.allow_partial);
    }
    struct wire_request status = { .op = WIRE_STATUS, .allow_partial = true };
    buf_clear(&message);
    ck_assert_int_eq(message_encode_request(&status, &message, &err), OMEN_OK);
    expect_error(OMEN_EINVAL, "allow_partial");
}
END_TEST

START_TEST(defaults_are_those_of_the_page)
{
    struct wire_request out;
    begin_search(0);
    ck_assert_int_eq(decode(&out), OMEN_OK);
    ck_assert_uint_eq(out.search.searches[0].k, 10);
    ck_assert(!out.search.searches[0].selection.with_payload);
    begin("points.scroll", 0);
    ck_assert_int_eq(decode(&out), OMEN_OK);
    ck_assert_uint_eq(out.scroll.limit, 100);
    ck_assert(out.scroll.selection.with_payload);
    ck_assert_int_eq(out.consistency, CONSISTENCY_SESSION);
    begin("collection.create", 1);
    put("vectors");
    msgpack_pack_map(&pk, 1);
    put("");
    msgpack_pack_map(&pk, 1);
    put_int("dim", 3);
    ck_assert_msg(decode(&out) == OMEN_OK, "%s %s", err.field, err.message);
    ck_assert_int_eq(out.catalog.schema.fields[0].metric, METRIC_COSINE);
    ck_assert_uint_eq(out.catalog.shard_count, 1);
    ck_assert(out.catalog.recall_target == 0.95f);
}
END_TEST

START_TEST(query_may_be_an_array_of_numbers)
{
    struct wire_request out;
    begin("points.search", 1);
    put("searches");
    msgpack_pack_array(&pk, 1);
    msgpack_pack_map(&pk, 1);
    put("vector");
    msgpack_pack_array(&pk, 3);
    msgpack_pack_float(&pk, 0.5f);
    msgpack_pack_int64(&pk, -2);
    msgpack_pack_double(&pk, 1e-3);
    ck_assert_int_eq(decode(&out), OMEN_OK);
    float want[3] = { 0.5f, -2, 1e-3f };
    ck_assert_uint_eq(out.search.searches[0].query.len, sizeof want);
    ck_assert_mem_eq(out.search.searches[0].query.data, want, sizeof want);
}
END_TEST

/* ---- bad input ---- */

START_TEST(malformed_bytes_are_protocol_errors)
{
    static const struct {
        const char *bytes;
        size_t len;
    } bad[] = {
        { "", 0 },
        { "\xc1", 1 },
        { "\x81", 1 },
        { "\xdf\xff\xff\xff\xff", 5 },
        { "\xdd\xff\xff\xff\xff", 5 },
        { "\x80\x80", 2 },
        { "\x01", 1 },
        { "\x81\xa1v\xc7\x01\x01\x00", 7 },
        { "\xdb\xff\xff\xff\xff"
          "abc",
                8 },
        { "\xc6\x00\x00\x00", 4 },
        { "\xcf\x00", 2 },
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct wire_request out;
        buf_clear(&message);
        buf_append(&message, bad[i].bytes, bad[i].len);
        ck_assert_msg(decode(&out) == OMEN_EPROTO, "case %zu: %s", i, err.message);
    }
}
END_TEST

/* Authentication looks at op and key before anything else is trusted, decoded or allocated. */
START_TEST(op_and_key_are_found_without_decoding)
{
    static const struct {
        const char *bytes;
        size_t len;
        enum wire_op op;
        const char *key;
    } cases[] = {
        { "\x83\xa1v\x01\xa2op\xacpoints.count\xa3key\xa3"
          "abc",
                28, WIRE_COUNT, "abc" },
        { "\x82\xa3key\xa1k\xa2op\xa5hello", 16, WIRE_HELLO, "k" },
        { "\x82\xa2op\xa5hello\xa1x\xc1", 13, WIRE_HELLO, "" },             /* malformed further on */
        { "\x82\xa1x\x82\xa2op\xa5hello\xa3key\xa1k\xa1y\x01", 21, 0, "" }, /* not at the top */
        { "\x82\xa2op\xa4nope\xa3key\x05", 14, 0, "" },
        { "\x92\xa2op\xa5hello", 10, 0, "" },
        { "\xa2op", 3, 0, "" },
        { "", 0, 0, "" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        enum wire_op op;
        struct bytes key;
        message_peek((struct bytes){ (const uint8_t *)cases[i].bytes, cases[i].len }, &op, &key);
        ck_assert_msg(op == cases[i].op, "case %zu", i);
        ck_assert_uint_eq(key.len, strlen(cases[i].key));
        ck_assert_int_eq(memcmp(key.len > 0 ? key.data : (const uint8_t *)"", cases[i].key, key.len), 0);
    }
}
END_TEST

START_TEST(every_truncation_is_an_error)
{
    begin_payload();
    msgpack_pack_map(&pk, 1);
    put("a");
    put("some text");
    struct wire_request out;
    ck_assert_int_eq(decode(&out), OMEN_OK);
    size_t whole = message.len;
    for (size_t len = 0; len < whole; len++) {
        message.len = len;
        ck_assert_int_ne(decode(&out), OMEN_OK);
    }
    message.len = whole;
}
END_TEST

START_TEST(huge_counts_are_refused_before_allocation)
{
    begin_payload();
    message.data[message.len - 1] = 0xdd; /* array 32 in place of the array of one */
    buf_append(&message, "\x7f\xff\xff\xff", 4);
    expect_error(OMEN_EPROTO, "payloads");
    ck_assert_uint_lt(arena.reserved_bytes, 1u << 20);

    begin("points.upsert", 1); /* really there, but more than the limit */
    put("payloads");
    msgpack_pack_array(&pk, WIRE_ELEMENTS_MAX + 1);
    buf_append_zero(&message, WIRE_ELEMENTS_MAX + 1);
    expect_error(OMEN_ETOOBIG, "");
}
END_TEST

START_TEST(deep_nesting_is_refused_by_name)
{
    begin_payload();
    for (int i = 0; i < 100000; i++) buf_append(&message, "\x91", 1);
    buf_append(&message, "\xc0", 1);
    expect_error(OMEN_ETOOBIG, "payloads");

    /* Exactly the limit: the outermost map, payloads, the payload's map, and 29 arrays. */
    struct wire_request out;
    begin_payload();
    msgpack_pack_map(&pk, 1);
    put("a");
    for (int i = 0; i < WIRE_DEPTH_MAX - 3; i++) buf_append(&message, "\x91", 1);
    buf_append(&message, "\xc0", 1);
    ck_assert_msg(decode(&out) == OMEN_OK, "%s %s", err.field, err.message);
    begin_payload();
    msgpack_pack_map(&pk, 1);
    put("a");
    for (int i = 0; i < WIRE_DEPTH_MAX - 2; i++) buf_append(&message, "\x91", 1);
    buf_append(&message, "\xc0", 1);
    expect_error(OMEN_ETOOBIG, "payloads");
}
END_TEST

START_TEST(envelope_errors_name_the_member)
{
    begin("no.such.op", 0);
    expect_error(OMEN_EPROTO, "op");
    begin("points.count", 1);
    put_int("colection", 1);
    expect_error(OMEN_EINVAL, "colection");
    begin("points.count", 1);
    put_int("searches", 1); /* a member, but of another op */
    expect_error(OMEN_EINVAL, "searches");
    begin("points.count", 1);
    put_int("v", 1);
    expect_error(OMEN_EINVAL, "v");
    begin("points.count", 1);
    put_int("deadline_ms", -1);
    expect_error(OMEN_EINVAL, "deadline_ms");
    begin("points.count", 1);
    put_int("deadline_ms", 3600001);
    expect_error(OMEN_ETOOBIG, "deadline_ms");
    begin("points.count", 1);
    put("consistency");
    put("strong");
    expect_error(OMEN_EINVAL, "consistency");
    begin("points.count", 1);
    put("tokens");
    msgpack_pack_array(&pk, 1);
    msgpack_pack_array(&pk, 2);
    msgpack_pack_int(&pk, 1);
    msgpack_pack_int(&pk, 1);
    expect_error(OMEN_EINVAL, "tokens[0]");
    begin("points.count", 1);
    put_bin("key", "k", 1);
    expect_error(OMEN_EINVAL, "key");
    begin("points.count", 1);
    put_int("filter", 3);
    expect_error(OMEN_EINVAL, "filter");
    begin("alias.set", 0);
    expect_error(OMEN_EINVAL, "alias");
}
END_TEST

START_TEST(versions_are_negotiated)
{
    struct wire_request out;
    begin("points.count", 0);
    message.data[3] = 2; /* 83 a1 'v' 01 */
    ck_assert_int_eq(decode(&out), OMEN_EVERSION);
    ck_assert_str_eq(err.field, "v");
    ck_assert_int_eq(out.op, WIRE_COUNT);
    buf_clear(&message);
    msgpack_packer_init(&pk, &message, append);
    msgpack_pack_map(&pk, 3);
    put_int("v", 1);
    put("op");
    put("hello");
    put("versions");
    msgpack_pack_array(&pk, 2);
    msgpack_pack_int(&pk, 2);
    msgpack_pack_int(&pk, 9);
    expect_error(OMEN_EVERSION, "versions");
}
END_TEST

START_TEST(columns_must_agree)
{
    static const uint64_t ids[2] = { 1, 2 };
    static const float rows[6];
    begin("points.upsert", 2);
    put_bin("ids", ids, 0);
    put_bin("vectors", rows, 8);
    expect_error(OMEN_EINVAL, "ids");
    begin("points.upsert", 2);
    put_bin("ids", ids, 15);
    put_bin("vectors", rows, 8);
    expect_error(OMEN_EINVAL, "ids");
    begin("points.upsert", 1);
    put_bin("ids", ids, 16);
    expect_error(OMEN_EINVAL, "vectors");
    begin("points.upsert", 2);
    put_bin("ids", ids, 16);
    put_bin("vectors", rows, 20);
    expect_error(OMEN_EINVAL, "vectors");
    begin("points.upsert", 2);
    put_bin("ids", ids, 16);
    put("vectors");
    msgpack_pack_map(&pk, 1);
    put_bin("title", rows, 12);
    expect_error(OMEN_EINVAL, "vectors.title");
    begin("points.upsert", 3);
    put_bin("ids", ids, 16);
    put_bin("vectors", rows, 16);
    put("payloads");
    msgpack_pack_array(&pk, 1);
    msgpack_pack_nil(&pk);
    expect_error(OMEN_EINVAL, "payloads");
    begin("points.upsert", 3);
    put_bin("ids", ids, 16);
    put_bin("vectors", rows, 16);
    put("payloads");
    msgpack_pack_array(&pk, 2);
    msgpack_pack_nil(&pk);
    msgpack_pack_int(&pk, 1);
    expect_error(OMEN_EINVAL, "payloads[1]");
}
END_TEST

START_TEST(batches_at_and_over_the_limit)
{
    struct wire_request out;
    uint64_t *ids = calloc(OMEN_BATCH_POINTS_MAX + 1, 8);
    begin("points.delete", 1);
    put_bin("ids", ids, 8 * OMEN_BATCH_POINTS_MAX);
    ck_assert_int_eq(decode(&out), OMEN_OK);
    ck_assert_uint_eq(out.write.count, OMEN_BATCH_POINTS_MAX);
    begin("points.delete", 1);
    put_bin("ids", ids, 8 * (OMEN_BATCH_POINTS_MAX + 1));
    expect_error(OMEN_ETOOBIG, "ids");
    free(ids);
    float *rows = calloc(1, OMEN_BATCH_BYTES_MAX + 4);
    begin("points.upsert", 2);
    put_bin("ids", "\1\0\0\0\0\0\0\0", 8);
    put_bin("vectors", rows, OMEN_BATCH_BYTES_MAX);
    ck_assert_int_eq(decode(&out), OMEN_OK);
    begin("points.upsert", 2);
    put_bin("ids", "\1\0\0\0\0\0\0\0", 8);
    put_bin("vectors", rows, OMEN_BATCH_BYTES_MAX + 4);
    expect_error(OMEN_ETOOBIG, "vectors");
    free(rows);
}
END_TEST

START_TEST(payload_errors_name_their_path)
{
    begin_payload();
    msgpack_pack_map(&pk, 1);
    put("a");
    msgpack_pack_map(&pk, 1);
    put("b");
    msgpack_pack_uint64(&pk, (uint64_t)INT64_MAX + 1);
    expect_error(OMEN_EINVAL, "payloads[0].a.b");
    begin_payload();
    msgpack_pack_map(&pk, 1);
    put("a");
    msgpack_pack_array(&pk, 2);
    msgpack_pack_nil(&pk);
    msgpack_pack_double(&pk, NAN);
    expect_error(OMEN_EINVAL, "payloads[0].a[1]");
    begin_payload();
    msgpack_pack_map(&pk, 1);
    put("a");
    put("\xff\xfe");
    expect_error(OMEN_EINVAL, "payloads[0].a");
    begin_payload();
    msgpack_pack_map(&pk, 2);
    put_int("a", 1);
    put_int("a", 2);
    expect_error(OMEN_EINVAL, "payloads[0].a");
    begin_payload();
    msgpack_pack_map(&pk, 1);
    put_bin("blob", "x", 1);
    expect_error(OMEN_EINVAL, "payloads[0].blob");
    begin_payload();
    msgpack_pack_map(&pk, 1);
    msgpack_pack_int(&pk, 1);
    msgpack_pack_int(&pk, 1);
    expect_error(OMEN_EINVAL, "payloads[0]");
    char *text = calloc(1, DOC_BYTES_MAX + 1);
    memset(text, 'x', DOC_BYTES_MAX);
    begin_payload();
    msgpack_pack_map(&pk, 1);
    put("a");
    put(text);
    struct wire_request out;
    ck_assert_int_eq(decode(&out), OMEN_ETOOBIG);
    ck_assert_msg(strncmp(err.field, "payloads[0]", 11) == 0, "%s", err.field);
    free(text);
}
END_TEST

START_TEST(search_errors_name_the_search)
{
    struct wire_request out;
    begin_search(1);
    put_int("k", 0);
    expect_error(OMEN_EINVAL, "searches[0].k");
    begin_search(1);
    put_int("k", OMEN_K_MAX + 1);
    expect_error(OMEN_ETOOBIG, "searches[0].k");
    begin_search(1);
    put_int("k", OMEN_K_MAX);
    ck_assert_int_eq(decode(&out), OMEN_OK);
    begin_search(2);
    put_int("k", OMEN_K_MAX);
    put_int("offset", 1);
    expect_error(OMEN_ETOOBIG, "searches[0].offset");
    begin_search(1);
    put_int("id", 1);
    expect_error(OMEN_EINVAL, "searches[0].vector");
    begin_search(1);
    put_int("ef", 1);
    expect_error(OMEN_EINVAL, "searches[0].ef");
    begin_search(1);
    put("score_threshold");
    msgpack_pack_double(&pk, INFINITY);
    expect_error(OMEN_EINVAL, "searches[0].score_threshold");
    begin_search(1);
    put("with_payload");
    msgpack_pack_map(&pk, 1);
    put_int("exclude", 1);
    expect_error(OMEN_EINVAL, "searches[0].with_payload.exclude");
    begin_search(1);
    put("with_vectors");
    msgpack_pack_array(&pk, 1);
    msgpack_pack_int(&pk, 1);
    expect_error(OMEN_EINVAL, "searches[0].with_vectors[0]");
    begin_search(1);
    put("filter");
    msgpack_pack_map(&pk, 1);
    put("must");
    msgpack_pack_array(&pk, 1);
    msgpack_pack_map(&pk, 1);
    put_int("rnage", 1);
    ck_assert_int_ne(decode(&out), OMEN_OK);
    ck_assert_msg(strncmp(err.field, "searches[0].filter.must[0]", 26) == 0, "%s", err.field);
    begin("points.search", 1);
    put("searches");
    msgpack_pack_array(&pk, 0);
    expect_error(OMEN_EINVAL, "searches");
    begin("points.search", 1);
    put("searches");
    msgpack_pack_array(&pk, OMEN_BATCH_SEARCHES_MAX + 1);
    buf_append_zero(&message, OMEN_BATCH_SEARCHES_MAX + 1);
    expect_error(OMEN_ETOOBIG, "searches");
    begin("points.search", 1);
    put("searches");
    msgpack_pack_array(&pk, 1);
    msgpack_pack_map(&pk, 1);
    put_bin("vector", "abc", 3);
    expect_error(OMEN_EINVAL, "searches[0].vector");
}
END_TEST

START_TEST(catalog_errors_name_the_member)
{
    begin("collection.create", 0);
    expect_error(OMEN_EINVAL, "vectors");
    begin("collection.create", 1);
    put("vectors");
    msgpack_pack_map(&pk, 1);
    put("title");
    msgpack_pack_map(&pk, 1);
    put_int("dim", OMEN_DIM_MAX + 1);
    expect_error(OMEN_ETOOBIG, "vectors.title.dim");
    begin("collection.create", 1);
    put("vectors");
    msgpack_pack_map(&pk, 1);
    put("title");
    msgpack_pack_map(&pk, 2);
    put_int("dim", 3);
    put("metric");
    put("hamming");
    expect_error(OMEN_EINVAL, "vectors.title.metric");
    begin("collection.create", 2);
    put("vectors");
    msgpack_pack_map(&pk, 1);
    put("");
    msgpack_pack_map(&pk, 1);
    put_int("dim", 3);
    put_int("recall_target", 2);
    expect_error(OMEN_EINVAL, "recall_target");
}
END_TEST

START_TEST(random_damage_never_breaks_the_decoder)
{
    unsigned seed = (unsigned)time(NULL);
    printf("seed %u\n", seed);
    srand(seed);
    begin_payload();
    msgpack_pack_map(&pk, 2);
    put_int("n", 3);
    put("tags");
    msgpack_pack_array(&pk, 2);
    put("x");
    put("y");
    struct buf good;
    buf_init(&good);
    buf_append(&good, message.data, message.len);
    for (int round = 0; round < 20000; round++) {
        struct wire_request out;
        buf_clear(&message);
        buf_append(&message, good.data, good.len);
        for (int i = 0; i <= rand() % 4; i++) message.data[(size_t)rand() % message.len] = (uint8_t)rand();
        if (decode(&out) != OMEN_OK) ck_assert_int_ne(err.message[0], '\0');
    }
    buf_fini(&good);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("message");
    TCase *requests = tcase_create("requests"), *bad = tcase_create("bad input");
    TCase *cases[2] = { requests, bad };
    for (int i = 0; i < 2; i++) {
        tcase_add_checked_fixture(cases[i], setup, teardown);
        tcase_set_timeout(cases[i], 60);
        suite_add_tcase(suite, cases[i]);
    }
    tcase_add_test(requests, envelope_and_hello_survive);
    tcase_add_test(requests, catalog_ops_survive);
    tcase_add_test(requests, options_that_are_none_are_refused_by_key);
    tcase_add_test(requests, who_looks_at_the_cluster_need_not_be_admin_and_who_changes_it_must);
    tcase_add_test(requests, a_cluster_request_says_what_is_to_be_done);
    tcase_add_test(requests, writes_survive);
    tcase_add_test(requests, reads_survive);
    tcase_add_test(requests, reads_may_allow_partial_answers_and_writes_may_not);
    tcase_add_test(requests, defaults_are_those_of_the_page);
    tcase_add_test(requests, query_may_be_an_array_of_numbers);
    tcase_add_test(bad, malformed_bytes_are_protocol_errors);
    tcase_add_test(bad, op_and_key_are_found_without_decoding);
    tcase_add_test(bad, every_truncation_is_an_error);
    tcase_add_test(bad, huge_counts_are_refused_before_allocation);
    tcase_add_test(bad, deep_nesting_is_refused_by_name);
    tcase_add_test(bad, envelope_errors_name_the_member);
    tcase_add_test(bad, versions_are_negotiated);
    tcase_add_test(bad, columns_must_agree);
    tcase_add_test(bad, batches_at_and_over_the_limit);
    tcase_add_test(bad, payload_errors_name_their_path);
    tcase_add_test(bad, search_errors_name_the_search);
    tcase_add_test(bad, catalog_errors_name_the_member);
    tcase_add_test(bad, random_damage_never_breaks_the_decoder);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}
