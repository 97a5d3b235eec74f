/* The sealed graph: it answers for every shape of data, never returns what a filter forbids, never fewer than
 * there are, reaches the recall that it was asked for, and refuses a file that is not what it wrote. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/mem.h"
#include "storage/index/index.h"
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

struct set {
    float *data;
    struct index_rows rows;
    struct index *index;
    struct index *flat;
};

static void set_init(struct set *set, uint32_t count, uint32_t dim, enum metric metric)
{
    memset(set, 0, sizeof *set);
    set->data = mem_must_calloc((size_t)count * dim + 1, sizeof(float));
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

static void set_build(struct set *set, uint32_t threads)
{
    struct index_control control = { .threads = threads };
    struct index_params params = { .seed = 7 };
    struct err err;
    ck_assert_msg(index_build(INDEX_SEALED, &set->rows, &params, &control, &set->index, &err) == OMEN_OK,
            "%s", err.message);
    ck_assert(index_build(INDEX_FLAT, &set->rows, NULL, NULL, &set->flat, &err) == OMEN_OK);
}

static void set_fini(struct set *set)
{
    index_free(set->index);
    index_free(set->flat);
    mem_free(set->data);
}

static uint32_t search(const struct index *index, const struct index_search *search, struct index_hit *hits)
{
    struct index_scratch *scratch = index_scratch_new(index);
    uint32_t count = 0;
    ck_assert(index_search(index, search, scratch, hits, &count, NULL) == OMEN_OK);
    index_scratch_free(index, scratch);
    return count;
}

/* Hits are distinct, ascending, and carry the distance that storage/kernel gives. */
static void hits_check(const struct set *set, const struct index_search *s, const struct index_hit *hits,
        uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        const float *row = set->data + (size_t)hits[i].slot * set->rows.dim;
        float d = set->rows.metric == METRIC_L2 ? kernel_get()->l2sq_f32(s->query, row, set->rows.dim)
                                                : -kernel_get()->dot_f32(s->query, row, set->rows.dim);
        ck_assert(hits[i].slot < set->rows.count);
        ck_assert_msg(d == hits[i].distance, "slot %u: %g is not %g", hits[i].slot, (double)hits[i].distance,
                (double)d);
        if (i > 0) ck_assert(hits[i - 1].distance <= hits[i].distance);
        for (uint32_t j = 0; j < i; j++) ck_assert(hits[j].slot != hits[i].slot);
        if (s->filter != NULL) ck_assert(s->filter[hits[i].slot / 64] >> (hits[i].slot % 64) & 1);
    }
}

static double recall_of(const struct set *set, const struct index_search *s, uint32_t queries, bool fresh)
{
    static struct index_hit hits[1024], truth[1024];
    double sum = 0;
    float *query = mem_must_alloc(set->rows.dim * sizeof(float)),
          noise = set->rows.metric == METRIC_COSINE ? 0.3f / sqrtf((float)set->rows.dim) : 1;
    for (uint32_t q = 0; q < queries; q++) {
        const float *row = set->data + (size_t)(rng() % set->rows.count) * set->rows.dim;
        for (uint32_t j = 0; j < set->rows.dim; j++) query[j] = row[j] + (fresh ? noise * gauss() : 0);
        if (set->rows.metric == METRIC_COSINE) vector_normalise(query, set->rows.dim);
        struct index_search one = *s;
        one.query = query;
        uint32_t wanted = search(set->flat, &one, truth), found = search(set->index, &one, hits), good = 0;
        ck_assert_uint_eq(found, wanted);
        hits_check(set, &one, hits, found);
        for (uint32_t i = 0; i < found; i++)
            good += hits[i].distance <=
                    truth[wanted - 1].distance + fabsf(truth[wanted - 1].distance) * 1e-5f;
        sum += wanted == 0 ? 1 : (double)good / wanted;
    }
    mem_free(query);
    return sum / queries;
}

