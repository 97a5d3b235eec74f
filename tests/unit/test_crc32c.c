/* CRC-32C: the published values, and the fast version equal to the definition at every length and
 * alignment; hashes, whose values are part of formats; and the names of errors. */
#include "common/crc32c.h"

#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/err.h"
#include "common/hash.h"
#include "common/utf8.h"

static uint8_t bytes[3 * 4096 * 3 + 64];

static void setup(void)
{
    uint64_t x = 88172645463325252u;
    for (size_t i = 0; i < sizeof bytes; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        bytes[i] = (uint8_t)x;
    }
}

START_TEST(published_values)
{
    static const struct {
        uint8_t first, step;
        size_t len;
        uint32_t crc;
    } RFC3720[] = { { 0x00, 0, 32, 0x8a9136aa }, { 0xff, 0, 32, 0x62a8ab43 }, { 0, 1, 32, 0x46dd794e },
        { 31, 255, 32, 0x113fdb5c } };
    ck_assert_uint_eq(crc32c(0, "123456789", 9), 0xe3069283);
    ck_assert_uint_eq(crc32c_portable(0, "123456789", 9), 0xe3069283);
    for (size_t t = 0; t < sizeof RFC3720 / sizeof RFC3720[0]; t++) {
        uint8_t data[32];
        for (size_t i = 0; i < 32; i++) data[i] = (uint8_t)(RFC3720[t].first + i * RFC3720[t].step);
        ck_assert_uint_eq(crc32c(0, data, RFC3720[t].len), RFC3720[t].crc);
        ck_assert_uint_eq(crc32c_portable(0, data, RFC3720[t].len), RFC3720[t].crc);
    }
    ck_assert_uint_eq(crc32c(0, NULL, 0), 0);
}
END_TEST

START_TEST(fast_equals_definition_at_every_length_and_alignment)
{
    /* All short lengths, and those around one, two and three rounds of both stream widths. */
    for (size_t len = 0; len < 3 * 256 * 2 + 40; len++)
        for (size_t start = 0; start < 9; start += 1 + len % 3)
            if (crc32c(1, bytes + start, len) != crc32c_portable(1, bytes + start, len))
                ck_abort_msg("length %zu from %zu", len, start);
    for (size_t rounds = 1; rounds <= 3; rounds++)
        for (size_t len = rounds * 3 * 4096 - 20; len <= rounds * 3 * 4096 + 20; len++)
            if (len <= sizeof bytes && crc32c(7, bytes, len) != crc32c_portable(7, bytes, len))
                ck_abort_msg("length %zu", len);
}
END_TEST

START_TEST(crc_of_parts_is_crc_of_the_whole)
{
    uint32_t whole = crc32c(0, bytes, 20000);
    for (size_t cut = 0; cut <= 20000; cut += 617) {
        ck_assert_uint_eq(crc32c(crc32c(0, bytes, cut), bytes + cut, 20000 - cut), whole);
        ck_assert_uint_eq(crc32c_portable(crc32c(0, bytes, cut), bytes + cut, 20000 - cut), whole);
    }
}
END_TEST

