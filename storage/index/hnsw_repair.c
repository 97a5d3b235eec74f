/* Real deletes: dead points are cut out of the graph, their neighbours linked to each other, their nodes
 * reused.
 *
 * After FreshDiskANN's consolidation (2105.09613) and IP-DiskANN (2502.13826): instead of searching for the
 * nodes that link to a dead one, which may miss some, every row is swept; a row is 128 bytes, so a million
 * take some 10 ms, and only a sweep proves that no link is left, which reuse needs. A row gets as many new
 * neighbours as it lost, from the neighbours of those it lost (MN-RU 2407.07871), by the rule of insertion.
 * Then a walk from the entry finds points that lost their last link and links them again.
 *
 *   IDLE -enough dead-> WAIT -older writers ended-> SWEEP -all rows-> DRAIN -older readers ended-> REACH
 *   REACH -all walked-> RELINK -nothing relinked, or 3 rounds-> IDLE
 *   RELINK -something relinked-> REACH
 *
 * Work is done in steps by the writers themselves, so that a delete costs a bounded piece of it: a round
 * ends before the next batch is full.
 * Threads: one at a time holds the repair lock, the others go on without. Steps are pinned and share the
 * training lock like inserts. */
#include "storage/index/hnsw_impl.h"

#include <sched.h>

#define BATCH_MIN 64
#define BATCH_SHARE 64     /* a batch is this part of the live points */
#define STEP_ROWS 64       /* rows per step beside the share that keeps pace */
#define CANDIDATES_MAX 512 /* replacements looked at for one row */
#define ROUNDS_MAX 3

static uint32_t batch_size(const struct hnsw *h)
{
    return BATCH_MIN + atomic_load_explicit(&h->live_count, memory_order_relaxed) / BATCH_SHARE;
}

static void phase_set(struct hnsw *h, enum hnsw_repair_phase phase)
{
    atomic_store_explicit(&h->repair.phase, phase, memory_order_relaxed);
}

/* ---- remove ------------------------------------------------------------------------------------------- */

/* The caller is pinned: the node cannot become another point's between the look-up and the change of its
 * state. */
static enum omen_err bury(struct hnsw *h, uint32_t slot)
{
    enum omen_err rc = OMEN_ENOTFOUND;
    pthread_mutex_lock(&h->alloc_lock);
    uint32_t node = atomic_load(&h->nodes[slot]) - 1;
    uint8_t live = HNSW_LIVE;
    if (node == HNSW_NONE || hnsw_state(h, node) != HNSW_LIVE) {
        rc = OMEN_ENOTFOUND;
    } else if (!hnsw_list_push(&h->dead_nodes, node)) {
        rc = OMEN_ENOMEM;
    } else if (!atomic_compare_exchange_strong(&h->states[node], &live, HNSW_DEAD)) {
        h->dead_nodes.count--;
    } else {
        atomic_store(&h->nodes[slot], 0);
        atomic_fetch_add(&h->dead_count, 1);
        atomic_fetch_sub(&h->live_count, 1);
        rc = OMEN_OK;
    }
    pthread_mutex_unlock(&h->alloc_lock);
    return rc;
}

enum omen_err hnsw_remove(struct index *index, uint32_t slot, struct err *err)
{
    struct hnsw *h = hnsw_of(index);
    if (slot >= INDEX_SLOTS_MAX) return err_set(err, OMEN_EINVAL, "slot", "slot %u is out of range", slot);
    struct index_scratch *w = hnsw_writer_take(h);
    if (w == NULL) return err_set(err, OMEN_ENOMEM, NULL, "no memory to remove slot %u", slot);
    hnsw_pin(h, w->pin);
    enum omen_err rc = bury(h, slot);
    hnsw_unpin(w->pin);
    if (rc == OMEN_OK) hnsw_repair_step(h, w);
    hnsw_writer_give(h, w);
    if (rc == OMEN_ENOTFOUND) return err_set(err, rc, "slot", "slot %u is not in the index", slot);
    if (rc != OMEN_OK) return err_set(err, rc, NULL, "no memory to remove slot %u", slot);
    return OMEN_OK;
}

/* ---- one row ------------------------------------------------------------------------------------------ */

static bool among(const uint32_t *items, uint32_t count, uint32_t item)
{
    for (uint32_t i = 0; i < count; i++)
        if (items[i] == item) return true;
    return false;
}

