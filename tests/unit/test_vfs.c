/* The promises of common/vfs.h, kept alike by the real file system (_i == 0) and the simulated one (_i ==
 * 1). */
#include "common/vfs.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "tests/support/vfs_sim.h"

static struct vfs *vfs;
static struct vfs_sim *sim;
static char root[512];
static struct err err;

static void start(int which)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(root, sizeof root, "%.400s/omen-XXXXXX", tmp == NULL ? "/tmp" : tmp);
    if (which == 0) {
        ck_assert_ptr_nonnull(mkdtemp(root));
        vfs = vfs_posix();
        return;
    }
    snprintf(root, sizeof root, "/omen");
    sim = vfs_sim_new(1);
    vfs = vfs_sim_vfs(sim);
    ck_assert_int_eq(vfs_mkdir(vfs, root, &err), OMEN_OK);
}

static void stop(void)
{
    ck_assert_int_eq(vfs_remove_tree(vfs, root, &err), OMEN_OK);
    if (sim != NULL) {
        ck_assert_uint_eq(vfs_sim_counts(sim).open_handles, 0);
        ck_assert_uint_eq(vfs_sim_counts(sim).open_mappings, 0);
    }
    vfs_sim_free(sim);
    sim = NULL;
}

static const char *at(const char *name)
{
    static char paths[4][600];
    static unsigned next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", root, name);
    return path;
}

static struct vfs_file *must_open(const char *name, int flags)
{
    struct vfs_file *file;
    ck_assert_msg(vfs_open(vfs, at(name), flags, &file, &err) == OMEN_OK, "%s", err.message);
    return file;
}

START_TEST(written_bytes_are_read_back)
{
    start(_i);
    struct vfs_file *f = must_open("a", VFS_WRITE | VFS_CREATE);
    uint8_t back[11] = { 0 };
    ck_assert_int_eq(vfs_pwrite(f, "hello", 5, 0, &err), OMEN_OK);
    ck_assert_int_eq(vfs_pwrite(f, "world", 5, 6, &err), OMEN_OK);
    ck_assert_int_eq(vfs_datasync(f, &err), OMEN_OK);
    vfs_writeback_hint(f, 0, 11);
    ck_assert_int_eq(vfs_pread(f, back, 11, 0, &err), OMEN_OK);
    ck_assert_mem_eq(back, "hello\0world", 11);
    uint64_t len;
    ck_assert_int_eq(vfs_size(f, &len, &err), OMEN_OK);
    ck_assert_uint_eq(len, 11);
    vfs_close(f);
    vfs_close(NULL);
    stop();
}
END_TEST

START_TEST(a_vector_of_many_pieces_is_written_in_order)
{
    enum { PIECES = 200 }; /* more than one system call takes */
    start(_i);
    struct vfs_file *f = must_open("a", VFS_WRITE | VFS_CREATE);
    uint8_t bytes[PIECES * 3], back[sizeof bytes];
    struct iovec iov[PIECES];
    size_t offset = 0;
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (uint8_t)(i * 7);
    for (int i = 0; i < PIECES; i++) {
        iov[i] = (struct iovec){ .iov_base = bytes + offset, .iov_len = (size_t)(i % 7) };
        offset += iov[i].iov_len;
    }
    ck_assert_uint_le(offset, sizeof bytes);
    ck_assert_int_eq(vfs_pwritev(f, iov, PIECES, 5, &err), OMEN_OK);
    ck_assert_int_eq(vfs_pread(f, back, offset, 5, &err), OMEN_OK);
    ck_assert_mem_eq(back, bytes, offset);
    ck_assert_int_eq(vfs_pwritev(f, iov, 0, 5, &err), OMEN_OK);
    vfs_close(f);
    stop();
}
END_TEST

START_TEST(reading_past_the_end_fails_and_names_the_file)
{
    start(_i);
    struct vfs_file *f = must_open("short", VFS_WRITE | VFS_CREATE);
    uint8_t back[8];
    ck_assert_int_eq(vfs_pwrite(f, "1234", 4, 0, &err), OMEN_OK);
    ck_assert_int_eq(vfs_pread(f, back, 5, 0, &err), OMEN_EIO);
    ck_assert_ptr_nonnull(strstr(err.message, "/short"));
    ck_assert_int_eq(vfs_pread(f, back, 1, 1000000, &err), OMEN_EIO);
    ck_assert_int_eq(vfs_pread(f, back, 0, 1000000, &err), OMEN_OK);
    ck_assert_int_eq(vfs_pread(f, back, 4, 0, NULL), OMEN_OK);
    vfs_close(f);
    stop();
}
END_TEST

