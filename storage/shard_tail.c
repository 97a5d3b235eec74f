/* Sketches of the tail: what a search goes by among rows that are in no segment yet, once they are many.
 *
 *   blocks:   [0 .. covered: segments) [sketch) [sketch) .. [rest: scanned)
 *
 * One thread adds rows to the newest sketch (storage/index/sketch.h) while searches read. When a segment begins to be built,
 * later rows go to a new sketch, so that the old one can be dropped as a whole when its blocks are covered; a search
 * leaves out of a sketch what a segment covers already. Any set of segments goes with any set of sketches: a search puts
 * them together by blocks, and scans what lies between.
 *
 * A sketch has every row that was ever alive in its blocks, so it serves every view; whether a view sees one is asked of
 * the stream. Rows are looked up there each time, since a compaction may move them. */
#include <string.h>

#include "common/check.h"
#include "common/mem.h"
#include "storage/index/sketch.h"
#include "storage/payload/filter_eval.h"
#include "storage/shard_index.h"
#include "storage/shard_index_impl.h"

#define TAIL_PAGE_ROWS 65536u
#define TAIL_PAGES 1024u
#define TAIL_STEP_ROWS 4096u /* added in one step */
#define TAIL_SKETCHES 4u     /* of a field; more jobs than that share the last */
#define TAIL_SHARE 4u        /* of a sketch's rows: when fewer are in no segment, they are scanned */
#define TAIL_TRIES 512u      /* candidates after which a search of which few pass is given up */
#define TAIL_PASS_SHARE 8u
#define CALIBRATE_AGAIN 16u /* times the rows of a calibration come before it is made anew */
#define SCRATCHES_KEPT 64u

struct tail_scratch {
    struct sketch_scratch *scratch;
    struct tail_scratch *next;
};

struct tail_sketch {
    _Atomic uint32_t refs;
    const struct blocks *blocks;
    uint32_t field, dim, first_block, rows_min;
    _Atomic uint64_t published; /* end block << 32 | rows: what readers may look at */
    struct sketch *sketch;
    struct row_ref *_Atomic pages[TAIL_PAGES]; /* [TAIL_PAGE_ROWS] row of each slot, in order of blocks */
    uint64_t jobs;                             /* begun when it was made; this and below: the writer's */
    bool closed;                               /* an addition failed half-way: goes on in another one */
    pthread_mutex_t mutex;                     /* guards what follows */
    struct tail_scratch *idle;
    uint32_t idle_count;
};

/* What was learned from sketches of a field. */
struct tail_known {
    struct sketch_curve curve;
    uint32_t rows;  /* of the sketch that was calibrated; 0 = none was */
    uint64_t since; /* rows that came to sketches since */
};

static const float NO_ROW[OMEN_DIM_MAX];

static struct row_ref row_at(const struct tail_sketch *t, uint32_t slot)
{
    return atomic_load_explicit(&t->pages[slot / TAIL_PAGE_ROWS],
            memory_order_acquire)[slot % TAIL_PAGE_ROWS];
}

/* Of a row that a compaction has taken away: zeros, which nobody is given. */
static const float *row_vector(void *arg, uint32_t slot)
{
    const struct tail_sketch *t = arg;
    struct row_ref ref = row_at(t, slot);
    const struct block *b = blocks_at(t->blocks, ref.block);
    if (b->died == NULL) return NO_ROW;
    uint32_t row = entry_op_row(&b->entry, ref.op, t->field);
    return row == ENTRY_NO_ROW ? NO_ROW : entry_row(&b->entry, t->field, row, t->dim);
}

static bool row_lives(void *arg, uint32_t slot)
{
    const struct tail_sketch *t = arg;
    struct row_ref ref = row_at(t, slot);
    return block_row_died(blocks_at(t->blocks, ref.block), ref.op) == 0;
}

static uint32_t end_block(const struct tail_sketch *t)
{
    return (uint32_t)(atomic_load_explicit(&t->published, memory_order_acquire) >> 32);
}

/* ---- life ---- */

static void tail_unref(struct tail_sketch *t)
{
    if (atomic_fetch_sub_explicit(&t->refs, 1, memory_order_acq_rel) > 1) return;
    while (t->idle != NULL) {
        struct tail_scratch *scratch = t->idle;
        t->idle = scratch->next;
        sketch_scratch_free(scratch->scratch);
        mem_free(scratch);
    }
    sketch_free(t->sketch);
    for (uint32_t i = 0; i < TAIL_PAGES; i++) mem_free(t->pages[i]);
    pthread_mutex_destroy(&t->mutex);
    mem_free(t);
}

