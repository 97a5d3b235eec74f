/* 8-bit codes for the walk: one step for all components, so that a sum of squared code differences is the
 * squared distance in units of step^2 and pairs of nodes can be compared without decoding.
 *
 * Departs from per-component scaling: that keeps more of each component but needs a weight per component in
 * every distance; measured on text vectors the rescoring hides the difference. Queries keep 16 bits, so that
 * they may lie outside the trained range without being pulled to its edge.
 * Where codes are too coarse for the nearest neighbours of a sample (norms that differ by orders of
 * magnitude), the walk uses the f32 rows instead.
 *
 * Threads: a generation is immutable but for codes of nodes that nobody can reach yet.
 * Determinism: integer sums, equal on every instruction set. */
#include "storage/index/hnsw_impl.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

#ifdef __x86_64__
#include <immintrin.h>
#endif

#define CODE_ALIGN 64
#define STEP_MIN 1e-30f      /* below, its inverse leaves f32 */
#define CLIP_TOLERANCE 32.0f /* code units by which a row may leave the range before it counts as clipped */
#define TAIL_QUANTILE 0.0005 /* of a component's values cut off at each end */
#define QUALITY_PROBES 64    /* rows of the sample whose nearest are compared by code and by f32 */
#define QUALITY_ROWS 1024
#define QUALITY_ERROR 0.10f /* relative error of a nearest distance that is too much */
#define QUALITY_SHARE 0.05f /* of probes that may have such an error */
#define NORM_HEADROOM 1.05f /* on the largest norm, so that rows slightly longer still fit */

/* ---- distances ---------------------------------------------------------------------------------------- */

static void many_scalar(const int16_t *q, const uint8_t *codes, size_t stride, const uint32_t *nodes,
        uint32_t count, uint32_t *distances_out)
{
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *code = codes + (size_t)nodes[i] * stride;
        uint32_t sum = 0;
        for (size_t j = 0; j < stride; j++) {
            int32_t d = q[j] - code[j];
            sum += (uint32_t)(d * d);
        }
        distances_out[i] = sum;
    }
}

static uint32_t pair_scalar(const uint8_t *a, const uint8_t *b, size_t stride)
{
    uint32_t sum = 0;
    for (size_t j = 0; j < stride; j++) {
        int32_t d = a[j] - b[j];
        sum += (uint32_t)(d * d);
    }
    return sum;
}

static const struct hnsw_code_ops ops_scalar = { many_scalar, pair_scalar };

#ifdef __x86_64__
#define AVX2 __attribute__((target("avx2")))
#define VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,avx2")))

AVX2 static inline uint32_t sum_8(__m256i v)
{
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(s);
}

AVX2 static inline __m256i add_16(__m256i sum, __m256i q, const uint8_t *code)
{
    __m256i d = _mm256_sub_epi16(q, _mm256_cvtepu8_epi16(_mm_load_si128((const __m128i *)code)));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(d, d));
}

/* Four rows side by side: one load of the query serves all, and their sums fold together. */
AVX2 static void many_avx2(const int16_t *q, const uint8_t *codes, size_t stride, const uint32_t *nodes,
        uint32_t count, uint32_t *distances_out)
{
    uint32_t i = 0;
    for (; i + 4 <= count; i += 4) {
        const uint8_t *c0 = codes + (size_t)nodes[i] * stride, *c1 = codes + (size_t)nodes[i + 1] * stride;
        const uint8_t *c2 = codes + (size_t)nodes[i + 2] * stride,
                      *c3 = codes + (size_t)nodes[i + 3] * stride;
        __m256i s0 = _mm256_setzero_si256(), s1 = s0, s2 = s0, s3 = s0;
        for (size_t j = 0; j < stride; j += 16) {
            __m256i x = _mm256_load_si256((const __m256i *)(q + j));
            s0 = add_16(s0, x, c0 + j);
            s1 = add_16(s1, x, c1 + j);
            s2 = add_16(s2, x, c2 + j);
            s3 = add_16(s3, x, c3 + j);
        }
        __m256i s = _mm256_hadd_epi32(_mm256_hadd_epi32(s0, s1), _mm256_hadd_epi32(s2, s3));
        _mm_storeu_si128((__m128i *)(distances_out + i),
                _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1)));
    }
    for (; i < count; i++) {
        const uint8_t *code = codes + (size_t)nodes[i] * stride;
        __m256i sum = _mm256_setzero_si256();
        for (size_t j = 0; j < stride; j += 16)
            sum = add_16(sum, _mm256_load_si256((const __m256i *)(q + j)), code + j);
        distances_out[i] = sum_8(sum);
    }
}

