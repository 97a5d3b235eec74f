/* Filters of `omen-bench index`: made ones of a given selectivity and relation to the vectors, and real ones. */
#ifndef OMEN_BENCH_INDEX_FILTER_H
#define OMEN_BENCH_INDEX_FILTER_H

#include "bench/index_data.h"

struct bench_filters {
    const char *text;              /* as asked for */
    struct bench_filter *by_query; /* [query_count]; owned */
    uint64_t *bits;                /* [sets][words]; owned */
    double selectivity;            /* mean over the queries */
};

/* `text` is one of
 *   random:S       rows chosen at random, share S of them
 *   correlated:S   share S of the rows: those nearest to one of 16 anchors, for each query the anchor nearest to it
 *   anti:S         the same, for each query the anchor farthest from it
 *   JSON           a filter as clients send it, over the payload of the data set (row i is line i and has id i; a
 *                  line that is no JSON object is read as {"text": line})
 * Panics with a sentence when it is none of them. */
void bench_filters_make(struct bench_filters *filters, struct bench_data *data, const char *text);
void bench_filters_free(struct bench_filters *filters);

#endif
