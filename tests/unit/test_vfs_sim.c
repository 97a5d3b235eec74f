/* What the simulated file system promises to tests: crashes that lose what was not synced and nothing
 * else, faults at the n-th operation, a disk that fills up. The crash tests try many seeds and name the
 * one that failed. */
#include "tests/support/vfs_sim.h"

#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "common/mem.h"

#define SEEDS 200
#define FILE_BYTES 8192

static struct vfs_sim *sim;
static struct vfs *vfs;
static struct err err;

static void setup(void)
{
    sim = vfs_sim_new(7);
    vfs = vfs_sim_vfs(sim);
    ck_assert_int_eq(vfs_mkdir(vfs, "/d", &err), OMEN_OK);
    vfs_sim_sync_all(sim);
}

static void teardown(void) { vfs_sim_free(sim); }

static struct vfs_file *open_in(struct vfs *v, const char *path, int flags)
{
    struct vfs_file *f;
    ck_assert_msg(vfs_open(v, path, flags, &f, &err) == OMEN_OK, "%s", err.message);
    return f;
}

static void fill(struct vfs_file *f, uint8_t byte, size_t len, uint64_t offset)
{
    uint8_t bytes[2 * FILE_BYTES];
    memset(bytes, byte, len);
    ck_assert_int_eq(vfs_pwrite(f, bytes, len, offset, &err), OMEN_OK);
}

/* Length, or -1 when there is no such file; the bytes go to `bytes`. */
static int64_t read_back(struct vfs *v, const char *path, uint8_t bytes[2 * FILE_BYTES])
{
    struct vfs_file *f;
    uint64_t len;
    if (vfs_open(v, path, VFS_READ, &f, NULL) != OMEN_OK) return -1;
    ck_assert_int_eq(vfs_size(f, &len, &err), OMEN_OK);
    ck_assert_uint_le(len, 2 * FILE_BYTES);
    ck_assert_int_eq(vfs_pread(f, bytes, len, 0, &err), OMEN_OK);
    vfs_close(f);
    return (int64_t)len;
}

START_TEST(synced_bytes_survive_and_others_tear_at_sectors)
{
    struct vfs_file *f = open_in(vfs, "/d/a", VFS_WRITE | VFS_CREATE);
    fill(f, 'o', FILE_BYTES, 0);
    ck_assert_int_eq(vfs_datasync(f, &err), OMEN_OK);
    ck_assert_int_eq(vfs_sync_dir(vfs, "/d", &err), OMEN_OK);
    fill(f, 'n', FILE_BYTES / 2, 1000); /* unsynced, in the middle of a sector */
    bool saw_old = false, saw_new = false, saw_mixed = false;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        struct vfs_sim *after = vfs_sim_after_crash(sim, seed);
        uint8_t bytes[2 * FILE_BYTES];
        size_t new_count = 0;
        ck_assert_int_eq(read_back(vfs_sim_vfs(after), "/d/a", bytes), FILE_BYTES);
        size_t wrong = 0, torn = 0; /* counted, for an assertion per byte takes seconds */
        for (size_t i = 0; i < FILE_BYTES; i++) {
            bool touched = i >= 1000 && i < 1000 + FILE_BYTES / 2;
            wrong += bytes[i] != 'o' && !(touched && bytes[i] == 'n');
            torn += touched && i % VFS_SIM_SECTOR_BYTES != 0 && i > 1000 && bytes[i] != bytes[i - 1];
            new_count += bytes[i] == 'n';
        }
        ck_assert_msg(wrong == 0 && torn == 0, "seed %llu: %zu bytes from nowhere, %zu sectors torn inside",
                (unsigned long long)seed, wrong, torn);
        saw_old |= new_count == 0;
        saw_new |= new_count == FILE_BYTES / 2;
        saw_mixed |= new_count > 0 && new_count < FILE_BYTES / 2;
        vfs_sim_free(after);
    }
    ck_assert(saw_old && saw_new && saw_mixed);
    vfs_close(f);
}
END_TEST

