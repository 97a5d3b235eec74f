/* The exact scan: tiles of distances by the kernel, then a narrow path for the few rows that are near enough.
 *
 * Nearly every row is refused by one comparison with the heap's bound, so that comparison is all that a row
 * costs beside its distance; liveness, identity and filter are looked at in that order, each dearer than the
 * one before. A row that only ties with the bound goes on, as its id may be lower. NaN: finite vectors can
 * fill one lane with inf and another with -inf in a dot product. Such a row counts as +inf, the farthest, on
 * every ISA alike; hence "not above the bound" below rather than "below or equal". */
#include "common/err.h"
#include "common/check.h"
#include "storage/index/flat.h"
#include "storage/kernel/kernel.h"
#include "storage/payload/filter_eval.h"

#define TILE_BYTES                                                                                           \
    (64u << 10) /* of rows whose distances are computed before they are looked at; stays in L2 */
#define TILE_ROWS_MIN 16
#define QUERY_GROUP 64 /* queries that share one tile's buffer of distances (64 KiB) */

float flat_distance_max(enum metric metric, float score_threshold)
{
    if (isnan(score_threshold)) return -INFINITY;
    if (metric_higher_is_nearer(metric)) return -score_threshold; /* -distance >= t */
    if (score_threshold < 0) return -INFINITY;
    /* The largest d with sqrtf(d) <= t. Squaring and rooting are correctly rounded, so it is a few steps from
     * t * t. */
    float d = score_threshold * score_threshold;
    while (d > 0 && score_of_distance(metric, d) > score_threshold) d = nextafterf(d, 0);
    while (isfinite(d) && score_of_distance(metric, nextafterf(d, INFINITY)) <= score_threshold) {
        d = nextafterf(d, INFINITY);
    }
    return d;
}

static void entry_point_at(const void *points, uint32_t op, struct flat_point *point_out)
{
    struct entry_op entry_op;
    entry_op_at(points, op, &entry_op);
    point_out->key = entry_op.key;
    point_out->payload = entry_op.payload;
    point_out->expires_ms = entry_op.expires_ms;
}

void flat_block_of_entry(const struct entry *entry, uint32_t field, uint32_t dim,
        const _Atomic uint64_t *died, uint64_t location, struct flat_block *block_out)
{
    CHECK(field < entry->field_count);
    *block_out = (struct flat_block){
        .rows = entry->columns[field],
        .stride_floats = entry_row_stride(dim),
        .count = entry->row_count[field],
        .row_ops = entry->row_ops[field],
        .died = died,
        .point_at = entry_point_at,
        .points = entry,
        .location = location,
    };
}

enum omen_err flat_scan_init(struct flat_scan *scan, enum metric metric, uint32_t dim, uint64_t view_sequence,
        struct flat_query *queries, uint32_t query_count, bool (*stop)(void *arg), void *stop_arg,
        struct arena *arena)
{
    if (query_count == 0 || query_count > OMEN_BATCH_SEARCHES_MAX || dim == 0 || dim > OMEN_DIM_MAX)
        return OMEN_EINVAL;
    size_t stride = entry_row_stride(dim);
    uint32_t group = query_count < QUERY_GROUP ? query_count : QUERY_GROUP;
    float *packed = arena_alloc_aligned(arena, ENTRY_ALIGN, query_count * stride * sizeof(float));
    float *distances = arena_alloc_aligned(arena, ENTRY_ALIGN,
            (size_t)group * FLAT_TILE_ROWS * sizeof(float));
    if (packed == NULL || distances == NULL) return OMEN_ENOMEM;
    memset(packed, 0, query_count * stride * sizeof(float));
    for (uint32_t q = 0; q < query_count; q++)
        memcpy(packed + q * stride, queries[q].query, dim * sizeof(float));
    *scan = (struct flat_scan){
        .kernel = kernel_get(),
        .metric = metric,
        .dim = dim,
        .view_sequence = view_sequence,
        .queries = queries,
        .query_count = query_count,
        .packed = packed,
        .packed_stride = stride,
        .distances = distances,
        .stop = stop,
        .stop_arg = stop_arg,
        .bytes_until_poll = FLAT_POLL_BYTES,
    };
    return OMEN_OK;
}

static float query_bound(const struct flat_query *query)
{
    float bound = topk_bound(query->topk);
    return query->distance_max < bound ? query->distance_max : bound;
}

/* died - 1 wraps to the largest number for a live op (0), so one comparison asks both questions. */
static bool op_is_live(const struct flat_block *block, uint32_t op, uint64_t view_sequence)
{
    if (block->died == NULL) return true;
    return atomic_load_explicit(&block->died[op], memory_order_acquire) - 1 >= view_sequence;
}

