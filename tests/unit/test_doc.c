/* Payload values: what doc_validate lets through, the canonical form the builder makes, equality. */
#include <check.h>
#include <math.h>
#include <stdlib.h>

#include "common/query/doc.h"

static struct doc_builder *b;
static struct err err;

static void setup(void)
{
    b = doc_builder_new(DOC_BYTES_MAX);
    err_clear(&err);
}

static void teardown(void) { doc_builder_free(b); }

static struct doc finish(void)
{
    struct doc d;
    ck_assert_msg(doc_builder_finish(b, &d, &err) == OMEN_OK, "%s: %s", err.field, err.message);
    return d;
}

static enum omen_err finish_error(void)
{
    struct doc d;
    enum omen_err rc = doc_builder_finish(b, &d, &err);
    ck_assert_ptr_null(d.data);
    ck_assert_int_eq(rc, err.code);
    return rc;
}

static void put_member_i64(const char *key, int64_t v)
{
    doc_key(b, key, strlen(key));
    doc_put_i64(b, v);
}

static void put_text(const char *s) { doc_put_string(b, s, strlen(s)); }

static enum omen_err validate(const void *data, size_t len)
{
    uint8_t *copy = malloc(len + (len == 0)); /* exact size: a read past the end is seen by the sanitizer */
    memcpy(copy, data, len);
    struct doc d;
    enum omen_err rc = doc_validate((struct bytes){ copy, len }, DOC_BYTES_MAX, &d, &err);
    ck_assert(rc == OMEN_OK ? d.data == copy && d.len == len : d.data == NULL);
    free(copy);
    return rc;
}

#define VALIDATE(literal) validate(literal, sizeof(literal) - 1)

/* ---- validation -------------------------------------------------------------------------------------- */

START_TEST(validate_accepts_each_type)
{
    ck_assert_int_eq(VALIDATE("\0"), OMEN_OK);
    ck_assert_int_eq(VALIDATE("\1"), OMEN_OK);
    ck_assert_int_eq(VALIDATE("\2"), OMEN_OK);
    ck_assert_int_eq(VALIDATE("\3\1\2\3\4\5\6\7\x80"), OMEN_OK);
    ck_assert_int_eq(VALIDATE("\4\0\0\0\0\0\0\0\x80"), OMEN_OK); /* -0.0 */
    ck_assert_int_eq(VALIDATE("\5\2\0\0\0\xc3\xa9"), OMEN_OK);
    ck_assert_int_eq(VALIDATE("\6\0\0\0\0\0\0\0\0"), OMEN_OK);
    ck_assert_int_eq(VALIDATE("\6\2\0\0\0\2\0\0\0\0\1"), OMEN_OK);
    ck_assert_int_eq(VALIDATE("\7\0\0\0\0\0\0\0\0"), OMEN_OK);
    ck_assert_int_eq(VALIDATE("\7\7\0\0\0\2\0\0\0\0\0\1\1\0a\0"), OMEN_OK); /* "" and "a" */
}
END_TEST

START_TEST(validate_refuses_malformed_structure)
{
    ck_assert_int_eq(VALIDATE(""), OMEN_EINVAL);
    ck_assert_int_eq(VALIDATE("\10"), OMEN_EINVAL);
    ck_assert_int_eq(VALIDATE("\0\0"), OMEN_EINVAL); /* trailing byte */
    ck_assert_int_eq(VALIDATE("\3\1\2\3\4\5\6\7"), OMEN_EINVAL);
    ck_assert_int_eq(VALIDATE("\5\2\0\0\0a"), OMEN_EINVAL);
    ck_assert_int_eq(VALIDATE("\5\xff\xff\xff\xff"), OMEN_EINVAL);
    ck_assert_int_eq(VALIDATE("\5\0\0\0"), OMEN_EINVAL);
    ck_assert_int_eq(VALIDATE("\6\0\0\0\0\0\0\0"), OMEN_EINVAL);
    ck_assert_int_eq(VALIDATE("\6\1\0\0\0\0\0\0\0\0"), OMEN_EINVAL); /* body longer than its elements */
    ck_assert_int_eq(VALIDATE("\6\1\0\0\0\2\0\0\0\0"), OMEN_EINVAL); /* fewer elements than told */
    ck_assert_int_eq(VALIDATE("\6\1\0\0\0\xff\xff\xff\xff\0"), OMEN_EINVAL);
    ck_assert_int_eq(VALIDATE("\6\xff\xff\xff\xff\1\0\0\0\0"), OMEN_EINVAL);
    ck_assert_int_eq(VALIDATE("\6\6\0\0\0\1\0\0\0\5\1\0\0\0a\0"), OMEN_EINVAL);
    ck_assert_int_eq(VALIDATE("\7\3\0\0\0\1\0\0\0\1\0a"), OMEN_EINVAL); /* key without value */
    ck_assert_int_eq(VALIDATE("\7\4\0\0\0\1\0\0\0\xff\xff"
                              "a\0"),
            OMEN_EINVAL);
    ck_assert_int_eq(VALIDATE("\7\1\0\0\0\1\0\0\0\1"), OMEN_EINVAL);
}
END_TEST

