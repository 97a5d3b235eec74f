/* The filter parser: what it makes of each condition, what it refuses and how it says so, its limits, and
 * which values it proves for a path. */
#include <check.h>
#include <math.h>
#include <stdio.h>

#include "common/query/filter.h"
#include "tests/support/doc_text.h"

static struct arena arena;
static struct err err;

static void setup(void)
{
    arena_init(&arena, 1 << 16, 0);
    err_clear(&err);
}

static void teardown(void) { arena_fini(&arena); }

static const struct filter *parse(const char *text)
{
    const struct filter *f;
    enum omen_err rc = filter_parse(doc_of(&arena, text), &arena, &f, &err);
    ck_assert_msg(rc == OMEN_OK, "%s: %s: %s", text, err.field, err.message);
    return f;
}

/* The only condition of {"must": [condition]}. */
static const struct filter *condition(const char *text)
{
    char *filter = arena_calloc(&arena, 1, strlen(text) + 16);
    sprintf(filter, "{'must': [%s]}", text);
    const struct filter *f = parse(filter);
    ck_assert_int_eq(f->kind, FILTER_BOOL);
    ck_assert_uint_eq(f->all.must_count, 1);
    return f->all.must[0];
}

static void refuse(const char *text, enum omen_err code, const char *field, const char *message)
{
    const struct filter *f = (const struct filter *)1;
    err_clear(&err);
    enum omen_err rc = filter_parse(doc_of(&arena, text), &arena, &f, &err);
    ck_assert_msg(rc == code, "%s: code %d, not %d", text, rc, code);
    ck_assert_ptr_null(f);
    ck_assert_int_eq(err.code, code);
    ck_assert_str_eq(err.field, field);
    ck_assert_msg(strstr(err.message, message) != NULL, "%s: %s", text, err.message);
    ck_assert_int_eq(filter_parse(doc_of(&arena, text), &arena, &f, NULL), code);
}

static const char *show_values(const struct doc *values, uint32_t count)
{
    struct buf out;
    buf_init(&out);
    for (uint32_t i = 0; i < count; i++) buf_printf(&out, "%s ", doc_show(&arena, values[i]));
    const char *text = arena_strdup(&arena, (const char *)out.data, out.len);
    buf_fini(&out);
    return text;
}

/* ---- what is read ------------------------------------------------------------------------------------ */

START_TEST(empty_filter_is_no_filter)
{
    ck_assert_ptr_null(parse("{}"));
    ck_assert_ptr_null(parse("{'must': [], 'should': null}"));
    ck_assert_ptr_null(parse("{'min_should': {'conditions': [], 'min_count': 0}}"));
    ck_assert_ptr_nonnull(parse("{'min_should': {'conditions': [], 'min_count': 1}}"));
    const struct filter *f = (const struct filter *)1;
    ck_assert_int_eq(filter_parse((struct doc){ NULL, 0 }, &arena, &f, &err), OMEN_OK);
    ck_assert_ptr_null(f);
}
END_TEST

START_TEST(filter_keeps_its_lists_apart)
{
    const struct filter *f = parse(
            "{'must': [{'is_null': {'key': 'a'}}, {}], 'should': {'is_null': {'key': 'b'}},"
            " 'must_not': [{'is_empty': {'key': 'c'}}], 'min_should': {'min_count': 2, 'conditions':"
            " [{'has_id': [1]}, {'has_id': [2]}, {'has_id': [3]}]}}");
    ck_assert_uint_eq(f->all.must_count, 2);
    ck_assert_int_eq(f->all.must[0]->kind, FILTER_IS_NULL);
    ck_assert_int_eq(f->all.must[1]->kind, FILTER_BOOL);
    ck_assert_uint_eq(f->all.should_count, 1);
    ck_assert_str_eq((const char *)doc_path_text(f->all.should[0]->path).data, "b");
    ck_assert_uint_eq(f->all.must_not_count, 1);
    ck_assert_int_eq(f->all.must_not[0]->kind, FILTER_IS_EMPTY);
    ck_assert_uint_eq(f->all.min_should_count, 3);
    ck_assert_uint_eq(f->all.min_count, 2);
    ck_assert_uint_eq(f->all.min_should[2]->has_id.ids[0].lo, 3);
}
END_TEST

