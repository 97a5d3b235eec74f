/* Builds a sealed graph: codes, order, near neighbours by partition and multiplication, pruned links, packed
 * rows, leaders.
 *
 * Memory beside rows and finished graph: build_bytes(). Threads: control->threads; see parallel.h.
 * Determinism: not between thread counts (sealed_prune.c). */
#include <math.h>
#include <string.h>

#include "common/check.h"
#include "common/mem.h"
#include "storage/index/compact_build.h"
#include "storage/kernel/kernel.h"

#define SAMPLE_ROWS 4096 /* for mean and code step */
#define F16_MAX 65000.0f
#define F16_TARGET                                                                                           \
    1024.0f /* rotated components are scaled to at most this: no overflow, full precision for small ones */

/* ---- the space: mean, step, losslessness ---- */

static bool row_is_bytes(const float *row, uint32_t dim)
{
    for (uint32_t i = 0; i < dim; i++)
        if (!(row[i] >= 0 && row[i] <= 255 && row[i] == (float)(int)row[i])) return false;
    return true;
}

static const float *slot_row(const struct sealed *s, uint32_t slot)
{
    return s->rows.data + (size_t)slot * s->rows.stride_floats;
}

#define REDUCE_SAMPLE 3072 /* rows that the components are trained on */
#define REDUCE_SAMPLE_FLOATS (12u << 20)
#define REDUCE_SHARE 0.92f      /* of the squared length: more components when fewer keep less */
#define REDUCE_SHARE_LEAST 0.5f /* rows that spread evenly in all directions stay as they are */

/* Fewest components, of two numbers that fill whole blocks of codes, that keep enough. */
static enum omen_err space_reduce(struct sealed *s, const struct index_control *control)
{
    static const uint32_t kept[] = { 127, SEALED_REDUCED_MAX };
    uint32_t dim = s->rows.dim,
             n = REDUCE_SAMPLE_FLOATS / dim < REDUCE_SAMPLE ? REDUCE_SAMPLE_FLOATS / dim : REDUCE_SAMPLE;
    if (n > s->count) n = s->count;
    if (dim < SEALED_REDUCE_DIM || n < 2 * SEALED_REDUCED_MAX) return OMEN_OK;
    float *sample = mem_alloc_aligned(64, (size_t)n * dim * sizeof(float));
    enum omen_err rc = sample == NULL ? OMEN_ENOMEM : OMEN_OK;
    for (size_t i = 0; rc == OMEN_OK && i < sizeof kept / sizeof kept[0]; i++) {
        for (uint32_t row = 0; row < n; row++)
            memcpy(sample + (size_t)row * dim, slot_row(s, (uint32_t)((uint64_t)row * s->count / n)),
                    dim * sizeof(float));
        pca_free(&s->pca);
        if (control->progress != NULL)
            control->progress(control->arg, "reduce", i, sizeof kept / sizeof kept[0]);
        rc = pca_train(sample, n, dim, kept[i], s->rows.metric != METRIC_IP, s->seed, control->stop,
                control->arg, &s->pca);
        if (rc == OMEN_OK && s->pca.share >= REDUCE_SHARE) break;
    }
    if (rc == OMEN_OK && s->pca.share < REDUCE_SHARE_LEAST) pca_free(&s->pca);
    mem_free(sample);
    if (rc == OMEN_OK) sealed_dim_set(s, s->pca.kept);
    return rc;
}

static void space_measure(struct sealed *s)
{
    s->lossless = s->rows.metric == METRIC_L2 && s->pca.kept == 0;
    s->norm_max = 0;
    for (uint32_t slot = 0; slot < s->count; slot++) {
        if (s->lossless && !row_is_bytes(slot_row(s, slot), s->rows.dim)) s->lossless = false;
        if (s->rows.metric == METRIC_IP)
            s->norm_max = fmaxf(s->norm_max,
                    kernel_get()->dot_f32(slot_row(s, slot), slot_row(s, slot), s->rows.dim));
    }
    uint32_t samples = s->count < SAMPLE_ROWS ? s->count : SAMPLE_ROWS;
    double sums[CODE_DIM_MAX] = { 0 };
    float v[CODE_DIM_MAX] __attribute__((aligned(64)));
    for (uint32_t i = 0; i < samples; i++) {
        sealed_internal(s, slot_row(s, (uint32_t)((uint64_t)i * s->count / samples)), true, v);
        for (uint32_t j = 0; j < s->dim; j++) sums[j] += v[j];
    }
    for (uint32_t j = 0; j < s->dim; j++) s->mean[j] = samples == 0 ? 0 : (float)(sums[j] / samples);
}

