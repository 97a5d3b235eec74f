#include "node/member/clock_skew.h"

#include <stdlib.h>

#include "common/check.h"

#define OFFSETS_MAX 256u
#define NS_PER_MS 1000000
#define WALL_NS_MAX 4000000000000000000 /* the year 2096; a clock beyond is as good as there */
#define MONOTONE_NS_MAX 500000000000000000ull

static int64_t width(struct clock_span s) { return s.high_ns - s.low_ns; }

static struct clock_span sum(struct clock_span a, struct clock_span b)
{
    return (struct clock_span){ a.low_ns + b.low_ns, a.high_ns + b.high_ns };
}

/* ---- a node's own ---- */

bool clock_watch_read(struct clock_watch *w, uint64_t before_ns, uint64_t wall_ms, uint64_t after_ns)
{
    /* It is less than a millisecond more. */
    int64_t wall_ns = wall_ms < WALL_NS_MAX / NS_PER_MS ? (int64_t)wall_ms * NS_PER_MS : WALL_NS_MAX;
    struct clock_span base = { wall_ns - (int64_t)after_ns, wall_ns + NS_PER_MS - (int64_t)before_ns };
    bool stepped = w->read &&
            (base.low_ns > w->base.high_ns + CLOCK_STEP_NS || base.high_ns < w->base.low_ns - CLOCK_STEP_NS);
    w->base = base;
    w->read = true;
    if (!stepped) return false;
    w->steps++;
    w->measured = w->told = false;
    w->since_ns = 0;
    return true;
}

/* Apart as it is at `now_ns`, from what it was. */
static struct clock_span drifted(const struct clock_watch *w, uint64_t now_ns)
{
    int64_t drift = (int64_t)((now_ns - w->apart_ns) / CLOCK_DRIFT_PER) + 1;
    return (struct clock_span){ w->apart.low_ns - drift, w->apart.high_ns + drift };
}

void clock_watch_trip(struct clock_watch *w, uint32_t leader, uint64_t leader_life, uint64_t before_ns,
        uint64_t after_ns, uint64_t leader_ns)
{
    struct clock_span trip = { (int64_t)before_ns - (int64_t)leader_ns,
        (int64_t)after_ns - (int64_t)leader_ns };
    if (after_ns < before_ns || leader_ns > MONOTONE_NS_MAX) return; /* nobody says so who is well */
    if (w->measured && w->leader == leader && w->leader_life == leader_life) {
        struct clock_span old = drifted(w, after_ns);
        int64_t low = trip.low_ns > old.low_ns ? trip.low_ns : old.low_ns;
        int64_t high = trip.high_ns < old.high_ns ? trip.high_ns : old.high_ns;
        if (low <= high) trip = (struct clock_span){ low, high };
    }
    w->leader = leader;
    w->leader_life = leader_life;
    w->apart = trip;
    w->apart_ns = after_ns;
    w->measured = true;
}

bool clock_watch_offset(const struct clock_watch *w, uint64_t now_ns, struct clock_span *out)
{
    if (!w->read || !w->measured) return false;
    struct clock_span apart = drifted(w, now_ns);
    *out = sum(w->base, apart);
    return width(apart) <= CLOCK_APART_NS_MAX;
}

bool clock_watch_told(struct clock_watch *w, uint64_t now_ns, struct clock_span skew)
{
    bool against = w->off ? clock_surely_right(skew) : clock_surely_off(skew);
    bool on_end = w->told && w->since_ns != 0 && now_ns - w->told_ns <= CLOCK_FRESH_NS;
    w->skew = skew;
    w->told_ns = now_ns;
    w->told = true;
    if (!against)
        w->since_ns = 0;
    else if (!on_end)
        w->since_ns = now_ns;
    if (w->since_ns == 0 || now_ns - w->since_ns < CLOCK_SURE_NS) return false;
    w->off = !w->off;
    w->since_ns = 0;
    return true;
}

/* ---- all of them ---- */

static int compare(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* The k-th smallest of numbers that each lie in a span lies between the k-th smallest low and the k-th smallest
 * high. */
bool clock_median(const struct clock_span *offsets, uint32_t count, struct clock_span *median_out)
{
    int64_t lows[OFFSETS_MAX], highs[OFFSETS_MAX];
    uint32_t known = 0;
    CHECK(count <= OFFSETS_MAX);
    for (uint32_t i = 0; i < count; i++) {
        known += offsets[i].low_ns > -CLOCK_FAR_NS;
        lows[i] = offsets[i].low_ns;
        highs[i] = offsets[i].high_ns;
    }
    if (known < CLOCK_NODES_MIN) return false;
    qsort(lows, count, sizeof *lows, compare);
    qsort(highs, count, sizeof *highs, compare);
    *median_out = (struct clock_span){ lows[(count - 1) / 2], highs[count / 2] };
    return true;
}

struct clock_span clock_skew(struct clock_span offset, struct clock_span median)
{
    return (struct clock_span){ offset.low_ns - median.high_ns, offset.high_ns - median.low_ns };
}

bool clock_surely_off(struct clock_span skew)
{
    return skew.low_ns > CLOCK_SKEW_NS_MAX || skew.high_ns < -CLOCK_SKEW_NS_MAX;
}

bool clock_surely_right(struct clock_span skew)
{
    int64_t middle = skew.low_ns + width(skew) / 2;
    return skew.low_ns >= -CLOCK_SKEW_NS_MAX && skew.high_ns <= CLOCK_SKEW_NS_MAX &&
            llabs(middle) <= CLOCK_BACK_NS;
}

int64_t clock_span_ms(struct clock_span span)
{
    int64_t middle = span.low_ns + width(span) / 2;
    return (middle + (middle < 0 ? -NS_PER_MS / 2 : NS_PER_MS / 2)) / NS_PER_MS;
}

int64_t clock_span_error_ms(struct clock_span span) { return (width(span) / 2 + NS_PER_MS - 1) / NS_PER_MS; }
