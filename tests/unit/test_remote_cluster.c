/* The router's way to the cluster itself: who is asked about members and moves, what is never asked twice, and how the
 * first node comes to be when no node has a map; and what becomes of calls at a node that falls silent. Fake nodes behind
 * real ports; nothing is asserted on time. */
#include "common/err.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "router/remote_impl.h"
#include "tests/support/call_support.h"
#include "tests/support/fake_cluster.h"
#include "tests/support/tcp_proxy.h"

static struct fake_cluster *cluster;
static struct remote *remote;
static const struct shard_service *service;
static struct siphash_key secret = { 7, 8 };

struct waiter {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint32_t done;
};

static struct waiter waiter = { PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0 };

static void wait_note(void *arg)
{
    pthread_mutex_lock(&waiter.lock);
    waiter.done++;
    pthread_cond_broadcast(&waiter.changed);
    pthread_mutex_unlock(&waiter.lock);
}

static void call_over(struct shard_call *call) { wait_note(NULL); }

static void wait_for(uint32_t done)
{
    pthread_mutex_lock(&waiter.lock);
    while (waiter.done < done) pthread_cond_wait(&waiter.changed, &waiter.lock);
    pthread_mutex_unlock(&waiter.lock);
}

static enum omen_err ask(struct shard_call *call)
{
    uint32_t before = waiter.done;
    service->submit(service->self, call);
    wait_for(before + 1);
    service->release(service->self, call);
    return call->code;
}

static void refresh(void)
{
    uint32_t before = waiter.done;
    service->map_refresh(service->self, 0, wait_note, NULL);
    wait_for(before + 1);
}

/* Three nodes, the router begins with 3, 2, 1 in this order. `unjoined`: none of them is in a cluster. */
static void begin(bool unjoined)
{
    struct remote_options options;
    struct err err;
    cluster = fake_cluster_new(3, 1, false);
    if (unjoined) fake_cluster_unjoin(cluster);
    if (unjoined) cluster->leader = 0;
    remote_options_default(&options);
    const char *seeds[3] = { cluster->nodes[2].address, cluster->nodes[1].address,
        cluster->nodes[0].address };
    options.seeds = seeds;
    options.seed_count = 3;
    options.key = secret;
    options.poll_ns = 50 * MS_NS;
    options.retry_ns = 300 * MS_NS;
    ck_assert_int_eq(remote_start(&options, &remote, &err), OMEN_OK);
    service = remote_service(remote);
    refresh();
}

static void end(void)
{
    remote_stop(remote);
    fake_cluster_free(cluster);
}

static const char *const status_text = "{\"do\": \"status\"}", *const init_text = "{\"do\": \"init\"}";

static void cluster_init_call(struct shard_call *call, struct arena *arena, const char *text, bool changes)
{
    *call = (struct shard_call){ .kind = CALL_CLUSTER, .done = call_over };
    call->deadline_ns = clock_monotonic_ns(clock_system()) + 20000 * MS_NS;
    call->in.cluster.request = call_json(arena, text);
    call->in.cluster.changes = changes;
}

START_TEST(calls_of_the_cluster_find_who_answers_and_bring_the_answer)
{
    struct shard_call call;
    struct arena arena;
    arena_init(&arena, 1024, 0);
    begin(false);
    cluster->leader = 3;
    for (int i = 0; i < 4; i++) {
        cluster_init_call(&call, &arena, i % 2 ? status_text : "{\"do\": \"rebalance\"}", i % 2 == 0);
        uint32_t before = waiter.done;
        service->submit(service->self, &call);
        wait_for(before + 1);
        ck_assert_int_eq(call.code, OMEN_OK);
        ck_assert(doc_equal(call.out.cluster.reply, call.in.cluster.request));
        service->release(service->self, &call);
    }
    ck_assert_uint_eq(fake_calls(cluster, 3, CALL_CLUSTER), 4);
    ck_assert_uint_le(fake_calls(cluster, 1, CALL_CLUSTER) + fake_calls(cluster, 2, CALL_CLUSTER), 2);
    end();
    arena_fini(&arena);
}
END_TEST

