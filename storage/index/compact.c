/* The walk over the *compact* layout of the sealed graph.
 *
 * A node is a row of ids (two cache lines) and, elsewhere, its code (storage/quant: one line at 4 bits and 128
 * dimensions). A hop reads the row, then the codes of those neighbours that were not met before. As each node
 * is met once and its estimate does not depend on the way there, the pool holds no node twice, and its front
 * is the answer, which the caller rescores from full rows: as many as the error of the codes demands.
 *
 * Codes lie anywhere, so a hop would wait for memory. Therefore one node is always expanded ahead: its
 * neighbours' codes are on their way while those of the node before are compared. That costs 5 % more
 * distances and saves a quarter to a half of the time. Threads: immutable; any number of readers, each with
 * its own scratch. */
#include "storage/index/compact.h"

#include "common/mem.h"
#include "storage/index/sealed_walk.h"
#include "storage/kernel/kernel.h"

#define MET_MIN 2048    /* places of the table of met nodes; grows at half */
#define CUT_ERRORS 2.5f /* beyond the k-th estimate: no row further away is rescored */
#define ROWS_AHEAD 3    /* next nodes of the pool whose rows are on their way */

/* What a search thread keeps beside sealed's own. */
struct compact_scratch {
    struct quant_query *query; /* NULL without codes */
    uint32_t *met;             /* [cap] nodes whose codes were read, open addressing, NODE_NONE = free */
    uint32_t cap, count;
};

struct compact *compact_new(void) { return mem_calloc(1, sizeof(struct compact)); }

void compact_free(struct compact *compact)
{
    if (compact == NULL) return;
    quant_free(compact->quant);
    if (compact->mapped != 0) sealed_pages_free(compact->codes, compact->mapped);
    mem_free(compact->slots);
    mem_free(compact);
}

struct compact_scratch *compact_scratch_new(const struct compact *compact)
{
    struct compact_scratch *scratch = mem_calloc(1, sizeof *scratch);
    if (scratch == NULL) return NULL;
    if (compact->quant != NULL) scratch->query = quant_query_new(compact->quant);
    scratch->cap = MET_MIN;
    scratch->met = mem_alloc_aligned(64, MET_MIN * sizeof(uint32_t));
    if ((compact->quant == NULL || scratch->query != NULL) && scratch->met != NULL) return scratch;
    compact_scratch_free(scratch);
    return NULL;
}

void compact_scratch_free(struct compact_scratch *scratch)
{
    if (scratch == NULL) return;
    quant_query_free(scratch->query);
    mem_free(scratch->met);
    mem_free(scratch);
}

uint64_t compact_memory_bytes(const struct sealed *s)
{
    const struct compact *c = s->compact;
    uint64_t trained = c->quant == NULL ? 0 : quant_memory_bytes(c->quant, 0);
    return (uint64_t)s->count * (c->stride + sizeof *c->slots) + sizeof *c + trained;
}

/* ---- nodes that were met ---- */

static inline uint32_t met_place(const struct compact_scratch *scratch, uint32_t node)
{
    uint32_t i = node * 0x9e3779b1u >> 8 & (scratch->cap - 1);
    while (scratch->met[i] != node && scratch->met[i] != NODE_NONE) i = (i + 1) & (scratch->cap - 1);
    return i;
}

/* Room for the neighbours of one more node; the table is at most half full. */
static inline bool met_reserve(struct compact_scratch *scratch)
{
    if ((scratch->count + SEALED_DEGREE + 1) * 2 <= scratch->cap) return true;
    uint32_t *old = scratch->met, old_cap = scratch->cap;
    uint32_t *grown = mem_alloc_aligned(64, (size_t)old_cap * 2 * sizeof *grown);
    if (grown == NULL) return false;
    memset(grown, 0xff, (size_t)old_cap * 2 * sizeof *grown);
    scratch->met = grown;
    scratch->cap = old_cap * 2;
    for (uint32_t i = 0; i < old_cap; i++)
        if (old[i] != NODE_NONE) grown[met_place(scratch, old[i])] = old[i];
    mem_free(old);
    return true;
}

/* true when it was not met before; it is now. */
static inline bool met_first(struct compact_scratch *scratch, uint32_t node)
{
    uint32_t place = met_place(scratch, node);
    if (scratch->met[place] == node) return false;
    scratch->met[place] = node;
    scratch->count++;
    return true;
}

/* ---- rows and codes ---- */

/* Each line once: a second prefetch of a line that is on its way made walks half as fast on Zen 3. */
static inline void code_prefetch(const struct compact *c, uint32_t node)
{
    const uint8_t *code = c->codes + (size_t)node * c->stride, *end = code + c->stride;
    for (code -= (uintptr_t)code % 64; code < end; code += 64) __builtin_prefetch(code, 0, 3);
}

