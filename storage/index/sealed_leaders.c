/* Leaders of a sealed graph: which nodes a walk may enter by, and how a query finds the near ones.
 *
 * An even sample in the order of place, cut in two by 2-means again and again until 32 or fewer lie together; a
 * query scans the middles of these groups and then only the nearest groups (20 groups of codes instead of 128
 * for 4,096 leaders: 5 us of a search of 24 at 128-d). A node for every part of the graph that none of them
 * reaches stands in groups behind, which are always looked at: a middle would hide it.
 * Threads: one. Determinism: from the seed and the rows. */
#include <math.h>
#include <string.h>

#include "common/check.h"
#include "common/mem.h"
#include "storage/index/sealed_build.h"
#include "storage/kernel/kernel.h"

#define MEANS_ROUNDS 4
#define CUT_DEPTH_MAX 24 /* from there on groups are cut by position: copies cannot be told apart */

/* ---- sketches ---- */

enum omen_err sketch_alloc(struct sealed_sketch *sketch, uint32_t padded, uint32_t count)
{
    uint32_t groups = (count + CODE_GROUP - 1) / CODE_GROUP;
    mem_free(sketch->groups);
    mem_free(sketch->scales);
    sketch->count = count;
    sketch->group_bytes = (uint32_t)rabitq_codes_bytes(padded) + CODE_GROUP * 4;
    sketch->groups = mem_alloc_aligned(64, (size_t)groups * sketch->group_bytes + 64);
    sketch->scales = mem_alloc((size_t)groups * 2 * sizeof(float) + 1);
    return sketch->groups != NULL && sketch->scales != NULL ? OMEN_OK : OMEN_ENOMEM;
}

void sketch_group(const struct packing *p, struct sealed_sketch *sketch, uint32_t group,
        const float *const *rows, uint32_t count, uint8_t *scratch)
{
    uint32_t padded = p->b->padded;
    uint8_t *codes = sketch->groups + (size_t)group * sketch->group_bytes;
    uint16_t *f = (uint16_t *)(void *)(codes + rabitq_codes_bytes(padded));
    float *scales = sketch->scales + 2 * (size_t)group;
    rabitq_encode(rows, count, NULL, padded, scratch,
            &(struct rabitq_group){ codes, f, f + CODE_GROUP, &scales[0], &scales[1] });
    scales[0] = fmaxf(scales[0] / (p->scale * p->scale), 0x1p-126f); /* 0 times infinity is no distance */
    scales[1] /= p->scale;
}

/* ---- groups ---- */

struct grouping {
    const struct packing *p;
    float *z;           /* [count][padded] rotated leaders */
    const uint32_t *of; /* [count] their nodes */
    uint32_t *items;    /* [count] positions in z, permuted */
    uint32_t *ends;     /* [count] of groups in items */
    uint32_t group_count;
};

static const float *item_row(const struct grouping *g, uint32_t i)
{
    return g->z + (size_t)g->items[i] * g->p->b->padded;
}

static void mean_of(const struct grouping *g, uint32_t first, uint32_t end, float *mean_out)
{
    uint32_t padded = g->p->b->padded;
    memset(mean_out, 0, padded * sizeof(float));
    for (uint32_t i = first; i < end; i++)
        for (uint32_t j = 0; j < padded; j++) mean_out[j] += item_row(g, i)[j];
    for (uint32_t j = 0; j < padded; j++) mean_out[j] /= (float)(end - first);
}

/* Items nearer to means[0] to the front; how many. */
static uint32_t divide(struct grouping *g, uint32_t first, uint32_t end, float *const means[2])
{
    uint32_t padded = g->p->b->padded, at = first;
    for (uint32_t i = first; i < end; i++) {
        float a = kernel_get()->l2sq_f32(item_row(g, i), means[0], padded);
        float b = kernel_get()->l2sq_f32(item_row(g, i), means[1], padded);
        if (!(a <= b)) continue;
        uint32_t item = g->items[i];
        g->items[i] = g->items[at];
        g->items[at++] = item;
    }
    return at - first;
}

