/* Catalog entries and the catalog file, both little-endian, read by one bounds-checked cursor.
 *
 * Entry v1: 0 magic "OMCC" | 4 u16 version | 6 u16 kind | 8 u32 total_bytes | 12 u32 crc32c of the rest |
 *   16 u64 log_time_ms | 24 u32 shard_count | 28 u32 replication | 32 f32 recall_target | 36 u32 node_count |
 *   40 node_count x u32 node id, name, name (target), schema, zeros to a multiple of 8
 * File v1:  0 magic "OMCT" | 4 u16 version | 6 u16 zero | 8 u64 total_bytes | 16 u32 crc32c of the rest | 20 u32 zero |
 *   24 u64 sequence | 32 u64 epoch | 40 u64 incarnation | 48 u64 next_collection | 56 u64 next_group |
 *   64 u64 next_replica | 72 u32 collection_count | 76 u32 alias_count | 80 collections, aliases
 *   collection: u64 id, u64 created_ms, f32 recall_target, u32 replication, name, schema, u32 shard_count, shards
 *   shard: u64 id, u64 base_sequence, u32 slot_first, u32 slot_count, u32 replica_count, count x {u64 replica, u32 node}
 *   alias: name, u64 collection id
 *   name: u16 len, bytes.   schema: u16 len + shard key path, u32 field_count, count x {name, u32 dim, u32 metric} */
#include "common/err.h"

#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/crc32c.h"
#include "node/catalog/catalog_format.h"

#define ENTRY_MAGIC 0x43434d4fu /* "OMCC" */
#define ENTRY_HEADER 40u
#define FILE_MAGIC 0x54434d4fu /* "OMCT" */
#define FILE_HEADER 80u
#define FORMAT_VERSION 1

/* Of everything but the checksum itself. */
static uint32_t crc_around(const uint8_t *data, size_t len, size_t crc_at)
{
    return crc32c(crc32c(0, data, crc_at), data + crc_at + 4, len - crc_at - 4);
}

/* ---- writing ---- */

static void put_u16(struct buf *b, uint16_t v) { buf_append(b, &v, sizeof v); }
static void put_u32(struct buf *b, uint32_t v) { buf_append(b, &v, sizeof v); }
static void put_u64(struct buf *b, uint64_t v) { buf_append(b, &v, sizeof v); }
static void put_f32(struct buf *b, float v) { buf_append(b, &v, sizeof v); }

static void put_text(struct buf *b, const char *text)
{
    size_t len = strlen(text);
    CHECK(len <= UINT16_MAX);
    put_u16(b, (uint16_t)len);
    buf_append(b, text, len);
}

static void put_schema(struct buf *b, const struct collection_schema *schema)
{
    put_text(b, schema->shard_key);
    put_u32(b, schema->field_count);
    for (uint32_t i = 0; i < schema->field_count; i++) {
        put_text(b, schema->fields[i].name);
        put_u32(b, schema->fields[i].dim);
        put_u32(b, (uint32_t)schema->fields[i].metric);
    }
}

enum omen_err catalog_entry_encode(const struct catalog_change *change, uint64_t log_time_ms,
        const uint32_t *node_ids, uint32_t node_count, uint8_t **entry_out, uint32_t *len_out)
{
    CHECK(node_count <= CATALOG_REPLICATION_MAX);
    struct buf b;
    buf_init(&b);
    put_u32(&b, ENTRY_MAGIC);
    put_u16(&b, FORMAT_VERSION);
    put_u16(&b, (uint16_t)change->kind);
    put_u64(&b, 0); /* total and crc, below */
    put_u64(&b, log_time_ms);
    put_u32(&b, change->shard_count);
    put_u32(&b, change->replication);
    put_f32(&b, change->recall_target);
    put_u32(&b, node_count);
    for (uint32_t i = 0; i < node_count; i++) put_u32(&b, node_ids[i]);
    put_text(&b, change->name);
    put_text(&b, change->target);
    put_schema(&b, &change->schema);
    buf_append_zero(&b, align_up(b.len, 8) - b.len);
    if (b.failed) {
        buf_fini(&b);
        return OMEN_ENOMEM;
    }
    CHECK(b.len <= CATALOG_ENTRY_BYTES_MAX);
    store_u32(b.data + 8, (uint32_t)b.len);
    store_u32(b.data + 12, crc_around(b.data, b.len, 12));
    *len_out = (uint32_t)b.len;
    *entry_out = b.data; /* buf memory is mem_free's */
    return OMEN_OK;
}

static void put_collection(struct buf *b, const struct map_collection *c)
{
    put_u64(b, c->id);
    put_u64(b, c->created_ms);
    put_f32(b, c->recall_target);
    put_u32(b, c->replication);
    put_text(b, c->name);
    put_schema(b, &c->schema);
    put_u32(b, c->shard_count);
    for (uint32_t i = 0; i < c->shard_count; i++) {
        const struct map_shard *s = &c->shards[i];
        put_u64(b, s->shard_id);
        put_u64(b, s->base_sequence);
        put_u32(b, s->slot_first);
        put_u32(b, s->slot_count);
        put_u32(b, s->replica_count);
        for (uint32_t r = 0; r < s->replica_count; r++) {
            put_u64(b, s->replica_ids[r]);
            put_u32(b, s->node_ids[r]);
        }
    }
}

