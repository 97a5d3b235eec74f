/* The writer's side of the tail sketch: generations of leaders, codes, buckets; see sketch.h and
 * sketch_impl.h.
 *
 * A row's code is relative to its leader (IVF of RaBitQ codes, Gao & Long 2024), so its error is that of the
 * short residual; one table of a query serves all leaders, as rabitq.h says. Under ip the estimate is
 *     -<q, z> = -<q, c> - <q, r>,   <q, r> ~ (|r|^2 / sum|r|) (sum(+-q) - sum(+-c)) + <c, r>
 * with the same code and other factors. Determinism: codes follow from rows and seed. */
#include "storage/index/sketch.h"

#include <string.h>

#include "common/check.h"
#include "common/mem.h"
#include "storage/index/sealed_impl.h"
#include "storage/index/sketch_impl.h"

#define GENERATION_GROWTH 8 /* rows between two generations */
#define LEADERS_FIRST 16    /* four times as many in each generation */
#define LEADERS_EXACT 64    /* up to so many are compared in full */
#define LEADER_CANDIDATES 8 /* by their codes; the nearest of these by its full distance */

/* ---- life ---- */

static void layout_init(struct sketch_layout *layout, uint32_t padded)
{
    layout->f16 = padded * 4;
    layout->scales = layout->f16 + CODE_GROUP * 4;
    layout->slots = layout->scales + 64;
    layout->f32 = layout->slots + CODE_GROUP * 4;
    layout->group_bytes = layout->f32 + CODE_GROUP * 8;
}

enum omen_err sketch_new(const struct sketch_params *params, struct sketch **sketch_out, struct err *err)
{
    *sketch_out = NULL;
    if (params->dim == 0 || params->dim > OMEN_DIM_MAX)
        return err_set(err, OMEN_EINVAL, "dim", "dim is %u, allowed are 1..%d", params->dim, OMEN_DIM_MAX);
    if (!(params->recall_target >= 0 && params->recall_target <= 1))
        return err_set(err, OMEN_EINVAL, "recall_target", "recall target is not within 0..1");
    struct sketch *s = mem_calloc(1, sizeof *s);
    if (s == NULL) return err_set(err, OMEN_ENOMEM, NULL, "no memory for a sketch");
    s->dim = params->dim;
    s->metric = params->metric;
    s->recall_target = params->recall_target > 0 ? params->recall_target : 0.95f;
    s->seed = params->seed;
    s->row = params->row;
    s->row_arg = params->row_arg;
    s->next_rows = SKETCH_PLAIN_ROWS;
    rotation_init(&s->rotation, s->dim, s->seed);
    s->padded = s->rotation.padded;
    layout_init(&s->layout, s->padded);
    s->mean = mem_calloc(s->padded, sizeof(float));
    s->z = mem_alloc_aligned(64, s->padded * sizeof(float));
    s->lut = mem_alloc_aligned(64, (size_t)s->padded * 4);
    s->signs = mem_alloc_aligned(64, s->padded / 8);
    if (s->mean == NULL || s->z == NULL || s->lut == NULL || s->signs == NULL) {
        sketch_free(s);
        return err_set(err, OMEN_ENOMEM, NULL, "no memory for a sketch");
    }
    s->memory_bytes = sizeof *s + (uint64_t)s->padded * 12 + s->padded / 8;
    *sketch_out = s;
    return OMEN_OK;
}

static void generation_free(struct sketch_generation *generation)
{
    if (generation == NULL) return;
    mem_free(generation->leaders);
    mem_free(generation->norms);
    mem_free(generation->codes);
    mem_free(generation->scales);
    mem_free(generation->buckets);
    mem_free(generation);
}

void sketch_free(struct sketch *s)
{
    if (s == NULL) return;
    for (uint32_t i = 0; i < SKETCH_GENERATIONS; i++) generation_free(s->generations[i]);
    for (struct sketch_slab *slab = s->slabs, *next; slab != NULL; slab = next) {
        next = slab->next;
        sealed_pages_free(slab, slab->bytes);
    }
    mem_free(s->mean);
    mem_free(s->z);
    mem_free(s->lut);
    mem_free(s->signs);
    mem_free(s);
}

uint32_t sketch_count(const struct sketch *s)
{
    return atomic_load_explicit(&s->count, memory_order_acquire);
}

