/* The router's way to its nodes, with several fake nodes behind real ports in this process: who is asked, what is tried
 * again, what is never tried again, and what is said in the end. Nothing here is asserted on time: waits end with events. */
#include "common/err.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/check.h"
#include "common/net/net.h"
#include "common/wire/shard_message.h"
#include "router/remote_impl.h"
#include "router/request.h"
#include "tests/support/fake_cluster.h"

static struct fake_cluster *cluster;
static struct remote *remote;
static struct metrics *metrics;
static const struct shard_service *service;

/* ---- a call and its end ---- */

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

static void call_init(struct shard_call *call, enum shard_call_kind kind)
{
    struct map *map = service->map_acquire(service->self);
    memset(call, 0, sizeof *call);
    call->kind = kind;
    call->shard_id = 11;
    call->collection_id = 3;
    call->done = call_over;
    call->deadline_ns = clock_monotonic_ns(clock_system()) + 20000 * MS_NS;
    if (map == NULL) return;
    call->epoch = map->epoch;
    call->incarnation = map->incarnation;
    map_unref(map);
}

static void submit(struct shard_call *call) { service->submit(service->self, call); }
static void release(struct shard_call *call) { service->release(service->self, call); }

/* Submits, waits and gives back; outputs that lie in the call itself stay. */
static enum omen_err ask(struct shard_call *call)
{
    uint32_t before = waiter.done;
    submit(call);
    wait_for(before + 1);
    release(call);
    return call->code;
}

static enum omen_err count_with(enum consistency consistency, uint64_t token)
{
    struct shard_call call;
    call_init(&call, CALL_COUNT);
    call.consistency = consistency;
    call.token_sequence = token;
    return ask(&call);
}

static const struct point_op one_op = { .kind = POINT_DELETE, .id = { 0, 1, POINT_ID_U64 } };

static void write_init(struct shard_call *call, uint64_t seq)
{
    call_init(call, CALL_WRITE);
    call->in.write.ops = &one_op;
    call->in.write.count = 1;
    if (seq != 0) call->in.write.op_id = (struct op_id){ 42, seq, 1 };
}

static enum omen_err write_with(uint64_t seq)
{
    struct shard_call call;
    write_init(&call, seq);
    return ask(&call);
}

static void refresh(void)
{
    uint32_t before = waiter.done;
    service->map_refresh(service->self, 0, wait_note, NULL);
    wait_for(before + 1);
}

static bool nodes_known(uint32_t count)
{
    struct routing *routing = routing_acquire(remote);
    if (routing == NULL) return false;
    uint32_t known = 0;
    for (uint32_t i = 0; i < routing->node_count; i++) known += routing->nodes[i].endpoint->answered;
    routing_unref(routing);
    return known >= count;
}

/* ---- fixtures ---- */

static uint64_t retry_ns = 3000 * MS_NS;
static uint32_t hedge_percent = 100;
static struct siphash_key secret = { 7, 8 };

static void begin(uint32_t nodes, uint32_t shards, bool spread)
{
    struct remote_options options;
    struct err err;
    cluster = fake_cluster_new(nodes, shards, spread);
    metrics = metrics_new();
    remote_options_default(&options);
    const char *seeds[1] = { cluster->nodes[0].address };
    options.seeds = seeds;
    options.seed_count = 1;
    options.key = secret;
    options.metrics = metrics;
    options.poll_ns = 100 * MS_NS;
    options.retry_ns = retry_ns;
    options.hedge_percent = hedge_percent;
    enum omen_err rc = remote_start(&options, &remote, &err);
    ck_assert_msg(rc == OMEN_OK, "%s", err.message);
    service = remote_service(remote);
    bool ours = secret.k0 == cluster->key.k0;
    while (ours && !nodes_known(nodes)) refresh();
}

static void end(void)
{
    remote_stop(remote);
    fake_cluster_free(cluster);
    metrics_free(metrics);
}

/* ---- finding nodes and leaders ---- */

START_TEST(one_address_leads_to_all_nodes)
{
    begin(3, 1, false);
    ck_assert_ptr_null(service->not_ready(service->self));
    struct map *map = service->map_acquire(service->self);
    ck_assert_uint_eq(map->epoch, 5);
    ck_assert_uint_eq(map->incarnation, 77);
    map_unref(map);
    cluster->leader = 3;
    ck_assert_int_eq(write_with(1), OMEN_OK);
    ck_assert_uint_eq(fake_calls(cluster, 3, CALL_WRITE), 1);
    end();
}
END_TEST

