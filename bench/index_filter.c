/* Filters of `omen-bench index`; see index_filter.h. Threads: one. Determinism: fixed seeds. */
#include "bench/index_filter.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench.h"
#include "common/check.h"
#include "common/json.h"
#include "common/mem.h"
#include "storage/kernel/kernel.h"
#include "storage/payload/filter_eval.h"

#define ANCHORS 16
#define ANCHOR_SEED 77
#define LINE_DOC_BYTES_MAX (1u << 20)

static size_t words_of(const struct bench_data *data) { return ((size_t)data->rows.count + 63) / 64; }

static void bit_set(uint64_t *bits, uint32_t i) { bits[i / 64] |= UINT64_C(1) << (i % 64); }

static const float *row_of(const struct bench_data *data, uint32_t slot)
{
    return data->rows.data + (size_t)slot * data->rows.stride_floats;
}

/* By l2 whatever the metric is: an anchor is a place in space. */
static float apart(const struct bench_data *data, const float *a, const float *b)
{
    return kernel_get()->l2sq_f32(a, b, data->rows.dim);
}

static uint64_t fill_random(const struct bench_data *data, double share, uint64_t *bits)
{
    uint64_t count = 0;
    for (uint32_t i = 0; i < data->rows.count; i++) {
        if ((double)(bench_mix(i) >> 11) * 0x1p-53 >= share) continue;
        bit_set(bits, i);
        count++;
    }
    return count;
}

static int compare_f32(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* The rows nearest to an anchor, `count` of them and those that tie with the last. */
static uint64_t fill_near(const struct bench_data *data, const float *anchor, uint32_t count, uint64_t *bits)
{
    uint32_t n = data->rows.count;
    float *distances = mem_must_alloc(n * sizeof(float)), *sorted = mem_must_alloc(n * sizeof(float));
    for (uint32_t i = 0; i < n; i++) sorted[i] = distances[i] = apart(data, anchor, row_of(data, i));
    qsort(sorted, n, sizeof(float), compare_f32);
    uint64_t set = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (distances[i] > sorted[count - 1]) continue;
        bit_set(bits, i);
        set++;
    }
    mem_free(distances);
    mem_free(sorted);
    return set;
}

static void make_anchored(struct bench_filters *filters, struct bench_data *data, double share, bool nearest)
{
    struct bench_filter sets[ANCHORS];
    const float *anchors[ANCHORS];
    uint32_t n = data->rows.count, count = (uint32_t)ceil(share * n);
    filters->bits = mem_must_calloc(ANCHORS * words_of(data), sizeof(uint64_t));
    for (uint32_t a = 0; a < ANCHORS; a++) {
        uint64_t *bits = filters->bits + a * words_of(data);
        anchors[a] = row_of(data, (uint32_t)(bench_mix(ANCHOR_SEED + a) % n));
        sets[a] = (struct bench_filter){ bits, fill_near(data, anchors[a], count == 0 ? 1 : count, bits) };
    }
    for (uint32_t q = 0; q < data->query_count; q++) {
        uint32_t chosen = 0;
        float chosen_distance = 0;
        for (uint32_t a = 0; a < ANCHORS; a++) {
            float d = apart(data, data->queries + (size_t)q * data->rows.dim, anchors[a]);
            if (a > 0 && (nearest ? d >= chosen_distance : d <= chosen_distance)) continue;
            chosen = a;
            chosen_distance = d;
        }
        filters->by_query[q] = sets[chosen];
    }
}

static struct doc line_doc(struct bytes line, struct doc_builder *builder)
{
    struct doc doc;
    struct err err;
    doc_builder_reset(builder, LINE_DOC_BYTES_MAX);
    if (line.len > 0 && line.data[0] == '{' &&
            json_parse((const char *)line.data, line.len, builder, &doc, &err) == OMEN_OK)
        return doc;
    doc_builder_reset(builder, LINE_DOC_BYTES_MAX);
    doc_begin_object(builder);
    doc_key(builder, "text", 4);
    doc_put_string(builder, (const char *)line.data, line.len);
    doc_end(builder);
    if (doc_builder_finish(builder, &doc, &err) != OMEN_OK) panic("payload: %s", err.message);
    return doc;
}

static uint64_t fill_json(struct bench_data *data, const char *text, uint64_t *bits)
{
    struct arena arena;
    struct err err;
    struct doc filter_doc;
    const struct filter *filter;
    uint64_t count = 0;
    struct doc_builder *builder = doc_builder_new(LINE_DOC_BYTES_MAX),
                       *lines = doc_builder_new(LINE_DOC_BYTES_MAX);
    if (builder == NULL || lines == NULL) panic("no memory for a filter");
    arena_init(&arena, 1 << 16, 0);
    if (json_parse(text, strlen(text), builder, &filter_doc, &err) != OMEN_OK ||
            filter_parse(filter_doc, &arena, &filter, &err) != OMEN_OK)
        panic("--filter %s: %s", err.field, err.message);
    dataset_payload_rewind(&data->set);
    for (uint32_t i = 0; i < data->rows.count; i++) {
        struct bytes line = dataset_payload_next(&data->set);
        if (line.data == NULL) panic("%s has no payload for row %u", data->set.name, i);
        if (!filter_match(filter, (point_id){ 0, i, POINT_ID_U64 }, line_doc(line, lines))) continue;
        bit_set(bits, i);
        count++;
    }
    arena_fini(&arena);
    doc_builder_free(lines);
    doc_builder_free(builder);
    return count;
}

static bool share_of(const char *text, const char *prefix, double *share_out)
{
    size_t len = strlen(prefix);
    if (strncmp(text, prefix, len) != 0) return false;
    char *end;
    *share_out = strtod(text + len, &end);
    if (end == text + len || *end != 0 || !(*share_out > 0 && *share_out <= 1))
        panic("--filter %s: the share is a number above 0, at most 1", text);
    return true;
}

void bench_filters_make(struct bench_filters *filters, struct bench_data *data, const char *text)
{
    double share;
    *filters = (struct bench_filters){ .text = text };
    filters->by_query = mem_must_calloc(data->query_count, sizeof *filters->by_query);
    if (share_of(text, "correlated:", &share))
        make_anchored(filters, data, share, true);
    else if (share_of(text, "anti:", &share))
        make_anchored(filters, data, share, false);
    else {
        filters->bits = mem_must_calloc(words_of(data), sizeof(uint64_t));
        bool random = share_of(text, "random:", &share);
        if (!random && text[0] != '{') panic("--filter %s: random:S, correlated:S, anti:S or JSON", text);
        struct bench_filter one = { filters->bits, 0 };
        one.count = random ? fill_random(data, share, filters->bits) : fill_json(data, text, filters->bits);
        for (uint32_t q = 0; q < data->query_count; q++) filters->by_query[q] = one;
    }
    for (uint32_t q = 0; q < data->query_count; q++)
        filters->selectivity += (double)filters->by_query[q].count / data->rows.count / data->query_count;
}

void bench_filters_free(struct bench_filters *filters)
{
    mem_free(filters->by_query);
    mem_free(filters->bits);
}
