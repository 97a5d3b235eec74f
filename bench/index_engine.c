/* Engines of `omen-bench index`; see index_engine.h. Threads: a round starts run->threads of them. */
#include "bench/index_engine.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench.h"
#include "common/check.h"
#include "common/mem.h"

#define EFFORT_MAX 4096

struct search_job {
    pthread_t thread;
    const struct run *run;
    struct engine *engine;
    uint32_t first, step;
    uint64_t cpu_ns;
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
        .plan = job->engine->plan };
    if (run->filters.by_query != NULL) {
        search.filter = run->filters.by_query[q].bits;
        search.filter_count = run->filters.by_query[q].count;
    }
    uint32_t count;
    CHECK(index_search(job->engine->index, &search, scratch, hits, &count, &job->cost) == OMEN_OK);
    uint32_t *found = job->engine->found + (size_t)q * run->k;
    for (uint32_t i = 0; i < run->k; i++) found[i] = i < count ? hits[i].slot : UINT32_MAX;
}

static void *search_run(void *arg)
{
    struct search_job *job = arg;
    const struct run *run = job->run;
    struct engine *engine = job->engine;
    struct index_scratch *scratch = engine->index != NULL ? index_scratch_new(engine->index) : NULL;
    struct index_hit *hits = mem_must_alloc(run->k * sizeof *hits);
    uint64_t cpu_start = bench_thread_cpu_ns();
    for (uint32_t q = job->first; q < run->data.query_count; q += job->step) {
        uint64_t start = bench_now_ns();
        if (engine->index != NULL)
            search_ours(job, q, scratch, hits);
        else {
            uint32_t *found = engine->found + (size_t)q * run->k;
            uint32_t n = engine->rival_ops->search(engine->rival,
                    run->data.queries + (size_t)q * run->data.rows.dim, run->k, engine->effort, found);
            for (; n < run->k; n++) found[n] = UINT32_MAX;
        }
        engine->latency_ns[q] = bench_now_ns() - start;
    }
    job->cpu_ns = bench_thread_cpu_ns() - cpu_start;
    mem_free(hits);
    if (scratch != NULL) index_scratch_free(engine->index, scratch);
    return NULL;
}

static void cost_add(struct index_cost *sum, const struct index_cost *part)
{
    sum->distances += part->distances;
    sum->estimates += part->estimates;
    sum->hops += part->hops;
    sum->rescored += part->rescored;
    sum->effort += part->effort;
    sum->walks += part->walks;
    sum->gathers += part->gathers;
    sum->scans += part->scans;
    sum->aborted += part->aborted;
    sum->rounds += part->rounds;
    sum->blocks += part->blocks;
    sum->blocks_read += part->blocks_read;
}

void engine_round(const struct run *run, struct engine *engine)
{
    struct search_job jobs[SEARCH_THREADS_MAX];
    uint32_t n = run->data.query_count;
    uint64_t cpu_ns = 0, start = bench_now_ns();
    memset(&engine->cost, 0, sizeof engine->cost);
    for (uint32_t t = 0; t < run->threads; t++) {
        jobs[t] = (struct search_job){ .run = run, .engine = engine, .first = t, .step = run->threads };
        if (run->threads == 1)
            search_run(&jobs[t]);
        else if (pthread_create(&jobs[t].thread, NULL, search_run, &jobs[t]) != 0)
            panic("cannot start a thread");
    }
    for (uint32_t t = 0; t < run->threads; t++) {
        if (run->threads > 1) pthread_join(jobs[t].thread, NULL);
        cost_add(&engine->cost, &jobs[t].cost);
        cpu_ns += jobs[t].cpu_ns;
    }
    uint32_t round = engine->rounds < ROUNDS_MAX ? engine->rounds++ : ROUNDS_MAX - 1;
    engine->qps[round] = n / ((double)(bench_now_ns() - start) / 1e9);
    engine->cpu_us[round] = (double)cpu_ns / 1e3 / n;
    qsort(engine->latency_ns, n, sizeof(uint64_t), bench_compare_u64);
    engine->p50_us[round] = (double)engine->latency_ns[n / 2] / 1e3;
    engine->p99_us[round] = (double)engine->latency_ns[n - 1 - n / 100] / 1e3;
}

