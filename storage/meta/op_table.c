/* Applied operations: numbered records in chunks, and a hash over those alive. Contract in op_table.h. */
#include "common/err.h"

#include "storage/meta/op_table.h"

#include "common/bytes.h"
#include "common/check.h"
#include "common/hash.h"
#include "common/mem.h"

#define OP_SLOTS_MIN 1024u
#define OP_SLOT_EMPTY UINT32_MAX

struct op_table {
    uint64_t first, next;      /* records alive are first..next-1 */
    uint64_t pinned;           /* chunks from this record on stay; UINT64_MAX = none */
    struct op_record **chunks; /* [chunk_count] */
    uint64_t chunk_first;      /* number of chunks[0] */
    size_t chunk_count, chunk_cap;
    uint32_t *slots; /* [slot_count], power of two: record number - slot_base, or empty; at most half full */
    uint64_t slot_count;
    uint64_t slot_base; /* moved up at each rebuild, so that numbers fit u32 */
};

static inline struct op_record *record_at(const struct op_table *t, uint64_t number)
{
    return &t->chunks[number / OP_CHUNK_RECORDS - t->chunk_first][number % OP_CHUNK_RECORDS];
}

static uint64_t op_hash(uint64_t client, uint64_t seq)
{
    uint64_t key[2] = { client, seq };
    return hash64(key, sizeof key);
}

struct op_table *op_table_new(uint64_t first)
{
    struct op_table *t = mem_must_calloc(1, sizeof *t);
    t->first = t->next = t->slot_base = first;
    t->pinned = UINT64_MAX;
    t->chunk_first = first / OP_CHUNK_RECORDS;
    t->slot_count = OP_SLOTS_MIN;
    t->slots = mem_must_alloc(t->slot_count * sizeof *t->slots);
    memset(t->slots, 0xff, t->slot_count * sizeof *t->slots);
    return t;
}

void op_table_free(struct op_table *t)
{
    if (t == NULL) return;
    for (size_t i = 0; i < t->chunk_count; i++) mem_free(t->chunks[i]);
    mem_free(t->chunks);
    mem_free(t->slots);
    mem_free(t);
}

/* Slot of the op, or the empty one where it would go. */
static uint64_t slot_of(const struct op_table *t, uint64_t client, uint64_t seq)
{
    uint64_t i = op_hash(client, seq) & (t->slot_count - 1);
    for (; t->slots[i] != OP_SLOT_EMPTY; i = (i + 1) & (t->slot_count - 1)) {
        const struct op_record *r = record_at(t, t->slot_base + t->slots[i]);
        if (r->client == client && r->seq == seq) break;
    }
    return i;
}

const struct op_record *op_table_find(const struct op_table *t, uint64_t client, uint64_t seq)
{
    uint64_t i = slot_of(t, client, seq);
    return t->slots[i] == OP_SLOT_EMPTY ? NULL : record_at(t, t->slot_base + t->slots[i]);
}

/* Empty the record's slot and close the gap: whatever follows moves up unless it stands at its home already. */
static void slot_remove(struct op_table *t, const struct op_record *r)
{
    uint64_t mask = t->slot_count - 1, gap = slot_of(t, r->client, r->seq);
    CHECK(t->slots[gap] != OP_SLOT_EMPTY);
    for (uint64_t i = (gap + 1) & mask; t->slots[i] != OP_SLOT_EMPTY; i = (i + 1) & mask) {
        const struct op_record *other = record_at(t, t->slot_base + t->slots[i]);
        uint64_t home = op_hash(other->client, other->seq) & mask;
        if (((i - home) & mask) < ((i - gap) & mask)) continue;
        t->slots[gap] = t->slots[i];
        gap = i;
    }
    t->slots[gap] = OP_SLOT_EMPTY;
}

static enum omen_err slots_rebuild(struct op_table *t)
{
    uint64_t wanted = OP_SLOTS_MIN;
    while (wanted < 4 * (t->next - t->first + 1)) wanted *= 2;
    CHECK(t->next - t->first < OP_SLOT_EMPTY);
    uint32_t *slots = mem_alloc(wanted * sizeof *slots);
    if (slots == NULL) return OMEN_ENOMEM;
    memset(slots, 0xff, wanted * sizeof *slots);
    mem_free(t->slots);
    t->slots = slots;
    t->slot_count = wanted;
    t->slot_base = t->first;
    for (uint64_t n = t->first; n < t->next; n++) {
        const struct op_record *r = record_at(t, n);
        t->slots[slot_of(t, r->client, r->seq)] = (uint32_t)(n - t->slot_base);
    }
    return OMEN_OK;
}

