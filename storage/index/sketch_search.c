/* Searching a tail sketch: leaders by their codes, the nearest buckets by theirs, the nearest candidates by
 * their rows.
 *
 * Effort is the number of rows rescored; the number of leaders that are probed follows from it
 * (full_probes), so that calibration has one curve to measure. Exact where few rows can pass, where no effort reaches the
 * target, and where buckets held fewer than k that pass. Threads: readers only, beside one writer; what may
 * be read when is in sketch_impl.h. */
#include <string.h>

#include "common/check.h"
#include "common/mem.h"
#include "storage/index/sketch_impl.h"

#define EXACT_ROWS 2000 /* fewer rows than this that can pass are scored one by one */
#define EFFORT_DEFAULT 200
#define POLL_GROUPS 1024
#define POLL_TESTED                                                                                          \
    256 /* candidates that were asked about: what lives or passes may be dear to tell, and few may */
#define POLL_ROWS 1024
/* What plans cost, at 128-d on the machine of README.md: only their proportion matters. */
#define GATHER_NS 60.0
#define SCAN_NS 1.5

struct sketch_scratch {
    float *z;      /* [padded] the rotated query */
    uint8_t *lut;  /* [padded * 4] */
    uint8_t *open; /* [padded * 4] codes of a group that is being filled */
    struct code_query code;
    float estimates[SKETCH_LEADERS_MAX];
    struct index_hit probes[SKETCH_LEADERS_MAX];
    uint64_t *near;     /* [2 * near_cap] candidates: bits of the estimate << 32 | slot */
    const float **rows; /* [near_cap] */
    uint32_t near_cap;
};

void sketch_scratch_free(struct sketch_scratch *scratch)
{
    if (scratch == NULL) return;
    mem_free(scratch->z);
    mem_free(scratch->lut);
    mem_free(scratch->open);
    mem_free(scratch->near);
    mem_free(scratch->rows);
    mem_free(scratch);
}

struct sketch_scratch *sketch_scratch_new(const struct sketch *s)
{
    struct sketch_scratch *scratch = mem_calloc(1, sizeof *scratch);
    if (scratch == NULL) return NULL;
    scratch->z = mem_alloc_aligned(64, s->padded * sizeof(float));
    scratch->lut = mem_alloc_aligned(64, (size_t)s->padded * 4);
    scratch->open = mem_alloc_aligned(64, (size_t)s->padded * 4);
    if (scratch->z != NULL && scratch->lut != NULL && scratch->open != NULL) return scratch;
    sketch_scratch_free(scratch);
    return NULL;
}

static enum omen_err near_reserve(struct sketch_scratch *scratch, uint32_t count)
{
    if (scratch->near_cap >= count) return OMEN_OK;
    mem_free(scratch->near);
    mem_free(scratch->rows);
    scratch->near_cap = 0;
    scratch->near = mem_alloc(2 * (size_t)count * sizeof *scratch->near);
    scratch->rows = mem_alloc(count * sizeof *scratch->rows);
    if (scratch->near == NULL || scratch->rows == NULL) return OMEN_ENOMEM;
    scratch->near_cap = count;
    return OMEN_OK;
}

/* One search, what it looks at and what it has. */
struct walk {
    const struct sketch *s;
    const struct sketch_search *search;
    struct sketch_scratch *scratch;
    uint32_t end;                   /* slots below it */
    float z_squared;                /* |z|^2 */
    float offset;                   /* ip: what keeps estimates above 0 */
    uint32_t groups;                /* passed since the last poll */
    uint32_t tested, passed;        /* near candidates that were looked at, and that may be returned */
    uint32_t polled;                /* `tested` at the last poll */
    uint32_t near_count, near_want; /* candidates in scratch->near, at most 2 * near_want */
    float near_bound;               /* no candidate of the nearest near_want is farther */
    struct index_cost *cost;
};

static bool slot_passes(const struct sketch_search *search, uint32_t slot)
{
    if (search->base.filter != NULL && !index_bit(search->base.filter, slot)) return false;
    return search->alive == NULL || search->alive(search->alive_arg, slot);
}

