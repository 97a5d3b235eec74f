/* The reservoir, the comparison and the control loop of recall_meter.h. */
#include "node/recall_meter.h"

#include <math.h>
#include <string.h>

#include "common/check.h"
#include "common/mem.h"

#define TIE 1e-5f /* of a distance: DESIGN 12 */

void recall_meter_init(struct recall_meter *meter, uint64_t seed)
{
    memset(meter, 0, sizeof *meter);
    meter->seed = seed;
    meter->lower_wait_ns = RECALL_LOWER_NS;
    meter->renew_wait_ns = RECALL_RENEW_NS;
    pthread_mutex_init(&meter->lock, NULL);
}

void recall_meter_fini(struct recall_meter *meter)
{
    for (uint32_t i = 0; i < RECALL_SAMPLES_MAX; i++) recall_sample_free(meter->samples[i]);
    pthread_mutex_destroy(&meter->lock);
}

/* ---- samples ---- */

void recall_sample_free(struct recall_sample *sample)
{
    if (sample == NULL) return;
    mem_free((void *)(uintptr_t)sample->params.query);
    mem_free((void *)(uintptr_t)sample->params.filter_doc.data);
    mem_free(sample->rows);
    mem_free(sample);
}

static uint64_t mix(uint64_t v) /* splitmix64 */
{
    v += 0x9e3779b97f4a7c15ull;
    v = (v ^ v >> 30) * 0xbf58476d1ce4e5b9ull;
    v = (v ^ v >> 27) * 0x94d049bb133111ebull;
    return v ^ v >> 31;
}

uint32_t recall_meter_slot(struct recall_meter *meter)
{
    uint32_t n = atomic_fetch_add_explicit(&meter->seen, 1, memory_order_relaxed);
    if (n < RECALL_SAMPLES_MAX) return n;
    uint64_t at = mix(meter->seed ^ n) % ((uint64_t)n + 1);
    return at < RECALL_SAMPLES_MAX ? (uint32_t)at : RECALL_SAMPLES_MAX;
}

static void *copy(const void *data, size_t len)
{
    void *p = mem_alloc(len > 0 ? len : 1);
    if (p != NULL && len > 0) memcpy(p, data, len);
    return p;
}

static struct recall_sample *sample_new(const struct search_params *params, uint32_t dim,
        const struct hit *hits, uint32_t count)
{
    struct recall_sample *s = mem_calloc(1, sizeof *s);
    if (s == NULL) return NULL;
    bool filtered = params->filter_doc.data != NULL;
    s->params = (struct search_params){ .field = params->field,
        .k = params->k,
        .has_score_threshold = params->has_score_threshold,
        .score_threshold = params->score_threshold,
        .exact = true,
        .query = copy(params->query, sizeof(float) * dim) };
    if (filtered)
        s->params.filter_doc = (struct doc){ copy(params->filter_doc.data, params->filter_doc.len),
            params->filter_doc.len };
    s->rows = mem_alloc(sizeof *s->rows * ((size_t)count + 1));
    if (s->params.query == NULL || (filtered && s->params.filter_doc.data == NULL) || s->rows == NULL) {
        recall_sample_free(s);
        return NULL;
    }
    for (uint32_t i = 0; i < count; i++)
        s->rows[i] = (struct recall_row){ point_key_make(hits[i].point.id, hits[i].point.key),
            hits[i].point.version, hits[i].distance };
    s->count = count;
    return s;
}

void recall_meter_keep(struct recall_meter *meter, uint32_t slot, const struct search_params *params,
        uint32_t dim, const struct hit *hits, uint32_t count, uint64_t sequence, uint64_t now_ms,
        uint32_t boost)
{
    if (slot >= RECALL_SAMPLES_MAX || params->k > RECALL_K_MAX) return;
    if (params->filter != NULL && params->filter_doc.data == NULL) return; /* it could not be asked again */
    struct recall_sample *sample = sample_new(params, dim, hits, count);
    if (sample == NULL) return;
    sample->sequence = sequence;
    sample->now_ms = now_ms;
    sample->boost = boost;
    pthread_mutex_lock(&meter->lock);
    struct recall_sample *old = meter->samples[slot];
    meter->samples[slot] = sample;
    pthread_mutex_unlock(&meter->lock);
    recall_sample_free(old);
}

uint32_t recall_meter_kept(struct recall_meter *meter)
{
    uint32_t seen = atomic_load_explicit(&meter->seen, memory_order_relaxed);
    return seen < RECALL_SAMPLES_MAX ? seen : RECALL_SAMPLES_MAX;
}

uint32_t recall_meter_take(struct recall_meter *meter, struct recall_sample **samples_out)
{
    uint32_t count = 0;
    pthread_mutex_lock(&meter->lock);
    for (uint32_t i = 0; i < RECALL_SAMPLES_MAX; i++) {
        if (meter->samples[i] != NULL) samples_out[count++] = meter->samples[i];
        meter->samples[i] = NULL;
    }
    meter->seed = mix(meter->seed);
    atomic_store_explicit(&meter->seen, 0, memory_order_relaxed);
    pthread_mutex_unlock(&meter->lock);
    return count;
}

static bool same_row(const struct recall_row *a, const struct recall_row *b)
{
    return a->version == b->version && point_key_compare(&a->key, &b->key) == 0;
}

static bool has_row(const struct recall_row *rows, uint32_t count, const struct recall_row *row)
{
    for (uint32_t i = 0; i < count; i++)
        if (same_row(&rows[i], row)) return true;
    return false;
}

/* Which hits of the search the exact answer lacks; nearer than what it ends with, they died since. */
static void rows_lacking(const struct recall_sample *s, const struct recall_row *exact, uint32_t count,
        bool lacking[RECALL_K_MAX])
{
    for (uint32_t i = 0; i < s->count; i++) lacking[i] = !has_row(exact, count, &s->rows[i]);
}

