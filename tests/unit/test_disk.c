/* The disk graph: it answers for every shape of data from memory and from its file, never returns what a filter
 * forbids, never fewer than there are, reaches the recall that it was asked for; a file or a page that is not what
 * it wrote is refused by name. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/crc32c.h"
#include "common/mem.h"
#include "storage/index/disk.h"
#include "storage/kernel/kernel.h"
#include "tests/support/vfs_sim.h"

static uint64_t rng_state;
static struct err err;

static void seed_rng(uint64_t seed)
{
    rng_state = seed;
    printf("seed %llu\n", (unsigned long long)seed);
}

static uint64_t rng(void)
{
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    rng_state ^= rng_state << 17;
    return rng_state;
}

static float gauss(void)
{
    float sum = 0;
    for (int i = 0; i < 6; i++) sum += (float)(rng() >> 40) * 0x1p-24f - 0.5f;
    return sum;
}

struct set {
    float *data;
    struct index_rows rows;
    struct index *built, *opened; /* in memory, and from its file */
    struct vfs_sim *sim;
};

static void set_init(struct set *set, uint32_t count, uint32_t dim, enum metric metric)
{
    *set = (struct set){ .data = mem_must_calloc((size_t)count * dim + 1, sizeof(float)) };
    set->rows = (struct index_rows){ set->data, dim, count, dim, metric };
}

/* Points around `centres` random places, of unit spread. */
static void set_fill(struct set *set, uint32_t centres)
{
    uint32_t dim = set->rows.dim;
    float *places = mem_must_alloc((size_t)centres * dim * sizeof(float));
    for (size_t i = 0; i < (size_t)centres * dim; i++) places[i] = 2 * gauss();
    for (uint32_t slot = 0; slot < set->rows.count; slot++) {
        const float *place = places + (size_t)(rng() % centres) * dim;
        float *row = set->data + (size_t)slot * dim;
        for (uint32_t j = 0; j < dim; j++) row[j] = place[j] + gauss();
        if (set->rows.metric == METRIC_COSINE) vector_normalise(row, dim);
    }
    mem_free(places);
}

/* Builds, saves to a simulated disk, opens from there without the rows. */
static void set_build(struct set *set, const struct index_params *params)
{
    struct index_control control = { .threads = 2 };
    struct index_rows bare = set->rows;
    bare.data = NULL;
    ck_assert_msg(index_build(INDEX_DISK, &set->rows, params, &control, &set->built, &err) == OMEN_OK, "%s",
            err.message);
    set->sim = vfs_sim_new(5);
    struct vfs *vfs = vfs_sim_vfs(set->sim);
    ck_assert_msg(index_save(set->built, vfs, "/graph.index", &err) == OMEN_OK, "%s", err.message);
    ck_assert_msg(index_map(vfs, "/graph.index", &bare, false, &set->opened, &err) == OMEN_OK, "%s",
            err.message);
}

static void set_fini(struct set *set)
{
    index_free(set->built);
    index_free(set->opened);
    vfs_sim_free(set->sim);
    mem_free(set->data);
}

static float distance(const struct set *set, const float *query, uint32_t slot)
{
    const float *row = set->data + (size_t)slot * set->rows.dim;
    return set->rows.metric == METRIC_L2 ? kernel_get()->l2sq_f32(query, row, set->rows.dim)
                                         : -kernel_get()->dot_f32(query, row, set->rows.dim);
}

static bool passes(const uint64_t *filter, uint32_t slot)
{
    return filter == NULL || (filter[slot / 64] >> (slot % 64) & 1);
}

