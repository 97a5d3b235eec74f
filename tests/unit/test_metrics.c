/* Metrics: the text a Prometheus server reads, exact counts under threads, and series that go with their
 * collection. */
#include "common/metrics.h"

#include <check.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

static struct metrics *metrics;
static struct buf out;

static void setup(void)
{
    metrics = metrics_new();
    buf_init(&out);
}

static void teardown(void)
{
    metrics_free(metrics);
    buf_fini(&out);
}

static const char *render(void)
{
    buf_clear(&out);
    metrics_render(metrics, &out);
    buf_append(&out, "", 1);
    ck_assert(!out.failed);
    return (const char *)out.data;
}

static int count_of(const char *text, const char *needle)
{
    int n = 0;
    for (const char *p = text; (p = strstr(p, needle)) != NULL; p++) n++;
    return n;
}

START_TEST(help_and_type_stand_once_per_family)
{
    metric_add(metrics_counter(metrics, "omendb_a_total", "Things \\ done\nso far", "op=\"put\""), 2);
    metric_set(metrics_gauge(metrics, "omendb_g_bytes", "Now", NULL), -5);
    metric_add(metrics_counter(metrics, "omendb_a_total", "ignored", "op=\"get\""), 3);
    ck_assert_str_eq(render(),
            "# HELP omendb_a_total Things \\\\ done\\nso far\n# TYPE omendb_a_total counter\n"
            "omendb_a_total{op=\"put\"} 2\nomendb_a_total{op=\"get\"} 3\n"
            "# HELP omendb_g_bytes Now\n# TYPE omendb_g_bytes gauge\nomendb_g_bytes -5\n");
}
END_TEST

START_TEST(same_name_and_labels_give_the_same_handle)
{
    struct metric_counter *c = metrics_counter(metrics, "c_total", "h", "a=\"1\"");
    ck_assert_ptr_eq(c, metrics_counter(metrics, "c_total", "h", "a=\"1\""));
    ck_assert_ptr_ne(c, metrics_counter(metrics, "c_total", "h", "a=\"2\""));
    ck_assert_ptr_eq(metrics_gauge(metrics, "g", "h", NULL), metrics_gauge(metrics, "g", "h", ""));
}
END_TEST

START_TEST(histogram_buckets_are_cumulative_in_seconds)
{
    struct metric_histogram *h = metrics_histogram(metrics, "h_seconds", "h", "op=\"x\"");
    metric_observe_ns(h, 0);
    metric_observe_ns(h, 10000);        /* on the bound: inside */
    metric_observe_ns(h, 10001);        /* just above it */
    metric_observe_ns(h, 300000000);    /* 0.3 s */
    metric_observe_ns(h, 200000000000); /* 200 s: above all */
    const char *text = render();
    ck_assert_ptr_nonnull(strstr(text, "# TYPE h_seconds histogram\n"));
    ck_assert_ptr_nonnull(strstr(text, "h_seconds_bucket{op=\"x\",le=\"1e-05\"} 2\n"));
    ck_assert_ptr_nonnull(strstr(text, "h_seconds_bucket{op=\"x\",le=\"2e-05\"} 3\n"));
    ck_assert_ptr_nonnull(strstr(text, "h_seconds_bucket{op=\"x\",le=\"0.2\"} 3\n"));
    ck_assert_ptr_nonnull(strstr(text, "h_seconds_bucket{op=\"x\",le=\"0.5\"} 4\n"));
    ck_assert_ptr_nonnull(strstr(text, "h_seconds_bucket{op=\"x\",le=\"100\"} 4\n"));
    ck_assert_ptr_nonnull(strstr(text, "h_seconds_bucket{op=\"x\",le=\"+Inf\"} 5\n"));
    ck_assert_ptr_nonnull(strstr(text, "h_seconds_sum{op=\"x\"} 200.300020001\n"));
    ck_assert_ptr_nonnull(strstr(text, "h_seconds_count{op=\"x\"} 5\n"));
    ck_assert_int_eq(count_of(text, "_bucket{"), 23);
    metrics_histogram(metrics, "bare_seconds", "h", NULL);
    ck_assert_ptr_nonnull(
            strstr(render(), "bare_seconds_bucket{le=\"+Inf\"} 0\nbare_seconds_sum 0.000000000\n"));
}
END_TEST

