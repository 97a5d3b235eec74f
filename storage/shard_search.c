/* Search: the nearest points of a view, per vector field: a walk through the graph of every sealed segment, and one
 * exact pass over the blocks that are in none, shared by all searches on that field. Segments come first: what they
 * found bounds the pass. Searches that want to be exact share one pass over all blocks.
 *
 * Glue between the stream's blocks (rows, liveness), storage/segment (graphs), storage/index/flat (distances, heaps,
 * filters) and the reply. */
#include "common/err.h"

#include "storage/shard_index_impl.h"

#include <math.h>
#include <stdio.h>

#include "common/mem.h"
#include "storage/index/flat.h"

static enum omen_err search_check(const struct shard_store *s, const struct search_params *p, uint32_t i,
        struct err *err)
{
    char field[ERR_FIELD_BYTES];
    const char *wrong = NULL;
    if (p->field >= s->schema.field_count)
        wrong = "field";
    else if (p->k == 0 || p->k > OMEN_K_MAX)
        wrong = "k";
    else if (p->query == NULL)
        wrong = "query";
    if (wrong == NULL) return OMEN_OK;
    snprintf(field, sizeof field, "searches[%u].%s", i, wrong);
    return err_set(err, OMEN_EINVAL, field, "out of range");
}

/* The searches on one field: their numbers, heaps and the pass over the data. Exact ones come first. */
struct field_pass {
    uint32_t *searches; /* [count] positions in the request */
    struct flat_query *queries;
    struct topk *topks;
    uint32_t count, exact_count;
};

static enum omen_err pass_add(const struct store_view *view, const struct search_params *p, uint32_t search,
        struct arena *arena, struct field_pass *pass)
{
    uint64_t live = view->pin->points;
    uint32_t n = pass->count++;
    uint32_t k = p->k < live ? p->k : live > 0 ? (uint32_t)live : 1;
    enum metric metric = view->store->schema.fields[p->field].metric;
    pass->searches[n] = search;
    pass->exact_count += p->exact;
    pass->queries[n] = (struct flat_query){ p->query, &pass->topks[n], p->filter,
        p->has_score_threshold ? flat_distance_max(metric, p->score_threshold) : INFINITY };
    return topk_init(&pass->topks[n], arena, k);
}

static enum omen_err pass_prepare(const struct store_view *view, const struct search_params *searches,
        uint32_t count, uint32_t field, struct arena *arena, struct field_pass *pass)
{
    pass->count = pass->exact_count = 0;
    pass->searches = arena_calloc(arena, count, sizeof *pass->searches);
    pass->queries = arena_calloc(arena, count, sizeof *pass->queries);
    pass->topks = arena_calloc(arena, count, sizeof *pass->topks);
    if (pass->searches == NULL || pass->queries == NULL || pass->topks == NULL) return OMEN_ENOMEM;
    for (uint32_t exact = 2; exact-- > 0;)
        for (uint32_t i = 0; i < count; i++) {
            if (searches[i].field != field || searches[i].exact != exact) continue;
            enum omen_err rc = pass_add(view, &searches[i], i, arena, pass);
            if (rc != OMEN_OK) return rc;
        }
    return OMEN_OK;
}

static void scan_count(struct search_stats *stats, struct explain_part *part, const struct flat_scan *scan)
{
    part->rows_scanned += scan->stats.rows_scanned;
    part->distances += scan->stats.distances_computed;
    part->filter_evaluated += scan->stats.filter_evaluated;
    part->bytes_read += scan->stats.bytes_read;
    stats->rows_scanned += scan->stats.rows_scanned;
    stats->distances_computed += scan->stats.distances_computed;
    stats->filter_evaluated += scan->stats.filter_evaluated;
    stats->bytes_read += scan->stats.bytes_read;
}

/* Where memory does not hold the stream, a scan has two windows of it read in ahead of where it is. */
#define AHEAD_BYTES (1u << 20)
struct scan_ahead {
    uint32_t asked; /* blocks before it were asked for */
    uint32_t next;  /* when the scan is here, the next window is */
};

static void scan_look_ahead(const struct shard_store *s, struct scan_ahead *ahead, uint32_t at, uint32_t end)
{
    while (at >= ahead->next && ahead->asked < end) {
        const uint8_t *from = NULL, *to = NULL;
        ahead->next = ahead->asked;
        for (uint64_t bytes = 0; ahead->asked < end && bytes < AHEAD_BYTES; ahead->asked++) {
            const struct block *b = blocks_at(s->blocks, ahead->asked);
            if (b->died == NULL || b->unit.body == NULL) continue;
            if (from != NULL && (b->unit.body < to || b->unit.body > to + AHEAD_BYTES / 16)) {
                stream_soon(s->stream, from, (uint64_t)(to - from)); /* another chunk begins */
                from = NULL;
            }
            if (from == NULL) from = b->unit.body;
            to = b->unit.body + b->unit.body_bytes;
            bytes += b->unit.body_bytes;
        }
        if (from != NULL) stream_soon(s->stream, from, (uint64_t)(to - from));
    }
}

