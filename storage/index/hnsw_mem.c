/* Memory of the mutable HNSW: address space that fills as nodes come, epochs that say when a node may be
 * reused, row locks, scratches.
 *
 * Epochs (Fraser 2004, three of them alive at a time): whoever reads announces the global epoch he saw; it
 * advances only when all announcements show it. What was unlinked at epoch e cannot be seen any more at e +
 * 2.
 * Threads: as each function says. Determinism: none of it is visible in answers. */
#include "storage/index/hnsw_impl.h"

#include <sched.h>
#include <sys/mman.h>

#define HUGE_PAGE_BYTES (2u << 20)
#define SPINS_BEFORE_YIELD 64

/* ---- address space ------------------------------------------------------------------------------------ */

/* Untouched pages cost nothing, so an index that grows never moves. Huge pages when `huge_from_bytes` are
 * expected: a hop touches some 40 random lines, each a TLB miss with small pages. */
void *hnsw_map(size_t count, size_t bytes, size_t huge_from_bytes)
{
    size_t total = align_up(count * bytes, HUGE_PAGE_BYTES);
    void *p = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return NULL;
    if (huge_from_bytes >= 4 * HUGE_PAGE_BYTES)
        madvise(p, total, MADV_HUGEPAGE); /* a wish; refusal is fine */
    return p;
}

void hnsw_unmap(void *p, size_t count, size_t bytes)
{
    if (p != NULL) munmap(p, align_up(count * bytes, HUGE_PAGE_BYTES));
}

bool hnsw_list_push(struct hnsw_node_list *list, uint32_t node)
{
    if (list->count == list->capacity) {
        uint32_t capacity = list->capacity == 0 ? 64 : 2 * list->capacity;
        uint32_t *items = mem_realloc(list->items, capacity * sizeof *items);
        if (items == NULL) return false;
        list->items = items;
        list->capacity = capacity;
    }
    list->items[list->count++] = node;
    return true;
}

/* ---- epochs ------------------------------------------------------------------------------------------- */

void hnsw_pin(struct hnsw *h, struct hnsw_pin *pin)
{
    uint64_t epoch = atomic_load(&h->epoch);
    for (;;) {
        /* An exchange, not a store: the announcement must be visible before anything is read. */
        atomic_exchange(&pin->epoch, epoch);
        uint64_t now = atomic_load(&h->epoch);
        if (now == epoch) return;
        epoch = now;
    }
}

void hnsw_unpin(struct hnsw_pin *pin) { atomic_store_explicit(&pin->epoch, 0, memory_order_release); }

uint64_t hnsw_epoch_now(struct hnsw *h) { return atomic_fetch_add(&h->epoch, 0); }

static void epoch_advance(struct hnsw *h)
{
    uint64_t epoch = atomic_load(&h->epoch);
    for (uint32_t i = 0; i < HNSW_PINS; i++) {
        uint64_t seen = atomic_load(&h->pins[i].epoch);
        if (seen != 0 && seen != epoch) return;
    }
    atomic_compare_exchange_strong(&h->epoch, &epoch, epoch + 1);
}

bool hnsw_epoch_passed(struct hnsw *h, uint64_t epoch)
{
    for (int i = 0; i < 2 && atomic_load(&h->epoch) < epoch + 2; i++) epoch_advance(h);
    return atomic_load(&h->epoch) >= epoch + 2;
}

void hnsw_epoch_wait(struct hnsw *h)
{
    uint64_t epoch = hnsw_epoch_now(h);
    while (!hnsw_epoch_passed(h, epoch)) sched_yield();
}

/* ---- row locks ---------------------------------------------------------------------------------------- */

static _Atomic uint8_t *row_lock_of(struct hnsw *h, uint32_t node, uint32_t layer)
{
    uint32_t hash = (node + layer * 0x85ebca6bu) * 0x9e3779b1u;
    return &h->row_locks[hash >> 20 & (HNSW_ROW_LOCKS - 1)];
}

