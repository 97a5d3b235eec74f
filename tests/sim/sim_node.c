/* A node's host and steps, and the life of its shards. See sim.h. */
#include "common/err.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/check.h"
#include "tests/sim/sim.h"

#define SWEEP_MS 100u
#define SCRUB_BYTES (16u << 10)
#define FAR_MS 3600000u /* after every deadline */

struct sim_shard *sim_opening;

static struct sim_node *node_of(const struct world_node *n) { return n->machine; }
static struct sim_shard *shard_of(const struct world_replica *r)
{
    return &node_of(r->node)->shards[r->slot];
}

struct sim_shard *sim_shard_of(const struct shard_host *host)
{
    struct sim_node *node = (struct sim_node *)host->env->pool;
    return &node->shards[host->shard_id - 1];
}

void sim_shard_fail(struct sim_shard *s, const char *what)
{
    world_fail(s->node->sim->w, "node %u group %u replica %" PRIu64 ": %s", s->node->n->place + 1,
            s->r->slot + 1, s->r->replica_id, what);
}

/* ---- what a node tells its shards ---- */

static uint64_t clock_mono(struct clock *clock)
{
    const struct sim_node *node = ((struct sim_clock *)clock)->node;
    return (node->sim->w->now_ms + (node->ending ? FAR_MS : 0)) * 1000000;
}

static uint64_t clock_wall(struct clock *clock)
{
    const struct sim_node *node = ((struct sim_clock *)clock)->node;
    return SIM_WALL_MS + node->sim->w->now_ms + (uint64_t)node->skew_ms;
}

static bool peer_address(void *arg, uint32_t node_id, char *out) { return false; }

static uint32_t peer_replicas(void *arg, uint64_t shard_id, uint32_t *nodes_out)
{
    for (uint32_t i = 0; i < WORLD_NODES; i++) nodes_out[i] = i + 1;
    return WORLD_NODES;
}

static unsigned peer_short_of(void *arg, uint32_t node_id, uint64_t shard_id)
{
    const struct sim_node *self = arg;
    (void)shard_id;
    return atomic_load(&self->sim->nodes[node_id - 1].env.disk_full) ? PEER_DISK_FULL : 0;
}

/* ---- up and down ---- */

static void host_up(struct sim_node *node)
{
    struct replica_host *h = &node->host;
    memset(h, 0, sizeof *h);
    replica_host_options_default(&h->options);
    h->options.clock = &node->clock.base;
    h->options.log.node_id = node->n->place + 1;
    h->options.apply_backlog_bytes_max = 24u << 10;
    h->options.cluster.election_ms = WORLD_ELECTION_MS;
    h->options.cluster.heartbeat_ms = WORLD_HEARTBEAT_MS;
    h->options.cluster.trailing_bytes = world_below(node->sim->w, 6000);
    pthread_mutex_init(&h->mutex, NULL);
    pthread_cond_init(&h->changed, NULL);
    node->worker = (struct worker){ .host = h };
    node->worker.run_tail = &node->worker.run_head;
    pthread_mutex_init(&node->worker.mutex, NULL);
    pthread_cond_init(&node->worker.wake, NULL);
    h->workers = &node->worker;
    h->worker_count = 1;
    node->tasks.head = NULL;
    node->tasks.tail = &node->tasks.head;
    node->loop = (struct net_loop){ .net = &node->net, .loop = (struct loop *)&node->tasks, .first = true };
    node->net = (struct raft_net){ .host = h, .loops = &node->loop, .loop_count = 1 };
    h->net = &node->net;
    h->log = (struct node_log *)node; /* only ever asked how full it is: sim_doors.c */
}

static void env_up(struct sim_node *node)
{
    struct shard_env *env = &node->env;
    memset(env, 0, sizeof *env);
    env->vfs = &node->disk.hook.base;
    env->clock = &node->clock.base;
    env->replica_host = &node->host;
    env->store = node->sim->store;
    env->read_arena_bytes_max = 64u << 20;
    env->shard_inflight_bytes_max = 64u << 20;
    env->node_inflight_bytes_max = 256u << 20;
    env->behind_bytes = 8u << 10;
    env->grace_ms = 1000;
    env->election_ms = WORLD_ELECTION_MS;
    env->pool = (struct search_pool *)node;
    env->rooms = (struct room_keeper *)node;
    env->fetcher = (struct fetcher *)node;
    env->ship = (struct ship *)node;
    atomic_store(&env->disk_headroom, INT64_MAX);
    shard_env_init(env);
}

