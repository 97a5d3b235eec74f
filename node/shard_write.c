/* Writes: many waiting requests become one log entry, so that they share one sync.
 *
 * A request that finds no proposal in flight goes out at once, alone. Those that arrive while SHARD_PROPOSALS_MAX
 * entries are in flight wait, and the next entry takes as many of them as fit ENTRY_TARGET_BYTES; a larger request
 * gets an entry of its own. One thread at a time builds (`building`), so entries get monotone log times in the order
 * of their proposal; it is the submitter's thread, or the apply worker's when a proposal ends.
 *
 * Apply never refuses for lack of room (CORRECTNESS A1), so an entry is proposed only when the chunks that the
 * stream has hold it beside those in flight. When they do not, requests wait while the keeper has chunks made; only
 * when that failed are those that do not fit refused. Deletes may use a little that other writes leave.
 * Lock: write_lock, never held over propose, done, or a copy of vectors. */
#include "common/err.h"

#include <stdio.h>
#include <string.h>

#include "common/check.h"
#include "common/log.h"
#include "node/shard_host_impl.h"
#include "storage/kernel/kernel.h"

#define OP_BYTES_ABOUT 112u /* tables of an entry per op: op record, row numbers, alignment */
#define REQUEST_BYTES_ABOUT 128u
#define RETRY_BYTES_PER_MS                                                                                   \
    (64u << 10) /* how fast a shard is taken to drain when a refused client is told when to retry */
#define RETRY_AFTER_MS_MIN 10u
#define RETRY_AFTER_MS_MAX 1000u
#define CLOCK_RETRY_MS 500ull /* until another node leads */
#define TAIL_RETRY_MS 200ull  /* while the index catches up */

/* ---- admission ---- */

static uint64_t write_bytes(const struct shard_host *shard, const struct shard_call *call)
{
    uint64_t bytes = REQUEST_BYTES_ABOUT;
    for (uint32_t i = 0; i < call->in.write.count; i++) {
        const struct point_op *op = &call->in.write.ops[i];
        bytes += OP_BYTES_ABOUT + op->key.canonical.len + op->payload.len;
        for (uint32_t f = 0; f < shard->schema.field_count; f++) {
            if (op->vectors[f] != NULL) bytes += 4ull * entry_row_stride(shard->schema.fields[f].dim);
        }
    }
    return bytes;
}

_Static_assert(SHARD_PROPOSALS_MAX + 2 <= STORE_NEEDS_MAX, "entries in flight and the next one");

static bool only_deletes(const struct shard_call *call, const struct entry_intent *intent)
{
    if (intent != NULL && intent->kind == ENTRY_INTENT_BEGIN && intent->op != POINT_DELETE) return false;
    for (uint32_t i = 0; i < call->in.write.count; i++) {
        if (call->in.write.ops[i].kind != POINT_DELETE) return false;
    }
    return true;
}

static void write_busy(struct shard_host *shard, struct shard_call *call, uint64_t ahead_bytes,
        const char *why)
{
    if (shard->env->refused_busy != NULL) metric_add(shard->env->refused_busy, 1);
    uint64_t after_ms = ahead_bytes / RETRY_BYTES_PER_MS;
    if (after_ms < RETRY_AFTER_MS_MIN) after_ms = RETRY_AFTER_MS_MIN;
    if (after_ms > RETRY_AFTER_MS_MAX) after_ms = RETRY_AFTER_MS_MAX;
    call->code = err_set(&call->err, OMEN_EBUSY, "", "shard %llu: %s", (unsigned long long)shard->shard_id,
            why);
    call->err.retry_after_ms = (uint32_t)after_ms;
}

/* An entry is written to the log and to the stream. A look at the disk is cheap, but not for every request. */
static void disk_count(struct shard_env *env, uint64_t bytes)
{
    int64_t cost = 2 * (int64_t)bytes;
    int64_t left = atomic_fetch_sub_explicit(&env->disk_headroom, cost, memory_order_relaxed) - cost;
    if (left < 0 && env->disk_look != NULL && !atomic_load(&env->disk_full)) env->disk_look(env->disk_arg);
}

