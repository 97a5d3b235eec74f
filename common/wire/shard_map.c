/* The map and the nodes as routers get them, and the poll by which they ask. Tables in NODE_PROTOCOL.md. */
#include "common/wire/shard_bytes.h"

#include "common/check.h"

#define COLLECTION_BYTES_MIN 44
#define SHARD_BYTES_MIN 25
#define REPLICA_BYTES 12
#define ALIAS_BYTES_MIN 10
#define NODE_BYTES_MIN 6
#define OPTIONS_BYTES_MIN 17
#define ALIASES_THEN_OPTIONS (1u << 31) /* beside the number of aliases */
#define SCHEMA_NAMES_MIN 3

/* ---- encoding ---- */

void put_schema(struct buf *out, const struct collection_schema *schema)
{
    put_u8(out, (uint8_t)schema->field_count);
    for (uint32_t f = 0; f < schema->field_count; f++) {
        put_text(out, schema->fields[f].name, OMEN_NAME_BYTES_MAX);
        put_u32(out, schema->fields[f].dim);
        put_u8(out, (uint8_t)schema->fields[f].metric);
    }
    put_text(out, schema->shard_key, DOC_PATH_BYTES_MAX);
}

static void put_collection(struct buf *out, const struct map_collection *c)
{
    put_u64(out, c->id);
    put_text(out, c->name, OMEN_NAME_BYTES_MAX);
    put_schema(out, &c->schema);
    put_f32(out, c->recall_target);
    put_u32(out, c->replication);
    put_u64(out, c->created_ms);
    put_u32(out, c->shard_count);
    for (uint32_t s = 0; s < c->shard_count; s++) {
        const struct map_shard *shard = &c->shards[s];
        put_u64(out, shard->shard_id);
        put_u32(out, shard->slot_first);
        put_u32(out, shard->slot_count);
        put_u64(out, shard->base_sequence);
        put_u8(out, (uint8_t)shard->replica_count);
        for (uint32_t r = 0; r < shard->replica_count; r++) {
            put_u64(out, shard->replica_ids[r]);
            put_u32(out, shard->node_ids[r]);
        }
    }
}

/* At the end, and only when there is something to say: a map without options keeps its bytes. */
static void put_options(struct buf *out, const struct map *map, uint32_t count)
{
    const struct collection_options plain = { .profile = PROFILE_NONE };
    struct doc_builder *docs = doc_builder_new(OPTIONS_DOC_BYTES_MAX);
    if (docs == NULL) {
        out->failed = true;
        return;
    }
    put_u32(out, count);
    for (uint32_t i = 0; i < map->collection_count; i++) {
        const struct map_collection *c = &map->collections[i];
        struct doc doc = { NULL, 0 };
        if (collection_options_equal(&c->options, &plain)) continue;
        doc_builder_reset(docs, OPTIONS_DOC_BYTES_MAX);
        doc_begin_object(docs);
        collection_options_put(&c->options, docs);
        doc_end(docs);
        if (doc_builder_finish(docs, &doc, NULL) != OMEN_OK) out->failed = true; /* no memory */
        put_u32(out, i);
        put_doc(out, doc);
    }
    doc_builder_free(docs);
}

static uint32_t options_count(const struct map *map)
{
    const struct collection_options plain = { .profile = PROFILE_NONE };
    uint32_t count = 0;
    for (uint32_t i = 0; i < map->collection_count; i++)
        count += !collection_options_equal(&map->collections[i].options, &plain);
    return count;
}

void shard_map_encode(const struct map *map, struct buf *out)
{
    put_u64(out, map->epoch);
    put_u64(out, map->incarnation);
    put_u32(out, map->collection_count);
    for (uint32_t i = 0; i < map->collection_count; i++) put_collection(out, &map->collections[i]);
    uint32_t options = options_count(map);
    put_u32(out, map->alias_count | (options > 0 ? ALIASES_THEN_OPTIONS : 0));
    for (uint32_t i = 0; i < map->alias_count; i++) {
        put_text(out, map->aliases[i].name, OMEN_NAME_BYTES_MAX);
        put_u64(out, map->aliases[i].collection_id);
    }
    if (options > 0) put_options(out, map, options);
}

