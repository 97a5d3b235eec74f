/* omen-bench index: one index over one data set: build rate, memory, recall, speed of one query in flight;
 * with --rivals hnswlib in turns with ours in the same run, at the smallest ef that reaches the recall that
 * ours delivered. */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/bench.h"
#include "bench/index_data.h"
#include "bench/rival_hnswlib.h"
#include "common/check.h"
#include "common/mem.h"

#define ROUNDS_MAX 101
#define SEARCH_THREADS_MAX 64
#define RIVAL_EF_MAX 4096

struct engine {
    const char *name;
    struct index *index;         /* ours, or */
    struct rival_hnswlib *rival; /* theirs */
    uint32_t effort;             /* 0: by recall_target */
    float recall_target;
    double build_seconds, bytes_per_vector;
    uint32_t build_threads;
    double qps[ROUNDS_MAX]; /* by round */
    double recall, recall_p5, share_below_80;
    uint64_t *latency_ns;   /* [query_count] of the last round; owned */
    uint32_t *found;        /* [query_count][k], UINT32_MAX past the end; owned */
    struct index_cost cost; /* of the last round */
};

struct run {
    struct bench_data data;
    uint32_t k, threads, rounds;
    const uint64_t *filter;
    double selectivity;
};

struct search_job {
    pthread_t thread;
    const struct run *run;
    struct engine *engine;
    uint32_t first, step;
    struct index_cost cost;
};

static void search_ours(struct search_job *job, uint32_t q, struct index_scratch *scratch,
        struct index_hit *hits)
{
    const struct run *run = job->run;
    struct index_search search = { .query = run->data.queries + (size_t)q * run->data.rows.dim,
        .k = run->k,
        .effort = job->engine->effort,
        .recall_target = job->engine->recall_target,
        .filter = run->filter };
    uint32_t count;
    CHECK(index_search(job->engine->index, &search, scratch, hits, &count, &job->cost) == OMEN_OK);
    uint32_t *found = job->engine->found + (size_t)q * run->k;
    for (uint32_t i = 0; i < run->k; i++) found[i] = i < count ? hits[i].slot : UINT32_MAX;
}

static void *search_run(void *arg)
{
    struct search_job *job = arg;
    const struct run *run = job->run;
    struct index_scratch *scratch = job->engine->index != NULL ? index_scratch_new(job->engine->index) : NULL;
    struct index_hit *hits = mem_must_alloc(run->k * sizeof *hits);
    for (uint32_t q = job->first; q < run->data.query_count; q += job->step) {
        uint64_t start = bench_now_ns();
        if (job->engine->index != NULL)
            search_ours(job, q, scratch, hits);
        else {
            uint32_t *found = job->engine->found + (size_t)q * run->k;
            uint32_t n = rival_hnswlib_search(job->engine->rival,
                    run->data.queries + (size_t)q * run->data.rows.dim, run->k, job->engine->effort, found);
            for (; n < run->k; n++) found[n] = UINT32_MAX;
        }
        job->engine->latency_ns[q] = bench_now_ns() - start;
    }
    mem_free(hits);
    if (scratch != NULL) index_scratch_free(job->engine->index, scratch);
    return NULL;
}

/* One pass over all queries; queries per second. */
static double round_run(const struct run *run, struct engine *engine)
{
    struct search_job jobs[SEARCH_THREADS_MAX];
    memset(&engine->cost, 0, sizeof engine->cost);
    uint64_t start = bench_now_ns();
    for (uint32_t t = 0; t < run->threads; t++) {
        jobs[t] = (struct search_job){ .run = run, .engine = engine, .first = t, .step = run->threads };
        if (run->threads == 1)
            search_run(&jobs[t]);
        else if (pthread_create(&jobs[t].thread, NULL, search_run, &jobs[t]) != 0)
            panic("cannot start a thread");
    }
    for (uint32_t t = 0; t < run->threads; t++) {
        if (run->threads > 1) pthread_join(jobs[t].thread, NULL);
        engine->cost.distances += jobs[t].cost.distances;
        engine->cost.estimates += jobs[t].cost.estimates;
        engine->cost.hops += jobs[t].cost.hops;
        engine->cost.rescored += jobs[t].cost.rescored;
        engine->cost.effort += jobs[t].cost.effort;
    }
    return run->data.query_count / ((double)(bench_now_ns() - start) / 1e9);
}

