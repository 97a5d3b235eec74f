/* A shard over the real store and log: batching, admission, tokens, barriers, deadlines, recovery; and its node. */
#include "common/err.h"

#include <check.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/mem.h"
#include "tests/support/doc_text.h"
#include "tests/support/one_node.h"

/* ---- tests ---- */

START_TEST(acknowledged_points_are_there_after_a_restart)
{
    ck_assert_int_eq(catalog(CATALOG_CREATE, "docs", 1, METRIC_L2), OMEN_OK);
    uint64_t shard = shard_of("docs");
    struct shard_call call;
    for (uint64_t id = 1; id <= 50; id++) {
        ck_assert_int_eq(upsert(shard, id, (struct op_id){ 0, 0, 0 }, &call), OMEN_OK);
        ck_assert_uint_eq(call.out.write.affected, 1);
        ck_assert_uint_eq(call.sequence, id);
    }
    ck_assert_uint_eq(count_points(shard, CONSISTENCY_SESSION, 50), 50);
    node_down();
    node_up();
    ck_assert_uint_eq(shard_of("docs"), shard);
    ck_assert_uint_eq(count_points(shard, CONSISTENCY_LINEARIZABLE, 0), 50);
}
END_TEST

#define WRITERS 32
#define WRITES_EACH 20

static uint64_t writers_shard;

static void *writer_main(void *arg)
{
    uint64_t first = (uint64_t)(uintptr_t)arg * WRITES_EACH + 1;
    for (uint64_t i = 0; i < WRITES_EACH; i++) {
        struct shard_call call;
        ck_assert_int_eq(upsert(writers_shard, first + i,
                                 (struct op_id){ first, i + 1, clock_wall_ms(clock_system()) }, &call),
                OMEN_OK);
        ck_assert_uint_ge(count_points(writers_shard, CONSISTENCY_SESSION, call.sequence), i + 1);
    }
    return NULL;
}

START_TEST(waiting_writers_share_entries_and_none_is_lost)
{
    ck_assert_int_eq(catalog(CATALOG_CREATE, "docs", 1, METRIC_L2), OMEN_OK);
    writers_shard = shard_of("docs");
    pthread_t threads[WRITERS];
    for (uintptr_t i = 0; i < WRITERS; i++) pthread_create(&threads[i], NULL, writer_main, (void *)i);
    for (int i = 0; i < WRITERS; i++) pthread_join(threads[i], NULL);
    ck_assert_uint_eq(count_points(writers_shard, CONSISTENCY_LINEARIZABLE, 0), WRITERS * WRITES_EACH);
    uint64_t entries = metric_value("omendb_node_entries_total");
    ck_assert_uint_eq(metric_value("omendb_node_entry_requests_total"), WRITERS * WRITES_EACH);
    ck_assert_uint_lt(entries, WRITERS * WRITES_EACH);
    ck_assert_uint_eq(metric_value("omendb_node_write_inflight_bytes"), 0);
}
END_TEST

START_TEST(same_op_id_is_applied_once)
{
    ck_assert_int_eq(catalog(CATALOG_CREATE, "docs", 1, METRIC_L2), OMEN_OK);
    uint64_t shard = shard_of("docs");
    struct op_id op_id = { 7, 1, clock_wall_ms(clock_system()) };
    struct shard_call first, again;
    ck_assert_int_eq(upsert(shard, 1, op_id, &first), OMEN_OK);
    ck_assert(!first.out.write.duplicate);
    node_down();
    node_up();
    ck_assert_int_eq(upsert(shard, 1, op_id, &again), OMEN_OK);
    ck_assert(again.out.write.duplicate);
    ck_assert_uint_eq(again.sequence, first.sequence);
}
END_TEST

START_TEST(op_id_from_a_clock_ahead_is_told_both_times)
{
    char ahead[32];
    struct shard_call call;
    ck_assert_int_eq(catalog(CATALOG_CREATE, "docs", 1, METRIC_L2), OMEN_OK);
    struct op_id op_id = { 7, 1, clock_wall_ms(clock_system()) + 3600000 };
    ck_assert_int_eq(upsert(collection("docs").shards[0].shard_id, 1, op_id, &call), OMEN_EINVAL);
    ck_assert_str_eq(call.err.field, "op_id[2]");
    snprintf(ahead, sizeof ahead, "%llu", (unsigned long long)op_id.issue_ms);
    ck_assert_ptr_nonnull(strstr(call.err.message, ahead));
    ck_assert_ptr_nonnull(strstr(call.err.message, "120000 ms"));
    release(&call);
}
END_TEST

