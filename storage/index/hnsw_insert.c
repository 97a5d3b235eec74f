/* Inserting a point (Malkov & Yashunin 2018, algorithm 1), and finding neighbours for one that lost its
 * links.
 *
 * Departs from the paper: neighbours on all layers are found before any link is stored, and the node's own
 * rows are written before the first link to it, so that a reader never arrives at a node whose lower rows
 * are still empty.
 * Distances are those of the walk (8-bit codes): choosing neighbours needs order, not the last bit.
 * Threads: several at once; each shares the training lock and is pinned while it reads. */
#include "storage/index/hnsw_impl.h"

#include <math.h>

#define HALF_M 12 /* fewer links than this need the best that are to be had */

static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

/* Exponentially distributed; the n-th insert has the same level in every run with one seed. */
static uint32_t level_draw(struct hnsw *h)
{
    uint64_t n = atomic_fetch_add_explicit(&h->insert_count, 1, memory_order_relaxed);
    double uniform = ((double)(mix(h->seed ^ mix(n)) >> 11) + 0.5) * 0x1p-53;
    double level = floor(-log(uniform) * h->level_factor);
    return level > HNSW_LEVEL_MAX ? HNSW_LEVEL_MAX : (uint32_t)level;
}

/* ---- finding neighbours ------------------------------------------------------------------------------- */

/* From the pool: the chosen neighbours of `node` on a layer. */
static uint32_t choose(struct hnsw *h, const struct hnsw_codes *codes, struct index_scratch *w, uint32_t node,
        uint32_t max, struct hnsw_link *chosen_out)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < w->pool_count && count < h->ef_construction; i++) {
        uint32_t other = hnsw_pool_node(w->pool[i]);
        if (other == node || !hnsw_linkable(h, other)) continue;
        w->links[count++] = (struct hnsw_link){ hnsw_key_value(codes, hnsw_pool_key(w->pool[i])), other };
    }
    uint32_t chosen = hnsw_select(h, codes, w->links, count, max);
    memcpy(chosen_out, w->links, chosen * sizeof *chosen_out);
    return chosen;
}

/* Chosen neighbours by layer into w->found, their numbers into counts; the number on layer 0. `ground`: only
 * what the entry reaches on layer 0. */
static uint32_t find_neighbours(struct hnsw *h, const struct hnsw_codes *codes, struct index_scratch *w,
        uint32_t node, uint64_t entry, bool ground, uint32_t counts[HNSW_LEVEL_MAX + 1])
{
    struct hnsw_probe probe;
    uint32_t level = h->levels[node], entry_level = (uint32_t)(entry >> 32), seeds[HNSW_SEEDS];
    struct hnsw_walk walk = { .h = h,
        .codes = codes,
        .probe = &probe,
        .scratch = w,
        .half = !ground && h->M >= HALF_M,
        .distances_max = UINT64_MAX };
    hnsw_probe_node(h, codes, node, w->code, &probe);
    memset(counts, 0, (HNSW_LEVEL_MAX + 1) * sizeof *counts);
    if (ground) level = entry_level = 0;
    uint32_t layer = level < entry_level ? level : entry_level;
    uint32_t seed_count = hnsw_seeds(&walk, ground ? (uint32_t)entry : entry, layer, seeds);
    for (;; layer--) {
        hnsw_beam(&walk, seeds, seed_count, layer, h->ef_construction);
        counts[layer] = choose(h, codes, w, node, h->M, w->found + (size_t)layer * 2 * h->M);
        if (layer == 0) break;
        for (seed_count = 0; seed_count < HNSW_SEEDS && seed_count < w->pool_count; seed_count++)
            seeds[seed_count] = hnsw_pool_node(w->pool[seed_count]);
    }
    uint32_t first = (uint32_t)
            entry; /* pushed out of a pool full of dead nodes it is still there to hold on to */
    if (counts[0] == 0 && first != node && hnsw_linkable(h, first)) {
        w->found[0] = (struct hnsw_link){ hnsw_key_value(codes, hnsw_distance(h, codes, node, first)),
            first };
        counts[0] = 1;
    }
    return counts[0];
}

static void write_own_rows(struct hnsw *h, const struct index_scratch *w, uint32_t node,
        const uint32_t counts[HNSW_LEVEL_MAX + 1])
{
    uint32_t neighbours[2 * HNSW_M_MAX];
    for (uint32_t layer = 0; layer <= h->levels[node]; layer++) {
        if (counts[layer] == 0) continue;
        const struct hnsw_link *found = w->found + (size_t)layer * 2 * h->M;
        for (uint32_t i = 0; i < counts[layer]; i++) neighbours[i] = found[i].node;
        hnsw_row_lock(h, node, layer);
        hnsw_row_write(h, node, layer, neighbours, counts[layer]);
        hnsw_row_unlock(h, node, layer);
    }
}

static void entry_raise(struct hnsw *h, uint32_t node)
{
    uint32_t level = h->levels[node];
    if (level <= (uint32_t)(atomic_load(&h->entry) >> 32)) return;
    pthread_mutex_lock(&h->entry_lock);
    if (level > (uint32_t)(atomic_load(&h->entry) >> 32))
        atomic_store(&h->entry, (uint64_t)level << 32 | node);
    pthread_mutex_unlock(&h->entry_lock);
}