AVX2 static uint32_t pair_avx2(const uint8_t *a, const uint8_t *b, size_t stride)
{
    __m256i sum = _mm256_setzero_si256();
    for (size_t j = 0; j < stride; j += 16) {
        __m256i x = _mm256_cvtepu8_epi16(_mm_load_si128((const __m128i *)(a + j)));
        __m256i y = _mm256_cvtepu8_epi16(_mm_load_si128((const __m128i *)(b + j)));
        __m256i d = _mm256_sub_epi16(x, y);
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(d, d));
    }
    return sum_8(sum);
}

static const struct hnsw_code_ops ops_avx2 = { many_avx2, pair_avx2 };

VNNI static inline __m512i add_32(__m512i sum, __m512i q, const uint8_t *code)
{
    __m512i d = _mm512_sub_epi16(q, _mm512_cvtepu8_epi16(_mm256_load_si256((const __m256i *)code)));
    return _mm512_dpwssd_epi32(sum, d, d);
}

/* Four rows side by side: one load of the query serves all, and four chains of adds hide their latency. */
VNNI static void many_vnni(const int16_t *q, const uint8_t *codes, size_t stride, const uint32_t *nodes,
        uint32_t count, uint32_t *distances_out)
{
    uint32_t i = 0;
    for (; i + 4 <= count; i += 4) {
        const uint8_t *c0 = codes + (size_t)nodes[i] * stride, *c1 = codes + (size_t)nodes[i + 1] * stride;
        const uint8_t *c2 = codes + (size_t)nodes[i + 2] * stride,
                      *c3 = codes + (size_t)nodes[i + 3] * stride;
        __m512i s0 = _mm512_setzero_si512(), s1 = s0, s2 = s0, s3 = s0;
        for (size_t j = 0; j < stride; j += 32) {
            __m512i x = _mm512_load_si512(q + j);
            s0 = add_32(s0, x, c0 + j);
            s1 = add_32(s1, x, c1 + j);
            s2 = add_32(s2, x, c2 + j);
            s3 = add_32(s3, x, c3 + j);
        }
        distances_out[i] = (uint32_t)_mm512_reduce_add_epi32(s0);
        distances_out[i + 1] = (uint32_t)_mm512_reduce_add_epi32(s1);
        distances_out[i + 2] = (uint32_t)_mm512_reduce_add_epi32(s2);
        distances_out[i + 3] = (uint32_t)_mm512_reduce_add_epi32(s3);
    }
    for (; i < count; i++) {
        const uint8_t *c = codes + (size_t)nodes[i] * stride;
        __m512i s = _mm512_setzero_si512();
        for (size_t j = 0; j < stride; j += 32) s = add_32(s, _mm512_load_si512(q + j), c + j);
        distances_out[i] = (uint32_t)_mm512_reduce_add_epi32(s);
    }
}

VNNI static uint32_t pair_vnni(const uint8_t *a, const uint8_t *b, size_t stride)
{
    __m512i s0 = _mm512_setzero_si512(), s1 = s0;
    for (size_t j = 0; j < stride; j += 64) {
        __m512i x0 = _mm512_cvtepu8_epi16(_mm256_load_si256((const __m256i *)(a + j)));
        __m512i x1 = _mm512_cvtepu8_epi16(_mm256_load_si256((const __m256i *)(a + j + 32)));
        s0 = add_32(s0, x0, b + j);
        s1 = add_32(s1, x1, b + j + 32);
    }
    return (uint32_t)_mm512_reduce_add_epi32(_mm512_add_epi32(s0, s1));
}

static const struct hnsw_code_ops ops_vnni = { many_vnni, pair_vnni };
#endif

/* The index asks for what kernel_get chose, so that OMENDB_ISA lowers both. */
const struct hnsw_code_ops *hnsw_code_ops_for(enum kernel_isa isa)
{
#ifdef __x86_64__
    if (isa == KERNEL_AVX512 && __builtin_cpu_supports("avx512vnni")) return &ops_vnni;
    if (isa != KERNEL_SCALAR && __builtin_cpu_supports("avx2")) return &ops_avx2;
#endif
    return &ops_scalar;
}

static uint32_t key_of(float value)
{
    if (!(value >= 0)) value = value < 0 ? 0.0f : FLT_MAX; /* NaN: an overflow of f32, as far as can be */
    uint32_t key;
    memcpy(&key, &value, sizeof key);
    return key;
}