START_TEST(cosine_vectors_come_back_normalised_and_queries_are_too)
{
    ck_assert_int_eq(catalog(CATALOG_CREATE, "docs", 1, METRIC_COSINE), OMEN_OK);
    uint64_t shard = shard_of("docs");
    struct shard_call call;
    ck_assert_int_eq(upsert(shard, 3, (struct op_id){ 0, 0, 0 }, &call), OMEN_OK);
    uint8_t raw[4 * DIM + 1]; /* unaligned on purpose */
    float vector[DIM] = { 300, 100 };
    memcpy(raw + 1, vector, sizeof vector);
    struct point_op op = { .kind = POINT_UPSERT, .id = { 0, 4, 0 } };
    op.vectors[0] = (const float *)(const void *)(raw + 1);
    call = call_of(CALL_WRITE, shard);
    call.in.write.ops = &op;
    call.in.write.count = 1;
    ck_assert_int_eq(run(&call), OMEN_OK);
    release(&call);
    struct search_params search = { .query = vector, .k = 5, .selection = { .vector_mask = 1 } };
    call = call_of(CALL_SEARCH, shard);
    call.in.search.searches = &search;
    call.in.search.count = 1;
    ck_assert_int_eq(run(&call), OMEN_OK);
    ck_assert_uint_eq(call.out.search.counts[0], 2);
    for (int i = 0; i < 2; i++) {
        ck_assert_float_eq_tol(call.out.search.hits[0][i].score, 1, 1e-6f);
        ck_assert_float_eq_tol(call.out.search.hits[0][i].point.vectors[0][0], 0.9486833f, 1e-6f);
    }
    ck_assert_uint_gt(call.engine_ns, 0);
    release(&call);
}
END_TEST

START_TEST(read_waits_for_its_token_and_gives_up_at_the_deadline)
{
    ck_assert_int_eq(catalog(CATALOG_CREATE, "docs", 1, METRIC_L2), OMEN_OK);
    uint64_t shard = shard_of("docs");
    struct shard_call read = call_of(CALL_COUNT, shard), late = read, write;
    struct waiter read_waiter, late_waiter;
    read.token_sequence = 1;
    late.token_sequence = 1000;
    late.deadline_ns = clock_monotonic_ns(clock_system()) + 50000000;
    start(&read, &read_waiter);
    start(&late, &late_waiter);
    ck_assert(!finished(&read_waiter));
    ck_assert_int_eq(upsert(shard, 1, (struct op_id){ 0, 0, 0 }, &write), OMEN_OK);
    finish(&read_waiter);
    ck_assert_int_eq(read.code, OMEN_OK);
    ck_assert_uint_eq(read.out.count.points, 1);
    finish(&late_waiter);
    ck_assert_int_eq(late.code, OMEN_EDEADLINE);
    release(&read);
    release(&late);
}
END_TEST

/* A call holds its view until it is released, which may have to wait for other shards' calls that need the same threads: so
 * no thread waits for a view. */
START_TEST(reads_beyond_the_views_of_a_shard_are_told_to_come_again)
{
    enum { CALLS = 1100 };
    struct shard_call *calls = mem_must_calloc(CALLS, sizeof *calls), again = { .kind = CALL_COUNT };
    uint32_t busy = 0;
    ck_assert_int_eq(catalog(CATALOG_CREATE, "docs", 1, METRIC_L2), OMEN_OK);
    again.shard_id = collection("docs").shards[0].shard_id;
    for (int i = 0; i < CALLS; i++) {
        calls[i].kind = CALL_COUNT;
        calls[i].shard_id = again.shard_id;
        enum omen_err rc = run(&calls[i]);
        ck_assert(rc == OMEN_OK || rc == OMEN_EBUSY);
        busy += rc == OMEN_EBUSY;
        if (rc == OMEN_EBUSY) ck_assert_uint_gt(calls[i].err.retry_after_ms, 0);
    }
    ck_assert_uint_gt(busy, 0);
    ck_assert_uint_lt(busy, CALLS / 2);
    for (int i = 0; i < CALLS; i++) release(&calls[i]);
    ck_assert_int_eq(run(&again), OMEN_OK);
    release(&again);
    mem_free(calls);
}
END_TEST

