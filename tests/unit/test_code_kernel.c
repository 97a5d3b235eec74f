/* Code kernels: every ISA gives what the scalar definition gives; sums of signs are the one exception, within
 * rounding. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "storage/kernel/code.h"

static uint64_t rng_state;

static uint64_t rng(void)
{
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    rng_state ^= rng_state << 17;
    return rng_state;
}
static float unit(void) { return (float)(rng() >> 40) * 0x1p-23f - 1; }

static void setup_seed(uint64_t seed)
{
    rng_state = seed;
    printf("seed %llu\n", (unsigned long long)seed);
}

static const uint32_t dims[] = { 64, 128, 192, 832, 4160 };

START_TEST(estimates_are_bit_equal)
{
    const struct code_kernel *kernel = code_kernel_for((enum kernel_isa)_i),
                             *scalar = code_kernel_for(KERNEL_SCALAR);
    if (kernel == NULL) return;
    setup_seed(5 + (uint64_t)_i);
    for (size_t d = 0; d < sizeof dims / sizeof dims[0]; d++) {
        uint32_t dim = dims[d];
        uint8_t *lut = mem_alloc_aligned(64, dim * 4), *other = mem_alloc_aligned(64, dim * 4);
        uint8_t *codes = mem_alloc_aligned(64, dim * 4);
        float *z = mem_alloc_aligned(64, dim * sizeof(float)), a[32], b[32];
        for (int round = 0; round < 20; round++) {
            uint16_t f[32], g[32];
            for (uint32_t i = 0; i < dim; i++) z[i] = unit();
            for (uint32_t i = 0; i < dim * 4; i++) codes[i] = round == 0 ? 0xff : (uint8_t)rng();
            for (int i = 0; i < 32; i++) {
                f[i] = i == 7 ? 0x7c00 : code_f16_of_f32(unit() * 30000);
                g[i] = code_f16_of_f32(unit() * 3000);
            }
            scalar->lut_build(z, dim, 20, lut);
            kernel->lut_build(z, dim, 20, other);
            ck_assert(memcmp(lut, other, dim * 4) == 0);
            if (round == 0) memset(lut, CODE_LUT_MAX, dim * 4); /* the largest sum that there is */
            struct code_query query = { lut, dim, 0.01f, -3 };
            struct code_factors factors = { f, g, 0.5f, 0.25f };
            float base = unit() * 1000, bound = unit() * 10000;
            uint32_t want = scalar->estimate_32(&query, codes, &factors, base, bound, a);
            ck_assert_uint_eq(kernel->estimate_32(&query, codes, &factors, base, bound, b), want);
            ck_assert(memcmp(a, b, sizeof a) == 0);
            ck_assert(isinf(a[7]));
        }
        mem_free(lut);
        mem_free(other);
        mem_free(codes);
        mem_free(z);
    }
}
END_TEST

START_TEST(distances_to_bytes_are_bit_equal_and_exact_for_bytes)
{
    const struct code_kernel *kernel = code_kernel_for((enum kernel_isa)_i),
                             *scalar = code_kernel_for(KERNEL_SCALAR);
    if (kernel == NULL) return;
    setup_seed(15 + (uint64_t)_i);
    for (uint32_t dim = 1; dim <= 257; dim++) {
        uint8_t *code = mem_alloc(dim);
        float *query = mem_alloc(dim * sizeof(float)), *row = mem_alloc(dim * sizeof(float));
        for (uint32_t i = 0; i < dim; i++) {
            code[i] = (uint8_t)rng();
            row[i] = code[i];
            query[i] = unit() * 200;
        }
        ck_assert(kernel->l2sq_f32_u8(query, code, -3.5f, 0.37f, dim) ==
                scalar->l2sq_f32_u8(query, code, -3.5f, 0.37f, dim));
        ck_assert(kernel->l2sq_f32_u8(query, code, 0, 1, dim) == kernel_get()->l2sq_f32(query, row, dim));
        mem_free(code);
        mem_free(query);
        mem_free(row);
    }
}
END_TEST