void catalog_state_encode(const struct catalog_state *state, struct buf *out)
{
    const struct map *map = state->map;
    put_u32(out, FILE_MAGIC);
    put_u16(out, FORMAT_VERSION);
    put_u16(out, 0);
    put_u64(out, 0); /* total, below */
    put_u64(out, 0); /* crc, zero */
    put_u64(out, state->sequence);
    put_u64(out, map->epoch);
    put_u64(out, map->incarnation);
    put_u64(out, state->next_collection);
    put_u64(out, state->next_group);
    put_u64(out, state->next_replica);
    put_u32(out, map->collection_count);
    put_u32(out, map->alias_count);
    for (uint32_t i = 0; i < map->collection_count; i++) put_collection(out, &map->collections[i]);
    for (uint32_t i = 0; i < map->alias_count; i++) {
        put_text(out, map->aliases[i].name);
        put_u64(out, map->aliases[i].collection_id);
    }
    if (out->failed) return;
    store_u64(out->data + 8, out->len);
    store_u32(out->data + 16, crc_around(out->data, out->len, 16));
}

/* ---- reading ---- */

/* `failed` sticks; reads past it give zeros. */
struct reader {
    const uint8_t *data;
    size_t len, at;
    bool failed;
};

static const uint8_t *take(struct reader *in, size_t n)
{
    static const uint8_t zeros[8];
    if (in->failed || !range_fits(in->at, n, in->len)) {
        in->failed = true;
        return zeros;
    }
    in->at += n;
    return in->data + in->at - n;
}

static uint16_t take_u16(struct reader *in) { return load_u16(take(in, 2)); }
static uint32_t take_u32(struct reader *in) { return load_u32(take(in, 4)); }
static uint64_t take_u64(struct reader *in) { return load_u64(take(in, 8)); }

static float take_f32(struct reader *in)
{
    float v;
    memcpy(&v, take(in, 4), sizeof v);
    return v;
}

/* `out` [bytes_max + 1], NUL-terminated. */
static void take_text(struct reader *in, char *out, size_t bytes_max)
{
    size_t len = take_u16(in);
    out[0] = '\0';
    if (len > bytes_max) in->failed = true;
    const uint8_t *text = take(in, in->failed ? 0 : len);
    if (in->failed) return;
    if (memchr(text, 0, len) != NULL) in->failed = true;
    memcpy(out, text, len);
    out[len] = '\0';
}

static void take_schema(struct reader *in, struct collection_schema *schema)
{
    take_text(in, schema->shard_key, DOC_PATH_BYTES_MAX);
    uint32_t count = take_u32(in);
    if (count > OMEN_VECTOR_FIELDS_MAX) {
        in->failed = true;
        return;
    }
    schema->field_count = count;
    for (uint32_t i = 0; i < count; i++) {
        take_text(in, schema->fields[i].name, OMEN_NAME_BYTES_MAX);
        schema->fields[i].dim = take_u32(in);
        uint32_t metric = take_u32(in);
        if (metric > METRIC_COSINE) in->failed = true;
        schema->fields[i].metric = in->failed ? METRIC_L2 : (enum metric)metric;
    }
}

enum omen_err catalog_entry_decode(const void *bytes, size_t len, struct catalog_entry *entry_out,
        struct err *err)
{
    const uint8_t *data = bytes;
    memset(entry_out, 0, sizeof *entry_out);
    if (len < ENTRY_HEADER || len > CATALOG_ENTRY_BYTES_MAX || load_u32(data) != ENTRY_MAGIC ||
            load_u16(data + 4) != FORMAT_VERSION || load_u32(data + 8) != len) {
        return err_set(err, OMEN_ECORRUPT, "", "catalog entry: wrong magic, version or length");
    }
    if (load_u32(data + 12) != crc_around(data, len, 12)) {
        return err_set(err, OMEN_ECORRUPT, "", "catalog entry: wrong checksum");
    }
    struct reader in = { .data = data, .len = len, .at = 16 };
    struct catalog_change *change = &entry_out->change;
    change->kind = (enum catalog_change_kind)load_u16(data + 6);
    entry_out->log_time_ms = take_u64(&in);
    change->shard_count = take_u32(&in);
    change->replication = take_u32(&in);
    change->recall_target = take_f32(&in);
    uint32_t nodes = take_u32(&in);
    if (nodes > CATALOG_REPLICATION_MAX) in.failed = true;
    for (uint32_t i = 0; !in.failed && i < nodes; i++) entry_out->node_ids[i] = take_u32(&in);
    entry_out->node_count = in.failed ? 0 : nodes;
    take_text(&in, change->name, OMEN_NAME_BYTES_MAX);
    take_text(&in, change->target, OMEN_NAME_BYTES_MAX);
    take_schema(&in, &change->schema);
    if (in.failed || align_up(in.at, 8) != len) {
        return err_set(err, OMEN_ECORRUPT, "", "catalog entry: fields run past its end");
    }
    return OMEN_OK;
}

