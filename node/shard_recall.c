/* Live recall of a shard: searches are kept as they are answered, and answered again exactly, a batch in one pass over
 * the rows, at a view of then; see recall_meter.h for what is compared and concluded. */
#include "common/err.h"

#include <string.h>

#include "common/log.h"
#include "node/shard_host_impl.h"

#define RECALL_ARENA_FIRST_BYTES (256u << 10)

void shard_recall_keep(struct shard_read *read, const struct search_params *params)
{
    struct shard_host *shard = read->state.shard;
    const struct shard_call *call = read->call;
    if (!shard->env->recalls) return;
    for (uint32_t i = 0; i < call->in.search.count; i++) {
        if (call->in.search.searches[i].exact || params[i].k > RECALL_K_MAX) continue;
        uint32_t slot = recall_meter_slot(&shard->recall);
        if (slot < RECALL_SAMPLES_MAX)
            recall_meter_keep(&shard->recall, slot, &params[i], shard->schema.fields[params[i].field].dim,
                    call->out.search.hits[i], call->out.search.counts[i], read->view.sequence,
                    read->view.now_ms, read->boost);
    }
}

/* One batch under way. */
struct recall_batch {
    struct shard_host *shard;
    _Atomic bool *stop;
    struct arena arena;
    struct recall_sample *samples[RECALL_SAMPLES_MAX];
    uint32_t count;
};

static bool batch_stop(void *arg)
{
    const struct recall_batch *b = arg;
    return atomic_load(b->stop) || atomic_load_explicit(&b->shard->stopping, memory_order_relaxed) ||
            atomic_load(&b->shard->store) == NULL;
}

/* Drop samples that another effort gave, or whose schema or filter we cannot ask again. */
static void batch_sift(struct recall_batch *b)
{
    uint32_t boost = atomic_load(&b->shard->recall.boost), kept = 0;
    for (uint32_t i = 0; i < b->count; i++) {
        struct recall_sample *s = b->samples[i];
        struct err ignored;
        bool good = s->boost == boost;
        if (good && s->params.filter_doc.data != NULL)
            good = filter_parse(s->params.filter_doc, &b->arena, &s->params.filter, &ignored) == OMEN_OK;
        if (good)
            b->samples[kept++] = s;
        else
            recall_sample_free(s);
    }
    b->count = kept;
}

static bool batch_compare(struct recall_batch *b, const struct hit *const *hits, const uint32_t *counts,
        struct recall_counts *out)
{
    for (uint32_t i = 0; i < b->count; i++) {
        struct recall_row *rows = arena_alloc(&b->arena, sizeof *rows * ((size_t)counts[i] + 1));
        uint32_t found, sought;
        if (rows == NULL || batch_stop(b)) return false;
        for (uint32_t j = 0; j < counts[i]; j++)
            rows[j] = (struct recall_row){ point_key_make(hits[i][j].point.id, hits[i][j].point.key),
                hits[i][j].point.version, hits[i][j].distance };
        recall_sample_compare(b->samples[i], rows, counts[i], &found, &sought);
        recall_counts_take(out, found, sought);
    }
    return true;
}

/* The exact answers, at one view. Expired points: what was gone for a search is gone now. */
static bool batch_answer(struct recall_batch *b, struct store_view *view, struct recall_counts *counts_out)
{
    const struct read_limit limit = { batch_stop, b };
    struct search_params *params = arena_alloc(&b->arena, sizeof *params * b->count);
    struct hit **hits = arena_calloc(&b->arena, b->count, sizeof *hits);
    uint32_t *counts = arena_calloc(&b->arena, b->count, sizeof *counts);
    struct err err;
    if (params == NULL || hits == NULL || counts == NULL) return false;
    for (uint32_t i = 0; i < b->count; i++) {
        params[i] = b->samples[i]->params;
        store_view_at(view, b->samples[i]->now_ms);
    }
    if (shard_store_search(view, params, b->count, &limit, &b->arena, hits, counts, NULL, &err) != OMEN_OK)
        return false;
    return batch_compare(b, (const struct hit *const *)hits, counts, counts_out);
}

static void batch_conclude(struct recall_batch *b, struct shard_store *store,
        const struct recall_counts *counts)
{
    struct shard_host *shard = b->shard;
    struct shard_index_stats index;
    float target = atomic_load(&shard->recall_target);
    shard_index_stats(store, &index);
    if (target <= 0) target = 0.95f;
    struct recall_verdict v = recall_meter_told(&shard->recall, counts, target, index.newest,
            clock_monotonic_ns(shard->env->clock));
    if (v.renew) shard_index_renew(store);
    if (v.step == RECALL_STAY) return;
    LOG_INFO("recall.effort",
            "shard=%llu collection=%s measured=%.4f low=%.4f high=%.4f target=%.4f boost=%u renew=%d",
            (unsigned long long)shard->shard_id, shard->collection_name, v.estimate.recall, v.estimate.low,
            v.estimate.high, (double)target, v.boost, (int)v.renew);
}

uint32_t shard_host_recall_kept(struct shard_host *shard) { return recall_meter_kept(&shard->recall); }

uint32_t shard_host_recall(struct shard_host *shard, _Atomic bool *stop)
{
    struct recall_batch b = { .shard = shard, .stop = stop };
    struct recall_counts counts = { 0 };
    struct store_view view;
    struct err err;
    struct shard_store *store = shard_host_store_hold(shard);
    if (store == NULL) return 0;
    arena_init(&b.arena, RECALL_ARENA_FIRST_BYTES, shard->env->read_arena_bytes_max);
    b.count = recall_meter_take(&shard->recall, b.samples);
    batch_sift(&b);
    if (b.count > 0 && store_view_try_acquire(store, &view, &err) == OMEN_OK) {
        store_view_at(&view, clock_wall_ms(shard->env->clock));
        if (batch_answer(&b, &view, &counts)) batch_conclude(&b, store, &counts);
        store_view_release(&view);
    }
    shard_host_store_unhold(shard);
    for (uint32_t i = 0; i < b.count; i++) recall_sample_free(b.samples[i]);
    arena_fini(&b.arena);
    return (uint32_t)counts.searches;
}

void shard_host_recall_stats(struct shard_host *shard, struct shard_recall_stats *stats_out)
{
    recall_meter_read(&shard->recall, &stats_out->counts, &stats_out->compared);
    stats_out->boost = atomic_load(&shard->recall.boost);
}
