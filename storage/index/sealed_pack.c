/* Rows of a sealed graph from links, and the flat codes of all of them; held-out rows are linked here too, one by
 * one, because they are the only ones that need rows before they have links.
 * Threads: rows in parallel, held-out rows by one. Determinism: follows from the links. */
#include <math.h>
#include <string.h>

#include "common/mem.h"
#include "storage/index/compact_build.h"

#define F16_MAX 65000.0f
#define F16_TARGET                                                                                           \
    1024.0f /* rotated components are scaled to at most this: no overflow, full precision for small ones */

static bool rotate_range(void *arg, uint32_t thread, uint32_t first, uint32_t end)
{
    struct packing *p = arg;
    struct build *b = p->b;
    float v[CODE_DIM_MAX] __attribute__((aligned(64)));
    (void)thread;
    for (uint32_t node = first; node < end; node++) {
        sealed_internal(b->s, build_row(b->s, b->order[node]), true, v);
        sealed_rotate(b->s, v);
        for (uint32_t j = 0; j < b->padded; j++) v[j] = fminf(fmaxf(v[j] * p->scale, -F16_MAX), F16_MAX);
        code_kernel_get()->narrow_f16(v, b->padded, p->rotated + (size_t)node * b->padded);
    }
    return true;
}

static void own_encode(const struct sealed *s, const float *v, uint8_t *own, struct sealed_head *head)
{
    float lo = 0, scale = 1;
    if (!s->lossless) {
        float hi = lo = v[0];
        for (uint32_t i = 1; i < s->dim; i++) {
            lo = fminf(lo, v[i]);
            hi = fmaxf(hi, v[i]);
        }
        scale = (hi - lo) / 255;
        if (!(scale >= 0x1p-126f)) scale = 0x1p-126f;
    }
    for (uint32_t i = 0; i < s->dim; i++) {
        float level = (v[i] - lo) / scale + 0.5f;
        own[i] = (uint8_t)(level < 0 ? 0 : level > 255 ? 255 : level);
    }
    head->own_lo = lo;
    head->own_scale = scale;
}

/* Memory of one packing thread. */
struct packer {
    float *z;         /* [33][padded]: the neighbours, then the node */
    uint8_t *scratch; /* for rabitq_encode */
    float *internal;  /* [padded] */
};

static bool packer_init(struct packer *packer, uint32_t padded)
{
    packer->z = mem_alloc_aligned(64, (SEALED_DEGREE + 1) * (size_t)padded * sizeof(float));
    packer->scratch = mem_alloc(SEALED_DEGREE * (size_t)padded / 8);
    packer->internal = mem_alloc_aligned(64, padded * sizeof(float));
    return packer->z != NULL && packer->scratch != NULL && packer->internal != NULL;
}

static void packer_fini(struct packer *packer)
{
    mem_free(packer->z);
    mem_free(packer->scratch);
    mem_free(packer->internal);
}

static void pack_node(const struct packing *p, struct packer *packer, uint32_t node)
{
    struct build *b = p->b;
    struct sealed *s = b->s;
    if (s->compact != NULL) {
        compact_pack(b, node);
        return;
    }
    const struct code_kernel *kernel = code_kernel_get();
    uint8_t *row = sealed_row(s, node);
    struct sealed_head *head = (struct sealed_head *)(void *)(row + s->layout.head);
    uint32_t degree = b->degrees[node], *ids = (uint32_t *)(void *)(row + s->layout.ids);
    const uint32_t *links = b->links + (size_t)node * SEALED_DEGREE;
    const float *neighbours[SEALED_DEGREE];
    float *centre = packer->z + (size_t)SEALED_DEGREE * b->padded;
    kernel->widen_f16(p->rotated + (size_t)node * b->padded, b->padded, centre);
    for (uint32_t i = 0; i < degree; i++) {
        float *z = packer->z + (size_t)i * b->padded;
        kernel->widen_f16(p->rotated + (size_t)links[i] * b->padded, b->padded, z);
        neighbours[i] = z;
        ids[i] = links[i];
    }
    for (uint32_t i = degree; i < SEALED_DEGREE; i++) ids[i] = node;
    struct rabitq_group group = { row, (uint16_t *)(void *)(row + s->layout.f),
        (uint16_t *)(void *)(row + s->layout.g), &head->f_scale, &head->g_scale };
    rabitq_encode(neighbours, degree, centre, b->padded, packer->scratch, &group);
    head->f_scale = fmaxf(head->f_scale / (p->scale * p->scale),
            0x1p-126f); /* 0 times infinity is no distance */
    head->g_scale /= p->scale;
    head->slot = b->order[node];
    head->degree = degree;
    sealed_internal(s, build_row(s, b->order[node]), true, packer->internal);
    own_encode(s, packer->internal, row + s->layout.own, head);
}

static bool pack_range(void *arg, uint32_t thread, uint32_t first, uint32_t end)
{
    struct packing *p = arg;
    struct packer packer;
    (void)thread;
    bool fine = packer_init(&packer, p->b->padded);
    for (uint32_t node = first; fine && node < end; node++) pack_node(p, &packer, node);
    packer_fini(&packer);
    return fine;
}

