/* One call on its way to a node and back: attempts, retries, hedges, and what is said in the end.
 *
 *   FLYING --answer that settles it--> FINISHED (done was called) --released, last attempt home--> freed
 *     |  ^--hedge: a second attempt flies beside the first; the first answer that settles it wins
 *     v  |
 *   WAITING (nobody left to ask at once) --timer--> FLYING        WAITING --out of time or attempts--> FINISHED
 *
 *   attempt ended with      read                        write, catalog, change of the cluster
 *   OK                      settles                     settles
 *   UNAVAILABLE             another replica, backoff    the same: nothing was begun
 *   NOT_LEADER              the hinted one              the same
 *   UNKNOWN (sent, no       another replica             with op id: again, and from then on nothing but an answer that
 *    answer that proves)                                tells settles it; without: settles as UNKNOWN
 *   WRONG_EPOCH             settles: the router begins anew with the new map. After UNKNOWN: again with the new epoch
 *   BUSY, IO, CORRUPT       another replica, once each  settles
 *   anything else           settles                     settles, as UNKNOWN when that leaves an earlier attempt open
 *
 * An attempt at a node that has fallen silent (a poll was not answered, nor anything else since before the attempt) is
 * given up as UNKNOWN, if the call may be asked again at another. An attempt that lost (hedged, given up, timed out) comes
 * home to a call that does not know it any more, or is finished, and finds nothing to do; the call's memory waits for it.
 * `lock` guards everything of a call; its inputs are read only while it is encoded, in submit. */
#include "common/err.h"

#include <stdio.h>
#include <string.h>

#include "common/check.h"
#include "router/remote_call.h"

#define ARENA_FIRST_BYTES 1024u
#define EPOCH_OFFSET (SHARD_MESSAGE_HEADER_BYTES + 24) /* and the incarnation after it */
#define NONCE_OFFSET 8

/* ---- life ---- */

void call_unref(struct remote_call *rc)
{
    if (atomic_fetch_sub_explicit(&rc->refs, 1, memory_order_acq_rel) > 1) return;
    struct remote *remote = rc->remote;
    routing_unref(rc->routing);
    buf_fini(&rc->request);
    arena_fini(&rc->arena);
    pthread_mutex_destroy(&rc->lock);
    mem_free(rc);
    pthread_mutex_lock(&remote->lock);
    if (--remote->calls == 0) pthread_cond_broadcast(&remote->quiet);
    pthread_mutex_unlock(&remote->lock);
}

/* Both need the lock. An armed timer holds a reference. */
static void timer_arm(struct remote_call *rc, struct remote_timer *timer,
        void (*fire)(struct remote_timer *timer), uint64_t due_ns)
{
    atomic_fetch_add(&rc->refs, 1);
    timer->fire = fire;
    remote_timer_arm(&rc->remote->timers, timer, due_ns);
}

void timer_cancel(struct remote_call *rc, struct remote_timer *timer)
{
    if (!remote_timer_cancel(&rc->remote->timers, timer)) return;
    uint32_t before = atomic_fetch_sub(&rc->refs, 1);
    CHECK(before > 1); /* whoever holds the lock has a reference of its own */
}

/* Needs the lock, gives it back: the call is its caller's again, and may be released and gone at once. */
void call_finish(struct remote_call *rc)
{
    struct shard_call *call = rc->call;
    CHECK(!rc->finished);
    rc->finished = true;
    timer_cancel(rc, &rc->hedge_timer);
    CHECK(rc->retry_timer.slot == 0);
    if (call->code != OMEN_OK && call->err.code != call->code)
        err_set(&call->err, call->code, "", "%s", err_name(call->code));
    pthread_mutex_unlock(&rc->lock);
    call->done(call);
}

/* ---- attempts ---- */

static uint64_t left_ms(const struct remote_call *rc, uint64_t now_ns)
{
    uint64_t deadline_ns = rc->call->deadline_ns;
    if (deadline_ns == 0) return SHARD_DEADLINE_MS_MAX;
    uint64_t ms = deadline_ns <= now_ns ? 0 : (deadline_ns - now_ns + MS_NS - 1) / MS_NS;
    return ms > SHARD_DEADLINE_MS_MAX ? SHARD_DEADLINE_MS_MAX : ms;
}

/* How long this attempt may take. A write's outcome is worth a little more than its deadline: the node knows more than a
 * connection that says nothing. With other replicas to ask, one that is silent is given up earlier. */
