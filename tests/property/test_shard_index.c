/* Searches over a shard whose rows go into sketches and segments while they are overwritten and deleted: whatever has been
 * indexed, merged, reopened or lost, a search gives points that its view sees, each once and at its own distance, as
 * many as there are to give, the nearest of them nearly always, and exactly the nearest when it asks for that. A
 * view that was taken before a segment was made still sees what that segment left out. OMEN_SEED=n runs one seed. */
#include "common/err.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "common/mem.h"
#include "storage/segment/segment.h"
#include "storage/shard_index.h"
#include "storage/shard_index_impl.h"
#include "storage/shard_store_impl.h"
#include "tests/support/doc_text.h"
#include "tests/support/entry_support.h"

#define DIM 16
#define IDS 3000u
#define SEEDS 4
#define ROUNDS 40
#define ROWS_MIN 300u
#define ENTRIES_MAX 4096
#define ENTRY_MS 10u /* of log time between two */

struct state {
    bool live[IDS];
    uint64_t expires_ms[IDS]; /* 0 = never */
    float vectors[IDS][DIM];
};

struct world {
    uint64_t rng;
    char dir[200];
    struct collection_schema schema;
    struct shard_store_options options;
    struct shard_store *store;
    struct entry_builder *builder;
    struct arena arena;
    uint64_t sequence;
    struct {
        uint8_t *bytes;
        uint32_t len;
    } entries[ENTRIES_MAX]; /* what a log would deliver again; [sequence] */
    struct state now, then;
    uint32_t rows_min;      /* of a segment */
    struct store_view held; /* of `then` */
    bool holds;
    uint64_t sketched;      /* searches of a part of the tail by its sketch */
    uint64_t batched;       /* searches of another segment of a batch */
    uint64_t pruned;        /* segments, by searches that nothing there passes */
    uint64_t found, wanted; /* of the nearest: recall over the whole run */
};

static uint64_t below(struct world *w, uint64_t n)
{
    w->rng = w->rng * 6364136223846793005ull + 1442695040888963407ull;
    return (w->rng >> 33) % n;
}

static void vector_make(struct world *w, float *out)
{
    uint64_t cluster = below(w, 20);
    for (int c = 0; c < DIM; c++)
        out[c] = (float)((cluster * 31 + (uint64_t)c * 7) % 11) * 4 + (float)below(w, 1000) / 500;
}

static void store_open(struct world *w)
{
    struct err err;
    enum omen_err rc = shard_store_open(&w->options, &w->store, &err);
    ck_assert_msg(rc == OMEN_OK, "open: %s", err.message);
    for (uint64_t s = shard_store_applied(w->store) + 1; s <= w->sequence; s++) {
        rc = shard_store_apply(w->store, s, w->entries[s].bytes, w->entries[s].len, NULL, &err);
        ck_assert_msg(rc == OMEN_OK, "apply: %s", err.message);
    }
}

static void release(struct world *w)
{
    if (w->holds) store_view_release(&w->held);
    w->holds = false;
}

static void reopen(struct world *w)
{
    struct err err;
    release(w);
    if (below(w, 2) == 0) ck_assert_int_eq(shard_store_checkpoint(w->store, NULL, &err), OMEN_OK);
    shard_store_close(w->store); /* without a checkpoint: what the log delivers again is applied again */
    store_open(w);
}

static struct doc payload_of(struct world *w, uint64_t id)
{
    char text[256];
    snprintf(text, sizeof text,
            "{'seventh': %s, 'n': %u, 'tags': ['%s', 'a'], 'title': '%s %s', 'at': {'lon': %u, 'lat': 89}}",
            id % 7 == 0 ? "true" : "false", (unsigned)id,
            id % 500 == 3         ? "rare"
                    : id % 2 == 1 ? "odd"
                                  : "even",
            id % 4 == 0 ? "Fourth" : "other", id % 3 == 0 ? "THIRD" : "rest", (unsigned)(id % 180));
    return doc_of(&w->arena, text);
}

