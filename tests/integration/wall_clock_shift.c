/* Preloaded (LD_PRELOAD) into a real process, this shifts its wall clock by the nanoseconds in the first eight bytes of
 * the file OMEN_TEST_WALL_SHIFT, which a test may change at any time: a step, as by ntp or by hand. No other clock. */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *shift;

__attribute__((constructor)) static void shift_open(void)
{
    const char *path = getenv("OMEN_TEST_WALL_SHIFT");
    int fd = path == NULL ? -1 : open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    void *at = mmap(NULL, sizeof *shift, PROT_READ, MAP_SHARED, fd, 0);
    if (at != MAP_FAILED) shift = at;
    close(fd);
}

int clock_gettime(clockid_t id, struct timespec *t)
{
    int rc = (int)syscall(SYS_clock_gettime, id, t);
    if (rc != 0 || id != CLOCK_REALTIME || shift == NULL) return rc;
    int64_t ns = (int64_t)t->tv_sec * 1000000000 + t->tv_nsec + *shift;
    t->tv_sec = ns / 1000000000;
    t->tv_nsec = ns % 1000000000;
    return 0;
}