void sketch_rotate(const struct sketch *s, const float *vector, float *out)
{
    for (uint32_t i = 0; i < s->dim; i++) out[i] = vector[i] - s->mean[i];
    memset(out + s->dim, 0, (s->padded - s->dim) * sizeof(float));
    rotation_apply(&s->rotation, out);
}

/* ---- generations ---- */

/* The centre of the plain rows; under ip none, because -dot is not what it was after a shift. */
static void mean_measure(struct sketch *s, uint32_t count)
{
    if (s->metric == METRIC_IP) return;
    for (uint32_t slot = 0; slot < count; slot++) {
        const float *row = s->row(s->row_arg, slot);
        for (uint32_t i = 0; i < s->dim; i++) s->mean[i] += row[i] / (float)count;
    }
}

static struct sketch_generation *generation_alloc(const struct sketch *s, uint32_t leaders)
{
    struct sketch_generation *g = mem_calloc(1, sizeof *g);
    uint32_t groups = (leaders + CODE_GROUP - 1) / CODE_GROUP;
    if (g == NULL) return NULL;
    g->leader_count = leaders;
    g->leaders = mem_alloc_aligned(64, (size_t)leaders * s->padded * sizeof(float));
    g->norms = mem_alloc(leaders * sizeof(float));
    g->codes = mem_alloc_aligned(64, groups * (rabitq_codes_bytes(s->padded) + CODE_GROUP * 4));
    g->scales = mem_alloc(groups * 2 * sizeof(float));
    g->buckets = mem_calloc(leaders, sizeof *g->buckets);
    if (g->leaders != NULL && g->norms != NULL && g->codes != NULL && g->scales != NULL && g->buckets != NULL)
        return g;
    generation_free(g);
    return NULL;
}

/* Leaders are rows, evenly from the older half of all: the newest rows may be queries of a calibration, and
 * one that leads a bucket would lie. */
static enum omen_err generation_begin(struct sketch *s, uint32_t rows)
{
    uint32_t index = s->generation_count, leaders = LEADERS_FIRST << (2 * index);
    if (leaders > SKETCH_LEADERS_MAX) leaders = SKETCH_LEADERS_MAX;
    struct sketch_generation *g = generation_alloc(s, leaders);
    uint8_t *scratch = mem_alloc(CODE_GROUP * (size_t)s->padded / 8);
    if (g == NULL || scratch == NULL) {
        generation_free(g);
        mem_free(scratch);
        return OMEN_ENOMEM;
    }
    if (index == 0) mean_measure(s, rows);
    g->first_slot = rows;
    for (uint32_t i = 0; i < leaders; i++) {
        float *leader = g->leaders + (size_t)i * s->padded;
        uint32_t slot = (uint32_t)((uint64_t)i * (rows / 2) / leaders);
        sketch_rotate(s, s->row(s->row_arg, slot), leader);
        g->norms[i] = kernel_get()->dot_f32(leader, leader, s->padded);
    }
    size_t group_bytes = rabitq_codes_bytes(s->padded) + CODE_GROUP * 4;
    for (uint32_t first = 0; first < leaders; first += CODE_GROUP) {
        const float *z[CODE_GROUP];
        uint32_t n = leaders - first < CODE_GROUP ? leaders - first : CODE_GROUP;
        for (uint32_t i = 0; i < n; i++) z[i] = g->leaders + (size_t)(first + i) * s->padded;
        uint8_t *codes = g->codes + first / CODE_GROUP * group_bytes;
        uint16_t *f = (uint16_t *)(void *)(codes + rabitq_codes_bytes(s->padded));
        float *scales = g->scales + first / CODE_GROUP * 2;
        rabitq_encode(z, n, NULL, s->padded, scratch,
                &(struct rabitq_group){ codes, f, f + CODE_GROUP, &scales[0], &scales[1] });
    }
    mem_free(scratch);
    s->memory_bytes += sizeof *g + (uint64_t)leaders * (s->padded * 4 + sizeof(float) + sizeof *g->buckets) +
            (leaders + CODE_GROUP - 1) / CODE_GROUP * (group_bytes + 8);
    s->generations[index] = g;
    s->next_rows = index + 1 == SKETCH_GENERATIONS ? UINT32_MAX : rows * GENERATION_GROWTH;
    atomic_store_explicit(&s->generation_count, index + 1, memory_order_release);
    return OMEN_OK;
}

