/* From candidate lists to 32 links: the relative neighbourhood rule with slack, reverse links, the rule
 * again, the rest filled.
 *
 * A candidate is left out when it lies nearer to a neighbour that is kept already than, alpha times, to the node itself.
 * Codes of the at most 64 candidates are packed once, and each that is kept is multiplied with all of them: 10 to 20
 * products of 64 instead of all pairs, which took twice the time. Places that the rule leaves empty are filled with the
 * nearest candidates that it rejected: a hop estimates all 32 anyway. Threads: nodes in parallel, each writes only its
 * own links; reverse links are collected with atomic counters, so which of too many are kept may differ between runs with
 * several threads. */
#include <math.h>
#include <string.h>

#include "common/mem.h"
#include "storage/index/sealed_build.h"

#define ALPHA_FIRST                                                                                          \
    1.0f /* squared distances: the first pass is strict, its links are everybody's reverse candidates */
#define ALPHA_LAST 1.2f
#define FILL_REFINED 8 /* links of a refined row at least: copies of a point occlude all others */
#define KEEP_REFINE 20 /* nearest links that are candidates again beside what a walk meets */

struct candidates {
    struct build_near near[BUILD_CANDIDATES]; /* ascending */
    uint8_t place[BUILD_CANDIDATES];          /* of near[i] among the packed codes */
    uint32_t count;
};

#define PACKED_BYTES(b) ((size_t)(b)->padded * BUILD_CANDIDATES) /* of all candidates' codes */

/* Codes of the candidates as they stand, for products with any other. */
static void candidates_pack(const struct build *b, struct candidates *c, uint8_t *packed)
{
    const int8_t *rows[BUILD_CANDIDATES];
    for (uint32_t i = 0; i < c->count; i++) {
        rows[i] = build_code(b, c->near[i].node);
        c->place[i] = (uint8_t)i;
    }
    for (uint32_t first = 0; first < c->count; first += CODE_TILE_ROWS) {
        uint32_t n = c->count - first < CODE_TILE_ROWS ? c->count - first : CODE_TILE_ROWS;
        code_kernel_get()->pack_tile(rows + first, n, b->padded, packed + (size_t)first * b->padded);
    }
}

/* Products of a node with the packed candidates, by place. */
static void candidates_multiply(const struct build *b, const struct candidates *c, uint32_t node,
        const uint8_t *packed, int32_t dots[BUILD_CANDIDATES])
{
    const int8_t *row = build_code(b, node);
    for (uint32_t first = 0; first < c->count; first += CODE_TILE_ROWS)
        code_kernel_get()->dot_tile(&row, 1, b->padded, packed + (size_t)first * b->padded, dots + first,
                CODE_TILE_ROWS);
}

/* Links of one node from its packed candidates: first those that the rule keeps, then, to `fill`, the nearest rejected
 * ones. */
static void prune(struct build *b, uint32_t of, const struct candidates *c, float alpha, uint32_t fill,
        const uint8_t *packed)
{
    int32_t dots[BUILD_CANDIDATES] __attribute__((aligned(64))) = { 0 }, norms[BUILD_CANDIDATES] = { 0 };
    float reach[BUILD_CANDIDATES];
    uint64_t left = c->count == 64 ? UINT64_MAX : (UINT64_C(1) << c->count) - 1; /* by place */
    uint32_t kept = 0, *links = b->links + (size_t)of * SEALED_DEGREE;
    uint32_t rejected[BUILD_CANDIDATES], rejected_count = 0;
    for (uint32_t i = 0; i < BUILD_CANDIDATES; i++) reach[i] = -1;
    for (uint32_t i = 0; i < c->count; i++) {
        norms[c->place[i]] = b->norms[c->near[i].node];
        reach[c->place[i]] = (float)c->near[i].distance;
    }
    for (uint32_t i = 0; i < c->count; i++) {
        uint32_t node = c->near[i].node;
        if (kept == SEALED_DEGREE || !(left >> c->place[i] & 1)) {
            rejected[rejected_count++] = node;
            continue;
        }
        links[kept++] = node;
        if (kept == SEALED_DEGREE || i + 1 == c->count) continue;
        candidates_multiply(b, c, node, packed, dots);
        left &= ~code_kernel_get()->occlude_64(dots, norms,
                b->norms[node] + 2 * CODE_TILE_OFFSET * b->sums[node], reach, alpha);
    }
    b->strict[of] = (uint8_t)kept;
    for (uint32_t i = 0; i < rejected_count && kept < fill; i++) links[kept++] = rejected[i];
    b->degrees[of] = (uint8_t)kept;
}

