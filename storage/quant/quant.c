/* Dispatch over quantizers, the one that keeps f32, and trained parameters as bytes. Threads: no state. */
#include "storage/quant/quant.h"

#include <math.h>
#include <string.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/crc32c.h"
#include "storage/kernel/code.h"
#include "storage/kernel/kernel.h"
#include "storage/quant/quant_impl.h"

#define SIXTEENTH 4 /* components of an 8-bit subvector: 16 bytes of f32 in one */

const char *quant_kind_name(enum quant_kind kind)
{
    static const char *const names[QUANT_KIND_COUNT] = { "none", "scalar", "product", "binary" };
    return (unsigned)kind < QUANT_KIND_COUNT ? names[kind] : "unknown";
}

bool quant_stopped(const struct quant_control *control, uint64_t done, uint64_t total)
{
    if (control == NULL) return false;
    if (control->progress != NULL) control->progress(control->arg, done, total);
    return control->stop != NULL && control->stop(control->arg);
}

void quant_turn(const struct quant *quant, const float *vector, bool keep_mean, float *out)
{
    memcpy(out, vector, quant->dim * sizeof(float));
    memset(out + quant->dim, 0, (quant->padded - quant->dim) * sizeof(float));
    if (quant->mean != NULL && !keep_mean)
        for (uint32_t i = 0; i < quant->dim; i++) out[i] -= quant->mean[i];
    if (quant->rotation != NULL) rotation_apply(quant->rotation, out);
}

/* ---- none ---- */

#define F16_LARGEST 65504.0f

/* Beyond the largest f16 rows keep their direction; infinite distances would lose them. */
static float f16_clamped(float value) { return fminf(fmaxf(value, -F16_LARGEST), F16_LARGEST); }

static enum omen_err none_train(struct quant *quant, const float *rows, size_t stride, uint32_t count,
        const struct quant_control *control)
{
    (void)control;
    if (quant->params.bits == 32) return OMEN_OK;
    /* |q - x + e|^2 for a rounding error e in no particular direction: 2 |q - x| |e| / sqrt(dim) */
    double squares = 0;
    for (uint32_t row = 0; row < count; row++) {
        for (uint32_t i = 0; i < quant->dim; i++) {
            double e = (double)rows[row * stride + i] -
                    (double)code_f32_of_f16(code_f16_of_f32(f16_clamped(rows[row * stride + i])));
            squares += e * e;
        }
    }
    if (count > 0) quant->spread = (float)(2 * sqrt(squares / count / quant->dim));
    return OMEN_OK;
}

static void none_encode(const struct quant *quant, const float *vector, uint8_t *code_out)
{
    if (quant->params.bits == 32) {
        memcpy(code_out, vector, quant->dim * sizeof(float));
        return;
    }
    for (uint32_t i = 0; i < quant->padded; i++)
        store_u16(code_out + 2 * (size_t)i, i < quant->dim ? code_f16_of_f32(f16_clamped(vector[i])) : 0);
}

static bool none_query_init(const struct quant *quant, struct quant_query *query)
{
    (void)quant, (void)query;
    return true;
}

static void none_prepare(const struct quant *quant, const float *vector, struct quant_query *query)
{
    memcpy(query->memory, vector, quant->dim * sizeof(float));
    memset(query->memory + quant->dim, 0, (quant->padded - quant->dim) * sizeof(float));
    query->exact = query->memory;
    query->length = sqrtf(kernel_get()->dot_f32(query->memory, query->memory, quant->padded));
}

/* Rows of f16, which lie at odd addresses where codes have no alignment. */
static void half_estimate(const struct quant *quant, const struct quant_query *query, const uint8_t *codes,
        size_t stride, const uint32_t *ids, uint32_t count, float *estimates_out)
{
    const struct code_kernel *kernel = code_kernel_get();
    uint16_t row[QUANT_DIM_MAX];
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *code = codes + stride * (ids == NULL ? i : ids[i]);
        const uint16_t *at = (const uint16_t *)(const void *)code;
        if ((uintptr_t)code % sizeof *at != 0) at = memcpy(row, code, quant->code_bytes);
        estimates_out[i] = query->metric == METRIC_L2 ? kernel->l2sq_f32_f16(query->exact, at, quant->padded)
                                                      : -kernel->dot_f32_f16(query->exact, at, quant->padded);
    }
}

