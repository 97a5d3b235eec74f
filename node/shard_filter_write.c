/* Writes of all points that match a filter, as a client asks for them (CORRECTNESS A5).
 *
 *   task: first page of the newest view --no more--> one entry of conditional operations under the op id -> answered
 *           |--more, or it takes long--> BEGIN is proposed: recorded --> shard_intent.c does the rest; the call waits there
 *           +--more, but the cluster may not record it yet (A2)--> page after page, each an entry; the last carries the
 *              op id. Breaking off (deadline, another leader) leaves a part done and says so; the same request again does
 *              the rest, as of its own beginning.
 *
 * Under an op id that is being done already the call waits for that one's end; under one that was done it is told the
 * outcome. Threads: the search pool's for pages, whoever ends the inner write queues the next. One owner at a time. */
#include "common/err.h"

#include <string.h>

#include "node/shard_host_impl.h"

#define LEAD_RETRY_MS 50u
#define FULL_RETRY_MS 1000u
#define PROBE_NS 250000000ull /* that the first page may take before the write is recorded */

struct filter_write {
    struct search_task task;
    struct shard_host *shard;
    struct shard_write *write; /* of the outer call */
    struct shard_call *outer, inner;
    bool inner_flying, first, last; /* the page */
    bool recorded;                  /* the inner write is the one that begins it */
    struct entry_intent begin;      /* while it is; docs are the outer call's */
    struct intent_floor floor;      /* likewise */
    uint64_t probe_until_ns;        /* of the first page; 0 = no bound but the deadline */
    struct arena arena;             /* of a page's operations */
    struct filter_page page;
    uint32_t affected;
};

void shard_filter_write_free(struct filter_write *f)
{
    if (f == NULL) return;
    if (f->inner_flying) shard_host_release(&f->inner); /* its end could not be looked after */
    arena_fini(&f->arena);
    mem_free(f);
}

/* What refused calls and ended writes have in common; `f` may be gone after it. */
static void finish(struct filter_write *f, enum omen_err code, const struct err *err)
{
    struct shard_call *outer = f->outer;
    outer->code = code;
    if (code != OMEN_OK && err != NULL) {
        outer->err = *err;
        if (f->affected > 0)
            err_set(&outer->err, code, err->field, "%u points were done before: %.300s", f->affected,
                    err->message);
        outer->err.retry_after_ms = err->retry_after_ms;
    }
    outer->done(outer); /* may free f */
}

static void fail(struct filter_write *f, enum omen_err code, uint32_t retry_ms, const char *why)
{
    struct err err;
    err_set(&err, code, "", "%s", why);
    if (code == OMEN_EBUSY) err.retry_after_ms = retry_ms;
    finish(f, code, &err);
}

static bool is_late(const struct filter_write *f)
{
    return atomic_load(&f->shard->stopping) || shard_call_late(f->shard, f->outer);
}

static bool page_stop(void *arg)
{
    const struct filter_write *f = arg;
    if (is_late(f)) return true;
    return f->probe_until_ns != 0 && clock_monotonic_ns(f->shard->env->clock) >= f->probe_until_ns;
}

/* ---- inner writes ---- */

static bool inner_end(struct filter_write *f);

static void inner_done(struct shard_call *inner)
{
    struct filter_write *f = inner->arg;
    if (search_pool_submit(f->shard->env->pool, &f->task)) return;
    if (inner_end(f)) fail(f, OMEN_EBUSY, LEAD_RETRY_MS, "too many searches are waiting");
}

/* Whether the op id will still be taken when the last page is applied. A write that took longer is answered without its
 * outcome being kept: refusing the last page would leave it undone for ever. Asked again it is refused as too old, or in
 * between begins anew. (One that is recorded has no such bound.) */
static bool op_id_lives(const struct filter_write *f)
{
    uint64_t now_ms = clock_wall_ms(f->shard->env->clock), keep_ms = f->shard->env->store.op_retention_ms;
    return f->first || now_ms < f->outer->in.write.op_id.issue_ms + keep_ms / 2;
}

static void inner_init(struct filter_write *f)
{
    const struct shard_call *outer = f->outer;
    f->inner = (struct shard_call){ .kind = CALL_WRITE,
        .shard_id = outer->shard_id,
        .collection_id = outer->collection_id,
        .epoch = outer->epoch,
        .incarnation = outer->incarnation,
        .deadline_ns = outer->deadline_ns,
        .done = inner_done,
        .arg = f };
    f->inner_flying = true;
}