static uint32_t attempt_timeout_ms(const struct remote_call *rc, uint64_t ms)
{
    bool others = rc->place != NULL && rc->place->shard->replica_count > 1;
    if (rc->call->kind == CALL_CLUSTER && call_is_read(rc->call) && ms > REMOTE_WRITE_ATTEMPT_MS)
        return REMOTE_WRITE_ATTEMPT_MS;
    if (call_is_read(rc->call)) return (uint32_t)(others && ms > 1000 ? ms / 2 : ms);
    if (others && has_op_id(rc->call) && ms > REMOTE_WRITE_ATTEMPT_MS) return REMOTE_WRITE_ATTEMPT_MS;
    return (uint32_t)ms + REMOTE_GRACE_MS;
}

static void tried_add(struct remote_call *rc, uint32_t node_id)
{
    if (rc->tried_count < TRIED_MAX) rc->tried[rc->tried_count++] = node_id;
}

void flight_add(struct remote_call *rc, struct attempt *attempt)
{
    CHECK(rc->flying < FLIGHTS_MAX);
    rc->flights[rc->flying++] = attempt;
}

bool flight_remove(struct remote_call *rc, const struct attempt *attempt)
{
    for (uint32_t i = 0; i < rc->flying; i++) {
        if (rc->flights[i] != attempt) continue;
        rc->flights[i] = rc->flights[--rc->flying];
        return true;
    }
    return false;
}

static void attempt_link(struct attempt *attempt)
{
    struct endpoint *e = attempt->endpoint;
    pthread_mutex_lock(&e->flying_lock);
    attempt->next_there = e->flying;
    if (e->flying != NULL) e->flying->previous_there = attempt;
    e->flying = attempt;
    pthread_mutex_unlock(&e->flying_lock);
}

void attempt_unlink(struct attempt *attempt)
{
    struct endpoint *e = attempt->endpoint;
    pthread_mutex_lock(&e->flying_lock);
    if (attempt->previous_there != NULL)
        attempt->previous_there->next_there = attempt->next_there;
    else
        e->flying = attempt->next_there;
    if (attempt->next_there != NULL) attempt->next_there->previous_there = attempt->previous_there;
    pthread_mutex_unlock(&e->flying_lock);
}

/* Needs the lock, keeps it. The end of an attempt that could not even start. */
static enum omen_err attempt_start(struct remote_call *rc, struct pick pick, bool hedge, struct err *err)
{
    struct remote *remote = rc->remote;
    uint64_t now_ns = remote_now_ns(remote), ms = left_ms(rc, now_ns);
    tried_add(rc, pick.node_id);
    rc->attempts++;
    if (ms == 0) return err_set(err, OMEN_EDEADLINE, "", "the deadline has passed");
    struct attempt *attempt = mem_must_calloc(1, sizeof *attempt);
    *attempt = (struct attempt){ .rc = rc,
        .endpoint = pick.endpoint,
        .node_id = pick.node_id,
        .nonce = remote_nonce(remote),
        .began_ns = now_ns,
        .hedge = hedge };
    uint8_t *message = rc->request.data;
    store_u64(message + NONCE_OFFSET, attempt->nonce);
    store_u32(message + SHARD_REQUEST_DEADLINE_OFFSET, (uint32_t)ms);
    shard_message_seal(message, rc->request.len, &remote->options.key);
    endpoint_ref(pick.endpoint);
    atomic_fetch_add(&pick.endpoint->outstanding, 1);
    atomic_fetch_add(&rc->refs, 1);
    flight_add(rc, attempt);
    attempt_link(attempt);
    count(remote->metrics.attempts);
    enum omen_err rc_start = net_call_start(pick.endpoint->client, (struct bytes){ message, rc->request.len },
            attempt_timeout_ms(rc, ms), attempt_done, attempt, err);
    if (rc_start == OMEN_OK) return OMEN_OK;
    (void)flight_remove(rc, attempt);
    attempt_unlink(attempt);
    atomic_fetch_sub(&rc->refs, 1); /* not the last: the owner's is there */
    atomic_fetch_sub(&pick.endpoint->outstanding, 1);
    if (rc_start == OMEN_EUNAVAILABLE) endpoint_down(remote, pick.endpoint);
    endpoint_unref(pick.endpoint);
    mem_free(attempt);
    return rc_start;
}

