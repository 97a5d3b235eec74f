/* The map and the addresses of its nodes, as one snapshot that calls hold while they are under way.
 *
 * A newer map replaces the snapshot; what was learned of shards (who leads, how far each replica is) goes over to the new
 * one where shard and replica are still the same. Another incarnation takes nothing over: its sequences mean other
 * things. */
#include "common/err.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/check.h"
#include "common/log.h"
#include "router/remote_impl.h"

/* ---- endpoints ---- */

void endpoint_ref(struct endpoint *endpoint) { atomic_fetch_add(&endpoint->refs, 1); }
void endpoint_unref(struct endpoint *endpoint)
{
    uint32_t before = atomic_fetch_sub(&endpoint->refs, 1);
    CHECK(before > 1); /* the table's own goes last, in endpoint_free */
}

void endpoint_heard(struct remote *remote, struct endpoint *endpoint)
{
    atomic_store_explicit(&endpoint->heard_ns, remote_now_ns(remote), memory_order_relaxed);
    if (atomic_load_explicit(&endpoint->silent, memory_order_relaxed)) atomic_store(&endpoint->silent, false);
}

void endpoint_free(struct endpoint *endpoint)
{
    net_client_close(endpoint->client);
    pthread_mutex_destroy(&endpoint->flying_lock);
    buf_fini(&endpoint->status);
    mem_free(endpoint);
}

void endpoint_down(struct remote *remote, struct endpoint *endpoint)
{
    atomic_store(&endpoint->down_until_ns, remote_now_ns(remote) + REMOTE_DOWN_NS);
}

struct endpoint *remote_endpoint_add(struct remote *remote, const char *address, struct err *err)
{
    for (uint32_t i = 0; i < remote->endpoint_count; i++)
        if (strcmp(remote->endpoints[i]->address, address) == 0) return remote->endpoints[i];
    if (remote->endpoint_count == REMOTE_ENDPOINTS_MAX) {
        err_set(err, OMEN_ETOOBIG, "", "more than %u addresses of nodes", REMOTE_ENDPOINTS_MAX);
        return NULL;
    }
    struct endpoint *endpoint = mem_must_calloc(1, sizeof *endpoint);
    if (net_client_open(address, SHARD_MESSAGE_BYTES_MAX, &endpoint->client, err) != OMEN_OK) {
        mem_free(endpoint);
        return NULL;
    }
    snprintf(endpoint->address, sizeof endpoint->address, "%s", address);
    atomic_init(&endpoint->refs, 1);
    pthread_mutex_init(&endpoint->flying_lock, NULL);
    buf_init(&endpoint->status);
    remote->endpoints = mem_must_realloc(remote->endpoints,
            (remote->endpoint_count + 1) * sizeof(struct endpoint *));
    remote->endpoints[remote->endpoint_count++] = endpoint;
    return endpoint;
}

/* ---- routing ---- */

struct routing *routing_ref(struct routing *routing)
{
    atomic_fetch_add_explicit(&routing->refs, 1, memory_order_relaxed);
    return routing;
}

void routing_unref(struct routing *routing)
{
    if (routing == NULL) return;
    uint32_t before = atomic_fetch_sub_explicit(&routing->refs, 1, memory_order_acq_rel);
    CHECK(before > 0);
    if (before > 1) return;
    for (uint32_t i = 0; i < routing->node_count; i++) endpoint_unref(routing->nodes[i].endpoint);
    map_index_unref(routing->index);
    mem_free(routing->routes);
    mem_free(routing->nodes);
    mem_free(routing);
}

struct routing *routing_acquire(struct remote *remote)
{
    pthread_mutex_lock(&remote->lock);
    struct routing *routing = remote->routing == NULL ? NULL : routing_ref(remote->routing);
    pthread_mutex_unlock(&remote->lock);
    return routing;
}

struct endpoint *routing_endpoint(const struct routing *routing, uint32_t node_id)
{
    uint32_t low = 0, high = routing->node_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (routing->nodes[middle].node_id < node_id)
            low = middle + 1;
        else
            high = middle;
    }
    bool found = low < routing->node_count && routing->nodes[low].node_id == node_id;
    return found ? routing->nodes[low].endpoint : NULL;
}