START_TEST(validate_lets_an_element_not_pass_its_container)
{
    /* [["abc"]]: the inner array says one byte less than its string needs, the outer one would have room */
    ck_assert_int_eq(VALIDATE("\6\x12\0\0\0\2\0\0\0\6\7\0\0\0\1\0\0\0\5\3\0\0\0abc\0"), OMEN_EINVAL);
    ck_assert_str_eq(err.field, "[0][0]");
}
END_TEST

START_TEST(validate_refuses_keys_out_of_order_and_duplicates)
{
    ck_assert_int_eq(VALIDATE("\7\x08\0\0\0\2\0\0\0\1\0b\0\1\0a\0"), OMEN_EINVAL);
    ck_assert_str_eq(err.field, "a");
    ck_assert_int_eq(VALIDATE("\7\x08\0\0\0\2\0\0\0\1\0a\0\1\0a\0"), OMEN_EINVAL);
    ck_assert_ptr_nonnull(strstr(err.message, "duplicate key"));
    ck_assert_int_eq(VALIDATE("\7\x09\0\0\0\2\0\0\0\2\0ab\0\1\0a\0"), OMEN_EINVAL); /* a prefix comes first */
    ck_assert_int_eq(VALIDATE("\7\x09\0\0\0\2\0\0\0\1\0a\0\2\0ab\0"), OMEN_OK);
}
END_TEST

START_TEST(validate_refuses_numbers_that_are_not_finite)
{
    const double bad[] = { NAN, -NAN, INFINITY, -INFINITY };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        uint8_t bytes[9] = { DOC_F64 };
        memcpy(bytes + 1, &bad[i], 8);
        ck_assert_int_eq(validate(bytes, 9), OMEN_EINVAL);
    }
}
END_TEST

START_TEST(utf8_is_what_rfc_3629_says)
{
    static const char *const good[] = { "", "a", "\xc2\x80", "\xdf\xbf", "\xe0\xa0\x80", "\xed\x9f\xbf",
        "\xee\x80\x80", "\xef\xbf\xbf", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf",
        "12345678\xc3\xa9"
        "1234567812345678" };
    static const char *const bad[] = { "\x80", "\xbf", "\xc0\x80", "\xc1\xbf", "\xc2",
        "\xc2"
        "a",
        "\xe0\x9f\xbf", "\xed\xa0\x80", "\xed\xbf\xbf", "\xe2\x82",
        "\xe2\x82"
        "a",
        "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "12345678\x80", "1234567\xc3",
        "\xf0\x90\x80" };
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
        ck_assert_msg(utf8_valid(good[i], strlen(good[i])), "good %zu", i);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        ck_assert_msg(!utf8_valid(bad[i], strlen(bad[i])), "bad %zu", i);
    ck_assert(utf8_valid("a\0b", 3));
    ck_assert_int_eq(VALIDATE("\5\2\0\0\0\xc0\x80"), OMEN_EINVAL);
    ck_assert_int_eq(VALIDATE("\7\5\0\0\0\1\0\0\0\2\0\xc0\x80\0"), OMEN_EINVAL);
}
END_TEST

