/* Options, JSON lines and the machine's floors. See bench.h. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "bench/bench.h"
#include "common/bytes.h"
#include "common/check.h"
#include "common/config.h"
#include "common/json.h"
#include "common/mem.h"
#include "common/query/point.h"
#include "common/version.h"
#include "storage/kernel/kernel.h"

uint64_t bench_now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

uint64_t bench_cpu_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

uint64_t bench_thread_cpu_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void print_usage(FILE *out, const char *usage, const struct bench_option *options, size_t option_count)
{
    fprintf(out, "usage: omen-bench %s\n", usage);
    for (size_t i = 0; i < option_count; i++) fprintf(out, "  %-16s %s\n", options[i].name, options[i].help);
}

void bench_parse(int argc, char **argv, const char *usage, const struct bench_option *options,
        size_t option_count)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0) {
            print_usage(stdout, usage, options, option_count);
            exit(0);
        }
        const struct bench_option *option = NULL;
        for (size_t j = 0; j < option_count; j++)
            if (strcmp(argv[i], options[j].name) == 0) option = &options[j];
        bool wants_value = option != NULL && option->flag == NULL;
        if (option == NULL || (wants_value && i + 1 >= argc)) {
            fprintf(stderr, "omen-bench: %s '%s'\n", option == NULL ? "unknown option" : "no value for",
                    argv[i]);
            print_usage(stderr, usage, options, option_count);
            exit(2);
        }
        if (option->flag != NULL) {
            *option->flag = true;
            if (option->text != NULL && i + 1 < argc && strncmp(argv[i + 1], "--", 2) != 0)
                *option->text = argv[++i];
        } else if (option->text != NULL)
            *option->text = argv[++i];
        else if (config_parse_bytes(argv[++i], option->number) != OMEN_OK) {
            fprintf(stderr, "omen-bench: %s wants a number, got '%s'\n", option->name, argv[i]);
            exit(2);
        }
    }
}

static bool line_first;

static void json_key(const char *key)
{
    printf("%s\"%s\": ", line_first ? "" : ", ", key);
    line_first = false;
}

void json_line_begin(const char *bench)
{
    printf("{");
    line_first = true;
    json_line_text("bench", bench);
}

void json_line_text(const char *key, const char *value)
{
    json_key(key);
    printf("\"%s\"", value);
}

void json_line_u64(const char *key, uint64_t value)
{
    json_key(key);
    printf("%llu", (unsigned long long)value);
}

void json_line_f64(const char *key, double value)
{
    json_key(key);
    printf("%.6g", value);
}

void json_line_end(void)
{
    json_line_text("isa", kernel_isa_name(kernel_get()->isa));
    json_line_text("commit", version_commit());
    printf("}\n");
    fflush(stdout);
}

const struct filter *bench_filter_read(const char *json, struct arena *arena)
{
    struct err err;
    struct doc doc;
    const struct filter *filter;
    struct doc_builder *b = doc_builder_new(DOC_FILTER_BYTES_MAX);
    if (json_parse(json, strlen(json), b, &doc, &err) != OMEN_OK) panic("%s: %s", json, err.message);
    doc.data = arena_copy(arena, doc.data, doc.len);
    if (filter_parse(doc, arena, &filter, &err) != OMEN_OK) panic("%s: %s", json, err.message);
    doc_builder_free(b);
    return filter;
}

double bench_disk_write_rate(const char *dir, uint64_t bytes)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/omen-bench-floor", dir);
    enum { PIECE = 4 << 20 };
    uint8_t *piece = mem_must_alloc(PIECE);
    for (size_t i = 0; i < PIECE; i += 8) *(uint64_t *)(void *)(piece + i) = bench_mix(i);
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
    if (fd < 0) panic("cannot create %s: %s", path, strerror(errno));
    uint64_t start = bench_now_ns();
    for (uint64_t done = 0; done < bytes; done += PIECE)
        if (write(fd, piece, PIECE) != PIECE) panic("cannot write %s: %s", path, strerror(errno));
    if (fdatasync(fd) != 0) panic("cannot sync %s: %s", path, strerror(errno));
    double seconds = (double)(bench_now_ns() - start) / 1e9;
    close(fd);
    unlink(path);
    mem_free(piece);
    return (double)align_up(bytes, PIECE) / seconds;
}

uint64_t bench_disk_sync_ns(const char *dir, uint32_t count)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/omen-bench-floor", dir);
    uint8_t piece[4096];
    memset(piece, 7, sizeof piece);
    uint64_t *ns = mem_must_alloc(count * sizeof *ns);
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
    if (fd < 0) panic("cannot create %s: %s", path, strerror(errno));
    for (uint32_t i = 0; i < count; i++) {
        uint64_t start = bench_now_ns();
        if (write(fd, piece, sizeof piece) != (ssize_t)sizeof piece || fdatasync(fd) != 0)
            panic("cannot write %s: %s", path, strerror(errno));
        ns[i] = bench_now_ns() - start;
    }
    close(fd);
    unlink(path);
    qsort(ns, count, sizeof *ns, bench_compare_u64);
    uint64_t median = ns[count / 2];
    mem_free(ns);
    return median;
}

typedef uint64_t lanes __attribute__((vector_size(32), aligned(8), may_alias));

/* Built for the best CPU at hand, as the kernels are: a floor measured with narrower loads would flatter them. No
 * prefetch: the processor's own reads 24 GB/s where a written one, or lanes of 64 bytes on AVX2, read 11 to 20. */
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
__attribute__((target_clones("default", "avx2")))
#endif
double
bench_memory_read_rate(const void *data, uint64_t bytes, uint32_t passes)
{
    double best = 0;
    volatile uint64_t sink = 0;
    for (uint32_t pass = 0; pass < passes; pass++) {
        const lanes *p = data;
        lanes a = { 0 }, b = a, c = a, d = a;
        uint64_t start = bench_now_ns();
        for (uint64_t i = 0; i + 4 <= bytes / sizeof(lanes); i += 4) {
            a += p[i];
            b += p[i + 1];
            c += p[i + 2];
            d += p[i + 3];
        }
        double seconds = (double)(bench_now_ns() - start) / 1e9;
        lanes all = a + b + c + d;
        sink += all[0] + all[3];
        if ((double)bytes / seconds > best) best = (double)bytes / seconds;
    }
    (void)sink;
    return best;
}

void bench_row(uint64_t row, uint32_t dim, float *out)
{
    for (uint32_t j = 0; j < dim; j += 2) {
        uint64_t x = bench_mix(row * OMEN_DIM_MAX + j);
        out[j] = (float)(int32_t)(uint32_t)x * 0x1p-31f;
        if (j + 1 < dim) out[j + 1] = (float)(int32_t)(uint32_t)(x >> 32) * 0x1p-31f;
    }
}

int bench_compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}
