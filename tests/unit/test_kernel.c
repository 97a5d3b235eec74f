/* Kernels: every ISA equals the scalar definition to the last bit, and the definition is near the exact
 * value. */
#include "common/err.h"
#include "common/mem.h"
#include "storage/kernel/kernel.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

enum fill { FILL_PLAIN, FILL_DENORMAL, FILL_EXTREME, FILL_MIXED, FILL_COUNT };

static float random_component(enum fill fill)
{
    float unit = (float)((double)(rng() >> 11) / 9007199254740992.0 * 2 - 1);
    switch (fill) {
    case FILL_DENORMAL: return unit * 1e-40f;
    case FILL_EXTREME: return rng() % 2 ? unit * 3.4e38f : unit * 1e-38f;
    case FILL_MIXED: return ldexpf(unit, (int)(rng() % 120) - 60);
    default: return unit;
    }
}

static uint32_t bits_of(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return isnan(f) ? 0x7fc00000u : bits; /* which NaN is no promise: flat.c turns all of them into +inf */
}

#define ROWS 21 /* two full groups of eight and a rest */
#define QUERIES 3

/* One shape: all forms of `kernel` against scalar, from arrays that start `misalign` floats off a cache
 * line. */
static void compare_shape(const struct kernel *kernel, uint32_t dim, uint32_t misalign, enum fill fill)
{
    const struct kernel *scalar = kernel_for(KERNEL_SCALAR);
    size_t stride = dim + rng() % 5;
    /* Exactly as long as allowed, so that AddressSanitizer sees a load past the end. */
    size_t rows_floats = (ROWS - 1) * stride + dim, queries_floats = (QUERIES - 1) * stride + dim;
    float *rows_memory = mem_alloc_aligned(64, (rows_floats + misalign) * sizeof(float));
    float *queries_memory = mem_alloc_aligned(64, (queries_floats + misalign) * sizeof(float));
    float *rows = rows_memory + misalign, *queries = queries_memory + misalign;
    for (size_t i = 0; i < rows_floats; i++) rows[i] = random_component(fill);
    for (size_t i = 0; i < queries_floats; i++) queries[i] = random_component(fill);

    float l2[QUERIES * ROWS], negdot[QUERIES * ROWS], l2_rows[ROWS], negdot_rows[ROWS];
    kernel->l2sq_f32_block(queries, stride, QUERIES, rows, stride, ROWS, dim, l2);
    kernel->negdot_f32_block(queries, stride, QUERIES, rows, stride, ROWS, dim, negdot);
    for (uint32_t q = 0; q < QUERIES; q++) {
        const float *query = queries + q * stride;
        kernel->l2sq_f32_rows(query, rows, stride, ROWS, dim, l2_rows);
        kernel->negdot_f32_rows(query, rows, stride, ROWS, dim, negdot_rows);
        for (uint32_t r = 0; r < ROWS; r++) {
            const float *row = rows + r * stride;
            uint32_t want_l2 = bits_of(scalar->l2sq_f32(query, row, dim));
            uint32_t want_dot = bits_of(scalar->dot_f32(query, row, dim));
            uint32_t want_negdot = bits_of(-scalar->dot_f32(query, row, dim));
            const char *isa = kernel_isa_name(kernel->isa);
            ck_assert_msg(bits_of(kernel->l2sq_f32(query, row, dim)) == want_l2, "%s l2sq dim %u", isa, dim);
            ck_assert_msg(bits_of(kernel->dot_f32(query, row, dim)) == want_dot, "%s dot dim %u", isa, dim);
            ck_assert_msg(bits_of(l2_rows[r]) == want_l2, "%s l2sq rows dim %u row %u", isa, dim, r);
            ck_assert_msg(bits_of(negdot_rows[r]) == want_negdot, "%s negdot rows dim %u row %u", isa, dim,
                    r);
            ck_assert_msg(bits_of(l2[q * ROWS + r]) == want_l2, "%s l2sq block dim %u", isa, dim);
            ck_assert_msg(bits_of(negdot[q * ROWS + r]) == want_negdot, "%s negdot block dim %u", isa, dim);
        }
    }
    mem_free(rows_memory);
    mem_free(queries_memory);
}

static const uint32_t large_dims[] = { 768, 1023, 1024, 1536, 4095, 4096 };

