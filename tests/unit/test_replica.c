/* Replicas of one member over a real log: order, exactly once per process life, re-delivery, limits, full
 * disk, barrier. */
#include "common/err.h"

#include <check.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/mem.h"
#include "consensus/replica.h"
#include "tests/support/vfs_sim.h"

#define SEGMENT (64u << 10)

static char g_dir[256];

static void setup(void)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(g_dir, sizeof g_dir, "%s/omen-XXXXXX", tmp != NULL ? tmp : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(g_dir));
}

static void teardown(void) { ck_assert_int_eq(vfs_remove_tree(vfs_posix(), g_dir, NULL), OMEN_OK); }

/* ---- a state machine that counts: `durable` is what a restart would find ---- */

struct machine {
    _Atomic uint64_t applied;
    uint64_t durable; /* set by checkpoint */
    uint64_t applies; /* calls that returned OK */
    uint64_t sum;     /* of first words, in order-dependent form */
    _Atomic int fail; /* error for apply, OMEN_OK = none */
    _Atomic int checkpoint_fail;
    _Atomic bool block; /* apply waits */
    _Atomic bool checkpoint_block, checkpointing;
    _Atomic uint64_t checkpoints;
    uint64_t base;
    bool one_back; /* the log is needed from the checkpoint before the last one, as storage does it */
    uint64_t before_last;
};

static enum omen_err machine_apply(void *self, uint64_t sequence, const void *entry, uint32_t len,
        void *proposal_arg, struct err *err)
{
    struct machine *m = self;
    while (m->block) usleep(500);
    if (m->fail != OMEN_OK) return err_set(err, (enum omen_err)m->fail, NULL, "told to fail");
    ck_assert_uint_eq(sequence, m->applied + 1);
    ck_assert_uint_ge(len, 8);
    uint64_t word = load_u64(entry);
    m->sum = m->sum * 31 + word;
    m->applies++;
    m->applied = sequence;
    if (proposal_arg != NULL) *(uint64_t *)proposal_arg = sequence;
    return OMEN_OK;
}

static uint64_t machine_applied(void *self) { return ((struct machine *)self)->applied; }
static uint64_t machine_needed_from(void *self)
{
    struct machine *m = self;
    return __atomic_load_n(m->one_back ? &m->before_last : &m->durable, __ATOMIC_SEQ_CST);
}
static enum omen_err machine_checkpoint(void *self, struct err *err)
{
    struct machine *m = self;
    if (m->checkpoint_fail != OMEN_OK)
        return err_set(err, (enum omen_err)m->checkpoint_fail, NULL, "told to fail");
    m->checkpointing = true;
    while (m->checkpoint_block) usleep(500);
    m->checkpointing = false;
    __atomic_store_n(&m->before_last, m->durable, __ATOMIC_SEQ_CST);
    __atomic_store_n(&m->durable, m->applied, __ATOMIC_SEQ_CST);
    m->checkpoints++;
    return OMEN_OK;
}

static struct replica_fsm fsm(struct machine *m)
{
    return (struct replica_fsm){ .self = m,
        .apply = machine_apply,
        .applied = machine_applied,
        .log_needed_from = machine_needed_from,
        .checkpoint = machine_checkpoint };
}

/* ---- host and proposals ---- */

static struct replica_host_options host_options(void)
{
    struct replica_host_options o;
    replica_host_options_default(&o);
    o.log.vfs = vfs_posix();
    o.log.dir = g_dir;
    o.log.node_id = 7;
    o.log.segment_bytes = SEGMENT;
    o.log.bytes_max = 4 * SEGMENT;
    o.apply_workers = 2;
    return o;
}

static struct replica_host *open_host(void)
{
    struct replica_host_options o = host_options();
    struct replica_host *host;
    struct err err = { 0 };
    enum omen_err rc = replica_host_open(&o, &host, &err);
    ck_assert_msg(rc == OMEN_OK, "%s", err.message);
    return host;
}

static struct replica *open_replica(struct replica_host *host, uint64_t group, struct machine *m)
{
    struct replica_fsm f = fsm(m);
    struct replica *r;
    struct err err = { 0 };
    enum omen_err rc = replica_open(host, group, 1, m->base, &f, &r, &err);
    ck_assert_msg(rc == OMEN_OK, "%s", err.message);
    return r;
}

