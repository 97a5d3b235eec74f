/* Who may lead by its clock, against true clocks in a simulated time: trips as slow and as lopsided as they like,
 * clocks that drift and step, leaders that change. Whoever is called off is off; who is far off is found out; and what is
 * not known wrongs nobody. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "node/member/clock_skew.h"

#define MS 1000000ll
#define S (1000 * MS)
#define NODES_MAX 7u
#define TICK (100 * MS)

static uint64_t rng_state;

static uint64_t rng(uint64_t n) /* 0..n-1 */
{
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (rng_state >> 33) % n;
}

static int64_t rng_between(int64_t low, int64_t high)
{
    return low + (int64_t)rng((uint64_t)(high - low) + 1);
}

static void seed_take(void)
{
    const char *given = getenv("OMEN_TEST_SEED");
    rng_state = given != NULL ? strtoull(given, NULL, 10) : (uint64_t)time(NULL);
    printf("seed %llu\n", (unsigned long long)rng_state);
}

/* ---- a world ---- */

struct sim_node {
    int64_t wall_at_zero, mono_at_zero; /* ns, at true time 0 */
    int64_t ppm;                        /* both clocks are fast by so much */
    struct clock_watch watch;
    uint64_t life;
    int64_t next_report;   /* true time; 0 = one is under way */
    int64_t arrives, back; /* of the report under way, true time; arrives 0 = taken */
    uint64_t began_mono;
    /* as it was sent, and as it was answered */
    bool sent_known, told;
    struct clock_span sent, skew;
    uint64_t sent_life, answer_life, answer_mono;
    uint32_t sent_leader, answer_leader;
    /* at the leader */
    bool counts;
    struct clock_span offset;
    uint64_t offset_life;
    uint32_t offset_leader;
    int64_t heard;
};

struct world {
    struct sim_node nodes[NODES_MAX];
    uint32_t count, leader;
    int64_t now, trip_max; /* of a trip each way */
    int64_t odd_trip_max;  /* of one in four */
};

static int64_t clock_at(int64_t at_zero, int64_t ppm, int64_t now)
{
    return at_zero + now + now / 1000000 * ppm;
}
static int64_t wall_of(const struct world *w, uint32_t i)
{
    return clock_at(w->nodes[i].wall_at_zero, w->nodes[i].ppm, w->now);
}
static uint64_t mono_of(const struct world *w, uint32_t i)
{
    return (uint64_t)clock_at(w->nodes[i].mono_at_zero, w->nodes[i].ppm, w->now);
}

