/* The mutable HNSW under change: five turnovers of the data in several orders against a fresh build, random
 * histories against a model, and readers, writers and deleters at the same time (the case for
 * ThreadSanitizer). A seed is printed; OMEN_TEST_SEED repeats it. */
#include <check.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/mem.h"
#include "storage/index/hnsw.h"
#include "storage/index/hnsw_impl.h"

#define DIM 16
#define CLUSTERS 40
#define K 10
#define EFFORT 12 /* low, so that a worse graph shows */
#define QUERIES 300
#define RECALL_TOLERANCE 0.01 /* of the mean over all queries, at equal effort */

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define POINTS 1500
#define THREAD_OPS 1500
#else
#define POINTS 5000
#define THREAD_OPS 8000
#endif

static uint64_t seed_base;

static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

static uint64_t next(uint64_t *state) { return mix((*state)++); }

static void setup(void)
{
    const char *text = getenv("OMEN_TEST_SEED");
    seed_base = text != NULL ? strtoull(text, NULL, 10) : 7;
    printf("seed %llu\n", (unsigned long long)seed_base);
}

/* Point `id` of an endless clustered set: any thread can make it again, so answers can be checked anywhere.
 * */
static void point_of(uint64_t id, float out[DIM])
{
    uint64_t cluster = mix(id ^ seed_base) % CLUSTERS;
    for (uint32_t i = 0; i < DIM; i++) {
        float centre = (float)(mix(cluster * DIM + i) >> 40) / (float)(1 << 23) - 1.0f;
        float noise = (float)(mix(id * DIM + i + (1ull << 40)) >> 40) / (float)(1 << 23) - 1.0f;
        out[i] = 2 * centre + noise;
    }
}

/* ---- one thread: an index beside what it should hold -------------------------------------------------- */

struct world {
    struct index *index;
    struct index_scratch *scratch;
    uint64_t *ids;  /* [POINTS] id of the point in a slot, UINT64_MAX = none */
    uint64_t fresh; /* next id never used */
    uint64_t rng;
};

static struct index *build_of(const uint64_t *ids)
{
    float *data = mem_must_alloc(POINTS * DIM * sizeof *data);
    for (uint32_t slot = 0; slot < POINTS; slot++) point_of(ids[slot], data + slot * DIM);
    struct index_rows rows = { data, DIM, POINTS, DIM, METRIC_L2 };
    struct index_params params = { .capacity = 2 * POINTS, .seed = seed_base, .ef_construction = 100 };
    struct index *index;
    ck_assert_int_eq(index_build(INDEX_HNSW, &rows, &params, NULL, &index, NULL), OMEN_OK);
    mem_free(data);
    return index;
}

static void world_open(struct world *w)
{
    *w = (struct world){ .rng = seed_base };
    w->ids = mem_must_alloc(POINTS * sizeof *w->ids);
    for (uint32_t slot = 0; slot < POINTS; slot++) w->ids[slot] = w->fresh++;
    w->index = build_of(w->ids);
    w->scratch = index_scratch_new(w->index);
}

static void world_close(struct world *w)
{
    index_scratch_free(w->index, w->scratch);
    index_free(w->index);
    mem_free(w->ids);
}

static void world_remove(struct world *w, uint32_t slot)
{
    ck_assert_int_eq(index_remove(w->index, slot, NULL), OMEN_OK);
    w->ids[slot] = UINT64_MAX;
}

static void world_insert(struct world *w, uint32_t slot)
{
    float v[DIM];
    w->ids[slot] = w->fresh++;
    point_of(w->ids[slot], v);
    ck_assert_int_eq(index_insert(w->index, slot, v, NULL), OMEN_OK);
}

static float distance_to(const float *query, uint64_t id)
{
    float v[DIM];
    point_of(id, v);
    return kernel_get()->l2sq_f32(query, v, DIM);
}

