/* What shard_index.c, shard_index_open.c, shard_tail.c and shard_search.c share. */
#ifndef OMEN_STORAGE_SHARD_INDEX_IMPL_H
#define OMEN_STORAGE_SHARD_INDEX_IMPL_H

#include "storage/index/flat.h"
#include "storage/segment/segment.h"
#include "storage/shard_index.h"
#include "storage/shard_store_impl.h"

/* Segments of the set that were sealed together. */
struct segment_batch {
    uint32_t first, end; /* items */
    uint32_t field;
    uint64_t as_of; /* of the latest of them: views before it see rows that some of them may lack */
};

struct segment_set {
    _Atomic uint32_t refs;
    uint32_t covered[OMEN_VECTOR_FIELDS_MAX]; /* blocks [0, covered) of the field are in segments */
    struct segment_batch *batches; /* [batch_count] owned, in order of items; told once it is published */
    uint32_t batch_count;
    uint32_t count;
    struct segment *items[]; /* by field, then block; those of a batch together; one reference each */
};

#define BUILD_SHARE 3u /* of the memory that graphs could have: as much is left for builds to come */

struct segment_set *segment_set_acquire(struct shard_store *s); /* NULL: none yet */
void segment_set_release(struct segment_set *set);              /* NULL is fine */

struct segment_set *segment_set_new(uint32_t count); /* room for so many, none in it; NULL: no memory */
void segment_set_publish(struct shard_store *s, struct segment_set *set); /* takes the reference */
struct segment_spec index_spec_of(struct shard_store *s, const struct index_policy *policy, const char *dir);
OMEN_CHECKED enum omen_err index_dir_make(struct shard_store *s, char out[STORE_PATH_BYTES], struct err *err);

/* ---- shard_index_open.c ---- */

/* Open the segments that are there, of which a whole cover of the blocks from 0 on is kept, and publish them.
 * OMEN_ECANCELED (control->stop): none is, and the next call begins anew. */
OMEN_CHECKED enum omen_err segment_set_load(struct shard_store *s, const struct index_policy *policy,
        const struct index_control *control, struct err *err);

/* ---- shard_tail.c ---- */

struct tail_sketch;
struct tail_set {
    _Atomic uint32_t refs;
    uint32_t count;
    struct tail_sketch *items[]; /* of a field: in order of blocks, without overlap; one reference each */
};
struct tail_set *tail_set_acquire(struct shard_store *s); /* NULL: none */
void tail_set_release(struct tail_set *set);              /* NULL is fine */
uint64_t tail_memory_bytes(struct shard_store *s);

/* What a sketch knows of the field's blocks [from, end). */
struct tail_part {
    uint32_t first_block, end_block;
    uint32_t slot_end, rows; /* rows: in these blocks */
};
/* False: nothing, or so little that scanning is better. */
bool tail_part(const struct tail_sketch *t, uint32_t field, uint32_t from_block, uint32_t end,
        struct tail_part *part_out);
/* The nearest rows of the part that the view sees and the filter passes, pushed to the query's heap, at the sketch's recall
 * target. *enough_out false: too few pass, nothing was pushed, scan the blocks. *asked_out: payloads that were looked at.
 * OMEN_EDEADLINE, OMEN_ENOMEM. */
OMEN_CHECKED enum omen_err tail_search(struct tail_sketch *t, const struct store_view *view,
        struct flat_query *query, const struct tail_part *part, const struct read_limit *limit,
        struct arena *arena, bool *enough_out, struct index_cost *cost, uint64_t *asked_out);

#endif
