/* Places: a box in degrees, a distance on the sphere, a polygon in the plane of degrees. No state.
 *
 * What is said of a whole box must hold for every place in it as the functions for one place round it. Boxes are compared
 * exactly; distances by cosines with a metre to spare, where the haversine is off by 0.2 m at most (near the antipode, the
 * cosine as much near the center); polygons with 1e-9 degrees to spare, where the sign of a turn is sure from 1e-12 on. */
#include "storage/payload/filter_geo.h"

#include <math.h>

#define EARTH_METRES 6371008.8 /* mean radius, IUGG */

/* A box whose left side lies east of its right one crosses the antimeridian. */
bool geo_box_holds(const struct filter *filter, struct geo_point point)
{
    struct geo_point a = filter->geo_box.top_left, b = filter->geo_box.bottom_right;
    if (point.lat > a.lat || point.lat < b.lat) return false;
    if (a.lon <= b.lon) return point.lon >= a.lon && point.lon <= b.lon;
    return point.lon >= a.lon || point.lon <= b.lon;
}

static double radians(double degrees) { return degrees * (M_PI / 180); }

/* Haversine: exact enough also for neighbours, where the cosine law is not. */
bool geo_radius_holds(const struct filter *filter, struct geo_point point)
{
    struct geo_point center = filter->geo_radius.center;
    double dlat = sin(radians(point.lat - center.lat) / 2), dlon = sin(radians(point.lon - center.lon) / 2);
    double h = dlat * dlat + cos(radians(center.lat)) * cos(radians(point.lat)) * dlon * dlon;
    return 2 * EARTH_METRES * asin(sqrt(h < 1 ? h : 1)) <= filter->geo_radius.metres;
}

enum side { OUTSIDE, ON_EDGE, INSIDE };

/* Edges crossed on the way east, an edge's lower end counting and its upper one not. */
static enum side ring_side(const struct geo_ring *ring, struct geo_point p)
{
    bool inside = false;
    if (p.lon < ring->low.lon || p.lon > ring->high.lon || p.lat < ring->low.lat || p.lat > ring->high.lat)
        return OUTSIDE;
    for (uint32_t i = 1; i < ring->count; i++) {
        struct geo_point a = ring->points[i - 1], b = ring->points[i];
        double turn = (b.lon - a.lon) * (p.lat - a.lat) - (b.lat - a.lat) * (p.lon - a.lon);
        bool beside = p.lon >= fmin(a.lon, b.lon) && p.lon <= fmax(a.lon, b.lon) &&
                p.lat >= fmin(a.lat, b.lat) && p.lat <= fmax(a.lat, b.lat);
        if (turn == 0 && beside) return ON_EDGE;
        if ((a.lat > p.lat) == (b.lat > p.lat)) continue;
        if ((turn > 0) == (b.lat > a.lat)) inside = !inside;
    }
    return inside ? INSIDE : OUTSIDE;
}

bool geo_polygon_holds(const struct filter *filter, struct geo_point point)
{
    if (ring_side(&filter->geo_polygon.rings[0], point) == OUTSIDE) return false;
    for (uint32_t i = 1; i < filter->geo_polygon.count; i++)
        if (ring_side(&filter->geo_polygon.rings[i], point) == INSIDE) return false;
    return true;
}

bool geo_holds(const struct filter *filter, struct geo_point point)
{
    if (filter->kind == FILTER_GEO_BOX) return geo_box_holds(filter, point);
    return filter->kind == FILTER_GEO_RADIUS ? geo_radius_holds(filter, point)
                                             : geo_polygon_holds(filter, point);
}

/* ---- boxes of places ---- */

#define SPARE_METRES 1.0
#define SPARE_DEGREES 1e-9

