/* Plans of a filtered search of the sealed graph: gather the passing rows, scan the flat 1-bit codes under the
 * bitmap, or walk with a wider pool; whichever is cheapest for the real number of passing rows. Threads: no
 * state. */
#include "storage/index/sealed_filter.h"

#include <math.h>

#include "storage/kernel/kernel.h"

#define SCAN_RESCORED(k) (10 * (k) + 400) /* of a scan of 1-bit codes */
#define SCAN_POLL_GROUPS 2048
#define GATHER_ROWS 2000 /* fewer candidates than this are scored one by one */
/* What the plans of a filtered search cost, at 128-d on the machine of README.md: only their proportion
 * matters. */
#define HOP_NS 450.0
#define GATHER_NS 30.0
#define SCAN_NS 0.6

enum index_plan sealed_plan(const struct sealed *s, const struct index_search *search, uint64_t passing,
        uint32_t *effort)
{
    enum index_plan plan = search->plan;
    bool walkable = *effort != SEALED_EFFORT_SCAN;
    if (plan == INDEX_PLAN_AUTO && (passing <= GATHER_ROWS || search->k >= passing / 4 || !walkable))
        return INDEX_PLAN_GATHER;
    if (passing == s->count && plan == INDEX_PLAN_AUTO) return INDEX_PLAN_WALK;
    /* enough of the pool must pass, or another plan costs less */
    double widened = walkable ? (double)*effort * (double)s->count / (double)(passing + 1) : (double)s->count;
    double walk_ns = widened * HOP_NS, gather_ns = (double)passing * GATHER_NS;
    double scan_ns = (double)s->count * SCAN_NS + SCAN_RESCORED(search->k) * GATHER_NS;
    if (plan == INDEX_PLAN_AUTO)
        plan = gather_ns <= scan_ns && gather_ns <= walk_ns ? INDEX_PLAN_GATHER
                : scan_ns <= walk_ns                        ? INDEX_PLAN_SCAN
                                                            : INDEX_PLAN_WALK;
    *effort = widened > INDEX_EFFORT_MAX ? INDEX_EFFORT_MAX : (uint32_t)widened;
    return plan;
}

float sealed_row_distance(const struct sealed *s, const float *query, uint32_t slot)
{
    const float *row = s->rows.data + (size_t)slot * s->rows.stride_floats;
    float d = s->rows.metric == METRIC_L2 ? kernel_get()->l2sq_f32(query, row, s->rows.dim)
                                          : -kernel_get()->dot_f32(query, row, s->rows.dim);
    return isnan(d) ? INFINITY : d;
}

enum omen_err sealed_gather(const struct sealed *s, const struct index_search *search,
        struct index_hit *hits_out, uint32_t *count_out, struct index_cost *cost)
{
    struct index_heap heap = { hits_out, search->k, 0 };
    cost->gathers++;
    for (uint32_t first = 0; first < s->count; first += 64) {
        uint32_t n = s->count - first < 64 ? s->count - first : 64;
        uint64_t word = n == 64 ? UINT64_MAX : (UINT64_C(1) << n) - 1;
        if (search->filter != NULL) word &= search->filter[first / 64];
        if (first % 4096 == 0 && search->stop != NULL && search->stop(search->stop_arg))
            return OMEN_EDEADLINE;
        cost->rescored += (uint64_t)__builtin_popcountll(word);
        for (; word != 0; word &= word - 1) {
            uint32_t slot = first + (uint32_t)__builtin_ctzll(word);
            float d = sealed_row_distance(s, search->query, slot);
            if (search->has_distance_max && !(d <= search->distance_max)) continue;
            index_heap_push(&heap, (struct index_hit){ d, slot });
        }
    }
    index_heap_sort(&heap);
    *count_out = heap.count;
    return OMEN_OK;
}

enum omen_err sealed_scan(const struct sealed *s, const struct index_search *search,
        struct index_scratch *scratch, struct index_hit *hits_out, uint32_t *count_out,
        struct index_cost *cost)
{
    const struct code_kernel *kernel = code_kernel_get();
    uint32_t want = SCAN_RESCORED(search->k);
    float estimates[CODE_GROUP];
    enum omen_err rc = sealed_scratch_reserve(scratch, 0, want);
    if (rc != OMEN_OK) return rc;
    sealed_query_prepare(s, search->query, scratch);
    float base = kernel_get()->dot_f32(scratch->rotated, scratch->rotated, s->padded);
    struct index_heap near = { scratch->hits, want, 0 };
    for (uint32_t first = 0; first < s->count; first += CODE_GROUP) {
        uint32_t group = first / CODE_GROUP;
        uint32_t pass = search->filter == NULL ? UINT32_MAX
                                               : (uint32_t)(search->filter[first / 64] >> (first % 64));
        if (group % SCAN_POLL_GROUPS == 0 && search->stop != NULL && search->stop(search->stop_arg))
            return OMEN_EDEADLINE;
        if (pass == 0) continue;
        const uint8_t *codes = s->flat.groups + (size_t)group * s->flat.group_bytes;
        const uint16_t *f = (const uint16_t *)(const void *)(codes + rabitq_codes_bytes(s->padded));
        struct code_factors factors = { f, f + CODE_GROUP, s->flat.scales[group * 2],
            s->flat.scales[group * 2 + 1] };
        uint32_t mask = pass &
                kernel->estimate_32(&scratch->code, codes, &factors, base, index_heap_bound(&near),
                        estimates);
        for (; mask != 0; mask &= mask - 1) {
            uint32_t i = (uint32_t)__builtin_ctz(mask);
            index_heap_push(&near, (struct index_hit){ estimates[i], first + i });
        }
        cost->estimates += CODE_GROUP;
    }
    struct index_heap heap = { hits_out, search->k, 0 };
    for (uint32_t i = 0; i < near.count; i++) {
        float d = sealed_row_distance(s, search->query, scratch->hits[i].slot);
        if (search->has_distance_max && !(d <= search->distance_max)) continue;
        index_heap_push(&heap, (struct index_hit){ d, scratch->hits[i].slot });
    }
    cost->rescored += near.count;
    cost->scans++;
    index_heap_sort(&heap);
    *count_out = heap.count;
    return OMEN_OK;
}