static float distance_f32(const struct hnsw *h, const struct hnsw_codes *codes, const float *a, float lift_a,
        uint32_t node)
{
    float d = h->kernel->l2sq_f32(a, hnsw_vector(h, node), h->index.dim);
    if (codes->lift == NULL) return d;
    float lift = lift_a - codes->lift[node];
    return d + lift * lift;
}

void hnsw_distances(const struct hnsw *h, const struct hnsw_codes *codes, const struct hnsw_probe *probe,
        const uint32_t *nodes, uint32_t count, uint32_t *keys_out)
{
    if (codes->quantized) {
        codes->ops->many(probe->code, codes->codes, codes->stride, nodes, count, keys_out);
        return;
    }
    for (uint32_t i = 0; i < count; i++)
        keys_out[i] = key_of(distance_f32(h, codes, probe->f32, probe->lift, nodes[i]));
}

uint32_t hnsw_distance(const struct hnsw *h, const struct hnsw_codes *codes, uint32_t a, uint32_t b)
{
    if (codes->quantized)
        return codes->ops->pair(codes->codes + a * codes->stride, codes->codes + b * codes->stride,
                codes->stride);
    return key_of(distance_f32(h, codes, hnsw_vector(h, a), codes->lift != NULL ? codes->lift[a] : 0, b));
}

/* ---- coding ------------------------------------------------------------------------------------------- */

static float lift_of(const struct hnsw *h, const struct hnsw_codes *codes, const float *v, bool *fits)
{
    float rest = codes->norm_max_sq - h->kernel->dot_f32(v, v, h->index.dim);
    if (!(rest >= 0)) *fits = false;
    return rest > 0 ? sqrtf(rest) : 0.0f;
}

/* The code of one row, padded with zeros; false when it was clipped by more than tolerated. */
static bool encode(const struct hnsw *h, const struct hnsw_codes *codes, const float *v, float lift,
        uint8_t *code_out)
{
    float inverse = 1.0f / codes->step, excess = 0;
    for (uint32_t i = 0; i < codes->code_dim; i++) {
        float x = ((i < h->index.dim ? v[i] : lift) - codes->offset[i]) * inverse;
        float inside = fminf(fmaxf(x, 0.0f), 255.0f);
        excess += (x - inside) * (x - inside);
        code_out[i] = (uint8_t)lrintf(inside);
    }
    memset(code_out + codes->code_dim, 0, codes->stride - codes->code_dim);
    return excess <= CLIP_TOLERANCE * CLIP_TOLERANCE;
}

bool hnsw_codes_put(const struct hnsw *h, struct hnsw_codes *codes, uint32_t node)
{
    bool fits = true;
    float lift = 0;
    const float *v = hnsw_vector(h, node);
    if (codes->lift != NULL) codes->lift[node] = lift = lift_of(h, codes, v, &fits);
    if (codes->quantized) fits = encode(h, codes, v, lift, codes->codes + node * codes->stride) && fits;
    return fits;
}

#define ROUNDING 0x1.8p23f /* added and taken off: to the nearest integer, as lrintf, without a call */

void hnsw_probe_query(const struct hnsw *h, const struct hnsw_codes *codes, const float *query, int16_t *code,
        struct hnsw_probe *probe_out)
{
    *probe_out = (struct hnsw_probe){ .code = code, .f32 = query, .lift = 0, .scale = 1 };
    if (!codes->quantized) return;
    float inverse = 1.0f / codes->step, low = -codes->query_max, high = 255.0f + codes->query_max, scale = 1;
    if (codes->lift != NULL) {
        /* The order of dot products does not change with the query's length; at the points' own it fills the
         * range of codes. */
        float norm = h->kernel->dot_f32(query, query, h->index.dim);
        scale = norm > 0 && isfinite(norm) ? sqrtf(codes->norm_max_sq / norm) : 1.0f;
        if (!(scale > 0 && isfinite(scale))) scale = 1;
    }
    probe_out->scale = scale;
    for (uint32_t i = 0; i < codes->code_dim; i++) {
        float x = ((i < h->index.dim ? scale * query[i] : 0.0f) - codes->offset[i]) * inverse;
        x = x < low ? low : x > high ? high : x;
        code[i] = (int16_t)(x + ROUNDING - ROUNDING);
    }
    memset(code + codes->code_dim, 0, (codes->stride - codes->code_dim) * sizeof *code);
}

void hnsw_probe_node(const struct hnsw *h, const struct hnsw_codes *codes, uint32_t node, int16_t *code,
        struct hnsw_probe *probe_out)
{
    *probe_out = (struct hnsw_probe){ .code = code, .f32 = hnsw_vector(h, node) };
    if (codes->lift != NULL) probe_out->lift = codes->lift[node];
    if (!codes->quantized) return;
    const uint8_t *own = codes->codes + node * codes->stride;
    for (size_t i = 0; i < codes->stride; i++) code[i] = own[i];
}

