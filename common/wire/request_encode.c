/* Requests to bytes, for clients: members in the order of the catalogue, those that equal their default left out. */
#include "common/wire/request.h"

#include "common/check.h"

struct writer {
    msgpack_packer pk;
    struct buf *out;
    size_t count_at; /* offset of the open map's header */
    uint32_t members;
};

/* The map's count is not known yet: it is filled in at the end. No map of a request has more than 15 members. */
static void map_begin(struct writer *w)
{
    buf_append(w->out, "\x80", 1);
    w->count_at = w->out->len - 1;
    w->members = 0;
}

static void map_end(struct writer *w)
{
    if (w->out->failed) return;
    CHECK(w->members <= 15);
    w->out->data[w->count_at] = (uint8_t)(0x80 | w->members);
}

static void put_name(struct writer *w, const char *name)
{
    pack_str(&w->pk, name);
    w->members++;
}

static void put_str(struct writer *w, enum member member, struct bytes text)
{
    put_name(w, MEMBER_NAMES[member]);
    pack_bytes_str(&w->pk, text);
}

static void put_u64(struct writer *w, enum member member, uint64_t v)
{
    put_name(w, MEMBER_NAMES[member]);
    msgpack_pack_uint64(&w->pk, v);
}

static void put_ids(struct writer *w, const point_id *ids, uint32_t count)
{
    put_name(w, MEMBER_NAMES[M_IDS]);
    bool numbers = true;
    for (uint32_t i = 0; i < count; i++) numbers = numbers && ids[i].kind == POINT_ID_U64;
    if (!numbers) {
        msgpack_pack_array(&w->pk, count);
        for (uint32_t i = 0; i < count; i++) pack_id(&w->pk, ids[i]);
        return;
    }
    msgpack_pack_bin(&w->pk, 8ull * count);
    for (uint32_t i = 0; i < count; i++) buf_append(w->out, &ids[i].lo, 8);
}

static void put_docs(struct writer *w, enum member member, const struct doc *docs, uint32_t count)
{
    if (docs == NULL) return;
    put_name(w, MEMBER_NAMES[member]);
    msgpack_pack_array(&w->pk, count);
    for (uint32_t i = 0; i < count; i++) pack_doc(&w->pk, docs[i]);
}

/* ---- parts ----------------------------------------------------------------------------------------------------- */

static void put_paths(struct writer *w, const struct wire_selection *s)
{
    msgpack_pack_array(&w->pk, s->payload_path_count);
    for (uint32_t i = 0; i < s->payload_path_count; i++)
        pack_bytes_str(&w->pk, doc_path_text(s->payload_paths[i]));
}

static void put_selection(struct writer *w, const struct wire_selection *s, bool payload_default)
{
    bool paths = s->with_payload && s->payload_path_count > 0;
    if (paths || s->with_payload != payload_default) {
        put_name(w, MEMBER_NAMES[M_WITH_PAYLOAD]);
        if (!paths) {
            pack_bool(&w->pk, s->with_payload);
        } else if (s->payload_include) {
            put_paths(w, s);
        } else {
            msgpack_pack_map(&w->pk, 1);
            pack_str(&w->pk, "exclude");
            put_paths(w, s);
        }
    }
    if (!s->with_all_vectors && s->vector_field_count == 0) return;
    put_name(w, MEMBER_NAMES[M_WITH_VECTORS]);
    if (s->with_all_vectors) {
        pack_bool(&w->pk, true);
        return;
    }
    msgpack_pack_array(&w->pk, s->vector_field_count);
    for (uint32_t i = 0; i < s->vector_field_count; i++) pack_bytes_str(&w->pk, s->vector_fields[i]);
}

/* A filter that would be left out silently would widen the answer: who has parsed one must give its bytes too. */
static void put_filter(struct writer *w, const struct filter *parsed, struct doc filter)
{
    CHECK(parsed == NULL || filter.data != NULL);
    if (filter.data == NULL) return;
    put_name(w, MEMBER_NAMES[M_FILTER]);
    pack_doc(&w->pk, filter);
}

