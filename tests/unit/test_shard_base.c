/* Between a base in the log and going over to it: what the simulation found there once, each by a test of its own. The
 * disk refuses one file, so that a replica stays in between for as long as a test looks. */
#include "common/err.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/wire/file_message.h"
#include "consensus/replica_impl.h"
#include "node/shard_host_impl.h"
#include "tests/support/shard_nodes.h"

#define POINTS 800u

static struct shard_nodes g;

/* ---- a disk that is full for some ---- */

static _Atomic bool no_current; /* nothing goes over */
static _Atomic bool no_files;   /* nothing new at all */
static struct vfs_ops disk_ops;
static struct vfs disk = { &disk_ops };

static enum omen_err disk_open(struct vfs *vfs, const char *path, int flags, struct vfs_file **file_out,
        struct err *err)
{
    bool refused = (flags & VFS_CREATE) != 0 &&
            (atomic_load(&no_files) || (atomic_load(&no_current) && strstr(path, "/CURRENT") != NULL));
    if (refused) return err_set(err, OMEN_EFULL, "", "%s: no room", path);
    return vfs_open(vfs_posix(), path, flags, file_out, err);
}

static void setup(void)
{
    shard_nodes_init(&g, 3);
    g.host.cluster.trailing_bytes = 0;
    disk_ops = *vfs_posix()->ops;
    disk_ops.open = disk_open;
    atomic_store(&no_current, false);
    atomic_store(&no_files, false);
}

static void teardown(void) { shard_nodes_fini(&g); }

static struct replica_status status_of(uint32_t i)
{
    struct replica_status s;
    replica_status(shard_host_replica(g.nodes[i].shard), &s);
    return s;
}

