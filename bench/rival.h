/* Other engines behind one C door, compiled as their users would: built only where their headers and a C++
 * compiler are installed (deploy/install-deps.sh bench).
 * hnswlib: Debian's headers with -O3 -march=native; vectors and links in huge pages or in small ones.
 * faiss: Debian's binary, which is SSE only: informative, never a bar.
 * Threads: build starts its own; search belongs to one thread at a time per `ef` (setting it is not atomic). */
#ifndef OMEN_BENCH_RIVAL_H
#define OMEN_BENCH_RIVAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct rival;

struct rival_rows {
    const float *data; /* [count] rows, stride_floats apart; borrowed for the build */
    size_t stride_floats;
    uint32_t count, dim;
    bool dot; /* inner product instead of squared l2 */
};

struct rival_ops {
    const char *name;
    /* Build with `threads` inserting threads; NULL on failure (said on stderr). */
    struct rival *(
            *build)(const struct rival_rows *rows, uint32_t M, uint32_t ef_construction, uint32_t threads);
    bool (*save)(const struct rival *rival, const char *path);
    struct rival *(*load)(const struct rival_rows *rows, const char *path);
    /* Move the searched memory to huge pages or to small ones; false: not possible for this engine. */
    bool (*pages)(struct rival *rival, bool huge);
    /* At most k slots, in no order; returns how many. */
    uint32_t (*search)(struct rival *rival, const float *query, uint32_t k, uint32_t ef, uint32_t *slots_out);
    double (*bytes_per_vector)(const struct rival *rival);
    void (*free)(struct rival *rival);
};

const struct rival_ops *rival_hnswlib(void); /* NULL: built without it */
const struct rival_ops *rival_faiss(void);

#ifdef __cplusplus
}
#endif
#endif
