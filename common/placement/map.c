/* The map of collections, shards and replicas: immutable snapshots, looked up by name, id and slot; and the
 * rules for names and schemas, which every room that lets one in must ask here.
 * Threads: any number of readers on one map; refs is atomic, all else is written before the map is shared. */
#include "common/placement/map.h"

#include <stdio.h>
#include <string.h>

#include "common/check.h"
#include "common/mem.h"

/* ---- life -------------------------------------------------------------------------------------------- */

static void map_free(struct map *map)
{
    for (uint32_t i = 0; map->collections != NULL && i < map->collection_count; i++)
        mem_free(map->collections[i].shards);
    mem_free(map->collections);
    mem_free(map->aliases);
    mem_free(map);
}

struct map *map_ref(struct map *map)
{
    uint32_t before = atomic_fetch_add_explicit(&map->refs, 1, memory_order_relaxed);
    CHECK(before > 0);
    return map;
}

void map_unref(struct map *map)
{
    if (map == NULL) return;
    uint32_t before = atomic_fetch_sub_explicit(&map->refs, 1, memory_order_acq_rel);
    CHECK(before > 0);
    if (before == 1) map_free(map);
}

/* A copy of [count] items; NULL with *failed set when out of memory, plain NULL for none. */
static void *copy_items(const void *items, size_t count, size_t item_bytes, bool *failed)
{
    if (count == 0) return NULL;
    void *copy = mem_alloc(count * item_bytes);
    if (copy != NULL)
        memcpy(copy, items, count * item_bytes);
    else
        *failed = true;
    return copy;
}

struct map *map_clone(const struct map *map)
{
    struct map *copy = mem_calloc(1, sizeof *copy);
    if (copy == NULL) return NULL;
    bool failed = false;
    copy->epoch = map->epoch;
    copy->incarnation = map->incarnation;
    atomic_init(&copy->refs, 1);
    copy->alias_count = map->alias_count;
    copy->aliases = copy_items(map->aliases, map->alias_count, sizeof *map->aliases, &failed);
    copy->collections = copy_items(map->collections, map->collection_count, sizeof *map->collections,
            &failed);
    copy->collection_count = copy->collections == NULL ? 0 : map->collection_count;
    for (uint32_t i = 0; i < copy->collection_count; i++) {
        struct map_collection *c = &copy->collections[i];
        c->shards = copy_items(map->collections[i].shards, c->shard_count, sizeof *c->shards, &failed);
    }
    if (!failed) return copy;
    map_free(copy);
    return NULL;
}

/* ---- lookup ------------------------------------------------------------------------------------------ */

/* Order of a name given by bytes against a stored one: by bytes, a prefix first, as strcmp has it. */
static int name_compare(const char *name, size_t len, const char *stored)
{
    size_t stored_len = strlen(stored);
    size_t n = len < stored_len ? len : stored_len;
    int order = n == 0 ? 0 : memcmp(name, stored, n);
    return order != 0 ? order : (len > stored_len) - (len < stored_len);
}

const struct map_collection *map_find(const struct map *map, const char *name, size_t len)
{
    uint32_t low = 0, high = map->collection_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        int order = name_compare(name, len, map->collections[middle].name);
        if (order == 0) return &map->collections[middle];
        if (order > 0)
            low = middle + 1;
        else
            high = middle;
    }
    low = 0;
    high = map->alias_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        int order = name_compare(name, len, map->aliases[middle].name);
        if (order == 0) return map_find_id(map, map->aliases[middle].collection_id);
        if (order > 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

const struct map_collection *map_find_id(const struct map *map, uint64_t collection_id)
{
    for (uint32_t i = 0; i < map->collection_count; i++)
        if (map->collections[i].id == collection_id) return &map->collections[i];
    return NULL;
}

const struct map_shard *map_shard_of_slot(const struct map_collection *collection, uint32_t slot)
{
    CHECK(slot < OMEN_SLOT_COUNT);
    uint32_t low = 0, high = collection->shard_count; /* the first shard that begins after the slot */
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (collection->shards[middle].slot_first > slot)
            high = middle;
        else
            low = middle + 1;
    }
    CHECK(low > 0);
    const struct map_shard *shard = &collection->shards[low - 1];
    CHECK(slot - shard->slot_first < shard->slot_count); /* the ranges leave no gap */
    return shard;
}