static enum geo_side box_side(const struct filter *filter, const struct geo_rect *r)
{
    struct geo_point a = filter->geo_box.top_left, b = filter->geo_box.bottom_right;
    bool lon_all, lon_none;
    if (r->low.lat > a.lat || r->high.lat < b.lat) return GEO_OUTSIDE;
    if (a.lon <= b.lon) {
        lon_none = r->high.lon < a.lon || r->low.lon > b.lon;
        lon_all = r->low.lon >= a.lon && r->high.lon <= b.lon;
    } else {
        lon_none = r->high.lon < a.lon && r->low.lon > b.lon;
        lon_all = r->low.lon >= a.lon || r->high.lon <= b.lon;
    }
    if (lon_none) return GEO_OUTSIDE;
    return lon_all && r->high.lat <= a.lat && r->low.lat >= b.lat ? GEO_INSIDE : GEO_CROSSES;
}

/* Degrees on the circle from `lon` to the nearest of [low, high]. */
static double lon_distance(double lon, double low, double high)
{
    if (lon >= low && lon <= high) return 0;
    double a = fabs(lon - low), b = fabs(lon - high);
    a = a > 180 ? 360 - a : a;
    b = b > 180 ? 360 - b : b;
    return a < b ? a : b;
}

/* Cosine of the least angle between a place and a box: along the meridian of the box that is nearest, where the cosine is
 * sin sin + cos cos cos: a sine of latitude, with one top. */
static double nearest_cosine(double sin_lat, double cos_lat, double lon_degrees, const struct geo_rect *r)
{
    double a = sin_lat, b = cos_lat * cos(radians(lon_degrees));
    double low = radians(r->low.lat), high = radians(r->high.lat), top = atan2(a, b);
    if (top >= low && top <= high) return sqrt(a * a + b * b);
    double at_low = a * sin(low) + b * cos(low), at_high = a * sin(high) + b * cos(high);
    return at_low > at_high ? at_low : at_high;
}

static enum geo_side radius_side(const struct geo_region *region, const struct geo_rect *r)
{
    struct geo_point c = region->filter->geo_radius.center;
    double lon = lon_distance(c.lon, r->low.lon, r->high.lon);
    if (region->some_outside) {
        if (r->low.lat > c.lat + region->lat_reach || r->high.lat < c.lat - region->lat_reach ||
                lon > region->lon_reach)
            return GEO_OUTSIDE;
        if (nearest_cosine(region->sin_lat, region->cos_lat, lon, r) < region->cos_outer) return GEO_OUTSIDE;
    }
    if (!region->some_inside) return GEO_CROSSES;
    /* The farthest place of the box is the nearest to the antipode. */
    lon = lon_distance(c.lon > 0 ? c.lon - 180 : c.lon + 180, r->low.lon, r->high.lon);
    return nearest_cosine(-region->sin_lat, region->cos_lat, lon, r) < -region->cos_inner ? GEO_INSIDE
                                                                                          : GEO_CROSSES;
}

static bool edge_touches(struct geo_point a, struct geo_point b, const struct geo_rect *r)
{
    if (fmax(a.lon, b.lon) < r->low.lon || fmin(a.lon, b.lon) > r->high.lon ||
            fmax(a.lat, b.lat) < r->low.lat || fmin(a.lat, b.lat) > r->high.lat)
        return false;
    const struct geo_point corners[4] = { r->low, { r->high.lon, r->low.lat }, r->high,
        { r->low.lon, r->high.lat } };
    int left = 0, right = 0;
    for (int i = 0; i < 4; i++) {
        double turn = (b.lon - a.lon) * (corners[i].lat - a.lat) - (b.lat - a.lat) * (corners[i].lon - a.lon);
        left += turn > 0;
        right += turn < 0;
    }
    return left < 4 && right < 4;
}

/* A box that no edge touches lies on one side of all of them. */
static enum geo_side polygon_side(const struct filter *filter, const struct geo_rect *r)
{
    const struct geo_rect wide = { { r->low.lon - SPARE_DEGREES, r->low.lat - SPARE_DEGREES },
        { r->high.lon + SPARE_DEGREES, r->high.lat + SPARE_DEGREES } };
    for (uint32_t i = 0; i < filter->geo_polygon.count; i++) {
        const struct geo_ring *ring = &filter->geo_polygon.rings[i];
        bool apart = ring->high.lon < wide.low.lon || ring->low.lon > wide.high.lon ||
                ring->high.lat < wide.low.lat || ring->low.lat > wide.high.lat;
        if (apart && i == 0) return GEO_OUTSIDE;
        for (uint32_t p = 1; !apart && p < ring->count; p++)
            if (edge_touches(ring->points[p - 1], ring->points[p], &wide)) return GEO_CROSSES;
    }
    return geo_polygon_holds(filter, r->low) ? GEO_INSIDE : GEO_OUTSIDE;
}

