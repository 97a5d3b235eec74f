/* Rows that are routed to segments by their tenant: a tenant with many has a segment of its own and shares one again when it
 * has lost most of them; a search for one looks at no other's segment; answers are those of a model throughout, also when
 * the disk fails at any of the changes that a step makes and the store is opened again. */
#include "common/err.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/crc32c.h"
#include "common/log.h"
#include "common/mem.h"
#include "storage/shard_index.h"
#include "tests/support/doc_text.h"
#include "tests/support/entry_support.h"
#include "tests/support/vfs_hook.h"

#define DIM 8
#define IDS 4000u
#define OWN_ROWS 300u
#define K 10u
#define BATCH 200u
#define HOUR_MS 3600000u

enum { BIG, MID, SMALL }; /* tenants: half of the points, a tenth, and 8 each */

struct world {
    char dir[200];
    struct collection_schema schema;
    struct shard_store *store;
    struct entry_builder *builder;
    struct arena arena;
    struct vfs_hook disk;
    uint64_t changes_left; /* of the disk, before it fails for good */
    bool keeps;            /* it removes nothing */
    uint64_t sequence, rng;
    struct route_rules rules;
    const char *const *payloads; /* [payload_count] in turn, instead of the tenants' */
    uint32_t payload_count;
    struct store_view held; /* of `then` */
    bool holds;
    bool live[IDS], then[IDS];
    uint32_t tenants[IDS];
    float vectors[IDS][DIM];
};

static uint64_t below(struct world *w, uint64_t n)
{
    w->rng = w->rng * 6364136223846793005ull + 1442695040888963407ull;
    return (w->rng >> 33) % n;
}

static enum omen_err disk_change(void *arg, enum vfs_hook_op op, struct err *err)
{
    struct world *w = arg;
    if (w->keeps && op == VFS_HOOK_UNLINK) return err_set(err, OMEN_EIO, "", "the disk keeps what it has");
    if (w->changes_left == 0) return err_set(err, OMEN_EIO, "", "the disk is gone");
    w->changes_left--;
    return OMEN_OK;
}

static void store_open(struct world *w)
{
    struct shard_store_options options;
    struct err err;
    shard_store_options_default(&options);
    options.vfs = &w->disk.base;
    options.dir = w->dir;
    options.schema = &w->schema;
    w->changes_left = UINT64_MAX;
    enum omen_err rc = shard_store_open(&options, &w->store, &err);
    ck_assert_msg(rc == OMEN_OK, "open: %s", err.message);
}

static void world_init(struct world *w)
{
    const char *tmp = getenv("TMPDIR");
    w->rng = 5;
    snprintf(w->dir, sizeof w->dir, "%.150s/omen-XXXXXX", tmp != NULL ? tmp : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(w->dir));
    w->schema = test_schema_simple(DIM, "");
    w->schema.fields[0].metric = METRIC_L2;
    w->rules = (struct route_rules){ .tenant = "tenant", .own_rows = OWN_ROWS };
    w->builder = entry_builder_new(&w->schema);
    arena_init(&w->arena, 1 << 14, 0);
    vfs_hook_init(&w->disk, vfs_posix(), disk_change, w);
    store_open(w);
}

static void world_fini(struct world *w)
{
    shard_store_close(w->store);
    entry_builder_free(w->builder);
    arena_fini(&w->arena);
    ck_assert_int_eq(vfs_remove_tree(vfs_posix(), w->dir, NULL), OMEN_OK);
    mem_free(w);
}

static void entry_end(struct world *w)
{
    struct err err;
    uint8_t *bytes;
    uint32_t len;
    w->sequence++;
    ck_assert_int_eq(entry_builder_finish(w->builder, 1000 + w->sequence, 1, false, &bytes, &len), OMEN_OK);
    enum omen_err rc = shard_store_apply(w->store, w->sequence, bytes, len, NULL, &err);
    ck_assert_msg(rc == OMEN_OK, "apply: %s", err.message);
    mem_free(bytes);
    arena_reset(&w->arena);
}

