/* The other half of omen-bench scan: the masked scan of the flat 1-bit codes that every sealed segment keeps, over more
 * of them than the caches hold, against streaming through the same bytes, in turns. The codes are random: what a scan
 * costs does not depend on them, as long as few estimates pass the bound. */
#include <math.h>
#include <string.h>
#include <sys/mman.h>

#include "bench/bench.h"
#include "bench/scan_codes.h"
#include "common/check.h"
#include "common/mem.h"
#include "storage/quant/rabitq.h"

#define GROUPS_AHEAD 4          /* as in storage/index/sealed_filter.c */
#define PASSING_PER_MILLION 200 /* estimates below the bound, as in a search for the nearest ten */

struct codes {
    uint8_t *groups; /* [group_count][group_bytes], huge pages */
    size_t group_bytes, bytes;
    uint64_t group_count;
    uint32_t dim;
};

static void codes_make(struct codes *c, uint64_t count, uint32_t dim)
{
    c->dim = dim;
    c->group_bytes = rabitq_codes_bytes(dim) + CODE_GROUP * 2 * sizeof(uint16_t);
    c->group_count = count / CODE_GROUP;
    c->bytes = c->group_count * c->group_bytes;
    c->groups = mmap(NULL, c->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (c->groups == MAP_FAILED) panic("no memory for %zu bytes of codes", c->bytes);
    (void)madvise(c->groups, c->bytes, MADV_HUGEPAGE);
    for (uint64_t g = 0; g < c->group_count; g++) {
        uint8_t *group = c->groups + g * c->group_bytes;
        for (size_t i = 0; i < rabitq_codes_bytes(dim); i += 8) {
            uint64_t word = bench_mix(g * c->group_bytes + i);
            memcpy(group + i, &word, 8);
        }
        uint16_t *factors = (uint16_t *)(void *)(group + rabitq_codes_bytes(dim));
        for (uint32_t i = 0; i < CODE_GROUP; i++) {
            factors[i] = code_f16_of_f32(1);
            factors[CODE_GROUP + i] = code_f16_of_f32(-1);
        }
    }
}

/* Estimates below `bound`. */
static uint64_t codes_scan(const struct codes *c, const struct code_query *query, float bound)
{
    const struct code_kernel *kernel = code_kernel_get();
    uint64_t passed = 0;
    float estimates[CODE_GROUP];
    for (uint64_t g = 0; g < c->group_count; g++) {
        const uint8_t *group = c->groups + g * c->group_bytes;
        const uint16_t *f = (const uint16_t *)(const void *)(group + rabitq_codes_bytes(c->dim));
        struct code_factors factors = { f, f + CODE_GROUP, 1, 1 };
        for (size_t at = 0; at < c->group_bytes; at += 64)
            __builtin_prefetch(group + GROUPS_AHEAD * c->group_bytes + at, 0, 3);
        uint32_t mask = kernel->estimate_32(query, group, &factors, (float)c->dim, bound, estimates);
        passed += (uint64_t)__builtin_popcount(mask);
    }
    return passed;
}

/* The bound that about PASSING_PER_MILLION of the codes pass: halving. */
static float bound_find(const struct codes *c, const struct code_query *query)
{
    struct codes sample = *c;
    if (sample.group_count > 1 << 13) sample.group_count = 1 << 13;
    float low = 0, high = 4 * (float)c->dim;
    for (int i = 0; i < 30; i++) {
        float middle = (low + high) / 2;
        uint64_t passed = codes_scan(&sample, query, middle);
        if (passed * 1000000 > sample.group_count * CODE_GROUP * PASSING_PER_MILLION)
            high = middle;
        else
            low = middle;
    }
    return low;
}

void scan_codes(uint64_t count, uint32_t dim, uint64_t rounds, double (*median)(double *values, size_t count))
{
    struct codes c;
    struct code_query query;
    double scan[SCAN_ROUNDS_MAX], read[SCAN_ROUNDS_MAX];
    dim = (dim + CODE_DIM_ALIGN - 1) / CODE_DIM_ALIGN * CODE_DIM_ALIGN;
    codes_make(&c, count, dim);
    float *z = mem_must_alloc(dim * sizeof(float));
    uint8_t *lut = mem_alloc_aligned(64, (size_t)dim * 4);
    if (lut == NULL) panic("no memory for a query");
    bench_row(count, dim, z);
    rabitq_prepare(z, dim, lut, &query);
    float bound = bound_find(&c, &query);
    uint64_t passed = codes_scan(&c, &query, bound);
    bench_memory_read_rate(c.groups, c.bytes, 1);
    for (uint64_t i = 0; i < rounds; i++) {
        uint64_t start = bench_now_ns();
        CHECK(codes_scan(&c, &query, bound) == passed);
        scan[i] = (double)c.bytes / ((double)(bench_now_ns() - start) / 1e9);
        read[i] = bench_memory_read_rate(c.groups, c.bytes, 1);
    }
    double scan_rate = median(scan, rounds), read_rate = median(read, rounds);
    json_line_begin("scan_codes");
    json_line_u64("dim", dim);
    json_line_u64("count", c.group_count * CODE_GROUP);
    json_line_u64("threads", 1);
    json_line_f64("bytes_per_vector", (double)c.group_bytes / CODE_GROUP);
    json_line_f64("passed_per_million", (double)passed * 1e6 / (double)(c.group_count * CODE_GROUP));
    json_line_f64("ms_per_million", 1e3 * (double)c.group_bytes / CODE_GROUP * 1e6 / scan_rate);
    json_line_f64("scan_bytes_per_second", scan_rate);
    json_line_f64("huge_page_read_bytes_per_second", read_rate);
    json_line_f64("fraction_of_huge_page_read", scan_rate / read_rate);
    json_line_f64("scan_spread", scan[rounds - 1] / scan[0]);
    json_line_end();
    munmap(c.groups, c.bytes);
    mem_free(lut);
    mem_free(z);
}
