/* Conditions on the values at one payload path: match, range, datetime_range, values_count. Part of the
 * filter parser. */
#include "common/query/filter_parser.h"
#include "common/query/words.h"

#include <math.h>
#include <stdlib.h>

/* ---- match ------------------------------------------------------------------------------------------- */

static enum omen_err check_match_value(const struct filter_parser *p, struct doc value,
        const struct doc_place *place)
{
    switch (doc_type(value)) {
    case DOC_STRING:
    case DOC_I64:
    case DOC_TRUE:
    case DOC_FALSE: return OMEN_OK;
    case DOC_F64:
        return filter_refuse(p, place, OMEN_EINVAL,
                "a floating-point number cannot be matched, use range with gte and lte");
    case DOC_NULL:
        return filter_refuse(p, place, OMEN_EINVAL, "null cannot be matched, use is_null or is_empty");
    case DOC_ARRAY: return filter_refuse(p, place, OMEN_EINVAL, "a list cannot be matched, use any");
    case DOC_OBJECT: break;
    }
    return filter_refuse(p, place, OMEN_EINVAL, "must be a string, an integer or a bool");
}

static int value_order(const void *a, const void *b)
{
    return doc_compare_bytes(*(const struct doc *)a, *(const struct doc *)b);
}

static enum omen_err parse_values(struct filter_parser *p, struct doc list, const struct doc_place *place,
        struct filter *node)
{
    void *items;
    enum omen_err rc = filter_begin_list(p, list, place, sizeof(struct doc), &items);
    if (rc != OMEN_OK) return rc;
    struct doc *values = items;
    uint32_t count = 0, distinct = 0;
    struct doc_iter it = doc_iter(list);
    while (doc_next(&it, NULL, &values[count])) {
        const struct doc_place here = { .up = place, .slot = count };
        rc = check_match_value(p, values[count], &here);
        if (rc != OMEN_OK) return rc;
        count++;
    }
    qsort(values, count, sizeof *values, value_order);
    for (uint32_t i = 0; i < count; i++)
        if (i == 0 || value_order(&values[distinct - 1], &values[i]) != 0) values[distinct++] = values[i];
    node->match.values = values;
    node->match.count = distinct;
    return OMEN_OK;
}

static bool word_is_known(const struct bytes *words, uint32_t count, struct bytes word)
{
    for (uint32_t i = 0; i < count; i++)
        if (doc_key_compare(words[i], word) == 0) return true;
    return false;
}

static enum omen_err parse_text(const struct filter_parser *p, struct doc value,
        const struct doc_place *place, struct filter *node)
{
    if (doc_type(value) != DOC_STRING) return filter_refuse(p, place, OMEN_EINVAL, "must be a string");
    struct bytes *words = arena_alloc(p->arena, FILTER_WORDS_MAX * sizeof *words);
    if (words == NULL) return filter_no_memory(p);
    uint8_t word[WORD_BYTES_MAX];
    uint32_t count = 0;
    size_t at = 0, len;
    while ((len = words_next(doc_string(value), &at, word)) > 0) {
        if (word_is_known(words, count, (struct bytes){ word, len })) continue;
        if (count == FILTER_WORDS_MAX)
            return filter_refuse(p, place, OMEN_ETOOBIG, "holds more than %d words", FILTER_WORDS_MAX);
        words[count] = (struct bytes){ arena_copy(p->arena, word, len), len };
        if (words[count++].data == NULL) return filter_no_memory(p);
    }
    node->kind = FILTER_MATCH_TEXT;
    node->text.words = words;
    node->text.count = count;
    return OMEN_OK;
}