static enum omen_err tail_new(struct shard_store *s, const struct index_policy *policy, uint32_t field,
        uint32_t first_block, struct tail_sketch **tail_out, struct err *err)
{
    struct tail_sketch *t = mem_calloc(1, sizeof *t);
    if (t == NULL) return err_set(err, OMEN_ENOMEM, NULL, "no memory for a sketch of the tail");
    atomic_init(&t->refs, 1);
    atomic_init(&t->published, (uint64_t)first_block << 32);
    pthread_mutex_init(&t->mutex, NULL);
    t->blocks = s->blocks;
    t->field = field;
    t->dim = s->schema.fields[field].dim;
    t->first_block = first_block;
    t->rows_min = policy->tail_rows_min;
    t->jobs = atomic_load(&s->index.jobs);
    struct sketch_params params = { .dim = t->dim,
        .metric = s->schema.fields[field].metric,
        .recall_target = policy->recall_target,
        .seed = first_block,
        .row = row_vector,
        .row_arg = t };
    enum omen_err rc = sketch_new(&params, &t->sketch, err);
    *tail_out = t;
    if (rc != OMEN_OK) tail_unref(t);
    return rc;
}

void tail_set_release(struct tail_set *set)
{
    if (set == NULL || atomic_fetch_sub_explicit(&set->refs, 1, memory_order_acq_rel) > 1) return;
    for (uint32_t i = 0; i < set->count; i++) tail_unref(set->items[i]);
    mem_free(set);
}

struct tail_set *tail_set_acquire(struct shard_store *s)
{
    pthread_mutex_lock(&s->index.mutex);
    struct tail_set *set = s->index.tails;
    if (set != NULL) atomic_fetch_add_explicit(&set->refs, 1, memory_order_relaxed);
    pthread_mutex_unlock(&s->index.mutex);
    return set;
}

/* The set without what segments cover, with `more` (whose reference it takes, also when it fails) or NULL. */
static enum omen_err set_change(struct shard_store *s, const struct tail_set *old, const uint32_t *covered,
        struct tail_sketch *more, struct err *err)
{
    uint32_t count = old == NULL ? 0 : old->count;
    struct tail_set *set = mem_calloc(1, sizeof *set + (count + 1) * sizeof(struct tail_sketch *));
    if (set == NULL) {
        if (more != NULL) tail_unref(more);
        return err_set(err, OMEN_ENOMEM, NULL, "no memory for a set of sketches");
    }
    atomic_init(&set->refs, 1);
    for (uint32_t i = 0; i < count; i++) {
        struct tail_sketch *t = old->items[i];
        if (end_block(t) <= covered[t->field]) continue;
        atomic_fetch_add_explicit(&t->refs, 1, memory_order_relaxed);
        set->items[set->count++] = t;
    }
    if (more != NULL) set->items[set->count++] = more;
    pthread_mutex_lock(&s->index.mutex);
    struct tail_set *before = s->index.tails;
    s->index.tails = set;
    pthread_mutex_unlock(&s->index.mutex);
    tail_set_release(before);
    return OMEN_OK;
}

/* ---- adding ---- */

static enum omen_err row_add(struct tail_sketch *t, struct row_ref ref, const float *vector, uint32_t *rows,
        struct err *err)
{
    uint32_t page = *rows / TAIL_PAGE_ROWS, slot;
    if (page >= TAIL_PAGES) return err_set(err, OMEN_ETOOBIG, NULL, "a sketch of the tail is full");
    struct row_ref *refs = atomic_load_explicit(&t->pages[page], memory_order_relaxed);
    if (refs == NULL) {
        refs = mem_alloc(TAIL_PAGE_ROWS * sizeof *refs);
        if (refs == NULL) return err_set(err, OMEN_ENOMEM, NULL, "no memory for a sketch of the tail");
        atomic_store_explicit(&t->pages[page], refs, memory_order_release);
    }
    refs[*rows % TAIL_PAGE_ROWS] = ref;
    enum omen_err rc = sketch_add(t->sketch, vector, &slot, err);
    if (rc != OMEN_OK) return rc;
    CHECK(slot == *rows);
    ++*rows;
    return OMEN_OK;
}

