/* Reports: once a second, and at once on a change, every node tells the leader of the cluster group how it and its
 * replicas are; the answer says what it should know of the others. In memory only: a new leader has heard of all
 * after a second or two. */
#include "common/err.h"

#include <stdio.h>
#include <stdlib.h>

#include "common/log.h"
#include "node/member/member_impl.h"

/* A row travels as an array of these. */
enum {
    ROW_GROUP,
    ROW_REPLICA,
    ROW_FLAGS,
    ROW_TERM,
    ROW_APPLIED,
    ROW_BYTES,
    ROW_POINTS,
    ROW_DONE,
    ROW_TOTAL,
    ROW_FIELDS /* and then the digests, if any */
};
enum {
    FLAG_LEADER = 1,
    FLAG_READY = 2,
    FLAG_FETCHING = 4,
    FLAG_DAMAGED = 8,
    FLAG_VOTER = 16,
    FLAG_STANDBY = 32,
    FLAG_MEMBER = 64,
    FLAG_TAIL_FULL = 128,
    FLAG_STOPPED = 256
};

/* ---- telling ---- */

static void row_put(struct doc_builder *b, const struct report_row *r)
{
    uint64_t flags = (r->leader ? FLAG_LEADER : 0) | (r->ready ? FLAG_READY : 0) |
            (r->fetching ? FLAG_FETCHING : 0) | (r->damaged ? FLAG_DAMAGED : 0) |
            (r->voter ? FLAG_VOTER : 0) | (r->standby ? FLAG_STANDBY : 0) | (r->is_member ? FLAG_MEMBER : 0) |
            (r->tail_full ? FLAG_TAIL_FULL : 0) | (r->stopped ? FLAG_STOPPED : 0);
    const uint64_t fields[ROW_FIELDS] = { r->group, r->replica_id, flags, r->term, r->applied, r->bytes,
        r->points, r->fetch_done, r->fetch_total };
    doc_begin_array(b);
    for (int i = 0; i < ROW_FIELDS; i++) doc_put_i64(b, (int64_t)(fields[i] & INT64_MAX));
    digests_put(b, &r->digests);
    doc_end(b);
}

static struct report_row row_of_shard(struct shard_host *shard)
{
    struct shard_host_status s;
    shard_host_status(shard, &s);
    struct report_row row = {
        .group = shard_host_id(shard),
        .replica_id = s.replica.replica_id,
        .term = s.replica.term,
        .applied = s.applied,
        .bytes = s.bytes,
        .points = s.points,
        .fetch_done = s.fetch_done,
        .fetch_total = s.fetch_total,
        .leader = s.replica.leader,
        .ready = s.ready,
        .fetching = s.fetching,
        .damaged = s.damaged,
        .voter = s.replica.role == REPLICA_VOTER && s.replica.is_member,
        .standby = s.replica.role == REPLICA_STANDBY && s.replica.is_member,
        .is_member = s.replica.is_member,
        .tail_full = s.tail_full,
        .stopped = s.replica.stopped != OMEN_OK,
        .digests.version = STORE_DIGEST_VERSION,
    };
    row.digests.count = shard_host_digests(shard, row.digests.items);
    return row;
}

static struct report_row row_of_group(struct member *m)
{
    struct replica_status s;
    replica_status(m->node->catalog_replica, &s);
    return (struct report_row){
        .group = CATALOG_GROUP,
        .replica_id = s.replica_id,
        .term = s.term,
        .applied = s.applied,
        .leader = s.leader,
        .ready = s.leader_replica != 0 && s.caught_up && !s.fetching && s.stopped == OMEN_OK,
        .fetching = s.fetching,
        .voter = s.role == REPLICA_VOTER && s.is_member,
        .standby = s.role == REPLICA_STANDBY && s.is_member,
        .is_member = s.is_member,
        .stopped = s.stopped != OMEN_OK,
    };
}

