/* 1-bit codes and their query tables; see rabitq.h. Threads: no state. */
#include "storage/quant/rabitq.h"

#include <math.h>
#include <string.h>

#include "common/check.h"

/* signs: [32][bytes] rows -> nibbles of 32 vectors, interleaved. */
static void interleave(const uint8_t *signs, uint32_t bytes, uint8_t *codes_out)
{
    for (uint32_t j = 0; j < bytes; j++) {
        uint8_t column[CODE_GROUP], *low = codes_out + (size_t)j * 32, *high = low + 16;
        for (uint32_t i = 0; i < CODE_GROUP; i++) column[i] = signs[(size_t)i * bytes + j];
        for (uint32_t i = 0; i < 16; i++) {
            low[i] = (uint8_t)((column[i] & 15) | column[i + 16] << 4);
            high[i] = (uint8_t)(column[i] >> 4 | (column[i + 16] & 0xf0));
        }
    }
}

void rabitq_encode(const float *const *z, uint32_t count, const float *centre, uint32_t padded,
        uint8_t *scratch, const struct rabitq_group *group_out)
{
    const struct code_kernel *kernel = code_kernel_get();
    float f[CODE_GROUP] = { 0 }, g[CODE_GROUP] = { 0 }, f_max = 0, g_max = 0;
    CHECK(count <= CODE_GROUP);
    memset(scratch, 0, (size_t)CODE_GROUP * (padded / 8));
    for (uint32_t i = 0; i < count; i++) {
        float sums[3];
        kernel->sign_code(z[i], centre, padded, scratch + (size_t)i * (padded / 8), sums);
        if (sums[0] > 0)
            g[i] = -2 * sums[1] / sums[0]; /* else a copy of the centre: distance |q - c| as it is */
        f[i] = sums[1] - g[i] * sums[2];
        f_max = fmaxf(f_max, fabsf(f[i]));
        g_max = fmaxf(g_max, fabsf(g[i]));
    }
    interleave(scratch, padded / 8, group_out->codes);
    float f_scale = f_max > 0 ? f_max / 32768 : 1, g_scale = g_max > 0 ? g_max / 32768 : 1;
    if (!(f_scale >= 0x1p-126f))
        f_scale = 0x1p-126f; /* denormal distances: a scale whose inverse is finite */
    if (!(g_scale >= 0x1p-126f)) g_scale = 0x1p-126f;
    for (uint32_t i = 0; i < CODE_GROUP; i++) {
        group_out->f[i] = i < count ? code_f16_of_f32(f[i] / f_scale) : 0x7c00;
        group_out->g[i] = code_f16_of_f32(g[i] / g_scale);
    }
    *group_out->f_scale = f_scale;
    *group_out->g_scale = g_scale;
}

void rabitq_prepare(const float *z, uint32_t padded, uint8_t *lut, struct code_query *query_out)
{
    float range = 0, total = 0, lowest = 0;
    for (uint32_t i = 0; i < padded; i += 4) {
        float width = fabsf(z[i]) + fabsf(z[i + 1]) + fabsf(z[i + 2]) + fabsf(z[i + 3]);
        float sum = z[i] + z[i + 1] + z[i + 2] + z[i + 3];
        range = fmaxf(range, width);
        total += sum;
        lowest += (sum - width) / 2; /* sum of the negative ones */
    }
    float step = range / CODE_LUT_MAX, inverse = step > 0x1p-120f ? 1 / step : 0;
    code_kernel_get()->lut_build(z, padded, inverse, lut);
    /* sum of +-q over a code = 2 * (sum of the set ones) - total, the sum of the set ones = step * looked up
     * + lowest. */
    *query_out = (struct code_query){ lut, padded, 2 * step, 2 * lowest - total };
}

float rabitq_error(uint32_t padded)
{
    return 2 * 0.75f / sqrtf((float)(padded - 1)); /* t = sqrt(2/pi): sqrt((1 - t^2) / t^2) = 0.755 */
}
