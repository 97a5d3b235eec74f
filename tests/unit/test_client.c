/* The C client library against a scripted server in this process: what is retried, where, under which op id, and what the
 * caller is told in the end. */
#include <check.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/net/net.h"
#include "common/wire/message.h"
#include "tools/client/client_impl.h"

#define DIM 4
#define OPS_MAX 1024

/* ---- scripted server ---- */

struct fake {
    struct net_server *server;
    char url[64];
    pthread_mutex_t lock;
    enum omen_err script[64]; /* answers to the next requests (hello aside); OMEN_OK after the last */
    uint32_t script_len, requests, hellos;
    struct op_id ops[OPS_MAX]; /* of the writes, in order of arrival */
    uint32_t op_count;
    struct op_id applied[OPS_MAX]; /* distinct op ids that were answered OK or UNKNOWN */
    uint32_t applied_count;
    uint64_t points_applied;
    struct token tokens[8]; /* of the last request */
    uint32_t token_count;
    uint64_t incarnation, sequence;
    uint32_t fail_every;          /* 0 = never; else each n-th write is BUSY, applied and UNKNOWN, in turn */
    bool stale;                   /* say of answers that they are */
    enum consistency consistency; /* of the last request */
    uint64_t hello_ms,
            clock_ms; /* what hello tells; op ids further ahead of the other are refused; 0 = none are */
    bool partial;     /* errors of writes say that one shard of two was done */
};

static bool already_applied(const struct fake *f, struct op_id id)
{
    for (uint32_t i = 0; i < f->applied_count; i++)
        if (f->applied[i].client == id.client && f->applied[i].seq == id.seq) return true;
    return false;
}

static void apply(struct fake *f, const struct wire_request *request)
{
    if (already_applied(f, request->write.op_id)) return;
    ck_assert_uint_lt(f->applied_count, OPS_MAX);
    f->applied[f->applied_count++] = request->write.op_id;
    f->points_applied += request->write.count;
}

static enum omen_err next_answer(struct fake *f, bool write)
{
    uint32_t n = f->requests++;
    if (n < f->script_len) return f->script[n];
    if (!write || f->fail_every == 0 || n % f->fail_every != 0) return OMEN_OK;
    return n / f->fail_every % 2 == 0 ? OMEN_EBUSY : OMEN_EUNKNOWN;
}

static struct collection_schema schema = { .field_count = 1,
    .fields = { { .dim = DIM, .metric = METRIC_IP } } };
static const uint8_t PAYLOAD[] = { DOC_OBJECT, 12, 0, 0, 0, 1, 0, 0, 0, 1, 0, 'n', DOC_I64, 7, 0, 0, 0, 0, 0,
    0, 0 };
static const uint8_t KEY[] = { 1, 'a', '"' };
static const float VECTOR[DIM] = { 1, 2, 3, 4 };

static void fill_reply(struct wire_reply *reply, const struct wire_request *request)
{
    static struct hit hit;
    static struct wire_search_result result;
    hit = (struct hit){ .score = 0.5f,
        .distance = -0.5f,
        .point = { .id = { .lo = 42 },
                .version = 9,
                .key = { { KEY, sizeof KEY } },
                .payload = { PAYLOAD, sizeof PAYLOAD },
                .vectors = { VECTOR } } };
    result = (struct wire_search_result){ .hits = &hit, .count = 1 };
    reply->schema = &schema;
    if (request->op == WIRE_SEARCH) {
        reply->search.results = &result;
        reply->search.count = request->search.count;
        reply->search.rows_scanned = 77;
    } else if (request->op == WIRE_GET || request->op == WIRE_SCROLL) {
        reply->points.points = &hit.point;
        reply->points.count = 1;
        static const uint8_t cursor[] = { 0, 255, 'x' };
        if (request->op == WIRE_SCROLL && request->scroll.cursor.len == 0)
            reply->points.cursor = (struct bytes){ cursor, sizeof cursor };
        if (request->op == WIRE_SCROLL && request->scroll.cursor.len != 0)
            ck_assert_mem_eq(request->scroll.cursor.data, cursor, sizeof cursor);
    } else if (request->op == WIRE_CLUSTER) {
        reply->cluster.reply = request->cluster.request; /* said back */
    } else if (request->op == WIRE_COUNT) {
        reply->count.points = 1234;
    } else {
        reply->write.affected = request->write.count;
    }
}

