/* What meta.c (open, read) and meta_merge.c (write) share. Private to storage/meta. */
#ifndef OMEN_STORAGE_META_INTERNAL_H
#define OMEN_STORAGE_META_INTERNAL_H

#include <lmdb.h>
#include <stdatomic.h>

#include "storage/meta/meta.h"

#define META_PATH_BYTES 4096

struct meta {
    struct vfs *vfs;
    MDB_env *env;
    MDB_dbi dbi; /* the unnamed database: no second lookup per transaction */
    char dir[META_PATH_BYTES];
    char data_path[META_PATH_BYTES];
    uint64_t merge_bytes; /* how far a merge may need data.mdb to grow; merge's thread */
    uint64_t ops_written; /* op records numbered below lie in LMDB; merge's thread */
    _Atomic uint32_t txn_count;
};

/* OMEN_EFULL, OMEN_ENOMEM, OMEN_ECORRUPT or OMEN_EIO naming data.mdb. */
enum omen_err meta_lmdb_error(const struct meta *meta, int mdb_rc, const char *what, struct err *err);

/* meta.c: what opening is made of. */
OMEN_CHECKED enum omen_err meta_env_open(struct meta *meta, struct err *err);
OMEN_CHECKED enum omen_err meta_head_read(struct meta *meta, const struct meta_identity *identity,
        struct meta_state *state_out, uint64_t *base_out, struct err *err);
OMEN_CHECKED enum omen_err meta_remove_if_there(struct vfs *vfs, const char *path, struct err *err);
/* The marker that a merge may be under way. */
OMEN_CHECKED enum omen_err meta_marker_set(struct meta *meta, struct err *err);

#endif
