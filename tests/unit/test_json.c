/* JSON: what goes in comes out equal, and what no payload may hold is refused with its place. */
#include "common/json.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static struct doc_builder *builder;
static struct buf out;
static struct err err;

static void setup(void)
{
    builder = doc_builder_new(DOC_BYTES_MAX);
    buf_init(&out);
}

static void teardown(void)
{
    doc_builder_free(builder);
    buf_fini(&out);
}

static enum omen_err parse(const char *text, size_t len, struct doc *doc)
{
    err_clear(&err);
    doc_builder_reset(builder, DOC_BYTES_MAX);
    return json_parse(text, len, builder, doc, &err);
}

static const char *write_doc(struct doc doc)
{
    buf_clear(&out);
    json_write(doc, &out);
    buf_append(&out, "", 1);
    ck_assert(!out.failed);
    return (const char *)out.data;
}

START_TEST(values_come_back_in_canonical_form)
{
    static const char *const CASES[][2] = {
        { "null", "null" },
        { " true ", "true" },
        { "false", "false" },
        { "0", "0" },
        { "-0", "0" },
        { "9223372036854775807", "9223372036854775807" },
        { "-9223372036854775808", "-9223372036854775808" },
        { "1.0", "1.0" },
        { "1e2", "100.0" },
        { "0.1", "0.1" },
        { "1e300", "1e+300" },
        { "5e-324", "4.94065645841247e-324" },
        { "1.7976931348623157e308", "1.7976931348623157e+308" },
        { "\"\"", "\"\"" },
        { "\"a\\u00e9\\n\\t\\\"\\\\\\/\\u0001\\u007f\"", "\"a\xc3\xa9\\n\\t\\\"\\\\/\\u0001\\u007f\"" },
        { "\"\\ud83d\\ude00\"", "\"\xf0\x9f\x98\x80\"" },
        { "\"nul \\u0000 inside\"", "\"nul \\u0000 inside\"" },
        { "[]", "[]" },
        { "{}", "{}" },
        { "[1, [2, {\"x\": []}], null]", "[1,[2,{\"x\":[]}],null]" },
        { "{\"b\": 1, \"a\": {\"d\": 2.5, \"c\": \"x\"}}", "{\"a\":{\"c\":\"x\",\"d\":2.5},\"b\":1}" },
        { "{\"\": 1}", "{\"\":1}" },
    };
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        struct doc doc;
        ck_assert_msg(parse(CASES[i][0], strlen(CASES[i][0]), &doc) == OMEN_OK, "%s: %s", CASES[i][0],
                err.message);
        ck_assert_str_eq(write_doc(doc), CASES[i][1]);
    }
}
END_TEST

START_TEST(what_is_no_payload_is_refused_with_its_place)
{
    static const char *const CASES[][2] = {
        { "", "JSON line 1, column 0" },
        { "{\"a\":1,\"a\":2}", "JSON line 1, column 10: duplicate object key" },
        { "[1,\n2,\n,3]", "JSON line 3, column 1" },
        { "[1,2", "JSON line 1" },
        { "1 2", "JSON line 1, column 3" },
        { "9223372036854775808", "JSON line 1, column 19: too big integer" },
        { "-9223372036854775809", "JSON line 1, column 20: too big negative integer" },
        { "1e999", "JSON line 1, column 5: real number overflow" },
        { "NaN", "JSON line 1, column 3" },
        { "Infinity", "JSON line 1" },
        { "\"\xff\"", "JSON line 1" },
        { "\"\xed\xa0\x80\"", "JSON line 1" },
        { "\"\\ud800\"", "JSON line 1" },
        { "{\"a\\u0000b\": 1}", "JSON line 1" },
        { "'a'", "JSON line 1" },
        { "[1,]", "JSON line 1" },
        { "// c\n1", "JSON line 1" },
    };
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        struct doc doc;
        ck_assert_msg(parse(CASES[i][0], strlen(CASES[i][0]), &doc) == OMEN_EINVAL, "%s", CASES[i][0]);
        ck_assert_ptr_null(doc.data);
        ck_assert_msg(strncmp(err.message, CASES[i][1], strlen(CASES[i][1])) == 0, "%s: %s", CASES[i][0],
                err.message);
    }
    struct doc doc;
    ck_assert_int_eq(parse("\"a\0b\"", 5, &doc), OMEN_EINVAL); /* a raw NUL, not an escaped one */
}
END_TEST

