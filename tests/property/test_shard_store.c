/* The shard store against a model over random histories, with checkpoints, merges, segments sealed and merged, chunks
 * compacted, crashes and held views at every step. OMEN_SEED=n runs one seed, OMEN_HISTORIES=n that many. */
#include "common/err.h"
#include "common/log.h"
#include "storage/shard_index.h"
#include "tests/support/store_model.h"
#include "tests/support/vfs_hook.h"
#include "tests/support/vfs_sim.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define VIEWS 4
#define HISTORIES 220

struct history {
    struct store_model model;
    struct vfs_sim *sim; /* NULL: the real file system, where closing without checkpoint is the crash */
    char dir[200];
    struct shard_store_options options;
    struct shard_store *store;
    struct store_view views[VIEWS];
    uint64_t crash_seed;
    struct vfs_hook hook;
    uint64_t given_back; /* bytes of dead rows, by stores that were closed */
    bool in_checkpoint;  /* the hook may act: no lock is held that apply or a view needs */
};

static void apply(struct history *h, uint64_t sequence)
{
    struct err err;
    enum omen_err rc = store_model_apply(&h->model, h->store, sequence, &err);
    ck_assert_msg(rc == OMEN_OK, "apply %llu: %s", (unsigned long long)sequence, err.message);
}

static void view_some(struct history *h)
{
    struct store_model *m = &h->model;
    struct store_view *view = &h->views[store_model_random(m, VIEWS)];
    if (view->store == NULL) {
        store_view_acquire(h->store, view);
        return;
    }
    store_model_check(m, view);
    if (store_model_random(m, 3) == 0) store_view_release(view);
}

/* In the middle of a checkpoint or merge: read, apply, take views. Files of chunks are made under a lock and left alone. */
static enum omen_err amid_checkpoint(void *arg, enum vfs_hook_op op, struct err *err)
{
    struct history *h = arg;
    if (!h->in_checkpoint || (op != VFS_HOOK_DATASYNC && op != VFS_HOOK_RENAME && op != VFS_HOOK_UNLINK))
        return OMEN_OK;
    h->in_checkpoint = false;
    for (uint64_t i = store_model_random(&h->model, 3); i > 0; i--) {
        store_model_step(&h->model);
        apply(h, h->model.sequence);
    }
    store_model_check_now(&h->model, h->store);
    view_some(h);
    h->in_checkpoint = true;
    return OMEN_OK;
}

static void open_store(struct history *h)
{
    struct err err;
    vfs_hook_init(&h->hook, h->sim != NULL ? vfs_sim_vfs(h->sim) : vfs_posix(), amid_checkpoint, h);
    h->options.vfs = &h->hook.base;
    enum omen_err rc = shard_store_open(&h->options, &h->store, &err);
    ck_assert_msg(rc == OMEN_OK, "open: %s", err.message);
}

static void history_start(struct history *h, uint64_t seed, bool simulated)
{
    const char *tmp = getenv("TMPDIR");
    memset(h, 0, sizeof *h);
    store_model_init(&h->model, seed);
    snprintf(h->dir, sizeof h->dir, "%s/omen-XXXXXX", tmp != NULL ? tmp : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(h->dir));
    if (simulated) {
        char part[200];
        h->sim = vfs_sim_new(seed);
        for (char *slash = strchr(h->dir + 1, '/');; slash = strchr(slash + 1, '/')) {
            snprintf(part, sizeof part, "%.*s", slash != NULL ? (int)(slash - h->dir) : (int)sizeof part - 1,
                    h->dir);
            ck_assert_int_eq(vfs_mkdir(vfs_sim_vfs(h->sim), part, NULL), OMEN_OK);
            if (slash == NULL) break;
        }
        vfs_sim_sync_all(h->sim);
    }
    shard_store_options_default(&h->options);
    h->options.dir = h->dir;
    h->options.shard_id = 7;
    h->options.replica_id = 9;
    h->options.schema = &h->model.schema;
    h->options.first_chunk_bytes = 16 << 10;
    h->options.chunk_bytes = 16 << store_model_random(&h->model, 4) << 10; /* 16 to 128 KiB */
    h->options.op_retention_ms = MODEL_RETENTION_MS;
    static const uint64_t delta_bounds[] = { 1, 3000, 20000, 1 << 30 };
    h->options.delta_bytes_max = delta_bounds[store_model_random(&h->model, 4)];
    open_store(h);
}

static void views_release(struct history *h)
{
    for (int i = 0; i < VIEWS; i++)
        if (h->views[i].store != NULL) store_view_release(&h->views[i]);
}

static void history_end(struct history *h)
{
    views_release(h);
    shard_store_close(h->store);
    if (h->sim != NULL) vfs_sim_free(h->sim);
    ck_assert_int_eq(vfs_remove_tree(vfs_posix(), h->dir, NULL), OMEN_OK);
    store_model_fini(&h->model);
}

