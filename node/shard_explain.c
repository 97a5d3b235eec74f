/* What a shard tells of a search that is to be explained: who answered, from which state, and part by part what storage
 * did (storage/search_explain.h). PROTOCOL.md, *Explain*, lists the members; what is zero, unknown or does not apply is
 * left out.
 *
 * Bounded: EXPLAIN_PARTS_MAX parts are listed, the sums count all. Without memory for it the search is answered all the
 * same. Threads: the searching one. Cost: nothing when not asked. */
#include "common/err.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "common/mem.h"
#include "node/member/fields.h"
#include "node/shard_host_impl.h"

#define EXPLAIN_PARTS_MAX 900u
#define EXPLAIN_PART_BYTES_MAX 2200u /* about 35 members of at most 30 bytes, a path, a field's name */
static_assert(EXPLAIN_PARTS_MAX * EXPLAIN_PART_BYTES_MAX + 16384 < EXPLAIN_SHARD_BYTES_MAX,
        "all parts fit what may be sent");

static uint64_t explain_now(void *arg) { return clock_monotonic_ns(arg); }

void shard_explain_begin(struct shard_read *read)
{
    if (!read->call->in.search.explain) return;
    read->explain = (struct search_explain){ .now_ns = explain_now,
        .clock_arg = read->state.shard->env->clock };
    read->view.explain = &read->explain;
}

/* 0.95f as 0.95. */
static void put_share(struct doc_builder *b, const char *key, float v)
{
    if (v <= 0) return;
    doc_key(b, key, strlen(key));
    doc_put_f64(b, round((double)v * 1e6) / 1e6);
}

static void put_count(struct doc_builder *b, const char *key, uint64_t v)
{
    if (v != 0) put_u64(b, key, v);
}

/* 0 is a number here. */
static void put_known(struct doc_builder *b, const char *key, uint64_t v)
{
    if (v != EXPLAIN_UNKNOWN) put_u64(b, key, v);
}

static void put_ns(struct doc_builder *b, const char *key, uint64_t ns)
{
    doc_key(b, key, strlen(key));
    doc_put_f64(b, (double)ns / 1000);
}

/* ---- parts ---- */

static void put_index(struct doc_builder *b, const struct explain_index *index)
{
    if (index->kind == NULL) return;
    put_text(b, "index", index->kind);
    put_text(b, "layout", index->layout);
    put_text(b, "quant", index->quant);
    put_count(b, "bits", index->bits);
    put_text(b, "memory", index->pinned ? "pinned" : "mapped");
}

static void put_filter(struct doc_builder *b, const struct explain_part *p)
{
    if (p->filter != EXPLAIN_FILTER_NONE) put_text(b, "filter", explain_filter_name(p->filter));
    char by[EXPLAIN_STRUCTURES_BYTES];
    explain_structures_text(p->filter_by, by);
    if (by[0] != '\0') put_text(b, "filter_by", by);
    if (p->pruned_by != EXPLAIN_NOT_PRUNED) put_text(b, "pruned_by", explain_prune_name(p->pruned_by));
    if (p->pruned_path != NULL) put_text(b, "pruned_path", p->pruned_path);
    put_known(b, "estimated", p->estimated);
    put_known(b, "real", p->real);
    put_count(b, "filter_evaluated", p->filter_evaluated);
}

static void put_part(struct doc_builder *b, const struct explain_part *p,
        const struct collection_schema *schema)
{
    doc_begin_object(b);
    if (p->search != EXPLAIN_ALL_SEARCHES) put_u64(b, "search", p->search);
    if (p->segment != EXPLAIN_TAIL) put_u64(b, "segment", p->segment);
    put_text(b, "field", schema->fields[p->field].name);
    put_u64(b, "rows", p->rows);
    put_text(b, "plan", explain_plan_name(p->plan));
    put_text(b, "why", explain_why_name(p->why));
    if (p->given_up != EXPLAIN_PRUNED) put_text(b, "given_up", explain_plan_name(p->given_up));
    put_filter(b, p);
    put_index(b, &p->index);
    put_share(b, "recall_target", p->recall_target);
    put_count(b, "effort", p->effort);
    put_count(b, "rounds", p->rounds);
    put_count(b, "hops", p->hops);
    put_count(b, "rows_scanned", p->rows_scanned);
    put_count(b, "distances", p->distances);
    put_count(b, "estimates", p->estimates);
    put_count(b, "rescored", p->rescored);
    put_count(b, "bytes_read", p->bytes_read);
    put_count(b, "found", p->found);
    put_ns(b, "us", p->ns);
    doc_end(b);
}

