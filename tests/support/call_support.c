/* See call_support.h. Deterministic by seed. */
#include "tests/support/call_support.h"

#include <stdio.h>
#include <string.h>

#include "common/check.h"
#include "common/json.h"

void call_source_init(struct call_source *s, uint64_t seed)
{
    memset(s, 0, sizeof *s);
    s->state = seed * 0x9e3779b97f4a7c15u + 1;
    arena_init(&s->arena, 4096, 0);
    call_draw_schema(s);
}

void call_source_fini(struct call_source *s) { arena_fini(&s->arena); }

static uint64_t draw64(struct call_source *s)
{
    uint64_t z = s->state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

uint32_t call_draw(struct call_source *s, uint32_t bound) { return (uint32_t)(draw64(s) % bound); }

struct doc call_json(struct arena *arena, const char *text)
{
    struct doc doc;
    struct doc_builder *b = doc_builder_new(DOC_FILTER_BYTES_MAX);
    CHECK(json_parse(text, strlen(text), b, &doc, NULL) == OMEN_OK);
    struct doc copy = { arena_copy(arena, doc.data, doc.len), doc.len };
    doc_builder_free(b);
    return copy;
}

/* ---- values ---- */

static point_id draw_id(struct call_source *s)
{
    if (call_draw(s, 2))
        return (point_id){ 0, call_draw(s, 3) ? call_draw(s, 100) : draw64(s), POINT_ID_U64 };
    return (point_id){ draw64(s), draw64(s), POINT_ID_UUID };
}

static struct shard_key draw_key(struct call_source *s)
{
    static const char *const keys[] = { "\"\"", "\"a\"", "\"tenant-42\"", "true", "false", "-1", "77" };
    struct shard_key key = { { NULL, 0 } };
    if (s->schema.shard_key[0] == '\0') return key;
    struct doc value = call_json(&s->arena, keys[call_draw(s, sizeof keys / sizeof keys[0])]);
    CHECK(shard_key_from_doc(value, "", &s->arena, &key, NULL) == OMEN_OK);
    return key;
}

static struct doc draw_payload(struct call_source *s)
{
    static const char *const payloads[] = { "{}", "{\"a\": 1}",
        "{\"tags\": [\"x\", null, 1.5], \"t\": {\"u\": true}}",
        "{\"text\": \"\\u00e9\\u00e9 and more of it, long enough to be of another length\"}" };
    return call_json(&s->arena, payloads[call_draw(s, sizeof payloads / sizeof payloads[0])]);
}

static const float *draw_vector(struct call_source *s, uint32_t dim)
{
    float *v = arena_alloc(&s->arena, 4 * (size_t)dim);
    for (uint32_t i = 0; i < dim; i++) v[i] = (float)call_draw(s, 1000) / 7 - 50;
    return v;
}

static void draw_filter(struct call_source *s, const struct filter **filter_out, struct doc *doc_out)
{
    static const char *const filters[] = { "{}", "{\"must\": [{\"key\": \"a\", \"match\": {\"value\": 1}}]}",
        "{\"should\": [{\"has_id\": [1, 2, 3]}, {\"is_null\": {\"key\": \"b\"}}],"
        " \"must_not\": [{\"key\": \"n\", \"range\": {\"gte\": 1.5}}]}" };
    *filter_out = NULL;
    *doc_out = (struct doc){ NULL, 0 };
    if (call_draw(s, 3) == 0) return;
    *doc_out = call_json(&s->arena, filters[call_draw(s, sizeof filters / sizeof filters[0])]);
    CHECK(filter_parse(*doc_out, &s->arena, filter_out, NULL) == OMEN_OK);
}

static void draw_selection(struct call_source *s, struct point_selection *out)
{
    static const char *const texts[] = { "a", "tags[]", "t.u", "\"odd.key\".x" };
    out->with_payload = call_draw(s, 2);
    out->payload_include = call_draw(s, 2);
    out->vector_mask = call_draw(s, 1u << s->schema.field_count);
    uint32_t count = call_draw(s, 4);
    if (count == 0) return;
    const struct doc_path **paths = arena_calloc(&s->arena, count, sizeof *paths);
    for (uint32_t i = 0; i < count; i++) {
        const char *text = texts[call_draw(s, 4)];
        CHECK(doc_path_parse(text, strlen(text), &s->arena, &paths[i], NULL) == OMEN_OK);
    }
    out->payload_paths = paths;
    out->payload_path_count = count;
}

void call_draw_schema(struct call_source *s)
{
    memset(&s->schema, 0, sizeof s->schema);
    s->schema.field_count = 1 + call_draw(s, 3);
    for (uint32_t f = 0; f < s->schema.field_count; f++) {
        struct vector_field *field = &s->schema.fields[f];
        snprintf(field->name, sizeof field->name, "%.*s", (int)f, "xyz");
        field->dim = 1 + call_draw(s, 9);
        field->metric = (enum metric)call_draw(s, 3);
    }
    if (call_draw(s, 2)) memcpy(s->schema.shard_key, "tenant", 7);
}

/* ---- inputs ---- */

static void draw_op(struct call_source *s, struct point_op *op)
{
    op->kind = (enum point_op_kind)(POINT_UPSERT + call_draw(s, 5));
    op->id = draw_id(s);
    op->any_key = op->kind != POINT_UPSERT && s->schema.shard_key[0] != '\0' && call_draw(s, 3) == 0;
    if (!op->any_key) op->key = draw_key(s);
    if (op->kind == POINT_UPSERT) {
        if (call_draw(s, 4)) op->payload = draw_payload(s);
        if (call_draw(s, 4) == 0) op->expires_ms = 1 + draw64(s) % OMEN_EXPIRES_MS_MAX;
        for (uint32_t f = 0; f < s->schema.field_count; f++)
            if (call_draw(s, 4)) op->vectors[f] = draw_vector(s, s->schema.fields[f].dim);
    } else if (op->kind == POINT_DELETE_PAYLOAD) {
        op->payload = call_json(&s->arena, "[\"a\", \"tags[0]\"]");
    } else if (op->kind != POINT_DELETE) {
        op->payload = draw_payload(s);
    }
}

static void draw_write(struct call_source *s, struct shard_call *call)
{
    uint32_t count = 1 + call_draw(s, 20);
    struct point_op *ops = arena_calloc(&s->arena, count, sizeof *ops);
    for (uint32_t i = 0; i < count; i++) draw_op(s, &ops[i]);
    call->in.write.ops = ops;
    call->in.write.count = count;
    call->in.write.wait = (enum write_wait)call_draw(s, 3);
    call->in.write.op_id = (struct op_id){ draw64(s), call_draw(s, 1000), draw64(s) };
    call->in.write.wait = (enum write_wait)call_draw(s, 3);
}

static void draw_searches(struct call_source *s, struct shard_call *call)
{
    uint32_t count = 1 + call_draw(s, 5);
    struct search_params *searches = arena_calloc(&s->arena, count, sizeof *searches);
    for (uint32_t i = 0; i < count; i++) {
        searches[i].field = call_draw(s, s->schema.field_count);
        searches[i].query = draw_vector(s, s->schema.fields[searches[i].field].dim);
        searches[i].k = 1 + call_draw(s, 20);
        searches[i].has_score_threshold = call_draw(s, 2);
        if (searches[i].has_score_threshold) searches[i].score_threshold = 0.25f;
        draw_filter(s, &searches[i].filter, &searches[i].filter_doc);
        draw_selection(s, &searches[i].selection);
    }
    call->in.search.searches = searches;
    call->in.search.count = count;
    call->in.search.explain = call_draw(s, 2);
}

static void draw_get(struct call_source *s, struct shard_call *call)
{
    uint32_t count = call_draw(s, 20);
    struct call_get *items = arena_calloc(&s->arena, count + 1, sizeof *items);
    for (uint32_t i = 0; i < count; i++) {
        items[i].id = draw_id(s);
        items[i].any_key = call_draw(s, 3) == 0;
        if (!items[i].any_key) items[i].key = draw_key(s);
    }
    call->in.get.items = items;
    call->in.get.count = count;
    draw_selection(s, &call->in.get.selection);
}

static void draw_scroll(struct call_source *s, struct shard_call *call)
{
    if (call_draw(s, 2)) {
        struct point_key *after = arena_alloc(&s->arena, sizeof *after);
        *after = point_key_make(draw_id(s), draw_key(s));
        call->in.scroll.after = after;
    }
    call->in.scroll.limit = 20 + call_draw(s, 100);
    draw_filter(s, &call->in.scroll.filter, &call->in.scroll.filter_doc);
    draw_selection(s, &call->in.scroll.selection);
}

static void draw_change(struct call_source *s, struct catalog_change *change)
{
    static const char *const options[] = { "{}", "{\"profile\": \"speed\"}",
        "{\"write_mode\": \"immediate_index\", \"recall_target\": 0.5, \"time_bucket_ms\": 3600000}" };
    change->kind = (enum catalog_change_kind)(CATALOG_CREATE + call_draw(s, 5));
    memcpy(change->name, "name", 5);
    if (change->kind == CATALOG_ALIAS_SET) memcpy(change->target, "target", 7);
    if (change->kind == CATALOG_SET || (change->kind == CATALOG_CREATE && call_draw(s, 2)))
        change->options = call_json(&s->arena, options[call_draw(s, 3)]);
    if (change->kind != CATALOG_CREATE) return;
    change->schema = s->schema;
    change->shard_count = 1 + call_draw(s, OMEN_SHARDS_MAX);
    change->replication = 1 + call_draw(s, OMEN_REPLICAS_MAX);
    change->recall_target = 0.5f;
}

static struct doc draw_cluster(struct call_source *s)
{
    static const char *const docs[] = { "{}", "{\"do\": \"status\"}",
        "{\"do\": \"node_add\", \"address\": \"tcp://127.0.0.1:7710\", \"labels\": \"zone=a\"}" };
    return call_json(&s->arena, docs[call_draw(s, 3)]);
}

void call_draw_inputs(struct call_source *s, enum shard_call_kind kind, struct shard_call *call_out)
{
    memset(call_out, 0, sizeof *call_out);
    call_out->kind = kind;
    call_out->shard_id = draw64(s);
    call_out->collection_id = call_draw(s, 1000);
    call_out->epoch = call_draw(s, 1000);
    call_out->incarnation = draw64(s);
    call_out->consistency = (enum consistency)call_draw(s, 3);
    call_out->token_sequence = call_draw(s, 2) ? 0 : draw64(s);
    call_out->now_ms = call_draw(s, 2) ? 0 : draw64(s);
    switch (kind) {
    case CALL_WRITE: draw_write(s, call_out); return;
    case CALL_SEARCH: draw_searches(s, call_out); return;
    case CALL_GET: draw_get(s, call_out); return;
    case CALL_SCROLL: draw_scroll(s, call_out); return;
    case CALL_COUNT: draw_filter(s, &call_out->in.count.filter, &call_out->in.count.filter_doc); return;
    case CALL_STATS: call_out->in.stats.detail = call_draw(s, 2); return;
    case CALL_CATALOG: draw_change(s, &call_out->in.catalog); return;
    case CALL_CLUSTER: call_out->in.cluster.request = draw_cluster(s); return;
    }
}

/* ---- outputs ---- */

static void draw_view(struct call_source *s, struct point_view *view)
{
    view->id = draw_id(s);
    view->key = draw_key(s);
    view->version = draw64(s);
    if (call_draw(s, 4) == 0) view->expires_ms = 1 + draw64(s) / 2;
    if (call_draw(s, 2)) view->payload = draw_payload(s);
    for (uint32_t f = 0; f < s->schema.field_count; f++)
        if (call_draw(s, 2)) view->vectors[f] = draw_vector(s, s->schema.fields[f].dim);
}

static void draw_hits(struct call_source *s, struct shard_call *call)
{
    uint32_t count = call->in.search.count;
    call->out.search.hits = arena_calloc(&s->arena, count, sizeof *call->out.search.hits);
    call->out.search.counts = arena_calloc(&s->arena, count, sizeof *call->out.search.counts);
    call->out.search.rows_scanned = draw64(s);
    if (call->in.search.explain && call_draw(s, 4) > 0) call->out.search.explain = draw_payload(s);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t n = call_draw(s, call->in.search.searches[i].k + 1);
        call->out.search.hits[i] = arena_calloc(&s->arena, n + 1, sizeof(struct hit));
        call->out.search.counts[i] = n;
        for (uint32_t j = 0; j < n; j++) {
            call->out.search.hits[i][j].score = (float)j;
            call->out.search.hits[i][j].distance = (float)j * (float)j;
            draw_view(s, &call->out.search.hits[i][j].point);
        }
    }
}