static void put_envelope(struct writer *w, const struct wire_request *q)
{
    put_u64(w, M_V, q->version == 0 ? WIRE_VERSION_MAX : q->version);
    put_str(w, M_OP, (struct bytes){ (const uint8_t *)wire_op_name(q->op), strlen(wire_op_name(q->op)) });
    if (op_takes_collection(q->op)) {
        struct bytes name = q->collection;
        bool catalog = q->op == WIRE_COLLECTION_CREATE || q->op == WIRE_COLLECTION_DROP ||
                q->op == WIRE_COLLECTION_SET;
        const char *from = catalog ? q->catalog.name : q->catalog.target;
        if (catalog || q->op == WIRE_ALIAS_SET) name = (struct bytes){ (const uint8_t *)from, strlen(from) };
        put_str(w, M_COLLECTION, name);
    }
    if (q->api_key.len > 0) put_str(w, M_KEY, q->api_key);
    if (q->deadline_ms > 0) put_u64(w, M_DEADLINE_MS, q->deadline_ms);
    if (q->consistency != CONSISTENCY_SESSION) {
        put_name(w, MEMBER_NAMES[M_CONSISTENCY]);
        pack_str(&w->pk, CONSISTENCY_NAMES[q->consistency]);
    }
    if (q->allow_partial) {
        put_name(w, MEMBER_NAMES[M_ALLOW_PARTIAL]);
        pack_bool(&w->pk, true);
    }
    if (q->token_count == 0) return;
    put_name(w, MEMBER_NAMES[M_TOKENS]);
    msgpack_pack_array(&w->pk, q->token_count);
    for (uint32_t i = 0; i < q->token_count; i++) pack_token(&w->pk, &q->tokens[i]);
}

/* ---- operations ------------------------------------------------------------------------------------------------ */

static void put_hello(struct writer *w, const struct wire_request *q)
{
    put_name(w, MEMBER_NAMES[M_VERSIONS]);
    msgpack_pack_array(&w->pk, 2);
    msgpack_pack_uint32(&w->pk, q->hello.version_min == 0 ? WIRE_VERSION_MIN : q->hello.version_min);
    msgpack_pack_uint32(&w->pk, q->hello.version_max == 0 ? WIRE_VERSION_MAX : q->hello.version_max);
    if (q->hello.client_name.len > 0) put_str(w, M_CLIENT, q->hello.client_name);
}

static void put_create(struct writer *w, const struct catalog_change *change)
{
    const struct collection_schema *schema = &change->schema;
    put_name(w, MEMBER_NAMES[M_VECTORS]);
    msgpack_pack_map(&w->pk, schema->field_count);
    for (uint32_t i = 0; i < schema->field_count; i++) {
        pack_str(&w->pk, schema->fields[i].name);
        msgpack_pack_map(&w->pk, 2);
        pack_str(&w->pk, "dim");
        msgpack_pack_uint32(&w->pk, schema->fields[i].dim);
        pack_str(&w->pk, "metric");
        pack_str(&w->pk, metric_name(schema->fields[i].metric));
    }
    if (schema->shard_key[0] != '\0') {
        put_name(w, MEMBER_NAMES[M_SHARD_KEY]);
        pack_str(&w->pk, schema->shard_key);
    }
    if (change->shard_count > 1) put_u64(w, M_SHARDS, change->shard_count);
    if (change->replication > 1) put_u64(w, M_REPLICATION, change->replication);
    bool usual = change->options.data == NULL && change->recall_target == WIRE_RECALL_TARGET_DEFAULT;
    if (change->recall_target > 0 && !usual) { /* beside options it may not be left to them */
        put_name(w, MEMBER_NAMES[M_RECALL_TARGET]);
        msgpack_pack_float(&w->pk, change->recall_target);
    }
}

