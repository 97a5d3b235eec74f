/* The router's front: takes messages, admits, decodes, authenticates, dispatches, replies; owns the pool of requests.
 * Threads: see request.h. Admission is by count and by message bytes; above either a request is refused with BUSY before it
 * is decoded further than its op. */
#include "common/err.h"

#include <stdio.h>
#include <string.h>

#include "common/check.h"
#include "common/log.h"
#include "router/request.h"

#define DEFAULT_REQUESTS_MAX 256
#define SECOND_NS 1000000000ull
#define REPLIES_BUSY_MS 1000 /* when to ask again after too many replies were not taken */

void router_options_default(struct router_options *options)
{
    *options = (struct router_options){
        .listen_url = "tcp://127.0.0.1:7700",
        .requests_max = DEFAULT_REQUESTS_MAX,
        .default_deadline_ns = 30 * SECOND_NS,
        .max_deadline_ns = 300 * SECOND_NS,
    };
}

/* ---- requests and their pool ---- */

static struct request *request_new(struct router *router)
{
    struct request *r = NULL;
    pthread_mutex_lock(&router->pool_lock);
    router->active++;
    if (router->pool != NULL) {
        r = router->pool;
        router->pool = r->next;
        router->pool_count--;
    }
    pthread_mutex_unlock(&router->pool_lock);
    if (r != NULL) return r;
    r = mem_must_calloc(1, sizeof *r);
    r->router = router;
    arena_init(&r->arena, ROUTER_ARENA_FIRST_BYTES, ROUTER_ARENA_BYTES_MAX);
    buf_init(&r->reply_bytes);
    return r;
}

static void request_destroy(struct request *r)
{
    arena_fini(&r->arena);
    buf_fini(&r->reply_bytes);
    mem_free(r);
}

/* Back to the pool, with small memory only: one large request must not hold its arena for ever. The last thing that a
 * thread does with the router: router_free waits for it. */
static void request_recycle(struct request *r)
{
    struct router *router = r->router;
    bool keep = r->arena.reserved_bytes <= ROUTER_ARENA_KEEP_BYTES &&
            r->reply_bytes.cap <= ROUTER_ARENA_KEEP_BYTES;
    if (keep) {
        struct arena arena = r->arena;
        struct buf reply_bytes = r->reply_bytes;
        arena_reset(&arena);
        buf_clear(&reply_bytes);
        memset(r, 0, sizeof *r);
        r->router = router;
        r->arena = arena;
        r->reply_bytes = reply_bytes;
    } else {
        request_destroy(r);
        r = NULL;
    }
    pthread_mutex_lock(&router->pool_lock);
    if (r != NULL && router->pool_count < ROUTER_POOL_MAX) {
        r->next = router->pool;
        router->pool = r;
        router->pool_count++;
        r = NULL;
    }
    if (--router->active == 0) pthread_cond_broadcast(&router->idle);
    pthread_mutex_unlock(&router->pool_lock);
    if (r != NULL) request_destroy(r);
}

/* ---- metrics ---- */

static void metrics_register(struct router *router)
{
    struct metrics *m = router->options.metrics;
    for (int op = 1; op < WIRE_OP_COUNT; op++) {
        char labels[96];
        snprintf(labels, sizeof labels, "op=\"%s\"", wire_op_name((enum wire_op)op));
        router->request_seconds[op] = metrics_histogram(m, "omendb_router_request_seconds",
                "Time from a request's arrival to its reply, by operation", labels);
    }
    router->in_service_gauge = metrics_gauge(m, "omendb_router_requests_in_service",
            "Requests being served now", NULL);
    router->refused_total = metrics_counter(m, "omendb_router_refused_total",
            "Requests refused because too many were in service", NULL);
    router->held_up = metrics_counter(m, "omendb_router_held_up_total",
            "Requests that waited for room while they came in (not read meanwhile)", NULL);
}

static struct metric_counter *requests_counter(struct router *router, enum wire_op op, enum omen_err code)
{
    struct metric_counter *counter = atomic_load(&router->requests_total[op][code]);
    if (counter == NULL) { /* two threads may both ask: the registry gives both the same handle */
        char labels[128];
        snprintf(labels, sizeof labels, "op=\"%s\",code=\"%s\"", op == 0 ? "unknown" : wire_op_name(op),
                err_name(code));
        counter = metrics_counter(router->options.metrics, "omendb_router_requests_total",
                "Requests answered, by operation and result", labels);
        atomic_store(&router->requests_total[op][code], counter);
    }
    return counter;
}

