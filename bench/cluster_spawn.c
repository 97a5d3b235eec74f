/* See cluster_spawn.h. */
#include "bench/cluster_spawn.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/bench.h"
#include "common/check.h"
#include "common/json.h"
#include "common/mem.h"
#include "common/vfs.h"

#define STATUS_BYTES_MAX (64u << 20)
#define WAIT_MS 60000u
#define LOOK_MS 50u

/* ---- status ---- */

struct doc_builder *cluster_status(omen_client *client, struct doc *status_out)
{
    char *json = NULL;
    if (omen_cluster(client, "{\"do\":\"status\"}", &json) != 0) return NULL;
    struct doc_builder *b = doc_builder_new(STATUS_BYTES_MAX);
    if (b == NULL) panic("no memory for the status");
    if (json_parse(json, strlen(json), b, status_out, NULL) != OMEN_OK) panic("the status is no JSON");
    omen_free(json);
    return b;
}

struct doc cluster_member(struct doc object, const char *name)
{
    if (object.data == NULL || doc_type(object) != DOC_OBJECT) return (struct doc){ NULL, 0 };
    return doc_member(object, (struct bytes){ (const uint8_t *)name, strlen(name) });
}

uint64_t cluster_number(struct doc object, const char *name)
{
    struct doc v = cluster_member(object, name);
    return v.data != NULL && doc_type(v) == DOC_I64 ? (uint64_t)doc_i64(v) : 0;
}

static bool is_true(struct doc object, const char *name)
{
    struct doc v = cluster_member(object, name);
    return v.data != NULL && doc_type(v) == DOC_TRUE;
}

static bool is_text(struct doc object, const char *name, const char *text)
{
    struct doc v = cluster_member(object, name);
    if (v.data == NULL || doc_type(v) != DOC_STRING) return false;
    return doc_string(v).len == strlen(text) && memcmp(doc_string(v).data, text, strlen(text)) == 0;
}

uint32_t cluster_leader(omen_client *client, const char *collection)
{
    struct doc status, shard, replica;
    struct doc_builder *b = cluster_status(client, &status);
    if (b == NULL) return 0;
    uint32_t leader = 0;
    struct doc_iter shards = doc_iter(cluster_member(status, "shards"));
    while (doc_next(&shards, NULL, &shard)) {
        struct doc_iter replicas = doc_iter(cluster_member(shard, "replicas"));
        while (is_text(shard, "collection", collection) && doc_next(&replicas, NULL, &replica))
            if (is_true(replica, "leader")) leader = (uint32_t)cluster_number(replica, "node_id");
    }
    doc_builder_free(b);
    return leader;
}

/* Every node is a ready member, and so is every replica; learns the ids of nodes. */
static bool is_whole(struct spawned *s, omen_client *client)
{
    struct doc status, node, shard, replica;
    struct doc_builder *b = cluster_status(client, &status);
    if (b == NULL) return false;
    uint32_t ready = 0;
    bool whole = true;
    struct doc_iter nodes = doc_iter(cluster_member(status, "nodes"));
    while (doc_next(&nodes, NULL, &node)) {
        ready += is_true(node, "ready");
        for (uint32_t i = 0; i < s->count; i++) {
            char address[64];
            snprintf(address, sizeof address, "tcp://127.0.0.1:%u", s->nodes[i].node_port);
            if (is_text(node, "address", address))
                s->nodes[i].node_id = (uint32_t)cluster_number(node, "node_id");
        }
    }
    struct doc_iter shards = doc_iter(cluster_member(status, "shards"));
    while (doc_next(&shards, NULL, &shard)) {
        struct doc_iter replicas = doc_iter(cluster_member(shard, "replicas"));
        while (doc_next(&replicas, NULL, &replica)) whole = whole && is_true(replica, "ready");
    }
    doc_builder_free(b);
    return whole && ready == s->count;
}