START_TEST(few_rows_are_all_found)
{
    static const uint32_t counts[] = { 0, 1, 2, 31, 33, 64, 300 };
    seed_rng(3);
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        struct set set;
        set_init(&set, counts[i], 16, METRIC_L2);
        set_fill(&set, 3);
        set_build(&set, 2);
        struct index_hit hits[400];
        float query[16] = { 0 };
        struct index_search s = { .query = query, .k = 400 };
        uint32_t count = search(set.index, &s, hits);
        ck_assert_uint_eq(count, counts[i]);
        hits_check(&set, &s, hits, count);
        set_fini(&set);
    }
}
END_TEST

static const uint32_t dims[] = { 1, 3, 63, 64, 65, 128, 784, 4096 };

START_TEST(every_dimension_and_metric_reaches_its_neighbours)
{
    uint32_t dim = dims[_i];
    seed_rng(11 + (uint64_t)_i);
    for (int metric = METRIC_L2; metric <= METRIC_COSINE; metric++) {
        struct set set;
        set_init(&set, dim > 1000 ? 2100 : 4000, dim, (enum metric)metric);
        set_fill(&set, 20);
        set_build(&set, 2);
        struct index_search s = { .k = 10, .effort = 400 };
        double recall = recall_of(&set, &s, 20, true);
        ck_assert_msg(recall >= 0.95, "dim %u %s: recall %g", dim, metric_name((enum metric)metric), recall);
        set_fini(&set);
    }
}
END_TEST

/* What breaks graphs: copies fill all links, a rotation of nothing, norms that no fixed scale holds. */
static void shape(struct set *set, int which)
{
    uint32_t dim = set->rows.dim;
    for (uint32_t slot = 0; slot < set->rows.count; slot++) {
        float *row = set->data + (size_t)slot * dim;
        for (uint32_t j = 0; j < dim; j++) {
            switch (which) {
            case 0: row[j] = 3; break; /* all equal */
            case 1:
                row[j] = (float)(slot / 50 * 7 % 97) + (float)(j * slot / 50 % 13);
                break;                                    /* 50 copies of each */
            case 2: row[j] *= 1e-40f; break;              /* denormal */
            case 3: row[j] = j == 5 ? 9 : row[j]; break;  /* one constant dimension */
            case 4: row[j] *= slot % 2 ? 1e6f : 1; break; /* norms spread */
            case 5: row[j] = 0; break;
            case 6:
                row[j] = (float)((uint32_t)(row[j] * 20 + 128) & 255);
                break; /* bytes: the lossless form */
            default: break;
            }
        }
    }
}

START_TEST(odd_shapes_of_data_are_answered)
{
    seed_rng(21 + (uint64_t)_i);
    struct set set;
    set_init(&set, 5000, 24, METRIC_L2);
    set_fill(&set, 10);
    shape(&set, _i);
    set_build(&set, 2);
    struct index_search s = { .k = 10, .recall_target = 0.95f };
    double recall = recall_of(&set, &s, 60, false);
    ck_assert_msg(recall >= 0.9, "shape %d: recall %g", _i, recall);
    set_fini(&set);
}
END_TEST

