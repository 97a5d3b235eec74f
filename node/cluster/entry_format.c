/* Entries of the cluster group, little-endian.
 *
 * Entry v3: 0 magic "OMCC" | 4 u16 version | 6 u16 kind | 8 u32 total_bytes | 12 u32 crc32c of the rest |
 *   16 u64 log_time_ms | op id: 24 u64 client, 32 u64 seq, 40 u64 issue_ms | 48 u32 willing | 52 u32 zero | 56 body,
 *   zeros to a multiple of 8
 * v2 and v1 have the body at 24; v1 has no options. The oldest version that can say it is written.
 * v4: as v3, kinds 24 and 25
 * Body of kinds 1-4 (collections, aliases): u32 shard_count, u32 replication, f32 recall_target, u32 node_count,
 * node_count x u32 node
 *   id, name, name (target), schema; from v2: u32 length and bytes of the options, a doc; v3: length 0, none
 * Kind 5 (options of a collection): as kinds 1-4, always with options
 * willing: so many of the nodes are preferred to all others (kinds 1-4); v1, v2: all are alike
 * Body of kinds 16-23 (cluster): u64 cluster_id, u64 incarnation, u64 birth, u64 op_id, u64 plan_id, u64 throttle,
 * u32 node_id, u8 node
 *   state, u8 why, u8 step_from, u8 step_to, name, address, raft address, labels, u32 move_count, count x {u64
 *   shard, u64 from_replica, u32 to_node}
 *   throttle is of kind 23 alone: u32 level, u32 held in its place are of 16, 17, 26 and 27, zero before level 2
 * Kinds 24 and 25 (plans): as 16-23, each move with u64 bytes at its end; then u32 moves ahead, u64 bytes ahead
 * Kinds 26 and 27 (version): as 16-23
 *   name: u16 len, bytes.   schema: u16 len + shard key path, u32 field_count, count x {name, u32 dim, u32 metric} */
#include "common/err.h"

#include <stdlib.h>
#include <string.h>

#include "node/cluster/format.h"
#include "node/cluster/state.h"

#define ENTRY_MAGIC 0x43434d4fu /* "OMCC" */
#define ENTRY_HEADER 24u
#define ENTRY_VERSION 4
#define ENTRY_VERSION_ASKED 3   /* of entries with an op id or a last resort */
#define ENTRY_VERSION_OPTIONS 2 /* of entries with options */
#define ENTRY_VERSION_PLAIN 1   /* of entries without: every release reads them */
#define MOVE_BYTES 20u
#define PLAN_MOVE_BYTES 28u

static void header_put(struct buf *b, uint16_t version, uint16_t kind, uint64_t log_time_ms)
{
    buf_init(b);
    put_u32(b, ENTRY_MAGIC);
    put_u16(b, version);
    put_u16(b, kind);
    put_u64(b, 0); /* total and crc, below */
    put_u64(b, log_time_ms);
}

static void asked_put(struct buf *b, const struct op_id *asked_as, uint32_t willing)
{
    put_u64(b, asked_as->client);
    put_u64(b, asked_as->seq);
    put_u64(b, asked_as->issue_ms);
    put_u32(b, willing);
    put_u32(b, 0);
}

static enum omen_err entry_finish(struct buf *b, uint8_t **entry_out, uint32_t *len_out)
{
    buf_append_zero(b, align_up(b->len, 8) - b->len);
    if (b->failed) {
        buf_fini(b);
        return OMEN_ENOMEM;
    }
    CHECK(b->len <= CATALOG_ENTRY_BYTES_MAX);
    store_u32(b->data + 8, (uint32_t)b->len);
    store_u32(b->data + 12, crc_around(b->data, b->len, 12));
    *len_out = (uint32_t)b->len;
    *entry_out = b->data; /* buf memory is mem_free's */
    return OMEN_OK;
}

enum omen_err catalog_entry_encode(const struct catalog_change *change, uint64_t log_time_ms,
        const uint32_t *node_ids, uint32_t node_count, uint32_t willing, uint8_t **entry_out,
        uint32_t *len_out)
{
    CHECK(node_count <= CLUSTER_NODES_MAX && willing <= node_count);
    struct buf b;
    bool options = change->options.data != NULL;
    bool more = change->asked_as.client != 0 || willing < node_count;
    header_put(&b,
            more              ? ENTRY_VERSION_ASKED
                    : options ? ENTRY_VERSION_OPTIONS
                              : ENTRY_VERSION_PLAIN,
            (uint16_t)change->kind, log_time_ms);
    if (more) asked_put(&b, &change->asked_as, willing);
    put_u32(&b, change->shard_count);
    put_u32(&b, change->replication);
    put_f32(&b, change->recall_target);
    put_u32(&b, node_count);
    for (uint32_t i = 0; i < node_count; i++) put_u32(&b, node_ids[i]);
    put_text(&b, change->name);
    put_text(&b, change->target);
    put_schema(&b, &change->schema);
    if (options || more) put_doc(&b, change->options);
    return entry_finish(&b, entry_out, len_out);
}

