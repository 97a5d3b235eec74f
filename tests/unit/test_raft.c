/* Raft groups over real TCP, three nodes in one process. */
#include "common/err.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/support/raft_nodes.h"

static struct raft_nodes g;

static void setup(void) { raft_nodes_init(&g, 3); }
static void teardown(void) { raft_nodes_fini(&g); }

static void all_equal(uint32_t count, uint64_t sequence)
{
    for (uint32_t i = 0; i < count; i++) {
        raft_node_wait_applied(&g.nodes[i], sequence);
        ck_assert_uint_eq(g.nodes[i].machine.sum, g.nodes[0].machine.sum);
    }
}

START_TEST(three_replicas_apply_the_same_entries)
{
    uint64_t last = 0;
    raft_nodes_start(&g, 3);
    for (uint64_t i = 1; i <= 500; i++) last = raft_nodes_put(&g, i, (uint32_t)(8 + 8 * (i % 100)));
    ck_assert_uint_eq(last, 500);
    all_equal(3, last);
}
END_TEST

START_TEST(a_follower_refuses_and_names_the_leader)
{
    raft_nodes_start(&g, 3);
    uint32_t leader = raft_nodes_leader(&g, UINT32_MAX);
    (void)raft_nodes_put(&g, 1, 8);
    struct raft_node *follower = &g.nodes[(leader + 1) % 3];
    raft_node_wait_applied(follower, 1);
    ck_assert_int_eq(raft_node_put(follower, 2, 8, NULL), OMEN_ENOTLEADER);
    struct replica_member m;
    ck_assert(replica_leader(follower->replica, &m));
    ck_assert_uint_eq(m.node_id, g.nodes[leader].node_id);
    ck_assert_uint_ge(follower->leader_changes, 1);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("raft");
    TCase *tc = tcase_create("three nodes");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, three_replicas_apply_the_same_entries);
    tcase_add_test(tc, a_follower_refuses_and_names_the_leader);
    suite_add_tcase(s, tc);
    SRunner *runner = srunner_create(s);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}
