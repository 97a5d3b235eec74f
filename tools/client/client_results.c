/* Replies as omen_results: one block, one arena that owns all they point to.
 * Threads: one owner. */
#include <stdio.h>
#include <string.h>

#include "common/json.h"
#include "tools/client/client_impl.h"

struct results_block {
    struct arena arena;
    size_t count;
    omen_results results[]; /* [count]; users hold the address of the first */
};

static enum omen_err no_memory(struct err *err)
{
    return err_set(err, OMEN_ENOMEM, NULL, "no memory for the results");
}

enum omen_err results_new(size_t count, omen_results **results_out, struct arena **arena_out, struct err *err)
{
    struct results_block *block = mem_calloc(1, sizeof *block + count * sizeof block->results[0]);
    if (block == NULL) return no_memory(err);
    arena_init(&block->arena, 4096, CLIENT_REPLY_BYTES_MAX);
    block->count = count;
    *results_out = block->results;
    *arena_out = &block->arena;
    return OMEN_OK;
}

void omen_results_free(omen_results *results)
{
    if (results == NULL) return;
    char *start = (char *)results - offsetof(struct results_block, results);
    struct results_block *block = (struct results_block *)(void *)start;
    arena_fini(&block->arena);
    mem_free(block);
}

static const char *keep_text(struct scratch *s, struct arena *arena)
{
    if (s->text.failed) return NULL;
    return arena_strdup(arena, (const char *)s->text.data, s->text.len);
}

static const char *doc_text(struct doc doc, struct scratch *s, struct arena *arena)
{
    buf_clear(&s->text);
    json_write(doc, &s->text);
    return keep_text(s, arena);
}

enum omen_err results_doc_text(struct doc doc, struct arena *arena, struct scratch *s, const char **text_out,
        struct err *err)
{
    *text_out = doc_text(doc, s, arena);
    return *text_out == NULL ? no_memory(err) : OMEN_OK;
}

/* Canonical bytes (common/query/point.h) as a JSON value. They come from a reply: lengths are checked. */
static enum omen_err key_text(struct bytes key, struct scratch *s, struct arena *arena, const char **text_out,
        struct err *err)
{
    buf_clear(&s->text);
    uint8_t tag = key.data[0];
    if (tag == 1 && utf8_valid(key.data + 1, key.len - 1))
        json_write_string((struct bytes){ key.data + 1, key.len - 1 }, &s->text);
    else if (tag == 2 && key.len == 2)
        buf_printf(&s->text, "%s", key.data[1] != 0 ? "true" : "false");
    else if (tag == 3 && key.len == 9)
        buf_printf(&s->text, "%lld", (long long)load_u64_be(key.data + 1));
    else
        return err_set(err, OMEN_EPROTO, "shard_key", "shard key in the reply is none (tag %u)", tag);
    *text_out = keep_text(s, arena);
    return *text_out == NULL ? no_memory(err) : OMEN_OK;
}

static void set_id(point_id id, omen_id *out)
{
    *out = (omen_id){ .is_uuid = id.kind == POINT_ID_UUID };
    if (!out->is_uuid) {
        out->number = id.lo;
        return;
    }
    store_u64_be(out->uuid, id.hi);
    store_u64_be(out->uuid + 8, id.lo);
}

static enum omen_err set_vectors(omen_point *point, const struct point_view *view,
        const struct collection_schema *schema, struct arena *arena, struct err *err)
{
    uint32_t field_count = schema == NULL ? 0 : schema->field_count;
    omen_vectors vectors[OMEN_VECTOR_FIELDS_MAX];
    for (uint32_t i = 0; i < field_count && i < OMEN_VECTOR_FIELDS_MAX; i++) {
        if (view->vectors[i] == NULL) continue;
        vectors[point->vector_count++] = (omen_vectors){ schema->fields[i].name, view->vectors[i],
            schema->fields[i].dim };
    }
    if (point->vector_count == 0) return OMEN_OK;
    point->vectors = arena_copy(arena, vectors, point->vector_count * sizeof vectors[0]);
    return point->vectors == NULL ? no_memory(err) : OMEN_OK;
}

static enum omen_err set_point(omen_point *point, const struct point_view *view,
        const struct collection_schema *schema, struct arena *arena, struct scratch *s, struct err *err)
{
    set_id(view->id, &point->id);
    point->version = view->version;
    point->expires_ms = view->expires_ms;
    if (view->key.canonical.len > 0) {
        enum omen_err rc = key_text(view->key.canonical, s, arena, &point->shard_key_json, err);
        if (rc != OMEN_OK) return rc;
    }
    if (view->payload.data != NULL) {
        point->payload_json = doc_text(view->payload, s, arena);
        if (point->payload_json == NULL) return no_memory(err);
    }
    return set_vectors(point, view, schema, arena, err);
}

static enum omen_err points_new(omen_results *result, struct arena *arena, uint32_t count, struct err *err)
{
    result->count = count;
    result->points = arena_calloc(arena, count == 0 ? 1 : count, sizeof *result->points);
    return result->points == NULL ? no_memory(err) : OMEN_OK;
}

enum omen_err results_set_points(omen_results *result, struct arena *arena, struct scratch *s,
        const struct collection_schema *schema, const struct point_view *points, uint32_t count,
        struct err *err)
{
    enum omen_err rc = points_new(result, arena, count, err);
    for (uint32_t i = 0; rc == OMEN_OK && i < count; i++)
        rc = set_point(&result->points[i], &points[i], schema, arena, s, err);
    return rc;
}

enum omen_err results_set_hits(omen_results *result, struct arena *arena, struct scratch *s,
        const struct collection_schema *schema, const struct wire_search_result *hits, struct err *err)
{
    enum omen_err rc = points_new(result, arena, hits->count, err);
    for (uint32_t i = 0; rc == OMEN_OK && i < hits->count; i++) {
        result->points[i].score = hits->hits[i].score;
        rc = set_point(&result->points[i], &hits->hits[i].point, schema, arena, s, err);
    }
    return rc;
}
