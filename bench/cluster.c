/* omen-bench cluster: a cluster behind a router, spoken to through the client library; --spawn starts one for it.
 *
 *   cluster_write     --clients pipelines load the data set: a batch is on the disks of a majority when acknowledged
 *   cluster_commit    one client, one small write at a time on an idle cluster; beside it the disk's own fsync
 *   cluster_search    --clients clients, one search at a time each; recall against exact truth, ties by distance
 *   cluster_indexed   --mix live: how long until the indexes have caught up, from when it was asked
 *   cluster_live      then: the same for --seconds each, quiet and while 1,000 and 10,000 points of the data set
 *                     arrive a second, once more under the ids that they have, so that the truth stays what it was
 *   cluster_failover  --spawn only: kill -9 of the node that leads a shard while a client writes to it; how long
 *                     nothing is acknowledged
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/bench.h"
#include "bench/cluster_spawn.h"
#include "bench/index_data.h"
#include "common/check.h"
#include "common/mem.h"
#include "common/vfs.h"

#define CLIENTS_MAX 256u
#define TRUTH_THREADS 2u
#define COLLECTION "bench"

struct options {
    const char *router, *data, *mix, *dir;
    bool spawn;
    uint64_t clients, nodes, shards, replication, limit, batch, depth, k, queries, commits, kills, seconds;
};

struct run {
    const struct options *o;
    struct bench_data data;
    const char **payloads; /* [rows], NULL without payload; owned */
    char *text;            /* of all payloads */
    struct spawned spawned;
    const char *url;
    _Atomic uint64_t next; /* row or query to be taken */
    pthread_barrier_t barrier;
};

static void must(omen_code code, const char *what)
{
    if (code != 0) panic("%s: %s", what, omen_last_error());
}

static omen_client *client_open(const struct run *run)
{
    omen_client *client;
    must(omen_open(run->url, &(omen_options){ .timeout_ms = 60000, .client_name = "omen-bench" }, &client),
            "open");
    return client;
}

static uint64_t servers_cpu_us(const struct run *run)
{
    return run->o->spawn ? spawned_cpu_us(&run->spawned) : 0;
}

/* ---- the data ---- */

static void payloads_read(struct run *run)
{
    struct dataset *set = &run->data.set;
    uint32_t rows = run->data.rows.count;
    if (set->payload == NULL || set->payload[0] != '{') return; /* none, or labels that are no payloads */
    run->payloads = mem_must_calloc(rows, sizeof *run->payloads);
    run->text = mem_must_alloc(set->payload_bytes + rows);
    char *at = run->text;
    for (uint32_t i = 0; i < rows; i++) {
        struct bytes line = dataset_payload_next(set);
        if (line.data == NULL) panic("the payload ends before its data set");
        memcpy(at, line.data, line.len);
        at[line.len] = '\0';
        run->payloads[i] = at;
        at += line.len + 1;
    }
}

static void collection_make(const struct run *run, omen_client *client, const char *name, uint64_t shards)
{
    const struct index_rows *rows = &run->data.rows;
    (void)omen_collection_drop(client, name);
    must(omen_collection_create(client, name,
                 &(omen_collection_options){ .dim = rows->dim,
                         .metric = metric_name(rows->metric),
                         .shards = (uint32_t)shards,
                         .replication = (uint32_t)run->o->replication }),
            "create");
}

static void line_begin(const struct run *run, const char *bench)
{
    json_line_begin(bench);
    if (run->o->spawn) json_line_u64("nodes", run->spawned.count);
    json_line_u64("replication", run->o->replication);
    json_line_text("dataset", run->data.set.name);
    json_line_u64("dim", run->data.rows.dim);
}

/* Counts until all are there: another client than those that wrote may be answered by a replica that is a moment behind. */
static void count_check(omen_client *client, const char *name, uint64_t wanted)
{
    uint64_t found = 0;
    for (int i = 0; i < 100 && found != wanted; i++) {
        if (i > 0) usleep(50000);
        must(omen_count(client, name, NULL, &found), "count");
    }
    if (found != wanted) panic("%s: %" PRIu64 " points of %" PRIu64 " are there", name, found, wanted);
}

