/* omen-bench stream: how fast points become durable, and proof that they did.
 *
 * Two ways, one JSON line each:
 *   store  entries of 500 points are built on one thread and applied to a shard store on another, with a checkpointer every
 *          64 MiB beside it, as in a node: the append stream alone. Timed until the last checkpoint is durable.
 *   node   the same entries through a replica: the node log (fsynced) first, then the stream. Timed until everything is
 *          acknowledged and checkpointed.
 * The writer is a process of its own; after the timing it is killed with -9. The parent opens the store again, scrolls
 * over every point and compares vector and payload with what was generated. A row that is missing, doubled or different
 * fails the run.
 * The disk's sequential rate is measured right before, in the same directory, over the same number of bytes. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/bench.h"
#include "common/check.h"
#include "common/mem.h"
#include "common/vfs.h"
#include "consensus/replica.h"
#include "storage/shard_store.h"

#define BATCH_POINTS 500
#define QUEUE_ENTRIES 8
#define CHECKPOINT_BYTES (64u << 20)
#define GROUP 2

struct run {
    uint64_t dim, count, payload_bytes;
    const char *dir, *path;
    struct collection_schema schema;
};

struct built {
    uint8_t *bytes;
    uint32_t len;
};

/* Bounded hand-over from the thread that builds entries to the one that applies them. */
struct queue {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct built entries[QUEUE_ENTRIES];
    uint32_t head, count;
    bool ended;
};

struct builder {
    const struct run *run;
    struct queue *queue;
};

static void make_payload(const struct run *run, uint64_t row, struct doc_builder *b, struct doc *doc_out)
{
    char text[4096];
    size_t len = run->payload_bytes > 60 ? run->payload_bytes - 60 : 1;
    if (len > sizeof text) len = sizeof text;
    for (size_t i = 0; i < len; i++) text[i] = (char)('a' + (row + i) % 26);
    doc_builder_reset(b, DOC_BYTES_MAX);
    doc_begin_object(b);
    doc_key(b, "row", 3);
    doc_put_i64(b, (int64_t)row);
    doc_key(b, "text", 4);
    doc_put_string(b, text, len);
    doc_end(b);
    CHECK(doc_builder_finish(b, doc_out, NULL) == OMEN_OK);
}

static void *build_entries(void *arg)
{
    struct builder *builder = arg;
    const struct run *run = builder->run;
    struct queue *queue = builder->queue;
    struct entry_builder *entries = entry_builder_new(&run->schema);
    struct doc_builder *docs = doc_builder_new(DOC_BYTES_MAX);
    float *row = mem_must_alloc(run->dim * sizeof *row);
    for (uint64_t first = 0; first < run->count; first += BATCH_POINTS) {
        uint64_t end = first + BATCH_POINTS < run->count ? first + BATCH_POINTS : run->count;
        entry_builder_reset(entries);
        entry_builder_begin_request(entries, (struct op_id){ 7, first / BATCH_POINTS + 1, 1 });
        for (uint64_t i = first; i < end; i++) {
            struct point_op op = { .kind = POINT_UPSERT, .id = { 0, i, POINT_ID_U64 }, .vectors = { row } };
            bench_row(i, (uint32_t)run->dim, row);
            make_payload(run, i, docs, &op.payload);
            CHECK(entry_builder_add(entries, &op) == OMEN_OK);
        }
        struct built built;
        CHECK(entry_builder_finish(entries, 1, 0, false, &built.bytes, &built.len) == OMEN_OK);
        pthread_mutex_lock(&queue->mutex);
        while (queue->count == QUEUE_ENTRIES) pthread_cond_wait(&queue->changed, &queue->mutex);
        queue->entries[(queue->head + queue->count++) % QUEUE_ENTRIES] = built;
        pthread_cond_broadcast(&queue->changed);
        pthread_mutex_unlock(&queue->mutex);
    }
    pthread_mutex_lock(&queue->mutex);
    queue->ended = true;
    pthread_cond_broadcast(&queue->changed);
    pthread_mutex_unlock(&queue->mutex);
    mem_free(row);
    doc_builder_free(docs);
    entry_builder_free(entries);
    return NULL;
}