static void checkpoint(struct history *h)
{
    struct err err;
    uint64_t durable = 0, applied = h->model.sequence;
    h->in_checkpoint = true;
    enum omen_err rc = shard_store_checkpoint(h->store, &durable, &err);
    h->in_checkpoint = false;
    ck_assert_msg(rc == OMEN_OK, "checkpoint: %s", err.message);
    ck_assert_uint_eq(durable, applied);
    ck_assert_uint_le(shard_store_log_needed_from(h->store), durable);
}

static void given_back_note(struct history *h)
{
    struct shard_store_stats stats;
    shard_store_stats(h->store, &stats);
    h->given_back += stats.given_back_bytes;
}

/* The machine stops; the store opens at its checkpoint and the log delivers the rest again, with the same outcomes. */
static void crash(struct history *h)
{
    uint64_t durable = shard_store_durable(h->store);
    views_release(h);
    given_back_note(h);
    if (h->sim != NULL) {
        struct vfs_sim *after = vfs_sim_after_crash(h->sim, ++h->crash_seed * 31 + h->model.sequence);
        shard_store_close(h->store);
        vfs_sim_free(h->sim);
        h->sim = after;
    } else {
        shard_store_close(h->store);
    }
    open_store(h);
    uint64_t applied = shard_store_applied(h->store);
    ck_assert_uint_eq(applied, durable);
    ck_assert_uint_eq(shard_store_durable(h->store), durable);
    store_model_check_now(&h->model, h->store);
    ck_assert_uint_ge(applied, shard_store_log_needed_from(h->store));
    for (uint64_t s = shard_store_log_needed_from(h->store) + 1; s <= h->model.sequence; s++) {
        if (s > applied)
            apply(h, s);
        else
            ck_assert_int_eq(shard_store_apply(h->store, s, h->model.entries[s].bytes,
                                     h->model.entries[s].len, NULL, NULL),
                    OMEN_OK);
    }
    store_model_check_now(&h->model, h->store);
}

/* Load, seal or merge segments of very few rows. */
static void index_step(struct history *h)
{
    struct index_control control = { .threads = 1 };
    struct index_policy policy;
    struct err err;
    bool worked;
    index_policy_default(&policy);
    policy.rows_min = 1 + (uint32_t)store_model_random(&h->model, 6);
    policy.pin = store_model_random(&h->model, 2) == 0;
    enum omen_err rc = shard_index_step(h->store, &policy, &control, &worked, &err);
    ck_assert_msg(rc == OMEN_OK, "index: %s", err.message);
    store_model_check_now(&h->model, h->store);
}

static void history_step(struct history *h)
{
    struct store_model *m = &h->model;
    store_model_step(m);
    apply(h, m->sequence);
    store_model_check_now(m, h->store);
    view_some(h);
    uint64_t dice = store_model_random(m, 12);
    if (dice < 3) checkpoint(h);
    if (dice < 3) store_model_check_now(m, h->store);
    if (dice == 3 || dice == 4) crash(h);
    for (uint64_t n = store_model_random(m, 3); n > 0; n--) index_step(h);
    if (store_model_random(m, 6) == 0)
        ck_assert_int_eq(shard_store_scrub(h->store, 5000, NULL, NULL), OMEN_OK);
    for (int i = 0; i < VIEWS; i++)
        if (h->views[i].store != NULL && store_model_random(m, 3) == 0) store_model_check(m, &h->views[i]);
}

START_TEST(every_answer_is_the_models)
{
    uint64_t first = getenv("OMEN_SEED") != NULL ? strtoull(getenv("OMEN_SEED"), NULL, 10) : 1;
    uint64_t count = getenv("OMEN_SEED") != NULL ? 1 : HISTORIES;
    uint64_t given_back = 0, intents_ended = 0;
    if (getenv("OMEN_HISTORIES") != NULL) count = strtoull(getenv("OMEN_HISTORIES"), NULL, 10);
    for (uint64_t seed = first; seed < first + count; seed++) {
        struct history h;
        printf("seed %llu\n", (unsigned long long)seed);
        fflush(stdout);
        history_start(&h, seed, seed % 4 != 0);
        for (uint64_t i = 0, n = 3 + store_model_random(&h.model, 12); i < n; i++) history_step(&h);
        crash(&h);
        given_back += h.given_back;
        intents_ended += h.model.intents_ended;
        history_end(&h);
    }
    if (count >= HISTORIES) ck_assert_msg(given_back > 0, "no chunk was compacted");
    if (count >= HISTORIES) ck_assert_msg(intents_ended > 0, "no write by filter was walked to its end");
}
END_TEST

int main(void)
{
    log_configure(LOG_LEVEL_ERROR, LOG_FORMAT_TEXT, 2);
    Suite *suite = suite_create("shard_store");
    TCase *tc = tcase_create("histories");
    tcase_set_timeout(tc, 300);
    tcase_add_test(tc, every_answer_is_the_models);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
