/* Searches: one request may hold many. Each goes to the shards that its filter leaves; the searches that a shard gets travel
 * in one call, so that they share a pass over its data. Searches by id first fetch the vectors of the points that ask:
 *
 *   validate --some by id--> FETCH (one CALL_GET per shard) --> SEARCH (one CALL_SEARCH per shard) --> merge, reply */
#include "common/err.h"

#include <stdio.h>
#include <string.h>

#include "common/check.h"
#include "router/merge.h"
#include "router/request.h"

static enum omen_err out_of_memory(struct err *err)
{
    return err_set(err, OMEN_ENOMEM, "", "the request needs too much memory");
}

static enum omen_err plan_query(struct request *r, const struct wire_search *wire, uint32_t i,
        struct search_plan *plan, struct err *err)
{
    char where[ERR_FIELD_BYTES];
    snprintf(where, sizeof where, "searches[%u].vector", i);
    uint32_t dim = r->collection->schema.fields[plan->params.field].dim;
    if (wire->query.len != 4ull * dim) {
        return err_set(err, OMEN_EINVAL, where, "expected %u x 4 bytes, got %zu", dim, wire->query.len);
    }
    uint64_t position;
    if (!floats_finite(wire->query.data, dim, &position)) {
        return err_set(err, OMEN_EINVAL, where, "component %llu is NaN or infinite",
                (unsigned long long)position);
    }
    plan->params.query = arena_copy(&r->arena, wire->query.data, wire->query.len); /* aligned */
    return plan->params.query == NULL ? out_of_memory(err) : OMEN_OK;
}

static enum omen_err plan_search(struct request *r, uint32_t i, struct err *err)
{
    const struct wire_search *wire = &r->wire.search.searches[i];
    const struct collection_schema *schema = &r->collection->schema;
    struct search_plan *plan = &r->plans[i];
    char where[ERR_FIELD_BYTES];
    snprintf(where, sizeof where, "searches[%u].field", i);
    enum omen_err rc = resolve_field(schema, wire->field, where, &plan->params.field, err);
    if (rc != OMEN_OK) return rc;
    snprintf(where, sizeof where, "searches[%u].with_vectors", i);
    rc = resolve_selection(schema, &wire->selection, where, &plan->params.selection, err);
    if (rc != OMEN_OK) return rc;
    uint64_t k = (uint64_t)wire->k + wire->offset + (wire->by_id ? 1 : 0);
    snprintf(where, sizeof where, "searches[%u].k", i);
    if (wire->k == 0) return err_set(err, OMEN_EINVAL, where, "must be at least 1");
    if (k > OMEN_K_MAX) {
        return err_set(err, OMEN_ETOOBIG, where, "k + offset%s is %llu, the limit is %d",
                wire->by_id ? " + 1 for the point itself" : "", (unsigned long long)k, OMEN_K_MAX);
    }
    plan->params.k = (uint32_t)k;
    plan->params.exact = wire->exact;
    plan->params.has_score_threshold = wire->has_score_threshold;
    plan->params.score_threshold = wire->score_threshold;
    plan->params.filter = wire->filter;
    plan->params.filter_doc = wire->filter_doc;
    plan->by_id = wire->by_id;
    rc = resolve_filter_shards(r, wire->filter, &plan->shards, err);
    if (rc != OMEN_OK) return rc;
    if (!wire->by_id) return plan_query(r, wire, i, plan, err);
    r->by_id_count++;
    return OMEN_OK;
}

static enum omen_err plan_all(struct request *r, struct err *err)
{
    uint32_t count = r->wire.search.count;
    r->plans = arena_calloc(&r->arena, (size_t)count + 1, sizeof *r->plans);
    if (r->plans == NULL) return out_of_memory(err);
    uint64_t hits = 0;
    for (uint32_t i = 0; i < count; i++) {
        enum omen_err rc = plan_search(r, i, err);
        if (rc != OMEN_OK) return rc;
        hits += r->plans[i].params.k;
    }
    if (hits > ROUTER_HITS_MAX) {
        return err_set(err, OMEN_ETOOBIG, "searches", "k + offset over all searches is %llu, the limit is %u",
                (unsigned long long)hits, ROUTER_HITS_MAX);
    }
    return OMEN_OK;
}

/* ---- merging ---- */

