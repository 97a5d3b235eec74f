/* Snapshots of the cluster's state: copied whole by a change, shared by references, looked up by id. */
#include <stdlib.h>
#include <string.h>

#include "common/check.h"
#include "node/cluster/state.h"

static void state_free(struct cluster_state *s)
{
    mem_free(s->nodes);
    mem_free(s->ops);
    mem_free(s->history);
    mem_free(s->plans);
    mem_free(s->plan_history);
    mem_free(s->shards);
    mem_free(s->results);
    map_unref(s->map);
    mem_free(s);
}

struct cluster_state *cluster_state_ref(struct cluster_state *state)
{
    uint32_t before = atomic_fetch_add_explicit(&state->refs, 1, memory_order_relaxed);
    CHECK(before > 0);
    return state;
}

void cluster_state_unref(struct cluster_state *state)
{
    if (state == NULL) return;
    uint32_t before = atomic_fetch_sub_explicit(&state->refs, 1, memory_order_acq_rel);
    CHECK(before > 0);
    if (before == 1) state_free(state);
}

struct cluster_state *cluster_state_new(uint64_t incarnation)
{
    struct cluster_state *s = mem_calloc(1, sizeof *s);
    struct map *map = mem_calloc(1, sizeof *map);
    if (s == NULL || map == NULL) {
        mem_free(s);
        mem_free(map);
        return NULL;
    }
    map->epoch = 1;
    map->incarnation = incarnation;
    atomic_init(&map->refs, 1);
    s->version = FEATURE_NONE;
    s->next_collection = 1;
    s->next_group = CATALOG_GROUP + 1;
    s->next_replica = 2; /* 1 is the first replica of the cluster group */
    s->next_node = 1;
    s->next_op = 1;
    s->map = map;
    atomic_init(&s->refs, 1);
    return s;
}

static bool items_copy(void *to, const void *items, uint32_t count, size_t item_bytes)
{
    void *copy = mem_calloc((size_t)count + 1, item_bytes);
    memcpy(to, &copy, sizeof copy);
    if (copy != NULL && count > 0) memcpy(copy, items, count * item_bytes);
    return copy != NULL;
}

struct cluster_state *cluster_state_clone(const struct cluster_state *state)
{
    struct cluster_state *s = mem_alloc(sizeof *s);
    if (s == NULL) return NULL;
    *s = *state;
    atomic_init(&s->refs, 1);
    s->nodes = NULL;
    s->ops = s->history = NULL;
    s->plans = s->plan_history = NULL;
    s->shards = NULL;
    s->results = NULL;
    s->map = map_clone(state->map);
    bool whole = s->map != NULL && items_copy(&s->nodes, state->nodes, s->node_count, sizeof *s->nodes) &&
            items_copy(&s->ops, state->ops, s->op_count, sizeof *s->ops) &&
            items_copy(&s->history, state->history, s->history_count, sizeof *s->history) &&
            items_copy(&s->plans, state->plans, s->plan_count, sizeof *s->plans) &&
            items_copy(&s->plan_history, state->plan_history, s->plan_history_count,
                    sizeof *s->plan_history) &&
            items_copy(&s->shards, state->shards, s->shard_count, sizeof *s->shards) &&
            items_copy(&s->results, state->results, s->result_count, sizeof *s->results);
    if (whole) return s;
    state_free(s);
    return NULL;
}

void *cluster_insert(void *items_at, uint32_t *count, uint32_t at, size_t item_bytes)
{
    uint8_t *items;
    memcpy(&items, items_at, sizeof items);
    uint8_t *grown = mem_realloc(items, ((size_t)*count + 1) * item_bytes);
    if (grown == NULL) return NULL;
    memcpy(items_at, &grown, sizeof grown);
    memmove(grown + (at + 1) * item_bytes, grown + at * item_bytes, (*count - at) * item_bytes);
    memset(grown + at * item_bytes, 0, item_bytes);
    ++*count;
    return grown + at * item_bytes;
}