START_TEST(an_unsynced_length_is_old_new_or_between)
{
    struct vfs_file *f = open_in(vfs, "/d/a", VFS_WRITE | VFS_CREATE);
    fill(f, 'o', 1000, 0);
    ck_assert_int_eq(vfs_datasync(f, &err), OMEN_OK);
    vfs_sim_sync_all(sim);
    fill(f, 'n', 3000, 1000);
    bool saw_old = false, saw_new = false, saw_between = false, saw_zeros = false;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        struct vfs_sim *after = vfs_sim_after_crash(sim, seed);
        uint8_t bytes[2 * FILE_BYTES];
        int64_t len = read_back(vfs_sim_vfs(after), "/d/a", bytes);
        ck_assert_int_ge(len, 1000);
        ck_assert_int_le(len, 4000);
        saw_old |= len == 1000;
        saw_new |= len == 4000;
        saw_between |= len > 1000 && len < 4000;
        size_t wrong = 0;
        for (int64_t i = 0; i < len; i++) {
            wrong += bytes[i] != (i < 1000 ? 'o' : 'n') && (i < 1000 || bytes[i] != 0);
            saw_zeros |= bytes[i] == 0;
        }
        ck_assert_msg(wrong == 0, "seed %llu: %zu bytes from nowhere", (unsigned long long)seed, wrong);
        vfs_sim_free(after);
    }
    ck_assert(saw_old && saw_new && saw_between && saw_zeros);
    vfs_close(f);
}
END_TEST

START_TEST(an_allocated_length_is_durable_after_a_sync)
{
    struct vfs_file *f = open_in(vfs, "/d/a", VFS_WRITE | VFS_CREATE);
    vfs_sim_sync_all(sim);
    uint8_t bytes[2 * FILE_BYTES];
    bool saw_short = false;
    ck_assert_int_eq(vfs_allocate(f, FILE_BYTES, &err), OMEN_OK);
    for (uint64_t seed = 0; seed < 50; seed++) {
        struct vfs_sim *after = vfs_sim_after_crash(sim, seed);
        saw_short |= read_back(vfs_sim_vfs(after), "/d/a", bytes) < FILE_BYTES;
        vfs_sim_free(after);
    }
    ck_assert(saw_short);
    ck_assert_int_eq(vfs_datasync(f, &err), OMEN_OK);
    vfs_close(f);
    for (uint64_t seed = 0; seed < 50; seed++) {
        struct vfs_sim *after = vfs_sim_after_crash(sim, seed);
        ck_assert_int_eq(read_back(vfs_sim_vfs(after), "/d/a", bytes), FILE_BYTES);
        vfs_sim_free(after);
    }
}
END_TEST

/* How often each state of two names is seen over many crashes: [a exists][b exists]. */
static void count_names(int counts[2][2])
{
    memset(counts, 0, 4 * sizeof(int));
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        struct vfs_sim *after = vfs_sim_after_crash(sim, seed);
        bool a, b;
        ck_assert_int_eq(vfs_exists(vfs_sim_vfs(after), "/d/a", &a, &err), OMEN_OK);
        ck_assert_int_eq(vfs_exists(vfs_sim_vfs(after), "/d/b", &b, &err), OMEN_OK);
        counts[a][b]++;
        vfs_sim_free(after);
    }
}