static void answer(struct fake *f, const struct wire_request *request, struct wire_reply *reply)
{
    static struct token token;
    if (request->op == WIRE_HELLO) {
        f->hellos++;
        reply->hello.version = 1;
        reply->hello.server_version = "0";
        reply->hello.commit = "0";
        reply->hello.now_ms = f->hello_ms;
        return;
    }
    bool write = request->op >= WIRE_UPSERT && request->op <= WIRE_DELETE_PAYLOAD;
    enum omen_err code = next_answer(f, write);
    f->token_count = request->token_count < 8 ? request->token_count : 8;
    for (uint32_t i = 0; i < f->token_count; i++) f->tokens[i] = request->tokens[i];
    if (write) f->ops[f->op_count++ % OPS_MAX] = request->write.op_id;
    if (request->op == WIRE_CLUSTER) f->ops[f->op_count++ % OPS_MAX] = request->cluster.asked_as;
    if (request->op == WIRE_COLLECTION_CREATE) f->ops[f->op_count++ % OPS_MAX] = request->catalog.asked_as;
    if (request->op == WIRE_ALIAS_SET) f->ops[f->op_count++ % OPS_MAX] = request->catalog.asked_as;
    if (write && (code == OMEN_OK || code == OMEN_EUNKNOWN)) apply(f, request);
    for (uint32_t i = 0; code == OMEN_OK && i < f->token_count; i++)
        if (f->tokens[i].incarnation != f->incarnation) {
            reply->code = err_set(&reply->err, OMEN_EINVAL, "tokens[0].incarnation",
                    "of another incarnation");
            return;
        }
    if (f->clock_ms != 0 && f->ops[(f->op_count - 1) % OPS_MAX].issue_ms > f->clock_ms + 5000) {
        reply->code = err_set(&reply->err, OMEN_EINVAL, "op_id[2]", "ahead");
        return;
    }
    reply->code = code;
    if (code != OMEN_OK) {
        err_set(&reply->err, code, NULL, "scripted %s", err_name(code));
        reply->err.retry_after_ms = code == OMEN_EBUSY ? 2 : 0;
        static const struct wire_shard_outcome outcomes[] = { { 3, OMEN_OK, 1 }, { 4, OMEN_EFULL, 0 } };
        if (f->partial) {
            reply->write.shards = outcomes;
            reply->write.shard_count = 2;
        }
        return;
    }
    fill_reply(reply, request);
    reply->stale = f->stale;
    f->consistency = request->consistency;
    token = (struct token){ f->incarnation, 3, ++f->sequence };
    reply->tokens = &token;
    reply->token_count = 1;
}

static void serve(void *arg, struct net_request *net_request, struct bytes message)
{
    struct fake *f = arg;
    static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER; /* fill_reply and answer use statics */
    struct arena arena;
    struct wire_request request;
    struct err err;
    struct buf out;
    pthread_mutex_lock(&one);
    pthread_mutex_lock(&f->lock);
    arena_init(&arena, 4096, 0);
    buf_init(&out);
    enum omen_err rc = message_decode_request(message, &arena, &request, &err);
    ck_assert_msg(rc == OMEN_OK, "request is wrong: %s: %s", err.field, err.message);
    struct wire_reply reply = { .op = request.op };
    answer(f, &request, &reply);
    ck_assert_int_eq(message_encode_reply(&reply, &out), OMEN_OK);
    pthread_mutex_unlock(&f->lock);
    pthread_mutex_unlock(&one);
    net_reply(net_request, (struct bytes){ out.data, out.len });
    buf_fini(&out);
    arena_fini(&arena);
}

static void fake_start(struct fake *f, const char *url)
{
    struct err err;
    struct net_server_options options = { .url = url,
        .contexts = 16,
        .message_bytes_max = WIRE_MESSAGE_BYTES_MAX,
        .handle = serve,
        .arg = f };
    *f = (struct fake){ .incarnation = 5 };
    pthread_mutex_init(&f->lock, NULL);
    enum omen_err rc = net_server_start(&options, &f->server, &err);
    ck_assert_msg(rc == OMEN_OK, "%s", err.message);
    snprintf(f->url, sizeof f->url, "tcp://127.0.0.1:%u", net_server_port(f->server));
}

static struct fake fakes[2];
static omen_client *db;

static void open_client(const char *endpoints, uint32_t timeout_ms)
{
    omen_options options = { .timeout_ms = timeout_ms, .client_name = "test" };
    ck_assert_int_eq(omen_open(endpoints, &options, &db), 0);
}

