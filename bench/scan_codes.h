/* The 1-bit half of omen-bench scan. */
#ifndef OMEN_BENCH_SCAN_CODES_H
#define OMEN_BENCH_SCAN_CODES_H

#include <stddef.h>
#include <stdint.h>

#define SCAN_ROUNDS_MAX 64

/* Prints one line for `count` codes of `dim` components (rounded up to 64). `median` sorts in place. */
void scan_codes(uint64_t count, uint32_t dim, uint64_t rounds,
        double (*median)(double *values, size_t count));

#endif
