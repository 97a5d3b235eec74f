/* Options of collections: every value comes back, what is wrong is told by its key and changes nothing. */
#include "common/placement/options.h"

#include <check.h>
#include <stdio.h>
#include <string.h>

#include "common/err.h"
#include "tests/support/doc_text.h"

static struct arena arena;

static void setup(void) { arena_init(&arena, 4096, 0); }
static void teardown(void) { arena_fini(&arena); }

static struct doc put(const struct collection_options *options)
{
    struct doc doc;
    struct doc_builder *b = doc_builder_new(OPTIONS_DOC_BYTES_MAX);
    doc_begin_object(b);
    collection_options_put(options, b);
    doc_end(b);
    ck_assert_int_eq(doc_builder_finish(b, &doc, NULL), OMEN_OK);
    doc.data = arena_copy(&arena, doc.data, doc.len);
    doc_builder_free(b);
    return doc;
}

START_TEST(every_value_comes_back)
{
    static const uint64_t delays[] = { 0, 1, OPTIONS_DELAY_MS_MAX };
    static const uint64_t buckets[] = { 0, OPTIONS_BUCKET_MS_MIN, OPTIONS_BUCKET_MS_MAX };
    for (int n = 0; n < 4 * 3 * 3 * 3 * 9; n++) {
        struct collection_options o = { .profile = (enum options_profile)(n % 4),
            .write_mode = (enum write_mode)(n / 4 % 3),
            .quantization = (enum quantization)(n / 12 % 3),
            .segments = (enum segment_grouping)(n / 36 % 3),
            .index_delay_ms = delays[n / 108 % 3],
            .time_bucket_ms = buckets[n / 324 % 3],
            .tenant_points = n % 7 == 0 ? OPTIONS_TENANT_POINTS_MAX : 0,
            .bulk_until_ms = n % 5 == 0 ? 1790000000000 : 0 };
        if (n % 2 == 0) strcpy(o.tenant_path, "\"odd key\".user");
        if (n % 3 == 0) memset(o.time_path, 'a', OPTIONS_PATH_BYTES_MAX);
        if (n % 4 == 0) strcpy(o.type_path, "kind");
        if (n % 3 == 1) memcpy(o.payload_indexes, "a.b\0tags[]\0", 12);
        struct collection_options back = { .write_mode = WRITE_STREAM_ONLY, .index_delay_ms = 77 };
        float recall = 0.5f;
        ck_assert_int_eq(collection_options_change(&back, &recall, put(&o), NULL), OMEN_OK);
        if (o.profile == PROFILE_NONE) back.profile = PROFILE_NONE;
        ck_assert_msg(collection_options_equal(&o, &back), "case %d", n);
        arena_reset(&arena);
    }
}
END_TEST

/* The words: deploy/profiles/ has the same as files, tests/integration/test_omenctl.py compares. */
START_TEST(profiles_are_what_they_are_said_to_be)
{
    struct collection_options o = { .index_delay_ms = 5 };
    float recall = 0.5f;
    ck_assert_int_eq(collection_options_change(&o, &recall, doc_of(&arena, "{'profile': 'speed'}"), NULL),
            OMEN_OK);
    ck_assert(o.write_mode == WRITE_STREAM_ONLY && options_index_delay_ms(&o) == 60000 &&
            o.quantization == QUANTIZE_AGGRESSIVE && recall == 0.85f);
    ck_assert_int_eq(collection_options_change(&o, &recall, doc_of(&arena, "{'profile': 'quality'}"), NULL),
            OMEN_OK);
    ck_assert(o.write_mode == WRITE_IMMEDIATE_INDEX && o.segments == SEGMENTS_PAYLOAD_AWARE &&
            o.quantization == QUANTIZE_CONSERVATIVE && recall == 0.95f);
    ck_assert_int_eq(collection_options_change(&o, &recall, doc_of(&arena, "{'profile': 'balanced'}"), NULL),
            OMEN_OK);
    ck_assert(o.write_mode == WRITE_ASYNC_INDEX && o.segments == SEGMENTS_TIME_BASED &&
            o.quantization == QUANTIZE_ADAPTIVE && recall == 0.90f);
    /* What is said beside a profile counts over it, wherever it stands. */
    ck_assert_int_eq(collection_options_change(&o, &recall,
                             doc_of(&arena, "{'index_delay_ms': 10, 'profile': 'speed', 'recall_target': 1}"),
                             NULL),
            OMEN_OK);
    ck_assert(o.write_mode == WRITE_STREAM_ONLY && options_index_delay_ms(&o) == 10 && recall == 1);
}
END_TEST