/* Points [from, end), those of the tenant alone when it is not UINT32_MAX. */
static void write_ids(struct world *w, bool deletes, uint32_t from, uint32_t end, uint32_t tenant)
{
    uint32_t count = 0;
    for (uint32_t id = from; id < end; id++) {
        if (tenant != UINT32_MAX && w->tenants[id] != tenant) continue;
        char text[120];
        struct point_op op = { .kind = deletes ? POINT_DELETE : POINT_UPSERT, .id = { 0, id, POINT_ID_U64 } };
        if (count == 0) {
            entry_builder_reset(w->builder);
            entry_builder_begin_request(w->builder, (struct op_id){ 0 });
        }
        if (!deletes) {
            for (int c = 0; c < DIM; c++) w->vectors[id][c] = (float)below(w, 1000) / 100;
            if (w->payloads != NULL)
                snprintf(text, sizeof text, "%s", w->payloads[id % w->payload_count]);
            else
                snprintf(text, sizeof text, "{'tenant': 't%u', 'at': '2026-11-%02uT00:00:00Z', 'n': %u}",
                        w->tenants[id], 1 + id % 3, id);
            op.vectors[0] = w->vectors[id];
            op.payload = doc_of(&w->arena, text);
        }
        w->live[id] = !deletes;
        ck_assert_int_eq(entry_builder_add(w->builder, &op), OMEN_OK);
        if (++count < BATCH) continue;
        entry_end(w);
        count = 0;
    }
    if (count > 0) entry_end(w);
}

static void tenants_name(struct world *w)
{
    for (uint32_t id = 0; id < IDS; id++)
        w->tenants[id] = id % 4 < 2 ? BIG : id % 10 == 3 || id % 10 == 7 ? MID : SMALL + id / 20;
}

static uint32_t count_of(const struct world *w, uint32_t tenant)
{
    uint32_t count = 0;
    for (uint32_t id = 0; id < IDS; id++) count += w->live[id] && w->tenants[id] == tenant;
    return count;
}

/* Until nothing is left to do, the looks at what has died included. */
static enum omen_err index_all(struct world *w)
{
    struct index_policy policy;
    struct index_control control = { .threads = 1 };
    struct err err;
    index_policy_default(&policy);
    policy.rows_min = 100;
    policy.eager = true;
    policy.rules = w->rules;
    if (shard_store_checkpoint(w->store, NULL, &err) != OMEN_OK) return OMEN_EIO;
    for (uint32_t idle = 0; idle < 70;) {
        bool worked;
        enum omen_err rc = shard_index_step(w->store, &policy, &control, &worked, &err);
        if (rc != OMEN_OK) return rc;
        idle = worked ? 0 : idle + 1;
    }
    return OMEN_OK;
}

static float distance(const float *a, const float *b)
{
    float sum = 0;
    for (int c = 0; c < DIM; c++) sum += (a[c] - b[c]) * (a[c] - b[c]);
    return sum;
}

