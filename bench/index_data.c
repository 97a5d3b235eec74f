/* Data sets in memory and their truth; see index_data.h. Threads: truth is computed by several, each with its
 * own queries. */
#include "bench/index_data.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/check.h"
#include "common/mem.h"
#include "storage/kernel/kernel.h"

#define TILE_ROWS 2048
#define TILE_QUERIES 16
#define TRUTH_THREADS_MAX 64

static float *rows_read(const struct matrix *matrix, uint32_t count, bool normalise, size_t *bytes_out)
{
    size_t bytes = (size_t)count * matrix->dim * sizeof(float) + 64;
    float *rows = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (rows == MAP_FAILED) panic("cannot hold %zu bytes of vectors", bytes);
    (void)madvise(rows, bytes, MADV_HUGEPAGE);
    for (uint32_t i = 0; i < count; i++) {
        float *row = rows + (size_t)i * matrix->dim;
        matrix_row_f32(matrix, i, row);
        if (normalise) vector_normalise(row, matrix->dim);
    }
    *bytes_out = bytes;
    return rows;
}

struct truth_job {
    pthread_t thread;
    struct bench_data *data;
    const struct bench_filter *filters; /* by query, or NULL */
    uint32_t first, end;                /* queries */
};

static void heap_replace_top(float *heap, uint32_t k, float value)
{
    uint32_t i = 0;
    for (;;) {
        uint32_t child = 2 * i + 1;
        if (child >= k) break;
        if (child + 1 < k && heap[child + 1] > heap[child]) child++;
        if (heap[child] <= value) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = value;
}

/* Distances of rows first..first+n-1 that pass, into the heap of the k nearest. */
static void truth_tile(const float *distances, uint32_t n, const uint64_t *bits, uint32_t first, float *heap,
        uint32_t k)
{
    for (uint32_t i = 0; i < n; i++) {
        if (!(distances[i] < heap[0])) continue;
        if (bits != NULL && !(bits[(first + i) / 64] >> ((first + i) % 64) & 1)) continue;
        heap_replace_top(heap, k, distances[i]);
    }
}

static void bound_set(struct bench_data *data, uint32_t query, const float *heap)
{
    data->bounds[query] = -INFINITY;
    data->wanted[query] = 0;
    for (uint32_t i = 0; i < data->k; i++) {
        if (heap[i] == INFINITY) continue;
        data->bounds[query] = fmaxf(data->bounds[query], heap[i]);
        data->wanted[query]++;
    }
}

static void *truth_run(void *arg)
{
    struct truth_job *job = arg;
    struct bench_data *data = job->data;
    const struct index_rows *rows = &data->rows;
    const struct kernel *kernel = kernel_get();
    uint32_t k = data->k;
    float *distances = mem_must_alloc(sizeof(float) * TILE_ROWS * TILE_QUERIES);
    float *heaps = mem_must_alloc(sizeof(float) * TILE_QUERIES * k);
    for (uint32_t q = job->first; q < job->end; q += TILE_QUERIES) {
        uint32_t queries = job->end - q < TILE_QUERIES ? job->end - q : TILE_QUERIES;
        for (uint32_t i = 0; i < TILE_QUERIES * k; i++) heaps[i] = INFINITY;
        for (uint32_t r = 0; r < rows->count; r += TILE_ROWS) {
            uint32_t n = rows->count - r < TILE_ROWS ? rows->count - r : TILE_ROWS;
            (rows->metric == METRIC_L2 ? kernel->l2sq_f32_block
                                       : kernel->negdot_f32_block)(data->queries + (size_t)q * rows->dim,
                    rows->dim, queries, rows->data + (size_t)r * rows->stride_floats, rows->stride_floats, n,
                    rows->dim, distances);
            for (uint32_t j = 0; j < queries; j++) {
                const uint64_t *bits = job->filters == NULL ? NULL : job->filters[q + j].bits;
                truth_tile(distances + (size_t)j * n, n, bits, r, heaps + (size_t)j * k, k);
            }
        }
        for (uint32_t j = 0; j < queries; j++) bound_set(data, q + j, heaps + (size_t)j * k);
    }
    mem_free(heaps);
    mem_free(distances);
    return NULL;
}

/* d * (1 + 1e-5), outwards also for the negative distances of dot products; cosine counts from 1 - dot. */
static void bounds_relax(struct bench_data *data)
{
    for (uint32_t q = 0; q < data->query_count; q++) {
        double d = data->bounds[q];
        if (data->rows.metric == METRIC_COSINE) d += 1;
        d += fabs(d) * 1e-5;
        if (data->rows.metric == METRIC_COSINE) d -= 1;
        data->bounds[q] = (float)d;
    }
}

void bench_data_truth(struct bench_data *data, const struct bench_filter *filters, uint32_t threads)
{
    struct truth_job jobs[TRUTH_THREADS_MAX];
    if (threads > TRUTH_THREADS_MAX) threads = TRUTH_THREADS_MAX;
    for (uint32_t t = 0; t < threads; t++) {
        jobs[t] = (struct truth_job){ .data = data,
            .filters = filters,
            .first = (uint32_t)((uint64_t)data->query_count * t / threads),
            .end = (uint32_t)((uint64_t)data->query_count * (t + 1) / threads) };
        if (pthread_create(&jobs[t].thread, NULL, truth_run, &jobs[t]) != 0) panic("cannot start a thread");
    }
    for (uint32_t t = 0; t < threads; t++) pthread_join(jobs[t].thread, NULL);
    bounds_relax(data);
}

static bool truth_from_file(struct bench_data *data)
{
    const struct matrix *truth = &data->set.truth;
    if (truth->count < data->query_count || truth->dim < data->k) return false;
    uint32_t *ids = mem_must_alloc(truth->dim * sizeof *ids);
    bool usable = true;
    for (uint32_t q = 0; q < data->query_count && usable; q++) {
        struct err err;
        usable = matrix_row_u32(truth, q, ids, &err) == OMEN_OK;
        float farthest = -INFINITY;
        for (uint32_t i = 0; usable && i < data->k; i++) {
            usable = ids[i] < data->rows.count;
            if (usable) farthest = fmaxf(farthest, bench_data_distance(data, q, ids[i]));
        }
        data->bounds[q] = farthest;
        data->wanted[q] = data->k;
    }
    mem_free(ids);
    if (usable) bounds_relax(data);
    return usable;
}

void bench_data_open(struct bench_data *data, const char *dir, uint64_t limit, uint64_t queries, uint32_t k,
        uint32_t threads)
{
    struct err err;
    memset(data, 0, sizeof *data);
    if (dataset_open(dir, &data->set, &err) != OMEN_OK) panic("%s", err.message);
    if (data->set.query.count == 0) panic("%s has no queries", dir);
    uint64_t count = data->set.base.count;
    if (limit != 0 && limit < count) count = limit;
    if (count > INDEX_SLOTS_MAX || count < k)
        panic("%s: %llu rows, k is %u", dir, (unsigned long long)count, k);
    bool normalise = data->set.metric == METRIC_COSINE;
    uint32_t dim = data->set.base.dim;
    data->rows = (struct index_rows){ rows_read(&data->set.base, (uint32_t)count, normalise,
                                              &data->rows_bytes),
        dim, (uint32_t)count, dim, data->set.metric };
    data->query_count = (uint32_t)data->set.query.count;
    if (queries != 0 && queries < data->query_count) data->query_count = (uint32_t)queries;
    data->queries = rows_read(&data->set.query, data->query_count, normalise, &data->query_bytes);
    data->k = k;
    data->bounds = mem_must_alloc(data->query_count * sizeof(float));
    data->wanted = mem_must_alloc(data->query_count * sizeof(uint32_t));
    bool whole = count == data->set.base.count;
    if (!whole || !truth_from_file(data)) bench_data_truth(data, NULL, threads);
}

void bench_data_close(struct bench_data *data)
{
    munmap((void *)(uintptr_t)data->rows.data, data->rows_bytes);
    munmap(data->queries, data->query_bytes);
    mem_free(data->bounds);
    mem_free(data->wanted);
    dataset_close(&data->set);
}

float bench_data_distance(const struct bench_data *data, uint32_t query, uint32_t slot)
{
    const float *q = data->queries + (size_t)query * data->rows.dim;
    const float *row = data->rows.data + (size_t)slot * data->rows.stride_floats;
    if (data->rows.metric == METRIC_L2) return kernel_get()->l2sq_f32(q, row, data->rows.dim);
    return -kernel_get()->dot_f32(q, row, data->rows.dim);
}

double bench_data_recall(const struct bench_data *data, uint32_t query, const uint32_t *slots, uint32_t count)
{
    uint32_t found = 0, wanted = data->wanted[query];
    if (wanted == 0) return 1;
    for (uint32_t i = 0; i < count; i++)
        found += bench_data_distance(data, query, slots[i]) <= data->bounds[query];
    return found >= wanted ? 1 : (double)found / wanted;
}
