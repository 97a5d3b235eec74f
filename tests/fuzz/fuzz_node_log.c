/* The node log's decoder on arbitrary bytes: a segment's header and the walk over its batches, as the last
 * segment and as one with a recorded end. Never reads outside the image, never loops long. The first byte
 * chooses how checksums are treated: repaired for half of the inputs, or hardly any mutation would get past
 * them. */
#include "common/err.h"

#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/crc32c.h"
#include "common/mem.h"
#include "consensus/node_log_format.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static enum omen_err touch(void *arg, const struct node_log_record *record)
{
    uint64_t *sum = arg;
    for (uint32_t i = 0; i < record->len; i++) *sum += ((const uint8_t *)record->body)[i];
    *sum += record->index + record->term;
    return OMEN_OK;
}

/* The checksums that a writer of these bytes would have made. */
static void repair(uint8_t *image, size_t size)
{
    if (size < NODE_LOG_HEADER_BYTES) return;
    store_u32(image + NODE_LOG_HEADER_BYTES - 4, crc32c(0, image, NODE_LOG_HEADER_BYTES - 4));
    for (size_t at = NODE_LOG_HEADER_BYTES; at + NODE_LOG_ALIGN <= size; at += NODE_LOG_ALIGN) {
        uint8_t *p = image + at;
        uint64_t body = load_u64(p + 24);
        if (memcmp(p, "OMNB", 4) != 0) continue;
        if (body <= size && range_fits(at, node_log_batch_bytes(body), size)) {
            uint64_t len = node_log_batch_bytes(body) - NODE_LOG_BATCH_HEADER_BYTES;
            store_u32(p + 36, crc32c(0, p + NODE_LOG_BATCH_HEADER_BYTES, len));
        }
        store_u32(p + 4, crc32c(0, p + 8, NODE_LOG_BATCH_HEADER_BYTES - 8));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1) return 0;
    size_t len = size - 1;
    uint8_t *image = mem_must_alloc(len + 1);
    memcpy(image, data + 1, len);
    if (data[0] & 1) repair(image, len);
    struct node_log_segment_header header;
    struct err err = { 0 };
    uint64_t sum = 0;
    enum omen_err rc = node_log_header_decode(image, len, "fuzz", &header, &err);
    uint64_t number = rc == OMEN_OK ? header.number : 1, first = rc == OMEN_OK ? header.first_batch : 1;
    for (int recorded = 0; recorded < 2; recorded++) {
        struct node_log_walk walk = { .path = "fuzz",
            .number = number,
            .next_batch = first,
            .recorded_end = recorded ? align_up(len, NODE_LOG_ALIGN) : 0 };
        rc = node_log_walk(&walk, image, len, touch, &sum, &err);
        if (len >= NODE_LOG_HEADER_BYTES) CHECK(walk.end <= len);
        CHECK(rc == OMEN_OK || err.message[0] != '\0');
    }
    mem_free(image);
    return 0;
}