/* `count` ids from `first` on, or, with deletes of some, any. */
static void write_ids(struct world *w, bool deletes, uint64_t first, uint32_t count)
{
    if (w->sequence + 1 >= ENTRIES_MAX) return;
    entry_builder_reset(w->builder);
    entry_builder_begin_request(w->builder, (struct op_id){ 0 });
    for (uint32_t i = 0; i < count; i++) {
        uint64_t id = deletes && count < IDS ? below(w, IDS) : (first + i) % IDS;
        static const uint8_t keys[3][2] = { { 1, 'a' }, { 1, 'b' }, { 1, 'c' } };
        struct point_op op = { .kind = deletes ? POINT_DELETE : POINT_UPSERT, .id = { 0, id, POINT_ID_U64 } };
        if (w->schema.shard_key[0] != '\0') op.key.canonical = (struct bytes){ keys[id % 3], 2 };
        if (!deletes) {
            vector_make(w, w->now.vectors[id]);
            op.vectors[0] = w->now.vectors[id];
            op.payload = payload_of(w, id);
            if (below(w, 8) == 0) op.expires_ms = 1000 + ENTRY_MS * (w->sequence + below(w, 100));
        }
        w->now.live[id] = !deletes;
        w->now.expires_ms[id] = op.expires_ms;
        ck_assert_int_eq(entry_builder_add(w->builder, &op), OMEN_OK);
    }
    struct err err;
    w->sequence++;
    ck_assert_int_eq(entry_builder_finish(w->builder, 1000 + ENTRY_MS * w->sequence, 1, false,
                             &w->entries[w->sequence].bytes, &w->entries[w->sequence].len),
            OMEN_OK);
    enum omen_err rc = shard_store_apply(w->store, w->sequence, w->entries[w->sequence].bytes,
            w->entries[w->sequence].len, NULL, &err);
    ck_assert_msg(rc == OMEN_OK, "apply: %s", err.message);
    arena_reset(&w->arena);
}

static void write_entry(struct world *w)
{
    uint32_t count = 1 + (uint32_t)below(w, 120);
    bool deletes = below(w, 4) == 0;
    write_ids(w, deletes, below(w, IDS), count);
}

/* Tenants by key or by payload, times by a number, types by a flag; groups of a segment's rows are large, or none is. */
static void rules_any(struct world *w, struct route_rules *rules)
{
    static const uint32_t own_rows[] = { 0, 100, 400, 20000 };
    rules->by_shard_key = below(w, 2) == 0;
    if (below(w, 3) == 0) rules->tenant = "tags[0]";
    if (below(w, 3) == 0) rules->time = "n";
    rules->time_bucket_ms = 1 + below(w, IDS);
    if (below(w, 3) == 0) rules->type = "seventh";
    rules->own_rows = own_rows[below(w, 4)];
}

static void index_step(struct world *w)
{
    struct index_policy policy;
    struct index_control control = { .threads = 1 };
    struct err err;
    bool worked;
    index_policy_default(&policy);
    policy.rows_min = w->rows_min;
    policy.eager = below(w, 3) == 0;
    rules_any(w, &policy.rules);
    policy.bucket_ms = below(w, 3) == 0 ? 20 * ENTRY_MS : 0;
    if (below(w, 4) == 0) policy.ripe_ms = 1000 + ENTRY_MS * (w->sequence - below(w, w->sequence + 1));
    static const enum quant_profile profiles[] = { QUANT_AGGRESSIVE, QUANT_CONSERVATIVE, QUANT_BALANCED };
    policy.quantization = profiles[below(w, 3)];
    if (policy.quantization == QUANT_AGGRESSIVE) policy.recall_target = 0.9f;
    policy.pin = below(w, 2) == 0;
    if (below(w, 3) == 0) policy.memory_left = below(w, 600000);
    policy.memory_over = below(w, 4) == 0;
    ck_assert_int_eq(shard_store_checkpoint(w->store, NULL, &err), OMEN_OK);
    enum omen_err rc = shard_index_step(w->store, &policy, &control, &worked, &err);
    ck_assert_msg(rc == OMEN_OK, "step: %s", err.message);
}

