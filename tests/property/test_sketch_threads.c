/* Readers of the tail sketch beside its writer: a row is found as soon as it is counted, distances are those of
 * whole rows, and nothing newer than what the reader asked for comes back. Meant for `make tsan`; checked in
 * every flavour. */
#include <check.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/mem.h"
#include "storage/index/sketch.h"
#include "storage/kernel/kernel.h"

#define ROWS 12000 /* passes two changes of generation */
#define DIM 24
#define CENTRES 40
#define READERS 3

struct shared {
    float *data; /* [ROWS][DIM] written row by row before the row is added */
    struct sketch *sketch;
    _Atomic bool done;
    _Atomic uint64_t searches, missed;
    /* Counted once: a writer that does not get to run is asked for one row only. */
    _Atomic bool not_found[ROWS];
};

static uint64_t mix(uint64_t v)
{
    v = (v ^ (v >> 30)) * 0xbf58476d1ce4e5b9u;
    v = (v ^ (v >> 27)) * 0x94d049bb133111ebu;
    return v ^ (v >> 31);
}

static const float *row_at(void *arg, uint32_t slot)
{
    struct shared *shared = arg;
    return shared->data + (size_t)slot * DIM;
}

static void *writer_run(void *arg)
{
    struct shared *shared = arg;
    for (uint32_t i = 0; i < ROWS; i++) {
        float *row = shared->data + (size_t)i * DIM;
        uint32_t slot;
        for (uint32_t j = 0; j < DIM; j++)
            row[j] = (float)(mix(mix(i) % CENTRES * DIM + j) % 1000) + (float)(mix(i * DIM + j + 7) % 300);
        if (sketch_add(shared->sketch, row, &slot, NULL) != OMEN_OK || slot != i) abort();
    }
    atomic_store(&shared->done, true);
    return NULL;
}

/* False when there is nothing to search yet. */
static bool search_one(struct shared *shared, struct sketch_scratch *scratch, uint64_t number)
{
    uint32_t count = sketch_count(shared->sketch), found;
    if (count == 0) return false;
    uint32_t slot = number % 2 == 0 ? count - 1 : (uint32_t)(mix(number) % count);
    struct index_hit hits[10];
    struct sketch_search search = { .base = { .query = row_at(shared, slot), .k = 10, .effort = 300 },
        .slot_end = slot + 1 };
    ck_assert_int_eq(sketch_search(shared->sketch, &search, scratch, hits, &found, NULL), OMEN_OK);
    ck_assert_uint_eq(found, slot + 1 < 10 ? slot + 1 : 10);
    for (uint32_t i = 0; i < found; i++) {
        ck_assert_uint_le(hits[i].slot, slot);
        ck_assert(hits[i].distance ==
                kernel_get()->l2sq_f32(row_at(shared, slot), row_at(shared, hits[i].slot), DIM));
    }
    atomic_fetch_add(&shared->searches, 1);
    if (hits[0].slot != slot && !atomic_exchange(&shared->not_found[slot], true))
        atomic_fetch_add(&shared->missed, 1);
    return true;
}

static void *reader_run(void *arg)
{
    struct shared *shared = arg;
    struct sketch_scratch *scratch = sketch_scratch_new(shared->sketch);
    for (uint64_t i = 0, searched = 0; !atomic_load(&shared->done) || searched < 200; i++)
        searched += search_one(shared, scratch, i);
    sketch_scratch_free(scratch);
    return NULL;
}

START_TEST(rows_are_found_whole_as_soon_as_they_are_counted)
{
    static struct shared shared;
    shared.data = mem_must_calloc((size_t)ROWS * DIM, sizeof(float));
    struct sketch_params params = { .dim = DIM, .metric = METRIC_L2, .row = row_at, .row_arg = &shared };
    pthread_t writer, readers[READERS];
    ck_assert_int_eq(sketch_new(&params, &shared.sketch, NULL), OMEN_OK);
    ck_assert_int_eq(pthread_create(&writer, NULL, writer_run, &shared), 0);
    for (int i = 0; i < READERS; i++)
        ck_assert_int_eq(pthread_create(&readers[i], NULL, reader_run, &shared), 0);
    for (int i = 0; i < 5 && !atomic_load(&shared.done); i++)
        ck_assert_int_eq(sketch_calibrate(shared.sketch, NULL, NULL, NULL), OMEN_OK);
    pthread_join(writer, NULL);
    for (int i = 0; i < READERS; i++) pthread_join(readers[i], NULL);
    printf("%llu searches, %llu rows missed themselves\n", (unsigned long long)shared.searches,
            (unsigned long long)shared.missed);
    ck_assert_uint_ge(shared.searches, READERS * 200);
    /* The sketch is an estimate: one of 12,000 in a quiet run. */
    ck_assert_uint_le(shared.missed, ROWS / 1000);
    sketch_free(shared.sketch);
    mem_free(shared.data);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("sketch_threads");
    TCase *tc = tcase_create("sketch_threads");
    tcase_set_timeout(tc, 300);
    tcase_add_test(tc, rows_are_found_whole_as_soon_as_they_are_counted);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
