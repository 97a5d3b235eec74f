/* How far a build is said to be: forward only, whatever is told, and what is left follows from the time it took. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>

#include "node/index_progress.h"

static struct index_progress progress;
static struct index_work work;

static void setup(void) { index_progress_init(&progress); }
static void teardown(void) { index_progress_fini(&progress); }

static const struct index_work *at(double seconds)
{
    index_progress_read(&progress, 1000 + (uint64_t)(seconds * 1e9), &work);
    return &work;
}

START_TEST(nothing_runs_before_it_tells_of_itself)
{
    ck_assert(!at(1)->running);
    index_progress_begin(&progress, 1000);
    ck_assert(!at(1)->running); /* looks whether there is something to do */
    index_progress_told(&progress, "rows", 0, 5000, 1000);
    ck_assert(at(1)->running);
    ck_assert_uint_eq(work.rows, 5000);
    ck_assert_str_eq(work.phase, "rows");
    ck_assert(work.seconds_left < 0); /* too early */
    index_progress_end(&progress);
    ck_assert(!at(1)->running);
    index_progress_begin(&progress, 1000);
    ck_assert(!at(1)->running);
}
END_TEST

/* The phases of a build as they come, those that come twice included. */
START_TEST(a_build_goes_forward_to_its_end)
{
    static const char *const phases[] = { "rows", "encode", "partition", "multiply", "partition", "multiply",
        "prune", "reverse", "prune again", "rotate", "pack", "refine", "reverse", "prune again", "pack again",
        "truth", "calibrate", "payload" };
    double last = -1;
    index_progress_begin(&progress, 1000);
    for (size_t p = 0; p < sizeof phases / sizeof *phases; p++) {
        double first = last;
        for (uint64_t done = 0; done <= 100; done += 10) {
            index_progress_told(&progress, phases[p], done, 100, 1000);
            ck_assert_msg(at(10)->percent >= last, "%s at %llu falls", phases[p], (unsigned long long)done);
            last = work.percent;
        }
        ck_assert_msg(last > first, "%s is no step forward", phases[p]);
        ck_assert_str_eq(work.phase, phases[p]);
    }
    ck_assert(last > 99 && last <= 100.001);
}
END_TEST

START_TEST(each_segment_of_a_batch_begins_anew)
{
    index_progress_begin(&progress, 1000);
    index_progress_told(&progress, "rows", 0, 5000, 1000);
    index_progress_told(&progress, "payload", 0, 5000, 1000);
    ck_assert(at(9)->percent > 80);
    index_progress_told(&progress, "rows", 0, 70, 1000 + 9000000000u);
    ck_assert(at(10)->percent == 0);
    ck_assert_uint_eq(work.rows, 70);
    ck_assert_double_eq_tol(work.seconds, 1, 1e-6);
}
END_TEST

START_TEST(what_is_left_follows_from_the_time_it_took)
{
    index_progress_begin(&progress, 1000);
    index_progress_told(&progress, "refine", 0, 100, 1000);
    double share = at(0)->percent / 100;
    ck_assert(share > 0.1 && share < 0.9);
    ck_assert_double_eq_tol(at(8)->seconds_left, 8 * (1 - share) / share, 1e-6);
    ck_assert_double_eq_tol(at(8)->seconds, 8, 1e-6);
    ck_assert(at(16)->seconds_left > 15.9 * (1 - share) / share);
}
END_TEST

/* Unknown phases, counts that lie, phases out of their order. */
START_TEST(nonsense_takes_nothing_back)
{
    srand(7);
    static const char *const phases[] = { "pack", "find", "reverse", "payload", "refine", "", "prune again" };
    index_progress_begin(&progress, 1000);
    double last = 0;
    for (int i = 0; i < 2000; i++) {
        uint64_t total = (uint64_t)rand() % 3, done = (uint64_t)rand() % 5;
        index_progress_told(&progress, phases[rand() % 7], done, total, 1000);
        ck_assert(at(1)->percent >= last && work.percent <= 100.001);
        last = work.percent;
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("index_progress");
    TCase *tc = tcase_create("progress");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, nothing_runs_before_it_tells_of_itself);
    tcase_add_test(tc, a_build_goes_forward_to_its_end);
    tcase_add_test(tc, each_segment_of_a_batch_begins_anew);
    tcase_add_test(tc, what_is_left_follows_from_the_time_it_took);
    tcase_add_test(tc, nonsense_takes_nothing_back);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}
