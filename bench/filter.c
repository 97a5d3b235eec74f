/* omen-bench filter: the payload index of one segment of made payloads. How long it takes to build and open and what it
 * takes on disk and in memory; how long filters take to become sets of rows, against asking every payload. Medians. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench.h"
#include "bench/filter_count.h"
#include "bench/filter_search.h"
#include "common/check.h"
#include "common/mem.h"
#include "storage/payload/filter_eval.h"
#include "storage/payload/payload_index.h"

#define PAYLOAD_ROUNDS 3

/* About what a catalog has: a word of 40, one of 1,000, a price, a time in order, tags, a flag, a description of 4 to 19
 * words (as often as words of a language are), a place (two of three in or around 500 towns). */
struct rows {
    struct buf bytes;
    uint64_t *at;
    uint32_t count;
};

/* The word of rank r comes about as often as 1 / r, of ranks below 60,000. */
static void description_put(struct doc_builder *b, uint64_t x)
{
    char text[400];
    size_t len = 0;
    for (uint64_t n = 4 + x % 16; n > 0; n--) {
        x = bench_mix(x);
        double rank = exp((double)(x >> 11) / 9007199254740992.0 * log(60000));
        len += (size_t)snprintf(text + len, sizeof text - len, len == 0 ? "word%u" : " word%u",
                (unsigned)rank);
    }
    doc_key(b, "description", 11);
    doc_put_string(b, text, len);
}

static double unit(uint64_t x) { return (double)(bench_mix(x) >> 11) / 9007199254740992.0; }

static void place_put(struct doc_builder *b, uint64_t x)
{
    uint64_t town = bench_mix(x) % 500;
    double lon = unit(x + 1) * 360 - 180, lat = asin(unit(x + 2) * 2 - 1) * (180 / M_PI);
    if (x % 3 != 0) {
        lon = unit(town) * 358 - 179 + (unit(x + 3) + unit(x + 4) - 1) / 2;
        lat = unit(town + 1000) * 120 - 55 + (unit(x + 5) + unit(x + 6) - 1) / 2;
    }
    doc_key(b, "place", 5);
    doc_begin_object(b);
    doc_key(b, "lon", 3);
    doc_put_f64(b, lon);
    doc_key(b, "lat", 3);
    doc_put_f64(b, lat);
    doc_end(b);
}

static void payload_put(struct doc_builder *b, uint64_t row)
{
    char text[32];
    uint64_t x = bench_mix(row);
    doc_begin_object(b);
    doc_key(b, "section", 7);
    doc_put_string(b, text,
            (size_t)snprintf(text, sizeof text, "section-%llu", (unsigned long long)(x % 40)));
    doc_key(b, "shop", 4);
    doc_put_string(b, text,
            (size_t)snprintf(text, sizeof text, "shop-%llu", (unsigned long long)(x / 40 % 1000)));
    doc_key(b, "price", 5);
    doc_put_f64(b, (double)(x >> 20 & 0xfffff) / 0x100000 * 1000);
    doc_key(b, "at", 2);
    doc_put_i64(b, 1700000000000 + (int64_t)row * 37);
    doc_key(b, "tags", 4);
    doc_begin_array(b);
    if (x >> 40 & 1) doc_put_string(b, "half", 4);
    if ((x >> 41) % 10 == 0) doc_put_string(b, "tenth", 5);
    if ((x >> 45) % 1000 == 0) doc_put_string(b, "rare", 4);
    doc_end(b);
    doc_key(b, "open", 4);
    doc_put_bool(b, x >> 60 & 1);
    description_put(b, x);
    place_put(b, x);
    doc_end(b);
}

static void rows_make(struct rows *r, uint32_t count)
{
    struct doc_builder *b = doc_builder_new(DOC_BYTES_MAX);
    buf_init(&r->bytes);
    r->count = count;
    r->at = mem_must_calloc((size_t)count + 1, sizeof *r->at);
    for (uint32_t i = 0; i < count; i++) {
        struct doc doc;
        doc_builder_reset(b, DOC_BYTES_MAX);
        payload_put(b, i);
        CHECK(doc_builder_finish(b, &doc, NULL) == OMEN_OK);
        r->at[i] = r->bytes.len;
        buf_append(&r->bytes, doc.data, doc.len);
    }
    CHECK(!r->bytes.failed);
    r->at[count] = r->bytes.len;
    doc_builder_free(b);
}

static bool row_at(void *arg, uint32_t row, point_id *id_out, struct doc *payload_out)
{
    const struct rows *r = arg;
    *id_out = (point_id){ 0, row, POINT_ID_U64 };
    *payload_out = (struct doc){ r->bytes.data + r->at[row], (uint32_t)(r->at[row + 1] - r->at[row]) };
    return true;
}

static struct doc row_payload(void *arg, uint32_t row)
{
    point_id id;
    struct doc payload;
    row_at(arg, row, &id, &payload);
    return payload;
}

