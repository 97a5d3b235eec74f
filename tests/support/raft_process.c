/* Nodes of a Raft cluster as processes: see raft_process.h. */
#include "common/err.h"

#include "tests/support/raft_process.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/log.h"
#include "common/mem.h"
#include "consensus/replica.h"

#define START_WAIT_MS 20000u
#define SETTLE_WAIT_MS 60000u

uint64_t raft_now_ms(void) { return clock_monotonic_ns(clock_system()) / 1000000; }

/* ================ the node ================ */

struct machine {
    pthread_mutex_t mutex;
    uint64_t applied, durable, sum;
    uint64_t *words;
    uint64_t cap;
    bool claims_durable;
};

static struct machine g_machine = { .mutex = PTHREAD_MUTEX_INITIALIZER };
static struct replica *g_replica;
static pthread_mutex_t g_out = PTHREAD_MUTEX_INITIALIZER;

static void say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static void say(const char *fmt, ...)
{
    char line[256];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    pthread_mutex_lock(&g_out);
    for (int at = 0; at < n;) {
        ssize_t w = write(1, line + at, (size_t)(n - at));
        if (w <= 0) _exit(3); /* nobody listens any more */
        at += (int)w;
    }
    pthread_mutex_unlock(&g_out);
}

static enum omen_err node_apply(void *self, uint64_t sequence, const void *entry, uint32_t len,
        void *proposal_arg, struct err *err)
{
    struct machine *m = self;
    pthread_mutex_lock(&m->mutex);
    CHECK(sequence == m->applied + 1);
    if (m->applied == m->cap) {
        m->cap = m->cap == 0 ? 4096 : 2 * m->cap;
        m->words = mem_must_realloc(m->words, m->cap * sizeof *m->words);
    }
    uint64_t word = load_u64(entry);
    m->words[m->applied] = word;
    m->applied = sequence;
    m->sum = m->sum * 31 + word;
    pthread_mutex_unlock(&m->mutex);
    return OMEN_OK;
}

static uint64_t node_applied(void *self)
{
    struct machine *m = self;
    pthread_mutex_lock(&m->mutex);
    uint64_t applied = m->applied;
    pthread_mutex_unlock(&m->mutex);
    return applied;
}

static uint64_t node_needed_from(void *self)
{
    struct machine *m = self;
    pthread_mutex_lock(&m->mutex);
    uint64_t durable = m->durable;
    pthread_mutex_unlock(&m->mutex);
    return durable;
}

static enum omen_err node_checkpoint(void *self, struct err *err)
{
    struct machine *m = self;
    pthread_mutex_lock(&m->mutex);
    if (m->claims_durable) m->durable = m->applied;
    pthread_mutex_unlock(&m->mutex);
    return OMEN_OK;
}

static void node_leader(void *arg, bool leads, const struct replica_member *leader, uint64_t term)
{
    say("role %d %" PRIu64 " %" PRIu64 "\n", leads, term, leader->node_id);
}

static void node_done(void *arg, enum omen_err result, uint64_t sequence, const struct err *err)
{
    say("ack %" PRIu64 " %u %" PRIu64 "\n", (uint64_t)(uintptr_t)arg, (unsigned)result, sequence);
}

static void node_sum(struct replica_host *host)
{
    struct replica_net_stats net;
    struct replica_status s = { 0 };
    replica_host_net_stats(host, &net);
    if (g_replica != NULL) replica_status(g_replica, &s);
    pthread_mutex_lock(&g_machine.mutex);
    uint64_t applied = g_machine.applied, sum = g_machine.sum;
    pthread_mutex_unlock(&g_machine.mutex);
    say("sum %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", applied, sum, net.unsent_bytes_max,
            s.log_bytes);
}

static void node_dump(const char *path)
{
    pthread_mutex_lock(&g_machine.mutex);
    FILE *f = fopen(path, "w");
    CHECK(f != NULL);
    CHECK(fwrite(g_machine.words, 8, g_machine.applied, f) == g_machine.applied);
    fclose(f);
    pthread_mutex_unlock(&g_machine.mutex);
    say("dumped\n");
}

