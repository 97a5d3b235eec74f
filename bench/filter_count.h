/* Counts and first pages under filters in a store of segments; see filter_count.c. */
#ifndef OMEN_BENCH_FILTER_COUNT_H
#define OMEN_BENCH_FILTER_COUNT_H

#include "common/query/filter.h"

struct filter_count {
    const char *dir; /* scratch, removed */
    uint32_t count;  /* points */
    struct doc (*payload)(void *arg, uint32_t row);
    void *arg;
    const struct filter_asked {
        const char *name, *json;
    } * asked; /* [asked_count] */
    uint32_t asked_count;
    uint64_t rounds;
};
/* Prints a line per filter. */
void filter_count(const struct filter_count *bench);

#endif
