/* See shard_nodes.h. */
#include "common/err.h"

#include "tests/support/shard_nodes.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "node/shard_host_impl.h"
#include "storage/shard_store_impl.h"
#include "tests/support/entry_support.h"

#define CALL_MS 10000u
#define FILL_MAX 256u

static const uint8_t secret[] = "a secret of twenty-four b";

static uint64_t now_ms(void) { return clock_monotonic_ns(clock_system()) / 1000000; }

/* ---- what a node tells its shards ---- */

static bool peer_address(void *arg, uint32_t node_id, char *out)
{
    const struct shard_node *self = arg;
    const struct shard_nodes *n = self->nodes;
    for (uint32_t i = 0; i < n->count; i++) {
        const struct shard_node *node = &n->nodes[i];
        if (node->node_id != node_id || node->file_server == NULL) continue;
        snprintf(out, OMEN_ADDRESS_BYTES_MAX + 1, "tcp://127.0.0.1:%u", node->file_port);
        return true;
    }
    return false;
}

static uint32_t peer_replicas(void *arg, uint64_t shard_id, uint32_t *nodes_out)
{
    const struct shard_nodes *n = ((struct shard_node *)arg)->nodes;
    for (uint32_t i = 0; i < n->count; i++) nodes_out[i] = n->nodes[i].node_id;
    return n->count;
}

static unsigned peer_short_of(void *arg, uint32_t node_id, uint64_t shard_id)
{
    const struct shard_node *self = arg;
    ck_assert_uint_eq(shard_id, SHARD_NODES_GROUP);
    return atomic_load(&self->nodes->nodes[node_id - 1].lacks);
}

static void peer_changed(void *arg) { atomic_fetch_add(&((struct shard_node *)arg)->changes, 1); }
static uint64_t peer_throttle(void *arg) { return atomic_load(&((struct shard_node *)arg)->nodes->throttle); }

/* ---- nodes ---- */

static void *sweeper_main(void *arg)
{
    struct shard_nodes *n = arg;
    while (!atomic_load(&n->stop)) {
        for (uint32_t i = 0; i < n->count; i++) {
            pthread_mutex_lock(&n->nodes[i].lock);
            if (n->nodes[i].shard != NULL) shard_host_sweep(n->nodes[i].shard);
            pthread_mutex_unlock(&n->nodes[i].lock);
        }
        usleep(20000);
    }
    return NULL;
}

void shard_nodes_init(struct shard_nodes *n, uint32_t count)
{
    memset(n, 0, sizeof *n);
    const char *tmp = getenv("TMPDIR");
    snprintf(n->dir, sizeof n->dir, "%s/omen-XXXXXX", tmp != NULL ? tmp : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(n->dir));
    n->count = count;
    n->schema = test_schema_simple(SHARD_NODES_DIM, "");
    replica_host_options_default(&n->host);
    n->host.log.vfs = vfs_posix();
    n->host.log.segment_bytes = 1u << 20;
    n->host.log.bytes_max = 32u << 20;
    n->host.cluster.cluster_id = 77;
    n->host.cluster.secret = secret;
    n->host.cluster.secret_len = sizeof secret;
    n->host.cluster.election_ms = 400;
    n->host.cluster.heartbeat_ms = 60;
    siphash_key_from_secret((struct bytes){ secret, sizeof secret }, &n->key);
    shard_store_options_default(&n->store);
    n->store.first_chunk_bytes = 64u << 10;
    n->store.chunk_bytes = 64u << 10;
    for (uint32_t i = 0; i < count; i++) {
        struct shard_node *node = &n->nodes[i];
        node->nodes = n;
        node->node_id = i + 1;
        snprintf(node->dir, sizeof node->dir, "%s/n%u", n->dir, i + 1);
        ck_assert_int_eq(vfs_mkdir(vfs_posix(), node->dir, NULL), OMEN_OK);
        pthread_mutex_init(&node->lock, NULL);
        node->peers = (struct shard_peers){ .arg = node,
            .address = peer_address,
            .replicas = peer_replicas,
            .key = n->key,
            .short_of = peer_short_of,
            .changed = peer_changed,
            .throttle = peer_throttle };
    }
    ck_assert_int_eq(pthread_create(&n->sweeper, NULL, sweeper_main, n), 0);
}

