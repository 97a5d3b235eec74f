/* Quantizers behind their interface: estimates are unbiased and within the error they state, more bits are
 * never worse, ip agrees with l2, training repeats itself and can be cancelled, saved bytes give the same
 * quantizer and damaged ones are refused. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "storage/kernel/kernel.h"
#include "storage/quant/quant.h"
#include "storage/quant/rotation.h"

static uint64_t rng_state;

static uint64_t rng(void) { return rotation_random(77, rng_state++); }
static float gauss(void)
{
    float sum = 0;
    for (int i = 0; i < 6; i++) sum += (float)(rng() >> 40) * 0x1p-24f - 0.5f;
    return sum;
}

#define ROWS 2000
#define QUERIES 20

struct set {
    uint32_t dim;
    float *rows, *queries;
};

/* Clusters away from the origin, components of unlike spread. */
static void set_init(struct set *set, uint32_t dim)
{
    rng_state = dim;
    set->dim = dim;
    set->rows = mem_must_alloc((size_t)ROWS * dim * sizeof(float));
    set->queries = mem_must_alloc((size_t)QUERIES * dim * sizeof(float));
    float *places = mem_must_alloc((size_t)10 * dim * sizeof(float));
    for (uint32_t i = 0; i < 10 * dim; i++) places[i] = 20 + 2 * gauss();
    for (uint32_t row = 0; row < ROWS + QUERIES; row++) {
        float *v = row < ROWS ? set->rows + (size_t)row * dim : set->queries + (size_t)(row - ROWS) * dim;
        for (uint32_t i = 0; i < dim; i++) v[i] = places[row % 10 * dim + i] + (float)(1 + i % 4) * gauss();
    }
    mem_free(places);
}

static void set_fini(struct set *set)
{
    mem_free(set->rows);
    mem_free(set->queries);
}

static struct quant *train(const struct set *set, enum quant_kind kind, uint32_t bits)
{
    struct quant_params params = { .kind = kind, .bits = bits, .seed = 5 };
    struct quant *quant;
    struct err err;
    ck_assert_msg(quant_train(&params, set->rows, set->dim, ROWS, set->dim, NULL, &quant, &err) == OMEN_OK,
            "%s", err.message);
    return quant;
}

static const struct {
    enum quant_kind kind;
    uint32_t bits;
    double least; /* share of the true ten among the nearest 20 by code */
    double bias, outside;
} forms[] = {
    { QUANT_NONE, 32, 1, 0.001, 0.0001 },
    { QUANT_NONE, 16, 0.999, 0.1, 0.02 },
    { QUANT_SCALAR, 8, 0.999, 0.1, 0.01 },
    { QUANT_SCALAR, 6, 0.99, 0.1, 0.02 },
    { QUANT_SCALAR, 4, 0.95, 0.4, 0.02 }, /* the ends of the range are cut off */
    { QUANT_BINARY, 8, 0.999, 0.1, 0.02 },
    { QUANT_BINARY, 6, 0.99, 0.1, 0.02 },
    { QUANT_BINARY, 4, 0.95, 0.1, 0.02 },
    { QUANT_BINARY, 2, 0.7, 0.1, 0.02 },
    { QUANT_BINARY, 1, 0.4, 0.1, 0.02 },
    { QUANT_PRODUCT, 8, 0.7, 3, 1 }, /* a centroid is nearer to queries of its cell: not unbiased */
    { QUANT_PRODUCT, 4, 0.6, 3, 1 },
};
#define FORMS (sizeof forms / sizeof forms[0])

