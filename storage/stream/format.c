/* Byte tables of the stream's headers. Unknown versions and set reserved bytes are refused: a later version that gives
 * them a meaning must not be read as this one. */
#include "common/err.h"

#include "storage/stream/format.h"

#include <assert.h>

#include "common/bytes.h"
#include "common/crc32c.h"

static_assert(STREAM_UNIT_HEADER_BYTES == 64, "unit headers are part of the format");
static_assert(STREAM_CHUNK_HEADER_BYTES == 4096, "chunk headers are part of the format");

static bool all_zero(const uint8_t *p, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (p[i] != 0) return false;
    return true;
}

void chunk_header_encode(const struct chunk_header *h, uint8_t out[STREAM_CHUNK_HEADER_BYTES])
{
    memset(out, 0, STREAM_CHUNK_HEADER_BYTES);
    memcpy(out, "OMCH", 4);
    store_u16(out + 4, STREAM_FORMAT_VERSION);
    store_u64(out + 8, h->shard_id);
    store_u64(out + 16, h->replica_id);
    store_u32(out + 24, h->chunk);
    store_u32(out + 28, h->file_bytes);
    store_u32(out + 4092, crc32c(0, out, 4092));
}

const char *chunk_header_decode(const uint8_t in[STREAM_CHUNK_HEADER_BYTES], struct chunk_header *h_out)
{
    if (memcmp(in, "OMCH", 4) != 0) return "no chunk header";
    if (load_u32(in + 4092) != crc32c(0, in, 4092)) return "chunk header checksum";
    if (load_u16(in + 4) != STREAM_FORMAT_VERSION) return "unknown chunk version";
    if (!all_zero(in + 6, 2) || !all_zero(in + 32, 4060)) return "reserved bytes of the chunk header are set";
    h_out->shard_id = load_u64(in + 8);
    h_out->replica_id = load_u64(in + 16);
    h_out->chunk = load_u32(in + 24);
    h_out->file_bytes = load_u32(in + 28);
    return NULL;
}

void unit_header_encode(struct unit_header *h, uint8_t out[STREAM_UNIT_HEADER_BYTES])
{
    memset(out, 0, STREAM_UNIT_HEADER_BYTES);
    memcpy(out, "OMUN", 4);
    store_u16(out + 4, STREAM_FORMAT_VERSION);
    store_u16(out + 6, (uint16_t)h->type);
    store_u64(out + 8, h->sequence);
    store_u32(out + 16, h->body_bytes);
    store_u32(out + 20, h->part);
    store_u32(out + 24, h->chain);
    memcpy(out + 32, h->body_head, STREAM_BODY_HEAD_BYTES);
    store_u32(out + 48, h->position.chunk);
    store_u32(out + 52, h->position.offset);
    h->crc = crc32c(0, out, 60);
    store_u32(out + 60, h->crc);
}

const char *unit_header_decode(const uint8_t in[STREAM_UNIT_HEADER_BYTES], struct unit_header *h_out)
{
    if (memcmp(in, "OMUN", 4) != 0) return "no unit header";
    h_out->crc = load_u32(in + 60);
    if (h_out->crc != crc32c(0, in, 60)) return "unit header checksum";
    if (load_u16(in + 4) != STREAM_FORMAT_VERSION) return "unknown unit version";
    uint16_t type = load_u16(in + 6);
    if (type < STREAM_UNIT_ENTRY || type > STREAM_UNIT_COMPACTED) return "unknown unit type";
    if (!all_zero(in + 28, 4) || !all_zero(in + 56, 4)) return "reserved bytes of the unit header are set";
    h_out->type = (enum stream_unit_type)type;
    h_out->sequence = load_u64(in + 8);
    h_out->body_bytes = load_u32(in + 16);
    h_out->part = load_u32(in + 20);
    h_out->chain = load_u32(in + 24);
    memcpy(h_out->body_head, in + 32, STREAM_BODY_HEAD_BYTES);
    h_out->position.chunk = load_u32(in + 48);
    h_out->position.offset = load_u32(in + 52);
    if (type == STREAM_UNIT_CHUNK_END && h_out->body_bytes != 0) return "end of chunk with a body";
    if (type != STREAM_UNIT_CHUNK_END && (h_out->body_bytes < 64 || h_out->body_bytes % 64 != 0))
        return "unit body size";
    return NULL;
}

