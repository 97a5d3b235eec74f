/* Logs: one line per event that a machine reads back, whatever the values hold. */
#include "common/log.h"

#include <check.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <regex.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/json.h"

static struct doc_builder *builder;
static int ends[2];
static char text[65536];

static void setup(void)
{
    ck_assert_int_eq(pipe(ends), 0);
    builder = doc_builder_new(DOC_BYTES_MAX);
}

static void teardown(void)
{
    log_configure(LOG_LEVEL_INFO, LOG_FORMAT_TEXT, STDERR_FILENO);
    close(ends[0]);
    close(ends[1]);
    doc_builder_free(builder);
}

/* What was written since, NUL-terminated. */
static const char *written(void)
{
    ssize_t n = write(ends[1], "", 1); /* so that the read never waits */
    ck_assert_int_eq(n, 1);
    n = read(ends[0], text, sizeof text - 1);
    ck_assert_int_gt(n, 0);
    text[n - 1] = '\0';
    return text;
}

/* The line without its time, level and event. */
static const char *fields(void)
{
    const char *line = strstr(written(), " info e");
    ck_assert_ptr_nonnull(line);
    return line + strlen(" info e");
}

START_TEST(a_line_has_time_level_event_and_fields)
{
    regex_t form;
    log_configure(LOG_LEVEL_INFO, LOG_FORMAT_TEXT, ends[1]);
    LOG_INFO("node.start", "listen=tcp://%s:%d shards=%llu", "127.0.0.1", 7700, 16ull);
    ck_assert_int_eq(
            regcomp(&form,
                    "^20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9]{3}Z info node\\.start "
                    "listen=tcp://127\\.0\\.0\\.1:7700 shards=16\n$",
                    REG_EXTENDED | REG_NOSUB),
            0);
    ck_assert_msg(regexec(&form, written(), 0, NULL, 0) == 0, "%s", text);
    regfree(&form);
}
END_TEST

START_TEST(levels_below_the_configured_one_are_silent)
{
    log_configure(LOG_LEVEL_WARN, LOG_FORMAT_TEXT, ends[1]);
    LOG_DEBUG("a", "x=%d", 1);
    LOG_INFO("b", "x=%d", 1);
    ck_assert_str_eq(written(), "");
    LOG_WARN("c", "x=%d", 1);
    LOG_ERROR("d", "x=%d", 1);
    ck_assert_ptr_nonnull(strstr(written(), " warn c x=1\n"));
    ck_assert_ptr_nonnull(strstr(text, " error d x=1\n"));
    ck_assert(log_enabled(LOG_LEVEL_ERROR) && !log_enabled(LOG_LEVEL_INFO));
}
END_TEST

START_TEST(values_are_quoted_where_they_need_it)
{
    log_configure(LOG_LEVEL_INFO, LOG_FORMAT_TEXT, ends[1]);
    LOG_INFO("e", "a=%s b=%s c=%s d=\"%s\"", "plain", "two words", "", "quoted");
    ck_assert_str_eq(fields(), " a=plain b=\"two words\" c=\"\" d=\"quoted\"\n");
    LOG_INFO("e", "path=%s/%s", "/data dir", "x");
    ck_assert_str_eq(fields(), " path=\"/data dir/x\"\n");
    LOG_INFO("e", "%s", "only = words");
    ck_assert_str_eq(fields(), " msg=\"only = words\"\n");
    LOG_INFO("e", "shutting down n=%d after all", 3);
    ck_assert_str_eq(fields(), " n=3 msg=\"shutting down after all\"\n");
    LOG_INFO("e", "name=%s", "\xc3\xa9t\xc3\xa9");
    ck_assert_str_eq(fields(), " name=\xc3\xa9t\xc3\xa9\n");
}
END_TEST

START_TEST(a_value_forges_neither_field_nor_line)
{
    static const char EVIL[] = "x\" admin=true\n2026-11-22 error fake\x1b[31m\\ \xff";
    log_configure(LOG_LEVEL_INFO, LOG_FORMAT_TEXT, ends[1]);
    LOG_INFO("e", "a=%s", EVIL);
    ck_assert_str_eq(fields(), " a=\"x\\\" admin=true\\n2026-11-22 error fake\\x1b[31m\\\\ \\xff\"\n");
    LOG_INFO("e", "a=\"%s\" b=1", EVIL);
    ck_assert_str_eq(fields(), " a=\"x\\\" admin=true\\n2026-11-22 error fake\\x1b[31m\\\\ \\xff\" b=1\n");
}
END_TEST