struct pick call_pick(struct remote_call *rc)
{
    return remote_pick(rc->remote, rc->routing, rc->call, rc->place, rc->route, rc->tried, rc->tried_count);
}

static void retry_fire(struct remote_timer *timer)
{
    struct remote_call *rc = (struct remote_call *)((char *)timer -
            offsetof(struct remote_call, retry_timer));
    pthread_mutex_lock(&rc->lock);
    CHECK(!rc->finished && rc->flying == 0);
    rc->tried_count = 0;
    call_again(rc); /* gives the lock back */
    call_unref(rc);
}

static void hedge_fire(struct remote_timer *timer)
{
    struct remote_call *rc = (struct remote_call *)((char *)timer -
            offsetof(struct remote_call, hedge_timer));
    pthread_mutex_lock(&rc->lock);
    if (!rc->finished && rc->flying == 1 && rc->attempts == 1) {
        struct pick pick = call_pick(rc);
        struct err err;
        bool up = pick.endpoint != NULL && !atomic_load(&pick.endpoint->silent) &&
                atomic_load(&pick.endpoint->down_until_ns) <= remote_now_ns(rc->remote);
        if (up && hedge_spend(rc->remote) && attempt_start(rc, pick, true, &err) == OMEN_OK)
            count(rc->remote->metrics.hedges);
    }
    pthread_mutex_unlock(&rc->lock);
    call_unref(rc);
}

static bool may_hedge(const struct remote_call *rc)
{
    const struct shard_call *call = rc->call;
    return rc->place != NULL && rc->place->shard->replica_count > 1 && call_is_read(call) &&
            call->kind != CALL_STATS && !call_needs_leader(call);
}

/* Waits for a moment and begins a new turn, or gives up. Needs the lock, gives it back. `call` holds the last failure. */
void call_later(struct remote_call *rc)
{
    struct remote *remote = rc->remote;
    uint64_t now_ns = remote_now_ns(remote);
    uint64_t wait_ms = rc->backoff_ms / 2 + remote_nonce(remote) % (rc->backoff_ms / 2 + 1);
    if (rc->call->code == OMEN_EBUSY && rc->call->err.retry_after_ms > wait_ms)
        wait_ms = rc->call->err.retry_after_ms;
    uint64_t due_ns = now_ns + wait_ms * MS_NS;
    if (due_ns >= rc->give_up_ns || rc->attempts >= REMOTE_ATTEMPTS_MAX || atomic_load(&remote->stopping)) {
        call_conclude(rc);
        call_finish(rc);
        return;
    }
    rc->backoff_ms = rc->backoff_ms * 2 < REMOTE_BACKOFF_MS_MAX ? rc->backoff_ms * 2 : REMOTE_BACKOFF_MS_MAX;
    timer_arm(rc, &rc->retry_timer, retry_fire, due_ns);
    pthread_mutex_unlock(&rc->lock);
}

/* The newest map may place the shard elsewhere; slots that changed are the router's business. Needs the lock. */
static bool routing_renew(struct remote_call *rc)
{
    struct routing *routing = routing_acquire(rc->remote);
    if (routing == rc->routing) {
        routing_unref(routing);
        return true;
    }
    const struct map *map = routing->index->map;
    if (rc->place != NULL) {
        const struct map_place *place = map_index_find(routing->index, rc->call->shard_id);
        bool same = place != NULL && map->incarnation == rc->routing->index->map->incarnation &&
                place->shard->slot_first == rc->place->shard->slot_first &&
                place->shard->slot_count == rc->place->shard->slot_count;
        bool newer = map->epoch > rc->call->epoch;
        if (!same || (newer && !rc->uncertain)) {
            routing_unref(routing);
            return false;
        }
        rc->place = place;
        rc->schema = &place->collection->schema;
        rc->route = &routing->routes[place - routing->index->places];
        store_u64(rc->request.data + EPOCH_OFFSET, map->epoch);
    }
    routing_unref(rc->routing);
    rc->routing = routing;
    return true;
}

static void nobody_answers(struct remote_call *rc)
{
    struct shard_call *call = rc->call;
    char why[OMEN_ADDRESS_BYTES_MAX + 130] = "no node answers";
    if (call->kind < CALL_CATALOG) {
        snprintf(why, sizeof why, "shard %llu: no node that holds it answers",
                (unsigned long long)call->shard_id);
    } else if (rc->routing == NULL) {
        remote_silent_seed(rc->remote, why, sizeof why);
    }
    call->code = err_set(&call->err, OMEN_EUNAVAILABLE, "", "%s", why);
}

