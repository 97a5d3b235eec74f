/* The tables that packed.c chooses from; private to storage/kernel. */
#ifndef OMEN_STORAGE_KERNEL_PACKED_ISA_H
#define OMEN_STORAGE_KERNEL_PACKED_ISA_H

#include "storage/kernel/packed.h"

extern const struct packed_kernel packed_kernel_scalar;
#ifdef __x86_64__
extern const struct packed_kernel packed_kernel_avx2;
#endif
#ifdef __aarch64__
extern const struct packed_kernel packed_kernel_neon;
#endif

#endif
