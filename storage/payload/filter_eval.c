/* The filter evaluator: one small function per kind of condition, each a walk over the values at its path.
 * What every kind means is written in common/query/filter.h; this file is that text in C.
 *
 * Recursion follows the filter tree alone (FILTER_DEPTH_MAX levels, checked by the parser); payloads are
 * walked by doc_path_each, bounded by the length of a path. Threads: no state. Nothing is allocated. */
#include "common/err.h"
#include "common/check.h"
#include "common/query/words.h"
#include "storage/payload/filter_eval.h"
#include "storage/payload/filter_geo.h"

struct point {
    point_id id;
    struct doc payload; /* the root of paths: the payload, or an element inside nested */
};

static bool holds(const struct filter *filter, const struct point *point);

/* A walk stops at the first value that decides: `each` callbacks return false for that. */
struct probe {
    const struct filter *filter;
    const struct point *point;
};

static bool values_hold(const struct doc *values, uint32_t count, struct doc value)
{
    uint32_t low = 0, high = count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        int order = doc_compare_bytes(values[middle], value);
        if (order == 0) return true;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return false;
}

static bool match_any_goes_on(void *arg, struct doc value)
{
    const struct filter *f = ((const struct probe *)arg)->filter;
    return !values_hold(f->match.values, f->match.count, value);
}

static bool match_except_goes_on(void *arg, struct doc value)
{
    const struct filter *f = ((const struct probe *)arg)->filter;
    return doc_type(value) == DOC_NULL || values_hold(f->match.values, f->match.count, value);
}

static bool in_range(const struct filter_range *range, double v)
{
    bool above = range->low_open ? v > range->low : v >= range->low;
    bool below = range->high_open ? v < range->high : v <= range->high;
    return above && below;
}

static bool range_goes_on(void *arg, struct doc value)
{
    const struct filter *f = ((const struct probe *)arg)->filter;
    return !doc_is_number(value) || !in_range(&f->range, doc_f64(value));
}

static bool datetime_goes_on(void *arg, struct doc value)
{
    const struct filter_time_range *range = &((const struct probe *)arg)->filter->time_range;
    if (doc_type(value) != DOC_STRING) return true;
    struct bytes text = doc_string(value);
    int64_t us;
    if (!datetime_parse((const char *)text.data, text.len, &us)) return true;
    bool above = range->low_open ? us > range->low_us : us >= range->low_us;
    bool below = range->high_open ? us < range->high_us : us <= range->high_us;
    return !(above && below);
}

static bool text_goes_on(void *arg, struct doc value)
{
    const struct filter *f = ((const struct probe *)arg)->filter;
    if (doc_type(value) != DOC_STRING || f->text.count == 0) return true;
    uint8_t word[WORD_BYTES_MAX];
    uint64_t missing = UINT64_MAX >> (64 - f->text.count); /* a bit per word */
    size_t at = 0, len;
    while (missing != 0 && (len = words_next(doc_string(value), &at, word)) > 0) {
        for (uint32_t i = 0; i < f->text.count; i++)
            if (f->text.words[i].len == len && memcmp(f->text.words[i].data, word, len) == 0)
                missing &= ~(UINT64_C(1) << i);
    }
    return missing != 0;
}

static bool geo_goes_on(void *arg, struct doc value)
{
    const struct filter *f = ((const struct probe *)arg)->filter;
    struct geo_point point;
    return !geo_point_read(value, &point) || !geo_holds(f, point);
}

static uint32_t values_in(struct doc value)
{
    switch (doc_type(value)) {
    case DOC_NULL: return 0;
    case DOC_ARRAY: return doc_count(value);
    default: return 1;
    }
}

/* Remembers whether the path led anywhere: an absent value counts 0. */
struct count_probe {
    const struct filter *filter;
    bool found;
};

static bool values_count_goes_on(void *arg, struct doc value)
{
    struct count_probe *probe = arg;
    probe->found = true;
    return !in_range(&probe->filter->range, values_in(value));
}

