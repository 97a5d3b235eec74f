/* Readers beside apply, merges and an indexer that seals and merges segments: every view shows every point exactly
 * once and does not change while it is held. Meant for `make tsan`; the invariant (the number of points never changes)
 * is checked in every flavour. */
#include "common/err.h"
#include "common/log.h"
#include "common/mem.h"
#include "storage/shard_index.h"
#include "tests/support/entry_support.h"

#include <check.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#define POINTS 300 /* alive at every sequence after the first */
#define IDS 400    /* they take turns */
#define DIM 8
#define ENTRIES 500 /* at least; and until there were MERGES and SEGMENTS */
#define ENTRIES_MAX 50000
#define MERGES 40
#define SEGMENTS 20 /* built */
#define ROWS_MIN 40
#define READERS 2

struct shared {
    struct shard_store *store;
    struct collection_schema schema;
    _Atomic bool done;
    _Atomic uint64_t views, merges, segments, walks, sketched;
};

static uint64_t mix(uint64_t v)
{
    v = (v ^ (v >> 30)) * 0xbf58476d1ce4e5b9u;
    v = (v ^ (v >> 27)) * 0x94d049bb133111ebu;
    return v ^ (v >> 31);
}

static void add_upsert(struct entry_builder *b, uint64_t id, uint64_t version)
{
    float v[DIM];
    for (uint32_t i = 0; i < DIM; i++) v[i] = (float)(mix(id * DIM + i + version * 7919) % 1000);
    struct point_op op = { .kind = POINT_UPSERT, .id = { 0, id, POINT_ID_U64 }, .vectors = { v } };
    ck_assert_int_eq(entry_builder_add(b, &op), OMEN_OK);
}

static void apply(struct shared *s, struct entry_builder *b, uint64_t sequence)
{
    uint8_t *bytes;
    uint32_t len;
    struct err err;
    ck_assert_int_eq(entry_builder_finish(b, sequence, 1, false, &bytes, &len), OMEN_OK);
    enum omen_err rc = shard_store_apply(s->store, sequence, bytes, len, NULL, &err);
    ck_assert_msg(rc == OMEN_OK, "apply: %s", err.message);
    mem_free(bytes);
}

static bool enough(struct shared *s)
{
    return atomic_load(&s->merges) >= MERGES && atomic_load(&s->segments) >= SEGMENTS;
}

/* Each entry writes some points anew and replaces some by others: deletes as many as it adds. */
static void *run_writer(void *arg)
{
    struct shared *s = arg;
    struct entry_builder *b = entry_builder_new(&s->schema);
    bool alive[IDS] = { false };
    entry_builder_begin_request(b, (struct op_id){ 0 });
    for (uint64_t id = 0; id < POINTS; id++, alive[id - 1] = true) add_upsert(b, id, 1);
    apply(s, b, 1);
    for (uint64_t seq = 2; seq <= ENTRIES || (!enough(s) && seq <= ENTRIES_MAX); seq++) {
        entry_builder_reset(b);
        entry_builder_begin_request(b, (struct op_id){ .client = 1, .seq = seq, .issue_ms = seq });
        for (uint64_t i = 0; i < 12; i++) {
            uint64_t a = mix(seq * 64 + i) % IDS, z = mix(seq * 64 + i + 32) % IDS;
            if (!alive[a]) continue;
            if (alive[z]) {
                add_upsert(b, a, seq);
                continue;
            }
            struct point_op gone = { .kind = POINT_DELETE, .id = { 0, a, POINT_ID_U64 } };
            ck_assert_int_eq(entry_builder_add(b, &gone), OMEN_OK);
            add_upsert(b, z, seq);
            alive[a] = false;
            alive[z] = true;
        }
        apply(s, b, seq);
    }
    entry_builder_free(b);
    atomic_store(&s->done, true);
    return NULL;
}

static void *run_checkpoints(void *arg)
{
    struct shared *s = arg;
    for (uint64_t last = 0, durable = 0; !atomic_load(&s->done); last = durable) {
        struct err err;
        enum omen_err rc = shard_store_checkpoint(s->store, &durable, &err);
        ck_assert_msg(rc == OMEN_OK, "checkpoint: %s", err.message);
        if (durable > last) atomic_fetch_add(&s->merges, 1);
    }
    return NULL;
}

