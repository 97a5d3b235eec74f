/* Requests of routers to nodes: the inputs of a shard_call. Tables in NODE_PROTOCOL.md. */
#include "common/wire/shard_bytes.h"

#include "common/check.h"

#define CHANGE_OPTIONS 128 /* beside the kind of a change: options follow it */
#define HEAD_ACCEPTED 2    /* of a write: its wait level, when it is not committed */
#define HEAD_INDEXED 4
#define HEAD_FILTER 8       /* of a write: the one operation is for all that match */
#define HEAD_EXPLAIN 2      /* of a search: tell how it was answered */
#define HEAD_DETAIL 2       /* of stats: tell more than numbers */
#define HEAD_NOW 1          /* flag of a request: a time comes with it */
#define HEAD_ASKED 16       /* of a change of the catalog or the cluster: its op id comes with it */
#define OP_BYTES_MIN 18     /* kind, flags, mask, id of a number, no key, no payload */
#define ITEM_BYTES_MIN 12   /* flags, id, no key */
#define SEARCH_BYTES_MIN 22 /* field, flags, k, threshold, selection, no filter, one component */

enum op_flag { OP_ANY_KEY = 1, OP_PAYLOAD = 2, OP_EXPIRES = 4 };
enum search_flag { SEARCH_THRESHOLD = 1, SEARCH_EXACT = 2 };
enum selection_flag { SELECTION_PAYLOAD = 1, SELECTION_INCLUDE = 2 };

/* ---- encoding ---- */

static void put_dims(struct buf *out, const struct collection_schema *schema)
{
    put_u8(out, (uint8_t)schema->field_count);
    for (uint32_t f = 0; f < schema->field_count; f++) put_u32(out, schema->fields[f].dim);
}

static void put_selection(struct buf *out, const struct point_selection *selection)
{
    put_u8(out,
            (uint8_t)((selection->with_payload ? SELECTION_PAYLOAD : 0) |
                    (selection->payload_include ? SELECTION_INCLUDE : 0)));
    put_u8(out, (uint8_t)selection->vector_mask);
    put_u16(out, (uint16_t)selection->payload_path_count);
    for (uint32_t i = 0; i < selection->payload_path_count; i++)
        put_bytes16(out, doc_path_text(selection->payload_paths[i]));
}

static void put_op(struct buf *out, const struct point_op *op, uint32_t field_count)
{
    uint8_t mask = 0;
    for (uint32_t f = 0; f < field_count; f++) mask |= (uint8_t)((op->vectors[f] != NULL) << f);
    put_u8(out, (uint8_t)op->kind);
    put_u8(out,
            (uint8_t)((op->any_key ? OP_ANY_KEY : 0) | (op->payload.data != NULL ? OP_PAYLOAD : 0) |
                    (op->expires_ms != 0 ? OP_EXPIRES : 0)));
    put_u8(out, mask);
    put_id(out, op->id);
    put_bytes16(out, op->key.canonical);
    put_doc(out, op->payload);
    if (op->expires_ms != 0) put_u64(out, op->expires_ms);
}

static void put_op_id(struct buf *out, const struct op_id *id)
{
    put_u64(out, id->client);
    put_u64(out, id->seq);
    put_u64(out, id->issue_ms);
}

/* Vectors after all ops, one field after the other, each row that has one. */
static void put_write(struct buf *out, const struct shard_call *call, const struct collection_schema *schema)
{
    put_op_id(out, &call->in.write.op_id);
    put_dims(out, schema);
    put_u32(out, call->in.write.count);
    for (uint32_t i = 0; i < call->in.write.count; i++)
        put_op(out, &call->in.write.ops[i], schema->field_count);
    put_align4(out);
    for (uint32_t f = 0; f < schema->field_count; f++) {
        size_t bytes = 4 * (size_t)schema->fields[f].dim;
        for (uint32_t i = 0; i < call->in.write.count; i++) {
            const void *row = call->in.write.ops[i].vectors[f];
            if (row != NULL) buf_append(out, row, bytes);
        }
    }
    if (call->in.write.filter_doc.data != NULL) put_doc(out, call->in.write.filter_doc);
}

