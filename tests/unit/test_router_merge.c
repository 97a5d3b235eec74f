/* Merging of what shards answer: order, offsets, cursors, outcomes, and which shards are asked at all. */
#include "common/err.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "router/merge.h"
#include "tests/support/entry_support.h"
#include "tests/support/router_support.h"

#define DIM 4
#define SHARDS 5
#define POINTS 200

static struct router_rig rig;

/* Points 1..POINTS with x = id over SHARDS shards. */
static void setup_plain(void)
{
    struct collection_schema schema = test_schema_simple(DIM, "");
    rig_start(&rig, &schema, SHARDS, NULL, 0, 0);
    ck_assert_int_eq(rig_upsert(&rig, 1, POINTS, NULL), OMEN_OK);
}

static void setup_keyed(void)
{
    struct collection_schema schema = test_schema_simple(DIM, "tenant");
    rig_start(&rig, &schema, SHARDS, NULL, 0, 0);
    struct doc payloads[POINTS];
    for (int i = 0; i < POINTS; i++) {
        char text[64];
        snprintf(text, sizeof text, "{\"tenant\": \"t%d\"}", (i + 1) % 10);
        payloads[i] = rig_json(&rig, text);
    }
    ck_assert_int_eq(rig_upsert(&rig, 1, POINTS, payloads), OMEN_OK);
}

static void teardown(void) { rig_stop(&rig); }

static uint64_t seed_of_run(void)
{
    const char *given = getenv("OMEN_TEST_SEED");
    uint64_t seed = given != NULL ? strtoull(given, NULL, 10) : 20261122;
    printf("seed %llu\n", (unsigned long long)seed);
    return seed;
}

static uint64_t next_random(uint64_t *state)
{
    *state = *state * 6364136223846793005ull + 1442695040888963407ull;
    return *state >> 33;
}

/* ---- the functions alone ---- */

static int hit_order(const void *a, const void *b) { return hit_compare(a, b); }

START_TEST(merge_of_random_runs_equals_one_sort)
{
    uint64_t state = seed_of_run();
    struct arena arena;
    arena_init(&arena, 1 << 16, 0);
    for (int round = 0; round < 200; round++) {
        struct hit all[400], runs_hits[8][50];
        struct hit_run runs[8];
        uint32_t run_count = (uint32_t)(next_random(&state) % 9), total = 0;
        for (uint32_t r = 0; r < run_count; r++) {
            uint32_t n = (uint32_t)(next_random(&state) % 50);
            for (uint32_t i = 0; i < n; i++) {
                struct hit h = { .distance = (float)(next_random(&state) % 20) }; /* many ties */
                h.point.id.lo = next_random(&state) % 100000 * 8 + r;
                runs_hits[r][i] = all[total++] = h;
            }
            qsort(runs_hits[r], n, sizeof(struct hit), hit_order);
            runs[r] = (struct hit_run){ runs_hits[r], n };
        }
        qsort(all, total, sizeof *all, hit_order);
        uint32_t offset = (uint32_t)(next_random(&state) % 20), k = 1 + (uint32_t)(next_random(&state) % 60),
                 count;
        struct hit *hits;
        ck_assert_int_eq(merge_hits(runs, run_count, offset, k, NULL, &arena, &hits, &count), OMEN_OK);
        uint32_t expected = total <= offset ? 0 : total - offset < k ? total - offset : k;
        ck_assert_uint_eq(count, expected);
        for (uint32_t i = 0; i < count; i++)
            ck_assert_uint_eq(hits[i].point.id.lo, all[offset + i].point.id.lo);
        arena_reset(&arena);
    }
    arena_fini(&arena);
}
END_TEST

START_TEST(cursor_survives_the_trip_and_no_change)
{
    struct point_key key = { .id = { 0x1122334455667788, 0x99aabbccddeeff00, POINT_ID_UUID },
        .key_hi = 5,
        .key_lo = 6 };
    char text[CURSOR_TEXT_BYTES];
    cursor_encode(42, &key, text);
    struct point_key back;
    struct err err;
    ck_assert_int_eq(cursor_decode((struct bytes){ (const uint8_t *)text, sizeof text }, 42, &back, &err),
            OMEN_OK);
    ck_assert_int_eq(point_key_compare(&key, &back), 0);
    ck_assert_int_eq(cursor_decode((struct bytes){ (const uint8_t *)text, sizeof text }, 43, &back, &err),
            OMEN_EINVAL);
    ck_assert_int_eq(cursor_decode((struct bytes){ (const uint8_t *)text, sizeof text - 1 }, 42, &back, &err),
            OMEN_EINVAL);
    for (int i = 0; i < CURSOR_TEXT_BYTES; i++) {
        char was = text[i];
        text[i] = was == '0' ? '1' : '0';
        ck_assert_int_eq(cursor_decode((struct bytes){ (const uint8_t *)text, sizeof text }, 42, &back, &err),
                OMEN_EINVAL);
        ck_assert_str_eq(err.field, "cursor");
        text[i] = 'x';
        ck_assert_int_eq(cursor_decode((struct bytes){ (const uint8_t *)text, sizeof text }, 42, &back, &err),
                OMEN_EINVAL);
        text[i] = was;
    }
}
END_TEST

