/* Merges sealed graphs without building one: links are kept, and only edges between the graphs are looked for.
 *
 *   largest graph: its links stand, but where rows are gone or a new neighbour asks to be considered
 *   the others:    every row walks through the larger graphs; what it finds are candidates beside its own links
 *   both:          reverse links, the rule of sealed_prune.c where something changed, rows packed once
 *
 * A row whose neighbour is gone takes that neighbour's neighbours for candidates. New numbers keep the largest graph's
 * order of place; a row of another graph stands behind the node that is nearest to it there. Rows are held out for
 * calibration as in a build: nothing links to them until then. (After FGIM, arXiv 2603.21710, and Lucene's merge of
 * HNSW graphs; there is no second pass of refinement here, because every part had one.)
 *
 * Where that would not be cheaper than a build, there is a build: sources_worth().
 * Threads: control->threads; parts are only read. Determinism: as of a build. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/check.h"
#include "common/mem.h"
#include "storage/index/sealed_build.h"

#define MERGE_EFFORT 48 /* of the walks through larger graphs; as wide as a refining pass */
#define MERGE_FOUND 32  /* nearest ones of these walks that are kept */
#define MERGE_ROWS 4096 /* fewer rows are built anew: that takes no time */
#define MERGE_WALKS                                                                                          \
    1.25f            /* most walks for each row: four equal graphs take 1.5, a build one and as much again */
#define MERGE_GONE 4 /* at most one row in so many may be gone */
#define NODE_NONE UINT32_MAX

/* One graph that is merged. Its nodes have a place among those of all graphs: first + node. */
struct source {
    const struct sealed *s;
    const uint32_t *slots; /* [s->count] its slot -> new slot or INDEX_SLOT_NONE; borrowed */
    uint64_t *stays;       /* bit of its slot: the row is there and not held out */
    uint32_t
            *node_of; /* [s->count] its node -> new node or NODE_NONE; before there are new nodes: the nearest
                              node of the largest graph */
    uint32_t *found; /* [s->count][MERGE_FOUND] new slots, INDEX_SLOT_NONE behind them; NULL in the largest */
};

struct merge {
    struct build *b;
    struct source sources[INDEX_MERGE_PARTS_MAX]; /* largest first */
    uint32_t source_count;
    uint32_t walking;       /* source whose rows walk now */
    uint8_t *source_of;     /* [b->n] of a new node */
    uint32_t *old_of;       /* [b->n] its node there */
    uint32_t *node_of_slot; /* [b->total] by new slot */
};

/* ---- sources ---- */

static void sources_sort(struct merge *m, const struct index_part *parts, uint32_t part_count)
{
    for (uint32_t i = 0; i < part_count; i++) {
        const struct sealed *s = (const struct sealed *)parts[i].index;
        uint32_t at = m->source_count++;
        for (; at > 0 && m->sources[at - 1].s->count < s->count; at--) m->sources[at] = m->sources[at - 1];
        m->sources[at] = (struct source){ .s = s, .slots = parts[i].slots };
    }
}

/* A merge is cheaper than a build: walks are few, and links lead to rows that are still there. */
static bool sources_worth(const struct index_part *parts, uint32_t part_count, uint32_t count)
{
    struct merge m = { 0 };
    uint64_t rows = 0, walks = 0;
    if (part_count < 2 || count < MERGE_ROWS) return false;
    for (uint32_t i = 0; i < part_count; i++)
        if (parts[i].index->ops->kind != INDEX_SEALED) return false;
    sources_sort(&m, parts, part_count);
    for (uint32_t i = 0; i < m.source_count; i++) {
        rows += m.sources[i].s->count;
        walks += (uint64_t)i * m.sources[i].s->count;
    }
    return rows - count <= rows / MERGE_GONE && (double)walks <= (double)MERGE_WALKS * (double)rows;
}

static bool sources_init(struct merge *m)
{
    struct build *b = m->b;
    uint64_t *held = mem_calloc(b->total / 64 + 1, sizeof *held);
    m->source_of = mem_alloc((size_t)b->n + 1);
    m->old_of = mem_alloc(((size_t)b->n + 1) * sizeof *m->old_of);
    m->node_of_slot = mem_alloc((size_t)b->total * sizeof *m->node_of_slot);
    bool fine = held != NULL && m->source_of != NULL && m->old_of != NULL && m->node_of_slot != NULL;
    for (uint32_t node = b->n; fine && node < b->total; node++)
        held[b->order[node] / 64] |= UINT64_C(1) << (b->order[node] % 64);
    for (uint32_t i = 0; fine && i < m->source_count; i++) {
        struct source *source = &m->sources[i];
        size_t count = source->s->count;
        source->stays = mem_calloc(count / 64 + 1, sizeof *source->stays);
        source->node_of = mem_alloc((count + 1) * sizeof *source->node_of);
        if (i > 0) source->found = mem_alloc((count * MERGE_FOUND + 1) * sizeof *source->found);
        fine = source->stays != NULL && source->node_of != NULL && (i == 0 || source->found != NULL);
        for (uint32_t slot = 0; fine && slot < count; slot++)
            if (source->slots[slot] != INDEX_SLOT_NONE && !index_bit(held, source->slots[slot]))
                source->stays[slot / 64] |= UINT64_C(1) << (slot % 64);
    }
    mem_free(held);
    return fine;
}

