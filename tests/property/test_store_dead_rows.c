/* Search over a shard most of whose rows are dead: overwritten, deleted, changed by payload operations; its chunks are
 * compacted meanwhile. Vectors of small integers, so distances are exact and ties are everywhere. OMEN_SEED=n runs one
 * seed. */
#include "common/err.h"
#include "common/log.h"
#include "common/mem.h"
#include "storage/shard_store.h"
#include "tests/support/doc_text.h"
#include "tests/support/entry_support.h"

#include <check.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#define DIM 5
#define IDS 3000u
#define SEEDS 3

struct bench {
    uint64_t rng;
    char dir[200];
    struct collection_schema schema;
    struct shard_store_options options;
    struct shard_store *store;
    struct entry_builder *builder;
    struct arena arena;
    uint64_t sequence;
    uint64_t most_dead; /* rows for one that lives, at the worst search */
    bool live[IDS];
    float vectors[IDS][DIM];
};

static uint64_t random_below(struct bench *b, uint64_t below)
{
    b->rng = b->rng * 6364136223846793005ull + 1442695040888963407ull;
    return (b->rng >> 33) % below;
}

static void open_store(struct bench *b)
{
    struct err err;
    enum omen_err rc = shard_store_open(&b->options, &b->store, &err);
    ck_assert_msg(rc == OMEN_OK, "open: %s", err.message);
    ck_assert_uint_eq(shard_store_applied(b->store), b->sequence);
}

static void add(struct bench *b, enum point_op_kind kind, uint64_t id)
{
    struct point_op op = { .kind = kind, .id = { 0, id, POINT_ID_U64 } };
    if (kind == POINT_UPSERT) {
        for (int c = 0; c < DIM; c++) b->vectors[id][c] = (float)random_below(b, 7) - 3;
        op.vectors[0] = b->vectors[id];
    }
    if (kind == POINT_SET_PAYLOAD) op.payload = doc_of(&b->arena, "{'changed': true}");
    if (kind != POINT_SET_PAYLOAD) b->live[id] = kind == POINT_UPSERT;
    ck_assert_int_eq(entry_builder_add(b->builder, &op), OMEN_OK);
}

static void send(struct bench *b)
{
    struct err err;
    uint8_t *bytes;
    uint32_t len;
    ck_assert_int_eq(entry_builder_finish(b->builder, 1000, 1, false, &bytes, &len), OMEN_OK);
    enum omen_err rc = shard_store_apply(b->store, ++b->sequence, bytes, len, NULL, &err);
    ck_assert_msg(rc == OMEN_OK, "apply: %s", err.message);
    mem_free(bytes);
    entry_builder_reset(b->builder);
    arena_reset(&b->arena);
}

/* One operation per id in [first, until) that the dice let through, in entries of random size; all ids: one by one. */
static void sweep(struct bench *b, enum point_op_kind kind, uint64_t first, uint64_t until, uint64_t percent)
{
    uint64_t left = 0;
    entry_builder_reset(b->builder);
    for (uint64_t id = first; id < until; id++) {
        if (random_below(b, 100) >= percent) continue;
        if (left == 0) {
            entry_builder_begin_request(b->builder, (struct op_id){ 0 });
            left = percent == 100 || random_below(b, 3) == 0 ? 1 : 1 + random_below(b, 200);
        }
        add(b, kind, id);
        if (--left == 0) send(b);
    }
    if (left > 0) send(b);
}

struct wanted {
    float distance;
    uint64_t id;
};

static int wanted_compare(const void *a, const void *b)
{
    const struct wanted *x = a, *y = b;
    if (x->distance != y->distance) return x->distance < y->distance ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static uint32_t all_wanted(const struct bench *b, const float *query, struct wanted *out)
{
    uint32_t count = 0;
    for (uint64_t id = 0; id < IDS; id++) {
        if (!b->live[id]) continue;
        float sum = 0;
        for (int c = 0; c < DIM; c++) {
            float d = b->vectors[id][c] - query[c];
            sum += d * d;
        }
        out[count++] = (struct wanted){ sum, id };
    }
    qsort(out, count, sizeof *out, wanted_compare);
    return count;
}

static void check_search(struct bench *b, const struct wanted *wanted, uint32_t live, const float *query,
        uint32_t k)
{
    struct store_view view;
    struct arena arena;
    struct hit *hits[1];
    struct err err;
    uint32_t count = 0;
    const struct search_params search = { .query = query, .k = k };
    arena_init(&arena, 1 << 16, 0);
    store_view_acquire(b->store, &view);
    enum omen_err rc = shard_store_search(&view, &search, 1, NULL, &arena, hits, &count, NULL, &err);
    ck_assert_msg(rc == OMEN_OK, "search: %s", err.message);
    ck_assert_uint_eq(count, k < live ? k : live);
    for (uint32_t i = 0; i < count; i++) {
        ck_assert_uint_eq(hits[0][i].point.id.lo, wanted[i].id);
        ck_assert(hits[0][i].distance == wanted[i].distance);
    }
    store_view_release(&view);
    arena_fini(&arena);
}

static void check(struct bench *b)
{
    static struct wanted wanted[IDS];
    struct shard_store_stats stats;
    float query[DIM];
    for (int c = 0; c < DIM; c++) query[c] = (float)random_below(b, 7) - 3;
    uint32_t live = all_wanted(b, query, wanted);
    const uint32_t ks[] = { 1, 10, live > 1 ? live - 1 : 1, live > 0 ? live : 1, live + 1, OMEN_K_MAX };
    for (size_t i = 0; i < sizeof ks / sizeof *ks; i++) check_search(b, wanted, live, query, ks[i]);
    shard_store_stats(b->store, &stats);
    ck_assert_uint_eq(stats.points, live);
    uint64_t dead = stats.rows_dead / (live > 0 ? live : 1);
    if (dead > b->most_dead) b->most_dead = dead;
}

/* Of the files there are now: their numbers as files, which change when one is written anew. */
static uint64_t chunk_files(const struct bench *b)
{
    char dir[256], path[600];
    uint64_t sum = 0;
    snprintf(dir, sizeof dir, "%s/stream", b->dir);
    DIR *d = opendir(dir);
    ck_assert_ptr_nonnull(d);
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        struct stat st;
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        if (strstr(e->d_name, ".chunk") == NULL) continue;
        ck_assert_int_eq(stat(path, &st), 0);
        sum += (uint64_t)st.st_ino * 0x9e3779b97f4a7c15u ^ (uint64_t)st.st_size;
    }
    closedir(d);
    return sum;
}

