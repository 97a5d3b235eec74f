/* Collections, aliases, status and the cluster. Documents are JSON text made from the decoded reply. */
#include <stdio.h>
#include <string.h>

#include "common/json.h"
#include "tools/client/client_impl.h"

/* ---- op ids ---- */

static _Thread_local omen_op_id last_id, next_id; /* client 0: none */

static struct op_id change_id(struct omen_client *client)
{
    struct op_id id = { next_id.client, next_id.seq, next_id.issue_ms };
    if (id.client == 0) id = build_op_id(client);
    next_id = (omen_op_id){ .client = 0 };
    return id;
}

/* As it was sent last: a clock that is ahead makes another necessary. */
static void change_sent(const struct op_id *id)
{
    last_id = (omen_op_id){ id->client, id->seq, id->issue_ms };
}

bool omen_last_change_id(omen_op_id *id_out)
{
    *id_out = last_id;
    return last_id.client != 0;
}

void omen_next_change_id(omen_op_id id) { next_id = id; }

/* ---- changes ---- */

static enum omen_err set_name(char out[OMEN_NAME_BYTES_MAX + 1], const char *name, const char *field,
        struct err *err)
{
    if (name == NULL || name[0] == '\0') return err_set(err, OMEN_EINVAL, field, "no name is given");
    if (strlen(name) > OMEN_NAME_BYTES_MAX)
        return err_set(err, OMEN_ETOOBIG, field, "name is longer than %d bytes", OMEN_NAME_BYTES_MAX);
    memcpy(out, name, strlen(name) + 1);
    return OMEN_OK;
}

static enum omen_err set_field(struct vector_field *out, const char *name, uint32_t dim, const char *metric,
        struct err *err)
{
    *out = (struct vector_field){ .dim = dim, .metric = METRIC_COSINE };
    if (name != NULL && name[0] != '\0') {
        enum omen_err rc = set_name(out->name, name, "fields", err);
        if (rc != OMEN_OK) return rc;
    }
    if (dim == 0 || dim > OMEN_DIM_MAX)
        return err_set(err, OMEN_EINVAL, "dim", "dimension %u is not between 1 and %d", dim, OMEN_DIM_MAX);
    if (metric != NULL && !metric_parse(metric, strlen(metric), &out->metric))
        return err_set(err, OMEN_EINVAL, "metric", "\"%s\" is none of cosine, l2, ip", metric);
    return OMEN_OK;
}

static enum omen_err set_schema(struct collection_schema *out, const omen_collection_options *options,
        struct err *err)
{
    const char *key = options->shard_key == NULL ? "" : options->shard_key;
    if (strlen(key) > DOC_PATH_BYTES_MAX)
        return err_set(err, OMEN_ETOOBIG, "shard_key", "path is longer than %d bytes", DOC_PATH_BYTES_MAX);
    memcpy(out->shard_key, key, strlen(key) + 1);
    if ((options->dim != 0) == (options->field_count != 0))
        return err_set(err, OMEN_EINVAL, "fields", "give either a dimension or a list of vector fields");
    if (options->field_count > OMEN_VECTOR_FIELDS_MAX)
        return err_set(err, OMEN_ETOOBIG, "fields", "%u vector fields, at most %d are allowed",
                options->field_count, OMEN_VECTOR_FIELDS_MAX);
    if (options->field_count == 0) {
        out->field_count = 1;
        return set_field(&out->fields[0], NULL, options->dim, options->metric, err);
    }
    out->field_count = options->field_count;
    for (uint32_t i = 0; i < options->field_count; i++) {
        const omen_vector_field *field = &options->fields[i];
        enum omen_err rc = set_field(&out->fields[i], field->name, field->dim, field->metric, err);
        if (rc != OMEN_OK) return rc;
    }
    return OMEN_OK;
}

static enum wire_op change_op(enum catalog_change_kind kind)
{
    switch (kind) {
    case CATALOG_CREATE: return WIRE_COLLECTION_CREATE;
    case CATALOG_DROP: return WIRE_COLLECTION_DROP;
    case CATALOG_SET: return WIRE_COLLECTION_SET;
    case CATALOG_ALIAS_SET: return WIRE_ALIAS_SET;
    default: return WIRE_ALIAS_DROP;
    }
}