START_TEST(filtered_search_returns_what_passes_and_never_fewer)
{
    static const double shares[] = { 0.9, 0.5, 0.1, 0.01, 0.001, 0 };
    seed_rng(31);
    struct set set;
    set_init(&set, 20000, 32, METRIC_L2);
    set_fill(&set, 50);
    set_build(&set, 2);
    uint64_t *filter = mem_must_calloc(20000 / 64 + 1, sizeof *filter);
    for (size_t i = 0; i < sizeof shares / sizeof shares[0]; i++) {
        memset(filter, 0, (20000 / 64 + 1) * sizeof *filter);
        for (uint32_t slot = 0; slot < 20000; slot++)
            if ((double)(rng() >> 11) * 0x1p-53 < shares[i]) filter[slot / 64] |= UINT64_C(1) << (slot % 64);
        struct index_search s = { .k = 10, .filter = filter, .recall_target = 0.95f };
        double recall = recall_of(&set, &s, 50, true);
        ck_assert_msg(recall >= 0.9, "share %g: recall %g", shares[i], recall);
    }
    /* Anti-correlated: only rows far from the query pass. */
    float *query = set.data;
    memset(filter, 0, (20000 / 64 + 1) * sizeof *filter);
    uint32_t passing = 0;
    float bound = kernel_get()->l2sq_f32(query, set.data + 32 * 1000, 32);
    for (uint32_t slot = 0; slot < 20000; slot++) {
        if (kernel_get()->l2sq_f32(query, set.data + 32 * (size_t)slot, 32) < bound) continue;
        filter[slot / 64] |= UINT64_C(1) << (slot % 64);
        passing++;
    }
    struct index_hit hits[50];
    struct index_search s = { .query = query, .k = 50, .filter = filter };
    uint32_t count = search(set.index, &s, hits);
    ck_assert_uint_eq(count, passing < 50 ? passing : 50);
    hits_check(&set, &s, hits, count);
    mem_free(filter);
    set_fini(&set);
}
END_TEST

START_TEST(a_run_of_slots_is_answered_as_its_bits_are)
{
    static const uint32_t runs[][2] = { { 0, 1 }, { 0, 64 }, { 63, 65 }, { 1000, 1031 }, { 4999, 5000 },
        { 100, 1700 }, { 320, 4096 }, { 0, 4999 }, { 0, 5000 } };
    static const uint32_t layouts[] = { INDEX_LAYOUT_FAST, INDEX_LAYOUT_COMPACT };
    struct set set;
    seed_rng(37);
    set_init(&set, 5000, 24, METRIC_L2);
    set_fill(&set, 20);
    struct index_params params = { .seed = 7, .layout = (enum index_layout)layouts[_i] };
    struct err err;
    ck_assert_int_eq(index_build(INDEX_SEALED, &set.rows, &params, NULL, &set.index, &err), OMEN_OK);
    ck_assert_int_eq(index_build(INDEX_FLAT, &set.rows, NULL, NULL, &set.flat, &err), OMEN_OK);
    ck_assert(index_takes_runs(set.index));
    uint64_t *filter = mem_must_calloc(5000 / 64 + 1, sizeof *filter);
    uint32_t found = 0, wanted = 0;
    for (size_t i = 0; i < sizeof runs / sizeof runs[0]; i++) {
        memset(filter, 0, (5000 / 64 + 1) * sizeof *filter);
        for (uint32_t slot = runs[i][0]; slot < runs[i][1]; slot++)
            filter[slot / 64] |= UINT64_C(1) << (slot % 64);
        for (int plan = INDEX_PLAN_AUTO; plan < INDEX_PLAN_COUNT; plan++) {
            struct index_hit by_bits[20], by_run[20];
            struct index_search s = { .query = set.data + 24 * 77, .k = 20, .plan = (enum index_plan)plan };
            struct index_search bits = s, run = s;
            bits.filter = filter;
            run.run_first = runs[i][0];
            run.run_end = runs[i][1];
            uint32_t want = search(set.index, &bits, by_bits), count = search(set.index, &run, by_run);
            ck_assert_uint_eq(count, want);
            hits_check(&set, &bits, by_run, count);
            bool same = plan == INDEX_PLAN_WALK || plan == INDEX_PLAN_GATHER;
            for (uint32_t h = 0; same && h < count; h++) ck_assert_uint_eq(by_run[h].slot, by_bits[h].slot);
            run.plan = INDEX_PLAN_GATHER; /* exact */
            ck_assert_uint_eq(search(set.index, &run, by_bits), count);
            for (uint32_t h = 0; h < count; h++) found += by_run[h].distance <= by_bits[count - 1].distance;
            wanted += count;
        }
    }
    ck_assert_msg(found >= 0.95 * wanted, "%u of %u", found, wanted);
    struct index_scratch *scratch = index_scratch_new(set.flat);
    struct index_hit hits[1];
    uint32_t count;
    struct index_search s = { .query = set.data, .k = 1, .run_first = 3, .run_end = 7 };
    ck_assert_int_eq(index_search(set.flat, &s, scratch, hits, &count, NULL), OMEN_EINVAL);
    index_scratch_free(set.flat, scratch);
    mem_free(filter);
    set_fini(&set);
}
END_TEST

