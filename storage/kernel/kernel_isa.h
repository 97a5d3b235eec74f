/* The tables of functions that kernel.c chooses from; private to storage/kernel. */
#ifndef OMEN_STORAGE_KERNEL_KERNEL_ISA_H
#define OMEN_STORAGE_KERNEL_KERNEL_ISA_H

#include "storage/kernel/kernel.h"

#define KERNEL_LANES 16 /* f32 accumulators of the definition */

/* Rows of the blocked form are taken this many bytes at a time, so that they stay in a 32 KiB L1 beside the
 * query. */
#define KERNEL_BLOCK_BYTES (16u << 10)

extern const struct kernel kernel_scalar;
#ifdef __x86_64__
extern const struct kernel kernel_avx2;
extern const struct kernel kernel_avx512;
#endif
#ifdef __aarch64__
extern const struct kernel kernel_neon;
#endif

#endif
