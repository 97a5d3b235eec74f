/* Replies from bytes, for clients. A server is trusted no more than a client: the same structural pass, the same checks of
 * lengths and types. Members that are not known are passed over, so that a newer server can say more. */
#include "common/wire/value.h"

#include <math.h>

#define REPLY_ROWS_MAX 1000000u
#define REPLY_COLLECTIONS_MAX OMEN_COLLECTIONS_MAX

struct reply_reader {
    struct reader r;
    struct wire_reply *out;
    struct collection_schema *schema; /* out->schema while it grows; NULL until a vector comes */
};

/* ---- members --------------------------------------------------------------------------------------------------- */

/* Value of a member, or NULL when absent, nil or not a map. The first of doubles counts. */
static const msgpack_object *get(const msgpack_object *map, const char *name)
{
    if (map->type != MSGPACK_OBJECT_MAP) return NULL;
    for (uint32_t i = 0; i < map->via.map.size; i++) {
        const msgpack_object_kv *kv = &map->via.map.ptr[i];
        if (kv->key.type != MSGPACK_OBJECT_STR) continue;
        struct bytes key = { (const uint8_t *)kv->key.via.str.ptr, kv->key.via.str.size };
        if (bytes_equal(key, name)) return kv->val.type == MSGPACK_OBJECT_NIL ? NULL : &kv->val;
    }
    return NULL;
}

static enum omen_err named(struct reply_reader *q, const char *name, enum omen_err rc)
{
    if (rc != OMEN_OK) err_prefix(q->r.err, name);
    return rc;
}

static enum omen_err missing(struct reply_reader *q, const char *name)
{
    return err_set(q->r.err, OMEN_EPROTO, name, "is missing in the reply");
}

static enum omen_err get_u64(struct reply_reader *q, const msgpack_object *map, const char *name,
        uint64_t max, uint64_t *out)
{
    const msgpack_object *v = get(map, name);
    if (v == NULL) return missing(q, name);
    return named(q, name, read_u64(&q->r, v, 0, max, out));
}

static enum omen_err get_u32(struct reply_reader *q, const msgpack_object *map, const char *name,
        uint32_t *out)
{
    uint64_t wide = 0;
    enum omen_err rc = get_u64(q, map, name, UINT32_MAX, &wide);
    *out = (uint32_t)wide;
    return rc;
}

static enum omen_err get_bool(struct reply_reader *q, const msgpack_object *map, const char *name, bool *out)
{
    const msgpack_object *v = get(map, name);
    if (v == NULL) return missing(q, name);
    return named(q, name, read_bool(&q->r, v, out));
}

/* A str as a NUL-terminated copy in the arena. */
static enum omen_err get_text(struct reply_reader *q, const msgpack_object *map, const char *name,
        const char **out)
{
    const msgpack_object *v = get(map, name);
    if (v == NULL) return missing(q, name);
    struct bytes text;
    enum omen_err rc = named(q, name, read_str(&q->r, v, 1024, &text));
    if (rc != OMEN_OK) return rc;
    char *copy = arena_strdup(q->r.arena, (const char *)text.data, text.len);
    if (copy == NULL) return err_set(q->r.err, OMEN_ENOMEM, name, "no memory for the reply");
    *out = copy;
    return OMEN_OK;
}

/* A str into a fixed array with its NUL. */
static enum omen_err get_name(struct reply_reader *q, const msgpack_object *map, const char *name,
        size_t bytes_max, char *out)
{
    const msgpack_object *v = get(map, name);
    if (v == NULL) return missing(q, name);
    struct bytes text;
    enum omen_err rc = named(q, name, read_str(&q->r, v, bytes_max, &text));
    if (rc != OMEN_OK) return rc;
    memcpy(out, text.data, text.len);
    out[text.len] = '\0';
    return OMEN_OK;
}

/* An array that may be absent: size 0 then. */
static enum omen_err get_array(struct reply_reader *q, const msgpack_object *map, const char *name,
        uint32_t max, msgpack_object_array *out)
{
    *out = (msgpack_object_array){ .size = 0 };
    const msgpack_object *v = get(map, name);
    return v == NULL ? OMEN_OK : named(q, name, read_array(&q->r, v, 0, max, out));
}

/* A bin of exactly `bytes`. */
static enum omen_err get_column(struct reply_reader *q, const msgpack_object *map, const char *name,
        size_t bytes, const uint8_t **out)
{
    const msgpack_object *v = get(map, name);
    if (v == NULL) return missing(q, name);
    struct bytes data;
    enum omen_err rc = named(q, name, read_bin(&q->r, v, WIRE_MESSAGE_BYTES_MAX, &data));
    if (rc != OMEN_OK) return rc;
    if (data.len != bytes)
        return err_set(q->r.err, OMEN_EPROTO, name, "%zu bytes, expected %zu", data.len, bytes);
    *out = data.data;
    return OMEN_OK;
}

