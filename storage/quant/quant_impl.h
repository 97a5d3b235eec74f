/* What quant.c dispatches to; private to storage/quant. */
#ifndef OMEN_STORAGE_QUANT_QUANT_IMPL_H
#define OMEN_STORAGE_QUANT_QUANT_IMPL_H

#include "storage/kernel/packed.h"
#include "storage/quant/quant.h"
#include "storage/quant/rotation.h"

struct quant {
    const struct quant_ops *ops;
    struct quant_params params; /* bits and subvectors as they are, never 0 */
    uint32_t dim;
    uint32_t padded;           /* dim rounded up to 64 */
    size_t code_bytes;         /* factors included */
    float *mean;               /* [padded], 64-byte aligned, owned; NULL when the caller centres */
    struct rotation *rotation; /* owned; NULL when the caller rotates */
    float step;                /* scalar: between two levels */
    float spread; /* standard error of an estimate: scalar per unit of distance, else per |r| |q - mean| */
    float radius; /* |r| of a typical row of the sample */
    float *books; /* product: [subvectors][2^bits][dims], owned */
};

struct quant_query {
    struct packed_query packed;
    const float *exact; /* [padded]: none: the query itself; else centred and rotated */
    float *memory;      /* [padded], 64-byte aligned, owned */
    void *levels;       /* for packed.wide or packed.narrow, owned */
    float *table;       /* product: [subvectors][2^bits], owned */
    enum metric metric;
    float length; /* |q - mean|, without centring |q| */
};

struct quant_ops {
    enum quant_kind kind;
    enum omen_err (*train)(struct quant *quant, const float *rows, size_t stride, uint32_t count,
            const struct quant_control *control);
    void (*encode)(const struct quant *quant, const float *vector, uint8_t *code_out);
    bool (*query_init)(const struct quant *quant, struct quant_query *query);
    void (*prepare)(const struct quant *quant, const float *vector, struct quant_query *query);
    void (*estimate)(const struct quant *quant, const struct quant_query *query, const uint8_t *codes,
            size_t stride, const uint32_t *ids, uint32_t count, float *estimates_out);
};

extern const struct quant_ops quant_scalar_ops, quant_binary_ops, quant_product_ops;

/* vector [dim] -> centred (unless `keep_mean`) and rotated [padded]. */
void quant_turn(const struct quant *quant, const float *vector, bool keep_mean, float *out);
bool quant_stopped(const struct quant_control *control, uint64_t done, uint64_t total);

#endif
