/* Rounds in which every known node is asked who it is, how it is, which nodes it knows and whether its map is newer.
 *
 *   IDLE --timer, refresh--> POLLING --every node answered or failed--> IDLE, or POLLING again when somebody came meanwhile
 *
 * One round at a time. Who wants a map as new as the cluster's (a name was not found, a map was refused) waits for a round
 * that began after it asked. Addresses that no node lists any more and that nobody configured are closed, but not while no
 * node answers at all. Threads: a round begins on the timers' or the asker's, and ends on the network's. */
#include "common/err.h"

#include <stdio.h>
#include <string.h>

#include "common/check.h"
#include "common/log.h"
#include "router/remote_impl.h"

struct poll {
    struct remote *remote;
    struct endpoint *endpoint; /* one reference */
    uint64_t nonce;
};

static void round_begin(struct remote *remote, bool with_status);

/* ---- what a node said ---- */

/* Needs remote->lock. */
static void directory_take(struct remote *remote, struct endpoint *from, const struct shard_poll_reply *reply)
{
    for (uint32_t i = 0; i < reply->node_count; i++) {
        const struct map_node *node = &reply->nodes[i];
        bool self = node->node_id == reply->node_id;
        uint32_t before = remote->endpoint_count;
        struct endpoint *e = node->address[0] == '\0' ? self ? from : NULL
                                                      : remote_endpoint_add(remote, node->address, NULL);
        if (e == NULL) continue;
        e->listed_round = remote->round;
        e->listed = true;
        if (remote->endpoint_count >
                before) { /* asked at once, and until then taken for what the directory says */
            e->node_id = node->node_id;
            remote->round_again = true;
            remote->nodes_changed = true;
        }
    }
}

static void answer_take(struct remote *remote, struct endpoint *e, const struct shard_poll_reply *reply)
{
    pthread_mutex_lock(&remote->lock);
    bool news = !e->answered || e->node_id != reply->node_id;
    if (news) {
        LOG_INFO("router.node_up", "address=%s node=%u epoch=%llu", e->address, reply->node_id,
                (unsigned long long)reply->epoch);
        remote->nodes_changed = true;
    }
    e->answered = true;
    e->node_id = reply->node_id;
    e->epoch = reply->epoch;
    e->trouble[0] = '\0';
    atomic_store(&e->down_until_ns, 0);
    endpoint_heard(remote, e);
    snprintf(e->not_ready, sizeof e->not_ready, "%.*s", (int)reply->not_ready.len,
            (const char *)reply->not_ready.data);
    if (reply->status.data != NULL) {
        buf_clear(&e->status);
        buf_append(&e->status, reply->status.data, reply->status.len);
    }
    directory_take(remote, e, reply);
    remote->round_answers++;
    pthread_mutex_unlock(&remote->lock);
}

static void failure_take(struct remote *remote, struct endpoint *e, enum omen_err code, const char *why)
{
    pthread_mutex_lock(&remote->lock);
    bool news = e->answered || strcmp(e->trouble, why) != 0;
    if (e->answered) remote->nodes_changed = true;
    e->answered = false;
    snprintf(e->trouble, sizeof e->trouble, "%s", why);
    pthread_mutex_unlock(&remote->lock);
    endpoint_down(remote, e);
    if (code == OMEN_EAUTH && remote->metrics.unproven != NULL) metric_add(remote->metrics.unproven, 1);
    if (news && !atomic_load(&remote->stopping))
        LOG_WARN("router.node_down", "address=%s error=%s reason=\"%s\"", e->address, err_name(code), why);
}

static enum omen_err reply_take(struct poll *poll, struct bytes message, struct err *err)
{
    struct remote *remote = poll->remote;
    struct shard_envelope envelope;
    enum omen_err rc = shard_message_open(message, SHARD_REPLY, &remote->options.key, &envelope, err);
    if (rc != OMEN_OK) return rc;
    if (envelope.nonce != poll->nonce || envelope.kind != SHARD_KIND_POLL)
        return err_set(err, OMEN_EPROTO, "", "the reply is to another request");
    struct arena arena;
    struct shard_poll_reply reply;
    arena_init(&arena, 4096, 4u << 20);
    rc = shard_poll_reply_decode(envelope.body, &arena, &reply, err);
    if (rc == OMEN_OK) {
        answer_take(remote, poll->endpoint, &reply);
        if (reply.map != NULL) remote_map_install(remote, reply.map);
        map_unref(reply.map);
    }
    arena_fini(&arena);
    return rc;
}

