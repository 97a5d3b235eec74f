/* Filtered search through the one door: whatever a filter has to do with the vectors, and whichever plan answers, hits
 * pass, none is missing while there is one, and recall is what was asked for. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "storage/kernel/kernel.h"
#include "tests/support/recall_support.h"

#define ROWS 12000
#define QUERIES 200
#define WORDS ((ROWS + 63) / 64)
#define ANCHORS 8

static struct recall_set set;
static struct index *sealed, *hnsw;
static uint64_t bits[ANCHORS][WORDS];
static const uint64_t *filters[QUERIES];

static void setup(void)
{
    recall_set_init(&set, ROWS, QUERIES, 48, METRIC_L2, 71);
    recall_set_fill(&set, 60, 12);
    sealed = recall_build(&set, INDEX_SEALED, INDEX_QUANT_AUTO);
    hnsw = recall_build(&set, INDEX_HNSW, INDEX_QUANT_AUTO);
}

static void teardown(void)
{
    index_free(sealed);
    index_free(hnsw);
    recall_set_fini(&set);
}

static void filter_random(double share)
{
    memset(bits, 0, sizeof bits);
    for (uint32_t slot = 0; slot < ROWS; slot++)
        if ((double)(recall_rng(&set) >> 11) * 0x1p-53 < share)
            bits[0][slot / 64] |= UINT64_C(1) << (slot % 64);
    for (uint32_t q = 0; q < QUERIES; q++) filters[q] = bits[0];
}

static float apart(const float *a, uint32_t slot)
{
    return kernel_get()->l2sq_f32(a, set.data + (size_t)slot * set.rows.dim, set.rows.dim);
}

static int compare_f32(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* The rows nearest to an anchor pass; each query has the nearest anchor, or the farthest. */
static void filter_anchored(double share, bool nearest)
{
    static float distances[ROWS], sorted[ROWS];
    uint32_t anchors[ANCHORS];
    memset(bits, 0, sizeof bits);
    for (uint32_t a = 0; a < ANCHORS; a++) {
        anchors[a] = (uint32_t)(recall_rng(&set) % ROWS);
        const float *anchor = set.data + (size_t)anchors[a] * set.rows.dim;
        for (uint32_t slot = 0; slot < ROWS; slot++) sorted[slot] = distances[slot] = apart(anchor, slot);
        qsort(sorted, ROWS, sizeof(float), compare_f32);
        for (uint32_t slot = 0; slot < ROWS; slot++)
            if (distances[slot] <= sorted[(uint32_t)(share * ROWS) - 1])
                bits[a][slot / 64] |= UINT64_C(1) << (slot % 64);
    }
    for (uint32_t q = 0; q < QUERIES; q++) {
        const float *query = set.queries + (size_t)q * set.rows.dim;
        uint32_t chosen = 0;
        for (uint32_t a = 1; a < ANCHORS; a++)
            if ((apart(query, anchors[a]) < apart(query, anchors[chosen])) == nearest) chosen = a;
        filters[q] = bits[chosen];
    }
}

static void each_index(const char *what, uint32_t k)
{
    const struct index *indexes[] = { sealed, hnsw };
    for (int i = 0; i < 2; i++) {
        struct index_search s = { .k = k, .recall_target = 0.95f };
        struct recall_result result = recall_measure(&set, indexes[i], &s, filters);
        recall_check(what, &result, 0.95, true);
    }
}

START_TEST(random_filters_keep_recall)
{
    static const double shares[] = { 0.9, 0.5, 0.1, 0.01, 0.001, 0 };
    for (size_t i = 0; i < sizeof shares / sizeof shares[0]; i++) {
        filter_random(shares[i]);
        each_index("random", 10);
    }
    filter_random(0.5);
    each_index("random, k = 100", 100);
    each_index("random, k = 1", 1);
}
END_TEST

START_TEST(correlated_filters_keep_recall)
{
    static const double shares[] = { 0.5, 0.1, 0.01, 0.001 };
    for (size_t i = 0; i < sizeof shares / sizeof shares[0]; i++) {
        filter_anchored(shares[i], true);
        each_index("correlated", 10);
    }
}
END_TEST

START_TEST(anti_correlated_filters_keep_recall)
{
    static const double shares[] = { 0.5, 0.1, 0.01, 0.001 };
    for (size_t i = 0; i < sizeof shares / sizeof shares[0]; i++) {
        filter_anchored(shares[i], false);
        each_index("anti-correlated", 10);
    }
}
END_TEST

