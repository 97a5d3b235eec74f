/* The filter evaluator against a table: the cases of Qdrant's documentation of filtering, and the corners
 * between them. */
#include "common/err.h"
#include "common/mem.h"
#include "storage/payload/filter_eval.h"
#include "tests/support/doc_text.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

struct row {
    const char *filter, *payload;
    bool matches;
};

#define STRING(x) #x
#define PLACE(x, y) "{'lon': " STRING(x) ", 'lat': " STRING(y) "}"
#define BOX(a, b, c, d) "'geo_bounding_box': {'top_left': " PLACE(a, b) ", 'bottom_right': " PLACE(c, d) "}"
#define NEAR(x, y, r) "'geo_radius': {'center': " PLACE(x, y) ", 'radius': " STRING(r) "}"
/* A square of 10 degrees with a hole from 4 to 6. */
#define RINGS                                                                                                \
    "'geo_polygon': {'exterior': {'points': [" PLACE(0, 0) "," PLACE(10, 0) "," PLACE(10, 10) "," PLACE(0,   \
            10) "," PLACE(0, 0) "]}, 'interiors': [{'points': [" PLACE(4, 4) "," PLACE(6, 4) "," PLACE(6,    \
            6) "," PLACE(4, 6) "," PLACE(4, 4) "]}]}"
#define KEY(k, c) "{'must': [{'key': '" k "', " c "}]}"

