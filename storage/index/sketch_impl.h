/* The sketch's own structs, shared by its writer, search and calibration; private to storage/index.
 *
 * Publishing: the writer fills a row's place, then stores bucket->count with release, then sketch->count. A
 * reader that loads a count with acquire sees everything of the rows below it. The one thing that is written
 * while it may be read is the last, unfilled group of a bucket: two rows share each byte of its codes, so the
 * writer stores whole words atomically and readers copy them word by word (sketch_search.c). */
#ifndef OMEN_STORAGE_INDEX_SKETCH_IMPL_H
#define OMEN_STORAGE_INDEX_SKETCH_IMPL_H

#include <math.h>
#include <stdatomic.h>

#include "storage/index/index_impl.h"
#include "storage/index/sketch.h"
#include "storage/kernel/kernel.h"
#include "storage/quant/rabitq.h"
#include "storage/quant/rotation.h"

#define SKETCH_GENERATIONS 4
#define SKETCH_LEADERS_MAX 1024
#define SKETCH_BLOCK_GROUPS_MAX 8
#define SKETCH_BLOCK_HEAD 64 /* bytes before a block's groups */

/* Where the parts of a group lie: codes [4 * D] at 0 | f, g [32] f16 and two f32 scales, filled in when the
 * group is full | slots [32] u32 | f, g [32] f32. */
struct sketch_layout {
    uint32_t f16, scales, slots, f32, group_bytes;
};

/* Pages that blocks are cut from; a block never leaves its own. */
struct sketch_slab {
    struct sketch_slab *next;
    size_t bytes;
};

struct sketch_block {
    struct sketch_block *next; /* set before a row in it is counted */
    uint32_t groups;
    uint8_t *data; /* [groups][group_bytes], 64-byte aligned, behind this */
};

struct sketch_bucket {
    _Atomic uint32_t count;
    struct sketch_block *first; /* set before a row is counted */
    struct sketch_block *last;  /* the writer's */
    uint32_t last_first;        /* the writer's: groups before `last` */
};

struct sketch_generation {
    uint32_t first_slot;
    uint32_t leader_count; /* a multiple of 16 */
    float *leaders;        /* [leader_count][padded] rotated */
    float *norms;          /* [leader_count] of those, squared */
    uint8_t *codes;        /* [ceil(leader_count/32)] groups relative to 0: codes | f [32] | g [32] f16 */
    float *scales;         /* [groups][2] */
    struct sketch_bucket *buckets;
};

struct sketch {
    uint32_t dim, padded;
    enum metric metric;
    float recall_target;
    uint64_t seed;
    sketch_row_fn *row;
    void *row_arg;
    struct sketch_layout layout;
    struct rotation rotation;
    float *mean; /* [padded] l2 and cosine: of the plain rows; zero under ip; set before a generation exists */
    struct sketch_generation *generations[SKETCH_GENERATIONS];
    _Atomic uint32_t generation_count;
    _Atomic uint32_t count;
    _Atomic uint64_t memory_bytes;
    _Atomic uint32_t norm_max_bits; /* f32: largest |row - mean|, for estimates under ip that stay above 0 */
    /* Calibration: recall[k][effort] as bits of f32, never falling in effort; curve_points is stored last. */
    _Atomic uint32_t curve_points;
    _Atomic uint32_t curve_recall[SKETCH_CURVE_KS][SKETCH_CURVE_POINTS];
    /* The writer's. */
    float *z;                  /* [padded] */
    uint8_t *lut;              /* [padded * 4] */
    uint8_t *signs;            /* [padded / 8] */
    struct sketch_slab *slabs; /* owned, newest first */
    size_t slab_used;          /* of the newest */
    uint32_t next_rows;        /* rows at which the next generation begins */
};

extern const uint32_t sketch_efforts[SKETCH_CURVE_POINTS];
#define SKETCH_EFFORT_SCAN UINT32_MAX

/* Internal vector of a row or query: less the mean, padded, rotated. out [padded], 64-byte aligned. */
void sketch_rotate(const struct sketch *sketch, const float *vector, float *out);
/* Estimated order of leaders for a rotated vector: |z - leader|^2 and, with `ip`, that less |leader|^2, which
 * orders like -dot. estimates_out [leader_count rounded up to 32], infinite past the end. `base` = |z|^2. */
void sketch_leaders(const struct sketch_generation *generation, const struct code_query *code, float base,
        bool ip, float *estimates_out);
/* Effort that the calibration gives; 0 without one, SKETCH_EFFORT_SCAN when none reaches the target. */
uint32_t sketch_effort(const struct sketch *sketch, uint32_t k, float recall_target);

/* f [32] and g [32] in f32 -> f16 with a scale each; the factors past `count` are infinite. */
void sketch_factors_pack(const float *factors, uint32_t count, uint16_t f16_out[2 * CODE_GROUP],
        float scales_out[2]);

/* Steps through the groups of a bucket; as many steps as its count asks for. */
struct sketch_cursor {
    const struct sketch_bucket *bucket;
    const struct sketch_block *block; /* NULL before the first step */
    uint32_t in_block;                /* groups of `block` that were passed */
    const uint8_t *group;
};
static inline void sketch_cursor_next(const struct sketch *sketch, struct sketch_cursor *cursor)
{
    if (cursor->block == NULL || cursor->in_block == cursor->block->groups) {
        cursor->block = cursor->block == NULL ? cursor->bucket->first : cursor->block->next;
        cursor->in_block = 0;
    }
    cursor->group = cursor->block->data + (size_t)cursor->in_block++ * sketch->layout.group_bytes;
}

static inline float sketch_distance(const struct sketch *sketch, const float *query, const float *row)
{
    float d = sketch->metric == METRIC_L2 ? kernel_get()->l2sq_f32(query, row, sketch->dim)
                                          : -kernel_get()->dot_f32(query, row, sketch->dim);
    return isnan(d) ? INFINITY : d; /* a dot product that overflowed both ways */
}

#endif
