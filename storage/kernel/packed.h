/* Kernels over packed unsigned codes of 8, 6, 4, 2 and 1 bits per component, one vector after another: what
 * walks spend their time in when a node's neighbours lie anywhere.
 *
 * As in code.h: packed_scalar.c is the definition, the others are optimisations of the same ISA as
 * kernel_get(). Sums are integers and the rest is written fma, so estimates are bit-equal on all of them.
 *
 * D is a multiple of 64. 64 components are 8 * bits bytes:
 *   8 bits   byte i is component i
 *   4 bits   byte i < 32 holds components i (low nibble) and i + 32
 *   2 bits   byte i < 16 holds components i, i + 16, i + 32, i + 48, lowest bits first
 *   1 bit    byte i < 8 holds components i, i + 8, .. i + 56, lowest bit first
 *   6 bits   32 bytes of the low four bits as above, then 16 bytes of the high two bits
 * A query is signed: 16 bits within +-PACKED_WIDE_MAX for 8-bit codes, 8 bits (never -128) for the others. */
#ifndef OMEN_STORAGE_KERNEL_PACKED_H
#define OMEN_STORAGE_KERNEL_PACKED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "storage/kernel/kernel.h"

#define PACKED_WIDE_MAX 1023 /* so that a sum over D <= CODE_DIM_MAX fits 32 bits */
#define PACKED_NARROW_MAX 127
#define PACKED_FACTORS_BYTES 8 /* f32 f, f32 g behind a code */

/* Prepared query. dot = sum q c over a code, square = sum c (c - top), top = 2^bits - 1: what the squares of
 * c - top/2 add up to, less a constant.
 * Without factors: estimate = square_scale * square + (dot_scale * dot + base).
 * With factors (f, g of the code): estimate = g * (dot_scale * dot + bias) + (f * f_scale + base). */
struct packed_query {
    const int16_t *wide;  /* [D], 64-byte aligned; for 8 bits, else NULL */
    const int8_t *narrow; /* [D], 64-byte aligned; for the others, else NULL */
    uint32_t dim;         /* D */
    uint32_t bits;        /* 8, 6, 4, 2 or 1 */
    bool factors;         /* PACKED_FACTORS_BYTES follow each code */
    float dot_scale, square_scale, base, bias, f_scale;
    float floor; /* estimates are at least this: 0 for squared distances, -infinity for products */
};

static inline size_t packed_bytes(uint32_t dim, uint32_t bits) { return (size_t)dim / 8 * bits; }

struct packed_kernel {
    enum kernel_isa isa;
    /* Estimates of `count` codes: the ids[i]-th of those that lie `stride` bytes apart, or the i-th when ids
     * is NULL. codes any alignment; nothing past a code and its factors is read. */
    void (*estimate)(const struct packed_query *query, const uint8_t *codes, size_t stride,
            const uint32_t *ids, uint32_t count, float *estimates_out);
};

const struct packed_kernel *packed_kernel_get(void); /* of the same ISA as kernel_get() */
const struct packed_kernel *packed_kernel_for(enum kernel_isa isa);

/* Levels [D], each below 2^bits, to packed bytes and back. */
void packed_store(const uint8_t *levels, uint32_t dim, uint32_t bits, uint8_t *code_out);
void packed_load(const uint8_t *code, uint32_t dim, uint32_t bits, uint8_t *levels_out);

#endif
