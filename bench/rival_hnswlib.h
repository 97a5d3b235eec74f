/* hnswlib as Debian ships its headers, compiled with -O3 -march=native: the rival of `omen-bench index
 * --rivals`. Built only where libhnswlib-dev and a C++ compiler are installed; rival_hnswlib_available says
 * so. */
#ifndef OMEN_BENCH_RIVAL_HNSWLIB_H
#define OMEN_BENCH_RIVAL_HNSWLIB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct rival_hnswlib;

bool rival_hnswlib_available(void);
/* Build with `threads` inserting threads, or load `cache_path` when it exists (NULL = no cache; a fresh build
 * is saved there). *build_seconds_out is 0 for a loaded one. NULL on failure. `dot`: inner product instead of
 * squared l2. */
struct rival_hnswlib *rival_hnswlib_build(const float *rows, size_t stride_floats, uint32_t count,
        uint32_t dim, bool dot, uint32_t M, uint32_t ef_construction, uint32_t threads,
        const char *cache_path, double *build_seconds_out);
/* At most k slots, in no order; returns how many. */
uint32_t rival_hnswlib_search(struct rival_hnswlib *rival, const float *query, uint32_t k, uint32_t ef,
        uint32_t *slots_out);
double rival_hnswlib_bytes_per_vector(const struct rival_hnswlib *rival);
void rival_hnswlib_free(struct rival_hnswlib *rival);

#ifdef __cplusplus
}
#endif
#endif
