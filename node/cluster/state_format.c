/* The CATALOG file: the whole state of the cluster group, little-endian, read by one bounds-checked cursor.
 *
 * v6:  0 magic "OMCT" | 4 u16 version | 6 u16 zero | 8 u64 total_bytes | 16 u32 crc32c of the rest |
 *   20 u32 version of the cluster (zero before v6; later versions of the file keep it there) |
 *   24 u64 sequence | 32 u64 epoch | 40 u64 incarnation | 48 u64 next_collection | 56 u64 next_group |
 *   64 u64 next_replica | 72 u32 collection_count | 76 u32 alias_count | 80 collections, aliases, then what v1 does
 *   not have: u64 next_node, u64 next_op, u64 cluster_id, u64 throttle, name, u32 count + nodes, u32 count + shards,
 *   u32 count + operations, u32 count + ended operations; from v4: u64 results_lost_ms, u32 count + results;
 *   from v5: u32 count + plans, u32 count + ended plans; from v6: u32 1 when the cluster's version is held
 *   collection: u64 id, u64 created_ms, f32 recall_target, u32 replication, name, schema, u32 shard_count, shards,
 *     u32 length and bytes of the options, a doc (length 0: all of them default), which v1 and v2 do not have
 *   shard: u64 id, u64 base_sequence, u32 slot_first, u32 slot_count, u32 replica_count, count x {u64 replica, u32
 *   node} alias: name, u64 collection id
 *   node: u32 id, u32 state, u64 replica of the cluster group, u64 birth, u64 added_ms, address, raft address, labels
 *   shard's begin: u64 id, u32 count, count x {u64 replica, u32 node}
 *   operation: u64 id, plan, shard, collection, from_replica, to_replica, started_ms, changed_ms, u32 from_node, u32
 *   to_node,
 *     u8 step, u8 why, u8 canceled, u8 given up (zero before v6); from v5: u64 bytes
 *   plan: u64 id, started_ms, changed_ms, bytes_begun, bytes_done, bytes_ahead, u32 node, rounds, begun, done,
 *     canceled, ahead, u8 why, u8 ending, u16 zero
 *   result: op id: u64 client, seq, issue_ms; u64 log_time_ms, collection, replica of the cluster group, plan, first
 *     operation; u32 kind, node, operations
 *   name, addresses, labels: u16 len, bytes.   schema: u16 len + shard key path, u32 field_count, count x {name, u32
 *   dim, u32 metric}
 * v1 is a single node's and ends after the aliases. v5 is written as long as the cluster is at version 1: a build that
 * does not know v6 may be sent it, or be gone back to. */
#include "common/err.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "node/cluster/format.h"
#include "node/cluster/state.h"

#define FILE_MAGIC 0x54434d4fu /* "OMCT" */
#define FILE_HEADER 80u
#define FILE_VERSION 6
#define FILE_VERSION_PLAIN 5 /* of a cluster of version 1 */
#define NODE_BYTES_MIN 38u
#define BEGIN_BYTES_MIN 12u
#define OP_BYTES 76u /* at least */
#define PLAN_BYTES 76u
#define RESULT_BYTES 76u

/* ---- writing ---- */

/* Values that differ from the default in anything. */
static void put_options(struct buf *b, const struct collection_options *options, struct doc_builder *docs)
{
    const struct collection_options plain = { .profile = PROFILE_NONE };
    struct doc doc = { NULL, 0 };
    if (!collection_options_equal(options, &plain)) {
        doc_builder_reset(docs, OPTIONS_DOC_BYTES_MAX);
        doc_begin_object(docs);
        collection_options_put(options, docs);
        doc_end(docs);
        if (doc_builder_finish(docs, &doc, NULL) != OMEN_OK) b->failed = true; /* no memory */
    }
    put_doc(b, doc);
}