static void put_options(struct writer *w, const struct catalog_change *change)
{
    if (change->options.data == NULL) return;
    put_name(w, MEMBER_NAMES[M_OPTIONS]);
    pack_doc(&w->pk, change->options);
}

static void put_op_id(struct writer *w, const struct op_id *id)
{
    if (id->client == 0) return;
    put_name(w, MEMBER_NAMES[M_OP_ID]);
    pack_token(&w->pk, &(struct token){ id->client, id->seq, id->issue_ms });
}

static void put_write(struct writer *w, const struct wire_request *q)
{
    uint32_t count = q->write.count;
    if (q->write.column_count > 0) {
        put_name(w, MEMBER_NAMES[M_VECTORS]);
        msgpack_pack_map(&w->pk, q->write.column_count);
        for (uint32_t i = 0; i < q->write.column_count; i++) {
            pack_bytes_str(&w->pk, q->write.columns[i].field);
            pack_bin(&w->pk, q->write.columns[i].data, q->write.columns[i].bytes);
        }
    }
    bool by_filter = q->write.filter_doc.data != NULL;
    if (!by_filter) put_ids(w, q->write.ids, count);
    put_docs(w, M_PAYLOADS, q->write.payloads, by_filter ? 1 : count);
    put_docs(w, M_KEYS, q->write.keys, count);
    if (q->write.expires_ms != NULL) {
        put_name(w, MEMBER_NAMES[M_EXPIRES_MS]);
        msgpack_pack_bin(&w->pk, 8ull * count);
        for (uint32_t i = 0; i < count; i++) buf_append(w->out, &q->write.expires_ms[i], 8);
    }
    if (q->write.payload_paths.data != NULL) {
        put_name(w, MEMBER_NAMES[M_PATHS]);
        pack_doc(&w->pk, q->write.payload_paths);
    }
    put_filter(w, q->write.filter, q->write.filter_doc);
    put_op_id(w, &q->write.op_id);
    if (q->write.wait != WAIT_COMMITTED) {
        put_name(w, MEMBER_NAMES[M_WAIT]);
        pack_str(&w->pk, q->write.wait == WAIT_ACCEPTED ? "accepted" : "indexed");
    }
}

static void put_scroll(struct writer *w, const struct wire_request *q)
{
    if (q->scroll.cursor.len > 0) {
        put_name(w, MEMBER_NAMES[M_CURSOR]);
        pack_bin(&w->pk, q->scroll.cursor.data, q->scroll.cursor.len);
    }
    if (q->scroll.limit > 0 && q->scroll.limit != WIRE_SCROLL_LIMIT_DEFAULT)
        put_u64(w, M_LIMIT, q->scroll.limit);
    put_filter(w, q->scroll.filter, q->scroll.filter_doc);
    put_selection(w, &q->scroll.selection, true);
}

static void put_search_name(struct writer *w, enum search_member member)
{
    put_name(w, SEARCH_MEMBER_NAMES[member]);
}

static void put_search(struct writer *w, const struct wire_search *s)
{
    map_begin(w);
    if (s->by_id) {
        put_search_name(w, S_ID);
        pack_id(&w->pk, s->query_id);
    } else {
        put_search_name(w, S_VECTOR);
        pack_bin(&w->pk, s->query.data, s->query.len);
    }
    if (s->field.len > 0) {
        put_search_name(w, S_FIELD);
        pack_bytes_str(&w->pk, s->field);
    }
    if (s->query_key.data != NULL) {
        put_search_name(w, S_KEY);
        pack_doc(&w->pk, s->query_key);
    }
    if (s->k != WIRE_K_DEFAULT) {
        put_search_name(w, S_K);
        msgpack_pack_uint32(&w->pk, s->k);
    }
    if (s->offset > 0) {
        put_search_name(w, S_OFFSET);
        msgpack_pack_uint32(&w->pk, s->offset);
    }
    if (s->has_score_threshold) {
        put_search_name(w, S_SCORE_THRESHOLD);
        msgpack_pack_float(&w->pk, s->score_threshold);
    }
    if (s->exact) {
        put_search_name(w, S_EXACT);
        msgpack_pack_true(&w->pk);
    }
    put_filter(w, s->filter, s->filter_doc);
    put_selection(w, &s->selection, false);
    map_end(w);
}