#define TEXT(words) "{\"must\": [{\"key\": \"description\", \"match\": {\"text\": \"" words "\"}}]}"
#define PLACE(lon, lat) "{\"lon\": " lon ", \"lat\": " lat "}"
#define BOX(left, top, right, bottom)                                                                        \
    "{\"must\": [{\"key\": \"place\", \"geo_bounding_box\": {\"top_left\": " PLACE(left,                     \
            top) ", \"bottom_right\": " PLACE(right, bottom) "}}]}"
#define RADIUS(lon, lat, metres)                                                                             \
    "{\"must\": [{\"key\": \"place\", \"geo_radius\": {\"center\": " PLACE(lon, lat) ", \"radius\": " metres \
                                                                                     "}}]}"

static const struct filter_asked asked[] = {
    { "match 50 %", "{\"must\": [{\"key\": \"tags\", \"match\": {\"value\": \"half\"}}]}" },
    { "match 10 %", "{\"must\": [{\"key\": \"tags\", \"match\": {\"value\": \"tenth\"}}]}" },
    { "match 2.5 %", "{\"must\": [{\"key\": \"section\", \"match\": {\"value\": \"section-7\"}}]}" },
    { "match 0.1 %", "{\"must\": [{\"key\": \"shop\", \"match\": {\"value\": \"shop-77\"}}]}" },
    { "match any of 4, 10 %",
            "{\"must\": [{\"key\": \"section\", \"match\": {\"any\": [\"section-1\", \"section-2\", "
            "\"section-3\", \"section-4\"]}}]}" },
    { "range 50 %", "{\"must\": [{\"key\": \"price\", \"range\": {\"gte\": 211, \"lt\": 711}}]}" },
    { "range 10 %", "{\"must\": [{\"key\": \"price\", \"range\": {\"gte\": 211, \"lt\": 311}}]}" },
    { "range 1 %", "{\"must\": [{\"key\": \"price\", \"range\": {\"gte\": 211, \"lt\": 221}}]}" },
    { "range 0.1 %", "{\"must\": [{\"key\": \"price\", \"range\": {\"gte\": 211, \"lt\": 212}}]}" },
    { "range in order of rows, 50 %",
            "{\"must\": [{\"key\": \"at\", \"range\": {\"gte\": 1700009000000, \"lt\": 1700027500000}}]}" },
    { "match and range, 1 %",
            "{\"must\": [{\"key\": \"tags\", \"match\": {\"value\": \"tenth\"}}, "
            "{\"key\": \"price\", \"range\": {\"lt\": 100}}]}" },
    { "must_not, 50 %", "{\"must_not\": [{\"key\": \"tags\", \"match\": {\"value\": \"half\"}}]}" },
    { "text, one word, 50 %", TEXT("word1") },
    { "text, one word, 1 %", TEXT("word60") },
    { "text, one word, 0.01 %", TEXT("word9000") },
    { "text, two words", TEXT("word1 word2") },
    { "text, three words", TEXT("word3 word20 word40") },
    { "text, no such word: pruned", TEXT("word1 meer") },
    { "box, a continent", BOX("-20", "60", "40", "0") },
    { "box, some towns", BOX("10", "45", "12", "43") },
    { "box over the antimeridian", BOX("170", "30", "-170", "-30") },
    { "radius 1,000 km", RADIUS("10", "45", "1000000") },
    { "radius 100 km", RADIUS("10", "45", "100000") },
    { "radius 1,000 km at a pole", RADIUS("0", "89", "1000000") },
    { "polygon with a hole",
            "{\"must\": [{\"key\": \"place\", \"geo_polygon\": {\"exterior\": {\"points\": ["
            "{\"lon\": -20, \"lat\": 0}, {\"lon\": 40, \"lat\": 5}, {\"lon\": 30, \"lat\": 60}, "
            "{\"lon\": -10, \"lat\": 50}, {\"lon\": -20, \"lat\": 0}]}, \"interiors\": [{\"points\": ["
            "{\"lon\": 0, \"lat\": 10}, {\"lon\": 20, \"lat\": 10}, {\"lon\": 10, \"lat\": 40}, "
            "{\"lon\": 0, \"lat\": 10}]}]}}]}" },
    { "text and radius",
            "{\"must\": [{\"key\": \"description\", \"match\": {\"text\": \"word1\"}}, "
            "{\"key\": \"place\", \"geo_radius\": {\"center\": {\"lon\": 10, \"lat\": 45}, "
            "\"radius\": 1000000}}]}" },
    { "no such value: pruned", "{\"must\": [{\"key\": \"shop\", \"match\": {\"value\": \"shop-1001\"}}]}" },
};

static uint64_t median(uint64_t *values, size_t count)
{
    qsort(values, count, sizeof *values, bench_compare_u64);
    return values[count / 2];
}

/* As a search does: the estimate, and when that proves nothing, the set. */
static uint64_t index_ns(const struct payload_index *index, const struct filter *filter,
        struct payload_scratch *scratch, uint64_t rounds, uint64_t *count_out, double *estimate_out)
{
    uint64_t *ns = mem_must_calloc(rounds, sizeof *ns);
    for (uint64_t i = 0; i < rounds; i++) {
        struct payload_estimate estimate;
        struct payload_answer answer = { .exact = true };
        uint64_t start = bench_now_ns();
        payload_index_estimate(index, filter, &estimate);
        if (estimate.pruned == EXPLAIN_NOT_PRUNED)
            CHECK(payload_index_filter(index, filter, scratch, &answer) == OMEN_OK);
        ns[i] = bench_now_ns() - start;
        CHECK(answer.exact);
        *count_out = answer.count;
        *estimate_out = estimate.rows;
    }
    uint64_t middle = median(ns, rounds);
    mem_free(ns);
    return middle;
}

