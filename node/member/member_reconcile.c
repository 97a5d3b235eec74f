/* Makes true on this node what the cluster's state wants of it: replicas that it names here are open, others are
 * gone.
 *
 *   wanted here:   replicas of the map on this node
 *                  the target of an operation on this node (opened empty: the operation adds it to its group)
 *                  the source of an operation on this node, until the operation has ended; but one that is replaced
 *                  on the same node is set aside at once (its group may have one replica on a node), files kept
 *                  until the end
 *   gone:          everything else whose ids the state has given out. Ids are never reused and what is not named is
 *   never
 *                  named again, so a state that is old can only keep too much.
 *
 * A group is begun (its first configuration written) only by the members it was created with, and only where nothing
 * of the replica is there yet (CORRECTNESS C7). Runs on the agent; what fails is tried again a second later. */
#include "common/err.h"

#include <stdio.h>
#include <stdlib.h>

#include "common/check.h"
#include "common/log.h"
#include "common/placement/map_index.h"
#include "node/member/member_impl.h"

#define ASIDE_SUFFIX ".aside"
#define OPEN_THREADS_MAX 7u /* beside the agent's own */

struct wanted {
    const struct map_collection *collection;
    const struct map_shard *shard;
    uint64_t replica_id;
    bool initial; /* may begin its group */
};

struct plan {
    const struct cluster_state *state;
    struct map_index *index;
    uint32_t node_id;
    struct wanted *items; /* [count] owned, at most one of a shard */
    uint32_t count, cap;
};

/* ---- what is wanted ---- */

static void want(struct plan *p, const struct map_collection *collection, const struct map_shard *shard,
        uint64_t replica_id)
{
    if (p->count == p->cap) {
        p->cap = p->cap == 0 ? 64 : 2 * p->cap;
        p->items = mem_must_realloc(p->items, p->cap * sizeof *p->items);
    }
    struct wanted *w = &p->items[p->count++];
    *w = (struct wanted){ collection, shard, replica_id, false };
    const struct cluster_shard *born = cluster_state_shard(p->state, shard->shard_id);
    for (uint32_t i = 0; born != NULL && i < born->initial_count; i++)
        w->initial |= born->initial_replica_ids[i] == replica_id;
}

static bool replaced_here(const struct cluster_op *op, uint32_t node_id)
{
    return op->from_node == node_id && op->to_node == node_id;
}

static void wanted_build(struct plan *p)
{
    for (uint32_t i = 0; i < p->index->count; i++) {
        const struct map_place *place = &p->index->places[i];
        const struct map_shard *shard = place->shard;
        const struct cluster_op *op = cluster_state_op_of(p->state, shard->shard_id);
        uint64_t replica_id = 0;
        for (uint32_t r = 0; r < shard->replica_count; r++)
            if (shard->node_ids[r] == p->node_id) replica_id = shard->replica_ids[r];
        if (op != NULL && op->from_node == p->node_id) replica_id = op->from_replica;
        if (op != NULL && op->to_node == p->node_id) replica_id = op->to_replica;
        if (replica_id != 0) want(p, place->collection, shard, replica_id);
    }
}

static const struct wanted *wanted_find(const struct plan *p, uint64_t shard_id)
{
    uint32_t low = 0, high = p->count; /* in the index's order: ascending by shard */
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (p->items[mid].shard->shard_id < shard_id)
            low = mid + 1;
        else
            high = mid;
    }
    return low < p->count && p->items[low].shard->shard_id == shard_id ? &p->items[low] : NULL;
}

/* ---- what is there ---- */

static void aside_path(struct node *node, uint64_t group, uint64_t replica_id, char *out)
{
    char dir[NODE_PATH_BYTES_MAX];
    data_dir_shard_path(&node->dir, group, replica_id, dir);
    snprintf(out, NODE_PATH_BYTES_MAX, "%.*s" ASIDE_SUFFIX, NODE_PATH_BYTES_MAX - 16, dir);
}

static bool id_given_out(const struct cluster_state *state, uint64_t group, uint64_t replica_id)
{
    return group < state->next_group && replica_id < state->next_replica;
}

