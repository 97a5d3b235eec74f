/* Copies of data.mdb for another replica, and what makes one's own of them. Contract in meta.h.
 *
 * An adoption runs under the marker MERGING, like a merge: without CHECKSUM beside it an interrupted one is no store yet,
 * and is begun again by whoever fetched the copy. */
#include "common/err.h"

#include "storage/meta/meta_internal.h"

#include <stdio.h>

#include "common/mem.h"
#include "storage/meta/meta_format.h"

enum omen_err meta_copy(struct meta *meta, const char *dir, struct err *err)
{
    int rc = mdb_env_copy(meta->env, dir);
    return rc == 0 ? OMEN_OK : meta_lmdb_error(meta, rc, "copy", err);
}

static enum omen_err identity_write(struct meta *meta, const struct meta_identity *identity, struct err *err)
{
    uint8_t *value = mem_must_alloc(META_IDENTITY_BYTES_MAX);
    MDB_val k = { 1, (char[]){ 'i' } }, v = { meta_identity_encode(identity, value), value };
    MDB_txn *txn = NULL;
    int rc = mdb_txn_begin(meta->env, NULL, 0, &txn);
    if (rc == 0) rc = mdb_put(txn, meta->dbi, &k, &v, 0);
    if (rc == 0)
        rc = mdb_txn_commit(txn);
    else if (txn != NULL)
        mdb_txn_abort(txn);
    mem_free(value);
    return rc == 0 ? OMEN_OK : meta_lmdb_error(meta, rc, "adopt", err);
}

enum omen_err meta_adopt(struct vfs *vfs, const char *dir, uint64_t from_replica,
        const struct meta_identity *identity, struct err *err)
{
    char lock_path[META_PATH_BYTES];
    struct meta *meta = mem_must_calloc(1, sizeof *meta);
    struct meta_identity theirs = *identity, ours = *identity;
    struct meta_state state;
    struct err first;
    meta->vfs = vfs;
    enum omen_err rc = OMEN_OK;
    if ((size_t)snprintf(meta->dir, sizeof meta->dir, "%s", dir) + sizeof "/CHECKSUM.tmp" > sizeof meta->dir)
        rc = err_set(err, OMEN_ETOOBIG, "dir", "path is too long");
    snprintf(lock_path, sizeof lock_path, "%.4000s/lock.mdb", meta->dir);
    snprintf(meta->data_path, sizeof meta->data_path, "%.4000s/data.mdb", meta->dir);
    if (rc == OMEN_OK) rc = meta_marker_set(meta, err);
    if (rc == OMEN_OK) rc = meta_remove_if_there(vfs_posix(), lock_path, err);
    if (rc == OMEN_OK) rc = meta_env_open(meta, err);
    theirs.replica_id = from_replica;
    if (rc == OMEN_OK) {
        rc = meta_head_read(meta, &theirs, &state, &ours.base_sequence, &first);
        if (rc == OMEN_OK)
            rc = identity_write(meta, &ours, err);
        else if (rc != OMEN_EINVAL ||
                meta_head_read(meta, identity, &state, &ours.base_sequence, NULL) != OMEN_OK)
            *err = first;
        else
            rc = OMEN_OK; /* it is ours already */
    }
    if (rc == OMEN_OK) rc = vfs_sync_dir(vfs_posix(), meta->dir, err);
    if (rc == OMEN_OK) rc = meta_seal(meta, err);
    meta_close(meta);
    return rc;
}
