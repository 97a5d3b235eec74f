/* See fake_cluster.h. */
#include "tests/support/fake_cluster.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/check.h"

/* ---- the service of one node ---- */

static bool op_known(struct fake_cluster *c, struct op_id op)
{
    if (op.client == 0) return false;
    for (uint32_t i = 0; i < c->op_count; i++)
        if (c->ops[i].client == op.client && c->ops[i].seq == op.seq) return true;
    CHECK(c->op_count < FAKE_OPS_MAX);
    c->ops[c->op_count++] = op;
    return false;
}

/* Needs the lock. */
static void run_write(struct fake_node *node, struct shard_call *call)
{
    struct fake_cluster *c = node->cluster;
    call->out.write.duplicate = op_known(c, call->in.write.op_id);
    call->out.write.affected = call->in.write.count;
    if (!call->out.write.duplicate) {
        c->writes++;
        c->sequence++;
    }
    node->sequence = call->sequence = c->sequence;
    if (node->unknown_count == 0) return;
    node->unknown_count--;
    call->code = err_set(&call->err, OMEN_EUNKNOWN, "", "the leader was lost");
}

static bool needs_leader(const struct shard_call *call)
{
    return call->kind == CALL_WRITE || call->kind >= CALL_CATALOG ||
            (call->kind != CALL_STATS && call->consistency == CONSISTENCY_LINEARIZABLE);
}

static void run(struct fake_node *node, struct shard_call *call)
{
    struct fake_cluster *c = node->cluster;
    pthread_mutex_lock(&c->lock);
    call->code = OMEN_OK;
    call->sequence = node->sequence;
    call->stale = node->stale && call->kind >= CALL_SEARCH && call->kind <= CALL_COUNT;
    if (node->fail_count > 0) {
        node->fail_count--;
        call->code = err_set(&call->err, node->fail_code, "", "told to fail");
        if (node->fail_count == 0 && node->fail_next != OMEN_OK) {
            node->fail_code = node->fail_next;
            node->fail_next = OMEN_OK;
            node->fail_count = 1;
        }
    } else if (needs_leader(call) && c->leader != node->id) {
        call->code = err_set(&call->err, OMEN_ENOTLEADER, "", "another one leads");
        call->leader_hint = node->hint == UINT32_MAX ? 0 : node->hint != 0 ? node->hint : c->leader;
    } else if (call->kind == CALL_WRITE) {
        run_write(node, call);
    } else if (call->kind == CALL_COUNT) {
        call->out.count.points = 1;
    } else if (call->kind == CALL_CLUSTER) {
        call->out.cluster.reply = call->in.cluster.request; /* said back */
    } else if (call->kind == CALL_STATS) {
        call->out.stats.points = node->id;
    } else if (call->kind == CALL_SEARCH) {
        call->out.search.hits = calloc(call->in.search.count, sizeof *call->out.search.hits);
        call->out.search.counts = calloc(call->in.search.count, sizeof *call->out.search.counts);
        for (uint32_t i = 0; i < call->in.search.count; i++) { /* one hit each: the shard itself */
            struct hit *hit = calloc(1, sizeof *hit);
            hit->point.id = (point_id){ 0, call->shard_id, POINT_ID_U64 };
            hit->distance = hit->score = (float)call->shard_id;
            call->out.search.hits[i] = hit;
            call->out.search.counts[i] = 1;
        }
    }
    pthread_mutex_unlock(&c->lock);
    call->done(call);
}

static void submit(void *self, struct shard_call *call)
{
    struct fake_node *node = self;
    pthread_mutex_lock(&node->cluster->lock);
    node->calls[call->kind]++;
    node->outstanding++;
    bool hold = node->hold;
    if (hold) {
        CHECK(node->held_count < FAKE_HELD_MAX);
        node->held[node->held_count++] = call;
    }
    pthread_mutex_unlock(&node->cluster->lock);
    if (!hold) run(node, call);
}

static void release(void *self, struct shard_call *call)
{
    struct fake_node *node = self;
    if (call->kind == CALL_SEARCH && call->out.search.hits != NULL) {
        for (uint32_t i = 0; i < call->in.search.count; i++) free(call->out.search.hits[i]);
        free(call->out.search.hits);
        free(call->out.search.counts);
    }
    pthread_mutex_lock(&node->cluster->lock);
    node->outstanding--;
    pthread_mutex_unlock(&node->cluster->lock);
}

static struct map *map_acquire(void *self)
{
    struct fake_node *node = self;
    pthread_mutex_lock(&node->cluster->lock);
    struct map *map = node->map == NULL ? NULL : map_ref(node->map);
    pthread_mutex_unlock(&node->cluster->lock);
    return map;
}

static const char *not_ready(void *self) { return NULL; }

static void status(void *self, struct doc_builder *b)
{
    doc_key(b, "fake", 4);
    doc_put_bool(b, true);
}

static uint32_t nodes(void *arg, struct map_node *out)
{
    struct fake_cluster *c = arg;
    if (c->nodes[0].map == NULL) return 0;
    for (uint32_t i = 0; i < c->node_count; i++) {
        out[i] = (struct map_node){ .node_id = c->nodes[i].id };
        memcpy(out[i].address, c->nodes[i].address, sizeof out[i].address);
    }
    return c->node_count;
}

/* ---- life ---- */

static void port_start(struct fake_cluster *c, struct fake_node *node)
{
    struct err err;
    struct node_port_options options = {
        .url = node->address,
        .service = &node->service,
        .clock = clock_system(),
        .metrics = node->metrics,
        .key = c->key,
        .node_id = node->map == NULL ? 0 : node->id,
        .advertise = "",
        .requests_max = 256,
        .nodes = nodes,
        .arg = c,
    };
    enum omen_err rc = node_port_start(&options, &node->port, &err);
    if (rc != OMEN_OK) panic("%s", err.message);
}

