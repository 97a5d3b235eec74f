/* Replies to bytes, on the path of every search: rows are walked once per column and written straight into the buffer, no
 * objects in between. Columns that no row needs are left out. */
#include "common/wire/value.h"

#include "common/check.h"
#include "common/version.h"

/* ---- rows ------------------------------------------------------------------------------------------------------ */

/* Points and hits look alike from here: the view of row i is at `first` + i * `stride`. */
struct rows {
    const uint8_t *first;
    size_t stride;
    uint32_t count;
};

static const struct point_view *row(const struct rows *rows, uint32_t i)
{
    return (const struct point_view *)(const void *)(rows->first + i * rows->stride);
}

/* Which columns the rows need. */
struct columns {
    bool numbers; /* every id is a number */
    bool keys, payloads, expires;
    uint32_t vectors; /* bit per schema field that some row has */
    uint32_t gaps;    /* of those: bit per field that some row lacks */
};

static struct columns columns_of(const struct rows *rows, uint32_t field_count)
{
    struct columns c = { .numbers = true };
    uint32_t lacking = 0;
    for (uint32_t i = 0; i < rows->count; i++) {
        const struct point_view *p = row(rows, i);
        c.numbers = c.numbers && p->id.kind == POINT_ID_U64;
        c.keys = c.keys || p->key.canonical.len > 0;
        c.payloads = c.payloads || p->payload.data != NULL;
        c.expires = c.expires || p->expires_ms != 0;
        for (uint32_t f = 0; f < field_count; f++) {
            if (p->vectors[f] != NULL)
                c.vectors |= 1u << f;
            else
                lacking |= 1u << f;
        }
    }
    c.gaps = c.vectors & lacking;
    return c;
}

/* ids and versions, always there: the number of map members is 2 plus this. */
static uint32_t optional_columns(const struct columns *c)
{
    return (uint32_t)c->keys + (uint32_t)c->payloads + (uint32_t)c->expires + (c->vectors != 0) +
            (c->gaps != 0);
}

static void pack_vectors(msgpack_packer *pk, struct buf *out, const struct rows *rows,
        const struct columns *c, const struct collection_schema *schema)
{
    pack_str(pk, "vectors");
    msgpack_pack_map(pk, (size_t)__builtin_popcount(c->vectors));
    for (uint32_t f = 0; f < schema->field_count; f++) {
        if ((c->vectors >> f & 1) == 0) continue;
        size_t row_bytes = 4ull * schema->fields[f].dim;
        uint32_t present = 0;
        for (uint32_t i = 0; i < rows->count; i++) present += row(rows, i)->vectors[f] != NULL;
        pack_str(pk, schema->fields[f].name);
        msgpack_pack_bin(pk, present * row_bytes);
        for (uint32_t i = 0; i < rows->count; i++) {
            const float *vector = row(rows, i)->vectors[f];
            if (vector != NULL) buf_append(out, vector, row_bytes);
        }
    }
    if (c->gaps == 0) return;
    pack_str(pk, "present");
    msgpack_pack_map(pk, (size_t)__builtin_popcount(c->gaps));
    for (uint32_t f = 0; f < schema->field_count; f++) {
        if ((c->gaps >> f & 1) == 0) continue;
        pack_str(pk, schema->fields[f].name);
        msgpack_pack_bin(pk, rows->count);
        for (uint32_t i = 0; i < rows->count; i++) {
            uint8_t present = row(rows, i)->vectors[f] != NULL;
            buf_append(out, &present, 1);
        }
    }
}