static void setup(void)
{
    fake_start(&fakes[0], "tcp://127.0.0.1:0");
    fake_start(&fakes[1], "tcp://127.0.0.1:0");
    char both[160];
    snprintf(both, sizeof both, "%s,%s", fakes[0].url, fakes[1].url);
    open_client(both, 10000);
}

static void teardown(void)
{
    omen_close(db);
    net_server_stop(fakes[0].server);
    net_server_stop(fakes[1].server);
}

static void script(struct fake *f, uint32_t len, const enum omen_err *codes)
{
    memcpy(f->script, codes, len * sizeof codes[0]);
    f->script_len = len;
}
#define SCRIPT(f, ...)                                                                                       \
    do {                                                                                                     \
        const enum omen_err codes_[] = { __VA_ARGS__ };                                                      \
        script(f, sizeof codes_ / sizeof codes_[0], codes_);                                                 \
    } while (0)

static omen_code write_one(void)
{
    omen_id id = { .number = 1 };
    const char *payload = "{\"n\":7}";
    return omen_upsert(db, "c", &id, VECTOR, DIM, &payload, 1, NULL);
}

static void expect_same_op(const struct fake *f, uint32_t count)
{
    ck_assert_uint_eq(f->op_count, count);
    for (uint32_t i = 1; i < count; i++) ck_assert_mem_eq(&f->ops[i], &f->ops[0], sizeof f->ops[0]);
    ck_assert_uint_ne(f->ops[0].client, 0);
}

/* ---- retries ---- */

START_TEST(a_retried_write_keeps_its_op_id)
{
    SCRIPT(&fakes[0], OMEN_EBUSY, OMEN_ENOTLEADER, OMEN_EBUSY);
    ck_assert_int_eq(write_one(), 0);
    expect_same_op(&fakes[0], 4);
    ck_assert_uint_eq(fakes[0].points_applied, 1);
}
END_TEST

START_TEST(the_next_write_has_another_op_id)
{
    ck_assert_int_eq(write_one(), 0);
    ck_assert_int_eq(write_one(), 0);
    ck_assert_uint_eq(fakes[0].ops[1].client, fakes[0].ops[0].client);
    ck_assert_uint_gt(fakes[0].ops[1].seq, fakes[0].ops[0].seq);
}
END_TEST

START_TEST(an_unknown_outcome_is_retried_elsewhere_under_the_same_op_id)
{
    SCRIPT(&fakes[0], OMEN_EUNKNOWN);
    ck_assert_int_eq(write_one(), 0);
    ck_assert_uint_eq(fakes[1].op_count, 1);
    ck_assert_mem_eq(&fakes[1].ops[0], &fakes[0].ops[0], sizeof fakes[0].ops[0]);
    ck_assert_int_eq(write_one(), 0); /* and stays with the one that answered */
    ck_assert_uint_eq(fakes[1].op_count, 2);
}
END_TEST

START_TEST(an_uncertain_write_is_never_told_as_failed)
{
    static const enum omen_err LAST[] = { OMEN_EFULL, OMEN_EOPEXPIRED, OMEN_EAUTH, OMEN_EINTERNAL, OMEN_EIO };
    for (size_t i = 0; i < sizeof LAST / sizeof LAST[0]; i++) {
        SCRIPT(&fakes[0], OMEN_EUNKNOWN, LAST[i]);
        SCRIPT(&fakes[1], OMEN_EUNKNOWN, LAST[i]);
        fakes[0].requests = fakes[1].requests = 0;
        ck_assert_int_eq(write_one(), OMEN_EUNKNOWN);
        ck_assert_ptr_nonnull(strstr(omen_last_error(), "outcome unknown"));
    }
}
END_TEST

START_TEST(a_certain_failure_is_told_as_it_is)
{
    SCRIPT(&fakes[0], OMEN_EFULL);
    ck_assert_int_eq(write_one(), OMEN_EFULL);
    ck_assert_uint_eq(fakes[0].requests, 1);
    SCRIPT(&fakes[0], OMEN_EFULL, OMEN_EOPEXPIRED);
    ck_assert_int_eq(write_one(), OMEN_EOPEXPIRED);
}
END_TEST

