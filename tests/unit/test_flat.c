/* Exact search against a model that sorts everything: ties, dead rows, thresholds, filters, shared passes. */
#include "common/err.h"
#include "common/mem.h"
#include "storage/index/flat.h"
#include "storage/kernel/kernel.h"
#include "tests/support/doc_text.h"
#include "tests/support/entry_support.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>

static uint64_t rng_state;

static uint64_t rng(void)
{
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    rng_state ^= rng_state << 17;
    return rng_state;
}

static void seed_rng(uint64_t seed)
{
    rng_state = seed;
    printf("seed %llu\n", (unsigned long long)seed);
}

static struct arena arena;

static void setup(void) { arena_init(&arena, 1 << 16, 0); }
static void teardown(void) { arena_fini(&arena); }

/* ---- a world: blocks of rows with owners, and the model ---- */

#define BLOCKS 5

struct world {
    uint32_t dim;
    size_t stride;
    uint32_t counts[BLOCKS];
    float *rows[BLOCKS];
    uint32_t *row_ops[BLOCKS]; /* a permutation, so that row and op differ */
    _Atomic uint64_t *died[BLOCKS];
    struct flat_point *points[BLOCKS]; /* by op */
};

static void world_point_at(const void *points, uint32_t op, struct flat_point *point_out)
{
    *point_out = ((const struct flat_point *)points)[op];
}

/* Few distinct components, so that equal distances are common; ids shuffled so that scan order is not id
 * order. */
static struct world make_world(uint32_t dim, uint32_t rows_max)
{
    struct world w = { .dim = dim, .stride = dim + rng() % 20 };
    for (uint32_t b = 0; b < BLOCKS; b++) {
        uint32_t n = w.counts[b] = b == 0 ? 0 : (uint32_t)(rng() % rows_max);
        w.rows[b] = mem_must_calloc(n + 1, w.stride * sizeof(float));
        w.row_ops[b] = mem_must_calloc(n + 1, sizeof(uint32_t));
        w.died[b] = mem_must_calloc(n + 1, sizeof(uint64_t));
        w.points[b] = mem_must_calloc(n + 1, sizeof(struct flat_point));
        for (uint32_t i = 0; i < n; i++) {
            for (uint32_t d = 0; d < dim; d++) w.rows[b][i * w.stride + d] = (float)(rng() % 3) - 1;
            w.row_ops[b][i] = n - 1 - i;
            if (rng() % 4 == 0) w.died[b][i] = 1 + rng() % 20;
            struct flat_point *p = &w.points[b][i];
            /* The same id may live under two shard keys: then the key's hash decides. */
            p->key = (struct point_key){ { 0, rng() % (rows_max * 2), POINT_ID_U64 }, rng() % 2,
                b * 100000 + i };
            p->payload = doc_of(&arena, rng() % 3 == 0 ? "{'s': 'x'}" : "{'s': 'y'}");
        }
    }
    return w;
}

static void free_world(struct world *w)
{
    for (uint32_t b = 0; b < BLOCKS; b++) {
        mem_free(w->rows[b]);
        mem_free(w->row_ops[b]);
        mem_free((void *)(uintptr_t)w->died[b]); /* sheds _Atomic */
        mem_free(w->points[b]);
    }
}

static struct flat_block block_of(const struct world *w, uint32_t b)
{
    return (struct flat_block){
        .rows = w->rows[b],
        .stride_floats = w->stride,
        .count = w->counts[b],
        .row_ops = w->row_ops[b],
        .died = w->died[b],
        .point_at = world_point_at,
        .points = w->points[b],
        .location = b,
    };
}

static int by_distance_and_key(const void *a, const void *b)
{
    const struct topk_candidate *x = a, *y = b;
    if (x->distance != y->distance) return x->distance < y->distance ? -1 : 1;
    return point_key_compare(&x->key, &y->key);
}

