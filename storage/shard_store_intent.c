/* Requests of writes by filter (CORRECTNESS A5): one that begins, and the bounded steps that follow it.
 *
 * Apply evaluates no filter. A step is a request of conditional operations by id; that it is the next one of its write,
 * and where the write stands after it, is decided and recorded together with what it does to points. So a step that is
 * proposed twice, by a leader that does not know how the first attempt ended or by two leaders, is done once.
 *
 * The last step ends the write. Its outcome goes to the table of applied ops, remembered from then on: a client that asks
 * again gets the same counts however long the write took.
 * Threads: the apply worker. Determinism: a function of the entry and of the replicated state (A1). */
#include "common/err.h"

#include "storage/shard_store_plan.h"

/* As the entry has left them so far. */
static struct intent_set *intents_now(const struct plan *p)
{
    return p->intents != NULL ? p->intents : p->store->intents;
}

const struct intent *plan_intent_of_op(const struct plan *p, const struct op_id *op_id)
{
    return intent_set_find_op(intents_now(p), op_id);
}

/* A set of the entry's own to change. */
static enum omen_err intents_edit(struct plan *p, struct err *err)
{
    if (p->intents == NULL) p->intents = intent_set_copy(p->store->intents);
    return p->intents != NULL ? OMEN_OK : err_set(err, OMEN_ENOMEM, NULL, "writes by filter of a shard");
}

struct intent_set *plan_intents_take(struct plan *plan)
{
    struct intent_set *set = plan->intents;
    plan->intents = NULL;
    return set;
}

enum omen_err plan_intent_begin(struct plan *p, uint32_t part, const struct op_id *op_id,
        const struct entry_intent *begin, struct apply_outcome *outcome, struct err *err)
{
    if (intents_now(p)->count == INTENTS_MAX) {
        outcome->code = OMEN_EBUSY; /* not recorded: asked again, it may be begun */
        return OMEN_OK;
    }
    outcome->intent = (struct intent_id){ p->sequence, part };
    enum omen_err rc = intents_edit(p, err);
    if (rc == OMEN_OK && intent_set_add(p->intents, outcome->intent, op_id, begin) != OMEN_OK)
        rc = err_set(err, OMEN_ENOMEM, NULL, "a write by filter");
    return rc;
}

/* It is over: told to whoever asks under its op id. */
static enum omen_err intent_end(struct plan *p, struct intent *intent, const struct entry_intent *step,
        struct apply_outcome *outcome, struct err *err)
{
    struct shard_store *s = p->store;
    const struct op_id id = intent->work->op_id;
    outcome->affected = intent->affected < UINT32_MAX ? (uint32_t)intent->affected : UINT32_MAX;
    outcome->code = step->code;
    intent_set_remove(p->intents, intent);
    if (id.client == 0) return OMEN_OK;
    struct op_record record = { id.client, id.seq, id.issue_ms, p->sequence, outcome->affected,
        (uint16_t)outcome->code, id.issue_ms > s->log_time_ms ? id.issue_ms : s->log_time_ms };
    enum omen_err rc = op_table_put(s->ops, &record);
    return rc == OMEN_OK ? OMEN_OK : err_set(err, rc, NULL, "table of applied ops");
}

enum omen_err plan_intent_step(struct plan *p, const struct entry_request *request,
        const struct entry_intent *step, struct apply_outcome *outcome, struct err *err)
{
    const struct intent *open = intent_set_find(intents_now(p), step->id);
    if (open == NULL || open->steps != step->step) {
        outcome->code = OMEN_ECANCELED;
        return OMEN_OK;
    }
    enum omen_err rc = plan_request_ops(p, request, outcome, err);
    if (rc != OMEN_OK || outcome->code != OMEN_OK) return rc; /* refused: it stands where it stood */
    rc = intents_edit(p, err);
    if (rc != OMEN_OK) return rc;
    struct intent *intent = intent_set_find(p->intents, step->id);
    outcome->intent = step->id;
    intent->steps++;
    intent->affected += outcome->affected;
    intent->has_cursor = intent->has_cursor || step->has_cursor;
    if (step->has_cursor) intent->cursor = step->cursor;
    return step->ends ? intent_end(p, intent, step, outcome, err) : OMEN_OK;
}