void shard_nodes_fini(struct shard_nodes *n)
{
    for (uint32_t i = 0; i < n->count; i++) shard_node_down(n, i);
    atomic_store(&n->stop, true);
    pthread_join(n->sweeper, NULL);
    for (uint32_t i = 0; i < n->count; i++) pthread_mutex_destroy(&n->nodes[i].lock);
    ck_assert_int_eq(vfs_remove_tree(vfs_posix(), n->dir, NULL), OMEN_OK);
}

static void introduce(struct shard_node *a, const struct shard_node *b)
{
    char address[32];
    snprintf(address, sizeof address, "127.0.0.1:%u", b->port);
    ck_assert_int_eq(replica_host_set_peer(a->host, b->node_id, address, NULL), OMEN_OK);
}

static void env_up(struct shard_nodes *n, struct shard_node *node)
{
    memset(&node->env, 0, sizeof node->env);
    node->env.vfs = node->vfs != NULL ? node->vfs : vfs_posix();
    node->env.clock = clock_system();
    node->env.replica_host = node->host;
    node->env.store = n->store;
    node->env.read_arena_bytes_max = 64u << 20;
    node->env.shard_inflight_bytes_max = 64u << 20;
    node->env.node_inflight_bytes_max = 256u << 20;
    node->env.election_ms = n->host.cluster.election_ms;
    atomic_store(&node->env.disk_headroom, INT64_MAX);
    shard_env_init(&node->env);
    struct err err = { 0 };
    ck_assert_int_eq(search_pool_start(2, 1024, &node->env.pool, &err), OMEN_OK);
    ck_assert_int_eq(room_keeper_start(shard_host_make_room, &node->env.rooms, &err), OMEN_OK);
    const struct ship_options ship = { .clock = clock_system() };
    ck_assert_int_eq(ship_start(&ship, &node->env.ship, &err), OMEN_OK);
    ck_assert_int_eq(fetcher_start(node->env.vfs, clock_system(), &node->env.fetcher, &err), OMEN_OK);
}

/* The port that serves files serves nothing else here. */
static struct map *no_map(void *self) { return NULL; }
static const struct shard_service no_service = { .map_acquire = no_map };

static void port_up(struct shard_nodes *n, struct shard_node *node)
{
    char url[64];
    struct err err = { 0 };
    snprintf(url, sizeof url, "tcp://127.0.0.1:%u", node->file_port);
    struct node_port_options o = { .url = url,
        .service = &no_service,
        .clock = clock_system(),
        .key = n->key,
        .node_id = node->node_id,
        .advertise = "",
        .ship = node->env.ship,
        .requests_max = 100 };
    enum omen_err rc = node_port_start(&o, &node->file_server, &err);
    ck_assert_msg(rc == OMEN_OK, "%s", err.message);
    node->file_port = node_port_number(node->file_server);
}

void shard_node_up(struct shard_nodes *n, uint32_t i)
{
    struct shard_node *node = &n->nodes[i];
    char listen[32], log_dir[400];
    struct err err = { 0 };
    struct replica_host_options o = n->host;
    snprintf(listen, sizeof listen, "127.0.0.1:%u", node->port);
    snprintf(log_dir, sizeof log_dir, "%s/log", node->dir);
    o.log.dir = log_dir;
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
    env_up(n, node);
    port_up(n, node);
}