START_TEST(past_deadline_is_not_begun)
{
    ck_assert_int_eq(catalog(CATALOG_CREATE, "docs", 1, METRIC_L2), OMEN_OK);
    uint64_t shard = shard_of("docs");
    float vector[DIM];
    struct point_op op = upsert_op(1, vector);
    struct shard_call call = call_of(CALL_WRITE, shard);
    call.in.write.ops = &op;
    call.in.write.count = 1;
    call.deadline_ns = 1;
    ck_assert_int_eq(run(&call), OMEN_EDEADLINE);
    release(&call);
    call = call_of(CALL_COUNT, shard);
    call.deadline_ns = 1;
    ck_assert_int_eq(run(&call), OMEN_EDEADLINE);
    release(&call);
    ck_assert_uint_eq(count_points(shard, CONSISTENCY_LINEARIZABLE, 0), 0);
}
END_TEST

START_TEST(full_disk_refuses_writes_with_the_reason_and_takes_deletes)
{
    ck_assert_int_eq(catalog(CATALOG_CREATE, "docs", 1, METRIC_L2), OMEN_OK);
    uint64_t shard = shard_of("docs");
    struct shard_call call;
    ck_assert_int_eq(upsert(shard, 1, (struct op_id){ 0, 0, 0 }, &call), OMEN_OK);
    node_down();
    options.disk_min_free_percent = 100.5; /* no disk has that */
    node_up();
    const struct shard_service *service = node_service(node);
    ck_assert_ptr_nonnull(service->not_ready(service->self));
    ck_assert_int_eq(upsert(shard, 2, (struct op_id){ 0, 0, 0 }, &call), OMEN_EFULL);
    ck_assert_ptr_nonnull(strstr(call.err.message, "disk.min_free_percent"));
    ck_assert_int_eq(catalog(CATALOG_CREATE, "more", 1, METRIC_L2), OMEN_EFULL);
    struct point_op op = { .kind = POINT_DELETE, .id = { 0, 1, 0 } };
    call = call_of(CALL_WRITE, shard);
    call.in.write.ops = &op;
    call.in.write.count = 1;
    ck_assert_int_eq(run(&call), OMEN_OK);
    ck_assert_uint_eq(call.out.write.affected, 1);
    release(&call);
    ck_assert_uint_eq(count_points(shard, CONSISTENCY_LINEARIZABLE, 0), 0);
    ck_assert_int_eq(catalog(CATALOG_DROP, "docs", 0, METRIC_L2), OMEN_OK);
}
END_TEST

START_TEST(writes_over_the_admission_limit_are_told_when_to_retry)
{
    ck_assert_int_eq(catalog(CATALOG_CREATE, "docs", 1, METRIC_L2), OMEN_OK);
    uint64_t shard = shard_of("docs");
    node_down();
    options.shard_inflight_bytes_max = 2000;
    node_up();
    enum { CALLS = 400 };
    static struct shard_call calls[CALLS];
    static struct waiter waiters[CALLS];
    static float vectors[CALLS][DIM];
    static struct point_op ops[CALLS];
    for (int i = 0; i < CALLS; i++) {
        ops[i] = upsert_op((uint64_t)i + 1, vectors[i]);
        calls[i] = call_of(CALL_WRITE, shard);
        calls[i].in.write.ops = &ops[i];
        calls[i].in.write.count = 1;
        start(&calls[i], &waiters[i]);
    }
    uint64_t done = 0, busy = 0;
    for (int i = 0; i < CALLS; i++) {
        finish(&waiters[i]);
        if (calls[i].code == OMEN_OK) done++;
        if (calls[i].code == OMEN_EBUSY) {
            busy++;
            ck_assert_uint_gt(calls[i].err.retry_after_ms, 0);
        }
        release(&calls[i]);
    }
    ck_assert_uint_eq(done + busy, CALLS);
    ck_assert_uint_gt(busy, 0);
    ck_assert_uint_gt(done, 0);
    ck_assert_uint_eq(count_points(shard, CONSISTENCY_LINEARIZABLE, 0), done);
}
END_TEST