struct results {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    uint32_t started, finished, by_code[OMEN_ERR_COUNT];
    uint64_t last_sequence;
    bool in_order;
};

static void results_init(struct results *s)
{
    memset(s, 0, sizeof *s);
    pthread_mutex_init(&s->mutex, NULL);
    pthread_cond_init(&s->cond, NULL);
    s->in_order = true;
}

static void on_done(void *arg, enum omen_err result, uint64_t sequence, const struct err *err)
{
    struct results *s = arg;
    pthread_mutex_lock(&s->mutex);
    ck_assert(result == OMEN_OK || err != NULL);
    s->finished++;
    s->by_code[result]++;
    if (result == OMEN_OK) {
        if (sequence < s->last_sequence) s->in_order = false;
        s->last_sequence = sequence;
    }
    pthread_cond_broadcast(&s->cond);
    pthread_mutex_unlock(&s->mutex);
}

static void propose(struct replica *r, struct results *s, uint64_t word, uint32_t len)
{
    uint8_t *entry = mem_calloc(1, len);
    store_u64(entry, word);
    pthread_mutex_lock(&s->mutex);
    s->started++;
    pthread_mutex_unlock(&s->mutex);
    replica_propose(r, entry, len, NULL, on_done, s);
}

static void wait_all(struct results *s)
{
    pthread_mutex_lock(&s->mutex);
    while (s->finished < s->started) pthread_cond_wait(&s->cond, &s->mutex);
    pthread_mutex_unlock(&s->mutex);
}

static void wait_until_true(_Atomic uint64_t *counter, uint64_t at_least)
{
    for (int i = 0; i < 10000 && *counter < at_least; i++) usleep(1000);
    ck_assert_uint_ge(*counter, at_least);
}

/* ---- promises ---- */

START_TEST(entries_are_applied_once_and_in_order)
{
    struct replica_host *host = open_host();
    struct machine m = { 0 };
    struct results s;
    results_init(&s);
    struct replica *r = open_replica(host, 1, &m);
    for (uint64_t i = 1; i <= 3000; i++) propose(r, &s, i, 64);
    wait_all(&s);
    ck_assert_uint_eq(s.by_code[OMEN_OK], 3000);
    ck_assert(s.in_order);
    ck_assert_uint_eq(m.applies, 3000);
    uint64_t sum = 0;
    for (uint64_t i = 1; i <= 3000; i++) sum = sum * 31 + i;
    ck_assert_uint_eq(m.sum, sum);
    replica_close(r, false);
    replica_host_close(host);
}
END_TEST

START_TEST(outcome_reaches_the_proposer)
{
    struct replica_host *host = open_host();
    struct machine m = { .applied = 1000, .durable = 1000, .base = 1000 };
    struct results s;
    results_init(&s);
    struct replica *r = open_replica(host, 1, &m);
    uint64_t outcome = 0;
    s.started = 1;
    replica_propose(r, mem_calloc(1, 8), 8, &outcome, on_done, &s);
    wait_all(&s);
    ck_assert_uint_eq(outcome, 1001);
    ck_assert_uint_eq(s.last_sequence, 1001);
    replica_close(r, false);
    replica_host_close(host);
}
END_TEST

START_TEST(restart_redelivers_what_is_above_applied)
{
    struct replica_host *host = open_host();
    struct machine a = { 0 }, b = { .applied = 500, .durable = 500, .base = 500 };
    struct results s;
    results_init(&s);
    struct replica *ra = open_replica(host, 1, &a), *rb = open_replica(host, 2, &b);
    for (uint64_t i = 1; i <= 100; i++) {
        propose(ra, &s, i, 64);
        propose(rb, &s, i, 512);
        if (i == 40) {
            wait_all(&s);
            ck_assert_int_eq(replica_checkpoint(ra, NULL), OMEN_OK);
        }
    }
    wait_all(&s);
    replica_close(ra, false);
    replica_close(rb, false);
    replica_host_close(host);

    host = open_host();
    struct machine a2 = { .applied = a.durable, .durable = a.durable };
    struct machine b2 = { .applied = 500, .durable = 500, .base = 500 };
    ck_assert_uint_eq(a.durable, 40);
    ra = open_replica(host, 1, &a2);
    rb = open_replica(host, 2, &b2);
    ck_assert_uint_eq(a2.applied, 100);
    ck_assert_uint_eq(a2.applies, 60);
    ck_assert_uint_eq(b2.applied, 600);
    ck_assert_uint_eq(b2.applies, 100);
    ck_assert_uint_eq(b2.sum, b.sum);
    propose(ra, &s, 7, 8);
    wait_all(&s);
    ck_assert_uint_eq(a2.applied, 101);
    replica_close(ra, false);
    replica_close(rb, false);
    replica_host_close(host);
}
END_TEST

