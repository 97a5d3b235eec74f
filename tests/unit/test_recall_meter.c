/* Live recall: what counts as found when writes came between the search and the exact answer, and the loop that brings
 * recall back: against an index whose calibration is wrong, effort rises until what was promised is given, segments are
 * built anew, and when they are right again the effort goes back. Deterministic; OMEN_SEED=n for another run. */
#include "common/err.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "node/recall_meter.h"

static struct recall_row row(uint64_t id, uint64_t version, float distance)
{
    struct shard_key none = { { NULL, 0 } };
    point_id point = { 0, id, POINT_ID_U64 };
    return (struct recall_row){ point_key_make(point, none), version, distance };
}

static struct recall_sample sample_of(struct recall_row *rows, uint32_t count, uint32_t k, uint64_t sequence)
{
    return (struct recall_sample){ .params = { .k = k }, .sequence = sequence, .rows = rows, .count = count };
}

static void check(struct recall_sample s, const struct recall_row *exact, uint32_t count, uint32_t found,
        uint32_t sought)
{
    uint32_t f = 99, n = 99;
    recall_sample_compare(&s, exact, count, &f, &n);
    ck_assert_uint_eq(n, sought);
    ck_assert_uint_eq(f, found);
}

START_TEST(rows_of_the_same_view_are_compared_by_distance)
{
    struct recall_row exact[] = { row(1, 5, 1), row(2, 5, 2), row(3, 5, 3) };
    struct recall_row all[] = { row(1, 5, 1), row(2, 5, 2), row(3, 5, 3) };
    struct recall_row lost[] = { row(1, 5, 1), row(3, 5, 3), row(4, 5, 4) };
    struct recall_row tie[] = { row(1, 5, 1), row(2, 5, 2), row(9, 5, 3.00001f) };
    check(sample_of(all, 3, 3, 9), exact, 3, 3, 3);
    check(sample_of(lost, 3, 3, 9), exact, 3, 2, 3);
    check(sample_of(tie, 3, 3, 9), exact, 3, 3, 3); /* as near as the third: as good */
    check(sample_of(lost, 1, 3, 9), exact, 3, 1, 3);
    check(sample_of(all, 3, 3, 9), exact, 0, 0, 0);
    struct recall_row ip[] = { row(1, 5, -9), row(2, 5, -3) },
                      ip_tie[] = { row(1, 5, -9), row(7, 5, -2.99999f) };
    check(sample_of(ip_tie, 2, 2, 9), ip, 2, 2, 2); /* negative distances have ties too */
}
END_TEST

START_TEST(what_was_written_since_is_not_sought)
{
    struct recall_row exact[] = { row(8, 12, 0.5f), row(1, 5, 1), row(2, 5, 2) };
    struct recall_row hits[] = { row(1, 5, 1), row(2, 5, 2), row(3, 5, 3) };
    check(sample_of(hits, 3, 3, 9), exact, 3, 2, 2);
    struct recall_row fresh[] = { row(8, 12, 0.5f), row(9, 13, 0.6f) };
    check(sample_of(hits, 3, 3, 9), fresh, 2, 0, 0); /* nothing of then is left to compare */
}
END_TEST

START_TEST(what_died_since_is_no_hit_and_leaves_less_to_seek)
{
    /* 1 died, so 4 moved up among the three nearest: the search, asked for three, could not know it. */
    struct recall_row exact[] = { row(2, 5, 2), row(3, 5, 3), row(4, 5, 4) };
    struct recall_row hits[] = { row(1, 5, 1), row(2, 5, 2), row(3, 5, 3) };
    check(sample_of(hits, 3, 3, 9), exact, 3, 2, 2);
    struct recall_row missed[] = { row(1, 5, 1), row(3, 5, 3), row(4, 5, 4) };
    check(sample_of(missed, 3, 3, 9), exact, 3, 1, 2);
    /* Overwritten: another version is another row. */
    struct recall_row again[] = { row(1, 12, 1), row(2, 5, 2), row(3, 5, 3) };
    check(sample_of(hits, 3, 3, 9), again, 3, 2, 2);
}
END_TEST