START_TEST(recall_asked_for_is_delivered)
{
    static const float targets[] = { 0.9f, 0.95f, 0.99f };
    static const uint32_t ks[] = { 1, 10, 100 };
    seed_rng(41);
    struct set set;
    set_init(&set, 20000, 40, METRIC_L2);
    set_fill(&set, 400);
    /* Queries of the same origin as the rows: the last 500 rows, taken out. */
    set.rows.count -= 500;
    set_build(&set, 2);
    for (int t = 0; t < 3; t++) {
        for (int i = 0; i < 3; i++) {
            double sum = 0, squares = 0;
            for (uint32_t q = 0; q < 500; q++) {
                struct index_hit hits[100], truth[100];
                struct index_search s = { .query = set.data + (size_t)(19500 + q) * 40,
                    .k = ks[i],
                    .recall_target = targets[t] };
                uint32_t count = search(set.index, &s, hits), good = 0;
                ck_assert_uint_eq(search(set.flat, &s, truth), count);
                for (uint32_t j = 0; j < count; j++)
                    good += hits[j].distance <= truth[count - 1].distance * (1 + 1e-5f);
                double recall = (double)good / count;
                sum += recall;
                squares += recall * recall;
            }
            double mean = sum / 500, error = sqrt(fmax(squares / 500 - mean * mean, 1e-4) / 500);
            ck_assert_msg(mean >= (double)targets[t] - 3 * error, "k %u: %g asked, %g delivered", ks[i],
                    (double)targets[t], mean);
        }
    }
    set_fini(&set);
}
END_TEST

static bool stop_now(void *arg)
{
    uint32_t *polls = arg;
    return ++*polls > 1;
}

START_TEST(search_stops_when_told)
{
    seed_rng(51);
    struct set set;
    set_init(&set, 5000, 16, METRIC_L2);
    set_fill(&set, 10);
    set_build(&set, 1);
    uint32_t polls = 0, count;
    struct index_hit hits[10];
    struct index_search s = { .query = set.data,
        .k = 10,
        .effort = 1000,
        .stop = stop_now,
        .stop_arg = &polls };
    struct index_scratch *scratch = index_scratch_new(set.index);
    ck_assert(index_search(set.index, &s, scratch, hits, &count, NULL) == OMEN_EDEADLINE);
    ck_assert_uint_eq(polls, 2);
    s.stop = NULL;
    ck_assert(index_search(set.index, &s, scratch, hits, &count, NULL) == OMEN_OK);
    ck_assert_uint_eq(count, 10);
    index_scratch_free(set.index, scratch);
    set_fini(&set);
}
END_TEST

static bool cancel_now(void *arg) { return ++*(uint32_t *)arg > 3; }