static int float_compare(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* What a search for the nearest of a tenant (or of all) looked at. */
struct looked {
    uint32_t segments, pruned;
    uint64_t rows, real; /* of the segment looked at last */
};

static struct looked check_tenant(struct world *w, uint32_t tenant)
{
    static float all[IDS];
    struct store_view view;
    struct search_explain explain = { .count = 0 };
    struct arena arena;
    struct hit *hits;
    struct err err;
    struct looked looked = { 0, 0, 0, 0 };
    uint32_t count, live = 0;
    char text[100];
    float query[DIM];
    struct search_params search = { .query = query, .k = K };
    arena_init(&arena, 1 << 16, 0);
    for (int c = 0; c < DIM; c++) query[c] = (float)below(w, 1000) / 100;
    for (uint32_t id = 0; id < IDS; id++)
        if (w->live[id] && (tenant == UINT32_MAX || w->tenants[id] == tenant))
            all[live++] = distance(query, w->vectors[id]);
    qsort(all, live, sizeof *all, float_compare);
    snprintf(text, sizeof text, "{'must': [{'key': 'tenant', 'match': {'value': 't%u'}}]}", tenant);
    if (tenant != UINT32_MAX)
        ck_assert_int_eq(filter_parse(doc_of(&arena, text), &arena, &search.filter, &err), OMEN_OK);
    if (w->holds)
        view = w->held;
    else
        store_view_acquire(w->store, &view);
    view.explain = &explain;
    enum omen_err rc = shard_store_search(&view, &search, 1, NULL, &arena, &hits, &count, NULL, &err);
    ck_assert_msg(rc == OMEN_OK, "search: %s", err.message);
    ck_assert_uint_eq(count, live < K ? live : K);
    for (uint32_t i = 0; i < count; i++) {
        uint64_t id = hits[i].point.id.lo;
        ck_assert(id < IDS && w->live[id] && (tenant == UINT32_MAX || w->tenants[id] == tenant));
        ck_assert_msg(fabsf(hits[i].distance - distance(query, w->vectors[id])) < 1e-3f, "not its distance");
        if (live <= 1000 || w->holds)
            ck_assert_msg(hits[i].distance <= all[i] + 1e-3f, "tenant %u: a nearer one is missing", tenant);
        for (uint32_t j = 0; j < i; j++) ck_assert_uint_ne(hits[j].point.id.lo, id);
    }
    for (uint32_t i = 0; i < explain.count; i++) {
        const struct explain_part *p = &explain.parts[i];
        if (p->segment == EXPLAIN_TAIL) continue;
        looked.segments++;
        looked.pruned += p->plan == EXPLAIN_PRUNED;
        if (p->plan == EXPLAIN_PRUNED) continue;
        looked.rows = p->rows;
        looked.real = p->real;
    }
    if (!w->holds) store_view_release(&view);
    arena_fini(&arena);
    return looked;
}

static void check_all(struct world *w)
{
    check_tenant(w, UINT32_MAX);
    for (uint32_t t = BIG; t < SMALL + 3; t++) check_tenant(w, t);
    check_tenant(w, SMALL + IDS / 20 - 1);
    check_tenant(w, 9999); /* of nobody */
}

/* The same through a view of before. */
static void check_held(struct world *w)
{
    static bool now[IDS];
    memcpy(now, w->live, sizeof now);
    memcpy(w->live, w->then, sizeof now);
    w->holds = true;
    check_all(w);
    w->holds = false;
    memcpy(w->live, now, sizeof now);
}

static struct shard_index_stats stats_of(const struct world *w)
{
    struct shard_index_stats stats;
    shard_index_stats(w->store, &stats);
    return stats;
}

/* Closed and opened; nothing is built anew. */
static void reopen(struct world *w)
{
    struct shard_index_stats before = stats_of(w);
    shard_store_close(w->store);
    store_open(w);
    ck_assert_int_eq(index_all(w), OMEN_OK);
    struct shard_index_stats after = stats_of(w);
    ck_assert_uint_eq(after.built_rows, 0);
    ck_assert_uint_eq(after.segments, before.segments);
    ck_assert_uint_eq(after.own_segments, before.own_segments);
    ck_assert_uint_eq(after.rows, before.rows);
    check_all(w);
}

START_TEST(a_large_tenant_has_a_segment_of_its_own_and_shares_one_again)
{
    struct world *w = mem_must_calloc(1, sizeof *w);
    world_init(w);
    tenants_name(w);
    write_ids(w, false, 0, IDS, UINT32_MAX);
    ck_assert_int_eq(index_all(w), OMEN_OK);
    check_all(w);
    struct shard_index_stats stats = stats_of(w);
    ck_assert_uint_eq(stats.segments, 3);
    ck_assert_uint_eq(stats.own_segments, 2);
    /* One segment is looked at, and all of it where it is the tenant's own. */
    struct looked looked = check_tenant(w, BIG);
    ck_assert_uint_eq(looked.pruned, 2);
    ck_assert_uint_eq(looked.rows, count_of(w, BIG));
    ck_assert_uint_eq(looked.real, looked.rows);
    looked = check_tenant(w, SMALL + 1);
    ck_assert_uint_eq(looked.pruned, 2);
    ck_assert_uint_eq(looked.real, count_of(w, SMALL + 1));
    reopen(w);
    /* Fewer, and not yet few: its segment alone is built anew. */
    uint64_t built = stats_of(w).built_rows;
    store_view_acquire(w->store, &w->held);
    memcpy(w->then, w->live, sizeof w->then);
    write_ids(w, true, 0, 1200, BIG);
    ck_assert_int_eq(index_all(w), OMEN_OK);
    ck_assert_uint_eq(stats_of(w).built_rows - built, count_of(w, BIG));
    ck_assert_uint_eq(stats_of(w).own_segments, 2);
    check_all(w);
    check_held(w);
    /* Few: it goes back to the others. */
    write_ids(w, true, 1200, 3800, BIG);
    ck_assert_uint_lt(count_of(w, BIG), OWN_ROWS / 2);
    ck_assert_int_eq(index_all(w), OMEN_OK);
    stats = stats_of(w);
    ck_assert_uint_eq(stats.segments, 2);
    ck_assert_uint_eq(stats.own_segments, 1);
    looked = check_tenant(w, BIG);
    ck_assert_uint_eq(looked.real, count_of(w, BIG));
    ck_assert_uint_gt(looked.rows, looked.real);
    check_held(w);
    store_view_release(&w->held);
    reopen(w);
    /* All of a tenant: what it took is given back. */
    write_ids(w, true, 0, IDS, MID);
    ck_assert_int_eq(index_all(w), OMEN_OK);
    ck_assert_uint_eq(stats_of(w).rows, IDS / 2 - IDS / 10 + count_of(w, BIG));
    check_all(w);
    reopen(w);
    /* And grown again: the merge cuts anew. */
    write_ids(w, false, 0, IDS, UINT32_MAX);
    ck_assert_int_eq(index_all(w), OMEN_OK);
    ck_assert_uint_eq(stats_of(w).own_segments, 2);
    check_all(w);
    reopen(w);
    world_fini(w);
}
END_TEST

START_TEST(rules_group_on_inside_a_group_and_count_for_what_is_built_from_then_on)
{
    struct world *w = mem_must_calloc(1, sizeof *w);
    world_init(w);
    tenants_name(w);
    w->rules.time = "at";
    w->rules.time_bucket_ms = 24 * HOUR_MS;
    write_ids(w, false, 0, IDS, UINT32_MAX);
    ck_assert_int_eq(index_all(w), OMEN_OK);
    check_all(w);
    /* BIG has more than 300 rows on each of three days and nothing besides; MID has fewer on each, together more. */
    ck_assert_uint_eq(stats_of(w).own_segments, 4);
    ck_assert_uint_eq(stats_of(w).segments, 5);
    ck_assert_uint_eq(check_tenant(w, MID).pruned, 4);
    ck_assert_uint_eq(check_tenant(w, BIG).pruned, 2);
    reopen(w);
    /* Other rules change nothing that is there. */
    w->rules = (struct route_rules){ .own_rows = OWN_ROWS };
    uint64_t built = stats_of(w).built_rows;
    ck_assert_int_eq(index_all(w), OMEN_OK);
    ck_assert_uint_eq(stats_of(w).built_rows, built);
    ck_assert_uint_eq(stats_of(w).own_segments, 4);
    write_ids(w, false, 0, IDS, UINT32_MAX);
    ck_assert_int_eq(index_all(w), OMEN_OK);
    ck_assert_uint_eq(stats_of(w).segments, 1);
    ck_assert_uint_eq(stats_of(w).own_segments, 0);
    check_all(w);
    /* By time alone, without a tenant. */
    w->rules = (struct route_rules){ .time = "at", .time_bucket_ms = 24 * HOUR_MS, .own_rows = OWN_ROWS };
    write_ids(w, false, 0, IDS, UINT32_MAX);
    ck_assert_int_eq(index_all(w), OMEN_OK);
    ck_assert_uint_eq(stats_of(w).own_segments, 3);
    ck_assert_uint_eq(stats_of(w).segments, 3);
    check_all(w);
    world_fini(w);
}
END_TEST

/* How many segments of their own there are for rows of these payloads, 120 of each. */
static void check_keys(const char *const *payloads, uint32_t count, struct route_rules rules, uint32_t own,
        uint32_t segments)
{
    struct world *w = mem_must_calloc(1, sizeof *w);
    world_init(w);
    w->payloads = payloads;
    w->payload_count = count;
    w->rules = rules;
    w->rules.own_rows = 100;
    write_ids(w, false, 0, 120 * count, UINT32_MAX);
    ck_assert_int_eq(index_all(w), OMEN_OK);
    ck_assert_uint_eq(stats_of(w).own_segments, own);
    ck_assert_uint_eq(stats_of(w).segments, segments);
    check_tenant(w, UINT32_MAX);
    world_fini(w);
}

START_TEST(what_is_no_key_goes_by_the_next_rule_and_then_to_the_rest)
{
    static const char *const names[] = { "{'a': {'b': 'x'}}", "{'a': {'b': 5}}", "{'a': {'b': true}}",
        "{'a': {'b': '5'}}", "{'a': {'b': null}}", "{'a': {'b': 5.0}}", "{'a': {'b': ['x']}}", "{'a': 'x'}",
        "{}" };
    check_keys(names, 9, (struct route_rules){ .tenant = "a.b" }, 4, 5);
    check_keys(names, 9, (struct route_rules){ .type = "a.b" }, 4, 5);
    check_keys(names, 9, (struct route_rules){ .tenant = "a.b", .type = "a" }, 5, 6);
    /* Buckets before 1970 as well; integers are milliseconds. */
    static const char *const times[] = { "{'at': '1969-12-31T23:59:59Z'}", "{'at': -1}",
        "{'at': '1970-01-01T00:00:00Z'}", "{'at': 0}", "{'at': 86399999}", "{'at': 86400000}",
        "{'at': '1969-12-31T00:00:00+02:00'}", "{'at': 'yesterday'}", "{'at': 1.5}" };
    check_keys(times, 9, (struct route_rules){ .time = "at", .time_bucket_ms = 24 * HOUR_MS }, 4, 5);
    check_keys(times, 9, (struct route_rules){ .time = "at", .time_bucket_ms = 0 }, 0, 1);
    check_keys(times, 9, (struct route_rules){ .by_shard_key = true }, 0, 1); /* the schema has none */
}
END_TEST

/* One tenant's deletes, then steps on a disk that takes ever more changes before it fails. */
START_TEST(a_disk_that_fails_at_any_change_loses_no_row)
{
    struct world *w = mem_must_calloc(1, sizeof *w);
    world_init(w);
    tenants_name(w);
    const char *seed = getenv("OMEN_SEED");
    w->rng = seed != NULL ? strtoull(seed, NULL, 10) : 1 + (uint64_t)_i;
    printf("seed %llu\n", (unsigned long long)w->rng);
    write_ids(w, false, 0, 1600, UINT32_MAX);
    w->rules.own_rows = 120;
    for (int part = 0; part < 3; part++) {
        if (part == 1) write_ids(w, true, 0, 1300, BIG); /* its segment anew, or back to the others */
        if (part == 2) write_ids(w, false, 1600, 3600, UINT32_MAX); /* a merge of it all */
        ck_assert_int_eq(shard_store_checkpoint(w->store, NULL, NULL), OMEN_OK);
        enum omen_err rc = OMEN_EIO;
        for (uint64_t changes = 0; rc != OMEN_OK; changes += 1 + below(w, 30)) {
            shard_store_close(w->store);
            store_open(w);
            check_all(w); /* without segments, then with those that are opened */
            w->changes_left = changes;
            w->keeps = below(w, 2) == 0;
            rc = index_all(w);
            w->changes_left = UINT64_MAX;
            w->keeps = false;
            check_all(w);
        }
        ck_assert_uint_gt(stats_of(w).own_segments, 0);
        reopen(w);
        w->keeps = true; /* what was replaced is still there when the store is opened */
        write_ids(w, true, 10, 40, UINT32_MAX);
        shard_index_renew(w->store);
        ck_assert_int_eq(index_all(w), OMEN_OK);
        w->keeps = false;
        shard_store_close(w->store);
        store_open(w);
        ck_assert_int_eq(index_all(w), OMEN_OK);
        check_all(w);
        reopen(w);
    }
    world_fini(w);
}
END_TEST

/* The slots of a whole batch as the first version wrote them. */
static void slots_make_old(const struct world *w)
{
    char path[300];
    static uint8_t bytes[128 + 4 + 8 * IDS], old[64 + 8 * IDS];
    snprintf(path, sizeof path, "%s/segments/0000000000000001.slots", w->dir);
    FILE *file = fopen(path, "rb");
    ck_assert_ptr_nonnull(file);
    size_t len = fread(bytes, 1, sizeof bytes, file), slots = len - 132;
    fclose(file);
    ck_assert(len > 132 && bytes[4] == 2);
    memcpy(old, bytes, 64);
    memcpy(old + 64, bytes + 132, slots);
    store_u16(old + 4, 1);
    store_u32(old + 44, crc32c(0, old + 64, slots));
    store_u32(old + 60, crc32c(0, old, 60));
    file = fopen(path, "wb");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite(old, 1, 64 + slots, file), 64 + slots);
    fclose(file);
}

