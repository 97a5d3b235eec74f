/* One request on its way through the router, and the steps that its files share.
 *
 *   RECEIVED --decode, auth--> ACCEPTED --resolve, validate, split--> SCATTERED --last answer--> GATHERED --merge--> REPLIED
 *      |                       |   ^ |                                   (search by id: twice)     |                  ^
 *      |        not found ----+   | +--- any error --------------- answered at once --------------|------------------+
 *      |        v                 |                                                               |                  ^
 *      |     REFRESHING: a newer map is fetched, once --+    <--- WRONG_EPOCH, a few times --------+                  |
 *      +--- any error ----------------------------------------------------------------------------------------------+
 *
 * With a newer map the request begins anew at ACCEPTED: names, shards and slots may all have changed.
 * RECEIVED and ACCEPTED run on the network's thread; GATHERED runs on the thread of the last shard that answered. A request
 * has one owner at a time and so needs no lock; only `calls_pending` is touched by several threads.
 * Memory: everything of a request lives in its arena, bounded by ROUTER_ARENA_BYTES_MAX. */
#ifndef OMEN_ROUTER_REQUEST_H
#define OMEN_ROUTER_REQUEST_H

#include <pthread.h>
#include <stdatomic.h>

#include "common/net/net.h"
#include "router/router.h"

#define ROUTER_ARENA_FIRST_BYTES (64u << 10)
#define ROUTER_ARENA_BYTES_MAX (96u << 20)    /* of one request: decoded structs, ops, calls, merge tables */
#define ROUTER_ARENA_KEEP_BYTES (1u << 20)    /* larger arenas are given back instead of pooled */
#define ROUTER_POOL_MAX 64                    /* idle requests kept */
#define ROUTER_REQUEST_BYTES_MAX (256u << 20) /* message bytes of all requests in service: OMEN_EBUSY above */
#define ROUTER_HITS_MAX 400000u               /* sum of k + offset over the searches of one request */
#define ROUTER_REPLY_BYTES_MAX WIRE_MESSAGE_BYTES_MAX
#define ROUTER_RETRY_AFTER_MS 50
#define ROUTER_RESTARTS_MAX 5u /* of one request, because the map was old */
#define ROUTER_PARTIAL_MARGIN_MS                                                                             \
    200u /* shards that may be missing are waited for so much less, at most a tenth */

struct request;

/* Where a reply goes; the bytes are valid during the call. Called exactly once per request, from any thread. */
typedef void (*router_respond)(void *arg, struct bytes reply);

struct router {
    struct router_options options; /* api_keys points to our own copy */
    struct net_server *server;     /* NULL in tests that call router_handle directly */
    uint64_t started_ns, started_ms;
    _Atomic bool stopping;
    _Atomic uint32_t in_service; /* requests past admission */
    _Atomic uint64_t bytes_in_service;
    pthread_mutex_t pool_lock;
    struct request *pool; /* idle requests, guarded by pool_lock */
    uint32_t pool_count;
    uint32_t active;     /* requests taken from the pool and not yet back; guarded by pool_lock */
    pthread_cond_t idle; /* active == 0 */
    _Atomic(struct metric_counter *) requests_total[WIRE_OP_COUNT][OMEN_ERR_COUNT]; /* made at first use */
    struct metric_histogram *request_seconds[WIRE_OP_COUNT];
    struct metric_gauge *in_service_gauge;
    struct metric_counter *refused_total, *held_up;
};

/* A search as it is asked of the shards, beside its wire form. */
struct search_plan {
    struct search_params params;
    struct point_key left_out; /* by id: the point that asks */
    bool by_id;
    uint8_t *shards; /* [shard_count] 1 = may hold an answer */
};

struct request {
    struct router *router;
    struct request *next; /* in the pool */
    struct arena arena;
    struct buf reply_bytes;
    router_respond respond;
    void *respond_arg;
    uint64_t started_ns, deadline_ns;
    uint64_t now_ms; /* Unix time of its reads: what expires is gone from all shards at one instant */
    uint64_t message_bytes;
    bool admitted;
    bool stale;     /* what failed may be there in a newer map */
    bool refreshed; /* it was fetched */
    uint32_t restarts;
    struct wire_request wire;
    struct wire_reply reply;
    struct map *map;                         /* reference; NULL before it is needed */
    const struct map_collection *collection; /* in map */

    struct shard_call *calls; /* [call_count], arena */
    uint32_t *call_shards;    /* [call_count] position of the shard in collection->shards */
    uint32_t call_count;
    bool calls_submitted; /* they are the service's until released */
    _Atomic uint32_t calls_pending;
    void (*gathered)(struct request *r); /* runs once when the last call of the current scatter is done */

