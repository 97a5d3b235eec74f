/* The walk of a sealed graph: from the nearest leaders along estimates, best first, until the pool holds nothing
 * unexpanded; see sealed.c for what a row holds.
 *
 * What a hop costs on Zen 3 (0.4 us at 128-d) is half waiting for rows, so a row is asked for as soon as its
 * estimate is known to be among the next: the best of a hop's neighbours before any of them enters the pool, then
 * those that come next in the pool, each once (a bit of the key remembers). Threads: no state beside the
 * scratch. */
#include "storage/index/sealed_pool.h"

#include "common/mem.h"
#include "storage/index/compact.h"
#include "storage/kernel/kernel.h"

#define PROMISING 32    /* of those met last, whose full rows are not on their way yet */
#define PREFETCH_ROWS 3 /* of the pool's next, on their way at any time */

enum omen_err sealed_seen_grow(struct index_scratch *scratch)
{
    uint32_t *old = scratch->seen, old_cap = scratch->seen_cap;
    uint32_t *grown = mem_alloc_aligned(64, (size_t)old_cap * 2 * sizeof(uint32_t));
    if (grown == NULL) return OMEN_ENOMEM;
    scratch->seen = grown;
    scratch->seen_cap = old_cap * 2;
    memset(grown, 0xff, (size_t)old_cap * 2 * sizeof(uint32_t));
    for (uint32_t i = 0; i < old_cap; i++)
        if (old[i] != NODE_NONE) grown[seen_place(scratch, old[i])] = old[i];
    mem_free(old);
    return OMEN_OK;
}

/* Those that come next, if they are not on their way yet. */
static inline void prefetch_ahead(const struct sealed *s, uint64_t *pool, uint32_t cursor, uint32_t count)
{
    for (uint32_t found = 0; cursor < count && found < PREFETCH_ROWS; cursor++) {
        if (pool[cursor] & KEY_EXPANDED) continue;
        found++;
        if (pool[cursor] & KEY_FETCHED) continue;
        pool[cursor] |= KEY_FETCHED;
        row_prefetch(s, pool_node(pool[cursor]));
    }
}

/* ---- the entry ---- */

#define MIDDLES_MAX (2 * SEALED_LEADERS_MAX / CODE_GROUP + SEALED_LEADERS_SAMPLED)
#define KEY_NONE ((uint64_t)0x7f800000 << 32 | UINT32_MAX) /* of an infinite estimate */

/* Estimates of one group of a sketch; bit i set where estimate i is below `bound`. */
static inline uint32_t group_estimate(const struct sealed *s, const struct index_scratch *scratch,
        const struct sealed_sketch *sketch, uint32_t group, float base, float bound,
        float estimates_out[CODE_GROUP])
{
    const uint8_t *codes = sketch->groups + (size_t)group * sketch->group_bytes;
    const uint16_t *f = (const uint16_t *)(const void *)(codes + rabitq_codes_bytes(s->padded));
    struct code_factors factors = { f, f + CODE_GROUP, sketch->scales[group * 2],
        sketch->scales[group * 2 + 1] };
    return code_kernel_get()->estimate_32(&scratch->code, codes, &factors, base, bound, estimates_out);
}

struct entry {
    uint64_t best[SEALED_ENTRIES + 1]; /* ascending */
    float base;
};

/* The leaders of one group, to be among the nearest. */
static inline void entry_offer(const struct sealed *s, const struct index_scratch *scratch, uint32_t group,
        struct entry *entry)
{
    const uint32_t *nodes = s->leaders.nodes + (size_t)group * CODE_GROUP;
    float estimates[CODE_GROUP], bound = pool_estimate(entry->best[SEALED_ENTRIES - 1]);
    uint32_t mask = group_estimate(s, scratch, &s->leaders.codes, group, entry->base, bound, estimates);
    for (; mask != 0; mask &= mask - 1) {
        uint32_t i = (uint32_t)__builtin_ctz(mask), at = SEALED_ENTRIES;
        uint64_t key = pool_key(estimates[i], nodes[i]);
        for (; at > 0 && entry->best[at - 1] > key; at--) entry->best[at] = entry->best[at - 1];
        entry->best[at] = key;
    }
}

