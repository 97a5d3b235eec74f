/* Reads: search, get, scroll, count. Results own all they point to. */
#include <stdio.h>
#include <string.h>

#include "tools/client/client_impl.h"

/* What every read sets up and takes down. */
struct read {
    struct omen_client *client;
    struct scratch *s;
    struct err *err;
    omen_results *results; /* NULL for count */
    struct arena *arena;   /* of the results, or the scratch's */
    struct wire_request request;
    struct wire_reply reply;
};

static enum omen_err read_begin(struct read *r, omen_client *client, const char *collection, enum wire_op op,
        size_t result_count)
{
    *r = (struct read){ .client = client, .err = client_err() };
    if (client == NULL) return err_set(r->err, OMEN_EINVAL, "client", "client is NULL");
    if (collection == NULL) return err_set(r->err, OMEN_EINVAL, "collection", "no collection is given");
    r->request = (struct wire_request){ .op = op, .collection = client_bytes(collection) };
    r->s = scratch_take(client);
    if (r->s == NULL) return err_set(r->err, OMEN_ENOMEM, NULL, "no memory for a request");
    r->arena = &r->s->arena;
    return result_count == 0 ? OMEN_OK : results_new(result_count, &r->results, &r->arena, r->err);
}

static omen_code read_end(struct read *r, enum omen_err rc, omen_results **results_out)
{
    if (r->s != NULL) scratch_give(r->client, r->s);
    if (rc != OMEN_OK)
        omen_results_free(r->results);
    else if (results_out != NULL)
        *results_out = r->results;
    return (omen_code)rc;
}

static void take_missing(omen_results *results, const struct read *r)
{
    results->shards_missing = r->reply.shards_missing; /* in the results' arena */
    results->shards_missing_count = r->reply.shards_missing_count;
    results->stale = r->reply.stale;
}

/* ---- search ---- */

static enum omen_err build_search(struct read *r, const float *query, uint32_t dim,
        const omen_search_options *options, struct wire_search *search)
{
    *search = (struct wire_search){ .field = client_bytes(options->field), .offset = options->offset };
    search->k = options->k == 0 ? WIRE_K_DEFAULT : options->k;
    if (options->by_id != NULL) {
        search->by_id = true;
        search->query_id = build_id(options->by_id);
        if (options->by_id_shard_key_json != NULL) {
            enum omen_err rc = build_doc(options->by_id_shard_key_json, DOC_BYTES_MAX, "by_id_shard_key",
                    r->s, &search->query_key, r->err);
            if (rc != OMEN_OK) return rc;
        }
    } else {
        if (query == NULL) return err_set(r->err, OMEN_EINVAL, "query", "neither query nor by_id is given");
        if (dim == 0 || dim > OMEN_DIM_MAX)
            return err_set(r->err, OMEN_EINVAL, "query", "dimension %u is not between 1 and %d", dim,
                    OMEN_DIM_MAX);
        search->query = (struct bytes){ (const uint8_t *)query, (size_t)dim * sizeof(float) };
    }
    search->exact = options->exact;
    if (options->score_threshold != NULL) {
        search->has_score_threshold = true;
        search->score_threshold = *options->score_threshold;
    }
    enum omen_err rc = build_filter(options->filter, r->s, &search->filter, &search->filter_doc, r->err);
    if (rc != OMEN_OK) return rc;
    return build_selection(&options->select, r->s, &search->selection, r->err);
}

/* [count] searches alike but for the query. */
static enum omen_err build_searches(struct read *r, const float *queries, uint32_t dim, size_t count,
        const omen_search_options *options)
{
    struct wire_search *searches = arena_calloc(&r->s->arena, count, sizeof *searches);
    if (searches == NULL) return err_set(r->err, OMEN_ENOMEM, NULL, "no memory for a request");
    enum omen_err rc = build_consistency(options->consistency, &r->request.consistency, r->err);
    if (rc == OMEN_OK) rc = build_search(r, queries, dim, options, &searches[0]);
    if (rc != OMEN_OK) return rc;
    for (size_t i = 1; i < count; i++) {
        searches[i] = searches[0];
        searches[i].query.data += i * searches[0].query.len;
    }
    r->request.allow_partial = options->select.allow_partial;
    r->request.search.searches = searches;
    r->request.search.count = (uint32_t)count;
    r->request.search.explain = options->explain;
    return OMEN_OK;
}

