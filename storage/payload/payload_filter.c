/* A filter over a payload index: the tree is walked once, conditions become sets of rows, sets are met and joined word by
 * word. What each condition means is written in common/query/filter.h; filter_eval.c is the definition.
 *
 * Every set is the rows that pass, or, not `exact`, those and others: what is met and joined stays such a set, what is
 * taken off must be exact, else it stays in. Inside nested, conditions count for the whole point instead of one element,
 * so only those that a passing element proves are used, and the answer is never exact. */
#include <assert.h>
#include <string.h>

#include "common/check.h"
#include "common/mem.h"
#include "storage/payload/payload_filter.h"

/* ---- sets to work in ---- */

struct payload_scratch *payload_scratch_new(void) { return mem_calloc(1, sizeof(struct payload_scratch)); }

static void sets_free(struct payload_scratch *scratch)
{
    for (uint32_t i = 0; i < scratch->count; i++) mem_free(scratch->sets[i]);
    scratch->count = 0;
}

void payload_scratch_free(struct payload_scratch *scratch)
{
    if (scratch == NULL) return;
    sets_free(scratch);
    mem_free(scratch->sets);
    mem_free(scratch);
}

static void scratch_begin(struct payload_scratch *scratch, uint32_t rows)
{
    scratch->used = 0;
    if (scratch->capacity == rowbits_capacity(rows)) return;
    sets_free(scratch);
    scratch->capacity = rowbits_capacity(rows);
}

uint64_t *payload_set_take(struct payload_scratch *scratch)
{
    if (scratch->used < scratch->count) return scratch->sets[scratch->used++];
    if (scratch->count == scratch->sets_cap) {
        uint32_t cap = scratch->sets_cap == 0 ? 8 : 2 * scratch->sets_cap;
        uint64_t **grown = mem_realloc(scratch->sets, cap * sizeof *grown);
        if (grown == NULL) return NULL;
        scratch->sets = grown;
        scratch->sets_cap = cap;
    }
    uint64_t *set = mem_alloc_aligned(64, scratch->capacity * sizeof *set);
    if (set == NULL) return NULL;
    scratch->sets[scratch->count++] = set;
    scratch->used++;
    return set;
}

enum omen_err payload_scratch_rows(struct payload_scratch *scratch, uint32_t rows, uint64_t **rows_out)
{
    scratch_begin(scratch, rows);
    *rows_out = payload_set_take(scratch);
    if (*rows_out == NULL) return OMEN_ENOMEM;
    rowbits_all(*rows_out, rows);
    return OMEN_OK;
}

/* ---- the walk ---- */

/* `out` is overwritten. */
static enum omen_err rows_of(const struct payload_walk *w, const struct filter *filter,
        const struct payload_inside *inside, uint64_t *out, bool *exact_out);

void payload_rows_unknown(const struct payload_walk *w, uint64_t *out, bool *exact_out)
{
    rowbits_all(out, w->rows);
    *exact_out = false;
}

static void id_rows(const struct payload_walk *w, const struct filter *filter, uint64_t *out, bool *exact_out)
{
    const struct payload_field *ids = &w->index->fields[0];
    *exact_out = true;
    *w->by |= EXPLAIN_BY_IDS;
    rowbits_none(out, w->rows);
    for (uint32_t i = 0; i < filter->has_id.count; i++) {
        point_id id = filter->has_id.ids[i];
        const struct payload_column *c = id.kind == POINT_ID_U64 ? &ids->numbers : &ids->times;
        struct payload_interval in = { (int64_t)id.lo, (int64_t)id.lo, false, false };
        uint32_t from, to;
        payload_interval_find(c->keys, c->count, &in, &from, &to);
        rowbits_or_list(out, c->rows + from, to - from);
        if (from < to && id.kind != POINT_ID_U64) *exact_out = false; /* half of it is the same */
    }
}

static enum omen_err list_rows(const struct payload_walk *w, const struct filter *const *list, uint32_t count,
        const struct payload_inside *inside, bool every, uint64_t *out, bool *exact)
{
    uint64_t *one = payload_set_take(w->scratch);
    if (one == NULL) return OMEN_ENOMEM;
    for (uint32_t i = 0; i < count; i++) {
        bool exactly;
        enum omen_err rc = rows_of(w, list[i], inside, one, &exactly);
        if (rc != OMEN_OK) return rc;
        *exact &= exactly;
        if (every)
            rowbits_and(out, one, w->rows);
        else
            rowbits_or(out, one, w->rows);
    }
    w->scratch->used--;
    return OMEN_OK;
}

