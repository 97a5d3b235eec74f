/* Values, numbers, times, words and places of one path, gathered row by row; see payload_gather.h. */
#include "storage/payload/payload_gather.h"

#include "common/mem.h"

#define GATHER_BYTES_MIN (64u << 20) /* of one path's values at a time, and so much more a row */
#define GATHER_ROW_BYTES 256u
#define STOP_EVERY 4096u /* rows between two looks at `stop` */

void payload_gather_fini(struct payload_gather *g)
{
    for (int b = 0; b < PAYLOAD_BITS; b++) mem_free(g->bits[b]);
    mem_free(g->table);
    buf_fini(&g->postings);
    buf_fini(&g->numbers);
    buf_fini(&g->times);
    buf_fini(&g->many_numbers);
    buf_fini(&g->many_times);
    buf_fini(&g->places);
    buf_fini(&g->many_places);
    words_fini(&g->words);
}

static uint64_t gather_bytes_max(const struct payload_source *source)
{
    return GATHER_BYTES_MIN + GATHER_ROW_BYTES * (uint64_t)source->count;
}

bool payload_gather_init(struct payload_gather *g, const struct payload_source *source,
        const struct payload_path *path)
{
    *g = (struct payload_gather){ .source = source, .path = path == NULL ? NULL : path->path };
    buf_init(&g->postings);
    buf_init(&g->numbers);
    buf_init(&g->times);
    buf_init(&g->many_numbers);
    buf_init(&g->many_times);
    buf_init(&g->places);
    buf_init(&g->many_places);
    words_init(&g->words, path != NULL && path->words, gather_bytes_max(source));
    for (int b = 0; b < PAYLOAD_BITS; b++) {
        g->bits[b] = mem_calloc(rowbits_words(source->count) + 1, sizeof(uint64_t));
        if (g->bits[b] == NULL) g->failed = true;
    }
    if (g->failed) payload_gather_fini(g);
    return !g->failed;
}

static bool table_grow(struct payload_gather *g)
{
    uint32_t cap = g->table_cap == 0 ? 1024 : 2 * g->table_cap;
    struct known_value *grown = mem_alloc((size_t)cap * sizeof *grown);
    if (grown == NULL) return false;
    for (uint32_t i = 0; i < cap; i++) grown[i].id = UINT32_MAX;
    for (uint32_t i = 0; i < g->table_cap; i++) {
        if (g->table[i].id == UINT32_MAX) continue;
        uint32_t at = (uint32_t)g->table[i].hash.lo & (cap - 1);
        while (grown[at].id != UINT32_MAX) at = (at + 1) & (cap - 1);
        grown[at] = g->table[i];
    }
    mem_free(g->table);
    g->table = grown;
    g->table_cap = cap;
    return true;
}

static void value_add(struct payload_gather *g, struct hash128 hash)
{
    if (g->value_count >= g->table_cap / 2 && !table_grow(g)) {
        g->failed = true;
        return;
    }
    uint32_t at = (uint32_t)hash.lo & (g->table_cap - 1);
    while (g->table[at].id != UINT32_MAX && payload_hash_compare(g->table[at].hash, hash) != 0)
        at = (at + 1) & (g->table_cap - 1);
    struct known_value *known = &g->table[at];
    if (known->id == UINT32_MAX) *known = (struct known_value){ hash, g->value_count++, UINT32_MAX };
    if (known->last_row == g->row) return;
    known->last_row = g->row;
    const struct posting posting = { known->id, g->row };
    buf_append(&g->postings, &posting, sizeof posting);
}

static void key_add(struct buf *to, int64_t key, uint32_t row)
{
    const struct keyed_row item = { key, row };
    buf_append(to, &item, sizeof item);
}

static void place_add(struct payload_gather *g, struct doc value)
{
    struct placed_row item = { .row = g->row };
    if (!geo_point_read(value, &item.place)) return;
    item.order = place_order(item.place);
    buf_append(&g->places, &item, sizeof item);
}

static void element_add(struct payload_gather *g, struct doc value)
{
    int64_t us;
    if (doc_type(value) == DOC_NULL) return;
    g->elements++;
    switch (doc_type(value)) {
    case DOC_STRING: {
        struct bytes text = doc_string(value);
        if (datetime_parse((const char *)text.data, text.len, &us)) key_add(&g->times, us, g->row);
        words_add(&g->words, g->row, text);
    } /* fall through */
    case DOC_FALSE:
    case DOC_TRUE:
    case DOC_I64: value_add(g, hash128(value.data, value.len)); break;
    case DOC_OBJECT: place_add(g, value); break;
    default: break;
    }
    if (doc_is_number(value)) key_add(&g->numbers, payload_number_key(doc_f64(value)), g->row);
}

