/* Bytes of chunk headers, unit headers and CHECKPOINT slots: encode, decode, check. storage/FORMAT.md has the tables.
 * Private to storage/stream. */
#ifndef OMEN_STORAGE_STREAM_FORMAT_H
#define OMEN_STORAGE_STREAM_FORMAT_H

#include "storage/stream/stream.h"

#define STREAM_FORMAT_VERSION 1
#define STREAM_BODY_HEAD_BYTES                                                                               \
    16u /* of the body, repeated in the unit header; the entry's own crc covers the rest */

/* Chunk header v1, 4096 bytes.  0 "OMCH" | 4 u16 version | 6 zero[2] | 8 u64 shard_id | 16 u64 replica_id |
 * 24 u32 chunk | 28 u32 file_bytes | 32 zero[4060] | 4092 u32 crc32c of 0..4091 */
struct chunk_header {
    uint64_t shard_id, replica_id;
    uint32_t chunk, file_bytes;
};
void chunk_header_encode(const struct chunk_header *h, uint8_t out[STREAM_CHUNK_HEADER_BYTES]);
/* NULL when good, else what is wrong. */
const char *chunk_header_decode(const uint8_t in[STREAM_CHUNK_HEADER_BYTES], struct chunk_header *h_out);

/* Unit header v1, 64 bytes.  0 "OMUN" | 4 u16 version | 6 u16 type | 8 u64 sequence | 16 u32 body_bytes | 20 u32 part |
 * 24 u32 chain: crc of the unit header before (0 for the first) | 28 zero[4] | 32 [16] body bytes 0..15 |
 * 48 u32 chunk | 52 u32 offset | 56 zero[4] | 60 u32 crc32c of 0..59 */
struct unit_header {
    enum stream_unit_type type;
    uint64_t sequence;
    uint32_t body_bytes, part, chain;
    uint8_t body_head[STREAM_BODY_HEAD_BYTES];
    struct stream_position position;
    uint32_t crc;
};
void unit_header_encode(struct unit_header *h, uint8_t out[STREAM_UNIT_HEADER_BYTES]); /* fills h->crc */
const char *unit_header_decode(const uint8_t in[STREAM_UNIT_HEADER_BYTES], struct unit_header *h_out);

/* Table of a compacted chunk v1: the body of a unit (type 4) at 4096. Head of 64 bytes: 0 "OMCT" | 4 u16 version |
 * 6 zero [2] | 8 u32 units | 12 u32 crc32c of 16..body_bytes | 16 u32 chain that the next chunk's first unit goes on
 * from | 20 zero [44]; then 24 bytes a unit: 0 u64 sequence | 8 u32 offset of its header when it was appended |
 * 12 u32 part | 16 u32 where its body lies in this file, 0 = nothing is left | 20 u32 bytes of it; zero up to 64. */
#define COMPACT_HEAD_BYTES 64u
#define COMPACT_ITEM_BYTES 24u
struct compact_table {
    const uint8_t *items; /* [count * COMPACT_ITEM_BYTES], borrows from the file */
    uint32_t count, chain_first, chain_last;
};
struct compact_item {
    uint64_t sequence;
    uint32_t offset, part, body_offset, body_bytes;
};
static inline uint64_t compact_table_bytes(uint64_t count)
{
    return (COMPACT_HEAD_BYTES + count * COMPACT_ITEM_BYTES + 63) & ~63ull;
}
/* [compact_table_bytes(count)] */
void compact_table_encode(const struct compact_item *items, uint32_t count, uint32_t chain_last,
        uint8_t *out);
void compact_item_at(const struct compact_table *t, uint32_t i, struct compact_item *item_out);
/* A whole file whose unit header at 4096 says type 4. NULL when good; every item is checked. */
const char *compact_table_decode(const uint8_t *file, uint32_t file_bytes, const struct unit_header *h,
        struct compact_table *table_out);

#endif