START_TEST(a_clock_that_is_ahead_is_put_right_by_what_the_server_says)
{
    uint64_t ours = clock_wall_ms(clock_system());
    fakes[0].hello_ms = fakes[0].clock_ms = ours - 3600000;
    ck_assert_int_eq(omen_alias_set(db, "a", "b"), 0);
    ck_assert_uint_eq(fakes[0].op_count, 2); /* refused, and under another id taken */
    ck_assert_uint_ne(fakes[0].ops[0].seq, fakes[0].ops[1].seq);
    ck_assert_uint_ge(fakes[0].ops[1].issue_ms, fakes[0].hello_ms);
    ck_assert_uint_lt(fakes[0].ops[1].issue_ms, ours - 1800000);
    omen_op_id told;
    ck_assert(omen_last_change_id(&told)); /* the one that counts */
    ck_assert_uint_eq(told.seq, fakes[0].ops[1].seq);
    ck_assert_int_eq(omen_alias_set(db, "a", "b"), 0); /* learnt for good */
    ck_assert_uint_eq(fakes[0].op_count, 3);
    ck_assert_int_eq(write_one(), 0);
    fakes[0].clock_ms -= 3600000; /* neither clock will do: that is told, not tried for ever */
    ck_assert_int_eq(omen_alias_set(db, "a", "b"), OMEN_EINVAL);
    ck_assert_str_eq(omen_last_error_field(), "op_id[2]");
    ck_assert_uint_eq(fakes[0].op_count, 6);
}
END_TEST

START_TEST(a_write_done_in_some_shards_is_never_told_as_failed)
{
    fakes[0].partial = true;
    SCRIPT(&fakes[0], OMEN_EFULL, OMEN_EINVAL);
    ck_assert_int_eq(write_one(), OMEN_EUNKNOWN);
    ck_assert_int_eq(write_one(), OMEN_EUNKNOWN);
    ck_assert_int_eq(write_one(), 0);
}
END_TEST

START_TEST(busy_is_waited_out_until_the_deadline)
{
    enum omen_err busy[40];
    for (int i = 0; i < 40; i++) busy[i] = OMEN_EBUSY;
    script(&fakes[0], 40, busy);
    omen_close(db);
    open_client(fakes[0].url, 400);
    ck_assert_int_eq(write_one(), OMEN_EBUSY);
    ck_assert_uint_gt(fakes[0].requests, 2);
}
END_TEST

START_TEST(nobody_there_is_unavailable)
{
    omen_close(db);
    omen_options options = { .retries = 1, .timeout_ms = 3000 };
    ck_assert_int_eq(omen_open("tcp://127.0.0.1:1", &options, &db), 0);
    ck_assert_int_eq(write_one(), OMEN_EUNAVAILABLE);
    uint64_t count;
    ck_assert_int_eq(omen_count(db, "c", NULL, &count), OMEN_EUNAVAILABLE);
}
END_TEST

START_TEST(a_dead_endpoint_is_passed_over)
{
    char endpoints[160];
    omen_close(db);
    snprintf(endpoints, sizeof endpoints, "tcp://127.0.0.1:1, %s", fakes[1].url);
    open_client(endpoints, 10000);
    ck_assert_int_eq(write_one(), 0);
    ck_assert_uint_eq(fakes[1].op_count, 1);
}
END_TEST

START_TEST(a_dropped_collection_that_is_gone_after_a_doubt_counts_as_dropped)
{
    SCRIPT(&fakes[0], OMEN_EUNKNOWN);
    SCRIPT(&fakes[1], OMEN_ENOTFOUND);
    ck_assert_int_eq(omen_collection_drop(db, "c"), 0);
    fakes[1].requests = 0;
    ck_assert_int_eq(omen_collection_drop(db, "c"), OMEN_ENOTFOUND);
}
END_TEST

START_TEST(a_change_is_sent_again_under_the_same_op_id)
{
    char *json;
    SCRIPT(&fakes[0], OMEN_EUNKNOWN, OMEN_EUNKNOWN);
    SCRIPT(&fakes[1], OMEN_EUNKNOWN);
    ck_assert_int_eq(omen_cluster(db, "{\"do\":\"rebalance\",\"apply\":true}", &json), 0);
    omen_free(json);
    expect_same_op(&fakes[0], 2);
    expect_same_op(&fakes[1], 2);
    ck_assert_mem_eq(&fakes[1].ops[0], &fakes[0].ops[0], sizeof fakes[0].ops[0]);
    uint64_t first = fakes[0].ops[0].seq;
    for (int i = 0; i < 2; i++) fakes[i].op_count = fakes[i].requests = 0;
    SCRIPT(&fakes[0], OMEN_EUNKNOWN, OMEN_EEXISTS);
    SCRIPT(&fakes[1], OMEN_EUNKNOWN, OMEN_EEXISTS);
    omen_collection_options options = { .dim = 2 };
    /* It is somebody else's: had it been this one, that would be told. */
    ck_assert_int_eq(omen_collection_create(db, "c", &options), OMEN_EEXISTS);
    ck_assert_uint_eq(fakes[0].op_count + fakes[1].op_count, 3);
    ck_assert_mem_eq(&fakes[1].ops[0], &fakes[0].ops[0], sizeof fakes[0].ops[0]);
    ck_assert_uint_gt(fakes[0].ops[0].seq, first);
}
END_TEST

