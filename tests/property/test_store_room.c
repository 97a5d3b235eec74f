/* Room of a shard store over random histories: what admission found to fit is applied without a byte being allocated, a full
 * disk refuses before and not in apply, and a store that was killed on one comes back with everything. OMEN_SEED=n runs one
 * seed. */
#include "common/err.h"
#include "common/log.h"
#include "tests/support/store_model.h"
#include "tests/support/vfs_sim.h"

#include <check.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>

#define ENTRIES 160
#define SEEDS 24
#define OPS_MAX 64

struct room_bench {
    struct store_model model;
    struct vfs_sim *sim;
    char dir[200];
    struct shard_store_options options;
    struct shard_store *store;
};

static void open_store(struct room_bench *b)
{
    struct err err;
    b->options.vfs = vfs_sim_vfs(b->sim);
    enum omen_err rc = shard_store_open(&b->options, &b->store, &err);
    ck_assert_msg(rc == OMEN_OK, "open: %s", err.message);
}

static void setup(struct room_bench *b, uint64_t seed)
{
    const char *tmp = getenv("TMPDIR");
    memset(b, 0, sizeof *b);
    store_model_init(&b->model, seed);
    for (int i = 0; i < ENTRIES; i++) store_model_step(&b->model);
    snprintf(b->dir, sizeof b->dir, "%s/omen-XXXXXX", tmp != NULL ? tmp : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(b->dir));
    b->sim = vfs_sim_new(seed);
    for (size_t i = 1; i <= strlen(b->dir); i++) {
        char part[200];
        if (b->dir[i] != '/' && b->dir[i] != '\0') continue;
        snprintf(part, sizeof part, "%.*s", (int)i, b->dir);
        ck_assert_int_eq(vfs_mkdir(vfs_sim_vfs(b->sim), part, NULL), OMEN_OK);
    }
    vfs_sim_sync_all(b->sim);
    shard_store_options_default(&b->options);
    b->options.dir = b->dir;
    b->options.shard_id = 1;
    b->options.replica_id = 2;
    b->options.schema = &b->model.schema;
    b->options.first_chunk_bytes = 16 << 10;
    b->options.chunk_bytes = 16 << seed % 3 << 10; /* 16, 32, 64 KiB: chunks of one size, and growing ones */
    b->options.op_retention_ms = MODEL_RETENTION_MS;
    open_store(b);
}

static void teardown(struct room_bench *b)
{
    shard_store_close(b->store);
    vfs_sim_free(b->sim);
    ck_assert_int_eq(vfs_remove_tree(vfs_posix(), b->dir, NULL), OMEN_OK);
    store_model_fini(&b->model);
}

static struct point_op point_op_of(const struct room_bench *b, const struct entry *entry, uint32_t at)
{
    struct entry_op op;
    entry_op_at(entry, at, &op);
    struct point_op out = { .kind = op.kind,
        .id = op.key.id,
        .key = { op.shard_key },
        .any_key = op.any_key,
        .payload = op.payload };
    for (uint32_t f = 0; f < b->model.schema.field_count; f++)
        if (op.rows[f] != ENTRY_NO_ROW)
            out.vectors[f] = entry_row(entry, f, op.rows[f], b->model.schema.fields[f].dim);
    return out;
}

/* What admission would count for entry `sequence`, request by request. */
static struct write_need need_of(struct room_bench *b, uint64_t sequence, bool *payload_ops_out)
{
    struct write_need sum = { 0 }, need;
    struct entry entry;
    struct err err;
    *payload_ops_out = false;
    entry_attach(b->model.entries[sequence].bytes, &b->model.schema, &entry);
    for (uint32_t r = 0; r < entry.request_count; r++) {
        struct entry_request request;
        struct point_op ops[OPS_MAX];
        entry_request_at(&entry, r, &request);
        ck_assert_uint_le(request.op_count, OPS_MAX);
        for (uint32_t i = 0; i < request.op_count; i++) {
            ops[i] = point_op_of(b, &entry, request.first_op + i);
            *payload_ops_out |= ops[i].kind > POINT_DELETE;
        }
        ck_assert_int_eq(shard_store_need(b->store, ops, request.op_count, &need, &err), OMEN_OK);
        struct entry_intent
                intent; /* what begins, or goes on with, a write by filter: as node/shard_write.c adds it */
        (void)entry_intent_at(&entry, r, &intent);
        if (intent.kind != ENTRY_INTENT_NONE) need.entry_bytes += entry_intent_bytes(&intent);
        write_need_add(&sum, &need);
    }
    /* All but what an entry has once: its header and what its parts are padded by. */
    uint64_t fixed = ENTRY_HEADER_BYTES + ENTRY_ALIGN * (b->model.schema.field_count + 2ull);
    ck_assert_uint_ge(sum.entry_bytes + fixed, b->model.entries[sequence].len);
    return sum;
}

