/* The filter tree in Qdrant's vocabulary, parsed and validated from a doc (so msgpack and JSON clients share
 * one parser), evaluated in storage/payload.
 *
 *   filter    := { "must": [c..], "should": [c..], "must_not": [c..],
 *                  "min_should": {"conditions": [c..], "min_count": n} }
 *   condition := filter
 *              | {"key": path, "match": {"value": v} | {"any": [v..]} | {"except": [v..]} | {"text": string}}
 *                                                                        v: string, i64, bool
 *              | {"key": path, "range": {"gt"|"gte"|"lt"|"lte": number}}
 *              | {"key": path, "range": {... : RFC 3339 string}}        or "datetime_range"
 *              | {"key": path, "values_count": {"gt"|"gte"|"lt"|"lte": n}}
 *              | {"key": path, "geo_bounding_box": {"top_left": place, "bottom_right": place}}
 *              | {"key": path, "geo_radius": {"center": place, "radius": metres}}
 *              | {"key": path, "geo_polygon": {"exterior": {"points": [place..]}, "interiors": [{"points": ..}..]}}
 *                                                                        place: {"lon": degrees, "lat": degrees}
 *              | {"is_empty": {"key": path}} | {"is_null": {"key": path}}
 *              | {"has_id": [id..]}                                      id: number or UUID string
 *              | {"nested": {"key": path, "filter": filter}}
 * A single object in place of a list of conditions is accepted, and null in place of a list or bound not
 * given. Unknown members are errors that name their place ("filter.must[1].rnage") and the name likely meant.
 *
 * What the conditions mean (Qdrant's semantics; `values` = what doc_path_each gives for the path with
 * open_arrays, so one element of an array at the end of the path suffices, and an absent, null or [] value
 * gives none that could match):
 *   must           every condition holds
 *   should         at least one holds, also beside a must; an empty list is as good as none
 *   must_not       none holds
 *   min_should     at least min_count of its conditions hold; min_count 0 asks for nothing, one above their
 *                  number for the impossible
 *   match value    one of the values is this one, same type: 1 matches neither 1.0 nor "1" nor true
 *   match any      one of the values is in the list; an empty list matches nothing
 *   match except   one of the values is not in the list, of whatever type, null excepted; so an empty list
 *                  matches every point that has a value, and ["x", "y"] passes except ["x"]
 *   match text     one of the values is a string that holds every word of the given one, in any order; words as
 *                  words.h has them. A text without words matches nothing
 *   range          one of the values is a number within all bounds; integers are compared as doubles. Bounds
 *                  that leave no room match nothing
 *   datetime       one of the values is a string that datetime_parse reads, within all bounds
 *   geo_*          one of the values is an object with numbers lon (-180 .. 180) and lat (-90 .. 90) that lies in it,
 *                  edges included. A box whose left side is east of its right one crosses the antimeridian;
 *                  a radius is measured on the sphere of mean radius 6,371,008.8 m; a polygon's edges are straight
 *                  in the plane of degrees, its rings are closed (4 points at least) and do not cross the
 *                  antimeridian; interiors are holes
 *   values_count   the value at the path (arrays not opened) counts: an array its elements, null and absent
 *                  0, any other 1; when the path leads to several, one of them suffices
 *   is_empty       every value at the path (arrays not opened) is null or []; so also when there is none
 *   is_null        a value at the path is null, or is an array that holds a null; absent is not null
 *   has_id         the point's id is in the list; an empty list matches nothing; refused inside nested
 *   nested         one element of the array is an object for which the whole filter holds, paths counting
 *                  from the element.
 *                  The parsed path always ends in [] ("items" is read as "items[]"): a lone object is no
 *                  element */
#ifndef OMEN_COMMON_QUERY_FILTER_H
#define OMEN_COMMON_QUERY_FILTER_H

#include "common/query/point.h"

#define FILTER_DEPTH_MAX 8 /* filters in filters, those of nested included; the outermost is the first */
#define FILTER_CONDITIONS_MAX 1024 /* nodes of the whole tree, the outermost filter included */
#define FILTER_VALUES_MAX 65536    /* values of all any/except/has_id lists and points of polygons together */
#define FILTER_WORDS_MAX 64        /* distinct words of one match text */

