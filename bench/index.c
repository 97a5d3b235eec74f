/* omen-bench index: one index over one data set: build rate, memory, recall, speed of one query in flight; with
 * --rivals other engines in turns with ours in the same run, at the smallest effort that reaches the recall that
 * ours delivered; with --plans each plan of a filtered search forced, so that the better one is measured and not
 * guessed. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/bench.h"
#include "bench/index_engine.h"
#include "bench/index_rival.h"
#include "common/check.h"
#include "common/mem.h"

#define ENGINES_MAX 8

struct choice {
    const char *dir, *index, *layout, *quant, *recall, *filter, *rivals, *rival_cache, *index_file;
    uint64_t k, build_threads, threads, limit, queries, rounds, effort, rival_m, rival_efc, degree, efc, bits,
            bytes_max, merge, merge_first, memory_max;
    bool with_rivals, faiss, sweep, plans;
};

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

static void memory_ask(const struct run *run, struct engine *engine)
{
    struct index_stats stats;
    index_stats(engine->index, false, &stats);
    engine->bytes_per_vector = (double)stats.memory_bytes / run->data.rows.count;
}

static enum index_layout layout_parse(const char *name)
{
    for (int layout = 0; layout < INDEX_LAYOUT_COUNT; layout++)
        if (strcmp(name, index_layout_name((enum index_layout)layout)) == 0) return (enum index_layout)layout;
    panic("--layout %s: auto, fast or compact", name);
}

/* The rows in `merge` parts, each indexed for itself, then merged; only the merge is timed. */
static enum omen_err build_merged(const struct run *run, const struct choice *choice,
        const struct index_params *params, const struct index_control *control, struct engine *engine,
        struct err *err)
{
    const struct index_rows *all = &run->data.rows;
    struct index_part parts[INDEX_MERGE_PARTS_MAX];
    struct index *indexes[INDEX_MERGE_PARTS_MAX];
    uint32_t n = (uint32_t)choice->merge, *slots = mem_must_alloc((size_t)all->count * sizeof *slots);
    for (uint32_t slot = 0; slot < all->count; slot++) slots[slot] = slot;
    uint32_t ahead = choice->merge_first == 0 ? all->count / n
                                              : (uint32_t)(all->count * choice->merge_first / 100);
    for (uint32_t i = 0, first = 0; i < n; i++) {
        struct index_rows rows = *all;
        uint32_t end = i + 1 == n ? all->count
                                  : ahead + (uint32_t)((uint64_t)(all->count - ahead) * i / (n - 1));
        rows.data += (size_t)first * rows.stride_floats;
        rows.count = end - first;
        if (index_build(INDEX_SEALED, &rows, params, control, &indexes[i], err) != OMEN_OK)
            panic("build: %s", err->message);
        parts[i] = (struct index_part){ indexes[i], slots + first };
        first = end;
    }
    uint64_t start = bench_now_ns(), cpu_start = bench_cpu_ns();
    enum omen_err rc = index_merge(parts, n, all, params, control, &engine->index, err);
    engine->build_seconds = (double)(bench_now_ns() - start) / 1e9;
    engine->build_cpu_seconds = (double)(bench_cpu_ns() - cpu_start) / 1e9;
    for (uint32_t i = 0; i < n; i++) index_free(indexes[i]);
    mem_free(slots);
    return rc;
}