START_TEST(quantiles_lie_in_their_bucket)
{
    struct metric_histogram *h = metrics_histogram(metrics, "h_seconds", "h", NULL);
    ck_assert_uint_eq(metric_quantile_ns(h, 0.5), 0);
    for (int i = 0; i < 90; i++) metric_observe_ns(h, 150000);
    for (int i = 0; i < 10; i++) metric_observe_ns(h, 30000000);
    uint64_t p50 = metric_quantile_ns(h, 0.5), p99 = metric_quantile_ns(h, 0.99);
    ck_assert(p50 > 100000 && p50 <= 200000);
    ck_assert(p99 > 20000000 && p99 <= 50000000);
    ck_assert_uint_le(metric_quantile_ns(h, 0), metric_quantile_ns(h, 1));
    ck_assert_uint_le(metric_quantile_ns(h, 1), 50000000);
    for (int i = 0; i < 1000; i++) metric_observe_ns(h, UINT64_MAX / 4096);
    ck_assert_uint_eq(metric_quantile_ns(h, 0.99), 100000000000);
}
END_TEST

START_TEST(label_values_are_escaped)
{
    struct buf labels;
    buf_init(&labels);
    metrics_label(&labels, "collection", "a\"b\\c\nd");
    metrics_label(&labels, "code", "ok");
    ck_assert_str_eq((const char *)labels.data, "collection=\"a\\\"b\\\\c\\nd\",code=\"ok\"");
    ck_assert_uint_eq(labels.len, strlen((const char *)labels.data));
    buf_fini(&labels);
}
END_TEST

START_TEST(dropping_a_label_drops_its_series_and_no_other)
{
    metrics_counter(metrics, "c_total", "h", "collection=\"a\",op=\"x\"");
    metrics_counter(metrics, "c_total", "h", "collection=\"ab\"");
    metrics_counter(metrics, "c_total", "h", "op=\"y\",collection=\"a\"");
    metrics_counter(metrics, "c_total", "h", "name=\"x,collection=\\\"a\\\"\"");
    metrics_gauge(metrics, "g", "h", "collection=\"a\"");
    metrics_drop(metrics, "collection=\"a\"");
    ck_assert_str_eq(render(),
            "# HELP c_total h\n# TYPE c_total counter\nc_total{collection=\"ab\"} 0\n"
            "c_total{name=\"x,collection=\\\"a\\\"\"} 0\n");
    metrics_counter(metrics, "c_total", "h", "collection=\"a\""); /* may come back */
    ck_assert_int_eq(count_of(render(), "\nc_total{"), 3);
}
END_TEST

START_TEST(series_of_one_family_are_bounded)
{
    for (int i = 0; i < 5000; i++) {
        char labels[64];
        snprintf(labels, sizeof labels, "n=\"%d\"", i);
        metric_add(metrics_counter(metrics, "c_total", "h", labels), 1);
    }
    const char *text = render();
    ck_assert_int_le(count_of(text, "\nc_total{"), 4097);
    ck_assert_ptr_nonnull(strstr(text, "c_total{overflow=\"true\"} 904\n"));
}
END_TEST

static void collect(void *arg) { metric_set(metrics_gauge(metrics, "g", "h", NULL), ++*(int *)arg); }

START_TEST(collectors_run_before_each_render)
{
    int calls = 0;
    metrics_add_collector(metrics, collect, &calls);
    ck_assert_ptr_nonnull(strstr(render(), "\ng 1\n"));
    ck_assert_ptr_nonnull(strstr(render(), "\ng 2\n"));
}
END_TEST

static void *count_up(void *arg)
{
    struct metric_counter *c = metrics_counter(metrics, "c_total", "h", NULL);
    struct metric_histogram *h = metrics_histogram(metrics, "h_seconds", "h", NULL);
    for (int i = 0; i < 10000; i++) {
        metric_add(c, 1);
        metric_observe_ns(h, 1000);
    }
    return NULL;
}

START_TEST(no_update_is_lost_among_threads)
{
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) ck_assert_int_eq(pthread_create(&threads[i], NULL, count_up, NULL), 0);
    for (int i = 0; i < 20; i++) render();
    for (int i = 0; i < 4; i++) ck_assert_int_eq(pthread_join(threads[i], NULL), 0);
    ck_assert_ptr_nonnull(strstr(render(), "\nc_total 40000\n"));
    ck_assert_ptr_nonnull(strstr(render(), "\nh_seconds_count 40000\n"));
    ck_assert_ptr_nonnull(strstr(render(), "\nh_seconds_sum 0.040000000\n"));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("metrics");
    TCase *tc = tcase_create("metrics");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, help_and_type_stand_once_per_family);
    tcase_add_test(tc, same_name_and_labels_give_the_same_handle);
    tcase_add_test(tc, histogram_buckets_are_cumulative_in_seconds);
    tcase_add_test(tc, quantiles_lie_in_their_bucket);
    tcase_add_test(tc, label_values_are_escaped);
    tcase_add_test(tc, dropping_a_label_drops_its_series_and_no_other);
    tcase_add_test(tc, series_of_one_family_are_bounded);
    tcase_add_test(tc, collectors_run_before_each_render);
    tcase_add_test(tc, no_update_is_lost_among_threads);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}
