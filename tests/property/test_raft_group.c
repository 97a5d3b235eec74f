/* Raft groups in a simulated world (tests/support/raft_world.h) whose machine counts: replicas agree, terms have one
 * leader, bases hold what they promise, whatever network and disks do. And at the end, when the network is whole and all
 * are up: everything acknowledged is committed at each member, and something new can be written. A seed that acknowledged
 * little has failed too.
 *
 *   OMEN_SEED=n repeats one; OMEN_SEEDS=m runs that many (default 150), from n or 1 on. */
#include "common/err.h"

#include <check.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/bytes.h"
#include "common/log.h"
#include "common/mem.h"
#include "tests/support/raft_world.h"

#define STORM_STEPS 6000u /* 30 s */
#define CALM_STEPS 4000u

static const struct world_machine counter = { 0 };

static uint64_t word;

static void propose(struct world *w)
{
    struct world_replica *leader = world_leader(w, 0);
    if (leader == NULL || !world_chance(w, 200)) return;
    for (uint64_t i = 1 + world_below(w, 4); i > 0; i--) {
        uint32_t len = 8 * (1 + (uint32_t)world_below(w, 20));
        uint8_t *data = mem_must_calloc(1, len);
        store_u64(data, ++word);
        if (world_propose(leader, data, len, (void *)(uintptr_t)word) != OMEN_OK) return;
    }
}

static struct world *storm(uint64_t seed)
{
    struct world *w = world_new(seed, 1, &counter, NULL);
    word = 0;
    w->trace = getenv("OMEN_SIM_TRACE") != NULL;
    world_up(w);
    for (uint32_t i = 0; i < STORM_STEPS; i++) {
        world_step(w, true);
        propose(w);
    }
    return w;
}

static void calm(struct world *w)
{
    uint64_t before = w->counts.acknowledged;
    world_heal(w);
    for (uint32_t i = 0; i < CALM_STEPS; i++) {
        bool enough = w->counts.acknowledged > before + 10;
        world_step(w, false);
        if (!enough) propose(w);
        if (enough && i % 16 == 0 && world_settled(w)) return;
    }
    world_print(w);
    world_fail(w, "no progress in calm: %" PRIu64 " acknowledged in it", w->counts.acknowledged - before);
}

static void run(uint64_t seed, struct world_counts *totals)
{
    struct world *w = storm(seed);
    const struct world_counts *c = &w->counts;
    calm(w);
    for (uint64_t i = 1; i <= w->groups[0].highest_acknowledged; i++) ck_assert(w->groups[0].log[i].set);
    ck_assert_msg(c->acknowledged > 20, "seed %" PRIu64 " acknowledged only %" PRIu64, seed, c->acknowledged);
    totals->acknowledged += c->acknowledged;
    totals->elections += c->elections;
    totals->crashes += c->crashes;
    totals->installs += c->installs;
    totals->changes += c->changes;
    totals->truncations += c->truncations;
    world_free(w);
}

START_TEST(replicas_agree_whatever_happens)
{
    uint64_t first = 1, count = 150;
    struct world_counts totals = { 0 };
    if (getenv("OMEN_SEED") != NULL) {
        first = strtoull(getenv("OMEN_SEED"), NULL, 10);
        count = 1;
    }
    if (getenv("OMEN_SEEDS") != NULL) count = strtoull(getenv("OMEN_SEEDS"), NULL, 10);
    log_configure(count == 1 ? LOG_LEVEL_INFO : LOG_LEVEL_ERROR + 1, LOG_FORMAT_TEXT, 2);
    for (uint64_t seed = first; seed < first + count; seed++) {
        printf("seed %" PRIu64 "\n", seed); /* the last one printed is the one that failed */
        run(seed, &totals);
    }
    printf("%" PRIu64 " seeds: acknowledged %" PRIu64 " elections %" PRIu64 " crashes %" PRIu64
           " installs %" PRIu64 " changes %" PRIu64 " truncations %" PRIu64 "\n",
            count, totals.acknowledged, totals.elections, totals.crashes, totals.installs, totals.changes,
            totals.truncations);
    if (count < 50) return; /* the storm must be one */
    ck_assert_uint_gt(totals.acknowledged, 20 * count);
    ck_assert_uint_gt(totals.elections, count);
    ck_assert_uint_gt(totals.crashes, count);
    ck_assert_uint_gt(totals.installs, count / 4);
    ck_assert_uint_gt(totals.changes, count);
    ck_assert_uint_gt(totals.truncations, count / 4);
}
END_TEST

/* Seeds that once found something: a leader behind a dropped prefix, a stalled follower, an acknowledgement of what was
 * truncated on its way to the disk. */
START_TEST(seeds_that_found_something_pass)
{
    static const uint64_t seeds[] = { 390, 649, 11352, 15320 };
    struct world_counts totals = { 0 };
    log_configure(LOG_LEVEL_ERROR + 1, LOG_FORMAT_TEXT, 2);
    for (size_t i = 0; i < sizeof seeds / sizeof *seeds; i++) {
        printf("seed %" PRIu64 "\n", seeds[i]);
        run(seeds[i], &totals);
    }
}
END_TEST

START_TEST(a_seed_gives_the_same_run)
{
    uint64_t hash[2];
    log_configure(LOG_LEVEL_ERROR + 1, LOG_FORMAT_TEXT, 2);
    for (int i = 0; i < 2; i++) {
        struct world *w = storm(7);
        hash[i] = w->hash;
        world_free(w);
    }
    ck_assert_uint_eq(hash[0], hash[1]);
}
END_TEST

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    Suite *s = suite_create("raft_group");
    TCase *tc = tcase_create("simulation");
    tcase_set_timeout(tc, 1200);
    tcase_add_test(tc, replicas_agree_whatever_happens);
    tcase_add_test(tc, seeds_that_found_something_pass);
    tcase_add_test(tc, a_seed_gives_the_same_run);
    suite_add_tcase(s, tc);
    SRunner *runner = srunner_create(s);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}
