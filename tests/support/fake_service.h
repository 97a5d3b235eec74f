/* A shard_service for tests of the router: shards are tables in memory, answers are exact, and calls can be counted, held
 * back or made to fail. Vectors are ranked by their first component, so a test can say who is nearest. One thread. */
#ifndef OMEN_TESTS_SUPPORT_FAKE_SERVICE_H
#define OMEN_TESTS_SUPPORT_FAKE_SERVICE_H

#include "common/placement/shard_call.h"

#define FAKE_POINTS_MAX 4096u
#define FAKE_CALLS_MAX 1024u

struct fake_point {
    uint64_t shard_id;
    point_id id;
    uint8_t key[64];
    uint32_t key_len;
    float vector[64];
};

struct fake_service {
    struct shard_service service;
    struct map *map; /* what map_acquire gives */
    struct fake_point points[FAKE_POINTS_MAX];
    uint32_t point_count;
    uint32_t calls_by_kind[SHARD_CALL_KINDS];
    uint64_t fail_shard; /* its calls end with fail_code */
    enum omen_err fail_code;
    struct doc explain; /* what every shard tells of a search that is to be explained */
    struct doc detail;  /* and with stats that are to be detailed */
    bool plain;         /* of a release that knows of no details, and refuses to be asked for them */
    bool hold;          /* keep calls until fake_service_let_go */
    struct shard_call *held[FAKE_CALLS_MAX];
    uint32_t held_count;
    uint32_t outstanding; /* submitted and not released: 0 after every request */
    uint64_t sequence;
    struct op_id last_op_id;
};

/* A service with one collection "c" of `shards` shards with ids 11, 12, ... */
struct fake_service *fake_service_new(const struct collection_schema *schema, uint32_t shards);
void fake_service_free(struct fake_service *fake);
void fake_service_let_go(struct fake_service *fake); /* answers what was held, and holds no more */
const struct fake_point *fake_service_find(const struct fake_service *fake, uint64_t number);

#endif
