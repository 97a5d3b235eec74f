/* The plan of one entry: what its operations lead to, worked out before a single point is changed.
 *
 * Operations run in order over *slots*, one per point key that the entry touches. A slot knows the row that was there
 * before the entry and the state that the entry has given it so far: unchanged, a row of the entry, a derived point, or
 * absent. So later operations see earlier ones, the last wins, and only a slot's final state reaches the delta. A
 * request that must be refused (a payload grew too big, say) is undone slot by slot: requests are all or nothing.
 *
 * Determinism (CORRECTNESS A1): everything is a function of the entry and of the live points; how chunks, units, deltas
 * and LMDB lie does not enter. A replay of the same entry with its derived units at hand gives the same outcomes.
 *
 * Threads: the apply worker. Buffers are kept from entry to entry. */
#include "common/err.h"

#include "storage/shard_store_impl.h"

#include "common/check.h"
#include "common/mem.h"

#define PLAN_UNIT_BYTES (1u << 20)           /* a derived unit is closed past this */
#define PLAN_DERIVED_BYTES_MAX (256u << 20)  /* docs and vectors that one entry may derive; a request beyond: ETOOBIG */
#define PLAN_NONE UINT32_MAX
#define PLAN_KEEP_BYTES (16u << 20)          /* larger buffers are given back after the entry */

enum slot_state { SLOT_UNCHANGED, SLOT_ENTRY_ROW, SLOT_DERIVED, SLOT_ABSENT };

struct plan_slot {
    struct point_key key;
    struct row_ref before;     /* ROW_NONE: no such point before the entry */
    enum slot_state state;
    uint32_t value;            /* ENTRY_ROW: op; DERIVED: position in `derived` */
    uint32_t next_same_id;     /* when ids are chained */
    struct delta_spot spot;    /* in the active delta */
};

struct plan_undo { uint32_t slot; enum slot_state state; uint32_t value; };

/* A whole point made by a payload operation. */
struct plan_derived {
    uint32_t slot;
    struct bytes shard_key;                         /* in the stream or the entry */
    const float *vectors[OMEN_VECTOR_FIELDS_MAX];   /* likewise */
    uint32_t doc_off, doc_len;                      /* in `docs`; len 0 = absent */
    struct row_ref row;                             /* once emitted */
};

struct plan {
    struct plan_slot *slots;
    uint32_t slot_count, slot_cap;
    uint32_t *table;           /* [table_size] slot + 1 by key; 0 = empty; power of two, at most half full */
    uint32_t table_size;
    uint32_t *id_table;        /* [table_size] first slot + 1 by id */
    bool ids_chained;          /* from the first any_key operation of the entry on */
    struct plan_undo *undo;
    uint32_t undo_count, undo_cap;
    struct plan_derived *derived;
    uint32_t derived_count, derived_cap;
    struct buf docs, scratch;
    struct arena arena;        /* of one operation: parsed paths */
    struct entry_builder *builder;

    struct shard_store *store; /* during plan_entry and plan_commit */
    const struct entry *entry;
    uint64_t sequence;
    uint32_t first_block;      /* staged block of the entry */
    struct plan_units *units;
    uint64_t derived_bytes;
    uint32_t replay_unit, replay_op;
    enum omen_err reject;      /* why the request at hand must be refused */
};

struct plan *plan_new(const struct collection_schema *schema)
{
    struct plan *p = mem_must_calloc(1, sizeof *p);
    p->builder = entry_builder_new(schema);
    buf_init(&p->docs);
    buf_init(&p->scratch);
    arena_init(&p->arena, 4096, 0);
    return p;
}

void plan_free(struct plan *plan)
{
    if (plan == NULL) return;
    entry_builder_free(plan->builder);
    buf_fini(&plan->docs);
    buf_fini(&plan->scratch);
    arena_fini(&plan->arena);
    mem_free(plan->slots);
    mem_free(plan->table);
    mem_free(plan->id_table);
    mem_free(plan->undo);
    mem_free(plan->derived);
    mem_free(plan);
}