static void put_search(struct buf *out, const struct search_params *s, const struct collection_schema *schema)
{
    CHECK(s->field < schema->field_count);
    CHECK((s->filter == NULL) || s->filter_doc.data != NULL); /* or the filter would be lost on the way */
    put_u8(out, (uint8_t)s->field);
    put_u8(out, (uint8_t)((s->has_score_threshold ? SEARCH_THRESHOLD : 0) | (s->exact ? SEARCH_EXACT : 0)));
    put_u32(out, s->k);
    put_f32(out, s->has_score_threshold ? s->score_threshold : 0);
    put_selection(out, &s->selection);
    put_doc(out, s->filter_doc);
    put_align4(out);
    buf_append(out, s->query, 4 * (size_t)schema->fields[s->field].dim);
}

static void put_get(struct buf *out, const struct shard_call *call)
{
    put_selection(out, &call->in.get.selection);
    put_u32(out, call->in.get.count);
    for (uint32_t i = 0; i < call->in.get.count; i++) {
        const struct call_get *item = &call->in.get.items[i];
        put_u8(out, item->any_key ? OP_ANY_KEY : 0);
        put_id(out, item->id);
        put_bytes16(out, item->key.canonical);
    }
}

static void put_scroll(struct buf *out, const struct shard_call *call)
{
    uint8_t after[POINT_KEY_BYTES] = { 0 };
    CHECK(call->in.scroll.filter == NULL || call->in.scroll.filter_doc.data != NULL);
    put_u8(out, call->in.scroll.after != NULL);
    if (call->in.scroll.after != NULL) point_key_encode(call->in.scroll.after, after);
    buf_append(out, after, sizeof after);
    put_u32(out, call->in.scroll.limit);
    put_selection(out, &call->in.scroll.selection);
    put_doc(out, call->in.scroll.filter_doc);
}

static void put_catalog(struct buf *out, const struct catalog_change *change)
{
    bool options = change->options.data != NULL;
    put_u8(out, (uint8_t)(change->kind | (options ? CHANGE_OPTIONS : 0)));
    put_text(out, change->name, OMEN_NAME_BYTES_MAX);
    put_text(out, change->target, OMEN_NAME_BYTES_MAX);
    put_u32(out, change->shard_count);
    put_u32(out, change->replication);
    put_f32(out, change->recall_target);
    put_schema(out, &change->schema);
    if (options) put_doc(out, change->options);
}

static void put_cluster(struct buf *out, struct doc request)
{
    CHECK(request.data != NULL && doc_type(request) == DOC_OBJECT);
    put_doc(out, request);
}

/* The op id of a change; NULL: it has none, or is no change. */
static const struct op_id *asked_as_of(const struct shard_call *call)
{
    const struct op_id *id = call->kind == CALL_CATALOG ? &call->in.catalog.asked_as
            : call->kind == CALL_CLUSTER                ? &call->in.cluster.asked_as
                                                        : NULL;
    return id != NULL && id->client != 0 ? id : NULL;
}

static uint8_t head_flags(const struct shard_call *call)
{
    uint8_t flags = call->now_ms != 0 ? HEAD_NOW : 0;
    if (call->kind == CALL_WRITE && call->in.write.filter_doc.data != NULL) flags |= HEAD_FILTER;
    if (call->kind == CALL_SEARCH && call->in.search.explain) flags |= HEAD_EXPLAIN;
    if (call->kind == CALL_STATS && call->in.stats.detail) flags |= HEAD_DETAIL;
    if (asked_as_of(call) != NULL) flags |= HEAD_ASKED;
    if (call->kind != CALL_WRITE || call->in.write.wait == WAIT_COMMITTED) return flags;
    return flags | (call->in.write.wait == WAIT_ACCEPTED ? HEAD_ACCEPTED : HEAD_INDEXED);
}