/* ---- rows ------------------------------------------------------------------------------------------------------ */

/* Position of a vector field in the reply's own schema, added when new. */
static enum omen_err schema_field(struct reply_reader *q, struct bytes name, uint32_t dim,
        uint32_t *field_out)
{
    if (q->schema == NULL) {
        enum omen_err rc = read_alloc(&q->r, 1, sizeof *q->schema, &q->schema);
        if (rc != OMEN_OK) return rc;
        memset(q->schema, 0, sizeof *q->schema);
        q->out->schema = q->schema;
    }
    struct collection_schema *schema = q->schema;
    for (uint32_t f = 0; f < schema->field_count; f++) {
        if (!bytes_equal(name, schema->fields[f].name)) continue;
        if (schema->fields[f].dim != dim) return err_set(q->r.err, OMEN_EPROTO, NULL, "dimension changes");
        *field_out = f;
        return OMEN_OK;
    }
    if (schema->field_count == OMEN_VECTOR_FIELDS_MAX)
        return err_set(q->r.err, OMEN_EPROTO, NULL, "too many fields");
    struct vector_field *field = &schema->fields[schema->field_count];
    memcpy(field->name, name.data, name.len);
    field->dim = dim;
    *field_out = schema->field_count++;
    return OMEN_OK;
}

struct row_sink {
    uint8_t *first; /* first struct point_view; NULL when count is 0 */
    size_t stride;
    uint32_t count;
};

static struct point_view *sink_row(const struct row_sink *rows, uint32_t i)
{
    return (struct point_view *)(void *)(rows->first + i * rows->stride);
}

/* One field's column: `present` [count] of 0/1 or NULL = all. */
static enum omen_err decode_vector_column(struct reply_reader *q, struct bytes name, const msgpack_object *v,
        const uint8_t *present, const struct row_sink *rows)
{
    struct bytes data;
    enum omen_err rc = read_bin(&q->r, v, WIRE_MESSAGE_BYTES_MAX, &data);
    if (rc != OMEN_OK) return rc;
    uint32_t have = rows->count;
    for (uint32_t i = 0; present != NULL && i < rows->count; i++) have -= present[i] == 0;
    if (have == 0 && data.len == 0) return OMEN_OK;
    if (have == 0 || data.len == 0 || data.len % (4ull * have) != 0 || data.len / 4 / have > OMEN_DIM_MAX) {
        return err_set(q->r.err, OMEN_EPROTO, NULL, "%zu bytes are not %u rows of f32", data.len, have);
    }
    uint32_t dim = (uint32_t)(data.len / 4 / have), field = 0;
    rc = schema_field(q, name, dim, &field);
    float *copy = NULL;
    if (rc == OMEN_OK) rc = read_alloc(&q->r, data.len, 1, &copy);
    if (rc != OMEN_OK) return rc;
    memcpy(copy, data.data, data.len);
    for (uint32_t i = 0; i < rows->count; i++) {
        if (present != NULL && present[i] == 0) continue;
        sink_row(rows, i)->vectors[field] = copy;
        copy += dim;
    }
    return OMEN_OK;
}

static enum omen_err decode_vectors(struct reply_reader *q, const msgpack_object *map,
        const struct row_sink *rows)
{
    const msgpack_object *vectors = get(map, "vectors"), *gaps = get(map, "present");
    if (vectors == NULL) return OMEN_OK;
    if (vectors->type != MSGPACK_OBJECT_MAP) return named(q, "vectors", read_expected(&q->r, vectors, "map"));
    if (vectors->via.map.size > OMEN_VECTOR_FIELDS_MAX)
        return err_set(q->r.err, OMEN_EPROTO, "vectors", "too many fields");
    for (uint32_t i = 0; i < vectors->via.map.size; i++) {
        const msgpack_object_kv *kv = &vectors->via.map.ptr[i];
        struct bytes name;
        char text[OMEN_NAME_BYTES_MAX + 1];
        enum omen_err rc = named(q, "vectors", read_str(&q->r, &kv->key, OMEN_NAME_BYTES_MAX, &name));
        if (rc != OMEN_OK) return rc;
        memcpy(text, name.data, name.len);
        text[name.len] = '\0';
        const uint8_t *present = NULL;
        if (gaps != NULL && get(gaps, text) != NULL) {
            rc = named(q, "present", get_column(q, gaps, text, rows->count, &present));
            if (rc != OMEN_OK) return rc;
        }
        rc = decode_vector_column(q, name, &kv->val, present, rows);
        if (rc != OMEN_OK) return named(q, "vectors", named(q, text, rc));
    }
    return OMEN_OK;
}

