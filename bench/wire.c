/* omen-bench wire: a real omen-node in a process of its own, spoken to through the client library over TCP on loopback.
 *
 *   upsert   one client, batches of 500, every batch durable before its acknowledgement; pipeline depth 1 and --depth
 *   group    64 clients, one point per request, every one durable; beside it one fsync per write on the same disk
 *   search   small collection, one client: time and server CPU that network, node and router add to the engine's own time
 *
 * With --through-router 1 the router is a process of its own (omen-router) before the node: what the hop costs is the
 * difference to a run without. CPU is then that of both processes.
 */
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/bench.h"
#include "bench/cluster_spawn.h"
#include "common/check.h"
#include "common/json.h"
#include "common/mem.h"
#include "common/query/point.h"
#include "common/vfs.h"
#include "tools/client/omen.h"

#define BATCH_POINTS 500
#define CLIENTS_MAX 256

struct server {
    pid_t pid, router_pid; /* 0 without a router of its own */
    char listen[128];
};

static void must(omen_code code, const char *what)
{
    if (code != 0) panic("%s: %s", what, omen_last_error());
}

/* A member of the ready file that a server writes when it serves: {"listen": url, ...}. */
static bool read_ready_file(const char *path, const char *member, char *url_out, size_t url_bytes)
{
    uint8_t *text;
    size_t len;
    if (vfs_read_file(vfs_posix(), path, 65536, &text, &len, NULL) != OMEN_OK) return false;
    struct doc_builder *builder = doc_builder_new(65536);
    struct doc ready;
    bool ok = json_parse((const char *)text, len, builder, &ready, NULL) == OMEN_OK;
    struct doc listen = ok ? doc_member(ready, (struct bytes){ (const uint8_t *)member, strlen(member) })
                           : (struct doc){ 0 };
    if (listen.data != NULL && doc_type(listen) == DOC_STRING) {
        struct bytes url = doc_string(listen);
        snprintf(url_out, url_bytes, "%.*s", (int)url.len, (const char *)url.data);
    } else {
        ok = false;
    }
    doc_builder_free(builder);
    mem_free(text);
    return ok;
}

static pid_t start_process(const char *binary, const char *const *argv, const char *ready, const char *member,
        char *url_out, size_t url_bytes)
{
    pid_t pid;
    int rc = posix_spawn(&pid, binary, NULL, NULL, (char *const *)(uintptr_t)argv, environ);
    if (rc != 0) panic("cannot start %s: %s", binary, strerror(rc));
    for (int i = 0; i < 1000; i++) {
        if (read_ready_file(ready, member, url_out, url_bytes)) return pid;
        if (waitpid(pid, NULL, WNOHANG) != 0) break;
        usleep(10000);
    }
    panic("%s did not become ready", binary);
}

/* omen-router lies beside omen-node. */
static void start_router(const char *node_binary, const char *dir, const char *node_url, const char *secret,
        struct server *server)
{
    char binary[PATH_MAX], ready[PATH_MAX];
    const char *slash = strrchr(node_binary, '/');
    int folder = slash == NULL ? 0 : (int)(slash - node_binary) + 1;
    snprintf(binary, sizeof binary, "%.*somen-router", folder, node_binary);
    snprintf(ready, sizeof ready, "%s/router.json", dir);
    const char *argv[] = { binary, "--nodes", node_url, "--secret-file", secret, "--listen",
        "tcp://127.0.0.1:0", "--http", "http://127.0.0.1:0", "--ready-file", ready, "--set", "log.level=warn",
        NULL };
    server->router_pid = start_process(binary, argv, ready, "listen", server->listen, sizeof server->listen);
}

static void start_server(const char *binary, const char *dir, bool through_router, struct server *server)
{
    struct err err;
    if (vfs_remove_tree(vfs_posix(), dir, &err) != OMEN_OK || vfs_mkdir(vfs_posix(), dir, &err) != OMEN_OK)
        panic("%s", err.message);
    char ready[PATH_MAX], data[PATH_MAX], secret[PATH_MAX], setting[PATH_MAX + 32], node_url[128];
    snprintf(ready, sizeof ready, "%s/ready.json", dir);
    snprintf(data, sizeof data, "%s/data", dir);
    snprintf(secret, sizeof secret, "%s/secret", dir);
    snprintf(setting, sizeof setting, "cluster.secret_file=%s", secret);
    *server = (struct server){ .router_pid = 0 };
    if (vfs_replace_file(vfs_posix(), secret, "a secret for a benchmark\n", 25, &err) != OMEN_OK)
        panic("%s", err.message);
    const char *alone[] = { binary, "--standalone", "--data", data, "--listen", "tcp://127.0.0.1:0", "--http",
        "http://127.0.0.1:0", "--ready-file", ready, "--set", "log.level=warn", NULL };
    const char *behind[] = { binary, "--node-listen", "tcp://127.0.0.1:0", "--data", data, "--http",
        "http://127.0.0.1:0", "--ready-file", ready, "--set", "log.level=warn", "--set", setting, NULL };
    if (!through_router) {
        server->pid = start_process(binary, alone, ready, "listen", server->listen, sizeof server->listen);
        return;
    }
    server->pid = start_process(binary, behind, ready, "node_listen", node_url, sizeof node_url);
    start_router(binary, dir, node_url, secret, server);
}

