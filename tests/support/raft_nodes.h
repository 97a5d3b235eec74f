/* Nodes of a Raft cluster in one process: a host each over a directory of its own, a counting state machine
 * per group, real TCP on loopback. Time is real; nothing asserts on it but through wait functions with wide
 * limits. */
#ifndef OMEN_TESTS_SUPPORT_RAFT_NODES_H
#define OMEN_TESTS_SUPPORT_RAFT_NODES_H

#include <pthread.h>
#include <stdatomic.h>

#include "consensus/replica.h"

#define RAFT_NODES_MAX 5u
#define RAFT_WAIT_MS 45000u

/* Entries are arrays of u64; what was applied is kept as an order-dependent sum, and each first word. */
struct raft_machine {
    pthread_mutex_t mutex;
    uint64_t applied, durable;
    uint64_t sum;
    uint64_t *words; /* [applied - words_from] first words */
    uint64_t words_from, words_cap;
    _Atomic int fail;         /* error for apply */
    _Atomic bool block;       /* apply waits */
    _Atomic uint32_t fetches; /* asked for */
    uint64_t fetch_sequence;
    struct raft_machine *source; /* whom to copy when the base is switched */
};
void raft_machine_init(struct raft_machine *m);
void raft_machine_fini(struct raft_machine *m);
struct replica_fsm raft_machine_fsm(struct raft_machine *m);

struct raft_node {
    uint64_t node_id;
    char dir[300];
    struct replica_host *host; /* NULL while down */
    struct replica *replica;   /* of group 1 */
    struct raft_machine machine;
    _Atomic uint32_t leader_changes;
    uint16_t port;
};

struct raft_nodes {
    char dir[256];
    struct raft_node nodes[RAFT_NODES_MAX];
    uint32_t count;
    struct replica_host_options options; /* template */
};

/* `count` nodes, none up. */
void raft_nodes_init(struct raft_nodes *n, uint32_t count);
void raft_nodes_fini(struct raft_nodes *n); /* takes down what is up, removes the directories */
/* Host up, peers known both ways; port stays the same over restarts. */
void raft_node_up(struct raft_nodes *n, uint32_t i);
void raft_node_open(struct raft_nodes *n, uint32_t i, uint64_t replica_id); /* replica of group 1 */
void raft_node_down(struct raft_nodes *n, uint32_t i);
/* All up, group 1 bootstrapped with replicas 1..voters on nodes 1..voters, opened. */
void raft_nodes_start(struct raft_nodes *n, uint32_t voters);
/* Slot of the node that leads according to itself; waits. `but`: not this one, UINT32_MAX = any. */
uint32_t raft_nodes_leader(struct raft_nodes *n, uint32_t but);
/* Proposes a word at the node and waits for the answer. */
enum omen_err raft_node_put(struct raft_node *node, uint64_t word, uint32_t bytes, uint64_t *sequence_out);
/* At whoever leads, retried until OK. */
uint64_t raft_nodes_put(struct raft_nodes *n, uint64_t word, uint32_t bytes);
enum omen_err raft_node_barrier(struct raft_node *node, uint64_t *sequence_out);
void raft_node_wait_applied(struct raft_node *node, uint64_t sequence);
enum omen_err raft_node_change(struct raft_node *node, char kind, uint64_t replica_id, uint64_t arg);

#endif
