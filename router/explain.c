/* What is told of a search that asked to be explained: what each shard said of itself (node/shard_explain.c), the shards
 * that were not asked and why, sums, measured recall, time per stage. PROTOCOL.md, *Explain*, lists the members.
 *
 * A shard's word is copied, not understood: releases may say more. Only what counts searches within the shard's call is made
 * to count those of the request. Bounded by WIRE_EXPLAIN_BYTES_MAX: of shards that no longer fit the parts are left out.
 * Threads: that of the merge. */
#include "common/err.h"

#include <math.h>
#include <string.h>

#include "router/request.h"

#define EXPLAIN_REST_BYTES (256u << 10) /* kept for all that is not of shards */
#define EXPLAIN_SHARD_ADDED 512u        /* what is added to a shard's own */

static const char *const TOTALS[] = { "segments_searched", "segments_pruned", "tail_rows", "hops",
    "rows_scanned", "distances", "estimates", "rescored", "bytes_read", "filter_evaluated" };
#define TOTAL_COUNT (sizeof TOTALS / sizeof *TOTALS)

/* ---- reading and writing members ---- */

static struct doc get(struct doc object, const char *key)
{
    if (object.data == NULL || doc_type(object) != DOC_OBJECT) return (struct doc){ NULL, 0 };
    return doc_member(object, (struct bytes){ (const uint8_t *)key, strlen(key) });
}

/* 0 when it is no number of 0 or more. */
static uint64_t get_u64(struct doc object, const char *key)
{
    struct doc v = get(object, key);
    return v.data == NULL || doc_type(v) != DOC_I64 || doc_i64(v) < 0 ? 0 : (uint64_t)doc_i64(v);
}

static bool is(struct bytes key, const char *text)
{
    return key.len == strlen(text) && memcmp(key.data, text, key.len) == 0;
}

static void put_name(struct doc_builder *b, const char *key) { doc_key(b, key, strlen(key)); }

static void put_u64(struct doc_builder *b, const char *key, uint64_t v)
{
    put_name(b, key);
    doc_put_i64(b, v > INT64_MAX ? INT64_MAX : (int64_t)v);
}

static void put_f64(struct doc_builder *b, const char *key, double v)
{
    put_name(b, key);
    doc_put_f64(b, v);
}

static void put_text(struct doc_builder *b, const char *key, const char *text)
{
    put_name(b, key);
    doc_put_string(b, text, strlen(text));
}

/* ---- a shard's own word ---- */

static bool is_below(struct doc v, uint32_t count)
{
    return doc_type(v) == DOC_I64 && doc_i64(v) >= 0 && doc_i64(v) < count;
}

/* The same part, counting by the request's searches; one that names a search that was not asked is dropped. */
static void put_part(struct doc_builder *b, struct doc part, const uint32_t *positions, uint32_t count)
{
    struct doc_iter it = doc_iter(part);
    struct bytes key;
    struct doc value, search = get(part, "search");
    if (doc_type(part) != DOC_OBJECT) return;
    if (search.data != NULL && !is_below(search, count)) return;
    doc_begin_object(b);
    while (doc_next(&it, &key, &value)) {
        doc_key(b, (const char *)key.data, key.len);
        if (is(key, "search"))
            doc_put_i64(b, positions[doc_i64(value)]);
        else
            doc_put_doc(b, value);
    }
    doc_end(b);
}

static void put_parts(struct doc_builder *b, struct doc parts, const uint32_t *positions, uint32_t count)
{
    struct doc_iter it = doc_iter(parts);
    struct doc part;
    put_name(b, "parts");
    doc_begin_array(b);
    while (doc_next(&it, NULL, &part)) put_part(b, part, positions, count);
    doc_end(b);
}

static void recall_read(struct doc counts, struct recall_counts *out)
{
    *out = (struct recall_counts){ .searches = get_u64(counts, "searches"),
        .imperfect = get_u64(counts, "imperfect"),
        .found = get_u64(counts, "found"),
        .sought = get_u64(counts, "sought"),
        .shares = get_u64(counts, "shares"),
        .squares = get_u64(counts, "squares") };
    if (!recall_counts_valid(out)) *out = (struct recall_counts){ 0 };
}

static void put_recall(struct doc_builder *b, const struct recall_counts *counts, uint64_t boost)
{
    if (counts->searches == 0) return;
    struct recall_estimate estimate = recall_estimate(counts);
    put_name(b, "recall");
    doc_begin_object(b);
    put_f64(b, "measured", estimate.recall);
    put_f64(b, "low", estimate.low);
    put_f64(b, "high", estimate.high);
    put_u64(b, "searches", counts->searches);
    put_u64(b, "boost", boost);
    doc_end(b);
}

