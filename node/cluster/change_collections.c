/* Changes of collections and aliases, and where new shards are placed.
 *
 * Placement in a cluster: every shard's replicas go to different active nodes, to different failure domains while
 * there are such, then to the nodes with the fewest replicas, then by the order that the entry prefers. Nodes that the
 * entry calls a last resort, since they are down or full, get what the others cannot take, whatever domain they are
 * in: what then stands together can be moved apart later. Alike on all replicas, since all of it is in the state or
 * the entry. On a single node everything goes to the nodes that the entry names. */
#include "common/err.h"

#include <stdio.h>
#include <string.h>

#include "common/check.h"
#include "node/cluster/state.h"

static struct map_collection *collection_by_name(struct map *map, const char *name)
{
    for (uint32_t i = 0; i < map->collection_count; i++) {
        if (strcmp(map->collections[i].name, name) == 0) return &map->collections[i];
    }
    return NULL;
}

/* Position of alias `name`, or where it would go. */
static uint32_t alias_position(const struct map *map, const char *name, bool *found_out)
{
    uint32_t i = 0;
    while (i < map->alias_count && strcmp(map->aliases[i].name, name) < 0) i++;
    *found_out = i < map->alias_count && strcmp(map->aliases[i].name, name) == 0;
    return i;
}

static enum omen_err name_free(struct map *map, const char *name, struct err *err)
{
    bool is_alias;
    alias_position(map, name, &is_alias);
    if (is_alias) return err_set(err, OMEN_EEXISTS, "collection", "\"%s\" is an alias", name);
    if (collection_by_name(map, name) != NULL) {
        return err_set(err, OMEN_EEXISTS, "collection", "collection \"%s\" exists", name);
    }
    return OMEN_OK;
}

static uint32_t nodes_to_place(const struct cluster_state *state, const struct cluster_entry *entry);

static enum omen_err check_create(const struct cluster_state *state, const struct cluster_entry *entry,
        struct err *err)
{
    struct map *map = state->map;
    uint32_t nodes = nodes_to_place(state, entry);
    const struct catalog_change *change = &entry->catalog;
    enum omen_err rc = map_check_name(change->name, strlen(change->name), "collection", err);
    if (rc == OMEN_OK) rc = map_check_schema(&change->schema, err);
    if (rc == OMEN_OK) rc = name_free(map, change->name, err);
    if (rc != OMEN_OK) return rc;
    if (change->shard_count == 0 || change->shard_count > OMEN_SHARDS_MAX) {
        return err_set(err, OMEN_EINVAL, "shards", "must be 1 to %d, got %u", OMEN_SHARDS_MAX,
                change->shard_count);
    }
    if (change->replication == 0 || change->replication > nodes ||
            change->replication > CATALOG_REPLICATION_MAX) {
        return err_set(err, OMEN_EINVAL, "replication", "is %u, there %s %u node%s to hold replicas",
                change->replication, nodes == 1 ? "is" : "are", nodes, nodes == 1 ? "" : "s");
    }
    if (!(change->recall_target > 0 && change->recall_target <= 1)) {
        return err_set(err, OMEN_EINVAL, "recall_target", "must be above 0 and at most 1");
    }
    struct collection_options options = { .profile = PROFILE_NONE };
    float recall_target = change->recall_target;
    rc = collection_options_change(&options, &recall_target, change->options, err);
    if (rc != OMEN_OK) return rc;
    if (map->collection_count >= OMEN_COLLECTIONS_MAX) {
        return err_set(err, OMEN_ETOOBIG, "collection", "there are %d collections, the limit",
                OMEN_COLLECTIONS_MAX);
    }
    uint64_t shards = change->shard_count;
    for (uint32_t i = 0; i < map->collection_count; i++) shards += map->collections[i].shard_count;
    if (shards > CATALOG_SHARDS_MAX) {
        return err_set(err, OMEN_ETOOBIG, "shards", "there would be %llu shards in all, the limit is %u",
                (unsigned long long)shards, CATALOG_SHARDS_MAX);
    }
    return OMEN_OK;
}

