/* Leases of a store's checkpoint, and stores made of copies. Contract in shard_lease.h.
 *
 *   <store>/lease-<n>/data.mdb   a lease's own LMDB; removed with it, or at the next open of the store */
#include "common/err.h"

#include "storage/shard_store_impl.h"

#include <stdio.h>
#include <string.h>

#include "common/check.h"
#include "common/crc32c.h"
#include "common/log.h"
#include "common/mem.h"
#include "storage/shard_manifest.h"

#define SUM_PART_BYTES (1u << 20)

struct store_lease {
    struct vfs *vfs;
    char dir[STORE_PATH_BYTES];
    char own_dir[STORE_PATH_BYTES + 32];
    struct store_manifest manifest;
    struct buf bytes;
    struct lease_count *count;
};

static _Atomic uint32_t lease_number; /* of the process: names of directories only */

/* ---- the source ---- */

static enum omen_err own_copy(struct store_lease *l, struct shard_store *s, struct err *err)
{
    enum omen_err rc = vfs_mkdir(vfs_posix(), l->own_dir, err);
    return rc == OMEN_OK ? meta_copy(s->meta, l->own_dir, err) : rc;
}

static enum omen_err own_size(const struct store_lease *l, uint64_t *bytes_out, struct err *err)
{
    char path[STORE_PATH_BYTES + 64];
    struct vfs_file *file = NULL;
    snprintf(path, sizeof path, "%s/data.mdb", l->own_dir);
    enum omen_err rc = vfs_open(vfs_posix(), path, VFS_READ, &file, err);
    if (rc == OMEN_OK) rc = vfs_size(file, bytes_out, err);
    vfs_close(file);
    return rc;
}

enum omen_err store_lease_open(struct shard_store *store, struct store_lease **lease_out, struct err *err)
{
    struct manifest_raw raw = { .shard_id = store->shard_id, .replica_id = store->replica_id };
    struct store_lease *l = mem_must_calloc(1, sizeof *l);
    *lease_out = NULL;
    l->vfs = store->vfs;
    memcpy(l->dir, store->dir, sizeof l->dir);
    snprintf(l->own_dir, sizeof l->own_dir, "%s/lease-%u", l->dir, atomic_fetch_add(&lease_number, 1));
    buf_init(&l->bytes);
    l->count = store->compact.leases;
    pthread_mutex_lock(&store->checkpoint_mutex); /* no chunk is being compacted now, nor will one be */
    atomic_fetch_add(&l->count->refs, 1);
    atomic_fetch_add(&l->count->leases, 1);
    pthread_mutex_unlock(&store->checkpoint_mutex);
    enum omen_err rc = store_serves(store, err);
    if (rc == OMEN_OK) rc = own_copy(l, store, err);
    if (rc == OMEN_OK) rc = own_size(l, &raw.meta_bytes, err);
    if (rc != OMEN_OK) {
        store_lease_close(l);
        return rc;
    }
    pthread_mutex_lock(&store->checkpoint_mutex);
    raw.sequence = store->last.sequence;
    raw.end = store->last.end;
    pthread_mutex_unlock(&store->checkpoint_mutex);
    uint32_t chunks = raw.end.position.chunk;
    raw.chunk_bytes = mem_must_calloc(chunks + 1, sizeof *raw.chunk_bytes);
    for (uint32_t n = 1; n <= chunks; n++) raw.chunk_bytes[n - 1] = stream_chunk_bytes(store->stream, n);
    manifest_files(&raw, &l->manifest);
    manifest_encode(&raw, &l->bytes);
    manifest_raw_fini(&raw);
    if (l->bytes.failed) {
        store_lease_close(l);
        return err_set(err, OMEN_ENOMEM, NULL, "no memory for the manifest of %s", store->dir);
    }
    *lease_out = l;
    return OMEN_OK;
}

void store_lease_close(struct store_lease *lease)
{
    struct err err;
    if (lease == NULL) return;
    if (vfs_remove_tree(vfs_posix(), lease->own_dir, &err) != OMEN_OK)
        LOG_WARN("store.lease_stays", "dir=\"%s\" reason=\"%s\"", lease->own_dir, err.message);
    atomic_fetch_sub(&lease->count->leases, 1);
    if (atomic_fetch_sub(&lease->count->refs, 1) == 1) mem_free(lease->count);
    store_manifest_fini(&lease->manifest);
    buf_fini(&lease->bytes);
    mem_free(lease);
}

const struct store_manifest *store_lease_manifest(const struct store_lease *lease)
{
    return &lease->manifest;
}

struct bytes store_lease_manifest_bytes(const struct store_lease *lease)
{
    return (struct bytes){ lease->bytes.data, lease->bytes.len };
}

static enum omen_err file_open(const struct store_lease *l, uint32_t file, struct vfs_file **file_out,
        struct err *err)
{
    char path[STORE_PATH_BYTES + 96];
    *file_out = NULL;
    if (file >= l->manifest.file_count) return err_set(err, OMEN_EINVAL, "file", "there is no such file");
    if (file == 0) {
        snprintf(path, sizeof path, "%s/data.mdb", l->own_dir);
        return vfs_open(vfs_posix(), path, VFS_READ, file_out, err);
    }
    snprintf(path, sizeof path, "%s/%s", l->dir, l->manifest.files[file].name);
    return vfs_open(l->vfs, path, VFS_READ, file_out, err);
}

