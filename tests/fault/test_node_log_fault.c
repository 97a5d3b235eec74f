/* The node log when the machine stops at any operation, when the disk is full, and when a write or a sync
 * fails. */
#include "common/err.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/support/log_append.h"
#include "tests/support/log_model.h"
#include "tests/support/vfs_hook.h"
#include "tests/support/vfs_sim.h"

#define SEED 20241

static struct node_log_options options(struct vfs *vfs)
{
    struct node_log_options o;
    node_log_options_default(&o);
    o.vfs = vfs;
    o.dir = "/log";
    o.node_id = 3;
    o.segment_bytes = 32u << 10;
    o.bytes_max = 256u << 10;
    o.batch_bytes_max = 16u << 10;
    return o;
}

static struct node_log *open_log(struct log_model *model, const struct node_log_options *o)
{
    struct node_log *log;
    char why[LOG_MODEL_WHY_BYTES];
    bool ok = log_model_open(model, o, &log, why);
    ck_assert_msg(ok, "%s", why);
    return log;
}

/* Rolls, recycles, truncates and carries hard states: each kind of step several times. */
static void scenario(struct log_model *model, struct node_log *log)
{
    for (uint32_t i = 1; i <= 60; i++) {
        uint64_t group = 1 + i % 3;
        ck_assert_int_eq(log_model_entry(model, log, group, i * 7), OMEN_OK);
        if (i % 11 == 0) ck_assert_int_eq(log_model_hard_state(model, log, group), OMEN_OK);
        if (i % 17 == 0)
            ck_assert_int_eq(log_model_truncate(model, log, group, model->groups[group - 1].last), OMEN_OK);
        if (i % 8 == 0) {
            for (uint64_t g = 1; g <= 3; g++) log_model_release(model, log, g, model->groups[g - 1].acked);
        }
    }
}

/* ---- a crash photographed before every operation ---- */

struct photo {
    struct vfs_sim *sim;
    struct log_model *model;
    struct vfs_sim *images[2000];
    struct log_model *models[2000];
    uint32_t count;
    uint64_t seen;
    bool only_before_sync;
};

static enum omen_err photograph(void *arg, enum vfs_hook_op op, struct err *err)
{
    struct photo *p = arg;
    (void)err;
    pthread_mutex_lock(&p->model->mutex);
    p->seen++;
    if (p->count < 2000 && (!p->only_before_sync || op == VFS_HOOK_DATASYNC)) {
        p->models[p->count] = calloc(1, sizeof *p->model);
        log_model_copy(p->model, p->models[p->count]);
        p->images[p->count] = vfs_sim_after_crash(p->sim, SEED + p->seen);
        p->count++;
    }
    pthread_mutex_unlock(&p->model->mutex);
    return OMEN_OK;
}

/* Runs the scenario and returns how many photographs break the promise. */
static uint32_t broken_photographs(bool ack_before_sync, uint32_t *count_out, char why[LOG_MODEL_WHY_BYTES])
{
    struct photo *p = calloc(1, sizeof *p);
    p->sim = vfs_sim_new(SEED);
    p->model = calloc(1, sizeof *p->model);
    p->only_before_sync = ack_before_sync;
    log_model_init(p->model);
    struct vfs_hook hook;
    vfs_hook_init(&hook, vfs_sim_vfs(p->sim), photograph, p);
    struct node_log_options o = options(&hook.base);
    o.test_ack_before_sync = ack_before_sync;
    struct node_log *log = open_log(p->model, &o);
    scenario(p->model, log);
    node_log_close(log);
    uint32_t broken = 0;
    for (uint32_t i = 0; i < p->count; i++) {
        char reason[LOG_MODEL_WHY_BYTES];
        struct node_log_options again = options(vfs_sim_vfs(p->images[i]));
        struct node_log *copy;
        bool ok = log_model_open(p->models[i], &again, &copy, reason);
        if (ok) {
            /* and it goes on from there: one more entry, closed, found again */
            ck_assert_int_eq(log_model_entry(p->models[i], copy, 1, 5), OMEN_OK);
            node_log_close(copy);
            ok = log_model_open(p->models[i], &again, &copy, reason);
            node_log_close(copy);
        }
        if (!ok) {
            broken++;
            snprintf(why, LOG_MODEL_WHY_BYTES, "photograph %u: %.400s", i, reason);
        }
        vfs_sim_free(p->images[i]);
        free(p->models[i]);
    }
    *count_out = p->count;
    vfs_sim_free(p->sim);
    free(p->model);
    free(p);
    return broken;
}