static int compare_f32(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Searches both forms: they answer alike; hits are ordered, permitted, as many as there are; share of the true. */
static double search_checked(struct set *set, const struct index_search *search)
{
    uint32_t k = search->k, counts[2], n = 0, near = 0;
    struct index_hit *hits[2] = { mem_must_alloc(k * sizeof(struct index_hit)),
        mem_must_alloc(k * sizeof(struct index_hit)) };
    float *truth = mem_must_alloc((set->rows.count + 1) * sizeof *truth);
    const struct index *indexes[2] = { set->built, set->opened };
    for (int i = 0; i < 2; i++) {
        struct index_scratch *scratch = index_scratch_new(indexes[i]);
        ck_assert_ptr_nonnull(scratch);
        ck_assert_int_eq(index_search(indexes[i], search, scratch, hits[i], &counts[i], NULL), OMEN_OK);
        index_scratch_free(indexes[i], scratch);
    }
    ck_assert_uint_eq(counts[0], counts[1]);
    for (uint32_t slot = 0; slot < set->rows.count; slot++)
        if (passes(search->filter, slot)) truth[n++] = distance(set, search->query, slot);
    qsort(truth, n, sizeof *truth, compare_f32);
    ck_assert_uint_eq(counts[0], n < k ? n : k);
    for (uint32_t i = 0; i < counts[0]; i++) {
        ck_assert_uint_eq(hits[0][i].slot, hits[1][i].slot);
        ck_assert_uint_lt(hits[0][i].slot, set->rows.count);
        ck_assert(passes(search->filter, hits[0][i].slot));
        ck_assert(hits[0][i].distance == distance(set, search->query, hits[0][i].slot));
        if (i > 0)
            ck_assert(hits[0][i - 1].distance < hits[0][i].distance ||
                    (hits[0][i - 1].distance == hits[0][i].distance &&
                            hits[0][i - 1].slot < hits[0][i].slot));
        near += hits[0][i].distance <= truth[counts[0] - 1] + fabsf(truth[counts[0] - 1]) * 1e-5f;
    }
    mem_free(hits[0]);
    mem_free(hits[1]);
    mem_free(truth);
    return counts[0] == 0 ? 1 : (double)near / counts[0];
}

static void query_fill(const struct set *set, float *query)
{
    const float *near = set->data + (size_t)(rng() % set->rows.count) * set->rows.dim;
    for (uint32_t j = 0; j < set->rows.dim; j++) query[j] = near[j] + 0.5f * gauss();
    if (set->rows.metric == METRIC_COSINE) vector_normalise(query, set->rows.dim);
}

START_TEST(few_rows_are_all_found)
{
    static const uint32_t counts[] = { 0, 1, 2, 5, 6, 7, 90 };
    seed_rng(11);
    for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
        struct set set;
        float query[9] = { 0 };
        set_init(&set, counts[c], 9, METRIC_L2);
        set_fill(&set, 3);
        set_build(&set, NULL);
        for (uint32_t k = 1; k <= 2000; k *= 12) {
            if (counts[c] > 0) query_fill(&set, query);
            struct index_search search = { .query = query, .k = k };
            ck_assert(search_checked(&set, &search) == 1);
        }
        set_fini(&set);
    }
}
END_TEST

static const struct {
    uint32_t dim;
    enum metric metric;
    enum index_quant quant;
} shapes[] = { { 1, METRIC_L2, INDEX_QUANT_AUTO }, { 65, METRIC_L2, INDEX_QUANT_AUTO },
    { 128, METRIC_L2, INDEX_QUANT_BINARY }, { 40, METRIC_IP, INDEX_QUANT_AUTO },
    { 96, METRIC_COSINE, INDEX_QUANT_AUTO }, { 64, METRIC_IP, INDEX_QUANT_SCALAR },
    { 30, METRIC_L2, INDEX_QUANT_PRODUCT }, { 30, METRIC_COSINE, INDEX_QUANT_NONE },
    { 1100, METRIC_L2, INDEX_QUANT_AUTO } };

START_TEST(every_dimension_metric_and_code_reaches_its_neighbours)
{
    seed_rng(21 + (uint64_t)_i);
    struct set set;
    struct index_params params = { .quant = shapes[_i].quant, .seed = 3 };
    set_init(&set, shapes[_i].dim > 1000 ? 1500 : 5000, shapes[_i].dim, shapes[_i].metric);
    set_fill(&set, 50);
    set_build(&set, &params);
    float query[1100];
    double recall = 0;
    for (int q = 0; q < 40; q++) {
        query_fill(&set, query);
        struct index_search search = { .query = query, .k = 10, .effort = 160 };
        recall += search_checked(&set, &search) / 40;
    }
    printf("dim %u %s %s: recall %.3f\n", set.rows.dim, metric_name(set.rows.metric),
            index_quant_name(shapes[_i].quant), recall);
    ck_assert(recall >= 0.97);
    set_fini(&set);
}
END_TEST