static void stop_server(struct server *server)
{
    if (server->router_pid != 0) {
        kill(server->router_pid, SIGTERM);
        waitpid(server->router_pid, NULL, 0);
    }
    kill(server->pid, SIGTERM);
    waitpid(server->pid, NULL, 0);
}

static uint64_t server_cpu_us(const struct server *server)
{
    return process_cpu_us(server->pid) + (server->router_pid == 0 ? 0 : process_cpu_us(server->router_pid));
}

static char *make_payload(uint64_t row, uint64_t bytes)
{
    char *text = mem_must_alloc(bytes + 64);
    int len = snprintf(text, bytes + 64, "{\"row\": %llu, \"text\": \"", (unsigned long long)row);
    for (uint64_t i = 0; (uint64_t)len + 2 < bytes; i++) text[len++] = (char)('a' + (row + i) % 26);
    memcpy(text + len, "\"}", 3);
    return text;
}

static void run_upserts(struct server *server, uint64_t dim, uint64_t count, uint64_t payload_bytes,
        uint64_t depth)
{
    omen_client *client;
    must(omen_open(server->listen, NULL, &client), "open");
    char name[32];
    snprintf(name, sizeof name, "upsert%llu", (unsigned long long)depth);
    must(omen_collection_create(client, name,
                 &(omen_collection_options){ .dim = (uint32_t)dim, .metric = "l2" }),
            "create");
    /* Payload text is made before the clock starts: the bench measures the database, not snprintf. */
    char **payloads = mem_must_alloc(count * sizeof *payloads);
    for (uint64_t i = 0; i < count; i++) payloads[i] = make_payload(i, payload_bytes);
    omen_id ids[BATCH_POINTS];
    float *vectors = mem_must_alloc(BATCH_POINTS * dim * sizeof *vectors);
    omen_pipeline *pipeline;
    must(omen_pipeline_open(client, name, (uint32_t)depth, &pipeline), "pipeline");
    uint64_t server_cpu = server_cpu_us(server), start = bench_now_ns();
    for (uint64_t first = 0; first < count; first += BATCH_POINTS) {
        uint64_t n = count - first < BATCH_POINTS ? count - first : BATCH_POINTS;
        for (uint64_t i = 0; i < n; i++) {
            ids[i] = (omen_id){ .number = first + i };
            bench_row(first + i, (uint32_t)dim, vectors + i * dim);
        }
        must(omen_pipeline_upsert(pipeline, ids, vectors, (uint32_t)dim,
                     (const char *const *)payloads + first, n),
                "upsert");
    }
    uint64_t acknowledged;
    must(omen_pipeline_finish(pipeline, &acknowledged), "finish");
    double seconds = (double)(bench_now_ns() - start) / 1e9;
    server_cpu = server_cpu_us(server) - server_cpu;
    uint64_t found;
    must(omen_count(client, name, NULL, &found), "count");
    json_line_begin("wire_upsert");
    json_line_u64("through_router", server->router_pid != 0);
    json_line_u64("dim", dim);
    json_line_u64("count", count);
    json_line_u64("payload_bytes", payload_bytes);
    json_line_u64("batch", BATCH_POINTS);
    json_line_u64("clients", 1);
    json_line_u64("depth", depth);
    json_line_f64("vectors_per_second", (double)count / seconds);
    json_line_f64("server_cpu_us_per_vector", (double)server_cpu / (double)count);
    json_line_u64("acknowledged", acknowledged);
    json_line_u64("found", found);
    json_line_end();
    for (uint64_t i = 0; i < count; i++) mem_free(payloads[i]);
    mem_free(payloads);
    mem_free(vectors);
    omen_close(client);
}

struct group_client {
    const struct server *server;
    uint64_t dim, first, count;
    pthread_barrier_t *barrier;
    pthread_t thread;
    uint64_t *ns; /* [count] latency of each acknowledged write */
};