/* ---- writes ---- */

static void *writer_main(void *arg)
{
    struct run *run = arg;
    const struct index_rows *rows = &run->data.rows;
    omen_client *client = client_open(run);
    omen_pipeline *pipeline;
    omen_id *ids = mem_must_calloc(run->o->batch, sizeof *ids);
    must(omen_pipeline_open(client, COLLECTION, (uint32_t)run->o->depth, &pipeline), "pipeline");
    pthread_barrier_wait(&run->barrier);
    for (;;) {
        uint64_t first = atomic_fetch_add(&run->next, run->o->batch);
        if (first >= rows->count) break;
        uint64_t n = rows->count - first < run->o->batch ? rows->count - first : run->o->batch;
        for (uint64_t i = 0; i < n; i++) ids[i] = (omen_id){ .number = first + i };
        must(omen_pipeline_upsert(pipeline, ids, rows->data + first * rows->stride_floats, rows->dim,
                     run->payloads == NULL ? NULL : run->payloads + first, n),
                "upsert");
    }
    must(omen_pipeline_finish(pipeline, NULL), "finish");
    mem_free(ids);
    omen_close(client);
    return NULL;
}

static void threads_run(struct run *run, void *(*main)(void *), void **args)
{
    pthread_t threads[CLIENTS_MAX];
    atomic_store(&run->next, 0);
    pthread_barrier_init(&run->barrier, NULL, (unsigned)run->o->clients + 1);
    for (uint64_t i = 0; i < run->o->clients; i++)
        if (pthread_create(&threads[i], NULL, main, args == NULL ? run : args[i]) != 0)
            panic("cannot start a thread");
    pthread_barrier_wait(&run->barrier);
    uint64_t begin = bench_now_ns();
    for (uint64_t i = 0; i < run->o->clients; i++) pthread_join(threads[i], NULL);
    json_line_f64("seconds", (double)(bench_now_ns() - begin) / 1e9);
    pthread_barrier_destroy(&run->barrier);
}

static void run_write(struct run *run)
{
    omen_client *client = client_open(run);
    collection_make(run, client, COLLECTION, run->o->shards);
    uint64_t cpu_us = servers_cpu_us(run), client_us = bench_cpu_ns() / 1000, count = run->data.rows.count;
    line_begin(run, "cluster_write");
    uint64_t begin = bench_now_ns();
    threads_run(run, writer_main, NULL);
    double seconds = (double)(bench_now_ns() - begin) / 1e9;
    json_line_u64("shards", run->o->shards);
    json_line_u64("count", count);
    json_line_u64("clients", run->o->clients);
    json_line_u64("batch", run->o->batch);
    json_line_u64("depth", run->o->depth);
    json_line_f64("vectors_per_second", (double)count / seconds);
    if (run->o->spawn)
        json_line_f64("server_cpu_us_per_vector", (double)(servers_cpu_us(run) - cpu_us) / (double)count);
    json_line_f64("client_cpu_us_per_vector", (double)(bench_cpu_ns() / 1000 - client_us) / (double)count);
    json_line_end();
    count_check(client, COLLECTION, count);
    omen_close(client);
}

/* ---- commit latency ---- */

static void run_commit(struct run *run)
{
    const char *name = "bench_commit";
    const struct index_rows *rows = &run->data.rows;
    omen_client *client = client_open(run);
    collection_make(run, client, name, 1);
    uint64_t *ns = mem_must_alloc(run->o->commits * sizeof *ns),
             before = bench_disk_sync_ns(run->o->dir, 200);
    const char *payload = "{\"a\": 1}";
    for (uint64_t i = 0; i < run->o->commits + 20; i++) {
        omen_id id = { .number = i };
        uint64_t begin = bench_now_ns();
        must(omen_upsert(client, name, &id, rows->data, rows->dim, &payload, 1, NULL), "upsert");
        if (i >= 20) ns[i - 20] = bench_now_ns() - begin;
    }
    uint64_t after = bench_disk_sync_ns(run->o->dir, 200), sync_ns = (before + after) / 2;
    qsort(ns, run->o->commits, sizeof *ns, bench_compare_u64);
    line_begin(run, "cluster_commit");
    json_line_u64("writes", run->o->commits);
    json_line_f64("p50_us", (double)ns[run->o->commits / 2] / 1e3);
    json_line_f64("p99_us", (double)ns[run->o->commits * 99 / 100] / 1e3);
    json_line_f64("fsync_us", (double)sync_ns / 1e3);
    json_line_f64("bar_us", 2 * (double)sync_ns / 1e3 + 1000); /* twice the disk's fsync and a millisecond */
    json_line_end();
    mem_free(ns);
    must(omen_collection_drop(client, name), "drop");
    omen_close(client);
}

