/* The tables that code.c chooses from; private to storage/kernel. */
#ifndef OMEN_STORAGE_KERNEL_CODE_ISA_H
#define OMEN_STORAGE_KERNEL_CODE_ISA_H

#include "storage/kernel/code.h"

extern const struct code_kernel code_kernel_scalar;
#ifdef __x86_64__
extern const struct code_kernel code_kernel_avx2;
extern const struct code_kernel code_kernel_avx512;
#endif

#endif
