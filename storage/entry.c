/* Log entries: the parser of the format that storage/entry.h draws. It reads disk and network, so it believes
 * nothing: counts give the one layout they allow (entry_layout.h), and whatever the bytes say must equal it.
 *
 * Threads: no state. Determinism: the verdict is a function of the bytes and the schema. */
#include "common/err.h"
#include "common/bytes.h"
#include "common/check.h"
#include "common/crc32c.h"
#include "common/feature.h"
#include "storage/entry.h"
#include "storage/entry_layout.h"
#include "storage/kernel/kernel.h"

#include <assert.h>

static_assert(ENTRY_COLUMNS_OFF + 8 * OMEN_VECTOR_FIELDS_MAX == ENTRY_HEADER_BYTES,
        "the header is part of the format");

void entry_layout_of(const struct collection_schema *schema, const struct entry_counts *counts,
        struct entry_layout *layout_out)
{
    struct entry_layout *l = layout_out;
    l->requests_off = ENTRY_HEADER_BYTES;
    l->ops_off = l->requests_off + (uint64_t)counts->requests * ENTRY_REQUEST_BYTES;
    l->row_ops_off = l->ops_off + (uint64_t)counts->ops * entry_op_stride(schema->field_count);
    l->heap_off = l->row_ops_off;
    for (uint32_t f = 0; f < schema->field_count; f++)
        l->heap_off += (uint64_t)counts->rows[f] * sizeof(uint32_t);
    uint64_t end = align_up(l->heap_off + counts->heap_bytes, ENTRY_ALIGN);
    for (uint32_t f = 0; f < schema->field_count; f++) {
        l->column_off[f] = end;
        end += (uint64_t)counts->rows[f] * entry_row_stride(schema->fields[f].dim) * sizeof(float);
    }
    l->total_bytes = end;
}

const char *entry_op_fault(const struct collection_schema *schema, enum point_op_kind kind, point_id id,
        bool any_key, size_t key_len, struct doc payload)
{
    bool keyed = schema->shard_key[0] != '\0';
    if (kind < POINT_UPSERT || kind > POINT_DELETE_PAYLOAD) return "unknown kind of operation";
    if (id.kind != POINT_ID_U64 && id.kind != POINT_ID_UUID) return "unknown kind of id";
    if (id.kind == POINT_ID_U64 && id.hi != 0) return "numeric id above 64 bits";
    if (any_key && (!keyed || kind == POINT_UPSERT)) return "operation without its shard key";
    if (keyed != (key_len > 0) && !any_key) return "shard key does not fit the collection";
    if (any_key && key_len > 0) return "operation for any key names one";
    return entry_payload_fault(kind, payload);
}

const char *entry_payload_fault(enum point_op_kind kind, struct doc payload)
{
    bool has_payload = payload.data != NULL;
    uint8_t type = has_payload ? payload.data[0] : DOC_OBJECT; /* the tag may be anything yet */
    switch (kind) {
    case POINT_UPSERT: return type == DOC_OBJECT ? NULL : "payload is not an object";
    case POINT_DELETE: return has_payload ? "deletion with a payload" : NULL;
    case POINT_SET_PAYLOAD:
    case POINT_OVERWRITE_PAYLOAD:
        return has_payload && type == DOC_OBJECT ? NULL : "payload is not an object";
    case POINT_DELETE_PAYLOAD:
        return has_payload && type == DOC_ARRAY ? NULL : "payload is not a list of paths";
    }
    return "unknown kind of operation";
}

static enum omen_err bad(struct err *err, uint64_t offset_bytes, const char *what)
{
    return err_corrupt(err, "log entry", offset_bytes, what);
}

static bool all_zero(const uint8_t *p, size_t len)
{
    uint8_t any = 0;
    for (size_t i = 0; i < len; i++) any |= p[i];
    return any == 0;
}

