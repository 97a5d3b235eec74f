/* The transport between nodes over real sockets: who is let in, who is refused and counted, what is bounded.
 * Two hosts stand for two nodes; strangers are plain sockets that speak the handshake themselves. */
#include "common/err.h"

#include <arpa/inet.h>
#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/clock.h"
#include "common/crc32c.h"
#include "common/mem.h"
#include "consensus/handshake.h"
#include "consensus/transport.h"

#define WAIT_MS 10000u
#define CLUSTER 42u

static const uint8_t secret[] = "the secret of these tests";
static const uint8_t wrong_secret[] = "not the secret of any one";

/* ---- a node ---- */

struct node {
    uint64_t node_id;
    struct loop *loop;
    struct transport *transport;
    _Atomic uint64_t frames, last_type, last_entries, last_from;
    _Atomic bool closed, connected;
};

static uint64_t now_ms(void *arg) { return clock_monotonic_ns(clock_system()) / 1000000; }

static void on_frame(void *arg, uint64_t node_id, struct frame *frame)
{
    struct node *n = arg;
    n->last_type = frame->header.type;
    n->last_entries = frame->header.entry_count;
    n->last_from = node_id;
    frame_free(frame);
    n->frames++;
}

static void on_tick(void *arg)
{
    struct node *n = arg;
    transport_tick(n->transport);
    n->connected = transport_connected(n->transport, 3 - n->node_id);
}

static void node_start(struct node *n, uint64_t node_id, uint64_t cluster, const uint8_t *key, uint16_t port)
{
    char listen[32];
    memset(n, 0, sizeof *n);
    n->node_id = node_id;
    snprintf(listen, sizeof listen, "127.0.0.1:%u", port);
    ck_assert_int_eq(loop_new(on_tick, n, &n->loop, NULL), OMEN_OK);
    struct transport_options o = { .loop = n->loop,
        .cluster_id = cluster,
        .node_id = node_id,
        .secret = key,
        .secret_len = sizeof secret,
        .listen = listen,
        .now_ms = now_ms,
        .on_frame = on_frame,
        .arg = n };
    struct err err = { 0 };
    ck_assert_msg(transport_new(&o, &n->transport, &err) == OMEN_OK, "%s", err.message);
    ck_assert_int_eq(loop_start(n->loop, NULL), OMEN_OK);
}

static void closed(void *arg) { ((struct node *)arg)->closed = true; }
static void close_run(void *arg)
{
    struct node *n = arg;
    transport_close(n->transport, closed, n);
}

static void node_stop(struct node *n)
{
    loop_call(n->loop, close_run, n);
    while (!n->closed) usleep(1000);
    loop_stop(n->loop);
    transport_free(n->transport);
}

struct peer_call {
    struct node *node;
    uint64_t id;
    const char *address;
};
static void peer_run(void *arg)
{
    struct peer_call *c = arg;
    struct err err = { 0 };
    ck_assert_msg(transport_set_peer(c->node->transport, c->id, c->address, &err) == OMEN_OK, "%s",
            err.message);
}

static void introduce(struct node *n, const struct node *to)
{
    char address[32];
    snprintf(address, sizeof address, "127.0.0.1:%u", transport_port(to->transport));
    struct peer_call c = { n, to->node_id, address };
    loop_call(n->loop, peer_run, &c);
}

static struct replica_net_stats stats(struct node *n)
{
    struct replica_net_stats s;
    transport_stats(n->transport, &s);
    return s;
}