void shard_request_encode(const struct shard_call *call, const struct collection_schema *schema,
        uint32_t deadline_ms, struct buf *out)
{
    CHECK(schema != NULL || call->kind >= CALL_STATS);
    put_u8(out, (uint8_t)call->consistency);
    put_u8(out, head_flags(call));
    put_u16(out, 0);
    put_u32(out, deadline_ms); /* SHARD_REQUEST_DEADLINE_OFFSET */
    put_u64(out, call->shard_id);
    put_u64(out, call->collection_id);
    put_u64(out, call->epoch);
    put_u64(out, call->incarnation);
    put_u64(out, call->token_sequence);
    if (call->now_ms != 0) put_u64(out, call->now_ms);
    if (asked_as_of(call) != NULL) put_op_id(out, asked_as_of(call));
    switch (call->kind) {
    case CALL_WRITE: put_write(out, call, schema); return;
    case CALL_SEARCH:
        put_dims(out, schema);
        put_u32(out, call->in.search.count);
        for (uint32_t i = 0; i < call->in.search.count; i++)
            put_search(out, &call->in.search.searches[i], schema);
        return;
    case CALL_GET: put_get(out, call); return;
    case CALL_SCROLL: put_scroll(out, call); return;
    case CALL_COUNT:
        CHECK(call->in.count.filter == NULL || call->in.count.filter_doc.data != NULL);
        put_doc(out, call->in.count.filter_doc);
        return;
    case CALL_STATS: return;
    case CALL_CATALOG: put_catalog(out, &call->in.catalog); return;
    case CALL_CLUSTER: put_cluster(out, call->in.cluster.request); return;
    }
    CHECK(!"a call has an unknown kind");
}

/* ---- decoding ---- */

static void in_dims(struct wire_in *in, struct shard_request_info *info)
{
    info->field_count = in_u8(in, "dims");
    if (in_ok(in) && (info->field_count == 0 || info->field_count > OMEN_VECTOR_FIELDS_MAX))
        in_fail(in, OMEN_EPROTO, "dims", "number of vector fields is out of range");
    for (uint32_t f = 0; in_ok(in) && f < info->field_count; f++) {
        info->dims[f] = in_u32(in, "dims");
        if (in_ok(in) && (info->dims[f] == 0 || info->dims[f] > OMEN_DIM_MAX))
            in_fail(in, OMEN_EINVAL, "dims", "a dimension is out of range");
    }
}

static void in_selection(struct wire_in *in, struct shard_request_info *info, struct point_selection *out)
{
    uint8_t flags = in_flags(in, SELECTION_PAYLOAD | SELECTION_INCLUDE, "selection");
    out->with_payload = flags & SELECTION_PAYLOAD;
    out->payload_include = flags & SELECTION_INCLUDE;
    out->vector_mask = in_u8(in, "selection");
    info->vector_mask |= out->vector_mask;
    uint32_t count = in_u16(in, "selection");
    if (count > SHARD_PATHS_MAX || 2 * count > in_left(in)) {
        in_fail(in, OMEN_ETOOBIG, "selection", "too many paths");
        count = 0;
    }
    if (count == 0) return;
    const struct doc_path **paths = in_alloc(in, count, sizeof *paths);
    for (uint32_t i = 0; in_ok(in) && i < count; i++) {
        struct bytes text = in_bytes16(in, DOC_PATH_BYTES_MAX, "selection");
        if (!in_ok(in)) return;
        enum omen_err rc = doc_path_parse((const char *)text.data, text.len, in->arena, &paths[i], NULL);
        if (rc != OMEN_OK) in_fail(in, rc, "selection", "is no payload path");
    }
    out->payload_paths = paths;
    out->payload_path_count = count;
}

static void in_filter(struct wire_in *in, const struct filter **filter_out, struct doc *doc_out)
{
    *filter_out = NULL;
    *doc_out = in_doc(in, DOC_FILTER_BYTES_MAX, "filter");
    if (!in_ok(in) || doc_out->data == NULL) return;
    struct err why;
    err_clear(&why);
    if (filter_parse(*doc_out, in->arena, filter_out, &why) != OMEN_OK)
        in_fail(in, why.code, why.field, why.message);
}

/* What storage takes for granted of a payload: an object, or the paths to delete, each one that parses. */
static void check_payload(struct wire_in *in, const struct point_op *op)
{
    if (op->payload.data == NULL) {
        if (op->kind == POINT_DELETE || op->kind == POINT_UPSERT) return;
        in_fail(in, OMEN_EINVAL, "payload", "is needed by this operation");
        return;
    }
    if (op->kind == POINT_DELETE) {
        in_fail(in, OMEN_EINVAL, "payload", "does not go with a deletion");
        return;
    }
    if (op->kind != POINT_DELETE_PAYLOAD) {
        if (doc_type(op->payload) != DOC_OBJECT) in_fail(in, OMEN_EINVAL, "payload", "is no object");
        return;
    }
    if (doc_type(op->payload) != DOC_ARRAY || doc_count(op->payload) > SHARD_PATHS_MAX) {
        in_fail(in, OMEN_EINVAL, "payload", "is no array of paths within the limit");
        return;
    }
    struct doc_iter it = doc_iter(op->payload);
    struct doc path;
    while (in_ok(in) && doc_next(&it, NULL, &path)) {
        const struct doc_path *parsed;
        struct bytes text = doc_type(path) == DOC_STRING ? doc_string(path) : (struct bytes){ NULL, 0 };
        if (text.data == NULL ||
                doc_path_parse((const char *)text.data, text.len, in->arena, &parsed, NULL) != OMEN_OK)
            in_fail(in, OMEN_EINVAL, "payload", "holds what is no payload path");
    }
}

