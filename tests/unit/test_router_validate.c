/* What the router refuses, by which name, and that a refused batch has sent nothing. */
#include "common/err.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/entry_support.h"
#include "tests/support/router_support.h"

#define DIM 4

static struct router_rig rig;

static void setup_plain(void)
{
    struct collection_schema schema = test_schema_simple(DIM, "");
    rig_start(&rig, &schema, 3, NULL, 0, 0);
}

static void setup_keyed(void)
{
    struct collection_schema schema = test_schema_simple(DIM, "owner.tenant");
    rig_start(&rig, &schema, 3, NULL, 0, 0);
}

static void teardown(void) { rig_stop(&rig); }

static void expect(enum omen_err code, const char *field, uint32_t writes_sent)
{
    ck_assert_msg(rig.code == code, "expected %s, got %s: %s: %s", err_name(code), err_name(rig.code),
            rig.reply.err.field, rig.reply.err.message);
    ck_assert_str_eq(rig.reply.err.field, field);
    ck_assert_int_ne(rig.reply.err.message[0], '\0');
    ck_assert_uint_eq(rig.fake->calls_by_kind[CALL_WRITE], writes_sent);
    ck_assert_uint_eq(rig.fake->outstanding, 0);
}

static struct wire_vector_column column(const char *field, const void *data, uint64_t bytes)
{
    return (struct wire_vector_column){ { (const uint8_t *)field, strlen(field) }, data, bytes };
}

static void upsert(uint32_t count, const struct wire_vector_column *columns, uint32_t column_count,
        const struct doc *payloads)
{
    static const point_id ids[8] = { { 0, 1, 0 }, { 0, 2, 0 }, { 0, 3, 0 }, { 0, 4, 0 } };
    struct wire_request request = rig_request(WIRE_UPSERT);
    request.write.count = count;
    request.write.ids = ids;
    request.write.columns = columns;
    request.write.column_count = column_count;
    request.write.payloads = payloads;
    rig_ask(&rig, &request);
}

/* A write by id of points 1.. with these payloads and keys. */
static void by_id(enum wire_op op, uint32_t count, const struct doc *payloads, const struct doc *keys,
        const char *paths)
{
    static const point_id ids[8] = { { 0, 1, 0 }, { 0, 2, 0 }, { 0, 3, 0 }, { 0, 4, 0 } };
    struct wire_request request = rig_request(op);
    request.write.count = count;
    request.write.ids = ids;
    request.write.payloads = payloads;
    request.write.keys = keys;
    if (paths != NULL) request.write.payload_paths = rig_json(&rig, paths);
    rig_ask(&rig, &request);
}

START_TEST(wrong_dimension_names_the_field)
{
    static const float rows[2 * DIM];
    struct wire_vector_column c = column("", rows, 2 * (DIM - 1) * 4);
    upsert(2, &c, 1, NULL);
    expect(OMEN_EINVAL, "vectors", 0);
    c = column("title", rows, sizeof rows);
    upsert(2, &c, 1, NULL);
    expect(OMEN_EINVAL, "vectors.title", 0);
}
END_TEST

START_TEST(nan_and_infinity_are_refused_with_row_and_component)
{
    static const float bad[] = { NAN, INFINITY, -INFINITY };
    for (int i = 0; i < 3; i++) {
        float rows[3 * DIM] = { 0 };
        rows[2 * DIM + 1] = bad[i];
        struct wire_vector_column c = column("", rows, sizeof rows);
        upsert(3, &c, 1, NULL);
        expect(OMEN_EINVAL, "vectors", 0);
        ck_assert_ptr_nonnull(strstr(rig.reply.err.message, "point 2, component 1"));
    }
}
END_TEST

START_TEST(finite_check_sees_every_position_and_no_finite_value)
{
    float values[2100];
    uint64_t position;
    for (int i = 0; i < 2100; i++) values[i] = i % 2 ? 3.4e38f : -1e-45f;
    ck_assert(floats_finite((const uint8_t *)values, 2100, &position));
    for (uint32_t i = 0; i < 2100; i += 7) {
        float was = values[i];
        values[i] = NAN;
        ck_assert(!floats_finite((const uint8_t *)values, 2100, &position));
        ck_assert_uint_eq(position, i);
        ck_assert(floats_finite((const uint8_t *)values, i, &position));
        values[i] = was;
    }
}
END_TEST

