/* Payload paths: parsed once into steps, walked once per point. Grammar:
 *   path := key ( '.' key | '[' ']' | '[' digits ']' )*
 *   key  := bare, one or more characters other than . [ ] " and control characters
 *         | '"' any characters but '"' and control characters '"'
 * Departs from Qdrant: a bare key may hold any other character, blanks included, not only letters, digits, -
 * and _.
 * Pure functions, any thread. Recursion is bounded by DOC_PATH_STEPS_MAX. */
#include "common/query/doc_path.h"

/* ---- parsing ----------------------------------------------------------------------------------------- */

struct parser {
    const char *text;
    size_t len;
    size_t at; /* next byte */
    struct err *err;
};

static enum omen_err fail(const struct parser *p, enum omen_err code, const char *what)
{
    int shown = p->len > 200 ? 200 : (int)p->len;
    return err_set(p->err, code, NULL, "path \"%.*s\": %s at byte %zu", shown, p->text, what, p->at);
}

static bool key_may_hold(char c, bool quoted)
{
    if ((unsigned char)c < 0x20 || c == 0x7f || c == '"') return false;
    return quoted || (c != '.' && c != '[' && c != ']');
}

static enum omen_err parse_key(struct parser *p, struct doc_step *step_out)
{
    bool quoted = p->at < p->len && p->text[p->at] == '"';
    if (quoted) p->at++;
    size_t start = p->at;
    while (p->at < p->len && key_may_hold(p->text[p->at], quoted)) p->at++;
    size_t len = p->at - start;
    if (quoted) {
        if (p->at == p->len || p->text[p->at] != '"') return fail(p, OMEN_EINVAL, "quote is not closed");
        p->at++;
    } else if (len == 0) {
        return fail(p, OMEN_EINVAL, "a key is expected");
    }
    if (len > DOC_KEY_BYTES_MAX) return fail(p, OMEN_ETOOBIG, "key is longer than 255 bytes");
    *step_out = (struct doc_step){ .kind = DOC_STEP_KEY, .key = { (const uint8_t *)p->text + start, len } };
    return OMEN_OK;
}

/* After the '['. */
static enum omen_err parse_brackets(struct parser *p, struct doc_step *step_out)
{
    *step_out = (struct doc_step){ .kind = DOC_STEP_ALL };
    uint64_t slot = 0;
    while (p->at < p->len && p->text[p->at] >= '0' && p->text[p->at] <= '9') {
        slot = slot * 10 + (uint64_t)(p->text[p->at] - '0');
        if (slot > UINT32_MAX) return fail(p, OMEN_EINVAL, "array position is out of range");
        step_out->kind = DOC_STEP_SLOT;
        p->at++;
    }
    if (p->at == p->len || p->text[p->at] != ']') return fail(p, OMEN_EINVAL, "] is expected");
    p->at++;
    step_out->slot = (uint32_t)slot;
    return OMEN_OK;
}

static enum omen_err parse_steps(struct parser *p, struct doc_step steps[DOC_PATH_STEPS_MAX],
        uint32_t *count_out)
{
    enum omen_err rc = parse_key(p, &steps[0]);
    uint32_t count = 1;
    while (rc == OMEN_OK && p->at < p->len) {
        if (count == DOC_PATH_STEPS_MAX) return fail(p, OMEN_ETOOBIG, "path has more than 32 steps");
        char c = p->text[p->at];
        if (c != '.' && c != '[') return fail(p, OMEN_EINVAL, ". or [ is expected");
        p->at++;
        rc = c == '.' ? parse_key(p, &steps[count]) : parse_brackets(p, &steps[count]);
        count++;
    }
    *count_out = count;
    return rc;
}

enum omen_err doc_path_parse(const char *text, size_t len, struct arena *arena,
        const struct doc_path **path_out, struct err *err)
{
    *path_out = NULL;
    if (len > DOC_PATH_BYTES_MAX)
        return err_set(err, OMEN_ETOOBIG, NULL, "path is %zu bytes long, the limit is %d", len,
                DOC_PATH_BYTES_MAX);
    if (!utf8_valid(text, len)) return err_set(err, OMEN_EINVAL, NULL, "path is not valid UTF-8");
    struct doc_step steps[DOC_PATH_STEPS_MAX];
    struct parser p = { text, len, 0, err };
    uint32_t count = 0;
    enum omen_err rc = parse_steps(&p, steps, &count);
    if (rc != OMEN_OK) return rc;

    struct doc_path *path = arena_alloc(arena, sizeof *path + count * sizeof steps[0]);
    const char *copy = path == NULL ? NULL : arena_strdup(arena, text, len);
    if (copy == NULL) return err_set(err, OMEN_ENOMEM, NULL, "out of memory for a path");
    *path = (struct doc_path){ .text = { (const uint8_t *)copy, len }, .step_count = count };
    for (uint32_t i = 0; i < count; i++) {
        path->steps[i] = steps[i];
        if (steps[i].kind == DOC_STEP_KEY) {
            size_t offset = (size_t)((const char *)steps[i].key.data - text);
            path->steps[i].key.data = (const uint8_t *)copy + offset;
        } else {
            path->has_arrays = true;
        }
    }
    *path_out = path;
    return OMEN_OK;
}

struct bytes doc_path_text(const struct doc_path *path) { return path->text; }

bool doc_path_has_arrays(const struct doc_path *path) { return path->has_arrays; }

/* ---- walking ----------------------------------------------------------------------------------------- */

struct walk {
    const struct doc_path *path;
    bool open_arrays;
    bool (*each)(void *arg, struct doc value);
    void *arg;
};

static bool each_element(const struct walk *w, struct doc array)
{
    struct doc_iter it = doc_iter(array);
    struct doc value;
    while (doc_next(&it, NULL, &value))
        if (!w->each(w->arg, value)) return false;
    return true;
}

static bool walk_from(const struct walk *w, uint32_t step, struct doc at)
{
    for (; step < w->path->step_count; step++) {
        const struct doc_step *s = &w->path->steps[step];
        if (s->kind == DOC_STEP_KEY) {
            at = doc_member(at, s->key);
            if (at.data == NULL) return true;
            continue;
        }
        if (doc_type(at) != DOC_ARRAY) return true;
        struct doc_iter it = doc_iter(at);
        struct doc value;
        for (uint32_t i = 0; doc_next(&it, NULL, &value); i++) {
            if (s->kind == DOC_STEP_SLOT && i != s->slot) continue;
            if (!walk_from(w, step + 1, value)) return false;
            if (s->kind == DOC_STEP_SLOT) break;
        }
        return true;
    }
    if (w->open_arrays && doc_type(at) == DOC_ARRAY) return each_element(w, at);
    return w->each(w->arg, at);
}

bool doc_path_each(const struct doc_path *path, struct doc root, bool open_arrays,
        bool (*each)(void *arg, struct doc value), void *arg)
{
    const struct walk w = { path, open_arrays, each, arg };
    return walk_from(&w, 0, root);
}

static bool take_first(void *arg, struct doc value)
{
    *(struct doc *)arg = value;
    return false;
}

struct doc doc_path_first(const struct doc_path *path, struct doc root)
{
    struct doc first = { NULL, 0 };
    doc_path_each(path, root, false, take_first, &first);
    return first;
}
