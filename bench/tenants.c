/* omen-bench tenants: many tenants in one shard store against each of them in a store of its own, real vectors. How
 * long a search for one tenant takes in both, in turns, with recall against exact searches; then what memory and
 * disk all of them take beside one tenant with the same points. */
#include <ftw.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench.h"
#include "bench/index_data.h"
#include "common/check.h"
#include "common/mem.h"
#include "storage/shard_index.h"

#define BATCH 500u
#define K 10u
#define ALONE_MAX 64u

struct config {
    const char *data, *dir;
    uint64_t tenants, limit, queries, alone, threads, rows_min, own_rows;
    bool size; /* measure memory and disk instead */
};

/* Rows of one tenant, or of all. */
struct side {
    struct shard_store *store;
    struct store_view view;
    char dir[300];
};

static void payload_make(uint64_t tenant, struct doc_builder *b, struct doc *out)
{
    char name[40];
    doc_builder_reset(b, DOC_BYTES_MAX);
    doc_begin_object(b);
    doc_key(b, "tenant", 6);
    doc_put_string(b, name, (size_t)snprintf(name, sizeof name, "tenant-%08llu", (unsigned long long)tenant));
    doc_end(b);
    CHECK(doc_builder_finish(b, out, NULL) == OMEN_OK);
}

static void entry_apply(struct shard_store *store, struct entry_builder *entries, uint64_t sequence)
{
    struct err err;
    uint8_t *bytes;
    uint32_t len;
    CHECK(entry_builder_finish(entries, 1, 0, false, &bytes, &len) == OMEN_OK);
    if (shard_store_apply(store, sequence, bytes, len, NULL, &err) != OMEN_OK) panic("%s", err.message);
    mem_free(bytes);
    entry_builder_reset(entries);
}

/* Rows in the order of the data set; row i is of tenant i mod `tenants`. */
static void side_fill(struct side *side, const struct bench_data *data,
        const struct collection_schema *schema, uint64_t tenants, uint64_t only)
{
    struct entry_builder *entries = entry_builder_new(schema);
    struct doc_builder *b = doc_builder_new(DOC_BYTES_MAX);
    uint64_t sequence = 0;
    uint32_t count = 0;
    for (uint32_t i = 0; i < data->rows.count; i++) {
        struct point_op op = { .kind = POINT_UPSERT,
            .id = { 0, i, POINT_ID_U64 },
            .vectors = { data->rows.data + (size_t)i * data->rows.stride_floats } };
        if (only != UINT64_MAX && i % tenants != only) continue;
        if (count == 0) entry_builder_begin_request(entries, (struct op_id){ 0 });
        payload_make(i % tenants, b, &op.payload);
        CHECK(entry_builder_add(entries, &op) == OMEN_OK);
        if (++count < BATCH) continue;
        entry_apply(side->store, entries, ++sequence);
        count = 0;
    }
    if (count > 0) entry_apply(side->store, entries, ++sequence);
    doc_builder_free(b);
    entry_builder_free(entries);
}

static void side_index(struct side *side, const struct config *config)
{
    struct index_policy policy;
    struct index_control control = { .threads = (uint32_t)config->threads };
    struct err err;
    bool worked = true;
    index_policy_default(&policy);
    policy.rules.tenant = "tenant";
    policy.rules.own_rows = (uint32_t)config->own_rows;
    policy.rows_min = (uint32_t)config->rows_min;
    policy.eager = policy.pin = true;
    if (shard_store_checkpoint(side->store, NULL, &err) != OMEN_OK) panic("%s", err.message);
    while (worked)
        if (shard_index_step(side->store, &policy, &control, &worked, &err) != OMEN_OK)
            panic("%s", err.message);
    for (worked = true; worked;)
        if (shard_index_tail(side->store, &policy, &control, &worked, &err) != OMEN_OK)
            panic("%s", err.message);
}

