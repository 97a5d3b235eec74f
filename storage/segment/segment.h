/* A sealed segment: rows of one vector field in a range of the stream's blocks, copied together and indexed.
 *
 * Segments that were routed apart (route.h) but sealed together are a batch: all of one field and range of blocks, each
 * row that lives there in exactly one of them. A batch has numbered parts; each of its segments holds one of them, or
 * several when one took others in. Only all of them stand for the blocks.
 *
 *   building: rows written --> graph built --> graph saved --> slots written (from here on it is one) --> OPEN
 *   OPEN: immutable, any number of readers --replaced by a larger one--> DROPPED: files go, memory with the last
 *   reader
 *
 * It is an accelerator, not the truth: the stream holds the points, and whether a row is seen by a view is asked of
 * its block (born, died), so a segment serves every view from its own `as_of` on and none is part of the replicated
 * state. What cannot be read is removed and built anew; a missing segment makes searches slower, never wrong.
 *
 * Files in the store's directory: segments/<number>.rows .graph .payload .slots; storage/FORMAT.md. Slots are
 * written last: a number without them is the rest of an interrupted build.
 * Threads: build, open, load by one indexer; search by any. Determinism: local, never part of a digest. */
#ifndef OMEN_STORAGE_SEGMENT_SEGMENT_H
#define OMEN_STORAGE_SEGMENT_SEGMENT_H

#include "common/query/filter.h"
#include "storage/index/index.h"
#include "storage/index/topk.h"
#include "storage/quant/quant.h"
#include "storage/search_explain.h"
#include "storage/stream/blocks.h"

#define SEGMENT_PATH_BYTES 4096

struct segment;
struct payload_index;

/* What a segment is made of and stands for. */
struct segment_spec {
    struct vfs *vfs;
    const char *dir; /* segments/, exists */
    const struct blocks *blocks;
    const struct collection_schema *schema;
    uint32_t field;
    uint64_t number;                 /* never reused within the directory */
    uint32_t first_block, end_block; /* blocks [first, end) */
    uint64_t as_of;                  /* sequence applied before the build: rows visible then are in it */
    float recall_target;             /* 0 < r <= 1 */
    bool pin;                        /* graph in memory of its own rather than mapped */
    bool compact; /* short codes beside the ids, rows from disk for rescoring: about a quarter */
    enum quant_profile quantization;
    const char *payload_first;  /* of the payload index: payload_source.first */
    const struct segment *like; /* of an open: the same segment, whose payload index is shared; NULL: read */
    /* Of a build: the rows, in their order, and what of its batch it is. */
    const struct row_ref *rows; /* [row_count] */
    uint32_t row_count;
    uint64_t batch; /* number of the first segment of the batch; 0 = its own: it is all of the batch */
    uint32_t batch_parts;
    const uint32_t *parts; /* [part_count] that it holds, ascending; NULL with batch 0 */
    uint32_t part_count;
    bool own; /* of one group of rows */
};

/* Copy the rows, index them, and make the files durable. They are those that were visible at `as_of`, of all blocks or of
 * the batch's parts. When there is none it is a segment without rows: of a whole batch without files, else slots alone
 * say so. Errors: OMEN_ECANCELED (control->stop), OMEN_EFULL, OMEN_EIO, OMEN_ENOMEM; nothing
 * is left behind. Cost:
 * see storage/index. */
OMEN_CHECKED enum omen_err segment_build(const struct segment_spec *spec, const struct index_control *control,
        struct segment **segment_out, struct err *err);
/* Size of the graph's file, about what it takes in memory of its own; 0 when there is none. */
uint64_t segment_graph_bytes(const struct segment_spec *spec);
/* Open what is there; `spec` without blocks' range, rows and batch, which the slots tell. Everything is checked:
 * OMEN_ECORRUPT and OMEN_EVERSION name the file, OMEN_EINVAL: it is not of this stream. A payload index that is missing or
 * damaged is built again, which `control` (or NULL) may stop: OMEN_ECANCELED. */