/* Sets the refusal in `call` and returns false, or counts its bytes in. */
static bool write_admit(struct shard_host *shard, struct shard_write *write)
{
    struct shard_env *env = shard->env;
    struct shard_call *call = write->call;
    uint64_t bytes = write->bytes;
    if (bytes > ENTRY_BYTES_MAX) {
        call->code = err_set(&call->err, OMEN_ETOOBIG, "",
                "the batch needs %llu bytes of log, the limit is %u: split it", (unsigned long long)bytes,
                ENTRY_BYTES_MAX);
        return false;
    }
    if (shard_call_late(shard, call)) {
        call->code = err_set(&call->err, OMEN_EDEADLINE, "",
                "the deadline passed before the write was begun");
        return false;
    }
    if (atomic_load_explicit(&env->clock_off, memory_order_relaxed)) {
        /* Log time is this node's: what expires would go at the wrong time at every replica. */
        char why[160];
        long long skew_ms = atomic_load(&env->clock_skew_ms);
        snprintf(why, sizeof why,
                "the clock of this node is %lld ms %s the cluster's median: another node has to lead",
                skew_ms < 0 ? -skew_ms : skew_ms, skew_ms < 0 ? "behind" : "ahead of");
        write_busy(shard, call, CLOCK_RETRY_MS * RETRY_BYTES_PER_MS, why);
        return false;
    }
    disk_count(env, bytes);
    if (atomic_load(&env->disk_full) && !write->deletes) {
        if (env->refused_full != NULL) metric_add(env->refused_full, 1);
        pthread_mutex_lock(&env->disk_lock);
        call->code = err_set(&call->err, OMEN_EFULL, "", "%s", env->disk_text);
        pthread_mutex_unlock(&env->disk_lock);
        return false;
    }
    if (shard->group != NULL && !shard_admits(shard, call, write->deletes)) {
        if (call->code == OMEN_EFULL && env->refused_full != NULL) metric_add(env->refused_full, 1);
        if (call->code == OMEN_EBUSY) write_busy(shard, call, env->behind_bytes, call->err.message);
        return false;
    }
    /* Counted first and taken back when refused, so that two requests cannot both take the last room. One request is
     * let in whatever its size when nothing else is: refusing it for ever would help nobody. */
    uint64_t ours = atomic_fetch_add(&shard->inflight_bytes, bytes);
    uint64_t all = atomic_fetch_add(&env->inflight_bytes, bytes);
    bool shard_over = ours > 0 && ours + bytes > env->shard_inflight_bytes_max;
    bool node_over = all > 0 && all + bytes > env->node_inflight_bytes_max;
    if (!shard_over && !node_over) return true;
    atomic_fetch_sub(&shard->inflight_bytes, bytes);
    atomic_fetch_sub(&env->inflight_bytes, bytes);
    write_busy(shard, call, shard_over ? ours : all,
            shard_over ? "too many bytes of writes are in flight"
                       : "too many bytes of writes are in flight on this node");
    return false;
}

static void bytes_done(struct shard_host *shard, uint64_t bytes)
{
    atomic_fetch_sub(&shard->inflight_bytes, bytes);
    atomic_fetch_sub(&shard->env->inflight_bytes, bytes);
}

/* ---- building ---- */

/* The requests at the head of the queue that the next entry takes. */
struct batch_size {
    uint32_t count;
    uint64_t bytes;
    struct write_need need;
    bool deletes;
};

/* Needs write_lock and a non-empty queue. On a full disk a write goes alone, not to be refused for its company;
 * deletes still share. */
static struct batch_size batch_measure(const struct shard_host *shard)
{
    struct batch_size size = { .deletes = shard->queue_head->deletes };
    bool full = shard->room_rc != OMEN_OK;
    for (const struct shard_write *w = shard->queue_head; w != NULL; w = w->next) {
        if (size.count > 0 &&
                (size.bytes + w->bytes > ENTRY_TARGET_BYTES || size.count == ENTRY_REQUESTS_MAX))
            break;
        if (size.count > 0 && full && !(size.deletes && w->deletes)) break;
        size.bytes += w->bytes;
        size.deletes &= w->deletes;
        write_need_add(&size.need, &w->need);
        size.count++;
    }
    return size;
}