START_TEST(a_leader_once_found_is_asked_at_once)
{
    begin(3, 1, false);
    cluster->leader = 2;
    for (uint64_t seq = 1; seq <= 20; seq++) ck_assert_int_eq(write_with(seq), OMEN_OK);
    ck_assert_uint_eq(cluster->writes, 20);
    ck_assert_uint_le(fake_calls(cluster, 1, CALL_WRITE) + fake_calls(cluster, 3, CALL_WRITE), 1);
    ck_assert_int_eq(count_with(CONSISTENCY_LINEARIZABLE, 0), OMEN_OK);
    ck_assert_uint_eq(fake_calls(cluster, 2, CALL_COUNT), 1);
    end();
}
END_TEST

START_TEST(replicas_that_hint_at_each_other_do_not_hide_the_leader)
{
    begin(3, 1, false);
    fake_node_at(cluster, 1)->hint = 2;
    fake_node_at(cluster, 2)->hint = 1;
    cluster->leader = 3;
    ck_assert_int_eq(write_with(1), OMEN_OK);
    ck_assert_uint_eq(cluster->writes, 1);
    ck_assert_uint_le(fake_calls(cluster, 1, CALL_WRITE) + fake_calls(cluster, 2, CALL_WRITE), 20);
    end();
}
END_TEST

START_TEST(without_a_leader_writes_end_as_unavailable_and_reads_go_on)
{
    retry_ns = 200 * MS_NS;
    begin(3, 1, false);
    cluster->leader = 0;
    for (uint32_t id = 1; id <= 3; id++) fake_node_at(cluster, id)->hint = UINT32_MAX;
    struct shard_call call;
    write_init(&call, 1);
    ck_assert_int_eq(ask(&call), OMEN_EUNAVAILABLE);
    ck_assert_ptr_nonnull(strstr(call.err.message, "leader"));
    ck_assert_uint_eq(cluster->writes, 0);
    ck_assert_int_eq(count_with(CONSISTENCY_LINEARIZABLE, 0), OMEN_EUNAVAILABLE);
    ck_assert_int_eq(count_with(CONSISTENCY_SESSION, 0), OMEN_OK);
    cluster->leader = 2;
    ck_assert_int_eq(write_with(1), OMEN_OK);
    end();
}
END_TEST

START_TEST(a_dead_leader_is_replaced_by_who_leads_now)
{
    begin(3, 1, false);
    ck_assert_int_eq(write_with(1), OMEN_OK);
    fake_node_kill(cluster, 1);
    cluster->leader = 2;
    ck_assert_int_eq(write_with(2), OMEN_OK);
    ck_assert_int_eq(write_with(0), OMEN_OK);
    ck_assert_uint_eq(cluster->writes, 3);
    ck_assert_int_eq(count_with(CONSISTENCY_SESSION, cluster->sequence), OMEN_OK);
    fake_node_revive(cluster, 1);
    while (!nodes_known(3)) refresh();
    cluster->leader = 1;
    ck_assert_int_eq(write_with(4), OMEN_OK);
    end();
}
END_TEST

START_TEST(changes_of_the_catalog_find_who_makes_them)
{
    begin(3, 1, false);
    cluster->leader = 3;
    struct shard_call call;
    for (int i = 0; i < 3; i++) {
        call_init(&call, CALL_CATALOG);
        call.in.catalog.kind = CATALOG_DROP;
        memcpy(call.in.catalog.name, "x", 2);
        ck_assert_int_eq(ask(&call), OMEN_OK);
    }
    ck_assert_uint_eq(fake_calls(cluster, 3, CALL_CATALOG), 3);
    ck_assert_uint_le(fake_calls(cluster, 1, CALL_CATALOG) + fake_calls(cluster, 2, CALL_CATALOG), 2);
    end();
}
END_TEST

/* ---- maps ---- */

START_TEST(an_old_map_is_refused_and_the_newer_one_is_there_then)
{
    begin(3, 1, false);
    struct shard_call call;
    call_init(&call, CALL_COUNT); /* routed by epoch 5 */
    fake_map_advance(cluster, 0, NULL);
    ck_assert_int_eq(ask(&call), OMEN_EWRONGEPOCH);
    struct map *map = service->map_acquire(service->self);
    ck_assert_uint_eq(map->epoch, 6);
    map_unref(map);
    ck_assert_int_eq(count_with(CONSISTENCY_SESSION, 0), OMEN_OK);
    for (uint32_t id = 1; id <= 3; id++) ck_assert_int_eq(fake_node_at(cluster, id)->outstanding, 0);
    end();
}
END_TEST

