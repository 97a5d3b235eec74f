/* Shared by the .c files of the client library only; what users see is omen.h.
 *
 * A request is built from its arguments into a `struct scratch` (arena, JSON builder, message), then carried by
 * client_call (blocking) or by a slot of a pipeline. Both obey the same rules of retry: client_retry.c.
 * Threads: a scratch has one owner at a time; everything else here is guarded or atomic as said at the field. */
#ifndef OMEN_TOOLS_CLIENT_IMPL_H
#define OMEN_TOOLS_CLIENT_IMPL_H

#include <pthread.h>
#include <stdatomic.h>

#include "common/net/net.h"
#include "common/query/point.h"
#include "common/wire/message.h"
#include "tools/client/omen.h"

#define CLIENT_ENDPOINTS_MAX 32
#define CLIENT_URL_BYTES_MAX 128
#define CLIENT_TIMEOUT_MS_DEFAULT 30000
#define CLIENT_TIMEOUT_MS_MAX (24 * 3600 * 1000)
#define CLIENT_RETRIES_DEFAULT 8
#define CLIENT_HELLO_TIMEOUT_MS 5000 /* with several endpoints: a silent one costs no more */
#define CLIENT_ATTEMPT_MS_MIN                                                                                \
    1000 /* with several endpoints an attempt gets half of what is left, at least this */
#define CLIENT_BACKOFF_MS_MIN 25
#define CLIENT_BACKOFF_MS_MAX 1000
#define CLIENT_TOKENS_MAX 512     /* session tokens kept; past it the one heard of longest ago goes */
#define CLIENT_SCRATCH_KEPT_MAX 8 /* idle scratches kept for reuse */
#define CLIENT_SCRATCH_BYTES_KEPT (8u << 20) /* a buffer that grew past this is given back */
#define CLIENT_SCRATCH_BYTES_MAX (512u << 20)
#define CLIENT_REPLY_BYTES_MAX (1u << 30) /* a decoded reply, its JSON included */
#define CLIENT_PIPELINE_DEPTH_MAX 256

struct endpoint {
    char url[CLIENT_URL_BYTES_MAX + 1];
    struct net_client *net;
    _Atomic bool greeted; /* hello was answered on this connection */
};

/* Session tokens by shard, sorted. */
struct token_table {
    pthread_mutex_t lock;
    struct token items[CLIENT_TOKENS_MAX]; /* [count] sorted by shard */
    uint64_t heard[CLIENT_TOKENS_MAX];     /* beside items: `ticks` when last heard of */
    uint32_t count;
    uint64_t ticks;
};

struct scratch {
    struct arena arena; /* what a request borrows */
    struct buf message; /* encoded request */
    struct buf reply;
    struct buf text; /* JSON being written */
    struct doc_builder *builder;
    struct scratch *next; /* in the client's list of idle ones */
};

struct omen_client {
    char *api_key;     /* "" = none, owned */
    char *client_name; /* owned */
    uint32_t timeout_ms, retries;
    struct endpoint endpoints[CLIENT_ENDPOINTS_MAX];
    uint32_t endpoint_count;
    _Atomic uint32_t endpoint_good; /* position of the one that answered last */
    _Atomic uint32_t version;       /* of the protocol, agreed with the first endpoint; 0 = none yet */
    uint64_t id;                    /* random, never 0: op_id.client */
    _Atomic uint64_t seq;
    _Atomic int64_t server_clock_ms; /* its wall clock less our monotone one, as hello told; 0 = it did not */
    _Atomic bool by_server; /* issue times are by the server's clock: ours is ahead of the leader's */
    _Atomic uint64_t draws; /* of jitter */
    struct token_table tokens;
    pthread_mutex_t scratch_lock;
    struct scratch *idle; /* guarded by scratch_lock */
    uint32_t idle_count;
};

/* ---- client_error.c: the thread's last error ---- */
struct err *client_err(void); /* cleared */
omen_code client_fail(enum omen_err code, const char *field, const char *fmt, ...) OMEN_PRINTF(3, 4);

/* ---- omen_client.c ---- */
struct scratch *scratch_take(struct omen_client *client); /* NULL when out of memory */
void scratch_give(struct omen_client *client, struct scratch *scratch);

/* ---- client_tokens.c ---- */
void tokens_init(struct token_table *table);
void tokens_fini(struct token_table *table);
/* Keep the highest sequence per shard. Tokens of another incarnation replace all that are held. */
void tokens_merge(struct token_table *table, const struct token *tokens, uint32_t count);
void tokens_forget(struct token_table *table);
OMEN_CHECKED enum omen_err tokens_copy(struct token_table *table, struct arena *arena,
        const struct token **tokens_out, uint32_t *count_out, struct err *err);

