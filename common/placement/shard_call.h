/* What a router asks of a node: one call per shard (or for the catalog), answered asynchronously. Standalone mode
 * hands the structs over in-process; between processes they get a codec in common/wire.
 *
 * Ownership: the caller owns the call and its inputs until `done`. Outputs borrow from the call's arena and from the
 * node's view; they are valid until shard_service->release(call), which must be called exactly once after done. */
#ifndef OMEN_COMMON_PLACEMENT_SHARD_CALL_H
#define OMEN_COMMON_PLACEMENT_SHARD_CALL_H

#include "common/placement/map.h"
#include "common/query/filter.h"
#include "common/query/point.h"
#include "common/recall.h"

enum shard_call_kind {
    CALL_WRITE,
    CALL_SEARCH,
    CALL_GET,
    CALL_SCROLL,
    CALL_COUNT,
    CALL_STATS,   /* one shard */
    CALL_CATALOG, /* create, drop, set, alias */
    CALL_CLUSTER, /* of the whole cluster: status, members, moves; to any node, NOT_LEADER says who answers */
};
#define SHARD_CALL_KINDS (CALL_CLUSTER + 1)

#define CLUSTER_REQUEST_BYTES_MAX (64u << 10)
#define CLUSTER_REPLY_BYTES_MAX (16u << 20)
#define DETAIL_SHARD_BYTES_MAX (64u << 10) /* of a shard's stats */
#define EXPLAIN_SHARD_BYTES_MAX (2u << 20) /* of what one shard tells of a search */

enum catalog_change_kind {
    CATALOG_CREATE = 1,
    CATALOG_DROP = 2,
    CATALOG_ALIAS_SET = 3,
    CATALOG_ALIAS_DROP = 4,
    CATALOG_SET = 5, /* options of a collection */
};

struct catalog_change {
    enum catalog_change_kind kind;
    char name[OMEN_NAME_BYTES_MAX + 1];   /* collection, or alias */
    char target[OMEN_NAME_BYTES_MAX + 1]; /* ALIAS_SET: collection */
    struct collection_schema schema;      /* CREATE */
    uint32_t shard_count, replication;    /* CREATE */
    float recall_target;                  /* CREATE */
    struct doc options;    /* CREATE, SET: an object for collection_options_change, borrowed; absent = none */
    struct op_id asked_as; /* by whoever may ask again; client 0 = none */
};

struct shard_stats { /* of one shard, for describe */
    uint64_t points, applied, durable, stream_bytes, meta_bytes, unindexed, applied_ops;
    struct recall_counts recall; /* measured on live searches, by the replica that answers */
    uint64_t recall_boost;       /* steps of effort above the calibrated one */
    struct doc
            detail; /* an object, when asked for: how far indexing is, memory, payload indexes; absent = not told */
};

struct call_get {
    point_id id;
    struct shard_key key;
    bool any_key;
};

struct shard_call {
    enum shard_call_kind kind;
    uint64_t shard_id;
    uint64_t collection_id;
    uint64_t epoch;       /* map epoch the caller routed with */
    uint64_t incarnation; /* of that map */
    uint64_t deadline_ns; /* monotonic; 0 = none */
    enum consistency consistency;
    uint64_t token_sequence; /* session reads: at least this */
    uint64_t
            now_ms; /* reads: points that expire then or earlier are absent, Unix time; 0 = by the node's clock */

    union { /* inputs, borrowed */
        struct {
            const struct point_op *ops;
            uint32_t count;
            struct op_id op_id;
            enum write_wait wait;
            /* Not absent: ops[0] is done to every point that matches, its id and key count for nothing. */
            struct doc filter_doc;
            const struct filter *filter; /* parsed from it */
        } write;
        struct {
            const struct search_params *searches;
            uint32_t count;
            bool explain; /* tell how they were answered */
        } search;
        struct {
            const struct call_get *items;
            uint32_t count;
            struct point_selection selection;
        } get;
        struct {
            const struct point_key *after; /* NULL = start */
            uint32_t limit;
            const struct filter *filter;
            struct doc filter_doc; /* what it was parsed from, for who sends it on; absent = NULL */
            struct point_selection selection;
        } scroll;
        struct {
            const struct filter *filter;
            struct doc filter_doc;
        } count;
        struct {
            bool detail; /* tell more than numbers */
        } stats;
        struct catalog_change catalog;
        struct {
            struct doc
                    request; /* an object {"do": action, ..}; PROTOCOL.md lists actions and their members */
            struct op_id asked_as; /* of a change, by whoever may ask again; client 0 = none */
            bool changes; /* whether it does more than look: then it is not asked again after an unknown
                                   outcome, unless it has an op id. For who sends it on; not part of the message */
        } cluster;
    } in;

    enum omen_err code; /* outputs from here on */
    struct err err;
    uint32_t leader_hint; /* OMEN_ENOTLEADER: node id of who leads, 0 = not known */
    uint64_t sequence;    /* write: its own, 0 with WAIT_ACCEPTED; reads: the view's */
    bool stale; /* eventual reads: the replica knew that it was behind, or had heard from no leader for long (K3) */
    uint64_t engine_ns; /* time spent inside storage */
    union {
        struct {
            uint32_t affected;
            bool duplicate;
        } write;
        struct {
            struct hit **hits;
            uint32_t *counts;
            uint64_t rows_scanned;
            struct doc explain; /* an object, when asked for; absent = could not be told */
        } search;               /* [in.search.count] */
        struct {
            struct point_view *points;
            uint32_t count;
            bool more;
        } points; /* get, scroll */
        struct {
            uint64_t points;
        } count;
        struct shard_stats stats;
        struct {
            uint64_t collection_id;
        } catalog;
        struct {
            struct doc reply; /* an object, from the service's memory until release */
        } cluster;
    } out;

    void (*done)(struct shard_call *call); /* any thread, also before submit returns; must not block */
    void *arg;                             /* the caller's */
    void *service_data;                    /* the service's: arena, view; NULL at submit */
};

/* OMEN_EWRONGEPOCH: a newer map is there now (map_acquire has it); nothing of the call was done. Who routes begins anew. */
struct shard_service {
    void *self;
    void (*submit)(void *self, struct shard_call *call);
    void (*release)(void *self, struct shard_call *call);
    struct map *(*map_acquire)(void *self); /* newest known; map_unref it; NULL before the first */
    /* For /readyz and status: NULL or why not ready (static string). */
    const char *(*not_ready)(void *self);
    /* Members of an object begun by the caller: what a person wants to know of the node. May be NULL. */
    void (*status)(void *self, struct doc_builder *b);
    /* Make the map that map_acquire gives at least as new as the cluster's at this moment, or try until `deadline_ns`; then
     * `done` (any thread, also before this returns). NULL when it always is. */
    void (*map_refresh)(void *self, uint64_t deadline_ns, void (*done)(void *arg), void *arg);
};

#endif