static void side_open(struct side *side, const struct config *config, const struct bench_data *data,
        uint64_t tenants, uint64_t only)
{
    struct collection_schema schema = { .field_count = 1 };
    struct shard_store_options options;
    struct err err;
    schema.fields[0].dim = data->rows.dim;
    schema.fields[0].metric = data->rows.metric;
    snprintf(side->dir, sizeof side->dir, "%.200s.%llu-%llu", config->dir, (unsigned long long)tenants,
            (unsigned long long)(only + 1));
    shard_store_options_default(&options);
    options.vfs = vfs_posix();
    options.dir = side->dir;
    options.shard_id = options.replica_id = 1;
    options.schema = &schema;
    if (vfs_remove_tree(vfs_posix(), side->dir, &err) != OMEN_OK ||
            shard_store_open(&options, &side->store, &err) != OMEN_OK)
        panic("%s", err.message);
    side_fill(side, data, &schema, tenants, only);
    side_index(side, config);
    store_view_acquire(side->store, &side->view);
}

static void side_close(struct side *side)
{
    struct err err;
    store_view_release(&side->view);
    shard_store_close(side->store);
    if (vfs_remove_tree(vfs_posix(), side->dir, &err) != OMEN_OK) panic("%s", err.message);
}

/* ---- searches ---- */

static const struct filter *filter_of(uint64_t tenant, struct arena *arena)
{
    char json[120];
    snprintf(json, sizeof json,
            "{\"must\": [{\"key\": \"tenant\", \"match\": {\"value\": \"tenant-%08llu\"}}]}",
            (unsigned long long)tenant);
    return bench_filter_read(json, arena);
}

static uint64_t search(const struct side *side, const float *query, const struct filter *filter, bool exact,
        struct arena *arena, struct hit **hits, uint32_t *count_out, uint64_t *distances_out)
{
    struct err err;
    struct search_stats stats;
    struct search_params params = { .query = query, .k = K, .filter = filter, .exact = exact };
    uint64_t start = bench_now_ns();
    if (shard_store_search(&side->view, &params, 1, NULL, arena, hits, count_out, &stats, &err) != OMEN_OK)
        panic("%s", err.message);
    *distances_out = stats.distances_computed;
    return bench_now_ns() - start;
}

struct tally {
    uint64_t *ns, count, found, wanted, distances;
};

static void tally_add(struct tally *t, uint64_t ns, const struct hit *hits, uint32_t count,
        const struct hit *truth, uint32_t truth_count)
{
    t->ns[t->count++] = ns;
    t->wanted += truth_count;
    for (uint32_t i = 0; i < count && i < truth_count; i++)
        t->found += hits[i].distance <=
                truth[truth_count - 1].distance + 1e-5f * (1 + fabsf(truth[truth_count - 1].distance));
}

static void ask_both(const struct side *shared, const struct side *alone, const struct filter *filter,
        const float *query, struct tally tallies[2])
{
    struct hit *truth, *hits;
    uint32_t truth_count, count;
    uint64_t distances;
    struct arena arena;
    arena_init(&arena, 1 << 16, 0);
    search(alone, query, NULL, true, &arena, &truth, &truth_count, &distances);
    for (int round = 0; round < 2; round++) { /* the second one counts */
        uint64_t ns = search(shared, query, filter, false, &arena, &hits, &count, &distances);
        tallies[0].distances += round == 1 ? distances : 0;
        if (round == 1) tally_add(&tallies[0], ns, hits, count, truth, truth_count);
        ns = search(alone, query, NULL, false, &arena, &hits, &count, &distances);
        tallies[1].distances += round == 1 ? distances : 0;
        if (round == 1) tally_add(&tallies[1], ns, hits, count, truth, truth_count);
    }
    arena_fini(&arena);
}

