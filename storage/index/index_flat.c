/* The exact index: every search is one pass over the rows, under a bitmap only over the tiles that have a set
 * bit. Threads: immutable, any number of readers. Determinism: hits depend on rows, query and filter alone.
 */
#include <math.h>
#include <string.h>

#include "common/mem.h"
#include "storage/index/index_impl.h"
#include "storage/kernel/kernel.h"

#define FLAT_TILE 256       /* rows between two looks at the heap, and at `stop` */
#define FLAT_GATHER_SHARE 8 /* a tile with fewer set bits than 1/8 is gathered row by row */

struct index_flat {
    struct index base;
    struct index_rows rows; /* borrowed */
};

struct index_scratch {
    float query[OMEN_DIM_MAX] __attribute__((aligned(64)));
    float distances[FLAT_TILE];
};

static void flat_free(struct index *index) { mem_free(index); }

static struct index_scratch *flat_scratch_new(const struct index *index)
{
    (void)index;
    return mem_alloc_aligned(64, sizeof(struct index_scratch));
}

static void flat_scratch_free(struct index_scratch *scratch) { mem_free(scratch); }

/* Bits of the `count` <= 64 slots from `slot` on; slot is a multiple of 64. */
static uint64_t filter_word(const uint64_t *filter, uint32_t slot, uint32_t count)
{
    uint64_t all = count == 64 ? UINT64_MAX : (UINT64_C(1) << count) - 1;
    return filter == NULL ? all : filter[slot / 64] & all;
}

static void offer(struct index_heap *heap, const struct index_search *search, float distance, uint32_t slot)
{
    if (isnan(distance)) distance = INFINITY; /* a dot product that overflowed both ways */
    if (search->has_distance_max && !(distance <= search->distance_max)) return;
    if (distance > index_heap_bound(heap)) return;
    index_heap_push(heap, (struct index_hit){ distance, slot });
}

static void scan_tile(const struct index_flat *flat, const struct index_search *search, uint32_t first,
        uint32_t count, struct index_scratch *scratch, struct index_heap *heap, struct index_cost *cost)
{
    const struct kernel *kernel = kernel_get();
    const struct index_rows *rows = &flat->rows;
    bool l2 = rows->metric == METRIC_L2;
    uint32_t wanted = 0;
    for (uint32_t i = 0; i < count; i += 64)
        wanted += (uint32_t)__builtin_popcountll(
                filter_word(search->filter, first + i, count - i < 64 ? count - i : 64));
    if (wanted == 0) return;
    const float *tile = rows->data + (size_t)first * rows->stride_floats;
    bool gather = wanted < count / FLAT_GATHER_SHARE;
    if (!gather)
        (l2 ? kernel->l2sq_f32_rows : kernel->negdot_f32_rows)(scratch->query, tile, rows->stride_floats,
                count, rows->dim, scratch->distances);
    for (uint32_t i = 0; i < count; i += 64) {
        uint64_t word = filter_word(search->filter, first + i, count - i < 64 ? count - i : 64);
        for (; word != 0; word &= word - 1) {
            uint32_t r = i + (uint32_t)__builtin_ctzll(word);
            const float *row = tile + (size_t)r * rows->stride_floats;
            float distance = !gather ? scratch->distances[r]
                    : l2             ? kernel->l2sq_f32(scratch->query, row, rows->dim)
                                     : -kernel->dot_f32(scratch->query, row, rows->dim);
            offer(heap, search, distance, first + r);
        }
    }
    cost->distances += gather ? wanted : count;
}

static enum omen_err flat_search(const struct index *index, const struct index_search *search,
        struct index_scratch *scratch, struct index_hit *hits_out, uint32_t *count_out,
        struct index_cost *cost)
{
    const struct index_flat *flat = (const struct index_flat *)index;
    struct index_heap heap = { hits_out, search->k, 0 };
    memcpy(scratch->query, search->query, index->dim * sizeof(float));
    for (uint32_t first = 0; first < flat->rows.count; first += FLAT_TILE) {
        if (search->stop != NULL && search->stop(search->stop_arg)) return OMEN_EDEADLINE;
        uint32_t count = flat->rows.count - first < FLAT_TILE ? flat->rows.count - first : FLAT_TILE;
        scan_tile(flat, search, first, count, scratch, &heap, cost);
    }
    index_heap_sort(&heap);
    *count_out = heap.count;
    return OMEN_OK;
}

static void flat_stats(const struct index *index, bool deep, struct index_stats *stats_out)
{
    const struct index_flat *flat = (const struct index_flat *)index;
    (void)deep;
    stats_out->slot_count = stats_out->live_count = flat->rows.count;
    stats_out->memory_bytes = (uint64_t)flat->rows.count * flat->rows.dim * sizeof(float);
    stats_out->unreachable = 0;
}

static const struct index_ops flat_ops = {
    .kind = INDEX_FLAT,
    .free = flat_free,
    .scratch_new = flat_scratch_new,
    .scratch_free = flat_scratch_free,
    .search = flat_search,
    .stats = flat_stats,
};

enum omen_err index_flat_build(const struct index_rows *rows, const struct index_params *params,
        const struct index_control *control, struct index **index_out, struct err *err)
{
    (void)control;
    if (params->quant != INDEX_QUANT_AUTO && params->quant != INDEX_QUANT_NONE)
        return err_set(err, OMEN_EINVAL, "quant", "a flat index has no %s codes",
                index_quant_name(params->quant));
    struct index_flat *flat = mem_calloc(1, sizeof *flat);
    if (flat == NULL) return err_set(err, OMEN_ENOMEM, NULL, "no memory for an index");
    flat->base = (struct index){ &flat_ops, rows->dim, rows->metric };
    flat->rows = *rows;
    *index_out = &flat->base;
    return OMEN_OK;
}