static void step_measure(struct build *b)
{
    float v[CODE_DIM_MAX] __attribute__((aligned(64))), largest = 0;
    uint32_t samples = b->n < SAMPLE_ROWS ? b->n : SAMPLE_ROWS;
    for (uint32_t i = 0; i < samples; i++) {
        sealed_internal(b->s, slot_row(b->s, (uint32_t)((uint64_t)i * b->n / samples)), true, v);
        sealed_rotate(b->s, v);
        for (uint32_t j = 0; j < b->padded; j++) largest = fmaxf(largest, fabsf(v[j]));
    }
    b->code_step = largest > 0 ? largest / CODE_TILE_MAX : 1;
    if (!(b->code_step >= 0x1p-126f)) b->code_step = 0x1p-126f;
}

static bool codes_range(void *arg, uint32_t thread, uint32_t first, uint32_t end)
{
    struct build *b = arg;
    float v[CODE_DIM_MAX] __attribute__((aligned(64))), inverse = 1 / b->code_step;
    (void)thread;
    for (uint32_t node = first; node < end; node++) {
        int8_t *code = b->codes + (size_t)node * b->padded;
        int32_t norm = 0, sum = 0;
        sealed_internal(b->s, slot_row(b->s, b->order[node]), true, v);
        sealed_rotate(b->s, v);
        for (uint32_t j = 0; j < b->padded; j++) {
            float scaled = v[j] * inverse;
            int32_t c = (int32_t)(scaled + (scaled >= 0 ? 0.5f : -0.5f));
            c = scaled > CODE_TILE_MAX ? CODE_TILE_MAX : scaled < -CODE_TILE_MAX ? -CODE_TILE_MAX : c;
            code[j] = (int8_t)c;
            norm += c * c;
            sum += c;
        }
        b->norms[node] = norm;
        b->sums[node] = sum;
    }
    return true;
}

/* Nodes in an order of place: all that is known of them moves. The held-out ones stay at the end. */
static enum omen_err nodes_reorder(struct build *b)
{
    size_t mapped, total = b->total;
    uint32_t *from = mem_alloc(total * sizeof *from), *order = mem_alloc(total * sizeof *order);
    int32_t *norms = mem_alloc(total * sizeof *norms), *sums = mem_alloc(total * sizeof *sums);
    int8_t *codes = sealed_pages_new(total * b->padded, &mapped);
    enum omen_err rc = OMEN_ENOMEM;
    if (from != NULL && order != NULL && norms != NULL && sums != NULL && codes != NULL)
        rc = build_order(b, from);
    if (rc != OMEN_OK) {
        mem_free(order);
        mem_free(norms);
        mem_free(sums);
        sealed_pages_free(codes, mapped);
        mem_free(from);
        return rc;
    }
    for (uint32_t node = 0; node < b->total; node++) {
        uint32_t old = node < b->n ? from[node] : node;
        memcpy(codes + (size_t)node * b->padded, build_code(b, old), b->padded);
        order[node] = b->order[old];
        norms[node] = b->norms[old];
        sums[node] = b->sums[old];
    }
    sealed_pages_free(b->codes, b->codes_mapped);
    mem_free(b->norms);
    mem_free(b->sums);
    mem_free(b->order);
    mem_free(from);
    b->order = order;
    b->codes = codes;
    b->codes_mapped = mapped;
    b->norms = norms;
    b->sums = sums;
    return OMEN_OK;
}

/* Held-out slots lie evenly among all and go to the end. */
static void order_init(struct build *b)
{
    uint32_t linked = 0, held = b->n, next = 0;
    for (uint32_t slot = 0; slot < b->total; slot++) {
        uint32_t at = (uint32_t)((uint64_t)next * b->total / (b->held_out + 1)) +
                b->total / (b->held_out + 1) / 2;
        if (next < b->held_out && slot == at) {
            b->order[held++] = slot;
            next++;
        } else
            b->order[linked++] = slot;
    }
    CHECK(linked == b->n && held == b->total);
}

