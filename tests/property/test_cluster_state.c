/* The cluster's state machine against what must hold whatever is proposed: replicas that applied the same entries are
 * equal byte for byte, also one that was closed, read back and went on; ids are never given out twice; no shard has two
 * replicas on a node; a shard has one operation at most; the map is one that routers accept. And plans: what they move,
 * they move to where it helps. OMEN_SEED=n repeats a run. */
#include "common/err.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/wire/shard_message.h"
#include "node/cluster/plan.h"
#include "node/cluster/state.h"
#include "tests/support/entry_support.h"

#define STEPS 400
#define RUNS 8

static uint64_t random_state;
static bool zones; /* whether nodes that are added may have some */

static uint32_t rnd(uint32_t n)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return n == 0 ? 0 : (uint32_t)(random_state >> 11) % n;
}

struct world {
    char dirs[2][128];
    struct catalog *replicas[2];
    struct replica_fsm fsms[2];
    uint64_t sequence;
    uint64_t highest_replica, highest_shard, highest_op;
    uint32_t version;
    uint32_t highest_node;
};

static void replica_open_at(struct world *w, int i)
{
    struct err err;
    enum omen_err rc = catalog_open(vfs_posix(), w->dirs[i], 42, &w->replicas[i], &err);
    ck_assert_msg(rc == OMEN_OK, "%s", err.message);
    catalog_fsm(w->replicas[i], &w->fsms[i]);
}

static void world_init(struct world *w)
{
    *w = (struct world){ .sequence = 0 };
    for (int i = 0; i < 2; i++) {
        const char *tmp = getenv("TMPDIR");
        snprintf(w->dirs[i], sizeof w->dirs[i], "%.90s/omen-XXXXXX", tmp != NULL ? tmp : "/tmp");
        ck_assert_ptr_nonnull(mkdtemp(w->dirs[i]));
        replica_open_at(w, i);
    }
}

static void world_fini(struct world *w)
{
    for (int i = 0; i < 2; i++) {
        catalog_close(w->replicas[i]);
        ck_assert_int_eq(vfs_remove_tree(vfs_posix(), w->dirs[i], NULL), OMEN_OK);
    }
}

static struct catalog_outcome propose(struct world *w, uint8_t *entry, uint32_t len)
{
    struct catalog_outcome outcome[2];
    w->sequence++;
    for (int i = 0; i < 2; i++) {
        struct err err;
        enum omen_err rc = w->fsms[i].apply(w->fsms[i].self, w->sequence, entry, len, &outcome[i], &err);
        ck_assert_msg(rc == OMEN_OK, "%s", err.message);
    }
    ck_assert_int_eq(outcome[0].code, outcome[1].code);
    mem_free(entry);
    return outcome[0];
}

static struct catalog_outcome change(struct world *w, const struct cluster_change *c)
{
    uint8_t *entry;
    uint32_t len;
    ck_assert_int_eq(cluster_entry_encode(c, 1000 + w->sequence, &entry, &len), OMEN_OK);
    return propose(w, entry, len);
}

static struct catalog_outcome collection(struct world *w, enum catalog_change_kind kind, uint32_t name,
        uint32_t shards, uint32_t replication)
{
    struct catalog_change c = { .kind = kind,
        .shard_count = shards,
        .replication = replication,
        .recall_target = 0.95f };
    uint32_t preferred[2] = { 1 + rnd(6), 1 + rnd(6) }, willing = rnd(3);
    uint8_t *entry;
    uint32_t len;
    snprintf(c.name, sizeof c.name, "c%u", name);
    if (kind == CATALOG_CREATE) c.schema = test_schema_simple(8, "tenant");
    ck_assert_int_eq(catalog_entry_encode(&c, 1000 + w->sequence, preferred, 2, willing, &entry, &len),
            OMEN_OK);
    return propose(w, entry, len);
}

static uint32_t node_level; /* of the builds of nodes that are added */

static struct catalog_outcome node_add(struct world *w, uint32_t n)
{
    struct cluster_change c = { .kind = w->sequence == 0 ? CLUSTER_CHANGE_INIT : CLUSTER_CHANGE_NODE_ADD,
        .cluster_id = 77,
        .incarnation = 42,
        .birth = 1000 + n,
        .level = node_level };
    snprintf(c.address, sizeof c.address, "tcp://127.0.0.%u:1", n);
    snprintf(c.raft_address, sizeof c.raft_address, "127.0.0.%u:2", n);
    if (zones && rnd(2) == 0) snprintf(c.labels, sizeof c.labels, "zone=%c,rack=1", 'a' + rnd(3));
    return change(w, &c);
}

/* ---- what must hold ---- */

