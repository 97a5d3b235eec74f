/* Memory: alignment, limits that hold, failures that stick and leave what was there usable; and CHECK's
 * last words. */
#include "common/mem.h"

#include <check.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/clock.h"
#include "common/version.h"

static struct arena arena;

static void teardown(void)
{
    mem_fail_at(0);
    arena_fini(&arena);
}

START_TEST(allocations_of_all_kinds_are_freed_alike)
{
    for (size_t alignment = 1; alignment <= 4096; alignment *= 2) {
        uint8_t *p = mem_alloc_aligned(alignment, 100);
        ck_assert_ptr_nonnull(p);
        ck_assert_uint_eq((uintptr_t)p % alignment, 0);
        memset(p, 1, 100);
        mem_free(p);
    }
    uint8_t *p = mem_calloc(10, 10);
    for (int i = 0; i < 100; i++) ck_assert_uint_eq(p[i], 0);
    p = mem_realloc(p, 1000);
    ck_assert_ptr_nonnull(p);
    mem_free(p);
    ck_assert_ptr_null(mem_calloc(SIZE_MAX / 2, 3)); /* overflow is a failure, not a small block */
    void *empty = mem_alloc(0);
    ck_assert_ptr_nonnull(empty); /* NULL means out of memory and nothing else */
    mem_free(empty);
    mem_free(NULL);
    char *s = mem_must_strdup("omen");
    ck_assert_str_eq(s, "omen");
    mem_free(s);
}
END_TEST

START_TEST(the_nth_allocation_fails_once)
{
    mem_fail_at(3);
    void *a = mem_alloc(1), *b = mem_calloc(1, 1), *c = mem_alloc(1), *d = mem_alloc(1);
    ck_assert(a != NULL && b != NULL && c == NULL && d != NULL);
    mem_fail_at(1);
    void *e = mem_must_alloc(1); /* not counted: it could only panic */
    ck_assert_ptr_null(mem_alloc(1));
    mem_free(a);
    mem_free(b);
    mem_free(d);
    mem_free(e);
}
END_TEST

START_TEST(arena_memory_is_aligned_and_disjoint)
{
    enum { COUNT = 500 };
    struct {
        uint8_t *p;
        size_t len;
    } got[COUNT];
    arena_init(&arena, 256, 0);
    for (size_t i = 0; i < COUNT; i++) {
        size_t alignment = (size_t)1 << (i % 9);
        got[i].len = i * 37 % 700;
        got[i].p = arena_alloc_aligned(&arena, alignment, got[i].len);
        ck_assert_ptr_nonnull(got[i].p);
        ck_assert_uint_eq((uintptr_t)got[i].p % (alignment < 16 ? 16 : alignment), 0);
        memset(got[i].p, (int)(i & 0xff), got[i].len);
    }
    for (size_t i = 0; i < COUNT; i++)
        for (size_t k = 0; k < got[i].len; k++)
            if (got[i].p[k] != (i & 0xff)) ck_abort_msg("allocation %zu was overwritten", i);
    ck_assert_uint_le(arena.used_bytes, arena.reserved_bytes);
}
END_TEST

START_TEST(arena_limit_holds_and_leaves_it_usable)
{
    arena_init(&arena, 1024, 64 * 1024);
    uint64_t total = 0;
    while (arena_alloc(&arena, 1000) != NULL) total += 1000;
    ck_assert_uint_le(arena.reserved_bytes, 64 * 1024);
    ck_assert_uint_ge(total, 48 * 1024); /* growth gives way at the limit: most of it is usable */
    ck_assert_ptr_null(arena_alloc(&arena, SIZE_MAX));
    ck_assert_ptr_null(arena_alloc(&arena, SIZE_MAX - 100));
    ck_assert_ptr_null(arena_alloc_aligned(&arena, 4096, SIZE_MAX / 2));
    ck_assert_ptr_null(arena_calloc(&arena, SIZE_MAX / 2, 4));
    ck_assert_ptr_null(arena_strdup(&arena, "x", SIZE_MAX));
    arena_reset(&arena);
    ck_assert_ptr_nonnull(arena_alloc(&arena, 1000));
}
END_TEST