/* All equal; many copies of few points; norms spread by 1e6; a constant dimension; denormals; ip with norms. */
START_TEST(odd_shapes_of_data_are_answered)
{
    seed_rng(31 + (uint64_t)_i);
    uint32_t dim = 24, count = 4000;
    struct set set;
    set_init(&set, count, dim, _i == 5 ? METRIC_IP : METRIC_L2);
    set_fill(&set, 20);
    for (uint32_t slot = 0; slot < count; slot++) {
        float *row = set.data + (size_t)slot * dim, scale = powf(10, (float)(slot % 7) - 3);
        for (uint32_t j = 0; j < dim; j++) {
            if (_i == 0) row[j] = 3;
            if (_i == 1) row[j] = (float)(slot % 8 * (j + 1) % 5);
            if (_i == 2 || _i == 5) row[j] *= scale;
            if (_i == 3 && j % 2 == 0) row[j] = 1;
            if (_i == 4) row[j] *= 0x1p-130f;
        }
    }
    set_build(&set, NULL);
    float query[24];
    double recall = 0;
    for (int q = 0; q < 10; q++) {
        memcpy(query, set.data + (size_t)(rng() % count) * dim, sizeof query);
        struct index_search search = { .query = query, .k = 10 };
        recall += search_checked(&set, &search) / 10;
    }
    printf("shape %d: recall %.3f\n", _i, recall);
    ck_assert(recall >= 0.9);
    set_fini(&set);
}
END_TEST

START_TEST(filters_never_cost_an_answer)
{
    seed_rng(41);
    enum { COUNT = 8000 };
    struct set set;
    set_init(&set, COUNT, 32, METRIC_L2);
    set_fill(&set, 60);
    set_build(&set, NULL);
    uint64_t *filter = mem_must_calloc(COUNT / 64 + 1, 8);
    static const uint32_t every[] = { 1, 2, 10, 100, 3000, 1000000 };
    float query[32];
    for (uint32_t e = 0; e < 6; e++) {
        memset(filter, 0, COUNT / 8);
        for (uint32_t slot = 0; slot < COUNT; slot++)
            if (rng() % every[e] == 0) filter[slot / 64] |= UINT64_C(1) << (slot % 64);
        for (int plan = INDEX_PLAN_AUTO; plan < INDEX_PLAN_COUNT; plan++) {
            double recall = 0;
            for (int q = 0; q < 15; q++) {
                query_fill(&set, query);
                struct index_search search = { .query = query,
                    .k = 10,
                    .filter = filter,
                    .plan = (enum index_plan)plan };
                recall += search_checked(&set, &search) / 15;
            }
            printf("every %u, plan %s: recall %.3f\n", every[e], index_plan_name((enum index_plan)plan),
                    recall);
            ck_assert(recall >= (plan == INDEX_PLAN_GATHER ? 1 - 1e-9 : 0.9));
        }
    }
    mem_free(filter);
    set_fini(&set);
}
END_TEST

START_TEST(recall_asked_for_is_delivered_in_few_rounds)
{
    seed_rng(51);
    struct set set;
    set_init(&set, 20000, 64, METRIC_L2);
    set_fill(&set, 200);
    set_build(&set, NULL);
    struct index_scratch *scratch = index_scratch_new(set.opened);
    static const uint32_t ks[] = { 1, 10, 100 };
    struct index_stats stats;
    float query[64];
    ck_assert_int_eq(disk_cache_set(set.opened, 0), OMEN_OK);
    for (int j = 0; j < 3; j++) {
        double sum = 0, squares = 0, n = 200;
        struct index_cost cost = { 0 };
        for (int q = 0; q < 200; q++) {
            struct index_hit hits[100];
            uint32_t count;
            query_fill(&set, query);
            struct index_search search = { .query = query, .k = ks[j], .recall_target = 0.95f };
            ck_assert_int_eq(index_search(set.opened, &search, scratch, hits, &count, &cost), OMEN_OK);
            double recall = search_checked(&set, &search);
            sum += recall;
            squares += recall * recall;
        }
        double mean = sum / n, se = sqrt(fmax(squares / n - mean * mean, 0) / n);
        printf("k %u: recall %.4f, standard error %.4f, %.1f rounds, %.1f blocks\n", ks[j], mean, se,
                (double)cost.rounds / n, (double)cost.blocks / n);
        ck_assert(mean >= 0.95 - 2 * se - 0.005);
        ck_assert_uint_eq(cost.blocks, cost.blocks_read);
        if (ks[j] == 10) ck_assert_uint_le(cost.rounds, 8 * 200);
    }
    index_stats(set.opened, false, &stats);
    ck_assert(stats.effort_default > 0);
    ck_assert_uint_lt(stats.memory_bytes, 20000ull * 64 * 4 / 2); /* codes, not rows */
    index_scratch_free(set.opened, scratch);
    set_fini(&set);
}
END_TEST