START_TEST(names_are_durable_only_after_their_directory_was_synced)
{
    int counts[2][2];
    struct vfs_file *f = open_in(vfs, "/d/a", VFS_WRITE | VFS_CREATE);
    ck_assert_int_eq(vfs_datasync(f, &err), OMEN_OK); /* syncs no name */
    vfs_close(f);
    count_names(counts);
    ck_assert(counts[0][0] > 0 && counts[1][0] > 0);
    ck_assert_int_eq(vfs_sync_dir(vfs, "/d", &err), OMEN_OK);
    count_names(counts);
    ck_assert_int_eq(counts[1][0], SEEDS);

    ck_assert_int_eq(vfs_rename(vfs, "/d/a", "/d/b", &err),
            OMEN_OK); /* one or the other, never none or both */
    count_names(counts);
    ck_assert(counts[1][0] > 0 && counts[0][1] > 0);
    ck_assert_int_eq(counts[1][0] + counts[0][1], SEEDS);
    ck_assert_int_eq(vfs_sync_dir(vfs, "/d", &err), OMEN_OK);
    count_names(counts);
    ck_assert_int_eq(counts[0][1], SEEDS);

    ck_assert_int_eq(vfs_unlink(vfs, "/d/b", &err), OMEN_OK);
    count_names(counts);
    ck_assert(counts[0][0] > 0 && counts[0][1] > 0);
    ck_assert_int_eq(vfs_sync_dir(vfs, "/d", &err), OMEN_OK);
    count_names(counts);
    ck_assert_int_eq(counts[0][0], SEEDS);
}
END_TEST

START_TEST(a_lost_directory_takes_its_files_with_it)
{
    bool saw_none = false, saw_file = false;
    ck_assert_int_eq(vfs_mkdir(vfs, "/d/sub", &err), OMEN_OK);
    vfs_close(open_in(vfs, "/d/sub/f", VFS_WRITE | VFS_CREATE));
    ck_assert_int_eq(vfs_sync_dir(vfs, "/d/sub", &err), OMEN_OK); /* but not /d */
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        struct vfs_sim *after = vfs_sim_after_crash(sim, seed);
        bool sub, f;
        ck_assert_int_eq(vfs_exists(vfs_sim_vfs(after), "/d/sub", &sub, &err), OMEN_OK);
        ck_assert_int_eq(vfs_exists(vfs_sim_vfs(after), "/d/sub/f", &f, &err), OMEN_OK);
        ck_assert(sub == f);
        saw_none |= !sub;
        saw_file |= f;
        vfs_sim_free(after);
    }
    ck_assert(saw_none && saw_file);
}
END_TEST

START_TEST(replace_file_leaves_the_old_or_the_new_at_every_step)
{
    static const char OLD[] = "the old contents", NEW[] = "new";
    bool saw_old = false, saw_new = false;
    for (uint64_t stop = 1; stop < 12; stop++)
        for (uint64_t seed = 0; seed < 40; seed++) {
            struct vfs_sim *s = vfs_sim_new(seed);
            struct vfs *v = vfs_sim_vfs(s);
            ck_assert_int_eq(vfs_mkdir(v, "/d", &err), OMEN_OK);
            ck_assert_int_eq(vfs_sync_dir(v, "/", &err), OMEN_OK);
            ck_assert_int_eq(vfs_replace_file(v, "/d/f", OLD, sizeof OLD, &err), OMEN_OK);
            vfs_sim_stop_at(s, stop);
            enum omen_err rc = vfs_replace_file(v, "/d/f", NEW, sizeof NEW, &err);
            vfs_sim_crash(s, seed);
            uint8_t *data;
            size_t len;
            ck_assert_int_eq(vfs_read_file(v, "/d/f", 100, &data, &len, &err), OMEN_OK);
            bool is_old = len == sizeof OLD && memcmp(data, OLD, len) == 0;
            bool is_new = len == sizeof NEW && memcmp(data, NEW, len) == 0;
            ck_assert_msg(is_old || is_new, "stop %llu seed %llu", (unsigned long long)stop,
                    (unsigned long long)seed);
            ck_assert(rc != OMEN_OK || is_new);
            saw_old |= is_old;
            saw_new |= is_new;
            mem_free(data);
            vfs_sim_free(s);
        }
    ck_assert(saw_old && saw_new);
}
END_TEST