START_TEST(arena_reset_keeps_the_largest_block_and_forgets_the_rest)
{
    arena_init(&arena, 256, 0);
    for (int i = 0; i < 100; i++) ck_assert_ptr_nonnull(arena_alloc(&arena, 500));
    ck_assert_ptr_nonnull(arena_alloc(&arena, 100000));
    ck_assert_ptr_nonnull(arena_alloc(&arena, 10));
    size_t before = arena.reserved_bytes;
    arena_reset(&arena);
    ck_assert_uint_eq(arena.used_bytes, 0);
    ck_assert_uint_lt(arena.reserved_bytes, before);
    ck_assert_uint_ge(arena.reserved_bytes, 100000);
    size_t kept = arena.reserved_bytes;
    ck_assert_ptr_nonnull(arena_alloc(&arena, 90000));
    ck_assert_uint_eq(arena.reserved_bytes, kept); /* served from what was kept */
    arena_fini(&arena);
    arena_reset(&arena); /* of an empty one */
}
END_TEST

START_TEST(arena_copies_are_copies)
{
    arena_init(&arena, 0, 0);
    char text[] = "name and more";
    char *s = arena_strdup(&arena, text, 4);
    uint32_t *zeros = arena_calloc(&arena, 8, 4), *copy = arena_copy(&arena, text, 8);
    ck_assert_str_eq(s, "name");
    for (int i = 0; i < 8; i++) ck_assert_uint_eq(zeros[i], 0);
    ck_assert_mem_eq(copy, text, 8);
    ck_assert_ptr_nonnull(arena_alloc(&arena, 0));
    ck_assert_ptr_nonnull(arena_copy(&arena, NULL, 0));
    ck_assert_str_eq(arena_strdup(&arena, NULL, 0), "");
}
END_TEST

START_TEST(arena_says_when_memory_is_out)
{
    arena_init(&arena, 256, 0);
    mem_fail_at(1);
    ck_assert_ptr_null(arena_alloc(&arena, 10));
    ck_assert_ptr_nonnull(arena_alloc(&arena, 10));
}
END_TEST

START_TEST(buf_holds_what_was_appended)
{
    struct buf buf;
    char expected[5000];
    size_t len = 0;
    buf_init(&buf);
    buf_append(&buf, NULL, 0);
    for (int i = 0; i < 500; i++) {
        len += (size_t)sprintf(expected + len, "%d,", i);
        buf_printf(&buf, "%d,", i);
    }
    ck_assert_uint_eq(buf.len, len);
    ck_assert_mem_eq(buf.data, expected, len);
    buf_append_zero(&buf, 3);
    ck_assert_uint_eq(buf.data[len + 2], 0);
    char *room = buf_reserve(&buf, 10000);
    ck_assert_ptr_nonnull(room);
    memset(room, 'r', 10000);
    ck_assert_uint_eq(buf.len, len + 3); /* reserved is not yet counted */
    buf_clear(&buf);
    ck_assert_uint_eq(buf.len, 0);
    char big[3000];
    memset(big, 'b', sizeof big);
    big[2999] = '\0';
    buf_printf(&buf, "%s|", big);
    ck_assert_uint_eq(buf.len, 3000);
    buf_fini(&buf);
    ck_assert_ptr_null(buf.data);
}
END_TEST

START_TEST(buf_failure_sticks_until_cleared)
{
    struct buf buf;
    buf_init(&buf);
    buf_append(&buf, "abc", 3);
    mem_fail_at(1);
    ck_assert_ptr_null(buf_reserve(&buf, 100000));
    ck_assert(buf.failed);
    buf_append(&buf, "d", 1);
    buf_printf(&buf, "e");
    buf_append_zero(&buf, 1);
    ck_assert_uint_eq(buf.len, 3);
    buf_clear(&buf);
    buf_append(&buf, "x", 1);
    ck_assert(!buf.failed && buf.len == 1);
    ck_assert_ptr_null(buf_reserve(&buf, SIZE_MAX));
    ck_assert(buf.failed);
    buf_fini(&buf);
}
END_TEST

