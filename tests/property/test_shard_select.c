/* Count and scroll under filters over a shard of three vector fields, of which points have some or none, while points are
 * written, deleted, expire and get other payloads, and their rows go into segments field by field: always what a model
 * that keeps every payload has, for the newest view and for one that was taken before. OMEN_SEED=n runs one seed. */
#include "common/err.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "common/mem.h"
#include "storage/payload/filter_eval.h"
#include "storage/shard_index.h"
#include "storage/shard_select.h"
#include "storage/shard_store.h"
#include "tests/support/doc_text.h"
#include "tests/support/entry_support.h"

#define IDS 1500u
#define SEEDS 6
#define ROUNDS 25
#define ENTRY_MS 10u

struct point_state {
    bool live;
    uint64_t expires_ms; /* 0 = never */
    uint32_t kind;       /* of payload */
};

struct world {
    uint64_t rng;
    char dir[200];
    struct collection_schema schema;
    struct shard_store_options options;
    struct shard_store *store;
    struct entry_builder *builder;
    struct arena arena;
    uint64_t sequence, found, walked; /* scrolls by either plan */
    struct point_state now[IDS], then[IDS];
    struct store_view held; /* of `then` */
    bool holds;
};

static uint64_t below(struct world *w, uint64_t n)
{
    w->rng = w->rng * 6364136223846793005ull + 1442695040888963407ull;
    return (w->rng >> 33) % n;
}

static const char *const payloads[] = {
    "{'color': 'red', 'title': 'The old Man', 'at': {'lon': 180, 'lat': 1}}",
    "{'color': 'blue', 'title': ['man of old', 'the sea'], "
    "'at': [{'lon': 1, 'lat': 1}, {'lon': 2, 'lat': 2}]}",
    "{'color': ['red', 'blue'], 'n': 7}", "{'n': 8, 'at': {'lon': -180, 'lat': 0.5}}", "{}"
};
#define KINDS 5u

static const char *const filters[] = { "{'must': [{'key': 'color', 'match': {'value': 'red'}}]}",
    "{'must_not': [{'key': 'color', 'match': {'value': 'red'}}]}",
    "{'must': [{'key': 'title', 'match': {'text': 'OLD man'}}]}",
    "{'must': [{'key': 'title', 'match': {'text': 'the man'}}]}", /* in two values of one point: not exact */
    "{'must': [{'key': 'at', 'geo_bounding_box': {'top_left': {'lon': 179, 'lat': 2}, "
    "'bottom_right': {'lon': -179, 'lat': 0}}}]}",
    "{'must': [{'is_empty': {'key': 'at'}}]}", "{'must': [{'has_id': [3, 77, 1400]}]}",
    "{'must': [{'key': 'nothing', 'match': {'value': 1}}]}" };
#define FILTERS (sizeof filters / sizeof *filters)

/* ---- a history ---- */

static void op_make(struct world *w, struct point_op *op, struct point_state *state)
{
    static const float vectors[3][33] = { { 1 }, { 1, 2 }, { 3 } };
    uint64_t form = below(w, 10);
    state->kind = (uint32_t)below(w, KINDS);
    op->kind = POINT_UPSERT;
    if (form == 0) {
        op->kind = POINT_DELETE;
        state->live = false;
        return;
    }
    op->payload = doc_of(&w->arena, payloads[state->kind]);
    if (form < 3 && state->live) { /* its vectors stay, and its time */
        op->kind = POINT_OVERWRITE_PAYLOAD;
        return;
    }
    for (int f = 0; f < 3; f++)
        if (below(w, 4) > 0) op->vectors[f] = vectors[f];
    if (below(w, 9) == 0) op->expires_ms = 1000 + ENTRY_MS * (w->sequence + below(w, 60));
    state->live = true;
    state->expires_ms = op->expires_ms;
}

