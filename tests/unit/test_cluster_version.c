/* The cluster's version: raised only to what every node reads, never lowered, and whoever reads less is kept out. */
#include "common/err.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/crc32c.h"
#include "common/log.h"
#include "common/mem.h"
#include "node/cluster/cluster.h"

#define INCARNATION 5u

static char dir[256];
static struct catalog *catalog;
static struct replica_fsm fsm;
static uint64_t sequence;

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
    open_catalog();
}

static void teardown(void)
{
    if (catalog != NULL) catalog_close(catalog);
    catalog = NULL;
    ck_assert_int_eq(vfs_remove_tree(vfs_posix(), dir, NULL), OMEN_OK);
}

static enum omen_err apply(const struct cluster_change *change, struct catalog_outcome *outcome,
        struct err *err)
{
    uint8_t *entry;
    uint32_t len;
    ck_assert_int_eq(cluster_entry_encode(change, 1000 + sequence, &entry, &len), OMEN_OK);
    enum omen_err rc = fsm.apply(fsm.self, sequence + 1, entry, len, outcome, err);
    if (rc == OMEN_OK) sequence++;
    mem_free(entry);
    return rc;
}

static struct catalog_outcome change(const struct cluster_change *c)
{
    struct catalog_outcome outcome;
    struct err err;
    ck_assert_int_eq(apply(c, &outcome, &err), OMEN_OK);
    return outcome;
}

static enum omen_err node_add(uint32_t n, uint32_t level)
{
    struct cluster_change c = { .kind = n == 1 ? CLUSTER_CHANGE_INIT : CLUSTER_CHANGE_NODE_ADD,
        .cluster_id = 77,
        .incarnation = INCARNATION,
        .birth = 1000 + n,
        .level = level };
    snprintf(c.address, sizeof c.address, "tcp://127.0.0.%u:1", n);
    snprintf(c.raft_address, sizeof c.raft_address, "127.0.0.%u:2", n);
    struct catalog_outcome outcome = change(&c);
    if (outcome.code == OMEN_EVERSION) {
        ck_assert_ptr_nonnull(strstr(outcome.err.message, "at version 2"));
        ck_assert_ptr_nonnull(strstr(outcome.err.message, "up to version 1"));
    }
    return outcome.code;
}

static enum omen_err raise_to(uint32_t level, uint32_t last_node)
{
    struct cluster_change c = { .kind = CLUSTER_CHANGE_VERSION_RAISE, .level = level, .node_id = last_node };
    return change(&c).code;
}

static void hold(bool held)
{
    struct cluster_change c = { .kind = CLUSTER_CHANGE_VERSION_HOLD, .held = held };
    ck_assert_int_eq(change(&c).code, OMEN_OK);
}

static uint16_t file_version(void)
{
    struct buf bytes;
    uint64_t at;
    buf_init(&bytes);
    catalog_export(catalog, &bytes, &at);
    ck_assert(!bytes.failed);
    uint16_t version = load_u16(bytes.data + 4);
    buf_fini(&bytes);
    return version;
}

static void reopen(void)
{
    ck_assert_int_eq(fsm.checkpoint(fsm.self, NULL), OMEN_OK);
    catalog_close(catalog);
    open_catalog();
}

START_TEST(it_is_raised_to_what_all_nodes_read_and_never_lowered)
{
    ck_assert_int_eq(node_add(1, 0), OMEN_OK); /* by a build that says nothing */
    ck_assert_uint_eq(catalog_version(catalog), 1);
    ck_assert_int_eq(node_add(2, 1), OMEN_OK);
    ck_assert_uint_eq(file_version(), 5); /* the build before can be sent it, and gone back to */
    reopen();
    ck_assert_uint_eq(catalog_version(catalog), 1);
    ck_assert_int_eq(raise_to(2, 1), OMEN_EBUSY); /* node 2 was added since: nobody asked it */
    ck_assert_int_eq(raise_to(1, 2), OMEN_EINVAL);
    ck_assert_int_eq(raise_to(2, 2), OMEN_OK);
    ck_assert_uint_eq(catalog_version(catalog), 2);
    ck_assert_int_eq(raise_to(2, 2), OMEN_EINVAL);
    ck_assert_int_eq(raise_to(1, 2), OMEN_EINVAL);
    ck_assert_uint_eq(file_version(), 6);
    reopen();
    ck_assert_uint_eq(catalog_version(catalog), 2);
}
END_TEST

START_TEST(a_cluster_begins_at_the_version_of_its_first_nodes_build)
{
    ck_assert_int_eq(node_add(1, 2), OMEN_OK);
    ck_assert_uint_eq(catalog_version(catalog), 2);
}
END_TEST