static uint32_t model(const struct world *w, enum metric metric, const float *query, uint64_t view,
        bool only_x, bool has_threshold, float threshold, struct topk_candidate *out)
{
    const struct kernel *scalar = kernel_for(KERNEL_SCALAR);
    uint32_t count = 0;
    for (uint32_t b = 0; b < BLOCKS; b++) {
        for (uint32_t i = 0; i < w->counts[b]; i++) {
            uint32_t op = w->row_ops[b][i];
            if (w->died[b][op] != 0 && w->died[b][op] <= view) continue;
            const float *row = w->rows[b] + i * w->stride;
            float distance = metric == METRIC_L2 ? scalar->l2sq_f32(query, row, w->dim)
                                                 : -scalar->dot_f32(query, row, w->dim);
            float score = score_of_distance(metric, distance);
            if (has_threshold && (metric == METRIC_L2 ? score > threshold : score < threshold)) continue;
            struct doc s = doc_member(w->points[b][op].payload, (struct bytes){ (const uint8_t *)"s", 1 });
            if (only_x && doc_string(s).data[0] != 'x') continue;
            out[count++] = (struct topk_candidate){
                .distance = distance,
                .row = i,
                .key = w->points[b][op].key,
                .location = { b, op },
            };
        }
    }
    qsort(out, count, sizeof *out, by_distance_and_key);
    return count;
}

static void check_against_model(struct topk *t, const struct topk_candidate *want, uint32_t want_count)
{
    topk_sort(t);
    uint32_t n = want_count < t->k ? want_count : t->k;
    ck_assert_uint_eq(t->count, n);
    for (uint32_t i = 0; i < n; i++) {
        ck_assert(t->items[i].distance == want[i].distance);
        ck_assert_int_eq(point_key_compare(&t->items[i].key, &want[i].key), 0);
        ck_assert_uint_eq(t->items[i].row, want[i].row);
        ck_assert_uint_eq(t->items[i].location[0], want[i].location[0]);
        ck_assert_uint_eq(t->items[i].location[1], want[i].location[1]);
    }
}

static const struct filter *parse(const char *text)
{
    const struct filter *filter;
    struct err err;
    ck_assert_int_eq(filter_parse(doc_of(&arena, text), &arena, &filter, &err), OMEN_OK);
    return filter;
}

#define QUERIES_MAX 70 /* more than one group of the scan */

/* ---- promises ---- */

START_TEST(scan_equals_sorting_everything)
{
    seed_rng(100 + (uint64_t)_i);
    static const uint32_t dims[] = { 1, 3, 16, 31, 128, 300 };
    uint32_t dim = dims[_i % 6];
    struct world w = make_world(dim, dim > 100 ? 100 : 500);
    enum metric metric = (enum metric)(_i % 3);
    const struct filter *filter = parse("{'must': [{'key': 's', 'match': {'value': 'x'}}]}");
    uint32_t query_count = _i % 4 == 0 ? QUERIES_MAX : 1 + (uint32_t)(rng() % 5);
    uint64_t view = rng() % 20;
    float *queries = mem_must_calloc(query_count, dim * sizeof(float));
    struct topk topks[QUERIES_MAX];
    struct flat_query flat_queries[QUERIES_MAX];
    float thresholds[QUERIES_MAX];
    for (uint32_t q = 0; q < query_count; q++) {
        for (uint32_t d = 0; d < dim; d++) queries[q * dim + d] = (float)(rng() % 3) - 1;
        uint32_t k = 1 + (uint32_t)(rng() % (q % 5 == 0 ? 3000 : 20));
        ck_assert_int_eq(topk_init(&topks[q], &arena, k), OMEN_OK);
        thresholds[q] = q % 3 != 1    ? NAN
                : metric == METRIC_L2 ? sqrtf((float)(rng() % dim + 1))
                                      : (float)(rng() % 3);
        flat_queries[q] = (struct flat_query){
            .query = queries + q * dim,
            .topk = &topks[q],
            .filter = q % 2 ? filter : NULL,
            .distance_max = isnan(thresholds[q]) ? INFINITY : flat_distance_max(metric, thresholds[q]),
        };
    }
    struct flat_scan scan;
    enum omen_err rc = flat_scan_init(&scan, metric, dim, view, flat_queries, query_count, NULL, NULL,
            &arena);
    ck_assert_int_eq(rc, OMEN_OK);
    uint64_t total = 0;
    for (uint32_t b = BLOCKS; b-- > 0;) {
        struct flat_block block = block_of(&w, b);
        ck_assert_int_eq(flat_scan_block(&scan, &block), OMEN_OK);
        total += w.counts[b];
    }
    ck_assert_uint_eq(scan.stats.rows_scanned, total);
    ck_assert_uint_eq(scan.stats.distances_computed, total * query_count);
    ck_assert_uint_eq(scan.stats.bytes_read, total * w.stride * sizeof(float));
    struct topk_candidate *want = mem_must_calloc(total + 1, sizeof *want);
    for (uint32_t q = 0; q < query_count; q++) {
        uint32_t n = model(&w, metric, queries + q * dim, view, flat_queries[q].filter != NULL,
                !isnan(thresholds[q]), thresholds[q], want);
        check_against_model(&topks[q], want, n);
    }
    mem_free(want);
    mem_free(queries);
    free_world(&w);
}
END_TEST