START_TEST(a_crash_before_any_operation_loses_nothing_acknowledged)
{
    uint32_t count;
    char why[LOG_MODEL_WHY_BYTES] = "";
    uint32_t broken = broken_photographs(false, &count, why);
    ck_assert_msg(broken == 0, "%u of %u: %s", broken, count, why);
    ck_assert_uint_gt(count, 150);
}
END_TEST

START_TEST(the_checker_notices_an_acknowledgement_before_the_sync)
{
    uint32_t count;
    char why[LOG_MODEL_WHY_BYTES] = "";
    ck_assert_uint_gt(broken_photographs(true, &count, why), 0);
    ck_assert_ptr_nonnull(strstr(why, "missing"));
}
END_TEST

/* ---- failing operations end the process ---- */

struct refuse {
    _Atomic uint64_t left; /* operations until the failing one */
    enum vfs_hook_op op;
    enum omen_err code;
    _Atomic bool failed;
};

static enum omen_err refuse_nth(void *arg, enum vfs_hook_op op, struct err *err)
{
    struct refuse *r = arg;
    if (op != r->op || r->failed) return OMEN_OK;
    if (atomic_fetch_sub(&r->left, 1) != 1) return OMEN_OK;
    r->failed = true;
    return err_set(err, r->code, NULL, "told to fail");
}

/* In a child: exit 0 when the operation was never reached, 3 when the log went on after it failed. */
static void failing_child(enum vfs_hook_op op, uint64_t n)
{
    int null = open("/dev/null", O_WRONLY);
    dup2(null, 2);
    struct refuse r = { .left = n, .op = op, .code = OMEN_EIO };
    struct vfs_sim *sim = vfs_sim_new(SEED);
    struct log_model *model = calloc(1, sizeof *model);
    log_model_init(model);
    struct vfs_hook hook;
    vfs_hook_init(&hook, vfs_sim_vfs(sim), refuse_nth, &r);
    struct node_log_options o = options(&hook.base);
    struct node_log *log;
    char why[LOG_MODEL_WHY_BYTES];
    if (!log_model_open(model, &o, &log, why)) _exit(r.failed ? 2 : 4);
    scenario(model, log);
    node_log_close(log);
    _exit(r.failed ? 3 : 0);
}

static void every_failure_ends_the_process(enum vfs_hook_op op, uint64_t n_max, uint64_t stride)
{
    uint64_t aborted = 0;
    for (uint64_t n = 1; n <= n_max; n += stride) {
        pid_t child = fork();
        if (child == 0) failing_child(op, n);
        int status;
        ck_assert_int_eq(waitpid(child, &status, 0), child);
        if (WIFEXITED(status) && WEXITSTATUS(status) == 0) break;
        bool refused_open = WIFEXITED(status) && WEXITSTATUS(status) == 2;
        bool died = WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
        ck_assert_msg(refused_open || died, "operation %d number %d: status %x", (int)op, (int)n, status);
        aborted += died;
    }
    ck_assert_uint_gt(aborted, 0);
}

START_TEST(a_failed_write_ends_the_process) { every_failure_ends_the_process(VFS_HOOK_WRITE, 100, 6); }
END_TEST
START_TEST(a_failed_sync_ends_the_process) { every_failure_ends_the_process(VFS_HOOK_DATASYNC, 100, 6); }
END_TEST
START_TEST(a_failed_directory_sync_ends_the_process)
{
    every_failure_ends_the_process(VFS_HOOK_SYNC_DIR, 12, 1);
}
END_TEST
START_TEST(a_failed_rename_ends_the_process) { every_failure_ends_the_process(VFS_HOOK_RENAME, 8, 1); }
END_TEST

/* ---- a full disk does not ---- */

