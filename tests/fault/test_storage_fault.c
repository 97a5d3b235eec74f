/* The shard store when the disk fails at every possible moment, is full, forgets, or flips bits. The script and the model
 * are deterministic, so the n-th operation is the same in every run. */
#include "common/err.h"
#include "common/log.h"
#include "tests/support/store_model.h"
#include "tests/support/vfs_sim.h"

#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define SCRIPT_ENTRIES 14
#define SCRIPT_SEED 5

struct bench {
    struct store_model model;
    struct vfs_sim *sim;
    char dir[200];
    struct shard_store_options options;
    struct shard_store *store; /* NULL while closed */
    uint64_t acknowledged;     /* a checkpoint said that this much is durable */
};

static void setup(struct bench *b)
{
    const char *tmp = getenv("TMPDIR");
    memset(b, 0, sizeof *b);
    store_model_init(&b->model, SCRIPT_SEED);
    for (int i = 0; i < SCRIPT_ENTRIES; i++) store_model_step(&b->model);
    snprintf(b->dir, sizeof b->dir, "%s/omen-XXXXXX", tmp != NULL ? tmp : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(b->dir));
    b->sim = vfs_sim_new(1);
    for (size_t i = 1; i <= strlen(b->dir); i++) {
        char part[200];
        if (b->dir[i] != '/' && b->dir[i] != '\0') continue;
        snprintf(part, sizeof part, "%.*s", (int)i, b->dir);
        ck_assert_int_eq(vfs_mkdir(vfs_sim_vfs(b->sim), part, NULL), OMEN_OK);
    }
    vfs_sim_sync_all(b->sim);
    shard_store_options_default(&b->options);
    b->options.dir = b->dir;
    b->options.shard_id = 1;
    b->options.replica_id = 2;
    b->options.schema = &b->model.schema;
    b->options.chunk_bytes = 16 << 10;
    b->options.delta_bytes_max = 4000;
    b->options.op_retention_ms = MODEL_RETENTION_MS;
}

static void teardown(struct bench *b)
{
    shard_store_close(b->store);
    vfs_sim_free(b->sim);
    ck_assert_int_eq(vfs_remove_tree(vfs_posix(), b->dir, NULL), OMEN_OK);
    store_model_fini(&b->model);
}

static enum omen_err open_store(struct bench *b, struct err *err)
{
    b->options.vfs = vfs_sim_vfs(b->sim);
    return shard_store_open(&b->options, &b->store, err);
}

/* Open, apply all entries with a checkpoint after every third. Stops at the first failure. */
static enum omen_err run_script(struct bench *b, struct err *err)
{
    enum omen_err rc = b->store == NULL ? open_store(b, err) : OMEN_OK;
    if (rc != OMEN_OK) return rc;
    for (uint64_t s = shard_store_applied(b->store) + 1; s <= SCRIPT_ENTRIES; s++) {
        rc = store_model_apply(&b->model, b->store, s, err);
        if (rc != OMEN_OK) return rc;
        if (s % 3 != 0) continue;
        uint64_t durable = 0;
        rc = shard_store_checkpoint(b->store, &durable, err);
        if (durable > b->acknowledged) b->acknowledged = durable;
        if (rc != OMEN_OK) return rc;
        ck_assert_uint_eq(durable, s);
    }
    return OMEN_OK;
}

static void crash_and_finish(struct bench *b, uint64_t seed)
{
    struct err err;
    struct vfs_sim *after = vfs_sim_after_crash(b->sim, seed);
    shard_store_close(b->store);
    b->store = NULL;
    vfs_sim_free(b->sim);
    b->sim = after;
    enum omen_err rc = open_store(b, &err);
    ck_assert_msg(rc == OMEN_OK, "open after the crash: %s", err.message);
    ck_assert_uint_ge(shard_store_applied(b->store), b->acknowledged);
    store_model_check_now(&b->model, b->store);
    rc = run_script(b, &err);
    ck_assert_msg(rc == OMEN_OK, "after the crash: %s", err.message);
    store_model_check_now(&b->model, b->store);
}

/* How many changing operations the script takes when nothing fails. */
static uint64_t script_operations(void)
{
    struct bench b;
    struct err err;
    setup(&b);
    uint64_t before = vfs_sim_counts(b.sim).changing;
    enum omen_err rc = run_script(&b, &err);
    ck_assert_msg(rc == OMEN_OK, "script: %s", err.message);
    uint64_t count = vfs_sim_counts(b.sim).changing - before;
    teardown(&b);
    ck_assert_uint_gt(count, 50);
    return count;
}

