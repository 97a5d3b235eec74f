/* A disk that forgets: an LD_PRELOAD library under which a killed process loses what it did not sync.
 *
 * kill -9 alone leaves every write in the page cache, so a server that acknowledges before its fsync would pass a kill test
 * unnoticed. Here writes to files whose name ends in VOLATILE_SUFFIX (".log") are kept in this process's memory and reach
 * the real file only at fdatasync or fsync, all at once; a kill loses the rest, as a power cut would. VOLATILE_SYNC_MS
 * makes each sync take that long: the time in which an early acknowledgement can be caught. Reads of held-back ranges
 * are not supported (the node log reads only what a former process synced); mapped files must not be named so.
 * Built and loaded by test_kills.py; the server binary is the one that ships. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define VOLATILE_SUFFIX ".log"
#define HELD_MAX (1u << 16)

struct held {
    int fd;
    off_t offset;
    size_t len;
    char *data;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct held held[HELD_MAX];
static size_t held_count;
static useconds_t sync_us;

static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static ssize_t (*real_pwritev)(int, const struct iovec *, int, off_t);
static int (*real_fdatasync)(int);

__attribute__((constructor)) static void find_real(void)
{
    const char *ms = getenv("VOLATILE_SYNC_MS");
    sync_us = ms != NULL ? (useconds_t)atoi(ms) * 1000 : 0;
    real_pwrite = (ssize_t(*)(int, const void *, size_t, off_t))dlsym(RTLD_NEXT, "pwrite");
    real_pwritev = (ssize_t(*)(int, const struct iovec *, int, off_t))dlsym(RTLD_NEXT, "pwritev");
    real_fdatasync = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
}

static int is_volatile(int fd)
{
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(link, path, sizeof path);
    size_t suffix = strlen(VOLATILE_SUFFIX);
    return len > (ssize_t)suffix && memcmp(path + len - suffix, VOLATILE_SUFFIX, suffix) == 0;
}

ssize_t pwritev(int fd, const struct iovec *iov, int count, off_t offset)
{
    if (!is_volatile(fd)) return real_pwritev(fd, iov, count, offset);
    size_t len = 0, done = 0;
    for (int i = 0; i < count; i++) len += iov[i].iov_len;
    char *data = malloc(len);
    if (data == NULL) abort();
    for (int i = 0; i < count; done += iov[i++].iov_len) memcpy(data + done, iov[i].iov_base, iov[i].iov_len);
    pthread_mutex_lock(&mutex);
    if (held_count == HELD_MAX) abort();
    held[held_count++] = (struct held){ fd, offset, len, data };
    pthread_mutex_unlock(&mutex);
    return (ssize_t)len;
}

ssize_t pwritev64(int fd, const struct iovec *iov, int count, off_t offset)
{
    return pwritev(fd, iov, count, offset);
}

ssize_t pwrite(int fd, const void *data, size_t len, off_t offset)
{
    struct iovec iov = { (void *)(size_t)data, len };
    return is_volatile(fd) ? pwritev(fd, &iov, 1, offset) : real_pwrite(fd, data, len, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t len, off_t offset) { return pwrite(fd, data, len, offset); }

int fdatasync(int fd)
{
    size_t kept = 0;
    if (sync_us > 0 && is_volatile(fd)) usleep(sync_us);
    pthread_mutex_lock(&mutex);
    for (size_t i = 0; i < held_count; i++) {
        if (held[i].fd != fd) {
            held[kept++] = held[i];
            continue;
        }
        if (real_pwrite(fd, held[i].data, held[i].len, held[i].offset) != (ssize_t)held[i].len) abort();
        free(held[i].data);
    }
    held_count = kept;
    pthread_mutex_unlock(&mutex);
    return real_fdatasync(fd);
}

int fsync(int fd) { return fdatasync(fd); }
