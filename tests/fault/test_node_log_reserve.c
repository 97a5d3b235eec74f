/* The node log's reserve (CORRECTNESS D2): what goes on when the disk has not one byte left, over restarts and
 * crashes, what gives it back, and a log that could never have one. */
#include "common/err.h"

#include <check.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/bytes.h"
#include "consensus/node_log_format.h"
#include "tests/support/log_append.h"
#include "tests/support/vfs_hook.h"
#include "tests/support/vfs_sim.h"

#define SEED 20260
#define SEGMENT (32u << 10)
#define BODY 3000u /* one of these is a batch of 4096 bytes: seven in a segment */
#define PATIENCE_MS 60000

static struct vfs_sim *g_sim;
static struct node_log *g_log;
static uint64_t g_next[4]; /* index of each group's next entry */

static void setup(void)
{
    g_sim = vfs_sim_new(SEED);
    g_log = NULL;
    for (int i = 0; i < 4; i++) g_next[i] = 1;
}

static void teardown(void)
{
    node_log_close(g_log);
    vfs_sim_free(g_sim);
}

/* ---- the log ---- */

static struct node_log_options options(struct vfs *vfs)
{
    struct node_log_options o;
    node_log_options_default(&o);
    o.vfs = vfs;
    o.dir = "/log";
    o.node_id = 3;
    o.segment_bytes = SEGMENT;
    return o;
}

static void log_open(void)
{
    struct node_log_options o = options(vfs_sim_vfs(g_sim));
    struct err err = { 0 };
    enum omen_err rc = node_log_open(&o, NULL, NULL, &g_log, &err);
    ck_assert_msg(rc == OMEN_OK, "%s", err.message);
}

static void log_reopen(void)
{
    node_log_close(g_log);
    log_open();
}

static enum omen_err put(enum node_log_claim claim, uint64_t group)
{
    static const uint8_t body[BODY];
    struct node_log_record record = { .group = group,
        .replica = 1,
        .term = 1,
        .index = g_next[group],
        .kind = NODE_LOG_ENTRY,
        .body = body,
        .len = BODY };
    enum omen_err rc = log_append_one(g_log, claim, &record);
    if (rc == OMEN_OK) g_next[group]++;
    return rc;
}

static enum omen_err vote_in(struct node_log *log, uint64_t term)
{
    uint64_t vote = 1;
    struct node_log_record record = { .group = 1,
        .replica = 1,
        .term = term,
        .kind = NODE_LOG_HARD_STATE,
        .body = &vote,
        .len = sizeof vote };
    return log_append_one(log, NODE_LOG_LAST, &record);
}

static uint32_t put_all(enum node_log_claim claim, uint64_t group)
{
    uint32_t n = 0;
    while (put(claim, group) == OMEN_OK) ck_assert_uint_lt(++n, 1000);
    return n;
}

static uint32_t spares(struct node_log *log)
{
    struct node_log_stats stats;
    node_log_stats(log, &stats);
    return stats.spares;
}

static void spares_wait(struct node_log *log, uint32_t count)
{
    for (int ms = 0; spares(log) < count; ms++) {
        ck_assert_int_lt(ms, PATIENCE_MS);
        usleep(1000);
    }
}

static void short_wait(bool is_short)
{
    for (int ms = 0; node_log_is_short(g_log) != is_short; ms++) {
        ck_assert_int_lt(ms, PATIENCE_MS);
        usleep(1000);
    }
}

/* Others take every byte there is. */
static void disk_fill(struct vfs_sim *sim)
{
    uint64_t free_bytes, total_bytes;
    vfs_sim_set_capacity(sim, 1ull << 30);
    ck_assert_int_eq(vfs_free_space(vfs_sim_vfs(sim), "/", &free_bytes, &total_bytes, NULL), OMEN_OK);
    vfs_sim_set_capacity(sim, total_bytes - free_bytes);
}

static void release_all(void)
{
    for (uint64_t g = 1; g < 4; g++) node_log_release(g_log, g, 1, g_next[g] - 1);
}

