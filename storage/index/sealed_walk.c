/* The walk of a sealed graph: from the nearest leaders along estimates, best first, until the pool holds nothing
 * unexpanded; see sealed.c for what a row holds.
 *
 * What a hop costs on Zen 3 (0.4 us at 128-d) is half waiting for rows, so a row is asked for as soon as its
 * estimate is known to be among the next: the best of a hop's neighbours before any of them enters the pool, then
 * those that come next in the pool, each once (a bit of the key remembers). Threads: no state beside the
 * scratch. */
#include "storage/index/sealed_walk.h"

#include "common/mem.h"
#include "storage/index/compact.h"
#include "storage/kernel/kernel.h"

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

struct entry {
    uint64_t best[SEALED_GROUPS_MET + 8]; /* ascending; room as pool_insert wants it */
    uint32_t count, cap;
    float bound;
};

/* Offer one group of a sketch; `names` [32] says what its places stand for, NULL = their numbers. */
static inline void entry_offer(const struct sealed *s, const struct index_scratch *scratch,
        const struct sealed_sketch *sketch, uint32_t group, const uint32_t *names, float base,
        struct entry *entry)
{
    const struct code_kernel *kernel = code_kernel_get();
    const uint8_t *codes = sketch->groups + (size_t)group * sketch->group_bytes;
    const uint16_t *f = (const uint16_t *)(const void *)(codes + rabitq_codes_bytes(s->padded));
    struct code_factors factors = { f, f + CODE_GROUP, sketch->scales[group * 2],
        sketch->scales[group * 2 + 1] };
    float estimates[CODE_GROUP];
    uint32_t mask = kernel->estimate_32(&scratch->code, codes, &factors, base, entry->bound, estimates);
    for (; mask != 0; mask &= mask - 1) {
        uint32_t i = (uint32_t)__builtin_ctz(mask);
        (void)kernel->pool_insert(entry->best, &entry->count, entry->cap,
                pool_key(estimates[i], names != NULL ? names[i] : group * CODE_GROUP + i));
        if (entry->count == entry->cap) entry->bound = pool_estimate(entry->best[entry->cap - 1]);
    }
}

uint32_t sealed_enter(const struct sealed *s, struct index_scratch *scratch, uint32_t *count, uint32_t cap)
{
    const struct sealed_leaders *l = &s->leaders;
    float base = kernel_get()->dot_f32(scratch->rotated, scratch->rotated, s->padded);
    struct entry near = { .cap = SEALED_GROUPS_MET, .bound = INFINITY },
                 entry = { .cap = SEALED_ENTRIES, .bound = INFINITY };
    uint32_t middle_groups = (l->middles.count + CODE_GROUP - 1) / CODE_GROUP, met = 0;
    for (uint32_t g = 0; g < middle_groups; g++) entry_offer(s, scratch, &l->middles, g, NULL, base, &near);
    for (uint32_t i = 0; i < near.count; i++, met++) {
        uint32_t g = pool_node(near.best[i]);
        entry_offer(s, scratch, &l->codes, g, l->nodes + (size_t)g * CODE_GROUP, base, &entry);
    }
    for (uint32_t g = l->middles.count; g < l->codes.count / CODE_GROUP; g++, met++)
        entry_offer(s, scratch, &l->codes, g, l->nodes + (size_t)g * CODE_GROUP, base, &entry);
    for (uint32_t i = 0; i < entry.count; i++) {
        (void)code_kernel_get()->pool_insert(scratch->pool, count, cap, entry.best[i] | KEY_FETCHED);
        row_prefetch(s, pool_node(entry.best[i]));
    }
    return (middle_groups + met) * CODE_GROUP;
}

/* ---- the walk ---- */

struct walk {
    const struct sealed *s;
    const struct code_kernel *kernel;
    struct index_scratch *scratch;
    uint64_t *pool, *other;        /* [effort + 8] ascending keys; where the next pool is written */
    uint32_t width, count, cursor; /* of the pool */
    uint32_t effort;               /* the width in the end */
    struct index_heap near;        /* what the stop rule looks at */
    float slack, limit;            /* estimates from `limit` on are not followed */
};

/* The neighbours of an expanded node whose estimates are nearer than the pool's worst and that are not expanded
 * themselves, into the pool. */