static bool has_dying(const struct hnsw *h, const uint32_t *neighbours, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (hnsw_state(h, neighbours[i]) == HNSW_DYING) return true;
    return false;
}

/* A row under repair. */
struct patch {
    uint32_t items
            [CANDIDATES_MAX]; /* [0..kept) neighbours that stay, [kept..total) neighbours of dying ones */
    uint32_t dying[2 * HNSW_M_MAX];
    uint32_t kept, total, dying_count;
};

static void gather(const struct hnsw *h, uint32_t node, uint32_t layer, struct patch *p)
{
    uint32_t theirs[2 * HNSW_M_MAX], count = hnsw_row_read(h, node, layer, p->items);
    p->kept = p->dying_count = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (hnsw_state(h, p->items[i]) == HNSW_DYING)
            p->dying[p->dying_count++] = p->items[i];
        else
            p->items[p->kept++] = p->items[i];
    }
    p->total = p->kept;
    if (!hnsw_linkable(h, node)) return; /* a dead node loses links, it gets none */
    for (uint32_t d = 0; d < p->dying_count; d++) {
        uint32_t n = hnsw_row_read(h, p->dying[d], layer, theirs);
        for (uint32_t i = 0; i < n && p->total < CANDIDATES_MAX; i++) {
            if (theirs[i] == node || !hnsw_linkable(h, theirs[i]) || among(p->items, p->total, theirs[i]))
                continue;
            p->items[p->total++] = theirs[i];
        }
    }
}

/* The living neighbour of `dying` that lies nearest to it and is not in the row yet; HNSW_NONE. */
static uint32_t heir(const struct hnsw *h, const struct hnsw_codes *codes, uint32_t node, uint32_t dying,
        uint32_t layer, const struct hnsw_link *links, uint32_t count)
{
    uint32_t theirs[2 * HNSW_M_MAX], n = hnsw_row_read(h, dying, layer, theirs), best = HNSW_NONE,
                                     best_key = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (theirs[i] == node || !hnsw_linkable(h, theirs[i])) continue;
        uint32_t key = hnsw_distance(h, codes, dying, theirs[i]);
        if (best != HNSW_NONE && key >= best_key) continue;
        best = theirs[i];
        best_key = key;
    }
    for (uint32_t i = 0; i < count && best != HNSW_NONE; i++)
        if (links[i].node == best) return HNSW_NONE; /* inherited already */
    return best;
}

/* As in insertion a candidate is covered by a nearer neighbour that is nearer to it than we are. */
static bool covered(const struct hnsw *h, const struct hnsw_codes *codes, const struct hnsw_link *links,
        uint32_t count, const struct hnsw_link *candidate)
{
    for (uint32_t i = 0; i < count; i++) {
        if (links[i].distance > candidate->distance) continue;
        float d = hnsw_key_value(codes, hnsw_distance(h, codes, candidate->node, links[i].node));
        if (d < candidate->distance || d <= 0) return true;
    }
    return false;
}

/* Which candidates replace the dead: links[kept..result). */
static uint32_t replace(const struct hnsw *h, const struct hnsw_codes *codes, struct hnsw_link *links,
        uint32_t kept, uint32_t total, uint32_t max)
{
    uint32_t chosen = kept;
    hnsw_links_sort(links + kept, total - kept);
    for (uint32_t i = kept; i < total && chosen < max; i++) {
        struct hnsw_link candidate = links[i];
        if (chosen > 0 && covered(h, codes, links, chosen, &candidate)) continue;
        links[i] = links[chosen];
        links[chosen++] = candidate;
    }
    return chosen;
}

/* Every dying neighbour is followed by its heir while there is room, also where a nearer neighbour covers
 * it: what made far links when the graph was small does not come back, and without them clusters drift
 * apart. */
static uint32_t inherit(const struct hnsw *h, const struct hnsw_codes *codes, uint32_t node, uint32_t layer,
        const struct patch *p, struct hnsw_link *links, uint32_t chosen)
{
    uint32_t max = p->kept + p->dying_count;
    for (uint32_t d = 0; d < p->dying_count && chosen < max; d++) {
        uint32_t next = heir(h, codes, node, p->dying[d], layer, links, chosen);
        if (next == HNSW_NONE) continue;
        links[chosen++] = (struct hnsw_link){ hnsw_key_value(codes, hnsw_distance(h, codes, node, next)),
            next };
    }
    return chosen;
}

