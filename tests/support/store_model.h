/* The shard store as a child would write it: an array of points per sequence, and a list of applied ops. Every answer of
 * the real one is compared with it. Also makes the random entries that both are fed.
 *
 * A small universe makes collisions frequent: 12 numbers and 4 UUIDs under 3 shard keys, 3 clients, few op numbers.
 * Failing comparisons fail the Check test; the seed is in the caller's output. */
#ifndef OMEN_TESTS_SUPPORT_STORE_MODEL_H
#define OMEN_TESTS_SUPPORT_STORE_MODEL_H

#include "common/mem.h"
#include "storage/shard_store.h"

#define MODEL_POINTS_MAX 64
#define MODEL_OPS_MAX 512
#define MODEL_REQUESTS_MAX 6
#define MODEL_DOC_BYTES 512
#define MODEL_DIM_MAX 20
#define MODEL_SEQUENCES_MAX 512
#define MODEL_RETENTION_MS 60

struct model_point {
    point_id id;
    uint8_t shard_key[16];
    uint32_t shard_key_len;
    uint64_t version, expires_ms;
    uint8_t doc[MODEL_DOC_BYTES];
    uint32_t doc_len;
    bool has[2];
    float vectors[2][MODEL_DIM_MAX];
};

struct model_applied {
    struct op_id id;
    struct apply_outcome outcome;
    uint64_t since_ms; /* of a write by filter that took several entries: remembered from then on */
};

/* A write by filter under way: to points whose `n` is at least `bound`. */
struct model_intent {
    struct intent_id id;
    struct op_id op_id;
    enum point_op_kind op;
    int64_t bound;
    uint8_t payload[MODEL_DOC_BYTES];
    uint32_t payload_len, steps;
    bool has_cursor, refused; /* its last step was */
    struct point_key cursor;
    uint64_t affected;
};

/* The state after one sequence. Plain data: copied to remember it. */
struct model_state {
    uint64_t sequence, log_time_ms;
    struct model_point points[MODEL_POINTS_MAX];
    uint32_t point_count;
    struct model_applied ops[MODEL_OPS_MAX];
    uint32_t op_count;
    struct model_intent intents[INTENTS_MAX];
    uint32_t intent_count;
};

struct model_entry {
    uint8_t *bytes; /* mem_free */
    uint32_t len;
    uint32_t request_count;
    struct apply_outcome outcomes[MODEL_REQUESTS_MAX];
};

struct store_model {
    uint64_t rng;
    struct collection_schema schema;
    struct entry_builder *builder;
    struct doc_builder *docs;
    uint64_t next_op_seq;
    uint64_t intents_ended;                          /* walked to their end */
    struct model_state *states[MODEL_SEQUENCES_MAX]; /* by sequence; [0] = empty */
    struct model_entry entries[MODEL_SEQUENCES_MAX]; /* by sequence; [0] unused */
    uint64_t sequence;                               /* of the newest */
};

void store_model_init(struct store_model *m, uint64_t seed);
void store_model_fini(struct store_model *m);
uint64_t store_model_random(struct store_model *m, uint64_t below);

/* Make the next entry and the state after it. */
void store_model_step(struct store_model *m);
/* Apply entry `sequence` to the store and compare the outcomes. Returns apply's code; compares only when it is OK. */
enum omen_err store_model_apply(struct store_model *m, struct shard_store *store, uint64_t sequence,
        struct err *err);
/* Count, get, scroll and search of a view against the state at its sequence, at the view's time and at a later one. */
void store_model_check(struct store_model *m, const struct store_view *view);
void store_model_check_now(struct store_model *m, struct shard_store *store);

#endif