START_TEST(reopen_in_one_life_redelivers_from_the_log)
{
    struct replica_host *host = open_host();
    struct machine m = { 0 }, again = { 0 };
    struct results s;
    results_init(&s);
    struct replica *r = open_replica(host, 1, &m);
    for (uint64_t i = 1; i <= 100; i++) propose(r, &s, i, 2000);
    wait_all(&s);
    replica_close(r, false);
    r = open_replica(host, 1, &again);
    ck_assert_uint_eq(again.applies, 100);
    ck_assert_uint_eq(again.sum, m.sum);
    replica_close(r, false);
    replica_host_close(host);
}
END_TEST

START_TEST(a_log_that_begins_above_the_machine_is_refused)
{
    struct replica_host *host = open_host();
    struct machine m = { 0 }, lost = { 0 };
    struct results s;
    results_init(&s);
    struct replica *r = open_replica(host, 1, &m);
    for (uint64_t i = 1; i <= 200; i++) propose(r, &s, i, 4096);
    wait_all(&s);
    ck_assert_int_eq(replica_checkpoint(r, NULL), OMEN_OK);
    propose(r, &s, 201, 4096);
    wait_all(&s);
    struct node_log_stats stats;
    do {
        usleep(1000);
        replica_host_log_stats(host, &stats);
    } while (stats.bytes > SEGMENT);
    replica_close(r, false);
    replica_host_close(host);
    host = open_host();
    struct replica_fsm f = fsm(&lost);
    struct err err = { 0 };
    ck_assert_int_eq(replica_open(host, 1, 1, 0, &f, &r, &err), OMEN_ECORRUPT);
    ck_assert_uint_eq(lost.applies, 0);
    replica_host_close(host);
}
END_TEST

START_TEST(dropped_group_leaves_nothing)
{
    struct replica_host *host = open_host();
    struct machine a = { 0 }, b = { 0 };
    struct results s;
    results_init(&s);
    struct replica *ra = open_replica(host, 1, &a), *rb = open_replica(host, 2, &b);
    for (uint64_t i = 1; i <= 10; i++) {
        propose(ra, &s, i, 64);
        propose(rb, &s, i, 64);
    }
    wait_all(&s);
    replica_drop(ra);
    replica_close(rb, false);
    replica_host_close(host);

    host = open_host();
    struct machine fresh = { 0 };
    ra = open_replica(host, 1, &fresh);
    ck_assert_uint_eq(fresh.applies, 0);
    replica_close(ra, false);
    replica_host_forget(host, 2);
    replica_host_close(host);

    host = open_host();
    struct machine forgotten = { 0 };
    rb = open_replica(host, 2, &forgotten);
    ck_assert_uint_eq(forgotten.applies, 0);
    replica_close(rb, false);
    replica_host_close(host);
}
END_TEST

START_TEST(limits_answer_busy_and_single_big_entries_pass)
{
    struct replica_host_options o = host_options();
    o.group_inflight_bytes_max = 4096;
    o.host_inflight_bytes_max = 6000;
    struct replica_host *host;
    ck_assert_int_eq(replica_host_open(&o, &host, NULL), OMEN_OK);
    struct machine a = { .block = true }, b = { .block = true };
    struct results s;
    results_init(&s);
    struct replica *ra = open_replica(host, 1, &a), *rb = open_replica(host, 2, &b);
    for (int i = 0; i < 4; i++) propose(ra, &s, 1, 1024);
    ck_assert_uint_eq(s.by_code[OMEN_EBUSY], 0);
    propose(ra, &s, 1, 8); /* the group is at its limit */
    ck_assert_uint_eq(s.by_code[OMEN_EBUSY], 1);
    propose(rb, &s, 1, 2048); /* the host would be over */
    ck_assert_uint_eq(s.by_code[OMEN_EBUSY], 2);
    propose(rb, &s, 1, 1024);
    ck_assert_uint_eq(s.by_code[OMEN_EBUSY], 2);
    a.block = b.block = false;
    wait_all(&s);
    ck_assert_uint_eq(s.by_code[OMEN_OK], 5);
    propose(ra, &s, 1, 65536); /* alone */
    wait_all(&s);
    ck_assert_uint_eq(s.by_code[OMEN_OK], 6);
    propose(ra, &s, 1, 12);
    ck_assert_uint_eq(s.by_code[OMEN_EINVAL], 1);
    struct replica_status status;
    replica_status(ra, &status);
    ck_assert_uint_eq(status.inflight_bytes, 0);
    ck_assert_uint_eq(status.applied, 5);
    replica_close(ra, false);
    replica_close(rb, false);
    replica_host_close(host);
}
END_TEST

