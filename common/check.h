/* CHECK: an invariant of our own code, tested in every build. A failure is a bug of ours: it prints file,
 * line, expression and a backtrace, then aborts. Never use it on bytes from disk or network (return
 * OMEN_ECORRUPT or OMEN_EPROTO there), nor for what a caller may get wrong (OMEN_EINVAL). One property per
 * CHECK. */
#ifndef OMEN_COMMON_CHECK_H
#define OMEN_COMMON_CHECK_H

#define CHECK(expr)                                                                                          \
    do {                                                                                                     \
        if (__builtin_expect(!(expr), 0)) check_failed(__FILE__, __LINE__, #expr);                           \
    } while (0)

_Noreturn void check_failed(const char *file, int line, const char *expr);

/* Like CHECK for what cannot be gone on with for a reason outside our code (a failed fsync, C2): the
 * sentence is printed with the backtrace. */
_Noreturn void panic(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
