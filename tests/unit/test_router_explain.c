/* What the router makes of what shards tell, of a search and of their indexes: sums, positions, shards that were not asked
 * or did not answer, and bounds. What shards say comes from other processes: nothing of it is believed. */
#include "common/err.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/entry_support.h"
#include "tests/support/router_support.h"

#define DIM 4
#define SHARDS 3

static struct router_rig rig;

static void setup(void)
{
    struct collection_schema schema = test_schema_simple(DIM, "tenant");
    rig_start(&rig, &schema, SHARDS, NULL, 0, 0);
}

static void teardown(void) { rig_stop(&rig); }

static const float zero[DIM];

static struct wire_search search_of(const char *tenant)
{
    struct wire_search search = { .query = { (const uint8_t *)zero, sizeof zero }, .k = 2 };
    char text[128];
    if (tenant == NULL) return search;
    snprintf(text, sizeof text, "{\"must\": [{\"key\": \"tenant\", \"match\": {\"value\": \"%s\"}}]}",
            tenant);
    search.filter_doc = rig_json(&rig, text);
    return search;
}

static struct doc ask(const struct wire_search *searches, uint32_t count)
{
    struct wire_request request = rig_request(WIRE_SEARCH);
    request.search.searches = searches;
    request.search.count = count;
    request.search.explain = true;
    request.allow_partial = true;
    ck_assert_msg(rig_ask(&rig, &request) == OMEN_OK, "%s", rig.reply.err.message);
    ck_assert_ptr_nonnull(rig.reply.search.explain.data);
    return rig.reply.search.explain;
}

static struct doc get(struct doc object, const char *key)
{
    return doc_member(object, (struct bytes){ (const uint8_t *)key, strlen(key) });
}

static int64_t number(struct doc object, const char *key)
{
    struct doc v = get(object, key);
    ck_assert_msg(v.data != NULL && doc_type(v) == DOC_I64, "%s is no number", key);
    return doc_i64(v);
}

static struct doc item(struct doc array, uint32_t i)
{
    struct doc_iter it = doc_iter(array);
    struct doc value = { NULL, 0 };
    for (uint32_t n = 0; n <= i; n++) ck_assert(doc_next(&it, NULL, &value));
    return value;
}

START_TEST(nothing_is_told_when_nobody_asks)
{
    struct wire_search search = search_of(NULL);
    struct wire_request request = rig_request(WIRE_SEARCH);
    rig.fake->explain = rig_json(&rig, "{\"role\": \"leader\"}");
    request.search.searches = &search;
    request.search.count = 1;
    ck_assert_int_eq(rig_ask(&rig, &request), OMEN_OK);
    ck_assert_ptr_null(rig.reply.search.explain.data);
}
END_TEST

START_TEST(shards_keep_their_word_and_sums_are_over_all)
{
    rig.fake->explain = rig_json(&rig,
            "{\"role\": \"leader\", \"new_word\": [1, {\"a\": 2}], \"shard\": 99, \"hits\": 99, "
            "\"totals\": {\"distances\": 7, \"hops\": -3, \"rows_scanned\": \"no\"}, "
            "\"recall\": {\"searches\": 4, \"imperfect\": 0, \"found\": 40, \"sought\": 40, \"shares\": 4194304, "
            "\"squares\": 4194304}}");
    struct wire_search search = search_of(NULL);
    struct doc explain = ask(&search, 1), shards = get(explain, "shards");
    ck_assert_uint_eq(doc_count(shards), SHARDS);
    for (uint32_t i = 0; i < SHARDS; i++) {
        struct doc shard = item(shards, i);
        ck_assert_int_eq(number(shard, "shard"), 11 + i);
        ck_assert_int_eq(number(shard, "hits"), 0);
        ck_assert(doc_equal(get(shard, "new_word"), rig_json(&rig, "[1, {\"a\": 2}]")));
        ck_assert_int_eq(number(get(shard, "recall"), "searches"), 4);
    }
    ck_assert_int_eq(number(get(explain, "totals"), "distances"), 7 * SHARDS);
    ck_assert_int_eq(number(get(explain, "totals"), "hops"), 0);
    ck_assert_int_eq(number(get(explain, "recall"), "searches"), 4 * SHARDS);
    ck_assert(doc_f64(get(get(explain, "recall"), "measured")) == 1.0);
    ck_assert(doc_f64(get(get(explain, "recall"), "low")) < 1.0);
    ck_assert_uint_eq(doc_count(get(explain, "shards_pruned")), 0);
    ck_assert(doc_is_number(get(get(explain, "us"), "total")));
}
END_TEST

