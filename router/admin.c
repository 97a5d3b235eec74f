/* What is not about points: hello, collections and aliases, list and describe, status, the cluster. */
#include "common/err.h"

#include <string.h>

#include "common/version.h"
#include "router/request.h"

#define STATUS_DOC_BYTES_MAX (1u << 20)

static enum omen_err out_of_memory(struct err *err)
{
    return err_set(err, OMEN_ENOMEM, "", "the request needs too much memory");
}

void op_hello(struct request *r)
{
    uint32_t low = r->wire.hello.version_min, high = r->wire.hello.version_max;
    if (low > WIRE_VERSION_MAX || high < WIRE_VERSION_MIN || low > high) {
        request_finish(r,
                err_set(&r->reply.err, OMEN_EVERSION, "versions",
                        "the client speaks versions %u to %u, "
                        "this server %d to %d",
                        low, high, WIRE_VERSION_MIN, WIRE_VERSION_MAX));
        return;
    }
    r->reply.hello.version = high < WIRE_VERSION_MAX ? high : WIRE_VERSION_MAX;
    r->reply.hello.server_version = OMEN_VERSION;
    r->reply.hello.commit = version_commit();
    r->reply.hello.now_ms = r->now_ms;
    request_finish(r, OMEN_OK);
}

/* ---- changes of the catalog: one call, to the node that owns it ---- */

static void catalog_gathered(struct request *r)
{
    enum omen_err rc = scatter_error(r);
    if (rc == OMEN_OK) r->reply.created.collection_id = r->calls[0].out.catalog.collection_id;
    request_finish(r, rc);
}

static enum omen_err catalog_scatter(struct request *r, struct err *err)
{
    const struct shard_service *service = r->router->options.service;
    r->map = service->map_acquire(service->self);
    if (r->map == NULL) {
        r->stale = true;
        return err_set(err, OMEN_EUNAVAILABLE, "", "the collections are not known yet");
    }
    if (r->wire.op == WIRE_COLLECTION_CREATE) {
        enum omen_err rc = map_check_schema(&r->wire.catalog.schema, err);
        if (rc != OMEN_OK) return rc;
    }
    enum omen_err rc = scatter_prepare(r, 1, err);
    if (rc != OMEN_OK) return rc;
    scatter_call_init(r, 0, CALL_CATALOG, 0);
    r->calls[0].in.catalog = r->wire.catalog;
    return OMEN_OK;
}

void op_catalog(struct request *r)
{
    enum omen_err rc = catalog_scatter(r, &r->reply.err);
    if (rc != OMEN_OK) {
        request_finish(r, rc);
    } else {
        scatter_go(r, catalog_gathered);
    }
}

/* ---- the cluster: one call, carried to a node and back as it is ---- */

static void cluster_gathered(struct request *r)
{
    enum omen_err rc = scatter_error(r);
    if (rc == OMEN_OK) r->reply.cluster.reply = r->calls[0].out.cluster.reply;
    request_finish(r, rc);
}

void op_cluster(struct request *r)
{
    const struct shard_service *service = r->router->options.service;
    r->map = service->map_acquire(service->self); /* NULL before there is a cluster */
    enum omen_err rc = scatter_prepare(r, 1, &r->reply.err);
    if (rc != OMEN_OK) {
        request_finish(r, rc);
        return;
    }
    scatter_call_init(r, 0, CALL_CLUSTER, 0);
    r->calls[0].in.cluster.request = r->wire.cluster.request;
    r->calls[0].in.cluster.asked_as = r->wire.cluster.asked_as;
    r->calls[0].in.cluster.changes = wire_cluster_changes(r->wire.cluster.request);
    scatter_go(r, cluster_gathered);
}

/* ---- list and describe: the map, and CALL_STATS of the shards ---- */

