/* The one interface behind which every index lives: flat, mutable HNSW, sealed graph, disk graph.
 *
 *   index_build(...) or index_map(...)          one builder
 *   index_scratch_new(index)                    once per searching thread
 *   index_search(index, &search, scratch, ...)  any number of readers
 *   index_free(index)
 *
 * Slots are u32 positions of rows in the segment, never point ids: the segment maps between the two. Queries
 * and rows are f32; under METRIC_COSINE both are normalised by the caller before they come here. Distances
 * are those of storage/kernel: squared l2, or -dot for ip and cosine; smaller is nearer.
 *
 * Threads: any number of index_search at once, each with its own scratch. An index whose ops have `insert`
 * and `remove` says in its own header what may run beside searches; the others are immutable after build and
 * map. Determinism: local and rebuildable; never part of the replicated state or its digest. Returned
 * distances are bit-equal on all ISAs; which neighbours an approximate index finds may differ between builds
 * with other thread counts. */
#ifndef OMEN_STORAGE_INDEX_INDEX_H
#define OMEN_STORAGE_INDEX_INDEX_H

#include <stddef.h>

#include "common/err.h"
#include "common/query/point.h"
#include "common/vfs.h"

#define INDEX_SLOT_NONE UINT32_MAX
#define INDEX_SLOTS_MAX (1u << 30) /* rows of one segment */
#define INDEX_THREADS_MAX 64       /* of one build */
#define INDEX_EFFORT_MAX 65536     /* width of a candidate pool */
#define INDEX_POLL_HOPS 64 /* most hops (or their worth in scanned rows) between two polls of `stop` */

enum index_kind { INDEX_FLAT, INDEX_HNSW, INDEX_SEALED, INDEX_DISK, INDEX_KIND_COUNT };
enum index_quant {
    INDEX_QUANT_AUTO,   /* the index's own default */
    INDEX_QUANT_NONE,   /* f32 */
    INDEX_QUANT_SCALAR, /* 8, 6 or 4 bits per component */
    INDEX_QUANT_PRODUCT,
    INDEX_QUANT_BINARY, /* RaBitQ, 1 bit per component and two factors */
    INDEX_QUANT_COUNT
};
/* How a search under a filter (or for many rows) is answered. AUTO everywhere but in tests and measurements. */
enum index_plan {
    INDEX_PLAN_AUTO,
    INDEX_PLAN_WALK,   /* the graph; answered exactly all the same when it finds too few */
    INDEX_PLAN_GATHER, /* every row that passes, in full */
    INDEX_PLAN_SCAN,   /* short codes of all rows under the bitmap, the nearest in full */
    INDEX_PLAN_COUNT
};
const char *index_plan_name(enum index_plan plan);    /* "auto", "walk", "gather", "scan" */
const char *index_kind_name(enum index_kind kind);    /* "flat", "hnsw", "sealed", "disk" */
const char *index_quant_name(enum index_quant quant); /* "auto", "none", "scalar", "product", "binary" */

/* Full vectors of a segment, slot by slot; borrowed by the index for as long as it lives (rescoring reads
 * them). */
struct index_rows {
    const float *data;    /* [count] rows, stride_floats apart, 4-byte aligned */
    size_t stride_floats; /* >= dim */
    uint32_t count;       /* 0..INDEX_SLOTS_MAX; slots 0..count-1 */
    uint32_t dim;         /* 1..OMEN_DIM_MAX */
    enum metric metric;
};

/* How a sealed graph lies in memory. Fast: a row holds the codes of its neighbours, about 980 bytes at 128-d.
 * Compact: ids and one code per node, below 300 bytes; rescoring reads rows, which may lie on disk. */
enum index_layout { INDEX_LAYOUT_AUTO, INDEX_LAYOUT_FAST, INDEX_LAYOUT_COMPACT, INDEX_LAYOUT_COUNT };
const char *index_layout_name(enum index_layout layout); /* "auto", "fast", "compact" */

/* How to build; zero means the index's default everywhere. */
struct index_params {
    enum index_quant quant;
    /* Auto: fast, unless quant or bytes_per_vector_max ask for what only compact has. */
    enum index_layout layout;
    uint32_t bits; /* of a component's code in the compact layout: 16 (f16), 8, 6, 4, 2, 1; 0 = calibrated */
    /* Budget of all that must be in RAM, rows that rescoring touches apart; 0 = none. OMEN_EINVAL when no code
     * is short enough. */
    uint32_t bytes_per_vector_max;
    uint32_t M; /* links per node as the index counts them: HNSW 2*M on layer 0; sealed graph: degree */
    uint32_t ef_construction; /* beam width while building */
    uint32_t capacity; /* rows that a mutable index must have room for; 0 = rows.count, grown when needed */
    uint32_t held_out; /* rows kept back for calibration and inserted last; 0 = default, UINT32_MAX = none */
    float recall_target; /* what effort is calibrated for when a search gives neither; 0 = 0.95 */
    uint64_t seed;       /* of every random choice; the caller's, so that a build can be repeated */
};