static enum omen_err blocks_scan(const struct store_view *view, struct flat_scan *scan, uint32_t field,
        uint32_t from, uint32_t end)
{
    const struct shard_store *s = view->store;
    bool ahead_asked = stream_is_scattered(s->stream);
    struct scan_ahead ahead = { from, from };
    enum omen_err rc = OMEN_OK;
    for (uint32_t i = from; i < end && rc == OMEN_OK; i++) {
        if (ahead_asked) scan_look_ahead(s, &ahead, i, end);
        const struct block *b = blocks_at(s->blocks, i);
        if (b->sequence > view->sequence) break;
        if (b->died == NULL) continue; /* nothing is left of it */
        struct flat_block flat;
        flat_block_of_entry(&b->entry, field, s->schema.fields[field].dim, b->died, i, &flat);
        if (flat.count > 0) rc = flat_scan_block(scan, &flat);
    }
    return rc;
}

/* ---- segments ---- */

static bool pass_stop(void *arg)
{
    const struct read_limit *limit = arg;
    return limit->stop(limit->arg);
}

/* A search's work so far, and where it is told of. */
struct progress {
    const struct read_limit *limit;
    struct arena *arena;
    struct search_stats *stats;
    struct search_explain *explain; /* NULL = nobody asks */
};

/* 0 when nobody asks. */
static uint64_t part_begin(const struct progress *progress)
{
    const struct search_explain *explain = progress->explain;
    return explain == NULL || explain->now_ns == NULL ? 0 : explain->now_ns(explain->clock_arg);
}

static enum omen_err part_tell(const struct progress *progress, const struct explain_part *part,
        uint64_t began_ns)
{
    if (progress->explain == NULL) return OMEN_OK;
    struct explain_part *told = search_explain_add(progress->explain, progress->arena);
    if (told == NULL) return OMEN_ENOMEM;
    *told = *part;
    told->ns = part_begin(progress) - began_ns;
    return OMEN_OK;
}

/* One pass over blocks [part->first_block, part->end_block) for queries on one field. */
static enum omen_err range_scan(const struct store_view *view, struct flat_query *queries, uint32_t count,
        const struct progress *progress, struct explain_part *part)
{
    const struct vector_field *f = &view->store->schema.fields[part->field];
    const struct read_limit *limit = progress->limit;
    struct flat_scan scan;
    enum omen_err rc = flat_scan_init(&scan, f->metric, f->dim, view->sequence, queries, count,
            limit != NULL ? limit->stop : NULL, limit != NULL ? limit->arg : NULL, progress->arena);
    if (rc != OMEN_OK) return rc;
    scan.now_ms = view->now_ms;
    rc = blocks_scan(view, &scan, part->field, part->first_block, part->end_block);
    scan_count(progress->stats, part, &scan);
    part->plan = EXPLAIN_ROWS;
    for (uint32_t i = 0; i < count; i++)
        if (queries[i].filter != NULL) part->filter = EXPLAIN_FILTER_PAYLOAD;
    return rc;
}

static enum omen_err query_segment(const struct store_view *view, struct segment *segment,
        struct flat_query *query, const struct progress *progress, struct explain_part *part)
{
    const struct read_limit *limit = progress->limit;
    float bound = topk_bound(query->topk);
    struct segment_query q = {
        .query = query->query,
        .k = query->topk->k,
        .view_sequence = view->sequence,
        .now_ms = view->now_ms,
        .recall_target = view->recall_target,
        .effort = view->effort,
        .filter = query->filter,
        .distance_max = bound < query->distance_max ? bound : query->distance_max,
        .stop = limit != NULL && limit->stop != NULL ? pass_stop : NULL,
        .stop_arg = (void *)(uintptr_t)limit,
    };
    enum omen_err rc = segment_search(segment, &q, query->topk, part);
    progress->stats->segments_walked += part->plan != EXPLAIN_PRUNED;
    progress->stats->segments_pruned += part->plan == EXPLAIN_PRUNED;
    progress->stats->hops += part->hops;
    progress->stats->distances_computed += part->distances;
    progress->stats->filter_evaluated += part->filter_evaluated;
    return rc;
}