/* ---- what each claim gets ---- */

START_TEST(each_claim_leaves_its_part_of_the_reserve_to_the_greater_ones)
{
    log_open();
    ck_assert_int_eq(put(NODE_LOG_PLAIN, 1), OMEN_OK);
    spares_wait(g_log, NODE_LOG_RESERVE + 1);
    ck_assert(!node_log_is_short(g_log));
    disk_fill(g_sim);
    put_all(NODE_LOG_PLAIN, 1);
    ck_assert(node_log_is_short(g_log));
    ck_assert_uint_eq(spares(g_log), NODE_LOG_RESERVE);
    ck_assert_uint_ge(put_all(NODE_LOG_OWED, 2), 7 * (NODE_LOG_RESERVE / 2));
    ck_assert_uint_eq(spares(g_log), NODE_LOG_RESERVE / 2);
    ck_assert_int_eq(put(NODE_LOG_PLAIN, 1), OMEN_EFULL); /* not even where there is room for it */
    ck_assert_uint_ge(put_all(NODE_LOG_VITAL, 3), 7 * (NODE_LOG_RESERVE / 2 - 1));
    ck_assert_uint_eq(spares(g_log), 1);
    uint64_t term = 2;
    while (vote_in(g_log, term) == OMEN_OK) term++;
    ck_assert_uint_ge(term, 2 + 7);
    ck_assert_uint_eq(spares(g_log), 0);
    ck_assert_int_eq(put(NODE_LOG_VITAL, 3), OMEN_EFULL);
}
END_TEST

START_TEST(a_vote_queued_behind_refused_entries_is_written)
{
    enum { COUNT = 40 };
    static const uint8_t body[BODY];
    static struct node_log_record records[COUNT + 1];
    static struct node_log_append appends[COUNT + 1];
    static struct log_append_wait waits[COUNT + 1];
    uint64_t vote = 1;
    log_open();
    ck_assert_int_eq(put(NODE_LOG_PLAIN, 1), OMEN_OK);
    spares_wait(g_log, NODE_LOG_RESERVE + 1);
    disk_fill(g_sim);
    for (uint32_t i = 0; i <= COUNT; i++) {
        records[i] = (struct node_log_record){ .group = 1,
            .replica = 1,
            .term = 1,
            .index = g_next[1] + i,
            .kind = NODE_LOG_ENTRY,
            .body = body,
            .len = BODY };
        if (i == COUNT / 2)
            records[i] = (struct node_log_record){ .group = 1,
                .replica = 1,
                .term = 2,
                .kind = NODE_LOG_HARD_STATE,
                .body = &vote,
                .len = sizeof vote };
        waits[i] = (struct log_append_wait)LOG_APPEND_WAIT;
        appends[i] = (struct node_log_append){ .records = &records[i],
            .count = 1,
            .claim = i == COUNT / 2 ? NODE_LOG_LAST : NODE_LOG_PLAIN,
            .done = log_append_done,
            .arg = &waits[i] };
    }
    put_all(NODE_LOG_PLAIN, 1);
    for (uint32_t i = 0; i <= COUNT; i++) node_log_append(g_log, &appends[i]);
    for (uint32_t i = 0; i <= COUNT; i++)
        ck_assert_int_eq(log_append_result(&waits[i]), i == COUNT / 2 ? OMEN_OK : OMEN_EFULL);
}
END_TEST

/* ---- what gives it back ---- */