/* Header fields that stand alone; the counts go out for the layout. */
static enum omen_err parse_header(const uint8_t *e, size_t len, const struct collection_schema *schema,
        struct entry_counts *counts_out, struct err *err)
{
    if (len < ENTRY_HEADER_BYTES) return bad(err, len, "shorter than an entry's header");
    if (memcmp(e, ENTRY_MAGIC, ENTRY_MAGIC_BYTES) != 0) return bad(err, 0, "no entry starts here");
    if (load_u16(e + 4) < ENTRY_VERSION_PLAIN || load_u16(e + 4) > ENTRY_VERSION)
        return bad(err, 4, "unknown version of the entry format");
    if (load_u16(e + 4) == ENTRY_VERSION && !feature_may(feature_level(), FEATURE_INTENTS))
        return err_set(err, OMEN_EVERSION, NULL, "log entry of version %u: of a later release",
                ENTRY_VERSION);
    if ((load_u16(e + 6) & ~ENTRY_FLAG_DERIVED) != 0) return bad(err, 6, "unknown flags");
    if (len > ENTRY_BYTES_MAX) return bad(err, 8, "entry above its size limit");
    if (load_u32(e + 8) != len) return bad(err, 8, "entry length differs from its header");
    if (load_u16(e + 40) != schema->field_count)
        return bad(err, 40, "number of vector fields differs from the schema");
    if (load_u16(e + 42) != entry_op_stride(schema->field_count))
        return bad(err, 42, "wrong stride of operations");
    counts_out->requests = load_u32(e + 32);
    counts_out->ops = load_u32(e + 36);
    counts_out->heap_bytes = load_u32(e + 60);
    if (counts_out->requests > ENTRY_REQUESTS_MAX) return bad(err, 32, "too many requests");
    bool derived = (load_u16(e + 6) & ENTRY_FLAG_DERIVED) != 0;
    if (counts_out->requests == 0 && !derived) return bad(err, 32, "entry without a request");
    const uint8_t *columns = e + ENTRY_COLUMNS_OFF;
    for (uint32_t f = 0; f < schema->field_count; f++) {
        counts_out->rows[f] = load_u32(columns + 8 * f + 4);
        if (counts_out->rows[f] > counts_out->ops)
            return bad(err, ENTRY_COLUMNS_OFF + 8 * f + 4, "more rows than ops");
    }
    uint32_t used = 8 * schema->field_count;
    if (!all_zero(columns + used, 8 * OMEN_VECTOR_FIELDS_MAX - used)) {
        return bad(err, ENTRY_COLUMNS_OFF + used, "column of no field");
    }
    return OMEN_OK;
}

static enum omen_err parse_offsets(const uint8_t *e, const struct collection_schema *schema,
        const struct entry_layout *l, struct err *err)
{
    if (l->total_bytes != load_u32(e + 8)) return bad(err, 8, "counts do not add up to the entry's length");
    if (load_u32(e + 44) != l->requests_off) return bad(err, 44, "wrong offset of requests");
    if (load_u32(e + 48) != l->ops_off) return bad(err, 48, "wrong offset of operations");
    if (load_u32(e + 52) != l->row_ops_off) return bad(err, 52, "wrong offset of row tables");
    if (load_u32(e + 56) != l->heap_off) return bad(err, 56, "wrong offset of the heap");
    for (uint32_t f = 0; f < schema->field_count; f++) {
        uint32_t at = ENTRY_COLUMNS_OFF + 8 * f;
        if (load_u32(e + at) != l->column_off[f]) return bad(err, at, "wrong offset of a column");
    }
    return OMEN_OK;
}

/* Requests cut the ops into consecutive ranges that cover all of them (none at all only in a derived
 * entry). */
static enum omen_err parse_requests(const struct entry *e, struct err *err)
{
    uint64_t next_op = 0;
    for (uint32_t i = 0; i < e->request_count; i++) {
        const uint8_t *r = e->requests + (size_t)i * ENTRY_REQUEST_BYTES;
        uint64_t at = (uint64_t)(r - e->base);
        if (load_u32(r + 24) != next_op) return bad(err, at + 24, "request's operations do not follow on");
        next_op += load_u32(r + 28);
        if (!e->intents && load_u64(r + ENTRY_INTENT_OFF) != 0)
            return bad(err, at + ENTRY_INTENT_OFF, "request's reserved bytes are used");
        if (load_u32(r + ENTRY_INTENT_OFF + 4) == 0 && load_u32(r + ENTRY_INTENT_OFF) != 0)
            return bad(err, at + ENTRY_INTENT_OFF, "place of no intent");
    }
    if (e->request_count > 0 && next_op != e->op_count)
        return bad(err, 36, "requests do not add up to the operations");
    return OMEN_OK;
}

