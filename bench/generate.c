/* omen-bench generate: data sets that others can make again, bit by bit, from a kind and a seed.
 *
 *   clustered  rows around places of uneven weight in a space of fewer dimensions, bent into DIM and blurred; l2
 *   ip         the same, norms spread 1..16; inner product; queries of norm 1
 *   ood        the same rows, l2; queries of another distribution: other places, wider, half of the inner axes shifted
 *              away, so that a query's neighbours are no queries' neighbours
 *
 * Row i depends on seed and i alone, by additions, products and square roots only, which are the same everywhere.
 * Writes base.fbin, query.fbin, truth.ibin (the 100 nearest, ties by lower row, by blocked kernels on all threads) and,
 * last, meta.json. Threads: --threads for the truth. */
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "bench/bench.h"
#include "common/bytes.h"
#include "common/check.h"
#include "common/mem.h"
#include "common/query/point.h"
#include "storage/kernel/kernel.h"

#define INNER 24 /* dimensions in which rows differ by more than the blur */
#define ROWS_PER_PLACE 500
#define PLACES_MAX 4096
#define BLUR 0.25f
#define TRUTH_K 100
#define TILE_ROWS 1024
#define TILE_QUERIES 16
#define THREADS_MAX 64
#define NORM_MAX 16

enum { PART_AXES = 1, PART_PLACES, PART_ROWS, PART_QUERIES, PART_OTHER_PLACES };

struct near {
    float distance;
    uint32_t row;
};

struct set {
    enum metric metric;
    bool ip, ood;
    uint64_t seed;
    uint32_t count, dim, queries, places;
    float *axes;                /* [INNER][dim] */
    float *place, *other_place; /* [places][INNER] */
    float *rows, *query;        /* [count][dim], [queries][dim] */
    uint32_t *truth;            /* [queries][TRUTH_K] */
};

/* The j-th number of an item of a part: 64 random bits. */
static uint64_t bits(const struct set *s, uint64_t part, uint64_t item, uint64_t j)
{
    return bench_mix(bench_mix(bench_mix(s->seed * 8 + part) ^ item) ^ j);
}

/* Nearly normal: four uniform numbers of 16 bits, variance 1. */
static float gauss(uint64_t x)
{
    float sum = (float)(x & 0xffff) + (float)(x >> 16 & 0xffff) + (float)(x >> 32 & 0xffff) +
            (float)(x >> 48);
    return (sum * 0x1p-16f - 2) * 1.7320508f;
}

static float unit(uint64_t x) { return (float)(x >> 40) * 0x1p-24f; }

/* Low places are met more often: the square of a uniform number. */
static uint32_t place_draw(const struct set *s, uint64_t x)
{
    float u = unit(x);
    uint32_t place = (uint32_t)(u * u * (float)s->places);
    return place < s->places ? place : s->places - 1;
}

static void point_make(const struct set *s, uint64_t part, uint64_t item, float *out)
{
    bool apart = part == PART_QUERIES && s->ood;
    const float *place = (apart ? s->other_place : s->place) +
            (size_t)place_draw(s, bits(s, part, item, 0)) * INNER;
    float inner[INNER];
    for (uint32_t i = 0; i < INNER; i++) {
        inner[i] = place[i] + (apart ? 1.5f : 1) * gauss(bits(s, part, item, 1 + i));
        if (apart && i % 2 == 0) inner[i] += 2;
    }
    for (uint32_t j = 0; j < s->dim; j++) out[j] = BLUR * gauss(bits(s, part, item, 1 + INNER + j));
    for (uint32_t i = 0; i < INNER; i++)
        for (uint32_t j = 0; j < s->dim; j++) out[j] += inner[i] * s->axes[(size_t)i * s->dim + j];
    if (!s->ip) return;
    vector_normalise(out, s->dim);
    float u = unit(bits(s, part, item, 1 + INNER + s->dim));
    float norm = part == PART_ROWS ? 1 + (NORM_MAX - 1) * u * u * u : 1;
    for (uint32_t j = 0; j < s->dim; j++) out[j] *= norm;
}

static void places_make(const struct set *s, uint64_t part, float *out)
{
    for (uint64_t i = 0; i < (uint64_t)s->places * INNER; i++) out[i] = 1.5f * gauss(bits(s, part, i, 0));
}