START_TEST(tiles_selection_and_occlusion_are_equal)
{
    const struct code_kernel *kernel = code_kernel_for((enum kernel_isa)_i),
                             *scalar = code_kernel_for(KERNEL_SCALAR);
    if (kernel == NULL) return;
    setup_seed(25 + (uint64_t)_i);
    for (uint32_t dim = 64; dim <= 320; dim += 64) {
        int8_t *memory = mem_alloc_aligned(64, 40 * dim);
        const int8_t *rows[40];
        for (uint32_t i = 0; i < 40 * dim; i++)
            memory[i] = (int8_t)(i < dim  ? -CODE_TILE_MAX
                            : i < 2 * dim ? CODE_TILE_MAX
                                          : (int)(rng() % (2 * CODE_TILE_MAX + 1)) - CODE_TILE_MAX);
        for (int i = 0; i < 40; i++) rows[i] = memory + i * (int)dim;
        uint8_t *a = mem_alloc_aligned(64, dim * 32), *b = mem_alloc_aligned(64, dim * 32);
        for (uint32_t count = 1; count <= 32; count += 31) {
            int32_t dots[2][40][32] __attribute__((aligned(64))), bias[32] __attribute__((aligned(64)));
            scalar->pack_tile(rows, count, dim, a);
            kernel->pack_tile(rows, count, dim, b);
            ck_assert(memcmp(a, b, dim * 32) == 0);
            scalar->dot_tile(rows, 39, dim, a, &dots[0][0][0], 32);
            kernel->dot_tile(rows, 39, dim, a, &dots[1][0][0], 32);
            ck_assert(memcmp(dots[0], dots[1], 39 * 32 * 4) == 0);
            struct code_top16 x, y;
            code_top16_init(&x);
            code_top16_init(&y);
            for (int i = 0; i < 39; i++) {
                for (int j = 0; j < 32; j++) bias[j] = (int32_t)(rng() % 64); /* many ties */
                scalar->select_32(dots[0][i], bias, (uint32_t)i * 32, &x);
                kernel->select_32(dots[0][i], bias, (uint32_t)i * 32, &y);
                ck_assert(memcmp(&x, &y, sizeof x) == 0);
            }
            int32_t norms[64];
            float reach[64];
            for (int i = 0; i < 64; i++) {
                norms[i] = (int32_t)(rng() % 100000);
                reach[i] = i % 9 == 0 ? -1 : (float)(rng() % 200000);
            }
            ck_assert(scalar->occlude_64(dots[0][0], norms, 500, reach, 1.2f) ==
                    kernel->occlude_64(dots[0][0], norms, 500, reach, 1.2f));
        }
        mem_free(memory);
        mem_free(a);
        mem_free(b);
    }
}
END_TEST

START_TEST(transform_halves_signs_and_pool_are_equal)
{
    const struct code_kernel *kernel = code_kernel_for((enum kernel_isa)_i),
                             *scalar = code_kernel_for(KERNEL_SCALAR);
    if (kernel == NULL) return;
    setup_seed(35 + (uint64_t)_i);
    static float a[4096] __attribute__((aligned(64))), b[4096] __attribute__((aligned(64))), c[4096];
    static uint16_t h[2][4096];
    static uint8_t signs[2][512];
    for (uint32_t n = 64; n <= 4096; n *= 2) {
        for (uint32_t i = 0; i < n; i++) {
            a[i] = b[i] = unit() * (i % 7 == 0 ? 1e-7f : 900);
            c[i] = unit();
        }
        float x[3], y[3];
        scalar->sign_code(a, n % 128 ? c : NULL, n, signs[0], x);
        kernel->sign_code(a, n % 128 ? c : NULL, n, signs[1], y);
        ck_assert(memcmp(signs[0], signs[1], n / 8) == 0);
        for (int i = 0; i < 3; i++) ck_assert(fabsf(x[i] - y[i]) <= 1e-4f * (fabsf(x[i]) + 1));
        scalar->narrow_f16(a, n, h[0]);
        kernel->narrow_f16(a, n, h[1]);
        ck_assert(memcmp(h[0], h[1], n * 2) == 0);
        scalar->widen_f16(h[0], n, b); /* and distances to such rows are those to the widened ones */
        float l2 = kernel->l2sq_f32_f16(c, h[0], n), dot = kernel->dot_f32_f16(c, h[0], n);
        float f32[2] = { kernel_get()->l2sq_f32(c, b, n), kernel_get()->dot_f32(c, b, n) };
        ck_assert(memcmp(&l2, &f32[0], sizeof l2) == 0 && memcmp(&dot, &f32[1], sizeof dot) == 0);
        memcpy(b, a, n * sizeof(float));
        kernel->hadamard(a, n);
        scalar->hadamard(b, n);
        ck_assert(memcmp(a, b, n * sizeof(float)) == 0);
        scalar->widen_f16(h[0], n, a);
        kernel->widen_f16(h[0], n, b);
        ck_assert(memcmp(a, b, n * sizeof(float)) == 0);
    }
    for (uint32_t cap = 1; cap <= 70; cap++) {
        uint64_t p[2][80] = { 0 };
        uint32_t count[2] = { 0, 0 };
        for (int i = 0; i < 200; i++) {
            uint64_t key = rng() % 64 << 32 | (uint64_t)i;
            uint32_t at = scalar->pool_insert(p[0], &count[0], cap, key);
            ck_assert_uint_eq(kernel->pool_insert(p[1], &count[1], cap, key), at);
            ck_assert_uint_eq(count[0], count[1]);
            ck_assert(memcmp(p[0], p[1], count[0] * 8) == 0);
        }
    }
}
END_TEST

