/* Dimension reduction: the directions that carry a sample are found, whatever its rank. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "storage/quant/pca.h"

static uint64_t rng_state = 77;

static float unit(void)
{
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    rng_state ^= rng_state << 17;
    return (float)(rng_state >> 40) * 0x1p-23f - 1;
}

/* Rows spread along `rank` hidden directions, the first the widest, and a little in all. */
static float *sample_new(uint32_t count, uint32_t dim, uint32_t rank, float noise)
{
    float *hidden = mem_must_alloc((size_t)rank * dim * sizeof(float));
    float *rows = mem_must_calloc((size_t)count * dim, sizeof(float));
    for (size_t i = 0; i < (size_t)rank * dim; i++) hidden[i] = unit();
    for (uint32_t i = 0; i < count; i++) {
        for (uint32_t r = 0; r < rank; r++) {
            float along = unit() * 10 / (float)(r + 1);
            for (uint32_t j = 0; j < dim; j++) rows[(size_t)i * dim + j] += along * hidden[r * dim + j];
        }
        for (uint32_t j = 0; j < dim; j++) rows[(size_t)i * dim + j] += noise * unit() + 3;
    }
    mem_free(hidden);
    return rows;
}

START_TEST(the_directions_that_carry_the_rows_are_kept)
{
    printf("seed %llu\n", (unsigned long long)rng_state);
    float *rows = sample_new(600, 520, 20, 0.05f), *copy = mem_must_alloc(600 * 520 * sizeof(float));
    memcpy(copy, rows, 600 * 520 * sizeof(float));
    struct pca pca;
    ck_assert(pca_train(rows, 600, 520, 24, true, 5, NULL, NULL, &pca) == OMEN_OK);
    ck_assert_msg(pca.share > 0.999f, "kept %g", (double)pca.share);
    for (uint32_t a = 0; a < 24; a++) {
        for (uint32_t b = 0; b <= a; b++) {
            double dot = 0;
            for (uint32_t j = 0; j < 520; j++) dot += (double)pca.basis[a * 520 + j] * pca.basis[b * 520 + j];
            ck_assert_msg(fabs(dot - (a == b)) < 1e-4, "directions %u and %u: %g", a, b, dot);
        }
    }
    /* Distances: what is kept and the rest's length bound them. */
    float x[24], y[24], rest_x, rest_y;
    for (uint32_t i = 0; i + 1 < 100; i++) {
        pca_apply(&pca, copy + (size_t)i * 520, x, &rest_x);
        pca_apply(&pca, copy + (size_t)(i + 1) * 520, y, &rest_y);
        double kept = 0, whole = 0;
        for (uint32_t j = 0; j < 24; j++) kept += pow((double)x[j] - y[j], 2);
        for (uint32_t j = 0; j < 520; j++)
            whole += pow((double)copy[i * 520 + j] - copy[(i + 1) * 520 + j], 2);
        double most = kept + pow(sqrt((double)rest_x) + sqrt((double)rest_y), 2);
        ck_assert(kept <= whole * (1 + 1e-3) && whole <= most * (1 + 1e-3));
    }
    pca_free(&pca);
    mem_free(rows);
    mem_free(copy);
}
END_TEST

START_TEST(samples_of_lower_rank_and_equal_rows_give_a_basis)
{
    for (uint32_t rank = 0; rank < 3; rank++) {
        float *rows = sample_new(40, 64, rank, 0);
        struct pca pca;
        ck_assert(pca_train(rows, 40, 64, 8, true, 5, NULL, NULL, &pca) == OMEN_OK);
        ck_assert_msg(pca.share > 0.999f, "rank %u: kept %g", rank, (double)pca.share);
        float out[8], rest;
        pca_apply(&pca, rows, out, &rest);
        for (uint32_t i = 0; i < 8; i++) ck_assert(isfinite(out[i]));
        ck_assert(isfinite(rest));
        pca_free(&pca);
        mem_free(rows);
    }
}
END_TEST