static void row_repair(struct hnsw *h, const struct hnsw_codes *codes, struct index_scratch *w, uint32_t node,
        uint32_t layer)
{
    struct patch p;
    uint32_t keys[CANDIDATES_MAX];
    struct hnsw_link links[CANDIDATES_MAX];
    uint32_t count = hnsw_row_read(h, node, layer, p.items);
    if (!has_dying(h, p.items, count)) return;
    _Alignas(64) int16_t code[OMEN_DIM_MAX + 64];
    struct hnsw_probe probe;
    hnsw_probe_node(h, codes, node, code, &probe);
    hnsw_row_lock(h, node, layer);
    gather(h, node, layer, &p);
    hnsw_distances(h, codes, &probe, p.items, p.total, keys);
    for (uint32_t i = 0; i < p.total; i++)
        links[i] = (struct hnsw_link){ hnsw_key_value(codes, keys[i]), p.items[i] };
    uint32_t chosen = replace(h, codes, links, p.kept, p.total, hnsw_row_max(h, layer));
    if (p.total > p.kept) chosen = inherit(h, codes, node, layer, &p, links, chosen);
    for (uint32_t i = 0; i < chosen; i++) p.items[i] = links[i].node;
    hnsw_row_write(h, node, layer, p.items, chosen);
    hnsw_row_unlock(h, node, layer);
    for (uint32_t i = p.kept; i < chosen; i++)
        hnsw_link_add(h, codes, w, links[i].node, layer, node, links[i].distance, false);
}

/* ---- phases ------------------------------------------------------------------------------------------- */

static void batch_take(struct hnsw *h)
{
    struct hnsw_repair *r = &h->repair;
    pthread_mutex_lock(&h->alloc_lock);
    struct hnsw_node_list empty = r->batch;
    r->batch = h->dead_nodes;
    h->dead_nodes = empty;
    pthread_mutex_unlock(&h->alloc_lock);
    for (uint32_t i = 0; i < r->batch.count; i++)
        atomic_store_explicit(&h->states[r->batch.items[i]], HNSW_DYING, memory_order_release);
    r->epoch = hnsw_epoch_now(h);
    phase_set(h, HNSW_REPAIR_WAIT);
}

/* The live node of the highest layer takes over when the entry is dead. */
static void entry_replace(struct hnsw *h)
{
    pthread_mutex_lock(&h->entry_lock);
    uint32_t entry = (uint32_t)atomic_load(&h->entry), best = HNSW_NONE;
    if (entry != HNSW_NONE && hnsw_is_dead(h, entry)) {
        uint32_t nodes = atomic_load_explicit(&h->node_count, memory_order_acquire);
        uint8_t best_state = HNSW_FREE;
        for (uint32_t i = 0; i < nodes; i++) {
            uint8_t state = hnsw_state(h, i);
            if (state != HNSW_LIVE && (state != HNSW_LINKING || best_state == HNSW_LIVE)) continue;
            if (best != HNSW_NONE && state == best_state && h->levels[i] <= h->levels[best]) continue;
            best = i;
            best_state = state;
        }
        atomic_store(&h->entry, best == HNSW_NONE ? HNSW_NONE : (uint64_t)h->levels[best] << 32 | best);
    }
    pthread_mutex_unlock(&h->entry_lock);
}

static void sweep(struct hnsw *h, const struct hnsw_codes *codes, struct index_scratch *w, uint32_t rows)
{
    struct hnsw_repair *r = &h->repair;
    for (; rows > 0 && r->cursor < r->end; rows--, r->cursor++) {
        uint32_t node = r->cursor;
        uint8_t state = hnsw_state(h, node);
        if (state == HNSW_FREE || state == HNSW_DYING) continue;
        for (uint32_t layer = 0; layer <= h->levels[node]; layer++) row_repair(h, codes, w, node, layer);
    }
    if (r->cursor < r->end) return;
    entry_replace(h);
    r->cursor = 0;
    r->epoch = hnsw_epoch_now(h);
    phase_set(h, HNSW_REPAIR_DRAIN);
}

static bool mark(struct hnsw_repair *r, uint32_t node)
{
    if (node >= r->mark_count || r->marks[node / 64] >> (node % 64) & 1) return false;
    r->marks[node / 64] |= 1ull << (node % 64);
    r->queue[r->queue_tail++] = node;
    return true;
}