uint32_t sealed_enter(const struct sealed *s, struct index_scratch *scratch, uint32_t *count, uint32_t cap)
{
    const struct sealed_leaders *l = &s->leaders;
    uint64_t near[MIDDLES_MAX];
    struct entry entry = { .base = kernel_get()->dot_f32(scratch->rotated, scratch->rotated, s->padded) };
    for (uint32_t i = 0; i <= SEALED_ENTRIES; i++) entry.best[i] = KEY_NONE;
    uint32_t middles = 0, met = 0;
    for (uint32_t g = 0; g * CODE_GROUP < l->middles.count; g++) {
        float estimates[CODE_GROUP];
        (void)group_estimate(s, scratch, &l->middles, g, entry.base, INFINITY, estimates);
        for (uint32_t i = 0; i < CODE_GROUP && middles < l->middles.count; i++, middles++)
            near[middles] = pool_key(estimates[i], middles);
    }
    sealed_keys_least(near, middles, SEALED_GROUPS_MET);
    for (; met < middles && met < SEALED_GROUPS_MET; met++)
        entry_offer(s, scratch, pool_node(near[met]), &entry);
    for (uint32_t g = middles; g < l->codes.count / CODE_GROUP; g++, met++)
        entry_offer(s, scratch, g, &entry);
    for (uint32_t i = 0; i < SEALED_ENTRIES && i < cap && entry.best[i] != KEY_NONE; i++) {
        scratch->pool[(*count)++] = entry.best[i] | KEY_FETCHED;
        row_prefetch(s, pool_node(entry.best[i]));
    }
    return (middles + CODE_GROUP - 1) / CODE_GROUP * CODE_GROUP + met * CODE_GROUP;
}

/* ---- the nearest of those visited ---- */

/* Distances of visited nodes, in no order; when the memory is full the nearest half stays. */
struct visited {
    uint64_t *keys; /* [2 * want] */
    uint32_t want, count;
    uint64_t bound; /* no key from here on matters */
};

static inline void visited_add(struct visited *v, float distance, uint32_t node)
{
    uint32_t bits; /* of a float >= 0 */
    memcpy(&bits, &distance, sizeof bits);
    uint64_t key = (uint64_t)bits << 32 | node;
    if (key >= v->bound) return;
    v->keys[v->count++] = key;
    if (v->count < 2 * v->want) return;
    sealed_keys_least(v->keys, v->count, v->want);
    v->count = v->want;
    v->bound = v->keys[v->want - 1];
}

static uint32_t visited_end(struct visited *v, uint32_t want, struct index_hit *hits_out)
{
    if (want > v->want) want = v->want;
    if (want > v->count) want = v->count;
    sealed_keys_least(v->keys, v->count, want);
    for (uint32_t i = 0; i < want; i++) {
        uint32_t bits = (uint32_t)(v->keys[i] >> 32);
        memcpy(&hits_out[i].distance, &bits, sizeof bits);
        hits_out[i].slot = (uint32_t)v->keys[i];
    }
    return want;
}

/* ---- the walk ---- */

struct walk {
    const struct sealed *s;
    const struct code_kernel *kernel;
    struct index_scratch *scratch;
    uint64_t *pool, *other;        /* [effort + 8] ascending keys; where the next pool is written */
    uint32_t width, count, cursor; /* of the pool */
    bool ruled;                    /* candidates instead of the pool */
    struct candidates candidates;
    struct index_heap near; /* what the stop rule looks at */
    float slack, decay;     /* of the pace */
    float limit, end;       /* estimates from `limit` on are not kept; none beyond `end` is followed */
    uint32_t idle;          /* nodes visited since one was among the nearest */
    bool rescores;          /* the nearest will be looked at in full: */
    struct index_hit promising[PROMISING]; /* slots that were among the nearest when they were met */
    uint32_t promising_count;
};

struct fresh {
    float estimates[CODE_GROUP];
    const uint32_t *ids;
    uint32_t mask; /* of those below the bound */
};

/* Those not expanded yet into the pool, their best prefetched if it comes next. */
static inline void pool_offer(struct walk *w, const struct fresh *f)
{
    uint64_t *pool = w->pool, keys[CODE_GROUP + 4], best = UINT64_MAX;
    uint32_t n = 0;
    for (uint32_t mask = f->mask; mask != 0; mask &= mask - 1) {
        uint32_t i = (uint32_t)__builtin_ctz(mask);
        if (seen_has(w->scratch, f->ids[i])) continue;
        keys[n] = pool_key(f->estimates[i], f->ids[i]);
        best = keys[n] < best ? keys[n] : best;
        n++;
    }
    if (n == 0) return;
    if (w->cursor >= w->count || best < pool[w->cursor]) row_prefetch(w->s, pool_node(best));
    uint32_t lowest = w->kernel->pool_merge(pool, w->count, w->width, keys, n, w->other);
    w->pool = w->other;
    w->other = pool;
    w->count = w->count + n < w->width ? w->count + n : w->width;
    if (lowest < w->cursor) w->cursor = lowest;
}

