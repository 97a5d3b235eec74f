/* omen-bench sketch: the tail sketch over a data set whose rows arrive one by one: insert rate, memory,
 * calibration, recall, and searches in turns with an exact scan of the same rows. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "bench/bench.h"
#include "bench/index_data.h"
#include "common/check.h"
#include "common/mem.h"
#include "storage/index/sketch.h"

#define ROUNDS_MAX 101
#define SCAN_QUERIES 50 /* of each round: an exact scan takes long */

struct run {
    struct bench_data data;
    struct sketch *sketch;
    struct index *flat;
    struct sketch_scratch *scratch;
    struct index_scratch *flat_scratch;
    uint32_t k, effort;
    float recall_target;
    uint64_t *latency_ns; /* [query_count] of the last round */
    double recall, share_below_80;
    struct index_cost cost;
};

static const float *row_at(void *arg, uint32_t slot)
{
    const struct index_rows *rows = arg;
    return rows->data + (size_t)slot * rows->stride_floats;
}

static struct index_search search_of(const struct run *run, uint32_t q)
{
    return (struct index_search){ .query = run->data.queries + (size_t)q * run->data.rows.dim,
        .k = run->k,
        .effort = run->effort,
        .recall_target = run->recall_target };
}

/* All queries through the sketch; the mean time of one in us. */
static double sketch_round(struct run *run, struct index_hit *hits, uint32_t *slots)
{
    uint64_t begin = bench_now_ns();
    double recall = 0;
    uint32_t below = 0, n = run->data.query_count, count;
    run->cost = (struct index_cost){ 0 };
    for (uint32_t q = 0; q < n; q++) {
        struct sketch_search search = { .base = search_of(run, q), .slot_end = UINT32_MAX };
        uint64_t start = bench_now_ns();
        CHECK(sketch_search(run->sketch, &search, run->scratch, hits, &count, &run->cost) == OMEN_OK);
        run->latency_ns[q] = bench_now_ns() - start;
        begin += bench_now_ns() - start - run->latency_ns[q];
        uint64_t counted = bench_now_ns();
        for (uint32_t i = 0; i < count; i++) slots[i] = hits[i].slot;
        double r = bench_data_recall(&run->data, q, slots, count);
        recall += r;
        below += r < 0.8 - 1e-9;
        begin += bench_now_ns() - counted;
    }
    run->recall = recall / n;
    run->share_below_80 = (double)below / n;
    return (double)(bench_now_ns() - begin) / 1e3 / n;
}

static double scan_round(struct run *run, struct index_hit *hits)
{
    uint32_t n = run->data.query_count < SCAN_QUERIES ? run->data.query_count : SCAN_QUERIES, count;
    uint64_t begin = bench_now_ns();
    for (uint32_t q = 0; q < n; q++) {
        struct index_search search = search_of(run, q);
        search.effort = 0;
        CHECK(index_search(run->flat, &search, run->flat_scratch, hits, &count, NULL) == OMEN_OK);
    }
    return (double)(bench_now_ns() - begin) / 1e3 / n;
}