#define PLANES 11 /* of a count of conditions up to FILTER_CONDITIONS_MAX */
static_assert(FILTER_CONDITIONS_MAX < 1 << PLANES, "a count of conditions fits the planes");

/* Bit p of how many conditions hold for a row is its bit in plane p. */
static void planes_add(const struct payload_walk *w, uint64_t *const planes[PLANES], const uint64_t *one)
{
    for (size_t i = 0; i < rowbits_words(w->rows); i++) {
        uint64_t carry = one[i];
        for (int p = 0; p < PLANES && carry != 0; p++) {
            uint64_t both = planes[p][i] & carry;
            planes[p][i] ^= carry;
            carry = both;
        }
    }
}

static uint64_t planes_reach(uint64_t *const planes[PLANES], size_t i, uint32_t wanted)
{
    uint64_t more = 0, equal = UINT64_MAX;
    for (int p = PLANES - 1; p >= 0; p--) {
        uint64_t plane = planes[p][i], want = wanted >> p & 1 ? UINT64_MAX : 0;
        more |= equal & plane & ~want;
        equal &= ~(plane ^ want);
    }
    return more | equal;
}

static enum omen_err min_should_meet(const struct payload_walk *w, const struct filter *filter,
        const struct payload_inside *inside, uint64_t *out, bool *exact)
{
    uint64_t *planes[PLANES], *one = payload_set_take(w->scratch);
    uint32_t used = w->scratch->used - 1;
    if (one == NULL) return OMEN_ENOMEM;
    for (int p = 0; p < PLANES; p++) {
        planes[p] = payload_set_take(w->scratch);
        if (planes[p] == NULL) return OMEN_ENOMEM;
        rowbits_none(planes[p], w->rows);
    }
    for (uint32_t i = 0; i < filter->all.min_should_count; i++) {
        bool exactly;
        enum omen_err rc = rows_of(w, filter->all.min_should[i], inside, one, &exactly);
        if (rc != OMEN_OK) return rc;
        *exact &= exactly;
        planes_add(w, planes, one);
    }
    for (size_t i = 0; i < rowbits_words(w->rows); i++)
        out[i] &= planes_reach(planes, i, filter->all.min_count);
    w->scratch->used = used;
    return OMEN_OK;
}

static enum omen_err must_not_take(const struct payload_walk *w, const struct filter *filter,
        const struct payload_inside *inside, uint64_t *out, bool *exact)
{
    if (filter->all.must_not_count == 0) return OMEN_OK;
    if (inside != NULL) { /* another element may be the one for which it holds */
        *exact = false;
        return OMEN_OK;
    }
    uint64_t *one = payload_set_take(w->scratch);
    if (one == NULL) return OMEN_ENOMEM;
    for (uint32_t i = 0; i < filter->all.must_not_count; i++) {
        bool exactly;
        enum omen_err rc = rows_of(w, filter->all.must_not[i], inside, one, &exactly);
        if (rc != OMEN_OK) return rc;
        *exact &= exactly;
        if (exactly) rowbits_and_not(out, one, w->rows);
    }
    w->scratch->used--;
    return OMEN_OK;
}

static enum omen_err bool_rows(const struct payload_walk *w, const struct filter *filter,
        const struct payload_inside *inside, uint64_t *out, bool *exact_out)
{
    *exact_out = true;
    if (filter->all.min_count > filter->all.min_should_count) {
        rowbits_none(out, w->rows);
        return OMEN_OK;
    }
    enum omen_err rc = OMEN_OK;
    uint32_t musts = filter->all.must_count;
    if (musts > 0) /* the first in place: most filters have one condition */
        rc = rows_of(w, filter->all.must[0], inside, out, exact_out);
    else
        rowbits_all(out, w->rows);
    if (rc == OMEN_OK && musts > 1)
        rc = list_rows(w, filter->all.must + 1, musts - 1, inside, true, out, exact_out);
    if (rc == OMEN_OK && filter->all.should_count > 0) {
        uint64_t *any = payload_set_take(w->scratch);
        if (any == NULL) return OMEN_ENOMEM;
        rowbits_none(any, w->rows);
        rc = list_rows(w, filter->all.should, filter->all.should_count, inside, false, any, exact_out);
        if (rc != OMEN_OK) return rc;
        rowbits_and(out, any, w->rows);
        w->scratch->used--;
    }
    if (rc == OMEN_OK) rc = must_not_take(w, filter, inside, out, exact_out);
    if (rc == OMEN_OK && filter->all.min_count > 0) rc = min_should_meet(w, filter, inside, out, exact_out);
    return rc;
}

