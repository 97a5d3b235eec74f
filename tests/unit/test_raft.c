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

/* ---- leaders come and go ---- */

START_TEST(another_leader_goes_on_and_the_old_one_rejoins)
{
    raft_nodes_start(&g, 3);
    for (uint64_t i = 1; i <= 100; i++) (void)raft_nodes_put(&g, i, 64);
    uint32_t old = raft_nodes_leader(&g, UINT32_MAX);
    raft_node_down(&g, old);
    uint64_t last = 0;
    for (uint64_t i = 101; i <= 200; i++) last = raft_nodes_put(&g, i, 64);
    ck_assert_uint_eq(last, 200);
    raft_node_up(&g, old);
    raft_node_open(&g, old, old + 1);
    all_equal(3, last);
    last = raft_nodes_put(&g, 201, 64);
    all_equal(3, last);
}
END_TEST

/* The machines forget everything, as after a crash without a checkpoint: the log brings it back. */
START_TEST(all_nodes_down_lose_nothing)
{
    raft_nodes_start(&g, 3);
    uint64_t sum = 0;
    for (uint64_t i = 1; i <= 50; i++) {
        (void)raft_nodes_put(&g, i, 16);
        sum = sum * 31 + i;
    }
    for (uint32_t i = 0; i < 3; i++) raft_node_down(&g, i);
    for (uint32_t i = 0; i < 3; i++) {
        raft_machine_fini(&g.nodes[i].machine);
        raft_machine_init(&g.nodes[i].machine);
        raft_node_up(&g, i);
        raft_node_open(&g, i, i + 1);
    }
    ck_assert_uint_eq(raft_nodes_put(&g, 51, 16), 51);
    sum = sum * 31 + 51;
    all_equal(3, 51);
    ck_assert_uint_eq(g.nodes[0].machine.sum, sum);
}
END_TEST

START_TEST(leadership_goes_where_it_is_sent)
{
    raft_nodes_start(&g, 3);
    (void)raft_nodes_put(&g, 1, 8);
    for (uint32_t round = 0; round < 4; round++) {
        uint32_t from = raft_nodes_leader(&g, UINT32_MAX), to = (from + 1) % 3;
        raft_node_wait_applied(&g.nodes[to], g.nodes[from].machine.applied);
        ck_assert_int_eq(raft_node_change(&g.nodes[from], '>', to + 1, 0), OMEN_OK);
        ck_assert_uint_eq(raft_nodes_leader(&g, from), to);
        (void)raft_nodes_put(&g, 2 + round, 8);
    }
    uint32_t leader = raft_nodes_leader(&g, UINT32_MAX);
    ck_assert_int_eq(raft_node_change(&g.nodes[leader], '>', leader + 1, 0), OMEN_EEXISTS);
    ck_assert_int_eq(raft_node_change(&g.nodes[leader], '>', 99, 0), OMEN_ENOTFOUND);
    ck_assert_int_eq(raft_node_change(&g.nodes[(leader + 1) % 3], '>', 0, 0), OMEN_ENOTLEADER);
}
END_TEST

/* ---- reads ---- */

START_TEST(a_barrier_anywhere_sees_what_was_acknowledged_before)
{
    raft_nodes_start(&g, 3);
    for (uint64_t i = 1; i <= 60; i++) {
        uint64_t acknowledged = raft_nodes_put(&g, i, 32), sequence = 0;
        struct raft_node *node = &g.nodes[i % 3];
        enum omen_err rc = raft_node_barrier(node, &sequence);
        ck_assert_msg(rc == OMEN_OK, "%s", err_name(rc));
        ck_assert_uint_ge(sequence, acknowledged);
        pthread_mutex_lock(&node->machine.mutex);
        ck_assert_uint_ge(node->machine.applied, acknowledged);
        pthread_mutex_unlock(&node->machine.mutex);
    }
}
END_TEST

START_TEST(a_barrier_waits_for_apply_and_not_only_for_commit)
{
    raft_nodes_start(&g, 3);
    (void)raft_nodes_put(&g, 1, 8);
    struct raft_node *follower = &g.nodes[(raft_nodes_leader(&g, UINT32_MAX) + 1) % 3];
    raft_node_wait_applied(follower, 1);
    follower->machine.block = true;
    (void)raft_nodes_put(&g, 2, 8);
    usleep(100000);
    ck_assert_uint_eq(follower->machine.applied, 1);
    follower->machine.block = false;
    uint64_t sequence;
    ck_assert_int_eq(raft_node_barrier(follower, &sequence), OMEN_OK);
    ck_assert_uint_ge(sequence, 2);
}
END_TEST