START_TEST(every_search_is_kept_as_likely_as_any_other)
{
    struct recall_meter meter;
    static uint32_t kept[1000];
    memset(kept, 0, sizeof kept);
    recall_meter_init(&meter, 11);
    for (uint32_t round = 0; round < 400; round++) {
        uint32_t slots[RECALL_SAMPLES_MAX];
        struct recall_sample *samples[RECALL_SAMPLES_MAX];
        for (uint32_t i = 0; i < 1000; i++) {
            uint32_t slot = recall_meter_slot(&meter);
            if (slot < RECALL_SAMPLES_MAX) slots[slot] = i;
        }
        ck_assert_uint_eq(recall_meter_kept(&meter), RECALL_SAMPLES_MAX);
        for (uint32_t i = 0; i < RECALL_SAMPLES_MAX; i++) kept[slots[i]]++;
        ck_assert_uint_eq(recall_meter_take(&meter, samples),
                0); /* slots were given, nothing was put there */
    }
    for (uint32_t part = 0; part < 10; part++) { /* 2560 expected of each tenth, sd about 49 */
        uint32_t sum = 0;
        for (uint32_t i = 0; i < 100; i++) sum += kept[100 * part + i];
        ck_assert_msg(sum > 2300 && sum < 2820, "tenth %u: %u", part, sum);
    }
    recall_meter_fini(&meter);
}
END_TEST

START_TEST(a_kept_search_owns_what_it_needs)
{
    struct recall_meter meter;
    struct recall_sample *samples[RECALL_SAMPLES_MAX];
    float query[4] = { 1, 2, 3, 4 };
    struct hit hits[2] = { { .distance = 1, .point = { .id = { 0, 7, POINT_ID_U64 }, .version = 3 } },
        { .distance = 2, .point = { .id = { 0, 8, POINT_ID_U64 }, .version = 4 } } };
    struct search_params params = { .query = query, .k = 2 };
    recall_meter_init(&meter, 1);
    recall_meter_keep(&meter, recall_meter_slot(&meter), &params, 4, hits, 2, 50, 60, 1);
    params.k = RECALL_K_MAX + 1;
    recall_meter_keep(&meter, 1, &params, 4, hits, 2, 50, 60, 1); /* too many: not kept */
    query[0] = 99;
    ck_assert_uint_eq(recall_meter_take(&meter, samples), 1);
    ck_assert(samples[0]->params.query[0] == 1 && samples[0]->params.exact);
    ck_assert_uint_eq(samples[0]->sequence, 50);
    ck_assert_uint_eq(samples[0]->boost, 1);
    ck_assert_uint_eq(samples[0]->rows[1].version, 4);
    recall_sample_free(samples[0]);
    recall_meter_fini(&meter);
}
END_TEST

/* ---- the loop ---- */

#define TARGET 0.95f
#define K 10u

/* An index: misses `wrong` times what its calibration says. */
struct world {
    struct recall_meter meter;
    uint64_t rng, now_ns, segments;
    double wrong;
    uint32_t renewals;
};

static double draw(struct world *w)
{
    w->rng = w->rng * 6364136223846793005ull + 1442695040888963407ull;
    return (double)(w->rng >> 11) / 9007199254740992.0;
}

static double given(const struct world *w)
{
    uint32_t effort, boost = atomic_load(&w->meter.boost);
    double missed = w->wrong * (1 - (double)recall_meter_ask(TARGET, boost, &effort));
    return missed < 1 ? 1 - missed : 0;
}

/* One batch of live searches, compared. */
static struct recall_verdict batch(struct world *w)
{
    struct recall_counts counts = { 0 };
    double recall = given(w);
    for (uint32_t i = 0; i < RECALL_SAMPLES_MAX; i++) {
        uint32_t found = 0;
        for (uint32_t j = 0; j < K; j++) found += draw(w) < recall;
        recall_counts_take(&counts, found, K);
    }
    w->now_ns += 1000000000ull;
    struct recall_verdict v = recall_meter_told(&w->meter, &counts, TARGET, w->segments, w->now_ns);
    w->renewals += v.renew;
    return v;
}