static void node_up(struct world_node *n)
{
    struct sim_node *node = node_of(n);
    struct world *w = n->world;
    if (node->disk.photo != NULL) sim_disk_restart(&node->disk);
    node->dying = false;
    node->skew_ms = (int64_t)world_below(w, 400) - 200;
    node->searches = NULL;
    node->searches_tail = &node->searches;
    host_up(node);
    env_up(node);
    if (node->sim->storm && world_chance(w, w->rage_per_mille / 2))
        node->disk.cut_in = 1 + world_below(w, world_chance(w, 500) ? 60 : 600);
}

static void node_crash(struct world_node *n)
{
    node_of(n)->dying = true;
    sim_disk_cut(&node_of(n)->disk);
}

static void shard_close(struct sim_shard *s)
{
    s->node->ending = true;
    shard_host_retire(s->host, OMEN_EUNAVAILABLE);
    shard_host_close(s->host);
    s->node->ending = false;
    s->host = NULL;
    s->raft = NULL;
    s->r->group = NULL;
}

static void node_down(struct world_node *n)
{
    struct sim_node *node = node_of(n);
    for (uint32_t g = 0; g < n->world->group_count; g++)
        if (node->shards[g].host != NULL) shard_close(&node->shards[g]); /* damaged since it was opened */
    CHECK(node->calls == NULL && node->searches == NULL && node->fetch_tasks == NULL &&
            node->tasks.head == NULL && node->worker.run_head == NULL && node->worker.parked == NULL);
    pending_set_fini(&node->host.pending);
    mem_free(node->host.closed_groups);
    pthread_mutex_destroy(&node->host.mutex);
    pthread_cond_destroy(&node->host.changed);
    pthread_mutex_destroy(&node->worker.mutex);
    pthread_cond_destroy(&node->worker.wake);
    shard_env_fini(&node->env);
}

/* ---- shards ---- */

static void shard_dir(const struct sim_shard *s, char out[SIM_PATH_BYTES])
{
    snprintf(out, SIM_PATH_BYTES, "%.400s/r%" PRIu64, s->node->disk.root, s->r->replica_id);
}

/* What a restart is sure to find; `opened`: has found. */
static void durable_look(struct sim_shard *s, bool opened)
{
    struct shard_store *store = shard_host_store_hold(s->host);
    if (store == NULL) return;
    uint64_t durable = opened ? shard_store_durable(store) : shard_store_log_needed_from(store);
    shard_host_store_unhold(s->host);
    if (durable > s->r->durable) s->r->durable = durable;
}

static bool shard_open(struct world_replica *r, struct pending *pending)
{
    struct sim_node *node = node_of(r->node);
    struct sim_shard *s = shard_of(r);
    char dir[SIM_PATH_BYTES];
    struct err err = { 0 };
    *s = (struct sim_shard){ .node = node, .r = r };
    shard_dir(s, dir);
    pending_free(pending_take(&node->host.pending, r->slot + 1, r->replica_id));
    pending_put(&node->host.pending, pending);
    struct shard_host_options o = { .env = &node->env,
        .dir = dir,
        .shard_id = r->slot + 1,
        .replica_id = r->replica_id,
        .collection_id = 1,
        .schema = &node->sim->models[r->slot].schema,
        .collection_name = "sim",
        .raft = true,
        .node_id = r->node->place + 1,
        .peers = &node->peers };
    if (vfs_mkdir(vfs_posix(), dir, NULL) != OMEN_OK) sim_shard_fail(s, "no directory for LMDB's files");
    sim_opening = s;
    enum omen_err rc = shard_host_open(&o, &s->host, &err);
    r->node->cut = node->disk.is_cut;
    node->sim->counts.full_met += rc == OMEN_EFULL;
    if (rc != OMEN_OK && rc != OMEN_EFULL && !node->disk.is_cut) sim_shard_fail(s, err.message);
    if (rc != OMEN_OK) {
        r->group = NULL; /* freed with what was opened */
        return false;
    }
    if (s->host->replica == NULL) { /* damaged: it stays as it is, serves nothing, and says so */
        if (node->disk.is_cut) {
            shard_close(s);
            return false;
        }
        sim_damage_noticed(s, NOTICE_OPEN);
        r->given_up = true;
        return false;
    }
    r->durable = 0;
    durable_look(s, true);
    return true;
}

