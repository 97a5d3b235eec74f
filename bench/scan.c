/* omen-bench scan: the exact search over a shard store larger than the caches, one thread, against the rates at which
 * the same thread can stream through as many bytes: of a mapped file, which is what the store searches, and of anonymous
 * memory in huge pages, which is the machine's best. All in turns in the same run; prints medians. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "bench/bench.h"
#include "bench/scan_codes.h"
#include "common/check.h"
#include "common/mem.h"
#include "common/vfs.h"
#include "storage/shard_store.h"

#define BATCH_POINTS 500
#define ROUNDS_MAX SCAN_ROUNDS_MAX

static struct shard_store *load(const char *dir, const struct collection_schema *schema, uint64_t count)
{
    struct shard_store_options options;
    struct err err;
    shard_store_options_default(&options);
    options.vfs = vfs_posix();
    options.dir = dir;
    options.shard_id = options.replica_id = 1;
    options.schema = schema;
    struct shard_store *store;
    if (vfs_remove_tree(vfs_posix(), dir, &err) != OMEN_OK ||
            shard_store_open(&options, &store, &err) != OMEN_OK)
        panic("%s", err.message);
    struct entry_builder *builder = entry_builder_new(schema);
    float row[OMEN_DIM_MAX];
    uint64_t sequence = 0;
    for (uint64_t first = 0; first < count; first += BATCH_POINTS) {
        entry_builder_reset(builder);
        entry_builder_begin_request(builder, (struct op_id){ 0 });
        for (uint64_t i = first; i < first + BATCH_POINTS && i < count; i++) {
            bench_row(i, schema->fields[0].dim, row);
            struct point_op op = { .kind = POINT_UPSERT, .id = { 0, i, POINT_ID_U64 }, .vectors = { row } };
            CHECK(entry_builder_add(builder, &op) == OMEN_OK);
        }
        uint8_t *bytes;
        uint32_t len;
        CHECK(entry_builder_finish(builder, 1, 0, false, &bytes, &len) == OMEN_OK);
        if (shard_store_apply(store, ++sequence, bytes, len, NULL, &err) != OMEN_OK) panic("%s", err.message);
        mem_free(bytes);
    }
    entry_builder_free(builder);
    return store;
}

/* A file of `bytes` in the page cache, mapped as the store maps its chunks. */
static const uint8_t *map_file(const char *dir, uint64_t bytes, struct vfs_file **file_out)
{
    enum { PIECE = 1 << 20 };
    char path[4096];
    struct err err;
    const uint8_t *map = NULL;
    uint8_t *piece = mem_must_calloc(1, PIECE);
    snprintf(path, sizeof path, "%s/floor", dir);
    bool ok = vfs_open(vfs_posix(), path, VFS_WRITE | VFS_CREATE, file_out, &err) == OMEN_OK &&
            vfs_allocate(*file_out, bytes, &err) == OMEN_OK;
    for (uint64_t at = 0; ok && at < bytes; at += PIECE)
        ok = vfs_pwrite(*file_out, piece, bytes - at < PIECE ? bytes - at : PIECE, at, &err) == OMEN_OK;
    if (!ok || vfs_map(*file_out, bytes, &map, &err) != OMEN_OK) panic("%s", err.message);
    mem_free(piece);
    return map;
}

static double median(double *values, size_t count)
{
    for (size_t i = 1; i < count; i++)
        for (size_t j = i; j > 0 && values[j - 1] > values[j]; j--) {
            double swap = values[j];
            values[j] = values[j - 1];
            values[j - 1] = swap;
        }
    return values[count / 2];
}

static double search_once(struct shard_store *store, uint32_t dim, uint64_t seed, uint64_t *rows_out)
{
    struct store_view view;
    struct arena arena;
    float query[OMEN_DIM_MAX];
    bench_row(UINT64_MAX / OMEN_DIM_MAX - seed, dim, query);
    struct search_params search = { .query = query, .k = 10 };
    struct hit *hits;
    uint32_t hit_count;
    struct search_stats stats;
    struct err err;
    arena_init(&arena, 1 << 16, 0);
    store_view_acquire(store, &view);
    uint64_t start = bench_now_ns();
    if (shard_store_search(&view, &search, 1, NULL, &arena, &hits, &hit_count, &stats, &err) != OMEN_OK)
        panic("%s", err.message);
    double seconds = (double)(bench_now_ns() - start) / 1e9;
    CHECK(hit_count == 10);
    *rows_out = stats.rows_scanned;
    store_view_release(&view);
    arena_fini(&arena);
    return seconds;
}