/* ---- searches ---- */

struct searcher {
    struct run *run;
    uint64_t *ns; /* [queries] by query; shared, each written by one */
    double *recall;
};

static void *searcher_main(void *arg)
{
    struct searcher *s = arg;
    struct run *run = s->run;
    const struct bench_data *data = &run->data;
    uint32_t *slots = mem_must_calloc(run->o->k, sizeof *slots), dim = data->rows.dim;
    omen_client *client = client_open(run);
    omen_results *results;
    omen_search_options options = { .k = (uint32_t)run->o->k };
    must(omen_search(client, COLLECTION, data->queries, dim, &options, &results),
            "search"); /* connected and warm */
    omen_results_free(results);
    pthread_barrier_wait(&run->barrier);
    for (;;) {
        uint64_t q = atomic_fetch_add(&run->next, 1), begin = bench_now_ns();
        if (q >= data->query_count) break;
        must(omen_search(client, COLLECTION, data->queries + q * dim, dim, &options, &results), "search");
        s->ns[q] = bench_now_ns() - begin;
        for (size_t i = 0; i < results->count; i++) slots[i] = (uint32_t)results->points[i].id.number;
        s->recall[q] = bench_data_recall(data, (uint32_t)q, slots, (uint32_t)results->count);
        omen_results_free(results);
    }
    mem_free(slots);
    omen_close(client);
    return NULL;
}

static void run_search(struct run *run)
{
    uint32_t queries = run->data.query_count;
    struct searcher s = { run, mem_must_calloc(queries, sizeof(uint64_t)),
        mem_must_calloc(queries, sizeof(double)) };
    void *args[CLIENTS_MAX];
    for (uint32_t i = 0; i < CLIENTS_MAX; i++) args[i] = &s;
    uint64_t cpu_us = servers_cpu_us(run), begin = bench_now_ns();
    line_begin(run, "cluster_search");
    threads_run(run, searcher_main, args);
    double seconds = (double)(bench_now_ns() - begin) / 1e9, recall = 0;
    for (uint32_t q = 0; q < queries; q++) recall += s.recall[q] / queries;
    qsort(s.ns, queries, sizeof *s.ns, bench_compare_u64);
    json_line_u64("shards", run->o->shards);
    json_line_u64("count", run->data.rows.count);
    json_line_u64("clients", run->o->clients);
    json_line_u64("k", run->o->k);
    json_line_u64("queries", queries);
    json_line_f64("recall", recall);
    json_line_f64("qps", queries / seconds);
    json_line_f64("p50_us", (double)s.ns[queries / 2] / 1e3);
    json_line_f64("p99_us", (double)s.ns[(uint64_t)queries * 99 / 100] / 1e3);
    if (run->o->spawn) json_line_f64("server_cpu_us", (double)(servers_cpu_us(run) - cpu_us) / queries);
    json_line_end();
    mem_free(s.ns);
    mem_free(s.recall);
}

/* ---- searches while points arrive ---- */

#define INDEXED_SHARE 40u /* caught up: fewer of the points than one in so many are in no segment */
#define INDEXED_SECONDS_MAX 1800u

/* Points in no segment, as the collection's description says. */
static uint64_t unindexed(omen_client *client)
{
    char *json;
    must(omen_collection_describe(client, COLLECTION, &json), "describe");
    const char *at = strstr(json, "\"unindexed\":");
    if (at == NULL) panic("the description tells of no unindexed points: %s", json);
    uint64_t points = strtoull(at + strlen("\"unindexed\":"), NULL, 10);
    omen_free(json);
    return points;
}