START_TEST(build_can_be_cancelled_and_runs_out_of_memory_cleanly)
{
    seed_rng(61);
    struct set set;
    struct err err;
    set_init(&set, 5000, 16, METRIC_L2);
    set_fill(&set, 10);
    uint32_t polls = 0;
    struct index_control control = { .threads = 2, .stop = cancel_now, .arg = &polls };
    ck_assert(index_build(INDEX_SEALED, &set.rows, NULL, &control, &set.index, &err) == OMEN_ECANCELED);
    ck_assert_ptr_null(set.index);
    control = (struct index_control){ .threads = 1, .memory_bytes_max = 1 << 20 };
    ck_assert(index_build(INDEX_SEALED, &set.rows, NULL, &control, &set.index, &err) == OMEN_ENOMEM);
    ck_assert_str_eq(err.field, "memory_bytes_max");
    control = (struct index_control){ .threads = 1 };
    for (uint64_t n = 1; n < 200; n += 3) {
        mem_fail_at(n);
        enum omen_err rc = index_build(INDEX_SEALED, &set.rows, NULL, &control, &set.index, &err);
        mem_fail_at(0);
        ck_assert(rc == OMEN_OK || rc == OMEN_ENOMEM);
        index_free(set.index);
        set.index = NULL;
    }
    set_fini(&set);
}
END_TEST

/* 463 bytes a row beside the graph at 16-d is the least; 719 is what a build takes without a bound. */
START_TEST(a_build_makes_do_with_little_memory)
{
    seed_rng(67);
    double recall[2];
    for (int little = 0; little < 2; little++) {
        struct set set;
        struct err err;
        set_init(&set, 6000, 16, METRIC_L2);
        set_fill(&set, 20);
        struct index_params params = { .seed = 7 };
        struct index_control control = { .threads = 2, .memory_bytes_max = little ? 6000 * 470 : 0 };
        ck_assert_msg(index_build(INDEX_SEALED, &set.rows, &params, &control, &set.index, &err) == OMEN_OK,
                "%s", err.message);
        ck_assert(index_build(INDEX_FLAT, &set.rows, NULL, NULL, &set.flat, &err) == OMEN_OK);
        struct index_search s = { .k = 10, .effort = 40 };
        recall[little] = recall_of(&set, &s, 200, true);
        set_fini(&set);
    }
    printf("recall %g, with little memory %g\n", recall[0], recall[1]);
    ck_assert_msg(recall[1] >= recall[0] - 0.03, "recall %g, with little memory %g", recall[0], recall[1]);
}
END_TEST

START_TEST(rows_and_parameters_are_validated)
{
    struct set set;
    struct err err;
    set_init(&set, 40, 8, METRIC_L2);
    set.data[17 * 8 + 3] = NAN;
    ck_assert(index_build(INDEX_SEALED, &set.rows, NULL, NULL, &set.index, &err) == OMEN_EINVAL);
    ck_assert_ptr_nonnull(strstr(err.message, "slot 17, component 3"));
    set.data[17 * 8 + 3] = 0;
    set_build(&set, 1);
    float query[8] = { 0 };
    struct index_hit hits[1];
    uint32_t count;
    struct index_search bad[] = { { .query = query, .k = 0 }, { .query = query, .k = OMEN_K_MAX + 1 },
        { .query = query, .k = 1, .effort = INDEX_EFFORT_MAX + 1 },
        { .query = query, .k = 1, .recall_target = 1.5f } };
    struct index_scratch *scratch = index_scratch_new(set.index);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        ck_assert(index_search(set.index, &bad[i], scratch, hits, &count, NULL) == OMEN_EINVAL);
    query[2] = INFINITY;
    struct index_search s = { .query = query, .k = 1 };
    ck_assert(index_search(set.index, &s, scratch, hits, &count, NULL) == OMEN_EINVAL);
    ck_assert(index_insert(set.index, 1, set.data, &err) == OMEN_EINVAL);
    index_scratch_free(set.index, scratch);
    set_fini(&set);
}
END_TEST