/* All that waits is told, nothing is applied any more; raft's group is stopped. */
static void shard_end_calls(struct sim_shard *s)
{
    struct sim_node *node = s->node;
    struct err err = { 0 };
    (void)err_set(&err, OMEN_ECANCELED, "", "the replica ends");
    raft_io.role_changed(s->raft);
    replica_stop(s->host->replica, OMEN_ECANCELED, &err);
    for (uint32_t i = 0; i < 4; i++) {
        sim_tasks_run(node);
        node->worker.kick = true;
        while (worker_turn(&node->worker)) continue;
        (void)shard_host_make_room(s->host); /* whoever waits for a leader is told that there is none */
        node->ending = true;
        shard_host_sweep(s->host);
        node->ending = false;
        sim_searches_run(node, UINT32_MAX);
    }
    sim_calls_release(node, s->host);
}

static void shard_ended(struct world_replica *r)
{
    struct sim_shard *s = shard_of(r);
    shard_end_calls(s);
    sim_fetch_drop(s);
    shard_close(s);
}

/* Its files go when the node is up; else they go with whoever looks for strays, which is not ours. */
static void shard_gone(struct world_replica *r)
{
    struct sim_shard *s = shard_of(r);
    char dir[SIM_PATH_BYTES];
    s->node = node_of(r->node);
    s->r = r;
    if (s->host != NULL) shard_close(s);
    shard_dir(s, dir);
    if (r->node->up) (void)!vfs_remove_tree(s->node->env.vfs, dir, NULL);
    (void)!vfs_remove_tree(vfs_posix(), dir, NULL);
}

/* ---- steps ---- */

void sim_tasks_run(struct sim_node *node)
{
    while (node->tasks.head != NULL) {
        struct loop_task *task = node->tasks.head;
        node->tasks.head = task->next;
        if (node->tasks.head == NULL) node->tasks.tail = &node->tasks.head;
        task->run(task);
    }
}

void sim_searches_run(struct sim_node *node, uint32_t most)
{
    for (; node->searches != NULL && most > 0; most--) {
        struct search_task *task = node->searches;
        node->searches = task->next;
        if (node->searches == NULL) node->searches_tail = &node->searches;
        task->run(task);
    }
}

static void apply_step(struct sim_node *node)
{
    struct world *w = node->sim->w;
    if (node->sim->storm && world_chance(w, 2)) node->slow_until_ms = w->now_ms + world_below(w, 1200);
    if (w->now_ms < node->slow_until_ms) return;
    if (node->worker.parked != NULL && world_chance(w, 30)) node->worker.kick = true;
    for (uint64_t turns = world_below(w, 3); turns > 0 && worker_turn(&node->worker); turns--) continue;
}

/* One that is damaged still has its sweep. */
static void damaged_step(struct sim_node *node)
{
    for (uint32_t g = 0; g < node->sim->w->group_count; g++) {
        struct sim_shard *s = &node->shards[g];
        if (s->host != NULL && s->r->group == NULL && node->sim->w->now_ms % SWEEP_MS == 0)
            shard_host_sweep(s->host);
    }
}

static void node_step(struct world_node *n)
{
    struct sim_node *node = node_of(n);
    struct world *w = n->world;
    sim_tasks_run(node);
    apply_step(node);
    damaged_step(node);
    sim_leases_step(node);
    sim_searches_run(node, (uint32_t)world_below(w, 3));
    struct fetch_task *task = node->fetch_tasks;
    bool bury = task != NULL && world_chance(w, 100);
    sim_calls_step(node, bury); /* it would wait for views */
    if (bury) {
        node->fetch_tasks = task->next;
        task->queued = false;
        task->run(task);
    }
    if (node->sim->storm && node->disk.cut_in == 0 && world_chance(w, 1) &&
            world_chance(w, w->rage_per_mille))
        node->disk.cut_in = 1 + world_below(w, 200);
    n->cut = node->disk.is_cut;
}