START_TEST(the_same_seed_gives_the_same_crash)
{
    struct vfs_file *f = open_in(vfs, "/d/a", VFS_WRITE | VFS_CREATE);
    ck_assert_int_eq(vfs_sync_dir(vfs, "/d", &err), OMEN_OK);
    for (unsigned i = 0; i < 16; i++) fill(f, (uint8_t)i, 700, i * 500);
    vfs_close(f);
    for (uint64_t seed = 0; seed < 20; seed++) {
        uint8_t one[2 * FILE_BYTES], two[2 * FILE_BYTES];
        struct vfs_sim *first = vfs_sim_after_crash(sim, seed), *second = vfs_sim_after_crash(sim, seed);
        int64_t len = read_back(vfs_sim_vfs(first), "/d/a", one);
        ck_assert_int_eq(len, read_back(vfs_sim_vfs(second), "/d/a", two));
        ck_assert_mem_eq(one, two, (size_t)len);
        vfs_sim_free(first);
        vfs_sim_free(second);
    }
}
END_TEST

START_TEST(handles_from_before_a_crash_change_nothing_after_it)
{
    struct vfs_file *f = open_in(vfs, "/d/a", VFS_WRITE | VFS_CREATE);
    const uint8_t *data;
    uint8_t bytes[2 * FILE_BYTES];
    fill(f, 'o', 100, 0);
    vfs_sim_sync_all(sim);
    ck_assert_int_eq(vfs_map(f, 100, &data, &err), OMEN_OK);
    vfs_sim_crash(sim, 3);
    fill(f, 'x', 100, 0);
    ck_assert_int_eq(vfs_datasync(f, &err), OMEN_OK);
    ck_assert_uint_eq(data[50], 'x'); /* the dying code sees its own file */
    ck_assert_int_eq(read_back(vfs, "/d/a", bytes), 100);
    ck_assert_uint_eq(bytes[50], 'o');
    vfs_unmap(f, data, 100);
    vfs_close(f);
    ck_assert_uint_eq(vfs_sim_counts(sim).open_handles, 0);
}
END_TEST

START_TEST(the_nth_operation_fails_and_only_that)
{
    struct vfs_file *f = open_in(vfs, "/d/a", VFS_WRITE | VFS_CREATE);
    vfs_sim_fail_at(sim, 3, ENOSPC);
    fill(f, 'a', 100, 0);
    ck_assert_int_eq(vfs_datasync(f, &err), OMEN_OK);
    ck_assert_int_eq(vfs_allocate(f, 4096, &err), OMEN_EFULL);
    ck_assert_ptr_nonnull(strstr(err.message, "/d/a"));
    ck_assert_int_eq(vfs_allocate(f, 4096, &err), OMEN_OK);
    vfs_sim_fail_at(sim, 1, EIO);
    struct vfs_file *g;
    ck_assert_int_eq(vfs_open(vfs, "/d/b", VFS_WRITE | VFS_CREATE, &g, &err), OMEN_EIO);
    bool there;
    ck_assert_int_eq(vfs_exists(vfs, "/d/b", &there, &err), OMEN_OK);
    ck_assert(!there);
    vfs_sim_fail_at(sim, 1, EIO);
    ck_assert_int_eq(vfs_rename(vfs, "/d/a", "/d/c", &err), OMEN_EIO);
    vfs_sim_fail_at(sim, 1, EIO);
    ck_assert_int_eq(vfs_sync_dir(vfs, "/d", &err), OMEN_EIO);
    vfs_sim_fail_at(sim, 5, EIO);
    vfs_sim_fail_at(sim, 0, EIO);
    for (int i = 0; i < 10; i++) fill(f, 'b', 10, 0);
    vfs_close(f);
}
END_TEST

