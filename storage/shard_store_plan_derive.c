/* Payload operations of a plan, and the derived units they end in: each changed point is appended whole, vectors copied,
 * so that every live row of the stream is a whole point. */
#include "common/err.h"

#include "storage/shard_store_plan.h"

#include "common/mem.h"

/* ---- payload operations ---- */

static struct doc derived_doc(const struct plan *p, const struct plan_derived *d)
{
    return d->doc_len == 0 ? (struct doc){ NULL, 0 } : (struct doc){ p->docs.data + d->doc_off, d->doc_len };
}

/* The point a slot holds now: its payload goes to *payload_out, the rest into *point_out. */
static void slot_point(const struct plan *p, const struct plan_slot *slot, struct plan_derived *point_out,
        struct doc *payload_out)
{
    if (slot->state == SLOT_DERIVED) {
        *point_out = p->derived[slot->value];
        *payload_out = derived_doc(p, point_out);
        return;
    }
    const struct collection_schema *schema = &p->store->schema;
    const struct entry *e = p->entry;
    uint32_t at = slot->value;
    if (slot->state == SLOT_UNCHANGED) {
        e = &blocks_at(p->store->blocks, slot->before.block)->entry;
        at = slot->before.op;
    }
    struct entry_op op;
    entry_op_at(e, at, &op);
    *point_out = (struct plan_derived){ .shard_key = op.shard_key, .expires_ms = op.expires_ms };
    for (uint32_t f = 0; f < schema->field_count; f++)
        if (op.rows[f] != ENTRY_NO_ROW)
            point_out->vectors[f] = entry_row(e, f, op.rows[f], schema->fields[f].dim);
    *payload_out = op.payload;
}

enum omen_err plan_paths_parse(struct plan *p, struct doc list, const struct doc_path ***paths_out,
        uint32_t *count_out, struct err *err)
{
    *count_out = 0;
    *paths_out = NULL;
    if (list.data == NULL || doc_type(list) != DOC_ARRAY) {
        p->reject = OMEN_EINVAL;
        return OMEN_OK;
    }
    const struct doc_path **paths = arena_calloc(&p->arena, doc_count(list) + 1, sizeof *paths);
    if (paths == NULL) return err_set(err, OMEN_ENOMEM, NULL, "paths of a payload operation");
    struct doc_iter it = doc_iter(list);
    for (struct doc item; doc_next(&it, NULL, &item);) {
        struct bytes text = doc_type(item) == DOC_STRING ? doc_string(item) : (struct bytes){ NULL, 0 };
        enum omen_err rc = text.data == NULL
                ? OMEN_EINVAL
                : doc_path_parse((const char *)text.data, text.len, &p->arena, &paths[*count_out], NULL);
        if (rc == OMEN_ENOMEM) return err_set(err, rc, NULL, "paths of a payload operation");
        if (rc != OMEN_OK) {
            p->reject = OMEN_EINVAL;
            return OMEN_OK;
        }
        ++*count_out;
    }
    *paths_out = paths;
    return OMEN_OK;
}

/* The shard key is immutable (CORRECTNESS I1): where the old payload spells it, the new one must spell it alike. */
static bool shard_key_kept(const struct plan *p, struct bytes shard_key, struct doc before, struct doc after)
{
    const struct doc_path *path = p->store->shard_key_path;
    if (path == NULL || shard_key.len == 0 || before.data == NULL) return true;
    struct doc old = doc_path_first(path, before);
    struct doc now = after.data == NULL ? after : doc_path_first(path, after);
    return old.data == NULL || (now.data != NULL && doc_type(old) == doc_type(now) && doc_equal(old, now));
}

/* What `op` makes of `payload`, into `scratch`. */
static enum omen_err payload_changed(struct plan *p, const struct entry_op *op,
        const struct doc_path *const *paths, uint32_t path_count, struct doc payload, struct err *err)
{
    enum omen_err rc = OMEN_OK;
    buf_clear(&p->scratch);
    if (op->kind == POINT_SET_PAYLOAD && op->payload.data != NULL)
        rc = doc_merge(payload, op->payload, &p->scratch, NULL);
    else if (op->kind == POINT_DELETE_PAYLOAD && payload.data != NULL)
        rc = doc_remove(payload, paths, path_count, &p->scratch, NULL);
    else if (op->kind == POINT_OVERWRITE_PAYLOAD)
        buf_append(&p->scratch, op->payload.data, op->payload.len);
    else
        buf_append(&p->scratch, payload.data, payload.len);
    if (p->scratch.failed || rc == OMEN_ENOMEM) {
        buf_fini(&p->scratch);
        buf_init(&p->scratch);
        return err_set(err, OMEN_ENOMEM, NULL, "payload operation");
    }
    if (rc != OMEN_OK) p->reject = rc;
    return OMEN_OK;
}

static uint64_t derived_cost(const struct plan *p, const struct plan_derived *d)
{
    uint64_t bytes = 64 + d->shard_key.len + d->doc_len;
    for (uint32_t f = 0; f < p->store->schema.field_count; f++)
        if (d->vectors[f] != NULL) bytes += 4ull * entry_row_stride(p->store->schema.fields[f].dim);
    return bytes;
}