/* Every row of a block that ever was a point's. */
static enum omen_err block_add(struct tail_sketch *t, uint32_t block, uint32_t *rows, struct err *err)
{
    const struct block *b = blocks_at(t->blocks, block);
    enum omen_err rc = OMEN_OK;
    if (b->died == NULL) return OMEN_OK;
    for (uint32_t at = 0; rc == OMEN_OK && at < b->entry.op_count; at++) {
        uint64_t died = block_row_died(b, at);
        if (died != 0 && died <= b->sequence) continue;
        uint32_t row = entry_op_row(&b->entry, at, t->field);
        if (row == ENTRY_NO_ROW) continue;
        rc = row_add(t, (struct row_ref){ block, at }, entry_row(&b->entry, t->field, row, t->dim), rows,
                err);
    }
    return rc;
}

/* Some of the blocks from where it ends, published one by one. */
static enum omen_err tail_grow(struct tail_sketch *t, uint32_t end, uint64_t *added_io, bool *worked_out,
        struct err *err)
{
    uint64_t published = atomic_load_explicit(&t->published, memory_order_relaxed);
    uint32_t block = (uint32_t)(published >> 32), rows = (uint32_t)published, first = rows;
    enum omen_err rc = OMEN_OK;
    for (; rc == OMEN_OK && block < end && rows - first < TAIL_STEP_ROWS; block++) {
        rc = block_add(t, block, &rows, err);
        if (rc == OMEN_OK)
            atomic_store_explicit(&t->published, (uint64_t)(block + 1) << 32 | rows, memory_order_release);
        *worked_out = true;
    }
    *added_io += rows - first;
    t->closed = rc != OMEN_OK; /* rows past what is published are not looked at */
    return rc;
}

/* The known of a field; NULL: no memory for it. */
static struct tail_known *known_of(struct shard_store *s, uint32_t field)
{
    if (s->index.tails_known == NULL)
        s->index.tails_known = mem_calloc(OMEN_VECTOR_FIELDS_MAX, sizeof *s->index.tails_known);
    return s->index.tails_known == NULL ? NULL : s->index.tails_known + field;
}

/* When there are twice as many rows as at the last time. While they come and go, sketch after sketch, each goes by what
 * is known, and only now and then is it looked whether that is still so. */
static enum omen_err tail_calibrate(struct tail_sketch *t, struct tail_known *known,
        const struct index_policy *policy, const struct index_control *control, struct err *err)
{
    uint32_t rows = sketch_count(t->sketch);
    if (policy->memory_short) return OMEN_OK; /* it reads every row; searches do with a fixed effort */
    bool grown = rows / 2 >= known->rows;
    bool again = rows >= known->rows / 2 && known->since >= (uint64_t)CALIBRATE_AGAIN * rows;
    if (rows < t->rows_min || !(grown || again)) return OMEN_OK;
    enum omen_err rc = sketch_calibrate(t->sketch, row_lives, t, control);
    if (rc != OMEN_OK) return err_set(err, rc, NULL, "calibrating a sketch of the tail");
    known->rows = rows;
    known->since = 0;
    sketch_curve(t->sketch, &known->curve);
    return OMEN_OK;
}

/* Of a row, about; see storage/index/README.md. */
static uint64_t sketch_bytes(const struct shard_store *s, uint32_t field)
{
    return s->schema.fields[field].dim / 2 + 32;
}

/* The newest sketch of a field, and how many there are. */
static struct tail_sketch *newest_of(const struct tail_set *set, uint32_t field, uint32_t *count_out)
{
    struct tail_sketch *newest = NULL;
    *count_out = 0;
    for (uint32_t i = 0; set != NULL && i < set->count; i++) {
        if (set->items[i]->field != field) continue;
        newest = set->items[i];
        ++*count_out;
    }
    return newest;
}

