/* A page of a write by filter: what the leader finds next in the order of point keys, as operations that each name the
 * version after which a point is to be left alone (CORRECTNESS A5). A point not written since then matches now exactly if
 * it matched then, so the newest view serves, whenever it is taken.
 *
 * Threads: the search pool's. */
#include "common/err.h"

#include <string.h>

#include "node/shard_host_impl.h"

#define PAGE_POINTS_MAX 1000u
#define PAGE_BYTES_MAX (8u << 20) /* of payload, which every operation of a page repeats */

uint32_t filter_page_limit(struct doc payload)
{
    uint32_t limit = PAGE_BYTES_MAX / (payload.len + 128);
    return limit > PAGE_POINTS_MAX ? PAGE_POINTS_MAX : limit;
}

/* An operation on every point of the page that was not written after `began`. */
static enum omen_err ops_make(struct filter_page *page, const struct point_view *points, uint32_t count,
        struct arena *arena)
{
    page->ops = arena_calloc(arena, (size_t)count + 1, sizeof *page->ops);
    if (page->ops == NULL) return OMEN_ENOMEM;
    for (uint32_t i = 0; i < count; i++) {
        if (points[i].version > page->began) continue;
        struct point_op *op = &page->ops[page->count++];
        struct bytes key = points[i].key.canonical; /* the view's, which is given back before the write */
        *op = (struct point_op){ .kind = page->op,
            .id = points[i].id,
            .payload = page->payload,
            .if_version = page->began };
        if (key.len > 0) op->key.canonical = (struct bytes){ arena_copy(arena, key.data, key.len), key.len };
        if (key.len > 0 && op->key.canonical.data == NULL) return OMEN_ENOMEM;
    }
    return OMEN_OK;
}

enum omen_err filter_page_take(struct shard_host *shard, struct filter_page *page, struct arena *arena,
        struct err *err)
{
    struct shard_store *store = shard_host_store_hold(shard);
    struct store_view view;
    page->count = 0;
    if (store == NULL) return err_set(err, OMEN_EUNAVAILABLE, "", "the store is being replaced");
    enum omen_err rc = store_view_try_acquire(store, &view, err);
    shard_host_store_unhold(shard);
    if (rc != OMEN_OK) return rc;
    store_view_at(&view, clock_wall_ms(shard->env->clock));
    if (page->began == 0) page->began = view.sequence;
    struct point_view *points = NULL;
    uint32_t count = 0;
    rc = shard_store_scroll(&view, page->has_after ? &page->after : NULL, page->limit, page->filter, NULL,
            &page->stop, arena, &points, &count, &page->more, err);
    if (rc == OMEN_OK) rc = ops_make(page, points, count, arena);
    if (rc == OMEN_ENOMEM) (void)err_set(err, rc, "", "the write needs too much memory");
    if (rc == OMEN_OK && count > 0) {
        page->after = point_key_make(points[count - 1].id, points[count - 1].key);
        page->has_after = true;
    }
    store_view_release(&view);
    return rc;
}
