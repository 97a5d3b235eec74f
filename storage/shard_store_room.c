/* Room for writes before they are proposed: what a write will need of the stream, and whether that is allocated.
 *
 * Needs are upper bounds by the layout of entries, so what was found to fit fits. They are bounds by the *present* size of
 * the points that payload operations change; a point may grow before apply, which then allocates for itself.
 * Threads: any. Determinism: none needed, apply does not look at any of this. */
#include "common/err.h"

#include "storage/shard_store_impl.h"

#include "common/bytes.h"
#include "common/check.h"
#include "storage/entry_layout.h"
#include "storage/shard_store_plan.h"

#define SPARE_DELETES_BYTES (1u << 20) /* about 8,000 deletes, one by one */
#define ROOM_ARENA_BYTES (64u << 10)
#define DOC_GROWTH_BYTES 256u /* a merged document has headers that neither part had */

/* Header of the unit, of the entry, and what its parts are padded by. */
static uint64_t fixed_bytes(const struct collection_schema *schema)
{
    return STREAM_UNIT_HEADER_BYTES + ENTRY_HEADER_BYTES + ENTRY_ALIGN * (schema->field_count + 3ull);
}

static uint64_t row_bytes(const struct collection_schema *schema, uint32_t field)
{
    return sizeof(uint32_t) + sizeof(float) * (uint64_t)entry_row_stride(schema->fields[field].dim);
}

static uint64_t op_bytes(const struct collection_schema *schema, const struct point_op *op)
{
    uint64_t bytes = entry_op_stride(schema->field_count) + op->key.canonical.len + op->payload.len;
    for (uint32_t f = 0; f < schema->field_count; f++)
        if (op->vectors[f] != NULL) bytes += row_bytes(schema, f);
    return bytes;
}

static bool is_payload_op(const struct point_op *op)
{
    return op->kind != POINT_UPSERT && op->kind != POINT_DELETE;
}

/* A point of the largest payload that `op` may leave, given that the one before had `payload_bytes`. */
static void need_derived(const struct collection_schema *schema, const struct point_op *op, size_t key_bytes,
        uint64_t payload_bytes, struct write_need *need)
{
    uint64_t doc = payload_bytes + payload_bytes / 4 + op->payload.len + op->payload.len / 4 +
            DOC_GROWTH_BYTES;
    uint64_t bytes = entry_op_stride(schema->field_count) + key_bytes +
            (doc < DOC_BYTES_MAX ? doc : DOC_BYTES_MAX);
    for (uint32_t f = 0; f < schema->field_count; f++) bytes += row_bytes(schema, f);
    need->derived_bytes += bytes;
    if (bytes > need->derived_point_bytes) need->derived_point_bytes = bytes;
}

/* The points that one payload operation changes. One that is not there yet may be made by a write in between. */
static enum omen_err need_payload_op(const struct store_view *view, const struct point_op *op,
        uint64_t upsert_bytes, struct arena *arena, struct write_need *need, struct err *err)
{
    const struct collection_schema *schema = &view->store->schema;
    const struct get_request request = { op->id, op->key, op->any_key };
    const struct point_selection selection = { .with_payload = true };
    struct point_view *points;
    uint32_t count = 0;
    arena_reset(arena);
    enum omen_err rc = shard_store_get(view, &request, 1, &selection, arena, &points, &count, err);
    if (rc != OMEN_OK) return rc;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t payload = points[i].payload.len;
        need_derived(schema, op, OMEN_SHARD_KEY_BYTES_MAX, payload > upsert_bytes ? payload : upsert_bytes,
                need);
    }
    if (count == 0) need_derived(schema, op, OMEN_SHARD_KEY_BYTES_MAX, upsert_bytes, need);
    return OMEN_OK;
}

