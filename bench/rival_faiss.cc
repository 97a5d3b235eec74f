/* faiss behind a C door: its HNSW over f32 rows; see rival.h. */
#include "bench/rival.h"

#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include <faiss/IndexHNSW.h>
#include <faiss/index_io.h>
#include <omp.h>

namespace {

faiss::IndexHNSWFlat *of(struct rival *rival) { return reinterpret_cast<faiss::IndexHNSWFlat *>(rival); }
const faiss::IndexHNSWFlat *of(const struct rival *rival)
{
    return reinterpret_cast<const faiss::IndexHNSWFlat *>(rival);
}

struct rival *build(const struct rival_rows *rows, uint32_t M, uint32_t ef_construction, uint32_t threads)
try {
    auto index = std::make_unique<faiss::IndexHNSWFlat>((int)rows->dim, (int)M,
            rows->dot ? faiss::METRIC_INNER_PRODUCT : faiss::METRIC_L2);
    index->hnsw.efConstruction = (int)ef_construction;
    std::vector<float> packed((size_t)rows->count * rows->dim);
    for (uint32_t i = 0; i < rows->count; i++)
        memcpy(&packed[(size_t)i * rows->dim], rows->data + i * rows->stride_floats, rows->dim * sizeof(float));
    omp_set_num_threads((int)threads);
    index->add(rows->count, packed.data());
    omp_set_num_threads(1);
    return reinterpret_cast<struct rival *>(index.release());
} catch (const std::exception &e) {
    fprintf(stderr, "omen-bench: faiss: %s\n", e.what());
    return NULL;
}

bool save(const struct rival *rival, const char *path)
try {
    faiss::write_index(of(rival), path);
    return true;
} catch (const std::exception &e) {
    fprintf(stderr, "omen-bench: faiss: %s\n", e.what());
    return false;
}

struct rival *load(const struct rival_rows *rows, const char *path)
try {
    std::unique_ptr<faiss::Index> read(faiss::read_index(path));
    auto *index = dynamic_cast<faiss::IndexHNSWFlat *>(read.get());
    if (index == NULL || index->ntotal != (faiss::Index::idx_t)rows->count) return NULL;
    read.release();
    omp_set_num_threads(1);
    return reinterpret_cast<struct rival *>(index);
} catch (const std::exception &e) {
    fprintf(stderr, "omen-bench: faiss: %s\n", e.what());
    return NULL;
}

bool pages(struct rival *, bool) { return false; }

uint32_t search(struct rival *rival, const float *query, uint32_t k, uint32_t ef, uint32_t *slots_out)
{
    std::vector<float> distances(k);
    std::vector<faiss::Index::idx_t> labels(k);
    of(rival)->hnsw.efSearch = (int)ef;
    of(rival)->search(1, query, k, distances.data(), labels.data());
    uint32_t count = 0;
    for (uint32_t i = 0; i < k; i++)
        if (labels[i] >= 0) slots_out[count++] = (uint32_t)labels[i];
    return count;
}

double bytes_per_vector(const struct rival *rival)
{
    const auto &hnsw = of(rival)->hnsw;
    double bytes = (double)hnsw.neighbors.size() * sizeof(hnsw.neighbors[0]) +
            (double)hnsw.offsets.size() * sizeof(hnsw.offsets[0]) + (double)hnsw.levels.size() * sizeof(int);
    return bytes / (double)of(rival)->ntotal + of(rival)->d * sizeof(float);
}

void release(struct rival *rival) { delete of(rival); }

} // namespace

extern "C" const struct rival_ops *rival_faiss(void)
{
    static const struct rival_ops ops = { "faiss", build, save, load, pages, search, bytes_per_vector, release };
    return &ops;
}
