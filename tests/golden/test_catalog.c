/* CATALOG files of the versions that were released, under tests/golden/: the newest is written byte for byte, every one
 * is read to the state that it was made from. OMEN_GOLDEN_WRITE=1 writes the newest anew, for a new version under a new
 * name. */
#include "common/err.h"
#include "common/log.h"
#include "common/mem.h"
#include "node/cluster/cluster.h"
#include "tests/support/doc_text.h"
#include "tests/support/entry_support.h"
#include "tests/support/golden.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>

#define INCARNATION 42
#define NEWEST "tests/golden/catalog-v6.hex"
#define PLAIN "tests/golden/catalog-v5.hex" /* of a cluster of version 1: written as ever */

static char dir[200];
static struct catalog *catalog;
static struct replica_fsm fsm;
static uint64_t sequence;
static struct arena arena;

static void open_catalog(void)
{
    struct err err;
    enum omen_err rc = catalog_open(vfs_posix(), dir, INCARNATION, &catalog, &err);
    ck_assert_msg(rc == OMEN_OK, "%s", err.message);
    catalog_fsm(catalog, &fsm);
    sequence = fsm.applied(fsm.self);
}

static void setup(void)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%s/omen-XXXXXX", tmp != NULL ? tmp : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    arena_init(&arena, 4096, 0);
    catalog = NULL;
}

static void teardown(void)
{
    if (catalog != NULL) catalog_close(catalog);
    arena_fini(&arena);
    ck_assert_int_eq(vfs_remove_tree(vfs_posix(), dir, NULL), OMEN_OK);
}

static void apply(uint8_t *entry, uint32_t len)
{
    struct catalog_outcome outcome;
    struct err err;
    ck_assert_int_eq(fsm.apply(fsm.self, ++sequence, entry, len, &outcome, &err), OMEN_OK);
    ck_assert_msg(outcome.code == OMEN_OK, "entry %llu: %s", (unsigned long long)sequence,
            outcome.err.message);
    mem_free(entry);
}

static void apply_catalog(const struct catalog_change *change)
{
    static const uint32_t nodes[] = { 1 };
    uint8_t *entry;
    uint32_t len;
    ck_assert_int_eq(catalog_entry_encode(change, 1000 + sequence, nodes, 1, 1, &entry, &len), OMEN_OK);
    apply(entry, len);
}

static void apply_cluster(const struct cluster_change *change)
{
    uint8_t *entry;
    uint32_t len;
    ck_assert_int_eq(cluster_entry_encode(change, 1000 + sequence, &entry, &len), OMEN_OK);
    apply(entry, len);
}

/* What both versions know. */
static void state_make(void)
{
    struct cluster_change c = { .kind = CLUSTER_CHANGE_INIT,
        .cluster_id = 0x0123456789abcdef,
        .incarnation = INCARNATION,
        .birth = 77,
        .name = "golden",
        .address = "tcp://10.0.0.1:7710",
        .raft_address = "10.0.0.1:7711",
        .labels = "zone=a" };
    apply_cluster(&c);
    c.kind = CLUSTER_CHANGE_NODE_ADD;
    c.birth = 78;
    memcpy(c.address, "tcp://10.0.0.2:7710", 20);
    memcpy(c.raft_address, "10.0.0.2:7711", 14);
    apply_cluster(&c);
    struct catalog_change create = { .kind = CATALOG_CREATE,
        .name = "docs",
        .schema = test_schema_three(true),
        .shard_count = 2,
        .replication = 2,
        .recall_target = 0.9f };
    apply_catalog(&create);
    memcpy(create.name, "more", 5);
    create.shard_count = create.replication = 1;
    apply_catalog(&create);
    struct catalog_change alias = { .kind = CATALOG_ALIAS_SET, .name = "latest", .target = "docs" };
    apply_catalog(&alias);
}

