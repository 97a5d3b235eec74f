/* Merged graphs: what was asked for is delivered on unseen queries, at the effort of a graph that was built from all
 * rows; rows that are gone take nobody's neighbours along; what cannot be merged is built or refused. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "tests/support/recall_support.h"

#define QUERIES 400
#define PARTS_MAX 4

struct merging {
    struct recall_set set; /* rows of the merged index */
    uint32_t part_count;
    float *data[PARTS_MAX]; /* rows of each part, in another order, and rows that are gone */
    uint32_t *slots[PARTS_MAX];
    struct index_rows rows[PARTS_MAX];
    struct index_part parts[PARTS_MAX];
    struct index *indexes[PARTS_MAX];
    struct index_params params;
};

/* Rows in one part of 100 shares[i] percent each, every `gone`-th row of a part (0 = none) in no other place. */
static void merging_init(struct merging *m, const uint32_t *shares, uint32_t gone)
{
    struct recall_set *set = &m->set;
    uint32_t dim = set->rows.dim, *order = mem_must_alloc(set->rows.count * sizeof *order), first = 0;
    for (uint32_t i = 0; i < set->rows.count; i++) {
        uint32_t j = (uint32_t)(recall_rng(set) % (i + 1));
        order[i] = order[j];
        order[j] = i;
    }
    for (uint32_t p = 0; p < m->part_count; p++) {
        uint32_t live = p + 1 == m->part_count ? set->rows.count - first : set->rows.count * shares[p] / 100;
        uint32_t count = live + (gone == 0 ? 0 : live / (gone - 1)), next = first;
        m->data[p] = mem_must_alloc((size_t)count * dim * sizeof(float));
        m->slots[p] = mem_must_alloc(count * sizeof(uint32_t));
        for (uint32_t slot = 0; slot < count; slot++) {
            bool dead = (gone > 0 && slot % gone == gone - 1) || next == first + live;
            uint32_t from = dead ? (uint32_t)(recall_rng(set) % set->rows.count) : order[next++];
            float *row = m->data[p] + (size_t)slot * dim;
            memcpy(row, set->data + (size_t)from * dim, dim * sizeof(float));
            for (uint32_t j = 0; dead && j < dim; j++) row[j] *= 1 + 0.01f * recall_gauss(set);
            m->slots[p][slot] = dead ? INDEX_SLOT_NONE : from;
        }
        ck_assert_uint_eq(next, first + live);
        first = next;
        m->rows[p] = (struct index_rows){ m->data[p], dim, count, dim, set->rows.metric };
        struct index_control control = { .threads = 2 };
        struct err err;
        ck_assert_int_eq(index_build(INDEX_SEALED, &m->rows[p], &m->params, &control, &m->indexes[p], &err),
                OMEN_OK);
        m->parts[p] = (struct index_part){ m->indexes[p], m->slots[p] };
    }
    mem_free(order);
}

static void merging_fini(struct merging *m)
{
    for (uint32_t p = 0; p < m->part_count; p++) {
        index_free(m->indexes[p]);
        mem_free(m->data[p]);
        mem_free(m->slots[p]);
    }
    recall_set_fini(&m->set);
}

static struct index *merged(const struct merging *m)
{
    struct index_control control = { .threads = 2 };
    struct index *index;
    struct err err;
    enum omen_err rc = index_merge(m->parts, m->part_count, &m->set.rows, &m->params, &control, &index, &err);
    ck_assert_msg(rc == OMEN_OK, "%s", err.message);
    return index;
}

static double recall_at(const struct merging *m, const struct index *index, uint32_t effort)
{
    struct index_search s = { .k = 10, .effort = effort };
    return recall_measure(&m->set, index, &s, NULL).mean;
}

/* As good at the same effort as a graph of all rows, and as good as was asked for. */
static void merge_check(struct merging *m, const char *what)
{
    static const uint32_t efforts[] = { 20, 40, 80 };
    struct index *one = merged(m), *whole;
    struct index_control control = { .threads = 2 };
    struct index_stats stats;
    struct err err;
    ck_assert_int_eq(index_build(INDEX_SEALED, &m->set.rows, &m->params, &control, &whole, &err), OMEN_OK);
    index_stats(one, true, &stats);
    ck_assert_uint_eq(stats.live_count, m->set.rows.count);
    for (size_t i = 0; i < sizeof efforts / sizeof efforts[0]; i++) {
        double ours = recall_at(m, one, efforts[i]), theirs = recall_at(m, whole, efforts[i]);
        printf("%s, effort %u: merged %.4f, built %.4f\n", what, efforts[i], ours, theirs);
        ck_assert_msg(ours >= theirs - 0.02, "%s, effort %u: merged %g, built %g", what, efforts[i], ours,
                theirs);
    }
    for (uint32_t k = 1; k <= 100; k *= 10) {
        struct index_search s = { .k = k, .recall_target = 0.95f };
        struct recall_result result = recall_measure(&m->set, one, &s, NULL);
        ck_assert_msg(result.mean >= 0.95 - 2 * result.standard_error, "%s, k %u: %g for 0.95", what, k,
                result.mean);
    }
    index_free(one);
    index_free(whole);
}