START_TEST(segments_of_the_format_before_are_read)
{
    struct world *w = mem_must_calloc(1, sizeof *w);
    world_init(w);
    tenants_name(w);
    w->rules = (struct route_rules){ .own_rows = OWN_ROWS };
    write_ids(w, false, 0, 1000, UINT32_MAX);
    ck_assert_int_eq(index_all(w), OMEN_OK);
    ck_assert_uint_eq(stats_of(w).segments, 1);
    slots_make_old(w);
    reopen(w);
    world_fini(w);
}
END_TEST

/* What a slots file says of its batch, all checksums right. */
static const struct lie {
    const char *what;
    size_t at, bytes; /* in the file */
    uint64_t value;
} LIES[] = {
    { "of batch 0", 64, 8, 0 },
    { "of a batch that began after it", 64, 8, 99 },
    { "of another batch", 64, 8, 2 },
    { "of a batch without parts", 72, 4, 0 },
    { "of a batch of too many parts", 72, 4, 1u << 20 },
    { "of a batch of fewer parts", 72, 4, 2 },
    { "holds none", 76, 4, 0 },
    { "holds more than there are", 76, 4, 7 },
    { "holds as many as a file could", 76, 4, UINT32_MAX },
    { "holds one that is not there", 128, 4, 3 },
    { "holds another's", 128, 4, 0 },
    { "has no rows", 20, 4, 0 },
    { "has other blocks", 16, 4, 1 },
};

