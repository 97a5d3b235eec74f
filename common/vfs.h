/* Files behind a table, so that tests can fail the n-th operation and lose or tear what was not synced.
 *
 * vfs_posix() is the real one. tests/support/vfs_sim.h keeps files in memory and crashes on command. Paths
 * are ordinary absolute or cwd-relative paths. All functions are thread-safe on different files; on one
 * file concurrent pread/pwrite of disjoint ranges and sync are allowed. Errors: OMEN_EIO, OMEN_EFULL,
 * OMEN_ENOTFOUND, OMEN_EEXISTS with the path and errno in `err`. A failed sync must never be retried by
 * the caller (CORRECTNESS C2). */
#ifndef OMEN_COMMON_VFS_H
#define OMEN_COMMON_VFS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "common/err.h"

struct vfs;
struct vfs_file; /* owned by the opener until vfs_close */

enum vfs_open_flags {
    VFS_READ = 1,
    VFS_WRITE = 2,     /* read and write */
    VFS_CREATE = 4,    /* create when missing; the caller syncs the directory */
    VFS_EXCLUSIVE = 8, /* with VFS_CREATE: OMEN_EEXISTS when there */
    /* Reads go past the page cache where the file system can; memory, offset and length of every read must then
     * be multiples of VFS_DIRECT_ALIGN. Where it cannot, reads are ordinary ones, without read-ahead. */
    VFS_DIRECT = 16,
};
#define VFS_DIRECT_ALIGN 4096

/* One of several reads that are wanted at once. */
struct vfs_read {
    void *dst;
    size_t len;
    uint64_t offset;
};

/* What one thread needs to have several reads in flight; implementations extend it. */
struct vfs_batch {
    struct vfs *vfs;
    uint32_t reads_max;
};

/* How mapped bytes will be read. RANDOM: here and there, so that what lies around a page is not read with it, for which
 * others would have to leave where memory is short. SOON: read them in now, without waiting. */
enum vfs_access { VFS_ACCESS_NORMAL, VFS_ACCESS_RANDOM, VFS_ACCESS_SOON };

struct vfs_ops {
    enum omen_err (
            *open)(struct vfs *vfs, const char *path, int flags, struct vfs_file **file_out, struct err *err);
    void (*close)(struct vfs_file *file);
    /* Reads exactly `len` bytes or fails: end of file inside the range is OMEN_EIO. */
    enum omen_err (*pread)(struct vfs_file *file, void *dst, size_t len, uint64_t offset, struct err *err);
    enum omen_err (*pwritev)(struct vfs_file *file, const struct iovec *iov, int iov_count, uint64_t offset,
            struct err *err);
    /* Data and the size needed to read it. */
    enum omen_err (*datasync)(struct vfs_file *file, struct err *err);
    /* posix_fallocate from 0. */
    enum omen_err (*allocate)(struct vfs_file *file, uint64_t len, struct err *err);
    enum omen_err (*truncate)(struct vfs_file *file, uint64_t len, struct err *err);
    enum omen_err (*size)(struct vfs_file *file, uint64_t *len_out, struct err *err);
    /* Read-only shared mapping of [0, len) that later pwritev calls show through. Unmapped by unmap. */
    enum omen_err (*map)(struct vfs_file *file, uint64_t len, const uint8_t **data_out, struct err *err);
    void (*unmap)(struct vfs_file *file, const uint8_t *data, uint64_t len);
    /* How a part of a mapping will be read; NULL: nothing is made of it. */
    void (*advise)(struct vfs *vfs, const uint8_t *data, uint64_t len, enum vfs_access access);
    /* Starts writing dirty pages of a range back without waiting (sync_file_range); may do nothing. */
    void (*writeback_hint)(struct vfs_file *file, uint64_t offset, uint64_t len);
    /* All three NULL: a batch is read one by one with pread. */
    struct vfs_batch *(*batch_new)(struct vfs *vfs, uint32_t reads_max);
    void (*batch_free)(struct vfs_batch *batch);
    enum omen_err (*read_batch)(struct vfs_batch *batch, struct vfs_file *file, const struct vfs_read *reads,
            uint32_t count, struct err *err);

    enum omen_err (*rename)(struct vfs *vfs, const char *from, const char *to, struct err *err);
    enum omen_err (*unlink)(struct vfs *vfs, const char *path, struct err *err);
    enum omen_err (*mkdir)(struct vfs *vfs, const char *path, struct err *err); /* fine when it is there */
    enum omen_err (*rmdir)(struct vfs *vfs, const char *path, struct err *err);
    enum omen_err (*sync_dir)(struct vfs *vfs, const char *path, struct err *err);
    /* Calls `each` for every entry but "." and "..", in no order; stops when it returns false. */
    enum omen_err (*list)(struct vfs *vfs, const char *path, bool (*each)(void *arg, const char *name),
            void *arg, struct err *err);
    enum omen_err (*exists)(struct vfs *vfs, const char *path, bool *exists_out, struct err *err);
    enum omen_err (*free_space)(struct vfs *vfs, const char *path, uint64_t *free_out, uint64_t *total_out,
            struct err *err);
};