static enum omen_err decode_row_keys(struct reply_reader *q, const msgpack_object *map,
        const struct row_sink *rows)
{
    const msgpack_object *v = get(map, "keys");
    if (v == NULL) return OMEN_OK;
    struct doc *keys = NULL;
    enum omen_err rc = named(q, "keys", read_docs(&q->r, v, rows->count, false, &keys));
    for (uint32_t i = 0; rc == OMEN_OK && i < rows->count; i++) {
        if (keys[i].data == NULL) continue;
        rc = shard_key_from_doc(keys[i], "keys", q->r.arena, &sink_row(rows, i)->key, q->r.err);
    }
    return rc;
}

static enum omen_err decode_row_payloads(struct reply_reader *q, const msgpack_object *map,
        const struct row_sink *rows)
{
    const msgpack_object *v = get(map, "payloads");
    if (v == NULL) return OMEN_OK;
    struct doc *payloads = NULL;
    enum omen_err rc = named(q, "payloads", read_docs(&q->r, v, rows->count, true, &payloads));
    for (uint32_t i = 0; rc == OMEN_OK && i < rows->count; i++) sink_row(rows, i)->payload = payloads[i];
    return rc;
}

static enum omen_err decode_ids(struct reply_reader *q, const msgpack_object *map, const point_id **ids_out,
        uint32_t *count_out)
{
    const msgpack_object *v = get(map, "ids");
    if (v == NULL) return missing(q, "ids");
    return named(q, "ids", read_ids(&q->r, v, 0, REPLY_ROWS_MAX, ids_out, count_out));
}

/* All columns but ids into zeroed rows. */
static enum omen_err decode_rows(struct reply_reader *q, const msgpack_object *map, const point_id *ids,
        const struct row_sink *rows)
{
    const uint8_t *versions = NULL;
    enum omen_err rc = get_column(q, map, "versions", 8ull * rows->count, &versions);
    for (uint32_t i = 0; rc == OMEN_OK && i < rows->count; i++) {
        sink_row(rows, i)->id = ids[i];
        sink_row(rows, i)->version = load_u64(versions + 8ull * i);
    }
    const uint8_t *expires = NULL;
    if (rc == OMEN_OK && get(map, "expires_ms") != NULL)
        rc = get_column(q, map, "expires_ms", 8ull * rows->count, &expires);
    for (uint32_t i = 0; rc == OMEN_OK && expires != NULL && i < rows->count; i++)
        sink_row(rows, i)->expires_ms = load_u64(expires + 8ull * i);
    if (rc == OMEN_OK) rc = decode_row_keys(q, map, rows);
    if (rc == OMEN_OK) rc = decode_row_payloads(q, map, rows);
    if (rc == OMEN_OK) rc = decode_vectors(q, map, rows);
    return rc;
}

static enum omen_err decode_points(struct reply_reader *q, const msgpack_object *top)
{
    const msgpack_object *map = get(top, "points"), *cursor = get(top, "cursor");
    if (map == NULL) return missing(q, "points");
    const point_id *ids = NULL;
    uint32_t count = 0;
    enum omen_err rc = named(q, "points", decode_ids(q, map, &ids, &count));
    if (rc != OMEN_OK) return rc;
    struct point_view *points = NULL;
    rc = read_alloc(&q->r, count, sizeof *points, &points);
    if (rc != OMEN_OK) return rc;
    memset(points, 0, count * sizeof *points);
    q->out->points.points = points;
    q->out->points.count = count;
    rc = named(q, "points",
            decode_rows(q, map, ids, &(struct row_sink){ (uint8_t *)points, sizeof *points, count }));
    if (rc != OMEN_OK || cursor == NULL) return rc;
    struct bytes bytes;
    rc = named(q, "cursor", read_bin(&q->r, cursor, WIRE_CURSOR_BYTES_MAX, &bytes));
    if (rc != OMEN_OK) return rc;
    q->out->points.cursor = (struct bytes){ arena_copy(q->r.arena, bytes.data, bytes.len), bytes.len };
    return q->out->points.cursor.data == NULL
            ? err_set(q->r.err, OMEN_ENOMEM, "cursor", "no memory for the reply")
            : OMEN_OK;
}

