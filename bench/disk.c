/* omen-bench disk: a disk graph searched by a process that holds nothing but the index and the queries, so that it can
 * be put under a memory cgroup smaller than the data (bench/disk.sh). The first run builds and saves the index and,
 * beside it, the queries with the distances that recall is counted by; the second opens and searches it. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "bench/bench.h"
#include "bench/index_data.h"
#include "common/check.h"
#include "common/mem.h"
#include "storage/index/disk.h"

#define ROUNDS_MAX 101
#define TIE 1e-5f
#define MAGIC 0x4b534944u

struct asked {
    uint32_t count, dim, metric, rows, k; /* as they lie in the file, after MAGIC */
    float *queries, *bounds;              /* [count][dim], [count] the k-th true distance */
    char name[64];
};

static void check_io(bool fine, const char *path)
{
    if (!fine) panic("%s: cannot be read or written", path);
}

static void asked_path(char *out, size_t size, const char *file) { snprintf(out, size, "%s.queries", file); }

static void asked_write(const struct bench_data *data, const char *file)
{
    char path[4096], name[64] = { 0 };
    asked_path(path, sizeof path, file);
    FILE *f = fopen(path, "wb");
    check_io(f != NULL, path);
    uint32_t head[6] = { MAGIC, data->query_count, data->rows.dim, (uint32_t)data->rows.metric,
        data->rows.count, data->k };
    snprintf(name, sizeof name, "%.63s", data->set.name);
    check_io(fwrite(head, sizeof head, 1, f) == 1 && fwrite(name, sizeof name, 1, f) == 1, path);
    for (uint32_t q = 0; q < data->query_count; q++)
        check_io(fwrite(data->queries + (size_t)q * data->rows.dim, sizeof(float), data->rows.dim, f) ==
                        data->rows.dim,
                path);
    check_io(fwrite(data->bounds, sizeof(float), data->query_count, f) == data->query_count, path);
    check_io(fclose(f) == 0, path);
}

static void asked_read(struct asked *asked, const char *file)
{
    char path[4096];
    uint32_t head[6];
    asked_path(path, sizeof path, file);
    FILE *f = fopen(path, "rb");
    check_io(f != NULL && fread(head, sizeof head, 1, f) == 1 && head[0] == MAGIC &&
                    head[2] <= OMEN_DIM_MAX && head[1] <= 10000000,
            path);
    check_io(fread(asked->name, sizeof asked->name, 1, f) == 1, path);
    asked->name[sizeof asked->name - 1] = '\0';
    asked->count = head[1];
    asked->dim = head[2];
    asked->metric = head[3];
    asked->rows = head[4];
    asked->k = head[5];
    size_t floats = (size_t)asked->count * asked->dim;
    asked->queries = mem_must_alloc(floats * sizeof(float));
    asked->bounds = mem_must_alloc(asked->count * sizeof(float));
    check_io(fread(asked->queries, sizeof(float), floats, f) == floats, path);
    check_io(fread(asked->bounds, sizeof(float), asked->count, f) == asked->count, path);
    fclose(f);
}

struct choice {
    const char *dir, *file, *quant, *recall;
    uint64_t limit, queries, k, threads, effort, rounds, cache;
    bool build;
};