static int compare_f64(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void recall_of(const struct run *run, struct engine *engine)
{
    uint32_t n = run->data.query_count, below = 0;
    double *recalls = mem_must_alloc(n * sizeof *recalls), sum = 0;
    for (uint32_t q = 0; q < n; q++) {
        const uint32_t *found = engine->found + (size_t)q * run->k;
        uint32_t count = 0;
        while (count < run->k && found[count] != UINT32_MAX) count++;
        recalls[q] = bench_data_recall(&run->data, q, found, count);
        sum += recalls[q];
        below += recalls[q] < 0.8 - 1e-9;
    }
    qsort(recalls, n, sizeof *recalls, compare_f64);
    engine->recall = sum / n;
    engine->recall_p5 = recalls[n / 20];
    engine->share_below_80 = (double)below / n;
    mem_free(recalls);
}

static double recall_at(const struct run *run, struct engine *engine, uint32_t effort)
{
    engine->effort = effort;
    (void)round_run(run, engine);
    recall_of(run, engine);
    return engine->recall;
}

/* The smallest effort whose recall is at least `recall`: doubling, then bisection. */
static void effort_search(const struct run *run, struct engine *engine, double recall)
{
    uint32_t low = run->k - 1, high = run->k;
    while (high < RIVAL_EF_MAX && recall_at(run, engine, high) < recall) {
        low = high;
        high *= 2;
    }
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (recall_at(run, engine, middle) < recall)
            low = middle;
        else
            high = middle;
    }
    engine->effort = high;
}

static void engine_init(struct engine *engine, const char *name, const struct run *run)
{
    memset(engine, 0, sizeof *engine);
    engine->name = name;
    engine->latency_ns = mem_must_alloc(run->data.query_count * sizeof(uint64_t));
    engine->found = mem_must_alloc((size_t)run->data.query_count * run->k * sizeof(uint32_t));
}

static void print_line(const struct run *run, struct engine *engine, const char *index, const char *quant)
{
    uint32_t n = run->data.query_count;
    double load = 0;
    if (getloadavg(&load, 1) != 1) load = -1;
    qsort(engine->qps, run->rounds, sizeof(double), compare_f64);
    qsort(engine->latency_ns, n, sizeof(uint64_t), bench_compare_u64);
    json_line_begin("index");
    json_line_text("engine", engine->name);
    json_line_text("dataset", run->data.set.name);
    json_line_u64("count", run->data.rows.count);
    json_line_u64("dim", run->data.rows.dim);
    json_line_text("metric", metric_name(run->data.rows.metric));
    json_line_text("index", index);
    json_line_text("quant", quant);
    json_line_u64("build_threads", engine->build_threads);
    json_line_f64("build_seconds", engine->build_seconds);
    json_line_f64("build_vps", engine->build_seconds > 0 ? run->data.rows.count / engine->build_seconds : 0);
    json_line_f64("bytes_per_vector", engine->bytes_per_vector);
    json_line_u64("threads", run->threads);
    json_line_u64("k", run->k);
    json_line_f64("recall_target", engine->recall_target);
    json_line_f64("effort", engine->index != NULL ? (double)engine->cost.effort / n : engine->effort);
    json_line_f64("recall", engine->recall);
    json_line_f64("recall_p5", engine->recall_p5);
    json_line_f64("share_below_80", engine->share_below_80);
    json_line_f64("qps", engine->qps[run->rounds / 2]);
    json_line_f64("qps_spread", engine->qps[run->rounds - 1] / engine->qps[0]);
    json_line_f64("qps_best", engine->qps[run->rounds - 1]);
    json_line_f64("p50_us", (double)engine->latency_ns[n / 2] / 1e3);
    json_line_f64("p99_us", (double)engine->latency_ns[n - 1 - n / 100] / 1e3);
    json_line_f64("distances_per_query", (double)(engine->cost.distances + engine->cost.rescored) / n);
    json_line_f64("estimates_per_query", (double)engine->cost.estimates / n);
    json_line_f64("hops_per_query", (double)engine->cost.hops / n);
    json_line_f64("filter_selectivity", run->selectivity);
    json_line_u64("rounds", run->rounds);
    json_line_f64("load", load);
    json_line_end();
}

static void progress(void *arg, const char *phase, uint64_t done, uint64_t total)
{
    static const char *last;
    static uint64_t start;
    (void)arg;
    (void)done;
    (void)total;
    if (start == 0) start = bench_now_ns();
    if (last == phase) return;
    last = phase;
    fprintf(stderr, "%8.2f s  %s\n", (double)(bench_now_ns() - start) / 1e9, phase);
}

/* Share `percent` of all slots, chosen at random: what a filter without any relation to the vectors lets
 * through. */
