/* A search in a segment. The payload index tells which rows pass the filter, or proves that none does; the graph gives
 * the nearest of them, by whatever plan of its own costs least for so many; the stream says which of these the view
 * sees.
 *
 *   nothing can pass: pruned                            exact rows: the graph under them
 *   every row passes: as without a filter               a run of rows: the graph, or a scan, under that run
 *   rows that pass and others: few, or few of them pass -> every one is asked, then the graph under those that pass
 *                              else                      -> the graph under all of them, what it finds is asked
 *
 * When too many of what was found are dead or fail, more are asked for, four times as many; past a sixteenth of the rows
 * all are asked instead, and the graph is searched under exactly those that the view sees. So there are always k when k
 * exist. */
#include <math.h>
#include <string.h>

#include "common/check.h"
#include "common/mem.h"
#include "storage/payload/filter_eval.h"
#include "storage/payload/rowbits.h"
#include "storage/segment/segment_impl.h"

#define ASK_SHARE 16u /* of the rows: asking all is cheaper than a walk that has to give that many */
#define WIDEN 4u
#define ASK_ALL 2048u /* rows that are asked without a look at how many pass */
#define SAMPLE 64u    /* rows asked to see how many pass */
#define SAMPLE_SHARE 16u
#define STOP_WORDS 4u /* of rows asked between two polls of `stop` */

struct segment_scratch *segment_scratch_get(struct segment *s)
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

void segment_scratch_put(struct segment *s, struct segment_scratch *scratch)
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
    payload_scratch_free(scratch->sets);
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

#define GONE_WHOLE 65536u
#define GONE_SHARE 16 /* of what one search saw, in what is remembered */

/* How many to ask for so that k of them live, by what searches saw lately. */
static uint64_t living_want(const struct segment *s, uint32_t k)
{
    uint64_t gone = atomic_load_explicit(&s->gone, memory_order_relaxed);
    uint64_t lives = gone < GONE_WHOLE / 2 ? GONE_WHOLE - gone : GONE_WHOLE / 2;
    return k + k / 8 + 4 +
            (3 * k * gone / 2 + lives - 1) / lives; /* half as many again: they lie in clusters */
}

/* Of `count` rows that were found, `living` are seen. That searches forget one another's news does no harm. */
static void living_note(struct segment *s, uint32_t count, uint32_t living)
{
    if (count == 0) return;
    int32_t gone = (int32_t)atomic_load_explicit(&s->gone, memory_order_relaxed);
    int32_t now = (int32_t)((uint64_t)(count - living) * GONE_WHOLE / count);
    int32_t step = (now - gone) / GONE_SHARE;
    if (step != 0) atomic_store_explicit(&s->gone, (uint32_t)(gone + step), memory_order_relaxed);
}

static uint32_t hits_count_passing(struct segment *s, const struct segment_query *q,
        const struct index_hit *hits, uint32_t count, struct explain_part *part)
{
    uint32_t n = 0, i = 0;
    for (; i < count && n < q->k; i++) {
        struct row_ref ref = s->slots[hits[i].slot];
        struct topk_candidate ignored;
        part->filter_evaluated += q->filter != NULL;
        n += q->filter != NULL
                ? row_passes(s, q, ref, &ignored)
                : block_row_visible(blocks_at(s->blocks, ref.block), ref.op, q->view_sequence, q->now_ms);
    }
    if (q->filter == NULL) living_note(s, i, n);
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
    part->rescored += cost.rescored;
    part->bytes_read += cost.rescored * 4 * s->dim;
    part->effort += cost.effort;
    part->estimates += cost.estimates;
    if (part->plan == EXPLAIN_SCAN) part->rows_scanned += cost.estimates;
    part->rounds++;
    return rc;
}

/* The rows to search among. */
struct candidates {
    uint64_t *rows;         /* in the scratch; NULL = all, or those of the run */
    struct payload_run run; /* 0, 0 = none */
    uint64_t count;
    bool exact; /* they pass the filter */
    bool seen;  /* and the view sees them */
};

static bool candidate_passes(const struct segment *s, const struct segment_query *q, uint32_t row,
        struct explain_part *part)
{
    struct topk_candidate ignored;
    part->filter_evaluated += q->filter != NULL;
    return row_passes(s, q, s->slots[row], &ignored);
}

