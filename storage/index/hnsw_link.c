/* Rows and their links: choosing neighbours (Malkov & Yashunin 2018, algorithm 4) and changing rows under
 * their lock.
 *
 * Departs from the paper: of points that coincide at most a quarter of a row is linked, so that duplicates do
 * not cut their neighbourhood off; a neighbour whose last link this is stays, and a new point that would get
 * no link at all takes the place of a neighbour and links to it.
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
    for (uint32_t i = 0; i < count; i++)
        atomic_fetch_add_explicit(hnsw_in_degree(h, neighbours[i], layer), 1, memory_order_relaxed);
    for (uint32_t i = 0; i < max; i++) {
        uint32_t old = atomic_load_explicit(&row[i], memory_order_relaxed);
        uint32_t new = i < count ? neighbours[i] : HNSW_NONE;
        if (old != new) atomic_store_explicit(&row[i], new, memory_order_release);
        if (old != HNSW_NONE)
            atomic_fetch_sub_explicit(hnsw_in_degree(h, old, layer), 1, memory_order_relaxed);
    }
}

static uint32_t in_degree(const struct hnsw *h, uint32_t node, uint32_t layer)
{
    return atomic_load_explicit(hnsw_in_degree(h, node, layer), memory_order_relaxed);
}

/* Behind the chosen ones, those dropped ones that nobody else links to, while there is room. A target that
 * is needed comes in at any rate: for the chosen one that most others link to, which is returned, else
 * HNSW_NONE. */
static uint32_t keep_needed(const struct hnsw *h, struct hnsw_link *links, uint32_t *chosen, uint32_t count,
        uint32_t max, uint32_t target, uint32_t layer, bool needed)
{
    uint32_t kept = *chosen, target_at = 0, victim = 0;
    for (uint32_t i = *chosen; i < count && kept < max; i++) {
        if (links[i].node == target ? !needed : in_degree(h, links[i].node, layer) > 1) continue;
        struct hnsw_link link = links[i];
        links[i] = links[kept];
        links[kept++] = link;
    }
    *chosen = kept;
    while (links[target_at].node != target) target_at++;
    if (!needed || target_at < kept) return HNSW_NONE;
    for (uint32_t i = 1; i < kept; i++)
        if (in_degree(h, links[i].node, layer) >= in_degree(h, links[victim].node, layer)) victim = i;
    uint32_t pushed_out = links[victim].node;
    links[victim] = links[target_at];
    return pushed_out;
}

/* Prune the full row so that the target may come in; the neighbour that had to go although it was chosen. */
static uint32_t add_full(struct hnsw *h, const struct hnsw_codes *codes, struct index_scratch *writer,
        uint32_t node, uint32_t layer, uint32_t *neighbours, uint32_t count, const struct hnsw_link *target,
        bool needed)
{
    struct hnsw_link *links = writer->links + writer->link_capacity - (2 * h->M + 1);
    uint32_t keys[2 * HNSW_M_MAX], max = hnsw_row_max(h, layer);
    _Alignas(64) int16_t code[OMEN_DIM_MAX + 64];
    struct hnsw_probe probe;
    hnsw_probe_node(h, codes, node, code, &probe);
    hnsw_distances(h, codes, &probe, neighbours, count, keys);
    uint32_t n = 0; /* dead ones stay among them: their heirs are found when they are cut out */
    for (; n < count; n++) links[n] = (struct hnsw_link){ hnsw_key_value(codes, keys[n]), neighbours[n] };
    links[n++] = *target;
    hnsw_links_sort(links, n);
    uint32_t chosen = hnsw_select(h, codes, links, n, max);
    uint32_t pushed_out = keep_needed(h, links, &chosen, n, max, target->node, layer, needed);
    for (uint32_t i = 0; i < chosen; i++) neighbours[i] = links[i].node;
    hnsw_row_write(h, node, layer, neighbours, chosen);
    return pushed_out;
}

/* node -> neighbour where the row has room. */
static void append(struct hnsw *h, uint32_t node, uint32_t layer, uint32_t neighbour)
{
    uint32_t neighbours[2 * HNSW_M_MAX];
    hnsw_row_lock(h, node, layer);
    uint32_t count = hnsw_row_read(h, node, layer, neighbours);
    bool there = hnsw_is_dead(h, neighbour) || neighbour == node;
    for (uint32_t i = 0; i < count; i++) there = there || neighbours[i] == neighbour;
    if (!there && count < hnsw_row_max(h, layer)) {
        atomic_fetch_add_explicit(hnsw_in_degree(h, neighbour, layer), 1, memory_order_relaxed);
        atomic_store_explicit(&hnsw_row(h, node, layer)[count], neighbour, memory_order_release);
    }
    hnsw_row_unlock(h, node, layer);
}

void hnsw_link_add(struct hnsw *h, const struct hnsw_codes *codes, struct index_scratch *writer,
        uint32_t node, uint32_t layer, uint32_t target, float distance, bool force)
{
    uint32_t neighbours[2 * HNSW_M_MAX + 1], max = hnsw_row_max(h, layer), pushed_out = HNSW_NONE;
    hnsw_row_lock(h, node, layer);
    uint32_t count = hnsw_row_read(h, node, layer, neighbours);
    bool there = hnsw_is_dead(h, node);
    for (uint32_t i = 0; i < count; i++) there = there || neighbours[i] == target;
    if (!there && count < max) {
        atomic_fetch_add_explicit(hnsw_in_degree(h, target, layer), 1, memory_order_relaxed);
        atomic_store_explicit(&hnsw_row(h, node, layer)[count], target, memory_order_release);
    } else if (!there) {
        struct hnsw_link link = { distance, target };
        bool needed = force || in_degree(h, target, layer) == 0;
        pushed_out = add_full(h, codes, writer, node, layer, neighbours, count, &link, needed);
    }
    hnsw_row_unlock(h, node, layer);
    /* node -> target -> pushed_out: nobody is lost, however many copies of a point there are. */
    if (pushed_out != HNSW_NONE) append(h, target, layer, pushed_out);
}
