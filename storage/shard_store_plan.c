/* The plan of one entry: what its operations lead to, worked out before a single point is changed.
 *
 * Operations run in order over *slots*, one per point key that the entry touches. A slot knows the row that was there
 * before the entry and the state that the entry has given it so far: unchanged, a row of the entry, a derived point,
 * or absent. So later operations see earlier ones, the last wins, and only a slot's final state reaches the delta. A
 * request that must be refused (a payload grew too big, say) is undone slot by slot: requests are all or nothing.
 *
 * Determinism (CORRECTNESS A1): everything is a function of the entry and of the live points; how chunks, units,
 * deltas and LMDB lie does not enter. A replay of the same entry with its derived units at hand gives the same
 * outcomes.
 *
 * Threads: the apply worker. Buffers are kept from entry to entry. */
#include "common/err.h"

#include "storage/shard_store_plan.h"

#include "common/check.h"
#include "common/mem.h"

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
    mem_free(plan->aged);
    intent_set_unref(plan->intents);
    mem_free(plan);
}

/* ---- operations ---- */

/* Was the slot's point written after the sequence that the operation names? */
static bool slot_is_newer(const struct plan *p, const struct entry_op *op, const struct plan_slot *slot)
{
    if (op->if_version == 0) return false;
    bool changed = slot->state != SLOT_UNCHANGED;
    return (changed ? p->sequence : blocks_at(p->store->blocks, slot->before.block)->sequence) >
            op->if_version;
}

static enum omen_err op_on_slot(struct plan *p, const struct entry_op *op, uint32_t at, uint32_t slot,
        const struct doc_path *const *paths, uint32_t path_count, struct apply_outcome *outcome,
        struct err *err)
{
    if (op->kind != POINT_UPSERT && !plan_slot_alive(&p->slots[slot])) return OMEN_OK;
    if (slot_is_newer(p, op, &p->slots[slot])) return OMEN_OK;
    outcome->affected++;
    if (op->kind == POINT_UPSERT && op->expires_ms != 0 && op->expires_ms <= p->store->log_time_ms)
        return plan_slot_set(p, slot, SLOT_ABSENT, 0, err); /* expired before it came */
    if (op->kind == POINT_UPSERT) return plan_slot_set(p, slot, SLOT_ENTRY_ROW, at, err);
    if (op->kind == POINT_DELETE) return plan_slot_set(p, slot, SLOT_ABSENT, 0, err);
    return plan_payload_op(p, op, paths, path_count, slot, err);
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
        rc = plan_paths_parse(p, op.payload, &paths, &path_count, err);
        if (rc != OMEN_OK || p->reject != OMEN_OK) return rc;
    }
    rc = op.any_key ? plan_slots_of_id(p, op.key.id, &slot, err) : plan_slot_get(p, &op.key, &slot, err);
    while (rc == OMEN_OK && p->reject == OMEN_OK && slot != PLAN_NONE) {
        rc = op_on_slot(p, &op, at, slot, paths, path_count, outcome, err);
        slot = op.any_key ? p->slots[slot].next_same_id : PLAN_NONE;
    }
    return rc;
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

enum omen_err plan_request_ops(struct plan *p, const struct entry_request *request,
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
        if (slot->state == SLOT_DERIVED && slot->value == i) rc = plan_derived_emit(p, &p->derived[i], err);
    }
    return rc;
}

enum omen_err store_op_id_timely(const struct op_id *id, uint64_t log_time_ms, uint64_t retention_ms)
{
    if (log_time_ms > retention_ms && id->issue_ms < log_time_ms - retention_ms) return OMEN_EOPEXPIRED;
    return id->issue_ms > log_time_ms && id->issue_ms - log_time_ms > retention_ms ? OMEN_EINVAL : OMEN_OK;
}

/* A write by filter may take longer than the retention; its outcome is remembered from its end on. */
static bool record_outlives_issue(const struct shard_store *s, const struct op_record *r)
{
    return r != NULL && r->since_ms != 0 && r->since_ms + s->op_retention_ms >= s->log_time_ms;
}

/* Was the op applied before, is it under way, or is it out of the time the table remembers? Then nothing is to be done. */
static bool op_id_answers(struct plan *p, const struct op_id *id, struct apply_outcome *outcome)
{
    const struct shard_store *s = p->store;
    if (id->client == 0) return false;
    const struct op_record *r = op_table_find(s->ops, id->client, id->seq);
    const struct intent *open = plan_intent_of_op(p, id);
    if (open != NULL) {
        outcome->code = OMEN_EBUSY;
        outcome->intent = open->work->id;
        return true;
    }
    if (!record_outlives_issue(s, r)) {
        outcome->code = store_op_id_timely(id, s->log_time_ms, s->op_retention_ms);
        if (outcome->code != OMEN_OK) return true;
    }
    if (r == NULL) return false;
    *outcome = (struct apply_outcome){ .code = (enum omen_err)r->code,
        .affected = r->affected,
        .sequence = r->sequence,
        .duplicate = true };
    return true;
}