/* ---- through the router ---- */

static struct wire_search search_at(float x, uint32_t k, uint32_t offset)
{
    static float query[4][DIM];
    static int turn;
    float *q = query[turn++ % 4];
    memset(q, 0, sizeof query[0]);
    q[0] = x;
    return (struct wire_search){ .query = { (const uint8_t *)q, sizeof query[0] }, .k = k, .offset = offset };
}

static void ask_search(const struct wire_search *searches, uint32_t count)
{
    struct wire_request request = rig_request(WIRE_SEARCH);
    request.search.searches = searches;
    request.search.count = count;
    rig_ask(&rig, &request);
}

static uint64_t hit_id(uint32_t search, uint32_t i)
{
    return rig.reply.search.results[search].hits[i].point.id.lo;
}

START_TEST(search_over_all_shards_is_the_nearest_of_all)
{
    struct wire_search searches[] = { search_at(50.25f, 5, 0), search_at(0, 3, 2), search_at(1000, 500, 0) };
    ask_search(searches, 3);
    ck_assert_int_eq(rig.code, OMEN_OK);
    static const uint64_t near[] = { 50, 51, 49, 52, 48 };
    for (uint32_t i = 0; i < 5; i++) ck_assert_uint_eq(hit_id(0, i), near[i]);
    for (uint32_t i = 0; i < 3; i++) ck_assert_uint_eq(hit_id(1, i), 3 + i); /* two skipped */
    ck_assert_uint_eq(rig.reply.search.results[2].count, POINTS);
    for (uint32_t i = 0; i < POINTS; i++) ck_assert_uint_eq(hit_id(2, i), POINTS - i);
    ck_assert_uint_eq(rig.reply.search.shards_asked, SHARDS);
    ck_assert_uint_eq(rig.reply.search.shards_total, SHARDS);
    ck_assert_uint_eq(rig.reply.search.rows_scanned, 3 * POINTS);
    ck_assert_uint_eq(rig.reply.token_count, SHARDS);
    ck_assert_uint_eq(rig.fake->outstanding, 0);
}
END_TEST

START_TEST(search_by_id_leaves_the_point_out)
{
    struct wire_search searches[] = { { .by_id = true, .query_id = { 0, 70, 0 }, .k = 4 },
        search_at(70, 1, 0), { .by_id = true, .query_id = { 0, 1, 0 }, .k = 2, .offset = 1 } };
    ask_search(searches, 3);
    ck_assert_int_eq(rig.code, OMEN_OK);
    static const uint64_t near[] = { 69, 71, 68, 72 };
    for (uint32_t i = 0; i < 4; i++) ck_assert_uint_eq(hit_id(0, i), near[i]);
    ck_assert_uint_eq(rig.reply.search.results[0].count, 4);
    ck_assert_uint_eq(hit_id(1, 0), 70); /* asked by vector: it is there */
    ck_assert_uint_eq(hit_id(2, 0), 3);
    ck_assert_uint_eq(hit_id(2, 1), 4);
    struct wire_search missing = { .by_id = true, .query_id = { 0, 7000, 0 }, .k = 4 };
    ask_search(&missing, 1);
    ck_assert_int_eq(rig.code, OMEN_ENOTFOUND);
    ck_assert_str_eq(rig.reply.err.field, "searches[0].id");
    ck_assert_uint_eq(rig.fake->outstanding, 0);
}
END_TEST