static omen_code send_change(omen_client *client, const struct catalog_change *change,
        const char *options_json, struct err *err)
{
    last_id.client = 0;
    if (client == NULL) return client_fail(OMEN_EINVAL, "client", "client is NULL");
    struct scratch *s = scratch_take(client);
    if (s == NULL) return client_fail(OMEN_ENOMEM, NULL, "no memory for a request");
    struct wire_request request = { .op = change_op(change->kind), .catalog = *change };
    if (change->kind != CATALOG_ALIAS_DROP)
        request.collection = client_bytes(change->kind == CATALOG_ALIAS_SET ? change->target : change->name);
    request.catalog.asked_as = change_id(client);
    struct wire_reply reply;
    enum omen_err rc = OMEN_OK;
    if (options_json != NULL)
        rc = build_doc(options_json, OPTIONS_DOC_BYTES_MAX, "options", s, &request.catalog.options, err);
    if (rc == OMEN_OK) {
        rc = client_call(client, &request, s, &s->arena, &reply, err);
        change_sent(&request.catalog.asked_as);
    }
    scratch_give(client, s);
    return (omen_code)rc;
}

omen_code omen_collection_create(omen_client *client, const char *name,
        const omen_collection_options *options)
{
    struct err *err = client_err();
    if (options == NULL) return client_fail(OMEN_EINVAL, "options", "no options are given");
    struct catalog_change change = { .kind = CATALOG_CREATE };
    change.replication = options->replication == 0 ? 1 : options->replication;
    change.shard_count = options->shards == 0 ? 1 : options->shards;
    change.recall_target = options->recall_target;
    if (change.recall_target == 0 && options->options_json == NULL) change.recall_target = 0.95f;
    enum omen_err rc = set_name(change.name, name, "name", err);
    if (rc == OMEN_OK) rc = set_schema(&change.schema, options, err);
    return rc != OMEN_OK ? (omen_code)rc : send_change(client, &change, options->options_json, err);
}

omen_code omen_collection_set(omen_client *client, const char *name, const char *options_json)
{
    struct err *err = client_err();
    if (options_json == NULL) return client_fail(OMEN_EINVAL, "options", "no options are given");
    struct catalog_change change = { .kind = CATALOG_SET };
    enum omen_err rc = set_name(change.name, name, "name", err);
    return rc != OMEN_OK ? (omen_code)rc : send_change(client, &change, options_json, err);
}

static omen_code change_name(omen_client *client, enum catalog_change_kind kind, const char *name,
        const char *target)
{
    struct err *err = client_err();
    struct catalog_change change = { .kind = kind };
    enum omen_err rc = set_name(change.name, name, "name", err);
    if (rc == OMEN_OK && kind == CATALOG_ALIAS_SET) rc = set_name(change.target, target, "collection", err);
    return rc != OMEN_OK ? (omen_code)rc : send_change(client, &change, NULL, err);
}

omen_code omen_collection_drop(omen_client *client, const char *name)
{
    return change_name(client, CATALOG_DROP, name, NULL);
}

omen_code omen_alias_set(omen_client *client, const char *alias, const char *collection)
{
    return change_name(client, CATALOG_ALIAS_SET, alias, collection);
}

omen_code omen_alias_drop(omen_client *client, const char *alias)
{
    return change_name(client, CATALOG_ALIAS_DROP, alias, NULL);
}

/* ---- documents ---- */

static void put_text(struct buf *out, const char *key, const char *value)
{
    buf_printf(out, "\"%s\":", key);
    json_write_string(client_bytes(value), out);
}

static void put_u64(struct buf *out, const char *key, uint64_t value)
{
    buf_printf(out, ",\"%s\":%llu", key, (unsigned long long)value);
}

