/* The node log on real files: order, restart, torn tails and damage, recycling, truncation, dropped
 * groups. */
#include "common/err.h"

#include <check.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/mem.h"
#include "consensus/node_log_format.h"

#define SEGMENT (64u << 10)

static char g_dir[256];

static void setup(void)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(g_dir, sizeof g_dir, "%s/omen-XXXXXX", tmp != NULL ? tmp : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(g_dir));
}

static void teardown(void) { ck_assert_int_eq(vfs_remove_tree(vfs_posix(), g_dir, NULL), OMEN_OK); }

/* ---- what is replayed ---- */

struct seen {
    struct node_log_record records[20000];
    uint8_t first_byte[20000];
    uint32_t count;
};

static enum omen_err see(void *arg, const struct node_log_record *record)
{
    struct seen *seen = arg;
    if (seen->count == 20000) return OMEN_ETOOBIG;
    seen->records[seen->count] = *record;
    seen->first_byte[seen->count++] = record->len > 0 ? *(const uint8_t *)record->body : 0;
    return OMEN_OK;
}

static struct node_log_options options(void)
{
    struct node_log_options o;
    node_log_options_default(&o);
    o.vfs = vfs_posix();
    o.dir = g_dir;
    o.node_id = 7;
    o.segment_bytes = SEGMENT;
    o.bytes_max = 4 * SEGMENT;
    return o;
}

static struct node_log *open_log(struct seen *seen)
{
    struct node_log_options o = options();
    struct node_log *log;
    struct err err = { 0 };
    if (seen != NULL) seen->count = 0;
    enum omen_err rc = node_log_open(&o, seen != NULL ? see : NULL, seen, &log, &err);
    ck_assert_msg(rc == OMEN_OK, "%s", err.message);
    return log;
}

static struct err refuse_log(enum omen_err expected)
{
    struct node_log_options o = options();
    struct node_log *log;
    struct err err = { 0 };
    ck_assert_int_eq(node_log_open(&o, NULL, NULL, &log, &err), expected);
    ck_assert_ptr_null(log);
    return err;
}

/* ---- appends that wait ---- */

struct wait {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    int left;
    enum omen_err result;
};

static void waited(struct node_log_append *append, enum omen_err result)
{
    struct wait *w = append->arg;
    pthread_mutex_lock(&w->mutex);
    w->left--;
    w->result = result;
    pthread_cond_signal(&w->cond);
    pthread_mutex_unlock(&w->mutex);
}

static enum omen_err put_records(struct node_log *log, const struct node_log_record *records, uint32_t count)
{
    struct wait w = { .mutex = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER, .left = 1 };
    struct node_log_append append = { .records = records, .count = count, .done = waited, .arg = &w };
    node_log_append(log, &append);
    pthread_mutex_lock(&w.mutex);
    while (w.left > 0) pthread_cond_wait(&w.cond, &w.mutex);
    pthread_mutex_unlock(&w.mutex);
    return w.result;
}

static void put(struct node_log *log, enum node_log_kind kind, uint64_t group, uint64_t index,
        const void *body, uint32_t len)
{
    struct node_log_record r = { .group = group,
        .replica = 1,
        .term = 1,
        .index = index,
        .kind = kind,
        .body = body,
        .len = len };
    ck_assert_int_eq(put_records(log, &r, 1), OMEN_OK);
}

static void put_entry(struct node_log *log, uint64_t group, uint64_t index, uint32_t len)
{
    uint8_t *body = mem_must_alloc(len + 1);
    memset(body, (int)(index % 251), len);
    put(log, NODE_LOG_ENTRY, group, index, body, len);
    mem_free(body);
}

static void path_of(uint64_t number, char out[300])
{
    snprintf(out, 300, "%s/%016llx.log", g_dir, (unsigned long long)number);
}

static bool segment_there(uint64_t number)
{
    char path[300];
    struct stat st;
    path_of(number, path);
    return stat(path, &st) == 0;
}

static void flip(uint64_t number, long offset)
{
    char path[300];
    path_of(number, path);
    FILE *f = fopen(path, "r+b");
    ck_assert_ptr_nonnull(f);
    fseek(f, offset, SEEK_SET);
    int c = fgetc(f);
    fseek(f, offset, SEEK_SET);
    fputc(c ^ 0x10, f);
    fclose(f);
}

static struct seen *g_seen;

/* ---- promises ---- */