static void node_open(struct replica_host *host, uint64_t node_id, bool bootstrap)
{
    struct err err = { 0 };
    struct replica_member members[RAFT_PROCESSES];
    struct replica_fsm fsm = { .self = &g_machine,
        .apply = node_apply,
        .applied = node_applied,
        .log_needed_from = node_needed_from,
        .checkpoint = node_checkpoint };
    struct replica_group_options o = { .group = 1,
        .replica_id = node_id,
        .fsm = &fsm,
        .on_leader_change = node_leader };
    for (uint32_t i = 0; i < RAFT_PROCESSES; i++)
        members[i] = (struct replica_member){ i + 1, i + 1, REPLICA_VOTER };
    enum omen_err rc = OMEN_OK;
    if (bootstrap) rc = replica_bootstrap(host, 1, node_id, members, RAFT_PROCESSES, &err);
    if (rc == OMEN_OK) rc = replica_open_group(host, &o, &g_replica, &err);
    if (rc != OMEN_OK) {
        fprintf(stderr, "%s\n", err.message);
        _exit(4);
    }
    say("opened\n");
}

static void node_command(struct replica_host *host, uint64_t node_id, const char *line)
{
    uint64_t a, b;
    char text[512];
    if (sscanf(line, "peer %" SCNu64 " %" SCNu64, &a, &b) == 2) {
        char address[32];
        snprintf(address, sizeof address, "127.0.0.1:%" PRIu64, b);
        CHECK(replica_host_set_peer(host, a, address, NULL) == OMEN_OK);
    } else if (sscanf(line, "open %" SCNu64, &a) == 1) {
        node_open(host, node_id, a != 0);
    } else if (sscanf(line, "put %" SCNu64 " %" SCNu64, &a, &b) == 2) {
        uint8_t *entry = mem_must_calloc(1, b);
        store_u64(entry, a);
        replica_propose(g_replica, entry, (uint32_t)b, NULL, node_done, (void *)(uintptr_t)a);
    } else if (strncmp(line, "sum", 3) == 0) {
        node_sum(host);
    } else if (sscanf(line, "dump %511s", text) == 1) {
        node_dump(text);
    } else {
        CHECK(!"a known command");
    }
}

/* raft-node DIR NODE PORT CHECKPOINT_BYTES ELECTION_MS */
int raft_process_main(int argc, char **argv)
{
    CHECK(argc == 7);
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    static const uint8_t secret[] = "secret of the processes";
    char listen[32], line[1024];
    struct replica_host_options o;
    struct replica_host *host;
    struct err err = { 0 };
    uint64_t node_id = strtoull(argv[3], NULL, 10);
    snprintf(listen, sizeof listen, "127.0.0.1:%s", argv[4]);
    replica_host_options_default(&o);
    o.log.vfs = vfs_posix();
    o.log.dir = argv[2];
    o.log.node_id = node_id;
    o.log.segment_bytes = 4u << 20;
    g_machine.claims_durable = strtoull(argv[5], NULL, 10) != 0;
    if (g_machine.claims_durable)
        o.checkpoint_log_bytes = strtoull(argv[5], NULL, 10);
    else
        o.log.bytes_max = 4ull << 30;
    o.cluster.cluster_id = 5;
    o.cluster.secret = secret;
    o.cluster.secret_len = sizeof secret;
    o.cluster.listen = listen;
    if (atoi(argv[6]) != 0) o.cluster.election_ms = (uint32_t)atoi(argv[6]);
    if (replica_host_open(&o, &host, &err) != OMEN_OK) {
        fprintf(stderr, "%s\n", err.message);
        return 2;
    }
    say("port %u\n", replica_host_port(host));
    while (fgets(line, sizeof line, stdin) != NULL) node_command(host, node_id, line);
    replica_close(g_replica, false);
    replica_host_close(host);
    mem_free(g_machine.words);
    return 0;
}

/* ================ the test's side ================ */

