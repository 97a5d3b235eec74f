/* One synced write transaction that moves data.mdb to a later state; contract in meta.h.
 *
 *   marker durable -> puts and deletes -> commit (LMDB syncs data, then its meta page) -> CHECKSUM replaced -> marker gone
 *
 * A crash anywhere leaves either state whole, told apart by LMDB's meta pages. A failed commit leaves the marker: the file
 * may hold pages of the lost transaction, so the next merge, or the next open, writes the checksum.
 *
 * A full disk (CORRECTNESS D2). LMDB reports one as EIO (a short write), like a broken disk. So the space that a merge may
 * need is allocated past the end of data.mdb before it begins (the length stays, so CHECKSUM holds) and given back after:
 * with it, writes do not run out of room. Where a file system cannot do that, an EIO is put down to a full disk when there
 * was less free than the merge may need and LMDB's environment is whole: it is broken for good (MDB_PANIC) only when the
 * meta page, which lies in blocks it has always had, could not be written, and nothing before that touches the old state. */
#include "common/err.h"

#include "storage/meta/meta_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/log.h"
#include "common/mem.h"
#include "storage/meta/meta_format.h"

struct meta_merge {
    struct meta *meta;
    MDB_txn *txn;
    MDB_cursor *cursor;
    uint64_t ops_next; /* becomes ops_written after the commit */
};

/* ---- room ---- */

/* How far data.mdb may grow: every leaf that a put can reach is copied, new ones are half full at worst, so are the
 * branches above them; then the op chunks and the writes by filter in overflow pages, and the list of freed pages. */
static enum omen_err growth_bound(struct meta *meta, uint64_t points, const struct op_range *ops,
        const struct intent_set *intents, uint64_t *bytes_out, struct err *err)
{
    MDB_stat stat;
    int mrc = mdb_env_stat(meta->env, &stat);
    if (mrc != 0) return meta_lmdb_error(meta, mrc, "stat of", err);
    uint64_t entry_bytes = META_POINT_KEY_BYTES + META_LOCATION_BYTES +
            12; /* LMDB's node header, slot, padding */
    uint64_t touched = points < stat.ms_leaf_pages ? points : stat.ms_leaf_pages;
    uint64_t fresh = points * entry_bytes / (stat.ms_psize / 2 - 64) + 1;
    uint64_t branches = stat.ms_branch_pages + (touched + fresh) / 16 + stat.ms_depth + 2;
    uint64_t op_first = ops->first > meta->ops_written ? ops->first : meta->ops_written;
    uint64_t chunks = (ops->next > op_first ? ops->next - op_first : 0) / OP_CHUNK_RECORDS + 2;
    uint64_t pages = touched + fresh + branches + chunks * (META_OPS_BYTES_MAX / stat.ms_psize + 2);
    for (uint32_t i = 0; i < intents->count; i++)
        pages += intent_bytes(&intents->items[i]) / stat.ms_psize + 3;
    pages += stat.ms_overflow_pages / 128 + pages / 128 +
            64; /* freed pages: 8 bytes each, in pages of their own */
    *bytes_out = pages * stat.ms_psize;
    return OMEN_OK;
}

/* Let go of what lies past the end. */
static void reserve_drop(struct meta *meta)
{
    struct stat st;
    int fd = open(meta->data_path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    if (fstat(fd, &st) != 0 || ftruncate(fd, st.st_size) != 0)
        LOG_WARN("meta.reserve_drop", "path=\"%s\" errno=%d", meta->data_path, errno);
    close(fd);
}

/* Is there less than the merge may need? Also a limit on the length of files (ulimit -f) ends in short writes. */
static enum omen_err space_check(struct meta *meta, struct err *err)
{
    uint64_t free_bytes = 0, total_bytes = 0;
    struct rlimit limit;
    enum omen_err rc = vfs_free_space(vfs_posix(), meta->dir, &free_bytes, &total_bytes, err);
    if (rc != OMEN_OK) return rc;
    uint64_t length = meta_bytes(meta);
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
            limit.rlim_cur < length + free_bytes)
        free_bytes = limit.rlim_cur > length ? limit.rlim_cur - length : 0;
    if (free_bytes >= meta->merge_bytes) return OMEN_OK;
    return err_set(err, OMEN_EFULL, NULL, "a merge into %s may need %llu bytes, %llu are free",
            meta->data_path, (unsigned long long)meta->merge_bytes, (unsigned long long)free_bytes);
}

