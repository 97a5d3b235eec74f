/* Which kernels over packed codes this CPU runs, and the packing itself. Threads: any. */
#include "storage/kernel/packed.h"

#include <string.h>

#include "common/check.h"
#include "storage/kernel/packed_isa.h"

const struct packed_kernel *packed_kernel_for(enum kernel_isa isa)
{
    if (kernel_for(isa) == NULL) return NULL;
    switch (isa) {
    case KERNEL_SCALAR: return &packed_kernel_scalar;
#ifdef __x86_64__
    /* No wider form: a code is one to three cache lines, and waiting for them is what a walk does. */
    case KERNEL_AVX2:
    case KERNEL_AVX512: return &packed_kernel_avx2;
#endif
#ifdef __aarch64__
    case KERNEL_NEON: return &packed_kernel_neon;
#endif
    default: return NULL;
    }
}

const struct packed_kernel *packed_kernel_get(void) { return packed_kernel_for(kernel_get()->isa); }

/* Fields of `bits` bits, `per` of them in a byte, `bytes` apart. */
static void fields_store(const uint8_t *levels, uint32_t bits, uint32_t bytes, uint32_t shift, uint8_t *out)
{
    uint8_t mask = (uint8_t)((1u << bits) - 1);
    for (uint32_t i = 0; i < bytes; i++) {
        uint8_t byte = 0;
        for (uint32_t j = 0; j < 8 / bits; j++)
            byte |= (uint8_t)((levels[i + j * bytes] >> shift & mask) << (j * bits));
        out[i] = byte;
    }
}

static void fields_load(const uint8_t *in, uint32_t bits, uint32_t bytes, uint32_t shift, uint8_t *levels)
{
    uint8_t mask = (uint8_t)((1u << bits) - 1);
    for (uint32_t i = 0; i < bytes; i++)
        for (uint32_t j = 0; j < 8 / bits; j++)
            levels[i + j * bytes] |= (uint8_t)((in[i] >> (j * bits) & mask) << shift);
}

void packed_store(const uint8_t *levels, uint32_t dim, uint32_t bits, uint8_t *code_out)
{
    CHECK(dim % 64 == 0 && (bits == 8 || bits == 6 || bits == 4 || bits == 2 || bits == 1));
    for (uint32_t at = 0; at < dim; at += 64, levels += 64, code_out += 8 * bits) {
        if (bits == 6) {
            fields_store(levels, 4, 32, 0, code_out);
            fields_store(levels, 2, 16, 4, code_out + 32);
        } else if (bits == 8)
            memcpy(code_out, levels, 64);
        else
            fields_store(levels, bits, 8 * bits, 0, code_out);
    }
}

void packed_load(const uint8_t *code, uint32_t dim, uint32_t bits, uint8_t *levels_out)
{
    CHECK(dim % 64 == 0 && (bits == 8 || bits == 6 || bits == 4 || bits == 2 || bits == 1));
    memset(levels_out, 0, dim);
    for (uint32_t at = 0; at < dim; at += 64, levels_out += 64, code += 8 * bits) {
        if (bits == 6) {
            fields_load(code, 4, 32, 0, levels_out);
            fields_load(code + 32, 2, 16, 4, levels_out);
        } else if (bits == 8)
            memcpy(levels_out, code, 64);
        else
            fields_load(code, bits, 8 * bits, 0, levels_out);
    }
}