START_TEST(records_come_back_in_order)
{
    struct node_log *log = open_log(g_seen);
    ck_assert_uint_eq(g_seen->count, 0);
    uint32_t sizes[] = { 0, 1, 7, 8, 100, 4095, 4096, 5000, 20000 };
    for (uint64_t i = 0; i < 9; i++) put_entry(log, 1 + i % 2, 1 + i / 2, sizes[i]);
    node_log_close(log);
    log = open_log(g_seen);
    ck_assert_uint_eq(g_seen->count, 9);
    for (uint64_t i = 0; i < 9; i++) {
        const struct node_log_record *r = &g_seen->records[i];
        ck_assert_uint_eq(r->group, 1 + i % 2);
        ck_assert_uint_eq(r->index, 1 + i / 2);
        ck_assert_uint_eq(r->len, sizes[i]);
        ck_assert_uint_eq(r->term, 1);
        if (r->len > 0) ck_assert_uint_eq(g_seen->first_byte[i], r->index);
    }
    node_log_close(log);
}
END_TEST

struct order {
    struct node_log_append append;
    struct node_log_record record;
    uint32_t number;
    uint32_t *next;
    struct wait *wait;
};

static void ordered(struct node_log_append *append, enum omen_err result)
{
    struct order *o = append->arg;
    ck_assert_int_eq(result, OMEN_OK);
    ck_assert_uint_eq(*o->next, o->number);
    (*o->next)++;
    struct node_log_append shim = { .arg = o->wait };
    waited(&shim, result);
}

START_TEST(callbacks_run_in_submission_order)
{
    enum { COUNT = 2000 };
    struct wait w = { .mutex = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER, .left = COUNT };
    struct order *orders = calloc(COUNT, sizeof *orders);
    uint32_t next = 0;
    struct node_log *log = open_log(NULL);
    for (uint32_t i = 0; i < COUNT; i++) {
        struct order *o = &orders[i];
        *o = (struct order){ .number = i, .next = &next, .wait = &w };
        o->record = (struct node_log_record){ .group = i % 5 + 1,
            .replica = 1,
            .term = 1,
            .index = i / 5 + 1,
            .kind = NODE_LOG_ENTRY,
            .body = "12345678",
            .len = 8 };
        o->append = (struct node_log_append){ .records = &o->record, .count = 1, .done = ordered, .arg = o };
        node_log_append(log, &o->append);
    }
    pthread_mutex_lock(&w.mutex);
    while (w.left > 0) pthread_cond_wait(&w.cond, &w.mutex);
    pthread_mutex_unlock(&w.mutex);
    struct node_log_stats stats;
    node_log_stats(log, &stats);
    ck_assert_uint_eq(stats.appends, COUNT);
    ck_assert_uint_lt(stats.syncs, COUNT); /* group commit happened */
    node_log_close(log);
    free(orders);
    log = open_log(g_seen);
    ck_assert_uint_eq(g_seen->count, COUNT);
    node_log_close(log);
}
END_TEST

START_TEST(torn_tail_is_left_behind)
{
    struct node_log *log = open_log(NULL);
    for (uint64_t i = 1; i <= 5; i++) put_entry(log, 1, i, 100);
    node_log_close(log);
    flip(1, 4096 + 4 * 4096 + 200); /* body of the last batch */
    log = open_log(g_seen);
    ck_assert_uint_eq(g_seen->count, 4);
    put_entry(log, 1, 5, 300);
    node_log_close(log);
    ck_assert(segment_there(2));
    for (int i = 0; i < 2; i++) {
        log = open_log(g_seen);
        ck_assert_uint_eq(g_seen->count, 5);
        ck_assert_uint_eq(g_seen->records[4].len, 300);
        node_log_close(log);
    }
}
END_TEST

START_TEST(flipped_bit_in_the_middle_is_refused_by_name)
{
    struct node_log *log = open_log(NULL);
    for (uint64_t i = 1; i <= 4; i++) put_entry(log, 1, i, 100);
    node_log_close(log);
    log = open_log(NULL);
    put_entry(log, 1, 5, 100); /* now segment 2 records where segment 1 ended */
    put_entry(log, 1, 6, 100);
    node_log_close(log);
    /* every region of segment 1: header, batch headers, record headers, bodies, padding; and the first batch
     * of 2 */
    long offsets[] = { 0, 5, 9, 60, 4000, 4095, 4096, 4101, 4104, 4130, 4165, 4200, 4300, 8191, 8192, 16384,
        16390, 20479 };
    for (size_t i = 0; i < sizeof offsets / sizeof *offsets; i++) {
        flip(1, offsets[i]);
        struct err err = refuse_log(OMEN_ECORRUPT);
        ck_assert_msg(strstr(err.message, "0000000000000001.log") != NULL, "%ld: %s", offsets[i],
                err.message);
        ck_assert_ptr_nonnull(strstr(err.message, "offset"));
        flip(1, offsets[i]);
    }
    flip(2, 4096 + 70);
    struct err err = refuse_log(OMEN_ECORRUPT);
    ck_assert_ptr_nonnull(strstr(err.message, "0000000000000002.log"));
    ck_assert_ptr_nonnull(strstr(err.message, "offset 4096"));
    flip(2, 4096 + 70);
    log = open_log(g_seen);
    ck_assert_uint_eq(g_seen->count, 6);
    node_log_close(log);
}
END_TEST

