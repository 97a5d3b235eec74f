/* Code kernels in plain C: the definition. See code.h. Threads: no state. */
#include "storage/kernel/code_isa.h"

#include <stdbool.h>

#include <math.h>
#include <string.h>

float code_f32_of_f16(uint16_t bits)
{
    uint32_t sign = (uint32_t)(bits & 0x8000) << 16, exponent = bits >> 10 & 31, mantissa = bits & 1023;
    float value;
    if (exponent == 0) {
        value = (float)mantissa * 0x1p-24f;
        return sign ? -value : value;
    }
    uint32_t wide = exponent == 31 ? 0x7f800000u | mantissa << 13 : (exponent + 112) << 23 | mantissa << 13;
    wide |= sign;
    memcpy(&value, &wide, sizeof value);
    return value;
}

uint16_t code_f16_of_f32(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    float magnitude = fabsf(value);
    if (isnan(value)) return (uint16_t)(sign | 0x7e00);
    if (magnitude >= 65520.0f) return (uint16_t)(sign | 0x7c00);
    if (magnitude < 0x1p-14f) return (uint16_t)(sign | (uint16_t)lrintf(magnitude * 0x1p24f));
    bits &= 0x7fffffffu;
    bits += 0xfff + (bits >> 13 & 1); /* nearest, ties to even; a carry moves the exponent, as it should */
    return (uint16_t)(sign | (bits - (112u << 23)) >> 13);
}

static uint32_t estimate_32_scalar(const struct code_query *query, const uint8_t *codes,
        const struct code_factors *factors, float base, float bound, float estimates_out[CODE_GROUP])
{
    uint32_t sums[CODE_GROUP] = { 0 }, mask = 0;
    for (uint32_t lane = 0; lane < query->dim / 4; lane++) {
        for (uint32_t i = 0; i < 16; i++) {
            sums[i] += query->lut[lane * 16 + (codes[lane * 16 + i] & 15)];
            sums[i + 16] += query->lut[lane * 16 + (codes[lane * 16 + i] >> 4)];
        }
    }
    for (uint32_t i = 0; i < CODE_GROUP; i++) {
        float sum = fmaf((float)sums[i], query->scale, query->bias);
        float e = fmaf(code_f32_of_f16(factors->g[i]) * factors->g_scale, sum, base);
        e = fmaf(code_f32_of_f16(factors->f[i]), factors->f_scale, e);
        estimates_out[i] = e > 0 ? e : 0;
        mask |= (uint32_t)(estimates_out[i] < bound) << i;
    }
    return mask;
}

static float l2sq_f32_u8_scalar(const float *query, const uint8_t *code, float lo, float scale, uint32_t dim)
{
    float lanes[16] = { 0 };
    for (uint32_t i = 0; i < dim; i++) {
        float d = query[i] - fmaf(scale, (float)code[i], lo);
        lanes[i % 16] = fmaf(d, d, lanes[i % 16]);
    }
    for (uint32_t half = 8; half > 0; half /= 2)
        for (uint32_t i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
}

void pack_tile_scalar(const int8_t *const *rows, uint32_t count, uint32_t dim, uint8_t *packed_out)
{
    for (uint32_t group = 0; group < dim / 4; group++) {
        for (uint32_t r = 0; r < CODE_TILE_ROWS; r++) {
            for (uint32_t j = 0; j < 4; j++) {
                int value = r < count ? rows[r][group * 4 + j] : -CODE_TILE_OFFSET;
                packed_out[(group * CODE_TILE_ROWS + r) * 4 + j] = (uint8_t)(value + CODE_TILE_OFFSET);
            }
        }
    }
}

static void dot_tile_scalar(const int8_t *const *rows, uint32_t count, uint32_t dim, const uint8_t *packed,
        int32_t *dots_out, size_t stride)
{
    for (uint32_t a = 0; a < count; a++) {
        for (uint32_t r = 0; r < CODE_TILE_ROWS; r++) {
            int32_t sum = 0;
            for (uint32_t i = 0; i < dim; i++)
                sum += rows[a][i] * packed[(i / 4 * CODE_TILE_ROWS + r) * 4 + i % 4];
            dots_out[a * stride + r] = sum;
        }
    }
}

void split_i8_scalar(const float *v, uint32_t dim, float inverse, int8_t *high_out, int8_t *low_out)
{
    for (uint32_t i = 0; i < dim; i++) {
        float whole = rintf(v[i] * inverse), high = rintf(whole * (1.0f / CODE_SPLIT_BASE));
        high_out[i] = (int8_t)high;
        low_out[i] = (int8_t)(whole - high * CODE_SPLIT_BASE);
    }
}

void select_32_scalar(const int32_t *dots, const int32_t *bias, uint32_t first_id, struct code_top16 *top)
{
    for (uint32_t i = 0; i < 32; i++) {
        int32_t value = bias[i] - 2 * dots[i];
        if (value >= top->value[15]) continue;
        uint32_t at = 15;
        for (; at > 0 && top->value[at - 1] > value; at--) {
            top->value[at] = top->value[at - 1];
            top->id[at] = top->id[at - 1];
        }
        top->value[at] = value;
        top->id[at] = first_id + i;
    }
}

uint64_t occlude_64_scalar(const int32_t *dots, const int32_t *norms, int32_t norm, const float *reach,
        float alpha)
{
    uint64_t mask = 0;
    for (uint32_t i = 0; i < 64; i++)
        mask |= (uint64_t)(alpha * (float)(norms[i] + norm - 2 * dots[i]) <= reach[i]) << i;
    return mask;
}

void sign_code_scalar(const float *z, const float *centre, uint32_t dim, uint8_t *signs_out,
        float sums_out[3])
{
    sums_out[0] = sums_out[1] = sums_out[2] = 0;
    memset(signs_out, 0, dim / 8);
    for (uint32_t i = 0; i < dim; i++) {
        float c = centre == NULL ? 0 : centre[i], r = z[i] - c;
        signs_out[i / 8] |= (uint8_t)((r >= 0) << (i % 8));
        sums_out[0] += fabsf(r);
        sums_out[1] += r * r;
        sums_out[2] += r >= 0 ? c : -c;
    }
}

static void widen_f16_scalar(const uint16_t *f16, uint32_t dim, float *out)
{
    for (uint32_t i = 0; i < dim; i++) out[i] = code_f32_of_f16(f16[i]);
}

uint32_t pool_insert_scalar(uint64_t *keys, uint32_t *count, uint32_t cap, uint64_t key)
{
    uint32_t low = 0, n = *count;
    while (n > 0) {
        uint32_t half = n / 2;
        bool after = keys[low + half] < key;
        low = after ? low + half + 1 : low;
        n = after ? n - half - 1 : half;
    }
    if (low >= cap) return low;
    uint32_t last = *count < cap ? (*count)++ : cap - 1;
    memmove(keys + low + 1, keys + low, (last - low) * sizeof *keys);
    keys[low] = key;
    return low;
}

uint32_t pool_merge_scalar(const uint64_t *keys, uint32_t count, uint32_t cap, const uint64_t *fresh,
        uint32_t n, uint64_t *out)
{
    uint32_t total = count, lowest = count;
    memcpy(out, keys, count * sizeof *keys);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t below = 0;
        while (below < count && keys[below] < fresh[i]) below++;
        lowest = below < lowest ? below : lowest;
        (void)pool_insert_scalar(out, &total, cap, fresh[i]);
    }
    return lowest;
}

