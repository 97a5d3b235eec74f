/* Metrics registry, rendered as Prometheus text (exposition format 0.0.4).
 *
 * A metric is a family (name, help, type) and one time series per label set. Handles are obtained once and
 * kept; updates are single relaxed atomics (counters, gauges) or a bucket increment (histograms), callable
 * from any thread. Families and series live as long as the registry. Names:
 * omendb_<room>_<what>_<unit>[_total]. */
#ifndef OMEN_COMMON_METRICS_H
#define OMEN_COMMON_METRICS_H

#include <stdatomic.h>
#include <stdint.h>

#include "common/mem.h"

struct metrics; /* registry */
struct metric_counter {
    _Atomic uint64_t value;
};
struct metric_gauge {
    _Atomic int64_t value;
};
struct metric_histogram; /* latency in nanoseconds, log-spaced buckets 10 us .. 100 s, exported in seconds */

struct metrics *metrics_new(void);
void metrics_free(struct metrics *metrics);

/* Same (name, labels) gives the same handle. `labels` is Prometheus syntax without braces, e.g.
 * "op=\"search\",code=\"ok\"", or NULL. Never NULL (a registry that cannot allocate panics). */
struct metric_counter *metrics_counter(struct metrics *metrics, const char *name, const char *help,
        const char *labels);
struct metric_gauge *metrics_gauge(struct metrics *metrics, const char *name, const char *help,
        const char *labels);
struct metric_histogram *metrics_histogram(struct metrics *metrics, const char *name, const char *help,
        const char *labels);
/* Appends key="value" to a label list, escaped, after a comma when the list is not empty: for values that
 * users choose. out->data is then the list, NUL-terminated (the NUL is not counted in len). */
void metrics_label(struct buf *out, const char *key, const char *value);
/* Drops every series whose labels contain this exact `label` pair (a dropped collection). Handles to them
 * die. */
void metrics_drop(struct metrics *metrics, const char *label);

static inline void metric_add(struct metric_counter *c, uint64_t n)
{
    atomic_fetch_add_explicit(&c->value, n, memory_order_relaxed);
}
static inline void metric_set(struct metric_gauge *g, int64_t v)
{
    atomic_store_explicit(&g->value, v, memory_order_relaxed);
}
static inline void metric_gauge_add(struct metric_gauge *g, int64_t v)
{
    atomic_fetch_add_explicit(&g->value, v, memory_order_relaxed);
}
void metric_observe_ns(struct metric_histogram *h, uint64_t ns);
uint64_t metric_quantile_ns(struct metric_histogram *h,
        double q); /* estimate from the buckets; 0 when empty */

/* A collector is called at the start of each render to refresh gauges that are cheaper to compute than to
 * keep. */
void metrics_add_collector(struct metrics *metrics, void (*collect)(void *arg), void *arg);
void metrics_render(struct metrics *metrics, struct buf *out);

#endif
