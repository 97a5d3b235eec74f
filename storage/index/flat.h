/* Exact search: one pass over blocks of rows, shared by all queries on the same field.
 *
 *   flat_scan_init(&scan, ...);                            once per request
 *   for each block of the view: flat_scan_block(&scan, &block)
 *   topk_sort(queries[i].topk)
 *
 * A block is the column of one log entry in the stream, or of one sealed segment. Per tile of rows the kernel
 * writes the distances of all queries into a small buffer; only rows that would enter a query's heap are
 * looked at further, in order of cost: threshold, liveness, identity (ties), filter.
 *
 * Threads: one scan belongs to one thread; blocks may grow dead rows meanwhile (`died` is read atomically).
 * Determinism: hits depend on the view alone: bit-equal distances (storage/kernel), ties by id, then key
 * hash. */
#ifndef OMEN_STORAGE_INDEX_FLAT_H
#define OMEN_STORAGE_INDEX_FLAT_H

#include <stdatomic.h>

#include "common/query/filter.h"
#include "storage/entry.h"
#include "storage/index/topk.h"

#define FLAT_TILE_ROWS 256          /* most rows whose distances are computed at a time */
#define FLAT_POLL_BYTES (64u << 10) /* of scanned rows between two polls of `stop` */

/* Who a row is, asked only of rows that are near enough. */
struct flat_point {
    struct point_key key;
    struct doc payload;  /* absent = {} */
    uint64_t expires_ms; /* 0 = never */
};

struct flat_block {
    const float *rows;    /* [count] rows, stride_floats apart; at least 4-byte aligned */
    size_t stride_floats; /* >= dim */
    uint32_t count;
    const uint32_t *row_ops; /* [count] op of each row; NULL = row i is op i */
    /* [ops] sequence of the entry that killed the op, 0 while it lives; a row is seen by a view at sequence s
     * when its op has died = 0 or died > s. An op that must never be seen (superseded inside its own entry,
     * duplicate request) has died = its own sequence from the start. NULL = all live. */
    const _Atomic uint64_t *died;
    /* Fills who `op` is. `arg` is the block's `points`. */
    void (*point_at)(const void *points, uint32_t op, struct flat_point *point_out);
    const void *points;
    uint64_t location; /* caller's name for the block: candidates get location {this, op} */
};

/* The block of one field of a parsed entry: `died` [op_count]. The caller skips entries born after its view.
 * Borrows entry and died. */
void flat_block_of_entry(const struct entry *entry, uint32_t field, uint32_t dim,
        const _Atomic uint64_t *died, uint64_t location, struct flat_block *block_out);

struct flat_query {
    const float *query;          /* [dim], borrowed for the scan, 4-byte aligned */
    struct topk *topk;           /* borrowed; initialised */
    const struct filter *filter; /* NULL = all */
    float distance_max;          /* inclusive; INFINITY = no threshold; see flat_distance_max() */
};

/* Largest ranking distance whose reported score (score_of_distance) still passes `score_threshold`: exactly,
 * to the last bit. Below every distance when none passes. */
float flat_distance_max(enum metric metric, float score_threshold);

struct flat_stats {
    uint64_t rows_scanned; /* once per pass, however many queries share it */
    uint64_t distances_computed;
    uint64_t filter_evaluated;
    uint64_t bytes_read; /* of rows */
};

struct flat_scan {
    const struct kernel *kernel;
    enum metric metric;
    uint32_t dim;
    uint64_t view_sequence;
    uint64_t
            now_ms; /* points that expire then or earlier are passed over; the caller's after init, 0 = none */
    struct flat_query *queries; /* [query_count], borrowed */
    uint32_t query_count;
    float *packed; /* [query_count][packed_stride] queries, padded, 64-byte aligned; arena */
    size_t packed_stride;
    float *distances;        /* [min(query_count, group)][FLAT_TILE_ROWS]; arena */
    bool (*stop)(void *arg); /* NULL = never */
    void *stop_arg;
    uint64_t bytes_until_poll;
    struct flat_stats stats;
};

/* Prepare a pass for queries on one field. Memory from `arena` (copies the queries, 64-byte aligned).
 * OMEN_EINVAL (no query, dim out of range), OMEN_ENOMEM. */
OMEN_CHECKED enum omen_err flat_scan_init(struct flat_scan *scan, enum metric metric, uint32_t dim,
        uint64_t view_sequence, struct flat_query *queries, uint32_t query_count, bool (*stop)(void *arg),
        void *stop_arg, struct arena *arena);

/* Scan one block. OMEN_EDEADLINE when `stop` said so: the heaps then hold a part and must be thrown away. */
OMEN_CHECKED enum omen_err flat_scan_block(struct flat_scan *scan, const struct flat_block *block);

#endif