static bool first_range(void *arg, uint32_t thread, uint32_t first, uint32_t end)
{
    struct build *b = arg;
    (void)thread;
    uint8_t *packed = mem_alloc_aligned(64, PACKED_BYTES(b));
    if (packed == NULL) return false;
    for (uint32_t node = first; node < end; node++) {
        const struct build_near *list = b->lists + (size_t)node * b->list_rows;
        struct candidates c = { .count = 0 };
        while (c.count < b->list_rows && list[c.count].distance != INT32_MAX) {
            c.near[c.count] = list[c.count];
            c.count++;
        }
        candidates_pack(b, &c, packed);
        prune(b, node, &c, ALPHA_FIRST, 0, packed);
    }
    mem_free(packed);
    return true;
}

static bool reverse_range(void *arg, uint32_t thread, uint32_t first, uint32_t end)
{
    struct build *b = arg;
    (void)thread;
    for (uint32_t node = first; node < end; node++) {
        for (uint32_t i = 0; i < b->strict[node]; i++) {
            uint32_t target = b->links[(size_t)node * SEALED_DEGREE + i];
            uint8_t at = atomic_load_explicit(&b->reverse_counts[target], memory_order_relaxed);
            while (at < BUILD_REVERSE &&
                    !atomic_compare_exchange_weak(&b->reverse_counts[target], &at, (uint8_t)(at + 1))) {}
            if (at < BUILD_REVERSE) b->reverse[(size_t)target * BUILD_REVERSE + at] = node;
        }
    }
    return true;
}

/* Add `node` when it is not there and there is room; distances are filled in later. */
static void candidates_add(struct candidates *c, uint32_t node)
{
    for (uint32_t i = 0; i < c->count; i++)
        if (c->near[i].node == node) return;
    if (c->count < BUILD_CANDIDATES) c->near[c->count++].node = node;
}

/* Distances and order; codes are packed for prune. */
static void candidates_measure(const struct build *b, uint32_t node, struct candidates *c, uint8_t *packed)
{
    int32_t dots[BUILD_CANDIDATES];
    candidates_pack(b, c, packed);
    candidates_multiply(b, c, node, packed, dots);
    for (uint32_t i = 0; i < c->count; i++)
        c->near[i].distance = b->norms[node] + 2 * CODE_TILE_OFFSET * b->sums[node] +
                b->norms[c->near[i].node] - 2 * dots[i];
    for (uint32_t i = 1; i < c->count; i++) {
        struct build_near x = c->near[i];
        uint8_t place = c->place[i];
        uint32_t at = i;
        for (; at > 0 &&
                (x.distance < c->near[at - 1].distance ||
                        (x.distance == c->near[at - 1].distance && x.node < c->near[at - 1].node));
                at--) {
            c->near[at] = c->near[at - 1];
            c->place[at] = c->place[at - 1];
        }
        c->near[at] = x;
        c->place[at] = place;
    }
}