static void put_collection(struct buf *b, const struct map_collection *c, struct doc_builder *docs)
{
    put_u64(b, c->id);
    put_u64(b, c->created_ms);
    put_f32(b, c->recall_target);
    put_u32(b, c->replication);
    put_text(b, c->name);
    put_schema(b, &c->schema);
    put_u32(b, c->shard_count);
    for (uint32_t i = 0; i < c->shard_count; i++) {
        const struct map_shard *s = &c->shards[i];
        put_u64(b, s->shard_id);
        put_u64(b, s->base_sequence);
        put_u32(b, s->slot_first);
        put_u32(b, s->slot_count);
        put_u32(b, s->replica_count);
        for (uint32_t r = 0; r < s->replica_count; r++) {
            put_u64(b, s->replica_ids[r]);
            put_u32(b, s->node_ids[r]);
        }
    }
    put_options(b, &c->options, docs);
}

static void put_node(struct buf *b, const struct cluster_node *n)
{
    put_u32(b, n->node_id);
    put_u32(b, (uint32_t)n->state);
    put_u64(b, n->catalog_replica_id);
    put_u64(b, n->birth);
    put_u64(b, n->added_ms);
    put_text(b, n->address);
    put_text(b, n->raft_address);
    put_text(b, n->labels);
}

static void put_begin(struct buf *b, const struct cluster_shard *s)
{
    put_u64(b, s->shard_id);
    put_u32(b, s->initial_count);
    for (uint32_t r = 0; r < s->initial_count; r++) {
        put_u64(b, s->initial_replica_ids[r]);
        put_u32(b, s->initial_node_ids[r]);
    }
}

static void put_op(struct buf *b, const struct cluster_op *op)
{
    const uint64_t wide[] = { op->op_id, op->plan_id, op->shard_id, op->collection_id, op->from_replica,
        op->to_replica, op->started_ms, op->changed_ms };
    const uint8_t narrow[4] = { (uint8_t)op->step, (uint8_t)op->why, op->canceled, op->given_up };
    buf_append(b, wide, sizeof wide);
    put_u32(b, op->from_node);
    put_u32(b, op->to_node);
    buf_append(b, narrow, sizeof narrow);
    put_u64(b, op->bytes);
}

static void put_plan(struct buf *b, const struct cluster_plan *plan)
{
    const uint64_t wide[] = { plan->plan_id, plan->started_ms, plan->changed_ms, plan->bytes_begun,
        plan->bytes_done, plan->bytes_ahead };
    const uint32_t counts[] = { plan->node_id, plan->rounds, plan->begun, plan->done, plan->canceled,
        plan->ahead };
    const uint8_t narrow[4] = { (uint8_t)plan->why, plan->ending, 0, 0 };
    buf_append(b, wide, sizeof wide);
    buf_append(b, counts, sizeof counts);
    buf_append(b, narrow, sizeof narrow);
}

static void put_result(struct buf *b, const struct cluster_result *r)
{
    const uint64_t wide[] = { r->asked_as.client, r->asked_as.seq, r->asked_as.issue_ms, r->log_time_ms,
        r->collection_id, r->catalog_replica_id, r->plan_id, r->first_op_id };
    buf_append(b, wide, sizeof wide);
    put_u32(b, r->kind);
    put_u32(b, r->node_id);
    put_u32(b, r->op_count);
}

static void put_cluster(struct buf *b, const struct cluster_state *state)
{
    put_u64(b, state->next_node);
    put_u64(b, state->next_op);
    put_u64(b, state->cluster_id);
    put_u64(b, state->throttle_bytes_per_s);
    put_text(b, state->name);
    put_u32(b, state->node_count);
    for (uint32_t i = 0; i < state->node_count; i++) put_node(b, &state->nodes[i]);
    put_u32(b, state->shard_count);
    for (uint32_t i = 0; i < state->shard_count; i++) put_begin(b, &state->shards[i]);
    put_u32(b, state->op_count);
    for (uint32_t i = 0; i < state->op_count; i++) put_op(b, &state->ops[i]);
    put_u32(b, state->history_count);
    for (uint32_t i = 0; i < state->history_count; i++) put_op(b, &state->history[i]);
    put_u64(b, state->results_lost_ms);
    put_u32(b, state->result_count);
    for (uint32_t i = 0; i < state->result_count; i++) put_result(b, &state->results[i]);
    put_u32(b, state->plan_count);
    for (uint32_t i = 0; i < state->plan_count; i++) put_plan(b, &state->plans[i]);
    put_u32(b, state->plan_history_count);
    for (uint32_t i = 0; i < state->plan_history_count; i++) put_plan(b, &state->plan_history[i]);
    if (feature_may(state->version, FEATURE_CLUSTER_VERSION)) put_u32(b, state->version_held);
}