static void set_fill(struct set *s)
{
    s->axes = mem_must_alloc((size_t)INNER * s->dim * sizeof(float));
    s->place = mem_must_alloc((size_t)s->places * INNER * sizeof(float));
    s->other_place = mem_must_alloc((size_t)s->places * INNER * sizeof(float));
    s->rows = mem_must_alloc((size_t)s->count * s->dim * sizeof(float));
    s->query = mem_must_alloc((size_t)s->queries * s->dim * sizeof(float));
    s->truth = mem_must_alloc((size_t)s->queries * TRUTH_K * sizeof(uint32_t));
    for (uint64_t i = 0; i < (uint64_t)INNER * s->dim; i++)
        s->axes[i] = gauss(bits(s, PART_AXES, i, 0)) * 0.2f;
    places_make(s, PART_PLACES, s->place);
    places_make(s, PART_OTHER_PLACES, s->other_place);
    for (uint32_t i = 0; i < s->count; i++) point_make(s, PART_ROWS, i, s->rows + (size_t)i * s->dim);
    for (uint32_t i = 0; i < s->queries; i++) point_make(s, PART_QUERIES, i, s->query + (size_t)i * s->dim);
}

/* ---- truth ---- */

static bool before(struct near a, struct near b)
{
    return a.distance < b.distance || (a.distance == b.distance && a.row < b.row);
}

/* A sorted list: what comes in late comes in rarely. */
static void near_offer(struct near *list, struct near candidate)
{
    uint32_t i = TRUTH_K - 1;
    for (; i > 0 && before(candidate, list[i - 1]); i--) list[i] = list[i - 1];
    list[i] = candidate;
}

struct truth_job {
    pthread_t thread;
    const struct set *set;
    uint32_t first, end;
};

static void *truth_run(void *arg)
{
    const struct truth_job *job = arg;
    const struct set *s = job->set;
    const struct kernel *kernel = kernel_get();
    float *distances = mem_must_alloc(sizeof(float) * TILE_ROWS * TILE_QUERIES);
    struct near(*lists)[TRUTH_K] = mem_must_alloc(sizeof *lists * TILE_QUERIES);
    for (uint32_t q = job->first; q < job->end; q += TILE_QUERIES) {
        uint32_t queries = job->end - q < TILE_QUERIES ? job->end - q : TILE_QUERIES;
        for (uint32_t j = 0; j < queries; j++)
            for (uint32_t i = 0; i < TRUTH_K; i++) lists[j][i] = (struct near){ INFINITY, UINT32_MAX };
        for (uint32_t r = 0; r < s->count; r += TILE_ROWS) {
            uint32_t n = s->count - r < TILE_ROWS ? s->count - r : TILE_ROWS;
            (s->ip ? kernel->negdot_f32_block : kernel->l2sq_f32_block)(s->query + (size_t)q * s->dim, s->dim,
                    queries, s->rows + (size_t)r * s->dim, s->dim, n, s->dim, distances);
            for (uint32_t j = 0; j < queries; j++) {
                for (uint32_t i = 0; i < n; i++) {
                    struct near candidate = { distances[(size_t)j * n + i], r + i };
                    if (before(candidate, lists[j][TRUTH_K - 1])) near_offer(lists[j], candidate);
                }
            }
        }
        for (uint32_t j = 0; j < queries; j++)
            for (uint32_t i = 0; i < TRUTH_K; i++) s->truth[(size_t)(q + j) * TRUTH_K + i] = lists[j][i].row;
    }
    mem_free(lists);
    mem_free(distances);
    return NULL;
}

static void truth_make(const struct set *s, uint32_t threads)
{
    struct truth_job jobs[THREADS_MAX];
    for (uint32_t t = 0; t < threads; t++) {
        jobs[t] = (struct truth_job){ .set = s,
            .first = (uint32_t)((uint64_t)s->queries * t / threads),
            .end = (uint32_t)((uint64_t)s->queries * (t + 1) / threads) };
        if (pthread_create(&jobs[t].thread, NULL, truth_run, &jobs[t]) != 0) panic("cannot start a thread");
    }
    for (uint32_t t = 0; t < threads; t++) pthread_join(jobs[t].thread, NULL);
}

/* ---- files ---- */

