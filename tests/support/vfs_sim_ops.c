/* The operations of the simulated file system: handles, faults, and the table behind `struct vfs`. Every
 * operation takes the one mutex, decides whether it is the one that fails, and works on vfs_sim_disk.c. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/mem.h"
#include "tests/support/vfs_sim_impl.h"

static struct sim_handle *handle_of(struct vfs_file *file) { return (struct sim_handle *)file; }

static struct vfs_sim *lock(struct vfs *vfs)
{
    struct vfs_sim *sim = (struct vfs_sim *)vfs;
    pthread_mutex_lock(&sim->mutex);
    return sim;
}

static enum omen_err unlock(struct vfs_sim *sim, enum omen_err rc)
{
    pthread_mutex_unlock(&sim->mutex);
    return rc;
}

static enum omen_err fail(struct err *err, int errno_value, const char *what, const char *path)
{
    enum omen_err code = err_os(err, errno_value, what, path);
    if (errno_value == ENOENT) code = OMEN_ENOTFOUND;
    if (errno_value == EEXIST) code = OMEN_EEXISTS;
    if (err != NULL) err->code = code;
    return code;
}

/* Counts one changing operation; the errno it has to fail with, or 0. Ghosts of a crash are beyond all
 * faults. */
static int begin_change(struct vfs_sim *sim, const struct sim_inode *inode)
{
    if (inode != NULL && inode->ghost) return 0;
    sim->counts.changing++;
    int errno_value = 0;
    if (sim->fail_in > 0 && --sim->fail_in == 0) errno_value = sim->fail_errno;
    if (sim->stop_in > 0 && --sim->stop_in == 0) sim->stopped = true;
    return sim->stopped ? EIO : errno_value;
}

/* Whether `inode` may become `len` bytes long. */
static int check_growth(struct vfs_sim *sim, const struct sim_inode *inode, uint64_t len)
{
    if (len > SIM_FILE_BYTES_MAX) return EFBIG;
    if (len <= inode->len || sim->capacity_bytes == 0 || inode->ghost) return 0;
    uint64_t more = align_up(len, 4096) - align_up(inode->len, 4096);
    return range_fits(sim_used_bytes(sim), more, sim->capacity_bytes) ? 0 : ENOSPC;
}

static void change_one_name(struct vfs_sim *sim, const struct sim_place *place, struct sim_inode *after)
{
    struct sim_entry *entry = sim_entry_get(place->directory, place->name);
    sim_change_names(sim, place->directory, entry, after, NULL, NULL, NULL);
    sim_sweep(sim);
}

/* ---- one file ---- */

static struct sim_handle *handle_new(struct vfs_sim *sim, struct sim_inode *inode, const char *path,
        int flags)
{
    size_t path_bytes = strlen(path) + 1;
    struct sim_handle *h = mem_must_calloc(1, sizeof *h + path_bytes);
    h->base.vfs = &sim->base;
    h->inode = inode;
    h->writable = (flags & VFS_WRITE) != 0;
    memcpy(h->path, path, path_bytes);
    h->next = sim->handles;
    h->link = &sim->handles;
    if (h->next != NULL) h->next->link = &h->next;
    sim->handles = h;
    inode->handle_count++;
    sim->counts.open_handles++;
    return h;
}

static int open_inode(struct vfs_sim *sim, const char *path, int flags, struct sim_inode **inode_out)
{
    struct sim_place place;
    int errno_value = sim_find_place(sim, path, &place);
    if (errno_value != 0) return errno_value;
    if (place.inode != NULL && (flags & VFS_CREATE) != 0 && (flags & VFS_EXCLUSIVE) != 0) return EEXIST;
    if (place.inode != NULL && place.inode->is_directory) return EISDIR;
    if (place.inode == NULL) {
        if ((flags & VFS_CREATE) == 0) return ENOENT;
        errno_value = begin_change(sim, NULL);
        if (errno_value != 0) return errno_value;
        sim->counts.creates++;
        place.inode = sim_inode_new(sim, false);
        change_one_name(sim, &place, place.inode);
    }
    *inode_out = place.inode;
    return 0;
}

static enum omen_err sim_open(struct vfs *vfs, const char *path, int flags, struct vfs_file **file_out,
        struct err *err)
{
    struct vfs_sim *sim = lock(vfs);
    struct sim_inode *inode;
    int errno_value = open_inode(sim, path, flags, &inode);
    if (errno_value != 0)
        return unlock(sim, fail(err, errno_value, (flags & VFS_CREATE) != 0 ? "create" : "open", path));
    *file_out = &handle_new(sim, inode, path, flags)->base;
    return unlock(sim, OMEN_OK);
}