static const struct row rows[] = {
    /* match value: strings, integers, booleans; arrays are opened */
    { KEY("color", "'match': {'value': 'red'}"), "{'color': 'red'}", true },
    { KEY("color", "'match': {'value': 'red'}"), "{'color': 'Red'}", false },
    { KEY("color", "'match': {'value': 'red'}"), "{'color': ['black', 'red']}", true },
    { KEY("color", "'match': {'value': 'red'}"), "{'color': []}", false },
    { KEY("color", "'match': {'value': 'red'}"), "{'color': null}", false },
    { KEY("color", "'match': {'value': 'red'}"), "{}", false },
    { KEY("color", "'match': {'value': 'red'}"), "{'color': {'red': 'red'}}", false },
    { KEY("color", "'match': {'value': 'red'}"), "{'color': [['red']]}", false },
    { KEY("count", "'match': {'value': 0}"), "{'count': 0}", true },
    { KEY("count", "'match': {'value': 0}"), "{'count': '0'}", false },
    { KEY("count", "'match': {'value': 0}"), "{'count': false}", false },
    { KEY("count", "'match': {'value': 1}"), "{'count': 1.0}", false },
    { KEY("count", "'match': {'value': -9223372036854775808}"), "{'count': -9223372036854775808}", true },
    { KEY("on", "'match': {'value': true}"), "{'on': true}", true },
    { KEY("on", "'match': {'value': true}"), "{'on': false}", false },
    { KEY("on", "'match': {'value': true}"), "{'on': 1}", false },
    { KEY("color", "'match': {'value': ''}"), "{'color': ''}", true },
    /* match text: every word, any order, lower case; one value holds them all */
    { KEY("t", "'match': {'text': 'good cheap'}"), "{'t': 'Cheap, but GOOD!'}", true },
    { KEY("t", "'match': {'text': 'good cheap'}"), "{'t': 'good'}", false },
    { KEY("t", "'match': {'text': 'good'}"), "{'t': 'goods'}", false },
    { KEY("t", "'match': {'text': 'good'}"), "{'t': ['bad', 'the good']}", true },
    { KEY("t", "'match': {'text': 'good bad'}"), "{'t': ['bad', 'good']}", false },
    { KEY("t", "'match': {'text': 'x-y'}"), "{'t': 'y x'}", true },
    { KEY("t", "'match': {'text': '42'}"), "{'t': 42}", false },
    { KEY("t", "'match': {'text': '42'}"), "{'t': 'is 42.'}", true },
    { KEY("t", "'match': {'text': ''}"), "{'t': 'anything'}", false },
    { KEY("t", "'match': {'text': '...'}"), "{'t': '...'}", false },
    { KEY("t", "'match': {'text': 'größe ÉTÉ'}"), "{'t': 'été: GRÖSSE, GRÖßE'}", true },
    { KEY("t", "'match': {'text': 'ΟΔΟΣ москва'}"), "{'t': 'МОСКВА οδος'}", true },
    { KEY("t", "'match': {'text': '京'}"), "{'t': '東京都'}", true },
    { KEY("t", "'match': {'text': 'カメラ'}"), "{'t': 'カメラ'}", true },
    { KEY("t", "'match': {'text': 'ｄb'}"), "{'t': '「ＤB」'}", true },
    { KEY("t[]", "'match': {'text': 'a'}"), "{'t': ['a b']}", true },
    /* places */
    { KEY("p", BOX(13.4, 52.6, 13.5, 52.4)), "{'p': {'lon': 13.45, 'lat': 52.5}}", true },
    { KEY("p", BOX(13.4, 52.6, 13.5, 52.4)), "{'p': {'lon': 13.4, 'lat': 52.6}}", true },
    { KEY("p", BOX(13.4, 52.6, 13.5, 52.4)), "{'p': {'lon': 13.39, 'lat': 52.5}}", false },
    { KEY("p", BOX(13.4, 52.6, 13.5, 52.4)), "{'p': [{'lon': 0, 'lat': 0}, {'lon': 13.45, 'lat': 52.5}]}",
            true },
    { KEY("p", BOX(13.4, 52.6, 13.5, 52.4)), "{'p': {'lon': '13.45', 'lat': 52.5}}", false },
    { KEY("p", BOX(13.4, 52.6, 13.5, 52.4)), "{'p': {'lat': 52.5}}", false },
    { KEY("p", BOX(170, 10, -170, -10)), "{'p': {'lon': -175, 'lat': 0}}", true },
    { KEY("p", BOX(170, 10, -170, -10)), "{'p': {'lon': 175, 'lat': 0}}", true },
    { KEY("p", BOX(170, 10, -170, -10)), "{'p': {'lon': 0, 'lat': 0}}", false },
    { KEY("p", BOX(-180, 90, 180, -90)), "{'p': {'lon': 181, 'lat': 0}}", false },
    /* Berlin to Potsdam: 26.5 km; one degree of the equator: 111,195 m; over the pole */
    { KEY("p", NEAR(13.4050, 52.5200, 26000)), "{'p': {'lon': 13.0645, 'lat': 52.3906}}", false },
    { KEY("p", NEAR(13.4050, 52.5200, 28000)), "{'p': {'lon': 13.0645, 'lat': 52.3906}}", true },
    { KEY("p", NEAR(0, 0, 111196)), "{'p': {'lon': 1, 'lat': 0}}", true },
    { KEY("p", NEAR(0, 0, 111194)), "{'p': {'lon': 1, 'lat': 0}}", false },
    { KEY("p", NEAR(179.5, 0, 111196)), "{'p': {'lon': -179.5, 'lat': 0}}", true },
    { KEY("p", NEAR(0, 89.5, 111196)), "{'p': {'lon': 180, 'lat': 89.5}}", true },
    { KEY("p", NEAR(5, 5, 0)), "{'p': {'lon': 5, 'lat': 5}}", true },
    { KEY("p", NEAR(0, 0, 20015200)), "{'p': {'lon': 180, 'lat': 0}}", true },
    { KEY("p", RINGS), "{'p': {'lon': 1, 'lat': 1}}", true },
    { KEY("p", RINGS), "{'p': {'lon': 5, 'lat': 5}}", false },   /* in the hole */
    { KEY("p", RINGS), "{'p': {'lon': 4, 'lat': 5}}", true },    /* on its edge */
    { KEY("p", RINGS), "{'p': {'lon': 10, 'lat': 10}}", true },  /* a corner */
    { KEY("p", RINGS), "{'p': {'lon': 0, 'lat': 3}}", true },    /* an edge */
    { KEY("p", RINGS), "{'p': {'lon': 11, 'lat': 10}}", false }, /* beside a corner */
    { KEY("p", RINGS), "{'p': {'lon': -1, 'lat': 4}}", false },  /* through two corners of the hole */
    /* match any (IN) */
    { KEY("color", "'match': {'any': ['black', 'yellow']}"), "{'color': 'yellow'}", true },
    { KEY("color", "'match': {'any': ['black', 'yellow']}"), "{'color': 'red'}", false },
    { KEY("color", "'match': {'any': ['black', 'yellow']}"), "{'color': ['red', 'black']}", true },
    { KEY("n", "'match': {'any': [5, 3, 1, 4, 2, 300, 256]}"), "{'n': 256}", true },
    { KEY("n", "'match': {'any': [5, 3, 1, 4, 2, 300, 256]}"), "{'n': 257}", false },
    { KEY("n", "'match': {'any': []}"), "{'n': 1}", false },
    /* match except (NOT IN) */
    { KEY("color", "'match': {'except': ['black', 'yellow']}"), "{'color': 'red'}", true },
    { KEY("color", "'match': {'except': ['black', 'yellow']}"), "{'color': 'black'}", false },
    { KEY("color", "'match': {'except': ['black', 'yellow']}"), "{'color': ['black', 'red']}", true },
    { KEY("color", "'match': {'except': ['black', 'yellow']}"), "{'color': ['black', 'yellow']}", false },
    { KEY("color", "'match': {'except': ['black', 'yellow']}"), "{'color': 7}", true },
    { KEY("color", "'match': {'except': ['black', 'yellow']}"), "{'color': null}", false },
    { KEY("color", "'match': {'except': ['black', 'yellow']}"), "{'color': []}", false },
    { KEY("color", "'match': {'except': ['black', 'yellow']}"), "{}", false },
    { KEY("color", "'match': {'except': []}"), "{'color': 'red'}", true },
    { KEY("color", "'match': {'except': []}"), "{}", false },
    /* range */
    { KEY("price", "'range': {'gte': 100, 'lte': 450}"), "{'price': 100}", true },
    { KEY("price", "'range': {'gte': 100, 'lte': 450}"), "{'price': 450.0}", true },
    { KEY("price", "'range': {'gte': 100, 'lte': 450}"), "{'price': 450.5}", false },
    { KEY("price", "'range': {'gt': 100}"), "{'price': 100}", false },
    { KEY("price", "'range': {'gt': 100}"), "{'price': 100.00001}", true },
    { KEY("price", "'range': {'lt': 0}"), "{'price': -0.0}", false },
    { KEY("price", "'range': {'lt': 0}"), "{'price': -1e300}", true },
    { KEY("price", "'range': {'gt': 100}"), "{'price': '101'}", false },
    { KEY("price", "'range': {'gt': 100}"), "{'price': [1, 2, 101]}", true },
    { KEY("price", "'range': {'gt': 5, 'lt': 6}"), "{'price': [5, 6]}", false },
    { KEY("price", "'range': {'gt': 6, 'lt': 5}"), "{'price': 5.5}", false },
    { KEY("price", "'range': {'gt': 100}"), "{}", false },
    { KEY("price", "'range': {'gte': 9007199254740993}"), "{'price': 9007199254740992}",
            true }, /* as doubles */
    /* datetime */
    { KEY("at", "'range': {'gt': '2023-02-08T10:49:00Z', 'lte': '2024-01-31T10:14:31Z'}"),
            "{'at': '2023-02-08T10:49:00Z'}", false },
    { KEY("at", "'range': {'gt': '2023-02-08T10:49:00Z', 'lte': '2024-01-31T10:14:31Z'}"),
            "{'at': '2023-02-08T10:49:00.000001Z'}", true },
    { KEY("at", "'range': {'gt': '2023-02-08T10:49:00Z', 'lte': '2024-01-31T10:14:31Z'}"),
            "{'at': '2024-01-31T11:14:31+01:00'}", true },
    { KEY("at", "'datetime_range': {'gte': '2023-02-08'}"), "{'at': '2023-02-08'}", true },
    { KEY("at", "'datetime_range': {'gte': '2023-02-08'}"), "{'at': 'yesterday'}", false },
    { KEY("at", "'datetime_range': {'gte': '2023-02-08'}"), "{'at': 2023}", false },
    { KEY("at", "'datetime_range': {'gte': '2023-02-08'}"), "{'at': ['1999-01-01', '2023-02-09']}", true },
    /* values_count */
    { KEY("comments", "'values_count': {'gt': 2}"), "{'comments': ['a', 'b', 'c']}", true },
    { KEY("comments", "'values_count': {'gt': 2}"), "{'comments': ['a', 'b']}", false },
    { KEY("comments", "'values_count': {'gte': 1}"), "{'comments': 'a'}", true },
    { KEY("comments", "'values_count': {'gte': 1}"), "{'comments': {'a': 1, 'b': 2}}", true },
    { KEY("comments", "'values_count': {'gt': 1}"), "{'comments': {'a': 1, 'b': 2}}", false },
    { KEY("comments", "'values_count': {'gte': 1}"), "{'comments': null}", false },
    { KEY("comments", "'values_count': {'lt': 1}"), "{'comments': null}", true },
    { KEY("comments", "'values_count': {'lt': 1}"), "{}", true },
    { KEY("comments", "'values_count': {'lt': 1}"), "{'comments': []}", true },
    { KEY("a[].b", "'values_count': {'gte': 2}"), "{'a': [{'b': [1]}, {'b': [1, 2]}]}", true },
    /* is_empty, is_null */
    { "{'must': [{'is_empty': {'key': 'reports'}}]}", "{}", true },
    { "{'must': [{'is_empty': {'key': 'reports'}}]}", "{'reports': null}", true },
    { "{'must': [{'is_empty': {'key': 'reports'}}]}", "{'reports': []}", true },
    { "{'must': [{'is_empty': {'key': 'reports'}}]}", "{'reports': ''}", false },
    { "{'must': [{'is_empty': {'key': 'reports'}}]}", "{'reports': {}}", false },
    { "{'must': [{'is_empty': {'key': 'reports'}}]}", "{'reports': [null]}", false },
    { "{'must': [{'is_empty': {'key': 'reports'}}]}", "{'reports': [1, 2]}", false },
    { "{'must': [{'is_empty': {'key': 'a[].b'}}]}", "{'a': [{'b': []}, {'c': 1}]}", true },
    { "{'must': [{'is_empty': {'key': 'a[].b'}}]}", "{'a': [{'b': []}, {'b': 1}]}", false },
    { "{'must': [{'is_null': {'key': 'reports'}}]}", "{'reports': null}", true },
    { "{'must': [{'is_null': {'key': 'reports'}}]}", "{}", false },
    { "{'must': [{'is_null': {'key': 'reports'}}]}", "{'reports': []}", false },
    { "{'must': [{'is_null': {'key': 'reports'}}]}", "{'reports': [1, null]}", true },
    { "{'must': [{'is_null': {'key': 'reports'}}]}", "{'reports': 0}", false },
    /* paths: objects, arrays of objects */
    { KEY("country.name", "'match': {'value': 'Germany'}"), "{'country': {'name': 'Germany'}}", true },
    { KEY("country.name", "'match': {'value': 'Germany'}"), "{'country': [{'name': 'Germany'}]}", false },
    { KEY("cities[].population", "'range': {'gte': 9.0}"),
            "{'cities': [{'population': 3.7}, {'population': 9.1}]}", true },
    { KEY("cities[].population", "'range': {'gte': 9.0}"), "{'cities': [{'population': 3.7}, {'name': 9.1}]}",
            false },
    { KEY("cities[].sights", "'match': {'value': 'Osaka Castle'}"),
            "{'cities': [{'sights': []}, {'sights': ['Kyoto', 'Osaka Castle']}]}", true },
    { KEY("tags[]", "'match': {'value': 'x'}"), "{'tags': ['y', 'x']}", true },
    { KEY("tags[]", "'match': {'value': 'x'}"), "{'tags': 'x'}", false },
    { KEY("tags[1]", "'match': {'value': 'x'}"), "{'tags': ['y', 'x']}", true },
    { KEY("tags[0]", "'match': {'value': 'x'}"), "{'tags': ['y', 'x']}", false },
    /* has_id; the point is 42 */
    { "{'must': [{'has_id': [1, 3, 42, 5]}]}", "{}", true },
    { "{'must': [{'has_id': [1, 3, 5]}]}", "{}", false },
    { "{'must': [{'has_id': ['00000000-0000-0000-0000-00000000002a']}]}", "{}", false },
    { "{'must': [{'has_id': []}]}", "{}", false },
    /* must, should, must_not, min_should */
    { "{}", "{}", true },
    { "{'must': [{'key': 'a', 'match': {'value': 1}}, {'key': 'b', 'match': {'value': 2}}]}",
            "{'a': 1, 'b': 2}", true },
    { "{'must': [{'key': 'a', 'match': {'value': 1}}, {'key': 'b', 'match': {'value': 2}}]}",
            "{'a': 1, 'b': 3}", false },
    { "{'should': [{'key': 'a', 'match': {'value': 1}}, {'key': 'b', 'match': {'value': 2}}]}", "{'b': 2}",
            true },
    { "{'should': [{'key': 'a', 'match': {'value': 1}}, {'key': 'b', 'match': {'value': 2}}]}", "{'b': 1}",
            false },
    { "{'must_not': [{'key': 'a', 'match': {'value': 1}}, {'key': 'b', 'match': {'value': 2}}]}", "{'a': 2}",
            true },
    { "{'must_not': [{'key': 'a', 'match': {'value': 1}}, {'key': 'b', 'match': {'value': 2}}]}", "{'b': 2}",
            false },
    { "{'must': [{'key': 'a', 'match': {'value': 1}}], 'should': [{'key': 'b', 'match': {'value': 2}}]}",
            "{'a': 1}", false },
    { "{'must': [{'key': 'a', 'match': {'value': 1}}], 'should': []}", "{'a': 1}", true },
    { "{'must': [{'key': 'a', 'match': {'value': 1}}], 'must_not': [{'key': 'b', 'match': {'value': 2}}]}",
            "{'a': 1, 'b': 2}", false },
    { "{'min_should': {'conditions': [{'key': 'a', 'match': {'value': 1}}, {'key': 'b', 'match': "
      "{'value': 2}}, "
      "{'key': 'c', 'match': {'value': 3}}], 'min_count': 2}}",
            "{'a': 1, 'c': 3}", true },
    { "{'min_should': {'conditions': [{'key': 'a', 'match': {'value': 1}}, {'key': 'b', 'match': "
      "{'value': 2}}, "
      "{'key': 'c', 'match': {'value': 3}}], 'min_count': 2}}",
            "{'a': 1}", false },
    { "{'min_should': {'conditions': [{'key': 'a', 'match': {'value': 1}}], 'min_count': 2}}", "{'a': 1}",
            false },
    { "{'min_should': {'conditions': [{'key': 'a', 'match': {'value': 1}}], 'min_count': 0}}", "{}", true },
    { "{'must_not': [{'must': [{'key': 'city', 'match': {'value': 'London'}}, "
      "{'key': 'color', 'match': {'value': 'red'}}]}]}",
            "{'city': 'London', 'color': 'green'}", true },
    { "{'must_not': [{'must': [{'key': 'city', 'match': {'value': 'London'}}, "
      "{'key': 'color', 'match': {'value': 'red'}}]}]}",
            "{'city': 'London', 'color': 'red'}", false },
    /* nested: both conditions on the same element (the diets of the dinosaurs in Qdrant's text) */
    { "{'must': [{'nested': {'key': 'diet', 'filter': {'must': [{'key': 'food', 'match': {'value': 'meat'}}, "
      "{'key': 'likes', 'match': {'value': true}}]}}}]}",
            "{'diet': [{'food': 'leaves', 'likes': false}, {'food': 'meat', 'likes': true}]}", true },
    { "{'must': [{'nested': {'key': 'diet', 'filter': {'must': [{'key': 'food', 'match': {'value': 'meat'}}, "
      "{'key': 'likes', 'match': {'value': true}}]}}}]}",
            "{'diet': [{'food': 'leaves', 'likes': true}, {'food': 'meat', 'likes': false}]}", false },
    { "{'must': [{'key': 'diet[].food', 'match': {'value': 'meat'}}, "
      "{'key': 'diet[].likes', 'match': {'value': true}}]}",
            "{'diet': [{'food': 'leaves', 'likes': true}, {'food': 'meat', 'likes': false}]}", true },
    { "{'must': [{'nested': {'key': 'diet', 'filter': {'must_not': [{'key': 'food', 'match': "
      "{'value': 'meat'}}]}}}]}",
            "{'diet': [{'food': 'meat'}, {}]}", true },
    { "{'must': [{'nested': {'key': 'diet', 'filter': {'must_not': [{'key': 'food', 'match': "
      "{'value': 'meat'}}]}}}]}",
            "{'diet': []}", false },
    { "{'must': [{'nested': {'key': 'diet', 'filter': {'must': [{'key': 'food', 'match': "
      "{'value': 'meat'}}]}}}]}",
            "{'diet': {'food': 'meat'}}", false },
    { "{'must': [{'nested': {'key': 'diet[]', 'filter': {'must': [{'key': 'food', 'match': "
      "{'value': 'meat'}}]}}}]}",
            "{'diet': [3, {'food': 'meat'}]}", true },
    { "{'must': [{'nested': {'key': 'a', 'filter': {'must': [{'nested': {'key': 'b', 'filter': {'must': "
      "[{'key': 'c', 'match': {'value': 1}}]}}}]}}}]}",
            "{'a': [{'b': [{'c': 2}]}, {'b': [{'c': 0}, {'c': 1}]}]}", true },
};