/* Ask every one; those that the view sees and the filter passes stay. */
static enum omen_err candidates_ask(struct segment *s, const struct segment_query *q,
        struct segment_scratch *scratch, struct candidates *c, struct explain_part *part)
{
    if (c->rows == NULL) {
        if (scratch->sets == NULL) scratch->sets = payload_scratch_new();
        if (scratch->sets == NULL || payload_scratch_rows(scratch->sets, s->count, &c->rows) != OMEN_OK)
            return OMEN_ENOMEM;
        if (c->run.end != 0) rowbits_run(c->rows, s->count, c->run.first, c->run.end);
        c->run = (struct payload_run){ 0, 0 };
    }
    for (size_t w = 0; w < rowbits_words(s->count); w++) {
        for (uint64_t left = c->rows[w]; left != 0; left &= left - 1) {
            uint32_t row = (uint32_t)(w * 64) + (uint32_t)__builtin_ctzll(left);
            if (!candidate_passes(s, q, row, part)) c->rows[w] &= ~(left & -left);
        }
        if (w % STOP_WORDS == 0 && q->stop != NULL && q->stop(q->stop_arg)) return OMEN_EDEADLINE;
    }
    c->count = rowbits_count(c->rows, s->count);
    c->exact = c->seen = true;
    part->real = c->count;
    return OMEN_OK;
}

/* Of rows that may fail: is it worth to walk among them all? Some, spread evenly, are asked. */
static bool candidates_mostly_pass(const struct segment *s, const struct segment_query *q,
        const struct candidates *c, double *share_out, struct explain_part *part)
{
    uint32_t asked = 0, passed = 0;
    size_t words = rowbits_words(s->count), step = words / SAMPLE + 1;
    for (size_t from = 0; from < words; from += step) {
        for (size_t w = from; w < from + step && w < words; w++) {
            uint64_t bits = c->rows == NULL ? UINT64_MAX : c->rows[w];
            uint32_t row = (uint32_t)(w * 64) + (bits == 0 ? 0 : (uint32_t)__builtin_ctzll(bits));
            if (bits == 0 || row >= s->count) continue;
            passed += candidate_passes(s, q, row, part);
            asked++;
            break;
        }
    }
    *share_out = asked == 0 ? 0 : (double)passed / asked;
    return asked > 0 && passed * SAMPLE_SHARE >= asked;
}

static enum explain_why plan_why(const struct segment_query *q, const struct candidates *c,
        const struct explain_part *part)
{
    if (part->plan == EXPLAIN_PRUNED) return EXPLAIN_WHY_PRUNED;
    if (part->given_up != EXPLAIN_PRUNED) return EXPLAIN_WHY_GAVE_UP;
    if (part->plan == EXPLAIN_WALK && q->filter == NULL && c->rows == NULL) return EXPLAIN_WHY_NO_FILTER;
    return q->filter != NULL && !c->exact ? EXPLAIN_WHY_MOST_PASS : EXPLAIN_WHY_CHEAPEST;
}

/* How many to ask the graph for at first: deletes have taken some, the filter lets a share pass. */
static enum omen_err first_want(struct segment *s, const struct segment_query *q,
        struct segment_scratch *scratch, struct candidates *c, uint64_t *want_out, struct explain_part *part)
{
    double share = 1;
    *want_out = living_want(s, q->k);
    if (c->exact) return OMEN_OK;
    if (c->count > ASK_ALL && candidates_mostly_pass(s, q, c, &share, part)) {
        *want_out = (uint64_t)((double)*want_out / share * 1.25) + 8;
        return OMEN_OK;
    }
    enum omen_err rc = candidates_ask(s, q, scratch, c, part);
    *want_out = q->k;
    return rc;
}

static enum omen_err candidates_search(struct segment *s, const struct segment_query *q,
        struct segment_scratch *scratch, struct candidates *c, struct topk *topk, struct explain_part *part)
{
    struct index_search search = {
        .query = q->query,
        .recall_target = q->recall_target != 0 ? q->recall_target : s->recall_target,
        .effort = q->effort,
        .has_distance_max = q->distance_max < INFINITY,
        .distance_max = q->distance_max,
        .stop = q->stop,
        .stop_arg = q->stop_arg,
    };
    uint64_t want, most = s->count / ASK_SHARE > 2 * q->k ? s->count / ASK_SHARE : 2 * q->k;
    if (most > OMEN_K_MAX) most = OMEN_K_MAX;
    part->recall_target = search.recall_target;
    enum omen_err rc = first_want(s, q, scratch, c, &want, part);
    for (; rc == OMEN_OK; want *= WIDEN) {
        if (want > c->count) want = c->count;
        if (want > most && !c->seen) {
            rc = candidates_ask(s, q, scratch, c, part);
            want = q->k < c->count ? q->k : c->count;
        }
        if (rc != OMEN_OK || want == 0) break;
        if (!hits_reserve(scratch, (uint32_t)want)) return OMEN_ENOMEM;
        uint32_t count = 0;
        search.k = (uint32_t)want;
        search.filter = c->rows;
        search.filter_count = c->rows == NULL ? 0 : c->count;
        search.run_first = c->run.first;
        search.run_end = c->run.end;
        rc = index_ask(s, &search, scratch, &count, part);
        if (rc != OMEN_OK) break;
        bool all = count < want || want == c->count || c->seen; /* nothing else is near enough, or there */
        struct segment_query rest = *q;                         /* what the candidates leave to ask */
        if (c->exact) rest.filter = NULL;
        if (!all && hits_count_passing(s, &rest, scratch->hits, count, part) < q->k) continue;
        hits_push(s, &rest, scratch->hits, count, topk, part);
        part->why = plan_why(q, c, part);
        return OMEN_OK;
    }
    if (rc == OMEN_OK) {
        part->plan = EXPLAIN_PRUNED;
        part->pruned_by = part->filter_evaluated > 0 ? EXPLAIN_PRUNED_FILTER : EXPLAIN_PRUNED_ALL_DEAD;
    }
    return rc;
}