static void reach_end(struct hnsw *h)
{
    struct hnsw_repair *r = &h->repair;
    mem_free(r->marks);
    mem_free(r->queue);
    r->marks = NULL;
    r->queue = NULL;
    phase_set(h, HNSW_REPAIR_IDLE);
}

static void reach_begin(struct hnsw *h)
{
    struct hnsw_repair *r = &h->repair;
    r->mark_count = atomic_load_explicit(&h->node_count, memory_order_acquire);
    r->marks = mem_calloc(r->mark_count / 64 + 1, sizeof *r->marks);
    r->queue = mem_alloc(((size_t)r->mark_count + 1) * sizeof *r->queue);
    r->queue_head = r->queue_tail = r->cursor = r->relinked = 0;
    uint32_t entry = (uint32_t)atomic_load(&h->entry);
    if (r->marks == NULL || r->queue == NULL || entry == HNSW_NONE) {
        reach_end(h); /* without memory the round after the next batch tries again */
        return;
    }
    mark(r, entry);
    phase_set(h, HNSW_REPAIR_REACH);
}

/* The nodes that nobody can see any more become free. Rows first: they hold links to each other, whose in-degrees must
 * not be those of the next owner. */
static void drain(struct hnsw *h, uint32_t rows)
{
    struct hnsw_repair *r = &h->repair;
    uint32_t count = r->batch.count;
    for (; rows > 0 && r->cursor < 2 * count; rows--, r->cursor++) {
        uint32_t node = r->batch.items[r->cursor % count];
        for (uint32_t layer = 0; r->cursor < count && layer <= h->levels[node]; layer++)
            hnsw_row_write(h, node, layer, NULL, 0);
        if (r->cursor >= count) hnsw_node_free(h, node);
    }
    if (r->cursor < 2 * count) return;
    atomic_fetch_sub(&h->dead_count, count);
    r->batch.count = 0;
    r->rounds = 0;
    reach_begin(h);
}

static uint32_t reach(struct hnsw *h, struct hnsw_repair *r, uint32_t rows)
{
    uint32_t neighbours[2 * HNSW_M_MAX];
    for (; rows > 0 && r->queue_head < r->queue_tail; rows--) {
        uint32_t count = hnsw_row_read(h, r->queue[r->queue_head++], 0, neighbours);
        for (uint32_t i = 0; i < count; i++)
            if (hnsw_linkable(h, neighbours[i])) mark(r, neighbours[i]);
    }
    return rows;
}

/* A lost point gets its links; what hangs on it is found before the next lost point is looked for. */
static void relink(struct hnsw *h, const struct hnsw_codes *codes, struct index_scratch *w, uint32_t rows)
{
    struct hnsw_repair *r = &h->repair;
    while (rows > 0 && r->cursor < r->mark_count) {
        rows = reach(h, r, rows);
        if (rows == 0) return;
        uint32_t node = r->cursor++;
        rows -= node % 8 == 0;
        if ((r->marks[node / 64] >> (node % 64) & 1) || hnsw_state(h, node) != HNSW_LIVE) continue;
        mark(r, node);
        r->relinked += hnsw_connect(h, codes, w, node, true);
        rows -= rows < STEP_ROWS ? rows : STEP_ROWS;
    }
    if (r->cursor < r->mark_count) return;
    bool again = r->relinked > 0 && ++r->rounds < ROUNDS_MAX;
    reach_end(h);
    if (again) reach_begin(h);
}

