/* One group's log in memory: what raft's core knows as (index, term), with the bytes it leaves to us. A ring
 * of slots, indexes first..last without gap; empty when last == first - 1. It mirrors the core's own trail
 * exactly. Bounded by the node log, from which it is filled at start and after which it is trimmed.
 *
 * sequence: how many commands there are up to and with this index, on top of the base. Never stored: counted
 * from the base on, so all replicas agree on it.
 * Threads: the group's loop only. */
#ifndef OMEN_CONSENSUS_GROUP_LOG_H
#define OMEN_CONSENSUS_GROUP_LOG_H

#include "consensus/node_log.h"
#include "consensus/shared.h"

struct log_slot {
    uint64_t term, sequence;
    uint64_t
            append_id; /* of the append that carries it to the node log; 0 = durable since before the start */
    struct shared *owner;
    const uint8_t *data; /* inside the owner's memory, 16-byte aligned */
    uint32_t len;
    uint32_t crc; /* crc32c of data */
    enum node_log_entry_type type;
    void *tag; /* whoever waits for the entry; NULL = nobody */
};

struct group_log {
    struct log_slot *slots; /* [cap], owned */
    uint64_t cap;           /* power of two */
    uint64_t first, last;
    uint64_t base_sequence; /* before `first` */
    uint64_t bytes;         /* of all entries */
};

void group_log_init(struct group_log *log, uint64_t first, uint64_t base_sequence);
void group_log_fini(struct group_log *log);
struct log_slot *group_log_get(const struct group_log *log, uint64_t index); /* NULL when not there */
/* Takes the slot's owner reference; fills `sequence`. */
void group_log_append(struct group_log *log, const struct log_slot *slot);
void group_log_truncate(struct group_log *log, uint64_t index); /* from `index` on */
void group_log_trim(struct group_log *log, uint64_t index);     /* up to `index` */
/* Sequence at `index`, which is first - 1 .. last. */
uint64_t group_log_sequence(const struct group_log *log, uint64_t index);
/* Largest index in first - 1 .. last whose sequence is not above `sequence`; 0 when even the first is. */
uint64_t group_log_index_of(const struct group_log *log, uint64_t sequence);

#endif