static void write_entry(struct world *w)
{
    uint8_t *bytes;
    uint32_t len;
    struct err err;
    entry_builder_reset(w->builder);
    entry_builder_begin_request(w->builder, (struct op_id){ 0 });
    w->sequence++;
    uint64_t log_ms = 1000 + ENTRY_MS * w->sequence, first = below(w, IDS);
    for (uint64_t i = 0, n = 1 + below(w, 150); i < n; i++) {
        uint64_t id = (first + i) % IDS;
        struct point_op op = { .id = { 0, id, POINT_ID_U64 } };
        struct point_state *state = &w->now[id];
        if (state->expires_ms != 0 && state->expires_ms <= log_ms) state->live = false;
        op_make(w, &op, state);
        ck_assert_int_eq(entry_builder_add(w->builder, &op), OMEN_OK);
    }
    ck_assert_int_eq(entry_builder_finish(w->builder, log_ms, 1, false, &bytes, &len), OMEN_OK);
    enum omen_err rc = shard_store_apply(w->store, w->sequence, bytes, len, NULL, &err);
    ck_assert_msg(rc == OMEN_OK, "apply: %s", err.message);
    mem_free(bytes);
    arena_reset(&w->arena);
}

static void index_step(struct world *w)
{
    struct index_policy policy;
    struct index_control control = { .threads = 1 };
    struct err err;
    bool worked = true;
    index_policy_default(&policy);
    policy.rows_min = 100 + (uint32_t)below(w, 300);
    policy.eager = below(w, 2) == 0;
    policy.rules.type = below(w, 3) == 0 ? "color" : NULL; /* batches of several segments */
    policy.rules.own_rows = 100;
    ck_assert_int_eq(shard_store_checkpoint(w->store, NULL, &err), OMEN_OK);
    for (uint64_t n = 1 + below(w, 3); worked && n > 0; n--)
        ck_assert_int_eq(shard_index_step(w->store, &policy, &control, &worked, &err), OMEN_OK);
}

static void reopen(struct world *w)
{
    struct err err;
    if (w->holds) store_view_release(&w->held);
    w->holds = false;
    ck_assert_int_eq(shard_store_checkpoint(w->store, NULL, &err), OMEN_OK);
    shard_store_close(w->store);
    ck_assert_int_eq(shard_store_open(&w->options, &w->store, &err), OMEN_OK);
}

static void hold(struct world *w)
{
    if (w->holds) store_view_release(&w->held);
    store_view_acquire(w->store, &w->held);
    memcpy(w->then, w->now, sizeof w->then);
    w->holds = true;
}

/* ---- the model ---- */

static bool passes(const struct point_state *s, uint64_t id, uint64_t now_ms, const struct filter *filter,
        const struct doc *docs)
{
    if (!s->live || (s->expires_ms != 0 && s->expires_ms <= now_ms)) return false;
    return filter_match(filter, (point_id){ 0, id, POINT_ID_U64 }, docs[s->kind]);
}

static uint64_t check_scroll(struct world *w, const struct store_view *view, const struct point_state *states,
        const struct filter *filter, const struct doc *docs)
{
    struct arena arena;
    struct point_key after;
    bool more = true;
    uint64_t count = 0;
    arena_init(&arena, 1 << 16, 0);
    for (bool first = true; more; first = false) {
        static const uint32_t limits[] = { 2, 30, 400, 4000 };
        struct point_view *points;
        struct err err;
        uint32_t n, limit = limits[below(w, 4)];
        arena_reset(&arena);
        bool found = select_first_pays(view, filter, limit);
        w->found += found;
        w->walked += !found;
        ck_assert_int_eq(shard_store_scroll(view, first ? NULL : &after, limit, filter, NULL, NULL, &arena,
                                 &points, &n, &more, &err),
                OMEN_OK);
        for (uint32_t i = 0; i < n; i++) {
            struct point_key key = point_key_make(points[i].id, points[i].key);
            if (!first || i > 0) ck_assert_int_lt(point_key_compare(&after, &key), 0);
            ck_assert(passes(&states[key.id.lo], key.id.lo, view->now_ms, filter, docs));
            after = key;
        }
        ck_assert(more ? n == limit : n <= limit);
        count += n;
    }
    arena_fini(&arena);
    return count;
}