void shard_node_open(struct shard_nodes *n, uint32_t i, uint64_t replica_id,
        const struct replica_member *members, uint32_t count)
{
    struct shard_node *node = &n->nodes[i];
    char dir[400];
    struct err err = { 0 };
    struct shard_host *shard;
    snprintf(dir, sizeof dir, "%s/%u-%u", node->dir, SHARD_NODES_GROUP, (unsigned)replica_id);
    struct shard_host_options o = { .env = &node->env,
        .dir = dir,
        .shard_id = SHARD_NODES_GROUP,
        .replica_id = replica_id,
        .collection_id = 5,
        .schema = &n->schema,
        .collection_name = "test",
        .raft = true,
        .node_id = node->node_id,
        .peers = &node->peers,
        .bootstrap = members,
        .bootstrap_count = count };
    enum omen_err rc = shard_host_open(&o, &shard, &err);
    ck_assert_msg(rc == OMEN_OK, "%s", err.message);
    pthread_mutex_lock(&node->lock);
    node->shard = shard;
    node->replica_id = replica_id;
    pthread_mutex_unlock(&node->lock);
}

void shard_node_close(struct shard_nodes *n, uint32_t i)
{
    struct shard_node *node = &n->nodes[i];
    pthread_mutex_lock(&node->lock);
    struct shard_host *shard = node->shard;
    node->shard = NULL;
    pthread_mutex_unlock(&node->lock);
    if (shard == NULL) return;
    shard_host_retire(shard, OMEN_EUNAVAILABLE);
    shard_host_close(shard);
}

void shard_node_down(struct shard_nodes *n, uint32_t i)
{
    struct shard_node *node = &n->nodes[i];
    if (node->host == NULL) return;
    node_port_stop(node->file_server);
    node->file_server = NULL;
    shard_node_close(n, i);
    fetcher_stop(node->env.fetcher);
    ship_stop(node->env.ship);
    room_keeper_stop(node->env.rooms);
    search_pool_stop(node->env.pool);
    shard_env_fini(&node->env);
    replica_host_close(node->host);
    node->host = NULL;
}

void shard_nodes_start(struct shard_nodes *n, uint32_t voters)
{
    struct replica_member members[SHARD_NODES_MAX];
    for (uint32_t i = 0; i < voters; i++)
        members[i] = (struct replica_member){ i + 1, n->nodes[i].node_id, REPLICA_VOTER };
    for (uint32_t i = 0; i < n->count; i++) shard_node_up(n, i);
    for (uint32_t i = 0; i < voters; i++) shard_node_open(n, i, i + 1, members, voters);
}

void shard_nodes_reopen(struct shard_nodes *n, uint32_t i)
{
    shard_node_up(n, i);
    shard_node_open(n, i, n->nodes[i].replica_id, NULL, 0);
}

/* ---- calls ---- */

struct call_wait {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    bool over;
    enum omen_err rc;
};
#define CALL_WAIT                                                                                            \
    {                                                                                                        \
        PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false, OMEN_OK                                  \
    }

static void wait_end(struct call_wait *w, enum omen_err rc)
{
    pthread_mutex_lock(&w->mutex);
    w->over = true;
    w->rc = rc;
    pthread_cond_signal(&w->cond);
    pthread_mutex_unlock(&w->mutex);
}

static enum omen_err wait_for(struct call_wait *w)
{
    pthread_mutex_lock(&w->mutex);
    while (!w->over) pthread_cond_wait(&w->cond, &w->mutex);
    pthread_mutex_unlock(&w->mutex);
    return w->rc;
}

static void call_done(struct shard_call *call) { wait_end(call->arg, call->code); }

enum omen_err shard_node_run(struct shard_node *node, struct shard_call *call)
{
    struct call_wait w = CALL_WAIT;
    call->shard_id = SHARD_NODES_GROUP;
    call->collection_id = 5;
    call->done = call_done;
    call->arg = &w;
    if (call->deadline_ns == 0) call->deadline_ns = clock_monotonic_ns(clock_system()) + CALL_MS * 1000000ull;
    shard_host_submit(node->shard, call);
    return wait_for(&w);
}

