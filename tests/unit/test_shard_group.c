/* A shard replicated over three nodes in one process: real stores and logs, real TCP. */
#include "common/err.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "node/shard_host_impl.h"
#include "tests/support/doc_text.h"
#include "tests/support/shard_nodes.h"
#include "tests/support/vfs_hook.h"

static struct shard_nodes g;

static void setup(void) { shard_nodes_init(&g, 3); }
static void teardown(void) { shard_nodes_fini(&g); }

static struct op_id no_op(void) { return (struct op_id){ 0 }; }
static struct op_id op(uint64_t seq)
{
    return (struct op_id){ .client = 7, .seq = seq, .issue_ms = clock_wall_ms(clock_system()) };
}

static void counts_are(uint64_t points, uint64_t token)
{
    for (uint32_t i = 0; i < g.count; i++)
        ck_assert_uint_eq(shard_node_count(&g.nodes[i], CONSISTENCY_SESSION, token, NULL), points);
}

/* ---- writes ---- */

START_TEST(what_the_leader_took_is_read_at_every_replica_with_its_token)
{
    shard_nodes_start(&g, 3);
    uint64_t last = 0;
    for (uint64_t i = 1; i <= 200; i++) {
        last = shard_nodes_upsert(&g, i, no_op());
        ck_assert_uint_eq(shard_node_count(&g.nodes[i % 3], CONSISTENCY_SESSION, last, NULL), i);
    }
    counts_are(200, last);
}
END_TEST

START_TEST(a_follower_refuses_writes_and_names_the_leader)
{
    shard_nodes_start(&g, 3);
    uint64_t last = shard_nodes_upsert(&g, 1, no_op());
    uint32_t leader = shard_nodes_leader(&g, UINT32_MAX);
    struct shard_node *follower = &g.nodes[(leader + 1) % 3];
    struct shard_call call;
    shard_node_wait_applied(follower, last);
    ck_assert_int_eq(shard_node_upsert(follower, 2, no_op(), &call), OMEN_ENOTLEADER);
    ck_assert_uint_eq(call.leader_hint, g.nodes[leader].node_id);
    ck_assert_uint_ge(atomic_load(&follower->changes), 1);
    counts_are(1, last);
}
END_TEST

START_TEST(a_write_retried_at_the_next_leader_is_applied_once)
{
    shard_nodes_start(&g, 3);
    for (uint64_t round = 0; round < 3; round++) {
        uint32_t leader = shard_nodes_leader(&g, UINT32_MAX);
        struct op_id id = op(round + 1);
        uint64_t first = shard_nodes_upsert(&g, round + 1, id);
        shard_node_down(&g, leader);
        /* The client never heard the answer. */
        uint64_t again = shard_nodes_upsert(&g, round + 1, id);
        ck_assert_uint_eq(again, first);
        shard_nodes_reopen(&g, leader);
        shard_node_wait_ready(&g.nodes[leader]);
        uint64_t last = shard_nodes_upsert(&g, 100 + round, no_op());
        counts_are(2 * (round + 1), last);
    }
}
END_TEST

/* ---- by filter ---- */

#define MANY 8000u
#define LATER 10u /* of them, written after the write by filter began */

struct marking {
    uint32_t node;
    struct op_id id;
    uint64_t deadline_ns;
    struct shard_call call; /* released */
};

/* {"seen": 1} into every point, at a node; waits for the answer. */
static void *mark_all(void *arg)
{
    struct marking *m = arg;
    struct arena arena;
    arena_init(&arena, 4096, 0);
    struct point_op op = { .kind = POINT_SET_PAYLOAD, .payload = doc_of(&arena, "{'seen': 1}") };
    m->call = (struct shard_call){ .kind = CALL_WRITE, .deadline_ns = m->deadline_ns };
    m->call.in.write.ops = &op;
    m->call.in.write.count = 1;
    m->call.in.write.op_id = m->id;
    m->call.in.write.filter_doc = doc_of(&arena, "{}");
    ck_assert_int_eq(filter_parse(m->call.in.write.filter_doc, &arena, &m->call.in.write.filter, NULL),
            OMEN_OK);
    (void)shard_node_run(&g.nodes[m->node], &m->call);
    shard_host_release(&m->call);
    arena_fini(&arena);
    return NULL;
}

static struct intent intent_at(uint32_t i)
{
    struct intent first = { .work = NULL };
    struct shard_store *store = shard_host_store_hold(g.nodes[i].shard);
    if (store == NULL) return first;
    struct intent_set *set = shard_store_intents(store);
    if (set->count > 0) first = set->items[0]; /* its work is looked at for NULL alone */
    intent_set_unref(set);
    shard_host_store_unhold(g.nodes[i].shard);
    return first;
}

static uint64_t marked_at(uint32_t i, uint64_t token)
{
    struct arena arena;
    struct shard_call call = { .kind = CALL_COUNT, .token_sequence = token };
    arena_init(&arena, 4096, 0);
    call.in.count.filter_doc = doc_of(&arena, "{'must': [{'key': 'seen', 'match': {'value': 1}}]}");
    ck_assert_int_eq(filter_parse(call.in.count.filter_doc, &arena, &call.in.count.filter, NULL), OMEN_OK);
    ck_assert_msg(shard_node_run(&g.nodes[i], &call) == OMEN_OK, "%s", call.err.message);
    uint64_t points = call.out.count.points;
    shard_host_release(&call);
    arena_fini(&arena);
    return points;
}

/* Of the leader; 0: it cannot be looked at now. */
static uint64_t tail_rows(void)
{
    struct shard_host *shard = g.nodes[shard_nodes_leader(&g, UINT32_MAX)].shard;
    struct shard_store *store = shard_host_store_hold(shard);
    if (store == NULL) return 0;
    uint64_t rows = shard_index_tail_rows(store);
    shard_host_store_unhold(shard);
    return rows;
}

static void tail_rows_max_are(uint64_t rows)
{
    for (uint32_t i = 0; i < 3; i++) g.nodes[i].env.tail_rows_max = rows;
}