START_TEST(the_cache_holds_what_it_may_and_changes_no_answer)
{
    seed_rng(55);
    struct set set;
    set_init(&set, 6000, 48, METRIC_L2);
    set_fill(&set, 40);
    set_build(&set, NULL);
    struct index_stats none, some;
    float query[48];
    ck_assert_int_eq(disk_cache_set(set.opened, 0), OMEN_OK);
    index_stats(set.opened, false, &none);
    ck_assert_int_eq(disk_cache_set(set.opened, 200 << 10), OMEN_OK);
    index_stats(set.opened, false, &some);
    ck_assert_uint_gt(some.memory_bytes, none.memory_bytes);
    ck_assert_uint_le(some.memory_bytes, none.memory_bytes + (210 << 10));
    struct index_scratch *scratch = index_scratch_new(set.opened);
    query_fill(&set, query);
    struct index_search search = { .query = query, .k = 10, .effort = 40 };
    struct index_hit hits[2][10];
    uint32_t count;
    for (int i = 0; i < 2; i++) {
        struct index_cost cost = { 0 };
        ck_assert_int_eq(index_search(set.opened, &search, scratch, hits[i], &count, &cost), OMEN_OK);
        ck_assert(i == 0 ? cost.blocks_read == cost.blocks : cost.blocks_read < cost.blocks);
    }
    ck_assert_mem_eq(hits[0], hits[1], sizeof hits[0]);
    for (int q = 0; q < 300; q++) { /* more than it holds */
        query_fill(&set, query);
        (void)search_checked(&set, &search);
    }
    index_scratch_free(set.opened, scratch);
    set_fini(&set);
}
END_TEST

static bool always(void *arg)
{
    (*(int *)arg)++;
    return true;
}

START_TEST(work_stops_when_told_and_runs_out_of_memory_cleanly)
{
    seed_rng(61);
    struct set set;
    set_init(&set, 3000, 16, METRIC_L2);
    set_fill(&set, 10);
    set_build(&set, NULL);
    float query[16] = { 0 };
    int asked = 0;
    struct index_hit hits[10];
    uint32_t count;
    struct index_scratch *scratch = index_scratch_new(set.opened);
    struct index_search search = { .query = query, .k = 10, .stop = always, .stop_arg = &asked };
    for (int plan = INDEX_PLAN_WALK; plan < INDEX_PLAN_COUNT; plan++) {
        search.plan = (enum index_plan)plan;
        ck_assert_int_eq(index_search(set.opened, &search, scratch, hits, &count, NULL), OMEN_EDEADLINE);
    }
    ck_assert_int_eq(asked, 3);
    index_scratch_free(set.opened, scratch);
    struct index *none;
    struct index_control control = { .stop = always, .arg = &asked };
    ck_assert_int_eq(index_build(INDEX_DISK, &set.rows, NULL, &control, &none, &err), OMEN_ECANCELED);
    control = (struct index_control){ .memory_bytes_max = 1000 };
    ck_assert_int_eq(index_build(INDEX_DISK, &set.rows, NULL, &control, &none, &err), OMEN_ENOMEM);
    uint32_t failed = 0;
    for (uint64_t n = 1; n < 40; n++) {
        mem_fail_at(n);
        enum omen_err rc = index_map(vfs_sim_vfs(set.sim), "/graph.index", &set.rows, false, &none, &err);
        mem_fail_at(0);
        ck_assert(rc == OMEN_OK || rc == OMEN_ENOMEM);
        failed += rc == OMEN_ENOMEM;
        index_free(none);
    }
    ck_assert_uint_gt(failed, 5);
    for (uint64_t n = 1; n < 60; n++) {
        mem_fail_at(n);
        enum omen_err rc = index_build(INDEX_DISK, &set.rows, NULL, NULL, &none, &err);
        mem_fail_at(0);
        ck_assert(rc == OMEN_OK || rc == OMEN_ENOMEM);
        index_free(none);
    }
    set_fini(&set);
}
END_TEST