/* ---- training ----------------------------------------------------------------------------------------- */

static const float *sample_row(const struct hnsw_sample *sample, uint32_t i)
{
    return sample->data + (sample->ids != NULL ? sample->ids[i] : i) * sample->stride_floats;
}

static int compare_f32(const void *a, const void *b)
{
    float x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (x > y) - (x < y);
}

/* Range of each component but for its tails; offset[] becomes the middle, the result is the widest range. */
static float ranges(const struct hnsw *h, struct hnsw_codes *codes, const struct hnsw_sample *sample,
        uint32_t rows, float *column)
{
    float widest = 0;
    uint32_t every = sample->count / rows;
    for (uint32_t i = 0; i < codes->code_dim; i++) {
        for (uint32_t r = 0; r < rows; r++) {
            const float *v = sample_row(sample, r * every);
            bool fits = true;
            column[r] = i < h->index.dim ? v[i] : lift_of(h, codes, v, &fits);
        }
        qsort(column, rows, sizeof *column, compare_f32);
        uint32_t cut = (uint32_t)(rows * TAIL_QUANTILE);
        float low = column[cut], high = column[rows - 1 - cut];
        codes->offset[i] = low + (high - low) / 2;
        if (high - low > widest) widest = high - low;
    }
    return widest;
}

/* Do codes tell near from far? The nearest of some rows by f32, and how far off their code distance is. */
static bool good_enough(const struct hnsw *h, const struct hnsw_codes *codes,
        const struct hnsw_sample *sample, uint8_t *pair)
{
    uint32_t rows = sample->count < QUALITY_ROWS ? sample->count : QUALITY_ROWS, every = sample->count / rows;
    uint32_t probes = rows < QUALITY_PROBES ? rows : QUALITY_PROBES, bad = 0;
    for (uint32_t p = 0; p < probes; p++) {
        uint32_t probe = p * (rows / probes), nearest = HNSW_NONE;
        const float *v = sample_row(sample, probe * every);
        bool fits = true;
        float lift = codes->code_dim > h->index.dim ? lift_of(h, codes, v, &fits) : 0, best = INFINITY,
              best_lift = 0;
        for (uint32_t r = 0; r < rows; r++) {
            const float *other = sample_row(sample, r * every);
            float other_lift = codes->code_dim > h->index.dim ? lift_of(h, codes, other, &fits) : 0;
            float d = h->kernel->l2sq_f32(v, other, h->index.dim) + (lift - other_lift) * (lift - other_lift);
            if (r == probe || !(d > 0 && d < best)) continue;
            best = d;
            best_lift = other_lift;
            nearest = r;
        }
        if (nearest == HNSW_NONE) continue;
        encode(h, codes, v, lift, pair);
        encode(h, codes, sample_row(sample, nearest * every), best_lift, pair + codes->stride);
        float coded = (float)codes->ops->pair(pair, pair + codes->stride, codes->stride) * codes->step *
                codes->step;
        if (!(fabsf(coded - best) <= QUALITY_ERROR * best)) bad++;
    }
    return (float)bad <= QUALITY_SHARE * (float)probes;
}

static float norm_max_sq(const struct hnsw *h, const struct hnsw_sample *sample)
{
    float most = 0;
    for (uint32_t i = 0; i < sample->count; i++) {
        const float *v = sample_row(sample, i);
        float norm = h->kernel->dot_f32(v, v, h->index.dim);
        if (norm > most) most = norm;
    }
    return most * (NORM_HEADROOM * NORM_HEADROOM);
}

static bool train(const struct hnsw *h, struct hnsw_codes *codes, const struct hnsw_sample *sample)
{
    uint32_t rows = sample->count < HNSW_TRAIN_SAMPLE ? sample->count : HNSW_TRAIN_SAMPLE;
    if (!h->quantize || sample->count < HNSW_TRAIN_ROWS_MIN) return true;
    float *column = mem_alloc(rows * sizeof *column);
    uint8_t *pair = mem_alloc_aligned(CODE_ALIGN, 2 * codes->stride);
    bool ok = column != NULL && pair != NULL;
    if (ok) {
        float widest = ranges(h, codes, sample, rows, column);
        codes->step = widest > 0 ? widest / 255.0f : 1.0f;
        for (uint32_t i = 0; i < codes->code_dim; i++) codes->offset[i] -= 127.5f * codes->step;
        codes->quantized = codes->step >= STEP_MIN && isfinite(codes->step) &&
                good_enough(h, codes, sample, pair);
    }
    if (ok && codes->quantized) {
        codes->codes = hnsw_map(h->node_capacity, codes->stride, sample->count * codes->stride);
        ok = codes->codes != NULL;
    }
    mem_free(column);
    mem_free(pair);
    return ok;
}

