/* The tables that code.c chooses from; private to storage/kernel. */
#ifndef OMEN_STORAGE_KERNEL_CODE_ISA_H
#define OMEN_STORAGE_KERNEL_CODE_ISA_H

#include "storage/kernel/code.h"

extern const struct code_kernel code_kernel_scalar;
/* code_scalar.c, for tables that have nothing better */
void pack_tile_scalar(const int8_t *const *rows, uint32_t count, uint32_t dim, uint8_t *packed_out);
void select_32_scalar(const int32_t *dots, const int32_t *bias, uint32_t first_id, struct code_top16 *top);
uint32_t pool_insert_scalar(uint64_t *keys, uint32_t *count, uint32_t cap, uint64_t key);
uint32_t pool_merge_scalar(const uint64_t *keys, uint32_t count, uint32_t cap, const uint64_t *fresh,
        uint32_t n, uint64_t *out);
void lut_build_scalar(const float *z, uint32_t dim, float inverse, uint8_t *lut_out);
void split_i8_scalar(const float *v, uint32_t dim, float inverse, int8_t *high_out, int8_t *low_out);
void sign_code_scalar(const float *z, const float *centre, uint32_t dim, uint8_t *signs_out,
        float sums_out[3]);
uint64_t occlude_64_scalar(const int32_t *dots, const int32_t *norms, int32_t norm, const float *reach,
        float alpha);
#ifdef __x86_64__
extern const struct code_kernel code_kernel_avx2;
extern const struct code_kernel code_kernel_avx512;
/* pool_avx2.c */
uint32_t pool_merge_avx2(const uint64_t *keys, uint32_t count, uint32_t cap, const uint64_t *fresh,
        uint32_t n, uint64_t *out);
/* f16_avx2.c */
float l2sq_f32_f16_avx2(const float *query, const uint16_t *row, uint32_t dim);
float dot_f32_f16_avx2(const float *query, const uint16_t *row, uint32_t dim);
/* tile_avx2.c */
void pack_tile_avx2(const int8_t *const *rows, uint32_t count, uint32_t dim, uint8_t *packed_out);
void dot_tile_avx2(const int8_t *const *rows, uint32_t count, uint32_t dim, const uint8_t *packed,
        int32_t *dots_out, size_t stride);
void split_i8_avx2(const float *v, uint32_t dim, float inverse, int8_t *high_out, int8_t *low_out);
void select_32_avx2(const int32_t *dots, const int32_t *bias, uint32_t first_id, struct code_top16 *top);
#endif
#ifdef __aarch64__
extern const struct code_kernel code_kernel_neon;
#endif

#endif