START_TEST(a_node_that_is_behind_serves_what_it_has)
{
    begin(3, 1, false);
    fake_map_advance(cluster, 1, NULL); /* node 1 alone keeps epoch 5 */
    refresh();
    struct map *map = service->map_acquire(service->self);
    ck_assert_uint_eq(map->epoch, 6);
    map_unref(map);
    for (int i = 0; i < 12; i++) ck_assert_int_eq(count_with(CONSISTENCY_EVENTUAL, 0), OMEN_OK);
    ck_assert_int_eq(write_with(1), OMEN_OK);
    end();
}
END_TEST

static void change_incarnation(struct map *map)
{
    map->incarnation = 78;
    map->epoch = 2;
}

START_TEST(another_incarnation_replaces_the_map_whatever_its_epoch)
{
    begin(1, 1, false);
    ck_assert_int_eq(write_with(1), OMEN_OK);
    struct shard_call call;
    call_init(&call, CALL_COUNT);
    fake_map_advance(cluster, 0, change_incarnation);
    ck_assert_int_eq(ask(&call), OMEN_EWRONGEPOCH);
    struct map *map = service->map_acquire(service->self);
    ck_assert_uint_eq(map->incarnation, 78);
    ck_assert_uint_eq(map->epoch, 2);
    map_unref(map);
    ck_assert_int_eq(count_with(CONSISTENCY_SESSION, 0), OMEN_OK);
    end();
}
END_TEST

/* ---- freshness ---- */

START_TEST(session_reads_go_where_the_token_is_known)
{
    begin(3, 1, false);
    cluster->sequence = 100;
    fake_node_at(cluster, 2)->sequence = 50;
    fake_node_at(cluster, 3)->sequence = 101;
    ck_assert_int_eq(write_with(1), OMEN_OK); /* 101, by node 1 */
    uint32_t node2 = fake_calls(cluster, 2, CALL_COUNT);
    for (int i = 0; i < 30; i++) ck_assert_int_eq(count_with(CONSISTENCY_SESSION, 101), OMEN_OK);
    ck_assert_uint_eq(fake_calls(cluster, 2, CALL_COUNT), node2);
    for (int i = 0; i < 30; i++) ck_assert_int_eq(count_with(CONSISTENCY_EVENTUAL, 0), OMEN_OK);
    end();
}
END_TEST

START_TEST(a_replica_that_fails_a_read_is_not_the_last_word)
{
    static const enum omen_err codes[] = { OMEN_ECORRUPT, OMEN_EIO, OMEN_EBUSY, OMEN_EUNAVAILABLE,
        OMEN_EINTERNAL };
    begin(3, 1, false);
    for (int i = 0; i < 5; i++) {
        for (uint32_t id = 1; id <= 2; id++) { /* two of three, whoever is asked first */
            fake_node_at(cluster, id)->fail_code = codes[i];
            fake_node_at(cluster, id)->fail_count = 1;
        }
        for (int n = 0; n < 4; n++) ck_assert_int_eq(count_with(CONSISTENCY_EVENTUAL, 0), OMEN_OK);
    }
    fake_node_at(cluster, 3)->fail_code = OMEN_ECORRUPT;
    for (uint32_t id = 1; id <= 3; id++) {
        fake_node_at(cluster, id)->fail_code = OMEN_ECORRUPT;
        fake_node_at(cluster, id)->fail_count = 1;
    }
    ck_assert_int_eq(count_with(CONSISTENCY_EVENTUAL, 0), OMEN_ECORRUPT);
    end();
}
END_TEST

/* ---- unknown outcomes ---- */

START_TEST(an_unknown_write_is_settled_by_its_op_id_and_applied_once)
{
    begin(3, 1, false);
    fake_node_at(cluster, 1)->unknown_count = 1;
    struct shard_call call;
    write_init(&call, 1);
    ck_assert_int_eq(ask(&call), OMEN_OK);
    ck_assert(call.out.write.duplicate);
    ck_assert_uint_eq(cluster->writes, 1);
    end();
}
END_TEST

START_TEST(an_unknown_write_without_op_id_is_told_as_unknown_and_sent_once)
{
    begin(3, 1, false);
    ck_assert_int_eq(write_with(0), OMEN_OK); /* the leader is known */
    fake_node_at(cluster, 1)->unknown_count = 1;
    ck_assert_int_eq(write_with(0), OMEN_EUNKNOWN);
    ck_assert_uint_eq(cluster->writes, 2);
    uint32_t sent = 0;
    for (uint32_t id = 1; id <= 3; id++) sent += fake_calls(cluster, id, CALL_WRITE);
    ck_assert_uint_le(sent, 4); /* two, and at most two that met no leader at first */
    end();
}
END_TEST