static enum omen_err decode_result(struct reply_reader *q, const msgpack_object *map,
        struct wire_search_result *out)
{
    const point_id *ids = NULL;
    const uint8_t *scores = NULL;
    memset(out, 0, sizeof *out);
    enum omen_err rc = decode_ids(q, map, &ids, &out->count);
    if (rc == OMEN_OK) rc = get_bool(q, map, "higher_is_nearer", &out->higher_is_nearer);
    if (rc == OMEN_OK) rc = get_column(q, map, "scores", 4ull * out->count, &scores);
    struct hit *hits = NULL;
    if (rc == OMEN_OK) rc = read_alloc(&q->r, out->count, sizeof *hits, &hits);
    if (rc != OMEN_OK) return rc;
    memset(hits, 0, out->count * sizeof *hits);
    for (uint32_t i = 0; i < out->count; i++) {
        memcpy(&hits[i].score, scores + 4ull * i, 4);
        hits[i].distance = out->higher_is_nearer ? -hits[i].score : hits[i].score * hits[i].score;
    }
    out->hits = hits;
    uint8_t *first = out->count == 0 ? NULL : (uint8_t *)&hits[0].point;
    return decode_rows(q, map, ids, &(struct row_sink){ first, sizeof *hits, out->count });
}

static enum omen_err decode_search(struct reply_reader *q, const msgpack_object *top)
{
    msgpack_object_array array;
    struct wire_search_result *results = NULL;
    enum omen_err rc = get_u32(q, top, "shards_asked", &q->out->search.shards_asked);
    if (rc == OMEN_OK) rc = get_u32(q, top, "shards_total", &q->out->search.shards_total);
    if (rc == OMEN_OK) rc = get_u64(q, top, "rows_scanned", UINT64_MAX, &q->out->search.rows_scanned);
    if (rc == OMEN_OK) rc = get_array(q, top, "results", OMEN_BATCH_SEARCHES_MAX, &array);
    if (rc == OMEN_OK) rc = read_alloc(&q->r, array.size, sizeof *results, &results);
    for (uint32_t i = 0; rc == OMEN_OK && i < array.size; i++) {
        rc = decode_result(q, &array.ptr[i], &results[i]);
        if (rc != OMEN_OK) prefix_slot(q->r.err, "results", i);
    }
    if (rc != OMEN_OK) return rc;
    q->out->search.results = results;
    q->out->search.count = array.size;
    const msgpack_object *explain = get(top, "explain");
    if (explain == NULL) return OMEN_OK;
    if (explain->type != MSGPACK_OBJECT_MAP) return named(q, "explain", read_expected(&q->r, explain, "map"));
    return named(q, "explain", read_doc(&q->r, explain, WIRE_EXPLAIN_BYTES_MAX, &q->out->search.explain));
}

/* ---- collections ----------------------------------------------------------------------------------------------- */

static enum omen_err decode_schema(struct reply_reader *q, const msgpack_object *map,
        struct collection_schema *schema)
{
    msgpack_object_array array;
    enum omen_err rc = get_array(q, map, "vectors", OMEN_VECTOR_FIELDS_MAX, &array);
    for (uint32_t i = 0; rc == OMEN_OK && i < array.size; i++) {
        struct vector_field *field = &schema->fields[i];
        char metric[16];
        rc = get_name(q, &array.ptr[i], "name", OMEN_NAME_BYTES_MAX, field->name);
        if (rc == OMEN_OK) rc = get_u32(q, &array.ptr[i], "dim", &field->dim);
        if (rc == OMEN_OK) rc = get_name(q, &array.ptr[i], "metric", sizeof metric - 1, metric);
        if (rc == OMEN_OK && !metric_parse(metric, strlen(metric), &field->metric)) {
            rc = err_set(q->r.err, OMEN_EPROTO, "metric", "is none that is known here");
        }
        if (rc != OMEN_OK) prefix_slot(q->r.err, "vectors", i);
    }
    schema->field_count = array.size;
    if (rc == OMEN_OK && get(map, "shard_key") != NULL) {
        rc = get_name(q, map, "shard_key", DOC_PATH_BYTES_MAX, schema->shard_key);
    }
    return rc;
}

/* The map `index` of a collection or a shard; absent when there is none. */
static enum omen_err decode_index(struct reply_reader *q, const msgpack_object *map, uint32_t limit_bytes,
        struct doc *out)
{
    const msgpack_object *index = get(map, "index");
    if (index == NULL) return OMEN_OK;
    enum omen_err rc = index->type == MSGPACK_OBJECT_MAP ? read_doc(&q->r, index, limit_bytes, out)
                                                         : read_expected(&q->r, index, "map");
    return named(q, "index", rc);
}