/* `at` [call_count]: how far into each call's searches we are; they are there in request order. */
static enum omen_err search_merge_one(struct request *r, uint32_t i, struct hit_run *runs, uint32_t *at,
        struct wire_search_result *result)
{
    const struct wire_search *wire = &r->wire.search.searches[i];
    const struct search_plan *plan = &r->plans[i];
    uint32_t run_count = 0;
    for (uint32_t c = 0; c < r->call_count; c++) {
        if (!plan->shards[r->call_shards[c]]) continue;
        const struct shard_call *call = &r->calls[c];
        uint32_t j = at[c]++;
        CHECK(r->call_searches[c][j] == i);
        if (call->code != OMEN_OK) continue; /* missing, and the client allows it */
        runs[run_count++] = (struct hit_run){ call->out.search.hits[j], call->out.search.counts[j] };
    }
    if (run_count == 1 && wire->offset == 0 && !plan->by_id) { /* one shard: its answer is the answer */
        result->hits = runs[0].hits;
        result->count = runs[0].count < wire->k ? runs[0].count : wire->k;
        return OMEN_OK;
    }
    struct hit *hits;
    enum omen_err rc = merge_hits(runs, run_count, wire->offset, wire->k,
            plan->by_id ? &plan->left_out : NULL, &r->arena, &hits, &result->count);
    result->hits = hits;
    return rc;
}

static uint64_t now_ns(const struct request *r) { return clock_monotonic_ns(r->router->options.clock); }

static enum omen_err search_merge(struct request *r)
{
    enum omen_err rc = scatter_settle(r);
    if (r->wire.search.explain) r->gather_ns = now_ns(r);
    if (rc != OMEN_OK) return rc;
    uint32_t count = r->wire.search.count;
    struct wire_search_result *results = arena_calloc(&r->arena, (size_t)count + 1, sizeof *results);
    struct hit_run *runs = arena_alloc(&r->arena, sizeof *runs * (r->call_count + 1));
    uint32_t *at = arena_calloc(&r->arena, r->call_count + 1, sizeof *at);
    if (results == NULL || runs == NULL || at == NULL) return out_of_memory(&r->reply.err);
    for (uint32_t i = 0; i < count; i++) {
        if (search_merge_one(r, i, runs, at, &results[i]) != OMEN_OK) return out_of_memory(&r->reply.err);
    }
    for (uint32_t c = 0; c < r->call_count; c++)
        if (r->calls[c].code == OMEN_OK) r->reply.search.rows_scanned += r->calls[c].out.search.rows_scanned;
    r->reply.search.results = results;
    r->reply.search.count = count;
    r->reply.search.shards_asked = r->call_count;
    r->reply.search.shards_total = r->collection->shard_count;
    rc = scatter_tokens(r);
    return rc == OMEN_OK && r->wire.search.explain ? explain_merge(r) : rc;
}

static void search_gathered(struct request *r) { request_finish(r, search_merge(r)); }

/* ---- scatter ---- */

static enum omen_err search_fill_call(struct request *r, uint32_t c, uint32_t shard, struct err *err)
{
    uint32_t total = r->wire.search.count, count = 0;
    for (uint32_t i = 0; i < total; i++) count += r->plans[i].shards[shard];
    struct search_params *params = arena_alloc(&r->arena, sizeof *params * count);
    uint32_t *positions = arena_alloc(&r->arena, sizeof *positions * count);
    if (params == NULL || positions == NULL) return out_of_memory(err);
    for (uint32_t i = 0, j = 0; i < total; i++) {
        if (!r->plans[i].shards[shard]) continue;
        params[j] = r->plans[i].params;
        positions[j++] = i;
    }
    scatter_call_init(r, c, CALL_SEARCH, shard);
    r->calls[c].in.search.searches = params;
    r->calls[c].in.search.count = count;
    r->calls[c].in.search.explain = r->wire.search.explain;
    r->call_searches[c] = positions;
    return OMEN_OK;
}

static enum omen_err search_scatter(struct request *r, struct err *err)
{
    uint32_t shard_count = r->collection->shard_count, asked = 0;
    uint8_t *touched = arena_calloc(&r->arena, shard_count, 1);
    if (touched == NULL) return out_of_memory(err);
    for (uint32_t i = 0; i < r->wire.search.count; i++) {
        for (uint32_t s = 0; s < shard_count; s++) touched[s] |= r->plans[i].shards[s];
    }
    for (uint32_t s = 0; s < shard_count; s++) asked += touched[s];
    enum omen_err rc = scatter_prepare(r, asked, err);
    if (rc != OMEN_OK) return rc;
    if (r->wire.search.explain) r->scatter_ns = now_ns(r);
    r->call_searches = arena_calloc(&r->arena, asked + 1, sizeof *r->call_searches);
    if (r->call_searches == NULL) return out_of_memory(err);
    for (uint32_t s = 0, c = 0; s < shard_count; s++) {
        if (!touched[s]) continue;
        rc = search_fill_call(r, c++, s, err);
        if (rc != OMEN_OK) return rc;
    }
    return OMEN_OK;
}

/* ---- by id ---- */