START_TEST(every_single_flipped_bit_changes_the_value)
{
    uint32_t before = crc32c(0, bytes, 1000);
    for (size_t bit = 0; bit < 8000; bit++) {
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        if (crc32c(0, bytes, 1000) == before) ck_abort_msg("bit %zu", bit);
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
}
END_TEST

START_TEST(hashes_have_not_changed)
{
    ck_assert_uint_eq(hash64("", 0), 0x2d06800538d394c2u);
    ck_assert_uint_eq(hash64("omen", 4), 0x2543d10f4c43e930u);
    struct hash128 h = hash128("", 0);
    ck_assert_uint_eq(h.hi, 0x99aa06d3014798d8u);
    ck_assert_uint_eq(h.lo, 0x6001c324468d497fu);
}
END_TEST

START_TEST(every_error_has_a_name_of_its_own)
{
    for (int i = 0; i < OMEN_ERR_COUNT; i++) {
        ck_assert_str_ne(err_name((enum omen_err)i), "unknown_code");
        for (int k = 0; k < i; k++) ck_assert_str_ne(err_name((enum omen_err)i), err_name((enum omen_err)k));
    }
    ck_assert_str_eq(err_name((enum omen_err)OMEN_ERR_COUNT), "unknown_code");
    ck_assert_str_eq(err_name((enum omen_err) - 1), "unknown_code");
    ck_assert_str_eq(err_name(OMEN_ENOTFOUND), "not_found");
    ck_assert(err_retryable(OMEN_EBUSY) && !err_retryable(OMEN_EINVAL) && !err_retryable(OMEN_EFULL));
}
END_TEST

START_TEST(sentences_fit_and_stay_utf8)
{
    struct err err;
    char long_text[1000];
    memset(long_text, 'x', sizeof long_text);
    memcpy(long_text + ERR_MESSAGE_BYTES - 2, "\xc3\xa9", 2); /* a character across the end */
    long_text[999] = '\0';
    ck_assert_int_eq(err_set(&err, OMEN_EINVAL, long_text, "%s", long_text), OMEN_EINVAL);
    ck_assert_uint_eq(strlen(err.message), ERR_MESSAGE_BYTES - 1);
    ck_assert_uint_eq(strlen(err.field), ERR_FIELD_BYTES - 1);
    ck_assert_int_eq(err.message[ERR_MESSAGE_BYTES - 2], '?');
    ck_assert_int_eq(err_set(&err, OMEN_EINVAL, NULL, "a\nb\xff%s", "\xc3\xa9"), OMEN_EINVAL);
    ck_assert_str_eq(err.message, "a?b?\xc3\xa9");
    ck_assert_int_eq(err_set(&err, OMEN_EIO, "f", "again: %s", err.message), OMEN_EIO); /* of itself */
    ck_assert_str_eq(err.message, "again: a?b?\xc3\xa9");
    ck_assert_int_eq(err_set(NULL, OMEN_EIO, "f", "%d", 1), OMEN_EIO);
}
END_TEST

START_TEST(fields_are_prefixed_as_paths)
{
    struct err err;
    err_set(&err, OMEN_EINVAL, "must[2].key", "x");
    err_prefix(&err, "filter");
    ck_assert_str_eq(err.field, "filter.must[2].key");
    err_set(&err, OMEN_EINVAL, "[3]", "x");
    err_prefix(&err, "must");
    ck_assert_str_eq(err.field, "must[3]");
    err_set(&err, OMEN_EINVAL, NULL, "x");
    err_prefix(&err, "body");
    ck_assert_str_eq(err.field, "body");
    for (int i = 0; i < 50; i++) err_prefix(&err, "deeper");
    ck_assert_uint_eq(strlen(err.field), ERR_FIELD_BYTES - 1);
    err_prefix(NULL, "x");
}
END_TEST

START_TEST(system_errors_are_sorted_by_what_to_do)
{
    struct err err;
    ck_assert_int_eq(err_os(&err, ENOSPC, "write", "/data/x"), OMEN_EFULL);
    ck_assert_str_eq(err.message, "write /data/x: No space left on device");
    ck_assert_int_eq(err_os(&err, EDQUOT, "write", "x"), OMEN_EFULL);
    ck_assert_int_eq(err_os(&err, ENOMEM, "map", "x"), OMEN_ENOMEM);
    ck_assert_int_eq(err_os(&err, EIO, "sync", "x"), OMEN_EIO);
    ck_assert_int_eq(err_corrupt(&err, "seg", 4096, "checksum mismatch"), OMEN_ECORRUPT);
    ck_assert_str_eq(err.message, "seg: checksum mismatch at offset 4096");
    err_clear(&err);
    ck_assert(err.code == OMEN_OK && err.message[0] == '\0');
}
END_TEST

START_TEST(utf8_sequences_are_those_of_the_rfc)
{
    static const struct {
        const char *bytes;
        size_t len;
    } CASES[] = { { "a", 1 }, { "\xc3\xa9", 2 }, { "\xe2\x82\xac", 3 }, { "\xf0\x9f\x98\x80", 4 },
        { "\xf4\x8f\xbf\xbf", 4 }, { "\x80", 0 }, { "\xc0\x80", 0 }, { "\xc1\xbf", 0 }, { "\xe0\x9f\xbf", 0 },
        { "\xed\xa0\x80", 0 }, { "\xf0\x8f\xbf\xbf", 0 }, { "\xf4\x90\x80\x80", 0 },
        { "\xf5\x80\x80\x80", 0 }, { "\xc3", 0 }, { "\xc3(", 0 }, { "\xe2\x82", 0 }, { "\xe2\x28\xac", 0 },
        { "\xff", 0 } };
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++)
        ck_assert_msg(utf8_sequence_bytes(CASES[i].bytes, strlen(CASES[i].bytes)) == CASES[i].len, "case %zu",
                i);
    ck_assert_uint_eq(utf8_sequence_bytes("", 0), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("crc32c");
    TCase *tc = tcase_create("crc32c");
    tcase_add_checked_fixture(tc, setup, NULL);
    tcase_add_test(tc, published_values);
    tcase_add_test(tc, fast_equals_definition_at_every_length_and_alignment);
    tcase_add_test(tc, crc_of_parts_is_crc_of_the_whole);
    tcase_add_test(tc, every_single_flipped_bit_changes_the_value);
    tcase_add_test(tc, hashes_have_not_changed);
    suite_add_tcase(suite, tc);
    tc = tcase_create("err");
    tcase_add_test(tc, every_error_has_a_name_of_its_own);
    tcase_add_test(tc, sentences_fit_and_stay_utf8);
    tcase_add_test(tc, fields_are_prefixed_as_paths);
    tcase_add_test(tc, system_errors_are_sorted_by_what_to_do);
    tcase_add_test(tc, utf8_sequences_are_those_of_the_rfc);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}