static void radius_make(const struct filter *filter, struct geo_region *region_out)
{
    double outer = (filter->geo_radius.metres + SPARE_METRES) / EARTH_METRES;
    double inner = (filter->geo_radius.metres - SPARE_METRES) / EARTH_METRES;
    double lat = radians(filter->geo_radius.center.lat);
    region_out->sin_lat = sin(lat);
    region_out->cos_lat = cos(lat);
    region_out->some_outside = outer < M_PI;
    region_out->some_inside = inner > 0;
    region_out->cos_outer = cos(outer);
    region_out->cos_inner = inner < M_PI ? cos(inner) : -2; /* then everything is inside */
    region_out->lat_reach = outer * (180 / M_PI);
    bool pole = fabs(lat) + outer >= M_PI / 2;
    region_out->lon_reach = pole ? 360 : asin(sin(outer) / cos(lat)) * (180 / M_PI) + 1e-6;
}

static double lon_wrapped(double lon) { return lon > 180 ? lon - 360 : lon < -180 ? lon + 360 : lon; }

static void bounds_make(const struct filter *filter, struct geo_region *r)
{
    if (filter->kind == FILTER_GEO_BOX) {
        r->north = filter->geo_box.top_left.lat;
        r->south = filter->geo_box.bottom_right.lat;
        r->west = filter->geo_box.top_left.lon;
        r->east = filter->geo_box.bottom_right.lon;
        r->filled = 1;
    } else if (filter->kind == FILTER_GEO_RADIUS) {
        struct geo_point c = filter->geo_radius.center;
        bool all = !(r->lon_reach < 180);
        r->north = c.lat + r->lat_reach;
        r->south = c.lat - r->lat_reach;
        r->west = all ? -180 : lon_wrapped(c.lon - r->lon_reach);
        r->east = all ? 180 : lon_wrapped(c.lon + r->lon_reach);
        r->filled = all ? 1 : M_PI / 4;
    } else {
        const struct geo_ring *exterior = &filter->geo_polygon.rings[0];
        r->north = exterior->high.lat;
        r->south = exterior->low.lat;
        r->west = exterior->low.lon;
        r->east = exterior->high.lon;
        r->filled = 0.5;
    }
}

void geo_region_make(const struct filter *filter, struct geo_region *region_out)
{
    *region_out = (struct geo_region){ .filter = filter };
    if (filter->kind == FILTER_GEO_RADIUS) radius_make(filter, region_out);
    bounds_make(filter, region_out);
}

/* Of [low, high]: the share between the bounds. */
static double span_share(double low, double high, double from, double to)
{
    double both = fmin(high, to) - fmax(low, from);
    if (both < 0) return 0;
    return high > low ? both / (high - low) : 1;
}

double geo_region_share(const struct geo_region *region, const struct geo_rect *r)
{
    double lat = span_share(r->low.lat, r->high.lat, region->south, region->north);
    double lon = region->west <= region->east
            ? span_share(r->low.lon, r->high.lon, region->west, region->east)
            : span_share(r->low.lon, r->high.lon, region->west, 180) +
                    span_share(r->low.lon, r->high.lon, -180, region->east);
    return lat * fmin(lon, 1) * region->filled;
}

enum geo_side geo_region_side(const struct geo_region *region, const struct geo_rect *rect)
{
    if (region->filter->kind == FILTER_GEO_BOX) return box_side(region->filter, rect);
    return region->filter->kind == FILTER_GEO_RADIUS ? radius_side(region, rect)
                                                     : polygon_side(region->filter, rect);
}
