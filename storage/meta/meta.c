/* LMDB of one replica: opening with verification, and reading. Contract in meta.h.
 *
 * Opening:   data.mdb  CHECKSUM  MERGING
 *              no        no        any     create (a first creation that was interrupted left nothing of worth)
 *              yes       no        yes     the same: CHECKSUM is never removed, so creation had not finished
 *              yes       no        no      corrupt: CHECKSUM is missing
 *              no        yes       any     corrupt: data.mdb is missing
 *              yes       yes       no      must agree, else corrupt
 *              yes       yes       yes     a merge was interrupted: every value is verified, CHECKSUM written anew */
#include "common/err.h"

#include "storage/meta/meta_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/crc32c.h"
#include "common/log.h"
#include "common/mem.h"
#include "storage/meta/meta_format.h"

#define META_READ_BYTES (1u << 20)

enum omen_err meta_lmdb_error(const struct meta *meta, int mdb_rc, const char *what, struct err *err)
{
    switch (mdb_rc) {
    case MDB_MAP_FULL: return err_set(err, OMEN_EFULL, NULL, "%s %s: the map is full", what, meta->data_path);
    case MDB_CORRUPTED:
    case MDB_PAGE_NOTFOUND:
    case MDB_INVALID:
    case MDB_VERSION_MISMATCH:
    case MDB_BAD_VALSIZE:
        return err_set(err, OMEN_ECORRUPT, NULL, "%s: %s: %s", meta->data_path, what, mdb_strerror(mdb_rc));
    default: break;
    }
    if (mdb_rc > 0) return err_os(err, mdb_rc, what, meta->data_path);
    return err_set(err, OMEN_EIO, NULL, "%s %s: %s", what, meta->data_path, mdb_strerror(mdb_rc));
}

static void meta_path(const struct meta *meta, const char *name, char out[META_PATH_BYTES])
{
    CHECK(snprintf(out, META_PATH_BYTES, "%s/%s", meta->dir, name) < META_PATH_BYTES);
}

/* ---- the checksum of the whole file ---- */

static enum omen_err file_checksum(const char *path, uint64_t *size_out, uint32_t *crc_out, struct err *err)
{
    struct vfs_file *file = NULL;
    uint64_t size = 0;
    uint32_t crc = 0;
    uint8_t *part = mem_must_alloc(META_READ_BYTES);
    enum omen_err rc = vfs_open(vfs_posix(), path, VFS_READ, &file, err);
    if (rc == OMEN_OK) rc = vfs_size(file, &size, err);
    for (uint64_t at = 0; rc == OMEN_OK && at < size;) {
        size_t len = size - at < META_READ_BYTES ? (size_t)(size - at) : META_READ_BYTES;
        rc = vfs_pread(file, part, len, at, err);
        if (rc == OMEN_OK) crc = crc32c(crc, part, len);
        at += len;
    }
    vfs_close(file);
    mem_free(part);
    *size_out = size;
    *crc_out = crc;
    return rc;
}

enum omen_err meta_marker_set(struct meta *meta, struct err *err)
{
    char path[META_PATH_BYTES];
    meta_path(meta, "MERGING", path);
    return vfs_replace_file(meta->vfs, path, "OMMG", 4, err);
}

enum omen_err meta_seal(struct meta *meta, struct err *err)
{
    char path[META_PATH_BYTES];
    uint8_t bytes[META_CHECKSUM_BYTES];
    uint64_t size;
    uint32_t crc;
    enum omen_err rc = file_checksum(meta->data_path, &size, &crc, err);
    if (rc != OMEN_OK) return rc;
    meta_checksum_encode(size, crc, bytes);
    meta_path(meta, "CHECKSUM", path);
    rc = vfs_replace_file(meta->vfs, path, bytes, sizeof bytes, err);
    if (rc != OMEN_OK) return rc;
    /* Not synced: a marker that comes back only costs a verification. */
    meta_path(meta, "MERGING", path);
    return vfs_unlink(meta->vfs, path, err);
}

