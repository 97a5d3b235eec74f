/* Measured recall: counts of compared searches, and what they say of all.
 *
 * A search is worth one observation, its share found / sought, because rows of one search are missed together (a walk that
 * ended in the wrong place misses many). The interval is Wilson's for a share, of an effective number of rows: rows
 * compared over a design effect (Kish) that is estimated from the spread between searches. That spread is blind to losses
 * that are rare and whole, so one search that found nothing is counted into it; its weight goes as searches come in.
 *
 * Counts of shards add up. Plain integers, so that they travel and add without rounding. */
#ifndef OMEN_COMMON_RECALL_H
#define OMEN_COMMON_RECALL_H

#include <stdbool.h>
#include <stdint.h>

#define RECALL_SHARE_ONE (1u << 20) /* a share of 1 in `shares` and `squares` */
#define RECALL_CONFIDENCE_Z 1.96    /* two-sided 95 % */

struct recall_counts {
    uint64_t searches;      /* compared with the exact answer */
    uint64_t imperfect;     /* of those, missed something */
    uint64_t found, sought; /* rows */
    uint64_t shares;        /* sum of found / sought, in 1 / RECALL_SHARE_ONE */
    uint64_t squares;       /* sum of its square, likewise */
};

/* One search; `sought` 0 is none. found <= sought. */
void recall_counts_take(struct recall_counts *counts, uint32_t found, uint32_t sought);
void recall_counts_add(struct recall_counts *sum, const struct recall_counts *counts);
/* Whether numbers from elsewhere can be counts. */
bool recall_counts_valid(const struct recall_counts *counts);

struct recall_estimate {
    double recall, low, high; /* 0 <= low <= recall <= high <= 1; without searches 0, 0, 1 */
};
struct recall_estimate recall_estimate(const struct recall_counts *counts);

#endif