/* ---- placement ---- */

struct place {
    const struct cluster_node *node;
    uint32_t replicas; /* of all shards, and on their way */
    bool taken;        /* by the shard being placed */
    bool last;         /* a last resort */
};

struct places {
    struct place items[CLUSTER_NODES_MAX]; /* the preferred first */
    uint32_t count;
};

static void places_add(struct places *p, const struct cluster_node *node, bool last)
{
    bool known = node == NULL || node->state != CLUSTER_NODE_ACTIVE || p->count == CLUSTER_NODES_MAX;
    for (uint32_t i = 0; i < p->count; i++) known |= p->items[i].node == node;
    if (!known) p->items[p->count++] = (struct place){ .node = node, .last = last };
}

static void places_fill(struct places *p, const struct cluster_state *state,
        const struct cluster_entry *entry)
{
    *p = (struct places){ .count = 0 };
    for (uint32_t i = 0; i < entry->node_count; i++)
        places_add(p, cluster_state_node(state, entry->node_ids[i]), i >= entry->willing);
    bool all_alike = entry->willing == entry->node_count;
    for (uint32_t i = 0; i < state->node_count; i++) places_add(p, &state->nodes[i], !all_alike);
    for (uint32_t i = 0; i < p->count; i++) {
        uint32_t node_id = p->items[i].node->node_id, n = 0;
        for (uint32_t c = 0; c < state->map->collection_count; c++) {
            const struct map_collection *collection = &state->map->collections[c];
            for (uint32_t s = 0; s < collection->shard_count; s++)
                for (uint32_t r = 0; r < collection->shards[s].replica_count; r++)
                    n += collection->shards[s].node_ids[r] == node_id;
        }
        for (uint32_t k = 0; k < state->op_count; k++) n += state->ops[k].to_node == node_id;
        p->items[i].replicas = n;
    }
}

/* How many of the shard's replicas so far would fail together with this node. */
static uint32_t crowd_of(const struct places *p, const struct place *at)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->count; i++)
        n += p->items[i].taken && cluster_same_domain(p->items[i].node, at->node);
    return n;
}

static struct place *place_next(struct places *p)
{
    struct place *best = NULL;
    uint32_t best_crowd = 0;
    for (uint32_t i = 0; i < p->count; i++) {
        struct place *at = &p->items[i];
        if (at->taken) continue;
        uint32_t crowd = crowd_of(p, at);
        bool better = best == NULL || at->last < best->last ||
                (at->last == best->last &&
                        (crowd < best_crowd || (crowd == best_crowd && at->replicas < best->replicas)));
        if (!better) continue;
        best = at;
        best_crowd = crowd;
    }
    CHECK(best != NULL); /* replication was held against the number of nodes */
    return best;
}

static bool in_cluster(const struct cluster_state *state) { return state->cluster_id != 0; }

/* How many nodes a shard may be placed on. */
static uint32_t nodes_to_place(const struct cluster_state *state, const struct cluster_entry *entry)
{
    struct places p;
    if (!in_cluster(state)) return entry->node_count;
    places_fill(&p, state, entry);
    return p.count;
}

static void place_shard(const struct cluster_state *state, const struct cluster_entry *entry,
        struct places *p, uint32_t slot, struct map_shard *shard)
{
    for (uint32_t i = 0; i < p->count; i++) p->items[i].taken = false;
    for (uint32_t r = 0; r < shard->replica_count; r++) {
        if (!in_cluster(state)) {
            shard->node_ids[r] = entry->node_ids[(slot + r) % entry->node_count];
            continue;
        }
        struct place *at = place_next(p);
        at->taken = true;
        at->replicas++;
        shard->node_ids[r] = at->node->node_id;
    }
}