static void build(const struct choice *c)
{
    struct bench_data data;
    struct err err;
    struct index *index;
    struct index_params params = { .recall_target = (float)atof(c->recall), .seed = 1 };
    struct index_control control = { .threads = (uint32_t)c->threads };
    for (int quant = 0; quant < INDEX_QUANT_COUNT; quant++)
        if (strcmp(c->quant, index_quant_name((enum index_quant)quant)) == 0)
            params.quant = (enum index_quant)quant;
    bench_data_open(&data, c->dir, c->limit, c->queries, (uint32_t)c->k, (uint32_t)c->threads);
    uint64_t start = bench_now_ns();
    if (index_build(INDEX_DISK, &data.rows, &params, &control, &index, &err) != OMEN_OK)
        panic("build: %s", err.message);
    double build_seconds = (double)(bench_now_ns() - start) / 1e9;
    start = bench_now_ns();
    if (index_save(index, vfs_posix(), c->file, &err) != OMEN_OK) panic("save: %s", err.message);
    asked_write(&data, c->file);
    json_line_begin("disk_build");
    json_line_text("dataset", data.set.name);
    json_line_u64("count", data.rows.count);
    json_line_u64("dim", data.rows.dim);
    json_line_text("quant", c->quant);
    json_line_u64("threads", c->threads);
    json_line_f64("build_seconds", build_seconds);
    json_line_f64("save_seconds", (double)(bench_now_ns() - start) / 1e9);
    json_line_end();
    index_free(index);
    bench_data_close(&data);
}

struct round {
    double recall, below_80, mean_us;
    struct index_cost cost;
    uint64_t *latency_ns; /* [count] ascending when done */
    uint64_t *rounds;     /* [count] */
    uint64_t *blocks;     /* [count] */
};

static void round_run(const struct choice *c, const struct asked *asked, const struct index *index,
        struct index_scratch *scratch, struct round *out)
{
    struct index_hit *hits = mem_must_alloc(asked->k * sizeof *hits);
    uint64_t total = 0;
    out->recall = out->below_80 = 0;
    out->cost = (struct index_cost){ 0 };
    for (uint32_t q = 0; q < asked->count; q++) {
        struct err err;
        struct index_search search = { .query = asked->queries + (size_t)q * asked->dim,
            .k = asked->k,
            .effort = (uint32_t)c->effort,
            .recall_target = (float)atof(c->recall),
            .err = &err };
        struct index_cost before = out->cost;
        uint32_t count, near = 0;
        uint64_t start = bench_now_ns();
        if (index_search(index, &search, scratch, hits, &count, &out->cost) != OMEN_OK)
            panic("search: %s", err.message);
        total += out->latency_ns[q] = bench_now_ns() - start;
        out->rounds[q] = out->cost.rounds - before.rounds;
        out->blocks[q] = out->cost.blocks - before.blocks;
        for (uint32_t i = 0; i < count; i++)
            near += hits[i].distance <= asked->bounds[q] + fabsf(asked->bounds[q]) * TIE;
        double recall = near > asked->k ? 1 : (double)near / asked->k;
        out->recall += recall / asked->count;
        out->below_80 += (recall < 0.8 - 1e-9) / (double)asked->count;
    }
    out->mean_us = (double)total / 1e3 / asked->count;
    qsort(out->latency_ns, asked->count, sizeof(uint64_t), bench_compare_u64);
    qsort(out->rounds, asked->count, sizeof(uint64_t), bench_compare_u64);
    qsort(out->blocks, asked->count, sizeof(uint64_t), bench_compare_u64);
    mem_free(hits);
}

static void print(const struct choice *c, const struct asked *asked, const struct index *index,
        const struct round *r, uint64_t number)
{
    struct index_stats stats;
    struct rusage usage;
    uint32_t n = asked->count;
    index_stats(index, false, &stats);
    getrusage(RUSAGE_SELF, &usage);
    json_line_begin("disk");
    json_line_text("dataset", asked->name);
    json_line_u64("count", asked->rows);
    json_line_u64("dim", asked->dim);
    json_line_u64("k", asked->k);
    json_line_u64("round", number);
    json_line_f64("ram_bytes_per_vector", (double)stats.memory_bytes / asked->rows);
    json_line_u64("resident_kb_max", (uint64_t)usage.ru_maxrss);
    json_line_u64("cache_bytes", c->cache);
    json_line_f64("recall_target", atof(c->recall));
    json_line_f64("recall", r->recall);
    json_line_f64("queries_below_80", r->below_80);
    json_line_f64("effort", (double)r->cost.effort / n);
    json_line_f64("mean_us", r->mean_us);
    json_line_f64("p50_us", (double)r->latency_ns[n / 2] / 1e3);
    json_line_f64("p99_us", (double)r->latency_ns[n - 1 - n / 100] / 1e3);
    json_line_f64("rounds", (double)r->cost.rounds / n);
    json_line_u64("rounds_p99", r->rounds[n - 1 - n / 100]);
    json_line_f64("blocks", (double)r->cost.blocks / n);
    json_line_u64("blocks_p99", r->blocks[n - 1 - n / 100]);
    json_line_f64("bytes_read", (double)r->cost.blocks_read * 4096 / n);
    json_line_f64("estimates", (double)r->cost.estimates / n);
    json_line_f64("hops", (double)r->cost.hops / n);
    json_line_end();
}

