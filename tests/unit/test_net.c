/* Requests and replies over real sockets on loopback: what a handler gets, what a caller learns when things go
 * wrong. */
#include <arpa/inet.h>
#include <check.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "common/check.h"
#include "common/net/net.h"

#define MESSAGE_MAX (1u << 20)

static struct err err;

static struct bytes text(const char *s) { return (struct bytes){ (const uint8_t *)s, strlen(s) }; }

static void sleep_ms(long ms) { nanosleep(&(struct timespec){ ms / 1000, ms % 1000 * 1000000 }, NULL); }

/* ---- handlers ---- */

static void echo(void *arg, struct net_request *request, struct bytes message)
{
    net_reply(request, message);
}

static bool is_ping(struct bytes message) { return message.len == 4 && memcmp(message.data, "ping", 4) == 0; }

/* Keeps requests until the test releases them, newest first; pings are answered at once. */
struct holder {
    pthread_mutex_t lock;
    struct net_request *held[256];
    struct bytes messages[256];
    uint32_t count;
    bool drop; /* reply at once instead */
};

static void hold(void *arg, struct net_request *request, struct bytes message)
{
    struct holder *h = arg;
    pthread_mutex_lock(&h->lock);
    bool keep = !h->drop && !is_ping(message);
    if (keep) {
        CHECK(h->count < 256);
        h->messages[h->count] = message;
        h->held[h->count++] = request;
    }
    pthread_mutex_unlock(&h->lock);
    if (!keep) net_reply(request, message);
}

static uint32_t held(struct holder *h)
{
    pthread_mutex_lock(&h->lock);
    uint32_t count = h->count;
    pthread_mutex_unlock(&h->lock);
    return count;
}

static void wait_held(struct holder *h, uint32_t count)
{
    for (int i = 0; i < 1000 && held(h) < count; i++) sleep_ms(10);
    ck_assert_uint_eq(held(h), count);
}

static void release(struct holder *h)
{
    pthread_mutex_lock(&h->lock);
    while (h->count > 0) {
        h->count--;
        net_reply(h->held[h->count], h->messages[h->count]);
    }
    pthread_mutex_unlock(&h->lock);
}

static struct net_server *serve(const char *url, uint32_t contexts, void *handle, void *arg)
{
    struct net_server_options options = { .url = url,
        .contexts = contexts,
        .message_bytes_max = MESSAGE_MAX,
        .arg = arg };
    memcpy(&options.handle, &handle, sizeof handle);
    struct net_server *server = NULL;
    ck_assert_msg(net_server_start(&options, &server, &err) == OMEN_OK, "%s", err.message);
    return server;
}

static struct net_client *open_client(uint16_t port)
{
    char url[64];
    struct net_client *client = NULL;
    snprintf(url, sizeof url, "tcp://127.0.0.1:%u", port);
    ck_assert_msg(net_client_open(url, MESSAGE_MAX, &client, &err) == OMEN_OK, "%s", err.message);
    return client;
}

/* However slow the machine: pings until one is answered. */
static void wait_connected(struct net_client *client)
{
    struct buf reply;
    enum omen_err rc = OMEN_EUNAVAILABLE;
    buf_init(&reply);
    for (int i = 0; i < 1000 && rc != OMEN_OK; i++) {
        rc = net_call(client, text("ping"), 5000, &reply, &err);
        if (rc != OMEN_OK) sleep_ms(10);
    }
    ck_assert_msg(rc == OMEN_OK, "%s", err.message);
    buf_fini(&reply);
}

static struct net_client *client_of(uint16_t port)
{
    struct net_client *client = open_client(port);
    wait_connected(client);
    return client;
}

/* ---- asynchronous calls ---- */

struct results {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint32_t count, by_code[OMEN_ERR_COUNT];
};

#define RESULTS                                                                                              \
    {                                                                                                        \
        .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER                               \
    }

