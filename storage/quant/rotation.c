/* Random rotation by Hadamard blocks; see rotation.h. Threads: no state beside the argument. */
#include "storage/quant/rotation.h"

#include <math.h>
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
    for (uint32_t round = 0; round < ROTATION_ROUNDS; round++)
        for (uint32_t word = 0; word < rotation->padded / 64; word++)
            rotation->signs[round][word] = rotation_random(seed, (uint64_t)round << 32 | word);
}

/* Signs and the scale of the transform in one pass. */
static void scale_signed(float *v, uint32_t first, uint32_t end, const uint64_t *signs, float scale)
{
    for (uint32_t i = first; i < end; i += 16) {
        uint32_t word = (uint32_t)(signs[i / 64] >> (i % 64));
        for (uint32_t j = 0; j < 16; j++) v[i + j] *= (word >> j & 1) ? -scale : scale;
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
    float scale = 1.0f / sqrtf((float)block);
    const struct code_kernel *kernel = code_kernel_get();
    uint32_t rounds = block == padded ? ROTATION_ROUNDS - 1 : ROTATION_ROUNDS;
    for (uint32_t round = 0; round < rounds; round++) {
        uint32_t first = round % 2 == 0 ? 0 : padded - block;
        scale_signed(v, 0, first, rotation->signs[round], 1);
        scale_signed(v, first, first + block, rotation->signs[round], scale);
        scale_signed(v, first + block, padded, rotation->signs[round], 1);
        kernel->hadamard(v + first, block);
        if (block != padded) givens_halves(v, padded);
    }
}
