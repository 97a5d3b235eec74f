/* Replicas that applied the same entries have the same digest at every sequence, whatever became of their files: one
 * stores on without a pause, the other is checkpointed, merged, compacted, closed and opened all the time. Points that
 * differ in a single thing have another. OMEN_SEED=n runs one seed. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/err.h"
#include "common/log.h"
#include "common/mem.h"
#include "storage/shard_store.h"
#include "tests/support/doc_text.h"
#include "tests/support/entry_support.h"

#define DIM 5
#define IDS 400u
#define ENTRIES 800
#define SEEDS 2
#define FAR_MS 1000000000ull

struct twin {
    char dir[200];
    struct shard_store_options options;
    struct shard_store *store;
};

struct bench {
    uint64_t rng, sequence, now_ms;
    struct collection_schema schema;
    struct twin plain, worn; /* on without a pause; worn by everything that may happen to files */
    struct entry_builder *builder;
    struct arena arena;
};

static uint64_t random_below(struct bench *b, uint64_t below)
{
    b->rng = b->rng * 6364136223846793005ull + 1442695040888963407ull;
    return (b->rng >> 33) % below;
}

static void twin_open(struct twin *t)
{
    struct err err;
    enum omen_err rc = shard_store_open(&t->options, &t->store, &err);
    ck_assert_msg(rc == OMEN_OK, "open: %s", err.message);
}

static void twin_init(struct bench *b, struct twin *t, uint64_t replica)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(t->dir, sizeof t->dir, "%s/omen-XXXXXX", tmp != NULL ? tmp : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(t->dir));
    shard_store_options_default(&t->options);
    t->options.vfs = vfs_posix();
    t->options.dir = t->dir;
    t->options.schema = &b->schema;
    t->options.replica_id = replica;
    t->options.first_chunk_bytes = t->options.chunk_bytes = 64 << 10;
    if (t == &b->worn) t->options.delta_bytes_max = 4 << 10;
    twin_open(t);
}

static struct bench *bench_new(uint64_t seed)
{
    struct bench *b = mem_must_calloc(1, sizeof *b);
    b->rng = seed;
    b->now_ms = 1000;
    b->schema = test_schema_simple(DIM, "");
    arena_init(&b->arena, 1 << 14, 0);
    b->builder = entry_builder_new(&b->schema);
    twin_init(b, &b->plain, 1);
    twin_init(b, &b->worn, 2);
    return b;
}

static void bench_free(struct bench *b)
{
    struct twin *twins[] = { &b->plain, &b->worn };
    for (int i = 0; i < 2; i++) {
        shard_store_close(twins[i]->store);
        ck_assert_int_eq(vfs_remove_tree(vfs_posix(), twins[i]->dir, NULL), OMEN_OK);
    }
    entry_builder_free(b->builder);
    arena_fini(&b->arena);
    mem_free(b);
}

/* ---- entries ---- */

static void add(struct bench *b, const struct point_op *op)
{
    ck_assert_int_eq(entry_builder_add(b->builder, op), OMEN_OK);
}

static void add_random(struct bench *b)
{
    static const enum point_op_kind kinds[] = { POINT_UPSERT, POINT_UPSERT, POINT_UPSERT, POINT_DELETE,
        POINT_SET_PAYLOAD };
    struct point_op op = { .kind = kinds[random_below(b, 5)],
        .id = { 0, random_below(b, IDS), POINT_ID_U64 } };
    float vector[DIM];
    char text[60];
    for (int c = 0; c < DIM; c++) vector[c] = (float)random_below(b, 7) - 3;
    snprintf(text, sizeof text, "{'n': %u}", (unsigned)random_below(b, 100));
    if (op.kind != POINT_DELETE && random_below(b, 2) == 0) op.payload = doc_of(&b->arena, text);
    if (op.kind == POINT_SET_PAYLOAD) op.payload = doc_of(&b->arena, text);
    if (op.kind == POINT_UPSERT) op.vectors[0] = vector;
    if (op.kind == POINT_UPSERT && random_below(b, 4) == 0)
        op.expires_ms = b->now_ms + 1 + random_below(b, 3000);
    add(b, &op);
}

static void finish(struct bench *b, uint8_t **bytes, uint32_t *len)
{
    ck_assert_int_eq(entry_builder_finish(b->builder, b->now_ms, 1, false, bytes, len), OMEN_OK);
    entry_builder_reset(b->builder);
    arena_reset(&b->arena);
}

static void apply(struct bench *b, struct twin *t, const uint8_t *bytes, uint32_t len)
{
    struct err err;
    enum omen_err rc = shard_store_apply(t->store, b->sequence, bytes, len, NULL, &err);
    ck_assert_msg(rc == OMEN_OK, "apply: %s", err.message);
}

static void send_random(struct bench *b)
{
    uint8_t *bytes;
    uint32_t len;
    entry_builder_begin_request(b->builder, (struct op_id){ 0 });
    for (uint64_t n = 1 + random_below(b, 12); n > 0; n--) add_random(b);
    b->now_ms += random_below(b, 30);
    finish(b, &bytes, &len);
    b->sequence++;
    apply(b, &b->plain, bytes, len);
    apply(b, &b->worn, bytes, len);
    mem_free(bytes);
}