/* `depth` arrays around a null. */
static size_t nested(uint8_t *out, uint32_t depth)
{
    for (uint32_t i = 0; i < depth; i++) {
        out[9 * i] = DOC_ARRAY;
        store_u32(out + 9 * i + 1, 9 * (depth - 1 - i) + 1);
        store_u32(out + 9 * i + 5, 1);
    }
    out[9 * depth] = DOC_NULL;
    return 9 * depth + 1;
}

START_TEST(validate_holds_the_limits)
{
    uint8_t bytes[9 * (DOC_DEPTH_MAX + 1) + 1];
    ck_assert_int_eq(validate(bytes, nested(bytes, DOC_DEPTH_MAX)), OMEN_OK);
    ck_assert_int_eq(validate(bytes, nested(bytes, DOC_DEPTH_MAX + 1)), OMEN_ETOOBIG);

    struct doc d;
    struct bytes five = { (const uint8_t *)"\5\0\0\0\0", 5 };
    ck_assert_int_eq(doc_validate(five, 5, &d, &err), OMEN_OK);
    ck_assert_int_eq(doc_validate(five, 4, &d, &err), OMEN_ETOOBIG);
    ck_assert_int_eq(doc_validate(five, 4, &d, NULL), OMEN_ETOOBIG);

    for (uint32_t len = DOC_KEY_BYTES_MAX; len <= DOC_KEY_BYTES_MAX + 1; len++) {
        uint8_t object[9 + 2 + DOC_KEY_BYTES_MAX + 1 + 1] = { DOC_OBJECT };
        store_u32(object + 1, 2 + len + 1);
        store_u32(object + 5, 1);
        store_u16(object + 9, (uint16_t)len);
        memset(object + 11, 'k', len);
        ck_assert_int_eq(validate(object, 9 + 2 + len + 1),
                len <= DOC_KEY_BYTES_MAX ? OMEN_OK : OMEN_ETOOBIG);
    }
}
END_TEST

START_TEST(validate_error_names_path_and_byte)
{
    /* {"a": [null, {"odd key": <bad tag>}]} */
    ck_assert_int_eq(
            VALIDATE("\7\x20\0\0\0\1\0\0\0\1\0a\6\x14\0\0\0\2\0\0\0\0\7\x0a\0\0\0\1\0\0\0\7\0odd key\x09"),
            OMEN_EINVAL);
    ck_assert_str_eq(err.field, "a[1].\"odd key\"");
    ck_assert_str_eq(err.message, "unknown type tag at byte 40");
}
END_TEST

/* ---- building ---------------------------------------------------------------------------------------- */

START_TEST(builder_makes_the_form_of_the_header)
{
    doc_begin_object(b);
    doc_key(b, "t", 1);
    doc_begin_array(b);
    doc_put_bool(b, true);
    put_text("x");
    doc_end(b);
    doc_key(b, "u", 1);
    doc_put_f64(b, 1.0);
    doc_end(b);
    struct doc d = finish();
    static const char want[] =
            "\7\x1f\0\0\0\2\0\0\0\1\0t\6\7\0\0\0\2\0\0\0\2\5\1\0\0\0x\1\0u\4\0\0\0\0\0\0\xf0\x3f";
    ck_assert_uint_eq(d.len, sizeof want - 1);
    ck_assert_mem_eq(d.data, want, d.len);
    ck_assert_int_eq(validate(d.data, d.len), OMEN_OK);
}
END_TEST

