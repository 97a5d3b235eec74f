/* A Raft cluster in one process, for tests: see raft_nodes.h. */
#include "common/err.h"

#include "tests/support/raft_nodes.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/mem.h"

static const uint8_t secret[] = "a secret of twenty-four b";

static uint64_t now_ms(void) { return clock_monotonic_ns(clock_system()) / 1000000; }

/* ---- machine ---- */

void raft_machine_init(struct raft_machine *m)
{
    memset(m, 0, sizeof *m);
    pthread_mutex_init(&m->mutex, NULL);
}

void raft_machine_fini(struct raft_machine *m)
{
    mem_free(m->words);
    pthread_mutex_destroy(&m->mutex);
}

static void words_push(struct raft_machine *m, uint64_t word)
{
    if (m->applied - m->words_from == m->words_cap) {
        m->words_cap = m->words_cap == 0 ? 1024 : 2 * m->words_cap;
        m->words = mem_must_realloc(m->words, m->words_cap * sizeof *m->words);
    }
    m->words[m->applied - m->words_from] = word;
}

static enum omen_err machine_apply(void *self, uint64_t sequence, const void *entry, uint32_t len,
        void *proposal_arg, struct err *err)
{
    struct raft_machine *m = self;
    while (m->block) usleep(1000);
    if (m->fail != OMEN_OK) return err_set(err, (enum omen_err)m->fail, NULL, "told to fail");
    ck_assert_uint_eq((uintptr_t)entry % 16, 0);
    ck_assert_uint_ge(len, 8);
    pthread_mutex_lock(&m->mutex);
    ck_assert_uint_eq(sequence, m->applied + 1);
    uint64_t word = load_u64(entry);
    words_push(m, word);
    m->sum = m->sum * 31 + word;
    m->applied = sequence;
    pthread_mutex_unlock(&m->mutex);
    return OMEN_OK;
}

static uint64_t machine_applied(void *self)
{
    struct raft_machine *m = self;
    pthread_mutex_lock(&m->mutex);
    uint64_t applied = m->applied;
    pthread_mutex_unlock(&m->mutex);
    return applied;
}

static uint64_t machine_needed_from(void *self)
{
    struct raft_machine *m = self;
    pthread_mutex_lock(&m->mutex);
    uint64_t durable = m->durable;
    pthread_mutex_unlock(&m->mutex);
    return durable;
}

static enum omen_err machine_checkpoint(void *self, struct err *err)
{
    struct raft_machine *m = self;
    pthread_mutex_lock(&m->mutex);
    m->durable = m->applied;
    pthread_mutex_unlock(&m->mutex);
    return OMEN_OK;
}

static void machine_fetch(void *self, uint64_t sequence, uint64_t node_id)
{
    struct raft_machine *m = self;
    m->fetch_sequence = sequence;
    atomic_fetch_add(&m->fetches, 1);
}

static enum omen_err machine_switch(void *self, uint64_t sequence, struct err *err)
{
    struct raft_machine *m = self;
    struct raft_machine *s = m->source;
    if (s == NULL) return err_set(err, OMEN_EIO, NULL, "no base");
    pthread_mutex_lock(&s->mutex);
    pthread_mutex_lock(&m->mutex);
    ck_assert_uint_ge(s->durable, sequence);
    /* The source is told to hold still: its applied state is its durable one. */
    m->applied = m->durable = s->applied;
    m->sum = s->sum;
    m->words_from = m->applied;
    pthread_mutex_unlock(&m->mutex);
    pthread_mutex_unlock(&s->mutex);
    return OMEN_OK;
}

struct replica_fsm raft_machine_fsm(struct raft_machine *m)
{
    return (struct replica_fsm){ .self = m,
        .apply = machine_apply,
        .applied = machine_applied,
        .log_needed_from = machine_needed_from,
        .checkpoint = machine_checkpoint };
}

/* ---- nodes ---- */

