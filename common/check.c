/* The end of a process that must not go on: sentence, backtrace, abort (so that a core is left).
 * Threads: any; two at once may mix their lines. Uses no heap of ours and no stdio buffer: the heap may be
 * what broke. */
#include "common/check.h"

#include <execinfo.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FRAMES_MAX 64
#define SENTENCE_BYTES 1024

static void write_stderr(const char *text, size_t len)
{
    while (len > 0) {
        ssize_t n = write(STDERR_FILENO, text, len);
        if (n <= 0) return; /* nowhere left to complain */
        text += n;
        len -= (size_t)n;
    }
}

_Noreturn static void die(const char *sentence)
{
    write_stderr(sentence, strlen(sentence));
    write_stderr("\n", 1);
    void *frames[FRAMES_MAX];
    int frame_count = backtrace(frames, FRAMES_MAX);
    backtrace_symbols_fd(frames, frame_count, STDERR_FILENO);
    abort();
}

_Noreturn void check_failed(const char *file, int line, const char *expr)
{
    char sentence[SENTENCE_BYTES];
    snprintf(sentence, sizeof sentence, "%s:%d: CHECK failed: %s", file, line, expr);
    die(sentence);
}

_Noreturn void panic(const char *fmt, ...)
{
    char sentence[SENTENCE_BYTES] = "panic: ";
    size_t len = strlen(sentence);
    va_list args;
    va_start(args, fmt);
    vsnprintf(sentence + len, sizeof sentence - len, fmt, args);
    va_end(args);
    die(sentence);
}