/* ---- client_retry.c: one request over all its attempts ---- */
struct attempts {
    enum wire_op op;
    uint64_t deadline_ns;      /* monotonic */
    uint32_t endpoint;         /* position to try next */
    uint32_t endpoints_failed; /* in this round */
    uint32_t rounds_left;
    uint32_t backoff_ms;
    uint32_t count; /* attempts made */
    bool changes;   /* more than a read: an unknown outcome is the caller's to know */
    bool has_op_id; /* asked for again, it is not done twice */
    bool uncertain; /* an attempt may have been carried out */
    bool partial;   /* one was, in some shards */
};
void attempts_begin(struct omen_client *client, enum wire_op op, struct attempts *a_out);
uint32_t attempts_left_ms(const struct attempts *a);
/* Time for the next attempt, at most what is left. */
uint32_t attempts_timeout_ms(const struct omen_client *client, const struct attempts *a);
/* After an attempt ended with `code` and `*err`: true = try again after `*wait_ms_out`; false = `*err` and the returned
 * code in `*code_out` are final, as the caller is to see them. */
bool attempts_again(struct omen_client *client, struct attempts *a, enum omen_err code, struct err *err,
        uint32_t *wait_ms_out, enum omen_err *code_out);
/* Make sure that a->endpoint was greeted. Never leaves a write uncertain. */
OMEN_CHECKED enum omen_err client_greet(struct omen_client *client, struct attempts *a, struct err *err);
/* Decode a reply; the server's own error comes back as the code. Marks what bytes that are no reply, or the outcome of a
 * write in some shards, leave uncertain. */
OMEN_CHECKED enum omen_err client_take_reply(struct omen_client *client, struct attempts *a,
        struct bytes reply, struct arena *arena, struct wire_reply *reply_out, struct err *err);
/* Complete `request` with what is the client's own (version, key, deadline; tokens unless `arena` is NULL) and encode it. */
OMEN_CHECKED enum omen_err client_encode(struct omen_client *client, struct wire_request *request,
        struct arena *arena, const struct attempts *a, struct buf *out, struct err *err);
/* Send and wait, with retries; `reply_out` lives in `reply_arena`. */
OMEN_CHECKED enum omen_err client_call(struct omen_client *client, struct wire_request *request,
        struct scratch *scratch, struct arena *reply_arena, struct wire_reply *reply_out, struct err *err);

uint64_t client_now_ns(void);
void client_sleep_ms(uint32_t ms);

/* ---- client_build.c: arguments to request ---- */
struct bytes client_bytes(const char *s); /* NULL = empty */
OMEN_CHECKED enum omen_err build_ids(const omen_id *ids, size_t count, struct arena *arena,
        const point_id **ids_out, struct err *err);
point_id build_id(const omen_id *id);
/* [count] JSON values, parsed once; `missing` stands for entries that are NULL. Errors name the point: "payloads[3]". */
OMEN_CHECKED enum omen_err build_docs(const char *const *json, size_t count, const char *what,
        struct doc missing, struct scratch *s, const struct doc **docs_out, struct err *err);
OMEN_CHECKED enum omen_err build_doc(const char *json, uint32_t limit_bytes, const char *what,
        struct scratch *s, struct doc *doc_out, struct err *err);
OMEN_CHECKED enum omen_err build_filter(const char *json, struct scratch *s, const struct filter **filter_out,
        struct doc *doc_out, struct err *err);
OMEN_CHECKED enum omen_err build_selection(const omen_select *select, struct scratch *s,
        struct wire_selection *selection_out, struct err *err);
OMEN_CHECKED enum omen_err build_consistency(const char *text, enum consistency *consistency_out,
        struct err *err);

struct write_args {
    enum wire_op op;
    const char *collection;
    const omen_id *ids;               /* [count] */
    const char *const *keys_json;     /* [count] or NULL */
    const char *const *payloads_json; /* [count] or NULL; upsert, set, overwrite */
    const omen_vectors *columns;
    uint32_t column_count;
    const uint64_t *expires_ms; /* [count] or NULL; upsert, as ttl_ms, which counts from now on */
    uint64_t ttl_ms;
    const char *filter;       /* JSON, instead of ids and keys; payloads_json then has one; NULL = by ids */
    const char *wait;         /* NULL = committed */
    const char *const *paths; /* delete_payload */
    uint32_t path_count;
    size_t count;
};
/* A new one, of a write or a change: all its attempts share it. */
struct op_id build_op_id(struct omen_client *client);
/* Also draws the op id. The request borrows from `args` and from `s`. */
OMEN_CHECKED enum omen_err build_write(struct omen_client *client, const struct write_args *args,
        struct scratch *s, struct wire_request *request_out, struct err *err);

/* ---- client_results.c ---- */
/* `count` results in one block with their arena; freed by omen_results_free. */
OMEN_CHECKED enum omen_err results_new(size_t count, omen_results **results_out, struct arena **arena_out,
        struct err *err);
/* The JSON of a doc, in the results' arena. */
OMEN_CHECKED enum omen_err results_doc_text(struct doc doc, struct arena *arena, struct scratch *s,
        const char **text_out, struct err *err);
OMEN_CHECKED enum omen_err results_set_points(omen_results *result, struct arena *arena, struct scratch *s,
        const struct collection_schema *schema, const struct point_view *points, uint32_t count,
        struct err *err);
OMEN_CHECKED enum omen_err results_set_hits(omen_results *result, struct arena *arena, struct scratch *s,
        const struct collection_schema *schema, const struct wire_search_result *hits, struct err *err);

#endif
