/* The sealed graph's own structs, shared by its builder, search and file; private to storage/index. See
 * sealed.c. */
#ifndef OMEN_STORAGE_INDEX_SEALED_IMPL_H
#define OMEN_STORAGE_INDEX_SEALED_IMPL_H

#include <assert.h>

#include "common/vfs.h"
#include "storage/index/index_impl.h"
#include "storage/quant/pca.h"
#include "storage/quant/rabitq.h"
#include "storage/quant/rotation.h"

#define SEALED_DEGREE CODE_GROUP    /* neighbours in a row; their codes are one fast-scan group */
#define SEALED_LEADERS_SAMPLED 4096 /* nodes that a walk may enter by */
#define SEALED_LEADERS_MAX 8192     /* with those that stand for parts nobody else reaches */
#define SEALED_GROUPS_MET 16        /* groups of leaders that a query looks into */
#define SEALED_LEADER_EVERY 16      /* rows per leader in small segments */
#define SEALED_ENTRIES 4            /* nearest leaders that a walk starts from */
#define SEALED_REDUCE_DIM 512       /* from here on rows are reduced before they are coded */
#define SEALED_REDUCED_MAX 255      /* components that are kept at most */
#define SEALED_CURVE_POINTS 20      /* efforts in a calibration curve */
#define SEALED_CURVE_KS 3           /* k = 1, 10, 100 */
#define SEALED_INTERNAL_DIM_MAX (OMEN_DIM_MAX + 1) /* ip takes one more: the augmented component */
static_assert((SEALED_INTERNAL_DIM_MAX + 63) / 64 * 64 <= CODE_DIM_MAX, "codes hold the augmented dimension");

/* Row of a node, *fast* layout; every part 64-byte aligned, so a row is a whole number of cache lines:
 *   codes [4 * D] of the 32 neighbours | ids [32] u32 | f [32] f16 | g [32] f16 | own [D] u8 | head 64 B
 * 128-d: 512 + 128 + 64 + 64 + 128 + 64 = 960 bytes. */
struct sealed_head {
    float own_lo, own_scale; /* own vector = own_lo + own_scale * byte */
    float f_scale, g_scale;
    uint32_t slot;
    uint32_t degree; /* 0..32 */
    uint32_t zero[10];
};
static_assert(sizeof(struct sealed_head) == 64, "the head is one cache line");

struct sealed_layout {
    uint32_t ids, f, g, own, head, row_bytes; /* offsets in a row; codes are at 0 */
};

/* Fast-scan groups of many vectors relative to the mean: leaders, and the flat array of all nodes.
 * Group: codes [4 * D] | f [32] | g [32] f16. */
struct sealed_sketch {
    uint32_t count;
    uint32_t group_bytes;
    uint8_t *groups; /* [ceil(count/32)][group_bytes], 64-byte aligned, owned or part of the map */
    float *scales;   /* [ceil(count/32)][2] f and g */
};

/* Leaders: sampled nodes that a walk enters by. Near ones lie in one group of up to 32, and a query looks into the
 * groups whose middles are nearest to it. Behind these groups come those of nodes that no sampled leader
 * reaches: they are always looked at. */
struct sealed_leaders {
    uint32_t *nodes;              /* [codes.count] by place; unused places of a group name its first node */
    struct sealed_sketch codes;   /* count is a multiple of 32 */
    struct sealed_sketch middles; /* of the first middles.count groups, in their order */
};

/* What calibration found: recall less 1.65 standard errors, never falling, by pool width and by the slack of the stop
 * rule (sealed_walk.c), and under the rule the share of queries with a recall below 0.8. */
struct sealed_curve {
    uint32_t effort[SEALED_CURVE_POINTS];
    float recall[SEALED_CURVE_KS][SEALED_CURVE_POINTS];
    uint32_t points, queries; /* 0 = not calibrated */
    float slack[SEALED_CURVE_POINTS];
    float slack_recall[SEALED_CURVE_KS][SEALED_CURVE_POINTS];
    float slack_below[SEALED_CURVE_KS][SEALED_CURVE_POINTS];
    uint32_t slack_points;
    float decay; /* of all slacks; 0 in files that were calibrated without */
};

struct compact;