enum omen_err plan_payload_op(struct plan *p, const struct entry_op *op, const struct doc_path *const *paths,
        uint32_t path_count, uint32_t slot, struct err *err)
{
    struct plan_derived point;
    struct doc payload;
    slot_point(p, &p->slots[slot], &point, &payload);
    enum omen_err rc = payload_changed(p, op, paths, path_count, payload, err);
    if (rc != OMEN_OK || p->reject != OMEN_OK) return rc;
    struct doc changed = { p->scratch.len > 0 ? p->scratch.data : NULL, (uint32_t)p->scratch.len };
    if (!shard_key_kept(p, point.shard_key, payload, changed)) {
        p->reject = OMEN_EINVAL;
        return OMEN_OK;
    }
    point.slot = slot;
    point.row = ROW_NONE;
    point.doc_off = (uint32_t)p->docs.len;
    point.doc_len = changed.len;
    p->derived_bytes += derived_cost(p, &point);
    if (p->derived_bytes > PLAN_DERIVED_BYTES_MAX) {
        p->reject = OMEN_ETOOBIG;
        return OMEN_OK;
    }
    buf_append(&p->docs, changed.data, changed.len);
    if (p->docs.failed) return err_set(err, OMEN_ENOMEM, NULL, "payload operation");
    rc = PLAN_RESERVE_ONE(p->derived, p->derived_count, p->derived_cap, err);
    if (rc != OMEN_OK) return rc;
    p->derived[p->derived_count++] = point;
    return plan_slot_set(p, slot, SLOT_DERIVED, p->derived_count - 1, err);
}

/* ---- derived units ---- */

static enum omen_err unit_stage(struct plan *p, const struct stream_unit *unit, struct err *err)
{
    struct entry e;
    entry_attach(unit->body, &p->store->schema, &e);
    enum omen_err rc = store_block_stage(p->store, p->units->staged, unit, &e, err);
    if (rc == OMEN_OK) p->units->staged++;
    return rc;
}

/* Write the points gathered in the builder as the next derived unit. */
static enum omen_err unit_flush(struct plan *p, struct err *err)
{
    uint8_t *bytes = NULL;
    uint32_t len = 0;
    struct stream_unit unit;
    if (entry_builder_op_count(p->builder) == 0) return OMEN_OK;
    enum omen_err rc = entry_builder_finish(p->builder, p->entry->log_time_ms, p->entry->epoch, true, &bytes,
            &len);
    if (rc != OMEN_OK) return err_set(err, rc, NULL, "derived entry");
    rc = stream_append(p->store->stream, STREAM_UNIT_DERIVED, p->sequence, p->units->staged, bytes, len,
            &unit, err);
    mem_free(bytes);
    entry_builder_reset(p->builder);
    return rc == OMEN_OK ? unit_stage(p, &unit, err) : rc;
}

/* In a replay the point is there already: take the next one and see that it is the same. */
static enum omen_err derived_replay(struct plan *p, struct plan_derived *d, struct err *err)
{
    for (;; p->replay_unit++, p->replay_op = 0) {
        if (p->replay_unit == p->units->replay_count) {
            struct stream_position at = blocks_at(p->store->blocks, p->first_block)->unit.position;
            return stream_corrupt(p->store->stream, at, "derived points of the entry are missing", err);
        }
        const struct stream_unit *unit = &p->units->replay[p->replay_unit];
        if (p->units->staged == p->replay_unit + 1) {
            enum omen_err rc = unit_stage(p, unit, err);
            if (rc != OMEN_OK) return rc;
        }
        struct block *b = blocks_at(p->store->blocks, p->first_block + 1 + p->replay_unit);
        if (p->replay_op == b->entry.op_count) continue;
        struct entry_op op;
        entry_op_at(&b->entry, p->replay_op, &op);
        struct doc doc = derived_doc(p, d);
        if (!plan_key_equal(&op.key, &p->slots[d->slot].key) || op.payload.len != doc.len ||
                op.expires_ms != d->expires_ms ||
                (doc.len > 0 && memcmp(op.payload.data, doc.data, doc.len) != 0))
            return stream_corrupt(p->store->stream, unit->position,
                    "derived point differs from what its entry gives", err);
        d->row = (struct row_ref){ p->first_block + 1 + p->replay_unit, p->replay_op++ };
        return OMEN_OK;
    }
}

enum omen_err plan_derived_emit(struct plan *p, struct plan_derived *d, struct err *err)
{
    if (p->units->replay != NULL) return derived_replay(p, d, err);
    const struct plan_slot *slot = &p->slots[d->slot];
    struct point_op op = { .kind = POINT_UPSERT,
        .id = slot->key.id,
        .key = { d->shard_key },
        .payload = derived_doc(p, d),
        .expires_ms = d->expires_ms };
    memcpy(op.vectors, d->vectors, sizeof op.vectors);
    d->row = (struct row_ref){ p->first_block + p->units->staged, entry_builder_op_count(p->builder) };
    enum omen_err rc = entry_builder_add(p->builder, &op);
    if (rc != OMEN_OK) return err_set(err, rc, NULL, "derived entry");
    return entry_builder_bytes(p->builder) >= PLAN_UNIT_BYTES ? unit_flush(p, err) : OMEN_OK;
}

/* Every derived point that lies in the stream was one that the entry gives. */
static enum omen_err replay_exhausted(const struct plan *p, struct err *err)
{
    uint32_t count = p->units->replay_count;
    bool all_units = p->units->staged == count + 1;
    if (count == 0 && all_units) return OMEN_OK;
    if (all_units && p->replay_unit == count - 1 &&
            p->replay_op == blocks_at(p->store->blocks, p->first_block + count)->entry.op_count)
        return OMEN_OK;
    return stream_corrupt(p->store->stream, p->units->replay[count - 1].position, "derived point of no entry",
            err);
}

enum omen_err plan_derived_end(struct plan *p, struct err *err)
{
    return p->units->replay != NULL ? replay_exhausted(p, err) : unit_flush(p, err);
}
