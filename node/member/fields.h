/* Members of the docs that nodes send each other: read with a default, written in one line. */
#ifndef OMEN_NODE_MEMBER_FIELDS_H
#define OMEN_NODE_MEMBER_FIELDS_H

#include <string.h>

#include "common/query/doc.h"

/* 0 when absent, of another type, or negative. Ids are u64 below 2^63. */
static inline uint64_t field_u64(struct doc object, const char *key)
{
    struct doc v = doc_member(object, (struct bytes){ (const uint8_t *)key, strlen(key) });
    if (v.data == NULL || doc_type(v) != DOC_I64 || doc_i64(v) < 0) return 0;
    return (uint64_t)doc_i64(v);
}

/* false when absent or of another type. */
static inline bool field_i64(struct doc object, const char *key, int64_t *out)
{
    struct doc v = doc_member(object, (struct bytes){ (const uint8_t *)key, strlen(key) });
    if (v.data == NULL || doc_type(v) != DOC_I64) return false;
    *out = doc_i64(v);
    return true;
}

static inline uint32_t field_u32(struct doc object, const char *key)
{
    uint64_t v = field_u64(object, key);
    return v > UINT32_MAX ? 0 : (uint32_t)v;
}

static inline bool field_bool(struct doc object, const char *key)
{
    struct doc v = doc_member(object, (struct bytes){ (const uint8_t *)key, strlen(key) });
    return v.data != NULL && doc_type(v) == DOC_TRUE;
}

/* false, and "" in `out`, when absent, no string, too long or with a NUL inside. */
static inline bool field_text(struct doc object, const char *key, char *out, size_t cap)
{
    out[0] = '\0';
    struct doc v = doc_member(object, (struct bytes){ (const uint8_t *)key, strlen(key) });
    if (v.data == NULL || doc_type(v) != DOC_STRING) return false;
    struct bytes text = doc_string(v);
    if (text.len >= cap || (text.len > 0 && memchr(text.data, 0, text.len) != NULL)) return false;
    if (text.len > 0) memcpy(out, text.data, text.len);
    out[text.len] = '\0';
    return true;
}

static inline bool field_is(struct doc object, const char *key, const char *text)
{
    struct doc v = doc_member(object, (struct bytes){ (const uint8_t *)key, strlen(key) });
    if (v.data == NULL || doc_type(v) != DOC_STRING) return false;
    struct bytes found = doc_string(v);
    return found.len == strlen(text) && memcmp(found.data, text, found.len) == 0;
}

static inline struct doc field_doc(struct doc object, const char *key)
{
    return doc_member(object, (struct bytes){ (const uint8_t *)key, strlen(key) });
}

static inline void put_i64(struct doc_builder *b, const char *key, int64_t v)
{
    doc_key(b, key, (uint32_t)strlen(key));
    doc_put_i64(b, v);
}

static inline void put_u64(struct doc_builder *b, const char *key, uint64_t v)
{
    doc_key(b, key, strlen(key));
    doc_put_i64(b, (int64_t)(v & INT64_MAX));
}

static inline void put_text(struct doc_builder *b, const char *key, const char *text)
{
    doc_key(b, key, strlen(key));
    doc_put_string(b, text, strlen(text));
}

static inline void put_bool(struct doc_builder *b, const char *key, bool v)
{
    doc_key(b, key, strlen(key));
    doc_put_bool(b, v);
}

static inline void begin_array(struct doc_builder *b, const char *key)
{
    doc_key(b, key, strlen(key));
    doc_begin_array(b);
}

static inline void begin_object(struct doc_builder *b, const char *key)
{
    doc_key(b, key, strlen(key));
    doc_begin_object(b);
}

#endif
