/* Building the compact layout: which quantizer, how many bits, all codes; rows from links.
 *
 * The graph is built as for the fast layout, but places that pruning leaves empty stay so: a neighbour costs a
 * code to read. Bits come from what codes deliver on a sample (quant_fidelity) within the budget: the shortest
 * whose nearest few hold the true neighbours of held-out rows. Below 4 bits only a budget leads: at 128-d a
 * 4-bit code is one cache line already.
 * Threads: codes in parallel. Determinism: follows from rows and seed. */
#include "storage/index/compact_build.h"

#include <string.h>

#include "common/mem.h"

#define SAMPLE_ROWS 8192u /* that codes are trained and compared on */
#define SAMPLE_QUERIES 128u
#define SAMPLE_K 10
#define LOSS_SHARE 4 /* a quarter of what the target leaves may be lost by codes */

/* Shorter ones first. */
static const struct candidate {
    enum index_quant quant;
    enum quant_kind kind;
    uint32_t bits;
    bool last_resort; /* only when a budget allows nothing else, or when asked for by name */
} candidates[] = {
    { INDEX_QUANT_BINARY, QUANT_BINARY, 1, true },
    { INDEX_QUANT_PRODUCT, QUANT_PRODUCT, 8, true },
    { INDEX_QUANT_BINARY, QUANT_BINARY, 2, true },
    { INDEX_QUANT_SCALAR, QUANT_SCALAR, 4, false },
    { INDEX_QUANT_BINARY, QUANT_BINARY, 4, false },
    { INDEX_QUANT_SCALAR, QUANT_SCALAR, 6, false },
    { INDEX_QUANT_BINARY, QUANT_BINARY, 6, false },
    { INDEX_QUANT_SCALAR, QUANT_SCALAR, 8, false },
    { INDEX_QUANT_BINARY, QUANT_BINARY, 8, false },
    { INDEX_QUANT_NONE, QUANT_NONE, 16, false },
    { INDEX_QUANT_NONE, QUANT_NONE, 32, false },
};
#define CANDIDATES (sizeof candidates / sizeof candidates[0])

static struct quant_params quant_params_of(const struct candidate *candidate, uint64_t seed)
{
    bool coded = candidate->kind == QUANT_SCALAR || candidate->kind == QUANT_BINARY;
    return (struct quant_params){ .kind = candidate->kind,
        .bits = candidate->bits,
        .rotated = coded,
        .seed = seed };
}

/* Bytes of a vector in RAM: row, code, slot, its share of the flat 1-bit codes. */
static size_t bytes_per_vector(const struct candidate *candidate, uint32_t padded)
{
    struct quant_params params = quant_params_of(candidate, 0);
    size_t flat = rabitq_codes_bytes(padded) + CODE_GROUP * 4 + 2 * sizeof(float);
    return COMPACT_ROW_BYTES + sizeof(uint32_t) + (flat + CODE_GROUP - 1) / CODE_GROUP +
            compact_stride(quant_params_code_bytes(&params, padded));
}

static bool allowed(const struct candidate *candidate, const struct index_params *params, uint32_t padded)
{
    if (params->quant != INDEX_QUANT_AUTO && params->quant != candidate->quant) return false;
    if (params->bits != 0 && params->bits != candidate->bits) return false;
    return params->bytes_per_vector_max == 0 ||
            bytes_per_vector(candidate, padded) <= params->bytes_per_vector_max;
}

bool compact_wanted(const struct index_params *params, uint32_t padded)
{
    if (params->layout != INDEX_LAYOUT_AUTO) return params->layout == INDEX_LAYOUT_COMPACT;
    struct sealed_layout fast;
    sealed_layout_init(&fast, padded, false);
    size_t fast_bytes = fast.row_bytes + padded / 8 + 5; /* and flat codes */
    return params->quant == INDEX_QUANT_NONE || params->quant == INDEX_QUANT_SCALAR ||
            params->quant == INDEX_QUANT_PRODUCT || params->bits != 0 ||
            (params->bytes_per_vector_max != 0 && params->bytes_per_vector_max < fast_bytes);
}

enum omen_err compact_check(const struct index_params *params, uint32_t padded, struct err *err)
{
    struct index_params unlimited = *params;
    unlimited.bytes_per_vector_max = 0;
    size_t least = SIZE_MAX;
    for (size_t i = 0; i < CANDIDATES; i++) {
        if (allowed(&candidates[i], params, padded)) return OMEN_OK;
        size_t bytes = bytes_per_vector(&candidates[i], padded);
        if (allowed(&candidates[i], &unlimited, padded) && bytes < least) least = bytes;
    }
    if (least == SIZE_MAX)
        return err_set(err, OMEN_EINVAL, "bits", "no %s codes of %u bits", index_quant_name(params->quant),
                params->bits);
    return err_set(err, OMEN_EINVAL, "bytes_per_vector_max", "a vector takes at least %zu bytes, %u allowed",
            least, params->bytes_per_vector_max);
}