struct hnsw_codes *hnsw_codes_new(const struct hnsw *h, const struct hnsw_sample *sample)
{
    struct hnsw_codes *codes = mem_calloc(1, sizeof *codes);
    if (codes == NULL) return NULL;
    bool lifted = h->index.metric == METRIC_IP;
    codes->ops = hnsw_code_ops_for(h->kernel->isa);
    codes->code_dim = h->index.dim + lifted;
    codes->stride = align_up(codes->code_dim, CODE_ALIGN);
    codes->query_max = floorf(sqrtf(2147483000.0f / (float)codes->stride)) - 256.0f;
    codes->trained_on = sample->count;
    codes->offset = mem_calloc(codes->code_dim, sizeof *codes->offset);
    bool ok = codes->offset != NULL;
    if (ok && lifted) {
        codes->norm_max_sq = norm_max_sq(h, sample);
        codes->lift = hnsw_map(h->node_capacity, sizeof *codes->lift, sample->count * sizeof *codes->lift);
        ok = codes->lift != NULL;
    }
    if (ok) ok = train(h, codes, sample);
    if (ok) return codes;
    hnsw_codes_free(h, codes);
    return NULL;
}

void hnsw_codes_free(const struct hnsw *h, struct hnsw_codes *codes)
{
    if (codes == NULL) return;
    hnsw_unmap(codes->codes, h->node_capacity, codes->stride);
    hnsw_unmap(codes->lift, h->node_capacity, sizeof *codes->lift);
    mem_free(codes->offset);
    mem_free(codes);
}

/* ---- a new generation --------------------------------------------------------------------------------- */

/* Often enough to follow the data, seldom enough that each row is coded a few times in its life: an eighth
 * of the nodes clipped, or the count at which the last training asked to be repeated. */
bool hnsw_retrain_due(struct hnsw *h)
{
    uint32_t nodes = atomic_load_explicit(&h->node_count, memory_order_relaxed);
    if (nodes >= atomic_load_explicit(&h->train_at, memory_order_relaxed)) return true;
    return atomic_load_explicit(&h->clipped_count, memory_order_relaxed) > 64 + nodes / 8;
}

static enum omen_err retrain_alone(struct hnsw *h, struct hnsw_codes **old_out)
{
    uint32_t nodes = atomic_load(&h->node_count), count = 0;
    uint32_t *ids = mem_alloc(((size_t)nodes + 1) * sizeof *ids);
    if (ids == NULL) return OMEN_ENOMEM;
    for (uint32_t i = 0; i < nodes; i++)
        if (hnsw_state(h, i) == HNSW_LIVE) ids[count++] = i;
    struct hnsw_sample sample = { h->vectors, h->vector_stride, ids, count };
    struct hnsw_codes *codes = hnsw_codes_new(h, &sample);
    mem_free(ids);
    if (codes == NULL) return OMEN_ENOMEM;
    for (uint32_t i = 0; i < nodes; i++)
        if (hnsw_state(h, i) != HNSW_FREE) hnsw_codes_put(h, codes, i);
    *old_out = atomic_exchange(&h->codes, codes);
    return OMEN_OK;
}

enum omen_err hnsw_retrain(struct hnsw *h)
{
    enum omen_err rc = OMEN_OK;
    struct hnsw_codes *old = NULL;
    pthread_rwlock_wrlock(&h->train_lock);
    if (hnsw_retrain_due(h)) { /* else another writer was quicker */
        rc = retrain_alone(h, &old);
        uint32_t nodes = atomic_load(&h->node_count);
        bool coded = rc == OMEN_OK && atomic_load(&h->codes)->quantized;
        /* Codes that fit are trained again only when rows leave their range; f32 is given another chance
         * later. */
        uint32_t next = !h->quantize || coded ? UINT32_MAX : nodes < UINT32_MAX / 4 ? 4 * nodes : UINT32_MAX;
        if (h->quantize && nodes < HNSW_TRAIN_ROWS_MIN) next = HNSW_TRAIN_ROWS_MIN;
        atomic_store(&h->train_at, next);
        atomic_store(&h->clipped_count, 0);
    }
    pthread_rwlock_unlock(&h->train_lock);
    if (old != NULL) {
        hnsw_epoch_wait(h);
        hnsw_codes_free(h, old);
    }
    return rc;
}
