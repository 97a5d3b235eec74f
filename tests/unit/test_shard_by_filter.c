/* Writes by filter at a single node: done once under an op id, held up, closed and dropped in their middle. The next
 * leader's part is in test_shard_group.c. */
#include "common/err.h"

#include <check.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "node/node_impl.h"
#include "tests/support/doc_text.h"
#include "tests/support/one_node.h"

/* 2,500 points in several pages; sent again with its op id it is known, and what came since is left alone. Without one it
 * acts on what is there then. */
START_TEST(a_write_by_filter_is_done_once_under_its_op_id)
{
    struct arena arena;
    arena_init(&arena, 4096, 0);
    ck_assert_int_eq(catalog(CATALOG_CREATE, "docs", 1, METRIC_L2), OMEN_OK);
    uint64_t shard = shard_of("docs");
    struct shard_call call;
    for (uint64_t first = 0; first < 2500; first += 250) {
        write_call(&call, shard, first, 250, WAIT_COMMITTED, wait_ops, wait_vectors);
        ck_assert_int_eq(run(&call), OMEN_OK);
        release(&call);
    }
    const struct point_op every = { .kind = POINT_DELETE };
    struct shard_call by = call_of(CALL_WRITE, shard);
    by.in.write.ops = &every;
    by.in.write.count = 1;
    by.in.write.op_id = (struct op_id){ 9, 1, clock_wall_ms(clock_system()) };
    by.in.write.filter_doc = doc_of(&arena, "{}");
    ck_assert_int_eq(filter_parse(by.in.write.filter_doc, &arena, &by.in.write.filter, NULL), OMEN_OK);
    for (int i = 0; i < 3; i++) {
        if (i == 2) by.in.write.op_id = (struct op_id){ 0 };
        ck_assert_int_eq(run(&by), OMEN_OK);
        ck_assert_int_eq(by.out.write.duplicate, i == 1);
        if (i != 1) ck_assert_uint_eq(by.out.write.affected, i == 0 ? 2500 : 10);
        release(&by);
        by.out.write.duplicate = false;
        ck_assert_uint_eq(count_points(shard, CONSISTENCY_LINEARIZABLE, 0), i == 1 ? 10 : 0);
        if (i > 0) continue;
        write_call(&call, shard, 100, 10, WAIT_COMMITTED, wait_ops, wait_vectors);
        ck_assert_int_eq(run(&call), OMEN_OK);
        release(&call);
    }
    for (uint64_t first = 0; first < 2500; first += 250) {
        write_call(&call, shard, first, 250, WAIT_COMMITTED, wait_ops, wait_vectors);
        ck_assert_int_eq(run(&call), OMEN_OK);
        release(&call);
    }
    /* An id that is too old or from the future changes nothing, not even the pages before the last. */
    uint64_t now_ms = clock_wall_ms(clock_system());
    by.in.write.op_id = (struct op_id){ 9, 2, now_ms - 130000 };
    ck_assert_int_eq(run(&by), OMEN_EOPEXPIRED);
    release(&by);
    by.in.write.op_id = (struct op_id){ 9, 3, now_ms + 3600000 };
    ck_assert_int_eq(run(&by), OMEN_EINVAL);
    ck_assert_str_eq(by.err.field, "op_id[2]");
    release(&by);
    ck_assert_uint_eq(count_points(shard, CONSISTENCY_LINEARIZABLE, 0), 2500);
    by.in.write.op_id = (struct op_id){ 0 };
    by.deadline_ns = 1; /* long ago */
    ck_assert_int_eq(run(&by), OMEN_EDEADLINE);
    release(&by);
    /* One that gets old while the work goes on is done to its end. */
    by.deadline_ns = call.deadline_ns;
    by.in.write.op_id = (struct op_id){ 9, 4, now_ms - 100000 };
    ck_assert_int_eq(run(&by), OMEN_OK);
    release(&by);
    ck_assert_uint_eq(count_points(shard, CONSISTENCY_LINEARIZABLE, 0), 0);
    arena_fini(&arena);
}
END_TEST