static void in_expiry(struct wire_in *in, struct point_op *op)
{
    op->expires_ms = in_u64(in, "expires_ms");
    if (!in_ok(in)) return;
    if (op->expires_ms == 0) in_fail(in, OMEN_EPROTO, "expires_ms", "is not as announced");
    if (op->expires_ms > OMEN_EXPIRES_MS_MAX) in_fail(in, OMEN_EINVAL, "expires_ms", "is out of range");
    if (op->kind != POINT_UPSERT) in_fail(in, OMEN_EINVAL, "expires_ms", "does not go with this operation");
}

/* `mask_out`: which vectors follow after the last op. */
static void in_op(struct wire_in *in, uint32_t field_count, struct point_op *op, uint8_t *mask_out)
{
    op->kind = (enum point_op_kind)in_u8(in, "op");
    if (in_ok(in) && (op->kind < POINT_UPSERT || op->kind > POINT_DELETE_PAYLOAD))
        in_fail(in, OMEN_EPROTO, "op", "is of no known kind");
    uint8_t flags = in_flags(in, OP_ANY_KEY | OP_PAYLOAD | OP_EXPIRES, "op");
    uint8_t mask = in_u8(in, "op");
    if (mask >> field_count != 0 || (mask != 0 && op->kind != POINT_UPSERT))
        in_fail(in, OMEN_EINVAL, "op", "has a vector that it cannot have");
    op->id = in_id(in, "id");
    op->key = in_key(in, "key");
    op->any_key = flags & OP_ANY_KEY;
    if (op->any_key && (op->key.canonical.len > 0 || op->kind == POINT_UPSERT))
        in_fail(in, OMEN_EINVAL, "key", "does not go with any key");
    op->payload = in_doc(in, DOC_BYTES_MAX, "payload");
    if (in_ok(in) && (op->payload.data != NULL) != ((flags & OP_PAYLOAD) != 0))
        in_fail(in, OMEN_EPROTO, "payload", "is not as announced");
    if (in_ok(in)) check_payload(in, op);
    if (flags & OP_EXPIRES) in_expiry(in, op);
    *mask_out = mask;
}

static void in_columns(struct wire_in *in, const struct shard_request_info *info, struct point_op *ops,
        const uint8_t *masks, uint32_t count)
{
    in_align4(in);
    for (uint32_t f = 0; in_ok(in) && f < info->field_count; f++) {
        uint64_t rows = 0, position;
        for (uint32_t i = 0; i < count; i++) rows += masks[i] >> f & 1;
        size_t row_bytes = 4 * (size_t)info->dims[f];
        const uint8_t *row = in_take(in, rows * row_bytes, "vectors");
        if (row == NULL) return;
        if (!floats_finite(row, rows * info->dims[f], &position)) {
            in_fail(in, OMEN_EINVAL, "vectors", "a component is NaN or infinite");
            return;
        }
        for (uint32_t i = 0; i < count; i++) {
            if (!(masks[i] >> f & 1)) continue;
            ops[i].vectors[f] = (const void *)row;
            row += row_bytes;
        }
    }
}

static void in_op_id(struct wire_in *in, struct op_id *out)
{
    out->client = in_u64(in, "op_id");
    out->seq = in_u64(in, "op_id");
    out->issue_ms = in_u64(in, "op_id");
}

