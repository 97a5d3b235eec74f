/* Metrics registry and its Prometheus text form (exposition format 0.0.4).
 *
 * Families and series are singly linked in the order of their making, so a scrape looks the same each
 * time. Updates touch one atomic and no lock; the mutex guards the lists only. Rendering runs the
 * collectors without that mutex (they ask for handles), one render at a time.
 * Threads: any. Series of a family are bounded: label values come from users (collection names). */
#include "common/metrics.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "common/check.h"

#define SERIES_PER_FAMILY_MAX 4096 /* further label sets share one series labelled overflow="true" */
#define COLLECTORS_MAX 64
#define BUCKET_COUNT 22 /* 1-2-5 per decade, 10 us .. 100 s; one more for what is above */

static const uint64_t BUCKET_NS[BUCKET_COUNT] = { 10000, 20000, 50000, 100000, 200000, 500000, 1000000,
    2000000, 5000000, 10000000, 20000000, 50000000, 100000000, 200000000, 500000000, 1000000000, 2000000000,
    5000000000, 10000000000, 20000000000, 50000000000, 100000000000 };
static const char *const BUCKET_LABELS[BUCKET_COUNT + 1] = { "1e-05", "2e-05", "5e-05", "0.0001", "0.0002",
    "0.0005", "0.001", "0.002", "0.005", "0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1", "2", "5", "10",
    "20", "50", "100", "+Inf" };

struct metric_histogram {
    _Atomic uint64_t buckets[BUCKET_COUNT + 1]; /* not cumulative; the last one is above all bounds */
    _Atomic uint64_t sum_ns;
};

enum metric_type { TYPE_COUNTER, TYPE_GAUGE, TYPE_HISTOGRAM };
static const char *const TYPE_NAMES[] = { "counter", "gauge", "histogram" };

struct series {
    struct series *next;
    char *labels; /* without braces, "" when none; owned */
    union {
        struct metric_counter counter;
        struct metric_gauge gauge;
        struct metric_histogram histogram;
    };
};

struct family {
    struct family *next;
    char *name, *help; /* owned */
    enum metric_type type;
    uint32_t series_count;
    struct series *first, **last_next;
};

struct collector {
    void (*collect)(void *arg);
    void *arg;
};

struct metrics {
    pthread_mutex_t lists;     /* guards all below */
    pthread_mutex_t rendering; /* one render at a time; taken before `lists` */
    struct family *first, **last_next;
    struct collector collectors[COLLECTORS_MAX];
    uint32_t collector_count;
};

/* ---- life ---- */

struct metrics *metrics_new(void)
{
    struct metrics *metrics = mem_must_calloc(1, sizeof *metrics);
    pthread_mutex_init(&metrics->lists, NULL);
    pthread_mutex_init(&metrics->rendering, NULL);
    metrics->last_next = &metrics->first;
    return metrics;
}

static void series_free(struct series *s)
{
    mem_free(s->labels);
    mem_free(s);
}

void metrics_free(struct metrics *metrics)
{
    if (metrics == NULL) return;
    while (metrics->first != NULL) {
        struct family *f = metrics->first;
        metrics->first = f->next;
        while (f->first != NULL) {
            struct series *s = f->first;
            f->first = s->next;
            series_free(s);
        }
        mem_free(f->name);
        mem_free(f->help);
        mem_free(f);
    }
    pthread_mutex_destroy(&metrics->lists);
    pthread_mutex_destroy(&metrics->rendering);
    mem_free(metrics);
}

/* ---- handles ---- */

