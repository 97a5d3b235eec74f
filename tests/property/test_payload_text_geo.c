/* Words and places in the payload index against the evaluator: random texts of several scripts and random places (poles,
 * both sides of the antimeridian, heaps of one place) in rows with none, one and several; random match texts, boxes,
 * circles and polygons with holes, alone and together. An exact answer is the rows that pass, another holds all of them,
 * what is called impossible has none. What is said of a box of places holds for every place in it.
 * OMEN_SEED=n replays one seed. */
#include "common/err.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "storage/payload/filter_eval.h"
#include "storage/payload/filter_geo.h"
#include "storage/payload/payload_index.h"
#include "storage/payload/place_tree.h"
#include "storage/payload/rowbits.h"
#include "tests/support/doc_text.h"
#include "tests/support/filter_random.h"

#define SEEDS 24
#define FILTERS 80 /* a seed */

static uint32_t below(uint32_t n) { return filter_random_below(n); }
static double uniform(double low, double high)
{
    return low + (high - low) * (below(1u << 30) / 1073741823.0);
}

/* ---- random payloads ---- */

static const char *const words[] = { "meer", "MEER", "Straße", "strasse", "Berg", "ΩΜΈΓΑ", "ωμέγα", "東京",
    "京", "ひらがな", "a", "7", "10-12", "naïve", "NAÏVE", "Ёлка", "ёлка", "_", "--", "den", "ſ", "ﬁn" };

static void put_text(struct doc_builder *b, uint32_t count)
{
    char text[200];
    size_t len = 0;
    for (uint32_t i = 0; i < count; i++) {
        const char *word = words[below(sizeof words / sizeof *words)];
        len += (size_t)snprintf(text + len, sizeof text - len, "%s%s",
                i == 0                  ? ""
                        : below(9) == 0 ? ", "
                                        : " ",
                word);
    }
    doc_put_string(b, text, len);
}

/* Several kinds of trouble: edges of the world, heaps, a fine grid on which borders of conditions lie too. */
static struct geo_point place(void)
{
    static const double lons[] = { -180, 180, 0, 179.999999, -179.999999, 13.4 };
    static const double lats[] = { -90, 90, 0, 89.999999, -89.999999, 52.5 };
    switch (below(6)) {
    case 0: return (struct geo_point){ lons[below(6)], lats[below(6)] };
    case 1: return (struct geo_point){ lons[below(6)], uniform(-90, 90) };
    case 2: return (struct geo_point){ uniform(-180, 180), lats[below(6)] };
    case 3: return (struct geo_point){ 13.4 + below(9) * 0.125, 52.5 + below(9) * 0.125 };
    case 4: return (struct geo_point){ 13.4 + uniform(-0.001, 0.001), 52.5 + uniform(-0.001, 0.001) };
    default: return (struct geo_point){ uniform(-180, 180), uniform(-90, 90) };
    }
}

static void put_place(struct doc_builder *b, struct geo_point at)
{
    doc_begin_object(b);
    doc_key(b, "lon", 3);
    doc_put_f64(b, at.lon);
    doc_key(b, "lat", 3);
    doc_put_f64(b, at.lat);
    doc_end(b);
}

static void put_element(struct doc_builder *b)
{
    switch (below(8)) {
    case 0: doc_put_null(b); break;
    case 1: doc_put_i64(b, below(9)); break;
    case 2: put_place(b, (struct geo_point){ 200, 0 }); break; /* none */
    case 3:
    case 4: put_text(b, below(5)); break;
    default: put_place(b, place());
    }
}

static void put_payload(struct doc_builder *b)
{
    static const char *const names[] = { "t", "p", "x" };
    doc_begin_object(b);
    for (uint32_t f = 0; f < 3; f++) {
        uint32_t form = below(8);
        if (form == 0) continue;
        doc_key(b, names[f], 1);
        if (form < 3) {
            doc_begin_array(b);
            for (uint32_t n = below(4); n > 0; n--) put_element(b);
            doc_end(b);
        } else if (f == 0 || (f == 2 && form < 6)) {
            put_text(b, below(6));
        } else {
            put_place(b, place());
        }
    }
    doc_key(b, "items", 5);
    doc_begin_array(b);
    for (uint32_t n = below(3); n > 0; n--) {
        doc_begin_object(b);
        doc_key(b, "t", 1);
        put_text(b, 1 + below(3));
        doc_key(b, "p", 1);
        put_place(b, place());
        doc_end(b);
    }
    doc_end(b);
    doc_end(b);
}

/* ---- random filters ---- */