static void request_count(struct request *r, enum omen_err code)
{
    struct router *router = r->router;
    if (router->options.metrics == NULL) return;
    enum wire_op op = r->wire.op > 0 && r->wire.op < WIRE_OP_COUNT ? r->wire.op : 0;
    enum omen_err known = (int)code >= 0 && code < OMEN_ERR_COUNT ? code : OMEN_EINTERNAL;
    metric_add(requests_counter(router, op, known), 1);
    uint64_t took_ns = clock_monotonic_ns(router->options.clock) - r->started_ns;
    if (op != 0) metric_observe_ns(router->request_seconds[op], took_ns);
}

/* ---- replies ---- */

/* What the points of a reply will take at least, so that a reply over the limit is refused before it is written. */
static uint64_t point_bytes(const struct collection_schema *schema, const struct point_view *view)
{
    uint64_t bytes = 16 + view->payload.len + view->key.canonical.len;
    for (uint32_t f = 0; schema != NULL && f < schema->field_count; f++) {
        if (view->vectors[f] != NULL) bytes += 4ull * schema->fields[f].dim;
    }
    return bytes;
}

static uint64_t reply_bytes_least(const struct wire_reply *reply)
{
    uint64_t bytes = 0;
    if (reply->op == WIRE_SEARCH) {
        for (uint32_t i = 0; i < reply->search.count; i++) {
            for (uint32_t j = 0; j < reply->search.results[i].count; j++) {
                bytes += point_bytes(reply->schema, &reply->search.results[i].hits[j].point);
            }
        }
    } else if (reply->op == WIRE_GET || reply->op == WIRE_SCROLL) {
        for (uint32_t i = 0; i < reply->points.count; i++)
            bytes += point_bytes(reply->schema, &reply->points.points[i]);
    }
    return bytes;
}

static enum omen_err reply_too_big(struct err *err, uint64_t bytes)
{
    return err_set(err, OMEN_ETOOBIG, "",
            "the reply would take at least %llu bytes, the limit is %u: ask for fewer "
            "points, or select less of them",
            (unsigned long long)bytes, ROUTER_REPLY_BYTES_MAX);
}

static void reply_encode(struct request *r, enum omen_err code)
{
    struct wire_reply *reply = &r->reply;
    reply->op = r->wire.op;
    if (code == OMEN_OK) {
        uint64_t bytes = reply_bytes_least(reply);
        if (bytes > ROUTER_REPLY_BYTES_MAX) code = reply_too_big(&reply->err, bytes);
    }
    for (int attempt = 0; attempt < 2; attempt++) {
        reply->code = code;
        if (code != OMEN_OK && reply->err.code != code) err_set(&reply->err, code, "", "%s", err_name(code));
        buf_clear(&r->reply_bytes);
        enum omen_err rc = message_encode_reply(reply, &r->reply_bytes);
        if (rc == OMEN_OK && r->reply_bytes.len > ROUTER_REPLY_BYTES_MAX) {
            rc = reply_too_big(&reply->err, r->reply_bytes.len);
        }
        if (rc == OMEN_OK) break;
        if (attempt ==
                1) { /* even an error does not fit into memory: an empty reply is a protocol error there */
            LOG_ERROR("router.reply", "op=%d error=%s", (int)r->wire.op, err_name(rc));
            buf_clear(&r->reply_bytes);
            break;
        }
        if (rc != OMEN_ETOOBIG) err_set(&reply->err, rc, "", "the reply could not be encoded");
        code = rc;
    }
    request_count(r, code);
}

void request_finish(struct request *r, enum omen_err code)
{
    struct router *router = r->router;
    if (code != OMEN_OK && r->stale && request_refresh(r)) return;
    reply_encode(r, code);
    scatter_release(r);
    if (r->map != NULL) map_unref(r->map);
    r->map = NULL;
    /* Counted down before the answer leaves: who has an answer in hand may send the next request. */
    if (r->admitted) {
        uint32_t left = atomic_fetch_sub(&router->in_service, 1) - 1;
        if (router->in_service_gauge != NULL) metric_set(router->in_service_gauge, left);
    }
    atomic_fetch_sub(&router->bytes_in_service, r->message_bytes);
    r->respond(r->respond_arg, (struct bytes){ r->reply_bytes.data, r->reply_bytes.len });
    request_recycle(r);
}

