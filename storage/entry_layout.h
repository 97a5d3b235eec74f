/* What the builder and the parser of log entries share: offsets of the header, the layout that follows from
 * counts, and the shape of an op. Private to entry.c and entry_builder.c; the format is drawn in
 * storage/entry.h.
 *
 * One function, entry_layout_of, turns counts into offsets; the builder lays out by it and the parser demands
 * it, so the two cannot drift apart and an offset from disk is never followed before it was compared with
 * what it must be. */
#ifndef OMEN_STORAGE_ENTRY_LAYOUT_H
#define OMEN_STORAGE_ENTRY_LAYOUT_H

#include "storage/entry.h"

#define ENTRY_MAGIC "OMEE"
#define ENTRY_MAGIC_BYTES 4
#define ENTRY_COLUMNS_OFF 64 /* in the header */
#define ENTRY_CRC_FROM 16    /* first byte under the checksum */
#define ENTRY_FLAG_DERIVED 1u
#define ENTRY_OP_ANY_KEY 1u
#define ENTRY_INTENT_OFF 32 /* in a request */
#define ENTRY_BEGIN_BYTES 16u
#define ENTRY_STEP_BYTES 64u
#define ENTRY_STEP_ENDS 1u
#define ENTRY_STEP_CURSOR 2u
#define ENTRY_STEP_CURSOR_OFF 24u

struct entry_counts {
    uint32_t requests, ops, heap_bytes;
    uint32_t rows[OMEN_VECTOR_FIELDS_MAX];
};

struct entry_layout {
    uint64_t requests_off, ops_off, row_ops_off, heap_off;
    uint64_t column_off[OMEN_VECTOR_FIELDS_MAX];
    uint64_t total_bytes;
};

static inline uint32_t entry_op_stride(uint32_t field_count)
{
    return (uint32_t)align_up(ENTRY_OP_ROWS_OFF + 4 * (uint64_t)field_count, 8);
}

/* Total for every count: u64 cannot overflow, as counts are below 2^32 and strides at most 16 KiB. */
void entry_layout_of(const struct collection_schema *schema, const struct entry_counts *counts,
        struct entry_layout *layout_out);

/* The shape that an op has, in a builder and in a parsed entry: NULL when fine, else what is wrong. */
const char *entry_op_fault(const struct collection_schema *schema, enum point_op_kind kind, point_id id,
        bool any_key, size_t key_len, struct doc payload);
/* The same of a payload alone. */
const char *entry_payload_fault(enum point_op_kind kind, struct doc payload);

/* ---- entry_intent.c ---- */

void entry_intent_encode(const struct entry_intent *intent, uint8_t *out /* [entry_intent_bytes] */);
/* NULL and the intent, whose docs borrow from `in`; or what is wrong, and where in it. Docs are not looked into. */
const char *entry_intent_decode(const uint8_t *in, size_t len, struct entry_intent *intent_out,
        size_t *wrong_at_out);
/* NULL when it is one, else what is wrong with it. */
const char *entry_intent_fault(const struct entry_intent *intent);

#endif