static void put_circle(struct doc_builder *b)
{
    static const double radii[] = { 0, 0.5, 1, 20, 14000, 111195.08, 3e6, 1.0007e7, 2.0015e7, 3e7 };
    doc_key(b, "geo_radius", 10);
    doc_begin_object(b);
    doc_key(b, "center", 6);
    put_place(b, place());
    doc_key(b, "radius", 6);
    doc_put_f64(b, below(3) == 0 ? uniform(0, 2.1e7) : radii[below(10)]);
    doc_end(b);
}

static void put_box(struct doc_builder *b)
{
    struct geo_point one = place(), two = place();
    doc_key(b, "geo_bounding_box", 16);
    doc_begin_object(b);
    doc_key(b, "top_left", 8);
    put_place(b, (struct geo_point){ one.lon, fmax(one.lat, two.lat) });
    doc_key(b, "bottom_right", 12);
    put_place(b, (struct geo_point){ two.lon, fmin(one.lat, two.lat) });
    doc_end(b);
}

static void put_ring(struct doc_builder *b, struct geo_point around, double reach)
{
    uint32_t corners = 3 + below(5);
    struct geo_point first = { 0, 0 };
    doc_begin_object(b);
    doc_key(b, "points", 6);
    doc_begin_array(b);
    for (uint32_t i = 0; i < corners; i++) {
        struct geo_point p = { around.lon + uniform(-reach, reach), around.lat + uniform(-reach, reach) };
        if (below(3) == 0) p = place();
        p.lon = fmin(fmax(p.lon, -180), 180);
        p.lat = fmin(fmax(p.lat, -90), 90);
        if (i == 0) first = p;
        put_place(b, p);
    }
    put_place(b, first);
    doc_end(b);
    doc_end(b);
}

static void put_polygon(struct doc_builder *b)
{
    struct geo_point around = place();
    double reach = below(2) ? 60 : 0.6;
    doc_key(b, "geo_polygon", 11);
    doc_begin_object(b);
    doc_key(b, "exterior", 8);
    put_ring(b, around, reach);
    doc_key(b, "interiors", 9);
    doc_begin_array(b);
    for (uint32_t n = below(3); n > 0; n--) put_ring(b, around, reach / 2);
    doc_end(b);
    doc_end(b);
}

static void put_condition(struct doc_builder *b, bool nested)
{
    static const char *const paths[] = { "t", "p", "x", "x[]", "items[].t", "items[].p", "nowhere", "x[1]" };
    const char *path = nested ? paths[below(2)] : paths[below(8)];
    doc_begin_object(b);
    doc_key(b, "key", 3);
    doc_put_string(b, path, strlen(path));
    switch (below(5)) {
    case 0: put_circle(b); break;
    case 1: put_box(b); break;
    case 2: put_polygon(b); break;
    default:
        doc_key(b, "match", 5);
        doc_begin_object(b);
        doc_key(b, "text", 4);
        put_text(b, below(4));
        doc_end(b);
    }
    doc_end(b);
}

static void put_filter(struct doc_builder *b, bool nested)
{
    static const char *const clauses[] = { "must", "should", "must_not" };
    uint32_t single = below(6);
    doc_begin_object(b);
    for (uint32_t i = 0; i < 3; i++) {
        if (single < 3 ? i > 0 : below(2)) continue; /* half of them one condition */
        doc_key(b, clauses[i], strlen(clauses[i]));
        doc_begin_array(b);
        for (uint32_t n = single < 3 ? 1 : 1 + below(2); n > 0; n--) put_condition(b, nested);
        if (!nested && single == 3) {
            doc_begin_object(b);
            doc_key(b, "nested", 6);
            doc_begin_object(b);
            doc_key(b, "key", 3);
            doc_put_string(b, "items", 5);
            doc_key(b, "filter", 6);
            put_filter(b, true);
            doc_end(b);
            doc_end(b);
        }
        doc_end(b);
    }
    doc_end(b);
}

/* ---- the property ---- */

struct rows {
    struct doc *payloads; /* [count] data NULL: the row is dead and gone */
    uint32_t count;
    struct arena arena;
    char path[200];
};

static bool row_at(void *arg, uint32_t row, point_id *id_out, struct doc *payload_out)
{
    const struct rows *r = arg;
    *id_out = (point_id){ .lo = row };
    *payload_out = r->payloads[row];
    return r->payloads[row].data != NULL;
}

