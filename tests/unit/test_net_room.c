/* The budget for messages that are coming in: never more than it and one message, and nobody waits for ever. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "common/net/net_room.h"

#define PEERS 40
#define MESSAGES 3000
#define MESSAGE_MAX 64
#define IDLE_MAX 100000 /* steps without a message: a hundred turns of the line */

struct sender {
    struct net_room_peer peer;
    uint64_t announced, has; /* 0 = between messages */
};

static struct sender *sender_of(struct net_room_peer *peer)
{
    return (struct sender *)((char *)peer - offsetof(struct sender, peer));
}

/* Whoever is not in line does what it likes: begins, grows by doubling, is done, or vanishes in the middle. */
static void act(struct net_room *room, struct sender *s, uint32_t *done)
{
    if (s->peer.waiting) {
        if (rand() % 50 != 0) return;
        net_room_leave(room, &s->peer); /* the connection broke while it was in line */
        s->has = s->announced = 0;
    } else if (s->announced == 0) {
        s->announced = 1 + (uint64_t)rand() % MESSAGE_MAX;
    } else if (s->has < s->announced) {
        uint64_t more = s->has == 0 ? 1 : s->has * 2;
        if (more > s->announced) more = s->announced;
        s->has = more;
        if (net_room_ask(room, &s->peer, more)) ck_assert_uint_eq(s->peer.bytes, more);
    } else if (rand() % 4 == 0) {
        net_room_leave(room, &s->peer);
        s->has = s->announced = 0;
        ++*done;
    }
}

START_TEST(room_is_bounded_and_everybody_gets_it)
{
    static struct sender senders[PEERS];
    struct net_room room = { .bytes_max = 100 };
    uint32_t done = 0, waited = 0, beyond = 0;
    const char *given = getenv("OMEN_TEST_SEED");
    unsigned seed = given != NULL ? (unsigned)strtoul(given, NULL, 10) : (unsigned)time(NULL);
    printf("seed %u\n", seed);
    srand(seed);
    for (uint32_t idle = 0, before = 0; done < MESSAGES;
            idle = done == before ? idle + 1 : 0, before = done) {
        ck_assert_msg(idle < IDLE_MAX, "%u messages through, and no more", done);
        act(&room, &senders[rand() % PEERS], &done);
        if (rand() % 3 == 0) {
            struct net_room_peer *peer = net_room_next(&room);
            if (peer != NULL) ck_assert_uint_eq(peer->bytes, sender_of(peer)->has);
        }
        uint64_t sum = 0;
        for (uint32_t i = 0; i < PEERS; i++) {
            sum += senders[i].peer.bytes;
            waited += senders[i].peer.waiting;
        }
        ck_assert_uint_eq(room.bytes, sum);
        ck_assert_uint_le(sum - (room.over != NULL ? room.over->bytes : 0), room.bytes_max);
        beyond += sum > room.bytes_max;
    }
    ck_assert_uint_gt(waited, 0);
    ck_assert_uint_gt(beyond, 0);
    for (uint32_t i = 0; i < PEERS; i++) net_room_leave(&room, &senders[i].peer);
    ck_assert_uint_eq(room.bytes, 0);
    ck_assert(room.first == NULL && room.last == NULL && room.over == NULL);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("net_room");
    TCase *tc = tcase_create("room");
    tcase_add_test(tc, room_is_bounded_and_everybody_gets_it);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}