static uint64_t *filter_random(uint32_t count, double share)
{
    uint64_t *bits = mem_must_calloc(((size_t)count + 63) / 64, sizeof *bits);
    for (uint32_t i = 0; i < count; i++)
        if ((double)(bench_mix(i) >> 11) * 0x1p-53 < share) bits[i / 64] |= UINT64_C(1) << (i % 64);
    return bits;
}

static enum index_kind kind_parse(const char *name)
{
    if (strcmp(name, "auto") == 0) return INDEX_SEALED;
    for (int kind = 0; kind < INDEX_KIND_COUNT; kind++)
        if (strcmp(name, index_kind_name((enum index_kind)kind)) == 0) return (enum index_kind)kind;
    panic("--index %s: auto, flat, hnsw, sealed or disk", name);
}

static enum index_quant quant_parse(const char *name)
{
    for (int quant = 0; quant < INDEX_QUANT_COUNT; quant++)
        if (strcmp(name, index_quant_name((enum index_quant)quant)) == 0) return (enum index_quant)quant;
    panic("--quant %s: auto, none, scalar, product or binary", name);
}

struct choice {
    const char *dir, *index, *quant, *recall, *selectivity, *rival_cache, *save;
    uint64_t k, build_threads, threads, limit, rounds, effort, rival_m, rival_efc, degree, efc;
    bool rivals, sweep;
};

static void build_ours(const struct run *run, const struct choice *choice, struct engine *engine)
{
    struct index_params params = { .quant = quant_parse(choice->quant),
        .M = (uint32_t)choice->degree,
        .ef_construction = (uint32_t)choice->efc,
        .recall_target = engine->recall_target,
        .seed = 1 };
    struct index_control control = { .threads = (uint32_t)choice->build_threads, .progress = progress };
    struct err err;
    uint64_t start = bench_now_ns();
    if (index_build(kind_parse(choice->index), &run->data.rows, &params, &control, &engine->index, &err) !=
            OMEN_OK)
        panic("build: %s", err.message);
    engine->build_seconds = (double)(bench_now_ns() - start) / 1e9;
    struct index_stats stats;
    index_stats(engine->index, false, &stats);
    engine->bytes_per_vector = (double)stats.memory_bytes / run->data.rows.count;
    engine->build_threads = (uint32_t)choice->build_threads;
    engine->effort = (uint32_t)choice->effort;
}

static void build_rival(const struct run *run, const struct choice *choice, struct engine *engine)
{
    char path[4096];
    if (choice->rival_cache != NULL)
        snprintf(path, sizeof path, "%s/%s-%u-%llu-%llu", choice->rival_cache, run->data.set.name,
                run->data.rows.count, (unsigned long long)choice->rival_m,
                (unsigned long long)choice->rival_efc);
    const struct index_rows *rows = &run->data.rows;
    engine->rival = rival_hnswlib_build(rows->data, rows->stride_floats, rows->count, rows->dim,
            rows->metric != METRIC_L2, (uint32_t)choice->rival_m, (uint32_t)choice->rival_efc,
            (uint32_t)choice->build_threads, choice->rival_cache != NULL ? path : NULL,
            &engine->build_seconds);
    if (engine->rival == NULL) panic("the rival could not be built");
    engine->build_threads = (uint32_t)choice->build_threads;
    engine->bytes_per_vector = rival_hnswlib_bytes_per_vector(engine->rival);
}

/* Rounds in turns, so that whatever else the machine does hits both alike. */
static void measure(struct run *run, const struct choice *choice, struct engine *ours, struct engine *rival)
{
    char name[64];
    (void)round_run(run, ours);
    recall_of(run, ours);
    if (rival != NULL) {
        rival->recall_target = (float)ours->recall;
        effort_search(run, rival, ours->recall);
    }
    for (uint32_t i = 0; i < run->rounds; i++) {
        ours->qps[i] = round_run(run, ours);
        if (rival != NULL) rival->qps[i] = round_run(run, rival);
    }
    recall_of(run, ours);
    print_line(run, ours, choice->index, choice->quant);
    if (rival == NULL) return;
    recall_of(run, rival);
    snprintf(name, sizeof name, "M=%llu,efC=%llu", (unsigned long long)choice->rival_m,
            (unsigned long long)choice->rival_efc);
    print_line(run, rival, name, "none");
}

static const uint32_t sweep_efforts[] = { 10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512 };