static void *run_group_client(void *arg)
{
    struct group_client *c = arg;
    omen_client *client;
    must(omen_open(c->server->listen, NULL, &client), "open");
    float *row = mem_must_alloc(c->dim * sizeof *row);
    char *payload = make_payload(1, 200);
    const char *payloads[1] = { payload };
    omen_id warm = { .number = UINT64_MAX - c->first };
    bench_row(c->first, (uint32_t)c->dim, row);
    must(omen_upsert(client, "group", &warm, row, (uint32_t)c->dim, payloads, 1, NULL), "upsert");
    pthread_barrier_wait(c->barrier);
    for (uint64_t i = 0; i < c->count; i++) {
        omen_id id = { .number = c->first + i };
        uint64_t start = bench_now_ns();
        must(omen_upsert(client, "group", &id, row, (uint32_t)c->dim, payloads, 1, NULL), "upsert");
        c->ns[i] = bench_now_ns() - start;
    }
    mem_free(payload);
    mem_free(row);
    omen_close(client);
    return NULL;
}

static void run_group(struct server *server, const char *dir, uint64_t dim, uint64_t clients, uint64_t each)
{
    omen_client *client;
    must(omen_open(server->listen, NULL, &client), "open");
    must(omen_collection_create(client, "group",
                 &(omen_collection_options){ .dim = (uint32_t)dim, .metric = "l2" }),
            "create");
    uint64_t sync_before = bench_disk_sync_ns(dir, 300);
    pthread_barrier_t barrier;
    pthread_barrier_init(&barrier, NULL, (unsigned)clients + 1);
    struct group_client group[CLIENTS_MAX];
    uint64_t *ns = mem_must_alloc(clients * each * sizeof *ns);
    for (uint64_t i = 0; i < clients; i++) {
        group[i] = (struct group_client){ server, dim, i * each, each, &barrier, 0, ns + i * each };
        CHECK(pthread_create(&group[i].thread, NULL, run_group_client, &group[i]) == 0);
    }
    pthread_barrier_wait(&barrier);
    uint64_t start = bench_now_ns(), server_cpu = process_cpu_us(server->pid), client_cpu = bench_cpu_ns();
    for (uint64_t i = 0; i < clients; i++) pthread_join(group[i].thread, NULL);
    double rate = (double)(clients * each) / ((double)(bench_now_ns() - start) / 1e9);
    server_cpu = server_cpu_us(server) - server_cpu;
    client_cpu = bench_cpu_ns() - client_cpu;
    uint64_t sync_after = bench_disk_sync_ns(dir, 300), sync_ns = (sync_before + sync_after) / 2;
    qsort(ns, clients * each, sizeof *ns, bench_compare_u64);
    json_line_begin("wire_group_commit");
    json_line_u64("through_router", server->router_pid != 0);
    json_line_u64("dim", dim);
    json_line_u64("clients", clients);
    json_line_u64("requests", clients * each);
    json_line_f64("requests_per_second", rate);
    json_line_f64("p50_us", (double)ns[clients * each / 2] / 1e3);
    json_line_f64("p99_us", (double)ns[clients * each * 99 / 100] / 1e3);
    json_line_f64("server_cpu_us", (double)server_cpu / (double)(clients * each));
    json_line_f64("client_cpu_us", (double)client_cpu / 1e3 / (double)(clients * each));
    json_line_f64("fsync_us", (double)sync_ns / 1e3);
    json_line_f64("one_fsync_per_write_per_second", 1e9 / (double)sync_ns);
    json_line_f64("times_one_fsync_per_write", rate * (double)sync_ns / 1e9);
    json_line_end();
    mem_free(ns);
    pthread_barrier_destroy(&barrier);
    omen_close(client);
}