/* A change that may have been made is not made again by a second attempt; a look is taken again. */
START_TEST(a_change_of_the_cluster_whose_outcome_is_unknown_is_sent_once)
{
    struct shard_call call;
    struct arena arena;
    arena_init(&arena, 1024, 0);
    begin(false);
    for (int look = 0; look < 2; look++) {
        cluster_init_call(&call, &arena, status_text, !look);
        ck_assert_int_eq(ask(&call), OMEN_OK); /* the leader is known */
        uint32_t sent = fake_calls(cluster, 1, CALL_CLUSTER);
        fake_node_at(cluster, 1)->fail_code = OMEN_EUNKNOWN;
        fake_node_at(cluster, 1)->fail_count = 1;
        cluster_init_call(&call, &arena, status_text, !look);
        ck_assert_int_eq(ask(&call), look ? OMEN_OK : OMEN_EUNKNOWN);
        ck_assert_uint_eq(fake_calls(cluster, 1, CALL_CLUSTER), sent + (look ? 2 : 1));
    }
    end();
    arena_fini(&arena);
}
END_TEST

/* With an op id it is sent again until somebody tells what became of it; that something is there already tells as well, for
 * had it been this change, its first outcome would have been told. */
START_TEST(a_change_with_an_op_id_is_sent_again_until_its_outcome_is_told)
{
    static const enum omen_err last_words[] = { OMEN_OK, OMEN_EEXISTS, OMEN_EIO };
    static const enum omen_err told[] = { OMEN_OK, OMEN_EEXISTS, OMEN_EUNKNOWN };
    struct shard_call call;
    struct arena arena;
    arena_init(&arena, 1024, 0);
    begin(false);
    for (uint32_t i = 0; i < 6; i++) {
        const struct op_id id = { 7, 1 + i, 1000 };
        cluster_init_call(&call, &arena, "{\"do\": \"throttle\"}", true);
        call.in.cluster.asked_as = id;
        if (i % 2 == 1) {
            call.kind = CALL_CATALOG;
            call.in.catalog = (struct catalog_change){ .kind = CATALOG_DROP, .name = "none", .asked_as = id };
        }
        struct fake_node *node = fake_node_at(cluster, 1);
        uint32_t sent = fake_calls(cluster, 1, call.kind);
        pthread_mutex_lock(&cluster->lock);
        node->fail_code = OMEN_EUNKNOWN; /* the leader was lost before it could tell */
        node->fail_count = 2;
        node->fail_next = last_words[i / 2];
        pthread_mutex_unlock(&cluster->lock);
        ck_assert_int_eq(ask(&call), told[i / 2]);
        ck_assert_uint_eq(fake_calls(cluster, 1, call.kind), sent + 3);
    }
    end();
    arena_fini(&arena);
}
END_TEST

static uint32_t smallest_address(void)
{
    uint32_t smallest = 1;
    for (uint32_t id = 2; id <= 3; id++)
        if (strcmp(fake_node_at(cluster, id)->address, fake_node_at(cluster, smallest)->address) < 0)
            smallest = id;
    return smallest;
}

/* Two clusters made by one word would be a disaster: whichever router is told, and in whatever order it knows the nodes,
 * the same one is asked, and nobody while one is silent, for that one may have a cluster already. */