static void pack_rows(msgpack_packer *pk, struct buf *out, const struct rows *rows, const struct columns *c,
        const struct collection_schema *schema)
{
    pack_str(pk, "ids");
    if (c->numbers)
        msgpack_pack_bin(pk, 8ull * rows->count);
    else
        msgpack_pack_array(pk, rows->count);
    for (uint32_t i = 0; i < rows->count; i++) {
        if (c->numbers)
            buf_append(out, &row(rows, i)->id.lo, 8);
        else
            pack_id(pk, row(rows, i)->id);
    }
    pack_str(pk, "versions");
    msgpack_pack_bin(pk, 8ull * rows->count);
    for (uint32_t i = 0; i < rows->count; i++) buf_append(out, &row(rows, i)->version, 8);
    if (c->keys) {
        pack_str(pk, "keys");
        msgpack_pack_array(pk, rows->count);
        for (uint32_t i = 0; i < rows->count; i++) pack_shard_key(pk, row(rows, i)->key);
    }
    if (c->payloads) {
        pack_str(pk, "payloads");
        msgpack_pack_array(pk, rows->count);
        for (uint32_t i = 0; i < rows->count; i++) pack_doc(pk, row(rows, i)->payload);
    }
    if (c->expires) {
        pack_str(pk, "expires_ms");
        msgpack_pack_bin(pk, 8ull * rows->count);
        for (uint32_t i = 0; i < rows->count; i++) buf_append(out, &row(rows, i)->expires_ms, 8);
    }
    if (c->vectors != 0) pack_vectors(pk, out, rows, c, schema);
}

static uint32_t field_count(const struct wire_reply *reply)
{
    return reply->schema == NULL ? 0 : reply->schema->field_count;
}

/* ---- points and searches --------------------------------------------------------------------------------------- */

static void pack_points(msgpack_packer *pk, struct buf *out, const struct wire_reply *reply)
{
    struct rows rows = { (const uint8_t *)reply->points.points, sizeof *reply->points.points,
        reply->points.count };
    struct columns columns = columns_of(&rows, field_count(reply));
    pack_str(pk, "points");
    msgpack_pack_map(pk, 2 + optional_columns(&columns));
    pack_rows(pk, out, &rows, &columns, reply->schema);
    if (reply->op != WIRE_SCROLL) return;
    pack_str(pk, "cursor");
    if (reply->points.cursor.len == 0)
        msgpack_pack_nil(pk);
    else
        pack_bin(pk, reply->points.cursor.data, reply->points.cursor.len);
}

static bool result_higher_is_nearer(const struct wire_reply *reply, const struct wire_search_result *result)
{
    if (reply->schema == NULL) return result->higher_is_nearer;
    CHECK(result->field < reply->schema->field_count);
    return metric_higher_is_nearer(reply->schema->fields[result->field].metric);
}

static void pack_result(msgpack_packer *pk, struct buf *out, const struct wire_reply *reply,
        const struct wire_search_result *result)
{
    const uint8_t *first = result->count == 0 ? NULL : (const uint8_t *)&result->hits[0].point;
    struct rows rows = { first, sizeof *result->hits, result->count };
    struct columns columns = columns_of(&rows, field_count(reply));
    msgpack_pack_map(pk, 4 + optional_columns(&columns));
    pack_str(pk, "higher_is_nearer");
    pack_bool(pk, result_higher_is_nearer(reply, result));
    pack_str(pk, "scores");
    msgpack_pack_bin(pk, 4ull * result->count);
    for (uint32_t i = 0; i < result->count; i++) buf_append(out, &result->hits[i].score, 4);
    pack_rows(pk, out, &rows, &columns, reply->schema);
}

static bool is_explained(const struct wire_reply *reply)
{
    return reply->op == WIRE_SEARCH && reply->search.explain.data != NULL;
}

static void pack_search(msgpack_packer *pk, struct buf *out, const struct wire_reply *reply)
{
    pack_str(pk, "higher_is_nearer");
    pack_bool(pk, reply->search.count > 0 && result_higher_is_nearer(reply, &reply->search.results[0]));
    pack_str(pk, "shards_asked");
    msgpack_pack_uint32(pk, reply->search.shards_asked);
    pack_str(pk, "shards_total");
    msgpack_pack_uint32(pk, reply->search.shards_total);
    pack_str(pk, "rows_scanned");
    msgpack_pack_uint64(pk, reply->search.rows_scanned);
    pack_str(pk, "results");
    msgpack_pack_array(pk, reply->search.count);
    for (uint32_t i = 0; i < reply->search.count; i++) pack_result(pk, out, reply, &reply->search.results[i]);
    if (!is_explained(reply)) return;
    pack_str(pk, "explain");
    pack_doc(pk, reply->search.explain);
}

/* ---- collections ----------------------------------------------------------------------------------------------- */

static void pack_number(msgpack_packer *pk, const char *name, uint64_t v)
{
    pack_str(pk, name);
    msgpack_pack_uint64(pk, v);
}

