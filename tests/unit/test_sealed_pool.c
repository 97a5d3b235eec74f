/* Candidates of a walk: whatever comes in whatever order, the nearest leaves first, and none within the limit is
 * lost while there is room. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "storage/index/sealed_pool.h"

static uint64_t rng_state;

static uint64_t rng(void)
{
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    rng_state ^= rng_state << 17;
    return rng_state;
}

static void setup_seed(uint64_t seed)
{
    rng_state = seed;
    printf("seed %llu\n", (unsigned long long)seed);
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

START_TEST(the_least_keys_come_first_in_order)
{
    setup_seed(91);
    for (uint32_t count = 0; count < 400; count += count < 40 ? 1 : 17) {
        for (uint32_t kind = 0; kind < 4; kind++) {
            uint64_t keys[400] = { 0 }, sorted[400];
            for (uint32_t i = 0; i < count; i++)
                keys[i] = kind == 0 ? rng() : kind == 1 ? rng() % 5 : kind == 2 ? i : count - i;
            memcpy(sorted, keys, sizeof keys);
            qsort(sorted, count, sizeof *sorted, compare);
            uint32_t want = (uint32_t)(rng() % (count + 3));
            sealed_keys_least(keys, count, want);
            for (uint32_t i = 0; i < want && i < count; i++) ck_assert_uint_eq(keys[i], sorted[i]);
            qsort(keys, count, sizeof *keys, compare);
            ck_assert(memcmp(keys, sorted, count * sizeof *keys) == 0);
        }
    }
}
END_TEST

/* Next one out, or UINT64_MAX; as sealed_walk.c takes it. */
static uint64_t take(struct candidates *c, uint64_t limit)
{
    if (c->count - c->cursor < FRONT_FEW && candidates_behind(c))
        sealed_candidates_move(c, code_kernel_get(), limit);
    return c->cursor < c->count && c->front[c->cursor] < limit ? c->front[c->cursor++] : UINT64_MAX;
}

static void offer(struct candidates *c, const uint64_t *keys, uint32_t n)
{
    uint64_t near[CODE_GROUP + 4];
    uint32_t count = candidates_arrive(c, keys, n, near);
    if (count > 0) candidates_merge(c, code_kernel_get(), near, count);
}

/* Against a plain array from which the least is taken each time. `spread`: how far keys lie apart; `shift`: which of
 * their bits tell, those that buckets go by or lower ones. */
static void run_against_array(uint32_t rounds, uint32_t takes, uint64_t spread, uint32_t shift)
{
    enum { ROOM = 1 << 15 };
    struct candidates *c = mem_must_alloc(sizeof *c);
    uint64_t *memory = mem_must_calloc(candidates_room(ROOM), sizeof *memory),
             *all = mem_must_alloc(ROOM * 8);
    uint32_t count = 2;
    memory[0] = all[0] = 1000ull << shift;
    memory[1] = all[1] = 1001ull << shift;
    candidates_init(c, memory, 2, ROOM);
    uint64_t limit = UINT64_MAX / 2;
    for (uint32_t round = 0; round < rounds; round++) {
        uint64_t keys[CODE_GROUP];
        uint32_t n = (uint32_t)(rng() % (CODE_GROUP + 1));
        for (uint32_t i = 0; i < n; i++)
            all[count++] = keys[i] = (rng() % spread + round * (spread / 64)) << shift;
        offer(c, keys, n);
        if (round % 50 == 49)
            limit = limit < spread << (shift + 3) ? limit - limit / 16 : spread << (shift + 3);
        for (uint32_t t = 0; t < takes; t++) {
            uint32_t least = 0;
            for (uint32_t i = 1; i < count; i++)
                if (all[i] < all[least]) least = i;
            uint64_t expected = count > 0 && all[least] < limit ? all[least] : UINT64_MAX;
            ck_assert_uint_eq(take(c, limit), expected);
            if (expected == UINT64_MAX) break;
            all[least] = all[--count];
        }
    }
    mem_free(c);
    mem_free(memory);
    mem_free(all);
}

START_TEST(candidates_leave_in_order)
{
    setup_seed(92 + (uint64_t)_i);
    run_against_array(500, 1, 1u << 20, 0); /* hard: many come, few are taken */
    run_against_array(500, 14, 1u << 20, 0);
    run_against_array(300, 30, 1u << 20, 0);
    run_against_array(300, 3, 50, 0);                           /* equal ones */
    for (uint32_t shift = 40; shift <= BUCKET_SHIFT; shift++) { /* a bucket each, or some dozens in one */
        run_against_array(200, 1, 1500, shift);
        run_against_array(200, 9, 1500, shift);
    }
}
END_TEST

START_TEST(a_full_memory_keeps_the_nearer_half)
{
    setup_seed(99);
    enum { ROOM = BEHIND_LEAST };
    struct candidates c;
    uint64_t *memory = mem_must_calloc(candidates_room(ROOM), sizeof *memory),
             *all = mem_must_alloc((1 + 4000 * CODE_GROUP) * sizeof *all), before = 0;
    uint32_t count = 1;
    all[0] = memory[0] = 5;
    candidates_init(&c, memory, 1, ROOM);
    for (uint32_t round = 0; round < 4000; round++) {
        uint64_t keys[CODE_GROUP];
        for (uint32_t i = 0; i < CODE_GROUP; i++) all[count++] = keys[i] = rng() >> 8;
        offer(&c, keys, CODE_GROUP);
        ck_assert_uint_le(c.behind_used, ROOM);
        ck_assert_uint_le(c.count, FRONT_MOST);
    }
    qsort(all, count, sizeof *all, compare);
    for (uint32_t i = 0; i < ROOM / 2; i++) { /* what is left is the nearest that there were */
        uint64_t key = take(&c, UINT64_MAX);
        ck_assert_uint_eq(key, all[i]);
        ck_assert(key >= before);
        before = key;
    }
    mem_free(memory);
    mem_free(all);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("sealed pool");
    TCase *tc = tcase_create("sealed pool");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, the_least_keys_come_first_in_order);
    tcase_add_loop_test(tc, candidates_leave_in_order, 0, 3);
    tcase_add_test(tc, a_full_memory_keeps_the_nearer_half);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
