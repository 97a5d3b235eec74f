/* Files behind a table: the calls, and what can be built from them alike for every implementation.
 * Threads: as vfs.h says; nothing is kept here. */
#include "common/vfs.h"

#include <stdio.h>
#include <string.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/mem.h"

#define PATH_BYTES_MAX 4096
#define TREE_DEPTH_MAX 32 /* of vfs_remove_tree; our own trees have four levels */

enum omen_err vfs_open(struct vfs *vfs, const char *path, int flags, struct vfs_file **file_out,
        struct err *err)
{
    CHECK((flags & (VFS_READ | VFS_WRITE)) != 0);
    *file_out = NULL;
    return vfs->ops->open(vfs, path, flags, file_out, err);
}

void vfs_close(struct vfs_file *file)
{
    if (file != NULL) file->vfs->ops->close(file);
}

enum omen_err vfs_pread(struct vfs_file *file, void *dst, size_t len, uint64_t offset, struct err *err)
{
    return file->vfs->ops->pread(file, dst, len, offset, err);
}

enum omen_err vfs_pwrite(struct vfs_file *file, const void *src, size_t len, uint64_t offset, struct err *err)
{
    struct iovec iov = { .iov_base = (void *)(uintptr_t)src, .iov_len = len }; /* an iovec knows no const */
    return file->vfs->ops->pwritev(file, &iov, 1, offset, err);
}

enum omen_err vfs_pwritev(struct vfs_file *file, const struct iovec *iov, int iov_count, uint64_t offset,
        struct err *err)
{
    return file->vfs->ops->pwritev(file, iov, iov_count, offset, err);
}

enum omen_err vfs_datasync(struct vfs_file *file, struct err *err)
{
    return file->vfs->ops->datasync(file, err);
}

enum omen_err vfs_allocate(struct vfs_file *file, uint64_t len, struct err *err)
{
    return file->vfs->ops->allocate(file, len, err);
}

enum omen_err vfs_truncate(struct vfs_file *file, uint64_t len, struct err *err)
{
    return file->vfs->ops->truncate(file, len, err);
}

enum omen_err vfs_size(struct vfs_file *file, uint64_t *len_out, struct err *err)
{
    return file->vfs->ops->size(file, len_out, err);
}

enum omen_err vfs_map(struct vfs_file *file, uint64_t len, const uint8_t **data_out, struct err *err)
{
    *data_out = NULL;
    return file->vfs->ops->map(file, len, data_out, err);
}

void vfs_unmap(struct vfs_file *file, const uint8_t *data, uint64_t len)
{
    file->vfs->ops->unmap(file, data, len);
}

void vfs_advise(struct vfs *vfs, const uint8_t *data, uint64_t len, enum vfs_access access)
{
    if (vfs->ops->advise != NULL && len > 0) vfs->ops->advise(vfs, data, len, access);
}

void vfs_writeback_hint(struct vfs_file *file, uint64_t offset, uint64_t len)
{
    file->vfs->ops->writeback_hint(file, offset, len);
}

/* ---- several reads at once ---- */

struct vfs_batch *vfs_batch_new(struct vfs *vfs, uint32_t reads_max)
{
    CHECK(reads_max > 0);
    if (vfs->ops->batch_new != NULL) return vfs->ops->batch_new(vfs, reads_max);
    struct vfs_batch *batch = mem_alloc(sizeof *batch);
    if (batch != NULL) *batch = (struct vfs_batch){ vfs, reads_max };
    return batch;
}

void vfs_batch_free(struct vfs_batch *batch)
{
    if (batch == NULL) return;
    if (batch->vfs->ops->batch_free != NULL)
        batch->vfs->ops->batch_free(batch);
    else
        mem_free(batch);
}