#define wait_for(condition)                                                                                  \
    do {                                                                                                     \
        uint64_t until = now_ms(NULL) + WAIT_MS;                                                             \
        while (!(condition)) {                                                                               \
            ck_assert_msg(now_ms(NULL) < until, "never: %s", #condition);                                    \
            usleep(1000);                                                                                    \
        }                                                                                                    \
    } while (0)

static void send_vote(struct node *n, uint64_t to)
{
    struct raft_message m = { .type = RAFT_REQUEST_VOTE,
        .request_vote = { .version = 2, .term = 3, .candidate_id = 11 } };
    struct frame_parts parts = { .type = FRAME_VOTE, .group = 5, .from = 11, .to = 12, .message = &m };
    struct frame_out *f = frame_encode(&parts);
    f->node = to;
    transport_send(n->transport, f);
}

/* A frame with one entry of `bytes`. */
static void send_entry(struct node *n, uint64_t to, uint32_t bytes)
{
    struct group_log log;
    uint8_t *data = mem_must_alloc(bytes);
    for (uint32_t i = 0; i < bytes; i++) data[i] = (uint8_t)(i * 2654435761u >> 24);
    group_log_init(&log, 1, 0);
    struct log_slot slot = { .term = 1,
        .owner = shared_new(data),
        .data = data,
        .len = bytes,
        .crc = crc32c(0, data, bytes) };
    group_log_append(&log, &slot);
    struct raft_message m = { .type = RAFT_APPEND_ENTRIES, .append_entries = { .term = 1, .n_entries = 1 } };
    struct frame_parts parts = { .type = FRAME_APPEND,
        .group = 5,
        .from = 11,
        .to = 12,
        .message = &m,
        .log = &log };
    struct frame_out *f = frame_encode(&parts);
    f->node = to;
    transport_send(n->transport, f);
    group_log_fini(&log); /* the frame holds its own reference */
}

/* ---- a stranger ---- */

static int dial(const struct node *n)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in at = { .sin_family = AF_INET,
        .sin_port = htons(transport_port(n->transport)),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    struct timeval limit = { .tv_sec = WAIT_MS / 1000 };
    ck_assert_int_eq(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit), 0);
    ck_assert_int_eq(connect(fd, (struct sockaddr *)&at, sizeof at), 0);
    return fd;
}

static void put(int fd, const void *data, size_t len)
{
    ck_assert_int_eq(send(fd, data, len, MSG_NOSIGNAL), (ssize_t)len);
}

/* Reads exactly that; false: the other side closed first. */
static bool get(int fd, void *data, size_t len)
{
    for (size_t at = 0; at < len;) {
        ssize_t n = recv(fd, (uint8_t *)data + at, len - at, 0);
        if (n <= 0) {
            ck_assert_msg(n == 0 || errno == ECONNRESET, "still open after %u ms", WAIT_MS);
            return false;
        }
        at += (size_t)n;
    }
    return true;
}

static void expect_closed(int fd)
{
    uint8_t byte;
    while (get(fd, &byte, 1)) continue;
    close(fd);
}

/* Shakes hands as `dialer`; the code of the last answer. */
static enum handshake_code shake(int fd, uint64_t cluster, uint64_t dialer, uint64_t acceptor,
        const uint8_t *key)
{
    struct handshake h = { .cluster = cluster, .dialer = dialer, .acceptor = acceptor };
    uint8_t hello[HANDSHAKE_HELLO_BYTES], bytes[HANDSHAKE_REPLY_BYTES];
    struct handshake_reply reply = { .kind = HANDSHAKE_PROOF, .node = dialer };
    handshake_nonce(h.dialer_nonce);
    handshake_hello_encode(&h, hello);
    put(fd, hello, sizeof hello);
    ck_assert(get(fd, bytes, sizeof bytes));
    struct handshake_reply challenge;
    ck_assert_int_eq(handshake_reply_decode(bytes, HANDSHAKE_CHALLENGE, &challenge), OMEN_OK);
    if (challenge.code != HANDSHAKE_OK) return challenge.code;
    memcpy(h.acceptor_nonce, challenge.value, HANDSHAKE_NONCE_BYTES);
    handshake_mac(&h, true, key, sizeof secret, reply.value);
    handshake_reply_encode(&reply, bytes);
    put(fd, bytes, sizeof bytes);
    ck_assert(get(fd, bytes, sizeof bytes));
    struct handshake_reply accept;
    ck_assert_int_eq(handshake_reply_decode(bytes, HANDSHAKE_ACCEPT, &accept), OMEN_OK);
    if (accept.code == HANDSHAKE_OK) {
        uint8_t mac[HANDSHAKE_MAC_BYTES];
        handshake_mac(&h, false, key, sizeof secret, mac);
        ck_assert(handshake_mac_equal(mac, accept.value));
    }
    return accept.code;
}