void sketch_leaders(const struct sketch_generation *g, const struct code_query *code, float base, bool ip,
        float *estimates_out)
{
    size_t codes_bytes = rabitq_codes_bytes(code->dim);
    for (uint32_t first = 0; first < g->leader_count; first += CODE_GROUP) {
        const uint8_t *codes = g->codes + first / CODE_GROUP * (codes_bytes + CODE_GROUP * 4);
        const uint16_t *f = (const uint16_t *)(const void *)(codes + codes_bytes);
        const float *scales = g->scales + first / CODE_GROUP * 2;
        struct code_factors factors = { f, f + CODE_GROUP, scales[0], scales[1] };
        (void)code_kernel_get()->estimate_32(code, codes, &factors, base, INFINITY, estimates_out + first);
    }
    for (uint32_t i = 0; ip && i < g->leader_count; i++) estimates_out[i] -= g->norms[i];
}

/* ---- rows ---- */

static uint32_t nearest_of(const struct sketch *s, const struct sketch_generation *g, const uint32_t *leaders,
        uint32_t count)
{
    float best = INFINITY;
    uint32_t nearest = leaders == NULL ? 0 : leaders[0];
    for (uint32_t i = 0; i < count; i++) {
        uint32_t leader = leaders == NULL ? i : leaders[i];
        float d = kernel_get()->l2sq_f32(s->z, g->leaders + (size_t)leader * s->padded, s->padded);
        if (!(d < best)) continue;
        best = d;
        nearest = leader;
    }
    return nearest;
}

/* The leader of s->z: the nearest of a few that are nearest by their codes. */
static uint32_t leader_of(struct sketch *s, const struct sketch_generation *g)
{
    if (g->leader_count <= LEADERS_EXACT) return nearest_of(s, g, NULL, g->leader_count);
    float estimates[SKETCH_LEADERS_MAX];
    struct code_query code;
    struct index_hit hits[LEADER_CANDIDATES];
    struct index_heap heap = { hits, LEADER_CANDIDATES, 0 };
    uint32_t leaders[LEADER_CANDIDATES];
    rabitq_prepare(s->z, s->padded, s->lut, &code);
    sketch_leaders(g, &code, kernel_get()->dot_f32(s->z, s->z, s->padded), false, estimates);
    for (uint32_t i = 0; i < g->leader_count; i++)
        if (estimates[i] < index_heap_bound(&heap))
            index_heap_push(&heap, (struct index_hit){ estimates[i], i });
    for (uint32_t i = 0; i < heap.count; i++) leaders[i] = hits[i].slot;
    return heap.count == 0 ? 0 : nearest_of(s, g, leaders, heap.count);
}

/* Memory for a block, zeroed, 64-byte aligned, out of huge pages: a search jumps from block to block, and with
 * small pages every jump was a miss of the TLB too. */
static struct sketch_block *block_alloc(struct sketch *s, size_t bytes)
{
    if (s->slabs == NULL || s->slabs->bytes - s->slab_used < bytes) {
        size_t mapped;
        struct sketch_slab *slab = sealed_pages_new(bytes + 64, &mapped); /* at least one huge page */
        if (slab == NULL) return NULL;
        slab->next = s->slabs;
        slab->bytes = mapped;
        s->slabs = slab;
        s->slab_used = 64;
        atomic_fetch_add_explicit(&s->memory_bytes, mapped, memory_order_relaxed);
    }
    struct sketch_block *block = (struct sketch_block *)(void *)((uint8_t *)s->slabs + s->slab_used);
    s->slab_used += bytes;
    return block;
}

/* Where the next row of a bucket goes: its group, with room made for it; NULL: out of memory. */
static uint8_t *group_open(struct sketch *s, struct sketch_bucket *bucket, uint32_t count)
{
    uint32_t group = count / CODE_GROUP;
    struct sketch_block *last = bucket->last;
    if (last != NULL && group - bucket->last_first < last->groups)
        return last->data + (size_t)(group - bucket->last_first) * s->layout.group_bytes;
    uint32_t groups = last == NULL ? 1 : last->groups * 2;
    if (groups > SKETCH_BLOCK_GROUPS_MAX) groups = SKETCH_BLOCK_GROUPS_MAX;
    size_t bytes = SKETCH_BLOCK_HEAD + (size_t)groups * s->layout.group_bytes;
    struct sketch_block *block = block_alloc(s, bytes);
    if (block == NULL) return NULL;
    block->groups = groups;
    block->data = (uint8_t *)block + SKETCH_BLOCK_HEAD;
    if (last == NULL)
        bucket->first = block;
    else
        last->next = block;
    bucket->last_first = group;
    bucket->last = block;
    return block->data;
}