/* A checkpoint now and then, some with an end and a beginning after it. Nothing applied is beyond the last one then: no log
 * is here to deliver it again. */
static void wear(struct bench *b)
{
    if (random_below(b, 25) != 0) return;
    ck_assert_int_eq(shard_store_checkpoint(b->worn.store, NULL, NULL), OMEN_OK);
    if (random_below(b, 6) != 0) return;
    shard_store_close(b->worn.store);
    twin_open(&b->worn);
    ck_assert_uint_eq(shard_store_applied(b->worn.store), b->sequence);
}

/* ---- digests ---- */

/* Sequences at which both know one; it is the same. */
static uint32_t compare(struct bench *b)
{
    struct store_digest plain[STORE_DIGESTS_MAX], worn[STORE_DIGESTS_MAX];
    uint32_t n = shard_store_digests(b->plain.store, plain), m = shard_store_digests(b->worn.store, worn),
             common = 0;
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t k = 0; k < m; k++) {
            if (plain[i].sequence != worn[k].sequence) continue;
            ck_assert_uint_eq(plain[i].sum, worn[k].sum);
            common++;
        }
    return common;
}

static uint64_t newest(struct twin *t)
{
    struct store_digest digests[STORE_DIGESTS_MAX];
    ck_assert_uint_ge(shard_store_digests(t->store, digests), 1);
    ck_assert_uint_eq(digests[0].sequence, shard_store_applied(t->store));
    return digests[0].sum;
}

START_TEST(replicas_agree_whatever_became_of_their_files)
{
    const char *seed = getenv("OMEN_SEED");
    struct bench *b = bench_new(seed != NULL ? strtoull(seed, NULL, 10) : (uint64_t)_i + 1);
    struct shard_store_stats stats;
    uint64_t compared = 0;
    printf("seed %llu\n", (unsigned long long)b->rng);
    for (int i = 0; i < ENTRIES; i++) {
        send_random(b);
        wear(b);
        compared += compare(b);
    }
    ck_assert_uint_gt(compared, ENTRIES / 2);
    for (int i = 0; i < 20; i++) {
        send_random(b);
        ck_assert_int_eq(shard_store_checkpoint(b->worn.store, NULL, NULL), OMEN_OK);
    }
    shard_store_stats(b->worn.store, &stats);
    ck_assert_uint_gt(stats.given_back_bytes, 0); /* chunks were written anew */
    shard_store_close(b->worn.store);
    twin_open(&b->worn);
    ck_assert_uint_ge(compare(b), 1);

    b->now_ms += FAR_MS; /* all that expires dies, a part with each entry */
    for (int i = 0; i < 40; i++) send_random(b), compare(b);
    ck_assert_uint_eq(newest(&b->plain), newest(&b->worn));
    bench_free(b);
}
END_TEST

/* One point in each store, the second with one thing changed. */
START_TEST(a_difference_in_any_part_of_a_point_shows)
{
    struct bench *b = bench_new(1);
    const float vector[DIM] = { 1, 2, 3, 4, 5 }, other[DIM] = { 1, 2, 3, 4, 5.000001f };
    struct point_op base = { .kind = POINT_UPSERT, .id = { 0, 7, POINT_ID_U64 }, .vectors = { vector } };
    uint8_t *bytes, *changed;
    uint32_t len, changed_len;
    for (int part = 0; part < 5; part++) {
        struct point_op op = base;
        base.payload = doc_of(&b->arena, "{'n': 1}");
        entry_builder_begin_request(b->builder, (struct op_id){ 0 });
        add(b, &base);
        finish(b, &bytes, &len);
        op.payload = doc_of(&b->arena, part == 1 ? "{'n': 2}" : "{'n': 1}");
        if (part == 2) op.vectors[0] = other;
        if (part == 3) op.id.lo++;
        if (part == 4) op.expires_ms = FAR_MS;
        entry_builder_begin_request(b->builder, (struct op_id){ 0 });
        add(b, &op);
        finish(b, &changed, &changed_len);
        b->sequence++;
        apply(b, &b->plain, bytes, len);
        apply(b, &b->worn, changed, changed_len);
        if (part == 0)
            ck_assert_uint_eq(newest(&b->plain), newest(&b->worn));
        else
            ck_assert_uint_ne(newest(&b->plain), newest(&b->worn));
        mem_free(bytes);
        mem_free(changed);
        if (part != 3) continue;
        struct point_op gone = { .kind = POINT_DELETE, .id = op.id };
        entry_builder_begin_request(b->builder, (struct op_id){ 0 });
        add(b, &gone);
        finish(b, &bytes, &len);
        b->sequence++;
        apply(b, &b->plain, bytes, len);
        apply(b, &b->worn, bytes, len);
        mem_free(bytes);
    }
    bench_free(b);
}
END_TEST

int main(void)
{
    log_configure(LOG_LEVEL_ERROR + 1, LOG_FORMAT_TEXT, 2);
    Suite *suite = suite_create("store_digest");
    TCase *tc = tcase_create("digest");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, replicas_agree_whatever_became_of_their_files, 0, SEEDS);
    tcase_add_test(tc, a_difference_in_any_part_of_a_point_shows);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