static enum omen_err decode_shard(struct reply_reader *q, const msgpack_object *map, struct map_shard *shard,
        struct shard_stats *stats)
{
    enum omen_err rc = get_u64(q, map, "id", UINT64_MAX, &shard->shard_id);
    if (rc == OMEN_OK) rc = get_u32(q, map, "slot_first", &shard->slot_first);
    if (rc == OMEN_OK) rc = get_u32(q, map, "slot_count", &shard->slot_count);
    if (rc == OMEN_OK) rc = get_u64(q, map, "points", UINT64_MAX, &stats->points);
    if (rc == OMEN_OK) rc = get_u64(q, map, "applied", UINT64_MAX, &stats->applied);
    if (rc == OMEN_OK) rc = get_u64(q, map, "durable", UINT64_MAX, &stats->durable);
    if (rc == OMEN_OK) rc = get_u64(q, map, "unindexed", UINT64_MAX, &stats->unindexed);
    if (rc == OMEN_OK) rc = get_u64(q, map, "stream_bytes", UINT64_MAX, &stats->stream_bytes);
    if (rc == OMEN_OK) rc = get_u64(q, map, "meta_bytes", UINT64_MAX, &stats->meta_bytes);
    if (rc == OMEN_OK) rc = get_u64(q, map, "applied_ops", UINT64_MAX, &stats->applied_ops);
    if (rc == OMEN_OK) rc = decode_index(q, map, DETAIL_SHARD_BYTES_MAX, &stats->detail);
    return rc;
}

static enum omen_err decode_shards(struct reply_reader *q, const msgpack_object *map,
        struct map_collection *c, struct wire_collection_info *info)
{
    if (get(map, "shards") == NULL) return OMEN_OK;
    msgpack_object_array array;
    struct shard_stats *stats = NULL;
    enum omen_err rc = get_array(q, map, "shards", OMEN_SHARDS_MAX, &array);
    if (rc == OMEN_OK && array.size != c->shard_count)
        rc = err_set(q->r.err, OMEN_EPROTO, "shards", "not shard_count of them");
    if (rc == OMEN_OK) rc = read_alloc(&q->r, array.size, sizeof *c->shards, &c->shards);
    if (rc == OMEN_OK) rc = read_alloc(&q->r, array.size, sizeof *stats, &stats);
    if (rc != OMEN_OK) return rc;
    memset(c->shards, 0, array.size * sizeof *c->shards);
    memset(stats, 0, array.size * sizeof *stats);
    for (uint32_t i = 0; rc == OMEN_OK && i < array.size; i++) {
        rc = decode_shard(q, &array.ptr[i], &c->shards[i], &stats[i]);
        if (rc != OMEN_OK) prefix_slot(q->r.err, "shards", i);
    }
    info->shards = stats;
    return rc;
}

/* Options that a newer server knows are passed over: what this client prints is what it understands. */
static enum omen_err decode_options(struct reply_reader *q, const msgpack_object *v, struct map_collection *c)
{
    if (v == NULL) return OMEN_OK;
    if (v->type != MSGPACK_OBJECT_MAP) return read_expected(&q->r, v, "map");
    for (uint32_t i = 0; i < v->via.map.size; i++) {
        msgpack_object one = { .type = MSGPACK_OBJECT_MAP, .via.map = { 1, &v->via.map.ptr[i] } };
        struct collection_options options = c->options;
        struct doc doc;
        float apart = 0;
        enum omen_err rc = read_doc(&q->r, &one, OPTIONS_DOC_BYTES_MAX, &doc);
        if (rc != OMEN_OK) return rc;
        if (get(&one, "profile") != NULL) { /* its name alone: the values stand beside it */
            if (collection_options_change(&options, &apart, doc, NULL) == OMEN_OK)
                c->options.profile = options.profile;
        } else if (collection_options_change(&options, &apart, doc, NULL) == OMEN_OK) {
            c->options = options;
        }
    }
    return OMEN_OK;
}

static enum omen_err get_share(struct reply_reader *q, const msgpack_object *map, const char *name,
        double *out)
{
    const msgpack_object *v = get(map, name);
    if (v == NULL) return missing(q, name);
    enum omen_err rc = named(q, name, read_f64(&q->r, v, out));
    if (rc == OMEN_OK && !(*out >= 0 && *out <= 1))
        rc = err_set(q->r.err, OMEN_EPROTO, name, "must be 0 to 1");
    return rc;
}

static enum omen_err decode_recall(struct reply_reader *q, const msgpack_object *map,
        struct wire_collection_info *info)
{
    if (map == NULL) return OMEN_OK;
    enum omen_err rc = get_share(q, map, "measured", &info->recall.recall);
    if (rc == OMEN_OK) rc = get_share(q, map, "low", &info->recall.low);
    if (rc == OMEN_OK) rc = get_share(q, map, "high", &info->recall.high);
    if (rc == OMEN_OK) rc = get_u64(q, map, "searches", UINT64_MAX, &info->recall_searches);
    if (rc == OMEN_OK) rc = get_u64(q, map, "boost", UINT64_MAX, &info->recall_boost);
    return named(q, "recall", rc);
}

