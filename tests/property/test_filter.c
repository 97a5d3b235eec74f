/* Random filters on random payloads: parser and evaluator together against a slow model that reads the filter
 * document itself, value by value, and knows nothing of either. OMEN_SEED=n replays one seed. */
#include "common/err.h"
#include "common/mem.h"
#include "storage/payload/filter_eval.h"
#include "tests/support/doc_text.h"
#include "tests/support/filter_random.h"

#include <check.h>
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROUNDS 40      /* filters a seed */
#define PAYLOADS 60    /* a filter */
#define VALUES_MAX 128 /* at one path of one payload */

/* ---- the model ---- */

static struct doc member(struct doc object, const char *name)
{
    struct doc_iter it = doc_iter(object);
    struct bytes k;
    struct doc value;
    if (object.data == NULL || doc_type(object) != DOC_OBJECT) return (struct doc){ NULL, 0 };
    while (doc_next(&it, &k, &value)) {
        if (k.len == strlen(name) && memcmp(k.data, name, k.len) == 0) return value;
    }
    return (struct doc){ NULL, 0 };
}

struct values {
    struct doc at[VALUES_MAX];
    uint32_t count;
};

static void put(struct values *values, struct doc value)
{
    ck_assert_uint_lt(values->count, VALUES_MAX);
    values->at[values->count++] = value;
}

/* Step by step over whole sets of values, where the product walks depth first. */
static void resolve(const char *path, struct doc root, struct values *out)
{
    struct values now = { .count = 0 }, next;
    if (root.data != NULL) put(&now, root);
    while (*path != '\0') {
        next.count = 0;
        if (*path == '[') {
            bool all = path[1] == ']';
            uint32_t slot = all ? 0 : (uint32_t)atoi(path + 1);
            path = strchr(path, ']') + 1;
            for (uint32_t i = 0; i < now.count; i++) {
                if (doc_type(now.at[i]) != DOC_ARRAY) continue;
                struct doc_iter it = doc_iter(now.at[i]);
                struct doc value;
                for (uint32_t j = 0; doc_next(&it, NULL, &value); j++) {
                    if (all || j == slot) put(&next, value);
                }
            }
        } else {
            char name[32];
            size_t len = 0;
            for (; *path != '\0' && *path != '.' && *path != '['; path++) {
                if (*path != '"') name[len++] = *path;
            }
            name[len] = '\0';
            for (uint32_t i = 0; i < now.count; i++) {
                struct doc value = member(now.at[i], name);
                if (value.data != NULL) put(&next, value);
            }
        }
        if (*path == '.') path++;
        now = next;
    }
    *out = now;
}

static void open_arrays(struct values *values)
{
    struct values opened = { .count = 0 };
    for (uint32_t i = 0; i < values->count; i++) {
        if (doc_type(values->at[i]) != DOC_ARRAY) {
            put(&opened, values->at[i]);
            continue;
        }
        struct doc_iter it = doc_iter(values->at[i]);
        struct doc value;
        while (doc_next(&it, NULL, &value)) put(&opened, value);
    }
    *values = opened;
}

static bool same(struct doc a, struct doc b) { return a.len == b.len && memcmp(a.data, b.data, a.len) == 0; }

static bool in_list(struct doc list, struct doc value)
{
    struct doc_iter it = doc_iter(list);
    struct doc item;
    while (doc_next(&it, NULL, &item)) {
        if (same(item, value)) return true;
    }
    return false;
}

static const char *text_of(struct doc d, char buffer[64]);

/* Words of ASCII text between spaces: " 2024 01 01t00 00 00z ". */
static void spaced(struct doc d, char out[80])
{
    char text[64];
    size_t n = 0;
    text_of(d, text);
    out[n++] = ' ';
    for (const char *p = text; *p != '\0'; p++) out[n++] = (char)(isalnum(*p) ? tolower(*p) : ' ');
    out[n++] = ' ';
    out[n] = '\0';
}

static bool model_text(struct doc wanted, struct doc value)
{
    char words[80], text[80], word[80];
    if (doc_type(value) != DOC_STRING) return false;
    spaced(wanted, words);
    spaced(value, text);
    uint32_t count = 0;
    for (char *save, *w = strtok_r(words, " ", &save); w != NULL; w = strtok_r(NULL, " ", &save)) {
        snprintf(word, sizeof word, " %.70s ", w);
        if (strstr(text, word) == NULL) return false;
        count++;
    }
    return count > 0;
}