START_TEST(filter_on_the_shard_key_asks_only_its_shards)
{
    struct wire_search search = search_at(0, 10, 0);
    search.filter_doc = rig_json(&rig, "{\"must\": [{\"key\": \"tenant\", \"match\": {\"value\": \"t3\"}}]}");
    struct wire_search both[] = { search, search_at(0, 1, 0) };
    ask_search(&search, 1);
    ck_assert_int_eq(rig.code, OMEN_OK);
    ck_assert_uint_eq(rig.reply.search.shards_asked, 1);
    ck_assert_uint_eq(rig.reply.search.shards_total, SHARDS);
    uint64_t of_tenant = 0;
    for (uint32_t i = 0; i < rig.reply.search.results[0].count; i++) of_tenant += hit_id(0, i) % 10 == 3;
    ck_assert_uint_gt(of_tenant, 0); /* the fake does not filter; the right shard was asked */
    ask_search(both, 2);             /* the other search needs them all */
    ck_assert_uint_eq(rig.reply.search.shards_asked, SHARDS);
    ck_assert_uint_eq(hit_id(1, 0), 1);
    search.filter_doc = rig_json(&rig,
            "{\"must\": [{\"key\": \"tenant\", \"match\": {\"value\": \"t3\"}},"
            " {\"key\": \"tenant\", \"match\": {\"value\": \"t4\"}}]}");
    ask_search(&search, 1);
    ck_assert_int_eq(rig.code, OMEN_OK);
    ck_assert_uint_eq(rig.reply.search.shards_asked, 0);
    ck_assert_uint_eq(rig.reply.search.results[0].count, 0);
}
END_TEST

START_TEST(search_limits_are_named)
{
    struct wire_search search = { .by_id = true, .query_id = { 0, 1, 0 }, .k = OMEN_K_MAX };
    ask_search(&search, 1);
    ck_assert_int_eq(rig.code, OMEN_ETOOBIG);
    ck_assert_str_eq(rig.reply.err.field, "searches[0].k");
    search = search_at(0, 1, 0);
    search.query.len = 4;
    ask_search(&search, 1);
    ck_assert_int_eq(rig.code, OMEN_EINVAL);
    ck_assert_str_eq(rig.reply.err.field, "searches[0].vector");
    search = search_at(NAN, 1, 0);
    ask_search(&search, 1);
    ck_assert_int_eq(rig.code, OMEN_EINVAL);
    search = search_at(0, 1, 0);
    search.field = (struct bytes){ (const uint8_t *)"title", 5 };
    ask_search(&search, 1);
    ck_assert_int_eq(rig.code, OMEN_EINVAL);
    ck_assert_str_eq(rig.reply.err.field, "searches[0].field");
    ck_assert_uint_eq(rig.fake->calls_by_kind[CALL_SEARCH], 0);
}
END_TEST

START_TEST(scroll_pages_give_every_point_once_in_order)
{
    for (uint32_t limit = 1; limit <= POINTS + 1; limit = limit * 3 + 1) {
        struct wire_request request = rig_request(WIRE_SCROLL);
        request.scroll.limit = limit;
        uint64_t expected = 1, pages = 0;
        do {
            ck_assert_int_eq(rig_ask(&rig, &request), OMEN_OK);
            for (uint32_t i = 0; i < rig.reply.points.count; i++) {
                ck_assert_uint_eq(rig.reply.points.points[i].id.lo, expected++);
            }
            request.scroll.cursor = rig.reply.points.cursor;
            ck_assert_uint_le(++pages, POINTS + 1);
        } while (request.scroll.cursor.len > 0);
        ck_assert_uint_eq(expected, POINTS + 1);
    }
}
END_TEST

START_TEST(foreign_cursor_is_refused)
{
    struct wire_request request = rig_request(WIRE_SCROLL);
    request.scroll.limit = 3;
    request.scroll.cursor = (struct bytes){ (const uint8_t *)"abc", 3 };
    ck_assert_int_eq(rig_ask(&rig, &request), OMEN_EINVAL);
    ck_assert_str_eq(rig.reply.err.field, "cursor");
}
END_TEST

START_TEST(get_keeps_the_order_asked_and_leaves_missing_out)
{
    static const point_id ids[] = { { 0, 9, 0 }, { 0, 3, 0 }, { 0, 9999, 0 }, { 0, 150, 0 }, { 0, 3, 0 } };
    static const uint64_t expected[] = { 9, 3, 150, 3 };
    struct wire_request request = rig_request(WIRE_GET);
    request.get.ids = ids;
    request.get.count = 5;
    ck_assert_int_eq(rig_ask(&rig, &request), OMEN_OK);
    ck_assert_uint_eq(rig.reply.points.count, 4);
    for (uint32_t i = 0; i < 4; i++) ck_assert_uint_eq(rig.reply.points.points[i].id.lo, expected[i]);
}
END_TEST