START_TEST(released_segments_fill_the_reserve_again_on_a_full_disk)
{
    log_open();
    ck_assert_int_eq(put(NODE_LOG_PLAIN, 1), OMEN_OK);
    spares_wait(g_log, NODE_LOG_RESERVE + 1);
    disk_fill(g_sim);
    put_all(NODE_LOG_PLAIN, 1);
    for (uint32_t round = 0; round < 3; round++) {
        put_all(NODE_LOG_OWED, 2);
        put_all(NODE_LOG_VITAL, 3);
        ck_assert(node_log_is_short(g_log));
        release_all();
        ck_assert_int_eq(vote_in(g_log, 2 + round),
                OMEN_OK); /* a later segment than the released ones holds a batch */
        spares_wait(g_log, NODE_LOG_RESERVE);
        short_wait(false);
        ck_assert_int_eq(put(NODE_LOG_PLAIN, 1), OMEN_OK);
        put_all(NODE_LOG_PLAIN, 1);
    }
}
END_TEST

START_TEST(room_fills_the_reserve_again_and_plain_appends_go_on)
{
    log_open();
    ck_assert_int_eq(put(NODE_LOG_PLAIN, 1), OMEN_OK);
    spares_wait(g_log, NODE_LOG_RESERVE + 1);
    disk_fill(g_sim);
    put_all(NODE_LOG_PLAIN, 1);
    put_all(NODE_LOG_VITAL, 2);
    vfs_sim_set_capacity(g_sim, 0);
    short_wait(false); /* by itself: nobody appends */
    spares_wait(g_log, NODE_LOG_RESERVE + 1);
    for (int i = 0; i < 30; i++) ck_assert_int_eq(put(NODE_LOG_PLAIN, 1), OMEN_OK);
}
END_TEST

static bool odd_each(void *arg, const char *name)
{
    char path[64];
    struct vfs_file *file = NULL;
    uint64_t bytes = 0;
    struct err err;
    if (strncmp(name, "spare-", 6) != 0) return true;
    snprintf(path, sizeof path, "/log/%s", name);
    if (vfs_open(vfs_sim_vfs(g_sim), path, VFS_READ, &file, &err) != OMEN_OK)
        return true; /* taken meanwhile */
    ck_assert_int_eq(vfs_size(file, &bytes, &err), OMEN_OK);
    vfs_close(file);
    if (bytes > SEGMENT) (*(uint32_t *)arg)++;
    return true;
}

static uint32_t odd_spares(void)
{
    uint32_t n = 0;
    ck_assert_int_eq(vfs_list(vfs_sim_vfs(g_sim), "/log", odd_each, &n, NULL), OMEN_OK);
    return n;
}

/* A segment that a large batch had to itself stands in for the reserve while there is nothing else, no longer. */
START_TEST(a_large_segment_in_the_reserve_gives_way_once_there_is_room)
{
    static const uint8_t large[5 * SEGMENT];
    log_open();
    ck_assert_int_eq(put(NODE_LOG_PLAIN, 1), OMEN_OK);
    spares_wait(g_log, NODE_LOG_RESERVE + 1);
    struct node_log_record record = { .group = 1,
        .replica = 1,
        .term = 1,
        .index = g_next[1]++,
        .kind = NODE_LOG_ENTRY,
        .body = large,
        .len = sizeof large };
    ck_assert_int_eq(log_append_one(g_log, NODE_LOG_PLAIN, &record), OMEN_OK);
    spares_wait(g_log, NODE_LOG_RESERVE + 1);
    disk_fill(g_sim);
    put_all(NODE_LOG_PLAIN, 2);
    put_all(NODE_LOG_VITAL, 3);
    ck_assert_int_eq(vote_in(g_log, 2), OMEN_OK);
    node_log_release(g_log, 1, 1, g_next[1] - 1); /* its segments alone: nothing gives the disk room */
    for (int ms = 0; odd_spares() == 0; ms++) {
        ck_assert_int_lt(ms, PATIENCE_MS);
        usleep(1000);
    }
    vfs_sim_set_capacity(g_sim, 0);
    for (int ms = 0; odd_spares() > 0; ms++) {
        ck_assert_int_lt(ms, PATIENCE_MS);
        usleep(1000);
    }
    spares_wait(g_log, NODE_LOG_RESERVE);
    for (int i = 0; i < 30; i++) ck_assert_int_eq(put(NODE_LOG_PLAIN, 1), OMEN_OK);
}
END_TEST