START_TEST(the_first_node_is_made_at_one_address_only_and_while_all_answer)
{
    struct shard_call call;
    struct arena arena;
    arena_init(&arena, 1024, 0);
    begin(true);
    ck_assert_str_eq(service->not_ready(service->self), "the nodes are not part of a cluster yet");
    uint32_t first = smallest_address(), silent = first == 2 ? 3 : 2;
    cluster_init_call(&call, &arena, init_text, true);
    ck_assert_int_eq(ask(&call), OMEN_EUNAVAILABLE); /* the fakes say that another one leads */
    for (uint32_t id = 1; id <= 3; id++)
        ck_assert_msg((fake_calls(cluster, id, CALL_CLUSTER) > 0) == (id == first), "node %u", id);

    fake_node_kill(cluster, silent);
    refresh();
    uint32_t asked = fake_calls(cluster, first, CALL_CLUSTER);
    cluster_init_call(&call, &arena, init_text, true);
    ck_assert_int_eq(ask(&call), OMEN_EUNAVAILABLE);
    ck_assert_ptr_nonnull(strstr(call.err.message, fake_node_at(cluster, silent)->address));
    ck_assert_uint_eq(fake_calls(cluster, first, CALL_CLUSTER), asked);

    fake_node_revive(cluster, silent);
    cluster->leader = first;
    cluster_init_call(&call, &arena, init_text, true);
    ck_assert_int_eq(ask(&call), OMEN_OK); /* waits for the silent one within its time */
    cluster_init_call(&call, &arena, status_text, false);
    ck_assert_int_eq(ask(&call), OMEN_OK); /* whoever is asked first */
    end();
    arena_fini(&arena);
}
END_TEST

/* ---- a node that falls silent ---- */

static struct tcp_proxy *proxies[3];
static struct metrics *metrics;

/* Three nodes behind proxies, all replicas of one shard; node 1 leads. A call may be tried again for long enough. */
static void begin_behind_proxies(void)
{
    struct remote_options options;
    struct err err;
    cluster = fake_cluster_new(3, 1, false);
    for (uint32_t i = 0; i < 3; i++) {
        struct fake_node *node = &cluster->nodes[i];
        proxies[i] = tcp_proxy_start((uint16_t)node_port_number(node->port));
        snprintf(node->address, sizeof node->address, "tcp://127.0.0.1:%u", tcp_proxy_port(proxies[i]));
    }
    remote_options_default(&options);
    const char *seeds[1] = { cluster->nodes[0].address };
    options.seeds = seeds;
    options.seed_count = 1;
    options.key = secret;
    options.poll_ns = 50 * MS_NS;
    options.retry_ns = 100000 * MS_NS;
    options.hedge_percent = 0;
    options.metrics = metrics = metrics_new();
    ck_assert_int_eq(remote_start(&options, &remote, &err), OMEN_OK);
    service = remote_service(remote);
    for (uint32_t known = 0; known < 3;) {
        refresh();
        struct routing *routing = routing_acquire(remote);
        known = 0;
        for (uint32_t i = 0; routing != NULL && i < routing->node_count; i++)
            known += routing->nodes[i].endpoint->answered;
        routing_unref(routing);
    }
}

static void end_behind_proxies(void)
{
    remote_stop(remote);
    for (uint32_t i = 0; i < 3; i++) tcp_proxy_stop(proxies[i]);
    fake_cluster_free(cluster);
    metrics_free(metrics);
}

/* Its deadline is far beyond the time that this test may take: half of it would be waited for a node that says nothing. */
static void shard_call_init(struct shard_call *call, enum shard_call_kind kind, enum consistency consistency)
{
    struct map *map = service->map_acquire(service->self);
    *call = (struct shard_call){ .kind = kind, .shard_id = 11, .collection_id = 3, .done = call_over };
    call->deadline_ns = clock_monotonic_ns(clock_system()) + 600000 * MS_NS;
    call->epoch = map->epoch;
    call->incarnation = map->incarnation;
    call->consistency = consistency;
    map_unref(map);
}

static const struct point_op one_op = { .kind = POINT_DELETE, .id = { 0, 1, POINT_ID_U64 } };

static enum omen_err write_one(uint64_t seq)
{
    struct shard_call call;
    shard_call_init(&call, CALL_WRITE, CONSISTENCY_SESSION);
    call.in.write.ops = &one_op;
    call.in.write.count = 1;
    call.in.write.op_id = (struct op_id){ 42, seq, 1 };
    return ask(&call);
}

