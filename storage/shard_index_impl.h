/* What shard_index.c and shard_search.c share. */
#ifndef OMEN_STORAGE_SHARD_INDEX_IMPL_H
#define OMEN_STORAGE_SHARD_INDEX_IMPL_H

#include "storage/segment/segment.h"
#include "storage/shard_store_impl.h"

struct segment_set {
    _Atomic uint32_t refs;
    uint32_t covered[OMEN_VECTOR_FIELDS_MAX]; /* blocks [0, covered) of the field are in segments */
    uint32_t count;
    struct segment *items[]; /* by field, then block; one reference each */
};

struct segment_set *segment_set_acquire(struct shard_store *s); /* NULL: none yet */
void segment_set_release(struct segment_set *set);              /* NULL is fine */

#endif