void lut_build_scalar(const float *z, uint32_t dim, float inverse, uint8_t *lut_out)
{
    for (uint32_t i = 0; i < dim; i += 4) {
        float low = 0;
        for (uint32_t j = 0; j < 4; j++) low += z[i + j] < 0 ? z[i + j] : 0;
        for (uint32_t n = 0; n < 16; n++) {
            float sum = 0;
            for (uint32_t j = 0; j < 4; j++) sum += n >> j & 1 ? z[i + j] : 0;
            int32_t level = (int32_t)((sum - low) * inverse + 0.5f);
            lut_out[i * 4 + n] = (uint8_t)(level > CODE_LUT_MAX ? CODE_LUT_MAX : level < 0 ? 0 : level);
        }
    }
}

static float f16_sum(const float *query, const uint16_t *row, uint32_t dim, bool dot)
{
    float lanes[16] = { 0 };
    for (uint32_t i = 0; i < dim; i++) {
        float x = code_f32_of_f16(row[i]), d = query[i] - x;
        lanes[i % 16] = dot ? fmaf(query[i], x, lanes[i % 16]) : fmaf(d, d, lanes[i % 16]);
    }
    for (uint32_t half = 8; half > 0; half /= 2)
        for (uint32_t i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
}

static float l2sq_f32_f16_scalar(const float *query, const uint16_t *row, uint32_t dim)
{
    return f16_sum(query, row, dim, false);
}

static float dot_f32_f16_scalar(const float *query, const uint16_t *row, uint32_t dim)
{
    return f16_sum(query, row, dim, true);
}

static void narrow_f16_scalar(const float *v, uint32_t dim, uint16_t *f16_out)
{
    for (uint32_t i = 0; i < dim; i++) f16_out[i] = code_f16_of_f32(v[i]);
}

static void hadamard_scalar(float *v, uint32_t n)
{
    for (uint32_t half = 1; half < n; half *= 2) {
        for (uint32_t i = 0; i < n; i += 2 * half) {
            for (uint32_t j = i; j < i + half; j++) {
                float x = v[j], y = v[j + half];
                v[j] = x + y;
                v[j + half] = x - y;
            }
        }
    }
}

const struct code_kernel code_kernel_scalar = {
    .isa = KERNEL_SCALAR,
    .estimate_32 = estimate_32_scalar,
    .l2sq_f32_u8 = l2sq_f32_u8_scalar,
    .pack_tile = pack_tile_scalar,
    .dot_tile = dot_tile_scalar,
    .split_i8 = split_i8_scalar,
    .select_32 = select_32_scalar,
    .occlude_64 = occlude_64_scalar,
    .sign_code = sign_code_scalar,
    .widen_f16 = widen_f16_scalar,
    .pool_insert = pool_insert_scalar,
    .pool_merge = pool_merge_scalar,
    .lut_build = lut_build_scalar,
    .narrow_f16 = narrow_f16_scalar,
    .l2sq_f32_f16 = l2sq_f32_f16_scalar,
    .dot_f32_f16 = dot_f32_f16_scalar,
    .hadamard = hadamard_scalar,
};