START_TEST(no_failed_operation_loses_a_checkpoint)
{
    for (uint64_t n = 1, count = script_operations(); n <= count; n++) {
        struct bench b;
        struct err err;
        setup(&b);
        vfs_sim_fail_at(b.sim, n, EIO);
        enum omen_err rc = run_script(&b, &err);
        if (rc != OMEN_OK && b.store != NULL) {
            /* Stopped: reads go on, apply and checkpoint answer the same. */
            store_model_check_now(&b.model, b.store);
            uint64_t next = shard_store_applied(b.store) + 1;
            if (next <= SCRIPT_ENTRIES)
                ck_assert_int_eq(store_model_apply(&b.model, b.store, next, &err), rc);
            ck_assert_int_eq(shard_store_checkpoint(b.store, NULL, &err), rc);
        }
        crash_and_finish(&b, n);
        teardown(&b);
    }
}
END_TEST

START_TEST(a_machine_that_stops_anywhere_comes_back_whole)
{
    for (uint64_t n = 1, count = script_operations(); n <= count; n++) {
        struct bench b;
        struct err err;
        setup(&b);
        vfs_sim_stop_at(b.sim, n);
        ck_assert_int_ne(run_script(&b, &err), OMEN_OK);
        crash_and_finish(&b, n * 17);
        teardown(&b);
    }
}
END_TEST

START_TEST(a_full_disk_changes_nothing_and_is_resumed_from)
{
    uint64_t resumed = 0;
    for (uint64_t n = 1, count = script_operations(); n <= count; n++) {
        struct bench b;
        struct err err;
        setup(&b);
        vfs_sim_fail_at(b.sim, n, ENOSPC);
        enum omen_err rc = run_script(&b, &err);
        struct shard_store_stats stats = { 0 };
        if (b.store != NULL) shard_store_stats(b.store, &stats);
        if (rc == OMEN_EFULL) {
            if (b.store != NULL) {
                ck_assert_int_eq(stats.stopped, OMEN_EFULL);
                store_model_check_now(&b.model, b.store);
                resumed++;
            }
            rc = run_script(&b, &err); /* there is room again */
            ck_assert_msg(rc == OMEN_OK, "operation %llu, resumed: %s", (unsigned long long)n, err.message);
            shard_store_stats(b.store, &stats);
            ck_assert_int_eq(stats.stopped, OMEN_OK);
            store_model_check_now(&b.model, b.store);
        }
        crash_and_finish(&b, n * 29);
        teardown(&b);
    }
    ck_assert_uint_gt(resumed, 10);
}
END_TEST

/* ---- flipped bits ---- */

/* Open what the copy holds: refused by name, or right. Returns whether it was refused. */
static bool refused_or_right(struct bench *b, const char *name, uint64_t offset)
{
    struct err err;
    err_clear(&err);
    enum omen_err rc = open_store(b, &err);
    if (rc == OMEN_OK) {
        store_model_check_now(&b->model, b->store);
        shard_store_close(b->store);
        b->store = NULL;
        return false;
    }
    ck_assert_msg(rc == OMEN_ECORRUPT, "%s at %llu: %s", name, (unsigned long long)offset, err.message);
    ck_assert_msg(strstr(err.message, name) != NULL, "%s at %llu: %s", name, (unsigned long long)offset,
            err.message);
    return true;
}

static void closed_after_script(struct bench *b)
{
    struct err err;
    setup(b);
    ck_assert_int_eq(run_script(b, &err), OMEN_OK);
    ck_assert_int_eq(shard_store_checkpoint(b->store, NULL, &err), OMEN_OK);
    shard_store_close(b->store);
    b->store = NULL;
    vfs_sim_sync_all(b->sim);
}