static void build_ours(const struct run *run, const struct choice *choice, bool merged, struct engine *engine)
{
    struct index_params params = { .quant = quant_parse(choice->quant),
        .layout = layout_parse(choice->layout),
        .bits = (uint32_t)choice->bits,
        .bytes_per_vector_max = (uint32_t)choice->bytes_max,
        .M = (uint32_t)choice->degree,
        .ef_construction = (uint32_t)choice->efc,
        .recall_target = engine->recall_target,
        .seed = 1 };
    struct index_control control = { .threads = (uint32_t)choice->build_threads,
        .memory_bytes_max = choice->memory_max,
        .progress = progress };
    struct err err;
    engine->effort = (uint32_t)choice->effort;
    if (choice->index_file != NULL && access(choice->index_file, R_OK) == 0) {
        if (index_map(vfs_posix(), choice->index_file, &run->data.rows, true, &engine->index, &err) !=
                OMEN_OK)
            panic("%s", err.message);
        memory_ask(run, engine);
        return;
    }
    engine->build_threads = (uint32_t)choice->build_threads;
    if (merged) {
        if (build_merged(run, choice, &params, &control, engine, &err) != OMEN_OK)
            panic("merge: %s", err.message);
        snprintf(engine->label, sizeof engine->label, "%s,merged of %u", choice->index,
                (unsigned)choice->merge);
        memory_ask(run, engine);
        return;
    }
    uint64_t start = bench_now_ns(), cpu_start = bench_cpu_ns();
    if (index_build(kind_parse(choice->index), &run->data.rows, &params, &control, &engine->index, &err) !=
            OMEN_OK)
        panic("build: %s", err.message);
    engine->build_seconds = (double)(bench_now_ns() - start) / 1e9;
    engine->build_cpu_seconds = (double)(bench_cpu_ns() - cpu_start) / 1e9;
    memory_ask(run, engine);
    if (choice->index_file != NULL &&
            index_save(engine->index, vfs_posix(), choice->index_file, &err) != OMEN_OK)
        panic("%s", err.message);
}

/* Plans of our index that can be forced, beside its own choice. */
static uint32_t add_plans(const struct run *run, struct engine *engines, uint32_t count)
{
    for (int plan = INDEX_PLAN_WALK; plan < INDEX_PLAN_COUNT; plan++) {
        struct engine *engine = &engines[count++];
        *engine = engines[0];
        engine->latency_ns = mem_must_alloc(run->data.query_count * sizeof(uint64_t));
        engine->found = mem_must_alloc((size_t)run->data.query_count * run->k * sizeof(uint32_t));
        engine->plan = (enum index_plan)plan;
    }
    return count;
}

static uint32_t add_rivals(const struct run *run, const struct choice *choice, struct engine *engines,
        uint32_t count, double recall)
{
    struct rival_choice rival = { .cache = choice->rival_cache,
        .M = (uint32_t)choice->rival_m,
        .ef_construction = (uint32_t)choice->rival_efc,
        .build_threads = (uint32_t)choice->build_threads };
    rival.best = choice->rivals != NULL && strcmp(choice->rivals, "best") == 0;
    rival_engine(run, &rival, rival_hnswlib(), recall, &engines[count++]);
    if (rival_small_pages(run, &engines[count - 1], &engines[count])) count++;
    rival.best = false; /* informative only */
    if (choice->faiss && rival_faiss() != NULL)
        rival_engine(run, &rival, rival_faiss(), recall, &engines[count++]);
    return count;
}

/* The fastest forced plan that answers as well as the free choice does (or as well as was asked for). */
static const struct engine *better_plan(const struct engine *engines, uint32_t count)
{
    const struct engine *better = NULL;
    double wanted = engines[0].recall;
    if (engines[0].recall_target > 0 && wanted > engines[0].recall_target) wanted = engines[0].recall_target;
    for (uint32_t i = 1; i < count; i++) {
        if (engines[i].plan == INDEX_PLAN_AUTO || engines[i].recall < wanted - 0.01) continue;
        if (better == NULL ||
                engine_median(engines[i].cpu_us, engines[i].rounds) <
                        engine_median(better->cpu_us, better->rounds))
            better = &engines[i];
    }
    return better;
}

