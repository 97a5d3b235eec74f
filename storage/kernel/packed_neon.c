/* Kernels over packed codes with NEON: codes are spread to bytes in registers and multiplied with the query's bytes.
 * Equal to packed_scalar.c: integer sums do not depend on order. Threads: no state. */
#include "common/err.h"

#ifdef __aarch64__
#ifndef __clang__
#pragma GCC optimize("fp-contract=off")
#endif

#include "storage/kernel/packed_isa.h"

#include <arm_neon.h>
#include <string.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* 64 components of one block as four registers of bytes, each byte below 64. */
ALWAYS_INLINE void spread(const uint8_t *code, uint32_t bits, uint8x16_t c[4])
{
    if (bits == 4 || bits == 6) {
        uint8x16_t a = vld1q_u8(code), b = vld1q_u8(code + 16), nibble = vdupq_n_u8(15);
        c[0] = vandq_u8(a, nibble);
        c[1] = vandq_u8(b, nibble);
        c[2] = vshrq_n_u8(a, 4);
        c[3] = vshrq_n_u8(b, 4);
    }
    if (bits == 2 || bits == 6) {
        uint8x16_t a = vld1q_u8(bits == 6 ? code + 32 : code), two = vdupq_n_u8(3);
        uint8x16_t field[4] = { vandq_u8(a, two), vandq_u8(vshrq_n_u8(a, 2), two),
            vandq_u8(vshrq_n_u8(a, 4), two), vshrq_n_u8(a, 6) };
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) c[i] = bits == 2 ? field[i] : vorrq_u8(c[i], vshlq_n_u8(field[i], 4));
    }
    if (bits == 1) {
        uint8x8_t a = vld1_u8(code), one = vdup_n_u8(1);
        c[0] = vcombine_u8(vand_u8(a, one), vand_u8(vshr_n_u8(a, 1), one));
        c[1] = vcombine_u8(vand_u8(vshr_n_u8(a, 2), one), vand_u8(vshr_n_u8(a, 3), one));
        c[2] = vcombine_u8(vand_u8(vshr_n_u8(a, 4), one), vand_u8(vshr_n_u8(a, 5), one));
        c[3] = vcombine_u8(vand_u8(vshr_n_u8(a, 6), one), vshr_n_u8(a, 7));
    }
}

/* Products of 16 bytes, pairs of them added up to the four sums. |a| < 64, so that two products fit 16 bits. */
ALWAYS_INLINE int32x4_t multiply(int32x4_t sum, int8x16_t a, int8x16_t b)
{
    int16x8_t both = vmull_s8(vget_low_s8(a), vget_low_s8(b));
    both = vmlal_s8(both, vget_high_s8(a), vget_high_s8(b));
    return vpadalq_s16(sum, both);
}

ALWAYS_INLINE void sums_narrow(const struct packed_query *query, const uint8_t *code, uint32_t bits,
        bool square, int32_t *dot_out, int32_t *square_out)
{
    int32x4_t dot = vdupq_n_s32(0), squares = vdupq_n_s32(0);
    const int8x16_t top = vdupq_n_s8((int8_t)((1 << bits) - 1));
    for (uint32_t at = 0; at < query->dim; at += 64, code += 8 * bits) {
        uint8x16_t c[4];
        spread(code, bits, c);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            int8x16_t level = vreinterpretq_s8_u8(c[i]);
            dot = multiply(dot, level, vld1q_s8(query->narrow + at + 16 * i));
            if (square) squares = multiply(squares, level, vsubq_s8(level, top));
        }
    }
    *dot_out = vaddvq_s32(dot);
    *square_out = vaddvq_s32(squares);
}

ALWAYS_INLINE void sums_wide(const struct packed_query *query, const uint8_t *code, bool square,
        int32_t *dot_out, int32_t *square_out)
{
    int32x4_t dot = vdupq_n_s32(0), squares = vdupq_n_s32(0);
    const int16x8_t top = vdupq_n_s16(255);
    for (uint32_t i = 0; i < query->dim; i += 8) {
        int16x8_t c = vreinterpretq_s16_u16(vmovl_u8(vld1_u8(code + i))), q = vld1q_s16(query->wide + i);
        dot = vmlal_s16(dot, vget_low_s16(c), vget_low_s16(q));
        dot = vmlal_s16(dot, vget_high_s16(c), vget_high_s16(q));
        if (!square) continue;
        int16x8_t less = vsubq_s16(c, top);
        squares = vmlal_s16(squares, vget_low_s16(c), vget_low_s16(less));
        squares = vmlal_s16(squares, vget_high_s16(c), vget_high_s16(less));
    }
    *dot_out = vaddvq_s32(dot);
    *square_out = vaddvq_s32(squares);
}

ALWAYS_INLINE void estimate_all(const struct packed_query *query, const uint8_t *codes, size_t stride,
        const uint32_t *ids, uint32_t count, uint32_t bits, float *estimates_out)
{
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *code = codes + stride * (ids == NULL ? i : ids[i]);
        int32_t dot, square;
        float e, factors[2];
        if (bits == 8)
            sums_wide(query, code, !query->factors, &dot, &square);
        else
            sums_narrow(query, code, bits, !query->factors, &dot, &square);
        if (query->factors) {
            memcpy(factors, code + packed_bytes(query->dim, bits), sizeof factors);
            e = __builtin_fmaf(factors[1], __builtin_fmaf((float)dot, query->dot_scale, query->bias),
                    __builtin_fmaf(factors[0], query->f_scale, query->base));
        } else
            e = __builtin_fmaf((float)square, query->square_scale,
                    __builtin_fmaf((float)dot, query->dot_scale, query->base));
        estimates_out[i] = e > query->floor ? e : query->floor;
    }
}

static void estimate_neon(const struct packed_query *query, const uint8_t *codes, size_t stride,
        const uint32_t *ids, uint32_t count, float *estimates_out)
{
    switch (query->bits) {
    case 8: estimate_all(query, codes, stride, ids, count, 8, estimates_out); break;
    case 6: estimate_all(query, codes, stride, ids, count, 6, estimates_out); break;
    case 4: estimate_all(query, codes, stride, ids, count, 4, estimates_out); break;
    case 2: estimate_all(query, codes, stride, ids, count, 2, estimates_out); break;
    default: estimate_all(query, codes, stride, ids, count, 1, estimates_out); break;
    }
}

const struct packed_kernel packed_kernel_neon = { .isa = KERNEL_NEON, .estimate = estimate_neon };

#endif
