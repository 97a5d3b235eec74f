/* Filters from docs: the tree of must, should, must_not, min_should, and the conditions that are not about
 * the values at one path (those are in filter_field.c). What each condition means is written in filter.h.
 * The tree lives in the caller's arena. One thread per parse. Recursion is bounded by FILTER_DEPTH_MAX. */
#include "common/query/filter_parser.h"

#include <stdlib.h>

#include "common/check.h"

static enum omen_err parse_filter(struct filter_parser *p, struct doc doc, const struct doc_place *place,
        struct filter *node);

static enum omen_err new_node(struct filter_parser *p, const struct doc_place *place,
        struct filter **node_out)
{
    if (p->condition_count == FILTER_CONDITIONS_MAX)
        return filter_refuse(p, place, OMEN_ETOOBIG, "a filter holds at most %d conditions",
                FILTER_CONDITIONS_MAX);
    p->condition_count++;
    *node_out = arena_calloc(p->arena, 1, sizeof **node_out);
    return *node_out == NULL ? filter_no_memory(p) : OMEN_OK;
}

/* ---- conditions -------------------------------------------------------------------------------------- */

static int id_order(const void *a, const void *b)
{
    return point_id_compare(*(const point_id *)a, *(const point_id *)b);
}

static enum omen_err parse_id(const struct filter_parser *p, struct doc value, const struct doc_place *place,
        point_id *id_out)
{
    if (doc_type(value) == DOC_I64 && doc_i64(value) >= 0) {
        *id_out = (point_id){ .lo = (uint64_t)doc_i64(value), .kind = POINT_ID_U64 };
        return OMEN_OK;
    }
    if (doc_type(value) == DOC_STRING) {
        struct bytes text = doc_string(value);
        if (point_id_parse((const char *)text.data, text.len, id_out) == OMEN_OK) return OMEN_OK;
    }
    return filter_refuse(p, place, OMEN_EINVAL, "a point id is a number of at least 0 or a UUID");
}

static enum omen_err parse_has_id(struct filter_parser *p, struct doc list, const struct doc_place *place,
        struct filter *node)
{
    if (p->nested > 0)
        return filter_refuse(p, place, OMEN_EINVAL,
                "elements have no id; put has_id beside nested, not inside");
    void *items;
    enum omen_err rc = filter_begin_list(p, list, place, sizeof(point_id), &items);
    if (rc != OMEN_OK) return rc;
    point_id *ids = items;
    uint32_t count = 0, distinct = 0;
    struct doc_iter it = doc_iter(list);
    struct doc value;
    while (doc_next(&it, NULL, &value)) {
        const struct doc_place here = { .up = place, .slot = count };
        rc = parse_id(p, value, &here, &ids[count]);
        if (rc != OMEN_OK) return rc;
        count++;
    }
    qsort(ids, count, sizeof *ids, id_order);
    for (uint32_t i = 0; i < count; i++)
        if (i == 0 || !point_id_equal(ids[distinct - 1], ids[i])) ids[distinct++] = ids[i];
    node->kind = FILTER_HAS_ID;
    node->has_id.ids = ids;
    node->has_id.count = distinct;
    return OMEN_OK;
}

/* {"key": path} of is_empty and is_null. */
static enum omen_err parse_key_object(const struct filter_parser *p, struct doc doc,
        const struct doc_place *place, enum filter_kind kind, struct filter *node)
{
    static const char *const names[] = { "key", NULL };
    enum omen_err rc = filter_check_members(p, doc, place, names);
    if (rc != OMEN_OK) return rc;
    node->kind = kind;
    const struct doc_place key_place = filter_place_key(place, "key");
    return filter_parse_path(p, filter_member(doc, "key"), &key_place, &node->path);
}

/* "items" means "items[]": nested looks into the elements of arrays, and the parsed path says so. */
static enum omen_err parse_nested_path(const struct filter_parser *p, struct doc value,
        const struct doc_place *place, struct filter *node)
{
    enum omen_err rc = filter_parse_path(p, value, place, &node->path);
    if (rc != OMEN_OK) return rc;
    struct bytes text = doc_path_text(node->path);
    if (text.len >= 2 && memcmp(text.data + text.len - 2, "[]", 2) == 0) return OMEN_OK;
    char opened[DOC_PATH_BYTES_MAX + 3];
    memcpy(opened, text.data, text.len);
    memcpy(opened + text.len, "[]", 2);
    rc = doc_path_parse(opened, text.len + 2, p->arena, &node->path, p->err);
    if (rc == OMEN_OK) return rc;
    char field[ERR_FIELD_BYTES];
    doc_place_format(place, field);
    err_prefix(p->err, field);
    return rc;
}