START_TEST(bytes_are_little_endian_and_ranges_do_not_wrap)
{
    uint8_t b[8];
    store_u32(b, 0x01020304);
    ck_assert_uint_eq(b[0], 4);
    store_u64_be(b, 0x0102030405060708u);
    ck_assert_uint_eq(b[0], 1);
    ck_assert_uint_eq(load_u64_be(b), 0x0102030405060708u);
    ck_assert_uint_eq(align_up(1, 64), 64);
    ck_assert_uint_eq(align_up(64, 64), 64);
    ck_assert(range_fits(10, 90, 100) && !range_fits(11, 90, 100) && !range_fits(101, 0, 100));
    ck_assert(!range_fits(UINT64_MAX, 2, 100) && !range_fits(2, UINT64_MAX, 100));
}
END_TEST

/* Runs `die` in a child; its standard error goes to `text`. */
static void last_words(void (*die)(void), char text[8192])
{
    int ends[2], status;
    size_t len = 0;
    ck_assert_int_eq(pipe(ends), 0);
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        signal(SIGABRT, SIG_DFL);
        die();
        _exit(0);
    }
    close(ends[1]);
    for (ssize_t n; len < 8191 && (n = read(ends[0], text + len, 8191 - len)) > 0;) len += (size_t)n;
    text[len] = '\0';
    close(ends[0]);
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

static void die_of_check(void) { CHECK(1 + 1 == 3); }
static void die_of_panic(void) { panic("fsync of %s failed", "/data/log"); }

START_TEST(a_failed_check_says_where_and_aborts)
{
    char text[8192];
    last_words(die_of_check, text);
    ck_assert_ptr_nonnull(strstr(text, "tests/unit/test_mem.c:"));
    ck_assert_ptr_nonnull(strstr(text, "CHECK failed: 1 + 1 == 3\n"));
    ck_assert_ptr_nonnull(strstr(text, "[0x")); /* frames */
    last_words(die_of_panic, text);
    ck_assert_ptr_nonnull(strstr(text, "panic: fsync of /data/log failed\n"));
}
END_TEST

START_TEST(clocks_go_forward_and_the_version_is_known)
{
    uint64_t a = clock_monotonic_ns(clock_system()), b = clock_monotonic_ns(clock_system());
    ck_assert_uint_le(a, b);
    ck_assert_uint_gt(clock_wall_ms(clock_system()), 1700000000000u);
    ck_assert_uint_gt(strlen(version_commit()), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("mem");
    TCase *tc = tcase_create("mem");
    tcase_add_checked_fixture(tc, NULL, teardown);
    tcase_add_test(tc, allocations_of_all_kinds_are_freed_alike);
    tcase_add_test(tc, the_nth_allocation_fails_once);
    tcase_add_test(tc, arena_memory_is_aligned_and_disjoint);
    tcase_add_test(tc, arena_limit_holds_and_leaves_it_usable);
    tcase_add_test(tc, arena_reset_keeps_the_largest_block_and_forgets_the_rest);
    tcase_add_test(tc, arena_copies_are_copies);
    tcase_add_test(tc, arena_says_when_memory_is_out);
    tcase_add_test(tc, buf_holds_what_was_appended);
    tcase_add_test(tc, buf_failure_sticks_until_cleared);
    suite_add_tcase(suite, tc);
    tc = tcase_create("bytes, check, clock");
    tcase_add_test(tc, bytes_are_little_endian_and_ranges_do_not_wrap);
    tcase_add_test(tc, a_failed_check_says_where_and_aborts);
    tcase_add_test(tc, clocks_go_forward_and_the_version_is_known);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}