static void check_shard(struct world *w, const struct cluster_state *s, const struct map_shard *shard)
{
    ck_assert_uint_gt(shard->replica_count, 0);
    ck_assert_uint_lt(shard->shard_id, s->next_group);
    for (uint32_t r = 0; r < shard->replica_count; r++) {
        const struct cluster_node *n = cluster_state_node(s, shard->node_ids[r]);
        ck_assert_msg(n != NULL && n->state != CLUSTER_NODE_REMOVED, "a replica on a node that is not there");
        ck_assert_uint_lt(shard->replica_ids[r], s->next_replica);
        for (uint32_t k = 0; k < r; k++) ck_assert_uint_ne(shard->node_ids[k], shard->node_ids[r]);
    }
    uint32_t ops = 0;
    for (uint32_t i = 0; i < s->op_count; i++) ops += s->ops[i].shard_id == shard->shard_id;
    ck_assert_uint_le(ops, 1);
    const struct cluster_shard *born = cluster_state_shard(s, shard->shard_id);
    ck_assert_ptr_nonnull(born);
    ck_assert_uint_gt(born->initial_count, 0);
}

/* A plan counts all of its moves; one that is ending has some; nodes that are drained are draining; nothing is planned
 * twice. */
static void check_plans(const struct cluster_state *s)
{
    for (uint32_t i = 0; i < s->plan_count; i++) {
        const struct cluster_plan *p = &s->plans[i];
        uint32_t under_way = 0;
        for (uint32_t k = 0; k < s->op_count; k++) under_way += s->ops[k].plan_id == p->plan_id;
        ck_assert_uint_eq(p->begun, p->done + p->canceled + under_way);
        ck_assert(!p->ending || under_way > 0);
        ck_assert_uint_le(p->bytes_done, p->bytes_begun);
        for (uint32_t k = 0; k < i; k++) {
            ck_assert_uint_ne(s->plans[k].node_id, p->node_id);
            ck_assert_uint_lt(s->plans[k].plan_id, p->plan_id);
        }
        if (p->node_id == 0 || p->ending) continue;
        const struct cluster_node *n = cluster_state_node(s, p->node_id);
        ck_assert(n != NULL && n->state == CLUSTER_NODE_DRAINING);
    }
    ck_assert_uint_le(s->plan_history_count, CLUSTER_PLAN_HISTORY_MAX);
    for (uint32_t i = 0; i < s->plan_history_count; i++) {
        const struct cluster_plan *p = &s->plan_history[i];
        ck_assert_uint_eq(p->begun, p->done + p->canceled);
        ck_assert_ptr_null(cluster_state_plan(s, p->plan_id));
    }
}

static void check_equal(struct world *w)
{
    struct buf bytes[2];
    uint64_t at[2];
    for (int i = 0; i < 2; i++) {
        buf_init(&bytes[i]);
        catalog_export(w->replicas[i], &bytes[i], &at[i]);
    }
    ck_assert_uint_eq(at[0], at[1]);
    ck_assert_uint_eq(bytes[0].len, bytes[1].len);
    ck_assert_int_eq(memcmp(bytes[0].data, bytes[1].data, bytes[0].len), 0);
    for (int i = 0; i < 2; i++) buf_fini(&bytes[i]);
}

static void check(struct world *w)
{
    struct cluster_state *s = cluster_state_acquire(w->replicas[0]);
    ck_assert_msg(s->next_replica >= w->highest_replica && s->next_group >= w->highest_shard &&
                    s->next_op >= w->highest_op && s->next_node >= w->highest_node,
            "a counter went back");
    w->highest_replica = s->next_replica;
    w->highest_shard = s->next_group;
    w->highest_op = s->next_op;
    w->highest_node = (uint32_t)s->next_node;
    ck_assert_uint_ge(s->version, w->version);
    w->version = s->version;
    for (uint32_t i = 0; i < s->op_count; i++)
        ck_assert(!s->ops[i].given_up || s->ops[i].step == OP_CANCELING);
    for (uint32_t i = 0; i < s->history_count; i++)
        ck_assert(!s->history[i].given_up || s->history[i].canceled);
    for (uint32_t c = 0; c < s->map->collection_count; c++)
        for (uint32_t i = 0; i < s->map->collections[c].shard_count; i++)
            check_shard(w, s, &s->map->collections[c].shards[i]);
    check_plans(s);
    struct buf bytes;
    struct map *map;
    struct err err;
    buf_init(&bytes);
    shard_map_encode(s->map, &bytes);
    enum omen_err rc = shard_map_decode((struct bytes){ bytes.data, bytes.len }, &map, &err);
    ck_assert_msg(rc == OMEN_OK, "routers would refuse the map: %s", err.message);
    map_unref(map);
    buf_fini(&bytes);
    cluster_state_unref(s);
    check_equal(w);
}

/* ---- random steps ---- */