static void apply_without_allocating(struct room_bench *b, uint64_t sequence)
{
    struct err err;
    uint64_t before = vfs_sim_counts(b->sim).allocates;
    enum omen_err rc = store_model_apply(&b->model, b->store, sequence, &err);
    ck_assert_msg(rc == OMEN_OK, "apply: %s", err.message);
    ck_assert_msg(vfs_sim_counts(b->sim).allocates == before, "entry %llu was said to fit and did not",
            (unsigned long long)sequence);
}

static uint64_t seed_of(int i)
{
    const char *text = getenv("OMEN_SEED");
    uint64_t seed = text != NULL ? strtoull(text, NULL, 10) : (uint64_t)i + 1;
    printf("seed %llu\n", (unsigned long long)seed);
    return seed;
}

/* Two entries at a time, as a node has in flight; alone where payload operations depend on what is applied between. */
START_TEST(what_fits_is_applied_without_allocating)
{
    struct room_bench b;
    setup(&b, seed_of(_i));
    uint64_t made = 0, fitted = 0;
    for (uint64_t s = 1; s <= ENTRIES;) {
        struct write_need needs[2];
        struct err err;
        bool payload[2];
        needs[0] = need_of(&b, s, &payload[0]);
        uint32_t count = 1;
        if (s < ENTRIES) {
            needs[1] = need_of(&b, s + 1, &payload[1]);
            if (!payload[1]) count = 2;
        }
        enum store_spare spare = (enum store_spare)store_model_random(&b.model, 3);
        if (!shard_store_has_room(b.store, needs, count, spare)) {
            ck_assert_int_eq(shard_store_make_room(b.store, needs, count, spare, &err), OMEN_OK);
            ck_assert(shard_store_has_room(b.store, needs, count, spare));
            made++;
        } else {
            fitted++;
        }
        for (uint32_t i = 0; i < count; i++) apply_without_allocating(&b, s++);
        if (store_model_random(&b.model, 8) == 0)
            ck_assert_int_eq(shard_store_checkpoint(b.store, NULL, &err), OMEN_OK);
    }
    ck_assert_uint_gt(made, 3);
    ck_assert_uint_gt(fitted, made);
    store_model_check_now(&b.model, b.store);
    teardown(&b);
}
END_TEST

/* Fill the disk by what fits; refused is what does not. Then a kill, with nothing else freed and nothing to be had: the log
 * delivers all entries again, and they find the chunks that they had. */
START_TEST(a_full_disk_is_met_before_apply_and_a_kill_on_it_loses_nothing)
{
    struct room_bench b;
    setup(&b, seed_of(_i));
    struct err err;
    uint64_t applied = 0, used = 0, total = 0;
    ck_assert_int_eq(vfs_free_space(b.options.vfs, b.dir, &used, &total, &err), OMEN_OK);
    used = total - used;
    vfs_sim_set_capacity(b.sim, used + 5 * (16 << 10) + 12000);
    for (uint64_t s = 1; s <= ENTRIES; s++) {
        bool payload;
        struct write_need need = need_of(&b, s, &payload);
        enum omen_err rc = shard_store_make_room(b.store, &need, 1, STORE_SPARE_DELETES, &err);
        if (rc == OMEN_EFULL) break;
        ck_assert_int_eq(rc, OMEN_OK);
        apply_without_allocating(&b, s);
        applied = s;
        if (s % 40 == 20) ck_assert_int_eq(shard_store_checkpoint(b.store, NULL, &err), OMEN_OK);
    }
    ck_assert_uint_gt(applied, 3);
    ck_assert_uint_lt(applied, ENTRIES);
    ck_assert_ptr_nonnull(strstr(err.message, "chunk"));
    struct shard_store_stats stats;
    shard_store_stats(b.store, &stats);
    ck_assert_int_eq(stats.stopped, OMEN_OK);
    /* Whatever else is let in leaves room for deletes: an eighth of a chunk, with what an entry has once. */
    struct write_need two[2] = { { 0 }, { .entry_bytes = 1500 } };
    for (; two[0].entry_bytes < b.options.chunk_bytes; two[0].entry_bytes += ENTRY_ALIGN)
        if (shard_store_has_room(b.store, two, 1, STORE_SPARE_DELETES))
            ck_assert(shard_store_has_room(b.store, two, 2, STORE_SPARE_NONE));

    shard_store_close(b.store); /* a kill: the files as they are, nothing checkpointed */
    open_store(&b);
    for (uint64_t s = shard_store_applied(b.store) + 1; s <= applied; s++) apply_without_allocating(&b, s);
    store_model_check_now(&b.model, b.store);

    vfs_sim_set_capacity(b.sim, 0);
    for (uint64_t s = applied + 1; s <= ENTRIES; s++) {
        bool payload;
        struct write_need need = need_of(&b, s, &payload);
        ck_assert_int_eq(shard_store_make_room(b.store, &need, 1, STORE_SPARE_DELETES, &err), OMEN_OK);
        apply_without_allocating(&b, s);
    }
    store_model_check_now(&b.model, b.store);
    teardown(&b);
}
END_TEST

