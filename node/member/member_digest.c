/* Digests of replicas in the reports, and what the leader of the cluster group makes of them: a replica whose points are
 * not those of the others is told to serve nothing more, and is replaced like any that is damaged (member_drive.c).
 *
 * One at a time, with a pause, and only where a quorum of others is ready: if ever the comparison itself were wrong it
 * would cost copying, not a shard. Nothing is kept: who leads next hears it again. */
#include "common/err.h"

#include "common/log.h"
#include "common/placement/map_index.h"
#include "node/member/member_impl.h"

#define LOOK_NS 1000000000ull
#define PAUSE_NS 60000000000ull /* after a replica that was found wrong, before the next of any shard */

/* ---- in the rows of a report ---- */

void digests_put(struct doc_builder *b, const struct replica_digests *d)
{
    doc_put_i64(b, d->count == 0 ? 0 : d->version);
    for (uint32_t i = 0; i < d->count; i++) {
        doc_put_i64(b, (int64_t)(d->items[i].sequence & INT64_MAX));
        doc_put_i64(b, (int64_t)(d->items[i].sum & INT64_MAX));
    }
}

static bool next_u64(struct doc_iter *it, uint64_t *out)
{
    struct doc v;
    if (!doc_next(it, NULL, &v) || doc_type(v) != DOC_I64 || doc_i64(v) < 0) return false;
    *out = (uint64_t)doc_i64(v);
    return true;
}

void digests_take(struct doc_iter *it, struct replica_digests *out)
{
    uint64_t version;
    *out = (struct replica_digests){ 0 };
    if (!next_u64(it, &version) || version > UINT32_MAX) return;
    out->version = (uint32_t)version;
    while (out->count < STORE_DIGESTS_MAX && next_u64(it, &out->items[out->count].sequence) &&
            next_u64(it, &out->items[out->count].sum))
        out->count++;
}

/* ---- judging, at the leader ---- */

/* What the nodes reported of a shard's replicas; pointers into reports, so it needs the lock. */
static void digests_of(struct member *m, const struct map_shard *shard, const struct replica_digests **out)
{
    for (uint32_t r = 0; r < shard->replica_count; r++) {
        const struct report_row *row = report_row_of(member_report_of(m, shard->node_ids[r]), shard->shard_id,
                shard->replica_ids[r]);
        out[r] = row == NULL || row->damaged ? NULL : &row->digests;
    }
}

bool member_replica_differs(struct member *m, const struct map_shard *shard, uint32_t r)
{
    const struct replica_digests *of[OMEN_REPLICAS_MAX];
    digests_of(m, shard, of);
    uint32_t odd = digests_odd(of, shard->replica_count);
    return odd == DIGESTS_NONE ? digests_contradicted(of, shard->replica_count, r) : odd == r;
}

/* A shard's odd replica, if there is one; false also when some contradict each other and nobody knows who is right. */
static bool odd_of(struct member *m, const struct map_shard *shard, struct odd_replica *out, uint32_t *differ)
{
    const struct replica_digests *of[OMEN_REPLICAS_MAX];
    uint64_t sequence = 0;
    pthread_mutex_lock(&m->lock);
    digests_of(m, shard, of);
    uint32_t odd = digests_odd(of, shard->replica_count);
    for (uint32_t r = 0; r < shard->replica_count; r++) {
        *differ += odd == DIGESTS_NONE ? digests_contradicted(of, shard->replica_count, r) : odd == r;
        if (odd != DIGESTS_NONE && r != odd) (void)digests_relation(of[odd], of[r], &sequence);
    }
    pthread_mutex_unlock(&m->lock);
    if (odd != DIGESTS_NONE)
        *out = (struct odd_replica){ shard->shard_id, shard->replica_ids[odd], sequence,
            shard->node_ids[odd] };
    return odd != DIGESTS_NONE;
}

/* The next to be replaced: the one that is told already as long as it is odd, since its node may not have heard yet. */
static struct odd_replica odd_find(struct member *m, const struct map_index *index,
        const struct cluster_state *state, uint64_t told, uint32_t *differ_out)
{
    struct odd_replica found = { 0 }, odd;
    for (uint32_t i = 0; i < index->count; i++) {
        const struct map_shard *shard = index->places[i].shard;
        struct shard_report report;
        if (!odd_of(m, shard, &odd, differ_out) || cluster_state_op_of(state, shard->shard_id) != NULL)
            continue;
        member_shard_report(m, shard, &report);
        if (report.ready <= shard->replica_count / 2 + 1) continue; /* a quorum without it, ready as a rule */
        if (found.replica_id == 0 || odd.replica_id == told) found = odd;
    }
    return found;
}

void member_digest_turn(struct member *m, const struct map_index *index, const struct cluster_state *state)
{
    uint64_t now = member_now_ns(m);
    uint32_t differ = 0;
    if (now < m->digests_ns) return;
    m->digests_ns = now + LOOK_NS;
    pthread_mutex_lock(&m->lock);
    uint64_t told = m->odd.replica_id;
    pthread_mutex_unlock(&m->lock);
    struct odd_replica found = odd_find(m, index, state, told, &differ);
    atomic_store(&m->node->env.replicas_differ, differ);
    bool another = found.replica_id != 0 && found.replica_id != told;
    if (another && now < m->odd_ns) return;
    if (another) m->odd_ns = now + PAUSE_NS;
    pthread_mutex_lock(&m->lock);
    m->odd = found; /* told to its node with the answer to its next report, until that says it is damaged */
    pthread_mutex_unlock(&m->lock);
    if (another)
        LOG_ERROR("replica.differs", "shard=%llu replica=%llu node=%u sequence=%llu action=replace",
                (unsigned long long)found.shard_id, (unsigned long long)found.replica_id, found.node_id,
                (unsigned long long)found.sequence);
}

/* ---- telling the node ---- */

void digest_answer_put(struct member *m, uint32_t node_id, struct doc_builder *reply)
{
    pthread_mutex_lock(&m->lock);
    struct odd_replica odd = m->odd;
    pthread_mutex_unlock(&m->lock);
    if (odd.replica_id == 0 || odd.node_id != node_id) return;
    begin_object(reply, "odd_replica");
    put_u64(reply, "shard_id", odd.shard_id);
    put_u64(reply, "replica_id", odd.replica_id);
    put_u64(reply, "sequence", odd.sequence);
    doc_end(reply);
}

void digest_answer_take(struct member *m, struct doc reply)
{
    struct doc odd = field_doc(reply, "odd_replica");
    if (odd.data == NULL) return;
    struct err why;
    err_set(&why, OMEN_ECORRUPT, "", "at sequence %llu its points are not those that most replicas have",
            (unsigned long long)field_u64(odd, "sequence"));
    pthread_rwlock_rdlock(&m->node->table_lock);
    for (uint32_t i = 0; i < m->node->slot_count; i++)
        if (m->node->slots[i].shard_id == field_u64(odd, "shard_id"))
            shard_host_distrust(m->node->slots[i].shard, field_u64(odd, "replica_id"), &why);
    pthread_rwlock_unlock(&m->node->table_lock);
}
