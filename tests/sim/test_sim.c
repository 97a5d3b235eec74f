/* Shards on Raft groups in a simulated world, a seed at a time: what must hold is checked at each step, and that
 * everybody gets on at the end; the same seed gives the same run. tests/sim/README.md says what is real in it and what
 * is not.
 *
 *   make sim SEED=n         one seed, everything that happens in it printed
 *   make sim SEED=n SEEDS=m  that many from n on
 *   OMEN_SEED, OMEN_SEEDS   the same for the test (default: 200 from 1 on) */
#include "common/err.h"

#include <check.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "common/check.h"
#include "tests/sim/sim.h"

#define SEEDS_DEFAULT 200u
#define SAME_SEEDS 6u /* with and without bits that flip, with one group and two */

static char dir[200]; /* in memory where there is such a file system */

/* No real power fails here: what a sync is for is sim_disk.c's. LMDB's go here too. */
int fdatasync(int fd) { return 0; }
int fsync(int fd) { return 0; }

static uint64_t number(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);
    return text != NULL && text[0] != '\0' ? strtoull(text, NULL, 10) : otherwise;
}

static void print_totals(uint64_t count, const struct sim_counts *t, const struct world_counts *wt)
{
    printf("%" PRIu64 " seeds: writes %" PRIu64 " duplicates %" PRIu64 " expired %" PRIu64 " refused %" PRIu64
           " reads %" PRIu64 " (linearizable %" PRIu64 ", searches %" PRIu64 ") segments %" PRIu64
           " compared %" PRIu64 "\n",
            count, t->writes, t->duplicates, t->expired, t->refused, t->reads, t->linearizable, t->searches,
            t->segments, t->compared);
    printf("  elections %" PRIu64 " crashes %" PRIu64 " power cuts within a change %" PRIu64
           " commits undone %" PRIu64 " copies %" PRIu64 " installs %" PRIu64 " changes of members %" PRIu64
           " truncations %" PRIu64 "\n",
            wt->elections, wt->crashes, t->power_cuts, t->undone, t->fetches, wt->installs, wt->changes,
            wt->truncations);
    printf("  bits flipped %" PRIu64 " (of streams %" PRIu64 " LMDB %" PRIu64 " segments %" PRIu64
           " others %" PRIu64 "; %" PRIu64 " in open shards), noticed at open %" PRIu64
           " by the scrubber %" PRIu64 " in apply %" PRIu64 ", replicas replaced %" PRIu64
           " copies refused %" PRIu64 " reads not judged %" PRIu64 "\n",
            t->flips, t->flips_of[FLIP_STREAM], t->flips_of[FLIP_LMDB], t->flips_of[FLIP_SEGMENT],
            t->flips_of[FLIP_SMALL], t->flips_running, t->noticed_open, t->noticed_scrub, t->noticed_apply,
            t->replaced, t->copies_refused, t->unjudged);
    printf("  on full disks: names refused %" PRIu64 " LMDB refused %" PRIu64
           " calls that ended there %" PRIu64 "\n",
            t->names_refused, t->lmdb_refused, t->full_met);
    printf("  copies that failed %" PRIu64 ", gone on with %" PRIu64 "\n", t->copies_failed, t->resumed);
}