static void merge_fini(struct merge *m)
{
    for (uint32_t i = 0; i < m->source_count; i++) {
        mem_free(m->sources[i].stays);
        mem_free(m->sources[i].node_of);
        mem_free(m->sources[i].found);
    }
    mem_free(m->source_of);
    mem_free(m->old_of);
    mem_free(m->node_of_slot);
}

static bool node_stays(const struct source *source, uint32_t node)
{
    return index_bit(source->stays, sealed_slot(source->s, node));
}

/* Not only held out: those come back, and who lost them for a while needs no heirs. With heirs the places where rows
 * are held out were better linked than others, and the recall measured there was 0.01 above that of other queries. */
static bool node_gone(const struct source *source, uint32_t node)
{
    return source->slots[sealed_slot(source->s, node)] == INDEX_SLOT_NONE;
}

/* ---- walks through larger graphs ---- */

/* Scratches of a thread for every larger graph. */
static bool scratches_new(const struct merge *m, struct index_scratch **scratches)
{
    bool fine = true;
    for (uint32_t i = 0; i < m->walking; i++) {
        scratches[i] = index_scratch_new(&m->sources[i].s->base);
        fine = fine && scratches[i] != NULL;
    }
    return fine;
}

static enum omen_err find_one(struct merge *m, uint32_t node, struct index_scratch **scratches)
{
    struct source *own = &m->sources[m->walking];
    uint32_t slot = own->slots[sealed_slot(own->s, node)], *found = own->found + (size_t)node * MERGE_FOUND;
    struct index_hit nearest[MERGE_FOUND], hits[MERGE_FOUND];
    struct index_heap heap = { nearest, MERGE_FOUND, 0 };
    own->node_of[node] = NODE_NONE;
    for (uint32_t i = 0; i < m->walking; i++) {
        const struct source *larger = &m->sources[i];
        struct index_search search = { .query = build_row(m->b->s, slot), .filter = larger->stays };
        struct index_cost cost = { 0 };
        uint32_t count = 0;
        enum omen_err rc = sealed_walk(larger->s, &search, (struct sealed_pace){ MERGE_EFFORT, INFINITY, 0 },
                MERGE_FOUND, scratches[i], hits, &count, &cost);
        if (rc != OMEN_OK) return rc;
        if (i == 0 && count > 0) own->node_of[node] = hits[0].slot;
        for (uint32_t j = 0; j < count; j++)
            index_heap_push(&heap,
                    (struct index_hit){ hits[j].distance,
                            larger->slots[sealed_slot(larger->s, hits[j].slot)] });
    }
    index_heap_sort(&heap);
    for (uint32_t j = 0; j < MERGE_FOUND; j++) found[j] = j < heap.count ? nearest[j].slot : INDEX_SLOT_NONE;
    return OMEN_OK;
}

static bool find_range(void *arg, uint32_t thread, uint32_t first, uint32_t end)
{
    struct merge *m = arg;
    struct index_scratch *scratches[INDEX_MERGE_PARTS_MAX] = { NULL };
    (void)thread;
    bool fine = scratches_new(m, scratches);
    for (uint32_t node = first; fine && node < end; node++)
        if (node_stays(&m->sources[m->walking], node)) fine = find_one(m, node, scratches) == OMEN_OK;
    for (uint32_t i = 0; i < m->walking; i++) index_scratch_free(&m->sources[i].s->base, scratches[i]);
    return fine;
}

/* ---- numbers ---- */

