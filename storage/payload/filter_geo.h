/* Does a place lie where a geo condition says, and does a whole box of places? Semantics in common/query/filter.h; what is
 * said here of one place is the definition, of a box of them a proof. */
#ifndef OMEN_STORAGE_PAYLOAD_FILTER_GEO_H
#define OMEN_STORAGE_PAYLOAD_FILTER_GEO_H

#include "common/query/filter.h"

bool geo_box_holds(const struct filter *filter, struct geo_point point);
bool geo_radius_holds(const struct filter *filter, struct geo_point point);
bool geo_polygon_holds(const struct filter *filter, struct geo_point point); /* cost: its edges */
bool geo_holds(const struct filter *filter, struct geo_point point);         /* whichever of them it is */

/* All places with low.lon <= lon <= high.lon and low.lat <= lat <= high.lat. */
struct geo_rect {
    struct geo_point low, high;
};
enum geo_side {
    GEO_OUTSIDE, /* the condition holds for none of its places */
    GEO_INSIDE,  /* for all */
    GEO_CROSSES, /* for some, or it is not known */
};

/* A condition made ready for many boxes. */
struct geo_region {
    const struct filter *filter;
    /* Of a radius: what an angle from the center is compared with, and the box around it. */
    double sin_lat, cos_lat, cos_outer, cos_inner;
    bool some_inside, some_outside; /* may a box be inside, outside at all */
    double lat_reach, lon_reach;    /* degrees from the center; past them nothing is inside */
    /* A box around it, over the antimeridian where west > east; and which share of that it is, about. */
    double south, north, west, east, filled;
};
void geo_region_make(const struct filter *filter, struct geo_region *region_out);
/* Cost: some sines of a radius, a look at every edge of a polygon. */
enum geo_side geo_region_side(const struct geo_region *region, const struct geo_rect *rect);
/* About which share of the box lies inside. */
double geo_region_share(const struct geo_region *region, const struct geo_rect *rect);

#endif