/* More reads than may be in flight, of all lengths; then past the page cache. */
START_TEST(a_batch_reads_what_single_reads_do)
{
    start(_i);
    enum { BYTES = 1 << 20, READS = 100 };
    uint8_t *bytes = mem_must_alloc(BYTES), *back = mem_alloc_aligned(VFS_DIRECT_ALIGN, BYTES);
    for (uint32_t i = 0; i < BYTES; i++) bytes[i] = (uint8_t)(i * 2654435761u >> 24);
    struct vfs_file *f = must_open("a", VFS_WRITE | VFS_CREATE);
    ck_assert_int_eq(vfs_pwrite(f, bytes, BYTES, 0, &err), OMEN_OK);
    ck_assert_int_eq(vfs_datasync(f, &err), OMEN_OK);
    struct vfs_batch *batch = vfs_batch_new(vfs, 16);
    struct vfs_read reads[READS];
    for (uint32_t i = 0, used = 0; i < READS; i++) {
        size_t len = 1 + i * 37 % 9000;
        reads[i] = (struct vfs_read){ back + used, len, (uint64_t)(i * 7919u % (BYTES - 9001)) };
        used += (uint32_t)len;
    }
    ck_assert_int_eq(vfs_read_batch(batch, f, reads, READS, &err), OMEN_OK);
    for (uint32_t i = 0; i < READS; i++)
        ck_assert_mem_eq(reads[i].dst, bytes + reads[i].offset, reads[i].len);
    ck_assert_int_eq(vfs_read_batch(batch, f, reads, 0, &err), OMEN_OK);
    reads[7].offset = BYTES - 3; /* the file ends inside it */
    ck_assert_int_eq(vfs_read_batch(batch, f, reads, READS, &err), OMEN_EIO);
    ck_assert_ptr_nonnull(strstr(err.message, "/a"));
    vfs_close(f);
    f = must_open("a", VFS_READ | VFS_DIRECT);
    memset(back, 0, BYTES);
    for (uint32_t i = 0; i < 50; i++)
        reads[i] = (struct vfs_read){ back + i * 4096, 4096, (uint64_t)(i * 17 % 256) * 4096 };
    ck_assert_int_eq(vfs_read_batch(batch, f, reads, 50, &err), OMEN_OK);
    for (uint32_t i = 0; i < 50; i++) ck_assert_mem_eq(reads[i].dst, bytes + reads[i].offset, 4096);
    vfs_close(f);
    vfs_batch_free(batch);
    vfs_batch_free(NULL);
    mem_free(bytes);
    mem_free(back);
    stop();
}
END_TEST

START_TEST(open_flags_mean_what_they_say)
{
    start(_i);
    struct vfs_file *f;
    ck_assert_int_eq(vfs_open(vfs, at("none"), VFS_READ, &f, &err), OMEN_ENOTFOUND);
    ck_assert_int_eq(err.code, OMEN_ENOTFOUND);
    ck_assert_ptr_null(f);
    ck_assert_int_eq(vfs_open(vfs, at("no/such/dir"), VFS_WRITE | VFS_CREATE, &f, &err), OMEN_ENOTFOUND);
    f = must_open("a", VFS_WRITE | VFS_CREATE | VFS_EXCLUSIVE);
    ck_assert_int_eq(vfs_pwrite(f, "x", 1, 0, &err), OMEN_OK);
    vfs_close(f);
    ck_assert_int_eq(vfs_open(vfs, at("a"), VFS_WRITE | VFS_CREATE | VFS_EXCLUSIVE, &f, &err), OMEN_EEXISTS);
    ck_assert_int_eq(err.code, OMEN_EEXISTS);
    f = must_open("a", VFS_READ);
    ck_assert_int_ne(vfs_pwrite(f, "y", 1, 0, &err), OMEN_OK);
    vfs_close(f);
    f = must_open("a", VFS_WRITE | VFS_CREATE); /* creating does not truncate */
    uint64_t len;
    ck_assert_int_eq(vfs_size(f, &len, &err), OMEN_OK);
    ck_assert_uint_eq(len, 1);
    vfs_close(f);
    ck_assert_int_eq(vfs_open(vfs, root, VFS_WRITE, &f, &err), OMEN_EIO);
    stop();
}
END_TEST