static void pack_shard(msgpack_packer *pk, const struct map_shard *shard, const struct shard_stats *stats)
{
    msgpack_pack_map(pk, 10u + (stats->detail.data != NULL));
    pack_number(pk, "id", shard->shard_id);
    pack_number(pk, "slot_first", shard->slot_first);
    pack_number(pk, "slot_count", shard->slot_count);
    pack_number(pk, "points", stats->points);
    pack_number(pk, "applied", stats->applied);
    pack_number(pk, "durable", stats->durable);
    pack_number(pk, "unindexed", stats->unindexed);
    pack_number(pk, "stream_bytes", stats->stream_bytes);
    pack_number(pk, "meta_bytes", stats->meta_bytes);
    pack_number(pk, "applied_ops", stats->applied_ops);
    if (stats->detail.data == NULL) return;
    pack_str(pk, "index");
    pack_doc(pk, stats->detail);
}

static void pack_options(msgpack_packer *pk, const struct collection_options *options)
{
    struct doc_builder *docs = doc_builder_new(OPTIONS_DOC_BYTES_MAX);
    struct doc doc = { NULL, 0 };
    if (docs != NULL) {
        doc_begin_object(docs);
        collection_options_put(options, docs);
        doc_end(docs);
        if (doc_builder_finish(docs, &doc, NULL) != OMEN_OK) doc.data = NULL;
    }
    pack_str(pk, "options");
    pack_doc(pk, doc); /* nil when there is no memory for it */
    if (docs != NULL) doc_builder_free(docs);
}

static void pack_double(msgpack_packer *pk, const char *name, double v)
{
    pack_str(pk, name);
    msgpack_pack_double(pk, v);
}

static void pack_recall(msgpack_packer *pk, const struct wire_collection_info *info)
{
    pack_str(pk, "recall");
    msgpack_pack_map(pk, 5);
    pack_double(pk, "measured", info->recall.recall);
    pack_double(pk, "low", info->recall.low);
    pack_double(pk, "high", info->recall.high);
    pack_number(pk, "searches", info->recall_searches);
    pack_number(pk, "boost", info->recall_boost);
}

static void pack_collection(msgpack_packer *pk, const struct wire_collection_info *info)
{
    const struct map_collection *c = info->collection;
    bool measured = info->recall_searches > 0;
    msgpack_pack_map(pk, (info->shards == NULL ? 14u : 15u) + measured + (info->index.data != NULL));
    pack_str(pk, "name");
    pack_str(pk, c->name);
    pack_number(pk, "id", c->id);
    pack_str(pk, "vectors");
    msgpack_pack_array(pk, c->schema.field_count);
    for (uint32_t i = 0; i < c->schema.field_count; i++) {
        msgpack_pack_map(pk, 3);
        pack_str(pk, "name");
        pack_str(pk, c->schema.fields[i].name);
        pack_number(pk, "dim", c->schema.fields[i].dim);
        pack_str(pk, "metric");
        pack_str(pk, metric_name(c->schema.fields[i].metric));
    }
    pack_str(pk, "shard_key");
    if (c->schema.shard_key[0] == '\0')
        msgpack_pack_nil(pk);
    else
        pack_str(pk, c->schema.shard_key);
    pack_number(pk, "shard_count", c->shard_count);
    pack_number(pk, "replication", c->replication);
    pack_str(pk, "recall_target");
    msgpack_pack_float(pk, c->recall_target);
    pack_options(pk, &c->options);
    pack_number(pk, "created_ms", c->created_ms);
    pack_number(pk, "points", info->points);
    pack_number(pk, "unindexed", info->unindexed);
    pack_number(pk, "stream_bytes", info->stream_bytes);
    pack_number(pk, "meta_bytes", info->meta_bytes);
    pack_number(pk, "applied_ops", info->applied_ops);
    if (measured) pack_recall(pk, info);
    if (info->index.data != NULL) {
        pack_str(pk, "index");
        pack_doc(pk, info->index);
    }
    if (info->shards == NULL) return;
    pack_str(pk, "shards");
    msgpack_pack_array(pk, c->shard_count);
    for (uint32_t i = 0; i < c->shard_count; i++) pack_shard(pk, &c->shards[i], &info->shards[i]);
}