START_TEST(builder_sorts_members_whatever_their_order)
{
    static const char *const keys[] = { "b", "a", "ab", "", "\xc3\xa9", "aa", "B" };
    static const char *const want[] = { "", "B", "a", "aa", "ab", "b", "\xc3\xa9" };
    doc_begin_object(b);
    for (int i = 0; i < 7; i++) {
        doc_key(b, keys[i], strlen(keys[i]));
        if (i % 2 == 0) {
            put_text(keys[i]);
        } else { /* nested and unsorted too */
            doc_begin_object(b);
            put_member_i64("z", i);
            put_member_i64("y", i);
            doc_end(b);
        }
    }
    doc_end(b);
    struct doc d = finish();
    ck_assert_int_eq(validate(d.data, d.len), OMEN_OK);
    struct doc_iter it = doc_iter(d);
    struct bytes key;
    struct doc value;
    for (int i = 0; i < 7; i++) {
        ck_assert(doc_next(&it, &key, &value));
        ck_assert_uint_eq(key.len, strlen(want[i]));
        ck_assert_mem_eq(key.data, want[i], key.len);
        if (doc_type(value) == DOC_STRING)
            ck_assert_uint_eq(doc_string(value).len, key.len);
        else
            ck_assert_uint_eq(doc_count(value), 2);
    }
    ck_assert(!doc_next(&it, &key, &value));
}
END_TEST

START_TEST(builder_refuses_duplicate_keys_and_names_them)
{
    doc_begin_object(b);
    doc_key(b, "list", 4);
    doc_begin_array(b);
    doc_put_null(b);
    doc_begin_object(b);
    put_member_i64("same", 1);
    put_member_i64("a", 1);
    put_member_i64("same", 1);
    doc_end(b);
    doc_end(b);
    doc_end(b);
    ck_assert_int_eq(finish_error(), OMEN_EINVAL);
    ck_assert_str_eq(err.field, "list[1].same");
    ck_assert_str_eq(err.message, "duplicate key");

    doc_builder_reset(b, DOC_BYTES_MAX); /* neighbours */
    doc_begin_object(b);
    put_member_i64("x", 1);
    put_member_i64("x", 2);
    doc_end(b);
    ck_assert_int_eq(finish_error(), OMEN_EINVAL);
    ck_assert_str_eq(err.field, "x");
}
END_TEST

START_TEST(builder_error_sticks_and_names_the_value)
{
    doc_begin_object(b);
    put_member_i64("before", 1);
    doc_key(b, "v", 1);
    doc_begin_array(b);
    doc_put_i64(b, 1);
    doc_put_f64(b, INFINITY);
    doc_put_f64(b, NAN);
    doc_end(b);
    doc_end(b);
    ck_assert_int_eq(finish_error(), OMEN_EINVAL);
    ck_assert_str_eq(err.field, "v[1]");

    doc_builder_reset(b, DOC_BYTES_MAX);
    doc_begin_object(b);
    doc_key(b, "s", 1);
    doc_put_string(b, "\xff", 1);
    doc_end(b);
    ck_assert_int_eq(finish_error(), OMEN_EINVAL);
    ck_assert_str_eq(err.field, "s");

    doc_builder_reset(b, DOC_BYTES_MAX);
    doc_begin_object(b);
    doc_key(b, "\xff", 1);
    doc_put_null(b);
    doc_end(b);
    ck_assert_int_eq(finish_error(), OMEN_EINVAL);
    ck_assert_str_eq(err.field, "?");

    doc_builder_reset(b, DOC_BYTES_MAX); /* and reset ends it */
    doc_put_null(b);
    finish();
}
END_TEST

START_TEST(builder_holds_the_limits)
{
    char text[DOC_KEY_BYTES_MAX + 2];
    memset(text, 'k', sizeof text);
    for (size_t len = DOC_KEY_BYTES_MAX; len <= DOC_KEY_BYTES_MAX + 1; len++) {
        doc_builder_reset(b, DOC_BYTES_MAX);
        doc_begin_object(b);
        doc_key(b, text, len);
        doc_put_null(b);
        doc_end(b);
        if (len <= DOC_KEY_BYTES_MAX)
            finish();
        else
            ck_assert_int_eq(finish_error(), OMEN_ETOOBIG);
    }
    for (uint32_t depth = DOC_DEPTH_MAX; depth <= DOC_DEPTH_MAX + 1; depth++) {
        doc_builder_reset(b, DOC_BYTES_MAX);
        for (uint32_t i = 0; i < depth; i++) doc_begin_array(b);
        for (uint32_t i = 0; i < depth; i++) doc_end(b);
        if (depth <= DOC_DEPTH_MAX)
            ck_assert_uint_eq(doc_depth(finish()), depth);
        else
            ck_assert_int_eq(finish_error(), OMEN_ETOOBIG);
    }
    for (uint32_t limit = 13; limit <= 14; limit++) { /* ["x"]  takes 9 + 6, [null x 5] takes 14 */
        doc_builder_reset(b, limit);
        doc_begin_array(b);
        for (int i = 0; i < 5; i++) doc_put_null(b);
        doc_end(b);
        if (limit == 14)
            finish();
        else
            ck_assert_int_eq(finish_error(), OMEN_ETOOBIG);
    }
    doc_builder_reset(b, 5);
    doc_put_string(b, "", 0);
    finish();
    doc_builder_reset(b, 5);
    doc_put_string(b, "abcdef", 6);
    ck_assert_int_eq(finish_error(), OMEN_ETOOBIG);
}
END_TEST

