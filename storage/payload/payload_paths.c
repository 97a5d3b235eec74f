/* Finding the paths that payloads have: every member of an object, also of objects in arrays ("items[].price"). Part of
 * the payload index. */
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "common/query/path_kind.h"
#include "storage/payload/payload_build.h"

#define TABLE 2048u /* twice PAYLOAD_PATHS_SEEN_MAX */
#define STOP_EVERY 4096u

struct seen_path {
    const char *text;
    uint32_t len;
    uint64_t hash, times;
    bool first; /* asked for */
    bool words; /* of its texts too */
};

struct finder {
    struct arena *arena;
    struct seen_path table[TABLE]; /* text NULL = free */
    uint32_t count;
    bool complete, failed;
    struct doc_step steps[DOC_PATH_STEPS_MAX];
    char text[PAYLOAD_PATH_BYTES];
};

/* Where the path of f->steps is; NULL: it is not counted. */
static struct seen_path *path_find(struct finder *f, const struct doc_step *steps, uint32_t depth)
{
    size_t len;
    if (!payload_path_spell(steps, depth, f->text, &len)) return NULL; /* nobody can ask for it */
    uint64_t hash = hash64(f->text, len);
    uint32_t at = (uint32_t)hash & (TABLE - 1);
    while (f->table[at].text != NULL) {
        struct seen_path *seen = &f->table[at];
        if (seen->hash == hash && seen->len == len && memcmp(seen->text, f->text, len) == 0) return seen;
        at = (at + 1) & (TABLE - 1);
    }
    if (f->count == PAYLOAD_PATHS_SEEN_MAX) {
        f->complete = false;
        return NULL;
    }
    const char *copy = arena_strdup(f->arena, f->text, len);
    if (copy == NULL) f->failed = true;
    if (copy == NULL) return NULL;
    f->table[at] = (struct seen_path){ copy, (uint32_t)len, hash, 0, false, false };
    f->count++;
    return &f->table[at];
}

static void path_note(struct finder *f, uint32_t depth)
{
    struct seen_path *seen = path_find(f, f->steps, depth);
    if (seen != NULL) seen->times++;
}

/* What is asked for has its place before any row is looked at. One that is no path cannot be met. */
static void first_note(struct finder *f, const char *path)
{
    for (; path != NULL && *path != '\0'; path += strlen(path) + 1) {
        const struct doc_path *parsed;
        enum path_kind kind;
        size_t len = path_kind_split(path, strlen(path), &kind);
        if (doc_path_parse(path, len, f->arena, &parsed, NULL) != OMEN_OK) continue;
        uint32_t count = parsed->step_count;
        while (count > 0 && parsed->steps[count - 1].kind == DOC_STEP_ALL) count--;
        struct seen_path *seen = count == 0 ? NULL : path_find(f, parsed->steps, count);
        if (seen == NULL) continue;
        seen->first = true;
        seen->words |= kind == PATH_KIND_TEXT;
    }
}

/* Bounded by the depth of documents and by that of paths: what lies deeper cannot be asked for. */
static void doc_walk(struct finder *f, uint32_t depth, struct doc doc)
{
    if (depth == DOC_PATH_STEPS_MAX || doc.data == NULL || doc_type(doc) < DOC_ARRAY) return;
    bool object = doc_type(doc) == DOC_OBJECT;
    struct doc_iter it = doc_iter(doc);
    struct bytes key;
    struct doc value;
    while (doc_next(&it, &key, &value)) {
        f->steps[depth] = (struct doc_step){ .kind = object ? DOC_STEP_KEY : DOC_STEP_ALL, .key = key };
        if (object) path_note(f, depth + 1);
        doc_walk(f, depth + 1, value);
    }
}

static int times_compare(const void *a, const void *b)
{
    const struct seen_path *x = a, *y = b;
    if (x->first != y->first) return x->first ? -1 : 1;
    if (x->times != y->times) return x->times > y->times ? -1 : 1;
    return strcmp(x->text, y->text);
}

static int path_compare(const void *a, const void *b)
{
    const struct payload_path *x = a, *y = b;
    return doc_key_compare(x->path->text, y->path->text);
}

static enum omen_err paths_pick(struct finder *f, struct payload_paths *paths_out, struct err *err)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < TABLE; i++)
        if (f->table[i].text != NULL && f->table[i].times > 0) f->table[count++] = f->table[i];
    qsort(f->table, count, sizeof f->table[0], times_compare);
    paths_out->complete = f->complete && count <= PAYLOAD_FIELDS_MAX;
    if (count > PAYLOAD_FIELDS_MAX) count = PAYLOAD_FIELDS_MAX;
    paths_out->items = arena_alloc(f->arena, (count + 1) * sizeof *paths_out->items);
    if (paths_out->items == NULL) return err_set(err, OMEN_ENOMEM, "", "no memory for a payload index");
    for (uint32_t i = 0; i < count; i++) {
        enum omen_err rc = doc_path_parse(f->table[i].text, f->table[i].len, f->arena,
                &paths_out->items[i].path, err);
        if (rc != OMEN_OK) return rc;
        paths_out->items[i].words = f->table[i].words;
    }
    if (count > 0) qsort(paths_out->items, count, sizeof *paths_out->items, path_compare);
    paths_out->count = count;
    return OMEN_OK;
}

enum omen_err payload_paths_find(const struct payload_source *source, struct arena *arena,
        struct payload_paths *paths_out, struct err *err)
{
    *paths_out = (struct payload_paths){ NULL, 0, true };
    struct finder *f = arena_calloc(arena, 1, sizeof *f);
    if (f == NULL) return err_set(err, OMEN_ENOMEM, "", "no memory for a payload index");
    f->arena = arena;
    f->complete = true;
    first_note(f, source->first);
    for (uint32_t row = 0; row < source->count && !f->failed; row++) {
        point_id id;
        struct doc payload;
        if (source->row(source->arg, row, &id, &payload)) doc_walk(f, 0, payload);
        if (row % STOP_EVERY == 0 && source->stop != NULL && source->stop(source->arg))
            return err_set(err, OMEN_ECANCELED, "", "the segment is not wanted any more");
    }
    if (f->failed) return err_set(err, OMEN_ENOMEM, "", "no memory for a payload index");
    return paths_pick(f, paths_out, err);
}