/* Refusals that come after an unknown outcome do not make it known. */
START_TEST(an_unknown_write_that_is_refused_later_stays_unknown)
{
    static const enum omen_err codes[] = { OMEN_EFULL, OMEN_EUNAVAILABLE, OMEN_EOPEXPIRED, OMEN_EBUSY };
    retry_ns = 200 * MS_NS;
    begin(1, 1, false);
    for (int i = 0; i < 4; i++) {
        struct fake_node *node = fake_node_at(cluster, 1);
        struct shard_call call;
        write_init(&call, 10 + (uint64_t)i);
        pthread_mutex_lock(&cluster->lock);
        node->hold = true;
        pthread_mutex_unlock(&cluster->lock);
        uint32_t before = waiter.done, held = 0;
        submit(&call);
        while (held == 0) {
            pthread_mutex_lock(&cluster->lock);
            held = node->held_count;
            pthread_mutex_unlock(&cluster->lock);
        }
        struct shard_call *inside =
                node->held[0]; /* the first attempt is applied and told as unknown, all later ones fail */
        pthread_mutex_lock(&cluster->lock);
        node->hold = false;
        node->held_count = 0;
        node->fail_code = codes[i];
        node->fail_count = 1000000;
        pthread_mutex_unlock(&cluster->lock);
        inside->code = err_set(&inside->err, OMEN_EUNKNOWN, "", "the leader was lost");
        inside->done(inside);
        wait_for(before + 1);
        release(&call);
        ck_assert_msg(call.code == OMEN_EUNKNOWN, "%s became %s", err_name(codes[i]), err_name(call.code));
        node->fail_count = 0;
    }
    end();
}
END_TEST

START_TEST(a_wrong_epoch_after_unknown_goes_on_with_the_new_epoch)
{
    begin(1, 1, false);
    fake_node_at(cluster, 1)->unknown_count = 1;
    struct shard_call call;
    write_init(&call, 1);
    uint32_t before = waiter.done;
    pthread_mutex_lock(&cluster->lock);
    fake_node_at(cluster, 1)->hold = true;
    pthread_mutex_unlock(&cluster->lock);
    submit(&call);
    for (uint32_t held = 0; held == 0;) {
        pthread_mutex_lock(&cluster->lock);
        held = fake_node_at(cluster, 1)->held_count;
        pthread_mutex_unlock(&cluster->lock);
    }
    fake_map_advance(cluster, 0, NULL); /* the next attempt is routed by an old map */
    fake_let_go(cluster, 1);
    wait_for(before + 1);
    release(&call);
    ck_assert_int_eq(call.code, OMEN_OK);
    ck_assert_uint_eq(cluster->writes, 1);
    end();
}
END_TEST

/* ---- slow nodes ---- */

/* Enough answers that the 95th percentile is known. */
static void warm_up(void)
{
    for (int i = 0; i < 200; i++) ck_assert_int_eq(count_with(CONSISTENCY_EVENTUAL, 0), OMEN_OK);
}

static void hold_all(bool hold)
{
    pthread_mutex_lock(&cluster->lock);
    for (uint32_t i = 0; i < cluster->node_count; i++) cluster->nodes[i].hold = hold;
    pthread_mutex_unlock(&cluster->lock);
}

static uint32_t held_by(uint32_t id)
{
    pthread_mutex_lock(&cluster->lock);
    uint32_t held = fake_node_at(cluster, id)->held_count;
    pthread_mutex_unlock(&cluster->lock);
    return held;
}

START_TEST(a_straggling_read_is_answered_by_another_replica)
{
    begin(2, 1, false);
    warm_up();
    uint64_t hedges = fake_metric(metrics, "omendb_router_hedges_total"); /* of the warming up */
    hold_all(true);
    struct shard_call call;
    call_init(&call, CALL_COUNT);
    call.consistency = CONSISTENCY_EVENTUAL;
    uint32_t before = waiter.done;
    submit(&call);
    while (held_by(1) == 0 || held_by(2) == 0) usleep(1000); /* hedged: both have it */
    fake_let_go(cluster, 2);
    wait_for(before + 1);
    ck_assert_int_eq(call.code, OMEN_OK);
    release(&call); /* while the other attempt is still out */
    ck_assert_uint_eq(held_by(1), 1);
    fake_let_go(cluster, 1);
    ck_assert_uint_eq(fake_metric(metrics, "omendb_router_hedges_total"), hedges + 1);
    end();
}
END_TEST

