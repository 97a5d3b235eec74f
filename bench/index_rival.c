/* Rivals, their cache and their best parameters; see index_rival.h. Threads: those that build. */
#include "bench/index_rival.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench/bench.h"
#include "common/check.h"
#include "common/mem.h"

#define PATH_BYTES 4096
#define BEST_ROUNDS 3

static const uint32_t best_m[] = { 8, 16, 24, 32 };
static const uint32_t best_efc[] = { 100, 200, 400 };

static void path_of(const struct run *run, const struct rival_choice *choice, const struct rival_ops *ops,
        const char *what, char *path)
{
    if (mkdir(choice->cache, 0777) != 0 && errno != EEXIST)
        panic("cannot create %s: %s", choice->cache, strerror(errno));
    if (snprintf(path, PATH_BYTES, "%s/%s-%s-%u-%s", choice->cache, ops->name, run->data.set.name,
                run->data.rows.count, what) >= PATH_BYTES)
        panic("--rival-cache: too long a path");
}

static struct rival_rows rows_of(const struct run *run)
{
    const struct index_rows *rows = &run->data.rows;
    return (struct rival_rows){ rows->data, rows->stride_floats, rows->count, rows->dim,
        rows->metric != METRIC_L2 };
}

/* What a build took is kept beside the graph. */
static bool built_read(const char *path, struct engine *engine)
{
    char beside[PATH_BYTES + 8];
    snprintf(beside, sizeof beside, "%s.built", path);
    FILE *f = fopen(beside, "r");
    if (f == NULL) return false;
    bool fine = fscanf(f, "%lf %lf %u", &engine->build_seconds, &engine->build_cpu_seconds,
                        &engine->build_threads) == 3;
    fclose(f);
    return fine;
}

static void built_write(const char *path, const struct engine *engine)
{
    char beside[PATH_BYTES + 8];
    snprintf(beside, sizeof beside, "%s.built", path);
    FILE *f = fopen(beside, "w");
    if (f == NULL) panic("cannot write %s: %s", beside, strerror(errno));
    fprintf(f, "%.3f %.3f %u\n", engine->build_seconds, engine->build_cpu_seconds, engine->build_threads);
    fclose(f);
}

static bool saved(const struct rival_ops *ops, const struct rival *rival, const char *path)
{
    char aside[PATH_BYTES + 8];
    snprintf(aside, sizeof aside, "%s.new", path);
    return ops->save(rival, aside) && rename(aside, path) == 0;
}

static void obtain(const struct run *run, const struct rival_choice *choice, uint32_t M, uint32_t efc,
        struct engine *engine)
{
    char what[64], path[PATH_BYTES];
    struct rival_rows rows = rows_of(run);
    const struct rival_ops *ops = engine->rival_ops;
    snprintf(what, sizeof what, "M%u-efC%u", M, efc);
    if (choice->cache != NULL) path_of(run, choice, ops, what, path);
    if (choice->cache != NULL && built_read(path, engine)) engine->rival = ops->load(&rows, path);
    if (engine->rival == NULL) {
        fprintf(stderr, "%s: building %s\n", ops->name, what);
        uint64_t start = bench_now_ns(), cpu_start = bench_cpu_ns();
        engine->rival = ops->build(&rows, M, efc, choice->build_threads);
        if (engine->rival == NULL) panic("%s could not be built", ops->name);
        engine->build_seconds = (double)(bench_now_ns() - start) / 1e9;
        engine->build_cpu_seconds = (double)(bench_cpu_ns() - cpu_start) / 1e9;
        engine->build_threads = choice->build_threads;
        if (choice->cache != NULL && saved(ops, engine->rival, path)) built_write(path, engine);
    }
    bool huge = ops->pages(engine->rival, true);
    engine->bytes_per_vector = ops->bytes_per_vector(engine->rival);
    snprintf(engine->label, sizeof engine->label, "M=%u,efC=%u%s", M, efc, huge ? ",huge pages" : "");
}

