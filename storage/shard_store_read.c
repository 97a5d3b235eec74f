/* Reads by key and in order of key: get, scroll, count; and what a reply carries of a row. */
#include "common/err.h"

#include "storage/shard_store_impl.h"

#include "common/mem.h"
#include "storage/payload/filter_eval.h"
#include "storage/shard_select.h"

#define READ_POLL_BYTES (64u << 10)
#define READ_POINT_BYTES 256u /* what a row costs besides its payload, for polling */

/* {} : an object without members, for points stored without a payload. */
static const uint8_t empty_doc_bytes[9] = { DOC_OBJECT };
static const struct doc empty_doc = { empty_doc_bytes, sizeof empty_doc_bytes };

static enum omen_err payload_select(struct doc payload, const struct point_selection *selection,
        struct arena *arena, struct doc *doc_out, struct err *err)
{
    *doc_out = payload.data != NULL ? payload : empty_doc;
    if (selection->payload_path_count == 0) return OMEN_OK;
    struct buf buf;
    buf_init(&buf);
    enum omen_err rc = doc_select(*doc_out, selection->payload_paths, selection->payload_path_count,
            selection->payload_include, &buf, err);
    if (rc == OMEN_OK && buf.failed) rc = err_set(err, OMEN_ENOMEM, NULL, "selecting payload");
    if (rc == OMEN_OK) {
        doc_out->len = (uint32_t)buf.len;
        doc_out->data = arena_copy(arena, buf.data, buf.len);
        if (doc_out->data == NULL) rc = err_set(err, OMEN_ENOMEM, NULL, "selecting payload");
    }
    buf_fini(&buf);
    return rc;
}

enum omen_err row_point_view(const struct shard_store *s, struct row_ref row,
        const struct point_selection *selection, struct arena *arena, struct point_view *point_out,
        struct err *err)
{
    const struct block *b = blocks_at(s->blocks, row.block);
    struct entry_op op;
    entry_op_at(&b->entry, row.op, &op);
    *point_out = (struct point_view){ .id = op.key.id,
        .key = { op.shard_key },
        .version = b->sequence,
        .expires_ms = op.expires_ms };
    if (selection == NULL) return OMEN_OK;
    for (uint32_t f = 0; f < s->schema.field_count; f++)
        if ((selection->vector_mask >> f & 1) != 0 && op.rows[f] != ENTRY_NO_ROW)
            point_out->vectors[f] = entry_row(&b->entry, f, op.rows[f], s->schema.fields[f].dim);
    return selection->with_payload ? payload_select(op.payload, selection, arena, &point_out->payload, err)
                                   : OMEN_OK;
}

/* Points gathered in arena memory that grows. */
struct gathered {
    struct arena *arena;
    struct point_view *points;
    uint32_t count, cap;
};

static enum omen_err gather(struct gathered *g, const struct shard_store *s, struct row_ref row,
        const struct point_selection *selection, struct err *err)
{
    if (g->count == g->cap) {
        uint32_t cap = g->cap < 16 ? 16 : 2 * g->cap;
        struct point_view *grown = arena_alloc(g->arena, cap * sizeof *grown);
        if (grown == NULL) return err_set(err, OMEN_ENOMEM, NULL, "points of a reply");
        if (g->count > 0) memcpy(grown, g->points, g->count * sizeof *grown);
        g->points = grown;
        g->cap = cap;
    }
    enum omen_err rc = row_point_view(s, row, selection, g->arena, &g->points[g->count], err);
    if (rc == OMEN_OK) g->count++;
    return rc;
}

/* ---- get ---- */

static enum omen_err get_any_key(const struct store_view *view, point_id id,
        const struct point_selection *selection, struct gathered *g, struct err *err)
{
    struct point_key from = { .id = id }, key;
    struct view_iter it;
    enum omen_err rc = view_iter_open(view->store, view->pin, view->sequence, &from, &it, err);
    if (rc != OMEN_OK) return rc;
    for (;;) {
        struct row_ref row;
        bool found = false;
        rc = view_iter_next(&it, &key, &row, &found, err);
        if (rc != OMEN_OK || !found || !point_id_equal(key.id, id)) break;
        if (row_expired(view->store, row, view->now_ms)) continue;
        rc = gather(g, view->store, row, selection, err);
        if (rc != OMEN_OK) break;
    }
    view_iter_close(&it);
    return rc;
}

enum omen_err shard_store_get(const struct store_view *view, const struct get_request *requests,
        uint32_t count, const struct point_selection *selection, struct arena *arena,
        struct point_view **points_out, uint32_t *count_out, struct err *err)
{
    struct gathered g = { .arena = arena };
    enum omen_err rc = store_serves(view->store, err);
    for (uint32_t i = 0; i < count && rc == OMEN_OK; i++) {
        if (requests[i].any_key) {
            rc = get_any_key(view, requests[i].id, selection, &g, err);
            continue;
        }
        struct point_key key = point_key_make(requests[i].id, requests[i].key);
        struct row_ref row;
        rc = view_find(view->store, view->pin, view->sequence, &key, &row, err);
        if (rc != OMEN_OK || row_is_none(row) || row_expired(view->store, row, view->now_ms)) continue;
        rc = gather(&g, view->store, row, selection, err);
    }
    if (rc != OMEN_OK) return rc;
    *points_out = g.points;
    *count_out = g.count;
    return OMEN_OK;
}

/* ---- scroll and count ---- */