START_TEST(rules_are_given_changed_and_taken_away)
{
    struct collection_options o = { .profile = PROFILE_NONE };
    float recall = 0.5f;
    char text[OPTIONS_PATH_BYTES_MAX + 40];
    ck_assert_uint_eq(options_tenant_points(&o), 20000);
    ck_assert_int_eq(collection_options_change(&o, &recall,
                             doc_of(&arena,
                                     "{'tenant_path': 'user.id', 'time_path': 'at', 'tenant_points': 5000}"),
                             NULL),
            OMEN_OK);
    ck_assert_str_eq(o.tenant_path, "user.id");
    ck_assert_uint_eq(options_tenant_points(&o), 5000);
    ck_assert_int_eq(collection_options_change(&o, &recall,
                             doc_of(&arena,
                                     "{'profile': 'quality', 'tenant_path': 'u', 'tenant_points': 20000}"),
                             NULL),
            OMEN_OK);
    ck_assert_str_eq(o.tenant_path, "u");
    ck_assert_str_eq(o.time_path, "at"); /* a profile says nothing of rules */
    ck_assert_uint_eq(o.tenant_points, 0);
    ck_assert_int_eq(collection_options_change(&o, &recall,
                             doc_of(&arena, "{'tenant_path': '', 'time_path': ''}"), NULL),
            OMEN_OK);
    const struct collection_options quality = { .profile = PROFILE_QUALITY,
        .write_mode = WRITE_IMMEDIATE_INDEX,
        .quantization = QUANTIZE_CONSERVATIVE,
        .segments = SEGMENTS_PAYLOAD_AWARE };
    ck_assert(collection_options_equal(&o, &quality));
    /* At the limit, and one past it. */
    for (uint32_t len = OPTIONS_PATH_BYTES_MAX; len <= OPTIONS_PATH_BYTES_MAX + 1; len++) {
        int before = snprintf(text, sizeof text, "{'type_path': '");
        memset(text + before, 'x', len);
        snprintf(text + before + len, sizeof text - (size_t)before - len, "'}");
        ck_assert_int_eq(collection_options_change(&o, &recall, doc_of(&arena, text), NULL),
                len <= OPTIONS_PATH_BYTES_MAX ? OMEN_OK : OMEN_EINVAL);
    }
    ck_assert_uint_eq(strlen(o.type_path), OPTIONS_PATH_BYTES_MAX);
}
END_TEST

/* Eight paths, and all their bytes; one more of either is refused. */
START_TEST(payload_indexes_are_bounded)
{
    struct collection_options o = { .index_delay_ms = 5 };
    float recall = 0.5f;
    char text[OPTIONS_INDEXES_BYTES + 200];
    ck_assert_int_eq(collection_options_change(&o, &recall,
                             doc_of(&arena,
                                     "{'payload_indexes': ['a', 'b:text', 'c.d:geo', 'e[]:text', 'f', "
                                     "'g', 'h', 'i']}"),
                             NULL),
            OMEN_OK);
    ck_assert_mem_eq(o.payload_indexes, "a\0b:text\0c.d:geo\0e[]:text\0f\0g\0h\0i\0", 35);
    ck_assert_int_eq(collection_options_change(&o, &recall, doc_of(&arena, "{'payload_indexes': []}"), NULL),
            OMEN_OK);
    ck_assert_int_eq(o.payload_indexes[0], '\0');
    for (uint32_t more = 0; more < 2; more++) {
        int at = snprintf(text, sizeof text, "{'payload_indexes': ['0123456789', '");
        uint32_t first = 250, second = OPTIONS_INDEXES_BYTES - 11 - 251 - 2 + more;
        memset(text + at, 'x', first);
        at += (int)first;
        at += snprintf(text + at, sizeof text - (size_t)at, "', '");
        memset(text + at, 'z', second);
        at += (int)second;
        snprintf(text + at, sizeof text - (size_t)at, "']}");
        ck_assert_int_eq(collection_options_change(&o, &recall, doc_of(&arena, text), NULL),
                more == 0 ? OMEN_OK : OMEN_ETOOBIG);
    }
    ck_assert_str_eq(o.payload_indexes, "0123456789");
}
END_TEST

