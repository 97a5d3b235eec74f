/* The disk graph's own structs, shared by its builder, search and file; private to storage/index. See disk.c. */
#ifndef OMEN_STORAGE_INDEX_DISK_IMPL_H
#define OMEN_STORAGE_INDEX_DISK_IMPL_H

#include <pthread.h>

#include "common/vfs.h"
#include "storage/index/disk.h"
#include "storage/index/index_impl.h"
#include "storage/quant/quant.h"
#include "storage/quant/rabitq.h"
#include "storage/quant/rotation.h"

#define DISK_PAGE 4096
#define DISK_DEGREE 32
#define DISK_BEAM_MAX 32        /* units read at once */
#define DISK_LEADER_EVERY 16    /* rows per leader */
#define DISK_LEADERS_MAX 262144 /* with those that stand for parts nobody else reaches */
#define DISK_CURVE_POINTS 20
#define DISK_CURVE_KS 3 /* k = 1, 10, 100 */

/* A unit holds `unit_nodes` records: crc32c u32 of what follows | unit u32 | nodes u32 | zero u32 | records |
 * zeros. A record: vector [dim] f32 | links [32] u32 | slot u32 | degree u32. */
#define DISK_UNIT_HEAD 16
struct disk_layout {
    uint32_t record_bytes, unit_bytes, unit_nodes;
};

struct disk_curve {
    uint32_t slack_milli[DISK_CURVE_POINTS];        /* of the stop rule, ascending */
    float recall[DISK_CURVE_KS][DISK_CURVE_POINTS]; /* less 1.65 standard errors, not falling */
    uint32_t points, queries;                       /* 0 = not calibrated */
};

struct disk_cache; /* disk_units.c */

struct disk {
    struct index base;
    uint32_t count;
    uint32_t dim;    /* of rows */
    uint32_t inner;  /* internal: one more under ip */
    uint32_t padded; /* D: inner padded to 64 */
    struct disk_layout layout;
    struct rotation rotation;
    float *mean;    /* [padded] */
    float norm_max; /* ip: the largest |x|^2 */
    float recall_target;
    uint64_t seed;
    struct disk_curve curve;
    struct quant *quant;
    uint8_t *codes; /* [count][code_bytes] by node, huge pages, owned */
    size_t codes_mapped;
    uint32_t code_bytes;
    uint32_t *slots; /* [count] node -> slot */
    uint32_t leader_count;
    uint32_t *leader_nodes; /* [leader_count] */
    uint8_t *leader_groups; /* [ceil(leader_count/32)] codes | f | g, relative to the mean */
    float *leader_scales;   /* [groups][2] */
    uint8_t *units;         /* [units][unit_bytes] while not yet in a file, else NULL */
    size_t units_mapped;
    struct vfs *vfs; /* of the file, NULL while there is none */
    struct vfs_file *file;
    char *path; /* for sentences */
    uint64_t units_offset;
    struct disk_cache *cache; /* NULL = none */
    const uint64_t *absent;   /* by node: held out while calibrating; else NULL */
};

/* What one thread reads units with. */
struct disk_io {
    struct vfs_batch *batch; /* NULL while units are in memory */
    uint8_t *buffers;        /* [DISK_BEAM_MAX][unit_bytes], page-aligned */
};

extern const struct index_ops disk_ops;
void disk_free(struct index *index);
/* Sizes and layout set, no memory but its own; NULL: out of memory. */
struct disk *disk_new(const struct index_rows *rows);

static inline uint32_t disk_unit_count(const struct disk *d)
{
    return (d->count + d->layout.unit_nodes - 1) / d->layout.unit_nodes;
}
static inline uint32_t disk_unit_nodes(const struct disk *d, uint32_t unit)
{
    uint32_t left = d->count - unit * d->layout.unit_nodes;
    return left < d->layout.unit_nodes ? left : d->layout.unit_nodes;
}
static inline const uint8_t *disk_record(const struct disk *d, const uint8_t *unit, uint32_t i)
{
    return unit + DISK_UNIT_HEAD + (size_t)i * d->layout.record_bytes;
}
static inline const float *disk_vector(const uint8_t *record) { return (const float *)(const void *)record; }
static inline const uint32_t *disk_links(const struct disk *d, const uint8_t *record)
{
    return (const uint32_t *)(const void *)(record + d->dim * sizeof(float));
}
static inline uint32_t disk_slot(const struct disk *d, const uint8_t *record)
{
    return disk_links(d, record)[DISK_DEGREE];
}
static inline uint32_t disk_degree(const struct disk *d, const uint8_t *record)
{
    return disk_links(d, record)[DISK_DEGREE + 1];
}

/* Internal vector of a row (`augment`) or query, centred and rotated. out [padded], 64-byte aligned. */
void disk_rotate(const struct disk *d, const float *vector, bool augment, float *out);

/* ---- disk_units.c ---- */

bool disk_io_init(const struct disk *d, struct disk_io *io);
void disk_io_fini(struct disk_io *io);
/* Up to DISK_BEAM_MAX units at once, checked; out[i] is valid until the next call. Errors: OMEN_ECORRUPT, OMEN_EIO
 * naming file and offset. */
OMEN_CHECKED enum omen_err disk_units_read(const struct disk *d, struct disk_io *io, const uint32_t *units,
        uint32_t count, const uint8_t **out, struct err *err, struct index_cost *cost);
/* Head and checksum of a unit whose records are filled in. */
void disk_unit_seal(const struct disk *d, uint8_t *unit, uint32_t number);
/* NULL, or what is wrong with a unit that came from disk. */
const char *disk_unit_fault(const struct disk *d, const uint8_t *unit, uint32_t number);
void disk_cache_free(struct disk_cache *cache);
uint64_t disk_cache_bytes(const struct disk_cache *cache);

/* ---- disk.c ---- */

/* How far a walk goes: the width of its pool, and how many times as far as the k-th row found an unread row may be
 * estimated to be read (infinite = only the width ends it). */
struct disk_effort {
    uint32_t width;
    float slack;
};
struct disk_effort disk_effort_of(uint32_t slack_milli, uint32_t k);

#define DISK_SLACK_SCAN UINT32_MAX /* nothing on the curve reaches the target: scan */
/* Smallest slack that the curve gives for k and target; 0 without a curve. */
uint32_t disk_slack(const struct disk *d, uint32_t k, float recall_target);
/* One walk: the nearest k of the rows that it read. For searches and calibration. */
OMEN_CHECKED enum omen_err disk_walk(const struct disk *d, const struct index_search *search,
        struct disk_effort effort, struct index_scratch *scratch, struct index_hit *hits_out,
        uint32_t *count_out, uint64_t *passed_out, struct index_cost *cost);

/* ---- disk_calibrate.c ---- */

/* Rows that are absent together and the queries of that time. */
struct disk_pass {
    uint64_t *absent;  /* [ceil(count/64)] by node */
    uint32_t *queries; /* [count] nodes */
    uint32_t count;
};
/* d->curve from what the passes' queries find among the rows present. */
OMEN_CHECKED enum omen_err disk_calibrate(struct disk *d, const struct index_rows *rows,
        const struct disk_pass *passes, uint32_t pass_count, const struct index_control *control);

/* ---- disk_file.c ---- */

enum omen_err disk_save(const struct index *index, struct vfs *vfs, const char *path, struct err *err);

#endif