static enum omen_err chunk_add(struct op_table *t)
{
    if (t->chunk_count == t->chunk_cap) {
        size_t cap = t->chunk_cap ? 2 * t->chunk_cap : 16;
        struct op_record **chunks = mem_realloc(t->chunks, cap * sizeof *chunks);
        if (chunks == NULL) return OMEN_ENOMEM;
        t->chunks = chunks;
        t->chunk_cap = cap;
    }
    struct op_record *chunk = mem_alloc(OP_CHUNK_RECORDS * sizeof *chunk);
    if (chunk == NULL) return OMEN_ENOMEM;
    t->chunks[t->chunk_count++] = chunk;
    return OMEN_OK;
}

enum omen_err op_table_put(struct op_table *t, const struct op_record *record)
{
    bool crowded = 2 * (t->next - t->first + 1) > t->slot_count;
    if (crowded || t->next - t->slot_base >= OP_SLOT_EMPTY - 1) {
        enum omen_err rc = slots_rebuild(t);
        if (rc != OMEN_OK) return rc;
    }
    if (t->next / OP_CHUNK_RECORDS - t->chunk_first == t->chunk_count) {
        enum omen_err rc = chunk_add(t);
        if (rc != OMEN_OK) return rc;
    }
    uint64_t slot = slot_of(t, record->client, record->seq);
    CHECK(t->slots[slot] == OP_SLOT_EMPTY);
    *record_at(t, t->next) = *record;
    t->slots[slot] = (uint32_t)(t->next++ - t->slot_base);
    return OMEN_OK;
}

void op_table_undo(struct op_table *t, uint64_t next)
{
    CHECK(next >= t->first && next <= t->next);
    while (t->next > next) {
        slot_remove(t, record_at(t, t->next - 1));
        t->next--;
    }
}

/* Chunks that hold neither a live nor a pinned record. */
static void chunks_drop(struct op_table *t)
{
    uint64_t keep = (t->first < t->pinned ? t->first : t->pinned) / OP_CHUNK_RECORDS;
    size_t drop = 0;
    while (drop < t->chunk_count && t->chunk_first + drop < keep) mem_free(t->chunks[drop++]);
    if (drop == 0) return;
    memmove(t->chunks, t->chunks + drop, (t->chunk_count - drop) * sizeof *t->chunks);
    t->chunk_count -= drop;
    t->chunk_first += drop;
}

void op_table_expire(struct op_table *t, uint64_t log_time_ms, uint64_t retention_ms)
{
    bool any = false;
    for (; t->first < t->next; t->first++, any = true) {
        const struct op_record *r = record_at(t, t->first);
        if (log_time_ms < retention_ms || op_record_since_ms(r) >= log_time_ms - retention_ms) break;
        slot_remove(t, r);
    }
    if (any) chunks_drop(t);
}

uint64_t op_table_count(const struct op_table *t) { return t->next - t->first; }
uint64_t op_table_first(const struct op_table *t) { return t->first; }
uint64_t op_table_next(const struct op_table *t) { return t->next; }

enum omen_err op_table_pin(struct op_table *t, struct op_range *range_out)
{
    CHECK(t->pinned == UINT64_MAX);
    *range_out = (struct op_range){ .first = t->first, .next = t->next, .chunk_first = t->chunk_first };
    range_out->chunks = mem_alloc((t->chunk_count + 1) * sizeof *range_out->chunks);
    if (range_out->chunks == NULL) return OMEN_ENOMEM;
    if (t->chunk_count > 0) memcpy(range_out->chunks, t->chunks, t->chunk_count * sizeof *t->chunks);
    t->pinned = t->first;
    return OMEN_OK;
}

void op_table_unpin(struct op_table *t, struct op_range *range)
{
    t->pinned = UINT64_MAX;
    chunks_drop(t);
    mem_free(range->chunks);
    *range = (struct op_range){ 0 };
}

void op_record_encode(const struct op_record *r, uint8_t out[OP_RECORD_BYTES])
{
    memset(out, 0, OP_RECORD_BYTES);
    store_u64(out, r->client);
    store_u64(out + 8, r->seq);
    store_u64(out + 16, r->issue_ms);
    store_u64(out + 24, r->sequence);
    store_u32(out + 32, r->affected);
    store_u16(out + 36, r->code);
    store_u64(out + 40, r->since_ms);
}

void op_record_decode(const uint8_t in[OP_RECORD_BYTES], struct op_record *r_out)
{
    *r_out = (struct op_record){ load_u64(in), load_u64(in + 8), load_u64(in + 16), load_u64(in + 24),
        load_u32(in + 32), load_u16(in + 36), load_u64(in + 40) };
}
