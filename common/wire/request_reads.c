/* Reads from msgpack: what to return (selection), filters, scrolls and searches. */
#include "common/wire/request.h"

#include <math.h>

/* ---- selection ------------------------------------------------------------------------------------------------- */

static enum omen_err read_paths(struct reader *r, const msgpack_object *v, struct wire_selection *out)
{
    msgpack_object_array array;
    enum omen_err rc = read_array(r, v, 0, WIRE_PATHS_MAX, &array);
    if (rc != OMEN_OK) return rc;
    const struct doc_path **paths = NULL;
    rc = read_alloc(r, array.size, sizeof *paths, &paths);
    for (uint32_t i = 0; rc == OMEN_OK && i < array.size; i++) {
        struct bytes text;
        rc = read_str(r, &array.ptr[i], DOC_PATH_BYTES_MAX, &text);
        if (rc == OMEN_OK)
            rc = doc_path_parse((const char *)text.data, text.len, r->arena, &paths[i], r->err);
        if (rc != OMEN_OK) prefix_slot(r->err, "", i);
    }
    if (rc != OMEN_OK) return rc;
    out->payload_paths = paths;
    out->payload_path_count = array.size;
    return OMEN_OK;
}

/* bool, array of paths to keep, or {"exclude": [paths]}. */
static enum omen_err read_with_payload(struct reader *r, const msgpack_object *v, struct wire_selection *out)
{
    static const char *const names[] = { "exclude" };
    const msgpack_object *exclude;
    enum omen_err rc;
    switch (v->type) {
    case MSGPACK_OBJECT_BOOLEAN: out->with_payload = v->via.boolean; return OMEN_OK;
    case MSGPACK_OBJECT_ARRAY:
        out->with_payload = v->via.array.size > 0; /* no path means no payload, not all of it */
        out->payload_include = true;
        return read_paths(r, v, out);
    case MSGPACK_OBJECT_MAP:
        out->with_payload = true;
        rc = map_collect(r, v, names, 1, 1, &exclude);
        if (rc != OMEN_OK) return rc;
        if (exclude == NULL) return err_set(r->err, OMEN_EINVAL, "exclude", "is needed");
        rc = read_paths(r, exclude, out);
        if (rc != OMEN_OK) err_prefix(r->err, "exclude");
        return rc;
    default: return read_expected(r, v, "bool, array of paths or map with exclude");
    }
}

static enum omen_err read_with_vectors(struct reader *r, const msgpack_object *v, struct wire_selection *out)
{
    if (v->type == MSGPACK_OBJECT_BOOLEAN) {
        out->with_all_vectors = v->via.boolean;
        return OMEN_OK;
    }
    if (v->type != MSGPACK_OBJECT_ARRAY) return read_expected(r, v, "bool or array of field names");
    msgpack_object_array array;
    enum omen_err rc = read_array(r, v, 0, OMEN_VECTOR_FIELDS_MAX, &array);
    if (rc != OMEN_OK) return rc;
    struct bytes *names = NULL;
    rc = read_alloc(r, array.size, sizeof *names, &names);
    for (uint32_t i = 0; rc == OMEN_OK && i < array.size; i++) {
        rc = read_str(r, &array.ptr[i], OMEN_NAME_BYTES_MAX, &names[i]);
        if (rc != OMEN_OK) prefix_slot(r->err, "", i);
    }
    if (rc != OMEN_OK) return rc;
    out->vector_fields = names;
    out->vector_field_count = array.size;
    return OMEN_OK;
}

static enum omen_err read_selection(struct reader *r, const msgpack_object *with_payload,
        const msgpack_object *with_vectors, bool payload_default, struct wire_selection *out)
{
    out->with_payload = payload_default;
    enum omen_err rc = OMEN_OK;
    if (with_payload != NULL) {
        rc = read_with_payload(r, with_payload, out);
        if (rc != OMEN_OK) err_prefix(r->err, "with_payload");
    }
    if (rc == OMEN_OK && with_vectors != NULL) {
        rc = read_with_vectors(r, with_vectors, out);
        if (rc != OMEN_OK) err_prefix(r->err, "with_vectors");
    }
    return rc;
}

/* filter_parse borrows strings from the doc, which lies in the arena. */
static enum omen_err read_filter(struct reader *r, const msgpack_object *v, const struct filter **filter_out,
        struct doc *doc_out)
{
    *filter_out = NULL;
    *doc_out = (struct doc){ NULL, 0 };
    if (v == NULL) return OMEN_OK;
    if (v->type != MSGPACK_OBJECT_MAP) {
        enum omen_err rc = read_expected(r, v, "map");
        err_prefix(r->err, "filter");
        return rc;
    }
    enum omen_err rc = read_doc(r, v, DOC_FILTER_BYTES_MAX, doc_out);
    if (rc != OMEN_OK) {
        err_prefix(r->err, "filter");
        return rc;
    }
    return filter_parse(*doc_out, r->arena, filter_out, r->err);
}