static enum omen_err parse_nested(struct filter_parser *p, struct doc doc, const struct doc_place *place,
        struct filter *node)
{
    static const char *const names[] = { "key", "filter", NULL };
    enum omen_err rc = filter_check_members(p, doc, place, names);
    if (rc != OMEN_OK) return rc;
    const struct doc_place key_place = filter_place_key(place, "key");
    rc = parse_nested_path(p, filter_member(doc, "key"), &key_place, node);
    if (rc != OMEN_OK) return rc;
    const struct doc_place filter_place = filter_place_key(place, "filter");
    struct doc inner = filter_member(doc, "filter");
    if (inner.data == NULL) return filter_refuse(p, &filter_place, OMEN_EINVAL, "a filter is missing");
    struct filter *child;
    rc = new_node(p, &filter_place, &child);
    if (rc != OMEN_OK) return rc;
    p->nested++;
    rc = parse_filter(p, inner, &filter_place, child);
    p->nested--;
    node->kind = FILTER_NESTED;
    node->nested = child;
    return rc;
}

/* Kinds of condition by the member that tells them, most telling first. */
static const char *const condition_names[] = { "key", "is_empty", "is_null", "has_id", "nested", "must",
    "should", "must_not", "min_should", NULL };
enum { BY_KEY, BY_IS_EMPTY, BY_IS_NULL, BY_HAS_ID, BY_NESTED, BY_FILTER };

static enum omen_err parse_condition(struct filter_parser *p, struct doc doc, const struct doc_place *place,
        struct filter *node)
{
    if (doc_type(doc) != DOC_OBJECT)
        return filter_refuse(p, place, OMEN_EINVAL, "a condition must be an object");
    int by = BY_KEY;
    struct doc value = { NULL, 0 };
    for (; condition_names[by] != NULL; by++) {
        const char *name = condition_names[by];
        value = doc_member(doc, (struct bytes){ (const uint8_t *)name, strlen(name) });
        if (value.data != NULL) break;
    }
    if (by == BY_KEY) return filter_parse_field(p, doc, place, node);
    if (by >= BY_FILTER) { /* {} is a filter too */
        if (condition_names[by] != NULL || doc_count(doc) == 0) return parse_filter(p, doc, place, node);
        return filter_check_members(p, doc, place, condition_names);
    }
    const char *const alone[] = { condition_names[by], NULL };
    enum omen_err rc = filter_check_members(p, doc, place, alone);
    if (rc != OMEN_OK) return rc;
    const struct doc_place here = filter_place_key(place, condition_names[by]);
    switch (by) {
    case BY_IS_EMPTY: return parse_key_object(p, value, &here, FILTER_IS_EMPTY, node);
    case BY_IS_NULL: return parse_key_object(p, value, &here, FILTER_IS_NULL, node);
    case BY_HAS_ID: return parse_has_id(p, value, &here, node);
    default: return parse_nested(p, value, &here, node);
    }
}

/* ---- filters ----------------------------------------------------------------------------------------- */

struct condition_list {
    const struct filter *const *items;
    uint32_t count;
};

/* A list of conditions, or one alone; absent gives none. */
static enum omen_err parse_list(struct filter_parser *p, struct doc doc, const struct doc_place *place,
        struct condition_list *list_out)
{
    *list_out = (struct condition_list){ NULL, 0 };
    if (doc.data == NULL) return OMEN_OK;
    bool is_list = doc_type(doc) == DOC_ARRAY;
    if (!is_list && doc_type(doc) != DOC_OBJECT)
        return filter_refuse(p, place, OMEN_EINVAL, "must be a list of conditions");
    uint32_t count = is_list ? doc_count(doc) : 1;
    if (count > FILTER_CONDITIONS_MAX)
        return filter_refuse(p, place, OMEN_ETOOBIG, "a filter holds at most %d conditions",
                FILTER_CONDITIONS_MAX);
    const struct filter **items = arena_alloc(p->arena, (count + (count == 0)) * sizeof *items);
    if (items == NULL) return filter_no_memory(p);
    struct doc_iter it = doc_iter(doc);
    struct doc value = doc;
    for (uint32_t i = 0; i < count; i++) {
        const struct doc_place element = { .up = place, .slot = i };
        const struct doc_place *here = is_list ? &element : place;
        if (is_list) doc_next(&it, NULL, &value);
        struct filter *node;
        enum omen_err rc = new_node(p, here, &node);
        if (rc == OMEN_OK) rc = parse_condition(p, value, here, node);
        if (rc != OMEN_OK) return rc;
        items[i] = node;
    }
    *list_out = (struct condition_list){ items, count };
    return OMEN_OK;
}