/* The last points anew, although the tail is too long: it may grow by these few, or by a step of the write by filter that
 * comes first; then once more. */
static void write_later(void)
{
    enum omen_err rc = OMEN_EBUSY;
    while (rc != OMEN_OK) { /* a leader that has just begun is busy, too: it makes no room for steps */
        tail_rows_max_are(tail_rows() + 1);
        (void)shard_nodes_fill_once(&g, MANY - LATER, LATER, 0, &rc);
    }
}

/* Held up in its middle by a tail that is too long, a write by filter loses its client, a second one under its op id and its
 * leader. The next leader does the rest without any client: what was written after it began is left alone, a third attempt
 * is told the counts of the whole, and all replicas end alike. */
START_TEST(a_write_by_filter_goes_on_at_the_next_leader_without_a_client)
{
    shard_nodes_start(&g, 3);
    for (uint32_t first = 0; first < MANY; first += 250) (void)shard_nodes_fill(&g, first, 250, 0);
    uint32_t leader;
    struct marking first = { .id = op(1) };
    do { /* again where it was not even begun, as when the leader changes */
        tail_rows_max_are(tail_rows() + 1); /* one step */
        first.node = leader = shard_nodes_leader(&g, UINT32_MAX);
        first.deadline_ns = clock_monotonic_ns(clock_system()) + 1000000000ull;
        mark_all(&first);
        ck_assert_msg(first.call.code != OMEN_OK, "it is not held up");
    } while (intent_at(leader).work == NULL);
    struct marking second = { .node = leader, .id = first.id };
    pthread_t thread;
    ck_assert_int_eq(pthread_create(&thread, NULL, mark_all, &second), 0);
    while (intent_at(leader).affected < 1000) {
        usleep(5000);
        leader = shard_nodes_leader(&g, UINT32_MAX);
    }
    write_later();
    leader = shard_nodes_leader(&g, UINT32_MAX);
    ck_assert_ptr_nonnull(intent_at(leader).work);
    shard_node_down(&g, leader);
    ck_assert_int_eq(pthread_join(thread, NULL), 0);
    ck_assert_msg(second.call.code == OMEN_EUNKNOWN || second.call.code == OMEN_ENOTLEADER ||
                    second.call.code == OMEN_EBUSY,
            "%s: %s", err_name(second.call.code), second.call.err.message);
    tail_rows_max_are(0);
    while (intent_at(shard_nodes_leader(&g, leader)).work != NULL) usleep(10000);
    struct marking third = { .id = first.id };
    do {
        third.node = shard_nodes_leader(&g, leader);
        mark_all(&third);
    } while (third.call.code == OMEN_ENOTLEADER || third.call.code == OMEN_EBUSY);
    ck_assert_msg(third.call.code == OMEN_OK, "%s", third.call.err.message);
    ck_assert(third.call.out.write.duplicate);
    ck_assert_uint_eq(third.call.out.write.affected, MANY - LATER);
    shard_nodes_reopen(&g, leader);
    shard_node_wait_ready(&g.nodes[leader]);
    counts_are(MANY, third.call.sequence);
    for (uint32_t i = 0; i < 3; i++) ck_assert_uint_eq(marked_at(i, third.call.sequence), MANY - LATER);
}
END_TEST

/* The wall clock of the second leader is behind: log time goes on from what the first one wrote. */
static uint64_t wall_behind(struct clock *clock)
{
    return clock_wall_ms(clock_system()) > 90000 ? clock_wall_ms(clock_system()) - 90000 : 0;
}
static uint64_t mono_same(struct clock *clock) { return clock_monotonic_ns(clock_system()); }

START_TEST(log_time_never_goes_back_over_leaders)
{
    struct clock behind = { .wall_ms = wall_behind, .monotonic_ns = mono_same };
    shard_nodes_start(&g, 3);
    uint32_t first = shard_nodes_leader(&g, UINT32_MAX);
    uint64_t last = shard_nodes_upsert(&g, 1, op(1));
    for (uint32_t i = 0; i < 3; i++) shard_node_wait_applied(&g.nodes[i], last);
    for (uint32_t i = 0; i < 3; i++)
        if (i != first) g.nodes[i].env.clock = &behind;
    shard_node_down(&g, first);
    /* Were log time 90 s back, an op issued now would be too far in the future for no one; one issued 60 s before the
     * retention's end of the first leader's time would live again. */
    struct op_id old = op(2);
    old.issue_ms -= 121000;
    struct shard_call call;
    enum omen_err rc = OMEN_ENOTLEADER;
    for (uint32_t tries = 0; tries < 1000 && rc == OMEN_ENOTLEADER; tries++, usleep(5000))
        rc = shard_node_upsert(&g.nodes[shard_nodes_leader(&g, first)], 2, old, &call);
    ck_assert_msg(rc == OMEN_EOPEXPIRED, "%s: %s", err_name(rc), call.err.message);
    for (uint32_t i = 0; i < 3; i++) g.nodes[i].env.clock = clock_system();
}
END_TEST

/* ---- reads ---- */

START_TEST(a_linearizable_read_anywhere_sees_what_was_acknowledged_before)
{
    shard_nodes_start(&g, 3);
    for (uint64_t i = 1; i <= 50; i++) {
        (void)shard_nodes_upsert(&g, i, no_op());
        ck_assert_uint_eq(shard_node_count(&g.nodes[i % 3], CONSISTENCY_LINEARIZABLE, 0, NULL), i);
    }
}
END_TEST

