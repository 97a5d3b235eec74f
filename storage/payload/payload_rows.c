/* The rows for which one condition on one path holds, from what is indexed of the path. Part of the payload index. */
#include <string.h>

#include "storage/payload/payload_filter.h"

static void values_or(const struct payload_field *f, const struct filter *filter, uint64_t *out)
{
    for (uint32_t i = 0; i < filter->match.count; i++) {
        uint32_t v;
        if (!payload_value_find(f, filter->match.values[i], &v)) continue;
        if (f->dense != NULL && f->dense[v] != NULL)
            rowbits_or_roaring(out, f->dense[v]);
        else
            rowbits_or_list(out, f->postings + f->firsts[v], f->firsts[v + 1] - f->firsts[v]);
    }
}

/* Rows with one element pass when it is not in the list. Of those with several, the ones that have none from the list
 * pass too; the others may. */
static enum omen_err except_rows(const struct payload_walk *w, const struct payload_field *f,
        const struct filter *filter, uint64_t *out, bool *exact_out)
{
    uint64_t *listed = payload_set_take(w->scratch);
    if (listed == NULL) return OMEN_ENOMEM;
    rowbits_none(listed, w->rows);
    values_or(f, filter, listed);
    *exact_out = !rowbits_meet(listed, f->bits[PAYLOAD_BITS_MANY], w->rows);
    if (!*exact_out) rowbits_and_not(listed, f->bits[PAYLOAD_BITS_MANY], w->rows);
    memcpy(out, f->bits[PAYLOAD_BITS_SOME], rowbits_words(w->rows) * sizeof *out);
    rowbits_and_not(out, listed, w->rows);
    w->scratch->used--;
    return OMEN_OK;
}

/* Rows [from, to) of a column's order: the difference of the two prefixes nearest to the ends, and what lies between
 * these and the ends row by row. */
static void prefix_rows(const struct payload_column *c, uint32_t from, uint32_t to, uint64_t *out)
{
    uint32_t step = c->prefix_step;
    if (c->prefix_count == 0 || to - from <= step) {
        rowbits_or_list(out, c->rows + from, to - from);
        return;
    }
    uint32_t low = (from + step / 2) / step, high = (to + step / 2) / step; /* prefixes of that many steps */
    if (low > c->prefix_count) low = c->prefix_count;
    if (high > c->prefix_count) high = c->prefix_count;
    if (high > 0) rowbits_or_roaring(out, c->prefixes[high - 1]);
    if (low > 0) rowbits_and_not_roaring(out, c->prefixes[low - 1]);
    for (uint32_t i = low * step; i < from; i++) out[c->rows[i] / 64] &= ~(UINT64_C(1) << (c->rows[i] % 64));
    for (uint32_t i = high * step; i > to; i--)
        out[c->rows[i - 1] / 64] &= ~(UINT64_C(1) << (c->rows[i - 1] % 64));
    if (from < low * step) rowbits_or_list(out, c->rows + from, low * step - from);
    if (to > high * step) rowbits_or_list(out, c->rows + high * step, to - high * step);
}

static void column_rows(const struct payload_walk *w, const struct payload_column *c,
        const struct payload_interval *in, uint64_t *out)
{
    uint32_t from, to;
    rowbits_none(out, w->rows);
    payload_interval_find(c->keys, c->count, in, &from, &to);
    if (from < to) prefix_rows(c, from, to, out); /* rows with one value: `out` is still empty */
    payload_interval_find(c->many_keys, c->many_count, in, &from, &to);
    rowbits_or_list(out, c->many_rows + from, to - from);
}

/* Null and arrays count what only the payload says; anything else 1, nothing 0. */
static void count_rows(const struct payload_walk *w, const struct payload_field *f,
        const struct filter *filter, uint64_t *out, bool *exact_out)
{
    const uint64_t *there = f->bits[PAYLOAD_BITS_THERE], *odd = f->bits[PAYLOAD_BITS_ODD];
    uint64_t zero = payload_in_range(&filter->range, 0) ? UINT64_MAX : 0;
    uint64_t one = payload_in_range(&filter->range, 1) ? UINT64_MAX : 0, some = 0;
    rowbits_all(out, w->rows);
    for (size_t i = 0; i < rowbits_words(w->rows); i++) {
        out[i] &= (~there[i] & zero) | (there[i] & ~odd[i] & one) | odd[i];
        some |= odd[i];
    }
    *exact_out = some == 0;
}

/* The words of a text in one value: of a row with several values they may be spread over these. */
static void text_rows(const struct payload_walk *w, const struct payload_field *f,
        const struct filter *filter, uint64_t *out, bool *exact_out)
{
    struct word_list lists[FILTER_WORDS_MAX];
    uint32_t count = filter->text.count, fewest = 0;
    uint64_t least = UINT64_MAX;
    if ((f->flags & PAYLOAD_WORDS) == 0) {
        payload_rows_unknown(w, out, exact_out);
        return;
    }
    *w->by |= EXPLAIN_BY_WORDS;
    rowbits_none(out, w->rows);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t word;
        if (!payload_word_find(f, filter->text.words[i], &word)) return;
        lists[i] = payload_word_list(f, word);
        uint64_t rows = word_list_rows(lists[i]);
        if (rows >= least) continue;
        least = rows;
        fewest = i;
    }
    if (count == 0) return;
    word_list_or(lists[fewest], out);
    for (uint32_t i = 0; i < count; i++)
        if (i != fewest) word_list_and(lists[i], out, w->rows);
    *exact_out = count == 1 || !rowbits_meet(out, f->bits[PAYLOAD_BITS_MANY], w->rows);
}