START_TEST(a_leader_without_a_majority_answers_no_linearizable_read)
{
    raft_nodes_start(&g, 3);
    (void)raft_nodes_put(&g, 1, 8);
    uint32_t leader = raft_nodes_leader(&g, UINT32_MAX);
    raft_node_down(&g, (leader + 1) % 3);
    raft_node_down(&g, (leader + 2) % 3);
    enum omen_err rc = raft_node_barrier(&g.nodes[leader], NULL);
    ck_assert_msg(rc == OMEN_ENOTLEADER, "%s", err_name(rc));
    rc = raft_node_put(&g.nodes[leader], 2, 8, NULL);
    ck_assert_msg(rc == OMEN_ENOTLEADER || rc == OMEN_EUNKNOWN, "%s", err_name(rc));
}
END_TEST

/* ---- members ---- */

START_TEST(a_new_replica_joins_votes_and_the_old_one_leaves)
{
    raft_nodes_start(&g, 2);
    uint64_t last = 0;
    for (uint64_t i = 1; i <= 300; i++) last = raft_nodes_put(&g, i, 128);
    uint32_t leader = raft_nodes_leader(&g, UINT32_MAX);
    raft_node_open(&g, 2, 3); /* empty log, no configuration */
    ck_assert_int_eq(raft_node_change(&g.nodes[leader], '+', 3, 3), OMEN_OK);
    ck_assert_int_eq(raft_node_change(&g.nodes[leader], '+', 3, 3), OMEN_EEXISTS);
    ck_assert_int_eq(raft_node_change(&g.nodes[leader], '=', 3, REPLICA_STANDBY), OMEN_OK);
    raft_node_wait_applied(&g.nodes[2], last);
    ck_assert_int_eq(raft_node_change(&g.nodes[leader], '=', 3, REPLICA_VOTER), OMEN_OK);
    struct replica_member members[GROUP_MEMBERS_MAX];
    uint32_t count;
    replica_members(g.nodes[leader].replica, members, &count);
    ck_assert_uint_eq(count, 3);
    ck_assert_int_eq(members[2].role, REPLICA_VOTER);
    /* The old leader leaves, but not as a leader: while that is not committed nobody could take its place. */
    ck_assert_int_eq(raft_node_change(&g.nodes[leader], '-', leader + 1, 0), OMEN_EINVAL);
    ck_assert_int_eq(raft_node_change(&g.nodes[leader], '=', leader + 1, REPLICA_STANDBY), OMEN_EINVAL);
    ck_assert_int_eq(raft_node_change(&g.nodes[leader], '>', 3, 0), OMEN_OK);
    uint32_t next = raft_nodes_leader(&g, leader);
    enum omen_err rc = OMEN_EBUSY; /* while the leader has not committed anything of its term */
    for (; rc == OMEN_EBUSY; usleep(2000)) rc = raft_node_change(&g.nodes[next], '-', leader + 1, 0);
    ck_assert_int_eq(rc, OMEN_OK);
    raft_node_down(&g, leader);
    last = raft_nodes_put(&g, 301, 128);
    raft_node_wait_applied(&g.nodes[2], last);
    raft_node_wait_applied(&g.nodes[1 - leader], last);
    uint32_t now = raft_nodes_leader(&g, UINT32_MAX);
    ck_assert_uint_ne(now, leader);
    ck_assert_uint_eq(g.nodes[2].machine.sum, g.nodes[1 - leader].machine.sum);
}
END_TEST

START_TEST(an_absent_replica_is_not_made_a_voter)
{
    raft_nodes_start(&g, 2);
    (void)raft_nodes_put(&g, 1, 8);
    uint32_t leader = raft_nodes_leader(&g, UINT32_MAX);
    ck_assert_int_eq(raft_node_change(&g.nodes[leader], '+', 3, 3), OMEN_OK);
    ck_assert_int_eq(raft_node_change(&g.nodes[leader], '=', 3, REPLICA_VOTER), OMEN_EUNAVAILABLE);
    (void)raft_nodes_put(&g, 2, 8);
    ck_assert_int_eq(raft_node_change(&g.nodes[leader], '-', 3, 0), OMEN_OK);
    ck_assert_int_eq(raft_node_change(&g.nodes[leader], '-', 3, 0), OMEN_ENOTFOUND);
}
END_TEST

START_TEST(a_group_begins_once_and_only_when_told)
{
    struct replica_member members[] = { { 1, 1, REPLICA_VOTER } };
    raft_node_up(&g, 0);
    ck_assert_int_eq(replica_bootstrap(g.nodes[0].host, 1, 1, members, 1, NULL), OMEN_OK);
    ck_assert_int_eq(replica_bootstrap(g.nodes[0].host, 1, 1, members, 1, NULL), OMEN_EEXISTS);
    ck_assert_int_eq(replica_bootstrap(g.nodes[0].host, 1, 2, members, 1, NULL), OMEN_EINVAL);
    raft_node_open(&g, 0, 1);
    ck_assert_int_eq(replica_bootstrap(g.nodes[0].host, 1, 1, members, 1, NULL), OMEN_EEXISTS);
    ck_assert_uint_eq(raft_nodes_put(&g, 5, 8), 1);
    /* A replica that nobody told stays without a leader. */
    raft_node_up(&g, 1);
    raft_node_open(&g, 1, 2);
    usleep(1200000);
    struct replica_status s;
    replica_status(g.nodes[1].replica, &s);
    ck_assert(!s.leader);
    ck_assert_uint_eq(s.term, 0);
    ck_assert(!s.is_member);
}
END_TEST