static void step_ops_start(struct world *w, const struct cluster_state *s)
{
    struct cluster_move moves[3];
    struct cluster_change c = { .kind = CLUSTER_CHANGE_OPS_START,
        .why = OP_WHY_MOVE,
        .moves = moves,
        .move_count = 1 + rnd(3) };
    if (rnd(2) == 0) {
        c.kind = CLUSTER_CHANGE_PLAN_START;
        c.node_id = rnd(2) == 0 ? 0 : 1 + rnd(7);
        c.why = c.node_id == 0 ? OP_WHY_REBALANCE : OP_WHY_DRAIN;
        c.move_count = rnd(2);
        c.ahead = rnd(3);
    } else if (s->plan_count > 0 && rnd(2) == 0) {
        c.kind = CLUSTER_CHANGE_PLAN_STEP;
        c.plan_id = s->plans[rnd(s->plan_count)].plan_id;
        c.move_count = rnd(2);
    }
    for (uint32_t i = 0; i < c.move_count; i++) {
        moves[i] = (struct cluster_move){ 2 + rnd((uint32_t)s->next_group), 0, rnd(8), rnd(1000) };
        struct map_shard *shard = cluster_map_shard((struct cluster_state *)(uintptr_t)s, moves[i].shard_id,
                NULL);
        if (shard != NULL && rnd(4) > 0)
            moves[i].from_replica = shard->replica_ids[rnd(shard->replica_count)];
    }
    (void)change(w, &c);
}

static void step_op(struct world *w, const struct cluster_state *s)
{
    struct cluster_change c = { .kind = rnd(5) == 0 ? CLUSTER_CHANGE_OP_CANCEL : CLUSTER_CHANGE_OP_STEP };
    if (rnd(20) == 0 && s->plan_count > 0) {
        c = (struct cluster_change){ .kind = CLUSTER_CHANGE_OP_CANCEL,
            .plan_id = s->plans[rnd(s->plan_count)].plan_id };
        (void)change(w, &c);
    }
    if (s->op_count == 0) return;
    const struct cluster_op *op = &s->ops[rnd(s->op_count)];
    c.op_id = op->op_id;
    c.step_from = rnd(8) == 0 ? (enum cluster_op_step)(1 + rnd(5)) : op->step;
    c.step_to = rnd(8) == 0           ? (enum cluster_op_step)(1 + rnd(5))
            : op->step == OP_ADD      ? (op->to_replica != 0 ? OP_CATCH_UP : OP_SWITCH)
            : op->step == OP_CATCH_UP ? OP_SWITCH
                                      : OP_END;
    (void)change(w, &c);
}

static void step_node(struct world *w)
{
    struct cluster_change c = { .kind = CLUSTER_CHANGE_NODE_STATE,
        .node_id = 1 + rnd(7),
        .node_state = (enum cluster_node_state)(1 + rnd(3)) };
    (void)change(w, &c);
}

static void step_version(struct world *w, const struct cluster_state *s)
{
    struct cluster_change c = { .kind = rnd(2) == 0 ? CLUSTER_CHANGE_VERSION_HOLD
                                                    : CLUSTER_CHANGE_VERSION_RAISE,
        .level = 2,
        .held = rnd(4) == 0,
        .node_id = (uint32_t)s->next_node - 1 - rnd(2) };
    if (c.kind == CLUSTER_CHANGE_VERSION_RAISE || s->version > 1) (void)change(w, &c); /* as it is proposed */
}

static void step_reopen(struct world *w)
{
    struct err err;
    if (rnd(2) == 0) { /* from its file */
        ck_assert_int_eq(w->fsms[1].checkpoint(w->fsms[1].self, &err), OMEN_OK);
        catalog_close(w->replicas[1]);
        replica_open_at(w, 1);
    } else { /* a new one that gets the other's base */
        struct buf bytes;
        uint64_t at;
        catalog_close(w->replicas[1]);
        ck_assert_int_eq(vfs_remove_tree(vfs_posix(), w->dirs[1], NULL), OMEN_OK);
        ck_assert_int_eq(vfs_mkdir(vfs_posix(), w->dirs[1], &err), OMEN_OK);
        replica_open_at(w, 1);
        buf_init(&bytes);
        catalog_export(w->replicas[0], &bytes, &at);
        enum omen_err rc = catalog_import(w->replicas[1], (struct bytes){ bytes.data, bytes.len }, &err);
        ck_assert_msg(rc == OMEN_OK, "%s", err.message);
        buf_fini(&bytes);
    }
    ck_assert_uint_eq(w->fsms[1].applied(w->fsms[1].self), w->sequence);
}

START_TEST(replicas_stay_equal_and_the_map_valid)
{
    const char *given = getenv("OMEN_SEED");
    uint64_t seed = given != NULL ? strtoull(given, NULL, 10) : 9000 + (uint64_t)_i;
    printf("seed %llu\n", (unsigned long long)seed);
    random_state = seed * 0x9e3779b97f4a7c15ull + 1;
    struct world w;
    zones = true;
    node_level = 0;
    world_init(&w);
    for (uint32_t n = 1; n <= 3; n++) ck_assert_int_eq(node_add(&w, n).code, OMEN_OK);
    for (int i = 0; i < STEPS; i++) {
        struct cluster_state *s = cluster_state_acquire(w.replicas[0]);
        node_level = rnd(3);
        if (rnd(20) == 0) step_version(&w, s);
        switch (rnd(12)) {
        case 0: (void)collection(&w, CATALOG_CREATE, rnd(6), 1 + rnd(4), 1 + rnd(4)); break;
        case 1: (void)collection(&w, CATALOG_DROP, rnd(6), 0, 0); break;
        case 2: (void)node_add(&w, 1 + rnd(9)); break;
        case 3: step_node(&w); break;
        case 4: step_reopen(&w); break;
        case 5:
        case 6: step_ops_start(&w, s); break;
        default: step_op(&w, s); break;
        }
        cluster_state_unref(s);
        check(&w);
    }
    world_fini(&w);
}
END_TEST

