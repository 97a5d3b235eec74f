/* Where a condition is answered, and what a filter comes to by counts alone: the zone map of a segment. Part of the
 * payload index. */
#include <math.h>
#include <string.h>

#include "storage/payload/payload_filter.h"

/* ---- places ---- */

static bool opens_arrays(enum filter_kind kind)
{
    switch (kind) {
    case FILTER_MATCH_ANY:
    case FILTER_MATCH_EXCEPT:
    case FILTER_MATCH_TEXT:
    case FILTER_RANGE:
    case FILTER_DATETIME:
    case FILTER_GEO_BOX:
    case FILTER_GEO_RADIUS:
    case FILTER_GEO_POLYGON: return true;
    default: return false;
    }
}

/* With the prefix of nested before it. */
static bool path_spell(const struct doc_path *path, const struct payload_inside *inside,
        struct payload_place *place)
{
    char text[PAYLOAD_PATH_BYTES];
    size_t len, before = 0;
    if (!payload_path_spell(path->steps, path->step_count, text, &len)) return false;
    if (inside != NULL) {
        if (inside->len + 1 + len > DOC_PATH_BYTES_MAX) return false;
        memcpy(place->path, inside->path, inside->len);
        place->path[inside->len] = '.';
        before = inside->len + 1;
    }
    memcpy(place->path + before, text, len + 1);
    place->len = before + len;
    return true;
}