/* Asks whoever is left in this turn; nobody left: waits. Needs the lock, gives it back. */
void call_again(struct remote_call *rc)
{
    struct shard_call *call = rc->call;
    if (!routing_renew(rc)) {
        call->code = err_set(&call->err, OMEN_EWRONGEPOCH, "", "the map has changed");
        call_conclude(rc);
        call_finish(rc);
        return;
    }
    for (;;) {
        struct pick pick = call_pick(rc);
        if (pick.endpoint == NULL) {
            if (call->code == OMEN_OK) nobody_answers(rc);
            call_later(rc);
            return;
        }
        if (rc->attempts > 0) count(rc->remote->metrics.retries);
        struct err err;
        err_clear(&err);
        enum omen_err started = attempt_start(rc, pick, false, &err);
        if (started == OMEN_OK) break;
        call->code = started;
        call->err = err;
        enum verdict verdict = call_verdict(rc, started);
        if (verdict == SETTLED) {
            call_conclude(rc);
            call_finish(rc);
            return;
        }
    }
    uint64_t hedge_ns = may_hedge(rc) && rc->attempts == 1 ? hedge_delay_ns(rc->remote, call->kind) : 0;
    if (hedge_ns != 0) timer_arm(rc, &rc->hedge_timer, hedge_fire, remote_now_ns(rc->remote) + hedge_ns);
    pthread_mutex_unlock(&rc->lock);
}

/* ---- nodes that fall silent ---- */

/* Asked again elsewhere it does no harm, and there is an elsewhere. */
static bool may_give_up(const struct remote_call *rc)
{
    bool others = rc->place != NULL ? rc->place->shard->replica_count > 1 : rc->call->kind >= CALL_CATALOG;
    return others && (call_is_read(rc->call) || has_op_id(rc->call));
}

/* `attempt` may have come home, and its memory be another one's by now: the nonce tells. */
static void flight_give_up(struct remote_call *rc, struct attempt *attempt, uint64_t nonce)
{
    struct shard_call *call = rc->call;
    pthread_mutex_lock(&rc->lock);
    bool there = false;
    for (uint32_t i = 0; i < rc->flying; i++)
        there |= rc->flights[i] == attempt && rc->flights[i]->nonce == nonce;
    if (rc->finished || !there || !may_give_up(rc)) {
        pthread_mutex_unlock(&rc->lock);
        return;
    }
    (void)flight_remove(rc, attempt);
    count(rc->remote->metrics.abandoned);
    call->code = err_set(&call->err, OMEN_EUNKNOWN, "", "%s: has fallen silent", attempt->endpoint->address);
    attempt_judge(rc);
}

struct flight {
    struct remote_call *rc; /* one reference */
    struct attempt *attempt;
    uint64_t nonce;
};

void remote_silence(struct remote *remote, struct endpoint *endpoint)
{
    uint64_t since_ns = remote_now_ns(remote) - REMOTE_POLL_TIMEOUT_MS * MS_NS;
    if (atomic_load(&endpoint->heard_ns) > since_ns || atomic_load(&remote->stopping)) return;
    atomic_store(&endpoint->silent, true);
    struct flight *flights = NULL;
    uint32_t flight_count = 0;
    pthread_mutex_lock(&endpoint->flying_lock);
    for (struct attempt *a = endpoint->flying; a != NULL; a = a->next_there) {
        if (a->began_ns > since_ns) continue;
        flights = mem_must_realloc(flights, (flight_count + 1) * sizeof *flights);
        flights[flight_count++] = (struct flight){ a->rc, a, a->nonce };
        atomic_fetch_add(&a->rc->refs, 1); /* the attempt has one: it is linked */
    }
    pthread_mutex_unlock(&endpoint->flying_lock);
    for (uint32_t i = 0; i < flight_count; i++) {
        flight_give_up(flights[i].rc, flights[i].attempt, flights[i].nonce);
        call_unref(flights[i].rc);
    }
    mem_free(flights);
}

/* ---- the service's two functions ---- */

