/* Which code kernels this CPU runs: those of the ISA that kernel_get() chose. Threads: any. */
#include "storage/kernel/code_isa.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#ifdef __x86_64__
#include <cpuid.h>

/* clang 14 has no name for it in __builtin_cpu_supports. That the system saves the registers AVX2 has asked already.
 * Asked once: under a hypervisor cpuid leaves the guest, tens of microseconds each time, and this is asked for every
 * estimate of a walk (all of storage/index stood still). */
static bool has_f16c(void)
{
    static _Atomic int known; /* 0: not asked yet; else 1 + the answer */
    int answer = atomic_load_explicit(&known, memory_order_relaxed);
    if (answer == 0) {
        unsigned a, b, c, d;
        answer = 1 + (__get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) != 0);
        atomic_store_explicit(&known, answer, memory_order_relaxed);
    }
    return answer == 2;
}
#endif

const struct code_kernel *code_kernel_for(enum kernel_isa isa)
{
    if (kernel_for(isa) == NULL) return NULL;
    switch (isa) {
    case KERNEL_SCALAR: return &code_kernel_scalar;
#ifdef __x86_64__
    case KERNEL_AVX2: return has_f16c() ? &code_kernel_avx2 : &code_kernel_scalar;
    case KERNEL_AVX512: return __builtin_cpu_supports("avx512vnni") ? &code_kernel_avx512 : &code_kernel_avx2;
#endif
#ifdef __aarch64__
    case KERNEL_NEON: return &code_kernel_neon;
#endif
    default: return NULL;
    }
}

const struct code_kernel *code_kernel_get(void) { return code_kernel_for(kernel_get()->isa); }