START_TEST(hedges_are_a_bounded_share_of_reads)
{
    hedge_percent = 5;
    begin(2, 1, false);
    uint32_t spent = 0;
    atomic_store(&remote->hedge_credit, 0);
    for (int i = 0; i < 1000; i++) {
        hedge_earn(remote);
        spent += hedge_spend(remote);
    }
    ck_assert_uint_le(spent, 50);
    ck_assert_uint_ge(spent, 45);
    for (int i = 0; i < 100000; i++) hedge_earn(remote); /* quiet times do not save up for a storm */
    for (spent = 0; hedge_spend(remote);) spent++;
    ck_assert_uint_le(spent, 11);
    end();
}
END_TEST

START_TEST(writes_and_linearizable_reads_are_never_hedged)
{
    begin(2, 1, false);
    warm_up();
    for (uint64_t seq = 1; seq <= 100; seq++) {
        ck_assert_int_eq(write_with(seq), OMEN_OK);
        ck_assert_int_eq(count_with(CONSISTENCY_LINEARIZABLE, 0), OMEN_OK);
    }
    uint64_t hedges = fake_metric(metrics, "omendb_router_hedges_total"); /* of the warming up */
    hold_all(true);
    struct shard_call write, read;
    write_init(&write, 500);
    call_init(&read, CALL_COUNT);
    read.consistency = CONSISTENCY_LINEARIZABLE;
    uint32_t before = waiter.done;
    submit(&write);
    submit(&read);
    while (held_by(1) < 2) usleep(1000);
    usleep(50000);
    ck_assert_uint_eq(held_by(2), 0);
    fake_let_go(cluster, 1);
    wait_for(before + 2);
    release(&write);
    release(&read);
    ck_assert_uint_eq(fake_metric(metrics, "omendb_router_hedges_total"), hedges);
    end();
}
END_TEST

START_TEST(a_deadline_ends_a_read_that_nobody_answers)
{
    begin(2, 1, false);
    hold_all(true);
    struct shard_call call;
    call_init(&call, CALL_COUNT);
    call.deadline_ns = clock_monotonic_ns(clock_system()) + 60 * MS_NS;
    ck_assert_int_eq(ask(&call), OMEN_EDEADLINE);
    write_init(&call, 1);
    call.deadline_ns = clock_monotonic_ns(clock_system()) + 60 * MS_NS;
    ck_assert_int_eq(ask(&call), OMEN_EUNKNOWN);
    fake_let_go(cluster, 1); /* late answers find nobody, and nothing breaks */
    fake_let_go(cluster, 2);
    ck_assert_int_eq(count_with(CONSISTENCY_SESSION, 0), OMEN_OK);
    end();
}
END_TEST

START_TEST(a_remote_stops_while_lost_attempts_are_out)
{
    begin(2, 1, false);
    hold_all(true);
    for (int i = 0; i < 20; i++) {
        struct shard_call call;
        call_init(&call, CALL_COUNT);
        call.deadline_ns = clock_monotonic_ns(clock_system()) + 5 * MS_NS;
        ck_assert_int_ne(ask(&call), OMEN_OK);
    }
    end();
}
END_TEST

/* ---- strangers ---- */

START_TEST(another_secret_gets_nothing)
{
    secret.k0 = 9;
    begin(1, 1, false);
    refresh();
    ck_assert_ptr_nonnull(service->not_ready(service->self));
    ck_assert_ptr_null(service->map_acquire(service->self));
    ck_assert_int_eq(count_with(CONSISTENCY_EVENTUAL, 0), OMEN_EUNAVAILABLE);
    ck_assert_uint_gt(fake_metric(fake_node_at(cluster, 1)->metrics,
                              "omendb_node_port_refused_total{reason=\"secret\"}"),
            0);
    ck_assert_uint_gt(fake_metric(metrics, "omendb_router_unproven_total"), 0);
    ck_assert_uint_eq(fake_calls(cluster, 1, CALL_COUNT), 0);
    end();
}
END_TEST

/* Answers of somebody who took over a node's address, without the secret. */
static void stranger(void *arg, struct net_request *request, struct bytes message)
{
    struct buf reply;
    buf_init(&reply);
    shard_message_begin(&reply, SHARD_REPLY, message.data[7], load_u64(message.data + 8));
    buf_append_zero(&reply, 60); /* "OK" */
    shard_message_seal(reply.data, reply.len, &(struct siphash_key){ 1, 1 });
    net_reply(request, (struct bytes){ reply.data, reply.len });
    buf_fini(&reply);
}