/* ---- promises ---- */

START_TEST(two_nodes_keep_one_connection_and_speak_both_ways)
{
    struct node a, b;
    node_start(&a, 1, CLUSTER, secret, 0);
    node_start(&b, 2, CLUSTER, secret, 0);
    introduce(&a, &b);
    introduce(&b, &a);
    wait_for(a.connected && b.connected);
    usleep(600000); /* the one that yields would have dialed by now */
    ck_assert_uint_eq(stats(&a).connections, 1);
    ck_assert_uint_eq(stats(&b).connections, 1);
    send_vote(&a, 2);
    send_vote(&b, 1);
    wait_for(a.frames == 1 && b.frames == 1);
    ck_assert_uint_eq(a.last_from, 2);
    ck_assert_uint_eq(a.last_type, FRAME_VOTE);
    for (uint32_t i = 0; i < 50; i++) send_entry(&a, 2, 300u << 10);
    wait_for(b.frames == 51);
    ck_assert_uint_eq(b.last_entries, 1);
    send_entry(&a, 2, 24u << 20); /* longer than what is made room for at once */
    send_entry(&a, 2, (1u << 20) + 8);
    send_vote(&a, 2);
    wait_for(b.frames == 54);
    ck_assert_uint_eq(stats(&b).refused_frames, 0);
    node_stop(&a);
    node_stop(&b);
}
END_TEST

START_TEST(the_higher_id_dials_when_the_lower_does_not)
{
    struct node a, b;
    node_start(&a, 1, CLUSTER, secret, 0);
    node_start(&b, 2, CLUSTER, secret, 0);
    introduce(&b, &a); /* only it knows */
    wait_for(a.connected && b.connected);
    send_vote(&a, 2);
    wait_for(b.frames == 1);
    node_stop(&a);
    node_stop(&b);
}
END_TEST

START_TEST(a_restarted_node_is_found_again)
{
    struct node a, b;
    node_start(&a, 1, CLUSTER, secret, 0);
    node_start(&b, 2, CLUSTER, secret, 0);
    uint16_t port = transport_port(b.transport);
    introduce(&a, &b);
    wait_for(a.connected);
    node_stop(&b);
    wait_for(!a.connected);
    send_vote(&a, 2); /* dropped: raft sends again */
    wait_for(stats(&a).frames_dropped >= 1);
    node_start(&b, 2, CLUSTER, secret, port);
    wait_for(a.connected);
    send_vote(&a, 2);
    wait_for(b.frames == 1);
    node_stop(&a);
    node_stop(&b);
}
END_TEST

START_TEST(wrong_secret_cluster_and_node_are_refused_and_counted)
{
    struct node a;
    node_start(&a, 1, CLUSTER, secret, 0);
    int fd = dial(&a);
    ck_assert_int_eq(shake(fd, CLUSTER, 7, 1, wrong_secret), HANDSHAKE_WRONG_SECRET);
    expect_closed(fd);
    fd = dial(&a);
    ck_assert_int_eq(shake(fd, CLUSTER + 1, 7, 1, secret), HANDSHAKE_WRONG_CLUSTER);
    expect_closed(fd);
    fd = dial(&a);
    ck_assert_int_eq(shake(fd, CLUSTER, 7, 2, secret), HANDSHAKE_WRONG_NODE);
    expect_closed(fd);
    fd = dial(&a); /* itself */
    ck_assert_int_eq(shake(fd, CLUSTER, 1, 1, secret), HANDSHAKE_WRONG_NODE);
    expect_closed(fd);
    struct replica_net_stats s = stats(&a);
    ck_assert_uint_eq(s.refused_secret, 1);
    ck_assert_uint_eq(s.refused_cluster, 1);
    ck_assert_uint_eq(s.refused_garbage, 2);
    ck_assert_uint_eq(s.connections, 0);
    fd = dial(&a); /* and a good one is let in */
    ck_assert_int_eq(shake(fd, CLUSTER, 7, 1, secret), HANDSHAKE_OK);
    wait_for(stats(&a).connections == 1);
    close(fd);
    wait_for(stats(&a).connections == 0);
    node_stop(&a);
}
END_TEST

