/* The tables that code.c chooses from; private to storage/kernel. */
#ifndef OMEN_STORAGE_KERNEL_CODE_ISA_H
#define OMEN_STORAGE_KERNEL_CODE_ISA_H

#include "storage/kernel/code.h"

extern const struct code_kernel code_kernel_scalar;
#ifdef __x86_64__
extern const struct code_kernel code_kernel_avx2;
extern const struct code_kernel code_kernel_avx512;
/* pool_avx2.c */
uint32_t pool_merge_avx2(const uint64_t *keys, uint32_t count, uint32_t cap, const uint64_t *fresh,
        uint32_t n, uint64_t *out);
/* tile_avx2.c */
void pack_tile_avx2(const int8_t *const *rows, uint32_t count, uint32_t dim, uint8_t *packed_out);
void dot_tile_avx2(const int8_t *const *rows, uint32_t count, uint32_t dim, const uint8_t *packed,
        int32_t *dots_out, size_t stride);
void select_32_avx2(const int32_t *dots, const int32_t *bias, uint32_t first_id, struct code_top16 *top);
#endif

#endif