static enum omen_err field_step(struct shard_store *s, const struct index_policy *policy, uint32_t field,
        const uint32_t *covered, const struct index_control *control, bool *worked_out, struct err *err)
{
    struct tail_known *known = known_of(s, field);
    if (known == NULL) return err_set(err, OMEN_ENOMEM, NULL, "no memory for a sketch of the tail");
    struct tail_set *set = tail_set_acquire(s);
    uint32_t count, end = blocks_count(s->blocks);
    struct tail_sketch *t = newest_of(set, field, &count);
    uint32_t from = t != NULL && end_block(t) > covered[field] ? end_block(t) : covered[field];
    bool covered_all = t != NULL && end_block(t) <= covered[field];
    bool begun = t != NULL && t->jobs != atomic_load(&s->index.jobs) && count < TAIL_SKETCHES;
    enum omen_err rc = OMEN_OK;
    if (t == NULL || covered_all || begun || t->closed) {
        struct tail_sketch *more = NULL;
        uint64_t rows = blocks_rows(s->blocks, from, end);
        bool many = rows >= policy->tail_rows_min && 2 * rows * sketch_bytes(s, field) <= policy->memory_left;
        if (many) rc = tail_new(s, policy, field, from, &more, err);
        if (rc == OMEN_OK && many) sketch_curve_set(more->sketch, &known->curve);
        if (rc == OMEN_OK && (many || covered_all)) rc = set_change(s, set, covered, more, err);
        t = rc == OMEN_OK ? more : NULL; /* the set holds it; only this thread changes the set */
    }
    /* One that memory has run out for stays as it is: what comes after it is scanned. */
    bool room = policy->memory_left >= TAIL_STEP_ROWS * sketch_bytes(s, field);
    if (t != NULL && room) rc = tail_grow(t, end, &known->since, worked_out, err);
    if (t != NULL && rc == OMEN_OK) rc = tail_calibrate(t, known, policy, control, err);
    tail_set_release(set);
    return rc;
}

enum omen_err shard_index_tail(struct shard_store *store, const struct index_policy *policy,
        const struct index_control *control, bool *worked_out, struct err *err)
{
    uint32_t covered[OMEN_VECTOR_FIELDS_MAX] = { 0 };
    *worked_out = false;
    enum omen_err rc = store_serves(store, err);
    if (rc != OMEN_OK) return rc;
    stream_scatter(store->stream, policy->memory_short);
    uint32_t era = store_hold(store);
    struct segment_set *segments = segment_set_acquire(store);
    if (segments != NULL) memcpy(covered, segments->covered, sizeof covered);
    segment_set_release(segments);
    for (uint32_t f = 0; rc == OMEN_OK && f < store->schema.field_count; f++)
        rc = field_step(store, policy, f, covered, control, worked_out, err);
    store_unhold(store, era);
    return rc;
}

uint64_t tail_memory_bytes(struct shard_store *s)
{
    uint64_t bytes = 0;
    struct tail_set *set = tail_set_acquire(s);
    for (uint32_t i = 0; set != NULL && i < set->count; i++) {
        struct sketch_stats stats;
        sketch_stats(set->items[i]->sketch, &stats);
        bytes += stats.memory_bytes + stats.rows * sizeof(struct row_ref);
    }
    tail_set_release(set);
    return bytes;
}

/* ---- searching ---- */

/* One search of one sketch; what `alive` and `stop` look at. */
struct tail_walk {
    const struct tail_sketch *t;
    const struct store_view *view;
    const struct filter *filter;
    const struct read_limit *limit;
    uint32_t from_block;
    uint64_t tried, passed, asked; /* asked: payloads */
    bool given_up;
};

static bool walk_alive(void *arg, uint32_t slot)
{
    struct tail_walk *w = arg;
    struct row_ref ref = row_at(w->t, slot);
    const struct block *b = blocks_at(w->t->blocks, ref.block);
    bool passes = ref.block >= w->from_block &&
            block_row_visible(b, ref.op, w->view->sequence, w->view->now_ms);
    if (passes && w->filter != NULL) {
        struct entry_op op;
        entry_op_at(&b->entry, ref.op, &op);
        passes = filter_match(w->filter, op.key.id, op.payload);
        w->asked++;
    }
    w->tried++;
    w->passed += passes;
    return passes;
}

static bool walk_stop(void *arg)
{
    struct tail_walk *w = arg;
    w->given_up = w->tried > TAIL_TRIES && w->passed * TAIL_PASS_SHARE < w->tried;
    return w->given_up || (w->limit != NULL && w->limit->stop != NULL && w->limit->stop(w->limit->arg));
}