static enum omen_err decode_collection(struct reply_reader *q, const msgpack_object *map,
        struct map_collection *c, struct wire_collection_info *info)
{
    info->collection = c;
    enum omen_err rc = get_name(q, map, "name", OMEN_NAME_BYTES_MAX, c->name);
    if (rc == OMEN_OK) rc = get_u64(q, map, "id", UINT64_MAX, &c->id);
    if (rc == OMEN_OK) rc = decode_schema(q, map, &c->schema);
    if (rc == OMEN_OK) rc = get_u32(q, map, "shard_count", &c->shard_count);
    if (rc == OMEN_OK) rc = get_u32(q, map, "replication", &c->replication);
    if (rc == OMEN_OK) rc = get_u64(q, map, "created_ms", UINT64_MAX, &c->created_ms);
    if (rc == OMEN_OK) rc = get_u64(q, map, "points", UINT64_MAX, &info->points);
    if (rc == OMEN_OK) rc = get_u64(q, map, "unindexed", UINT64_MAX, &info->unindexed);
    if (rc == OMEN_OK) rc = get_u64(q, map, "stream_bytes", UINT64_MAX, &info->stream_bytes);
    if (rc == OMEN_OK) rc = get_u64(q, map, "meta_bytes", UINT64_MAX, &info->meta_bytes);
    if (rc == OMEN_OK) rc = get_u64(q, map, "applied_ops", UINT64_MAX, &info->applied_ops);
    if (rc == OMEN_OK) rc = named(q, "options", decode_options(q, get(map, "options"), c));
    if (rc == OMEN_OK) rc = decode_recall(q, get(map, "recall"), info);
    if (rc == OMEN_OK) rc = decode_index(q, map, WIRE_INDEX_BYTES_MAX, &info->index);
    const msgpack_object *recall = get(map, "recall_target");
    if (rc == OMEN_OK && recall != NULL) {
        double target = 0;
        rc = named(q, "recall_target", read_f64(&q->r, recall, &target));
        if (rc == OMEN_OK && !(target > 0 && target <= 1)) {
            rc = err_set(q->r.err, OMEN_EPROTO, "recall_target", "must be above 0 and at most 1");
        }
        if (rc == OMEN_OK) c->recall_target = (float)target;
    }
    return rc == OMEN_OK ? decode_shards(q, map, c, info) : rc;
}

static const struct map_collection *collection_named(const struct map *map, struct bytes name)
{
    for (uint32_t i = 0; i < map->collection_count; i++) {
        if (bytes_equal(name, map->collections[i].name)) return &map->collections[i];
    }
    return NULL;
}

/* Aliases of collections that did not come along (describe sends one) are left out. */
static enum omen_err decode_aliases(struct reply_reader *q, const msgpack_object *top, struct map *map)
{
    const msgpack_object *v = get(top, "aliases");
    if (v == NULL) return OMEN_OK;
    if (v->type != MSGPACK_OBJECT_MAP) return named(q, "aliases", read_expected(&q->r, v, "map"));
    if (v->via.map.size > OMEN_ALIASES_MAX) return err_set(q->r.err, OMEN_EPROTO, "aliases", "too many");
    enum omen_err rc = read_alloc(&q->r, v->via.map.size, sizeof *map->aliases, &map->aliases);
    for (uint32_t i = 0; rc == OMEN_OK && i < v->via.map.size; i++) {
        struct bytes alias, target;
        rc = named(q, "aliases", read_str(&q->r, &v->via.map.ptr[i].key, OMEN_NAME_BYTES_MAX, &alias));
        if (rc == OMEN_OK)
            rc = named(q, "aliases", read_str(&q->r, &v->via.map.ptr[i].val, OMEN_NAME_BYTES_MAX, &target));
        if (rc != OMEN_OK) return rc;
        const struct map_collection *c = collection_named(map, target);
        if (c == NULL) continue;
        struct map_alias *out = &map->aliases[map->alias_count++];
        memset(out, 0, sizeof *out);
        memcpy(out->name, alias.data, alias.len);
        out->collection_id = c->id;
    }
    return rc;
}