/* ---- restarts ---- */

START_TEST(the_reserve_outlives_restarts_on_a_full_disk)
{
    log_open();
    ck_assert_int_eq(put(NODE_LOG_PLAIN, 1), OMEN_OK);
    spares_wait(g_log, NODE_LOG_RESERVE + 1);
    disk_fill(g_sim);
    put_all(NODE_LOG_PLAIN, 1);
    for (uint32_t life = 0; life < NODE_LOG_RESERVE; life++) {
        log_reopen();
        ck_assert_uint_eq(spares(g_log), NODE_LOG_RESERVE - life);
        ck_assert_int_eq(vote_in(g_log, 2 + life), OMEN_OK);
        ck_assert_int_eq(put(NODE_LOG_PLAIN, 1), OMEN_EFULL);
    }
    ck_assert_uint_eq(spares(g_log), 0);
    release_all(); /* and as soon as a checkpoint lets go, as before */
    spares_wait(g_log, NODE_LOG_RESERVE);
    log_reopen();
    ck_assert_int_eq(put(NODE_LOG_VITAL, 2), OMEN_OK);
}
END_TEST

struct photos {
    pthread_mutex_t mutex; /* the log thread and its helper both change the disk */
    struct vfs_sim *images[1000];
    uint32_t count;
    _Atomic bool on;
};

static enum omen_err photograph(void *arg, enum vfs_hook_op op, struct err *err)
{
    struct photos *p = arg;
    (void)op, (void)err;
    pthread_mutex_lock(&p->mutex);
    if (atomic_load(&p->on) && p->count < 1000) {
        p->images[p->count] = vfs_sim_after_crash(g_sim, SEED + p->count);
        p->count++;
    }
    pthread_mutex_unlock(&p->mutex);
    return OMEN_OK;
}

/* Whatever the log was about to do when the power went, and whatever of it reached the disk: on a disk without a
 * byte left a vote is written. */
START_TEST(after_a_crash_at_any_change_a_full_disk_takes_a_vote)
{
    static struct photos photos = { .mutex = PTHREAD_MUTEX_INITIALIZER };
    struct vfs_hook hook;
    vfs_hook_init(&hook, vfs_sim_vfs(g_sim), photograph, &photos);
    struct node_log_options o = options(&hook.base);
    ck_assert_int_eq(node_log_open(&o, NULL, NULL, &g_log, NULL), OMEN_OK);
    ck_assert_int_eq(put(NODE_LOG_PLAIN, 1), OMEN_OK);
    spares_wait(g_log, NODE_LOG_RESERVE + 1);
    atomic_store(&photos.on, true);
    for (uint32_t i = 0; i < 40; i++) {
        ck_assert_int_eq(put(NODE_LOG_PLAIN, 1 + i % 3), OMEN_OK);
        spares_wait(g_log, NODE_LOG_RESERVE + 1);
        if (i % 10 == 9) release_all();
    }
    atomic_store(&photos.on, false);
    node_log_close(g_log);
    g_log = NULL;
    ck_assert_uint_gt(photos.count, 80);
    for (uint32_t i = 0; i < photos.count; i++) {
        struct node_log_options again = options(vfs_sim_vfs(photos.images[i]));
        struct node_log *log;
        struct err err = { 0 };
        disk_fill(photos.images[i]);
        enum omen_err rc = node_log_open(&again, NULL, NULL, &log, &err);
        ck_assert_msg(rc == OMEN_OK, "photograph %u: %s", i, err.message);
        uint32_t left = spares(log);
        ck_assert_msg(left >= NODE_LOG_RESERVE - 1, "photograph %u: %u spares", i, left);
        ck_assert_int_eq(vote_in(log, 2), OMEN_OK);
        node_log_close(log);
        vfs_sim_free(photos.images[i]);
    }
}
END_TEST

/* ---- none ---- */