START_TEST(a_full_disk_refuses_and_resumes_without_a_hole)
{
    struct vfs_sim *sim = vfs_sim_new(SEED);
    struct log_model *model = calloc(1, sizeof *model);
    log_model_init(model);
    struct node_log_options o = options(vfs_sim_vfs(sim));
    struct node_log *log = open_log(model, &o);
    ck_assert_int_eq(log_model_entry(model, log, 1, 1), OMEN_OK);
    vfs_sim_set_capacity(sim, 100u << 10);
    uint32_t refused = 0;
    for (uint32_t i = 0; i < 60; i++) {
        enum omen_err rc = log_model_entry(model, log, 1 + i % 2, 7 * i);
        ck_assert(rc == OMEN_OK || rc == OMEN_EFULL);
        refused += rc == OMEN_EFULL;
    }
    ck_assert_uint_gt(refused, 0);
    uint64_t acked = model->groups[0].acked;
    /* a start on the full disk works too, and refuses only what needs room */
    node_log_close(log);
    log = open_log(model, &o);
    ck_assert_uint_eq(model->groups[0].acked, acked);
    ck_assert_int_eq(log_model_entry(model, log, 1, 3), OMEN_EFULL);
    vfs_sim_set_capacity(sim, 0);
    for (uint32_t i = 0; i < 20; i++) ck_assert_int_eq(log_model_entry(model, log, 1 + i % 2, i), OMEN_OK);
    ck_assert_uint_eq(model->groups[0].acked, acked + 10);
    node_log_close(log);
    log = open_log(model, &o);
    node_log_close(log);
    vfs_sim_free(sim);
    free(model);
}
END_TEST

static enum omen_err put_as(struct node_log *log, enum node_log_claim claim, uint64_t group, uint64_t index,
        uint32_t len)
{
    static const uint8_t body[20000];
    struct node_log_record record = { .group = group,
        .replica = 1,
        .term = 1,
        .index = index,
        .kind = NODE_LOG_ENTRY,
        .body = body,
        .len = len };
    return log_append_one(log, claim, &record);
}

static enum omen_err put(struct node_log *log, uint64_t group, uint64_t index, uint32_t len)
{
    return put_as(log, NODE_LOG_PLAIN, group, index, len);
}

/* An entry behind a refused one must not slip into the room that is left for smaller ones, or for others. */
START_TEST(an_entry_behind_a_refused_one_is_refused_too)
{
    struct vfs_sim *sim = vfs_sim_new(SEED);
    struct node_log_options o = options(vfs_sim_vfs(sim));
    struct node_log *log;
    ck_assert_int_eq(node_log_open(&o, NULL, NULL, &log, NULL), OMEN_OK);
    ck_assert_int_eq(put(log, 1, 1, 16000),
            OMEN_OK); /* leaves room for three small batches in each segment */
    vfs_sim_set_capacity(sim, 4096);
    uint64_t index = 2;
    while (put(log, 1, index, 16000) == OMEN_OK) index++;
    ck_assert_uint_lt(index, 10);
    ck_assert_int_eq(put_as(log, NODE_LOG_VITAL, 1, index + 1, 16), OMEN_EFULL); /* would leave a hole */
    ck_assert_int_eq(put_as(log, NODE_LOG_VITAL, 2, 1, 16), OMEN_OK); /* another group is not concerned */
    ck_assert_int_eq(put_as(log, NODE_LOG_VITAL, 1, index, 16), OMEN_OK);
    ck_assert_int_eq(put_as(log, NODE_LOG_VITAL, 1, index + 1, 16), OMEN_OK);
    node_log_close(log);
    vfs_sim_free(sim);
}
END_TEST

int main(void)
{
    TCase *tc = tcase_create("node_log_fault");
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, a_crash_before_any_operation_loses_nothing_acknowledged);
    tcase_add_test(tc, the_checker_notices_an_acknowledgement_before_the_sync);
    tcase_add_test(tc, a_failed_write_ends_the_process);
    tcase_add_test(tc, a_failed_sync_ends_the_process);
    tcase_add_test(tc, a_failed_directory_sync_ends_the_process);
    tcase_add_test(tc, a_failed_rename_ends_the_process);
    tcase_add_test(tc, a_full_disk_refuses_and_resumes_without_a_hole);
    tcase_add_test(tc, an_entry_behind_a_refused_one_is_refused_too);
    Suite *suite = suite_create("node_log_fault");
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
