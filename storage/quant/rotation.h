/* A random rotation of R^D by fast Hadamard transforms, D = dim padded to 64 and never to a power of two.
 *
 * Four rounds: random signs; a normalised Hadamard transform of the largest power-of-two block, which lies at
 * the front in even rounds and at the end in odd ones; and, when that block is not all of D, one Givens step
 * that mixes the two halves. All steps are orthonormal, so distances and products stay what they were. (The
 * scheme of the authors of RaBitQ.) Threads: immutable after init. Determinism: signs follow from the seed
 * alone; results are the same on all ISAs. */
#ifndef OMEN_STORAGE_QUANT_ROTATION_H
#define OMEN_STORAGE_QUANT_ROTATION_H

#include <stdint.h>

#include "storage/kernel/code.h"

#define ROTATION_ROUNDS 4

struct rotation {
    uint32_t dim;                               /* of the input */
    uint32_t padded;                            /* D: dim rounded up to CODE_DIM_ALIGN */
    uint32_t block;                             /* largest power of two <= D */
    float signs[ROTATION_ROUNDS][CODE_DIM_MAX]; /* +-1, times the scale of the block where it lies */
};

void rotation_init(struct rotation *rotation, uint32_t dim, uint64_t seed);
/* v [padded], 64-byte aligned, in place; components from dim on must be 0. */
void rotation_apply(const struct rotation *rotation, float *v);

/* A good mixer for seeded, repeatable choices: splitmix64, the i-th number of a sequence. */
static inline uint64_t rotation_random(uint64_t seed, uint64_t i)
{
    uint64_t x = seed + (i + 1) * 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

#endif