/* What a long piece of work asks of its caller. All fields may be zero. Callbacks come from one thread at a
 * time. */
struct index_control {
    uint32_t threads;          /* 0 = 1; at most INDEX_THREADS_MAX */
    uint64_t memory_bytes_max; /* beside rows and the finished index; 0 = no bound. OMEN_ENOMEM when it cannot
                                  do */
    bool (*stop)(void *arg);   /* true = give up with OMEN_ECANCELED, soon */
    void (*progress)(void *arg, const char *phase, uint64_t done, uint64_t total);
    void *arg;
};

struct index_hit {
    float distance;
    uint32_t slot;
};

/* One query. `effort` is the width of the candidate pool (ef_search); with effort 0 the index takes the
 * smallest effort that its calibration gives for (k, recall_target), with recall_target 0 too for its own
 * target. */
struct index_search {
    const float *query;     /* [dim], borrowed for the call, finite, 4-byte aligned */
    uint32_t k;             /* 1..OMEN_K_MAX; more than there are is answered with all there are */
    uint32_t effort;        /* 0..INDEX_EFFORT_MAX */
    float recall_target;    /* 0 .. 1 */
    const uint64_t *filter; /* bit `slot` set = may be returned; [ceil(slot_count/64)]; NULL = all */
    uint64_t filter_count;  /* set bits; 0 with a filter = unknown, it is counted */
    uint32_t run_first,
            run_end;    /* instead of a filter: only slots [first, end); 0, 0 = all. See index_takes_runs */
    float distance_max; /* inclusive; only with has_distance_max */
    bool has_distance_max;
    bool (*stop)(void *arg); /* NULL = never; polled at least every INDEX_POLL_HOPS hops */
    void *stop_arg;
    enum index_plan plan; /* one the kind does not have: its own choice */
    struct err *err;      /* NULL = nobody reads it; what an index on disk could not read */
};

/* What searches cost; the callee adds to it. */
struct index_cost {
    uint64_t distances;             /* exact or full-code distances computed */
    uint64_t estimates;             /* distances estimated from short codes */
    uint64_t hops;                  /* graph nodes expanded */
    uint64_t rescored;              /* rows read in full for their final distance */
    uint64_t effort;                /* pool width in use, summed over queries */
    uint64_t walks, gathers, scans; /* queries answered by each plan */
    uint64_t aborted;               /* walks given up for another plan */
    uint64_t rounds;                /* of reading from disk that waited for the one before */
    uint64_t blocks, blocks_read;   /* 4 KB: needed, and not found in a cache */
};

struct index_stats {
    uint64_t slot_count; /* slots handed out, deleted ones included */
    uint64_t live_count;
    uint64_t memory_bytes; /* all that must be in RAM for a search, rows touched by rescoring apart */
    uint64_t
            rescore_bytes; /* rows that rescoring may touch, in bytes per query at default effort; 0 = none */
    uint64_t links;        /* edges, all layers */
    uint64_t unreachable; /* live nodes no walk from the entry finds; computed on demand, UINT64_MAX = unknown
                           */
    double build_seconds; /* 0: storage reads no clock; filled in by who measures */
    uint32_t layer_count;
    float effort_default;     /* calibrated for k = 10 at the index's own target; 0 = not calibrated */
    enum index_layout layout; /* INDEX_LAYOUT_AUTO: the kind has but one */
    enum index_quant quant;   /* of the codes that a walk compares; INDEX_QUANT_AUTO = not told */
    uint32_t bits;            /* of a component in these; 0 = not told */
};

struct index;
struct index_scratch; /* a searching thread's memory: pools, visited marks, the prepared query */

/* What a kind of index does. `insert`, `remove`, `search_batch`, `save` may be NULL (not offered:
 * OMEN_EINVAL). */
struct index_ops {
    enum index_kind kind;
    bool takes_runs;
    void (*free)(struct index *index);
    struct index_scratch *(*scratch_new)(const struct index *index); /* NULL: out of memory */
    void (*scratch_free)(struct index_scratch *scratch);
    enum omen_err (*search)(const struct index *index, const struct index_search *search,
            struct index_scratch *scratch, struct index_hit *hits_out, uint32_t *count_out,
            struct index_cost *cost);
    enum omen_err (*search_batch)(const struct index *index, const struct index_search *searches,
            uint32_t search_count, struct index_scratch *scratch, struct index_hit *const *hits_out,
            uint32_t *counts_out, struct index_cost *cost);
    enum omen_err (*insert)(struct index *index, uint32_t slot, const float *vector, struct err *err);
    enum omen_err (*remove)(struct index *index, uint32_t slot, struct err *err);
    enum omen_err (*save)(const struct index *index, struct vfs *vfs, const char *path, struct err *err);
    void (*stats)(const struct index *index, bool deep, struct index_stats *stats_out);
};

