/* RaBitQ: the rotation keeps distances, the estimate is unbiased and within its error, empty places never
 * pass a bound. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "storage/quant/rabitq.h"
#include "storage/quant/rotation.h"

static uint64_t rng_state;

static float gauss(void)
{
    float sum = 0;
    for (int i = 0; i < 6; i++) sum += (float)(rotation_random(9, rng_state++) >> 40) * 0x1p-24f - 0.5f;
    return sum;
}

static double l2sq(const float *a, const float *b, uint32_t n)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) sum += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
    return sum;
}

static const uint32_t dims[] = { 1, 3, 64, 65, 100, 128, 192, 784, 1024, 4096, 4097 };

START_TEST(rotation_keeps_distances_and_spreads_single_components)
{
    struct rotation *rotation = mem_must_alloc(sizeof *rotation);
    static float a[CODE_DIM_MAX] __attribute__((aligned(64))), b[CODE_DIM_MAX] __attribute__((aligned(64)));
    for (size_t d = 0; d < sizeof dims / sizeof dims[0]; d++) {
        rotation_init(rotation, dims[d], 42 + d);
        ck_assert_uint_eq(rotation->padded % 64, 0);
        ck_assert_uint_lt(rotation->padded, dims[d] + 64);
        memset(a, 0, sizeof a);
        memset(b, 0, sizeof b);
        for (uint32_t i = 0; i < dims[d]; i++) {
            a[i] = gauss();
            b[i] = gauss();
        }
        double before = l2sq(a, b, dims[d]);
        rotation_apply(rotation, a);
        rotation_apply(rotation, b);
        ck_assert(fabs(l2sq(a, b, rotation->padded) - before) <= 1e-4 * (before + 1e-6));
        memset(a, 0, sizeof a);
        a[dims[d] / 2] = 1;
        rotation_apply(rotation, a);
        float largest = 0;
        for (uint32_t i = 0; i < rotation->padded; i++) largest = fmaxf(largest, fabsf(a[i]));
        ck_assert_msg(largest < 8 / sqrtf((float)rotation->padded), "dim %u: %g", dims[d], (double)largest);
    }
    mem_free(rotation);
}
END_TEST

START_TEST(estimate_is_unbiased_and_within_its_error)
{
    static const uint32_t padded[] = { 64, 128, 256, 832 };
    for (size_t d = 0; d < sizeof padded / sizeof padded[0]; d++) {
        uint32_t dim = padded[d];
        float *z = mem_alloc_aligned(64, 34 * (size_t)dim * sizeof(float)), *centre = z + 32 * dim,
              *query = z + 33 * dim;
        uint8_t *codes = mem_alloc_aligned(64, dim * 4), *lut = mem_alloc_aligned(64, dim * 4),
                *scratch = mem_must_alloc(dim * 4);
        double bias = 0, squares = 0, outside = 0;
        uint32_t samples = 0;
        for (int round = 0; round < 100; round++) {
            const float *rows[32];
            uint16_t f[32], g[32];
            float f_scale, g_scale, estimates[32];
            for (uint32_t i = 0; i < dim; i++) centre[i] = gauss();
            for (uint32_t i = 0; i < dim; i++) query[i] = centre[i] + gauss();
            for (int v = 0; v < 32; v++) {
                for (uint32_t i = 0; i < dim; i++) z[v * (int)dim + (int)i] = centre[i] + 0.5f * gauss();
                rows[v] = z + v * (int)dim;
            }
            rabitq_encode(rows, 32, centre, dim, scratch,
                    &(struct rabitq_group){ codes, f, g, &f_scale, &g_scale });
            struct code_query prepared;
            rabitq_prepare(query, dim, lut, &prepared);
            struct code_factors factors = { f, g, f_scale, g_scale };
            double base = l2sq(query, centre, dim);
            code_kernel_get()->estimate_32(&prepared, codes, &factors, (float)base, INFINITY, estimates);
            for (int v = 0; v < 32; v++) {
                double exact = l2sq(query, rows[v], dim), r = sqrt(l2sq(rows[v], centre, dim));
                double error = (estimates[v] - exact) / (r * sqrt(base) * (double)rabitq_error(dim));
                bias += error;
                squares += error * error;
                outside += fabs(error) > 3;
                samples++;
            }
        }
        ck_assert_msg(fabs(bias / samples) < 0.1, "D %u: bias %g", dim, bias / samples);
        ck_assert_msg(squares / samples < 1.3, "D %u: variance %g", dim, squares / samples);
        ck_assert_msg(outside / samples < 0.01, "D %u: %g outside three errors", dim, outside / samples);
        mem_free(z);
        mem_free(codes);
        mem_free(lut);
        mem_free(scratch);
    }
}
END_TEST

START_TEST(empty_places_and_copies_of_the_centre)
{
    float z[128] __attribute__((aligned(64))), estimates[32], f_scale, g_scale;
    uint8_t codes[512] __attribute__((aligned(64))), lut[512] __attribute__((aligned(64))), scratch[512];
    uint16_t f[32], g[32];
    for (int i = 0; i < 128; i++) z[i] = gauss();
    const float *rows[1] = { z };
    rabitq_encode(rows, 1, z, 128, scratch, &(struct rabitq_group){ codes, f, g, &f_scale, &g_scale });
    struct code_query query;
    rabitq_prepare(z, 128, lut, &query);
    struct code_factors factors = { f, g, f_scale, g_scale };
    ck_assert_uint_eq(code_kernel_get()->estimate_32(&query, codes, &factors, 5, INFINITY, estimates), 1);
    ck_assert(estimates[0] == 5.0f);
    for (int i = 1; i < 32; i++) ck_assert(isinf(estimates[i]));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("rabitq");
    TCase *tc = tcase_create("rabitq");
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, rotation_keeps_distances_and_spreads_single_components);
    tcase_add_test(tc, estimate_is_unbiased_and_within_its_error);
    tcase_add_test(tc, empty_places_and_copies_of_the_centre);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