void raft_nodes_init(struct raft_nodes *n, uint32_t count)
{
    memset(n, 0, sizeof *n);
    const char *tmp = getenv("TMPDIR");
    snprintf(n->dir, sizeof n->dir, "%s/omen-XXXXXX", tmp != NULL ? tmp : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(n->dir));
    n->count = count;
    replica_host_options_default(&n->options);
    n->options.log.vfs = vfs_posix();
    n->options.log.segment_bytes = 1u << 20;
    n->options.log.bytes_max = 32u << 20;
    n->options.cluster.cluster_id = 77;
    n->options.cluster.secret = secret;
    n->options.cluster.secret_len = sizeof secret;
    n->options.cluster.election_ms = 400;
    n->options.cluster.heartbeat_ms = 60;
    for (uint32_t i = 0; i < count; i++) {
        struct raft_node *node = &n->nodes[i];
        node->node_id = i + 1;
        snprintf(node->dir, sizeof node->dir, "%s/n%u", n->dir, i + 1);
        raft_machine_init(&node->machine);
    }
}

void raft_nodes_fini(struct raft_nodes *n)
{
    for (uint32_t i = 0; i < n->count; i++) {
        raft_node_down(n, i);
        raft_machine_fini(&n->nodes[i].machine);
    }
    ck_assert_int_eq(vfs_remove_tree(vfs_posix(), n->dir, NULL), OMEN_OK);
}

static void introduce(struct raft_node *a, const struct raft_node *b)
{
    char address[32];
    snprintf(address, sizeof address, "127.0.0.1:%u", b->port);
    ck_assert_int_eq(replica_host_set_peer(a->host, b->node_id, address, NULL), OMEN_OK);
}

void raft_node_up(struct raft_nodes *n, uint32_t i)
{
    struct raft_node *node = &n->nodes[i];
    char listen[32];
    struct err err = { 0 };
    struct replica_host_options o = n->options;
    snprintf(listen, sizeof listen, "127.0.0.1:%u", node->port);
    o.log.dir = node->dir;
    o.log.node_id = node->node_id;
    o.cluster.listen = listen;
    enum omen_err rc = replica_host_open(&o, &node->host, &err);
    ck_assert_msg(rc == OMEN_OK, "%s", err.message);
    node->port = replica_host_port(node->host);
    for (uint32_t j = 0; j < n->count; j++) {
        if (j == i || n->nodes[j].host == NULL) continue;
        introduce(node, &n->nodes[j]);
        introduce(&n->nodes[j], node);
    }
}

static void on_leader_change(void *arg, bool leads, const struct replica_member *leader, uint64_t term)
{
    struct raft_node *node = arg;
    (void)leads;
    (void)leader;
    (void)term;
    atomic_fetch_add(&node->leader_changes, 1);
}

void raft_node_open(struct raft_nodes *n, uint32_t i, uint64_t replica_id)
{
    struct raft_node *node = &n->nodes[i];
    struct err err = { 0 };
    struct replica_fsm fsm = raft_machine_fsm(&node->machine);
    struct replica_group_options o = { .group = 1,
        .replica_id = replica_id,
        .fsm = &fsm,
        .bases = { machine_fetch, machine_switch },
        .on_leader_change = on_leader_change,
        .arg = node };
    enum omen_err rc = replica_open_group(node->host, &o, &node->replica, &err);
    ck_assert_msg(rc == OMEN_OK, "%s", err.message);
}

void raft_node_down(struct raft_nodes *n, uint32_t i)
{
    struct raft_node *node = &n->nodes[i];
    replica_close(node->replica, false);
    replica_host_close(node->host);
    node->replica = NULL;
    node->host = NULL;
}

void raft_nodes_start(struct raft_nodes *n, uint32_t voters)
{
    struct replica_member members[RAFT_NODES_MAX];
    for (uint32_t i = 0; i < voters; i++)
        members[i] = (struct replica_member){ i + 1, n->nodes[i].node_id, REPLICA_VOTER };
    for (uint32_t i = 0; i < n->count; i++) {
        raft_node_up(n, i);
        if (i >= voters) continue;
        struct err err = { 0 };
        enum omen_err rc = replica_bootstrap(n->nodes[i].host, 1, i + 1, members, voters, &err);
        ck_assert_msg(rc == OMEN_OK, "%s", err.message);
        raft_node_open(n, i, i + 1);
    }
}