static void search(const struct choice *c)
{
    struct asked asked;
    struct index *index;
    struct err err;
    asked_read(&asked, c->file);
    struct index_rows rows = { .stride_floats = asked.dim,
        .count = asked.rows,
        .dim = asked.dim,
        .metric = (enum metric)asked.metric };
    if (index_map(vfs_posix(), c->file, &rows, false, &index, &err) != OMEN_OK)
        panic("open: %s", err.message);
    CHECK(disk_cache_set(index, c->cache) == OMEN_OK);
    struct index_scratch *scratch = index_scratch_new(index);
    CHECK(scratch != NULL);
    struct round r = { .latency_ns = mem_must_alloc(asked.count * sizeof(uint64_t)),
        .rounds = mem_must_alloc(asked.count * sizeof(uint64_t)),
        .blocks = mem_must_alloc(asked.count * sizeof(uint64_t)) };
    for (uint64_t i = 0; i < c->rounds; i++) {
        round_run(c, &asked, index, scratch, &r);
        print(c, &asked, index, &r, i + 1);
    }
    mem_free(r.latency_ns);
    mem_free(r.rounds);
    mem_free(r.blocks);
    index_scratch_free(index, scratch);
    index_free(index);
    mem_free(asked.queries);
    mem_free(asked.bounds);
}

int bench_disk(int argc, char **argv)
{
    struct choice c = { .quant = "auto", .recall = "0.95", .k = 10, .threads = 2, .rounds = 3 };
    const struct bench_option options[] = {
        { "--file", "the index; FILE.queries lies beside it", NULL, &c.file, NULL },
        { "--build", "build and save it first, and end", NULL, NULL, &c.build },
        { "--data", "data-set folder, with --build", NULL, &c.dir, NULL },
        { "--quant", "codes in RAM: auto, none, scalar, product, binary (auto)", NULL, &c.quant, NULL },
        { "--limit", "first ROWS rows only (0 = all)", &c.limit, NULL, NULL },
        { "--queries", "first QUERIES queries only (0 = all)", &c.queries, NULL, NULL },
        { "--threads", "of the build (2)", &c.threads, NULL, NULL },
        { "--k", "neighbours, fixed by the build (10)", &c.k, NULL, NULL },
        { "--recall", "recall target (0.95)", NULL, &c.recall, NULL },
        { "--effort", "pool width instead of a recall target", &c.effort, NULL, NULL },
        { "--cache", "bytes of the cache of units (0)", &c.cache, NULL, NULL },
        { "--rounds", "rounds of all queries (3)", &c.rounds, NULL, NULL },
    };
    bench_parse(argc, argv, "omen-bench disk --file FILE [--build --data DIR] [options]", options,
            sizeof options / sizeof options[0]);
    if (c.file == NULL || (c.build && c.dir == NULL) || c.k == 0 || c.k > OMEN_K_MAX || c.threads == 0 ||
            c.threads > INDEX_THREADS_MAX) {
        fprintf(stderr, "omen-bench disk: --file is needed, and --data with --build; --k 1..%d\n",
                OMEN_K_MAX);
        return 2;
    }
    if (c.build)
        build(&c);
    else
        search(&c);
    return 0;
}