static void inner_submit(struct filter_write *f, const struct entry_intent *intent)
{
    struct shard_host *shard = f->shard;
    shard_host_hold(shard); /* it may end, and all of `f` with it, before submit returns */
    if (intent != NULL)
        shard_write_submit_intent(shard, &f->inner, intent);
    else
        shard_write_submit(shard, &f->inner);
    shard_host_unhold(shard);
}

static void inner_start(struct filter_write *f)
{
    const struct shard_call *outer = f->outer;
    inner_init(f);
    f->inner.in.write.ops = f->page.ops;
    f->inner.in.write.count = f->page.count;
    if (f->last && op_id_lives(f)) f->inner.in.write.op_id = outer->in.write.op_id;
    if (f->last && outer->in.write.wait == WAIT_INDEXED) f->inner.in.write.wait = WAIT_INDEXED;
    inner_submit(f, NULL);
}

static void record_start(struct filter_write *f)
{
    const struct shard_call *outer = f->outer;
    if (shard_intents_full(f->shard)) {
        fail(f, OMEN_EBUSY, FULL_RETRY_MS, "too many writes by filter are under way in the shard");
        return;
    }
    inner_init(f);
    f->recorded = true;
    f->begin = (struct entry_intent){ .kind = ENTRY_INTENT_BEGIN,
        .op = outer->in.write.ops[0].kind,
        .filter = outer->in.write.filter_doc,
        .payload = outer->in.write.ops[0].payload };
    f->inner.in.write.op_id = outer->in.write.op_id;
    intent_floor_begin(f->shard, &f->floor);
    inner_submit(f, &f->begin);
}

/* ---- the op id ---- */

/* Judged before the first page is written: only the last one carries the op id to where apply judges it. Answers. */
static bool op_id_timely(struct filter_write *f, uint64_t now_ms)
{
    const struct op_id *id = &f->outer->in.write.op_id;
    enum omen_err code = id->client == 0
            ? OMEN_OK
            : store_op_id_timely(id, now_ms, f->shard->env->store.op_retention_ms);
    if (code == OMEN_OK) return true;
    f->outer->code = code;
    shard_write_explain(f->shard, now_ms, code, f->outer);
    f->outer->done(f->outer); /* may free f */
    return false;
}

/* Answered, now or when the write by filter that is under way has ended; false: the op id is not known. */
static bool op_id_settled(struct filter_write *f)
{
    struct shard_host *shard = f->shard;
    struct apply_outcome outcome;
    for (;;) {
        struct shard_store *store = shard_host_store_hold(shard);
        if (store == NULL) {
            fail(f, OMEN_EUNAVAILABLE, 0, "the store is being replaced");
            return true;
        }
        bool known = shard_store_op_outcome(store, &f->outer->in.write.op_id, &outcome);
        shard_host_store_unhold(shard);
        if (!known) return false;
        if (outcome.intent.sequence == 0) break;
        f->write->joined = true;
        if (shard_intent_wait(shard, f->write, outcome.intent, NULL))
            return true; /* else it ended just now */
    }
    shard_intent_tell(shard, f->write, &outcome);
    return true;
}

/* Done before, or not to be begun here and now: answered. */
static bool begin_settled(struct filter_write *f)
{
    struct shard_host *shard = f->shard;
    pthread_mutex_lock(&shard->write_lock);
    enum shard_lead lead = shard_group_lead(shard);
    pthread_mutex_unlock(&shard->write_lock);
    if (lead != LEAD_READY) {
        if (lead == LEAD_PREPARING) shard_group_prepare(shard);
        if (lead == LEAD_NOT) shard_group_not_leader(shard, f->outer);
        fail(f, lead == LEAD_NOT ? OMEN_ENOTLEADER : OMEN_EBUSY, LEAD_RETRY_MS,
                "this replica does not lead the shard yet");
        return true;
    }
    if (op_id_settled(f)) return true;
    struct shard_store *store = shard_host_store_hold(shard);
    uint64_t now_ms = clock_wall_ms(shard->env->clock), log_ms = 0;
    if (store != NULL) {
        log_ms = shard_store_log_time(store);
        shard_host_store_unhold(shard);
    }
    return !op_id_timely(f, log_ms > now_ms ? log_ms : now_ms);
}