START_TEST(who_asks_twice_gets_the_same_ids_and_a_wiped_disk_none)
{
    struct world w;
    random_state = 1;
    world_init(&w);
    ck_assert_uint_eq(node_add(&w, 1).node_id, 1);
    struct catalog_outcome first = node_add(&w, 2), again = node_add(&w, 2);
    ck_assert_uint_eq(first.node_id, again.node_id);
    ck_assert_uint_eq(first.catalog_replica_id, again.catalog_replica_id);
    struct cluster_change c = { .kind = CLUSTER_CHANGE_NODE_ADD,
        .birth = 4711,
        .raft_address = "127.0.0.2:2" };
    snprintf(c.address, sizeof c.address, "tcp://127.0.0.2:1");
    ck_assert_int_eq(change(&w, &c).code, OMEN_EEXISTS);
    struct cluster_change gone = { .kind = CLUSTER_CHANGE_NODE_STATE,
        .node_id = first.node_id,
        .node_state = CLUSTER_NODE_REMOVED };
    ck_assert_int_eq(change(&w, &gone).code, OMEN_OK);
    struct catalog_outcome other = change(&w, &c);
    ck_assert_int_eq(other.code, OMEN_OK);
    ck_assert_uint_gt(other.node_id, first.node_id);
    ck_assert_uint_gt(other.catalog_replica_id, first.catalog_replica_id);
    world_fini(&w);
}
END_TEST

START_TEST(replicas_are_spread_over_zones)
{
    struct world w;
    world_init(&w);
    for (uint32_t n = 1; n <= 6; n++) {
        struct cluster_change c = { .kind = n == 1 ? CLUSTER_CHANGE_INIT : CLUSTER_CHANGE_NODE_ADD,
            .cluster_id = 77,
            .incarnation = 42,
            .birth = n };
        snprintf(c.address, sizeof c.address, "tcp://127.0.0.%u:1", n);
        snprintf(c.raft_address, sizeof c.raft_address, "127.0.0.%u:2", n);
        snprintf(c.labels, sizeof c.labels, "zone=%c,rack=%u", n <= 4 ? 'a' : 'a' + (int)n - 4, n);
        ck_assert_int_eq(change(&w, &c).code, OMEN_OK);
    }
    random_state = 3;
    ck_assert_int_eq(collection(&w, CATALOG_CREATE, 0, 16, 3).code, OMEN_OK);
    struct cluster_state *s = cluster_state_acquire(w.replicas[0]);
    for (uint32_t i = 0; i < 16; i++) {
        const struct map_shard *shard = &s->map->collections[0].shards[i];
        for (uint32_t r = 0; r < 3; r++)
            for (uint32_t k = 0; k < r; k++)
                ck_assert(!cluster_same_domain(cluster_state_node(s, shard->node_ids[r]),
                        cluster_state_node(s, shard->node_ids[k])));
    }
    cluster_state_unref(s);
    world_fini(&w);
}
END_TEST

/* A collection of one shard whose entry names `willing` of the nodes as willing. */
static struct catalog_outcome create_one(struct world *w, const char *name, uint32_t replication,
        const uint32_t *nodes, uint32_t count, uint32_t willing)
{
    struct catalog_change c = { .kind = CATALOG_CREATE,
        .shard_count = 1,
        .replication = replication,
        .recall_target = 0.95f };
    uint8_t *entry;
    uint32_t len;
    snprintf(c.name, sizeof c.name, "%s", name);
    c.schema = test_schema_simple(8, "tenant");
    ck_assert_int_eq(catalog_entry_encode(&c, 1000, nodes, count, willing, &entry, &len), OMEN_OK);
    return propose(w, entry, len);
}

