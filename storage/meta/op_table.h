/* The table of applied operations: what each request's op id led to, so that a retry is answered and not applied again
 * (CORRECTNESS A4). Replicated state: every replica's table answers alike, because it is a function of the entries.
 *
 * A record is remembered until its issue time is `retention_ms` of log time ago; an op that old is refused without
 * looking, so what the table has forgotten can never be applied twice. An op issued more than `retention_ms` in the
 * future is refused as well: its record would outlive every bound. The record of a write by filter that took many entries
 * (meta/intent.h) is remembered so long from its end on, and looked for first.
 *
 * Records are numbered from 0 over the life of the shard and live in chunks of fixed size; a chunk never changes once
 * its records are written, so a merge reads a range of them while apply goes on.
 * Threads: one writer (apply); op_table_read of a pinned range by the merge beside it. */
#ifndef OMEN_STORAGE_OP_TABLE_H
#define OMEN_STORAGE_OP_TABLE_H

#include "common/query/point.h"

#define OP_CHUNK_RECORDS 1024u
#define OP_RECORD_BYTES 48u

/* Record v1, 48 bytes on disk.  0 u64 client | 8 u64 seq | 16 u64 issue_ms | 24 u64 sequence | 32 u32 affected |
 * 36 u16 code | 38 zero[2] | 40 u64 since_ms */
struct op_record {
    uint64_t client, seq, issue_ms;
    uint64_t sequence; /* of the entry that answered it */
    uint32_t affected;
    uint16_t code;     /* enum omen_err */
    uint64_t since_ms; /* the retention is counted from then, not before issue_ms; 0 = from issue_ms */
};
static inline uint64_t op_record_since_ms(const struct op_record *r)
{
    return r->since_ms != 0 ? r->since_ms : r->issue_ms;
}

struct op_table;
struct op_table *op_table_new(uint64_t first); /* empty; the next record gets number `first` */
void op_table_free(struct op_table *t);

const struct op_record *op_table_find(const struct op_table *t, uint64_t client,
        uint64_t seq); /* until the next put */
/* OMEN_ENOMEM. The op must not be in the table. */
OMEN_CHECKED enum omen_err op_table_put(struct op_table *t, const struct op_record *record);
void op_table_undo(struct op_table *t, uint64_t next); /* forget records numbered >= next */
void op_table_expire(struct op_table *t, uint64_t log_time_ms, uint64_t retention_ms);
uint64_t op_table_count(const struct op_table *t); /* writer's thread */
uint64_t op_table_first(const struct op_table *t);
uint64_t op_table_next(const struct op_table *t);

/* Keep records from the present first on until unpinned, whatever expires. Under the writer's lock. */
struct op_range {
    uint64_t first, next;
    struct op_record **chunks; /* [chunk_count], borrowed chunks; the array is the range's */
    uint64_t chunk_first;      /* number of chunks[0] */
};
OMEN_CHECKED enum omen_err op_table_pin(struct op_table *t, struct op_range *range_out);
void op_table_unpin(struct op_table *t, struct op_range *range); /* under the writer's lock */
static inline const struct op_record *op_range_at(const struct op_range *r, uint64_t number)
{
    return &r->chunks[number / OP_CHUNK_RECORDS - r->chunk_first][number % OP_CHUNK_RECORDS];
}

void op_record_encode(const struct op_record *r, uint8_t out[OP_RECORD_BYTES]);
void op_record_decode(const uint8_t in[OP_RECORD_BYTES], struct op_record *r_out);

#endif