/* Detach them; needs write_lock. */
static struct write_batch *batch_take(struct shard_host *shard, const struct batch_size *size)
{
    struct write_batch *batch = mem_must_calloc(1, sizeof *batch + size->count * sizeof batch->writes[0]);
    batch->shard = shard;
    batch->bytes = size->bytes;
    batch->need = size->need;
    batch->count = size->count;
    batch->outcomes = mem_must_calloc(size->count, sizeof *batch->outcomes);
    for (uint32_t i = 0; i < size->count; i++) {
        batch->writes[i] = shard->queue_head;
        shard->queue_head = shard->queue_head->next;
    }
    if (shard->queue_head == NULL) shard->queue_tail = &shard->queue_head;
    shard->queued -= size->count;
    return batch;
}

static void batch_free(struct write_batch *batch)
{
    mem_free(batch->outcomes);
    mem_free(batch);
}

/* Cosine vectors are normalised here, in a row that stays in cache, on their one way into the entry. */
static enum omen_err build_op(struct shard_host *shard, const struct point_op *op)
{
    struct point_op normalised = *op;
    float *row = shard->row;
    for (uint32_t f = 0; f < shard->schema.field_count; f++) {
        const struct vector_field *field = &shard->schema.fields[f];
        if (op->vectors[f] == NULL || field->metric != METRIC_COSINE) continue;
        memcpy(row, (const void *)op->vectors[f], 4 * (size_t)field->dim);
        vector_normalise(row, field->dim);
        normalised.vectors[f] = row;
        row += field->dim;
    }
    return entry_builder_add(shard->builder, &normalised);
}

static enum omen_err batch_build(struct write_batch *batch, uint8_t **entry_out, uint32_t *len_out)
{
    struct shard_host *shard = batch->shard;
    entry_builder_reset(shard->builder);
    uint64_t epoch = 0;
    for (uint32_t i = 0; i < batch->count; i++) {
        const struct shard_call *call = batch->writes[i]->call;
        if (call->epoch > epoch) epoch = call->epoch;
        entry_builder_begin_request(shard->builder, call->in.write.op_id);
        const struct entry_intent *intent = batch->writes[i]->intent;
        if (intent != NULL) {
            enum omen_err rc = entry_builder_put_intent(shard->builder, intent);
            if (rc != OMEN_OK) return rc;
        }
        for (uint32_t j = 0; j < call->in.write.count; j++) {
            enum omen_err rc = build_op(shard, &call->in.write.ops[j]);
            if (rc != OMEN_OK) return rc;
        }
    }
    uint64_t now_ms = clock_wall_ms(shard->env->clock);
    if (now_ms > shard->log_time_ms) shard->log_time_ms = now_ms;
    batch->log_time_ms = shard->log_time_ms;
    return entry_builder_finish(shard->builder, shard->log_time_ms, epoch, false, entry_out, len_out);
}

/* ---- completion ---- */

void shard_write_explain(const struct shard_host *shard, uint64_t now_ms, enum omen_err code,
        struct shard_call *call)
{
    uint64_t issue_ms = call->in.write.op_id.issue_ms, retention_ms = shard->env->store.op_retention_ms;
    bool has_id = call->in.write.op_id.client != 0;
    if (code == OMEN_EOPEXPIRED)
        err_set(&call->err, code, "", "the op id is too old to know whether it was applied");
    else if (code == OMEN_ETOOBIG)
        err_set(&call->err, code, "", "a payload would grow past the limit of %u bytes", DOC_BYTES_MAX);
    else if (code == OMEN_EINVAL && has_id && issue_ms > now_ms && issue_ms - now_ms > retention_ms)
        err_set(&call->err, code, "op_id[2]",
                "issued at %llu ms, which is %llu ms ahead of this shard's time, %llu ms; at most %llu ms are "
                "allowed: set the client's clock",
                (unsigned long long)issue_ms, (unsigned long long)(issue_ms - now_ms),
                (unsigned long long)now_ms, (unsigned long long)retention_ms);
    else if (code == OMEN_EBUSY) {
        err_set(&call->err, code, "",
                "a write by filter under this op id is under way, or as many as a shard does at once");
        call->err.retry_after_ms = RETRY_AFTER_MS_MAX;
    } else
        err_set(&call->err, code, "", "refused by the shard");
}