static bool queue_take(struct queue *queue, struct built *built_out)
{
    pthread_mutex_lock(&queue->mutex);
    while (queue->count == 0 && !queue->ended) pthread_cond_wait(&queue->changed, &queue->mutex);
    bool got = queue->count > 0;
    if (got) {
        *built_out = queue->entries[queue->head];
        queue->head = (queue->head + 1) % QUEUE_ENTRIES;
        queue->count--;
        pthread_cond_broadcast(&queue->changed);
    }
    pthread_mutex_unlock(&queue->mutex);
    return got;
}

static struct shard_store *open_store(const struct run *run)
{
    char dir[4096];
    snprintf(dir, sizeof dir, "%s/store", run->dir);
    struct shard_store_options options;
    shard_store_options_default(&options);
    options.vfs = vfs_posix();
    options.dir = dir;
    options.shard_id = GROUP;
    options.replica_id = 1;
    options.schema = &run->schema;
    struct shard_store *store;
    struct err err;
    if (shard_store_open(&options, &store, &err) != OMEN_OK) panic("cannot open the store: %s", err.message);
    return store;
}

/* ---- the writer of the plain store ---- */

struct checkpointer {
    struct shard_store *store;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool due, ended;
};

static void checkpoint_now(struct shard_store *store)
{
    uint64_t durable;
    struct err err;
    if (shard_store_checkpoint(store, &durable, &err) != OMEN_OK) panic("checkpoint: %s", err.message);
}

static void *run_checkpoints(void *arg)
{
    struct checkpointer *c = arg;
    for (;;) {
        pthread_mutex_lock(&c->mutex);
        while (!c->due && !c->ended) pthread_cond_wait(&c->changed, &c->mutex);
        bool ended = c->ended;
        c->due = false;
        pthread_mutex_unlock(&c->mutex);
        if (ended) return NULL;
        checkpoint_now(c->store);
    }
}

static void write_store(const struct run *run, struct queue *queue)
{
    struct checkpointer c = { .store = open_store(run),
        .mutex = PTHREAD_MUTEX_INITIALIZER,
        .changed = PTHREAD_COND_INITIALIZER };
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, run_checkpoints, &c) == 0);
    uint64_t sequence = 0, since = 0;
    struct built built;
    while (queue_take(queue, &built)) {
        struct err err;
        if (shard_store_apply(c.store, ++sequence, built.bytes, built.len, NULL, &err) != OMEN_OK)
            panic("apply: %s", err.message);
        since += built.len;
        mem_free(built.bytes);
        if (since < CHECKPOINT_BYTES) continue;
        since = 0;
        pthread_mutex_lock(&c.mutex);
        c.due = true;
        pthread_cond_signal(&c.changed);
        pthread_mutex_unlock(&c.mutex);
    }
    pthread_mutex_lock(&c.mutex);
    c.ended = true;
    pthread_cond_signal(&c.changed);
    pthread_mutex_unlock(&c.mutex);
    pthread_join(thread, NULL);
    checkpoint_now(c.store);
    CHECK(shard_store_durable(c.store) == sequence);
}

/* ---- the writer through log and replica ---- */

static enum omen_err fsm_apply(void *self, uint64_t sequence, const void *entry, uint32_t len,
        void *proposal_arg, struct err *err)
{
    (void)proposal_arg;
    return shard_store_apply(self, sequence, entry, len, NULL, err);
}

static uint64_t fsm_applied(void *self) { return shard_store_applied(self); }
static uint64_t fsm_log_needed_from(void *self) { return shard_store_log_needed_from(self); }

static enum omen_err fsm_checkpoint(void *self, struct err *err)
{
    uint64_t durable;
    return shard_store_checkpoint(self, &durable, err);
}

struct window {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    uint32_t inflight;
};

static void proposal_done(void *arg, enum omen_err result, uint64_t sequence, const struct err *err)
{
    (void)sequence;
    if (result != OMEN_OK) panic("proposal: %s", err != NULL ? err->message : err_name(result));
    struct window *window = arg;
    pthread_mutex_lock(&window->mutex);
    window->inflight--;
    pthread_cond_signal(&window->changed);
    pthread_mutex_unlock(&window->mutex);
}