static bool model_match(struct doc match, const struct values *values)
{
    struct doc text = member(match, "text");
    struct doc value = member(match, "value"), any = member(match, "any"), except = member(match, "except");
    for (uint32_t i = 0; i < values->count; i++) {
        struct doc v = values->at[i];
        if (text.data != NULL && model_text(text, v)) return true;
        if (value.data != NULL && same(v, value)) return true;
        if (any.data != NULL && in_list(any, v)) return true;
        if (except.data != NULL && doc_type(v) != DOC_NULL && !in_list(except, v)) return true;
    }
    return false;
}

/* Dates are compared as microseconds, which doubles hold exactly until the year 2255. */
static bool bound_holds(const char *bound, double v, double limit)
{
    if (strcmp(bound, "gt") == 0) return v > limit;
    if (strcmp(bound, "gte") == 0) return v >= limit;
    if (strcmp(bound, "lt") == 0) return v < limit;
    return v <= limit;
}

static double number_or_time(struct doc value, bool *ok)
{
    int64_t us = 0;
    *ok = true;
    if (doc_type(value) == DOC_STRING) {
        struct bytes text = doc_string(value);
        *ok = datetime_parse((const char *)text.data, text.len, &us);
        return (double)us;
    }
    *ok = doc_is_number(value);
    return *ok ? doc_f64(value) : 0;
}

static const char *const bounds[] = { "gt", "gte", "lt", "lte" };

static bool all_bounds_hold(struct doc range, double v, bool text)
{
    for (int i = 0; i < 4; i++) {
        struct doc limit = member(range, bounds[i]);
        bool ok;
        if (limit.data == NULL) continue;
        if ((doc_type(limit) == DOC_STRING) != text) return false;
        if (!bound_holds(bounds[i], v, number_or_time(limit, &ok))) return false;
    }
    return true;
}

static bool model_range(struct doc range, const struct values *values)
{
    for (uint32_t i = 0; i < values->count; i++) {
        bool ok;
        double v = number_or_time(values->at[i], &ok);
        if (ok && all_bounds_hold(range, v, doc_type(values->at[i]) == DOC_STRING)) return true;
    }
    return false;
}

static double values_in(struct doc v)
{
    return doc_type(v) == DOC_NULL ? 0 : doc_type(v) == DOC_ARRAY ? doc_count(v) : 1;
}

static bool model_filter(struct doc filter, uint64_t id, struct doc payload);

static const char *text_of(struct doc d, char buffer[64])
{
    struct bytes s = doc_string(d);
    memcpy(buffer, s.data, s.len);
    buffer[s.len] = '\0';
    return buffer;
}

static bool model_nested(struct doc nested, uint64_t id, struct doc payload)
{
    char path[64];
    struct values values;
    resolve(text_of(member(nested, "key"), path), payload, &values);
    if (strlen(path) < 2 || strcmp(path + strlen(path) - 2, "[]") != 0) { /* only arrays have elements */
        struct values arrays = { .count = 0 };
        for (uint32_t i = 0; i < values.count; i++) {
            if (doc_type(values.at[i]) == DOC_ARRAY) put(&arrays, values.at[i]);
        }
        values = arrays;
        open_arrays(&values);
    }
    for (uint32_t i = 0; i < values.count; i++) {
        if (doc_type(values.at[i]) != DOC_OBJECT) continue;
        if (model_filter(member(nested, "filter"), id, values.at[i])) return true;
    }
    return false;
}

static bool model_count(struct doc range, const struct values *values)
{
    for (uint32_t i = 0; i < values->count; i++) {
        if (all_bounds_hold(range, values_in(values->at[i]), false)) return true;
    }
    return values->count == 0 && all_bounds_hold(range, 0, false);
}

static bool model_empty(const struct values *values)
{
    for (uint32_t i = 0; i < values->count; i++) {
        if (values_in(values->at[i]) != 0) return false;
    }
    return true;
}

static bool model_null(struct values *values)
{
    open_arrays(values);
    for (uint32_t i = 0; i < values->count; i++) {
        if (doc_type(values->at[i]) == DOC_NULL) return true;
    }
    return false;
}

