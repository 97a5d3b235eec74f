/* See recall_support.h. */
#include "tests/support/recall_support.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "storage/kernel/kernel.h"

#define TIE 1e-5f

uint64_t recall_rng(struct recall_set *set)
{
    set->rng ^= set->rng << 13;
    set->rng ^= set->rng >> 7;
    set->rng ^= set->rng << 17;
    return set->rng;
}

float recall_gauss(struct recall_set *set)
{
    float sum = 0;
    for (int i = 0; i < 6; i++) sum += (float)(recall_rng(set) >> 40) * 0x1p-24f - 0.5f;
    return sum * 1.41421356f;
}

void recall_set_init(struct recall_set *set, uint32_t count, uint32_t query_count, uint32_t dim,
        enum metric metric, uint64_t seed)
{
    printf("seed %llu\n", (unsigned long long)seed);
    memset(set, 0, sizeof *set);
    set->rng = seed * 0x9e3779b97f4a7c15u | 1;
    set->data = mem_must_calloc((size_t)(count + query_count) * dim + 1, sizeof(float));
    set->queries = set->data + (size_t)count * dim;
    set->query_count = query_count;
    set->rows = (struct index_rows){ set->data, dim, count, dim, metric };
}

void recall_set_fill(struct recall_set *set, uint32_t centres, uint32_t intrinsic)
{
    uint32_t dim = set->rows.dim;
    float *places = mem_must_alloc((size_t)centres * intrinsic * sizeof(float)),
          *axes = mem_must_alloc((size_t)intrinsic * dim * sizeof(float)),
          *inner = mem_must_alloc(intrinsic * sizeof(float));
    for (size_t i = 0; i < (size_t)centres * intrinsic; i++) places[i] = 1.5f * recall_gauss(set);
    for (size_t i = 0; i < (size_t)intrinsic * dim; i++) axes[i] = recall_gauss(set);
    for (uint32_t row = 0; row < set->rows.count + set->query_count; row++) {
        const float *place = places + (size_t)(recall_rng(set) % centres) * intrinsic;
        float *out = set->data + (size_t)row * dim;
        for (uint32_t j = 0; j < intrinsic; j++) inner[j] = place[j] + recall_gauss(set);
        for (uint32_t j = 0; j < dim; j++) {
            float sum = 0;
            for (uint32_t i = 0; i < intrinsic; i++) sum += inner[i] * axes[(size_t)i * dim + j];
            out[j] = sum + 0.3f * recall_gauss(set);
        }
        if (set->rows.metric == METRIC_COSINE) vector_normalise(out, dim);
        if (set->rows.metric != METRIC_IP) continue;
        vector_normalise(out, dim);
        float norm = exp2f((float)(recall_rng(set) % 4000) / 1000);
        for (uint32_t j = 0; j < dim; j++) out[j] *= norm;
    }
    mem_free(inner);
    mem_free(axes);
    mem_free(places);
}

void recall_set_fini(struct recall_set *set) { mem_free(set->data); }

struct index *recall_build(const struct recall_set *set, enum index_kind kind, enum index_quant quant)
{
    struct index_params params = { .quant = quant, .seed = 7 };
    struct index_control control = { .threads = 2 };
    struct index *index;
    struct err err;
    enum omen_err rc = index_build(kind, &set->rows, &params, &control, &index, &err);
    ck_assert_msg(rc == OMEN_OK, "%s of %u rows: %s", index_kind_name(kind), set->rows.count, err.message);
    return index;
}

static float distance_of(const struct recall_set *set, const float *query, uint32_t slot)
{
    const float *row = set->data + (size_t)slot * set->rows.dim;
    float d = set->rows.metric == METRIC_L2 ? kernel_get()->l2sq_f32(query, row, set->rows.dim)
                                            : -kernel_get()->dot_f32(query, row, set->rows.dim);
    return isnan(d) ? INFINITY : d;
}

static bool bit(const uint64_t *bits, uint32_t slot)
{
    return bits == NULL || (bits[slot / 64] >> (slot % 64) & 1);
}