static int compare_f64(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void measure(struct run *run, uint32_t rounds, double insert_vps, double calibrate_seconds)
{
    struct index_hit *hits = mem_must_alloc(run->k * sizeof *hits);
    uint32_t *slots = mem_must_alloc(run->k * sizeof *slots), n = run->data.query_count;
    double sketch_us[ROUNDS_MAX], scan_us[ROUNDS_MAX];
    struct sketch_stats stats;
    (void)sketch_round(run, hits, slots);
    for (uint32_t i = 0; i < rounds; i++) {
        sketch_us[i] = sketch_round(run, hits, slots);
        scan_us[i] = scan_round(run, hits);
    }
    qsort(sketch_us, rounds, sizeof(double), compare_f64);
    qsort(scan_us, rounds, sizeof(double), compare_f64);
    qsort(run->latency_ns, n, sizeof(uint64_t), bench_compare_u64);
    sketch_stats(run->sketch, &stats);
    json_line_begin("sketch");
    json_line_text("dataset", run->data.set.name);
    json_line_u64("count", run->data.rows.count);
    json_line_u64("dim", run->data.rows.dim);
    json_line_u64("k", run->k);
    json_line_f64("insert_vps", insert_vps);
    json_line_f64("calibrate_seconds", calibrate_seconds);
    json_line_f64("bytes_per_vector", (double)stats.memory_bytes / run->data.rows.count);
    json_line_u64("leaders", stats.leaders);
    json_line_u64("bucket_rows_max", stats.bucket_rows_max);
    json_line_f64("recall_target", run->recall_target);
    json_line_f64("effort", (double)run->cost.effort / n);
    json_line_f64("recall", run->recall);
    json_line_f64("share_below_80", run->share_below_80);
    json_line_f64("mean_us", sketch_us[rounds / 2]);
    json_line_f64("p50_us", (double)run->latency_ns[n / 2] / 1e3);
    json_line_f64("p99_us", (double)run->latency_ns[n - 1 - n / 100] / 1e3);
    json_line_f64("estimates_per_query", (double)run->cost.estimates / n);
    json_line_f64("rescored_per_query", (double)run->cost.rescored / n);
    json_line_f64("exact_scan_us", scan_us[rounds / 2]);
    json_line_u64("rounds", rounds);
    json_line_end();
    mem_free(hits);
    mem_free(slots);
}

static void run_all(struct run *run, uint32_t rounds)
{
    const struct index_rows *rows = &run->data.rows;
    struct sketch_params params = { .dim = rows->dim,
        .metric = rows->metric,
        .recall_target = run->recall_target,
        .seed = 1,
        .row = row_at,
        .row_arg = &run->data.rows };
    uint32_t slot;
    CHECK(sketch_new(&params, &run->sketch, NULL) == OMEN_OK);
    uint64_t start = bench_now_ns();
    for (uint32_t i = 0; i < rows->count; i++)
        CHECK(sketch_add(run->sketch, row_at(&run->data.rows, i), &slot, NULL) == OMEN_OK && slot == i);
    double insert_vps = rows->count / ((double)(bench_now_ns() - start) / 1e9);
    start = bench_now_ns();
    if (run->effort == 0) CHECK(sketch_calibrate(run->sketch, NULL, NULL, NULL) == OMEN_OK);
    double calibrate_seconds = (double)(bench_now_ns() - start) / 1e9;
    CHECK(index_build(INDEX_FLAT, rows, NULL, NULL, &run->flat, NULL) == OMEN_OK);
    run->scratch = sketch_scratch_new(run->sketch);
    run->flat_scratch = index_scratch_new(run->flat);
    run->latency_ns = mem_must_alloc(run->data.query_count * sizeof(uint64_t));
    CHECK(run->scratch != NULL && run->flat_scratch != NULL);
    measure(run, rounds, insert_vps, calibrate_seconds);
    mem_free(run->latency_ns);
    sketch_scratch_free(run->scratch);
    index_scratch_free(run->flat, run->flat_scratch);
    index_free(run->flat);
    sketch_free(run->sketch);
}

int bench_sketch(int argc, char **argv)
{
    const char *dir = NULL, *recall = "0.95";
    uint64_t limit = 0, k = 10, effort = 0, rounds = 5;
    const struct bench_option options[] = {
        { "--data", "data-set folder", NULL, &dir, NULL },
        { "--limit", "first ROWS rows only (0 = all)", &limit, NULL, NULL },
        { "--k", "neighbours (10)", &k, NULL, NULL },
        { "--recall", "recall target (0.95)", NULL, &recall, NULL },
        { "--effort", "rescored rows instead of a recall target", &effort, NULL, NULL },
        { "--rounds", "timed rounds, in turns with the exact scan (5)", &rounds, NULL, NULL },
    };
    bench_parse(argc, argv, "omen-bench sketch --data DIR [options]", options,
            sizeof options / sizeof options[0]);
    if (dir == NULL || k == 0 || k > OMEN_K_MAX || rounds == 0 || rounds > ROUNDS_MAX) {
        fprintf(stderr, "omen-bench sketch: --data DIR is needed; --k 1..%d, --rounds 1..%d\n", OMEN_K_MAX,
                ROUNDS_MAX);
        return 2;
    }
    struct run run = { .k = (uint32_t)k, .effort = (uint32_t)effort, .recall_target = (float)atof(recall) };
    bench_data_open(&run.data, dir, limit, 0, run.k, 2);
    run_all(&run, (uint32_t)rounds);
    bench_data_close(&run.data);
    return 0;
}
