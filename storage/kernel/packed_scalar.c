/* Kernels over packed codes in plain C: the definition. See packed.h. Threads: no state. */
#include "storage/kernel/packed_isa.h"

#include <math.h>
#include <string.h>

static void sums(const struct packed_query *query, const uint8_t *code, int32_t *dot_out, int32_t *square_out)
{
    int32_t dot = 0, square = 0, top = (1 << query->bits) - 1;
    for (uint32_t at = 0; at < query->dim; at += 64, code += 8 * query->bits) {
        uint8_t levels[64];
        packed_load(code, 64, query->bits, levels);
        for (uint32_t i = 0; i < 64; i++) {
            dot += (query->bits == 8 ? query->wide[at + i] : query->narrow[at + i]) * levels[i];
            square += levels[i] * (levels[i] - top);
        }
    }
    *dot_out = dot;
    *square_out = square;
}

static void estimate_scalar(const struct packed_query *query, const uint8_t *codes, size_t stride,
        const uint32_t *ids, uint32_t count, float *estimates_out)
{
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *code = codes + stride * (ids == NULL ? i : ids[i]);
        int32_t dot, square;
        float e, factors[2];
        sums(query, code, &dot, &square);
        if (query->factors) {
            memcpy(factors, code + packed_bytes(query->dim, query->bits), sizeof factors);
            e = fmaf(factors[1], fmaf((float)dot, query->dot_scale, query->bias),
                    fmaf(factors[0], query->f_scale, query->base));
        } else
            e = fmaf((float)square, query->square_scale, fmaf((float)dot, query->dot_scale, query->base));
        estimates_out[i] = e > query->floor ? e : query->floor;
    }
}

const struct packed_kernel packed_kernel_scalar = { .isa = KERNEL_SCALAR, .estimate = estimate_scalar };