/* ---- admission and dispatch ---- */

static enum omen_err request_admit(struct request *r, struct err *err)
{
    struct router *router = r->router;
    if (atomic_load(&router->stopping)) return err_set(err, OMEN_EUNAVAILABLE, "", "the server is stopping");
    uint32_t count = atomic_fetch_add(&router->in_service, 1) + 1;
    r->admitted = true;
    if (router->in_service_gauge != NULL) metric_set(router->in_service_gauge, count);
    bool by_count = count > router->options.requests_max;
    if (!by_count && atomic_load(&router->bytes_in_service) <= ROUTER_REQUEST_BYTES_MAX) return OMEN_OK;
    if (router->refused_total != NULL) metric_add(router->refused_total, 1);
    err_set(err, OMEN_EBUSY, "",
            by_count ? "%u requests are in service, the limit is reached"
                     : "%u requests in service hold too many bytes",
            count - 1);
    err->retry_after_ms = ROUTER_RETRY_AFTER_MS;
    return OMEN_EBUSY;
}

static void request_deadline(struct request *r)
{
    const struct router_options *o = &r->router->options;
    uint64_t span = r->wire.deadline_ms == 0 ? o->default_deadline_ns : r->wire.deadline_ms * 1000000ull;
    if (span > o->max_deadline_ns) span = o->max_deadline_ns;
    r->deadline_ns = r->started_ns + span;
}

static void dispatch(struct request *r)
{
    switch (r->wire.op) {
    case WIRE_HELLO: op_hello(r); return;
    case WIRE_COLLECTION_CREATE:
    case WIRE_COLLECTION_DROP:
    case WIRE_COLLECTION_SET:
    case WIRE_ALIAS_SET:
    case WIRE_ALIAS_DROP: op_catalog(r); return;
    case WIRE_COLLECTION_LIST: op_list(r); return;
    case WIRE_COLLECTION_DESCRIBE: op_describe(r); return;
    case WIRE_UPSERT:
    case WIRE_DELETE:
    case WIRE_SET_PAYLOAD:
    case WIRE_OVERWRITE_PAYLOAD:
    case WIRE_DELETE_PAYLOAD: op_write(r); return;
    case WIRE_GET: op_get(r); return;
    case WIRE_SCROLL: op_scroll(r); return;
    case WIRE_COUNT: op_count(r); return;
    case WIRE_SEARCH: op_search(r); return;
    case WIRE_STATUS: op_status(r); return;
    case WIRE_CLUSTER: op_cluster(r); return;
    case WIRE_OP_COUNT: break;
    }
    request_finish(r, err_set(&r->reply.err, OMEN_EPROTO, "op", "unknown operation %d", (int)r->wire.op));
}

/* ---- beginning anew ---- */

void request_restart(struct request *r)
{
    scatter_release(r);
    if (r->map != NULL) map_unref(r->map);
    r->map = NULL;
    r->collection = NULL;
    r->shard_key_path = NULL;
    r->plans = NULL;
    r->call_searches = NULL;
    r->get_items = NULL;
    r->by_id_count = 0;
    r->stale = false;
    r->restarts++;
    memset(&r->reply, 0, sizeof r->reply);
    dispatch(r);
}

static void request_refreshed(void *arg) { request_restart(arg); }

bool request_refresh(struct request *r)
{
    const struct shard_service *service = r->router->options.service;
    if (r->refreshed || service->map_refresh == NULL) return false;
    r->refreshed = true;
    service->map_refresh(service->self, r->deadline_ns, request_refreshed, r);
    return true;
}

void router_handle(struct router *router, struct bytes message, router_respond respond, void *arg)
{
    struct request *r = request_new(router);
    r->respond = respond;
    r->respond_arg = arg;
    r->started_ns = clock_monotonic_ns(router->options.clock);
    r->now_ms = clock_wall_ms(router->options.clock);
    r->message_bytes = message.len;
    atomic_fetch_add(&router->bytes_in_service, message.len);

    /* The key is looked at twice: first so that strangers cost next to nothing, then as decoded, which cannot lie. */
    message_peek(message, &r->wire.op, &r->wire.api_key);
    enum omen_err rc = request_admit(r, &r->reply.err);
    if (rc == OMEN_OK) rc = auth_check(router, &r->wire, &r->reply.err);
    if (rc == OMEN_OK) rc = message_decode_request(message, &r->arena, &r->wire, &r->reply.err);
    if (rc == OMEN_OK) rc = auth_check(router, &r->wire, &r->reply.err);
    if (rc != OMEN_OK) {
        request_finish(r, rc);
        return;
    }
    request_deadline(r);
    dispatch(r);
}

