/* omen-bench filter --data: searches under filters in a shard store whose rows are all in sealed segments, real vectors
 * with their payloads: of random rows, of the section that the nearest row has (correlated with the query) and of the one
 * that the farthest has (anti-correlated). Recall against exact searches of the same store; which plans answered. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench.h"
#include "bench/filter_search.h"
#include "bench/index_data.h"
#include "common/check.h"
#include "common/json.h"
#include "common/mem.h"
#include "storage/shard_index.h"

#define BATCH 500u
#define K 10u

struct shard_store *filter_store_open(const char *dir, const struct collection_schema *schema)
{
    struct shard_store_options options;
    struct shard_store *store;
    struct err err;
    shard_store_options_default(&options);
    options.vfs = vfs_posix();
    options.dir = dir;
    options.shard_id = options.replica_id = 1;
    options.schema = schema;
    if (vfs_remove_tree(vfs_posix(), dir, &err) != OMEN_OK ||
            shard_store_open(&options, &store, &err) != OMEN_OK)
        panic("%s", err.message);
    return store;
}

/* The line and a number below 1,000 by chance. */
static void payload_of(struct bench_data *data, uint32_t row, struct doc_builder *b, struct buf *out)
{
    struct err err;
    struct doc line, chance;
    char text[32];
    struct bytes bytes = dataset_payload_next(&data->set);
    doc_builder_reset(b, DOC_BYTES_MAX);
    if (bytes.data == NULL || json_parse((const char *)bytes.data, bytes.len, b, &line, &err) != OMEN_OK)
        panic("row %u has no JSON payload", row);
    uint8_t *copy = mem_must_alloc(line.len);
    memcpy(copy, line.data, line.len);
    line.data = copy;
    doc_builder_reset(b, DOC_BYTES_MAX);
    int len = snprintf(text, sizeof text, "{\"chance\": %u}", (unsigned)(bench_mix(row) % 1000));
    CHECK(json_parse(text, (size_t)len, b, &chance, &err) == OMEN_OK);
    buf_clear(out);
    CHECK(doc_merge(line, chance, out, &err) == OMEN_OK);
    mem_free(copy);
}

static void store_fill(struct shard_store *store, struct bench_data *data,
        const struct collection_schema *schema)
{
    struct err err;
    struct buf payload;
    struct entry_builder *entries = entry_builder_new(schema);
    struct doc_builder *b = doc_builder_new(DOC_BYTES_MAX);
    uint64_t sequence = 0;
    buf_init(&payload);
    dataset_payload_rewind(&data->set);
    for (uint32_t first = 0; first < data->rows.count; first += BATCH) {
        uint8_t *bytes;
        uint32_t len;
        entry_builder_reset(entries);
        entry_builder_begin_request(entries, (struct op_id){ 0 });
        for (uint32_t i = first; i < first + BATCH && i < data->rows.count; i++) {
            payload_of(data, i, b, &payload);
            struct point_op op = { .kind = POINT_UPSERT,
                .id = { 0, i, POINT_ID_U64 },
                .payload = { payload.data, (uint32_t)payload.len },
                .vectors = { data->rows.data + (size_t)i * data->rows.stride_floats } };
            CHECK(entry_builder_add(entries, &op) == OMEN_OK);
        }
        CHECK(entry_builder_finish(entries, 1, 0, false, &bytes, &len) == OMEN_OK);
        if (shard_store_apply(store, ++sequence, bytes, len, NULL, &err) != OMEN_OK) panic("%s", err.message);
        mem_free(bytes);
    }
    buf_fini(&payload);
    doc_builder_free(b);
    entry_builder_free(entries);
}

void filter_store_index(struct shard_store *store)
{
    struct index_policy policy;
    struct index_control control = { .threads = 1 };
    struct err err;
    bool worked = true;
    index_policy_default(&policy);
    if (shard_store_checkpoint(store, NULL, &err) != OMEN_OK) panic("%s", err.message);
    while (worked)
        if (shard_index_step(store, &policy, &control, &worked, &err) != OMEN_OK) panic("%s", err.message);
}

struct tally {
    uint64_t *ns, queries, found, wanted, fewer, passing;
    uint64_t plans[EXPLAIN_PLAN_COUNT];
};

static uint64_t search(const struct store_view *view, const float *query, const struct filter *filter,
        bool exact, struct arena *arena, struct hit **hits, uint32_t *count_out)
{
    struct err err;
    struct search_params params = { .query = query, .k = K, .filter = filter, .exact = exact };
    params.selection = (struct point_selection){ .with_payload = filter == NULL };
    uint64_t start = bench_now_ns();
    if (shard_store_search(view, &params, 1, NULL, arena, hits, count_out, NULL, &err) != OMEN_OK)
        panic("%s", err.message);
    return bench_now_ns() - start;
}