static void none_estimate(const struct quant *quant, const struct quant_query *query, const uint8_t *codes,
        size_t stride, const uint32_t *ids, uint32_t count, float *estimates_out)
{
    if (quant->params.bits == 16) {
        half_estimate(quant, query, codes, stride, ids, count, estimates_out);
        return;
    }
    const struct kernel *kernel = kernel_get();
    float row[QUANT_DIM_MAX] __attribute__((aligned(64)));
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *code = codes + stride * (ids == NULL ? i : ids[i]);
        const float *at = (const float *)(const void *)code;
        if ((uintptr_t)code % sizeof(float) != 0) at = memcpy(row, code, quant->dim * sizeof(float));
        estimates_out[i] = query->metric == METRIC_L2 ? kernel->l2sq_f32(query->exact, at, quant->dim)
                                                      : -kernel->dot_f32(query->exact, at, quant->dim);
    }
}

static const struct quant_ops quant_none_ops = {
    .kind = QUANT_NONE,
    .train = none_train,
    .encode = none_encode,
    .query_init = none_query_init,
    .prepare = none_prepare,
    .estimate = none_estimate,
};

static const struct quant_ops *const kinds[QUANT_KIND_COUNT] = {
    [QUANT_NONE] = &quant_none_ops,
    [QUANT_SCALAR] = &quant_scalar_ops,
    [QUANT_PRODUCT] = &quant_product_ops,
    [QUANT_BINARY] = &quant_binary_ops,
};

/* ---- parameters ---- */

/* Defaults filled in; false when they cannot be. */
static bool params_complete(struct quant_params *params, uint32_t dim)
{
    static const uint32_t bits_default[QUANT_KIND_COUNT] = { 32, 8, 8, 1 };
    if ((unsigned)params->kind >= QUANT_KIND_COUNT || dim == 0 || dim > QUANT_DIM_MAX) return false;
    if (params->rotated && dim % CODE_DIM_ALIGN != 0) return false;
    if (params->bits == 0) params->bits = bits_default[params->kind];
    uint32_t bits = params->bits;
    if (params->kind != QUANT_PRODUCT && params->subvectors != 0) return false;
    switch (params->kind) {
    case QUANT_NONE: return bits == 32 || bits == 16;
    case QUANT_SCALAR: return bits == 8 || bits == 6 || bits == 4;
    case QUANT_BINARY: return bits == 8 || bits == 6 || bits == 4 || bits == 2 || bits == 1;
    default: break;
    }
    if (bits != 8 && bits != 4) return false;
    uint32_t per = bits == 8 ? SIXTEENTH : SIXTEENTH / 2;
    if (params->subvectors == 0) params->subvectors = (dim + per - 1) / per;
    return params->subvectors <= dim;
}

static size_t code_bytes(const struct quant_params *params, uint32_t dim)
{
    uint32_t padded = (dim + CODE_DIM_ALIGN - 1) / CODE_DIM_ALIGN * CODE_DIM_ALIGN;
    switch (params->kind) {
    case QUANT_NONE: return params->bits == 32 ? dim * sizeof(float) : padded * sizeof(uint16_t);
    case QUANT_SCALAR: return packed_bytes(padded, params->bits);
    case QUANT_BINARY: return packed_bytes(padded, params->bits) + PACKED_FACTORS_BYTES;
    default: return ((size_t)params->subvectors * params->bits + 7) / 8;
    }
}

size_t quant_params_code_bytes(const struct quant_params *params, uint32_t dim)
{
    struct quant_params complete = *params;
    return params_complete(&complete, dim) ? code_bytes(&complete, dim) : 0;
}

/* Floats of the codebooks: a book per subvector, every entry as long as the longest subvector. */
static size_t books_floats(const struct quant_params *params, uint32_t dim)
{
    if (params->kind != QUANT_PRODUCT) return 0;
    size_t longest = (dim + params->subvectors - 1) / params->subvectors;
    return ((size_t)params->subvectors << params->bits) * longest;
}

static struct quant *quant_new(const struct quant_params *params, uint32_t dim)
{
    struct quant *quant = mem_calloc(1, sizeof *quant);
    if (quant == NULL) return NULL;
    quant->ops = kinds[params->kind];
    quant->params = *params;
    quant->dim = dim;
    quant->padded = (dim + CODE_DIM_ALIGN - 1) / CODE_DIM_ALIGN * CODE_DIM_ALIGN;
    quant->code_bytes = code_bytes(params, dim);
    bool coded = params->kind == QUANT_SCALAR || params->kind == QUANT_BINARY, fine = true;
    if (coded && !params->rotated) {
        quant->mean = mem_alloc_aligned(64, quant->padded * sizeof(float));
        quant->rotation = mem_alloc(sizeof *quant->rotation);
        fine = quant->mean != NULL && quant->rotation != NULL;
        if (fine) {
            memset(quant->mean, 0, quant->padded * sizeof(float));
            rotation_init(quant->rotation, dim, params->seed);
        }
    }
    if (params->kind == QUANT_PRODUCT) {
        quant->books = mem_calloc(books_floats(params, dim), sizeof(float));
        fine = quant->books != NULL;
    }
    if (fine) return quant;
    quant_free(quant);
    return NULL;
}