enum omen_err shard_node_upsert(struct shard_node *node, uint64_t id, struct op_id op_id,
        struct shard_call *call)
{
    float vector[SHARD_NODES_DIM] = { (float)id, 1 };
    struct point_op op = { .kind = POINT_UPSERT, .id = { 0, id, 0 }, .vectors = { vector } };
    *call = (struct shard_call){ .kind = CALL_WRITE };
    call->in.write.ops = &op;
    call->in.write.count = 1;
    call->in.write.op_id = op_id;
    enum omen_err rc = shard_node_run(node, call);
    shard_host_release(call);
    return rc;
}

uint32_t shard_nodes_leader(struct shard_nodes *n, uint32_t but)
{
    for (uint64_t until = now_ms() + SHARD_NODES_WAIT_MS; now_ms() < until; usleep(2000)) {
        for (uint32_t i = 0; i < n->count; i++) {
            struct shard_host_status s;
            if (i == but || n->nodes[i].shard == NULL) continue;
            shard_host_status(n->nodes[i].shard, &s);
            if (s.replica.leader) return i;
        }
    }
    ck_abort_msg("no leader");
}

uint64_t shard_nodes_fill_once(struct shard_nodes *n, uint64_t first, uint32_t count, uint32_t bytes,
        enum omen_err *rc_out)
{
    static float vectors[FILL_MAX][SHARD_NODES_DIM];
    static struct point_op ops[FILL_MAX];
    static char text[65536];
    struct doc payload;
    struct doc_builder *b = doc_builder_new(1u << 20);
    ck_assert_uint_le(count, FILL_MAX);
    ck_assert_uint_le(bytes, sizeof text);
    for (uint32_t i = 0; i < bytes; i++) text[i] = (char)('a' + (first + i * i) % 26);
    doc_begin_object(b);
    doc_key(b, "t", 1);
    doc_put_string(b, text, bytes);
    doc_end(b);
    ck_assert_int_eq(doc_builder_finish(b, &payload, NULL), OMEN_OK);
    for (uint32_t i = 0; i < count; i++) {
        memset(vectors[i], 0, sizeof vectors[i]);
        vectors[i][0] = (float)(first + i);
        ops[i] = (struct point_op){ .kind = POINT_UPSERT,
            .id = { 0, first + i, 0 },
            .vectors = { vectors[i] },
            .payload = payload };
    }
    struct shard_call call = { .kind = CALL_WRITE };
    call.in.write.ops = ops;
    call.in.write.count = count;
    *rc_out = shard_node_run(&n->nodes[shard_nodes_leader(n, UINT32_MAX)], &call);
    shard_host_release(&call);
    doc_builder_free(b);
    return call.sequence;
}

uint64_t shard_nodes_fill(struct shard_nodes *n, uint64_t first, uint32_t count, uint32_t bytes)
{
    for (uint64_t until = now_ms() + SHARD_NODES_WAIT_MS; now_ms() < until; usleep(5000)) {
        enum omen_err rc;
        uint64_t sequence = shard_nodes_fill_once(n, first, count, bytes, &rc);
        if (rc == OMEN_OK) return sequence;
        ck_assert_msg(rc == OMEN_ENOTLEADER || rc == OMEN_EBUSY || rc == OMEN_EUNKNOWN, "%s", err_name(rc));
    }
    ck_abort_msg("nothing committed");
}

void shard_nodes_hold_apply(struct shard_node *node, bool hold)
{
    struct shard_store *store = atomic_load(&node->shard->store);
    if (hold)
        pthread_mutex_lock(&store->apply_mutex);
    else
        pthread_mutex_unlock(&store->apply_mutex);
}

