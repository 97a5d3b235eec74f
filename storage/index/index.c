/* Dispatch and validation for all kinds of index. Threads: no state. */
#include "storage/index/index.h"

#include <math.h>
#include <stdlib.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/mem.h"
#include "storage/index/hnsw.h"
#include "storage/index/index_impl.h"
#include "storage/kernel/kernel.h"

const char *index_kind_name(enum index_kind kind)
{
    static const char *const names[INDEX_KIND_COUNT] = { "flat", "hnsw", "sealed", "disk" };
    return (unsigned)kind < INDEX_KIND_COUNT ? names[kind] : "unknown";
}

const char *index_quant_name(enum index_quant quant)
{
    static const char *const names[INDEX_QUANT_COUNT] = { "auto", "none", "scalar", "product", "binary" };
    return (unsigned)quant < INDEX_QUANT_COUNT ? names[quant] : "unknown";
}

const char *index_plan_name(enum index_plan plan)
{
    static const char *const names[INDEX_PLAN_COUNT] = { "auto", "walk", "gather", "scan" };
    return (unsigned)plan < INDEX_PLAN_COUNT ? names[plan] : "unknown";
}

const char *index_layout_name(enum index_layout layout)
{
    static const char *const names[INDEX_LAYOUT_COUNT] = { "auto", "fast", "compact" };
    return (unsigned)layout < INDEX_LAYOUT_COUNT ? names[layout] : "unknown";
}

static index_build_fn *const builders[INDEX_KIND_COUNT] = {
    [INDEX_FLAT] = index_flat_build,
    [INDEX_SEALED] = index_sealed_build,
    [INDEX_HNSW] = hnsw_build,
    [INDEX_DISK] = index_disk_build,
};

static enum omen_err rows_check(const struct index_rows *rows, struct err *err)
{
    if (rows->dim == 0 || rows->dim > OMEN_DIM_MAX)
        return err_set(err, OMEN_EINVAL, "dim", "dim is %u, allowed are 1..%d", rows->dim, OMEN_DIM_MAX);
    if (rows->count > INDEX_SLOTS_MAX)
        return err_set(err, OMEN_EINVAL, "count", "%u rows, at most %u", rows->count, INDEX_SLOTS_MAX);
    if (rows->stride_floats < rows->dim)
        return err_set(err, OMEN_EINVAL, "stride", "rows lie closer than their %u components", rows->dim);
    for (uint32_t slot = 0; slot < rows->count; slot++) {
        uint32_t position;
        if (!vector_finite(rows->data + (size_t)slot * rows->stride_floats, rows->dim, &position))
            return err_set(err, OMEN_EINVAL, "vector", "slot %u, component %u is not finite", slot, position);
    }
    return OMEN_OK;
}

static const struct index_params params_default;
static const struct index_control control_default;

static enum omen_err params_check(const struct index_params *params, const struct index_control *control,
        struct err *err)
{
    if ((unsigned)params->quant >= INDEX_QUANT_COUNT)
        return err_set(err, OMEN_EINVAL, "quant", "unknown quantization %d", (int)params->quant);
    if ((unsigned)params->layout >= INDEX_LAYOUT_COUNT)
        return err_set(err, OMEN_EINVAL, "layout", "unknown layout %d", (int)params->layout);
    if (!(params->recall_target >= 0 && params->recall_target <= 1))
        return err_set(err, OMEN_EINVAL, "recall_target", "recall target is not within 0..1");
    if (control->threads > INDEX_THREADS_MAX)
        return err_set(err, OMEN_EINVAL, "threads", "%u threads, at most %d", control->threads,
                INDEX_THREADS_MAX);
    return OMEN_OK;
}

enum omen_err index_build(enum index_kind kind, const struct index_rows *rows,
        const struct index_params *params, const struct index_control *control, struct index **index_out,
        struct err *err)
{
    *index_out = NULL;
    if (params == NULL) params = &params_default;
    if (control == NULL) control = &control_default;
    if ((unsigned)kind >= INDEX_KIND_COUNT || builders[kind] == NULL)
        return err_set(err, OMEN_EINVAL, "index", "no index of kind %s in this build", index_kind_name(kind));
    enum omen_err rc = params_check(params, control, err);
    if (rc == OMEN_OK) rc = rows_check(rows, err);
    if (rc != OMEN_OK) return rc;
    return builders[kind](rows, params, control, index_out, err);
}

static enum omen_err part_check(const struct index_part *part, const struct index_rows *rows, uint64_t *named,
        struct err *err)
{
    struct index_stats stats;
    if (part->index->dim != rows->dim || part->index->metric != rows->metric)
        return err_set(err, OMEN_EINVAL, "parts", "a part has another dim or metric than the rows");
    index_stats(part->index, false, &stats);
    for (uint64_t slot = 0; slot < stats.slot_count; slot++) {
        uint32_t to = part->slots[slot];
        if (to == INDEX_SLOT_NONE) continue;
        if (to >= rows->count || index_bit(named, to))
            return err_set(err, OMEN_EINVAL, "parts", "slot %u is named twice or does not exist", to);
        named[to / 64] |= UINT64_C(1) << (to % 64);
    }
    return OMEN_OK;
}