static bool is_plan(uint16_t kind)
{
    return kind == CLUSTER_CHANGE_PLAN_START || kind == CLUSTER_CHANGE_PLAN_STEP;
}

enum omen_err cluster_entry_encode(const struct cluster_change *change, uint64_t log_time_ms,
        uint8_t **entry_out, uint32_t *len_out)
{
    CHECK(change->move_count <= CLUSTER_MOVES_MAX);
    struct buf b;
    bool plan = is_plan((uint16_t)change->kind), asked = change->asked_as.client != 0;
    header_put(&b,
            plan            ? ENTRY_VERSION
                    : asked ? ENTRY_VERSION_ASKED
                            : ENTRY_VERSION_PLAIN,
            (uint16_t)change->kind, log_time_ms);
    if (plan || asked) asked_put(&b, &change->asked_as, 0);
    put_u64(&b, change->cluster_id);
    put_u64(&b, change->incarnation);
    put_u64(&b, change->birth);
    put_u64(&b, change->op_id);
    put_u64(&b, change->plan_id);
    if (change->kind == CLUSTER_CHANGE_THROTTLE) {
        put_u64(&b, change->throttle_bytes_per_s);
    } else {
        put_u32(&b, change->level);
        put_u32(&b, change->held);
    }
    put_u32(&b, change->node_id);
    const uint8_t enums[4] = { (uint8_t)change->node_state, (uint8_t)change->why, (uint8_t)change->step_from,
        (uint8_t)change->step_to };
    buf_append(&b, enums, sizeof enums);
    put_text(&b, change->name);
    put_text(&b, change->address);
    put_text(&b, change->raft_address);
    put_text(&b, change->labels);
    put_u32(&b, change->move_count);
    for (uint32_t i = 0; i < change->move_count; i++) {
        put_u64(&b, change->moves[i].shard_id);
        put_u64(&b, change->moves[i].from_replica);
        put_u32(&b, change->moves[i].to_node);
        if (plan) put_u64(&b, change->moves[i].bytes);
    }
    if (plan) {
        put_u32(&b, change->ahead);
        put_u64(&b, change->bytes_ahead);
    }
    return entry_finish(&b, entry_out, len_out);
}

static void take_catalog(struct reader *in, uint16_t version, struct cluster_entry *entry)
{
    struct catalog_change *change = &entry->catalog;
    change->kind = (enum catalog_change_kind)entry->kind;
    change->shard_count = take_u32(in);
    change->replication = take_u32(in);
    change->recall_target = take_f32(in);
    uint32_t nodes = take_count(in, CLUSTER_NODES_MAX, sizeof(uint32_t));
    for (uint32_t i = 0; i < nodes; i++) entry->node_ids[i] = take_u32(in);
    entry->node_count = nodes;
    take_text(in, change->name, OMEN_NAME_BYTES_MAX);
    take_text(in, change->target, OMEN_NAME_BYTES_MAX);
    take_schema(in, &change->schema);
    if (version == ENTRY_VERSION_PLAIN) return;
    change->options = take_doc(in, OPTIONS_DOC_BYTES_MAX);
    bool needed = version == ENTRY_VERSION_OPTIONS || change->kind == CATALOG_SET;
    if (change->options.data == NULL && needed) in->failed = true; /* that would be version 1 */
}

/* What version 3 has before the body. */
static void take_asked(struct reader *in, struct cluster_entry *entry)
{
    entry->asked_as.client = take_u64(in);
    entry->asked_as.seq = take_u64(in);
    entry->asked_as.issue_ms = take_u64(in);
    entry->willing = take_u32(in);
    if (take_u32(in) != 0) in->failed = true;
}

