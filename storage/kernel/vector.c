/* What happens to a vector where it enters: is it finite, and bring it to unit length. Plain C at the ABI
 * floor, so that every node normalises to the same bits.
 *
 * Threads: no state. Determinism: squares are exact in double, summed in a fixed order; sqrt and division are
 * correctly rounded by IEEE 754. */
#include "common/err.h"
#include "storage/kernel/kernel.h"

#include <math.h>
#include <string.h>

#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC optimize("fp-contract=off")
#endif

#define SUMS 4 /* independent chains of additions */

void vector_normalise(float *v, uint32_t dim)
{
    double sums[SUMS] = { 0 };
    for (uint32_t i = 0; i < dim; i++) sums[i % SUMS] += (double)v[i] * (double)v[i];
    double norm = sqrt((sums[0] + sums[2]) + (sums[1] + sums[3]));
    if (norm == 0.0) return;
    for (uint32_t i = 0; i < dim; i++) v[i] = (float)((double)v[i] / norm);
}

#define EXPONENT 0x7f800000u

bool vector_finite(const float *v, uint32_t dim, uint32_t *position_out)
{
    uint32_t at = 0;
    /* Groups without a branch inside: the compiler makes vector code of it. */
    for (; at + 16 <= dim; at += 16) {
        uint32_t bits[16], bad = 0;
        memcpy(bits, v + at, sizeof bits);
        for (uint32_t i = 0; i < 16; i++) bad |= (bits[i] & EXPONENT) == EXPONENT;
        if (bad) break;
    }
    for (; at < dim; at++) {
        uint32_t bits;
        memcpy(&bits, v + at, sizeof bits);
        if ((bits & EXPONENT) == EXPONENT) {
            *position_out = at;
            return false;
        }
    }
    return true;
}