/* Where the op walk stands: what the next key, doc and row must be. */
struct op_walk {
    uint64_t heap_next;
    bool timed;            /* an operation so far */
    bool intents, in_step; /* a request so far; the one at hand */
    uint32_t row_next[OMEN_VECTOR_FIELDS_MAX];
};

static enum omen_err parse_op_rows(const struct entry *e, const uint8_t *o, uint32_t i, struct op_walk *walk,
        struct err *err)
{
    for (uint32_t f = 0; f < e->field_count; f++) {
        uint64_t at = (uint64_t)(o - e->base) + ENTRY_OP_ROWS_OFF + 4 * f;
        uint32_t row = load_u32(o + ENTRY_OP_ROWS_OFF + 4 * f);
        if (row == ENTRY_NO_ROW) continue;
        if (o[0] != POINT_UPSERT) return bad(err, at, "vector in an operation that takes none");
        if (row != walk->row_next[f] || row >= e->row_count[f]) return bad(err, at, "row out of order");
        if (e->row_ops[f][row] != i) return bad(err, at, "row belongs to another operation");
        walk->row_next[f]++;
    }
    uint32_t end = ENTRY_OP_ROWS_OFF + 4 * e->field_count;
    if (!all_zero(o + end, e->op_stride - end))
        return bad(err, (uint64_t)(o - e->base) + end, "padding is not zero");
    return OMEN_OK;
}

static enum omen_err parse_op(const struct entry *e, const struct collection_schema *schema,
        uint32_t heap_bytes, uint32_t i, struct op_walk *walk, struct err *err)
{
    const uint8_t *o = e->ops + (size_t)i * e->op_stride;
    uint64_t at = (uint64_t)(o - e->base);
    if ((o[2] & ~ENTRY_OP_ANY_KEY) != 0 || o[3] != 0)
        return bad(err, at + 2, "unknown flags of an operation");
    bool timed = load_u64(o + ENTRY_OP_TIME_OFF) != 0;
    if (timed && !e->timed) return bad(err, at + ENTRY_OP_TIME_OFF, "operation's reserved bytes are used");
    walk->timed |= timed;
    uint32_t key_len = load_u32(o + 4), doc_len = load_u32(o + 48);
    if (key_len > OMEN_SHARD_KEY_BYTES_MAX) return bad(err, at + 4, "shard key above its size limit");
    if (load_u32(o + 40) != walk->heap_next) return bad(err, at + 40, "key out of order in the heap");
    if (!range_fits(walk->heap_next, key_len, heap_bytes)) return bad(err, at + 4, "key outside the heap");
    walk->heap_next += key_len;
    if (load_u32(o + 44) != walk->heap_next) return bad(err, at + 44, "payload out of order in the heap");
    if (!range_fits(walk->heap_next, doc_len, heap_bytes))
        return bad(err, at + 48, "payload outside the heap");
    struct doc payload = { doc_len > 0 ? e->heap + walk->heap_next : NULL, doc_len };
    walk->heap_next += doc_len;
    point_id id = { load_u64(o + 8), load_u64(o + 16), o[1] };
    const char *fault = entry_op_fault(schema, o[0], id, (o[2] & ENTRY_OP_ANY_KEY) != 0, key_len, payload);
    if (fault != NULL) return bad(err, at, fault);
    if (e->derived && o[0] != POINT_UPSERT) return bad(err, at, "derived entry holds more than points");
    if (walk->in_step && o[0] == POINT_UPSERT) return bad(err, at, "point in a step of a write by filter");
    return parse_op_rows(e, o, i, walk, err);
}