static enum omen_err checksum_verify(struct meta *meta, struct err *err)
{
    char path[META_PATH_BYTES];
    uint8_t *bytes = NULL;
    size_t len = 0;
    uint64_t want_size = 0, size = 0;
    uint32_t want_crc = 0, crc = 0;
    meta_path(meta, "CHECKSUM", path);
    enum omen_err rc = vfs_read_file(meta->vfs, path, META_CHECKSUM_BYTES, &bytes, &len, err);
    if (rc == OMEN_ETOOBIG) return err_corrupt(err, path, 0, "size of the file");
    if (rc != OMEN_OK) return rc;
    bool good = meta_checksum_decode(bytes, len, &want_size, &want_crc);
    mem_free(bytes);
    if (!good) return err_corrupt(err, path, 0, "checksum of the checksum");
    rc = file_checksum(meta->data_path, &size, &crc, err);
    if (rc != OMEN_OK) return rc;
    if (size != want_size) return err_corrupt(err, meta->data_path, size, "size differs from CHECKSUM");
    if (crc != want_crc) return err_corrupt(err, meta->data_path, 0, "checksum of the whole file");
    return OMEN_OK;
}

/* ---- open ---- */

/* LMDB maps its table of readers from a sparse file: on a full disk another reader would be a SIGBUS. */
static int lock_allocate(struct meta *meta)
{
    char path[META_PATH_BYTES];
    struct stat st;
    meta_path(meta, "lock.mdb", path);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return errno;
    int rc = fstat(fd, &st) == 0 ? posix_fallocate(fd, 0, st.st_size) : errno;
    close(fd);
    return rc == EOPNOTSUPP ? 0 : rc;
}

enum omen_err meta_env_open(struct meta *meta, struct err *err)
{
    MDB_txn *txn = NULL;
    int rc = mdb_env_create(&meta->env);
    if (rc != 0) return meta_lmdb_error(meta, rc, "create", err);
    rc = mdb_env_set_mapsize(meta->env, META_MAP_BYTES);
    if (rc == 0) rc = mdb_env_set_maxreaders(meta->env, META_READERS_MAX + 16);
    if (rc == 0) rc = mdb_env_open(meta->env, meta->dir, MDB_NOTLS, 0644);
    if (rc == 0) rc = lock_allocate(meta);
    if (rc == 0) rc = mdb_txn_begin(meta->env, NULL, MDB_RDONLY, &txn);
    if (rc == 0) rc = mdb_dbi_open(txn, NULL, 0, &meta->dbi);
    if (rc == 0)
        rc = mdb_txn_commit(txn);
    else if (txn != NULL)
        mdb_txn_abort(txn);
    return rc == 0 ? OMEN_OK : meta_lmdb_error(meta, rc, "open", err);
}

enum omen_err meta_remove_if_there(struct vfs *vfs, const char *path, struct err *err)
{
    bool there = false;
    enum omen_err rc = vfs_exists(vfs, path, &there, err);
    return rc == OMEN_OK && there ? vfs_unlink(vfs, path, err) : rc;
}

/* A new, empty file at the base sequence. */
static enum omen_err meta_create(struct meta *meta, const struct meta_identity *identity, struct err *err)
{
    char lock_path[META_PATH_BYTES];
    meta_path(meta, "lock.mdb", lock_path);
    enum omen_err rc = meta_marker_set(meta, err);
    if (rc == OMEN_OK) rc = meta_remove_if_there(vfs_posix(), meta->data_path, err);
    if (rc == OMEN_OK) rc = meta_remove_if_there(vfs_posix(), lock_path, err);
    if (rc == OMEN_OK) rc = meta_env_open(meta, err);
    if (rc != OMEN_OK) return rc;
    uint8_t state[META_STATE_BYTES];
    uint8_t *value = mem_must_alloc(META_IDENTITY_BYTES_MAX);
    meta_state_encode(&(struct meta_state){ .sequence = identity->base_sequence }, state);
    MDB_val k_state = { 1, (char[]){ 's' } }, v_state = { sizeof state, state };
    MDB_val k_identity = { 1, (char[]){ 'i' } },
            v_identity = { meta_identity_encode(identity, value), value };
    MDB_txn *txn = NULL;
    int mrc = mdb_txn_begin(meta->env, NULL, 0, &txn);
    if (mrc == 0) mrc = mdb_put(txn, meta->dbi, &k_state, &v_state, 0);
    if (mrc == 0) mrc = mdb_put(txn, meta->dbi, &k_identity, &v_identity, 0);
    if (mrc == 0)
        mrc = mdb_txn_commit(txn);
    else if (txn != NULL)
        mdb_txn_abort(txn);
    mem_free(value);
    if (mrc != 0) return meta_lmdb_error(meta, mrc, "create", err);
    rc = vfs_sync_dir(vfs_posix(), meta->dir, err);
    return rc == OMEN_OK ? meta_seal(meta, err) : rc;
}