/* {} deletes all; recorded, for there is more than a page. */
static struct shard_call delete_all_call(uint64_t shard, uint64_t seq, struct arena *arena)
{
    static const struct point_op every = { .kind = POINT_DELETE };
    struct shard_call by = call_of(CALL_WRITE, shard);
    by.in.write.ops = &every;
    by.in.write.count = 1;
    if (seq != 0) by.in.write.op_id = (struct op_id){ 9, seq, clock_wall_ms(clock_system()) };
    by.in.write.filter_doc = doc_of(arena, "{}");
    ck_assert_int_eq(filter_parse(by.in.write.filter_doc, arena, &by.in.write.filter, NULL), OMEN_OK);
    return by;
}

static void fill_by_hundreds(uint64_t shard, uint64_t points)
{
    struct shard_call call;
    for (uint64_t first = 0; first < points; first += 250) {
        write_call(&call, shard, first, 250, WAIT_COMMITTED, wait_ops, wait_vectors);
        ck_assert_int_eq(run(&call), OMEN_OK);
        release(&call);
    }
}

static uint64_t open_by_filter(uint64_t shard)
{
    char name[120];
    snprintf(name, sizeof name, "omendb_node_writes_by_filter{collection=\"docs\",shard=\"%llu\"}",
            (unsigned long long)shard);
    return metric_value(name);
}

/* Released where it is done, so that nobody holds a shard up that closes. */
static void done_released(struct shard_call *call)
{
    struct waiter *w = call->arg;
    release(call);
    pthread_mutex_lock(&w->mutex);
    w->done = true;
    pthread_cond_signal(&w->cond);
    pthread_mutex_unlock(&w->mutex);
}

static void start_released(struct shard_call *call, struct waiter *w)
{
    *w = (struct waiter){ PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false };
    call->done = done_released;
    call->arg = w;
    const struct shard_service *service = node_service(node);
    service->submit(service->self, call);
}

/* Closed at any moment of it and opened again, a node does the rest by itself: all of it is done, or it was never begun. */
START_TEST(a_write_by_filter_goes_on_after_a_restart_without_a_client)
{
    struct arena arena;
    uint32_t done = 0;
    arena_init(&arena, 4096, 0);
    ck_assert_int_eq(catalog(CATALOG_CREATE, "docs", 1, METRIC_L2), OMEN_OK);
    uint64_t shard = shard_of("docs");
    for (uint32_t round = 0; round < 6; round++) {
        struct waiter w;
        fill_by_hundreds(shard, 2500);
        struct shard_call by = delete_all_call(shard, round % 2 == 0 ? 100 + round : 0, &arena);
        start_released(&by, &w);
        if (round == 5) /* to be sure of one that was begun */
            finish(&w);
        else
            usleep(round * round * 700);
        node_down();
        finish(&w);
        node_up();
        while (open_by_filter(shard) > 0) usleep(10000);
        uint64_t left = count_points(shard, CONSISTENCY_LINEARIZABLE, 0);
        ck_assert_msg(left == 0 || (left == 2500 && by.code != OMEN_OK), "%llu points are left",
                (unsigned long long)left);
        done += left == 0;
    }
    ck_assert_uint_gt(done, 0);
    arena_fini(&arena);
}
END_TEST

/* A tail that is too long holds it up after its first step: the call's deadline ends the wait and nothing else. Opened again
 * without that bound, the node does the rest; the same op id is told the counts of the whole, twice. */
START_TEST(a_write_by_filter_that_is_held_up_is_not_lost)
{
    struct arena arena;
    arena_init(&arena, 4096, 0);
    node_down();
    options.index_disabled = true; /* it would hurry otherwise */
    node_up();
    node->env.tail_rows_max = 2501;
    ck_assert_int_eq(catalog(CATALOG_CREATE, "docs", 1, METRIC_L2), OMEN_OK);
    uint64_t shard = shard_of("docs");
    fill_by_hundreds(shard, 2500);
    const struct point_op mark = { .kind = POINT_SET_PAYLOAD, .payload = doc_of(&arena, "{'seen': 1}") };
    struct shard_call by = delete_all_call(shard, 300, &arena);
    by.in.write.ops = &mark;
    by.deadline_ns = clock_monotonic_ns(clock_system()) + 1500000000ull;
    enum omen_err rc = run(&by);
    release(&by);
    ck_assert_msg(rc == OMEN_EUNKNOWN || rc == OMEN_EDEADLINE, "%s", err_name(rc));
    if (rc == OMEN_EDEADLINE) { /* not even begun, on a machine that slow */
        by.deadline_ns = clock_monotonic_ns(clock_system()) + 30000000000ull;
        ck_assert_int_eq(run(&by), OMEN_EUNKNOWN);
        release(&by);
    }
    while (open_by_filter(shard) == 0) usleep(10000);
    node_down();
    node_up();
    by.deadline_ns = 0;
    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(run(&by), OMEN_OK);
        ck_assert(by.out.write.duplicate);
        ck_assert_uint_eq(by.out.write.affected, 2500);
        release(&by);
    }
    ck_assert_uint_eq(open_by_filter(shard), 0);
    ck_assert_uint_eq(count_points(shard, CONSISTENCY_LINEARIZABLE, 0), 2500);
    arena_fini(&arena);
}
END_TEST