/* Rows that are in no segment go into a sketch. */
static void tail_step(struct world *w)
{
    struct index_policy policy;
    struct index_control control = { .threads = 1 };
    struct err err;
    bool worked = true;
    index_policy_default(&policy);
    policy.tail_rows_min = 200;
    for (uint64_t n = 1 + below(w, 5); worked && n > 0; n--) {
        enum omen_err rc = shard_index_tail(w->store, &policy, &control, &worked, &err);
        ck_assert_msg(rc == OMEN_OK, "tail: %s", err.message);
    }
}

static float distance(const float *a, const float *b)
{
    double sum = 0;
    for (int c = 0; c < DIM; c++) sum += (double)(a[c] - b[c]) * (a[c] - b[c]);
    return (float)sum;
}

static int float_compare(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Answered by the index in full, in part, not at all, and to nothing. */
static const char *const filters[] = { "{'must': [{'key': 'seventh', 'match': {'value': true}}]}",
    "{'must': [{'key': 'n', 'range': {'gte': 100, 'lt': 130}}]}",
    "{'must': [{'key': 'tags[0]', 'match': {'value': 'rare'}}]}",
    "{'must': [{'key': 'tags[0]', 'match': {'value': 'odd'}}]}",
    "{'must': [{'key': 'tags', 'match': {'except': ['even', 'a']}}]}",
    "{'must': [{'key': 'tags', 'match': {'value': 'none'}}]}",
    "{'must': [{'key': 'title', 'match': {'text': 'third fourth'}}]}",
    "{'must': [{'key': 'at', 'geo_radius': {'center': {'lon': 10, 'lat': 89}, 'radius': 10000}}]}" };
#define FILTERS ((int)(sizeof filters / sizeof *filters))

static bool passes(int filter, uint64_t id)
{
    switch (filter) {
    case 0: return id % 7 == 0;
    case 1: return id >= 100 && id < 130;
    case 2: return id % 500 == 3;
    case 3: return id % 500 != 3 && id % 2 == 1;
    case 4: return id % 500 == 3 || id % 2 == 1;
    case 5: return false;
    case 6: return id % 12 == 0;
    case 7: return id % 180 >= 5 && id % 180 <= 15; /* a degree is 1.94 km there */
    default: return true;
    }
}

static bool is_there(const struct state *s, uint64_t id, uint64_t now_ms)
{
    return s->live[id] && (s->expires_ms[id] == 0 || s->expires_ms[id] > now_ms);
}

static void check_hits(struct world *w, const struct state *s, uint64_t now_ms, const struct hit *hits,
        uint32_t count, const float *query, uint32_t k, int filter, bool exact)
{
    static float all[IDS];
    static bool seen[IDS];
    uint32_t live = 0;
    for (uint64_t id = 0; id < IDS; id++) {
        seen[id] = false;
        if (is_there(s, id, now_ms) && passes(filter, id)) all[live++] = distance(s->vectors[id], query);
    }
    qsort(all, live, sizeof *all, float_compare);
    ck_assert_uint_eq(count, k < live ? k : live);
    for (uint32_t i = 0; i < count; i++) {
        uint64_t id = hits[i].point.id.lo;
        ck_assert_uint_lt(id, IDS);
        ck_assert_msg(is_there(s, id, now_ms), "a point that is not there: %llu", (unsigned long long)id);
        ck_assert_msg(!seen[id], "a point twice: %llu", (unsigned long long)id);
        seen[id] = true;
        ck_assert(passes(filter, id));
        float d = distance(s->vectors[id], query);
        ck_assert_msg(fabsf(hits[i].distance - d) <= 1e-4f * (1 + d), "not its distance");
        if (exact) ck_assert(fabsf(hits[i].distance - all[i]) <= 1e-4f * (1 + all[i]));
        if (exact || count == 0) continue;
        w->found += hits[i].distance <= all[count - 1] * 1.00001f;
    }
    if (!exact) w->wanted += count;
}

/* The parts of an explained search: the tail last and once, blocks covered once, no graph for an exact search. */
static void check_why(const struct explain_part *p, bool exact, bool filtered)
{
    bool tail = p->segment == EXPLAIN_TAIL;
    ck_assert_int_eq(p->plan == EXPLAIN_PRUNED, p->why == EXPLAIN_WHY_PRUNED);
    ck_assert_int_eq(exact, p->why == EXPLAIN_WHY_EXACT);
    if (p->why == EXPLAIN_WHY_NOT_SEALED || p->why == EXPLAIN_WHY_SKETCH) ck_assert(tail && !exact);
    if (p->why == EXPLAIN_WHY_NO_FILTER) ck_assert(!tail && !filtered && p->plan == EXPLAIN_WALK);
    if (p->why == EXPLAIN_WHY_MOST_PASS) ck_assert(!tail && filtered);
    if (p->why == EXPLAIN_WHY_GAVE_UP) ck_assert_int_ne(p->given_up, EXPLAIN_PRUNED);
    if (!tail && p->rows > 0) ck_assert_str_eq(p->index.kind, "sealed");
    if (!tail && p->rows > 0) ck_assert(p->index.bits > 0 && p->index.layout != NULL);
    if (p->plan == EXPLAIN_WALK || p->plan == EXPLAIN_GATHER) ck_assert(p->recall_target > 0);
    ck_assert_uint_gt(p->ns, 0);
    ck_assert(explain_why_name(p->why)[0] != '\0');
}

/* Every look at it finds it one later. */
static uint64_t ticks(void *arg) { return ++*(uint64_t *)arg; }

/* Of the same blocks as the one before it: another segment of its batch. Returns whether it is. */
static bool check_blocks(const struct search_explain *explain, uint32_t i, uint32_t *end)
{
    const struct explain_part *p = &explain->parts[i], *before = i == 0 ? NULL : p - 1;
    bool batch = before != NULL && p->segment != EXPLAIN_TAIL && before->segment != EXPLAIN_TAIL &&
            p->first_block == before->first_block && p->end_block == before->end_block;
    if (!batch) ck_assert_uint_eq(p->first_block, *end);
    ck_assert_uint_ge(p->end_block, *end);
    *end = p->end_block;
    return batch;
}

static void check_explain(struct world *w, const struct search_explain *explain, bool exact, bool filtered)
{
    ck_assert_uint_ge(explain->count, 1);
    uint32_t end = 0;
    for (uint32_t i = 0; i < explain->count; i++) {
        const struct explain_part *p = &explain->parts[i];
        bool tail = p->segment == EXPLAIN_TAIL;
        w->batched += check_blocks(explain, i, &end);
        ck_assert_uint_eq(p->search, 0);
        check_why(p, exact, filtered);
        if (i + 1 == explain->count) ck_assert(tail);
        if (tail && (exact || p->plan != EXPLAIN_SCAN)) ck_assert_int_eq(p->plan, EXPLAIN_ROWS);
        if (exact) ck_assert(tail);
        if (!filtered) ck_assert_int_eq(p->filter, EXPLAIN_FILTER_NONE);
        ck_assert(explain_plan_name(p->plan)[0] != '\0' && explain_filter_name(p->filter)[0] != '\0');
        ck_assert((p->pruned_by != EXPLAIN_NOT_PRUNED) == (p->plan == EXPLAIN_PRUNED));
    }
}

static void check_search(struct world *w, const struct store_view *view, const struct state *s, uint32_t k,
        int filter, bool exact)
{
    struct err err;
    struct arena arena;
    struct hit *hits[1];
    uint32_t count = 0;
    float query[DIM];
    uint64_t now = 0;
    struct search_explain explain = { .now_ns = ticks, .clock_arg = &now };
    struct store_view asked = *view;
    struct search_params search = { .query = query, .k = k, .exact = exact };
    arena_init(&arena, 1 << 16, 0);
    vector_make(w, query);
    if (filter >= 0) {
        search.filter_doc = doc_of(&arena, filters[filter]);
        ck_assert_int_eq(filter_parse(search.filter_doc, &arena, &search.filter, &err), OMEN_OK);
    }
    asked.explain = &explain;
    struct search_stats stats;
    enum omen_err rc = shard_store_search(&asked, &search, 1, NULL, &arena, hits, &count, &stats, &err);
    ck_assert_msg(rc == OMEN_OK, "search: %s", err.message);
    w->sketched += stats.sketches_searched;
    w->pruned += stats.segments_pruned;
    check_explain(w, &explain, exact, filter >= 0);
    check_hits(w, s, view->now_ms, hits[0], count, query, k, filter, exact);
    arena_fini(&arena);
}

/* All that pass, in order, page by page. */
static void check_scroll(struct world *w, const struct store_view *view, const struct state *s,
        const struct filter *filter, int passing, uint64_t expected)
{
    static bool seen[IDS];
    struct arena arena;
    struct err err;
    struct point_key after;
    bool more = true;
    uint64_t count = 0;
    memset(seen, 0, sizeof seen);
    arena_init(&arena, 1 << 16, 0);
    for (bool first = true; more; first = false) {
        static const uint32_t limits[] = { 3, 100, 1000, IDS + 1 };
        struct point_view *points;
        uint32_t n, limit = limits[below(w, 4)];
        arena_reset(&arena);
        ck_assert_int_eq(shard_store_scroll(view, first ? NULL : &after, limit, filter, NULL, NULL, &arena,
                                 &points, &n, &more, &err),
                OMEN_OK);
        ck_assert_uint_le(n, limit);
        if (more) ck_assert_uint_eq(n, limit);
        for (uint32_t i = 0; i < n; i++) {
            struct point_key key = point_key_make(points[i].id, points[i].key);
            if (!first || i > 0) ck_assert_int_lt(point_key_compare(&after, &key), 0);
            ck_assert(!seen[key.id.lo] && is_there(s, key.id.lo, view->now_ms) && passes(passing, key.id.lo));
            seen[key.id.lo] = true;
            after = key;
        }
        count += n;
    }
    ck_assert_uint_eq(count, expected);
    arena_fini(&arena);
}

/* How many pass, and which. */
static void check_selected(struct world *w, const struct store_view *view, const struct state *s)
{
    struct arena arena;
    struct err err;
    arena_init(&arena, 1 << 14, 0);
    for (int f = -1; f < FILTERS; f++) {
        const struct filter *filter = NULL;
        uint64_t expected = 0, count;
        if (f >= 0)
            ck_assert_int_eq(filter_parse(doc_of(&arena, filters[f]), &arena, &filter, &err), OMEN_OK);
        for (uint64_t id = 0; id < IDS; id++) expected += is_there(s, id, view->now_ms) && passes(f, id);
        ck_assert_int_eq(shard_store_count(view, filter, NULL, &count, &err), OMEN_OK);
        ck_assert_msg(count == expected, "filter %d: %llu counted, %llu there", f, (unsigned long long)count,
                (unsigned long long)expected);
        if (f < 0 || below(w, 3) == 0) check_scroll(w, view, s, filter, f, expected);
    }
    arena_fini(&arena);
}

static void check_view(struct world *w, const struct store_view *view, const struct state *s)
{
    check_selected(w, view, s);
    static const uint32_t ks[] = { 1, 10, 100, IDS };
    for (size_t i = 0; i < sizeof ks / sizeof *ks; i++) {
        for (int filter = -1; filter < FILTERS; filter++) check_search(w, view, s, ks[i], filter, false);
        check_search(w, view, s, ks[i], -1, true);
        check_search(w, view, s, ks[i], (int)below(w, FILTERS), true);
    }
}

static void check(struct world *w)
{
    struct store_view view;
    store_view_acquire(w->store, &view);
    store_view_at(&view, view.now_ms + ENTRY_MS * below(w, 50)); /* nobody may have written for a while */
    check_view(w, &view, &w->now);
    store_view_release(&view);
    if (w->holds) check_view(w, &w->held, &w->then);
}

static void hold(struct world *w)
{
    release(w);
    store_view_acquire(w->store, &w->held);
    w->then = w->now;
    w->holds = true;
}

/* A file of a segment loses its end, or a byte: the segment goes, the answers stay. */
static void damage(struct world *w)
{
    char command[400];
    release(w);
    ck_assert_int_eq(shard_store_checkpoint(w->store, NULL, NULL), OMEN_OK);
    shard_store_close(w->store);
    static const char *const endings[] = { "rows", "graph", "slots", "payload" };
    snprintf(command, sizeof command,
            "for f in %s/segments/*.%s; do [ -f $f ] && truncate -s -%llu $f; break; done", w->dir,
            endings[below(w, 4)], (unsigned long long)(1 + below(w, 64)));
    int rc = system(command);
    (void)rc;
    store_open(w);
    index_step(w);
}

/* What is all dead needs no rows: it is covered by a segment without any, and after a restart by none. */
static void delete_all(struct world *w)
{
    write_ids(w, true, 0, IDS);
    w->rows_min = 1;
    for (int i = 0; i < 3; i++) {
        for (int n = 0; n < 200 && shard_index_tail_rows(w->store) > 0; n++) index_step(w);
        ck_assert_uint_eq(shard_index_tail_rows(w->store), 0);
        check(w);
        reopen(w);
        write_entry(w);
        check(w);
    }
}

static struct world *world_new(uint64_t seed)
{
    const char *tmp = getenv("TMPDIR");
    struct world *w = mem_must_calloc(1, sizeof *w);
    w->rng = seed;
    printf("seed %llu\n", (unsigned long long)w->rng);
    snprintf(w->dir, sizeof w->dir, "%.150s/omen-XXXXXX", tmp != NULL ? tmp : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(w->dir));
    w->schema = test_schema_simple(DIM, w->rng % 2 == 0 ? "tenant" : "");
    w->schema.fields[0].metric = METRIC_L2;
    arena_init(&w->arena, 1 << 14, 0);
    w->builder = entry_builder_new(&w->schema);
    shard_store_options_default(&w->options);
    w->options.vfs = vfs_posix();
    w->options.dir = w->dir;
    w->options.schema = &w->schema;
    w->options.delta_bytes_max = 100 << 10;
    w->rows_min = ROWS_MIN;
    store_open(w);
    return w;
}

static void world_free(struct world *w)
{
    release(w);
    shard_store_close(w->store);
    for (uint64_t s = 1; s <= w->sequence; s++) mem_free(w->entries[s].bytes);
    entry_builder_free(w->builder);
    arena_fini(&w->arena);
    ck_assert_int_eq(vfs_remove_tree(vfs_posix(), w->dir, NULL), OMEN_OK);
    mem_free(w);
}

START_TEST(answers_stay_right_while_segments_come_and_go)
{
    const char *seed = getenv("OMEN_SEED");
    struct world *w = world_new(seed != NULL ? strtoull(seed, NULL, 10) : (uint64_t)_i + 1);
    w->rows_min = _i % 2 == 0 ? 6000 : ROWS_MIN; /* a large tail, or few rows in it */
    for (int round = 0; round < ROUNDS; round++) {
        for (uint64_t n = below(w, 12); n > 0; n--) write_entry(w);
        switch (below(w, 8)) {
        case 0: reopen(w); break;
        case 1: hold(w); break;
        case 2: damage(w); break;
        default: index_step(w); break;
        }
        if (below(w, 3) > 0) tail_step(w);
        check(w);
    }
    struct shard_index_stats stats;
    w->rows_min = ROWS_MIN;
    while (w->sequence < 20) write_entry(w);
    index_step(w);
    index_step(w);
    shard_index_stats(w->store, &stats);
    ck_assert_msg(stats.segments > 0, "nothing was indexed");
    ck_assert_msg(_i % 2 == 0 || w->batched > 100, "no batch of several segments was searched");
    ck_assert_msg(_i % 2 == 0 || w->pruned > 10, "no segment was pruned");
    ck_assert_msg(_i % 2 != 0 || w->sketched > 100, "no sketch was searched");
    ck_assert_msg((double)w->found >= 0.93 * (double)w->wanted, "recall %.3f",
            (double)w->found / (double)w->wanted);
    delete_all(w);
    world_free(w);
}
END_TEST

/* How the only graph of a store came out. */
static struct explain_index index_of(struct world *w)
{
    struct err err;
    struct arena arena;
    struct hit *hits[1];
    uint32_t count;
    float query[DIM] = { 0 };
    struct search_explain explain = { 0 };
    struct search_params search = { .query = query, .k = 1 };
    struct search_stats stats;
    struct store_view view;
    store_view_acquire(w->store, &view);
    view.explain = &explain;
    arena_init(&arena, 1 << 16, 0);
    ck_assert_int_eq(shard_store_search(&view, &search, 1, NULL, &arena, hits, &count, &stats, &err),
            OMEN_OK);
    ck_assert_uint_eq(explain.count, 2); /* and the tail */
    struct explain_index index = explain.parts[0].index;
    arena_fini(&arena);
    store_view_release(&view);
    return index;
}

/* What `quantization` promises (node/README.md): where there is memory, and where it is too short for the fast layout. */
START_TEST(codes_are_as_long_as_was_asked)
{
    static const struct {
        enum quant_profile profile;
        float recall_target;
        bool short_of_memory;
        const char *layout, *quant; /* quant NULL: calibrated */
        uint32_t bits;
    } cases[] = {
        { QUANT_BALANCED, 0.90f, false, "fast", NULL, 0 },
        { QUANT_CONSERVATIVE, 0.90f, false, "fast", NULL, 0 },
        { QUANT_AGGRESSIVE, 0.90f, false, "compact", NULL, 0 },
        { QUANT_AGGRESSIVE, 0.99f, false, "fast", NULL, 0 },
        { QUANT_BALANCED, 0.90f, true, "compact", NULL, 0 },
        { QUANT_CONSERVATIVE, 0.90f, true, "compact", "scalar", 8 },
        { QUANT_CONSERVATIVE, 0.95f, true, "compact", "none", 16 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct world *w = world_new(i + 1);
        struct index_policy policy;
        struct index_control control = { .threads = 1 };
        struct err err;
        bool worked = true;
        for (uint32_t first = 0; first < 800; first += 100) write_ids(w, false, first, 100);
        index_policy_default(&policy);
        policy.rows_min = ROWS_MIN;
        policy.pin = true;
        policy.quantization = cases[i].profile;
        policy.recall_target = cases[i].recall_target;
        if (cases[i].short_of_memory)
            policy.memory_left = 285000; /* to build 800 rows, but not to keep them */
        ck_assert_int_eq(shard_store_checkpoint(w->store, NULL, &err), OMEN_OK);
        while (worked)
            ck_assert_int_eq(shard_index_step(w->store, &policy, &control, &worked, &err), OMEN_OK);
        struct explain_index index = index_of(w);
        ck_assert_str_eq(index.layout, cases[i].layout);
        if (cases[i].quant != NULL) ck_assert_str_eq(index.quant, cases[i].quant);
        if (cases[i].quant != NULL) ck_assert_uint_eq(index.bits, cases[i].bits);
        world_free(w);
    }
}
END_TEST

static void index_all(struct world *w, struct index_policy *policy)
{
    struct index_control control = { .threads = 1 };
    struct err err;
    bool worked = true;
    index_policy_default(policy);
    policy->rows_min = ROWS_MIN;
    policy->pin = true;
    ck_assert_int_eq(shard_store_checkpoint(w->store, NULL, &err), OMEN_OK);
    while (worked) ck_assert_int_eq(shard_index_step(w->store, policy, &control, &worked, &err), OMEN_OK);
}

static const struct payload_index *payload_of_only(struct world *w)
{
    pthread_mutex_lock(&w->store->index.mutex);
    ck_assert_uint_eq(w->store->index.set->count, 1);
    const struct payload_index *payload = segment_payload(w->store->index.set->items[0]);
    pthread_mutex_unlock(&w->store->index.mutex);
    ck_assert_ptr_nonnull(payload);
    return payload;
}

/* To map a graph, because memory is short, must not read the payload index a second time beside the first. */
START_TEST(a_graph_that_is_mapped_keeps_its_payload_index)
{
    struct world *w = world_new(1);
    struct index_policy policy;
    struct index_control control = { .threads = 1 };
    struct err err;
    bool worked;
    for (uint32_t first = 0; first < 800; first += 100) write_ids(w, false, first, 100);
    index_all(w, &policy);
    const struct payload_index *payload = payload_of_only(w);
    ck_assert(index_of(w).pinned);
    policy.memory_over = true;
    ck_assert_int_eq(shard_index_step(w->store, &policy, &control, &worked, &err), OMEN_OK);
    ck_assert(worked && !index_of(w).pinned);
    ck_assert_ptr_eq(payload_of_only(w), payload);
    check(w); /* the one whose graph was pinned is gone */
    world_free(w);
}
END_TEST

static bool stop_at_once(void *arg) { return ++*(uint32_t *)arg > 1; } /* let in, then told to stop */

/* A payload index that is to be built again holds nobody up who ends the process; nothing is lost by it. */
START_TEST(opening_segments_stops_when_it_is_told_to)
{
    struct world *w = world_new(1);
    struct index_policy policy;
    uint32_t asked = 0;
    struct index_control control = { .threads = 1, .stop = stop_at_once, .arg = &asked };
    struct shard_index_stats stats;
    struct err err;
    bool worked;
    char command[300];
    for (uint32_t first = 0; first < 800; first += 100) write_ids(w, false, first, 100);
    index_all(w, &policy);
    shard_store_close(w->store);
    snprintf(command, sizeof command, "rm %s/segments/*.payload", w->dir);
    ck_assert_int_eq(system(command), 0);
    store_open(w);
    ck_assert_int_eq(shard_index_step(w->store, &policy, &control, &worked, &err), OMEN_ECANCELED);
    ck_assert(!worked && asked > 1);
    check(w);
    ck_assert_int_eq(shard_index_step(w->store, &policy, &control, &worked, &err), OMEN_ECANCELED);
    control.stop = NULL;
    ck_assert_int_eq(shard_index_step(w->store, &policy, &control, &worked, &err), OMEN_OK);
    shard_index_stats(w->store, &stats);
    ck_assert(worked && stats.segments == 1);
    (void)payload_of_only(w);
    check(w);
    world_free(w);
}
END_TEST

int main(void)
{
    log_configure(LOG_LEVEL_ERROR + 1, LOG_FORMAT_TEXT, 2);
    Suite *suite = suite_create("shard_index");
    TCase *tc = tcase_create("search");
    tcase_set_timeout(tc, 240);
    tcase_add_loop_test(tc, answers_stay_right_while_segments_come_and_go, 0, SEEDS);
    tcase_add_test(tc, codes_are_as_long_as_was_asked);
    tcase_add_test(tc, a_graph_that_is_mapped_keeps_its_payload_index);
    tcase_add_test(tc, opening_segments_stops_when_it_is_told_to);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