/* Seals what is durable and merges what is dead or small, as fast as it can. */
static void *run_indexer(void *arg)
{
    struct shared *s = arg;
    struct index_control control = { .threads = 1 };
    struct index_policy policy;
    index_policy_default(&policy);
    policy.rows_min = ROWS_MIN;
    while (!atomic_load(&s->done)) {
        struct shard_index_stats stats;
        struct err err;
        bool worked;
        policy.pin = !policy.pin;
        enum omen_err rc = shard_index_step(s->store, &policy, &control, &worked, &err);
        ck_assert_msg(rc == OMEN_OK, "index: %s", err.message);
        (void)shard_index_settled(s->store, &policy);
        shard_index_stats(s->store, &stats);
        if (worked && stats.segments > 0) atomic_fetch_add(&s->segments, 1);
    }
    return NULL;
}

/* Takes the newest rows into sketches meanwhile. */
static void *run_tail(void *arg)
{
    struct shared *s = arg;
    struct index_control control = { .threads = 1 };
    struct index_policy policy;
    index_policy_default(&policy);
    policy.tail_rows_min = 16;
    while (!atomic_load(&s->done)) {
        struct err err;
        bool worked;
        enum omen_err rc = shard_index_tail(s->store, &policy, &control, &worked, &err);
        ck_assert_msg(rc == OMEN_OK, "tail: %s", err.message);
    }
    return NULL;
}

/* Everything by scroll; an order-free digest of id, version and vector. */
static uint64_t scroll_all(const struct store_view *view, struct arena *arena, uint32_t *count_out)
{
    const struct point_selection selection = { .vector_mask = 1 };
    struct point_key after;
    const struct point_key *from = NULL;
    uint64_t digest = 0;
    *count_out = 0;
    for (bool more = true; more;) {
        struct point_view *points = NULL;
        uint32_t count = 0;
        ck_assert_int_eq(shard_store_scroll(view, from, 97, NULL, &selection, NULL, arena, &points, &count,
                                 &more, NULL),
                OMEN_OK);
        for (uint32_t i = 0; i < count; i++) {
            struct point_key key = point_key_make(points[i].id, points[i].key);
            if (from != NULL) ck_assert_int_lt(point_key_compare(from, &key), 0);
            after = key;
            from = &after;
            ck_assert_uint_le(points[i].version, view->sequence);
            digest += mix(points[i].id.lo + mix(points[i].version) + (uint64_t)points[i].vectors[0][3]);
        }
        *count_out += count;
    }
    return digest;
}

/* The five nearest, by sketch where there is one: five, and each once. */
static void search_few(struct shared *s, const struct store_view *view, struct arena *arena)
{
    static const float query[DIM] = { 100, 900, 500, 500, 100, 900, 500, 500 };
    struct search_params params = { .query = query, .k = 5 };
    struct search_stats stats;
    struct hit *hits;
    uint32_t count;
    ck_assert_int_eq(shard_store_search(view, &params, 1, NULL, arena, &hits, &count, &stats, NULL), OMEN_OK);
    ck_assert_uint_eq(count, 5);
    for (uint32_t i = 0; i < count; i++)
        for (uint32_t j = 0; j < i; j++) ck_assert_uint_ne(hits[i].point.id.lo, hits[j].point.id.lo);
    atomic_fetch_add(&s->sketched, stats.sketches_searched);
}

static uint64_t search_all(struct shared *s, const struct store_view *view, struct arena *arena,
        uint32_t *count_out)
{
    static const float query[DIM] = { 500, 500, 500, 500, 500, 500, 500, 500 };
    struct search_params params = { .query = query, .k = IDS, .selection = { .vector_mask = 1 } };
    struct search_stats stats;
    struct hit *hits;
    uint64_t digest = 0;
    ck_assert_int_eq(shard_store_search(view, &params, 1, NULL, arena, &hits, count_out, &stats, NULL),
            OMEN_OK);
    atomic_fetch_add(&s->walks, stats.segments_walked);
    for (uint32_t i = 0; i < *count_out; i++)
        digest += mix(
                hits[i].point.id.lo + mix(hits[i].point.version) + (uint64_t)hits[i].point.vectors[0][3]);
    return digest;
}

