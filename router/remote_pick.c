/* Which replica answers, and when a second one is asked as well. */
#include "common/err.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "router/remote_impl.h"

#define LATENCY_FLOOR_NS 50000u /* below it differences say nothing about load */
#define P95_EVERY 64u
#define CREDIT_OF_A_HEDGE 100
#define CREDIT_MAX (10 * CREDIT_OF_A_HEDGE)

bool call_is_read(const struct shard_call *call)
{
    if (call->kind == CALL_CLUSTER) return !call->in.cluster.changes;
    return call->kind != CALL_WRITE && call->kind != CALL_CATALOG;
}

bool call_needs_leader(const struct shard_call *call)
{
    if (call->kind == CALL_WRITE) return true;
    return call_is_read(call) && call->kind < CALL_STATS && call->consistency == CONSISTENCY_LINEARIZABLE;
}

/* ---- picking ---- */

static bool was_tried(uint32_t node_id, const uint32_t *tried, uint32_t tried_count)
{
    for (uint32_t i = 0; i < tried_count; i++)
        if (tried[i] == node_id) return true;
    return false;
}

static bool is_down(const struct endpoint *endpoint, uint64_t now_ns)
{
    return atomic_load_explicit(&endpoint->silent, memory_order_relaxed) ||
            atomic_load_explicit(&endpoint->down_until_ns, memory_order_relaxed) > now_ns;
}

/* Smaller is better: what is expected to pass before an answer, behind the calls that are there already. */
static uint64_t load_of(const struct endpoint *endpoint)
{
    uint64_t latency_ns = atomic_load_explicit(&endpoint->latency_ns, memory_order_relaxed);
    if (latency_ns < LATENCY_FLOOR_NS) latency_ns = LATENCY_FLOOR_NS;
    return (atomic_load_explicit(&endpoint->outstanding, memory_order_relaxed) + 1ull) * latency_ns;
}

/* How willingly a replica is asked, before load decides: 0 is best. */
static uint32_t rank_of(const struct shard_call *call, const struct shard_route *route, uint32_t replica,
        uint32_t node_id, const struct endpoint *endpoint, uint64_t now_ns)
{
    uint32_t leader = atomic_load_explicit(&route->leader, memory_order_relaxed);
    bool leads = leader == node_id;
    uint32_t rank = is_down(endpoint, now_ns) ? 4 : 0;
    if (call_needs_leader(call)) return rank + (leads ? 0 : 1);
    bool fresh = call->consistency != CONSISTENCY_SESSION || call->kind == CALL_STATS ||
            atomic_load_explicit(&route->sequences[replica], memory_order_relaxed) >= call->token_sequence;
    if (fresh) return rank;
    return rank + (leads ? 1 : 2);
}

static struct pick pick_replica(struct remote *remote, const struct routing *routing,
        const struct shard_call *call, const struct map_place *place, struct shard_route *route,
        const uint32_t *tried, uint32_t tried_count)
{
    struct pick best = { 0, NULL };
    uint32_t best_rank = UINT32_MAX;
    uint64_t best_load = 0, now_ns = remote_now_ns(remote);
    for (uint32_t r = 0; r < place->shard->replica_count; r++) {
        uint32_t node_id = place->shard->node_ids[r];
        struct endpoint *endpoint = routing_endpoint(routing, node_id);
        if (endpoint == NULL || was_tried(node_id, tried, tried_count)) continue;
        uint32_t rank = rank_of(call, route, r, node_id, endpoint, now_ns);
        uint64_t load = load_of(endpoint);
        if (rank > best_rank || (rank == best_rank && load >= best_load)) continue;
        best = (struct pick){ node_id, endpoint };
        best_rank = rank;
        best_load = load;
    }
    return best;
}

/* Changes of the catalog are made by whoever made the last one, else by any node that answers. */
static struct pick pick_any(struct remote *remote, const struct routing *routing, const uint32_t *tried,
        uint32_t tried_count)
{
    struct pick best = { 0, NULL };
    uint32_t best_rank = UINT32_MAX, maker = atomic_load(&remote->catalog_node);
    uint64_t now_ns = remote_now_ns(remote);
    for (uint32_t i = 0; i < routing->node_count; i++) {
        const struct node_ref *node = &routing->nodes[i];
        if (was_tried(node->node_id, tried, tried_count)) continue;
        uint32_t rank = (is_down(node->endpoint, now_ns) ? 2 : 0) + (node->node_id == maker ? 0 : 1);
        if (rank >= best_rank) continue;
        best = (struct pick){ node->node_id, node->endpoint };
        best_rank = rank;
    }
    return best;
}

/* Before there is a map nobody has an id: a configured address stands in for one, by an id that no node has. Who looks is
 * answered by any of them. A change is the making of a cluster, and two of them would be a disaster: it is asked of one
 * address only, the same one whichever router asks, and only while all answer, for a silent one may have a cluster. */