START_TEST(nodes_with_different_secrets_never_connect)
{
    struct node a, b;
    node_start(&a, 1, CLUSTER, secret, 0);
    node_start(&b, 2, CLUSTER, wrong_secret, 0);
    introduce(&a, &b);
    introduce(&b, &a);
    wait_for(stats(&a).refused_secret + stats(&b).refused_secret >= 3);
    ck_assert(!a.connected && !b.connected);
    node_stop(&a);
    node_stop(&b);
}
END_TEST

/* What proves nothing: the challenge sent back, an old proof, the proof of the other direction. */
START_TEST(a_proof_cannot_be_replayed_or_reflected)
{
    struct node a;
    uint8_t hello[HANDSHAKE_HELLO_BYTES], first[HANDSHAKE_REPLY_BYTES], bytes[HANDSHAKE_REPLY_BYTES];
    struct handshake h = { .cluster = CLUSTER, .dialer = 7, .acceptor = 1 };
    struct handshake_reply challenge, proof = { .kind = HANDSHAKE_PROOF, .node = 7 };
    node_start(&a, 1, CLUSTER, secret, 0);
    handshake_hello_encode(&h, hello);
    int fd = dial(&a);
    put(fd, hello, sizeof hello);
    ck_assert(get(fd, bytes, sizeof bytes));
    ck_assert_int_eq(handshake_reply_decode(bytes, HANDSHAKE_CHALLENGE, &challenge), OMEN_OK);
    memcpy(h.acceptor_nonce, challenge.value, HANDSHAKE_NONCE_BYTES);
    handshake_mac(&h, true, secret, sizeof secret, proof.value);
    handshake_reply_encode(&proof, first);
    put(fd, first, sizeof first);
    wait_for(stats(&a).connections == 1);
    close(fd);
    fd = dial(&a); /* the same proof to another nonce */
    put(fd, hello, sizeof hello);
    ck_assert(get(fd, bytes, sizeof bytes));
    put(fd, first, sizeof first);
    expect_closed(fd);
    ck_assert_uint_eq(stats(&a).refused_secret, 1);
    fd = dial(&a); /* the acceptor's own label */
    put(fd, hello, sizeof hello);
    ck_assert(get(fd, bytes, sizeof bytes));
    ck_assert_int_eq(handshake_reply_decode(bytes, HANDSHAKE_CHALLENGE, &challenge), OMEN_OK);
    memcpy(h.acceptor_nonce, challenge.value, HANDSHAKE_NONCE_BYTES);
    handshake_mac(&h, false, secret, sizeof secret, proof.value);
    handshake_reply_encode(&proof, bytes);
    put(fd, bytes, sizeof bytes);
    expect_closed(fd);
    ck_assert_uint_eq(stats(&a).refused_secret, 2);
    fd = dial(&a); /* hello and proof in one piece, before any challenge */
    uint8_t both[HANDSHAKE_HELLO_BYTES + HANDSHAKE_REPLY_BYTES];
    memcpy(both, hello, sizeof hello);
    memcpy(both + sizeof hello, first, sizeof first);
    put(fd, both, sizeof both);
    expect_closed(fd);
    ck_assert_uint_eq(stats(&a).refused_secret, 3);
    node_stop(&a);
}
END_TEST