enum omen_err vfs_read_batch(struct vfs_batch *batch, struct vfs_file *file, const struct vfs_read *reads,
        uint32_t count, struct err *err)
{
    CHECK(batch->vfs == file->vfs);
    if (batch->vfs->ops->read_batch != NULL)
        return batch->vfs->ops->read_batch(batch, file, reads, count, err);
    enum omen_err rc = OMEN_OK;
    for (uint32_t i = 0; rc == OMEN_OK && i < count; i++)
        rc = vfs_pread(file, reads[i].dst, reads[i].len, reads[i].offset, err);
    return rc;
}

enum omen_err vfs_rename(struct vfs *vfs, const char *from, const char *to, struct err *err)
{
    return vfs->ops->rename(vfs, from, to, err);
}

enum omen_err vfs_unlink(struct vfs *vfs, const char *path, struct err *err)
{
    return vfs->ops->unlink(vfs, path, err);
}

enum omen_err vfs_mkdir(struct vfs *vfs, const char *path, struct err *err)
{
    return vfs->ops->mkdir(vfs, path, err);
}

enum omen_err vfs_rmdir(struct vfs *vfs, const char *path, struct err *err)
{
    return vfs->ops->rmdir(vfs, path, err);
}

enum omen_err vfs_sync_dir(struct vfs *vfs, const char *path, struct err *err)
{
    return vfs->ops->sync_dir(vfs, path, err);
}

enum omen_err vfs_list(struct vfs *vfs, const char *path, bool (*each)(void *arg, const char *name),
        void *arg, struct err *err)
{
    return vfs->ops->list(vfs, path, each, arg, err);
}

enum omen_err vfs_exists(struct vfs *vfs, const char *path, bool *exists_out, struct err *err)
{
    return vfs->ops->exists(vfs, path, exists_out, err);
}

enum omen_err vfs_free_space(struct vfs *vfs, const char *path, uint64_t *free_out, uint64_t *total_out,
        struct err *err)
{
    return vfs->ops->free_space(vfs, path, free_out, total_out, err);
}

static enum omen_err path_too_long(struct err *err, const char *path)
{
    return err_set(err, OMEN_EINVAL, NULL, "path is longer than %d bytes: %.100s...", PATH_BYTES_MAX - 1,
            path);
}

/* ---- replace a file ---- */

/* "a/b" -> "a", "b" -> ".", "/b" -> "/". */
static void path_directory(const char *path, char directory_out[PATH_BYTES_MAX])
{
    const char *slash = strrchr(path, '/');
    size_t len = slash == NULL ? 0 : (size_t)(slash - path);
    if (slash == path) len = 1;
    memcpy(directory_out, slash == NULL ? "." : path, slash == NULL ? 1 : len);
    directory_out[slash == NULL ? 1 : len] = '\0';
}

static enum omen_err write_whole_file(struct vfs *vfs, const char *path, const void *data, size_t len,
        struct err *err)
{
    struct vfs_file *file;
    enum omen_err rc = vfs_open(vfs, path, VFS_WRITE | VFS_CREATE, &file, err);
    if (rc != OMEN_OK) return rc;
    rc = vfs_truncate(file, 0, err); /* what an earlier crash left */
    if (rc == OMEN_OK) rc = vfs_pwrite(file, data, len, 0, err);
    if (rc == OMEN_OK) rc = vfs_datasync(file, err);
    vfs_close(file);
    return rc;
}

enum omen_err vfs_replace_file(struct vfs *vfs, const char *path, const void *data, size_t len,
        struct err *err)
{
    char aside[PATH_BYTES_MAX], directory[PATH_BYTES_MAX];
    int n = snprintf(aside, sizeof aside, "%s.tmp", path);
    if (n < 0 || (size_t)n >= sizeof aside) return path_too_long(err, path);
    path_directory(path, directory);
    enum omen_err rc = write_whole_file(vfs, aside, data, len, err);
    if (rc == OMEN_OK) rc = vfs_rename(vfs, aside, path, err);
    if (rc != OMEN_OK) {
        /* Best effort: a remaining .tmp is harmless, the next replacement truncates it. */
        enum omen_err ignored = vfs_unlink(vfs, aside, NULL);
        (void)ignored;
        return rc;
    }
    return vfs_sync_dir(vfs, directory, err);
}

