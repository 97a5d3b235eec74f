/* omen-bench churn: a mutable index whose points leave and come until all of them were replaced several times,
 * against a fresh build of the points that it holds then: recall at equal effort, distances, points that no walk
 * reaches, and what a write costs its thread.
 *
 * Rows of the set come in their order, the first ones again after the last. Who leaves: the oldest (`window`),
 * anybody (`random`), or a fortieth of the points at once, those nearest to one of them (`cluster`). The same seed
 * repeats a run. Threads: one. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench.h"
#include "bench/index_data.h"
#include "common/check.h"
#include "common/mem.h"
#include "storage/index/hnsw.h"
#include "storage/kernel/kernel.h"

#define EFFORTS 3
#define CLUSTERS 40 /* one of so many parts leaves at once */

static const uint32_t efforts[EFFORTS] = { 20, 40, 80 };

enum order { ORDER_WINDOW, ORDER_RANDOM, ORDER_CLUSTER, ORDER_COUNT };
static const char *const order_names[ORDER_COUNT] = { "window", "random", "cluster" };

struct churn {
    struct bench_data data;
    struct index_params params;
    enum order order;
    uint32_t k, live_count;
    uint32_t *live;        /* [live_count] rows that are in the index, the oldest at `oldest` */
    uint64_t *bits;        /* [rows] the same as a set */
    uint32_t oldest, next; /* place of the oldest; the row that comes next */
    uint64_t rng;
    struct index *index; /* its slots are rows of the set */
    uint64_t *write_ns;  /* [2 * live_count] CPU time of the writes of this turnover */
    uint32_t writes;
    uint64_t insert_ns, remove_ns;
};

struct found {
    double recall[EFFORTS], distances[EFFORTS];
};

static const float *row_of(const struct churn *c, uint32_t row)
{
    return c->data.rows.data + (size_t)row * c->data.rows.stride_floats;
}

/* ---- points leave and come ---- */

static void take_out(struct churn *c, uint32_t place)
{
    uint64_t start = bench_thread_cpu_ns();
    CHECK(index_remove(c->index, c->live[place], NULL) == OMEN_OK);
    uint64_t ns = bench_thread_cpu_ns() - start;
    c->bits[c->live[place] / 64] &= ~(1ull << c->live[place] % 64);
    c->write_ns[c->writes++] = ns;
    c->remove_ns += ns;
}

/* The next row that is not there takes the place. */
static void put_in(struct churn *c, uint32_t place)
{
    while (c->bits[c->next / 64] >> c->next % 64 & 1) c->next = (c->next + 1) % c->data.rows.count;
    uint64_t start = bench_thread_cpu_ns();
    CHECK(index_insert(c->index, c->next, row_of(c, c->next), NULL) == OMEN_OK);
    uint64_t ns = bench_thread_cpu_ns() - start;
    c->live[place] = c->next;
    c->bits[c->next / 64] |= 1ull << c->next % 64;
    c->write_ns[c->writes++] = ns;
    c->insert_ns += ns;
}

static uint32_t any_place(struct churn *c) { return (uint32_t)(bench_mix(c->rng++) % c->live_count); }

static void replace_one(struct churn *c)
{
    uint32_t place = any_place(c);
    if (c->order == ORDER_WINDOW) {
        place = c->oldest;
        c->oldest = (c->oldest + 1) % c->live_count;
    }
    take_out(c, place);
    put_in(c, place);
}

struct near {
    float distance;
    uint32_t place;
};

static int near_compare(const void *a, const void *b)
{
    const struct near *x = a, *y = b;
    if (x->distance != y->distance) return x->distance < y->distance ? -1 : 1;
    return (x->place > y->place) - (x->place < y->place);
}

/* The `count` points nearest to one of them leave, all before the first one comes. */
static void replace_cluster(struct churn *c, struct near *near, uint32_t count)
{
    const float *middle = row_of(c, c->live[any_place(c)]);
    for (uint32_t i = 0; i < c->live_count; i++)
        near[i] = (struct near){ kernel_get()->l2sq_f32(middle, row_of(c, c->live[i]), c->data.rows.dim), i };
    qsort(near, c->live_count, sizeof *near, near_compare);
    for (uint32_t i = 0; i < count; i++) take_out(c, near[i].place);
    for (uint32_t i = 0; i < count; i++) put_in(c, near[i].place);
}