START_TEST(without_a_leader_only_eventual_reads_are_answered)
{
    shard_nodes_start(&g, 3);
    uint64_t last = shard_nodes_upsert(&g, 1, no_op());
    for (uint32_t i = 0; i < 3; i++) shard_node_wait_applied(&g.nodes[i], last);
    shard_node_down(&g, 0);
    shard_node_down(&g, 1);
    enum omen_err rc = OMEN_OK;
    for (uint32_t tries = 0; tries < 2000 && rc == OMEN_OK; tries++, usleep(5000))
        (void)shard_node_count(&g.nodes[2], CONSISTENCY_SESSION, last, &rc);
    ck_assert_int_eq(rc, OMEN_EUNAVAILABLE);
    (void)shard_node_count(&g.nodes[2], CONSISTENCY_LINEARIZABLE, 0, &rc);
    ck_assert_int_eq(rc, OMEN_EUNAVAILABLE);
    struct shard_call call = { .kind = CALL_COUNT, .consistency = CONSISTENCY_EVENTUAL };
    ck_assert_int_eq(shard_node_run(&g.nodes[2], &call), OMEN_OK);
    ck_assert_uint_eq(call.out.count.points, 1);
    ck_assert(call.stale);
    shard_host_release(&call);
    rc = shard_node_upsert(&g.nodes[2], 2, no_op(), &call);
    ck_assert_msg(rc == OMEN_ENOTLEADER || rc == OMEN_EUNKNOWN, "%s", err_name(rc));
    shard_nodes_reopen(&g, 0);
    shard_nodes_reopen(&g, 1);
    last = shard_nodes_upsert(&g, 3, no_op());
    shard_node_wait_applied(&g.nodes[2], last);
    ck_assert_uint_ge(shard_node_count(&g.nodes[2], CONSISTENCY_SESSION, last, NULL), 2);
    shard_node_wait_ready(&g.nodes[2]);
    for (uint32_t tries = 0; tries < 2000 && call.stale; tries++, usleep(5000)) { /* the next sweep sees it */
        call = (struct shard_call){ .kind = CALL_COUNT, .consistency = CONSISTENCY_EVENTUAL };
        ck_assert_int_eq(shard_node_run(&g.nodes[2], &call), OMEN_OK);
        shard_host_release(&call);
    }
    ck_assert(!call.stale);
}
END_TEST

/* Whoever a follower asked may never answer: the read goes on at the next leader, or elsewhere, when one is known. */
START_TEST(a_linearizable_read_does_not_wait_for_a_leader_that_is_gone)
{
    shard_nodes_start(&g, 3);
    uint64_t last = shard_nodes_upsert(&g, 1, no_op());
    for (uint32_t i = 0; i < 3; i++) shard_node_wait_applied(&g.nodes[i], last);
    uint32_t leader = shard_nodes_leader(&g, UINT32_MAX), asker = (leader + 1) % 3;
    shard_node_down(&g, leader);
    struct shard_call call = { .kind = CALL_COUNT, .consistency = CONSISTENCY_LINEARIZABLE };
    enum omen_err rc = shard_node_run(&g.nodes[asker], &call);
    ck_assert_msg(rc == OMEN_OK || rc == OMEN_ENOTLEADER, "%s: %s", err_name(rc), call.err.message);
    if (rc == OMEN_OK) ck_assert_uint_eq(call.out.count.points, 1);
    shard_host_release(&call);
    /* Neither does a read wait for a token where nothing comes any more. */
    shard_node_down(&g, 3 - leader - asker);
    (void)shard_node_count(&g.nodes[asker], CONSISTENCY_SESSION, last + 1, &rc);
    ck_assert_msg(rc == OMEN_EUNAVAILABLE, "%s", err_name(rc));
}
END_TEST

START_TEST(a_replica_that_has_nothing_yet_answers_nothing)
{
    shard_nodes_start(&g, 2);
    (void)shard_nodes_upsert(&g, 1, no_op());
    shard_node_open(&g, 2, 3, NULL, 0);
    enum omen_err rc;
    (void)shard_node_count(&g.nodes[2], CONSISTENCY_EVENTUAL, 0, &rc);
    ck_assert_int_eq(rc, OMEN_EUNAVAILABLE);
    struct shard_host_status s;
    shard_host_status(g.nodes[2].shard, &s);
    ck_assert(!s.ready);
}
END_TEST

/* ---- members ---- */

START_TEST(a_replica_joins_reads_votes_and_the_old_one_is_dropped)
{
    shard_nodes_start(&g, 2);
    uint64_t last = 0;
    for (uint64_t i = 1; i <= 50; i++) last = shard_nodes_upsert(&g, i, no_op());
    uint32_t leader = shard_nodes_leader(&g, UINT32_MAX);
    shard_node_open(&g, 2, 3, NULL, 0);
    ck_assert_int_eq(shard_node_change(&g.nodes[leader], '+', 3, 3), OMEN_OK);
    ck_assert_int_eq(shard_node_change(&g.nodes[leader], '=', 3, REPLICA_STANDBY), OMEN_OK);
    shard_node_wait_applied(&g.nodes[2], last);
    shard_node_wait_ready(&g.nodes[2]);
    ck_assert_uint_eq(shard_node_count(&g.nodes[2], CONSISTENCY_LINEARIZABLE, 0, NULL), 50);
    ck_assert_int_eq(shard_node_change(&g.nodes[leader], '=', 3, REPLICA_VOTER), OMEN_OK);
    ck_assert_int_eq(shard_node_change(&g.nodes[leader], '>', 3, 0), OMEN_OK);
    uint32_t next = shard_nodes_leader(&g, leader);
    enum omen_err rc = OMEN_EBUSY; /* while the leader has not committed anything of its term */
    for (; rc == OMEN_EBUSY; usleep(2000)) rc = shard_node_change(&g.nodes[next], '-', leader + 1, 0);
    ck_assert_int_eq(rc, OMEN_OK);
    struct shard_host *gone = g.nodes[leader].shard;
    pthread_mutex_lock(&g.nodes[leader].lock);
    g.nodes[leader].shard = NULL;
    pthread_mutex_unlock(&g.nodes[leader].lock);
    shard_host_retire(gone, OMEN_ENOTFOUND);
    shard_host_drop(gone);
    last = shard_nodes_upsert(&g, 51, no_op());
    ck_assert_uint_eq(shard_node_count(&g.nodes[2], CONSISTENCY_SESSION, last, NULL), 51);
}
END_TEST

