/* A search in a segment: the walk gives the nearest rows, the stream says which of them the view sees, the filter
 * which pass. When too few do, more are asked for, four times as many each time; a walk that would have to give a
 * sixteenth of the segment is dearer than scanning it, and the caller does that instead. */
#include <math.h>
#include <string.h>

#include "common/check.h"
#include "common/mem.h"
#include "storage/payload/filter_eval.h"
#include "storage/segment/segment_impl.h"

#define SCAN_SHARE 16u /* of the rows: a scan is cheaper than a walk that has to give that many */
#define WIDEN 4u

static struct segment_scratch *scratch_get(struct segment *s)
{
    pthread_mutex_lock(&s->mutex);
    struct segment_scratch *scratch = s->idle;
    if (scratch != NULL) {
        s->idle = scratch->next;
        s->idle_count--;
    }
    pthread_mutex_unlock(&s->mutex);
    if (scratch != NULL) return scratch;
    scratch = mem_calloc(1, sizeof *scratch);
    if (scratch == NULL) return NULL;
    scratch->scratch = index_scratch_new(s->index);
    if (scratch->scratch != NULL) return scratch;
    mem_free(scratch);
    return NULL;
}

static void scratch_put(struct segment *s, struct segment_scratch *scratch)
{
    pthread_mutex_lock(&s->mutex);
    bool keep = s->idle_count < SEGMENT_SCRATCHES_KEPT;
    if (keep) {
        scratch->next = s->idle;
        s->idle = scratch;
        s->idle_count++;
    }
    pthread_mutex_unlock(&s->mutex);
    if (keep) return;
    index_scratch_free(s->index, scratch->scratch);
    mem_free(scratch->hits);
    mem_free(scratch);
}

/* Whether the view sees the row and the filter passes it; then who it is. */
static bool row_passes(const struct segment *s, const struct segment_query *q, struct row_ref ref,
        struct topk_candidate *out)
{
    const struct block *block = blocks_at(s->blocks, ref.block);
    if (!block_row_visible(block, ref.op, q->view_sequence, q->now_ms)) return false;
    struct entry_op op;
    entry_op_at(&block->entry, ref.op, &op);
    if (q->filter != NULL && !filter_match(q->filter, op.key.id, op.payload)) return false;
    out->key = op.key;
    out->row = 0;
    out->location[0] = ref.block;
    out->location[1] = ref.op;
    return true;
}

static uint32_t hits_count_passing(const struct segment *s, const struct segment_query *q,
        const struct index_hit *hits, uint32_t count, struct explain_part *part)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < count && n < q->k; i++) {
        part->filter_evaluated += q->filter != NULL;
        struct topk_candidate ignored;
        n += row_passes(s, q, s->slots[hits[i].slot], &ignored);
    }
    return n;
}

static void hits_push(const struct segment *s, const struct segment_query *q, const struct index_hit *hits,
        uint32_t count, struct topk *topk, struct explain_part *part)
{
    for (uint32_t i = 0; i < count; i++) {
        struct topk_candidate c;
        if (hits[i].distance > topk_bound(topk)) return; /* they only get farther */
        if (!row_passes(s, q, s->slots[hits[i].slot], &c)) continue;
        c.distance = hits[i].distance;
        part->found += topk_push(topk, &c);
    }
}

static bool hits_reserve(struct segment_scratch *scratch, uint32_t want)
{
    if (scratch->cap >= want) return true;
    mem_free(scratch->hits);
    scratch->hits = mem_alloc(want * sizeof *scratch->hits);
    scratch->cap = scratch->hits == NULL ? 0 : want;
    return scratch->hits != NULL;
}

/* How many nearest rows to ask for first: a filter lets some pass, deletes have taken some. */
static uint32_t first_want(const struct segment *s, const struct segment_query *q)
{
    uint64_t want = q->filter != NULL ? (uint64_t)q->k * 4 + 16 : (uint64_t)q->k + q->k / 8 + 4;
    return want < s->count ? (uint32_t)want : s->count;
}

/* Ask the index and tell what it did. */
static enum omen_err index_ask(struct segment *s, const struct index_search *search,
        struct segment_scratch *scratch, uint32_t *count_out, struct explain_part *part)
{
    struct index_cost cost = { 0 };
    enum omen_err rc = index_search(s->index, search, scratch->scratch, scratch->hits, count_out, &cost);
    part->plan = cost.scans > 0 ? EXPLAIN_SCAN : cost.gathers > 0 ? EXPLAIN_GATHER : EXPLAIN_WALK;
    if (cost.aborted > 0) part->given_up = EXPLAIN_WALK;
    part->hops += cost.hops;
    part->distances += cost.distances + cost.rescored;
    part->estimates += cost.estimates;
    part->rounds++;
    return rc;
}

static enum omen_err walk(struct segment *s, const struct segment_query *q, struct segment_scratch *scratch,
        struct topk *topk, bool *enough_out, struct explain_part *part)
{
    struct index_search search = {
        .query = q->query,
        .recall_target = q->recall_target != 0 ? q->recall_target : s->recall_target,
        .has_distance_max = q->distance_max < INFINITY,
        .distance_max = q->distance_max,
        .stop = q->stop,
        .stop_arg = q->stop_arg,
    };
    uint32_t most = s->count / SCAN_SHARE > 2 * q->k ? s->count / SCAN_SHARE : 2 * q->k;
    if (most > OMEN_K_MAX) most = OMEN_K_MAX;
    *enough_out = false;
    for (uint32_t want = first_want(s, q);; want *= WIDEN) {
        if (want > most && want < s->count) return OMEN_OK;
        if (want > OMEN_K_MAX) return OMEN_OK;
        if (want > s->count) want = s->count;
        if (!hits_reserve(scratch, want)) return OMEN_ENOMEM;
        uint32_t count = 0;
        search.k = want;
        enum omen_err rc = index_ask(s, &search, scratch, &count, part);
        if (rc != OMEN_OK) return rc;
        bool all = count < want || want == s->count; /* nothing else is near enough, or there */
        if (!all && hits_count_passing(s, q, scratch->hits, count, part) < q->k) continue;
        hits_push(s, q, scratch->hits, count, topk, part);
        *enough_out = true;
        return OMEN_OK;
    }
}

enum omen_err segment_search(struct segment *s, const struct segment_query *q, struct topk *topk,
        bool *enough_out, struct explain_part *part)
{
    if (s->count == 0) {
        part->plan = EXPLAIN_PRUNED;
        part->pruned_by = EXPLAIN_PRUNED_ALL_DEAD;
        *enough_out = true;
        return OMEN_OK;
    }
    struct segment_scratch *scratch = scratch_get(s);
    if (scratch == NULL) return OMEN_ENOMEM;
    part->filter = q->filter != NULL ? EXPLAIN_FILTER_PAYLOAD : EXPLAIN_FILTER_NONE;
    enum omen_err rc = walk(s, q, scratch, topk, enough_out, part);
    scratch_put(s, scratch);
    return rc;
}