void sim_handle_free(struct vfs_sim *sim, struct sim_handle *h)
{
    *h->link = h->next;
    if (h->next != NULL) h->next->link = h->link;
    h->inode->handle_count--;
    sim->counts.open_handles--;
    mem_free(h);
}

static void sim_close(struct vfs_file *file)
{
    struct vfs_sim *sim = lock(file->vfs);
    sim_handle_free(sim, handle_of(file));
    sim_sweep(sim);
    unlock(sim, OMEN_OK);
}

static enum omen_err sim_pread(struct vfs_file *file, void *dst, size_t len, uint64_t offset, struct err *err)
{
    struct vfs_sim *sim = lock(file->vfs);
    const struct sim_handle *h = handle_of(file);
    if (len > 0 && !range_fits(offset, len, h->inode->len))
        return unlock(sim,
                err_set(err, OMEN_EIO, NULL, "read %s: file ends at offset %llu, wanted %zu bytes from %llu",
                        h->path, (unsigned long long)h->inode->len, len, (unsigned long long)offset));
    if (len > 0) memcpy(dst, h->inode->data + offset, len);
    return unlock(sim, OMEN_OK);
}

/* Writes at most `limit` bytes of the iovecs. */
static void write_part(struct sim_inode *inode, const struct iovec *iov, int iov_count, uint64_t offset,
        uint64_t limit)
{
    for (int i = 0; i < iov_count && limit > 0; i++) {
        uint64_t n = iov[i].iov_len < limit ? iov[i].iov_len : limit;
        sim_inode_write(inode, iov[i].iov_base, n, offset);
        offset += n;
        limit -= n;
    }
}

static enum omen_err sim_pwritev(struct vfs_file *file, const struct iovec *iov, int iov_count,
        uint64_t offset, struct err *err)
{
    struct vfs_sim *sim = lock(file->vfs);
    struct sim_handle *h = handle_of(file);
    uint64_t len = 0;
    for (int i = 0; i < iov_count; i++) len += iov[i].iov_len;
    if (len == 0) return unlock(sim, OMEN_OK);
    bool was_stopped = sim->stopped;
    int errno_value = h->writable ? begin_change(sim, h->inode) : EBADF;
    uint64_t kept = len; /* of a failing write a part may be left */
    if (errno_value != 0) kept = was_stopped || !h->writable ? 0 : sim_random(&sim->rng) % len;
    int growth_errno = offset > SIM_FILE_BYTES_MAX - len ? EFBIG : check_growth(sim, h->inode, offset + kept);
    if (errno_value == 0) errno_value = growth_errno;
    if (growth_errno == 0 && kept > 0) {
        sim_inode_reserve(h->inode, offset + kept);
        write_part(h->inode, iov, iov_count, offset, kept);
    }
    sim->counts.writes += errno_value == 0;
    sim->counts.bytes_written += errno_value == 0 ? len : 0;
    return unlock(sim, errno_value == 0 ? OMEN_OK : fail(err, errno_value, "write", h->path));
}

static enum omen_err sim_datasync(struct vfs_file *file, struct err *err)
{
    struct vfs_sim *sim = lock(file->vfs);
    struct sim_handle *h = handle_of(file);
    bool was_stopped = sim->stopped;
    int errno_value = begin_change(sim, h->inode);
    if (errno_value != 0) {
        if (!was_stopped) sim_inode_sync_failed(h->inode, &sim->rng);
        return unlock(sim, fail(err, errno_value, "sync", h->path));
    }
    sim->counts.datasyncs++;
    sim_inode_sync(h->inode);
    return unlock(sim, OMEN_OK);
}

/* allocate and truncate: `shrink` tells them apart. */
static enum omen_err set_length(struct vfs_file *file, uint64_t len, bool shrink, const char *what,
        struct err *err)
{
    struct vfs_sim *sim = lock(file->vfs);
    struct sim_handle *h = handle_of(file);
    int errno_value = h->writable ? begin_change(sim, h->inode) : EBADF;
    if (errno_value == 0) errno_value = check_growth(sim, h->inode, len);
    if (errno_value != 0) return unlock(sim, fail(err, errno_value, what, h->path));
    if (shrink)
        sim->counts.truncates++;
    else
        sim->counts.allocates++;
    sim_inode_reserve(h->inode, len);
    if (shrink)
        sim_inode_truncate(h->inode, len);
    else if (len > h->inode->len)
        h->inode->len = len;
    return unlock(sim, OMEN_OK);
}

static enum omen_err sim_allocate(struct vfs_file *file, uint64_t len, struct err *err)
{
    return set_length(file, len, false, "allocate", err);
}

static enum omen_err sim_truncate(struct vfs_file *file, uint64_t len, struct err *err)
{
    return set_length(file, len, true, "truncate", err);
}

