/* As much of Check as the kernel tests use, for machines that its library is not installed for (`make neon`): every
 * test runs in this process, a failed assertion ends it. Threads: none. */
#ifndef OMEN_TESTS_CROSS_CHECK_H
#define OMEN_TESTS_CROSS_CHECK_H

#include <stdio.h>
#include <stdlib.h>

typedef void test_fn(int _i);
typedef struct suite {
    const char *name;
    int run;
} Suite, TCase, SRunner;
static Suite the_suite;

#define START_TEST(name) static void name(int _i __attribute__((unused)))
#define END_TEST
#define CK_ENV 0
#define CK_FORK 1

#define ck_assert_msg(condition, ...)                                                                        \
    do {                                                                                                     \
        if (condition) break;                                                                                \
        fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition);                                      \
        fprintf(stderr, "" __VA_ARGS__);                                                                     \
        fprintf(stderr, "\n");                                                                               \
        exit(1);                                                                                             \
    } while (0)
#define ck_assert(condition) ck_assert_msg(condition, "failed")
#define ck_assert_uint_eq(a, b) ck_assert_msg((a) == (b), "not equal")
#define ck_assert_int_eq(a, b) ck_assert_msg((a) == (b), "not equal")
#define ck_assert_uint_lt(a, b) ck_assert_msg((a) < (b), "not less")

static inline Suite *suite_create(const char *name)
{
    the_suite.name = name;
    return &the_suite;
}
static inline TCase *tcase_create(const char *name) { return suite_create(name); }
static inline void tcase_set_timeout(TCase *tc, double seconds) { (void)tc, (void)seconds; }
static inline void suite_add_tcase(Suite *suite, TCase *tc) { (void)suite, (void)tc; }
static inline void tcase_add_loop_test(TCase *tc, test_fn *fn, int first, int end)
{
    for (int i = first; i < end; i++, tc->run++) fn(i);
}
static inline void tcase_add_test(TCase *tc, test_fn *fn) { tcase_add_loop_test(tc, fn, 0, 1); }
static inline SRunner *srunner_create(Suite *suite) { return suite; }
static inline void srunner_run_all(SRunner *runner, int mode)
{
    (void)mode;
    printf("%s: %d passed\n", runner->name, runner->run);
}
static inline int srunner_ntests_failed(SRunner *runner)
{
    (void)runner;
    return 0;
}
static inline int srunner_fork_status(SRunner *runner)
{
    (void)runner;
    return 0; /* not CK_FORK */
}
static inline void srunner_free(SRunner *runner) { (void)runner; }

#endif