/* Neighbours of a node that were not met before, their codes on the way; how many. */
static inline uint32_t fresh_of(const struct sealed *s, struct compact_scratch *own, uint32_t node,
        uint32_t fresh_out[SEALED_DEGREE])
{
    const uint32_t *ids = sealed_ids(s, sealed_row(s, node));
    uint32_t count = 0;
    for (uint32_t i = 0; i < SEALED_DEGREE && ids[i] != node; i++) {
        if (!met_first(own, ids[i])) continue;
        code_prefetch(s->compact, ids[i]);
        fresh_out[count++] = ids[i];
    }
    return count;
}

static inline void estimate(const struct sealed *s, const struct compact_scratch *own, const uint32_t *nodes,
        uint32_t count, float *estimates_out)
{
    const struct compact *c = s->compact;
    quant_estimate(c->quant, own->query, c->codes, c->stride, nodes, count, estimates_out);
}

void compact_begin(const struct sealed *s, struct index_scratch *scratch)
{
    struct compact_scratch *own = scratch->compact;
    quant_prepare(s->compact->quant, METRIC_L2, scratch->rotated, own->query);
    memset(own->met, 0xff, own->cap * sizeof *own->met);
    own->count = 0;
}

enum omen_err compact_neighbours(const struct sealed *s, struct index_scratch *scratch, uint32_t node,
        uint32_t *ids_out, float *estimates_out, uint32_t *count_out)
{
    struct compact_scratch *own = scratch->compact;
    if (!met_reserve(own)) return OMEN_ENOMEM;
    uint32_t count = 0;
    if (met_first(own, node)) ids_out[count++] = node;
    count += fresh_of(s, own, node, ids_out + count);
    for (uint32_t i = 0; i < count; i++) __builtin_prefetch(s->compact->slots + ids_out[i], 0, 3);
    if (count > 0) estimate(s, own, ids_out, count, estimates_out);
    *count_out = count;
    return OMEN_OK;
}

/* ---- one walk ---- */

struct walk {
    const struct sealed *s;
    const struct code_kernel *kernel;
    const struct index_search *search;
    struct compact_scratch *own;
    uint64_t *pool, *other;        /* [width + 8] keys, ascending; where the next pool is written */
    uint32_t width, count, cursor; /* of the pool; places before `cursor` are expanded */
    uint32_t effort;               /* as many are expanded at most */
    uint32_t want;                 /* as many stay in the pool whatever the rule says */
    uint32_t near;                 /* the stop rule looks at the distance of this many */
    float slack;                   /* and follows nothing beyond this times it; infinite = no rule */
    struct index_heap found;       /* under a filter: those met that pass */
};

/* Estimates beyond this are not followed: sealed_walk.c's stop rule, on what the pool's codes say. */
static inline float limit_of(const struct walk *w)
{
    if (w->slack == INFINITY || w->count < w->near) return INFINITY;
    return w->slack * pool_estimate(w->pool[w->near - 1]);
}

/* `count` nodes that are met for the first time: into the pool, and to the answer what passes. */
static void meet(struct walk *w, const uint32_t *nodes, uint32_t count)
{
    float estimates[SEALED_DEGREE];
    float bound = w->count == w->width ? pool_estimate(w->pool[w->count - 1]) : INFINITY;
    if (w->count >= w->want) bound = fminf(bound, limit_of(w));
    uint64_t fresh[SEALED_DEGREE + 4], best = UINT64_MAX;
    uint32_t n = 0;
    estimate(w->s, w->own, nodes, count, estimates);
    for (uint32_t i = 0; i < count; i++) {
        if (w->search->filter != NULL && index_bit(w->search->filter, w->s->compact->slots[nodes[i]]))
            index_heap_push(&w->found, (struct index_hit){ estimates[i], nodes[i] });
        fresh[n] = pool_key(estimates[i], nodes[i]);
        if (!(estimates[i] < bound)) continue;
        best = fresh[n] < best ? fresh[n] : best;
        n++;
    }
    if (n == 0) return;
    if (w->cursor >= w->count || best < w->pool[w->cursor]) row_prefetch(w->s, pool_node(best));
    uint64_t *pool = w->pool;
    uint32_t lowest = w->kernel->pool_merge(pool, w->count, w->width, fresh, n, w->other);
    w->pool = w->other;
    w->other = pool;
    w->count = w->count + n < w->width ? w->count + n : w->width;
    if (lowest < w->cursor) w->cursor = lowest;
    if (w->slack == INFINITY || w->count < w->near) return;
    float limit = limit_of(w);
    while (w->count > w->want && w->count > w->cursor && pool_estimate(w->pool[w->count - 1]) > limit)
        w->count--;
}

