/* What each group still needs of the node log: which segments hold its entries, up to where it has released
 * them, its hard state and
 * snapshot record, and the first entry refused on a full disk. See node_log_impl.h for locks.
 *
 * A segment goes when every group with entries in it has released its last one there, and only from the old
 * end: a TRUNCATE or DROP_GROUP record then always outlives the entries it voids. Hard states are carried:
 * the first batch of every segment begins with those of all groups, so an old segment may go as soon as a
 * later one holds a batch. */
#include "common/err.h"

#include <string.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/hash.h"
#include "common/mem.h"
#include "consensus/node_log_impl.h"

static uint32_t group_slot(const struct node_log *log, uint64_t group, uint64_t replica)
{
    uint64_t key[2] = { group, replica };
    uint32_t slot = (uint32_t)hash64(key, sizeof key) & (log->group_cap - 1);
    while (log->groups[slot] != NULL &&
            (log->groups[slot]->group != group || log->groups[slot]->replica != replica)) {
        slot = (slot + 1) & (log->group_cap - 1);
    }
    return slot;
}

static void groups_grow(struct node_log *log)
{
    struct log_group **old = log->groups;
    uint32_t old_cap = log->group_cap;
    log->group_cap = old_cap == 0 ? 64 : old_cap * 2;
    log->groups = mem_must_calloc(log->group_cap, sizeof *log->groups);
    for (uint32_t i = 0; i < old_cap; i++) {
        if (old[i] != NULL) log->groups[group_slot(log, old[i]->group, old[i]->replica)] = old[i];
    }
    mem_free(old);
}

struct log_group *log_group_get(struct node_log *log, uint64_t group, uint64_t replica)
{
    if (log->group_count * 2 >= log->group_cap) groups_grow(log);
    uint32_t slot = group_slot(log, group, replica);
    if (log->groups[slot] != NULL) return log->groups[slot];
    struct log_group *g = mem_must_calloc(1, sizeof *g);
    g->group = group;
    g->replica = replica;
    log->groups[slot] = g;
    log->group_count++;
    return g;
}

void log_groups_free(struct node_log *log)
{
    for (uint32_t i = 0; i < log->group_cap; i++) {
        if (log->groups[i] != NULL) mem_free(log->groups[i]->base);
        mem_free(log->groups[i]);
    }
    mem_free(log->groups);
}

static void use_add(struct log_segment *segment, struct log_group *g, uint64_t index)
{
    if (g->use_segment == segment->number) {
        segment->uses[g->use_slot].last_index = index;
        return;
    }
    if (segment->use_count == segment->use_cap) {
        segment->use_cap = segment->use_cap == 0 ? 16 : segment->use_cap * 2;
        segment->uses = mem_must_realloc(segment->uses, segment->use_cap * sizeof *segment->uses);
    }
    g->use_segment = segment->number;
    g->use_slot = segment->use_count++;
    segment->uses[g->use_slot] = (struct log_use){ .group = g, .last_index = index };
}

static void uses_truncate(struct node_log *log, const struct log_group *g, uint64_t index)
{
    for (uint32_t s = 0; s < log->segment_count; s++) {
        struct log_segment *segment = log->segments[s];
        for (uint32_t i = 0; i < segment->use_count; i++) {
            struct log_use *use = &segment->uses[i];
            if (use->group == g && use->last_index >= index) use->last_index = index == 0 ? 0 : index - 1;
        }
    }
}

void log_account(struct node_log *log, struct log_segment *segment, const struct node_log_record *record)
{
    struct log_group *g = log_group_get(log, record->group, record->replica);
    switch (record->kind) {
    case NODE_LOG_ENTRY: use_add(segment, g, record->index); break;
    case NODE_LOG_TRUNCATE: uses_truncate(log, g, record->index); break;
    case NODE_LOG_HARD_STATE:
        g->has_hard_state = true;
        g->term = record->term;
        g->vote = load_u64(record->body);
        break;
    case NODE_LOG_SNAPSHOT:
        if (record->body != g->base) { /* a carried one points at what we hold */
            mem_free(g->base);
            g->base = mem_must_alloc(record->len + 1);
            if (record->len > 0) memcpy(g->base, record->body, record->len);
            g->base_len = record->len;
        }
        g->base_index = record->index;
        g->base_term = record->term;
        break;
    case NODE_LOG_DROP_GROUP:
        uses_truncate(log, g, 0);
        g->has_hard_state = false;
        g->base_index = 0;
        break;
    }
}

static bool segment_needed(const struct log_segment *segment)
{
    for (uint32_t i = 0; i < segment->use_count; i++) {
        if (segment->uses[i].last_index > segment->uses[i].group->released) return true;
    }
    return false;
}

bool log_segment_recyclable(const struct node_log *log)
{
    if (log->segment_count < 2 || log->readers > 0 || segment_needed(log->segments[0])) return false;
    for (uint32_t s = 1; s < log->segment_count; s++) {
        if (log->segments[s]->batch_count > 0) return true;
    }
    return false;
}

uint64_t log_bytes_needed(const struct node_log *log)
{
    uint64_t bytes = 0;
    for (uint32_t s = 0; s < log->segment_count; s++) bytes += log->segments[s]->bytes;
    return bytes;
}

void log_bytes_changed(struct node_log *log)
{
    uint64_t hard = log->options.bytes_max + log->options.bytes_max / 2;
    atomic_store_explicit(&log->far_over, log_bytes_needed(log) > hard, memory_order_relaxed);
}

uint64_t log_oldest_group(const struct node_log *log)
{
    for (uint32_t s = 0; s < log->segment_count; s++) {
        const struct log_segment *segment = log->segments[s];
        for (uint32_t i = 0; i < segment->use_count; i++) {
            const struct log_use *use = &segment->uses[i];
            if (use->last_index > use->group->released) return use->group->group;
        }
    }
    return 0;
}

/* After a refusal the caller may already have queued the entries that follow: taking those would leave a
 * hole. The entry that was refused, an earlier one, or a truncation that voids it ends the state. */
bool log_append_refused(struct node_log *log, const struct node_log_append *append)
{
    for (uint32_t i = 0; i < append->count; i++) {
        const struct node_log_record *r = &append->records[i];
        if (r->kind != NODE_LOG_ENTRY && r->kind != NODE_LOG_TRUNCATE) continue;
        struct log_group *g = log_group_get(log, r->group, r->replica);
        bool after = g->refused_from != 0 && r->index > g->refused_from;
        if (after && r->kind == NODE_LOG_ENTRY) return true;
        if (!after) g->refused_from = 0;
    }
    return false;
}

void log_append_refuse(struct node_log *log, const struct node_log_append *append)
{
    for (uint32_t i = append->count; i-- > 0;) {
        const struct node_log_record *r = &append->records[i];
        if (r->kind != NODE_LOG_ENTRY) continue;
        struct log_group *g = log_group_get(log, r->group, r->replica);
        if (g->refused_from == 0 || r->index < g->refused_from) g->refused_from = r->index;
    }
}

uint32_t log_carry_count(const struct node_log *log, uint64_t *bytes_out)
{
    uint32_t count = 0;
    *bytes_out = 0;
    for (uint32_t i = 0; i < log->group_cap; i++) {
        const struct log_group *g = log->groups[i];
        if (g == NULL) continue;
        if (g->has_hard_state) {
            count++;
            *bytes_out += node_log_record_bytes(sizeof(uint64_t));
        }
        if (g->base_index != 0) {
            count++;
            *bytes_out += node_log_record_bytes(g->base_len);
        }
    }
    return count;
}
