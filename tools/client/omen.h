/* OmenDB client library: the only installed header, and the only one that exports omen_* functions.
 *
 * A client holds a list of endpoints ("tcp://host:port,tcp://host2:port"), fails over between them, gives every write an
 * op id and keeps it over retries, so that a retried write is applied once. Every function is thread-safe; results belong
 * to the caller and are freed with the matching _free. Strings are UTF-8, NUL-terminated unless a length is given;
 * payloads and filters are JSON text. Vectors are f32, row-major.
 *
 *   omen_client *db;
 *   if (omen_open("tcp://127.0.0.1:7700", NULL, &db) != 0) { fprintf(stderr, "%s\n", omen_last_error()); ... }
 *   omen_collection_create(db, "docs", &(omen_collection_options){ .dim = 128, .metric = "cosine" });
 *   omen_upsert(db, "docs", ids, vectors, 128, payloads, count, NULL);
 *   omen_results *r;
 *   omen_search(db, "docs", query, 128, &(omen_search_options){ .k = 10, .filter = "{\"must\": [...]}" }, &r);
 */
#ifndef OMEN_H
#define OMEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct omen_client omen_client;

/* Codes are those of PROTOCOL.md: 0 ok, 1 invalid ... See omen_error_name(). */
typedef int omen_code;

/* A point's id: a number, or a UUID when `is_uuid`. */
typedef struct {
    uint64_t number;
    uint8_t uuid[16];
    bool is_uuid;
} omen_id;

typedef struct {
    const char *api_key;     /* NULL = none */
    uint32_t timeout_ms;     /* per request over all retries; 0 = 30 s */
    uint32_t retries;        /* 0 = default 8; backoff with jitter, honours retry-after */
    const char *client_name; /* shown in server logs */
} omen_options;

omen_code omen_open(const char *endpoints, const omen_options *options, omen_client **client_out);
void omen_close(omen_client *client);

/* Of the calling thread's last failed call: sentence, field at fault ("" if none), code name. */
const char *omen_last_error(void);
const char *omen_last_error_field(void);
const char *omen_error_name(omen_code code);

/* ---- collections ---- */
typedef struct {
    const char *name;
    uint32_t dim;
    const char *metric;
} omen_vector_field;
typedef struct {
    uint32_t dim;       /* the one unnamed field; or give `fields` */
    const char *metric; /* "cosine" (default), "l2", "ip" */
    const omen_vector_field *fields;
    uint32_t field_count;
    const char *shard_key; /* payload path, NULL = none */
    uint32_t shards;       /* 0 = 1 */
    uint32_t replication;  /* copies of each shard, on different nodes; 0 = 1 */
    float recall_target;   /* 0 = what the options say, else 0.95 */
    const char *
            options_json; /* an object: profile, write_mode, quantization and others of PROTOCOL.md; NULL = none */
} omen_collection_options;
omen_code omen_collection_create(omen_client *client, const char *name,
        const omen_collection_options *options);
/* Change options of a collection: an object of those of PROTOCOL.md that are to change. */
omen_code omen_collection_set(omen_client *client, const char *name, const char *options_json);
omen_code omen_collection_drop(omen_client *client, const char *name);
/* JSON documents (freed with omen_free): the list, one description, the server's status. */
omen_code omen_collection_list(omen_client *client, char **json_out);
omen_code omen_collection_describe(omen_client *client, const char *name, char **json_out);
omen_code omen_status(omen_client *client, char **json_out);
omen_code omen_alias_set(omen_client *client, const char *alias, const char *collection);
omen_code omen_alias_drop(omen_client *client, const char *alias);
void omen_free(void *ptr);

/* What concerns the whole cluster: an object {"do": action, ..} to it and a JSON document back (freed with omen_free).
 * PROTOCOL.md lists the actions: status, init, node_add, node_drain, rebalance and others. A change has
 * an op id like a write: tried again after a lost connection it is made once, and told its first outcome. Only
 * leader_transfer has none and is not tried again when it may have been made. */
omen_code omen_cluster(omen_client *client, const char *request_json, char **json_out);