static void run_all(struct run *run, const struct choice *choice)
{
    struct engine ours, rival;
    engine_init(&ours, "omendb", run);
    ours.recall_target = (float)atof(choice->recall);
    build_ours(run, choice, &ours);
    if (choice->rivals) {
        engine_init(&rival, "hnswlib", run);
        build_rival(run, choice, &rival);
    }
    if (choice->sweep) {
        for (size_t i = 0; i < sizeof sweep_efforts / sizeof sweep_efforts[0]; i++) {
            if (sweep_efforts[i] < run->k) continue;
            ours.effort = sweep_efforts[i];
            measure(run, choice, &ours, choice->rivals ? &rival : NULL);
        }
    } else
        measure(run, choice, &ours, choice->rivals ? &rival : NULL);
    index_free(ours.index);
    mem_free(ours.found);
    mem_free(ours.latency_ns);
    if (!choice->rivals) return;
    rival_hnswlib_free(rival.rival);
    mem_free(rival.found);
    mem_free(rival.latency_ns);
}

/* The rival's vectors go to huge pages, as ours do: glibc decides that when the process starts. */
static void rival_huge_pages(char **argv)
{
    if (getenv("GLIBC_TUNABLES") != NULL) return;
    setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1", 1);
    execv("/proc/self/exe", argv);
}

int bench_index(int argc, char **argv)
{
    struct choice c = { .index = "auto",
        .quant = "auto",
        .recall = "0.95",
        .k = 10,
        .build_threads = 2,
        .threads = 1,
        .rounds = 7,
        .rival_m = 16,
        .rival_efc = 200 };
    const struct bench_option options[] = {
        { "--data", "data-set folder", NULL, &c.dir, NULL },
        { "--index", "auto, flat, hnsw, sealed, disk (auto)", NULL, &c.index, NULL },
        { "--quant", "auto, none, scalar, product, binary (auto)", NULL, &c.quant, NULL },
        { "--recall", "recall target (0.95)", NULL, &c.recall, NULL },
        { "--effort", "pool width instead of a recall target", &c.effort, NULL, NULL },
        { "--k", "neighbours (10)", &c.k, NULL, NULL },
        { "--degree", "links per node (the index's default)", &c.degree, NULL, NULL },
        { "--ef-construction", "beam width while building (the index's default)", &c.efc, NULL, NULL },
        { "--build-threads", "(2)", &c.build_threads, NULL, NULL },
        { "--threads", "searching threads (1)", &c.threads, NULL, NULL },
        { "--limit", "only the first rows (all)", &c.limit, NULL, NULL },
        { "--filter-share", "only this share of the rows, chosen at random, may be returned", NULL,
                &c.selectivity, NULL },
        { "--rounds", "interleaved rounds (7)", &c.rounds, NULL, NULL },
        { "--sweep", "a line for each of many efforts", NULL, NULL, &c.sweep },
        { "--rivals", "also hnswlib", NULL, NULL, &c.rivals },
        { "--rival-m", "hnswlib's M (16)", &c.rival_m, NULL, NULL },
        { "--rival-efc", "hnswlib's ef_construction (200)", &c.rival_efc, NULL, NULL },
        { "--rival-cache", "folder that keeps built rivals", NULL, &c.rival_cache, NULL },
    };
    char **whole_argv = argv - 1; /* main stepped over its own name */
    bench_parse(argc, argv, "index --data DIR [options]", options, sizeof options / sizeof options[0]);
    if (c.dir == NULL || c.k == 0 || c.k > OMEN_K_MAX || c.threads == 0 || c.threads > SEARCH_THREADS_MAX ||
            c.rounds == 0 || c.rounds > ROUNDS_MAX || c.build_threads == 0 ||
            c.build_threads > INDEX_THREADS_MAX) {
        fprintf(stderr, "omen-bench index: --data is needed; --k 1..%d, threads 1..%d, --rounds 1..%d\n",
                OMEN_K_MAX, SEARCH_THREADS_MAX, ROUNDS_MAX);
        return 2;
    }
    if (c.rivals && !rival_hnswlib_available()) {
        fprintf(stderr, "omen-bench index: built without hnswlib; see deploy/install-deps.sh bench\n");
        return 2;
    }
    if (c.rivals) rival_huge_pages(whole_argv);
    struct run run = { .k = (uint32_t)c.k,
        .threads = (uint32_t)c.threads,
        .rounds = (uint32_t)c.rounds,
        .selectivity = 1 };
    bench_data_open(&run.data, c.dir, c.limit, run.k, NULL, (uint32_t)c.build_threads);
    uint64_t *filter = NULL;
    if (c.selectivity != NULL) {
        run.selectivity = atof(c.selectivity);
        run.filter = filter = filter_random(run.data.rows.count, run.selectivity);
        bench_data_truth(&run.data, filter, (uint32_t)c.build_threads);
    }
    run_all(&run, &c);
    mem_free(filter);
    bench_data_close(&run.data);
    return 0;
}
