/* See node_port.h. */
#include "node/node_port.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "common/check.h"
#include "common/log.h"
#include "common/placement/map_index.h"
#include "common/wire/shard_message.h"
#include "node/member/peer.h"
#include "node/ship.h"
#include "node/search_pool.h"

#define ARENA_FIRST_BYTES (16u << 10)
#define KEEP_BYTES (1u << 20) /* larger arenas and buffers are given back instead of pooled */
#define POOL_MAX 256u
#define BUSY_RETRY_MS 20
#define REFUSED_LOG_NS 10000000000ull /* one line about refused messages per so long */
#define KINDS SHARD_CALL_KINDS

enum refusal { REFUSED_GARBAGE, REFUSED_VERSION, REFUSED_SECRET, REFUSED_BODY, REFUSED_BUSY, REFUSALS };
static const char *const refusal_names[REFUSALS] = { "garbage", "version", "secret", "body", "busy" };
static const char *const kind_names[KINDS] = { "write", "search", "get", "scroll", "count", "stats",
    "catalog" };

struct port_call {
    struct shard_call call;
    struct node_port *port;
    struct port_call *next; /* in the pool */
    struct net_request *request;
    struct map_index *index; /* the map it was checked against; NULL without one */
    const struct collection_schema *schema;
    struct arena arena;
    struct buf reply;
    uint64_t nonce, began_ns, message_bytes;
    struct search_task task; /* of a peer's request */
    struct doc peer_request; /* in the message */
    struct ship_call ship;   /* a request for files */
};

struct node_port {
    struct node_port_options options;
    struct net_server *server;
    struct search_pool *peers; /* threads for other nodes' requests; NULL without */
    pthread_mutex_t lock;      /* guards the members down to `index` */
    pthread_cond_t idle;       /* active == 0 */
    struct port_call *pool;
    uint32_t pooled, active;
    struct map_index *index; /* of the newest map seen */
    _Atomic uint32_t in_service;
    _Atomic uint64_t bytes_in_service, refused_logged_ns;
    struct metric_counter *refused[REFUSALS], *held_up; /* these five NULL without metrics */
    _Atomic(struct metric_counter *) requests[KINDS][OMEN_ERR_COUNT];
    struct metric_histogram *seconds[KINDS];
    struct metric_gauge *in_service_gauge;
};

/* ---- metrics ---- */

static void metrics_register(struct node_port *port)
{
    char labels[64];
    struct metrics *m = port->options.metrics;
    for (int i = 0; i < REFUSALS; i++) {
        snprintf(labels, sizeof labels, "reason=\"%s\"", refusal_names[i]);
        port->refused[i] = metrics_counter(m, "omendb_node_port_refused_total",
                "Messages on the node port that were refused before their call was made", labels);
    }
    port->held_up = metrics_counter(m, "omendb_node_port_held_up_total",
            "Messages that waited for room while they came in (not read meanwhile)", NULL);
    for (int k = 0; k < KINDS; k++) {
        snprintf(labels, sizeof labels, "kind=\"%s\"", kind_names[k]);
        port->seconds[k] = metrics_histogram(m, "omendb_node_port_call_seconds",
                "Time from a shard call's arrival on the node port to its reply, by kind", labels);
    }
    port->in_service_gauge = metrics_gauge(m, "omendb_node_port_calls_in_service",
            "Shard calls being served for routers now", NULL);
}

static void call_count(struct port_call *pc)
{
    struct node_port *port = pc->port;
    if (port->options.metrics == NULL) return;
    enum shard_call_kind kind = pc->call.kind;
    enum omen_err code = (int)pc->call.code >= 0 && pc->call.code < OMEN_ERR_COUNT ? pc->call.code
                                                                                   : OMEN_EINTERNAL;
    struct metric_counter *counter = atomic_load(&port->requests[kind][code]);
    if (counter == NULL) { /* two threads may both ask: the registry gives both the same handle */
        char labels[96];
        snprintf(labels, sizeof labels, "kind=\"%s\",code=\"%s\"", kind_names[kind], err_name(code));
        counter = metrics_counter(port->options.metrics, "omendb_node_port_calls_total",
                "Shard calls of routers, by kind and result", labels);
        atomic_store(&port->requests[kind][code], counter);
    }
    metric_add(counter, 1);
    metric_observe_ns(port->seconds[kind], clock_monotonic_ns(port->options.clock) - pc->began_ns);
}