START_TEST(missing_shard_key_names_the_row_and_sends_nothing)
{
    struct doc payloads[] = { rig_json(&rig, "{\"owner\": {\"tenant\": \"a\"}}"),
        rig_json(&rig, "{\"owner\": {}}") };
    ck_assert_int_eq(rig_upsert(&rig, 1, 2, payloads), OMEN_EINVAL);
    expect(OMEN_EINVAL, "payloads[1].owner.tenant", 0);
    ck_assert_int_eq(rig_upsert(&rig, 1, 2, NULL), OMEN_EINVAL);
    expect(OMEN_EINVAL, "payloads[0].owner.tenant", 0);
}
END_TEST

START_TEST(shard_key_of_a_wrong_type_is_refused)
{
    static const char *const values[] = { "1.5", "null", "[\"a\"]", "{\"a\": 1}" };
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        char text[64];
        snprintf(text, sizeof text, "{\"owner\": {\"tenant\": %s}}", values[i]);
        struct doc payload = rig_json(&rig, text);
        rig_upsert(&rig, 1, 1, &payload);
        expect(OMEN_EINVAL, "payloads[0].owner.tenant", 0);
    }
}
END_TEST

START_TEST(points_go_to_the_shard_of_their_key)
{
    struct doc payloads[60];
    for (int i = 0; i < 60; i++) {
        char text[64];
        snprintf(text, sizeof text, "{\"owner\": {\"tenant\": \"t%d\"}}", i % 20);
        payloads[i] = rig_json(&rig, text);
    }
    ck_assert_int_eq(rig_upsert(&rig, 1, 60, payloads), OMEN_OK);
    ck_assert_uint_eq(rig.fake->point_count, 60);
    ck_assert_uint_eq(rig.reply.write.affected, 60);
    ck_assert_uint_eq(rig.reply.token_count, rig.reply.write.shard_count);
    for (uint32_t p = 0; p < 60; p++) {
        const struct fake_point *point = &rig.fake->points[p];
        struct shard_key key = { { point->key, point->key_len } };
        const struct map_shard *shard = map_shard_of_slot(&rig.fake->map->collections[0],
                point_slot(point->id, key));
        ck_assert_uint_eq(point->shard_id, shard->shard_id);
        ck_assert_float_eq(point->vector[0], (float)point->id.lo);
    }
}
END_TEST

START_TEST(shard_key_cannot_be_changed_by_any_payload_operation)
{
    struct doc patch = rig_json(&rig, "{\"owner\": {\"color\": 1}}"), key = rig_json(&rig, "\"a\"");
    by_id(WIRE_SET_PAYLOAD, 1, &patch, &key, NULL);
    expect(OMEN_EINVAL, "payloads[0].owner", 0);
    struct doc other = rig_json(&rig, "{\"owner\": {\"tenant\": \"b\"}}");
    by_id(WIRE_OVERWRITE_PAYLOAD, 1, &other, &key, NULL);
    expect(OMEN_EINVAL, "payloads[0].owner.tenant", 0);
    struct doc none = rig_json(&rig, "{\"x\": 1}");
    by_id(WIRE_OVERWRITE_PAYLOAD, 1, &none, &key, NULL);
    expect(OMEN_EINVAL, "payloads[0].owner.tenant", 0);
    by_id(WIRE_DELETE_PAYLOAD, 1, NULL, &key, "[\"x\", \"owner\"]");
    expect(OMEN_EINVAL, "paths[1]", 0);
    by_id(WIRE_DELETE_PAYLOAD, 1, NULL, &key, "[\"owner.tenant\"]");
    expect(OMEN_EINVAL, "paths[0]", 0);
    by_id(WIRE_DELETE_PAYLOAD, 1, NULL, &key, "[\"\\\"owner\\\".\\\"tenant\\\"\"]");
    expect(OMEN_EINVAL, "paths[0]", 0);
}
END_TEST

START_TEST(payload_operations_beside_the_key_pass)
{
    struct doc patch = rig_json(&rig, "{\"ownership\": 1}"), key = rig_json(&rig, "\"a\"");
    by_id(WIRE_SET_PAYLOAD, 1, &patch, &key, NULL);
    ck_assert_int_eq(rig.code, OMEN_OK);
    by_id(WIRE_DELETE_PAYLOAD, 1, NULL, &key, "[\"owner.color\", \"tenant\", \"ownership\"]");
    ck_assert_int_eq(rig.code, OMEN_OK);
    ck_assert_uint_eq(rig.fake->calls_by_kind[CALL_WRITE], 2);
    struct doc same = rig_json(&rig, "{\"owner\": {\"tenant\": \"a\"}, \"x\": 2}");
    by_id(WIRE_OVERWRITE_PAYLOAD, 1, &same, NULL, NULL); /* the payload itself says which point is meant */
    ck_assert_int_eq(rig.code, OMEN_OK);
    ck_assert_uint_eq(rig.fake->calls_by_kind[CALL_WRITE], 3);
}
END_TEST