/* Segments of one batch, or its blocks when one of them may lack rows that this view still sees. */
static enum omen_err query_batch(const struct store_view *view, const struct segment_set *set,
        const struct segment_batch *batch, struct flat_query *query, uint32_t search,
        const struct progress *progress)
{
    bool old = view->sequence < batch->as_of;
    for (uint32_t i = batch->first; i < (old ? batch->first + 1 : batch->end); i++) {
        struct segment_info info;
        segment_info(set->items[i], &info);
        struct explain_part part = { .segment = info.number,
            .search = search,
            .field = info.field,
            .first_block = info.first_block,
            .end_block = info.end_block,
            .rows = info.rows,
            .index = info.index,
            .why = old ? EXPLAIN_WHY_OLD_VIEW : 0,
            .estimated = EXPLAIN_UNKNOWN,
            .real = EXPLAIN_UNKNOWN };
        uint64_t began_ns = part_begin(progress);
        progress->stats->segments_scanned += old;
        enum omen_err rc = old ? range_scan(view, query, 1, progress, &part)
                               : query_segment(view, set->items[i], query, progress, &part);
        if (rc == OMEN_OK) rc = part_tell(progress, &part, began_ns);
        if (rc != OMEN_OK) return rc;
    }
    return OMEN_OK;
}

static enum omen_err query_segments(const struct store_view *view, const struct segment_set *set,
        struct flat_query *query, uint32_t search, uint32_t field, const struct progress *progress)
{
    enum omen_err rc = OMEN_OK;
    for (uint32_t i = 0; rc == OMEN_OK && i < set->batch_count; i++)
        if (set->batches[i].field == field)
            rc = query_batch(view, set, &set->batches[i], query, search, progress);
    return rc;
}

/* One pass over blocks that no graph answers for, or must not; the part's time is from `began_ns` on. */
static enum omen_err query_blocks(const struct store_view *view, struct flat_query *queries, uint32_t count,
        uint32_t search, struct explain_part *part, const struct progress *progress, uint64_t began_ns)
{
    uint64_t before = part->rows_scanned; /* of a sketch that was given up */
    part->search = search;
    part->estimated = part->real = EXPLAIN_UNKNOWN;
    enum omen_err rc = range_scan(view, queries, count, progress, part);
    part->rows = part->rows_scanned - before;
    return rc == OMEN_OK ? part_tell(progress, part, began_ns) : rc;
}

/* One search of the part of the tail that a sketch knows; by its blocks when that is no good. */
static enum omen_err query_sketch(const struct store_view *view, struct tail_sketch *tail,
        const struct tail_part *part, struct field_pass *pass, uint32_t n, uint32_t field,
        const struct progress *progress)
{
    struct index_cost cost = { 0 };
    bool enough = false;
    struct explain_part told = { .segment = EXPLAIN_TAIL,
        .search = pass->searches[n],
        .field = field,
        .first_block = part->first_block,
        .end_block = part->end_block,
        .rows = part->rows,
        .plan = EXPLAIN_SCAN,
        .why = EXPLAIN_WHY_SKETCH,
        .recall_target = view->recall_target,
        .filter = pass->queries[n].filter != NULL ? EXPLAIN_FILTER_PAYLOAD : EXPLAIN_FILTER_NONE,
        .estimated = EXPLAIN_UNKNOWN,
        .real = EXPLAIN_UNKNOWN };
    uint64_t began_ns = part_begin(progress);
    enum omen_err rc = tail_search(tail, view, &pass->queries[n], part, progress->limit, progress->arena,
            &enough, &cost, &told.filter_evaluated);
    progress->stats->filter_evaluated += told.filter_evaluated;
    told.distances = cost.distances + cost.rescored;
    told.rescored = cost.rescored;
    told.bytes_read = cost.rescored * 4 * view->store->schema.fields[field].dim;
    told.effort = cost.effort;
    told.estimates = told.rows_scanned = cost.estimates;
    progress->stats->sketches_searched += enough;
    progress->stats->distances_computed += told.distances;
    if (rc != OMEN_OK) return rc;
    if (enough) return part_tell(progress, &told, began_ns);
    told.given_up = EXPLAIN_SCAN;
    told.why = EXPLAIN_WHY_GAVE_UP;
    return query_blocks(view, &pass->queries[n], 1, pass->searches[n], &told, progress, began_ns);
}

/* One pass over blocks [from, end) for the pass's queries [first, last). */
static enum omen_err pass_scan(const struct store_view *view, struct field_pass *pass, uint32_t first,
        uint32_t last, uint32_t field, uint32_t from, uint32_t end, const struct progress *progress)
{
    struct explain_part part = { .field = field,
        .first_block = from,
        .end_block = end,
        .why = first < pass->exact_count ? EXPLAIN_WHY_EXACT : EXPLAIN_WHY_NOT_SEALED };
    uint32_t search = pass->count == 1 ? pass->searches[0] : EXPLAIN_ALL_SEARCHES;
    return query_blocks(view, pass->queries + first, last - first, search, &part, progress,
            part_begin(progress));
}

