/* Odd shapes of data through the one door, every kind of index alike: each is answered with all there is, or refused by
 * name. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "tests/support/recall_support.h"

static struct recall_set set;

static bool built_in(enum index_kind kind)
{
    static const float one[1] = { 1 };
    struct index_rows rows = { one, 1, 1, 1, METRIC_L2 };
    struct index *index;
    struct err err;
    if (index_build(kind, &rows, NULL, NULL, &index, &err) != OMEN_OK) return false;
    index_free(index);
    return true;
}

/* Every kind over `set` as it stands: answers complete and right (recall_measure), recall at the floor. */
static void each_kind(const char *what, uint32_t k, double floor)
{
    for (int kind = 0; kind < INDEX_KIND_COUNT; kind++) {
        if (!built_in((enum index_kind)kind)) continue;
        struct index *index = recall_build(&set, (enum index_kind)kind, INDEX_QUANT_AUTO);
        struct index_search s = { .k = k, .recall_target = 0.95f };
        struct recall_result result = recall_measure(&set, index, &s, NULL);
        ck_assert_msg(result.mean >= floor, "%s, %s: recall %.4f", what,
                index_kind_name((enum index_kind)kind), result.mean);
        index_free(index);
    }
}

START_TEST(none_one_and_two_rows)
{
    for (uint32_t n = 0; n <= 2; n++) {
        recall_set_init(&set, n, 20, 17, METRIC_L2, 100 + n);
        recall_set_fill(&set, 3, 4);
        each_kind("few rows", 10, 1);
        recall_set_fini(&set);
    }
}
END_TEST

START_TEST(k_beyond_all_rows)
{
    recall_set_init(&set, 300, 10, 24, METRIC_COSINE, 103);
    recall_set_fill(&set, 10, 6);
    each_kind("k = 1000 of 300", 1000, 1);
    recall_set_fini(&set);
}
END_TEST

START_TEST(all_rows_equal)
{
    recall_set_init(&set, 3000, 5, 32, METRIC_L2, 104);
    for (size_t i = 0; i < (size_t)3005 * 32; i++) set.data[i] = 0.25f * (float)(i % 32);
    each_kind("all equal", 50, 1);
    recall_set_fini(&set);
}
END_TEST

/* Copies fill every list of links unless they are capped: what lies behind them must be found all the same. */
START_TEST(many_copies_of_one_row)
{
    recall_set_init(&set, 5000, 400, 32, METRIC_L2, 105);
    recall_set_fill(&set, 30, 8);
    for (uint32_t slot = 0; slot < 5000; slot += 10)
        memcpy(set.data + (size_t)slot * 32, set.data, 32 * sizeof(float));
    each_kind("copies", 10, 0.93);
    recall_set_fini(&set);
}
END_TEST

START_TEST(denormal_components)
{
    recall_set_init(&set, 2500, 200, 16, METRIC_L2, 106);
    recall_set_fill(&set, 10, 6);
    for (size_t i = 0; i < (size_t)2700 * 16; i++) set.data[i] *= 1e-39f;
    each_kind("denormals", 10, 0); /* their squares are 0: every row is as near */
    for (size_t i = 0; i < (size_t)2700 * 16; i++) set.data[i] *= 1e21f;
    each_kind("tiny", 10, 0.92);
    recall_set_fini(&set);
}
END_TEST

START_TEST(dimensions_at_the_edges)
{
    static const uint32_t dims[] = { 1, 65, 4096 };
    static const uint32_t counts[] = { 3000, 3000, 2200 };
    for (int i = 0; i < 3; i++) {
        recall_set_init(&set, counts[i], 120, dims[i], METRIC_L2, 107 + (uint64_t)i);
        recall_set_fill(&set, 10, 4);
        each_kind("dimensions", 10, 0.93);
        recall_set_fini(&set);
    }
}
END_TEST