START_TEST(id_without_its_key_goes_to_every_shard)
{
    by_id(WIRE_DELETE, 1, NULL, NULL, NULL);
    ck_assert_int_eq(rig.code, OMEN_OK);
    ck_assert_uint_eq(rig.fake->calls_by_kind[CALL_WRITE], 3);
}
END_TEST

START_TEST(key_for_a_collection_without_one_is_refused)
{
    struct doc keys[] = { { NULL, 0 }, rig_json(&rig, "\"a\"") };
    by_id(WIRE_DELETE, 2, NULL, keys, NULL);
    expect(OMEN_EINVAL, "keys[1]", 0);
}
END_TEST

START_TEST(unknown_collection_and_foreign_token_are_named)
{
    struct wire_request request = rig_request(WIRE_COUNT);
    request.collection = (struct bytes){ (const uint8_t *)"nope", 4 };
    rig_ask(&rig, &request);
    expect(OMEN_ENOTFOUND, "collection", 0);
    struct token tokens[] = { { 77, 11, 1 }, { 78, 11, 1 } };
    request = rig_request(WIRE_COUNT);
    request.tokens = tokens;
    request.token_count = 2;
    rig_ask(&rig, &request);
    expect(OMEN_EINVAL, "tokens[1].incarnation", 0);
    request.token_count = 1;
    ck_assert_int_eq(rig_ask(&rig, &request), OMEN_OK);
}
END_TEST

static void answered(void *arg, struct bytes reply)
{
    struct wire_reply decoded;
    ck_assert_int_eq(message_decode_reply(reply, WIRE_COUNT, &rig.arena, &decoded, NULL), OMEN_OK);
    *(enum omen_err *)arg = decoded.code;
}

START_TEST(garbage_gets_an_error_and_the_router_lives)
{
    static const uint8_t garbage[][8] = { { 0 }, { 0xff, 0xff }, { 0xdf, 0xff, 0xff, 0xff, 0xff },
        { 0x81, 0xa1, 'v', 1 } };
    for (size_t i = 0; i < sizeof garbage / sizeof *garbage; i++) {
        enum omen_err code = OMEN_OK;
        router_handle(rig.router, (struct bytes){ garbage[i], sizeof garbage[i] }, answered, &code);
        ck_assert_int_ne(code, OMEN_OK);
    }
    enum omen_err code = OMEN_OK;
    router_handle(rig.router, (struct bytes){ garbage[0], 0 }, answered, &code);
    ck_assert_int_ne(code, OMEN_OK);
    struct wire_request request = rig_request(WIRE_COUNT);
    ck_assert_int_eq(rig_ask(&rig, &request), OMEN_OK);
}
END_TEST

START_TEST(requests_over_the_limit_are_told_to_retry)
{
    teardown();
    struct collection_schema schema = test_schema_simple(DIM, "");
    rig_start(&rig, &schema, 1, NULL, 0, 4);
    rig.fake->hold = true;
    struct wire_request request = rig_request(WIRE_COUNT);
    for (int i = 0; i < 4; i++) rig_ask(&rig, &request);
    ck_assert_uint_eq(rig.replies, 0);
    ck_assert_int_eq(rig_ask(&rig, &request), OMEN_EBUSY);
    ck_assert_uint_eq(rig.replies, 1);
    ck_assert_uint_gt(rig.reply.err.retry_after_ms, 0);
    fake_service_let_go(rig.fake);
    ck_assert_uint_eq(rig.replies, 5);
    ck_assert_int_eq(rig_ask(&rig, &request), OMEN_OK);
}
END_TEST

static const char *cluster_text = "{\"do\": \"status\"}"; /* of the next WIRE_CLUSTER */

static enum omen_err ask_with_key(enum wire_op op, const char *key)
{
    struct wire_request request = rig_request(op);
    if (op == WIRE_HELLO || op == WIRE_COLLECTION_LIST || op == WIRE_CLUSTER) request.collection.len = 0;
    if (op == WIRE_CLUSTER) request.cluster.request = rig_json(&rig, cluster_text);
    if (op == WIRE_HELLO) request.hello.version_min = request.hello.version_max = 1;
    static const point_id id = { 0, 1, 0 };
    if (op == WIRE_DELETE) {
        request.write.count = 1;
        request.write.ids = &id;
    }
    if (op == WIRE_COLLECTION_DROP) {
        request.catalog.kind = CATALOG_DROP;
        memcpy(request.catalog.name, "c", 2);
    }
    request.api_key = (struct bytes){ (const uint8_t *)key, strlen(key) };
    return rig_ask(&rig, &request);
}