/* QPS at the smallest effort that reaches `recall`; 0 when none does. */
static double speed_at(const struct run *run, struct engine *engine, double recall)
{
    engine_effort_for(run, engine, recall);
    for (uint32_t i = 0; i < BEST_ROUNDS; i++) engine_round(run, engine);
    engine_recall(run, engine);
    return engine->recall >= recall ? 1e6 / engine_median(engine->cpu_us, engine->rounds) : 0;
}

static void find_best(const struct run *run, const struct rival_choice *choice, const struct rival_ops *ops,
        double recall, uint32_t *M_out, uint32_t *efc_out)
{
    double most = -1;
    for (size_t m = 0; m < sizeof best_m / sizeof best_m[0]; m++) {
        for (size_t e = 0; e < sizeof best_efc / sizeof best_efc[0]; e++) {
            struct engine engine;
            engine_init(&engine, ops->name, run);
            engine.rival_ops = ops;
            obtain(run, choice, best_m[m], best_efc[e], &engine);
            double qps = speed_at(run, &engine, recall);
            fprintf(stderr, "%s: %s: %.0f per CPU-second at %.4f, ef %u\n", ops->name, engine.label, qps,
                    engine.recall, engine.effort);
            engine_fini(&engine);
            if (qps <= most) continue;
            most = qps;
            *M_out = best_m[m];
            *efc_out = best_efc[e];
        }
    }
}

static void best_of(const struct run *run, const struct rival_choice *choice, const struct rival_ops *ops,
        double recall, uint32_t *M_out, uint32_t *efc_out)
{
    char what[64], path[PATH_BYTES];
    if (choice->cache == NULL) {
        find_best(run, choice, ops, recall, M_out, efc_out);
        return;
    }
    snprintf(what, sizeof what, "k%u-recall%.2f.best", run->k, recall);
    path_of(run, choice, ops, what, path);
    FILE *f = fopen(path, "r");
    bool known = f != NULL && fscanf(f, "%u %u", M_out, efc_out) == 2;
    if (f != NULL) fclose(f);
    if (known) return;
    find_best(run, choice, ops, recall, M_out, efc_out);
    f = fopen(path, "w");
    if (f == NULL) panic("cannot write %s: %s", path, strerror(errno));
    fprintf(f, "%u %u\n", *M_out, *efc_out);
    fclose(f);
}

void rival_engine(const struct run *run, const struct rival_choice *choice, const struct rival_ops *ops,
        double recall, struct engine *engine_out)
{
    uint32_t M = choice->M, efc = choice->ef_construction;
    if (choice->best) best_of(run, choice, ops, recall, &M, &efc);
    engine_init(engine_out, ops->name, run);
    engine_out->rival_ops = ops;
    engine_out->recall_target = (float)recall;
    obtain(run, choice, M, efc, engine_out);
    if (choice->best) strcat(engine_out->label, ",best");
    engine_effort_for(run, engine_out, recall);
}

bool rival_small_pages(const struct run *run, const struct engine *huge, struct engine *engine_out)
{
    const struct rival_ops *ops = huge->rival_ops;
    struct rival_rows rows = rows_of(run);
    char path[64];
    int fd = memfd_create("rival", MFD_CLOEXEC);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    struct rival *copy = fd >= 0 && ops->save(huge->rival, path) ? ops->load(&rows, path) : NULL;
    if (fd >= 0) close(fd);
    if (copy == NULL || !ops->pages(copy, false)) {
        if (copy != NULL) ops->free(copy);
        return false;
    }
    engine_init(engine_out, ops->name, run);
    engine_out->rival_ops = ops;
    engine_out->rival = copy;
    engine_out->effort = huge->effort;
    engine_out->recall_target = huge->recall_target;
    engine_out->build_seconds = huge->build_seconds;
    engine_out->build_cpu_seconds = huge->build_cpu_seconds;
    engine_out->build_threads = huge->build_threads;
    engine_out->bytes_per_vector = huge->bytes_per_vector;
    char label[sizeof engine_out->label];
    snprintf(label, sizeof label, "%s", huge->label);
    char *pages = strstr(label, ",huge pages");
    if (pages != NULL) *pages = 0;
    snprintf(engine_out->label, sizeof engine_out->label, "%.40s,small pages", label);
    return true;
}