static uint32_t lacking_before(const struct recall_sample *s, const bool lacking[RECALL_K_MAX],
        float distance)
{
    uint32_t died = 0;
    for (uint32_t i = 0; i < s->count && s->rows[i].distance < distance; i++) died += lacking[i];
    return died;
}

void recall_sample_compare(const struct recall_sample *s, const struct recall_row *exact, uint32_t count,
        uint32_t *found_out, uint32_t *sought_out)
{
    uint32_t both[RECALL_K_MAX], sought = 0, found = 0; /* exact rows that the search could see */
    bool lacking[RECALL_K_MAX];
    CHECK(s->count <= RECALL_K_MAX);
    rows_lacking(s, exact, count, lacking);
    for (uint32_t i = 0; i < count && sought < RECALL_K_MAX; i++)
        if (exact[i].version <= s->sequence) both[sought++] = i;
    while (sought > 0 && sought + lacking_before(s, lacking, exact[both[sought - 1]].distance) > s->params.k)
        sought--;
    *found_out = *sought_out = sought;
    if (sought == 0) return;
    float last = exact[both[sought - 1]].distance;
    float near = last + TIE * fabsf(last);
    for (uint32_t i = 0; i < s->count && s->rows[i].distance <= near; i++)
        found += s->rows[i].distance >= last || !lacking[i];
    *found_out = found < sought ? found : sought;
}

/* ---- the loop ---- */

float recall_meter_ask(float target, uint32_t boost, uint32_t *effort_out)
{
    *effort_out = 0;
    if (boost >= RECALL_BOOST_WIDE && boost < RECALL_BOOST_MAX)
        *effort_out = RECALL_WIDE_FIRST << (boost - RECALL_BOOST_WIDE);
    if (boost == 0 || target <= 0 || target >= 1) return target;
    return 1 - (1 - target) / (float)(1u << (boost < RECALL_BOOST_MAX ? boost : RECALL_BOOST_MAX));
}

static struct recall_counts window(const struct recall_meter *meter)
{
    struct recall_counts sum = { 0 };
    for (uint32_t i = 0; i < RECALL_BUCKETS; i++) recall_counts_add(&sum, &meter->buckets[i]);
    return sum;
}

static void forget(struct recall_meter *meter)
{
    memset(meter->buckets, 0, sizeof meter->buckets);
    meter->bucket = 0;
}

static void bucket_add(struct recall_meter *meter, const struct recall_counts *batch)
{
    if (meter->buckets[meter->bucket].searches >= RECALL_BUCKET_SEARCHES) {
        meter->bucket = (meter->bucket + 1) % RECALL_BUCKETS;
        meter->buckets[meter->bucket] = (struct recall_counts){ 0 };
    }
    recall_counts_add(&meter->buckets[meter->bucket], batch);
    meter->compared += batch->searches;
}

static uint64_t doubled(uint64_t ns, uint64_t max) { return 2 * ns < max ? 2 * ns : max; }

static void raise(struct recall_meter *meter, float target, uint64_t now_ns, struct recall_verdict *v)
{
    uint32_t steps = 1; /* as many as the misses are too many times two */
    for (double missed = 1 - v->estimate.recall; missed > 2 * (1 - (double)target) && steps < 3; missed /= 2)
        steps++;
    v->step = RECALL_RAISE;
    v->boost = v->boost + steps < RECALL_BOOST_MAX ? v->boost + steps : RECALL_BOOST_MAX;
    if (meter->lowered) meter->lower_wait_ns = doubled(meter->lower_wait_ns, RECALL_LOWER_NS_MAX);
    meter->lowered = false;
    meter->lower_ns = now_ns + meter->lower_wait_ns;
    if (v->boost < 2 || now_ns < meter->renew_ns) return;
    v->renew = true;
    meter->renew_ns = now_ns + meter->renew_wait_ns;
    meter->renew_wait_ns = doubled(meter->renew_wait_ns, RECALL_RENEW_NS_MAX);
}

struct recall_verdict recall_meter_told(struct recall_meter *meter, const struct recall_counts *batch,
        float target, uint64_t segments, uint64_t now_ns)
{
    pthread_mutex_lock(&meter->lock);
    struct recall_verdict v = { .boost = atomic_load(&meter->boost) };
    if (segments != meter->segments) { /* they were calibrated anew: less may do */
        meter->segments = segments;
        meter->lower_ns = now_ns;
        meter->lower_wait_ns = RECALL_LOWER_NS;
    }
    bucket_add(meter, batch);
    struct recall_counts sum = window(meter);
    v.estimate = recall_estimate(&sum);
    bool below = v.estimate.high<(double)target, above = v.estimate.low>(double) target;
    if (below && sum.searches >= RECALL_RAISE_SEARCHES && v.boost < RECALL_BOOST_MAX) {
        raise(meter, target, now_ns, &v);
    } else if (above && sum.searches >= RECALL_LOWER_SEARCHES && v.boost > 0 && now_ns >= meter->lower_ns) {
        v.step = RECALL_LOWER;
        v.boost--;
        meter->lowered = true;
        meter->lower_ns = now_ns + meter->lower_wait_ns;
    }
    if (v.step != RECALL_STAY) forget(meter);
    atomic_store(&meter->boost, v.boost);
    pthread_mutex_unlock(&meter->lock);
    return v;
}

void recall_meter_read(struct recall_meter *meter, struct recall_counts *window_out, uint64_t *compared_out)
{
    pthread_mutex_lock(&meter->lock);
    *window_out = window(meter);
    *compared_out = meter->compared;
    pthread_mutex_unlock(&meter->lock);
}