START_TEST(match_takes_strings_integers_and_bools)
{
    const struct filter *f = condition("{'key': 'a.b', 'match': {'value': 'x'}}");
    ck_assert_int_eq(f->kind, FILTER_MATCH_ANY);
    ck_assert_str_eq((const char *)doc_path_text(f->path).data, "a.b");
    ck_assert_str_eq(show_values(f->match.values, f->match.count), "'x' ");
    f = condition("{'key': 'a', 'match': {'value': true}}");
    ck_assert_str_eq(show_values(f->match.values, f->match.count), "true ");
    f = condition("{'key': 'a', 'match': {'any': []}}");
    ck_assert_int_eq(f->kind, FILTER_MATCH_ANY);
    ck_assert_uint_eq(f->match.count, 0);
    f = condition("{'key': 'a', 'match': {'except': [1, 'b', -1, 1, 'a', 'b', false]}}");
    ck_assert_int_eq(f->kind, FILTER_MATCH_EXCEPT);
    ck_assert_str_eq(show_values(f->match.values, f->match.count),
            "false 1 -1 'a' 'b' "); /* by bytes, distinct */
}
END_TEST

static void assert_range(const char *bounds, double low, bool low_open, double high, bool high_open)
{
    char text[200];
    snprintf(text, sizeof text, "{'key': 'n', 'range': %s}", bounds);
    const struct filter *f = condition(text);
    ck_assert_int_eq(f->kind, FILTER_RANGE);
    ck_assert_msg(f->range.low == low && f->range.low_open == low_open, "%s: low %g", bounds, f->range.low);
    ck_assert_msg(f->range.high == high && f->range.high_open == high_open, "%s: high %g", bounds,
            f->range.high);
}

START_TEST(range_folds_its_bounds)
{
    assert_range("{'gt': 1}", 1, true, INFINITY, false);
    assert_range("{'gte': 1.5, 'lt': null}", 1.5, false, INFINITY, false);
    assert_range("{'lt': -2}", -INFINITY, false, -2, true);
    assert_range("{'lte': 7, 'gt': -1e300}", -1e300, true, 7, false);
    assert_range("{'gt': 1, 'gte': 1}", 1, true, INFINITY, false);
    assert_range("{'gt': 1, 'gte': 2}", 2, false, INFINITY, false);
    assert_range("{'gt': 3, 'gte': 2}", 3, true, INFINITY, false);
    assert_range("{'lt': 1, 'lte': 1}", -INFINITY, false, 1, true);
    assert_range("{'lt': 2, 'lte': 1}", -INFINITY, false, 1, false);
    assert_range("{'gt': 5, 'lt': 1}", 5, true, 1, true); /* matches nothing */
}
END_TEST

START_TEST(range_of_strings_is_a_datetime)
{
    const struct filter *f = condition(
            "{'key': 't', 'range': {'gte': '1970-01-01', 'lt': '1970-01-01T00:00:01Z'}}");
    ck_assert_int_eq(f->kind, FILTER_DATETIME);
    ck_assert_int_eq(f->time_range.low_us, 0);
    ck_assert(!f->time_range.low_open);
    ck_assert_int_eq(f->time_range.high_us, 1000000);
    ck_assert(f->time_range.high_open);
    f = condition("{'key': 't', 'datetime_range': {'gt': '1970-01-01', 'gte': '1970-01-01'}}");
    ck_assert_int_eq(f->kind, FILTER_DATETIME);
    ck_assert(f->time_range.low_open);
    ck_assert_int_eq(f->time_range.high_us, INT64_MAX);
    ck_assert(!f->time_range.high_open);
    f = condition("{'key': 't', 'datetime_range': {'lte': '1970-01-01'}}");
    ck_assert_int_eq(f->time_range.low_us, INT64_MIN);
    ck_assert(!f->time_range.low_open);
}
END_TEST