/* ---- places ---- */

struct poured {
    const struct payload_walk *walk;
    const struct payload_column *column;
    uint64_t *out, *between; /* between: a set for one run; NULL: not taken yet */
    bool failed;
};

static void run_pour(void *arg, uint32_t first, uint32_t end)
{
    struct poured *p = arg;
    const struct payload_column *c = p->column;
    if (c->prefix_count == 0 || end - first <= 2 * c->prefix_step) {
        rowbits_or_list(p->out, c->rows + first, end - first);
        return;
    }
    if (p->between == NULL) p->between = payload_set_take(p->walk->scratch);
    if (p->between == NULL) {
        p->failed = true;
        return;
    }
    rowbits_none(p->between, p->walk->rows);
    prefix_rows(c, first, end, p->between);
    rowbits_or(p->out, p->between, p->walk->rows);
}

static void many_pour(void *arg, uint32_t first, uint32_t end)
{
    struct poured *p = arg;
    rowbits_or_list(p->out, p->column->many_rows + first, end - first);
}

static uint32_t structure_of(enum filter_kind kind)
{
    switch (kind) {
    case FILTER_MATCH_ANY:
    case FILTER_MATCH_EXCEPT: return EXPLAIN_BY_VALUES;
    case FILTER_RANGE: return EXPLAIN_BY_NUMBERS;
    case FILTER_DATETIME: return EXPLAIN_BY_TIMES;
    case FILTER_VALUES_COUNT:
    case FILTER_IS_EMPTY:
    case FILTER_IS_NULL: return EXPLAIN_BY_PRESENCE;
    default: return 0; /* told where it is known to be there */
    }
}

static enum omen_err place_rows(const struct payload_walk *w, const struct payload_field *f,
        const struct filter *filter, uint64_t *out, bool *exact_out)
{
    struct poured p = { w, &f->places, out, NULL, false };
    struct geo_region region;
    if ((f->flags & PAYLOAD_PLACES) == 0) {
        payload_rows_unknown(w, out, exact_out);
        return OMEN_OK;
    }
    *w->by |= EXPLAIN_BY_PLACES;
    rowbits_none(out, w->rows);
    geo_region_make(filter, &region);
    place_tree_runs(&f->tree, &region, run_pour, &p);
    place_tree_runs(&f->many_tree, &region, many_pour, &p);
    if (p.between != NULL) w->scratch->used--;
    return p.failed ? OMEN_ENOMEM : OMEN_OK;
}

enum omen_err payload_field_rows(const struct payload_walk *w, const struct payload_field *f,
        const struct filter *filter, bool superset, uint64_t *out, bool *exact_out)
{
    size_t bytes = rowbits_words(w->rows) * sizeof *out;
    struct payload_interval in;
    enum omen_err rc = OMEN_OK;
    *exact_out = true;
    *w->by |= structure_of(filter->kind);
    switch (filter->kind) {
    case FILTER_MATCH_ANY:
        rowbits_none(out, w->rows);
        values_or(f, filter, out);
        break;
    case FILTER_MATCH_EXCEPT: rc = except_rows(w, f, filter, out, exact_out); break;
    case FILTER_RANGE:
        payload_interval_of_numbers(&filter->range, &in);
        column_rows(w, &f->numbers, &in, out);
        break;
    case FILTER_DATETIME:
        payload_interval_of_times(&filter->time_range, &in);
        column_rows(w, &f->times, &in, out);
        break;
    case FILTER_VALUES_COUNT: count_rows(w, f, filter, out, exact_out); break;
    case FILTER_IS_EMPTY:
        memcpy(out, f->bits[PAYLOAD_BITS_FULL], bytes);
        rowbits_not(out, w->rows);
        break;
    case FILTER_IS_NULL: memcpy(out, f->bits[PAYLOAD_BITS_NULL], bytes); break;
    case FILTER_MATCH_TEXT: text_rows(w, f, filter, out, exact_out); break;
    case FILTER_GEO_BOX:
    case FILTER_GEO_RADIUS:
    case FILTER_GEO_POLYGON: rc = place_rows(w, f, filter, out, exact_out); break;
    default: payload_rows_unknown(w, out, exact_out); break;
    }
    if (superset) *exact_out = false;
    return rc;
}

void payload_absent_rows(const struct payload_walk *w, const struct filter *filter, uint64_t *out,
        bool *exact_out)
{
    bool all = filter->kind == FILTER_IS_EMPTY ||
            (filter->kind == FILTER_VALUES_COUNT && payload_in_range(&filter->range, 0));
    *exact_out = true;
    if (all)
        rowbits_all(out, w->rows);
    else
        rowbits_none(out, w->rows);
}