/* Of a shard's own k nearest: what is missed among those of all shards together is less, so it is a careful figure. */
static void recall_fill(struct wire_collection_info *info, const struct shard_stats *shards, uint32_t count)
{
    struct recall_counts sum = { 0 };
    for (uint32_t s = 0; s < count; s++) {
        recall_counts_add(&sum, &shards[s].recall);
        if (shards[s].recall_boost > info->recall_boost) info->recall_boost = shards[s].recall_boost;
    }
    info->recall = recall_estimate(&sum);
    info->recall_searches = sum.searches;
}

static enum omen_err collections_fill(struct request *r, const struct map_collection *collections,
        uint32_t count, bool with_shards)
{
    struct wire_collection_info *infos = arena_calloc(&r->arena, (size_t)count + 1, sizeof *infos);
    if (infos == NULL) return out_of_memory(&r->reply.err);
    for (uint32_t i = 0, c = 0; i < count; i++) {
        struct wire_collection_info *info = &infos[i];
        info->collection = &collections[i];
        struct shard_stats *shards = arena_calloc(&r->arena, collections[i].shard_count, sizeof *shards);
        if (shards == NULL) return out_of_memory(&r->reply.err);
        for (uint32_t s = 0; s < collections[i].shard_count; s++, c++) {
            const struct shard_call *call = &r->calls[c];
            shards[s] = call->out.stats;
            info->points += shards[s].points;
            info->stream_bytes += shards[s].stream_bytes;
            info->meta_bytes += shards[s].meta_bytes;
            info->unindexed += shards[s].unindexed;
            info->applied_ops += shards[s].applied_ops;
        }
        recall_fill(info, shards, collections[i].shard_count);
        if (!with_shards) continue;
        info->shards = shards;
        if (!r->calls[0].in.stats.detail) continue;
        enum omen_err rc = index_info(r, &collections[i], shards, &info->index);
        if (rc != OMEN_OK) return rc;
    }
    r->reply.collections.items = infos;
    r->reply.collections.count = count;
    r->reply.collections.map = r->map;
    return OMEN_OK;
}

static enum omen_err stats_scatter(struct request *r, const struct map_collection *collections,
        uint32_t count, struct err *err)
{
    uint32_t calls = 0;
    for (uint32_t i = 0; i < count; i++) calls += collections[i].shard_count;
    enum omen_err rc = scatter_prepare(r, calls, err);
    if (rc != OMEN_OK) return rc;
    const struct map_collection *of_request = r->collection;
    for (uint32_t i = 0, c = 0; i < count; i++) {
        r->collection = &collections[i];
        for (uint32_t s = 0; s < collections[i].shard_count; s++) scatter_call_init(r, c++, CALL_STATS, s);
    }
    r->collection = of_request;
    return OMEN_OK;
}

static void list_gathered(struct request *r)
{
    for (uint32_t c = 0; c < r->call_count;
            c++) { /* a shard that is gone is no error, one that is silent is */
        if (r->calls[c].code != OMEN_ENOTFOUND) continue;
        r->calls[c].code = OMEN_OK;
        memset(&r->calls[c].out, 0, sizeof r->calls[c].out);
    }
    enum omen_err rc = scatter_error(r);
    if (rc != OMEN_OK) {
        request_finish(r, rc);
        return;
    }
    request_finish(r, collections_fill(r, r->map->collections, r->map->collection_count, false));
}

/* No shard may be asked at all, so nobody would tell us that the map is old. */
void op_list(struct request *r)
{
    const struct shard_service *service = r->router->options.service;
    struct err *err = &r->reply.err;
    if (request_refresh(r)) return;
    r->map = service->map_acquire(service->self);
    enum omen_err rc = r->map != NULL
            ? OMEN_OK
            : err_set(err, OMEN_EUNAVAILABLE, "", "the collections are not known yet");
    if (rc == OMEN_OK) rc = stats_scatter(r, r->map->collections, r->map->collection_count, err);
    if (rc != OMEN_OK) {
        request_finish(r, rc);
    } else {
        scatter_go(r, list_gathered);
    }
}