/* ---- the nearest candidates ---- */

static void swap_u64(uint64_t *a, uint64_t *b)
{
    uint64_t t = *a;
    *a = *b;
    *b = t;
}

/* Move the `want` smallest of distinct keys to the front, in any order (Hoare's selection, median of three). */
static void select_smallest(uint64_t *keys, uint32_t count, uint32_t want)
{
    uint32_t low = 0, high = count;
    while (high - low > 1 && want > low && want < high) {
        uint64_t *first = &keys[low], *middle = &keys[low + (high - low) / 2], *last = &keys[high - 1];
        if (*middle < *first) swap_u64(middle, first);
        if (*last < *first) swap_u64(last, first);
        if (*last < *middle) swap_u64(last, middle);
        uint64_t pivot = *middle;
        uint32_t i = low, j = high - 1;
        for (;;) {
            while (keys[i] < pivot) i++;
            while (keys[j] > pivot) j--;
            if (i >= j) break;
            swap_u64(&keys[i], &keys[j]);
            i++;
            j--;
        }
        if (want <= i)
            high = i;
        else
            low = i;
    }
}

/* A buffer of twice as many as are wanted, cut in half when it is full: the bound is looser than a heap's, and
 * a candidate costs an eighth (the heap was a third of a search). */
static void near_cut(struct walk *w)
{
    if (w->near_count <= w->near_want) return;
    uint64_t *keys = w->scratch->near, largest = 0;
    select_smallest(keys, w->near_count, w->near_want);
    w->near_count = w->near_want;
    for (uint32_t i = 0; i < w->near_count; i++) largest = keys[i] > largest ? keys[i] : largest;
    uint32_t bits = (uint32_t)(largest >> 32);
    memcpy(&w->near_bound, &bits, sizeof bits);
}

static inline void near_push(struct walk *w, float estimate, uint32_t slot)
{
    uint32_t bits; /* of a float >= 0: they order as the floats do */
    estimate = estimate > 0 ? estimate : 0;
    memcpy(&bits, &estimate, sizeof bits);
    w->scratch->near[w->near_count++] = (uint64_t)bits << 32 | slot;
    if (w->near_count == 2 * w->near_want) near_cut(w);
}

/* ---- exactly ---- */

static void offer(const struct sketch_search *search, struct index_heap *heap, float d, uint32_t slot)
{
    if (search->base.has_distance_max && !(d <= search->base.distance_max)) return;
    if (d > index_heap_bound(heap)) return;
    index_heap_push(heap, (struct index_hit){ d, slot });
}

static enum omen_err search_exact(const struct walk *w, struct index_hit *hits_out, uint32_t *count_out)
{
    const struct index_search *base = &w->search->base;
    struct index_heap heap = { hits_out, base->k, 0 };
    for (uint32_t first = 0; first < w->end; first += 64) {
        uint32_t n = w->end - first < 64 ? w->end - first : 64;
        uint64_t word = n == 64 ? UINT64_MAX : (UINT64_C(1) << n) - 1;
        if (base->filter != NULL) word &= base->filter[first / 64];
        if (first % POLL_ROWS == 0 && base->stop != NULL && base->stop(base->stop_arg)) return OMEN_EDEADLINE;
        for (; word != 0; word &= word - 1) {
            uint32_t slot = first + (uint32_t)__builtin_ctzll(word);
            if (w->search->alive != NULL && !w->search->alive(w->search->alive_arg, slot)) continue;
            w->cost->distances++;
            offer(w->search, &heap, sketch_distance(w->s, base->query, w->s->row(w->s->row_arg, slot)), slot);
        }
    }
    index_heap_sort(&heap);
    *count_out = heap.count;
    return OMEN_OK;
}