START_TEST(a_failed_sync_loses_what_a_second_one_seems_to_save)
{
    int lost = 0;
    for (uint64_t seed = 0; seed < 40; seed++) {
        struct vfs_sim *s = vfs_sim_new(seed);
        struct vfs *v = vfs_sim_vfs(s);
        struct vfs_file *f = open_in(v, "/a", VFS_WRITE | VFS_CREATE);
        vfs_sim_sync_all(s);
        fill(f, 'n', FILE_BYTES, 0);
        vfs_sim_fail_at(s, 1, EIO);
        ck_assert_int_eq(vfs_datasync(f, &err), OMEN_EIO);
        ck_assert_int_eq(vfs_datasync(f, &err), OMEN_OK);
        uint8_t bytes[2 * FILE_BYTES];
        ck_assert_int_eq(read_back(v, "/a", bytes), FILE_BYTES); /* memory still has it */
        ck_assert_uint_eq(bytes[FILE_BYTES - 1], 'n');
        vfs_close(f);
        vfs_sim_crash(s, seed);
        ck_assert_int_eq(read_back(v, "/a", bytes), FILE_BYTES);
        lost += memchr(bytes, 0, FILE_BYTES) != NULL;
        vfs_sim_free(s);
    }
    ck_assert_int_gt(lost, 10);
}
END_TEST

START_TEST(a_stopped_machine_changes_nothing_more)
{
    struct vfs_file *f = open_in(vfs, "/d/a", VFS_WRITE | VFS_CREATE);
    fill(f, 'o', 100, 0);
    vfs_sim_sync_all(sim);
    vfs_sim_stop_at(sim, 1);
    ck_assert_int_eq(vfs_unlink(vfs, "/d/a", &err), OMEN_EIO);
    ck_assert_int_eq(vfs_pwrite(f, "xxx", 3, 0, &err), OMEN_EIO);
    ck_assert_int_eq(vfs_datasync(f, &err), OMEN_EIO);
    ck_assert_int_eq(vfs_truncate(f, 0, &err), OMEN_EIO);
    uint8_t bytes[2 * FILE_BYTES];
    ck_assert_int_eq(read_back(vfs, "/d/a", bytes), 100);
    vfs_close(f);
    vfs_sim_crash(sim, 1);
    ck_assert_int_eq(read_back(vfs, "/d/a", bytes), 100);
    ck_assert_uint_eq(bytes[0], 'o');
    ck_assert_int_eq(vfs_unlink(vfs, "/d/a", &err), OMEN_OK); /* and works again */
}
END_TEST

START_TEST(a_full_disk_refuses_growth_and_takes_it_again_after_deletes)
{
    struct vfs_file *f = open_in(vfs, "/d/a", VFS_WRITE | VFS_CREATE);
    struct vfs_file *g = open_in(vfs, "/d/b", VFS_WRITE | VFS_CREATE);
    uint64_t free_bytes, total_bytes;
    vfs_sim_set_capacity(sim, 3 * 4096);
    ck_assert_int_eq(vfs_allocate(f, 8192, &err), OMEN_OK);
    ck_assert_int_eq(vfs_allocate(g, 8192, &err), OMEN_EFULL);
    ck_assert_int_eq(vfs_pwrite(g, "x", 1, 4096, &err), OMEN_EFULL);
    ck_assert_int_eq(vfs_pwrite(f, "x", 1, 100, &err), OMEN_OK); /* no growth */
    ck_assert_int_eq(vfs_free_space(vfs, "/d", &free_bytes, &total_bytes, &err), OMEN_OK);
    ck_assert_uint_eq(free_bytes, 4096);
    ck_assert_uint_eq(total_bytes, 3 * 4096);
    vfs_close(f);
    ck_assert_int_eq(vfs_unlink(vfs, "/d/a", &err), OMEN_OK);
    ck_assert_int_eq(vfs_allocate(g, 8192, &err), OMEN_OK);
    vfs_close(g);
}
END_TEST