/* Rounds in turns, so that whatever else the machine does hits all alike. */
static void measure(const struct run *run, struct engine *engines, uint32_t count)
{
    for (uint32_t i = 0; i < run->rounds; i++)
        for (uint32_t e = 0; e < count; e++) engine_round(run, &engines[e]);
    for (uint32_t e = 0; e < count; e++) engine_recall(run, &engines[e]);
    for (uint32_t e = 0; e < count; e++)
        engine_print(run, &engines[e], e == 0 ? better_plan(engines, count) : NULL);
}

static const uint32_t sweep_efforts[] = { 10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512 };

static void sweep(const struct run *run, struct engine *ours)
{
    for (size_t i = 0; i < sizeof sweep_efforts / sizeof sweep_efforts[0]; i++) {
        if (sweep_efforts[i] < run->k) continue;
        ours->effort = sweep_efforts[i];
        ours->rounds = 0;
        measure(run, ours, 1);
    }
}

static void run_all(const struct run *run, const struct choice *choice)
{
    struct engine *engines = mem_must_calloc(ENGINES_MAX, sizeof *engines);
    uint32_t count = 1;
    engine_init(&engines[0], "omendb", run);
    snprintf(engines[0].label, sizeof engines[0].label, "%s", choice->index);
    engines[0].quant = choice->quant;
    engines[0].recall_target = (float)atof(choice->recall);
    build_ours(run, choice, false, &engines[0]);
    if (choice->sweep)
        sweep(run, &engines[0]);
    else {
        engine_round(run, &engines[0]); /* warms up, and says what the rivals have to reach */
        engine_recall(run, &engines[0]);
        engines[0].rounds = 0;
        if (choice->plans) count = add_plans(run, engines, count);
        if (choice->merge != 0) {
            engine_init(&engines[count], "omendb", run);
            engines[count].quant = choice->quant;
            engines[count].recall_target = engines[0].recall_target;
            build_ours(run, choice, true, &engines[count++]);
        }
        if (choice->with_rivals) count = add_rivals(run, choice, engines, count, engines[0].recall);
        measure(run, engines, count);
    }
    for (uint32_t e = 1; e < count; e++)
        if (engines[e].index != engines[0].index) index_free(engines[e].index);
    index_free(engines[0].index);
    for (uint32_t e = 0; e < count; e++) engine_fini(&engines[e]);
    mem_free(engines);
}

/* The rivals' small blocks go to huge pages too, as ours do: glibc decides that when the process starts. */
static void rival_huge_pages(char **argv)
{
    if (getenv("GLIBC_TUNABLES") != NULL) return;
    setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1", 1);
    execv("/proc/self/exe", argv);
}

static bool choice_valid(const struct choice *c)
{
    double recall = atof(c->recall);
    if (c->dir == NULL || c->k == 0 || c->k > OMEN_K_MAX || c->threads == 0 ||
            c->threads > SEARCH_THREADS_MAX || c->rounds == 0 || c->rounds > ROUNDS_MAX ||
            c->build_threads == 0 || c->build_threads > INDEX_THREADS_MAX || !(recall >= 0 && recall <= 1)) {
        fprintf(stderr,
                "omen-bench index: wants --data; --k 1..%d, threads 1..%d, --rounds 1..%d, --recall 0..1\n",
                OMEN_K_MAX, SEARCH_THREADS_MAX, ROUNDS_MAX);
        return false;
    }
    if (c->merge == 1 || c->merge > INDEX_MERGE_PARTS_MAX || c->merge_first >= 100) {
        fprintf(stderr, "omen-bench index: --merge 2..%d, --merge-first 1..99\n", INDEX_MERGE_PARTS_MAX);
        return false;
    }
    if (c->with_rivals && c->rivals != NULL && strcmp(c->rivals, "best") != 0) {
        fprintf(stderr, "omen-bench index: --rivals, or --rivals best\n");
        return false;
    }
    if (c->with_rivals && rival_hnswlib() == NULL) {
        fprintf(stderr, "omen-bench index: built without hnswlib; see deploy/install-deps.sh bench\n");
        return false;
    }
    if (c->with_rivals && c->filter != NULL) {
        fprintf(stderr,
                "omen-bench index: hnswlib of Debian has no filter; --plans compares filtered plans\n");
        return false;
    }
    return true;
}