/* ---- rounds ---- */

/* Addresses that nobody wants any more, taken out of the table; needs remote->lock. [*count_out] to be freed. */
static struct endpoint **unwanted_take(struct remote *remote, uint32_t *count_out)
{
    struct endpoint **gone = NULL;
    uint32_t kept = 0, count = 0;
    for (uint32_t i = 0; i < remote->endpoint_count; i++) {
        struct endpoint *e = remote->endpoints[i];
        if (e->seed || e->listed || atomic_load(&e->refs) > 1) {
            remote->endpoints[kept++] = e;
            continue;
        }
        gone = mem_must_realloc(gone, (count + 1) * sizeof(struct endpoint *));
        gone[count++] = e;
    }
    remote->endpoint_count = kept;
    *count_out = count;
    return gone;
}

/* Needs remote->lock. An address that is no longer listed leaves the routing with its node id. */
static void listed_update(struct remote *remote)
{
    if (remote->round_answers == 0) return;
    for (uint32_t i = 0; i < remote->endpoint_count; i++) {
        struct endpoint *e = remote->endpoints[i];
        if (e->listed_round == remote->round || !e->listed) continue;
        e->listed = false;
        if (e->seed) continue;
        e->node_id = 0;
        remote->nodes_changed = true;
    }
}

static void waiters_answer(struct map_waiter *waiters, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) waiters[i].done(waiters[i].arg);
    mem_free(waiters);
}

static void round_end(struct remote *remote)
{
    pthread_mutex_lock(&remote->lock);
    listed_update(remote);
    if (remote->nodes_changed) remote_routing_rebuild(remote, NULL);
    remote->nodes_changed = false;
    uint32_t up = 0, waiter_count = remote->waiting_count;
    for (uint32_t i = 0; i < remote->endpoint_count; i++) up += remote->endpoints[i]->answered;
    struct map_waiter *waiters = remote->waiting;
    remote->waiting = NULL;
    remote->waiting_count = 0;
    bool again = remote->round_again && !atomic_load(&remote->stopping);
    remote->round_again = false;
    if (remote->metrics.nodes_up != NULL) metric_set(remote->metrics.nodes_up, up);
    remote->round_pending--; /* the round's own */
    pthread_cond_broadcast(&remote->quiet);
    pthread_mutex_unlock(&remote->lock);
    /* The remote may be gone from here on, unless somebody waits: who waits is not answered yet. */
    waiters_answer(waiters, waiter_count);
    if (again) round_begin(remote, false);
}

static void poll_over(struct poll *poll)
{
    struct remote *remote = poll->remote;
    endpoint_unref(poll->endpoint);
    mem_free(poll);
    pthread_mutex_lock(&remote->lock);
    bool last = --remote->round_pending == 1;
    pthread_mutex_unlock(&remote->lock);
    if (last) round_end(remote);
}

static void poll_done(void *arg, enum omen_err result, struct bytes message)
{
    struct poll *poll = arg;
    struct err err;
    err_clear(&err);
    if (result != OMEN_OK)
        err_set(&err, result, "", result == OMEN_EUNAVAILABLE ? "not connected" : "no answer in time");
    else
        result = reply_take(poll, message, &err);
    if (result != OMEN_OK) failure_take(poll->remote, poll->endpoint, result, err.message);
    if (result == OMEN_EUNKNOWN) remote_silence(poll->remote, poll->endpoint);
    poll_over(poll);
}