static enum omen_err decode_collections(struct reply_reader *q, const msgpack_object *top)
{
    msgpack_object_array array;
    struct map *map = NULL;
    struct wire_collection_info *items = NULL;
    enum omen_err rc = get_array(q, top, "collections", REPLY_COLLECTIONS_MAX, &array);
    if (rc == OMEN_OK) rc = read_alloc(&q->r, 1, sizeof *map, &map);
    if (rc != OMEN_OK) return rc;
    memset(map, 0, sizeof *map);
    rc = read_alloc(&q->r, array.size, sizeof *map->collections, &map->collections);
    if (rc == OMEN_OK) rc = read_alloc(&q->r, array.size, sizeof *items, &items);
    if (rc != OMEN_OK) return rc;
    memset(map->collections, 0, array.size * sizeof *map->collections);
    memset(items, 0, array.size * sizeof *items);
    for (uint32_t i = 0; rc == OMEN_OK && i < array.size; i++) {
        rc = decode_collection(q, &array.ptr[i], &map->collections[i], &items[i]);
        if (rc != OMEN_OK) prefix_slot(q->r.err, "collections", i);
    }
    if (rc != OMEN_OK) return rc;
    map->collection_count = array.size;
    q->out->collections.items = items;
    q->out->collections.count = array.size;
    q->out->collections.map = map;
    return decode_aliases(q, top, map);
}

/* ---- the rest -------------------------------------------------------------------------------------------------- */

static enum omen_err decode_shard_outcomes(struct reply_reader *q, const msgpack_object *top)
{
    msgpack_object_array array;
    struct wire_shard_outcome *shards = NULL;
    enum omen_err rc = get_array(q, top, "shards", OMEN_SHARDS_MAX, &array);
    if (rc == OMEN_OK) rc = read_alloc(&q->r, array.size, sizeof *shards, &shards);
    for (uint32_t i = 0; rc == OMEN_OK && i < array.size; i++) {
        struct token parts = { 0 };
        rc = read_token(&q->r, &array.ptr[i], &parts);
        if (rc != OMEN_OK) prefix_slot(q->r.err, "shards", i);
        /* A code that is newer than this client is a failure all the same. */
        enum omen_err code = parts.shard < OMEN_ERR_COUNT ? (enum omen_err)parts.shard : OMEN_EINTERNAL;
        if (rc == OMEN_OK)
            shards[i] = (struct wire_shard_outcome){ parts.incarnation, code, (uint32_t)parts.sequence };
    }
    if (rc != OMEN_OK) return rc;
    q->out->write.shards = shards;
    q->out->write.shard_count = array.size;
    return OMEN_OK;
}

static enum omen_err decode_operation(struct reply_reader *q, const msgpack_object *top)
{
    struct wire_reply *out = q->out;
    enum omen_err rc = OMEN_OK;
    const msgpack_object *status, *cluster;
    switch (out->op) {
    case WIRE_HELLO:
        rc = get_u32(q, top, "version", &out->hello.version);
        if (rc == OMEN_OK) rc = get_text(q, top, "server_version", &out->hello.server_version);
        if (rc == OMEN_OK) rc = get_text(q, top, "commit", &out->hello.commit);
        out->hello.now_ms = 0; /* servers before it do not tell */
        if (rc != OMEN_OK || get(top, "now_ms") == NULL) return rc;
        return get_u64(q, top, "now_ms", UINT64_MAX, &out->hello.now_ms);
    case WIRE_COLLECTION_LIST:
    case WIRE_COLLECTION_DESCRIBE: return decode_collections(q, top);
    case WIRE_COLLECTION_CREATE:
        return get_u64(q, top, "collection_id", UINT64_MAX, &out->created.collection_id);
    case WIRE_UPSERT:
    case WIRE_DELETE:
    case WIRE_SET_PAYLOAD:
    case WIRE_OVERWRITE_PAYLOAD:
    case WIRE_DELETE_PAYLOAD:
        rc = get_u32(q, top, "affected", &out->write.affected);
        if (rc == OMEN_OK) rc = get_bool(q, top, "duplicate", &out->write.duplicate);
        return rc == OMEN_OK ? decode_shard_outcomes(q, top) : rc;
    case WIRE_GET:
    case WIRE_SCROLL: return decode_points(q, top);
    case WIRE_COUNT: return get_u64(q, top, "count", UINT64_MAX, &out->count.points);
    case WIRE_SEARCH: return decode_search(q, top);
    case WIRE_STATUS:
        status = get(top, "status");
        if (status == NULL) return missing(q, "status");
        return named(q, "status", read_doc(&q->r, status, DOC_FILTER_BYTES_MAX, &out->status.doc));
    case WIRE_CLUSTER:
        cluster = get(top, "reply");
        if (cluster == NULL) return missing(q, "reply");
        return named(q, "reply", read_doc(&q->r, cluster, CLUSTER_REPLY_BYTES_MAX, &out->cluster.reply));
    default: return OMEN_OK;
    }
}