/* Any byte of the part that is read at opening: refused. Any byte of a unit: opened, and refused by the search that
 * reads it. The name of the file is in the sentence. */
START_TEST(damage_is_refused_by_name)
{
    seed_rng(71);
    struct set set;
    set_init(&set, 900, 20, METRIC_L2);
    set_fill(&set, 9);
    set_build(&set, NULL);
    struct vfs *vfs = vfs_sim_vfs(set.sim);
    struct vfs_file *file;
    struct index *opened;
    uint64_t len;
    float query[20] = { 0 };
    ck_assert_int_eq(vfs_open(vfs, "/graph.index", VFS_WRITE, &file, &err), OMEN_OK);
    ck_assert_int_eq(vfs_size(file, &len, &err), OMEN_OK);
    uint32_t per = (4096 - 16) / (20 * 4 + 136);
    uint64_t units_at = len - (900 + per - 1) / per * 4096ull;
    uint32_t at_open = 0, at_search = 0;
    for (uint32_t i = 0; i < 400; i++) {
        uint64_t at = i < 150 ? i * 29 % 4096
                : i < 280     ? rng() % units_at
                              : units_at + rng() % (len - units_at);
        unsigned bit = (unsigned)(rng() % 8);
        ck_assert(vfs_sim_flip_bit(set.sim, "/graph.index", at, bit));
        enum omen_err rc = index_map(vfs, "/graph.index", &set.rows, false, &opened, &err);
        if (rc != OMEN_OK) {
            ck_assert(rc == OMEN_ECORRUPT || rc == OMEN_EVERSION);
            ck_assert_ptr_nonnull(strstr(err.message, "/graph.index"));
            ck_assert_uint_lt(at, units_at);
            at_open++;
        } else {
            struct index_hit hits[10];
            uint32_t count;
            struct index_scratch *scratch = index_scratch_new(opened);
            struct index_search search = { .query = query, .k = 10, .plan = INDEX_PLAN_GATHER, .err = &err };
            rc = index_search(opened, &search, scratch, hits, &count, NULL);
            ck_assert(at < units_at ? rc == OMEN_OK
                                    : rc == OMEN_ECORRUPT); /* between sections nothing is read */
            if (rc != OMEN_OK) ck_assert_ptr_nonnull(strstr(err.message, "/graph.index"));
            at_search += rc != OMEN_OK;
            index_scratch_free(opened, scratch);
            index_free(opened);
        }
        ck_assert(vfs_sim_flip_bit(set.sim, "/graph.index", at, bit));
    }
    printf("%u refused at opening, %u at a search\n", at_open, at_search);
    ck_assert_uint_ge(at_open, 100);
    ck_assert_uint_eq(at_search, 120);
    for (uint64_t cut = 0; cut < len; cut += len / 37) {
        struct vfs_sim *copy = vfs_sim_after_crash(set.sim, 1);
        struct vfs_file *short_file;
        ck_assert_int_eq(vfs_open(vfs_sim_vfs(copy), "/graph.index", VFS_WRITE, &short_file, &err), OMEN_OK);
        ck_assert_int_eq(vfs_truncate(short_file, cut, &err), OMEN_OK);
        vfs_close(short_file);
        ck_assert_int_eq(index_map(vfs_sim_vfs(copy), "/graph.index", &set.rows, false, &opened, &err),
                OMEN_ECORRUPT);
        ck_assert_ptr_nonnull(strstr(err.message, "/graph.index"));
        vfs_sim_free(copy);
    }
    vfs_close(file);
    set.rows.dim = 19;
    ck_assert_int_eq(index_map(vfs, "/graph.index", &set.rows, false, &opened, &err), OMEN_ECORRUPT);
    set.rows.dim = 20;
    set_fini(&set);
}
END_TEST