static void wait_below(struct window *window, uint32_t limit, uint32_t add)
{
    pthread_mutex_lock(&window->mutex);
    while (window->inflight >= limit) pthread_cond_wait(&window->changed, &window->mutex);
    window->inflight += add;
    pthread_mutex_unlock(&window->mutex);
}

static void write_node(const struct run *run, struct queue *queue)
{
    char dir[4096];
    snprintf(dir, sizeof dir, "%s/log", run->dir);
    struct replica_host_options options;
    replica_host_options_default(&options);
    options.log.vfs = vfs_posix();
    options.log.dir = dir;
    options.log.node_id = 1;
    options.clock = clock_system();
    struct replica_host *host;
    struct replica *replica;
    struct err err;
    if (replica_host_open(&options, &host, &err) != OMEN_OK) panic("cannot open the log: %s", err.message);
    struct shard_store *store = open_store(run);
    struct replica_fsm fsm = { .self = store,
        .apply = fsm_apply,
        .applied = fsm_applied,
        .log_needed_from = fsm_log_needed_from,
        .checkpoint = fsm_checkpoint };
    if (replica_open(host, GROUP, 1, 0, &fsm, &replica, &err) != OMEN_OK) panic("replica: %s", err.message);
    struct window window = { PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0 };
    struct built built;
    while (queue_take(queue, &built)) {
        wait_below(&window, 16, 1);
        replica_propose(replica, built.bytes, built.len, NULL, proposal_done, &window);
    }
    wait_below(&window, 1, 0);
    if (replica_checkpoint(replica, &err) != OMEN_OK) panic("checkpoint: %s", err.message);
}

/* The child: write, report the nanoseconds over the pipe, then wait to be killed. */
_Noreturn static void run_writer(const struct run *run, int report_fd)
{
    struct queue queue = { .mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };
    struct builder builder = { run, &queue };
    pthread_t thread;
    uint64_t start = bench_now_ns();
    CHECK(pthread_create(&thread, NULL, build_entries, &builder) == 0);
    if (strcmp(run->path, "node") == 0)
        write_node(run, &queue);
    else
        write_store(run, &queue);
    uint64_t report[2] = { bench_now_ns() - start, bench_cpu_ns() };
    CHECK(write(report_fd, report, sizeof report) == (ssize_t)sizeof report);
    for (;;) pause();
}

/* ---- the check after the kill ---- */

static uint64_t check_rows(const struct run *run, struct shard_store *store)
{
    struct store_view view;
    store_view_acquire(store, &view);
    struct doc_builder *docs = doc_builder_new(DOC_BYTES_MAX);
    float *row = mem_must_alloc(run->dim * sizeof *row);
    struct arena arena;
    arena_init(&arena, 1 << 20, 0);
    struct point_selection selection = { .with_payload = true, .vector_mask = 1 };
    uint64_t seen = 0, wrong = 0;
    struct point_key after = { 0 };
    for (bool more = true; more;) {
        struct point_view *points;
        uint32_t count;
        struct err err;
        if (shard_store_scroll(&view, seen > 0 ? &after : NULL, 4096, NULL, &selection, NULL, &arena, &points,
                    &count, &more, &err) != OMEN_OK)
            panic("scroll: %s", err.message);
        for (uint32_t i = 0; i < count; i++) {
            struct doc payload;
            bench_row(seen, (uint32_t)run->dim, row);
            make_payload(run, seen, docs, &payload);
            bool same = points[i].id.lo == seen && points[i].vectors[0] != NULL &&
                    memcmp(points[i].vectors[0], row, run->dim * sizeof *row) == 0 &&
                    points[i].payload.len == payload.len &&
                    memcmp(points[i].payload.data, payload.data, payload.len) == 0;
            wrong += !same;
            seen++;
        }
        if (count > 0) after = point_key_make(points[count - 1].id, points[count - 1].key);
        arena_reset(&arena);
    }
    arena_fini(&arena);
    mem_free(row);
    doc_builder_free(docs);
    store_view_release(&view);
    if (wrong > 0 || seen != run->count) {
        fprintf(stderr, "omen-bench stream: %llu of %llu rows, %llu wrong\n", (unsigned long long)seen,
                (unsigned long long)run->count, (unsigned long long)wrong);
        return UINT64_MAX;
    }
    return seen;
}