static int compare_key(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void number(struct merge *m, uint32_t i, uint32_t old, uint32_t *next)
{
    struct source *source = &m->sources[i];
    uint32_t slot = source->slots[sealed_slot(source->s, old)], node = (*next)++;
    CHECK(node < m->b->n);
    m->b->order[node] = slot;
    m->node_of_slot[slot] = node;
    m->source_of[node] = (uint8_t)i;
    m->old_of[node] = old;
    source->node_of[old] = node;
}

/* The largest graph's order; rows of the others behind the node that they are nearest to, then in their own order. */
static enum omen_err nodes_number(struct merge *m)
{
    struct source *largest = &m->sources[0];
    uint64_t rows = 0, count = 0, at = 0;
    for (uint32_t i = 1; i < m->source_count; i++) rows += m->sources[i].s->count;
    uint64_t *keys = mem_alloc((rows + 1) * sizeof *keys); /* nearest node, place among the smaller graphs */
    if (keys == NULL) return OMEN_ENOMEM;
    for (uint32_t i = 1, first = 0; i < m->source_count; first += m->sources[i++].s->count) {
        const struct source *source = &m->sources[i];
        for (uint32_t old = 0; old < source->s->count; old++)
            if (node_stays(source, old)) keys[count++] = (uint64_t)source->node_of[old] << 32 | (first + old);
        for (uint32_t old = 0; old < source->s->count; old++) source->node_of[old] = NODE_NONE;
    }
    qsort(keys, count, sizeof *keys, compare_key);
    uint32_t next = 0;
    for (uint32_t slot = 0; slot < m->b->total; slot++) m->node_of_slot[slot] = NODE_NONE;
    for (uint64_t old = 0; old <= largest->s->count; old++) {
        bool end = old == largest->s->count; /* and those that found nothing */
        if (!end) largest->node_of[old] = NODE_NONE;
        if (!end && node_stays(largest, (uint32_t)old)) number(m, 0, (uint32_t)old, &next);
        for (; at < count && (end || keys[at] >> 32 == old); at++) {
            uint32_t place = (uint32_t)keys[at], i = 1;
            for (; place >= m->sources[i].s->count; i++) place -= m->sources[i].s->count;
            number(m, i, place, &next);
        }
    }
    CHECK(next == m->b->n);
    mem_free(keys);
    return OMEN_OK;
}

/* ---- links ---- */

static uint32_t known_add(uint32_t *nodes, uint32_t count, uint32_t node)
{
    for (uint32_t i = 0; i < count; i++)
        if (nodes[i] == node) return count;
    if (count < BUILD_CANDIDATES) nodes[count++] = node;
    return count;
}

/* Links that still lead somewhere, nodes found in larger graphs, neighbours of neighbours that are gone. */
static uint32_t known_of(const void *arg, uint32_t node, uint32_t *nodes_out, bool *fixed_out)
{
    const struct merge *m = arg;
    const struct source *source = &m->sources[m->source_of[node]];
    const struct sealed *s = source->s;
    uint32_t old = m->old_of[node], degree = sealed_degree(s, old), count = 0, gone = 0;
    const uint32_t *ids = sealed_ids(s, sealed_row(s, old));
    for (uint32_t i = 0; i < degree; i++) {
        if (source->node_of[ids[i]] != NODE_NONE)
            count = known_add(nodes_out, count, source->node_of[ids[i]]);
        else
            gone += node_gone(source, ids[i]);
    }
    *fixed_out = source->found == NULL && gone == 0;
    if (*fixed_out) return count;
    const uint32_t *found = source->found == NULL ? NULL : source->found + (size_t)old * MERGE_FOUND;
    for (uint32_t i = 0; found != NULL && i < MERGE_FOUND && found[i] != INDEX_SLOT_NONE; i++)
        count = known_add(nodes_out, count, m->node_of_slot[found[i]]);
    for (uint32_t i = 0; gone > 0 && i < degree; i++) {
        if (!node_gone(source, ids[i])) continue;
        const uint32_t *beyond = sealed_ids(s, sealed_row(s, ids[i]));
        for (uint32_t j = 0, end = sealed_degree(s, ids[i]); j < end; j++) {
            uint32_t heir = source->node_of[beyond[j]];
            if (heir != NODE_NONE && heir != node) count = known_add(nodes_out, count, heir);
        }
    }
    return count;
}

static enum omen_err merge_links(struct merge *m)
{
    struct build *b = m->b;
    enum omen_err rc = sources_init(m) ? OMEN_OK : OMEN_ENOMEM;
    for (m->walking = 1; rc == OMEN_OK && m->walking < m->source_count; m->walking++)
        rc = parallel_for(b->control, "find", m->sources[m->walking].s->count, 256, find_range, m);
    if (rc == OMEN_OK) rc = nodes_number(m);
    if (rc == OMEN_OK) rc = build_encode(b);
    if (rc == OMEN_OK) rc = build_relink(b, known_of, m);
    return rc;
}

enum omen_err index_sealed_merge(const struct index_part *parts, uint32_t part_count,
        const struct index_rows *rows, const struct index_params *params, const struct index_control *control,
        struct index **index_out, struct err *err)
{
    if (!sources_worth(parts, part_count, rows->count))
        return index_sealed_build(rows, params, control, index_out, err);
    struct build b;
    struct merge m = { .b = &b };
    enum omen_err rc = build_begin(&b, rows, params, control, err);
    if (rc == OMEN_OK) rc = build_rows(&b, true);
    if (rc == OMEN_OK) {
        sources_sort(&m, parts, part_count);
        rc = merge_links(&m);
    }
    merge_fini(&m);
    if (rc == OMEN_OK) rc = build_pack(&b, false);
    return build_end(&b, rc, index_out, err);
}