START_TEST(what_is_wrong_is_named_and_changes_nothing)
{
    static const struct {
        const char *text, *field;
    } cases[] = {
        { "{'profile': 'fast'}", "profile" },
        { "{'profile': ''}", "profile" },
        { "{'profile': 1}", "profile" },
        { "{'write_mode': 'sometimes'}", "write_mode" },
        { "{'write_mode': null}", "write_mode" },
        { "{'quantization': 'binary'}", "quantization" },
        { "{'segments': true}", "segments" },
        { "{'index_delay_ms': 0}", "index_delay_ms" },
        { "{'index_delay_ms': -1}", "index_delay_ms" },
        { "{'index_delay_ms': 1.5}", "index_delay_ms" },
        { "{'index_delay_ms': '60s'}", "index_delay_ms" },
        { "{'index_delay_ms': 604800001}", "index_delay_ms" },
        { "{'time_bucket_ms': 59999}", "time_bucket_ms" },
        { "{'tenant_path': 'a..b'}", "tenant_path" },
        { "{'payload_indexes': 'a'}", "payload_indexes" },
        { "{'payload_indexes': ['']}", "payload_indexes" },
        { "{'payload_indexes': ['a', 7]}", "payload_indexes" },
        { "{'payload_indexes': ['a..b']}", "payload_indexes" },
        { "{'payload_indexes': ['a','b','c','d','e','f','g','h','i']}", "payload_indexes" },
        { "{'tenant_path': 'tags[]'}", "tenant_path" },
        { "{'time_path': 7}", "time_path" },
        { "{'type_path': null}", "type_path" },
        { "{'type_path': 'list[0].a'}", "type_path" },
        { "{'tenant_points': 999}", "tenant_points" },
        { "{'tenant_points': 100000001}", "tenant_points" },
        { "{'tenant_points': '20k'}", "tenant_points" },
        { "{'bulk_until_ms': -1}", "bulk_until_ms" },
        { "{'recall_target': 0}", "recall_target" },
        { "{'recall_target': 1e-60}", "recall_target" },
        { "{'recall_target': 1.01}", "recall_target" },
        { "{'recall_target': '0.9'}", "recall_target" },
        { "{'recall': 0.9}", "recall" },
        { "{'': 1}", "" },
        { "[]", "" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct collection_options o = { .write_mode = WRITE_IMMEDIATE_INDEX, .index_delay_ms = 5 }, was = o;
        float recall = 0.5f;
        struct err err;
        err_clear(&err);
        ck_assert_msg(collection_options_change(&o, &recall, doc_of(&arena, cases[i].text), &err) ==
                        OMEN_EINVAL,
                "%s", cases[i].text);
        ck_assert_str_eq(err.field, cases[i].field);
        ck_assert_str_ne(err.message, "");
        ck_assert(collection_options_equal(&o, &was) && recall == 0.5f);
    }
    /* Also when the first of several was right. */
    struct collection_options o = { .index_delay_ms = 5 }, was = o;
    float recall = 0.5f;
    ck_assert_int_eq(collection_options_change(&o, &recall,
                             doc_of(&arena, "{'index_delay_ms': 10, 'profile': 'speed', 'segments': 'x'}"),
                             NULL),
            OMEN_EINVAL);
    ck_assert(collection_options_equal(&o, &was) && recall == 0.5f);
    ck_assert_int_eq(collection_options_change(&o, &recall, (struct doc){ NULL, 0 }, NULL), OMEN_OK);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("options");
    TCase *tc = tcase_create("options");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, every_value_comes_back);
    tcase_add_test(tc, profiles_are_what_they_are_said_to_be);
    tcase_add_test(tc, rules_are_given_changed_and_taken_away);
    tcase_add_test(tc, payload_indexes_are_bounded);
    tcase_add_test(tc, what_is_wrong_is_named_and_changes_nothing);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