/* Of all tenants at once: what segments of their own cost who does not ask for one. */
static void ask_all(const struct side *shared, const float *query, struct tally *t)
{
    struct hit *hits;
    uint32_t count;
    uint64_t distances;
    struct arena arena;
    arena_init(&arena, 1 << 16, 0);
    search(shared, query, NULL, false, &arena, &hits, &count, &distances);
    t->ns[t->count++] = search(shared, query, NULL, false, &arena, &hits, &count, &distances);
    arena_fini(&arena);
}

static double percentile(struct tally *t, uint64_t hundredths)
{
    qsort(t->ns, t->count, sizeof *t->ns, bench_compare_u64);
    return (double)t->ns[(t->count - 1) * hundredths / 100] / 1e3;
}

static void searches_run(const struct config *config, const struct bench_data *data)
{
    static struct side shared, alone[ALONE_MAX];
    const struct filter *filters[ALONE_MAX];
    struct shard_index_stats stats;
    struct arena arena;
    struct tally tallies[3]; /* shared, alone, all of the shared one */
    for (int i = 0; i < 3; i++)
        tallies[i] = (struct tally){ .ns = mem_must_calloc(config->alone * data->query_count, 8) };
    arena_init(&arena, 1 << 14, 0);
    side_open(&shared, config, data, config->tenants, UINT64_MAX);
    for (uint64_t i = 0; i < config->alone; i++) {
        uint64_t tenant = i * config->tenants / config->alone;
        side_open(&alone[i], config, data, config->tenants, tenant);
        filters[i] = filter_of(tenant, &arena);
    }
    for (uint32_t q = 0; q < data->query_count; q++)
        ask_all(&shared, data->queries + (size_t)q * data->rows.dim, &tallies[2]);
    for (uint32_t q = 0; q < data->query_count; q++)
        for (uint64_t i = 0; i < config->alone; i++)
            ask_both(&shared, &alone[i], filters[i], data->queries + (size_t)q * data->rows.dim, tallies);
    shard_index_stats(shared.store, &stats);
    double p50 = percentile(&tallies[0], 50), alone_p50 = percentile(&tallies[1], 50);
    json_line_begin("tenants");
    json_line_text("what", "search for one of many tenants, and in a store of its own");
    json_line_text("dataset", data->set.name);
    json_line_u64("count", data->rows.count);
    json_line_u64("tenants", config->tenants);
    json_line_u64("segments", stats.segments);
    json_line_u64("own_segments", stats.own_segments);
    json_line_f64("p50_us", p50);
    json_line_f64("p99_us", percentile(&tallies[0], 99));
    json_line_f64("recall", (double)tallies[0].found / (double)tallies[0].wanted);
    json_line_f64("alone_p50_us", alone_p50);
    json_line_f64("alone_p99_us", percentile(&tallies[1], 99));
    json_line_f64("alone_recall", (double)tallies[1].found / (double)tallies[1].wanted);
    json_line_f64("distances_per_query", (double)tallies[0].distances / (double)tallies[0].count);
    json_line_f64("alone_distances_per_query", (double)tallies[1].distances / (double)tallies[1].count);
    json_line_f64("ratio", p50 / alone_p50);
    json_line_f64("all_p50_us", percentile(&tallies[2], 50));
    json_line_end();
    for (uint64_t i = 0; i < config->alone; i++) side_close(&alone[i]);
    side_close(&shared);
    for (int i = 0; i < 3; i++) mem_free(tallies[i].ns);
    arena_fini(&arena);
}

/* ---- sizes ---- */

static uint64_t disk_bytes; /* nftw has no argument of its own */

static int disk_add(const char *path, const struct stat *stat, int type, struct FTW *ftw)
{
    (void)path;
    (void)ftw;
    if (type == FTW_F) disk_bytes += (uint64_t)stat->st_blocks * 512;
    return 0;
}

