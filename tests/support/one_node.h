/* One node in this process, over a directory of its own, and calls to its shards: the fixture of tests that are about a
 * shard of a single node. For one file of tests: everything is its own. */
#ifndef OMEN_TESTS_SUPPORT_ONE_NODE_H
#define OMEN_TESTS_SUPPORT_ONE_NODE_H

#include "common/err.h"

#include <check.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "node/node.h"
#include "tests/support/doc_text.h"
#include "tests/support/entry_support.h"

#define DIM 8

static char dir[256];
static struct node *node;
static struct node_options options;
static struct metrics *metrics;

static inline void node_up(void)
{
    struct err err;
    options.metrics = metrics = metrics_new(); /* a node's own: it is in there until they go */
    enum omen_err rc = node_open(&options, &node, &err);
    ck_assert_msg(rc == OMEN_OK, "%s", err.message);
}

static inline void node_down(void)
{
    node_close(node);
    metrics_free(metrics);
    node = NULL;
    options.metrics = metrics = NULL;
}

static inline void setup(void)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%s/omen-XXXXXX", tmp != NULL ? tmp : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    node_options_default(&options);
    options.data_dir = dir;
    options.search_threads = 2;
    options.disk_min_free_percent = 0;
    options.store.chunk_bytes = 64 << 10;
    options.host.log.segment_bytes = 256 << 10;
    node_up();
}

static inline void teardown(void)
{
    if (node != NULL) node_down();
    ck_assert_int_eq(vfs_remove_tree(vfs_posix(), dir, NULL), OMEN_OK);
}

/* ---- calls ---- */

struct waiter {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    bool done;
};

static inline void call_done(struct shard_call *call)
{
    struct waiter *w = call->arg;
    pthread_mutex_lock(&w->mutex);
    w->done = true;
    pthread_cond_signal(&w->cond);
    pthread_mutex_unlock(&w->mutex);
}

static inline void start(struct shard_call *call, struct waiter *w)
{
    *w = (struct waiter){ PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false };
    call->done = call_done;
    call->arg = w;
    const struct shard_service *service = node_service(node);
    service->submit(service->self, call);
}

static inline void finish(struct waiter *w)
{
    pthread_mutex_lock(&w->mutex);
    while (!w->done) pthread_cond_wait(&w->cond, &w->mutex);
    pthread_mutex_unlock(&w->mutex);
}

static inline void release(struct shard_call *call)
{
    const struct shard_service *service = node_service(node);
    service->release(service->self, call);
}

static inline bool finished(struct waiter *w)
{
    pthread_mutex_lock(&w->mutex);
    bool done = w->done;
    pthread_mutex_unlock(&w->mutex);
    return done;
}

/* Submit and wait; outputs stay valid until release. */
static inline enum omen_err run(struct shard_call *call)
{
    struct waiter w;
    start(call, &w);
    finish(&w);
    return call->code;
}

static inline enum omen_err create_with(const char *name, const char *options_json)
{
    struct arena arena;
    struct shard_call call = { .kind = CALL_CATALOG };
    arena_init(&arena, 1024, 0);
    call.in.catalog = (struct catalog_change){ .kind = CATALOG_CREATE,
        .shard_count = 1,
        .replication = 1,
        .recall_target = 0.9f,
        .options = doc_of(&arena, options_json) };
    snprintf(call.in.catalog.name, sizeof call.in.catalog.name, "%s", name);
    call.in.catalog.schema = test_schema_simple(DIM, "");
    enum omen_err rc = run(&call);
    release(&call);
    arena_fini(&arena);
    return rc;
}

static inline enum omen_err catalog(enum catalog_change_kind kind, const char *name, uint32_t shards,
        enum metric metric)
{
    struct shard_call call = { .kind = CALL_CATALOG };
    call.in.catalog = (struct catalog_change){ .kind = kind,
        .shard_count = shards,
        .replication = 1,
        .recall_target = 1 };
    snprintf(call.in.catalog.name, sizeof call.in.catalog.name, "%s", name);
    call.in.catalog.schema = test_schema_simple(DIM, "");
    call.in.catalog.schema.fields[0].metric = metric;
    enum omen_err rc = run(&call);
    release(&call);
    return rc;
}

