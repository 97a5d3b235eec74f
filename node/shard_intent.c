/* Writes by filter that are recorded (storage/meta/intent.h): whoever leads the shard does them, page by page, with or
 * without a client (CORRECTNESS A5).
 *
 *   run:   WORKING: page of the newest view -> step proposed -> applied -> next page .. last step -> ended, waiters are told
 *             |  busy, full, short of memory: PAUSED --sweep, after a while--> WORKING
 *             +--leadership lost, shard closing--> given up here; waiters are told that the outcome is unknown
 *   sweep: a leader that is ready begins a run for every open write that has none: after a change of leaders, a restart, or
 *          when the client's call ended before its BEGIN was applied.
 *
 * Where a write stands is read from the store before each page, never remembered here: a step that was thought lost may
 * have been applied. A step says how many came before it, so of two only one counts.
 *
 * A call that waits: in run->waiters under intent_lock; whoever takes it out owns it. Its deadline ends the wait and nothing
 * else. BEGINs in flight set a *floor*: the sweep leaves younger writes alone until the call that began them has come to
 * wait, or their end would find nobody to tell.
 * Threads: the search pool's for pages; runs belong to their task while WORKING, to the sweep while PAUSED. Lock order:
 * intent_lock, then the store's. Nothing of the door is called under it. */
#include "common/err.h"

#include <inttypes.h>
#include <string.h>

#include "common/log.h"
#include "node/shard_host_impl.h"

#define PAUSE_MS 100u /* unless the refusal says more */
#define PAUSE_MS_MAX 5000u

struct intent_run {
    struct search_task task;
    struct shard_host *shard;
    struct intent_id id;
    struct intent_run *next, **link; /* in shard->intent_runs */
    struct shard_write *waiters;     /* guarded by intent_lock, with the members down to why */
    bool paused;
    uint64_t wake_ns;
    enum omen_err why; /* it is paused, or was last */
    struct shard_call inner;
    bool inner_flying;
    struct entry_intent step; /* of the inner call */
    bool prepared;            /* `page` has what is to be done; a filter for all is NULL */
    struct filter_page page;
    uint32_t limit;          /* points of the next page */
    enum omen_err end_code;  /* not OK: the next step ends the write with this */
    struct intent_set *what; /* a set that has it: operation and filter borrow from it */
    struct arena filter, arena;
};

/* ---- telling who waits ---- */

void shard_intent_tell(struct shard_host *shard, struct shard_write *write,
        const struct apply_outcome *outcome)
{
    struct shard_call *call = write->call;
    call->code = outcome->code;
    call->sequence = outcome->sequence;
    call->out.write.affected = outcome->affected;
    call->out.write.duplicate = outcome->duplicate || write->joined;
    if (outcome->code != OMEN_OK) {
        struct err why;
        shard_write_explain(shard, clock_wall_ms(shard->env->clock), outcome->code, call);
        why = call->err;
        if (outcome->affected > 0)
            err_set(&call->err, outcome->code, why.field, "%u points were done before: %.300s",
                    outcome->affected, why.message);
    }
    if (!shard_wait_park(shard, write)) call->done(call); /* may free the write */
}

static void tell_all(struct shard_host *shard, struct shard_write *waiters,
        const struct apply_outcome *outcome)
{
    while (waiters != NULL) {
        struct shard_write *write = waiters;
        waiters = write->next;
        shard_intent_tell(shard, write, outcome);
    }
}

static void unknown_all(struct shard_write *waiters, const char *why)
{
    while (waiters != NULL) {
        struct shard_call *call = waiters->call;
        waiters = waiters->next;
        shard_call_fail(call, OMEN_EUNKNOWN,
                "%s; the write goes on without its client: ask again with the same op id", why);
    }
}

/* ---- the floor ---- */