START_TEST(all_nodes_down_lose_nothing)
{
    shard_nodes_start(&g, 3);
    for (uint64_t i = 1; i <= 100; i++) (void)shard_nodes_upsert(&g, i, no_op());
    for (uint32_t i = 0; i < 3; i++) shard_node_down(&g, i);
    for (uint32_t i = 0; i < 3; i++) shard_nodes_reopen(&g, i);
    uint64_t last = shard_nodes_upsert(&g, 101, no_op());
    for (uint32_t i = 0; i < 3; i++) shard_node_wait_ready(&g.nodes[i]);
    counts_are(101, last);
}
END_TEST

/* Before the barrier of the first leader's own term is applied, no replica knows how old what it holds is, and each
 * is 0 entries behind all that it has heard of. */
START_TEST(after_a_restart_of_all_a_read_without_a_token_misses_nothing)
{
    shard_nodes_start(&g, 3);
    uint64_t points = 0;
    for (uint32_t round = 0; round < 4; round++) {
        for (uint32_t i = 0; i < 50; i++) (void)shard_nodes_upsert(&g, ++points, no_op());
        for (uint32_t i = 0; i < 3; i++) shard_node_down(&g, i);
        for (uint32_t i = 0; i < 3; i++) shard_nodes_reopen(&g, i);
        uint32_t answered[3] = { 0 };
        uint64_t until = clock_monotonic_ns(clock_system()) / 1000000 + SHARD_NODES_WAIT_MS;
        while (answered[0] < 3 || answered[1] < 3 || answered[2] < 3) {
            ck_assert_uint_lt(clock_monotonic_ns(clock_system()) / 1000000, until);
            for (uint32_t i = 0; i < 3; i++) {
                enum omen_err rc;
                uint64_t found = shard_node_count(&g.nodes[i], CONSISTENCY_SESSION, 0, &rc);
                if (rc == OMEN_OK) ck_assert_uint_eq(found, points);
                answered[i] += rc == OMEN_OK;
            }
            usleep(200);
        }
    }
}
END_TEST

/* ---- admission ---- */

/* Until writes at the leader are answered so. */
static struct err wait_write(enum omen_err wanted, bool deletes)
{
    for (uint32_t i = 0; i < SHARD_NODES_WAIT_MS / 5; i++, usleep(5000)) {
        float vector[SHARD_NODES_DIM] = { 1 };
        struct point_op o = { .kind = deletes ? POINT_DELETE : POINT_UPSERT, .id = { 0, 9, 0 } };
        struct shard_call call = { .kind = CALL_WRITE };
        if (!deletes) o.vectors[0] = vector;
        call.in.write.ops = &o;
        call.in.write.count = 1;
        enum omen_err rc = shard_node_run(&g.nodes[shard_nodes_leader(&g, UINT32_MAX)], &call);
        shard_host_release(&call);
        if (rc == wanted) return call.err;
    }
    ck_abort_msg("no write was answered %s", err_name(wanted));
}

START_TEST(a_full_disk_at_a_replica_refuses_writes_and_a_minority_not_for_long)
{
    shard_nodes_start(&g, 3);
    (void)shard_nodes_upsert(&g, 1, no_op());
    uint32_t leader = shard_nodes_leader(&g, UINT32_MAX);
    for (uint32_t i = 0; i < 3; i++) g.nodes[i].env.grace_ms = 3000;
    atomic_store(&g.nodes[(leader + 1) % 3].lacks, PEER_DISK_FULL);
    struct err err = wait_write(OMEN_EFULL, false);
    ck_assert_ptr_nonnull(strstr(err.message, "disk of node"));
    (void)wait_write(OMEN_OK, true);  /* deletes make room */
    (void)wait_write(OMEN_OK, false); /* the grace time is over: one of three */
    atomic_store(&g.nodes[(leader + 2) % 3].lacks, PEER_DISK_FULL);
    (void)wait_write(OMEN_EFULL, false);
    usleep(4000000); /* a majority is waited for however long */
    (void)wait_write(OMEN_EFULL, false);
    atomic_store(&g.nodes[(leader + 2) % 3].lacks, 0);
    atomic_store(&g.nodes[(leader + 1) % 3].lacks, 0);
    (void)wait_write(OMEN_OK, false);
}
END_TEST

START_TEST(a_replica_without_memory_or_with_a_long_tail_holds_writes_back)
{
    shard_nodes_start(&g, 3);
    (void)shard_nodes_upsert(&g, 1, no_op());
    uint32_t leader = shard_nodes_leader(&g, UINT32_MAX);
    _Atomic unsigned *lacks = &g.nodes[(leader + 1) % 3].lacks, *others = &g.nodes[(leader + 2) % 3].lacks;
    for (uint32_t i = 0; i < 3; i++) g.nodes[i].env.grace_ms = SHARD_NODES_WAIT_MS;
    atomic_store(lacks, PEER_TAIL_FULL);
    struct err err = wait_write(OMEN_EBUSY, false);
    ck_assert_ptr_nonnull(strstr(err.message, "index.tail_rows_max"));
    ck_assert_uint_gt(err.retry_after_ms, 0);
    atomic_store(lacks, PEER_MEMORY_FULL); /* the worse of two counts */
    atomic_store(others, PEER_TAIL_FULL);
    err = wait_write(OMEN_ENOMEM, false);
    ck_assert_ptr_nonnull(strstr(err.message, "memory budget of node"));
    (void)wait_write(OMEN_OK, true);
    atomic_store(others, 0);
    atomic_store(lacks, 0);
    (void)wait_write(OMEN_OK, false);
}
END_TEST