static int run_path(struct run *run, const char *path)
{
    run->path = path;
    struct err err;
    char sub[4096];
    snprintf(sub, sizeof sub, "%s/store", run->dir);
    if (vfs_mkdir(vfs_posix(), run->dir, &err) != OMEN_OK ||
            vfs_remove_tree(vfs_posix(), sub, &err) != OMEN_OK)
        panic("%s", err.message);
    snprintf(sub, sizeof sub, "%s/log", run->dir);
    if (vfs_remove_tree(vfs_posix(), sub, &err) != OMEN_OK) panic("%s", err.message);
    uint64_t row_bytes = run->dim * 4 + run->payload_bytes;
    double disk = bench_disk_write_rate(run->dir, run->count * row_bytes);

    int pipe_fds[2];
    CHECK(pipe(pipe_fds) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) run_writer(run, pipe_fds[1]);
    close(pipe_fds[1]);
    uint64_t report[2];
    ssize_t got = read(pipe_fds[0], report, sizeof report);
    close(pipe_fds[0]);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    if (got != (ssize_t)sizeof report) panic("the writer died");

    uint64_t start = bench_now_ns();
    struct shard_store *store = open_store(run);
    double open_seconds = (double)(bench_now_ns() - start) / 1e9;
    uint64_t rows = check_rows(run, store);
    struct shard_store_stats stats;
    shard_store_stats(store, &stats);
    shard_store_close(store);
    double seconds = (double)report[0] / 1e9;
    json_line_begin("stream");
    json_line_text("path", path);
    json_line_u64("dim", run->dim);
    json_line_u64("count", run->count);
    json_line_u64("payload_bytes", run->payload_bytes);
    json_line_f64("seconds", seconds);
    json_line_f64("vectors_per_second", (double)run->count / seconds);
    json_line_f64("cpu_us_per_vector", (double)report[1] / 1e3 / (double)run->count);
    json_line_f64("stream_bytes_per_second", (double)stats.stream_bytes / seconds);
    json_line_f64("disk_bytes_per_second", disk);
    json_line_f64("disk_vectors_per_second", disk / (double)row_bytes);
    json_line_f64("reopen_seconds", open_seconds);
    json_line_u64("rows_found", rows == UINT64_MAX ? 0 : rows);
    json_line_text("check", rows == run->count ? "ok" : "FAILED");
    json_line_end();
    return rows == run->count ? 0 : 1;
}

int bench_stream(int argc, char **argv)
{
    struct run run = { .dim = 128, .count = 1000000, .payload_bytes = 200, .dir = "/tmp/omen-bench-stream" };
    const char *path = "both";
    const struct bench_option options[] = {
        { "--dim", "components per vector (128)", &run.dim, NULL, NULL },
        { "--count", "vectors (1000000)", &run.count, NULL, NULL },
        { "--payload", "bytes of payload per point (200)", &run.payload_bytes, NULL, NULL },
        { "--dir", "directory on the disk to measure (/tmp/omen-bench-stream)", NULL, &run.dir, NULL },
        { "--path", "store, node (with the log in front) or both", NULL, &path, NULL },
    };
    bench_parse(argc, argv, "stream [options]", options, sizeof options / sizeof options[0]);
    if (run.dim == 0 || run.dim > OMEN_DIM_MAX || run.count == 0 || run.payload_bytes > 4000) {
        fprintf(stderr, "omen-bench stream: --dim 1..%d, --count >= 1, --payload <= 4000\n", OMEN_DIM_MAX);
        return 2;
    }
    run.schema.field_count = 1;
    run.schema.fields[0].dim = (uint32_t)run.dim;
    run.schema.fields[0].metric = METRIC_L2;
    int failed = 0;
    if (strcmp(path, "node") != 0) failed |= run_path(&run, "store");
    if (strcmp(path, "store") != 0) failed |= run_path(&run, "node");
    struct err err;
    if (vfs_remove_tree(vfs_posix(), run.dir, &err) != OMEN_OK) fprintf(stderr, "%s\n", err.message);
    return failed;
}
