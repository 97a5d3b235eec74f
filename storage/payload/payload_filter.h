/* Where the conditions of a filter are answered in a payload index; private to storage/payload. */
#ifndef OMEN_STORAGE_PAYLOAD_PAYLOAD_FILTER_H
#define OMEN_STORAGE_PAYLOAD_PAYLOAD_FILTER_H

#include "storage/payload/payload_index_impl.h"

/* Inside a nested condition: the path of its elements, which those of its conditions begin with. */
struct payload_inside {
    char path[PAYLOAD_PATH_BYTES]; /* ends in [] */
    size_t len;
};

/* What the index has for a condition. Not known: nothing. */
struct payload_place {
    const struct payload_field *field; /* NULL with known: no row has a value there */
    bool known;
    bool superset;                 /* what it has is more than the condition asks */
    char path[PAYLOAD_PATH_BYTES]; /* as it is spelled, with its [] at the end */
    size_t len;
};
void payload_place_find(const struct payload_index *index, const struct filter *filter,
        const struct payload_inside *inside, struct payload_place *place_out);
void payload_inside_make(const struct payload_place *place, struct payload_inside *inside_out);

/* Sets to work in. */
struct payload_scratch {
    uint64_t **sets; /* [count] owned, each of capacity words */
    uint32_t count, used, sets_cap;
    size_t capacity;
};
/* A set of any content; NULL: no memory. */
uint64_t *payload_set_take(struct payload_scratch *scratch);

struct payload_walk {
    const struct payload_index *index;
    struct payload_scratch *scratch;
    uint32_t rows;
    uint32_t *by; /* payload_answer.by */
};
/* `out` is overwritten by all of them. Every row may pass. */
void payload_rows_unknown(const struct payload_walk *w, uint64_t *out, bool *exact_out);
/* Rows for which the condition holds by what the field has of them; `superset`: not for all of these. */
OMEN_CHECKED enum omen_err payload_field_rows(const struct payload_walk *w, const struct payload_field *f,
        const struct filter *filter, bool superset, uint64_t *out, bool *exact_out);
/* Where no row has a value. */
void payload_absent_rows(const struct payload_walk *w, const struct filter *filter, uint64_t *out,
        bool *exact_out);

bool payload_word_find(const struct payload_field *field, struct bytes word, uint32_t *position_out);
bool payload_value_find(const struct payload_field *field, struct doc value, uint32_t *position_out);

struct payload_interval {
    int64_t low, high;
    bool low_open, high_open;
};
void payload_interval_of_numbers(const struct filter_range *range, struct payload_interval *interval_out);
void payload_interval_of_times(const struct filter_time_range *range, struct payload_interval *interval_out);
/* Positions [from, to) of ascending keys that lie in it; from == to when none does. */
void payload_interval_find(const int64_t *keys, uint32_t count, const struct payload_interval *interval,
        uint32_t *from_out, uint32_t *to_out);

static inline bool payload_in_range(const struct filter_range *range, double v)
{
    return (range->low_open ? v > range->low : v >= range->low) &&
            (range->high_open ? v < range->high : v <= range->high);
}

#endif