static void bit_add(struct payload_gather *g, enum payload_bits bits) { rowbits_add(g->bits[bits], g->row); }

static bool value_gather(void *arg, struct doc value)
{
    struct payload_gather *g = arg;
    enum doc_type type = doc_type(value);
    bit_add(g, PAYLOAD_BITS_THERE);
    if (type == DOC_NULL) bit_add(g, PAYLOAD_BITS_NULL);
    if (type == DOC_NULL || type == DOC_ARRAY) bit_add(g, PAYLOAD_BITS_ODD);
    if (type != DOC_NULL && (type != DOC_ARRAY || doc_count(value) > 0)) bit_add(g, PAYLOAD_BITS_FULL);
    if (type != DOC_ARRAY) {
        if (type != DOC_NULL) g->flags |= PAYLOAD_SCALARS;
        element_add(g, value);
        return true;
    }
    struct doc_iter it = doc_iter(value);
    struct doc element;
    while (doc_next(&it, NULL, &element)) {
        if (doc_type(element) == DOC_NULL) bit_add(g, PAYLOAD_BITS_NULL);
        if (doc_type(element) == DOC_ARRAY) g->flags |= PAYLOAD_NESTED_ARRAYS;
        element_add(g, element);
    }
    return true;
}

/* What the row added to a column goes apart when it is more than one. */
static void row_sort_out(struct buf *column, struct buf *many, size_t before, size_t item_bytes)
{
    if (column->failed || column->len <= before + item_bytes) return;
    buf_append(many, column->data + before, column->len - before);
    column->len = before;
}

static void row_gather(struct payload_gather *g, point_id id, struct doc payload)
{
    size_t numbers = g->numbers.len, times = g->times.len, places = g->places.len;
    if (g->path == NULL) {
        key_add(id.kind == POINT_ID_U64 ? &g->numbers : &g->times, (int64_t)id.lo, g->row);
        return;
    }
    g->elements = 0;
    if (payload.data != NULL) doc_path_each(g->path, payload, false, value_gather, g);
    if (g->elements > 0) bit_add(g, PAYLOAD_BITS_SOME);
    if (g->elements > 1) bit_add(g, PAYLOAD_BITS_MANY);
    row_sort_out(&g->numbers, &g->many_numbers, numbers, sizeof(struct keyed_row));
    row_sort_out(&g->times, &g->many_times, times, sizeof(struct keyed_row));
    row_sort_out(&g->places, &g->many_places, places, sizeof(struct placed_row));
}

/* Arrays of thousands of values in every row must not cost what the node has: then the segment goes without. */
static bool gather_too_big(const struct payload_gather *g)
{
    uint64_t bytes = (uint64_t)g->postings.cap + g->numbers.cap + g->times.cap + g->many_numbers.cap +
            g->many_times.cap + g->places.cap + g->many_places.cap;
    return bytes > gather_bytes_max(g->source);
}

enum omen_err payload_stop_ask(const struct payload_source *source, uint32_t row, struct err *err)
{
    if (row % STOP_EVERY == 0 && source->stop != NULL && source->stop(source->arg))
        return err_set(err, OMEN_ECANCELED, "", "the segment is not wanted any more");
    return OMEN_OK;
}

enum omen_err payload_gather_run(struct payload_gather *g, struct err *err)
{
    const struct payload_source *source = g->source;
    for (g->row = 0; g->row < source->count; g->row++) {
        point_id id;
        struct doc payload;
        if (source->row(source->arg, g->row, &id, &payload)) row_gather(g, id, payload);
        enum omen_err rc = payload_stop_ask(source, g->row, err);
        if (rc != OMEN_OK) return rc;
        if (gather_too_big(g))
            return err_set(err, OMEN_ETOOBIG, "",
                    "the values at one path take more memory than a payload index may");
    }
    words_end(&g->words);
    g->failed |= g->postings.failed || g->numbers.failed || g->times.failed || g->many_numbers.failed ||
            g->many_times.failed || g->places.failed || g->many_places.failed || g->words.failed;
    if (g->failed) return err_set(err, OMEN_ENOMEM, "", "no memory for a payload index");
    if (g->postings.len / sizeof(struct posting) > UINT32_MAX / 2 ||
            g->many_numbers.len / sizeof(struct keyed_row) > UINT32_MAX / 2 ||
            g->many_times.len / sizeof(struct keyed_row) > UINT32_MAX / 2 ||
            g->many_places.len / sizeof(struct placed_row) > UINT32_MAX / 2)
        return err_set(err, OMEN_ETOOBIG, "", "more values at one path than a payload index may have");
    return OMEN_OK;
}
