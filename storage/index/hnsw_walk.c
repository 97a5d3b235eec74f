/* Walking the graph: greedy descent through the upper layers and the beam on one layer (Malkov & Yashunin
 * 2018, algorithm 2) as a sorted pool.
 *
 * Departs from the paper: one sorted array in place of two heaps. An entry is key << 32 | EXPANDED | COUNTED
 * | node.
 * Counted entries are those that may be answers (live, passing the filter); others are bridges: they are
 * walked through but do not use up `ef`, so neither a filter nor a deleted cluster starves the answer. The
 * pool ends with its ef-th counted entry, or with its capacity.
 * All unseen neighbours of a node are collected and their codes asked for before the first distance is
 * computed.
 *
 * Threads: the scratch belongs to the caller, who is pinned; rows may change meanwhile (hnsw_impl.h). */
#include "storage/index/hnsw_impl.h"

#include "storage/kernel/code.h"

#define ROWS_AHEAD 2         /* of the pool, asked for while distances are computed */
#define POOL_FRESH_MAX 32    /* keys merged at once */
#define PREFETCH_LINES_MAX 4 /* per code; a longer code is streamed by the processor itself */

static inline void prefetch_point(const struct hnsw *h, const struct hnsw_codes *codes, uint32_t node)
{
    const char *p = codes->quantized ? (const char *)codes->codes + node * codes->stride
                                     : (const char *)hnsw_vector(h, node);
    size_t bytes = codes->quantized ? codes->stride : h->vector_stride * sizeof(float);
    size_t lines = bytes / 64 < PREFETCH_LINES_MAX ? bytes / 64 : PREFETCH_LINES_MAX;
    for (size_t i = 0; i < lines; i++) __builtin_prefetch(p + 64 * i);
}

static inline void prefetch_row(const struct hnsw *h, uint32_t node)
{
    const char *p = (const char *)(uintptr_t)hnsw_row(h, node, 0);
    for (size_t i = 0; i < h->row_stride * sizeof(uint32_t); i += 64) __builtin_prefetch(p + i);
}

/* Every node is looked at once per beam. The array is cleared when the stamps are used up. */
static void new_stamp(struct index_scratch *s)
{
    if (++s->stamp == 0) {
        memset(s->visited, 0, s->visited_count);
        s->stamp = 1;
    }
}

/* Unseen neighbours of `node`, their points on the way into the cache. */
static uint32_t collect(struct hnsw_walk *walk, uint32_t node, uint32_t layer, uint32_t *unseen_out)
{
    const struct hnsw *h = walk->h;
    struct index_scratch *s = walk->scratch;
    const _Atomic uint32_t *row = hnsw_row(h, node, layer);
    uint32_t max = hnsw_row_max(h, layer), count = 0;
    for (uint32_t i = 0; i < max; i++) {
        uint32_t next = atomic_load_explicit(&row[i], memory_order_acquire);
        if (next == HNSW_NONE) break;
        if (next >= s->visited_count) continue; /* younger than this search: not its */
        /* About half were seen before, which no branch can guess: a place is taken only when not. */
        unseen_out[count] = next;
        count += s->visited[next] != s->stamp;
        s->visited[next] = s->stamp;
    }
    for (uint32_t i = 0; i < count; i++) prefetch_point(h, walk->codes, unseen_out[i]);
    return count;
}

uint32_t hnsw_descend(struct hnsw_walk *walk, uint32_t node, uint32_t from_layer, uint32_t to_layer)
{
    uint32_t keys[2 * HNSW_M_MAX], unseen[2 * HNSW_M_MAX], best;
    hnsw_distances(walk->h, walk->codes, walk->probe, &node, 1, &best);
    walk->distances++;
    for (uint32_t layer = from_layer; layer > to_layer; layer--) {
        new_stamp(walk->scratch);
        for (bool nearer = true; nearer;) {
            nearer = false;
            uint32_t count = collect(walk, node, layer, unseen);
            hnsw_distances(walk->h, walk->codes, walk->probe, unseen, count, keys);
            walk->distances += count;
            walk->hops++;
            for (uint32_t i = 0; i < count; i++) {
                if (keys[i] >= best) continue;
                best = keys[i];
                node = unseen[i];
                nearer = true;
            }
        }
    }
    return node;
}

static inline bool counted(const struct hnsw_walk *walk, bool all, uint32_t node)
{
    if (all) return true;
    if (hnsw_is_dead(walk->h, node)) return false;
    if (walk->filter == NULL) return true;
    uint32_t slot = walk->h->slots[node];
    return walk->filter[slot / 64] >> (slot % 64) & 1;
}