static void draw_error(struct call_source *s, struct shard_call *call)
{
    call->code = (enum omen_err)(1 + call_draw(s, OMEN_ERR_COUNT - 1));
    err_set(&call->err, call->code, call_draw(s, 2) ? "filter.must[2].key" : "", "told to fail, %u",
            call_draw(s, 9));
    if (call->code == OMEN_EBUSY) call->err.retry_after_ms = call_draw(s, 1000);
    if (call->code == OMEN_ENOTLEADER) call->leader_hint = call_draw(s, 4);
}

static void draw_stats(struct call_source *s, struct shard_stats *stats)
{
    *stats = (struct shard_stats){ .points = draw64(s),
        .applied = 2,
        .durable = 3,
        .stream_bytes = 4,
        .meta_bytes = 5,
        .unindexed = 6,
        .applied_ops = draw64(s) };
    uint32_t compared = call_draw(s, 3); /* half the replies come from a shard that nobody searched */
    for (uint32_t i = 0; i < compared; i++) recall_counts_take(&stats->recall, call_draw(s, 10), 10);
    stats->recall_boost = compared == 0 ? 0 : call_draw(s, 8);
}

void call_draw_outputs(struct call_source *s, struct shard_call *call)
{
    memset(&call->out, 0, sizeof call->out);
    call->sequence = draw64(s);
    call->engine_ns = call_draw(s, 1000000);
    call->code = OMEN_OK;
    if (call_draw(s, 4) == 0) {
        draw_error(s, call);
        return;
    }
    switch (call->kind) {
    case CALL_WRITE:
        call->out.write.affected = call_draw(s, 100);
        call->out.write.duplicate = call_draw(s, 2);
        return;
    case CALL_SEARCH: draw_hits(s, call); return;
    case CALL_GET:
    case CALL_SCROLL:
        call->out.points.count = call_draw(s, 20);
        call->out.points.more = call_draw(s, 2);
        call->out.points.points = arena_calloc(&s->arena, call->out.points.count + 1,
                sizeof(struct point_view));
        for (uint32_t i = 0; i < call->out.points.count; i++) draw_view(s, &call->out.points.points[i]);
        return;
    case CALL_COUNT: call->out.count.points = draw64(s); return;
    case CALL_STATS:
        draw_stats(s, &call->out.stats);
        if (call->in.stats.detail && call_draw(s, 4) > 0) call->out.stats.detail = draw_payload(s);
        return;
    case CALL_CATALOG: call->out.catalog.collection_id = draw64(s); return;
    case CALL_CLUSTER: call->out.cluster.reply = draw_payload(s); return;
    }
}