/* Recall at equal effort of `index`, which holds what the world holds. */
static double recall(const struct world *w, const struct index *index)
{
    struct index_scratch *scratch = index_scratch_new(index);
    uint32_t found = 0;
    for (uint32_t q = 0; q < QUERIES; q++) {
        struct index_hit best[K], hits[K];
        float query[DIM];
        uint32_t count, n = 0;
        point_of((1ull << 50) + q, query);
        for (uint32_t slot = 0; slot < POINTS; slot++) {
            if (w->ids[slot] == UINT64_MAX) continue;
            float d = distance_to(query, w->ids[slot]);
            if (n == K && d >= best[K - 1].distance) continue;
            uint32_t i = n < K ? n++ : K - 1;
            for (; i > 0 && best[i - 1].distance > d; i--) best[i] = best[i - 1];
            best[i] = (struct index_hit){ d, slot };
        }
        struct index_search s = { .query = query, .k = K, .effort = EFFORT };
        ck_assert_int_eq(index_search(index, &s, scratch, hits, &count, NULL), OMEN_OK);
        ck_assert_uint_eq(count, n);
        for (uint32_t i = 0; i < count; i++) {
            ck_assert(w->ids[hits[i].slot] != UINT64_MAX);
            ck_assert(hits[i].distance == distance_to(query, w->ids[hits[i].slot]));
            found += hits[i].distance <= best[n - 1].distance;
        }
    }
    index_scratch_free(index, scratch);
    return (double)found / (QUERIES * K);
}

static void compare_with_fresh(struct world *w, const char *what)
{
    struct index_stats stats;
    hnsw_settle(w->index);
    index_stats(w->index, true, &stats);
    ck_assert_uint_eq(stats.live_count, POINTS);
    ck_assert_msg(stats.unreachable == 0, "%s: %llu unreachable", what,
            (unsigned long long)stats.unreachable);
    struct index *fresh = build_of(w->ids);
    double ours = recall(w, w->index), theirs = recall(w, fresh);
    index_free(fresh);
    printf("%s: recall %.4f, fresh %.4f\n", what, ours, theirs);
    ck_assert_msg(ours >= theirs - RECALL_TOLERANCE, "%s: recall %f, fresh build %f", what, ours, theirs);
}

START_TEST(random_turnover_keeps_recall_and_reach)
{
    struct world w;
    world_open(&w);
    for (uint32_t i = 0; i < 5 * POINTS; i++) {
        uint32_t slot = (uint32_t)(next(&w.rng) % POINTS);
        world_remove(&w, slot);
        world_insert(&w, slot);
    }
    compare_with_fresh(&w, "random");
    world_close(&w);
}
END_TEST

START_TEST(a_sliding_window_keeps_recall_and_reach)
{
    struct world w;
    world_open(&w);
    for (uint32_t i = 0; i < 5 * POINTS; i++) {
        world_remove(&w, i % POINTS);
        world_insert(&w, i % POINTS);
    }
    compare_with_fresh(&w, "window");
    world_close(&w);
}
END_TEST

START_TEST(whole_clusters_going_and_coming_keep_recall_and_reach)
{
    struct world w;
    world_open(&w);
    for (uint32_t removed = 0; removed < 5 * POINTS;) {
        uint64_t cluster = next(&w.rng) % CLUSTERS;
        for (uint32_t slot = 0; slot < POINTS; slot++) {
            if (mix(w.ids[slot] ^ seed_base) % CLUSTERS != cluster) continue;
            world_remove(&w, slot);
            removed++;
        }
        for (uint32_t slot = 0; slot < POINTS; slot++)
            if (w.ids[slot] == UINT64_MAX) world_insert(&w, slot);
    }
    compare_with_fresh(&w, "clusters");
    world_close(&w);
}
END_TEST

START_TEST(deleting_whoever_is_the_entry_keeps_recall_and_reach)
{
    struct world w;
    world_open(&w);
    struct hnsw *h = hnsw_of(w.index);
    for (uint32_t i = 0; i < 5 * POINTS; i++) {
        uint32_t entry = (uint32_t)atomic_load(&h->entry);
        bool live = hnsw_state(h, entry) == HNSW_LIVE;
        uint32_t slot = live ? h->slots[entry] : (uint32_t)(next(&w.rng) % POINTS);
        world_remove(&w, slot);
        world_insert(&w, slot);
    }
    compare_with_fresh(&w, "entry");
    world_close(&w);
}
END_TEST

/* Growth and shrinkage at random: the answers are always those of the model's live points. */
START_TEST(random_histories_answer_only_what_lives)
{
    struct world w;
    world_open(&w);
    uint32_t live = POINTS;
    for (int phase = 0; phase < 6; phase++) {
        uint32_t odds = phase % 2 == 0 ? 80 : 20; /* of a remove, in percent */
        for (uint32_t i = 0; i < POINTS; i++) {
            uint32_t slot = (uint32_t)(next(&w.rng) % POINTS);
            bool remove = next(&w.rng) % 100 < odds;
            if (remove && w.ids[slot] != UINT64_MAX) {
                world_remove(&w, slot);
                live--;
            } else if (!remove && w.ids[slot] == UINT64_MAX) {
                world_insert(&w, slot);
                live++;
            }
        }
        ck_assert(recall(&w, w.index) > 0.9); /* checks that all answers live */
        struct index_stats stats;
        index_stats(w.index, false, &stats);
        ck_assert_uint_eq(stats.live_count, live);
    }
    world_close(&w);
}
END_TEST

