/* A member's life and its threads. See member.h. */
#include "node/member/member.h"

#include <errno.h>
#include <stdio.h>
#include <time.h>

#include "common/check.h"
#include "common/log.h"
#include "node/member/member_impl.h"

uint64_t member_now_ns(const struct member *m) { return clock_monotonic_ns(m->node->options.clock); }
uint32_t member_id(const struct member *m) { return (uint32_t)m->node->dir.identity.node_id; }

bool member_is_open(const struct member *m)
{
    enum member_phase phase = atomic_load(&m->phase);
    return phase == MEMBER_MEMBER || phase == MEMBER_REMOVED;
}

struct cluster_state *member_state(struct member *m) { return cluster_state_acquire(m->node->catalog); }

void member_wake(struct member *m)
{
    pthread_mutex_lock(&m->lock);
    pthread_cond_broadcast(&m->wake);
    pthread_mutex_unlock(&m->lock);
}

bool member_sleep(struct member *m, uint32_t ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += (long)(ms % 1000) * 1000000L;
    until.tv_sec += ms / 1000 + until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;
    pthread_mutex_lock(&m->lock);
    if (!atomic_load(&m->stopping)) (void)pthread_cond_timedwait(&m->wake, &m->lock, &until);
    pthread_mutex_unlock(&m->lock);
    return !atomic_load(&m->stopping);
}

void member_trouble(struct member *m, const struct err *err)
{
    pthread_mutex_lock(&m->lock);
    snprintf(m->trouble, sizeof m->trouble, "%.*s", (int)sizeof m->trouble - 1,
            err == NULL ? "" : err->message);
    pthread_mutex_unlock(&m->lock);
}

/* ---- what shards ask ---- */

static bool peers_address(void *arg, uint32_t node_id, char *out)
{
    struct member *m = arg;
    out[0] = '\0';
    pthread_mutex_lock(&m->lock);
    const struct node_view *view = member_view(m, node_id, false);
    if (view != NULL) memcpy(out, view->address, sizeof view->address);
    pthread_mutex_unlock(&m->lock);
    if (out[0] != '\0') return true;
    if (!member_is_open(m)) return false;
    struct cluster_state *state = member_state(m);
    const struct cluster_node *n = cluster_state_node(state, node_id);
    if (n != NULL && n->state != CLUSTER_NODE_REMOVED) memcpy(out, n->address, sizeof n->address);
    cluster_state_unref(state);
    return out[0] != '\0';
}

/* Where a shard's replicas are, by the newest state: a new replica asks those for a checkpoint. */
static uint32_t peers_replicas(void *arg, uint64_t shard_id, uint32_t *nodes_out)
{
    struct member *m = arg;
    uint32_t n = 0;
    if (!member_is_open(m)) return 0;
    struct cluster_state *state = member_state(m);
    for (uint32_t c = 0; c < state->map->collection_count; c++) {
        const struct map_collection *collection = &state->map->collections[c];
        for (uint32_t i = 0; i < collection->shard_count; i++) {
            const struct map_shard *shard = &collection->shards[i];
            for (uint32_t r = 0; shard->shard_id == shard_id && r < shard->replica_count; r++)
                nodes_out[n++] = shard->node_ids[r];
        }
    }
    cluster_state_unref(state);
    return n;
}

static unsigned peers_short_of(void *arg, uint32_t node_id, uint64_t shard_id)
{
    struct member *m = arg;
    unsigned lacks = 0;
    pthread_mutex_lock(&m->lock);
    const struct node_view *view = member_view(m, node_id, false);
    if (view != NULL && view->disk_full) lacks |= PEER_DISK_FULL;
    if (view != NULL && view->memory_full) lacks |= PEER_MEMORY_FULL;
    if (view != NULL && view->clock_off) lacks |= PEER_CLOCK_OFF;
    for (uint32_t i = 0; view != NULL && i < view->tails_full_count; i++)
        if (view->tails_full[i] == shard_id) lacks |= PEER_TAIL_FULL;
    pthread_mutex_unlock(&m->lock);
    return lacks;
}