START_TEST(all_conversions_of_printf_are_known)
{
    const char *volatile none = NULL; /* the compiler would warn of a plain one */
    log_configure(LOG_LEVEL_INFO, LOG_FORMAT_TEXT, ends[1]);
    LOG_INFO("e", "a=%d b=%u c=%ld d=%lu e=%lld f=%llu g=%zu h=%jd i=%td j=%hhu k=%x l=%08lX m=%c n=%%",
            INT_MIN, UINT_MAX, LONG_MIN, ULONG_MAX, LLONG_MIN, ULLONG_MAX, SIZE_MAX, (intmax_t)-1,
            (ptrdiff_t)-2, (unsigned char)255, 0xabcu, 0xdeful, 'q');
    ck_assert_str_eq(fields(),
            " a=-2147483648 b=4294967295 c=-9223372036854775808 d=18446744073709551615 e=-9223372036854775808 "
            "f=18446744073709551615 g=18446744073709551615 h=-1 i=-2 j=255 k=abc l=00000DEF m=q n=%\n");
    LOG_INFO("e", "a=%.3f b=%g c=%e d=%.2Lf e=%*d f=%.*s g=%-5d| h=%s i=%p", 1.5, 0.25, 1e10, (long double)2,
            5, 42, 3, "abcdef", 7, none, (void *)NULL);
    ck_assert_str_eq(fields(),
            " a=1.500 b=0.25 c=1.000000e+10 d=2.00 e=\"   42\" f=abc g=\"7    |\" h=(null) i=(nil)\n");
}
END_TEST

/* The line as a JSON object, borrowed from the builder. */
static struct doc read_json(void)
{
    struct doc doc;
    struct err err;
    const char *line = written();
    ck_assert_ptr_eq(strchr(line, '\n'), line + strlen(line) - 1);
    doc_builder_reset(builder, DOC_BYTES_MAX);
    ck_assert_msg(json_parse(line, strlen(line), builder, &doc, &err) == OMEN_OK, "%s: %s", err.message,
            line);
    return doc;
}

static struct doc member(struct doc object, const char *key)
{
    return doc_member(object, (struct bytes){ (const uint8_t *)key, strlen(key) });
}

static void assert_text(struct doc object, const char *key, const char *expected)
{
    struct doc value = member(object, key);
    ck_assert_msg(value.data != NULL && doc_type(value) == DOC_STRING, "%s is no text", key);
    struct bytes s = doc_string(value);
    ck_assert_uint_eq(s.len, strlen(expected));
    ck_assert_mem_eq(s.data, expected, s.len);
}

START_TEST(json_lines_are_json_and_keep_types)
{
    log_configure(LOG_LEVEL_INFO, LOG_FORMAT_JSON, ends[1]);
    LOG_INFO("shard.open", "n=%d f=%.2f neg=%d ok=%s s=%s q=\"%d\" zeros=%s bad=\"%s\" some words", 7, 0.5,
            -3, "true", "a b", 5, "007", "\"\\\n\x01\xff\xc3\xa9");
    struct doc root = read_json();
    assert_text(root, "level", "info");
    assert_text(root, "event", "shard.open");
    ck_assert_uint_eq(doc_string(member(root, "time")).len, strlen("2026-11-22T08:04:30.123Z"));
    ck_assert_int_eq(doc_i64(member(root, "n")), 7);
    ck_assert_double_eq(doc_f64(member(root, "f")), 0.5);
    ck_assert_int_eq(doc_i64(member(root, "neg")), -3);
    ck_assert_int_eq(doc_type(member(root, "ok")), DOC_TRUE);
    assert_text(root, "s", "a b");
    assert_text(root, "q", "5");
    assert_text(root, "zeros", "007");
    assert_text(root, "bad", "\"\\\n\x01\xef\xbf\xbd\xc3\xa9");
    assert_text(root, "msg", "some words");
}
END_TEST