/* Aliases of a collection that the map no longer knows cannot be: a drop takes them along. */
static void pack_aliases(msgpack_packer *pk, const struct map *map)
{
    pack_str(pk, "aliases");
    msgpack_pack_map(pk, map == NULL ? 0 : map->alias_count);
    for (uint32_t i = 0; map != NULL && i < map->alias_count; i++) {
        const struct map_collection *target = map_find_id(map, map->aliases[i].collection_id);
        pack_str(pk, map->aliases[i].name);
        pack_str(pk, target == NULL ? "" : target->name);
    }
}

static void pack_collections(msgpack_packer *pk, const struct wire_reply *reply)
{
    pack_str(pk, "collections");
    msgpack_pack_array(pk, reply->collections.count);
    for (uint32_t i = 0; i < reply->collections.count; i++) pack_collection(pk, &reply->collections.items[i]);
    pack_aliases(pk, reply->collections.map);
}

/* ---- the rest -------------------------------------------------------------------------------------------------- */

static void pack_versions(msgpack_packer *pk)
{
    pack_str(pk, "versions");
    msgpack_pack_array(pk, 2);
    msgpack_pack_uint32(pk, WIRE_VERSION_MIN);
    msgpack_pack_uint32(pk, WIRE_VERSION_MAX);
}

static void pack_hello(msgpack_packer *pk, const struct wire_reply *reply)
{
    static const struct {
        const char *name;
        uint64_t value;
    } limits[] = {
        { "message_bytes", WIRE_MESSAGE_BYTES_MAX },
        { "elements", WIRE_ELEMENTS_MAX },
        { "depth", WIRE_DEPTH_MAX },
        { "batch_points", OMEN_BATCH_POINTS_MAX },
        { "batch_bytes", OMEN_BATCH_BYTES_MAX },
        { "batch_searches", OMEN_BATCH_SEARCHES_MAX },
        { "dim", OMEN_DIM_MAX },
        { "k", OMEN_K_MAX },
        { "payload_bytes", DOC_BYTES_MAX },
        { "scroll_limit", OMEN_SCROLL_LIMIT_MAX },
        { "vector_fields", OMEN_VECTOR_FIELDS_MAX },
        { "name_bytes", OMEN_NAME_BYTES_MAX },
    };
    const size_t limit_count = sizeof limits / sizeof limits[0];
    pack_number(pk, "version", reply->hello.version);
    pack_versions(pk);
    pack_str(pk, "server_version");
    pack_str(pk, reply->hello.server_version == NULL ? OMEN_VERSION : reply->hello.server_version);
    pack_str(pk, "commit");
    pack_str(pk, reply->hello.commit == NULL ? "" : reply->hello.commit);
    pack_number(pk, "now_ms", reply->hello.now_ms);
    pack_str(pk, "limits");
    msgpack_pack_map(pk, limit_count);
    for (size_t i = 0; i < limit_count; i++) pack_number(pk, limits[i].name, limits[i].value);
}

static void pack_shard_outcomes(msgpack_packer *pk, const struct wire_reply *reply)
{
    pack_str(pk, "shards");
    msgpack_pack_array(pk, reply->write.shard_count);
    for (uint32_t i = 0; i < reply->write.shard_count; i++) {
        const struct wire_shard_outcome *shard = &reply->write.shards[i];
        msgpack_pack_array(pk, 3);
        msgpack_pack_uint64(pk, shard->shard);
        msgpack_pack_uint32(pk, (uint32_t)shard->code);
        msgpack_pack_uint32(pk, shard->count);
    }
}

static void pack_write(msgpack_packer *pk, const struct wire_reply *reply)
{
    pack_number(pk, "affected", reply->write.affected);
    pack_str(pk, "duplicate");
    pack_bool(pk, reply->write.duplicate);
    pack_shard_outcomes(pk, reply);
}

static bool op_is_write(enum wire_op op) { return op >= WIRE_UPSERT && op <= WIRE_DELETE_PAYLOAD; }