static inline struct map_collection collection(const char *name)
{
    const struct shard_service *service = node_service(node);
    struct map *map = service->map_acquire(service->self);
    const struct map_collection *c = map_find(map, name, strlen(name));
    ck_assert_ptr_nonnull(c);
    struct map_collection copy = *c; /* `shards` dies with the map: only ids below are read before that */
    static struct map_shard shards[16];
    memcpy(shards, c->shards, sizeof *shards * c->shard_count);
    copy.shards = shards;
    map_unref(map);
    return copy;
}

static inline uint64_t shard_of(const char *name) { return collection(name).shards[0].shard_id; }

static inline struct shard_call call_of(enum shard_call_kind kind, uint64_t shard)
{
    return (struct shard_call){ .kind = kind, .shard_id = shard };
}

/* One point with x = id in its first component. */
static inline struct point_op upsert_op(uint64_t id, float *vector)
{
    memset(vector, 0, DIM * sizeof *vector);
    vector[0] = (float)id;
    vector[1] = 1;
    return (struct point_op){ .kind = POINT_UPSERT, .id = { 0, id, 0 }, .vectors = { vector } };
}

static inline enum omen_err upsert(uint64_t shard, uint64_t id, struct op_id op_id, struct shard_call *call)
{
    static __thread float vector[DIM];
    struct point_op op = upsert_op(id, vector);
    *call = call_of(CALL_WRITE, shard);
    call->in.write.ops = &op;
    call->in.write.count = 1;
    call->in.write.op_id = op_id;
    enum omen_err rc = run(call);
    release(call);
    return rc;
}

static inline uint64_t count_points(uint64_t shard, enum consistency consistency, uint64_t token)
{
    struct shard_call call = call_of(CALL_COUNT, shard);
    call.consistency = consistency;
    call.token_sequence = token;
    ck_assert_int_eq(run(&call), OMEN_OK);
    uint64_t points = call.out.count.points;
    release(&call);
    return points;
}

static inline uint64_t metric_value(const char *name)
{
    struct buf b;
    buf_init(&b);
    metrics_render(metrics, &b);
    buf_append(&b, "", 1);
    char line[128];
    snprintf(line, sizeof line, "\n%s ", name);
    const char *at = strstr((char *)b.data, line);
    ck_assert_msg(at != NULL, "no metric %s", name);
    uint64_t v = strtoull(at + strlen(line), NULL, 10);
    buf_fini(&b);
    return v;
}

/* ---- points by the hundred ---- */

#define WAIT_POINTS 300u

/* A write of points [first, first + count); the vectors must live until it is done. */
static inline void write_call(struct shard_call *call, uint64_t shard, uint64_t first, uint32_t count,
        enum write_wait wait, struct point_op ops[WAIT_POINTS], float vectors[WAIT_POINTS][DIM])
{
    for (uint32_t i = 0; i < count; i++) ops[i] = upsert_op(first + i, vectors[i]);
    *call = call_of(CALL_WRITE, shard);
    call->in.write.ops = ops;
    call->in.write.count = count;
    call->in.write.wait = wait;
}

static inline uint64_t unindexed(uint64_t shard)
{
    struct shard_call call = call_of(CALL_STATS, shard);
    ck_assert_int_eq(run(&call), OMEN_OK);
    uint64_t rows = call.out.stats.unindexed;
    release(&call);
    return rows;
}

static struct point_op wait_ops[WAIT_POINTS];
static float wait_vectors[WAIT_POINTS][DIM];

static inline uint32_t shard_directories(void)
{
    char path[300];
    snprintf(path, sizeof path, "%s/shards", dir);
    uint32_t count = 0;
    char command[400];
    snprintf(command, sizeof command, "ls %s | wc -l", path);
    FILE *f = popen(command, "r");
    ck_assert_int_eq(fscanf(f, "%u", &count), 1);
    pclose(f);
    return count;
}

#endif
