/* The mutable HNSW on small and awkward sets: what it must answer exactly, what it must refuse, what it
 * weighs. */
#include <check.h>
#include <math.h>
#include <stdlib.h>

#include "common/mem.h"
#include "storage/index/hnsw.h"
#include "storage/index/hnsw_impl.h"

#define SEED 20260201

struct fixture {
    struct index *index;
    struct index_scratch *scratch;
    float *data;
    uint32_t count, dim;
    enum metric metric;
};

static uint64_t random_state;

static uint64_t random_u64(void)
{
    random_state += 0x9e3779b97f4a7c15ull;
    uint64_t x = random_state;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

static float random_f32(void) { return (float)(random_u64() >> 40) / (float)(1 << 23) - 1.0f; }

static void setup(void) { random_state = SEED; }

static void fixture_fill(struct fixture *f, uint32_t count, uint32_t dim, enum metric metric)
{
    *f = (struct fixture){ .count = count, .dim = dim, .metric = metric };
    f->data = mem_must_alloc(((size_t)count * dim + 1) * sizeof *f->data);
    for (size_t i = 0; i < (size_t)count * dim; i++) f->data[i] = random_f32();
}

static float *row(const struct fixture *f, uint32_t slot) { return f->data + (size_t)slot * f->dim; }

static void fixture_build_with(struct fixture *f, const struct index_params *params)
{
    struct err err = { 0 };
    struct index_rows rows = { f->data, f->dim, f->count, f->dim, f->metric };
    enum omen_err rc = index_build(INDEX_HNSW, &rows, params, NULL, &f->index, &err);
    ck_assert_msg(rc == OMEN_OK, "%s", err.message);
    f->scratch = index_scratch_new(f->index);
    ck_assert_ptr_nonnull(f->scratch);
}

static void fixture_build(struct fixture *f)
{
    struct index_params params = { .capacity = f->count + 4096, .seed = SEED };
    fixture_build_with(f, &params);
}

static void fixture_free(struct fixture *f)
{
    index_scratch_free(f->index, f->scratch);
    index_free(f->index);
    mem_free(f->data);
}

static uint32_t search(const struct fixture *f, const float *query, uint32_t k, uint32_t effort,
        struct index_hit *hits)
{
    struct index_search s = { .query = query, .k = k, .effort = effort };
    uint32_t count;
    ck_assert_int_eq(index_search(f->index, &s, f->scratch, hits, &count, NULL), OMEN_OK);
    ck_assert_uint_le(count, k);
    for (uint32_t i = 1; i < count; i++) {
        ck_assert(hits[i - 1].distance < hits[i].distance ||
                (hits[i - 1].distance == hits[i].distance && hits[i - 1].slot < hits[i].slot));
    }
    return count;
}

static float exact(const struct fixture *f, const float *query, uint32_t slot)
{
    const struct kernel *kernel = kernel_get();
    if (f->metric == METRIC_L2) return kernel->l2sq_f32(query, row(f, slot), f->dim);
    return -kernel->dot_f32(query, row(f, slot), f->dim);
}

static int compare_f32(const void *a, const void *b)
{
    float x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (x > y) - (x < y);
}

/* Share of the true k nearest found, over `queries` random queries. */
static double recall(const struct fixture *f, uint32_t k, uint32_t effort, uint32_t queries, float scale)
{
    struct index_hit *hits = mem_must_alloc(k * sizeof *hits);
    float *query = mem_must_alloc(f->dim * sizeof *query), *all = mem_must_alloc(f->count * sizeof *all);
    uint32_t found = 0;
    for (uint32_t q = 0; q < queries; q++) {
        for (uint32_t i = 0; i < f->dim; i++) query[i] = scale * random_f32();
        for (uint32_t i = 0; i < f->count; i++) all[i] = exact(f, query, i);
        qsort(all, f->count, sizeof *all, compare_f32);
        uint32_t count = search(f, query, k, effort, hits);
        for (uint32_t i = 0; i < count; i++) {
            ck_assert(hits[i].distance == exact(f, query, hits[i].slot));
            found += hits[i].distance <= all[k - 1];
        }
    }
    mem_free(hits);
    mem_free(query);
    mem_free(all);
    return (double)found / ((double)k * queries);
}

static uint64_t unreachable(const struct fixture *f)
{
    struct index_stats stats;
    index_stats(f->index, true, &stats);
    return stats.unreachable;
}

START_TEST(sizes_zero_one_and_two_answer_all_there_is)
{
    for (uint32_t n = 0; n <= 2; n++) {
        struct fixture f;
        struct index_hit hits[5];
        float query[3] = { 0 };
        fixture_fill(&f, n, 3, METRIC_L2);
        fixture_build(&f);
        ck_assert_uint_eq(search(&f, query, 5, 0, hits), n);
        ck_assert_uint_eq(unreachable(&f), 0);
        fixture_free(&f);
    }
}
END_TEST

START_TEST(k_above_the_live_points_returns_each_of_them_once)
{
    struct fixture f;
    static struct index_hit hits[1000];
    bool seen[300] = { false };
    fixture_fill(&f, 300, 16, METRIC_L2);
    fixture_build(&f);
    for (uint32_t slot = 0; slot < 300; slot += 3)
        ck_assert_int_eq(index_remove(f.index, slot, NULL), OMEN_OK);
    ck_assert_uint_eq(search(&f, row(&f, 1), 1000, 10, hits), 200);
    for (uint32_t i = 0; i < 200; i++) {
        ck_assert(!seen[hits[i].slot] && hits[i].slot % 3 != 0);
        seen[hits[i].slot] = true;
    }
    fixture_free(&f);
}
END_TEST

START_TEST(equal_points_are_all_found)
{
    struct fixture f;
    static struct index_hit hits[2000];
    fixture_fill(&f, 2000, 8, METRIC_L2);
    for (uint32_t i = 0; i < 2000 * 8; i++) f.data[i] = 0.25f;
    fixture_build(&f);
    ck_assert_uint_eq(search(&f, row(&f, 0), 2000, 0, hits), 2000);
    for (uint32_t i = 0; i < 2000; i++) ck_assert_uint_eq(hits[i].slot, i);
    ck_assert_uint_eq(search(&f, row(&f, 0), 10, 64, hits), 10);
    ck_assert_uint_eq(unreachable(&f), 0);
    fixture_free(&f);
}
END_TEST

/* A hundred copies of one point would fill every list near it; the points around must stay within reach. */
START_TEST(many_duplicates_do_not_cut_off_their_neighbourhood)
{
    struct fixture f;
    struct index_hit hits[110];
    fixture_fill(&f, 3000, 12, METRIC_L2);
    for (uint32_t i = 1; i < 100; i++) memcpy(row(&f, i * 20), row(&f, 0), 12 * sizeof(float));
    fixture_build(&f);
    ck_assert_uint_eq(unreachable(&f), 0);
    ck_assert_uint_eq(search(&f, row(&f, 0), 110, 400, hits), 110);
    for (uint32_t i = 0; i < 100; i++) ck_assert(hits[i].distance == 0);
    for (uint32_t i = 100; i < 110; i++) ck_assert(hits[i].distance > 0);
    ck_assert(recall(&f, 10, 128, 50, 1) > 0.97);
    fixture_free(&f);
}
END_TEST

START_TEST(any_dimension_is_searched_well)
{
    const uint32_t dims[] = { 1, 2, 65, 4096 };
    for (size_t i = 0; i < sizeof dims / sizeof dims[0]; i++) {
        struct fixture f;
        fixture_fill(&f, dims[i] > 1000 ? 1100 : 2000, dims[i], METRIC_L2);
        fixture_build(&f);
        double r = recall(&f, 10, 300, 20, 1);
        ck_assert_msg(r > 0.9, "dim %u: recall %f", dims[i], r);
        fixture_free(&f);
    }
}
END_TEST

START_TEST(denormal_and_constant_components_do_no_harm)
{
    struct fixture f;
    fixture_fill(&f, 1500, 10, METRIC_L2);
    for (uint32_t i = 0; i < f.count; i++) {
        row(&f, i)[3] = 7.5f;                    /* the same in all */
        row(&f, i)[4] = 1e-41f * (float)(i % 5); /* denormal */
    }
    fixture_build(&f);
    ck_assert(recall(&f, 10, 100, 50, 1) > 0.95);
    fixture_free(&f);
    fixture_fill(&f, 1500, 4, METRIC_L2);
    for (uint32_t i = 0; i < 1500 * 4; i++)
        f.data[i] *= 1e-40f; /* nothing but denormals: distances are all 0 */
    fixture_build(&f);
    struct index_hit hits[10];
    ck_assert_uint_eq(search(&f, row(&f, 0), 10, 50, hits), 10);
    fixture_free(&f);
}
END_TEST

/* One step for all components cannot hold norms from 1 to a million: the walk must fall back to f32. */
START_TEST(norms_that_differ_a_million_times_are_told_apart)
{
    struct fixture f;
    fixture_fill(&f, 3000, 16, METRIC_L2);
    for (uint32_t i = 0; i < f.count; i++)
        for (uint32_t j = 0; j < 16; j++) row(&f, i)[j] *= powf(10.0f, (float)(i % 7));
    fixture_build(&f);
    ck_assert(!atomic_load(&hnsw_of(f.index)->codes)->quantized);
    for (int e = 0; e < 7; e++) {
        double r = recall(&f, 10, 200, 10, powf(10.0f, (float)e));
        ck_assert_msg(r > 0.85, "scale 1e%d: recall %f", e, r);
    }
    ck_assert_uint_eq(unreachable(&f), 0);
    fixture_free(&f);
}
END_TEST

START_TEST(largest_dot_products_are_found_whatever_the_norms)
{
    struct fixture f;
    fixture_fill(&f, 4000, 32, METRIC_IP);
    for (uint32_t i = 0; i < f.count; i++)
        for (uint32_t j = 0; j < 32; j++) row(&f, i)[j] *= 1 + (float)(i % 10) / 9;
    fixture_build(&f);
    double r = recall(&f, 10, 200, 50, 1);
    ck_assert_msg(r > 0.93, "recall %f", r);
    fixture_free(&f);
}
END_TEST

/* Rows arrive with ever larger norms: the space they are lifted into has to grow. */
START_TEST(growing_norms_under_ip_keep_recall)
{
    struct fixture f;
    fixture_fill(&f, 3000, 24, METRIC_IP);
    for (uint32_t i = 0; i < f.count; i++)
        for (uint32_t j = 0; j < 24; j++) row(&f, i)[j] *= 1.0f + (float)i / 300;
    uint32_t count = f.count;
    f.count = 0;
    fixture_build(&f);
    f.count = count;
    for (uint32_t i = 0; i < count; i++)
        ck_assert_int_eq(index_insert(f.index, i, row(&f, i), NULL), OMEN_OK);
    double r = recall(&f, 10, 200, 50, 1);
    ck_assert_msg(r > 0.9, "recall %f", r);
    ck_assert_uint_eq(unreachable(&f), 0);
    fixture_free(&f);
}
END_TEST

START_TEST(codes_are_trained_while_rows_arrive_and_again_when_they_leave_the_range)
{
    struct fixture f;
    fixture_fill(&f, 4000, 16, METRIC_L2);
    for (uint32_t i = 2000; i < 4000; i++)
        for (uint32_t j = 0; j < 16; j++) row(&f, i)[j] = 8.0f + 2 * row(&f, i)[j];
    f.count = 0;
    fixture_build(&f);
    struct hnsw *h = hnsw_of(f.index);
    ck_assert(!atomic_load(&h->codes)->quantized);
    for (uint32_t i = 0; i < 2000; i++) ck_assert_int_eq(index_insert(f.index, i, row(&f, i), NULL), OMEN_OK);
    ck_assert(atomic_load(&h->codes)->quantized);
    float step = atomic_load(&h->codes)->step;
    for (uint32_t i = 2000; i < 4000; i++)
        ck_assert_int_eq(index_insert(f.index, i, row(&f, i), NULL), OMEN_OK);
    ck_assert(atomic_load(&h->codes)->step > 2 * step);
    f.count = 4000;
    ck_assert(recall(&f, 10, 100, 50, 8) > 0.95);
    fixture_free(&f);
}
END_TEST

START_TEST(few_survivors_are_found_when_nearly_all_are_deleted)
{
    struct fixture f;
    struct index_hit hits[50];
    fixture_fill(&f, 4000, 16, METRIC_L2);
    fixture_build(&f);
    for (uint32_t slot = 0; slot < 4000; slot++)
        if (slot % 100 != 7) ck_assert_int_eq(index_remove(f.index, slot, NULL), OMEN_OK);
    ck_assert_uint_eq(search(&f, row(&f, 0), 50, 40, hits), 40);
    hnsw_settle(f.index);
    ck_assert_uint_eq(search(&f, row(&f, 0), 50, 40, hits), 40);
    ck_assert_uint_eq(unreachable(&f), 0);
    ck_assert_uint_eq(atomic_load(&hnsw_of(f.index)->dead_count), 0);
    fixture_free(&f);
}
END_TEST

START_TEST(an_index_emptied_can_be_filled_again)
{
    struct fixture f;
    struct index_hit hits[10];
    fixture_fill(&f, 700, 8, METRIC_L2);
    fixture_build(&f);
    for (int turn = 0; turn < 3; turn++) {
        for (uint32_t slot = 0; slot < 700; slot++)
            ck_assert_int_eq(index_remove(f.index, slot, NULL), OMEN_OK);
        ck_assert_uint_eq(search(&f, row(&f, 0), 10, 40, hits), 0);
        if (turn == 1) hnsw_settle(f.index);
        for (uint32_t slot = 0; slot < 700; slot++)
            ck_assert_int_eq(index_insert(f.index, slot, row(&f, slot), NULL), OMEN_OK);
        ck_assert(recall(&f, 10, 100, 20, 1) > 0.95);
    }
    hnsw_settle(f.index);
    ck_assert_uint_eq(unreachable(&f), 0);
    fixture_free(&f);
}
END_TEST

START_TEST(wrong_calls_are_refused_and_change_nothing)
{
    struct fixture f;
    struct index_hit hits[1];
    float bad[4] = { 0, NAN, 0, 0 };
    fixture_fill(&f, 10, 4, METRIC_L2);
    fixture_build(&f);
    ck_assert_int_eq(index_insert(f.index, 3, row(&f, 3), NULL), OMEN_EEXISTS);
    ck_assert_int_eq(index_insert(f.index, 10, bad, NULL), OMEN_EINVAL);
    ck_assert_int_eq(index_insert(f.index, INDEX_SLOTS_MAX, row(&f, 3), NULL), OMEN_EINVAL);
    ck_assert_int_eq(index_remove(f.index, 10, NULL), OMEN_ENOTFOUND);
    ck_assert_int_eq(index_remove(f.index, INDEX_SLOTS_MAX, NULL), OMEN_EINVAL);
    ck_assert_int_eq(index_remove(f.index, 3, NULL), OMEN_OK);
    ck_assert_int_eq(index_remove(f.index, 3, NULL), OMEN_ENOTFOUND);
    struct index_search s = { .query = row(&f, 0), .k = 0 };
    uint32_t count;
    ck_assert_int_eq(index_search(f.index, &s, f.scratch, hits, &count, NULL), OMEN_EINVAL);
    struct index_rows rows = { f.data, 4, 10, 4, METRIC_L2 };
    struct index *other;
    const struct index_params wrong[] = { { .M = 1 }, { .M = HNSW_M_MAX + 1 },
        { .ef_construction = HNSW_EF_CONSTRUCTION_MAX + 1 }, { .quant = INDEX_QUANT_BINARY } };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        ck_assert_int_eq(index_build(INDEX_HNSW, &rows, &wrong[i], NULL, &other, NULL), OMEN_EINVAL);
    f.data[5] = INFINITY;
    ck_assert_int_eq(index_build(INDEX_HNSW, &rows, NULL, NULL, &other, NULL), OMEN_EINVAL);
    ck_assert_ptr_null(other);
    fixture_free(&f);
}
END_TEST

START_TEST(a_slot_can_be_used_again_at_once_with_another_vector)
{
    struct fixture f;
    struct index_hit hits[1];
    fixture_fill(&f, 2000, 6, METRIC_L2);
    fixture_build(&f);
    for (uint32_t slot = 0; slot < 1000; slot++) {
        ck_assert_int_eq(index_remove(f.index, slot, NULL), OMEN_OK);
        for (uint32_t j = 0; j < 6; j++) row(&f, slot)[j] = random_f32();
        ck_assert_int_eq(index_insert(f.index, slot, row(&f, slot), NULL), OMEN_OK);
        ck_assert_uint_eq(search(&f, row(&f, slot), 1, 100, hits), 1);
        ck_assert_uint_eq(hits[0].slot, slot);
        ck_assert(hits[0].distance == 0);
    }
    fixture_free(&f);
}
END_TEST

/* Nodes come back after repair, so a full index takes as many points again as were removed, for ever. */
START_TEST(a_full_index_refuses_and_takes_again_after_removes)
{
    struct fixture f;
    fixture_fill(&f, 1100, 4, METRIC_L2);
    f.count = 0;
    struct index_params params = { .capacity = 1, .M = 4, .ef_construction = 20 };
    fixture_build_with(&f, &params);
    uint32_t room = hnsw_of(f.index)->node_capacity;
    ck_assert_uint_lt(room, 1100);
    for (uint32_t slot = 0; slot < room; slot++)
        ck_assert_int_eq(index_insert(f.index, slot, row(&f, slot), NULL), OMEN_OK);
    ck_assert_int_eq(index_insert(f.index, room, row(&f, room), NULL), OMEN_EFULL);
    for (uint32_t i = 0; i < 5 * room; i++) {
        uint32_t slot = (uint32_t)(random_u64() % room);
        ck_assert_int_eq(index_remove(f.index, slot, NULL), OMEN_OK);
        ck_assert_int_eq(index_insert(f.index, slot, row(&f, slot), NULL), OMEN_OK);
    }
    f.count = room;
    ck_assert(recall(&f, 5, 50, 50, 1) > 0.95);
    hnsw_settle(f.index);
    ck_assert_uint_eq(unreachable(&f), 0);
    fixture_free(&f);
}
END_TEST

START_TEST(filtered_answers_pass_and_are_never_fewer_than_there_are)
{
    struct fixture f;
    struct index_hit hits[20];
    fixture_fill(&f, 6000, 8, METRIC_L2);
    fixture_build(&f);
    static uint64_t filter[94];
    const uint32_t every[] = { 1, 2, 7, 50, 500, 4000, 7000 };
    for (size_t e = 0; e < sizeof every / sizeof every[0]; e++) {
        uint32_t passing = 0;
        memset(filter, 0, sizeof filter);
        for (uint32_t slot = every[e] - 1; slot < 6000; slot += every[e], passing++)
            filter[slot / 64] |= 1ull << (slot % 64);
        uint32_t wanted = passing < 20 ? passing : 20, found = 0;
        for (int q = 0; q < 20; q++) {
            float query[8], all[6000];
            uint32_t count, n = 0;
            for (int j = 0; j < 8; j++) query[j] = random_f32();
            for (uint32_t slot = every[e] - 1; slot < 6000; slot += every[e])
                all[n++] = exact(&f, query, slot);
            qsort(all, n, sizeof *all, compare_f32);
            struct index_search s = { .query = query, .k = 20, .effort = 60, .filter = filter };
            ck_assert_int_eq(index_search(f.index, &s, f.scratch, hits, &count, NULL), OMEN_OK);
            ck_assert_uint_eq(count, wanted);
            for (uint32_t i = 0; i < count; i++) {
                ck_assert_uint_eq(hits[i].slot % every[e], every[e] - 1);
                found += hits[i].distance <= all[wanted - 1];
            }
        }
        ck_assert_msg(found >= 0.95 * 20 * wanted, "every %u: %u of %u", every[e], found, 20 * wanted);
    }
    fixture_free(&f);
}
END_TEST

/* Matches far away from the query: bridges would eat the whole graph, the budget sends it to the scan. */
START_TEST(a_filter_against_the_query_costs_no_more_than_twice_the_scan)
{
    struct fixture f;
    struct index_hit hits[10];
    fixture_fill(&f, 20000, 4, METRIC_L2);
    fixture_build(&f);
    static uint64_t filter[313];
    float query[4] = { -1, -1, -1, -1 };
    uint32_t passing = 0, count;
    for (uint32_t slot = 0; slot < f.count; slot++) {
        if (row(&f, slot)[0] < 0.5f) continue;
        filter[slot / 64] |= 1ull << (slot % 64);
        passing++;
    }
    struct index_cost cost = { 0 };
    struct index_search s = { .query = query,
        .k = 10,
        .effort = 30,
        .filter = filter,
        .filter_count = passing };
    ck_assert_int_eq(index_search(f.index, &s, f.scratch, hits, &count, &cost), OMEN_OK);
    ck_assert_uint_eq(count, 10);
    ck_assert_uint_le(cost.distances, 2 * passing + 200);
    fixture_free(&f);
}
END_TEST

START_TEST(answers_end_at_the_largest_distance_allowed)
{
    struct fixture f;
    struct index_hit all[20], near[20];
    fixture_fill(&f, 2000, 8, METRIC_L2);
    fixture_build(&f);
    ck_assert_uint_eq(search(&f, row(&f, 5), 20, 100, all), 20);
    struct index_search s = { .query = row(&f, 5),
        .k = 20,
        .effort = 100,
        .has_distance_max = true,
        .distance_max = all[7].distance };
    uint32_t count;
    ck_assert_int_eq(index_search(f.index, &s, f.scratch, near, &count, NULL), OMEN_OK);
    ck_assert_uint_eq(count, 8);
    fixture_free(&f);
}
END_TEST

static bool stop_third(void *arg)
{
    uint32_t *polls = arg;
    return ++*polls == 3;
}

START_TEST(a_search_stops_inside_the_hop_loop)
{
    struct fixture f;
    static struct index_hit hits[1000];
    fixture_fill(&f, 3000, 8, METRIC_L2);
    fixture_build(&f);
    uint32_t polls = 0, count;
    struct index_cost cost = { 0 };
    struct index_search s = { .query = row(&f, 5),
        .k = 1000,
        .effort = 1000,
        .stop = stop_third,
        .stop_arg = &polls };
    ck_assert_int_eq(index_search(f.index, &s, f.scratch, hits, &count, &cost), OMEN_EDEADLINE);
    ck_assert_uint_eq(polls, 3);
    ck_assert_uint_lt(cost.hops, 4 * INDEX_POLL_HOPS);
    ck_assert_uint_eq(search(&f, row(&f, 5), 1, 50, hits), 1); /* and the scratch is as good as new */
    fixture_free(&f);
}
END_TEST

static bool stop_at_once(void *arg) { return true; }

START_TEST(a_build_can_be_stopped)
{
    struct fixture f;
    fixture_fill(&f, 1000, 8, METRIC_L2);
    struct index_rows rows = { f.data, 8, 1000, 8, METRIC_L2 };
    struct index_control control = { .stop = stop_at_once, .threads = 2 };
    ck_assert_int_eq(index_build(INDEX_HNSW, &rows, NULL, &control, &f.index, NULL), OMEN_ECANCELED);
    ck_assert_ptr_null(f.index);
    mem_free(f.data);
}
END_TEST

START_TEST(one_seed_gives_one_graph)
{
    struct fixture a, b;
    fixture_fill(&a, 1500, 8, METRIC_L2);
    fixture_build(&a);
    b = a;
    b.data = mem_must_alloc(1);
    fixture_build(&a);
    struct index_params params = { .capacity = a.count + 4096, .seed = SEED };
    struct index_rows rows = { a.data, 8, a.count, 8, METRIC_L2 };
    index_scratch_free(b.index, b.scratch);
    index_free(b.index);
    ck_assert_int_eq(index_build(INDEX_HNSW, &rows, &params, NULL, &b.index, NULL), OMEN_OK);
    b.scratch = index_scratch_new(b.index);
    for (uint32_t node = 0; node < a.count; node++) {
        uint32_t x[2 * HNSW_M_MAX], y[2 * HNSW_M_MAX];
        ck_assert_uint_eq(hnsw_of(a.index)->levels[node], hnsw_of(b.index)->levels[node]);
        uint32_t n = hnsw_row_read(hnsw_of(a.index), node, 0, x);
        ck_assert_uint_eq(hnsw_row_read(hnsw_of(b.index), node, 0, y), n);
        ck_assert_mem_eq(x, y, n * sizeof *x);
    }
    fixture_free(&b);
    fixture_free(&a);
}
END_TEST

START_TEST(no_row_links_to_a_node_that_is_free_or_to_itself)
{
    struct fixture f;
    fixture_fill(&f, 3000, 8, METRIC_L2);
    fixture_build(&f);
    struct hnsw *h = hnsw_of(f.index);
    for (uint32_t i = 0; i < 4000; i++) {
        uint32_t slot = (uint32_t)(random_u64() % 3000);
        enum omen_err rc = index_remove(f.index, slot, NULL);
        if (rc != OMEN_OK) ck_assert_int_eq(index_insert(f.index, slot, row(&f, slot), NULL), OMEN_OK);
    }
    hnsw_settle(f.index);
    uint32_t nodes = atomic_load(&h->node_count), *degrees = mem_must_calloc(nodes, sizeof *degrees);
    for (uint32_t node = 0; node < nodes; node++) {
        if (hnsw_state(h, node) != HNSW_LIVE) continue;
        for (uint32_t layer = 0; layer <= h->levels[node]; layer++) {
            uint32_t links[2 * HNSW_M_MAX], n = hnsw_row_read(h, node, layer, links);
            for (uint32_t i = 0; i < n; i++) {
                ck_assert_uint_ne(links[i], node);
                ck_assert_uint_eq(hnsw_state(h, links[i]), HNSW_LIVE);
                ck_assert_uint_ge(h->levels[links[i]], layer);
                for (uint32_t j = 0; j < i; j++) ck_assert_uint_ne(links[i], links[j]);
                degrees[links[i]] += layer == 0;
            }
        }
    }
    for (uint32_t node = 0; node < nodes; node++)
        if (hnsw_state(h, node) == HNSW_LIVE)
            ck_assert_uint_eq(atomic_load(&h->in_degrees[node]), degrees[node]);
    mem_free(degrees);
    fixture_free(&f);
}
END_TEST

START_TEST(deleting_the_entry_again_and_again_keeps_everything_in_reach)
{
    struct fixture f;
    fixture_fill(&f, 2000, 8, METRIC_L2);
    fixture_build(&f);
    struct hnsw *h = hnsw_of(f.index);
    for (int i = 0; i < 300; i++) {
        uint32_t entry = (uint32_t)atomic_load(&h->entry), slot = h->slots[entry];
        ck_assert_uint_eq(hnsw_state(h, entry), HNSW_LIVE);
        ck_assert_int_eq(index_remove(f.index, slot, NULL), OMEN_OK);
        hnsw_settle(f.index);
        if (i % 2 == 0) ck_assert_int_eq(index_insert(f.index, slot, row(&f, slot), NULL), OMEN_OK);
    }
    ck_assert_uint_eq(unreachable(&f), 0);
    fixture_free(&f);
}
END_TEST

START_TEST(memory_is_what_the_formula_says)
{
    struct fixture f;
    struct index_stats stats;
    fixture_fill(&f, 5000, 128, METRIC_L2);
    fixture_build(&f);
    index_stats(f.index, true, &stats);
    double per_node = hnsw_bytes_per_node(128, METRIC_L2, 16, true);
    ck_assert(fabs((double)stats.memory_bytes - 5000 * (per_node - 512)) <
            5000);                                                       /* vectors are rescored from */
    ck_assert_uint_le(hnsw_of(f.index)->upper_count, 5000 / 15 * 5 / 4); /* its one expectation */
    ck_assert_uint_eq(stats.live_count, 5000);
    ck_assert_uint_eq(stats.slot_count, 5000);
    fixture_free(&f);
}
END_TEST

START_TEST(codes_have_equal_distances_on_every_instruction_set)
{
    _Alignas(64) uint8_t codes[8 * 192];
    _Alignas(64) int16_t query[192];
    const uint32_t nodes[7] = { 0, 5, 3, 7, 1, 2, 6 };
    for (int round = 0; round < 100; round++) {
        for (size_t i = 0; i < sizeof codes; i++) codes[i] = round == 0 ? 255 : (uint8_t)random_u64();
        for (size_t i = 0; i < 192; i++) query[i] = round == 0 ? -700 : (int16_t)(random_u64() % 1600) - 700;
        for (size_t stride = 64; stride <= 192; stride += 64) {
            uint32_t expected[7], got[7];
            const struct hnsw_code_ops *scalar = hnsw_code_ops_for(KERNEL_SCALAR);
            scalar->many(query, codes, stride, nodes, 7, expected);
            for (int isa = KERNEL_SCALAR; isa < KERNEL_ISA_COUNT; isa++) {
                const struct hnsw_code_ops *ops = hnsw_code_ops_for((enum kernel_isa)isa);
                ops->many(query, codes, stride, nodes, 7, got);
                ck_assert_mem_eq(got, expected, sizeof got);
                ck_assert_uint_eq(ops->pair(codes, codes + stride, stride),
                        scalar->pair(codes, codes + stride, stride));
            }
        }
    }
}
END_TEST

START_TEST(memory_that_runs_out_anywhere_is_told_and_nothing_leaks)
{
    struct fixture f;
    fixture_fill(&f, 1200, 4, METRIC_L2);
    struct index_rows rows = { f.data, 4, 1100, 4, METRIC_L2 };
    struct index_params params = { .M = 4, .ef_construction = 10, .capacity = 2000 };
    uint64_t at = 1;
    for (bool failed = true; failed; at++) {
        mem_fail_at(at);
        failed = false;
        struct index *index = NULL;
        enum omen_err rc = index_build(INDEX_HNSW, &rows, &params, NULL, &index, NULL);
        failed = rc != OMEN_OK;
        if (rc == OMEN_OK) {
            struct index_scratch *scratch = index_scratch_new(index);
            failed = failed || scratch == NULL;
            for (uint32_t i = 1100; i < 1200; i++) {
                rc = index_insert(index, i, row(&f, i), NULL);
                failed = failed || rc != OMEN_OK;
                ck_assert(rc == OMEN_OK || rc == OMEN_ENOMEM);
            }
            for (uint32_t i = 0; i < 200; i++) {
                rc = index_remove(index, i, NULL);
                failed = failed || rc != OMEN_OK;
                ck_assert(rc == OMEN_OK || rc == OMEN_ENOMEM);
            }
            struct index_hit hits[10];
            uint32_t count;
            struct index_search s = { .query = row(&f, 300), .k = 10, .effort = 40 };
            if (scratch != NULL) {
                rc = index_search(index, &s, scratch, hits, &count, NULL);
                failed = failed || rc != OMEN_OK;
                ck_assert(rc == OMEN_OK ? count == 10 : rc == OMEN_ENOMEM);
                index_scratch_free(index, scratch);
            }
            index_free(index);
        } else {
            ck_assert_int_eq(rc, OMEN_ENOMEM);
        }
        if (at < 12) failed = true; /* an early failure may be one that only costs speed */
    }
    mem_fail_at(0);
    ck_assert_uint_gt(at, 12);
    mem_free(f.data);
}
END_TEST

START_TEST(more_scratches_than_the_limit_are_refused)
{
    struct fixture f;
    static struct index_scratch *scratches[HNSW_SCRATCHES_MAX];
    fixture_fill(&f, 10, 4, METRIC_L2);
    fixture_build(&f); /* has one of its own */
    for (uint32_t i = 0; i + 1 < HNSW_SCRATCHES_MAX; i++) {
        scratches[i] = index_scratch_new(f.index);
        ck_assert_ptr_nonnull(scratches[i]);
    }
    ck_assert_ptr_null(index_scratch_new(f.index));
    index_scratch_free(f.index, scratches[0]);
    scratches[0] = index_scratch_new(f.index);
    ck_assert_ptr_nonnull(scratches[0]);
    for (uint32_t i = 0; i + 1 < HNSW_SCRATCHES_MAX; i++) index_scratch_free(f.index, scratches[i]);
    fixture_free(&f);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("hnsw");
    TCase *tc = tcase_create("hnsw");
    tcase_add_checked_fixture(tc, setup, NULL);
    tcase_set_timeout(tc, 300);
    tcase_add_test(tc, sizes_zero_one_and_two_answer_all_there_is);
    tcase_add_test(tc, k_above_the_live_points_returns_each_of_them_once);
    tcase_add_test(tc, equal_points_are_all_found);
    tcase_add_test(tc, many_duplicates_do_not_cut_off_their_neighbourhood);
    tcase_add_test(tc, any_dimension_is_searched_well);
    tcase_add_test(tc, denormal_and_constant_components_do_no_harm);
    tcase_add_test(tc, norms_that_differ_a_million_times_are_told_apart);
    tcase_add_test(tc, largest_dot_products_are_found_whatever_the_norms);
    tcase_add_test(tc, growing_norms_under_ip_keep_recall);
    tcase_add_test(tc, codes_are_trained_while_rows_arrive_and_again_when_they_leave_the_range);
    tcase_add_test(tc, few_survivors_are_found_when_nearly_all_are_deleted);
    tcase_add_test(tc, an_index_emptied_can_be_filled_again);
    tcase_add_test(tc, wrong_calls_are_refused_and_change_nothing);
    tcase_add_test(tc, a_slot_can_be_used_again_at_once_with_another_vector);
    tcase_add_test(tc, a_full_index_refuses_and_takes_again_after_removes);
    tcase_add_test(tc, filtered_answers_pass_and_are_never_fewer_than_there_are);
    tcase_add_test(tc, a_filter_against_the_query_costs_no_more_than_twice_the_scan);
    tcase_add_test(tc, answers_end_at_the_largest_distance_allowed);
    tcase_add_test(tc, a_search_stops_inside_the_hop_loop);
    tcase_add_test(tc, a_build_can_be_stopped);
    tcase_add_test(tc, one_seed_gives_one_graph);
    tcase_add_test(tc, no_row_links_to_a_node_that_is_free_or_to_itself);
    tcase_add_test(tc, deleting_the_entry_again_and_again_keeps_everything_in_reach);
    tcase_add_test(tc, memory_is_what_the_formula_says);
    tcase_add_test(tc, codes_have_equal_distances_on_every_instruction_set);
    tcase_add_test(tc, memory_that_runs_out_anywhere_is_told_and_nothing_leaks);
    tcase_add_test(tc, more_scratches_than_the_limit_are_refused);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}
