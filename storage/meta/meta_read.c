/* Reading LMDB through pooled transactions; contract in meta.h.
 *
 * Every value is checked against its crc before it is believed: LMDB maps the file, and what the disk flips after the
 * open was verified shows up here. */
#include "common/err.h"

#include "storage/meta/meta_internal.h"

#include "common/bytes.h"
#include "common/check.h"
#include "common/mem.h"
#include "storage/meta/meta_format.h"

struct meta_txn {
    struct meta *meta;
    MDB_txn *txn; /* NULL before the first begin */
    bool active;
};

struct meta_cursor {
    struct meta_txn *txn;
    MDB_cursor *cursor;
    MDB_val key, value; /* under the cursor */
    bool found;         /* key holds the next point to hand out */
};

enum omen_err meta_txn_new(struct meta *meta, struct meta_txn **txn_out, struct err *err)
{
    *txn_out = NULL;
    if (atomic_fetch_add(&meta->txn_count, 1) >= META_READERS_MAX) {
        atomic_fetch_sub(&meta->txn_count, 1);
        return err_set(err, OMEN_EBUSY, NULL, "more than %u readers of %s", META_READERS_MAX,
                meta->data_path);
    }
    struct meta_txn *t = mem_must_calloc(1, sizeof *t);
    t->meta = meta;
    *txn_out = t;
    return OMEN_OK;
}

enum omen_err meta_txn_begin(struct meta_txn *txn, struct err *err)
{
    CHECK(!txn->active);
    int mrc = txn->txn == NULL ? mdb_txn_begin(txn->meta->env, NULL, MDB_RDONLY, &txn->txn)
                               : mdb_txn_renew(txn->txn);
    if (mrc != 0) return meta_lmdb_error(txn->meta, mrc, "begin to read", err);
    txn->active = true;
    return OMEN_OK;
}

void meta_txn_end(struct meta_txn *txn)
{
    if (!txn->active) return;
    mdb_txn_reset(txn->txn);
    txn->active = false;
}

void meta_txn_free(struct meta_txn *txn)
{
    if (txn == NULL) return;
    if (txn->txn != NULL) mdb_txn_abort(txn->txn);
    atomic_fetch_sub(&txn->meta->txn_count, 1);
    mem_free(txn);
}

static enum omen_err value_corrupt(const struct meta *meta, const MDB_val *key, struct err *err)
{
    char text[POINT_ID_TEXT_BYTES] = "?";
    struct point_key k;
    if (key->mv_size == META_POINT_KEY_BYTES) {
        point_key_decode((const uint8_t *)key->mv_data + 1, &k);
        point_id_format(k.id, text);
    }
    return err_set(err, OMEN_ECORRUPT, NULL, "%s: checksum of the location of point %s", meta->data_path,
            text);
}

enum omen_err meta_get(struct meta_txn *txn, const struct point_key *key, struct meta_location *location_out,
        bool *found_out, struct err *err)
{
    uint8_t bytes[META_POINT_KEY_BYTES];
    meta_point_key(key, bytes);
    MDB_val k = { sizeof bytes, bytes }, v;
    CHECK(txn->active);
    int mrc = mdb_get(txn->txn, txn->meta->dbi, &k, &v);
    *found_out = mrc == 0;
    if (mrc == MDB_NOTFOUND) return OMEN_OK;
    if (mrc != 0) return meta_lmdb_error(txn->meta, mrc, "read", err);
    if (!meta_location_decode(bytes, sizeof bytes, v.mv_data, v.mv_size, location_out))
        return value_corrupt(txn->meta, &k, err);
    return OMEN_OK;
}

/* Note what the cursor stands on; points end where the next prefix begins. */
static enum omen_err cursor_take(struct meta_cursor *c, int mrc, struct err *err)
{
    c->found = mrc == 0 && c->key.mv_size > 0 && *(const char *)c->key.mv_data == 'p';
    return mrc == 0 || mrc == MDB_NOTFOUND ? OMEN_OK : meta_lmdb_error(c->txn->meta, mrc, "read", err);
}

enum omen_err meta_cursor_open(struct meta_txn *txn, const struct point_key *from,
        struct meta_cursor **cursor_out, struct err *err)
{
    uint8_t bytes[META_POINT_KEY_BYTES] = { 'p' };
    *cursor_out = NULL;
    CHECK(txn->active);
    struct meta_cursor *c = mem_must_calloc(1, sizeof *c);
    c->txn = txn;
    int mrc = mdb_cursor_open(txn->txn, txn->meta->dbi, &c->cursor);
    if (mrc != 0) {
        mem_free(c);
        return meta_lmdb_error(txn->meta, mrc, "read", err);
    }
    if (from != NULL) meta_point_key(from, bytes);
    c->key = (MDB_val){ from != NULL ? sizeof bytes : 1, bytes };
    enum omen_err rc = cursor_take(c, mdb_cursor_get(c->cursor, &c->key, &c->value, MDB_SET_RANGE), err);
    if (rc != OMEN_OK) {
        meta_cursor_close(c);
        return rc;
    }
    *cursor_out = c;
    return OMEN_OK;
}