START_TEST(evaluator_answers_as_documented)
{
    const struct row *row = &rows[_i];
    struct arena arena;
    struct err err = { 0 };
    const struct filter *filter;
    arena_init(&arena, 4096, 0);
    struct doc filter_doc = doc_of(&arena, row->filter), payload = doc_of(&arena, row->payload);
    enum omen_err rc = filter_parse(filter_doc, &arena, &filter, &err);
    ck_assert_msg(rc == OMEN_OK, "%s: %s: %s", row->filter, err.field, err.message);
    point_id id = { 0, 42, POINT_ID_U64 };
    ck_assert_msg(filter_match(filter, id, payload) == row->matches, "%s on %s is not %d", row->filter,
            row->payload, row->matches);
    if (strcmp(row->payload, "{}") == 0) { /* an absent payload is an empty one */
        ck_assert(filter_match(filter, id, (struct doc){ NULL, 0 }) == row->matches);
    }
    arena_fini(&arena);
}
END_TEST

START_TEST(long_lists_are_searched_exactly)
{
    struct arena arena;
    struct buf text;
    struct err err = { 0 };
    const struct filter *any, *ids;
    arena_init(&arena, 1 << 16, 0);
    buf_init(&text);
    buf_printf(&text, "{'must': [{'key': 'n', 'match': {'any': [0");
    for (int i = 1; i < 5000; i++) buf_printf(&text, ", %d", 3 * i);
    buf_printf(&text, "]}}]}");
    ck_assert_int_eq(filter_parse(doc_of(&arena, (const char *)text.data), &arena, &any, &err), OMEN_OK);
    buf_clear(&text);
    buf_printf(&text, "{'must': [{'has_id': [0");
    for (int i = 1; i < 5000; i++) buf_printf(&text, ", %d", 3 * i);
    buf_printf(&text, "]}]}");
    ck_assert_int_eq(filter_parse(doc_of(&arena, (const char *)text.data), &arena, &ids, &err), OMEN_OK);
    uint8_t payload[] = { DOC_OBJECT, 12, 0, 0, 0, 1, 0, 0, 0, 1, 0, 'n', DOC_I64, 0, 0, 0, 0, 0, 0, 0, 0 };
    for (uint64_t n = 0; n < 15010; n++) {
        store_u64(payload + 13, n);
        bool wanted = n % 3 == 0 && n < 15000;
        struct doc doc = { payload, sizeof payload };
        ck_assert_int_eq(filter_match(any, (point_id){ 0, n, POINT_ID_U64 }, doc), wanted);
        ck_assert_int_eq(filter_match(ids, (point_id){ 0, n, POINT_ID_U64 }, doc), wanted);
        ck_assert(!filter_match(ids, (point_id){ 0, n, POINT_ID_UUID }, doc));
    }
    buf_fini(&text);
    arena_fini(&arena);
}
END_TEST