/* The same for the candidates. What is expanded already is seen when its turn comes: most turns never come. */
static inline void candidates_offer(struct walk *w, const struct fresh *f)
{
    struct candidates *c = &w->candidates;
    uint64_t keys[CODE_GROUP], near[CODE_GROUP + 4], best = UINT64_MAX;
    uint32_t count = 0, n = 0;
    for (uint32_t mask = f->mask; mask != 0; mask &= mask - 1) {
        uint32_t i = (uint32_t)__builtin_ctz(mask);
        keys[count++] = pool_key(f->estimates[i], f->ids[i]);
    }
    count = candidates_arrive(c, keys, count, near);
    for (uint32_t i = 0; i < count; i++) {
        uint64_t key = near[i];
        if (seen_has(w->scratch, pool_node(key))) continue;
        best = key < best ? key : best;
        near[n++] = key;
    }
    if (n == 0) return;
    if (c->cursor >= c->count || best < c->front[c->cursor]) row_prefetch(w->s, pool_node(best));
    candidates_merge(c, w->kernel, near, n);
}

/* The neighbours of an expanded node whose estimates are nearer than the bound. */
static inline void neighbours_offer(struct walk *w, const uint8_t *row, float exact)
{
    const struct sealed *s = w->s;
    const struct sealed_head *head = sealed_head(s, row);
    struct code_factors factors = { (const uint16_t *)(const void *)(row + s->layout.f),
        (const uint16_t *)(const void *)(row + s->layout.g), head->f_scale, head->g_scale };
    float bound = w->ruled         ? w->limit
            : w->count == w->width ? pool_estimate(w->pool[w->count - 1])
                                   : INFINITY;
    struct fresh fresh;
    fresh.ids = sealed_ids(s, row);
    fresh.mask = w->kernel->estimate_32(&w->scratch->code, row, &factors, exact, bound, fresh.estimates);
    if (w->ruled)
        candidates_offer(w, &fresh);
    else
        pool_offer(w, &fresh);
}

/* log2 of n > 0, linear between powers of two. */
static inline float log2_about(uint32_t n)
{
    float value = (float)n;
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (float)bits * 0x1p-23f - 127;
}

/* The stop rule: nothing is followed whose estimate is beyond `slack` times the k-th distance that the walk has
 * found so far. Easy queries, whose neighbours stand apart from the rest, end early; where distances lie close
 * together more is looked at. (Distance adaptive beam search, arXiv 2505.15636, on estimates.) The slack shrinks while
 * nothing nearer is found: hard queries take 8 % fewer hops for the same recall (patch-784), others 1 to 2 %. */
static inline void limit_lower(struct walk *w, float exact, uint32_t node, uint32_t slot)
{
    struct candidates *c = &w->candidates;
    float bound = index_heap_bound(&w->near);
    w->idle++;
    if (exact < bound) {
        index_heap_push(&w->near, (struct index_hit){ exact, node });
        w->idle = 0;
        w->promising[w->promising_count++ % PROMISING] = (struct index_hit){ exact, slot };
        bound = index_heap_bound(&w->near);
    }
    float lost = w->decay * log2_about(w->idle + 1);
    w->end = bound * (w->slack - lost);
    w->limit = bound * (w->slack - lost / 2); /* what the end will not come back to: nothing is lost by it */
    while (c->count > c->cursor && pool_estimate(c->front[c->count - 1]) > w->limit) c->count--;
}

/* While nothing nearer is found, the full rows of the nearest so far are asked for, one a hop, so that rescoring does not
 * wait for all of them at the end. */
static inline void promising_fetch(struct walk *w)
{
    float bound = index_heap_bound(&w->near);
    if (!w->rescores || w->idle == 0) return;
    while (w->promising_count > 0) {
        struct index_hit hit = w->promising[--w->promising_count % PROMISING];
        if (hit.distance > bound) continue;
        const struct index_rows *rows = &w->s->rows;
        const char *full = (const char *)(rows->data + (size_t)hit.slot * rows->stride_floats);
        for (uint32_t at = 0; at < rows->dim * sizeof(float); at += 64) __builtin_prefetch(full + at, 0, 2);
        return;
    }
}