/* A row that is not above the bound: everything else about it. */
static void consider(struct flat_scan *scan, const struct flat_block *block, struct flat_query *query,
        uint32_t row, float distance)
{
    uint32_t op = block->row_ops != NULL ? block->row_ops[row] : row;
    if (!op_is_live(block, op, scan->view_sequence)) return;
    struct topk_candidate candidate = { .distance = isnan(distance) ? INFINITY : distance, .row = row };
    if (candidate.distance > query->distance_max) return;
    struct flat_point point = { .expires_ms = 0 };
    block->point_at(block->points, op, &point);
    if (point.expires_ms != 0 && point.expires_ms <= scan->now_ms) return;
    candidate.key = point.key;
    candidate.location[0] = block->location;
    candidate.location[1] = op;
    if (!topk_accepts(query->topk, &candidate)) return;
    if (query->filter != NULL) {
        scan->stats.filter_evaluated++;
        if (!filter_match(query->filter, point.key.id, point.payload)) return;
    }
    topk_push(query->topk, &candidate);
}

#define STEP 16

/* The bound falls as rows enter, so it is read again after each one that was considered; a stale one costs a
 * look. */
static void offer_tile(struct flat_scan *scan, const struct flat_block *block, struct flat_query *query,
        uint32_t first_row, uint32_t count, const float *distances)
{
    float bound = query_bound(query);
    uint32_t i = 0;
    while (i < count) {
        uint32_t n = count - i < STEP ? count - i : STEP;
        uint32_t near = 0;
        if (n == STEP) {
            for (uint32_t j = 0; j < STEP; j++)
                near += !(distances[i + j] > bound); /* vector code, no branch */
        } else {
            near = n;
        }
        for (uint32_t j = 0; near > 0 && j < n; j++) {
            if (distances[i + j] > bound) continue;
            consider(scan, block, query, first_row + i + j, distances[i + j]);
            bound = query_bound(query);
        }
        i += n;
    }
}

static void distances_of(struct flat_scan *scan, const float *rows, size_t stride, uint32_t count,
        uint32_t first_query, uint32_t query_count)
{
    const struct kernel *kernel = scan->kernel;
    const float *queries = scan->packed + first_query * scan->packed_stride;
    bool l2 = scan->metric == METRIC_L2;
    if (query_count == 1) {
        (l2 ? kernel->l2sq_f32_rows : kernel->negdot_f32_rows)(queries, rows, stride, count, scan->dim,
                scan->distances);
    } else {
        (l2 ? kernel->l2sq_f32_block : kernel->negdot_f32_block)(queries, scan->packed_stride, query_count,
                rows, stride, count, scan->dim, scan->distances);
    }
}

static bool must_stop(struct flat_scan *scan, uint64_t bytes)
{
    if (scan->bytes_until_poll > bytes) {
        scan->bytes_until_poll -= bytes;
        return false;
    }
    scan->bytes_until_poll = FLAT_POLL_BYTES;
    return scan->stop != NULL && scan->stop(scan->stop_arg);
}

static uint32_t tile_rows(size_t row_bytes)
{
    size_t rows = TILE_BYTES / row_bytes;
    if (rows > FLAT_TILE_ROWS) return FLAT_TILE_ROWS;
    return rows < TILE_ROWS_MIN ? TILE_ROWS_MIN : (uint32_t)rows;
}

enum omen_err flat_scan_block(struct flat_scan *scan, const struct flat_block *block)
{
    CHECK(block->stride_floats >= scan->dim);
    uint32_t step = tile_rows(block->stride_floats * sizeof(float));
    for (uint32_t first = 0; first < block->count; first += step) {
        uint32_t count = block->count - first < step ? block->count - first : step;
        uint64_t bytes = (uint64_t)count * block->stride_floats * sizeof(float);
        const float *rows = block->rows + (size_t)first * block->stride_floats;
        for (uint32_t q = 0; q < scan->query_count; q += QUERY_GROUP) {
            uint32_t group = scan->query_count - q < QUERY_GROUP ? scan->query_count - q : QUERY_GROUP;
            distances_of(scan, rows, block->stride_floats, count, q, group);
            for (uint32_t i = 0; i < group; i++) {
                offer_tile(scan, block, &scan->queries[q + i], first, count,
                        scan->distances + (size_t)i * count);
            }
            scan->stats.distances_computed += (uint64_t)count * group;
            if (must_stop(scan, bytes))
                return OMEN_EDEADLINE; /* a group costs about one pass over the tile */
        }
        scan->stats.rows_scanned += count;
        scan->stats.bytes_read += bytes;
    }
    return OMEN_OK;
}