/* Codes of all rows relative to the mean, by slot. */
static enum omen_err flat_build(struct packing *p)
{
    struct build *b = p->b;
    uint32_t padded = b->padded;
    uint32_t *node_of = mem_alloc((size_t)b->total * sizeof *node_of);
    float *z = mem_alloc_aligned(64, (size_t)CODE_GROUP * padded * sizeof(float));
    uint8_t *scratch = mem_alloc((size_t)CODE_GROUP * padded / 8);
    enum omen_err rc = node_of == NULL || z == NULL || scratch == NULL ? OMEN_ENOMEM : OMEN_OK;
    if (rc == OMEN_OK) rc = sketch_alloc(&b->s->flat, padded, b->total);
    for (uint32_t node = 0; rc == OMEN_OK && node < b->total; node++) node_of[b->order[node]] = node;
    for (uint32_t first = 0; rc == OMEN_OK && first < b->total; first += CODE_GROUP) {
        const float *rows[CODE_GROUP];
        uint32_t n = b->total - first < CODE_GROUP ? b->total - first : CODE_GROUP;
        for (uint32_t i = 0; i < n; i++) {
            rows[i] = z + (size_t)i * padded;
            code_kernel_get()->widen_f16(p->rotated + (size_t)node_of[first + i] * padded, padded,
                    z + (size_t)i * padded);
        }
        sketch_group(p, &b->s->flat, first / CODE_GROUP, rows, n, scratch);
    }
    mem_free(node_of);
    mem_free(z);
    mem_free(scratch);
    return rc;
}

#define INSERT_EFFORT 128 /* of the walks that find neighbours for held-out rows */

/* The held-out rows, one after the other: a walk, links both ways, every touched row packed again. */
static enum omen_err held_out_insert(struct packing *p)
{
    struct build *b = p->b;
    struct packer packer;
    struct index_scratch *scratch = index_scratch_new(&b->s->base);
    uint8_t *packed = mem_alloc_aligned(64, (size_t)b->padded * BUILD_CANDIDATES);
    uint32_t touched[SEALED_DEGREE], touched_count;
    bool ready = packer_init(&packer, b->padded);
    enum omen_err rc = ready && scratch != NULL && packed != NULL ? OMEN_OK : OMEN_ENOMEM;
    for (uint32_t node = b->n; rc == OMEN_OK && node < b->total; node++) {
        struct index_hit hits[BUILD_CANDIDATES];
        struct index_cost cost = { 0 };
        struct index_search search = { .query = build_row(b->s, b->order[node]) };
        uint32_t found[BUILD_CANDIDATES], count = 0;
        rc = sealed_walk(b->s, &search, (struct sealed_pace){ INSERT_EFFORT, INFINITY, 0 }, BUILD_CANDIDATES,
                scratch, hits, &count, &cost);
        for (uint32_t i = 0; i < count; i++) found[i] = hits[i].slot;
        if (rc != OMEN_OK) break;
        touched_count = 0;
        build_link(b, node, found, count, packed, touched, &touched_count);
        pack_node(p, &packer, node); /* at once, so that later ones find it */
        for (uint32_t i = 0; i < touched_count; i++) pack_node(p, &packer, touched[i]);
    }
    index_scratch_free(&b->s->base, scratch);
    mem_free(packed);
    packer_fini(&packer);
    return rc;
}
enum omen_err build_pack(struct build *b, bool refined)
{
    struct packing p = { .b = b, .scale = F16_TARGET / (b->code_step * CODE_TILE_MAX) };
    struct sealed *s = b->s;
    p.rotated = sealed_pages_new((size_t)b->total * b->padded * sizeof(uint16_t), &p.mapped);
    s->graph = sealed_pages_new((size_t)b->total * s->layout.row_bytes, &s->graph_bytes);
    enum omen_err rc = p.rotated == NULL || s->graph == NULL ? OMEN_ENOMEM : OMEN_OK;
    if (rc == OMEN_OK) rc = parallel_for(b->control, "rotate", b->total, 1024, rotate_range, &p);
    if (rc == OMEN_OK && s->compact != NULL) rc = compact_encode(b);
    if (rc == OMEN_OK) rc = parallel_for(b->control, "pack", b->n, 1024, pack_range, &p);
    if (rc == OMEN_OK) rc = build_leaders(&p);
    if (rc == OMEN_OK && refined) rc = build_refine(b);
    if (rc == OMEN_OK && refined) rc = parallel_for(b->control, "pack again", b->n, 1024, pack_range, &p);
    if (rc == OMEN_OK && refined) rc = build_leaders(&p);
    if (rc == OMEN_OK && b->held_out > 0) rc = build_calibrate(b);
    if (rc == OMEN_OK && b->held_out > 0) rc = held_out_insert(&p);
    if (rc == OMEN_OK) rc = flat_build(&p);
    sealed_pages_free(p.rotated, p.mapped);
    return rc;
}