static void report_build(struct member *m, struct doc_builder *b)
{
    struct node *node = m->node;
    const char *why = node->service.not_ready(node);
    doc_begin_object(b);
    put_text(b, "do", "report");
    put_u64(b, "node_id", member_id(m));
    put_u64(b, "cluster_id", node->dir.identity.cluster_id);
    put_u64(b, "level", feature_level());
    put_u64(b, "disk_free", atomic_load(&node->disk_free));
    put_u64(b, "disk_total", atomic_load(&node->disk_total));
    struct node_memory memory;
    node_memory_look(node);
    node_memory_get(node, &memory);
    node_memory_put(&memory, b);
    put_bool(b, "disk_full", atomic_load(&node->env.disk_full) || atomic_load(&node->shard_waits));
    put_bool(b, "memory_full", atomic_load(&node->env.memory_full));
    clock_report_put(m, b);
    put_text(b, "why", why == NULL ? "" : why);
    begin_array(b, "rows");
    struct report_row group = row_of_group(m);
    row_put(b, &group);
    pthread_rwlock_rdlock(&node->table_lock);
    for (uint32_t i = 0; i < node->slot_count && i < MEMBER_REPLICAS_MAX; i++) {
        struct report_row row = row_of_shard(node->slots[i].shard);
        row_put(b, &row);
    }
    pthread_rwlock_unlock(&node->table_lock);
    doc_end(b);
    doc_end(b);
}

static void tails_take(struct node_view *view, struct doc groups)
{
    struct doc_iter it = doc_iter(groups);
    struct doc v;
    view->tails_full_count = 0;
    while (view->tails_full_count < MEMBER_TAILS_MAX && doc_next(&it, NULL, &v))
        if (doc_type(v) == DOC_I64) view->tails_full[view->tails_full_count++] = (uint64_t)doc_i64(v);
}

/* What the leader says of the others. */
static void answer_take(struct member *m, struct doc reply)
{
    struct doc_iter it = doc_iter(field_doc(reply, "nodes"));
    struct doc item;
    pthread_mutex_lock(&m->lock);
    while (doc_next(&it, NULL, &item)) {
        struct node_view *view = member_view(m, field_u32(item, "node_id"), true);
        if (view == NULL) continue;
        view->disk_full = field_bool(item, "disk_full");
        view->memory_full = field_bool(item, "memory_full");
        view->clock_off = field_bool(item, "clock_off");
        view->down = field_bool(item, "down");
        tails_take(view, field_doc(item, "tails_full"));
    }
    pthread_mutex_unlock(&m->lock);
}

static bool address_of(struct member *m, uint32_t node_id, char out[OMEN_ADDRESS_BYTES_MAX + 1])
{
    return m->shard_peers.address(m, node_id, out);
}

void member_report_round(struct member *m)
{
    uint32_t leader = member_leader(m);
    if (leader == 0) return;
    struct doc_builder *b = doc_builder_new(PEER_DOC_BYTES_MAX);
    struct doc request;
    struct err err;
    if (b == NULL) return;
    clock_look(m);
    report_build(m, b);
    enum omen_err rc = doc_builder_finish(b, &request, &err);
    char address[OMEN_ADDRESS_BYTES_MAX + 1];
    uint64_t began_ns = member_now_ns(m);
    if (rc == OMEN_OK && leader == member_id(m)) {
        struct doc_builder *reply = doc_builder_new(PEER_DOC_BYTES_MAX);
        struct doc answer;
        if (reply != NULL) {
            doc_begin_object(reply);
            rc = peer_report(m, request, reply, &err);
            doc_end(reply);
            if (doc_builder_finish(reply, &answer, NULL) == OMEN_OK && rc == OMEN_OK) {
                answer_take(m, answer);
                clock_answer_take(m, answer, leader, began_ns);
                digest_answer_take(m, answer);
            }
            doc_builder_free(reply);
        }
    } else if (rc == OMEN_OK && address_of(m, leader, address)) {
        struct peer_reply reply;
        rc = peer_call(m->peers, address, request, MEMBER_PEER_MS, &reply, &err);
        if (rc == OMEN_OK) {
            answer_take(m, reply.doc);
            clock_answer_take(m, reply.doc, leader, began_ns);
            digest_answer_take(m, reply.doc);
        }
        peer_reply_fini(&reply);
    }
    if (rc != OMEN_OK) LOG_DEBUG("member.report", "leader=%u error=\"%s\"", leader, err.message);
    doc_builder_free(b);
}

/* ---- hearing ---- */

