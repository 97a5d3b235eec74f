/* Entries the log held at start, by replica, until it is opened or forgotten. Bounded by the log's size.
 * Truncations and drops are honoured here. Threads: none of its own; the host's mutex guards its set. */
#include "common/err.h"

#include <string.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/mem.h"
#include "consensus/replica_impl.h"

static int key_compare(const struct pending *p, uint64_t group, uint64_t replica_id)
{
    if (p->group != group) return p->group < group ? -1 : 1;
    if (p->replica_id != replica_id) return p->replica_id < replica_id ? -1 : 1;
    return 0;
}

/* Position of the first item not below the key. */
static uint32_t set_find(const struct pending_set *set, uint64_t group, uint64_t replica_id)
{
    uint32_t low = 0, high = set->count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (key_compare(set->items[middle], group, replica_id) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static struct pending *set_remove(struct pending_set *set, uint32_t slot)
{
    struct pending *p = set->items[slot];
    set->count--;
    memmove(set->items + slot, set->items + slot + 1, (set->count - slot) * sizeof *set->items);
    return p;
}

void pending_put(struct pending_set *set, struct pending *pending)
{
    uint32_t slot = set_find(set, pending->group, pending->replica_id);
    if (set->count == set->cap) {
        set->cap = set->cap == 0 ? 16 : set->cap * 2;
        set->items = mem_must_realloc(set->items, set->cap * sizeof *set->items);
    }
    memmove(set->items + slot + 1, set->items + slot, (set->count - slot) * sizeof *set->items);
    set->items[slot] = pending;
    set->count++;
}

struct pending *pending_take(struct pending_set *set, uint64_t group, uint64_t replica_id)
{
    uint32_t slot = set_find(set, group, replica_id);
    if (slot == set->count || key_compare(set->items[slot], group, replica_id) != 0) return NULL;
    return set_remove(set, slot);
}

struct pending *pending_take_group(struct pending_set *set, uint64_t group)
{
    uint32_t slot = set_find(set, group, 0);
    if (slot == set->count || set->items[slot]->group != group) return NULL;
    return set_remove(set, slot);
}

static void entries_cut(struct pending *p, uint32_t count)
{
    while (p->count > count) mem_free(p->entries[--p->count]);
}

void pending_free(struct pending *p)
{
    if (p == NULL) return;
    entries_cut(p, 0);
    mem_free(p->entries);
    mem_free(p->base);
    mem_free(p);
}

void pending_set_fini(struct pending_set *set)
{
    for (uint32_t i = 0; i < set->count; i++) pending_free(set->items[i]);
    mem_free(set->items);
    memset(set, 0, sizeof *set);
}

static enum omen_err entry_add(struct pending *p, const struct node_log_record *record)
{
    if (p->count > 0) {
        uint64_t last = p->entries[p->count - 1]->index;
        if (record->index <= last) return OMEN_ECORRUPT; /* twice, and no truncation in between */
        /* A jump is written when the state machine was ahead of the log; what is before it is in the
         * machine. */
        if (record->index != last + 1) entries_cut(p, 0);
    }
    if (p->count == p->cap) {
        p->cap = p->cap == 0 ? 64 : p->cap * 2;
        void *grown = mem_realloc(p->entries, p->cap * sizeof *p->entries);
        if (grown == NULL) return OMEN_ENOMEM;
        p->entries = grown;
    }
    struct pending_entry *e = mem_alloc(sizeof *e + record->len);
    if (e == NULL) return OMEN_ENOMEM;
    e->index = record->index;
    e->term = record->term;
    e->type = record->entry_type;
    e->len = record->len;
    memcpy(e->body, record->body, record->len);
    p->entries[p->count++] = e;
    return OMEN_OK;
}

static void entries_truncate(struct pending *p, uint64_t index)
{
    uint32_t keep = p->count;
    while (keep > 0 && p->entries[keep - 1]->index >= index) keep--;
    entries_cut(p, keep);
}

enum omen_err pending_replay(void *arg, const struct node_log_record *record)
{
    struct pending_set *set = arg;
    uint32_t slot = set_find(set, record->group, record->replica);
    bool known = slot < set->count && key_compare(set->items[slot], record->group, record->replica) == 0;
    if (record->kind == NODE_LOG_DROP_GROUP) {
        if (known) pending_free(set_remove(set, slot));
        return OMEN_OK;
    }
    if (!known) {
        struct pending *created = mem_must_calloc(1, sizeof *created);
        created->group = record->group;
        created->replica_id = record->replica;
        pending_put(set, created);
    }
    struct pending *p = set->items[slot];
    switch (record->kind) {
    case NODE_LOG_ENTRY: return entry_add(p, record);
    case NODE_LOG_TRUNCATE: entries_truncate(p, record->index); break;
    case NODE_LOG_HARD_STATE:
        p->term = record->term;
        p->vote = load_u64(record->body);
        break;
    case NODE_LOG_SNAPSHOT:
        mem_free(p->base);
        p->base = mem_must_alloc(record->len + 1);
        memcpy(p->base, record->body, record->len);
        p->base_len = record->len;
        p->base_index = record->index;
        p->base_term = record->term;
        break;
    case NODE_LOG_DROP_GROUP: break;
    }
    return OMEN_OK;
}