static struct tail_scratch *scratch_get(struct tail_sketch *t)
{
    pthread_mutex_lock(&t->mutex);
    struct tail_scratch *scratch = t->idle;
    if (scratch != NULL) {
        t->idle = scratch->next;
        t->idle_count--;
    }
    pthread_mutex_unlock(&t->mutex);
    if (scratch != NULL) return scratch;
    scratch = mem_calloc(1, sizeof *scratch);
    if (scratch == NULL) return NULL;
    scratch->scratch = sketch_scratch_new(t->sketch);
    if (scratch->scratch != NULL) return scratch;
    mem_free(scratch);
    return NULL;
}

static void scratch_put(struct tail_sketch *t, struct tail_scratch *scratch)
{
    pthread_mutex_lock(&t->mutex);
    bool keep = t->idle_count < SCRATCHES_KEPT;
    if (keep) {
        scratch->next = t->idle;
        t->idle = scratch;
        t->idle_count++;
    }
    pthread_mutex_unlock(&t->mutex);
    if (keep) return;
    sketch_scratch_free(scratch->scratch);
    mem_free(scratch);
}

/* Slots below it are of blocks before `block`. */
static uint32_t slot_of_block(const struct tail_sketch *t, uint32_t block, uint32_t rows)
{
    uint32_t low = 0, high = rows;
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (row_at(t, mid).block < block)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

static void hits_push(const struct tail_walk *w, const struct index_hit *hits, uint32_t count,
        struct topk *topk)
{
    for (uint32_t i = 0; i < count; i++) {
        struct row_ref ref = row_at(w->t, hits[i].slot);
        struct entry_op op;
        entry_op_at(&blocks_at(w->t->blocks, ref.block)->entry, ref.op, &op);
        struct topk_candidate c = { .distance = hits[i].distance,
            .key = op.key,
            .location = { ref.block, ref.op } };
        (void)topk_push(topk, &c);
    }
}

bool tail_part(const struct tail_sketch *t, uint32_t field, uint32_t from_block, uint32_t end,
        struct tail_part *part_out)
{
    uint64_t published = atomic_load_explicit(&t->published, memory_order_acquire);
    uint32_t block_end = (uint32_t)(published >> 32) < end ? (uint32_t)(published >> 32) : end;
    if (t->field != field || from_block >= block_end) return false;
    *part_out = (struct tail_part){ .first_block = from_block > t->first_block ? from_block : t->first_block,
        .end_block = block_end,
        .slot_end = slot_of_block(t, block_end, (uint32_t)published) };
    part_out->rows = part_out->slot_end - slot_of_block(t, part_out->first_block, part_out->slot_end);
    return part_out->rows >= t->rows_min && part_out->rows >= part_out->slot_end / TAIL_SHARE;
}

enum omen_err tail_search(struct tail_sketch *t, const struct store_view *view, struct flat_query *query,
        const struct tail_part *part, const struct read_limit *limit, struct arena *arena, bool *enough_out,
        struct index_cost *cost, uint64_t *asked_out)
{
    uint32_t count = 0;
    struct tail_walk w = { .t = t,
        .view = view,
        .filter = query->filter,
        .limit = limit,
        .from_block = part->first_block };
    float bound = topk_bound(query->topk) < query->distance_max ? topk_bound(query->topk)
                                                                : query->distance_max;
    *enough_out = false;
    *asked_out = 0;
    if (query->topk->k > part->rows / TAIL_SHARE) return OMEN_OK;
    struct sketch_search search = { .base = { .query = query->query,
                                            .k = query->topk->k,
                                            .recall_target = view->recall_target,
                                            .effort = view->effort,
                                            .has_distance_max = bound < INFINITY,
                                            .distance_max = bound,
                                            .stop = walk_stop,
                                            .stop_arg = &w },
        .slot_end = part->slot_end,
        .alive = walk_alive,
        .alive_arg = &w };
    struct index_hit *hits = arena_alloc(arena, query->topk->k * sizeof *hits);
    struct tail_scratch *scratch = hits == NULL ? NULL : scratch_get(t);
    if (scratch == NULL) return OMEN_ENOMEM;
    enum omen_err rc = sketch_search(t->sketch, &search, scratch->scratch, hits, &count, cost);
    scratch_put(t, scratch);
    *asked_out = w.asked;
    if (rc == OMEN_EDEADLINE && w.given_up) return OMEN_OK;
    if (rc != OMEN_OK) return rc;
    hits_push(&w, hits, count, query->topk);
    *enough_out = true;
    return OMEN_OK;
}