static inline void neighbours_offer(struct walk *w, const uint8_t *row, float exact)
{
    const struct sealed *s = w->s;
    const struct sealed_head *head = sealed_head(s, row);
    uint64_t *pool = w->pool, fresh[CODE_GROUP + 4], best = UINT64_MAX;
    float bound = w->count == w->width ? fminf(pool_estimate(pool[w->count - 1]), w->limit) : w->limit;
    float estimates[CODE_GROUP];
    struct code_factors factors = { (const uint16_t *)(const void *)(row + s->layout.f),
        (const uint16_t *)(const void *)(row + s->layout.g), head->f_scale, head->g_scale };
    uint32_t mask = w->kernel->estimate_32(&w->scratch->code, row, &factors, exact, bound, estimates), n = 0;
    const uint32_t *ids = sealed_ids(s, row);
    for (; mask != 0; mask &= mask - 1) {
        uint32_t i = (uint32_t)__builtin_ctz(mask);
        if (seen_has(w->scratch, ids[i])) continue;
        fresh[n] = pool_key(estimates[i], ids[i]);
        best = fresh[n] < best ? fresh[n] : best;
        n++;
    }
    if (n == 0) return;
    if (w->cursor >= w->count || best < pool[w->cursor]) row_prefetch(s, pool_node(best));
    uint32_t lowest = w->kernel->pool_merge(pool, w->count, w->width, fresh, n, w->other);
    w->pool = w->other;
    w->other = pool;
    w->count = w->count + n < w->width ? w->count + n : w->width;
    if (lowest < w->cursor) w->cursor = lowest;
}

#define WIDTH_FIRST                                                                                          \
    24 /* of the pool beside 4 k while no limit is known yet: most of what enters then never matters */

/* The stop rule: nothing is followed whose estimate is beyond `slack` times the k-th distance that the walk has
 * found so far. Easy queries, whose neighbours stand apart from the rest, end early; where distances lie close
 * together more is looked at. (Distance adaptive beam search, arXiv 2505.15636, on estimates.) */
static inline void limit_lower(struct walk *w, float exact, uint32_t node)
{
    index_heap_push(&w->near, (struct index_hit){ exact, node });
    if (w->near.count < w->near.k) return;
    w->width = w->effort;
    w->limit = w->slack * w->near.hits[0].distance;
    while (w->count > w->cursor && pool_estimate(w->pool[w->count - 1]) > w->limit) w->count--;
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
    enum omen_err rc = sealed_scratch_reserve(scratch, effort, 0);
    if (rc == OMEN_OK && ruled) rc = near_reserve(scratch, near);
    if (rc != OMEN_OK) return rc;
    sealed_query_prepare(s, search->query, scratch);
    seen_clear(scratch);
    struct walk w = { s, code_kernel_get(), scratch, scratch->pool, scratch->pool + effort + 8, effort, 0, 0,
        effort, { scratch->near, near, 0 }, pace.slack, INFINITY };
    if (ruled && 4 * near + WIDTH_FIRST < effort) w.width = 4 * near + WIDTH_FIRST;
    uint32_t hops = 0, entered = sealed_enter(s, scratch, &w.count, effort);
    struct index_heap found = { hits_out, want, 0 };
    while (w.cursor < w.count) {
        uint64_t key = w.pool[w.cursor];
        if (key & KEY_EXPANDED) {
            w.cursor++;
            continue;
        }
        w.pool[w.cursor++] = key | KEY_EXPANDED;
        uint32_t node = pool_node(key);
        bool fresh;
        if (seen_add(scratch, node, &fresh) != OMEN_OK) return OMEN_ENOMEM;
        if (!fresh) continue;
        const uint8_t *row = sealed_row(s, node);
        const struct sealed_head *head = sealed_head(s, row);
        float exact = w.kernel->l2sq_f32_u8(scratch->query, row + s->layout.own, head->own_lo,
                head->own_scale, s->dim);
        if (ruled) limit_lower(&w, exact, node);
        neighbours_offer(&w, row, exact);
        prefetch_ahead(s, w.pool, w.cursor, w.count);
        if (search->filter == NULL || index_bit(search->filter, head->slot))
            index_heap_push(&found, (struct index_hit){ exact, node });
        if (++hops % INDEX_POLL_HOPS == 0 && search->stop != NULL && search->stop(search->stop_arg))
            return OMEN_EDEADLINE;
    }
    index_heap_sort(&found);
    *count_out = found.count;
    cost->hops += hops;
    cost->distances += hops;
    cost->estimates += (uint64_t)hops * SEALED_DEGREE + entered;
    cost->effort += ruled ? w.cursor : effort;
    return OMEN_OK;
}