/* The intent of a request, before its operations. */
static enum omen_err parse_intent(const struct entry *e, const uint8_t *r, uint32_t heap_bytes,
        struct op_walk *walk, struct err *err)
{
    struct entry_intent intent;
    uint64_t at = (uint64_t)(r - e->base);
    uint32_t len = load_u32(r + ENTRY_INTENT_OFF + 4);
    size_t wrong_at = 0;
    walk->in_step = false;
    if (len == 0) return OMEN_OK;
    if (load_u32(r + ENTRY_INTENT_OFF) != walk->heap_next)
        return bad(err, at + ENTRY_INTENT_OFF, "intent out of order in the heap");
    if (!range_fits(walk->heap_next, len, heap_bytes))
        return bad(err, at + ENTRY_INTENT_OFF + 4, "intent outside the heap");
    const char *fault = entry_intent_decode(e->heap + walk->heap_next, len, &intent, &wrong_at);
    if (fault != NULL) return bad(err, (uint64_t)(e->heap - e->base) + walk->heap_next + wrong_at, fault);
    if (intent.kind == ENTRY_INTENT_BEGIN && load_u32(r + 28) != 0)
        return bad(err, at + 28, "operations where a write by filter begins");
    if (intent.kind == ENTRY_INTENT_STEP && !all_zero(r, 24))
        return bad(err, at, "op id of a step of a write by filter");
    walk->heap_next += len;
    walk->intents = true;
    walk->in_step = intent.kind == ENTRY_INTENT_STEP;
    return OMEN_OK;
}

static enum omen_err parse_ops(const struct entry *e, const struct collection_schema *schema,
        uint32_t heap_bytes, struct err *err)
{
    struct op_walk walk = { 0 };
    enum omen_err rc = OMEN_OK;
    for (uint32_t i = 0, r = 0; i < e->op_count || r < e->request_count; i++) {
        for (; r < e->request_count && load_u32(e->requests + (size_t)r * ENTRY_REQUEST_BYTES + 24) == i;
                r++) {
            rc = parse_intent(e, e->requests + (size_t)r * ENTRY_REQUEST_BYTES, heap_bytes, &walk, err);
            if (rc != OMEN_OK) return rc;
        }
        if (i < e->op_count) rc = parse_op(e, schema, heap_bytes, i, &walk, err);
        if (rc != OMEN_OK) return rc;
    }
    if (walk.heap_next != heap_bytes) return bad(err, 60, "heap bytes that nothing owns");
    if (walk.intents != e->intents) return bad(err, 4, "no intent, which is version 2 or 1");
    if (!e->intents && walk.timed != e->timed) return bad(err, 4, "nothing has a time, which is version 1");
    for (uint32_t f = 0; f < e->field_count; f++) {
        if (walk.row_next[f] != e->row_count[f])
            return bad(err, ENTRY_COLUMNS_OFF + 8 * f + 4, "row of no operation");
    }
    return OMEN_OK;
}

/* Canonical bytes as common/query/point.h says. */
static bool shard_key_is_canonical(struct bytes key)
{
    if (key.len == 0) return true;
    switch (key.data[0]) {
    case 1: return utf8_valid(key.data + 1, key.len - 1);
    case 2: return key.len == 2 && key.data[1] <= 1;
    case 3: return key.len == 9;
    default: return false;
    }
}

static enum omen_err parse_op_content(const struct entry *e, uint32_t i, struct err *err)
{
    struct entry_op op;
    entry_op_at(e, i, &op);
    uint64_t at = (uint64_t)(e->ops - e->base) + (uint64_t)i * e->op_stride;
    if (!shard_key_is_canonical(op.shard_key)) return bad(err, at + 40, "shard key is not canonical");
    struct point_key hashed = point_key_make(op.key.id, (struct shard_key){ op.shard_key });
    if (point_key_compare(&hashed, &op.key) != 0) return bad(err, at + 24, "hash of the shard key is wrong");
    if (op.payload.data == NULL) return OMEN_OK;
    struct doc doc;
    struct bytes bytes = { op.payload.data, op.payload.len };
    if (doc_validate(bytes, DOC_BYTES_MAX, &doc, NULL) != OMEN_OK)
        return bad(err, at + 44, "malformed payload");
    return OMEN_OK;
}

static enum omen_err parse_column(const struct entry *e, uint32_t field, uint32_t dim, struct err *err)
{
    uint32_t stride = entry_row_stride(dim), position;
    for (uint32_t row = 0; row < e->row_count[field]; row++) {
        const float *v = entry_row(e, field, row, dim);
        uint64_t at = (uint64_t)((const uint8_t *)v - e->base);
        if (!vector_finite(v, dim, &position))
            return bad(err, at + 4ull * position, "component is not a finite number");
        if (!all_zero((const uint8_t *)(v + dim), (stride - dim) * sizeof(float))) {
            return bad(err, at + 4ull * dim, "padding of a row is not zero");
        }
    }
    return OMEN_OK;
}