/* Each of the searches goes to one shard: there it is search 0. */
START_TEST(parts_count_by_the_searches_of_the_request)
{
    static const char *const tenants[] = { "a", "b", "c", "d" };
    struct wire_search searches[4];
    bool told[4] = { false };
    rig.fake->explain = rig_json(&rig,
            "{\"parts\": [{\"search\": 0, \"plan\": \"walk\"}, {\"plan\": \"rows\"}, "
            "{\"search\": 4}, {\"search\": -1}, {\"search\": \"x\"}, 5, null]}");
    for (uint32_t i = 0; i < 4; i++) searches[i] = search_of(tenants[i]);
    struct doc explain = ask(searches, 4), shards = get(explain, "shards");
    uint32_t pruned = doc_count(get(explain, "shards_pruned"));
    ck_assert_uint_eq(doc_count(shards) + pruned, SHARDS);
    for (uint32_t i = 0; i < doc_count(shards); i++) {
        struct doc parts = get(item(shards, i), "parts");
        ck_assert_uint_eq(doc_count(parts), 2);
        int64_t search = number(item(parts, 0), "search");
        ck_assert(search >= 0 && search < 4 && !told[search]);
        told[search] = true;
        ck_assert_ptr_null(get(item(parts, 1), "search").data);
    }
}
END_TEST

START_TEST(shards_that_were_not_asked_are_named_with_the_reason)
{
    struct wire_search search = search_of("a");
    struct doc explain = ask(&search, 1), pruned = get(explain, "shards_pruned");
    ck_assert_uint_eq(doc_count(get(explain, "shards")), 1);
    ck_assert_uint_eq(doc_count(pruned), SHARDS - 1);
    ck_assert(doc_equal(get(item(pruned, 0), "why"), rig_json(&rig, "\"shard_key\"")));
    ck_assert_int_eq(number(explain, "shards_total"), SHARDS);
}
END_TEST

START_TEST(a_shard_that_did_not_answer_says_why)
{
    struct wire_search search = search_of(NULL);
    rig.fake->fail_shard = 12;
    rig.fake->fail_code = OMEN_EUNAVAILABLE;
    struct doc shard = item(get(ask(&search, 1), "shards"), 1);
    ck_assert_int_eq(number(shard, "shard"), 12);
    ck_assert(doc_equal(get(shard, "error"), rig_json(&rig, "\"unavailable\"")));
    ck_assert(doc_equal(get(shard, "message"), rig_json(&rig, "\"told to fail\"")));
}
END_TEST

/* Words of any form are no words; counts that cannot be are not counted. */
START_TEST(nonsense_of_a_shard_is_passed_over)
{
    static const char *const words[] = { "{}", "{\"parts\": 7, \"totals\": [], \"recall\": true}",
        "{\"parts\": {\"a\": 1}, \"recall\": {\"searches\": 1, \"found\": 9, \"sought\": 3}, \"boost\": -2}",
        "{\"error\": 1, \"parts_left_out\": \"many\", \"totals\": {\"distances\": 9223372036854775807}}" };
    struct wire_search search = search_of(NULL);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        rig.fake->explain = rig_json(&rig, words[i]);
        struct doc explain = ask(&search, 1);
        ck_assert_ptr_null(get(explain, "recall").data);
        ck_assert_ptr_null(get(item(get(explain, "shards"), 0), "error").data);
    }
    rig.fake->explain = (struct doc){ NULL, 0 };
    ck_assert_uint_eq(doc_count(get(ask(&search, 1), "shards")), SHARDS);
}
END_TEST

/* A doc of one part with a text of `bytes`. */
static struct doc fat(uint32_t bytes)
{
    struct doc_builder *b = doc_builder_new(EXPLAIN_SHARD_BYTES_MAX);
    char *text = mem_must_alloc(bytes);
    struct doc doc;
    memset(text, 'x', bytes);
    doc_begin_object(b);
    doc_key(b, "parts", 5);
    doc_begin_array(b);
    doc_begin_object(b);
    doc_key(b, "plan", 4);
    doc_put_string(b, text, bytes);
    doc_end(b);
    doc_end(b);
    doc_key(b, "role", 4);
    doc_put_string(b, "leader", 6);
    doc_end(b);
    ck_assert_int_eq(doc_builder_finish(b, &doc, NULL), OMEN_OK);
    struct doc copy = { arena_copy(&rig.arena, doc.data, doc.len), doc.len };
    doc_builder_free(b);
    mem_free(text);
    return copy;
}

START_TEST(parts_that_do_not_fit_are_left_out_and_counted)
{
    enum { MANY = 7 };
    struct collection_schema schema = test_schema_simple(DIM, "");
    rig_stop(&rig);
    rig_start(&rig, &schema, MANY, NULL, 0, 0);
    rig.fake->explain = fat(EXPLAIN_SHARD_BYTES_MAX - 200);
    struct wire_search search = search_of(NULL);
    struct doc explain = ask(&search, 1), shards = get(explain, "shards");
    uint32_t whole = 0;
    ck_assert_uint_le(explain.len, WIRE_EXPLAIN_BYTES_MAX);
    for (uint32_t i = 0; i < MANY; i++) {
        struct doc shard = item(shards, i);
        bool has_parts = get(shard, "parts").data != NULL;
        whole += has_parts;
        ck_assert(doc_equal(get(shard, "role"), rig_json(&rig, "\"leader\"")));
        if (!has_parts) ck_assert_int_eq(number(shard, "parts_left_out"), 1);
    }
    ck_assert_uint_eq(whole, 3);
}
END_TEST

/* ---- indexes ---- */