int bench_scan(int argc, char **argv)
{
    uint64_t dim = 128, count = 2500000, codes = 8000000, rounds = 9;
    const char *dir = "/tmp/omen-bench-scan";
    const struct bench_option options[] = {
        { "--dim", "components per vector (128)", &dim, NULL, NULL },
        { "--count", "vectors (2500000: 1.28 GB at 128-d, past this machine class's caches)", &count, NULL,
                NULL },
        { "--codes", "1-bit codes (8000000: 144 MB at 128-d); 0 = only the rows", &codes, NULL, NULL },
        { "--rounds", "interleaved rounds (9)", &rounds, NULL, NULL },
        { "--dir", "scratch directory (/tmp/omen-bench-scan)", NULL, &dir, NULL },
    };
    bench_parse(argc, argv, "scan [options]", options, sizeof options / sizeof options[0]);
    if (dim == 0 || dim > OMEN_DIM_MAX || count < BATCH_POINTS || rounds == 0 || rounds > ROUNDS_MAX) {
        fprintf(stderr, "omen-bench scan: --dim 1..%d, --count >= %d, --rounds 1..%d\n", OMEN_DIM_MAX,
                BATCH_POINTS, ROUNDS_MAX);
        return 2;
    }
    if (codes >= 32) scan_codes(codes, (uint32_t)dim, rounds, median);
    struct collection_schema schema = { .field_count = 1 };
    schema.fields[0].dim = (uint32_t)dim;
    schema.fields[0].metric = METRIC_L2;
    struct shard_store *store = load(dir, &schema, count);
    uint64_t bytes = count * dim * 4;
    uint8_t *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) panic("no memory for the floor");
    madvise(memory, bytes, MADV_HUGEPAGE);
    memset(memory, 1, bytes);
    struct vfs_file *file;
    const uint8_t *mapped = map_file(dir, bytes, &file);

    double scan[ROUNDS_MAX], mapped_rate[ROUNDS_MAX], huge_rate[ROUNDS_MAX];
    uint64_t rows = 0;
    search_once(store, (uint32_t)dim, ROUNDS_MAX, &rows); /* touches every page once */
    bench_memory_read_rate(mapped, bytes, 1);
    for (uint64_t i = 0; i < rounds; i++) {
        double seconds = search_once(store, (uint32_t)dim, i, &rows);
        scan[i] = (double)(rows * dim * 4) / seconds;
        mapped_rate[i] = bench_memory_read_rate(mapped, bytes, 1);
        huge_rate[i] = bench_memory_read_rate(memory, bytes, 1);
    }
    double scan_rate = median(scan, rounds);
    double file_rate = median(mapped_rate, rounds), best_rate = median(huge_rate, rounds);
    json_line_begin("scan");
    json_line_u64("dim", dim);
    json_line_u64("count", count);
    json_line_text("metric", "l2");
    json_line_u64("threads", 1);
    json_line_u64("rows_scanned", rows);
    json_line_f64("scan_ms", (double)(rows * dim * 4) / scan_rate * 1e3);
    json_line_f64("scan_bytes_per_second", scan_rate);
    json_line_f64("mapped_read_bytes_per_second", file_rate);
    json_line_f64("huge_page_read_bytes_per_second", best_rate);
    json_line_f64("fraction_of_mapped_read", scan_rate / file_rate);
    json_line_f64("fraction_of_huge_page_read", scan_rate / best_rate);
    json_line_f64("scan_spread", scan[rounds - 1] / scan[0]);
    json_line_end();
    munmap(memory, bytes);
    vfs_unmap(file, mapped, bytes);
    vfs_close(file);
    shard_store_close(store);
    struct err err;
    if (vfs_remove_tree(vfs_posix(), dir, &err) != OMEN_OK) fprintf(stderr, "%s\n", err.message);
    return 0;
}