static void checkpoints(struct bench *b, int count)
{
    for (int i = 0; i < count; i++) ck_assert_int_eq(shard_store_checkpoint(b->store, NULL, NULL), OMEN_OK);
}

static void check_over_restart(struct bench *b)
{
    check(b);
    ck_assert_int_eq(shard_store_checkpoint(b->store, NULL, NULL), OMEN_OK);
    check(b);
    shard_store_close(b->store);
    open_store(b);
    check(b);
}

START_TEST(search_is_right_among_dead_rows)
{
    const char *tmp = getenv("TMPDIR"), *seed = getenv("OMEN_SEED");
    struct shard_store_stats stats;
    struct bench *b = mem_must_calloc(1, sizeof *b);
    b->rng = seed != NULL ? strtoull(seed, NULL, 10) : (uint64_t)_i + 1;
    printf("seed %llu\n", (unsigned long long)b->rng);
    snprintf(b->dir, sizeof b->dir, "%s/omen-XXXXXX", tmp != NULL ? tmp : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(b->dir));
    b->schema = test_schema_simple(DIM, "");
    arena_init(&b->arena, 1 << 14, 0);
    b->builder = entry_builder_new(&b->schema);
    shard_store_options_default(&b->options);
    b->options.vfs = vfs_posix();
    b->options.dir = b->dir;
    b->options.schema = &b->schema;
    b->options.delta_bytes_max = 100 << 10; /* several merges */
    b->options.first_chunk_bytes = 64 << 10;
    b->options.chunk_bytes = 256 << 10;
    open_store(b);
    check(b);
    for (int round = 0; round < 7; round++) {
        sweep(b, POINT_UPSERT, 0, IDS, round == 0 ? 100 : 80);
        sweep(b, POINT_SET_PAYLOAD, 0, IDS, 15);
        if (round % 3 == 1) sweep(b, POINT_DELETE, 0, IDS, 30);
        if (round % 2 == 0)
            check_over_restart(b);
        else
            check(b);
    }
    sweep(b, POINT_DELETE, 50, IDS, 97);
    check_over_restart(b);
    ck_assert_uint_gt(b->most_dead, 9);
    checkpoints(b, 40);
    uint64_t files = chunk_files(b);
    checkpoints(b, 40);
    ck_assert_uint_eq(chunk_files(b), files); /* what was compacted is not compacted again and again */
    shard_store_stats(b->store, &stats);
    /* What is left: chunks of the least size, the one that is written to, one ahead, one that waits for a merge. */
    ck_assert_uint_le(stats.stream_bytes, stats.stream_chunks * (32 << 10) + 3 * b->options.chunk_bytes);
    ck_assert_uint_gt(stats.given_back_bytes, 0);
    check_over_restart(b);
    sweep(b, POINT_DELETE, 0, IDS, 100);
    check_over_restart(b); /* all dead */
    sweep(b, POINT_UPSERT, 7, 8, 100);
    check_over_restart(b);
    shard_store_close(b->store);
    entry_builder_free(b->builder);
    arena_fini(&b->arena);
    ck_assert_int_eq(vfs_remove_tree(vfs_posix(), b->dir, NULL), OMEN_OK);
    mem_free(b);
}
END_TEST

int main(void)
{
    log_configure(LOG_LEVEL_ERROR + 1, LOG_FORMAT_TEXT, 2);
    Suite *suite = suite_create("store_dead_rows");
    TCase *tc = tcase_create("search");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, search_is_right_among_dead_rows, 0, SEEDS);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