static void options_make(void)
{
    struct catalog_change set = { .kind = CATALOG_SET, .name = "latest" };
    set.options = doc_of(&arena, "{'profile': 'speed', 'time_bucket_ms': 3600000, 'recall_target': 0.8}");
    apply_catalog(&set);
}

static void result_make(void)
{
    struct cluster_change throttle = { .kind = CLUSTER_CHANGE_THROTTLE,
        .throttle_bytes_per_s = 123,
        .asked_as = { 0x1122334455667788, 3, 1005 } };
    apply_cluster(&throttle);
}

/* A rebalance that is under way, and a drain that has ended. */
static void plans_make(void)
{
    struct cluster_state *s = cluster_state_acquire(catalog);
    const struct map_collection *docs = map_find(s->map, "docs", 4);
    struct cluster_move less = { .shard_id = docs->shards[0].shard_id,
        .from_replica = docs->shards[0].replica_ids[0],
        .bytes = 7000 };
    cluster_state_unref(s);
    struct cluster_change c = { .kind = CLUSTER_CHANGE_PLAN_START, .why = OP_WHY_DRAIN, .node_id = 2 };
    apply_cluster(&c);
    struct cluster_change back = { .kind = CLUSTER_CHANGE_NODE_STATE,
        .node_id = 2,
        .node_state = CLUSTER_NODE_ACTIVE };
    apply_cluster(&back);
    c = (struct cluster_change){ .kind = CLUSTER_CHANGE_PLAN_START,
        .why = OP_WHY_REBALANCE,
        .moves = &less,
        .move_count = 1,
        .ahead = 3,
        .bytes_ahead = 9000,
        .asked_as = { 0x1122334455667788, 4, 1006 } };
    apply_cluster(&c);
}

static void version_make(void)
{
    struct cluster_change raise = { .kind = CLUSTER_CHANGE_VERSION_RAISE, .level = 2, .node_id = 2 };
    apply_cluster(&raise);
    struct cluster_change hold = { .kind = CLUSTER_CHANGE_VERSION_HOLD, .held = true };
    apply_cluster(&hold);
}

static void check_version(bool raised)
{
    struct cluster_state *s = cluster_state_acquire(catalog);
    ck_assert_uint_eq(s->version, raised ? 2 : 1);
    ck_assert(s->version_held == raised);
    cluster_state_unref(s);
}

static void check_plans(bool there)
{
    struct cluster_state *s = cluster_state_acquire(catalog);
    ck_assert_uint_eq(s->plan_count, there);
    ck_assert_uint_eq(s->plan_history_count, there);
    ck_assert_uint_eq(s->op_count, there);
    if (there) {
        ck_assert_uint_eq(s->plan_history[0].node_id, 2);
        ck_assert(s->plan_history[0].ending);
        ck_assert_int_eq(s->plans[0].why, OP_WHY_REBALANCE);
        ck_assert_uint_eq(s->plans[0].ahead, 3);
        ck_assert_uint_eq(s->plans[0].bytes_begun, 7000);
        ck_assert_uint_eq(s->plans[0].bytes_ahead, 9000);
        ck_assert_uint_eq(s->ops[0].bytes, 7000);
        ck_assert_uint_eq(s->ops[0].plan_id, s->plans[0].plan_id);
    }
    cluster_state_unref(s);
}