START_TEST(put_doc_counts_its_depth)
{
    uint8_t bytes[9 * DOC_DEPTH_MAX + 1];
    for (uint32_t depth = DOC_DEPTH_MAX - 1; depth <= DOC_DEPTH_MAX; depth++) {
        doc_builder_reset(b, DOC_BYTES_MAX);
        doc_begin_array(b);
        doc_put_doc(b, (struct doc){ bytes, (uint32_t)nested(bytes, depth) });
        doc_end(b);
        if (depth < DOC_DEPTH_MAX)
            finish();
        else
            ck_assert_int_eq(finish_error(), OMEN_ETOOBIG);
    }
}
END_TEST

START_TEST(builder_survives_each_failed_allocation)
{
    char long_key[200];
    memset(long_key, 'k', sizeof long_key);
    for (uint64_t n = 1;; n++) {
        doc_builder_free(b);
        b = doc_builder_new(DOC_BYTES_MAX);
        mem_fail_at(n);
        doc_begin_object(b);
        for (int i = 0; i < 100;
                i++) { /* descending: the sort needs its scratch, the members outgrow their first 64 */
            doc_key(b, long_key, (size_t)(199 - i));
            doc_put_i64(b, i);
        }
        doc_end(b);
        struct doc d;
        enum omen_err rc = doc_builder_finish(b, &d, &err);
        mem_fail_at(0);
        ck_assert(rc == OMEN_OK || rc == OMEN_ENOMEM);
        doc_builder_reset(b, DOC_BYTES_MAX);
        doc_put_null(b);
        finish();
        if (rc == OMEN_OK) {
            ck_assert_uint_gt(n, 3); /* out, members, members again, sorted */
            break;
        }
    }
}
END_TEST

/* ---- reading ----------------------------------------------------------------------------------------- */

START_TEST(member_is_found_by_exact_key)
{
    doc_begin_object(b);
    put_member_i64("a", 1);
    put_member_i64("ab", 2);
    put_member_i64("b", 3);
    doc_end(b);
    struct doc d = finish();
    static const char *const absent[] = { "", "A", "aa", "abc", "c" };
    for (size_t i = 0; i < sizeof absent / sizeof absent[0]; i++)
        ck_assert_ptr_null(
                doc_member(d, (struct bytes){ (const uint8_t *)absent[i], strlen(absent[i]) }).data);
    ck_assert_int_eq(doc_i64(doc_member(d, (struct bytes){ (const uint8_t *)"ab", 2 })), 2);
    ck_assert_int_eq(doc_i64(doc_member(d, (struct bytes){ (const uint8_t *)"b", 1 })), 3);
    ck_assert_ptr_null(doc_member((struct doc){ NULL, 0 }, (struct bytes){ (const uint8_t *)"b", 1 }).data);
    struct doc scalar = { (const uint8_t *)"\3\0\0\0\0\0\0\0\0", 9 };
    ck_assert_ptr_null(doc_member(scalar, (struct bytes){ (const uint8_t *)"b", 1 }).data);
}
END_TEST

struct number {
    uint8_t bytes[9];
};

static struct doc number_i64(struct number *n, int64_t v)
{
    n->bytes[0] = DOC_I64;
    store_u64(n->bytes + 1, (uint64_t)v);
    return (struct doc){ n->bytes, 9 };
}