void quant_free(struct quant *quant)
{
    if (quant == NULL) return;
    mem_free(quant->mean);
    mem_free(quant->rotation);
    mem_free(quant->books);
    mem_free(quant);
}

static void mean_measure(struct quant *quant, const float *rows, size_t stride, uint32_t count)
{
    double sums[QUANT_DIM_MAX] = { 0 };
    for (uint32_t row = 0; row < count; row++)
        for (uint32_t i = 0; i < quant->dim; i++) sums[i] += rows[row * stride + i];
    for (uint32_t i = 0; i < quant->dim; i++) quant->mean[i] = count == 0 ? 0 : (float)(sums[i] / count);
}

enum omen_err quant_train(const struct quant_params *params, const float *rows, size_t stride, uint32_t count,
        uint32_t dim, const struct quant_control *control, struct quant **quant_out, struct err *err)
{
    struct quant_params complete = *params;
    *quant_out = NULL;
    if (!params_complete(&complete, dim))
        return err_set(err, OMEN_EINVAL, "quant", "no %s quantizer of %u bits for %u dimensions",
                quant_kind_name(params->kind), params->bits, dim);
    CHECK(stride >= dim);
    uint32_t every = (count + QUANT_TRAIN_ROWS_MAX - 1) / QUANT_TRAIN_ROWS_MAX;
    if (every > 1) {
        count /= every;
        stride *= every;
    }
    struct quant *quant = quant_new(&complete, dim);
    if (quant == NULL) return err_set(err, OMEN_ENOMEM, NULL, "no memory for a quantizer");
    if (quant->mean != NULL) mean_measure(quant, rows, stride, count);
    enum omen_err rc = quant->ops->train(quant, rows, stride, count, control);
    if (rc != OMEN_OK) {
        quant_free(quant);
        return err_set(err, rc, NULL,
                rc == OMEN_ECANCELED ? "training was cancelled" : "no memory to train a quantizer");
    }
    *quant_out = quant;
    return OMEN_OK;
}

enum quant_kind quant_kind(const struct quant *quant) { return quant->params.kind; }
uint32_t quant_bits(const struct quant *quant) { return quant->params.bits; }
uint32_t quant_dim(const struct quant *quant) { return quant->dim; }
size_t quant_code_bytes(const struct quant *quant) { return quant->code_bytes; }

uint64_t quant_memory_bytes(const struct quant *quant, uint64_t count)
{
    uint64_t trained = sizeof *quant + books_floats(&quant->params, quant->dim) * sizeof(float);
    if (quant->mean != NULL) trained += quant->padded * sizeof(float) + sizeof *quant->rotation;
    return count * quant->code_bytes + trained;
}

void quant_encode(const struct quant *quant, const float *vector, uint8_t *code_out)
{
    quant->ops->encode(quant, vector, code_out);
}

/* ---- queries ---- */

struct quant_query *quant_query_new(const struct quant *quant)
{
    struct quant_query *query = mem_calloc(1, sizeof *query);
    if (query == NULL) return NULL;
    query->memory = mem_alloc_aligned(64, quant->padded * sizeof(float));
    if (query->memory != NULL && quant->ops->query_init(quant, query)) return query;
    quant_query_free(query);
    return NULL;
}

void quant_query_free(struct quant_query *query)
{
    if (query == NULL) return;
    mem_free(query->memory);
    mem_free(query->levels);
    mem_free(query->table);
    mem_free(query);
}

void quant_prepare(const struct quant *quant, enum metric metric, const float *vector,
        struct quant_query *query)
{
    query->metric = metric;
    quant->ops->prepare(quant, vector, query);
}

void quant_estimate(const struct quant *quant, const struct quant_query *query, const uint8_t *codes,
        size_t stride, const uint32_t *ids, uint32_t count, float *estimates_out)
{
    quant->ops->estimate(quant, query, codes, stride, ids, count, estimates_out);
}

