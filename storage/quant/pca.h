/* Dimension reduction: the orthonormal directions in which a sample of rows spreads most (principal components).
 *
 * Real embeddings of 512 and more dimensions keep most of what tells neighbours apart in their first 100 to 250
 * components; codes need cover no more, and what is left over goes into one number, its length (patch-784: 127
 * components keep 96 %, and the 20 nearest by them and that length hold 99.3 % of the true 10).
 *
 * Training is subspace iteration from random directions with products of the distance kernels: no matrix
 * library, and no order among the components is needed, so no eigenvalues either. Threads: immutable after
 * training. Determinism: bits follow from sample and seed on every ISA. */
#ifndef OMEN_STORAGE_QUANT_PCA_H
#define OMEN_STORAGE_QUANT_PCA_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"

struct pca {
    uint32_t dim, kept;  /* of the input; of the output; kept 0 = none */
    float *mean;         /* [dim], owned; zero when not centred */
    float *basis;        /* [kept][dim] orthonormal rows, owned, 64-byte aligned */
    uint8_t *coarse;     /* basis in 7 bits, packed for dot_tile, owned; NULL = too coarse for this basis */
    float *coarse_scale; /* [kept] of a direction, owned */
    float share;         /* of the sample's squared length (about the mean) that the output keeps, 0..1 */
};

/* Memory for pca_train beside the result: count * (dim + kept) floats. */
#define PCA_ROUNDS 5

/* Train on `sample` [count][dim], which is centred in place when `centred` (inner products must not be). `stop`
 * may be NULL. OMEN_ENOMEM, OMEN_ECANCELED: nothing is left behind. Cost: 2 * (PCA_ROUNDS + 1) * count * dim *
 * kept multiplications. kept is 1..dim. */
OMEN_CHECKED enum omen_err pca_train(float *sample, uint32_t count, uint32_t dim, uint32_t kept, bool centred,
        uint64_t seed, bool (*stop)(void *arg), void *stop_arg, struct pca *pca_out);
void pca_free(struct pca *pca); /* and empties it */

/* The coarse form of a basis that was trained or read; before pca_apply_coarse. kept is at most 287. OMEN_ENOMEM. */
OMEN_CHECKED enum omen_err pca_coarsen(struct pca *pca);

/* As pca_apply without the rest, from the coarse form where there is one: for queries, whose components need not
 * be exact, because what is off is off alike for all rows. 784 to 127 components on Zen 3: 1.9 us instead of 6.
 * Bits are the same on every ISA. */
void pca_apply_coarse(const struct pca *pca, const float *v, float *out);
uint64_t pca_memory_bytes(const struct pca *pca);

/* out [kept] = basis * (v - mean); *rest_out = squared length that is not in `out`, never below 0; NULL when
 * nobody asks. v [dim]. Cost: kept * dim multiplications. */
void pca_apply(const struct pca *pca, const float *v, float *out, float *rest_out);

#endif