/* One text for all results of the request. */
static enum omen_err take_explain(struct read *r, size_t count)
{
    const char *json;
    if (r->reply.search.explain.data == NULL) return OMEN_OK;
    enum omen_err rc = results_doc_text(r->reply.search.explain, r->arena, r->s, &json, r->err);
    for (size_t i = 0; rc == OMEN_OK && i < count; i++) r->results[i].explain_json = json;
    return rc;
}

static enum omen_err take_searches(struct read *r, size_t count)
{
    if (r->reply.search.count != count)
        return err_set(r->err, OMEN_EPROTO, NULL, "reply holds %u results for %zu searches",
                r->reply.search.count, count);
    for (size_t i = 0; i < count; i++) {
        omen_results *result = &r->results[i];
        result->higher_is_nearer = r->reply.search.results[i].higher_is_nearer;
        result->engine_ns = r->reply.engine_ns;
        result->shards_asked = r->reply.search.shards_asked;
        result->shards_total = r->reply.search.shards_total;
        result->rows_scanned = r->reply.search.rows_scanned;
        take_missing(result, r);
        enum omen_err rc = results_set_hits(result, r->arena, r->s, r->reply.schema,
                &r->reply.search.results[i], r->err);
        if (rc != OMEN_OK) return rc;
    }
    return take_explain(r, count);
}

omen_code omen_search_batch(omen_client *client, const char *collection, const float *queries, uint32_t dim,
        size_t count, const omen_search_options *options, omen_results **results_out)
{
    static const omen_search_options none;
    if (options == NULL) options = &none;
    if (count == 0 || count > OMEN_BATCH_SEARCHES_MAX || (count > 1 && options->by_id != NULL)) {
        (void)client_err();
        return client_fail(OMEN_EINVAL, "count",
                "%zu searches in one request: 1 to %d are allowed, 1 with by_id", count,
                OMEN_BATCH_SEARCHES_MAX);
    }
    struct read r;
    enum omen_err rc = read_begin(&r, client, collection, WIRE_SEARCH, count);
    if (rc == OMEN_OK) rc = build_searches(&r, queries, dim, count, options);
    if (rc == OMEN_OK) rc = client_call(client, &r.request, r.s, r.arena, &r.reply, r.err);
    if (rc == OMEN_OK) rc = take_searches(&r, count);
    return read_end(&r, rc, results_out);
}

omen_code omen_search(omen_client *client, const char *collection, const float *query, uint32_t dim,
        const omen_search_options *options, omen_results **results_out)
{
    return omen_search_batch(client, collection, query, dim, 1, options, results_out);
}

/* ---- get, scroll, count ---- */

omen_code omen_get(omen_client *client, const char *collection, const omen_id *ids,
        const char *const *shard_keys_json, size_t count, const omen_select *select,
        omen_results **results_out)
{
    struct read r;
    enum omen_err rc = read_begin(&r, client, collection, WIRE_GET, 1);
    if (rc == OMEN_OK && (count == 0 || count > OMEN_BATCH_POINTS_MAX || ids == NULL))
        rc = err_set(r.err, OMEN_EINVAL, "ids", "%zu ids: 1 to %d are allowed", count, OMEN_BATCH_POINTS_MAX);
    if (rc == OMEN_OK) rc = build_ids(ids, count, &r.s->arena, &r.request.get.ids, r.err);
    if (rc == OMEN_OK)
        rc = build_docs(shard_keys_json, count, "shard_keys", (struct doc){ NULL, 0 }, r.s,
                &r.request.get.keys, r.err);
    if (rc == OMEN_OK) rc = build_selection(select, r.s, &r.request.get.selection, r.err);
    if (rc == OMEN_OK && select != NULL)
        rc = build_consistency(select->consistency, &r.request.consistency, r.err);
    r.request.get.count = (uint32_t)count;
    r.request.allow_partial = select != NULL && select->allow_partial;
    if (rc == OMEN_OK) rc = client_call(client, &r.request, r.s, r.arena, &r.reply, r.err);
    if (rc == OMEN_OK)
        rc = results_set_points(r.results, r.arena, r.s, r.reply.schema, r.reply.points.points,
                r.reply.points.count, r.err);
    if (rc == OMEN_OK) take_missing(r.results, &r);
    return read_end(&r, rc, results_out);
}

