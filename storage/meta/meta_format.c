/* Encodings of LMDB's keys and values and of CHECKSUM; tables in meta_format.h. */
#include "common/err.h"

#include "storage/meta/meta_format.h"

#include "common/bytes.h"
#include "common/crc32c.h"

static uint32_t value_crc(const void *key, size_t key_len, const uint8_t *value, size_t len)
{
    return crc32c(crc32c(0, key, key_len), value + 4, len - 4);
}

void meta_value_seal(const void *key, size_t key_len, uint8_t *value, size_t len)
{
    store_u32(value, value_crc(key, key_len, value, len));
}

bool meta_value_good(const void *key, size_t key_len, const uint8_t *value, size_t len)
{
    return len >= 4 && load_u32(value) == value_crc(key, key_len, value, len);
}

void meta_point_key(const struct point_key *key, uint8_t out[META_POINT_KEY_BYTES])
{
    out[0] = 'p';
    point_key_encode(key, out + 1);
}

void meta_ops_key(uint64_t chunk, uint8_t out[META_OPS_KEY_BYTES])
{
    out[0] = 'o';
    store_u64_be(out + 1, chunk);
}

void meta_intent_key(struct intent_id id, uint8_t out[META_INTENT_KEY_BYTES])
{
    out[0] = 'n';
    store_u64_be(out + 1, id.sequence);
    store_u32_be(out + 9, id.part);
}

void meta_location_encode(const uint8_t key[META_POINT_KEY_BYTES], const struct meta_location *l,
        uint8_t out[META_LOCATION_BYTES])
{
    store_u32(out + 4, l->position.chunk);
    store_u32(out + 8, l->position.offset);
    store_u32(out + 12, l->op);
    store_u64(out + 16, l->version);
    meta_value_seal(key, META_POINT_KEY_BYTES, out, META_LOCATION_BYTES);
}

bool meta_location_decode(const void *key, size_t key_len, const void *value, size_t len,
        struct meta_location *l_out)
{
    const uint8_t *v = value;
    if (key_len != META_POINT_KEY_BYTES || len != META_LOCATION_BYTES) return false;
    if (!meta_value_good(key, key_len, v, len)) return false;
    *l_out = (struct meta_location){ { load_u32(v + 4), load_u32(v + 8) }, load_u32(v + 12),
        load_u64(v + 16) };
    return true;
}

void meta_state_encode(const struct meta_state *s, uint8_t out[META_STATE_BYTES])
{
    memset(out, 0, META_STATE_BYTES);
    store_u16(out + 4, META_FORMAT_VERSION);
    store_u64(out + 8, s->sequence);
    store_u64(out + 16, s->log_time_ms);
    store_u64(out + 24, s->points);
    store_u64(out + 32, s->op_first);
    store_u64(out + 40, s->op_next);
    store_u32(out + 48, s->end.position.chunk);
    store_u32(out + 52, s->end.position.offset);
    store_u32(out + 56, s->end.chain);
    meta_value_seal("s", 1, out, META_STATE_BYTES);
}

bool meta_state_decode(const void *value, size_t len, struct meta_state *s_out)
{
    const uint8_t *v = value;
    if (len != META_STATE_BYTES || !meta_value_good("s", 1, v, len)) return false;
    if (load_u16(v + 4) != META_FORMAT_VERSION) return false;
    *s_out = (struct meta_state){ load_u64(v + 8), load_u64(v + 16), load_u64(v + 24), load_u64(v + 32),
        load_u64(v + 40), { { load_u32(v + 48), load_u32(v + 52) }, load_u32(v + 56) } };
    return s_out->op_first <= s_out->op_next;
}

size_t meta_identity_encode(const struct meta_identity *identity, uint8_t out[META_IDENTITY_BYTES_MAX])
{
    const struct collection_schema *schema = identity->schema;
    memset(out, 0, META_IDENTITY_BYTES_MAX);
    store_u16(out + 4, META_FORMAT_VERSION);
    store_u16(out + 6, (uint16_t)schema->field_count);
    store_u64(out + 8, identity->shard_id);
    store_u64(out + 16, identity->replica_id);
    store_u64(out + 24, identity->base_sequence);
    uint8_t *p = out + 32;
    for (uint32_t i = 0; i < schema->field_count; i++) {
        const struct vector_field *f = &schema->fields[i];
        size_t name_len = strnlen(f->name, OMEN_NAME_BYTES_MAX);
        p[0] = (uint8_t)f->metric;
        store_u16(p + 2, (uint16_t)name_len);
        store_u32(p + 4, f->dim);
        memcpy(p + 8, f->name, name_len);
        p += 8 + name_len;
    }
    size_t path_len = strnlen(schema->shard_key, DOC_PATH_BYTES_MAX);
    store_u16(p, (uint16_t)path_len);
    memcpy(p + 2, schema->shard_key, path_len);
    p += 2 + path_len;
    meta_value_seal("i", 1, out, (size_t)(p - out));
    return (size_t)(p - out);
}

void meta_checksum_encode(uint64_t size, uint32_t crc, uint8_t out[META_CHECKSUM_BYTES])
{
    memset(out, 0, META_CHECKSUM_BYTES);
    memcpy(out, "OMCK", 4);
    store_u16(out + 4, META_FORMAT_VERSION);
    store_u64(out + 8, size);
    store_u32(out + 16, crc);
    store_u32(out + 28, crc32c(0, out, 28));
}

bool meta_checksum_decode(const uint8_t *in, size_t len, uint64_t *size_out, uint32_t *crc_out)
{
    if (len != META_CHECKSUM_BYTES || memcmp(in, "OMCK", 4) != 0) return false;
    if (load_u32(in + 28) != crc32c(0, in, 28) || load_u16(in + 4) != META_FORMAT_VERSION) return false;
    *size_out = load_u64(in + 8);
    *crc_out = load_u32(in + 16);
    return true;
}