static void batch_answer(struct write_batch *batch, enum omen_err result, uint64_t sequence,
        const struct err *err)
{
    for (uint32_t i = 0; i < batch->count; i++) {
        if (batch->writes[i] == NULL) continue; /* answered when its deadline passed */
        struct shard_write *write = batch->writes[i];
        struct shard_call *call = write->call;
        const struct apply_outcome *outcome = &batch->outcomes[i];
        call->code = result;
        if (result == OMEN_ENOTLEADER) shard_group_not_leader(batch->shard, call);
        if (result != OMEN_OK) {
            if (err != NULL) call->err = *err;
            if (call->err.code != result)
                err_set(&call->err, result, "", "the write failed: %s", err_name(result));
        } else {
            call->code = outcome->code;
            call->sequence = outcome->sequence != 0 ? outcome->sequence : sequence;
            call->out.write.affected = outcome->affected;
            call->out.write.duplicate = outcome->duplicate;
            write->intent_id = outcome->intent;
            if (outcome->code != OMEN_OK)
                shard_write_explain(batch->shard, batch->log_time_ms, outcome->code, call);
            if (shard_wait_park(batch->shard, write)) continue;
        }
        call->done(call); /* may release and free the write */
    }
    batch_free(batch);
}

/* Apply worker, or the proposer's thread when refused at once. */
static void batch_done(void *arg, enum omen_err result, uint64_t sequence, const struct err *err)
{
    struct write_batch *batch = arg;
    struct shard_host *shard = batch->shard;
    pthread_mutex_lock(&shard->write_lock);
    *batch->link = batch->next;
    if (batch->next != NULL) batch->next->link = batch->link;
    shard->proposals--;
    shard->proposal_bytes -= batch->bytes;
    pthread_mutex_unlock(&shard->write_lock);
    bytes_done(shard, batch->bytes);
    shard_write_pump(shard); /* before the answers: the log should not idle while they are written */
    batch_answer(batch, result, sequence, err);
}

/* Those that wait for no more than this: the entry is built, it goes to the log next. */
static void batch_accept(struct write_batch *batch)
{
    struct shard_write *accepted = NULL;
    pthread_mutex_lock(&batch->shard->write_lock);
    for (uint32_t i = 0; i < batch->count; i++) {
        struct shard_write *write = batch->writes[i];
        if (write == NULL || write->call->in.write.wait != WAIT_ACCEPTED) continue;
        batch->writes[i] = NULL;
        write->next = accepted;
        accepted = write;
    }
    pthread_mutex_unlock(&batch->shard->write_lock);
    while (accepted != NULL) {
        struct shard_call *call = accepted->call; /* done may free the write */
        accepted = accepted->next;
        call->out.write.affected = call->in.write.count;
        call->done(call);
    }
}

static void batch_propose(struct write_batch *batch)
{
    struct shard_host *shard = batch->shard;
    uint8_t *entry;
    uint32_t len;
    enum omen_err rc = batch_build(batch, &entry, &len);
    pthread_mutex_lock(&shard->write_lock);
    shard->proposals++;
    shard->proposal_bytes += batch->bytes;
    batch->next = shard->flying;
    batch->link = &shard->flying;
    if (batch->next != NULL) batch->next->link = &batch->next;
    shard->flying = batch;
    pthread_mutex_unlock(&shard->write_lock);
    if (rc != OMEN_OK) {
        struct err err;
        err_set(&err, rc, "", "the log entry could not be built");
        batch_done(batch, rc, 0, &err);
        return;
    }
    struct shard_env *env = shard->env;
    if (env->entries != NULL) {
        metric_add(env->entries, 1);
        metric_add(env->entry_requests, batch->count);
    }
    batch_accept(batch);
    replica_propose(shard->replica, entry, len, batch, batch_done, batch);
}

/* ---- room ---- */

/* What is in flight, oldest first, then `next` when not NULL. Needs write_lock. */
static uint32_t needs_collect(const struct shard_host *shard, const struct write_need *next,
        struct write_need needs[STORE_NEEDS_MAX])
{
    uint32_t count = shard->proposals, at = count;
    for (const struct write_batch *b = shard->flying; b != NULL; b = b->next) needs[--at] = b->need;
    CHECK(at == 0);
    if (next != NULL) needs[count++] = *next;
    return count;
}

