/* Reads without vectors to compare: get, scroll, count. */
#include "common/err.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "router/merge.h"
#include "router/request.h"

static enum omen_err out_of_memory(struct err *err)
{
    return err_set(err, OMEN_ENOMEM, "", "the request needs too much memory");
}

/* Ends the request, or sends its calls. */
static void go_or_finish(struct request *r, enum omen_err rc, void (*gathered)(struct request *r))
{
    if (rc != OMEN_OK) {
        request_finish(r, rc);
    } else {
        scatter_go(r, gathered);
    }
}

/* ---- get: request order, missing points left out ---- */

static int view_compare(const struct point_view *a, const struct point_view *b)
{
    struct point_key ka = point_key_make(a->id, a->key), kb = point_key_make(b->id, b->key);
    return point_key_compare(&ka, &kb);
}

static int view_order(const void *a, const void *b)
{
    return view_compare(*(const struct point_view *const *)a, *(const struct point_view *const *)b);
}

/* All points of all shards, sorted by key, each once. */
static enum omen_err gather_views(struct request *r, const struct point_view ***views_out,
        uint32_t *count_out)
{
    uint64_t total = 0;
    for (uint32_t c = 0; c < r->call_count; c++)
        if (r->calls[c].code == OMEN_OK) total += r->calls[c].out.points.count;
    const struct point_view **views = arena_alloc(&r->arena, sizeof *views * (size_t)(total + 1));
    if (views == NULL) return OMEN_ENOMEM;
    uint32_t count = 0;
    for (uint32_t c = 0; c < r->call_count; c++) {
        if (r->calls[c].code != OMEN_OK) continue;
        for (uint32_t p = 0; p < r->calls[c].out.points.count; p++)
            views[count++] = &r->calls[c].out.points.points[p];
    }
    qsort((void *)views, count, sizeof *views, view_order);
    uint32_t kept = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (kept == 0 || view_compare(views[kept - 1], views[i]) != 0) views[kept++] = views[i];
    }
    *views_out = views;
    *count_out = kept;
    return OMEN_OK;
}

/* First of the sorted `views` that is not before `key`. */
static uint32_t views_lower_bound(const struct point_view **views, uint32_t count,
        const struct point_key *key)
{
    uint32_t low = 0, high = count;
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        struct point_key at = point_key_make(views[mid]->id, views[mid]->key);
        if (point_key_compare(&at, key) < 0) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    return low;
}

static enum omen_err get_merge(struct request *r)
{
    enum omen_err rc = scatter_settle(r);
    if (rc != OMEN_OK) return rc;
    const struct point_view **views;
    uint32_t view_count;
    if (gather_views(r, &views, &view_count) != OMEN_OK) return out_of_memory(&r->reply.err);

    /* Items repeat ids at will, and an id without its key can match several points: count first, then fill. */
    const struct call_get *items = r->get_items;
    struct point_view *points = NULL;
    uint32_t count = 0;
    for (int pass = 0; pass < 2; pass++) {
        count = 0;
        for (uint32_t i = 0; i < r->wire.get.count; i++) {
            struct point_key wanted = { .id = items[i].id };
            if (!items[i].any_key) wanted = point_key_make(items[i].id, items[i].key);
            for (uint32_t v = views_lower_bound(views, view_count, &wanted); v < view_count; v++) {
                struct point_key at = point_key_make(views[v]->id, views[v]->key);
                if (!point_id_equal(at.id, wanted.id)) break;
                if (!items[i].any_key && point_key_compare(&at, &wanted) != 0) break;
                if (pass == 1) points[count] = *views[v];
                count++;
            }
        }
        if (pass == 0) points = arena_alloc(&r->arena, sizeof *points * ((size_t)count + 1));
        if (points == NULL) return out_of_memory(&r->reply.err);
    }
    r->reply.points.points = points;
    r->reply.points.count = count;
    return scatter_tokens(r);
}

static void get_gathered(struct request *r) { request_finish(r, get_merge(r)); }