START_TEST(a_leader_whose_clock_is_off_hands_over_and_takes_no_writes)
{
    shard_nodes_start(&g, 3);
    (void)shard_nodes_upsert(&g, 1, no_op());
    uint32_t off = shard_nodes_leader(&g, UINT32_MAX);
    for (uint32_t i = 0; i < 3; i++) { /* nobody is fit: it leads, and says why it takes nothing */
        atomic_store(&g.nodes[i].lacks, PEER_CLOCK_OFF);
        atomic_store(&g.nodes[i].env.clock_skew_ms, -700);
        atomic_store(&g.nodes[i].env.clock_off, true);
    }
    struct err err = wait_write(OMEN_EBUSY, true);
    ck_assert_ptr_nonnull(strstr(err.message, "clock of this node is 700 ms behind"));
    ck_assert_uint_gt(err.retry_after_ms, 0);
    for (uint32_t i = 0; i < 3; i++) {
        if (i == off) continue;
        atomic_store(&g.nodes[i].env.clock_off, false);
        atomic_store(&g.nodes[i].lacks, 0);
    }
    (void)shard_nodes_upsert(&g, 2, no_op());
    ck_assert_uint_ne(shard_nodes_leader(&g, UINT32_MAX), off);
    atomic_store(&g.nodes[off].env.clock_off, false);
    atomic_store(&g.nodes[off].lacks, 0);
}
END_TEST

static enum omen_err no_room(void *arg, enum vfs_hook_op op, struct err *err)
{
    if (op != VFS_HOOK_ALLOCATE || !atomic_load((_Atomic bool *)arg)) return OMEN_OK;
    return err_set(err, OMEN_EFULL, NULL, "told to be full");
}

/* All disks are full, and where the leader is not even what was committed before finds room: it can say nothing that
 * is true, those that applied it can. */
START_TEST(a_leader_without_room_for_what_is_committed_gives_way_to_a_full_disk_too)
{
    static struct vfs_hook hooks[3];
    static _Atomic bool full[3];
    struct shard_host_status s = { 0 };
    for (uint32_t i = 0; i < 3; i++) {
        vfs_hook_init(&hooks[i], vfs_posix(), no_room, &full[i]);
        g.nodes[i].vfs = &hooks[i].base;
    }
    shard_nodes_start(&g, 3);
    uint64_t last = shard_nodes_upsert(&g, 1, no_op());
    uint32_t leader = shard_nodes_leader(&g, UINT32_MAX), late = (leader + 1) % 3;
    shard_node_wait_applied(&g.nodes[late], last);
    shard_nodes_hold_apply(&g.nodes[late], true);
    for (uint32_t i = 0; i < 4; i++)
        last = shard_nodes_fill(&g, 1000 + 100 * i, 20, 10000); /* chunks of 64 KiB */
    shard_node_wait_applied(&g.nodes[(leader + 2) % 3], last);
    atomic_store(&full[late], true);
    shard_nodes_hold_apply(&g.nodes[late], false);
    for (uint32_t ms = 0; !s.replica.waits; ms++) {
        ck_assert_uint_lt(ms, SHARD_NODES_WAIT_MS);
        usleep(1000);
        shard_host_status(g.nodes[late].shard, &s);
    }
    for (uint32_t i = 0; i < 3; i++) atomic_store(&g.nodes[i].lacks, PEER_DISK_FULL);
    ck_assert_int_eq(shard_node_change(&g.nodes[leader], '>', g.nodes[late].replica_id, 0), OMEN_OK);
    uint32_t next = shard_nodes_leader(&g, late);
    ck_assert_uint_eq(shard_node_count(&g.nodes[next], CONSISTENCY_LINEARIZABLE, 0, NULL), 81);
    (void)wait_write(OMEN_OK, true); /* deletes go on */
    for (uint32_t i = 0; i < 3; i++) atomic_store(&g.nodes[i].lacks, 0);
    atomic_store(&full[late], false);
    shard_node_wait_applied(&g.nodes[late], last);
}
END_TEST

/* A follower that answers but takes nothing: its machine stands still and its queue is full. */
START_TEST(writes_wait_for_a_replica_that_is_behind_but_not_for_ever)
{
    g.host.apply_backlog_bytes_max = 1;
    shard_nodes_start(&g, 3);
    for (uint32_t i = 0; i < 3; i++) {
        g.nodes[i].env.behind_bytes = 1u << 20;
        g.nodes[i].env.grace_ms = 2000;
    }
    uint64_t last = shard_nodes_upsert(&g, 1, no_op());
    struct shard_node *slow = &g.nodes[(shard_nodes_leader(&g, UINT32_MAX) + 1) % 3];
    shard_node_wait_applied(slow, last);
    shard_nodes_hold_apply(slow, true);
    enum omen_err rc = OMEN_OK;
    for (uint32_t i = 0; i < 3000 && rc != OMEN_EBUSY; i++) {
        (void)shard_nodes_fill_once(&g, 1000, 10, 10000, &rc);
        ck_assert_msg(rc == OMEN_OK || rc == OMEN_EBUSY, "%s", err_name(rc));
    }
    ck_assert_int_eq(rc, OMEN_EBUSY);
    (void)wait_write(OMEN_OK, false); /* after the grace time the other two go on */
    shard_nodes_hold_apply(slow, false);
    last = shard_nodes_upsert(&g, 2, no_op());
    shard_node_wait_applied(slow, last);
}
END_TEST

START_TEST(a_leader_without_one_follower_stays_small)
{
    g.host.cluster.trailing_bytes = 256u << 10;
    g.host.checkpoint_log_bytes = 1u << 20;
    g.host.log.bytes_max = 8u << 20; /* what bounds it when checkpoints lag on a slow disk */
    shard_nodes_start(&g, 3);
    (void)shard_nodes_upsert(&g, 1, no_op());
    uint32_t leader = shard_nodes_leader(&g, UINT32_MAX);
    shard_node_down(&g, (leader + 1) % 3);
    for (uint32_t i = 0; i < 80; i++) (void)shard_nodes_fill(&g, 1000 + 100 * i, 100, 6000); /* 48 MB */
    struct shard_host_status s;
    shard_host_status(g.nodes[shard_nodes_leader(&g, UINT32_MAX)].shard, &s);
    ck_assert_uint_lt(s.replica.log_bytes,
            15u << 20); /* half as much again, a segment, what is in flight, what trails */
    ck_assert_uint_lt(s.replica.inflight_bytes, 1u << 20);
}
END_TEST