/* What names a change of collections, aliases or the cluster for good. After outcome_unknown the very same change under
 * the very same id, from any process and through any endpoint, is made if it was not, and told if it was; for ten
 * minutes, then it is refused as op_expired. */
typedef struct {
    uint64_t client, seq, issue_ms;
} omen_op_id;
/* Of the calling thread's last call, when that was such a change and was sent with an id; false: it was not. */
bool omen_last_change_id(omen_op_id *id_out);
/* The calling thread's next change takes this id instead of a new one. */
void omen_next_change_id(omen_op_id id);

/* ---- writes: durable and visible when they return OK; all points of a call or none ----
 * In a collection of several shards that holds for each shard; a call that ended with some of them done is told as
 * outcome_unknown, and sending the same points again completes it. */
typedef struct {
    uint32_t affected;
    bool duplicate;
} omen_write_result;

/* One column of vectors for a named field. */
typedef struct {
    const char *field;
    const float *data;
    uint32_t dim;
} omen_vectors;

typedef struct {
    const uint64_t *
            expires_ms; /* [count] Unix time in ms from which on a point is absent, 0 = never; NULL: by `ttl_ms` */
    uint64_t ttl_ms; /* all points are absent so long after this call; 0 = never */
    /* When the call returns: "committed" (default: on the disks of a majority, and visible), "indexed" (and in the index of
     * the shard's leader), or "accepted" (in the leader's hands: it may be lost, and nobody says so). NULL = default. */
    const char *wait;
} omen_upsert_options;

omen_code omen_upsert(omen_client *client, const char *collection, const omen_id *ids, const float *vectors,
        uint32_t dim, const char *const *payloads_json, size_t count, omen_write_result *result_out);
omen_code omen_upsert_fields(omen_client *client, const char *collection, const omen_id *ids,
        const omen_vectors *columns, uint32_t column_count, const char *const *payloads_json, size_t count,
        omen_write_result *result_out);
omen_code omen_upsert_with(omen_client *client, const char *collection, const omen_id *ids,
        const omen_vectors *columns, uint32_t column_count, const char *const *payloads_json, size_t count,
        const omen_upsert_options *options, omen_write_result *result_out);
/* `shard_keys_json`: [count] JSON values of the shard key, or NULL. */
omen_code omen_delete(omen_client *client, const char *collection, const omen_id *ids,
        const char *const *shard_keys_json, size_t count, omen_write_result *result_out);
omen_code omen_set_payload(omen_client *client, const char *collection, const omen_id *ids,
        const char *const *shard_keys_json, const char *const *payloads_json, size_t count,
        omen_write_result *result_out);
omen_code omen_overwrite_payload(omen_client *client, const char *collection, const omen_id *ids,
        const char *const *shard_keys_json, const char *const *payloads_json, size_t count,
        omen_write_result *result_out);
omen_code omen_delete_payload(omen_client *client, const char *collection, const omen_id *ids,
        const char *const *shard_keys_json, const char *const *paths, uint32_t path_count, size_t count,
        omen_write_result *result_out);

/* Writes of all points that match `filter` (JSON), as they were when the request came: what is written while it runs is left
 * alone. A large one that breaks off has done a part; sent again, it does the rest. */
omen_code omen_delete_by_filter(omen_client *client, const char *collection, const char *filter,
        omen_write_result *result_out);
omen_code omen_set_payload_by_filter(omen_client *client, const char *collection, const char *filter,
        const char *payload_json, omen_write_result *result_out);
omen_code omen_overwrite_payload_by_filter(omen_client *client, const char *collection, const char *filter,
        const char *payload_json, omen_write_result *result_out);
omen_code omen_delete_payload_by_filter(omen_client *client, const char *collection, const char *filter,
        const char *const *paths, uint32_t path_count, omen_write_result *result_out);

/* Pipelined upserts for loaders: up to `depth` (1..256) requests in flight, submit blocks when full. An error surfaces at
 * the next submit or at finish; after it nothing more is sent, while requests in flight are still waited for. Requests in
 * flight may be applied in any order: submit one id twice only when the first was acknowledged. */
typedef struct omen_pipeline omen_pipeline;
omen_code omen_pipeline_open(omen_client *client, const char *collection, uint32_t depth,
        omen_pipeline **pipeline_out);