/* The first SKETCH_PLAIN_ROWS rows have no codes: their distance itself stands for the estimate. */
static void plain_scan(struct walk *w)
{
    uint32_t end = w->end < SKETCH_PLAIN_ROWS ? w->end : SKETCH_PLAIN_ROWS;
    float z[CODE_DIM_MAX] __attribute__((aligned(64)));
    for (uint32_t slot = 0; slot < end; slot++) {
        if (!slot_passes(w->search, slot)) continue;
        const float *row = w->s->row(w->s->row_arg, slot);
        float d = sketch_distance(w->s, w->search->base.query, row);
        if (w->s->metric == METRIC_IP) d += w->offset;
        if (w->s->metric == METRIC_COSINE) { /* -dot is not the squared distance that estimates are */
            for (uint32_t i = 0; i < w->s->dim; i++) z[i] = w->search->base.query[i];
            d = kernel_get()->l2sq_f32(z, row, w->s->dim);
        }
        if (d < w->near_bound) near_push(w, d, slot);
    }
    w->cost->distances += end;
}

/* ---- by codes ---- */

/* The codes of a group as they are now: words, because the writer stores words. */
static void open_copy(const uint8_t *codes, uint8_t *out, uint32_t bytes)
{
    for (uint32_t at = 0; at < bytes; at += 8) {
        uint64_t word = atomic_load_explicit((_Atomic uint64_t *)(void *)(uintptr_t)(codes + at),
                memory_order_relaxed);
        memcpy(out + at, &word, sizeof word);
    }
}

static void group_scan(struct walk *w, const uint8_t *group, uint32_t count, float base)
{
    const struct sketch_layout *layout = &w->s->layout;
    const uint32_t *slots = (const uint32_t *)(const void *)(group + layout->slots);
    uint16_t f16[2 * CODE_GROUP];
    float scales[2], estimates[CODE_GROUP];
    const uint8_t *codes = group;
    struct code_factors factors;
    if (count == CODE_GROUP) {
        const uint16_t *f = (const uint16_t *)(const void *)(group + layout->f16);
        const float *scale = (const float *)(const void *)(group + layout->scales);
        factors = (struct code_factors){ f, f + CODE_GROUP, scale[0], scale[1] };
    } else {
        sketch_factors_pack((const float *)(const void *)(group + layout->f32), count, f16, scales);
        open_copy(group, w->scratch->open, w->s->padded * 4);
        codes = w->scratch->open;
        factors = (struct code_factors){ f16, f16 + CODE_GROUP, scales[0], scales[1] };
    }
    uint32_t mask = code_kernel_get()->estimate_32(&w->scratch->code, codes, &factors, base, w->near_bound,
            estimates);
    w->cost->estimates += count;
    for (; mask != 0; mask &= mask - 1) {
        uint32_t i = (uint32_t)__builtin_ctz(mask);
        if (slots[i] >= w->end) continue;
        w->tested++;
        if (!slot_passes(w->search, slots[i])) continue;
        w->passed++;
        near_push(w, estimates[i], slots[i]);
    }
}

static inline void group_prefetch(const struct sketch *s, const uint8_t *group)
{
    for (uint32_t at = 0; at < s->layout.slots; at += 64) __builtin_prefetch(group + at, 0, 3);
}

static enum omen_err bucket_scan(struct walk *w, const struct sketch_bucket *bucket, float base)
{
    const struct index_search *search = &w->search->base;
    uint32_t count = atomic_load_explicit(&bucket->count, memory_order_acquire);
    struct sketch_cursor cursor = { bucket, NULL, 0, NULL };
    for (uint32_t first = 0; first < count; first += CODE_GROUP) {
        sketch_cursor_next(w->s, &cursor);
        if (cursor.in_block < cursor.block->groups)
            group_prefetch(w->s, cursor.group + w->s->layout.group_bytes);
        if (((const uint32_t *)(const void *)(cursor.group + w->s->layout.slots))[0] >= w->end) break;
        group_scan(w, cursor.group, count - first < CODE_GROUP ? count - first : CODE_GROUP, base);
        if (++w->groups % POLL_GROUPS != 0 && w->tested - w->polled < POLL_TESTED) continue;
        w->polled = w->tested;
        if (search->stop != NULL && search->stop(search->stop_arg)) return OMEN_EDEADLINE;
    }
    return OMEN_OK;
}

