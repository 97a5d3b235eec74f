/* Conditions on places: geo_bounding_box, geo_radius, geo_polygon. Part of the filter parser. */
#include <math.h>

#include "common/query/filter_parser.h"

bool geo_point_read(struct doc value, struct geo_point *point_out)
{
    if (value.data == NULL || doc_type(value) != DOC_OBJECT) return false;
    struct doc lon = doc_member(value, (struct bytes){ (const uint8_t *)"lon", 3 });
    struct doc lat = doc_member(value, (struct bytes){ (const uint8_t *)"lat", 3 });
    if (lon.data == NULL || lat.data == NULL || !doc_is_number(lon) || !doc_is_number(lat)) return false;
    *point_out = (struct geo_point){ doc_f64(lon), doc_f64(lat) };
    return fabs(point_out->lon) <= 180 && fabs(point_out->lat) <= 90;
}

static enum omen_err parse_point(const struct filter_parser *p, struct doc doc, const char *name,
        const struct doc_place *up, struct geo_point *point_out)
{
    const struct doc_place place = filter_place_key(up, name);
    if (geo_point_read(filter_member(doc, name), point_out)) return OMEN_OK;
    return filter_refuse(p, &place, OMEN_EINVAL,
            "must be {\"lon\": -180 .. 180, \"lat\": -90 .. 90}, in degrees");
}

static enum omen_err parse_box(const struct filter_parser *p, struct doc doc, const struct doc_place *place,
        struct filter *node)
{
    static const char *const names[] = { "top_left", "bottom_right", NULL };
    struct geo_point top_left, bottom_right;
    enum omen_err rc = filter_check_members(p, doc, place, names);
    if (rc == OMEN_OK) rc = parse_point(p, doc, "top_left", place, &top_left);
    if (rc == OMEN_OK) rc = parse_point(p, doc, "bottom_right", place, &bottom_right);
    if (rc != OMEN_OK) return rc;
    if (top_left.lat < bottom_right.lat)
        return filter_refuse(p, place, OMEN_EINVAL, "top_left must not lie below bottom_right");
    node->kind = FILTER_GEO_BOX;
    node->geo_box.top_left = top_left;
    node->geo_box.bottom_right = bottom_right;
    return OMEN_OK;
}

static enum omen_err parse_radius(const struct filter_parser *p, struct doc doc,
        const struct doc_place *place, struct filter *node)
{
    static const char *const names[] = { "center", "radius", NULL };
    enum omen_err rc = filter_check_members(p, doc, place, names);
    if (rc == OMEN_OK) rc = parse_point(p, doc, "center", place, &node->geo_radius.center);
    if (rc != OMEN_OK) return rc;
    const struct doc_place here = filter_place_key(place, "radius");
    struct doc radius = filter_member(doc, "radius");
    if (radius.data == NULL || !doc_is_number(radius) || doc_f64(radius) < 0)
        return filter_refuse(p, &here, OMEN_EINVAL, "must be a number of metres, at least 0");
    node->kind = FILTER_GEO_RADIUS;
    node->geo_radius.metres = doc_f64(radius);
    return OMEN_OK;
}

/* {"points": [..]}, the first point given again at the end. */
static enum omen_err parse_ring(struct filter_parser *p, struct doc doc, const struct doc_place *place,
        struct geo_ring *ring_out)
{
    static const char *const names[] = { "points", NULL };
    enum omen_err rc = filter_check_members(p, doc, place, names);
    if (rc != OMEN_OK) return rc;
    const struct doc_place list_place = filter_place_key(place, "points");
    struct doc list = filter_member(doc, "points");
    if (list.data == NULL) return filter_refuse(p, &list_place, OMEN_EINVAL, "must be a list of points");
    void *items;
    rc = filter_begin_list(p, list, &list_place, sizeof(struct geo_point), &items);
    if (rc != OMEN_OK) return rc;
    struct geo_point *points = items;
    uint32_t count = 0;
    struct doc_iter it = doc_iter(list);
    struct doc value;
    for (; doc_next(&it, NULL, &value); count++) {
        const struct doc_place here = { .up = &list_place, .slot = count };
        if (!geo_point_read(value, &points[count]))
            return filter_refuse(p, &here, OMEN_EINVAL,
                    "must be {\"lon\": -180 .. 180, \"lat\": -90 .. 90}, in degrees");
    }
    bool closed = count >= 4 && points[0].lon == points[count - 1].lon &&
            points[0].lat == points[count - 1].lat;
    if (!closed)
        return filter_refuse(p, &list_place, OMEN_EINVAL,
                "must hold at least 4 points, the last one the same as the first");
    *ring_out = (struct geo_ring){ points, count, points[0], points[0] };
    for (uint32_t i = 1; i < count; i++) {
        ring_out->low.lon = fmin(ring_out->low.lon, points[i].lon);
        ring_out->low.lat = fmin(ring_out->low.lat, points[i].lat);
        ring_out->high.lon = fmax(ring_out->high.lon, points[i].lon);
        ring_out->high.lat = fmax(ring_out->high.lat, points[i].lat);
    }
    return OMEN_OK;
}

static enum omen_err parse_polygon(struct filter_parser *p, struct doc doc, const struct doc_place *place,
        struct filter *node)
{
    static const char *const names[] = { "exterior", "interiors", NULL };
    enum omen_err rc = filter_check_members(p, doc, place, names);
    if (rc != OMEN_OK) return rc;
    const struct doc_place exterior_place = filter_place_key(place, "exterior");
    const struct doc_place interiors_place = filter_place_key(place, "interiors");
    struct doc exterior = filter_member(doc, "exterior"), interiors = filter_member(doc, "interiors");
    if (exterior.data == NULL)
        return filter_refuse(p, &exterior_place, OMEN_EINVAL, "must be {\"points\": [..]}");
    if (interiors.data != NULL && doc_type(interiors) != DOC_ARRAY)
        return filter_refuse(p, &interiors_place, OMEN_EINVAL, "must be a list of {\"points\": [..]}");
    uint32_t holes = interiors.data == NULL ? 0 : doc_count(interiors);
    if (holes >= FILTER_CONDITIONS_MAX)
        return filter_refuse(p, &interiors_place, OMEN_ETOOBIG, "at most %d interiors",
                FILTER_CONDITIONS_MAX - 1);
    struct geo_ring *rings = arena_alloc(p->arena, (holes + 1) * sizeof *rings);
    if (rings == NULL) return filter_no_memory(p);
    rc = parse_ring(p, exterior, &exterior_place, &rings[0]);
    struct doc_iter it = doc_iter(interiors);
    struct doc value;
    for (uint32_t i = 0; rc == OMEN_OK && doc_next(&it, NULL, &value); i++) {
        const struct doc_place here = { .up = &interiors_place, .slot = i };
        rc = parse_ring(p, value, &here, &rings[i + 1]);
    }
    node->kind = FILTER_GEO_POLYGON;
    node->geo_polygon.rings = rings;
    node->geo_polygon.count = holes + 1;
    return rc;
}

enum omen_err filter_parse_geo(struct filter_parser *p, struct doc doc, const char *name,
        const struct doc_place *up, struct filter *node)
{
    const struct doc_place place = filter_place_key(up, name);
    if (strcmp(name, "geo_radius") == 0) return parse_radius(p, doc, &place, node);
    if (strcmp(name, "geo_bounding_box") == 0) return parse_box(p, doc, &place, node);
    return parse_polygon(p, doc, &place, node);
}
