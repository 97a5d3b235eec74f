/* LMDB on a full disk. Its files lie on a real one that has room, so what would find none is refused where LMDB, or we for
 * it, ask: the room for a merge, the copy for a lease, commits that nobody has made room for (of a new file, of the identity
 * of a copied one). lmdb.h enters by storage/meta/ only; these are its functions as the linker sees them. */
#include "common/err.h"

#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include "tests/sim/sim.h"

int mdb_env_get_path(void *env, const char **path);
void *mdb_txn_env(void *txn);
void __real_mdb_txn_abort(void *txn);
void __wrap_mdb_txn_abort(void *txn);
int __real_fallocate(int fd, int mode, off_t offset, off_t len);
int __wrap_fallocate(int fd, int mode, off_t offset, off_t len);
int __real_mdb_env_copy(void *env, const char *path);
int __wrap_mdb_env_copy(void *env, const char *path);
int __real_mdb_put(void *txn, unsigned dbi, void *key, void *data, unsigned flags);
int __wrap_mdb_put(void *txn, unsigned dbi, void *key, void *data, unsigned flags);
int __real_mdb_txn_commit(void *txn);
int __wrap_mdb_txn_commit(void *txn);

static void *last_put; /* a transaction that writes */
static bool allocated; /* and has its room */

void sim_lmdb_begin(void)
{
    last_put = NULL;
    allocated = false;
}

int __wrap_fallocate(int fd, int mode, off_t offset, off_t len)
{
    char link[64], path[SIM_PATH_BYTES * 2];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    path[n > 0 ? n : 0] = '\0';
    allocated = !sim_disk_refuses(path);
    if (allocated) return __real_fallocate(fd, mode, offset, len);
    errno = ENOSPC;
    return -1;
}

int __wrap_mdb_env_copy(void *env, const char *path)
{
    return sim_disk_refuses(path) ? ENOSPC : __real_mdb_env_copy(env, path);
}

int __wrap_mdb_put(void *txn, unsigned dbi, void *key, void *data, unsigned flags)
{
    last_put = txn;
    return __real_mdb_put(txn, dbi, key, data, flags);
}

/* The next one may lie at the same address. */
void __wrap_mdb_txn_abort(void *txn)
{
    if (txn == last_put) sim_lmdb_begin();
    __real_mdb_txn_abort(txn);
}

int __wrap_mdb_txn_commit(void *txn)
{
    const char *path = "";
    bool writes = txn == last_put, has_room = allocated;
    last_put = NULL;
    allocated = false;
    if (writes) (void)mdb_env_get_path(mdb_txn_env(txn), &path);
    if (!writes || has_room || !sim_disk_refuses(path)) return __real_mdb_txn_commit(txn);
    __real_mdb_txn_abort(txn);
    return ENOSPC;
}