static void turn_over(struct churn *c)
{
    c->writes = 0;
    c->insert_ns = c->remove_ns = 0;
    if (c->order != ORDER_CLUSTER) {
        for (uint32_t i = 0; i < c->live_count; i++) replace_one(c);
        return;
    }
    struct near *near = mem_must_alloc(c->live_count * sizeof *near);
    for (uint32_t left = c->live_count, some; left > 0; left -= some) {
        some = c->live_count / CLUSTERS + 1;
        if (some > left) some = left;
        replace_cluster(c, near, some);
    }
    mem_free(near);
}

/* ---- what is found ---- */

/* Recall among the live rows at each effort; rows[slot] = the row in that slot, NULL = slots are rows. */
static void find(const struct churn *c, const struct index *index, const uint32_t *rows,
        struct found *found_out)
{
    const struct bench_data *data = &c->data;
    struct index_scratch *scratch = index_scratch_new(index);
    struct index_hit *hits = mem_must_alloc(c->k * sizeof *hits);
    uint32_t *slots = mem_must_alloc(c->k * sizeof *slots), count;
    CHECK(scratch != NULL);
    for (uint32_t e = 0; e < EFFORTS; e++) {
        struct index_cost cost = { 0 };
        double recall = 0;
        for (uint32_t q = 0; q < data->query_count; q++) {
            struct index_search search = { .query = data->queries + (size_t)q * data->rows.dim,
                .k = c->k,
                .effort = efforts[e] };
            CHECK(index_search(index, &search, scratch, hits, &count, &cost) == OMEN_OK && count == c->k);
            for (uint32_t i = 0; i < count; i++) {
                slots[i] = rows != NULL ? rows[hits[i].slot] : hits[i].slot;
                CHECK(c->bits[slots[i] / 64] >> slots[i] % 64 & 1); /* who left is not found */
            }
            recall += bench_data_recall(data, q, slots, count);
        }
        found_out->recall[e] = recall / data->query_count;
        found_out->distances[e] = (double)cost.distances / data->query_count;
    }
    mem_free(slots);
    mem_free(hits);
    index_scratch_free(index, scratch);
}

/* The same points, built at once. */
static void find_fresh(const struct churn *c, struct found *found_out)
{
    uint32_t dim = c->data.rows.dim;
    float *data = mem_must_alloc((size_t)c->live_count * dim * sizeof *data);
    for (uint32_t i = 0; i < c->live_count; i++)
        memcpy(data + (size_t)i * dim, row_of(c, c->live[i]), dim * sizeof *data);
    struct index_rows rows = { data, dim, c->live_count, dim, c->data.rows.metric };
    struct index *fresh;
    CHECK(index_build(INDEX_HNSW, &rows, &c->params, NULL, &fresh, NULL) == OMEN_OK);
    find(c, fresh, c->live, found_out);
    index_free(fresh);
    mem_free(data);
}

static void truth_again(struct churn *c)
{
    uint32_t n = c->data.query_count;
    struct bench_filter *filters = mem_must_alloc(n * sizeof *filters);
    for (uint32_t q = 0; q < n; q++) filters[q] = (struct bench_filter){ c->bits, c->live_count };
    bench_data_truth(&c->data, filters, 2);
    mem_free(filters);
}

static void report(struct churn *c, uint32_t turnover)
{
    struct found ours, fresh;
    struct index_stats stats;
    hnsw_settle(c->index);
    index_stats(c->index, true, &stats);
    truth_again(c);
    find(c, c->index, NULL, &ours);
    find_fresh(c, &fresh);
    qsort(c->write_ns, c->writes, sizeof *c->write_ns, bench_compare_u64);
    for (uint32_t e = 0; e < EFFORTS; e++) {
        json_line_begin("churn");
        json_line_text("dataset", c->data.set.name);
        json_line_text("order", order_names[c->order]);
        json_line_u64("live", stats.live_count);
        json_line_u64("turnover", turnover);
        json_line_u64("unreachable", stats.unreachable);
        json_line_u64("k", c->k);
        json_line_u64("effort", efforts[e]);
        json_line_f64("recall", ours.recall[e]);
        json_line_f64("recall_fresh", fresh.recall[e]);
        json_line_f64("distances_per_query", ours.distances[e]);
        json_line_f64("distances_per_query_fresh", fresh.distances[e]);
        json_line_f64("insert_cpu_us", (double)c->insert_ns / 1e3 / c->live_count);
        json_line_f64("remove_cpu_us", (double)c->remove_ns / 1e3 / c->live_count);
        json_line_f64("write_p50_us", (double)c->write_ns[c->writes / 2] / 1e3);
        json_line_f64("write_p99_us", (double)c->write_ns[c->writes - 1 - c->writes / 100] / 1e3);
        json_line_f64("write_max_us", (double)c->write_ns[c->writes - 1] / 1e3);
        json_line_end();
    }
}