/* Counted always, logged now and then: a stranger must not fill the disk with our log. */
static void refusal_note(struct node_port *port, enum refusal refusal, const struct err *err)
{
    if (port->refused[refusal] != NULL) metric_add(port->refused[refusal], 1);
    if (refusal == REFUSED_BUSY) return;
    uint64_t now_ns = clock_monotonic_ns(port->options.clock),
             last_ns = atomic_load(&port->refused_logged_ns);
    if (last_ns != 0 && now_ns - last_ns < REFUSED_LOG_NS) return;
    if (!atomic_compare_exchange_strong(&port->refused_logged_ns, &last_ns, now_ns)) return;
    LOG_WARN("node_port.refused", "reason=%s field=%s error=\"%s\"", refusal_names[refusal], err->field,
            err->message);
}

/* ---- calls and their pool ---- */

static struct port_call *call_new(struct node_port *port)
{
    pthread_mutex_lock(&port->lock);
    port->active++;
    struct port_call *pc = port->pool;
    if (pc != NULL) {
        port->pool = pc->next;
        port->pooled--;
    }
    pthread_mutex_unlock(&port->lock);
    if (pc != NULL) return pc;
    pc = mem_must_calloc(1, sizeof *pc);
    pc->port = port;
    arena_init(&pc->arena, ARENA_FIRST_BYTES, NODE_PORT_ARENA_BYTES_MAX);
    buf_init(&pc->reply);
    return pc;
}

static void call_destroy(struct port_call *pc)
{
    arena_fini(&pc->arena);
    buf_fini(&pc->reply);
    mem_free(pc);
}

/* The last that a thread does with the port: node_port_stop waits for it. */
static void call_recycle(struct port_call *pc)
{
    struct node_port *port = pc->port;
    map_index_unref(pc->index);
    pc->index = NULL;
    pc->schema = NULL;
    bool keep = pc->arena.reserved_bytes <= KEEP_BYTES && pc->reply.cap <= KEEP_BYTES;
    if (keep) {
        arena_reset(&pc->arena);
        buf_clear(&pc->reply);
    } else {
        call_destroy(pc);
        pc = NULL;
    }
    pthread_mutex_lock(&port->lock);
    if (pc != NULL && port->pooled < POOL_MAX) {
        pc->next = port->pool;
        port->pool = pc;
        port->pooled++;
        pc = NULL;
    }
    if (--port->active == 0) pthread_cond_broadcast(&port->idle);
    pthread_mutex_unlock(&port->lock);
    if (pc != NULL) call_destroy(pc);
}

static uint32_t own_id(const struct node_port *port)
{
    const struct node_port_options *o = &port->options;
    return o->node_number != NULL ? o->node_number(o->arg) : o->node_id;
}

/* ---- the map ---- */

/* The newest map with its index, referenced; NULL before there is one. */
static struct map_index *index_acquire(struct node_port *port)
{
    const struct shard_service *service = port->options.service;
    struct map *map = service->map_acquire(service->self);
    if (map == NULL) return NULL;
    pthread_mutex_lock(&port->lock);
    struct map_index *index = port->index != NULL && port->index->map == map ? map_index_ref(port->index)
                                                                             : NULL;
    pthread_mutex_unlock(&port->lock);
    if (index == NULL) {
        index = map_index_new(map);
        if (index == NULL) panic("no memory for an index over %u collections", map->collection_count);
        pthread_mutex_lock(&port->lock);
        struct map_index *old = port->index;
        bool newer = old == NULL || old->map->epoch <= map->epoch;
        if (newer) port->index = map_index_ref(index);
        pthread_mutex_unlock(&port->lock);
        if (newer) map_index_unref(old);
    }
    map_unref(map);
    return index;
}

/* A map that goes along with an answer, or NULL: nothing newer, or too large to be sent unasked. */
static struct map *map_to_send(const struct map_index *index, const struct shard_call *call)
{
    bool known = index == NULL ||
            (index->map->epoch <= call->epoch && index->map->incarnation == call->incarnation);
    if (known) return NULL;
    uint64_t items = (uint64_t)index->count + index->map->collection_count + index->map->alias_count;
    return items <= NODE_PORT_MAP_ITEMS_MAX ? index->map : NULL;
}

/* ---- replies ---- */

