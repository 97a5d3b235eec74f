/* Recovery: from LMDB and the stream to the state at the end of the last checkpoint.
 *
 *   units up to LMDB's sequence       checked; rows dead, but for those that a walk over LMDB names; of compacted
 *                                     chunks: what is left of them
 *   units after it, to the checkpoint checked; their entries run through the same plan and commit as when they were applied,
 *                                     with the derived units that lie there, which gives deltas, op table and deaths
 *   what lies past the checkpoint     is cut; the log delivers it again
 *
 * Every unit is checked in full (entry_parse deep): a byte that changed is answered by file and offset. */
#include "common/err.h"

#include "storage/shard_store_impl.h"

#include "common/check.h"
#include "common/mem.h"

#define RECOVER_DERIVED_MAX                                                                                  \
    4096u /* derived units of one entry: its limit of derived bytes over a unit's, and some */

struct recovery {
    struct shard_store *s;
    struct stream_end at; /* in the stream */
    uint64_t sequence;    /* of the last entry unit read */
    uint64_t log_time_ms; /* of the last one of which something is left */
    struct stream_unit derived[RECOVER_DERIVED_MAX];
    uint32_t derived_count;
};

static enum omen_err unit_corrupt(const struct recovery *r, const struct stream_unit *unit, const char *what,
        struct err *err)
{
    return stream_corrupt(r->s->stream, unit->position, what, err);
}

/* The next unit, whole, of the right kind and in sequence. */
static enum omen_err unit_next(struct recovery *r, struct stream_unit *unit_out, struct entry *entry_out,
        bool *end_out, struct err *err)
{
    struct err reason;
    err_clear(&reason);
    enum omen_err rc = stream_next(r->s->stream, &r->at, unit_out, end_out, err);
    if (rc != OMEN_OK || *end_out) return rc;
    *entry_out = (struct entry){ .log_time_ms = r->log_time_ms };
    if (unit_out->body != NULL)
        rc = entry_parse(unit_out->body, unit_out->body_bytes, &r->s->schema, true, entry_out, &reason);
    if (rc != OMEN_OK) return unit_corrupt(r, unit_out, reason.message, err);
    r->log_time_ms = entry_out->log_time_ms;
    if (!unit_out->compacted && entry_out->derived != (unit_out->type == STREAM_UNIT_DERIVED))
        return unit_corrupt(r, unit_out, "unit and entry disagree on their kind", err);
    if (unit_out->type == STREAM_UNIT_ENTRY) {
        if (unit_out->sequence != r->sequence + 1 || unit_out->part != 0)
            return unit_corrupt(r, unit_out, "entry out of sequence", err);
        r->sequence++;
    } else if (unit_out->sequence != r->sequence) {
        return unit_corrupt(r, unit_out, "derived unit of another entry", err);
    }
    return OMEN_OK;
}

static enum omen_err block_add_dead(struct recovery *r, const struct stream_unit *unit,
        const struct entry *entry, struct err *err)
{
    enum omen_err rc = store_block_stage(r->s, 0, unit, entry, err);
    if (rc == OMEN_OK) blocks_publish(r->s->blocks, 1);
    return rc;
}

/* Units that LMDB has seen. */
static enum omen_err scan_merged(struct recovery *r, const struct meta_state *state, struct err *err)
{
    uint64_t until = stream_position_pack(state->end.position);
    while (stream_position_pack(r->at.position) < until) {
        struct stream_unit unit;
        struct entry entry;
        bool end = false;
        enum omen_err rc = unit_next(r, &unit, &entry, &end, err);
        if (rc == OMEN_OK && end)
            rc = stream_corrupt(r->s->stream, r->at.position, "stream ends before LMDB's state", err);
        if (rc == OMEN_OK) rc = block_add_dead(r, &unit, &entry, err);
        if (rc != OMEN_OK) return rc;
    }
    if (stream_position_pack(r->at.position) != until || r->at.chain != state->end.chain ||
            r->sequence != state->sequence)
        return stream_corrupt(r->s->stream, state->end.position, "stream and LMDB's state disagree", err);
    return OMEN_OK;
}

