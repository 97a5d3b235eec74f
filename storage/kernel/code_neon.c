/* Code kernels with NEON: what a hop and the builder's products spend their time in; the rest is the scalar form. Equal
 * to code_scalar.c: integer sums do not depend on order, f32 parts are the same fused operations on the same
 * lanes. Threads: no state. */
#include "common/err.h"

#ifdef __aarch64__
#ifndef __clang__
#pragma GCC optimize("fp-contract=off")
#endif

#include "storage/kernel/code_isa.h"

#include <arm_neon.h>
#include <string.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* Estimates of four vectors from their 16-bit sums. */
ALWAYS_INLINE uint32_t estimate_4(const struct code_query *query, uint16x4_t sum16, uint32_t first,
        const struct code_factors *factors, float base, float bound, float *estimates_out)
{
    const uint32x4_t bit = { 1, 2, 4, 8 };
    float32x4_t sum = vcvtq_f32_u32(vmovl_u16(sum16));
    sum = vfmaq_f32(vdupq_n_f32(query->bias), sum, vdupq_n_f32(query->scale));
    float32x4_t g = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(factors->g + first)));
    float32x4_t f = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(factors->f + first)));
    float32x4_t e = vfmaq_f32(vdupq_n_f32(base), vmulq_n_f32(g, factors->g_scale), sum);
    e = vfmaq_f32(e, f, vdupq_n_f32(factors->f_scale));
    e = vbslq_f32(vcgtq_f32(e, vdupq_n_f32(0)), e, vdupq_n_f32(0)); /* also for NaN */
    vst1q_f32(estimates_out + first, e);
    return vaddvq_u32(vandq_u32(vcltq_f32(e, vdupq_n_f32(bound)), bit)) << first;
}

static uint32_t estimate_32_neon(const struct code_query *query, const uint8_t *codes,
        const struct code_factors *factors, float base, float bound, float estimates_out[CODE_GROUP])
{
    const uint8x16_t nibble = vdupq_n_u8(15);
    uint16x8_t sums[4] = { vdupq_n_u16(0), vdupq_n_u16(0), vdupq_n_u16(0), vdupq_n_u16(0) };
    for (uint32_t at = 0; at < query->dim * 4; at += 64) {
        uint8x16_t low = vdupq_n_u8(0), high = vdupq_n_u8(0);
#pragma GCC unroll 4
        for (uint32_t lane = 0; lane < 64; lane += 16) { /* four entries add up in a byte */
            uint8x16_t c = vld1q_u8(codes + at + lane), table = vld1q_u8(query->lut + at + lane);
            low = vaddq_u8(low, vqtbl1q_u8(table, vandq_u8(c, nibble)));
            high = vaddq_u8(high, vqtbl1q_u8(table, vshrq_n_u8(c, 4)));
        }
        sums[0] = vaddw_u8(sums[0], vget_low_u8(low));
        sums[1] = vaddw_u8(sums[1], vget_high_u8(low));
        sums[2] = vaddw_u8(sums[2], vget_low_u8(high));
        sums[3] = vaddw_u8(sums[3], vget_high_u8(high));
    }
    uint32_t mask = 0;
    for (uint32_t i = 0; i < 4; i++) {
        mask |= estimate_4(query, vget_low_u16(sums[i]), i * 8, factors, base, bound, estimates_out);
        mask |= estimate_4(query, vget_high_u16(sums[i]), i * 8 + 4, factors, base, bound, estimates_out);
    }
    return mask;
}

static float l2sq_f32_u8_neon(const float *query, const uint8_t *code, float lo, float scale, uint32_t dim)
{
    float lanes[16];
    float32x4_t acc[4] = { vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0) };
    const float32x4_t lo4 = vdupq_n_f32(lo), scale4 = vdupq_n_f32(scale);
    uint32_t i = 0;
    for (; i + 16 <= dim; i += 16) {
        uint8x16_t c = vld1q_u8(code + i);
        uint16x8_t half[2] = { vmovl_u8(vget_low_u8(c)), vmovl_u8(vget_high_u8(c)) };
#pragma GCC unroll 4
        for (int p = 0; p < 4; p++) {
            uint16x4_t four = p % 2 == 0 ? vget_low_u16(half[p / 2]) : vget_high_u16(half[p / 2]);
            float32x4_t value = vfmaq_f32(lo4, scale4, vcvtq_f32_u32(vmovl_u16(four)));
            float32x4_t d = vsubq_f32(vld1q_f32(query + i + 4 * (uint32_t)p), value);
            acc[p] = vfmaq_f32(acc[p], d, d);
        }
    }
    for (int p = 0; p < 4; p++) vst1q_f32(lanes + 4 * p, acc[p]);
    for (uint32_t j = 0; i < dim; i++, j++) {
        float d = query[i] - __builtin_fmaf(scale, (float)code[i], lo);
        lanes[j] = __builtin_fmaf(d, d, lanes[j]);
    }
    for (uint32_t half = 8; half > 0; half /= 2)
        for (uint32_t j = 0; j < half; j++) lanes[j] += lanes[j + half];
    return lanes[0];
}