START_TEST(keys_open_what_their_role_allows_and_nothing_else)
{
    teardown();
    static const struct api_key keys[] = {
        { "reader", "read-secret", WIRE_ROLE_READ },
        { "writer", "write-secret", WIRE_ROLE_WRITE },
        { "admin", "admin-secret", WIRE_ROLE_ADMIN },
    };
    struct collection_schema schema = test_schema_simple(DIM, "");
    rig_start(&rig, &schema, 1, keys, 3, 0);
    ck_assert_int_eq(ask_with_key(WIRE_HELLO, ""), OMEN_OK);
    ck_assert_int_eq(ask_with_key(WIRE_COUNT, ""), OMEN_EAUTH);
    ck_assert_int_eq(ask_with_key(WIRE_COUNT, "read-secre"), OMEN_EAUTH);
    ck_assert_int_eq(ask_with_key(WIRE_COUNT, "read-secret2"), OMEN_EAUTH);
    ck_assert_int_eq(ask_with_key(WIRE_COUNT, "read-secret"), OMEN_OK);
    ck_assert_int_eq(ask_with_key(WIRE_DELETE, "read-secret"), OMEN_EPERM);
    ck_assert_int_eq(ask_with_key(WIRE_DELETE, "write-secret"), OMEN_OK);
    ck_assert_int_eq(ask_with_key(WIRE_COLLECTION_DROP, "write-secret"), OMEN_EPERM);
    ck_assert_int_eq(ask_with_key(WIRE_COLLECTION_DROP, "admin-secret"), OMEN_OK);
    ck_assert_int_eq(ask_with_key(WIRE_CLUSTER, ""), OMEN_EAUTH);
    cluster_text = "{\"do\": \"status\"}";
    ck_assert_int_eq(ask_with_key(WIRE_CLUSTER, "read-secret"), OMEN_OK);
    cluster_text = "{\"do\": \"node_remove\", \"node_id\": 1}";
    ck_assert_int_eq(ask_with_key(WIRE_CLUSTER, "admin-secret"), OMEN_OK);
    ck_assert(doc_equal(rig.reply.cluster.reply, rig_json(&rig, cluster_text))); /* the fake says it back */
    ck_assert_int_eq(ask_with_key(WIRE_CLUSTER, "write-secret"), OMEN_EPERM);
    ck_assert_uint_eq(rig.fake->calls_by_kind[CALL_CLUSTER], 2);
    ck_assert_ptr_null(strstr(rig.reply.err.message, "secret"));
}
END_TEST

START_TEST(op_id_reaches_every_shard)
{
    struct wire_request request = rig_request(WIRE_DELETE);
    static const point_id ids[] = { { 0, 1, 0 }, { 0, 2, 0 }, { 0, 3, 0 } };
    request.write.count = 3;
    request.write.ids = ids;
    request.write.op_id = (struct op_id){ 9, 8, 7 };
    ck_assert_int_eq(rig_ask(&rig, &request), OMEN_OK);
    ck_assert_uint_eq(rig.fake->last_op_id.client, 9);
    ck_assert_uint_eq(rig.fake->last_op_id.seq, 8);
    ck_assert_uint_eq(rig.fake->last_op_id.issue_ms, 7);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("router_validate");
    TCase *plain = tcase_create("plain");
    tcase_add_checked_fixture(plain, setup_plain, teardown);
    tcase_add_test(plain, wrong_dimension_names_the_field);
    tcase_add_test(plain, nan_and_infinity_are_refused_with_row_and_component);
    tcase_add_test(plain, finite_check_sees_every_position_and_no_finite_value);
    tcase_add_test(plain, key_for_a_collection_without_one_is_refused);
    tcase_add_test(plain, unknown_collection_and_foreign_token_are_named);
    tcase_add_test(plain, garbage_gets_an_error_and_the_router_lives);
    tcase_add_test(plain, requests_over_the_limit_are_told_to_retry);
    tcase_add_test(plain, keys_open_what_their_role_allows_and_nothing_else);
    tcase_add_test(plain, op_id_reaches_every_shard);
    suite_add_tcase(suite, plain);
    TCase *keyed = tcase_create("keyed");
    tcase_add_checked_fixture(keyed, setup_keyed, teardown);
    tcase_add_test(keyed, missing_shard_key_names_the_row_and_sends_nothing);
    tcase_add_test(keyed, shard_key_of_a_wrong_type_is_refused);
    tcase_add_test(keyed, points_go_to_the_shard_of_their_key);
    tcase_add_test(keyed, shard_key_cannot_be_changed_by_any_payload_operation);
    tcase_add_test(keyed, payload_operations_beside_the_key_pass);
    tcase_add_test(keyed, id_without_its_key_goes_to_every_shard);
    suite_add_tcase(suite, keyed);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}