/* Shards in order of slots, with the members that their groups are begun with. OMEN_ENOMEM. */
static enum omen_err place_shards(struct cluster_state *state, const struct cluster_entry *entry,
        struct map_collection *c)
{
    struct places p = { .count = 0 };
    if (in_cluster(state)) places_fill(&p, state, entry);
    map_cut_slots(c->shards, c->shard_count);
    for (uint32_t i = 0; i < c->shard_count; i++) {
        struct map_shard *shard = &c->shards[i];
        shard->shard_id = state->next_group++;
        shard->replica_count = entry->catalog.replication;
        place_shard(state, entry, &p, i, shard);
        struct cluster_shard *born = cluster_insert(&state->shards, &state->shard_count, state->shard_count,
                sizeof *born);
        if (born == NULL) return OMEN_ENOMEM;
        born->shard_id = shard->shard_id;
        born->initial_count = shard->replica_count;
        for (uint32_t r = 0; r < shard->replica_count; r++) {
            shard->replica_ids[r] = state->next_replica++;
            born->initial_replica_ids[r] = shard->replica_ids[r];
            born->initial_node_ids[r] = shard->node_ids[r];
        }
    }
    return OMEN_OK;
}

/* ---- collections ---- */

/* OMEN_ENOMEM is a local fault: it stops the replica and changes nothing. */
static enum omen_err apply_create(struct cluster_state *state, const struct cluster_entry *entry,
        struct catalog_outcome *outcome)
{
    struct map *map = state->map;
    const struct catalog_change *change = &entry->catalog;
    outcome->code = check_create(state, entry, &outcome->err);
    if (outcome->code != OMEN_OK) return OMEN_OK;
    struct map_collection *grown = mem_realloc(map->collections, (map->collection_count + 1) * sizeof *grown);
    if (grown == NULL) return OMEN_ENOMEM;
    map->collections = grown;
    struct map_shard *shards = mem_calloc(change->shard_count, sizeof *shards);
    if (shards == NULL) return OMEN_ENOMEM;
    uint32_t at = 0;
    while (at < map->collection_count && strcmp(grown[at].name, change->name) < 0) at++;
    memmove(grown + at + 1, grown + at, (map->collection_count - at) * sizeof *grown);
    map->collection_count++;
    struct map_collection *c = &grown[at];
    memset(c, 0, sizeof *c);
    c->id = state->next_collection++;
    memcpy(c->name, change->name, sizeof c->name);
    c->schema = change->schema;
    float named = 0; /* the change has the recall target apart, resolved */
    CHECK(collection_options_change(&c->options, &named, change->options, NULL) ==
            OMEN_OK); /* check_create */
    c->recall_target = change->recall_target;
    c->replication = change->replication;
    c->created_ms = entry->log_time_ms;
    c->shards = shards;
    c->shard_count = change->shard_count;
    outcome->collection_id = c->id;
    return place_shards(state, entry, c);
}

static void apply_drop(struct cluster_state *state, const struct catalog_change *change,
        struct catalog_outcome *outcome)
{
    struct map *map = state->map;
    struct map_collection *c = collection_by_name(map, change->name);
    if (c == NULL) {
        bool is_alias;
        alias_position(map, change->name, &is_alias);
        outcome->code = err_set(&outcome->err, OMEN_ENOTFOUND, "collection",
                is_alias ? "\"%s\" is an alias: drop the alias, or the collection by its own name"
                         : "no collection \"%s\"",
                change->name);
        return;
    }
    outcome->collection_id = c->id;
    for (uint32_t i = 0; i < c->shard_count; i++) {
        const struct cluster_shard *born = cluster_state_shard(state, c->shards[i].shard_id);
        if (born != NULL)
            cluster_remove(state->shards, &state->shard_count, (uint32_t)(born - state->shards),
                    sizeof *born);
    }
    uint32_t kept = 0;
    for (uint32_t i = 0; i < map->alias_count; i++) {
        if (map->aliases[i].collection_id != c->id) map->aliases[kept++] = map->aliases[i];
    }
    map->alias_count = kept;
    mem_free(c->shards);
    uint32_t at = (uint32_t)(c - map->collections);
    memmove(c, c + 1, (map->collection_count - at - 1) * sizeof *c);
    map->collection_count--;
}