/* Room for one more item in an array that doubles. */
static enum omen_err reserve_one(void **items, uint32_t count, uint32_t *cap, size_t item_bytes, struct err *err)
{
    if (count < *cap) return OMEN_OK;
    uint32_t grown_cap = *cap ? 2 * *cap : 256;
    void *grown = mem_realloc(*items, grown_cap * item_bytes);
    if (grown == NULL) return err_set(err, OMEN_ENOMEM, NULL, "planning an entry");
    *items = grown;
    *cap = grown_cap;
    return OMEN_OK;
}

#define RESERVE_ONE(items, count, cap, err)                                                                      \
    reserve_one((void **)&(items), (count), &(cap), sizeof *(items), (err))

/* ---- slots ---- */

static uint32_t hash_words(uint64_t a, uint64_t b, uint64_t c)
{
    uint64_t h = (a ^ (a >> 32)) * 0x9e3779b97f4a7c15u;
    h = (h ^ b ^ (h >> 29)) * 0xbf58476d1ce4e5b9u;
    h = (h ^ c ^ (h >> 32)) * 0x94d049bb133111ebu;
    return (uint32_t)(h >> 32);
}

static uint32_t id_hash(point_id id) { return hash_words(id.lo, id.hi, id.kind); }
static uint32_t key_hash(const struct point_key *k) { return hash_words(k->id.lo, k->id.hi ^ k->key_hi, k->key_lo + k->id.kind); }

static bool key_equal(const struct point_key *a, const struct point_key *b)
{
    return point_id_equal(a->id, b->id) && a->key_hi == b->key_hi && a->key_lo == b->key_lo;
}

static void table_insert(struct plan *p, uint32_t slot)
{
    uint32_t mask = p->table_size - 1, i = key_hash(&p->slots[slot].key) & mask;
    while (p->table[i] != 0) i = (i + 1) & mask;
    p->table[i] = slot + 1;
}

static void id_chain_insert(struct plan *p, uint32_t slot)
{
    uint32_t mask = p->table_size - 1, i = id_hash(p->slots[slot].key.id) & mask;
    while (p->id_table[i] != 0 && !point_id_equal(p->slots[p->id_table[i] - 1].key.id, p->slots[slot].key.id))
        i = (i + 1) & mask;
    p->slots[slot].next_same_id = p->id_table[i] == 0 ? PLAN_NONE : p->id_table[i] - 1;
    p->id_table[i] = slot + 1;
}

/* Make the tables `size` large and put every slot in. */
static enum omen_err tables_build(struct plan *p, uint32_t size, struct err *err)
{
    if (size != p->table_size) {
        uint32_t *table = mem_alloc(size * sizeof *table), *id_table = mem_alloc(size * sizeof *id_table);
        if (table == NULL || id_table == NULL) {
            mem_free(table);
            mem_free(id_table);
            return err_set(err, OMEN_ENOMEM, NULL, "planning an entry");
        }
        mem_free(p->table);
        mem_free(p->id_table);
        p->table = table;
        p->id_table = id_table;
        p->table_size = size;
    }
    memset(p->table, 0, size * sizeof *p->table);
    for (uint32_t i = 0; i < p->slot_count; i++) table_insert(p, i);
    if (!p->ids_chained) return OMEN_OK;
    memset(p->id_table, 0, size * sizeof *p->id_table);
    for (uint32_t i = 0; i < p->slot_count; i++) id_chain_insert(p, i);
    return OMEN_OK;
}