void cluster_state_encode(const struct cluster_state *state, struct buf *out)
{
    const struct map *map = state->map;
    put_u32(out, FILE_MAGIC);
    bool versioned = feature_may(state->version, FEATURE_CLUSTER_VERSION);
    put_u16(out, versioned ? FILE_VERSION : FILE_VERSION_PLAIN);
    put_u16(out, 0);
    put_u64(out, 0); /* total, below */
    put_u32(out, 0); /* crc */
    put_u32(out, versioned ? state->version : 0);
    put_u64(out, state->sequence);
    put_u64(out, map->epoch);
    put_u64(out, map->incarnation);
    put_u64(out, state->next_collection);
    put_u64(out, state->next_group);
    put_u64(out, state->next_replica);
    put_u32(out, map->collection_count);
    put_u32(out, map->alias_count);
    struct doc_builder *docs = doc_builder_new(OPTIONS_DOC_BYTES_MAX);
    if (docs == NULL) {
        out->failed = true;
        return;
    }
    for (uint32_t i = 0; i < map->collection_count; i++) put_collection(out, &map->collections[i], docs);
    doc_builder_free(docs);
    for (uint32_t i = 0; i < map->alias_count; i++) {
        put_text(out, map->aliases[i].name);
        put_u64(out, map->aliases[i].collection_id);
    }
    put_cluster(out, state);
    if (out->failed) return;
    store_u64(out->data + 8, out->len);
    store_u32(out->data + 16, crc_around(out->data, out->len, 16));
}

/* ---- reading ---- */

static void take_shard(struct reader *in, struct map_shard *s)
{
    s->shard_id = take_u64(in);
    s->base_sequence = take_u64(in);
    s->slot_first = take_u32(in);
    s->slot_count = take_u32(in);
    uint32_t count = take_u32(in);
    if (count > CATALOG_REPLICATION_MAX) in->failed = true;
    for (uint32_t r = 0; !in->failed && r < count; r++) {
        s->replica_ids[r] = take_u64(in);
        s->node_ids[r] = take_u32(in);
        s->replica_count = r + 1;
    }
}

/* The recall target has a place of its own. */
static void take_options(struct reader *in, struct collection_options *options)
{
    float unchanged = 0;
    struct doc doc = take_doc(in, OPTIONS_DOC_BYTES_MAX);
    bool good = doc.data == NULL || collection_options_change(options, &unchanged, doc, NULL) == OMEN_OK;
    const struct collection_options plain = { .profile = PROFILE_NONE };
    if (!good || (doc.data != NULL && collection_options_equal(options, &plain))) in->failed = true;
}

static enum omen_err take_collection(struct reader *in, uint16_t version, struct map_collection *c)
{
    c->id = take_u64(in);
    c->created_ms = take_u64(in);
    c->recall_target = take_f32(in);
    c->replication = take_u32(in);
    take_text(in, c->name, OMEN_NAME_BYTES_MAX);
    take_schema(in, &c->schema);
    uint32_t count = take_u32(in);
    if (count == 0 || count > OMEN_SHARDS_MAX) in->failed = true;
    if (in->failed) return OMEN_OK; /* reported once, by the caller */
    c->shards = mem_calloc(count, sizeof *c->shards);
    if (c->shards == NULL) return OMEN_ENOMEM;
    c->shard_count = count;
    uint32_t slot = 0;
    for (uint32_t i = 0; i < count; i++) {
        take_shard(in, &c->shards[i]);
        if (c->shards[i].slot_first != slot || c->shards[i].slot_count > OMEN_SLOT_COUNT) in->failed = true;
        slot += c->shards[i].slot_count;
    }
    if (slot != OMEN_SLOT_COUNT) in->failed = true;
    if (version >= 3) take_options(in, &c->options);
    return OMEN_OK;
}