static const struct payload_field *field_find(const struct payload_index *index, const char *path)
{
    uint32_t low = 1, high = index->field_count;
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        int order = strcmp(index->fields[mid].path, path);
        if (order == 0) return &index->fields[mid];
        if (order < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return NULL;
}

static bool ends_in_brackets(const char *path, size_t len)
{
    return len >= 2 && path[len - 1] == ']' && path[len - 2] == '['; /* in quotes a quote is last */
}

/* "tags[]" is "tags" with arrays opened, but for values that are no arrays, and for arrays in arrays. */
void payload_place_find(const struct payload_index *index, const struct filter *filter,
        const struct payload_inside *inside, struct payload_place *place_out)
{
    place_out->field = NULL;
    place_out->superset = place_out->known = false;
    if (!path_spell(filter->path, inside, place_out)) return;
    if (filter->kind == FILTER_NESTED) {
        place_out->known = true;
        return;
    }
    bool opened = opens_arrays(filter->kind);
    if (!opened && (inside != NULL && filter->kind != FILTER_IS_NULL)) return;
    char path[PAYLOAD_PATH_BYTES];
    size_t len = place_out->len;
    memcpy(path, place_out->path, len + 1);
    bool brackets = ends_in_brackets(path, len);
    if (brackets) {
        len -= 2;
        path[len] = '\0';
        if (!opened || ends_in_brackets(path, len)) return;
    }
    const struct payload_field *field = field_find(index, path);
    if (field == NULL && !index->complete) return;
    if (brackets && field != NULL && (field->flags & PAYLOAD_NESTED_ARRAYS) != 0) return;
    place_out->superset = brackets && field != NULL && (field->flags & PAYLOAD_SCALARS) != 0;
    place_out->field = field;
    place_out->known = true;
}

void payload_inside_make(const struct payload_place *place, struct payload_inside *inside_out)
{
    memcpy(inside_out->path, place->path, place->len + 1);
    inside_out->len = place->len;
}

static bool hash_find(const struct hash128 *hashes, uint32_t count, struct hash128 hash,
        uint32_t *position_out)
{
    uint32_t low = 0, high = count;
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        int order = payload_hash_compare(hashes[mid], hash);
        *position_out = mid;
        if (order == 0) return true;
        if (order < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return false;
}

bool payload_value_find(const struct payload_field *field, struct doc value, uint32_t *position_out)
{
    return hash_find(field->values, field->value_count, hash128(value.data, value.len), position_out);
}

bool payload_word_find(const struct payload_field *field, struct bytes word, uint32_t *position_out)
{
    return hash_find(field->words, field->word_count, hash128(word.data, word.len), position_out);
}

/* ---- intervals ---- */

void payload_interval_of_numbers(const struct filter_range *range, struct payload_interval *interval_out)
{
    *interval_out = (struct payload_interval){ payload_number_key(range->low),
        payload_number_key(range->high), range->low_open, range->high_open };
}

void payload_interval_of_times(const struct filter_time_range *range, struct payload_interval *interval_out)
{
    *interval_out = (struct payload_interval){ range->low_us, range->high_us, range->low_open,
        range->high_open };
}

/* The first key that is above `key`, or at least it. */
static uint32_t bound(const int64_t *keys, uint32_t count, int64_t key, bool above)
{
    uint32_t low = 0, high = count;
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (keys[mid] < key || (above && keys[mid] == key))
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

void payload_interval_find(const int64_t *keys, uint32_t count, const struct payload_interval *interval,
        uint32_t *from_out, uint32_t *to_out)
{
    *from_out = bound(keys, count, interval->low, interval->low_open);
    *to_out = bound(keys, count, interval->high, !interval->high_open);
    if (*to_out < *from_out) *to_out = *from_out;
}

/* ---- estimates ---- */

/* A share of the rows, and, when it is 0, whether that is proof, and by what. */
struct share {
    double value;
    enum explain_prune pruned;
    const char *path;
};

static struct share share_of(const struct payload_index *index, const struct filter *filter,
        const struct payload_inside *inside);

static uint32_t column_count(const struct payload_column *c, const struct payload_interval *in)
{
    uint32_t from, to, many_from, many_to;
    payload_interval_find(c->keys, c->count, in, &from, &to);
    payload_interval_find(c->many_keys, c->many_count, in, &many_from, &many_to);
    return to - from + (many_to - many_from);
}

static double value_rows(const struct payload_field *f, const struct filter *filter)
{
    double rows = 0;
    for (uint32_t i = 0; i < filter->match.count; i++) {
        uint32_t v;
        if (payload_value_find(f, filter->match.values[i], &v)) rows += f->firsts[v + 1] - f->firsts[v];
    }
    return rows;
}

static struct share proven(enum explain_prune why, const struct filter *filter)
{
    return (struct share){ 0, why, (const char *)doc_path_text(filter->path).data };
}

static struct share some_share(double rows, const struct payload_index *index)
{
    double share = index->rows == 0 ? 0 : rows / index->rows;
    return (struct share){ share < 0 ? 0 : share > 1 ? 1 : share, EXPLAIN_NOT_PRUNED, NULL };
}

/* As if words met by chance. */
static struct share text_share(const struct payload_index *index, const struct payload_field *f,
        const struct filter *filter)
{
    double share = 1;
    if ((f->flags & PAYLOAD_WORDS) == 0) return (struct share){ 0.5, EXPLAIN_NOT_PRUNED, NULL };
    if (filter->text.count == 0) return proven(EXPLAIN_PRUNED_WORDS, filter);
    for (uint32_t i = 0; i < filter->text.count; i++) {
        uint32_t word;
        if (!payload_word_find(f, filter->text.words[i], &word)) return proven(EXPLAIN_PRUNED_WORDS, filter);
        share *= (double)word_list_rows(payload_word_list(f, word)) / index->rows;
    }
    return some_share(share * index->rows, index);
}

static struct share place_share(const struct payload_index *index, const struct payload_field *f,
        const struct filter *filter)
{
    struct geo_region region;
    if ((f->flags & PAYLOAD_PLACES) == 0) return (struct share){ 0.5, EXPLAIN_NOT_PRUNED, NULL };
    geo_region_make(filter, &region);
    double rows = place_tree_estimate(&f->tree, &region) + place_tree_estimate(&f->many_tree, &region);
    return rows > 0 ? some_share(rows, index) : proven(EXPLAIN_PRUNED_AREA, filter);
}

static struct share field_share(const struct payload_index *index, const struct payload_field *f,
        const struct filter *filter)
{
    struct payload_interval in;
    double rows;
    switch (filter->kind) {
    case FILTER_MATCH_ANY:
        rows = value_rows(f, filter);
        return rows > 0 ? some_share(rows, index) : proven(EXPLAIN_PRUNED_VALUES, filter);
    case FILTER_MATCH_EXCEPT: return some_share(index->rows - value_rows(f, filter), index);
    case FILTER_RANGE:
        payload_interval_of_numbers(&filter->range, &in);
        rows = column_count(&f->numbers, &in);
        return rows > 0 ? some_share(rows, index) : proven(EXPLAIN_PRUNED_RANGE, filter);
    case FILTER_DATETIME:
        payload_interval_of_times(&filter->time_range, &in);
        rows = column_count(&f->times, &in);
        return rows > 0 ? some_share(rows, index) : proven(EXPLAIN_PRUNED_RANGE, filter);
    case FILTER_MATCH_TEXT: return text_share(index, f, filter);
    case FILTER_GEO_BOX:
    case FILTER_GEO_RADIUS:
    case FILTER_GEO_POLYGON: return place_share(index, f, filter);
    default: return (struct share){ 0.5, EXPLAIN_NOT_PRUNED, NULL };
    }
}

static struct share absent_share(const struct filter *filter)
{
    if (filter->kind == FILTER_IS_EMPTY ||
            (filter->kind == FILTER_VALUES_COUNT && payload_in_range(&filter->range, 0)))
        return (struct share){ 1, EXPLAIN_NOT_PRUNED, NULL };
    return proven(EXPLAIN_PRUNED_FIELD, filter);
}

static struct share any_share(const struct payload_index *index, const struct filter *const *list,
        uint32_t count, const struct payload_inside *inside)
{
    struct share any = { 1, EXPLAIN_PRUNED_FILTER, NULL }; /* of those that none passes */
    for (uint32_t i = 0; i < count; i++) {
        struct share one = share_of(index, list[i], inside);
        any.value *= 1 - one.value;
        if (one.pruned == EXPLAIN_NOT_PRUNED) any.pruned = EXPLAIN_NOT_PRUNED;
        if (i == 0 && count == 1) any = (struct share){ any.value, one.pruned, one.path };
    }
    any.value = 1 - any.value;
    return any;
}

static struct share bool_share(const struct payload_index *index, const struct filter *filter,
        const struct payload_inside *inside)
{
    struct share all = { 1, EXPLAIN_NOT_PRUNED, NULL };
    if (filter->all.min_count > filter->all.min_should_count)
        return (struct share){ 0, EXPLAIN_PRUNED_FILTER, NULL };
    for (uint32_t i = 0; i < filter->all.must_count; i++) {
        struct share one = share_of(index, filter->all.must[i], inside);
        if (one.pruned != EXPLAIN_NOT_PRUNED) return one;
        all.value *= one.value;
    }
    if (filter->all.should_count > 0) {
        struct share any = any_share(index, filter->all.should, filter->all.should_count, inside);
        if (any.pruned != EXPLAIN_NOT_PRUNED) return any;
        all.value *= any.value;
    }
    for (uint32_t i = 0; i < filter->all.must_not_count && inside == NULL; i++)
        all.value *= 1 - share_of(index, filter->all.must_not[i], inside).value;
    if (filter->all.min_count > 0) {
        struct share any = any_share(index, filter->all.min_should, filter->all.min_should_count, inside);
        if (any.pruned != EXPLAIN_NOT_PRUNED) return any;
        all.value *= pow(any.value, filter->all.min_count);
    }
    return all;
}

static struct share share_of(const struct payload_index *index, const struct filter *filter,
        const struct payload_inside *inside)
{
    struct share half = { 0.5, EXPLAIN_NOT_PRUNED, NULL };
    if (filter->kind == FILTER_BOOL) return bool_share(index, filter, inside);
    if (filter->kind == FILTER_HAS_ID)
        return filter->has_id.count == 0 ? (struct share){ 0, EXPLAIN_PRUNED_VALUES, NULL }
                                         : some_share(filter->has_id.count, index);
    struct payload_place place;
    payload_place_find(index, filter, inside, &place);
    if (!place.known) return half;
    if (filter->kind == FILTER_NESTED) {
        struct payload_inside deeper;
        payload_inside_make(&place, &deeper);
        return share_of(index, filter->nested, &deeper);
    }
    return place.field != NULL ? field_share(index, place.field, filter) : absent_share(filter);
}

void payload_index_estimate(const struct payload_index *index, const struct filter *filter,
        struct payload_estimate *estimate_out)
{
    struct share all = filter == NULL ? (struct share){ 1, EXPLAIN_NOT_PRUNED, NULL }
                                      : share_of(index, filter, NULL);
    *estimate_out = (struct payload_estimate){ all.value * index->rows, all.pruned, all.path };
    if (all.pruned == EXPLAIN_NOT_PRUNED && estimate_out->rows < 1) estimate_out->rows = 1;
}