static enum omen_err parse_intent_content(const struct entry *e, uint32_t request, struct err *err)
{
    struct entry_intent intent;
    struct doc doc;
    if (!entry_intent_at(e, request, &intent) || intent.kind != ENTRY_INTENT_BEGIN) return OMEN_OK;
    struct bytes filter = { intent.filter.data, intent.filter.len };
    struct bytes payload = { intent.payload.data, intent.payload.len };
    if (doc_validate(filter, DOC_FILTER_BYTES_MAX, &doc, NULL) != OMEN_OK)
        return bad(err, (uint64_t)(filter.data - e->base), "malformed filter");
    if (payload.len > 0 && doc_validate(payload, DOC_BYTES_MAX, &doc, NULL) != OMEN_OK)
        return bad(err, (uint64_t)(payload.data - e->base), "malformed payload");
    return OMEN_OK;
}

static enum omen_err parse_deep(const struct entry *e, const struct collection_schema *schema,
        const struct entry_layout *l, uint32_t heap_bytes, struct err *err)
{
    for (uint32_t i = 0; i < e->request_count; i++) {
        enum omen_err rc = parse_intent_content(e, i, err);
        if (rc != OMEN_OK) return rc;
    }
    for (uint32_t i = 0; i < e->op_count; i++) {
        enum omen_err rc = parse_op_content(e, i, err);
        if (rc != OMEN_OK) return rc;
    }
    uint64_t heap_end = l->heap_off + heap_bytes;
    uint64_t gap_end = align_up(heap_end, ENTRY_ALIGN);
    if (!all_zero(e->base + heap_end, gap_end - heap_end)) return bad(err, heap_end, "padding is not zero");
    for (uint32_t f = 0; f < e->field_count; f++) {
        enum omen_err rc = parse_column(e, f, schema->fields[f].dim, err);
        if (rc != OMEN_OK) return rc;
    }
    return OMEN_OK;
}

void entry_attach(const void *bytes, const struct collection_schema *schema, struct entry *entry_out)
{
    const uint8_t *base = bytes;
    CHECK((uintptr_t)base % 8 == 0);
    CHECK(memcmp(base, ENTRY_MAGIC, ENTRY_MAGIC_BYTES) == 0);
    struct entry e = {
        .base = base,
        .total_bytes = load_u32(base + 8),
        .request_count = load_u32(base + 32),
        .op_count = load_u32(base + 36),
        .field_count = schema->field_count,
        .op_stride = entry_op_stride(schema->field_count),
        .log_time_ms = load_u64(base + 16),
        .epoch = load_u64(base + 24),
        .derived = (load_u16(base + 6) & ENTRY_FLAG_DERIVED) != 0,
        .timed = load_u16(base + 4) >= ENTRY_VERSION_TIMED,
        .intents = load_u16(base + 4) == ENTRY_VERSION,
        .requests = base + load_u32(base + 44),
        .ops = base + load_u32(base + 48),
        .heap = base + load_u32(base + 56),
    };
    const uint8_t *row_ops = base + load_u32(base + 52);
    for (uint32_t f = 0; f < schema->field_count; f++) {
        const uint8_t *column = base + ENTRY_COLUMNS_OFF + 8 * f;
        e.row_count[f] = load_u32(column + 4);
        e.columns[f] = (const void *)(base + load_u32(column));
        e.row_ops[f] = (const void *)row_ops;
        row_ops += (size_t)e.row_count[f] * sizeof(uint32_t);
    }
    *entry_out = e;
}