static enum omen_err plan_request(struct plan *p, uint32_t i, struct apply_outcome *outcome, struct err *err)
{
    struct entry_request request;
    struct entry_intent intent;
    entry_request_at(p->entry, i, &request);
    (void)entry_intent_at(p->entry, i, &intent);
    *outcome = (struct apply_outcome){ .code = OMEN_OK, .sequence = p->sequence };
    if (intent.kind == ENTRY_INTENT_STEP) return plan_intent_step(p, &request, &intent, outcome, err);
    if (op_id_answers(p, &request.op_id, outcome)) return OMEN_OK;
    if (intent.kind == ENTRY_INTENT_BEGIN)
        return plan_intent_begin(p, i, &request.op_id, &intent, outcome, err);
    enum omen_err rc = plan_request_ops(p, &request, outcome, err);
    if (rc != OMEN_OK || request.op_id.client == 0) return rc;
    struct op_record record = { request.op_id.client, request.op_id.seq, request.op_id.issue_ms, p->sequence,
        outcome->affected, (uint16_t)outcome->code, 0 };
    rc = op_table_put(p->store->ops, &record);
    return rc == OMEN_OK ? OMEN_OK : err_set(err, rc, NULL, "table of applied ops");
}

/* ---- age ---- */

/* Points whose time has come die: their slots are absent before the first request. No more than a bound of the
 * living, so that an entry writes little; the others are absent all the same and die of a later one. The dead are
 * only taken off the heap, which lets no more of them gather than the living and 1,024 (expiry.c). */
static enum omen_err plan_age(struct plan *p, struct err *err)
{
    struct shard_store *s = p->store;
    uint64_t most = PLAN_AGED_MIN + 2ull * p->entry->op_count;
    p->aged_count = 0;
    /* Those that died before do not count: how many of them there are depends on when this store was opened. */
    for (uint64_t living = 0; living < most && expiry_next_ms(&s->expiry) <= s->log_time_ms;) {
        enum omen_err rc = PLAN_RESERVE_ONE(p->aged, p->aged_count, p->aged_cap, err);
        if (rc != OMEN_OK) return rc;
        struct expiry_item item = expiry_take(&s->expiry);
        p->aged[p->aged_count++] = item;
        const struct block *b = blocks_at(s->blocks, item.row.block);
        if (block_row_died(b, item.row.op) != 0) continue;
        living++;
        struct entry_op op;
        uint32_t slot;
        row_op(s, item.row, &op);
        rc = plan_slot_get(p, &op.key, &slot, err);
        if (rc != OMEN_OK) return rc;
    }
    return OMEN_OK;
}

void plan_abandon(struct plan *plan, struct shard_store *s)
{
    while (plan->aged_count > 0) expiry_put_back(&s->expiry, plan->aged[--plan->aged_count]);
    intent_set_unref(plan_intents_take(plan));
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

enum omen_err plan_entry(struct plan *plan, struct shard_store *s, uint64_t sequence,
        const struct entry *entry, struct plan_units *units, struct apply_outcome *outcomes, struct err *err)
{
    CHECK(units->staged == 1);
    plan->store = s;
    plan->entry = entry;
    plan->sequence = sequence;
    plan->units = units;
    plan->first_block = blocks_count(s->blocks);
    plan->derived_count = 0;
    plan->derived_bytes = 0;
    plan->replay_unit = plan->replay_op = 0;
    buffers_trim(plan);
    entry_builder_reset(plan->builder);
    plan->aged_count = 0;
    CHECK(plan->intents == NULL);
    enum omen_err rc = plan_slots_reset(plan, entry->op_count, err);
    if (rc == OMEN_OK) rc = plan_age(plan, err);
    struct apply_outcome unused;
    for (uint32_t i = 0; i < entry->request_count && rc == OMEN_OK; i++)
        rc = plan_request(plan, i, outcomes != NULL ? &outcomes[i] : &unused, err);
    if (rc == OMEN_OK) rc = plan_derived_end(plan, err);
    return rc == OMEN_OK ? expiry_reserve(&s->expiry, plan->slot_count, err) : rc;
}

static void row_dies(struct shard_store *s, struct row_ref row, uint64_t sequence)
{
    struct block *b = blocks_at(s->blocks, row.block);
    block_row_die(b, row.op, sequence);
    atomic_store_explicit(&s->died_last, sequence, memory_order_release);
    s->digest -= b->digests[row.op];
    if (entry_expires_ms(&b->entry, row.op) != 0) expiry_died(&s->expiry, s->blocks);
}

static void row_lives(struct shard_store *s, struct row_ref row)
{
    struct block *b = blocks_at(s->blocks, row.block);
    block_row_live(b, row.op);
    s->digest += b->digests[row.op];
    uint64_t expires_ms = entry_expires_ms(&b->entry, row.op);
    if (expires_ms != 0) expiry_add(&s->expiry, expires_ms, row);
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
        if (was) row_dies(s, slot->before, plan->sequence);
        if (!row_is_none(row)) row_lives(s, row);
        delta_put(s->active, &slot->key, plan->sequence, row, &slot->spot);
        points = points - was + !row_is_none(row);
    }
    return points;
}