START_TEST(full_disk_waits_and_resumes)
{
    struct replica_host *host = open_host();
    struct machine m = { 0 };
    struct results s;
    results_init(&s);
    struct replica *r = open_replica(host, 1, &m);
    propose(r, &s, 1, 64);
    wait_all(&s);
    m.fail = OMEN_EFULL;
    propose(r, &s, 2, 64);
    struct replica_status status = { 0 };
    while (!status.disk_full) {
        usleep(1000);
        replica_status(r, &status);
    }
    propose(r, &s, 3, 64);
    ck_assert_uint_eq(s.by_code[OMEN_EFULL], 1); /* at once */
    ck_assert_uint_eq(s.by_code[OMEN_OK], 1);
    m.fail = OMEN_OK;
    wait_all(&s);
    ck_assert_uint_eq(s.by_code[OMEN_OK], 2);
    propose(r, &s, 3, 64);
    wait_all(&s);
    ck_assert_uint_eq(m.applies, 3);
    replica_status(r, &status);
    ck_assert(!status.disk_full);
    replica_close(r, false);
    replica_host_close(host);
}
END_TEST

START_TEST(closing_on_a_full_disk_answers_unknown_and_redelivers)
{
    struct replica_host *host = open_host();
    struct machine m = { .fail = OMEN_EFULL };
    struct results s;
    results_init(&s);
    struct replica *r = open_replica(host, 1, &m);
    propose(r, &s, 1, 64);
    struct replica_status status = { 0 };
    while (!status.disk_full) {
        usleep(1000);
        replica_status(r, &status);
    }
    replica_close(r, true);
    ck_assert_uint_eq(s.by_code[OMEN_EUNKNOWN], 1);
    replica_host_close(host);
    host = open_host();
    r = open_replica(host, 1, &m); /* still full: it opens, and the entry waits for room */
    replica_status(r, &status);
    ck_assert(status.disk_full);
    ck_assert_uint_eq(m.applies, 0);
    propose(r, &s, 2, 64);
    ck_assert_uint_eq(s.by_code[OMEN_EFULL], 1);
    m.fail = OMEN_OK;
    while (m.applied < 1) usleep(1000);
    ck_assert_uint_eq(m.applies, 1);
    replica_close(r, false);
    replica_host_close(host);
}
END_TEST

START_TEST(an_apply_error_stops_the_replica)
{
    struct replica_host *host = open_host();
    struct machine m = { .block = true, .fail = OMEN_ECORRUPT };
    struct results s;
    results_init(&s);
    struct replica *r = open_replica(host, 1, &m);
    for (uint64_t i = 1; i <= 3; i++) propose(r, &s, i, 64);
    m.block = false;
    wait_all(&s);
    ck_assert_uint_eq(s.by_code[OMEN_EUNKNOWN], 3);
    propose(r, &s, 4, 64);
    ck_assert_uint_eq(s.by_code[OMEN_ECORRUPT], 1);
    replica_barrier(r, on_done, &s);
    ck_assert_uint_eq(s.by_code[OMEN_ECORRUPT], 2);
    struct replica_status status;
    replica_status(r, &status);
    ck_assert_int_eq(status.stopped, OMEN_ECORRUPT);
    ck_assert(!status.leader);
    replica_close(r, true);
    ck_assert_uint_eq(m.checkpoints, 0);
    replica_host_close(host);
}
END_TEST

