/* Log entries: the builder. Ops are copied into one buffer per part of the entry, each growing geometrically
 * and kept over resets, so a warm builder allocates only the finished entry; finish is a header, a checksum
 * and one memcpy per part.
 *
 * Threads: one owner. Determinism: bytes are a function of the ops, their order and the arguments of
 * finish. */
#include "common/err.h"
#include "common/bytes.h"
#include "common/check.h"
#include "common/crc32c.h"
#include "common/mem.h"
#include "storage/entry.h"
#include "storage/entry_layout.h"

struct entry_builder {
    struct collection_schema schema;
    struct entry_counts counts;
    bool timed;                     /* some op */
    bool intents;                   /* some request */
    struct buf requests, ops, heap; /* as they will lie in the entry */
    struct buf row_ops[OMEN_VECTOR_FIELDS_MAX];
    struct buf columns[OMEN_VECTOR_FIELDS_MAX];
};

struct entry_builder *entry_builder_new(const struct collection_schema *schema)
{
    CHECK(schema->field_count <= OMEN_VECTOR_FIELDS_MAX);
    struct entry_builder *b = mem_must_calloc(1, sizeof *b);
    b->schema = *schema;
    buf_init(&b->requests);
    buf_init(&b->ops);
    buf_init(&b->heap);
    for (uint32_t f = 0; f < OMEN_VECTOR_FIELDS_MAX; f++) {
        buf_init(&b->row_ops[f]);
        buf_init(&b->columns[f]);
    }
    return b;
}

void entry_builder_free(struct entry_builder *b)
{
    if (b == NULL) return;
    buf_fini(&b->requests);
    buf_fini(&b->ops);
    buf_fini(&b->heap);
    for (uint32_t f = 0; f < OMEN_VECTOR_FIELDS_MAX; f++) {
        buf_fini(&b->row_ops[f]);
        buf_fini(&b->columns[f]);
    }
    mem_free(b);
}

void entry_builder_reset(struct entry_builder *b)
{
    memset(&b->counts, 0, sizeof b->counts);
    b->timed = b->intents = false;
    buf_clear(&b->requests);
    buf_clear(&b->ops);
    buf_clear(&b->heap);
    for (uint32_t f = 0; f < b->schema.field_count; f++) {
        buf_clear(&b->row_ops[f]);
        buf_clear(&b->columns[f]);
    }
}

void entry_builder_begin_request(struct entry_builder *b, struct op_id op_id)
{
    CHECK(b->counts.requests < ENTRY_REQUESTS_MAX);
    CHECK(b->counts.requests > 0 || b->counts.ops == 0);
    uint8_t *r = buf_reserve(&b->requests, ENTRY_REQUEST_BYTES);
    if (r == NULL) panic("no memory for %u bytes of a log entry's requests", ENTRY_REQUEST_BYTES);
    b->requests.len += ENTRY_REQUEST_BYTES;
    store_u64(r, op_id.client);
    store_u64(r + 8, op_id.seq);
    store_u64(r + 16, op_id.issue_ms);
    store_u32(r + 24, b->counts.ops);
    store_u32(r + 28, 0);
    store_u64(r + ENTRY_INTENT_OFF, 0);
    b->counts.requests++;
}

static bool builder_reserve(struct buf *buf, size_t bytes)
{
    if (buf_reserve(buf, bytes) != NULL || bytes == 0) return true;
    buf->failed = false; /* nothing was written: the builder stays usable */
    return false;
}

/* Room in every buffer before the first byte is written, so that a failed allocation leaves no half op
 * behind. */
static bool builder_reserve_op(struct entry_builder *b, const struct point_op *op)
{
    if (!builder_reserve(&b->ops, entry_op_stride(b->schema.field_count))) return false;
    if (!builder_reserve(&b->heap, op->key.canonical.len + op->payload.len)) return false;
    for (uint32_t f = 0; f < b->schema.field_count; f++) {
        if (op->vectors[f] == NULL) continue;
        if (!builder_reserve(&b->row_ops[f], sizeof(uint32_t))) return false;
        size_t row_bytes = entry_row_stride(b->schema.fields[f].dim) * sizeof(float);
        if (!builder_reserve(&b->columns[f], row_bytes)) return false;
    }
    return true;
}