/* What queries are reduced by: near enough to the exact components, and the same bits on every ISA. */
START_TEST(the_coarse_form_is_near_and_repeats)
{
    const uint32_t dim = 530,
                   kept = 32 + (uint32_t)_i * 31; /* 32: the empty place takes a group of its own */
    float *rows = sample_new(400, dim, 60, 0.3f), *copy = mem_must_alloc(400 * dim * sizeof(float));
    memcpy(copy, rows, 400 * dim * sizeof(float));
    struct pca pca;
    ck_assert(pca_train(rows, 400, dim, kept, true, 5, NULL, NULL, &pca) == OMEN_OK);
    float exact[64], coarse[64];
    pca_apply_coarse(&pca, copy, coarse); /* there is no coarse form yet: the exact one */
    pca_apply(&pca, copy, exact, NULL);
    ck_assert(memcmp(exact, coarse, kept * sizeof(float)) == 0);
    ck_assert(pca_coarsen(&pca) == OMEN_OK);
    ck_assert_ptr_nonnull(pca.coarse);
    for (uint32_t i = 0; i < 400; i++) {
        double off = 0, length = 0;
        pca_apply(&pca, copy + (size_t)i * dim, exact, NULL);
        pca_apply_coarse(&pca, copy + (size_t)i * dim, coarse);
        for (uint32_t j = 0; j < kept; j++) {
            off += pow((double)exact[j] - coarse[j], 2);
            length += pow(exact[j], 2);
        }
        ck_assert_msg(off <= 4e-4 * length, "row %u: %g of %g", i, off, length);
    }
    for (uint32_t j = 0; j < dim; j++) copy[j] = pca.mean[j]; /* nothing is left of it */
    pca_apply_coarse(&pca, copy, coarse);
    for (uint32_t j = 0; j < kept; j++) ck_assert(coarse[j] == 0);
    for (uint32_t j = 0; j < kept; j++)
        pca.basis[j * dim + j] = 30; /* towers over the rest: 7 bits lose that */
    ck_assert(pca_coarsen(&pca) == OMEN_OK);
    ck_assert_ptr_null(pca.coarse);
    pca.basis[7] = NAN;
    ck_assert(pca_coarsen(&pca) == OMEN_OK);
    ck_assert_ptr_null(pca.coarse);
    for (uint64_t n = 1; n <= 3; n++) {
        mem_fail_at(n);
        ck_assert(pca_coarsen(&pca) == OMEN_ENOMEM);
        mem_fail_at(0);
    }
    pca_free(&pca);
    mem_free(rows);
    mem_free(copy);
}
END_TEST

static bool stop_now(void *arg) { return ++*(int *)arg > 2; }

START_TEST(training_repeats_stops_and_runs_out_of_memory_cleanly)
{
    struct pca a, b;
    float *rows = sample_new(100, 80, 5, 1), *again = mem_must_alloc(100 * 80 * sizeof(float));
    memcpy(again, rows, 100 * 80 * sizeof(float));
    ck_assert(pca_train(rows, 100, 80, 10, false, 5, NULL, NULL, &a) == OMEN_OK);
    ck_assert(memcmp(rows, again, 100 * 80 * sizeof(float)) == 0); /* not centred, not touched */
    ck_assert(pca_train(again, 100, 80, 10, false, 5, NULL, NULL, &b) == OMEN_OK);
    ck_assert(memcmp(a.basis, b.basis, 10 * 80 * sizeof(float)) == 0);
    pca_free(&a);
    int polls = 0;
    ck_assert(pca_train(rows, 100, 80, 10, true, 5, stop_now, &polls, &a) == OMEN_ECANCELED);
    ck_assert_ptr_null(a.basis);
    for (uint64_t n = 1; n <= 4; n++) {
        mem_fail_at(n);
        ck_assert(pca_train(rows, 100, 80, 10, true, 5, NULL, NULL, &a) == OMEN_ENOMEM);
        mem_fail_at(0);
    }
    pca_free(&b);
    mem_free(rows);
    mem_free(again);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("pca");
    TCase *tc = tcase_create("pca");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, the_directions_that_carry_the_rows_are_kept);
    tcase_add_test(tc, samples_of_lower_rank_and_equal_rows_give_a_basis);
    tcase_add_loop_test(tc, the_coarse_form_is_near_and_repeats, 0, 2);
    tcase_add_test(tc, training_repeats_stops_and_runs_out_of_memory_cleanly);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