static void slots_lie(const struct world *w, const struct lie *lie)
{
    static uint8_t bytes[128 + 4 + 8 * IDS];
    char path[300];
    snprintf(path, sizeof path, "%s/segments/0000000000000003.slots", w->dir);
    FILE *file = fopen(path, "r+b");
    ck_assert_msg(file != NULL, "%s", path);
    size_t len = fread(bytes, 1, sizeof bytes, file);
    ck_assert_uint_gt(len, 132);
    if (lie->bytes == 8)
        store_u64(bytes + lie->at, lie->value);
    else
        store_u32(bytes + lie->at, (uint32_t)lie->value);
    store_u32(bytes + 44, crc32c(0, bytes + 128, len - 128));
    store_u32(bytes + 60, crc32c(0, bytes, 60));
    store_u32(bytes + 124, crc32c(0, bytes + 64, 60));
    rewind(file);
    ck_assert_uint_eq(fwrite(bytes, 1, len, file), len);
    fclose(file);
}

START_TEST(a_segment_that_lies_about_its_batch_costs_a_build_and_no_row)
{
    for (size_t i = 0; i < sizeof LIES / sizeof LIES[0]; i++) {
        struct world *w = mem_must_calloc(1, sizeof *w);
        world_init(w);
        tenants_name(w);
        w->rules.own_rows = 100;
        write_ids(w, false, 0, 1200, UINT32_MAX);
        ck_assert_int_eq(index_all(w), OMEN_OK);
        ck_assert_uint_eq(stats_of(w).segments, 3);
        shard_store_close(w->store);
        slots_lie(w, &LIES[i]);
        store_open(w);
        check_all(w);
        ck_assert_int_eq(index_all(w), OMEN_OK);
        ck_assert_msg(stats_of(w).built_rows == 1200, "%s: believed", LIES[i].what);
        check_all(w);
        reopen(w);
        world_fini(w);
    }
}
END_TEST

int main(void)
{
    log_configure(LOG_LEVEL_ERROR + 1, LOG_FORMAT_TEXT, 2);
    Suite *suite = suite_create("shard_tenants");
    TCase *tc = tcase_create("routing");
    tcase_set_timeout(tc, 240);
    tcase_add_test(tc, a_large_tenant_has_a_segment_of_its_own_and_shares_one_again);
    tcase_add_test(tc, rules_group_on_inside_a_group_and_count_for_what_is_built_from_then_on);
    tcase_add_test(tc, what_is_no_key_goes_by_the_next_rule_and_then_to_the_rest);
    tcase_add_test(tc, segments_of_the_format_before_are_read);
    tcase_add_test(tc, a_segment_that_lies_about_its_batch_costs_a_build_and_no_row);
    tcase_add_loop_test(tc, a_disk_that_fails_at_any_change_loses_no_row, 0, 2);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