/* What is in no segment: large parts by their sketches, the rest by one pass for all. */
static enum omen_err tail_run(const struct store_view *view, struct field_pass *pass, uint32_t field,
        uint32_t from, const struct progress *progress)
{
    uint32_t end = blocks_count(view->store->blocks), exact = pass->exact_count;
    struct tail_set *tails = tail_set_acquire(view->store);
    enum omen_err rc = OMEN_OK;
    for (uint32_t i = 0; rc == OMEN_OK && tails != NULL && i < tails->count; i++) {
        struct tail_part part;
        if (!tail_part(tails->items[i], field, from, end, &part)) continue;
        if (from < part.first_block)
            rc = pass_scan(view, pass, exact, pass->count, field, from, part.first_block, progress);
        for (uint32_t n = exact; rc == OMEN_OK && n < pass->count; n++)
            rc = query_sketch(view, tails->items[i], &part, pass, n, field, progress);
        from = part.end_block;
    }
    tail_set_release(tails);
    return rc == OMEN_OK ? pass_scan(view, pass, exact, pass->count, field, from, end, progress) : rc;
}

static enum omen_err pass_run(const struct store_view *view, struct field_pass *pass, uint32_t field,
        const struct progress *progress)
{
    struct shard_store *s = view->store;
    enum omen_err rc = OMEN_OK;
    if (pass->exact_count > 0)
        rc = pass_scan(view, pass, 0, pass->exact_count, field, 0, blocks_count(s->blocks), progress);
    if (rc != OMEN_OK || pass->exact_count == pass->count) return rc;
    struct segment_set *set = segment_set_acquire(s);
    for (uint32_t n = pass->exact_count; set != NULL && rc == OMEN_OK && n < pass->count; n++)
        rc = query_segments(view, set, &pass->queries[n], pass->searches[n], field, progress);
    uint32_t covered = set == NULL ? 0 : set->covered[field];
    segment_set_release(set);
    return rc == OMEN_OK ? tail_run(view, pass, field, covered, progress) : rc;
}

static enum omen_err hits_make(const struct store_view *view, const struct search_params *p,
        struct topk *topk, struct arena *arena, struct hit **hits_out, uint32_t *count_out, struct err *err)
{
    enum metric metric = view->store->schema.fields[p->field].metric;
    topk_sort(topk);
    struct hit *hits = arena_alloc(arena, (topk->count + 1) * sizeof *hits);
    if (hits == NULL) return err_set(err, OMEN_ENOMEM, NULL, "hits of a search");
    for (uint32_t i = 0; i < topk->count; i++) {
        const struct topk_candidate *c = &topk->items[i];
        struct row_ref row = { (uint32_t)c->location[0], (uint32_t)c->location[1] };
        hits[i].distance = c->distance;
        hits[i].score = score_of_distance(metric, c->distance);
        enum omen_err rc = row_point_view(view->store, row, &p->selection, arena, &hits[i].point, err);
        if (rc != OMEN_OK) return rc;
    }
    *hits_out = hits;
    *count_out = topk->count;
    return OMEN_OK;
}

static enum omen_err search_field(const struct store_view *view, const struct search_params *searches,
        uint32_t count, uint32_t field, const struct progress *progress, struct hit **hits_out,
        uint32_t *hit_counts_out, struct err *err)
{
    struct field_pass pass;
    struct arena *arena = progress->arena;
    enum omen_err rc = pass_prepare(view, searches, count, field, arena, &pass);
    if (rc == OMEN_OK) rc = pass_run(view, &pass, field, progress);
    if (rc != OMEN_OK) return err_set(err, rc, NULL, "search in %s", view->store->dir);
    for (uint32_t n = 0; n < pass.count && rc == OMEN_OK; n++) {
        uint32_t i = pass.searches[n];
        rc = hits_make(view, &searches[i], &pass.topks[n], arena, &hits_out[i], &hit_counts_out[i], err);
    }
    return rc;
}

enum omen_err shard_store_search(const struct store_view *view, const struct search_params *searches,
        uint32_t count, const struct read_limit *limit, struct arena *arena, struct hit **hits_out,
        uint32_t *hit_counts_out, struct search_stats *stats_out, struct err *err)
{
    uint32_t fields = 0;
    struct search_stats stats = { 0 };
    const struct progress progress = { limit, arena, &stats, view->explain };
    enum omen_err rc = store_serves(view->store, err);
    if (rc != OMEN_OK) return rc;
    for (uint32_t i = 0; i < count; i++) {
        rc = search_check(view->store, &searches[i], i, err);
        if (rc != OMEN_OK) return rc;
        fields |= 1u << searches[i].field;
    }
    for (uint32_t f = 0; f < view->store->schema.field_count; f++) {
        if ((fields >> f & 1) == 0) continue;
        rc = search_field(view, searches, count, f, &progress, hits_out, hit_counts_out, err);
        if (rc != OMEN_OK) return rc;
    }
    if (stats_out != NULL) *stats_out = stats;
    return OMEN_OK;
}