START_TEST(a_node_that_is_down_gets_a_replica_only_when_no_other_can)
{
    static const uint32_t nodes[] = { 1, 2, 3, 4 };
    struct world w;
    char name[16];
    zones = false;
    random_state = 4;
    world_init(&w);
    for (uint32_t n = 1; n <= 4; n++) ck_assert_int_eq(node_add(&w, n).code, OMEN_OK);
    for (uint32_t i = 0; i < 8; i++) { /* node 4 is down, and the emptiest */
        snprintf(name, sizeof name, "up%u", i);
        ck_assert_int_eq(create_one(&w, name, 3, nodes, 4, 3).code, OMEN_OK);
    }
    ck_assert_int_eq(create_one(&w, "all", 4, nodes, 4, 3).code, OMEN_OK);
    ck_assert_int_eq(create_one(&w, "alike", 1, nodes, 4, 4).code, OMEN_OK);
    ck_assert_int_eq(create_one(&w, "unnamed", 2, nodes, 2, 1).code, OMEN_OK);
    struct cluster_state *s = cluster_state_acquire(w.replicas[0]);
    for (uint32_t i = 0; i < s->map->collection_count; i++) {
        const struct map_collection *c = &s->map->collections[i];
        bool there = false, first = c->shards[0].node_ids[0] == 1;
        for (uint32_t r = 0; r < c->replication; r++) there |= c->shards[0].node_ids[r] == 4;
        if (strcmp(c->name, "unnamed") == 0)
            ck_assert(first); /* all but node 1 are a last resort */
        else
            ck_assert_msg(there == (c->name[0] == 'a'), "%s", c->name);
    }
    cluster_state_unref(s);
    world_fini(&w);
}
END_TEST

/* ---- asked for twice ---- */

static struct cluster_change throttle(uint64_t client, uint64_t seq, uint64_t issue_ms, uint64_t value)
{
    return (struct cluster_change){ .kind = CLUSTER_CHANGE_THROTTLE,
        .throttle_bytes_per_s = value,
        .asked_as = { client, seq, issue_ms } };
}

static struct catalog_outcome change_at(struct world *w, const struct cluster_change *c, uint64_t log_time_ms)
{
    uint8_t *entry;
    uint32_t len;
    ck_assert_int_eq(cluster_entry_encode(c, log_time_ms, &entry, &len), OMEN_OK);
    return propose(w, entry, len);
}

START_TEST(who_repeats_a_change_is_told_what_was_told_first)
{
    struct world w;
    zones = false;
    random_state = 6;
    world_init(&w);
    for (uint32_t n = 1; n <= 4; n++) ck_assert_int_eq(node_add(&w, n).code, OMEN_OK);
    static const uint32_t nodes[] = { 1, 2, 3 };
    ck_assert_int_eq(create_one(&w, "docs", 3, nodes, 3, 3).code, OMEN_OK);
    struct cluster_state *s = cluster_state_acquire(w.replicas[0]);
    const struct map_shard *shard = &s->map->collections[0].shards[0];
    struct cluster_move move = { .shard_id = shard->shard_id,
        .from_replica = shard->replica_ids[0],
        .to_node = 4 };
    cluster_state_unref(s);
    struct cluster_change c = { .kind = CLUSTER_CHANGE_OPS_START,
        .why = OP_WHY_MOVE,
        .moves = &move,
        .move_count = 1,
        .asked_as = { 9, 1, 1000 } };
    struct catalog_outcome first = change(&w, &c);
    ck_assert_int_eq(first.code, OMEN_OK);
    ck_assert_uint_ne(first.first_op_id, 0);
    for (int i = 0; i < 4; i++) { /* also by a replica that was read back, or got the other's base */
        struct catalog_outcome again = change(&w, &c);
        ck_assert_int_eq(again.code, OMEN_OK);
        ck_assert_uint_eq(again.first_op_id, first.first_op_id);
        ck_assert_uint_eq(again.plan_id, first.plan_id);
        ck_assert_uint_eq(again.op_count, 1);
        step_reopen(&w);
        check(&w);
    }
    s = cluster_state_acquire(w.replicas[0]);
    ck_assert_uint_eq(s->op_count, 1);
    cluster_state_unref(s);
    c.asked_as.seq = 2; /* another request for the same */
    ck_assert_int_eq(change(&w, &c).code, OMEN_EBUSY);
    struct cluster_change removed = { .kind = CLUSTER_CHANGE_NODE_STATE,
        .node_id = 3,
        .node_state = CLUSTER_NODE_REMOVED,
        .asked_as = { 9, 3, 1000 } };
    ck_assert_int_eq(change(&w, &removed).code, OMEN_EBUSY); /* changed nothing: judged anew */
    struct catalog_change drop = { .kind = CATALOG_DROP, .name = "docs", .asked_as = { 9, 4, 1000 } };
    for (int i = 0; i < 2; i++) {
        uint8_t *entry;
        uint32_t len;
        ck_assert_int_eq(catalog_entry_encode(&drop, 1000, NULL, 0, 0, &entry, &len), OMEN_OK);
        ck_assert_int_eq(propose(&w, entry, len).code, OMEN_OK);
    }
    struct cluster_change end = { .kind = CLUSTER_CHANGE_OP_STEP,
        .op_id = first.first_op_id,
        .step_from = OP_ADD,
        .step_to = OP_END };
    ck_assert_int_eq(change(&w, &end).code, OMEN_OK);
    for (int i = 0; i < 2; i++) ck_assert_int_eq(change(&w, &removed).code, OMEN_OK);
    world_fini(&w);
}
END_TEST

