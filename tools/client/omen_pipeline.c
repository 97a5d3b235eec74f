/* Pipelined upserts: a bounded number of requests in flight, each kept encoded for its retries under one op id.
 *
 *   FREE --submit--> FLYING --reply or error--> ARRIVED --acknowledged or final error--> FREE
 *                      ^                           |
 *                      +------- WAITING <----------+ worth a retry
 *
 * The caller's thread sends first; the network's threads only move a slot to ARRIVED; the pipeline's own thread decodes,
 * reports, waits and sends again. `lock` guards states, lists and counts; what else is in a slot belongs to whoever moved
 * it last: the submitter until it is sent, the network while FLYING, the worker afterwards. */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "common/check.h"
#include "tools/client/client_impl.h"

enum slot_state { SLOT_FREE, SLOT_FLYING, SLOT_ARRIVED, SLOT_WAITING };

struct slot {
    struct omen_pipeline *pipeline;
    enum slot_state state;
    struct buf message, reply;
    size_t points;
    struct attempts attempts;
    enum omen_err result; /* of the attempt, when ARRIVED */
    struct err err;
    uint64_t due_ns; /* WAITING: when to send again */
};

struct omen_pipeline {
    struct omen_client *client;
    char *collection;
    uint32_t depth;
    struct slot *slots; /* [depth] */
    pthread_t worker;
    pthread_mutex_t lock;
    pthread_cond_t arrived; /* for the worker: a slot ARRIVED, or `stopping` */
    pthread_cond_t freed;   /* for callers: a slot is FREE, or the pipeline failed */
    uint32_t busy;          /* slots not FREE */
    bool stopping, failed;
    struct err err;        /* the first final error */
    uint64_t acknowledged; /* points */
    void (*on_ack)(void *arg, size_t count);
    void *on_ack_arg;
    struct arena arena; /* the worker's, for replies */
};

/* ---- sending ---- */

static void slot_arrive(struct slot *slot, enum omen_err result)
{
    struct omen_pipeline *p = slot->pipeline;
    pthread_mutex_lock(&p->lock);
    CHECK(slot->state == SLOT_FLYING);
    slot->result = result;
    slot->state = SLOT_ARRIVED;
    pthread_cond_signal(&p->arrived);
    pthread_mutex_unlock(&p->lock);
}

static void slot_answered(void *arg, enum omen_err result, struct bytes reply)
{
    struct slot *slot = arg;
    err_clear(&slot->err);
    if (result == OMEN_OK) {
        buf_clear(&slot->reply);
        buf_append(&slot->reply, reply.data, reply.len);
        if (slot->reply.failed) result = err_set(&slot->err, OMEN_EUNKNOWN, NULL, "no memory for the reply");
    } else {
        const char *url = slot->pipeline->client->endpoints[slot->attempts.endpoint].url;
        err_set(&slot->err, result, NULL, "%s: %s", url,
                result == OMEN_EUNAVAILABLE ? "not connected, the request was not sent" : "no reply");
    }
    slot_arrive(slot, result);
}

/* The slot is FLYING before and, unless it failed at once, after. */
static void slot_send(struct slot *slot)
{
    struct omen_client *client = slot->pipeline->client;
    enum omen_err rc = client_greet(client, &slot->attempts, &slot->err);
    if (rc == OMEN_OK) {
        struct net_client *net = client->endpoints[slot->attempts.endpoint].net;
        struct bytes message = { slot->message.data, slot->message.len };
        rc = net_call_start(net, message, attempts_timeout_ms(client, &slot->attempts), slot_answered, slot,
                &slot->err);
    }
    if (rc != OMEN_OK) slot_arrive(slot, rc);
}

/* ---- worker ---- */

static struct slot *find_arrived(struct omen_pipeline *p)
{
    for (uint32_t i = 0; i < p->depth; i++)
        if (p->slots[i].state == SLOT_ARRIVED) return &p->slots[i];
    return NULL;
}

static struct slot *find_first_due(struct omen_pipeline *p)
{
    struct slot *first = NULL;
    for (uint32_t i = 0; i < p->depth; i++)
        if (p->slots[i].state == SLOT_WAITING && (first == NULL || p->slots[i].due_ns < first->due_ns))
            first = &p->slots[i];
    return first;
}