START_TEST(constant_dimensions)
{
    recall_set_init(&set, 3000, 400, 64, METRIC_L2, 111);
    recall_set_fill(&set, 20, 8);
    for (uint32_t row = 0; row < 3400; row++)
        for (uint32_t j = 0; j < 60; j++) set.data[(size_t)row * 64 + j] = 1000; /* four components say all */
    each_kind("constant dimensions", 10, 0.93);
    recall_set_fini(&set);
}
END_TEST

START_TEST(norms_a_million_apart)
{
    for (int metric = METRIC_L2; metric <= METRIC_IP; metric++) {
        recall_set_init(&set, 4000, 400, 32, (enum metric)metric, 112 + (uint64_t)metric);
        recall_set_fill(&set, 20, 8);
        for (uint32_t row = 0; row < 4400; row++) {
            float norm = powf(10, (float)(recall_rng(&set) % 6000) / 1000);
            for (uint32_t j = 0; j < 32; j++) set.data[(size_t)row * 32 + j] *= norm;
        }
        each_kind("norms", 10, 0.93);
        recall_set_fini(&set);
    }
}
END_TEST

START_TEST(rows_that_are_no_numbers_are_refused)
{
    static const float bad[] = { NAN, INFINITY, -INFINITY };
    for (int i = 0; i < 3; i++) {
        recall_set_init(&set, 50, 1, 8, METRIC_L2, 114);
        recall_set_fill(&set, 2, 2);
        set.data[17 * 8 + 3] = bad[i];
        for (int kind = 0; kind < INDEX_KIND_COUNT; kind++) {
            struct index *index;
            struct err err;
            if (!built_in((enum index_kind)kind)) continue;
            ck_assert_int_eq(index_build((enum index_kind)kind, &set.rows, NULL, NULL, &index, &err),
                    OMEN_EINVAL);
            ck_assert_ptr_nonnull(strstr(err.message, "17"));
            set.data[17 * 8 + 3] = 0;
            index = recall_build(&set, (enum index_kind)kind, INDEX_QUANT_AUTO);
            set.data[17 * 8 + 3] = bad[i];
            struct index_scratch *scratch = index_scratch_new(index);
            struct index_search s = { .query = set.data + 17 * 8, .k = 1 };
            struct index_hit hit;
            uint32_t count;
            ck_assert_int_eq(index_search(index, &s, scratch, &hit, &count, NULL), OMEN_EINVAL);
            index_scratch_free(index, scratch);
            index_free(index);
        }
        recall_set_fini(&set);
    }
}
END_TEST

/* What is left of a segment is seen through a bitmap by sealed kinds, and is all there is in mutable ones. */
START_TEST(one_row_in_a_hundred_lives)
{
    recall_set_init(&set, 6000, 60, 24, METRIC_L2, 115);
    recall_set_fill(&set, 20, 8);
    uint64_t *live = mem_must_calloc(6000 / 64 + 1, sizeof *live);
    const uint64_t *filters[60];
    for (uint32_t slot = 0; slot < 6000; slot += 100) live[slot / 64] |= UINT64_C(1) << (slot % 64);
    for (int q = 0; q < 60; q++) filters[q] = live;
    for (int kind = 0; kind < INDEX_KIND_COUNT; kind++) {
        struct err err;
        if (!built_in((enum index_kind)kind)) continue;
        struct index *index = recall_build(&set, (enum index_kind)kind, INDEX_QUANT_AUTO);
        struct index_search s = { .k = 10, .recall_target = 0.95f };
        if (kind == INDEX_HNSW)
            for (uint32_t slot = 0; slot < 6000; slot++)
                if (slot % 100 != 0) ck_assert_int_eq(index_remove(index, slot, &err), OMEN_OK);
        struct recall_result result = recall_measure(&set, index, &s, filters);
        ck_assert_msg(result.mean >= 0.95, "%s: %.4f", index_kind_name((enum index_kind)kind), result.mean);
        if (kind == INDEX_HNSW) { /* and without the bitmap: the dead are not there */
            struct index_hit hits[100];
            struct index_scratch *scratch = index_scratch_new(index);
            uint32_t count;
            s = (struct index_search){ .query = set.queries, .k = 100 };
            ck_assert_int_eq(index_search(index, &s, scratch, hits, &count, NULL), OMEN_OK);
            ck_assert_uint_eq(count, 60);
            for (uint32_t i = 0; i < count; i++) ck_assert_uint_eq(hits[i].slot % 100, 0);
            index_scratch_free(index, scratch);
        }
        index_free(index);
    }
    mem_free(live);
    recall_set_fini(&set);
}
END_TEST