static enum omen_err parse_match(struct filter_parser *p, struct doc doc, const struct doc_place *up,
        struct filter *node)
{
    static const char *const names[] = { "value", "any", "except", "text", NULL };
    const struct doc_place place = filter_place_key(up, "match");
    enum omen_err rc = filter_check_members(p, doc, &place, names);
    if (rc != OMEN_OK) return rc;
    if (doc_count(doc) != 1)
        return filter_refuse(p, &place, OMEN_EINVAL, "must hold one of value, any, except and text");
    struct doc_iter it = doc_iter(doc);
    struct bytes key;
    struct doc value;
    doc_next(&it, &key, &value);
    const struct doc_place here = { .up = &place, .key = key };
    switch (key.data[0]) { /* the first letters differ */
    case 't': return parse_text(p, value, &here, node);
    case 'v': {
        rc = check_match_value(p, value, &here);
        if (rc != OMEN_OK) return rc;
        const struct doc *copy = arena_copy(p->arena, &value, sizeof value);
        if (copy == NULL) return filter_no_memory(p);
        node->kind = FILTER_MATCH_ANY;
        node->match.values = copy;
        node->match.count = 1;
        return OMEN_OK;
    }
    default:
        node->kind = key.data[0] == 'a' ? FILTER_MATCH_ANY : FILTER_MATCH_EXCEPT;
        return parse_values(p, value, &here, node);
    }
}

/* ---- ranges ------------------------------------------------------------------------------------------ */

static const char *const bound_names[] = { "gt", "gte", "lt", "lte", NULL };
enum { BOUND_GT, BOUND_GTE, BOUND_LT, BOUND_LTE, BOUND_COUNT };

/* The bounds given, by name; those absent or null have data NULL. */
static enum omen_err take_bounds(const struct filter_parser *p, struct doc doc, const struct doc_place *place,
        struct doc bounds_out[BOUND_COUNT])
{
    enum omen_err rc = filter_check_members(p, doc, place, bound_names);
    if (rc != OMEN_OK) return rc;
    bool any = false;
    for (int i = 0; i < BOUND_COUNT; i++) {
        bounds_out[i] = filter_member(doc, bound_names[i]);
        any |= bounds_out[i].data != NULL;
    }
    if (!any) return filter_refuse(p, place, OMEN_EINVAL, "needs at least one of gt, gte, lt and lte");
    return OMEN_OK;
}

/* Narrow the range: both gt and gte may be given, the stricter holds. */
static void narrow(struct filter_range *r, int bound, double v)
{
    bool open = bound == BOUND_GT || bound == BOUND_LT;
    if (bound == BOUND_GT || bound == BOUND_GTE) {
        if (v > r->low)
            r->low_open = open;
        else if (v == r->low)
            r->low_open |= open;
        if (v > r->low) r->low = v;
    } else {
        if (v < r->high)
            r->high_open = open;
        else if (v == r->high)
            r->high_open |= open;
        if (v < r->high) r->high = v;
    }
}

static void narrow_time(struct filter_time_range *r, int bound, int64_t us)
{
    bool open = bound == BOUND_GT || bound == BOUND_LT;
    if (bound == BOUND_GT || bound == BOUND_GTE) {
        if (us > r->low_us)
            r->low_open = open;
        else if (us == r->low_us)
            r->low_open |= open;
        if (us > r->low_us) r->low_us = us;
    } else {
        if (us < r->high_us)
            r->high_open = open;
        else if (us == r->high_us)
            r->high_open |= open;
        if (us < r->high_us) r->high_us = us;
    }
}

static enum omen_err parse_number_bounds(const struct filter_parser *p, const struct doc bounds[BOUND_COUNT],
        const struct doc_place *place, struct filter *node)
{
    node->kind = FILTER_RANGE;
    node->range = (struct filter_range){ .low = -INFINITY, .high = INFINITY };
    for (int i = 0; i < BOUND_COUNT; i++) {
        if (bounds[i].data == NULL) continue;
        const struct doc_place here = filter_place_key(place, bound_names[i]);
        if (doc_type(bounds[i]) == DOC_STRING)
            return filter_refuse(p, &here, OMEN_EINVAL, "bounds must all be numbers or all be date-times");
        if (!doc_is_number(bounds[i]))
            return filter_refuse(p, &here, OMEN_EINVAL, "must be a number or an RFC 3339 date-time");
        narrow(&node->range, i, doc_f64(bounds[i]));
    }
    return OMEN_OK;
}