enum omen_err shard_store_need(struct shard_store *store, const struct point_op *ops, uint32_t count,
        struct write_need *need_out, struct err *err)
{
    uint64_t upsert_bytes = 0;
    bool payload_ops = false;
    *need_out = (struct write_need){ .entry_bytes = ENTRY_REQUEST_BYTES };
    enum omen_err rc = store_serves(store, err); /* refused here, before the log has it */
    if (rc != OMEN_OK) return rc;
    for (uint32_t i = 0; i < count; i++) {
        need_out->entry_bytes += op_bytes(&store->schema, &ops[i]);
        payload_ops |= is_payload_op(&ops[i]);
        if (ops[i].kind == POINT_UPSERT && ops[i].payload.len > upsert_bytes)
            upsert_bytes = ops[i].payload.len;
    }
    if (!payload_ops) return OMEN_OK;
    struct store_view view;
    struct arena arena;
    rc = store_view_try_acquire(store, &view, err);
    if (rc != OMEN_OK) return rc;
    arena_init(&arena, ROOM_ARENA_BYTES, 0);
    for (uint32_t i = 0; i < count && rc == OMEN_OK; i++)
        if (is_payload_op(&ops[i])) rc = need_payload_op(&view, &ops[i], upsert_bytes, &arena, need_out, err);
    store_view_release(&view);
    arena_fini(&arena);
    return rc;
}

void write_need_add(struct write_need *sum, const struct write_need *need)
{
    sum->entry_bytes += need->entry_bytes;
    sum->derived_bytes += need->derived_bytes;
    if (need->derived_point_bytes > sum->derived_point_bytes)
        sum->derived_point_bytes = need->derived_point_bytes;
}

/* Derived points gather until they pass PLAN_UNIT_BYTES; an entry that derives more than its limit derives nothing. */
static struct stream_need stream_need_of(const struct shard_store *s, const struct write_need *need)
{
    uint64_t fixed = fixed_bytes(&s->schema);
    uint64_t derived = need->derived_bytes < PLAN_DERIVED_BYTES_MAX ? need->derived_bytes
                                                                    : PLAN_DERIVED_BYTES_MAX;
    struct stream_need n = { .entry_bytes = align_up(need->entry_bytes + fixed, ENTRY_ALIGN) };
    if (derived == 0) return n;
    uint64_t unit = PLAN_UNIT_BYTES + need->derived_point_bytes;
    n.derived_units = (uint32_t)(derived / PLAN_UNIT_BYTES) + 1;
    n.derived_unit_bytes = align_up((derived < unit ? derived : unit) + fixed, ENTRY_ALIGN);
    return n;
}

static uint32_t stream_needs(const struct shard_store *s, const struct write_need *needs, uint32_t count,
        enum store_spare spare, struct stream_need out[STORE_NEEDS_MAX + 1])
{
    CHECK(count <= STORE_NEEDS_MAX);
    for (uint32_t i = 0; i < count; i++) out[i] = stream_need_of(s, &needs[i]);
    const struct stream_need deletes = { .entry_bytes = SPARE_DELETES_BYTES, .chunk_part = 8 };
    const struct stream_need ahead = { .entry_bytes = s->chunk_bytes, .chunk_part = 2 };
    if (spare == STORE_SPARE_DELETES) out[count++] = deletes;
    if (spare == STORE_SPARE_AHEAD) out[count++] = ahead;
    return count;
}

bool shard_store_has_room(struct shard_store *store, const struct write_need *needs, uint32_t count,
        enum store_spare spare)
{
    struct stream_need units[STORE_NEEDS_MAX + 1];
    count = stream_needs(store, needs, count, spare, units);
    return stream_has_room(store->stream, units, count);
}

enum omen_err shard_store_make_room(struct shard_store *store, const struct write_need *needs, uint32_t count,
        enum store_spare spare, struct err *err)
{
    struct stream_need units[STORE_NEEDS_MAX + 1];
    count = stream_needs(store, needs, count, spare, units);
    return stream_make_room(store->stream, units, count, err);
}
