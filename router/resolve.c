/* Names to things: collection, vector fields, selection, tokens, shard keys, and the shards a filter leaves.
 * Errors name the field as the client wrote it. */
#include "common/err.h"

#include <stdio.h>
#include <string.h>

#include "router/request.h"

enum omen_err resolve_collection(struct request *r, struct err *err)
{
    const struct shard_service *service = r->router->options.service;
    r->map = service->map_acquire(service->self);
    if (r->map == NULL) {
        r->stale = true;
        return err_set(err, OMEN_EUNAVAILABLE, "", "the collections are not known yet");
    }
    struct bytes name = r->wire.collection;
    r->collection = map_find(r->map, (const char *)name.data, name.len);
    if (r->collection == NULL) {
        r->stale = true;
        return err_set(err, OMEN_ENOTFOUND, "collection", "no collection or alias \"%.*s\"", (int)name.len,
                (const char *)name.data);
    }
    const struct collection_schema *schema = &r->collection->schema;
    r->reply.schema = schema;
    if (schema->shard_key[0] != '\0') {
        enum omen_err rc = doc_path_parse(schema->shard_key, strlen(schema->shard_key), &r->arena,
                &r->shard_key_path, err);
        if (rc != OMEN_OK) return rc;
    }
    return resolve_tokens(r, err);
}

/* Names of a schema's fields for an error sentence. */
static void field_names(const struct collection_schema *schema, char *out, size_t out_bytes)
{
    size_t at = 0;
    out[0] = '\0';
    for (uint32_t i = 0; i < schema->field_count && at < out_bytes; i++) {
        int n = snprintf(out + at, out_bytes - at, "%s\"%s\"", i == 0 ? "" : ", ", schema->fields[i].name);
        if (n < 0) return;
        at += (size_t)n;
    }
}

enum omen_err resolve_field(const struct collection_schema *schema, struct bytes name, const char *where,
        uint32_t *field_out, struct err *err)
{
    for (uint32_t i = 0; i < schema->field_count; i++) {
        const char *field = schema->fields[i].name;
        if (strlen(field) == name.len && memcmp(field, name.data, name.len) == 0) {
            *field_out = i;
            return OMEN_OK;
        }
    }
    char names[200];
    field_names(schema, names, sizeof names);
    return err_set(err, OMEN_EINVAL, where, "the collection has no vector field \"%.*s\"; it has %s",
            (int)name.len, (const char *)name.data, names);
}

enum omen_err resolve_selection(const struct collection_schema *schema, const struct wire_selection *wire,
        const char *where, struct point_selection *selection_out, struct err *err)
{
    *selection_out = (struct point_selection){
        .with_payload = wire->with_payload,
        .payload_include = wire->payload_include,
        .payload_paths = wire->payload_paths,
        .payload_path_count = wire->payload_path_count,
        .vector_mask = wire->with_all_vectors ? (1u << schema->field_count) - 1 : 0,
    };
    for (uint32_t i = 0; i < wire->vector_field_count; i++) {
        char field_where[ERR_FIELD_BYTES];
        snprintf(field_where, sizeof field_where, "%.60s[%u]", where, i);
        uint32_t field;
        enum omen_err rc = resolve_field(schema, wire->vector_fields[i], field_where, &field, err);
        if (rc != OMEN_OK) return rc;
        selection_out->vector_mask |= 1u << field;
    }
    return OMEN_OK;
}

enum omen_err resolve_tokens(struct request *r, struct err *err)
{
    if (r->wire.consistency == CONSISTENCY_EVENTUAL) return OMEN_OK;
    for (uint32_t i = 0; i < r->wire.token_count; i++) {
        if (r->wire.tokens[i].incarnation == r->map->incarnation) continue;
        r->stale = true;
        char where[ERR_FIELD_BYTES];
        snprintf(where, sizeof where, "tokens[%u].incarnation", i);
        return err_set(err, OMEN_EINVAL, where,
                "the token is of another incarnation of this database (restored or "
                "created anew since): forget the tokens held");
    }
    return OMEN_OK;
}

uint64_t token_sequence_of(const struct request *r, uint64_t shard_id)
{
    uint64_t sequence = 0;
    for (uint32_t i = 0; i < r->wire.token_count; i++) {
        const struct token *token = &r->wire.tokens[i];
        if (token->shard == shard_id && token->sequence > sequence) sequence = token->sequence;
    }
    return sequence;
}

enum omen_err resolve_key(struct request *r, struct doc key, const char *list, const char *member,
        uint32_t row, struct shard_key *key_out, bool *any_key_out, struct err *err)
{
    *key_out = (struct shard_key){ { NULL, 0 } };
    *any_key_out = false;
    bool given = key.data != NULL && doc_type(key) != DOC_NULL;
    if (!given) {
        *any_key_out = r->shard_key_path != NULL;
        return OMEN_OK;
    }
    char where[ERR_FIELD_BYTES];
    snprintf(where, sizeof where, "%s[%u]%s%s", list, row, member == NULL ? "" : ".",
            member == NULL ? "" : member);
    if (r->shard_key_path == NULL) return err_set(err, OMEN_EINVAL, where, "the collection has no shard key");
    return shard_key_from_doc(key, where, &r->arena, key_out, err);
}

enum omen_err resolve_filter_shards(struct request *r, const struct filter *filter, uint8_t **shards_out,
        struct err *err)
{
    const struct map_collection *collection = r->collection;
    uint8_t *shards = arena_calloc(&r->arena, collection->shard_count, 1);
    if (shards == NULL) return err_set(err, OMEN_ENOMEM, "", "the request needs too much memory");
    *shards_out = shards;
    const struct doc *values = NULL;
    uint32_t count = 0;
    bool confined = filter != NULL && r->shard_key_path != NULL &&
            filter_values_of_path(filter, collection->schema.shard_key, &r->arena, &values, &count);
    if (!confined) {
        memset(shards, 1, collection->shard_count);
        return OMEN_OK;
    }
    for (uint32_t i = 0; i < count; i++) {
        struct shard_key key;
        /* A value that no shard key can have is held by no point. */
        if (shard_key_from_doc(values[i], "filter", &r->arena, &key, NULL) != OMEN_OK) continue;
        const struct map_shard *shard = map_shard_of_slot(collection, point_slot((point_id){ 0, 0, 0 }, key));
        shards[shard - collection->shards] = 1;
    }
    return OMEN_OK;
}
