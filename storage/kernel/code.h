/* Kernels over quantized codes: what the sealed graph's hop, the 1-bit scan and the graph builder spend their
 * time in.
 *
 * As in kernel.h: code_scalar.c is the definition, the others are optimisations, chosen with kernel_get().
 * Integer results are equal; f32 results are bit-equal (every product is a written fma, sums in 16 lanes and
 * one fixed tree).
 *
 * 1-bit codes of 32 vectors lie interleaved ("fast scan"), D a multiple of 64: block t (16 dims) is 64 bytes,
 * four lanes of 16 bytes; lane l holds dims 16t+4l..+3, byte i the nibble of vector i (low) and of vector
 * i+16 (high); bit m is dim 16t+4l+m. The look-up table of a query: for the same t and l 16 bytes, entry n
 * the sum of its dims in nibble n, quantized to 0..63, so that four of them add up in a byte. A whole sum is
 * at most D/4 * 63 < 65,536 for D <= 4160. */
#ifndef OMEN_STORAGE_KERNEL_CODE_H
#define OMEN_STORAGE_KERNEL_CODE_H

#include <stddef.h>
#include <stdint.h>

#include "storage/kernel/kernel.h"

#define CODE_GROUP 32     /* vectors whose 1-bit codes lie together */
#define CODE_LUT_MAX 63   /* largest entry of a look-up table */
#define CODE_DIM_ALIGN 64 /* D is a multiple of this */
#define CODE_DIM_MAX 4160
#define CODE_TILE_ROWS 32 /* vectors in one packed group of pack_tile */
#define CODE_TILE_MAX                                                                                        \
    63 /* codes that are multiplied lie within +- this: AVX2 adds four products in 16 bits */
#define CODE_TILE_OFFSET 64 /* of packed codes */
#define CODE_SPLIT_BASE 126 /* of split_i8: a rest of at most half of it is within +-CODE_TILE_MAX */
#define CODE_SPLIT_MAX (CODE_SPLIT_BASE * CODE_TILE_MAX)

struct code_query {
    const uint8_t *lut; /* [D/16][64], 64-byte aligned */
    uint32_t dim;       /* D */
    float scale, bias;  /* sum of +-q over a code = scale * looked-up sum + bias */
};

/* The factors of 32 estimates: distance^2 = base + f * f_scale + g * g_scale * (sum of +-q). f16 bits. */
struct code_factors {
    const uint16_t *f, *g; /* [32] */
    float f_scale, g_scale;
};

/* The 16 smallest values seen, ascending, with who they belong to; start with code_top16_init. */
struct code_top16 {
    int32_t value[16] __attribute__((aligned(64)));
    uint32_t id[16];
};
static inline void code_top16_init(struct code_top16 *top)
{
    for (int i = 0; i < 16; i++) {
        top->value[i] = INT32_MAX;
        top->id[i] = UINT32_MAX;
    }
}

struct code_kernel {
    enum kernel_isa isa;
    /* 32 estimates (never below 0), and bit i set where estimate i < bound. codes 64-byte aligned. */
    uint32_t (*estimate_32)(const struct code_query *query, const uint8_t *codes,
            const struct code_factors *factors, float base, float bound, float estimates_out[CODE_GROUP]);
    /* sum (q - (lo + scale * c))^2, fused as written in code_scalar.c. */
    float (*l2sq_f32_u8)(const float *query, const uint8_t *code, float lo, float scale, uint32_t dim);
    /* Of f16 bits, D a multiple of 64, 2-byte aligned: l2sq_f32 and dot_f32 of the widened row, bit by bit. */
    float (*l2sq_f32_f16)(const float *query, const uint16_t *row, uint32_t dim);
    float (*dot_f32_f16)(const float *query, const uint16_t *row, uint32_t dim);
    /* Rows of i8, D bytes each, as 32-row groups for dot_tile: groups of 4 dims, then rows; values +
     * CODE_TILE_OFFSET.
     * Missing rows (count < 32) are written as zero bytes. packed_out [D * 32], 64-byte aligned. */
    void (*pack_tile)(const int8_t *const *rows, uint32_t count, uint32_t dim, uint8_t *packed_out);
    /* dots_out[a][32]: sum over D of rows[a] * (packed + 0), packed being value + CODE_TILE_OFFSET: the caller
     * takes off CODE_TILE_OFFSET * sum(row). */
    void (*dot_tile)(const int8_t *const *rows, uint32_t count, uint32_t dim, const uint8_t *packed,
            int32_t *dots_out, size_t stride);
    /* v * inverse, rounded to nearest even, as 126 * high + low with both within +-CODE_TILE_MAX: two rows for dot_tile
     * that together hold 13 bits. D a multiple of 32; |v * inverse| <= CODE_SPLIT_MAX. */
    void (*split_i8)(const float *v, uint32_t dim, float inverse, int8_t *high_out, int8_t *low_out);
    /* Look-up table of code.h for z: entry n of lane l is (sum of the components in n, less the least such
     * sum) * inverse, rounded, at most CODE_LUT_MAX; sums are taken in order of dims. */
    void (*lut_build)(const float *z, uint32_t dim, float inverse, uint8_t *lut_out);
    /* Insert `key` into ascending keys [*count <= cap], the largest falls out when full; its position, cap
     * when it is too large. keys has room for cap + 8. */
    uint32_t (*pool_insert)(uint64_t *keys, uint32_t *count, uint32_t cap, uint64_t key);
    /* Ascending keys and n new ones (1..32, any order) together, the smallest `cap` of them ascending into `out`; how
     * many old keys are below the smallest new one. Keys are < 2^63. keys and out have room for cap + 8, fresh
     * for n + 4; they do not overlap. */
    uint32_t (*pool_merge)(const uint64_t *keys, uint32_t count, uint32_t cap, const uint64_t *fresh,
            uint32_t n, uint64_t *out);
    /* Offer bias[i] - 2 * dots[i] for i < 32, belonging to first_id + i, to `top`; equal values keep the
     * earlier one in front. */
    void (*select_32)(const int32_t *dots, const int32_t *bias, uint32_t first_id, struct code_top16 *top);
    /* Bit i of the answer: alpha * (norm_sum[i] - 2 * dots[i]) <= reach[i], for i < 64: candidate i lies
     * nearer to a kept neighbour than to the node (copies of the node, at distance 0 from both, among them).
     * norm_sum[i] = norms[i] + norm, everything in integers but the product. */
    uint64_t (*occlude_64)(const int32_t *dots, const int32_t *norms, int32_t norm, const float *reach,
            float alpha);
    /* Residual z - centre (NULL = 0) of D components: its signs as D/8 bytes (bit set = positive or zero),
     * and sums_out = { sum |r|, sum r^2, sum of +-centre }. Sums are not bit-equal between ISAs. */
    void (*sign_code)(const float *z, const float *centre, uint32_t dim, uint8_t *signs_out,
            float sums_out[3]);
    /* f16 bits to f32, D a multiple of 64. */
    void (*widen_f16)(const uint16_t *f16, uint32_t dim, float *out);
    void (*narrow_f16)(const float *v, uint32_t dim, uint16_t *f16_out);
    /* In place, n a power of two >= 64, not scaled. */
    void (*hadamard)(float *v, uint32_t n);
};

const struct code_kernel *code_kernel_get(void); /* of the same ISA as kernel_get() */
const struct code_kernel *code_kernel_for(enum kernel_isa isa);

float code_f32_of_f16(uint16_t bits);
uint16_t code_f16_of_f32(float value); /* to nearest even; beyond 65,504 infinite */

#endif