static struct remote_call *call_new(struct remote *remote, struct shard_call *call)
{
    struct remote_call *rc = mem_must_calloc(1, sizeof *rc);
    rc->remote = remote;
    rc->call = call;
    rc->backoff_ms = REMOTE_BACKOFF_MS_MIN;
    atomic_init(&rc->refs, 2); /* the owner's, and submit's own */
    pthread_mutex_init(&rc->lock, NULL);
    buf_init(&rc->request);
    arena_init(&rc->arena, ARENA_FIRST_BYTES, REMOTE_ARENA_BYTES_MAX);
    pthread_mutex_lock(&remote->lock);
    remote->calls++;
    pthread_mutex_unlock(&remote->lock);
    call->service_data = rc;
    return rc;
}

/* Finds the shard in the map that is published; false: the call has failed already, with the lock still held. */
static bool call_place(struct remote_call *rc)
{
    struct shard_call *call = rc->call;
    rc->routing = routing_acquire(rc->remote);
    if (call->kind == CALL_CLUSTER) return true;
    if (rc->routing == NULL) {
        call->code = err_set(&call->err, OMEN_EUNAVAILABLE, "", "no node has answered yet");
        return false;
    }
    if (call->kind == CALL_CATALOG) return true;
    const struct map *map = rc->routing->index->map;
    rc->place = map_index_find(rc->routing->index, call->shard_id);
    if (call->epoch != map->epoch || call->incarnation != map->incarnation || rc->place == NULL) {
        call->code = err_set(&call->err, OMEN_EWRONGEPOCH, "", "the map has changed");
        return false;
    }
    rc->route = &rc->routing->routes[rc->place - rc->routing->index->places];
    rc->schema = &rc->place->collection->schema;
    return true;
}

/* What a write will take, so that its message is not copied while it grows. */
static size_t write_bytes_about(const struct remote_call *rc)
{
    const struct shard_call *call = rc->call;
    size_t bytes = 256;
    for (uint32_t i = 0; i < call->in.write.count; i++) {
        const struct point_op *op = &call->in.write.ops[i];
        bytes += 32 + op->key.canonical.len + op->payload.len;
        for (uint32_t f = 0; f < rc->schema->field_count; f++)
            if (op->vectors[f] != NULL) bytes += 4 * (size_t)rc->schema->fields[f].dim;
    }
    return bytes;
}

static bool call_encode(struct remote_call *rc)
{
    struct shard_call *call = rc->call;
    if (call->kind == CALL_WRITE) (void)buf_reserve(&rc->request, write_bytes_about(rc));
    shard_message_begin(&rc->request, SHARD_REQUEST, (uint8_t)call->kind, 0);
    shard_request_encode(call, rc->schema, 0, &rc->request);
    if (!rc->request.failed && rc->request.len <= SHARD_MESSAGE_BYTES_MAX) return true;
    call->code = rc->request.failed
            ? err_set(&call->err, OMEN_ENOMEM, "", "no memory for the message to the node")
            : err_set(&call->err, OMEN_ETOOBIG, "", "the message to the node is over the limit of %u bytes",
                      SHARD_MESSAGE_BYTES_MAX);
    return false;
}

void remote_submit(void *self, struct shard_call *call)
{
    struct remote *remote = self;
    struct remote_call *rc = call_new(remote, call);
    uint64_t now_ns = remote_now_ns(remote);
    call->code = OMEN_OK;
    call->leader_hint = 0;
    err_clear(&call->err);
    memset(&call->out, 0, sizeof call->out);
    rc->give_up_ns = now_ns + remote->options.retry_ns;
    if (call->deadline_ns != 0 && call->deadline_ns < rc->give_up_ns) rc->give_up_ns = call->deadline_ns;
    if (call_is_read(call)) hedge_earn(remote);
    pthread_mutex_lock(&rc->lock);
    if (call_place(rc) && call_encode(rc))
        call_again(rc);
    else
        call_finish(rc);
    call_unref(rc);
}

void remote_release(void *self, struct shard_call *call)
{
    struct remote_call *rc = call->service_data;
    if (rc == NULL) return;
    call->service_data = NULL;
    pthread_mutex_lock(&rc->lock);
    CHECK(rc->finished);
    atomic_fetch_sub(&rc->remote->reply_bytes, rc->reply_bytes);
    rc->reply_bytes = 0;
    arena_fini(&rc->arena);
    arena_init(&rc->arena, ARENA_FIRST_BYTES, 0);
    pthread_mutex_unlock(&rc->lock);
    call_unref(rc);
}