static void put_fields(struct buf *out, const struct collection_schema *schema)
{
    buf_printf(out, ",\"fields\":[");
    for (uint32_t i = 0; i < schema->field_count; i++) {
        buf_printf(out, i == 0 ? "{" : ",{");
        put_text(out, "name", schema->fields[i].name);
        put_u64(out, "dim", schema->fields[i].dim);
        buf_printf(out, ",\"metric\":\"%s\"}", metric_name(schema->fields[i].metric));
    }
    buf_printf(out, "],\"shard_key\":");
    if (schema->shard_key[0] == '\0')
        buf_printf(out, "null");
    else
        json_write_string(client_bytes(schema->shard_key), out);
}

static void put_index(struct buf *out, struct doc index)
{
    if (index.data == NULL) return;
    buf_printf(out, ",\"index\":");
    json_write(index, out);
}

static void put_shards(struct buf *out, const struct wire_collection_info *info)
{
    buf_printf(out, ",\"shards\":[");
    for (uint32_t i = 0; i < info->collection->shard_count; i++) {
        const struct map_shard *shard = &info->collection->shards[i];
        buf_printf(out, "%s{\"shard_id\":%llu", i == 0 ? "" : ",", (unsigned long long)shard->shard_id);
        put_u64(out, "slot_first", shard->slot_first);
        put_u64(out, "slot_count", shard->slot_count);
        const struct shard_stats *stats = &info->shards[i];
        put_u64(out, "points", stats->points);
        put_u64(out, "applied", stats->applied);
        put_u64(out, "durable", stats->durable);
        put_u64(out, "unindexed", stats->unindexed);
        put_u64(out, "stream_bytes", stats->stream_bytes);
        put_u64(out, "meta_bytes", stats->meta_bytes);
        put_u64(out, "applied_ops", stats->applied_ops);
        put_index(out, stats->detail);
        buf_printf(out, "}");
    }
    buf_printf(out, "]");
}

static void put_aliases(struct buf *out, const struct map *map, uint64_t collection_id)
{
    bool first = true;
    buf_printf(out, ",\"aliases\":[");
    for (uint32_t i = 0; map != NULL && i < map->alias_count; i++) {
        if (map->aliases[i].collection_id != collection_id) continue;
        if (!first) buf_printf(out, ",");
        json_write_string(client_bytes(map->aliases[i].name), out);
        first = false;
    }
    buf_printf(out, "]");
}

static void put_options(struct buf *out, const struct collection_options *options)
{
    struct doc_builder *docs = doc_builder_new(OPTIONS_DOC_BYTES_MAX);
    struct doc doc;
    buf_printf(out, ",\"options\":");
    if (docs == NULL) {
        out->failed = true;
        return;
    }
    doc_begin_object(docs);
    collection_options_put(options, docs);
    doc_end(docs);
    if (doc_builder_finish(docs, &doc, NULL) == OMEN_OK)
        json_write(doc, out);
    else
        out->failed = true;
    doc_builder_free(docs);
}

static void put_collection(struct buf *out, const struct wire_collection_info *info, const struct map *map)
{
    const struct map_collection *collection = info->collection;
    buf_printf(out, "{");
    put_text(out, "name", collection->name);
    put_u64(out, "id", collection->id);
    put_u64(out, "points", info->points);
    put_fields(out, &collection->schema);
    buf_printf(out, ",\"recall_target\":%.4g", (double)collection->recall_target);
    put_options(out, &collection->options);
    put_u64(out, "replication", collection->replication);
    put_u64(out, "created_ms", collection->created_ms);
    put_u64(out, "unindexed", info->unindexed);
    put_u64(out, "stream_bytes", info->stream_bytes);
    put_u64(out, "meta_bytes", info->meta_bytes);
    put_u64(out, "applied_ops", info->applied_ops);
    if (info->recall_searches > 0) {
        buf_printf(out, ",\"recall\":{\"measured\":%.6g,\"low\":%.6g,\"high\":%.6g", info->recall.recall,
                info->recall.low, info->recall.high);
        put_u64(out, "searches", info->recall_searches);
        put_u64(out, "boost", info->recall_boost);
        buf_printf(out, "}");
    }
    put_index(out, info->index);
    put_u64(out, "shard_count", collection->shard_count);
    put_aliases(out, map, collection->id);
    if (info->shards != NULL && collection->shards != NULL) put_shards(out, info);
    buf_printf(out, "}");
}

