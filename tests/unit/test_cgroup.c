/* Limits of cgroups: both versions, the groups above, containers, and what is none. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/vfs.h"
#include "node/cgroup.h"

static char dir[256];

static void setup(void)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%s/omen-XXXXXX", tmp != NULL ? tmp : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(dir));
}

static void teardown(void) { ck_assert_int_eq(vfs_remove_tree(vfs_posix(), dir, NULL), OMEN_OK); }

/* A file under `dir`, with the directories above it. */
static void put(const char *name, const char *text)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    for (char *at = path + strlen(dir) + 1; (at = strchr(at, '/')) != NULL; at++) {
        *at = '\0';
        (void)mkdir(path, 0700);
        *at = '/';
    }
    FILE *f = fopen(path, "we");
    ck_assert_ptr_nonnull(f);
    ck_assert_int_ge(fputs(text, f), 0);
    ck_assert_int_eq(fclose(f), 0);
}

static uint64_t limit(const char *membership)
{
    char path[512], root[512];
    if (membership != NULL) put("self", membership);
    snprintf(path, sizeof path, "%s/self", dir);
    snprintf(root, sizeof root, "%s/cg", dir);
    return cgroup_memory_max(path, root);
}

START_TEST(the_narrowest_limit_on_the_way_up_counts)
{
    ck_assert_uint_eq(limit(NULL), UINT64_MAX); /* nothing there at all */
    put("cg/a/b/memory.max", "max\n");
    ck_assert_uint_eq(limit("0::/a/b\n"), UINT64_MAX);
    put("cg/a/memory.max", "1000000\n");
    ck_assert_uint_eq(limit("0::/a/b\n"), 1000000);
    put("cg/a/b/memory.max", "2000000\n");
    ck_assert_uint_eq(limit("0::/a/b\n"), 1000000);
    put("cg/a/b/memory.max", "500000\n");
    ck_assert_uint_eq(limit("0::/a/b\n"), 500000);
    ck_assert_uint_eq(limit("0::/a\n"), 1000000);
    ck_assert_uint_eq(limit("0::/\n"), UINT64_MAX);
}
END_TEST

START_TEST(version_1_has_a_tree_of_its_own)
{
    put("cg/memory/docker/x/memory.limit_in_bytes", "3000000\n");
    put("cg/memory/memory.limit_in_bytes", "9223372036854771712\n");
    const char *in = "12:cpuset:/\n5:memory:/docker/x\n1:name=systemd:/docker/x\n0::/\n";
    ck_assert_uint_eq(limit(in), 3000000);
    ck_assert_uint_eq(limit("5:cpu,memory,io:/docker/x\n"), 3000000);
    ck_assert_uint_eq(limit("5:cpu,memoryish:/docker/x\n"), UINT64_MAX);
    ck_assert_uint_eq(limit("5:memory:/\n"), 9223372036854771712ull);
}
END_TEST

/* Its own group is the root of what it sees, whatever the system calls it outside. */
START_TEST(a_container_sees_its_limit_at_the_root)
{
    put("cg/memory.max", "4000000\n");
    ck_assert_uint_eq(limit("0::/\n"), 4000000);
    ck_assert_uint_eq(limit("0::/system.slice/not-seen-here\n"), 4000000);
    put("cg/memory/memory.limit_in_bytes", "3000000\n");
    ck_assert_uint_eq(limit("7:memory:/docker/not-seen-here\n"), 3000000);
}
END_TEST

START_TEST(what_is_no_limit_is_passed_over)
{
    put("cg/a/memory.max", "0\n");
    put("cg/memory.max", "many\n");
    ck_assert_uint_eq(limit("0::/a\n"), UINT64_MAX);
    ck_assert_uint_eq(limit("\n"), UINT64_MAX);
    ck_assert_uint_eq(limit("0:\n"), UINT64_MAX);
    ck_assert_uint_eq(limit("nonsense"), UINT64_MAX);
    ck_assert_uint_eq(limit(""), UINT64_MAX);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("cgroup");
    TCase *tcase = tcase_create("cgroup");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, the_narrowest_limit_on_the_way_up_counts);
    tcase_add_test(tcase, version_1_has_a_tree_of_its_own);
    tcase_add_test(tcase, a_container_sees_its_limit_at_the_root);
    tcase_add_test(tcase, what_is_no_limit_is_passed_over);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}