void cluster_remove(void *items, uint32_t *count, uint32_t at, size_t item_bytes)
{
    uint8_t *p = items;
    CHECK(at < *count);
    memmove(p + at * item_bytes, p + (at + 1) * item_bytes, (*count - at - 1) * item_bytes);
    --*count;
}

const struct cluster_node *cluster_state_node(const struct cluster_state *state, uint32_t node_id)
{
    for (uint32_t i = 0; i < state->node_count; i++)
        if (state->nodes[i].node_id == node_id) return &state->nodes[i];
    return NULL;
}

const struct cluster_shard *cluster_state_shard(const struct cluster_state *state, uint64_t shard_id)
{
    uint32_t low = 0, high = state->shard_count;
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (state->shards[mid].shard_id < shard_id)
            low = mid + 1;
        else
            high = mid;
    }
    return low < state->shard_count && state->shards[low].shard_id == shard_id ? &state->shards[low] : NULL;
}

const struct cluster_plan *cluster_state_plan(const struct cluster_state *state, uint64_t plan_id)
{
    for (uint32_t i = 0; i < state->plan_count; i++)
        if (state->plans[i].plan_id == plan_id) return &state->plans[i];
    return NULL;
}

const struct cluster_plan *cluster_state_plan_for(const struct cluster_state *state, uint32_t node_id)
{
    for (uint32_t i = 0; i < state->plan_count; i++)
        if (state->plans[i].node_id == node_id) return &state->plans[i];
    return NULL;
}

const struct cluster_op *cluster_state_op_of(const struct cluster_state *state, uint64_t shard_id)
{
    for (uint32_t i = 0; i < state->op_count; i++)
        if (state->ops[i].shard_id == shard_id) return &state->ops[i];
    return NULL;
}

uint64_t cluster_state_shard_on(const struct cluster_state *state, uint32_t node_id)
{
    for (uint32_t k = 0; k < state->op_count; k++)
        if (state->ops[k].from_node == node_id || state->ops[k].to_node == node_id)
            return state->ops[k].shard_id;
    for (uint32_t c = 0; c < state->map->collection_count; c++) {
        const struct map_collection *collection = &state->map->collections[c];
        for (uint32_t s = 0; s < collection->shard_count; s++)
            for (uint32_t r = 0; r < collection->shards[s].replica_count; r++)
                if (collection->shards[s].node_ids[r] == node_id) return collection->shards[s].shard_id;
    }
    return 0;
}

struct map_shard *cluster_map_shard(struct cluster_state *state, uint64_t shard_id,
        struct map_collection **collection_out)
{
    for (uint32_t c = 0; c < state->map->collection_count; c++) {
        struct map_collection *collection = &state->map->collections[c];
        for (uint32_t i = 0; i < collection->shard_count; i++) {
            if (collection->shards[i].shard_id != shard_id) continue;
            if (collection_out != NULL) *collection_out = collection;
            return &collection->shards[i];
        }
    }
    return NULL;
}

bool cluster_same_domain(const struct cluster_node *a, const struct cluster_node *b)
{
    if (a->node_id == b->node_id) return true;
    size_t x = strcspn(a->labels, ","), y = strcspn(b->labels, ",");
    return x > 0 && x == y && memcmp(a->labels, b->labels, x) == 0;
}

enum omen_err cluster_version_refuse(const char *whose, uint32_t version, struct err *err)
{
    return err_set(err, OMEN_EVERSION, "",
            "%s is at version %u, this build reads up to version %u: start one that is at least as new",
            whose, version, feature_level());
}

const char *cluster_op_step_name(enum cluster_op_step step)
{
    static const char *const names[] = { "none", "add", "catch_up", "switch", "canceling", "end" };
    return (unsigned)step < sizeof names / sizeof *names ? names[step] : "unknown";
}

const char *cluster_op_why_name(enum cluster_op_why why)
{
    static const char *const names[] = { "none", "move", "rebalance", "drain", "damaged" };
    return (unsigned)why < sizeof names / sizeof *names ? names[why] : "unknown";
}
