/* Stands in for rival_hnswlib.cc where hnswlib's headers are not installed. */
#include "bench/rival_hnswlib.h"

#ifndef OMEN_HAVE_HNSWLIB
bool rival_hnswlib_available(void) { return false; }

struct rival_hnswlib *rival_hnswlib_build(const float *rows, size_t stride_floats, uint32_t count,
        uint32_t dim, bool dot, uint32_t M, uint32_t ef_construction, uint32_t threads,
        const char *cache_path, double *build_seconds_out)
{
    *build_seconds_out = 0;
    return NULL;
}

uint32_t rival_hnswlib_search(struct rival_hnswlib *rival, const float *query, uint32_t k, uint32_t ef,
        uint32_t *slots_out)
{
    return 0;
}

double rival_hnswlib_bytes_per_vector(const struct rival_hnswlib *rival) { return 0; }

void rival_hnswlib_free(struct rival_hnswlib *rival) {}
#endif