/* Stored identity against the one asked for. The base sequence counts only at creation. */
static enum omen_err identity_check(const struct meta *meta, const struct meta_identity *identity,
        MDB_val stored, uint64_t *base_out, struct err *err)
{
    const uint8_t *v = stored.mv_data;
    if (stored.mv_size < 32 || !meta_value_good("i", 1, v, stored.mv_size))
        return err_set(err, OMEN_ECORRUPT, NULL, "%s: checksum of the identity", meta->data_path);
    if (load_u16(v + 4) != META_FORMAT_VERSION)
        return err_set(err, OMEN_EVERSION, NULL, "%s: format version %u", meta->data_path, load_u16(v + 4));
    if (load_u64(v + 8) != identity->shard_id || load_u64(v + 16) != identity->replica_id)
        return err_set(err, OMEN_EINVAL, load_u64(v + 8) != identity->shard_id ? "shard_id" : "replica_id",
                "%s belongs to shard %llu replica %llu", meta->data_path, (unsigned long long)load_u64(v + 8),
                (unsigned long long)load_u64(v + 16));
    *base_out = load_u64(v + 24);
    struct meta_identity same_base = *identity;
    same_base.base_sequence = *base_out;
    uint8_t *wanted = mem_must_alloc(META_IDENTITY_BYTES_MAX);
    size_t len = meta_identity_encode(&same_base, wanted);
    bool equal = len == stored.mv_size && memcmp(wanted, v, len) == 0;
    mem_free(wanted);
    return equal ? OMEN_OK
                 : err_set(err, OMEN_EINVAL, "schema", "differs from the one stored in %s", meta->data_path);
}

enum omen_err meta_head_read(struct meta *meta, const struct meta_identity *identity,
        struct meta_state *state_out, uint64_t *base_out, struct err *err)
{
    MDB_txn *txn = NULL;
    MDB_val k_state = { 1, (char[]){ 's' } }, k_identity = { 1, (char[]){ 'i' } }, v_state, v_identity;
    int mrc = mdb_txn_begin(meta->env, NULL, MDB_RDONLY, &txn);
    if (mrc == 0) mrc = mdb_get(txn, meta->dbi, &k_state, &v_state);
    if (mrc == 0) mrc = mdb_get(txn, meta->dbi, &k_identity, &v_identity);
    enum omen_err rc = OMEN_OK;
    if (mrc == MDB_NOTFOUND)
        rc = err_set(err, OMEN_ECORRUPT, NULL, "%s: state is missing", meta->data_path);
    else if (mrc != 0)
        rc = meta_lmdb_error(meta, mrc, "read", err);
    else if (!meta_state_decode(v_state.mv_data, v_state.mv_size, state_out))
        rc = err_set(err, OMEN_ECORRUPT, NULL, "%s: checksum of the state", meta->data_path);
    else
        rc = identity_check(meta, identity, v_identity, base_out, err);
    if (txn != NULL) mdb_txn_abort(txn);
    return rc;
}

/* Every key and value after an interrupted merge. */
static enum omen_err verify_all(struct meta *meta, struct err *err)
{
    MDB_txn *txn = NULL;
    MDB_cursor *cursor = NULL;
    MDB_val k, v;
    int mrc = mdb_txn_begin(meta->env, NULL, MDB_RDONLY, &txn);
    if (mrc == 0) mrc = mdb_cursor_open(txn, meta->dbi, &cursor);
    enum omen_err rc = OMEN_OK;
    for (MDB_cursor_op op = MDB_FIRST; mrc == 0 && rc == OMEN_OK; op = MDB_NEXT) {
        mrc = mdb_cursor_get(cursor, &k, &v, op);
        if (mrc == 0 && !meta_value_good(k.mv_data, k.mv_size, v.mv_data, v.mv_size))
            rc = err_set(err, OMEN_ECORRUPT, NULL, "%s: checksum of a value", meta->data_path);
    }
    if (mrc != 0 && mrc != MDB_NOTFOUND) rc = meta_lmdb_error(meta, mrc, "verify", err);
    if (cursor != NULL) mdb_cursor_close(cursor);
    if (txn != NULL) mdb_txn_abort(txn);
    return rc;
}