/* The slot of `key`, made when the entry has not touched it yet. */
static enum omen_err slot_get(struct plan *p, const struct point_key *key, uint32_t *slot_out, struct err *err)
{
    uint32_t mask = p->table_size - 1;
    for (uint32_t i = key_hash(key) & mask; p->table[i] != 0; i = (i + 1) & mask) {
        if (!key_equal(&p->slots[p->table[i] - 1].key, key)) continue;
        *slot_out = p->table[i] - 1;
        return OMEN_OK;
    }
    struct shard_store *s = p->store;
    struct plan_slot slot = { .key = *key, .before = ROW_NONE, .state = SLOT_UNCHANGED, .next_same_id = PLAN_NONE };
    enum omen_err rc = OMEN_OK;
    if (!delta_find(s->active, key, &slot.spot, &slot.before))
        rc = view_find_older(s, &s->apply_pin, p->sequence - 1, key, &slot.before, err);
    if (rc == OMEN_OK) rc = RESERVE_ONE(p->slots, p->slot_count, p->slot_cap, err);
    if (rc == OMEN_OK && 2 * (p->slot_count + 1) > p->table_size) rc = tables_build(p, 2 * p->table_size, err);
    if (rc != OMEN_OK) return rc;
    *slot_out = p->slot_count++;
    p->slots[*slot_out] = slot;
    table_insert(p, *slot_out);
    if (p->ids_chained) id_chain_insert(p, *slot_out);
    return OMEN_OK;
}

static bool slot_alive(const struct plan_slot *s)
{
    return s->state == SLOT_UNCHANGED ? !row_is_none(s->before) : s->state != SLOT_ABSENT;
}

static enum omen_err slot_set(struct plan *p, uint32_t slot, enum slot_state state, uint32_t value, struct err *err)
{
    enum omen_err rc = RESERVE_ONE(p->undo, p->undo_count, p->undo_cap, err);
    if (rc != OMEN_OK) return rc;
    struct plan_slot *s = &p->slots[slot];
    p->undo[p->undo_count++] = (struct plan_undo){ slot, s->state, s->value };
    s->state = state;
    s->value = value;
    return OMEN_OK;
}

/* Give every point of `id` a slot, whatever its shard key, and return the chain of its slots. */
static enum omen_err slots_of_id(struct plan *p, point_id id, uint32_t *first_out, struct err *err)
{
    struct shard_store *s = p->store;
    enum omen_err rc = OMEN_OK;
    if (!p->ids_chained) {
        p->ids_chained = true;
        rc = tables_build(p, p->table_size, err);
        if (rc != OMEN_OK) return rc;
    }
    struct point_key from = { .id = id }, key;
    struct view_iter it;
    rc = view_iter_open(s, &s->apply_pin, p->sequence - 1, &from, &it, err);
    if (rc != OMEN_OK) return rc;
    for (;;) {
        struct row_ref row;
        uint32_t slot;
        bool found = false;
        rc = view_iter_next(&it, &key, &row, &found, err);
        if (rc != OMEN_OK || !found || !point_id_equal(key.id, id)) break;
        rc = slot_get(p, &key, &slot, err);
        if (rc != OMEN_OK) break;
    }
    view_iter_close(&it);
    if (rc != OMEN_OK) return rc;
    uint32_t mask = p->table_size - 1, i = id_hash(id) & mask;
    while (p->id_table[i] != 0 && !point_id_equal(p->slots[p->id_table[i] - 1].key.id, id)) i = (i + 1) & mask;
    *first_out = p->id_table[i] == 0 ? PLAN_NONE : p->id_table[i] - 1;
    return OMEN_OK;
}

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
    *point_out = (struct plan_derived){ .shard_key = op.shard_key };
    for (uint32_t f = 0; f < schema->field_count; f++)
        if (op.rows[f] != ENTRY_NO_ROW) point_out->vectors[f] = entry_row(e, f, op.rows[f], schema->fields[f].dim);
    *payload_out = op.payload;
}