/* ---- damage ---- */

/* A byte in the middle of the first chunk of a node's replica changes on the disk. */
static void flip_byte(uint32_t i)
{
    char path[500];
    struct vfs_file *f;
    uint8_t byte;
    snprintf(path, sizeof path, "%s/%u-%u/g1/stream/0000000000000001.chunk", g.nodes[i].dir,
            SHARD_NODES_GROUP, (unsigned)g.nodes[i].replica_id);
    ck_assert_int_eq(vfs_open(vfs_posix(), path, VFS_WRITE, &f, NULL), OMEN_OK);
    ck_assert_int_eq(vfs_pread(f, &byte, 1, 20000, NULL), OMEN_OK);
    byte ^= 4;
    ck_assert_int_eq(vfs_pwrite(f, &byte, 1, 20000, NULL), OMEN_OK);
    vfs_close(f);
}

static void scrub(uint32_t i)
{
    struct scrub_result result;
    while (!shard_host_scrub(g.nodes[i].shard, 64u << 20, &result)) continue;
}

static void serves_nothing(uint32_t i)
{
    enum omen_err rc;
    struct shard_call call;
    for (int c = CONSISTENCY_SESSION; c <= CONSISTENCY_LINEARIZABLE; c++) {
        (void)shard_node_count(&g.nodes[i], (enum consistency)c, 0, &rc);
        ck_assert_int_eq(rc, OMEN_EUNAVAILABLE);
    }
    rc = shard_node_upsert(&g.nodes[i], 7, no_op(), &call);
    ck_assert_msg(rc == OMEN_ENOTLEADER, "%s", err_name(rc));
}

static void wait_quarantine(uint32_t i)
{
    char path[500];
    struct shard_host_status s;
    bool there = false;
    snprintf(path, sizeof path, "%s/%u-%u/DAMAGED", g.nodes[i].dir, SHARD_NODES_GROUP,
            (unsigned)g.nodes[i].replica_id);
    for (uint32_t tries = 0; tries < SHARD_NODES_WAIT_MS && !there; tries++, usleep(1000))
        ck_assert_int_eq(vfs_exists(vfs_posix(), path, &there, NULL), OMEN_OK);
    shard_host_status(g.nodes[i].shard, &s);
    ck_assert(there && s.damaged && !s.ready);
    ck_assert_ptr_nonnull(strstr(s.trouble, ".chunk"));
}

START_TEST(a_leader_found_damaged_gives_way_and_serves_nothing)
{
    shard_nodes_start(&g, 3);
    uint64_t last = 0;
    for (uint32_t i = 0; i < 5; i++) last = shard_nodes_fill(&g, 1 + 100 * i, 100, 500);
    uint32_t leader = shard_nodes_leader(&g, UINT32_MAX);
    uint32_t changes = atomic_load(&g.nodes[leader].changes);
    flip_byte(leader);
    scrub(leader);
    serves_nothing(leader);
    wait_quarantine(leader);
    ck_assert_uint_gt(atomic_load(&g.nodes[leader].changes), changes);
    uint32_t next = shard_nodes_leader(&g, leader);
    ck_assert_uint_ne(next, leader);
    last = shard_nodes_upsert(&g, 501, no_op());
    ck_assert_uint_eq(shard_node_count(&g.nodes[next], CONSISTENCY_SESSION, last, NULL), 501);
    /* It stays so over a restart of its node, which starts all the same. */
    shard_node_down(&g, leader);
    shard_nodes_reopen(&g, leader);
    wait_quarantine(leader);
    serves_nothing(leader);
    ck_assert_ptr_null(shard_host_replica(g.nodes[leader].shard));
}
END_TEST

START_TEST(a_replica_damaged_while_its_node_was_down_is_replaced_on_the_same_node)
{
    shard_nodes_start(&g, 3);
    uint64_t last = 0;
    for (uint32_t i = 0; i < 5; i++) last = shard_nodes_fill(&g, 1 + 100 * i, 100, 500);
    for (uint32_t i = 0; i < 3; i++) shard_node_wait_applied(&g.nodes[i], last);
    uint32_t bad = (shard_nodes_leader(&g, UINT32_MAX) + 1) % 3;
    shard_nodes_checkpoint(&g);
    shard_node_down(&g, bad);
    flip_byte(bad);
    shard_nodes_reopen(&g, bad);
    wait_quarantine(bad);
    serves_nothing(bad);
    /* A new replica beside it; the old one goes first, a node has one replica of a group. */
    uint32_t leader = shard_nodes_leader(&g, UINT32_MAX);
    uint64_t old = g.nodes[bad].replica_id;
    struct shard_host *gone = g.nodes[bad].shard;
    pthread_mutex_lock(&g.nodes[bad].lock);
    g.nodes[bad].shard = NULL;
    pthread_mutex_unlock(&g.nodes[bad].lock);
    shard_host_retire(gone, OMEN_ENOTFOUND);
    shard_host_drop(gone);
    shard_node_open(&g, bad, 9, NULL, 0);
    ck_assert_int_eq(shard_node_change(&g.nodes[leader], '-', old, 0), OMEN_OK);
    ck_assert_int_eq(shard_node_change(&g.nodes[leader], '+', 9, g.nodes[bad].node_id), OMEN_OK);
    ck_assert_int_eq(shard_node_change(&g.nodes[leader], '=', 9, REPLICA_VOTER), OMEN_OK);
    last = shard_nodes_upsert(&g, 501, no_op());
    for (uint32_t i = 0; i < 3; i++) shard_node_wait_ready(&g.nodes[i]);
    counts_are(501, last);
}
END_TEST

/* ---- catching up ---- */