static enum omen_err describe_scatter(struct request *r, bool detail)
{
    enum omen_err rc = stats_scatter(r, r->collection, 1, &r->reply.err);
    for (uint32_t c = 0; rc == OMEN_OK && c < r->call_count; c++) r->calls[c].in.stats.detail = detail;
    return rc;
}

/* A node of a release that tells no details refuses to be asked for them. */
static bool details_refused(const struct request *r)
{
    for (uint32_t c = 0; c < r->call_count; c++)
        if (r->calls[c].in.stats.detail && r->calls[c].code == OMEN_EPROTO) return true;
    return false;
}

static void describe_gathered(struct request *r)
{
    if (details_refused(r) && describe_scatter(r, false) == OMEN_OK) {
        scatter_go(r, describe_gathered);
        return;
    }
    enum omen_err rc = scatter_error(r);
    if (rc == OMEN_OK) rc = collections_fill(r, r->collection, 1, true);
    request_finish(r, rc);
}

void op_describe(struct request *r)
{
    enum omen_err rc = resolve_collection(r, &r->reply.err);
    if (rc == OMEN_OK) rc = describe_scatter(r, true);
    if (rc != OMEN_OK) {
        request_finish(r, rc);
    } else {
        scatter_go(r, describe_gathered);
    }
}

/* ---- status ---- */

static void put_text(struct doc_builder *b, const char *key, const char *text)
{
    doc_key(b, key, strlen(key));
    doc_put_string(b, text, strlen(text));
}

static void put_number(struct doc_builder *b, const char *key, uint64_t v)
{
    doc_key(b, key, strlen(key));
    doc_put_i64(b, (int64_t)(v & INT64_MAX)); /* incarnations use all 64 bits and are given as text */
}

static enum omen_err status_doc(struct request *r, struct doc_builder *b, struct doc *doc_out)
{
    struct router *router = r->router;
    const struct shard_service *service = router->options.service;
    uint64_t uptime_ns = clock_monotonic_ns(router->options.clock) - router->started_ns;
    const char *why = service->not_ready(service->self);
    doc_begin_object(b);
    put_text(b, "version", OMEN_VERSION);
    put_text(b, "commit", version_commit());
    put_number(b, "started_ms", router->started_ms);
    put_number(b, "uptime_s", uptime_ns / 1000000000ull);
    doc_key(b, "ready", 5);
    doc_put_bool(b, why == NULL);
    if (why != NULL) put_text(b, "not_ready", why);
    put_number(b, "requests_in_service", atomic_load(&router->in_service));
    put_number(b, "requests_in_service_max", router->options.requests_max);
    if (r->map != NULL) {
        uint64_t shards = 0;
        for (uint32_t i = 0; i < r->map->collection_count; i++) shards += r->map->collections[i].shard_count;
        put_number(b, "epoch", r->map->epoch);
        put_number(b, "collections", r->map->collection_count);
        put_number(b, "aliases", r->map->alias_count);
        put_number(b, "shards", shards);
    }
    if (service->status != NULL) {
        const char *key = service->map_refresh != NULL ? "cluster" : "node"; /* other processes, or ours */
        doc_key(b, key, strlen(key));
        doc_begin_object(b);
        service->status(service->self, b);
        doc_end(b);
    }
    doc_end(b);
    return doc_builder_finish(b, doc_out, &r->reply.err);
}

void op_status(struct request *r)
{
    const struct shard_service *service = r->router->options.service;
    r->map = service->map_acquire(service->self);
    struct doc_builder *b = doc_builder_new(STATUS_DOC_BYTES_MAX);
    struct doc doc = { NULL, 0 };
    enum omen_err rc = b == NULL ? out_of_memory(&r->reply.err) : status_doc(r, b, &doc);
    if (rc == OMEN_OK) {
        r->reply.status.doc.data = arena_copy(&r->arena, doc.data, doc.len);
        r->reply.status.doc.len = doc.len;
        if (r->reply.status.doc.data == NULL) rc = out_of_memory(&r->reply.err);
    }
    if (b != NULL) doc_builder_free(b);
    request_finish(r, rc);
}
