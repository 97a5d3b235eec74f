/* The tail sketch: every shape of data is answered, exactly where few rows can pass; nothing that is dead,
 * forbidden or too new is returned and never fewer than there are; calibration delivers the recall asked for. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "storage/index/sketch.h"
#include "storage/kernel/kernel.h"

static uint64_t rng_state;

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

struct tail {
    float *data;
    uint32_t count, dim;
    enum metric metric;
    struct sketch *sketch;
    struct sketch_scratch *scratch;
    const uint64_t *dead; /* bitmap or NULL */
};

static const float *row_at(void *arg, uint32_t slot)
{
    struct tail *tail = arg;
    ck_assert_uint_lt(slot, tail->count);
    return tail->data + (size_t)slot * tail->dim;
}

static bool alive_at(void *arg, uint32_t slot)
{
    const struct tail *tail = arg;
    return !(tail->dead[slot / 64] >> (slot % 64) & 1);
}

static void tail_init(struct tail *tail, uint32_t count, uint32_t dim, enum metric metric)
{
    *tail = (struct tail){ .count = count, .dim = dim, .metric = metric };
    tail->data = mem_must_calloc((size_t)count * dim + 1, sizeof(float));
    struct sketch_params params = { .dim = dim, .metric = metric, .seed = 7, .row = row_at, .row_arg = tail };
    ck_assert_int_eq(sketch_new(&params, &tail->sketch, NULL), OMEN_OK);
    tail->scratch = sketch_scratch_new(tail->sketch);
}

/* Points around `centres` random places, of unit spread. */
static void tail_fill(struct tail *tail, uint32_t centres)
{
    float *places = mem_must_alloc((size_t)centres * tail->dim * sizeof(float));
    for (size_t i = 0; i < (size_t)centres * tail->dim; i++) places[i] = 2 * gauss();
    for (uint32_t slot = 0; slot < tail->count; slot++) {
        const float *place = places + (size_t)(rng() % centres) * tail->dim;
        float *row = tail->data + (size_t)slot * tail->dim;
        for (uint32_t j = 0; j < tail->dim; j++) row[j] = place[j] + gauss();
        if (tail->metric == METRIC_COSINE) vector_normalise(row, tail->dim);
    }
    mem_free(places);
}

static void tail_add(struct tail *tail, uint32_t end)
{
    for (uint32_t slot = sketch_count(tail->sketch), got; slot < end; slot++) {
        ck_assert_int_eq(sketch_add(tail->sketch, row_at(tail, slot), &got, NULL), OMEN_OK);
        ck_assert_uint_eq(got, slot);
    }
    ck_assert_uint_eq(sketch_count(tail->sketch), end);
}

static void tail_fini(struct tail *tail)
{
    sketch_scratch_free(tail->scratch);
    sketch_free(tail->sketch);
    mem_free(tail->data);
}

static float distance(const struct tail *tail, const float *query, uint32_t slot)
{
    const float *row = tail->data + (size_t)slot * tail->dim;
    return tail->metric == METRIC_L2 ? kernel_get()->l2sq_f32(query, row, tail->dim)
                                     : -kernel_get()->dot_f32(query, row, tail->dim);
}

static bool passes(const struct tail *tail, const struct sketch_search *search, uint32_t slot)
{
    if (search->base.filter != NULL && !(search->base.filter[slot / 64] >> (slot % 64) & 1)) return false;
    return search->alive == NULL || alive_at((void *)(uintptr_t)tail, slot);
}