/* The log of the first two replicas is trimmed behind `points` points. */
static uint64_t trimmed(uint32_t voters, uint32_t points, uint32_t bytes)
{
    uint64_t last = 0;
    g.host.cluster.trailing_bytes = 0;
    shard_nodes_start(&g, voters);
    for (uint32_t i = 0; i < points; i += 100) last = shard_nodes_fill(&g, i + 1, 100, bytes);
    for (uint32_t i = 0; i < voters; i++) shard_node_wait_applied(&g.nodes[i], last);
    shard_nodes_checkpoint(&g);
    for (uint32_t i = 0; i < voters; i++) {
        struct replica_status s = { 0 };
        for (uint32_t tries = 0; tries < SHARD_NODES_WAIT_MS / 2 && s.base_sequence < last;
                tries++, usleep(2000))
            replica_status(shard_host_replica(g.nodes[i].shard), &s);
        ck_assert_uint_ge(s.base_sequence, last);
    }
    return last;
}

static void join_third_as(uint64_t replica_id)
{
    uint32_t leader = shard_nodes_leader(&g, UINT32_MAX);
    shard_node_open(&g, 2, replica_id, NULL, 0);
    ck_assert_int_eq(shard_node_change(&g.nodes[leader], '+', replica_id, 3), OMEN_OK);
    ck_assert_int_eq(shard_node_change(&g.nodes[leader], '=', replica_id, REPLICA_STANDBY), OMEN_OK);
}

/* The directory of the store in use is there, and that of no other: raft may have asked for a base twice in a row. */
static void store_is_on_disk(uint32_t i)
{
    char path[500];
    bool there = false;
    snprintf(path, sizeof path, "%s/%u-%u/g%u/CHECKPOINT", g.nodes[i].dir, SHARD_NODES_GROUP,
            (unsigned)g.nodes[i].replica_id, g.nodes[i].shard->group->generation);
    ck_assert_int_eq(vfs_exists(vfs_posix(), path, &there, NULL), OMEN_OK);
    ck_assert_msg(there, "%s is gone", path);
}

static void join_third(void) { join_third_as(3); }

static void drop_third(void)
{
    struct shard_host *gone = g.nodes[2].shard;
    pthread_mutex_lock(&g.nodes[2].lock);
    g.nodes[2].shard = NULL;
    pthread_mutex_unlock(&g.nodes[2].lock);
    shard_host_retire(gone, OMEN_ENOTFOUND);
    shard_host_drop(gone);
    uint32_t leader = shard_nodes_leader(&g, UINT32_MAX);
    ck_assert_int_eq(shard_node_change(&g.nodes[leader], '-', g.nodes[2].replica_id, 0), OMEN_OK);
}

START_TEST(a_new_replica_of_a_trimmed_log_copies_a_checkpoint_and_goes_on)
{
    uint64_t last = trimmed(2, 1000, 200);
    join_third();
    shard_node_wait_ready(&g.nodes[2]);
    ck_assert_uint_eq(shard_node_count(&g.nodes[2], CONSISTENCY_SESSION, last, NULL), 1000);
    ck_assert_int_eq(shard_node_change(&g.nodes[shard_nodes_leader(&g, UINT32_MAX)], '=', 3, REPLICA_VOTER),
            OMEN_OK);
    last = shard_nodes_fill(&g, 5001, 50, 10);
    counts_are(1050, last);
    /* And it opens from there. */
    shard_node_down(&g, 2);
    last = shard_nodes_fill(&g, 6001, 50, 10);
    shard_nodes_reopen(&g, 2);
    shard_node_wait_ready(&g.nodes[2]);
    counts_are(1100, last);
}
END_TEST

START_TEST(a_replica_that_was_away_too_long_copies_a_checkpoint)
{
    uint64_t last = trimmed(3, 300, 100);
    uint32_t away = (shard_nodes_leader(&g, UINT32_MAX) + 1) % 3;
    for (uint32_t round = 0; round < 2; round++) { /* generations 2 and 3 */
        shard_node_down(&g, away);
        for (uint32_t i = 0; i < 5; i++) last = shard_nodes_fill(&g, 1000 * (round + 1) + 100 * i, 100, 100);
        for (uint32_t i = 0; i < 3; i++)
            if (i != away) shard_node_wait_applied(&g.nodes[i], last);
        shard_nodes_checkpoint(&g);
        usleep(300000);
        shard_nodes_reopen(&g, away);
        shard_node_wait_applied(&g.nodes[away], last);
        shard_node_wait_ready(&g.nodes[away]);
        counts_are(300 + 500 * (round + 1), last);
    }
}
END_TEST

START_TEST(a_copy_of_a_damaged_source_is_refused_and_another_one_taken)
{
    uint64_t last = trimmed(2, 1000, 500);
    uint32_t leader = shard_nodes_leader(&g, UINT32_MAX);
    flip_byte(leader);
    join_third();
    shard_node_wait_ready(&g.nodes[2]);
    ck_assert_uint_eq(shard_node_count(&g.nodes[2], CONSISTENCY_SESSION, last, NULL), 1000);
}
END_TEST

START_TEST(a_copy_goes_on_where_it_was_broken_off)
{
    uint64_t last = trimmed(2, 4000, 12000); /* 48 MB */
    g.throttle = 20u << 20;
    join_third();
    struct shard_host_status s;
    uint64_t before = 0;
    for (uint32_t i = 0; i < SHARD_NODES_WAIT_MS && before < (30u << 20); i++, usleep(1000)) {
        shard_host_status(g.nodes[2].shard, &s);
        before = s.fetch_done;
    }
    ck_assert_uint_ge(before, 30u << 20);
    ck_assert(s.fetching && !s.ready);
    shard_node_close(&g, 2);
    g.throttle = 1u << 20; /* the rest would take half a minute from the beginning */
    shard_node_open(&g, 2, 3, NULL, 0);
    for (uint32_t i = 0; i < SHARD_NODES_WAIT_MS; i++, usleep(1000)) {
        shard_host_status(g.nodes[2].shard, &s);
        if (s.fetch_total > 0) break;
    }
    ck_assert_uint_ge(s.fetch_done, 16u << 20);
    g.throttle = 0;
    shard_node_wait_ready(&g.nodes[2]);
    ck_assert_uint_eq(shard_node_count(&g.nodes[2], CONSISTENCY_SESSION, last, NULL), 4000);
}
END_TEST