static void take_shard(struct reader *in, struct map_shard *s)
{
    s->shard_id = take_u64(in);
    s->base_sequence = take_u64(in);
    s->slot_first = take_u32(in);
    s->slot_count = take_u32(in);
    uint32_t count = take_u32(in);
    if (count > CATALOG_REPLICATION_MAX) in->failed = true;
    for (uint32_t r = 0; !in->failed && r < count; r++) {
        s->replica_ids[r] = take_u64(in);
        s->node_ids[r] = take_u32(in);
        s->replica_count = r + 1;
    }
}

static enum omen_err take_collection(struct reader *in, struct map_collection *c)
{
    c->id = take_u64(in);
    c->created_ms = take_u64(in);
    c->recall_target = take_f32(in);
    c->replication = take_u32(in);
    take_text(in, c->name, OMEN_NAME_BYTES_MAX);
    take_schema(in, &c->schema);
    uint32_t count = take_u32(in);
    if (count == 0 || count > OMEN_SHARDS_MAX) in->failed = true;
    if (in->failed) return OMEN_OK; /* reported once, by the caller */
    c->shards = mem_calloc(count, sizeof *c->shards);
    if (c->shards == NULL) return OMEN_ENOMEM;
    c->shard_count = count;
    uint32_t slot = 0;
    for (uint32_t i = 0; i < count; i++) {
        take_shard(in, &c->shards[i]);
        if (c->shards[i].slot_first != slot || c->shards[i].slot_count > OMEN_SLOT_COUNT) in->failed = true;
        slot += c->shards[i].slot_count;
    }
    if (slot != OMEN_SLOT_COUNT) in->failed = true;
    return OMEN_OK;
}

static enum omen_err take_map(struct reader *in, struct map *map)
{
    uint32_t collections = take_u32(in), aliases = take_u32(in);
    if (collections > OMEN_COLLECTIONS_MAX || aliases > OMEN_ALIASES_MAX) {
        in->failed = true;
        return OMEN_OK;
    }
    map->collections = mem_calloc((size_t)collections + 1, sizeof *map->collections);
    map->aliases = mem_calloc((size_t)aliases + 1, sizeof *map->aliases);
    if (map->collections == NULL || map->aliases == NULL) return OMEN_ENOMEM;
    for (uint32_t i = 0; !in->failed && i < collections; i++) {
        map->collection_count = i + 1;
        if (take_collection(in, &map->collections[i]) != OMEN_OK) return OMEN_ENOMEM;
        if (i > 0 && strcmp(map->collections[i - 1].name, map->collections[i].name) >= 0) in->failed = true;
    }
    for (uint32_t i = 0; !in->failed && i < aliases; i++) {
        take_text(in, map->aliases[i].name, OMEN_NAME_BYTES_MAX);
        map->aliases[i].collection_id = take_u64(in);
        map->alias_count = i + 1;
        if (map_find_id(map, map->aliases[i].collection_id) == NULL) in->failed = true;
    }
    return OMEN_OK;
}

enum omen_err catalog_state_decode(const uint8_t *bytes, size_t len, const char *path,
        struct catalog_state *state_out, struct err *err)
{
    if (len < FILE_HEADER || load_u32(bytes) != FILE_MAGIC) return err_corrupt(err, path, 0, "wrong magic");
    if (load_u16(bytes + 4) != FORMAT_VERSION) {
        return err_set(err, OMEN_EVERSION, "", "%s: format version %u, this program knows %d", path,
                load_u16(bytes + 4), FORMAT_VERSION);
    }
    if (load_u64(bytes + 8) != len) return err_corrupt(err, path, 8, "wrong length");
    if (load_u32(bytes + 16) != crc_around(bytes, len, 16))
        return err_corrupt(err, path, 16, "wrong checksum");
    struct map *map = mem_calloc(1, sizeof *map);
    if (map == NULL) return err_set(err, OMEN_ENOMEM, "", "no memory for the catalog");
    atomic_init(&map->refs, 1);
    struct reader in = { .data = bytes, .len = len, .at = 24 };
    struct catalog_state state = { .map = map };
    state.sequence = take_u64(&in);
    map->epoch = take_u64(&in);
    map->incarnation = take_u64(&in);
    state.next_collection = take_u64(&in);
    state.next_group = take_u64(&in);
    state.next_replica = take_u64(&in);
    enum omen_err rc = take_map(&in, map);
    if (rc == OMEN_OK && (in.failed || in.at != len))
        rc = err_corrupt(err, path, in.at, "fields do not fit together");
    if (rc == OMEN_ENOMEM) err_set(err, rc, "", "no memory for the catalog");
    if (rc != OMEN_OK) {
        map_unref(map);
        return rc;
    }
    *state_out = state;
    return OMEN_OK;
}