static struct doc describe(void)
{
    struct wire_request request = rig_request(WIRE_COLLECTION_DESCRIBE);
    ck_assert_msg(rig_ask(&rig, &request) == OMEN_OK, "%s", rig.reply.err.message);
    ck_assert_ptr_nonnull(rig.reply.collections.items[0].index.data);
    return rig.reply.collections.items[0].index;
}

START_TEST(indexes_of_all_shards_are_summed_up)
{
    rig.fake->detail = rig_json(&rig,
            "{\"segments\": 2, \"rows\": 100, \"tail_rows\": 5, \"lag\": 4, "
            "\"memory\": {\"graphs\": 10, \"deltas\": 1}, "
            "\"work\": {\"phase\": \"pack\", \"rows\": 7, \"percent\": 40.5, \"secret\": 1}, "
            "\"payload\": ["
            "{\"path\": \"b\", \"segments\": 2, \"rows\": 100, \"values\": 3}, "
            "{\"path\": \"a\", \"segments\": 1}]}");
    struct doc index = describe(), work = get(index, "work"), fields = get(index, "payload");
    ck_assert_int_eq(number(index, "segments"), 2 * SHARDS);
    ck_assert_int_eq(number(index, "rows"), 100 * SHARDS);
    ck_assert_int_eq(number(index, "lag"), 4); /* not a sum: the one furthest behind */
    ck_assert_int_eq(number(get(index, "memory"), "graphs"), 10 * SHARDS);
    ck_assert_uint_eq(doc_count(work), SHARDS);
    ck_assert_int_eq(number(item(work, 2), "shard"), 13);
    ck_assert_int_eq(number(item(work, 2), "rows"), 7);
    ck_assert_ptr_null(get(item(work, 2), "secret").data);
    ck_assert_uint_eq(doc_count(fields), 2);
    ck_assert(doc_equal(get(item(fields, 0), "path"), rig_json(&rig, "\"a\"")));
    ck_assert_int_eq(number(item(fields, 1), "values"), 3 * SHARDS);
    ck_assert(doc_equal(rig.reply.collections.items[0].shards[1].detail, rig.fake->detail));
}
END_TEST

START_TEST(nodes_that_tell_no_details_are_described_without)
{
    struct wire_request request = rig_request(WIRE_COLLECTION_DESCRIBE);
    rig.fake->plain = true;
    ck_assert_msg(rig_ask(&rig, &request) == OMEN_OK, "%s", rig.reply.err.message);
    ck_assert_ptr_null(rig.reply.collections.items[0].index.data);
    ck_assert_uint_eq(rig.reply.collections.items[0].points, 11 + 12 + 13);
    ck_assert_uint_eq(rig.fake->calls_by_kind[CALL_STATS], 2 * SHARDS);
    rig.fake->fail_shard = 12;
    rig.fake->fail_code = OMEN_EPROTO; /* whatever it is asked */
    ck_assert_int_eq(rig_ask(&rig, &request), OMEN_EPROTO);
    ck_assert_uint_eq(rig.fake->outstanding, 0);
}
END_TEST

START_TEST(nonsense_of_an_index_is_passed_over)
{
    static const char *const words[] = { "{}",
        "{\"segments\": \"many\", \"work\": 3, \"payload\": {\"path\": 1}}",
        "{\"payload\": [1, null, {}, {\"path\": 7}], \"memory\": [], \"lag\": -4}",
        "{\"work\": {\"phase\": [\"x\"], \"rows\": {}}, \"rows\": 9223372036854775807}" };
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        rig.fake->detail = rig_json(&rig, words[i]);
        struct doc index = describe();
        ck_assert_int_eq(number(index, "segments"), 0);
        ck_assert_int_eq(number(index, "lag"), 0);
        ck_assert_uint_eq(doc_count(get(index, "payload")), 0);
        ck_assert(number(index, "rows") >= 0);
    }
    rig.fake->detail = (struct doc){ NULL, 0 };
    ck_assert_int_eq(number(describe(), "segments"), 0);
    struct wire_request request = rig_request(WIRE_COLLECTION_LIST);
    request.collection = (struct bytes){ NULL, 0 };
    ck_assert_int_eq(rig_ask(&rig, &request), OMEN_OK);
    ck_assert_ptr_null(rig.reply.collections.items[0].index.data); /* a list is not asked for it */
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("router_explain");
    TCase *tc = tcase_create("explain");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, nothing_is_told_when_nobody_asks);
    tcase_add_test(tc, shards_keep_their_word_and_sums_are_over_all);
    tcase_add_test(tc, parts_count_by_the_searches_of_the_request);
    tcase_add_test(tc, shards_that_were_not_asked_are_named_with_the_reason);
    tcase_add_test(tc, a_shard_that_did_not_answer_says_why);
    tcase_add_test(tc, nonsense_of_a_shard_is_passed_over);
    tcase_add_test(tc, parts_that_do_not_fit_are_left_out_and_counted);
    tcase_add_test(tc, indexes_of_all_shards_are_summed_up);
    tcase_add_test(tc, nodes_that_tell_no_details_are_described_without);
    tcase_add_test(tc, nonsense_of_an_index_is_passed_over);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}
