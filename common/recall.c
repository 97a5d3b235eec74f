/* The arithmetic of recall.h. */
#include "common/recall.h"

#include <math.h>

#include "common/check.h"

void recall_counts_take(struct recall_counts *counts, uint32_t found, uint32_t sought)
{
    CHECK(found <= sought);
    if (sought == 0) return;
    uint64_t share = (uint64_t)found * RECALL_SHARE_ONE / sought;
    counts->searches++;
    counts->imperfect += found < sought;
    counts->found += found;
    counts->sought += sought;
    counts->shares += share;
    counts->squares += share * share / RECALL_SHARE_ONE;
}

void recall_counts_add(struct recall_counts *sum, const struct recall_counts *counts)
{
    sum->searches += counts->searches;
    sum->imperfect += counts->imperfect;
    sum->found += counts->found;
    sum->sought += counts->sought;
    sum->shares += counts->shares;
    sum->squares += counts->squares;
}

#define COUNT_MAX (UINT64_MAX >> 24) /* of searches and rows: sums over shards do not wrap */

bool recall_counts_valid(const struct recall_counts *c)
{
    return c->sought <= COUNT_MAX && c->searches <= c->sought && c->imperfect <= c->searches &&
            c->found <= c->sought && c->shares <= c->searches * RECALL_SHARE_ONE && c->squares <= c->shares;
}

/* Kish: variance of a search's share over that of as many independent rows; 1 .. rows per search. One search that found
 * nothing is counted in, for there may be such of which none was met yet. */
static double design_effect(const struct recall_counts *c, double share)
{
    double n = (double)c->searches, rows = (double)c->sought / n;
    double spread = (double)c->squares / RECALL_SHARE_ONE / n - share * share + share * share / n;
    double independent = share * (1 - share) / rows;
    double effect = n > 1 && independent > 0 ? spread * n / (n - 1) / independent : rows;
    return effect < 1 ? 1 : effect > rows ? rows : effect;
}

struct recall_estimate recall_estimate(const struct recall_counts *c)
{
    if (c->searches == 0 || c->sought == 0) return (struct recall_estimate){ 0, 0, 1 };
    double share = (double)c->shares / RECALL_SHARE_ONE / (double)c->searches;
    double n = (double)c->sought / design_effect(c, share), z2 = RECALL_CONFIDENCE_Z * RECALL_CONFIDENCE_Z;
    double middle = (share + z2 / (2 * n)) / (1 + z2 / n);
    double half = RECALL_CONFIDENCE_Z / (1 + z2 / n) * sqrt(share * (1 - share) / n + z2 / (4 * n * n));
    double low = middle - half, high = middle + half;
    return (struct recall_estimate){ share,
        low < 0               ? 0
                : low > share ? share
                              : low,
        high > 1               ? 1
                : high < share ? share
                               : high };
}