START_TEST(other_conditions_are_read)
{
    const struct filter *f = condition("{'key': 'tags', 'values_count': {'gte': 2, 'lt': 5}}");
    ck_assert_int_eq(f->kind, FILTER_VALUES_COUNT);
    ck_assert(f->range.low == 2 && !f->range.low_open && f->range.high == 5 && f->range.high_open);
    f = condition("{'has_id': [7, '9223372036854775808', '00000000-0000-0000-0000-000000000001', 3, 7]}");
    ck_assert_int_eq(f->kind, FILTER_HAS_ID);
    ck_assert_uint_eq(f->has_id.count, 4);
    ck_assert_uint_eq(f->has_id.ids[0].lo, 3);
    ck_assert_uint_eq(f->has_id.ids[2].lo, UINT64_C(1) << 63);
    ck_assert_int_eq(f->has_id.ids[3].kind, POINT_ID_UUID);
    f = condition("{'has_id': []}");
    ck_assert_uint_eq(f->has_id.count, 0);
    f = condition("{'nested': {'key': 'items', 'filter': {'must': [{'key': 'p', 'match': {'value': 1}}]}}}");
    ck_assert_int_eq(f->kind, FILTER_NESTED);
    ck_assert_str_eq((const char *)doc_path_text(f->path).data, "items[]");
    ck_assert_int_eq(f->nested->kind, FILTER_BOOL);
    ck_assert_uint_eq(f->nested->all.must_count, 1);
    f = condition("{'nested': {'key': 'a[].items[]', 'filter': {}}}");
    ck_assert_str_eq((const char *)doc_path_text(f->path).data, "a[].items[]");
    ck_assert_ptr_nonnull(f->nested);
}
END_TEST

/* ---- what is refused --------------------------------------------------------------------------------- */

START_TEST(errors_name_their_place_and_the_likely_name)
{
    refuse("{'must': [{'key': 'a', 'match': {'value': 1}}, {'key': 'b', 'rnage': {'gt': 1}}]}", OMEN_EINVAL,
            "filter.must[1].rnage", "unknown member, did you mean \"range\"?");
    refuse("{'musst': []}", OMEN_EINVAL, "filter.musst", "did you mean \"must\"?");
    refuse("{'mustnot': []}", OMEN_EINVAL, "filter.mustnot", "did you mean \"must_not\"?");
    refuse("{'xyz': []}", OMEN_EINVAL, "filter.xyz", "known here are must, should, must_not, min_should");
    refuse("{'must': [{'key': 'a', 'range': {'get': 1}}]}", OMEN_EINVAL, "filter.must[0].range.get",
            "did you mean \"gte\"?");
    refuse("{'must': {'key': 'a', 'match': {'vale': 1}}}", OMEN_EINVAL, "filter.must.match.vale",
            "did you mean \"value\"?");
    refuse("{'should': [{'isempty': {'key': 'a'}}]}", OMEN_EINVAL, "filter.should[0].isempty",
            "did you mean \"is_empty\"?");
    refuse("{'should': [{'is_null': {'key': 'a', 'kee': 1}}]}", OMEN_EINVAL, "filter.should[0].is_null.kee",
            "key");
    refuse("{'must': [{'nested': {'key': 'a', 'filter': {'must': [{'key': 'b', 'match': {'value': 1.5}}]}}"
           "}]}",
            OMEN_EINVAL, "filter.must[0].nested.filter.must[0].match.value", "use range");
    refuse("{'must': [{'a member with a very long name indeed': 1}]}", OMEN_EINVAL,
            "filter.must[0].\"a member with a very long name indeed\"", "known here are key, is_empty");
}
END_TEST

