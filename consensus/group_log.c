/* A group's log in memory: see group_log.h. */
#include "common/err.h"

#include <string.h>

#include "common/check.h"
#include "consensus/group_log.h"

#define SLOTS_MIN 64u

void group_log_init(struct group_log *log, uint64_t first, uint64_t base_sequence)
{
    CHECK(first > 0);
    *log = (struct group_log){ .first = first, .last = first - 1, .base_sequence = base_sequence };
}

void group_log_fini(struct group_log *log)
{
    if (log->last >= log->first) group_log_truncate(log, log->first);
    mem_free(log->slots);
    log->slots = NULL;
    log->cap = 0;
}

struct log_slot *group_log_get(const struct group_log *log, uint64_t index)
{
    if (index < log->first || index > log->last) return NULL;
    return &log->slots[index & (log->cap - 1)];
}

static void grow(struct group_log *log)
{
    uint64_t cap = log->cap == 0 ? SLOTS_MIN : log->cap * 2;
    struct log_slot *slots = mem_must_calloc(cap, sizeof *slots);
    for (uint64_t i = log->first; i <= log->last; i++) slots[i & (cap - 1)] = log->slots[i & (log->cap - 1)];
    mem_free(log->slots);
    log->slots = slots;
    log->cap = cap;
}

void group_log_append(struct group_log *log, const struct log_slot *slot)
{
    uint64_t sequence = group_log_sequence(log, log->last);
    if (log->last - log->first + 1 == log->cap) grow(log);
    log->last++;
    struct log_slot *s = &log->slots[log->last & (log->cap - 1)];
    *s = *slot;
    s->sequence = sequence + (slot->type == NODE_LOG_COMMAND ? 1 : 0);
    log->bytes += s->len;
}

static void slot_clear(struct group_log *log, uint64_t index)
{
    struct log_slot *s = &log->slots[index & (log->cap - 1)];
    log->bytes -= s->len;
    shared_release(s->owner);
    memset(s, 0, sizeof *s);
}

void group_log_truncate(struct group_log *log, uint64_t index)
{
    CHECK(index >= log->first);
    while (log->last >= index) slot_clear(log, log->last--);
}

void group_log_trim(struct group_log *log, uint64_t index)
{
    CHECK(index <= log->last);
    while (log->first <= index) {
        log->base_sequence = group_log_get(log, log->first)->sequence;
        slot_clear(log, log->first++);
    }
}

uint64_t group_log_sequence(const struct group_log *log, uint64_t index)
{
    if (index + 1 == log->first) return log->base_sequence;
    const struct log_slot *s = group_log_get(log, index);
    CHECK(s != NULL);
    return s->sequence;
}

uint64_t group_log_index_of(const struct group_log *log, uint64_t sequence)
{
    if (log->base_sequence > sequence) return 0;
    uint64_t low = log->first - 1, high = log->last; /* sequence(low) <= sequence */
    while (low < high) {
        uint64_t middle = low + (high - low + 1) / 2;
        if (group_log_sequence(log, middle) <= sequence)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}