void intent_floor_begin(struct shard_host *shard, struct intent_floor *floor)
{
    floor->applied = shard_host_applied(shard);
    pthread_mutex_lock(&shard->intent_lock);
    floor->next = shard->intent_floors;
    floor->link = &shard->intent_floors;
    if (floor->next != NULL) floor->next->link = &floor->next;
    shard->intent_floors = floor;
    pthread_mutex_unlock(&shard->intent_lock);
}

/* Needs intent_lock. */
static void floor_unlink(struct intent_floor *floor)
{
    *floor->link = floor->next;
    if (floor->next != NULL) floor->next->link = floor->link;
}

void intent_floor_end(struct shard_host *shard, struct intent_floor *floor)
{
    pthread_mutex_lock(&shard->intent_lock);
    floor_unlink(floor);
    pthread_mutex_unlock(&shard->intent_lock);
}

/* ---- runs ---- */

static void run_task(struct search_task *task);

/* Needs intent_lock. */
static struct intent_run *run_find(struct shard_host *shard, struct intent_id id)
{
    struct intent_run *run = shard->intent_runs;
    while (run != NULL && !intent_id_equal(run->id, id)) run = run->next;
    return run;
}

/* Needs intent_lock. It waits for the sweep. */
static struct intent_run *run_new(struct shard_host *shard, struct intent_set *set, struct intent_id id)
{
    struct intent_run *run = mem_must_calloc(1, sizeof *run);
    run->shard = shard;
    run->id = id;
    run->task.run = run_task;
    run->paused = true;
    run->what = intent_set_ref(set);
    arena_init(&run->filter, 4096, shard->env->read_arena_bytes_max);
    arena_init(&run->arena, 64u << 10, shard->env->read_arena_bytes_max);
    run->next = shard->intent_runs;
    run->link = &shard->intent_runs;
    if (run->next != NULL) run->next->link = &run->next;
    shard->intent_runs = run;
    shard_host_hold(shard);
    return run;
}

/* Out of the list: nobody comes to wait any more. */
static struct shard_write *run_unlink(struct intent_run *run)
{
    pthread_mutex_lock(&run->shard->intent_lock);
    *run->link = run->next;
    if (run->next != NULL) run->next->link = run->link;
    struct shard_write *waiters = run->waiters;
    run->waiters = NULL;
    pthread_mutex_unlock(&run->shard->intent_lock);
    return waiters;
}

static void run_free(struct intent_run *run)
{
    struct shard_host *shard = run->shard;
    if (run->inner_flying) shard_host_release(&run->inner);
    intent_set_unref(run->what);
    arena_fini(&run->filter);
    arena_fini(&run->arena);
    mem_free(run);
    shard_host_unhold(shard); /* it may be gone after this */
}

/* Given up here; what is recorded stays. */
static void run_lose(struct intent_run *run, const char *why)
{
    unknown_all(run_unlink(run), why);
    run_free(run);
}

static void run_pause(struct intent_run *run, uint32_t after_ms, enum omen_err why)
{
    struct shard_host *shard = run->shard;
    if (after_ms < PAUSE_MS) after_ms = PAUSE_MS;
    if (after_ms > PAUSE_MS_MAX) after_ms = PAUSE_MS_MAX;
    pthread_mutex_lock(&shard->intent_lock);
    run->why = why;
    run->wake_ns = clock_monotonic_ns(shard->env->clock) + after_ms * 1000000ull;
    run->paused = true; /* the sweep's from here on */
    pthread_mutex_unlock(&shard->intent_lock);
}

/* ---- steps ---- */

static void step_done(struct shard_call *inner)
{
    struct intent_run *run = inner->arg;
    if (!search_pool_submit(run->shard->env->pool, &run->task))
        run_pause(run, PAUSE_MS, OMEN_EBUSY); /* too many searches are waiting */
}

