/* What a walk over all rows gathers of one payload path; private to storage/payload. */
#ifndef OMEN_STORAGE_PAYLOAD_PAYLOAD_GATHER_H
#define OMEN_STORAGE_PAYLOAD_PAYLOAD_GATHER_H

#include "storage/payload/payload_build.h"
#include "storage/payload/payload_words.h"

struct keyed_row {
    int64_t key;
    uint32_t row;
};

struct posting {
    uint32_t value, row; /* value: by first appearance */
};

struct placed_row {
    uint64_t order; /* place_order */
    struct geo_point place;
    uint32_t row;
};

struct known_value {
    struct hash128 hash;
    uint32_t id, last_row;
};

/* What a walk over all rows gathers of one path. */
struct payload_gather {
    const struct payload_source *source;
    const struct doc_path *path; /* NULL: ids */
    uint32_t row, elements;      /* the current one, and its elements that are not null */
    uint32_t flags;
    uint64_t *bits[PAYLOAD_BITS]; /* owned */
    struct known_value *table;    /* [table_cap] owned; open addressing, id UINT32_MAX = free */
    uint32_t table_cap, value_count;
    struct buf postings;       /* struct posting, in order of rows */
    struct buf numbers, times; /* struct keyed_row */
    struct buf many_numbers, many_times;
    struct buf places, many_places; /* struct placed_row */
    struct words_build words;
    bool failed; /* no memory */
};

bool payload_gather_init(struct payload_gather *g, const struct payload_source *source,
        const struct payload_path *path); /* NULL: ids; false: no memory */
void payload_gather_fini(struct payload_gather *g);
/* OMEN_ECANCELED, OMEN_ENOMEM, OMEN_ETOOBIG. Cost: a walk over all payloads. */
OMEN_CHECKED enum omen_err payload_gather_run(struct payload_gather *g, struct err *err);
/* OMEN_ECANCELED when the source says so; it is asked now and then. */
OMEN_CHECKED enum omen_err payload_stop_ask(const struct payload_source *source, uint32_t row,
        struct err *err);

#endif
