/* What segment.c, segment_build.c, segment_file.c and segment_search.c share. */
#ifndef OMEN_STORAGE_SEGMENT_SEGMENT_IMPL_H
#define OMEN_STORAGE_SEGMENT_SEGMENT_IMPL_H

#include <pthread.h>
#include <stdatomic.h>

#include "storage/payload/payload_index.h"
#include "storage/segment/segment.h"

#define SEGMENT_SCRATCHES_KEPT 64u

/* Have all points in the segment's blocks a row of its field? */
enum segment_listed { SEGMENT_LISTED_UNKNOWN, SEGMENT_LISTED_ALL, SEGMENT_LISTED_SOME };

struct segment_dead;

struct segment_scratch {
    struct index_scratch *scratch;
    struct index_hit *hits;       /* [cap] owned */
    struct payload_scratch *sets; /* owned; NULL until a filter is asked for */
    uint32_t cap;
    struct segment_scratch *next;
};

struct segment {
    struct vfs *vfs;
    char dir[SEGMENT_PATH_BYTES - 64];
    const struct blocks *blocks; /* the store's, outlives us */
    const struct collection_schema *schema;
    uint64_t number;
    uint32_t field, dim, first_block, end_block;
    enum metric metric;
    uint64_t as_of;
    float recall_target;
    uint32_t count;
    struct row_ref *slots; /* [count] owned */
    uint64_t batch;
    uint32_t batch_parts, part_count;
    uint32_t *parts; /* [part_count] owned, ascending */
    bool own;
    struct vfs_file *rows_file;
    const uint8_t *rows_map; /* header, then [count][stride] f32 */
    uint64_t rows_bytes;
    size_t stride_floats;
    struct index *index;
    struct payload_index *payload; /* NULL: filters are asked of payloads */
    bool pinned;
    struct explain_index about;        /* of index, but for `pinned` */
    uint64_t kept_bytes;               /* of memory_bytes: slots and payload index, never mapped */
    uint64_t disk_bytes, memory_bytes; /* looked up once: an index counts its links to tell */
    _Atomic uint32_t refs;
    _Atomic uint32_t gone; /* of 65,536 near rows, about, so many were dead lately; a hint of searches */
    pthread_mutex_t mutex; /* guards what follows */
    struct segment_scratch *idle;
    uint32_t idle_count;
    struct segment_dead *dead;          /* one reference; NULL until a count asks for it */
    _Atomic enum segment_listed listed; /* no guard: everybody finds the same */
};

enum segment_file { SEGMENT_ROWS, SEGMENT_GRAPH, SEGMENT_PAYLOAD, SEGMENT_SLOTS, SEGMENT_FILES };
void segment_path(const char *dir, uint64_t number, enum segment_file file, char out[SEGMENT_PATH_BYTES]);

struct segment *segment_new(const struct segment_spec *spec); /* refs 1; NULL: no memory */
void segment_rows(const struct segment *s, struct index_rows *rows_out);

/* segment_search.c */
struct segment_scratch *segment_scratch_get(struct segment *s); /* NULL: no memory */
void segment_scratch_put(struct segment *s, struct segment_scratch *scratch);

/* segment_select.c */
void segment_dead_unref(struct segment_dead *dead); /* NULL is fine */

/* segment_payload.c */
OMEN_CHECKED enum omen_err segment_payload_build(struct segment *s, const char *first,
        const struct index_control *control, struct err *err);
/* Or build it again, or do without. OMEN_ECANCELED alone. */
OMEN_CHECKED enum omen_err segment_payload_open(struct segment *s, const char *first,
        const struct index_control *control, struct err *err);

/* segment_file.c */
OMEN_CHECKED enum omen_err segment_rows_write(struct segment *s, const struct index_control *control,
        struct err *err);                                                        /* and map them */
OMEN_CHECKED enum omen_err segment_rows_map(struct segment *s, struct err *err); /* checked in full */
OMEN_CHECKED enum omen_err segment_slots_write(struct segment *s, struct err *err);
OMEN_CHECKED enum omen_err segment_slots_read(struct segment *s, struct err *err); /* against the blocks */

#endif
