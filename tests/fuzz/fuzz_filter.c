/* Filters: after the first byte the input is either a doc's bytes (even) or a script (odd) whose bytes pick
 * members and values from the vocabulary of filters, which reaches far more of the parser. What parses must
 * keep within its limits, and what is refused must name its place. */
#include "common/check.h"
#include "common/query/filter.h"
#include "common/query/words.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const words[] = { "must", "should", "must_not", "min_should", "conditions", "min_count",
    "key", "match", "value", "any", "except", "range", "datetime_range", "values_count", "gt", "gte", "lt",
    "lte", "is_empty", "is_null", "has_id", "nested", "filter", "rnage", "a", "a.b", "tags[]", "k",
    "2026-11-22", "2026-11-22T08:00:00Z", "text", "12345678-9abc-def0-1234-56789abcdef0" };
#define WORD_COUNT (sizeof words / sizeof words[0])

struct script {
    const uint8_t *at, *end;
    struct doc_builder *b;
};

static uint8_t next_byte(struct script *s) { return s->at < s->end ? *s->at++ : 0; }

static void put_word(struct script *s)
{
    const char *word = words[next_byte(s) % WORD_COUNT];
    doc_put_string(s->b, word, strlen(word));
}

static void put_value(struct script *s, uint32_t depth)
{
    uint8_t what = next_byte(s);
    if (depth >= DOC_DEPTH_MAX) what %= 5;
    uint32_t count = what / 8 % 4;
    switch (what % 8) {
    case 0: doc_put_i64(s->b, (int8_t)next_byte(s)); return;
    case 1: put_word(s); return;
    case 2: doc_put_bool(s->b, count % 2 == 0); return;
    case 3: doc_put_f64(s->b, next_byte(s) / 4.0); return;
    case 4: doc_put_null(s->b); return;
    case 5:
        doc_begin_array(s->b);
        for (uint32_t i = 0; i < count && s->at < s->end; i++) put_value(s, depth + 1);
        doc_end(s->b);
        return;
    default: break;
    }
    doc_begin_object(s->b);
    for (uint32_t i = 0; i <= count && s->at < s->end; i++) {
        const char *word = words[next_byte(s) % WORD_COUNT];
        doc_key(s->b, word, strlen(word));
        put_value(s, depth + 1);
    }
    doc_end(s->b);
}

static uint32_t check_tree(const struct filter *f, uint32_t depth);

static uint32_t check_list(const struct filter *const *items, uint32_t count, uint32_t depth)
{
    uint32_t nodes = 0;
    for (uint32_t i = 0; i < count; i++) nodes += check_tree(items[i], depth);
    return nodes;
}

/* Nodes of the tree. */
static uint32_t check_tree(const struct filter *f, uint32_t depth)
{
    CHECK(f != NULL);
    switch (f->kind) {
    case FILTER_BOOL:
        CHECK(depth < FILTER_DEPTH_MAX);
        return 1 + check_list(f->all.must, f->all.must_count, depth + 1) +
                check_list(f->all.should, f->all.should_count, depth + 1) +
                check_list(f->all.must_not, f->all.must_not_count, depth + 1) +
                check_list(f->all.min_should, f->all.min_should_count, depth + 1);
    case FILTER_MATCH_ANY:
    case FILTER_MATCH_EXCEPT:
        for (uint32_t i = 1; i < f->match.count; i++)
            CHECK(doc_compare_bytes(f->match.values[i - 1], f->match.values[i]) < 0);
        break;
    case FILTER_RANGE:
    case FILTER_VALUES_COUNT: CHECK(f->range.low == f->range.low && f->range.high == f->range.high); break;
    case FILTER_HAS_ID:
        for (uint32_t i = 1; i < f->has_id.count; i++)
            CHECK(point_id_compare(f->has_id.ids[i - 1], f->has_id.ids[i]) < 0);
        return 1;
    case FILTER_NESTED: CHECK(doc_path_has_arrays(f->path)); return 1 + check_tree(f->nested, depth);
    case FILTER_MATCH_TEXT:
        CHECK(f->text.count <= FILTER_WORDS_MAX);
        for (uint32_t i = 0; i < f->text.count; i++)
            CHECK(f->text.words[i].len > 0 && f->text.words[i].len <= WORD_BYTES_MAX);
        break;
    case FILTER_GEO_BOX: CHECK(f->geo_box.top_left.lat >= f->geo_box.bottom_right.lat); break;
    case FILTER_GEO_RADIUS: CHECK(f->geo_radius.metres >= 0); break;
    case FILTER_GEO_POLYGON:
        CHECK(f->geo_polygon.count > 0);
        for (uint32_t i = 0; i < f->geo_polygon.count; i++) CHECK(f->geo_polygon.rings[i].count >= 4);
        break;
    case FILTER_DATETIME:
    case FILTER_IS_EMPTY:
    case FILTER_IS_NULL: break;
    }
    CHECK(f->path != NULL);
    return 1;
}

static void parse(struct doc doc)
{
    struct arena arena;
    arena_init(&arena, 4096, 8 << 20);
    const struct filter *filter;
    struct err err;
    enum omen_err rc = filter_parse(doc, &arena, &filter, &err);
    if (rc != OMEN_OK) {
        CHECK(filter == NULL && err.code == rc && strncmp(err.field, "filter", 6) == 0 &&
                err.message[0] != '\0');
    } else if (filter != NULL) {
        CHECK(check_tree(filter, 0) <= FILTER_CONDITIONS_MAX);
    }
    const struct doc *values;
    uint32_t count;
    if (rc == OMEN_OK && filter_values_of_path(filter, "k", &arena, &values, &count))
        for (uint32_t i = 1; i < count; i++) CHECK(doc_compare_bytes(values[i - 1], values[i]) < 0);
    arena_fini(&arena);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct doc doc;
    if (size < 1) return 0;
    int64_t us;
    datetime_parse((const char *)data, size, &us);
    if (data[0] % 2 == 0) {
        if (doc_validate((struct bytes){ data + 1, size - 1 }, DOC_FILTER_BYTES_MAX, &doc, NULL) == OMEN_OK)
            parse(doc);
        return 0;
    }
    struct script s = { data + 1, data + size, doc_builder_new(DOC_FILTER_BYTES_MAX) };
    put_value(&s, 0);
    if (doc_builder_finish(s.b, &doc, NULL) == OMEN_OK) parse(doc); /* duplicate keys fail */
    doc_builder_free(s.b);
    return 0;
}