void shard_nodes_checkpoint(struct shard_nodes *n)
{
    for (uint32_t i = 0; i < n->count; i++) {
        if (n->nodes[i].shard == NULL) continue;
        struct replica *replica = shard_host_replica(n->nodes[i].shard);
        for (uint32_t twice = 0; twice < 2; twice++)
            ck_assert_int_eq(replica_checkpoint(replica, NULL), OMEN_OK);
    }
}

uint64_t shard_nodes_upsert(struct shard_nodes *n, uint64_t id, struct op_id op_id)
{
    for (uint64_t until = now_ms() + SHARD_NODES_WAIT_MS; now_ms() < until; usleep(5000)) {
        struct shard_call call;
        uint32_t i = shard_nodes_leader(n, UINT32_MAX);
        enum omen_err rc = shard_node_upsert(&n->nodes[i], id, op_id, &call);
        if (rc == OMEN_OK) return call.sequence;
        ck_assert_msg(rc == OMEN_ENOTLEADER || rc == OMEN_EBUSY || rc == OMEN_EUNKNOWN ||
                        rc == OMEN_EDEADLINE,
                "%s: %s", err_name(rc), call.err.message);
    }
    ck_abort_msg("nothing committed");
}

uint64_t shard_node_count(struct shard_node *node, enum consistency consistency, uint64_t token,
        enum omen_err *code_out)
{
    struct shard_call call;
    enum omen_err rc;
    uint64_t until = now_ms() + SHARD_NODES_WAIT_MS;
    for (;;) {
        call = (struct shard_call){ .kind = CALL_COUNT, .consistency = consistency, .token_sequence = token };
        rc = shard_node_run(node, &call);
        /* On a machine that is busy with others a leader may be silent for long. */
        if (code_out != NULL || rc != OMEN_EUNAVAILABLE || now_ms() > until) break;
        shard_host_release(&call);
        usleep(5000);
    }
    uint64_t points = rc == OMEN_OK ? call.out.count.points : UINT64_MAX;
    if (code_out != NULL)
        *code_out = rc;
    else
        ck_assert_msg(rc == OMEN_OK, "%s: %s", err_name(rc), call.err.message);
    shard_host_release(&call);
    return points;
}

void shard_node_wait_applied(struct shard_node *node, uint64_t sequence)
{
    struct shard_host_status s;
    for (uint64_t until = now_ms() + SHARD_NODES_WAIT_MS; now_ms() < until; usleep(2000)) {
        shard_host_status(node->shard, &s);
        if (s.applied >= sequence) return;
    }
    ck_abort_msg("node %u stays at %u, wanted %u", node->node_id, (unsigned)s.applied, (unsigned)sequence);
}

void shard_node_wait_ready(struct shard_node *node)
{
    struct shard_host_status s;
    for (uint64_t until = now_ms() + SHARD_NODES_WAIT_MS; now_ms() < until; usleep(2000)) {
        shard_host_status(node->shard, &s);
        if (s.ready) return;
    }
    ck_abort_msg("node %u is not ready: applied %u, lag %u, fetching %d, \"%s\"", node->node_id,
            (unsigned)s.applied, (unsigned)s.replica.lag_entries, s.fetching, s.trouble);
}

static void change_done(void *arg, enum omen_err result, uint64_t sequence, const struct err *err)
{
    wait_end(arg, result);
}

enum omen_err shard_node_change(struct shard_node *node, char kind, uint64_t replica_id, uint64_t arg)
{
    struct call_wait w = CALL_WAIT;
    struct replica *replica = shard_host_replica(node->shard);
    switch (kind) {
    case '+': replica_add(replica, replica_id, arg, change_done, &w); break;
    case '-': replica_remove(replica, replica_id, change_done, &w); break;
    case '=': replica_assign(replica, replica_id, (enum replica_member_role)arg, change_done, &w); break;
    case '>': replica_transfer(replica, replica_id, change_done, &w); break;
    default: ck_abort_msg("unknown change");
    }
    return wait_for(&w);
}
