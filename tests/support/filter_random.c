/* Random payloads and filters over a small vocabulary; see filter_random.h. */
#include "tests/support/filter_random.h"

#include <string.h>

static uint64_t rng_state;

void filter_random_seed(uint64_t seed) { rng_state = seed; }

uint32_t filter_random_below(uint32_t below)
{
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    rng_state ^= rng_state << 17;
    return (uint32_t)((rng_state >> 16) % below);
}

/* ---- random documents: a small vocabulary, so that conditions often hold ---- */

static const char *const keys[] = { "a", "b", "c" };
static const char *const paths[] = { "a", "b", "c", "a.b", "a.b.c", "a[]", "a[].b", "b[].c", "a[0]", "b[1]",
    "a[].b[].c", "\"a\".\"b\"", "a[0].c" };
static const char *const strings[] = { "x", "y", "", "2024-01-01", "2024-01-01T00:00:00Z",
    "2024-06-01T12:00:00+02:00", "2024-13-01" };

#define PICK(list) (list)[filter_random_below((uint32_t)(sizeof(list) / sizeof(list)[0]))]

static void put_string(struct doc_builder *b, const char *s) { doc_put_string(b, s, strlen(s)); }

static void key(struct doc_builder *b, const char *name) { doc_key(b, name, strlen(name)); }

static void put_scalar(struct doc_builder *b)
{
    switch (filter_random_below(8)) {
    case 0: doc_put_null(b); break;
    case 1: doc_put_bool(b, filter_random_below(2)); break;
    case 2:
    case 3: doc_put_i64(b, (int64_t)filter_random_below(4) - 1); break;
    case 4: doc_put_f64(b, (double)filter_random_below(6) / 2 - 1); break;
    default: put_string(b, PICK(strings));
    }
}

static void put_value(struct doc_builder *b, int depth);

static void put_object(struct doc_builder *b, int depth)
{
    doc_begin_object(b);
    for (int i = 0; i < 3; i++) {
        if (filter_random_below(3) == 0) continue;
        key(b, keys[i]);
        put_value(b, depth - 1);
    }
    doc_end(b);
}

static void put_value(struct doc_builder *b, int depth)
{
    uint32_t kind = depth > 0 ? filter_random_below(5) : 4;
    if (kind < 2) {
        doc_begin_array(b);
        for (uint32_t n = filter_random_below(4); n > 0; n--) put_value(b, depth - 1);
        doc_end(b);
    } else if (kind < 4) {
        put_object(b, depth);
    } else {
        put_scalar(b);
    }
}

/* ---- random filters ---- */

static void put_filter(struct doc_builder *b, int depth, bool nested);

static void put_match_value(struct doc_builder *b)
{
    switch (filter_random_below(3)) {
    case 0: put_string(b, PICK(strings)); break;
    case 1: doc_put_i64(b, (int64_t)filter_random_below(4) - 1); break;
    default: doc_put_bool(b, filter_random_below(2));
    }
}

static void put_match(struct doc_builder *b)
{
    static const char *const forms[] = { "value", "any", "except", "text" };
    const char *form = PICK(forms);
    key(b, "match");
    doc_begin_object(b);
    key(b, form);
    if (strcmp(form, "text") == 0) {
        put_string(b, filter_random_below(3) == 0 ? "00 2024" : PICK(strings));
    } else if (strcmp(form, "value") == 0) {
        put_match_value(b);
    } else {
        doc_begin_array(b);
        bool text = filter_random_below(2);
        for (uint32_t n = filter_random_below(4); n > 0; n--) {
            if (text)
                put_string(b, PICK(strings));
            else
                doc_put_i64(b, (int64_t)filter_random_below(4) - 1);
        }
        doc_end(b);
    }
    doc_end(b);
}

static const char *const bounds[] = { "gt", "gte", "lt", "lte" };

static void put_bounds(struct doc_builder *b, const char *name, bool dates, bool counts)
{
    key(b, name);
    doc_begin_object(b);
    uint32_t first = filter_random_below(4), second = filter_random_below(4);
    for (uint32_t i = 0; i < 4; i++) {
        if (i != first && i != second) continue;
        key(b, bounds[i]);
        if (dates)
            put_string(b, filter_random_below(2) ? "2024-01-01" : "2024-06-01T10:00:00Z");
        else if (counts)
            doc_put_i64(b, filter_random_below(4));
        else
            doc_put_f64(b, (double)filter_random_below(6) / 2 - 1);
    }
    doc_end(b);
}

static void put_path_of(struct doc_builder *b, const char *name)
{
    key(b, name);
    doc_begin_object(b);
    key(b, "key");
    put_string(b, PICK(paths));
    doc_end(b);
}

static void put_condition(struct doc_builder *b, int depth, bool nested)
{
    uint32_t kind = filter_random_below(depth > 0 ? 10 : 8);
    if (kind == 8) {
        put_filter(b, depth - 1, nested);
        return;
    }
    doc_begin_object(b);
    if (kind == 0 && !nested) {
        key(b, "has_id");
        doc_begin_array(b);
        for (uint32_t n = filter_random_below(4); n > 0; n--) doc_put_i64(b, filter_random_below(5));
        doc_end(b);
    } else if (kind == 1) {
        put_path_of(b, "is_empty");
    } else if (kind == 2) {
        put_path_of(b, "is_null");
    } else if (kind == 9) {
        key(b, "nested");
        doc_begin_object(b);
        key(b, "key");
        put_string(b, PICK(paths));
        key(b, "filter");
        put_filter(b, depth - 1, true);
        doc_end(b);
    } else {
        key(b, "key");
        put_string(b, PICK(paths));
        if (kind == 3)
            put_bounds(b, "range", false, false);
        else if (kind == 4)
            put_bounds(b, filter_random_below(2) ? "range" : "datetime_range", true, false);
        else if (kind == 5)
            put_bounds(b, "values_count", false, true);
        else
            put_match(b);
    }
    doc_end(b);
}

static void put_conditions(struct doc_builder *b, int depth, bool nested)
{
    doc_begin_array(b);
    for (uint32_t n = 1 + filter_random_below(3); n > 0; n--) put_condition(b, depth, nested);
    doc_end(b);
}

static void put_filter(struct doc_builder *b, int depth, bool nested)
{
    static const char *const clauses[] = { "must", "should", "must_not" };
    uint32_t present = 1 + filter_random_below(15);
    doc_begin_object(b);
    for (int i = 0; i < 3; i++) {
        if ((present >> i & 1) == 0) continue;
        key(b, clauses[i]);
        put_conditions(b, depth, nested);
    }
    if (present >> 3) {
        key(b, "min_should");
        doc_begin_object(b);
        key(b, "conditions");
        put_conditions(b, depth, nested);
        key(b, "min_count");
        doc_put_i64(b, filter_random_below(4));
        doc_end(b);
    }
    doc_end(b);
}

void filter_random_payload(struct doc_builder *b, int depth) { put_object(b, depth); }

void filter_random_filter(struct doc_builder *b, int depth) { put_filter(b, depth, false); }