START_TEST(order_of_blocks_does_not_matter_among_equals)
{
    /* All rows equal: the k lowest ids win, wherever they lie. */
    seed_rng(5);
    struct world w = make_world(8, 200);
    for (uint32_t b = 0; b < BLOCKS; b++) memset(w.rows[b], 0, w.counts[b] * w.stride * sizeof(float));
    float query[8] = { 1 };
    struct topk topk[2];
    for (int turn = 0; turn < 2; turn++) {
        ck_assert_int_eq(topk_init(&topk[turn], &arena, 10), OMEN_OK);
        struct flat_query q = { query, &topk[turn], NULL, INFINITY };
        struct flat_scan scan;
        ck_assert_int_eq(flat_scan_init(&scan, METRIC_L2, 8, 30, &q, 1, NULL, NULL, &arena), OMEN_OK);
        for (uint32_t b = 0; b < BLOCKS; b++) {
            struct flat_block block = block_of(&w, turn ? BLOCKS - 1 - b : b);
            ck_assert_int_eq(flat_scan_block(&scan, &block), OMEN_OK);
        }
        topk_sort(&topk[turn]);
    }
    ck_assert_uint_eq(topk[0].count, 10);
    ck_assert_mem_eq(topk[0].items, topk[1].items, 10 * sizeof topk[0].items[0]);
    free_world(&w);
}
END_TEST

START_TEST(overflowing_dot_product_is_farthest_not_lost)
{
    float rows[3 * 32] = { 0 }, query[32] = { 0 };
    query[0] = query[8] = 3e38f;
    rows[0] = 3e38f; /* lane 0 is inf, lane 8 minus inf: their sum NaN */
    rows[8] = -3e38f;
    rows[32] = 1;      /* an ordinary one */
    rows[64] = -3e38f; /* -dot = +inf */
    rows[64 + 8] = -3e38f;
    struct flat_point points[3] = { { .key = { .id = { 0, 2, 0 } } }, { .key = { .id = { 0, 3, 0 } } },
        { .key = { .id = { 0, 1, 0 } } } };
    for (int isa = 0; isa < KERNEL_ISA_COUNT; isa++) {
        if (kernel_for((enum kernel_isa)isa) == NULL) continue;
        for (uint32_t k = 1; k <= 3; k++) {
            struct topk topk;
            ck_assert_int_eq(topk_init(&topk, &arena, k), OMEN_OK);
            struct flat_query q = { query, &topk, NULL, INFINITY };
            struct flat_scan scan;
            ck_assert_int_eq(flat_scan_init(&scan, METRIC_IP, 32, 0, &q, 1, NULL, NULL, &arena), OMEN_OK);
            scan.kernel = kernel_for((enum kernel_isa)isa);
            struct flat_block block = { rows, 32, 3, NULL, NULL, world_point_at, points, 0 };
            ck_assert_int_eq(flat_scan_block(&scan, &block), OMEN_OK);
            topk_sort(&topk);
            ck_assert_uint_eq(topk.count, k);
            ck_assert_uint_eq(topk.items[0].key.id.lo, 3);
            if (k > 1) ck_assert_uint_eq(topk.items[1].key.id.lo, 1); /* both +inf: by id */
            if (k > 2) ck_assert(isinf(topk.items[2].distance));
        }
    }
}
END_TEST

static bool count_down(void *arg) { return --*(int *)arg == 0; }