/* Rows that were grouped by what the filter asks for lie together: no set of rows is needed. */
static bool run_ask(struct segment *s, const struct segment_query *q, struct candidates *c,
        struct explain_part *part)
{
    struct payload_run run;
    if (!payload_index_run(s->payload, q->filter, &run)) return false;
    bool all = run.first == 0 && run.end == s->count;
    if (!all && !index_takes_runs(s->index)) return false;
    if (all) run.end = 0;
    *c = (struct candidates){ NULL, run, all ? s->count : run.end - run.first, true, false };
    part->filter = EXPLAIN_FILTER_INDEX;
    part->filter_by = EXPLAIN_BY_VALUES;
    part->real = c->count;
    return true;
}

static void prune(struct explain_part *part, enum explain_prune why)
{
    part->filter = EXPLAIN_FILTER_INDEX;
    part->plan = EXPLAIN_PRUNED;
    part->pruned_by = why;
    part->real = 0;
}

/* Does the zone map prove that nothing passes? What most segments of many tenants are asked and no more: no scratch is
 * taken for it. */
static bool filter_prunes(const struct segment *s, const struct segment_query *q, struct explain_part *part)
{
    struct payload_estimate estimate;
    payload_index_estimate(s->payload, q->filter, &estimate);
    part->estimated = (uint64_t)estimate.rows;
    part->pruned_path = estimate.path;
    if (estimate.pruned == EXPLAIN_NOT_PRUNED) return false;
    prune(part, estimate.pruned);
    return true;
}

/* Which rows pass, as far as the payload index knows. *pruned_out: none. */
static enum omen_err filter_ask(struct segment *s, const struct segment_query *q,
        struct segment_scratch *scratch, struct candidates *c, bool *pruned_out, struct explain_part *part)
{
    struct payload_answer answer;
    if (run_ask(s, q, c, part)) return OMEN_OK;
    if (scratch->sets == NULL) scratch->sets = payload_scratch_new();
    if (scratch->sets == NULL) return OMEN_ENOMEM;
    enum omen_err rc = payload_index_filter(s->payload, q->filter, scratch->sets, &answer);
    if (rc != OMEN_OK) return rc;
    *c = (struct candidates){ answer.rows, { 0, 0 }, answer.count, answer.exact, false };
    part->filter = answer.exact ? EXPLAIN_FILTER_INDEX : EXPLAIN_FILTER_PARTLY;
    part->filter_by = answer.by;
    if (answer.exact) part->real = answer.count;
    *pruned_out = answer.count == 0;
    if (*pruned_out) prune(part, EXPLAIN_PRUNED_FILTER);
    return OMEN_OK;
}

enum omen_err segment_search(struct segment *s, const struct segment_query *q, struct topk *topk,
        struct explain_part *part)
{
    if (s->count == 0) {
        part->plan = EXPLAIN_PRUNED;
        part->pruned_by = EXPLAIN_PRUNED_ALL_DEAD;
        return OMEN_OK;
    }
    bool asks = q->filter != NULL && s->payload != NULL, pruned = false;
    if (asks && filter_prunes(s, q, part)) return OMEN_OK;
    struct segment_scratch *scratch = segment_scratch_get(s);
    if (scratch == NULL) return OMEN_ENOMEM;
    struct candidates c = { NULL, { 0, 0 }, s->count, q->filter == NULL, false };
    enum omen_err rc = OMEN_OK;
    part->filter = q->filter != NULL ? EXPLAIN_FILTER_PAYLOAD : EXPLAIN_FILTER_NONE;
    if (asks) rc = filter_ask(s, q, scratch, &c, &pruned, part);
    if (rc == OMEN_OK && !pruned) rc = candidates_search(s, q, scratch, &c, topk, part);
    segment_scratch_put(s, scratch);
    return rc;
}