static bool name_is_valid(const char *name)
{
    static const char LETTERS[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_";
    if (name[0] == '\0' || strchr(LETTERS, name[0]) == NULL) return false;
    return name[strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789")] == '\0';
}

static struct family *family_get(struct metrics *metrics, const char *name, const char *help,
        enum metric_type type)
{
    for (struct family *f = metrics->first; f != NULL; f = f->next)
        if (strcmp(f->name, name) == 0) {
            CHECK(f->type == type); /* one name, one meaning */
            return f;
        }
    CHECK(name_is_valid(name));
    struct family *f = mem_must_calloc(1, sizeof *f);
    f->name = mem_must_strdup(name);
    f->help = mem_must_strdup(help);
    f->type = type;
    f->last_next = &f->first;
    *metrics->last_next = f;
    metrics->last_next = &f->next;
    return f;
}

static struct series *series_find(struct family *f, const char *labels)
{
    for (struct series *s = f->first; s != NULL; s = s->next)
        if (strcmp(s->labels, labels) == 0) return s;
    return NULL;
}

static struct series *series_get(struct metrics *metrics, const char *name, const char *help,
        const char *labels, enum metric_type type)
{
    pthread_mutex_lock(&metrics->lists);
    struct family *f = family_get(metrics, name, help, type);
    if (labels == NULL) labels = "";
    struct series *s = series_find(f, labels);
    if (s == NULL && f->series_count >= SERIES_PER_FAMILY_MAX) {
        labels = "overflow=\"true\"";
        s = series_find(f, labels);
    }
    if (s == NULL) {
        s = mem_must_calloc(1, sizeof *s);
        s->labels = mem_must_strdup(labels);
        *f->last_next = s;
        f->last_next = &s->next;
        f->series_count++;
    }
    pthread_mutex_unlock(&metrics->lists);
    return s;
}

struct metric_counter *metrics_counter(struct metrics *metrics, const char *name, const char *help,
        const char *labels)
{
    return &series_get(metrics, name, help, labels, TYPE_COUNTER)->counter;
}

struct metric_gauge *metrics_gauge(struct metrics *metrics, const char *name, const char *help,
        const char *labels)
{
    return &series_get(metrics, name, help, labels, TYPE_GAUGE)->gauge;
}

struct metric_histogram *metrics_histogram(struct metrics *metrics, const char *name, const char *help,
        const char *labels)
{
    return &series_get(metrics, name, help, labels, TYPE_HISTOGRAM)->histogram;
}

void metrics_label(struct buf *out, const char *key, const char *value)
{
    CHECK(name_is_valid(key));
    if (out->len > 0) buf_append(out, ",", 1);
    buf_printf(out, "%s=\"", key);
    for (; *value != '\0'; value++) {
        if (*value == '\n')
            buf_append(out, "\\n", 2);
        else if (*value == '"' || *value == '\\')
            buf_printf(out, "\\%c", *value);
        else
            buf_append(out, value, 1);
    }
    buf_append(out, "\"", 2);
    if (!out->failed) out->len--; /* the NUL stays behind the end */
}

/* True when `pair` is one whole label of `labels`; commas inside of quotes separate nothing. */
static bool labels_have(const char *labels, const char *pair)
{
    size_t pair_len = strlen(pair);
    while (*labels != '\0') {
        size_t n = 0;
        for (bool quoted = false; labels[n] != '\0' && (quoted || labels[n] != ','); n++) {
            if (labels[n] == '\\' && labels[n + 1] != '\0')
                n++;
            else if (labels[n] == '"')
                quoted = !quoted;
        }
        if (n == pair_len && memcmp(labels, pair, n) == 0) return true;
        labels += n;
        if (*labels == ',') labels++;
    }
    return false;
}

void metrics_drop(struct metrics *metrics, const char *label)
{
    pthread_mutex_lock(&metrics->lists);
    for (struct family *f = metrics->first; f != NULL; f = f->next) {
        struct series **link = &f->first;
        while (*link != NULL) {
            struct series *s = *link;
            if (!labels_have(s->labels, label)) {
                link = &s->next;
                continue;
            }
            *link = s->next;
            f->series_count--;
            series_free(s);
        }
        f->last_next = link;
    }
    pthread_mutex_unlock(&metrics->lists);
}

/* ---- histograms ---- */

void metric_observe_ns(struct metric_histogram *h, uint64_t ns)
{
    uint32_t i = 0;
    while (i < BUCKET_COUNT && ns > BUCKET_NS[i]) i++;
    atomic_fetch_add_explicit(&h->buckets[i], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&h->sum_ns, ns, memory_order_relaxed);
}

uint64_t metric_quantile_ns(struct metric_histogram *h, double q)
{
    uint64_t counts[BUCKET_COUNT + 1], total = 0, below = 0;
    for (uint32_t i = 0; i <= BUCKET_COUNT; i++) {
        counts[i] = atomic_load_explicit(&h->buckets[i], memory_order_relaxed);
        total += counts[i];
    }
    if (total == 0) return 0;
    double rank = q <= 0 ? 0 : q >= 1 ? (double)total : q * (double)total;
    for (uint32_t i = 0; i < BUCKET_COUNT; i++) {
        if (counts[i] > 0 && (double)(below + counts[i]) >= rank) {
            uint64_t low = i == 0 ? 0 : BUCKET_NS[i - 1];
            double part = (rank - (double)below) / (double)counts[i]; /* spread evenly inside the bucket */
            return low + (uint64_t)(part * (double)(BUCKET_NS[i] - low));
        }
        below += counts[i];
    }
    return BUCKET_NS[BUCKET_COUNT - 1];
}

/* ---- rendering ---- */

void metrics_add_collector(struct metrics *metrics, void (*collect)(void *arg), void *arg)
{
    pthread_mutex_lock(&metrics->lists);
    CHECK(metrics->collector_count < COLLECTORS_MAX);
    metrics->collectors[metrics->collector_count++] = (struct collector){ .collect = collect, .arg = arg };
    pthread_mutex_unlock(&metrics->lists);
}

static void render_help(const struct family *f, struct buf *out)
{
    buf_printf(out, "# HELP %s ", f->name);
    for (const char *p = f->help; *p != '\0'; p++) {
        if (*p == '\n')
            buf_append(out, "\\n", 2);
        else if (*p == '\\')
            buf_append(out, "\\\\", 2);
        else
            buf_append(out, p, 1);
    }
    buf_printf(out, "\n# TYPE %s %s\n", f->name, TYPE_NAMES[f->type]);
}

/* "name_suffix{labels,extra} " */
static void render_name(const struct family *f, const char *suffix, const char *labels, const char *le,
        struct buf *out)
{
    buf_printf(out, "%s%s", f->name, suffix);
    if (labels[0] != '\0' || le != NULL) {
        buf_printf(out, "{%s", labels);
        if (le != NULL) buf_printf(out, "%sle=\"%s\"", labels[0] != '\0' ? "," : "", le);
        buf_append(out, "}", 1);
    }
    buf_append(out, " ", 1);
}

/* _count is the sum of the buckets as they were read, so it always equals the +Inf bucket. */
static void render_histogram(const struct family *f, struct series *s, struct buf *out)
{
    uint64_t count = 0;
    for (uint32_t i = 0; i <= BUCKET_COUNT; i++) {
        count += atomic_load_explicit(&s->histogram.buckets[i], memory_order_relaxed);
        render_name(f, "_bucket", s->labels, BUCKET_LABELS[i], out);
        buf_printf(out, "%llu\n", (unsigned long long)count);
    }
    uint64_t sum_ns = atomic_load_explicit(&s->histogram.sum_ns, memory_order_relaxed);
    render_name(f, "_sum", s->labels, NULL, out);
    buf_printf(out, "%llu.%09llu\n", (unsigned long long)(sum_ns / 1000000000u),
            (unsigned long long)(sum_ns % 1000000000u));
    render_name(f, "_count", s->labels, NULL, out);
    buf_printf(out, "%llu\n", (unsigned long long)count);
}

static void render_series(const struct family *f, struct series *s, struct buf *out)
{
    switch (f->type) {
    case TYPE_COUNTER:
        render_name(f, "", s->labels, NULL, out);
        buf_printf(out, "%llu\n",
                (unsigned long long)atomic_load_explicit(&s->counter.value, memory_order_relaxed));
        break;
    case TYPE_GAUGE:
        render_name(f, "", s->labels, NULL, out);
        buf_printf(out, "%lld\n", (long long)atomic_load_explicit(&s->gauge.value, memory_order_relaxed));
        break;
    case TYPE_HISTOGRAM: render_histogram(f, s, out); break;
    }
}

void metrics_render(struct metrics *metrics, struct buf *out)
{
    struct collector collectors[COLLECTORS_MAX];
    pthread_mutex_lock(&metrics->rendering);
    pthread_mutex_lock(&metrics->lists);
    uint32_t collector_count = metrics->collector_count;
    memcpy(collectors, metrics->collectors, collector_count * sizeof collectors[0]);
    pthread_mutex_unlock(&metrics->lists);
    for (uint32_t i = 0; i < collector_count; i++) collectors[i].collect(collectors[i].arg);

    pthread_mutex_lock(&metrics->lists);
    for (struct family *f = metrics->first; f != NULL; f = f->next) {
        if (f->first == NULL) continue;
        render_help(f, out);
        for (struct series *s = f->first; s != NULL; s = s->next) render_series(f, s, out);
    }
    pthread_mutex_unlock(&metrics->lists);
    pthread_mutex_unlock(&metrics->rendering);
}