static void reply_send(struct port_call *pc, enum shard_message_type type)
{
    struct node_port *port = pc->port;
    struct net_request *request = pc->request;
    if (pc->reply.failed) { /* an empty reply is no message: the router takes the outcome for unknown */
        buf_fini(&pc->reply);
        buf_init(&pc->reply);
    } else if (type == SHARD_REPLY) {
        shard_message_seal(pc->reply.data, pc->reply.len, &port->options.key);
    }
    uint32_t left = atomic_fetch_sub(&port->in_service, 1) - 1;
    if (port->in_service_gauge != NULL) metric_set(port->in_service_gauge, left);
    atomic_fetch_sub(&port->bytes_in_service, pc->message_bytes);
    net_reply(request, (struct bytes){ pc->reply.data, pc->reply.len });
    call_recycle(pc);
}

/* false: too large to be sent at all, or now. An error always can be. */
static bool reply_encode(struct port_call *pc, const struct shard_reply_info *info)
{
    buf_clear(&pc->reply);
    shard_message_begin(&pc->reply, SHARD_REPLY, (uint8_t)pc->call.kind, pc->nonce);
    shard_reply_encode(&pc->call, pc->schema, info, &pc->reply);
    if (pc->call.code != OMEN_OK && info->map == NULL) return true;
    bool made = !pc->reply.failed && pc->reply.len <= SHARD_MESSAGE_BYTES_MAX;
    return made && net_reply_fits(pc->request, pc->reply.len);
}

static void reply_call(struct port_call *pc)
{
    struct node_port *port = pc->port;
    struct shard_call *call = &pc->call;
    /* The answer to a change of the catalog brings the map that shows it. */
    bool with_map = call->code == OMEN_EWRONGEPOCH || call->kind >= CALL_CATALOG;
    struct map_index *newest = with_map || pc->index == NULL ? index_acquire(port) : map_index_ref(pc->index);
    struct shard_reply_info info = { .node_id = own_id(port) };
    if (newest != NULL) info.epoch = newest->map->epoch;
    if (with_map) info.map = map_to_send(newest, call);
    while (!reply_encode(pc, &info)) {
        bool too_big = pc->reply.failed || pc->reply.len > SHARD_MESSAGE_BYTES_MAX;
        buf_fini(&pc->reply);
        buf_init(&pc->reply);
        if (info.map != NULL) { /* may be fetched; what was done stays done */
            info.map = NULL;
        } else if (too_big) {
            call->code = err_set(&call->err, OMEN_ETOOBIG, "",
                    "the answer of shard %llu is over the limit of %u bytes: ask for fewer points, or select less "
                    "of them",
                    (unsigned long long)call->shard_id, SHARD_MESSAGE_BYTES_MAX);
        } else {
            call->code = err_set(&call->err, OMEN_EBUSY, "",
                    "answers that routers have not taken yet fill the memory");
            call->err.retry_after_ms = BUSY_RETRY_MS;
        }
    }
    map_index_unref(newest);
}

static void call_done(struct shard_call *call)
{
    struct port_call *pc = call->arg;
    const struct shard_service *service = pc->port->options.service;
    reply_call(pc);
    call_count(pc);
    service->release(service->self, call);
    reply_send(pc, SHARD_REPLY);
}

/* Answered without having been submitted. */
static void call_refuse(struct port_call *pc, enum omen_err code)
{
    pc->call.code = code;
    if (pc->call.err.code != code) err_set(&pc->call.err, code, "", "%s", err_name(code));
    reply_call(pc);
    call_count(pc);
    reply_send(pc, SHARD_REPLY);
}

/* ---- checks ---- */

static enum omen_err check_op(const struct collection_schema *schema, const struct point_op *op,
        struct err *err)
{
    bool keyed = schema->shard_key[0] != '\0';
    if (op->any_key)
        return keyed ? OMEN_OK : err_set(err, OMEN_EINVAL, "key", "the collection has no shard key");
    if (keyed == (op->key.canonical.len > 0)) return OMEN_OK;
    return err_set(err, OMEN_EINVAL, "key", "does not fit the collection's shard key");
}