void compact_table_encode(const struct compact_item *items, uint32_t count, uint32_t chain_last, uint8_t *out)
{
    size_t bytes = compact_table_bytes(count);
    memset(out, 0, bytes);
    memcpy(out, "OMCT", 4);
    store_u16(out + 4, STREAM_FORMAT_VERSION);
    store_u32(out + 8, count);
    store_u32(out + 16, chain_last);
    for (uint32_t i = 0; i < count; i++) {
        uint8_t *p = out + COMPACT_HEAD_BYTES + (size_t)i * COMPACT_ITEM_BYTES;
        store_u64(p, items[i].sequence);
        store_u32(p + 8, items[i].offset);
        store_u32(p + 12, items[i].part);
        store_u32(p + 16, items[i].body_offset);
        store_u32(p + 20, items[i].body_bytes);
    }
    store_u32(out + 12, crc32c(0, out + 16, bytes - 16));
}

void compact_item_at(const struct compact_table *t, uint32_t i, struct compact_item *item_out)
{
    const uint8_t *p = t->items + (size_t)i * COMPACT_ITEM_BYTES;
    *item_out = (struct compact_item){ load_u64(p), load_u32(p + 8), load_u32(p + 12), load_u32(p + 16),
        load_u32(p + 20) };
}

/* Units in order of offset, bodies in the file after the table. */
static const char *compact_items_wrong(const struct compact_table *t, uint64_t bodies_from,
        uint32_t file_bytes)
{
    uint32_t before = 0;
    for (uint32_t i = 0; i < t->count; i++) {
        struct compact_item item;
        compact_item_at(t, i, &item);
        if (item.offset < STREAM_CHUNK_HEADER_BYTES || item.offset % 64 != 0 || item.offset <= before)
            return "unit of a compacted chunk out of place";
        before = item.offset;
        if (item.body_offset == 0 && item.body_bytes == 0) continue;
        if (item.body_offset < bodies_from || item.body_offset % 64 != 0 || item.body_bytes < 64 ||
                item.body_bytes % 64 != 0 || !range_fits(item.body_offset, item.body_bytes, file_bytes))
            return "body of a compacted chunk out of place";
    }
    return NULL;
}

const char *compact_table_decode(const uint8_t *file, uint32_t file_bytes, const struct unit_header *h,
        struct compact_table *table_out)
{
    const uint64_t at = STREAM_CHUNK_HEADER_BYTES + STREAM_UNIT_HEADER_BYTES;
    const uint8_t *p = file + at;
    if (!range_fits(at, h->body_bytes, file_bytes)) return "table is longer than its chunk";
    if (memcmp(p, "OMCT", 4) != 0 || load_u16(p + 4) != STREAM_FORMAT_VERSION)
        return "unknown table of a compacted chunk";
    if (memcmp(p, h->body_head, STREAM_BODY_HEAD_BYTES) != 0 ||
            load_u32(p + 12) != crc32c(0, p + 16, h->body_bytes - 16))
        return "checksum of a compacted chunk's table";
    *table_out = (struct compact_table){ .items = p + COMPACT_HEAD_BYTES,
        .count = load_u32(p + 8),
        .chain_first = h->chain,
        .chain_last = load_u32(p + 16) };
    uint64_t used = COMPACT_HEAD_BYTES + (uint64_t)table_out->count * COMPACT_ITEM_BYTES;
    if (!all_zero(p + 6, 2) || !all_zero(p + 20, COMPACT_HEAD_BYTES - 20) ||
            (used < h->body_bytes && !all_zero(p + used, h->body_bytes - used)))
        return "reserved bytes of a compacted chunk's table are set";
    if (compact_table_bytes(table_out->count) != h->body_bytes) return "size of a compacted chunk's table";
    return compact_items_wrong(table_out, at + h->body_bytes, file_bytes);
}