static void run_all(struct churn *c, uint32_t turnovers)
{
    uint32_t count = c->data.rows.count, words = (count + 63) / 64;
    struct index_rows first = c->data.rows;
    first.count = c->live_count;
    c->live = mem_must_alloc(c->live_count * sizeof *c->live);
    c->bits = mem_must_calloc(words, sizeof *c->bits);
    c->write_ns = mem_must_alloc(2 * (size_t)c->live_count * sizeof *c->write_ns);
    for (uint32_t row = 0; row < c->live_count; row++) {
        c->live[row] = row;
        c->bits[row / 64] |= 1ull << row % 64;
    }
    c->next = c->live_count;
    CHECK(index_build(INDEX_HNSW, &first, &c->params, NULL, &c->index, NULL) == OMEN_OK);
    for (uint32_t turnover = 1; turnover <= turnovers; turnover++) {
        turn_over(c);
        report(c, turnover);
    }
    index_free(c->index);
    mem_free(c->write_ns);
    mem_free(c->bits);
    mem_free(c->live);
}

static int refuse(const char *what)
{
    fprintf(stderr, "omen-bench churn: %s\n", what);
    return 2;
}

int bench_churn(int argc, char **argv)
{
    const char *dir = NULL, *order = "window";
    uint64_t limit = 0, live = 10000, turnovers = 5, queries = 0, k = 10, degree = 0, efc = 0, seed = 1;
    const struct bench_option options[] = {
        { "--data", "data-set folder", NULL, &dir, NULL },
        { "--order", "who leaves: window, random, cluster (window)", NULL, &order, NULL },
        { "--live", "points in the index at a time (10000)", &live, NULL, NULL },
        { "--limit", "only the first rows (all)", &limit, NULL, NULL },
        { "--turnovers", "a report after each (5)", &turnovers, NULL, NULL },
        { "--queries", "only the first queries (all)", &queries, NULL, NULL },
        { "--k", "neighbours (10)", &k, NULL, NULL },
        { "--degree", "links per node (the index's default)", &degree, NULL, NULL },
        { "--ef-construction", "beam width while building (the index's default)", &efc, NULL, NULL },
        { "--seed", "(1)", &seed, NULL, NULL },
    };
    bench_parse(argc, argv, "omen-bench churn --data DIR [options]", options,
            sizeof options / sizeof options[0]);
    if (dir == NULL) return refuse("--data DIR is needed");
    if (k == 0 || k > efforts[0] || live < 2 * k || live > INDEX_SLOTS_MAX / 2 || turnovers == 0)
        return refuse("--k 1..20, --live at least 2 k, --turnovers at least 1");
    struct churn c = { .k = (uint32_t)k, .live_count = (uint32_t)live, .rng = seed };
    while (c.order < ORDER_COUNT && strcmp(order, order_names[c.order]) != 0) c.order++;
    if (c.order == ORDER_COUNT) return refuse("--order window, random or cluster");
    c.params = (struct index_params){ .M = (uint32_t)degree,
        .ef_construction = (uint32_t)efc,
        .capacity = c.live_count,
        .held_out = UINT32_MAX,
        .seed = seed };
    bench_data_open(&c.data, dir, limit, queries, c.k, 2);
    if (c.data.rows.count < 2 * (uint64_t)c.live_count) {
        bench_data_close(&c.data);
        return refuse("the data set has fewer than twice --live rows");
    }
    run_all(&c, (uint32_t)turnovers);
    bench_data_close(&c.data);
    return 0;
}
