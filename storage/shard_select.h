/* All points that pass a filter: counted, or the first of them in order of key; by the payload indexes of segments where
 * there are, by payloads elsewhere. What count and scroll of shard_store.h stand on. */
#ifndef OMEN_STORAGE_SHARD_SELECT_H
#define OMEN_STORAGE_SHARD_SELECT_H

#include "storage/shard_store_impl.h"

/* How many. OMEN_EDEADLINE, OMEN_ENOMEM. */
OMEN_CHECKED enum omen_err select_count(const struct store_view *view, const struct filter *filter,
        const struct read_limit *limit, uint64_t *count_out);

/* Is it cheaper to find all of them and take the first `limit` than to walk all points in order of key until so many pass?
 * A guess. */
bool select_first_pays(const struct store_view *view, const struct filter *filter, uint32_t limit);
/* The first `limit` after the key `after` (NULL = from the start), in order, into rows_out [limit]; *more_out: there are
 * others. OMEN_EDEADLINE, OMEN_ENOMEM. Memory: of `arena`, (limit + 1) keys. */
OMEN_CHECKED enum omen_err select_first(const struct store_view *view, const struct filter *filter,
        const struct point_key *after, uint32_t limit, const struct read_limit *read_limit,
        struct arena *arena, struct row_ref *rows_out, uint32_t *count_out, bool *more_out);

#endif