float quant_error(const struct quant *quant, const struct quant_query *query, float estimate)
{
    bool l2 = query->metric == METRIC_L2;
    float half = l2 ? 1 : 0.5f; /* |q - x|^2 holds the product twice */
    switch (quant->params.kind) {
    case QUANT_BINARY: return half * quant->spread * quant->radius * query->length;
    default: return half * quant->spread * (l2 ? sqrtf(estimate) : query->length);
    }
}

/* ---- trained parameters as bytes ---- */

#define SAVED_VERSION 1
#define SAVED_HEADER 64

void quant_save(const struct quant *quant, struct buf *out)
{
    uint8_t header[SAVED_HEADER] = { 'O', 'M', 'Q', 'T' };
    const struct quant_params *p = &quant->params;
    size_t start = out->len, mean = quant->mean == NULL ? 0 : quant->padded;
    store_u16(header + 4, SAVED_VERSION);
    store_u16(header + 6, (uint16_t)p->kind);
    store_u32(header + 8, quant->dim);
    store_u32(header + 12, p->bits);
    store_u32(header + 16, p->subvectors);
    store_u32(header + 20, p->rotated ? 1 : 0);
    store_u64(header + 24, p->seed);
    memcpy(header + 32, &quant->step, 4);
    memcpy(header + 36, &quant->spread, 4);
    memcpy(header + 40, &quant->radius, 4);
    buf_append(out, header, sizeof header);
    buf_append(out, quant->mean, mean * sizeof(float));
    buf_append(out, quant->books, books_floats(p, quant->dim) * sizeof(float));
    if (out->failed) return;
    uint8_t crc[4];
    store_u32(crc, crc32c(0, out->data + start, out->len - start));
    buf_append(out, crc, sizeof crc);
}

static bool floats_load(float *out, const uint8_t **at, size_t count)
{
    for (size_t i = 0; i < count; i++, *at += sizeof(float)) {
        memcpy(out + i, *at, sizeof(float));
        if (!isfinite(out[i])) return false;
    }
    return true;
}

enum omen_err quant_load(const uint8_t *bytes, size_t len, struct quant **quant_out, struct err *err)
{
    *quant_out = NULL;
    if (len < SAVED_HEADER + 4 || memcmp(bytes, "OMQT", 4) != 0)
        return err_set(err, OMEN_ECORRUPT, NULL, "no trained quantizer");
    if (crc32c(0, bytes, len - 4) != load_u32(bytes + len - 4))
        return err_set(err, OMEN_ECORRUPT, NULL, "wrong checksum of a trained quantizer");
    if (load_u16(bytes + 4) != SAVED_VERSION)
        return err_set(err, OMEN_EVERSION, NULL, "quantizer version %u, this build reads %d",
                load_u16(bytes + 4), SAVED_VERSION);
    struct quant_params params = { .kind = (enum quant_kind)load_u16(bytes + 6),
        .bits = load_u32(bytes + 12),
        .subvectors = load_u32(bytes + 16),
        .rotated = load_u32(bytes + 20) == 1,
        .seed = load_u64(bytes + 24) };
    uint32_t dim = load_u32(bytes + 8), flags = load_u32(bytes + 20);
    bool whole = params.bits != 0 && (params.kind != QUANT_PRODUCT || params.subvectors != 0) && flags <= 1;
    for (uint32_t i = 44; i < SAVED_HEADER; i++) whole = whole && bytes[i] == 0;
    if (!whole || !params_complete(&params, dim))
        return err_set(err, OMEN_ECORRUPT, NULL, "impossible parameters of a quantizer");
    struct quant *quant = quant_new(&params, dim);
    if (quant == NULL) return err_set(err, OMEN_ENOMEM, NULL, "no memory for a quantizer");
    size_t mean = quant->mean == NULL ? 0 : quant->padded, books = books_floats(&params, dim);
    const uint8_t *at = bytes + 32;
    bool fine = len == SAVED_HEADER + 4 + (mean + books) * sizeof(float) &&
            floats_load(&quant->step, &at, 1) && floats_load(&quant->spread, &at, 1) &&
            floats_load(&quant->radius, &at, 1);
    at = bytes + SAVED_HEADER;
    fine = fine && floats_load(quant->mean, &at, mean) && floats_load(quant->books, &at, books);
    if (fine && quant->step >= 0 && quant->spread >= 0 && quant->radius >= 0 &&
            (params.kind != QUANT_SCALAR || quant->step > 0)) {
        *quant_out = quant;
        return OMEN_OK;
    }
    quant_free(quant);
    return err_set(err, OMEN_ECORRUPT, NULL, "impossible content of a trained quantizer");
}