static void run_indexed(struct run *run)
{
    omen_client *client = client_open(run);
    uint64_t begin = bench_now_ns(), first = unindexed(client), left = first;
    for (uint32_t s = 0; left > run->data.rows.count / INDEXED_SHARE; s++, left = unindexed(client)) {
        if (s == INDEXED_SECONDS_MAX) panic("%" PRIu64 " points are still in no index", left);
        sleep(1);
    }
    line_begin(run, "cluster_indexed");
    json_line_u64("count", run->data.rows.count);
    json_line_u64("unindexed_before", first);
    json_line_u64("unindexed", left);
    json_line_f64("seconds", (double)(bench_now_ns() - begin) / 1e9);
    json_line_end();
    omen_close(client);
}

#define LIVE_SAMPLES_MAX (1u << 22)
#define ARRIVAL_BATCH 100u

struct live {
    struct run *run;
    uint64_t rate; /* points a second */
    uint64_t end_ns;
    _Atomic uint64_t arrived, samples;
    uint64_t *ns; /* [LIVE_SAMPLES_MAX] */
    double *recall;
};

/* A batch at its time; late ones follow one another at once. */
static void *arrivals_main(void *arg)
{
    struct live *l = arg;
    const struct index_rows *rows = &l->run->data.rows;
    omen_client *client = client_open(l->run);
    omen_id ids[ARRIVAL_BATCH];
    uint64_t begin = bench_now_ns(), first = 0;
    for (uint64_t sent = 0; bench_now_ns() < l->end_ns;) {
        uint64_t due = begin + sent * 1000000000ull / l->rate, now = bench_now_ns();
        if (due > now) usleep((useconds_t)((due - now) / 1000));
        uint64_t n = rows->count - first < ARRIVAL_BATCH ? rows->count - first : ARRIVAL_BATCH;
        for (uint64_t i = 0; i < n; i++) ids[i] = (omen_id){ .number = first + i };
        must(omen_upsert(client, COLLECTION, ids, rows->data + first * rows->stride_floats, rows->dim,
                     l->run->payloads == NULL ? NULL : l->run->payloads + first, n, NULL),
                "upsert");
        first = first + n == rows->count ? 0 : first + n;
        sent += n;
        atomic_fetch_add(&l->arrived, n);
    }
    omen_close(client);
    return NULL;
}

static void *live_searcher_main(void *arg)
{
    struct live *l = arg;
    const struct bench_data *data = &l->run->data;
    uint32_t *slots = mem_must_calloc(l->run->o->k, sizeof *slots), dim = data->rows.dim;
    omen_search_options options = { .k = (uint32_t)l->run->o->k };
    omen_client *client = client_open(l->run);
    for (uint64_t begin = bench_now_ns(), at; begin < l->end_ns; begin = bench_now_ns()) {
        omen_results *results;
        at = atomic_fetch_add(&l->samples, 1);
        if (at >= LIVE_SAMPLES_MAX) panic("too many searches to remember");
        uint32_t q = (uint32_t)(at % data->query_count);
        must(omen_search(client, COLLECTION, data->queries + (size_t)q * dim, dim, &options, &results),
                "search");
        l->ns[at] = bench_now_ns() - begin;
        for (size_t i = 0; i < results->count; i++) slots[i] = (uint32_t)results->points[i].id.number;
        l->recall[at] = bench_data_recall(data, q, slots, (uint32_t)results->count);
        omen_results_free(results);
    }
    mem_free(slots);
    omen_close(client);
    return NULL;
}

