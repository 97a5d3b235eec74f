/* Every kind of index, every metric, k of 1, 10 and 100, on queries that no build has seen: the recall that was asked
 * for is delivered, within ENGINE's interval, and never much more than was asked (and paid) for. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>

#include "storage/kernel/kernel.h"
#include "tests/support/recall_support.h"

#define ROWS 5000
#define QUERIES 400

static const uint32_t ks[] = { 1, 10, 100 };

/* Kinds whose build is in this binary. */
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

/* The least efforts that a kind takes (a pool is not narrower than k) may deliver more than a low target asks for. */
static bool least_effort(const struct recall_result *result, uint32_t k)
{
    uint64_t effort = result->cost.effort / QUERIES;
    return effort <= 10 || k == 100; /* of 5,000 rows the curve is short there */
}

/* `query_length`: what queries are scaled to, 0 = left as they are. */
static void delivered(enum metric metric, float target, float query_length)
{
    struct recall_set set;
    recall_set_init(&set, ROWS, QUERIES, 40, metric, 11 + (uint64_t)metric);
    recall_set_fill(&set, 100, 16);
    for (uint32_t q = 0; query_length != 0 && q < QUERIES; q++) {
        vector_normalise(set.queries + (size_t)q * 40, 40);
        for (uint32_t j = 0; j < 40; j++) set.queries[(size_t)q * 40 + j] *= query_length;
    }
    for (int kind = 0; kind < INDEX_KIND_COUNT; kind++) {
        if (!built_in((enum index_kind)kind)) continue;
        struct index *index = recall_build(&set, (enum index_kind)kind, INDEX_QUANT_AUTO);
        for (int i = 0; i < 3; i++) {
            char what[64];
            struct index_search s = { .k = ks[i], .recall_target = target };
            struct recall_result result = recall_measure(&set, index, &s, NULL);
            snprintf(what, sizeof what, "%s %s k=%u", index_kind_name((enum index_kind)kind),
                    metric_name(metric), ks[i]);
            recall_check(what, &result, (double)target,
                    kind == INDEX_FLAT || result.cost.gathers > 0 || least_effort(&result, ks[i]));
        }
        index_free(index);
    }
    recall_set_fini(&set);
}

START_TEST(l2_delivers_what_was_asked) { delivered(METRIC_L2, 0.95f, 0); }
END_TEST
START_TEST(ip_delivers_what_was_asked) { delivered(METRIC_IP, 0.95f, 0); }
END_TEST
/* Norms of rows are spread 1..16; answers under ip do not depend on a query's length, and neither may recall. */
START_TEST(ip_delivers_to_queries_of_any_length)
{
    delivered(METRIC_IP, 0.95f, 0.01f);
    delivered(METRIC_IP, 0.95f, 1000);
}
END_TEST
START_TEST(cosine_delivers_what_was_asked) { delivered(METRIC_COSINE, 0.95f, 0); }
END_TEST
START_TEST(high_targets_are_delivered) { delivered(METRIC_L2, 0.99f, 0); }
END_TEST

int main(void)
{
    Suite *suite = suite_create("recall");
    TCase *tcase = tcase_create("recall");
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, l2_delivers_what_was_asked);
    tcase_add_test(tcase, ip_delivers_what_was_asked);
    tcase_add_test(tcase, ip_delivers_to_queries_of_any_length);
    tcase_add_test(tcase, cosine_delivers_what_was_asked);
    tcase_add_test(tcase, high_targets_are_delivered);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