/* ---- bases ---- */

static void checkpoint_all(void)
{
    for (uint32_t i = 0; i < g.count; i++) {
        if (g.nodes[i].replica != NULL)
            ck_assert_int_eq(replica_checkpoint(g.nodes[i].replica, NULL), OMEN_OK);
    }
}

static void wait_base(struct raft_node *node, uint64_t sequence)
{
    for (uint32_t i = 0; i < RAFT_WAIT_MS / 2; i++) {
        struct replica_status s;
        replica_status(node->replica, &s);
        if (s.base_sequence >= sequence) return;
        usleep(2000);
    }
    ck_abort_msg("the base stays");
}

START_TEST(a_replica_behind_the_log_gets_a_base_and_then_the_log)
{
    g.options.cluster.trailing_bytes = 0;
    raft_nodes_start(&g, 3);
    for (uint64_t i = 1; i <= 20; i++) (void)raft_nodes_put(&g, i, 64);
    uint32_t leader = raft_nodes_leader(&g, UINT32_MAX), away = (leader + 1) % 3;
    raft_node_wait_applied(&g.nodes[away], 20);
    raft_node_down(&g, away);
    uint64_t last = 0;
    for (uint64_t i = 21; i <= 120; i++) last = raft_nodes_put(&g, i, 64);
    raft_node_wait_applied(&g.nodes[(leader + 2) % 3], last);
    checkpoint_all();
    wait_base(&g.nodes[leader], last);
    /* Back, with what it had: it is offered a base and keeps its old log until it has one (C4). */
    struct raft_node *back = &g.nodes[away];
    raft_node_up(&g, away);
    raft_node_open(&g, away, away + 1);
    for (uint32_t i = 0; back->machine.fetches == 0; i++) {
        ck_assert_uint_lt(i, RAFT_WAIT_MS);
        usleep(1000);
    }
    ck_assert_uint_ge(back->machine.fetch_sequence, 21);
    usleep(300000);
    ck_assert_uint_eq(back->machine.fetches, 1);
    ck_assert_uint_eq(back->machine.applied, 20);
    struct replica_status s;
    replica_status(back->replica, &s);
    ck_assert(s.fetching);
    ck_assert_uint_le(s.stored_index, 30);
    /* The fetch failed: it is asked again, and now it works. */
    replica_base_failed(back->replica);
    for (uint32_t i = 0; back->machine.fetches < 2; i++) {
        ck_assert_uint_lt(i, RAFT_WAIT_MS);
        usleep(1000);
    }
    struct buf description;
    uint64_t base;
    buf_init(&description);
    ck_assert_int_eq(replica_base_describe(g.nodes[leader].replica, &description, &base), OMEN_OK);
    ck_assert_uint_ge(base, back->machine.fetch_sequence);
    back->machine.source = &g.nodes[leader].machine;
    struct err err = { 0 };
    ck_assert_int_eq(replica_base_ready(back->replica, description.data, description.len - 1, &err),
            OMEN_EPROTO);
    ck_assert_int_eq(replica_base_ready(back->replica, description.data, description.len, &err), OMEN_OK);
    buf_fini(&description);
    raft_node_wait_applied(back, last);
    for (uint64_t i = 121; i <= 140; i++) last = raft_nodes_put(&g, i, 64);
    all_equal(3, last);
    /* And it starts from there. */
    raft_node_down(&g, away);
    raft_node_up(&g, away);
    raft_node_open(&g, away, away + 1);
    last = raft_nodes_put(&g, 141, 64);
    all_equal(3, last);
}
END_TEST

