/* Writes of all points that match a filter: the leader evaluates it, page by page, and proposes bounded entries of ids that
 * carry the sequence i at which it began: apply leaves out what was written after i (CORRECTNESS A5), so a point that is
 * changed or comes while the work goes on is not touched, and no entry evaluates a filter.
 *
 *   task: page of the newest view -> ids not written after i -> inner write (an entry's worth) -> its done queues the task
 *         ... -> last page: its entry carries the request's op id -> answered
 *
 * Breaking off anywhere (deadline, another leader) leaves a part done and says so; the same request again does the rest,
 * as of its own beginning. With an op id, one that was done to its end is answered from the table of applied ops.
 * Threads: the search pool's for pages, whoever ends the inner write queues the next. One owner at a time. */
#include "common/err.h"

#include <string.h>

#include "node/shard_host_impl.h"

#define PAGE_POINTS_MAX 1000u
#define PAGE_BYTES_MAX (8u << 20) /* of payload, which every operation of a page repeats */
#define LEAD_RETRY_MS 50u

struct filter_write {
    struct search_task task;
    struct shard_host *shard;
    struct shard_write *write; /* of the outer call */
    struct shard_call *outer, inner;
    bool inner_flying, last;
    struct arena arena; /* of a page's operations */
    uint64_t began;     /* sequence at which it is evaluated; 0 = not yet */
    struct point_key after;
    bool has_after;
    uint32_t affected;
};

void shard_filter_write_free(struct filter_write *f)
{
    if (f == NULL) return;
    if (f->inner_flying) shard_host_release(&f->inner); /* its end could not be looked after */
    arena_fini(&f->arena);
    mem_free(f);
}

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

static void fail(struct filter_write *f, enum omen_err code, const char *why)
{
    struct err err;
    err_set(&err, code, "", "%s", why);
    if (code == OMEN_EBUSY) err.retry_after_ms = LEAD_RETRY_MS;
    finish(f, code, &err);
}

/* ---- pages ---- */

/* An operation on every point of the page that was not written after `began`. */
static enum omen_err ops_make(struct filter_write *f, const struct point_view *points, uint32_t count,
        struct point_op **ops_out, uint32_t *op_count_out)
{
    const struct point_op *template = &f->outer->in.write.ops[0];
    struct point_op *ops = arena_calloc(&f->arena, (size_t)count + 1, sizeof *ops);
    *ops_out = ops;
    *op_count_out = 0;
    if (ops == NULL) return OMEN_ENOMEM;
    for (uint32_t i = 0; i < count; i++) {
        if (points[i].version > f->began) continue;
        struct point_op *op = &ops[(*op_count_out)++];
        struct bytes key = points[i].key.canonical; /* the view's, which is given back before the write */
        *op = (struct point_op){ .kind = template->kind,
            .id = points[i].id,
            .payload = template->payload,
            .if_version = f->began };
        if (key.len > 0)
            op->key.canonical = (struct bytes){ arena_copy(&f->arena, key.data, key.len), key.len };
        if (key.len > 0 && op->key.canonical.data == NULL) return OMEN_ENOMEM;
    }
    return OMEN_OK;
}

static bool page_stop(void *arg)
{
    const struct filter_write *f = arg;
    return atomic_load(&f->shard->stopping) || shard_call_late(f->shard, f->outer);
}

/* The next page's operations; *more_out: others may follow. */
static enum omen_err page_take(struct filter_write *f, struct point_op **ops_out, uint32_t *count_out,
        bool *more_out, struct err *err)
{
    struct shard_store *store = shard_host_store_hold(f->shard);
    struct store_view view;
    if (store == NULL) return err_set(err, OMEN_EUNAVAILABLE, "", "the store is being replaced");
    enum omen_err rc = store_view_try_acquire(store, &view, err);
    shard_host_store_unhold(f->shard);
    if (rc != OMEN_OK) return rc;
    store_view_at(&view, clock_wall_ms(f->shard->env->clock));
    if (f->began == 0) f->began = view.sequence;
    uint32_t payload = f->outer->in.write.ops[0].payload.len + 128, limit = PAGE_BYTES_MAX / payload;
    if (limit > PAGE_POINTS_MAX) limit = PAGE_POINTS_MAX;
    const struct read_limit stop = { page_stop, f };
    struct point_view *points = NULL;
    uint32_t count = 0;
    rc = shard_store_scroll(&view, f->has_after ? &f->after : NULL, limit, f->outer->in.write.filter, NULL,
            &stop, &f->arena, &points, &count, more_out, err);
    if (rc == OMEN_OK) rc = ops_make(f, points, count, ops_out, count_out);
    if (rc == OMEN_ENOMEM) (void)err_set(err, rc, "", "the write needs too much memory");
    if (rc == OMEN_OK && count > 0) {
        f->after = point_key_make(points[count - 1].id, points[count - 1].key);
        f->has_after = true;
    }
    store_view_release(&view);
    return rc;
}

/* ---- inner writes ---- */

