/* A cluster of processes of its own for `omen-bench cluster --spawn`: nodes and one router on free loopback ports,
 * everything in one scratch directory. Panics with a sentence when it cannot be had. Threads: one. */
#ifndef OMEN_BENCH_CLUSTER_SPAWN_H
#define OMEN_BENCH_CLUSTER_SPAWN_H

#include <limits.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/query/doc.h"
#include "tools/client/omen.h"

#define SPAWNED_NODES_MAX 9u

struct spawned_node {
    pid_t pid; /* 0 = not running */
    uint16_t node_port, raft_port, http_port;
    uint32_t node_id;
};

struct spawned {
    char dir[PATH_MAX], binaries[PATH_MAX], secret[PATH_MAX + 16], listen[64];
    uint32_t count;
    struct spawned_node nodes[SPAWNED_NODES_MAX];
    pid_t router_pid;
};

/* What is under `dir` goes. Returns when all nodes are ready members of one cluster. Binaries lie beside omen-bench. */
void spawned_start(struct spawned *s, const char *dir, uint32_t nodes);
void spawned_kill(struct spawned *s, uint32_t slot); /* -9 */
void spawned_restart(struct spawned *s, omen_client *client,
        uint32_t slot);                           /* until every replica is ready */
uint64_t spawned_cpu_us(const struct spawned *s); /* of all that run, so far */
void spawned_stop(struct spawned *s);             /* orderly; the directory is removed */

/* The cluster's status, parsed; free the builder. NULL: nobody answered. */
struct doc_builder *cluster_status(omen_client *client, struct doc *status_out);
struct doc cluster_member(struct doc object, const char *name);
uint64_t cluster_number(struct doc object, const char *name);
/* Which node leads the only shard of `collection`, 0 = none now. */
uint32_t cluster_leader(omen_client *client, const char *collection);
/* utime + stime of a process, microseconds. */
uint64_t process_cpu_us(pid_t pid);

#endif