START_TEST(recall_that_fell_is_brought_back_and_effort_given_back_when_it_is_not_needed)
{
    const char *seed = getenv("OMEN_SEED");
    struct world w = { .rng = seed != NULL ? strtoull(seed, NULL, 10) : (uint64_t)_i + 1, .wrong = 0.9 };
    printf("seed %llu\n", (unsigned long long)w.rng);
    recall_meter_init(&w.meter, w.rng);
    for (uint32_t i = 0; i < 40; i++) ck_assert_int_ne(batch(&w).step, RECALL_RAISE);
    ck_assert_uint_eq(atomic_load(&w.meter.boost), 0);

    w.wrong = 6; /* queries of another kind: 0.70 */
    ck_assert(given(&w) < 0.71);
    for (uint32_t i = 0; i < 20; i++) (void)batch(&w);
    ck_assert_msg(given(&w) >= 0.94, "still %.3f", given(&w));
    ck_assert_uint_eq(w.renewals, 1); /* and no second one so soon */
    struct recall_counts counts;
    uint64_t compared;
    recall_meter_read(&w.meter, &counts, &compared);
    ck_assert_uint_gt(counts.searches, 0);
    ck_assert_uint_eq(compared, 60u * RECALL_SAMPLES_MAX);

    w.segments++; /* built anew, calibrated on what is there */
    w.wrong = 0.9;
    for (uint32_t i = 0; i < 600; i++) (void)batch(&w);
    ck_assert_uint_eq(atomic_load(&w.meter.boost), 0);
    recall_meter_fini(&w.meter);
}
END_TEST

START_TEST(effort_does_not_swing_for_ever)
{
    struct world w = { .rng = 5, .wrong = 1.6 }; /* one step is needed, and is enough */
    recall_meter_init(&w.meter, 5);
    uint32_t steps = 0;
    for (uint32_t i = 0; i < 4000; i++) steps += batch(&w).step != RECALL_STAY; /* more than an hour */
    ck_assert_msg(steps < 24, "%u steps", steps);
    recall_meter_fini(&w.meter);
}
END_TEST

START_TEST(an_index_that_cannot_do_it_is_asked_for_all_and_not_rebuilt_all_the_time)
{
    struct world w = { .rng = 5, .wrong = 1e6 };
    recall_meter_init(&w.meter, 5);
    for (uint32_t i = 0; i < 4000; i++) (void)batch(&w);
    ck_assert_uint_eq(atomic_load(&w.meter.boost), RECALL_BOOST_MAX);
    ck_assert_uint_le(w.renewals, 2);
    recall_meter_fini(&w.meter);
}
END_TEST

START_TEST(more_effort_is_more_recall_asked_then_wider_walks)
{
    uint32_t effort = 9;
    ck_assert(recall_meter_ask(1, RECALL_BOOST_MAX, &effort) == 1 && effort == 0);
    ck_assert(recall_meter_ask(0.95f, 0, &effort) == 0.95f && effort == 0);
    float half = recall_meter_ask(0.9f, 1, &effort);
    ck_assert(half > 0.949f && half < 0.951f && effort == 0);
    ck_assert(recall_meter_ask(0.5f, 99, &effort) < 1);
    for (uint32_t boost = RECALL_BOOST_WIDE, wide = RECALL_WIDE_FIRST; boost < RECALL_BOOST_MAX;
            boost++, wide *= 2) {
        (void)recall_meter_ask(0.9f, boost, &effort);
        ck_assert_uint_eq(effort, wide);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("recall_meter");
    TCase *tc = tcase_create("recall_meter");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, rows_of_the_same_view_are_compared_by_distance);
    tcase_add_test(tc, what_was_written_since_is_not_sought);
    tcase_add_test(tc, what_died_since_is_no_hit_and_leaves_less_to_seek);
    tcase_add_test(tc, every_search_is_kept_as_likely_as_any_other);
    tcase_add_test(tc, a_kept_search_owns_what_it_needs);
    tcase_add_loop_test(tc, recall_that_fell_is_brought_back_and_effort_given_back_when_it_is_not_needed, 0,
            5);
    tcase_add_test(tc, effort_does_not_swing_for_ever);
    tcase_add_test(tc, an_index_that_cannot_do_it_is_asked_for_all_and_not_rebuilt_all_the_time);
    tcase_add_test(tc, more_effort_is_more_recall_asked_then_wider_walks);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
