/* Searches under filters in a store of segments; see filter_search.c. */
#ifndef OMEN_BENCH_FILTER_SEARCH_H
#define OMEN_BENCH_FILTER_SEARCH_H

#include <stdint.h>

#include "storage/shard_store.h"

/* A new store in `dir`; what is in it sealed in segments, as far as the policy goes. */
struct shard_store *filter_store_open(const char *dir, const struct collection_schema *schema);
void filter_store_index(struct shard_store *store);

/* The data set in `folder` has payloads with "section" and "title"; `dir` is scratch and removed. Prints a line per
 * filter. */
void filter_search(const char *folder, const char *dir, uint64_t queries);

#endif