static enum omen_err take_map(struct reader *in, uint16_t version, struct map *map)
{
    uint32_t collections = take_u32(in), aliases = take_u32(in);
    if (collections > OMEN_COLLECTIONS_MAX || aliases > OMEN_ALIASES_MAX) {
        in->failed = true;
        return OMEN_OK;
    }
    map->collections = mem_calloc((size_t)collections + 1, sizeof *map->collections);
    map->aliases = mem_calloc((size_t)aliases + 1, sizeof *map->aliases);
    if (map->collections == NULL || map->aliases == NULL) return OMEN_ENOMEM;
    for (uint32_t i = 0; !in->failed && i < collections; i++) {
        map->collection_count = i + 1;
        if (take_collection(in, version, &map->collections[i]) != OMEN_OK) return OMEN_ENOMEM;
        if (i > 0 && strcmp(map->collections[i - 1].name, map->collections[i].name) >= 0) in->failed = true;
    }
    for (uint32_t i = 0; !in->failed && i < aliases; i++) {
        take_text(in, map->aliases[i].name, OMEN_NAME_BYTES_MAX);
        map->aliases[i].collection_id = take_u64(in);
        map->alias_count = i + 1;
        if (map_find_id(map, map->aliases[i].collection_id) == NULL) in->failed = true;
    }
    return OMEN_OK;
}

static void take_node(struct reader *in, struct cluster_node *n)
{
    n->node_id = take_u32(in);
    uint32_t state = take_u32(in);
    if (state < CLUSTER_NODE_ACTIVE || state > CLUSTER_NODE_REMOVED || n->node_id == 0) in->failed = true;
    n->state = in->failed ? CLUSTER_NODE_REMOVED : (enum cluster_node_state)state;
    n->catalog_replica_id = take_u64(in);
    n->birth = take_u64(in);
    n->added_ms = take_u64(in);
    take_text(in, n->address, OMEN_ADDRESS_BYTES_MAX);
    take_text(in, n->raft_address, OMEN_ADDRESS_BYTES_MAX);
    take_text(in, n->labels, CLUSTER_LABELS_BYTES_MAX);
}

static void take_begin(struct reader *in, struct cluster_shard *s)
{
    s->shard_id = take_u64(in);
    uint32_t count = take_u32(in);
    if (count > OMEN_REPLICAS_MAX) in->failed = true;
    for (uint32_t r = 0; !in->failed && r < count; r++) {
        s->initial_replica_ids[r] = take_u64(in);
        s->initial_node_ids[r] = take_u32(in);
        s->initial_count = r + 1;
    }
}

static void take_op(struct reader *in, struct cluster_op *op)
{
    op->op_id = take_u64(in);
    op->plan_id = take_u64(in);
    op->shard_id = take_u64(in);
    op->collection_id = take_u64(in);
    op->from_replica = take_u64(in);
    op->to_replica = take_u64(in);
    op->started_ms = take_u64(in);
    op->changed_ms = take_u64(in);
    op->from_node = take_u32(in);
    op->to_node = take_u32(in);
    const uint8_t *narrow = take(in, 4);
    if (narrow[0] > OP_END || narrow[1] > OP_WHY_DAMAGED || narrow[2] > 1 || narrow[3] > 1) in->failed = true;
    op->step = in->failed ? OP_END : (enum cluster_op_step)narrow[0];
    op->why = in->failed ? OP_WHY_MOVE : (enum cluster_op_why)narrow[1];
    op->canceled = !in->failed && narrow[2] == 1;
    op->given_up = !in->failed && narrow[3] == 1;
}