/* Rows that LMDB names live. */
static enum omen_err walk_meta(struct shard_store *s, struct meta_txn *txn, const struct meta_state *state,
        struct err *err)
{
    struct meta_cursor *cursor;
    uint64_t points = 0;
    enum omen_err rc = meta_cursor_open(txn, NULL, &cursor, err);
    if (rc != OMEN_OK) return rc;
    for (;;) {
        struct point_key key;
        struct meta_location location;
        struct row_ref row;
        bool found = false;
        rc = meta_cursor_next(cursor, &key, &location, &found, err);
        if (rc != OMEN_OK || !found) break;
        rc = row_of_location(s, &key, &location, &row, err);
        if (rc != OMEN_OK) break;
        struct block *b = blocks_at(s->blocks, row.block);
        block_row_live(b, row.op);
        s->digest += b->digests[row.op];
        points++;
        uint64_t expires_ms = entry_expires_ms(&b->entry, row.op);
        if (expires_ms == 0) continue;
        rc = expiry_reserve(&s->expiry, 1, err);
        if (rc != OMEN_OK) break;
        expiry_add(&s->expiry, expires_ms, row);
    }
    meta_cursor_close(cursor);
    if (rc == OMEN_OK && points != state->points)
        rc = err_set(err, OMEN_ECORRUPT, NULL, "%s/meta/data.mdb: %llu points, %llu expected", s->dir,
                (unsigned long long)points, (unsigned long long)state->points);
    s->points = points;
    return rc;
}

static enum omen_err op_load(void *arg, const struct op_record *record)
{
    struct shard_store *s = arg;
    const struct op_id id = { record->client, record->seq, record->issue_ms };
    if (op_table_find(s->ops, record->client, record->seq) != NULL) return OMEN_ECORRUPT;
    /* Recorded when it ended: both would meet at its last step. */
    if (intent_set_find_op(s->intents, &id) != NULL) return OMEN_ECORRUPT;
    return op_table_put(s->ops, record);
}

static enum omen_err load_meta(struct shard_store *s, const struct meta_state *state, struct err *err)
{
    struct meta_txn *txn;
    enum omen_err rc = meta_txn_new(s->meta, &txn, err);
    if (rc != OMEN_OK) return rc;
    rc = meta_txn_begin(txn, err);
    if (rc == OMEN_OK) rc = walk_meta(s, txn, state, err);
    if (rc == OMEN_OK) rc = meta_intents(txn, s->intents, err);
    s->ops = op_table_new(state->op_first);
    if (rc == OMEN_OK) rc = meta_ops(txn, state, op_load, s, err);
    meta_txn_end(txn);
    meta_txn_free(txn);
    s->log_time_ms = s->view_log_time_ms = state->log_time_ms;
    s->expires_next_ms = expiry_next_ms(&s->expiry);
    return rc;
}

/* Run one entry, with the derived units that follow it, as apply did. */
static enum omen_err replay(struct recovery *r, const struct stream_unit *unit, struct err *err)
{
    struct shard_store *s = r->s;
    struct plan_units units = { .replay = r->derived, .replay_count = r->derived_count, .staged = 1 };
    struct entry entry;
    entry_attach(unit->body, &s->schema, &entry);
    enum omen_err rc = store_block_stage(s, 0, unit, &entry, err);
    return rc == OMEN_OK ? apply_staged(s, unit->sequence, &entry, &units, NULL, err) : rc;
}

/* Units after LMDB's sequence. */
static enum omen_err scan_unmerged(struct recovery *r, struct err *err)
{
    struct stream_unit entry_unit = { 0 };
    for (bool have_entry = false, end = false; !end;) {
        struct stream_unit unit = { 0 };
        struct entry entry;
        enum omen_err rc = unit_next(r, &unit, &entry, &end, err);
        if (rc == OMEN_OK && !end && unit.compacted)
            return unit_corrupt(r, &unit, "compacted although LMDB does not have it", err);
        if (rc == OMEN_OK && !end && unit.type == STREAM_UNIT_DERIVED) {
            if (!have_entry || unit.part != r->derived_count + 1 || r->derived_count == RECOVER_DERIVED_MAX)
                return unit_corrupt(r, &unit, "derived unit out of order", err);
            r->derived[r->derived_count++] = unit;
            continue;
        }
        if (rc == OMEN_OK && have_entry) rc = replay(r, &entry_unit, err);
        if (rc != OMEN_OK) return rc;
        have_entry = !end;
        entry_unit = unit;
        r->derived_count = 0;
    }
    return OMEN_OK;
}

enum omen_err store_recover(struct shard_store *s, const struct meta_state *state, uint64_t end_sequence,
        struct err *err)
{
    struct recovery *r = mem_must_calloc(1, sizeof *r);
    r->s = s;
    r->sequence = s->base_sequence;
    enum omen_err rc = scan_merged(r, state, err);
    if (rc == OMEN_OK) rc = load_meta(s, state, err);
    if (rc == OMEN_OK) {
        s->compact.merged = (struct checkpoint){ .sequence = state->sequence, .end = state->end };
        atomic_store(&s->applied, state->sequence);
        store_digests_note(s, state->sequence);
        rc = scan_unmerged(r, err);
    }
    if (rc == OMEN_OK && r->sequence != end_sequence)
        rc = stream_corrupt(s->stream, r->at.position, "stream ends at another sequence than the checkpoint",
                err);
    mem_free(r);
    return rc;
}