static void rows_init(struct rows *r, uint32_t count)
{
    const char *tmp = getenv("TMPDIR");
    memset(r, 0, sizeof *r);
    r->count = count;
    r->payloads = mem_must_calloc(count + 1, sizeof *r->payloads);
    arena_init(&r->arena, 1 << 16, 0);
    snprintf(r->path, sizeof r->path, "%.150s/omen-text-geo-XXXXXX", tmp != NULL ? tmp : "/tmp");
    int fd = mkstemp(r->path);
    ck_assert_int_ge(fd, 0);
    fclose(fdopen(fd, "w"));
}

static void rows_fini(struct rows *r)
{
    remove(r->path);
    arena_fini(&r->arena);
    mem_free(r->payloads);
}

static struct payload_index *index_of(struct rows *r, const char *first)
{
    struct err err;
    struct payload_index *index;
    const struct payload_source source = { .count = r->count, .row = row_at, .arg = r, .first = first };
    enum omen_err rc = payload_index_build(&source, vfs_posix(), r->path, &err);
    ck_assert_msg(rc == OMEN_OK, "build: %s", err.message);
    rc = payload_index_open(vfs_posix(), r->path, r->count, &index, &err);
    ck_assert_msg(rc == OMEN_OK, "open: %s", err.message);
    return index;
}

struct tally {
    uint64_t exact, superset, passed, candidates, words_pruned, area_pruned;
};

static void check_filter(const struct rows *r, const struct payload_index *index, const struct filter *filter,
        struct payload_scratch *scratch, struct tally *tally, const char *what)
{
    struct payload_answer answer;
    struct payload_estimate estimate;
    uint64_t passed = 0, candidates = 0;
    ck_assert_int_eq(payload_index_filter(index, filter, scratch, &answer), OMEN_OK);
    payload_index_estimate(index, filter, &estimate);
    for (uint32_t i = 0; i < r->count; i++) {
        bool in = rowbits_has(answer.rows, i);
        candidates += in;
        if (r->payloads[i].data == NULL) continue;
        bool passes = filter_match(filter, (point_id){ .lo = i }, r->payloads[i]);
        passed += passes;
        if (passes && !in) ck_abort_msg("%s: row %u passes and is not in the answer", what, i);
        if (answer.exact && in != passes) ck_abort_msg("%s: row %u does not pass", what, i);
    }
    ck_assert_msg(candidates == answer.count, "%s: count", what);
    if (estimate.pruned != EXPLAIN_NOT_PRUNED) ck_assert_msg(passed == 0, "%s: pruned, yet rows pass", what);
    ck_assert(estimate.rows >= 0 && estimate.rows <= r->count);
    tally->words_pruned += estimate.pruned == EXPLAIN_PRUNED_WORDS;
    tally->area_pruned += estimate.pruned == EXPLAIN_PRUNED_AREA;
    tally->exact += answer.exact;
    tally->superset += !answer.exact;
    tally->passed += passed;
    tally->candidates += candidates;
}

static struct doc built(struct doc_builder *b, struct arena *arena)
{
    struct doc doc;
    ck_assert_int_eq(doc_builder_finish(b, &doc, NULL), OMEN_OK);
    doc.data = arena_copy(arena, doc.data, doc.len);
    ck_assert_ptr_nonnull(doc.data);
    return doc;
}

static const struct filter *filter_made(struct doc_builder *b, struct arena *arena)
{
    const struct filter *filter;
    struct err err;
    enum omen_err rc = filter_parse(built(b, arena), arena, &filter, &err);
    ck_assert_msg(rc == OMEN_OK, "filter: %s %s", err.field, err.message);
    return filter;
}

static void check_seed(uint64_t seed, struct tally *tally)
{
    struct rows r;
    char what[64];
    struct doc_builder *b = doc_builder_new(DOC_BYTES_MAX);
    struct payload_scratch *scratch = payload_scratch_new();
    filter_random_seed(seed * 0x9e3779b97f4a7c15ull + 1);
    rows_init(&r, 1 + below(seed % 3 == 0 ? 3000 : 150));
    for (uint32_t i = 0; i < r.count; i++) {
        if (below(20) == 0) continue;
        doc_builder_reset(b, DOC_BYTES_MAX);
        put_payload(b);
        r.payloads[i] = built(b, &r.arena);
    }
    struct payload_index *index = index_of(&r, "t:text\0p:geo\0x:text\0");
    for (uint32_t f = 0; f < FILTERS; f++) {
        doc_builder_reset(b, DOC_FILTER_BYTES_MAX);
        put_filter(b, false);
        snprintf(what, sizeof what, "seed %llu filter %u", (unsigned long long)seed, f);
        check_filter(&r, index, filter_made(b, &r.arena), scratch, tally, what);
    }
    payload_index_free(index);
    payload_scratch_free(scratch);
    doc_builder_free(b);
    rows_fini(&r);
}