/* Has the caller had enough? Asked about every READ_POLL_BYTES. */
static bool stop_polled(const struct read_limit *limit, uint64_t *bytes, uint32_t payload_len)
{
    *bytes += READ_POINT_BYTES + payload_len;
    if (*bytes < READ_POLL_BYTES) return false;
    *bytes = 0;
    return limit != NULL && limit->stop != NULL && limit->stop(limit->arg);
}

static enum omen_err scroll_page(const struct store_view *view, struct view_iter *it,
        const struct point_key *after, uint32_t limit, const struct filter *filter,
        const struct point_selection *selection, const struct read_limit *read_limit, struct gathered *g,
        bool *more_out, struct err *err)
{
    uint64_t bytes = 0;
    *more_out = false;
    for (;;) {
        struct point_key key;
        struct row_ref row;
        bool found = false;
        enum omen_err rc = view_iter_next(it, &key, &row, &found, err);
        if (rc != OMEN_OK || !found) return rc;
        if (after != NULL && point_key_compare(&key, after) == 0) continue;
        struct entry_op op;
        row_op(view->store, row, &op);
        if (stop_polled(read_limit, &bytes, op.payload.len))
            return err_set(err, OMEN_EDEADLINE, NULL, "scroll");
        if (row_expired(view->store, row, view->now_ms)) continue;
        if (filter != NULL && !filter_match(filter, op.key.id, op.payload)) continue;
        if (g->count == limit) {
            *more_out = true;
            return OMEN_OK;
        }
        rc = gather(g, view->store, row, selection, err);
        if (rc != OMEN_OK) return rc;
    }
}

/* All that pass are found, the first of them taken. */
static enum omen_err scroll_found(const struct store_view *view, const struct point_key *after,
        uint32_t limit, const struct filter *filter, const struct point_selection *selection,
        const struct read_limit *read_limit, struct gathered *g, bool *more_out, struct err *err)
{
    uint32_t count;
    struct row_ref *rows = arena_alloc(g->arena, limit * sizeof *rows);
    if (rows == NULL) return err_set(err, OMEN_ENOMEM, NULL, "points of a reply");
    enum omen_err rc = select_first(view, filter, after, limit, read_limit, g->arena, rows, &count, more_out);
    if (rc != OMEN_OK) return err_set(err, rc, NULL, "scroll");
    for (uint32_t i = 0; i < count && rc == OMEN_OK; i++)
        rc = gather(g, view->store, rows[i], selection, err);
    return rc;
}

static enum omen_err scroll_walk(const struct store_view *view, const struct point_key *after, uint32_t limit,
        const struct filter *filter, const struct point_selection *selection,
        const struct read_limit *read_limit, struct gathered *g, bool *more_out, struct err *err)
{
    struct view_iter it;
    enum omen_err rc = view_iter_open(view->store, view->pin, view->sequence, after, &it, err);
    if (rc != OMEN_OK) return rc;
    rc = scroll_page(view, &it, after, limit, filter, selection, read_limit, g, more_out, err);
    view_iter_close(&it);
    return rc;
}

enum omen_err shard_store_scroll(const struct store_view *view, const struct point_key *after, uint32_t limit,
        const struct filter *filter, const struct point_selection *selection,
        const struct read_limit *read_limit, struct arena *arena, struct point_view **points_out,
        uint32_t *count_out, bool *more_out, struct err *err)
{
    if (limit == 0 || limit > OMEN_SCROLL_LIMIT_MAX)
        return err_set(err, OMEN_EINVAL, "limit", "must be 1 to %d", OMEN_SCROLL_LIMIT_MAX);
    struct gathered g = { .arena = arena };
    bool more = false;
    enum omen_err rc = store_serves(view->store, err);
    if (rc != OMEN_OK) return rc;
    bool find = filter != NULL && select_first_pays(view, filter, limit);
    rc = (find ? scroll_found : scroll_walk)(view, after, limit, filter, selection, read_limit, &g, &more,
            err);
    if (rc != OMEN_OK) return rc;
    *points_out = g.points;
    *count_out = g.count;
    *more_out = more;
    return OMEN_OK;
}

/* Points of the view's number that have expired since the last write. */
static enum omen_err count_expired(const struct store_view *view, const struct read_limit *limit,
        uint64_t *count_out, struct err *err)
{
    const struct blocks *blocks = view->store->blocks;
    uint64_t count = 0, bytes = 0;
    for (uint32_t i = 0, n = blocks_count(blocks); i < n; i++) {
        const struct block *b = blocks_at(blocks, i);
        if (b->sequence > view->sequence) break;
        if (view->now_ms < b->expires_min_ms) continue;
        for (uint32_t at = 0; at < b->entry.op_count; at++)
            count += block_row_expired(b, at, view->now_ms) && block_row_visible(b, at, view->sequence, 0);
        if (stop_polled(limit, &bytes, 8 * b->entry.op_count))
            return err_set(err, OMEN_EDEADLINE, NULL, "count");
    }
    *count_out = count;
    return OMEN_OK;
}

enum omen_err shard_store_count(const struct store_view *view, const struct filter *filter,
        const struct read_limit *limit, uint64_t *count_out, struct err *err)
{
    enum omen_err rc = store_serves(view->store, err);
    if (rc != OMEN_OK) return rc;
    if (filter == NULL) {
        uint64_t expired = 0;
        if (view->now_ms >= view->pin->expires_next_ms) rc = count_expired(view, limit, &expired, err);
        if (rc == OMEN_OK) *count_out = view->pin->points - expired;
        return rc;
    }
    uint64_t count;
    rc = select_count(view, filter, limit, &count);
    if (rc != OMEN_OK) return err_set(err, rc, NULL, "count");
    *count_out = count;
    return OMEN_OK;
}