/* ---- the inner write's end ---- */

/* It was to be recorded: the call waits for the write's end, or is answered. */
static void record_end(struct filter_write *f, const struct apply_outcome *outcome, const struct err *err)
{
    f->recorded = false;
    if (outcome->code != OMEN_OK || outcome->intent.sequence == 0) intent_floor_end(f->shard, &f->floor);
    if (outcome->code == OMEN_EBUSY && outcome->intent.sequence != 0 && op_id_settled(f)) return;
    if (outcome->duplicate) {
        shard_intent_tell(f->shard, f->write, outcome);
    } else if (outcome->code != OMEN_OK) {
        finish(f, outcome->code, err);
    } else if (!shard_intent_wait(f->shard, f->write, outcome->intent, &f->floor) && !op_id_settled(f)) {
        fail(f, OMEN_EUNKNOWN, 0, "the write was begun here, and another leader went on with it");
    }
}

/* True: the next page is to be done; else the call is answered, or waits for what answers it. */
static bool inner_end(struct filter_write *f)
{
    struct err err = f->inner.err;
    struct apply_outcome outcome = { .code = f->inner.code,
        .affected = f->inner.out.write.affected,
        .sequence = f->inner.sequence,
        .duplicate = f->inner.out.write.duplicate,
        .intent = shard_write_intent(&f->inner) };
    f->outer->sequence = outcome.sequence;
    f->outer->leader_hint = f->inner.leader_hint;
    f->inner_flying = false;
    shard_host_release(&f->inner);
    if (f->recorded) {
        record_end(f, &outcome, &err);
        return false;
    }
    f->affected += outcome.code == OMEN_OK ? outcome.affected : 0;
    f->outer->out.write.affected = f->affected;
    f->outer->out.write.duplicate = outcome.duplicate;
    if (outcome.code == OMEN_OK && !f->last) return true;
    /* Another attempt under the op id was faster. */
    if (outcome.code == OMEN_EBUSY && outcome.intent.sequence != 0 && op_id_settled(f)) return false;
    finish(f, outcome.code, &err);
    return false;
}

/* ---- the task ---- */

static void filter_task(struct search_task *task)
{
    struct filter_write *f = (struct filter_write *)((char *)task - offsetof(struct filter_write, task));
    if (f->inner_flying ? !inner_end(f) : begin_settled(f)) return;
    f->first = f->page.began == 0;
    bool may_record = f->first && shard_host_may(f->shard, FEATURE_INTENTS);
    f->probe_until_ns = may_record ? clock_monotonic_ns(f->shard->env->clock) + PROBE_NS : 0;
    do {
        struct err err;
        err_clear(&err);
        arena_reset(&f->arena);
        enum omen_err rc = is_late(f) ? err_set(&err, OMEN_EDEADLINE, "", "the deadline passed")
                                      : filter_page_take(f->shard, &f->page, &f->arena, &err);
        if (may_record && ((rc == OMEN_OK && f->page.more) || (rc == OMEN_EDEADLINE && !is_late(f)))) {
            record_start(f);
            return;
        }
        if (rc != OMEN_OK) {
            finish(f, rc, &err);
            return;
        }
        f->last = !f->page.more;
    } while (f->page.count == 0 && f->page.more); /* all of them were written meanwhile */
    inner_start(f); /* without operations too: that it is committed proves who leads */
}

void shard_filter_write_start(struct shard_host *shard, struct shard_write *write)
{
    struct filter_write *f = mem_must_calloc(1, sizeof *f);
    const struct point_op *op = &write->call->in.write.ops[0];
    f->shard = shard;
    f->write = write;
    f->outer = write->call;
    f->task.run = filter_task;
    f->page = (struct filter_page){ .op = op->kind,
        .payload = op->payload,
        .filter = write->call->in.write.filter,
        .limit = filter_page_limit(op->payload),
        .stop = { page_stop, f } };
    arena_init(&f->arena, 64u << 10, shard->env->read_arena_bytes_max);
    write->by_filter = f;
    if (!search_pool_submit(shard->env->pool, &f->task))
        fail(f, OMEN_EBUSY, LEAD_RETRY_MS, "too many searches are waiting");
}
