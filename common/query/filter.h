/* The filter tree in Qdrant's vocabulary, parsed and validated from a doc (so msgpack and JSON clients share one
 * parser), evaluated in storage/payload.
 *
 *   filter    := { "must": [c..], "should": [c..], "must_not": [c..], "min_should": {"conditions": [c..], "min_count": n} }
 *   condition := filter
 *              | {"key": path, "match": {"value": v} | {"any": [v..]} | {"except": [v..]}}     v: string, i64, bool
 *              | {"key": path, "range": {"gt"|"gte"|"lt"|"lte": number}}
 *              | {"key": path, "range": {... : RFC 3339 string}}        or "datetime_range"
 *              | {"key": path, "values_count": {"gt"|"gte"|"lt"|"lte": n}}
 *              | {"is_empty": {"key": path}} | {"is_null": {"key": path}}
 *              | {"has_id": [id..]}                                      id: number or UUID string
 *              | {"nested": {"key": path, "filter": filter}}
 * A single object in place of a list of conditions is accepted. Unknown members are errors that name their place
 * ("filter.must[1].rnage"). match text and geo arrive with the payload index. */
#ifndef OMEN_COMMON_QUERY_FILTER_H
#define OMEN_COMMON_QUERY_FILTER_H

#include "common/query/point.h"

#define FILTER_DEPTH_MAX 8
#define FILTER_CONDITIONS_MAX 1024   /* nodes of the whole tree */
#define FILTER_VALUES_MAX 65536      /* values of all any/except/has_id lists together */

enum filter_kind {
    FILTER_BOOL,          /* must / should / must_not / min_should */
    FILTER_MATCH_ANY,     /* value and any: key holds one of values */
    FILTER_MATCH_EXCEPT,  /* key holds a value that is none of values */
    FILTER_RANGE,         /* numbers */
    FILTER_DATETIME,      /* RFC 3339 strings as UTC microseconds */
    FILTER_VALUES_COUNT,
    FILTER_IS_EMPTY,      /* absent, null or [] */
    FILTER_IS_NULL,       /* present and null */
    FILTER_HAS_ID,
    FILTER_NESTED,        /* filter holds for one element of an array of objects */
};

/* Half-open bounds folded to one form; absent bounds are -inf / +inf. */
struct filter_range { double low, high; bool low_open, high_open; };
struct filter_time_range { int64_t low_us, high_us; bool low_open, high_open; }; /* INT64_MIN / MAX = absent */

struct filter {
    enum filter_kind kind;
    const struct doc_path *path;                  /* all but BOOL and HAS_ID */
    union {
        struct {
            const struct filter *const *must, *const *should, *const *must_not, *const *min_should;
            uint32_t must_count, should_count, must_not_count, min_should_count, min_count;
        } all;
        struct { const struct doc *values; uint32_t count; } match; /* sorted by bytes, distinct */
        struct filter_range range;                /* RANGE; VALUES_COUNT */
        struct filter_time_range time_range;
        struct { const point_id *ids; uint32_t count; } has_id; /* sorted, distinct */
        const struct filter *nested;
    };
};

/* Parse and validate; the tree lives in `arena` and borrows strings from `doc`, which must outlive it.
 * An empty filter ({} or absent doc) gives NULL: everything matches. */
OMEN_CHECKED enum omen_err filter_parse(struct doc doc, struct arena *arena, const struct filter **filter_out,
        struct err *err);

/* Values that `path` must take for the filter to hold: proof for pruning shards. Returns false when the filter does
 * not confine the path to a finite set (must/any/should logic is followed). Values live in `arena`. */
bool filter_values_of_path(const struct filter *filter, const char *path, struct arena *arena,
        const struct doc **values_out, uint32_t *count_out);

/* RFC 3339 date or date-time ("2026-11-22", "2026-11-22T08:00:00.5Z", with offset) to UTC microseconds.
 * false when it is none. Used by the parser and the evaluator alike. */
bool datetime_parse(const char *text, size_t len, int64_t *us_out);

#endif
