/* Does a place lie where a geo condition says? Part of the evaluator; semantics in common/query/filter.h. */
#ifndef OMEN_STORAGE_PAYLOAD_FILTER_GEO_H
#define OMEN_STORAGE_PAYLOAD_FILTER_GEO_H

#include "common/query/filter.h"

bool geo_box_holds(const struct filter *filter, struct geo_point point);
bool geo_radius_holds(const struct filter *filter, struct geo_point point);
bool geo_polygon_holds(const struct filter *filter, struct geo_point point); /* cost: its edges */

#endif