static void inner_done(struct shard_call *inner)
{
    struct filter_write *f = inner->arg;
    if (search_pool_submit(f->shard->env->pool, &f->task)) return;
    fail(f, OMEN_EBUSY, "too many searches are waiting"); /* released with the outer one */
}

/* Whether the op id will still be taken when the last page is applied. A write that took longer is answered without its
 * outcome being kept: refusing the last page would leave it undone for ever. Asked again it is refused as too old, or in
 * between begins anew. */
static bool op_id_lives(const struct filter_write *f)
{
    uint64_t now_ms = clock_wall_ms(f->shard->env->clock), keep_ms = f->shard->env->store.op_retention_ms;
    return now_ms < f->outer->in.write.op_id.issue_ms + keep_ms / 2;
}

static void inner_start(struct filter_write *f, struct point_op *ops, uint32_t count)
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
    f->inner.in.write.ops = ops;
    f->inner.in.write.count = count;
    if (f->last && op_id_lives(f)) f->inner.in.write.op_id = outer->in.write.op_id;
    if (f->last && outer->in.write.wait == WAIT_INDEXED) f->inner.in.write.wait = WAIT_INDEXED;
    f->inner_flying = true;
    shard_write_submit(f->shard, &f->inner);
}

/* Whether it went well; else the outer call is answered. */
static bool inner_end(struct filter_write *f)
{
    enum omen_err code = f->inner.code;
    struct err err = f->inner.err;
    f->affected += code == OMEN_OK ? f->inner.out.write.affected : 0;
    f->outer->sequence = f->inner.sequence;
    f->outer->leader_hint = f->inner.leader_hint;
    f->outer->out.write.affected = f->affected;
    f->inner_flying = false;
    shard_host_release(&f->inner);
    if (code != OMEN_OK) finish(f, code, &err);
    return code == OMEN_OK;
}

/* ---- the task ---- */

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

/* Done before, or not to be begun here and now: answered. */
static bool begin_settled(struct filter_write *f)
{
    struct shard_host *shard = f->shard;
    struct apply_outcome outcome;
    pthread_mutex_lock(&shard->write_lock);
    enum shard_lead lead = shard_group_lead(shard);
    pthread_mutex_unlock(&shard->write_lock);
    if (lead != LEAD_READY) {
        if (lead == LEAD_PREPARING) shard_group_prepare(shard);
        if (lead == LEAD_NOT) shard_group_not_leader(shard, f->outer);
        fail(f, lead == LEAD_NOT ? OMEN_ENOTLEADER : OMEN_EBUSY, "this replica does not lead the shard yet");
        return true;
    }
    struct shard_store *store = shard_host_store_hold(shard);
    if (store == NULL) {
        fail(f, OMEN_EUNAVAILABLE, "the store is being replaced");
        return true;
    }
    const struct op_id *id = &f->outer->in.write.op_id;
    bool known = shard_store_op_outcome(store, id, &outcome);
    uint64_t now_ms = clock_wall_ms(shard->env->clock), log_ms = shard_store_log_time(store);
    shard_host_store_unhold(shard);
    if (log_ms > now_ms) now_ms = log_ms;
    if (!known) return !op_id_timely(f, now_ms);
    f->outer->sequence = outcome.sequence;
    f->outer->out.write.affected = outcome.affected;
    f->outer->out.write.duplicate = true;
    f->outer->code = OMEN_OK;
    if (shard_wait_park(shard, f->write)) return true;
    if (f->outer->code == OMEN_OK)
        finish(f, OMEN_OK, NULL);
    else
        f->outer->done(f->outer); /* too many wait; may free f */
    return true;
}

static void filter_task(struct search_task *task)
{
    struct filter_write *f = (struct filter_write *)((char *)task - offsetof(struct filter_write, task));
    if (f->inner_flying) {
        if (!inner_end(f)) return;
        if (f->last) {
            finish(f, OMEN_OK, NULL);
            return;
        }
    } else if (begin_settled(f)) {
        return;
    }
    for (;;) {
        struct point_op *ops = NULL;
        uint32_t count = 0;
        bool more = false;
        struct err err;
        err_clear(&err);
        arena_reset(&f->arena);
        enum omen_err rc = page_stop(f) ? err_set(&err, OMEN_EDEADLINE, "", "the deadline passed")
                                        : page_take(f, &ops, &count, &more, &err);
        if (rc != OMEN_OK) {
            finish(f, rc, &err);
            return;
        }
        f->last = !more;
        if (count == 0 && more) continue; /* all of them were written meanwhile */
        inner_start(f, ops, count);       /* without operations too: that it is committed proves who leads */
        return;
    }
}

void shard_filter_write_start(struct shard_host *shard, struct shard_write *write)
{
    struct filter_write *f = mem_must_calloc(1, sizeof *f);
    f->shard = shard;
    f->write = write;
    f->outer = write->call;
    f->task.run = filter_task;
    arena_init(&f->arena, 64u << 10, shard->env->read_arena_bytes_max);
    write->by_filter = f;
    if (!search_pool_submit(shard->env->pool, &f->task)) fail(f, OMEN_EBUSY, "too many searches are waiting");
}
