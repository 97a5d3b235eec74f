/* The one interface over all quantizers: none, scalar, product, binary (RaBitQ, 1 bit and extended).
 *
 *   quant_train(&params, rows, ...)               once, from a sample
 *   quant_encode(quant, vector, code)             per vector
 *   quant_query_new(quant)                        once per searching thread
 *   quant_prepare(quant, metric, vector, query)   per query
 *   quant_estimate(quant, query, codes, ...)      codes that lie anywhere, many at a time
 *   quant_free(quant)
 *
 * An estimate is a squared l2 distance, or -dot for ip and cosine: smaller is nearer. Codes do not depend on
 * the metric. A code is quant_code_bytes() long and needs no alignment.
 * Threads: a trained quantizer is immutable; queries belong to one thread. Determinism: training follows from
 * sample and seed; codes and estimates are bit-equal on all ISAs. */
#ifndef OMEN_STORAGE_QUANT_QUANT_H
#define OMEN_STORAGE_QUANT_QUANT_H

#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "common/mem.h"
#include "common/query/point.h"

enum quant_kind { QUANT_NONE, QUANT_SCALAR, QUANT_PRODUCT, QUANT_BINARY, QUANT_KIND_COUNT };
const char *quant_kind_name(enum quant_kind kind); /* "none", "scalar", "product", "binary" */

#define QUANT_DIM_MAX 4160         /* CODE_DIM_MAX: OMEN_DIM_MAX and a component for ip, padded */
#define QUANT_TRAIN_ROWS_MAX 16384 /* of a longer sample every n-th is taken */

struct quant_params {
    enum quant_kind kind;
    /* none: 32 (default), 16 = f16. scalar: 8 (default), 6, 4. product: 8 (default), 4: per subvector. binary: 1
     * (default), 2, 4, 6, 8 per component. 0 = default. */
    uint32_t bits;
    uint32_t subvectors; /* product only: 0 = as many as make a sixteenth of f32 */
    bool rotated;        /* vectors come centred and randomly rotated (rotation.h), dim a multiple of 64 */
    uint64_t seed;       /* of rotation and codebooks */
};

/* What training asks of its caller; all fields may be zero. */
struct quant_control {
    bool (*stop)(void *arg); /* true = give up with OMEN_ECANCELED */
    void (*progress)(void *arg, uint64_t done, uint64_t total);
    void *arg;
};

struct quant;
struct quant_query;

/* Train on `count` rows of `dim` components, `stride` floats apart, finite; count 0 is allowed and gives a
 * quantizer that is right for nothing. Errors: OMEN_EINVAL (kind, bits, dim, subvectors), OMEN_ENOMEM,
 * OMEN_ECANCELED. Cost: none 0; scalar and binary one pass; product 12 passes per codebook. */
OMEN_CHECKED enum omen_err quant_train(const struct quant_params *params, const float *rows, size_t stride,
        uint32_t count, uint32_t dim, const struct quant_control *control, struct quant **quant_out,
        struct err *err);
void quant_free(struct quant *quant); /* NULL is fine */

enum quant_kind quant_kind(const struct quant *quant);
uint32_t quant_bits(const struct quant *quant);
uint32_t quant_dim(const struct quant *quant);
size_t quant_code_bytes(const struct quant *quant);
/* The same before training, for planning; 0 for parameters that quant_train would refuse. */
size_t quant_params_code_bytes(const struct quant_params *params, uint32_t dim);
/* All that must be in memory for `count` codes: codes and trained parameters. */
uint64_t quant_memory_bytes(const struct quant *quant, uint64_t count);

/* vector [dim], finite; code_out [quant_code_bytes]. Allocates: never. */
void quant_encode(const struct quant *quant, const float *vector, uint8_t *code_out);

struct quant_query *quant_query_new(const struct quant *quant); /* NULL: out of memory */
void quant_query_free(struct quant_query *query);               /* NULL is fine */
/* vector [dim], borrowed for the call. */
void quant_prepare(const struct quant *quant, enum metric metric, const float *vector,
        struct quant_query *query);
/* Estimates of `count` codes: the ids[i]-th of those that lie `stride` bytes apart, or the i-th when ids is
 * NULL. Squared distances are never below 0; nothing is NaN unless a code's bytes are damaged. */
void quant_estimate(const struct quant *quant, const struct quant_query *query, const uint8_t *codes,
        size_t stride, const uint32_t *ids, uint32_t count, float *estimates_out);
/* Standard error of an estimate as large as `estimate` for a vector like those of the sample; 0 for none. */
float quant_error(const struct quant *quant, const struct quant_query *query, float estimate);

/* Trained parameters as bytes (FORMAT.md, "Trained quantizer"), appended to `out`; look at out->failed. */
void quant_save(const struct quant *quant, struct buf *out);
/* Nothing in `bytes` is trusted: OMEN_ECORRUPT (err->message says what), OMEN_EVERSION, OMEN_ENOMEM. */
OMEN_CHECKED enum omen_err quant_load(const uint8_t *bytes, size_t len, struct quant **quant_out,
        struct err *err);

/* ---- choice ---- */

enum quant_profile { QUANT_BALANCED, QUANT_CONSERVATIVE, QUANT_AGGRESSIVE };
/* The kind to start from: >= 0.99 none, >= 0.95 scalar, >= 0.90 product, else binary; a profile moves it one
 * step. Bits come from calibration (quant_fidelity). */
enum quant_kind quant_choose(float recall_target, enum quant_profile profile);

/* Share of the true `k` nearest of `rows` that are among the `want` nearest by code, over `query_count`
 * queries: what a walk could reach at best with these codes. Rows and queries [dim] at their strides, l2; k <=
 * want <= QUANT_WANT_MAX. */
#define QUANT_WANT_MAX 512
OMEN_CHECKED enum omen_err quant_fidelity(const struct quant *quant, const float *rows, size_t stride,
        uint32_t count, const float *queries, size_t query_stride, uint32_t query_count, uint32_t k,
        uint32_t want, float *share_out);

#endif