/* ---- packing ---- */

static bool rotate_range(void *arg, uint32_t thread, uint32_t first, uint32_t end)
{
    struct packing *p = arg;
    struct build *b = p->b;
    float v[CODE_DIM_MAX] __attribute__((aligned(64)));
    (void)thread;
    for (uint32_t node = first; node < end; node++) {
        sealed_internal(b->s, slot_row(b->s, b->order[node]), true, v);
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
    sealed_internal(s, slot_row(s, b->order[node]), true, packer->internal);
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
    uint8_t *packed = mem_alloc_aligned(64, (size_t)b->padded * CODE_TILE_ROWS);
    uint32_t touched[SEALED_DEGREE], touched_count;
    bool ready = packer_init(&packer, b->padded);
    enum omen_err rc = ready && scratch != NULL && packed != NULL ? OMEN_OK : OMEN_ENOMEM;
    for (uint32_t node = b->n; rc == OMEN_OK && node < b->total; node++) {
        struct index_hit hits[BUILD_CANDIDATES];
        struct index_cost cost = { 0 };
        struct index_search search = { .query = slot_row(b->s, b->order[node]) };
        uint32_t found[BUILD_CANDIDATES], count = 0;
        rc = sealed_walk(b->s, &search, (struct sealed_pace){ INSERT_EFFORT, INFINITY }, BUILD_CANDIDATES,
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

static enum omen_err pack(struct build *b)
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
    if (rc == OMEN_OK) rc = build_refine(b);
    if (rc == OMEN_OK) rc = parallel_for(b->control, "pack again", b->n, 1024, pack_range, &p);
    if (rc == OMEN_OK) rc = build_leaders(&p);
    if (rc == OMEN_OK && b->held_out > 0) rc = build_calibrate(b);
    if (rc == OMEN_OK && b->held_out > 0) rc = held_out_insert(&p);
    if (rc == OMEN_OK) rc = flat_build(&p);
    sealed_pages_free(p.rotated, p.mapped);
    return rc;
}

/* ---- the whole ---- */

static void build_fini(struct build *b)
{
    mem_free(b->order);
    sealed_pages_free(b->codes, b->codes_mapped);
    mem_free(b->norms);
    mem_free(b->sums);
    sealed_pages_free(b->lists, b->lists_mapped);
    mem_free(b->links);
    mem_free(b->degrees);
    mem_free(b->strict);
    mem_free(b->reverse);
    mem_free(b->reverse_counts);
    mem_free(b->locks);
}

static bool build_init(struct build *b)
{
    size_t n = b->total;
    b->order = mem_alloc(n * sizeof *b->order);
    b->codes = sealed_pages_new(n * b->padded, &b->codes_mapped);
    b->norms = mem_alloc(n * sizeof *b->norms);
    b->sums = mem_alloc(n * sizeof *b->sums);
    b->lists = sealed_pages_new(n * BUILD_LIST * sizeof *b->lists, &b->lists_mapped);
    b->links = mem_alloc(n * SEALED_DEGREE * sizeof *b->links);
    b->degrees = mem_calloc(n, 1);
    b->strict = mem_calloc(n, 1);
    b->reverse = mem_alloc(n * BUILD_REVERSE * sizeof *b->reverse);
    b->reverse_counts = mem_calloc(n, 1);
    b->locks = mem_calloc(BUILD_LOCKS, sizeof *b->locks);
    return b->order != NULL && b->codes != NULL && b->norms != NULL && b->sums != NULL && b->lists != NULL &&
            b->links != NULL && b->degrees != NULL && b->strict != NULL && b->reverse != NULL &&
            b->reverse_counts != NULL && b->locks != NULL;
}

static enum omen_err build_run(struct build *b)
{
    step_measure(b);
    order_init(b);
    enum omen_err rc = parallel_for(b->control, "encode", b->total, 1024, codes_range, b);
    if (rc == OMEN_OK) rc = nodes_reorder(b);
    if (rc == OMEN_OK) rc = build_multiply(b);
    if (rc == OMEN_OK) rc = build_prune(b);
    if (rc != OMEN_OK) return rc;
    sealed_pages_free(b->lists, b->lists_mapped);
    b->lists = NULL;
    return pack(b);
}

#define HELD_OUT 1000 /* rows kept back for calibration */
#define HELD_OUT_SHARE                                                                                       \
    40 /* at most every 40th: a segment of many inserted rows is not the one that was calibrated */
#define HELD_OUT_ROWS 2000 /* smaller segments are not calibrated: too few queries to say anything */

static uint32_t held_out_count(const struct index_params *params, uint32_t count)
{
    if (count < HELD_OUT_ROWS || params->held_out == UINT32_MAX) return 0;
    uint32_t held_out = params->held_out == 0 ? HELD_OUT : params->held_out;
    return held_out > count / HELD_OUT_SHARE ? count / HELD_OUT_SHARE : held_out;
}

/* Bytes beside rows and the finished graph at the worst moment: the lists and the rotated rows take turns. */
static uint64_t build_bytes(uint32_t count, uint32_t padded)
{
    uint64_t lists = BUILD_LIST * sizeof(struct build_near), rotated = (uint64_t)padded * 2;
    uint64_t rest = padded + SEALED_DEGREE * 4 + BUILD_REVERSE * 4 +
            15; /* order, norms, sums, three counters */
    return count * (rest + (lists > rotated ? lists : rotated));
}

/* The layout that the parameters ask for, once D is known. */
static enum omen_err layout_choose(struct sealed *s, const struct index_params *params, struct err *err)
{
    if (!compact_wanted(params, s->padded)) {
        if (params->quant != INDEX_QUANT_NONE && params->quant != INDEX_QUANT_PRODUCT) return OMEN_OK;
        return err_set(err, OMEN_EINVAL, "quant", "the fast layout holds binary codes and 8-bit rows, not %s",
                index_quant_name(params->quant));
    }
    enum omen_err rc = compact_check(params, s->padded, err);
    if (rc != OMEN_OK) return rc;
    s->compact = compact_new();
    if (s->compact == NULL) return OMEN_ENOMEM;
    sealed_dim_set(s, s->pca.kept);
    return OMEN_OK;
}

enum omen_err index_sealed_build(const struct index_rows *rows, const struct index_params *params,
        const struct index_control *control, struct index **index_out, struct err *err)
{
    struct sealed *s = sealed_new(rows);
    if (s == NULL) return err_set(err, OMEN_ENOMEM, NULL, "no memory for an index");
    s->recall_target = params->recall_target > 0 ? params->recall_target : 0.95f;
    s->seed = params->seed;
    enum omen_err rc = space_reduce(s, control);
    if (rc == OMEN_OK) {
        rc = layout_choose(s, params, err);
        if (rc == OMEN_EINVAL) {
            sealed_free(&s->base);
            return rc;
        }
    }
    uint64_t wanted = build_bytes(s->count, s->padded);
    if (rc == OMEN_OK && control->memory_bytes_max != 0 && wanted > control->memory_bytes_max) {
        sealed_free(&s->base);
        return err_set(err, OMEN_ENOMEM, "memory_bytes_max", "the build takes %llu bytes",
                (unsigned long long)wanted);
    }
    rotation_init(&s->rotation, s->dim, s->seed);
    s->mean = mem_calloc(s->padded, sizeof(float));
    if (rc == OMEN_OK && s->mean == NULL) rc = OMEN_ENOMEM;
    if (rc == OMEN_OK && s->count > 0) {
        space_measure(s);
        if (s->compact != NULL) s->lossless = false;
        uint32_t held_out = held_out_count(params, s->count);
        struct build b = { .s = s,
            .params = params,
            .control = control,
            .n = s->count - held_out,
            .total = s->count,
            .held_out = held_out,
            .padded = s->padded,
            .threads = parallel_threads(control),
            /* A row of the fast layout estimates all places anyway. */
            .fill_to = s->compact == NULL || s->dim <= COMPACT_FULL_DIM ? SEALED_DEGREE
                                                                        : COMPACT_DEGREE_LEAST };
        rc = build_init(&b) ? build_run(&b) : OMEN_ENOMEM;
        build_fini(&b);
    }
    if (rc != OMEN_OK) {
        sealed_free(&s->base);
        return err_set(err, rc, NULL,
                rc == OMEN_ECANCELED ? "the build was cancelled" : "no memory to build the index");
    }
    *index_out = &s->base;
    return OMEN_OK;
}
