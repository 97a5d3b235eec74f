/* Which quantizer to start from, and what one can deliver at best. Threads: no state. */
#include <math.h>
#include <string.h>

#include "common/check.h"
#include "storage/kernel/kernel.h"
#include "storage/quant/quant.h"

enum quant_kind quant_choose(float recall_target, enum quant_profile profile)
{
    static const float least[] = { [QUANT_NONE] = 0.99f, [QUANT_SCALAR] = 0.95f, [QUANT_PRODUCT] = 0.90f };
    int kind = QUANT_NONE;
    while (kind < QUANT_BINARY && !(recall_target >= least[kind])) kind++;
    if (profile == QUANT_CONSERVATIVE && kind > QUANT_NONE) kind--;
    if (profile == QUANT_AGGRESSIVE && kind < QUANT_BINARY) kind++;
    return (enum quant_kind)kind;
}

struct near {
    float distance;
    uint32_t row;
};

/* Insert into an ascending list of at most `cap`; ties keep the earlier one. */
static void near_insert(struct near *list, uint32_t *count, uint32_t cap, struct near x)
{
    if (*count == cap && !(x.distance < list[cap - 1].distance)) return;
    uint32_t at = *count < cap ? (*count)++ : cap - 1;
    for (; at > 0 && x.distance < list[at - 1].distance; at--) list[at] = list[at - 1];
    list[at] = x;
}

#define BLOCK 256 /* rows at a time */
#define TIE 1e-5f

/* True neighbours among the nearest by code, of one query. */
static uint32_t found_of(const float *query, const float *rows, size_t stride, uint32_t count, uint32_t dim,
        const float *estimates, uint32_t k, uint32_t want)
{
    struct near nearest[QUANT_WANT_MAX], coded[QUANT_WANT_MAX];
    float distances[BLOCK];
    uint32_t nearest_count = 0, coded_count = 0, found = 0;
    for (uint32_t first = 0; first < count; first += BLOCK) {
        uint32_t n = count - first < BLOCK ? count - first : BLOCK;
        kernel_get()->l2sq_f32_rows(query, rows + first * stride, stride, n, dim, distances);
        for (uint32_t i = 0; i < n; i++) {
            near_insert(nearest, &nearest_count, k, (struct near){ distances[i], first + i });
            near_insert(coded, &coded_count, want, (struct near){ estimates[first + i], first + i });
        }
    }
    float bound = nearest[nearest_count - 1].distance * (1 + TIE);
    for (uint32_t i = 0; i < coded_count; i++)
        found += kernel_get()->l2sq_f32(query, rows + coded[i].row * stride, dim) <= bound;
    return found < nearest_count ? found : nearest_count;
}

enum omen_err quant_fidelity(const struct quant *quant, const float *rows, size_t stride, uint32_t count,
        const float *queries, size_t query_stride, uint32_t query_count, uint32_t k, uint32_t want,
        float *share_out)
{
    CHECK(k > 0 && k <= want && want <= QUANT_WANT_MAX);
    *share_out = 1;
    if (count == 0 || query_count == 0) return OMEN_OK;
    size_t bytes = quant_code_bytes(quant);
    uint8_t *codes = mem_alloc((size_t)count * bytes);
    float *estimates = mem_alloc(count * sizeof(float));
    struct quant_query *query = quant_query_new(quant);
    enum omen_err rc = codes == NULL || estimates == NULL || query == NULL ? OMEN_ENOMEM : OMEN_OK;
    for (uint32_t row = 0; rc == OMEN_OK && row < count; row++)
        quant_encode(quant, rows + row * stride, codes + row * bytes);
    uint64_t found = 0;
    for (uint32_t q = 0; rc == OMEN_OK && q < query_count; q++) {
        const float *vector = queries + q * query_stride;
        quant_prepare(quant, METRIC_L2, vector, query);
        quant_estimate(quant, query, codes, bytes, NULL, count, estimates);
        found += found_of(vector, rows, stride, count, quant_dim(quant), estimates, k, want);
    }
    *share_out = (float)((double)found / ((double)query_count * (k < count ? k : count)));
    quant_query_free(query);
    mem_free(codes);
    mem_free(estimates);
    return rc;
}