/* What the index has not taken in is bounded: writes wait for it, deletes and searches do not, and nothing is lost. */
START_TEST(a_long_tail_slows_writes_down_until_it_is_indexed)
{
    enum { POINTS = 30 };
    node_down();
    options.index_tail_rows_max = 1;
    options.host.checkpoint_interval_ns = 3600000000000; /* the index asks for what it needs */
    node_up();
    ck_assert_int_eq(catalog(CATALOG_CREATE, "docs", 1, METRIC_L2), OMEN_OK);
    uint64_t shard = shard_of("docs"), busy = 0;
    for (uint64_t done = 0; done < POINTS;) {
        struct shard_call call;
        if (upsert(shard, done + 1, (struct op_id){ 0 }, &call) == OMEN_OK) {
            done++;
            ck_assert_uint_eq(count_points(shard, CONSISTENCY_LINEARIZABLE, 0), done);
            continue;
        }
        ck_assert_int_eq(call.code, OMEN_EBUSY);
        ck_assert_uint_gt(call.err.retry_after_ms, 0);
        ck_assert_ptr_nonnull(strstr(call.err.message, "index.tail_rows_max"));
        busy++;
        struct point_op gone = { .kind = POINT_DELETE, .id = { 0, POINTS + 1, POINT_ID_U64 } };
        call = call_of(CALL_WRITE, shard);
        call.in.write.ops = &gone;
        call.in.write.count = 1;
        ck_assert_int_eq(run(&call), OMEN_OK);
        release(&call);
        usleep(10000);
    }
    ck_assert_uint_gt(busy, 0);
}
END_TEST

/* A budget that not even the tables of the points fit: said when writing; what makes room, and reads, go on. */
START_TEST(a_memory_budget_that_is_used_up_refuses_writes)
{
    node_down();
    options.memory_budget = 1;
    node_up();
    ck_assert_int_eq(catalog(CATALOG_CREATE, "docs", 1, METRIC_L2), OMEN_OK);
    uint64_t shard = shard_of("docs"), done = 0;
    struct shard_call call;
    while (upsert(shard, done + 1, (struct op_id){ 0 }, &call) == OMEN_OK)
        done++; /* until it was looked at */
    ck_assert_int_eq(call.code, OMEN_ENOMEM);
    ck_assert_ptr_nonnull(strstr(call.err.message, "memory.budget"));
    ck_assert_uint_eq(count_points(shard, CONSISTENCY_LINEARIZABLE, 0), done);
    struct point_op gone = { .kind = POINT_DELETE, .id = { 0, 1, POINT_ID_U64 } };
    call = call_of(CALL_WRITE, shard);
    call.in.write.ops = &gone;
    call.in.write.count = 1;
    ck_assert_int_eq(run(&call), OMEN_OK);
    release(&call);
}
END_TEST

/* ---- collections ---- */

/* ---- wait levels ---- */

START_TEST(an_indexed_write_is_answered_when_the_index_has_it)
{
    struct shard_call call;
    node_down();
    options.index_rows_min = 100;
    node_up();
    ck_assert_int_eq(catalog(CATALOG_CREATE, "docs", 1, METRIC_L2), OMEN_OK);
    uint64_t shard = shard_of("docs");
    /* So few that they are not worth a graph: that is all the index will ever do about them. */
    write_call(&call, shard, 0, 10, WAIT_INDEXED, wait_ops, wait_vectors);
    ck_assert_int_eq(run(&call), OMEN_OK);
    ck_assert_uint_eq(call.out.write.affected, 10);
    release(&call);
    ck_assert_uint_eq(unindexed(shard), 10);
    write_call(&call, shard, 1000, WAIT_POINTS, WAIT_INDEXED, wait_ops, wait_vectors);
    ck_assert_int_eq(run(&call), OMEN_OK);
    release(&call);
    ck_assert_uint_eq(unindexed(shard), 0);
    ck_assert_uint_eq(count_points(shard, CONSISTENCY_SESSION, call.sequence), WAIT_POINTS + 10);
}
END_TEST