START_TEST(a_disk_that_was_full_from_the_start_has_none_and_gets_one_with_room)
{
    struct vfs *vfs = vfs_sim_vfs(g_sim);
    ck_assert_int_eq(vfs_mkdir(vfs, "/log", NULL), OMEN_OK);
    vfs_sim_set_capacity(g_sim, 1);
    log_open();
    ck_assert_int_eq(put(NODE_LOG_PLAIN, 1), OMEN_EFULL);
    ck_assert_int_eq(vote_in(g_log, 2), OMEN_EFULL);
    ck_assert(node_log_is_short(g_log));
    vfs_sim_set_capacity(g_sim, 0);
    short_wait(false);
    ck_assert_int_eq(vote_in(g_log, 2), OMEN_OK);
    ck_assert_int_eq(put(NODE_LOG_PLAIN, 1), OMEN_OK);
    spares_wait(g_log, NODE_LOG_RESERVE + 1);
}
END_TEST

static void file_make(const char *path, uint64_t bytes)
{
    struct vfs_file *f;
    struct vfs *vfs = vfs_sim_vfs(g_sim);
    ck_assert_int_eq(vfs_open(vfs, path, VFS_READ | VFS_WRITE | VFS_CREATE, &f, NULL), OMEN_OK);
    ck_assert_int_eq(vfs_allocate(f, bytes, NULL), OMEN_OK);
    vfs_close(f);
}

static bool file_there(const char *path)
{
    bool there = false;
    ck_assert_int_eq(vfs_exists(vfs_sim_vfs(g_sim), path, &there, NULL), OMEN_OK);
    return there;
}

START_TEST(spares_that_are_of_no_use_are_removed_at_the_start)
{
    ck_assert_int_eq(vfs_mkdir(vfs_sim_vfs(g_sim), "/log", NULL), OMEN_OK);
    file_make("/log/spare-00000000000000f7", SEGMENT);      /* of an earlier life */
    file_make("/log/spare-0000000000000008", SEGMENT / 2);  /* cut short */
    file_make("/log/spare-0000000000000009", SEGMENT + 12); /* odd */
    file_make("/log/spare-x", SEGMENT);
    file_make("/log/spare-00000000000000FA", SEGMENT); /* would be looked for as ..fa */
    file_make("/log/spare-0x000000000000ab", SEGMENT);
    file_make("/log/spare-ffffffffffffffff", SEGMENT); /* none could come after it */
    vfs_sim_sync_all(g_sim);
    disk_fill(g_sim);
    log_open();
    ck_assert_uint_ge(spares(g_log), 1);
    ck_assert(file_there("/log/spare-00000000000000f7"));
    ck_assert(!file_there("/log/spare-0000000000000008"));
    ck_assert(!file_there("/log/spare-0000000000000009"));
    ck_assert(!file_there("/log/spare-x"));
    ck_assert(!file_there("/log/spare-00000000000000FA"));
    ck_assert(!file_there("/log/spare-0x000000000000ab"));
    ck_assert(!file_there("/log/spare-ffffffffffffffff"));
}
END_TEST

int main(void)
{
    TCase *tc = tcase_create("node_log_reserve");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, each_claim_leaves_its_part_of_the_reserve_to_the_greater_ones);
    tcase_add_test(tc, a_vote_queued_behind_refused_entries_is_written);
    tcase_add_test(tc, released_segments_fill_the_reserve_again_on_a_full_disk);
    tcase_add_test(tc, room_fills_the_reserve_again_and_plain_appends_go_on);
    tcase_add_test(tc, a_large_segment_in_the_reserve_gives_way_once_there_is_room);
    tcase_add_test(tc, the_reserve_outlives_restarts_on_a_full_disk);
    tcase_add_test(tc, after_a_crash_at_any_change_a_full_disk_takes_a_vote);
    tcase_add_test(tc, a_disk_that_was_full_from_the_start_has_none_and_gets_one_with_room);
    tcase_add_test(tc, spares_that_are_of_no_use_are_removed_at_the_start);
    Suite *suite = suite_create("node_log_reserve");
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