/* May the next entry be proposed? Asks for more room in time, or when there is none. Needs write_lock. */
static bool room_for(struct shard_host *shard, const struct batch_size *size, bool *ask_out)
{
    struct write_need needs[STORE_NEEDS_MAX];
    uint32_t count = needs_collect(shard, &size->need, needs);
    struct shard_store *store = shard_host_store_hold(shard);
    if (store == NULL) return false; /* between two generations; the barrier of the next term comes back */
    bool fits = shard_store_has_room(store, needs, count,
            size->deletes ? STORE_SPARE_NONE : STORE_SPARE_DELETES);
    bool ahead = fits &&
            (shard->room_rc != OMEN_OK || shard_store_has_room(store, needs, count, STORE_SPARE_AHEAD));
    shard_host_store_unhold(shard);
    *ask_out |= !fits;
    if (!fits || ahead) return fits;
    uint64_t now_ns = clock_monotonic_ns(shard->env->clock);
    *ask_out |= shard->ahead_failed_ns == 0 || now_ns - shard->ahead_failed_ns > ROOM_RETRY_MS * 1000000ull;
    return true;
}

void shard_write_applied(struct shard_host *shard)
{
    struct shard_store *store = shard_host_store_hold(shard);
    if (store == NULL) return;
    bool ahead = shard_store_has_room(store, NULL, 0, STORE_SPARE_AHEAD);
    shard_host_store_unhold(shard);
    if (!ahead && !atomic_load(&shard->ahead_full)) room_keeper_ask(shard->env->rooms, &shard->room_ticket);
}

bool shard_write_make_room(struct shard_host *shard)
{
    struct write_need needs[STORE_NEEDS_MAX], next = { 0 };
    struct err err, ahead_err;
    err_clear(&err);
    pthread_mutex_lock(&shard->write_lock);
    bool wanted = shard->queue_head != NULL || shard->room_rc != OMEN_OK;
    bool deletes = false;
    if (shard->queue_head != NULL) {
        struct batch_size size = batch_measure(shard);
        next = size.need;
        deletes = size.deletes;
    } else {
        next = shard->room_need;
    }
    uint32_t count = needs_collect(shard, wanted ? &next : NULL, needs);
    pthread_mutex_unlock(&shard->write_lock);
    enum omen_err rc = OMEN_OK, ahead_rc = OMEN_OK;
    struct shard_store *store = shard_host_store_hold(shard);
    if (store == NULL) {
        shard_write_pump(shard);
        return false;
    }
    if (wanted)
        rc = shard_store_make_room(store, needs, count, deletes ? STORE_SPARE_NONE : STORE_SPARE_DELETES,
                &err);
    if (rc == OMEN_OK) ahead_rc = shard_store_make_room(store, needs, count, STORE_SPARE_AHEAD, &ahead_err);
    shard_host_store_unhold(shard);
    pthread_mutex_lock(&shard->write_lock);
    enum omen_err before = shard->room_rc;
    if (rc != OMEN_OK || !deletes) shard->room_rc = rc;
    shard->room_err = err;
    if (rc != OMEN_OK) shard->room_need = next;
    shard->ahead_failed_ns = ahead_rc == OMEN_OK ? 0 : clock_monotonic_ns(shard->env->clock);
    bool full = shard->room_rc != OMEN_OK, ahead_full = rc == OMEN_EFULL || ahead_rc == OMEN_EFULL;
    atomic_store(&shard->ahead_full, ahead_full);
    pthread_mutex_unlock(&shard->write_lock);
    if (rc != OMEN_OK && before == OMEN_OK)
        LOG_WARN("shard.full", "shard=%llu reason=\"%s\"", (unsigned long long)shard->shard_id, err.message);
    if (!full && before != OMEN_OK) LOG_INFO("shard.room", "shard=%llu", (unsigned long long)shard->shard_id);
    shard_write_pump(shard);
    return full || ahead_full;
}

bool shard_write_is_full(struct shard_host *shard)
{
    pthread_mutex_lock(&shard->write_lock);
    bool full = shard->room_rc != OMEN_OK;
    pthread_mutex_unlock(&shard->write_lock);
    return full;
}

/* Answers requests that were never begun. */
static void batch_refuse(struct write_batch *batch)
{
    struct shard_host *shard = batch->shard;
    struct err err;
    pthread_mutex_lock(&shard->write_lock);
    enum omen_err rc = shard->room_rc;
    err_set(&err, rc, "",
            "the disk has no room for %llu more bytes of shard %llu (%s): reads are served, deletes while "
            "they fit",
            (unsigned long long)batch->bytes, (unsigned long long)shard->shard_id, shard->room_err.message);
    pthread_mutex_unlock(&shard->write_lock);
    if (shard->env->refused_full != NULL) metric_add(shard->env->refused_full, batch->count);
    bytes_done(shard, batch->bytes);
    batch_answer(batch, rc, 0, &err);
}

