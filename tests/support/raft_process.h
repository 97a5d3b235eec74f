/* One node of a Raft cluster as a process of its own, driven over pipes: for kill -9, SIGSTOP and what else a
 * process can suffer. The test binary starts itself again with "raft-node"; its main begins with
 *   if (argc > 1 && strcmp(argv[1], "raft-node") == 0) return raft_process_main(argc, argv);
 *
 * Each node has a replica of group 1 whose machine remembers the first word of every entry, in memory: after
 * a restart everything comes from the log. Threads: calls from one thread; a reader thread per process. */
#ifndef OMEN_TESTS_SUPPORT_RAFT_PROCESS_H
#define OMEN_TESTS_SUPPORT_RAFT_PROCESS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"

#define PUTS_MAX (1u << 20) /* words 1..: each is put once, at one node */
#define RAFT_PROCESSES 3u

struct raft_process {
    uint64_t node_id;
    char dir[300];
    pid_t pid; /* 0 = not running */
    int in;
    pthread_t reader;
    uint16_t port;
    uint64_t
            checkpoint_bytes; /* 0: the machine claims nothing durable; else it claims all, at that interval */
    struct raft_processes *all;

    /* guarded by all->mutex */
    bool leads, gone;
    uint64_t term, leader;
    uint64_t applied, sum, replies; /* of the last "sum" */
    uint64_t unsent_max, log_bytes;
};

struct raft_processes {
    char dir[256];
    struct raft_process nodes[RAFT_PROCESSES];
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    uint8_t *acks;  /* [PUTS_MAX] 0 = none yet, else 1 + enum omen_err; guarded by mutex */
    uint64_t acked; /* how many were OK; guarded by mutex */
    uint64_t next_word;
    uint64_t leader_of_term[4096]; /* guarded by mutex; two leaders of a term end the test */
    uint16_t (*route)(void *arg, uint32_t from, uint32_t to, uint16_t port); /* NULL: direct */
    void *route_arg;
    uint32_t election_ms; /* 0 = default */
};

int raft_process_main(int argc, char **argv);

void raft_processes_init(struct raft_processes *p);
void raft_processes_fini(struct raft_processes *p);
void raft_process_start(struct raft_processes *p, uint32_t i); /* keeps its port */
void raft_process_introduce(struct raft_processes *p);         /* every running one to every other */
void raft_process_open(struct raft_processes *p, uint32_t i, bool bootstrap);
void raft_processes_begin(struct raft_processes *p);          /* three, introduced, bootstrapped, opened */
void raft_process_kill(struct raft_processes *p, uint32_t i); /* -9, and waits for its end */
int raft_process_wait(struct raft_processes *p, uint32_t i);  /* for its end by itself; status */
uint32_t raft_processes_leader(struct raft_processes *p, uint32_t but);

/* Puts the next word; the answer comes by acks. */
uint64_t raft_process_put(struct raft_processes *p, uint32_t i, uint32_t bytes);
/* Code of the answer; OMEN_ERR_COUNT when there is none in time or the process is gone. */
unsigned raft_process_answer(struct raft_processes *p, uint32_t i, uint64_t word, uint32_t wait_ms);
/* One word at whoever leads, until it is acknowledged; how long it took from the call. */
uint64_t raft_processes_write_ms(struct raft_processes *p, uint32_t but, uint32_t bytes);
/* Waits until the running nodes have applied the same; then checks that every acknowledged word is there once
 * at each. Calls ck_abort otherwise. */
void raft_processes_check(struct raft_processes *p);
void raft_process_ask_sum(struct raft_processes *p, uint32_t i, uint32_t wait_ms);
uint64_t raft_now_ms(void);
uint64_t raft_process_rss_kb(const struct raft_process *node);

#endif