START_TEST(wrong_shapes_are_refused)
{
    refuse("[]", OMEN_EINVAL, "filter", "must be an object");
    refuse("null", OMEN_EINVAL, "filter", "must be an object");
    refuse("{'key': 'a', 'match': {'value': 1}}", OMEN_EINVAL, "filter", "put it into a filter");
    refuse("{'must': 1}", OMEN_EINVAL, "filter.must", "list of conditions");
    refuse("{'must': [1]}", OMEN_EINVAL, "filter.must[0]", "must be an object");
    refuse("{'must': [{'key': 'a'}]}", OMEN_EINVAL, "filter.must[0]", "one of match, range");
    refuse("{'must': [{'key': 'a', 'match': {'value': 1}, 'range': {'gt': 1}}]}", OMEN_EINVAL,
            "filter.must[0]", "one of");
    refuse("{'must': [{'key': 1, 'match': {'value': 1}}]}", OMEN_EINVAL, "filter.must[0].key",
            "must be a string");
    refuse("{'must': [{'key': null, 'match': {'value': 1}}]}", OMEN_EINVAL, "filter.must[0].key", "missing");
    refuse("{'must': [{'key': 'a..b', 'match': {'value': 1}}]}", OMEN_EINVAL, "filter.must[0].key",
            "path \"a..b\"");
    refuse("{'must': [{'is_null': {'key': ''}}]}", OMEN_EINVAL, "filter.must[0].is_null.key",
            "key is expected");
    refuse("{'must': [{'is_null': 'a'}]}", OMEN_EINVAL, "filter.must[0].is_null", "must be an object");
    refuse("{'must': [{'is_null': {'key': 'a'}, 'must': []}]}", OMEN_EINVAL, "filter.must[0].must",
            "unknown member");
    refuse("{'min_should': [{'has_id': [1]}]}", OMEN_EINVAL, "filter.min_should", "must be an object");
    refuse("{'min_should': {'conditions': []}}", OMEN_EINVAL, "filter.min_should.min_count", "integer");
    refuse("{'min_should': {'conditions': [], 'min_count': -1}}", OMEN_EINVAL, "filter.min_should.min_count",
            "integer");
    refuse("{'min_should': {'min_count': 1}}", OMEN_EINVAL, "filter.min_should.conditions", "list");
    refuse("{'must': [{'nested': {'key': 'a'}}]}", OMEN_EINVAL, "filter.must[0].nested.filter", "missing");
    refuse("{'must': [{'nested': {'filter': {}}}]}", OMEN_EINVAL, "filter.must[0].nested.key", "missing");
}
END_TEST

START_TEST(match_refuses_other_values)
{
    refuse("{'must': [{'key': 'a', 'match': 'x'}]}", OMEN_EINVAL, "filter.must[0].match",
            "must be an object");
    refuse("{'must': [{'key': 'a', 'match': {}}]}", OMEN_EINVAL, "filter.must[0].match", "one of value");
    refuse("{'must': [{'key': 'a', 'match': {'value': 1, 'any': [1]}}]}", OMEN_EINVAL, "filter.must[0].match",
            "one of");
    refuse("{'must': [{'key': 'a', 'match': {'value': 1.0}}]}", OMEN_EINVAL, "filter.must[0].match.value",
            "use range");
    refuse("{'must': [{'key': 'a', 'match': {'value': null}}]}", OMEN_EINVAL, "filter.must[0].match.value",
            "is_null");
    refuse("{'must': [{'key': 'a', 'match': {'value': ['x']}}]}", OMEN_EINVAL, "filter.must[0].match.value",
            "use any");
    refuse("{'must': [{'key': 'a', 'match': {'value': {}}}]}", OMEN_EINVAL, "filter.must[0].match.value",
            "string");
    refuse("{'must': [{'key': 'a', 'match': {'any': 'x'}}]}", OMEN_EINVAL, "filter.must[0].match.any",
            "list");
    refuse("{'must': [{'key': 'a', 'match': {'any': ['x', 'y', 1.5]}}]}", OMEN_EINVAL,
            "filter.must[0].match.any[2]", "use range");
    refuse("{'must': [{'key': 'a', 'match': {'text': 1}}]}", OMEN_EINVAL, "filter.must[0].match.text",
            "must be a string");
}
END_TEST

