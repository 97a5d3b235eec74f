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
    if (type < STREAM_UNIT_ENTRY || type > STREAM_UNIT_CHUNK_END) return "unknown unit type";
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