/* First member of every index. */
struct index {
    const struct index_ops *ops;
    uint32_t dim;
    enum metric metric;
};

/* Build over `rows` (borrowed until index_free). A row with NaN or infinity is refused with its slot in the
 * message. Errors: OMEN_EINVAL (dim, count, params, kind not built in), OMEN_ENOMEM, OMEN_ECANCELED; nothing
 * is left behind. */
OMEN_CHECKED enum omen_err index_build(enum index_kind kind, const struct index_rows *rows,
        const struct index_params *params, const struct index_control *control, struct index **index_out,
        struct err *err);
void index_free(struct index *index); /* NULL is fine */

/* An index that is merged into another, and where its rows lie now. */
struct index_part {
    const struct index *index;
    const uint32_t *
            slots; /* [its slot count] its slot -> slot in the merged rows, INDEX_SLOT_NONE = the row is gone */
};
#define INDEX_MERGE_PARTS_MAX 16

/* One sealed graph over `rows`, to which the parts' rows were copied, from the parts: what they know of each other
 * stays, and a row is linked anew only where it must. Built anew where that is no dearer (small, many equal parts, more
 * than a quarter of the rows gone, parts of another kind). Rows, params and control as of index_build; parts are read
 * only, with their own rows, and must outlive the call. Errors: those of index_build; OMEN_EINVAL also when not every slot
 * of `rows` is named by exactly one part, or a part has another dim or metric. */
OMEN_CHECKED enum omen_err index_merge(const struct index_part *parts, uint32_t part_count,
        const struct index_rows *rows, const struct index_params *params, const struct index_control *control,
        struct index **index_out, struct err *err);

struct index_scratch *index_scratch_new(const struct index *index); /* NULL: out of memory */
void index_scratch_free(const struct index *index, struct index_scratch *scratch);

/* The nearest live slots that pass the filter, nearest first, ties by lower slot.
 *
 * hits_out   [k] caller's; unspecified past *count_out
 * cost       added to; NULL when nobody asks
 * Never fewer than min(k, live slots that pass): an index that cannot find them by walking falls back to
 * scanning. Blocks: never, except on page faults of mapped rows and reads of a disk graph. Allocates: only to grow
 * `scratch`. Errors: OMEN_EINVAL (k, effort, target or query out of range), OMEN_EDEADLINE (`stop` said so;
 * outputs unspecified), OMEN_ENOMEM; of a disk graph OMEN_ECORRUPT and OMEN_EIO, search.err names the place. */
OMEN_CHECKED enum omen_err index_search(const struct index *index, const struct index_search *search,
        struct index_scratch *scratch, struct index_hit *hits_out, uint32_t *count_out,
        struct index_cost *cost);
/* Whether index_search takes a run of slots for a filter; what does not answers OMEN_EINVAL. */
bool index_takes_runs(const struct index *index);
/* Several queries at once; those on a flat index share the scan. Answers equal those of index_search one by
 * one. */
OMEN_CHECKED enum omen_err index_search_batch(const struct index *index, const struct index_search *searches,
        uint32_t search_count, struct index_scratch *scratch, struct index_hit *const *hits_out,
        uint32_t *counts_out, struct index_cost *cost);

/* Mutable indexes only. A slot is inserted once, and again only after it was removed. The vector is copied or
 * borrowed as the index's header says. OMEN_EEXISTS, OMEN_ENOTFOUND, OMEN_EINVAL, OMEN_ENOMEM: nothing
 * changed. */
OMEN_CHECKED enum omen_err index_insert(struct index *index, uint32_t slot, const float *vector,
        struct err *err);
OMEN_CHECKED enum omen_err index_remove(struct index *index, uint32_t slot, struct err *err);

/* Write one file (FORMAT.md), durable when this returns OMEN_OK. */
OMEN_CHECKED enum omen_err index_save(const struct index *index, struct vfs *vfs, const char *path,
        struct err *err);
/* Open a file written by index_save. `rows` as at build; dim, metric and count must agree. `pin` reads it
 * into anonymous memory (huge pages where the system has them), else it is mapped. Everything is checked
 * before use, units of a disk graph when they are read (it needs no rows.data): OMEN_ECORRUPT names file and
 * offset, OMEN_EVERSION a version that we do not read. */
OMEN_CHECKED enum omen_err index_map(struct vfs *vfs, const char *path, const struct index_rows *rows,
        bool pin, struct index **index_out, struct err *err);

/* `deep` also computes what needs a walk over the whole index (unreachable). */
void index_stats(const struct index *index, bool deep, struct index_stats *stats_out);

#endif
