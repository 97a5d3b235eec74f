/* Random payloads and filters over a small vocabulary, so that conditions often hold: paths with arrays, numbers, words,
 * dates, every kind of condition. One seed, one sequence; one thread. */
#ifndef OMEN_TESTS_SUPPORT_FILTER_RANDOM_H
#define OMEN_TESTS_SUPPORT_FILTER_RANDOM_H

#include "common/query/doc.h"

void filter_random_seed(uint64_t seed); /* not 0 */
uint32_t filter_random_below(uint32_t below);
/* An object with arrays and objects `depth` levels deep. */
void filter_random_payload(struct doc_builder *b, int depth);
/* A filter document with filters in filters `depth` levels deep; ids in has_id are 0 .. 4. */
void filter_random_filter(struct doc_builder *b, int depth);

#endif
