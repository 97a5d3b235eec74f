/* Data, truth and measured recall for tests/recall: rows and queries of one distribution, the queries never in the
 * index, all from a seed that is printed.
 * Threads: one; an index may have built with several. */
#ifndef OMEN_TESTS_SUPPORT_RECALL_SUPPORT_H
#define OMEN_TESTS_SUPPORT_RECALL_SUPPORT_H

#include "storage/index/index.h"

struct recall_set {
    float *data;    /* [count + query_count][dim], owned; the queries are the last */
    float *queries; /* into data */
    struct index_rows rows;
    uint32_t query_count;
    uint64_t rng;
};

uint64_t recall_rng(struct recall_set *set);
float recall_gauss(struct recall_set *set);

/* Zeroed room, nothing filled; seed printed. */
void recall_set_init(struct recall_set *set, uint32_t count, uint32_t query_count, uint32_t dim,
        enum metric metric, uint64_t seed);
/* Points around `centres` places in a space of `intrinsic` dimensions bent into dim; normalised under cosine, norms
 * spread 1..16 under ip. Rows and queries alike. */
void recall_set_fill(struct recall_set *set, uint32_t centres, uint32_t intrinsic);
void recall_set_fini(struct recall_set *set);

/* Builds or fails the test. `quant` and threads as given, everything else the index's default, seed fixed. */
struct index *recall_build(const struct recall_set *set, enum index_kind kind, enum index_quant quant);

struct recall_result {
    double mean, standard_error; /* over the queries */
    double below_80;             /* share of the queries */
    double queries, found_max;   /* how many, and how many neighbours they asked for */
    struct index_cost cost;
};

/* Every query by `search` (its query and filter replaced): filters[q] when given. Fails the test when an answer is not
 * min(k, passing rows) distinct slots that pass, ascending, each with its true distance. */
struct recall_result recall_measure(const struct recall_set *set, const struct index *index,
        const struct index_search *search, const uint64_t *const *filters);

/* Delivered recall must lie in ENGINE.md's interval, target - 2 se .. target + 0.02 + 2 se, the upper end wider by what
 * a small set's calibration is careful by; `exact`: it is free. */
void recall_check(const char *what, const struct recall_result *result, double target, bool exact);

#endif