static bool values_count_holds(const struct filter *filter, const struct point *point)
{
    struct count_probe probe = { filter, false };
    if (!doc_path_each(filter->path, point->payload, false, values_count_goes_on, &probe)) return true;
    return !probe.found && in_range(&filter->range, 0);
}

static bool empty_goes_on(void *arg, struct doc value)
{
    (void)arg;
    return values_in(value) == 0;
}

static bool null_goes_on(void *arg, struct doc value)
{
    (void)arg;
    if (doc_type(value) == DOC_NULL) return false;
    if (doc_type(value) != DOC_ARRAY) return true;
    struct doc_iter it = doc_iter(value);
    struct doc element;
    while (doc_next(&it, NULL, &element)) {
        if (doc_type(element) == DOC_NULL) return false;
    }
    return true;
}

static bool nested_goes_on(void *arg, struct doc value)
{
    const struct probe *probe = arg;
    if (doc_type(value) != DOC_OBJECT) return true;
    const struct point element = { probe->point->id, value };
    return !holds(probe->filter->nested, &element);
}

static bool has_id_holds(const struct filter *filter, const struct point *point)
{
    uint32_t low = 0, high = filter->has_id.count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        int order = point_id_compare(filter->has_id.ids[middle], point->id);
        if (order == 0) return true;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return false;
}

static bool bool_holds(const struct filter *filter, const struct point *point)
{
    for (uint32_t i = 0; i < filter->all.must_count; i++) {
        if (!holds(filter->all.must[i], point)) return false;
    }
    for (uint32_t i = 0; i < filter->all.must_not_count; i++) {
        if (holds(filter->all.must_not[i], point)) return false;
    }
    bool should = filter->all.should_count == 0;
    for (uint32_t i = 0; !should && i < filter->all.should_count; i++)
        should = holds(filter->all.should[i], point);
    if (!should) return false;
    uint32_t wanted = filter->all.min_count;
    for (uint32_t i = 0; wanted > 0 && i < filter->all.min_should_count; i++) {
        if (holds(filter->all.min_should[i], point)) wanted--;
    }
    return wanted == 0;
}

/* A value was found on which `goes_on` stopped. */
static bool some_value(const struct filter *filter, const struct point *point, bool open_arrays,
        bool (*goes_on)(void *arg, struct doc value))
{
    struct probe probe = { filter, point };
    return !doc_path_each(filter->path, point->payload, open_arrays, goes_on, &probe);
}

static bool holds(const struct filter *filter, const struct point *point)
{
    if (filter == NULL) return true;
    switch (filter->kind) {
    case FILTER_BOOL: return bool_holds(filter, point);
    case FILTER_MATCH_ANY: return some_value(filter, point, true, match_any_goes_on);
    case FILTER_MATCH_EXCEPT: return some_value(filter, point, true, match_except_goes_on);
    case FILTER_MATCH_TEXT: return some_value(filter, point, true, text_goes_on);
    case FILTER_GEO_BOX:
    case FILTER_GEO_RADIUS:
    case FILTER_GEO_POLYGON: return some_value(filter, point, true, geo_goes_on);
    case FILTER_RANGE: return some_value(filter, point, true, range_goes_on);
    case FILTER_DATETIME: return some_value(filter, point, true, datetime_goes_on);
    case FILTER_VALUES_COUNT: return values_count_holds(filter, point);
    case FILTER_IS_EMPTY: return !some_value(filter, point, false, empty_goes_on);
    case FILTER_IS_NULL: return some_value(filter, point, false, null_goes_on);
    case FILTER_HAS_ID: return has_id_holds(filter, point);
    case FILTER_NESTED: return some_value(filter, point, false, nested_goes_on);
    }
    CHECK(!"a filter has a known kind");
    return false;
}

bool filter_match(const struct filter *filter, point_id id, struct doc payload)
{
    const struct point point = { id, payload };
    return holds(filter, &point);
}