static inline void next_prefetch(const struct sketch *s, const struct sketch_bucket *bucket)
{
    if (atomic_load_explicit(&bucket->count, memory_order_acquire) == 0) return;
    group_prefetch(s, (const uint8_t *)bucket->first + SKETCH_BLOCK_HEAD);
}

/* Probes of a generation that go with so many rescored rows, `full` of them with 1,024 leaders. */
static uint32_t probes_of(const struct sketch_generation *g, float full)
{
    float probes = ceilf(full * sqrtf((float)g->leader_count / SKETCH_LEADERS_MAX));
    return probes < (float)g->leader_count ? (uint32_t)probes : g->leader_count;
}

/* The nearest leaders of a generation, nearest first. */
static enum omen_err generation_scan(struct walk *w, const struct sketch_generation *g, float full)
{
    struct sketch_scratch *scratch = w->scratch;
    bool ip = w->s->metric == METRIC_IP;
    if (g->first_slot >= w->end) return OMEN_OK;
    uint32_t probes = probes_of(g, full);
    struct index_heap heap = { scratch->probes, probes, 0 };
    sketch_leaders(g, &scratch->code, w->z_squared, ip, scratch->estimates);
    w->cost->estimates += g->leader_count;
    for (uint32_t i = 0; i < g->leader_count; i++)
        if (scratch->estimates[i] < index_heap_bound(&heap))
            index_heap_push(&heap, (struct index_hit){ scratch->estimates[i], i });
    index_heap_sort(&heap);
    for (uint32_t i = 0; i < heap.count; i++) {
        uint32_t leader = heap.hits[i].slot;
        if (i + 1 < heap.count) next_prefetch(w->s, &g->buckets[heap.hits[i + 1].slot]);
        const float *centre = g->leaders + (size_t)leader * w->s->padded;
        float base = ip ? w->offset - kernel_get()->dot_f32(scratch->z, centre, w->s->padded)
                        : kernel_get()->l2sq_f32(scratch->z, centre, w->s->padded);
        enum omen_err rc = bucket_scan(w, &g->buckets[leader], base);
        if (rc != OMEN_OK) return rc;
    }
    return OMEN_OK;
}

/* Candidates -> their rows' distances. Addresses first, so that the rows are on their way. */
static void rescore(struct walk *w, struct index_hit *hits_out, uint32_t *count_out)
{
    struct index_heap heap = { hits_out, w->search->base.k, 0 };
    const uint64_t *near = w->scratch->near;
    near_cut(w);
    for (uint32_t i = 0; i < w->near_count; i++) {
        w->scratch->rows[i] = w->s->row(w->s->row_arg, (uint32_t)near[i]);
        for (uint32_t at = 0; at < w->s->dim && at < 512; at += 16)
            __builtin_prefetch(w->scratch->rows[i] + at, 0, 3);
    }
    for (uint32_t i = 0; i < w->near_count; i++)
        offer(w->search, &heap, sketch_distance(w->s, w->search->base.query, w->scratch->rows[i]),
                (uint32_t)near[i]);
    w->cost->rescored += w->near_count;
    index_heap_sort(&heap);
    *count_out = heap.count;
}

/* Probes among 1,024 leaders that go with so many rescored rows: on sift-photos-1m the best of 0.1 .. 1. */
static float full_probes(uint32_t effort) { return 0.3f * (float)effort; }

static enum omen_err probe(struct walk *w, uint32_t effort, float widen)
{
    enum omen_err rc = OMEN_OK;
    w->near_want = effort;
    w->near_count = w->tested = w->passed = w->polled = 0;
    w->near_bound = INFINITY;
    uint32_t generations = atomic_load_explicit(&w->s->generation_count, memory_order_acquire);
    for (uint32_t i = generations; rc == OMEN_OK && i > 0; i--) /* the largest first: its candidates bound */
        rc = generation_scan(w, w->s->generations[i - 1], full_probes(effort) * widen);
    if (rc == OMEN_OK) plain_scan(w);
    return rc;
}