static int compare(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* How far a node truly is off the nearest of what may be called the median. */
static int64_t true_skew(const struct world *w, uint32_t node)
{
    int64_t walls[NODES_MAX];
    for (uint32_t i = 0; i < w->count; i++) walls[i] = wall_of(w, i);
    qsort(walls, w->count, sizeof *walls, compare);
    int64_t mine = wall_of(w, node), low = walls[(w->count - 1) / 2], high = walls[w->count / 2];
    return mine > high ? mine - high : mine < low ? low - mine : 0;
}

static void world_begin(struct world *w, uint32_t count, int64_t spread, int64_t trip_max,
        int64_t odd_trip_max)
{
    *w = (struct world){ .count = count, .trip_max = trip_max, .odd_trip_max = odd_trip_max };
    for (uint32_t i = 0; i < count; i++)
        w->nodes[i] = (struct sim_node){ .wall_at_zero = 1790000000 * S + rng_between(-spread, spread),
            .mono_at_zero = rng_between(S, 1000000 * S),
            .ppm = rng_between(-450, 450),
            .life = 1 + i,
            .next_report = rng_between(1, S) };
}

static bool node_look(struct world *w, uint32_t i)
{
    struct sim_node *n = &w->nodes[i];
    uint64_t mono = mono_of(w, i), slow = rng(20) == 0 ? rng(40 * (uint64_t)MS) : rng(1000);
    bool stepped = clock_watch_read(&n->watch, mono, (uint64_t)(wall_of(w, i) / MS), mono + slow);
    if (stepped) n->life += 1000;
    return stepped;
}

static void leader_answers(struct world *w, uint32_t i)
{
    struct sim_node *n = &w->nodes[i], *leader = &w->nodes[w->leader];
    struct clock_span offsets[NODES_MAX], median;
    n->counts = n->sent_known;
    n->offset = n->sent;
    n->offset_life = n->sent_life;
    n->offset_leader = n->sent_leader;
    n->heard = w->now;
    n->told = false;
    for (uint32_t k = 0; k < w->count; k++) {
        struct sim_node *o = &w->nodes[k];
        bool good = o->counts && o->offset_life == leader->life && o->offset_leader == w->leader + 1 &&
                w->now - o->heard <= (int64_t)CLOCK_FRESH_NS;
        offsets[k] = good ? o->offset : CLOCK_ANYTHING;
    }
    if (offsets[i].low_ns > -CLOCK_FAR_NS && clock_median(offsets, w->count, &median)) {
        n->skew = clock_skew(n->offset, median);
        n->told = n->skew.low_ns > -CLOCK_FAR_NS && n->skew.high_ns < CLOCK_FAR_NS;
    }
    n->answer_life = leader->life;
    n->answer_leader = w->leader + 1;
    n->answer_mono = mono_of(w, w->leader);
}

/* True: the node has just concluded that it is off. */
static bool node_step(struct world *w, uint32_t i)
{
    struct sim_node *n = &w->nodes[i];
    bool called = false;
    (void)node_look(w, i);
    if (n->next_report != 0 && w->now >= n->next_report) {
        int64_t max = rng(4) == 0 ? w->odd_trip_max : w->trip_max;
        if (i == w->leader) max = MS / 10;
        n->next_report = 0;
        n->sent_known = clock_watch_offset(&n->watch, mono_of(w, i), &n->sent);
        n->sent_life = n->watch.leader_life;
        n->sent_leader = n->watch.leader;
        n->began_mono = mono_of(w, i);
        n->arrives = w->now + rng_between(0, max);
        n->back = n->arrives + (rng(2) == 0 ? 0 : rng_between(0, max)); /* all of it on one way, often */
    }
    if (n->arrives != 0 && w->now >= n->arrives) {
        leader_answers(w, i);
        n->arrives = 0;
    }
    if (n->next_report == 0 && n->arrives == 0 && w->now >= n->back) {
        if (!node_look(w, i)) {
            clock_watch_trip(&n->watch, n->answer_leader, n->answer_life, n->began_mono, mono_of(w, i),
                    n->answer_mono);
            if (n->told && clock_watch_told(&n->watch, mono_of(w, i), n->skew)) called = n->watch.off;
        }
        n->next_report = w->now + S;
    }
    return called;
}

/* In steps so fine that short trips are seen as short. */
static void pass(struct world *w) { w->now += rng_between(1, 2 * MS); }

/* ---- promises ---- */

START_TEST(two_nodes_have_no_median)
{
    struct clock_span offsets[] = { { 0, 0 }, { 9 * S, 9 * S }, CLOCK_ANYTHING, CLOCK_ANYTHING }, median;
    ck_assert(!clock_median(offsets, 0, &median));
    ck_assert(!clock_median(offsets, 2, &median));
    ck_assert(!clock_median(offsets, 4, &median));
}
END_TEST

START_TEST(what_is_not_known_may_be_anywhere)
{
    struct clock_span median,
            offsets[] = { { -MS, MS }, { 0, 2 * MS }, { 9 * S, 9 * S + MS }, CLOCK_ANYTHING, CLOCK_ANYTHING };
    ck_assert(clock_median(offsets, 3, &median));
    ck_assert_int_eq(median.low_ns, 0);
    ck_assert_int_eq(median.high_ns, 2 * MS);
    ck_assert(clock_surely_off(clock_skew(offsets[2], median)));
    ck_assert(clock_median(offsets, 5, &median)); /* the two may be with the one */
    for (int i = 0; i < 3; i++) ck_assert(!clock_surely_off(clock_skew(offsets[i], median)));
    struct clock_span camps[] = { { 0, MS }, { 0, MS }, { 9 * S, 9 * S }, { 9 * S, 9 * S } };
    ck_assert(clock_median(camps, 4, &median)); /* of two camps neither is */
    for (int i = 0; i < 4; i++) ck_assert(!clock_surely_off(clock_skew(camps[i], median)));
}
END_TEST

START_TEST(long_trips_tell_nothing_and_short_ones_last_a_while)
{
    struct clock_watch w = { 0 };
    struct clock_span offset;
    ck_assert(!clock_watch_read(&w, 5 * S, 1000, 5 * S));
    clock_watch_trip(&w, 1, 1, 5 * S, 7 * S, 90 * S);
    ck_assert(!clock_watch_offset(&w, 7 * S, &offset));
    clock_watch_trip(&w, 1, 1, 8 * S, 8 * S + 10 * MS, 92 * S);
    ck_assert(clock_watch_offset(&w, 9 * S, &offset));
    ck_assert_int_lt(offset.high_ns - offset.low_ns, 20 * MS);
    clock_watch_trip(&w, 1, 1, 9 * S, 11 * S, 94 * S); /* holds the other: takes nothing away */
    ck_assert(clock_watch_offset(&w, 11 * S, &offset));
    ck_assert(!clock_watch_offset(&w, 200 * S, &offset)); /* drift may have been anything by now */
    clock_watch_trip(&w, 1, 1, 12 * S, 14 * S, 110 * S);  /* one of the machines was stopped */
    ck_assert(!clock_watch_offset(&w, 14 * S, &offset));
    clock_watch_trip(&w, 1, 2, 15 * S, 15 * S + MS, 3 * S); /* another life of that clock */
    ck_assert(clock_watch_offset(&w, 16 * S, &offset));
    ck_assert(clock_watch_read(&w, 16 * S, 14000, 16 * S)); /* ours has stepped */
    ck_assert(!clock_watch_offset(&w, 16 * S, &offset));
    clock_watch_trip(&w, 1, 2, 17 * S, 17 * S + MS, INT64_MAX); /* not of a clock that is well */
    ck_assert(!clock_watch_offset(&w, 17 * S, &offset));
}
END_TEST

START_TEST(only_what_is_said_for_a_while_on_end_counts)
{
    struct clock_watch w = { 0 };
    const struct clock_span off = { 600 * MS, 700 * MS }, near = { 300 * MS, 490 * MS },
                            right = { -5 * MS, 5 * MS };
    uint64_t now = S;
    for (int i = 0; i < 3; i++) ck_assert(!clock_watch_told(&w, now += S, off));
    ck_assert(!clock_watch_told(&w, now += S, near));
    for (int i = 0; i < 4; i++) ck_assert(!clock_watch_told(&w, now += S, off));
    now += 2 * CLOCK_FRESH_NS; /* nothing was heard for long */
    for (int i = 0; i < 4; i++) ck_assert(!clock_watch_told(&w, now += S, off));
    ck_assert(clock_watch_told(&w, now += S, off));
    ck_assert(w.off);
    for (int i = 0; i < 9; i++)
        ck_assert(!clock_watch_told(&w, now += S, i % 2 == 0 ? right : (struct clock_span){ 0, 501 * MS }));
    for (int i = 0; i < 9; i++)
        ck_assert(!clock_watch_told(&w, now += S, (struct clock_span){ 410 * MS, 420 * MS }));
    for (int i = 0; i < 4; i++) ck_assert(!clock_watch_told(&w, now += S, right));
    ck_assert(clock_watch_told(&w, now += S, right));
    ck_assert(!w.off);
}
END_TEST

/* Clocks that never step: who is called off is more than 500 ms off at that moment, but for what clocks drift in the
 * seconds that it takes. */
START_TEST(a_right_clock_is_never_called_off_whatever_the_trips)
{
    const int64_t drift = 20 * MS;
    uint32_t called = 0;
    seed_take();
    for (int round = 0; round < 60; round++) {
        struct world w;
        world_begin(&w, 3 + (uint32_t)rng(5), rng_between(0, 1500) * MS, rng_between(0, 2000) * MS,
                rng_between(0, 2000) * MS);
        while (w.now < 60 * S) {
            if (rng(20000) == 0) w.leader = (uint32_t)rng(w.count);
            for (uint32_t i = 0; i < w.count; i++) {
                if (!node_step(&w, i)) continue;
                called++;
                ck_assert_int_gt(true_skew(&w, i), CLOCK_SKEW_NS_MAX - drift);
            }
            pass(&w);
        }
    }
    ck_assert_uint_gt(called, 0); /* else this has shown nothing */
}
END_TEST

/* With clocks that step: nobody is called off who was right for the last eight seconds. */
START_TEST(steps_wrong_nobody_for_long)
{
    const int64_t drift = 20 * MS, grace = 8 * S;
    uint32_t called = 0;
    seed_take();
    for (int round = 0; round < 60; round++) {
        struct world w;
        int64_t off_at[NODES_MAX] = { 0 };
        world_begin(&w, 3 + (uint32_t)rng(5), rng_between(0, 600) * MS, rng_between(0, 100) * MS,
                rng_between(0, 2000) * MS);
        while (w.now < 60 * S) {
            if (rng(6000) == 0) w.nodes[rng(w.count)].wall_at_zero += rng_between(-2000, 2000) * MS;
            for (uint32_t i = 0; i < w.count; i++)
                if (true_skew(&w, i) > CLOCK_SKEW_NS_MAX - drift) off_at[i] = w.now;
            for (uint32_t i = 0; i < w.count; i++) {
                if (!node_step(&w, i)) continue;
                called++;
                ck_assert_int_ne(off_at[i], 0);
                ck_assert_int_le(w.now - off_at[i], grace);
            }
            pass(&w);
        }
    }
    ck_assert_uint_gt(called, 0);
}
END_TEST

START_TEST(a_clock_far_off_is_called_off_and_comes_back_when_set)
{
    const int64_t soon = 12 * S;
    seed_take();
    for (int round = 0; round < 60; round++) {
        struct world w;
        world_begin(&w, 3 + (uint32_t)rng(5), 20 * MS, rng_between(0, 50) * MS, rng_between(0, 50) * MS);
        uint32_t bad = (uint32_t)rng(w.count); /* the leader of the cluster group, at times */
        int64_t by = (rng(2) == 0 ? 1 : -1) * rng_between(1100, 100000) * MS;
        for (int phase = 0; phase < 4; phase++) {
            bool off = phase % 2 == 1; /* it begins right */
            int64_t until = w.now + soon;
            if (phase > 0) w.nodes[bad].wall_at_zero += off ? by : -by;
            while (w.now < until) {
                for (uint32_t i = 0; i < w.count; i++)
                    if (node_step(&w, i)) ck_assert(off && i == bad);
                pass(&w);
            }
            for (uint32_t i = 0; i < w.count; i++) ck_assert_int_eq(w.nodes[i].watch.off, off && i == bad);
        }
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("clock_skew");
    TCase *tc = tcase_create("clocks");
    tcase_set_timeout(tc, 300);
    tcase_add_test(tc, two_nodes_have_no_median);
    tcase_add_test(tc, what_is_not_known_may_be_anywhere);
    tcase_add_test(tc, long_trips_tell_nothing_and_short_ones_last_a_while);
    tcase_add_test(tc, only_what_is_said_for_a_while_on_end_counts);
    tcase_add_test(tc, a_right_clock_is_never_called_off_whatever_the_trips);
    tcase_add_test(tc, steps_wrong_nobody_for_long);
    tcase_add_test(tc, a_clock_far_off_is_called_off_and_comes_back_when_set);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}