/* Outside the lock: true when the slot is done, with its outcome in slot->result and slot->err. */
static bool slot_judge(struct slot *slot, uint32_t *wait_ms_out)
{
    struct omen_pipeline *p = slot->pipeline;
    enum omen_err rc = slot->result;
    if (rc == OMEN_OK) {
        struct wire_reply reply;
        arena_reset(&p->arena);
        rc = client_take_reply(p->client, &slot->attempts,
                (struct bytes){ slot->reply.data, slot->reply.len }, &p->arena, &reply, &slot->err);
    } else {
        atomic_store(&p->client->endpoints[slot->attempts.endpoint].greeted, false);
    }
    return !attempts_again(p->client, &slot->attempts, rc, &slot->err, wait_ms_out, &slot->result);
}

static void slot_done(struct slot *slot)
{
    struct omen_pipeline *p = slot->pipeline;
    bool ok = slot->result == OMEN_OK;
    if (ok && p->on_ack != NULL) p->on_ack(p->on_ack_arg, slot->points);
    pthread_mutex_lock(&p->lock);
    if (ok) {
        p->acknowledged += slot->points;
    } else if (!p->failed) {
        p->failed = true;
        p->err = slot->err;
        p->err.code = slot->result;
    }
    slot->state = SLOT_FREE;
    p->busy--;
    pthread_cond_broadcast(&p->freed);
    pthread_mutex_unlock(&p->lock);
}

static void handle_arrived(struct slot *slot)
{
    struct omen_pipeline *p = slot->pipeline;
    uint32_t wait_ms = 0;
    if (slot_judge(slot, &wait_ms)) {
        slot_done(slot);
        return;
    }
    pthread_mutex_lock(&p->lock);
    slot->state = SLOT_WAITING;
    slot->due_ns = client_now_ns() + (uint64_t)wait_ms * 1000000u;
    pthread_mutex_unlock(&p->lock);
}

static void wait_until(struct omen_pipeline *p, const struct slot *due)
{
    if (due == NULL) {
        pthread_cond_wait(&p->arrived, &p->lock);
        return;
    }
    struct timespec until = { .tv_sec = (time_t)(due->due_ns / 1000000000u),
        .tv_nsec = (long)(due->due_ns % 1000000000u) };
    int rv = pthread_cond_timedwait(&p->arrived, &p->lock, &until);
    CHECK(rv == 0 || rv == ETIMEDOUT);
}