static void put_reply(struct buf *out, const struct wire_reply *reply)
{
    if (reply->op == WIRE_STATUS || reply->op == WIRE_CLUSTER) {
        json_write(reply->op == WIRE_STATUS ? reply->status.doc : reply->cluster.reply, out);
        return;
    }
    if (reply->op == WIRE_COLLECTION_LIST) buf_printf(out, "[");
    for (uint32_t i = 0; i < reply->collections.count; i++) {
        if (i > 0) buf_printf(out, ",");
        put_collection(out, &reply->collections.items[i], reply->collections.map);
    }
    if (reply->op == WIRE_COLLECTION_LIST) buf_printf(out, "]");
}

static enum omen_err reply_text(const struct wire_reply *reply, char **json_out, struct err *err)
{
    if (reply->op == WIRE_COLLECTION_DESCRIBE && reply->collections.count != 1)
        return err_set(err, OMEN_EPROTO, NULL, "reply describes %u collections", reply->collections.count);
    struct buf out;
    buf_init(&out);
    put_reply(&out, reply);
    buf_append_zero(&out, 1);
    if (out.failed) {
        buf_fini(&out);
        return err_set(err, OMEN_ENOMEM, NULL, "no memory for the document");
    }
    *json_out = (char *)out.data; /* buf memory is mem_* memory: omen_free frees it */
    return OMEN_OK;
}

/* `text`: the collection's name, or what is asked of the cluster. */
static omen_code ask_document(omen_client *client, enum wire_op op, const char *text, char **json_out)
{
    struct err *err = client_err();
    if (client == NULL || json_out == NULL)
        return client_fail(OMEN_EINVAL, "client", "client or json_out is NULL");
    *json_out = NULL;
    last_id.client = 0;
    struct scratch *s = scratch_take(client);
    if (s == NULL) return client_fail(OMEN_ENOMEM, NULL, "no memory for a request");
    struct wire_request request = { .op = op };
    struct wire_reply reply;
    enum omen_err rc = OMEN_OK;
    if (op == WIRE_CLUSTER)
        rc = build_doc(text, CLUSTER_REQUEST_BYTES_MAX, "request", s, &request.cluster.request, err);
    else
        request.collection = client_bytes(text);
    if (rc == OMEN_OK && op == WIRE_CLUSTER && wire_cluster_recorded(request.cluster.request))
        request.cluster.asked_as = change_id(client);
    if (rc == OMEN_OK) rc = client_call(client, &request, s, &s->arena, &reply, err);
    if (op == WIRE_CLUSTER) change_sent(&request.cluster.asked_as);
    reply.op = op;
    if (rc == OMEN_OK) rc = reply_text(&reply, json_out, err);
    scratch_give(client, s);
    return (omen_code)rc;
}

omen_code omen_collection_list(omen_client *client, char **json_out)
{
    return ask_document(client, WIRE_COLLECTION_LIST, NULL, json_out);
}

omen_code omen_collection_describe(omen_client *client, const char *name, char **json_out)
{
    if (name == NULL) {
        (void)client_err();
        return client_fail(OMEN_EINVAL, "name", "no name is given");
    }
    return ask_document(client, WIRE_COLLECTION_DESCRIBE, name, json_out);
}

omen_code omen_status(omen_client *client, char **json_out)
{
    return ask_document(client, WIRE_STATUS, NULL, json_out);
}

omen_code omen_cluster(omen_client *client, const char *request_json, char **json_out)
{
    if (json_out != NULL) *json_out = NULL;
    if (request_json == NULL) {
        (void)client_err();
        return client_fail(OMEN_EINVAL, "request", "nothing is asked");
    }
    return ask_document(client, WIRE_CLUSTER, request_json, json_out);
}
