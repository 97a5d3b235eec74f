/* One synced write transaction that moves data.mdb to a later state; contract in meta.h.
 *
 *   marker durable -> puts and deletes -> commit (LMDB syncs data, then its meta page) -> CHECKSUM replaced -> marker gone
 *
 * A crash anywhere leaves either state whole, told apart by LMDB's meta pages. A failed commit leaves the marker: the file
 * may hold pages of the lost transaction, so the next merge, or the next open, writes the checksum. */
#include "common/err.h"

#include "storage/meta/meta_internal.h"

#include "common/bytes.h"
#include "common/check.h"
#include "common/mem.h"
#include "storage/meta/meta_format.h"

struct meta_merge {
    struct meta *meta;
    MDB_txn *txn;
    MDB_cursor *cursor;
    uint64_t ops_next; /* becomes ops_written after the commit */
};

enum omen_err meta_merge_begin(struct meta *meta, struct meta_merge **merge_out, struct err *err)
{
    *merge_out = NULL;
    enum omen_err rc = meta_marker_set(meta, err);
    if (rc != OMEN_OK) return rc;
    struct meta_merge *m = mem_must_calloc(1, sizeof *m);
    m->meta = meta;
    m->ops_next = meta->ops_written;
    int mrc = mdb_txn_begin(meta->env, NULL, 0, &m->txn);
    if (mrc == 0) mrc = mdb_cursor_open(m->txn, meta->dbi, &m->cursor);
    if (mrc != 0) {
        meta_merge_abort(m);
        return meta_lmdb_error(meta, mrc, "begin a merge", err);
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

/* Chunks below the first record still kept. */
static enum omen_err ops_expire(struct meta_merge *merge, uint64_t first_chunk, struct err *err)
{
    for (;;) {
        MDB_val k = { 1, (char[]){ 'o' } }, v;
        int mrc = mdb_cursor_get(merge->cursor, &k, &v, MDB_SET_RANGE);
        if (mrc == MDB_NOTFOUND) return OMEN_OK;
        if (mrc != 0) return meta_lmdb_error(merge->meta, mrc, "merge into", err);
        const uint8_t *key = k.mv_data;
        if (k.mv_size != META_OPS_KEY_BYTES || key[0] != 'o' || load_u64_be(key + 1) >= first_chunk)
            return OMEN_OK;
        uint8_t copy[META_OPS_KEY_BYTES];
        memcpy(copy, key, sizeof copy);
        k = (MDB_val){ sizeof copy, copy };
        mrc = mdb_del(merge->txn, merge->meta->dbi, &k, NULL);
        if (mrc != 0) return meta_lmdb_error(merge->meta, mrc, "merge into", err);
    }
}

enum omen_err meta_merge_ops(struct meta_merge *merge, const struct op_range *ops, struct err *err)
{
    uint64_t chunk = ops->first / OP_CHUNK_RECORDS;
    enum omen_err rc = ops_expire(merge, chunk, err);
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
    if (mrc != 0) {
        meta_merge_abort(merge);
        return meta_lmdb_error(meta, mrc, "merge into", err);
    }
    mdb_cursor_close(merge->cursor);
    mrc = mdb_txn_commit(merge->txn); /* gone also when it fails */
    uint64_t ops_next = merge->ops_next;
    mem_free(merge);
    if (mrc != 0) return meta_lmdb_error(meta, mrc, "commit a merge into", err);
    meta->ops_written = ops_next;
    return OMEN_OK;
}

void meta_merge_abort(struct meta_merge *merge)
{
    if (merge->cursor != NULL) mdb_cursor_close(merge->cursor);
    if (merge->txn != NULL) mdb_txn_abort(merge->txn);
    mem_free(merge);
}
