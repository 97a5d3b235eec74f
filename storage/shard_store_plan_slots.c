/* Slots of a plan: one per point that the entry touches, found by key and, once an operation names an id without its
 * shard key, by id. What they mean: shard_store_plan.c. */
#include "common/err.h"

#include "storage/shard_store_plan.h"

#include "common/mem.h"

enum omen_err plan_reserve_one(void **items, uint32_t count, uint32_t *cap, size_t item_bytes,
        struct err *err)
{
    if (count < *cap) return OMEN_OK;
    uint32_t grown_cap = *cap ? 2 * *cap : 256;
    void *grown = mem_realloc(*items, grown_cap * item_bytes);
    if (grown == NULL) return err_set(err, OMEN_ENOMEM, NULL, "planning an entry");
    *items = grown;
    *cap = grown_cap;
    return OMEN_OK;
}

static uint32_t hash_words(uint64_t a, uint64_t b, uint64_t c)
{
    uint64_t h = (a ^ (a >> 32)) * 0x9e3779b97f4a7c15u;
    h = (h ^ b ^ (h >> 29)) * 0xbf58476d1ce4e5b9u;
    h = (h ^ c ^ (h >> 32)) * 0x94d049bb133111ebu;
    return (uint32_t)(h >> 32);
}

static uint32_t id_hash(point_id id) { return hash_words(id.lo, id.hi, id.kind); }
static uint32_t key_hash(const struct point_key *k)
{
    return hash_words(k->id.lo, k->id.hi ^ k->key_hi, k->key_lo + k->id.kind);
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

enum omen_err plan_slot_get(struct plan *p, const struct point_key *key, uint32_t *slot_out, struct err *err)
{
    uint32_t mask = p->table_size - 1;
    for (uint32_t i = key_hash(key) & mask; p->table[i] != 0; i = (i + 1) & mask) {
        if (!plan_key_equal(&p->slots[p->table[i] - 1].key, key)) continue;
        *slot_out = p->table[i] - 1;
        return OMEN_OK;
    }
    struct shard_store *s = p->store;
    struct plan_slot slot = { .key = *key,
        .before = ROW_NONE,
        .state = SLOT_UNCHANGED,
        .next_same_id = PLAN_NONE };
    enum omen_err rc = OMEN_OK;
    if (!delta_find(s->active, key, &slot.spot, &slot.before))
        rc = view_find_older(s, &s->apply_pin, p->sequence - 1, key, &slot.before, err);
    if (rc == OMEN_OK) rc = PLAN_RESERVE_ONE(p->slots, p->slot_count, p->slot_cap, err);
    if (rc == OMEN_OK && 2 * (p->slot_count + 1) > p->table_size)
        rc = tables_build(p, 2 * p->table_size, err);
    if (rc != OMEN_OK) return rc;
    /* Absent from its time on; touched, it dies of it. */
    if (!row_is_none(slot.before) && row_expired(s, slot.before, s->log_time_ms)) slot.state = SLOT_ABSENT;
    *slot_out = p->slot_count++;
    p->slots[*slot_out] = slot;
    table_insert(p, *slot_out);
    if (p->ids_chained) id_chain_insert(p, *slot_out);
    return OMEN_OK;
}

enum omen_err plan_slot_set(struct plan *p, uint32_t slot, enum slot_state state, uint32_t value,
        struct err *err)
{
    enum omen_err rc = PLAN_RESERVE_ONE(p->undo, p->undo_count, p->undo_cap, err);
    if (rc != OMEN_OK) return rc;
    struct plan_slot *s = &p->slots[slot];
    p->undo[p->undo_count++] = (struct plan_undo){ slot, s->state, s->value };
    s->state = state;
    s->value = value;
    return OMEN_OK;
}

enum omen_err plan_slots_of_id(struct plan *p, point_id id, uint32_t *first_out, struct err *err)
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
        rc = plan_slot_get(p, &key, &slot, err);
        if (rc != OMEN_OK) break;
    }
    view_iter_close(&it);
    if (rc != OMEN_OK) return rc;
    uint32_t mask = p->table_size - 1, i = id_hash(id) & mask;
    while (p->id_table[i] != 0 && !point_id_equal(p->slots[p->id_table[i] - 1].key.id, id))
        i = (i + 1) & mask;
    *first_out = p->id_table[i] == 0 ? PLAN_NONE : p->id_table[i] - 1;
    return OMEN_OK;
}

enum omen_err plan_slots_reset(struct plan *p, uint32_t op_count, struct err *err)
{
    uint32_t size = 1024;
    while (size < 2 * op_count + 2) size *= 2;
    p->slot_count = 0;
    p->ids_chained = false;
    return tables_build(p, size, err);
}
