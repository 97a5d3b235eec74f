/* The file system of Linux behind `struct vfs`. A handle keeps its path for the sentences of errors.
 * Nothing is retried but EINTR and short results; a failed sync least of all (the kernel may have dropped
 * the dirty pages and marked them clean).
 * Threads: a handle holds no mutable state, so the kernel's own guarantees for one descriptor hold. */
#include "common/vfs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/mem.h"
#include "common/vfs_uring.h"

#define IOV_WINDOW 64 /* iovecs handed to one pwritev(2) */

struct posix_file {
    struct vfs_file base; /* first: handles are cast */
    int fd;               /* owned */
    char path[];
};

static struct posix_file *posix(struct vfs_file *file) { return (struct posix_file *)file; }

static enum omen_err fail(struct err *err, int errno_value, const char *what, const char *path)
{
    enum omen_err code = err_os(err, errno_value, what, path);
    if (errno_value == ENOENT) code = OMEN_ENOTFOUND;
    if (errno_value == EEXIST) code = OMEN_EEXISTS;
    if (err != NULL) err->code = code;
    return code;
}

/* ---- one file ---- */

static enum omen_err posix_open(struct vfs *vfs, const char *path, int flags, struct vfs_file **file_out,
        struct err *err)
{
    int os_flags = O_CLOEXEC | ((flags & VFS_WRITE) != 0 ? O_RDWR : O_RDONLY);
    if ((flags & VFS_CREATE) != 0) os_flags |= O_CREAT;
    if ((flags & VFS_CREATE) != 0 && (flags & VFS_EXCLUSIVE) != 0) os_flags |= O_EXCL;
    int fd;
    bool direct = (flags & VFS_DIRECT) != 0;
    do fd = open(path, os_flags | (direct ? O_DIRECT : 0), 0640);
    while (fd < 0 && errno == EINTR);
    if (fd < 0 && direct && errno == EINVAL) { /* tmpfs and others know no O_DIRECT */
        do fd = open(path, os_flags, 0640);
        while (fd < 0 && errno == EINTR);
        if (fd >= 0) (void)posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
    }
    if (fd < 0) return fail(err, errno, (flags & VFS_CREATE) != 0 ? "create" : "open", path);
    size_t path_bytes = strlen(path) + 1;
    struct posix_file *file = mem_alloc(sizeof *file + path_bytes);
    if (file == NULL) {
        close(fd);
        return err_set(err, OMEN_ENOMEM, NULL, "no memory to open %s", path);
    }
    file->base.vfs = vfs;
    file->fd = fd;
    memcpy(file->path, path, path_bytes);
    *file_out = &file->base;
    return OMEN_OK;
}

/* What close(2) says is of no use: data that had to survive was synced before. */
static void posix_close(struct vfs_file *base)
{
    struct posix_file *file = posix(base);
    close(file->fd);
    mem_free(file);
}

