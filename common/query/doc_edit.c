/* Payload operations: merge, remove, select. Part of apply, so deterministic: the result depends on the two
 * docs and the paths alone. One walk copies what stays; all paths are followed at once: they are sorted, so
 * those that begin alike are one cursor, and members, which ascend too, are merged with their next steps.
 * Threads: any, on different outputs. Recursion is bounded by DOC_PATH_STEPS_MAX.
 * Cost: about one comparison per member visited and one per path, not their product: 256 paths against a
 * payload of 64 KiB, times 10,000 points of a batch, must not hold up a shard. */
#include "common/query/doc_path.h"

#include <stdlib.h>

#include "common/check.h"

#define CONTAINER_HEADER_BYTES 9
static const uint8_t empty_object[CONTAINER_HEADER_BYTES] = { DOC_OBJECT };

static struct doc or_empty(struct doc d)
{
    return d.data != NULL ? d : (struct doc){ empty_object, sizeof empty_object };
}

/* A container being written: its sizes are filled in when it ends. */
static size_t begin_container(struct buf *out, enum doc_type tag)
{
    size_t start = out->len;
    uint8_t header[CONTAINER_HEADER_BYTES] = { (uint8_t)tag };
    buf_append(out, header, sizeof header);
    return start;
}

static void end_container(struct buf *out, size_t start, uint32_t count)
{
    if (out->failed) return;
    store_u32(out->data + start + 1, (uint32_t)(out->len - start - CONTAINER_HEADER_BYTES));
    store_u32(out->data + start + 5, count);
}

static void append_key(struct buf *out, struct bytes key)
{
    uint8_t len[2];
    store_u16(len, (uint16_t)key.len);
    buf_append(out, len, sizeof len);
    buf_append(out, key.data, key.len);
}

static void append_member(struct buf *out, struct bytes key, struct doc value)
{
    append_key(out, key);
    buf_append(out, value.data, value.len);
}

/* The end of each operation: `out` is as it was before unless the result is whole and within its limit. */
static enum omen_err finish(struct buf *out, size_t start, bool no_memory, struct err *err)
{
    if (out->failed || no_memory) {
        if (!out->failed) out->len = start;
        return err_set(err, OMEN_ENOMEM, "payload", "out of memory");
    }
    size_t bytes = out->len - start;
    if (bytes <= DOC_BYTES_MAX) return OMEN_OK;
    out->len = start;
    return err_set(err, OMEN_ETOOBIG, "payload", "payload would take %zu bytes, the limit is %d", bytes,
            DOC_BYTES_MAX);
}

static enum omen_err check_object(struct doc d, struct err *err)
{
    if (doc_type(d) == DOC_OBJECT) return OMEN_OK;
    return err_set(err, OMEN_EINVAL, "payload", "payload must be an object");
}

/* ---- merge ------------------------------------------------------------------------------------------- */

enum omen_err doc_merge(struct doc base, struct doc patch, struct buf *out, struct err *err)
{
    base = or_empty(base);
    patch = or_empty(patch);
    enum omen_err rc = check_object(base, err);
    if (rc == OMEN_OK) rc = check_object(patch, err);
    if (rc != OMEN_OK) return rc;

    size_t start = begin_container(out, DOC_OBJECT);
    struct doc_iter base_it = doc_iter(base), patch_it = doc_iter(patch);
    struct bytes base_key = { NULL, 0 }, patch_key = { NULL, 0 };
    struct doc base_value = { NULL, 0 }, patch_value = { NULL, 0 };
    bool have_base = doc_next(&base_it, &base_key, &base_value);
    bool have_patch = doc_next(&patch_it, &patch_key, &patch_value);
    uint32_t count = 0;
    for (; have_base || have_patch; count++) {
        int order = !have_base ? 1 : !have_patch ? -1 : doc_key_compare(base_key, patch_key);
        if (order < 0)
            append_member(out, base_key, base_value);
        else
            append_member(out, patch_key, patch_value);
        if (order <= 0) have_base = doc_next(&base_it, &base_key, &base_value);
        if (order >= 0) have_patch = doc_next(&patch_it, &patch_key, &patch_value);
    }
    end_container(out, start, count);
    return finish(out, start, false, err);
}

/* ---- remove and select ------------------------------------------------------------------------------- */

/* Paths in order, so that those which begin alike stand together and a path stands before its continuations. */
static int step_order(const struct doc_step *a, const struct doc_step *b)
{
    if (a->kind != b->kind) return a->kind < b->kind ? -1 : 1;
    if (a->kind == DOC_STEP_KEY) return doc_key_compare(a->key, b->key);
    if (a->kind == DOC_STEP_SLOT) return a->slot < b->slot ? -1 : a->slot > b->slot;
    return 0;
}

static int path_order(const void *a, const void *b)
{
    const struct doc_path *pa = *(const struct doc_path *const *)a, *pb = *(const struct doc_path *const *)b;
    for (uint32_t i = 0; i < pa->step_count && i < pb->step_count; i++) {
        int order = step_order(&pa->steps[i], &pb->steps[i]);
        if (order != 0) return order;
    }
    return pa->step_count < pb->step_count ? -1 : pa->step_count > pb->step_count;
}

/* Paths [first, end) that have led here together: they agree on all steps before `step`, and all of them have it. */
struct cursor {
    uint32_t first, end;
    uint32_t at; /* paths before it lead to children that the walk has passed; first .. end */
    uint32_t step;
};