START_TEST(estimates_keep_what_they_state)
{
    static const uint32_t dims[] = { 64, 100, 200 };
    for (size_t d = 0; d < sizeof dims / sizeof dims[0]; d++) {
        struct set set;
        set_init(&set, dims[d]);
        struct quant *quant = train(&set, forms[_i].kind, forms[_i].bits);
        size_t bytes = quant_code_bytes(quant);
        uint8_t *codes = mem_must_alloc(ROWS * bytes);
        float *estimates = mem_must_alloc(ROWS * sizeof(float)), share;
        struct quant_query *query = quant_query_new(quant);
        double bias = 0, outside = 0;
        for (uint32_t row = 0; row < ROWS; row++)
            quant_encode(quant, set.rows + (size_t)row * set.dim, codes + row * bytes);
        for (int metric = METRIC_L2; metric <= METRIC_IP; metric++) {
            for (uint32_t q = 0; q < QUERIES; q++) {
                const float *v = set.queries + (size_t)q * set.dim;
                quant_prepare(quant, (enum metric)metric, v, query);
                quant_estimate(quant, query, codes, bytes, NULL, ROWS, estimates);
                for (uint32_t row = 0; row < ROWS; row++) {
                    const float *x = set.rows + (size_t)row * set.dim;
                    double exact = metric == METRIC_L2 ? kernel_get()->l2sq_f32(v, x, set.dim)
                                                       : -kernel_get()->dot_f32(v, x, set.dim);
                    double error = quant_error(quant, query, estimates[row]) + 1e-4 + fabs(exact) * 1e-6;
                    bias += (estimates[row] - exact) / error;
                    outside += fabs(estimates[row] - exact) > 4 * error;
                }
            }
        }
        double samples = 2.0 * QUERIES * ROWS;
        ck_assert_msg(fabs(bias / samples) <= forms[_i].bias, "%s %u, dim %u: bias %g",
                quant_kind_name(forms[_i].kind), forms[_i].bits, set.dim, bias / samples);
        ck_assert_msg(outside / samples <= forms[_i].outside, "%s %u, dim %u: %g outside",
                quant_kind_name(forms[_i].kind), forms[_i].bits, set.dim, outside / samples);
        ck_assert(quant_fidelity(quant, set.rows, set.dim, ROWS, set.queries, set.dim, QUERIES, 10, 20,
                          &share) == OMEN_OK);
        ck_assert_msg(share >= forms[_i].least, "%s %u, dim %u: %g of the true ten",
                quant_kind_name(forms[_i].kind), forms[_i].bits, set.dim, share);
        struct quant_params params = { .kind = forms[_i].kind, .bits = forms[_i].bits };
        ck_assert_uint_eq(quant_params_code_bytes(&params, set.dim), bytes);
        ck_assert_uint_ge(quant_memory_bytes(quant, 1000), 1000 * bytes);
        quant_query_free(query);
        quant_free(quant);
        mem_free(codes);
        mem_free(estimates);
        set_fini(&set);
    }
}
END_TEST

START_TEST(odd_data_is_coded_without_harm)
{
    static const float scales[] = { 0, 1e-40f, 1e-20f, 1, 1e17f };
    for (size_t s = 0; s < sizeof scales / sizeof scales[0]; s++) {
        struct set set;
        set_init(&set, 70);
        for (uint32_t i = 0; i < ROWS * 70; i++)
            set.rows[i] = i % 70 == 3 ? 7 * scales[s] : set.rows[i] * scales[s];
        struct quant *quant = train(&set, forms[_i].kind, forms[_i].bits);
        struct quant_query *query = quant_query_new(quant);
        uint8_t *code = mem_must_alloc(quant_code_bytes(quant));
        for (uint32_t row = 0; row < 50; row++) {
            float estimate;
            quant_encode(quant, set.rows + row * 70, code);
            quant_prepare(quant, METRIC_L2, set.rows + (row + 7) * 70, query);
            quant_estimate(quant, query, code, 0, NULL, 1, &estimate);
            ck_assert_msg(estimate >= 0, "%g", (double)estimate);
        }
        quant_query_free(query);
        quant_free(quant);
        mem_free(code);
        set_fini(&set);
    }
}
END_TEST

START_TEST(saved_bytes_give_the_same_quantizer_and_damage_is_refused)
{
    struct set set;
    struct err err;
    set_init(&set, 90);
    struct quant *quant = train(&set, forms[_i].kind, forms[_i].bits),
                 *again = train(&set, forms[_i].kind, forms[_i].bits), *loaded;
    struct buf a, b;
    buf_init(&a);
    buf_init(&b);
    quant_save(quant, &a);
    quant_save(again, &b);
    ck_assert(!a.failed && a.len == b.len && memcmp(a.data, b.data, a.len) == 0); /* same seed, same bytes */
    ck_assert_msg(quant_load(a.data, a.len, &loaded, &err) == OMEN_OK, "%s", err.message);
    buf_clear(&b);
    quant_save(loaded, &b);
    ck_assert(a.len == b.len && memcmp(a.data, b.data, a.len) == 0);
    size_t bytes = quant_code_bytes(quant);
    uint8_t *x = mem_must_calloc(1, bytes), *y = mem_must_calloc(1, bytes);
    for (uint32_t row = 0; row < 100; row++) {
        quant_encode(quant, set.rows + row * 90, x);
        quant_encode(loaded, set.rows + row * 90, y);
        ck_assert(memcmp(x, y, bytes) == 0);
    }
    for (size_t at = 0; at < a.len; at += 1 + at / 40) {
        struct quant *bad;
        a.data[at] ^= 0x10;
        ck_assert(quant_load(a.data, a.len, &bad, &err) == OMEN_ECORRUPT);
        a.data[at] ^= 0x10;
        ck_assert(quant_load(a.data, at, &bad, &err) == OMEN_ECORRUPT);
    }
    mem_free(x);
    mem_free(y);
    quant_free(quant);
    quant_free(again);
    quant_free(loaded);
    buf_fini(&a);
    buf_fini(&b);
    set_fini(&set);
}
END_TEST