/* Parsed paths of a DELETE_PAYLOAD operation. A path that does not parse refuses the request. */
static enum omen_err paths_parse(struct plan *p, struct doc list, const struct doc_path ***paths_out,
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
        enum omen_err rc = text.data == NULL ? OMEN_EINVAL
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
static enum omen_err payload_changed(struct plan *p, const struct entry_op *op, const struct doc_path *const *paths,
        uint32_t path_count, struct doc payload, struct err *err)
{
    enum omen_err rc = OMEN_OK;
    buf_clear(&p->scratch);
    if (op->kind == POINT_SET_PAYLOAD && op->payload.data != NULL) rc = doc_merge(payload, op->payload, &p->scratch, NULL);
    else if (op->kind == POINT_DELETE_PAYLOAD && payload.data != NULL)
        rc = doc_remove(payload, paths, path_count, &p->scratch, NULL);
    else if (op->kind == POINT_OVERWRITE_PAYLOAD) buf_append(&p->scratch, op->payload.data, op->payload.len);
    else buf_append(&p->scratch, payload.data, payload.len);
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

/* `op` on the living point of one slot. */
static enum omen_err payload_op(struct plan *p, const struct entry_op *op, const struct doc_path *const *paths,
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
    rc = RESERVE_ONE(p->derived, p->derived_count, p->derived_cap, err);
    if (rc != OMEN_OK) return rc;
    p->derived[p->derived_count++] = point;
    return slot_set(p, slot, SLOT_DERIVED, p->derived_count - 1, err);
}

/* ---- operations ---- */

static enum omen_err op_on_slot(struct plan *p, const struct entry_op *op, uint32_t at, uint32_t slot,
        const struct doc_path *const *paths, uint32_t path_count, struct apply_outcome *outcome, struct err *err)
{
    if (op->kind != POINT_UPSERT && !slot_alive(&p->slots[slot])) return OMEN_OK;
    outcome->affected++;
    if (op->kind == POINT_UPSERT) return slot_set(p, slot, SLOT_ENTRY_ROW, at, err);
    if (op->kind == POINT_DELETE) return slot_set(p, slot, SLOT_ABSENT, 0, err);
    return payload_op(p, op, paths, path_count, slot, err);
}

static enum omen_err plan_op(struct plan *p, uint32_t at, struct apply_outcome *outcome, struct err *err)
{
    struct entry_op op;
    const struct doc_path **paths = NULL;
    uint32_t path_count = 0, slot = PLAN_NONE;
    enum omen_err rc = OMEN_OK;
    entry_op_at(p->entry, at, &op);
    if (op.kind == POINT_DELETE_PAYLOAD) {
        arena_reset(&p->arena);
        rc = paths_parse(p, op.payload, &paths, &path_count, err);
        if (rc != OMEN_OK || p->reject != OMEN_OK) return rc;
    }
    rc = op.any_key ? slots_of_id(p, op.key.id, &slot, err) : slot_get(p, &op.key, &slot, err);
    while (rc == OMEN_OK && p->reject == OMEN_OK && slot != PLAN_NONE) {
        rc = op_on_slot(p, &op, at, slot, paths, path_count, outcome, err);
        slot = op.any_key ? p->slots[slot].next_same_id : PLAN_NONE;
    }
    return rc;
}

/* ---- derived units ---- */

static enum omen_err unit_stage(struct plan *p, const struct stream_unit *unit, struct err *err)
{
    struct entry e;
    entry_attach(unit->body, &p->store->schema, &e);
    enum omen_err rc = blocks_stage(p->store->blocks, p->units->staged, unit, &e, err);
    if (rc == OMEN_OK) p->units->staged++;
    return rc;
}

/* Write the points gathered in the builder as the next derived unit. */
static enum omen_err unit_flush(struct plan *p, struct err *err)
{
    uint8_t *bytes = NULL;
    uint32_t len = 0;
    struct stream_unit unit;
    if (p->units->replay != NULL || entry_builder_op_count(p->builder) == 0) return OMEN_OK;
    enum omen_err rc = entry_builder_finish(p->builder, p->entry->log_time_ms, p->entry->epoch, true, &bytes, &len);
    if (rc != OMEN_OK) return err_set(err, rc, NULL, "derived entry");
    rc = stream_append(p->store->stream, STREAM_UNIT_DERIVED, p->sequence, p->units->staged, bytes, len, &unit, err);
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
        if (!key_equal(&op.key, &p->slots[d->slot].key) || op.payload.len != doc.len
                || (doc.len > 0 && memcmp(op.payload.data, doc.data, doc.len) != 0))
            return stream_corrupt(p->store->stream, unit->position, "derived point differs from what its entry gives", err);
        d->row = (struct row_ref){ p->first_block + 1 + p->replay_unit, p->replay_op++ };
        return OMEN_OK;
    }
}

static enum omen_err derived_emit(struct plan *p, struct plan_derived *d, struct err *err)
{
    if (p->units->replay != NULL) return derived_replay(p, d, err);
    const struct plan_slot *slot = &p->slots[d->slot];
    struct point_op op = { .kind = POINT_UPSERT, .id = slot->key.id, .key = { d->shard_key }, .payload = derived_doc(p, d) };
    memcpy(op.vectors, d->vectors, sizeof op.vectors);
    d->row = (struct row_ref){ p->first_block + p->units->staged, entry_builder_op_count(p->builder) };
    enum omen_err rc = entry_builder_add(p->builder, &op);
    if (rc != OMEN_OK) return err_set(err, rc, NULL, "derived entry");
    return entry_builder_bytes(p->builder) >= PLAN_UNIT_BYTES ? unit_flush(p, err) : OMEN_OK;
}

/* ---- requests ---- */

static void request_undo(struct plan *p, uint32_t derived_count, size_t docs_len, uint64_t derived_bytes)
{
    while (p->undo_count > 0) {
        const struct plan_undo *u = &p->undo[--p->undo_count];
        p->slots[u->slot].state = u->state;
        p->slots[u->slot].value = u->value;
    }
    p->derived_count = derived_count;
    p->docs.len = docs_len;
    p->derived_bytes = derived_bytes;
}

/* The operations of one request: all of them, or none and outcome->code says why. */
static enum omen_err plan_request_ops(struct plan *p, const struct entry_request *request,
        struct apply_outcome *outcome, struct err *err)
{
    uint32_t derived_count = p->derived_count;
    size_t docs_len = p->docs.len;
    uint64_t derived_bytes = p->derived_bytes;
    enum omen_err rc = OMEN_OK;
    p->undo_count = 0;
    p->reject = OMEN_OK;
    for (uint32_t i = 0; i < request->op_count && rc == OMEN_OK && p->reject == OMEN_OK; i++)
        rc = plan_op(p, request->first_op + i, outcome, err);
    if (rc != OMEN_OK) return rc;
    if (p->reject != OMEN_OK) {
        request_undo(p, derived_count, docs_len, derived_bytes);
        *outcome = (struct apply_outcome){ .code = p->reject, .sequence = p->sequence };
        return OMEN_OK;
    }
    /* Derived points that a later operation of the request replaced are not worth a row. */
    for (uint32_t i = derived_count; i < p->derived_count && rc == OMEN_OK; i++) {
        const struct plan_slot *slot = &p->slots[p->derived[i].slot];
        if (slot->state == SLOT_DERIVED && slot->value == i) rc = derived_emit(p, &p->derived[i], err);
    }
    return rc;
}

/* Was the op applied before, or is it out of the time the table remembers? Then nothing is to be done. */
static bool op_id_answers(struct plan *p, const struct op_id *id, struct apply_outcome *outcome)
{
    const struct shard_store *s = p->store;
    if (id->client == 0) return false;
    if (s->log_time_ms > s->op_retention_ms && id->issue_ms < s->log_time_ms - s->op_retention_ms) {
        outcome->code = OMEN_EOPEXPIRED;
        return true;
    }
    if (id->issue_ms > s->log_time_ms && id->issue_ms - s->log_time_ms > s->op_retention_ms) {
        outcome->code = OMEN_EINVAL;
        return true;
    }
    const struct op_record *r = op_table_find(s->ops, id->client, id->seq);
    if (r == NULL) return false;
    *outcome = (struct apply_outcome){ (enum omen_err)r->code, r->affected, r->sequence, true };
    return true;
}

static enum omen_err plan_request(struct plan *p, uint32_t i, struct apply_outcome *outcome, struct err *err)
{
    struct entry_request request;
    entry_request_at(p->entry, i, &request);
    *outcome = (struct apply_outcome){ .code = OMEN_OK, .sequence = p->sequence };
    if (op_id_answers(p, &request.op_id, outcome)) return OMEN_OK;
    enum omen_err rc = plan_request_ops(p, &request, outcome, err);
    if (rc != OMEN_OK || request.op_id.client == 0) return rc;
    struct op_record record = { request.op_id.client, request.op_id.seq, request.op_id.issue_ms, p->sequence,
        outcome->affected, (uint16_t)outcome->code };
    rc = op_table_put(p->store->ops, &record);
    return rc == OMEN_OK ? OMEN_OK : err_set(err, rc, NULL, "table of applied ops");
}

/* Buffers that one huge entry has grown are not kept for ever. */
static void buffers_trim(struct plan *p)
{
    if (p->docs.cap > PLAN_KEEP_BYTES) {
        buf_fini(&p->docs);
        buf_init(&p->docs);
    }
    buf_clear(&p->docs);
    p->docs.failed = false;
}

/* Every derived point that lies in the stream was one that the entry gives. */
static enum omen_err replay_exhausted(const struct plan *p, struct err *err)
{
    uint32_t count = p->units->replay_count;
    bool all_units = p->units->staged == count + 1;
    if (count == 0 && all_units) return OMEN_OK;
    if (all_units && p->replay_unit == count - 1
            && p->replay_op == blocks_at(p->store->blocks, p->first_block + count)->entry.op_count)
        return OMEN_OK;
    return stream_corrupt(p->store->stream, p->units->replay[count - 1].position, "derived point of no entry", err);
}

enum omen_err plan_entry(struct plan *plan, struct shard_store *s, uint64_t sequence, const struct entry *entry,
        struct plan_units *units, struct apply_outcome *outcomes, struct err *err)
{
    CHECK(units->staged == 1);
    plan->store = s;
    plan->entry = entry;
    plan->sequence = sequence;
    plan->units = units;
    plan->first_block = blocks_count(s->blocks);
    plan->slot_count = plan->derived_count = 0;
    plan->derived_bytes = 0;
    plan->ids_chained = false;
    plan->replay_unit = plan->replay_op = 0;
    buffers_trim(plan);
    entry_builder_reset(plan->builder);
    uint32_t size = 1024;
    while (size < 2 * entry->op_count + 2) size *= 2;
    enum omen_err rc = tables_build(plan, size, err);
    struct apply_outcome unused;
    for (uint32_t i = 0; i < entry->request_count && rc == OMEN_OK; i++)
        rc = plan_request(plan, i, outcomes != NULL ? &outcomes[i] : &unused, err);
    if (rc == OMEN_OK) rc = unit_flush(plan, err);
    if (rc == OMEN_OK && units->replay != NULL) rc = replay_exhausted(plan, err);
    return rc;
}

uint64_t plan_commit(struct plan *plan, struct shard_store *s, uint64_t points)
{
    for (uint32_t i = 0; i < plan->slot_count; i++) {
        const struct plan_slot *slot = &plan->slots[i];
        struct row_ref row = ROW_NONE;
        bool was = !row_is_none(slot->before);
        if (slot->state == SLOT_UNCHANGED || (slot->state == SLOT_ABSENT && !was)) continue;
        if (slot->state == SLOT_ENTRY_ROW) row = (struct row_ref){ plan->first_block, slot->value };
        if (slot->state == SLOT_DERIVED) row = plan->derived[slot->value].row;
        if (was) {
            struct block *b = blocks_at(s->blocks, slot->before.block);
            atomic_store_explicit(&b->died[slot->before.op], plan->sequence, memory_order_relaxed);
        }
        if (!row_is_none(row))
            atomic_store_explicit(&blocks_at(s->blocks, row.block)->died[row.op], 0, memory_order_relaxed);
        delta_put(s->active, &slot->key, plan->sequence, row, &slot->spot);
        points = points - was + !row_is_none(row);
    }
    return points;
}
