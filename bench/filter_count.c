/* omen-bench filter --store: counts and first pages of 100 under filters in a shard store of made points: payload by
 * payload, then with every point in a sealed segment, then right after a point was deleted. */
#include <stdlib.h>

#include "bench/bench.h"
#include "bench/filter_count.h"
#include "bench/filter_search.h"
#include "common/check.h"
#include "common/mem.h"
#include "storage/entry.h"

#define DIM 8u
#define BATCH 500u
#define PAGE 100u

static void entry_apply(struct shard_store *store, struct entry_builder *entries, uint64_t sequence)
{
    struct err err;
    uint8_t *bytes;
    uint32_t len;
    CHECK(entry_builder_finish(entries, 1, 0, false, &bytes, &len) == OMEN_OK);
    if (shard_store_apply(store, sequence, bytes, len, NULL, &err) != OMEN_OK) panic("%s", err.message);
    mem_free(bytes);
    entry_builder_reset(entries);
    entry_builder_begin_request(entries, (struct op_id){ 0 });
}

static uint64_t fill(struct shard_store *store, struct entry_builder *entries,
        const struct filter_count *bench)
{
    uint64_t sequence = 0;
    for (uint32_t i = 0; i < bench->count; i++) {
        float vector[DIM];
        for (uint32_t d = 0; d < DIM; d++)
            vector[d] = (float)(bench_mix((uint64_t)i * DIM + d) >> 40) / (1 << 24);
        struct point_op op = { .kind = POINT_UPSERT,
            .id = { 0, i, POINT_ID_U64 },
            .payload = bench->payload(bench->arg, i),
            .vectors = { vector } };
        CHECK(entry_builder_add(entries, &op) == OMEN_OK);
        if ((i + 1) % BATCH == 0 || i + 1 == bench->count) entry_apply(store, entries, ++sequence);
    }
    return sequence;
}

static uint64_t count_ns(const struct store_view *view, const struct filter *filter, uint64_t rounds,
        uint64_t *count_out)
{
    struct err err;
    uint64_t *ns = mem_must_calloc(rounds, sizeof *ns);
    for (uint64_t i = 0; i < rounds; i++) {
        uint64_t start = bench_now_ns();
        CHECK(shard_store_count(view, filter, NULL, count_out, &err) == OMEN_OK);
        ns[i] = bench_now_ns() - start;
    }
    qsort(ns, rounds, sizeof *ns, bench_compare_u64);
    uint64_t middle = ns[rounds / 2];
    mem_free(ns);
    return middle;
}

static uint64_t page_ns(const struct store_view *view, const struct filter *filter, uint64_t rounds)
{
    struct err err;
    struct arena arena;
    uint64_t *ns = mem_must_calloc(rounds, sizeof *ns);
    arena_init(&arena, 1 << 16, 0);
    for (uint64_t i = 0; i < rounds; i++) {
        struct point_view *points;
        uint32_t count;
        bool more;
        uint64_t start = bench_now_ns();
        CHECK(shard_store_scroll(view, NULL, PAGE, filter, NULL, NULL, &arena, &points, &count, &more,
                      &err) == OMEN_OK);
        ns[i] = bench_now_ns() - start;
        arena_reset(&arena);
    }
    qsort(ns, rounds, sizeof *ns, bench_compare_u64);
    uint64_t middle = ns[rounds / 2];
    mem_free(ns);
    arena_fini(&arena);
    return middle;
}

struct times {
    uint64_t count, page, rows;
};

static void ask(struct shard_store *store, const struct filter *filter, uint64_t rounds, struct times *out)
{
    struct store_view view;
    store_view_acquire(store, &view);
    out->count = count_ns(&view, filter, rounds, &out->rows);
    out->page = page_ns(&view, filter, rounds);
    store_view_release(&view);
}

static uint64_t count_once_ns(struct shard_store *store, const struct filter *filter)
{
    struct store_view view;
    uint64_t rows;
    store_view_acquire(store, &view);
    uint64_t ns = count_ns(&view, filter, 1, &rows);
    store_view_release(&view);
    return ns;
}

void filter_count(const struct filter_count *bench)
{
    struct collection_schema schema = { .field_count = 1 };
    struct arena arena;
    struct err err;
    schema.fields[0].dim = DIM;
    schema.fields[0].metric = METRIC_L2;
    struct shard_store *store = filter_store_open(bench->dir, &schema);
    struct entry_builder *entries = entry_builder_new(&schema);
    struct times *before = mem_must_calloc(bench->asked_count, sizeof *before);
    arena_init(&arena, 1 << 14, 0);
    entry_builder_reset(entries);
    entry_builder_begin_request(entries, (struct op_id){ 0 });
    uint64_t sequence = fill(store, entries, bench);
    for (uint32_t i = 0; i < bench->asked_count; i++)
        ask(store, bench_filter_read(bench->asked[i].json, &arena), 1, &before[i]);
    filter_store_index(store);
    for (uint32_t i = 0; i < bench->asked_count; i++) {
        const struct filter *filter = bench_filter_read(bench->asked[i].json, &arena);
        const struct point_op gone = { .kind = POINT_DELETE, .id = { 0, i, POINT_ID_U64 } };
        struct times now;
        ask(store, filter, bench->rounds, &now);
        CHECK(now.rows <= before[i].rows && now.rows + i >= before[i].rows);
        CHECK(entry_builder_add(entries, &gone) == OMEN_OK);
        entry_apply(store, entries, ++sequence);
        json_line_begin("filter");
        json_line_text("what", bench->asked[i].name);
        json_line_u64("count", bench->count);
        json_line_u64("rows", now.rows);
        json_line_f64("count_us", (double)now.count / 1e3);
        json_line_f64("count_after_delete_us", (double)count_once_ns(store, filter) / 1e3);
        json_line_f64("count_payloads_us", (double)before[i].count / 1e3);
        json_line_f64("page_us", (double)now.page / 1e3);
        json_line_f64("page_payloads_us", (double)before[i].page / 1e3);
        json_line_end();
    }
    mem_free(before);
    entry_builder_free(entries);
    arena_fini(&arena);
    shard_store_close(store);
    CHECK(vfs_remove_tree(vfs_posix(), bench->dir, &err) == OMEN_OK);
}