START_TEST(barrier_waits_for_what_was_committed)
{
    struct replica_host *host = open_host();
    struct machine m = { .block = true };
    struct results writes, reads;
    results_init(&writes);
    results_init(&reads);
    struct replica *r = open_replica(host, 1, &m);
    propose(r, &writes, 1, 64);
    usleep(20000); /* let it be synced; the barrier below is right in either case */
    reads.started = 1;
    replica_barrier(r, on_done, &reads);
    struct replica_status status;
    replica_status(r, &status);
    m.block = false;
    wait_all(&reads);
    wait_all(&writes);
    reads.started++;
    replica_barrier(r, on_done, &reads);
    ck_assert_uint_eq(reads.finished, 2); /* nothing to wait for: at once */
    ck_assert_uint_eq(reads.last_sequence, 1);
    replica_close(r, false);
    replica_host_close(host);
}
END_TEST

START_TEST(idle_group_is_checkpointed_when_it_pins_the_log)
{
    struct replica_host *host = open_host();
    struct machine idle = { .one_back = _i == 1 }, busy = { .one_back = _i == 1 };
    struct results s;
    results_init(&s);
    struct replica *ri = open_replica(host, 1, &idle), *rb = open_replica(host, 2, &busy);
    propose(ri, &s, 1, 64);
    for (uint64_t i = 1; i <= 400 && (idle.checkpoints <= (uint64_t)_i || busy.checkpoints == 0); i++) {
        propose(rb, &s, i, 4096);
        wait_all(&s);
        usleep(1000);
    }
    wait_until_true(&idle.checkpoints, 1);
    wait_until_true(&busy.checkpoints, 1);
    struct node_log_stats stats;
    for (int i = 0; i < 5000; i++) {
        replica_host_log_stats(host, &stats);
        if (!stats.over_limit) break;
        usleep(1000);
    }
    ck_assert(!stats.over_limit);
    replica_close(ri, true);
    replica_close(rb, true);
    replica_host_close(host);
}
END_TEST

START_TEST(the_log_is_bounded_while_a_checkpoint_takes_long)
{
    struct replica_host_options o = host_options();
    o.checkpoint_log_bytes = SEGMENT;
    struct replica_host *host;
    ck_assert_int_eq(replica_host_open(&o, &host, NULL), OMEN_OK);
    struct machine m = { .checkpoint_block = true };
    struct results s;
    results_init(&s);
    struct replica *r = open_replica(host, 1, &m);
    struct node_log_stats stats;
    uint32_t tries = 0;
    for (; tries < 40 * SEGMENT / 4096 && s.by_code[OMEN_EBUSY] == 0; tries++) {
        propose(r, &s, tries + 1, 4096);
        wait_all(&s);
        if (tries == 2 * SEGMENT / 4096) { /* the disk becomes slow when there is much room left */
            for (int i = 0; i < 10000 && !m.checkpointing; i++) usleep(1000);
            ck_assert(m.checkpointing);
        }
    }
    ck_assert_uint_eq(s.by_code[OMEN_EBUSY], 1);
    replica_host_log_stats(host, &stats);
    ck_assert_uint_le(stats.bytes, o.log.bytes_max + o.log.bytes_max / 2 + SEGMENT);
    m.checkpoint_block = false; /* and goes on when it is done */
    for (int i = 0; i < 10000 && s.by_code[OMEN_OK] < tries; i++) {
        propose(r, &s, tries + 1, 4096);
        wait_all(&s);
        usleep(1000);
    }
    ck_assert_uint_ge(s.by_code[OMEN_OK], tries);
    replica_close(r, true);
    replica_host_close(host);
}
END_TEST

START_TEST(a_failed_checkpoint_stops_but_a_full_disk_does_not)
{
    struct replica_host *host = open_host();
    struct machine m = { .checkpoint_fail = OMEN_EFULL };
    struct results s;
    results_init(&s);
    struct replica *r = open_replica(host, 1, &m);
    propose(r, &s, 1, 64);
    wait_all(&s);
    ck_assert_int_eq(replica_checkpoint(r, NULL), OMEN_EFULL);
    propose(r, &s, 2, 64);
    wait_all(&s);
    ck_assert_uint_eq(s.by_code[OMEN_OK], 2);
    m.checkpoint_fail = OMEN_EIO;
    ck_assert_int_eq(replica_checkpoint(r, NULL), OMEN_EIO);
    propose(r, &s, 3, 64);
    ck_assert_uint_eq(s.by_code[OMEN_EIO], 1);
    replica_close(r, false);
    replica_host_close(host);
}
END_TEST