/* The same, when another replica leads. */
static void batch_not_leader(struct write_batch *batch)
{
    bytes_done(batch->shard, batch->bytes);
    batch_answer(batch, OMEN_ENOTLEADER, 0, NULL);
}

/* ---- the pump ---- */

static bool may_propose(const struct shard_host *shard)
{
    if (shard->queue_head == NULL || shard->proposals >= SHARD_PROPOSALS_MAX) return false;
    return shard->proposals == 0 ||
            shard->proposal_bytes + shard->queue_head->bytes <= shard->env->shard_inflight_bytes_max;
}

/* Make entries while there are requests and room in flight. Whoever comes while another builds leaves it to that one,
 * which looks again before it stops. */
void shard_write_pump(struct shard_host *shard)
{
    bool ask = false, prepare = false;
    pthread_mutex_lock(&shard->write_lock);
    if (shard->building) {
        pthread_mutex_unlock(&shard->write_lock);
        return;
    }
    shard->building = true;
    while (may_propose(shard)) {
        struct batch_size size = batch_measure(shard);
        enum shard_lead lead = shard_group_lead(shard);
        if (lead == LEAD_PREPARING) {
            prepare = true;
            break; /* the barrier comes back */
        }
        bool fits = lead == LEAD_READY && room_for(shard, &size, &ask);
        if (lead == LEAD_READY && !fits && shard->room_rc == OMEN_OK) break; /* the keeper comes back */
        struct write_batch *batch = batch_take(shard, &size);
        pthread_mutex_unlock(&shard->write_lock);
        if (lead == LEAD_NOT)
            batch_not_leader(batch);
        else if (fits)
            batch_propose(batch);
        else
            batch_refuse(batch);
        pthread_mutex_lock(&shard->write_lock);
    }
    shard->building = false;
    pthread_mutex_unlock(&shard->write_lock);
    if (ask) room_keeper_ask(shard->env->rooms, &shard->room_ticket);
    if (prepare) shard_group_prepare(shard);
}

/* May be in the queue a moment after a look that said so: who takes it out looks again. */
static bool write_wanted_here(struct shard_host *shard, struct shard_call *call)
{
    if (shard->group == NULL) return true;
    if (atomic_load(&shard->group->lead_term) != 0 && !shard_group_is_damaged(shard)) return true;
    call->code = OMEN_ENOTLEADER;
    shard_group_not_leader(shard, call);
    return false;
}

static enum omen_err write_need_of(struct shard_host *shard, struct shard_write *write)
{
    struct shard_call *call = write->call;
    struct write_need *need_out = &write->need;
    struct shard_store *store = shard_host_store_hold(shard);
    if (store == NULL) return err_set(&call->err, OMEN_EUNAVAILABLE, "", "the store is being replaced");
    struct shard_store_stats stats;
    enum omen_err rc = shard_store_need(store, call->in.write.ops, call->in.write.count, need_out,
            &call->err);
    if (write->intent != NULL) need_out->entry_bytes += entry_intent_bytes(write->intent);
    shard_store_stats(store, &stats);
    uint64_t tail = shard_index_tail_rows(store);
    shard_host_store_unhold(shard);
    if (rc == OMEN_OK && atomic_load(&shard->env->memory_full) && !write->deletes)
        return err_set(&call->err, OMEN_ENOMEM, "",
                "the node's memory budget is used up by what it must keep of its points, with all graphs on disk: "
                "raise memory.budget, delete points or add nodes");
    if (rc == OMEN_OK && shard->env->tail_rows_max != 0 && tail >= shard->env->tail_rows_max &&
            !write->deletes) {
        write_busy(shard, call, TAIL_RETRY_MS * RETRY_BYTES_PER_MS,
                "too many points are in no index yet: it is being built (index.tail_rows_max)");
        return OMEN_EBUSY;
    }
    if (rc != OMEN_OK || call->in.write.op_id.client == 0 || !stats.op_table_full) return rc;
    write_busy(shard, call, UINT64_MAX, "the table of applied ops is full");
    return OMEN_EBUSY;
}