static void wait_whole(struct spawned *s, omen_client *client)
{
    for (uint32_t waited = 0; !is_whole(s, client); waited += LOOK_MS) {
        if (waited > WAIT_MS) panic("the cluster does not get ready; its logs are under %s", s->dir);
        usleep(LOOK_MS * 1000);
    }
}

/* ---- processes ---- */

static uint16_t free_port(void)
{
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t len = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof a) != 0 ||
            getsockname(fd, (struct sockaddr *)&a, &len) != 0)
        panic("no free port: %s", strerror(errno));
    close(fd);
    return ntohs(a.sin_port);
}

static pid_t start_process(const char *const *argv, const char *log)
{
    pid_t pid = fork();
    if (pid < 0) panic("cannot start %s: %s", argv[0], strerror(errno));
    if (pid > 0) return pid;
    int fd = open(log, O_CREAT | O_APPEND | O_WRONLY | O_CLOEXEC, 0600);
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL); /* nothing stays behind when the benchmark is broken off */
    if (fd >= 0 && dup2(fd, STDOUT_FILENO) >= 0 && dup2(fd, STDERR_FILENO) >= 0)
        (void)execv(argv[0], (char *const *)(uintptr_t)argv);
    _exit(127);
}

/* "tcp://127.0.0.1:P1,.." of all nodes. */
static void addresses_of(const struct spawned *s, char *out, size_t out_bytes)
{
    out[0] = '\0';
    for (uint32_t i = 0; i < s->count; i++)
        snprintf(out + strlen(out), out_bytes - strlen(out), "%stcp://127.0.0.1:%u", i == 0 ? "" : ",",
                s->nodes[i].node_port);
}

static void node_start(struct spawned *s, uint32_t slot)
{
    struct spawned_node *n = &s->nodes[slot];
    char binary[PATH_MAX + 16], listen[64], raft[64], http[64], data[PATH_MAX + 32], log[PATH_MAX + 32],
            others[1024], secret[PATH_MAX + 48];
    addresses_of(s, others, sizeof others);
    snprintf(binary, sizeof binary, "%s/omen-node", s->binaries);
    snprintf(listen, sizeof listen, "tcp://127.0.0.1:%u", n->node_port);
    snprintf(raft, sizeof raft, "127.0.0.1:%u", n->raft_port);
    snprintf(http, sizeof http, "http://127.0.0.1:%u", n->http_port);
    snprintf(data, sizeof data, "%s/node-%u", s->dir, slot + 1);
    snprintf(log, sizeof log, "%s/node-%u.log", s->dir, slot + 1);
    snprintf(secret, sizeof secret, "cluster.secret_file=%s", s->secret);
    const char *argv[] = { binary, "--node-listen", listen, "--cluster-listen", raft, "--join", others,
        "--data", data, "--http", http, "--set", secret, "--set", "log.level=warn", NULL };
    n->pid = start_process(argv, log);
}

static void router_start(struct spawned *s)
{
    char binary[PATH_MAX + 16], log[PATH_MAX + 32], others[1024];
    addresses_of(s, others, sizeof others);
    snprintf(binary, sizeof binary, "%s/omen-router", s->binaries);
    snprintf(log, sizeof log, "%s/router.log", s->dir);
    snprintf(s->listen, sizeof s->listen, "tcp://127.0.0.1:%u", free_port());
    const char *argv[] = { binary, "--nodes", others, "--secret-file", s->secret, "--listen", s->listen,
        "--http", "http://127.0.0.1:0", "--set", "log.level=warn", NULL };
    s->router_pid = start_process(argv, log);
}

