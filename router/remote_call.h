/* What remote_call.c and remote_answer.c share: one call on its way, drawn in remote_call.c. */
#ifndef OMEN_ROUTER_REMOTE_CALL_H
#define OMEN_ROUTER_REMOTE_CALL_H

#include <stdio.h>

#include "router/remote_impl.h"

#define TRIED_MAX 16u
#define FLIGHTS_MAX 2u /* an attempt and its hedge */

struct remote_call {
    struct remote *remote;
    struct shard_call *call; /* valid until finished */
    pthread_mutex_t lock;
    _Atomic uint32_t refs;                  /* owner, until release; each attempt; an armed timer */
    struct routing *routing;                /* NULL before the first map: CALL_CLUSTER only */
    const struct map_place *place;          /* in routing; NULL for the catalog and the cluster */
    struct shard_route *route;              /* beside it */
    const struct collection_schema *schema; /* of the same; NULL where place is */
    struct buf request;                     /* the whole message */
    struct arena arena;                     /* outputs */
    uint64_t reply_bytes;                   /* accounted in remote->reply_bytes */
    uint64_t give_up_ns;
    uint32_t attempts, flying, backoff_ms;
    struct attempt *flights[FLIGHTS_MAX]; /* those that fly, [flying] */
    bool finished;
    bool uncertain;                         /* an earlier attempt may have been carried out */
    uint32_t tried[TRIED_MAX], tried_count; /* in this turn */
    struct remote_timer hedge_timer;        /* armed at most once, with the first attempt */
    struct remote_timer retry_timer;        /* armed while WAITING: nothing else moves the call then */
};

struct attempt {
    struct remote_call *rc;
    struct endpoint *endpoint; /* one reference */
    uint32_t node_id;
    uint64_t nonce, began_ns;
    bool hedge;
    struct attempt *next_there, *previous_there; /* under endpoint->flying_lock */
};

static inline void count(struct metric_counter *counter)
{
    if (counter != NULL) metric_add(counter, 1);
}

/* What a sentence about the call begins with, "shard 12: "; empty where no shard is meant. */
#define SUBJECT_BYTES 32
static inline const char *subject_of(const struct shard_call *call, char out[SUBJECT_BYTES])
{
    out[0] = '\0';
    if (call->kind < CALL_CATALOG)
        snprintf(out, SUBJECT_BYTES, "shard %llu: ", (unsigned long long)call->shard_id);
    return out;
}

/* Asked for again it is not done twice. */
static inline bool has_op_id(const struct shard_call *call)
{
    if (call->kind == CALL_WRITE) return call->in.write.op_id.client != 0;
    if (call->kind == CALL_CATALOG) return call->in.catalog.asked_as.client != 0;
    return call->kind == CALL_CLUSTER && call->in.cluster.asked_as.client != 0;
}

/* remote_call.c. "Needs the lock" is said of rc->lock. */
void call_unref(struct remote_call *rc);
void timer_cancel(struct remote_call *rc, struct remote_timer *timer); /* needs the lock */
/* Needs the lock, gives it back: the call is its caller's again, and may be released and gone at once. */
void call_finish(struct remote_call *rc);
struct pick call_pick(struct remote_call *rc); /* who is left in this turn; needs the lock */
/* Both need the lock and give it back. Ask whoever is left in this turn; wait for the next turn, or give up. `call` holds
 * the last failure. */
void call_again(struct remote_call *rc);
void call_later(struct remote_call *rc);

/* Both need the lock. The attempt comes to the call's flights, or leaves them; false: it was given up before. */
void flight_add(struct remote_call *rc, struct attempt *attempt);
bool flight_remove(struct remote_call *rc, const struct attempt *attempt);
void attempt_unlink(struct attempt *attempt); /* from its endpoint */

/* remote_answer.c */
enum verdict { SETTLED, AGAIN, AGAIN_ELSEWHERE };
enum verdict call_verdict(const struct remote_call *rc, enum omen_err code);
/* The last word of a call that is not OK: nothing that was open is told as refused. Needs the lock. */
void call_conclude(struct remote_call *rc);
/* Needs the lock, gives it back; `call` holds the attempt's end. */
void attempt_judge(struct remote_call *rc);
void attempt_done(void *arg, enum omen_err result, struct bytes message); /* net_done of an attempt */

#endif