static int compare_f64(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double engine_median(const double *values, uint32_t count)
{
    double sorted[ROUNDS_MAX];
    if (count == 0) return 0;
    memcpy(sorted, values, count * sizeof *sorted);
    qsort(sorted, count, sizeof *sorted, compare_f64);
    return sorted[count / 2];
}

void engine_recall(const struct run *run, struct engine *engine)
{
    uint32_t n = run->data.query_count, below = 0;
    double *recalls = mem_must_alloc(n * sizeof *recalls), sum = 0;
    engine->short_answers = 0;
    for (uint32_t q = 0; q < n; q++) {
        const uint32_t *found = engine->found + (size_t)q * run->k;
        uint32_t count = 0;
        while (count < run->k && found[count] != UINT32_MAX) count++;
        engine->short_answers += count < run->data.wanted[q];
        recalls[q] = bench_data_recall(&run->data, q, found, count);
        sum += recalls[q];
        below += recalls[q] < 0.8 - 1e-9;
    }
    qsort(recalls, n, sizeof *recalls, compare_f64);
    engine->recall = sum / n;
    engine->recall_p5 = recalls[n / 20];
    engine->queries_below_80 = (double)below / n;
    mem_free(recalls);
}

static double recall_at(const struct run *run, struct engine *engine, uint32_t effort)
{
    engine->effort = effort;
    engine->rounds = 0;
    engine_round(run, engine);
    engine_recall(run, engine);
    return engine->recall;
}

/* Doubling, then bisection. */
void engine_effort_for(const struct run *run, struct engine *engine, double recall)
{
    uint32_t low = run->k - 1, high = run->k;
    while (high < EFFORT_MAX && recall_at(run, engine, high) < recall) {
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
    engine->rounds = 0;
}

void engine_init(struct engine *engine, const char *name, const struct run *run)
{
    memset(engine, 0, sizeof *engine);
    engine->name = name;
    engine->quant = "none";
    engine->latency_ns = mem_must_alloc(run->data.query_count * sizeof(uint64_t));
    engine->found = mem_must_alloc((size_t)run->data.query_count * run->k * sizeof(uint32_t));
}

void engine_fini(struct engine *engine)
{
    if (engine->rival != NULL) engine->rival_ops->free(engine->rival);
    mem_free(engine->found);
    mem_free(engine->latency_ns);
}

static void print_cost(const struct run *run, const struct engine *engine)
{
    uint32_t n = run->data.query_count;
    if (engine->index == NULL) return;
    json_line_f64("distances_per_query", (double)(engine->cost.distances + engine->cost.rescored) / n);
    json_line_f64("estimates_per_query", (double)engine->cost.estimates / n);
    json_line_f64("rescored_per_query", (double)engine->cost.rescored / n);
    json_line_f64("hops_per_query", (double)engine->cost.hops / n);
    json_line_text("plan", index_plan_name(engine->plan));
    json_line_f64("walked", (double)engine->cost.walks / n);
    json_line_f64("gathered", (double)engine->cost.gathers / n);
    json_line_f64("scanned", (double)engine->cost.scans / n);
    json_line_f64("aborted", (double)engine->cost.aborted / n);
    if (engine->cost.blocks == 0) return;
    json_line_f64("rounds_per_query", (double)engine->cost.rounds / n);
    json_line_f64("blocks_per_query", (double)engine->cost.blocks / n);
    json_line_f64("bytes_read_per_query", (double)engine->cost.blocks_read * 4096 / n);
}

static void print_build(const struct run *run, const struct engine *engine)
{
    uint32_t count = run->data.rows.count;
    double seconds = engine->build_seconds, cpu_seconds = engine->build_cpu_seconds;
    json_line_u64("build_threads", engine->build_threads);
    json_line_f64("build_seconds", seconds);
    json_line_f64("build_cpu_seconds", cpu_seconds);
    json_line_f64("build_vps", seconds > 0 ? count / seconds : 0);
    json_line_f64("build_vps_per_cpu", cpu_seconds > 0 ? count / cpu_seconds : 0);
    json_line_f64("bytes_per_vector", engine->bytes_per_vector);
    json_line_f64("memory_bytes", engine->bytes_per_vector * count);
}

void engine_print(const struct run *run, struct engine *engine, const struct engine *better)
{
    uint32_t n = run->data.query_count, rounds = engine->rounds;
    double load = 0;
    if (getloadavg(&load, 1) != 1) load = -1;
    qsort(engine->qps, rounds, sizeof(double), compare_f64);
    json_line_begin("index");
    json_line_text("engine", engine->name);
    json_line_text("dataset", run->data.set.name);
    json_line_u64("count", run->data.rows.count);
    json_line_u64("dim", run->data.rows.dim);
    json_line_text("metric", metric_name(run->data.rows.metric));
    json_line_text("index", engine->label);
    json_line_text("quant", engine->quant);
    print_build(run, engine);
    json_line_u64("threads", run->threads);
    json_line_u64("k", run->k);
    json_line_f64("recall_target", engine->recall_target);
    json_line_f64("effort", engine->index != NULL ? (double)engine->cost.effort / n : engine->effort);
    json_line_f64("recall", engine->recall);
    json_line_f64("recall_p5", engine->recall_p5);
    json_line_f64("queries_below_0_8", engine->queries_below_80);
    json_line_u64("short_answers", engine->short_answers);
    json_line_f64("qps", engine->qps[rounds / 2]);
    json_line_f64("qps_spread", engine->qps[rounds - 1] / engine->qps[0]);
    json_line_f64("qps_best", engine->qps[rounds - 1]);
    json_line_f64("cpu_us", engine_median(engine->cpu_us, rounds));
    json_line_f64("p50_us", engine_median(engine->p50_us, rounds));
    json_line_f64("p99_us", engine_median(engine->p99_us, rounds));
    print_cost(run, engine);
    json_line_f64("filter_selectivity", run->filters.by_query == NULL ? 1 : run->filters.selectivity);
    if (run->filters.by_query != NULL && run->filters.text[0] != '{')
        json_line_text("filter", run->filters.text);
    if (better != NULL) {
        json_line_text("better_plan", index_plan_name(better->plan));
        json_line_f64("cost_to_better_plan",
                engine_median(engine->cpu_us, rounds) / engine_median(better->cpu_us, better->rounds));
    }
    json_line_u64("queries", n);
    json_line_u64("rounds", rounds);
    json_line_f64("load", load);
    json_line_end();
}