static enum omen_err parse_min_should(struct filter_parser *p, struct doc doc, const struct doc_place *place,
        struct condition_list *list_out, uint32_t *min_count_out)
{
    static const char *const names[] = { "conditions", "min_count", NULL };
    *list_out = (struct condition_list){ NULL, 0 };
    *min_count_out = 0;
    if (doc.data == NULL) return OMEN_OK;
    enum omen_err rc = filter_check_members(p, doc, place, names);
    if (rc != OMEN_OK) return rc;
    const struct doc_place count_place = filter_place_key(place, "min_count");
    struct doc min_count = filter_member(doc, "min_count");
    bool is_count = min_count.data != NULL && doc_type(min_count) == DOC_I64 && doc_i64(min_count) >= 0;
    if (!is_count) return filter_refuse(p, &count_place, OMEN_EINVAL, "must be an integer of at least 0");
    *min_count_out = doc_i64(min_count) > UINT32_MAX ? UINT32_MAX : (uint32_t)doc_i64(min_count);
    const struct doc_place list_place = filter_place_key(place, "conditions");
    struct doc conditions = filter_member(doc, "conditions");
    if (conditions.data == NULL)
        return filter_refuse(p, &list_place, OMEN_EINVAL, "must be a list of conditions");
    return parse_list(p, conditions, &list_place, list_out);
}

static enum omen_err parse_lists(struct filter_parser *p, struct doc doc, const struct doc_place *place,
        struct filter *node)
{
    static const char *const names[] = { "must", "should", "must_not", "min_should" };
    struct condition_list lists[4];
    uint32_t min_count = 0;
    for (int i = 0; i < 4; i++) {
        const struct doc_place here = filter_place_key(place, names[i]);
        struct doc value = filter_member(doc, names[i]);
        enum omen_err rc = i < 3 ? parse_list(p, value, &here, &lists[i])
                                 : parse_min_should(p, value, &here, &lists[i], &min_count);
        if (rc != OMEN_OK) return rc;
    }
    node->kind = FILTER_BOOL;
    node->all.must = lists[0].items;
    node->all.must_count = lists[0].count;
    node->all.should = lists[1].items;
    node->all.should_count = lists[1].count;
    node->all.must_not = lists[2].items;
    node->all.must_not_count = lists[2].count;
    node->all.min_should = lists[3].items;
    node->all.min_should_count = lists[3].count;
    node->all.min_count = min_count;
    return OMEN_OK;
}

static enum omen_err parse_filter(struct filter_parser *p, struct doc doc, const struct doc_place *place,
        struct filter *node)
{
    static const char *const names[] = { "must", "should", "must_not", "min_should", NULL };
    enum omen_err rc = filter_check_members(p, doc, place, names);
    if (rc != OMEN_OK) return rc;
    if (p->depth == FILTER_DEPTH_MAX)
        return filter_refuse(p, place, OMEN_ETOOBIG, "filters are nested deeper than %d levels",
                FILTER_DEPTH_MAX);
    p->depth++;
    rc = parse_lists(p, doc, place, node);
    p->depth--;
    return rc;
}

enum omen_err filter_parse(struct doc doc, struct arena *arena, const struct filter **filter_out,
        struct err *err)
{
    *filter_out = NULL;
    if (doc.data == NULL) return OMEN_OK;
    struct filter_parser p = { .arena = arena, .err = err };
    const struct doc_place place = filter_place_key(NULL, "filter");
    struct filter *root;
    enum omen_err rc = new_node(&p, &place, &root);
    if (rc != OMEN_OK) return rc;
    /* A condition given where a filter is expected is a likely slip: say so instead of "unknown member". */
    if (doc_type(doc) == DOC_OBJECT &&
            doc_member(doc, (struct bytes){ (const uint8_t *)"key", 3 }).data != NULL)
        return filter_refuse(&p, &place, OMEN_EINVAL,
                "is a condition; put it into a filter: {\"must\": [...]}");
    rc = parse_filter(&p, doc, &place, root);
    if (rc != OMEN_OK) return rc;
    bool empty = root->all.must_count + root->all.should_count + root->all.must_not_count +
                            root->all.min_should_count ==
                    0 &&
            root->all.min_count == 0;
    if (!empty) *filter_out = root;
    return OMEN_OK;
}