enum omen_err entry_parse(const void *bytes, size_t len, const struct collection_schema *schema, bool deep,
        struct entry *entry_out, struct err *err)
{
    CHECK((uintptr_t)bytes % 8 == 0);
    CHECK(schema->field_count <= OMEN_VECTOR_FIELDS_MAX);
    const uint8_t *base = bytes;
    struct entry_counts counts = { 0 };
    struct entry_layout layout;
    enum omen_err rc = parse_header(base, len, schema, &counts, err);
    if (rc != OMEN_OK) return rc;
    entry_layout_of(schema, &counts, &layout);
    rc = parse_offsets(base, schema, &layout, err);
    if (rc != OMEN_OK) return rc;
    /* Before the tables: what follows would only name the first symptom of a flipped bit. */
    if (deep && load_u32(base + 12) != crc32c(0, base + ENTRY_CRC_FROM, len - ENTRY_CRC_FROM)) {
        return bad(err, 12, "checksum does not match");
    }
    struct entry e;
    entry_attach(base, schema, &e); /* every table now lies inside the entry */
    rc = parse_requests(&e, err);
    if (rc != OMEN_OK) return rc;
    rc = parse_ops(&e, schema, counts.heap_bytes, err);
    if (rc != OMEN_OK) return rc;
    if (deep) {
        rc = parse_deep(&e, schema, &layout, counts.heap_bytes, err);
        if (rc != OMEN_OK) return rc;
    }
    *entry_out = e;
    return OMEN_OK;
}

bool entry_only_deletes(const void *bytes, size_t len, const struct collection_schema *schema)
{
    struct entry e;
    if (entry_parse(bytes, len, schema, false, &e, NULL) != OMEN_OK) return false;
    for (uint32_t i = 0; i < e.op_count; i++)
        if (e.ops[(size_t)i * e.op_stride] != POINT_DELETE) return false;
    struct entry_intent intent;
    for (uint32_t i = 0; e.intents && i < e.request_count; i++)
        if (entry_intent_at(&e, i, &intent) && intent.kind == ENTRY_INTENT_BEGIN && intent.op != POINT_DELETE)
            return false;
    return e.op_count > 0 || e.intents;
}

bool entry_intent_at(const struct entry *e, uint32_t request, struct entry_intent *intent_out)
{
    CHECK(request < e->request_count);
    const uint8_t *r = e->requests + (size_t)request * ENTRY_REQUEST_BYTES + ENTRY_INTENT_OFF;
    uint32_t len = load_u32(r + 4); /* zero before version 3 */
    size_t ignored;
    *intent_out = (struct entry_intent){ .kind = ENTRY_INTENT_NONE };
    return len > 0 && entry_intent_decode(e->heap + load_u32(r), len, intent_out, &ignored) == NULL;
}

void entry_request_at(const struct entry *e, uint32_t i, struct entry_request *request_out)
{
    CHECK(i < e->request_count);
    const uint8_t *r = e->requests + (size_t)i * ENTRY_REQUEST_BYTES;
    request_out->op_id = (struct op_id){ load_u64(r), load_u64(r + 8), load_u64(r + 16) };
    request_out->first_op = load_u32(r + 24);
    request_out->op_count = load_u32(r + 28);
}

void entry_op_at(const struct entry *e, uint32_t i, struct entry_op *op_out)
{
    CHECK(i < e->op_count);
    const uint8_t *o = e->ops + (size_t)i * e->op_stride;
    uint32_t doc_len = load_u32(o + 48);
    op_out->kind = (enum point_op_kind)o[0];
    op_out->any_key = (o[2] & ENTRY_OP_ANY_KEY) != 0;
    uint64_t time = load_u64(o + ENTRY_OP_TIME_OFF); /* zero in version 1 */
    op_out->expires_ms = op_out->kind == POINT_UPSERT ? time : 0;
    op_out->if_version = op_out->kind == POINT_UPSERT ? 0 : time;
    op_out->key.id = (point_id){ load_u64(o + 8), load_u64(o + 16), o[1] };
    op_out->key.key_hi = load_u64(o + 24);
    op_out->key.key_lo = load_u64(o + 32);
    op_out->shard_key = (struct bytes){ e->heap + load_u32(o + 40), load_u32(o + 4) };
    op_out->payload = (struct doc){ doc_len > 0 ? e->heap + load_u32(o + 44) : NULL, doc_len };
    for (uint32_t f = 0; f < OMEN_VECTOR_FIELDS_MAX; f++) {
        op_out->rows[f] = f < e->field_count ? load_u32(o + ENTRY_OP_ROWS_OFF + 4 * f) : ENTRY_NO_ROW;
    }
}