static int node_order(const void *a, const void *b)
{
    uint32_t x = ((const struct node_ref *)a)->node_id, y = ((const struct node_ref *)b)->node_id;
    return (x > y) - (x < y);
}

/* Each node once; of several addresses the one that answered, and of those the one that the directory lists. */
static void routing_nodes(struct remote *remote, struct routing *routing)
{
    routing->nodes = mem_must_calloc(remote->endpoint_count + 1, sizeof *routing->nodes);
    for (uint32_t i = 0; i < remote->endpoint_count; i++) {
        struct endpoint *e = remote->endpoints[i];
        if (e->node_id == 0) continue;
        uint32_t at = 0;
        while (at < routing->node_count && routing->nodes[at].node_id != e->node_id) at++;
        if (at == routing->node_count) {
            routing->nodes[routing->node_count++] = (struct node_ref){ e->node_id, e };
            continue;
        }
        const struct endpoint *have = routing->nodes[at].endpoint;
        bool better = e->answered != have->answered ? e->answered : e->listed && !have->listed;
        if (better) routing->nodes[at].endpoint = e;
    }
    for (uint32_t i = 0; i < routing->node_count; i++) endpoint_ref(routing->nodes[i].endpoint);
    qsort(routing->nodes, routing->node_count, sizeof *routing->nodes, node_order);
}

static void route_carry(const struct routing *old, struct routing *routing, uint32_t at)
{
    const struct map_place *place = &routing->index->places[at];
    const struct map_place *was = map_index_find(old->index, place->shard_id);
    if (was == NULL) return;
    struct shard_route *from = &old->routes[was - old->index->places], *to = &routing->routes[at];
    uint32_t leader = atomic_load(&from->leader);
    for (uint32_t r = 0; r < place->shard->replica_count; r++) {
        if (place->shard->node_ids[r] == leader) atomic_store(&to->leader, leader);
        for (uint32_t w = 0; w < was->shard->replica_count; w++) {
            if (was->shard->replica_ids[w] != place->shard->replica_ids[r]) continue;
            atomic_store(&to->sequences[r], atomic_load(&from->sequences[w]));
        }
    }
}

void remote_routing_rebuild(struct remote *remote, struct map *map)
{
    struct routing *old = remote->routing;
    if (map == NULL && old == NULL) return;
    struct routing *routing = mem_must_calloc(1, sizeof *routing);
    atomic_init(&routing->refs, 1);
    if (map == NULL) {
        routing->index = map_index_ref(old->index);
    } else {
        routing->index = map_index_new(map);
        if (routing->index == NULL)
            panic("no memory for an index over %u collections", map->collection_count);
    }
    routing->routes = mem_must_calloc(routing->index->count + 1, sizeof *routing->routes);
    bool same = old != NULL && old->index->map->incarnation == routing->index->map->incarnation;
    for (uint32_t i = 0; same && i < routing->index->count; i++) route_carry(old, routing, i);
    routing_nodes(remote, routing);
    remote->routing = routing;
    if (remote->metrics.epoch != NULL) metric_set(remote->metrics.epoch, (int64_t)routing->index->map->epoch);
    routing_unref(old);
}

void remote_map_install(struct remote *remote, struct map *map)
{
    pthread_mutex_lock(&remote->lock);
    const struct map *have = remote->routing == NULL ? NULL : remote->routing->index->map;
    bool other = have == NULL || have->incarnation != map->incarnation;
    bool newer = other || map->epoch > have->epoch;
    if (newer) remote_routing_rebuild(remote, map);
    pthread_mutex_unlock(&remote->lock);
    if (!newer) return;
    if (remote->metrics.maps != NULL) metric_add(remote->metrics.maps, 1);
    LOG_INFO("router.map", "epoch=%llu incarnation=%llu collections=%u", (unsigned long long)map->epoch,
            (unsigned long long)map->incarnation, map->collection_count);
}