void put_map(struct buf *out, const struct map *map)
{
    size_t at = out->len;
    put_u32(out, 0);
    if (map == NULL) return;
    shard_map_encode(map, out);
    if (!out->failed) store_u32(out->data + at, (uint32_t)(out->len - at - 4));
}

/* ---- decoding ---- */

void in_schema(struct wire_in *in, struct collection_schema *out)
{
    uint32_t count = in_u8(in, "vectors");
    if (count > OMEN_VECTOR_FIELDS_MAX) {
        in_fail(in, OMEN_ETOOBIG, "vectors", "are too many");
        count = 0;
    }
    out->field_count = count;
    for (uint32_t f = 0; f < count; f++) {
        in_text(in, out->fields[f].name, OMEN_NAME_BYTES_MAX, "vectors");
        out->fields[f].dim = in_u32(in, "dim");
        out->fields[f].metric = (enum metric)in_u8(in, "metric");
    }
    in_text(in, out->shard_key, DOC_PATH_BYTES_MAX, "shard_key");
}

static void check_name(struct wire_in *in, const char *name, const char *before, const char *field)
{
    if (!in_ok(in)) return;
    if (map_check_name(name, strlen(name), field, NULL) != OMEN_OK)
        in_fail(in, OMEN_EINVAL, field, "is no name");
    if (before != NULL && strcmp(before, name) >= 0) in_fail(in, OMEN_EINVAL, field, "is out of order");
}

static void in_map_shard(struct wire_in *in, struct map_shard *shard, uint32_t slot)
{
    shard->shard_id = in_u64(in, "shard_id");
    shard->slot_first = in_u32(in, "slot_first");
    shard->slot_count = in_u32(in, "slot_count");
    shard->base_sequence = in_u64(in, "base_sequence");
    shard->replica_count = in_u8(in, "replicas");
    if (!in_ok(in)) return;
    if (shard->slot_first != slot || shard->slot_count == 0 || shard->slot_count > OMEN_SLOT_COUNT - slot)
        in_fail(in, OMEN_EINVAL, "slots", "leave a gap or overlap");
    if (shard->replica_count > OMEN_REPLICAS_MAX) {
        in_fail(in, OMEN_ETOOBIG, "replicas", "are too many");
        shard->replica_count = 0;
    }
    for (uint32_t r = 0; r < shard->replica_count; r++) {
        shard->replica_ids[r] = in_u64(in, "replica_id");
        shard->node_ids[r] = in_u32(in, "node_id");
    }
}

static void in_map_shards(struct wire_in *in, struct map_collection *c)
{
    uint32_t count = in_count(in, OMEN_SHARDS_MAX, SHARD_BYTES_MIN, "shards"), slot = 0;
    if (!in_ok(in)) return;
    c->shards = count == 0 ? NULL : mem_calloc(count, sizeof *c->shards);
    if (c->shards == NULL) {
        in_fail(in, count == 0 ? OMEN_EINVAL : OMEN_ENOMEM, "shards", "cannot be held");
        return;
    }
    c->shard_count = count;
    for (uint32_t s = 0; in_ok(in) && s < count; s++) {
        in_map_shard(in, &c->shards[s], slot);
        slot += c->shards[s].slot_count;
    }
    if (in_ok(in) && slot != OMEN_SLOT_COUNT) in_fail(in, OMEN_EINVAL, "slots", "are not all covered");
}

