/* Searches under filters in a store of segments; see filter_search.c. */
#ifndef OMEN_BENCH_FILTER_SEARCH_H
#define OMEN_BENCH_FILTER_SEARCH_H

#include <stdint.h>

/* The data set in `folder` has payloads with "section" and "title"; `dir` is scratch and removed. Prints a line per
 * filter. */
void filter_search(const char *folder, const char *dir, uint64_t queries);

#endif