/* Each shard is asked for the items that can be there. */
static enum omen_err get_scatter(struct request *r, struct err *err)
{
    uint32_t count = r->wire.get.count, shard_count = r->collection->shard_count, asked = 0;
    struct point_selection selection;
    enum omen_err rc = resolve_selection(&r->collection->schema, &r->wire.get.selection, "with_vectors",
            &selection, err);
    if (rc != OMEN_OK) return rc;
    struct call_get *items = arena_calloc(&r->arena, (size_t)count + 1, sizeof *items);
    uint32_t *positions = arena_alloc(&r->arena, sizeof *positions * ((size_t)count + 1));
    uint32_t *counts = arena_calloc(&r->arena, shard_count, sizeof *counts);
    if (items == NULL || positions == NULL || counts == NULL) return out_of_memory(err);
    r->get_items = items;
    for (uint32_t i = 0; i < count; i++) {
        struct doc key = r->wire.get.keys == NULL ? (struct doc){ NULL, 0 } : r->wire.get.keys[i];
        items[i].id = r->wire.get.ids[i];
        rc = resolve_key(r, key, "keys", NULL, i, &items[i].key, &items[i].any_key, err);
        if (rc != OMEN_OK) return rc;
        if (items[i].any_key) {
            for (uint32_t s = 0; s < shard_count; s++) counts[s]++;
            continue;
        }
        const struct map_shard *shard = map_shard_of_slot(r->collection,
                point_slot(items[i].id, items[i].key));
        positions[i] = (uint32_t)(shard - r->collection->shards);
        counts[positions[i]]++;
    }
    for (uint32_t s = 0; s < shard_count; s++) asked += counts[s] > 0;
    rc = scatter_prepare(r, asked, err);
    if (rc != OMEN_OK) return rc;
    for (uint32_t s = 0, c = 0; s < shard_count; s++) {
        if (counts[s] == 0) continue;
        struct call_get *mine = arena_alloc(&r->arena, sizeof *mine * counts[s]);
        if (mine == NULL) return out_of_memory(err);
        uint32_t at = 0;
        for (uint32_t i = 0; i < count; i++) {
            if (items[i].any_key || positions[i] == s) mine[at++] = items[i];
        }
        scatter_call_init(r, c, CALL_GET, s);
        r->calls[c].in.get.items = mine;
        r->calls[c].in.get.count = at;
        r->calls[c++].in.get.selection = selection;
    }
    return OMEN_OK;
}

void op_get(struct request *r)
{
    enum omen_err rc = resolve_collection(r, &r->reply.err);
    if (rc == OMEN_OK) rc = get_scatter(r, &r->reply.err);
    go_or_finish(r, rc, get_gathered);
}

/* ---- scroll: every shard gives its next page, the merge keeps the first `limit` ---- */

static enum omen_err scroll_merge(struct request *r)
{
    enum omen_err rc = scatter_settle(r);
    if (rc != OMEN_OK) return rc;
    uint32_t limit = r->wire.scroll.limit;
    struct point_run *runs = arena_alloc(&r->arena, sizeof *runs * (r->call_count + 1));
    struct point_view *points = arena_alloc(&r->arena, sizeof *points * ((size_t)limit + 1));
    if (runs == NULL || points == NULL) return out_of_memory(&r->reply.err);
    bool more = false;
    uint32_t run_count = 0;
    for (uint32_t c = 0; c < r->call_count; c++) {
        if (r->calls[c].code != OMEN_OK) continue;
        runs[run_count++] = (struct point_run){ r->calls[c].out.points.points, r->calls[c].out.points.count };
        more |= r->calls[c].out.points.more;
    }
    uint32_t count;
    bool remained;
    if (merge_points(runs, run_count, limit, &r->arena, points, &count, &remained) != OMEN_OK) {
        return out_of_memory(&r->reply.err);
    }
    r->reply.points.points = points;
    r->reply.points.count = count;
    if ((more || remained) && count > 0) {
        char *cursor = arena_alloc(&r->arena, CURSOR_TEXT_BYTES);
        if (cursor == NULL) return out_of_memory(&r->reply.err);
        struct point_key last = point_key_make(points[count - 1].id, points[count - 1].key);
        cursor_encode(r->collection->id, &last, cursor);
        r->reply.points.cursor = (struct bytes){ (const uint8_t *)cursor, CURSOR_TEXT_BYTES };
    }
    return scatter_tokens(r);
}