/* Into its place; the position. The pool is cut behind its ef-th counted entry. */
static uint32_t pool_insert(struct index_scratch *s, uint64_t entry, uint32_t ef)
{
    uint32_t low = 0, high = s->pool_count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (s->pool[middle] < entry)
            low = middle + 1;
        else
            high = middle;
    }
    if (low >= s->pool_capacity) return low;
    memmove(s->pool + low + 1, s->pool + low, (s->pool_count - low) * sizeof *s->pool);
    s->pool[low] = entry;
    s->pool_count++;
    s->pool_counted += (entry & HNSW_POOL_COUNTED) != 0;
    while (s->pool_counted > ef || s->pool_count > s->pool_capacity) {
        s->pool_count--;
        s->pool_counted -= (s->pool[s->pool_count] & HNSW_POOL_COUNTED) != 0;
    }
    if (s->pool_counted == ef) {
        while ((s->pool[s->pool_count - 1] & HNSW_POOL_COUNTED) == 0) s->pool_count--;
    }
    return low;
}

/* The same for several at once (1..POOL_FRESH_MAX, with room for four more), when everything is counted. */
static uint32_t pool_merge(struct index_scratch *s, const struct code_kernel *kernel, uint64_t *fresh,
        uint32_t count, uint32_t ef)
{
    uint32_t at = kernel->pool_merge(s->pool, s->pool_count, ef, fresh, count, s->spare);
    uint64_t *merged = s->spare;
    s->spare = s->pool;
    s->pool = merged;
    s->pool_count = s->pool_count + count < ef ? s->pool_count + count : ef;
    s->pool_counted = s->pool_count;
    return at;
}

static inline bool pool_full(const struct index_scratch *s, uint32_t ef)
{
    return s->pool_counted == ef || s->pool_count == s->pool_capacity;
}

/* Neighbours and their keys into the pool; the lowest position taken, `next` when none is lower. The row of one
 * that will be expanded next is asked for before the pool is merged: half of collect was waiting for it. */
static uint32_t pool_offer(const struct hnsw_walk *walk, bool all, uint32_t layer, const uint32_t *nodes,
        const uint32_t *keys, uint32_t count, uint32_t ef, uint32_t next)
{
    struct index_scratch *s = walk->scratch;
    const struct code_kernel *kernel = code_kernel_get();
    uint64_t fresh[POOL_FRESH_MAX + 4], best = UINT64_MAX;
    uint32_t n = 0, bound = pool_full(s, ef) ? hnsw_pool_key(s->pool[s->pool_count - 1]) : UINT32_MAX;
    for (uint32_t i = 0; i < count; i++) {
        if (all) { /* a place is taken only when the key is below the bound: no branch to guess */
            fresh[n] = (uint64_t)keys[i] << 32 | HNSW_POOL_COUNTED | nodes[i];
            best = fresh[n] < best ? fresh[n] : best;
            n += keys[i] < bound;
            if (n == 0 || (n < POOL_FRESH_MAX && i + 1 < count)) continue;
            if (layer == 0 && (next >= s->pool_count || best < s->pool[next]))
                prefetch_row(walk->h, hnsw_pool_node(best));
            uint32_t at = pool_merge(s, kernel, fresh, n, ef);
            if (at < next) next = at;
            n = 0;
        } else {
            if (keys[i] >= bound) continue;
            uint64_t flag = counted(walk, all, nodes[i]) ? HNSW_POOL_COUNTED : 0;
            uint32_t at = pool_insert(s, (uint64_t)keys[i] << 32 | flag | nodes[i], ef);
            if (at < next) next = at;
        }
        if (pool_full(s, ef)) bound = hnsw_pool_key(s->pool[s->pool_count - 1]);
    }
    return next;
}

/* The next node to expand, marked; HNSW_NONE when there is none. */
static inline uint32_t pool_next(struct index_scratch *s, uint32_t *cursor)
{
    for (uint32_t i = *cursor; i < s->pool_count; i++) {
        if (s->pool[i] & HNSW_POOL_EXPANDED) continue;
        s->pool[i] |= HNSW_POOL_EXPANDED;
        *cursor = i + 1;
        return hnsw_pool_node(s->pool[i]);
    }
    *cursor = s->pool_count;
    return HNSW_NONE;
}

#define ALIKE 1.15f /* squared distances, at the pool's eighth part and at what would be expanded next */

/* Neighbours for a new point: half of the pool's nodes are expanded where distances grow from the nearest to those. Where
 * they hardly do, the neighbourhood is wide (or the points coincide) and all of them count. */