void hnsw_row_lock(struct hnsw *h, uint32_t node, uint32_t layer)
{
    _Atomic uint8_t *lock = row_lock_of(h, node, layer);
    for (uint32_t spins = 0; atomic_exchange_explicit(lock, 1, memory_order_acquire) != 0; spins++) {
        if (spins >= SPINS_BEFORE_YIELD) sched_yield();
    }
}

void hnsw_row_unlock(struct hnsw *h, uint32_t node, uint32_t layer)
{
    atomic_store_explicit(row_lock_of(h, node, layer), 0, memory_order_release);
}

/* ---- nodes -------------------------------------------------------------------------------------------- */

static uint32_t tower_alloc(struct hnsw *h, uint32_t level)
{
    struct hnsw_node_list *list = &h->free_towers[level];
    if (list->count > 0) return list->items[--list->count];
    if (level > h->upper_capacity - h->upper_count) return HNSW_NONE;
    uint32_t tower = h->upper_count;
    h->upper_count += level;
    return tower;
}

static uint32_t node_take(struct hnsw *h)
{
    if (h->free_nodes.count > 0) return h->free_nodes.items[--h->free_nodes.count];
    uint32_t count = atomic_load_explicit(&h->node_count, memory_order_relaxed);
    if (count == h->node_capacity) return HNSW_NONE;
    atomic_store_explicit(&h->node_count, count + 1, memory_order_release);
    return count;
}

enum omen_err hnsw_node_alloc(struct hnsw *h, uint32_t level, uint32_t *node_out)
{
    pthread_mutex_lock(&h->alloc_lock);
    uint32_t node = node_take(h);
    if (node != HNSW_NONE && level > 0) {
        uint32_t tower = tower_alloc(h, level);
        if (tower == HNSW_NONE)
            level = 0; /* upper rows are a shortcut: without room for them a node does without */
        h->towers[node] = tower;
    }
    pthread_mutex_unlock(&h->alloc_lock);
    if (node == HNSW_NONE) return OMEN_EFULL;
    h->levels[node] = (uint8_t)level;
    for (uint32_t layer = 0; layer <= level; layer++) {
        _Atomic uint32_t *row = hnsw_row(h, node, layer);
        uint32_t max = hnsw_row_max(h, layer);
        for (uint32_t i = 0; i < max; i++) atomic_store_explicit(&row[i], HNSW_NONE, memory_order_relaxed);
        atomic_store_explicit(hnsw_in_degree(h, node, layer), 0, memory_order_relaxed);
    }
    atomic_store_explicit(&h->states[node], HNSW_LINKING, memory_order_release);
    *node_out = node;
    return OMEN_OK;
}

/* Losing a tower or a node when memory for the list is short costs that memory, nothing else. */
void hnsw_node_free(struct hnsw *h, uint32_t node)
{
    atomic_store_explicit(&h->states[node], HNSW_FREE, memory_order_release);
    pthread_mutex_lock(&h->alloc_lock);
    uint32_t level = h->levels[node];
    bool kept = level == 0 || hnsw_list_push(&h->free_towers[level], h->towers[node]);
    kept = hnsw_list_push(&h->free_nodes, node) && kept;
    (void)kept;
    pthread_mutex_unlock(&h->alloc_lock);
}

/* ---- scratches ---------------------------------------------------------------------------------------- */

static struct hnsw_pin *pin_claim(struct hnsw *h, uint32_t from, uint32_t to)
{
    for (uint32_t i = from; i < to; i++) {
        bool expected = false;
        if (atomic_compare_exchange_strong(&h->pins[i].used, &expected, true)) return &h->pins[i];
    }
    return NULL;
}

static struct index_scratch *scratch_make(struct hnsw *h, uint32_t pin_from, uint32_t pin_to)
{
    struct index_scratch *s = mem_calloc(1, sizeof *s);
    if (s == NULL) return NULL;
    s->hnsw = h;
    s->pin = pin_claim(h, pin_from, pin_to);
    if (s->pin == NULL) {
        mem_free(s);
        return NULL;
    }
    return s;
}

