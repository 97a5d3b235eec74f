/* How far the clocks of the nodes are off their median (CORRECTNESS A3: more than 500 ms, and a node may not lead).
 *
 * Nothing here is an estimate: every difference is a span that holds the true one, so a node is called off only when
 * no errors of what was measured could have made a right clock look so.
 *
 *   base    a node's wall clock less its own monotone one: read at any time, to a millisecond. It changes when the
 *           wall clock steps (ntp, a hand) or the machine slept, and then what was measured before is forgotten.
 *   apart   a node's monotone clock less that of the leader of the cluster group: known to the length of a round
 *           trip. Neither of the two ever steps, so the spans of all trips are cut with each other, each widened by
 *           what the clocks may have drifted since. Under load a trip takes seconds and tells nothing, the short ones
 *           before count on, until drift has made them as vague. A trip that contradicts them (a machine was stopped)
 *           takes their place.
 *   offset  base + apart: what nodes report. All are against the same monotone clock, so they can be compared.
 *   median  of the offsets of all nodes, at the leader; a node whose offset is not known may be anywhere.
 *
 * Off is who has been told so for CLOCK_SURE_NS on end: longer than what the leader judges by lasts, so clocks that
 * step while reports are under way wrong nobody. The same time makes right again.
 * Threads: a watch is its owner's (the talker's); the rest are pure functions. Determinism: yes. */
#ifndef OMEN_NODE_MEMBER_CLOCK_SKEW_H
#define OMEN_NODE_MEMBER_CLOCK_SKEW_H

#include <stdbool.h>
#include <stdint.h>

#define CLOCK_SKEW_NS_MAX 500000000ll
#define CLOCK_BACK_NS                                                                                        \
    400000000ll /* right again: by the middle of the span within this, by all of it within the other */
#define CLOCK_APART_NS_MAX 200000000ll /* a wider span is not known */
#define CLOCK_DRIFT_PER                                                                                      \
    1000u /* two clocks drift apart by at most one part in so many: ntp slews at 500 ppm */
#define CLOCK_STEP_NS 50000000ll     /* a base that changes by more has stepped */
#define CLOCK_FRESH_NS 3000000000ull /* reports and answers that are older count for nothing */
#define CLOCK_SURE_NS 4000000000ull
#define CLOCK_NODES_MIN 3u /* fewer that are known have no median */

struct clock_span {
    int64_t low_ns, high_ns; /* low <= high */
};
#define CLOCK_FAR_NS (INT64_MAX / 2) /* differences of two stay within an int64_t */
#define CLOCK_ANYTHING ((struct clock_span){ -CLOCK_FAR_NS, CLOCK_FAR_NS })

/* One node's view of its clock. Zero it to begin. */
struct clock_watch {
    bool read, measured, told, off;
    struct clock_span base;  /* as last read */
    uint32_t steps;          /* of the base, so far */
    uint32_t leader;         /* whose monotone clock `apart` is against */
    uint64_t leader_life;    /* of that clock: another after a restart or a step there */
    struct clock_span apart; /* at our monotone `apart_ns` */
    uint64_t apart_ns;
    struct clock_span skew; /* off the median, as last told, at `told_ns` */
    uint64_t told_ns;
    uint64_t since_ns; /* since when every answer has spoken against `off`; 0 = the last did not */
};

/* The wall clock, read between two readings of the monotone one. True: it has stepped. */
bool clock_watch_read(struct clock_watch *w, uint64_t before_ns, uint64_t wall_ms, uint64_t after_ns);
/* A round trip: the leader's monotone clock was `leader_ns` between our `before_ns` and `after_ns`. */
void clock_watch_trip(struct clock_watch *w, uint32_t leader, uint64_t leader_life, uint64_t before_ns,
        uint64_t after_ns, uint64_t leader_ns);
/* Our wall clock less the leader's monotone one; false: not known. */
bool clock_watch_offset(const struct clock_watch *w, uint64_t now_ns, struct clock_span *out);
/* What the leader says of us. True: `off` has changed. */
bool clock_watch_told(struct clock_watch *w, uint64_t now_ns, struct clock_span skew);

/* At the leader: where the median of `count` offsets lies, whatever the true ones are; puts them in no order that means
 * anything. CLOCK_ANYTHING stands for one that is not known. Of an even number both middle ones count, so of two
 * camps of the same size neither is off. False: fewer than CLOCK_NODES_MIN are known. count <= 256. */
bool clock_median(const struct clock_span *offsets, uint32_t count, struct clock_span *median_out);
struct clock_span clock_skew(struct clock_span offset, struct clock_span median);
bool clock_surely_off(struct clock_span skew);
bool clock_surely_right(struct clock_span skew);
/* Whole milliseconds nearest to the middle of a span, and half its width, rounded up. */
int64_t clock_span_ms(struct clock_span span);
int64_t clock_span_error_ms(struct clock_span span);

#endif
