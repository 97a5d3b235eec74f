/* Keys and values in data.mdb, and the CHECKSUM file. storage/FORMAT.md has the tables. Private to storage/meta. */
#ifndef OMEN_STORAGE_META_FORMAT_H
#define OMEN_STORAGE_META_FORMAT_H

#include "storage/meta/meta.h"

#define META_FORMAT_VERSION 1
#define META_POINT_KEY_BYTES (1 + POINT_KEY_BYTES)
#define META_OPS_KEY_BYTES 9u
#define META_INTENT_KEY_BYTES 13u
#define META_LOCATION_BYTES 24u
#define META_STATE_BYTES 64u
#define META_OPS_HEAD_BYTES 16u
#define META_OPS_BYTES_MAX (META_OPS_HEAD_BYTES + OP_CHUNK_RECORDS * OP_RECORD_BYTES)
#define META_IDENTITY_BYTES_MAX                                                                              \
    (48u + OMEN_VECTOR_FIELDS_MAX * (OMEN_NAME_BYTES_MAX + 8u) + 4u + DOC_PATH_BYTES_MAX)
#define META_CHECKSUM_BYTES 32u

/* Every value begins with u32 crc32c over key bytes and the value's bytes from 4 on. */
void meta_value_seal(const void *key, size_t key_len, uint8_t *value, size_t len);
bool meta_value_good(const void *key, size_t key_len, const uint8_t *value, size_t len);

void meta_point_key(const struct point_key *key, uint8_t out[META_POINT_KEY_BYTES]);
void meta_ops_key(uint64_t chunk, uint8_t out[META_OPS_KEY_BYTES]);
void meta_intent_key(struct intent_id id, uint8_t out[META_INTENT_KEY_BYTES]);

/* Location v1, 24 bytes.  0 u32 crc | 4 u32 chunk | 8 u32 offset | 12 u32 op | 16 u64 version */
void meta_location_encode(const uint8_t key[META_POINT_KEY_BYTES], const struct meta_location *l,
        uint8_t out[META_LOCATION_BYTES]);
bool meta_location_decode(const void *key, size_t key_len, const void *value, size_t len,
        struct meta_location *l_out);

/* State v1, 64 bytes, key "s".  0 u32 crc | 4 u16 version | 6 zero[2] | 8 u64 sequence | 16 u64 log_time_ms |
 * 24 u64 points | 32 u64 op_first | 40 u64 op_next | 48 u32 chunk | 52 u32 offset | 56 u32 chain | 60 zero[4] */
void meta_state_encode(const struct meta_state *s, uint8_t out[META_STATE_BYTES]);
bool meta_state_decode(const void *value, size_t len, struct meta_state *s_out);

/* Identity v1, key "i".  0 u32 crc | 4 u16 version | 6 u16 field_count | 8 u64 shard_id | 16 u64 replica_id |
 * 24 u64 base_sequence | per field { u8 metric, u8 zero, u16 name_len, u32 dim, name } | u16 len, shard_key path.
 * Returns the length. */
size_t meta_identity_encode(const struct meta_identity *identity, uint8_t out[META_IDENTITY_BYTES_MAX]);

/* CHECKSUM v1, 32 bytes.  0 "OMCK" | 4 u16 version | 6 zero[2] | 8 u64 size | 16 u32 crc32c of data.mdb | 20 zero[8] |
 * 28 u32 crc32c of 0..27 */
void meta_checksum_encode(uint64_t size, uint32_t crc, uint8_t out[META_CHECKSUM_BYTES]);
bool meta_checksum_decode(const uint8_t *in, size_t len, uint64_t *size_out, uint32_t *crc_out);

#endif