START_TEST(an_indexed_write_that_runs_out_of_time_stands_and_says_so)
{
    struct shard_call call;
    struct waiter w;
    node_down();
    options.index_rows_min = 100;
    node_up();
    ck_assert_int_eq(create_with("docs", "{'write_mode': 'stream_only', 'index_delay_ms': 3600000}"),
            OMEN_OK);
    uint64_t shard = shard_of("docs");
    struct op_id op_id = { 7, 1, clock_wall_ms(clock_system()) };
    for (int i = 0; i < 2; i++) { /* again with the same op id: it waits again */
        write_call(&call, shard, 0, WAIT_POINTS, WAIT_INDEXED, wait_ops, wait_vectors);
        call.in.write.op_id = op_id;
        call.deadline_ns = clock_monotonic_ns(clock_system()) + 300000000;
        ck_assert_int_eq(run(&call), OMEN_EDEADLINE);
        ck_assert_ptr_nonnull(strstr(call.err.message, "is applied"));
        release(&call);
        ck_assert_uint_eq(count_points(shard, CONSISTENCY_SESSION, call.sequence), WAIT_POINTS);
    }
    /* One that would wait for ever ends with its shard. */
    write_call(&call, shard, 0, WAIT_POINTS, WAIT_INDEXED, wait_ops, wait_vectors);
    start(&call, &w);
    struct shard_call drop = { .kind = CALL_CATALOG };
    struct waiter dropped;
    drop.in.catalog = (struct catalog_change){ .kind = CATALOG_DROP, .name = "docs" };
    while (count_points(shard, CONSISTENCY_LINEARIZABLE, 0) < WAIT_POINTS) usleep(1000);
    start(&drop, &dropped);
    finish(&w);
    ck_assert(call.code == OMEN_EUNKNOWN || call.code == OMEN_ENOTFOUND);
    release(&call);
    finish(&dropped);
    ck_assert_int_eq(drop.code, OMEN_OK);
    release(&drop);
}
END_TEST

START_TEST(an_accepted_write_is_answered_first_and_done_next)
{
    struct shard_call call;
    ck_assert_int_eq(catalog(CATALOG_CREATE, "docs", 1, METRIC_L2), OMEN_OK);
    uint64_t shard = shard_of("docs");
    for (uint64_t i = 0; i < 20; i++) {
        write_call(&call, shard, 10 * i, 10, WAIT_ACCEPTED, wait_ops, wait_vectors);
        ck_assert_int_eq(run(&call), OMEN_OK);
        ck_assert_uint_eq(call.out.write.affected, 10);
        ck_assert_uint_eq(call.sequence, 0); /* nobody knows it yet */
        release(&call);
    }
    while (count_points(shard, CONSISTENCY_LINEARIZABLE, 0) < 200) usleep(1000);
}
END_TEST

START_TEST(a_node_without_indexes_refuses_to_wait_for_one)
{
    struct shard_call call;
    node_down();
    options.index_disabled = true;
    node_up();
    ck_assert_int_eq(catalog(CATALOG_CREATE, "docs", 1, METRIC_L2), OMEN_OK);
    uint64_t shard = shard_of("docs");
    write_call(&call, shard, 0, 10, WAIT_INDEXED, wait_ops, wait_vectors);
    ck_assert_int_eq(run(&call), OMEN_EINVAL);
    ck_assert_str_eq(call.err.field, "wait");
    release(&call);
    ck_assert_uint_eq(count_points(shard, CONSISTENCY_SESSION, 0), 0);
}
END_TEST

/* ---- expiry ---- */

/* Nobody writes any more: the node sees to it that what has expired leaves, several entries' worth. */
START_TEST(expired_points_leave_a_shard_that_nobody_writes_to)
{
    ck_assert_int_eq(catalog(CATALOG_CREATE, "docs", 1, METRIC_L2), OMEN_OK);
    uint64_t shard = shard_of("docs"), soon = clock_wall_ms(clock_system()) + 300;
    struct shard_call call;
    for (uint64_t first = 0; first < 3000; first += WAIT_POINTS) {
        write_call(&call, shard, first, WAIT_POINTS, WAIT_COMMITTED, wait_ops, wait_vectors);
        for (uint32_t i = 0; i < WAIT_POINTS; i++) wait_ops[i].expires_ms = i == 7 ? 0 : soon;
        ck_assert_int_eq(run(&call), OMEN_OK);
        release(&call);
    }
    for (;;) {
        struct shard_call stats = call_of(CALL_STATS, shard);
        ck_assert_int_eq(run(&stats), OMEN_OK);
        uint64_t points = stats.out.stats.points;
        release(&stats);
        if (clock_wall_ms(clock_system()) >= soon)
            ck_assert_uint_eq(count_points(shard, CONSISTENCY_EVENTUAL, 0), 10);
        if (points == 10) break;
        usleep(10000);
    }
}
END_TEST