START_TEST(garbage_and_announced_gigabytes_are_cut)
{
    struct node a;
    uint8_t junk[4096], header[FRAME_HEADER_BYTES] = { 0 };
    node_start(&a, 1, CLUSTER, secret, 0);
    for (uint32_t i = 0; i < sizeof junk; i++) junk[i] = (uint8_t)(i * 7919 >> 3);
    int fd = dial(&a);
    put(fd, junk, sizeof junk);
    expect_closed(fd);
    ck_assert_uint_eq(stats(&a).refused_garbage, 1);
    /* An authenticated peer that announces 8 GiB, a gigabyte of meta, 2^32 entries, or junk. */
    struct frame_parts parts = { .type = FRAME_PING };
    for (uint32_t i = 0; i < 4; i++) {
        struct frame_out *f = frame_encode(&parts);
        memcpy(header, f->head, sizeof header);
        frame_out_free(f);
        if (i == 0) store_u64(header + 40, 8ull << 30);
        if (i == 1) store_u32(header + 32, 1u << 30);
        if (i == 2) store_u32(header + 36, UINT32_MAX);
        if (i == 3) memcpy(header, junk, sizeof header);
        if (i != 3) store_u32(header + 60, crc32c(0, header, 60));
        fd = dial(&a);
        ck_assert_int_eq(shake(fd, CLUSTER, 7, 1, secret), HANDSHAKE_OK);
        put(fd, header, sizeof header);
        expect_closed(fd);
        ck_assert_uint_eq(stats(&a).refused_frames, i + 1);
    }
    ck_assert_uint_eq(a.frames, 0);
    node_stop(&a);
}
END_TEST

/* Of private memory that this process may write to, touched or not. */
static uint64_t data_bytes(void)
{
    char line[256];
    uint64_t kib = 0;
    FILE *f = fopen("/proc/self/status", "r");
    ck_assert_ptr_nonnull(f);
    while (kib == 0 && fgets(line, sizeof line, f) != NULL) {
        if (strncmp(line, "VmData:", 7) == 0) kib = strtoull(line + 7, NULL, 10);
    }
    fclose(f);
    ck_assert_uint_gt(kib, 0);
    return kib << 10;
}

/* Members, even: who knows the secret can be mistaken or ill. */
START_TEST(what_is_announced_and_does_not_come_costs_little)
{
    enum { MEMBERS = 20, SENT = 100000 };
    struct node a;
    int fds[MEMBERS];
    uint8_t header[FRAME_HEADER_BYTES];
    uint8_t *some = mem_must_calloc(1, SENT);
    struct frame_parts parts = { .type = FRAME_APPEND,
        .group = 5,
        .from = 11,
        .to = 12,
        .message = &(struct raft_message){ .type = RAFT_APPEND_ENTRIES, .append_entries = { .term = 1 } } };
    struct frame_out *f = frame_encode(&parts);
    memcpy(header, f->head, sizeof header);
    frame_out_free(f);
    store_u32(header + 32, load_u32(header + 32) + 24); /* one entry */
    store_u32(header + 36, 1);
    store_u64(header + 40, FRAME_BODY_BYTES_MAX);
    store_u32(header + 60, crc32c(0, header, 60));
    node_start(&a, 1, CLUSTER, secret, 0);
    for (uint32_t i = 0; i < MEMBERS; i++) {
        fds[i] = dial(&a);
        ck_assert_int_eq(shake(fds[i], CLUSTER, 7 + i, 1, secret), HANDSHAKE_OK);
    }
    uint64_t before = data_bytes(), bytes = stats(&a).bytes_in;
    for (uint32_t i = 0; i < MEMBERS; i++) {
        put(fds[i], header, sizeof header);
        put(fds[i], some, SENT);
    }
    wait_for(stats(&a).bytes_in == bytes + MEMBERS * (sizeof header + SENT));
    ck_assert_uint_lt(data_bytes() - before, MEMBERS * (2ull << 20));
    ck_assert_uint_eq(stats(&a).refused_frames, 0);
    for (uint32_t i = 0; i < MEMBERS; i++) close(fds[i]);
    node_stop(&a);
    mem_free(some);
}
END_TEST

