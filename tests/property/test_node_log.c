/* Random appends, truncations, releases and crashes of the node log over the simulated file system: after
 * each crash every acknowledged record is there, none twice, order kept. OMEN_SEED=n repeats a run's choices
 * (threads may still differ). */
#include "common/err.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "tests/support/log_model.h"
#include "tests/support/vfs_sim.h"

#define LIVES 60
#define STEPS_MAX 60

static uint64_t g_state;

static uint32_t rnd(uint32_t below)
{
    g_state = g_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(g_state >> 33) % below;
}

static struct node_log_options options(struct vfs_sim *sim)
{
    struct node_log_options o;
    node_log_options_default(&o);
    o.vfs = vfs_sim_vfs(sim);
    o.dir = "/log";
    o.node_id = 3;
    o.segment_bytes = 64u << 10;
    o.bytes_max = 512u << 10;
    o.batch_bytes_max = 16u << 10;
    return o;
}

static void step(struct log_model *model, struct node_log *log)
{
    uint64_t group = 1 + rnd(LOG_MODEL_GROUPS);
    struct log_model_group *g = &model->groups[group - 1];
    uint32_t choice = rnd(100);
    enum omen_err rc = OMEN_OK;
    if (choice < 75) {
        rc = log_model_entry(model, log, group, rnd(1u << 30));
    } else if (choice < 80) {
        rc = log_model_hard_state(model, log, group);
    } else if (choice < 85 && g->last > g->released) {
        rc = log_model_truncate(model, log, group, g->released + 1 + rnd((uint32_t)(g->last - g->released)));
    } else if (choice >= 85) {
        for (uint64_t i = 1; i <= LOG_MODEL_GROUPS; i++) {
            struct log_model_group *h = &model->groups[i - 1];
            log_model_release(model, log, i, h->acked > 2 ? h->acked - rnd(3) : 0);
        }
    }
    ck_assert_int_eq(rc, OMEN_OK);
}

START_TEST(acknowledged_records_survive_every_crash)
{
    const char *given = getenv("OMEN_SEED");
    uint64_t seed = given != NULL ? strtoull(given, NULL, 0) : (uint64_t)time(NULL) * 8 + (uint64_t)_i;
    printf("seed %llu\n", (unsigned long long)seed);
    fflush(stdout);
    g_state = seed;
    struct vfs_sim *sim = vfs_sim_new(seed);
    struct log_model *model = calloc(1, sizeof *model);
    char why[LOG_MODEL_WHY_BYTES];
    log_model_init(model);
    uint64_t appended = 0;
    for (int life = 0; life < LIVES; life++) {
        struct node_log_options o = options(sim);
        struct node_log *log;
        bool ok = log_model_open(model, &o, &log, why);
        ck_assert_msg(ok, "seed %llu life %d: %s", (unsigned long long)seed, life, why);
        uint32_t steps = 1 + rnd(STEPS_MAX);
        for (uint32_t i = 0; i < steps; i++) step(model, log);
        struct node_log_stats stats;
        node_log_stats(log, &stats);
        appended += stats.appends;
        /* The photograph may fall into whatever the helper does just now. */
        pthread_mutex_lock(&model->mutex);
        struct vfs_sim *next = vfs_sim_after_crash(sim, seed + (uint64_t)life);
        pthread_mutex_unlock(&model->mutex);
        node_log_close(log);
        vfs_sim_free(sim);
        sim = next;
    }
    ck_assert_uint_gt(appended, LIVES * STEPS_MAX / 8); /* a run that did nothing has failed */
    vfs_sim_free(sim);
    free(model);
}
END_TEST

int main(void)
{
    TCase *tc = tcase_create("node_log");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, acknowledged_records_survive_every_crash, 0, 3);
    Suite *suite = suite_create("node_log_property");
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