static inline bool half_enough(const struct hnsw_walk *walk, uint32_t cursor, uint32_t ef)
{
    const struct index_scratch *s = walk->scratch;
    if (!walk->half || walk->codes->lift != NULL || cursor < ef / 2 || cursor >= s->pool_count) return false;
    float first = hnsw_key_value(walk->codes, hnsw_pool_key(s->pool[ef / 8])),
          next = hnsw_key_value(walk->codes, hnsw_pool_key(s->pool[cursor]));
    return first > 0 && next > ALIKE * first;
}

static void rows_ahead(const struct hnsw *h, const struct index_scratch *s, uint32_t cursor)
{
    for (uint32_t i = cursor; i < s->pool_count && i < cursor + ROWS_AHEAD; i++)
        prefetch_row(h, hnsw_pool_node(s->pool[i]));
}

static void seed(struct hnsw_walk *walk, bool all, const uint32_t *seeds, uint32_t count, uint32_t ef)
{
    struct index_scratch *s = walk->scratch;
    uint32_t keys[2 * HNSW_M_MAX];
    new_stamp(s);
    s->pool_count = s->pool_counted = 0;
    hnsw_distances(walk->h, walk->codes, walk->probe, seeds, count, keys);
    walk->distances += count;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t flag = counted(walk, all, seeds[i]) ? HNSW_POOL_COUNTED : 0;
        if (seeds[i] < s->visited_count) s->visited[seeds[i]] = s->stamp; /* else collect passes it over */
        pool_insert(s, (uint64_t)keys[i] << 32 | flag | seeds[i], ef);
    }
}

/* `ahead`: one node is expanded ahead, and its neighbours' points are on their way while those of the node before
 * are compared. */
enum hnsw_walk_end hnsw_beam(struct hnsw_walk *walk, const uint32_t *seeds, uint32_t seed_count,
        uint32_t layer, uint32_t ef)
{
    struct index_scratch *s = walk->scratch;
    const struct hnsw *h = walk->h;
    uint32_t keys[2 * HNSW_M_MAX], unseen[2][2 * HNSW_M_MAX], counts[2] = { 0, 0 }, cursor = 0;
    /* Nobody dead, nothing filtered: states need not be looked at. A delete during the walk is met at the
     * end. */
    bool all = walk->filter == NULL && atomic_load_explicit(&h->dead_count, memory_order_relaxed) == 0;
    seed(walk, all, seeds, seed_count, ef);
    uint64_t hops_from = walk->hops;
    for (uint32_t turn = 0, ahead = walk->ahead;; turn ^= ahead) {
        uint32_t from = half_enough(walk, cursor, ef) ? HNSW_NONE : pool_next(s, &cursor), now = turn ^ ahead;
        counts[turn] = 0;
        if (from == HNSW_NONE && counts[now] == 0) return HNSW_WALK_DONE;
        if (from != HNSW_NONE) {
            if ((++walk->hops - hops_from) % INDEX_POLL_HOPS == 0 && walk->stop != NULL &&
                    walk->stop(walk->stop_arg))
                return HNSW_WALK_STOPPED;
            counts[turn] = collect(walk, from, layer, unseen[turn]);
            if (layer == 0) rows_ahead(h, s, cursor);
        }
        if (counts[now] == 0) continue;
        hnsw_distances(h, walk->codes, walk->probe, unseen[now], counts[now], keys);
        walk->distances += counts[now];
        uint32_t next = pool_offer(walk, all, layer, unseen[now], keys, counts[now], ef, cursor);
        if (layer == 0 && !all && next < cursor) prefetch_row(h, hnsw_pool_node(s->pool[next]));
        if (next < cursor) cursor = next;
        if (walk->distances > walk->distances_max) return HNSW_WALK_BUDGET;
    }
}

uint32_t hnsw_seeds(struct hnsw_walk *walk, uint64_t entry, uint32_t layer, uint32_t seeds_out[HNSW_SEEDS])
{
    uint32_t from = (uint32_t)(entry >> 32), count = 0;
    seeds_out[0] = (uint32_t)entry;
    if (from <= layer) return 1;
    seeds_out[0] = hnsw_descend(walk, seeds_out[0], from, layer + 1);
    if (hnsw_beam(walk, seeds_out, 1, layer + 1, HNSW_SEEDS) == HNSW_WALK_STOPPED) return 1;
    const struct index_scratch *s = walk->scratch;
    for (; count < HNSW_SEEDS && count < s->pool_count; count++)
        seeds_out[count] = hnsw_pool_node(s->pool[count]);
    return count;
}