/* Pipelined proposals while the log cannot grow, then room, then a crash: what was acknowledged is there, in
 * one piece. */
START_TEST(a_full_log_refuses_resumes_and_keeps_its_promise)
{
    struct vfs_sim *sim = vfs_sim_new(5);
    struct replica_host_options o = host_options();
    o.log.vfs = vfs_sim_vfs(sim);
    o.log.dir = "/log";
    o.log.bytes_max = 64 * SEGMENT;
    struct replica_host *host;
    ck_assert_int_eq(replica_host_open(&o, &host, NULL), OMEN_OK);
    struct machine m = { .checkpoint_fail = OMEN_EFULL }; /* the log is all that a restart finds */
    struct results s;
    results_init(&s);
    struct replica *r = open_replica(host, 1, &m);
    vfs_sim_set_capacity(sim, 4 * SEGMENT);
    for (uint64_t i = 1; i <= 300; i++) propose(r, &s, i, 800 + 8 * (uint32_t)(i % 500));
    wait_all(&s);
    ck_assert_uint_gt(s.by_code[OMEN_EFULL], 0);
    ck_assert_uint_eq(s.by_code[OMEN_OK] + s.by_code[OMEN_EFULL], 300);
    vfs_sim_set_capacity(sim, 0);
    uint32_t before = s.by_code[OMEN_OK];
    for (int i = 0; i < 5000 && s.by_code[OMEN_OK] == before; i++) {
        propose(r, &s, 1, 2048); /* the last refused append may just be on its way back */
        wait_all(&s);
        usleep(1000);
    }
    ck_assert_uint_eq(s.by_code[OMEN_OK], before + 1);
    for (uint64_t i = 1; i <= 100; i++) propose(r, &s, i, 2048);
    wait_all(&s);
    ck_assert_uint_eq(s.by_code[OMEN_OK], before + 101);
    uint64_t acknowledged = s.by_code[OMEN_OK];
    ck_assert_uint_eq(m.applied, acknowledged);
    struct vfs_sim *crashed = vfs_sim_after_crash(sim, 6);
    replica_close(r, false);
    replica_host_close(host);
    vfs_sim_free(sim);

    o.log.vfs = vfs_sim_vfs(crashed);
    ck_assert_int_eq(replica_host_open(&o, &host, NULL), OMEN_OK);
    struct machine found = { 0 };
    r = open_replica(host, 1, &found);
    ck_assert_uint_eq(found.applied, acknowledged);
    ck_assert_uint_eq(found.sum, m.sum);
    replica_close(r, false);
    replica_host_close(host);
    vfs_sim_free(crashed);
}
END_TEST

static bool all_vital(void *self, const void *entry, uint32_t len) { return true; }

/* A collection is recorded, its node ends before its shard's first vote is, and the disk fills: what is vital has
 * taken its part, and the node starts all the same. */
START_TEST(a_group_begins_where_what_is_vital_is_refused)
{
    struct vfs_sim *sim = vfs_sim_new(7);
    struct replica_host_options o = host_options();
    o.log.vfs = vfs_sim_vfs(sim);
    o.log.dir = "/log";
    o.log.bytes_max = 64 * SEGMENT;
    struct replica_host *host;
    ck_assert_int_eq(replica_host_open(&o, &host, NULL), OMEN_OK);
    struct machine m = { .checkpoint_fail = OMEN_EFULL }, other = { 0 };
    struct results s;
    results_init(&s);
    struct replica_fsm f = fsm(&m);
    f.vital = all_vital;
    struct replica *r;
    ck_assert_int_eq(replica_open(host, 1, 1, 0, &f, &r, NULL), OMEN_OK);
    struct node_log_stats stats = { 0 };
    for (int ms = 0; stats.spares < NODE_LOG_RESERVE; ms++) { /* it is made behind the open */
        ck_assert_int_lt(ms, 60000);
        usleep(1000);
        replica_host_log_stats(host, &stats);
    }
    uint64_t free_bytes, total_bytes;
    vfs_sim_set_capacity(sim, 1ull << 30);
    ck_assert_int_eq(vfs_free_space(o.log.vfs, "/", &free_bytes, &total_bytes, NULL), OMEN_OK);
    vfs_sim_set_capacity(sim, total_bytes - free_bytes);
    for (int refused = 0; refused < 3;) { /* the first is what makes the log short */
        uint32_t before = s.by_code[OMEN_EFULL];
        propose(r, &s, 1, 800);
        wait_all(&s);
        refused = s.by_code[OMEN_EFULL] > before ? refused + 1 : 0;
    }
    replica_host_log_stats(host, &stats);
    ck_assert_uint_eq(stats.spares, 1); /* what is vital leaves it */
    struct replica *second = open_replica(host, 2, &other);
    replica_close(second, false);
    replica_close(r, false);
    replica_host_close(host);
    vfs_sim_free(sim);
}
END_TEST

