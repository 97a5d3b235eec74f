/* Payload values as text for tests. See doc_text.h. */
#include "tests/support/doc_text.h"

#include <stdio.h>
#include <stdlib.h>

#include "common/check.h"

struct reader {
    const char *text, *at;
    struct doc_builder *b;
};

static void skip_blanks(struct reader *r)
{
    while (*r->at == ' ' || *r->at == '\n') r->at++;
}

static void expect(struct reader *r, char c)
{
    skip_blanks(r);
    if (*r->at != c) panic("doc text: '%c' expected at byte %d of %s", c, (int)(r->at - r->text), r->text);
    r->at++;
}

static bool accept(struct reader *r, const char *word)
{
    skip_blanks(r);
    size_t len = strlen(word);
    if (strncmp(r->at, word, len) != 0) return false;
    r->at += len;
    return true;
}

static struct bytes read_quoted(struct reader *r)
{
    expect(r, '\'');
    const char *start = r->at;
    while (*r->at != '\0' && *r->at != '\'') r->at++;
    struct bytes s = { (const uint8_t *)start, (size_t)(r->at - start) };
    expect(r, '\'');
    return s;
}

static void read_number(struct reader *r)
{
    char *end_int, *end_double;
    long long i = strtoll(r->at, &end_int, 10);
    double f = strtod(r->at, &end_double);
    if (end_double == r->at)
        panic("doc text: value expected at byte %d of %s", (int)(r->at - r->text), r->text);
    if (end_double > end_int)
        doc_put_f64(r->b, f);
    else
        doc_put_i64(r->b, i);
    r->at = end_double;
}

static void read_value(struct reader *r);

static void read_members(struct reader *r)
{
    doc_begin_object(r->b);
    while (!accept(r, "}")) {
        struct bytes key = read_quoted(r);
        doc_key(r->b, (const char *)key.data, key.len);
        expect(r, ':');
        read_value(r);
        if (!accept(r, ",") && *r->at != '}') expect(r, '}');
    }
    doc_end(r->b);
}

static void read_elements(struct reader *r)
{
    doc_begin_array(r->b);
    while (!accept(r, "]")) {
        read_value(r);
        if (!accept(r, ",") && *r->at != ']') expect(r, ']');
    }
    doc_end(r->b);
}

static void read_value(struct reader *r)
{
    skip_blanks(r);
    if (accept(r, "{")) {
        read_members(r);
    } else if (accept(r, "[")) {
        read_elements(r);
    } else if (*r->at == '\'') {
        struct bytes s = read_quoted(r);
        doc_put_string(r->b, (const char *)s.data, s.len);
    } else if (accept(r, "null")) {
        doc_put_null(r->b);
    } else if (accept(r, "true")) {
        doc_put_bool(r->b, true);
    } else if (accept(r, "false")) {
        doc_put_bool(r->b, false);
    } else {
        read_number(r);
    }
}

struct doc doc_of(struct arena *arena, const char *text)
{
    struct reader r = { text, text, doc_builder_new(DOC_FILTER_BYTES_MAX) };
    read_value(&r);
    skip_blanks(&r);
    if (*r.at != '\0') panic("doc text: bytes after the value: %s", r.at);
    struct doc d;
    struct err err;
    if (doc_builder_finish(r.b, &d, &err) != OMEN_OK)
        panic("doc text: %s: %s in %s", err.field, err.message, text);
    struct doc copy = { arena_copy(arena, d.data, d.len), d.len };
    CHECK(copy.data != NULL);
    doc_builder_free(r.b);
    return copy;
}

static void show(struct doc d, struct buf *out)
{
    switch (doc_type(d)) {
    case DOC_NULL: buf_printf(out, "null"); return;
    case DOC_FALSE: buf_printf(out, "false"); return;
    case DOC_TRUE: buf_printf(out, "true"); return;
    case DOC_I64: buf_printf(out, "%lld", (long long)doc_i64(d)); return;
    case DOC_F64: buf_printf(out, "%#.17g", doc_f64(d)); return;
    case DOC_STRING:
        buf_printf(out, "'%.*s'", (int)doc_string(d).len, (const char *)doc_string(d).data);
        return;
    case DOC_ARRAY:
    case DOC_OBJECT: break;
    }
    struct doc_iter it = doc_iter(d);
    struct bytes key;
    struct doc value;
    buf_printf(out, it.object ? "{" : "[");
    for (uint32_t i = 0; doc_next(&it, &key, &value); i++) {
        if (i > 0) buf_printf(out, ",");
        if (it.object) buf_printf(out, "'%.*s':", (int)key.len, (const char *)key.data);
        show(value, out);
    }
    buf_printf(out, doc_type(d) == DOC_OBJECT ? "}" : "]");
}

const char *doc_show(struct arena *arena, struct doc doc)
{
    if (doc.data == NULL) return "absent";
    struct buf out;
    buf_init(&out);
    show(doc, &out);
    CHECK(!out.failed);
    const char *text = arena_strdup(arena, (const char *)out.data, out.len);
    buf_fini(&out);
    return text;
}