static void query_run(const struct store_view *view, const float *query, const struct filter *filter,
        struct tally *t)
{
    struct arena arena;
    struct hit *hits, *truth;
    uint32_t count, truth_count;
    uint64_t passing;
    struct search_explain explain = { .parts = NULL };
    struct store_view asked = *view;
    struct err err;
    arena_init(&arena, 1 << 16, 0);
    search(view, query, filter, true, &arena, &truth, &truth_count);
    search(view, query, filter, false, &arena, &hits, &count);
    t->ns[t->queries++] = search(view, query, filter, false, &arena, &hits, &count);
    asked.explain = &explain;
    search(&asked, query, filter, false, &arena, &hits, &count);
    for (uint32_t i = 0; i < explain.count; i++)
        if (explain.parts[i].segment != EXPLAIN_TAIL) t->plans[explain.parts[i].plan]++;
    CHECK(shard_store_count(view, filter, NULL, &passing, &err) == OMEN_OK);
    t->passing += passing;
    t->fewer += count < truth_count;
    t->wanted += truth_count;
    for (uint32_t i = 0; i < count; i++)
        t->found += hits[i].distance <= truth[truth_count - 1].distance + 1e-5f;
    arena_fini(&arena);
}

/* The section of the row nearest to the query, or to its opposite. */
static const struct filter *section_filter(const struct store_view *view, const float *query, uint32_t dim,
        bool nearest, struct arena *arena)
{
    struct hit *hits;
    uint32_t count;
    char json[200];
    float *from = arena_alloc_aligned(arena, 64, dim * sizeof *from);
    for (uint32_t i = 0; i < dim; i++) from[i] = nearest ? query[i] : -query[i];
    search(view, from, NULL, true, arena, &hits, &count);
    struct doc section = doc_member(hits[0].point.payload, (struct bytes){ (const uint8_t *)"section", 7 });
    if (section.data == NULL || doc_type(section) != DOC_STRING) panic("the payloads have no section");
    struct bytes name = doc_string(section);
    snprintf(json, sizeof json, "{\"must\": [{\"key\": \"section\", \"match\": {\"value\": \"%.*s\"}}]}",
            (int)name.len, name.data);
    return bench_filter_read(json, arena);
}

static void report(const char *what, const struct bench_data *data, struct tally *t)
{
    qsort(t->ns, t->queries, sizeof *t->ns, bench_compare_u64);
    json_line_begin("filter");
    json_line_text("what", what);
    json_line_text("dataset", data->set.name);
    json_line_u64("count", data->rows.count);
    json_line_f64("rows", (double)t->passing / (double)t->queries);
    json_line_f64("recall", t->wanted == 0 ? 1 : (double)t->found / (double)t->wanted);
    json_line_u64("fewer_than_k", t->fewer);
    json_line_f64("p50_us", (double)t->ns[t->queries / 2] / 1e3);
    json_line_f64("p99_us", (double)t->ns[t->queries * 99 / 100] / 1e3);
    for (int p = 0; p < EXPLAIN_PLAN_COUNT; p++)
        json_line_u64(explain_plan_name((enum explain_plan)p), t->plans[p]);
    json_line_end();
}

void filter_search(const char *folder, const char *dir, uint64_t queries)
{
    static const char *const asked[] = { "{\"must\": [{\"key\": \"chance\", \"range\": {\"lt\": 500}}]}",
        "{\"must\": [{\"key\": \"chance\", \"range\": {\"lt\": 100}}]}",
        "{\"must\": [{\"key\": \"chance\", \"range\": {\"lt\": 10}}]}",
        "{\"must\": [{\"key\": \"chance\", \"range\": {\"lt\": 1}}]}",
        "{\"must\": [{\"key\": \"title\", \"match\": {\"text\": \"library\"}}]}" };
    static const char *const names[] = { "random 50 %", "random 10 %", "random 1 %", "random 0.1 %", "text",
        "section of the nearest", "section of the farthest" };
    struct bench_data data;
    struct store_view view;
    bench_data_open(&data, folder, 0, queries, K, 1);
    struct collection_schema schema = { .field_count = 1 };
    schema.fields[0].dim = data.rows.dim;
    schema.fields[0].metric = data.rows.metric;
    struct shard_store *store = filter_store_open(dir, &schema);
    store_fill(store, &data, &schema);
    filter_store_index(store);
    store_view_acquire(store, &view);
    for (int way = 0; way < 7; way++) {
        struct tally t = { .ns = mem_must_calloc(data.query_count, sizeof *t.ns) };
        for (uint32_t q = 0; q < data.query_count; q++) {
            struct arena arena;
            const float *query = data.queries + (size_t)q * data.rows.dim;
            arena_init(&arena, 1 << 16, 0);
            query_run(&view, query,
                    way < 5 ? bench_filter_read(asked[way], &arena)
                            : section_filter(&view, query, data.rows.dim, way == 5, &arena),
                    &t);
            arena_fini(&arena);
        }
        report(names[way], &data, &t);
        mem_free(t.ns);
    }
    store_view_release(&view);
    shard_store_close(store);
    bench_data_close(&data);
    struct err err;
    if (vfs_remove_tree(vfs_posix(), dir, &err) != OMEN_OK) panic("%s", err.message);
}