START_TEST(a_new_replica_of_a_trimmed_log_starts_from_a_base)
{
    g.options.cluster.trailing_bytes = 0;
    raft_nodes_start(&g, 2);
    uint64_t last = 0;
    for (uint64_t i = 1; i <= 40; i++) last = raft_nodes_put(&g, i, 64);
    uint32_t leader = raft_nodes_leader(&g, UINT32_MAX);
    raft_node_wait_applied(&g.nodes[1 - leader], last);
    checkpoint_all();
    wait_base(&g.nodes[leader], last);
    struct raft_node *joins = &g.nodes[2];
    raft_node_open(&g, 2, 7);
    ck_assert_int_eq(raft_node_change(&g.nodes[leader], '+', 7, 3), OMEN_OK);
    ck_assert_int_eq(raft_node_change(&g.nodes[leader], '=', 7, REPLICA_STANDBY), OMEN_OK);
    for (uint32_t i = 0; joins->machine.fetches == 0; i++) {
        ck_assert_uint_lt(i, RAFT_WAIT_MS);
        usleep(1000);
    }
    struct buf description;
    uint64_t base;
    buf_init(&description);
    ck_assert_int_eq(replica_base_describe(g.nodes[leader].replica, &description, &base), OMEN_OK);
    joins->machine.source = &g.nodes[leader].machine;
    ck_assert_int_eq(replica_base_ready(joins->replica, description.data, description.len, NULL), OMEN_OK);
    buf_fini(&description);
    raft_node_wait_applied(joins, last);
    ck_assert_int_eq(raft_node_change(&g.nodes[leader], '=', 7, REPLICA_VOTER), OMEN_OK);
    last = raft_nodes_put(&g, 41, 64);
    all_equal(3, last);
}
END_TEST

START_TEST(checkpoints_bound_log_and_memory)
{
    g.options.cluster.trailing_bytes = 256u << 10;
    g.options.log.bytes_max = 4u << 20;
    g.options.checkpoint_log_bytes = 1u << 20;
    raft_nodes_start(&g, 3);
    uint64_t last = 0;
    for (uint64_t i = 1; i <= 300; i++) last = raft_nodes_put(&g, i, 64u << 10); /* 19 MiB */
    all_equal(3, last);
    for (uint32_t i = 0; i < 3; i++) {
        struct replica_status s;
        struct node_log_stats log;
        replica_status(g.nodes[i].replica, &s);
        replica_host_log_stats(g.nodes[i].host, &log);
        ck_assert_uint_lt(s.log_bytes, 6u << 20);
        ck_assert_uint_lt(log.bytes, 8u << 20);
    }
    for (uint32_t i = 0; i < 3; i++) raft_node_down(&g, i);
    for (uint32_t i = 0; i < 3; i++) {
        raft_node_up(&g, i);
        raft_node_open(&g, i, i + 1);
    }
    last = raft_nodes_put(&g, 301, 64);
    all_equal(3, last);
}
END_TEST

/* ---- apply ---- */

START_TEST(a_stopped_replica_does_not_hold_up_the_others)
{
    raft_nodes_start(&g, 3);
    (void)raft_nodes_put(&g, 1, 8);
    uint32_t leader = raft_nodes_leader(&g, UINT32_MAX);
    g.nodes[(leader + 1) % 3].machine.fail = OMEN_ECORRUPT;
    uint64_t last = 0;
    for (uint64_t i = 2; i <= 30; i++) last = raft_nodes_put(&g, i, 8);
    raft_node_wait_applied(&g.nodes[(leader + 2) % 3], last);
    struct replica_status s;
    replica_status(g.nodes[(leader + 1) % 3].replica, &s);
    ck_assert_int_eq(s.stopped, OMEN_ECORRUPT);
}
END_TEST

static TCase *tcase(const char *name)
{
    TCase *tc = tcase_create(name);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 120);
    return tc;
}

int main(void)
{
    Suite *s = suite_create("raft");
    TCase *tc = tcase("entries");
    tcase_add_test(tc, three_replicas_apply_the_same_entries);
    tcase_add_test(tc, a_follower_refuses_and_names_the_leader);
    tcase_add_test(tc, another_leader_goes_on_and_the_old_one_rejoins);
    tcase_add_test(tc, all_nodes_down_lose_nothing);
    tcase_add_test(tc, leadership_goes_where_it_is_sent);
    tcase_add_test(tc, a_stopped_replica_does_not_hold_up_the_others);
    suite_add_tcase(s, tc);
    tc = tcase("reads");
    tcase_add_test(tc, a_barrier_anywhere_sees_what_was_acknowledged_before);
    tcase_add_test(tc, a_barrier_waits_for_apply_and_not_only_for_commit);
    tcase_add_test(tc, a_leader_without_a_majority_answers_no_linearizable_read);
    suite_add_tcase(s, tc);
    tc = tcase("members");
    tcase_add_test(tc, a_new_replica_joins_votes_and_the_old_one_leaves);
    tcase_add_test(tc, an_absent_replica_is_not_made_a_voter);
    tcase_add_test(tc, a_group_begins_once_and_only_when_told);
    suite_add_tcase(s, tc);
    tc = tcase("bases");
    tcase_add_test(tc, a_replica_behind_the_log_gets_a_base_and_then_the_log);
    tcase_add_test(tc, a_new_replica_of_a_trimmed_log_starts_from_a_base);
    tcase_add_test(tc, checkpoints_bound_log_and_memory);
    suite_add_tcase(s, tc);
    SRunner *runner = srunner_create(s);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}