static bool stop_now(void *arg)
{
    (void)arg;
    return true;
}

START_TEST(training_stops_when_told_and_runs_out_of_memory_cleanly)
{
    struct set set;
    struct err err;
    struct quant *quant;
    set_init(&set, 64);
    struct quant_params params = { .kind = forms[_i].kind, .bits = forms[_i].bits };
    struct quant_control control = { .stop = stop_now };
    enum omen_err rc = quant_train(&params, set.rows, 64, ROWS, 64, &control, &quant, &err);
    ck_assert(rc == (params.kind == QUANT_NONE ? OMEN_OK : OMEN_ECANCELED));
    quant_free(quant);
    for (uint64_t n = 1; n < 8; n++) {
        mem_fail_at(n);
        rc = quant_train(&params, set.rows, 64, ROWS, 64, NULL, &quant, &err);
        mem_fail_at(0);
        ck_assert(rc == OMEN_OK || rc == OMEN_ENOMEM);
        ck_assert((quant == NULL) == (rc != OMEN_OK));
        if (quant == NULL) continue;
        mem_fail_at(n);
        struct quant_query *query = quant_query_new(quant);
        mem_fail_at(0);
        quant_query_free(query);
        quant_free(quant);
    }
    set_fini(&set);
}
END_TEST

START_TEST(parameters_are_validated_and_the_choice_follows_the_target)
{
    struct quant *quant;
    struct err err;
    float row[70] = { 0 };
    const struct quant_params bad[] = { { .kind = QUANT_SCALAR, .bits = 5 },
        { .kind = QUANT_BINARY, .bits = 3 }, { .kind = QUANT_PRODUCT, .bits = 6 },
        { .kind = QUANT_PRODUCT, .subvectors = 71 }, { .kind = QUANT_KIND_COUNT },
        { .kind = QUANT_SCALAR, .rotated = true }, { .kind = QUANT_SCALAR, .subvectors = 2 } };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        ck_assert(quant_train(&bad[i], row, 70, 1, 70, NULL, &quant, &err) == OMEN_EINVAL);
        ck_assert_str_eq(err.field, "quant");
        ck_assert_uint_eq(quant_params_code_bytes(&bad[i], 70), 0);
    }
    struct quant_params product = { .kind = QUANT_PRODUCT };
    ck_assert_uint_eq(quant_params_code_bytes(&product, 128), 32); /* a sixteenth of 512 */
    product.bits = 4;
    ck_assert_uint_eq(quant_params_code_bytes(&product, 128), 32);
    ck_assert_int_eq(quant_choose(0.99f, QUANT_BALANCED), QUANT_NONE);
    ck_assert_int_eq(quant_choose(0.95f, QUANT_BALANCED), QUANT_SCALAR);
    ck_assert_int_eq(quant_choose(0.9f, QUANT_BALANCED), QUANT_PRODUCT);
    ck_assert_int_eq(quant_choose(0.5f, QUANT_BALANCED), QUANT_BINARY);
    ck_assert_int_eq(quant_choose(0.95f, QUANT_CONSERVATIVE), QUANT_NONE);
    ck_assert_int_eq(quant_choose(0.95f, QUANT_AGGRESSIVE), QUANT_PRODUCT);
    ck_assert_int_eq(quant_choose(0.99f, QUANT_CONSERVATIVE), QUANT_NONE);
    ck_assert_int_eq(quant_choose(0.5f, QUANT_AGGRESSIVE), QUANT_BINARY);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("quant");
    TCase *tc = tcase_create("quant");
    tcase_set_timeout(tc, 300);
    tcase_add_loop_test(tc, estimates_keep_what_they_state, 0, FORMS);
    tcase_add_loop_test(tc, odd_data_is_coded_without_harm, 0, FORMS);
    tcase_add_loop_test(tc, saved_bytes_give_the_same_quantizer_and_damage_is_refused, 0, FORMS);
    tcase_add_loop_test(tc, training_stops_when_told_and_runs_out_of_memory_cleanly, 0, FORMS);
    tcase_add_test(tc, parameters_are_validated_and_the_choice_follows_the_target);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