START_TEST(scan_stops_when_asked)
{
    uint32_t dim = 256, n = 1000; /* 1 MB: about 16 polls */
    float *rows = mem_must_calloc(n, dim * sizeof(float));
    struct flat_point *points = mem_must_calloc(n, sizeof *points);
    struct topk topk;
    ck_assert_int_eq(topk_init(&topk, &arena, 1), OMEN_OK);
    struct flat_query q = { rows, &topk, NULL, INFINITY };
    struct flat_block block = { rows, dim, n, NULL, NULL, world_point_at, points, 0 };
    struct flat_scan scan;
    int polls_left = 3;
    ck_assert_int_eq(flat_scan_init(&scan, METRIC_L2, dim, 0, &q, 1, count_down, &polls_left, &arena),
            OMEN_OK);
    ck_assert_int_eq(flat_scan_block(&scan, &block), OMEN_EDEADLINE);
    ck_assert_uint_le(scan.stats.bytes_read, 4 * FLAT_POLL_BYTES);
    /* Small blocks are polled for together. */
    polls_left = 1000000;
    block.count = 1;
    ck_assert_int_eq(flat_scan_init(&scan, METRIC_L2, dim, 0, &q, 1, count_down, &polls_left, &arena),
            OMEN_OK);
    for (int i = 0; i < 640; i++) ck_assert_int_eq(flat_scan_block(&scan, &block), OMEN_OK);
    ck_assert_int_eq(polls_left, 1000000 - 10);
    mem_free(points);
    mem_free(rows);
}
END_TEST

START_TEST(threshold_is_exact_to_the_last_bit)
{
    seed_rng(17);
    for (int i = 0; i < 20000; i++) {
        uint32_t bits = (uint32_t)rng() & 0x7fffffff;
        float distance, score;
        memcpy(&distance, &bits, sizeof distance);
        if (!isfinite(distance)) continue;
        score = score_of_distance(METRIC_L2, distance);
        for (int step = -1; step <= 1; step++) {
            float threshold = step == 0 ? score : nextafterf(score, step * INFINITY);
            ck_assert_int_eq(distance <= flat_distance_max(METRIC_L2, threshold), score <= threshold);
        }
        float signed_distance = rng() % 2 ? distance : -distance;
        score = score_of_distance(METRIC_IP, signed_distance);
        for (int step = -1; step <= 1; step++) {
            float threshold = step == 0 ? score : nextafterf(score, step * INFINITY);
            ck_assert_int_eq(signed_distance <= flat_distance_max(METRIC_IP, threshold), score >= threshold);
        }
    }
    ck_assert(0.0f > flat_distance_max(METRIC_L2, -1e-30f));
    ck_assert(0.0f <= flat_distance_max(METRIC_L2, 0.0f));
    ck_assert(INFINITY <= flat_distance_max(METRIC_L2, INFINITY));
}
END_TEST

START_TEST(filter_is_asked_only_of_rows_that_would_enter)
{
    float rows[64], query[1] = { 0 };
    struct flat_point points[64] = { 0 };
    _Atomic uint64_t died[64] = { 0 };
    for (uint32_t i = 0; i < 64; i++) {
        rows[i] = (float)i;
        points[i].key.id.lo = i;
        died[i] = i < 2 ? 7 : 0;
    }
    struct topk topk;
    ck_assert_int_eq(topk_init(&topk, &arena, 3), OMEN_OK);
    struct flat_query q = { query, &topk, parse("{'must_not': {'has_id': [2]}}"), INFINITY };
    struct flat_scan scan;
    ck_assert_int_eq(flat_scan_init(&scan, METRIC_L2, 1, 7, &q, 1, NULL, NULL, &arena), OMEN_OK);
    struct flat_block block = { rows, 1, 64, NULL, died, world_point_at, points, 0 };
    ck_assert_int_eq(flat_scan_block(&scan, &block), OMEN_OK);
    topk_sort(&topk);
    ck_assert_uint_eq(topk.count, 3);
    ck_assert_uint_eq(topk.items[0].key.id.lo, 3);
    ck_assert_uint_eq(scan.stats.filter_evaluated, 4); /* 2, 3, 4, 5: not the dead, not the far */
}
END_TEST

