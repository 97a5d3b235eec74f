/* One engine of `omen-bench index`, ours or a rival: rounds of all queries, recall, effort, its line of JSON. */
#ifndef OMEN_BENCH_INDEX_ENGINE_H
#define OMEN_BENCH_INDEX_ENGINE_H

#include "bench/index_filter.h"
#include "bench/rival.h"

#define ROUNDS_MAX 101
#define SEARCH_THREADS_MAX 64

struct run {
    struct bench_data data;
    uint32_t k, threads, rounds;
    struct bench_filters filters; /* by_query = NULL: none */
};

struct engine {
    const char *name, *quant;
    char label[64];                    /* key `index` of its line */
    struct index *index;               /* ours, or */
    const struct rival_ops *rival_ops; /* theirs */
    struct rival *rival;
    enum index_plan plan;
    uint32_t effort; /* 0: by recall_target */
    float recall_target;
    double build_seconds, build_cpu_seconds, bytes_per_vector;
    uint32_t build_threads;
    uint32_t rounds; /* measured so far */
    double qps[ROUNDS_MAX], cpu_us[ROUNDS_MAX], p50_us[ROUNDS_MAX], p99_us[ROUNDS_MAX];
    double recall, recall_p5, queries_below_80;
    uint32_t short_answers; /* queries that got fewer than there are */
    uint64_t *latency_ns;   /* [query_count] of the last round; owned */
    uint32_t *found;        /* [query_count][k], UINT32_MAX past the end; owned */
    struct index_cost cost; /* of the last round */
};

void engine_init(struct engine *engine, const char *name, const struct run *run);
void engine_fini(struct engine *engine); /* frees the rival, not the index */
/* One pass over all queries, added to the engine's rounds. */
void engine_round(const struct run *run, struct engine *engine);
/* Recall of the last round. */
void engine_recall(const struct run *run, struct engine *engine);
/* Sets the smallest effort whose recall is at least `recall`; the largest there is when none is. */
void engine_effort_for(const struct run *run, struct engine *engine, double recall);
double engine_median(const double *values, uint32_t count);
/* Sorts the rounds. `better` = the fastest forced plan beside this one, or NULL. */
void engine_print(const struct run *run, struct engine *engine, const struct engine *better);

#endif
