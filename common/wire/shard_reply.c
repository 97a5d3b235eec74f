/* Replies of nodes to routers: the outputs of a shard_call. Tables in NODE_PROTOCOL.md. */
#include "common/wire/shard_bytes.h"

#include <assert.h>

#include "common/check.h"

#define VIEW_BYTES_MIN 21 /* flags, mask, id of a number, version, no key */
#define HIT_BYTES_MIN (8 + VIEW_BYTES_MIN)

enum view_flag { VIEW_PAYLOAD = 1, VIEW_EXPIRES = 2 };

static_assert(sizeof(struct shard_stats) == (7 + 7) * sizeof(uint64_t) + sizeof(struct doc),
        "shard_stats travels member by member: a new one is a new version of the protocol");

/* ---- encoding ---- */

static void put_dims(struct buf *out, const struct collection_schema *schema)
{
    put_u8(out, (uint8_t)schema->field_count);
    for (uint32_t f = 0; f < schema->field_count; f++) put_u32(out, schema->fields[f].dim);
}

static void put_view(struct buf *out, const struct point_view *view, const struct collection_schema *schema)
{
    uint8_t mask = 0;
    for (uint32_t f = 0; f < schema->field_count; f++) mask |= (uint8_t)((view->vectors[f] != NULL) << f);
    put_u8(out,
            (uint8_t)((view->payload.data != NULL ? VIEW_PAYLOAD : 0) |
                    (view->expires_ms != 0 ? VIEW_EXPIRES : 0)));
    put_u8(out, mask);
    put_id(out, view->id);
    put_u64(out, view->version);
    put_bytes16(out, view->key.canonical);
    if (view->payload.data != NULL) put_doc(out, view->payload);
    if (view->expires_ms != 0) put_u64(out, view->expires_ms);
    if (mask == 0) return;
    put_align4(out);
    for (uint32_t f = 0; f < schema->field_count; f++) {
        if (view->vectors[f] != NULL) buf_append(out, view->vectors[f], 4 * (size_t)schema->fields[f].dim);
    }
}

static void put_hits(struct buf *out, const struct shard_call *call, const struct collection_schema *schema)
{
    put_dims(out, schema);
    put_u64(out, call->out.search.rows_scanned);
    put_u32(out, call->in.search.count);
    for (uint32_t i = 0; i < call->in.search.count; i++) {
        uint32_t count = call->out.search.counts[i];
        put_u32(out, count);
        for (uint32_t j = 0; j < count; j++) {
            const struct hit *hit = &call->out.search.hits[i][j];
            put_f32(out, hit->score);
            put_f32(out, hit->distance);
            put_view(out, &hit->point, schema);
        }
    }
    if (call->in.search.explain) put_doc(out, call->out.search.explain);
}

static void put_points(struct buf *out, const struct shard_call *call, const struct collection_schema *schema)
{
    put_dims(out, schema);
    put_u8(out, call->out.points.more);
    put_u32(out, call->out.points.count);
    for (uint32_t i = 0; i < call->out.points.count; i++) put_view(out, &call->out.points.points[i], schema);
}

static void put_stats(struct buf *out, const struct shard_stats *s, bool detail)
{
    put_u64(out, s->points);
    put_u64(out, s->applied);
    put_u64(out, s->durable);
    put_u64(out, s->stream_bytes);
    put_u64(out, s->meta_bytes);
    put_u64(out, s->unindexed);
    put_u64(out, s->applied_ops);
    if (s->recall.searches == 0 && s->recall_boost == 0 && !detail) return;
    put_u64(out, s->recall.searches);
    put_u64(out, s->recall.imperfect);
    put_u64(out, s->recall.found);
    put_u64(out, s->recall.sought);
    put_u64(out, s->recall.shares);
    put_u64(out, s->recall.squares);
    put_u64(out, s->recall_boost);
    if (detail) put_doc(out, s->detail);
}

static void put_outputs(struct buf *out, const struct shard_call *call,
        const struct collection_schema *schema)
{
    switch (call->kind) {
    case CALL_WRITE:
        put_u32(out, call->out.write.affected);
        put_u8(out, call->out.write.duplicate);
        return;
    case CALL_SEARCH: put_hits(out, call, schema); return;
    case CALL_GET:
    case CALL_SCROLL: put_points(out, call, schema); return;
    case CALL_COUNT: put_u64(out, call->out.count.points); return;
    case CALL_STATS: put_stats(out, &call->out.stats, call->in.stats.detail); return;
    case CALL_CATALOG: put_u64(out, call->out.catalog.collection_id); return;
    case CALL_CLUSTER: put_doc(out, call->out.cluster.reply); return;
    }
    CHECK(!"a call has an unknown kind");
}