static void in_collection(struct wire_in *in, struct map_collection *c, const char *before)
{
    c->id = in_u64(in, "id");
    in_text(in, c->name, OMEN_NAME_BYTES_MAX, "name");
    check_name(in, c->name, before, "name");
    in_schema(in, &c->schema);
    if (in_ok(in) && map_check_schema(&c->schema, NULL) != OMEN_OK)
        in_fail(in, OMEN_EINVAL, "vectors", "are no schema");
    c->recall_target = in_f32(in, "recall_target");
    c->replication = in_u32(in, "replication");
    c->created_ms = in_u64(in, "created_ms");
    in_map_shards(in, c);
}

static void in_collections(struct wire_in *in, struct map *map)
{
    uint32_t count = in_count(in, OMEN_COLLECTIONS_MAX, COLLECTION_BYTES_MIN, "collections");
    if (!in_ok(in) || count == 0) return;
    map->collections = mem_calloc(count, sizeof *map->collections);
    if (map->collections == NULL) {
        in_fail(in, OMEN_ENOMEM, "collections", "cannot be held");
        return;
    }
    map->collection_count = count;
    for (uint32_t i = 0; in_ok(in) && i < count; i++)
        in_collection(in, &map->collections[i], i == 0 ? NULL : map->collections[i - 1].name);
}

/* Whether options follow. */
static bool in_aliases(struct wire_in *in, struct map *map)
{
    uint32_t count = in_u32(in, "aliases");
    bool options = (count & ALIASES_THEN_OPTIONS) != 0;
    count &= ~ALIASES_THEN_OPTIONS;
    if (in_ok(in) && (count > OMEN_ALIASES_MAX || (uint64_t)count * ALIAS_BYTES_MIN > in_left(in)))
        in_fail(in, OMEN_ETOOBIG, "aliases", "are too many");
    if (!in_ok(in) || count == 0) return options;
    map->aliases = mem_calloc(count, sizeof *map->aliases);
    if (map->aliases == NULL) {
        in_fail(in, OMEN_ENOMEM, "aliases", "cannot be held");
        return false;
    }
    map->alias_count = count;
    for (uint32_t i = 0; in_ok(in) && i < count; i++) {
        in_text(in, map->aliases[i].name, OMEN_NAME_BYTES_MAX, "alias");
        check_name(in, map->aliases[i].name, i == 0 ? NULL : map->aliases[i - 1].name, "alias");
        map->aliases[i].collection_id = in_u64(in, "alias");
    }
    return options;
}

static void in_options(struct wire_in *in, struct map *map)
{
    const struct collection_options plain = { .profile = PROFILE_NONE };
    uint32_t count = in_count(in, OMEN_COLLECTIONS_MAX, OPTIONS_BYTES_MIN, "options"), next = 0;
    if (in_ok(in) && count == 0) in_fail(in, OMEN_EPROTO, "options", "are of no collection");
    for (uint32_t i = 0; in_ok(in) && i < count; i++) {
        uint32_t at = in_u32(in, "options");
        struct doc doc = in_doc(in, OPTIONS_DOC_BYTES_MAX, "options");
        float recall_target = 0; /* has a place of its own */
        if (!in_ok(in)) return;
        if (at < next || at >= map->collection_count) {
            in_fail(in, OMEN_EPROTO, "options", "are of no collection, or out of order");
            return;
        }
        struct collection_options *options = &map->collections[at].options;
        if (collection_options_change(options, &recall_target, doc, NULL) != OMEN_OK ||
                collection_options_equal(options, &plain))
            in_fail(in, OMEN_EINVAL, "options", "cannot be those of a collection");
        next = at + 1;
    }
}

enum omen_err shard_map_decode(struct bytes bytes, struct map **map_out, struct err *err)
{
    struct err unused;
    *map_out = NULL;
    struct wire_in in = wire_in(bytes, NULL, err != NULL ? err : &unused);
    struct map *map = mem_calloc(1, sizeof *map);
    if (map == NULL) return err_set(err, OMEN_ENOMEM, "", "no memory for the map");
    atomic_init(&map->refs, 1);
    map->epoch = in_u64(&in, "epoch");
    map->incarnation = in_u64(&in, "incarnation");
    in_collections(&in, map);
    if (in_aliases(&in, map)) in_options(&in, map);
    enum omen_err rc = in_end(&in);
    if (rc == OMEN_OK) {
        *map_out = map;
    } else {
        map_unref(map);
    }
    return rc;
}