/* A hand-over of leadership is not recorded. Looks, and changes that nobody began, go on elsewhere. */
START_TEST(a_change_without_op_id_is_sent_again_only_when_it_was_not_begun)
{
    char *json;
    const char *apply = "{\"do\":\"rebalance\",\"apply\":true}", *look = "{\"do\":\"status\"}",
               *transfer = "{\"do\":\"leader_transfer\",\"shard_id\":2}";
    SCRIPT(&fakes[0], OMEN_EUNKNOWN);
    ck_assert_int_eq(omen_cluster(db, transfer, &json), OMEN_EUNKNOWN);
    ck_assert_uint_eq(fakes[0].requests + fakes[1].requests, 1);
    ck_assert_uint_eq(fakes[0].ops[0].client, 0);
    fakes[0].requests = 0;
    SCRIPT(&fakes[0], OMEN_EUNAVAILABLE);
    ck_assert_int_eq(omen_cluster(db, apply, &json), 0);
    ck_assert_str_eq(json, "{\"apply\":true,\"do\":\"rebalance\"}");
    omen_free(json);
    ck_assert_uint_eq(fakes[1].requests, 1);
    fakes[1].requests = 0;
    SCRIPT(&fakes[1], OMEN_EUNKNOWN);
    ck_assert_int_eq(omen_cluster(db, look, &json), 0);
    omen_free(json);
    ck_assert_int_eq(omen_cluster(db, "{no json", &json), OMEN_EINVAL);
    ck_assert_int_eq(omen_cluster(db, NULL, &json), OMEN_EINVAL);
    ck_assert_ptr_null(json);
}
END_TEST

/* ---- tokens ---- */

START_TEST(what_was_written_is_asked_for_by_the_next_read)
{
    uint64_t count;
    ck_assert_int_eq(write_one(), 0);
    ck_assert_int_eq(omen_count(db, "c", NULL, &count), 0);
    ck_assert_uint_eq(count, 1234);
    ck_assert_uint_eq(fakes[0].token_count, 1);
    ck_assert_uint_eq(fakes[0].tokens[0].shard, 3);
    ck_assert_uint_eq(fakes[0].tokens[0].sequence, 1);
}
END_TEST

START_TEST(tokens_of_a_restored_cluster_replace_the_old_ones)
{
    uint64_t count;
    ck_assert_int_eq(write_one(), 0);
    fakes[0].incarnation = 6;
    ck_assert_int_eq(omen_count(db, "c", NULL, &count), 0); /* refused once, then asked without */
    ck_assert_int_eq(omen_count(db, "c", NULL, &count), 0);
    ck_assert_uint_eq(fakes[0].tokens[0].incarnation, 6);
}
END_TEST

START_TEST(tokens_are_bounded_and_keep_the_highest_sequence)
{
    static struct token_table table;
    tokens_init(&table);
    for (uint64_t shard = 2 * CLIENT_TOKENS_MAX; shard > 0; shard--)
        tokens_merge(&table, &(struct token){ 1, shard, 10 }, 1);
    ck_assert_uint_eq(table.count, CLIENT_TOKENS_MAX);
    ck_assert_uint_eq(table.items[0].shard, 1); /* those heard of last are kept, in order */
    ck_assert_uint_eq(table.items[CLIENT_TOKENS_MAX - 1].shard, CLIENT_TOKENS_MAX);
    tokens_merge(&table, &(struct token){ 1, 1, 7 }, 1);
    ck_assert_uint_eq(table.items[0].sequence, 10);
    tokens_merge(&table, &(struct token){ 1, 1, 12 }, 1);
    ck_assert_uint_eq(table.items[0].sequence, 12);
    tokens_fini(&table);
}
END_TEST

/* ---- arguments and results ---- */