static bool model_condition(struct doc c, uint64_t id, struct doc payload)
{
    char path[64];
    struct values values;
    struct doc part;
    if ((part = member(c, "has_id")).data != NULL) {
        struct doc_iter it = doc_iter(part);
        struct doc item;
        while (doc_next(&it, NULL, &item)) {
            if ((uint64_t)doc_i64(item) == id) return true;
        }
        return false;
    }
    if ((part = member(c, "nested")).data != NULL) return model_nested(part, id, payload);
    if ((part = member(c, "is_empty")).data != NULL) {
        resolve(text_of(member(part, "key"), path), payload, &values);
        return model_empty(&values);
    }
    if ((part = member(c, "is_null")).data != NULL) {
        resolve(text_of(member(part, "key"), path), payload, &values);
        return model_null(&values);
    }
    if (member(c, "key").data == NULL) return model_filter(c, id, payload);
    resolve(text_of(member(c, "key"), path), payload, &values);
    if ((part = member(c, "values_count")).data != NULL) return model_count(part, &values);
    open_arrays(&values);
    if ((part = member(c, "match")).data != NULL) return model_match(part, &values);
    part = member(c, "range");
    return model_range(part.data != NULL ? part : member(c, "datetime_range"), &values);
}

static uint32_t how_many(struct doc conditions, uint64_t id, struct doc payload)
{
    uint32_t count = 0;
    struct doc_iter it = doc_iter(conditions);
    struct doc c;
    while (doc_next(&it, NULL, &c)) count += model_condition(c, id, payload);
    return count;
}

static bool model_filter(struct doc filter, uint64_t id, struct doc payload)
{
    struct doc must = member(filter, "must"), should = member(filter, "should"),
               not = member(filter, "must_not");
    struct doc min_should = member(filter, "min_should");
    bool ok = true;
    if (must.data != NULL) ok &= how_many(must, id, payload) == doc_count(must);
    if (should.data != NULL) ok &= how_many(should, id, payload) > 0;
    if (not .data != NULL) ok &= how_many(not, id, payload) == 0;
    if (min_should.data != NULL) {
        ok &= how_many(member(min_should, "conditions"), id, payload) >=
                doc_i64(member(min_should, "min_count"));
    }
    return ok;
}

/* ---- the property ---- */

static struct doc finished(struct doc_builder *b, struct arena *arena)
{
    struct doc doc;
    struct err err;
    ck_assert_int_eq(doc_builder_finish(b, &doc, &err), OMEN_OK);
    return (struct doc){ arena_copy(arena, doc.data, doc.len), doc.len };
}

static void check_seed(uint64_t seed, uint32_t *matches, uint32_t *misses)
{
    struct doc_builder *b = doc_builder_new(DOC_BYTES_MAX);
    struct arena arena;
    filter_random_seed(seed * 0x9e3779b97f4a7c15ull + 1);
    arena_init(&arena, 1 << 16, 0);
    for (int round = 0; round < ROUNDS; round++) {
        struct err err = { 0 };
        const struct filter *filter;
        arena_reset(&arena);
        doc_builder_reset(b, DOC_BYTES_MAX);
        filter_random_filter(b, 2);
        struct doc filter_doc = finished(b, &arena);
        enum omen_err rc = filter_parse(filter_doc, &arena, &filter, &err);
        ck_assert_msg(rc == OMEN_OK, "seed %llu: %s: %s: %s", (unsigned long long)seed,
                doc_show(&arena, filter_doc), err.field, err.message);
        for (int i = 0; i < PAYLOADS; i++) {
            doc_builder_reset(b, DOC_BYTES_MAX);
            filter_random_payload(b, 4);
            struct doc payload = finished(b, &arena);
            uint64_t id = filter_random_below(5);
            bool want = model_filter(filter_doc, id, payload);
            bool got = filter_match(filter, (point_id){ 0, id, POINT_ID_U64 }, payload);
            ck_assert_msg(got == want, "seed %llu: %s on id %llu %s gives %d", (unsigned long long)seed,
                    doc_show(&arena, filter_doc), (unsigned long long)id, doc_show(&arena, payload), got);
            *(want ? matches : misses) += 1;
        }
    }
    arena_fini(&arena);
    doc_builder_free(b);
}

START_TEST(evaluator_agrees_with_the_model)
{
    uint32_t matches = 0, misses = 0;
    const char *one = getenv("OMEN_SEED");
    uint64_t first = one != NULL ? strtoull(one, NULL, 10) : 1, count = one != NULL ? 1 : 60;
    for (uint64_t seed = first; seed < first + count; seed++) check_seed(seed, &matches, &misses);
    printf("seeds %llu..%llu: %u matches, %u misses\n", (unsigned long long)first,
            (unsigned long long)(first + count - 1), matches, misses);
    if (one != NULL) return;
    ck_assert_uint_gt(matches, (matches + misses) / 10); /* else the property is about nothing */
    ck_assert_uint_gt(misses, (matches + misses) / 10);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("filter");
    TCase *tc = tcase_create("filter");
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, evaluator_agrees_with_the_model);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