/* What storage takes for granted of a call: that it speaks of the schema which the shard has. */
static enum omen_err check_schema(const struct shard_call *call, const struct shard_request_info *info,
        const struct collection_schema *schema, struct err *err)
{
    bool same = info->field_count == 0 || info->field_count == schema->field_count;
    for (uint32_t f = 0; same && f < info->field_count; f++) same = info->dims[f] == schema->fields[f].dim;
    if (!same) return err_set(err, OMEN_EINVAL, "dims", "are not those of the collection");
    if (info->vector_mask >> schema->field_count != 0)
        return err_set(err, OMEN_EINVAL, "selection", "asks for a vector field that does not exist");
    enum omen_err rc = OMEN_OK;
    for (uint32_t i = 0; call->kind == CALL_WRITE && rc == OMEN_OK && i < call->in.write.count; i++)
        rc = check_op(schema, &call->in.write.ops[i], err);
    return rc;
}

/* The map is the agreement on what a name means and where its slots are: a call routed by an older one is not served. */
static enum omen_err check_map(struct port_call *pc, const struct shard_request_info *info)
{
    struct shard_call *call = &pc->call;
    struct err *err = &call->err;
    if (call->kind == CALL_CLUSTER)
        return OMEN_OK; /* also before there is a map: it is how the first one comes */
    if (pc->index == NULL)
        return err_set(err, OMEN_EUNAVAILABLE, "", "the node has not opened its collections yet");
    if (call->kind == CALL_CATALOG) return OMEN_OK;
    uint64_t epoch = pc->index->map->epoch;
    if (call->incarnation != pc->index->map->incarnation)
        return err_set(err, OMEN_EWRONGEPOCH, "", "routed by a map of another incarnation of this database");
    if (call->epoch < epoch)
        return err_set(err, OMEN_EWRONGEPOCH, "", "routed by map %llu, the node has %llu",
                (unsigned long long)call->epoch, (unsigned long long)epoch);
    const struct map_place *place = map_index_find(pc->index, call->shard_id);
    if (place == NULL || place->collection->id != call->collection_id) {
        bool behind = call->epoch > epoch;
        return err_set(err, behind ? OMEN_EUNAVAILABLE : OMEN_ENOTFOUND, behind ? "" : "collection",
                behind ? "the node does not know shard %llu yet" : "no shard %llu of that collection",
                (unsigned long long)call->shard_id);
    }
    pc->schema = &place->collection->schema;
    return check_schema(call, info, pc->schema, err);
}

/* ---- requests ---- */

static void serve_call(struct port_call *pc, const struct shard_envelope *envelope)
{
    struct node_port *port = pc->port;
    const struct shard_service *service = port->options.service;
    struct shard_request_info info;
    struct err err;
    enum omen_err rc = shard_request_decode(envelope->kind, envelope->body, &pc->arena, &pc->call, &info,
            &err);
    if (rc != OMEN_OK) {
        refusal_note(port, REFUSED_BODY, &err);
        pc->call.err = err;
        if ((uint32_t)pc->call.kind >= KINDS) pc->call.kind = CALL_STATS; /* only errors are encoded */
        call_refuse(pc, rc);
        return;
    }
    pc->call.deadline_ns = info.deadline_ms == 0 ? 0 : pc->began_ns + info.deadline_ms * 1000000ull;
    pc->call.done = call_done;
    pc->call.arg = pc;
    pc->index = index_acquire(port);
    rc = check_map(pc, &info);
    if (rc != OMEN_OK) {
        call_refuse(pc, rc);
        return;
    }
    service->submit(service->self, &pc->call);
}

static struct doc status_doc(struct port_call *pc, struct doc_builder *b)
{
    const struct shard_service *service = pc->port->options.service;
    struct doc doc = { NULL, 0 };
    doc_begin_object(b);
    if (service->status != NULL) service->status(service->self, b);
    doc_end(b);
    if (doc_builder_finish(b, &doc, NULL) != OMEN_OK) doc = (struct doc){ NULL, 0 };
    return doc;
}