/* Members that are the router's to say, or said otherwise. */
static bool is_own(struct bytes key)
{
    static const char *const names[] = { "shard", "searches", "hits", "error", "message", "parts",
        "parts_left_out", "recall" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (is(key, names[i])) return true;
    return false;
}

static void put_shard_said(struct doc_builder *b, struct doc said)
{
    struct doc_iter it = doc_iter(said);
    struct bytes key;
    struct doc value;
    while (doc_next(&it, &key, &value)) {
        if (is_own(key)) continue;
        doc_key(b, (const char *)key.data, key.len);
        doc_put_doc(b, value);
    }
}

/* ---- all shards ---- */

struct explain {
    struct request *r;
    struct doc_builder *b;
    size_t left; /* bytes, for shards */
    uint64_t totals[TOTAL_COUNT];
    struct recall_counts recall;
    uint64_t boost; /* the highest */
};

static bool take(struct explain *e, size_t bytes)
{
    if (bytes + EXPLAIN_SHARD_ADDED > e->left) return false;
    e->left -= bytes + EXPLAIN_SHARD_ADDED;
    return true;
}

static void put_shard(struct explain *e, const struct shard_call *call, const uint32_t *positions)
{
    struct doc_builder *b = e->b;
    struct doc said = call->out.search.explain, parts = get(said, "parts");
    struct recall_counts recall;
    uint64_t hits = 0, boost = get_u64(said, "boost"), out = get_u64(said, "parts_left_out");
    for (uint32_t i = 0; i < call->in.search.count; i++) hits += call->out.search.counts[i];
    for (size_t i = 0; i < TOTAL_COUNT; i++) e->totals[i] += get_u64(get(said, "totals"), TOTALS[i]);
    recall_read(get(said, "recall"), &recall);
    recall_counts_add(&e->recall, &recall);
    if (boost > e->boost) e->boost = boost;
    put_u64(b, "hits", hits);
    put_recall(b, &recall, boost);
    bool whole = take(e, said.len);
    if (whole || take(e, said.len - parts.len)) put_shard_said(b, said);
    if (whole)
        put_parts(b, parts, positions, call->in.search.count);
    else if (parts.data != NULL)
        out += doc_count(parts);
    if (out > 0) put_u64(b, "parts_left_out", out);
}

static void put_shards(struct explain *e)
{
    struct request *r = e->r;
    put_name(e->b, "shards");
    doc_begin_array(e->b);
    for (uint32_t c = 0; c < r->call_count; c++) {
        const struct shard_call *call = &r->calls[c];
        doc_begin_object(e->b);
        put_u64(e->b, "shard", call->shard_id);
        put_u64(e->b, "searches", call->in.search.count);
        if (call->code == OMEN_OK) {
            put_shard(e, call, r->call_searches[c]);
        } else {
            put_text(e->b, "error", err_name(call->code));
            put_text(e->b, "message", call->err.message);
        }
        doc_end(e->b);
    }
    doc_end(e->b);
}

/* Of the shards that no search was sent to; there is one reason. */
static void put_pruned(struct explain *e)
{
    struct request *r = e->r;
    put_name(e->b, "shards_pruned");
    doc_begin_array(e->b);
    for (uint32_t s = 0; s < r->collection->shard_count; s++) {
        bool asked = false;
        for (uint32_t c = 0; c < r->call_count; c++) asked |= r->call_shards[c] == s;
        if (asked) continue;
        doc_begin_object(e->b);
        put_u64(e->b, "shard", r->collection->shards[s].shard_id);
        put_text(e->b, "why", "shard_key");
        doc_end(e->b);
    }
    doc_end(e->b);
}

static void put_stage(struct doc_builder *b, const char *name, uint64_t from_ns, uint64_t to_ns)
{
    put_f64(b, name, (double)(to_ns - from_ns) / 1000);
}

static void put_stages(struct explain *e)
{
    const struct request *r = e->r;
    uint64_t now_ns = clock_monotonic_ns(r->router->options.clock);
    uint64_t first_ns = r->by_id_ns != 0 ? r->by_id_ns : r->scatter_ns;
    put_name(e->b, "us");
    doc_begin_object(e->b);
    put_stage(e->b, "total", r->started_ns, now_ns);
    put_stage(e->b, "plan", r->started_ns, first_ns);
    if (r->by_id_ns != 0) put_stage(e->b, "by_id", r->by_id_ns, r->scatter_ns);
    put_stage(e->b, "shards", r->scatter_ns, r->gather_ns);
    put_stage(e->b, "merge", r->gather_ns, now_ns);
    doc_end(e->b);
}

static void put_all(struct explain *e)
{
    static const char *const consistency[] = { [CONSISTENCY_SESSION] = "session",
        [CONSISTENCY_EVENTUAL] = "eventual",
        [CONSISTENCY_LINEARIZABLE] = "linearizable" };
    const struct request *r = e->r;
    doc_begin_object(e->b);
    put_text(e->b, "collection", r->collection->name);
    put_text(e->b, "consistency", consistency[r->wire.consistency]);
    put_u64(e->b, "epoch", r->map->epoch);
    if (r->restarts > 0) put_u64(e->b, "restarts", r->restarts);
    put_f64(e->b, "recall_target",
            round((double)r->collection->recall_target * 1e6) / 1e6); /* 0.95f as 0.95 */
    put_u64(e->b, "shards_total", r->collection->shard_count);
    put_shards(e);
    put_pruned(e);
    put_recall(e->b, &e->recall, e->boost);
    put_name(e->b, "totals");
    doc_begin_object(e->b);
    for (size_t i = 0; i < TOTAL_COUNT; i++) put_u64(e->b, TOTALS[i], e->totals[i]);
    doc_end(e->b);
    put_stages(e);
    doc_end(e->b);
}

enum omen_err explain_merge(struct request *r)
{
    struct explain e = { .r = r,
        .b = doc_builder_new(WIRE_EXPLAIN_BYTES_MAX),
        .left = WIRE_EXPLAIN_BYTES_MAX - EXPLAIN_REST_BYTES };
    struct doc doc;
    if (e.b == NULL) return err_set(&r->reply.err, OMEN_ENOMEM, "", "no memory to explain the search");
    put_all(&e);
    enum omen_err rc = doc_builder_finish(e.b, &doc, &r->reply.err);
    if (rc == OMEN_OK) {
        uint8_t *copy = arena_copy(&r->arena, doc.data, doc.len);
        if (copy == NULL)
            rc = err_set(&r->reply.err, OMEN_ENOMEM, "", "the request needs too much memory");
        else
            r->reply.search.explain = (struct doc){ copy, doc.len };
    }
    doc_builder_free(e.b);
    return rc;
}