static int compare_f32(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Searches, checks that hits are distinct, ordered, permitted and as many as there are; share of the true k. */
static double search_checked(struct tail *tail, const struct sketch_search *search)
{
    uint32_t count, k = search->base.k, end = sketch_count(tail->sketch), n = 0, near = 0;
    if (search->slot_end < end) end = search->slot_end;
    struct index_hit *hits = mem_must_alloc(k * sizeof *hits);
    float *truth = mem_must_alloc((end + 1) * sizeof *truth);
    ck_assert_int_eq(sketch_search(tail->sketch, search, tail->scratch, hits, &count, NULL), OMEN_OK);
    for (uint32_t slot = 0; slot < end; slot++)
        if (passes(tail, search, slot)) truth[n++] = distance(tail, search->base.query, slot);
    qsort(truth, n, sizeof *truth, compare_f32);
    ck_assert_uint_eq(count, n < k ? n : k);
    for (uint32_t i = 0; i < count; i++) {
        ck_assert_uint_lt(hits[i].slot, end);
        ck_assert(passes(tail, search, hits[i].slot));
        ck_assert(hits[i].distance == distance(tail, search->base.query, hits[i].slot));
        if (i > 0)
            ck_assert(hits[i - 1].distance < hits[i].distance ||
                    (hits[i - 1].distance == hits[i].distance && hits[i - 1].slot < hits[i].slot));
        near += hits[i].distance <= truth[count - 1] + fabsf(truth[count - 1]) * 1e-5f;
    }
    mem_free(hits);
    mem_free(truth);
    return count == 0 ? 1 : (double)near / count;
}

static void query_fill(const struct tail *tail, float *query)
{
    const float *near = tail->data + (size_t)(rng() % tail->count) * tail->dim;
    for (uint32_t j = 0; j < tail->dim; j++) query[j] = near[j] + 0.5f * gauss();
    if (tail->metric == METRIC_COSINE) vector_normalise(query, tail->dim);
}

START_TEST(few_rows_are_all_found)
{
    seed_rng(11);
    struct tail tail;
    tail_init(&tail, 700, 9, METRIC_L2);
    tail_fill(&tail, 5);
    float query[9];
    for (uint32_t end = 0; end <= 700; end += end < 3 ? 1 : 41) {
        tail_add(&tail, end);
        for (uint32_t k = 1; k <= 2000; k *= 12) {
            query_fill(&tail, query);
            struct sketch_search search = { .base = { .query = query, .k = k }, .slot_end = UINT32_MAX };
            ck_assert(search_checked(&tail, &search) == 1);
        }
    }
    tail_fini(&tail);
}
END_TEST

static const struct {
    uint32_t dim;
    enum metric metric;
} shapes[] = { { 1, METRIC_L2 }, { 65, METRIC_L2 }, { 128, METRIC_L2 }, { 40, METRIC_IP },
    { 96, METRIC_COSINE }, { 2, METRIC_COSINE }, { 300, METRIC_IP } };

START_TEST(every_dimension_and_metric_reaches_its_neighbours)
{
    seed_rng(21 + (uint64_t)_i);
    struct tail tail;
    tail_init(&tail, 6000, shapes[_i].dim, shapes[_i].metric);
    tail_fill(&tail, 60);
    tail_add(&tail, tail.count);
    float query[300];
    double recall = 0;
    for (int q = 0; q < 40; q++) {
        query_fill(&tail, query);
        struct sketch_search search = { .base = { .query = query, .k = 10, .effort = 800 },
            .slot_end = q % 2 == 0 ? UINT32_MAX : 5000 };
        recall += search_checked(&tail, &search) / 40;
    }
    printf("dim %u %s: recall %.3f\n", tail.dim, metric_name(tail.metric), recall);
    ck_assert(recall >= 0.97);
    tail_fini(&tail);
}
END_TEST

/* All equal; many copies of few points; norms spread by 1e6; a constant dimension; denormals; largest dim. */
START_TEST(odd_shapes_of_data_are_answered)
{
    seed_rng(31 + (uint64_t)_i);
    uint32_t dim = _i == 5 ? 4096 : 24, count = _i == 5 ? 2300 : 5000;
    struct tail tail;
    tail_init(&tail, count, dim, _i == 6 ? METRIC_IP : METRIC_L2);
    tail_fill(&tail, 20);
    for (uint32_t slot = 0; slot < count; slot++) {
        float *row = tail.data + (size_t)slot * dim;
        float scale = powf(10, (float)(slot % 7) - 3);
        for (uint32_t j = 0; j < dim; j++) {
            if (_i == 0) row[j] = 3;
            if (_i == 1) row[j] = (float)(slot % 8 * (j + 1) % 5);
            if (_i == 2 || _i == 6) row[j] *= scale;
            if (_i == 3 && j % 2 == 0) row[j] = 1;
            if (_i == 4) row[j] *= 0x1p-130f;
        }
    }
    tail_add(&tail, count);
    if (_i == 2 ||
            _i == 6) /* norms 1e-3 to 1e3: codes cannot tell the small ones apart, and that must show */
        ck_assert_int_eq(sketch_calibrate(tail.sketch, NULL, NULL, NULL), OMEN_OK);
    float *query = mem_must_alloc(dim * sizeof *query);
    double recall = 0;
    for (int q = 0; q < 10; q++) {
        memcpy(query, row_at(&tail, (uint32_t)(rng() % count)), dim * sizeof *query);
        struct sketch_search search = { .base = { .query = query, .k = 10, .effort = 1500 },
            .slot_end = UINT32_MAX };
        if (_i == 2 || _i == 6) search.base.effort = 0;
        recall += search_checked(&tail, &search) / 10;
    }
    printf("shape %d: recall %.3f\n", _i, recall);
    ck_assert(recall >= 0.9);
    mem_free(query);
    tail_fini(&tail);
}
END_TEST

START_TEST(filters_and_deletes_never_cost_an_answer)
{
    seed_rng(41);
    enum { COUNT = 20000 };
    struct tail tail;
    tail_init(&tail, COUNT, 32, METRIC_L2);
    tail_fill(&tail, 100);
    tail_add(&tail, COUNT);
    ck_assert_int_eq(sketch_calibrate(tail.sketch, NULL, NULL, NULL), OMEN_OK);
    uint64_t *filter = mem_must_calloc(COUNT / 64 + 1, 8), *dead = mem_must_calloc(COUNT / 64 + 1, 8);
    static const uint32_t every[] = { 1, 2, 10, 100, 5000 };
    float query[32];
    for (uint32_t e = 0; e < 5; e++) {
        double recall = 0;
        memset(filter, 0, COUNT / 8);
        memset(dead, 0xff, COUNT / 8);
        for (uint32_t slot = 0; slot < COUNT; slot++) {
            if (rng() % every[e] == 0) filter[slot / 64] |= UINT64_C(1) << (slot % 64);
            if (rng() % every[4 - e] == 0) dead[slot / 64] &= ~(UINT64_C(1) << (slot % 64));
        }
        tail.dead = dead;
        for (int q = 0; q < 30; q++) {
            query_fill(&tail, query);
            struct sketch_search search = { .base = { .query = query, .k = 10, .filter = filter },
                .slot_end = COUNT };
            if (q % 3 == 1) search.alive = alive_at;
            if (q % 3 == 2) {
                search.alive = alive_at;
                search.base.filter = NULL;
            }
            search.alive_arg = &tail;
            recall += search_checked(&tail, &search) / 30;
        }
        printf("every %u: recall %.3f\n", every[e], recall);
        ck_assert(recall >= 0.9);
    }
    mem_free(filter);
    mem_free(dead);
    tail_fini(&tail);
}
END_TEST

/* A new sketch of fewer rows of the same kind answers at the target with the curve of an older one. */
START_TEST(a_calibration_serves_the_next_sketch)
{
    seed_rng(53);
    struct tail old, next;
    struct sketch_curve curve;
    float query[32];
    tail_init(&old, 30000, 32, METRIC_L2);
    tail_fill(&old, 300);
    tail_add(&old, 20000);
    sketch_curve(old.sketch, &curve);
    ck_assert_uint_eq(curve.points, 0);
    ck_assert_int_eq(sketch_calibrate(old.sketch, NULL, NULL, NULL), OMEN_OK);
    sketch_curve(old.sketch, &curve);
    ck_assert_uint_gt(curve.points, 0);
    tail_init(&next, old.count, 32, METRIC_L2);
    memcpy(next.data, old.data, (size_t)old.count * 32 * sizeof(float));
    sketch_curve_set(next.sketch, &curve);
    for (uint32_t rows = 4000; rows <= next.count; rows += 8000) {
        struct sketch_stats stats;
        double recall = 0;
        tail_add(&next, rows);
        sketch_stats(next.sketch, &stats);
        ck_assert_uint_gt(stats.effort_default, 0);
        for (int q = 0; q < 200; q++) {
            query_fill(&next, query);
            struct sketch_search search = { .base = { .query = query, .k = 10, .recall_target = 0.9f },
                .slot_end = UINT32_MAX };
            recall += search_checked(&next, &search) / 200;
        }
        printf("%u rows: recall %.3f\n", rows, recall);
        ck_assert(recall >= 0.87);
    }
    tail_fini(&old);
    tail_fini(&next);
}
END_TEST

START_TEST(recall_asked_for_is_delivered)
{
    seed_rng(51);
    struct tail tail;
    tail_init(&tail, 30000, 64, METRIC_L2);
    tail_fill(&tail, 300);
    tail_add(&tail, tail.count);
    ck_assert_int_eq(sketch_calibrate(tail.sketch, NULL, NULL, NULL), OMEN_OK);
    static const uint32_t ks[] = { 1, 10, 100 };
    struct sketch_stats stats;
    float query[64];
    for (int j = 0; j < 3; j++) {
        double sum = 0, squares = 0, n = 300;
        for (int q = 0; q < 300; q++) {
            query_fill(&tail, query);
            struct sketch_search search = { .base = { .query = query, .k = ks[j], .recall_target = 0.95f },
                .slot_end = UINT32_MAX };
            double recall = search_checked(&tail, &search);
            sum += recall;
            squares += recall * recall;
        }
        double mean = sum / n, se = sqrt(fmax(squares / n - mean * mean, 0) / n);
        printf("k %u: recall %.4f, standard error %.4f\n", ks[j], mean, se);
        ck_assert(mean >= 0.95 - 2 * se - 0.005);
    }
    sketch_stats(tail.sketch, &stats);
    ck_assert_uint_gt(stats.effort_default, 0);
    ck_assert_uint_eq(stats.rows, tail.count);
    tail_fini(&tail);
}
END_TEST

static bool always(void *arg)
{
    (*(int *)arg)++;
    return true;
}

/* None of what is asked about may be returned. */
struct few {
    uint32_t asked;
};
static bool none_passes(void *arg, uint32_t slot)
{
    (void)slot;
    ((struct few *)arg)->asked++;
    return false;
}
static bool few_pass(void *arg) { return ((const struct few *)arg)->asked >= 300; }

/* Asking may be dear, so who asks is polled after some, not after a share of the rows. */
START_TEST(search_that_asks_in_vain_is_polled_soon)
{
    seed_rng(62);
    struct tail tail;
    tail_init(&tail, 30000, 16, METRIC_L2);
    tail_fill(&tail, 10);
    tail_add(&tail, tail.count);
    float query[16] = { 0 };
    struct few few = { 0 };
    struct index_hit hits[10];
    uint32_t count;
    struct sketch_search search = {
        .base = { .query = query, .k = 10, .effort = 500, .stop = few_pass, .stop_arg = &few },
        .slot_end = UINT32_MAX,
        .alive = none_passes,
        .alive_arg = &few,
    };
    ck_assert_int_eq(sketch_search(tail.sketch, &search, tail.scratch, hits, &count, NULL), OMEN_EDEADLINE);
    ck_assert_uint_ge(few.asked, 300);
    ck_assert_uint_le(few.asked, 700);
    tail_fini(&tail);
}
END_TEST

START_TEST(search_stops_when_told_and_refuses_what_is_wrong)
{
    seed_rng(61);
    struct tail tail;
    tail_init(&tail, 40000, 16, METRIC_L2);
    tail_fill(&tail, 10);
    tail_add(&tail, tail.count);
    float query[16] = { 0 };
    uint64_t bits[1] = { 1 };
    int asked = 0;
    struct index_hit hits[10];
    uint32_t count, slot;
    struct sketch_search good = { .base = { .query = query, .k = 10 }, .slot_end = UINT32_MAX }, bad = good;
    struct sketch_search late = good;
    late.base.stop = always;
    late.base.stop_arg = &asked;
    late.base.effort = 20000; /* every bucket */
    ck_assert_int_eq(sketch_search(tail.sketch, &late, tail.scratch, hits, &count, NULL), OMEN_EDEADLINE);
    late.base.k = 10000; /* the exact scan */
    ck_assert_int_eq(sketch_search(tail.sketch, &late, tail.scratch, hits, &count, NULL), OMEN_EDEADLINE);
    ck_assert_int_eq(asked, 2);
    bad.base.k = 0;
    ck_assert_int_eq(sketch_search(tail.sketch, &bad, tail.scratch, hits, &count, NULL), OMEN_EINVAL);
    bad = good;
    bad.base.effort = INDEX_EFFORT_MAX + 1;
    ck_assert_int_eq(sketch_search(tail.sketch, &bad, tail.scratch, hits, &count, NULL), OMEN_EINVAL);
    bad = good;
    bad.base.filter = bits; /* without an end nobody knows how long it is */
    ck_assert_int_eq(sketch_search(tail.sketch, &bad, tail.scratch, hits, &count, NULL), OMEN_EINVAL);
    query[3] = NAN;
    ck_assert_int_eq(sketch_search(tail.sketch, &good, tail.scratch, hits, &count, NULL), OMEN_EINVAL);
    ck_assert_int_eq(sketch_add(tail.sketch, query, &slot, NULL), OMEN_EINVAL);
    ck_assert_uint_eq(sketch_count(tail.sketch), tail.count);
    struct index_control control = { .stop = always, .arg = &asked };
    ck_assert_int_eq(sketch_calibrate(tail.sketch, NULL, NULL, &control), OMEN_ECANCELED);
    struct sketch_params params = { .dim = 0, .row = row_at };
    struct sketch *none;
    ck_assert_int_eq(sketch_new(&params, &none, NULL), OMEN_EINVAL);
    ck_assert_ptr_null(none);
    tail_fini(&tail);
}
END_TEST

struct parts {
    uint8_t *seen;
    uint32_t end, buckets;
};

static bool part_take(void *arg, const uint32_t *slots, uint32_t count)
{
    struct parts *parts = arg;
    parts->buckets++;
    for (uint32_t i = 0; i < count; i++) {
        ck_assert_uint_lt(slots[i], parts->end);
        if (i > 0) ck_assert_uint_lt(slots[i - 1], slots[i]);
        parts->seen[slots[i]]++;
    }
    return true;
}

START_TEST(partition_holds_every_slot_once)
{
    seed_rng(71);
    struct tail tail;
    tail_init(&tail, 9000, 20, METRIC_L2);
    tail_fill(&tail, 50);
    tail_add(&tail, tail.count);
    static const uint32_t ends[] = { 0, 1, 256, 257, 3000, 9000 };
    for (int i = 0; i < 6; i++) {
        struct parts parts = { mem_must_calloc(9000, 1), ends[i], 0 };
        ck_assert_int_eq(sketch_partition(tail.sketch, ends[i], part_take, &parts), OMEN_OK);
        for (uint32_t slot = 0; slot < 9000; slot++) ck_assert_uint_eq(parts.seen[slot], slot < ends[i]);
        if (ends[i] == 9000) ck_assert_uint_gt(parts.buckets, 50);
        mem_free(parts.seen);
    }
    tail_fini(&tail);
}
END_TEST

/* Whatever allocation fails: the row is not there, and the next try adds it. */
START_TEST(out_of_memory_loses_nothing)
{
    seed_rng(81);
    struct tail tail;
    tail_init(&tail, 2600, 12, METRIC_L2);
    tail_fill(&tail, 30);
    uint32_t failed = 0, slot;
    for (uint32_t i = 0; i < tail.count; i++) {
        for (uint64_t n = 1; n <= 12; n++) {
            mem_fail_at(i % 256 == 0 ? n : 0);
            enum omen_err rc = sketch_add(tail.sketch, row_at(&tail, i), &slot, NULL);
            mem_fail_at(0);
            if (rc == OMEN_OK) break;
            ck_assert_int_eq(rc, OMEN_ENOMEM);
            ck_assert_uint_eq(sketch_count(tail.sketch), i);
            failed++;
        }
    }
    ck_assert_uint_gt(failed, 0);
    tail_add(&tail, tail.count);
    float query[12];
    for (uint64_t n = 1; n <= 12; n++) {
        struct sketch_search search = { .base = { .query = query, .k = 5, .effort = 300 + (uint32_t)n * 100 },
            .slot_end = UINT32_MAX };
        struct index_hit hits[5];
        uint32_t count;
        query_fill(&tail, query);
        mem_fail_at(n);
        enum omen_err rc = sketch_search(tail.sketch, &search, tail.scratch, hits, &count, NULL);
        ck_assert(rc == OMEN_OK || rc == OMEN_ENOMEM);
        rc = sketch_calibrate(tail.sketch, NULL, NULL, NULL);
        ck_assert(rc == OMEN_OK || rc == OMEN_ENOMEM);
        mem_fail_at(0);
        search_checked(&tail, &search);
    }
    tail_fini(&tail);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("sketch");
    TCase *tc = tcase_create("sketch");
    tcase_set_timeout(tc, 300);
    tcase_add_test(tc, few_rows_are_all_found);
    tcase_add_loop_test(tc, every_dimension_and_metric_reaches_its_neighbours, 0,
            sizeof shapes / sizeof shapes[0]);
    tcase_add_loop_test(tc, odd_shapes_of_data_are_answered, 0, 7);
    tcase_add_test(tc, filters_and_deletes_never_cost_an_answer);
    tcase_add_test(tc, a_calibration_serves_the_next_sketch);
    tcase_add_test(tc, recall_asked_for_is_delivered);
    tcase_add_test(tc, search_that_asks_in_vain_is_polled_soon);
    tcase_add_test(tc, search_stops_when_told_and_refuses_what_is_wrong);
    tcase_add_test(tc, partition_holds_every_slot_once);
    tcase_add_test(tc, out_of_memory_loses_nothing);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