static void sift_down(float *heap, uint32_t count, uint32_t i)
{
    float value = heap[i];
    for (;;) {
        uint32_t child = 2 * i + 1;
        if (child >= count) break;
        if (child + 1 < count && heap[child + 1] > heap[child]) child++;
        if (heap[child] <= value) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = value;
}

/* The `search->k` nearest rows that pass as a heap of distances, the farthest first; returns how many. */
static uint32_t truth_of(const struct recall_set *set, const struct index_search *search, float *heap)
{
    uint32_t count = 0, k = search->k;
    for (uint32_t slot = 0; slot < set->rows.count; slot++) {
        if (!bit(search->filter, slot)) continue;
        float d = distance_of(set, search->query, slot);
        if (search->has_distance_max && !(d <= search->distance_max)) continue;
        if (count < k) {
            heap[count++] = d;
            if (count == k)
                for (uint32_t i = k / 2; i-- > 0;) sift_down(heap, k, i);
        } else if (d < heap[0]) {
            heap[0] = d;
            sift_down(heap, k, 0);
        }
    }
    if (count < k)
        for (uint32_t i = count / 2; i-- > 0;) sift_down(heap, count, i);
    return count;
}

/* Fails the test at most once: every ck_assert, passed or not, is a write to Check's file. */
static void hits_check(const struct recall_set *set, const struct index_search *search,
        const struct index_hit *hits, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t slot = hits[i].slot;
        if (slot >= set->rows.count) ck_abort_msg("slot %u of %u", slot, set->rows.count);
        if (!bit(search->filter, slot)) ck_abort_msg("slot %u does not pass", slot);
        float d = distance_of(set, search->query, slot);
        if (memcmp(&d, &hits[i].distance, sizeof d) != 0 && !(d == 0 && hits[i].distance == 0))
            ck_abort_msg("slot %u: %.9g is told, %.9g is true", slot, (double)hits[i].distance, (double)d);
        if (i > 0 && !(hits[i - 1].distance <= d)) ck_abort_msg("hit %u is nearer than the one before", i);
        for (uint32_t j = 0; j < i; j++)
            if (hits[j].slot == slot) ck_abort_msg("slot %u is returned twice", slot);
    }
}

struct recall_result recall_measure(const struct recall_set *set, const struct index *index,
        const struct index_search *search, const uint64_t *const *filters)
{
    struct recall_result result = { 0 };
    struct index_scratch *scratch = index_scratch_new(index);
    struct index_hit *hits = mem_must_alloc(search->k * sizeof *hits);
    float *heap = mem_must_alloc(search->k * sizeof(float));
    double sum = 0, squares = 0;
    for (uint32_t q = 0; q < set->query_count; q++) {
        struct index_search one = *search;
        one.query = set->queries + (size_t)q * set->rows.dim;
        if (filters != NULL) one.filter = filters[q];
        uint32_t wanted = truth_of(set, &one, heap), count, good = 0;
        enum omen_err rc = index_search(index, &one, scratch, hits, &count, &result.cost);
        if (rc != OMEN_OK) ck_abort_msg("query %u: error %d", q, (int)rc);
        hits_check(set, &one, hits, count);
        if (count > wanted || (count < wanted && !one.has_distance_max))
            ck_abort_msg("query %u: %u hits, %u there are", q, count, wanted);
        for (uint32_t i = 0; i < count; i++) good += hits[i].distance <= heap[0] + fabsf(heap[0]) * TIE;
        double recall = wanted == 0 ? 1 : fmin(1, (double)good / wanted);
        sum += recall;
        squares += recall * recall;
        result.below_80 += (recall < 0.8 - 1e-9) / (double)set->query_count;
    }
    index_scratch_free(index, scratch);
    mem_free(heap);
    mem_free(hits);
    result.mean = sum / set->query_count;
    result.queries = set->query_count;
    result.found_max = (double)set->query_count * search->k;
    result.standard_error = sqrt(
            fmax(squares / set->query_count - result.mean * result.mean, 0) / set->query_count);
    return result;
}

void recall_check(const char *what, const struct recall_result *result, double target, bool exact)
{
    /* What the answers' own spread says, but no less than a coin's; and a curve of some 125 rows held out is careful by
     * 1.65 of its own, larger, standard errors. */
    double coin = sqrt(target * (1 - target) / result->found_max), error = 2 * result->standard_error;
    double careful = 1.65 * sqrt(result->queries / 125.0) * fmax(result->standard_error, coin);
    printf("%s: %.4f +- %.4f for %.3f, %.1f %% of queries below 0.8\n", what, result->mean,
            result->standard_error, target, 100 * result->below_80);
    ck_assert_msg(result->mean >= target - error - 1e-9, "%s: %.4f delivered for %.3f", what, result->mean,
            target);
    ck_assert_msg(exact || result->mean <= target + 0.02 + fmax(error, 2 * coin) + careful,
            "%s: %.4f delivered for %.3f, more than paid", what, result->mean, target);
}