static void poll_start(struct remote *remote, struct endpoint *endpoint, const struct shard_poll *what)
{
    struct poll *poll = mem_must_calloc(1, sizeof *poll);
    *poll = (struct poll){ remote, endpoint, remote_nonce(remote) };
    struct buf message;
    struct err err;
    buf_init(&message);
    shard_message_begin(&message, SHARD_REQUEST, SHARD_KIND_POLL, poll->nonce);
    shard_poll_encode(what, &message);
    shard_message_seal(message.data, message.len, &remote->options.key);
    enum omen_err rc = net_call_start(endpoint->client, (struct bytes){ message.data, message.len },
            REMOTE_POLL_TIMEOUT_MS, poll_done, poll, &err);
    buf_fini(&message);
    if (rc == OMEN_OK) return;
    failure_take(remote, endpoint, rc, err.message);
    poll_over(poll);
}

/* Does nothing when one is under way or the remote is stopping. */
static void round_begin(struct remote *remote, bool with_status)
{
    struct shard_poll what = { .with_status = with_status };
    pthread_mutex_lock(&remote->lock);
    if (remote->round_pending > 0 || atomic_load(&remote->stopping)) {
        pthread_mutex_unlock(&remote->lock);
        return;
    }
    uint32_t count = remote->endpoint_count;
    struct endpoint **all = mem_must_calloc(count + 1, sizeof(struct endpoint *));
    for (uint32_t i = 0; i < count; i++) {
        all[i] = remote->endpoints[i];
        endpoint_ref(all[i]);
    }
    if (remote->routing != NULL) {
        what.have_epoch = remote->routing->index->map->epoch;
        what.have_incarnation = remote->routing->index->map->incarnation;
    }
    remote->round++;
    remote->round_answers = 0;
    remote->round_pending = count + 2; /* one for the round, one for this function */
    remote->waiting = remote->waiting_next;
    remote->waiting_count = remote->waiting_next_count;
    remote->waiting_next = NULL;
    remote->waiting_next_count = 0;
    pthread_mutex_unlock(&remote->lock);
    for (uint32_t i = 0; i < count; i++) poll_start(remote, all[i], &what);
    mem_free(all);
    pthread_mutex_lock(&remote->lock);
    bool last = --remote->round_pending == 1;
    pthread_mutex_unlock(&remote->lock);
    if (last) round_end(remote);
}

void remote_refresh(struct remote *remote, void (*done)(void *arg), void *arg)
{
    pthread_mutex_lock(&remote->lock);
    bool taken = !atomic_load(&remote->stopping) && remote->waiting_next_count < REMOTE_REFRESHES_MAX;
    if (taken) {
        size_t count = remote->waiting_next_count + 1;
        remote->waiting_next = mem_must_realloc(remote->waiting_next, count * sizeof *remote->waiting_next);
        remote->waiting_next[remote->waiting_next_count++] = (struct map_waiter){ done, arg };
        remote->round_again |= remote->round_pending > 0;
    }
    pthread_mutex_unlock(&remote->lock);
    if (taken)
        round_begin(remote, false);
    else
        done(arg);
}

static void poll_fire(struct remote_timer *timer)
{
    struct remote *remote = (struct remote *)((char *)timer - offsetof(struct remote, poll_timer));
    uint32_t count = 0;
    pthread_mutex_lock(&remote->lock);
    struct endpoint **gone = remote->round_pending == 0 ? unwanted_take(remote, &count) : NULL;
    pthread_mutex_unlock(&remote->lock);
    for (uint32_t i = 0; i < count; i++) {
        LOG_INFO("router.node_gone", "address=%s", gone[i]->address);
        endpoint_free(gone[i]);
    }
    mem_free(gone);
    round_begin(remote, true);
    remote_timer_arm(&remote->timers, timer, remote_now_ns(remote) + remote->options.poll_ns);
}

void remote_poll_begin(struct remote *remote)
{
    remote->poll_timer.fire = poll_fire;
    remote_timer_arm(&remote->timers, &remote->poll_timer, remote_now_ns(remote));
}

void remote_poll_end(struct remote *remote)
{
    pthread_mutex_lock(&remote->lock);
    CHECK(atomic_load(&remote->stopping));
    while (remote->round_pending > 0) pthread_cond_wait(&remote->quiet, &remote->lock);
    struct map_waiter *waiters = remote->waiting_next;
    uint32_t count = remote->waiting_next_count;
    remote->waiting_next = NULL;
    remote->waiting_next_count = 0;
    pthread_mutex_unlock(&remote->lock);
    waiters_answer(waiters, count);
}
