/* The digest that replicas compare (shard_store.h, "what replicas compare").
 *
 * Each row has a digest from the moment it is staged, made of its content alone; the store's sum gains it when the
 * row comes to life and loses it when it dies. So it costs one hash of what was copied a moment ago (128-d and 200 B
 * of payload: 0.10 us of the store's 1.5), and no look at a row that dies, whose page may long be on disk alone. At
 * open rows are hashed while they are checked (400,000: 0.37 s instead of 0.33). Kept for each row: 4 bytes, beside
 * the sequence at which it died. Threads: see each function. Determinism: a function of the points and of
 * STORE_DIGEST_VERSION; where rows lie, in which unit or as which operation, does not enter. */
#include <string.h>

#include "common/hash.h"
#include "storage/shard_store_impl.h"

static uint32_t row_digest(const struct shard_store *s, const struct block *b, const struct entry_op *op)
{
    uint64_t parts[8 + OMEN_VECTOR_FIELDS_MAX] = { op->key.id.hi, op->key.id.lo, op->key.id.kind, b->sequence,
        op->expires_ms, op->shard_key.len, hash64(op->shard_key.data, op->shard_key.len),
        hash64(op->payload.data, op->payload.len) };
    for (uint32_t f = 0; f < s->schema.field_count; f++) {
        uint32_t dim = s->schema.fields[f].dim;
        if (op->rows[f] != ENTRY_NO_ROW)
            parts[8 + f] = hash64(entry_row(&b->entry, f, op->rows[f], dim), dim * sizeof(float));
    }
    uint64_t h = hash64(parts, (8 + s->schema.field_count) * sizeof parts[0]);
    return (uint32_t)(h ^ h >> 32);
}

enum omen_err store_block_stage(struct shard_store *s, uint32_t staged, const struct stream_unit *unit,
        const struct entry *entry, struct err *err)
{
    enum omen_err rc = blocks_stage(s->blocks, staged, unit, entry, err);
    if (rc != OMEN_OK || unit->body == NULL) return rc;
    struct block *b = blocks_at(s->blocks, blocks_count(s->blocks) + staged);
    for (uint32_t i = 0; i < entry->op_count; i++) {
        struct entry_op op;
        entry_op_at(entry, i, &op);
        if (op.kind == POINT_UPSERT) b->digests[i] = row_digest(s, b, &op);
    }
    return OMEN_OK;
}

/* Writes by filter under way are state like points: which, and where each stands. 0 when there is none. */
static uint64_t intents_digest(const struct intent_set *set)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < set->count; i++) {
        const struct intent *in = &set->items[i];
        const struct intent_work *work = in->work;
        uint64_t parts[] = { work->id.sequence, work->id.part, work->op_id.client, work->op_id.seq, work->op,
            hash64(work->filter.data, work->filter.len), hash64(work->payload.data, work->payload.len),
            in->steps, in->affected, in->has_cursor, in->cursor.id.hi, in->cursor.id.lo, in->cursor.key_hi,
            in->cursor.key_lo };
        sum += hash64(parts, sizeof parts);
    }
    return sum;
}

void store_digests_note(struct shard_store *s, uint64_t sequence)
{
    bool settled = expiry_next_ms(&s->expiry) > s->log_time_ms;
    struct store_digest now = { settled ? sequence : 0,
        settled ? s->digest + intents_digest(s->intents) : 0 };
    s->digests[0] = now;
    for (uint32_t i = 1; i < STORE_DIGESTS_MAX; i++)
        if (sequence % (UINT64_C(1) << (STORE_DIGEST_SHIFT * i + 1)) == 0) s->digests[i] = now;
}

uint32_t shard_store_digests(struct shard_store *store, struct store_digest digests_out[STORE_DIGESTS_MAX])
{
    uint32_t count = 0;
    pthread_mutex_lock(&store->version_mutex);
    for (uint32_t i = 0; i < STORE_DIGESTS_MAX; i++)
        if (store->digests[i].sequence != 0) digests_out[count++] = store->digests[i];
    pthread_mutex_unlock(&store->version_mutex);
    return count;
}
