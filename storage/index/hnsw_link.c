/* Rows and their links: choosing neighbours (Malkov & Yashunin 2018, algorithm 4) and changing rows under
 * their lock.
 *
 * Departs from the paper: the first rejected candidates are not kept; of points that coincide at most a
 * quarter of a row is linked, so that duplicates do not cut their neighbourhood off; a neighbour whose last
 * link this is stays.
 * Threads: a row is changed under its lock only, read without. */
#include "storage/index/hnsw_impl.h"

/* Insertion sort: lists are short, or long and nearly sorted. */
void hnsw_links_sort(struct hnsw_link *links, uint32_t count)
{
    for (uint32_t i = 1; i < count; i++) {
        struct hnsw_link link = links[i];
        uint32_t j = i;
        for (; j > 0 && links[j - 1].distance > link.distance; j--) links[j] = links[j - 1];
        links[j] = link;
    }
}

static bool covered(const struct hnsw *h, const struct hnsw_codes *codes, const struct hnsw_link *chosen,
        uint32_t chosen_count, const struct hnsw_link *candidate)
{
    for (uint32_t i = 0; i < chosen_count; i++) {
        float d = hnsw_key_value(codes, hnsw_distance(h, codes, candidate->node, chosen[i].node));
        if (h->alpha * d < candidate->distance) return true;
    }
    return false;
}

uint32_t hnsw_select(const struct hnsw *h, const struct hnsw_codes *codes, struct hnsw_link *links,
        uint32_t count, uint32_t max)
{
    uint32_t chosen = 0, same = 0, same_max = max < 8 ? 2 : max / 4;
    for (uint32_t i = 0; i < count && chosen < max; i++) {
        struct hnsw_link candidate = links[i];
        if (candidate.distance <= 0) {
            if (same == same_max) continue;
            same++;
        } else if (covered(h, codes, links, chosen, &candidate)) {
            continue;
        }
        links[i] = links[chosen];
        links[chosen++] = candidate;
    }
    return chosen;
}

uint32_t hnsw_row_read(const struct hnsw *h, uint32_t node, uint32_t layer, uint32_t *neighbours_out)
{
    const _Atomic uint32_t *row = hnsw_row(h, node, layer);
    uint32_t max = hnsw_row_max(h, layer), count = 0;
    for (; count < max; count++) {
        neighbours_out[count] = atomic_load_explicit(&row[count], memory_order_acquire);
        if (neighbours_out[count] == HNSW_NONE) break;
    }
    return count;
}

void hnsw_row_write(struct hnsw *h, uint32_t node, uint32_t layer, const uint32_t *neighbours, uint32_t count)
{
    _Atomic uint32_t *row = hnsw_row(h, node, layer);
    uint32_t max = hnsw_row_max(h, layer);
    for (uint32_t i = 0; layer == 0 && i < count; i++)
        atomic_fetch_add_explicit(&h->in_degrees[neighbours[i]], 1, memory_order_relaxed);
    for (uint32_t i = 0; i < max; i++) {
        uint32_t old = atomic_load_explicit(&row[i], memory_order_relaxed);
        uint32_t new = i < count ? neighbours[i] : HNSW_NONE;
        if (old != new) atomic_store_explicit(&row[i], new, memory_order_release);
        if (layer == 0 && old != HNSW_NONE)
            atomic_fetch_sub_explicit(&h->in_degrees[old], 1, memory_order_relaxed);
    }
}

static uint32_t in_degree(const struct hnsw *h, uint32_t node)
{
    return atomic_load_explicit(&h->in_degrees[node], memory_order_relaxed);
}

/* Behind the chosen ones, those dropped ones that nobody else links to, while there is room; then, when
 * forced, the target in place of the chosen one that most others link to. */
static uint32_t keep_needed(const struct hnsw *h, struct hnsw_link *links, uint32_t chosen, uint32_t count,
        uint32_t max, uint32_t target, bool force)
{
    uint32_t kept = chosen, target_at = HNSW_NONE;
    for (uint32_t i = 0; i < count; i++) {
        if (i >= chosen && kept < max &&
                (in_degree(h, links[i].node) <= 1 || (force && links[i].node == target))) {
            struct hnsw_link link = links[i];
            links[i] = links[kept];
            links[kept++] = link;
        }
    }
    for (uint32_t i = 0; i < count; i++)
        if (links[i].node == target) target_at = i;
    if (!force || target_at < kept || kept == 0) return kept;
    uint32_t victim = 0;
    for (uint32_t i = 1; i < kept; i++)
        if (in_degree(h, links[i].node) >= in_degree(h, links[victim].node)) victim = i;
    links[victim] = links[target_at];
    return kept;
}

static void add_full(struct hnsw *h, const struct hnsw_codes *codes, struct index_scratch *writer,
        uint32_t node, uint32_t layer, uint32_t *neighbours, uint32_t count, const struct hnsw_link *target,
        bool force)
{
    struct hnsw_link *links = writer->links + writer->link_capacity - (2 * h->M + 1);
    uint32_t keys[2 * HNSW_M_MAX], max = hnsw_row_max(h, layer);
    _Alignas(64) int16_t code[OMEN_DIM_MAX + 64];
    struct hnsw_probe probe;
    hnsw_probe_node(h, codes, node, code, &probe);
    hnsw_distances(h, codes, &probe, neighbours, count, keys);
    uint32_t n = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (hnsw_is_dead(h, neighbours[i])) continue; /* its place is wanted; cutting it early is fine */
        links[n++] = (struct hnsw_link){ hnsw_key_value(codes, keys[i]), neighbours[i] };
    }
    links[n++] = *target;
    hnsw_links_sort(links, n);
    uint32_t chosen = hnsw_select(h, codes, links, n, max);
    chosen = keep_needed(h, links, chosen, n, max, target->node, force);
    for (uint32_t i = 0; i < chosen; i++) neighbours[i] = links[i].node;
    hnsw_row_write(h, node, layer, neighbours, chosen);
}

void hnsw_link_add(struct hnsw *h, const struct hnsw_codes *codes, struct index_scratch *writer,
        uint32_t node, uint32_t layer, uint32_t target, float distance, bool force)
{
    uint32_t neighbours[2 * HNSW_M_MAX + 1], max = hnsw_row_max(h, layer);
    hnsw_row_lock(h, node, layer);
    uint32_t count = hnsw_row_read(h, node, layer, neighbours);
    bool there = hnsw_is_dead(h, node);
    for (uint32_t i = 0; i < count; i++) there = there || neighbours[i] == target;
    if (!there && count < max) {
        if (layer == 0) atomic_fetch_add_explicit(&h->in_degrees[target], 1, memory_order_relaxed);
        atomic_store_explicit(&hnsw_row(h, node, layer)[count], target, memory_order_release);
    } else if (!there) {
        struct hnsw_link link = { distance, target };
        add_full(h, codes, writer, node, layer, neighbours, count, &link, force);
    }
    hnsw_row_unlock(h, node, layer);
}
