/* The server of files by itself: leases begin, live, expire and end; ranges; limits; what its requests may not do. */
#include "common/err.h"

#include <check.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "common/crc32c.h"
#include "node/ship.h"

#define GROUP 5u

static _Atomic uint64_t now;
static uint64_t clock_ns(struct clock *c) { return atomic_load(&now); }
static struct clock clock_fake = { .monotonic_ns = clock_ns };
static struct ship *ship;
static _Atomic int opened, closed;
static _Atomic bool refuse;
static struct arena arena;

/* A source of one file of 1,000 bytes. */
static enum omen_err source_open(void *arg, uint64_t sequence, struct ship_checkpoint *out, struct err *err)
{
    struct buf content, description;
    if (atomic_load(&refuse)) return err_set(err, OMEN_EUNAVAILABLE, "", "not now");
    buf_init(&content);
    buf_init(&description);
    for (int i = 0; i < 1000; i++) buf_append(&content, &(uint8_t){ (uint8_t)(i * 7) }, 1);
    buf_append(&description, "base", 4);
    ship_bytes_checkpoint("CATALOG", &content, &description, 3, 90, 80, out);
    atomic_fetch_add(&opened, 1);
    return OMEN_OK;
}

static void source_close(void *self)
{
    atomic_fetch_add(&closed, 1);
    ship_bytes_close(self);
}

static void source_register(void)
{
    ship_register(ship, GROUP,
            &(struct ship_source){ NULL, source_open, ship_bytes_read, ship_bytes_sum, source_close });
}

static void setup(void)
{
    atomic_store(&now, 1000000000ull);
    atomic_store(&opened, 0);
    atomic_store(&closed, 0);
    atomic_store(&refuse, false);
    arena_init(&arena, 4096, 0);
    ck_assert_int_eq(ship_start(&(struct ship_options){ .clock = &clock_fake }, &ship, NULL), OMEN_OK);
    source_register();
}

static void teardown(void)
{
    ship_unregister(ship, GROUP);
    ship_stop(ship);
    ck_assert_int_eq(atomic_load(&opened), atomic_load(&closed));
    arena_fini(&arena);
}

/* ---- requests ---- */

struct asked {
    struct ship_call call; /* first */
    struct buf body, reply;
    pthread_mutex_t lock;
    pthread_cond_t cond;
    bool over;
};

static void asked_done(struct ship_call *call)
{
    struct asked *a = (struct asked *)call;
    pthread_mutex_lock(&a->lock);
    a->over = true;
    pthread_cond_signal(&a->cond);
    pthread_mutex_unlock(&a->lock);
}

static struct file_reply ask(const struct file_request *request)
{
    static struct asked a;
    struct file_reply reply;
    struct err err;
    buf_fini(&a.body);
    buf_fini(&a.reply); /* of the call before: its reply borrowed from it */
    a = (struct asked){ .lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER };
    file_request_encode(request, &a.body);
    a.call = (struct ship_call){ .body = { a.body.data, a.body.len }, .reply = &a.reply, .done = asked_done };
    ship_serve(ship, &a.call);
    pthread_mutex_lock(&a.lock);
    while (!a.over) pthread_cond_wait(&a.cond, &a.lock);
    pthread_mutex_unlock(&a.lock);
    enum omen_err rc = file_reply_decode(request->op, (struct bytes){ a.reply.data, a.reply.len }, &arena,
            &reply, &err);
    ck_assert_msg(rc == OMEN_OK, "%s", err.message);
    return reply;
}

static struct file_reply ask_lease(uint64_t group)
{
    return ask(&(struct file_request){ .op = FILE_LEASE, .group = group, .sequence = 1 });
}

static struct file_reply ask_range(uint64_t lease, uint32_t file, uint64_t offset, uint32_t len)
{
    return ask(&(struct file_request){ .op = FILE_READ,
            .lease = lease,
            .file = file,
            .offset = offset,
            .len = len });
}

static enum omen_err ask_code(enum file_op op, uint64_t lease)
{
    return ask(&(struct file_request){ .op = op, .lease = lease }).code;
}

/* ---- tests ---- */

START_TEST(ranges_of_a_lease_are_its_file)
{
    uint8_t whole[1000];
    uint32_t file_crc = 0;
    struct file_reply lease = ask_lease(GROUP);
    ck_assert_int_eq(lease.code, OMEN_OK);
    ck_assert_uint_eq(lease.replica_id, 3);
    ck_assert_uint_eq(lease.sequence, 90);
    ck_assert_uint_eq(lease.base_sequence, 80);
    ck_assert_uint_eq(lease.file_count, 1);
    ck_assert_str_eq(lease.files[0].name, "CATALOG");
    ck_assert(memcmp(lease.description.data, "base", 4) == 0);
    uint64_t id = lease.lease;
    for (uint32_t at = 0; at < 1000; at += 300) {
        uint32_t len = at + 300 > 1000 ? 1000 - at : 300;
        struct file_reply r = ask_range(id, 0, at, len);
        ck_assert_int_eq(r.code, OMEN_OK);
        ck_assert_uint_eq(r.data.len, len);
        memcpy(whole + at, r.data.data, len);
        ck_assert(r.has_file_crc == (at + len == 1000));
        file_crc = r.file_crc;
    }
    for (int i = 0; i < 1000; i++) ck_assert_uint_eq(whole[i], (uint8_t)(i * 7));
    ck_assert_uint_eq(file_crc, crc32c(0, whole, 1000));
    ck_assert_int_eq(ask_code(FILE_RELEASE, id), OMEN_OK);
    ck_assert_int_eq(atomic_load(&closed), 1);
    ck_assert_int_eq(ask_range(id, 0, 0, 1).code, OMEN_ENOTFOUND);
}
END_TEST