struct sealed {
    struct index base;
    struct index_rows rows; /* borrowed */
    uint32_t count;
    uint32_t dim;    /* internal: rows.dim, one more under ip; reduced: pca.kept and one more */
    uint32_t padded; /* D */
    struct sealed_layout layout;
    struct pca pca;          /* kept 0 = not reduced */
    struct compact *compact; /* compact.h, owned; NULL in the fast layout */
    struct rotation rotation;
    float *mean;        /* [padded] of the internal vectors, zero past dim */
    float norm_max;     /* ip: the largest |x|^2, which the augmented component fills up to */
    bool lossless;      /* own bytes are the row itself (integers 0..255): no rescoring under l2 */
    uint8_t *graph;     /* [count][row_bytes], huge pages, owned */
    size_t graph_bytes; /* as mapped */
    struct sealed_leaders leaders;
    struct sealed_sketch flat; /* by slot, so that a filter's bits fall together with it */
    struct sealed_curve curve;
    float recall_target;
    uint64_t seed;           /* of the rotation */
    const uint8_t *file_map; /* the mapped file when graph points into it, with its file; else NULL */
    struct vfs_file *file;
    uint64_t file_bytes;
};

static inline uint8_t *sealed_row(const struct sealed *s, uint32_t node)
{
    return s->graph + (size_t)node * s->layout.row_bytes;
}
/* Of a row that is searched; the builder casts the const away. */
static inline const uint32_t *sealed_ids(const struct sealed *s, const uint8_t *row)
{
    return (const uint32_t *)(const void *)(row + s->layout.ids);
}
static inline const struct sealed_head *sealed_head(const struct sealed *s, const uint8_t *row)
{
    return (const struct sealed_head *)(const void *)(row + s->layout.head);
}

/* Slot and number of neighbours of a node, in either layout. */
uint32_t sealed_slot(const struct sealed *s, uint32_t node);
uint32_t sealed_degree(const struct sealed *s, uint32_t node);

/* Set what follows from the number of kept components, 0 = not reduced. */
void sealed_dim_set(struct sealed *s, uint32_t kept);
void sealed_layout_init(struct sealed_layout *layout, uint32_t padded, bool compact);
/* Internal vector of a row or query: copied or reduced, augmented under ip, zero-padded. out [padded]. `augment` =
 * a row, not a query. Reduced rows have the length of what is left out as their last component, queries 0 there:
 * what a row and a query leave out is taken for orthogonal, so distances come out right but for that angle. */
void sealed_internal(const struct sealed *s, const float *vector, bool augment, float *out);
/* Internal vector -> rotated, centred. In place, 64-byte aligned. */
void sealed_rotate(const struct sealed *s, float *v);

void *sealed_pages_new(size_t bytes, size_t *mapped_out); /* zeroed, huge pages; NULL: out of memory */
void sealed_pages_free(void *pages, size_t mapped);

void sealed_leaders_free(struct sealed_leaders *leaders);
extern const struct index_ops sealed_ops;
void sealed_free(struct index *index);
/* An empty graph for rows in the fast layout: sizes and layout set, no memory but its own; NULL: out of memory. */
struct sealed *sealed_new(const struct index_rows *rows);
enum omen_err sealed_save(const struct index *index, struct vfs *vfs, const char *path, struct err *err);

#define SEALED_EFFORT_SCAN UINT32_MAX /* no effort on the curve reaches the target: scan */
/* Smallest effort that the curve gives for k and target; 0 without a curve. */
uint32_t sealed_effort(const struct sealed *s, uint32_t k, float recall_target);

/* Visited nodes that a search for k looks at again: k when their own bytes are exact, else some more to be
 * rescored, and more with the effort when rows are reduced. */
uint32_t sealed_want(const struct sealed *s, uint32_t k, uint32_t effort);

/* How far a walk goes. */
struct sealed_pace {
    uint32_t effort; /* width of the pool */
    float slack;     /* of the stop rule; INFINITY = none */
    float decay;     /* what it loses with each doubling of the hops in which nothing nearer was found */
};
#define SEALED_RULE_EFFORT                                                                                   \
    1024                    /* width of the pool under the stop rule: the queries that need most end here */
#define SEALED_RULE_NEAR 10 /* the rule looks at the k-th distance, k at least this */
/* The pace for k and target, without a filter; false: no pace reaches the target. */
bool sealed_pace_choose(const struct sealed *s, uint32_t k, float recall_target,
        struct sealed_pace *pace_out);

/* One walk: the nearest `want` nodes that were visited, by their own codes, nearest first, slots still node
 * numbers. Used by searches and, while building, for linking and calibration. */
enum omen_err sealed_walk(const struct sealed *s, const struct index_search *search, struct sealed_pace pace,
        uint32_t want, struct index_scratch *scratch, struct index_hit *hits_out, uint32_t *count_out,
        struct index_cost *cost);

#endif