OMEN_CHECKED enum omen_err segment_open(const struct segment_spec *spec, const struct index_control *control,
        struct segment **segment_out, struct err *err);
struct segment *segment_ref(struct segment *segment);
void segment_unref(struct segment *segment); /* NULL is fine */
/* Its files; readers go on. What stays behind is removed when the store is opened next. */
void segment_remove_files(const struct segment *segment);
void segment_remove_number(struct vfs *vfs, const char *dir, uint64_t number);

struct segment_info {
    uint64_t number;
    uint32_t field, first_block, end_block;
    uint32_t rows;
    uint64_t as_of; /* views before it may see rows that are not in it: they scan its blocks */
    uint64_t memory_bytes, disk_bytes; /* memory: what searches look at, also when it is mapped */
    uint64_t kept_bytes;               /* of memory_bytes: slots and payload index, never mapped */
    bool pinned;                       /* the graph: in memory of its own; else the system may take it back */
    float recall_target;
    uint64_t batch; /* segments of one batch have the same; never 0 */
    uint32_t batch_parts;
    const uint32_t *parts; /* [part_count] that it holds; as long as the segment */
    uint32_t part_count;
    bool own;                   /* of one group of rows */
    struct explain_index index; /* NULL names when it has no rows */
};
void segment_info(const struct segment *segment, struct segment_info *info_out);
/* Of its rows; NULL: there is none. Lives as long as the segment. */
const struct payload_index *segment_payload(const struct segment *segment);
/* Rows that do not live any more. Cost: looks at all of them. */
uint32_t segment_dead(const struct segment *segment);
/* Its rows that a view at `as_of` sees, into rows_out [info.rows]; how many. */
uint32_t segment_living(const struct segment *segment, uint64_t as_of, struct row_ref *rows_out);

struct segment_query {
    const float *query; /* [dim], as the metric wants it */
    uint32_t k;
    uint64_t view_sequence, now_ms; /* of the view */
    const struct filter *filter;    /* NULL = all */
    float distance_max;             /* INFINITY = none */
    float recall_target;            /* 0 = the segment's own */
    uint32_t effort;                /* 0 = what the target takes by calibration */
    bool (*stop)(void *arg);
    void *stop_arg;
};

/* The nearest rows that the view sees and the filter passes, pushed to `topk` with location {block, op}: k of them when
 * there are k, at the recall target. `part` is told how, and its counters are added to. The view is not of before
 * `as_of`. Errors: OMEN_EDEADLINE, OMEN_ENOMEM. */
OMEN_CHECKED enum omen_err segment_search(struct segment *segment, const struct segment_query *query,
        struct topk *topk, struct explain_part *part);

/* ---- segment_select.c: all rows that pass, not the nearest ---- */

struct segment_select {
    uint64_t view_sequence, now_ms; /* of the view, which is not of before `as_of` */
    uint64_t died_last;             /* of the last row that died, asked for once the view was there */
    bool none_expired;              /* no point that is there at the view's sequence has expired at now_ms */
    const struct filter *filter;    /* NULL = all */
    bool (*stop)(void *arg);
    void *stop_arg;
};

/* How many rows the view sees and the filter passes. OMEN_EDEADLINE, OMEN_ENOMEM. Cost: the filter's where the payload
 * index answers it, no point has expired and nothing died since the last count; else a look at every row that may pass. */
OMEN_CHECKED enum omen_err segment_count(struct segment *segment, const struct segment_select *select,
        uint64_t *count_out);
/* Every one of them, in any order. */
OMEN_CHECKED enum omen_err segment_select(struct segment *segment, const struct segment_select *select,
        void (*told)(void *arg, struct row_ref row), void *arg);
/* About how many rows pass: 0 only when it is proven. */
double segment_select_estimate(const struct segment *segment, const struct filter *filter);
/* Whether every point of the segment's blocks has a row of the segment's field: then the segments of its batch hold all of
 * them. Cost: a look at the blocks' operations, once. */
bool segment_blocks_listed(struct segment *segment);

#endif