static struct map *map_new(uint32_t node_count, uint32_t shards, bool spread)
{
    struct map *map = mem_must_calloc(1, sizeof *map);
    atomic_init(&map->refs, 1);
    map->epoch = 5;
    map->incarnation = 77;
    map->collections = mem_must_calloc(1, sizeof *map->collections);
    map->collection_count = 1;
    struct map_collection *c = map->collections;
    c->id = 3;
    memcpy(c->name, "c", 2);
    c->schema = (struct collection_schema){ .field_count = 1,
        .fields = { { .dim = 2, .metric = METRIC_L2 } } };
    c->replication = spread ? 1 : node_count;
    c->recall_target = 0.95f;
    c->shards = mem_must_calloc(shards, sizeof *c->shards);
    c->shard_count = shards;
    map_cut_slots(c->shards, shards);
    for (uint32_t i = 0; i < shards; i++) {
        struct map_shard *s = &c->shards[i];
        s->shard_id = 11 + i;
        s->replica_count = spread ? 1 : node_count;
        for (uint32_t r = 0; r < s->replica_count; r++) {
            s->replica_ids[r] = 1 + r;
            s->node_ids[r] = spread ? 1 + i % node_count : 1 + r;
        }
    }
    return map;
}

struct fake_cluster *fake_cluster_new(uint32_t node_count, uint32_t shards, bool spread)
{
    CHECK(node_count <= FAKE_NODES_MAX);
    struct fake_cluster *c = mem_must_calloc(1, sizeof *c);
    pthread_mutex_init(&c->lock, NULL);
    c->key = (struct siphash_key){ 7, 8 };
    c->node_count = node_count;
    c->leader = 1;
    struct map *map = map_new(node_count, shards, spread);
    for (uint32_t i = 0; i < node_count; i++) {
        struct fake_node *node = &c->nodes[i];
        node->cluster = c;
        node->id = i + 1;
        node->map = map_ref(map);
        node->metrics = metrics_new();
        node->service = (struct shard_service){ .self = node,
            .submit = submit,
            .release = release,
            .map_acquire = map_acquire,
            .not_ready = not_ready,
            .status = status };
        snprintf(node->address, sizeof node->address, "tcp://127.0.0.1:0");
        port_start(c, node);
        snprintf(node->address, sizeof node->address, "tcp://127.0.0.1:%u", node_port_number(node->port));
    }
    map_unref(map);
    return c;
}

void fake_node_kill(struct fake_cluster *c, uint32_t id)
{
    struct fake_node *node = fake_node_at(c, id);
    fake_let_go(c, id);
    node_port_stop(node->port);
    node->port = NULL;
}

void fake_cluster_unjoin(struct fake_cluster *c)
{
    for (uint32_t i = 0; i < c->node_count; i++) {
        fake_node_kill(c, c->nodes[i].id);
        map_unref(c->nodes[i].map);
        c->nodes[i].map = NULL;
        fake_node_revive(c, c->nodes[i].id);
    }
}

void fake_node_revive(struct fake_cluster *c, uint32_t id) { port_start(c, fake_node_at(c, id)); }

void fake_cluster_free(struct fake_cluster *c)
{
    for (uint32_t i = 0; i < c->node_count; i++) {
        struct fake_node *node = &c->nodes[i];
        if (node->port != NULL) fake_node_kill(c, node->id);
        CHECK(node->outstanding == 0);
        map_unref(node->map);
        metrics_free(node->metrics);
    }
    pthread_mutex_destroy(&c->lock);
    mem_free(c);
}

struct fake_node *fake_node_at(struct fake_cluster *c, uint32_t id)
{
    CHECK(id >= 1 && id <= c->node_count);
    return &c->nodes[id - 1];
}

void fake_let_go(struct fake_cluster *c, uint32_t id)
{
    struct fake_node *node = fake_node_at(c, id);
    struct shard_call *held[FAKE_HELD_MAX];
    pthread_mutex_lock(&c->lock);
    node->hold = false;
    uint32_t count = node->held_count;
    memcpy(held, node->held, count * sizeof held[0]);
    node->held_count = 0;
    pthread_mutex_unlock(&c->lock);
    for (uint32_t i = 0; i < count; i++) run(node, held[i]);
}

void fake_map_advance(struct fake_cluster *c, uint32_t except, void (*change)(struct map *map))
{
    pthread_mutex_lock(&c->lock);
    struct map *map = map_clone(c->nodes[0].map);
    CHECK(map != NULL);
    map->epoch++;
    if (change != NULL) change(map);
    for (uint32_t i = 0; i < c->node_count; i++) {
        if (c->nodes[i].id == except) continue;
        map_unref(c->nodes[i].map);
        c->nodes[i].map = map_ref(map);
    }
    pthread_mutex_unlock(&c->lock);
    map_unref(map);
}

uint32_t fake_calls(struct fake_cluster *c, uint32_t id, enum shard_call_kind kind)
{
    pthread_mutex_lock(&c->lock);
    uint32_t calls = fake_node_at(c, id)->calls[kind];
    pthread_mutex_unlock(&c->lock);
    return calls;
}

uint64_t fake_metric(struct metrics *metrics, const char *name_and_labels)
{
    struct buf page;
    buf_init(&page);
    metrics_render(metrics, &page);
    buf_append_zero(&page, 1);
    char line[256];
    snprintf(line, sizeof line, "\n%s ", name_and_labels);
    const char *at = strstr((const char *)page.data, line);
    uint64_t value = at == NULL ? 0 : strtoull(at + strlen(line), NULL, 10);
    buf_fini(&page);
    return value;
}