static enum omen_err sim_size(struct vfs_file *file, uint64_t *len_out, struct err *err)
{
    struct vfs_sim *sim = lock(file->vfs);
    *len_out = handle_of(file)->inode->len;
    return unlock(sim, OMEN_OK);
}

static enum omen_err sim_map(struct vfs_file *file, uint64_t len, const uint8_t **data_out, struct err *err)
{
    struct vfs_sim *sim = lock(file->vfs);
    struct sim_handle *h = handle_of(file);
    if (len == 0 || len > h->inode->len)
        return unlock(sim,
                err_set(err, OMEN_EIO, NULL, "map %s: wanted %llu bytes, the file has %llu", h->path,
                        (unsigned long long)len, (unsigned long long)h->inode->len));
    h->inode->map_count++;
    sim->counts.open_mappings++;
    *data_out = h->inode->data;
    return unlock(sim, OMEN_OK);
}

static void sim_unmap(struct vfs_file *file, const uint8_t *data, uint64_t len)
{
    struct vfs_sim *sim = lock(file->vfs);
    struct sim_inode *inode = handle_of(file)->inode;
    CHECK(inode->map_count > 0 && data == inode->data);
    inode->map_count--;
    sim->counts.open_mappings--;
    unlock(sim, OMEN_OK);
}

static void sim_writeback_hint(struct vfs_file *file, uint64_t offset, uint64_t len) {}

/* ---- names ---- */

static bool directory_is_empty(const struct sim_inode *directory)
{
    for (const struct sim_entry *e = directory->entries; e != NULL; e = e->next)
        if (e->now != NULL) return false;
    return true;
}

static bool contains(const struct sim_inode *directory, const struct sim_inode *inode)
{
    if (directory == inode) return true;
    for (const struct sim_entry *e = directory->entries; e != NULL; e = e->next)
        if (e->now != NULL && contains(e->now, inode)) return true;
    return false;
}

static int rename_check(const struct sim_place *from, const struct sim_place *to)
{
    if (from->inode == NULL) return ENOENT;
    if (from->directory == NULL || to->directory == NULL) return EBUSY;
    if (from->inode->is_directory && contains(from->inode, to->directory)) return EINVAL;
    if (to->inode == NULL) return 0;
    if (to->inode->is_directory && !from->inode->is_directory) return EISDIR;
    if (!to->inode->is_directory && from->inode->is_directory) return ENOTDIR;
    return to->inode->is_directory && !directory_is_empty(to->inode) ? ENOTEMPTY : 0;
}

static enum omen_err sim_rename(struct vfs *vfs, const char *from_path, const char *to_path, struct err *err)
{
    struct vfs_sim *sim = lock(vfs);
    struct sim_place from, to;
    int errno_value = sim_find_place(sim, from_path, &from);
    if (errno_value == 0) errno_value = sim_find_place(sim, to_path, &to);
    if (errno_value == 0) errno_value = rename_check(&from, &to);
    if (errno_value == 0) errno_value = begin_change(sim, NULL);
    if (errno_value != 0) return unlock(sim, fail(err, errno_value, "rename", from_path));
    if (from.inode == to.inode) return unlock(sim, OMEN_OK);
    sim->counts.renames++;
    sim_change_names(sim, from.directory, sim_entry_get(from.directory, from.name), NULL, to.directory,
            sim_entry_get(to.directory, to.name), from.inode);
    sim_sweep(sim);
    return unlock(sim, OMEN_OK);
}

static enum omen_err sim_unlink(struct vfs *vfs, const char *path, struct err *err)
{
    struct vfs_sim *sim = lock(vfs);
    struct sim_place place;
    int errno_value = sim_find_place(sim, path, &place);
    if (errno_value == 0 && place.inode == NULL) errno_value = ENOENT;
    if (errno_value == 0 && place.inode->is_directory) errno_value = EISDIR;
    if (errno_value == 0) errno_value = begin_change(sim, NULL);
    if (errno_value != 0) return unlock(sim, fail(err, errno_value, "unlink", path));
    sim->counts.unlinks++;
    change_one_name(sim, &place, NULL);
    return unlock(sim, OMEN_OK);
}

static enum omen_err sim_mkdir(struct vfs *vfs, const char *path, struct err *err)
{
    struct vfs_sim *sim = lock(vfs);
    struct sim_place place;
    int errno_value = sim_find_place(sim, path, &place);
    if (errno_value == 0 && place.inode != NULL) {
        if (place.inode->is_directory) return unlock(sim, OMEN_OK);
        errno_value = EEXIST;
    }
    if (errno_value == 0) errno_value = begin_change(sim, NULL);
    if (errno_value != 0) return unlock(sim, fail(err, errno_value, "mkdir", path));
    change_one_name(sim, &place, sim_inode_new(sim, true));
    return unlock(sim, OMEN_OK);
}