START_TEST(missing_segment_is_refused)
{
    for (uint64_t i = 1; i <= 3; i++) {
        struct node_log *log = open_log(NULL);
        put_entry(log, 1, i, 100);
        node_log_close(log);
    }
    char path[300];
    path_of(2, path);
    ck_assert_int_eq(unlink(path), 0);
    struct err err = refuse_log(OMEN_ECORRUPT);
    ck_assert_ptr_nonnull(strstr(err.message, "0000000000000002.log"));
}
END_TEST

START_TEST(log_of_another_node_is_refused)
{
    struct node_log *log = open_log(NULL);
    put_entry(log, 1, 1, 100);
    node_log_close(log);
    struct node_log_options o = options();
    struct err err = { 0 };
    o.node_id = 8;
    ck_assert_int_eq(node_log_open(&o, NULL, NULL, &log, &err), OMEN_EINVAL);
    ck_assert_ptr_nonnull(strstr(err.message, "node 7"));
}
END_TEST

static void wait_for_bytes(struct node_log *log, uint64_t bytes_max)
{
    struct node_log_stats stats;
    for (int i = 0; i < 5000; i++) {
        node_log_stats(log, &stats);
        if (stats.bytes <= bytes_max) return;
        usleep(1000);
    }
    ck_abort_msg("the log still holds %llu bytes", (unsigned long long)stats.bytes);
}

START_TEST(released_segments_are_recycled_and_stale_batches_ignored)
{
    struct node_log *log = open_log(NULL);
    uint64_t index = 0;
    for (int round = 0; round < 12; round++) {
        for (int i = 0; i < 10; i++) {
            index++;
            put_entry(log, 1, index, 6000 + (uint32_t)(index * 37 % 3000));
        }
        node_log_release(log, 1, 1, index - 3);
        wait_for_bytes(log, 3 * SEGMENT);
    }
    node_log_close(log);
    ck_assert(!segment_there(1));
    log = open_log(g_seen);
    ck_assert_uint_ge(g_seen->count, 4);
    for (uint32_t i = 0; i < g_seen->count; i++)
        ck_assert_uint_eq(g_seen->records[i].index, index - g_seen->count + 1 + i);
    node_log_close(log);
}
END_TEST

START_TEST(unreleased_group_holds_the_log_and_is_named)
{
    struct node_log *log = open_log(NULL);
    put_entry(log, 42, 1, 100);
    for (uint64_t i = 1; i <= 60; i++) put_entry(log, 1, i, 6000);
    node_log_release(log, 1, 1, 60);
    struct node_log_stats stats;
    node_log_stats(log, &stats);
    ck_assert(stats.over_limit);
    ck_assert_uint_eq(stats.oldest_group, 42);
    node_log_release(log, 42, 1, 1);
    wait_for_bytes(log, SEGMENT);
    node_log_stats(log, &stats);
    ck_assert(!stats.over_limit);
    node_log_close(log);
}
END_TEST

START_TEST(hard_state_outlives_its_segment)
{
    struct node_log *log = open_log(NULL);
    for (uint64_t g = 1; g <= 50; g++) {
        uint64_t vote = 1000 + g;
        put(log, NODE_LOG_HARD_STATE, g, 0, &vote, 8);
    }
    for (uint64_t i = 1; i <= 60; i++) put_entry(log, 1, i, 6000);
    node_log_release(log, 1, 1, 60);
    wait_for_bytes(log, SEGMENT);
    put(log, NODE_LOG_DROP_GROUP, 50, 0, NULL, 0);
    node_log_close(log);
    ck_assert(!segment_there(1));
    log = open_log(g_seen);
    bool found[51] = { false };
    for (uint32_t i = 0; i < g_seen->count; i++) {
        if (g_seen->records[i].kind == NODE_LOG_HARD_STATE) found[g_seen->records[i].group] = true;
        if (g_seen->records[i].kind == NODE_LOG_DROP_GROUP) found[g_seen->records[i].group] = false;
    }
    for (uint64_t g = 1; g < 50; g++) ck_assert_msg(found[g], "group %d", (int)g);
    ck_assert(!found[50]);
    node_log_close(log);
}
END_TEST