/* Top-level members of each op's reply, beside ok, tokens and engine_us. */
static uint32_t reply_members(enum wire_op op)
{
    switch (op) {
    case WIRE_HELLO: return 6;
    case WIRE_COLLECTION_LIST:
    case WIRE_COLLECTION_DESCRIBE:
    case WIRE_SCROLL: return 2;
    case WIRE_COLLECTION_CREATE:
    case WIRE_GET:
    case WIRE_COUNT:
    case WIRE_STATUS:
    case WIRE_CLUSTER: return 1;
    case WIRE_UPSERT:
    case WIRE_DELETE:
    case WIRE_SET_PAYLOAD:
    case WIRE_OVERWRITE_PAYLOAD:
    case WIRE_DELETE_PAYLOAD: return 3;
    case WIRE_SEARCH: return 5;
    default: return 0;
    }
}

static void pack_operation(msgpack_packer *pk, struct buf *out, const struct wire_reply *reply)
{
    switch (reply->op) {
    case WIRE_HELLO: pack_hello(pk, reply); return;
    case WIRE_COLLECTION_LIST:
    case WIRE_COLLECTION_DESCRIBE: pack_collections(pk, reply); return;
    case WIRE_COLLECTION_CREATE: pack_number(pk, "collection_id", reply->created.collection_id); return;
    case WIRE_GET:
    case WIRE_SCROLL: pack_points(pk, out, reply); return;
    case WIRE_COUNT: pack_number(pk, "count", reply->count.points); return;
    case WIRE_SEARCH: pack_search(pk, out, reply); return;
    case WIRE_STATUS:
        pack_str(pk, "status");
        pack_doc(pk, reply->status.doc);
        return;
    case WIRE_CLUSTER:
        pack_str(pk, "reply");
        pack_doc(pk, reply->cluster.reply);
        return;
    default:
        if (op_is_write(reply->op)) pack_write(pk, reply);
        return;
    }
}

static void pack_error(msgpack_packer *pk, const struct wire_reply *reply)
{
    const struct err *err = &reply->err;
    bool field = err->field[0] != '\0', retry = err->retry_after_ms != 0;
    bool versions = reply->code == OMEN_EVERSION;
    bool shards = op_is_write(reply->op) && reply->write.shard_count > 0;
    msgpack_pack_map(pk, 2 + (uint32_t)versions + (uint32_t)shards);
    pack_str(pk, "ok");
    pack_bool(pk, false);
    pack_str(pk, "error");
    msgpack_pack_map(pk, 3 + (uint32_t)field + (uint32_t)retry);
    pack_number(pk, "code", (uint64_t)reply->code);
    pack_str(pk, "name");
    pack_str(pk, err_name(reply->code));
    pack_str(pk, "message");
    pack_str(pk, err->message);
    if (field) {
        pack_str(pk, "field");
        pack_str(pk, err->field);
    }
    if (retry) pack_number(pk, "retry_after_ms", err->retry_after_ms);
    if (versions) pack_versions(pk);
    if (shards) pack_shard_outcomes(pk, reply);
}

enum omen_err message_encode_reply(const struct wire_reply *reply, struct buf *out)
{
    msgpack_packer pk;
    packer_init(&pk, out);
    if (reply->code != OMEN_OK) {
        pack_error(&pk, reply);
        return out->failed ? OMEN_ENOMEM : OMEN_OK;
    }
    bool partial = reply->shards_missing_count > 0;
    msgpack_pack_map(&pk,
            2 + (reply->token_count > 0) + (partial ? 2 : 0) + reply->stale + is_explained(reply) +
                    reply_members(reply->op));
    pack_str(&pk, "ok");
    pack_bool(&pk, true);
    if (reply->token_count > 0) {
        pack_str(&pk, "tokens");
        msgpack_pack_array(&pk, reply->token_count);
        for (uint32_t i = 0; i < reply->token_count; i++) pack_token(&pk, &reply->tokens[i]);
    }
    pack_number(&pk, "engine_us", reply->engine_ns / 1000);
    if (partial) {
        pack_str(&pk, "partial");
        pack_bool(&pk, true);
        pack_str(&pk, "shards_missing");
        msgpack_pack_array(&pk, reply->shards_missing_count);
        for (uint32_t i = 0; i < reply->shards_missing_count; i++)
            msgpack_pack_uint64(&pk, reply->shards_missing[i]);
    }
    if (reply->stale) {
        pack_str(&pk, "stale");
        pack_bool(&pk, true);
    }
    pack_operation(&pk, out, reply);
    return out->failed ? OMEN_ENOMEM : OMEN_OK;
}
