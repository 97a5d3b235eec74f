/* The small records of storage on arbitrary bytes: chunk and unit headers, LMDB values, CHECKSUM, manifests; with and
 * without repaired checksums. What decodes must encode to the same bytes: a record has one form. */
#include "common/err.h"

#include <string.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/crc32c.h"
#include "common/mem.h"
#include "storage/meta/meta_format.h"
#include "storage/shard_manifest.h"
#include "storage/stream/format.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void chunk_and_unit(const uint8_t *data, size_t size, bool repair)
{
    uint8_t bytes[STREAM_CHUNK_HEADER_BYTES] = { 0 }, again[STREAM_CHUNK_HEADER_BYTES];
    struct chunk_header chunk;
    struct unit_header unit;
    memcpy(bytes, data, size < sizeof bytes ? size : sizeof bytes);
    if (repair) store_u32(bytes + sizeof bytes - 4, crc32c(0, bytes, sizeof bytes - 4));
    if (chunk_header_decode(bytes, &chunk) == NULL) {
        chunk_header_encode(&chunk, again);
        CHECK(memcmp(again, bytes, sizeof bytes) == 0);
    }
    if (repair)
        store_u32(bytes + STREAM_UNIT_HEADER_BYTES - 4, crc32c(0, bytes, STREAM_UNIT_HEADER_BYTES - 4));
    if (unit_header_decode(bytes, &unit) == NULL) {
        unit_header_encode(&unit, again);
        CHECK(memcmp(again, bytes, STREAM_UNIT_HEADER_BYTES) == 0);
    }
}

/* A compacted chunk's table, where a file has it: the checks let through only what is written the same again. */
static void compact_table(const uint8_t *data, size_t size, bool repair)
{
    static _Alignas(64) uint8_t file[16384], again[16384];
    const uint32_t at = STREAM_CHUNK_HEADER_BYTES + STREAM_UNIT_HEADER_BYTES;
    struct unit_header h = { .type = STREAM_UNIT_COMPACTED };
    struct compact_table table;
    struct compact_item items[sizeof file / COMPACT_ITEM_BYTES];
    if (size < 64) return;
    size = size < sizeof file - at ? size & ~(size_t)63 : sizeof file - at;
    memset(file, 0, sizeof file);
    memcpy(file + at, data, size);
    h.body_bytes = (uint32_t)size;
    if (repair) store_u32(file + at + 12, crc32c(0, file + at + 16, size - 16));
    memcpy(h.body_head, file + at, STREAM_BODY_HEAD_BYTES);
    if (compact_table_decode(file, sizeof file, &h, &table) != NULL) return;
    for (uint32_t i = 0; i < table.count; i++) compact_item_at(&table, i, &items[i]);
    compact_table_encode(items, table.count, table.chain_last, again);
    CHECK(memcmp(again, file + at, size) == 0);
}

static void meta_values(const uint8_t *data, size_t size, bool repair)
{
    if (size < META_POINT_KEY_BYTES) return;
    const uint8_t *key = data;
    size_t len = size - META_POINT_KEY_BYTES;
    uint8_t *value = mem_must_alloc(len + 1);
    memcpy(value, data + META_POINT_KEY_BYTES, len);
    if (repair && len >= 4) meta_value_seal(key, META_POINT_KEY_BYTES, value, len);
    struct meta_location location;
    if (meta_location_decode(key, META_POINT_KEY_BYTES, value, len, &location))
        CHECK(len == META_LOCATION_BYTES);
    if (repair && len >= 4) meta_value_seal("s", 1, value, len);
    struct meta_state state;
    if (meta_state_decode(value, len, &state)) CHECK(len == META_STATE_BYTES);
    uint64_t file_bytes;
    uint32_t crc;
    if (repair && len == META_CHECKSUM_BYTES) store_u32(value + 28, crc32c(0, value, 28));
    if (meta_checksum_decode(value, len, &file_bytes, &crc)) {
        uint8_t again[META_CHECKSUM_BYTES];
        meta_checksum_encode(file_bytes, crc, again);
        CHECK(memcmp(again, value, sizeof again) == 0);
    }
    struct intent_set *set = intent_set_copy(NULL);
    CHECK(set != NULL);
    if (intent_decode((struct intent_id){ 1, 2 }, value, len, set) == OMEN_OK) {
        CHECK(set->count == 1 && intent_bytes(&set->items[0]) == len);
        uint8_t *again = mem_must_alloc(len);
        intent_encode(&set->items[0], again);
        CHECK(memcmp(again + 4, value + 4, len - 4) == 0);
        mem_free(again);
    }
    intent_set_unref(set);
    mem_free(value);
}

static void manifest(const uint8_t *data, size_t size, bool repair)
{
    struct manifest_raw raw;
    struct buf again;
    uint8_t *bytes = mem_must_alloc(size + 1);
    memcpy(bytes, data, size);
    if (repair && size >= 4) store_u32(bytes + size - 4, crc32c(0, bytes, size - 4));
    if (manifest_decode((struct bytes){ bytes, size }, &raw, NULL) == OMEN_OK) {
        struct store_manifest files;
        buf_init(&again);
        manifest_encode(&raw, &again);
        CHECK(again.len == size && memcmp(again.data, bytes, size) == 0);
        manifest_files(&raw, &files);
        CHECK(files.file_count == raw.end.position.chunk + 1);
        store_manifest_fini(&files);
        manifest_raw_fini(&raw);
        buf_fini(&again);
    }
    mem_free(bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1) return 0;
    chunk_and_unit(data + 1, size - 1, data[0] & 1);
    compact_table(data + 1, size - 1, data[0] & 1);
    meta_values(data + 1, size - 1, data[0] & 1);
    manifest(data + 1, size - 1, data[0] & 1);
    return 0;
}