static struct doc number_f64(struct number *n, double v)
{
    n->bytes[0] = DOC_F64;
    memcpy(n->bytes + 1, &v, 8);
    return (struct doc){ n->bytes, 9 };
}

START_TEST(equal_compares_numbers_exactly)
{
    struct number x, y;
    ck_assert(doc_equal(number_f64(&x, 0.0), number_f64(&y, -0.0)));
    ck_assert(doc_equal(number_i64(&x, 0), number_f64(&y, -0.0)));
    ck_assert(doc_equal(number_i64(&x, 1), number_f64(&y, 1.0)));
    ck_assert(doc_equal(number_f64(&x, -3.0), number_i64(&y, -3)));
    ck_assert(!doc_equal(number_i64(&x, 1), number_f64(&y, 1.5)));
    ck_assert(doc_equal(number_i64(&x, INT64_C(1) << 53), number_f64(&y, 0x1p53)));
    ck_assert(!doc_equal(number_i64(&x, (INT64_C(1) << 53) + 1), number_f64(&y, 0x1p53)));
    ck_assert(!doc_equal(number_i64(&x, INT64_MAX), number_f64(&y, 0x1p63)));
    ck_assert(doc_equal(number_i64(&x, INT64_MIN), number_f64(&y, -0x1p63)));
    ck_assert(!doc_equal(number_i64(&x, 5), number_f64(&y, 1e300)));
    ck_assert_int_ne(doc_compare_bytes(number_i64(&x, 1), number_f64(&y, 1.0)), 0);
}
END_TEST

START_TEST(equal_goes_through_containers)
{
    struct doc_builder *other = doc_builder_new(DOC_BYTES_MAX), *both[2] = { b, other };
    struct doc d[2];
    for (int i = 0; i < 2; i++) {
        doc_begin_object(both[i]);
        doc_key(both[i], "n", 1);
        doc_begin_array(both[i]);
        if (i == 0)
            doc_put_i64(both[i], 7);
        else
            doc_put_f64(both[i], 7.0);
        doc_put_string(both[i], "s", 1);
        doc_end(both[i]);
        doc_end(both[i]);
        ck_assert_int_eq(doc_builder_finish(both[i], &d[i], NULL), OMEN_OK);
    }
    ck_assert(doc_equal(d[0], d[1]));
    struct doc list = doc_member(d[0], (struct bytes){ (const uint8_t *)"n", 1 });
    ck_assert(!doc_equal(d[0], list));
    ck_assert(!doc_equal(list, (struct doc){ NULL, 0 }));
    ck_assert(doc_equal((struct doc){ NULL, 0 }, (struct doc){ NULL, 0 }));
    ck_assert(!doc_equal((struct doc){ (const uint8_t *)"\1", 1 }, (struct doc){ (const uint8_t *)"\2", 1 }));
    doc_builder_free(other);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("doc");
    TCase *tc = tcase_create("doc");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, validate_accepts_each_type);
    tcase_add_test(tc, validate_refuses_malformed_structure);
    tcase_add_test(tc, validate_lets_an_element_not_pass_its_container);
    tcase_add_test(tc, validate_refuses_keys_out_of_order_and_duplicates);
    tcase_add_test(tc, validate_refuses_numbers_that_are_not_finite);
    tcase_add_test(tc, utf8_is_what_rfc_3629_says);
    tcase_add_test(tc, validate_holds_the_limits);
    tcase_add_test(tc, validate_error_names_path_and_byte);
    tcase_add_test(tc, builder_makes_the_form_of_the_header);
    tcase_add_test(tc, builder_sorts_members_whatever_their_order);
    tcase_add_test(tc, builder_refuses_duplicate_keys_and_names_them);
    tcase_add_test(tc, builder_error_sticks_and_names_the_value);
    tcase_add_test(tc, builder_holds_the_limits);
    tcase_add_test(tc, builder_survives_each_failed_allocation);
    tcase_add_test(tc, put_doc_counts_its_depth);
    tcase_add_test(tc, member_is_found_by_exact_key);
    tcase_add_test(tc, equal_compares_numbers_exactly);
    tcase_add_test(tc, equal_goes_through_containers);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures;
}