/* Cut items [first, end) until no part is larger than a group. */
static void cut(struct grouping *g, uint32_t first, uint32_t end, uint32_t depth, float *const means[2])
{
    uint32_t n = end - first, padded = g->p->b->padded, left = n / 2;
    if (n <= CODE_GROUP) {
        g->ends[g->group_count++] = end;
        return;
    }
    if (depth < CUT_DEPTH_MAX) {
        uint64_t seed = g->p->b->params->seed + first;
        for (uint32_t m = 0; m < 2; m++)
            memcpy(means[m], item_row(g, first + (uint32_t)(rotation_random(seed, depth * 2 + m) % n)),
                    padded * sizeof(float));
        for (uint32_t round = 0; round < MEANS_ROUNDS; round++) {
            left = divide(g, first, end, means);
            if (left == 0 || left == n) break;
            mean_of(g, first, first + left, means[0]);
            mean_of(g, first + left, end, means[1]);
        }
        if (left == 0 || left == n) left = n / 2;
    }
    cut(g, first, first + left, depth + 1, means);
    cut(g, first + left, end, depth + 1, means);
}

/* Places of the groups' nodes, codes of groups and middles. `extra` nodes behind, [extra_count]. */
static enum omen_err groups_write(struct grouping *g, const uint32_t *extra, uint32_t extra_count,
        struct sealed_leaders *l)
{
    uint32_t padded = g->p->b->padded, behind = (extra_count + CODE_GROUP - 1) / CODE_GROUP;
    uint32_t groups = g->group_count + behind;
    uint8_t *scratch = mem_alloc((size_t)CODE_GROUP * padded / 8);
    float *z = mem_alloc_aligned(64, (size_t)CODE_GROUP * padded * sizeof(float));
    float *middles = mem_alloc_aligned(64, (size_t)g->group_count * padded * sizeof(float));
    l->nodes = mem_alloc((size_t)groups * CODE_GROUP * sizeof *l->nodes);
    enum omen_err rc = scratch == NULL || z == NULL || middles == NULL || l->nodes == NULL ? OMEN_ENOMEM
                                                                                           : OMEN_OK;
    if (rc == OMEN_OK) rc = sketch_alloc(&l->codes, padded, groups * CODE_GROUP);
    if (rc == OMEN_OK) rc = sketch_alloc(&l->middles, padded, g->group_count);
    const float *rows[CODE_GROUP];
    for (uint32_t i = 0, first = 0; rc == OMEN_OK && i < g->group_count; first = g->ends[i++]) {
        uint32_t n = g->ends[i] - first;
        for (uint32_t j = 0; j < CODE_GROUP; j++) {
            rows[j] = item_row(g, first + (j < n ? j : 0));
            l->nodes[(size_t)i * CODE_GROUP + j] = g->of[g->items[first + (j < n ? j : 0)]];
        }
        sketch_group(g->p, &l->codes, i, rows, n, scratch);
        mean_of(g, first, first + n, middles + (size_t)i * padded);
    }
    for (uint32_t i = 0; rc == OMEN_OK && i < g->group_count; i += CODE_GROUP) {
        uint32_t n = g->group_count - i < CODE_GROUP ? g->group_count - i : CODE_GROUP;
        for (uint32_t j = 0; j < n; j++) rows[j] = middles + (size_t)(i + j) * padded;
        sketch_group(g->p, &l->middles, i / CODE_GROUP, rows, n, scratch);
    }
    for (uint32_t i = 0; rc == OMEN_OK && i < behind; i++) {
        uint32_t n = extra_count - i * CODE_GROUP < CODE_GROUP ? extra_count - i * CODE_GROUP : CODE_GROUP;
        for (uint32_t j = 0; j < CODE_GROUP; j++) {
            uint32_t node = extra[i * CODE_GROUP + (j < n ? j : 0)];
            rows[j] = z + (size_t)j * padded;
            code_kernel_get()->widen_f16(g->p->rotated + (size_t)node * padded, padded,
                    z + (size_t)j * padded);
            l->nodes[(size_t)(g->group_count + i) * CODE_GROUP + j] = node;
        }
        sketch_group(g->p, &l->codes, g->group_count + i, rows, n, scratch);
    }
    mem_free(scratch);
    mem_free(z);
    mem_free(middles);
    return rc;
}