static void take_plan(struct reader *in, struct cluster_plan *plan)
{
    plan->plan_id = take_u64(in);
    plan->started_ms = take_u64(in);
    plan->changed_ms = take_u64(in);
    plan->bytes_begun = take_u64(in);
    plan->bytes_done = take_u64(in);
    plan->bytes_ahead = take_u64(in);
    plan->node_id = take_u32(in);
    plan->rounds = take_u32(in);
    plan->begun = take_u32(in);
    plan->done = take_u32(in);
    plan->canceled = take_u32(in);
    plan->ahead = take_u32(in);
    const uint8_t *narrow = take(in, 4);
    bool good = (narrow[0] == OP_WHY_DRAIN && plan->node_id != 0) ||
            (narrow[0] == OP_WHY_REBALANCE && plan->node_id == 0);
    if (!good || narrow[1] > 1 || narrow[2] != 0 || narrow[3] != 0) in->failed = true;
    plan->why = in->failed ? OP_WHY_REBALANCE : (enum cluster_op_why)narrow[0];
    plan->ending = !in->failed && narrow[1] == 1;
}

static void take_result(struct reader *in, struct cluster_result *r)
{
    r->asked_as.client = take_u64(in);
    r->asked_as.seq = take_u64(in);
    r->asked_as.issue_ms = take_u64(in);
    r->log_time_ms = take_u64(in);
    r->collection_id = take_u64(in);
    r->catalog_replica_id = take_u64(in);
    r->plan_id = take_u64(in);
    r->first_op_id = take_u64(in);
    r->kind = take_u32(in);
    r->node_id = take_u32(in);
    r->op_count = take_u32(in);
    if (r->asked_as.client == 0) in->failed = true;
}

/* [*count_out] items of `item_bytes` read by `one`; NULL: no memory. */
static void *take_items(struct reader *in, uint32_t max, size_t bytes_min, size_t item_bytes,
        void (*one)(struct reader *in, void *item), uint32_t *count_out)
{
    uint32_t count = take_count(in, max, bytes_min);
    uint8_t *items = mem_calloc((size_t)count + 1, item_bytes);
    *count_out = 0;
    for (uint32_t i = 0; items != NULL && !in->failed && i < count; i++) {
        one(in, items + i * item_bytes);
        *count_out = i + 1;
    }
    return items;
}

static void one_node(struct reader *in, void *item) { take_node(in, item); }
static void one_begin(struct reader *in, void *item) { take_begin(in, item); }
static void one_old_op(struct reader *in, void *item)
{
    take_op(in, item);
    if (((struct cluster_op *)item)->given_up) in->failed = true;
}

static void one_plain_op(struct reader *in, void *item)
{
    one_old_op(in, item);
    ((struct cluster_op *)item)->bytes = take_u64(in);
}

static void one_op(struct reader *in, void *item)
{
    take_op(in, item);
    ((struct cluster_op *)item)->bytes = take_u64(in);
}

static void one_plan(struct reader *in, void *item) { take_plan(in, item); }
static void one_result(struct reader *in, void *item) { take_result(in, item); }