static void peers_changed(void *arg) /* must not block: the talker looks again within a tick */
{
    struct member *m = arg;
    atomic_store(&m->report_soon, true);
}

static uint64_t peers_throttle(void *arg)
{
    struct member *m = arg;
    if (!member_is_open(m)) return 0;
    struct cluster_state *state = member_state(m);
    uint64_t bytes_per_s = state->throttle_bytes_per_s;
    cluster_state_unref(state);
    return bytes_per_s;
}

static uint32_t peers_level(void *arg)
{
    struct member *m = arg;
    return member_is_open(m) ? catalog_version(m->node->catalog) : FEATURE_NONE;
}

/* ---- the cluster group ---- */

/* On raft's loop. */
static void group_leader_changed(void *arg, bool leads, const struct replica_member *leader, uint64_t term)
{
    struct member *m = arg;
    atomic_store(&m->led_since_ns, leads ? member_now_ns(m) : 0);
    atomic_store(&m->report_soon, true);
}

/* The catalog's machine under our name: bases come and go through the member. */
static enum omen_err group_apply(void *self, uint64_t sequence, const void *entry, uint32_t len,
        void *proposal_arg, struct err *err)
{
    struct member *m = self;
    enum omen_err rc = m->group_fsm.apply(m->group_fsm.self, sequence, entry, len, proposal_arg, err);
    if (rc == OMEN_OK || rc == OMEN_EFULL || err == NULL || atomic_load(&m->group_stopped)) return rc;
    snprintf(m->stopped, sizeof m->stopped, "%.*s", (int)sizeof m->stopped - 1, err->message);
    atomic_store(&m->group_stopped, true);
    return rc;
}

static uint64_t group_applied(void *self)
{
    struct member *m = self;
    return m->group_fsm.applied(m->group_fsm.self);
}

static uint64_t group_log_needed_from(void *self)
{
    struct member *m = self;
    return m->group_fsm.log_needed_from(m->group_fsm.self);
}

static enum omen_err group_checkpoint(void *self, struct err *err)
{
    struct member *m = self;
    return m->group_fsm.checkpoint(m->group_fsm.self, err);
}

static enum omen_err group_open(struct member *m, struct err *err)
{
    struct node *node = m->node;
    const struct node_identity *id = &node->dir.identity;
    char dir[NODE_PATH_BYTES_MAX];
    data_dir_path(&node->dir, "catalog", dir);
    enum omen_err rc = catalog_open(node->options.vfs, dir, id->incarnation, &node->catalog, err);
    if (rc != OMEN_OK) return rc;
    catalog_fsm(node->catalog, &m->group_fsm);
    const struct replica_fsm fsm = { .self = m,
        .apply = group_apply,
        .applied = group_applied,
        .log_needed_from = group_log_needed_from,
        .checkpoint = group_checkpoint };
    struct replica_member self = { id->catalog_replica_id, id->node_id, REPLICA_VOTER };
    if (id->founder) {
        rc = replica_bootstrap(node->replica_host, CATALOG_GROUP, self.replica_id, &self, 1, err);
        if (rc == OMEN_EEXISTS) rc = OMEN_OK;
    }
    struct replica_group_options options = {
        .group = CATALOG_GROUP,
        .replica_id = self.replica_id,
        .fsm = &fsm,
        .bases = { .fetch = member_base_fetch, .switch_base = member_base_switch },
        .on_leader_change = group_leader_changed,
        .arg = m,
    };
    if (rc == OMEN_OK) rc = replica_open_group(node->replica_host, &options, &node->catalog_replica, err);
    if (rc == OMEN_OK) return OMEN_OK;
    catalog_close(node->catalog);
    node->catalog = NULL;
    return rc;
}