START_TEST(long_values_are_cut_and_the_line_stays_whole)
{
    static char big[10000];
    memset(big, 'x', sizeof big - 1);
    for (size_t quotes = 0; quotes < 40; quotes++) { /* the cut falls into an escape sooner or later */
        memset(big, '"', quotes * 40);
        log_configure(LOG_LEVEL_INFO, LOG_FORMAT_TEXT, ends[1]);
        LOG_INFO("e", "a=%s b=%s c=%s d=%s", big, big, big, big);
        ck_assert_uint_le(strlen(written()), 4096);
        ck_assert_ptr_eq(strchr(text, '\n'), text + strlen(text) - 1);
        log_configure(LOG_LEVEL_INFO, LOG_FORMAT_JSON, ends[1]);
        LOG_INFO("e", "a=%s b=%s c=%s d=%s", big, big, big, big);
        struct bytes a = doc_string(member(read_json(), "a"));
        ck_assert_uint_eq(a.len, 2048);
        ck_assert_mem_eq(a.data + 2045, "...", 3);
    }
}
END_TEST

START_TEST(errno_is_kept)
{
    log_configure(LOG_LEVEL_INFO, LOG_FORMAT_TEXT, -1); /* every write fails */
    errno = ENOSPC;
    LOG_INFO("e", "x=%d", 1);
    ck_assert_int_eq(errno, ENOSPC);
}
END_TEST

static void *chatter(void *arg)
{
    for (int i = 0; i < 50; i++) LOG_INFO("e", "who=%d text=\"%s\"", *(int *)arg, "aaaaaaaaaaaaaaaaaaaaaaaa");
    return NULL;
}

START_TEST(lines_of_threads_do_not_mix)
{
    pthread_t threads[4];
    int ids[4];
    log_configure(LOG_LEVEL_INFO, LOG_FORMAT_TEXT, ends[1]);
    for (int i = 0; i < 4; i++) {
        ids[i] = i;
        ck_assert_int_eq(pthread_create(&threads[i], NULL, chatter, &ids[i]), 0);
    }
    for (int i = 0; i < 4; i++) ck_assert_int_eq(pthread_join(threads[i], NULL), 0);
    int lines = 0;
    for (char *rest = NULL, *line = strtok_r((char *)(uintptr_t)written(), "\n", &rest); line != NULL;
            line = strtok_r(NULL, "\n", &rest), lines++) {
        int who;
        char tail[64];
        ck_assert_int_eq(sscanf(line + 24, " info e who=%d text=%63s", &who, tail), 2);
        ck_assert_str_eq(tail, "\"aaaaaaaaaaaaaaaaaaaaaaaa\"");
    }
    ck_assert_int_eq(lines, 200);
}
END_TEST

START_TEST(what_fails_again_and_again_is_told_at_growing_intervals)
{
    struct log_repeat r = { 0 };
    unsigned told = 0, last = 0;
    ck_assert(!log_repeat_ends(&r)); /* it never failed */
    for (unsigned i = 1; i <= 4 * LOG_REPEAT_MAX; i++) {
        if (!log_repeat_tells(&r)) continue;
        told++;
        ck_assert_uint_eq(r.times, i);
        ck_assert_uint_le(i - last, LOG_REPEAT_MAX); /* but never forgotten */
        last = i;
    }
    ck_assert_uint_eq(told, 14 + 3); /* 1, 2, 4 .. 8192, and three times as many */
    ck_assert(log_repeat_ends(&r));
    ck_assert(!log_repeat_ends(&r));
    ck_assert(log_repeat_tells(&r));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("log");
    TCase *tc = tcase_create("log");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, a_line_has_time_level_event_and_fields);
    tcase_add_test(tc, levels_below_the_configured_one_are_silent);
    tcase_add_test(tc, values_are_quoted_where_they_need_it);
    tcase_add_test(tc, a_value_forges_neither_field_nor_line);
    tcase_add_test(tc, all_conversions_of_printf_are_known);
    tcase_add_test(tc, json_lines_are_json_and_keep_types);
    tcase_add_test(tc, long_values_are_cut_and_the_line_stays_whole);
    tcase_add_test(tc, errno_is_kept);
    tcase_add_test(tc, lines_of_threads_do_not_mix);
    tcase_add_test(tc, what_fails_again_and_again_is_told_at_growing_intervals);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}
