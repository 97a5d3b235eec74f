/* Time as an argument: rooms below node/ get a `struct clock *` or plain values, never call the system. */
#ifndef OMEN_COMMON_CLOCK_H
#define OMEN_COMMON_CLOCK_H

#include <stdint.h>

struct clock {
    uint64_t (*monotonic_ns)(struct clock *clock); /* never goes back; for deadlines and durations */
    uint64_t (*wall_ms)(struct clock *clock);      /* Unix time; for log time and people */
};

struct clock *clock_system(void); /* static, thread-safe */

static inline uint64_t clock_monotonic_ns(struct clock *c) { return c->monotonic_ns(c); }
static inline uint64_t clock_wall_ms(struct clock *c) { return c->wall_ms(c); }

#endif