static bool row_take(struct doc item, struct report_row *out)
{
    uint64_t fields[ROW_FIELDS];
    struct doc_iter it = doc_iter(item);
    struct doc v;
    int n = 0;
    for (; n < ROW_FIELDS && doc_next(&it, NULL, &v); n++) {
        if (doc_type(v) != DOC_I64 || doc_i64(v) < 0) return false;
        fields[n] = (uint64_t)doc_i64(v);
    }
    if (n < ROW_FIELDS) return false;
    uint64_t flags = fields[ROW_FLAGS];
    *out = (struct report_row){
        .group = fields[ROW_GROUP],
        .replica_id = fields[ROW_REPLICA],
        .term = fields[ROW_TERM],
        .applied = fields[ROW_APPLIED],
        .bytes = fields[ROW_BYTES],
        .points = fields[ROW_POINTS],
        .fetch_done = fields[ROW_DONE],
        .fetch_total = fields[ROW_TOTAL],
        .leader = flags & FLAG_LEADER,
        .ready = flags & FLAG_READY,
        .fetching = flags & FLAG_FETCHING,
        .damaged = flags & FLAG_DAMAGED,
        .voter = flags & FLAG_VOTER,
        .standby = flags & FLAG_STANDBY,
        .is_member = flags & FLAG_MEMBER,
        .tail_full = flags & FLAG_TAIL_FULL,
        .stopped = flags & FLAG_STOPPED,
    };
    digests_take(&it, &out->digests);
    return true;
}

static int row_compare(const void *a, const void *b)
{
    const struct report_row *x = a, *y = b;
    return (x->group > y->group) - (x->group < y->group);
}

static enum omen_err report_parse(struct doc request, struct node_report *out, struct err *err)
{
    struct doc rows = field_doc(request, "rows");
    uint32_t count = rows.data != NULL && doc_type(rows) == DOC_ARRAY ? doc_count(rows) : 0;
    if (count > MEMBER_REPLICAS_MAX)
        return err_set(err, OMEN_ETOOBIG, "rows", "a report has at most %u rows", MEMBER_REPLICAS_MAX);
    out->node_id = field_u32(request, "node_id");
    out->level = field_u32(request, "level");
    if (out->level == 0) out->level = FEATURE_NONE; /* a build that does not say */
    out->disk_free = field_u64(request, "disk_free");
    out->disk_total = field_u64(request, "disk_total");
    node_memory_parse(field_doc(request, "memory"), &out->memory);
    out->disk_full = field_bool(request, "disk_full");
    out->memory_full = field_bool(request, "memory_full");
    clock_report_parse(request, &out->clock);
    (void)field_text(request, "why", out->why, sizeof out->why);
    out->rows = mem_calloc(count + 1, sizeof *out->rows);
    if (out->rows == NULL) return err_set(err, OMEN_ENOMEM, "", "no memory for a report");
    struct doc_iter it = doc_iter(rows);
    struct doc item;
    while (doc_next(&it, NULL, &item))
        if (row_take(item, &out->rows[out->count])) out->count++;
    qsort(out->rows, out->count, sizeof *out->rows, row_compare);
    return OMEN_OK;
}

static void tails_put(struct doc_builder *b, const struct node_report *r)
{
    uint32_t told = 0;
    begin_array(b, "tails_full");
    for (uint32_t i = 0; i < r->count && told < MEMBER_TAILS_MAX; i++) {
        if (!r->rows[i].tail_full) continue;
        doc_put_i64(b, (int64_t)(r->rows[i].group & INT64_MAX));
        told++;
    }
    doc_end(b);
}

static void answer_put(struct member *m, struct doc_builder *reply)
{
    uint64_t now = member_now_ns(m);
    begin_array(reply, "nodes");
    pthread_mutex_lock(&m->lock);
    for (uint32_t i = 0; i < MEMBER_NODES_MAX; i++) {
        const struct node_report *r = &m->reports[i];
        if (r->node_id == 0) continue;
        doc_begin_object(reply);
        put_u64(reply, "node_id", r->node_id);
        put_bool(reply, "disk_full", r->disk_full);
        put_bool(reply, "memory_full", r->memory_full);
        put_bool(reply, "clock_off", r->clock.off);
        tails_put(reply, r);
        put_bool(reply, "down", now - r->heard_ns > MEMBER_DOWN_NS);
        doc_end(reply);
    }
    pthread_mutex_unlock(&m->lock);
    doc_end(reply);
}