/* The next node to expand, marked as such; NODE_NONE at the end. */
static inline uint32_t walk_next(struct walk *w)
{
    struct candidates *c = &w->candidates;
    if (w->ruled) {
        if (c->count - c->cursor < FRONT_FEW && candidates_behind(c))
            sealed_candidates_move(c, w->kernel, pool_key(w->limit, 0));
        if (c->cursor == c->count || pool_estimate(c->front[c->cursor]) > w->end) return NODE_NONE;
        return pool_node(c->front[c->cursor++]);
    }
    for (; w->cursor < w->count; w->cursor++) {
        uint64_t key = w->pool[w->cursor];
        if (key & KEY_EXPANDED) continue;
        w->pool[w->cursor++] = key | KEY_EXPANDED;
        return pool_node(key);
    }
    return NODE_NONE;
}

static enum omen_err near_reserve(struct index_scratch *scratch, uint32_t count)
{
    if (scratch->near_cap >= count) return OMEN_OK;
    mem_free(scratch->near);
    scratch->near_cap = 0;
    scratch->near = mem_alloc(count * sizeof *scratch->near);
    if (scratch->near == NULL) return OMEN_ENOMEM;
    scratch->near_cap = count;
    return OMEN_OK;
}

enum omen_err sealed_walk(const struct sealed *s, const struct index_search *search, struct sealed_pace pace,
        uint32_t want, struct index_scratch *scratch, struct index_hit *hits_out, uint32_t *count_out,
        struct index_cost *cost)
{
    if (s->compact != NULL) return compact_walk(s, search, pace, want, scratch, hits_out, count_out, cost);
    uint32_t near = search->k < SEALED_RULE_NEAR ? SEALED_RULE_NEAR : search->k, effort = pace.effort;
    bool ruled = pace.slack != INFINITY;
    uint32_t behind = 2 * effort > BEHIND_LEAST ? 2 * effort : BEHIND_LEAST;
    enum omen_err rc = sealed_scratch_reserve(scratch, ruled ? candidates_room(behind) / 2 : effort, 0);
    if (rc == OMEN_OK) rc = sealed_visited_reserve(scratch, 2 * want);
    if (rc == OMEN_OK && ruled) rc = near_reserve(scratch, near);
    if (rc != OMEN_OK) return rc;
    sealed_query_prepare(s, search->query, scratch);
    seen_clear(scratch);
    struct walk w;
    w.s = s;
    w.kernel = code_kernel_get();
    w.scratch = scratch;
    w.pool = scratch->pool;
    w.other = scratch->pool + effort + 8;
    w.width = effort;
    w.count = w.cursor = 0;
    w.ruled = ruled;
    w.near = (struct index_heap){ scratch->near, near, 0 };
    w.slack = pace.slack;
    w.decay = pace.decay;
    w.limit = w.end = INFINITY;
    w.idle = 0;
    w.promising_count = 0;
    w.rescores = !(s->lossless && s->rows.metric == METRIC_L2);
    uint32_t hops = 0, entered = sealed_enter(s, scratch, &w.count, effort);
    if (ruled) candidates_init(&w.candidates, scratch->pool, w.count, behind);
    struct visited visited = { scratch->visited, want, 0, UINT64_MAX };
    for (uint32_t node; (node = walk_next(&w)) != NODE_NONE;) {
        bool fresh;
        if (seen_add(scratch, node, &fresh) != OMEN_OK) return OMEN_ENOMEM;
        if (!fresh) continue;
        const uint8_t *row = sealed_row(s, node);
        const struct sealed_head *head = sealed_head(s, row);
        float exact = w.kernel->l2sq_f32_u8(scratch->query, row + s->layout.own, head->own_lo,
                head->own_scale, s->dim);
        if (ruled) limit_lower(&w, exact, node, head->slot);
        neighbours_offer(&w, row, exact);
        if (ruled) {
            prefetch_ahead(s, w.candidates.front, w.candidates.cursor, w.candidates.count);
            promising_fetch(&w);
        } else {
            prefetch_ahead(s, w.pool, w.cursor, w.count);
        }
        if (search->filter == NULL || index_bit(search->filter, head->slot))
            visited_add(&visited, exact, node);
        if (++hops % INDEX_POLL_HOPS == 0 && search->stop != NULL && search->stop(search->stop_arg))
            return OMEN_EDEADLINE;
    }
    *count_out = visited_end(&visited, ruled ? sealed_want(s, search->k, hops) : want, hits_out);
    cost->hops += hops;
    cost->distances += hops;
    cost->estimates += (uint64_t)hops * SEALED_DEGREE + entered;
    cost->effort += ruled ? hops : effort;
    return OMEN_OK;
}