/* ---- read a file ---- */

enum omen_err vfs_read_file(struct vfs *vfs, const char *path, size_t limit_bytes, uint8_t **data_out,
        size_t *len_out, struct err *err)
{
    struct vfs_file *file;
    *data_out = NULL;
    *len_out = 0;
    enum omen_err rc = vfs_open(vfs, path, VFS_READ, &file, err);
    if (rc != OMEN_OK) return rc;
    uint64_t len;
    uint8_t *data = NULL;
    rc = vfs_size(file, &len, err);
    if (rc != OMEN_OK) goto out;
    if (len > limit_bytes) {
        rc = err_set(err, OMEN_ETOOBIG, NULL, "%s has %llu bytes, the limit is %zu", path,
                (unsigned long long)len, limit_bytes);
        goto out;
    }
    data = mem_alloc((size_t)len);
    if (data == NULL) {
        rc = err_set(err, OMEN_ENOMEM, NULL, "no memory to read %s", path);
        goto out;
    }
    rc = vfs_pread(file, data, (size_t)len, 0, err);
    if (rc != OMEN_OK) goto out;
    *data_out = data;
    *len_out = (size_t)len;
    data = NULL;
out:
    mem_free(data);
    vfs_close(file);
    return rc;
}

/* ---- remove a tree ---- */

static bool collect_name(void *arg, const char *name)
{
    struct buf *names = arg;
    buf_append(names, name, strlen(name) + 1);
    return !names->failed;
}

static enum omen_err remove_at(struct vfs *vfs, char path[PATH_BYTES_MAX], int depth, struct err *err);

/* `path` is extended in place for each entry and comes back as it was. */
static enum omen_err remove_entries(struct vfs *vfs, char path[PATH_BYTES_MAX], int depth, struct err *err)
{
    struct buf names;
    buf_init(&names);
    enum omen_err rc = vfs_list(vfs, path, collect_name, &names, err);
    if (rc == OMEN_OK && names.failed) rc = err_set(err, OMEN_ENOMEM, NULL, "no memory to list %s", path);
    size_t path_len = strlen(path);
    for (size_t at = 0; rc == OMEN_OK && at < names.len;) {
        const char *name = (const char *)names.data + at;
        at += strlen(name) + 1;
        int n = snprintf(path + path_len, PATH_BYTES_MAX - path_len, "/%s", name);
        if (n < 0 || (size_t)n >= PATH_BYTES_MAX - path_len) {
            rc = path_too_long(err, path);
            break;
        }
        rc = remove_at(vfs, path, depth + 1, err);
        path[path_len] = '\0';
    }
    buf_fini(&names);
    return rc;
}

/* Unlinking first makes a symbolic link go itself, never what it points to. */
static enum omen_err remove_at(struct vfs *vfs, char path[PATH_BYTES_MAX], int depth, struct err *err)
{
    if (depth > TREE_DEPTH_MAX)
        return err_set(err, OMEN_ETOOBIG, NULL, "%s: more than %d levels of directories", path,
                TREE_DEPTH_MAX);
    enum omen_err rc = vfs_unlink(vfs, path, err);
    if (rc == OMEN_OK || rc == OMEN_ENOTFOUND) return OMEN_OK;
    rc = remove_entries(vfs, path, depth, err);
    if (rc == OMEN_OK) rc = vfs_rmdir(vfs, path, err);
    return rc;
}

enum omen_err vfs_remove_tree(struct vfs *vfs, const char *path, struct err *err)
{
    char own[PATH_BYTES_MAX];
    int n = snprintf(own, sizeof own, "%s", path);
    if (n < 0 || (size_t)n >= sizeof own) return path_too_long(err, path);
    enum omen_err rc = remove_at(vfs, own, 0, err);
    if (rc == OMEN_OK) err_clear(err); /* the unlink that showed a directory has left its sentence there */
    return rc;
}