START_TEST(a_flipped_bit_in_the_stream_is_named_or_harmless)
{
    struct bench b;
    closed_after_script(&b);
    struct vfs_sim *good = b.sim;
    uint64_t refused = 0, tried = 0;
    for (unsigned chunk = 1; chunk <= 2; chunk++) {
        char path[300], name[40];
        snprintf(name, sizeof name, "%016x.chunk", chunk);
        snprintf(path, sizeof path, "%s/stream/%s", b.dir, name);
        for (uint64_t offset = 0;; offset += offset < 5000 ? 37 : 13) {
            b.sim = vfs_sim_after_crash(good, 1);
            bool there = vfs_sim_flip_bit(b.sim, path, offset, (unsigned)(offset % 8));
            if (there) refused += refused_or_right(&b, name, offset);
            vfs_sim_free(b.sim);
            if (!there) break;
            tried++;
        }
    }
    ck_assert_uint_gt(tried, 1000);
    ck_assert_uint_gt(refused, tried / 2);
    b.sim = good;
    teardown(&b);
}
END_TEST

START_TEST(a_flipped_bit_in_the_checkpoint_costs_at_most_one_checkpoint)
{
    struct bench b;
    closed_after_script(&b);
    struct vfs_sim *good = b.sim;
    char path[300];
    snprintf(path, sizeof path, "%s/CHECKPOINT", b.dir);
    for (uint64_t offset = 0; offset < 1024; offset += 3) {
        b.sim = vfs_sim_after_crash(good, 1);
        ck_assert(vfs_sim_flip_bit(b.sim, path, offset, (unsigned)(offset % 8)));
        ck_assert(!refused_or_right(&b, "CHECKPOINT", offset));
        vfs_sim_free(b.sim);
    }
    b.sim = vfs_sim_after_crash(good, 1);
    ck_assert(vfs_sim_flip_bit(b.sim, path, 9, 0));
    ck_assert(vfs_sim_flip_bit(b.sim, path, 600, 0));
    ck_assert(refused_or_right(&b, "CHECKPOINT", 9));
    vfs_sim_free(b.sim);
    b.sim = good;
    teardown(&b);
}
END_TEST

START_TEST(a_flipped_bit_in_the_metadata_is_named)
{
    struct bench b;
    closed_after_script(&b);
    char path[300];
    uint64_t size = 0;
    struct vfs_file *file;
    snprintf(path, sizeof path, "%s/meta/data.mdb", b.dir);
    ck_assert_int_eq(vfs_open(vfs_posix(), path, VFS_READ | VFS_WRITE, &file, NULL), OMEN_OK);
    ck_assert_int_eq(vfs_size(file, &size, NULL), OMEN_OK);
    for (uint64_t offset = 0; offset < size; offset += 101) {
        uint8_t byte;
        ck_assert_int_eq(vfs_pread(file, &byte, 1, offset, NULL), OMEN_OK);
        byte ^= (uint8_t)(1u << offset % 8);
        ck_assert_int_eq(vfs_pwrite(file, &byte, 1, offset, NULL), OMEN_OK);
        ck_assert_msg(refused_or_right(&b, "data.mdb", offset), "flipped byte %llu was not noticed",
                (unsigned long long)offset);
        byte ^= (uint8_t)(1u << offset % 8);
        ck_assert_int_eq(vfs_pwrite(file, &byte, 1, offset, NULL), OMEN_OK);
    }
    vfs_close(file);
    struct vfs_sim *good = b.sim;
    snprintf(path, sizeof path, "%s/meta/CHECKSUM", b.dir);
    for (uint64_t offset = 0; offset < 32; offset++) {
        b.sim = vfs_sim_after_crash(good, 1);
        ck_assert(vfs_sim_flip_bit(b.sim, path, offset, 3));
        ck_assert(refused_or_right(&b, "CHECKSUM", offset));
        vfs_sim_free(b.sim);
    }
    b.sim = good;
    ck_assert(!refused_or_right(&b, "", 0));
    teardown(&b);
}
END_TEST

int main(void)
{
    log_configure(LOG_LEVEL_ERROR + 1, LOG_FORMAT_TEXT, 2);
    Suite *suite = suite_create("storage_fault");
    TCase *tc = tcase_create("faults");
    tcase_set_timeout(tc, 300);
    tcase_add_test(tc, no_failed_operation_loses_a_checkpoint);
    tcase_add_test(tc, a_machine_that_stops_anywhere_comes_back_whole);
    tcase_add_test(tc, a_full_disk_changes_nothing_and_is_resumed_from);
    tcase_add_test(tc, a_flipped_bit_in_the_stream_is_named_or_harmless);
    tcase_add_test(tc, a_flipped_bit_in_the_checkpoint_costs_at_most_one_checkpoint);
    tcase_add_test(tc, a_flipped_bit_in_the_metadata_is_named);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