START_TEST(text_has_a_limit_of_words)
{
    struct buf text;
    buf_init(&text);
    buf_printf(&text, "{'must': [{'key': 'a', 'match': {'text': '");
    for (int i = 0; i < FILTER_WORDS_MAX; i++) buf_printf(&text, "word%d Word%d ", i, i);
    size_t len = text.len;
    buf_printf(&text, "'}}]}");
    buf_append_zero(&text, 1);
    const struct filter *f = parse((const char *)text.data);
    ck_assert_int_eq(f->all.must[0]->kind, FILTER_MATCH_TEXT);
    ck_assert_uint_eq(f->all.must[0]->text.count, FILTER_WORDS_MAX);
    text.len = len;
    buf_printf(&text, "more'}}]}");
    buf_append_zero(&text, 1);
    refuse((const char *)text.data, OMEN_ETOOBIG, "filter.must[0].match.text", "64 words");
    buf_fini(&text);
}
END_TEST

START_TEST(geo_refuses_what_is_no_place)
{
#define GEO(c) "{'must': [{'key': 'a', " c "}]}"
    refuse(GEO("'geo_radius': {}"), OMEN_EINVAL, "filter.must[0].geo_radius.center", "lon");
    refuse(GEO("'geo_radius': {'center': {'lon': 181, 'lat': 0}, 'radius': 1}"), OMEN_EINVAL,
            "filter.must[0].geo_radius.center", "180");
    refuse(GEO("'geo_radius': {'center': {'lon': 0, 'lat': 0}, 'radius': -1}"), OMEN_EINVAL,
            "filter.must[0].geo_radius.radius", "metres");
    refuse(GEO("'geo_radius': {'centre': {'lon': 0, 'lat': 0}, 'radius': 1}"), OMEN_EINVAL,
            "filter.must[0].geo_radius.centre", "unknown member");
    refuse(GEO("'geo_bounding_box': {'top_left': {'lon': 0, 'lat': 0}}"), OMEN_EINVAL,
            "filter.must[0].geo_bounding_box.bottom_right", "lon");
    refuse(GEO("'geo_bounding_box': {'top_left': {'lon': 0, 'lat': 0}, "
               "'bottom_right': {'lon': 1, 'lat': 1}}"),
            OMEN_EINVAL, "filter.must[0].geo_bounding_box", "below");
    refuse(GEO("'geo_polygon': {'exterior': {'points': [{'lon': 0, 'lat': 0}, {'lon': 1, 'lat': 0}, "
               "{'lon': 1, 'lat': 1}]}}"),
            OMEN_EINVAL, "filter.must[0].geo_polygon.exterior.points", "4 points");
    refuse(GEO("'geo_polygon': {'exterior': {'points': [{'lon': 0, 'lat': 0}, {'lon': 1, 'lat': 'x'}]}}"),
            OMEN_EINVAL, "filter.must[0].geo_polygon.exterior.points[1]", "lat");
    refuse(GEO("'geo_polygon': {'interiors': []}"), OMEN_EINVAL, "filter.must[0].geo_polygon.exterior",
            "points");
}
END_TEST

/* Where a point outside of it is not compared with any edge. */
START_TEST(a_ring_knows_the_box_around_it)
{
    const struct filter *f = parse(
            GEO("'geo_polygon': {'exterior': {'points': [{'lon': 3, 'lat': -2}, {'lon': 7, 'lat': 1}, "
                "{'lon': -5, 'lat': 6}, {'lon': 3, 'lat': -2}]}}"));
    ck_assert_int_eq(f->all.must[0]->kind, FILTER_GEO_POLYGON);
    const struct geo_ring *ring = &f->all.must[0]->geo_polygon.rings[0];
    ck_assert(ring->low.lon == -5 && ring->low.lat == -2);
    ck_assert(ring->high.lon == 7 && ring->high.lat == 6);
}
END_TEST