START_TEST(shards_keep_what_they_acknowledged)
{
    uint64_t first = number("OMEN_SEED", 1);
    uint64_t count = number("OMEN_SEEDS", getenv("OMEN_SEED") != NULL ? 1 : SEEDS_DEFAULT);
    bool trace = getenv("OMEN_SIM_TRACE") != NULL;
    struct sim_counts t = { 0 };
    struct world_counts wt = { 0 };
    log_configure(trace ? LOG_LEVEL_INFO : LOG_LEVEL_ERROR + 1, LOG_FORMAT_TEXT, 2);
    for (uint64_t seed = first; seed < first + count; seed++) {
        printf("seed %" PRIu64 "\n", seed); /* the last one printed is the one that failed */
        struct sim_options o = { .seed = seed, .dir = dir, .trace = trace };
        uint64_t hash = sim_run(&o, &t, &wt);
        printf("seed %" PRIu64 " hash %016" PRIx64 "\n", seed, hash);
    }
    print_totals(count, &t, &wt);
    if (count < 50) return; /* the storm must be one */
    ck_assert_uint_gt(t.writes, 80 * count);
    ck_assert_uint_gt(t.duplicates, count / 4);
    ck_assert_uint_gt(t.linearizable, count);
    ck_assert_uint_gt(t.searches, 20 * count);
    ck_assert_uint_gt(t.segments, 20 * count);
    ck_assert_uint_gt(wt.elections, count);
    ck_assert_uint_gt(wt.crashes, count);
    ck_assert_uint_gt(wt.installs, count / 4);
    ck_assert_uint_gt(wt.changes, count);
    ck_assert_uint_gt(t.power_cuts, count);
    ck_assert_uint_gt(t.flips, count / 4);
    ck_assert_uint_gt(t.flips_of[FLIP_LMDB], count / 50);
    ck_assert_uint_gt(t.noticed_open, count / 20);
    ck_assert_uint_gt(t.noticed_scrub, count / 20);
    ck_assert_uint_gt(t.replaced, count / 8);
    ck_assert_uint_gt(t.copies_failed, count);
    ck_assert_uint_gt(t.resumed, count / 20);
    ck_assert_uint_gt(t.names_refused, count);
    ck_assert_uint_gt(t.lmdb_refused, count / 4);
    ck_assert_uint_gt(t.full_met, count);
}
END_TEST

START_TEST(a_seed_gives_the_same_run)
{
    struct sim_counts t = { 0 };
    struct world_counts wt = { 0 };
    log_configure(LOG_LEVEL_ERROR + 1, LOG_FORMAT_TEXT, 2);
    uint64_t hash[SAME_SEEDS];
    for (uint64_t i = 0; i < 2 * SAME_SEEDS; i++) {
        const struct sim_options o = { .seed = 7 + i % SAME_SEEDS, .dir = dir };
        uint64_t h = sim_run(&o, &t, &wt);
        if (i >= SAME_SEEDS) ck_assert_uint_eq(h, hash[i % SAME_SEEDS]); /* others came between */
        hash[i % SAME_SEEDS] = h;
    }
}
END_TEST

/* What is broken is found: the process ends in abort. */
START_TEST(a_log_that_lies_about_its_syncs_is_found)
{
    struct sim_counts t = { 0 };
    struct world_counts wt = { 0 };
    log_configure(LOG_LEVEL_ERROR + 1, LOG_FORMAT_TEXT, 2);
    for (uint64_t seed = 1; seed <= 30; seed++) {
        const struct sim_options o = { .seed = seed, .dir = dir, .mutations = { .lying_sync = true } };
        (void)sim_run(&o, &t, &wt);
    }
}
END_TEST

static void dir_make(void)
{
    const char *tmp = getenv("TMPDIR");
    if (access("/dev/shm", W_OK) == 0)
        snprintf(dir, sizeof dir, "/dev/shm/omen-sim-XXXXXX");
    else
        snprintf(dir, sizeof dir, "%.150s/omen-sim-XXXXXX", tmp != NULL ? tmp : "/tmp");
    if (mkdtemp(dir) == NULL) panic("cannot make %s", dir);
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    dir_make();
    Suite *s = suite_create("sim");
    TCase *tc = tcase_create("seeds");
    tcase_set_timeout(tc, 0);
    tcase_add_test(tc, shards_keep_what_they_acknowledged);
    suite_add_tcase(s, tc);
    tc = tcase_create("same");
    tcase_set_timeout(tc, 0);
    tcase_add_test(tc, a_seed_gives_the_same_run);
    suite_add_tcase(s, tc);
    tc = tcase_create("broken");
    tcase_set_timeout(tc, 0);
    tcase_add_test_raise_signal(tc, a_log_that_lies_about_its_syncs_is_found, SIGABRT);
    suite_add_tcase(s, tc);
    SRunner *runner = srunner_create(s);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    (void)!vfs_remove_tree(vfs_posix(), dir, NULL);
    return failed;
}