START_TEST(a_wrong_payload_is_named_and_nothing_is_sent)
{
    omen_id ids[2] = { { .number = 1 }, { .number = 2 } };
    float vectors[2 * DIM] = { 0 };
    const char *payloads[2] = { "{}", "{\"a\": }" };
    ck_assert_int_eq(omen_upsert(db, "c", ids, vectors, DIM, payloads, 2, NULL), OMEN_EINVAL);
    ck_assert_msg(strncmp(omen_last_error(), "payloads[1]: ", 13) == 0, "%s", omen_last_error());
    ck_assert_str_eq(omen_last_error_field(), "payloads[1]");
    omen_search_options options = { .filter = "{\"must\": [{\"key\": \"a\", \"rnage\": {}}]}" };
    omen_results *results;
    ck_assert_int_eq(omen_search(db, "c", VECTOR, DIM, &options, &results), OMEN_EINVAL);
    ck_assert_str_eq(omen_last_error_field(), "filter.must[0].rnage");
    ck_assert_uint_eq(fakes[0].requests, 0);
}
END_TEST

START_TEST(limits_are_checked_before_anything_is_sent)
{
    static float vectors[DIM];
    omen_id id = { .number = 1 };
    ck_assert_int_eq(omen_upsert(db, "c", &id, vectors, DIM, NULL, OMEN_BATCH_POINTS_MAX + 1, NULL),
            OMEN_ETOOBIG);
    ck_assert_int_eq(omen_upsert(db, "c", &id, vectors, OMEN_DIM_MAX + 1, NULL, 1, NULL), OMEN_EINVAL);
    ck_assert_int_eq(omen_upsert(db, "c", &id, vectors, DIM, NULL, 0, NULL), OMEN_EINVAL);
    ck_assert_int_eq(omen_upsert(db, "c", &id, NULL, DIM, NULL, 1, NULL), OMEN_EINVAL);
    omen_results *results;
    ck_assert_int_eq(omen_scroll(db, "c", "no cursor", 0, NULL, NULL, &results), OMEN_EINVAL);
    ck_assert_uint_eq(fakes[0].requests, 0);
}
END_TEST

START_TEST(results_outlive_the_client)
{
    omen_search_options options = { .k = 1, .select = { .with_payload = true, .with_vectors = true } };
    omen_results *results;
    ck_assert_int_eq(omen_search(db, "c", VECTOR, DIM, &options, &results), 0);
    omen_close(db);
    db = NULL;
    ck_assert_uint_eq(results->count, 1);
    ck_assert_uint_eq(results->rows_scanned, 77);
    ck_assert(results->higher_is_nearer);
    const omen_point *point = &results->points[0];
    ck_assert_uint_eq(point->id.number, 42);
    ck_assert(point->score == 0.5f);
    ck_assert_uint_eq(point->version, 9);
    ck_assert_str_eq(point->payload_json, "{\"n\":7}");
    ck_assert_str_eq(point->shard_key_json, "\"a\\\"\"");
    ck_assert_uint_eq(point->vector_count, 1);
    ck_assert_mem_eq(point->vectors[0].data, VECTOR, sizeof VECTOR);
    omen_results_free(results);
}
END_TEST

START_TEST(reads_carry_the_mark_of_a_stale_answer)
{
    omen_id id = { .number = 1 };
    omen_select select = { .consistency = "eventual" };
    omen_count_options counting = { .consistency = "eventual" };
    omen_count_result count;
    omen_results *results;
    for (int stale = 0; stale < 2; stale++) {
        fakes[0].stale = stale;
        ck_assert_int_eq(omen_count_with(db, "c", NULL, &counting, &count), 0);
        ck_assert_int_eq(count.stale, stale);
        ck_assert_uint_eq(count.points, 1234);
        ck_assert_int_eq(fakes[0].consistency, CONSISTENCY_EVENTUAL);
        ck_assert_int_eq(omen_get(db, "c", &id, NULL, 1, &select, &results), 0);
        ck_assert_int_eq(results->stale, stale);
        ck_assert_int_eq(fakes[0].consistency, CONSISTENCY_EVENTUAL);
        omen_results_free(results);
        ck_assert_int_eq(omen_scroll(db, "c", NULL, 1, NULL, &select, &results), 0);
        ck_assert_int_eq(results->stale, stale);
        ck_assert_int_eq(fakes[0].consistency, CONSISTENCY_EVENTUAL);
        omen_results_free(results);
        ck_assert_int_eq(omen_count_with(db, "c", NULL, NULL, &count), 0);
        ck_assert_int_eq(fakes[0].consistency, CONSISTENCY_SESSION);
    }
    select.consistency = counting.consistency = "now";
    ck_assert_int_eq(omen_count_with(db, "c", NULL, &counting, &count), OMEN_EINVAL);
    ck_assert_int_eq(omen_get(db, "c", &id, NULL, 1, &select, &results), OMEN_EINVAL);
    ck_assert_int_eq(omen_scroll(db, "c", NULL, 1, NULL, &select, &results), OMEN_EINVAL);
}
END_TEST

