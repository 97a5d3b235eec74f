/* SIMD distances over f32: the definition is scalar.c; avx2.c, avx512.c and neon.c are optimisations chosen
 * once.
 *
 * All give bit-equal results: 16 lanes of f32 accumulators filled with fused multiply-add in order of i, the
 * tail padded with zeros, then one fixed tree: lane[i] += lane[i+8], += lane[i+4], += lane[i+2], +=
 * lane[i+1]. So replicas, pages of a scroll and re-runs agree on every CPU. dim 1..OMEN_DIM_MAX, pointers
 * 4-byte aligned at least (a few loads faster at 64). Relative error against exact arithmetic <= 2^-24 *
 * (dim/16 + 5) for l2. Threads: any. Compiled without -ffast-math and with -ffp-contract=off, so that only
 * the written fma is fused. */
#ifndef OMEN_STORAGE_KERNEL_H
#define OMEN_STORAGE_KERNEL_H

#include <stddef.h>
#include <stdint.h>

enum kernel_isa { KERNEL_SCALAR, KERNEL_AVX2, KERNEL_AVX512, KERNEL_NEON, KERNEL_ISA_COUNT };

struct kernel {
    enum kernel_isa isa;
    float (*l2sq_f32)(const float *a, const float *b, uint32_t dim); /* sum (a-b)^2 */
    float (*dot_f32)(const float *a, const float *b, uint32_t dim);  /* sum a*b */
    /* One query against `count` rows that lie `stride_floats` apart, prefetched ahead: the flat scan.
     * distances_out[count]: squared l2, or -dot. */
    void (*l2sq_f32_rows)(const float *query, const float *rows, size_t stride_floats, uint32_t count,
            uint32_t dim, float *distances_out);
    void (*negdot_f32_rows)(const float *query, const float *rows, size_t stride_floats, uint32_t count,
            uint32_t dim, float *distances_out);
    /* `query_count` queries (each `query_stride_floats` apart) against the same rows while they are in cache;
     * distances_out[query][row], row-major with `count` columns. Bit-equal to the single forms. */
    void (*l2sq_f32_block)(const float *queries, size_t query_stride_floats, uint32_t query_count,
            const float *rows, size_t stride_floats, uint32_t count, uint32_t dim, float *distances_out);
    void (*negdot_f32_block)(const float *queries, size_t query_stride_floats, uint32_t query_count,
            const float *rows, size_t stride_floats, uint32_t count, uint32_t dim, float *distances_out);
};

/* Best for this CPU, or what OMENDB_ISA=scalar|avx2|avx512|neon says when the CPU can. Chosen at the first
 * call. */
const struct kernel *kernel_get(void);
/* NULL when the CPU (or the build) cannot; for tests and benches. */
const struct kernel *kernel_for(enum kernel_isa isa);
const char *kernel_isa_name(enum kernel_isa isa);

/* Normalise in place to unit length; a zero vector stays zero. Deterministic across ISAs (scalar). */
void vector_normalise(float *v, uint32_t dim);
/* false when a component is NaN or infinite; *position_out = the first such. */
_Bool vector_finite(const float *v, uint32_t dim, uint32_t *position_out);

#endif
