/* Loops and connections of a host, and which group a frame is for. See replica_raft_impl.h. */
#include "common/err.h"

#include <string.h>
#include <sys/random.h>

#include "common/check.h"
#include "common/hash.h"
#include "common/log.h"
#include "common/mem.h"
#include "consensus/replica_raft_impl.h"

uint64_t net_now_ms(const struct raft_net *net)
{
    return clock_monotonic_ns(net->host->options.clock) / 1000000;
}

uint32_t net_random(void)
{
    uint32_t v;
    while (getrandom(&v, sizeof v, 0) != sizeof v) continue;
    return v;
}

/* ---- which group ---- */

struct net_loop *net_loop_of(struct raft_net *net, uint64_t group)
{
    return &net->loops[hash64(&group, sizeof group) % net->loop_count];
}

static struct replica_raft **bucket_of(struct net_loop *l, uint64_t group)
{
    return &l->buckets[hash64(&group, sizeof group) >> 8 & (NET_BUCKETS - 1)];
}

void net_add(struct replica_raft *m)
{
    struct replica_raft **bucket = bucket_of(m->loop, m->replica->group);
    m->next = *bucket;
    *bucket = m;
}

void net_remove(struct replica_raft *m)
{
    struct replica_raft **link = bucket_of(m->loop, m->replica->group);
    while (*link != m) link = &(*link)->next;
    *link = m->next;
}

static void frame_deliver(struct net_loop *l, uint64_t node_id, struct frame *frame)
{
    struct replica_raft *m = *bucket_of(l, frame->header.group);
    while (m != NULL &&
            (m->replica->group != frame->header.group || m->replica->replica_id != frame->header.to))
        m = m->next;
    if (m != NULL) {
        replica_raft_frame(m, frame, node_id, net_now_ms(l->net));
        return;
    }
    atomic_fetch_add_explicit(&l->net->homeless, 1, memory_order_relaxed); /* no message makes a group (C7) */
    frame_free(frame);
}

/* A frame on its way to another loop. */
struct frame_task {
    struct loop_task task; /* first */
    struct net_loop *loop;
    uint64_t node_id;
    struct frame *frame;
};

static void frame_task_run(struct loop_task *task)
{
    struct frame_task *t = (struct frame_task *)task;
    frame_deliver(t->loop, t->node_id, t->frame);
    mem_free(t);
}

static void on_frame(void *arg, uint64_t node_id, struct frame *frame)
{
    struct raft_net *net = arg;
    struct net_loop *l = net_loop_of(net, frame->header.group);
    if (l->first) {
        frame_deliver(l, node_id, frame);
        return;
    }
    struct frame_task *t = mem_must_alloc(sizeof *t);
    *t = (struct frame_task){ .task = { .run = frame_task_run },
        .loop = l,
        .node_id = node_id,
        .frame = frame };
    loop_post(l->loop, &t->task);
}

static void on_tick(void *arg)
{
    struct net_loop *l = arg;
    uint64_t now = net_now_ms(l->net);
    for (uint32_t i = 0; i < NET_BUCKETS; i++) {
        for (struct replica_raft *m = l->buckets[i]; m != NULL; m = m->next) replica_raft_tick(m, now);
    }
    if (l->first && l->net->transport != NULL) transport_tick(l->net->transport);
}

/* ---- open and close ---- */

static uint64_t transport_clock(void *arg) { return net_now_ms(arg); }

static enum omen_err options_check(const struct replica_cluster_options *o, struct err *err)
{
    if (o->loops == 0 || o->loops > NET_LOOPS_MAX)
        return err_set(err, OMEN_EINVAL, "loops", "must be between 1 and %u", NET_LOOPS_MAX);
    if (o->heartbeat_ms < LOOP_TICK_MS || o->election_ms < 3 * o->heartbeat_ms || o->election_ms > 60000)
        return err_set(err, OMEN_EINVAL, "election_ms",
                "must be at least three heartbeats of at least %u ms, and at most 60000", LOOP_TICK_MS);
    return OMEN_OK;
}