static enum omen_err rows_of(const struct payload_walk *w, const struct filter *filter,
        const struct payload_inside *inside, uint64_t *out, bool *exact_out)
{
    if (filter->kind == FILTER_BOOL) return bool_rows(w, filter, inside, out, exact_out);
    if (filter->kind == FILTER_HAS_ID) {
        id_rows(w, filter, out, exact_out);
        return OMEN_OK;
    }
    struct payload_place place;
    payload_place_find(w->index, filter, inside, &place);
    if (filter->kind == FILTER_NESTED && place.known) {
        struct payload_inside deeper;
        payload_inside_make(&place, &deeper);
        enum omen_err rc = rows_of(w, filter->nested, &deeper, out, exact_out);
        *exact_out = false;
        return rc;
    }
    if (!place.known || filter->kind == FILTER_NESTED) {
        payload_rows_unknown(w, out, exact_out);
        return OMEN_OK;
    }
    if (place.field != NULL)
        return payload_field_rows(w, place.field, filter, place.superset, out, exact_out);
    payload_absent_rows(w, filter, out, exact_out);
    if (place.superset) *exact_out = false;
    return OMEN_OK;
}

enum omen_err payload_index_filter(const struct payload_index *index, const struct filter *filter,
        struct payload_scratch *scratch, struct payload_answer *answer_out)
{
    const struct payload_walk w = { index, scratch, index->rows, &answer_out->by };
    answer_out->exact = true;
    answer_out->by = 0;
    if (filter == NULL) {
        answer_out->count = index->rows;
        return payload_scratch_rows(scratch, index->rows, &answer_out->rows);
    }
    scratch_begin(scratch, index->rows);
    answer_out->rows = payload_set_take(scratch);
    if (answer_out->rows == NULL) return OMEN_ENOMEM;
    enum omen_err rc = rows_of(&w, filter, NULL, answer_out->rows, &answer_out->exact);
    if (rc != OMEN_OK) return rc;
    answer_out->count = rowbits_count(answer_out->rows, index->rows);
    return OMEN_OK;
}

/* ---- runs ---- */

/* Rows of a value are ascending: as many as lie between the first and the last are all there are. */
static bool values_run(const struct payload_field *f, const struct filter *filter,
        struct payload_run *run_out)
{
    bool found = false;
    for (uint32_t i = 0; i < filter->match.count; i++) {
        uint32_t v;
        if (!payload_value_find(f, filter->match.values[i], &v) || f->firsts[v] == f->firsts[v + 1]) continue;
        if (found) return false; /* rows with two of the values would count twice */
        const uint32_t *first = f->postings + f->firsts[v], *last = f->postings + f->firsts[v + 1] - 1;
        if (*last - *first != (uint32_t)(last - first)) return false;
        *run_out = (struct payload_run){ *first, *last + 1 };
        found = true;
    }
    return found;
}

static bool bool_run(const struct payload_index *index, const struct filter *filter,
        struct payload_run *run_out)
{
    struct payload_run one;
    if (filter->all.should_count > 0 || filter->all.must_not_count > 0 || filter->all.min_count > 0)
        return false;
    *run_out = (struct payload_run){ 0, index->rows };
    for (uint32_t i = 0; i < filter->all.must_count; i++) {
        if (!payload_index_run(index, filter->all.must[i], &one)) return false;
        if (one.first > run_out->first) run_out->first = one.first;
        if (one.end < run_out->end) run_out->end = one.end;
        if (run_out->first >= run_out->end) return false;
    }
    return true;
}

bool payload_index_run(const struct payload_index *index, const struct filter *filter,
        struct payload_run *run_out)
{
    struct payload_place place;
    if (filter->kind == FILTER_BOOL) return bool_run(index, filter, run_out);
    if (filter->kind != FILTER_MATCH_ANY) return false;
    payload_place_find(index, filter, NULL, &place);
    return place.field != NULL && !place.superset && values_run(place.field, filter, run_out);
}