/* The point that search `i` names, among what the shards returned. */
static enum omen_err by_id_take(struct request *r, uint32_t i, struct err *err)
{
    const struct wire_search *wire = &r->wire.search.searches[i];
    struct search_plan *plan = &r->plans[i];
    char where[ERR_FIELD_BYTES], id[POINT_ID_TEXT_BYTES];
    snprintf(where, sizeof where, "searches[%u].id", i);
    point_id_format(wire->query_id, id);
    struct shard_key key;
    bool any_key;
    enum omen_err rc = resolve_key(r, wire->query_key, "searches", "key", i, &key, &any_key, err);
    if (rc != OMEN_OK) return rc;
    struct point_key wanted = point_key_make(wire->query_id, key);
    const struct point_view *found = NULL;
    for (uint32_t c = 0; c < r->call_count; c++) {
        if (r->calls[c].code != OMEN_OK) continue;
        r->reply.stale |= r->calls[c].stale;
        for (uint32_t p = 0; p < r->calls[c].out.points.count; p++) {
            const struct point_view *view = &r->calls[c].out.points.points[p];
            struct point_key view_key = point_key_make(view->id, view->key);
            bool match = any_key ? point_id_equal(view->id, wire->query_id)
                                 : point_key_compare(&view_key, &wanted) == 0;
            if (!match) continue;
            if (found != NULL && point_key_compare(&view_key, &plan->left_out) != 0) {
                return err_set(err, OMEN_EINVAL, where,
                        "several points have id %s: give the shard key as well", id);
            }
            found = view;
            plan->left_out = view_key;
        }
    }
    if (found == NULL && r->reply.shards_missing_count > 0)
        return err_set(err, OMEN_EUNAVAILABLE, where, "point %s is in no shard that answers", id);
    if (found == NULL) return err_set(err, OMEN_ENOTFOUND, where, "no point %s", id);
    const struct vector_field *field = &r->collection->schema.fields[plan->params.field];
    const float *vector = found->vectors[plan->params.field];
    if (vector == NULL) {
        return err_set(err, OMEN_EINVAL, where, "point %s has no vector in field \"%s\"", id, field->name);
    }
    plan->params.query = arena_copy(&r->arena, (const void *)vector, 4 * (size_t)field->dim);
    return plan->params.query == NULL ? out_of_memory(err) : OMEN_OK;
}

static void by_id_gathered(struct request *r)
{
    struct err *err = &r->reply.err;
    enum omen_err rc = scatter_settle(r);
    for (uint32_t i = 0; rc == OMEN_OK && i < r->wire.search.count; i++) {
        if (r->plans[i].by_id) rc = by_id_take(r, i, err);
    }
    r->reply.shards_missing_count = 0; /* what was asked for was found: the searches themselves decide */
    if (rc == OMEN_OK) rc = search_scatter(r, err);
    if (rc != OMEN_OK) {
        request_finish(r, rc);
    } else {
        scatter_go(r, search_gathered);
    }
}

/* All points that ask go to every shard when one of them comes without its key, else where their slots are. */
static enum omen_err by_id_scatter(struct request *r, struct err *err)
{
    uint32_t shard_count = r->collection->shard_count, asked = 0, count = 0;
    struct call_get *items = arena_calloc(&r->arena, r->by_id_count, sizeof *items);
    uint8_t *touched = arena_calloc(&r->arena, shard_count, 1);
    if (items == NULL || touched == NULL) return out_of_memory(err);
    uint32_t vector_mask = 0;
    for (uint32_t i = 0; i < r->wire.search.count; i++) {
        const struct wire_search *wire = &r->wire.search.searches[i];
        if (!wire->by_id) continue;
        struct call_get *item = &items[count++];
        item->id = wire->query_id;
        enum omen_err rc = resolve_key(r, wire->query_key, "searches", "key", i, &item->key, &item->any_key,
                err);
        if (rc != OMEN_OK) return rc;
        vector_mask |= 1u << r->plans[i].params.field;
        if (item->any_key) {
            memset(touched, 1, shard_count);
        } else {
            touched[map_shard_of_slot(r->collection, point_slot(item->id, item->key)) -
                    r->collection->shards] = 1;
        }
    }
    for (uint32_t s = 0; s < shard_count; s++) asked += touched[s];
    enum omen_err rc = scatter_prepare(r, asked, err);
    if (rc != OMEN_OK) return rc;
    for (uint32_t s = 0, c = 0; s < shard_count; s++) {
        if (!touched[s]) continue;
        scatter_call_init(r, c, CALL_GET, s);
        r->calls[c].in.get.items = items;
        r->calls[c].in.get.count = count;
        r->calls[c].in.get.selection = (struct point_selection){ .vector_mask = vector_mask };
        c++;
    }
    return OMEN_OK;
}

void op_search(struct request *r)
{
    struct err *err = &r->reply.err;
    enum omen_err rc = resolve_collection(r, err);
    if (rc == OMEN_OK) rc = plan_all(r, err);
    bool by_id = r->by_id_count > 0;
    if (rc == OMEN_OK && by_id && r->wire.search.explain) r->by_id_ns = now_ns(r);
    if (rc == OMEN_OK) rc = by_id ? by_id_scatter(r, err) : search_scatter(r, err);
    if (rc != OMEN_OK) {
        request_finish(r, rc);
    } else {
        scatter_go(r, by_id ? by_id_gathered : search_gathered);
    }
}