START_TEST(answers_agree_with_the_evaluator)
{
    struct tally t = { 0 };
    const char *one = getenv("OMEN_SEED");
    uint64_t first = one != NULL ? strtoull(one, NULL, 10) : 1, count = one != NULL ? 1 : SEEDS;
    for (uint64_t seed = first; seed < first + count; seed++) check_seed(seed, &t);
    printf("seeds %llu..%llu: exact %llu, superset %llu (%llu rows for %llu), words prune %llu, areas %llu\n",
            (unsigned long long)first, (unsigned long long)(first + count - 1), (unsigned long long)t.exact,
            (unsigned long long)t.superset, (unsigned long long)t.candidates, (unsigned long long)t.passed,
            (unsigned long long)t.words_pruned, (unsigned long long)t.area_pruned);
    if (one != NULL) return;
    ck_assert_uint_gt(t.exact, t.superset); /* else little of it is an index */
    ck_assert_uint_gt(t.words_pruned, 0);
    ck_assert_uint_gt(t.area_pruned, 0);
    ck_assert_uint_gt(t.passed, t.candidates / 3);
}
END_TEST

/* ---- boxes of places ---- */

static struct geo_point within(const struct geo_rect *r)
{
    struct geo_point p = { uniform(r->low.lon, r->high.lon), uniform(r->low.lat, r->high.lat) };
    if (below(3) == 0) p.lon = below(2) ? r->low.lon : r->high.lon;
    if (below(3) == 0) p.lat = below(2) ? r->low.lat : r->high.lat;
    return p;
}

START_TEST(what_is_said_of_a_box_holds_for_its_places)
{
    uint64_t sides[3] = { 0 };
    struct doc_builder *b = doc_builder_new(DOC_BYTES_MAX);
    struct arena arena;
    arena_init(&arena, 1 << 16, 0);
    filter_random_seed(23);
    for (int i = 0; i < 6000; i++) {
        struct geo_region region;
        arena_reset(&arena);
        doc_builder_reset(b, DOC_BYTES_MAX);
        doc_begin_object(b);
        doc_key(b, "must", 4);
        doc_begin_object(b);
        doc_key(b, "key", 3);
        doc_put_string(b, "p", 1);
        (i % 3 == 0 ? put_circle : i % 3 == 1 ? put_box : put_polygon)(b);
        doc_end(b);
        doc_end(b);
        const struct filter *condition = filter_made(b, &arena)->all.must[0];
        geo_region_make(condition, &region);
        for (int n = 0; n < 20; n++) {
            struct geo_point one = place(), two = place();
            double reach = below(2) ? 360 : uniform(0, 3);
            two.lon = fmin(fmax(two.lon, one.lon - reach), one.lon + reach);
            two.lat = fmin(fmax(two.lat, one.lat - reach), one.lat + reach);
            const struct geo_rect r = { { fmin(one.lon, two.lon), fmin(one.lat, two.lat) },
                { fmax(one.lon, two.lon), fmax(one.lat, two.lat) } };
            enum geo_side side = geo_region_side(&region, &r);
            sides[side]++;
            for (int p = 0; p < 12 && side != GEO_CROSSES; p++) {
                struct geo_point at = within(&r);
                if (geo_holds(condition, at) != (side == GEO_INSIDE))
                    ck_abort_msg(
                            "condition %d box %d: %.17g %.17g in %.17g..%.17g %.17g..%.17g is not as all", i,
                            n, at.lon, at.lat, r.low.lon, r.high.lon, r.low.lat, r.high.lat);
            }
        }
    }
    printf("boxes outside %llu, inside %llu, crossing %llu\n", (unsigned long long)sides[GEO_OUTSIDE],
            (unsigned long long)sides[GEO_INSIDE], (unsigned long long)sides[GEO_CROSSES]);
    ck_assert_uint_gt(sides[GEO_INSIDE], sides[GEO_CROSSES] / 20);
    ck_assert_uint_gt(sides[GEO_OUTSIDE], sides[GEO_CROSSES] / 4);
    arena_fini(&arena);
    doc_builder_free(b);
}
END_TEST

/* ---- many rows: chunks with lists and with bits, prefixes of places ---- */

#define MANY 150000u

static const struct filter *filter_of(struct rows *r, const char *text)
{
    const struct filter *filter;
    struct err err;
    enum omen_err rc = filter_parse(doc_of(&r->arena, text), &r->arena, &filter, &err);
    ck_assert_msg(rc == OMEN_OK, "%s: %s %s", text, err.field, err.message);
    return filter;
}