START_TEST(a_forged_ok_is_no_answer)
{
    retry_ns = 200 * MS_NS;
    begin(1, 1, false);
    ck_assert_int_eq(write_with(1), OMEN_OK);
    fake_node_kill(cluster, 1);
    struct net_server_options options = { .url = cluster->nodes[0].address,
        .contexts = 8,
        .message_bytes_max = 1 << 20,
        .handle = stranger };
    struct net_server *server;
    struct err err;
    ck_assert_int_eq(net_server_start(&options, &server, &err), OMEN_OK);
    enum omen_err code;
    uint64_t until_ns = clock_monotonic_ns(clock_system()) + 30000 * MS_NS;
    do {
        code = write_with(2);
        ck_assert_msg(clock_monotonic_ns(clock_system()) < until_ns, "the stranger was never asked");
    } while (fake_metric(metrics, "omendb_router_unproven_total") == 0);
    ck_assert(code == OMEN_EUNKNOWN || code == OMEN_EUNAVAILABLE);
    ck_assert_int_eq(write_with(3), OMEN_EUNKNOWN);
    ck_assert_int_eq(write_with(0), OMEN_EUNKNOWN);
    ck_assert_int_eq(count_with(CONSISTENCY_EVENTUAL, 0), OMEN_EUNAVAILABLE);
    net_server_stop(server);
    end();
}
END_TEST

static void send_raw(struct net_client *client, const void *data, size_t len)
{
    struct buf reply;
    struct err err;
    buf_init(&reply);
    (void)!net_call(client, (struct bytes){ data, len }, 2000, &reply, &err);
    struct shard_envelope e;
    if (reply.len > 0)
        ck_assert_int_ne(shard_message_open((struct bytes){ reply.data, reply.len }, SHARD_REPLY,
                                 &cluster->key, &e, &err),
                OMEN_OK);
    buf_fini(&reply);
}

START_TEST(garbage_on_the_node_port_is_counted_and_harmless)
{
    begin(1, 1, false);
    struct net_client *client;
    struct err err;
    uint8_t noise[4096];
    srand(1);
    for (size_t i = 0; i < sizeof noise; i++) noise[i] = (uint8_t)rand();
    ck_assert_int_eq(net_client_open(cluster->nodes[0].address, 1 << 20, &client, &err), OMEN_OK);
    send_raw(client, "", 0);
    send_raw(client, "OMRC", 4);
    send_raw(client, noise, sizeof noise);
    memcpy(noise, "OMRC\1\0\1\0", 8);
    send_raw(client, noise, sizeof noise);
    send_raw(client, "\x82\xa1v\x01\xa2op\xa5hello", 13);
    struct metrics *m = fake_node_at(cluster, 1)->metrics;
    ck_assert_uint_ge(fake_metric(m, "omendb_node_port_refused_total{reason=\"garbage\"}"), 4);
    ck_assert_uint_eq(fake_metric(m, "omendb_node_port_refused_total{reason=\"secret\"}"), 1);
    /* Proven, and still nonsense: a body of the right length for nothing. */
    struct buf b;
    for (int kind = 0; kind < 70; kind++) {
        buf_init(&b);
        shard_message_begin(&b, SHARD_REQUEST, (uint8_t)kind, 1);
        buf_append(&b, noise, 300);
        shard_message_seal(b.data, b.len, &cluster->key);
        struct buf reply;
        buf_init(&reply);
        ck_assert_int_eq(net_call(client, (struct bytes){ b.data, b.len }, 2000, &reply, &err), OMEN_OK);
        buf_fini(&reply);
        buf_fini(&b);
    }
    /* All but SHARD_KIND_FILE, which a port without files refuses before it looks at the body. */
    ck_assert_uint_ge(fake_metric(m, "omendb_node_port_refused_total{reason=\"body\"}"), 69);
    net_client_close(client);
    ck_assert_int_eq(count_with(CONSISTENCY_EVENTUAL, 0), OMEN_OK);
    end();
}
END_TEST

/* ---- through a whole router ---- */

static struct router *router;
static struct arena arena;
static struct wire_reply reply;
static enum wire_op asked;

static void respond(void *arg, struct bytes bytes)
{
    struct err err;
    void *copy = arena_copy(&arena, bytes.data, bytes.len);
    CHECK(message_decode_reply((struct bytes){ copy, bytes.len }, asked, &arena, &reply, &err) == OMEN_OK);
    wait_note(NULL);
}

static enum omen_err router_ask(struct wire_request *request)
{
    struct buf message;
    struct err err;
    buf_init(&message);
    ck_assert_int_eq(message_encode_request(request, &message, &err), OMEN_OK);
    asked = request->op;
    uint32_t before = waiter.done;
    router_handle(router, (struct bytes){ message.data, message.len }, respond, NULL);
    wait_for(before + 1);
    buf_fini(&message);
    return reply.code;
}

static void router_begin(void)
{
    struct router_options options;
    router_options_default(&options);
    options.service = service;
    options.clock = clock_system();
    ck_assert_int_eq(router_new(&options, &router, NULL), OMEN_OK);
    arena_init(&arena, 4096, 0);
}