static void line_take(struct raft_process *n, const char *line)
{
    struct raft_processes *p = n->all;
    uint64_t a, b, c, d;
    pthread_mutex_lock(&p->mutex);
    if (sscanf(line, "ack %" SCNu64 " %" SCNu64, &a, &b) == 2) {
        p->acks[a] = (uint8_t)(1 + b);
        p->acked += b == OMEN_OK;
    } else if (sscanf(line, "role %" SCNu64 " %" SCNu64 " %" SCNu64, &a, &b, &c) == 3) {
        n->leads = a != 0;
        n->term = b;
        n->leader = c;
        if (n->leads && b < 4096) {
            /* Two leaders of one term: a vote was forgotten. */
            CHECK(p->leader_of_term[b] == 0 || p->leader_of_term[b] == n->node_id);
            p->leader_of_term[b] = n->node_id;
        }
    } else if (sscanf(line, "sum %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64, &a, &b, &c, &d) == 4) {
        n->applied = a;
        n->sum = b;
        n->unsent_max = c;
        n->log_bytes = d;
        n->replies++;
    } else if (sscanf(line, "port %" SCNu64, &a) == 1) {
        n->port = (uint16_t)a;
        n->replies++;
    } else {
        n->replies++; /* opened, dumped */
    }
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->mutex);
}

struct reader {
    struct raft_process *node;
    FILE *out;
};

static void *reader_main(void *arg)
{
    struct reader *r = arg;
    char line[512];
    while (fgets(line, sizeof line, r->out) != NULL) line_take(r->node, line);
    pthread_mutex_lock(&r->node->all->mutex);
    r->node->gone = true;
    r->node->leads = false;
    pthread_cond_broadcast(&r->node->all->changed);
    pthread_mutex_unlock(&r->node->all->mutex);
    fclose(r->out);
    mem_free(r);
    return NULL;
}

/* Waits for a change, up to the time; false: it is over. Mutex held. */
static bool wait_until(struct raft_processes *p, uint64_t until_ms)
{
    struct timespec t;
    if (raft_now_ms() >= until_ms) return false;
    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_nsec += 20000000;
    t.tv_sec += t.tv_nsec / 1000000000;
    t.tv_nsec %= 1000000000;
    (void)pthread_cond_timedwait(&p->changed, &p->mutex, &t);
    return true;
}

static void send_line(struct raft_process *n, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void send_line(struct raft_process *n, const char *fmt, ...)
{
    char line[600];
    va_list args;
    va_start(args, fmt);
    int len = vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    if (n->pid == 0) return;
    for (int at = 0; at < len;) {
        ssize_t w = write(n->in, line + at, (size_t)(len - at));
        if (w <= 0) return; /* gone: whoever waits for an answer finds out */
        at += (int)w;
    }
}

static void replies_wait(struct raft_process *n, uint64_t replies, const char *what)
{
    struct raft_processes *p = n->all;
    uint64_t until = raft_now_ms() + START_WAIT_MS;
    pthread_mutex_lock(&p->mutex);
    while (n->replies < replies && !n->gone && wait_until(p, until)) continue;
    bool there = n->replies >= replies;
    pthread_mutex_unlock(&p->mutex);
    ck_assert_msg(there, "node %u: no answer to %s", (unsigned)n->node_id, what);
}

static uint64_t replies_now(struct raft_process *n)
{
    pthread_mutex_lock(&n->all->mutex);
    uint64_t replies = n->replies;
    pthread_mutex_unlock(&n->all->mutex);
    return replies;
}

void raft_processes_init(struct raft_processes *p)
{
    memset(p, 0, sizeof *p);
    (void)signal(SIGPIPE, SIG_IGN);
    const char *tmp = getenv("TMPDIR");
    snprintf(p->dir, sizeof p->dir, "%s/omen-XXXXXX", tmp != NULL ? tmp : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(p->dir));
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->changed, NULL);
    p->acks = mem_must_calloc(PUTS_MAX, 1);
    p->next_word = 1;
    for (uint32_t i = 0; i < RAFT_PROCESSES; i++) {
        struct raft_process *n = &p->nodes[i];
        n->all = p;
        n->node_id = i + 1;
        snprintf(n->dir, sizeof n->dir, "%s/n%u", p->dir, i + 1);
    }
}

void raft_processes_fini(struct raft_processes *p)
{
    for (uint32_t i = 0; i < RAFT_PROCESSES; i++) raft_process_kill(p, i);
    mem_free(p->acks);
    pthread_cond_destroy(&p->changed);
    pthread_mutex_destroy(&p->mutex);
    ck_assert_int_eq(vfs_remove_tree(vfs_posix(), p->dir, NULL), OMEN_OK);
}