static uint32_t builder_put_row(struct entry_builder *b, uint32_t field, const float *vector)
{
    uint32_t dim = b->schema.fields[field].dim;
    size_t row_bytes = entry_row_stride(dim) * sizeof(float);
    struct buf *column = &b->columns[field];
    uint8_t *row = column->data + column->len;
    memcpy(row, vector, dim * sizeof(float));
    memset(row + dim * sizeof(float), 0, row_bytes - dim * sizeof(float));
    column->len += row_bytes;
    struct buf *row_ops = &b->row_ops[field];
    store_u32(row_ops->data + row_ops->len, b->counts.ops);
    row_ops->len += sizeof(uint32_t);
    return b->counts.rows[field]++;
}

static uint32_t builder_put_heap(struct entry_builder *b, const void *data, size_t len)
{
    uint32_t off = (uint32_t)b->heap.len;
    if (len > 0) memcpy(b->heap.data + off, data, len);
    b->heap.len += len;
    b->counts.heap_bytes = (uint32_t)b->heap.len;
    return off;
}

enum omen_err entry_builder_put_intent(struct entry_builder *b, const struct entry_intent *intent)
{
    CHECK(entry_intent_fault(intent) == NULL);
    CHECK(b->counts.requests > 0);
    size_t len = entry_intent_bytes(intent);
    if (entry_builder_bytes(b) + len + ENTRY_ALIGN > ENTRY_BYTES_MAX) return OMEN_ETOOBIG;
    if (!builder_reserve(&b->heap, len)) return OMEN_ENOMEM;
    uint8_t *r = b->requests.data + b->requests.len - ENTRY_REQUEST_BYTES;
    CHECK(load_u32(r + 28) == 0 && load_u64(r + ENTRY_INTENT_OFF) == 0);
    CHECK(intent->kind == ENTRY_INTENT_BEGIN || load_u64(r) == 0);
    store_u32(r + ENTRY_INTENT_OFF, (uint32_t)b->heap.len);
    store_u32(r + ENTRY_INTENT_OFF + 4, (uint32_t)len);
    entry_intent_encode(intent, b->heap.data + b->heap.len);
    b->heap.len += len;
    b->counts.heap_bytes = (uint32_t)b->heap.len;
    b->intents = true;
    return OMEN_OK;
}

enum omen_err entry_builder_add(struct entry_builder *b, const struct point_op *op)
{
    struct bytes key = op->key.canonical;
    CHECK(entry_op_fault(&b->schema, op->kind, op->id, op->any_key, key.len, op->payload) == NULL);
    CHECK(op->kind == POINT_UPSERT ? op->if_version == 0 : op->expires_ms == 0);
    struct entry_counts after = b->counts;
    uint64_t added_heap = (uint64_t)key.len + op->payload.len;
    if (added_heap > ENTRY_BYTES_MAX) return OMEN_ETOOBIG;
    after.ops++;
    after.heap_bytes += (uint32_t)added_heap;
    for (uint32_t f = 0; f < OMEN_VECTOR_FIELDS_MAX; f++) {
        if (op->vectors[f] == NULL) continue;
        CHECK(f < b->schema.field_count);
        CHECK(op->kind == POINT_UPSERT);
        after.rows[f]++;
    }
    struct entry_layout layout;
    entry_layout_of(&b->schema, &after, &layout);
    if (layout.total_bytes > ENTRY_BYTES_MAX) return OMEN_ETOOBIG;
    if (!builder_reserve_op(b, op)) return OMEN_ENOMEM;

    uint32_t stride = entry_op_stride(b->schema.field_count);
    uint8_t *o = b->ops.data + b->ops.len;
    b->ops.len += stride;
    struct point_key hashed = point_key_make(op->id, op->key);
    memset(o, 0, stride);
    o[0] = (uint8_t)op->kind;
    o[1] = op->id.kind;
    o[2] = op->any_key ? ENTRY_OP_ANY_KEY : 0;
    store_u32(o + 4, (uint32_t)key.len);
    store_u64(o + 8, op->id.hi);
    store_u64(o + 16, op->id.lo);
    store_u64(o + 24, hashed.key_hi);
    store_u64(o + 32, hashed.key_lo);
    store_u32(o + 40, builder_put_heap(b, key.data, key.len));
    store_u32(o + 44, builder_put_heap(b, op->payload.data, op->payload.data != NULL ? op->payload.len : 0));
    store_u32(o + 48, op->payload.data != NULL ? op->payload.len : 0);
    store_u64(o + ENTRY_OP_TIME_OFF, op->expires_ms | op->if_version);
    b->timed |= (op->expires_ms | op->if_version) != 0;
    for (uint32_t f = 0; f < b->schema.field_count; f++) {
        uint32_t row = op->vectors[f] != NULL ? builder_put_row(b, f, op->vectors[f]) : ENTRY_NO_ROW;
        store_u32(o + ENTRY_OP_ROWS_OFF + 4 * f, row);
    }
    b->counts.ops++;
    if (b->counts.requests > 0) {
        uint8_t *count = b->requests.data + b->requests.len - ENTRY_REQUEST_BYTES + 28;
        store_u32(count, load_u32(count) + 1);
    }
    return OMEN_OK;
}