static enum omen_err sim_rmdir(struct vfs *vfs, const char *path, struct err *err)
{
    struct vfs_sim *sim = lock(vfs);
    struct sim_place place;
    int errno_value = sim_find_place(sim, path, &place);
    if (errno_value == 0 && place.inode == NULL) errno_value = ENOENT;
    if (errno_value == 0 && !place.inode->is_directory) errno_value = ENOTDIR;
    if (errno_value == 0 && place.directory == NULL) errno_value = EBUSY;
    if (errno_value == 0 && !directory_is_empty(place.inode)) errno_value = ENOTEMPTY;
    if (errno_value == 0) errno_value = begin_change(sim, NULL);
    if (errno_value != 0) return unlock(sim, fail(err, errno_value, "rmdir", path));
    change_one_name(sim, &place, NULL);
    return unlock(sim, OMEN_OK);
}

/* A directory that is there now, or an errno. */
static int find_directory(struct vfs_sim *sim, const char *path, struct sim_inode **directory_out)
{
    struct sim_place place;
    int errno_value = sim_find_place(sim, path, &place);
    if (errno_value != 0) return errno_value;
    if (place.inode == NULL) return ENOENT;
    if (!place.inode->is_directory) return ENOTDIR;
    *directory_out = place.inode;
    return 0;
}

static enum omen_err sim_sync_dir(struct vfs *vfs, const char *path, struct err *err)
{
    struct vfs_sim *sim = lock(vfs);
    struct sim_inode *directory = NULL;
    int errno_value = find_directory(sim, path, &directory);
    if (errno_value == 0) errno_value = begin_change(sim, NULL);
    if (errno_value != 0) return unlock(sim, fail(err, errno_value, "sync directory", path));
    sim->counts.dir_syncs++;
    sim_sync_directory(sim, directory);
    sim_sweep(sim);
    return unlock(sim, OMEN_OK);
}

/* Names are copied first: `each` may change the directory, and may not find the mutex taken. */
static enum omen_err sim_list(struct vfs *vfs, const char *path, bool (*each)(void *arg, const char *name),
        void *arg, struct err *err)
{
    struct vfs_sim *sim = lock(vfs);
    struct sim_inode *directory = NULL;
    int errno_value = find_directory(sim, path, &directory);
    if (errno_value != 0) return unlock(sim, fail(err, errno_value, "list", path));
    size_t total = 0, at = 0;
    for (const struct sim_entry *e = directory->entries; e != NULL; e = e->next)
        if (e->now != NULL) total += strlen(e->name) + 1;
    char *names = mem_must_alloc(total);
    for (const struct sim_entry *e = directory->entries; e != NULL; e = e->next) {
        if (e->now == NULL) continue;
        size_t n = strlen(e->name) + 1;
        memcpy(names + at, e->name, n);
        at += n;
    }
    unlock(sim, OMEN_OK);
    for (at = 0; at < total && each(arg, names + at);) at += strlen(names + at) + 1;
    mem_free(names);
    return OMEN_OK;
}

static enum omen_err sim_exists(struct vfs *vfs, const char *path, bool *exists_out, struct err *err)
{
    struct vfs_sim *sim = lock(vfs);
    struct sim_place place;
    int errno_value = sim_find_place(sim, path, &place);
    *exists_out = errno_value == 0 && place.inode != NULL;
    if (errno_value == 0 || errno_value == ENOENT || errno_value == ENOTDIR) return unlock(sim, OMEN_OK);
    return unlock(sim, fail(err, errno_value, "stat", path));
}

static enum omen_err sim_free_space(struct vfs *vfs, const char *path, uint64_t *free_out,
        uint64_t *total_out, struct err *err)
{
    struct vfs_sim *sim = lock(vfs);
    uint64_t used = sim_used_bytes(sim);
    *total_out = sim->capacity_bytes == 0 ? SIM_FILE_BYTES_MAX : sim->capacity_bytes;
    *free_out = used < *total_out ? *total_out - used : 0;
    return unlock(sim, OMEN_OK);
}

const struct vfs_ops SIM_OPS = {
    .open = sim_open,
    .close = sim_close,
    .pread = sim_pread,
    .pwritev = sim_pwritev,
    .datasync = sim_datasync,
    .allocate = sim_allocate,
    .truncate = sim_truncate,
    .size = sim_size,
    .map = sim_map,
    .unmap = sim_unmap,
    .writeback_hint = sim_writeback_hint,
    .rename = sim_rename,
    .unlink = sim_unlink,
    .mkdir = sim_mkdir,
    .rmdir = sim_rmdir,
    .sync_dir = sim_sync_dir,
    .list = sim_list,
    .exists = sim_exists,
    .free_space = sim_free_space,
};