/* Text of any length into a fixed array, cut at a character. */
static void copy_cut(const msgpack_object *v, size_t cap, char *out)
{
    out[0] = '\0';
    if (v == NULL || v->type != MSGPACK_OBJECT_STR) return;
    size_t len = v->via.str.size < cap - 1 ? v->via.str.size : cap - 1;
    while (len > 0 && !utf8_valid(v->via.str.ptr, len)) len--;
    memcpy(out, v->via.str.ptr, len);
    out[len] = '\0';
}

static enum omen_err decode_error(struct reply_reader *q, const msgpack_object *top)
{
    const msgpack_object *error = get(top, "error"), *retry;
    struct wire_reply *out = q->out;
    if (error == NULL) return missing(q, "error");
    uint64_t code = 0;
    enum omen_err rc = named(q, "error", get_u64(q, error, "code", UINT32_MAX, &code));
    if (rc != OMEN_OK) return rc;
    if (code == OMEN_OK) return err_set(q->r.err, OMEN_EPROTO, "error.code", "is 0");
    out->code = code < OMEN_ERR_COUNT ? (enum omen_err)code : OMEN_EINTERNAL;
    out->err.code = out->code;
    copy_cut(get(error, "message"), sizeof out->err.message, out->err.message);
    copy_cut(get(error, "field"), sizeof out->err.field, out->err.field);
    retry = get(error, "retry_after_ms");
    if (retry != NULL) {
        rc = named(q, "error.retry_after_ms",
                read_u32(&q->r, retry, 0, UINT32_MAX, &out->err.retry_after_ms));
    }
    bool write = out->op >= WIRE_UPSERT && out->op <= WIRE_DELETE_PAYLOAD;
    return rc == OMEN_OK && write ? decode_shard_outcomes(q, top) : rc;
}

/* A reply that says it is partial says of which shards; one that names none is complete. */
static enum omen_err decode_missing(struct reply_reader *q, const msgpack_object *top)
{
    if (get(top, "shards_missing") == NULL) return OMEN_OK;
    msgpack_object_array array;
    uint64_t *shards = NULL;
    enum omen_err rc = get_array(q, top, "shards_missing", OMEN_SHARDS_MAX, &array);
    if (rc == OMEN_OK) rc = read_alloc(&q->r, array.size, sizeof *shards, &shards);
    for (uint32_t i = 0; rc == OMEN_OK && i < array.size; i++) {
        rc = read_u64(&q->r, &array.ptr[i], 0, UINT64_MAX, &shards[i]);
        if (rc != OMEN_OK) prefix_slot(q->r.err, "shards_missing", i);
    }
    if (rc != OMEN_OK) return rc;
    q->out->shards_missing = shards;
    q->out->shards_missing_count = array.size;
    return OMEN_OK;
}

static enum omen_err decode_reply(struct reply_reader *q)
{
    const msgpack_object *top = &q->r.unpacked.data;
    bool ok = false;
    enum omen_err rc = get_bool(q, top, "ok", &ok);
    if (rc != OMEN_OK) return rc;
    if (!ok) return decode_error(q, top);
    const msgpack_object *tokens = get(top, "tokens"), *engine = get(top, "engine_us");
    if (tokens != NULL) {
        rc = named(q, "tokens",
                read_tokens(&q->r, tokens, OMEN_SHARDS_MAX, &q->out->tokens, &q->out->token_count));
    }
    uint64_t engine_us = 0;
    if (rc == OMEN_OK && engine != NULL) {
        rc = named(q, "engine_us", read_u64(&q->r, engine, 0, UINT64_MAX / 1000, &engine_us));
    }
    q->out->engine_ns = engine_us * 1000;
    if (rc == OMEN_OK) rc = decode_missing(q, top);
    if (rc == OMEN_OK && get(top, "stale") != NULL) rc = get_bool(q, top, "stale", &q->out->stale);
    return rc == OMEN_OK ? decode_operation(q, top) : rc;
}

enum omen_err message_decode_reply(struct bytes message, enum wire_op op, struct arena *arena,
        struct wire_reply *reply_out, struct err *err)
{
    memset(reply_out, 0, sizeof *reply_out);
    reply_out->op = op;
    struct reply_reader q = { .out = reply_out };
    enum omen_err rc = reader_init(&q.r, message, arena, err);
    if (rc == OMEN_OK) rc = decode_reply(&q);
    reader_fini(&q.r);
    if (rc == OMEN_OK || rc == OMEN_ENOMEM) return rc;
    if (err != NULL) err->code = OMEN_EPROTO; /* not the caller's request is wrong, but what came back */
    return OMEN_EPROTO;
}