START_TEST(what_may_have_been_made_long_ago_is_refused_and_memory_is_bounded)
{
    struct world w;
    random_state = 8;
    world_init(&w);
    ck_assert_int_eq(node_add(&w, 1).code, OMEN_OK);
    const uint64_t t = 10000000;
    struct cluster_change first = throttle(5, 1, t, 1), late = throttle(6, 1, t - CLUSTER_RESULT_MS - 1, 2),
                          ahead = throttle(6, 2, t + CLUSTER_RESULT_MS + 1, 3);
    ck_assert_int_eq(change_at(&w, &first, t).code, OMEN_OK);
    ck_assert_int_eq(change_at(&w, &late, t).code, OMEN_EOPEXPIRED);
    ck_assert_int_eq(change_at(&w, &ahead, t).code, OMEN_EOPEXPIRED);
    for (uint32_t i = 0; i < CLUSTER_RESULTS_MAX + 3; i++) {
        struct cluster_change c = throttle(7, i, t + 1 + i, 100 + i);
        ck_assert_int_eq(change_at(&w, &c, t + 1 + i).code, OMEN_OK);
    }
    ck_assert_int_eq(change_at(&w, &first, t + 2000).code, OMEN_EOPEXPIRED); /* there was no room for it */
    struct cluster_state *s = cluster_state_acquire(w.replicas[0]);
    ck_assert_uint_eq(s->result_count, CLUSTER_RESULTS_MAX);
    ck_assert_uint_eq(s->throttle_bytes_per_s, 100 + CLUSTER_RESULTS_MAX + 2);
    cluster_state_unref(s);
    step_reopen(&w);
    check(&w);
    const uint64_t later = t + 3 * CLUSTER_RESULT_MS;
    struct cluster_change fresh = throttle(5, 2, later, 4);
    ck_assert_int_eq(change_at(&w, &fresh, later).code, OMEN_OK);
    s = cluster_state_acquire(w.replicas[0]);
    ck_assert_uint_eq(s->result_count, 1); /* the others were too old to be kept */
    cluster_state_unref(s);
    check(&w);
    world_fini(&w);
}
END_TEST

static bool vital(const struct cluster_change *change)
{
    uint8_t *entry;
    uint32_t len;
    ck_assert_int_eq(cluster_entry_encode(change, 1000, &entry, &len), OMEN_OK);
    bool is = cluster_entry_vital(entry, len);
    ck_assert(!cluster_entry_vital(entry, 7));
    mem_free(entry);
    return is;
}

/* On the log's reserve only what gives room, brings it, or carries those on. */
START_TEST(changes_that_bring_no_room_leave_the_logs_reserve_alone)
{
    struct cluster_move move = { .shard_id = 2, .from_replica = 3, .to_node = 4 };
    static const enum catalog_change_kind NONE[] = { CATALOG_CREATE, CATALOG_ALIAS_SET, CATALOG_ALIAS_DROP,
        CATALOG_SET };
    for (size_t i = 0; i < sizeof NONE / sizeof *NONE; i++) {
        struct catalog_change c = { .kind = NONE[i], .name = "docs" };
        uint8_t *entry;
        uint32_t len;
        ck_assert_int_eq(catalog_entry_encode(&c, 1000, NULL, 0, 0, &entry, &len), OMEN_OK);
        ck_assert(!cluster_entry_vital(entry, len));
        mem_free(entry);
    }
    struct catalog_change drop = { .kind = CATALOG_DROP, .name = "docs" };
    uint8_t *entry;
    uint32_t len;
    ck_assert_int_eq(catalog_entry_encode(&drop, 1000, NULL, 0, 0, &entry, &len), OMEN_OK);
    ck_assert(cluster_entry_vital(entry, len));
    mem_free(entry);
    ck_assert(!vital(&(struct cluster_change){ .kind = CLUSTER_CHANGE_THROTTLE }));
    ck_assert(vital(
            &(struct cluster_change){ .kind = CLUSTER_CHANGE_OPS_START, .moves = &move, .move_count = 1 }));
    ck_assert(vital(&(struct cluster_change){ .kind = CLUSTER_CHANGE_OP_STEP, .op_id = 1 }));
    ck_assert(vital(&(struct cluster_change){ .kind = CLUSTER_CHANGE_OP_CANCEL, .op_id = 1 }));
    ck_assert(vital(&(struct cluster_change){ .kind = CLUSTER_CHANGE_NODE_STATE, .node_id = 1 }));
}
END_TEST