static void serve_poll(struct port_call *pc, const struct shard_envelope *envelope)
{
    struct node_port *port = pc->port;
    const struct node_port_options *o = &port->options;
    struct shard_poll poll;
    struct err err;
    if (shard_poll_decode(envelope->body, &poll, &err) != OMEN_OK) {
        refusal_note(port, REFUSED_BODY, &err);
        shard_message_refuse(&pc->reply, pc->nonce, err.code);
        reply_send(pc, SHARD_REFUSAL);
        return;
    }
    struct map_node self = { .node_id = own_id(port) }, *nodes = &self;
    struct shard_poll_reply reply = { .node_id = self.node_id, .node_count = self.node_id != 0 };
    snprintf(self.address, sizeof self.address, "%s", o->advertise);
    if (o->nodes != NULL) {
        nodes = arena_calloc(&pc->arena, OMEN_NODES_MAX, sizeof *nodes);
        reply.node_count = nodes == NULL ? 0 : o->nodes(o->arg, nodes);
    }
    reply.nodes = nodes;
    struct map_index *index = index_acquire(port);
    if (index != NULL) {
        reply.epoch = index->map->epoch;
        bool same = index->map->incarnation == poll.have_incarnation;
        if (!same || index->map->epoch > poll.have_epoch) reply.map = index->map;
    }
    const char *why = o->service->not_ready(o->service->self);
    if (why != NULL) reply.not_ready = (struct bytes){ (const uint8_t *)why, strlen(why) };
    struct doc_builder *b = poll.with_status ? doc_builder_new(SHARD_STATUS_BYTES_MAX) : NULL;
    if (b != NULL) reply.status = status_doc(pc, b);
    shard_message_begin(&pc->reply, SHARD_REPLY, SHARD_KIND_POLL, pc->nonce);
    shard_poll_reply_encode(&reply, &pc->reply);
    if (b != NULL) doc_builder_free(b);
    map_index_unref(index);
    reply_send(pc, SHARD_REPLY);
}

/* ---- other nodes ---- */

static void peer_run(struct search_task *task)
{
    struct port_call *pc = (struct port_call *)((char *)task - offsetof(struct port_call, task));
    struct node_port *port = pc->port;
    struct doc_builder *b = doc_builder_new(PEER_DOC_BYTES_MAX);
    struct doc reply = { NULL, 0 };
    if (b != NULL) {
        doc_begin_object(b);
        port->options.peer(port->options.arg, pc->peer_request, b);
        doc_end(b);
        if (doc_builder_finish(b, &reply, NULL) != OMEN_OK) reply = (struct doc){ NULL, 0 };
    }
    shard_message_begin(&pc->reply, SHARD_REPLY, SHARD_KIND_PEER, pc->nonce);
    if (reply.data != NULL)
        buf_append(&pc->reply, reply.data, reply.len); /* else the peer takes it for damaged */
    if (b != NULL) doc_builder_free(b);
    reply_send(pc, SHARD_REPLY);
}

static void serve_peer(struct port_call *pc, const struct shard_envelope *envelope)
{
    struct node_port *port = pc->port;
    struct err err;
    enum omen_err rc = doc_validate(envelope->body, PEER_DOC_BYTES_MAX, &pc->peer_request, &err);
    if (rc == OMEN_OK && doc_type(pc->peer_request) != DOC_OBJECT)
        rc = err_set(&err, OMEN_EPROTO, "", "a request of a node is no object");
    if (rc == OMEN_OK && port->peers == NULL)
        rc = err_set(&err, OMEN_EUNAVAILABLE, "", "this node is not one of a cluster's");
    if (rc != OMEN_OK) refusal_note(port, REFUSED_BODY, &err);
    pc->task.run = peer_run;
    if (rc == OMEN_OK && search_pool_submit(port->peers, &pc->task)) return;
    if (rc == OMEN_OK) rc = OMEN_EBUSY;
    shard_message_refuse(&pc->reply, pc->nonce, rc);
    reply_send(pc, SHARD_REFUSAL);
}

static void file_done(struct ship_call *call)
{
    struct port_call *pc = (struct port_call *)((char *)call - offsetof(struct port_call, ship));
    reply_send(pc, SHARD_REPLY);
}

static void serve_file(struct port_call *pc, const struct shard_envelope *envelope)
{
    struct ship *ship = pc->port->options.ship;
    if (ship == NULL) {
        shard_message_refuse(&pc->reply, pc->nonce, OMEN_EUNAVAILABLE);
        reply_send(pc, SHARD_REFUSAL);
        return;
    }
    shard_message_begin(&pc->reply, SHARD_REPLY, SHARD_KIND_FILE, pc->nonce);
    pc->ship = (struct ship_call){ .body = envelope->body, .reply = &pc->reply, .done = file_done };
    ship_serve(ship, &pc->ship);
}

static enum refusal refusal_of(enum omen_err code)
{
    if (code == OMEN_EAUTH) return REFUSED_SECRET;
    return code == OMEN_EVERSION ? REFUSED_VERSION : REFUSED_GARBAGE;
}