static void step_start(struct intent_run *run, uint32_t step, bool ends)
{
    struct shard_host *shard = run->shard;
    run->step = (struct entry_intent){ .kind = ENTRY_INTENT_STEP,
        .id = run->id,
        .step = step,
        .ends = ends,
        .code = run->end_code,
        .has_cursor = run->page.has_after,
        .cursor = run->page.after };
    run->inner = (struct shard_call){ .kind = CALL_WRITE,
        .shard_id = shard->shard_id,
        .collection_id = shard->collection_id,
        .done = step_done,
        .arg = run };
    run->inner.in.write.ops = run->page.ops;
    run->inner.in.write.count = run->page.count;
    run->inner_flying = true;
    shard_host_hold(shard); /* the step may end, and the run with it, before submit returns */
    shard_write_submit_intent(shard, &run->inner, &run->step);
    shard_host_unhold(shard);
}

/* What the step came to. False: the run is over, or waits. */
static bool step_end(struct intent_run *run)
{
    struct shard_host *shard = run->shard;
    struct err err = run->inner.err;
    struct apply_outcome outcome = { .code = run->inner.code,
        .affected = run->inner.out.write.affected,
        .sequence = run->inner.sequence };
    bool applied = shard_write_intent(&run->inner).sequence != 0; /* it was the next step */
    run->inner_flying = false;
    shard_host_release(&run->inner);
    if (applied && run->step.ends) {
        LOG_INFO("shard.by_filter_ended", "shard=%" PRIu64 " sequence=%" PRIu64 " affected=%u outcome=%s",
                shard->shard_id, run->id.sequence, outcome.affected, err_name(outcome.code));
        tell_all(shard, run_unlink(run), &outcome);
        run_free(run);
        return false;
    }
    uint32_t most = filter_page_limit(run->page.payload);
    if (applied) {
        run->limit = 2 * run->limit < most ? 2 * run->limit : most;
        return true;
    }
    switch (outcome.code) {
    case OMEN_ETOOBIG: /* fewer points at once; a single one that is refused ends the write */
        if (run->page.count > 1)
            run->limit = run->page.count / 2;
        else
            run->end_code = OMEN_ETOOBIG;
        return true;
    case OMEN_EINVAL: run->end_code = OMEN_EINVAL; return true;
    case OMEN_ECANCELED: return true; /* it stands elsewhere than was thought */
    case OMEN_ENOTLEADER:
    case OMEN_ENOTFOUND:
    case OMEN_EUNKNOWN: run_lose(run, err.message); return false;
    default: run_pause(run, err.retry_after_ms, outcome.code); return false;
    }
}

/* ---- pages ---- */

static bool run_stop(void *arg)
{
    const struct intent_run *run = arg;
    return atomic_load(&run->shard->stopping) ||
            (run->shard->group != NULL && atomic_load(&run->shard->group->lead_term) == 0);
}

/* What is to be done, once; a filter that this build cannot read ends the write. False: no memory for it. */
static bool run_prepare(struct intent_run *run)
{
    const struct intent_work *work = intent_set_find(run->what, run->id)->work;
    struct err err;
    err_clear(&err);
    if (run->prepared) return true;
    run->page = (struct filter_page){ .op = work->op,
        .payload = work->payload,
        .began = run->id.sequence,
        .stop = { run_stop, run } };
    run->limit = filter_page_limit(work->payload);
    arena_reset(&run->filter);
    enum omen_err rc = filter_parse(work->filter, &run->filter, &run->page.filter, &err);
    run->prepared = rc != OMEN_ENOMEM;
    if (rc == OMEN_OK || rc == OMEN_ENOMEM) return run->prepared;
    run->end_code = OMEN_EINVAL;
    LOG_ERROR("shard.by_filter", "shard=%" PRIu64 " sequence=%" PRIu64 " error=\"%s\"", run->shard->shard_id,
            run->id.sequence, err.message);
    return true;
}