enum omen_err member_open(struct member *m, struct err *err)
{
    atomic_store(&m->phase, MEMBER_OPENING);
    enum omen_err rc = node_host_open(m->node, err);
    if (rc == OMEN_OK) rc = group_open(m, err);
    if (rc != OMEN_OK) return rc;
    member_base_register(m);
    atomic_store(&m->phase, MEMBER_MEMBER);
    struct cluster_state *state = member_state(m);
    member_peers_refresh(m, state);
    cluster_state_unref(state);
    member_wake(m);
    return OMEN_OK;
}

/* ---- threads ---- */

static void *agent_main(void *arg)
{
    struct member *m = arg;
    pthread_setname_np(pthread_self(), "omen-agent");
    while (member_sleep(m, atomic_load(&m->phase) == MEMBER_UNJOINED ? 5 * MEMBER_TICK_MS : MEMBER_TICK_MS)) {
        switch (atomic_load(&m->phase)) {
        case MEMBER_UNJOINED: member_join_turn(m); break;
        case MEMBER_MEMBER:
            member_found_turn(m);
            member_reconcile_turn(m);
            break;
        case MEMBER_OPENING: /* another thread's work, or failed for good: the node must be started again */
        case MEMBER_REMOVED: break;
        }
    }
    return NULL;
}

static void *talker_main(void *arg)
{
    struct member *m = arg;
    uint64_t reported_ns = 0, hello_ns = 0;
    pthread_setname_np(pthread_self(), "omen-talker");
    while (member_sleep(m, MEMBER_TICK_MS)) {
        if (atomic_load(&m->phase) != MEMBER_MEMBER) continue;
        clock_look(m);
        uint64_t now = member_now_ns(m);
        bool lonely = member_leader(m) == 0;
        if (hello_ns == 0 || now - hello_ns >= MEMBER_HELLO_MS * 1000000ull * (lonely ? 1 : 5)) {
            hello_ns = now;
            member_hello_round(m);
        }
        bool soon = atomic_exchange(&m->report_soon, false);
        if (!soon && now - reported_ns < MEMBER_REPORT_MS * 1000000ull) continue;
        reported_ns = now;
        member_report_round(m);
    }
    return NULL;
}

static void *driver_main(void *arg)
{
    struct member *m = arg;
    bool led = false;
    pthread_setname_np(pthread_self(), "omen-driver");
    while (member_sleep(m, MEMBER_DRIVE_MS)) {
        bool leads = atomic_load(&m->phase) == MEMBER_MEMBER && member_leads(m);
        if (led && !leads) reports_clear(m);
        led = leads;
        if (!leads) continue;
        struct cluster_state *state = member_state(m);
        if (state->cluster_id != 0) {
            member_group_turn(m, state);
            member_addresses_turn(m, state);
            member_version_turn(m, state);
            member_drive_turn(m, state);
        }
        cluster_state_unref(state);
    }
    return NULL;
}

/* ---- life ---- */

struct member *member_new(struct node *node)
{
    struct member *m = mem_must_calloc(1, sizeof *m);
    const struct node_cluster_options *o = &node->options.cluster;
    m->node = node;
    m->peers = peers_new(&o->key);
    atomic_init(&m->phase, MEMBER_UNJOINED);
    clock_begin(m);
    pthread_mutex_init(&m->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&m->wake, &attr);
    pthread_condattr_destroy(&attr);
    m->shard_peers = (struct shard_peers){
        .arg = m,
        .address = peers_address,
        .replicas = peers_replicas,
        .key = o->key,
        .short_of = peers_short_of,
        .changed = peers_changed,
        .throttle = peers_throttle,
        .level = peers_level,
    };
    for (uint32_t i = 0; i < o->join_count; i++) member_seed_add(m, o->join[i]);
    return m;
}

static enum omen_err thread_start(pthread_t *thread, void *(*run)(void *arg), struct member *m, bool *started,
        struct err *err)
{
    int rc = pthread_create(thread, NULL, run, m);
    if (rc != 0) return err_os(err, rc, "start a thread for", "the cluster");
    *started = true;
    return OMEN_OK;
}