static void router_end(void)
{
    router_free(router);
    arena_fini(&arena);
    end();
}

static struct wire_request request_of(enum wire_op op)
{
    struct wire_request request = { .op = op, .version = 1, .consistency = CONSISTENCY_EVENTUAL };
    request.collection = (struct bytes){ (const uint8_t *)"c", 1 };
    return request;
}

START_TEST(partial_answers_are_marked_and_only_given_when_allowed)
{
    retry_ns = 200 * MS_NS;
    begin(3, 6, true);
    router_begin();
    static const float query[2] = { 1, 2 };
    struct wire_search search = { .query = { (const uint8_t *)query, 8 }, .k = 10 };
    struct wire_request request = request_of(WIRE_SEARCH);
    request.search.searches = &search;
    request.search.count = 1;
    ck_assert_int_eq(router_ask(&request), OMEN_OK);
    ck_assert_uint_eq(reply.search.results[0].count, 6);
    ck_assert_uint_eq(reply.shards_missing_count, 0);

    fake_node_kill(cluster, 2); /* shards 12 and 15 */
    ck_assert_int_eq(router_ask(&request), OMEN_EUNAVAILABLE);
    request.allow_partial = true;
    ck_assert_int_eq(router_ask(&request), OMEN_OK);
    ck_assert_uint_eq(reply.search.results[0].count, 4);
    ck_assert_uint_eq(reply.search.shards_asked, 6);
    ck_assert_uint_eq(reply.shards_missing_count, 2);
    ck_assert_uint_eq(reply.shards_missing[0], 12);
    ck_assert_uint_eq(reply.shards_missing[1], 15);
    struct wire_request count = request_of(WIRE_COUNT);
    ck_assert_int_eq(router_ask(&count), OMEN_EUNAVAILABLE);
    count.allow_partial = true;
    ck_assert_int_eq(router_ask(&count), OMEN_OK);
    ck_assert_uint_eq(reply.count.points, 4);
    ck_assert_uint_eq(reply.shards_missing_count, 2);

    fake_node_kill(cluster, 1);
    fake_node_kill(cluster, 3);
    ck_assert_int_eq(router_ask(&request), OMEN_EUNAVAILABLE); /* nothing is no part */
    router_end();
}
END_TEST

START_TEST(an_answer_is_stale_when_a_part_of_it_is)
{
    begin(2, 2, true);
    router_begin();
    struct wire_request count = request_of(WIRE_COUNT);
    ck_assert_int_eq(router_ask(&count), OMEN_OK);
    ck_assert(!reply.stale);
    pthread_mutex_lock(&cluster->lock);
    fake_node_at(cluster, 2)->stale = true;
    pthread_mutex_unlock(&cluster->lock);
    ck_assert_int_eq(router_ask(&count), OMEN_OK);
    ck_assert(reply.stale);
    fake_node_kill(cluster, 2); /* what does not answer is missing, not stale */
    count.allow_partial = true;
    ck_assert_int_eq(router_ask(&count), OMEN_OK);
    ck_assert(!reply.stale);
    router_end();
}
END_TEST

/* A shard that is silent must not cost the others' answers: they leave before the client's own deadline. */
START_TEST(partial_answers_come_before_the_deadline)
{
    begin(2, 2, true);
    router_begin();
    pthread_mutex_lock(&cluster->lock);
    fake_node_at(cluster, 2)->hold = true;
    pthread_mutex_unlock(&cluster->lock);
    struct wire_request count = request_of(WIRE_COUNT);
    count.allow_partial = true;
    count.deadline_ms = 500;
    ck_assert_int_eq(router_ask(&count), OMEN_OK);
    ck_assert_uint_eq(reply.count.points, 1);
    ck_assert_uint_eq(reply.shards_missing_count, 1);
    ck_assert_uint_eq(reply.shards_missing[0], 12);
    router_end();
}
END_TEST

static void rename_collection(struct map *map) { memcpy(map->collections[0].name, "d", 2); }

START_TEST(requests_begin_anew_with_a_newer_map)
{
    begin(2, 2, false);
    router_begin();
    struct wire_request count = request_of(WIRE_COUNT);
    ck_assert_int_eq(router_ask(&count), OMEN_OK);
    fake_map_advance(cluster, 0, rename_collection);
    ck_assert_int_eq(router_ask(&count), OMEN_ENOTFOUND); /* by the new map, which the refusal brought */
    count.collection = (struct bytes){ (const uint8_t *)"d", 1 };
    ck_assert_int_eq(router_ask(&count), OMEN_OK);
    fake_map_advance(cluster, 0, NULL);
    fake_map_advance(cluster, 0, NULL);
    ck_assert_int_eq(router_ask(&count), OMEN_OK);
    router_end();
}
END_TEST