/* Checksums of header, sections and units as they must be for these bytes. */
static void checksums_repair(uint8_t *bytes, uint64_t len, uint64_t units_at)
{
    for (uint64_t at = units_at; at + 4096 <= len; at += 4096)
        store_u32(bytes + at, crc32c(0, bytes + at + 4, 4092));
    for (uint32_t i = 0; i < 8; i++) {
        uint8_t *section = bytes + 128 + i * 24;
        uint64_t offset = load_u64(section), size = load_u64(section + 8);
        if (offset <= len && size <= len - offset) store_u32(section + 16, crc32c(0, bytes + offset, size));
    }
    store_u32(bytes + 4092, crc32c(0, bytes, 4092));
}

/* Nonsense with the right checksums: refused, or answered with slots that exist; no other memory is touched. */
START_TEST(nonsense_with_right_checksums_does_no_harm)
{
    seed_rng(73);
    struct set set;
    set_init(&set, 900, 20, METRIC_L2);
    set_fill(&set, 9);
    set_build(&set, NULL);
    struct vfs *vfs = vfs_sim_vfs(set.sim);
    uint8_t *good, *bad;
    size_t len;
    uint32_t opened_count = 0, refused = 0;
    float query[20];
    ck_assert_int_eq(vfs_read_file(vfs, "/graph.index", 1 << 24, &good, &len, &err), OMEN_OK);
    uint32_t per = (4096 - 16) / (20 * 4 + 136);
    uint64_t units_at = len - (900 + per - 1) / per * 4096ull;
    bad = mem_must_alloc(len);
    for (uint32_t i = 0; i < 600; i++) {
        struct index *opened;
        memcpy(bad, good, len);
        for (uint32_t n = 1 + (uint32_t)(rng() % 8); n > 0; n--) {
            uint64_t at = i % 3 == 0 ? rng() % 400
                    : i % 3 == 1     ? rng() % units_at
                                     : units_at + rng() % (len - units_at);
            bad[at] = rng() % 4 == 0 ? 0xff : (uint8_t)rng();
        }
        checksums_repair(bad, len, units_at);
        ck_assert_int_eq(vfs_replace_file(vfs, "/bad.index", bad, len, &err), OMEN_OK);
        enum omen_err rc = index_map(vfs, "/bad.index", &set.rows, false, &opened, &err);
        if (rc != OMEN_OK) {
            ck_assert(rc == OMEN_ECORRUPT || rc == OMEN_EVERSION || rc == OMEN_EINVAL);
            refused++;
            continue;
        }
        opened_count++;
        struct index_scratch *scratch = index_scratch_new(opened);
        for (int plan = INDEX_PLAN_WALK; plan < INDEX_PLAN_COUNT; plan++) {
            struct index_hit hits[10];
            uint32_t count;
            query_fill(&set, query);
            struct index_search search = { .query = query,
                .k = 10,
                .plan = (enum index_plan)plan,
                .err = &err };
            rc = index_search(opened, &search, scratch, hits, &count, NULL);
            ck_assert(rc == OMEN_OK || rc == OMEN_ECORRUPT);
            for (uint32_t j = 0; rc == OMEN_OK && j < count; j++) ck_assert_uint_lt(hits[j].slot, 900);
        }
        index_scratch_free(opened, scratch);
        index_free(opened);
    }
    printf("%u refused, %u opened\n", refused, opened_count);
    ck_assert_uint_gt(refused, 50);
    ck_assert_uint_gt(opened_count, 50);
    mem_free(good);
    mem_free(bad);
    set_fini(&set);
}
END_TEST

/* The file loses its end under an opened index: the search that needs it says so. */
START_TEST(a_read_that_fails_is_named)
{
    seed_rng(75);
    struct set set;
    set_init(&set, 900, 20, METRIC_L2);
    set_fill(&set, 9);
    set_build(&set, NULL);
    struct vfs_file *file;
    uint64_t len;
    float query[20] = { 0 };
    struct index_hit hits[10];
    uint32_t count;
    ck_assert_int_eq(vfs_open(vfs_sim_vfs(set.sim), "/graph.index", VFS_WRITE, &file, &err), OMEN_OK);
    ck_assert_int_eq(vfs_size(file, &len, &err), OMEN_OK);
    ck_assert_int_eq(vfs_truncate(file, len - 100, &err), OMEN_OK);
    vfs_close(file);
    struct index_scratch *scratch = index_scratch_new(set.opened);
    struct index_search search = { .query = query, .k = 10, .plan = INDEX_PLAN_GATHER, .err = &err };
    ck_assert_int_eq(index_search(set.opened, &search, scratch, hits, &count, NULL), OMEN_EIO);
    ck_assert_ptr_nonnull(strstr(err.message, "/graph.index"));
    search.err = NULL; /* nobody reads it */
    ck_assert_int_eq(index_search(set.opened, &search, scratch, hits, &count, NULL), OMEN_EIO);
    index_scratch_free(set.opened, scratch);
    set_fini(&set);
}
END_TEST