/* One step; the repair lock is held. False when it cannot go on now. */
static bool step(struct hnsw *h, struct index_scratch *w, uint32_t rows, uint32_t batch_min)
{
    struct hnsw_repair *r = &h->repair;
    uint32_t phase = atomic_load_explicit(&r->phase, memory_order_relaxed);
    if (phase == HNSW_REPAIR_IDLE) {
        if (atomic_load(&h->dead_count) < batch_min) return false;
        batch_take(h);
        return true;
    }
    if (phase == HNSW_REPAIR_WAIT) {
        if (!hnsw_epoch_passed(h, r->epoch)) return false;
        r->cursor = 0;
        r->end = atomic_load_explicit(&h->node_count, memory_order_acquire);
        phase_set(h, HNSW_REPAIR_SWEEP);
        return true;
    }
    if (phase == HNSW_REPAIR_DRAIN) {
        if (!hnsw_epoch_passed(h, r->epoch)) return false;
        drain(h, rows);
        return true;
    }
    pthread_rwlock_rdlock(&h->train_lock);
    hnsw_pin(h, w->pin);
    struct hnsw_codes *codes = atomic_load_explicit(&h->codes, memory_order_acquire);
    uint32_t dead = atomic_load_explicit(&h->dead_count, memory_order_relaxed);
    uint32_t pool = dead > HNSW_POOL_MAX - h->ef_construction ? HNSW_POOL_MAX : h->ef_construction + dead;
    bool ok = hnsw_scratch_begin(w, codes, pool);
    if (ok && phase == HNSW_REPAIR_SWEEP) sweep(h, codes, w, rows);
    if (ok && phase == HNSW_REPAIR_REACH && reach(h, r, rows) > 0) phase_set(h, HNSW_REPAIR_RELINK);
    if (ok && phase == HNSW_REPAIR_RELINK) relink(h, codes, w, rows);
    hnsw_unpin(w->pin);
    pthread_rwlock_unlock(&h->train_lock);
    return ok;
}

void hnsw_repair_step(struct hnsw *h, struct index_scratch *w)
{
    uint32_t batch = batch_size(h);
    if (atomic_load_explicit(&h->repair.phase, memory_order_relaxed) == HNSW_REPAIR_IDLE &&
            atomic_load_explicit(&h->dead_count, memory_order_relaxed) < batch)
        return;
    if (pthread_mutex_trylock(&h->repair.lock) != 0) return;
    uint32_t nodes = atomic_load_explicit(&h->node_count, memory_order_relaxed);
    step(h, w, STEP_ROWS + 4 * (nodes / batch), batch);
    pthread_mutex_unlock(&h->repair.lock);
}

void hnsw_repair_all(struct hnsw *h, struct index_scratch *w)
{
    for (bool more = true; more;) {
        pthread_mutex_lock(&h->repair.lock);
        bool moved = step(h, w, UINT32_MAX, 1);
        uint32_t phase = atomic_load(&h->repair.phase);
        pthread_mutex_unlock(&h->repair.lock);
        more = moved || phase == HNSW_REPAIR_WAIT || phase == HNSW_REPAIR_DRAIN; /* else out of memory */
        if (!moved) sched_yield();
    }
}

void hnsw_settle(struct index *index)
{
    struct hnsw *h = hnsw_of(index);
    struct index_scratch *w = hnsw_writer_take(h);
    if (w == NULL) return; /* out of memory: the next call or the writers go on */
    hnsw_repair_all(h, w);
    pthread_mutex_lock(&h->repair.lock);
    h->repair.rounds = 0;
    if (atomic_load(&h->repair.phase) == HNSW_REPAIR_IDLE) reach_begin(h);
    pthread_mutex_unlock(&h->repair.lock);
    hnsw_repair_all(h, w);
    hnsw_writer_give(h, w);
}

void hnsw_repair_fini(struct hnsw *h)
{
    mem_free(h->repair.batch.items);
    mem_free(h->repair.marks);
    mem_free(h->repair.queue);
}

uint64_t hnsw_unreachable(struct hnsw *h, struct index_scratch *w)
{
    uint32_t entry = (uint32_t)atomic_load(&h->entry);
    struct hnsw_repair r = { .mark_count = atomic_load_explicit(&h->node_count, memory_order_acquire) };
    r.marks = mem_calloc(r.mark_count / 64 + 1, sizeof *r.marks);
    r.queue = mem_alloc(((size_t)r.mark_count + 1) * sizeof *r.queue);
    uint64_t lost = UINT64_MAX;
    if (r.marks != NULL && r.queue != NULL) {
        hnsw_pin(h, w->pin);
        if (entry != HNSW_NONE) mark(&r, entry);
        reach(h, &r, UINT32_MAX);
        lost = 0;
        for (uint32_t i = 0; i < r.mark_count; i++)
            lost += hnsw_state(h, i) == HNSW_LIVE && !(r.marks[i / 64] >> (i % 64) & 1);
        hnsw_unpin(w->pin);
    }
    mem_free(r.marks);
    mem_free(r.queue);
    return lost;
}