/* Signs [D/8] of row `i` into the interleaved codes of an open group, word by word. */
static void signs_store(uint8_t *codes, const uint8_t *signs, uint32_t bytes, uint32_t i)
{
    uint32_t shift = i % 8 * 8 + (i >= 16 ? 4 : 0), word = i % 16 / 8;
    for (uint32_t j = 0; j < bytes; j++) {
        _Atomic uint64_t *low = (_Atomic uint64_t *)(void *)(codes + (size_t)j * 32) + word, *high = low + 2;
        uint64_t l = atomic_load_explicit(low, memory_order_relaxed) | (uint64_t)(signs[j] & 15) << shift;
        uint64_t h = atomic_load_explicit(high, memory_order_relaxed) | (uint64_t)(signs[j] >> 4) << shift;
        atomic_store_explicit(low, l, memory_order_relaxed);
        atomic_store_explicit(high, h, memory_order_relaxed);
    }
}

/* Code of s->z relative to its leader, and the factors of the estimate. */
static void row_encode(struct sketch *s, const float *leader, float *f_out, float *g_out)
{
    float sums[3], r_squared, g;
    code_kernel_get()->sign_code(s->z, leader, s->padded, s->signs, sums);
    r_squared = sums[1];
    g = sums[0] > 0 ? r_squared / sums[0] : 0;
    if (s->metric != METRIC_IP) {
        *g_out = -2 * g;
        *f_out = r_squared + 2 * g * sums[2];
        return;
    }
    float cross = 0; /* <c, r> */
    cross = kernel_get()->dot_f32(leader, s->z, s->padded) - kernel_get()->dot_f32(leader, leader, s->padded);
    *g_out = -g;
    *f_out = g * sums[2] - cross;
}

void sketch_factors_pack(const float *factors, uint32_t count, uint16_t f16_out[2 * CODE_GROUP],
        float scales_out[2])
{
    float scaled[2 * CODE_GROUP] __attribute__((aligned(64))) = { 0 }, largest[2] = { 0 };
    for (uint32_t j = 0; j < 2; j++) {
        for (uint32_t i = 0; i < count; i++)
            largest[j] = fmaxf(largest[j], fabsf(factors[j * CODE_GROUP + i]));
        scales_out[j] = largest[j] / 32768;
        if (!(scales_out[j] >= 0x1p-126f)) scales_out[j] = 0x1p-126f; /* its inverse is finite */
        float inverse = 1 / scales_out[j];
        for (uint32_t i = 0; i < count; i++)
            scaled[j * CODE_GROUP + i] = factors[j * CODE_GROUP + i] * inverse;
    }
    code_kernel_get()->narrow_f16(scaled, 2 * CODE_GROUP, f16_out);
    for (uint32_t i = count; i < CODE_GROUP; i++) f16_out[i] = 0x7c00;
}

/* f16 factors of a group that will not change any more. */
static void group_close(const struct sketch *s, uint8_t *group)
{
    sketch_factors_pack((const float *)(void *)(group + s->layout.f32), CODE_GROUP,
            (uint16_t *)(void *)(group + s->layout.f16), (float *)(void *)(group + s->layout.scales));
}

static void norm_max_raise(struct sketch *s)
{
    float norm = sqrtf(kernel_get()->dot_f32(s->z, s->z, s->padded)), known;
    uint32_t bits = atomic_load_explicit(&s->norm_max_bits, memory_order_relaxed);
    memcpy(&known, &bits, sizeof known);
    if (!(norm > known)) return;
    memcpy(&bits, &norm, sizeof bits);
    atomic_store_explicit(&s->norm_max_bits, bits, memory_order_relaxed); /* ordered by the counts */
}