static void in_write(struct wire_in *in, struct shard_call *call, struct shard_request_info *info)
{
    in_op_id(in, &call->in.write.op_id);
    in_dims(in, info);
    uint32_t count = in_count(in, OMEN_BATCH_POINTS_MAX, OP_BYTES_MIN, "ops");
    if (in_ok(in) && count == 0) in_fail(in, OMEN_EINVAL, "ops", "there are none");
    struct point_op *ops = in_alloc(in, count, sizeof *ops);
    uint8_t *masks = in_alloc(in, count, 1);
    for (uint32_t i = 0; in_ok(in) && i < count; i++) in_op(in, info->field_count, &ops[i], &masks[i]);
    if (in_ok(in)) in_columns(in, info, ops, masks, count);
    call->in.write.ops = ops;
    call->in.write.count = count;
}

static void in_write_filter(struct wire_in *in, struct shard_call *call)
{
    in_filter(in, &call->in.write.filter, &call->in.write.filter_doc);
    if (!in_ok(in)) return;
    if (call->in.write.filter_doc.data == NULL) in_fail(in, OMEN_EPROTO, "filter", "is not as announced");
    if (call->in.write.count != 1 || call->in.write.ops[0].kind == POINT_UPSERT)
        in_fail(in, OMEN_EINVAL, "filter", "goes with one operation that is no upsert");
}

/* Queries must be aligned; where they lie in the message depends on where the network put it. */
static const float *in_query(struct wire_in *in, uint32_t dim)
{
    uint64_t position;
    in_align4(in);
    const uint8_t *p = in_take(in, 4 * (size_t)dim, "query");
    if (p == NULL) return NULL;
    if (!floats_finite(p, dim, &position)) {
        in_fail(in, OMEN_EINVAL, "query", "a component is NaN or infinite");
        return NULL;
    }
    if ((uintptr_t)p % 4 == 0) return (const void *)p;
    void *copy = arena_copy(in->arena, p, 4 * (size_t)dim);
    if (copy == NULL) in_fail(in, OMEN_ENOMEM, "query", "the message needs too much memory");
    return copy;
}

static void in_search(struct wire_in *in, struct shard_request_info *info, struct search_params *s)
{
    s->field = in_u8(in, "field");
    if (in_ok(in) && s->field >= info->field_count) in_fail(in, OMEN_EINVAL, "field", "does not exist");
    uint32_t flags = in_flags(in, SEARCH_THRESHOLD | SEARCH_EXACT, "search");
    s->has_score_threshold = (flags & SEARCH_THRESHOLD) != 0;
    s->exact = (flags & SEARCH_EXACT) != 0;
    s->k = in_u32(in, "k");
    if (in_ok(in) && (s->k == 0 || s->k > OMEN_K_MAX)) in_fail(in, OMEN_EINVAL, "k", "is out of range");
    s->score_threshold = in_f32(in, "score_threshold");
    if (!s->has_score_threshold && s->score_threshold != 0)
        in_fail(in, OMEN_EPROTO, "score_threshold", "is not announced");
    in_selection(in, info, &s->selection);
    in_filter(in, &s->filter, &s->filter_doc);
    if (in_ok(in)) s->query = in_query(in, info->dims[s->field]);
}

static void in_searches(struct wire_in *in, struct shard_call *call, struct shard_request_info *info)
{
    in_dims(in, info);
    uint32_t count = in_count(in, OMEN_BATCH_SEARCHES_MAX, SEARCH_BYTES_MIN, "searches");
    if (in_ok(in) && count == 0) in_fail(in, OMEN_EINVAL, "searches", "there are none");
    struct search_params *searches = in_alloc(in, count, sizeof *searches);
    uint64_t hits = 0;
    for (uint32_t i = 0; in_ok(in) && i < count; i++) {
        in_search(in, info, &searches[i]);
        hits += searches[i].k;
    }
    if (in_ok(in) && hits > SHARD_HITS_MAX) in_fail(in, OMEN_ETOOBIG, "k", "is too much over all searches");
    call->in.search.searches = searches;
    call->in.search.count = count;
}

static void in_get(struct wire_in *in, struct shard_call *call, struct shard_request_info *info)
{
    in_selection(in, info, &call->in.get.selection);
    uint32_t count = in_count(in, OMEN_BATCH_POINTS_MAX, ITEM_BYTES_MIN, "items");
    struct call_get *items = in_alloc(in, count, sizeof *items);
    for (uint32_t i = 0; in_ok(in) && i < count; i++) {
        items[i].any_key = in_flags(in, OP_ANY_KEY, "item") != 0;
        items[i].id = in_id(in, "id");
        items[i].key = in_key(in, "key");
        if (items[i].any_key && items[i].key.canonical.len > 0)
            in_fail(in, OMEN_EINVAL, "key", "does not go with any key");
    }
    call->in.get.items = items;
    call->in.get.count = count;
}