/* ---- life ---- */

/* Replies that slow or malicious peers do not take must not fill the memory: past a bound, large ones give way. Reads
 * only: what a write replies is small and always fits. */
static void net_respond(void *arg, struct bytes reply)
{
    if (net_reply_fits(arg, reply.len)) {
        net_reply(arg, reply);
        return;
    }
    struct wire_reply busy = { .op = WIRE_STATUS };
    struct buf small;
    busy.code = err_set(&busy.err, OMEN_EBUSY, NULL, "too many replies wait for their peers to take them");
    busy.err.retry_after_ms = REPLIES_BUSY_MS;
    buf_init(&small);
    enum omen_err rc = message_encode_reply(&busy, &small);
    net_reply(arg, rc == OMEN_OK ? (struct bytes){ small.data, small.len } : (struct bytes){ NULL, 0 });
    buf_fini(&small);
}

static void net_handle(void *arg, struct net_request *request, struct bytes message)
{
    router_handle(arg, message, net_respond, request);
}

enum omen_err router_new(const struct router_options *options, struct router **router_out, struct err *err)
{
    *router_out = NULL;
    if (options->requests_max == 0 || options->service == NULL || options->clock == NULL) {
        return err_set(err, OMEN_EINVAL, "", "router options lack a service, a clock or a request limit");
    }
    struct router *router = mem_must_calloc(1, sizeof *router);
    router->options = *options;
    if (options->api_key_count > 0) {
        struct api_key *keys = mem_must_calloc(options->api_key_count, sizeof *keys);
        memcpy(keys, options->api_keys, options->api_key_count * sizeof *keys);
        router->options.api_keys = keys;
    }
    pthread_mutex_init(&router->pool_lock, NULL);
    pthread_cond_init(&router->idle, NULL);
    router->started_ns = clock_monotonic_ns(options->clock);
    router->started_ms = clock_wall_ms(options->clock);
    if (options->metrics != NULL) metrics_register(router);
    *router_out = router;
    return OMEN_OK;
}

void router_free(struct router *router)
{
    pthread_mutex_lock(&router->pool_lock);
    while (router->active > 0) pthread_cond_wait(&router->idle, &router->pool_lock);
    pthread_mutex_unlock(&router->pool_lock);
    CHECK(atomic_load(&router->in_service) == 0);
    while (router->pool != NULL) {
        struct request *r = router->pool;
        router->pool = r->next;
        request_destroy(r);
    }
    pthread_cond_destroy(&router->idle);
    pthread_mutex_destroy(&router->pool_lock);
    if (router->options.api_key_count > 0) {
        struct api_key *keys = (struct api_key *)(uintptr_t)router->options.api_keys;
        explicit_bzero(keys, router->options.api_key_count * sizeof *keys);
        mem_free(keys);
    }
    mem_free(router);
}

enum omen_err router_start(const struct router_options *options, struct router **router_out, struct err *err)
{
    *router_out = NULL;
    struct router *router;
    enum omen_err rc = router_new(options, &router, err);
    if (rc != OMEN_OK) return rc;
    struct net_server_options net = {
        .url = options->listen_url,
        .contexts = options->requests_max + options->requests_max / 4 + 1, /* room to say BUSY */
        .message_bytes_max = WIRE_MESSAGE_BYTES_MAX,
        .handle = net_handle,
        .arg = router,
        .held_up = router->held_up,
    };
    rc = net_server_start(&net, &router->server, err);
    if (rc != OMEN_OK) {
        router_free(router);
        return rc;
    }
    *router_out = router;
    return OMEN_OK;
}

uint16_t router_port(const struct router *router) { return net_server_port(router->server); }

void router_stop(struct router *router)
{
    atomic_store(&router->stopping, true);
    net_server_stop(router->server);
    router_free(router);
}