/* From the nearest leaders; how many codes of leaders were looked at. The pool is empty before. */
static uint32_t enter(struct walk *w, struct index_scratch *scratch)
{
    uint32_t nodes[SEALED_ENTRIES], count = 0, entries = 0;
    uint32_t looked = sealed_enter(w->s, scratch, &entries, SEALED_ENTRIES);
    for (uint32_t i = 0; i < entries; i++) {
        uint32_t node = pool_node(w->pool[i]);
        if (!met_first(w->own, node)) continue;
        code_prefetch(w->s->compact, node);
        nodes[count++] = node;
    }
    meet(w, nodes, count);
    return looked;
}

/* The next node to expand; NODE_NONE when none is left among the first `effort` and within the limit. */
static inline uint32_t next_node(struct walk *w)
{
    while (w->cursor < w->count && w->cursor < w->effort) {
        uint64_t key = w->pool[w->cursor];
        if (pool_estimate(key) > limit_of(w)) return NODE_NONE;
        w->pool[w->cursor++] = key | KEY_EXPANDED;
        if (!(key & KEY_EXPANDED)) return pool_node(key);
    }
    return NODE_NONE;
}

static inline void rows_ahead(const struct walk *w)
{
    uint32_t found = 0;
    for (uint32_t at = w->cursor; at < w->count && found < ROWS_AHEAD; at++) {
        if (w->pool[at] & KEY_EXPANDED) continue;
        found++;
        if (w->pool[at] & KEY_FETCHED) continue;
        w->pool[at] |= KEY_FETCHED;
        row_prefetch(w->s, pool_node(w->pool[at]));
    }
}

static enum omen_err run(struct walk *w, uint32_t *hops)
{
    uint32_t lists[2][SEALED_DEGREE], counts[2] = { 0, 0 };
    for (uint32_t turn = 0;; turn ^= 1) {
        uint32_t node = next_node(w), before = turn ^ 1;
        if (node == NODE_NONE && counts[before] == 0) return OMEN_OK;
        if (node != NODE_NONE) {
            if (!met_reserve(w->own)) return OMEN_ENOMEM;
            counts[turn] = fresh_of(w->s, w->own, node, lists[turn]);
            ++*hops;
        }
        if (counts[before] > 0) meet(w, lists[before], counts[before]);
        counts[before] = 0;
        rows_ahead(w);
        if (node != NODE_NONE && *hops % INDEX_POLL_HOPS == 0 && w->search->stop != NULL &&
                w->search->stop(w->search->stop_arg))
            return OMEN_EDEADLINE;
    }
}

uint32_t compact_cut(const struct sealed *s, const struct index_scratch *scratch,
        const struct index_hit *hits, uint32_t count, uint32_t k)
{
    if (k == 0 || k >= count || s->pca.kept != 0) return count;
    float last = hits[k - 1].distance;
    float bound = last + CUT_ERRORS * quant_error(s->compact->quant, scratch->compact->query, last);
    uint32_t n = k;
    while (n < count && hits[n].distance <= bound) n++;
    return n;
}

enum omen_err compact_walk(const struct sealed *s, const struct index_search *search, struct sealed_pace pace,
        uint32_t want, struct index_scratch *scratch, struct index_hit *hits_out, uint32_t *count_out,
        struct index_cost *cost)
{
    uint32_t width = pace.effort > want ? pace.effort : want, hops = 0;
    bool ruled = pace.slack != INFINITY;
    enum omen_err rc = sealed_scratch_reserve(scratch, width, 0);
    if (rc != OMEN_OK) return rc;
    sealed_query_prepare(s, search->query, scratch);
    compact_begin(s, scratch);
    struct walk w = { .s = s,
        .kernel = code_kernel_get(),
        .search = search,
        .own = scratch->compact,
        .pool = scratch->pool,
        .other = scratch->pool + width + 8,
        .width = width,
        .effort = pace.effort,
        .want = want,
        .near = search->k < SEALED_RULE_NEAR ? SEALED_RULE_NEAR : search->k,
        .slack = pace.slack,
        .found = { hits_out, want, 0 } };
    uint32_t looked = enter(&w, scratch);
    rc = run(&w, &hops);
    if (rc != OMEN_OK) return rc;
    if (search->filter == NULL)
        for (uint32_t i = 0; i < w.count && i < want; i++)
            hits_out[w.found.count++] = (struct index_hit){ pool_estimate(w.pool[i]), pool_node(w.pool[i]) };
    else
        index_heap_sort(&w.found);
    *count_out = compact_cut(s, scratch, hits_out, w.found.count, search->k);
    cost->hops += hops;
    cost->distances += w.own->count;
    cost->estimates += looked;
    cost->effort += ruled ? hops : pace.effort;
    return OMEN_OK;
}