int bench_index(int argc, char **argv)
{
    struct choice c = { .index = "auto",
        .layout = "auto",
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
        { "--layout", "of a sealed graph: auto, fast, compact (auto)", NULL, &c.layout, NULL },
        { "--bits", "of a component in the compact layout (calibrated)", &c.bits, NULL, NULL },
        { "--bytes-max", "budget of a vector in memory (none)", &c.bytes_max, NULL, NULL },
        { "--memory-max", "bytes that a build may take beside rows and graph (no bound)", &c.memory_max, NULL,
                NULL },
        { "--quant", "auto, none, scalar, product, binary (auto)", NULL, &c.quant, NULL },
        { "--recall", "recall target (0.95)", NULL, &c.recall, NULL },
        { "--index-file", "open this file instead of building, or build and write it", NULL, &c.index_file,
                NULL },
        { "--effort", "pool width instead of a recall target", &c.effort, NULL, NULL },
        { "--k", "neighbours (10)", &c.k, NULL, NULL },
        { "--degree", "links per node (the index's default)", &c.degree, NULL, NULL },
        { "--ef-construction", "beam width while building (the index's default)", &c.efc, NULL, NULL },
        { "--build-threads", "(2)", &c.build_threads, NULL, NULL },
        { "--threads", "searching threads (1)", &c.threads, NULL, NULL },
        { "--limit", "only the first rows (all)", &c.limit, NULL, NULL },
        { "--queries", "only the first queries (all)", &c.queries, NULL, NULL },
        { "--filter", "random:S, correlated:S, anti:S (share S of the rows passes), or JSON over the payload",
                NULL, &c.filter, NULL },
        { "--plans", "also each plan of a filtered search, forced", NULL, NULL, &c.plans },
        { "--merge", "also the rows in so many parts, indexed apart and merged (sealed)", &c.merge, NULL,
                NULL },
        { "--merge-first", "percent of the rows in the first part (equal parts)", &c.merge_first, NULL,
                NULL },
        { "--rounds", "interleaved rounds (7)", &c.rounds, NULL, NULL },
        { "--sweep", "a line for each of many efforts", NULL, NULL, &c.sweep },
        { "--faiss", "with --rivals also faiss's HNSW, informative", NULL, NULL, &c.faiss },
        { "--rivals", "also hnswlib; `--rivals best`: at its best parameters", NULL, &c.rivals,
                &c.with_rivals },
        { "--rival-m", "the rivals' M (16)", &c.rival_m, NULL, NULL },
        { "--rival-efc", "the rivals' ef_construction (200)", &c.rival_efc, NULL, NULL },
        { "--rival-cache", "folder that keeps built rivals and their best parameters", NULL, &c.rival_cache,
                NULL },
    };
    char **whole_argv = argv - 1; /* main stepped over its own name */
    bench_parse(argc, argv, "index --data DIR [options]", options, sizeof options / sizeof options[0]);
    if (!choice_valid(&c)) return 2;
    if (c.with_rivals) rival_huge_pages(whole_argv);
    struct run *run = mem_must_calloc(1, sizeof *run);
    run->k = (uint32_t)c.k;
    run->threads = (uint32_t)c.threads;
    run->rounds = (uint32_t)c.rounds;
    bench_data_open(&run->data, c.dir, c.limit, c.queries, run->k, (uint32_t)c.build_threads);
    if (c.filter != NULL) {
        bench_filters_make(&run->filters, &run->data, c.filter);
        bench_data_truth(&run->data, run->filters.by_query, (uint32_t)c.build_threads);
    }
    run_all(run, &c);
    bench_filters_free(&run->filters);
    bench_data_close(&run->data);
    mem_free(run);
    return 0;
}