START_TEST(an_op_id_from_the_future_is_not_to_be_recorded)
{
    struct err err;
    const uint64_t t = 10000000;
    ck_assert_int_eq(cluster_op_id_timely(&(struct op_id){ 0, 0, 0 }, t, &err), OMEN_OK);
    ck_assert_int_eq(cluster_op_id_timely(&(struct op_id){ 5, 1, 1 }, t, &err),
            OMEN_OK); /* apply judges those */
    ck_assert_int_eq(cluster_op_id_timely(&(struct op_id){ 5, 1, t + CLUSTER_AHEAD_MS }, t, &err), OMEN_OK);
    ck_assert_int_eq(cluster_op_id_timely(&(struct op_id){ 5, 1, t + CLUSTER_AHEAD_MS + 1 }, t, &err),
            OMEN_EINVAL);
    ck_assert_str_eq(err.field, "op_id[2]");
    ck_assert_int_eq(cluster_op_id_timely(&(struct op_id){ 5, 1, UINT64_MAX }, t, &err), OMEN_EINVAL);
}
END_TEST

/* ---- plans ---- */

static void loads(const struct cluster_state *s, const struct plan_size *sizes, const struct plan_move *moves,
        uint32_t count, uint64_t *out)
{
    uint32_t at = 0;
    memset(out, 0, 16 * sizeof *out);
    for (uint32_t c = 0; c < s->map->collection_count; c++)
        for (uint32_t i = 0; i < s->map->collections[c].shard_count; i++, at++)
            for (uint32_t r = 0; r < s->map->collections[c].shards[i].replica_count; r++)
                out[s->map->collections[c].shards[i].node_ids[r]] += sizes[at].bytes;
    for (uint32_t i = 0; i < count; i++) {
        out[moves[i].from_node] -= moves[i].bytes;
        out[moves[i].to_node] += moves[i].bytes;
    }
}

START_TEST(a_fourth_node_gets_its_share_and_no_byte_more_moves_than_must)
{
    struct world w;
    struct err err;
    random_state = 77 + (uint64_t)_i;
    world_init(&w);
    for (uint32_t n = 1; n <= 3; n++) ck_assert_int_eq(node_add(&w, n).code, OMEN_OK);
    ck_assert_int_eq(collection(&w, CATALOG_CREATE, 0, 16, 3).code, OMEN_OK);
    ck_assert_int_eq(node_add(&w, 4).code, OMEN_OK);
    struct cluster_state *s = cluster_state_acquire(w.replicas[0]);
    struct plan_size sizes[16];
    for (uint32_t i = 0; i < 16; i++)
        sizes[i] = (struct plan_size){ s->map->collections[0].shards[i].shard_id,
            100 * 1000 * 1000 + rnd(3000000) };
    struct plan_move *moves;
    uint32_t count;
    uint64_t minimum, moved = 0, after[16];
    ck_assert_int_eq(plan_rebalance(s, sizes, 16, &moves, &count, &minimum, &err), OMEN_OK);
    for (uint32_t i = 0; i < count; i++) {
        moved += moves[i].bytes;
        ck_assert_uint_eq(moves[i].to_node, 4);
    }
    ck_assert_uint_ge(count, 11);
    ck_assert_msg(moved * 10 <= minimum * 11, "%llu moved, %llu must be", (unsigned long long)moved,
            (unsigned long long)minimum);
    loads(s, sizes, moves, count, after);
    for (uint32_t a = 1; a <= 4; a++)
        for (uint32_t b = 1; b <= 4; b++) ck_assert_uint_le(after[a], after[b] + 104 * 1000 * 1000);
    mem_free(moves);
    cluster_state_unref(s);
    world_fini(&w);
}
END_TEST

START_TEST(a_drain_finds_a_place_for_everything_or_says_for_what_there_is_none)
{
    struct world w;
    struct err err;
    random_state = 5;
    world_init(&w);
    for (uint32_t n = 1; n <= 4; n++) ck_assert_int_eq(node_add(&w, n).code, OMEN_OK);
    ck_assert_int_eq(collection(&w, CATALOG_CREATE, 0, 8, 3).code, OMEN_OK);
    struct cluster_state *s = cluster_state_acquire(w.replicas[0]);
    struct plan_move *moves;
    struct plan_stuck stuck;
    uint32_t count, held = 0;
    for (uint32_t i = 0; i < 8; i++)
        for (uint32_t r = 0; r < 3; r++) held += s->map->collections[0].shards[i].node_ids[r] == 2;
    ck_assert_int_eq(plan_drain(s, 2, NULL, 0, &moves, &count, &stuck, &err), OMEN_OK);
    ck_assert_uint_eq(count, held);
    ck_assert_uint_eq(stuck.count, 0);
    struct cluster_move asked[8];
    for (uint32_t i = 0; i < count; i++)
        asked[i] = (struct cluster_move){ moves[i].shard_id, moves[i].from_replica, moves[i].to_node,
            moves[i].bytes };
    struct cluster_change c = { .kind = CLUSTER_CHANGE_OPS_START,
        .why = OP_WHY_DRAIN,
        .moves = asked,
        .move_count = count };
    ck_assert_int_eq(change(&w, &c).code, OMEN_OK); /* the machine agrees to what was planned */
    mem_free(moves);
    cluster_state_unref(s);
    world_fini(&w);
    world_init(&w);
    for (uint32_t n = 1; n <= 3; n++) ck_assert_int_eq(node_add(&w, n).code, OMEN_OK);
    ck_assert_int_eq(collection(&w, CATALOG_CREATE, 0, 1, 3).code, OMEN_OK);
    s = cluster_state_acquire(w.replicas[0]);
    ck_assert_int_eq(plan_drain(s, 2, NULL, 0, &moves, &count, &stuck, &err), OMEN_OK);
    ck_assert_uint_eq(count, 0);
    ck_assert_uint_eq(stuck.count, 1);
    ck_assert_uint_eq(stuck.shard_ids[0], s->map->collections[0].shards[0].shard_id);
    mem_free(moves);
    cluster_state_unref(s);
    world_fini(&w);
}
END_TEST

