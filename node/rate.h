/* Bytes per second: each piece is given the moment from which on it may go. A pause earns no more than RATE_BURST_NS of what
 * was not used. Guarded by the owner's lock. */
#ifndef OMEN_NODE_RATE_H
#define OMEN_NODE_RATE_H

#include <stdint.h>

#define RATE_BURST_NS 100000000ull

struct rate {
    uint64_t free_ns; /* everything before is used up */
};

/* When `bytes` may go at `bytes_per_s` (0: at once). */
static inline uint64_t rate_take(struct rate *rate, uint64_t now_ns, uint64_t bytes, uint64_t bytes_per_s)
{
    if (bytes_per_s == 0) return now_ns;
    uint64_t floor_ns = now_ns > RATE_BURST_NS ? now_ns - RATE_BURST_NS : 0;
    if (rate->free_ns < floor_ns) rate->free_ns = floor_ns;
    uint64_t at_ns = rate->free_ns;
    rate->free_ns += (uint64_t)((double)bytes * 1e9 / (double)bytes_per_s);
    return at_ns > now_ns ? at_ns : now_ns;
}

#endif