/* Become the entry of a graph in which nobody lives. False when somebody else is. */
static bool entry_claim(struct hnsw *h, uint32_t node)
{
    pthread_mutex_lock(&h->entry_lock);
    uint32_t now = (uint32_t)atomic_load(&h->entry);
    bool mine = now == HNSW_NONE || now == node || !hnsw_linkable(h, now);
    if (mine) atomic_store(&h->entry, (uint64_t)h->levels[node] << 32 | node);
    pthread_mutex_unlock(&h->entry_lock);
    return mine;
}

bool hnsw_connect(struct hnsw *h, const struct hnsw_codes *codes, struct index_scratch *w, uint32_t node,
        bool force)
{
    uint32_t counts[HNSW_LEVEL_MAX + 1];
    uint64_t entry = atomic_load(&h->entry);
    if ((uint32_t)entry == HNSW_NONE || find_neighbours(h, codes, w, node, entry, force, counts) == 0)
        return false;
    uint32_t own[2 * HNSW_M_MAX];
    if (!force || hnsw_row_read(h, node, 0, own) == 0) write_own_rows(h, w, node, counts);
    for (uint32_t layer = 0; layer <= h->levels[node]; layer++) {
        const struct hnsw_link *found = w->found + (size_t)layer * 2 * h->M;
        for (uint32_t i = 0; i < counts[layer]; i++)
            hnsw_link_add(h, codes, w, found[i].node, layer, node, found[i].distance,
                    force && layer == 0 && i == 0);
    }
    return true;
}

/* ---- insert ------------------------------------------------------------------------------------------- */

/* The point becomes part of the graph. Caller is pinned and shares the training lock. */
static bool link_in(struct hnsw *h, struct index_scratch *w, uint32_t node)
{
    struct hnsw_codes *codes = atomic_load_explicit(&h->codes, memory_order_acquire);
    uint32_t dead = atomic_load_explicit(&h->dead_count, memory_order_relaxed);
    uint32_t pool = dead > HNSW_POOL_MAX - h->ef_construction ? HNSW_POOL_MAX : h->ef_construction + dead;
    if (!hnsw_scratch_begin(w, codes, pool)) return false;
    if (!hnsw_codes_put(h, codes, node))
        atomic_fetch_add_explicit(&h->clipped_count, 1, memory_order_relaxed);
    while (!hnsw_connect(h, codes, w, node, false)) {
        if (entry_claim(h, node)) break;
    }
    entry_raise(h, node);
    return true;
}

static enum omen_err insert_with(struct hnsw *h, struct index_scratch *w, uint32_t slot, const float *vector)
{
    uint32_t node;
    enum omen_err rc = hnsw_node_alloc(h, level_draw(h), &node);
    if (rc != OMEN_OK) return rc;
    memcpy(h->vectors + (size_t)node * h->vector_stride, vector, h->index.dim * sizeof *vector);
    h->slots[node] = slot;
    uint32_t none = 0;
    if (!atomic_compare_exchange_strong(&h->nodes[slot], &none, node + 1)) {
        hnsw_node_free(h, node); /* never linked: nobody saw it */
        return OMEN_EEXISTS;
    }
    if (!link_in(h, w, node)) {
        atomic_store(&h->nodes[slot], 0);
        hnsw_node_free(h, node);
        return OMEN_ENOMEM;
    }
    uint32_t end = atomic_load(&h->slot_end);
    while (end <= slot && !atomic_compare_exchange_weak(&h->slot_end, &end, slot + 1)) {}
    atomic_store_explicit(&h->states[node], HNSW_LIVE, memory_order_release);
    atomic_fetch_add_explicit(&h->live_count, 1, memory_order_relaxed);
    return OMEN_OK;
}

enum omen_err hnsw_insert(struct index *index, uint32_t slot, const float *vector, struct err *err)
{
    struct hnsw *h = hnsw_of(index);
    enum omen_err rc = OMEN_OK;
    struct index_scratch *w = hnsw_writer_take(h);
    if (w == NULL) return err_set(err, OMEN_ENOMEM, NULL, "no memory to insert slot %u", slot);
    for (int attempt = 0; attempt < 2; attempt++) {
        pthread_rwlock_rdlock(&h->train_lock);
        hnsw_pin(h, w->pin);
        rc = insert_with(h, w, slot, vector);
        hnsw_unpin(w->pin);
        pthread_rwlock_unlock(&h->train_lock);
        if (rc != OMEN_EFULL || atomic_load(&h->dead_count) == 0) break;
        hnsw_repair_all(h, w); /* the room there is belongs to deleted points */
    }
    if (rc == OMEN_OK) hnsw_repair_step(h, w);
    hnsw_writer_give(h, w);
    /* Without memory for better codes the present ones go on; the next insert tries again. */
    if (rc == OMEN_OK && hnsw_retrain_due(h) && hnsw_retrain(h) != OMEN_OK)
        atomic_fetch_add_explicit(&h->clipped_count, 1, memory_order_relaxed);
    if (rc == OMEN_EEXISTS) return err_set(err, rc, "slot", "slot %u is in the index already", slot);
    if (rc == OMEN_EFULL) return err_set(err, rc, NULL, "the index is full: %u points", h->node_capacity);
    if (rc != OMEN_OK) return err_set(err, rc, NULL, "no memory to insert slot %u", slot);
    return OMEN_OK;
}