static void run_live(struct run *run, uint64_t rate)
{
    pthread_t arrivals, searchers[CLIENTS_MAX];
    struct live l = { .run = run,
        .rate = rate,
        .end_ns = bench_now_ns() + run->o->seconds * 1000000000ull,
        .ns = mem_must_calloc(LIVE_SAMPLES_MAX, sizeof *l.ns),
        .recall = mem_must_calloc(LIVE_SAMPLES_MAX, sizeof *l.recall) };
    if (rate > 0 && pthread_create(&arrivals, NULL, arrivals_main, &l) != 0) panic("cannot start a thread");
    for (uint64_t i = 0; i < run->o->clients; i++)
        if (pthread_create(&searchers[i], NULL, live_searcher_main, &l) != 0) panic("cannot start a thread");
    for (uint64_t i = 0; i < run->o->clients; i++) pthread_join(searchers[i], NULL);
    if (rate > 0) pthread_join(arrivals, NULL);
    uint64_t count = atomic_load(&l.samples);
    double recall = 0;
    for (uint64_t i = 0; i < count; i++) recall += l.recall[i] / (double)count;
    qsort(l.ns, count, sizeof *l.ns, bench_compare_u64);
    line_begin(run, "cluster_live");
    json_line_u64("count", run->data.rows.count);
    json_line_u64("clients", run->o->clients);
    json_line_u64("k", run->o->k);
    json_line_u64("arriving_per_second", rate);
    json_line_f64("arrived_per_second", (double)atomic_load(&l.arrived) / (double)run->o->seconds);
    json_line_f64("recall", recall);
    json_line_f64("qps", (double)count / (double)run->o->seconds);
    json_line_f64("p50_us", (double)l.ns[count / 2] / 1e3);
    json_line_f64("p99_us", (double)l.ns[count * 99 / 100] / 1e3);
    json_line_end();
    mem_free(l.ns);
    mem_free(l.recall);
}

/* ---- failover ---- */

struct witness { /* writes one point after the other */
    struct run *run;
    const char *name;
    _Atomic uint64_t acknowledged, last_ns; /* when the last came */
    _Atomic uint64_t longest_ns;            /* silence since it was set to 0 */
    _Atomic bool stop;
};

static void *witness_main(void *arg)
{
    struct witness *w = arg;
    const struct index_rows *rows = &w->run->data.rows;
    omen_client *client = client_open(w->run);
    for (uint64_t i = 0; !atomic_load(&w->stop); i++) {
        omen_id id = { .number = i };
        must(omen_upsert(client, w->name, &id, rows->data, rows->dim, NULL, 1, NULL), "upsert");
        uint64_t now = bench_now_ns(), last = atomic_exchange(&w->last_ns, now);
        if (last != 0 && now - last > atomic_load(&w->longest_ns)) atomic_store(&w->longest_ns, now - last);
        atomic_fetch_add(&w->acknowledged, 1);
    }
    omen_close(client);
    return NULL;
}

static void wait_for_acks(const struct witness *w, uint64_t more)
{
    uint64_t until = atomic_load(&w->acknowledged) + more;
    while (atomic_load(&w->acknowledged) < until) usleep(1000);
}

static uint32_t leader_slot(const struct run *run, omen_client *client, const char *name)
{
    for (;; usleep(10000)) {
        uint32_t leader = cluster_leader(client, name);
        for (uint32_t i = 0; i < run->spawned.count; i++)
            if (leader != 0 && run->spawned.nodes[i].node_id == leader && run->spawned.nodes[i].pid != 0)
                return i;
    }
}

static void run_failover(struct run *run)
{
    const char *name = "bench_failover";
    struct witness w = { .run = run, .name = name };
    omen_client *client = client_open(run);
    pthread_t thread;
    collection_make(run, client, name, 1);
    if (pthread_create(&thread, NULL, witness_main, &w) != 0) panic("cannot start a thread");
    for (uint64_t kill = 0; kill < run->o->kills; kill++) {
        wait_for_acks(&w, 200);
        uint32_t slot = leader_slot(run, client, name);
        atomic_store(&w.longest_ns, 0);
        spawned_kill(&run->spawned, slot);
        wait_for_acks(&w, 200);
        line_begin(run, "cluster_failover");
        json_line_f64("failover_ms", (double)atomic_load(&w.longest_ns) / 1e6);
        json_line_u64("acknowledged", atomic_load(&w.acknowledged));
        json_line_end();
        spawned_restart(&run->spawned, client, slot);
    }
    atomic_store(&w.stop, true);
    pthread_join(thread, NULL);
    count_check(client, name, atomic_load(&w.acknowledged));
    must(omen_collection_drop(client, name), "drop");
    omen_close(client);
}

/* ---- door ---- */