struct index_scratch *hnsw_scratch_new(const struct index *index)
{
    return scratch_make(hnsw_of(index), 0, HNSW_SCRATCHES_MAX);
}

void hnsw_scratch_free(struct index_scratch *s)
{
    if (s == NULL) return;
    atomic_store(&s->pin->used, false);
    mem_free(s->visited);
    mem_free(s->pool);
    mem_free(s->spare);
    mem_free(s->code);
    mem_free(s->hits);
    mem_free(s->found);
    mem_free(s->links);
    mem_free(s);
}

static struct index_scratch *writer_make(struct hnsw *h)
{
    struct index_scratch *w = scratch_make(h, HNSW_SCRATCHES_MAX, HNSW_PINS);
    if (w == NULL) return NULL;
    w->link_capacity = h->ef_construction + 2 * h->M + 1;
    w->links = mem_alloc(w->link_capacity * sizeof *w->links);
    w->found = mem_alloc((size_t)(HNSW_LEVEL_MAX + 1) * 2 * h->M * sizeof *w->found);
    if (w->links == NULL || w->found == NULL) {
        hnsw_scratch_free(w);
        return NULL;
    }
    return w;
}

struct index_scratch *hnsw_writer_take(struct hnsw *h)
{
    pthread_mutex_lock(&h->writers_lock);
    while (h->writers == NULL && h->writer_count == HNSW_WRITERS_MAX)
        pthread_cond_wait(&h->writers_free, &h->writers_lock);
    struct index_scratch *w = h->writers;
    if (w != NULL) {
        h->writers = w->next;
    } else {
        w = writer_make(h);
        if (w != NULL) h->writer_count++;
    }
    pthread_mutex_unlock(&h->writers_lock);
    return w;
}

void hnsw_writer_give(struct hnsw *h, struct index_scratch *w)
{
    pthread_mutex_lock(&h->writers_lock);
    w->next = h->writers;
    h->writers = w;
    pthread_cond_signal(&h->writers_free);
    pthread_mutex_unlock(&h->writers_lock);
}

bool hnsw_scratch_begin(struct index_scratch *s, const struct hnsw_codes *codes, uint32_t pool)
{
    uint32_t nodes = atomic_load_explicit(&s->hnsw->node_count, memory_order_acquire);
    if (nodes > s->visited_count) {
        size_t count = (size_t)nodes + nodes / 4 + 64;
        if (count > s->hnsw->node_capacity) count = s->hnsw->node_capacity;
        uint8_t *visited = mem_calloc(count, 1);
        if (visited == NULL) return false;
        mem_free(s->visited);
        s->visited = visited;
        s->visited_count = (uint32_t)count;
        s->stamp = 0;
    }
    if (pool > s->pool_capacity) {
        uint64_t *items = mem_realloc(s->pool, ((size_t)pool + 8) * sizeof *items);
        if (items == NULL) return false;
        s->pool = items;
        items = mem_realloc(s->spare, ((size_t)pool + 8) * sizeof *items);
        if (items == NULL) return false;
        s->spare = items;
        s->pool_capacity = pool;
    }
    size_t code_count = codes->quantized ? codes->stride : 0;
    if (code_count > s->code_count) {
        mem_free(s->code);
        s->code = mem_alloc_aligned(64, code_count * sizeof *s->code);
        s->code_count = s->code == NULL ? 0 : code_count;
        if (s->code == NULL) return false;
    }
    return true;
}

bool hnsw_scratch_hits(struct index_scratch *s, uint32_t count)
{
    if (count <= s->hit_capacity) return true;
    struct index_hit *hits = mem_realloc(s->hits, count * sizeof *hits);
    if (hits == NULL) return false;
    s->hits = hits;
    s->hit_capacity = count;
    return true;
}