START_TEST(what_lies_outside_is_refused)
{
    uint64_t id = ask_lease(GROUP).lease;
    ck_assert_int_eq(ask_range(id, 0, 999, 2).code, OMEN_EINVAL);
    ck_assert_int_eq(ask_range(id, 0, UINT64_MAX, 1).code, OMEN_EINVAL);
    ck_assert_int_eq(ask_range(id, 1, 0, 1).code, OMEN_EINVAL);
    ck_assert_int_eq(ask_range(id + 1, 0, 0, 1).code, OMEN_ENOTFOUND);
    ck_assert_int_eq(ask_lease(GROUP + 1).code, OMEN_ENOTFOUND);
    atomic_store(&refuse, true);
    struct file_reply reply = ask_lease(GROUP);
    ck_assert_int_eq(reply.code, OMEN_EUNAVAILABLE);
    ck_assert_str_eq(reply.err.message, "not now");
    uint8_t garbage[] = { 9, 9, 9 };
    struct file_request unused;
    ck_assert_int_eq(file_request_decode((struct bytes){ garbage, 3 }, &unused, NULL), OMEN_EPROTO);
}
END_TEST

START_TEST(leases_are_bounded_and_silence_ends_them)
{
    uint64_t ids[SHIP_GROUP_LEASES_MAX];
    for (uint32_t i = 0; i < SHIP_GROUP_LEASES_MAX; i++) ids[i] = ask_lease(GROUP).lease;
    struct file_reply reply = ask_lease(GROUP);
    ck_assert_int_eq(reply.code, OMEN_EBUSY);
    ck_assert_uint_gt(reply.err.retry_after_ms, 0);
    /* The first is renewed, the others are not. */
    atomic_fetch_add(&now, SHIP_LEASE_MS * 1000000ull / 2);
    ck_assert_int_eq(ask_code(FILE_RENEW, ids[0]), OMEN_OK);
    atomic_fetch_add(&now, SHIP_LEASE_MS * 1000000ull / 2 + 1000000);
    ck_assert_int_eq(ask_lease(GROUP).code, OMEN_OK);
    ck_assert_int_eq(atomic_load(&closed), (int)SHIP_GROUP_LEASES_MAX - 1);
    ck_assert_int_eq(ask_range(ids[0], 0, 0, 1).code, OMEN_OK);
    ck_assert_int_eq(ask_range(ids[1], 0, 0, 1).code, OMEN_ENOTFOUND);
    struct ship_stats stats;
    ship_stats(ship, &stats);
    ck_assert_uint_eq(stats.leases, 2);
}
END_TEST

START_TEST(a_group_that_leaves_takes_its_leases_along)
{
    uint64_t id = ask_lease(GROUP).lease;
    ship_unregister(ship, GROUP);
    ck_assert_int_eq(atomic_load(&closed), 1);
    ck_assert_int_eq(ask_range(id, 0, 0, 1).code, OMEN_ENOTFOUND);
    ck_assert_int_eq(ask_lease(GROUP).code, OMEN_ENOTFOUND);
    source_register();
    ck_assert_int_eq(ask_lease(GROUP).code, OMEN_OK);
}
END_TEST

/* Requests of several threads beside a source that comes and goes. */
static _Atomic bool stop;

static void *asker(void *arg)
{
    while (!atomic_load(&stop)) {
        struct asked a = { .lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER };
        struct file_request r = { .op = FILE_LEASE, .group = GROUP };
        file_request_encode(&r, &a.body);
        a.call = (struct ship_call){ .body = { a.body.data, a.body.len },
            .reply = &a.reply,
            .done = asked_done };
        ship_serve(ship, &a.call);
        pthread_mutex_lock(&a.lock);
        while (!a.over) pthread_cond_wait(&a.cond, &a.lock);
        pthread_mutex_unlock(&a.lock);
        buf_fini(&a.body);
        buf_fini(&a.reply);
    }
    return NULL;
}

START_TEST(a_source_may_leave_beside_requests)
{
    pthread_t threads[3];
    atomic_store(&stop, false);
    for (int i = 0; i < 3; i++) ck_assert_int_eq(pthread_create(&threads[i], NULL, asker, NULL), 0);
    for (int i = 0; i < 200; i++) {
        usleep(500);
        ship_unregister(ship, GROUP);
        ck_assert_int_eq(atomic_load(&opened), atomic_load(&closed));
        source_register();
    }
    atomic_store(&stop, true);
    for (int i = 0; i < 3; i++) pthread_join(threads[i], NULL);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("ship");
    TCase *tc = tcase_create("ship");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, ranges_of_a_lease_are_its_file);
    tcase_add_test(tc, what_lies_outside_is_refused);
    tcase_add_test(tc, leases_are_bounded_and_silence_ends_them);
    tcase_add_test(tc, a_group_that_leaves_takes_its_leases_along);
    tcase_add_test(tc, a_source_may_leave_beside_requests);
    suite_add_tcase(s, tc);
    SRunner *runner = srunner_create(s);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}