START_TEST(truncated_and_dropped_entries_do_not_hold_the_log)
{
    struct node_log *log = open_log(NULL);
    for (uint64_t i = 1; i <= 10; i++) put_entry(log, 1, i, 100);
    put(log, NODE_LOG_TRUNCATE, 1, 6, NULL, 0);
    put_entry(log, 2, 1, 100);
    for (uint64_t i = 1; i <= 60; i++) put_entry(log, 3, i, 6000);
    node_log_release(log, 3, 1, 60);
    node_log_release(log, 1, 1, 5);
    struct node_log_stats stats;
    node_log_stats(log, &stats);
    ck_assert_uint_eq(stats.oldest_group, 2);
    put(log, NODE_LOG_DROP_GROUP, 2, 0, NULL, 0);
    wait_for_bytes(log, SEGMENT);
    node_log_close(log);
}
END_TEST

START_TEST(a_batch_larger_than_a_segment_gets_its_own)
{
    struct node_log *log = open_log(NULL);
    put_entry(log, 1, 1, 100);
    put_entry(log, 1, 2, 5 * SEGMENT);
    put_entry(log, 1, 3, 100);
    node_log_close(log);
    log = open_log(g_seen);
    ck_assert_uint_eq(g_seen->count, 3);
    ck_assert_uint_eq(g_seen->records[1].len, 5 * SEGMENT);
    node_log_close(log);
}
END_TEST

START_TEST(one_group_can_be_read_back_while_open)
{
    struct node_log *log = open_log(NULL);
    for (uint64_t i = 1; i <= 40; i++) {
        put_entry(log, 1, i, 3000);
        put_entry(log, 2, i, 3000);
    }
    g_seen->count = 0;
    struct err err = { 0 };
    ck_assert_msg(node_log_read_group(log, 2, see, g_seen, &err) == OMEN_OK, "%s", err.message);
    ck_assert_uint_eq(g_seen->count, 40);
    for (uint32_t i = 0; i < 40; i++) ck_assert_uint_eq(g_seen->records[i].index, i + 1);
    put_entry(log, 2, 41, 3000);
    node_log_close(log);
}
END_TEST

START_TEST(many_groups_share_the_log)
{
    struct node_log *log = open_log(NULL);
    enum { GROUPS = 500 };
    struct node_log_record records[GROUPS];
    for (uint64_t i = 1; i <= 8; i++) {
        for (uint32_t g = 0; g < GROUPS; g++) {
            records[g] = (struct node_log_record){ .group = g + 1,
                .replica = 1,
                .term = 1,
                .index = i,
                .kind = NODE_LOG_ENTRY,
                .body = "abcdefgh",
                .len = 8 };
        }
        ck_assert_int_eq(put_records(log, records, GROUPS), OMEN_OK);
    }
    for (uint32_t g = 0; g < GROUPS; g++) node_log_release(log, g + 1, 1, 8);
    wait_for_bytes(log, SEGMENT);
    node_log_close(log);
}
END_TEST

START_TEST(options_out_of_range_are_refused)
{
    struct node_log_options o = options();
    struct node_log *log;
    o.segment_bytes = 5000;
    ck_assert_int_eq(node_log_open(&o, NULL, NULL, &log, NULL), OMEN_EINVAL);
    o.segment_bytes = 2ull << 30;
    ck_assert_int_eq(node_log_open(&o, NULL, NULL, &log, NULL), OMEN_EINVAL);
    o = options();
    o.batch_bytes_max = 0;
    ck_assert_int_eq(node_log_open(&o, NULL, NULL, &log, NULL), OMEN_EINVAL);
}
END_TEST

int main(void)
{
    g_seen = malloc(sizeof *g_seen);
    TCase *tc = tcase_create("node_log");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, records_come_back_in_order);
    tcase_add_test(tc, callbacks_run_in_submission_order);
    tcase_add_test(tc, torn_tail_is_left_behind);
    tcase_add_test(tc, flipped_bit_in_the_middle_is_refused_by_name);
    tcase_add_test(tc, missing_segment_is_refused);
    tcase_add_test(tc, log_of_another_node_is_refused);
    tcase_add_test(tc, released_segments_are_recycled_and_stale_batches_ignored);
    tcase_add_test(tc, unreleased_group_holds_the_log_and_is_named);
    tcase_add_test(tc, hard_state_outlives_its_segment);
    tcase_add_test(tc, truncated_and_dropped_entries_do_not_hold_the_log);
    tcase_add_test(tc, a_batch_larger_than_a_segment_gets_its_own);
    tcase_add_test(tc, one_group_can_be_read_back_while_open);
    tcase_add_test(tc, many_groups_share_the_log);
    tcase_add_test(tc, options_out_of_range_are_refused);
    Suite *suite = suite_create("node_log");
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    free(g_seen);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