enum omen_err store_lease_read(const struct store_lease *lease, uint32_t file, uint64_t offset, void *dst,
        size_t len, struct err *err)
{
    struct vfs_file *f = NULL;
    if (file < lease->manifest.file_count && !range_fits(offset, len, lease->manifest.files[file].bytes))
        return err_set(err, OMEN_EINVAL, "offset", "the range ends past the end of the file");
    enum omen_err rc = file_open(lease, file, &f, err);
    if (rc == OMEN_OK) rc = vfs_pread(f, dst, len, offset, err);
    vfs_close(f);
    return rc;
}

enum omen_err store_lease_sum(const struct store_lease *lease, uint32_t file, uint32_t *crc_out,
        struct err *err)
{
    struct vfs_file *f = NULL;
    *crc_out = 0;
    enum omen_err rc = file_open(lease, file, &f, err);
    if (rc != OMEN_OK) return rc;
    uint8_t *part = mem_must_alloc(SUM_PART_BYTES);
    uint64_t size = lease->manifest.files[file].bytes;
    for (uint64_t at = 0; rc == OMEN_OK && at < size;) {
        size_t len = size - at < SUM_PART_BYTES ? (size_t)(size - at) : SUM_PART_BYTES;
        rc = vfs_pread(f, part, len, at, err);
        if (rc == OMEN_OK) *crc_out = crc32c(*crc_out, part, len);
        at += len;
    }
    mem_free(part);
    vfs_close(f);
    return rc;
}

/* ---- left by a process that ended ---- */

static bool lease_each(void *arg, const char *name)
{
    if (strncmp(name, "lease-", 6) == 0) buf_append(arg, name, strlen(name) + 1);
    return true;
}

void store_leases_forget(const struct shard_store *s)
{
    struct buf names;
    bool there = false;
    struct err err;
    buf_init(&names);
    enum omen_err rc = vfs_exists(vfs_posix(), s->dir, &there, &err);
    if (rc == OMEN_OK && there) rc = vfs_list(vfs_posix(), s->dir, lease_each, &names, &err);
    for (size_t at = 0; rc == OMEN_OK && !names.failed && at < names.len;) {
        char path[STORE_PATH_BYTES + 300];
        const char *name = (const char *)names.data + at;
        snprintf(path, sizeof path, "%s/%.255s", s->dir, name);
        rc = vfs_remove_tree(vfs_posix(), path, &err);
        at += strlen(name) + 1;
    }
    if (rc != OMEN_OK) LOG_WARN("store.lease_stays", "dir=\"%s\" reason=\"%s\"", s->dir, err.message);
    buf_fini(&names);
}

/* ---- the copy ---- */

enum omen_err store_manifest_dirs(struct vfs *vfs, const char *dir, struct err *err)
{
    static const char *const names[] = { "stream", "meta" };
    char path[STORE_PATH_BYTES + 32];
    enum omen_err rc = OMEN_OK;
    for (size_t i = 0; rc == OMEN_OK && i < 2; i++) {
        snprintf(path, sizeof path, "%.3990s/%s", dir, names[i]);
        rc = vfs_mkdir(vfs, path, err);
        if (rc == OMEN_OK && vfs != vfs_posix()) rc = vfs_mkdir(vfs_posix(), path, err); /* LMDB's */
    }
    return rc == OMEN_OK ? vfs_sync_dir(vfs, dir, err) : rc;
}

static enum omen_err adopt_files(const struct shard_store_options *o, const struct manifest_raw *m,
        struct err *err)
{
    char path[STORE_PATH_BYTES + 32];
    const struct meta_identity identity = { o->shard_id, o->replica_id, o->base_sequence, o->schema };
    enum omen_err rc = OMEN_OK;
    snprintf(path, sizeof path, "%s/stream", o->dir);
    for (uint32_t n = 1; rc == OMEN_OK && n <= m->end.position.chunk; n++)
        rc = stream_adopt_chunk(o->vfs, path, o->shard_id, o->replica_id, n, m->chunk_bytes[n - 1], err);
    if (rc == OMEN_OK) rc = vfs_sync_dir(o->vfs, path, err);
    snprintf(path, sizeof path, "%s/meta", o->dir);
    if (rc == OMEN_OK) rc = meta_adopt(o->vfs, path, m->replica_id, &identity, err);
    if (rc == OMEN_OK) rc = vfs_sync_dir(o->vfs, path, err);
    snprintf(path, sizeof path, "%s/CHECKPOINT", o->dir);
    if (rc == OMEN_OK)
        rc = checkpoint_file_create(o->vfs, path, o->shard_id, o->replica_id, m->sequence, m->end, err);
    return rc;
}

enum omen_err shard_store_adopt(const struct shard_store_options *options, struct bytes manifest,
        struct err *err)
{
    struct manifest_raw m;
    if (strlen(options->dir) + 64 > STORE_PATH_BYTES)
        return err_set(err, OMEN_ETOOBIG, "dir", "path is too long");
    enum omen_err rc = manifest_decode(manifest, &m, err);
    if (rc != OMEN_OK) return rc;
    if (m.shard_id != options->shard_id)
        rc = err_set(err, OMEN_EINVAL, "shard_id", "the copy is of shard %llu",
                (unsigned long long)m.shard_id);
    if (rc == OMEN_OK) rc = adopt_files(options, &m, err);
    manifest_raw_fini(&m);
    return rc;
}