START_TEST(a_name_that_is_not_known_is_looked_up_anew)
{
    begin(2, 2, false);
    router_begin();
    fake_map_advance(cluster, 0, rename_collection);
    struct wire_request count = request_of(WIRE_COUNT);
    count.collection = (struct bytes){ (const uint8_t *)"d", 1 };
    ck_assert_int_eq(router_ask(&count), OMEN_OK);
    count.collection = (struct bytes){ (const uint8_t *)"e", 1 };
    ck_assert_int_eq(router_ask(&count), OMEN_ENOTFOUND);
    struct wire_request list = request_of(WIRE_COLLECTION_LIST);
    fake_map_advance(cluster, 0, NULL);
    ck_assert_int_eq(router_ask(&list), OMEN_OK);
    ck_assert_uint_eq(reply.collections.count, 1);
    ck_assert_str_eq(reply.collections.items[0].collection->name, "d");
    router_end();
}
END_TEST

START_TEST(the_status_tells_of_every_node)
{
    begin(3, 1, false);
    router_begin();
    fake_node_kill(cluster, 3);
    while (nodes_known(3)) refresh();
    struct wire_request request = request_of(WIRE_STATUS);
    ck_assert_int_eq(router_ask(&request), OMEN_OK);
    struct doc c = doc_member(reply.status.doc, (struct bytes){ (const uint8_t *)"cluster", 7 });
    struct doc list = doc_member(c, (struct bytes){ (const uint8_t *)"nodes", 5 }), node;
    ck_assert_uint_eq(doc_count(list), 3);
    uint32_t up = 0;
    for (struct doc_iter it = doc_iter(list); doc_next(&it, NULL, &node);)
        up += doc_type(doc_member(node, (struct bytes){ (const uint8_t *)"up", 2 })) == DOC_TRUE;
    ck_assert_uint_eq(up, 2);
    router_end();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("remote");
    TCase *tcase = tcase_create("remote");
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, one_address_leads_to_all_nodes);
    tcase_add_test(tcase, a_leader_once_found_is_asked_at_once);
    tcase_add_test(tcase, replicas_that_hint_at_each_other_do_not_hide_the_leader);
    tcase_add_test(tcase, without_a_leader_writes_end_as_unavailable_and_reads_go_on);
    tcase_add_test(tcase, a_dead_leader_is_replaced_by_who_leads_now);
    tcase_add_test(tcase, changes_of_the_catalog_find_who_makes_them);
    tcase_add_test(tcase, an_old_map_is_refused_and_the_newer_one_is_there_then);
    tcase_add_test(tcase, a_node_that_is_behind_serves_what_it_has);
    tcase_add_test(tcase, another_incarnation_replaces_the_map_whatever_its_epoch);
    tcase_add_test(tcase, session_reads_go_where_the_token_is_known);
    tcase_add_test(tcase, a_replica_that_fails_a_read_is_not_the_last_word);
    tcase_add_test(tcase, an_unknown_write_is_settled_by_its_op_id_and_applied_once);
    tcase_add_test(tcase, an_unknown_write_without_op_id_is_told_as_unknown_and_sent_once);
    tcase_add_test(tcase, an_unknown_write_that_is_refused_later_stays_unknown);
    tcase_add_test(tcase, a_wrong_epoch_after_unknown_goes_on_with_the_new_epoch);
    tcase_add_test(tcase, a_straggling_read_is_answered_by_another_replica);
    tcase_add_test(tcase, hedges_are_a_bounded_share_of_reads);
    tcase_add_test(tcase, writes_and_linearizable_reads_are_never_hedged);
    tcase_add_test(tcase, a_deadline_ends_a_read_that_nobody_answers);
    tcase_add_test(tcase, a_remote_stops_while_lost_attempts_are_out);
    tcase_add_test(tcase, another_secret_gets_nothing);
    tcase_add_test(tcase, a_forged_ok_is_no_answer);
    tcase_add_test(tcase, garbage_on_the_node_port_is_counted_and_harmless);
    tcase_add_test(tcase, partial_answers_are_marked_and_only_given_when_allowed);
    tcase_add_test(tcase, an_answer_is_stale_when_a_part_of_it_is);
    tcase_add_test(tcase, partial_answers_come_before_the_deadline);
    tcase_add_test(tcase, requests_begin_anew_with_a_newer_map);
    tcase_add_test(tcase, a_name_that_is_not_known_is_looked_up_anew);
    tcase_add_test(tcase, the_status_tells_of_every_node);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}