static void collect(void *arg, enum omen_err result, struct bytes reply)
{
    struct results *r = arg;
    pthread_mutex_lock(&r->lock);
    r->count++;
    r->by_code[result]++;
    pthread_cond_signal(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

static void wait_results(struct results *r, uint32_t count)
{
    pthread_mutex_lock(&r->lock);
    while (r->count < count) pthread_cond_wait(&r->changed, &r->lock);
    pthread_mutex_unlock(&r->lock);
}

/* ---- promises ---- */

START_TEST(replies_reach_their_callers)
{
    struct net_server *server = serve("tcp://127.0.0.1:0", 8, (void *)(uintptr_t)echo, NULL);
    struct net_client *client = client_of(net_server_port(server));
    uint8_t *big = calloc(1, MESSAGE_MAX);
    for (uint32_t i = 0; i < 200; i++) {
        struct buf reply;
        buf_init(&reply);
        size_t len = i < 190 ? i * 37 : MESSAGE_MAX;
        big[0] = (uint8_t)i;
        ck_assert_msg(net_call(client, (struct bytes){ big, len }, 10000, &reply, &err) == OMEN_OK, "%s",
                err.message);
        ck_assert_uint_eq(reply.len, len);
        ck_assert_mem_eq(reply.data, big, len);
        buf_fini(&reply);
    }
    free(big);
    net_client_close(client);
    net_server_stop(server);
}
END_TEST

START_TEST(many_calls_are_outstanding_at_once)
{
    struct holder h = { .lock = PTHREAD_MUTEX_INITIALIZER };
    struct results r = RESULTS;
    struct net_server *server = serve("tcp://127.0.0.1:0", 128, (void *)(uintptr_t)hold, &h);
    struct net_client *client = client_of(net_server_port(server));
    for (int i = 0; i < 100; i++) {
        ck_assert_int_eq(net_call_start(client, text("x"), 20000, collect, &r, &err), OMEN_OK);
    }
    wait_held(&h, 100);
    release(&h);
    wait_results(&r, 100);
    ck_assert_uint_eq(r.by_code[OMEN_OK], 100);
    net_client_close(client);
    net_server_stop(server);
}
END_TEST

#define BACK_TO_BACK 400
#define LARGE_MAX (5u << 20)
struct sized {
    struct results results;
    uint32_t sizes[BACK_TO_BACK], wrong;
};
struct sized_call {
    struct sized *all;
    uint32_t number;
};

static uint8_t pattern(uint32_t number, uint32_t at) { return (uint8_t)(number * 31 + at * 7 + (at >> 8)); }

static void check_pattern(void *arg, enum omen_err result, struct bytes reply)
{
    struct sized_call *call = arg;
    bool right = result == OMEN_OK && reply.len == call->all->sizes[call->number];
    for (uint32_t i = 0; right && i < reply.len; i++) right = reply.data[i] == pattern(call->number, i);
    pthread_mutex_lock(&call->all->results.lock);
    call->all->wrong += !right;
    pthread_mutex_unlock(&call->all->results.lock);
    collect(&call->all->results, result, reply);
}

/* Whatever their sizes, above all around those of the buffers on the way: staging of 16 KiB, first room of 64 KiB, then
 * 1 MiB, which doubles. */
static void frames_come_whole(const char *listen, bool ipc)
{
    static struct sized all = { .results = RESULTS };
    static struct sized_call calls[BACK_TO_BACK];
    static const uint32_t edges[] = { 0, 1, 100, (16u << 10) - 12, 16u << 10, 65536, (1u << 20) - 20,
        (2u << 20) - 20, (4u << 20) - 20, LARGE_MAX - 20 };
    char url[64];
    unsigned seed = (unsigned)time(NULL);
    printf("seed %u\n", seed);
    srand(seed);
    struct net_server_options options = { .url = listen,
        .contexts = 16,
        .message_bytes_max = LARGE_MAX,
        .handle = echo };
    struct net_server *server = NULL;
    struct net_client *client = NULL;
    ck_assert_int_eq(net_server_start(&options, &server, &err), OMEN_OK);
    snprintf(url, sizeof url, "tcp://127.0.0.1:%u", net_server_port(server));
    ck_assert_int_eq(net_client_open(ipc ? listen : url, LARGE_MAX, &client, &err), OMEN_OK);
    wait_connected(client);
    uint8_t *message = mem_must_alloc(LARGE_MAX);
    for (uint32_t n = 0; n < BACK_TO_BACK; n++) {
        uint32_t size = edges[(uint32_t)rand() % (n % 20 == 0 ? 10 : 6)] + (uint32_t)rand() % 40;
        all.sizes[n] = size > LARGE_MAX ? LARGE_MAX : size;
        calls[n] = (struct sized_call){ &all, n };
        for (uint32_t i = 0; i < all.sizes[n]; i++) message[i] = pattern(n, i);
        ck_assert_int_eq(net_call_start(client, (struct bytes){ message, all.sizes[n] }, 60000, check_pattern,
                                 &calls[n], &err),
                OMEN_OK);
    }
    wait_results(&all.results, BACK_TO_BACK);
    ck_assert_uint_eq(all.wrong, 0);
    mem_free(message);
    net_client_close(client);
    net_server_stop(server);
}

START_TEST(frames_back_to_back_come_whole) { frames_come_whole("tcp://127.0.0.1:0", false); }
END_TEST

START_TEST(frames_back_to_back_come_whole_over_ipc)
{
    char dir[] = "/tmp/omen-XXXXXX", url[64];
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(url, sizeof url, "ipc://%s/s", dir);
    frames_come_whole(url, true);
    ck_assert_int_eq(rmdir(dir), 0);
}
END_TEST

static void *hang_up_often(void *arg)
{
    static const char bytes[] = "\0SP\0\0\x30\0\0\0\0\0\0\0\0\0\x06\x80\0\0\1hi";
    struct sockaddr_in address = { .sin_family = AF_INET,
        .sin_port = htons(*(uint16_t *)arg),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    for (int i = 0; i < 300; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        ck_assert_int_eq(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
        (void)!send(fd, bytes, sizeof bytes - 1, MSG_NOSIGNAL);
        if (i % 3 == 0) sleep_ms(1);
        close(fd);
    }
    return NULL;
}

/* One context, and peers that send a whole request and hang up: whoever waits in line may be gone, and its place with
 * another, when the context is free. None keeps it for ever, and the server stops. */
START_TEST(peers_that_hang_up_in_line_keep_no_context)
{
    struct net_server *server = serve("tcp://127.0.0.1:0", 1, (void *)(uintptr_t)echo, NULL);
    uint16_t port = net_server_port(server);
    pthread_t threads[6];
    for (int i = 0; i < 6; i++) ck_assert_int_eq(pthread_create(&threads[i], NULL, hang_up_often, &port), 0);
    for (int i = 0; i < 6; i++) pthread_join(threads[i], NULL);
    net_client_close(client_of(port));
    net_server_stop(server);
}
END_TEST

/* More requests than contexts wait in the connection and are served later: none is lost. */
START_TEST(requests_beyond_the_contexts_wait)
{
    struct holder h = { .lock = PTHREAD_MUTEX_INITIALIZER };
    struct results r = RESULTS;
    struct net_server *server = serve("tcp://127.0.0.1:0", 4, (void *)(uintptr_t)hold, &h);
    struct net_client *client = client_of(net_server_port(server));
    for (int i = 0; i < 20; i++) {
        ck_assert_int_eq(net_call_start(client, text("x"), 20000, collect, &r, &err), OMEN_OK);
    }
    wait_held(&h, 4);
    sleep_ms(50);
    ck_assert_uint_eq(held(&h), 4);
    pthread_mutex_lock(&h.lock);
    h.drop = true;
    pthread_mutex_unlock(&h.lock);
    release(&h);
    wait_results(&r, 20);
    ck_assert_uint_eq(r.by_code[OMEN_OK], 20);
    net_client_close(client);
    net_server_stop(server);
}
END_TEST

START_TEST(deadline_after_sending_is_unknown)
{
    struct holder h = { .lock = PTHREAD_MUTEX_INITIALIZER };
    struct net_server *server = serve("tcp://127.0.0.1:0", 4, (void *)(uintptr_t)hold, &h);
    struct net_client *client = client_of(net_server_port(server));
    struct buf reply;
    buf_init(&reply);
    ck_assert_int_eq(net_call(client, text("x"), 300, &reply, &err), OMEN_EUNKNOWN);
    ck_assert_uint_eq(held(&h), 1);
    release(&h); /* its late reply must not answer the next call */
    pthread_mutex_lock(&h.lock);
    h.drop = true;
    pthread_mutex_unlock(&h.lock);
    ck_assert_int_eq(net_call(client, text("y"), 5000, &reply, &err), OMEN_OK);
    ck_assert_mem_eq(reply.data, "y", 1);
    buf_fini(&reply);
    net_client_close(client);
    net_server_stop(server);
}
END_TEST

START_TEST(nobody_listening_is_unavailable_long_before_the_deadline)
{
    struct net_server *server = serve("tcp://127.0.0.1:0", 1, (void *)(uintptr_t)echo, NULL);
    uint16_t port = net_server_port(server);
    net_server_stop(server);
    struct net_client *client = open_client(port);
    struct results r = RESULTS;
    struct buf reply;
    buf_init(&reply);
    /* With a deadline of an hour the test's own time limit is the measure. */
    ck_assert_int_eq(net_call_start(client, text("x"), 3600000, collect, &r, &err), OMEN_OK);
    ck_assert_int_eq(net_call(client, text("x"), 3600000, &reply, &err), OMEN_EUNAVAILABLE);
    wait_results(&r, 1);
    ck_assert_uint_eq(r.by_code[OMEN_EUNAVAILABLE], 1);
    ck_assert_int_eq(net_call_start(client, text("x"), 3600000, collect, &r, &err), OMEN_EUNAVAILABLE);
    buf_fini(&reply);
    net_client_close(client);
}
END_TEST

START_TEST(client_returns_to_a_restarted_server)
{
    struct net_server *server = serve("tcp://127.0.0.1:0", 4, (void *)(uintptr_t)echo, NULL);
    char url[64];
    snprintf(url, sizeof url, "tcp://127.0.0.1:%u", net_server_port(server));
    struct net_client *client = client_of(net_server_port(server));
    struct buf reply;
    buf_init(&reply);
    for (int round = 0; round < 3; round++) {
        enum omen_err rc = OMEN_EUNAVAILABLE;
        for (int i = 0; i < 500 && rc == OMEN_EUNAVAILABLE; i++) {
            rc = net_call(client, text("x"), 5000, &reply, &err);
            if (rc != OMEN_OK) sleep_ms(10);
        }
        ck_assert_msg(rc == OMEN_OK, "%s", err.message);
        net_server_stop(server);
        for (int i = 0; i < 500 && rc != OMEN_EUNAVAILABLE; i++)
            rc = net_call(client, text("x"), 5000, &reply, &err);
        ck_assert_int_eq(rc, OMEN_EUNAVAILABLE);
        server = serve(url, 4, (void *)(uintptr_t)echo, NULL);
    }
    buf_fini(&reply);
    net_client_close(client);
    net_server_stop(server);
}
END_TEST

/* A client's own limit is an error before anything is sent; a server's cuts the connection of who ignores it. */
START_TEST(oversize_messages_are_refused)
{
    struct net_server *server = serve("tcp://127.0.0.1:0", 4, (void *)(uintptr_t)echo, NULL);
    char url[64];
    snprintf(url, sizeof url, "tcp://127.0.0.1:%u", net_server_port(server));
    struct net_client *careful = client_of(net_server_port(server)), *careless = NULL;
    ck_assert_int_eq(net_client_open(url, 4 * MESSAGE_MAX, &careless, &err), OMEN_OK);
    wait_connected(careless);
    uint8_t *big = calloc(1, 2 * MESSAGE_MAX);
    struct buf reply;
    buf_init(&reply);
    ck_assert_int_eq(net_call(careful, (struct bytes){ big, MESSAGE_MAX + 1 }, 5000, &reply, &err),
            OMEN_ETOOBIG);
    ck_assert_int_eq(net_call(careless, (struct bytes){ big, MESSAGE_MAX + 1 }, 60000, &reply, &err),
            OMEN_EUNKNOWN);
    ck_assert_int_eq(net_call(careful, (struct bytes){ big, MESSAGE_MAX }, 60000, &reply, &err), OMEN_OK);
    ck_assert_uint_eq(reply.len, MESSAGE_MAX);
    free(big);
    buf_fini(&reply);
    net_client_close(careful);
    net_client_close(careless);
    net_server_stop(server);
}
END_TEST

/* A peer that takes connections and reads nothing: one request is on its way, the rest are queued. When the
 * connection breaks, what was queued has never left and may go elsewhere at once. */
START_TEST(a_lost_connection_tells_sent_from_unsent)
{
    static const uint8_t opening[8] = { 0, 'S', 'P', 0, 0, 0x31, 0, 0 };
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t address_len = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0), small = 4096;
    setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    ck_assert_int_eq(bind(listener, (struct sockaddr *)&address, sizeof address), 0);
    ck_assert_int_eq(listen(listener, 4), 0);
    ck_assert_int_eq(getsockname(listener, (struct sockaddr *)&address, &address_len), 0);
    char url[64];
    struct net_client *client = NULL;
    snprintf(url, sizeof url, "tcp://127.0.0.1:%u", ntohs(address.sin_port));
    ck_assert_int_eq(net_client_open(url, 32 * MESSAGE_MAX, &client, &err), OMEN_OK);
    int fd = accept(listener, NULL, NULL);
    ck_assert_int_eq(write(fd, opening, sizeof opening), (ssize_t)sizeof opening);
    sleep_ms(300); /* connected by now, or the calls below fail the test */
    struct results r = RESULTS;
    uint8_t *big = calloc(32, MESSAGE_MAX); /* more than any socket buffer takes */
    for (int i = 0; i < 4; i++) {
        struct bytes message = { big, 32 * (size_t)MESSAGE_MAX };
        ck_assert_int_eq(net_call_start(client, message, 3600000, collect, &r, &err), OMEN_OK);
    }
    free(big);
    sleep_ms(100);
    close(listener);
    close(fd);
    wait_results(&r, 4);
    ck_assert_uint_eq(r.by_code[OMEN_EUNKNOWN], 1);
    ck_assert_uint_eq(r.by_code[OMEN_EUNAVAILABLE], 3);
    net_client_close(client);
}
END_TEST

static void *release_later(void *arg)
{
    sleep_ms(200);
    release(arg);
    return NULL;
}

START_TEST(stop_waits_for_the_handlers_and_sends_their_replies)
{
    struct holder h = { .lock = PTHREAD_MUTEX_INITIALIZER };
    struct results r = RESULTS;
    struct net_server *server = serve("tcp://127.0.0.1:0", 64, (void *)(uintptr_t)hold, &h);
    struct net_client *client = client_of(net_server_port(server));
    for (int i = 0; i < 32; i++) {
        ck_assert_int_eq(net_call_start(client, text("x"), 20000, collect, &r, &err), OMEN_OK);
    }
    wait_held(&h, 32);
    pthread_t thread;
    pthread_create(&thread, NULL, release_later, &h);
    net_server_stop(server);
    pthread_join(thread, NULL);
    wait_results(&r, 32);
    ck_assert_uint_eq(r.by_code[OMEN_OK], 32);
    net_client_close(client);
}
END_TEST

START_TEST(closing_a_client_cancels_its_calls)
{
    struct holder h = { .lock = PTHREAD_MUTEX_INITIALIZER };
    struct results r = RESULTS;
    struct net_server *server = serve("tcp://127.0.0.1:0", 64, (void *)(uintptr_t)hold, &h);
    struct net_client *client = client_of(net_server_port(server));
    for (int i = 0; i < 16; i++) {
        ck_assert_int_eq(net_call_start(client, text("x"), 60000, collect, &r, &err), OMEN_OK);
    }
    wait_held(&h, 16);
    net_client_close(client);
    ck_assert_uint_eq(r.count, 16);
    ck_assert_uint_eq(r.by_code[OMEN_ECANCELED], 16);
    release(&h); /* to a peer that is gone */
    net_server_stop(server);
}
END_TEST

#define FIRE_ROUNDS 60
#define FIRE_CALLERS 4
struct fire {
    struct net_client *client;
    _Atomic bool over;
    _Atomic uint32_t answered;
    pthread_mutex_t lock; /* held over net_call_start, and taken by `done`, as routers do */
    pthread_cond_t back;
    uint32_t flying;
};

static void fire_back(void *arg, enum omen_err result, struct bytes reply)
{
    struct fire *f = arg;
    pthread_mutex_lock(&f->lock);
    f->flying--;
    pthread_cond_signal(&f->back);
    pthread_mutex_unlock(&f->lock);
}

static void fire_volley(struct fire *f, struct bytes message)
{
    struct err e;
    pthread_mutex_lock(&f->lock);
    for (int i = 0; i < 16; i++) {
        f->flying++;
        if (net_call_start(f->client, message, 2000, fire_back, f, &e) != OMEN_OK) f->flying--;
    }
    while (f->flying > 0) pthread_cond_wait(&f->back, &f->lock);
    pthread_mutex_unlock(&f->lock);
}

static void *fire_at_will(void *arg)
{
    struct fire *f = arg;
    static const uint8_t large[200000];
    struct buf reply;
    buf_init(&reply);
    for (uint32_t i = 0; !f->over; i++) {
        buf_clear(&reply);
        struct bytes message = { large, i % 8 == 0 ? sizeof large : i % 100 };
        struct err e;
        if (net_call(f->client, message, 2000, &reply, &e) != OMEN_OK) continue;
        ck_assert_uint_eq(reply.len, message.len);
        f->answered++;
        fire_volley(f, (struct bytes){ large, 10 });
    }
    buf_fini(&reply);
    return NULL;
}

/* Servers come and go in the middle of requests and replies, whole and half ones, and clients too: every stop and
 * close comes to an end. (nng's own sockets hung here: see net_conn.h.) */
START_TEST(servers_stop_under_fire)
{
    struct net_server *server = serve("tcp://127.0.0.1:0", 3, (void *)(uintptr_t)echo, NULL);
    char url[64];
    snprintf(url, sizeof url, "tcp://127.0.0.1:%u", net_server_port(server));
    struct fire fires[FIRE_CALLERS] = { 0 };
    pthread_t threads[FIRE_CALLERS];
    for (int i = 0; i < FIRE_CALLERS; i++) {
        fires[i].client = open_client(net_server_port(server));
        pthread_mutex_init(&fires[i].lock, NULL);
        pthread_cond_init(&fires[i].back, NULL);
        ck_assert_int_eq(pthread_create(&threads[i], NULL, fire_at_will, &fires[i]), 0);
    }
    for (int round = 0; round < FIRE_ROUNDS; round++) {
        for (int i = 0; i < FIRE_CALLERS; i++) {
            uint32_t before = fires[i].answered;
            for (int w = 0; w < 2000 && fires[i].answered == before; w++) sleep_ms(5);
            ck_assert_uint_ne(fires[i].answered, before);
        }
        net_server_stop(server);
        server = serve(url, 3, (void *)(uintptr_t)echo, NULL);
        struct net_client *passing = open_client(
                net_server_port(server)); /* one that goes while it still connects */
        net_client_close(passing);
    }
    for (int i = 0; i < FIRE_CALLERS; i++) fires[i].over = true;
    for (int i = 0; i < FIRE_CALLERS; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < FIRE_CALLERS; i++) net_client_close(fires[i].client);
    net_server_stop(server);
}
END_TEST

/* A peer that sends garbage, announces 8 EB or hangs up in the middle hurts nobody else. */
START_TEST(hostile_peers_are_cut_off)
{
    struct net_server *server = serve("tcp://127.0.0.1:0", 2, (void *)(uintptr_t)echo, NULL);
    static const struct {
        const char *bytes;
        size_t len;
    } peers[] = {
        { "GET / HTTP/1.1\r\n\r\n", 18 },
        { "\0SP\0\0\x30\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", 16 },
        { "\0SP\0\0\x30\0\0\0\0\0\0\0\0\0\2ab", 18 },
        { "\0SP\0\0\x30\0\0\0\0\0\0\0\0\0\x10\x80\0", 18 },
        { "\0SP\0\0\x10\0\0", 8 },
    };
    struct sockaddr_in address = { .sin_family = AF_INET,
        .sin_port = htons(net_server_port(server)),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    for (size_t i = 0; i < sizeof peers / sizeof peers[0]; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        ck_assert_int_eq(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
        ck_assert_int_eq(write(fd, peers[i].bytes, peers[i].len), (ssize_t)peers[i].len);
        sleep_ms(20);
        close(fd);
    }
    struct net_client *client = client_of(net_server_port(server));
    struct buf reply;
    buf_init(&reply);
    ck_assert_int_eq(net_call(client, text("still here"), 5000, &reply, &err), OMEN_OK);
    buf_fini(&reply);
    net_client_close(client);
    net_server_stop(server);
}
END_TEST

/* Answers 16 MiB when that fits, else one byte. */
#define LARGE_BYTES (16u << 20)
#define GREEDY_REQUESTS 64
struct generous {
    pthread_mutex_t lock;
    uint32_t large, small;
};

static void answer_largely(void *arg, struct net_request *request, struct bytes message)
{
    struct generous *g = arg;
    bool fits = net_reply_fits(request, LARGE_BYTES);
    ck_assert(net_reply_fits(request, NET_REPLY_SMALL_BYTES));
    uint8_t *reply = mem_must_calloc(1, fits ? LARGE_BYTES : 1);
    pthread_mutex_lock(&g->lock);
    g->large += fits;
    g->small += !fits;
    pthread_mutex_unlock(&g->lock);
    net_reply(request, (struct bytes){ reply, fits ? LARGE_BYTES : 1 });
    mem_free(reply);
}

/* A peer that asks and never reads: what waits for it stays within its bound. */
START_TEST(replies_nobody_takes_are_bounded)
{
    struct generous g = { .lock = PTHREAD_MUTEX_INITIALIZER };
    struct net_server *server = serve("tcp://127.0.0.1:0", GREEDY_REQUESTS, (void *)(uintptr_t)answer_largely,
            &g);
    struct sockaddr_in address = { .sin_family = AF_INET,
        .sin_port = htons(net_server_port(server)),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    ck_assert_int_eq(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    ck_assert_int_eq(write(fd, "\0SP\0\0\x30\0\0", 8), 8);
    for (uint8_t i = 0; i < GREEDY_REQUESTS; i++) {
        uint8_t frame[12] = { 0, 0, 0, 0, 0, 0, 0, 4, 0x80, 0, 0, i };
        ck_assert_int_eq(write(fd, frame, sizeof frame), (ssize_t)sizeof frame);
    }
    uint32_t answered = 0;
    for (int i = 0; i < 1000 && answered < GREEDY_REQUESTS; i++) {
        sleep_ms(10);
        pthread_mutex_lock(&g.lock);
        answered = g.large + g.small;
        pthread_mutex_unlock(&g.lock);
    }
    /* One more may be in the connection's hands, and handlers that look at the same time may each add theirs. */
    ck_assert_uint_le(g.large, NET_REPLIES_BYTES_MAX / LARGE_BYTES + 8);
    ck_assert_uint_gt(g.small, 0);
    close(fd);
    net_server_stop(server);
}
END_TEST

/* ---- room for what comes in ---- */

#define ROOM_BYTES (4u << 20)
#define HALF_BYTES (300u << 10)

static struct net_server *serve_in_little_room(struct metric_counter *held_up, uint32_t frame_ms)
{
    struct net_server_options options = { .url = "tcp://127.0.0.1:0",
        .contexts = 8,
        .message_bytes_max = MESSAGE_MAX,
        .room_bytes_max = ROOM_BYTES,
        .frame_ms = frame_ms,
        .held_up = held_up,
        .handle = echo };
    struct net_server *server = NULL;
    ck_assert_msg(net_server_start(&options, &server, &err) == OMEN_OK, "%s", err.message);
    return server;
}

/* A peer that has announced MESSAGE_MAX. */
static int announce(const struct net_server *server)
{
    static const uint8_t bytes[] = { 0, 'S', 'P', 0, 0, 0x30, 0, 0, 0, 0, 0, 0, 0, MESSAGE_MAX >> 16, 0, 0,
        0x80, 0, 0, 1 };
    struct sockaddr_in address = { .sin_family = AF_INET,
        .sin_port = htons(net_server_port(server)),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    ck_assert_int_eq(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    ck_assert_int_eq(send(fd, bytes, sizeof bytes, MSG_NOSIGNAL), (ssize_t)sizeof bytes);
    return fd;
}

static void wait_count(const struct metric_counter *counter, uint64_t least)
{
    for (int i = 0; i < 2000 && atomic_load(&counter->value) < least; i++) sleep_ms(5);
    ck_assert_uint_ge(atomic_load(&counter->value), least);
}

/* Half-finished messages fill the budget, and one goes beyond it. Large ones wait then, small ones do not, and room
 * that is given back is theirs. */
START_TEST(messages_in_the_making_are_bounded)
{
    enum { HOLDERS = ROOM_BYTES / MESSAGE_MAX + 1, CALLS = 6 };
    struct metric_counter held_up = { 0 };
    struct results r = RESULTS;
    struct net_server *server = serve_in_little_room(&held_up, 0);
    struct net_client *small = client_of(net_server_port(server)), *large[CALLS];
    uint8_t *message = mem_must_calloc(1, MESSAGE_MAX);
    int fds[HOLDERS + 1];
    for (int i = 0; i < HOLDERS + 1; i++) {
        fds[i] = announce(server);
        ck_assert_int_eq(send(fds[i], message, HALF_BYTES, MSG_NOSIGNAL), HALF_BYTES);
    }
    wait_count(&held_up, 1); /* so all others hold what they announced */
    for (int i = 0; i < CALLS; i++) {
        large[i] = client_of(net_server_port(server));
        ck_assert_int_eq(net_call_start(large[i], (struct bytes){ message, MESSAGE_MAX - 100 }, 60000,
                                 collect, &r, &err),
                OMEN_OK);
    }
    wait_count(&held_up, 1 + CALLS);
    wait_connected(small);
    ck_assert_uint_eq(r.count, 0);
    for (int i = 0; i < HOLDERS + 1; i++) close(fds[i]);
    wait_results(&r, CALLS);
    ck_assert_uint_eq(r.by_code[OMEN_OK], CALLS);
    ck_assert_uint_eq(atomic_load(&held_up.value), 1 + CALLS);
    mem_free(message);
    for (int i = 0; i < CALLS; i++) net_client_close(large[i]);
    net_client_close(small);
    net_server_stop(server);
}
END_TEST

/* More at once than there is room for, all of them honest: each is served, whoever waited. */
START_TEST(whoever_waits_for_room_is_served)
{
    enum { CLIENTS = 24, EACH = 8 };
    struct metric_counter held_up = { 0 };
    struct results r = RESULTS;
    struct net_server *server = serve_in_little_room(&held_up, 0);
    struct net_client *clients[CLIENTS];
    uint8_t *message = mem_must_calloc(1, MESSAGE_MAX);
    for (int i = 0; i < CLIENTS; i++) clients[i] = client_of(net_server_port(server));
    for (uint32_t n = 0; n < CLIENTS * EACH; n++) {
        struct bytes part = { message, MESSAGE_MAX - n * 4000 };
        ck_assert_int_eq(net_call_start(clients[n % CLIENTS], part, 120000, collect, &r, &err), OMEN_OK);
    }
    wait_results(&r, CLIENTS * EACH);
    ck_assert_uint_eq(r.by_code[OMEN_OK], CLIENTS * EACH);
    printf("waited: %llu\n", (unsigned long long)atomic_load(&held_up.value));
    mem_free(message);
    for (int i = 0; i < CLIENTS; i++) net_client_close(clients[i]);
    net_server_stop(server);
}
END_TEST

/* Byte by byte, never pausing for long: it holds room, so it is cut all the same. */
START_TEST(a_message_that_trickles_is_cut)
{
    struct net_server *server = serve_in_little_room(NULL, 400);
    int fd = announce(server);
    bool cut = false;
    for (int i = 0; i < 4000 && !cut; i++) {
        cut = send(fd, "x", 1, MSG_NOSIGNAL) < 0;
        sleep_ms(10);
    }
    ck_assert(cut);
    close(fd);
    net_client_close(client_of(net_server_port(server)));
    net_server_stop(server);
}
END_TEST

START_TEST(ipc_serves_too)
{
    char dir[] = "/tmp/omen-XXXXXX", url[64];
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(url, sizeof url, "ipc://%s/s", dir);
    struct net_server *server = serve(url, 2, (void *)(uintptr_t)echo, NULL);
    struct net_client *client = NULL;
    struct buf reply;
    buf_init(&reply);
    ck_assert_int_eq(net_client_open(url, MESSAGE_MAX, &client, &err), OMEN_OK);
    wait_connected(client);
    ck_assert_int_eq(net_call(client, text("x"), 5000, &reply, &err), OMEN_OK);
    buf_fini(&reply);
    net_client_close(client);
    net_server_stop(server);
    ck_assert_int_eq(rmdir(dir), 0);
}
END_TEST

START_TEST(bad_addresses_are_errors)
{
    struct net_client *client = NULL;
    struct net_server *server = NULL;
    struct net_server_options options = { .url = "tcp://127.0.0.1:0",
        .contexts = 1,
        .message_bytes_max = 10,
        .handle = echo };
    ck_assert_int_ne(net_client_open("nonsense", 10, &client, &err), OMEN_OK);
    options.contexts = 100000;
    ck_assert_int_eq(net_server_start(&options, &server, &err), OMEN_EINVAL);
    ck_assert_str_eq(err.field, "contexts");
    options.contexts = 1;
    ck_assert_int_eq(net_server_start(&options, &server, &err), OMEN_OK);
    char url[64];
    snprintf(url, sizeof url, "tcp://127.0.0.1:%u", net_server_port(server));
    options.url = url;
    struct net_server *second = NULL;
    ck_assert_int_eq(net_server_start(&options, &second, &err), OMEN_EIO); /* taken */
    net_server_stop(server);
}
END_TEST

/* ---- http ---- */

static int page(void *arg, struct buf *body, const char **content_type_out)
{
    *content_type_out = "application/json";
    buf_printf(body, "{\"n\":%d}", *(int *)arg);
    return 200;
}

/* One request, the whole answer. */
static void http(uint16_t port, const char *request, char *out, size_t cap)
{
    struct sockaddr_in address = { .sin_family = AF_INET,
        .sin_port = htons(port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    ck_assert_int_eq(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    ck_assert_int_eq(write(fd, request, strlen(request)), (ssize_t)strlen(request));
    size_t len = 0;
    ssize_t n;
    while (len + 1 < cap && (n = read(fd, out + len, cap - 1 - len)) > 0) len += (size_t)n;
    out[len] = '\0';
    close(fd);
}

START_TEST(pages_are_served_and_nothing_else)
{
    int n = 7;
    char answer[4096], url[] = "http://127.0.0.1:0";
    struct net_http_page pages[] = { { "/metrics", page, &n }, { "/readyz", page, &n } };
    struct net_http *server = NULL;
    ck_assert_msg(net_http_start(url, pages, 2, &server, &err) == OMEN_OK, "%s", err.message);
    uint16_t port = net_http_port(server);
    ck_assert_uint_ne(port, 0);
    http(port, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", answer, sizeof answer);
    ck_assert_msg(strstr(answer, " 200 ") && strstr(answer, "{\"n\":7}") &&
                    strstr(answer, "application/json"),
            "%s", answer);
    http(port, "GET /other HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", answer, sizeof answer);
    ck_assert_msg(strstr(answer, " 404 ") != NULL, "%s", answer);
    http(port, "DELETE /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", answer, sizeof answer);
    ck_assert_msg(strstr(answer, " 405 ") != NULL, "%s", answer);
    net_http_stop(server);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("net");
    TCase *calls = tcase_create("calls"), *pages = tcase_create("pages");
    tcase_set_timeout(calls, 60);
    tcase_set_timeout(pages, 60);
    suite_add_tcase(suite, calls);
    suite_add_tcase(suite, pages);
    tcase_add_test(calls, replies_reach_their_callers);
    tcase_add_test(calls, many_calls_are_outstanding_at_once);
    tcase_add_test(calls, frames_back_to_back_come_whole);
    tcase_add_test(calls, frames_back_to_back_come_whole_over_ipc);
    tcase_add_test(calls, peers_that_hang_up_in_line_keep_no_context);
    tcase_add_test(calls, requests_beyond_the_contexts_wait);
    tcase_add_test(calls, deadline_after_sending_is_unknown);
    tcase_add_test(calls, nobody_listening_is_unavailable_long_before_the_deadline);
    tcase_add_test(calls, client_returns_to_a_restarted_server);
    tcase_add_test(calls, oversize_messages_are_refused);
    tcase_add_test(calls, a_lost_connection_tells_sent_from_unsent);
    tcase_add_test(calls, stop_waits_for_the_handlers_and_sends_their_replies);
    tcase_add_test(calls, closing_a_client_cancels_its_calls);
    tcase_add_test(calls, servers_stop_under_fire);
    tcase_add_test(calls, hostile_peers_are_cut_off);
    tcase_add_test(calls, replies_nobody_takes_are_bounded);
    tcase_add_test(calls, messages_in_the_making_are_bounded);
    tcase_add_test(calls, whoever_waits_for_room_is_served);
    tcase_add_test(calls, a_message_that_trickles_is_cut);
    tcase_add_test(calls, ipc_serves_too);
    tcase_add_test(calls, bad_addresses_are_errors);
    tcase_add_test(pages, pages_are_served_and_nothing_else);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}
