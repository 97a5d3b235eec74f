/* A data set in memory for `omen-bench index`, and the truth that recall is counted against. */
#ifndef OMEN_BENCH_INDEX_DATA_H
#define OMEN_BENCH_INDEX_DATA_H

#include "common/dataset/dataset.h"
#include "storage/index/index.h"

struct bench_data {
    struct dataset set;
    struct index_rows rows; /* f32, normalised under cosine; owned */
    float *queries;         /* [query_count][dim], normalised under cosine; owned */
    uint32_t query_count;
    uint32_t k;
    float *bounds; /* [query_count] a hit counts when its distance is at most this; owned */
    size_t rows_bytes;
};

/* Reads the folder, the first `limit` rows (0 = all), and fixes the k-th true distances: from the truth file
 * when all rows are used and nothing is filtered, else by an exact scan with `threads` threads. Panics with a
 * sentence when the folder cannot serve. */
void bench_data_open(struct bench_data *data, const char *dir, uint64_t limit, uint32_t k,
        const uint64_t *filter, uint32_t threads);
/* Truth again for rows whose bit is set in `filter` (NULL = all). */
void bench_data_truth(struct bench_data *data, const uint64_t *filter, uint32_t threads);
void bench_data_close(struct bench_data *data);

float bench_data_distance(const struct bench_data *data, uint32_t query, uint32_t slot);
/* Share of the k true neighbours that `slots` holds, ties by distance. */
double bench_data_recall(const struct bench_data *data, uint32_t query, const uint32_t *slots,
        uint32_t count);

#endif