static void shard_compare(struct sim_shard *s)
{
    struct shard_store *store = shard_host_store_hold(s->host);
    struct model *m = &s->node->sim->models[s->r->slot];
    if (store == NULL) return;
    uint64_t applied = shard_store_applied(store);
    if (applied < s->compared) sim_shard_fail(s, "what was applied is not any more");
    if (applied > m->sequence) sim_shard_fail(s, "applied more than was committed");
    if (applied != s->compared || s->compared == 0) {
        const char *wrong = sim_store_compare(m, store);
        if (wrong != NULL && sim_is_flipped(s))
            applied = s->compared; /* by the end it must be equal */
        else if (wrong != NULL)
            sim_shard_fail(s, wrong);
        s->node->sim->counts.compared++;
    }
    struct store_digest digests[STORE_DIGESTS_MAX];
    const char *other = model_digests(m, digests,
            sim_is_flipped(s) ? 0 : shard_store_digests(store, digests));
    if (other != NULL) sim_shard_fail(s, other);
    s->compared = applied;
    shard_host_store_unhold(s->host);
}

/* Background indexing: a segment, built, opened or merged. */
static void shard_index(struct sim_shard *s)
{
    struct index_policy policy;
    struct err err = { 0 };
    _Atomic bool stop = false;
    bool worked = false;
    index_policy_default(&policy);
    policy.rows_min = 6;
    enum omen_err rc = shard_host_index(s->host, &policy, 1, &stop, &worked, &err);
    bool met = rc == OMEN_ECORRUPT && sim_is_flipped(s);
    s->node->sim->counts.full_met += rc == OMEN_EFULL;
    if (rc != OMEN_OK && rc != OMEN_EFULL && !met && !s->node->disk.is_cut) sim_shard_fail(s, err.message);
    s->node->sim->counts.segments += worked;
    world_note(s->r->world, "indexed", s->r->replica_id, worked, 0);
}

/* What the scrub thread does. */
static void shard_scrub(struct sim_shard *s)
{
    struct scrub_result result;
    bool known = shard_group_is_damaged(s->host);
    (void)shard_host_scrub(s->host, SCRUB_BYTES, &result);
    if (!known && shard_group_is_damaged(s->host)) sim_damage_noticed(s, NOTICE_SCRUB);
}

static void shard_step(struct world_replica *r)
{
    struct sim_shard *s = shard_of(r);
    struct world *w = r->world;
    struct replica_status status;
    if (s->room_asked && w->now_ms >= s->room_at_ms) {
        s->room_asked = false;
        if (shard_host_make_room(s->host)) {
            s->room_asked = true;
            s->room_at_ms = w->now_ms + ROOM_RETRY_MS;
        }
    }
    sim_fetch_step(s);
    if (world_chance(w, 3)) shard_index(s);
    if (w->now_ms % s->node->sim->scrub_ms == 0) shard_scrub(s);
    if ((w->now_ms + r->node->place * WORLD_STEP_MS) % SWEEP_MS == 0) shard_host_sweep(s->host);
    r->node->cut = s->node->disk.is_cut;
    if (r->node->cut) return;
    replica_status(s->host->replica, &status);
    if (shard_group_is_damaged(s->host)) sim_damage_noticed(s, NOTICE_APPLY); /* if nobody has yet */
    if (status.stopped != OMEN_OK && !shard_group_is_damaged(s->host))
        sim_shard_fail(s, s->host->replica->stop_err.message);
    shard_compare(s);
}

static void shard_tick(struct world_replica *r) { replica_raft_tick(shard_of(r)->raft, r->world->now_ms); }

static void shard_frame(struct world_replica *r, struct frame *frame, uint64_t node_id)
{
    replica_raft_frame(shard_of(r)->raft, frame, node_id, r->world->now_ms);
}