static size_t nested(char *dst, int depth, const char *open, const char *close)
{
    dst[0] = '\0';
    for (int i = 0; i < depth; i++) strcat(dst, open);
    strcat(dst, "1");
    for (int i = 0; i < depth; i++) strcat(dst, close);
    return strlen(dst);
}

START_TEST(depth_and_size_end_at_the_limits_of_payloads)
{
    static char text[100000];
    struct doc doc;
    size_t len = nested(text, DOC_DEPTH_MAX, "[", "]");
    ck_assert_int_eq(parse(text, len, &doc), OMEN_OK);
    ck_assert_str_eq(write_doc(doc), text);
    len = nested(text, DOC_DEPTH_MAX, "{\"a\":", "}");
    ck_assert_int_eq(parse(text, len, &doc), OMEN_OK);
    len = nested(text, DOC_DEPTH_MAX + 1, "[", "]");
    ck_assert_int_ne(parse(text, len, &doc), OMEN_OK);
    len = nested(text, 1500, "{\"a\":", "}");
    ck_assert_int_ne(parse(text, len, &doc), OMEN_OK);
    memset(text, '[', 50000); /* deeper than the parser's own stack may go */
    ck_assert_int_eq(parse(text, 50000, &doc), OMEN_EINVAL);

    memset(text, 'x', sizeof text);
    text[0] = text[DOC_BYTES_MAX - 5 + 1] = '"'; /* tag and length take five */
    ck_assert_int_eq(parse(text, DOC_BYTES_MAX - 5 + 2, &doc), OMEN_OK);
    ck_assert_uint_eq(doc.len, DOC_BYTES_MAX);
    text[DOC_BYTES_MAX - 5 + 1] = 'x';
    text[DOC_BYTES_MAX - 5 + 2] = '"';
    ck_assert_int_eq(parse(text, DOC_BYTES_MAX - 5 + 3, &doc), OMEN_ETOOBIG);
    ck_assert_int_eq(parse(text, 100u << 20, &doc), OMEN_ETOOBIG); /* refused before it is read */
}
END_TEST

START_TEST(every_float_comes_back_bit_for_bit)
{
    uint64_t x = 0x9e3779b97f4a7c15u;
    for (int i = 0; i < 5000; i++) {
        double v, back;
        struct doc doc;
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        memcpy(&v, &x, sizeof v);
        if (!isfinite(v) || v == 0) continue;
        doc_builder_reset(builder, DOC_BYTES_MAX);
        doc_put_f64(builder, v);
        ck_assert_int_eq(doc_builder_finish(builder, &doc, &err), OMEN_OK);
        char text[64];
        snprintf(text, sizeof text, "%s", write_doc(doc));
        ck_assert_int_eq(parse(text, strlen(text), &doc), OMEN_OK);
        ck_assert_int_eq(doc_type(doc), DOC_F64);
        back = doc_f64(doc);
        ck_assert_msg(memcmp(&v, &back, sizeof v) == 0, "%a became %s", v, text);
    }
}
END_TEST

START_TEST(strings_of_any_bytes_are_written_as_json)
{
    for (int c = 0; c < 256; c++) {
        uint8_t bytes[3] = { 'a', (uint8_t)c, 'b' };
        buf_clear(&out);
        json_write_string((struct bytes){ bytes, 3 }, &out);
        struct doc doc;
        ck_assert_msg(parse((const char *)out.data, out.len, &doc) == OMEN_OK, "byte %d: %s", c, err.message);
        struct bytes back = doc_string(doc);
        ck_assert_uint_eq(back.len, c < 0x80 ? 3 : 5);
        ck_assert_mem_eq(back.data,
                c < 0x80 ? (const char *)bytes
                         : "a\xef\xbf\xbd"
                           "b",
                back.len);
    }
    buf_clear(&out);
    json_write_string((struct bytes){ NULL, 0 }, &out);
    ck_assert_uint_eq(out.len, 2);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("json");
    TCase *tc = tcase_create("json");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, values_come_back_in_canonical_form);
    tcase_add_test(tc, what_is_no_payload_is_refused_with_its_place);
    tcase_add_test(tc, depth_and_size_end_at_the_limits_of_payloads);
    tcase_add_test(tc, every_float_comes_back_bit_for_bit);
    tcase_add_test(tc, strings_of_any_bytes_are_written_as_json);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}