/* Out of the table, out of the log; then its files, or their name when they are to be kept. */
static void replica_end(struct member *m, const struct plan *p, struct shard_host *shard, bool keep_files)
{
    struct node *node = m->node;
    struct shard_host_status status;
    shard_host_status(shard, &status);
    uint64_t group = shard_host_id(shard), replica_id = status.replica.replica_id;
    bool dropped = map_index_find(p->index, group) == NULL;
    char dir[NODE_PATH_BYTES_MAX], aside[NODE_PATH_BYTES_MAX];
    data_dir_shard_path(&node->dir, group, replica_id, dir);
    aside_path(node, group, replica_id, aside);
    CHECK(node_shard_take(node, group) == shard);
    shard_host_retire(shard, dropped ? OMEN_ENOTFOUND : OMEN_EUNAVAILABLE);
    shard_host_drop(shard);
    struct err err;
    enum omen_err rc = keep_files ? vfs_rename(node->options.vfs, dir, aside, &err)
                                  : vfs_remove_tree(node->options.vfs, dir, &err);
    if (rc != OMEN_OK) LOG_WARN("shard.remove", "dir=%s error=\"%s\"", dir, err.message);
    LOG_INFO("shard.drop", "shard=%llu replica=%llu kept_files=%d", (unsigned long long)group,
            (unsigned long long)replica_id, keep_files);
}

/* One open replica that is not wanted; NULL when there is none. The agent alone takes shards out, so it stays valid.
 * */
static struct shard_host *unwanted_next(struct member *m, const struct plan *p, bool *aside_out)
{
    struct node *node = m->node;
    struct shard_host *found = NULL;
    pthread_rwlock_rdlock(&node->table_lock);
    for (uint32_t i = 0; i < node->slot_count && found == NULL; i++) {
        struct shard_host_status s;
        shard_host_status(node->slots[i].shard, &s);
        const struct wanted *w = wanted_find(p, node->slots[i].shard_id);
        if (w != NULL && w->replica_id == s.replica.replica_id) continue;
        if (!id_given_out(p->state, node->slots[i].shard_id, s.replica.replica_id)) continue;
        const struct cluster_op *op = cluster_state_op_of(p->state, node->slots[i].shard_id);
        *aside_out = op != NULL && replaced_here(op, p->node_id) && op->from_replica == s.replica.replica_id;
        found = node->slots[i].shard;
    }
    pthread_rwlock_unlock(&node->table_lock);
    return found;
}

static bool is_open(struct node *node, uint64_t shard_id)
{
    pthread_rwlock_rdlock(&node->table_lock);
    bool open = false;
    for (uint32_t i = 0; i < node->slot_count && !open; i++) open = node->slots[i].shard_id == shard_id;
    pthread_rwlock_unlock(&node->table_lock);
    return open;
}

/* ---- files without a replica ---- */

struct leftovers {
    const struct plan *plan;
    uint64_t (*found)[3]; /* {group, replica, aside} owned */
    uint32_t count;
};

static bool leftover_each(void *arg, const char *name)
{
    struct leftovers *l = arg;
    char plain[64];
    size_t len = strlen(name), suffix = strlen(ASIDE_SUFFIX);
    bool aside = len > suffix && len < sizeof plain && strcmp(name + len - suffix, ASIDE_SUFFIX) == 0;
    snprintf(plain, sizeof plain, "%.*s", (int)(aside ? len - suffix : len), name);
    uint64_t group, replica_id;
    if (!data_dir_parse_shard_name(plain, &group, &replica_id))
        return true; /* not ours, or a fetch in progress */
    if (!id_given_out(l->plan->state, group, replica_id)) return true;
    const struct cluster_op *op = cluster_state_op_of(l->plan->state, group);
    const struct wanted *w = wanted_find(l->plan, group);
    bool named = aside ? op != NULL && op->from_replica == replica_id
                       : w != NULL && w->replica_id == replica_id;
    if (named) return true;
    l->found = mem_must_realloc(l->found, (l->count + 1) * sizeof *l->found);
    l->found[l->count][0] = group;
    l->found[l->count][1] = replica_id;
    l->found[l->count++][2] = aside;
    return true;
}

/* Directories of replicas that nothing names: of an interrupted drop, or set aside and no longer needed. */
static void leftovers_remove(struct member *m, const struct plan *p)
{
    struct node *node = m->node;
    char shards[NODE_PATH_BYTES_MAX];
    data_dir_path(&node->dir, "shards", shards);
    struct leftovers l = { .plan = p };
    struct err err;
    if (vfs_list(node->options.vfs, shards, leftover_each, &l, &err) != OMEN_OK)
        LOG_WARN("shard.remove", "error=\"%s\"", err.message);
    for (uint32_t i = 0; i < l.count; i++) {
        char dir[NODE_PATH_BYTES_MAX];
        uint64_t group = l.found[i][0], replica_id = l.found[i][1];
        if (l.found[i][2] != 0)
            aside_path(node, group, replica_id, dir);
        else
            data_dir_shard_path(&node->dir, group, replica_id, dir);
        if (l.found[i][2] == 0) replica_host_forget_replica(node->replica_host, group, replica_id);
        if (vfs_remove_tree(node->options.vfs, dir, &err) != OMEN_OK)
            LOG_WARN("shard.remove", "dir=%s error=\"%s\"", dir, err.message);
        else
            LOG_INFO("shard.remove", "dir=%s", dir);
    }
    mem_free(l.found);
}