static enum omen_err reserve_take(struct meta *meta, struct err *err)
{
    struct stat st;
    int fd = open(meta->data_path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return err_os(err, errno, "open", meta->data_path);
    int rc = fstat(fd, &st);
    /* From 0: also holes that pages of a lost transaction left. */
    if (rc == 0) rc = fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, st.st_size + (off_t)meta->merge_bytes);
    int why = rc == 0 ? 0 : errno;
    close(fd);
    if (why == 0) return OMEN_OK;
    if (why == EOPNOTSUPP || why == ENOSYS || why == EINTR) return space_check(meta, err);
    reserve_drop(meta); /* what was had of it */
    return err_os(err, why == EFBIG ? ENOSPC : why, "allocate room for a merge into", meta->data_path);
}

/* A failure of LMDB as it is to be told: OMEN_EFULL when the disk was full and the old state stands. The transaction is
 * over. */
static enum omen_err merge_error(struct meta *meta, enum omen_err rc, struct err *err)
{
    MDB_txn *txn = NULL;
    struct err full;
    err_clear(&full);
    if (rc == OMEN_EIO && space_check(meta, &full) == OMEN_EFULL) {
        int mrc = mdb_txn_begin(meta->env, NULL, MDB_RDONLY, &txn);
        if (mrc == 0) {
            mdb_txn_abort(txn);
            rc = OMEN_EFULL;
            if (err != NULL) *err = full;
        }
    }
    reserve_drop(meta);
    return rc;
}

/* ---- merging ---- */

enum omen_err meta_merge_fail(struct meta_merge *merge, enum omen_err rc, struct err *err)
{
    struct meta *meta = merge->meta;
    if (merge->cursor != NULL) mdb_cursor_close(merge->cursor);
    if (merge->txn != NULL) mdb_txn_abort(merge->txn);
    mem_free(merge);
    return merge_error(meta, rc, err);
}

enum omen_err meta_merge_begin(struct meta *meta, uint64_t points, const struct op_range *ops,
        const struct intent_set *intents, struct meta_merge **merge_out, struct err *err)
{
    *merge_out = NULL;
    enum omen_err rc = growth_bound(meta, points, ops, intents, &meta->merge_bytes, err);
    if (rc == OMEN_OK) rc = meta_marker_set(meta, err);
    if (rc == OMEN_OK) rc = reserve_take(meta, err);
    if (rc != OMEN_OK) return rc;
    struct meta_merge *m = mem_must_calloc(1, sizeof *m);
    m->meta = meta;
    m->ops_next = meta->ops_written;
    int mrc = mdb_txn_begin(meta->env, NULL, 0, &m->txn);
    if (mrc == 0) mrc = mdb_cursor_open(m->txn, meta->dbi, &m->cursor);
    if (mrc != 0) {
        return meta_merge_fail(m, meta_lmdb_error(meta, mrc, "begin a merge", err), err);
    }
    *merge_out = m;
    return OMEN_OK;
}

enum omen_err meta_merge_put(struct meta_merge *merge, const struct point_key *key,
        const struct meta_location *location, struct err *err)
{
    uint8_t kb[META_POINT_KEY_BYTES], vb[META_LOCATION_BYTES];
    meta_point_key(key, kb);
    MDB_val k = { sizeof kb, kb }, v = { sizeof vb, vb };
    int mrc;
    if (location != NULL) {
        meta_location_encode(kb, location, vb);
        mrc = mdb_cursor_put(merge->cursor, &k, &v, 0);
    } else {
        mrc = mdb_del(merge->txn, merge->meta->dbi, &k, NULL);
        if (mrc == MDB_NOTFOUND) mrc = 0;
    }
    return mrc == 0 ? OMEN_OK : meta_lmdb_error(merge->meta, mrc, "merge into", err);
}

static enum omen_err ops_chunk_put(struct meta_merge *merge, const struct op_range *ops, uint64_t chunk,
        uint8_t *value, struct err *err)
{
    uint8_t key[META_OPS_KEY_BYTES];
    meta_ops_key(chunk, key);
    uint64_t first = chunk * OP_CHUNK_RECORDS, until = first + OP_CHUNK_RECORDS;
    if (first < ops->first) first = ops->first;
    if (until > ops->next) until = ops->next;
    memset(value, 0, META_OPS_HEAD_BYTES);
    store_u32(value + 4, (uint32_t)(first % OP_CHUNK_RECORDS));
    store_u32(value + 8, (uint32_t)(until - first));
    uint8_t *p = value + META_OPS_HEAD_BYTES;
    for (uint64_t n = first; n < until; n++, p += OP_RECORD_BYTES) op_record_encode(op_range_at(ops, n), p);
    meta_value_seal(key, sizeof key, value, (size_t)(p - value));
    MDB_val k = { sizeof key, key }, v = { (size_t)(p - value), value };
    int mrc = mdb_put(merge->txn, merge->meta->dbi, &k, &v, 0);
    return mrc == 0 ? OMEN_OK : meta_lmdb_error(merge->meta, mrc, "merge into", err);
}