static bool stop_at_once(void *arg) { return ++*(uint32_t *)arg > 0; }

START_TEST(a_deadline_ends_the_search)
{
    recall_set_init(&set, 6000, 8, 24, METRIC_L2, 116);
    recall_set_fill(&set, 20, 8);
    for (int kind = 0; kind < INDEX_KIND_COUNT; kind++) {
        if (!built_in((enum index_kind)kind)) continue;
        struct index *index = recall_build(&set, (enum index_kind)kind, INDEX_QUANT_AUTO);
        struct index_scratch *scratch = index_scratch_new(index);
        uint32_t polls = 0, count;
        struct index_hit hits[10];
        struct index_search s = { .query = set.queries,
            .k = 10,
            .effort = 2000,
            .stop = stop_at_once,
            .stop_arg = &polls };
        ck_assert_int_eq(index_search(index, &s, scratch, hits, &count, NULL), OMEN_EDEADLINE);
        ck_assert_uint_eq(polls, 1);
        s.stop = NULL; /* the scratch is as good as new */
        ck_assert_int_eq(index_search(index, &s, scratch, hits, &count, NULL), OMEN_OK);
        ck_assert_uint_eq(count, 10);
        index_scratch_free(index, scratch);
        index_free(index);
    }
    recall_set_fini(&set);
}
END_TEST

START_TEST(a_batch_answers_as_one_by_one)
{
    enum { QUERIES = 40, K = 10 };
    recall_set_init(&set, 5000, QUERIES, 24, METRIC_IP, 117);
    recall_set_fill(&set, 20, 8);
    for (int kind = 0; kind < INDEX_KIND_COUNT; kind++) {
        if (!built_in((enum index_kind)kind)) continue;
        static struct index_hit together[QUERIES][K], alone[K];
        struct index_hit *outs[QUERIES];
        struct index_search searches[QUERIES];
        uint32_t counts[QUERIES], count;
        struct index *index = recall_build(&set, (enum index_kind)kind, INDEX_QUANT_AUTO);
        struct index_scratch *scratch = index_scratch_new(index);
        for (int q = 0; q < QUERIES; q++) {
            searches[q] = (struct index_search){ .query = set.queries + (size_t)q * 24,
                .k = 1 + (uint32_t)q % K,
                .recall_target = 0.95f };
            outs[q] = together[q];
        }
        ck_assert_int_eq(index_search_batch(index, searches, QUERIES, scratch, outs, counts, NULL), OMEN_OK);
        for (int q = 0; q < QUERIES; q++) {
            ck_assert_int_eq(index_search(index, &searches[q], scratch, alone, &count, NULL), OMEN_OK);
            ck_assert_uint_eq(count, counts[q]);
            ck_assert_mem_eq(alone, together[q], count * sizeof *alone);
        }
        index_scratch_free(index, scratch);
        index_free(index);
    }
    recall_set_fini(&set);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("shapes");
    TCase *tcase = tcase_create("shapes");
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, none_one_and_two_rows);
    tcase_add_test(tcase, k_beyond_all_rows);
    tcase_add_test(tcase, all_rows_equal);
    tcase_add_test(tcase, many_copies_of_one_row);
    tcase_add_test(tcase, denormal_components);
    tcase_add_test(tcase, dimensions_at_the_edges);
    tcase_add_test(tcase, constant_dimensions);
    tcase_add_test(tcase, norms_a_million_apart);
    tcase_add_test(tcase, rows_that_are_no_numbers_are_refused);
    tcase_add_test(tcase, one_row_in_a_hundred_lives);
    tcase_add_test(tcase, a_deadline_ends_the_search);
    tcase_add_test(tcase, a_batch_answers_as_one_by_one);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