static void in_scroll(struct wire_in *in, struct shard_call *call, struct shard_request_info *info)
{
    bool has_after = in_bool(in, "after");
    const uint8_t *p = in_take(in, POINT_KEY_BYTES, "after");
    struct point_key *after = in_alloc(in, 1, sizeof *after);
    if (!in_ok(in)) return;
    if (p[0] > POINT_ID_UUID) in_fail(in, OMEN_EPROTO, "after", "is an id of no known kind");
    point_key_decode(p, after);
    static const uint8_t none[POINT_KEY_BYTES];
    if (!has_after && memcmp(p, none, sizeof none) != 0)
        in_fail(in, OMEN_EPROTO, "after", "is not announced");
    call->in.scroll.after = has_after ? after : NULL;
    call->in.scroll.limit = in_u32(in, "limit");
    if (in_ok(in) && (call->in.scroll.limit == 0 || call->in.scroll.limit > OMEN_SCROLL_LIMIT_MAX))
        in_fail(in, OMEN_EINVAL, "limit", "is out of range");
    in_selection(in, info, &call->in.scroll.selection);
    in_filter(in, &call->in.scroll.filter, &call->in.scroll.filter_doc);
}

static void in_name(struct wire_in *in, char *out, bool needed, const char *field)
{
    in_text(in, out, OMEN_NAME_BYTES_MAX, field);
    if (!in_ok(in) || (!needed && out[0] == '\0')) return;
    struct err why;
    err_clear(&why);
    if (map_check_name(out, strlen(out), field, &why) != OMEN_OK) in_fail(in, why.code, field, why.message);
}

static void check_options(struct wire_in *in, const struct catalog_change *change)
{
    struct collection_options options = { .profile = PROFILE_NONE };
    float recall_target = 0;
    struct err why;
    err_clear(&why);
    if (change->kind == CATALOG_SET && change->options.data == NULL)
        in_fail(in, OMEN_EINVAL, "options", "are needed");
    else if (collection_options_change(&options, &recall_target, change->options, &why) != OMEN_OK)
        in_fail(in, why.code, why.field, why.message);
}

static void in_catalog(struct wire_in *in, struct catalog_change *change)
{
    uint8_t kind = in_u8(in, "change");
    change->kind = (enum catalog_change_kind)(kind & ~CHANGE_OPTIONS);
    if (in_ok(in) && (change->kind < CATALOG_CREATE || change->kind > CATALOG_SET))
        in_fail(in, OMEN_EPROTO, "change", "is of no known kind");
    in_name(in, change->name, true, "name");
    in_name(in, change->target, change->kind == CATALOG_ALIAS_SET, "target");
    change->shard_count = in_u32(in, "shards");
    change->replication = in_u32(in, "replication");
    change->recall_target = in_f32(in, "recall_target");
    in_schema(in, &change->schema);
    if (kind & CHANGE_OPTIONS) change->options = in_doc(in, OPTIONS_DOC_BYTES_MAX, "options");
    if (in_ok(in) && (kind & CHANGE_OPTIONS) && change->options.data == NULL)
        in_fail(in, OMEN_EPROTO, "options", "are not as announced");
    if (in_ok(in)) check_options(in, change);
    if (!in_ok(in) || change->kind != CATALOG_CREATE) return;
    if (change->shard_count == 0 || change->shard_count > OMEN_SHARDS_MAX)
        in_fail(in, OMEN_EINVAL, "shards", "is out of range");
    if (change->replication == 0 || change->replication > OMEN_REPLICAS_MAX)
        in_fail(in, OMEN_EINVAL, "replication", "is out of range");
    if (!(change->recall_target > 0 && change->recall_target <= 1))
        in_fail(in, OMEN_EINVAL, "recall_target", "is out of range");
    struct err why;
    err_clear(&why);
    if (in_ok(in) && map_check_schema(&change->schema, &why) != OMEN_OK)
        in_fail(in, why.code, why.field, why.message);
}

static void in_cluster(struct wire_in *in, struct doc *request)
{
    *request = in_doc(in, CLUSTER_REQUEST_BYTES_MAX, "request");
    if (in_ok(in) && (request->data == NULL || doc_type(*request) != DOC_OBJECT))
        in_fail(in, OMEN_EINVAL, "request", "is no object");
}