/* ---- many threads ------------------------------------------------------------------------------------- */

/* Slot s belongs to writer s % WRITERS, which alone inserts and removes it. Each slot's history is the
 * sequence of versions 1, 2, ...; ids are slot + version * POINTS. */
#define WRITERS 3
#define READERS 3

struct arena_of_threads {
    struct index *index;
    _Atomic uint64_t born[POINTS]; /* versions whose insert has begun */
    _Atomic uint64_t died[POINTS]; /* versions whose remove has returned */
    atomic_bool over;
    _Atomic uint64_t searches, wrong;
};

struct thread_arg {
    struct arena_of_threads *arena;
    uint32_t number;
};

static void *write_loop(void *arg)
{
    struct thread_arg *t = arg;
    struct arena_of_threads *a = t->arena;
    uint64_t rng = seed_base + t->number * 1000003;
    for (uint32_t i = 0; i < THREAD_OPS; i++) {
        uint32_t slot = (uint32_t)(next(&rng) % (POINTS / WRITERS)) * WRITERS + t->number;
        uint64_t born = atomic_load(&a->born[slot]), died = atomic_load(&a->died[slot]);
        float v[DIM];
        if (born > died) { /* lives */
            if (index_remove(a->index, slot, NULL) != OMEN_OK) atomic_fetch_add(&a->wrong, 1);
            atomic_store(&a->died[slot], born);
        } else {
            point_of(slot + (born + 1) * POINTS, v);
            atomic_store(&a->born[slot], born + 1);
            if (index_insert(a->index, slot, v, NULL) != OMEN_OK) atomic_fetch_add(&a->wrong, 1);
        }
    }
    return NULL;
}

/* Every hit is a version of its slot that was not dead before the search and had begun before its end, at its
 * distance to the last bit. */
static bool explained(struct arena_of_threads *a, const float *query, const struct index_hit *hit,
        uint64_t died_before)
{
    uint64_t born = atomic_load(&a->born[hit->slot]);
    for (uint64_t version = died_before + 1; version <= born; version++)
        if (distance_to(query, hit->slot + version * POINTS) == hit->distance) return true;
    return false;
}

static void *read_loop(void *arg)
{
    struct thread_arg *t = arg;
    struct arena_of_threads *a = t->arena;
    struct index_scratch *scratch = index_scratch_new(a->index);
    uint64_t rng = seed_base + 77 + t->number, *died = mem_must_alloc(POINTS * sizeof *died);
    uint64_t filter[POINTS / 64 + 1];
    while (!atomic_load(&a->over)) {
        float query[DIM];
        struct index_hit hits[K];
        uint32_t count;
        point_of(next(&rng) >> 8, query);
        for (size_t i = 0; i < sizeof filter / sizeof filter[0]; i++) filter[i] = next(&rng) & next(&rng);
        for (uint32_t slot = 0; slot < POINTS; slot++) died[slot] = atomic_load(&a->died[slot]);
        bool filtered = next(&rng) % 3 == 0;
        struct index_search s = { .query = query, .k = K, .effort = 20, .filter = filtered ? filter : NULL };
        if (index_search(a->index, &s, scratch, hits, &count, NULL) != OMEN_OK)
            atomic_fetch_add(&a->wrong, 1);
        for (uint32_t i = 0; i < count; i++) {
            bool passes = !filtered || (filter[hits[i].slot / 64] >> (hits[i].slot % 64) & 1);
            if (!passes || !explained(a, query, &hits[i], died[hits[i].slot])) atomic_fetch_add(&a->wrong, 1);
        }
        atomic_fetch_add(&a->searches, 1);
    }
    mem_free(died);
    index_scratch_free(a->index, scratch);
    return NULL;
}

/* Live points that a search for their own vector does not find. */
static uint64_t count_missed(const struct arena_of_threads *a, const struct index *index)
{
    struct index_scratch *scratch = index_scratch_new(index);
    uint64_t missed = 0;
    for (uint32_t slot = 0; slot < POINTS; slot++) {
        if (atomic_load(&a->born[slot]) == atomic_load(&a->died[slot])) continue;
        float query[DIM];
        struct index_hit hit;
        uint32_t count;
        point_of(slot + atomic_load(&a->born[slot]) * POINTS, query);
        struct index_search s = { .query = query, .k = 1, .effort = 50 };
        ck_assert_int_eq(index_search(index, &s, scratch, &hit, &count, NULL), OMEN_OK);
        missed += count != 1 || hit.slot != slot || hit.distance != 0;
    }
    index_scratch_free(index, scratch);
    return missed;
}