static enum omen_err take_cluster(struct reader *in, struct cluster_entry *entry)
{
    struct cluster_change *change = &entry->cluster;
    change->kind = (enum cluster_change_kind)entry->kind;
    change->cluster_id = take_u64(in);
    change->incarnation = take_u64(in);
    change->birth = take_u64(in);
    change->op_id = take_u64(in);
    change->plan_id = take_u64(in);
    if (change->kind == CLUSTER_CHANGE_THROTTLE) {
        change->throttle_bytes_per_s = take_u64(in);
    } else {
        change->level = take_u32(in);
        change->held = take_u32(in) != 0;
    }
    change->node_id = take_u32(in);
    const uint8_t *enums = take(in, 4);
    if (enums[0] > CLUSTER_NODE_REMOVED || enums[1] > OP_WHY_DAMAGED || enums[2] > OP_END ||
            enums[3] > OP_END)
        in->failed = true;
    change->node_state = (enum cluster_node_state)enums[0];
    change->why = (enum cluster_op_why)enums[1];
    change->step_from = (enum cluster_op_step)enums[2];
    change->step_to = (enum cluster_op_step)enums[3];
    take_text(in, change->name, CLUSTER_NAME_BYTES_MAX);
    take_text(in, change->address, OMEN_ADDRESS_BYTES_MAX);
    take_text(in, change->raft_address, OMEN_ADDRESS_BYTES_MAX);
    take_text(in, change->labels, CLUSTER_LABELS_BYTES_MAX);
    bool plan = is_plan(entry->kind);
    uint32_t count = take_count(in, CLUSTER_MOVES_MAX, plan ? PLAN_MOVE_BYTES : MOVE_BYTES);
    struct cluster_move *moves = mem_calloc((size_t)count + 1, sizeof *moves);
    if (moves == NULL) return OMEN_ENOMEM;
    for (uint32_t i = 0; i < count; i++) {
        moves[i].shard_id = take_u64(in);
        moves[i].from_replica = take_u64(in);
        moves[i].to_node = take_u32(in);
        if (plan) moves[i].bytes = take_u64(in);
    }
    change->moves = moves;
    change->move_count = count;
    if (!plan) return OMEN_OK;
    change->ahead = take_u32(in);
    change->bytes_ahead = take_u64(in);
    return OMEN_OK;
}

enum omen_err cluster_entry_decode(const void *bytes, size_t len, struct cluster_entry *entry_out,
        struct err *err)
{
    const uint8_t *data = bytes;
    memset(entry_out, 0, sizeof *entry_out);
    if (len < ENTRY_HEADER || len > CATALOG_ENTRY_BYTES_MAX || load_u32(data) != ENTRY_MAGIC ||
            load_u16(data + 4) == 0 || load_u16(data + 4) > ENTRY_VERSION || load_u32(data + 8) != len) {
        return err_set(err, OMEN_ECORRUPT, "", "catalog entry: wrong magic, version or length");
    }
    if (load_u32(data + 12) != crc_around(data, len, 12)) {
        return err_set(err, OMEN_ECORRUPT, "", "catalog entry: wrong checksum");
    }
    struct reader in = { .data = data, .len = len, .at = 16 };
    entry_out->kind = load_u16(data + 6);
    entry_out->log_time_ms = take_u64(&in);
    uint16_t version = load_u16(data + 4);
    if (version >= ENTRY_VERSION_ASKED) take_asked(&in, entry_out);
    if ((version == ENTRY_VERSION) != is_plan(entry_out->kind)) in.failed = true;
    enum omen_err rc = OMEN_OK;
    if (entry_out->kind < CLUSTER_CHANGE_INIT)
        take_catalog(&in, version, entry_out);
    else
        rc = take_cluster(&in, entry_out);
    if (version < ENTRY_VERSION_ASKED) entry_out->willing = entry_out->node_count;
    if (entry_out->willing > entry_out->node_count) in.failed = true;
    if (rc != OMEN_OK) return err_set(err, rc, "", "no memory for an entry of the catalog");
    if (!in.failed && align_up(in.at, 8) == len) return OMEN_OK;
    cluster_entry_fini(entry_out);
    return err_set(err, OMEN_ECORRUPT, "", "catalog entry: fields run past its end");
}

void cluster_entry_fini(struct cluster_entry *entry)
{
    mem_free((void *)(uintptr_t)entry->cluster.moves);
    entry->cluster.moves = NULL;
    entry->cluster.move_count = 0;
}

enum feature cluster_change_feature(enum cluster_change_kind kind)
{
    bool version = kind == CLUSTER_CHANGE_VERSION_RAISE || kind == CLUSTER_CHANGE_VERSION_HOLD;
    return version ? FEATURE_CLUSTER_VERSION : FEATURE_NONE;
}

bool cluster_entry_vital(const uint8_t *data, size_t len)
{
    if (len < ENTRY_HEADER || load_u32(data) != ENTRY_MAGIC) return false;
    switch (load_u16(data + 6)) {
    case CATALOG_DROP:
    case CLUSTER_CHANGE_NODE_ADD:
    case CLUSTER_CHANGE_NODE_UPDATE:
    case CLUSTER_CHANGE_NODE_STATE:
    case CLUSTER_CHANGE_OPS_START:
    case CLUSTER_CHANGE_OP_STEP:
    case CLUSTER_CHANGE_OP_CANCEL:
    case CLUSTER_CHANGE_PLAN_START:
    case CLUSTER_CHANGE_PLAN_STEP: return true;
    default: return false;
    }
}

bool cluster_entry_known(uint16_t kind)
{
    return (kind >= CATALOG_CREATE && kind <= CATALOG_SET) ||
            (kind >= CLUSTER_CHANGE_INIT && kind <= CLUSTER_CHANGE_VERSION_HOLD &&
                    feature_may(feature_level(), cluster_change_feature((enum cluster_change_kind)kind)));
}