/* The write as it stands now. False: the run is over. */
static bool run_look(struct intent_run *run, struct intent *now_out)
{
    struct apply_outcome outcome;
    struct shard_store *store = shard_host_store_hold(run->shard);
    if (store == NULL) {
        run_pause(run, PAUSE_MS, OMEN_EUNAVAILABLE); /* the store is being replaced */
        return false;
    }
    struct intent_set *set = shard_store_intents(store);
    const struct intent *now = intent_set_find(set, run->id);
    const struct op_id op_id = intent_set_find(run->what, run->id)->work->op_id;
    bool ended = now == NULL, told = ended && shard_store_op_outcome(store, &op_id, &outcome);
    if (!ended) *now_out = *now;
    intent_set_unref(set);
    shard_host_store_unhold(run->shard);
    if (!ended) return true;
    struct shard_write *waiters = run_unlink(
            run); /* a step thought lost, or another leader's, was the last */
    if (told && outcome.intent.sequence == 0)
        tell_all(run->shard, waiters, &outcome);
    else
        unknown_all(waiters, "the write has ended elsewhere");
    run_free(run);
    return false;
}

static void run_task(struct search_task *task)
{
    struct intent_run *run = (struct intent_run *)((char *)task - offsetof(struct intent_run, task));
    struct shard_host *shard = run->shard;
    struct intent now;
    struct err err;
    enum omen_err rc = OMEN_OK;
    if (run->inner_flying && !step_end(run)) return;
    if (run_stop(run)) {
        run_lose(run,
                atomic_load(&shard->stopping) ? "the shard is closed here" : "the shard's leader changed");
        return;
    }
    if (!run_look(run, &now)) return;
    if (!run_prepare(run)) {
        run_pause(run, PAUSE_MS, OMEN_ENOMEM);
        return;
    }
    run->page.has_after = now.has_cursor;
    run->page.after = now.cursor;
    run->page.count = 0;
    run->page.more = true;
    err_clear(&err);
    while (rc == OMEN_OK && run->end_code == OMEN_OK && run->page.count == 0 && run->page.more) {
        arena_reset(&run->arena);
        run->page.limit = run->limit;
        rc = filter_page_take(shard, &run->page, &run->arena, &err);
    }
    if (rc == OMEN_OK)
        step_start(run, now.steps, run->end_code != OMEN_OK || !run->page.more);
    else
        run_pause(run, err.retry_after_ms, rc); /* if it leads no more, it will notice then */
}

/* ---- beginning ---- */

/* Needs intent_lock; the run is paused and becomes its task's. */
static void run_wake(struct intent_run *run)
{
    run->paused = false;
    if (search_pool_submit(run->shard->env->pool, &run->task)) return;
    run->paused = true;
    run->wake_ns = clock_monotonic_ns(run->shard->env->clock) + PAUSE_MS * 1000000ull;
}

bool shard_intent_wait(struct shard_host *shard, struct shard_write *write, struct intent_id id,
        struct intent_floor *floor)
{
    struct shard_store *store = shard_host_store_hold(shard);
    struct intent_set *set = store != NULL ? shard_store_intents(store) : NULL;
    if (store != NULL) shard_host_store_unhold(shard);
    pthread_mutex_lock(&shard->intent_lock);
    if (floor != NULL) floor_unlink(floor);
    struct intent_run *run = run_find(shard, id);
    bool fresh = run == NULL && set != NULL && intent_set_find(set, id) != NULL;
    if (fresh) run = run_new(shard, set, id);
    if (run != NULL) {
        write->next = run->waiters;
        run->waiters = write;
    }
    if (fresh) run_wake(run);
    pthread_mutex_unlock(&shard->intent_lock);
    intent_set_unref(set);
    return run != NULL;
}

bool shard_intents_full(struct shard_host *shard)
{
    struct shard_store_stats stats = { 0 };
    struct shard_store *store = shard_host_store_hold(shard);
    if (store == NULL) return false;
    shard_store_stats(store, &stats);
    shard_host_store_unhold(shard);
    return stats.intents >= INTENTS_MAX;
}