/* ---- many threads ---- */

struct client {
    pthread_t thread;
    struct replica **replicas;
    uint32_t replica_count, number, rounds;
    uint32_t ok;
};

static void *client_main(void *arg)
{
    struct client *c = arg;
    struct results s;
    results_init(&s);
    for (uint32_t i = 0; i < c->rounds; i++) {
        struct replica *r = c->replicas[(c->number + i) % c->replica_count];
        propose(r, &s, i, 8 + 8 * (i % 200));
        if (i % 7 == 0) {
            pthread_mutex_lock(&s.mutex);
            s.started++;
            pthread_mutex_unlock(&s.mutex);
            replica_barrier(r, on_done, &s);
        }
        if (i % 3 == 0) wait_all(&s);
    }
    wait_all(&s);
    c->ok = s.by_code[OMEN_OK];
    return NULL;
}

START_TEST(many_threads_and_groups)
{
    enum { CLIENTS = 8, GROUPS = 6, ROUNDS = 300 };
    struct replica_host *host = open_host();
    struct machine machines[GROUPS] = { 0 };
    struct replica *replicas[GROUPS];
    struct client clients[CLIENTS];
    for (uint32_t g = 0; g < GROUPS; g++) replicas[g] = open_replica(host, g + 1, &machines[g]);
    for (uint32_t c = 0; c < CLIENTS; c++) {
        clients[c] = (struct client){ .replicas = replicas,
            .replica_count = GROUPS,
            .number = c,
            .rounds = ROUNDS };
        pthread_create(&clients[c].thread, NULL, client_main, &clients[c]);
    }
    uint64_t ok = 0, applies = 0;
    for (uint32_t c = 0; c < CLIENTS; c++) {
        pthread_join(clients[c].thread, NULL);
        ok += clients[c].ok;
    }
    for (uint32_t g = 0; g < GROUPS; g++) {
        replica_close(replicas[g], g % 2 == 0);
        applies += machines[g].applies;
    }
    uint64_t barriers = (uint64_t)CLIENTS * ((ROUNDS + 6) / 7);
    ck_assert_uint_le(applies, (uint64_t)CLIENTS * ROUNDS);
    ck_assert_uint_eq(ok, applies + barriers);
    replica_host_close(host);
}
END_TEST

int main(void)
{
    TCase *tc = tcase_create("replica");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, entries_are_applied_once_and_in_order);
    tcase_add_test(tc, outcome_reaches_the_proposer);
    tcase_add_test(tc, restart_redelivers_what_is_above_applied);
    tcase_add_test(tc, reopen_in_one_life_redelivers_from_the_log);
    tcase_add_test(tc, a_log_that_begins_above_the_machine_is_refused);
    tcase_add_test(tc, dropped_group_leaves_nothing);
    tcase_add_test(tc, limits_answer_busy_and_single_big_entries_pass);
    tcase_add_test(tc, full_disk_waits_and_resumes);
    tcase_add_test(tc, closing_on_a_full_disk_answers_unknown_and_redelivers);
    tcase_add_test(tc, an_apply_error_stops_the_replica);
    tcase_add_test(tc, barrier_waits_for_what_was_committed);
    tcase_add_loop_test(tc, idle_group_is_checkpointed_when_it_pins_the_log, 0, 2);
    tcase_add_test(tc, the_log_is_bounded_while_a_checkpoint_takes_long);
    tcase_add_test(tc, a_failed_checkpoint_stops_but_a_full_disk_does_not);
    tcase_add_test(tc, a_full_log_refuses_resumes_and_keeps_its_promise);
    tcase_add_test(tc, a_group_begins_where_what_is_vital_is_refused);
    tcase_add_test(tc, many_threads_and_groups);
    Suite *suite = suite_create("replica");
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