static uint8_t head_flags_known(uint8_t kind)
{
    switch (kind) {
    case CALL_WRITE: return HEAD_NOW | HEAD_ACCEPTED | HEAD_INDEXED | HEAD_FILTER;
    case CALL_SEARCH: return HEAD_NOW | HEAD_EXPLAIN;
    case CALL_STATS: return HEAD_NOW | HEAD_DETAIL;
    case CALL_CATALOG:
    case CALL_CLUSTER: return HEAD_NOW | HEAD_ASKED;
    default: return HEAD_NOW;
    }
}

enum omen_err shard_request_decode(uint8_t kind, struct bytes body, struct arena *arena,
        struct shard_call *call_out, struct shard_request_info *info_out, struct err *err)
{
    struct err unused;
    memset(call_out, 0, sizeof *call_out);
    memset(info_out, 0, sizeof *info_out);
    struct wire_in in = wire_in(body, arena, err != NULL ? err : &unused);
    call_out->kind = (enum shard_call_kind)kind;
    call_out->consistency = (enum consistency)in_u8(&in, "consistency");
    if (call_out->consistency > CONSISTENCY_LINEARIZABLE)
        in_fail(&in, OMEN_EPROTO, "consistency", "is of no known kind");
    uint8_t flags = in_flags(&in, head_flags_known(kind), "flags");
    if (in_u16(&in, "reserved") != 0) in_fail(&in, OMEN_EPROTO, "reserved", "is not zero");
    info_out->deadline_ms = in_u32(&in, "deadline_ms");
    if (info_out->deadline_ms > SHARD_DEADLINE_MS_MAX)
        in_fail(&in, OMEN_EINVAL, "deadline_ms", "is out of range");
    call_out->shard_id = in_u64(&in, "shard_id");
    call_out->collection_id = in_u64(&in, "collection_id");
    call_out->epoch = in_u64(&in, "epoch");
    call_out->incarnation = in_u64(&in, "incarnation");
    call_out->token_sequence = in_u64(&in, "token_sequence");
    if (flags & HEAD_NOW) call_out->now_ms = in_u64(&in, "now_ms");
    if (in_ok(&in) && (flags & HEAD_NOW) && call_out->now_ms == 0)
        in_fail(&in, OMEN_EPROTO, "now_ms", "is not as announced");
    struct op_id asked_as = { .client = 0 };
    if (flags & HEAD_ASKED) in_op_id(&in, &asked_as);
    if (in_ok(&in) && (flags & HEAD_ASKED) && asked_as.client == 0)
        in_fail(&in, OMEN_EPROTO, "op_id", "is not as announced");
    if (in_ok(&in)) {
        switch (kind) {
        case CALL_WRITE:
            in_write(&in, call_out, info_out);
            if (flags & HEAD_FILTER) in_write_filter(&in, call_out);
            if (flags & HEAD_ACCEPTED) call_out->in.write.wait = WAIT_ACCEPTED;
            if (flags & HEAD_INDEXED) call_out->in.write.wait = WAIT_INDEXED;
            if (in_ok(&in) && (flags & HEAD_ACCEPTED) && (flags & HEAD_INDEXED))
                in_fail(&in, OMEN_EPROTO, "flags", "hold two wait levels");
            break;
        case CALL_SEARCH:
            in_searches(&in, call_out, info_out);
            call_out->in.search.explain = (flags & HEAD_EXPLAIN) != 0;
            break;
        case CALL_GET: in_get(&in, call_out, info_out); break;
        case CALL_SCROLL: in_scroll(&in, call_out, info_out); break;
        case CALL_COUNT: in_filter(&in, &call_out->in.count.filter, &call_out->in.count.filter_doc); break;
        case CALL_STATS: call_out->in.stats.detail = (flags & HEAD_DETAIL) != 0; break;
        case CALL_CATALOG:
            in_catalog(&in, &call_out->in.catalog);
            call_out->in.catalog.asked_as = asked_as;
            break;
        case CALL_CLUSTER:
            in_cluster(&in, &call_out->in.cluster.request);
            call_out->in.cluster.asked_as = asked_as;
            break;
        default: in_fail(&in, OMEN_EPROTO, "kind", "is not known");
        }
    }
    return in_end(&in);
}
