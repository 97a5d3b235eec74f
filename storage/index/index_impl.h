/* What index.c dispatches to, and helpers that kinds of index share; private to storage/index. */
#ifndef OMEN_STORAGE_INDEX_INDEX_IMPL_H
#define OMEN_STORAGE_INDEX_INDEX_IMPL_H

#include "storage/index/index.h"

/* Of every kind: rows, params and control were checked by index_build, params and control are never NULL. */
typedef enum omen_err index_build_fn(const struct index_rows *rows, const struct index_params *params,
        const struct index_control *control, struct index **index_out, struct err *err);

index_build_fn index_flat_build;
index_build_fn index_sealed_build;
/* Parts were checked by index_merge. */
enum omen_err index_sealed_merge(const struct index_part *parts, uint32_t part_count,
        const struct index_rows *rows, const struct index_params *params, const struct index_control *control,
        struct index **index_out, struct err *err);
enum omen_err index_sealed_map(struct vfs *vfs, const char *path, const struct index_rows *rows, bool pin,
        struct index **index_out, struct err *err);
index_build_fn index_disk_build;
enum omen_err index_disk_map(struct vfs *vfs, const char *path, const struct index_rows *rows, bool pin,
        struct index **index_out, struct err *err);

static inline bool index_bit(const uint64_t *bits, uint32_t slot)
{
    return bits[slot / 64] >> (slot % 64) & 1;
}
uint64_t index_bits_count(const uint64_t *bits, uint32_t slot_count);

static inline bool index_hit_before(struct index_hit a, struct index_hit b)
{
    return a.distance < b.distance || (a.distance == b.distance && a.slot < b.slot);
}
/* The k nearest of those offered: a max-heap in caller's memory. */
struct index_heap {
    struct index_hit *hits; /* [k] */
    uint32_t k, count;
};
void index_heap_push(struct index_heap *heap, struct index_hit hit); /* k > 0 */
void index_heap_pop(struct index_heap *heap);                        /* the farthest; count > 0 */
void index_heap_sort(struct index_heap *heap);                       /* nearest first; no push afterwards */
static inline float index_heap_bound(const struct index_heap *heap)
{
    return heap->count < heap->k ? __builtin_inff() : heap->hits[0].distance;
}

/* How far the distances of a walk are from final ones, learned from the rows that were rescored so far; both in the
 * walk's scale, but for a constant. */
struct index_error {
    double sum, squares;
    uint32_t count; /* of rows */
};
#define INDEX_ERROR_ROWS 8   /* tell enough */
#define INDEX_ERROR_SIGMAS 6 /* standard deviations, which a row is given */
static inline void index_error_add(struct index_error *e, double off)
{
    e->sum += off;
    e->squares += off * off;
    e->count++;
}
/* Rows whose distance by the walk is beyond this are not nearer than `bound`, as far as the error tells. */
static inline float index_error_limit(const struct index_error *e, double bound)
{
    double mean = e->sum / e->count, variance = e->squares / e->count - mean * mean;
    double limit = bound - mean + INDEX_ERROR_SIGMAS * __builtin_sqrt(variance > 0 ? variance : 0);
    return limit < (double)__builtin_inff() ? (float)limit : __builtin_inff(); /* NaN: they overflowed */
}

#endif
