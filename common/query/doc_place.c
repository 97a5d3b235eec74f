/* Paths of places in a doc, for error messages. See doc_place.h. Pure functions. */
#include "common/query/doc_place.h"

#include <stdio.h>

struct text {
    char *out;
    size_t len; /* below ERR_FIELD_BYTES */
};

static void text_put(struct text *t, const char *s, size_t len)
{
    size_t room = ERR_FIELD_BYTES - 1 - t->len;
    if (len > room) len = room;
    if (len > 0) memcpy(t->out + t->len, s, len);
    t->len += len;
}

static bool key_needs_quotes(struct bytes key)
{
    for (size_t i = 0; i < key.len; i++) {
        uint8_t c = key.data[i];
        if (c <= ' ' || c == 0x7f || c == '.' || c == '[' || c == ']' || c == '"') return true;
    }
    return key.len == 0;
}

static void text_put_key(struct text *t, struct bytes key)
{
    bool quotes = key_needs_quotes(key);
    if (quotes) text_put(t, "\"", 1);
    text_put(t, (const char *)key.data, key.len);
    if (quotes) text_put(t, "\"", 1);
}

static void text_put_place(struct text *t, const struct doc_place *place)
{
    if (place == NULL) return;
    text_put_place(t, place->up);
    if (place->key.data == NULL) {
        char slot[16];
        int n = snprintf(slot, sizeof slot, "[%u]", place->slot);
        text_put(t, slot, (size_t)n);
        return;
    }
    if (t->len > 0) text_put(t, ".", 1);
    text_put_key(t, place->key);
}

void doc_place_format(const struct doc_place *place, char text_out[ERR_FIELD_BYTES])
{
    struct text t = { text_out, 0 };
    text_put_place(&t, place);
    text_out[t.len] = '\0';
}