START_TEST(a_flipped_bit_is_read_and_stays_over_a_crash)
{
    struct vfs_file *f = open_in(vfs, "/d/a", VFS_WRITE | VFS_CREATE);
    uint8_t bytes[2 * FILE_BYTES];
    fill(f, 0, 100, 0);
    vfs_close(f);
    vfs_sim_sync_all(sim);
    ck_assert(vfs_sim_flip_bit(sim, "/d/a", 42, 3));
    ck_assert(!vfs_sim_flip_bit(sim, "/d/a", 100, 3));
    ck_assert(!vfs_sim_flip_bit(sim, "/d/none", 0, 0));
    ck_assert_int_eq(read_back(vfs, "/d/a", bytes), 100);
    ck_assert_uint_eq(bytes[42], 8);
    vfs_sim_crash(sim, 9);
    ck_assert_int_eq(read_back(vfs, "/d/a", bytes), 100);
    ck_assert_uint_eq(bytes[42], 8);
}
END_TEST

START_TEST(mappings_do_not_move_while_a_file_grows)
{
    struct vfs_file *f = open_in(vfs, "/d/a", VFS_WRITE | VFS_CREATE);
    const uint8_t *data;
    ck_assert_int_eq(vfs_allocate(f, 20u << 20, &err), OMEN_OK); /* more than is reserved at first */
    ck_assert_int_eq(vfs_map(f, 20u << 20, &data, &err), OMEN_OK);
    fill(f, 'z', 100, (20u << 20) - 100);
    ck_assert_uint_eq(data[(20u << 20) - 1], 'z');
    vfs_unmap(f, data, 20u << 20);
    vfs_close(f);
}
END_TEST

static void *hammer(void *arg)
{
    int id = *(int *)arg;
    char path[32];
    snprintf(path, sizeof path, "/d/t%d", id);
    for (int i = 0; i < 50; i++) {
        struct vfs_file *f = open_in(vfs, path, VFS_WRITE | VFS_CREATE);
        fill(f, (uint8_t)id, 600, (uint64_t)i * 10);
        ck_assert_int_eq(vfs_datasync(f, NULL), OMEN_OK);
        vfs_close(f);
        if (i % 7 == 0) ck_assert_int_eq(vfs_unlink(vfs, path, NULL), OMEN_OK);
    }
    return NULL;
}

START_TEST(threads_do_not_disturb_each_other)
{
    pthread_t threads[4];
    int ids[4];
    for (int i = 0; i < 4; i++) {
        ids[i] = i;
        ck_assert_int_eq(pthread_create(&threads[i], NULL, hammer, &ids[i]), 0);
    }
    for (uint64_t seed = 0; seed < 20; seed++) vfs_sim_free(vfs_sim_after_crash(sim, seed));
    for (int i = 0; i < 4; i++) ck_assert_int_eq(pthread_join(threads[i], NULL), 0);
    ck_assert_uint_eq(vfs_sim_counts(sim).datasyncs, 200);
    ck_assert_uint_eq(vfs_sim_counts(sim).open_handles, 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("vfs_sim");
    TCase *tc = tcase_create("crash");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, synced_bytes_survive_and_others_tear_at_sectors);
    tcase_add_test(tc, an_unsynced_length_is_old_new_or_between);
    tcase_add_test(tc, an_allocated_length_is_durable_after_a_sync);
    tcase_add_test(tc, names_are_durable_only_after_their_directory_was_synced);
    tcase_add_test(tc, a_lost_directory_takes_its_files_with_it);
    tcase_add_test(tc, replace_file_leaves_the_old_or_the_new_at_every_step);
    tcase_add_test(tc, the_same_seed_gives_the_same_crash);
    tcase_add_test(tc, handles_from_before_a_crash_change_nothing_after_it);
    suite_add_tcase(suite, tc);
    tc = tcase_create("faults");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, the_nth_operation_fails_and_only_that);
    tcase_add_test(tc, a_failed_sync_loses_what_a_second_one_seems_to_save);
    tcase_add_test(tc, a_stopped_machine_changes_nothing_more);
    tcase_add_test(tc, a_full_disk_refuses_growth_and_takes_it_again_after_deletes);
    tcase_add_test(tc, a_flipped_bit_is_read_and_stays_over_a_crash);
    tcase_add_test(tc, mappings_do_not_move_while_a_file_grows);
    tcase_add_test(tc, threads_do_not_disturb_each_other);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}