#define WIDEN_AGAIN 1.5f /* the share that passes near the query is worth another pass from here on */

/* `widen` is how many more leaders must be probed because not every row passes. The share that passes near the
 * query, which alone matters, is seen only by looking: when it is less than was thought (the filter goes
 * against the query, or many rows are dead) all is done once more. */
static enum omen_err search_codes(struct walk *w, uint32_t effort, float widen, struct index_hit *hits_out,
        uint32_t *count_out)
{
    struct sketch_scratch *scratch = w->scratch;
    uint32_t bits;
    enum omen_err rc = near_reserve(scratch, effort);
    if (rc != OMEN_OK) return rc;
    sketch_rotate(w->s, w->search->base.query, scratch->z);
    rabitq_prepare(scratch->z, w->s->padded, scratch->lut, &scratch->code);
    w->z_squared = kernel_get()->dot_f32(scratch->z, scratch->z, w->s->padded);
    bits = atomic_load_explicit(&w->s->norm_max_bits, memory_order_relaxed);
    memcpy(&w->offset, &bits, sizeof bits);
    w->offset *= sqrtf(w->z_squared);
    rc = probe(w, effort, widen);
    float seen = w->passed == 0 ? SKETCH_LEADERS_MAX : (float)w->tested / (float)w->passed;
    if (rc == OMEN_OK && seen > WIDEN_AGAIN * widen) rc = probe(w, effort, seen);
    if (rc != OMEN_OK) return rc;
    w->cost->effort += effort;
    if (w->near_count < w->search->base.k) return search_exact(w, hits_out, count_out);
    rescore(w, hits_out, count_out);
    return OMEN_OK;
}

static bool search_valid(const struct sketch *s, const struct sketch_search *search)
{
    const struct index_search *base = &search->base;
    uint32_t position;
    return base->k > 0 && base->k <= OMEN_K_MAX && base->effort <= INDEX_EFFORT_MAX &&
            base->recall_target >= 0 && base->recall_target <= 1 &&
            !(base->has_distance_max && isnan(base->distance_max)) &&
            !(base->filter != NULL && search->slot_end > INDEX_SLOTS_MAX) &&
            vector_finite(base->query, s->dim, &position);
}

enum omen_err sketch_search(const struct sketch *s, const struct sketch_search *search,
        struct sketch_scratch *scratch, struct index_hit *hits_out, uint32_t *count_out,
        struct index_cost *cost)
{
    struct index_cost unasked = { 0 };
    const struct index_search *base = &search->base;
    *count_out = 0;
    if (!search_valid(s, search)) return OMEN_EINVAL;
    struct walk w = { .s = s,
        .search = search,
        .scratch = scratch,
        .end = sketch_count(s),
        .cost = cost == NULL ? &unasked : cost };
    if (search->slot_end < w.end) w.end = search->slot_end;
    if (w.end == 0) return OMEN_OK;
    uint64_t passing = base->filter == NULL ? w.end
            : base->filter_count != 0       ? base->filter_count
                                            : index_bits_count(base->filter, w.end);
    if (passing <= EXACT_ROWS || base->k >= passing / 4) return search_exact(&w, hits_out, count_out);
    uint32_t effort = base->effort;
    if (effort == 0)
        effort = sketch_effort(s, base->k, base->recall_target > 0 ? base->recall_target : s->recall_target);
    if (effort == 0) effort = EFFORT_DEFAULT;
    if (effort == SKETCH_EFFORT_SCAN) return search_exact(&w, hits_out, count_out);
    if (effort < base->k) effort = base->k;
    float widen = (float)w.end / (float)passing;
    if (widen > 1) { /* enough of the candidates must pass, or the exact scan costs less */
        double share = fmin(1, full_probes(effort) * widen);
        if ((double)passing * GATHER_NS <= share * w.end * SCAN_NS + effort * GATHER_NS)
            return search_exact(&w, hits_out, count_out);
    }
    return search_codes(&w, effort, widen, hits_out, count_out);
}