    const struct doc_path *shard_key_path; /* parsed; NULL without shard key */
    struct search_plan *plans;             /* [wire.search.count] */
    uint32_t **call_searches; /* [call_count][in.search.count] position of each search in the request */
    uint32_t by_id_count;
    uint64_t by_id_ns, scatter_ns, gather_ns; /* searches: when these stages were reached; 0 = not yet */
    const struct call_get *get_items;         /* [wire.get.count], in request order */
};

/* front.c */
OMEN_CHECKED enum omen_err router_new(const struct router_options *options, struct router **router_out,
        struct err *err);
void router_free(struct router *router); /* waits until every request has been answered */
/* Take one message; `message` must stay valid until `respond`. Any thread; does not block. */
void router_handle(struct router *router, struct bytes message, router_respond respond, void *arg);
/* Answer with r->reply (code OK) or, when `code` is not OK, with the error in r->reply.err; ends the request. */
void request_finish(struct request *r, enum omen_err code);

/* Fetch a newer map and begin anew with it: once, and only where the service may have an old one. false: go on. */
bool request_refresh(struct request *r);
/* Begin anew with the newest map; calls are given back. The request may be over when this returns. */
void request_restart(struct request *r);

/* auth.c */
OMEN_CHECKED enum omen_err auth_check(const struct router *router, const struct wire_request *wire,
        struct err *err);

/* resolve.c */
OMEN_CHECKED enum omen_err resolve_collection(struct request *r, struct err *err);
OMEN_CHECKED enum omen_err resolve_field(const struct collection_schema *schema, struct bytes name,
        const char *where, uint32_t *field_out, struct err *err);
OMEN_CHECKED enum omen_err resolve_selection(const struct collection_schema *schema,
        const struct wire_selection *wire, const char *where, struct point_selection *selection_out,
        struct err *err);
/* Tokens of another incarnation are errors; the highest sequence the client holds for `shard_id`, or 0. */
OMEN_CHECKED enum omen_err resolve_tokens(struct request *r, struct err *err);
uint64_t token_sequence_of(const struct request *r, uint64_t shard_id);
/* Key of a by-id item: from its `key` value, or any_key when none was given although the collection has one. Errors name
 * `list[row]`, or `list[row].member`. */
OMEN_CHECKED enum omen_err resolve_key(struct request *r, struct doc key, const char *list,
        const char *member, uint32_t row, struct shard_key *key_out, bool *any_key_out, struct err *err);
/* Marks the shards that can hold a match of `filter`: shards_out [shard_count] of 0/1. */
OMEN_CHECKED enum omen_err resolve_filter_shards(struct request *r, const struct filter *filter,
        uint8_t **shards_out, struct err *err);

/* validate.c: rows of a write against the schema, as ops in request order; of one by filter, the one op for all. */
OMEN_CHECKED enum omen_err validate_write(struct request *r, struct point_op **ops_out, struct err *err);

/* scatter.c */
/* Room for `count` calls of `kind`, zeroed and with the request's common inputs set. */
OMEN_CHECKED enum omen_err scatter_prepare(struct request *r, uint32_t count, struct err *err);
void scatter_call_init(struct request *r, uint32_t i, enum shard_call_kind kind, uint32_t shard_position);
/* Submit all calls; `gathered` runs when all are done, maybe before this returns: touch `r` no more after it. */
void scatter_go(struct request *r, void (*gathered)(struct request *r));
/* Give all calls back to the service; their outputs die. */
void scatter_release(struct request *r);
/* First failed call's code and error into r->reply.err, or OK. */
enum omen_err scatter_error(struct request *r);
/* The same for a read: when the client allows it and some shard answered, shards that did not are noted as missing in the
 * reply, and the merge leaves them out (call->code). */
enum omen_err scatter_settle(struct request *r);
/* Tokens and engine_ns of all calls into the reply. */
OMEN_CHECKED enum omen_err scatter_tokens(struct request *r);

/* index_info.c: what the shards [collection->shard_count] tell of their indexes, summed up, in the request's arena. */
OMEN_CHECKED enum omen_err index_info(struct request *r, const struct map_collection *collection,
        const struct shard_stats *shards, struct doc *doc_out);

/* explain.c: of a search that is merged, reply.search.explain. */
OMEN_CHECKED enum omen_err explain_merge(struct request *r);

/* The operations: each ends the request, now or when the shards have answered. */
void op_write(struct request *r);  /* write.c */
void op_search(struct request *r); /* search.c */
void op_get(struct request *r);    /* read.c */
void op_scroll(struct request *r);
void op_count(struct request *r);
void op_hello(struct request *r); /* admin.c */
void op_catalog(struct request *r);
void op_list(struct request *r);
void op_describe(struct request *r);
void op_status(struct request *r);
void op_cluster(struct request *r);

#endif