void raft_process_start(struct raft_processes *p, uint32_t i)
{
    struct raft_process *n = &p->nodes[i];
    int in[2], out[2];
    char id[24], port[24], checkpoint[24], election[24];
    ck_assert_int_eq(pipe2(in, O_CLOEXEC), 0);
    ck_assert_int_eq(pipe2(out, O_CLOEXEC), 0);
    snprintf(id, sizeof id, "%" PRIu64, n->node_id);
    snprintf(port, sizeof port, "%u", n->port);
    snprintf(checkpoint, sizeof checkpoint, "%" PRIu64, n->checkpoint_bytes);
    snprintf(election, sizeof election, "%u", p->election_ms);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(in[0], 0);
        dup2(out[1], 1);
        execl("/proc/self/exe", "test", "raft-node", n->dir, id, port, checkpoint, election, NULL);
        _exit(127);
    }
    ck_assert_int_gt(pid, 0);
    close(in[0]);
    close(out[1]);
    n->pid = pid;
    n->in = in[1];
    n->gone = n->leads = false;
    uint64_t replies = replies_now(n);
    struct reader *r = mem_must_alloc(sizeof *r);
    *r = (struct reader){ n, fdopen(out[0], "r") };
    ck_assert_int_eq(pthread_create(&n->reader, NULL, reader_main, r), 0);
    replies_wait(n, replies + 1, "start");
}

void raft_process_introduce(struct raft_processes *p)
{
    for (uint32_t i = 0; i < RAFT_PROCESSES; i++) {
        for (uint32_t j = 0; j < RAFT_PROCESSES; j++) {
            uint16_t port = p->nodes[j].port;
            if (i == j || port == 0) continue;
            if (p->route != NULL) port = p->route(p->route_arg, i, j, port);
            send_line(&p->nodes[i], "peer %u %u\n", j + 1, port);
        }
    }
}

void raft_process_open(struct raft_processes *p, uint32_t i, bool bootstrap)
{
    uint64_t replies = replies_now(&p->nodes[i]);
    send_line(&p->nodes[i], "open %d\n", bootstrap);
    replies_wait(&p->nodes[i], replies + 1, "open");
}

void raft_processes_begin(struct raft_processes *p)
{
    for (uint32_t i = 0; i < RAFT_PROCESSES; i++) raft_process_start(p, i);
    raft_process_introduce(p);
    for (uint32_t i = 0; i < RAFT_PROCESSES; i++) raft_process_open(p, i, true);
}

int raft_process_wait(struct raft_processes *p, uint32_t i)
{
    struct raft_process *n = &p->nodes[i];
    int status = 0;
    ck_assert_int_eq(waitpid(n->pid, &status, 0), n->pid);
    pthread_join(n->reader, NULL);
    close(n->in);
    n->pid = 0;
    return status;
}

void raft_process_kill(struct raft_processes *p, uint32_t i)
{
    struct raft_process *n = &p->nodes[i];
    if (n->pid == 0) return;
    kill(n->pid, SIGKILL);
    (void)raft_process_wait(p, i);
}

uint32_t raft_processes_leader(struct raft_processes *p, uint32_t but)
{
    uint64_t until = raft_now_ms() + START_WAIT_MS;
    uint32_t found = UINT32_MAX;
    pthread_mutex_lock(&p->mutex);
    while (found == UINT32_MAX) {
        uint64_t term = 0;
        for (uint32_t i = 0; i < RAFT_PROCESSES; i++) {
            const struct raft_process *n = &p->nodes[i];
            if (i == but || n->pid == 0 || !n->leads || n->term < term) continue;
            term = n->term;
            found = i;
        }
        if (found == UINT32_MAX && !wait_until(p, until)) break;
    }
    pthread_mutex_unlock(&p->mutex);
    ck_assert_msg(found != UINT32_MAX, "no leader");
    return found;
}

uint64_t raft_process_put(struct raft_processes *p, uint32_t i, uint32_t bytes)
{
    uint64_t word = p->next_word++;
    ck_assert_uint_lt(word, PUTS_MAX);
    send_line(&p->nodes[i], "put %" PRIu64 " %u\n", word, bytes);
    return word;
}