/* After the threads: complete, reachable, and as good as an index that one thread makes of the same points.
 * */
static void check_quiet(struct arena_of_threads *a, const struct index_params *params)
{
    struct index_stats stats;
    struct index_rows none = { NULL, DIM, 0, DIM, METRIC_L2 };
    struct index *fresh;
    uint64_t live = 0;
    ck_assert_int_eq(index_build(INDEX_HNSW, &none, params, NULL, &fresh, NULL), OMEN_OK);
    for (uint32_t slot = 0; slot < POINTS; slot++) {
        float v[DIM];
        if (atomic_load(&a->born[slot]) == atomic_load(&a->died[slot])) continue;
        live++;
        point_of(slot + atomic_load(&a->born[slot]) * POINTS, v);
        ck_assert_int_eq(index_insert(fresh, slot, v, NULL), OMEN_OK);
    }
    hnsw_settle(a->index);
    index_stats(a->index, true, &stats);
    ck_assert_uint_eq(stats.live_count, live);
    ck_assert_uint_eq(stats.unreachable, 0);
    ck_assert_uint_eq(atomic_load(&hnsw_of(a->index)->dead_count), 0);
    uint64_t missed = count_missed(a, a->index), missed_fresh = count_missed(a, fresh);
    printf("of %llu live: %llu missed, fresh %llu\n", (unsigned long long)live, (unsigned long long)missed,
            (unsigned long long)missed_fresh);
    ck_assert_uint_le(missed, missed_fresh + live / 50);
    index_free(fresh);
}

static void run_threads(const struct index_params *params)
{
    struct arena_of_threads *a = mem_must_calloc(1, sizeof *a);
    struct index_rows none = { NULL, DIM, 0, DIM, METRIC_L2 };
    pthread_t threads[WRITERS + READERS];
    struct thread_arg args[WRITERS + READERS];
    ck_assert_int_eq(index_build(INDEX_HNSW, &none, params, NULL, &a->index, NULL), OMEN_OK);
    for (uint32_t i = 0; i < WRITERS + READERS; i++) {
        args[i] = (struct thread_arg){ a, i < WRITERS ? i : i - WRITERS };
        ck_assert_int_eq(pthread_create(&threads[i], NULL, i < WRITERS ? write_loop : read_loop, &args[i]),
                0);
    }
    for (uint32_t i = 0; i < WRITERS; i++) pthread_join(threads[i], NULL);
    atomic_store(&a->over, true);
    for (uint32_t i = WRITERS; i < WRITERS + READERS; i++) pthread_join(threads[i], NULL);
    ck_assert_uint_eq(atomic_load(&a->wrong), 0);
    ck_assert_uint_gt(atomic_load(&a->searches), 0);
    check_quiet(a, params);
    index_free(a->index);
    mem_free(a);
}

/* Starts empty: training, first entry, growth and repair all happen under the readers. */
START_TEST(readers_writers_and_deleters_agree_at_every_moment)
{
    struct index_params params = { .capacity = 3 * POINTS, .seed = seed_base, .ef_construction = 60 };
    run_threads(&params);
}
END_TEST

/* Short rows make every event frequent. */
START_TEST(readers_writers_and_deleters_agree_on_a_narrow_graph)
{
    struct index_params params = { .capacity = 3 * POINTS, .seed = seed_base, .M = 8, .ef_construction = 40 };
    run_threads(&params);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("hnsw under change");
    TCase *tc = tcase_create("change");
    tcase_add_checked_fixture(tc, setup, NULL);
    tcase_set_timeout(tc, 600);
    tcase_add_test(tc, random_turnover_keeps_recall_and_reach);
    tcase_add_test(tc, a_sliding_window_keeps_recall_and_reach);
    tcase_add_test(tc, whole_clusters_going_and_coming_keep_recall_and_reach);
    tcase_add_test(tc, deleting_whoever_is_the_entry_keeps_recall_and_reach);
    tcase_add_test(tc, random_histories_answer_only_what_lives);
    tcase_add_test(tc, readers_writers_and_deleters_agree_at_every_moment);
    tcase_add_test(tc, readers_writers_and_deleters_agree_on_a_narrow_graph);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}