/* What is written while the copy is made comes with later rounds, and the log reaches back to the last of them. */
START_TEST(a_copy_of_a_shard_that_is_written_to_ends)
{
    uint64_t last = trimmed(2, 4000, 12000); /* 48 MB */
    g.throttle = 24u << 20;
    join_third();
    struct shard_host_status s = { 0 };
    uint32_t rounds = 0;
    for (; rounds < 600 && !s.ready; rounds++) {
        last = shard_nodes_fill(&g, 10000 + 20 * rounds, 20, 6000);
        if (rounds % 8 == 0) shard_nodes_checkpoint(&g); /* trims the log behind the copy, as far as it may */
        usleep(20000);
        shard_host_status(g.nodes[2].shard, &s);
    }
    ck_assert_msg(s.ready, "not ready after %u writes: \"%s\"", rounds, s.trouble);
    shard_node_wait_applied(&g.nodes[2], last);
    ck_assert_uint_eq(shard_node_count(&g.nodes[2], CONSISTENCY_SESSION, last, NULL), 4000 + 20 * rounds);
    store_is_on_disk(2);
}
END_TEST

/* The joining node's disk fails from its n-th change on; then its process is begun again with a good one. */
static _Atomic uint32_t changes_left;

static enum omen_err cut(void *arg, enum vfs_hook_op op, struct err *err)
{
    uint32_t left = atomic_load(&changes_left);
    if (left == 0) return err_set(err, OMEN_EIO, NULL, "the power is gone");
    if (left != UINT32_MAX) atomic_fetch_sub(&changes_left, 1);
    return OMEN_OK;
}

START_TEST(a_crash_at_any_line_of_a_copy_is_healed)
{
    static struct vfs_hook hook;
    vfs_hook_init(&hook, vfs_posix(), cut, NULL);
    g.nodes[2].vfs = &hook.base;
    atomic_store(&changes_left, UINT32_MAX);
    uint64_t last = trimmed(2, 300, 200);
    join_third();
    shard_node_wait_ready(&g.nodes[2]);
    for (uint32_t n = 3; n < 100; n += 9) {
        drop_third();
        atomic_store(&changes_left, UINT32_MAX);
        join_third_as(100 + n);
        atomic_store(&changes_left, n);
        for (uint32_t i = 0; i < 400 && atomic_load(&changes_left) != 0; i++) usleep(2000);
        usleep(50000);
        shard_node_close(&g, 2);
        atomic_store(&changes_left, UINT32_MAX);
        shard_node_open(&g, 2, 100 + n, NULL, 0);
        shard_node_wait_applied(&g.nodes[2], last);
        shard_node_wait_ready(&g.nodes[2]);
        ck_assert_uint_eq(shard_node_count(&g.nodes[2], CONSISTENCY_SESSION, last, NULL), 300);
    }
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
    Suite *s = suite_create("shard_group");
    TCase *tc = tcase("writes");
    tcase_add_test(tc, what_the_leader_took_is_read_at_every_replica_with_its_token);
    tcase_add_test(tc, a_follower_refuses_writes_and_names_the_leader);
    tcase_add_test(tc, a_write_retried_at_the_next_leader_is_applied_once);
    tcase_add_test(tc, log_time_never_goes_back_over_leaders);
    suite_add_tcase(s, tc);
    tc = tcase("by filter");
    tcase_add_test(tc, a_write_by_filter_goes_on_at_the_next_leader_without_a_client);
    suite_add_tcase(s, tc);
    tc = tcase("reads");
    tcase_add_test(tc, a_linearizable_read_anywhere_sees_what_was_acknowledged_before);
    tcase_add_test(tc, without_a_leader_only_eventual_reads_are_answered);
    tcase_add_test(tc, a_linearizable_read_does_not_wait_for_a_leader_that_is_gone);
    tcase_add_test(tc, a_replica_that_has_nothing_yet_answers_nothing);
    suite_add_tcase(s, tc);
    tc = tcase("members");
    tcase_add_test(tc, a_replica_joins_reads_votes_and_the_old_one_is_dropped);
    tcase_add_test(tc, all_nodes_down_lose_nothing);
    tcase_add_test(tc, after_a_restart_of_all_a_read_without_a_token_misses_nothing);
    suite_add_tcase(s, tc);
    tc = tcase("admission");
    tcase_add_test(tc, a_full_disk_at_a_replica_refuses_writes_and_a_minority_not_for_long);
    tcase_add_test(tc, a_replica_without_memory_or_with_a_long_tail_holds_writes_back);
    tcase_add_test(tc, a_leader_whose_clock_is_off_hands_over_and_takes_no_writes);
    tcase_add_test(tc, a_leader_without_room_for_what_is_committed_gives_way_to_a_full_disk_too);
    tcase_add_test(tc, writes_wait_for_a_replica_that_is_behind_but_not_for_ever);
    tcase_add_test(tc, a_leader_without_one_follower_stays_small);
    suite_add_tcase(s, tc);
    tc = tcase("damage");
    tcase_add_test(tc, a_leader_found_damaged_gives_way_and_serves_nothing);
    tcase_add_test(tc, a_replica_damaged_while_its_node_was_down_is_replaced_on_the_same_node);
    suite_add_tcase(s, tc);
    tc = tcase("catching up");
    tcase_add_test(tc, a_new_replica_of_a_trimmed_log_copies_a_checkpoint_and_goes_on);
    tcase_add_test(tc, a_replica_that_was_away_too_long_copies_a_checkpoint);
    tcase_add_test(tc, a_copy_of_a_damaged_source_is_refused_and_another_one_taken);
    tcase_add_test(tc, a_copy_goes_on_where_it_was_broken_off);
    tcase_add_test(tc, a_copy_of_a_shard_that_is_written_to_ends);
    tcase_add_test(tc, a_crash_at_any_line_of_a_copy_is_healed);
    suite_add_tcase(s, tc);
    SRunner *runner = srunner_create(s);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}