void map_cut_slots(struct map_shard *shards, uint32_t shard_count)
{
    CHECK(shard_count >= 1 && shard_count <= OMEN_SHARDS_MAX);
    for (uint32_t i = 0; i < shard_count; i++) {
        shards[i].slot_first = i * OMEN_SLOT_COUNT / shard_count;
        shards[i].slot_count = (i + 1) * OMEN_SLOT_COUNT / shard_count - shards[i].slot_first;
    }
}

/* ---- rules ------------------------------------------------------------------------------------------- */

static bool name_may_hold(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
            c == '.' || c == '-';
}

enum omen_err map_check_name(const char *name, size_t len, const char *field, struct err *err)
{
    if (len == 0) return err_set(err, OMEN_EINVAL, field, "a name must not be empty");
    if (len > OMEN_NAME_BYTES_MAX)
        return err_set(err, OMEN_ETOOBIG, field, "a name has at most %d characters, not %zu",
                OMEN_NAME_BYTES_MAX, len);
    if (name[0] == '.') return err_set(err, OMEN_EINVAL, field, "a name must not begin with a dot");
    for (size_t i = 0; i < len; i++)
        if (!name_may_hold(name[i]))
            return err_set(err, OMEN_EINVAL, field,
                    "a name consists of letters, digits, _, . and -; byte %zu is none of them", i);
    return OMEN_OK;
}

static enum omen_err check_field(const struct collection_schema *schema, uint32_t i, struct err *err)
{
    const struct vector_field *f = &schema->fields[i];
    size_t len = strnlen(f->name, sizeof f->name);
    if (len > 0) { /* "" is the unnamed field */
        enum omen_err rc = map_check_name(f->name, len, "name", err);
        if (rc != OMEN_OK) return rc;
    }
    for (uint32_t j = 0; j < i; j++)
        if (strcmp(schema->fields[j].name, f->name) == 0)
            return err_set(err, OMEN_EINVAL, "name", "vectors[%u] has the same name", j);
    if (f->dim == 0) return err_set(err, OMEN_EINVAL, "dim", "must be at least 1");
    if (f->dim > OMEN_DIM_MAX)
        return err_set(err, OMEN_ETOOBIG, "dim", "must be at most %d, got %u", OMEN_DIM_MAX, f->dim);
    if ((unsigned)f->metric > METRIC_COSINE)
        return err_set(err, OMEN_EINVAL, "metric", "must be l2, ip or cosine");
    return OMEN_OK;
}

static enum omen_err check_shard_key(const struct collection_schema *schema, struct err *err)
{
    size_t len = strnlen(schema->shard_key, sizeof schema->shard_key);
    if (len == 0) return OMEN_OK;
    struct arena arena;
    arena_init(&arena, 1024, 0); /* a path is bounded by DOC_PATH_BYTES_MAX */
    const struct doc_path *path;
    enum omen_err rc = doc_path_parse(schema->shard_key, len, &arena, &path, err);
    if (rc != OMEN_OK)
        err_prefix(err, "shard_key");
    else if (doc_path_has_arrays(path))
        rc = err_set(err, OMEN_EINVAL, "shard_key", "a shard key is one value, so its path must not use []");
    arena_fini(&arena);
    return rc;
}

enum omen_err map_check_schema(const struct collection_schema *schema, struct err *err)
{
    if (schema->field_count == 0)
        return err_set(err, OMEN_EINVAL, "vectors", "at least one vector field is needed");
    if (schema->field_count > OMEN_VECTOR_FIELDS_MAX)
        return err_set(err, OMEN_ETOOBIG, "vectors", "at most %d vector fields are possible, got %u",
                OMEN_VECTOR_FIELDS_MAX, schema->field_count);
    for (uint32_t i = 0; i < schema->field_count; i++) {
        enum omen_err rc = check_field(schema, i, err);
        if (rc == OMEN_OK) continue;
        char prefix[24];
        snprintf(prefix, sizeof prefix, "vectors[%u]", i);
        err_prefix(err, prefix);
        return rc;
    }
    return check_shard_key(schema, err);
}
