/* State of one build of a sealed graph, shared by its steps; private to storage/index. */
#ifndef OMEN_STORAGE_INDEX_SEALED_BUILD_H
#define OMEN_STORAGE_INDEX_SEALED_BUILD_H

#include <stdatomic.h>

#include "storage/index/parallel.h"
#include "storage/index/sealed_impl.h"

#define BUILD_LIST 48       /* nearest candidates kept per node while leaves are multiplied */
#define BUILD_LIST_LEAST 16 /* with little memory; steps between */
#define BUILD_LIST_STEP 8
#define BUILD_MERGE_BYTES                                                                                    \
    160                     /* of a row while graphs are merged: nodes found for it, its number, its place */
#define BUILD_REVERSE 32    /* reverse edges collected per node */
#define BUILD_CANDIDATES 64 /* of one prune: a mask of 64 bits */
#define BUILD_LOCKS 8192

struct build_near {
    int32_t distance; /* between i8 codes, squared */
    uint32_t node;
};

struct build {
    struct sealed *s;
    const struct index_params *params;
    const struct index_control *control;
    uint32_t n;        /* nodes that are linked now: all but the held-out ones, later all */
    uint32_t total;    /* rows */
    uint32_t held_out; /* the last nodes: kept back for calibration, then inserted */
    uint32_t padded;
    uint32_t threads;
    uint32_t fill_to; /* links that a node gets at least, if it has candidates: rejected ones fill up */
    uint32_t *order;  /* [total] node -> slot */
    int8_t *codes;    /* [total][padded] rotated, centred, one step for all; by node */
    size_t codes_mapped;
    float code_step;          /* internal units per code unit */
    int32_t *norms;           /* [n] sum of squares of a code */
    int32_t *sums;            /* [n] sum of a code: what the offset of packed tiles adds */
    struct build_near *lists; /* [n][list_rows] ascending, unused ones at the end with INT32_MAX */
    size_t lists_mapped;
    uint32_t list_rows;     /* BUILD_LIST, fewer under a bound on memory; 0 without lists */
    bool merging;           /* links come from older graphs: no lists */
    uint64_t refused_bytes; /* what a build takes that control->memory_bytes_max forbids; 0 = nothing */
    uint32_t *links;        /* [n][SEALED_DEGREE] */
    uint8_t *degrees;       /* [n] */
    uint8_t *strict;        /* [n] of these, from the front, chosen by the rule: the others fill the row */
    uint32_t *reverse;      /* [n][BUILD_REVERSE] */
    atomic_uchar *reverse_counts;
    atomic_flag *locks; /* [BUILD_LOCKS] of lists, by node % BUILD_LOCKS */
};

/* Rotated vectors while rows are packed. */
struct packing {
    struct build *b;
    uint16_t *rotated; /* [total][padded] f16, times `scale` */
    size_t mapped;
    float scale;
};

static inline const int8_t *build_code(const struct build *b, uint32_t node)
{
    return b->codes + (size_t)node * b->padded;
}

static inline const float *build_row(const struct sealed *s, uint32_t slot)
{
    return s->rows.data + (size_t)slot * s->rows.stride_floats;
}

/* A permutation of the first n nodes that puts coarse clusters together; order_out [n] = old node by new. */
enum omen_err build_order(struct build *b, uint32_t *order_out);
/* Fill b->lists from `copies` overlapping partitions into leaves, all pairs inside each. */
enum omen_err build_multiply(struct build *b);
/* Lists -> pruned links, reverse links, pruned again. */
enum omen_err build_prune(struct build *b);
/* Links again, from what a walk to each node meets in the packed graph: rows must be packed anew afterwards.
 */
enum omen_err build_refine(struct build *b);
/* Memory for codes of `count` vectors; what was there is freed. */
enum omen_err sketch_alloc(struct sealed_sketch *sketch, uint32_t padded, uint32_t count);
/* Codes of up to 32 rotated vectors (times p->scale) as one group; scratch [32 * padded / 8]. */
void sketch_group(const struct packing *p, struct sealed_sketch *sketch, uint32_t group,
        const float *const *rows, uint32_t count, uint8_t *scratch);
/* Leaders from the links as they are; what was there is freed. */
enum omen_err build_leaders(const struct packing *p);
/* Links of a new node from nodes found near it, and the links back: the touched nodes' links change, their
 * rows do not yet. found [count] by node, any order, at most BUILD_CANDIDATES; packed [padded * BUILD_CANDIDATES], 64-byte
 * aligned. touched_out has room for SEALED_DEGREE more. One thread at a time. */
void build_link(struct build *b, uint32_t node, const uint32_t *found, uint32_t count, uint8_t *packed,
        uint32_t *touched_out, uint32_t *touched_count);
/* A build in steps: its graph with the space of the rows known; memory, order (node = slot, held-out ones behind); i8
 * codes by node. build_end whatever happened: the index, or what there was is freed and `err` says why. */
enum omen_err build_begin(struct build *b, const struct index_rows *rows, const struct index_params *params,
        const struct index_control *control, struct err *err);
enum omen_err build_rows(struct build *b, bool merging);
enum omen_err build_encode(struct build *b);
enum omen_err build_end(struct build *b, enum omen_err rc, struct index **index_out, struct err *err);

/* Links from what is known of every node before: candidates by node, below b->n, at most BUILD_CANDIDATES; returns how
 * many. *fixed_out: they are the links (at most SEALED_DEGREE) unless others point to the node now. */
typedef uint32_t build_known_fn(const void *arg, uint32_t node, uint32_t *nodes_out, bool *fixed_out);
enum omen_err build_relink(struct build *b, build_known_fn *known, const void *arg);
/* Links -> rows, leaders, calibration, held-out rows, flat codes; `refined`: with a refining pass. */
enum omen_err build_pack(struct build *b, bool refined);
/* Recall as a function of effort from the held-out rows, into s->curve. Rows 0..n-1 are packed. */
enum omen_err build_calibrate(struct build *b);

#endif