static void scroll_gathered(struct request *r) { request_finish(r, scroll_merge(r)); }

static enum omen_err scroll_scatter(struct request *r, struct err *err)
{
    uint32_t shard_count = r->collection->shard_count, asked = 0;
    if (r->wire.scroll.limit == 0 || r->wire.scroll.limit > OMEN_SCROLL_LIMIT_MAX) {
        return err_set(err, OMEN_EINVAL, "limit", "must be 1 to %d", OMEN_SCROLL_LIMIT_MAX);
    }
    struct point_selection selection;
    enum omen_err rc = resolve_selection(&r->collection->schema, &r->wire.scroll.selection, "with_vectors",
            &selection, err);
    if (rc != OMEN_OK) return rc;
    struct point_key *after = NULL;
    if (r->wire.scroll.cursor.len > 0) {
        after = arena_calloc(&r->arena, 1, sizeof *after);
        if (after == NULL) return out_of_memory(err);
        rc = cursor_decode(r->wire.scroll.cursor, r->collection->id, after, err);
        if (rc != OMEN_OK) return rc;
    }
    uint8_t *shards;
    rc = resolve_filter_shards(r, r->wire.scroll.filter, &shards, err);
    if (rc != OMEN_OK) return rc;
    for (uint32_t s = 0; s < shard_count; s++) asked += shards[s];
    rc = scatter_prepare(r, asked, err);
    if (rc != OMEN_OK) return rc;
    for (uint32_t s = 0, c = 0; s < shard_count; s++) {
        if (!shards[s]) continue;
        scatter_call_init(r, c, CALL_SCROLL, s);
        r->calls[c].in.scroll.after = after;
        r->calls[c].in.scroll.limit = r->wire.scroll.limit;
        r->calls[c].in.scroll.filter = r->wire.scroll.filter;
        r->calls[c].in.scroll.filter_doc = r->wire.scroll.filter_doc;
        r->calls[c++].in.scroll.selection = selection;
    }
    return OMEN_OK;
}

void op_scroll(struct request *r)
{
    enum omen_err rc = resolve_collection(r, &r->reply.err);
    if (rc == OMEN_OK) rc = scroll_scatter(r, &r->reply.err);
    go_or_finish(r, rc, scroll_gathered);
}

/* ---- count ---- */

static void count_gathered(struct request *r)
{
    enum omen_err rc = scatter_settle(r);
    for (uint32_t c = 0; c < r->call_count; c++)
        if (r->calls[c].code == OMEN_OK) r->reply.count.points += r->calls[c].out.count.points;
    if (rc == OMEN_OK) rc = scatter_tokens(r);
    request_finish(r, rc);
}

static enum omen_err count_scatter(struct request *r, struct err *err)
{
    uint32_t shard_count = r->collection->shard_count, asked = 0;
    uint8_t *shards;
    enum omen_err rc = resolve_filter_shards(r, r->wire.count.filter, &shards, err);
    if (rc != OMEN_OK) return rc;
    for (uint32_t s = 0; s < shard_count; s++) asked += shards[s];
    rc = scatter_prepare(r, asked, err);
    if (rc != OMEN_OK) return rc;
    for (uint32_t s = 0, c = 0; s < shard_count; s++) {
        if (!shards[s]) continue;
        scatter_call_init(r, c, CALL_COUNT, s);
        r->calls[c].in.count.filter = r->wire.count.filter;
        r->calls[c++].in.count.filter_doc = r->wire.count.filter_doc;
    }
    return OMEN_OK;
}

void op_count(struct request *r)
{
    enum omen_err rc = resolve_collection(r, &r->reply.err);
    if (rc == OMEN_OK) rc = count_scatter(r, &r->reply.err);
    go_or_finish(r, rc, count_gathered);
}