START_TEST(ranges_refuse_other_bounds)
{
    refuse("{'must': [{'key': 'a', 'range': {}}]}", OMEN_EINVAL, "filter.must[0].range",
            "at least one of gt");
    refuse("{'must': [{'key': 'a', 'range': {'gt': null}}]}", OMEN_EINVAL, "filter.must[0].range",
            "at least one");
    refuse("{'must': [{'key': 'a', 'range': {'gt': true}}]}", OMEN_EINVAL, "filter.must[0].range.gt",
            "must be a number");
    refuse("{'must': [{'key': 'a', 'range': {'gt': 1, 'lt': '2026-01-01'}}]}", OMEN_EINVAL,
            "filter.must[0].range.lt", "all be numbers");
    refuse("{'must': [{'key': 'a', 'range': {'gt': '2026-01-01', 'lt': 2}}]}", OMEN_EINVAL,
            "filter.must[0].range.lt", "all be numbers");
    refuse("{'must': [{'key': 'a', 'range': {'gt': '2026-13-01'}}]}", OMEN_EINVAL, "filter.must[0].range.gt",
            "\"2026-13-01\" is no RFC 3339");
    refuse("{'must': [{'key': 'a', 'datetime_range': {'gt': 5}}]}", OMEN_EINVAL,
            "filter.must[0].datetime_range.gt", "date");
    refuse("{'must': [{'key': 'a', 'values_count': {'gt': 1.5}}]}", OMEN_EINVAL,
            "filter.must[0].values_count.gt", "integer");
    refuse("{'must': [{'key': 'a', 'values_count': {'lt': -1}}]}", OMEN_EINVAL,
            "filter.must[0].values_count.lt", "integer");
}
END_TEST

START_TEST(has_id_refuses_what_is_no_id)
{
    refuse("{'must': [{'has_id': 1}]}", OMEN_EINVAL, "filter.must[0].has_id", "list");
    refuse("{'must': [{'has_id': [1, -1]}]}", OMEN_EINVAL, "filter.must[0].has_id[1]", "UUID");
    refuse("{'must': [{'has_id': ['x']}]}", OMEN_EINVAL, "filter.must[0].has_id[0]", "UUID");
    refuse("{'must': [{'has_id': [1.0]}]}", OMEN_EINVAL, "filter.must[0].has_id[0]", "UUID");
    refuse("{'must': [{'nested': {'key': 'a', 'filter': {'must': [{'has_id': [1]}]}}}]}", OMEN_EINVAL,
            "filter.must[0].nested.filter.must[0].has_id", "beside nested");
    parse("{'must': [{'nested': {'key': 'a', 'filter': {}}}, {'has_id': [1]}]}"); /* beside is fine */
}
END_TEST

/* ---- limits ------------------------------------------------------------------------------------------ */

static enum omen_err parse_built(struct doc_builder *b)
{
    struct doc doc;
    ck_assert_msg(doc_builder_finish(b, &doc, &err) == OMEN_OK, "%s", err.message);
    const struct filter *f;
    return filter_parse(doc, &arena, &f, &err);
}

static void key(struct doc_builder *b, const char *name) { doc_key(b, name, strlen(name)); }

START_TEST(depth_is_limited)
{
    for (int kind = 0; kind < 2; kind++) {
        for (uint32_t levels = FILTER_DEPTH_MAX; levels <= FILTER_DEPTH_MAX + 1; levels++) {
            struct doc_builder *b = doc_builder_new(DOC_FILTER_BYTES_MAX);
            uint32_t open = 0;
            for (uint32_t i = 0; i < levels; i++) {
                doc_begin_object(b);
                key(b, "must");
                if (kind == 0 || i + 1 == levels) {
                    doc_begin_array(b);
                    open += 2;
                    continue;
                }
                doc_begin_object(b); /* kind 1: every level but the last holds a nested */
                key(b, "nested");
                doc_begin_object(b);
                key(b, "key");
                doc_put_string(b, "a", 1);
                key(b, "filter");
                open += 3;
            }
            while (open-- > 0) doc_end(b);
            enum omen_err rc = parse_built(b);
            ck_assert_int_eq(rc, levels <= FILTER_DEPTH_MAX ? OMEN_OK : OMEN_ETOOBIG);
            if (rc != OMEN_OK) ck_assert_ptr_nonnull(strstr(err.message, "deeper than 8"));
            doc_builder_free(b);
        }
    }
}
END_TEST

