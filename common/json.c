/* JSON by jansson, to payload values and back.
 *
 * jansson parses the text into its own tree (at most 2,048 deep, duplicates refused), which is then fed to
 * a doc_builder; the builder holds the limits of payloads. Writing needs no jansson: a doc is walked and
 * appended. A float keeps its type: 1.0 is written "1.0", not "1".
 * Threads: pure functions of their arguments. */
#include "common/json.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/check.h"
#include "common/utf8.h"

#define JSON_TEXT_BYTES_MAX (8 * 1024 * 1024) /* several times the largest doc, escapes included */

/* ---- text to doc ---- */

/* Stops below the deepest level a doc may have: the builder has refused it by then. */
static void feed(const json_t *value, uint32_t depth, struct doc_builder *b)
{
    switch (json_typeof(value)) {
    case JSON_NULL: doc_put_null(b); return;
    case JSON_TRUE: doc_put_bool(b, true); return;
    case JSON_FALSE: doc_put_bool(b, false); return;
    case JSON_INTEGER: doc_put_i64(b, json_integer_value(value)); return;
    case JSON_REAL: doc_put_f64(b, json_real_value(value)); return;
    case JSON_STRING: doc_put_string(b, json_string_value(value), json_string_length(value)); return;
    case JSON_ARRAY: {
        doc_begin_array(b);
        for (size_t i = 0; depth < DOC_DEPTH_MAX && i < json_array_size(value); i++)
            feed(json_array_get(value, i), depth + 1, b);
        doc_end(b);
        return;
    }
    case JSON_OBJECT: {
        doc_begin_object(b);
        void *it = depth < DOC_DEPTH_MAX ? json_object_iter((json_t *)(uintptr_t)value)
                                         : NULL; /* takes no const */
        for (; it != NULL; it = json_object_iter_next((json_t *)(uintptr_t)value, it)) {
            const char *key = json_object_iter_key(it);
            doc_key(b, key, strlen(key));
            feed(json_object_iter_value(it), depth + 1, b);
        }
        doc_end(b);
        return;
    }
    }
}

enum omen_err json_parse(const char *text, size_t len, struct doc_builder *b, struct doc *doc_out,
        struct err *err)
{
    json_error_t error;
    *doc_out = (struct doc){ 0 };
    if (len > JSON_TEXT_BYTES_MAX)
        return err_set(err, OMEN_ETOOBIG, NULL, "JSON text has %zu bytes, the limit is %d", len,
                JSON_TEXT_BYTES_MAX);
    json_t *root = json_loadb(len == 0 ? "" : text, len,
            JSON_DECODE_ANY | JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
    if (root == NULL && json_error_code(&error) == json_error_out_of_memory)
        return err_set(err, OMEN_ENOMEM, NULL, "no memory to parse JSON");
    if (root == NULL)
        return err_set(err, OMEN_EINVAL, NULL, "JSON line %d, column %d: %s", error.line, error.column,
                error.text);
    feed(root, 0, b);
    enum omen_err rc = doc_builder_finish(b, doc_out, err);
    json_decref(root);
    return rc;
}

/* ---- doc to text ---- */

static void write_escaped(uint8_t c, bool is_character, struct buf *out)
{
    static const char LETTERS[] = "btn?fr"; /* of 8..13; 11 has none */
    if (!is_character)
        buf_printf(out, "\\ufffd"); /* bytes that are no UTF-8 still give readable JSON */
    else if (c == '"' || c == '\\')
        buf_printf(out, "\\%c", c);
    else if (c >= 8 && c <= 13 && c != 11)
        buf_printf(out, "\\%c", LETTERS[c - 8]);
    else
        buf_printf(out, "\\u%04x", c);
}

void json_write_string(struct bytes s, struct buf *out)
{
    buf_append(out, "\"", 1);
    size_t plain = 0; /* start of what is copied as it is */
    for (size_t i = 0; i < s.len;) {
        uint8_t c = s.data[i];
        size_t n = utf8_sequence_bytes(s.data + i, s.len - i);
        if (n != 0 && c >= 0x20 && c != '"' && c != '\\' && c != 0x7f) {
            i += n;
            continue;
        }
        buf_append(out, s.data + plain, i - plain);
        write_escaped(c, n != 0, out);
        plain = ++i;
    }
    if (s.len > plain) buf_append(out, s.data + plain, s.len - plain);
    buf_append(out, "\"", 1);
}

/* The shortest of 15, 16 and 17 digits that reads back as the same number, and always as a real. */
static void write_f64(double v, struct buf *out)
{
    char text[40];
    for (int precision = 15; precision <= 17; precision++) {
        snprintf(text, sizeof text, "%.*g", precision, v);
        if (strtod(text, NULL) == v) break;
    }
    char *comma = strchr(text, ','); /* a host program of the client library may have set a locale */
    if (comma != NULL) *comma = '.';
    buf_printf(out, "%s%s", text, text[strcspn(text, ".eE")] == '\0' ? ".0" : "");
}

static void write_children(struct doc doc, struct buf *out)
{
    bool object = doc_type(doc) == DOC_OBJECT, first = true;
    struct doc_iter it = doc_iter(doc);
    struct bytes key;
    struct doc value;
    buf_append(out, object ? "{" : "[", 1);
    while (doc_next(&it, &key, &value)) {
        if (!first) buf_append(out, ",", 1);
        first = false;
        if (object) {
            json_write_string(key, out);
            buf_append(out, ":", 1);
        }
        json_write(value, out);
    }
    buf_append(out, object ? "}" : "]", 1);
}

/* Recursion is bounded: a doc is at most DOC_DEPTH_MAX deep. */
void json_write(struct doc doc, struct buf *out)
{
    CHECK(doc.data != NULL);
    switch (doc_type(doc)) {
    case DOC_NULL: buf_append(out, "null", 4); break;
    case DOC_FALSE: buf_append(out, "false", 5); break;
    case DOC_TRUE: buf_append(out, "true", 4); break;
    case DOC_I64: buf_printf(out, "%lld", (long long)doc_i64(doc)); break;
    case DOC_F64: write_f64(doc_f64(doc), out); break;
    case DOC_STRING: json_write_string(doc_string(doc), out); break;
    case DOC_ARRAY:
    case DOC_OBJECT: write_children(doc, out); break;
    }
}