static enum omen_err parts_check(const struct index_part *parts, uint32_t part_count,
        const struct index_rows *rows, struct err *err)
{
    if (part_count > INDEX_MERGE_PARTS_MAX)
        return err_set(err, OMEN_EINVAL, "parts", "%u parts, at most %d", part_count, INDEX_MERGE_PARTS_MAX);
    uint64_t *named = mem_calloc(rows->count / 64 + 1, sizeof *named);
    if (named == NULL) return err_set(err, OMEN_ENOMEM, NULL, "no memory to merge indexes");
    enum omen_err rc = OMEN_OK;
    for (uint32_t i = 0; rc == OMEN_OK && i < part_count; i++) rc = part_check(&parts[i], rows, named, err);
    if (rc == OMEN_OK && index_bits_count(named, rows->count) != rows->count)
        rc = err_set(err, OMEN_EINVAL, "parts", "not every row is of a part");
    mem_free(named);
    return rc;
}

enum omen_err index_merge(const struct index_part *parts, uint32_t part_count, const struct index_rows *rows,
        const struct index_params *params, const struct index_control *control, struct index **index_out,
        struct err *err)
{
    *index_out = NULL;
    if (params == NULL) params = &params_default;
    if (control == NULL) control = &control_default;
    enum omen_err rc = params_check(params, control, err);
    if (rc == OMEN_OK) rc = rows_check(rows, err);
    if (rc == OMEN_OK) rc = parts_check(parts, part_count, rows, err);
    if (rc != OMEN_OK) return rc;
    return index_sealed_merge(parts, part_count, rows, params, control, index_out, err);
}

void index_free(struct index *index)
{
    if (index != NULL) index->ops->free(index);
}

struct index_scratch *index_scratch_new(const struct index *index) { return index->ops->scratch_new(index); }

void index_scratch_free(const struct index *index, struct index_scratch *scratch)
{
    if (scratch != NULL) index->ops->scratch_free(scratch);
}

bool index_takes_runs(const struct index *index) { return index->ops->takes_runs; }

static bool search_valid(const struct index *index, const struct index_search *search)
{
    uint32_t position;
    bool run = search->run_first != 0 || search->run_end != 0;
    if (run && (search->run_first >= search->run_end || search->filter != NULL || !index->ops->takes_runs))
        return false;
    return search->k > 0 && search->k <= OMEN_K_MAX && search->effort <= INDEX_EFFORT_MAX &&
            search->recall_target >= 0 && search->recall_target <= 1 &&
            (unsigned)search->plan < INDEX_PLAN_COUNT &&
            !(search->has_distance_max && isnan(search->distance_max)) &&
            vector_finite(search->query, index->dim, &position);
}

enum omen_err index_search(const struct index *index, const struct index_search *search,
        struct index_scratch *scratch, struct index_hit *hits_out, uint32_t *count_out,
        struct index_cost *cost)
{
    struct index_cost unasked = { 0 };
    if (!search_valid(index, search)) return OMEN_EINVAL;
    return index->ops->search(index, search, scratch, hits_out, count_out, cost == NULL ? &unasked : cost);
}

enum omen_err index_search_batch(const struct index *index, const struct index_search *searches,
        uint32_t search_count, struct index_scratch *scratch, struct index_hit *const *hits_out,
        uint32_t *counts_out, struct index_cost *cost)
{
    struct index_cost unasked = { 0 };
    if (cost == NULL) cost = &unasked;
    if (search_count > OMEN_BATCH_SEARCHES_MAX) return OMEN_EINVAL;
    for (uint32_t i = 0; i < search_count; i++)
        if (!search_valid(index, &searches[i])) return OMEN_EINVAL;
    if (index->ops->search_batch != NULL)
        return index->ops->search_batch(index, searches, search_count, scratch, hits_out, counts_out, cost);
    for (uint32_t i = 0; i < search_count; i++) {
        enum omen_err rc = index->ops->search(index, &searches[i], scratch, hits_out[i], &counts_out[i],
                cost);
        if (rc != OMEN_OK) return rc;
    }
    return OMEN_OK;
}

enum omen_err index_insert(struct index *index, uint32_t slot, const float *vector, struct err *err)
{
    uint32_t position;
    if (index->ops->insert == NULL)
        return err_set(err, OMEN_EINVAL, "index", "a %s index is immutable",
                index_kind_name(index->ops->kind));
    if (slot >= INDEX_SLOTS_MAX) return err_set(err, OMEN_EINVAL, "slot", "slot %u is out of range", slot);
    if (!vector_finite(vector, index->dim, &position))
        return err_set(err, OMEN_EINVAL, "vector", "component %u is not finite", position);
    return index->ops->insert(index, slot, vector, err);
}