static void put_parts(struct doc_builder *b, const struct search_explain *explain,
        const struct collection_schema *schema)
{
    uint32_t listed = explain->count < EXPLAIN_PARTS_MAX ? explain->count : EXPLAIN_PARTS_MAX;
    doc_key(b, "parts", 5);
    doc_begin_array(b);
    for (uint32_t i = 0; i < listed; i++) put_part(b, &explain->parts[i], schema);
    doc_end(b);
    put_count(b, "parts_left_out", explain->count - listed);
}

/* ---- the shard ---- */

static void put_totals(struct doc_builder *b, const struct search_explain *explain)
{
    struct explain_part sum = { .segment = 0 };
    uint64_t searched = 0, pruned = 0, tail_rows = 0;
    for (uint32_t i = 0; i < explain->count; i++) {
        const struct explain_part *p = &explain->parts[i];
        sum.hops += p->hops;
        sum.rows_scanned += p->rows_scanned;
        sum.distances += p->distances;
        sum.estimates += p->estimates;
        sum.rescored += p->rescored;
        sum.bytes_read += p->bytes_read;
        sum.filter_evaluated += p->filter_evaluated;
        if (p->segment == EXPLAIN_TAIL)
            tail_rows += p->rows;
        else if (p->plan == EXPLAIN_PRUNED)
            pruned++;
        else
            searched++;
    }
    doc_key(b, "totals", 6);
    doc_begin_object(b);
    put_u64(b, "segments_searched", searched);
    put_u64(b, "segments_pruned", pruned);
    put_u64(b, "tail_rows", tail_rows);
    put_u64(b, "hops", sum.hops);
    put_u64(b, "rows_scanned", sum.rows_scanned);
    put_u64(b, "distances", sum.distances);
    put_u64(b, "estimates", sum.estimates);
    put_u64(b, "rescored", sum.rescored);
    put_u64(b, "bytes_read", sum.bytes_read);
    put_u64(b, "filter_evaluated", sum.filter_evaluated);
    doc_end(b);
}

/* What live searches were measured to get, as counts: whoever has all shards adds them up. */
static void put_recall(struct doc_builder *b, struct shard_host *shard)
{
    struct shard_recall_stats recall;
    shard_host_recall_stats(shard, &recall);
    put_count(b, "boost", recall.boost);
    if (recall.counts.searches == 0) return;
    doc_key(b, "recall", 6);
    doc_begin_object(b);
    put_u64(b, "searches", recall.counts.searches);
    put_u64(b, "imperfect", recall.counts.imperfect);
    put_u64(b, "found", recall.counts.found);
    put_u64(b, "sought", recall.counts.sought);
    put_u64(b, "shares", recall.counts.shares);
    put_u64(b, "squares", recall.counts.squares);
    doc_end(b);
}

static void put_replica(struct doc_builder *b, struct shard_host *shard)
{
    put_u64(b, "replica", shard->replica_id);
    if (shard->group == NULL) {
        put_text(b, "role", "alone");
        return;
    }
    uint64_t lead_term = atomic_load(&shard->group->lead_term);
    put_u64(b, "node", shard->group->node_id);
    put_text(b, "role", lead_term != 0 ? "leader" : "follower");
    put_count(b, "term", lead_term);
}

static void put_shard(struct doc_builder *b, const struct shard_read *read, uint64_t began_ns,
        uint64_t ended_ns)
{
    struct shard_host *shard = read->state.shard;
    struct shard_index_stats index;
    shard_host_index_stats(shard, &index);
    doc_begin_object(b);
    put_replica(b, shard);
    put_u64(b, "sequence", read->view.sequence);
    put_u64(b, "applied", shard_host_applied(shard));
    put_u64(b, "segments", index.segments);
    put_u64(b, "unindexed", index.tail_rows);
    put_share(b, "recall_target", atomic_load_explicit(&shard->recall_target, memory_order_relaxed));
    put_recall(b, shard);
    put_ns(b, "waited_us", began_ns - read->submitted_ns);
    put_ns(b, "engine_us", ended_ns - began_ns);
    if (read->boost >= RECALL_BOOST_MAX) put_bool(b, "made_exact", true);
    put_totals(b, &read->explain);
    put_parts(b, &read->explain, &shard->schema);
    doc_end(b);
}

void shard_explain_end(struct shard_read *read, uint64_t began_ns, uint64_t ended_ns)
{
    struct shard_call *call = read->call;
    struct doc doc;
    struct err ignored;
    struct doc_builder *b = doc_builder_new(EXPLAIN_SHARD_BYTES_MAX);
    if (b == NULL) return;
    put_shard(b, read, began_ns, ended_ns);
    if (doc_builder_finish(b, &doc, &ignored) == OMEN_OK) {
        uint8_t *copy = arena_copy(&read->arena, doc.data, doc.len);
        if (copy != NULL) call->out.search.explain = (struct doc){ copy, doc.len };
    }
    doc_builder_free(b);
}