START_TEST(a_scroll_goes_on_from_its_cursor)
{
    omen_results *page, *next;
    ck_assert_int_eq(omen_scroll(db, "c", NULL, 1, NULL, NULL, &page), 0);
    ck_assert_str_eq(page->next_cursor, "00ff78");
    ck_assert_int_eq(omen_scroll(db, "c", page->next_cursor, 1, NULL, NULL, &next),
            0); /* the server compares */
    ck_assert_ptr_null(next->next_cursor);
    omen_results_free(page);
    omen_results_free(next);
}
END_TEST

START_TEST(every_failing_allocation_of_a_request_is_an_error)
{
    omen_id ids[3] = { { .number = 1 }, { .number = 2 }, { .is_uuid = true, .uuid = { 1 } } };
    float vectors[3 * DIM] = { 0 };
    const char *payloads[3] = { "{\"a\": [1, 2, 3]}", NULL, "{\"b\": \"text\"}" };
    omen_vectors column = { "", vectors, DIM };
    struct write_args args = { .op = WIRE_UPSERT,
        .collection = "c",
        .ids = ids,
        .payloads_json = payloads,
        .columns = &column,
        .column_count = 1,
        .count = 3 };
    struct err err;
    enum omen_err rc = OMEN_ENOMEM;
    uint64_t n = 0;
    while (rc == OMEN_ENOMEM) {
        ck_assert_uint_lt(n, 1000);
        /* A client without network, and fresh: it has no warm buffers. */
        struct omen_client *client = mem_must_calloc(1, sizeof *client);
        tokens_init(&client->tokens);
        pthread_mutex_init(&client->scratch_lock, NULL);
        atomic_store(&client->version, 1);
        struct wire_request request;
        struct attempts a;
        attempts_begin(client, WIRE_UPSERT, &a);
        mem_fail_at(++n);
        struct scratch *s = scratch_take(client);
        rc = s == NULL ? OMEN_ENOMEM : build_write(client, &args, s, &request, &err);
        if (rc == OMEN_OK) rc = client_encode(client, &request, &s->arena, &a, &s->message, &err);
        mem_fail_at(0);
        ck_assert_msg(rc == OMEN_OK || rc == OMEN_ENOMEM, "%s", err.message);
        scratch_give(client, s);
        omen_close(client);
    }
    ck_assert_uint_gt(n, 3);
}
END_TEST

/* ---- pipeline ---- */

static atomic_uint_fast64_t acked;

static void count_ack(void *arg, size_t count)
{
    (void)arg;
    atomic_fetch_add(&acked, count);
}

START_TEST(a_pipeline_applies_every_point_once_whatever_is_lost)
{
    enum { BATCHES = 60, POINTS = 10 };
    fakes[0].fail_every = fakes[1].fail_every = 3;
    atomic_store(&acked, 0);
    omen_pipeline *pipeline;
    ck_assert_int_eq(omen_pipeline_open(db, "c", 4, &pipeline), 0);
    omen_pipeline_on_ack(pipeline, count_ack, NULL);
    for (uint64_t batch = 0; batch < BATCHES; batch++) {
        omen_id ids[POINTS];
        float vectors[POINTS * DIM] = { 0 };
        const char *payloads[POINTS];
        for (uint64_t i = 0; i < POINTS; i++) ids[i] = (omen_id){ .number = batch * POINTS + i };
        for (int i = 0; i < POINTS; i++) payloads[i] = "{\"n\": 7}";
        ck_assert_int_eq(omen_pipeline_upsert(pipeline, ids, vectors, DIM, payloads, POINTS), 0);
    }
    uint64_t acknowledged;
    ck_assert_msg(omen_pipeline_finish(pipeline, &acknowledged) == 0, "%s", omen_last_error());
    ck_assert_uint_eq(acknowledged, BATCHES * POINTS);
    ck_assert_uint_eq(atomic_load(&acked), BATCHES * POINTS);
    /* The servers share no memory of op ids here: together they saw exactly BATCHES distinct ones. */
    uint32_t distinct = fakes[0].applied_count;
    for (uint32_t i = 0; i < fakes[1].applied_count; i++)
        distinct += !already_applied(&fakes[0], fakes[1].applied[i]);
    ck_assert_uint_eq(distinct, BATCHES);
    ck_assert_uint_gt(fakes[0].op_count + fakes[1].op_count, BATCHES); /* something was retried */
}
END_TEST