START_TEST(allocated_and_cut_bytes_read_as_zeros)
{
    start(_i);
    struct vfs_file *f = must_open("a", VFS_WRITE | VFS_CREATE);
    uint8_t back[8192], zeros[8192] = { 0 };
    uint64_t len;
    memset(back, 0xee, sizeof back);
    ck_assert_int_eq(vfs_allocate(f, 8192, &err), OMEN_OK);
    ck_assert_int_eq(vfs_pread(f, back, 8192, 0, &err), OMEN_OK);
    ck_assert_mem_eq(back, zeros, 8192);
    memset(back, 0xee, sizeof back);
    ck_assert_int_eq(vfs_pwrite(f, back, 8192, 0, &err), OMEN_OK);
    ck_assert_int_eq(vfs_allocate(f, 4096, &err), OMEN_OK); /* never shrinks, never clears */
    ck_assert_int_eq(vfs_allocate(f, 0, &err), OMEN_OK);
    ck_assert_int_eq(vfs_truncate(f, 100, &err), OMEN_OK);
    ck_assert_int_eq(vfs_truncate(f, 8192, &err), OMEN_OK);
    ck_assert_int_eq(vfs_size(f, &len, &err), OMEN_OK);
    ck_assert_uint_eq(len, 8192);
    ck_assert_int_eq(vfs_pread(f, back, 8192, 0, &err), OMEN_OK);
    ck_assert_uint_eq(back[99], 0xee);
    ck_assert_mem_eq(back + 100, zeros, 8092);
    vfs_close(f);
    stop();
}
END_TEST

START_TEST(a_mapping_shows_later_writes)
{
    start(_i);
    struct vfs_file *f = must_open("a", VFS_WRITE | VFS_CREATE);
    const uint8_t *data, *more;
    ck_assert_int_eq(vfs_map(f, 1, &data, &err), OMEN_EIO); /* nothing there yet */
    ck_assert_int_eq(vfs_allocate(f, 65536, &err), OMEN_OK);
    ck_assert_int_eq(vfs_map(f, 65537, &data, &err), OMEN_EIO);
    ck_assert_ptr_null(data);
    ck_assert_int_eq(vfs_map(f, 0, &data, &err), OMEN_EIO);
    ck_assert_int_eq(vfs_map(f, 65536, &data, &err), OMEN_OK);
    ck_assert_int_eq(vfs_map(f, 4096, &more, &err), OMEN_OK);
    ck_assert_uint_eq((uintptr_t)data % 4096, 0);
    ck_assert_int_eq(vfs_pwrite(f, "late", 4, 5000, &err), OMEN_OK);
    ck_assert_int_eq(vfs_pwrite(f, "soon", 4, 10, &err), OMEN_OK);
    ck_assert_mem_eq(data + 5000, "late", 4);
    ck_assert_mem_eq(more + 10, "soon", 4);
    vfs_unmap(f, more, 4096);
    ck_assert_int_eq(vfs_unlink(vfs, at("a"), &err), OMEN_OK); /* an unlinked file lives while it is open */
    ck_assert_mem_eq(data + 5000, "late", 4);
    vfs_unmap(f, data, 65536);
    vfs_close(f);
    stop();
}
END_TEST

struct names {
    int count, stop_after;
    bool saw_a, saw_b;
};

static bool note_name(void *arg, const char *name)
{
    struct names *names = arg;
    names->count++;
    if (strcmp(name, "a") == 0) names->saw_a = true;
    if (strcmp(name, "b") == 0) names->saw_b = true;
    return names->count != names->stop_after;
}

