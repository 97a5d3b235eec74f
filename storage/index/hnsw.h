/* Mutable HNSW: inserts, deletes and searches at the same time, deleted points really leave the graph.
 *
 *   hnsw_build(...)                        rows of a segment, or none; index_insert / index_remove afterwards
 *   index_search(...) with own scratch     any number of readers, no lock
 *
 * Vectors are copied: the rows given to hnsw_build may go when it returns, a vector given to index_insert
 * too.
 * Threads: index_search, index_insert, index_remove and index_stats may all run at once, from any threads;
 * two calls on the same slot at once are the caller's race (one of them gets OMEN_EEXISTS or
 * OMEN_ENOTFOUND). At most HNSW_SCRATCHES_MAX scratches exist at a time and HNSW_WRITERS_MAX writers work at
 * a time, more of them wait.
 * A filter of a search must have bits for all slots that may be inserted before the search ends.
 * A search that starts after index_insert returned finds the point like any other; one that starts after
 * index_remove returned does not return it.
 * Memory: as written down in storage/index/README.md and computed by hnsw_bytes_per_node. */
#ifndef OMEN_STORAGE_INDEX_HNSW_H
#define OMEN_STORAGE_INDEX_HNSW_H

#include "storage/index/index.h"

#define HNSW_M_MIN 2
#define HNSW_M_MAX 128
#define HNSW_M_DEFAULT 16
#define HNSW_EF_CONSTRUCTION_DEFAULT 200
#define HNSW_EF_CONSTRUCTION_MAX 4096
#define HNSW_SCRATCHES_MAX 256
#define HNSW_WRITERS_MAX 64
/* Nodes an index without `capacity` has address space for; more is refused with OMEN_EFULL. */
#define HNSW_NODES_DEFAULT (1u << 24)

/* index_build for INDEX_HNSW: what that checks is not checked again, params and control are never NULL.
 * Quantization: AUTO and SCALAR walk on 8-bit codes where these are near enough to the distances (else on f32),
 * NONE always walks on f32; others are OMEN_EINVAL. Cost: about count * ef_construction * 2M code distances. */
OMEN_CHECKED enum omen_err hnsw_build(const struct index_rows *rows, const struct index_params *params,
        const struct index_control *control, struct index **index_out, struct err *err);

/* Finish pending repairs: deleted points leave the graph and give their memory back to later inserts, points
 * that lost their last link are linked again. Writers do this by and by; call it before measuring or when
 * idle. Blocks while searches that began before it run. Thread: any. */
void hnsw_settle(struct index *index);

/* Bytes of RAM per node for a graph of `dim` components and `M`, upper layers by their expectation. */
double hnsw_bytes_per_node(uint32_t dim, enum metric metric, uint32_t M, bool quantized);

#endif