/* Each plan of the sealed graph answers any filter: walks at the target, gather exactly. */
START_TEST(every_plan_answers_every_filter)
{
    for (int kind = 0; kind < 3; kind++) {
        if (kind == 0)
            filter_random(0.1);
        else
            filter_anchored(0.1, kind == 1);
        for (int plan = INDEX_PLAN_WALK; plan < INDEX_PLAN_COUNT; plan++) {
            struct index_search s = { .k = 10, .recall_target = 0.95f, .plan = (enum index_plan)plan };
            struct recall_result result = recall_measure(&set, sealed, &s, filters);
            double wanted = plan == INDEX_PLAN_GATHER ? 1 : 0.9;
            ck_assert_msg(result.mean >= wanted, "filter %d: plan %s has %.4f", kind,
                    index_plan_name((enum index_plan)plan), result.mean);
            uint64_t answered = plan == INDEX_PLAN_WALK ? result.cost.walks
                    : plan == INDEX_PLAN_GATHER         ? result.cost.gathers
                                                        : result.cost.scans;
            ck_assert_uint_eq(answered, QUERIES);
        }
    }
}
END_TEST

/* Local selectivity decides: a filter that holds around the query costs about what none costs, one that never holds
 * there is given up soon. */
START_TEST(hops_follow_the_local_share)
{
    struct index_search s = { .k = 10, .recall_target = 0.95f };
    uint64_t plain = recall_measure(&set, sealed, &s, NULL).cost.hops;
    filter_anchored(0.3, true);
    uint64_t correlated = recall_measure(&set, sealed, &s, filters).cost.hops;
    filter_anchored(0.3, false);
    struct recall_result anti = recall_measure(&set, sealed, &s, filters);
    ck_assert_msg(correlated < 3 * plain, "%llu hops without, %llu with a correlated filter",
            (unsigned long long)plain, (unsigned long long)correlated);
    ck_assert_uint_gt(anti.cost.scans + anti.cost.gathers, QUERIES / 2);
    ck_assert_uint_lt(anti.cost.hops, 4 * plain);
}
END_TEST

START_TEST(threshold_holds_in_every_plan)
{
    filter_random(0.2);
    const float *query = set.queries;
    float far = apart(query, 0);
    for (int plan = 0; plan < INDEX_PLAN_COUNT; plan++) {
        struct index_search s = { .k = 20,
            .recall_target = 0.95f,
            .plan = (enum index_plan)plan,
            .has_distance_max = true,
            .distance_max = far / 4 };
        (void)recall_measure(&set, sealed, &s, filters);
        s.distance_max = -1;
        struct recall_result none = recall_measure(&set, sealed, &s, filters);
        ck_assert(none.mean == 1);
    }
}
END_TEST

static bool stop_at_once(void *arg) { return ++*(uint32_t *)arg > 0; }

START_TEST(every_plan_stops_when_told)
{
    filter_random(0.4);
    for (int plan = INDEX_PLAN_WALK; plan < INDEX_PLAN_COUNT; plan++) {
        uint32_t polls = 0, count;
        struct index_hit hits[100];
        struct index_search s = { .query = set.queries,
            .k = 100,
            .effort = 2000,
            .filter = bits[0],
            .plan = (enum index_plan)plan,
            .stop = stop_at_once,
            .stop_arg = &polls };
        struct index_scratch *scratch = index_scratch_new(sealed);
        ck_assert_int_eq(index_search(sealed, &s, scratch, hits, &count, NULL), OMEN_EDEADLINE);
        ck_assert_uint_eq(polls, 1);
        index_scratch_free(sealed, scratch);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("filtered");
    TCase *tcase = tcase_create("filtered");
    tcase_add_unchecked_fixture(tcase, setup, teardown);
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, random_filters_keep_recall);
    tcase_add_test(tcase, correlated_filters_keep_recall);
    tcase_add_test(tcase, anti_correlated_filters_keep_recall);
    tcase_add_test(tcase, every_plan_answers_every_filter);
    tcase_add_test(tcase, hops_follow_the_local_share);
    tcase_add_test(tcase, threshold_holds_in_every_plan);
    tcase_add_test(tcase, every_plan_stops_when_told);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