/* Nothing is indexed while the load is announced, then all of it at once, what no checkpoint has reached yet included. */
START_TEST(a_bulk_load_is_built_once_at_its_end)
{
    char text[80];
    struct arena arena;
    struct shard_call call;
    arena_init(&arena, 1024, 0);
    node_down();
    options.index_rows_min = 100;
    node_up();
    snprintf(text, sizeof text, "{'bulk_until_ms': %llu}",
            (unsigned long long)(clock_wall_ms(clock_system()) + 300000));
    ck_assert_int_eq(create_with("docs", text), OMEN_OK);
    ck_assert_int_eq(create_with("next", "{'write_mode': 'immediate_index'}"), OMEN_OK);
    uint64_t shard = shard_of("docs"), next = shard_of("next");
    write_call(&call, shard, 0, WAIT_POINTS, WAIT_COMMITTED, wait_ops, wait_vectors);
    ck_assert_int_eq(run(&call), OMEN_OK);
    release(&call);
    write_call(&call, next, 0, WAIT_POINTS, WAIT_INDEXED, wait_ops, wait_vectors);
    ck_assert_int_eq(run(&call), OMEN_OK); /* so both had their turns */
    release(&call);
    ck_assert_uint_eq(unindexed(shard), WAIT_POINTS);
    struct shard_call set = { .kind = CALL_CATALOG };
    set.in.catalog = (struct catalog_change){ .kind = CATALOG_SET, .name = "docs" };
    set.in.catalog.options = doc_of(&arena, "{'bulk_until_ms': 0}");
    ck_assert_int_eq(run(&set), OMEN_OK);
    release(&set);
    while (unindexed(shard) > 0) usleep(10000); /* within this test's time: no checkpoint is due for 30 s */
    arena_fini(&arena);
}
END_TEST

/* Nobody waits for the index, nobody asked for it at once, and no checkpoint is due for an hour: a tail that is worth a
 * graph gets one all the same. One that is not, or not yet, is left alone. */
START_TEST(a_tail_worth_a_graph_does_not_wait_for_a_checkpoint)
{
    struct shard_call call;
    node_down();
    options.index_rows_min = WAIT_POINTS;
    options.host.checkpoint_interval_ns = 3600000000000ull;
    node_up();
    ck_assert_int_eq(catalog(CATALOG_CREATE, "docs", 1, METRIC_L2), OMEN_OK);
    ck_assert_int_eq(catalog(CATALOG_CREATE, "few", 1, METRIC_L2), OMEN_OK);
    ck_assert_int_eq(create_with("later", "{'write_mode': 'stream_only', 'index_delay_ms': 3600000}"),
            OMEN_OK);
    uint64_t shard = shard_of("docs"), few = shard_of("few"), later = shard_of("later");
    write_call(&call, few, 0, WAIT_POINTS - 1, WAIT_COMMITTED, wait_ops, wait_vectors);
    ck_assert_int_eq(run(&call), OMEN_OK);
    release(&call);
    write_call(&call, later, 0, WAIT_POINTS, WAIT_COMMITTED, wait_ops, wait_vectors);
    ck_assert_int_eq(run(&call), OMEN_OK);
    release(&call);
    for (uint64_t round = 0; round < 2; round++) { /* also behind a segment */
        write_call(&call, shard, round * WAIT_POINTS, WAIT_POINTS, WAIT_COMMITTED, wait_ops, wait_vectors);
        ck_assert_int_eq(run(&call), OMEN_OK);
        release(&call);
        while (unindexed(shard) > 0) usleep(10000);
    }
    ck_assert_uint_eq(unindexed(few), WAIT_POINTS - 1);
    ck_assert_uint_eq(unindexed(later), WAIT_POINTS);
}
END_TEST

/* ---- write modes ---- */