START_TEST(block_of_an_entry_finds_its_points)
{
    struct collection_schema schema = test_schema_simple(5, "");
    struct entry_builder *b = entry_builder_new(&schema);
    float v[5] = { 0 };
    entry_builder_begin_request(b, (struct op_id){ 1, 1, 1 });
    for (uint32_t i = 0; i < 40; i++) {
        struct point_op op = { .kind = i % 3 ? POINT_UPSERT : POINT_DELETE,
            .id = { 0, 1000 + i, POINT_ID_U64 } };
        v[0] = (float)i;
        if (i % 3) op.vectors[0] = v;
        if (i % 3) op.payload = doc_of(&arena, i % 2 ? "{'odd': true}" : "{}");
        ck_assert_int_eq(entry_builder_add(b, &op), OMEN_OK);
    }
    uint8_t *bytes;
    uint32_t len;
    ck_assert_int_eq(entry_builder_finish(b, 1, 1, false, &bytes, &len), OMEN_OK);
    struct entry entry;
    ck_assert_int_eq(entry_parse(bytes, len, &schema, true, &entry, NULL), OMEN_OK);
    _Atomic uint64_t died[40] = { 0 };
    died[17] = 3;
    struct flat_block block;
    flat_block_of_entry(&entry, 0, 5, died, 77, &block);
    struct topk topk;
    ck_assert_int_eq(topk_init(&topk, &arena, 2), OMEN_OK);
    float query[5] = { 17 };
    struct flat_query q = { query, &topk, parse("{'must': {'key': 'odd', 'match': {'value': true}}}"),
        INFINITY };
    struct flat_scan scan;
    ck_assert_int_eq(flat_scan_init(&scan, METRIC_L2, 5, 3, &q, 1, NULL, NULL, &arena), OMEN_OK);
    ck_assert_int_eq(flat_scan_block(&scan, &block), OMEN_OK);
    topk_sort(&topk);
    ck_assert_uint_eq(topk.count, 2);
    ck_assert_uint_eq(topk.items[0].key.id.lo,
            1019); /* 17 died, 15, 18 and 21 are deletions, 16 and 20 even */
    ck_assert_uint_eq(topk.items[0].location[0], 77);
    ck_assert_uint_eq(topk.items[0].location[1], 19);
    ck_assert_uint_eq(topk.items[1].key.id.lo, 1013);
    mem_free(bytes);
    entry_builder_free(b);
}
END_TEST

START_TEST(limits_are_refused)
{
    struct topk topk;
    float query[1] = { 0 };
    struct flat_query q = { query, &topk, NULL, INFINITY };
    struct flat_scan scan;
    ck_assert_int_eq(topk_init(&topk, &arena, 0), OMEN_EINVAL);
    ck_assert_int_eq(topk_init(&topk, &arena, OMEN_K_MAX + 1), OMEN_EINVAL);
    ck_assert_int_eq(topk_init(&topk, &arena, OMEN_K_MAX), OMEN_OK);
    ck_assert_int_eq(flat_scan_init(&scan, METRIC_L2, 1, 0, &q, 0, NULL, NULL, &arena), OMEN_EINVAL);
    ck_assert_int_eq(flat_scan_init(&scan, METRIC_L2, 0, 0, &q, 1, NULL, NULL, &arena), OMEN_EINVAL);
    ck_assert_int_eq(flat_scan_init(&scan, METRIC_L2, OMEN_DIM_MAX + 1, 0, &q, 1, NULL, NULL, &arena),
            OMEN_EINVAL);
    struct arena small;
    arena_init(&small, 64, 4096);
    ck_assert_int_eq(topk_init(&topk, &small, OMEN_K_MAX), OMEN_ENOMEM);
    arena_fini(&small);
}
END_TEST

START_TEST(topk_keeps_the_k_nearest_in_order)
{
    seed_rng(23 + (uint64_t)_i);
    uint32_t n = (uint32_t)(rng() % 3000), k = 1 + (uint32_t)(rng() % 2000);
    struct topk_candidate *all = mem_must_calloc(n + 1, sizeof *all);
    struct topk topk;
    ck_assert_int_eq(topk_init(&topk, &arena, k), OMEN_OK);
    for (uint32_t i = 0; i < n; i++) {
        all[i].distance = (float)(rng() % 50);
        all[i].key = (struct point_key){ { rng(), i, POINT_ID_UUID }, 0, 0 };
        bool accepted = topk_accepts(&topk, &all[i]);
        ck_assert_int_eq(topk_push(&topk, &all[i]), accepted);
    }
    qsort(all, n, sizeof *all, by_distance_and_key);
    check_against_model(&topk, all, n);
    mem_free(all);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("flat");
    TCase *tc = tcase_create("flat");
    tcase_set_timeout(tc, 120);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, scan_equals_sorting_everything, 0, 24);
    tcase_add_test(tc, order_of_blocks_does_not_matter_among_equals);
    tcase_add_test(tc, overflowing_dot_product_is_farthest_not_lost);
    tcase_add_test(tc, scan_stops_when_asked);
    tcase_add_test(tc, threshold_is_exact_to_the_last_bit);
    tcase_add_test(tc, filter_is_asked_only_of_rows_that_would_enter);
    tcase_add_test(tc, block_of_an_entry_finds_its_points);
    tcase_add_test(tc, limits_are_refused);
    tcase_add_loop_test(tc, topk_keeps_the_k_nearest_in_order, 0, 10);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