omen_code omen_pipeline_upsert(omen_pipeline *pipeline, const omen_id *ids, const float *vectors,
        uint32_t dim, const char *const *payloads_json, size_t count);
/* Called (from a library thread) each time a request of `count` points was acknowledged. */
void omen_pipeline_on_ack(omen_pipeline *pipeline, void (*on_ack)(void *arg, size_t count), void *arg);
omen_code omen_pipeline_finish(omen_pipeline *pipeline, uint64_t *acknowledged_out); /* waits, frees */

/* ---- reads ---- */
typedef struct {
    omen_id id;
    float score; /* searches only */
    uint64_t version;
    uint64_t expires_ms;         /* Unix time from which on it is absent, 0 = never */
    const char *shard_key_json;  /* NULL = none */
    const char *payload_json;    /* NULL = not selected */
    const omen_vectors *vectors; /* [vector_count] */
    uint32_t vector_count;
} omen_point;

typedef struct {
    omen_point *points;
    size_t count;
    const char *next_cursor; /* scroll: NULL = end */
    bool higher_is_nearer;   /* search: how to read scores */
    uint64_t engine_ns;      /* time inside the storage engine */
    uint32_t shards_asked, shards_total;
    uint64_t rows_scanned; /* search: points compared with a query, over all searches of the request */
    const uint64_t *
            shards_missing; /* [shards_missing_count] did not answer: the result is partial, without their points. */
    uint32_t shards_missing_count; /* 0 unless allow_partial */
    bool stale; /* eventual reads: a replica that answered knew that it was behind, or was cut off from its leader */
    const char
            *explain_json; /* how the searches of the request were answered, when that was asked; else NULL */
} omen_results;
void omen_results_free(omen_results *results); /* for arrays: the pointer that was returned */

typedef struct {
    bool with_payload, with_vectors;
    const char *const *payload_include; /* paths, NULL-terminated, or NULL */
    const char *const *payload_exclude;
    bool allow_partial; /* rather an answer without the shards that cannot be reached than none: look at shards_missing */
    const char *consistency; /* of get and scroll, as in omen_search_options; a search has its own */
} omen_select;

typedef struct {
    const char *field;            /* NULL = unnamed */
    uint32_t k, offset;           /* k 0 = 10 */
    const char *filter;           /* JSON or NULL */
    const float *score_threshold; /* NULL = none */
    omen_select select;
    const char *consistency; /* "session" (default), "eventual", "linearizable" */
    const omen_id *by_id;    /* search with the stored vector of this point instead of `query` */
    const char *by_id_shard_key_json;
    bool exact;   /* look at every point rather than walk indexes */
    bool explain; /* tell how it was answered: PROTOCOL.md, "Explain" */
} omen_search_options;

omen_code omen_search(omen_client *client, const char *collection, const float *query, uint32_t dim,
        const omen_search_options *options, omen_results **results_out);
/* `results_out` [count]; queries [count][dim]. */
omen_code omen_search_batch(omen_client *client, const char *collection, const float *queries, uint32_t dim,
        size_t count, const omen_search_options *options, omen_results **results_out);
omen_code omen_get(omen_client *client, const char *collection, const omen_id *ids,
        const char *const *shard_keys_json, size_t count, const omen_select *select,
        omen_results **results_out);
omen_code omen_scroll(omen_client *client, const char *collection, const char *cursor, uint32_t limit,
        const char *filter, const omen_select *select, omen_results **results_out);
omen_code omen_count(omen_client *client, const char *collection, const char *filter, uint64_t *count_out);
typedef struct {
    bool allow_partial;      /* rather a count without the shards that cannot be reached than none */
    const char *consistency; /* "session" (default), "eventual", "linearizable" */
} omen_count_options;
typedef struct {
    uint64_t points;
    uint32_t shards_missing_count; /* did not answer; 0 = the count is whole */
    bool stale; /* eventual: a replica that answered knew that it was behind, or was cut off from its leader */
} omen_count_result;
omen_code omen_count_with(omen_client *client, const char *collection, const char *filter,
        const omen_count_options *options, omen_count_result *result_out);

#ifdef __cplusplus
}
#endif
#endif