static enum omen_err transport_open(struct raft_net *net, struct err *err)
{
    const struct replica_cluster_options *o = &net->host->options.cluster;
    struct transport_options options = {
        .loop = net->loops[0].loop,
        .cluster_id = o->cluster_id,
        .node_id = net->host->options.log.node_id,
        .secret = o->secret,
        .secret_len = o->secret_len,
        .listen = o->listen,
        .now_ms = transport_clock,
        .on_frame = on_frame,
        .arg = net,
    };
    return transport_new(&options, &net->transport, err);
}

enum omen_err raft_net_open(struct replica_host *host, struct err *err)
{
    enum omen_err rc = options_check(&host->options.cluster, err);
    if (rc != OMEN_OK) return rc;
    struct raft_net *net = mem_must_calloc(1, sizeof *net);
    net->host = host;
    host->net = net;
    pthread_mutex_init(&net->mutex, NULL);
    pthread_cond_init(&net->cond, NULL);
    uint32_t count = host->options.cluster.loops;
    net->loops = mem_must_calloc(count, sizeof *net->loops);
    for (uint32_t i = 0; rc == OMEN_OK && i < count; i++) {
        net->loops[i] = (struct net_loop){ .net = net, .first = i == 0 };
        rc = loop_new(on_tick, &net->loops[i], &net->loops[i].loop, err);
        if (rc == OMEN_OK) net->loop_count++;
    }
    if (rc == OMEN_OK) rc = transport_open(net, err);
    for (uint32_t i = 0; rc == OMEN_OK && i < count; i++) rc = loop_start(net->loops[i].loop, err);
    /* The secret is the transport's now. */
    host->options.cluster.secret = NULL;
    host->options.cluster.listen = NULL;
    return rc;
}

static void transport_gone(void *arg)
{
    struct raft_net *net = arg;
    pthread_mutex_lock(&net->mutex);
    net->closed = true;
    pthread_cond_signal(&net->cond);
    pthread_mutex_unlock(&net->mutex);
}

static void transport_end(void *arg)
{
    struct raft_net *net = arg;
    transport_close(net->transport, transport_gone, net);
}

void raft_net_close(struct replica_host *host)
{
    struct raft_net *net = host->net;
    if (net == NULL) return;
    if (net->transport != NULL && loop_started(net->loops[0].loop)) {
        loop_call(net->loops[0].loop, transport_end, net);
        pthread_mutex_lock(&net->mutex);
        while (!net->closed) pthread_cond_wait(&net->cond, &net->mutex);
        pthread_mutex_unlock(&net->mutex);
    } else if (net->transport != NULL) {
        transport_close(net->transport, NULL, NULL); /* the loop runs once more when it is stopped */
    }
    for (uint32_t i = 0; i < net->loop_count; i++) loop_stop(net->loops[i].loop);
    transport_free(net->transport);
    pthread_cond_destroy(&net->cond);
    pthread_mutex_destroy(&net->mutex);
    mem_free(net->loops);
    mem_free(net);
    host->net = NULL;
}

/* ---- the door ---- */

struct set_peer {
    struct raft_net *net;
    uint64_t node_id;
    const char *address;
    enum omen_err rc;
    struct err *err;
};

static void set_peer_run(void *arg)
{
    struct set_peer *p = arg;
    p->rc = transport_set_peer(p->net->transport, p->node_id, p->address, p->err);
}

enum omen_err replica_host_set_peer(struct replica_host *host, uint64_t node_id, const char *address,
        struct err *err)
{
    if (host->net == NULL) return err_set(err, OMEN_EINVAL, "cluster_id", "this host is not in a cluster");
    struct set_peer p = { host->net, node_id, address, OMEN_OK, err };
    loop_call(host->net->loops[0].loop, set_peer_run, &p);
    return p.rc;
}

uint16_t replica_host_port(const struct replica_host *host)
{
    return host->net != NULL ? transport_port(host->net->transport) : 0;
}

void replica_host_net_stats(struct replica_host *host, struct replica_net_stats *stats_out)
{
    memset(stats_out, 0, sizeof *stats_out);
    if (host->net == NULL) return;
    transport_stats(host->net->transport, stats_out);
    stats_out->frames_homeless = atomic_load_explicit(&host->net->homeless, memory_order_relaxed);
}