struct map *call_draw_map(struct call_source *s)
{
    struct map *map = mem_must_calloc(1, sizeof *map);
    atomic_init(&map->refs, 1);
    map->epoch = draw64(s);
    map->incarnation = draw64(s);
    map->collection_count = call_draw(s, 4);
    map->alias_count = call_draw(s, 4);
    if (map->collection_count > 0)
        map->collections = mem_must_calloc(map->collection_count, sizeof *map->collections);
    if (map->alias_count > 0) map->aliases = mem_must_calloc(map->alias_count, sizeof *map->aliases);
    for (uint32_t i = 0; i < map->collection_count; i++) {
        struct map_collection *c = &map->collections[i];
        c->id = draw64(s);
        snprintf(c->name, sizeof c->name, "c%u", i);
        call_draw_schema(s);
        c->schema = s->schema;
        c->recall_target = 0.9f;
        if (call_draw(s, 2)) {
            c->options.write_mode = (enum write_mode)call_draw(s, 3);
            c->options.profile = (enum options_profile)call_draw(s, 4);
            c->options.index_delay_ms = call_draw(s, 1000);
        }
        c->replication = 1 + call_draw(s, 3);
        c->created_ms = draw64(s);
        c->shard_count = 1 + call_draw(s, 5);
        c->shards = mem_must_calloc(c->shard_count, sizeof *c->shards);
        map_cut_slots(c->shards, c->shard_count);
        for (uint32_t j = 0; j < c->shard_count; j++) {
            c->shards[j].shard_id = draw64(s);
            c->shards[j].base_sequence = draw64(s);
            c->shards[j].replica_count = call_draw(s, OMEN_REPLICAS_MAX + 1);
            for (uint32_t r = 0; r < c->shards[j].replica_count; r++) {
                c->shards[j].replica_ids[r] = draw64(s);
                c->shards[j].node_ids[r] = 1 + call_draw(s, 5);
            }
        }
    }
    for (uint32_t i = 0; i < map->alias_count; i++) {
        snprintf(map->aliases[i].name, sizeof map->aliases[i].name, "a%u", i);
        map->aliases[i].collection_id = draw64(s);
    }
    return map;
}