static enum omen_err parse_time_bounds(const struct filter_parser *p, const struct doc bounds[BOUND_COUNT],
        const struct doc_place *place, struct filter *node)
{
    node->kind = FILTER_DATETIME;
    node->time_range = (struct filter_time_range){ .low_us = INT64_MIN, .high_us = INT64_MAX };
    for (int i = 0; i < BOUND_COUNT; i++) {
        if (bounds[i].data == NULL) continue;
        const struct doc_place here = filter_place_key(place, bound_names[i]);
        if (doc_is_number(bounds[i]))
            return filter_refuse(p, &here, OMEN_EINVAL, "bounds must all be numbers or all be date-times");
        if (doc_type(bounds[i]) != DOC_STRING)
            return filter_refuse(p, &here, OMEN_EINVAL, "must be a string with an RFC 3339 date-time");
        struct bytes text = doc_string(bounds[i]);
        int64_t us;
        if (!datetime_parse((const char *)text.data, text.len, &us)) {
            int shown = text.len > 64 ? 64 : (int)text.len;
            return filter_refuse(p, &here, OMEN_EINVAL, "\"%.*s\" is no RFC 3339 date or date-time", shown,
                    text.data);
        }
        narrow_time(&node->time_range, i, us);
    }
    return OMEN_OK;
}

static enum omen_err parse_range(const struct filter_parser *p, struct doc doc, const struct doc_place *up,
        bool datetime, struct filter *node)
{
    const struct doc_place place = filter_place_key(up, datetime ? "datetime_range" : "range");
    struct doc bounds[BOUND_COUNT];
    enum omen_err rc = take_bounds(p, doc, &place, bounds);
    if (rc != OMEN_OK) return rc;
    for (int i = 0; i < BOUND_COUNT && !datetime; i++) {
        if (bounds[i].data == NULL) continue;
        datetime = doc_type(bounds[i]) == DOC_STRING;
        break; /* the first bound decides, the others must agree */
    }
    return datetime ? parse_time_bounds(p, bounds, &place, node)
                    : parse_number_bounds(p, bounds, &place, node);
}

static enum omen_err parse_values_count(const struct filter_parser *p, struct doc doc,
        const struct doc_place *up, struct filter *node)
{
    const struct doc_place place = filter_place_key(up, "values_count");
    struct doc bounds[BOUND_COUNT];
    enum omen_err rc = take_bounds(p, doc, &place, bounds);
    if (rc != OMEN_OK) return rc;
    node->kind = FILTER_VALUES_COUNT;
    node->range = (struct filter_range){ .low = -INFINITY, .high = INFINITY };
    for (int i = 0; i < BOUND_COUNT; i++) {
        if (bounds[i].data == NULL) continue;
        const struct doc_place here = filter_place_key(&place, bound_names[i]);
        if (doc_type(bounds[i]) != DOC_I64 || doc_i64(bounds[i]) < 0)
            return filter_refuse(p, &here, OMEN_EINVAL, "must be an integer of at least 0");
        narrow(&node->range, i, doc_f64(bounds[i]));
    }
    return OMEN_OK;
}

/* ---- the condition ----------------------------------------------------------------------------------- */

enum omen_err filter_parse_field(struct filter_parser *p, struct doc doc, const struct doc_place *place,
        struct filter *node)
{
    static const char *const names[] = { "key", "match", "range", "datetime_range", "values_count",
        "geo_radius", "geo_bounding_box", "geo_polygon", NULL };
    enum omen_err rc = filter_check_members(p, doc, place, names);
    if (rc != OMEN_OK) return rc;
    struct doc tests[7];
    int count = 0, which = -1;
    for (int i = 0; i < 7; i++) {
        tests[i] = filter_member(doc, names[i + 1]);
        if (tests[i].data == NULL) continue;
        count++;
        which = i;
    }
    if (count != 1)
        return filter_refuse(p, place, OMEN_EINVAL,
                "must hold one of match, range, datetime_range, values_count, geo_radius, geo_bounding_box and "
                "geo_polygon beside key; put others into conditions of their own");
    const struct doc_place key_place = filter_place_key(place, "key");
    rc = filter_parse_path(p, filter_member(doc, "key"), &key_place, &node->path);
    if (rc != OMEN_OK) return rc;
    switch (which) {
    case 0: return parse_match(p, tests[0], place, node);
    case 1: return parse_range(p, tests[1], place, false, node);
    case 2: return parse_range(p, tests[2], place, true, node);
    case 3: return parse_values_count(p, tests[3], place, node);
    default: return filter_parse_geo(p, tests[which], names[which + 1], place, node);
    }
}