enum omen_err decode_filter(struct request_reader *q, const struct filter **filter_out, struct doc *doc_out)
{
    return read_filter(&q->r, q->members[M_FILTER], filter_out, doc_out);
}

/* ---- get, scroll, count ---------------------------------------------------------------------------------------- */

enum omen_err decode_get(struct request_reader *q)
{
    enum omen_err rc = decode_get_ids(q);
    if (rc != OMEN_OK) return rc;
    return read_selection(&q->r, q->members[M_WITH_PAYLOAD], q->members[M_WITH_VECTORS], true,
            &q->out->get.selection);
}

enum omen_err decode_scroll(struct request_reader *q)
{
    struct reader *r = &q->r;
    enum omen_err rc = OMEN_OK;
    const msgpack_object *cursor = q->members[M_CURSOR];
    if (cursor != NULL && cursor->type == MSGPACK_OBJECT_STR) {
        rc = in_member(q, M_CURSOR, read_str(r, cursor, WIRE_CURSOR_BYTES_MAX, &q->out->scroll.cursor));
    } else if (cursor != NULL) {
        rc = in_member(q, M_CURSOR, read_bin(r, cursor, WIRE_CURSOR_BYTES_MAX, &q->out->scroll.cursor));
    }
    q->out->scroll.limit = WIRE_SCROLL_LIMIT_DEFAULT;
    if (rc == OMEN_OK && q->members[M_LIMIT] != NULL) {
        rc = in_member(q, M_LIMIT,
                read_u32(r, q->members[M_LIMIT], 1, OMEN_SCROLL_LIMIT_MAX, &q->out->scroll.limit));
    }
    if (rc == OMEN_OK)
        rc = read_filter(r, q->members[M_FILTER], &q->out->scroll.filter, &q->out->scroll.filter_doc);
    if (rc != OMEN_OK) return rc;
    return read_selection(r, q->members[M_WITH_PAYLOAD], q->members[M_WITH_VECTORS], true,
            &q->out->scroll.selection);
}

enum omen_err decode_count(struct request_reader *q)
{
    return read_filter(&q->r, q->members[M_FILTER], &q->out->count.filter, &q->out->count.filter_doc);
}

/* ---- search ---------------------------------------------------------------------------------------------------- */

/* Array of numbers, for convenience: turned into the same bytes a bin would have brought. */
static enum omen_err read_query_numbers(struct reader *r, const msgpack_object *v, struct bytes *out)
{
    msgpack_object_array array;
    enum omen_err rc = read_array(r, v, 1, OMEN_DIM_MAX, &array);
    if (rc != OMEN_OK) return rc;
    float *query = NULL;
    rc = read_alloc(r, array.size, sizeof *query, &query);
    for (uint32_t i = 0; rc == OMEN_OK && i < array.size; i++) {
        double component = 0;
        rc = read_f64(r, &array.ptr[i], &component);
        query[i] = (float)component;
        if (rc == OMEN_OK && !isfinite(query[i]))
            rc = err_set(r->err, OMEN_EINVAL, NULL, "number is not a finite f32");
        if (rc != OMEN_OK) prefix_slot(r->err, "", i);
    }
    if (rc == OMEN_OK) *out = (struct bytes){ (const uint8_t *)query, sizeof *query * array.size };
    return rc;
}

static enum omen_err read_query(struct reader *r, const msgpack_object *v, struct bytes *out)
{
    if (v->type == MSGPACK_OBJECT_ARRAY) return read_query_numbers(r, v, out);
    if (v->type != MSGPACK_OBJECT_BIN) return read_expected(r, v, "bin of f32, or array of numbers");
    enum omen_err rc = read_bin(r, v, 4 * OMEN_DIM_MAX, out);
    if (rc != OMEN_OK) return rc;
    if (out->len > 0 && out->len % 4 == 0) return OMEN_OK;
    return err_set(r->err, OMEN_EINVAL, NULL, "%zu bytes are no whole number of f32", out->len);
}

