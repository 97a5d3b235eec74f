/* Packed codes: every ISA estimates what the scalar definition does, to the last bit, for all widths, at the
 * largest sums, unaligned, gathered or in a row; nothing past the last code is read. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/mem.h"
#include "storage/kernel/packed.h"

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

static const uint32_t widths[] = { 1, 2, 4, 6, 8 };
static const uint32_t dims[] = { 64, 128, 192, 832, 4160 };

START_TEST(levels_survive_packing)
{
    setup_seed(3);
    for (size_t w = 0; w < sizeof widths / sizeof widths[0]; w++) {
        uint8_t levels[320], code[320], back[320];
        for (uint32_t i = 0; i < 320; i++) levels[i] = (uint8_t)(rng() & ((1u << widths[w]) - 1));
        packed_store(levels, 320, widths[w], code);
        packed_load(code, 320, widths[w], back);
        ck_assert(memcmp(levels, back, sizeof levels) == 0);
    }
}
END_TEST

#define COUNT 11

/* codes end where the allocation ends, so that an address sanitizer sees a read past them */
static void compare(const struct packed_kernel *kernel, uint32_t dim, uint32_t bits, bool factors,
        bool extreme)
{
    size_t bytes = packed_bytes(dim, bits) + (factors ? PACKED_FACTORS_BYTES : 0);
    uint8_t *codes = mem_must_alloc(COUNT * bytes);
    int16_t *wide = mem_alloc_aligned(64, dim * 2);
    int8_t *narrow = mem_alloc_aligned(64, dim);
    for (size_t i = 0; i < COUNT * bytes; i++) codes[i] = extreme ? 0xff : (uint8_t)rng();
    for (uint32_t i = 0; i < dim; i++) {
        wide[i] = (int16_t)(extreme ? PACKED_WIDE_MAX
                                    : (int32_t)(rng() % (2 * PACKED_WIDE_MAX + 1)) - PACKED_WIDE_MAX);
        narrow[i] = (int8_t)(extreme ? -PACKED_NARROW_MAX
                                     : (int32_t)(rng() % (2 * PACKED_NARROW_MAX + 1)) - PACKED_NARROW_MAX);
    }
    for (uint32_t i = 0; factors && i < COUNT; i++) {
        float f[2] = { unit() * 1e4f, unit() };
        memcpy(codes + (i + 1) * bytes - PACKED_FACTORS_BYTES, f, sizeof f);
    }
    struct packed_query query = { .wide = bits == 8 ? wide : NULL,
        .narrow = bits == 8 ? NULL : narrow,
        .dim = dim,
        .bits = bits,
        .factors = factors,
        .dot_scale = unit(),
        .square_scale = unit(),
        .base = unit() * 1e5f,
        .bias = unit(),
        .f_scale = extreme ? 0 : 1,
        .floor = extreme ? -INFINITY : 0 };
    uint32_t ids[COUNT] = { 4, 0, 10, 10, 3, 2, 1, 9, 8, 7, 10 };
    for (uint32_t count = 1; count <= COUNT; count++) {
        float a[COUNT + 1], b[COUNT + 1];
        for (int gathered = 0; gathered < 2; gathered++) {
            const uint32_t *which = gathered ? ids : NULL;
            memset(a, 0xee, sizeof a);
            memset(b, 0xee, sizeof b);
            packed_kernel_for(KERNEL_SCALAR)->estimate(&query, codes, bytes, which, count, a);
            kernel->estimate(&query, codes, bytes, which, count, b);
            ck_assert_msg(memcmp(a, b, sizeof a) == 0, "D %u, %u bits, factors %d, count %u", dim, bits,
                    factors, count);
        }
    }
    mem_free(codes);
    mem_free(wide);
    mem_free(narrow);
}

START_TEST(estimates_are_bit_equal)
{
    const struct packed_kernel *kernel = packed_kernel_for((enum kernel_isa)_i);
    if (kernel == NULL) return;
    setup_seed(7 + (uint64_t)_i);
    for (size_t w = 0; w < sizeof widths / sizeof widths[0]; w++)
        for (size_t d = 0; d < sizeof dims / sizeof dims[0]; d++)
            for (int form = 0; form < 4; form++) compare(kernel, dims[d], widths[w], form & 1, form >> 1);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("packed kernels");
    TCase *tc = tcase_create("packed kernels");
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, levels_survive_packing);
    tcase_add_loop_test(tc, estimates_are_bit_equal, 0, KERNEL_ISA_COUNT);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
