/* See vfs_hook.h. Files are wrapped, for their operations go through file->vfs. Determinism: adds none of its
 * own. */
#include "common/err.h"

#include <stdlib.h>

#include "common/mem.h"
#include "tests/support/vfs_hook.h"

struct hook_file {
    struct vfs_file base; /* first */
    struct vfs_file *inner;
};

static struct vfs_hook *hook_of(struct vfs *vfs) { return (struct vfs_hook *)vfs; }
static struct vfs_file *inner_of(struct vfs_file *file) { return ((struct hook_file *)file)->inner; }
static enum omen_err before(struct vfs *vfs, enum vfs_hook_op op, struct err *err)
{
    struct vfs_hook *h = hook_of(vfs);
    return h->before(h->arg, op, err);
}

static enum omen_err hook_open(struct vfs *vfs, const char *path, int flags, struct vfs_file **file_out,
        struct err *err)
{
    enum omen_err rc = (flags & VFS_CREATE) != 0 ? before(vfs, VFS_HOOK_CREATE, err) : OMEN_OK;
    struct vfs_file *inner = NULL;
    if (rc == OMEN_OK) rc = vfs_open(hook_of(vfs)->inner, path, flags, &inner, err);
    if (rc != OMEN_OK) return rc;
    struct hook_file *file = mem_must_calloc(1, sizeof *file);
    file->base.vfs = vfs;
    file->inner = inner;
    *file_out = &file->base;
    return OMEN_OK;
}

static void hook_close(struct vfs_file *file)
{
    vfs_close(inner_of(file));
    mem_free(file);
}

static enum omen_err hook_pread(struct vfs_file *file, void *dst, size_t len, uint64_t offset,
        struct err *err)
{
    return vfs_pread(inner_of(file), dst, len, offset, err);
}

static enum omen_err hook_pwritev(struct vfs_file *file, const struct iovec *iov, int iov_count,
        uint64_t offset, struct err *err)
{
    enum omen_err rc = before(file->vfs, VFS_HOOK_WRITE, err);
    return rc == OMEN_OK ? vfs_pwritev(inner_of(file), iov, iov_count, offset, err) : rc;
}

static enum omen_err hook_datasync(struct vfs_file *file, struct err *err)
{
    enum omen_err rc = before(file->vfs, VFS_HOOK_DATASYNC, err);
    return rc == OMEN_OK ? vfs_datasync(inner_of(file), err) : rc;
}

static enum omen_err hook_allocate(struct vfs_file *file, uint64_t len, struct err *err)
{
    enum omen_err rc = before(file->vfs, VFS_HOOK_ALLOCATE, err);
    return rc == OMEN_OK ? vfs_allocate(inner_of(file), len, err) : rc;
}

static enum omen_err hook_truncate(struct vfs_file *file, uint64_t len, struct err *err)
{
    enum omen_err rc = before(file->vfs, VFS_HOOK_TRUNCATE, err);
    return rc == OMEN_OK ? vfs_truncate(inner_of(file), len, err) : rc;
}

static enum omen_err hook_size(struct vfs_file *file, uint64_t *len_out, struct err *err)
{
    return vfs_size(inner_of(file), len_out, err);
}

static enum omen_err hook_map(struct vfs_file *file, uint64_t len, const uint8_t **data_out, struct err *err)
{
    return vfs_map(inner_of(file), len, data_out, err);
}

static void hook_unmap(struct vfs_file *file, const uint8_t *data, uint64_t len)
{
    vfs_unmap(inner_of(file), data, len);
}

static void hook_writeback_hint(struct vfs_file *file, uint64_t offset, uint64_t len)
{
    vfs_writeback_hint(inner_of(file), offset, len);
}

static enum omen_err hook_rename(struct vfs *vfs, const char *from, const char *to, struct err *err)
{
    enum omen_err rc = before(vfs, VFS_HOOK_RENAME, err);
    return rc == OMEN_OK ? vfs_rename(hook_of(vfs)->inner, from, to, err) : rc;
}

static enum omen_err hook_unlink(struct vfs *vfs, const char *path, struct err *err)
{
    enum omen_err rc = before(vfs, VFS_HOOK_UNLINK, err);
    return rc == OMEN_OK ? vfs_unlink(hook_of(vfs)->inner, path, err) : rc;
}

static enum omen_err hook_mkdir(struct vfs *vfs, const char *path, struct err *err)
{
    enum omen_err rc = before(vfs, VFS_HOOK_MKDIR, err);
    return rc == OMEN_OK ? vfs_mkdir(hook_of(vfs)->inner, path, err) : rc;
}

static enum omen_err hook_rmdir(struct vfs *vfs, const char *path, struct err *err)
{
    enum omen_err rc = before(vfs, VFS_HOOK_RMDIR, err);
    return rc == OMEN_OK ? vfs_rmdir(hook_of(vfs)->inner, path, err) : rc;
}

static enum omen_err hook_sync_dir(struct vfs *vfs, const char *path, struct err *err)
{
    enum omen_err rc = before(vfs, VFS_HOOK_SYNC_DIR, err);
    return rc == OMEN_OK ? vfs_sync_dir(hook_of(vfs)->inner, path, err) : rc;
}

static enum omen_err hook_list(struct vfs *vfs, const char *path, bool (*each)(void *arg, const char *name),
        void *arg, struct err *err)
{
    return vfs_list(hook_of(vfs)->inner, path, each, arg, err);
}

static enum omen_err hook_exists(struct vfs *vfs, const char *path, bool *exists_out, struct err *err)
{
    return vfs_exists(hook_of(vfs)->inner, path, exists_out, err);
}

static enum omen_err hook_free_space(struct vfs *vfs, const char *path, uint64_t *free_out,
        uint64_t *total_out, struct err *err)
{
    return vfs_free_space(hook_of(vfs)->inner, path, free_out, total_out, err);
}

static const struct vfs_ops hook_ops = {
    .open = hook_open,
    .close = hook_close,
    .pread = hook_pread,
    .pwritev = hook_pwritev,
    .datasync = hook_datasync,
    .allocate = hook_allocate,
    .truncate = hook_truncate,
    .size = hook_size,
    .map = hook_map,
    .unmap = hook_unmap,
    .writeback_hint = hook_writeback_hint,
    .rename = hook_rename,
    .unlink = hook_unlink,
    .mkdir = hook_mkdir,
    .rmdir = hook_rmdir,
    .sync_dir = hook_sync_dir,
    .list = hook_list,
    .exists = hook_exists,
    .free_space = hook_free_space,
};

void vfs_hook_init(struct vfs_hook *hook, struct vfs *inner,
        enum omen_err (*hook_before)(void *arg, enum vfs_hook_op op, struct err *err), void *arg)
{
    *hook = (struct vfs_hook){ .base.ops = &hook_ops, .inner = inner, .before = hook_before, .arg = arg };
}