static struct pick pick_seed(struct remote *remote, const struct shard_call *call, const uint32_t *tried,
        uint32_t tried_count)
{
    struct pick best = { 0, NULL };
    bool looks = call_is_read(call), all = true, best_down = false;
    uint64_t now_ns = remote_now_ns(remote);
    pthread_mutex_lock(&remote->lock);
    for (uint32_t i = 0; i < remote->endpoint_count; i++) {
        struct endpoint *e = remote->endpoints[i];
        if (!e->seed) continue;
        all = all && e->answered;
        bool down = is_down(e, now_ns);
        if (looks && was_tried(UINT32_MAX - i, tried, tried_count)) continue;
        if (best.endpoint != NULL &&
                (looks ? down || !best_down : strcmp(e->address, best.endpoint->address) > 0))
            continue;
        best = (struct pick){ UINT32_MAX - i, e };
        best_down = down;
    }
    pthread_mutex_unlock(&remote->lock);
    if (!looks && (!all || was_tried(best.node_id, tried, tried_count))) best.endpoint = NULL;
    return best; /* configured addresses stay in the table until the remote ends */
}

void remote_silent_seed(struct remote *remote, char *out, size_t out_bytes)
{
    snprintf(out, out_bytes, "no node answers");
    pthread_mutex_lock(&remote->lock);
    for (uint32_t i = 0; i < remote->endpoint_count; i++) {
        const struct endpoint *e = remote->endpoints[i];
        if (!e->seed || e->answered) continue;
        snprintf(out, out_bytes, "%s does not answer: %.100s", e->address,
                e->trouble[0] == '\0' ? "not asked yet" : e->trouble);
        break;
    }
    pthread_mutex_unlock(&remote->lock);
}

struct pick remote_pick(struct remote *remote, const struct routing *routing, const struct shard_call *call,
        const struct map_place *place, struct shard_route *route, const uint32_t *tried, uint32_t tried_count)
{
    if (routing == NULL) return pick_seed(remote, call, tried, tried_count);
    if (place == NULL) return pick_any(remote, routing, tried, tried_count);
    return pick_replica(remote, routing, call, place, route, tried, tried_count);
}

void remote_learn(const struct map_place *place, struct shard_route *route, const struct shard_call *call,
        uint32_t node_id, bool led)
{
    if (led) atomic_store(&route->leader, node_id);
    for (uint32_t r = 0; r < place->shard->replica_count; r++) {
        if (place->shard->node_ids[r] != node_id) continue;
        uint64_t known = atomic_load(&route->sequences[r]);
        while (known < call->sequence &&
                !atomic_compare_exchange_weak(&route->sequences[r], &known, call->sequence)) {}
    }
}

/* ---- hedging ---- */

static int u32_order(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* Needs the lock. */
static void p95_recompute(struct latencies *l)
{
    uint32_t sorted[REMOTE_SAMPLES];
    uint32_t count = l->count < REMOTE_SAMPLES ? (uint32_t)l->count : REMOTE_SAMPLES;
    memcpy(sorted, l->samples_us, count * sizeof sorted[0]);
    qsort(sorted, count, sizeof sorted[0], u32_order);
    atomic_store(&l->p95_ns, sorted[count * 95 / 100] * 1000ull);
}

void latency_note(struct remote *remote, enum shard_call_kind kind, struct endpoint *endpoint,
        uint64_t took_ns)
{
    uint64_t was_ns = atomic_load_explicit(&endpoint->latency_ns, memory_order_relaxed);
    uint64_t smoothed_ns = was_ns == 0 ? took_ns : was_ns - was_ns / 8 + took_ns / 8;
    atomic_store_explicit(&endpoint->latency_ns, smoothed_ns, memory_order_relaxed);
    struct latencies *l = &remote->latencies[kind];
    pthread_mutex_lock(&l->lock);
    l->samples_us[l->count++ % REMOTE_SAMPLES] = took_ns / 1000 > UINT32_MAX ? UINT32_MAX
                                                                             : (uint32_t)(took_ns / 1000);
    if (l->count % P95_EVERY == 0) p95_recompute(l);
    pthread_mutex_unlock(&l->lock);
}

uint64_t hedge_delay_ns(struct remote *remote, enum shard_call_kind kind)
{
    if (remote->options.hedge_percent == 0) return 0;
    uint64_t p95_ns = atomic_load(&remote->latencies[kind].p95_ns);
    if (p95_ns == 0) return 0;
    return p95_ns < REMOTE_HEDGE_MIN_NS ? REMOTE_HEDGE_MIN_NS : p95_ns;
}

void hedge_earn(struct remote *remote)
{
    if (atomic_load_explicit(&remote->hedge_credit, memory_order_relaxed) >= CREDIT_MAX) return;
    atomic_fetch_add_explicit(&remote->hedge_credit, remote->options.hedge_percent, memory_order_relaxed);
}

bool hedge_spend(struct remote *remote)
{
    int64_t credit = atomic_load(&remote->hedge_credit);
    while (credit >= CREDIT_OF_A_HEDGE) {
        if (atomic_compare_exchange_weak(&remote->hedge_credit, &credit, credit - CREDIT_OF_A_HEDGE))
            return true;
    }
    return false;
}