uint32_t raft_nodes_leader(struct raft_nodes *n, uint32_t but)
{
    uint64_t until = now_ms() + RAFT_WAIT_MS;
    while (now_ms() < until) {
        for (uint32_t i = 0; i < n->count; i++) {
            struct replica_status s;
            if (i == but || n->nodes[i].replica == NULL) continue;
            replica_status(n->nodes[i].replica, &s);
            if (s.leader) return i;
        }
        usleep(2000);
    }
    ck_abort_msg("no leader");
}

struct answer {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    bool over;
    enum omen_err rc;
    uint64_t sequence;
    struct err err;
};

static void answered(void *arg, enum omen_err result, uint64_t sequence, const struct err *err)
{
    struct answer *a = arg;
    pthread_mutex_lock(&a->mutex);
    a->rc = result;
    a->sequence = sequence;
    if (err != NULL) a->err = *err;
    a->over = true;
    pthread_cond_signal(&a->cond);
    pthread_mutex_unlock(&a->mutex);
}

static enum omen_err answer_wait(struct answer *a, uint64_t *sequence_out)
{
    pthread_mutex_lock(&a->mutex);
    while (!a->over) pthread_cond_wait(&a->cond, &a->mutex);
    pthread_mutex_unlock(&a->mutex);
    if (sequence_out != NULL) *sequence_out = a->sequence;
    return a->rc;
}

#define ANSWER                                                                                               \
    {                                                                                                        \
        .mutex = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER                                 \
    }

enum omen_err raft_node_put(struct raft_node *node, uint64_t word, uint32_t bytes, uint64_t *sequence_out)
{
    struct answer a = ANSWER;
    uint8_t *entry = mem_must_calloc(1, bytes);
    store_u64(entry, word);
    replica_propose(node->replica, entry, bytes, NULL, answered, &a);
    return answer_wait(&a, sequence_out);
}

uint64_t raft_nodes_put(struct raft_nodes *n, uint64_t word, uint32_t bytes)
{
    uint64_t until = now_ms() + RAFT_WAIT_MS, sequence;
    while (now_ms() < until) {
        uint32_t i = raft_nodes_leader(n, UINT32_MAX);
        enum omen_err rc = raft_node_put(&n->nodes[i], word, bytes, &sequence);
        if (rc == OMEN_OK) return sequence;
        ck_assert_msg(rc == OMEN_ENOTLEADER || rc == OMEN_EBUSY || rc == OMEN_EUNKNOWN, "%s", err_name(rc));
        usleep(5000);
    }
    ck_abort_msg("nothing committed");
}

enum omen_err raft_node_barrier(struct raft_node *node, uint64_t *sequence_out)
{
    struct answer a = ANSWER;
    replica_barrier(node->replica, answered, &a);
    return answer_wait(&a, sequence_out);
}

void raft_node_wait_applied(struct raft_node *node, uint64_t sequence)
{
    uint64_t until = now_ms() + RAFT_WAIT_MS;
    while (machine_applied(&node->machine) < sequence) {
        ck_assert_msg(now_ms() < until, "node %u stays at %u, wanted %u", (unsigned)node->node_id,
                (unsigned)machine_applied(&node->machine), (unsigned)sequence);
        usleep(2000);
    }
}

enum omen_err raft_node_change(struct raft_node *node, char kind, uint64_t replica_id, uint64_t arg)
{
    struct answer a = ANSWER;
    switch (kind) {
    case '+': replica_add(node->replica, replica_id, arg, answered, &a); break;
    case '-': replica_remove(node->replica, replica_id, answered, &a); break;
    case '=': replica_assign(node->replica, replica_id, (enum replica_member_role)arg, answered, &a); break;
    case '>': replica_transfer(node->replica, replica_id, answered, &a); break;
    default: ck_abort_msg("unknown change");
    }
    return answer_wait(&a, NULL);
}