START_TEST(a_node_of_an_older_build_is_not_added)
{
    ck_assert_int_eq(node_add(1, 0), OMEN_OK);
    ck_assert_int_eq(node_add(2, 0), OMEN_OK);
    ck_assert_int_eq(raise_to(2, 2), OMEN_OK);
    ck_assert_int_eq(node_add(3, 0), OMEN_EVERSION);
    ck_assert_int_eq(node_add(3, 1), OMEN_EVERSION);
    ck_assert_int_eq(node_add(2, 1), OMEN_EVERSION); /* nor told its ids again */
    ck_assert_int_eq(node_add(3, 2), OMEN_OK);
    ck_assert_int_eq(node_add(4, 9), OMEN_OK); /* a later build reads it */
    ck_assert_uint_eq(catalog_version(catalog), 2);
}
END_TEST

START_TEST(an_operator_can_hold_it)
{
    ck_assert_int_eq(node_add(1, 0), OMEN_OK);
    hold(true);
    ck_assert_int_eq(raise_to(2, 1), OMEN_EBUSY);
    ck_assert_uint_eq(catalog_version(catalog), 1);
    hold(false);
    ck_assert_int_eq(raise_to(2, 1), OMEN_OK);
    hold(true);
    reopen();
    struct cluster_state *s = cluster_state_acquire(catalog);
    ck_assert(s->version_held);
    cluster_state_unref(s);
}
END_TEST

START_TEST(a_version_that_this_build_does_not_read_stops_the_replica)
{
    struct cluster_change c = { .kind = CLUSTER_CHANGE_VERSION_RAISE,
        .level = feature_level() + 1,
        .node_id = 1 };
    struct catalog_outcome outcome;
    struct err err;
    char both[100];
    ck_assert_int_eq(node_add(1, 0), OMEN_OK);
    ck_assert_int_eq(apply(&c, &outcome, &err), OMEN_EVERSION);
    snprintf(both, sizeof both, "is at version %u, this build reads up to version %u", feature_level() + 1,
            feature_level());
    ck_assert_msg(strstr(err.message, both) != NULL, "%s", err.message);
    ck_assert_uint_eq(catalog_version(catalog), 1);
    ck_assert_uint_eq(fsm.applied(fsm.self), sequence);
    c = (struct cluster_change){ .kind = (enum cluster_change_kind)99 };
    ck_assert_int_eq(apply(&c, &outcome, &err), OMEN_EVERSION);
}
END_TEST

/* Of this format of the file, or, with _i, of a later one of which no more is known than where it says that. */
START_TEST(a_file_of_a_later_version_is_refused_by_both_numbers)
{
    struct buf bytes;
    uint64_t at;
    char path[300], both[100];
    struct err err;
    ck_assert_int_eq(node_add(1, 2), OMEN_OK);
    buf_init(&bytes);
    catalog_export(catalog, &bytes, &at);
    store_u32(bytes.data + 20, feature_level() + 1);
    if (_i == 1) store_u16(bytes.data + 4, 60);
    store_u32(bytes.data + 16, crc32c(crc32c(0, bytes.data, 16), bytes.data + 20, bytes.len - 20));
    snprintf(path, sizeof path, "%s/CATALOG", dir);
    ck_assert_int_eq(vfs_replace_file(vfs_posix(), path, bytes.data, bytes.len, NULL), OMEN_OK);
    catalog_close(catalog);
    ck_assert_int_eq(catalog_open(vfs_posix(), dir, INCARNATION, &catalog, &err), OMEN_EVERSION);
    snprintf(both, sizeof both, "is at version %u, this build reads up to version %u", feature_level() + 1,
            feature_level());
    ck_assert_msg(strstr(err.message, both) != NULL, "%s", err.message);
    ck_assert_ptr_nonnull(strstr(err.message, "CATALOG"));
    buf_fini(&bytes);
}
END_TEST

int main(void)
{
    log_configure(LOG_LEVEL_ERROR, LOG_FORMAT_TEXT, 2);
    Suite *suite = suite_create("cluster version");
    TCase *tc = tcase_create("version");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, it_is_raised_to_what_all_nodes_read_and_never_lowered);
    tcase_add_test(tc, a_cluster_begins_at_the_version_of_its_first_nodes_build);
    tcase_add_test(tc, a_node_of_an_older_build_is_not_added);
    tcase_add_test(tc, an_operator_can_hold_it);
    tcase_add_test(tc, a_version_that_this_build_does_not_read_stops_the_replica);
    tcase_add_loop_test(tc, a_file_of_a_later_version_is_refused_by_both_numbers, 0, 2);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
