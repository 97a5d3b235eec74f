/* Places: a box in degrees, a distance on the sphere, a polygon in the plane of degrees. No state. */
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