START_TEST(calls_at_a_node_that_falls_silent_go_elsewhere)
{
    struct shard_call call;
    for (int lost = 0; lost < 2; lost++) { /* nothing arrives there; nothing comes back */
        begin_behind_proxies();
        ck_assert_int_eq(write_one(1), OMEN_OK); /* node 1 is known to lead */
        tcp_proxy_lose(proxies[0], lost == 0, lost == 1);
        cluster->leader = 2;
        ck_assert_int_eq(write_one(2), OMEN_OK); /* sent to node 1, which says nothing */
        ck_assert_uint_eq(cluster->writes, 2);   /* also when node 1 had carried it out */
        ck_assert_uint_gt(fake_metric(metrics, "omendb_router_abandoned_total"), 0);
        shard_call_init(&call, CALL_COUNT, CONSISTENCY_LINEARIZABLE);
        ck_assert_int_eq(ask(&call), OMEN_OK);
        for (int i = 0; i < 6; i++) { /* whoever is asked, it is not the silent one */
            shard_call_init(&call, CALL_COUNT, CONSISTENCY_EVENTUAL);
            ck_assert_int_eq(ask(&call), OMEN_OK);
        }
        tcp_proxy_lose(proxies[0], false, false);
        cluster->leader = 1;
        ck_assert_int_eq(write_one(3), OMEN_OK); /* it is back */
        ck_assert_uint_eq(cluster->writes, 3);
        end_behind_proxies();
    }
}
END_TEST

/* Reads that are under way there when it stops, all at once. */
START_TEST(reads_under_way_at_a_node_that_falls_silent_are_answered_by_others)
{
    enum { READS = 24 };
    static struct shard_call calls[READS];
    begin_behind_proxies();
    pthread_mutex_lock(&cluster->lock);
    for (uint32_t i = 0; i < 3; i++) cluster->nodes[i].hold = true;
    pthread_mutex_unlock(&cluster->lock);
    uint32_t before = waiter.done;
    for (int i = 0; i < READS; i++) {
        shard_call_init(&calls[i], CALL_COUNT, CONSISTENCY_EVENTUAL);
        service->submit(service->self, &calls[i]);
    }
    for (uint32_t held = 0; held < READS;) { /* all have arrived somewhere */
        pthread_mutex_lock(&cluster->lock);
        held = 0;
        for (uint32_t i = 0; i < 3; i++) held += cluster->nodes[i].held_count;
        pthread_mutex_unlock(&cluster->lock);
    }
    ck_assert_uint_gt(fake_calls(cluster, 1, CALL_COUNT), 0);
    tcp_proxy_lose(proxies[0], true, true);
    fake_let_go(cluster, 2);
    fake_let_go(cluster, 3);
    wait_for(before + READS);
    for (int i = 0; i < READS; i++) {
        ck_assert_int_eq(calls[i].code, OMEN_OK);
        service->release(service->self, &calls[i]);
    }
    ck_assert_uint_gt(fake_metric(metrics, "omendb_router_abandoned_total"), 0);
    fake_let_go(cluster, 1);
    end_behind_proxies();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("remote_cluster");
    TCase *tcase = tcase_create("remote_cluster");
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, calls_of_the_cluster_find_who_answers_and_bring_the_answer);
    tcase_add_test(tcase, a_change_of_the_cluster_whose_outcome_is_unknown_is_sent_once);
    tcase_add_test(tcase, a_change_with_an_op_id_is_sent_again_until_its_outcome_is_told);
    tcase_add_test(tcase, the_first_node_is_made_at_one_address_only_and_while_all_answer);
    tcase_add_test(tcase, calls_at_a_node_that_falls_silent_go_elsewhere);
    tcase_add_test(tcase, reads_under_way_at_a_node_that_falls_silent_are_answered_by_others);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