START_TEST(get_by_key_asks_one_shard_and_without_it_all)
{
    static const point_id id = { 0, 13, 0 };
    struct doc key = rig_json(&rig, "\"t3\""), other = rig_json(&rig, "\"t4\"");
    struct wire_request request = rig_request(WIRE_GET);
    request.get.ids = &id;
    request.get.count = 1;
    request.get.keys = &key;
    ck_assert_int_eq(rig_ask(&rig, &request), OMEN_OK);
    ck_assert_uint_eq(rig.reply.points.count, 1);
    ck_assert_uint_eq(rig.fake->calls_by_kind[CALL_GET], 1);
    request.get.keys = &other; /* another point's identity */
    ck_assert_int_eq(rig_ask(&rig, &request), OMEN_OK);
    ck_assert_uint_eq(rig.reply.points.count, 0);
    request.get.keys = NULL;
    ck_assert_int_eq(rig_ask(&rig, &request), OMEN_OK);
    ck_assert_uint_eq(rig.reply.points.count, 1);
    ck_assert_uint_eq(rig.fake->calls_by_kind[CALL_GET], 2 + SHARDS);
}
END_TEST

START_TEST(counts_add_up)
{
    struct wire_request request = rig_request(WIRE_COUNT);
    ck_assert_int_eq(rig_ask(&rig, &request), OMEN_OK);
    ck_assert_uint_eq(rig.reply.count.points, POINTS);
}
END_TEST

START_TEST(one_failed_shard_makes_the_write_fail_with_its_reason)
{
    rig.fake->fail_shard = 12;
    rig.fake->fail_code = OMEN_EBUSY;
    ck_assert_int_eq(rig_upsert(&rig, 1000, 100, NULL), OMEN_EBUSY);
    ck_assert_uint_eq(rig.reply.err.retry_after_ms, 77);
    ck_assert_ptr_nonnull(strstr(rig.reply.err.message, "4 of 5 shards applied"));
    ck_assert_ptr_nonnull(strstr(rig.reply.err.message, "shard 12"));
    rig.fake->fail_code = OMEN_EUNKNOWN;
    ck_assert_int_eq(rig_upsert(&rig, 1000, 100, NULL), OMEN_EUNKNOWN);
    ck_assert_uint_eq(rig.fake->outstanding, 0);
}
END_TEST

START_TEST(one_failed_shard_makes_a_read_fail)
{
    rig.fake->fail_shard = 13;
    rig.fake->fail_code = OMEN_ECORRUPT;
    struct wire_search search = search_at(0, 1, 0);
    ask_search(&search, 1);
    ck_assert_int_eq(rig.code, OMEN_ECORRUPT);
    struct wire_request request = rig_request(WIRE_COUNT);
    ck_assert_int_eq(rig_ask(&rig, &request), OMEN_ECORRUPT);
    ck_assert_uint_eq(rig.fake->outstanding, 0);
}
END_TEST

START_TEST(describe_sums_its_shards)
{
    struct wire_request request = rig_request(WIRE_COLLECTION_DESCRIBE);
    ck_assert_int_eq(rig_ask(&rig, &request), OMEN_OK);
    ck_assert_uint_eq(rig.reply.collections.count, 1);
    ck_assert_uint_eq(rig.reply.collections.items[0].points, 11 + 12 + 13 + 14 + 15);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("router_merge");
    TCase *pure = tcase_create("pure");
    tcase_add_test(pure, merge_of_random_runs_equals_one_sort);
    tcase_add_test(pure, cursor_survives_the_trip_and_no_change);
    suite_add_tcase(suite, pure);
    TCase *plain = tcase_create("plain");
    tcase_add_checked_fixture(plain, setup_plain, teardown);
    tcase_add_test(plain, search_over_all_shards_is_the_nearest_of_all);
    tcase_add_test(plain, search_by_id_leaves_the_point_out);
    tcase_add_test(plain, search_limits_are_named);
    tcase_add_test(plain, scroll_pages_give_every_point_once_in_order);
    tcase_add_test(plain, foreign_cursor_is_refused);
    tcase_add_test(plain, get_keeps_the_order_asked_and_leaves_missing_out);
    tcase_add_test(plain, counts_add_up);
    tcase_add_test(plain, one_failed_shard_makes_the_write_fail_with_its_reason);
    tcase_add_test(plain, one_failed_shard_makes_a_read_fail);
    tcase_add_test(plain, describe_sums_its_shards);
    suite_add_tcase(suite, plain);
    TCase *keyed = tcase_create("keyed");
    tcase_add_checked_fixture(keyed, setup_keyed, teardown);
    tcase_add_test(keyed, filter_on_the_shard_key_asks_only_its_shards);
    tcase_add_test(keyed, get_by_key_asks_one_shard_and_without_it_all);
    suite_add_tcase(suite, keyed);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}