static void size_run(const struct config *config, const struct bench_data *data, uint64_t tenants,
        uint64_t bytes[2])
{
    struct side side;
    struct shard_index_memory memory;
    struct shard_index_stats stats;
    side_open(&side, config, data, tenants, UINT64_MAX);
    shard_index_memory(side.store, &memory);
    shard_index_stats(side.store, &stats);
    disk_bytes = 0;
    if (nftw(side.dir, disk_add, 16, FTW_PHYS) != 0) panic("%s cannot be walked", side.dir);
    bytes[0] = memory.pinned + memory.mapped + memory.sketches + memory.rows;
    bytes[1] = disk_bytes;
    json_line_begin("tenants");
    json_line_text("what", "size");
    json_line_text("dataset", data->set.name);
    json_line_u64("count", data->rows.count);
    json_line_u64("tenants", tenants);
    json_line_u64("segments", stats.segments);
    json_line_u64("own_segments", stats.own_segments);
    json_line_f64("memory_bytes_per_row", (double)bytes[0] / data->rows.count);
    json_line_f64("disk_bytes_per_row", (double)bytes[1] / data->rows.count);
    json_line_end();
    side_close(&side);
}

static void sizes_run(const struct config *config, const struct bench_data *data)
{
    uint64_t many[2], one[2];
    size_run(config, data, config->tenants, many);
    size_run(config, data, 1, one);
    json_line_begin("tenants");
    json_line_text("what", "size of many tenants over that of one");
    json_line_u64("count", data->rows.count);
    json_line_u64("tenants", config->tenants);
    json_line_f64("memory_ratio", (double)many[0] / (double)one[0]);
    json_line_f64("disk_ratio", (double)many[1] / (double)one[1]);
    json_line_end();
}

int bench_tenants(int argc, char **argv)
{
    struct config config = { .dir = "/tmp/omen-bench-tenants",
        .tenants = 1000,
        .queries = 200,
        .alone = 8,
        .threads = 1,
        .rows_min = 1000,
        .own_rows = 20000 };
    const struct bench_option options[] = {
        { "--data", "data set folder", NULL, &config.data, NULL },
        { "--tenants", "row i is of tenant i mod so many (1000)", &config.tenants, NULL, NULL },
        { "--limit", "rows; 0 = all (0)", &config.limit, NULL, NULL },
        { "--queries", "of each tenant that is asked for (200)", &config.queries, NULL, NULL },
        { "--alone", "tenants that are asked for (8)", &config.alone, NULL, NULL },
        { "--rows-min", "rows worth an index (1000, as immediate_index has it)", &config.rows_min, NULL,
                NULL },
        { "--own-rows", "of a tenant, from which on it has segments of its own (20000)", &config.own_rows,
                NULL, NULL },
        { "--build-threads", "of builds (1)", &config.threads, NULL, NULL },
        { "--size", "memory and disk of all tenants and of one, no searches", NULL, NULL, &config.size },
        { "--dir", "scratch directory, its name is gone on from (/tmp/omen-bench-tenants)", NULL, &config.dir,
                NULL },
    };
    bench_parse(argc, argv, "tenants --data DIR [options]", options, sizeof options / sizeof options[0]);
    if (config.data == NULL || config.tenants == 0 || config.alone == 0 || config.alone > ALONE_MAX ||
            config.alone > config.tenants || config.threads == 0 || config.threads > INDEX_THREADS_MAX ||
            config.queries == 0 || config.rows_min == 0 || config.rows_min > UINT32_MAX ||
            config.own_rows > UINT32_MAX) {
        fprintf(stderr,
                "omen-bench tenants: --data DIR, --tenants 1.., --alone 1..%u and at most the tenants\n",
                ALONE_MAX);
        return 2;
    }
    struct bench_data data;
    bench_data_open(&data, config.data, config.limit, config.queries, K, 1);
    if (config.size)
        sizes_run(&config, &data);
    else
        searches_run(&config, &data);
    bench_data_close(&data);
    return 0;
}