static enum omen_err meta_open_files(struct meta *meta, const struct meta_identity *identity, struct err *err)
{
    char checksum_path[META_PATH_BYTES], marker_path[META_PATH_BYTES];
    bool data = false, checksum = false, marker = false;
    meta_path(meta, "CHECKSUM", checksum_path);
    meta_path(meta, "MERGING", marker_path);
    enum omen_err rc = vfs_exists(vfs_posix(), meta->data_path, &data, err);
    if (rc == OMEN_OK) rc = vfs_exists(meta->vfs, checksum_path, &checksum, err);
    if (rc == OMEN_OK) rc = vfs_exists(meta->vfs, marker_path, &marker, err);
    if (rc != OMEN_OK) return rc;
    if (!checksum && (!data || marker)) return meta_create(meta, identity, err);
    if (!checksum) return err_corrupt(err, checksum_path, 0, "file is missing");
    if (!data) return err_corrupt(err, meta->data_path, 0, "file is missing");
    if (!marker) {
        rc = checksum_verify(meta, err);
        return rc == OMEN_OK ? meta_env_open(meta, err) : rc;
    }
    LOG_WARN("meta.merge_interrupted", "path=\"%s\"", meta->data_path);
    rc = meta_env_open(meta, err);
    if (rc == OMEN_OK) rc = verify_all(meta, err);
    if (rc == OMEN_OK) rc = meta_seal(meta, err);
    if (rc != OMEN_EFULL) return rc;
    LOG_WARN("meta.seal_waits", "path=\"%s\"",
            meta->data_path); /* the marker stays: verified again at the next open */
    return OMEN_OK;
}

/* LMDB needs real directories also when the vfs is a simulated one. */
static enum omen_err dirs_make(struct meta *meta, struct err *err)
{
    enum omen_err rc = vfs_mkdir(meta->vfs, meta->dir, err);
    if (rc != OMEN_OK || meta->vfs == vfs_posix()) return rc;
    char parent[META_PATH_BYTES];
    snprintf(parent, sizeof parent, "%s", meta->dir);
    char *slash = strrchr(parent, '/');
    if (slash != NULL && slash != parent) {
        *slash = '\0';
        rc = vfs_mkdir(vfs_posix(), parent, err);
    }
    return rc == OMEN_OK ? vfs_mkdir(vfs_posix(), meta->dir, err) : rc;
}

enum omen_err meta_open(struct vfs *vfs, const char *dir, const struct meta_identity *identity,
        struct meta **meta_out, struct meta_state *state_out, uint64_t *base_out, struct err *err)
{
    *meta_out = NULL;
    if (strlen(dir) + sizeof "/CHECKSUM.tmp" > META_PATH_BYTES)
        return err_set(err, OMEN_ETOOBIG, "dir", "path is too long");
    struct meta *meta = mem_must_calloc(1, sizeof *meta);
    meta->vfs = vfs;
    snprintf(meta->dir, sizeof meta->dir, "%s", dir);
    meta_path(meta, "data.mdb", meta->data_path);
    enum omen_err rc = dirs_make(meta, err);
    if (rc == OMEN_OK) rc = meta_open_files(meta, identity, err);
    if (rc == OMEN_OK) rc = meta_head_read(meta, identity, state_out, base_out, err);
    if (rc != OMEN_OK) {
        meta_close(meta);
        return rc;
    }
    meta->ops_written = state_out->op_next;
    *meta_out = meta;
    return OMEN_OK;
}

void meta_close(struct meta *meta)
{
    if (meta == NULL) return;
    CHECK(atomic_load(&meta->txn_count) == 0);
    if (meta->env != NULL) mdb_env_close(meta->env);
    mem_free(meta);
}

uint64_t meta_bytes(const struct meta *meta)
{
    MDB_envinfo info;
    MDB_stat stat;
    if (mdb_env_info(meta->env, &info) != 0 || mdb_env_stat(meta->env, &stat) != 0) return 0;
    return (info.me_last_pgno + 1) * stat.ms_psize;
}