size_t entry_builder_bytes(const struct entry_builder *b)
{
    struct entry_layout layout;
    entry_layout_of(&b->schema, &b->counts, &layout);
    return layout.total_bytes;
}

uint32_t entry_builder_op_count(const struct entry_builder *b) { return b->counts.ops; }
uint32_t entry_builder_request_count(const struct entry_builder *b) { return b->counts.requests; }

static void put_header(const struct entry_builder *b, const struct entry_layout *l, uint64_t log_time_ms,
        uint64_t epoch, bool derived, uint8_t *e)
{
    memset(e, 0, ENTRY_HEADER_BYTES);
    memcpy(e, ENTRY_MAGIC, ENTRY_MAGIC_BYTES);
    store_u16(e + 4, b->intents ? ENTRY_VERSION : b->timed ? ENTRY_VERSION_TIMED : ENTRY_VERSION_PLAIN);
    store_u16(e + 6, derived ? ENTRY_FLAG_DERIVED : 0);
    store_u32(e + 8, (uint32_t)l->total_bytes);
    store_u64(e + 16, log_time_ms);
    store_u64(e + 24, epoch);
    store_u32(e + 32, b->counts.requests);
    store_u32(e + 36, b->counts.ops);
    store_u16(e + 40, (uint16_t)b->schema.field_count);
    store_u16(e + 42, (uint16_t)entry_op_stride(b->schema.field_count));
    store_u32(e + 44, (uint32_t)l->requests_off);
    store_u32(e + 48, (uint32_t)l->ops_off);
    store_u32(e + 52, (uint32_t)l->row_ops_off);
    store_u32(e + 56, (uint32_t)l->heap_off);
    store_u32(e + 60, b->counts.heap_bytes);
    for (uint32_t f = 0; f < b->schema.field_count; f++) {
        store_u32(e + ENTRY_COLUMNS_OFF + 8 * f, (uint32_t)l->column_off[f]);
        store_u32(e + ENTRY_COLUMNS_OFF + 8 * f + 4, b->counts.rows[f]);
    }
}

static uint8_t *put_buf(uint8_t *dst, const struct buf *src)
{
    if (src->len > 0) memcpy(dst, src->data, src->len);
    return dst + src->len;
}

static void check_only_upserts(const struct entry_builder *b)
{
    uint32_t stride = entry_op_stride(b->schema.field_count);
    for (uint32_t i = 0; i < b->counts.ops; i++) CHECK(b->ops.data[(size_t)i * stride] == POINT_UPSERT);
}

enum omen_err entry_builder_finish(struct entry_builder *b, uint64_t log_time_ms, uint64_t epoch,
        bool derived, uint8_t **entry_out, uint32_t *len_out)
{
    CHECK(derived || b->counts.requests > 0);
    CHECK(!derived || !b->intents);
    if (derived) check_only_upserts(b);
    struct entry_layout layout;
    entry_layout_of(&b->schema, &b->counts, &layout);
    if (layout.total_bytes > ENTRY_BYTES_MAX) return OMEN_ETOOBIG; /* requests without ops count too */
    uint8_t *e = mem_alloc_aligned(ENTRY_ALIGN, layout.total_bytes);
    if (e == NULL) return OMEN_ENOMEM;

    put_header(b, &layout, log_time_ms, epoch, derived, e);
    uint8_t *end = put_buf(e + ENTRY_HEADER_BYTES, &b->requests);
    end = put_buf(end, &b->ops);
    for (uint32_t f = 0; f < b->schema.field_count; f++) end = put_buf(end, &b->row_ops[f]);
    end = put_buf(end, &b->heap);
    size_t gap = (size_t)(align_up((uint64_t)(end - e), ENTRY_ALIGN) - (uint64_t)(end - e));
    memset(end, 0, gap);
    end += gap;
    for (uint32_t f = 0; f < b->schema.field_count; f++) end = put_buf(end, &b->columns[f]);
    CHECK((uint64_t)(end - e) == layout.total_bytes);

    store_u32(e + 12, crc32c(0, e + ENTRY_CRC_FROM, layout.total_bytes - ENTRY_CRC_FROM));
    *entry_out = e;
    *len_out = (uint32_t)layout.total_bytes;
    return OMEN_OK;
}