/* Nothing is indexed before its time, and all of it soon after the mode was changed. */
START_TEST(a_stream_is_left_alone_until_it_is_told_otherwise)
{
    struct shard_call call;
    struct arena arena;
    arena_init(&arena, 1024, 0);
    node_down();
    options.index_rows_min = 100;
    options.host.checkpoint_interval_ns = 100000000;
    node_up();
    ck_assert_int_eq(create_with("docs", "{'write_mode': 'stream_only', 'index_delay_ms': 3600000}"),
            OMEN_OK);
    ck_assert_int_eq(create_with("next", "{'write_mode': 'immediate_index'}"), OMEN_OK);
    uint64_t shard = shard_of("docs"), next = shard_of("next");
    write_call(&call, shard, 0, WAIT_POINTS, WAIT_COMMITTED, wait_ops, wait_vectors);
    ck_assert_int_eq(run(&call), OMEN_OK);
    release(&call);
    write_call(&call, next, 0, WAIT_POINTS, WAIT_INDEXED, wait_ops, wait_vectors);
    ck_assert_int_eq(run(&call), OMEN_OK);
    release(&call);
    ck_assert_uint_eq(unindexed(next), 0);
    ck_assert_uint_eq(unindexed(shard), WAIT_POINTS); /* it was written before, and had its turns since */
    struct shard_call set = { .kind = CALL_CATALOG };
    set.in.catalog = (struct catalog_change){ .kind = CATALOG_SET, .name = "docs" };
    set.in.catalog.options = doc_of(&arena, "{'write_mode': 'async_index'}");
    ck_assert_int_eq(run(&set), OMEN_OK);
    release(&set);
    while (unindexed(shard) > 0) usleep(10000);
    arena_fini(&arena);
}
END_TEST

START_TEST(dropped_collection_is_gone_and_its_name_is_free)
{
    ck_assert_int_eq(catalog(CATALOG_CREATE, "docs", 3, METRIC_L2), OMEN_OK);
    ck_assert_int_eq(catalog(CATALOG_CREATE, "docs", 3, METRIC_L2), OMEN_EEXISTS);
    uint64_t old = shard_of("docs");
    struct shard_call call;
    ck_assert_int_eq(upsert(old, 1, (struct op_id){ 0, 0, 0 }, &call), OMEN_OK);
    ck_assert_uint_eq(shard_directories(), 3);
    ck_assert_int_eq(catalog(CATALOG_DROP, "docs", 0, METRIC_L2), OMEN_OK);
    ck_assert_uint_eq(shard_directories(), 0);
    ck_assert_int_eq(upsert(old, 2, (struct op_id){ 0, 0, 0 }, &call), OMEN_ENOTFOUND);
    ck_assert_int_eq(catalog(CATALOG_CREATE, "docs", 1, METRIC_L2), OMEN_OK);
    ck_assert_uint_ne(shard_of("docs"), old);
    ck_assert_uint_eq(count_points(shard_of("docs"), CONSISTENCY_LINEARIZABLE, 0), 0);
    node_down();
    node_up();
    ck_assert_uint_eq(shard_directories(), 1);
}
END_TEST

START_TEST(interrupted_create_and_drop_heal_at_start)
{
    ck_assert_int_eq(catalog(CATALOG_CREATE, "docs", 2, METRIC_L2), OMEN_OK);
    ck_assert_int_eq(catalog(CATALOG_CREATE, "gone", 1, METRIC_L2), OMEN_OK);
    uint64_t gone = shard_of("gone"), kept = shard_of("docs");
    ck_assert_int_eq(catalog(CATALOG_DROP, "gone", 0, METRIC_L2), OMEN_OK);
    node_down();
    char path[300], left[300];
    /* Created in the catalog, its directory never made; dropped in the catalog, its directory never removed. */
    snprintf(path, sizeof path, "%s/shards/%llu-2", dir, (unsigned long long)kept);
    ck_assert_int_eq(vfs_remove_tree(vfs_posix(), path, NULL), OMEN_OK);
    snprintf(left, sizeof left, "%s/shards/%llu-4", dir, (unsigned long long)gone);
    ck_assert_int_eq(vfs_mkdir(vfs_posix(), left, NULL), OMEN_OK);
    node_up();
    bool there;
    ck_assert_int_eq(vfs_exists(vfs_posix(), left, &there, NULL), OMEN_OK);
    ck_assert(!there);
    ck_assert_int_eq(vfs_exists(vfs_posix(), path, &there, NULL), OMEN_OK);
    ck_assert(there);
    struct shard_call call;
    ck_assert_int_eq(upsert(kept, 1, (struct op_id){ 0, 0, 0 }, &call), OMEN_OK);
}
END_TEST

START_TEST(shard_that_the_catalog_never_made_stops_the_start)
{
    node_down();
    char path[300];
    snprintf(path, sizeof path, "%s/shards/77-77", dir);
    ck_assert_int_eq(vfs_mkdir(vfs_posix(), path, NULL), OMEN_OK);
    struct err err;
    ck_assert_int_eq(node_open(&options, &node, &err), OMEN_ECORRUPT);
    ck_assert_ptr_null(node);
    ck_assert_ptr_nonnull(strstr(err.message, "77"));
    bool there;
    ck_assert_int_eq(vfs_exists(vfs_posix(), path, &there, NULL), OMEN_OK);
    ck_assert(there); /* nothing was touched */
}
END_TEST

