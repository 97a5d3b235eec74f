/* Encoding, decoding and walking of node log segments: see node_log_format.h. Every length is checked against
 * the image before it is used; nothing is allocated. */
#include "common/err.h"
#include "common/bytes.h"
#include "common/check.h"
#include "common/crc32c.h"
#include "consensus/node_log_format.h"

#define SEGMENT_MAGIC 0x4c4e4d4fu /* "OMNL" */
#define BATCH_MAGIC 0x424e4d4fu   /* "OMNB" */
#define HEADER_CRC_AT (NODE_LOG_HEADER_BYTES - 4)

static bool all_zero(const uint8_t *p, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if (p[i] != 0) return false;
    }
    return true;
}

void node_log_header_encode(const struct node_log_segment_header *header, uint8_t out[NODE_LOG_HEADER_BYTES])
{
    memset(out, 0, NODE_LOG_HEADER_BYTES);
    store_u32(out, SEGMENT_MAGIC);
    store_u16(out + 4, NODE_LOG_VERSION);
    store_u64(out + 8, header->node_id);
    store_u64(out + 16, header->number);
    store_u64(out + 24, header->first_batch);
    store_u64(out + 32, header->previous);
    store_u64(out + 40, header->previous_end);
    store_u64(out + 48, header->bytes);
    store_u32(out + HEADER_CRC_AT, crc32c(0, out, HEADER_CRC_AT));
}

enum omen_err node_log_header_decode(const uint8_t *data, uint64_t len, const char *path,
        struct node_log_segment_header *header_out, struct err *err)
{
    if (len < NODE_LOG_HEADER_BYTES) return err_corrupt(err, path, len, "segment header is cut short");
    if (load_u32(data) != SEGMENT_MAGIC) return err_corrupt(err, path, 0, "not a log segment");
    if (load_u32(data + HEADER_CRC_AT) != crc32c(0, data, HEADER_CRC_AT))
        return err_corrupt(err, path, 0, "segment header fails its checksum");
    if (load_u16(data + 4) != NODE_LOG_VERSION)
        return err_set(err, OMEN_EVERSION, NULL, "%s: log format version %u, this build reads %u", path,
                load_u16(data + 4), NODE_LOG_VERSION);
    struct node_log_segment_header h = {
        .node_id = load_u64(data + 8),
        .number = load_u64(data + 16),
        .first_batch = load_u64(data + 24),
        .previous = load_u64(data + 32),
        .previous_end = load_u64(data + 40),
        .bytes = load_u64(data + 48),
    };
    if (!all_zero(data + 6, 2) || !all_zero(data + 56, HEADER_CRC_AT - 56))
        return err_corrupt(err, path, 6, "reserved bytes of the segment header are not zero");
    if (h.number == 0 || h.previous != h.number - 1)
        return err_corrupt(err, path, 16, "segment header has impossible numbers");
    if (h.bytes < NODE_LOG_HEADER_BYTES || h.bytes > len)
        return err_corrupt(err, path, 48, "segment is cut short");
    *header_out = h;
    return OMEN_OK;
}

void node_log_batch_encode(const struct node_log_batch *batch, uint8_t out[NODE_LOG_BATCH_HEADER_BYTES])
{
    memset(out, 0, NODE_LOG_BATCH_HEADER_BYTES);
    store_u32(out, BATCH_MAGIC);
    store_u64(out + 8, batch->segment);
    store_u64(out + 16, batch->number);
    store_u64(out + 24, batch->body_bytes);
    store_u32(out + 32, batch->record_count);
    store_u32(out + 36, batch->body_crc);
    store_u32(out + 4, crc32c(0, out + 8, NODE_LOG_BATCH_HEADER_BYTES - 8));
}

void node_log_record_encode(const struct node_log_record *record, uint8_t out[NODE_LOG_RECORD_HEADER_BYTES])
{
    store_u64(out, record->group);
    store_u64(out + 8, record->replica);
    store_u64(out + 16, record->term);
    store_u64(out + 24, record->index);
    store_u32(out + 32, record->kind);
    store_u32(out + 36, record->len);
    store_u32(out + 40, record->entry_type);
    store_u32(out + 44, 0);
}

/* Header only: a batch of segment `number` that would lie within the image. */
static bool batch_header_decode(const uint8_t *image, uint64_t image_bytes, uint64_t offset, uint64_t number,
        struct node_log_batch *out)
{
    if (!range_fits(offset, NODE_LOG_ALIGN, image_bytes)) return false;
    const uint8_t *p = image + offset;
    if (load_u32(p) != BATCH_MAGIC) return false;
    if (load_u32(p + 4) != crc32c(0, p + 8, NODE_LOG_BATCH_HEADER_BYTES - 8)) return false;
    out->segment = load_u64(p + 8);
    out->number = load_u64(p + 16);
    out->body_bytes = load_u64(p + 24);
    out->record_count = load_u32(p + 32);
    out->body_crc = load_u32(p + 36);
    if (!all_zero(p + 40, 24) || out->segment != number || out->body_bytes % 8 != 0) return false;
    return out->body_bytes <= image_bytes &&
            range_fits(offset, node_log_batch_bytes(out->body_bytes), image_bytes);
}