/* A crash or a failed operation at any moment of a save leaves the old file or the new one. */
START_TEST(a_save_is_whole_or_was_not)
{
    seed_rng(81);
    struct set set;
    set_init(&set, 400, 12, METRIC_L2);
    set_fill(&set, 4);
    set_build(&set, NULL);
    struct vfs *vfs = vfs_sim_vfs(set.sim);
    struct index *opened;
    vfs_sim_sync_all(set.sim);
    for (uint64_t n = 1; n < 40; n++) {
        vfs_sim_fail_at(set.sim, n, n % 2 == 0 ? 5 : 28);
        enum omen_err rc = index_save(set.built, vfs, "/graph.index", &err);
        vfs_sim_fail_at(set.sim, 0, 0);
        ck_assert(rc == OMEN_OK || rc == OMEN_EIO || rc == OMEN_EFULL);
        struct vfs_sim *after = vfs_sim_after_crash(set.sim, n);
        ck_assert_msg(index_map(vfs_sim_vfs(after), "/graph.index", &set.rows, false, &opened, &err) ==
                        OMEN_OK,
                "%s", err.message);
        index_free(opened);
        vfs_sim_free(after);
    }
    ck_assert_int_eq(index_save(set.opened, vfs, "/copy.index", &err), OMEN_OK); /* from file to file */
    ck_assert_int_eq(index_map(vfs, "/copy.index", &set.rows, false, &opened, &err), OMEN_OK);
    index_free(opened);
    set_fini(&set);
}
END_TEST

/* The real file system: io_uring where there is one, reads past the page cache. */
START_TEST(a_real_disk_answers_alike)
{
    seed_rng(91);
    struct set set;
    set_init(&set, 3000, 40, METRIC_L2);
    set_fill(&set, 30);
    set_build(&set, NULL);
    index_free(set.opened);
    char dir[] = "/tmp/omen-XXXXXX", path[64];
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/graph.index", dir);
    ck_assert_int_eq(index_save(set.built, vfs_posix(), path, &err), OMEN_OK);
    ck_assert_int_eq(index_map(vfs_posix(), path, &set.rows, false, &set.opened, &err), OMEN_OK);
    float query[40];
    for (int q = 0; q < 30; q++) {
        query_fill(&set, query);
        struct index_search search = { .query = query, .k = 10, .plan = (enum index_plan)(q % 4) };
        ck_assert(search_checked(&set, &search) >= 0.5);
    }
    ck_assert_int_eq(vfs_remove_tree(vfs_posix(), dir, &err), OMEN_OK);
    set_fini(&set);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("disk");
    TCase *tc = tcase_create("disk");
    tcase_set_timeout(tc, 600);
    tcase_add_test(tc, few_rows_are_all_found);
    tcase_add_loop_test(tc, every_dimension_metric_and_code_reaches_its_neighbours, 0,
            sizeof shapes / sizeof shapes[0]);
    tcase_add_loop_test(tc, odd_shapes_of_data_are_answered, 0, 6);
    tcase_add_test(tc, filters_never_cost_an_answer);
    tcase_add_test(tc, recall_asked_for_is_delivered_in_few_rounds);
    tcase_add_test(tc, the_cache_holds_what_it_may_and_changes_no_answer);
    tcase_add_test(tc, work_stops_when_told_and_runs_out_of_memory_cleanly);
    tcase_add_test(tc, damage_is_refused_by_name);
    tcase_add_test(tc, nonsense_with_right_checksums_does_no_harm);
    tcase_add_test(tc, a_read_that_fails_is_named);
    tcase_add_test(tc, a_save_is_whole_or_was_not);
    tcase_add_test(tc, a_real_disk_answers_alike);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