START_TEST(names_come_move_and_go)
{
    start(_i);
    bool there;
    vfs_close(must_open("a", VFS_WRITE | VFS_CREATE));
    ck_assert_int_eq(vfs_mkdir(vfs, at("b"), &err), OMEN_OK);
    ck_assert_int_eq(vfs_mkdir(vfs, at("b"), &err), OMEN_OK); /* fine when it is there */
    ck_assert_int_eq(vfs_mkdir(vfs, at("a"), &err), OMEN_EEXISTS);
    ck_assert_int_eq(vfs_mkdir(vfs, at("x/y"), &err), OMEN_ENOTFOUND);
    struct names names = { 0 };
    ck_assert_int_eq(vfs_list(vfs, root, note_name, &names, &err), OMEN_OK);
    ck_assert_int_eq(names.count, 2);
    ck_assert(names.saw_a && names.saw_b);
    names = (struct names){ .stop_after = 1 };
    ck_assert_int_eq(vfs_list(vfs, root, note_name, &names, &err), OMEN_OK);
    ck_assert_int_eq(names.count, 1);
    ck_assert_int_eq(vfs_list(vfs, at("x"), note_name, &names, &err), OMEN_ENOTFOUND);

    ck_assert_int_eq(vfs_rename(vfs, at("a"), at("b/c"), &err), OMEN_OK);
    ck_assert_int_eq(vfs_rename(vfs, at("a"), at("z"), &err), OMEN_ENOTFOUND);
    ck_assert_int_eq(vfs_exists(vfs, at("a"), &there, &err), OMEN_OK);
    ck_assert(!there);
    ck_assert_int_eq(vfs_exists(vfs, at("b/c"), &there, &err), OMEN_OK);
    ck_assert(there);
    ck_assert_int_eq(vfs_exists(vfs, at("b/c/below"), &there, &err), OMEN_OK);
    ck_assert(!there);
    ck_assert_int_eq(vfs_rename(vfs, at("b"), at("d"), &err), OMEN_OK); /* a directory with all in it */
    ck_assert_int_eq(vfs_exists(vfs, at("d/c"), &there, &err), OMEN_OK);
    ck_assert(there);
    ck_assert_int_eq(vfs_sync_dir(vfs, at("d"), &err), OMEN_OK);
    ck_assert_int_eq(vfs_sync_dir(vfs, at("none"), &err), OMEN_ENOTFOUND);

    ck_assert_int_eq(vfs_rmdir(vfs, at("d"), &err), OMEN_EIO);  /* not empty */
    ck_assert_int_eq(vfs_unlink(vfs, at("d"), &err), OMEN_EIO); /* a directory */
    ck_assert_int_eq(vfs_unlink(vfs, at("d/c"), &err), OMEN_OK);
    ck_assert_int_eq(vfs_unlink(vfs, at("d/c"), &err), OMEN_ENOTFOUND);
    ck_assert_int_eq(vfs_rmdir(vfs, at("d"), &err), OMEN_OK);
    ck_assert_int_eq(vfs_rmdir(vfs, at("d"), &err), OMEN_ENOTFOUND);
    stop();
}
END_TEST

START_TEST(rename_replaces_a_file)
{
    start(_i);
    for (int i = 0; i < 2; i++) {
        struct vfs_file *f = must_open(i == 0 ? "old" : "new", VFS_WRITE | VFS_CREATE);
        ck_assert_int_eq(vfs_pwrite(f, i == 0 ? "o" : "n", 1, 0, &err), OMEN_OK);
        vfs_close(f);
    }
    struct vfs_file *f = must_open("old", VFS_READ);
    uint8_t c;
    ck_assert_int_eq(vfs_rename(vfs, at("new"), at("old"), &err), OMEN_OK);
    ck_assert_int_eq(vfs_pread(f, &c, 1, 0, &err), OMEN_OK);
    ck_assert_uint_eq(c, 'o'); /* the handle stays with its file */
    vfs_close(f);
    f = must_open("old", VFS_READ);
    ck_assert_int_eq(vfs_pread(f, &c, 1, 0, &err), OMEN_OK);
    ck_assert_uint_eq(c, 'n');
    vfs_close(f);
    stop();
}
END_TEST