/* What is searched for: a vector, or the vector of a stored point. */
static enum omen_err decode_search_query(struct reader *r, const msgpack_object **m, struct wire_search *out)
{
    enum omen_err rc = OMEN_OK;
    if ((m[S_VECTOR] == NULL) == (m[S_ID] == NULL)) {
        return err_set(r->err, OMEN_EINVAL, "vector", "exactly one of vector and id is needed");
    }
    if (m[S_KEY] != NULL && m[S_ID] == NULL) return err_set(r->err, OMEN_EINVAL, "key", "goes with id only");
    if (m[S_VECTOR] != NULL) {
        rc = read_query(r, m[S_VECTOR], &out->query);
        if (rc != OMEN_OK) err_prefix(r->err, "vector");
        return rc;
    }
    out->by_id = true;
    rc = read_id(r, m[S_ID], &out->query_id);
    if (rc != OMEN_OK) {
        err_prefix(r->err, "id");
        return rc;
    }
    if (m[S_KEY] == NULL) return OMEN_OK;
    rc = read_doc(r, m[S_KEY], DOC_BYTES_MAX, &out->query_key);
    if (rc != OMEN_OK) err_prefix(r->err, "key");
    return rc;
}

static enum omen_err decode_search_range(struct reader *r, const msgpack_object **m, struct wire_search *out)
{
    enum omen_err rc = OMEN_OK;
    out->k = WIRE_K_DEFAULT;
    if (m[S_K] != NULL) {
        rc = read_u32(r, m[S_K], 1, OMEN_K_MAX, &out->k);
        if (rc != OMEN_OK) err_prefix(r->err, "k");
    }
    if (rc == OMEN_OK && m[S_OFFSET] != NULL) {
        rc = read_u32(r, m[S_OFFSET], 0, OMEN_K_MAX, &out->offset);
        if (rc == OMEN_OK && out->k + out->offset > OMEN_K_MAX) {
            rc = err_set(r->err, OMEN_ETOOBIG, NULL, "k + offset is %u, the limit is %d",
                    out->k + out->offset, OMEN_K_MAX);
        }
        if (rc != OMEN_OK) err_prefix(r->err, "offset");
    }
    if (rc == OMEN_OK && m[S_SCORE_THRESHOLD] != NULL) {
        double threshold = 0;
        rc = read_f64(r, m[S_SCORE_THRESHOLD], &threshold);
        out->score_threshold = (float)threshold;
        out->has_score_threshold = true;
        if (rc == OMEN_OK && !isfinite(out->score_threshold)) {
            rc = err_set(r->err, OMEN_EINVAL, NULL, "must be a finite f32");
        }
        if (rc != OMEN_OK) err_prefix(r->err, "score_threshold");
    }
    if (rc == OMEN_OK && m[S_EXACT] != NULL) {
        rc = read_bool(r, m[S_EXACT], &out->exact);
        if (rc != OMEN_OK) err_prefix(r->err, "exact");
    }
    return rc;
}

static enum omen_err decode_one_search(struct reader *r, const msgpack_object *v, struct wire_search *out)
{
    const msgpack_object *m[S_COUNT];
    memset(out, 0, sizeof *out);
    out->field = (struct bytes){ (const uint8_t *)"", 0 };
    enum omen_err rc = map_collect(r, v, SEARCH_MEMBER_NAMES, S_COUNT, UINT64_MAX, m);
    if (rc == OMEN_OK) rc = decode_search_query(r, m, out);
    if (rc == OMEN_OK && m[S_FIELD] != NULL) {
        rc = read_str(r, m[S_FIELD], OMEN_NAME_BYTES_MAX, &out->field);
        if (rc != OMEN_OK) err_prefix(r->err, "field");
    }
    if (rc == OMEN_OK) rc = decode_search_range(r, m, out);
    if (rc == OMEN_OK) rc = read_filter(r, m[S_FILTER], &out->filter, &out->filter_doc);
    if (rc == OMEN_OK) rc = read_selection(r, m[S_WITH_PAYLOAD], m[S_WITH_VECTORS], false, &out->selection);
    return rc;
}

enum omen_err decode_search(struct request_reader *q)
{
    enum omen_err rc = need_member(q, M_SEARCHES);
    if (rc != OMEN_OK) return rc;
    msgpack_object_array array;
    rc = in_member(q, M_SEARCHES,
            read_array(&q->r, q->members[M_SEARCHES], 1, OMEN_BATCH_SEARCHES_MAX, &array));
    if (rc != OMEN_OK) return rc;
    struct wire_search *searches = NULL;
    rc = read_alloc(&q->r, array.size, sizeof *searches, &searches);
    for (uint32_t i = 0; rc == OMEN_OK && i < array.size; i++) {
        rc = decode_one_search(&q->r, &array.ptr[i], &searches[i]);
        if (rc != OMEN_OK) prefix_slot(q->r.err, MEMBER_NAMES[M_SEARCHES], i);
    }
    if (rc != OMEN_OK) return rc;
    q->out->search.searches = searches;
    q->out->search.count = array.size;
    if (q->members[M_EXPLAIN] == NULL) return OMEN_OK;
    return in_member(q, M_EXPLAIN, read_bool(&q->r, q->members[M_EXPLAIN], &q->out->search.explain));
}
