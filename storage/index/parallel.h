/* A loop over items by several threads, for builders. Private to storage/index. */
#ifndef OMEN_STORAGE_INDEX_PARALLEL_H
#define OMEN_STORAGE_INDEX_PARALLEL_H

#include "storage/index/index.h"

/* Called with disjoint ranges [first, end) of at most `grain` items; `thread` is 0..threads-1. false = out of
 * memory: stop. */
typedef bool parallel_fn(void *arg, uint32_t thread, uint32_t first, uint32_t end);

/* Runs fn over 0..count-1 on control->threads threads (the caller's among them) in no particular order.
 * Progress and stop are asked on the caller's thread between ranges. OMEN_ECANCELED, OMEN_ENOMEM (fn said
 * so); no range begins after that. A thread that cannot be started only makes it slower. */
OMEN_CHECKED enum omen_err parallel_for(const struct index_control *control, const char *phase,
        uint32_t count, uint32_t grain, parallel_fn *fn, void *arg);

static inline uint32_t parallel_threads(const struct index_control *control)
{
    return control->threads == 0 ? 1 : control->threads;
}

#endif