static void apply_set(struct cluster_state *state, const struct catalog_change *change,
        struct catalog_outcome *outcome)
{
    struct map_collection *c = collection_by_name(state->map, change->name);
    bool is_alias;
    uint32_t at = alias_position(state->map, change->name, &is_alias);
    for (uint32_t i = 0; is_alias && i < state->map->collection_count; i++) {
        struct map_collection *named = &state->map->collections[i];
        if (named->id == state->map->aliases[at].collection_id) c = named;
    }
    if (c == NULL) {
        outcome->code = err_set(&outcome->err, OMEN_ENOTFOUND, "collection", "no collection \"%s\"",
                change->name);
        return;
    }
    outcome->collection_id = c->id;
    outcome->code = collection_options_change(&c->options, &c->recall_target, change->options, &outcome->err);
}

static enum omen_err apply_alias_set(struct cluster_state *state, const struct catalog_change *change,
        struct catalog_outcome *outcome)
{
    struct map *map = state->map;
    struct err *err = &outcome->err;
    outcome->code = map_check_name(change->name, strlen(change->name), "alias", err);
    if (outcome->code != OMEN_OK) return OMEN_OK;
    const struct map_collection *target = map_find(map, change->target, strlen(change->target));
    if (target == NULL) {
        outcome->code = err_set(err, OMEN_ENOTFOUND, "collection", "no collection \"%s\"", change->target);
        return OMEN_OK;
    }
    if (collection_by_name(map, change->name) != NULL) {
        outcome->code = err_set(err, OMEN_EEXISTS, "alias", "\"%s\" is a collection", change->name);
        return OMEN_OK;
    }
    bool found;
    uint32_t at = alias_position(map, change->name, &found);
    outcome->collection_id = target->id;
    if (found) { /* moving an alias is how readers are switched over at once */
        map->aliases[at].collection_id = target->id;
        return OMEN_OK;
    }
    if (map->alias_count >= OMEN_ALIASES_MAX) {
        outcome->code = err_set(err, OMEN_ETOOBIG, "alias", "there are %d aliases, the limit",
                OMEN_ALIASES_MAX);
        return OMEN_OK;
    }
    struct map_alias *grown = mem_realloc(map->aliases, (map->alias_count + 1) * sizeof *grown);
    if (grown == NULL) return OMEN_ENOMEM;
    map->aliases = grown;
    memmove(grown + at + 1, grown + at, (map->alias_count - at) * sizeof *grown);
    map->alias_count++;
    memset(&grown[at], 0, sizeof grown[at]);
    memcpy(grown[at].name, change->name, sizeof grown[at].name);
    grown[at].collection_id = target->id;
    return OMEN_OK;
}

static void apply_alias_drop(struct cluster_state *state, const struct catalog_change *change,
        struct catalog_outcome *outcome)
{
    struct map *map = state->map;
    bool found;
    uint32_t at = alias_position(map, change->name, &found);
    if (!found) {
        outcome->code = err_set(&outcome->err, OMEN_ENOTFOUND, "alias", "no alias \"%s\"", change->name);
        return;
    }
    outcome->collection_id = map->aliases[at].collection_id;
    memmove(&map->aliases[at], &map->aliases[at + 1], (map->alias_count - at - 1) * sizeof *map->aliases);
    map->alias_count--;
}

enum omen_err cluster_apply_collections(struct cluster_state *state, const struct cluster_entry *entry,
        struct catalog_outcome *outcome, bool *map_changed)
{
    *map_changed = true;
    switch (entry->catalog.kind) {
    case CATALOG_CREATE: return apply_create(state, entry, outcome);
    case CATALOG_DROP: apply_drop(state, &entry->catalog, outcome); return OMEN_OK;
    case CATALOG_SET: apply_set(state, &entry->catalog, outcome); return OMEN_OK;
    case CATALOG_ALIAS_SET: return apply_alias_set(state, &entry->catalog, outcome);
    case CATALOG_ALIAS_DROP: apply_alias_drop(state, &entry->catalog, outcome); return OMEN_OK;
    }
    outcome->code = err_set(&outcome->err, OMEN_EVERSION, "", "unknown change of the catalog");
    return OMEN_OK;
}