enum omen_err index_remove(struct index *index, uint32_t slot, struct err *err)
{
    if (index->ops->remove == NULL)
        return err_set(err, OMEN_EINVAL, "index", "a %s index is immutable",
                index_kind_name(index->ops->kind));
    return index->ops->remove(index, slot, err);
}

enum omen_err index_save(const struct index *index, struct vfs *vfs, const char *path, struct err *err)
{
    if (index->ops->save == NULL)
        return err_set(err, OMEN_EINVAL, "index", "a %s index has no file",
                index_kind_name(index->ops->kind));
    return index->ops->save(index, vfs, path, err);
}

/* The kind that a file says it is of; whoever opens it checks everything else. */
static enum omen_err file_kind(struct vfs *vfs, const char *path, uint16_t *kind_out, struct err *err)
{
    struct vfs_file *file;
    uint8_t head[8];
    uint64_t len;
    *kind_out = 0;
    enum omen_err rc = vfs_open(vfs, path, VFS_READ, &file, err);
    if (rc != OMEN_OK) return rc;
    rc = vfs_size(file, &len, err);
    if (rc == OMEN_OK && len >= sizeof head) rc = vfs_pread(file, head, sizeof head, 0, err);
    if (rc == OMEN_OK && len >= sizeof head) *kind_out = load_u16(head + 6);
    vfs_close(file);
    return rc;
}

enum omen_err index_map(struct vfs *vfs, const char *path, const struct index_rows *rows, bool pin,
        struct index **index_out, struct err *err)
{
    uint16_t kind;
    *index_out = NULL;
    enum omen_err rc = file_kind(vfs, path, &kind, err);
    if (rc != OMEN_OK) return rc;
    struct index_rows none = *rows;
    none.count = kind == INDEX_DISK ? 0
                                    : rows->count; /* its vectors are in the file: there may be no others */
    rc = rows_check(&none, err);
    if (rc == OMEN_OK && rows->count > INDEX_SLOTS_MAX)
        rc = err_set(err, OMEN_EINVAL, "count", "%u rows, at most %u", rows->count, INDEX_SLOTS_MAX);
    if (rc != OMEN_OK) return rc;
    return kind == INDEX_DISK ? index_disk_map(vfs, path, rows, pin, index_out, err)
                              : index_sealed_map(vfs, path, rows, pin, index_out, err);
}

void index_stats(const struct index *index, bool deep, struct index_stats *stats_out)
{
    *stats_out = (struct index_stats){ .unreachable = UINT64_MAX };
    index->ops->stats(index, deep, stats_out);
}

/* ---- shared helpers ---- */

uint64_t index_bits_count(const uint64_t *bits, uint32_t slot_count)
{
    uint64_t count = 0;
    for (uint32_t i = 0; i < slot_count / 64; i++) count += (uint64_t)__builtin_popcountll(bits[i]);
    if (slot_count % 64 != 0) {
        uint64_t mask = (UINT64_C(1) << (slot_count % 64)) - 1;
        count += (uint64_t)__builtin_popcountll(bits[slot_count / 64] & mask);
    }
    return count;
}

static void heap_sink(struct index_hit *hits, uint32_t count, struct index_hit hit)
{
    uint32_t i = 0;
    for (;;) {
        uint32_t child = 2 * i + 1;
        if (child >= count) break;
        if (child + 1 < count && index_hit_before(hits[child], hits[child + 1])) child++;
        if (!index_hit_before(hit, hits[child])) break;
        hits[i] = hits[child];
        i = child;
    }
    hits[i] = hit;
}

void index_heap_push(struct index_heap *heap, struct index_hit hit)
{
    if (heap->count == heap->k) {
        if (index_hit_before(hit, heap->hits[0])) heap_sink(heap->hits, heap->count, hit);
        return;
    }
    uint32_t i = heap->count++;
    for (; i > 0; i = (i - 1) / 2) {
        if (!index_hit_before(heap->hits[(i - 1) / 2], hit)) break;
        heap->hits[i] = heap->hits[(i - 1) / 2];
    }
    heap->hits[i] = hit;
}

void index_heap_pop(struct index_heap *heap)
{
    struct index_hit last = heap->hits[--heap->count];
    if (heap->count > 0) heap_sink(heap->hits, heap->count, last);
}

void index_heap_sort(struct index_heap *heap)
{
    for (uint32_t n = heap->count; n > 1; n--) {
        struct index_hit last = heap->hits[n - 1];
        heap->hits[n - 1] = heap->hits[0];
        heap_sink(heap->hits, n - 1, last);
    }
}