enum omen_err member_start(struct member *m, struct err *err)
{
    enum omen_err rc = search_pool_start(MEMBER_ADMIN_THREADS, MEMBER_ADMIN_QUEUE_MAX, &m->admin, err);
    member_seeds_read(m);
    member_base_init(m);
    if (rc == OMEN_OK && m->node->dir.identity.node_id != 0) rc = member_open(m, err);
    if (rc == OMEN_OK) rc = thread_start(&m->agent, agent_main, m, &m->agent_started, err);
    if (rc == OMEN_OK) rc = thread_start(&m->talker, talker_main, m, &m->talker_started, err);
    if (rc == OMEN_OK) rc = thread_start(&m->driver, driver_main, m, &m->driver_started, err);
    return rc;
}

void member_stop(struct member *m)
{
    atomic_store(&m->stopping, true);
    member_wake(m);
    if (m->agent_started) pthread_join(m->agent, NULL);
    if (m->talker_started) pthread_join(m->talker, NULL);
    if (m->driver_started) pthread_join(m->driver, NULL);
    m->agent_started = m->talker_started = m->driver_started = false;
    if (m->admin != NULL) search_pool_stop(m->admin);
    m->admin = NULL;
}

void member_free(struct member *m)
{
    if (m == NULL) return;
    reports_clear(m);
    peers_free(m->peers);
    pthread_cond_destroy(&m->wake);
    pthread_mutex_destroy(&m->lock);
    mem_free(m);
}

/* ---- what others ask of it ---- */

const char *member_not_ready(struct member *m)
{
    switch (atomic_load(&m->phase)) {
    case MEMBER_UNJOINED:
        return "not part of a cluster yet: omenctl cluster init begins one, omenctl node add takes a node in";
    case MEMBER_OPENING: return "opening";
    case MEMBER_REMOVED: return "this node was removed from the cluster";
    case MEMBER_MEMBER: break;
    }
    if (atomic_load(&m->group_stopped)) return m->stopped;
    if (!atomic_load(&m->shards_open)) return "has not heard of the cluster's state yet";
    return NULL;
}

void member_status(struct member *m, struct doc_builder *b)
{
    char text[sizeof m->trouble];
    begin_object(b, "cluster");
    pthread_mutex_lock(&m->lock);
    memcpy(text, m->trouble, sizeof text);
    pthread_mutex_unlock(&m->lock);
    char id[32];
    snprintf(id, sizeof id, "%llu", (unsigned long long)m->node->dir.identity.cluster_id);
    put_text(b, "id", id);
    put_u64(b, "leader_node", member_leader(m));
    put_u64(b, "version", member_version(m));
    put_bool(b, "clock_off", atomic_load(&m->node->env.clock_off));
    put_i64(b, "clock_skew_ms", atomic_load(&m->node->env.clock_skew_ms));
    put_text(b, "trouble", utf8_valid(text, strlen(text)) ? text : "");
    doc_end(b);
}

uint32_t member_version(struct member *m)
{
    return member_is_open(m) ? catalog_version(m->node->catalog) : 0;
}

uint32_t member_nodes(struct member *m, struct map_node *nodes_out)
{
    if (!member_is_open(m)) return 0;
    struct cluster_state *state = member_state(m);
    uint32_t n = 0;
    for (uint32_t i = 0; i < state->node_count && n < OMEN_NODES_MAX; i++) {
        const struct cluster_node *node = &state->nodes[i];
        if (node->state == CLUSTER_NODE_REMOVED) continue;
        nodes_out[n] = (struct map_node){ .node_id = node->node_id };
        if (node->node_id == member_id(m) || !peers_address(m, node->node_id, nodes_out[n].address))
            memcpy(nodes_out[n].address, node->address, sizeof node->address);
        n++;
    }
    cluster_state_unref(state);
    return n;
}