static uint64_t payloads_ns(struct rows *r, const struct filter *filter, uint64_t expected)
{
    uint64_t ns[PAYLOAD_ROUNDS];
    for (int i = 0; i < PAYLOAD_ROUNDS; i++) {
        uint64_t passed = 0, start = bench_now_ns();
        for (uint32_t row = 0; row < r->count; row++) {
            point_id id;
            struct doc payload;
            row_at(r, row, &id, &payload);
            passed += filter_match(filter, id, payload);
        }
        ns[i] = bench_now_ns() - start;
        CHECK(passed == expected);
    }
    return median(ns, PAYLOAD_ROUNDS);
}

static struct payload_index *index_make(struct rows *r, const char *path)
{
    struct err err;
    struct payload_index *index;
    struct payload_index_stats stats;
    const struct payload_source source = { .count = r->count, .row = row_at, .arg = r };
    uint64_t start = bench_now_ns();
    if (payload_index_build(&source, vfs_posix(), path, &err) != OMEN_OK) panic("%s", err.message);
    uint64_t built = bench_now_ns();
    if (payload_index_open(vfs_posix(), path, r->count, &index, &err) != OMEN_OK) panic("%s", err.message);
    uint64_t opened = bench_now_ns();
    payload_index_stats(index, &stats);
    json_line_begin("filter");
    json_line_text("what", "index");
    json_line_u64("count", r->count);
    json_line_u64("fields", stats.fields);
    json_line_f64("payload_bytes_per_row", (double)r->bytes.len / r->count);
    json_line_f64("disk_bytes_per_row", (double)stats.disk_bytes / r->count);
    json_line_f64("memory_bytes_per_row", (double)stats.memory_bytes / r->count);
    json_line_f64("build_seconds", (double)(built - start) / 1e9);
    json_line_f64("open_ms", (double)(opened - built) / 1e6);
    json_line_end();
    return index;
}

int bench_filter(int argc, char **argv)
{
    uint64_t count = 1000000, rounds = 201, queries = 200, store = 0;
    const char *data = NULL, *dir = "/tmp/omen-bench-filter";
    const char *path = "/tmp/omen-bench-filter.payload";
    const struct bench_option options[] = {
        { "--count", "rows of the segment (1000000)", &count, NULL, NULL },
        { "--rounds", "of each filter (201)", &rounds, NULL, NULL },
        { "--data", "searches over this data set instead (debpkg-lsa-128: it has sections)", NULL, &data,
                NULL },
        { "--queries", "of the data set (200)", &queries, NULL, NULL },
        { "--store", "1: counts and pages in a store of such rows instead (0)", &store, NULL, NULL },
        { "--dir", "scratch directory of --data and --store (/tmp/omen-bench-filter)", NULL, &dir, NULL },
        { "--file", "scratch file (/tmp/omen-bench-filter.payload)", NULL, &path, NULL },
    };
    bench_parse(argc, argv, "filter [options]", options, sizeof options / sizeof options[0]);
    if (count == 0 || count > 100000000 || rounds == 0 || rounds > 100000) {
        fprintf(stderr, "omen-bench filter: --count 1..100000000, --rounds 1..100000\n");
        return 2;
    }
    if (data != NULL) {
        filter_search(data, dir, queries);
        return 0;
    }
    struct rows r;
    struct arena arena;
    struct payload_scratch *scratch = payload_scratch_new();
    CHECK(scratch != NULL);
    arena_init(&arena, 1 << 14, 0);
    rows_make(&r, (uint32_t)count);
    if (store != 0) {
        filter_count(&(struct filter_count){ dir, (uint32_t)count, row_payload, &r, asked,
                sizeof asked / sizeof *asked, rounds });
        return 0;
    }
    struct payload_index *index = index_make(&r, path);
    for (size_t i = 0; i < sizeof asked / sizeof *asked; i++) {
        const struct filter *filter = bench_filter_read(asked[i].json, &arena);
        uint64_t passed = 0, ns;
        double estimate = 0;
        ns = index_ns(index, filter, scratch, rounds, &passed, &estimate);
        json_line_begin("filter");
        json_line_text("what", asked[i].name);
        json_line_u64("count", count);
        json_line_u64("rows", passed);
        json_line_f64("estimated", estimate);
        json_line_f64("index_us", (double)ns / 1e3);
        json_line_f64("payloads_us", (double)payloads_ns(&r, filter, passed) / 1e3);
        json_line_end();
    }
    payload_index_free(index);
    payload_scratch_free(scratch);
    remove(path);
    arena_fini(&arena);
    buf_fini(&r.bytes);
    mem_free(r.at);
    return 0;
}