void shard_write_submit_intent(struct shard_host *shard, struct shard_call *call,
        const struct entry_intent *intent)
{
    struct shard_write *write = mem_must_calloc(1, sizeof *write);
    write->call = call;
    write->intent = intent;
    write->bytes = write_bytes(shard, call) + (intent != NULL ? entry_intent_bytes(intent) : 0);
    if (!shard_call_begin(shard, call, &write->state)) {
        mem_free(write);
        call->done(call);
        return;
    }
    write->deletes = only_deletes(call, intent);
    if (call->in.write.wait == WAIT_INDEXED && !shard->env->indexes) {
        call->code = err_set(&call->err, OMEN_EINVAL, "wait",
                "nothing is indexed here: index.disabled is set");
        call->done(call);
        return;
    }
    if (!write_wanted_here(shard, call)) {
        call->done(call);
        return;
    }
    if (call->in.write.filter_doc.data != NULL) {
        shard_filter_write_start(shard, write);
        return;
    }
    call->code = write_need_of(shard, write);
    if (call->code != OMEN_OK || !write_admit(shard, write)) {
        call->done(call);
        return;
    }
    pthread_mutex_lock(&shard->write_lock);
    bool room = shard->queued < SHARD_WRITES_QUEUED_MAX;
    if (room) {
        *shard->queue_tail = write;
        shard->queue_tail = &write->next;
        shard->queued++;
    }
    pthread_mutex_unlock(&shard->write_lock);
    if (!room) {
        bytes_done(shard, write->bytes);
        write_busy(shard, call, atomic_load(&shard->inflight_bytes), "too many writes are waiting");
        call->done(call);
        return;
    }
    shard_write_pump(shard);
}

void shard_write_submit(struct shard_host *shard, struct shard_call *call)
{
    shard_write_submit_intent(shard, call, NULL);
}

struct intent_id shard_write_intent(const struct shard_call *call)
{
    const struct shard_write *write = call->service_data; /* NULL: refused before it was taken */
    return write != NULL ? write->intent_id : (struct intent_id){ 0, 0 };
}

void shard_write_release(struct shard_write *write)
{
    shard_filter_write_free(write->by_filter);
    mem_free(write);
}

/* ---- deadlines ---- */

/* With the reason, and in time for it to arrive: the client counts the same deadline. */
static bool held_by_full_disk(const struct shard_host *shard, const struct shard_write *w, bool waits)
{
    uint64_t deadline_ns = w->call->deadline_ns;
    return waits && deadline_ns != 0 &&
            clock_monotonic_ns(shard->env->clock) + SHARD_FULL_AHEAD_NS >= deadline_ns;
}

/* Requests still waiting were never begun; those in flight may yet be applied. */
void shard_write_sweep(struct shard_host *shard)
{
    struct shard_write *never = NULL, *unknown = NULL;
    uint64_t bytes = 0;
    struct replica_status status = { 0 };
    if (shard->replica != NULL) replica_status(shard->replica, &status);
    pthread_mutex_lock(&shard->write_lock);
    shard->queue_tail = &shard->queue_head;
    while (*shard->queue_tail != NULL) {
        struct shard_write *w = *shard->queue_tail;
        if (!shard_call_late(shard, w->call) && !held_by_full_disk(shard, w, status.waits)) {
            shard->queue_tail = &w->next;
            continue;
        }
        *shard->queue_tail = w->next;
        shard->queued--;
        bytes += w->bytes;
        w->next = never;
        never = w;
    }
    for (struct write_batch *batch = shard->flying; batch != NULL; batch = batch->next) {
        for (uint32_t i = 0; i < batch->count; i++) {
            struct shard_write *w = batch->writes[i];
            if (w == NULL || !shard_call_late(shard, w->call)) continue;
            batch->writes[i] = NULL;
            w->next = unknown;
            unknown = w;
        }
    }
    pthread_mutex_unlock(&shard->write_lock);
    bytes_done(shard, bytes);
    while (never != NULL) {
        struct shard_call *call = never->call;
        never = never->next;
        if (status.waits)
            shard_call_fail(call, OMEN_EFULL,
                    "the disk is full: earlier writes of shard %llu wait for room; this one was not begun",
                    (unsigned long long)shard->shard_id);
        else
            shard_call_fail(call, OMEN_EDEADLINE,
                    "the deadline passed while the write waited; it was not begun");
    }
    while (unknown != NULL) {
        struct shard_call *call = unknown->call;
        unknown = unknown->next;
        shard_call_fail(call, OMEN_EUNKNOWN,
                "the deadline passed before the write was durable; it may yet be applied");
    }
}