START_TEST(conditions_are_limited)
{
    for (uint32_t count = FILTER_CONDITIONS_MAX - 1; count <= FILTER_CONDITIONS_MAX;
            count++) { /* and the root */
        struct doc_builder *b = doc_builder_new(DOC_FILTER_BYTES_MAX);
        doc_begin_object(b);
        key(b, "must");
        doc_begin_array(b);
        for (uint32_t i = 0; i < count; i++) {
            doc_begin_object(b);
            doc_end(b);
        }
        doc_end(b);
        doc_end(b);
        ck_assert_int_eq(parse_built(b), count < FILTER_CONDITIONS_MAX ? OMEN_OK : OMEN_ETOOBIG);
        if (count == FILTER_CONDITIONS_MAX) ck_assert_str_eq(err.field, "filter.must[1023]");
        doc_builder_free(b);
    }
}
END_TEST

START_TEST(values_of_all_lists_are_limited_together)
{
    for (uint32_t count = FILTER_VALUES_MAX; count <= FILTER_VALUES_MAX + 1; count++) {
        struct doc_builder *b = doc_builder_new(DOC_FILTER_BYTES_MAX);
        doc_begin_object(b);
        key(b, "must");
        doc_begin_array(b);
        doc_begin_object(b);
        key(b, "has_id");
        doc_begin_array(b);
        for (uint32_t i = 0; i < count - 2; i++) doc_put_i64(b, i % 100);
        doc_end(b);
        doc_end(b);
        doc_begin_object(b);
        key(b, "key");
        doc_put_string(b, "a", 1);
        key(b, "match");
        doc_begin_object(b);
        key(b, "except");
        doc_begin_array(b);
        doc_put_bool(b, true);
        doc_put_bool(b, false);
        for (int i = 0; i < 3; i++) doc_end(b);
        doc_end(b);
        doc_end(b);
        ck_assert_int_eq(parse_built(b), count <= FILTER_VALUES_MAX ? OMEN_OK : OMEN_ETOOBIG);
        if (count > FILTER_VALUES_MAX) ck_assert_str_eq(err.field, "filter.must[1].match.except");
        doc_builder_free(b);
    }
}
END_TEST

START_TEST(memory_is_the_arenas_limit)
{
    struct doc doc = doc_of(&arena,
            "{'must': [{'key': 'a', 'match': {'any': ['x', 'y']}}, {'nested': {'key': 'b', 'filter':"
            " {'must': {'has_id': [1]}}}}, {'min_should': {'min_count': 1, 'conditions': [{}]}}]}");
    for (size_t limit = 16; limit < 4096; limit += 48) { /* fails at every allocation in turn, never worse */
        struct arena tiny;
        arena_init(&tiny, 16, limit);
        const struct filter *f;
        enum omen_err rc = filter_parse(doc, &tiny, &f, &err);
        ck_assert(rc == OMEN_ENOMEM || rc == OMEN_EINVAL); /* has_id in nested, once memory reaches so far */
        ck_assert_ptr_null(f);
        arena_fini(&tiny);
    }
}
END_TEST

/* ---- values of a path -------------------------------------------------------------------------------- */

static void assert_confined(const char *filter, const char *want)
{
    const struct doc *values;
    uint32_t count;
    ck_assert_msg(filter_values_of_path(parse(filter), "k", &arena, &values, &count), "%s: not confined",
            filter);
    ck_assert_str_eq(show_values(values, count), want);
}

static void assert_free(const char *filter)
{
    const struct doc *values;
    uint32_t count;
    ck_assert_msg(!filter_values_of_path(parse(filter), "k", &arena, &values, &count), "%s: confined",
            filter);
}

#define K(v) "{'key': 'k', 'match': {'any': [" v "]}}"
#define OTHER "{'key': 'x', 'match': {'value': 1}}"

START_TEST(must_confines_by_any_member)
{
    assert_confined("{'must': [" K("'b', 'a'") "]}", "'a' 'b' ");
    assert_confined("{'must': [{'key': 'k', 'match': {'value': 7}}]}", "7 ");
    assert_confined("{'must': [" OTHER ", " K("1") ", " OTHER "]}", "1 ");
    assert_confined("{'must': [" K("1, 2, 3") ", " K("3, 2, 9") "]}", "2 3 ");
    assert_confined("{'must': [" K("1") ", " K("2") "]}", "");
    assert_confined("{'must': [" K("1") ", " K("'1'") "]}", "");
    assert_confined("{'must': [" K("") "]}", "");
    assert_confined("{'must': [{'must': [" K("5") "]}]}", "5 ");
}
END_TEST

