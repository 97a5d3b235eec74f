/* RaBitQ (Gao & Long, SIGMOD 2024): 1 bit per component of a rotated residual, two factors, an unbiased
 * distance estimate.
 *
 * With z = P(x - mean) rotated, centre c and r = z - c, the code is the signs of r, and for a rotated query q
 *     |q - z|^2 ~ |q - c|^2 + F + G * sum_j(+-q_j)
 *     G = -2 |r|^2 / sum|r_j|        F = |r|^2 - G * sum_j(+-c_j)
 * (the paper's estimator <o_bar, q> / <o_bar, o>; what does not depend on the query is folded into F and G).
 * Its standard error is |r| |q - c| times rabitq_error(). As the sum does not depend on c, one look-up table
 * per query serves every centre: that is what lets a graph keep the codes of its neighbours relative to the
 * node itself (SymphonyQG, SIGMOD 2025). 32 codes lie together as storage/kernel/code.h says; F and G are f16
 * with one scale per group, so that neither large norms overflow nor small ones vanish.
 * Memory: D/8 + 4 bytes per vector and 8 per group. Threads: no state. */
#ifndef OMEN_STORAGE_QUANT_RABITQ_H
#define OMEN_STORAGE_QUANT_RABITQ_H

#include "storage/kernel/code.h"

/* Where the parts of one group lie in caller's memory. */
struct rabitq_group {
    uint8_t *codes;  /* [D * 4], 64-byte aligned */
    uint16_t *f, *g; /* [32] f16 bits */
    float *f_scale, *g_scale;
};

static inline size_t rabitq_codes_bytes(uint32_t padded) { return (size_t)padded * 4; }

/* Encode up to 32 rotated vectors relative to `centre` (NULL = the mean, 0). Places past `count` get an
 * infinite F: their estimate is infinite and passes no bound. `z` [count] pointers to [padded] f32; scratch
 * [32 * padded / 8]. */
void rabitq_encode(const float *const *z, uint32_t count, const float *centre, uint32_t padded,
        uint8_t *scratch, const struct rabitq_group *group_out);

/* Look-up table of a rotated query; lut [padded * 4], 64-byte aligned, borrowed by query_out. */
void rabitq_prepare(const float *z, uint32_t padded, uint8_t *lut, struct code_query *query_out);

/* Standard error of one estimate, for bounds: times |r| * |q - c|. */
float rabitq_error(uint32_t padded);

#endif
