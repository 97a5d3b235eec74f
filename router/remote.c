/* The remote's life, and the functions of its service that are not about calls. */
#include "common/err.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "common/check.h"
#include "common/log.h"
#include "router/remote_impl.h"

void remote_options_default(struct remote_options *options)
{
    *options = (struct remote_options){
        .clock = clock_system(),
        .poll_ns = 1000 * MS_NS,
        .retry_ns = 5000 * MS_NS,
        .hedge_percent = 5,
    };
}

uint64_t remote_now_ns(const struct remote *remote) { return clock_monotonic_ns(remote->options.clock); }

/* Never the same twice in one process, and not guessed from outside it. */
uint64_t remote_nonce(struct remote *remote)
{
    uint64_t z = remote->nonce_first + 0x9e3779b97f4a7c15u * atomic_fetch_add(&remote->nonces, 1);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* ---- service ---- */

static struct map *service_map_acquire(void *self)
{
    struct routing *routing = routing_acquire(self);
    if (routing == NULL) return NULL;
    struct map *map = map_ref(routing->index->map);
    routing_unref(routing);
    return map;
}

static void service_map_refresh(void *self, uint64_t deadline_ns, void (*done)(void *arg), void *arg)
{
    remote_refresh(self, done, arg); /* a round ends within REMOTE_POLL_TIMEOUT_MS, whatever the deadline */
}

static const char *service_not_ready(void *self)
{
    struct remote *remote = self;
    pthread_mutex_lock(&remote->lock);
    uint32_t up = 0;
    for (uint32_t i = 0; i < remote->endpoint_count; i++) up += remote->endpoints[i]->answered;
    bool map = remote->routing != NULL;
    pthread_mutex_unlock(&remote->lock);
    if (atomic_load(&remote->stopping)) return "stopping";
    if (!map && up > 0) return "the nodes are not part of a cluster yet";
    if (!map) return "no node has answered yet";
    return up == 0 ? "no node answers" : NULL;
}

static void put_u64(struct doc_builder *b, const char *key, uint64_t v)
{
    doc_key(b, key, strlen(key));
    doc_put_i64(b, (int64_t)(v & INT64_MAX));
}

static void put_text(struct doc_builder *b, const char *key, const char *text)
{
    doc_key(b, key, strlen(key));
    doc_put_string(b, text, utf8_valid(text, strlen(text)) ? strlen(text) : 0);
}

static bool is_ours(struct bytes key)
{
    static const char *const ours[] = { "address", "up", "trouble", "node", "epoch", "not_ready",
        "calls_outstanding", "read_latency_us" };
    for (size_t i = 0; i < sizeof ours / sizeof ours[0]; i++)
        if (key.len == strlen(ours[i]) && memcmp(key.data, ours[i], key.len) == 0) return true;
    return false;
}

/* What we see of a node, and beside it what the node said of itself. Needs remote->lock. */
static void put_endpoint(struct doc_builder *b, const struct endpoint *e)
{
    doc_begin_object(b);
    put_text(b, "address", e->address);
    doc_key(b, "up", 2);
    doc_put_bool(b, e->answered);
    if (!e->answered) put_text(b, "trouble", e->trouble);
    put_u64(b, "node", e->node_id);
    put_u64(b, "epoch", e->epoch);
    if (e->not_ready[0] != '\0') put_text(b, "not_ready", e->not_ready);
    put_u64(b, "calls_outstanding", atomic_load(&e->outstanding));
    put_u64(b, "read_latency_us", atomic_load(&e->latency_ns) / 1000);
    if (e->status.len > 0) {
        struct doc_iter it = doc_iter((struct doc){ e->status.data, (uint32_t)e->status.len });
        struct bytes key;
        struct doc value;
        while (doc_next(&it, &key, &value)) {
            if (is_ours(key)) continue;
            doc_key(b, (const char *)key.data, key.len);
            doc_put_doc(b, value);
        }
    }
    doc_end(b);
}

static void service_status(void *self, struct doc_builder *b)
{
    struct remote *remote = self;
    doc_key(b, "nodes", 5);
    doc_begin_array(b);
    pthread_mutex_lock(&remote->lock);
    for (uint32_t i = 0; i < remote->endpoint_count; i++) put_endpoint(b, remote->endpoints[i]);
    pthread_mutex_unlock(&remote->lock);
    doc_end(b);
}

const struct shard_service *remote_service(struct remote *remote) { return &remote->service; }

/* ---- life ---- */

static void metrics_register(struct remote *remote)
{
    struct metrics *m = remote->options.metrics;
    struct remote_metrics *r = &remote->metrics;
    r->attempts = metrics_counter(m, "omendb_router_attempts_total",
            "Messages with a shard call sent to nodes", NULL);
    r->retries = metrics_counter(m, "omendb_router_retries_total",
            "Of those, after an earlier attempt failed", NULL);
    r->hedges = metrics_counter(m, "omendb_router_hedges_total",
            "Reads sent to a second replica because the first was slow", NULL);
    r->hedge_wins = metrics_counter(m, "omendb_router_hedge_wins_total",
            "Of those, answered first by the second", NULL);
    r->wrong_epoch = metrics_counter(m, "omendb_router_wrong_epoch_total",
            "Calls refused because our map was old", NULL);
    r->not_leader = metrics_counter(m, "omendb_router_not_leader_total",
            "Calls that met a replica that does not lead", NULL);
    r->unknown = metrics_counter(m, "omendb_router_unknown_total", "Writes whose outcome stayed unknown",
            NULL);
    r->maps = metrics_counter(m, "omendb_router_maps_total", "Newer maps taken over", NULL);
    r->unproven = metrics_counter(m, "omendb_router_unproven_total",
            "Answers that did not prove the cluster secret, or could not be one", NULL);
    r->abandoned = metrics_counter(m, "omendb_router_abandoned_total",
            "Attempts given up because their node had fallen silent", NULL);
    r->nodes_up = metrics_gauge(m, "omendb_router_nodes_up", "Nodes that answered the last round of polls",
            NULL);
    r->epoch = metrics_gauge(m, "omendb_router_map_epoch", "Epoch of the map that is routed by", NULL);
}

static enum omen_err seeds_add(struct remote *remote, struct err *err)
{
    const struct remote_options *o = &remote->options;
    if (o->seed_count == 0 || o->seed_count > REMOTE_SEEDS_MAX)
        return err_set(err, OMEN_EINVAL, "nodes", "1 to %d addresses of nodes are needed, not %u",
                REMOTE_SEEDS_MAX, o->seed_count);
    for (uint32_t i = 0; i < o->seed_count; i++) {
        if (strlen(o->seeds[i]) > OMEN_ADDRESS_BYTES_MAX)
            return err_set(err, OMEN_EINVAL, "nodes", "an address has at most %d bytes",
                    OMEN_ADDRESS_BYTES_MAX);
        struct endpoint *e = remote_endpoint_add(remote, o->seeds[i], err);
        if (e == NULL) return OMEN_EINVAL;
        e->seed = true;
    }
    return OMEN_OK;
}

static void endpoints_close(struct remote *remote)
{
    for (uint32_t i = 0; i < remote->endpoint_count; i++) endpoint_free(remote->endpoints[i]);
    mem_free(remote->endpoints);
    remote->endpoints = NULL;
    remote->endpoint_count = 0;
}

static void remote_free(struct remote *remote)
{
    for (int k = 0; k < REMOTE_KINDS; k++) pthread_mutex_destroy(&remote->latencies[k].lock);
    pthread_cond_destroy(&remote->quiet);
    pthread_mutex_destroy(&remote->lock);
    explicit_bzero(&remote->options.key, sizeof remote->options.key);
    mem_free(remote);
}

enum omen_err remote_start(const struct remote_options *options, struct remote **remote_out, struct err *err)
{
    *remote_out = NULL;
    struct remote *remote = mem_must_calloc(1, sizeof *remote);
    remote->options = *options;
    remote->service = (struct shard_service){
        .self = remote,
        .submit = remote_submit,
        .release = remote_release,
        .map_acquire = service_map_acquire,
        .not_ready = service_not_ready,
        .status = service_status,
        .map_refresh = service_map_refresh,
    };
    pthread_mutex_init(&remote->lock, NULL);
    pthread_cond_init(&remote->quiet, NULL);
    for (int k = 0; k < REMOTE_KINDS; k++) pthread_mutex_init(&remote->latencies[k].lock, NULL);
    if (getrandom(&remote->nonce_first, sizeof remote->nonce_first, 0) != sizeof remote->nonce_first)
        remote->nonce_first = remote_now_ns(remote);
    if (options->metrics != NULL) metrics_register(remote);
    enum omen_err rc = seeds_add(remote, err);
    if (rc == OMEN_OK) rc = remote_timers_start(&remote->timers, options->clock, err);
    if (rc != OMEN_OK) {
        endpoints_close(remote);
        remote_free(remote);
        return rc;
    }
    remote_poll_begin(remote);
    *remote_out = remote;
    return OMEN_OK;
}

/* Attempts that lost may still be on their way: closing the connections brings them home. */
void remote_stop(struct remote *remote)
{
    atomic_store(&remote->stopping, true);
    remote_timers_stop(&remote->timers);
    remote_poll_end(remote);
    pthread_mutex_lock(&remote->lock);
    struct endpoint **endpoints = remote->endpoints;
    uint32_t count = remote->endpoint_count;
    struct routing *routing = remote->routing;
    remote->endpoints = NULL;
    remote->endpoint_count = 0;
    remote->routing = NULL;
    pthread_mutex_unlock(&remote->lock);
    for (uint32_t i = 0; i < count; i++) net_client_close(endpoints[i]->client);
    pthread_mutex_lock(&remote->lock);
    while (remote->calls > 0) pthread_cond_wait(&remote->quiet, &remote->lock);
    pthread_mutex_unlock(&remote->lock);
    routing_unref(routing);
    for (uint32_t i = 0; i < count; i++) {
        CHECK(atomic_load(&endpoints[i]->refs) == 1);
        CHECK(endpoints[i]->flying == NULL);
        pthread_mutex_destroy(&endpoints[i]->flying_lock);
        buf_fini(&endpoints[i]->status);
        mem_free(endpoints[i]);
    }
    mem_free(endpoints);
    remote_free(remote);
}