START_TEST(should_confines_only_when_every_member_does)
{
    assert_confined("{'should': [" K("1, 2") ", " K("2, 3") "]}", "1 2 3 ");
    assert_free("{'should': [" K("1") ", " OTHER "]}");
    assert_confined("{'must': [" K("1, 2") "], 'should': [" K("2") ", " K("4") "]}", "2 ");
    assert_confined("{'must': [" K("1, 2") "], 'should': [" K("2") ", " OTHER "]}", "1 2 ");
    assert_confined("{'must': [" K("1, 2") "], 'should': []}", "1 2 ");
    assert_confined("{'should': [{'must': [" K("1") ", " OTHER "]}, " K("2") "]}", "1 2 ");
}
END_TEST

START_TEST(min_should_confines_like_should)
{
    assert_confined("{'min_should': {'min_count': 1, 'conditions': [" K("1") ", " K("2") "]}}", "1 2 ");
    assert_confined("{'min_should': {'min_count': 2, 'conditions': [" K("1") ", " K("2") "]}}", "1 2 ");
    assert_free("{'min_should': {'min_count': 1, 'conditions': [" K("1") ", " OTHER "]}}");
    assert_free("{'min_should': {'min_count': 0, 'conditions': [" K("1") "]}}");
    assert_confined("{'min_should': {'min_count': 1, 'conditions': []}}", "");
}
END_TEST

START_TEST(nothing_else_confines)
{
    assert_free("{}");
    assert_free("{'must': [" OTHER "]}");
    assert_free("{'must_not': [" K("1") "]}");
    assert_free("{'must': [{'nested': {'key': 'k', 'filter': {'must': [" K("1") "]}}}]}");
    assert_free("{'must': [{'key': 'k', 'match': {'except': [1]}}]}");
    assert_free("{'must': [{'key': 'k', 'range': {'gte': 1, 'lte': 1}}]}");
    assert_free("{'must': [{'key': 'k[]', 'match': {'value': 1}}]}");
    assert_free("{'must': [{'key': 'k.k', 'match': {'value': 1}}]}");
    assert_free("{'must': [{'is_null': {'key': 'k'}}]}");
    assert_free("{'must': [{}]}");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("filter_parse");
    TCase *tc = tcase_create("filter_parse");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, empty_filter_is_no_filter);
    tcase_add_test(tc, filter_keeps_its_lists_apart);
    tcase_add_test(tc, match_takes_strings_integers_and_bools);
    tcase_add_test(tc, range_folds_its_bounds);
    tcase_add_test(tc, range_of_strings_is_a_datetime);
    tcase_add_test(tc, other_conditions_are_read);
    tcase_add_test(tc, errors_name_their_place_and_the_likely_name);
    tcase_add_test(tc, wrong_shapes_are_refused);
    tcase_add_test(tc, match_refuses_other_values);
    tcase_add_test(tc, text_has_a_limit_of_words);
    tcase_add_test(tc, geo_refuses_what_is_no_place);
    tcase_add_test(tc, a_ring_knows_the_box_around_it);
    tcase_add_test(tc, ranges_refuse_other_bounds);
    tcase_add_test(tc, has_id_refuses_what_is_no_id);
    tcase_add_test(tc, depth_is_limited);
    tcase_add_test(tc, conditions_are_limited);
    tcase_add_test(tc, values_of_all_lists_are_limited_together);
    tcase_add_test(tc, memory_is_the_arenas_limit);
    tcase_add_test(tc, must_confines_by_any_member);
    tcase_add_test(tc, should_confines_only_when_every_member_does);
    tcase_add_test(tc, min_should_confines_like_should);
    tcase_add_test(tc, nothing_else_confines);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures;
}