static enum omen_err posix_pread(struct vfs_file *base, void *dst, size_t len, uint64_t offset,
        struct err *err)
{
    struct posix_file *file = posix(base);
    for (size_t done = 0; done < len;) {
        ssize_t n = pread(file->fd, (uint8_t *)dst + done, len - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return fail(err, errno, "read", file->path);
        if (n == 0)
            return err_set(err, OMEN_EIO, NULL,
                    "read %s: file ends at offset %llu, wanted %zu bytes from %llu", file->path,
                    (unsigned long long)(offset + done), len, (unsigned long long)offset);
        done += (size_t)n;
    }
    return OMEN_OK;
}

/* Copies the iovecs that remain after `skip` bytes of iov[0] into `window`. */
static int fill_window(struct iovec window[IOV_WINDOW], const struct iovec *iov, int iov_count, size_t skip)
{
    int count = iov_count < IOV_WINDOW ? iov_count : IOV_WINDOW;
    memcpy(window, iov, (size_t)count * sizeof *iov);
    window[0].iov_base = (uint8_t *)window[0].iov_base + skip;
    window[0].iov_len -= skip;
    return count;
}

static enum omen_err posix_pwritev(struct vfs_file *base, const struct iovec *iov, int iov_count,
        uint64_t offset, struct err *err)
{
    struct posix_file *file = posix(base);
    size_t skip = 0; /* bytes of iov[0] that are written already */
    for (;;) {
        while (iov_count > 0 && skip >= iov->iov_len) {
            skip -= iov->iov_len;
            iov++;
            iov_count--;
        }
        if (iov_count <= 0) return OMEN_OK;
        struct iovec window[IOV_WINDOW];
        int count = fill_window(window, iov, iov_count, skip);
        ssize_t n = pwritev(file->fd, window, count, (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return fail(err, errno, "write", file->path);
        if (n == 0) return fail(err, EIO, "write", file->path); /* no progress and no reason: never spin */
        offset += (uint64_t)n;
        skip += (size_t)n;
    }
}

static enum omen_err posix_datasync(struct vfs_file *base, struct err *err)
{
    struct posix_file *file = posix(base);
    return fdatasync(file->fd) == 0 ? OMEN_OK : fail(err, errno, "sync", file->path);
}

static enum omen_err posix_allocate(struct vfs_file *base, uint64_t len, struct err *err)
{
    struct posix_file *file = posix(base);
    if (len == 0) return OMEN_OK;
    int rc;
    do rc = posix_fallocate(file->fd, 0, (off_t)len);
    while (rc == EINTR);
    return rc == 0 ? OMEN_OK : fail(err, rc, "allocate", file->path);
}

static enum omen_err posix_truncate(struct vfs_file *base, uint64_t len, struct err *err)
{
    struct posix_file *file = posix(base);
    int rc;
    do rc = ftruncate(file->fd, (off_t)len);
    while (rc != 0 && errno == EINTR);
    return rc == 0 ? OMEN_OK : fail(err, errno, "truncate", file->path);
}

static enum omen_err posix_size(struct vfs_file *base, uint64_t *len_out, struct err *err)
{
    struct posix_file *file = posix(base);
    struct stat st;
    if (fstat(file->fd, &st) != 0) return fail(err, errno, "stat", file->path);
    *len_out = (uint64_t)st.st_size;
    return OMEN_OK;
}

/* A mapping past the end of the file would answer the first touch with SIGBUS: refused here. */
static enum omen_err posix_map(struct vfs_file *base, uint64_t len, const uint8_t **data_out, struct err *err)
{
    struct posix_file *file = posix(base);
    uint64_t file_bytes;
    enum omen_err rc = posix_size(base, &file_bytes, err);
    if (rc != OMEN_OK) return rc;
    if (len == 0 || len > file_bytes)
        return err_set(err, OMEN_EIO, NULL, "map %s: wanted %llu bytes, the file has %llu", file->path,
                (unsigned long long)len, (unsigned long long)file_bytes);
    void *data = mmap(NULL, (size_t)len, PROT_READ, MAP_SHARED, file->fd, 0);
    if (data == MAP_FAILED) return fail(err, errno, "map", file->path);
    *data_out = data;
    return OMEN_OK;
}

static void posix_unmap(struct vfs_file *base, const uint8_t *data, uint64_t len)
{
    CHECK(munmap((void *)(uintptr_t)data, (size_t)len) == 0);
}

static void posix_advise(struct vfs *vfs, const uint8_t *data, uint64_t len, enum vfs_access access)
{
    static const int advice[] = { [VFS_ACCESS_NORMAL] = MADV_NORMAL,
        [VFS_ACCESS_RANDOM] = MADV_RANDOM,
        [VFS_ACCESS_SOON] = MADV_WILLNEED };
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from = (uintptr_t)data / page * page;
    (void)vfs;
    (void)madvise((void *)from, (uintptr_t)data + (size_t)len - from, advice[access]);
}

static void posix_writeback_hint(struct vfs_file *base, uint64_t offset, uint64_t len)
{
    sync_file_range(posix(base)->fd, (off_t)offset, (off_t)len, SYNC_FILE_RANGE_WRITE);
}

static enum omen_err posix_read_batch(struct vfs_batch *batch, struct vfs_file *base,
        const struct vfs_read *reads, uint32_t count, struct err *err)
{
    struct posix_file *file = posix(base);
    for (uint32_t first = 0; first < count;) {
        uint32_t n = uring_read(batch, file->fd, reads + first, count - first);
        /* What the ring did not read, or not wholly, is read again: the plain way knows how to fail. */
        for (uint32_t i = first; n == 0 && i < count; i++) {
            enum omen_err rc = posix_pread(base, reads[i].dst, reads[i].len, reads[i].offset, err);
            if (rc != OMEN_OK) return rc;
        }
        first = n == 0 ? count : first + n;
    }
    return OMEN_OK;
}

/* ---- names ---- */

static enum omen_err posix_rename(struct vfs *vfs, const char *from, const char *to, struct err *err)
{
    return rename(from, to) == 0 ? OMEN_OK : fail(err, errno, "rename", from);
}

static enum omen_err posix_unlink(struct vfs *vfs, const char *path, struct err *err)
{
    return unlink(path) == 0 ? OMEN_OK : fail(err, errno, "unlink", path);
}

static enum omen_err posix_mkdir(struct vfs *vfs, const char *path, struct err *err)
{
    if (mkdir(path, 0750) == 0) return OMEN_OK;
    int errno_value = errno;
    struct stat st;
    if (errno_value == EEXIST && stat(path, &st) == 0 && S_ISDIR(st.st_mode)) return OMEN_OK;
    return fail(err, errno_value, "mkdir", path);
}

static enum omen_err posix_rmdir(struct vfs *vfs, const char *path, struct err *err)
{
    if (rmdir(path) == 0) return OMEN_OK;
    /* POSIX lets a directory that is not empty be EEXIST, which would read as "name is taken". */
    return fail(err, errno == EEXIST ? ENOTEMPTY : errno, "rmdir", path);
}

static enum omen_err posix_sync_dir(struct vfs *vfs, const char *path, struct err *err)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return fail(err, errno, "open directory", path);
    enum omen_err rc = fsync(fd) == 0 ? OMEN_OK : fail(err, errno, "sync directory", path);
    close(fd);
    return rc;
}

/* By itself for deploy/check/tsan.supp. */
static void posix_list_end(DIR *dir) { closedir(dir); }

static enum omen_err posix_list(struct vfs *vfs, const char *path, bool (*each)(void *arg, const char *name),
        void *arg, struct err *err)
{
    DIR *dir = opendir(path); /* close-on-exec already */
    if (dir == NULL) return fail(err, errno, "list", path);
    enum omen_err rc = OMEN_OK;
    for (;;) {
        errno = 0;
        const struct dirent *entry = readdir(dir);
        if (entry == NULL) {
            if (errno != 0) rc = fail(err, errno, "list", path);
            break;
        }
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        if (!each(arg, entry->d_name)) break;
    }
    posix_list_end(dir);
    return rc;
}

static enum omen_err posix_exists(struct vfs *vfs, const char *path, bool *exists_out, struct err *err)
{
    struct stat st;
    *exists_out = stat(path, &st) == 0;
    if (*exists_out || errno == ENOENT || errno == ENOTDIR) return OMEN_OK;
    return fail(err, errno, "stat", path);
}

static enum omen_err posix_free_space(struct vfs *vfs, const char *path, uint64_t *free_out,
        uint64_t *total_out, struct err *err)
{
    struct statvfs st;
    if (statvfs(path, &st) != 0) return fail(err, errno, "statvfs", path);
    *free_out = (uint64_t)st.f_bavail * st.f_frsize; /* what we may use, not what root may */
    *total_out = (uint64_t)st.f_blocks * st.f_frsize;
    return OMEN_OK;
}

struct vfs *vfs_posix(void)
{
    static const struct vfs_ops ops = {
        .open = posix_open,
        .close = posix_close,
        .pread = posix_pread,
        .pwritev = posix_pwritev,
        .datasync = posix_datasync,
        .allocate = posix_allocate,
        .truncate = posix_truncate,
        .size = posix_size,
        .map = posix_map,
        .unmap = posix_unmap,
        .advise = posix_advise,
        .writeback_hint = posix_writeback_hint,
        .batch_new = uring_batch_new,
        .batch_free = uring_batch_free,
        .read_batch = posix_read_batch,
        .rename = posix_rename,
        .unlink = posix_unlink,
        .mkdir = posix_mkdir,
        .rmdir = posix_rmdir,
        .sync_dir = posix_sync_dir,
        .list = posix_list,
        .exists = posix_exists,
        .free_space = posix_free_space,
    };
    static struct vfs vfs = { .ops = &ops };
    return &vfs;
}
