/* Checksums of frames made good: see frame_repair.h. */
#include "common/err.h"

#include "tests/support/frame_repair.h"

#include "common/bytes.h"
#include "common/crc32c.h"
#include "consensus/frame.h"

#define APPEND_META_BYTES 40u
#define ENTRY_META_BYTES 24u

size_t frame_repair(uint8_t *frame, size_t size)
{
    if (size < FRAME_HEADER_BYTES) return 0;
    uint64_t meta = load_u32(frame + 32), count = load_u32(frame + 36), body = load_u64(frame + 40);
    store_u32(frame, 0x46524d4fu);
    bool whole = range_fits(FRAME_HEADER_BYTES, body, size) && meta <= body;
    if (whole) {
        uint8_t *p = frame + FRAME_HEADER_BYTES;
        uint64_t at = align_up(meta, 16);
        for (uint64_t i = 0; load_u16(frame + 4) == FRAME_APPEND && i < count; i++) {
            uint64_t table = APPEND_META_BYTES + i * ENTRY_META_BYTES;
            if (!range_fits(table, ENTRY_META_BYTES, meta)) break;
            uint64_t len = load_u32(p + table + 12);
            if (!range_fits(at, len, body)) break;
            store_u32(p + table + 16, crc32c(0, p + at, len));
            at += align_up(len, 16);
        }
        store_u32(frame + 48, crc32c(0, p, meta));
    }
    store_u32(frame + 60, crc32c(0, frame, 60));
    return whole ? FRAME_HEADER_BYTES + body : 0;
}