struct map *in_map(struct wire_in *in)
{
    uint32_t len = in_u32(in, "map");
    const uint8_t *p = in_take(in, len, "map");
    if (p == NULL || len == 0) return NULL;
    struct map *map;
    struct err why;
    err_clear(&why);
    if (shard_map_decode((struct bytes){ p, len }, &map, &why) != OMEN_OK) {
        err_prefix(&why, "map");
        in_fail(in, why.code, why.field, why.message);
        return NULL;
    }
    return map;
}

/* ---- poll ---- */

void shard_poll_encode(const struct shard_poll *poll, struct buf *out)
{
    put_u64(out, poll->have_incarnation);
    put_u64(out, poll->have_epoch);
    put_u8(out, poll->with_status);
}

enum omen_err shard_poll_decode(struct bytes body, struct shard_poll *poll_out, struct err *err)
{
    struct err unused;
    struct wire_in in = wire_in(body, NULL, err != NULL ? err : &unused);
    poll_out->have_incarnation = in_u64(&in, "have_incarnation");
    poll_out->have_epoch = in_u64(&in, "have_epoch");
    poll_out->with_status = in_bool(&in, "with_status");
    return in_end(&in);
}

void shard_poll_reply_encode(const struct shard_poll_reply *reply, struct buf *out)
{
    CHECK(reply->node_count <= OMEN_NODES_MAX);
    put_u32(out, reply->node_id);
    put_u64(out, reply->epoch);
    put_u32(out, reply->node_count);
    for (uint32_t i = 0; i < reply->node_count; i++) {
        put_u32(out, reply->nodes[i].node_id);
        put_text(out, reply->nodes[i].address, OMEN_ADDRESS_BYTES_MAX);
    }
    struct bytes why = reply->not_ready;
    if (why.len > SHARD_REASON_BYTES_MAX) why.len = SHARD_REASON_BYTES_MAX;
    put_bytes16(out, why);
    put_doc(out, reply->status);
    put_map(out, reply->map);
}

enum omen_err shard_poll_reply_decode(struct bytes body, struct arena *arena,
        struct shard_poll_reply *reply_out, struct err *err)
{
    struct err unused;
    memset(reply_out, 0, sizeof *reply_out);
    struct wire_in in = wire_in(body, arena, err != NULL ? err : &unused);
    reply_out->node_id = in_u32(&in, "node_id");
    reply_out->epoch = in_u64(&in, "epoch");
    uint32_t count = in_count(&in, OMEN_NODES_MAX, NODE_BYTES_MIN, "nodes");
    struct map_node *nodes = in_alloc(&in, count, sizeof *nodes);
    for (uint32_t i = 0; in_ok(&in) && i < count; i++) {
        nodes[i].node_id = in_u32(&in, "nodes");
        if (in_ok(&in) && nodes[i].node_id == 0) in_fail(&in, OMEN_EINVAL, "nodes", "is no id of a node");
        in_text(&in, nodes[i].address, OMEN_ADDRESS_BYTES_MAX, "nodes");
    }
    reply_out->nodes = nodes;
    reply_out->node_count = count;
    reply_out->not_ready = in_bytes16(&in, SHARD_REASON_BYTES_MAX, "not_ready");
    reply_out->status = in_doc(&in, SHARD_STATUS_BYTES_MAX, "status");
    if (in_ok(&in) && reply_out->status.data != NULL && doc_type(reply_out->status) != DOC_OBJECT)
        in_fail(&in, OMEN_EINVAL, "status", "is no object");
    if (in_ok(&in)) reply_out->map = in_map(&in);
    enum omen_err rc = in_end(&in);
    if (rc != OMEN_OK) {
        map_unref(reply_out->map);
        reply_out->map = NULL;
    }
    return rc;
}
