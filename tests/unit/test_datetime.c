/* RFC 3339 to microseconds, checked against known instants and against timegm. */
#include <check.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/query/filter.h"

static void assert_us(const char *text, int64_t want)
{
    int64_t got = -1;
    ck_assert_msg(datetime_parse(text, strlen(text), &got), "%s is refused", text);
    ck_assert_msg(got == want, "%s: %lld, not %lld", text, (long long)got, (long long)want);
}

#define S INT64_C(1000000)

START_TEST(datetime_reads_known_instants)
{
    assert_us("1970-01-01", 0);
    assert_us("1970-01-01T00:00:00Z", 0);
    assert_us("1969-12-31T23:59:59Z", -S);
    assert_us("1969-12-31T23:59:59.25Z", -S + 250000);
    assert_us("2026-11-22", 1795305600 * S);
    assert_us("2026-11-22T08:00:00.5Z", 1795334400 * S + 500000);
    assert_us("2000-02-29T12:00:00Z", 951825600 * S);
    assert_us("0001-01-01T00:00:00Z", INT64_C(-62135596800) * S);
    assert_us("9999-12-31T23:59:59.999999Z", INT64_C(253402300799) * S + 999999);
}
END_TEST

START_TEST(datetime_takes_what_qdrant_takes)
{
    const int64_t t = 1795334400 * S; /* 2026-11-22T08:00:00Z */
    assert_us("2026-11-22T08:00:00", t);
    assert_us("2026-11-22 08:00:00", t);
    assert_us("2026-11-22t08:00:00z", t);
    assert_us("2026-11-22 08:00", t);
    assert_us("2026-11-22T08:00Z", t);
    assert_us("2026-11-22T08:00:00+00:00", t);
    assert_us("2026-11-22T08:00:00-00:00", t);
    assert_us("2026-11-22T10:30:00+02:30", t);
    assert_us("2026-11-21T22:00:00-10:00", t);
    assert_us("2026-11-23T07:59:00+23:59", t);
}
END_TEST

START_TEST(datetime_cuts_the_fraction_to_microseconds)
{
    assert_us("1970-01-01T00:00:00.1Z", 100000);
    assert_us("1970-01-01T00:00:00.000001Z", 1);
    assert_us("1970-01-01T00:00:00.0000019Z", 1);
    assert_us("1970-01-01T00:00:00.99999999999999999999999999", 999999);
}
END_TEST

START_TEST(datetime_places_a_leap_second_before_midnight)
{
    const int64_t midnight = 1483228800 * S; /* 2017-01-01 */
    assert_us("2016-12-31T23:59:60Z", midnight - 1);
    assert_us("2016-12-31T23:59:60.5Z", midnight - 1);
    assert_us("2017-01-01T00:59:60+01:00", midnight - 1);
    int64_t us;
    ck_assert(!datetime_parse("2016-12-31T22:59:60Z", 20, &us));
    ck_assert(!datetime_parse("2016-12-31T23:59:61Z", 20, &us));
}
END_TEST

START_TEST(datetime_refuses_the_rest)
{
    static const char *const bad[] = { "", "2026", "2026-11", "2026-1-22", "2026-11-2", "26-11-22",
        "0000-01-01", "10000-01-01", "2026-00-01", "2026-13-01", "2026-11-00", "2026-11-31", "2026-02-29",
        "1900-02-29", "2026/11/22", "2026-11-22T", "2026-11-22T8:00:00Z", "2026-11-22T08",
        "2026-11-22T24:00:00Z", "2026-11-22T08:60:00Z", "2026-11-22T08:00:00.Z", "2026-11-22T08:00:00,5Z",
        "2026-11-22T08:00:00ZZ", "2026-11-22T08:00:00 Z", "2026-11-22T08:00:00+1:00",
        "2026-11-22T08:00:00+0100", "2026-11-22T08:00:00+24:00", "2026-11-22T08:00:00+01:60",
        "2026-11-22T08:00:00+01:00x", "2026-11-22  08:00", " 2026-11-22", "2026-11-22 ", "2026-11-22x",
        "2026-11-22Z", "-2026-11-22", "+2026-11-22", "now", "2026-11-22T08:00:", "2026-11-22T-8:00:00Z",
        "2026-11-22T08:00.5Z" };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        int64_t us = 7;
        ck_assert_msg(!datetime_parse(bad[i], strlen(bad[i]), &us), "%s", bad[i]);
        ck_assert_int_eq(us, 7);
    }
    int64_t us;
    ck_assert(!datetime_parse("2026-11-22\0T", 12, &us));
}
END_TEST

START_TEST(datetime_agrees_with_the_calendar_on_every_day)
{
    for (int year = 1; year <= 9999; year += year < 1890 || year > 2110 ? 13 : 1) {
        for (int day_of_year = 0; day_of_year < 365; day_of_year += 1 + year % 3) {
            struct tm tm = { .tm_year = year - 1900, .tm_mday = 1 + day_of_year };
            time_t t = timegm(&tm); /* normalises month and day */
            char text[32];
            snprintf(text, sizeof text, "%04d-%02d-%02d", tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday);
            assert_us(text, (int64_t)t * S);
        }
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("datetime");
    TCase *tc = tcase_create("datetime");
    tcase_add_test(tc, datetime_reads_known_instants);
    tcase_add_test(tc, datetime_takes_what_qdrant_takes);
    tcase_add_test(tc, datetime_cuts_the_fraction_to_microseconds);
    tcase_add_test(tc, datetime_places_a_leap_second_before_midnight);
    tcase_add_test(tc, datetime_refuses_the_rest);
    tcase_add_test(tc, datetime_agrees_with_the_calendar_on_every_day);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures;
}