START_TEST(saved_graph_answers_alike_and_damage_is_refused_by_name)
{
    seed_rng(71);
    struct set set;
    struct err err;
    set_init(&set, 2500, 20, METRIC_IP);
    set_fill(&set, 10);
    set_build(&set, 2);
    char dir[512], path[600];
    snprintf(dir, sizeof dir, "%s/omen-XXXXXX", getenv("TMPDIR") != NULL ? getenv("TMPDIR") : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/graph.index", dir);
    ck_assert_msg(index_save(set.index, vfs_posix(), path, &err) == OMEN_OK, "%s", err.message);
    for (int pin = 0; pin < 2; pin++) {
        struct index *opened;
        ck_assert_msg(index_map(vfs_posix(), path, &set.rows, pin, &opened, &err) == OMEN_OK, "%s",
                err.message);
        for (uint32_t q = 0; q < 50; q++) {
            struct index_hit a[10], b[10];
            struct index_search s = { .query = set.data + (size_t)q * 20, .k = 10 };
            ck_assert_uint_eq(search(set.index, &s, a), search(opened, &s, b));
            ck_assert(memcmp(a, b, sizeof a) == 0);
        }
        index_free(opened);
    }
    uint8_t *bytes;
    size_t len;
    ck_assert(vfs_read_file(vfs_posix(), path, 1u << 30, &bytes, &len, &err) == OMEN_OK);
    for (uint32_t i = 0; i < 300; i++) {
        /* Half the flips hit the header. Padding between sections is the only place where a flip may go
         * unseen. */
        size_t at = i % 2 ? rng() % 4096 : rng() % len, cut = rng() % len;
        struct index *opened = NULL;
        uint8_t kept = bytes[at];
        bytes[at] ^= (uint8_t)(1u << rng() % 8);
        ck_assert(vfs_replace_file(vfs_posix(), path, bytes, i % 5 == 0 ? cut : len, &err) == OMEN_OK);
        enum omen_err rc = index_map(vfs_posix(), path, &set.rows, i % 3 == 0, &opened, &err);
        if (rc == OMEN_OK) {
            ck_assert_msg(at >= 4096 && i % 5 != 0, "flip at %zu was not seen", at);
            struct index_hit hits[10];
            struct index_search s = { .query = set.data, .k = 10 };
            ck_assert_uint_eq(search(opened, &s, hits), 10);
        } else {
            ck_assert(rc == OMEN_ECORRUPT || rc == OMEN_EVERSION || rc == OMEN_EIO);
            ck_assert_ptr_nonnull(strstr(err.message, "graph.index"));
        }
        index_free(opened);
        bytes[at] = kept;
    }
    ck_assert(vfs_replace_file(vfs_posix(), path, bytes, len, &err) == OMEN_OK);
    mem_free(bytes);
    set.rows.dim = 19;
    struct index *opened;
    ck_assert(index_map(vfs_posix(), path, &set.rows, true, &opened, &err) == OMEN_ECORRUPT);
    set.rows.dim = 20;
    ck_assert(vfs_remove_tree(vfs_posix(), dir, &err) == OMEN_OK);
    set_fini(&set);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("sealed");
    TCase *tc = tcase_create("sealed");
    tcase_set_timeout(tc, 600);
    tcase_add_test(tc, few_rows_are_all_found);
    tcase_add_loop_test(tc, every_dimension_and_metric_reaches_its_neighbours, 0,
            sizeof dims / sizeof dims[0]);
    tcase_add_loop_test(tc, odd_shapes_of_data_are_answered, 0, 7);
    tcase_add_test(tc, filtered_search_returns_what_passes_and_never_fewer);
    tcase_add_loop_test(tc, a_run_of_slots_is_answered_as_its_bits_are, 0, 2);
    tcase_add_test(tc, recall_asked_for_is_delivered);
    tcase_add_test(tc, search_stops_when_told);
    tcase_add_test(tc, build_can_be_cancelled_and_runs_out_of_memory_cleanly);
    tcase_add_test(tc, a_build_makes_do_with_little_memory);
    tcase_add_test(tc, rows_and_parameters_are_validated);
    tcase_add_test(tc, saved_graph_answers_alike_and_damage_is_refused_by_name);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