/* ---- opening ---- */

static enum omen_err replica_begin(struct member *m, const struct plan *p, const struct wanted *w,
        struct err *err)
{
    struct replica_member members[OMEN_REPLICAS_MAX];
    const struct cluster_shard *born = cluster_state_shard(p->state, w->shard->shard_id);
    struct node_shard_raft raft = { .peers = &m->shard_peers };
    if (w->initial) {
        for (uint32_t i = 0; i < born->initial_count; i++)
            members[i] = (struct replica_member){ born->initial_replica_ids[i], born->initial_node_ids[i],
                REPLICA_VOTER };
        raft.bootstrap = members;
        raft.bootstrap_count = born->initial_count;
    }
    return node_shard_open(m->node, w->collection, w->shard, w->replica_id, &raft, err);
}

/* What the threads of one opening share: a store that is opened reads all of its stream since its last merge. */
struct opening {
    struct member *m;
    const struct plan *plan;
    _Atomic uint32_t next; /* item */
    _Atomic bool failed;
};

static void *open_main(void *arg)
{
    struct opening *o = arg;
    struct err err;
    for (;;) {
        uint32_t i = atomic_fetch_add(&o->next, 1);
        if (i >= o->plan->count || atomic_load(&o->m->stopping)) return NULL;
        const struct wanted *w = &o->plan->items[i];
        if (is_open(o->m->node, w->shard->shard_id)) continue;
        if (replica_begin(o->m, o->plan, w, &err) == OMEN_OK) continue;
        LOG_ERROR("shard.open", "shard=%llu replica=%llu collection=%s error=\"%s\"",
                (unsigned long long)w->shard->shard_id, (unsigned long long)w->replica_id,
                w->collection->name, err.message);
        member_trouble(o->m, &err);
        atomic_store(&o->failed, true);
    }
}

static void shards_open(struct member *m, const struct plan *p)
{
    struct opening o = { .m = m, .plan = p };
    pthread_t threads[OPEN_THREADS_MAX];
    uint32_t started = 0, wanted = search_pool_threads(m->node->env.pool);
    if (wanted > OPEN_THREADS_MAX + 1) wanted = OPEN_THREADS_MAX + 1;
    if (wanted > p->count) wanted = p->count;
    while (started + 1 < wanted && pthread_create(&threads[started], NULL, open_main, &o) == 0) started++;
    (void)open_main(&o);
    for (uint32_t i = 0; i < started; i++) pthread_join(threads[i], NULL);
    m->reconcile_again = atomic_load(&o.failed);
    if (!m->reconcile_again) member_trouble(m, NULL);
}

/* ---- the turn ---- */

/* Changes are rare and a start should know them all at once: no waiting for the checkpoint's own time. */
static void state_checkpoint(struct member *m, uint64_t sequence, uint64_t now_ns)
{
    struct err err;
    if (sequence == m->checkpointed || now_ns < m->checkpoint_ns) return;
    m->checkpoint_ns = now_ns + 2 * MEMBER_RETRY_NS;
    if (replica_checkpoint(m->node->catalog_replica, &err) == OMEN_OK) m->checkpointed = sequence;
}

void member_reconcile_turn(struct member *m)
{
    uint64_t now_ns = member_now_ns(m);
    struct cluster_state *state = member_state(m);
    bool due = state->sequence != m->reconciled || (m->reconcile_again && now_ns >= m->retry_ns);
    if (due && state->cluster_id != 0) {
        struct plan p = { .state = state, .node_id = member_id(m), .index = map_index_new(state->map) };
        if (p.index == NULL)
            panic("no memory for an index over %u collections", state->map->collection_count);
        member_peers_refresh(m, state);
        wanted_build(&p);
        bool aside = false;
        for (struct shard_host *s; (s = unwanted_next(m, &p, &aside)) != NULL;) replica_end(m, &p, s, aside);
        leftovers_remove(m, &p);
        shards_open(m, &p);
        node_map_publish(m->node, map_ref(state->map));
        map_index_unref(p.index);
        mem_free(p.items);
        m->reconciled = state->sequence;
        m->retry_ns = now_ns + MEMBER_RETRY_NS;
        atomic_store(&m->shards_open, true);
        atomic_store(&m->report_soon, true);
        pthread_mutex_lock(&m->lock);
        pthread_cond_broadcast(&m->wake);
        pthread_mutex_unlock(&m->lock);
    }
    state_checkpoint(m, state->sequence, now_ns);
    cluster_state_unref(state);
}