static void shard_checkpoint(struct world_replica *r)
{
    struct sim_shard *s = shard_of(r);
    struct sim_disk *d = &s->node->disk;
    char dir[SIM_PATH_BYTES];
    struct err err = { 0 };
    snprintf(dir, sizeof dir, "%.500s/g%u", s->host->group->dir, s->host->group->generation);
    sim_disk_watch(d, dir);
    enum omen_err rc = replica_checkpoint(s->host->replica, &err);
    sim_disk_unwatch(d);
    r->node->cut = d->is_cut;
    bool met = rc == OMEN_ECORRUPT && sim_is_flipped(s);
    s->node->sim->counts.full_met += rc == OMEN_EFULL;
    if (rc != OMEN_OK && rc != OMEN_EFULL && rc != OMEN_EBUSY && !met && !d->is_cut)
        sim_shard_fail(s, err.message);
    durable_look(s, false);
}

/* ---- what the group says ---- */

static bool shard_fetch(struct world_replica *r, uint64_t sequence, uint64_t node_id)
{
    return raft_io.fetch(shard_of(r)->raft, sequence, node_id);
}

static void shard_commit(struct world_replica *r, const struct group_commit *entry)
{
    struct sim_shard *s = shard_of(r);
    struct model *m = &s->node->sim->models[r->slot];
    if (entry->type == NODE_LOG_COMMAND && entry->sequence > m->sequence) {
        const char *wrong = model_commit(m, entry->sequence, entry->data, entry->len);
        if (wrong != NULL) sim_shard_fail(s, wrong);
    }
    raft_io.commit(s->raft, entry);
}

static void shard_lost(struct world_replica *r, enum node_log_entry_type type, void *tag, enum omen_err rc)
{
    raft_io.lost(shard_of(r)->raft, type, tag, rc);
}

static void shard_installed(struct world_replica *r, uint64_t sequence)
{
    raft_io.installed(shard_of(r)->raft, sequence);
}

static void shard_role(struct world_replica *r) { raft_io.role_changed(shard_of(r)->raft); }

static void shard_changed(struct world_replica *r, void *tag, enum omen_err rc)
{
    raft_io.changed(shard_of(r)->raft, tag, rc);
}

static void shard_barrier(struct world_replica *r, enum frame_type type, uint64_t node_id, uint64_t from,
        const struct frame_barrier *barrier)
{
    raft_io.barrier(shard_of(r)->raft, type, node_id, from, barrier);
}

/* Whoever looks at disks notices sooner or later, or never: then writes meet it. */
static void node_full(struct world_node *n, bool full)
{
    struct sim_node *node = node_of(n);
    sim_disk_fill(&node->disk, full);
    if (n->up) atomic_store(&node->env.disk_full, full && world_chance(n->world, 500));
}

static bool shard_vital(struct world_replica *r, const void *data, uint32_t len)
{
    return raft_io.vital(shard_of(r)->raft, data, len);
}

const struct world_machine sim_machine = {
    .open = shard_open,
    .tick = shard_tick,
    .frame = shard_frame,
    .fetch = shard_fetch,
    .checkpoint = shard_checkpoint,
    .close = shard_ended,
    .commit = shard_commit,
    .lost = shard_lost,
    .installed = shard_installed,
    .role = shard_role,
    .changed = shard_changed,
    .barrier = shard_barrier,
    .vital = shard_vital,
    .up = node_up,
    .crash = node_crash,
    .down = node_down,
    .end = shard_gone,
    .node_step = node_step,
    .step = shard_step,
    .disk_full = node_full,
    .message = sim_message,
};

void sim_node_init(struct sim_node *node, struct sim *sim, struct world_node *n)
{
    *node = (struct sim_node){ .sim = sim, .n = n };
    node->clock = (struct sim_clock){ { clock_mono, clock_wall }, node };
    node->peers = (struct shard_peers){ .arg = node,
        .address = peer_address,
        .replicas = peer_replicas,
        .short_of = peer_short_of };
    n->machine = node;
    sim_disk_init(&node->disk, sim, n->place, world_below(sim->w, UINT32_MAX));
}