START_TEST(all_isas_give_the_same_bits)
{
    const struct kernel *kernel = kernel_for((enum kernel_isa)_i);
    if (kernel == NULL) return; /* not on this CPU */
    seed_rng(7 + (uint64_t)_i);
    for (uint32_t dim = 1; dim <= 257; dim++)
        compare_shape(kernel, dim, dim % 16, (enum fill)(dim / 2 % FILL_COUNT));
    for (uint32_t dim = 1; dim <= 65; dim++) {
        for (int fill = 0; fill < FILL_COUNT; fill++)
            compare_shape(kernel, dim, (uint32_t)rng() % 16, (enum fill)fill);
    }
    for (size_t i = 0; i < sizeof large_dims / sizeof large_dims[0]; i++) {
        compare_shape(kernel, large_dims[i], (uint32_t)i, (enum fill)(i % FILL_COUNT));
    }
}
END_TEST

START_TEST(l2_error_stays_below_its_bound)
{
    seed_rng(11);
    const struct kernel *kernel = kernel_get();
    static float a[4096], b[4096];
    for (uint32_t dim = 1; dim <= 4096; dim += 1 + dim / 7) {
        double exact = 0;
        for (uint32_t i = 0; i < dim; i++) {
            a[i] = random_component(FILL_PLAIN);
            b[i] = random_component(FILL_PLAIN);
            exact += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        }
        double bound = (dim / 16.0 + 5) * ldexp(1, -24);
        ck_assert_msg(fabs(kernel->l2sq_f32(a, b, dim) - exact) <= bound * exact, "dim %u", dim);
    }
}
END_TEST

START_TEST(dot_of_small_integers_is_exact)
{
    float a[100], b[100];
    int exact = 0;
    for (int i = 0; i < 100; i++) {
        a[i] = (float)(i - 50);
        b[i] = (float)(3 * i % 17);
        exact += (i - 50) * (3 * i % 17);
    }
    for (int isa = 0; isa < KERNEL_ISA_COUNT; isa++) {
        const struct kernel *kernel = kernel_for((enum kernel_isa)isa);
        if (kernel != NULL) ck_assert(kernel->dot_f32(a, b, 100) == (float)exact);
    }
}
END_TEST

START_TEST(isa_can_be_lowered_by_the_environment)
{
    /* kernel_get chooses once per process: Check forks for every test, and with CK_FORK=no main skips this
     * one. */
    setenv("OMENDB_ISA", "scalar", 1);
    ck_assert_int_eq(kernel_get()->isa, KERNEL_SCALAR);
}
END_TEST

START_TEST(normalised_vector_has_unit_length)
{
    seed_rng(13);
    static float v[4096];
    for (uint32_t dim = 1; dim <= 4096; dim = dim * 2 + 1) {
        for (int fill = 0; fill < FILL_COUNT; fill++) {
            for (uint32_t i = 0; i < dim; i++) v[i] = random_component((enum fill)fill);
            vector_normalise(v, dim);
            double norm = 0;
            for (uint32_t i = 0; i < dim; i++) norm += (double)v[i] * v[i];
            ck_assert_msg(fabs(norm - 1) < 1e-6, "dim %u fill %d: %g", dim, fill, norm);
        }
    }
}
END_TEST

START_TEST(zero_vector_stays_zero)
{
    float v[5] = { 0 };
    vector_normalise(v, 5);
    for (int i = 0; i < 5; i++) ck_assert(v[i] == 0.0f);
}
END_TEST

START_TEST(first_component_that_is_not_finite_is_found)
{
    const float bad[] = { NAN, INFINITY, -INFINITY };
    float v[65];
    uint32_t position = 99;
    for (uint32_t i = 0; i < 65; i++) v[i] = 3.4028235e38f;
    ck_assert(vector_finite(v, 65, &position));
    ck_assert_uint_eq(position, 99);
    for (uint32_t at = 0; at < 65; at++) {
        float saved = v[at];
        v[at] = bad[at % 3];
        ck_assert(!vector_finite(v, 65, &position));
        ck_assert_uint_eq(position, at);
        ck_assert(vector_finite(v, at, &position));
        v[at] = saved;
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("kernel");
    TCase *tc = tcase_create("kernel");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, all_isas_give_the_same_bits, 0, KERNEL_ISA_COUNT);
    tcase_add_test(tc, l2_error_stays_below_its_bound);
    tcase_add_test(tc, dot_of_small_integers_is_exact);
    tcase_add_test(tc, normalised_vector_has_unit_length);
    tcase_add_test(tc, zero_vector_stays_zero);
    tcase_add_test(tc, first_component_that_is_not_finite_is_found);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    if (srunner_fork_status(runner) == CK_FORK) tcase_add_test(tc, isa_can_be_lowered_by_the_environment);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