struct vfs {
    const struct vfs_ops *ops;
};

struct vfs_file {
    struct vfs *vfs;
    /* implementations extend this */
};

struct vfs *vfs_posix(void); /* static */

OMEN_CHECKED enum omen_err vfs_open(struct vfs *vfs, const char *path, int flags, struct vfs_file **file_out,
        struct err *err);
void vfs_close(struct vfs_file *file); /* NULL is fine */
OMEN_CHECKED enum omen_err vfs_pread(struct vfs_file *file, void *dst, size_t len, uint64_t offset,
        struct err *err);
OMEN_CHECKED enum omen_err vfs_pwrite(struct vfs_file *file, const void *src, size_t len, uint64_t offset,
        struct err *err);
OMEN_CHECKED enum omen_err vfs_pwritev(struct vfs_file *file, const struct iovec *iov, int iov_count,
        uint64_t offset, struct err *err);
OMEN_CHECKED enum omen_err vfs_datasync(struct vfs_file *file, struct err *err);
OMEN_CHECKED enum omen_err vfs_allocate(struct vfs_file *file, uint64_t len, struct err *err);
OMEN_CHECKED enum omen_err vfs_truncate(struct vfs_file *file, uint64_t len, struct err *err);
OMEN_CHECKED enum omen_err vfs_size(struct vfs_file *file, uint64_t *len_out, struct err *err);
OMEN_CHECKED enum omen_err vfs_map(struct vfs_file *file, uint64_t len, const uint8_t **data_out,
        struct err *err);
void vfs_unmap(struct vfs_file *file, const uint8_t *data, uint64_t len);
/* A wish: refusal is not told. Any part of mappings of `vfs`, any thread. */
void vfs_advise(struct vfs *vfs, const uint8_t *data, uint64_t len, enum vfs_access access);
void vfs_writeback_hint(struct vfs_file *file, uint64_t offset, uint64_t len);

/* For one thread at a time; it may read any file of this vfs with at most `reads_max` (>= 1) reads in flight.
 * NULL: out of memory. vfs_posix reads through an io_uring where the system lets it, else one by one. */
struct vfs_batch *vfs_batch_new(struct vfs *vfs, uint32_t reads_max);
void vfs_batch_free(struct vfs_batch *batch); /* NULL is fine */
/* All of them exactly, as vfs_pread would, or the error of one of them; nothing is in flight when it returns.
 * `count` may exceed reads_max: then they go in turns. */
OMEN_CHECKED enum omen_err vfs_read_batch(struct vfs_batch *batch, struct vfs_file *file,
        const struct vfs_read *reads, uint32_t count, struct err *err);
OMEN_CHECKED enum omen_err vfs_rename(struct vfs *vfs, const char *from, const char *to, struct err *err);
OMEN_CHECKED enum omen_err vfs_unlink(struct vfs *vfs, const char *path, struct err *err);
OMEN_CHECKED enum omen_err vfs_mkdir(struct vfs *vfs, const char *path, struct err *err);
OMEN_CHECKED enum omen_err vfs_rmdir(struct vfs *vfs, const char *path, struct err *err);
OMEN_CHECKED enum omen_err vfs_sync_dir(struct vfs *vfs, const char *path, struct err *err);
OMEN_CHECKED enum omen_err vfs_list(struct vfs *vfs, const char *path,
        bool (*each)(void *arg, const char *name), void *arg, struct err *err);
OMEN_CHECKED enum omen_err vfs_exists(struct vfs *vfs, const char *path, bool *exists_out, struct err *err);
OMEN_CHECKED enum omen_err vfs_free_space(struct vfs *vfs, const char *path, uint64_t *free_out,
        uint64_t *total_out, struct err *err);

/* Replace `path` by `len` bytes so that after a crash there is the old file or the new one, never a
 * mixture: write path.tmp, sync, rename, sync the directory. */
OMEN_CHECKED enum omen_err vfs_replace_file(struct vfs *vfs, const char *path, const void *data, size_t len,
        struct err *err);
/* Whole file into a fresh buffer (mem_free). OMEN_ETOOBIG above limit_bytes. */
OMEN_CHECKED enum omen_err vfs_read_file(struct vfs *vfs, const char *path, size_t limit_bytes,
        uint8_t **data_out, size_t *len_out, struct err *err);
/* Remove a directory tree; missing is fine. */
OMEN_CHECKED enum omen_err vfs_remove_tree(struct vfs *vfs, const char *path, struct err *err);

#endif