/* ---- the sweep ---- */

/* Calls whose time is over, of every run. */
static struct shard_write *waiters_late(struct shard_host *shard)
{
    struct shard_write *late = NULL;
    bool stopping = atomic_load(&shard->stopping);
    pthread_mutex_lock(&shard->intent_lock);
    for (struct intent_run *run = shard->intent_runs; run != NULL; run = run->next) {
        for (struct shard_write **link = &run->waiters; *link != NULL;) {
            struct shard_write *write = *link;
            if (!stopping && !shard_call_late(shard, write->call)) {
                link = &write->next;
                continue;
            }
            *link = write->next;
            write->next = late;
            late = write;
        }
    }
    pthread_mutex_unlock(&shard->intent_lock);
    return late;
}

/* One that is paused and to be given up now: out of the list, the caller's. */
static struct intent_run *run_take_lost(struct shard_host *shard)
{
    pthread_mutex_lock(&shard->intent_lock);
    struct intent_run *run = shard->intent_runs;
    while (run != NULL && !run->paused) run = run->next;
    if (run != NULL) run->paused = false;
    pthread_mutex_unlock(&shard->intent_lock);
    return run;
}

/* Needs intent_lock: the youngest sequence whose writes may be begun by the sweep. */
static uint64_t floor_lowest(const struct shard_host *shard)
{
    uint64_t lowest = UINT64_MAX;
    for (const struct intent_floor *f = shard->intent_floors; f != NULL; f = f->next)
        if (f->applied < lowest) lowest = f->applied;
    return lowest;
}

/* What is open and has no run gets one; what has paused long enough goes on. */
static void runs_go_on(struct shard_host *shard)
{
    struct shard_store *store = shard_host_store_hold(shard);
    if (store == NULL) return;
    struct intent_set *set = shard_store_intents(store);
    shard_host_store_unhold(shard);
    uint64_t now_ns = clock_monotonic_ns(shard->env->clock);
    pthread_mutex_lock(&shard->intent_lock);
    uint64_t floor = floor_lowest(shard);
    for (uint32_t i = 0; i < set->count; i++) {
        struct intent_id id = set->items[i].work->id;
        if (id.sequence > floor || run_find(shard, id) != NULL) continue;
        LOG_INFO("shard.by_filter_resumed",
                "shard=%" PRIu64 " sequence=%" PRIu64 " steps=%u affected=%" PRIu64, shard->shard_id,
                id.sequence, set->items[i].steps, set->items[i].affected);
        (void)run_new(shard, set, id);
    }
    for (struct intent_run *run = shard->intent_runs; run != NULL; run = run->next)
        if (run->paused && now_ns >= run->wake_ns) run_wake(run);
    pthread_mutex_unlock(&shard->intent_lock);
    intent_set_unref(set);
}

void shard_intent_sweep(struct shard_host *shard)
{
    bool stopping = atomic_load(&shard->stopping);
    pthread_mutex_lock(&shard->write_lock);
    enum shard_lead lead = shard_group_lead(shard);
    pthread_mutex_unlock(&shard->write_lock);
    unknown_all(waiters_late(shard), stopping ? "the shard is closed here" : "the deadline passed");
    if (stopping || lead == LEAD_NOT) {
        for (struct intent_run *run; (run = run_take_lost(shard)) != NULL;)
            run_lose(run, "the shard's leader changed");
    } else if (lead == LEAD_READY && shard->replica != NULL) {
        runs_go_on(shard);
    }
}

enum omen_err shard_intent_why(struct shard_host *shard, struct intent_id id)
{
    pthread_mutex_lock(&shard->intent_lock);
    const struct intent_run *run = run_find(shard, id);
    enum omen_err why = run != NULL && run->paused ? run->why : OMEN_OK;
    pthread_mutex_unlock(&shard->intent_lock);
    return why;
}
