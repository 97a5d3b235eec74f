/* hnswlib behind a C door; see rival.h. */
#include "bench/rival.h"

#include <sys/mman.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <hnswlib/hnswlib.h>

namespace {

struct graph_rival {
    std::unique_ptr<hnswlib::SpaceInterface<float>> space;
    std::unique_ptr<hnswlib::HierarchicalNSW<float>> graph;
};

graph_rival *of(struct rival *rival) { return reinterpret_cast<graph_rival *>(rival); }
const graph_rival *of(const struct rival *rival) { return reinterpret_cast<const graph_rival *>(rival); }

std::unique_ptr<graph_rival> fresh(const struct rival_rows *rows)
{
    auto rival = std::make_unique<graph_rival>();
    if (rows->dot)
        rival->space = std::make_unique<hnswlib::InnerProductSpace>(rows->dim);
    else
        rival->space = std::make_unique<hnswlib::L2Space>(rows->dim);
    return rival;
}

void insert_all(hnswlib::HierarchicalNSW<float> *graph, const struct rival_rows *rows, uint32_t threads)
{
    graph->addPoint(rows->data, 0);
    std::atomic<uint32_t> next{ 1 };
    std::vector<std::thread> workers;
    for (uint32_t t = 0; t < threads; t++)
        workers.emplace_back([&] {
            for (uint32_t i; (i = next.fetch_add(1)) < rows->count;)
                graph->addPoint(rows->data + i * rows->stride_floats, i);
        });
    for (auto &worker : workers) worker.join();
}

struct rival *build(const struct rival_rows *rows, uint32_t M, uint32_t ef_construction, uint32_t threads)
try {
    auto rival = fresh(rows);
    rival->graph = std::make_unique<hnswlib::HierarchicalNSW<float>>(rival->space.get(), rows->count, M,
            ef_construction);
    insert_all(rival->graph.get(), rows, threads);
    return reinterpret_cast<struct rival *>(rival.release());
} catch (const std::exception &e) {
    fprintf(stderr, "omen-bench: hnswlib: %s\n", e.what());
    return NULL;
}

bool save(const struct rival *rival, const char *path)
try {
    of(rival)->graph->saveIndex(path);
    return true;
} catch (const std::exception &e) {
    fprintf(stderr, "omen-bench: hnswlib: %s\n", e.what());
    return false;
}

struct rival *load(const struct rival_rows *rows, const char *path)
try {
    auto rival = fresh(rows);
    rival->graph = std::make_unique<hnswlib::HierarchicalNSW<float>>(rival->space.get(), path);
    if (rival->graph->cur_element_count != rows->count) return NULL;
    return reinterpret_cast<struct rival *>(rival.release());
} catch (const std::exception &e) {
    fprintf(stderr, "omen-bench: hnswlib: %s\n", e.what());
    return NULL;
}

/* The rows of layer 0, vectors among them, are one block from malloc, which hnswlib frees again. */
bool pages(struct rival *rival, bool huge)
{
    auto &graph = *of(rival)->graph;
    const size_t align = 2u << 20, bytes = graph.max_elements_ * graph.size_data_per_element_;
    void *moved = NULL;
    if (posix_memalign(&moved, align, (bytes + align - 1) / align * align) != 0) return false;
    bool fine = madvise(moved, (bytes + align - 1) / align * align, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) == 0;
    memcpy(moved, graph.data_level0_memory_, bytes);
    free(graph.data_level0_memory_);
    graph.data_level0_memory_ = static_cast<char *>(moved);
    return fine;
}

uint32_t search(struct rival *rival, const float *query, uint32_t k, uint32_t ef, uint32_t *slots_out)
{
    auto &graph = *of(rival)->graph;
    graph.setEf(ef);
    auto found = graph.searchKnn(query, k);
    uint32_t count = 0;
    for (; !found.empty() && count < k; found.pop()) slots_out[count++] = (uint32_t)found.top().second;
    return count;
}

double bytes_per_vector(const struct rival *rival)
{
    const auto &graph = *of(rival)->graph;
    double bytes = (double)graph.cur_element_count * graph.size_data_per_element_;
    for (size_t i = 0; i < graph.cur_element_count; i++)
        bytes += 8.0 + graph.element_levels_[i] * graph.size_links_per_element_;
    return bytes / (double)graph.cur_element_count;
}

void release(struct rival *rival) { delete of(rival); }

} // namespace

extern "C" const struct rival_ops *rival_hnswlib(void)
{
    static const struct rival_ops ops = { "hnswlib", build, save, load, pages, search, bytes_per_vector,
        release };
    return &ops;
}