enum omen_err peer_report(struct member *m, struct doc request, struct doc_builder *reply, struct err *err)
{
    if (!member_leads(m))
        return err_set(err, OMEN_ENOTLEADER, "", "this node does not lead the cluster group");
    struct node_report report = { .heard_ns = member_now_ns(m) };
    enum omen_err rc = report_parse(request, &report, err);
    if (rc != OMEN_OK) return rc;
    struct report_row *old = report.rows;
    pthread_mutex_lock(&m->lock);
    struct node_report *at = NULL;
    for (uint32_t i = 0; i < MEMBER_NODES_MAX; i++) {
        struct node_report *r = &m->reports[i];
        if (r->node_id == report.node_id) at = r;
        if (at == NULL && r->node_id == 0) at = r;
        if (r->node_id == report.node_id) break;
    }
    if (at != NULL && report.node_id != 0) {
        old = at->rows;
        *at = report;
    }
    pthread_cond_broadcast(&m->wake); /* the driver may be waiting for this */
    pthread_mutex_unlock(&m->lock);
    mem_free(old);
    clock_answer_put(m, report.node_id, reply);
    digest_answer_put(m, report.node_id, reply);
    answer_put(m, reply);
    return OMEN_OK;
}

void reports_clear(struct member *m)
{
    pthread_mutex_lock(&m->lock);
    for (uint32_t i = 0; i < MEMBER_NODES_MAX; i++) {
        mem_free(m->reports[i].rows);
        m->reports[i] = (struct node_report){ 0 };
    }
    m->odd = (struct odd_replica){ 0 };
    atomic_store(&m->node->env.replicas_differ, 0);
    pthread_mutex_unlock(&m->lock);
}

/* ---- reading ---- */

const struct node_report *member_report_of(struct member *m, uint32_t node_id)
{
    uint64_t now = member_now_ns(m);
    for (uint32_t i = 0; i < MEMBER_NODES_MAX; i++) {
        const struct node_report *r = &m->reports[i];
        if (r->node_id == node_id && node_id != 0) return now - r->heard_ns > MEMBER_DOWN_NS ? NULL : r;
    }
    return NULL;
}

uint64_t member_silence_ns(struct member *m, uint32_t node_id)
{
    uint64_t now = member_now_ns(m), since = atomic_load(&m->led_since_ns);
    if (member_report_of(m, node_id) != NULL || since == 0 || since > now) return 0;
    for (uint32_t i = 0; i < MEMBER_NODES_MAX; i++)
        if (m->reports[i].node_id == node_id && m->reports[i].heard_ns > since)
            since = m->reports[i].heard_ns;
    return now - since;
}

const struct report_row *report_row_of(const struct node_report *report, uint64_t group, uint64_t replica_id)
{
    uint32_t low = 0, high = report == NULL ? 0 : report->count;
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (report->rows[mid].group < group)
            low = mid + 1;
        else
            high = mid;
    }
    for (; report != NULL && low < report->count && report->rows[low].group == group; low++)
        if (report->rows[low].replica_id == replica_id) return &report->rows[low];
    return NULL;
}

void member_shard_report(struct member *m, const struct map_shard *shard, struct shard_report *out)
{
    *out = (struct shard_report){ 0 };
    uint64_t term = 0;
    pthread_mutex_lock(&m->lock);
    for (uint32_t i = 0; i < MEMBER_NODES_MAX; i++) {
        uint32_t node_id = m->reports[i].node_id;
        const struct node_report *report = node_id == 0 ? NULL : member_report_of(m, node_id);
        for (uint32_t k = 0; report != NULL && k < report->count; k++) {
            const struct report_row *row = &report->rows[k];
            if (row->group != shard->shard_id) continue;
            if (row->bytes > out->bytes) out->bytes = row->bytes;
            out->ready += row->ready && row->voter && !row->damaged;
            if (!row->leader || row->term < term) continue;
            term = row->term;
            out->leader_node = node_id;
            out->leader_replica = row->replica_id;
        }
    }
    pthread_mutex_unlock(&m->lock);
}