#define wait_for(condition)                                                                                  \
    do {                                                                                                     \
        for (uint32_t tries = 0; tries < SHARD_NODES_WAIT_MS && !(condition); tries++) usleep(1000);         \
        ck_assert_msg(condition, "never: %s", #condition);                                                   \
    } while (0)

static uint64_t fill(uint64_t first, uint32_t points)
{
    uint64_t last = 0;
    for (uint32_t i = 0; i < points; i += 100) last = shard_nodes_fill(&g, first + i, 100, 100);
    return last;
}

static bool there(uint32_t i, const char *name)
{
    char path[500];
    bool found = false;
    snprintf(path, sizeof path, "%s/%u-%u/%s", g.nodes[i].dir, SHARD_NODES_GROUP,
            (unsigned)g.nodes[i].replica_id, name);
    ck_assert_int_eq(vfs_exists(vfs_posix(), path, &found, NULL), OMEN_OK);
    return found;
}

/* A follower whose log rests on a base that was copied while it was away too long, and which has not gone over to it: it
 * still reads its old store. */
static uint32_t resting_follower(uint64_t *last_out)
{
    shard_nodes_start(&g, 3);
    uint64_t last = fill(1, POINTS / 2);
    for (uint32_t i = 0; i < 3; i++) shard_node_wait_applied(&g.nodes[i], last);
    uint32_t away = (shard_nodes_leader(&g, UINT32_MAX) + 1) % 3;
    shard_node_down(&g, away);
    last = fill(1 + POINTS / 2, POINTS / 2);
    for (uint32_t i = 0; i < 3; i++)
        if (i != away) shard_node_wait_applied(&g.nodes[i], last);
    shard_nodes_checkpoint(&g);
    for (uint32_t i = 0; i < 3; i++)
        if (i != away) wait_for(status_of(i).base_sequence >= last);
    g.nodes[away].vfs = &disk;
    atomic_store(&no_current, true);
    shard_nodes_reopen(&g, away);
    wait_for(status_of(away).switching && status_of(away).disk_full);
    ck_assert_uint_lt(shard_store_applied(atomic_load(&g.nodes[away].shard->store)), last);
    *last_out = last;
    return away;
}

static void goes_on(uint32_t i, uint64_t last)
{
    atomic_store(&no_files, false);
    atomic_store(&no_current, false);
    if (g.nodes[i].host == NULL) shard_nodes_reopen(&g, i);
    shard_node_wait_applied(&g.nodes[i], last);
    shard_node_wait_ready(&g.nodes[i]);
    ck_assert_uint_eq(shard_node_count(&g.nodes[i], CONSISTENCY_SESSION, last, NULL), POINTS);
    ck_assert(there(i, "g2/CHECKPOINT") && there(i, "CURRENT"));
}

/* ---- promises ---- */

START_TEST(a_restart_on_a_full_disk_keeps_the_base_that_the_log_rests_on)
{
    uint64_t last;
    uint32_t i = resting_follower(&last);
    shard_node_down(&g, i);
    atomic_store(&no_files, true);
    shard_node_up(&g, i);
    char dir[400];
    struct err err = { 0 };
    struct shard_host *shard = NULL;
    snprintf(dir, sizeof dir, "%s/%u-%u", g.nodes[i].dir, SHARD_NODES_GROUP, (unsigned)g.nodes[i].replica_id);
    struct shard_host_options o = { .env = &g.nodes[i].env,
        .dir = dir,
        .shard_id = SHARD_NODES_GROUP,
        .replica_id = g.nodes[i].replica_id,
        .collection_id = 5,
        .schema = &g.schema,
        .collection_name = "test",
        .raft = true,
        .node_id = g.nodes[i].node_id,
        .peers = &g.nodes[i].peers };
    enum omen_err rc = shard_host_open(&o, &shard, &err);
    ck_assert_msg(rc == OMEN_EFULL, "%s: %s", err_name(rc), err.message);
    ck_assert(there(i, "g2/ADOPT"));
    shard_node_down(&g, i);
    goes_on(i, last);
}
END_TEST

/* One request for a lease, and its answer's code. */
static _Atomic bool answered;
static void lease_done(struct ship_call *call) { atomic_store(&answered, true); }

static enum omen_err lease_code(uint32_t i, uint64_t sequence)
{
    struct buf body, out;
    struct arena arena;
    struct file_reply reply;
    struct err err;
    struct file_request request = { .op = FILE_LEASE, .group = SHARD_NODES_GROUP, .sequence = sequence };
    buf_init(&body);
    buf_init(&out);
    arena_init(&arena, 1 << 14, 0);
    file_request_encode(&request, &body);
    struct ship_call call = { .body = { body.data, body.len }, .reply = &out, .done = lease_done };
    atomic_store(&answered, false);
    ship_serve(g.nodes[i].env.ship, &call);
    wait_for(atomic_load(&answered));
    enum omen_err rc = file_reply_decode(request.op, (struct bytes){ out.data, out.len }, &arena, &reply,
            &err);
    ck_assert_msg(rc == OMEN_OK, "%s", err.message);
    rc = reply.code;
    arena_fini(&arena);
    buf_fini(&body);
    buf_fini(&out);
    return rc;
}

/* Who copied the old store under the new base's name would acknowledge what it does not hold (CORRECTNESS C4). */
START_TEST(a_replica_that_has_not_gone_over_to_its_base_leases_nothing_out)
{
    uint64_t last;
    uint32_t i = resting_follower(&last);
    ck_assert_int_eq(lease_code(i, last), OMEN_EUNAVAILABLE);
    goes_on(i, last);
    shard_nodes_checkpoint(&g);
    ck_assert_int_eq(lease_code(i, last), OMEN_OK);
}
END_TEST

/* By the log a replica got as far as the base that it copied: the copy is closed and removed, when what is applied is
 * durable, because the log begins after that base. */
START_TEST(a_copy_that_is_passed_over_is_closed_and_removed)
{
    shard_nodes_start(&g, 3);
    uint64_t last = fill(1, POINTS);
    for (uint32_t i = 0; i < 3; i++) shard_node_wait_applied(&g.nodes[i], last);
    uint32_t i = (shard_nodes_leader(&g, UINT32_MAX) + 1) % 3;
    struct shard_host *shard = g.nodes[i].shard;
    struct replica *r = shard_host_replica(shard);
    struct err err = { 0 };
    char dir[sizeof shard->group->dir + 8];
    snprintf(dir, sizeof dir, "%s/g2", shard->group->dir);
    ck_assert_int_eq(vfs_mkdir(vfs_posix(), dir, &err), OMEN_OK);
    struct shard_store_options o = g.store;
    o.vfs = vfs_posix();
    o.dir = dir;
    o.shard_id = SHARD_NODES_GROUP;
    o.replica_id = g.nodes[i].replica_id;
    o.schema = &g.schema;
    ck_assert_int_eq(shard_store_open(&o, &shard->group->next, &err), OMEN_OK);

    struct work *work = mem_must_calloc(1, sizeof *work);
    pthread_mutex_lock(&r->mutex);
    *work = (struct work){ .kind = WORK_SWITCH, .replica = r, .index = r->applied };
    r->switches++;
    replica_enqueue(r, work);
    pthread_mutex_unlock(&r->mutex);
    wait_for(!status_of(i).switching);

    struct shard_store_stats stats;
    shard_store_stats(atomic_load(&shard->store), &stats);
    ck_assert_uint_ge(stats.durable, last);
    ck_assert_ptr_null(shard->group->next);
    ck_assert(!there(i, "g2"));
    ck_assert_uint_eq(shard->group->generation, 1);
    last = fill(POINTS + 1, 100);
    ck_assert_uint_eq(shard_node_count(&g.nodes[i], CONSISTENCY_SESSION, last, NULL), POINTS + 100);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("shard_base");
    TCase *tc = tcase_create("going over");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 180);
    tcase_add_test(tc, a_restart_on_a_full_disk_keeps_the_base_that_the_log_rests_on);
    tcase_add_test(tc, a_replica_that_has_not_gone_over_to_its_base_leases_nothing_out);
    tcase_add_test(tc, a_copy_that_is_passed_over_is_closed_and_removed);
    suite_add_tcase(s, tc);
    SRunner *runner = srunner_create(s);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}