static bool last_range(void *arg, uint32_t thread, uint32_t first, uint32_t end)
{
    struct build *b = arg;
    (void)thread;
    uint8_t *packed = mem_alloc_aligned(64, PACKED_BYTES(b));
    if (packed == NULL) return false;
    for (uint32_t node = first; node < end; node++) {
        struct candidates c = { .count = 0 };
        uint8_t pointing = atomic_load_explicit(&b->reverse_counts[node], memory_order_relaxed);
        if (pointing == 0 && b->merging) continue;
        uint32_t *links = b->links + (size_t)node * SEALED_DEGREE;
        const struct build_near *list = b->lists + (size_t)node * b->list_rows;
        for (uint32_t i = 0; i < b->degrees[node]; i++) candidates_add(&c, links[i]);
        for (uint32_t i = 0; i < pointing; i++)
            candidates_add(&c, b->reverse[(size_t)node * BUILD_REVERSE + i]);
        for (uint32_t i = 0; b->lists != NULL && i < b->list_rows && c.count < BUILD_CANDIDATES &&
                list[i].distance != INT32_MAX;
                i++)
            candidates_add(&c, list[i].node);
        candidates_measure(b, node, &c, packed);
        prune(b, node, &c, ALPHA_LAST, b->fill_to, packed);
    }
    mem_free(packed);
    return true;
}

enum omen_err build_prune(struct build *b)
{
    enum omen_err rc = parallel_for(b->control, "prune", b->n, 1024, first_range, b);
    if (rc == OMEN_OK) rc = parallel_for(b->control, "reverse", b->n, 1024, reverse_range, b);
    if (rc == OMEN_OK) rc = parallel_for(b->control, "prune again", b->n, 1024, last_range, b);
    return rc;
}

/* Every node a link from at least two others: what few point to, few find. A node that lacks them asks its own
 * nearest neighbours, who give a free place or that of their last link whose target can spare one. (patch-784: 0.2 %
 * of the rows had no link to them and were a third of all that searches missed.) */
#define LINKS_IN_LEAST 2
#define LINKS_IN_SPARE 6 /* a target with so many can lose one */

static bool link_take(struct build *b, uint32_t from, uint32_t to, uint32_t *in)
{
    uint32_t *links = b->links + (size_t)from * SEALED_DEGREE;
    for (uint32_t i = 0; i < b->degrees[from]; i++)
        if (links[i] == to) return false;
    if (b->degrees[from] < SEALED_DEGREE) {
        links[b->degrees[from]++] = to;
        return true;
    }
    for (uint32_t i = SEALED_DEGREE; i > 0; i--) {
        if (in[links[i - 1]] < LINKS_IN_SPARE) continue;
        in[links[i - 1]]--;
        links[i - 1] = to;
        return true;
    }
    return false;
}

static enum omen_err links_in_ensure(struct build *b)
{
    uint32_t *in = mem_calloc(b->n, sizeof *in);
    if (in == NULL) return OMEN_ENOMEM;
    for (uint32_t node = 0; node < b->n; node++)
        for (uint32_t i = 0; i < b->degrees[node]; i++) in[b->links[(size_t)node * SEALED_DEGREE + i]]++;
    for (uint32_t node = 0; node < b->n; node++) {
        const uint32_t *links = b->links + (size_t)node * SEALED_DEGREE;
        for (uint32_t i = 0; i < b->degrees[node] && in[node] < LINKS_IN_LEAST; i++)
            in[node] += link_take(b, links[i], node, in);
    }
    mem_free(in);
    return OMEN_OK;
}

/* ---- links of older graphs ---- */

struct relink {
    struct build *b;
    build_known_fn *known;
    const void *arg;
};

static bool relink_range(void *arg, uint32_t thread, uint32_t first, uint32_t end)
{
    const struct relink *r = arg;
    struct build *b = r->b;
    (void)thread;
    uint8_t *packed = mem_alloc_aligned(64, PACKED_BYTES(b));
    if (packed == NULL) return false;
    for (uint32_t node = first; node < end; node++) {
        uint32_t known[BUILD_CANDIDATES];
        bool fixed = false;
        uint32_t count = r->known(r->arg, node, known, &fixed);
        if (fixed) {
            memcpy(b->links + (size_t)node * SEALED_DEGREE, known, count * sizeof *known);
            b->degrees[node] = (uint8_t)count;
            continue;
        }
        struct candidates c = { .count = 0 };
        for (uint32_t i = 0; i < count; i++) candidates_add(&c, known[i]);
        candidates_measure(b, node, &c, packed);
        prune(b, node, &c, ALPHA_LAST, b->fill_to, packed);
    }
    mem_free(packed);
    return true;
}