static void put_searches(struct writer *w, const struct wire_request *q)
{
    put_name(w, MEMBER_NAMES[M_SEARCHES]);
    msgpack_pack_array(&w->pk, q->search.count);
    size_t count_at = w->count_at;
    uint32_t members = w->members;
    for (uint32_t i = 0; i < q->search.count; i++) put_search(w, &q->search.searches[i]);
    w->count_at = count_at;
    w->members = members;
    if (!q->search.explain) return;
    put_name(w, MEMBER_NAMES[M_EXPLAIN]);
    pack_bool(&w->pk, true);
}

static void put_operation(struct writer *w, const struct wire_request *q)
{
    switch (q->op) {
    case WIRE_HELLO: put_hello(w, q); return;
    case WIRE_COLLECTION_CREATE:
        put_create(w, &q->catalog);
        put_options(w, &q->catalog);
        put_op_id(w, &q->catalog.asked_as);
        return;
    case WIRE_COLLECTION_SET:
        put_options(w, &q->catalog);
        put_op_id(w, &q->catalog.asked_as);
        return;
    case WIRE_COLLECTION_DROP: put_op_id(w, &q->catalog.asked_as); return;
    case WIRE_ALIAS_SET:
    case WIRE_ALIAS_DROP:
        put_name(w, MEMBER_NAMES[M_ALIAS]);
        pack_str(&w->pk, q->catalog.name);
        put_op_id(w, &q->catalog.asked_as);
        return;
    case WIRE_UPSERT:
    case WIRE_DELETE:
    case WIRE_SET_PAYLOAD:
    case WIRE_OVERWRITE_PAYLOAD:
    case WIRE_DELETE_PAYLOAD: put_write(w, q); return;
    case WIRE_GET:
        put_ids(w, q->get.ids, q->get.count);
        put_docs(w, M_KEYS, q->get.keys, q->get.count);
        put_selection(w, &q->get.selection, true);
        return;
    case WIRE_SCROLL: put_scroll(w, q); return;
    case WIRE_COUNT: put_filter(w, q->count.filter, q->count.filter_doc); return;
    case WIRE_SEARCH: put_searches(w, q); return;
    case WIRE_CLUSTER:
        put_name(w, MEMBER_NAMES[M_REQUEST]);
        pack_doc(&w->pk, q->cluster.request);
        put_op_id(w, &q->cluster.asked_as);
        return;
    default: /* list, describe, status: the envelope says it all */ return;
    }
}

enum omen_err message_encode_request(const struct wire_request *request, struct buf *out, struct err *err)
{
    if (request->op <= 0 || request->op >= WIRE_OP_COUNT) {
        return err_set(err, OMEN_EINVAL, "op", "unknown operation %d", (int)request->op);
    }
    size_t start = out->len;
    struct writer w = { .out = out };
    packer_init(&w.pk, out);
    map_begin(&w);
    size_t count_at = w.count_at;
    put_envelope(&w, request);
    put_operation(&w, request);
    w.count_at = count_at;
    map_end(&w);
    if (out->failed) return err_set(err, OMEN_ENOMEM, NULL, "no memory to encode the request");
    if (out->len - start > WIRE_MESSAGE_BYTES_MAX) {
        return err_set(err, OMEN_ETOOBIG, NULL, "request of %zu bytes, the limit is %u", out->len - start,
                WIRE_MESSAGE_BYTES_MAX);
    }
    return OMEN_OK;
}