static void run_searches(struct server *server, uint64_t dim, uint64_t points, uint64_t searches)
{
    omen_client *client;
    must(omen_open(server->listen, NULL, &client), "open");
    must(omen_collection_create(client, "small",
                 &(omen_collection_options){ .dim = (uint32_t)dim, .metric = "l2" }),
            "create");
    float *row = mem_must_alloc(dim * sizeof *row);
    for (uint64_t i = 0; i < points; i++) {
        omen_id id = { .number = i };
        const char *payload = "{\"a\": 1}";
        bench_row(i, (uint32_t)dim, row);
        must(omen_upsert(client, "small", &id, row, (uint32_t)dim, &payload, 1, NULL), "upsert");
    }
    uint64_t *added = mem_must_alloc(searches * sizeof *added),
             *total = mem_must_alloc(searches * sizeof *total);
    uint64_t engine_sum = 0, server_cpu = 0, client_cpu = 0;
    for (uint64_t i = 0; i < searches + 200; i++) {
        if (i == 200) { /* warm now */
            server_cpu = server_cpu_us(server);
            client_cpu = bench_cpu_ns();
            engine_sum = 0;
        }
        omen_results *results;
        bench_row(1000000 + i, (uint32_t)dim, row);
        uint64_t start = bench_now_ns();
        must(omen_search(client, "small", row, (uint32_t)dim, &(omen_search_options){ .k = 10 }, &results),
                "search");
        uint64_t ns = bench_now_ns() - start;
        engine_sum += results->engine_ns;
        if (i >= 200) {
            total[i - 200] = ns;
            added[i - 200] = ns > results->engine_ns ? ns - results->engine_ns : 0;
        }
        omen_results_free(results);
    }
    server_cpu = server_cpu_us(server) - server_cpu;
    client_cpu = bench_cpu_ns() - client_cpu;
    qsort(added, searches, sizeof *added, bench_compare_u64);
    qsort(total, searches, sizeof *total, bench_compare_u64);
    json_line_begin("wire_search");
    json_line_u64("through_router", server->router_pid != 0);
    json_line_u64("dim", dim);
    json_line_u64("points", points);
    json_line_u64("searches", searches);
    json_line_f64("p50_us", (double)total[searches / 2] / 1e3);
    json_line_f64("p99_us", (double)total[searches * 99 / 100] / 1e3);
    json_line_f64("engine_us", (double)engine_sum / 1e3 / (double)searches);
    json_line_f64("added_p50_us", (double)added[searches / 2] / 1e3);
    json_line_f64("added_p99_us", (double)added[searches * 99 / 100] / 1e3);
    json_line_f64("added_server_cpu_us", ((double)server_cpu - (double)engine_sum / 1e3) / (double)searches);
    json_line_f64("client_cpu_us", (double)client_cpu / 1e3 / (double)searches);
    json_line_end();
    mem_free(added);
    mem_free(total);
    mem_free(row);
    omen_close(client);
}

/* omen-node lies beside omen-bench unless --server says otherwise. */
static void default_server(char *path_out, size_t path_bytes)
{
    char self[PATH_MAX];
    ssize_t len = readlink("/proc/self/exe", self, sizeof self - 1);
    if (len < 0) panic("cannot find myself");
    self[len] = '\0';
    *strrchr(self, '/') = '\0';
    snprintf(path_out, path_bytes, "%.*s/omen-node", (int)(path_bytes - 16), self);
}

int bench_wire(int argc, char **argv)
{
    uint64_t dim = 128, count = 500000, payload_bytes = 200, depth = 4, clients = 64, each = 1000,
             searches = 20000, through_router = 0;
    const char *dir = "/tmp/omen-bench-wire", *binary = NULL;
    const struct bench_option options[] = {
        { "--dim", "components per vector (128)", &dim, NULL, NULL },
        { "--count", "vectors to upsert in batches (500000)", &count, NULL, NULL },
        { "--payload", "bytes of payload JSON per point (200)", &payload_bytes, NULL, NULL },
        { "--depth", "requests in flight of the second upsert run (4)", &depth, NULL, NULL },
        { "--clients", "clients of the group commit run (64)", &clients, NULL, NULL },
        { "--each", "requests of each of them (1000)", &each, NULL, NULL },
        { "--searches", "small searches (20000)", &searches, NULL, NULL },
        { "--through-router", "1: omen-router as a process of its own before the node (0)", &through_router,
                NULL, NULL },
        { "--dir", "scratch directory on the disk to measure (/tmp/omen-bench-wire)", NULL, &dir, NULL },
        { "--server", "omen-node to start (the one beside omen-bench)", NULL, &binary, NULL },
    };
    bench_parse(argc, argv, "wire [options]", options, sizeof options / sizeof options[0]);
    if (dim == 0 || dim > OMEN_DIM_MAX || count == 0 || clients == 0 || clients > CLIENTS_MAX || each == 0 ||
            searches == 0 || depth == 0) {
        fprintf(stderr, "omen-bench wire: a number is out of range (--clients <= %d)\n", CLIENTS_MAX);
        return 2;
    }
    char beside[PATH_MAX];
    default_server(beside, sizeof beside);
    struct server server;
    start_server(binary != NULL ? binary : beside, dir, through_router != 0, &server);
    run_upserts(&server, dim, count, payload_bytes, 1);
    if (depth > 1) run_upserts(&server, dim, count, payload_bytes, depth);
    run_group(&server, dir, dim, clients, each);
    run_searches(&server, dim, 100, searches);
    stop_server(&server);
    struct err err;
    if (vfs_remove_tree(vfs_posix(), dir, &err) != OMEN_OK) fprintf(stderr, "%s\n", err.message);
    return 0;
}
