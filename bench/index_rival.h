/* Rivals in a run of `omen-bench index`: built or read from a cache, at given parameters or at their best. */
#ifndef OMEN_BENCH_INDEX_RIVAL_H
#define OMEN_BENCH_INDEX_RIVAL_H

#include "bench/index_engine.h"

struct rival_choice {
    const char *cache; /* folder that keeps built graphs and best parameters; NULL = none */
    bool best;         /* try all parameters, else M and ef_construction below */
    uint32_t M, ef_construction, build_threads;
};

/* An engine at `recall`, the recall that ours delivered: with choice->best the parameters whose QPS are most there,
 * among M {8,16,24,32} x ef_construction {100,200,400}; looked up in the cache when an earlier run found them for
 * this data set, row count, k and recall (to 0.01). Huge pages where the engine can. Panics when it cannot be
 * built. */
void rival_engine(const struct run *run, const struct rival_choice *choice, const struct rival_ops *ops,
        double recall, struct engine *engine_out);
/* The same graph again in small pages, an engine of its own; false: not possible. */
bool rival_small_pages(const struct run *run, const struct engine *huge, struct engine *engine_out);

#endif