static FILE *create(const char *dir, const char *name)
{
    char path[4096];
    if (snprintf(path, sizeof path, "%s/%s", dir, name) >= (int)sizeof path) panic("--out: too long a path");
    FILE *f = fopen(path, "wb");
    if (f == NULL) panic("cannot create %s: %s", path, strerror(errno));
    return f;
}

/* Components of 4 bytes, little-endian as the machines that we run on. */
static void write_matrix(const char *dir, const char *name, const void *rows, uint32_t count, uint32_t dim)
{
    uint8_t header[8];
    FILE *f = create(dir, name);
    store_u32(header, count);
    store_u32(header + 4, dim);
    size_t cells = (size_t)count * dim;
    if (fwrite(header, 1, sizeof header, f) != sizeof header || fwrite(rows, 4, cells, f) != cells ||
            fclose(f) != 0)
        panic("cannot write %s/%s: %s", dir, name, strerror(errno));
}

static void write_all(const struct set *s, const char *kind, const char *dir)
{
    if (mkdir(dir, 0777) != 0 && errno != EEXIST) panic("cannot create %s: %s", dir, strerror(errno));
    write_matrix(dir, "base.fbin", s->rows, s->count, s->dim);
    write_matrix(dir, "query.fbin", s->query, s->queries, s->dim);
    write_matrix(dir, "truth.ibin", s->truth, s->queries, TRUTH_K);
    FILE *f = create(dir, "meta.json");
    fprintf(f,
            "{\"name\": \"%s-%u-%u-seed%llu\", \"count\": %u, \"dim\": %u, \"metric\": \"%s\", \"base\": "
            "\"base.fbin\", \"query\": \"query.fbin\", \"truth\": \"truth.ibin\"}\n",
            kind, s->count, s->dim, (unsigned long long)s->seed, s->count, s->dim, metric_name(s->metric));
    if (fclose(f) != 0) panic("cannot write %s/meta.json: %s", dir, strerror(errno));
}

static int wrong(void)
{
    fprintf(stderr,
            "usage: omen-bench generate clustered|ip|ood --out DIR [--count N >= %d] [--dim 1..%d]\n"
            "       [--queries 1..1000000] [--seed S] [--threads 1..%d]\n",
            TRUTH_K, OMEN_DIM_MAX, THREADS_MAX);
    return 2;
}

int bench_generate(int argc, char **argv)
{
    uint64_t count = 1000000, dim = 128, queries = 1000, seed = 1, threads = 2;
    const char *out = NULL;
    const struct bench_option options[] = {
        { "--out", "folder to write", NULL, &out, NULL },
        { "--count", "rows (1000000)", &count, NULL, NULL },
        { "--dim", "components per row (128)", &dim, NULL, NULL },
        { "--queries", "(1000)", &queries, NULL, NULL },
        { "--seed", "(1)", &seed, NULL, NULL },
        { "--threads", "that compute the truth (2)", &threads, NULL, NULL },
    };
    if (argc < 2) return wrong();
    const char *kind = argv[1];
    bench_parse(argc - 1, argv + 1, "generate clustered|ip|ood --out DIR [options]", options,
            sizeof options / sizeof options[0]);
    struct set s = { .metric = METRIC_L2,
        .ip = strcmp(kind, "ip") == 0,
        .ood = strcmp(kind, "ood") == 0,
        .seed = seed,
        .count = (uint32_t)count,
        .dim = (uint32_t)dim,
        .queries = (uint32_t)queries };
    if ((!s.ip && !s.ood && strcmp(kind, "clustered") != 0) || out == NULL || count < TRUTH_K ||
            count > (1u << 30) || dim == 0 || dim > OMEN_DIM_MAX || queries == 0 || queries > 1000000 ||
            threads == 0 || threads > THREADS_MAX)
        return wrong();
    if (s.ip) s.metric = METRIC_IP;
    s.places = s.count / ROWS_PER_PLACE + 1 < PLACES_MAX ? s.count / ROWS_PER_PLACE + 1 : PLACES_MAX;
    set_fill(&s);
    truth_make(&s, (uint32_t)threads);
    write_all(&s, kind, out);
    mem_free(s.axes);
    mem_free(s.place);
    mem_free(s.other_place);
    mem_free(s.rows);
    mem_free(s.query);
    mem_free(s.truth);
    return 0;
}
