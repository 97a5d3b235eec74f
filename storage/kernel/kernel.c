/* Which kernel this CPU runs. Decided once, at the first call; OMENDB_ISA lowers it for tests and for hunting
 * a bug.
 *
 * Threads: any; two first calls at once decide the same and store the same pointer.
 * Determinism: the choice cannot be seen in any result (kernel.h). */
#include "common/err.h"
#include "storage/kernel/kernel_isa.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static const char *const isa_names[KERNEL_ISA_COUNT] = { "scalar", "avx2", "avx512", "neon" };

const char *kernel_isa_name(enum kernel_isa isa)
{
    return (unsigned)isa < KERNEL_ISA_COUNT ? isa_names[isa] : "unknown";
}

#ifdef __x86_64__
/* __builtin_cpu_supports also asks the operating system whether it saves the wide registers (XGETBV). */
static bool cpu_has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

static bool cpu_has_avx512(void)
{
    return cpu_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

const struct kernel *kernel_for(enum kernel_isa isa)
{
    switch (isa) {
    case KERNEL_SCALAR: return &kernel_scalar;
#ifdef __x86_64__
    case KERNEL_AVX2: return cpu_has_avx2() ? &kernel_avx2 : NULL;
    case KERNEL_AVX512: return cpu_has_avx512() ? &kernel_avx512 : NULL;
#endif
#ifdef __aarch64__
    case KERNEL_NEON: return &kernel_neon; /* part of every aarch64 CPU */
#endif
    default: return NULL;
    }
}

static const struct kernel *choose(void)
{
    const char *wanted = getenv("OMENDB_ISA");
    const struct kernel *best = &kernel_scalar;
    for (int isa = KERNEL_SCALAR; isa < KERNEL_ISA_COUNT; isa++) {
        const struct kernel *kernel = kernel_for((enum kernel_isa)isa);
        if (kernel == NULL) continue;
        if (wanted != NULL && strcmp(wanted, isa_names[isa]) == 0) return kernel;
        best = kernel;
    }
    return best; /* also for an ISA that this CPU lacks and for an unknown name: no reason to be slow */
}

const struct kernel *kernel_get(void)
{
    static _Atomic(const struct kernel *) chosen;
    const struct kernel *kernel = atomic_load_explicit(&chosen, memory_order_acquire);
    if (kernel == NULL) {
        kernel = choose();
        atomic_store_explicit(&chosen, kernel, memory_order_release);
    }
    return kernel;
}
