/* Sketch of unindexed rows as they arrive: 1-bit RaBitQ codes in buckets of leaders; what a large tail is
 * searched by.
 *
 *   sketch_new(&params, ...)                      one writer
 *   sketch_add(sketch, vector, ...)               one writer, row after row; slots count up from 0
 *   sketch_scratch_new, sketch_search             any number of readers beside it, no lock
 *   sketch_calibrate                              any one thread, now and then
 *   sketch_free                                   when no reader is left
 *
 * Rows stay where the caller has them: they may lie anywhere and are asked for by slot. A slot is the number of
 * rows before it. Rows are never removed here: the caller says at each search which slots are alive, and
 * starts a new sketch when the old rows have been indexed. Metrics and distances as in index.h.
 *
 * Generations: the first SKETCH_PLAIN_ROWS rows have no codes; then there are 16 leaders, and each time the rows
 * have grown eightfold four times as many, up to 1,024, chosen among the rows so far. Rows go to the leaders
 * that exist when they arrive and never move, so neither does memory: readers need no lock and nothing is
 * freed before sketch_free. The last generation holds at least seven eighths of the rows.
 *
 * Threads: sketch_add from one thread at a time. Readers see all rows whose sketch_add returned before
 * sketch_count was read, wholly. Memory: D/2 + 18 bytes a row in groups of 32, D = dim padded to 64 (see
 * sketch_stats), and the leaders. Determinism: local and rebuildable; never part of the replicated state. */
#ifndef OMEN_STORAGE_INDEX_SKETCH_H
#define OMEN_STORAGE_INDEX_SKETCH_H

#include "storage/index/index.h"

#define SKETCH_PLAIN_ROWS 256 /* rows before there are leaders */

struct sketch;
struct sketch_scratch; /* a searching thread's memory */

/* Address of a row, [dim] f32, valid and constant while the sketch lives; called with slots whose sketch_add
 * has returned, from every searching thread and from the writer. */
typedef const float *sketch_row_fn(void *arg, uint32_t slot);
/* May this slot be returned? Called for candidates only, some hundreds to thousands per search. */
typedef bool sketch_alive_fn(void *arg, uint32_t slot);

struct sketch_params {
    uint32_t dim;
    enum metric metric;
    float recall_target; /* of a search that names none; 0 = 0.95 */
    uint64_t seed;
    sketch_row_fn *row;
    void *row_arg;
};

/* One query. In `base`, effort is the number of rows rescored; with effort 0 the calibration gives it. */
struct sketch_search {
    struct index_search base;
    uint32_t slot_end;      /* only slots below it; UINT32_MAX = all there are, refused with a filter */
    sketch_alive_fn *alive; /* NULL = all are */
    void *alive_arg;
};

struct sketch_stats {
    uint64_t rows, memory_bytes;
    uint32_t generations, leaders; /* in all generations */
    uint32_t bucket_rows_max;
    uint32_t effort_default; /* k = 10 at the sketch's own target; 0 = not calibrated */
};

/* Errors: OMEN_EINVAL (dim, target), OMEN_ENOMEM. Row and row_arg are borrowed until sketch_free. */
OMEN_CHECKED enum omen_err sketch_new(const struct sketch_params *params, struct sketch **sketch_out,
        struct err *err);
void sketch_free(struct sketch *sketch); /* NULL is fine */

/* The row must be readable through params.row before the call. *slot_out gets its slot. Cost: a rotation, one
 * scan of the leaders' codes, one code: about 3 us at 128-d and 1,024 leaders (README.md). Errors:
 * OMEN_EINVAL (not finite), OMEN_ETOOBIG (INDEX_SLOTS_MAX rows), OMEN_ENOMEM; nothing changed. */
OMEN_CHECKED enum omen_err sketch_add(struct sketch *sketch, const float *vector, uint32_t *slot_out,
        struct err *err);
uint32_t sketch_count(const struct sketch *sketch); /* any thread */

struct sketch_scratch *sketch_scratch_new(const struct sketch *sketch); /* NULL: out of memory */
void sketch_scratch_free(struct sketch_scratch *scratch);               /* NULL is fine */

/* As index_search: the nearest slots below slot_end that pass, nearest first, ties by lower slot; never fewer
 * than min(k, slots that pass). Exact when few rows can pass. Errors: OMEN_EINVAL, OMEN_EDEADLINE, OMEN_ENOMEM.
 */
OMEN_CHECKED enum omen_err sketch_search(const struct sketch *sketch, const struct sketch_search *search,
        struct sketch_scratch *scratch, struct index_hit *hits_out, uint32_t *count_out,
        struct index_cost *cost);

/* Measure recall by effort and let later searches use it. The newest 256 rows (a 40th of few) serve as
 * queries against all before them: they are the rows that a search of that moment has not seen. Cost: one
 * exact scan, shared by them, and a dozen searches for each. Worth repeating when the rows have doubled.
 * Threads: beside the writer and readers, one call at a time. Below 2,000 rows nothing is done. OMEN_ECANCELED,
 * OMEN_ENOMEM. */
OMEN_CHECKED enum omen_err sketch_calibrate(struct sketch *sketch, sketch_alive_fn *alive, void *alive_arg,
        const struct index_control *control);

/* What a calibration found. Given to a new sketch of rows of the same kind, it serves until there are many more of them
 * than there were then: among fewer the same effort finds as much and more. By the thread that calibrates. */
#define SKETCH_CURVE_POINTS 12
#define SKETCH_CURVE_KS 3 /* k = 1, 10, 100 */
struct sketch_curve {
    uint32_t points; /* 0 = not calibrated */
    float recall[SKETCH_CURVE_KS][SKETCH_CURVE_POINTS];
};
void sketch_curve(const struct sketch *sketch, struct sketch_curve *curve_out);
void sketch_curve_set(struct sketch *sketch, const struct sketch_curve *curve);

/* The buckets as a first partition of the rows below slot_end, for who builds an index of them: `each` gets
 * every bucket's slots, ascending, borrowed for the call; rows without a code come as one more bucket. It
 * stops when `each` returns false. OMEN_ENOMEM, OMEN_ECANCELED (each said so). */
OMEN_CHECKED enum omen_err sketch_partition(const struct sketch *sketch, uint32_t slot_end,
        bool (*each)(void *arg, const uint32_t *slots, uint32_t count), void *arg);

void sketch_stats(const struct sketch *sketch, struct sketch_stats *stats_out);

#endif