static const struct shape {
    const char *what;
    uint32_t rows, dim;
    enum metric metric;
    uint32_t shares[PARTS_MAX], part_count, gone;
    enum index_layout layout;
} shapes[] = {
    { "two halves, l2", 8000, 40, METRIC_L2, { 50 }, 2, 0, INDEX_LAYOUT_FAST },
    { "two halves, ip", 8000, 40, METRIC_IP, { 50 }, 2, 0, INDEX_LAYOUT_FAST },
    { "two halves, cosine", 8000, 40, METRIC_COSINE, { 50 }, 2, 0, INDEX_LAYOUT_FAST },
    { "a ninth, l2", 9000, 40, METRIC_L2, { 11 }, 2, 0, INDEX_LAYOUT_FAST },
    { "three parts, a fifth gone", 9000, 40, METRIC_L2, { 60, 20 }, 3, 5, INDEX_LAYOUT_FAST },
    { "two halves, compact", 8000, 40, METRIC_L2, { 50 }, 2, 0, INDEX_LAYOUT_COMPACT },
    { "compact, a fifth gone", 8000, 40, METRIC_COSINE, { 60 }, 2, 5, INDEX_LAYOUT_COMPACT },
    { "reduced", 5000, 600, METRIC_L2, { 50 }, 2, 0, INDEX_LAYOUT_FAST },
    { "four parts: built", 6000, 20, METRIC_L2, { 25, 25, 25 }, 4, 0, INDEX_LAYOUT_FAST },
};

START_TEST(merged_graphs_deliver_what_was_asked)
{
    const struct shape *shape = &shapes[_i];
    struct merging m = { .part_count = shape->part_count, .params = { .seed = 7, .layout = shape->layout } };
    recall_set_init(&m.set, shape->rows, QUERIES, shape->dim, shape->metric, 71 + (uint64_t)_i);
    recall_set_fill(&m.set, 100, 16);
    merging_init(&m, shape->shares, shape->gone);
    merge_check(&m, shape->what);
    merging_fini(&m);
}
END_TEST

/* Rows of one part lie apart from all others: nothing there is near what is here, and both are found. */
START_TEST(parts_that_lie_apart_are_both_found)
{
    struct merging m = { .part_count = 2, .params = { .seed = 7 } };
    recall_set_init(&m.set, 8000, QUERIES, 24, METRIC_L2, 97);
    recall_set_fill(&m.set, 40, 12);
    for (uint32_t row = 0; row < 8000 + QUERIES; row++)
        for (uint32_t j = 0; row % 2 == 1 && j < 24; j++) m.set.data[(size_t)row * 24 + j] += 1000;
    static const uint32_t shares[] = { 50 };
    merging_init(&m, shares, 0);
    merge_check(&m, "shuffled");
    for (uint32_t p = 0; p < 2; p++) { /* and now the even rows in one part, the odd ones in the other */
        for (uint32_t slot = 0; slot < 4000; slot++) {
            m.slots[p][slot] = slot * 2 + p;
            memcpy(m.data[p] + (size_t)slot * 24, m.set.data + (size_t)(slot * 2 + p) * 24,
                    24 * sizeof(float));
        }
        index_free(m.indexes[p]);
        ck_assert_int_eq(index_build(INDEX_SEALED, &m.rows[p], &m.params, NULL, &m.indexes[p], NULL),
                OMEN_OK);
        m.parts[p].index = m.indexes[p];
    }
    merge_check(&m, "apart");
    merging_fini(&m);
}
END_TEST

static bool cancel_third(void *arg)
{
    uint32_t *polls = arg;
    return ++*polls > 3;
}

START_TEST(merges_are_refused_cancelled_and_run_out_of_memory_cleanly)
{
    struct merging m = { .part_count = 2, .params = { .seed = 7, .held_out = UINT32_MAX } };
    struct index *index;
    struct err err;
    static const uint32_t shares[] = { 50 };
    recall_set_init(&m.set, 5000, 1, 8, METRIC_L2, 113);
    recall_set_fill(&m.set, 20, 6);
    merging_init(&m, shares, 0);
    uint32_t kept = m.slots[0][0], polls = 0;
    static const uint32_t wrong[] = { 5000, INDEX_SLOT_NONE };
    for (size_t i = 0; i < 3; i++) { /* beyond the end, named by nobody, named twice */
        m.slots[0][0] = i < 2 ? wrong[i] : m.slots[1][0];
        ck_assert_int_eq(index_merge(m.parts, 2, &m.set.rows, &m.params, NULL, &index, &err), OMEN_EINVAL);
        ck_assert_str_eq(err.field, "parts");
        ck_assert_ptr_null(index);
    }
    m.slots[0][0] = kept;
    struct index_rows narrow = m.set.rows;
    narrow.dim = 7;
    ck_assert_int_eq(index_merge(m.parts, 2, &narrow, &m.params, NULL, &index, &err), OMEN_EINVAL);
    struct index_control control = { .stop = cancel_third, .arg = &polls };
    ck_assert_int_eq(index_merge(m.parts, 2, &m.set.rows, &m.params, &control, &index, &err), OMEN_ECANCELED);
    control = (struct index_control){ .memory_bytes_max = 1 << 20 };
    ck_assert_int_eq(index_merge(m.parts, 2, &m.set.rows, &m.params, &control, &index, &err), OMEN_ENOMEM);
    ck_assert_str_eq(err.field, "memory_bytes_max");
    for (uint64_t n = 1; n < 120; n += 2) {
        mem_fail_at(n);
        enum omen_err rc = index_merge(m.parts, 2, &m.set.rows, &m.params, NULL, &index, &err);
        mem_fail_at(0);
        ck_assert(rc == OMEN_OK || (rc == OMEN_ENOMEM && index == NULL));
        index_free(index);
    }
    merging_fini(&m);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("merge");
    TCase *tc = tcase_create("merge");
    tcase_set_timeout(tc, 600);
    tcase_add_loop_test(tc, merged_graphs_deliver_what_was_asked, 0, sizeof shapes / sizeof shapes[0]);
    tcase_add_test(tc, parts_that_lie_apart_are_both_found);
    tcase_add_test(tc, merges_are_refused_cancelled_and_run_out_of_memory_cleanly);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