static enum omen_err take_cluster(struct reader *in, uint16_t version, struct cluster_state *s)
{
    s->next_node = take_u64(in);
    s->next_op = take_u64(in);
    s->cluster_id = take_u64(in);
    s->throttle_bytes_per_s = take_u64(in);
    take_text(in, s->name, CLUSTER_NAME_BYTES_MAX);
    s->nodes = take_items(in, CLUSTER_NODES_MAX, NODE_BYTES_MIN, sizeof *s->nodes, one_node, &s->node_count);
    s->shards = take_items(in, CATALOG_SHARDS_MAX, BEGIN_BYTES_MIN, sizeof *s->shards, one_begin,
            &s->shard_count);
    void (*op)(struct reader * in, void *item) = version >= 6 ? one_op
            : version == 5                                    ? one_plain_op
                                                              : one_old_op;
    s->ops = take_items(in, CLUSTER_OPS_MAX, OP_BYTES, sizeof *s->ops, op, &s->op_count);
    s->history = take_items(in, CLUSTER_HISTORY_MAX, OP_BYTES, sizeof *s->history, op, &s->history_count);
    if (version >= 4) {
        s->results_lost_ms = take_u64(in);
        s->results = take_items(in, CLUSTER_RESULTS_MAX, RESULT_BYTES, sizeof *s->results, one_result,
                &s->result_count);
        if (s->results == NULL) return OMEN_ENOMEM;
    }
    if (version >= 5) {
        s->plans = take_items(in, CLUSTER_PLANS_MAX, PLAN_BYTES, sizeof *s->plans, one_plan, &s->plan_count);
        s->plan_history = take_items(in, CLUSTER_PLAN_HISTORY_MAX, PLAN_BYTES, sizeof *s->plan_history,
                one_plan, &s->plan_history_count);
        if (s->plans == NULL || s->plan_history == NULL) return OMEN_ENOMEM;
    }
    if (version >= 6) {
        uint32_t held = take_u32(in);
        s->version_held = held == 1;
        if (held > 1 || !feature_may(s->version, FEATURE_CLUSTER_VERSION)) in->failed = true;
    }
    bool whole = s->nodes != NULL && s->shards != NULL && s->ops != NULL && s->history != NULL;
    for (uint32_t i = 1; whole && i < s->shard_count; i++)
        if (s->shards[i - 1].shard_id >= s->shards[i].shard_id) in->failed = true;
    return whole ? OMEN_OK : OMEN_ENOMEM;
}

static enum omen_err level_refuse(const char *path, uint32_t level, struct err *err)
{
    char whose[200];
    snprintf(whose, sizeof whose, "%.160s: the cluster", path);
    return cluster_version_refuse(whose, level, err);
}

enum omen_err cluster_state_decode(const uint8_t *bytes, size_t len, const char *path,
        struct cluster_state **state_out, struct err *err)
{
    if (len < FILE_HEADER || load_u32(bytes) != FILE_MAGIC) return err_corrupt(err, path, 0, "wrong magic");
    uint16_t version = load_u16(bytes + 4);
    uint32_t level = version > FILE_VERSION_PLAIN ? load_u32(bytes + 20) : FEATURE_NONE;
    bool later = version > FILE_VERSION;
    if (later && level > feature_level()) return level_refuse(path, level, err);
    if (later || version == 0) {
        return err_set(err, OMEN_EVERSION, "", "%s: format version %u, this program knows %d", path, version,
                FILE_VERSION);
    }
    if (load_u64(bytes + 8) != len) return err_corrupt(err, path, 8, "wrong length");
    if (load_u32(bytes + 16) != crc_around(bytes, len, 16))
        return err_corrupt(err, path, 16, "wrong checksum");
    if (level > feature_level()) return level_refuse(path, level, err);
    struct cluster_state *state = cluster_state_new(0);
    if (state == NULL) return err_set(err, OMEN_ENOMEM, "", "no memory for the catalog");
    struct reader in = { .data = bytes, .len = len, .at = 24 };
    state->version = level;
    state->sequence = take_u64(&in);
    state->map->epoch = take_u64(&in);
    state->map->incarnation = take_u64(&in);
    state->next_collection = take_u64(&in);
    state->next_group = take_u64(&in);
    state->next_replica = take_u64(&in);
    enum omen_err rc = take_map(&in, version, state->map);
    if (rc == OMEN_OK && version > 1 && !in.failed) rc = take_cluster(&in, version, state);
    if (rc == OMEN_OK && (in.failed || in.at != len))
        rc = err_corrupt(err, path, in.at, "fields do not fit together");
    if (rc == OMEN_ENOMEM) (void)err_set(err, rc, "", "no memory for the catalog");
    if (rc != OMEN_OK) {
        cluster_state_unref(state);
        return rc;
    }
    *state_out = state;
    return OMEN_OK;
}
