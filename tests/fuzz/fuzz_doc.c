/* Any bytes through doc_validate; what passes is walked and built again, members in reverse, and must give
 * the same bytes: one form per value. */
#include <stdlib.h>

#include "common/check.h"
#include "common/query/doc.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void rebuild(struct doc_builder *b, struct doc doc, uint32_t depth);

/* Members come in reverse, which recursion gives for free; at most DOC_BYTES_MAX / 3 of them. */
static void rebuild_members(struct doc_builder *b, struct doc object, uint32_t depth)
{
    uint32_t count = doc_count(object);
    struct bytes *keys = calloc(count + 1, sizeof *keys);
    struct doc *values = calloc(count + 1, sizeof *values);
    CHECK(keys != NULL && values != NULL);
    struct doc_iter it = doc_iter(object);
    uint32_t seen = 0;
    while (doc_next(&it, &keys[seen], &values[seen])) seen++;
    CHECK(seen == count);
    doc_begin_object(b);
    while (seen-- > 0) {
        struct doc found = doc_member(object, keys[seen]);
        CHECK(found.data == values[seen].data && found.len == values[seen].len);
        doc_key(b, (const char *)keys[seen].data, keys[seen].len);
        rebuild(b, values[seen], depth + 1);
    }
    doc_end(b);
    free(keys);
    free(values);
}

static void rebuild(struct doc_builder *b, struct doc doc, uint32_t depth)
{
    CHECK(depth <= DOC_DEPTH_MAX);
    struct doc value;
    switch (doc_type(doc)) {
    case DOC_NULL: doc_put_null(b); return;
    case DOC_FALSE: doc_put_bool(b, false); return;
    case DOC_TRUE: doc_put_bool(b, true); return;
    case DOC_I64: doc_put_i64(b, doc_i64(doc)); return;
    case DOC_F64: doc_put_f64(b, doc_f64(doc)); return;
    case DOC_STRING: doc_put_string(b, (const char *)doc_string(doc).data, doc_string(doc).len); return;
    case DOC_OBJECT: rebuild_members(b, doc, depth); return;
    case DOC_ARRAY: break;
    }
    doc_begin_array(b);
    struct doc_iter it = doc_iter(doc);
    while (doc_next(&it, NULL, &value)) rebuild(b, value, depth + 1);
    doc_end(b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct doc doc, again;
    struct err err;
    struct bytes bytes = { data, size };
    enum omen_err rc = doc_validate(bytes, DOC_BYTES_MAX, &doc, &err);
    CHECK(rc == doc_validate(bytes, DOC_BYTES_MAX, &again, NULL));
    if (rc != OMEN_OK) {
        CHECK(err.code == rc && doc.data == NULL);
        return 0;
    }
    CHECK(doc.len == size && doc_encoded_bytes(doc.data) == size && doc_depth(doc) <= DOC_DEPTH_MAX);
    struct doc_builder *b = doc_builder_new(DOC_BYTES_MAX);
    rebuild(b, doc, 0);
    CHECK(doc_builder_finish(b, &again, &err) == OMEN_OK);
    CHECK(again.len == doc.len && memcmp(again.data, doc.data, doc.len) == 0);
    CHECK(doc_equal(doc, again));
    doc_builder_free(b);
    return 0;
}