static bool over_limits(struct node_port *port, uint32_t in_service)
{
    return in_service > port->options.requests_max ||
            atomic_load(&port->bytes_in_service) > NODE_PORT_BYTES_MAX;
}

static void handle(void *arg, struct net_request *request, struct bytes message)
{
    struct node_port *port = arg;
    struct port_call *pc = call_new(port);
    struct shard_envelope envelope;
    struct err err;
    memset(&pc->call, 0, sizeof pc->call);
    pc->request = request;
    pc->began_ns = clock_monotonic_ns(port->options.clock);
    pc->message_bytes = message.len;
    atomic_fetch_add(&port->bytes_in_service, message.len);
    uint32_t in_service = atomic_fetch_add(&port->in_service, 1) + 1;
    if (port->in_service_gauge != NULL) metric_set(port->in_service_gauge, in_service);
    enum omen_err rc = shard_message_open(message, SHARD_REQUEST, &port->options.key, &envelope, &err);
    pc->nonce = envelope.nonce;
    if (rc != OMEN_OK) { /* no proof: no answer that needs our key to be made */
        refusal_note(port, refusal_of(rc), &err);
        shard_message_refuse(&pc->reply, pc->nonce, rc);
        reply_send(pc, SHARD_REFUSAL);
    } else if (envelope.kind == SHARD_KIND_POLL) {
        serve_poll(pc, &envelope);
    } else if (envelope.kind == SHARD_KIND_PEER) {
        serve_peer(pc, &envelope);
    } else if (over_limits(port, in_service)) {
        refusal_note(port, REFUSED_BUSY, NULL);
        pc->call.kind = envelope.kind < KINDS ? (enum shard_call_kind)envelope.kind : CALL_STATS;
        err_set(&pc->call.err, OMEN_EBUSY, "", "the node serves as many calls as it may");
        pc->call.err.retry_after_ms = BUSY_RETRY_MS;
        call_refuse(pc, OMEN_EBUSY);
    } else if (envelope.kind == SHARD_KIND_FILE) {
        serve_file(pc, &envelope);
    } else {
        serve_call(pc, &envelope);
    }
}

/* ---- life ---- */

static void port_free(struct node_port *port)
{
    while (port->pool != NULL) {
        struct port_call *pc = port->pool;
        port->pool = pc->next;
        call_destroy(pc);
    }
    map_index_unref(port->index);
    if (port->peers != NULL) search_pool_stop(port->peers);
    pthread_cond_destroy(&port->idle);
    pthread_mutex_destroy(&port->lock);
    explicit_bzero(&port->options.key, sizeof port->options.key);
    mem_free(port);
}

enum omen_err node_port_start(const struct node_port_options *options, struct node_port **port_out,
        struct err *err)
{
    *port_out = NULL;
    CHECK(options->requests_max >= 1 && options->requests_max <= NODE_PORT_REQUESTS_MAX);
    CHECK(strlen(options->advertise) <= OMEN_ADDRESS_BYTES_MAX);
    struct node_port *port = mem_must_calloc(1, sizeof *port);
    port->options = *options;
    pthread_mutex_init(&port->lock, NULL);
    pthread_cond_init(&port->idle, NULL);
    if (options->metrics != NULL) metrics_register(port);
    enum omen_err rc = options->peer == NULL
            ? OMEN_OK
            : search_pool_start(NODE_PORT_PEER_THREADS, NODE_PORT_PEER_QUEUE_MAX, &port->peers, err);
    struct net_server_options net = {
        .url = options->url,
        .contexts = options->requests_max + options->requests_max / 4 + 1, /* room to say BUSY */
        .message_bytes_max = SHARD_MESSAGE_BYTES_MAX,
        .handle = handle,
        .arg = port,
        .held_up = port->held_up,
    };
    if (rc == OMEN_OK) rc = net_server_start(&net, &port->server, err);
    if (rc != OMEN_OK) {
        port_free(port);
        return rc;
    }
    *port_out = port;
    return OMEN_OK;
}

uint16_t node_port_number(const struct node_port *port) { return net_server_port(port->server); }

void node_port_stop(struct node_port *port)
{
    net_server_stop(port->server);
    pthread_mutex_lock(&port->lock);
    while (port->active > 0) pthread_cond_wait(&port->idle, &port->lock);
    pthread_mutex_unlock(&port->lock);
    port_free(port);
}