static void *pipeline_work(void *arg)
{
    struct omen_pipeline *p = arg;
    pthread_mutex_lock(&p->lock);
    while (!p->stopping || p->busy > 0) {
        struct slot *arrived = find_arrived(p);
        struct slot *due = arrived != NULL ? NULL : find_first_due(p);
        bool send = due != NULL && due->due_ns <= client_now_ns();
        if (send) due->state = SLOT_FLYING;
        if (arrived == NULL && !send) {
            wait_until(p, due);
            continue;
        }
        pthread_mutex_unlock(&p->lock);
        if (arrived != NULL)
            handle_arrived(arrived);
        else
            slot_send(due);
        pthread_mutex_lock(&p->lock);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

/* ---- caller's side ---- */

static void pipeline_free(struct omen_pipeline *p)
{
    for (uint32_t i = 0; i < p->depth; i++) {
        buf_fini(&p->slots[i].message);
        buf_fini(&p->slots[i].reply);
    }
    arena_fini(&p->arena);
    pthread_cond_destroy(&p->arrived);
    pthread_cond_destroy(&p->freed);
    pthread_mutex_destroy(&p->lock);
    mem_free(p->slots);
    mem_free(p->collection);
    mem_free(p);
}

static struct omen_pipeline *pipeline_new(struct omen_client *client, const char *collection, uint32_t depth)
{
    struct omen_pipeline *p = mem_must_calloc(1, sizeof *p);
    p->client = client;
    p->collection = mem_must_strdup(collection);
    p->depth = depth;
    p->slots = mem_must_calloc(depth, sizeof *p->slots);
    for (uint32_t i = 0; i < depth; i++) {
        p->slots[i].pipeline = p;
        buf_init(&p->slots[i].message);
        buf_init(&p->slots[i].reply);
    }
    arena_init(&p->arena, 4096, CLIENT_REPLY_BYTES_MAX);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&p->arrived, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_cond_init(&p->freed, NULL);
    pthread_mutex_init(&p->lock, NULL);
    return p;
}

omen_code omen_pipeline_open(omen_client *client, const char *collection, uint32_t depth,
        omen_pipeline **pipeline_out)
{
    (void)client_err();
    *pipeline_out = NULL;
    if (client == NULL || collection == NULL)
        return client_fail(OMEN_EINVAL, "collection", "no client or no collection is given");
    if (depth == 0 || depth > CLIENT_PIPELINE_DEPTH_MAX)
        return client_fail(OMEN_EINVAL, "depth", "depth %u is not between 1 and %d", depth,
                CLIENT_PIPELINE_DEPTH_MAX);
    struct omen_pipeline *p = pipeline_new(client, collection, depth);
    int rv = pthread_create(&p->worker, NULL, pipeline_work, p);
    if (rv != 0) {
        pipeline_free(p);
        return client_fail(OMEN_ENOMEM, NULL, "cannot start a thread: %s", strerror(rv));
    }
    *pipeline_out = p;
    return OMEN_OK;
}

void omen_pipeline_on_ack(omen_pipeline *p, void (*on_ack)(void *arg, size_t count), void *arg)
{
    p->on_ack = on_ack;
    p->on_ack_arg = arg;
}

/* Waits for a free slot; the pipeline's error when it failed. */
static enum omen_err slot_take(struct omen_pipeline *p, struct slot **slot_out, struct err *err)
{
    struct slot *slot = NULL;
    pthread_mutex_lock(&p->lock);
    while (!p->failed && p->busy == p->depth) pthread_cond_wait(&p->freed, &p->lock);
    for (uint32_t i = 0; !p->failed && slot == NULL; i++)
        if (p->slots[i].state == SLOT_FREE) slot = &p->slots[i];
    if (slot != NULL) {
        slot->state = SLOT_FLYING;
        p->busy++;
    } else {
        *err = p->err;
    }
    enum omen_err rc = slot == NULL ? p->err.code : OMEN_OK;
    pthread_mutex_unlock(&p->lock);
    *slot_out = slot;
    return rc;
}

static void slot_put_back(struct slot *slot)
{
    struct omen_pipeline *p = slot->pipeline;
    pthread_mutex_lock(&p->lock);
    slot->state = SLOT_FREE;
    p->busy--;
    pthread_cond_broadcast(&p->freed);
    pthread_mutex_unlock(&p->lock);
}

/* The version must be agreed before anything can be encoded; whatever endpoint answers will do. */
static enum omen_err ensure_version(struct omen_client *client, struct err *err)
{
    struct attempts a;
    attempts_begin(client, WIRE_HELLO, &a);
    while (atomic_load(&client->version) == 0) {
        enum omen_err rc = client_greet(client, &a, err), final;
        uint32_t wait_ms;
        if (!attempts_again(client, &a, rc, err, &wait_ms, &final)) return final;
        client_sleep_ms(wait_ms);
    }
    return OMEN_OK;
}

static enum omen_err slot_fill(struct slot *slot, const struct write_args *args, struct err *err)
{
    struct omen_client *client = slot->pipeline->client;
    enum omen_err rc = ensure_version(client, err);
    if (rc != OMEN_OK) return rc;
    struct scratch *s = scratch_take(client);
    if (s == NULL) return err_set(err, OMEN_ENOMEM, NULL, "no memory for a request");
    struct wire_request request;
    attempts_begin(client, WIRE_UPSERT, &slot->attempts);
    rc = build_write(client, args, s, &request, err);
    /* Without tokens: an upsert reads nothing, and they could grow stale while the message is kept. */
    if (rc == OMEN_OK) rc = client_encode(client, &request, NULL, &slot->attempts, &slot->message, err);
    scratch_give(client, s);
    slot->points = args->count;
    return rc;
}

omen_code omen_pipeline_upsert(omen_pipeline *p, const omen_id *ids, const float *vectors, uint32_t dim,
        const char *const *payloads_json, size_t count)
{
    struct err *err = client_err();
    omen_vectors column = { .field = "", .data = vectors, .dim = dim };
    struct write_args args = { .op = WIRE_UPSERT,
        .collection = p->collection,
        .ids = ids,
        .payloads_json = payloads_json,
        .columns = &column,
        .column_count = 1,
        .count = count };
    struct slot *slot;
    enum omen_err rc = slot_take(p, &slot, err);
    if (rc != OMEN_OK) return (omen_code)rc;
    rc = slot_fill(slot, &args, err);
    if (rc == OMEN_OK)
        slot_send(slot);
    else
        slot_put_back(slot);
    return (omen_code)rc;
}

omen_code omen_pipeline_finish(omen_pipeline *p, uint64_t *acknowledged_out)
{
    struct err *err = client_err();
    if (p == NULL) return OMEN_OK;
    pthread_mutex_lock(&p->lock);
    p->stopping = true;
    pthread_cond_signal(&p->arrived);
    pthread_mutex_unlock(&p->lock);
    pthread_join(p->worker, NULL);
    if (acknowledged_out != NULL) *acknowledged_out = p->acknowledged;
    if (p->failed) *err = p->err;
    enum omen_err rc = p->failed ? p->err.code : OMEN_OK;
    pipeline_free(p);
    return (omen_code)rc;
}
