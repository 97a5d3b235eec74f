/* The interval of measured recall: over many worlds of known recall (rows missed singly, in bunches, whole searches
 * lost, k of 1 to 100, few searches and many) it holds the true recall about as often as it says, and never much
 * less in any of them; adding counts of shards is measuring them together. OMEN_SEED=n runs one seed. */
#include "common/recall.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define TRIALS 2000
#define WORST_COVERAGE 0.915 /* Wilson's own dips below 0.95 near 1 */
#define MEAN_COVERAGE 0.945

static uint64_t state;

static double uniform(void)
{
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (double)(state >> 11) / 9007199254740992.0;
}

/* A search of `k` rows in a world of this recall; `bunched` of the loss falls on searches that find nothing. */
static uint32_t search(uint32_t k, double recall, double bunched)
{
    double lost = (1 - recall) * bunched;
    if (uniform() < lost) return 0;
    double each = recall / (1 - lost);
    uint32_t found = 0;
    for (uint32_t i = 0; i < k; i++) found += uniform() < each;
    return found;
}

static double coverage(uint32_t searches, uint32_t k, double recall, double bunched, double *width_out)
{
    uint32_t held = 0;
    double width = 0;
    for (uint32_t t = 0; t < TRIALS; t++) {
        struct recall_counts counts = { 0 };
        for (uint32_t i = 0; i < searches; i++) recall_counts_take(&counts, search(k, recall, bunched), k);
        ck_assert(recall_counts_valid(&counts));
        struct recall_estimate e = recall_estimate(&counts);
        ck_assert(0 <= e.low && e.low <= e.recall && e.recall <= e.high && e.high <= 1);
        held += e.low <= recall && recall <= e.high;
        width += e.high - e.low;
    }
    *width_out = width / TRIALS;
    return (double)held / TRIALS;
}

START_TEST(the_interval_holds_the_true_recall_as_often_as_it_says)
{
    static const uint32_t numbers[] = { 40, 200, 1000 }, ks[] = { 1, 10, 100 };
    static const double recalls[] = { 0.5, 0.85, 0.95, 0.99 }, bunches[] = { 0, 0.5, 1 };
    const char *seed = getenv("OMEN_SEED");
    double sum = 0;
    uint32_t worlds = 0;
    state = seed != NULL ? strtoull(seed, NULL, 10) : 7;
    printf("seed %llu\n", (unsigned long long)state);
    for (uint32_t n = 0; n < 3; n++)
        for (uint32_t k = 0; k < 3; k++)
            for (uint32_t r = 0; r < 4; r++)
                for (uint32_t b = 0; b < 3; b++) {
                    double width;
                    if (numbers[n] == 1000 && ks[k] == 100) continue; /* slow, and nothing new */
                    double c = coverage(numbers[n], ks[k], recalls[r], bunches[b], &width);
                    ck_assert_msg(c >= WORST_COVERAGE, "searches=%u k=%u recall=%.2f bunched=%.1f: %.3f",
                            numbers[n], ks[k], recalls[r], bunches[b], c);
                    sum += c;
                    worlds++;
                }
    ck_assert_msg(sum / worlds >= MEAN_COVERAGE, "on average %.4f", sum / worlds);
}
END_TEST

START_TEST(a_thousand_searches_tell_0_95_from_0_93)
{
    double width;
    state = 3;
    (void)coverage(1000, 10, 0.95, 0, &width);
    ck_assert_msg(width < 0.02, "width %.4f", width);
}
END_TEST

START_TEST(few_perfect_searches_promise_little)
{
    struct recall_counts counts = { 0 };
    for (uint32_t i = 0; i < 20; i++) recall_counts_take(&counts, 100, 100);
    struct recall_estimate e = recall_estimate(&counts);
    ck_assert(e.recall == 1 && e.high == 1);
    ck_assert_msg(e.low < 0.9, "low %.4f", e.low);
    struct recall_counts none = { 0 };
    e = recall_estimate(&none);
    ck_assert(e.low == 0 && e.high == 1);
}
END_TEST

START_TEST(counts_of_shards_add_up)
{
    struct recall_counts a = { 0 }, b = { 0 }, all = { 0 };
    for (uint32_t i = 0; i < 100; i++) {
        recall_counts_take(i % 3 == 0 ? &a : &b, i % 11, 10 + i % 5);
        recall_counts_take(&all, i % 11, 10 + i % 5);
    }
    recall_counts_add(&a, &b);
    struct recall_estimate x = recall_estimate(&a), y = recall_estimate(&all);
    ck_assert(x.recall == y.recall && x.low == y.low && x.high == y.high);
}
END_TEST

START_TEST(numbers_that_cannot_be_counts_are_known)
{
    struct recall_counts counts = { 0 };
    ck_assert(recall_counts_valid(&counts));
    recall_counts_take(&counts, 9, 10);
    ck_assert(recall_counts_valid(&counts));
    struct recall_counts bad = counts;
    bad.found = 11;
    ck_assert(!recall_counts_valid(&bad));
    bad = counts;
    bad.squares = bad.shares + 1;
    ck_assert(!recall_counts_valid(&bad));
    bad = counts;
    bad.shares = UINT64_MAX;
    ck_assert(!recall_counts_valid(&bad));
    bad = counts;
    bad.searches = bad.sought = UINT64_MAX;
    ck_assert(!recall_counts_valid(&bad));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("recall_estimate");
    TCase *tc = tcase_create("recall_estimate");
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, the_interval_holds_the_true_recall_as_often_as_it_says);
    tcase_add_test(tc, a_thousand_searches_tell_0_95_from_0_93);
    tcase_add_test(tc, few_perfect_searches_promise_little);
    tcase_add_test(tc, counts_of_shards_add_up);
    tcase_add_test(tc, numbers_that_cannot_be_counts_are_known);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