enum omen_err meta_cursor_next(struct meta_cursor *cursor, struct point_key *key_out,
        struct meta_location *location_out, bool *found_out, struct err *err)
{
    *found_out = cursor->found;
    if (!cursor->found) return OMEN_OK;
    const MDB_val *k = &cursor->key, *v = &cursor->value;
    if (!meta_location_decode(k->mv_data, k->mv_size, v->mv_data, v->mv_size, location_out))
        return value_corrupt(cursor->txn->meta, k, err);
    point_key_decode((const uint8_t *)k->mv_data + 1, key_out);
    return cursor_take(cursor, mdb_cursor_get(cursor->cursor, &cursor->key, &cursor->value, MDB_NEXT), err);
}

void meta_cursor_close(struct meta_cursor *cursor)
{
    if (cursor == NULL) return;
    mdb_cursor_close(cursor->cursor);
    mem_free(cursor);
}

enum omen_err meta_ops(struct meta_txn *txn, const struct meta_state *state,
        enum omen_err (*each)(void *arg, const struct op_record *record), void *arg, struct err *err)
{
    const struct meta *meta = txn->meta;
    for (uint64_t n = state->op_first; n < state->op_next;) {
        uint8_t key[META_OPS_KEY_BYTES];
        uint64_t chunk = n / OP_CHUNK_RECORDS;
        meta_ops_key(chunk, key);
        MDB_val k = { sizeof key, key }, v;
        int mrc = mdb_get(txn->txn, meta->dbi, &k, &v);
        if (mrc == MDB_NOTFOUND)
            return err_set(err, OMEN_ECORRUPT, NULL, "%s: applied ops are missing", meta->data_path);
        if (mrc != 0) return meta_lmdb_error(meta, mrc, "read", err);
        const uint8_t *value = v.mv_data;
        if (v.mv_size < META_OPS_HEAD_BYTES || !meta_value_good(key, sizeof key, value, v.mv_size))
            return err_set(err, OMEN_ECORRUPT, NULL, "%s: checksum of applied ops", meta->data_path);
        uint64_t first = chunk * OP_CHUNK_RECORDS + load_u32(value + 4), count = load_u32(value + 8);
        uint64_t until = (chunk + 1) * OP_CHUNK_RECORDS < state->op_next ? (chunk + 1) * OP_CHUNK_RECORDS
                                                                         : state->op_next;
        if (v.mv_size != META_OPS_HEAD_BYTES + count * OP_RECORD_BYTES || first > n || first + count < until)
            return err_set(err, OMEN_ECORRUPT, NULL, "%s: range of applied ops", meta->data_path);
        for (; n < until; n++) {
            struct op_record r;
            op_record_decode(value + META_OPS_HEAD_BYTES + (n - first) * OP_RECORD_BYTES, &r);
            enum omen_err rc = each(arg, &r);
            if (rc != OMEN_OK) return err_set(err, rc, NULL, "loading applied ops from %s", meta->data_path);
        }
    }
    return OMEN_OK;
}

enum omen_err meta_intents(struct meta_txn *txn, struct intent_set *set, struct err *err)
{
    const struct meta *meta = txn->meta;
    MDB_cursor *cursor = NULL;
    MDB_val k = { 1, (char[]){ 'n' } }, v;
    enum omen_err rc = OMEN_OK;
    int mrc = mdb_cursor_open(txn->txn, meta->dbi, &cursor);
    if (mrc == 0) mrc = mdb_cursor_get(cursor, &k, &v, MDB_SET_RANGE);
    while (mrc == 0 && rc == OMEN_OK && k.mv_size > 0 && *(const char *)k.mv_data == 'n') {
        const uint8_t *key = k.mv_data;
        bool good = k.mv_size == META_INTENT_KEY_BYTES &&
                meta_value_good(k.mv_data, k.mv_size, v.mv_data, v.mv_size);
        rc = good ? intent_decode((struct intent_id){ load_u64_be(key + 1), load_u32_be(key + 9) }, v.mv_data,
                            v.mv_size, set)
                  : OMEN_ECORRUPT;
        if (rc == OMEN_OK) mrc = mdb_cursor_get(cursor, &k, &v, MDB_NEXT);
    }
    if (cursor != NULL) mdb_cursor_close(cursor);
    if (rc != OMEN_OK) return err_set(err, rc, NULL, "%s: a write by filter under way", meta->data_path);
    return mrc == 0 || mrc == MDB_NOTFOUND ? OMEN_OK : meta_lmdb_error(meta, mrc, "read", err);
}
