/* Which values can a path take if a filter holds? The proof by which a router asks only the shards that can
 * answer.
 * Where nothing is proved the answer is "any", never a guess: a set too large costs time, one too small loses
 * points.
 * Pure functions, results in the caller's arena. Recursion is bounded by FILTER_DEPTH_MAX. */
#include "common/query/filter.h"

#include <stdlib.h>

struct value_set {
    bool confined;            /* false: any value; the rest is then unset */
    const struct doc *values; /* sorted by bytes, distinct */
    uint32_t count;
};

struct confine {
    struct bytes path;
    struct arena *arena;
};

static const struct value_set any_value = { false, NULL, 0 };

static struct value_set confine(const struct confine *c, const struct filter *f);

static struct value_set intersect(const struct confine *c, struct value_set a, struct value_set b)
{
    if (!a.confined) return b;
    if (!b.confined) return a;
    uint32_t most = a.count < b.count ? a.count : b.count, count = 0;
    struct doc *values = arena_alloc(c->arena, (most + (most == 0)) * sizeof *values);
    if (values == NULL) return a; /* either alone is a valid proof */
    for (uint32_t i = 0, j = 0; i < a.count && j < b.count;) {
        int order = doc_compare_bytes(a.values[i], b.values[j]);
        if (order == 0) values[count++] = a.values[i];
        i += order <= 0;
        j += order >= 0;
    }
    return (struct value_set){ true, values, count };
}

static int value_order(const void *a, const void *b)
{
    return doc_compare_bytes(*(const struct doc *)a, *(const struct doc *)b);
}

/* At least one of the conditions holds: confined only if each of them is. Of no conditions none can hold. */
static struct value_set unite(const struct confine *c, const struct filter *const *conditions,
        uint32_t condition_count)
{
    struct value_set *sets = arena_alloc(c->arena, (condition_count + 1) * sizeof *sets);
    if (sets == NULL) return any_value;
    size_t total = 0;
    for (uint32_t i = 0; i < condition_count; i++) {
        sets[i] = confine(c, conditions[i]);
        if (!sets[i].confined) return any_value;
        total += sets[i].count; /* at most FILTER_VALUES_MAX + FILTER_CONDITIONS_MAX */
    }
    struct doc *values = arena_alloc(c->arena, (total + 1) * sizeof *values);
    if (values == NULL) return any_value;
    size_t count = 0;
    for (uint32_t i = 0; i < condition_count; i++) {
        if (sets[i].count > 0) memcpy(values + count, sets[i].values, sets[i].count * sizeof *values);
        count += sets[i].count;
    }
    qsort(values, count, sizeof *values, value_order);
    uint32_t distinct = 0;
    for (size_t i = 0; i < count; i++)
        if (i == 0 || value_order(&values[distinct - 1], &values[i]) != 0) values[distinct++] = values[i];
    return (struct value_set){ true, values, distinct };
}

static struct value_set confine(const struct confine *c, const struct filter *f)
{
    if (f->kind == FILTER_MATCH_ANY) {
        if (doc_key_compare(doc_path_text(f->path), c->path) != 0) return any_value;
        return (struct value_set){ true, f->match.values, f->match.count };
    }
    if (f->kind != FILTER_BOOL) return any_value; /* nested tests elements, not the path itself */
    struct value_set set = any_value;
    for (uint32_t i = 0; i < f->all.must_count; i++) set = intersect(c, set, confine(c, f->all.must[i]));
    if (f->all.should_count > 0) set = intersect(c, set, unite(c, f->all.should, f->all.should_count));
    if (f->all.min_count > 0) set = intersect(c, set, unite(c, f->all.min_should, f->all.min_should_count));
    return set;
}

bool filter_values_of_path(const struct filter *filter, const char *path, struct arena *arena,
        const struct doc **values_out, uint32_t *count_out)
{
    const struct confine c = { { (const uint8_t *)path, strlen(path) }, arena };
    struct value_set set = filter == NULL ? any_value : confine(&c, filter);
    *values_out = set.values;
    *count_out = set.count;
    return set.confined;
}