/* Mark all that is reachable from `start`; stack [n]. */
static void reach(const struct build *b, uint32_t start, uint64_t *reached, uint32_t *stack)
{
    uint32_t depth = 0;
    if (index_bit(reached, start)) return;
    reached[start / 64] |= UINT64_C(1) << (start % 64);
    stack[depth++] = start;
    while (depth > 0) {
        uint32_t node = stack[--depth];
        for (uint32_t i = 0; i < b->degrees[node]; i++) {
            uint32_t next = b->links[(size_t)node * SEALED_DEGREE + i];
            if (index_bit(reached, next)) continue;
            reached[next / 64] |= UINT64_C(1) << (next % 64);
            stack[depth++] = next;
        }
    }
}

/* An even sample in the order of place, then one for each part that none of them reaches: *sampled_out of
 * *count_out nodes. */
static enum omen_err leaders_choose(const struct build *b, uint32_t *nodes_out, uint32_t *sampled_out,
        uint32_t *count_out)
{
    uint32_t n = b->n, count = n / SEALED_LEADER_EVERY + 1;
    if (count > SEALED_LEADERS_SAMPLED) count = SEALED_LEADERS_SAMPLED;
    uint32_t *stack = mem_alloc((size_t)n * sizeof *stack);
    uint64_t *reached = mem_calloc(n / 64 + 1, sizeof *reached);
    enum omen_err rc = stack == NULL || reached == NULL ? OMEN_ENOMEM : OMEN_OK;
    for (uint32_t i = 0; rc == OMEN_OK && i < count; i++) {
        nodes_out[i] = (uint32_t)((uint64_t)i * n / count);
        reach(b, nodes_out[i], reached, stack);
    }
    *sampled_out = count;
    for (uint32_t node = 0; rc == OMEN_OK && node < n && count < SEALED_LEADERS_MAX; node++) {
        if (index_bit(reached, node)) continue;
        nodes_out[count++] = node;
        reach(b, node, reached, stack);
    }
    *count_out = count;
    mem_free(stack);
    mem_free(reached);
    return rc;
}

void sealed_leaders_free(struct sealed_leaders *leaders)
{
    mem_free(leaders->nodes);
    mem_free(leaders->codes.groups);
    mem_free(leaders->codes.scales);
    mem_free(leaders->middles.groups);
    mem_free(leaders->middles.scales);
    memset(leaders, 0, sizeof *leaders);
}

enum omen_err build_leaders(const struct packing *p)
{
    const struct build *b = p->b;
    uint32_t *nodes = mem_alloc(SEALED_LEADERS_MAX * sizeof *nodes), sampled = 0, count = 0;
    sealed_leaders_free(&b->s->leaders);
    enum omen_err rc = nodes == NULL ? OMEN_ENOMEM : leaders_choose(b, nodes, &sampled, &count);
    struct grouping g = { .p = p, .of = nodes };
    float *means[2] = { NULL, NULL };
    if (rc == OMEN_OK) {
        g.z = mem_alloc_aligned(64, (size_t)sampled * b->padded * sizeof(float));
        g.items = mem_alloc(sampled * sizeof *g.items);
        g.ends = mem_alloc(sampled * sizeof *g.ends);
        means[0] = mem_alloc_aligned(64, b->padded * sizeof(float));
        means[1] = mem_alloc_aligned(64, b->padded * sizeof(float));
        if (g.z == NULL || g.items == NULL || g.ends == NULL || means[0] == NULL || means[1] == NULL)
            rc = OMEN_ENOMEM;
    }
    if (rc == OMEN_OK) {
        for (uint32_t i = 0; i < sampled; i++) {
            g.items[i] = i;
            code_kernel_get()->widen_f16(p->rotated + (size_t)nodes[i] * b->padded, b->padded,
                    g.z + (size_t)i * b->padded);
        }
        cut(&g, 0, sampled, 0, means);
        rc = groups_write(&g, nodes + sampled, count - sampled, &b->s->leaders);
    }
    mem_free(means[0]);
    mem_free(means[1]);
    mem_free(g.z);
    mem_free(g.items);
    mem_free(g.ends);
    mem_free(nodes);
    return rc;
}
