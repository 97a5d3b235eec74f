/* Random rotation by Hadamard blocks; see rotation.h. Threads: no state beside the argument. */
#include "storage/quant/rotation.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "common/check.h"

void rotation_init(struct rotation *rotation, uint32_t dim, uint64_t seed)
{
    CHECK(dim > 0 && dim <= CODE_DIM_MAX);
    memset(rotation, 0, sizeof *rotation);
    rotation->dim = dim;
    rotation->padded = (dim + CODE_DIM_ALIGN - 1) / CODE_DIM_ALIGN * CODE_DIM_ALIGN;
    rotation->block = CODE_DIM_ALIGN;
    while (rotation->block * 2 <= rotation->padded) rotation->block *= 2;
    float scale = 1.0f / sqrtf((float)rotation->block);
    for (uint32_t round = 0; round < ROTATION_ROUNDS; round++) {
        uint32_t first = round % 2 == 0 ? 0 : rotation->padded - rotation->block;
        for (uint32_t i = 0; i < rotation->padded; i++) {
            bool inside = i >= first && i < first + rotation->block;
            bool negative = rotation_random(seed, (uint64_t)round << 32 | i / 64) >> (i % 64) & 1;
            rotation->signs[round][i] = (negative ? -1.0f : 1.0f) * (inside ? scale : 1.0f);
        }
    }
}

static void givens_halves(float *v, uint32_t padded)
{
    uint32_t half = padded / 2;
    for (uint32_t i = 0; i < half; i++) {
        float x = v[i], y = v[i + half];
        v[i] = (x + y) * 0.70710678f;
        v[i + half] = (x - y) * 0.70710678f;
    }
}

void rotation_apply(const struct rotation *rotation, float *v)
{
    uint32_t padded = rotation->padded, block = rotation->block;
    const struct code_kernel *kernel = code_kernel_get();
    uint32_t rounds = block == padded ? ROTATION_ROUNDS - 1 : ROTATION_ROUNDS;
    for (uint32_t round = 0; round < rounds; round++) {
        const float *signs = rotation->signs[round];
        for (uint32_t i = 0; i < padded; i++) v[i] *= signs[i];
        kernel->hadamard(v + (round % 2 == 0 ? 0 : padded - block), block);
        if (block != padded) givens_halves(v, padded);
    }
}