/* Cursors are opaque bytes on the wire, and text in hexadecimal here. */
static enum omen_err cursor_bytes(const char *text, struct read *r, struct bytes *cursor_out)
{
    static const char DIGITS[] = "0123456789abcdef";
    size_t len = text == NULL ? 0 : strlen(text);
    uint8_t *out = len > 2 * WIRE_CURSOR_BYTES_MAX ? NULL : arena_calloc(&r->s->arena, len / 2 + 1, 1);
    for (size_t i = 0; out != NULL && i < len; i++) {
        const char *digit = strchr(DIGITS, text[i]);
        if (digit == NULL)
            out = NULL;
        else
            out[i / 2] = (uint8_t)(out[i / 2] << 4 | (digit - DIGITS));
    }
    if (out == NULL || len % 2 != 0)
        return err_set(r->err, OMEN_EINVAL, "cursor", "cursor is none that a scroll returned");
    *cursor_out = (struct bytes){ out, len / 2 };
    return OMEN_OK;
}

static const char *cursor_text(struct bytes cursor, struct read *r)
{
    buf_clear(&r->s->text);
    for (size_t i = 0; i < cursor.len; i++) buf_printf(&r->s->text, "%02x", cursor.data[i]);
    return r->s->text.failed ? NULL : arena_strdup(r->arena, (const char *)r->s->text.data, r->s->text.len);
}

omen_code omen_scroll(omen_client *client, const char *collection, const char *cursor, uint32_t limit,
        const char *filter, const omen_select *select, omen_results **results_out)
{
    struct read r;
    enum omen_err rc = read_begin(&r, client, collection, WIRE_SCROLL, 1);
    if (rc == OMEN_OK) rc = cursor_bytes(cursor, &r, &r.request.scroll.cursor);
    r.request.allow_partial = select != NULL && select->allow_partial;
    r.request.scroll.limit = limit == 0 ? WIRE_SCROLL_LIMIT_DEFAULT : limit;
    if (rc == OMEN_OK)
        rc = build_filter(filter, r.s, &r.request.scroll.filter, &r.request.scroll.filter_doc, r.err);
    if (rc == OMEN_OK) rc = build_selection(select, r.s, &r.request.scroll.selection, r.err);
    if (rc == OMEN_OK && select != NULL)
        rc = build_consistency(select->consistency, &r.request.consistency, r.err);
    if (rc == OMEN_OK) rc = client_call(client, &r.request, r.s, r.arena, &r.reply, r.err);
    if (rc == OMEN_OK)
        rc = results_set_points(r.results, r.arena, r.s, r.reply.schema, r.reply.points.points,
                r.reply.points.count, r.err);
    if (rc == OMEN_OK) take_missing(r.results, &r);
    if (rc == OMEN_OK && r.reply.points.cursor.len > 0) {
        r.results->next_cursor = cursor_text(r.reply.points.cursor, &r);
        if (r.results->next_cursor == NULL)
            rc = err_set(r.err, OMEN_ENOMEM, NULL, "no memory for the results");
    }
    return read_end(&r, rc, results_out);
}

omen_code omen_count_with(omen_client *client, const char *collection, const char *filter,
        const omen_count_options *options, omen_count_result *result_out)
{
    struct read r;
    enum omen_err rc = read_begin(&r, client, collection, WIRE_COUNT, 0);
    if (rc == OMEN_OK && options != NULL)
        rc = build_consistency(options->consistency, &r.request.consistency, r.err);
    if (rc == OMEN_OK)
        rc = build_filter(filter, r.s, &r.request.count.filter, &r.request.count.filter_doc, r.err);
    r.request.allow_partial = options != NULL && options->allow_partial;
    if (rc == OMEN_OK) rc = client_call(client, &r.request, r.s, r.arena, &r.reply, r.err);
    if (rc == OMEN_OK && result_out != NULL)
        *result_out = (omen_count_result){ .points = r.reply.count.points,
            .shards_missing_count = r.reply.shards_missing_count,
            .stale = r.reply.stale };
    return read_end(&r, rc, NULL);
}

omen_code omen_count(omen_client *client, const char *collection, const char *filter, uint64_t *count_out)
{
    omen_count_result result;
    omen_code rc = omen_count_with(client, collection, filter, NULL, &result);
    if (rc == OMEN_OK && count_out != NULL) *count_out = result.points;
    return rc;
}
