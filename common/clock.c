/* The system's clocks behind `struct clock`. clock_gettime on these two cannot fail on Linux. */
#include "common/clock.h"

#include <time.h>

#include "common/check.h"

static uint64_t now_ns(clockid_t id)
{
    struct timespec t;
    CHECK(clock_gettime(id, &t) == 0);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t system_monotonic_ns(struct clock *clock) { return now_ns(CLOCK_MONOTONIC); }

static uint64_t system_wall_ms(struct clock *clock) { return now_ns(CLOCK_REALTIME) / 1000000u; }

struct clock *clock_system(void)
{
    static struct clock system = { .monotonic_ns = system_monotonic_ns, .wall_ms = system_wall_ms };
    return &system;
}
