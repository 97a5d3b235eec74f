/* A data set in memory for `omen-bench index`, and the truth that recall is counted against. */
#ifndef OMEN_BENCH_INDEX_DATA_H
#define OMEN_BENCH_INDEX_DATA_H

#include "common/dataset/dataset.h"
#include "storage/index/index.h"

/* What one query is filtered by. */
struct bench_filter {
    const uint64_t *bits; /* [ceil(count / 64)]; NULL = all rows */
    uint64_t count;       /* set bits */
};

struct bench_data {
    struct dataset set;
    struct index_rows rows; /* f32, normalised under cosine; owned */
    float *queries;         /* [query_count][dim], normalised under cosine; owned */
    uint32_t query_count;
    uint32_t k;
    float *bounds;    /* [query_count] a hit counts when its distance is at most this; owned */
    uint32_t *wanted; /* [query_count] true neighbours there are: k, or fewer when fewer pass; owned */
    size_t rows_bytes, query_bytes;
};

/* Reads the folder, the first `limit` rows and `queries` queries (0 = all), and fixes the k-th true distances: from
 * the truth file when all rows are used, else by an exact scan with `threads` threads. Panics with a sentence when
 * the folder cannot serve. */
void bench_data_open(struct bench_data *data, const char *dir, uint64_t limit, uint64_t queries, uint32_t k,
        uint32_t threads);
/* Truth again, query q among the rows of filters[q]. */
void bench_data_truth(struct bench_data *data, const struct bench_filter *filters, uint32_t threads);
void bench_data_close(struct bench_data *data);

float bench_data_distance(const struct bench_data *data, uint32_t query, uint32_t slot);
/* Share of the true neighbours that `slots` holds, ties by distance; 1 when there is none to find. */
double bench_data_recall(const struct bench_data *data, uint32_t query, const uint32_t *slots,
        uint32_t count);

#endif