enum filter_kind {
    FILTER_BOOL,         /* must / should / must_not / min_should */
    FILTER_MATCH_ANY,    /* value and any: key holds one of values */
    FILTER_MATCH_TEXT,   /* key holds a text with all words */
    FILTER_MATCH_EXCEPT, /* key holds a value that is none of values */
    FILTER_RANGE,        /* numbers */
    FILTER_DATETIME,     /* RFC 3339 strings as UTC microseconds */
    FILTER_GEO_BOX,
    FILTER_GEO_RADIUS,
    FILTER_GEO_POLYGON,
    FILTER_VALUES_COUNT,
    FILTER_IS_EMPTY, /* absent, null or [] */
    FILTER_IS_NULL,  /* present and null */
    FILTER_HAS_ID,
    FILTER_NESTED, /* filter holds for one element of an array of objects */
};

struct geo_point {
    double lon, lat; /* degrees */
};
struct geo_ring {
    const struct geo_point *points; /* [count] >= 4, the last is the first */
    uint32_t count;
    struct geo_point low, high; /* the box around them: nothing outside is inside */
};
/* A payload value as a place; false when it is none. */
bool geo_point_read(struct doc value, struct geo_point *point_out);

/* Bounds folded to one form (of gt and gte together the stricter); absent bounds are -inf / +inf,
 * never open. */
struct filter_range {
    double low, high;
    bool low_open, high_open;
};
struct filter_time_range {
    int64_t low_us, high_us; /* INT64_MIN / MAX = absent */
    bool low_open, high_open;
};

struct filter {
    enum filter_kind kind;
    const struct doc_path *path; /* all but BOOL and HAS_ID */
    union {
        struct {
            const struct filter *const *must, *const *should, *const *must_not, *const *min_should;
            uint32_t must_count, should_count, must_not_count, min_should_count, min_count;
        } all;
        struct {
            const struct doc *values; /* sorted by doc_compare_bytes, distinct */
            uint32_t count;
        } match;
        struct {
            const struct bytes *words; /* in lower case, distinct */
            uint32_t count;            /* 0 .. FILTER_WORDS_MAX */
        } text;
        struct {
            struct geo_point top_left, bottom_right;
        } geo_box;
        struct {
            struct geo_point center;
            double metres;
        } geo_radius;
        struct {
            const struct geo_ring *rings; /* [count] the first is the exterior, the others holes */
            uint32_t count;
        } geo_polygon;
        struct filter_range range; /* RANGE; VALUES_COUNT */
        struct filter_time_range time_range;
        struct {
            const point_id *ids; /* sorted, distinct */
            uint32_t count;
        } has_id;
        const struct filter *nested;
    };
};

/* Parse and validate; the tree lives in `arena` and borrows values and strings from `doc`, which must outlive
 * it.
 * An empty filter ({}, only empty lists, or absent doc) gives NULL: everything matches.
 * Errors: OMEN_EINVAL, OMEN_ETOOBIG (FILTER_* limits, those of paths), OMEN_ENOMEM; the field begins with
 * "filter". */
OMEN_CHECKED enum omen_err filter_parse(struct doc doc, struct arena *arena, const struct filter **filter_out,
        struct err *err);

/* Values that `path` must take for the filter to hold: proof for pruning shards. Returns false when the
 * filter does not confine the path to a finite set; true with no values when nothing can match. Values are
 * sorted by doc_compare_bytes, distinct, and live in `arena` or the filter.
 * Only match value and match any on a path of the same text confine. All of must, should and min_should bind
 * (one confined member of must suffices, every member of should must be); must_not and nested prove nothing.
 * Sound only for a path that holds at most one value, as a shard key does. */
bool filter_values_of_path(const struct filter *filter, const char *path, struct arena *arena,
        const struct doc **values_out, uint32_t *count_out);

/* RFC 3339 date or date-time ("2026-11-22", "2026-11-22T08:00:00.5Z", "2026-11-22 08:00", with offset, else
 * UTC) to UTC microseconds; digits past the sixth of a fraction are cut off; 23:59:60 UTC counts as
 * 23:59:59.999999. Years 0001..9999. false when it is none. Used by the parser and the evaluator alike. */
bool datetime_parse(const char *text, size_t len, int64_t *us_out);

#endif