static void check_view(struct world *w, const struct store_view *view, const struct point_state *states)
{
    struct arena arena;
    struct doc docs[KINDS];
    struct err err;
    arena_init(&arena, 1 << 14, 0);
    for (uint32_t k = 0; k < KINDS; k++) docs[k] = doc_of(&arena, payloads[k]);
    for (size_t f = 0; f < FILTERS; f++) {
        const struct filter *filter;
        uint64_t expected = 0, count;
        ck_assert_int_eq(filter_parse(doc_of(&arena, filters[f]), &arena, &filter, &err), OMEN_OK);
        for (uint64_t id = 0; id < IDS; id++) expected += passes(&states[id], id, view->now_ms, filter, docs);
        for (int again = 0; again < 2; again++) { /* by what the first one left, too */
            ck_assert_int_eq(shard_store_count(view, filter, NULL, &count, &err), OMEN_OK);
            ck_assert_msg(count == expected, "%s: %llu counted, %llu there", filters[f],
                    (unsigned long long)count, (unsigned long long)expected);
        }
        ck_assert_uint_eq(check_scroll(w, view, states, filter, docs), expected);
    }
    arena_fini(&arena);
}

static void check(struct world *w)
{
    struct store_view view;
    store_view_acquire(w->store, &view);
    if (below(w, 2) == 0) store_view_at(&view, view.now_ms + ENTRY_MS * below(w, 30));
    check_view(w, &view, w->now);
    store_view_release(&view);
    if (w->holds) check_view(w, &w->held, w->then);
}

static struct world *world_new(uint64_t seed)
{
    const char *tmp = getenv("TMPDIR");
    struct world *w = mem_must_calloc(1, sizeof *w);
    struct err err;
    w->rng = seed;
    printf("seed %llu\n", (unsigned long long)seed);
    snprintf(w->dir, sizeof w->dir, "%.150s/omen-XXXXXX", tmp != NULL ? tmp : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(w->dir));
    w->schema = test_schema_three(false);
    arena_init(&w->arena, 1 << 14, 0);
    w->builder = entry_builder_new(&w->schema);
    shard_store_options_default(&w->options);
    w->options.vfs = vfs_posix();
    w->options.dir = w->dir;
    w->options.schema = &w->schema;
    w->options.chunk_bytes = 1 << 20;
    ck_assert_int_eq(shard_store_open(&w->options, &w->store, &err), OMEN_OK);
    return w;
}

START_TEST(counts_and_pages_are_those_of_the_model)
{
    const char *seed = getenv("OMEN_SEED");
    struct world *w = world_new(seed != NULL ? strtoull(seed, NULL, 10) : (uint64_t)_i + 1);
    for (int round = 0; round < ROUNDS; round++) {
        for (uint64_t n = below(w, 8); n > 0; n--) write_entry(w);
        switch (below(w, 6)) {
        case 0: reopen(w); break;
        case 1: hold(w); break;
        default: index_step(w); break;
        }
        check(w);
    }
    ck_assert_uint_gt(w->found, 20);
    ck_assert_uint_gt(w->walked, 20);
    if (w->holds) store_view_release(&w->held);
    shard_store_close(w->store);
    entry_builder_free(w->builder);
    arena_fini(&w->arena);
    ck_assert_int_eq(vfs_remove_tree(vfs_posix(), w->dir, NULL), OMEN_OK);
    mem_free(w);
}
END_TEST

int main(void)
{
    log_configure(LOG_LEVEL_WARN, LOG_FORMAT_TEXT, 2);
    Suite *suite = suite_create("shard_select");
    TCase *tc = tcase_create("shard_select");
    tcase_set_timeout(tc, 240);
    tcase_add_loop_test(tc, counts_and_pages_are_those_of_the_model, 0, SEEDS);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