/* Products of a row's four bytes with those of 32 packed rows; packed values are below 128. */
static void dot_row(const int8_t *row, uint32_t dim, const uint8_t *packed, int32_t *dots_out)
{
    int32x4_t sums[8];
    for (int i = 0; i < 8; i++) sums[i] = vdupq_n_s32(0);
    for (uint32_t d = 0; d < dim; d += 4, packed += 4 * CODE_TILE_ROWS) {
        int32_t four;
        memcpy(&four, row + d, sizeof four);
        int8x16_t q = vreinterpretq_s8_s32(vdupq_n_s32(four));
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) { /* four rows */
            int8x16_t b = vreinterpretq_s8_u8(vld1q_u8(packed + 16 * i));
            int16x8_t low = vmull_s8(vget_low_s8(q), vget_low_s8(b)),
                      high = vmull_s8(vget_high_s8(q), vget_high_s8(b));
            sums[i] = vaddq_s32(sums[i], vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
        }
    }
    for (int i = 0; i < 8; i++) vst1q_s32(dots_out + 4 * i, sums[i]);
}

static void dot_tile_neon(const int8_t *const *rows, uint32_t count, uint32_t dim, const uint8_t *packed,
        int32_t *dots_out, size_t stride)
{
    for (uint32_t a = 0; a < count; a++) dot_row(rows[a], dim, packed, dots_out + a * stride);
}

static void widen_f16_neon(const uint16_t *f16, uint32_t dim, float *out)
{
    for (uint32_t i = 0; i < dim; i += 4)
        vst1q_f32(out + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(f16 + i))));
}

/* The 16 lanes are four registers and the tree is that of neon.c. */
static float f16_sum(const float *query, const uint16_t *row, uint32_t dim, bool dot)
{
    float32x4_t acc[4] = { vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0) };
    for (uint32_t i = 0; i < dim; i += 16) {
        for (uint32_t p = 0; p < 4; p++) {
            float32x4_t q = vld1q_f32(query + i + 4 * p);
            float32x4_t x = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(row + i + 4 * p)));
            float32x4_t d = vsubq_f32(q, x);
            acc[p] = dot ? vfmaq_f32(acc[p], q, x) : vfmaq_f32(acc[p], d, d);
        }
    }
    float32x4_t s = vaddq_f32(vaddq_f32(acc[0], acc[2]), vaddq_f32(acc[1], acc[3]));
    float32x2_t two = vadd_f32(vget_low_f32(s), vget_high_f32(s));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

static float l2sq_f32_f16_neon(const float *query, const uint16_t *row, uint32_t dim)
{
    return f16_sum(query, row, dim, false);
}

static float dot_f32_f16_neon(const float *query, const uint16_t *row, uint32_t dim)
{
    return f16_sum(query, row, dim, true);
}

static void narrow_f16_neon(const float *v, uint32_t dim, uint16_t *f16_out)
{
    for (uint32_t i = 0; i < dim; i += 4)
        vst1_u16(f16_out + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(v + i))));
}

static void hadamard_neon(float *v, uint32_t n)
{
    for (uint32_t half = 1; half < 4; half *= 2) {
        for (uint32_t i = 0; i < n; i += 2 * half) {
            for (uint32_t j = i; j < i + half; j++) {
                float x = v[j], y = v[j + half];
                v[j] = x + y;
                v[j + half] = x - y;
            }
        }
    }
    for (uint32_t half = 4; half < n; half *= 2) {
        for (uint32_t a = 0; a < n; a += 2 * half) {
            for (uint32_t j = a; j < a + half; j += 4) {
                float32x4_t x = vld1q_f32(v + j), y = vld1q_f32(v + j + half);
                vst1q_f32(v + j, vaddq_f32(x, y));
                vst1q_f32(v + j + half, vsubq_f32(x, y));
            }
        }
    }
}

const struct code_kernel code_kernel_neon = {
    .isa = KERNEL_NEON,
    .estimate_32 = estimate_32_neon,
    .l2sq_f32_u8 = l2sq_f32_u8_neon,
    .pack_tile = pack_tile_scalar,
    .dot_tile = dot_tile_neon,
    .split_i8 = split_i8_scalar,
    .select_32 = select_32_scalar,
    .occlude_64 = occlude_64_scalar,
    .sign_code = sign_code_scalar,
    .widen_f16 = widen_f16_neon,
    .pool_insert = pool_insert_scalar,
    .pool_merge = pool_merge_scalar,
    .lut_build = lut_build_scalar,
    .narrow_f16 = narrow_f16_neon,
    .l2sq_f32_f16 = l2sq_f32_f16_neon,
    .dot_f32_f16 = dot_f32_f16_neon,
    .hadamard = hadamard_neon,
};

#endif