static void *run_reader(void *arg)
{
    struct shared *s = arg;
    struct arena arena;
    arena_init(&arena, 1 << 16, 0);
    while (!atomic_load(&s->done)) {
        struct store_view view;
        uint32_t scrolled, found, again;
        uint64_t count = 0;
        store_view_acquire(s->store, &view);
        if (view.sequence > 0) {
            uint64_t a = scroll_all(&view, &arena, &scrolled), b = search_all(s, &view, &arena, &found);
            search_few(s, &view, &arena);
            ck_assert_int_eq(shard_store_count(&view, NULL, NULL, &count, NULL), OMEN_OK);
            ck_assert_uint_eq(count, POINTS);
            ck_assert_uint_eq(scrolled, POINTS);
            ck_assert_uint_eq(found, POINTS);
            ck_assert(a == b);
            ck_assert(scroll_all(&view, &arena, &again) == a);
            atomic_fetch_add(&s->views, 1);
        }
        store_view_release(&view);
        arena_reset(&arena);
    }
    arena_fini(&arena);
    return NULL;
}

/* Files are looked at while they are written anew: nothing that is right is called damaged. */
static void *run_scrubber(void *arg)
{
    struct shared *s = arg;
    while (!atomic_load(&s->done)) {
        struct err err;
        enum omen_err rc = shard_store_scrub(s->store, 20000, NULL, &err);
        ck_assert_msg(rc == OMEN_OK, "scrub: %s", err.message);
    }
    return NULL;
}

START_TEST(readers_see_every_point_exactly_once)
{
    const char *tmp = getenv("TMPDIR");
    char dir[200];
    struct err err;
    struct shared s = { .schema = test_schema_simple(DIM, "") };
    struct shard_store_options options;
    snprintf(dir, sizeof dir, "%s/omen-XXXXXX", tmp != NULL ? tmp : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    shard_store_options_default(&options);
    options.vfs = vfs_posix();
    options.dir = dir;
    options.schema = &s.schema;
    options.chunk_bytes = 64 << 10;
    options.delta_bytes_max = 1;
    enum omen_err rc = shard_store_open(&options, &s.store, &err);
    ck_assert_msg(rc == OMEN_OK, "open: %s", err.message);
    pthread_t writer, checkpointer, indexer, tail, scrubber, readers[READERS];
    pthread_create(&writer, NULL, run_writer, &s);
    pthread_create(&checkpointer, NULL, run_checkpoints, &s);
    pthread_create(&indexer, NULL, run_indexer, &s);
    pthread_create(&tail, NULL, run_tail, &s);
    pthread_create(&scrubber, NULL, run_scrubber, &s);
    for (int i = 0; i < READERS; i++) pthread_create(&readers[i], NULL, run_reader, &s);
    pthread_join(writer, NULL);
    pthread_join(checkpointer, NULL);
    pthread_join(indexer, NULL);
    pthread_join(tail, NULL);
    pthread_join(scrubber, NULL);
    struct shard_store_stats stats;
    shard_store_stats(s.store, &stats);
    ck_assert_uint_gt(stats.given_back_bytes, 0);
    for (int i = 0; i < READERS; i++) pthread_join(readers[i], NULL);
    struct store_view view;
    struct arena arena;
    uint32_t count;
    arena_init(&arena, 1 << 16, 0);
    store_view_acquire(s.store, &view);
    scroll_all(&view, &arena, &count);
    ck_assert_uint_eq(count, POINTS);
    store_view_release(&view);
    arena_fini(&arena);
    shard_store_close(s.store);
    printf("%llu views, %llu merges, %llu segments, %llu walks, %llu sketches\n", (unsigned long long)s.views,
            (unsigned long long)s.merges, (unsigned long long)s.segments, (unsigned long long)s.walks,
            (unsigned long long)s.sketched);
    ck_assert_uint_ge(s.segments, SEGMENTS);
    ck_assert_uint_gt(s.walks, 0);
    ck_assert_uint_gt(s.sketched, 0);
    ck_assert_int_eq(vfs_remove_tree(vfs_posix(), dir, NULL), OMEN_OK);
}
END_TEST

int main(void)
{
    log_configure(LOG_LEVEL_ERROR, LOG_FORMAT_TEXT, 2);
    Suite *suite = suite_create("shard_store_threads");
    TCase *tc = tcase_create("threads");
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, readers_see_every_point_exactly_once);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