void shard_reply_encode(const struct shard_call *call, const struct collection_schema *schema,
        const struct shard_reply_info *info, struct buf *out)
{
    bool failed = call->code != OMEN_OK;
    put_u32(out, (uint32_t)call->code);
    put_u32(out, failed ? call->err.retry_after_ms : 0);
    put_text(out, failed ? call->err.field : "", ERR_FIELD_BYTES - 1);
    put_text(out, failed ? call->err.message : "", ERR_MESSAGE_BYTES - 1);
    put_u32(out, info->node_id);
    put_u32(out, call->leader_hint);
    put_u64(out, info->epoch);
    put_u64(out, call->sequence);
    put_u64(out, call->engine_ns);
    put_map(out, info->map);
    if (failed) return;
    put_outputs(out, call, schema);
    if (call->stale) put_u8(out, 1);
}

/* ---- decoding ---- */

/* Sentences for people may have been cut inside a character: made plain rather than refused. */
static void in_sentence(struct wire_in *in, char *out, size_t bytes_max, const char *field)
{
    struct bytes text = in_bytes16(in, bytes_max, field);
    if (text.len > 0) memcpy(out, text.data, text.len);
    out[text.len] = '\0';
    bool plain = text.len > 0 && !utf8_valid(text.data, text.len);
    for (size_t i = 0; i < text.len; i++) {
        if (out[i] == '\0' || (plain && (uint8_t)out[i] >= 0x80)) out[i] = '?';
    }
}

static void in_dims(struct wire_in *in, const struct collection_schema *schema)
{
    bool same = in_u8(in, "dims") == schema->field_count;
    for (uint32_t f = 0; same && f < schema->field_count; f++)
        same = in_u32(in, "dims") == schema->fields[f].dim;
    if (!same) in_fail(in, OMEN_EPROTO, "dims", "the node knows another schema");
}

static void in_view(struct wire_in *in, const struct collection_schema *schema, struct point_view *view)
{
    uint8_t flags = in_flags(in, VIEW_PAYLOAD | VIEW_EXPIRES, "point");
    uint8_t mask = in_u8(in, "point");
    if (mask >> schema->field_count != 0) in_fail(in, OMEN_EPROTO, "point", "has a vector of no field");
    view->id = in_id(in, "id");
    view->version = in_u64(in, "version");
    view->key = in_key(in, "key");
    if (flags & VIEW_PAYLOAD) {
        view->payload = in_doc(in, DOC_BYTES_MAX, "payload");
        if (in_ok(in) && (view->payload.data == NULL || doc_type(view->payload) != DOC_OBJECT))
            in_fail(in, OMEN_EPROTO, "payload", "is no object");
    }
    if (flags & VIEW_EXPIRES) {
        view->expires_ms = in_u64(in, "expires_ms");
        if (in_ok(in) && view->expires_ms == 0) in_fail(in, OMEN_EPROTO, "expires_ms", "is not as announced");
    }
    if (mask == 0) return;
    in_align4(in);
    for (uint32_t f = 0; f < schema->field_count; f++) {
        if (mask >> f & 1)
            view->vectors[f] = (const void *)in_take(in, 4 * (size_t)schema->fields[f].dim, "vectors");
    }
}

static void in_hits(struct wire_in *in, const struct collection_schema *schema, struct shard_call *call)
{
    in_dims(in, schema);
    call->out.search.rows_scanned = in_u64(in, "rows_scanned");
    uint32_t count = in_u32(in, "searches");
    if (in_ok(in) && count != call->in.search.count)
        in_fail(in, OMEN_EPROTO, "searches", "are not as many as were asked");
    call->out.search.hits = in_alloc(in, count, sizeof *call->out.search.hits);
    call->out.search.counts = in_alloc(in, count, sizeof *call->out.search.counts);
    for (uint32_t i = 0; in_ok(in) && i < count; i++) {
        uint32_t n = in_count(in, call->in.search.searches[i].k, HIT_BYTES_MIN, "hits");
        struct hit *hits = in_alloc(in, n, sizeof *hits);
        for (uint32_t j = 0; in_ok(in) && j < n; j++) {
            hits[j].score = in_f32(in, "score");
            hits[j].distance = in_f32(in, "distance");
            in_view(in, schema, &hits[j].point);
        }
        if (!in_ok(in)) return;
        call->out.search.hits[i] = hits;
        call->out.search.counts[i] = n;
    }
}

/* An object, or absent. */
static struct doc in_told(struct wire_in *in, uint32_t limit_bytes, const char *field)
{
    struct doc told = in_doc(in, limit_bytes, field);
    if (in_ok(in) && told.data != NULL && doc_type(told) != DOC_OBJECT)
        in_fail(in, OMEN_EPROTO, field, "is no object");
    return told;
}

static void in_points(struct wire_in *in, const struct collection_schema *schema, struct shard_call *call)
{
    in_dims(in, schema);
    call->out.points.more = in_bool(in, "more");
    uint32_t max = call->kind == CALL_SCROLL ? call->in.scroll.limit : SHARD_HITS_MAX;
    uint32_t count = in_count(in, max, VIEW_BYTES_MIN, "points");
    struct point_view *points = in_alloc(in, count, sizeof *points);
    for (uint32_t i = 0; in_ok(in) && i < count; i++) in_view(in, schema, &points[i]);
    call->out.points.points = points;
    call->out.points.count = count;
}