static void put_many(struct doc_builder *b, uint32_t row)
{
    char text[100];
    int len = snprintf(text, sizeof text, "w%u %s %s %s", below(3000), below(2) ? "half" : "other",
            below(20) == 0 ? "twentieth" : "-", row / 1000 == 70 ? "run" : "");
    doc_begin_object(b);
    doc_key(b, "t", 1);
    doc_put_string(b, text, (size_t)len);
    doc_key(b, "p", 1);
    put_place(b, (struct geo_point){ uniform(-180, 180), uniform(-90, 90) });
    doc_end(b);
}

START_TEST(many_rows_are_answered_exactly)
{
    struct rows r;
    struct tally tally = { 0 };
    char text[300];
    struct doc_builder *b = doc_builder_new(DOC_BYTES_MAX);
    struct payload_scratch *scratch = payload_scratch_new();
    filter_random_seed(7);
    rows_init(&r, MANY);
    for (uint32_t i = 0; i < MANY; i++) {
        doc_builder_reset(b, DOC_BYTES_MAX);
        put_many(b, i);
        r.payloads[i] = built(b, &r.arena);
    }
    struct payload_index *index = index_of(&r, NULL);
    static const char *const texts[] = { "half", "other HALF", "twentieth half", "w17 half", "w2999",
        "run half", "twentieth run", "w17 w18", "absent half" };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        snprintf(text, sizeof text, "{'must': [{'key': 't', 'match': {'text': '%s'}}]}", texts[i]);
        check_filter(&r, index, filter_of(&r, text), scratch, &tally, text);
        snprintf(text, sizeof text, "{'must_not': [{'key': 't', 'match': {'text': '%s'}}]}", texts[i]);
        check_filter(&r, index, filter_of(&r, text), scratch, &tally, text);
    }
    for (int i = 0; i < 24; i++) {
        double lon = uniform(-180, 180), lat = uniform(-85, 85), size = i % 4 == 0 ? 80 : uniform(0.1, 20);
        if (i % 2 == 0)
            snprintf(text, sizeof text,
                    "{'must': [{'key': 'p', 'geo_bounding_box': {'top_left': {'lon': %g, 'lat': %g}, "
                    "'bottom_right': {'lon': %g, 'lat': %g}}}]}",
                    lon, lat, lon + size > 180 ? lon + size - 360 : lon + size, fmax(lat - size, -90));
        else
            snprintf(text, sizeof text,
                    "{'must': [{'key': 'p', 'geo_radius': {'center': {'lon': %g, 'lat': %g}, "
                    "'radius': %g}}]}",
                    lon, lat, size * 111195);
        check_filter(&r, index, filter_of(&r, text), scratch, &tally, text);
    }
    ck_assert_uint_eq(tally.superset, 0);
    ck_assert_uint_gt(tally.passed, 0);
    payload_index_free(index);
    payload_scratch_free(scratch);
    doc_builder_free(b);
    rows_fini(&r);
}
END_TEST

/* Words that nobody else has take more than they find: listed where they are asked for alone. */
START_TEST(words_of_names_without_sense_are_listed_when_asked_for)
{
    for (int asked = 0; asked < 2; asked++) {
        struct rows r;
        char name[40];
        struct payload_field_info info;
        struct doc_builder *b = doc_builder_new(DOC_BYTES_MAX);
        rows_init(&r, 2000);
        filter_random_seed(5);
        for (uint32_t i = 0; i < r.count; i++) {
            doc_builder_reset(b, DOC_BYTES_MAX);
            doc_begin_object(b);
            doc_key(b, "id", 2);
            doc_put_string(b, name,
                    (size_t)snprintf(name, sizeof name, "%08x-%04x-%04x-%04x-%08x", below(UINT32_MAX),
                            below(65536), below(65536), below(65536), below(UINT32_MAX)));
            doc_end(b);
            r.payloads[i] = built(b, &r.arena);
        }
        struct payload_index *index = index_of(&r, asked ? "id:text\0" : NULL);
        payload_index_field(index, 0, &info);
        ck_assert_str_eq(info.path, "id");
        ck_assert_int_eq(info.has_words, asked);
        ck_assert_int_eq(info.words > 0, asked);
        payload_index_free(index);
        doc_builder_free(b);
        rows_fini(&r);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("payload_text_geo");
    TCase *tc = tcase_create("payload_text_geo");
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, answers_agree_with_the_evaluator);
    tcase_add_test(tc, what_is_said_of_a_box_holds_for_its_places);
    tcase_add_test(tc, many_rows_are_answered_exactly);
    tcase_add_test(tc, words_of_names_without_sense_are_listed_when_asked_for);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