START_TEST(deepest_filter_is_evaluated)
{
    struct arena arena;
    struct buf text;
    struct err err = { 0 };
    const struct filter *filter;
    arena_init(&arena, 1 << 16, 0);
    buf_init(&text);
    for (int i = 0; i < FILTER_DEPTH_MAX - 1; i++) buf_printf(&text, "{'must': [");
    buf_printf(&text, KEY("a", "'match': {'value': 1}"));
    for (int i = 0; i < FILTER_DEPTH_MAX - 1; i++) buf_printf(&text, "]}");
    enum omen_err rc = filter_parse(doc_of(&arena, (const char *)text.data), &arena, &filter, &err);
    ck_assert_msg(rc == OMEN_OK, "%s: %s", err.field, err.message);
    ck_assert(filter_match(filter, (point_id){ 0, 1, POINT_ID_U64 }, doc_of(&arena, "{'a': 1}")));
    ck_assert(!filter_match(filter, (point_id){ 0, 1, POINT_ID_U64 }, doc_of(&arena, "{'a': 2}")));
    buf_fini(&text);
    arena_fini(&arena);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("filter_eval");
    TCase *tc = tcase_create("filter_eval");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, evaluator_answers_as_documented, 0, (int)(sizeof rows / sizeof rows[0]));
    tcase_add_test(tc, long_lists_are_searched_exactly);
    tcase_add_test(tc, deepest_filter_is_evaluated);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
