/* Does a point match a filter? The exact answer, from the payload bytes alone: the definition that payload
 * indexes, bitmaps and planners must agree with.
 *
 * Threads: any; no state. Determinism: a function of its arguments (no clock, no locale). Never allocates.
 * Stack: bounded by FILTER_DEPTH_MAX nested filters. */
#ifndef OMEN_STORAGE_PAYLOAD_FILTER_EVAL_H
#define OMEN_STORAGE_PAYLOAD_FILTER_EVAL_H

#include "common/query/filter.h"

/* True when the point matches. `filter` NULL = everything matches. `payload` has passed doc_validate; absent
 * counts as {}. Cost: one walk of the payload's members per condition, binary search in long value lists. */
bool filter_match(const struct filter *filter, point_id id, struct doc payload);

#endif