static bool out_of_range(const struct options *o)
{
    return o->clients == 0 || o->clients > CLIENTS_MAX || o->nodes == 0 || o->nodes > SPAWNED_NODES_MAX ||
            o->shards == 0 || o->replication == 0 || o->batch == 0 || o->depth == 0 || o->k == 0 ||
            o->commits == 0 || o->seconds == 0;
}

int bench_cluster(int argc, char **argv)
{
    struct options o = { .mix = "both",
        .dir = "/tmp/omen-bench-cluster",
        .clients = 4,
        .nodes = 3,
        .shards = 4,
        .replication = 3,
        .batch = 500,
        .depth = 4,
        .k = 10,
        .commits = 300,
        .kills = 3,
        .seconds = 20 };
    const struct bench_option options[] = {
        { "--router", "where a cluster's clients connect; or --spawn", NULL, &o.router, NULL },
        { "--spawn", "start nodes and a router of its own", NULL, NULL, &o.spawn },
        { "--data", "data-set folder, e.g. build/demo/data", NULL, &o.data, NULL },
        { "--mix", "write, search or live (what is there already), or both: write and search (both)", NULL,
                &o.mix, NULL },
        { "--seconds", "of each part of live (20)", &o.seconds, NULL, NULL },
        { "--clients", "clients at once (4)", &o.clients, NULL, NULL },
        { "--nodes", "with --spawn (3)", &o.nodes, NULL, NULL },
        { "--shards", "of the collection (4)", &o.shards, NULL, NULL },
        { "--replication", "copies of each shard (3)", &o.replication, NULL, NULL },
        { "--limit", "only the first N rows", &o.limit, NULL, NULL },
        { "--queries", "only the first N queries", &o.queries, NULL, NULL },
        { "--batch", "points per write (500)", &o.batch, NULL, NULL },
        { "--depth", "writes in flight per client (4)", &o.depth, NULL, NULL },
        { "--k", "neighbours per search (10)", &o.k, NULL, NULL },
        { "--commits", "small writes to time one at a time (300)", &o.commits, NULL, NULL },
        { "--kills", "with --spawn: leaders to kill; 0 = none (3)", &o.kills, NULL, NULL },
        { "--dir", "scratch directory, on the disk whose fsync is measured (/tmp/omen-bench-cluster)", NULL,
                &o.dir, NULL },
    };
    bench_parse(argc, argv, "cluster --router URL|--spawn --data DIR [options]", options,
            sizeof options / sizeof options[0]);
    bool both = strcmp(o.mix, "both") == 0, write = both || strcmp(o.mix, "write") == 0;
    bool search = both || strcmp(o.mix, "search") == 0, live = strcmp(o.mix, "live") == 0;
    bool known = write || search || live;
    if ((o.router != NULL) == o.spawn || o.data == NULL || !known || out_of_range(&o)) {
        fprintf(stderr, "omen-bench cluster: give --router or --spawn, --data DIR and numbers in range\n");
        return 2;
    }
    struct run run = { .o = &o, .url = o.router };
    bench_data_open(&run.data, o.data, o.limit, o.queries, (uint32_t)o.k, TRUTH_THREADS);
    payloads_read(&run);
    if (o.spawn) {
        fprintf(stderr, "starting %" PRIu64 " nodes under %s\n", o.nodes, o.dir);
        spawned_start(&run.spawned, o.dir, (uint32_t)o.nodes);
        run.url = run.spawned.listen;
    } else if (vfs_mkdir(vfs_posix(), o.dir, NULL) != OMEN_OK) {
        panic("cannot make %s", o.dir);
    }
    if (write) run_write(&run);
    if (write) run_commit(&run);
    if (search) run_search(&run);
    if (live) run_indexed(&run);
    for (uint64_t rate = 0; live && rate <= 10000; rate = rate == 0 ? 1000 : 10 * rate) run_live(&run, rate);
    if (write && o.spawn && o.kills > 0 && o.replication > 1) run_failover(&run);
    if (o.spawn) spawned_stop(&run.spawned);
    mem_free(run.payloads);
    mem_free(run.text);
    bench_data_close(&run.data);
    return 0;
}