struct edit {
    struct buf *out;
    bool include;                  /* keep what the paths name; else drop it */
    const struct doc_path **paths; /* in path_order; owned */
    struct cursor *cursors;        /* a stack: each level of the walk pushes those that reach it; owned */
    uint32_t cursor_count, cursor_cap;
    bool no_memory;
};

static void push_cursor(struct edit *e, uint32_t first, uint32_t end, uint32_t step)
{
    if (e->cursor_count == e->cursor_cap) {
        uint32_t cap = e->cursor_cap == 0 ? 64 : 2 * e->cursor_cap;
        struct cursor *grown = mem_realloc(e->cursors, cap * sizeof *grown);
        if (grown == NULL) {
            e->no_memory = true;
            return;
        }
        e->cursors = grown;
        e->cursor_cap = cap;
    }
    e->cursors[e->cursor_count++] = (struct cursor){ first, end, first, step };
}

/* First of the paths [from, end) whose step is not before `want`, or, with `after`, is behind it. Gallops: the cost is
 * the logarithm of the distance, so that a walk over all children passes all paths in about their number. */
static uint32_t seek_path(const struct edit *e, uint32_t from, uint32_t end, uint32_t step,
        const struct doc_step *want, bool after)
{
    uint32_t reach = 1, low = from, high = end; /* before `low` all are passed over, at `high` none is */
    while (low < high) {
        uint32_t probe = reach != 0 && high - low >= reach ? low + reach - 1 : low + (high - low) / 2;
        int order = step_order(&e->paths[probe]->steps[step], want);
        if (order < 0 || (after && order == 0)) {
            low = probe + 1;
            reach *= 2; /* 0 once `high` is known: halve from then on */
        } else {
            high = probe;
            reach = 0;
        }
    }
    return low;
}

/* Push what leads on over the step `want`; true when a path ends there. Looks from path `from` on, which is moved up to
 * the place that was found. */
static bool advance_cursor(struct edit *e, struct cursor c, const struct doc_step *want, uint32_t *from)
{
    uint32_t first = seek_path(e, *from, c.end, c.step, want, false);
    *from = first;
    if (first == c.end || step_order(&e->paths[first]->steps[c.step], want) != 0) return false;
    if (e->paths[first]->step_count == c.step + 1) return true;
    push_cursor(e, first, seek_path(e, first, c.end, c.step, want, true), c.step + 1);
    return false;
}

/* Push the cursors of [first, end) that lead on to this child; true when a path ends there. Children come in ascending
 * order of their keys or slots. */
static bool advance_cursors(struct edit *e, uint32_t first, uint32_t end, bool object, struct bytes key,
        uint32_t slot)
{
    static const struct doc_step all = { .kind = DOC_STEP_ALL };
    const struct doc_step child = { object ? DOC_STEP_KEY : DOC_STEP_SLOT, slot, key };
    for (uint32_t i = first; i < end; i++) {
        const struct cursor c = e->cursors[i]; /* a copy: pushing may move them */
        uint32_t at = c.at, all_at = c.first;
        if (!object && advance_cursor(e, c, &all, &all_at)) return true;
        if (advance_cursor(e, c, &child, &at)) return true;
        e->cursors[i].at = at;
    }
    return false;
}

/* Copy a container reached by the cursors [first, cursor_count) with what they name kept or dropped. */
static void edit_container(struct edit *e, struct doc from, uint32_t first)
{
    const uint32_t end = e->cursor_count;
    size_t start = begin_container(e->out, doc_type(from));
    struct doc_iter it = doc_iter(from);
    struct bytes key;
    struct doc value;
    uint32_t kept = 0;
    for (uint32_t slot = 0; doc_next(&it, &key, &value); slot++) {
        bool named = advance_cursors(e, first, end, it.object, key, slot);
        bool descend = !named && e->cursor_count > end && doc_type(value) >= DOC_ARRAY;
        bool whole = !descend && named == e->include;
        if (whole || descend) {
            if (it.object) append_key(e->out, key);
            if (whole)
                buf_append(e->out, value.data, value.len);
            else
                edit_container(e, value, end);
            kept++;
        }
        e->cursor_count = end;
    }
    end_container(e->out, start, kept);
}

static enum omen_err edit_doc(struct doc base, const struct doc_path *const *paths, uint32_t path_count,
        bool include, struct buf *out, struct err *err)
{
    base = or_empty(base);
    enum omen_err rc = check_object(base, err);
    if (rc != OMEN_OK) return rc;
    struct edit e = { .out = out, .include = include };
    size_t start = out->len;
    if (path_count > 0) {
        e.paths = mem_alloc(path_count * sizeof *e.paths);
        if (e.paths == NULL) return finish(out, start, true, err);
        memcpy(e.paths, paths, path_count * sizeof *e.paths);
        qsort(e.paths, path_count, sizeof *e.paths, path_order);
        push_cursor(&e, 0, path_count, 0);
    }
    if (!e.no_memory) edit_container(&e, base, 0);
    mem_free(e.cursors);
    mem_free(e.paths);
    return finish(out, start, e.no_memory, err);
}

enum omen_err doc_remove(struct doc base, const struct doc_path *const *paths, uint32_t path_count,
        struct buf *out, struct err *err)
{
    return edit_doc(base, paths, path_count, false, out, err);
}

enum omen_err doc_select(struct doc base, const struct doc_path *const *paths, uint32_t path_count,
        bool include, struct buf *out, struct err *err)
{
    return edit_doc(base, paths, path_count, include, out, err);
}
