/* The spelling under which a payload path is indexed. Part of the payload index. */
#include <string.h>

#include "storage/payload/payload_index_impl.h"

struct speller {
    char *out;
    size_t len;
};

static bool put(struct speller *s, const void *text, size_t len)
{
    if (s->len + len > DOC_PATH_BYTES_MAX) return false;
    memcpy(s->out + s->len, text, len);
    s->len += len;
    return true;
}

/* Quotes and control characters cannot be written in a path. */
static bool key_put(struct speller *s, struct bytes key)
{
    bool quoted = key.len == 0;
    for (size_t i = 0; i < key.len; i++) {
        uint8_t c = key.data[i];
        if (c < 0x20 || c == 0x7f || c == '"') return false;
        quoted |= c == '.' || c == '[' || c == ']';
    }
    return (!quoted || put(s, "\"", 1)) && put(s, key.data, key.len) && (!quoted || put(s, "\"", 1));
}

bool payload_path_spell(const struct doc_step *steps, uint32_t count, char out[PAYLOAD_PATH_BYTES],
        size_t *len_out)
{
    struct speller s = { out, 0 };
    for (uint32_t i = 0; i < count; i++) {
        bool fits = false;
        if (steps[i].kind == DOC_STEP_KEY)
            fits = (i == 0 || put(&s, ".", 1)) && key_put(&s, steps[i].key);
        else if (steps[i].kind == DOC_STEP_ALL)
            fits = put(&s, "[]", 2);
        if (!fits) return false;
    }
    out[s.len] = '\0';
    *len_out = s.len;
    return true;
}