START_TEST(more_shards_than_the_limit_are_refused)
{
    node_down();
    options.shards_max = 3;
    node_up();
    ck_assert_int_eq(catalog(CATALOG_CREATE, "a", 3, METRIC_L2), OMEN_OK);
    ck_assert_int_eq(catalog(CATALOG_CREATE, "b", 1, METRIC_L2), OMEN_ETOOBIG);
    ck_assert_int_eq(catalog(CATALOG_DROP, "a", 0, METRIC_L2), OMEN_OK);
    ck_assert_int_eq(catalog(CATALOG_CREATE, "b", 1, METRIC_L2), OMEN_OK);
}
END_TEST

START_TEST(calls_in_flight_survive_a_drop)
{
    ck_assert_int_eq(catalog(CATALOG_CREATE, "docs", 1, METRIC_L2), OMEN_OK);
    uint64_t shard = shard_of("docs");
    struct shard_call waiting = call_of(CALL_COUNT, shard), held = call_of(CALL_COUNT, shard);
    struct waiter w;
    ck_assert_int_eq(run(&held), OMEN_OK); /* its view is held until it is released */
    waiting.token_sequence = 100;
    start(&waiting, &w);
    struct shard_call drop = { .kind = CALL_CATALOG };
    struct waiter drop_waiter;
    drop.in.catalog = (struct catalog_change){ .kind = CATALOG_DROP, .name = "docs" };
    start(&drop, &drop_waiter);
    finish(&w);
    ck_assert_int_ne(waiting.code, OMEN_OK);
    ck_assert(!finished(&drop_waiter));
    release(&waiting);
    release(&held);
    finish(&drop_waiter);
    ck_assert_int_eq(drop.code, OMEN_OK);
    release(&drop);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("shard_host");
    TCase *tcase = tcase_create("shard_host");
    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, acknowledged_points_are_there_after_a_restart);
    tcase_add_test(tcase, waiting_writers_share_entries_and_none_is_lost);
    tcase_add_test(tcase, same_op_id_is_applied_once);
    tcase_add_test(tcase, op_id_from_a_clock_ahead_is_told_both_times);
    tcase_add_test(tcase, cosine_vectors_come_back_normalised_and_queries_are_too);
    tcase_add_test(tcase, read_waits_for_its_token_and_gives_up_at_the_deadline);
    tcase_add_test(tcase, reads_beyond_the_views_of_a_shard_are_told_to_come_again);
    tcase_add_test(tcase, past_deadline_is_not_begun);
    tcase_add_test(tcase, full_disk_refuses_writes_with_the_reason_and_takes_deletes);
    tcase_add_test(tcase, writes_over_the_admission_limit_are_told_when_to_retry);
    tcase_add_test(tcase, a_long_tail_slows_writes_down_until_it_is_indexed);
    tcase_add_test(tcase, a_memory_budget_that_is_used_up_refuses_writes);
    tcase_add_test(tcase, an_indexed_write_is_answered_when_the_index_has_it);
    tcase_add_test(tcase, an_indexed_write_that_runs_out_of_time_stands_and_says_so);
    tcase_add_test(tcase, an_accepted_write_is_answered_first_and_done_next);
    tcase_add_test(tcase, a_node_without_indexes_refuses_to_wait_for_one);
    tcase_add_test(tcase, expired_points_leave_a_shard_that_nobody_writes_to);
    tcase_add_test(tcase, a_bulk_load_is_built_once_at_its_end);
    tcase_add_test(tcase, a_tail_worth_a_graph_does_not_wait_for_a_checkpoint);
    tcase_add_test(tcase, a_stream_is_left_alone_until_it_is_told_otherwise);
    tcase_add_test(tcase, dropped_collection_is_gone_and_its_name_is_free);
    tcase_add_test(tcase, interrupted_create_and_drop_heal_at_start);
    tcase_add_test(tcase, shard_that_the_catalog_never_made_stops_the_start);
    tcase_add_test(tcase, more_shards_than_the_limit_are_refused);
    tcase_add_test(tcase, calls_in_flight_survive_a_drop);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}