START_TEST(merged_pools_are_equal)
{
    const struct code_kernel *kernel = code_kernel_for((enum kernel_isa)_i),
                             *scalar = code_kernel_for(KERNEL_SCALAR);
    if (kernel == NULL) return;
    setup_seed(45 + (uint64_t)_i);
    for (uint32_t cap = 1; cap <= 300; cap += cap < 70 ? 1 : 23) {
        uint64_t p[2][320] = { 0 }, out[2][320] = { 0 }, fresh[40];
        uint32_t count = 0;
        for (int round = 0; round < 60; round++) {
            uint32_t n = round == 1 ? 32 : (uint32_t)(rng() % 32) + 1;
            for (uint32_t i = 0; i < n; i++)
                fresh[i] = round % 8 == 3 ? rng() % 5 : rng() % 90 << 32 | rng() % 900; /* equal ones too */
            uint32_t at = scalar->pool_merge(p[0], count, cap, fresh, n, out[0]);
            ck_assert_uint_eq(kernel->pool_merge(p[1], count, cap, fresh, n, out[1]), at);
            count = count + n < cap ? count + n : cap;
            ck_assert(memcmp(out[0], out[1], count * 8) == 0);
            for (uint32_t i = 1; i < count; i++) ck_assert(out[0][i - 1] <= out[0][i]);
            if (round % 20 == 19) count = 0;
            memcpy(p[0], out[0], sizeof p[0]);
            memcpy(p[1], out[1], sizeof p[1]);
        }
    }
}
END_TEST

START_TEST(split_codes_are_equal_and_add_up)
{
    const struct code_kernel *kernel = code_kernel_for((enum kernel_isa)_i),
                             *scalar = code_kernel_for(KERNEL_SCALAR);
    if (kernel == NULL) return;
    setup_seed(46 + (uint64_t)_i);
    for (uint32_t dim = 32; dim <= 512; dim += 32) {
        float v[512];
        int8_t high[2][512], low[2][512];
        for (uint32_t i = 0; i < dim; i++)
            v[i] = i < 8 ? (float)CODE_SPLIT_MAX / (float)(i + 1) * (i % 2 != 0 ? 1 : -1) /* the ends */
                         : (float)(int64_t)(rng() % (2 * CODE_SPLIT_MAX * 4 + 1)) / 4 - CODE_SPLIT_MAX;
        scalar->split_i8(v, dim, 1, high[0], low[0]);
        kernel->split_i8(v, dim, 1, high[1], low[1]);
        ck_assert(memcmp(high[0], high[1], dim) == 0 && memcmp(low[0], low[1], dim) == 0);
        for (uint32_t i = 0; i < dim; i++) {
            ck_assert_int_le(abs(high[1][i]), CODE_TILE_MAX);
            ck_assert_int_le(abs(low[1][i]), CODE_TILE_MAX);
            ck_assert(fabsf((float)(high[1][i] * CODE_SPLIT_BASE + low[1][i]) - v[i]) <= 0.5f);
        }
    }
}
END_TEST

START_TEST(half_precision_survives_the_round_trip)
{
    for (uint32_t bits = 0; bits < 65536; bits++) {
        float value = code_f32_of_f16((uint16_t)bits);
        if (isnan(value)) continue;
        ck_assert_uint_eq(code_f16_of_f32(value), bits);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("code kernels");
    TCase *tc = tcase_create("code kernels");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, estimates_are_bit_equal, 0, KERNEL_ISA_COUNT);
    tcase_add_loop_test(tc, distances_to_bytes_are_bit_equal_and_exact_for_bytes, 0, KERNEL_ISA_COUNT);
    tcase_add_loop_test(tc, merged_pools_are_equal, 0, KERNEL_ISA_COUNT);
    tcase_add_loop_test(tc, split_codes_are_equal_and_add_up, 0, KERNEL_ISA_COUNT);
    tcase_add_loop_test(tc, tiles_selection_and_occlusion_are_equal, 0, KERNEL_ISA_COUNT);
    tcase_add_loop_test(tc, transform_halves_signs_and_pool_are_equal, 0, KERNEL_ISA_COUNT);
    tcase_add_test(tc, half_precision_survives_the_round_trip);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