enum omen_err build_relink(struct build *b, build_known_fn *known, const void *arg)
{
    struct relink r = { b, known, arg };
    enum omen_err rc = parallel_for(b->control, "link", b->n, 1024, relink_range, &r);
    if (rc == OMEN_OK) rc = parallel_for(b->control, "reverse", b->n, 1024, reverse_range, b);
    if (rc == OMEN_OK) rc = parallel_for(b->control, "prune again", b->n, 1024, last_range, b);
    if (rc == OMEN_OK) rc = links_in_ensure(b);
    return rc;
}

/* ---- refinement ---- */

#define REFINE_EFFORT 48 /* of the walk from the leaders to each node */

static bool refine_range(void *arg, uint32_t thread, uint32_t first, uint32_t end)
{
    struct build *b = arg;
    struct index_scratch *scratch = index_scratch_new(&b->s->base);
    uint8_t *packed = mem_alloc_aligned(64, PACKED_BYTES(b));
    bool fine = scratch != NULL && packed != NULL;
    (void)thread;
    for (uint32_t node = first; fine && node < end; node++) {
        struct index_hit hits[BUILD_CANDIDATES];
        struct index_cost cost = { 0 };
        uint32_t found = 0, *links = b->links + (size_t)node * SEALED_DEGREE;
        struct index_search search = { .query = b->s->rows.data +
                    (size_t)b->order[node] * b->s->rows.stride_floats };
        fine = sealed_walk(b->s, &search, (struct sealed_pace){ REFINE_EFFORT, INFINITY, 0 },
                       BUILD_CANDIDATES, scratch, hits, &found, &cost) == OMEN_OK;
        struct candidates c = { .count = 0 };
        for (uint32_t i = 0; i < b->degrees[node] && i < KEEP_REFINE; i++) candidates_add(&c, links[i]);
        for (uint32_t i = found; i > 0 && c.count < BUILD_CANDIDATES;
                i--) /* the far ones first: they are the long links */
            if (hits[i - 1].slot != node) candidates_add(&c, hits[i - 1].slot);
        candidates_measure(b, node, &c, packed);
        prune(b, node, &c, ALPHA_LAST, FILL_REFINED, packed);
        atomic_store_explicit(&b->reverse_counts[node], 0, memory_order_relaxed);
    }
    index_scratch_free(&b->s->base, scratch);
    mem_free(packed);
    return fine;
}

enum omen_err build_refine(struct build *b)
{
    enum omen_err rc = parallel_for(b->control, "refine", b->n, 256, refine_range, b);
    if (rc == OMEN_OK) rc = parallel_for(b->control, "reverse", b->n, 1024, reverse_range, b);
    if (rc == OMEN_OK) rc = parallel_for(b->control, "prune again", b->n, 1024, last_range, b);
    if (rc == OMEN_OK) rc = links_in_ensure(b);
    return rc;
}

void build_link(struct build *b, uint32_t node, const uint32_t *found, uint32_t count, uint8_t *packed,
        uint32_t *touched_out, uint32_t *touched_count)
{
    struct candidates c = { .count = 0 };
    uint32_t *links = b->links + (size_t)node * SEALED_DEGREE;
    for (uint32_t i = 0; i < count; i++) candidates_add(&c, found[i]);
    candidates_measure(b, node, &c, packed);
    prune(b, node, &c, ALPHA_LAST, b->fill_to, packed);
    for (uint32_t i = 0; i < b->degrees[node]; i++) {
        uint32_t target = links[i], *back = b->links + (size_t)target * SEALED_DEGREE;
        touched_out[(*touched_count)++] = target;
        if (b->degrees[target] < SEALED_DEGREE) {
            back[b->degrees[target]++] = node;
            continue;
        }
        c.count = 0;
        candidates_add(&c, node);
        for (uint32_t j = 0; j < SEALED_DEGREE; j++) candidates_add(&c, back[j]);
        candidates_measure(b, target, &c, packed);
        prune(b, target, &c, ALPHA_LAST, b->fill_to, packed);
    }
}