START_TEST(a_pipeline_tells_its_first_error)
{
    enum omen_err full[64];
    for (int i = 0; i < 64; i++) full[i] = OMEN_EFULL;
    script(&fakes[0], 64, full);
    omen_pipeline *pipeline;
    ck_assert_int_eq(omen_pipeline_open(db, "c", 2, &pipeline), 0);
    omen_id id = { .number = 1 };
    omen_code rc = 0;
    for (int i = 0; rc == 0 && i < 50; i++) rc = omen_pipeline_upsert(pipeline, &id, VECTOR, DIM, NULL, 1);
    ck_assert_int_eq(rc, OMEN_EFULL);
    uint64_t acknowledged = 9;
    ck_assert_int_eq(omen_pipeline_finish(pipeline, &acknowledged), OMEN_EFULL);
    ck_assert_uint_eq(acknowledged, 0);
}
END_TEST

START_TEST(a_pipeline_survives_a_batch_it_refuses)
{
    omen_pipeline *pipeline;
    ck_assert_int_eq(omen_pipeline_open(db, "c", 1, &pipeline), 0);
    omen_id id = { .number = 1 };
    const char *wrong = "[", *right = "{}";
    ck_assert_int_eq(omen_pipeline_upsert(pipeline, &id, VECTOR, DIM, &wrong, 1), OMEN_EINVAL);
    ck_assert_int_eq(omen_pipeline_upsert(pipeline, &id, VECTOR, DIM, &right, 1), 0);
    uint64_t acknowledged;
    ck_assert_int_eq(omen_pipeline_finish(pipeline, &acknowledged), 0);
    ck_assert_uint_eq(acknowledged, 1);
}
END_TEST

static Suite *client_suite(void)
{
    Suite *suite = suite_create("client");
    TCase *tc = tcase_create("client");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, a_retried_write_keeps_its_op_id);
    tcase_add_test(tc, the_next_write_has_another_op_id);
    tcase_add_test(tc, an_unknown_outcome_is_retried_elsewhere_under_the_same_op_id);
    tcase_add_test(tc, an_uncertain_write_is_never_told_as_failed);
    tcase_add_test(tc, a_certain_failure_is_told_as_it_is);
    tcase_add_test(tc, a_clock_that_is_ahead_is_put_right_by_what_the_server_says);
    tcase_add_test(tc, a_write_done_in_some_shards_is_never_told_as_failed);
    tcase_add_test(tc, busy_is_waited_out_until_the_deadline);
    tcase_add_test(tc, nobody_there_is_unavailable);
    tcase_add_test(tc, a_dead_endpoint_is_passed_over);
    tcase_add_test(tc, a_dropped_collection_that_is_gone_after_a_doubt_counts_as_dropped);
    tcase_add_test(tc, a_change_is_sent_again_under_the_same_op_id);
    tcase_add_test(tc, a_change_without_op_id_is_sent_again_only_when_it_was_not_begun);
    tcase_add_test(tc, what_was_written_is_asked_for_by_the_next_read);
    tcase_add_test(tc, tokens_of_a_restored_cluster_replace_the_old_ones);
    tcase_add_test(tc, tokens_are_bounded_and_keep_the_highest_sequence);
    tcase_add_test(tc, a_wrong_payload_is_named_and_nothing_is_sent);
    tcase_add_test(tc, limits_are_checked_before_anything_is_sent);
    tcase_add_test(tc, results_outlive_the_client);
    tcase_add_test(tc, reads_carry_the_mark_of_a_stale_answer);
    tcase_add_test(tc, a_scroll_goes_on_from_its_cursor);
    tcase_add_test(tc, a_pipeline_applies_every_point_once_whatever_is_lost);
    tcase_add_test(tc, a_pipeline_tells_its_first_error);
    tcase_add_test(tc, a_pipeline_survives_a_batch_it_refuses);
    suite_add_tcase(suite, tc);
    TCase *alone = tcase_create("alone"); /* no other thread allocates */
    tcase_add_test(alone, every_failing_allocation_of_a_request_is_an_error);
    suite_add_tcase(suite, alone);
    return suite;
}

int main(void)
{
    SRunner *runner = srunner_create(client_suite());
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}