static void in_stats(struct wire_in *in, struct shard_stats *s, bool detail)
{
    s->points = in_u64(in, "points");
    s->applied = in_u64(in, "applied");
    s->durable = in_u64(in, "durable");
    s->stream_bytes = in_u64(in, "stream_bytes");
    s->meta_bytes = in_u64(in, "meta_bytes");
    s->unindexed = in_u64(in, "unindexed");
    s->applied_ops = in_u64(in, "applied_ops");
    if (!in_ok(in) || (in_left(in) == 0 && !detail)) return; /* nothing was measured */
    s->recall.searches = in_u64(in, "recall");
    s->recall.imperfect = in_u64(in, "recall");
    s->recall.found = in_u64(in, "recall");
    s->recall.sought = in_u64(in, "recall");
    s->recall.shares = in_u64(in, "recall");
    s->recall.squares = in_u64(in, "recall");
    s->recall_boost = in_u64(in, "recall");
    if (in_ok(in) && (!recall_counts_valid(&s->recall) || s->recall_boost > UINT32_MAX))
        in_fail(in, OMEN_EPROTO, "recall", "cannot have been counted");
    if (detail) s->detail = in_told(in, DETAIL_SHARD_BYTES_MAX, "detail");
}

static void in_cluster(struct wire_in *in, struct doc *reply)
{
    *reply = in_doc(in, CLUSTER_REPLY_BYTES_MAX, "reply");
    if (in_ok(in) && (reply->data == NULL || doc_type(*reply) != DOC_OBJECT))
        in_fail(in, OMEN_EPROTO, "reply", "is no object");
}

static void in_outputs(struct wire_in *in, const struct collection_schema *schema, struct shard_call *call)
{
    switch (call->kind) {
    case CALL_WRITE:
        call->out.write.affected = in_u32(in, "affected");
        call->out.write.duplicate = in_bool(in, "duplicate");
        return;
    case CALL_SEARCH:
        in_hits(in, schema, call);
        if (call->in.search.explain)
            call->out.search.explain = in_told(in, EXPLAIN_SHARD_BYTES_MAX, "explain");
        return;
    case CALL_GET:
    case CALL_SCROLL: in_points(in, schema, call); return;
    case CALL_COUNT: call->out.count.points = in_u64(in, "points"); return;
    case CALL_STATS: in_stats(in, &call->out.stats, call->in.stats.detail); return;
    case CALL_CATALOG: call->out.catalog.collection_id = in_u64(in, "collection_id"); return;
    case CALL_CLUSTER: in_cluster(in, &call->out.cluster.reply); return;
    }
    CHECK(!"a call has an unknown kind");
}

static void in_stale(struct wire_in *in, struct shard_call *call)
{
    bool read = call->kind >= CALL_SEARCH && call->kind <= CALL_COUNT;
    if (in_u8(in, "stale") != 1 || !read) in_fail(in, OMEN_EPROTO, "stale", "is no mark of a read");
    call->stale = true;
}

static void in_head(struct wire_in *in, struct shard_call *call, struct shard_reply_info *info)
{
    uint32_t code = in_u32(in, "code");
    if (code >= OMEN_ERR_COUNT) in_fail(in, OMEN_EPROTO, "code", "is not known");
    err_clear(&call->err);
    call->code = (enum omen_err)code;
    call->err.code = call->code;
    call->err.retry_after_ms = in_u32(in, "retry_after_ms");
    in_sentence(in, call->err.field, ERR_FIELD_BYTES - 1, "field");
    in_sentence(in, call->err.message, ERR_MESSAGE_BYTES - 1, "message");
    info->node_id = in_u32(in, "node_id");
    call->leader_hint = in_u32(in, "leader_hint");
    info->epoch = in_u64(in, "epoch");
    call->sequence = in_u64(in, "sequence");
    call->engine_ns = in_u64(in, "engine_ns");
}

enum omen_err shard_reply_decode(struct bytes body, const struct collection_schema *schema,
        struct arena *arena, struct shard_call *call, struct shard_reply_info *info_out, struct err *err)
{
    struct err unused;
    *info_out = (struct shard_reply_info){ .map = NULL };
    memset(&call->out, 0, sizeof call->out);
    CHECK((uintptr_t)body.data % 4 == 0);
    struct wire_in in = wire_in(body, arena, err != NULL ? err : &unused);
    in_head(&in, call, info_out);
    if (in_ok(&in)) info_out->map = in_map(&in);
    call->stale = false;
    if (in_ok(&in) && call->code == OMEN_OK) {
        in_outputs(&in, schema, call);
        if (in_ok(&in) && in_left(&in) > 0) in_stale(&in, call);
    }
    enum omen_err rc = in_end(&in);
    if (rc != OMEN_OK) {
        map_unref(info_out->map);
        info_out->map = NULL;
    }
    return rc;
}