static enum omen_err row_sketch(struct sketch *s, const float *vector, uint32_t slot)
{
    struct sketch_generation *g = s->generations[s->generation_count - 1];
    sketch_rotate(s, vector, s->z);
    uint32_t leader = leader_of(s, g);
    struct sketch_bucket *bucket = &g->buckets[leader];
    uint32_t count = atomic_load_explicit(&bucket->count, memory_order_relaxed), i = count % CODE_GROUP;
    uint8_t *group = group_open(s, bucket, count);
    if (group == NULL) return OMEN_ENOMEM;
    float *f = (float *)(void *)(group + s->layout.f32);
    row_encode(s, g->leaders + (size_t)leader * s->padded, &f[i], &f[CODE_GROUP + i]);
    signs_store(group, s->signs, s->padded / 8, i);
    ((uint32_t *)(void *)(group + s->layout.slots))[i] = slot;
    if (i == CODE_GROUP - 1) group_close(s, group);
    if (s->metric == METRIC_IP) norm_max_raise(s);
    atomic_store_explicit(&bucket->count, count + 1, memory_order_release);
    return OMEN_OK;
}

enum omen_err sketch_add(struct sketch *s, const float *vector, uint32_t *slot_out, struct err *err)
{
    uint32_t count = atomic_load_explicit(&s->count, memory_order_relaxed), position;
    enum omen_err rc = OMEN_OK;
    if (!vector_finite(vector, s->dim, &position))
        return err_set(err, OMEN_EINVAL, "vector", "component %u is not finite", position);
    if (count >= INDEX_SLOTS_MAX)
        return err_set(err, OMEN_ETOOBIG, NULL, "the sketch holds %u rows, its limit", count);
    if (count >= s->next_rows) rc = generation_begin(s, count);
    if (rc == OMEN_OK && count >= SKETCH_PLAIN_ROWS) rc = row_sketch(s, vector, count);
    if (rc != OMEN_OK) return err_set(err, rc, NULL, "no memory to sketch a row");
    *slot_out = count;
    atomic_store_explicit(&s->count, count + 1, memory_order_release);
    return OMEN_OK;
}

/* ---- what others ask ---- */

enum omen_err sketch_partition(const struct sketch *s, uint32_t slot_end,
        bool (*each)(void *arg, const uint32_t *slots, uint32_t count), void *arg)
{
    uint32_t end = sketch_count(s), plain, n;
    if (slot_end < end) end = slot_end;
    plain = end < SKETCH_PLAIN_ROWS ? end : SKETCH_PLAIN_ROWS;
    uint32_t *slots = mem_alloc(((size_t)end + 1) * sizeof *slots);
    if (slots == NULL) return OMEN_ENOMEM;
    for (n = 0; n < plain; n++) slots[n] = n;
    bool more = n == 0 || each(arg, slots, n);
    uint32_t generations = atomic_load_explicit(&s->generation_count, memory_order_acquire);
    for (uint32_t i = 0; i < generations; i++) {
        struct sketch_generation *g = s->generations[i];
        for (uint32_t b = 0; more && b < g->leader_count; b++) {
            uint32_t count = atomic_load_explicit(&g->buckets[b].count, memory_order_acquire);
            struct sketch_cursor cursor = { &g->buckets[b], NULL, 0, NULL };
            for (n = 0; n < count; n++) {
                if (n % CODE_GROUP == 0) sketch_cursor_next(s, &cursor);
                slots[n] = ((const uint32_t *)(const void *)(cursor.group + s->layout.slots))[n % CODE_GROUP];
                if (slots[n] >= end) break;
            }
            if (n > 0) more = each(arg, slots, n);
        }
    }
    mem_free(slots);
    return more ? OMEN_OK : OMEN_ECANCELED;
}

void sketch_stats(const struct sketch *s, struct sketch_stats *stats_out)
{
    *stats_out = (struct sketch_stats){ .rows = sketch_count(s) };
    stats_out->memory_bytes = atomic_load_explicit(&s->memory_bytes, memory_order_relaxed);
    stats_out->generations = atomic_load_explicit(&s->generation_count, memory_order_acquire);
    for (uint32_t i = 0; i < stats_out->generations; i++) {
        const struct sketch_generation *g = s->generations[i];
        stats_out->leaders += g->leader_count;
        for (uint32_t b = 0; b < g->leader_count; b++) {
            uint32_t count = atomic_load_explicit(&g->buckets[b].count, memory_order_relaxed);
            if (count > stats_out->bucket_rows_max) stats_out->bucket_rows_max = count;
        }
    }
    uint32_t effort = sketch_effort(s, 10, s->recall_target);
    stats_out->effort_default = effort == SKETCH_EFFORT_SCAN ? 0 : effort;
}
