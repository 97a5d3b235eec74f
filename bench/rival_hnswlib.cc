/* hnswlib behind a C door. Compiled apart with -O3 -march=native; see rival_hnswlib.h. */
#include "bench/rival_hnswlib.h"

#include <sys/stat.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <hnswlib/hnswlib.h>

struct rival_hnswlib {
    std::unique_ptr<hnswlib::SpaceInterface<float>> space;
    std::unique_ptr<hnswlib::HierarchicalNSW<float>> graph;
};

extern "C" bool rival_hnswlib_available(void) { return true; }

static void insert_all(hnswlib::HierarchicalNSW<float> *graph, const float *rows, size_t stride, uint32_t count,
        uint32_t threads)
{
    graph->addPoint(rows, 0);
    std::atomic<uint32_t> next{ 1 };
    std::vector<std::thread> workers;
    for (uint32_t t = 0; t < threads; t++)
        workers.emplace_back([&] {
            for (uint32_t i; (i = next.fetch_add(1)) < count;) graph->addPoint(rows + i * stride, i);
        });
    for (auto &worker : workers) worker.join();
}

extern "C" struct rival_hnswlib *rival_hnswlib_build(const float *rows, size_t stride_floats, uint32_t count,
        uint32_t dim, bool dot, uint32_t M, uint32_t ef_construction, uint32_t threads, const char *cache_path,
        double *build_seconds_out)
try {
    auto rival = std::make_unique<rival_hnswlib>();
    if (dot)
        rival->space = std::make_unique<hnswlib::InnerProductSpace>(dim);
    else
        rival->space = std::make_unique<hnswlib::L2Space>(dim);
    *build_seconds_out = 0;
    struct stat st;
    if (cache_path != NULL && stat(cache_path, &st) == 0) {
        rival->graph = std::make_unique<hnswlib::HierarchicalNSW<float>>(rival->space.get(), cache_path);
        return rival.release();
    }
    rival->graph = std::make_unique<hnswlib::HierarchicalNSW<float>>(rival->space.get(), count, M, ef_construction);
    auto start = std::chrono::steady_clock::now();
    insert_all(rival->graph.get(), rows, stride_floats, count, threads);
    *build_seconds_out = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (cache_path != NULL) rival->graph->saveIndex(cache_path);
    return rival.release();
} catch (const std::exception &e) {
    fprintf(stderr, "omen-bench: hnswlib: %s\n", e.what());
    return NULL;
}

extern "C" uint32_t rival_hnswlib_search(struct rival_hnswlib *rival, const float *query, uint32_t k, uint32_t ef,
        uint32_t *slots_out)
{
    rival->graph->setEf(ef);
    auto found = rival->graph->searchKnn(query, k);
    uint32_t count = 0;
    for (; !found.empty() && count < k; found.pop()) slots_out[count++] = (uint32_t)found.top().second;
    return count;
}

extern "C" double rival_hnswlib_bytes_per_vector(const struct rival_hnswlib *rival)
{
    const auto &graph = *rival->graph;
    double bytes = (double)graph.cur_element_count * graph.size_data_per_element_;
    for (size_t i = 0; i < graph.cur_element_count; i++)
        bytes += 8.0 + graph.element_levels_[i] * graph.size_links_per_element_;
    return bytes / (double)graph.cur_element_count;
}

extern "C" void rival_hnswlib_free(struct rival_hnswlib *rival) { delete rival; }