unsigned raft_process_answer(struct raft_processes *p, uint32_t i, uint64_t word, uint32_t wait_ms)
{
    uint64_t until = raft_now_ms() + wait_ms;
    pthread_mutex_lock(&p->mutex);
    while (p->acks[word] == 0 && !p->nodes[i].gone && wait_until(p, until)) continue;
    unsigned code = p->acks[word] == 0 ? OMEN_ERR_COUNT : p->acks[word] - 1u;
    pthread_mutex_unlock(&p->mutex);
    return code;
}

uint64_t raft_processes_write_ms(struct raft_processes *p, uint32_t but, uint32_t bytes)
{
    uint64_t began = raft_now_ms();
    for (;;) {
        uint32_t i = raft_processes_leader(p, but);
        uint64_t word = raft_process_put(p, i, bytes);
        if (raft_process_answer(p, i, word, 3000) == OMEN_OK) return raft_now_ms() - began;
        ck_assert_uint_lt(raft_now_ms() - began, START_WAIT_MS);
        usleep(2000);
    }
}

void raft_process_ask_sum(struct raft_processes *p, uint32_t i, uint32_t wait_ms)
{
    uint64_t replies = replies_now(&p->nodes[i]), until = raft_now_ms() + wait_ms;
    send_line(&p->nodes[i], "sum\n");
    pthread_mutex_lock(&p->mutex);
    while (p->nodes[i].replies == replies && wait_until(p, until)) continue;
    pthread_mutex_unlock(&p->mutex);
}

static bool all_same(struct raft_processes *p)
{
    const struct raft_process *first = NULL;
    bool same = true;
    for (uint32_t i = 0; i < RAFT_PROCESSES; i++) {
        const struct raft_process *n = &p->nodes[i];
        if (n->pid == 0) continue;
        raft_process_ask_sum(p, i, START_WAIT_MS);
        if (first == NULL) first = n;
        same = same && n->applied == first->applied && n->sum == first->sum;
    }
    return same;
}

static void words_check(struct raft_processes *p, struct raft_process *n)
{
    char path[400];
    uint64_t word;
    uint8_t *times = mem_must_calloc(PUTS_MAX, 1);
    snprintf(path, sizeof path, "%s/words", p->dir);
    uint64_t replies = replies_now(n);
    send_line(n, "dump %s\n", path);
    replies_wait(n, replies + 1, "dump");
    FILE *f = fopen(path, "r");
    ck_assert_ptr_nonnull(f);
    while (fread(&word, 8, 1, f) == 1) {
        ck_assert_uint_lt(word, p->next_word);
        ck_assert_msg(times[word]++ == 0, "node %u: word %u twice", (unsigned)n->node_id, (unsigned)word);
    }
    fclose(f);
    unlink(path);
    pthread_mutex_lock(&p->mutex);
    for (uint64_t w = 1; w < p->next_word; w++) {
        if (p->acks[w] == 1 + OMEN_OK && times[w] == 0)
            ck_abort_msg("node %u: word %u was acknowledged and is gone", (unsigned)n->node_id, (unsigned)w);
    }
    pthread_mutex_unlock(&p->mutex);
    mem_free(times);
}

void raft_processes_check(struct raft_processes *p)
{
    (void)raft_processes_write_ms(p, UINT32_MAX, 64); /* commits what is left of former terms */
    uint64_t until = raft_now_ms() + SETTLE_WAIT_MS;
    while (!all_same(p)) {
        ck_assert_msg(raft_now_ms() < until, "the nodes stay different: %u %u %u",
                (unsigned)p->nodes[0].applied, (unsigned)p->nodes[1].applied, (unsigned)p->nodes[2].applied);
        usleep(20000);
    }
    for (uint32_t i = 0; i < RAFT_PROCESSES; i++) {
        if (p->nodes[i].pid != 0) words_check(p, &p->nodes[i]);
    }
}

uint64_t raft_process_rss_kb(const struct raft_process *node)
{
    char path[64], line[256];
    uint64_t kb = 0;
    snprintf(path, sizeof path, "/proc/%d/status", (int)node->pid);
    FILE *f = fopen(path, "r");
    while (f != NULL && fgets(line, sizeof line, f) != NULL) {
        if (sscanf(line, "VmRSS: %" SCNu64, &kb) == 1) break;
    }
    if (f != NULL) fclose(f);
    return kb;
}