/* A drain of which a move is given up goes on, unlike one that is canceled; and only in clusters that can say it. */
START_TEST(a_move_that_is_given_up_leaves_its_plan_going)
{
    struct world w;
    node_level = 0;
    random_state = 12;
    world_init(&w);
    for (uint32_t n = 1; n <= 4; n++) ck_assert_int_eq(node_add(&w, n).code, OMEN_OK);
    static const uint32_t nodes[] = { 1, 2, 3 };
    ck_assert_int_eq(create_one(&w, "docs", 3, nodes, 3, 3).code, OMEN_OK);
    struct cluster_state *s = cluster_state_acquire(w.replicas[0]);
    const struct map_shard *shard = &s->map->collections[0].shards[0];
    struct cluster_move move = { .shard_id = shard->shard_id,
        .from_replica = shard->replica_ids[0],
        .to_node = 4 };
    struct cluster_change drain = { .kind = CLUSTER_CHANGE_PLAN_START,
        .why = OP_WHY_DRAIN,
        .node_id = shard->node_ids[0],
        .moves = &move,
        .move_count = 1 };
    cluster_state_unref(s);
    struct catalog_outcome begun = change(&w, &drain);
    ck_assert_int_eq(begun.code, OMEN_OK);
    struct cluster_change give_up = { .kind = CLUSTER_CHANGE_OP_STEP,
        .op_id = begun.first_op_id,
        .step_from = OP_ADD,
        .step_to = OP_CANCELING };
    ck_assert_int_eq(change(&w, &give_up).code, OMEN_EINVAL);
    struct cluster_change raise = { .kind = CLUSTER_CHANGE_VERSION_RAISE, .level = 2, .node_id = 4 };
    ck_assert_int_eq(change(&w, &raise).code, OMEN_OK);
    ck_assert_int_eq(change(&w, &give_up).code, OMEN_OK);
    check(&w);
    step_reopen(&w);
    struct cluster_change end = { .kind = CLUSTER_CHANGE_OP_STEP,
        .op_id = begun.first_op_id,
        .step_from = OP_CANCELING,
        .step_to = OP_END };
    ck_assert_int_eq(change(&w, &end).code, OMEN_OK);
    check(&w);
    step_reopen(&w);
    s = cluster_state_acquire(w.replicas[1]);
    ck_assert_uint_eq(s->plan_count, 1);
    ck_assert(!s->plans[0].ending);
    ck_assert_uint_eq(s->plans[0].canceled, 1);
    ck_assert(s->history[0].given_up && s->history[0].canceled);
    cluster_state_unref(s);
    /* One that is replaced where it is has nothing to go back to. */
    move.to_node = drain.node_id;
    struct cluster_change mend = { .kind = CLUSTER_CHANGE_OPS_START,
        .why = OP_WHY_DAMAGED,
        .moves = &move,
        .move_count = 1 };
    give_up.op_id = change(&w, &mend).first_op_id;
    ck_assert_int_eq(change(&w, &give_up).code, OMEN_EINVAL);
    world_fini(&w);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("cluster_state");
    TCase *tcase = tcase_create("all");
    tcase_set_timeout(tcase, 120);
    tcase_add_loop_test(tcase, replicas_stay_equal_and_the_map_valid, 0, RUNS);
    tcase_add_test(tcase, who_asks_twice_gets_the_same_ids_and_a_wiped_disk_none);
    tcase_add_test(tcase, replicas_are_spread_over_zones);
    tcase_add_test(tcase, a_node_that_is_down_gets_a_replica_only_when_no_other_can);
    tcase_add_test(tcase, who_repeats_a_change_is_told_what_was_told_first);
    tcase_add_test(tcase, what_may_have_been_made_long_ago_is_refused_and_memory_is_bounded);
    tcase_add_test(tcase, an_op_id_from_the_future_is_not_to_be_recorded);
    tcase_add_test(tcase, changes_that_bring_no_room_leave_the_logs_reserve_alone);
    tcase_add_loop_test(tcase, a_fourth_node_gets_its_share_and_no_byte_more_moves_than_must, 0, 5);
    tcase_add_test(tcase, a_drain_finds_a_place_for_everything_or_says_for_what_there_is_none);
    tcase_add_test(tcase, a_move_that_is_given_up_leaves_its_plan_going);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