START_TEST(replaced_files_are_read_whole)
{
    start(_i);
    uint8_t *data;
    size_t len;
    bool there;
    ck_assert_int_eq(vfs_read_file(vfs, at("f"), 100, &data, &len, &err), OMEN_ENOTFOUND);
    ck_assert_int_eq(vfs_replace_file(vfs, at("f"), "a longer text", 13, &err), OMEN_OK);
    ck_assert_int_eq(vfs_replace_file(vfs, at("f"), "short", 5, &err), OMEN_OK);
    ck_assert_int_eq(vfs_read_file(vfs, at("f"), 5, &data, &len, &err), OMEN_OK);
    ck_assert_uint_eq(len, 5);
    ck_assert_mem_eq(data, "short", 5);
    mem_free(data);
    ck_assert_int_eq(vfs_read_file(vfs, at("f"), 4, &data, &len, &err), OMEN_ETOOBIG);
    ck_assert_ptr_null(data);
    ck_assert_int_eq(vfs_exists(vfs, at("f.tmp"), &there, &err), OMEN_OK);
    ck_assert(!there);
    ck_assert_int_eq(vfs_replace_file(vfs, at("f"), NULL, 0, &err), OMEN_OK);
    ck_assert_int_eq(vfs_read_file(vfs, at("f"), 4, &data, &len, &err), OMEN_OK);
    ck_assert_uint_eq(len, 0);
    mem_free(data);
    ck_assert_int_eq(vfs_replace_file(vfs, at("no/f"), "x", 1, &err), OMEN_ENOTFOUND);
    stop();
}
END_TEST

START_TEST(a_tree_is_removed_whole)
{
    start(_i);
    char path[700];
    snprintf(path, sizeof path, "%s/tree", root);
    for (int depth = 0; depth < 10; depth++) {
        ck_assert_int_eq(vfs_mkdir(vfs, path, &err), OMEN_OK);
        size_t len = strlen(path);
        for (int i = 0; i < 3; i++) {
            struct vfs_file *f;
            snprintf(path + len, sizeof path - len, "/file%d", i);
            ck_assert_int_eq(vfs_open(vfs, path, VFS_WRITE | VFS_CREATE, &f, &err), OMEN_OK);
            vfs_close(f);
        }
        snprintf(path + len, sizeof path - len, "/d");
    }
    err_clear(&err);
    ck_assert_int_eq(vfs_remove_tree(vfs, at("tree"), &err), OMEN_OK);
    ck_assert_str_eq(err.message, "");
    bool there;
    ck_assert_int_eq(vfs_exists(vfs, at("tree"), &there, &err), OMEN_OK);
    ck_assert(!there);
    ck_assert_int_eq(vfs_remove_tree(vfs, at("tree"), &err), OMEN_OK); /* missing is fine */
    stop();
}
END_TEST

START_TEST(free_space_is_below_the_total)
{
    start(_i);
    uint64_t free_bytes, total_bytes;
    ck_assert_int_eq(vfs_free_space(vfs, root, &free_bytes, &total_bytes, &err), OMEN_OK);
    ck_assert_uint_gt(total_bytes, 0);
    ck_assert_uint_le(free_bytes, total_bytes);
    stop();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("vfs");
    TCase *tc = tcase_create("posix and simulated");
    tcase_add_loop_test(tc, written_bytes_are_read_back, 0, 2);
    tcase_add_loop_test(tc, a_vector_of_many_pieces_is_written_in_order, 0, 2);
    tcase_add_loop_test(tc, reading_past_the_end_fails_and_names_the_file, 0, 2);
    tcase_add_loop_test(tc, a_batch_reads_what_single_reads_do, 0, 2);
    tcase_add_loop_test(tc, open_flags_mean_what_they_say, 0, 2);
    tcase_add_loop_test(tc, allocated_and_cut_bytes_read_as_zeros, 0, 2);
    tcase_add_loop_test(tc, a_mapping_shows_later_writes, 0, 2);
    tcase_add_loop_test(tc, names_come_move_and_go, 0, 2);
    tcase_add_loop_test(tc, rename_replaces_a_file, 0, 2);
    tcase_add_loop_test(tc, replaced_files_are_read_whole, 0, 2);
    tcase_add_loop_test(tc, a_tree_is_removed_whole, 0, 2);
    tcase_add_loop_test(tc, free_space_is_below_the_total, 0, 2);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}