static void make_cluster(struct spawned *s)
{
    omen_client *client;
    char *json = NULL;
    omen_code rc = OMEN_EUNAVAILABLE;
    if (omen_open(s->listen, NULL, &client) != 0) panic("%s", omen_last_error());
    for (uint32_t waited = 0; rc != OMEN_OK && rc != OMEN_EEXISTS; waited += LOOK_MS) {
        rc = omen_cluster(client, "{\"do\":\"init\",\"name\":\"bench\"}", &json);
        if (waited > WAIT_MS)
            panic("no cluster could be made: %s; logs are under %s", omen_last_error(), s->dir);
        if (rc != OMEN_OK) usleep(LOOK_MS * 1000);
        omen_free(json);
        json = NULL;
    }
    wait_whole(s, client);
    omen_close(client);
}

void spawned_start(struct spawned *s, const char *dir, uint32_t nodes)
{
    struct err err;
    *s = (struct spawned){ .count = nodes };
    CHECK(nodes >= 1 && nodes <= SPAWNED_NODES_MAX);
    ssize_t len = readlink("/proc/self/exe", s->binaries, sizeof s->binaries - 1);
    if (len < 0) panic("cannot find myself");
    s->binaries[len] = '\0';
    *strrchr(s->binaries, '/') = '\0';
    snprintf(s->dir, sizeof s->dir, "%s", dir);
    if (vfs_remove_tree(vfs_posix(), dir, &err) != OMEN_OK || vfs_mkdir(vfs_posix(), dir, &err) != OMEN_OK)
        panic("%s", err.message);
    snprintf(s->secret, sizeof s->secret, "%s/secret", dir);
    FILE *f = fopen(s->secret, "w");
    if (f == NULL ||
            fprintf(f, "%016llx%016llx\n", (unsigned long long)bench_mix(bench_now_ns()),
                    (unsigned long long)bench_mix((uint64_t)getpid())) < 0)
        panic("cannot write %s", s->secret);
    fclose(f);
    for (uint32_t i = 0; i < nodes; i++) {
        s->nodes[i].node_port = free_port();
        s->nodes[i].raft_port = free_port();
        s->nodes[i].http_port = free_port();
    }
    for (uint32_t i = 0; i < nodes; i++) node_start(s, i);
    router_start(s);
    make_cluster(s);
}

void spawned_kill(struct spawned *s, uint32_t slot)
{
    kill(s->nodes[slot].pid, SIGKILL);
    waitpid(s->nodes[slot].pid, NULL, 0);
    s->nodes[slot].pid = 0;
}

void spawned_restart(struct spawned *s, omen_client *client, uint32_t slot)
{
    node_start(s, slot);
    wait_whole(s, client);
}

uint64_t process_cpu_us(pid_t pid)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *f = fopen(path, "r");
    if (f == NULL) panic("cannot read %s", path);
    size_t len = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[len] = '\0';
    char *after = strrchr(text, ')');
    unsigned long user = 0, system_time = 0;
    if (after == NULL ||
            sscanf(after + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system_time) !=
                    2)
        panic("cannot parse %s", path);
    return (user + system_time) * 1000000u / (uint64_t)sysconf(_SC_CLK_TCK);
}

uint64_t spawned_cpu_us(const struct spawned *s)
{
    uint64_t us = s->router_pid == 0 ? 0 : process_cpu_us(s->router_pid);
    for (uint32_t i = 0; i < s->count; i++)
        if (s->nodes[i].pid != 0) us += process_cpu_us(s->nodes[i].pid);
    return us;
}

static void end_process(pid_t *pid)
{
    if (*pid == 0) return;
    kill(*pid, SIGTERM);
    waitpid(*pid, NULL, 0);
    *pid = 0;
}

void spawned_stop(struct spawned *s)
{
    struct err err;
    end_process(&s->router_pid);
    for (uint32_t i = 0; i < s->count; i++)
        if (s->nodes[i].pid != 0) kill(s->nodes[i].pid, SIGTERM);
    for (uint32_t i = 0; i < s->count; i++) end_process(&s->nodes[i].pid);
    if (vfs_remove_tree(vfs_posix(), s->dir, &err) != OMEN_OK) fprintf(stderr, "%s\n", err.message);
}