/* One point cannot take the payload: what comes before it in the order of ids is done, then the write ends with that code,
 * with those counts, for whoever asks again too; nothing is left under way. */
START_TEST(a_point_that_cannot_be_changed_ends_a_write_by_filter)
{
    static char text[65001], json[65100];
    struct arena arena;
    struct shard_call call;
    arena_init(&arena, 4096, 0);
    ck_assert_int_eq(catalog(CATALOG_CREATE, "docs", 1, METRIC_L2), OMEN_OK);
    uint64_t shard = shard_of("docs");
    fill_by_hundreds(shard, 2500);
    memset(text, 'x', sizeof text - 1);
    snprintf(json, sizeof json, "{'large': '%s'}", text);
    float vector[DIM];
    struct point_op large = upsert_op(1700, vector);
    large.payload = doc_of(&arena, json);
    call = call_of(CALL_WRITE, shard);
    call.in.write.ops = &large;
    call.in.write.count = 1;
    ck_assert_int_eq(run(&call), OMEN_OK);
    release(&call);
    text[600] = '\0';
    snprintf(json, sizeof json, "{'more': '%s'}", text);
    const struct point_op mark = { .kind = POINT_SET_PAYLOAD, .payload = doc_of(&arena, json) };
    struct shard_call by = delete_all_call(shard, 400, &arena);
    by.in.write.ops = &mark;
    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(run(&by), OMEN_ETOOBIG);
        ck_assert_uint_eq(by.out.write.affected, 1700);
        ck_assert_int_eq(by.out.write.duplicate, i == 1);
        ck_assert_ptr_nonnull(strstr(by.err.message, "1700 points were done before"));
        release(&by);
    }
    ck_assert_uint_eq(open_by_filter(shard), 0);
    arena_fini(&arena);
}
END_TEST

/* Dropped at any moment of it, a collection goes and whoever waited is told. */
START_TEST(a_collection_is_dropped_in_the_middle_of_a_write_by_filter)
{
    struct arena arena;
    arena_init(&arena, 4096, 0);
    for (uint32_t round = 0; round < 6; round++) {
        struct waiter w, again_w;
        ck_assert_int_eq(catalog(CATALOG_CREATE, "docs", 1, METRIC_L2), OMEN_OK);
        uint64_t shard = shard_of("docs");
        fill_by_hundreds(shard, 2500);
        struct shard_call by = delete_all_call(shard, 200 + round, &arena), again = by;
        start_released(&by, &w);
        usleep(round * 2000);
        start_released(&again, &again_w); /* joins it, or is told */
        ck_assert_int_eq(catalog(CATALOG_DROP, "docs", 0, METRIC_L2), OMEN_OK);
        finish(&w);
        finish(&again_w);
        ck_assert_uint_eq(shard_directories(), 0);
    }
    arena_fini(&arena);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("shard_by_filter");
    TCase *tcase = tcase_create("by filter");
    tcase_set_timeout(tcase, 120);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, a_write_by_filter_is_done_once_under_its_op_id);
    tcase_add_test(tcase, a_write_by_filter_goes_on_after_a_restart_without_a_client);
    tcase_add_test(tcase, a_write_by_filter_that_is_held_up_is_not_lost);
    tcase_add_test(tcase, a_point_that_cannot_be_changed_ends_a_write_by_filter);
    tcase_add_test(tcase, a_collection_is_dropped_in_the_middle_of_a_write_by_filter);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}