static void check_state(bool with_options)
{
    struct cluster_state *state = cluster_state_acquire(catalog);
    ck_assert_uint_eq(state->cluster_id, 0x0123456789abcdef);
    ck_assert_str_eq(state->name, "golden");
    ck_assert_uint_eq(state->node_count, 2);
    ck_assert_str_eq(state->nodes[1].raft_address, "10.0.0.2:7711");
    ck_assert_uint_eq(state->map->collection_count, 2);
    const struct map_collection *docs = map_find(state->map, "latest", 6),
                                *more = map_find(state->map, "more", 4);
    ck_assert_str_eq(docs->name, "docs");
    ck_assert_uint_eq(docs->shard_count, 2);
    ck_assert_uint_eq(docs->shards[0].replica_count, 2);
    ck_assert_str_eq(docs->schema.shard_key, "tenant");
    ck_assert(docs->recall_target == (with_options ? 0.8f : 0.9f));
    ck_assert_int_eq(docs->options.profile, with_options ? PROFILE_SPEED : PROFILE_NONE);
    ck_assert_int_eq(docs->options.write_mode, with_options ? WRITE_STREAM_ONLY : WRITE_ASYNC_INDEX);
    ck_assert_int_eq(docs->options.quantization, with_options ? QUANTIZE_AGGRESSIVE : QUANTIZE_ADAPTIVE);
    ck_assert_uint_eq(options_index_delay_ms(&docs->options), 60000);
    ck_assert_uint_eq(options_time_bucket_ms(&docs->options), with_options ? 3600000 : 86400000);
    ck_assert(collection_options_equal(&more->options, &(struct collection_options){ 0 }));
    cluster_state_unref(state);
}

static void check_result(bool there)
{
    struct cluster_state *state = cluster_state_acquire(catalog);
    const struct op_id id = { 0x1122334455667788, 3, 1005 };
    const struct cluster_result *r = cluster_state_result(state, &id, CLUSTER_CHANGE_THROTTLE);
    if (!there) ck_assert_uint_eq(state->result_count, 0);
    ck_assert(there == (r != NULL));
    if (there) ck_assert_uint_eq(r->asked_as.issue_ms, 1005);
    ck_assert_uint_eq(state->throttle_bytes_per_s, there ? 123 : 0);
    cluster_state_unref(state);
}

static void exported_as(const char *path, bool write)
{
    struct buf bytes;
    uint64_t at;
    static uint8_t golden[65536];
    buf_init(&bytes);
    catalog_export(catalog, &bytes, &at);
    ck_assert(!bytes.failed);
    if (write) golden_write(path, (struct bytes){ bytes.data, bytes.len }, "");
    size_t len = golden_read(path, golden, sizeof golden);
    ck_assert_uint_eq(len, bytes.len);
    ck_assert_mem_eq(golden, bytes.data, len);
    buf_fini(&bytes);
}

START_TEST(the_newest_version_is_as_released)
{
    open_catalog();
    state_make();
    options_make();
    result_make();
    plans_make();
    exported_as(PLAIN, false);
    version_make();
    exported_as(NEWEST, getenv("OMEN_GOLDEN_WRITE") != NULL);
    check_state(true);
    check_plans(true);
}
END_TEST

START_TEST(every_version_is_read)
{
    static const char *const paths[] = { "tests/golden/catalog-v2.hex", "tests/golden/catalog-v3.hex",
        "tests/golden/catalog-v4.hex", PLAIN, NEWEST };
    static uint8_t golden[65536];
    char path[300];
    size_t len = golden_read(paths[_i], golden, sizeof golden);
    snprintf(path, sizeof path, "%s/CATALOG", dir);
    ck_assert_int_eq(vfs_replace_file(vfs_posix(), path, golden, len, NULL), OMEN_OK);
    open_catalog();
    check_state(_i >= 1);
    check_result(_i >= 2);
    check_plans(_i >= 3);
    check_version(_i >= 4);
    if (_i == 4) return;
    if (_i == 0) options_make(); /* goes on as a file of the newest version does */
    if (_i <= 1) result_make();
    if (_i <= 2) plans_make();
    version_make();
    check_state(true);
    ck_assert_int_eq(fsm.checkpoint(fsm.self, NULL), OMEN_OK);
    catalog_close(catalog);
    open_catalog();
    check_state(true);
    check_result(true);
    check_plans(true);
    check_version(true);
}
END_TEST

int main(void)
{
    log_configure(LOG_LEVEL_ERROR, LOG_FORMAT_TEXT, 2);
    Suite *suite = suite_create("catalog");
    TCase *tc = tcase_create("catalog");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, the_newest_version_is_as_released);
    tcase_add_loop_test(tc, every_version_is_read, 0, 5);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