static bool batch_body_valid(const uint8_t *image, uint64_t offset, const struct node_log_batch *batch)
{
    uint64_t len = node_log_batch_bytes(batch->body_bytes) - NODE_LOG_BATCH_HEADER_BYTES;
    return crc32c(0, image + offset + NODE_LOG_BATCH_HEADER_BYTES, len) == batch->body_crc;
}

/* The checksum held, so whatever is wrong here was written wrong or forged: corruption, never a torn tail. */
static enum omen_err replay_batch(const char *path, const uint8_t *image, uint64_t offset,
        const struct node_log_batch *batch, node_log_replay replay, void *arg, struct err *err)
{
    uint64_t at = offset + NODE_LOG_BATCH_HEADER_BYTES;
    uint64_t end = at + batch->body_bytes;
    for (uint32_t i = 0; i < batch->record_count; i++) {
        if (!range_fits(at, NODE_LOG_RECORD_HEADER_BYTES, end))
            return err_corrupt(err, path, at, "record outside its batch");
        const uint8_t *p = image + at;
        uint32_t kind = load_u32(p + 32), entry_type = load_u32(p + 40);
        struct node_log_record record = {
            .group = load_u64(p),
            .replica = load_u64(p + 8),
            .term = load_u64(p + 16),
            .index = load_u64(p + 24),
            .kind = (enum node_log_kind)kind,
            .entry_type = (enum node_log_entry_type)entry_type,
            .body = p + NODE_LOG_RECORD_HEADER_BYTES,
            .len = load_u32(p + 36),
        };
        if (kind < NODE_LOG_ENTRY || kind > NODE_LOG_SNAPSHOT || load_u32(p + 44) != 0)
            return err_corrupt(err, path, at, "unknown record kind");
        if (entry_type > (kind == NODE_LOG_ENTRY ? NODE_LOG_CHANGE : NODE_LOG_COMMAND))
            return err_corrupt(err, path, at + 40, "unknown type of entry");
        if (kind == NODE_LOG_SNAPSHOT && record.len > NODE_LOG_SNAPSHOT_BYTES_MAX)
            return err_corrupt(err, path, at + 36, "snapshot record of a wrong size");
        if (kind == NODE_LOG_HARD_STATE && record.len != 8)
            return err_corrupt(err, path, at, "hard state of a wrong size");
        if (!range_fits(at, node_log_record_bytes(record.len), end))
            return err_corrupt(err, path, at, "record body outside its batch");
        if (replay != NULL) {
            enum omen_err rc = replay(arg, &record);
            if (rc != OMEN_OK)
                return err_set(err, rc, NULL, "%s: replay stopped at offset %llu: %s", path,
                        (unsigned long long)at, err_name(rc));
        }
        at += node_log_record_bytes(record.len);
    }
    if (at != end) return err_corrupt(err, path, at, "bytes after the last record of a batch");
    return OMEN_OK;
}

/* Is there a valid batch of this life, numbered `next_batch` or later, anywhere after `offset`? A forged
 * image could make each page look like the header of a huge batch; the bytes summed are bounded and beyond it
 * we refuse. */
static bool later_batch_exists(const struct node_log_walk *walk, const uint8_t *image, uint64_t image_bytes,
        uint64_t offset)
{
    uint64_t budget = 4 * image_bytes;
    for (uint64_t at = offset; range_fits(at, NODE_LOG_ALIGN, image_bytes); at += NODE_LOG_ALIGN) {
        struct node_log_batch batch;
        if (!batch_header_decode(image, image_bytes, at, walk->number, &batch)) continue;
        if (batch.number < walk->next_batch) continue;
        if (budget < batch.body_bytes || batch_body_valid(image, at, &batch)) return true;
        budget -= batch.body_bytes;
    }
    return false;
}

enum omen_err node_log_walk(struct node_log_walk *walk, const uint8_t *image, uint64_t image_bytes,
        node_log_replay replay, void *arg, struct err *err)
{
    uint64_t limit = walk->recorded_end != 0 ? walk->recorded_end : image_bytes;
    walk->batch_count = 0;
    walk->end = NODE_LOG_HEADER_BYTES;
    if (limit > image_bytes) return err_corrupt(err, walk->path, image_bytes, "segment is cut short");
    while (walk->end < limit) {
        struct node_log_batch batch;
        if (!batch_header_decode(image, limit, walk->end, walk->number, &batch)) break;
        if (!batch_body_valid(image, walk->end, &batch)) break;
        if (batch.number != walk->next_batch)
            return err_corrupt(err, walk->path, walk->end, "batch number out of order");
        enum omen_err rc = replay_batch(walk->path, image, walk->end, &batch, replay, arg, err);
        if (rc != OMEN_OK) return rc;
        walk->end += node_log_batch_bytes(batch.body_bytes);
        walk->next_batch++;
        walk->batch_count++;
    }
    if (walk->end == limit) return OMEN_OK;
    if (walk->recorded_end != 0)
        return err_corrupt(err, walk->path, walk->end, "bad batch before the segment's end");
    if (later_batch_exists(walk, image, image_bytes, walk->end + NODE_LOG_ALIGN))
        return err_corrupt(err, walk->path, walk->end, "bad batch with a valid one after it");
    return OMEN_OK;
}