/* A chunk that a machine's crash left damaged or short is no room, and no reason not to start. */
START_TEST(a_crash_on_a_full_disk_comes_back_whole)
{
    struct room_bench b;
    setup(&b, seed_of(_i));
    struct err err;
    uint64_t durable = 0;
    for (uint64_t s = 1; s <= ENTRIES / 2; s++) {
        bool payload;
        struct write_need need = need_of(&b, s, &payload);
        ck_assert_int_eq(shard_store_make_room(b.store, &need, 1, STORE_SPARE_AHEAD, &err), OMEN_OK);
        apply_without_allocating(&b, s);
        if (s == ENTRIES / 4) ck_assert_int_eq(shard_store_checkpoint(b.store, &durable, &err), OMEN_OK);
    }
    struct vfs_sim *after = vfs_sim_after_crash(b.sim, (uint64_t)_i);
    shard_store_close(b.store);
    vfs_sim_free(b.sim);
    b.sim = after;
    open_store(&b);
    ck_assert_uint_ge(shard_store_applied(b.store), durable);
    for (uint64_t s = shard_store_applied(b.store) + 1; s <= ENTRIES; s++)
        ck_assert_int_eq(store_model_apply(&b.model, b.store, s, &err), OMEN_OK);
    store_model_check_now(&b.model, b.store);
    teardown(&b);
}
END_TEST

/* A checkpoint while files may have so many bytes; Check's own file may not, so nothing else runs meanwhile. */
static enum omen_err checkpoint_limited(struct room_bench *b, rlim_t bytes, struct err *err)
{
    struct rlimit limit = { bytes, RLIM_INFINITY };
    setrlimit(RLIMIT_FSIZE, &limit);
    enum omen_err rc = shard_store_checkpoint(b->store, NULL, err);
    limit.rlim_cur = RLIM_INFINITY;
    setrlimit(RLIMIT_FSIZE, &limit);
    return rc;
}

/* LMDB uses the real file system; a limit on the length of files is its full disk. */
START_TEST(a_merge_without_room_waits_and_is_made_up_for)
{
    struct room_bench b;
    setup(&b, 7);
    shard_store_close(b.store);
    b.options.delta_bytes_max = 4000;
    open_store(&b);
    struct err err;
    signal(SIGXFSZ, SIG_IGN);
    for (uint64_t s = 1; s <= 60; s++) {
        ck_assert_int_eq(store_model_apply(&b.model, b.store, s, &err), OMEN_OK);
        if (s % 10 != 0) continue;
        enum omen_err rc = checkpoint_limited(&b, 16 << 10, &err);
        ck_assert_msg(rc == OMEN_OK, "checkpoint: %s", err.message);
    }
    struct shard_store_stats stats;
    shard_store_stats(b.store, &stats);
    ck_assert_int_eq(stats.stopped, OMEN_OK);
    uint64_t delta_bytes = stats.delta_bytes, meta_bytes = stats.meta_bytes;
    ck_assert_uint_gt(delta_bytes, b.options.delta_bytes_max); /* nothing was merged */
    store_model_check_now(&b.model, b.store);
    if (_i == 1) { /* and over a kill */
        shard_store_close(b.store);
        open_store(&b);
        ck_assert_uint_eq(shard_store_applied(b.store), 60);
        store_model_check_now(&b.model, b.store);
    }
    ck_assert_int_eq(shard_store_checkpoint(b.store, NULL, &err), OMEN_OK);
    ck_assert_int_eq(shard_store_checkpoint(b.store, NULL, &err), OMEN_OK);
    shard_store_stats(b.store, &stats);
    ck_assert_uint_lt(stats.delta_bytes, delta_bytes);
    ck_assert_uint_gt(stats.meta_bytes, meta_bytes);
    store_model_check_now(&b.model, b.store);
    shard_store_close(b.store);
    open_store(&b);
    store_model_check_now(&b.model, b.store);
    teardown(&b);
}
END_TEST

int main(void)
{
    log_configure(LOG_LEVEL_ERROR + 1, LOG_FORMAT_TEXT, 2);
    Suite *suite = suite_create("store_room");
    TCase *tc = tcase_create("room");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, what_fits_is_applied_without_allocating, 0, SEEDS);
    tcase_add_loop_test(tc, a_full_disk_is_met_before_apply_and_a_kill_on_it_loses_nothing, 0, SEEDS);
    tcase_add_loop_test(tc, a_crash_on_a_full_disk_comes_back_whole, 0, SEEDS);
    tcase_add_loop_test(tc, a_merge_without_room_waits_and_is_made_up_for, 0, 2);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
