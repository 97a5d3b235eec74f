/* Writing msgpack straight into a buf: no objects in between. A buf that runs out of memory remembers it, so nothing here
 * returns errors. */
#include "common/wire/value.h"

#include "common/check.h"

static int append(void *out, const char *data, size_t len)
{
    buf_append(out, data, len);
    return 0;
}

void packer_init(msgpack_packer *pk, struct buf *out) { msgpack_packer_init(pk, out, append); }

void pack_bytes_str(msgpack_packer *pk, struct bytes text)
{
    msgpack_pack_str(pk, text.len);
    if (text.len > 0) msgpack_pack_str_body(pk, text.data, text.len);
}

void pack_str(msgpack_packer *pk, const char *text)
{
    pack_bytes_str(pk, (struct bytes){ (const uint8_t *)text, strlen(text) });
}

void pack_bin(msgpack_packer *pk, const void *data, size_t len)
{
    msgpack_pack_bin(pk, len);
    if (len > 0) msgpack_pack_bin_body(pk, data, len);
}

void pack_bool(msgpack_packer *pk, bool v)
{
    if (v)
        msgpack_pack_true(pk);
    else
        msgpack_pack_false(pk);
}

void pack_doc(msgpack_packer *pk, struct doc doc)
{
    if (doc.data == NULL) {
        msgpack_pack_nil(pk);
        return;
    }
    struct doc_iter it;
    struct bytes key;
    struct doc value;
    switch (doc_type(doc)) {
    case DOC_NULL: msgpack_pack_nil(pk); return;
    case DOC_FALSE:
    case DOC_TRUE: pack_bool(pk, doc_type(doc) == DOC_TRUE); return;
    case DOC_I64: msgpack_pack_int64(pk, doc_i64(doc)); return;
    case DOC_F64: msgpack_pack_double(pk, doc_f64(doc)); return;
    case DOC_STRING: pack_bytes_str(pk, doc_string(doc)); return;
    case DOC_ARRAY:
        msgpack_pack_array(pk, doc_count(doc));
        for (it = doc_iter(doc); doc_next(&it, NULL, &value);) pack_doc(pk, value);
        return;
    case DOC_OBJECT:
        msgpack_pack_map(pk, doc_count(doc));
        for (it = doc_iter(doc); doc_next(&it, &key, &value);) {
            pack_bytes_str(pk, key);
            pack_doc(pk, value);
        }
        return;
    }
    CHECK(!"a doc has an unknown tag");
}

void pack_id(msgpack_packer *pk, point_id id)
{
    if (id.kind == POINT_ID_U64) {
        msgpack_pack_uint64(pk, id.lo);
        return;
    }
    char text[POINT_ID_TEXT_BYTES];
    point_id_format(id, text);
    pack_str(pk, text);
}

void pack_shard_key(msgpack_packer *pk, struct shard_key key)
{
    struct bytes c = key.canonical;
    if (c.len == 0) {
        msgpack_pack_nil(pk);
        return;
    }
    switch (c.data[0]) {
    case 1: pack_bytes_str(pk, (struct bytes){ c.data + 1, c.len - 1 }); return;
    case 2:
        CHECK(c.len == 2);
        pack_bool(pk, c.data[1] != 0);
        return;
    case 3:
        CHECK(c.len == 9);
        msgpack_pack_int64(pk, (int64_t)load_u64_be(c.data + 1));
        return;
    default: CHECK(!"a canonical shard key has an unknown tag");
    }
}

void pack_token(msgpack_packer *pk, const struct token *token)
{
    msgpack_pack_array(pk, 3);
    msgpack_pack_uint64(pk, token->incarnation);
    msgpack_pack_uint64(pk, token->shard);
    msgpack_pack_uint64(pk, token->sequence);
}