/* Delete keys of `key_len` bytes that begin with `prefix`, up to but not at the first whose number (u64 BE after it) is
 * `end` or more. */
static enum omen_err keys_drop(struct meta_merge *merge, char prefix, size_t key_len, uint64_t end,
        struct err *err)
{
    for (;;) {
        MDB_val k = { 1, &prefix }, v;
        int mrc = mdb_cursor_get(merge->cursor, &k, &v, MDB_SET_RANGE);
        if (mrc == MDB_NOTFOUND) return OMEN_OK;
        if (mrc != 0) return meta_lmdb_error(merge->meta, mrc, "merge into", err);
        const uint8_t *key = k.mv_data;
        if (k.mv_size != key_len || key[0] != (uint8_t)prefix || load_u64_be(key + 1) >= end) return OMEN_OK;
        uint8_t copy[META_INTENT_KEY_BYTES];
        CHECK(key_len <= sizeof copy);
        memcpy(copy, key, key_len);
        k = (MDB_val){ key_len, copy };
        mrc = mdb_del(merge->txn, merge->meta->dbi, &k, NULL);
        if (mrc != 0) return meta_lmdb_error(merge->meta, mrc, "merge into", err);
    }
}

enum omen_err meta_merge_intents(struct meta_merge *merge, const struct intent_set *set, struct err *err)
{
    enum omen_err rc = keys_drop(merge, 'n', META_INTENT_KEY_BYTES, UINT64_MAX, err);
    for (uint32_t i = 0; rc == OMEN_OK && i < set->count; i++) {
        const struct intent *intent = &set->items[i];
        uint8_t key[META_INTENT_KEY_BYTES];
        size_t len = intent_bytes(intent);
        uint8_t *value = mem_alloc(len);
        if (value == NULL) return err_set(err, OMEN_ENOMEM, NULL, "no memory to merge a write by filter");
        meta_intent_key(intent->work->id, key);
        intent_encode(intent, value);
        meta_value_seal(key, sizeof key, value, len);
        MDB_val k = { sizeof key, key }, v = { len, value };
        int mrc = mdb_put(merge->txn, merge->meta->dbi, &k, &v, 0);
        mem_free(value);
        if (mrc != 0) rc = meta_lmdb_error(merge->meta, mrc, "merge into", err);
    }
    return rc;
}

enum omen_err meta_merge_ops(struct meta_merge *merge, const struct op_range *ops, struct err *err)
{
    uint64_t chunk = ops->first / OP_CHUNK_RECORDS;
    enum omen_err rc = keys_drop(merge, 'o', META_OPS_KEY_BYTES, chunk, err); /* below the first still kept */
    if (rc != OMEN_OK || ops->first == ops->next) return rc;
    if (chunk < merge->meta->ops_written / OP_CHUNK_RECORDS)
        chunk = merge->meta->ops_written / OP_CHUNK_RECORDS;
    uint8_t *value = mem_must_alloc(META_OPS_BYTES_MAX);
    for (; rc == OMEN_OK && chunk * OP_CHUNK_RECORDS < ops->next; chunk++)
        rc = ops_chunk_put(merge, ops, chunk, value, err);
    mem_free(value);
    if (rc == OMEN_OK) merge->ops_next = ops->next;
    return rc;
}

enum omen_err meta_merge_commit(struct meta_merge *merge, const struct meta_state *state, struct err *err)
{
    struct meta *meta = merge->meta;
    uint8_t bytes[META_STATE_BYTES];
    meta_state_encode(state, bytes);
    MDB_val k = { 1, (char[]){ 's' } }, v = { sizeof bytes, bytes };
    int mrc = mdb_put(merge->txn, meta->dbi, &k, &v, 0);
    if (mrc != 0) return meta_merge_fail(merge, meta_lmdb_error(meta, mrc, "merge into", err), err);
    mdb_cursor_close(merge->cursor);
    mrc = mdb_txn_commit(merge->txn); /* gone also when it fails */
    uint64_t ops_next = merge->ops_next;
    mem_free(merge);
    if (mrc != 0) return merge_error(meta, meta_lmdb_error(meta, mrc, "commit a merge into", err), err);
    meta->ops_written = ops_next;
    reserve_drop(meta);
    return OMEN_OK;
}