START_TEST(silent_strangers_are_few_and_leave)
{
    struct node a;
    int fds[TRANSPORT_STRANGERS_MAX + 8];
    node_start(&a, 1, CLUSTER, secret, 0);
    for (uint32_t i = 0; i < TRANSPORT_STRANGERS_MAX + 8; i++) fds[i] = dial(&a);
    wait_for(stats(&a).refused_strangers >= 8);
    for (uint32_t i = 0; i < TRANSPORT_STRANGERS_MAX + 8; i++) expect_closed(fds[i]); /* after 2 s */
    int fd = dial(&a);
    ck_assert_int_eq(shake(fd, CLUSTER, 7, 1, secret), HANDSHAKE_OK);
    close(fd);
    node_stop(&a);
}
END_TEST

START_TEST(what_a_deaf_peer_leaves_unsent_is_bounded)
{
    struct node a;
    node_start(&a, 1, CLUSTER, secret, 0);
    int fd = dial(&a);
    ck_assert_int_eq(shake(fd, CLUSTER, 2, 1, secret), HANDSHAKE_OK);
    wait_for(a.connected);
    for (uint32_t i = 0; i < 400; i++) send_entry(&a, 2, 512u << 10); /* 200 MiB that nobody reads */
    wait_for(stats(&a).frames_dropped > 100);
    ck_assert_uint_le(stats(&a).unsent_bytes_max, TRANSPORT_UNSENT_BYTES_MAX + TRANSPORT_UNSENT_SMALL_MAX);
    send_vote(&a, 2); /* still has its place */
    usleep(50000);
    wait_for(!a.connected); /* neither reads nor speaks */
    close(fd);
    node_stop(&a);
}
END_TEST

START_TEST(options_and_addresses_are_checked)
{
    struct node n = { 0 };
    struct err err = { 0 };
    struct transport *t;
    ck_assert_int_eq(loop_new(on_tick, &n, &n.loop, NULL), OMEN_OK);
    struct transport_options o = { .loop = n.loop,
        .cluster_id = 1,
        .node_id = 1,
        .secret = secret,
        .secret_len = HANDSHAKE_SECRET_BYTES_MIN - 1,
        .now_ms = now_ms,
        .on_frame = on_frame };
    ck_assert_int_eq(transport_new(&o, &t, &err), OMEN_EINVAL);
    o.secret_len = sizeof secret;
    o.node_id = 0;
    ck_assert_int_eq(transport_new(&o, &t, &err), OMEN_EINVAL);
    o.node_id = 1;
    ck_assert_int_eq(transport_new(&o, &t, &err), OMEN_OK);
    const char *bad[] = { "", "host", ":1", "host:", "host:x", "host:65536", "host:-1", "host:1x" };
    for (uint32_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        ck_assert_int_eq(transport_set_peer(t, 2, bad[i], &err), OMEN_EINVAL);
    ck_assert_int_eq(transport_set_peer(t, 1, "127.0.0.1:9", &err), OMEN_EINVAL);
    ck_assert_int_eq(transport_set_peer(t, 2, "[::1]:9", &err), OMEN_OK);
    ck_assert_int_eq(transport_set_peer(t, 2, NULL, &err), OMEN_OK);
    transport_close(t, NULL, NULL);
    loop_stop(n.loop);
    transport_free(t);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("transport");
    TCase *tc = tcase_create("transport");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, two_nodes_keep_one_connection_and_speak_both_ways);
    tcase_add_test(tc, the_higher_id_dials_when_the_lower_does_not);
    tcase_add_test(tc, a_restarted_node_is_found_again);
    tcase_add_test(tc, wrong_secret_cluster_and_node_are_refused_and_counted);
    tcase_add_test(tc, nodes_with_different_secrets_never_connect);
    tcase_add_test(tc, a_proof_cannot_be_replayed_or_reflected);
    tcase_add_test(tc, garbage_and_announced_gigabytes_are_cut);
    tcase_add_test(tc, what_is_announced_and_does_not_come_costs_little);
    tcase_add_test(tc, silent_strangers_are_few_and_leave);
    tcase_add_test(tc, what_a_deaf_peer_leaves_unsent_is_bounded);
    tcase_add_test(tc, options_and_addresses_are_checked);
    suite_add_tcase(s, tc);
    SRunner *runner = srunner_create(s);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}