/* Rotated internal vectors of `count` nodes spread over first .. first + n - 1; [count][padded]. */
static float *sample(const struct build *b, uint32_t first, uint32_t n, uint32_t count)
{
    const struct sealed *s = b->s;
    float *rows = mem_alloc_aligned(64, ((size_t)count * s->padded + 16) * sizeof(float));
    for (uint32_t i = 0; rows != NULL && i < count; i++) {
        uint32_t slot = b->order[first + (uint32_t)((uint64_t)i * n / count)];
        float *row = rows + (size_t)i * s->padded;
        sealed_internal(s, s->rows.data + (size_t)slot * s->rows.stride_floats, true, row);
        sealed_rotate(s, row);
    }
    return rows;
}

struct trial {
    struct build *b;
    float *rows,
            *queries; /* of the sample, [count][padded]; queries lie outside it where rows were held out */
    uint32_t row_count, query_count;
};

/* Train one candidate; it stays when it is better than the one so far. *enough_out: no longer code is needed. */
static enum omen_err try_candidate(struct trial *t, const struct candidate *candidate, float *best,
        bool *enough_out)
{
    struct build *b = t->b;
    struct compact *c = b->s->compact;
    struct quant_params params = quant_params_of(candidate, b->params->seed);
    struct quant_control control = { .stop = b->control->stop, .arg = b->control->arg };
    struct quant *quant;
    float share = 0, needed = 1 - (1 - b->s->recall_target) / LOSS_SHARE;
    enum omen_err rc = quant_train(&params, t->rows, b->padded, t->row_count, b->padded, &control, &quant,
            NULL);
    if (rc != OMEN_OK) return rc;
    uint32_t want = sealed_want(b->s, SAMPLE_K, 0);
    rc = quant_fidelity(quant, t->rows, b->padded, t->row_count, t->queries, b->padded, t->query_count,
            SAMPLE_K, want, &share);
    if (rc != OMEN_OK || share <= *best) {
        quant_free(quant);
        return rc;
    }
    quant_free(c->quant);
    c->quant = quant;
    *best = share;
    *enough_out = share >= needed;
    return OMEN_OK;
}

static enum omen_err choose(struct build *b)
{
    struct trial t = { .b = b,
        .row_count = b->n < SAMPLE_ROWS ? b->n : SAMPLE_ROWS,
        .query_count = b->held_out > 0 ? b->held_out : b->n };
    if (t.query_count > SAMPLE_QUERIES) t.query_count = SAMPLE_QUERIES;
    t.rows = sample(b, 0, b->n, t.row_count);
    t.queries = sample(b, b->held_out > 0 ? b->n : 0, b->held_out > 0 ? b->held_out : b->n, t.query_count);
    enum omen_err rc = t.rows == NULL || t.queries == NULL ? OMEN_ENOMEM : OMEN_OK;
    float best = -1;
    bool enough = false, named = b->params->quant != INDEX_QUANT_AUTO || b->params->bits != 0;
    for (int resort = 0; resort < 2 && best < 0; resort++) {
        for (size_t i = 0; rc == OMEN_OK && !enough && i < CANDIDATES; i++) {
            if (candidates[i].last_resort && !named && resort == 0) continue;
            if (allowed(&candidates[i], b->params, b->padded))
                rc = try_candidate(&t, &candidates[i], &best, &enough);
        }
    }
    mem_free(t.rows);
    mem_free(t.queries);
    return rc;
}

static bool encode_range(void *arg, uint32_t thread, uint32_t first, uint32_t end)
{
    struct build *b = arg;
    struct sealed *s = b->s;
    struct compact *c = s->compact;
    float v[CODE_DIM_MAX] __attribute__((aligned(64)));
    (void)thread;
    for (uint32_t node = first; node < end; node++) {
        sealed_internal(s, s->rows.data + (size_t)b->order[node] * s->rows.stride_floats, true, v);
        sealed_rotate(s, v);
        quant_encode(c->quant, v, c->codes + (size_t)node * c->stride);
        c->slots[node] = b->order[node];
    }
    return true;
}

enum omen_err compact_encode(struct build *b)
{
    struct compact *c = b->s->compact;
    enum omen_err rc = choose(b);
    if (rc != OMEN_OK) return rc;
    c->stride = compact_stride(quant_code_bytes(c->quant));
    c->slots = mem_alloc((size_t)b->total * sizeof *c->slots);
    c->codes = sealed_pages_new((size_t)b->total * c->stride, &c->mapped);
    if (c->codes == NULL) c->mapped = 0;
    if (c->slots == NULL || c->codes == NULL) return OMEN_ENOMEM;
    return parallel_for(b->control, "encode codes", b->total, 1024, encode_range, b);
}

void compact_pack(struct build *b, uint32_t node)
{
    uint32_t *ids = (uint32_t *)(void *)sealed_row(b->s, node), degree = b->degrees[node];
    memcpy(ids, b->links + (size_t)node * SEALED_DEGREE, degree * sizeof *ids);
    for (uint32_t i = degree; i < SEALED_DEGREE; i++) ids[i] = node;
}
