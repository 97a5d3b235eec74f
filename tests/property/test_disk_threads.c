/* Several readers of one opened disk graph, whose cache is far too small for them: each gets the answers that a
 * reader alone gets. Meant for `make tsan`; checked in every flavour. */
#include <check.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "storage/index/disk.h"
#include "tests/support/vfs_sim.h"

#define ROWS 2500
#define DIM 20
#define QUERIES 200
#define READERS 4
#define K 5

struct shared {
    float *data;
    struct index *index;
    struct index_hit expected[QUERIES][K];
};

struct reader {
    pthread_t thread;
    struct shared *shared;
    uint32_t first, wrong;
    uint64_t blocks, blocks_read;
};

static uint64_t mix(uint64_t v)
{
    v = (v ^ (v >> 30)) * 0xbf58476d1ce4e5b9u;
    v = (v ^ (v >> 27)) * 0x94d049bb133111ebu;
    return v ^ (v >> 31);
}

static void query_run(struct shared *shared, struct index_scratch *scratch, uint32_t q,
        struct index_hit *hits, struct index_cost *cost)
{
    struct index_search search = { .query = shared->data + (size_t)(q * 7 % ROWS) * DIM,
        .k = K,
        .effort = 20 };
    uint32_t count;
    ck_assert_int_eq(index_search(shared->index, &search, scratch, hits, &count, cost), OMEN_OK);
    ck_assert_uint_eq(count, K);
}

static void *reader_run(void *arg)
{
    struct reader *reader = arg;
    struct index_scratch *scratch = index_scratch_new(reader->shared->index);
    struct index_cost cost = { 0 };
    for (uint32_t i = 0; i < QUERIES; i++) {
        uint32_t q = (i + reader->first) % QUERIES;
        struct index_hit hits[K];
        query_run(reader->shared, scratch, q, hits, &cost);
        reader->wrong += memcmp(hits, reader->shared->expected[q], sizeof hits) != 0;
    }
    reader->blocks = cost.blocks;
    reader->blocks_read = cost.blocks_read;
    index_scratch_free(reader->shared->index, scratch);
    return NULL;
}

START_TEST(readers_share_a_small_cache)
{
    static struct shared shared;
    struct err err;
    struct index *built;
    struct reader readers[READERS];
    shared.data = mem_must_alloc((size_t)ROWS * DIM * sizeof(float));
    for (size_t i = 0; i < (size_t)ROWS * DIM; i++)
        shared.data[i] = (float)(mix(i / DIM % 25 * DIM + i % DIM) % 1000) + (float)(mix(i + 99) % 200);
    struct index_rows rows = { shared.data, DIM, ROWS, DIM, METRIC_L2 };
    struct vfs_sim *sim = vfs_sim_new(3);
    ck_assert_int_eq(index_build(INDEX_DISK, &rows, NULL, NULL, &built, &err), OMEN_OK);
    ck_assert_int_eq(index_save(built, vfs_sim_vfs(sim), "/graph", &err), OMEN_OK);
    index_free(built);
    ck_assert_int_eq(index_map(vfs_sim_vfs(sim), "/graph", &rows, false, &shared.index, &err), OMEN_OK);
    ck_assert_int_eq(disk_cache_set(shared.index, 16 * 8 * 4096), OMEN_OK);
    struct index_scratch *scratch = index_scratch_new(shared.index);
    for (uint32_t q = 0; q < QUERIES; q++) query_run(&shared, scratch, q, shared.expected[q], NULL);
    index_scratch_free(shared.index, scratch);
    for (uint32_t i = 0; i < READERS; i++) {
        readers[i] = (struct reader){ .shared = &shared, .first = i * QUERIES / READERS };
        ck_assert_int_eq(pthread_create(&readers[i].thread, NULL, reader_run, &readers[i]), 0);
    }
    for (uint32_t i = 0; i < READERS; i++) {
        pthread_join(readers[i].thread, NULL);
        ck_assert_uint_eq(readers[i].wrong, 0);
        ck_assert_uint_gt(readers[i].blocks_read, 0);
        ck_assert_uint_lt(readers[i].blocks_read, readers[i].blocks);
    }
    index_free(shared.index);
    vfs_sim_free(sim);
    mem_free(shared.data);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("disk_threads");
    TCase *tc = tcase_create("disk_threads");
    tcase_set_timeout(tc, 300);
    tcase_add_test(tc, readers_share_a_small_cache);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
