// The implementation of bnew::Model: a network that is ready to run.

#pragma once

#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "executor.h"
#include "images.h"
#include "include/bnew_engine.h"

namespace bnew {

struct Model::Impl {
    Impl(Graph network, const Kernels& chosen, int threads, const Budget& limits);

    const Value& value(int index) const { return plan.values[static_cast<size_t>(index)]; }
    size_t size_of(int index) const;  // the number of elements of a value
    size_t output_size() const;       // of all outputs

    // Several threads may call it at the same time. Throws Error.
    void run(std::span<const Batch> inputs, size_t count, float* results) const;

    // Copies image `i` of each input into the arena, on all threads if there is a pool. Throws Error.
    void set(std::span<const Batch> inputs, size_t i, const Arena& arena, ThreadPool* pool) const;
    // Throws Error if these are not all inputs, or are bytes where the file has no mean and std.
    void check(std::span<const Batch> inputs) const;

    // Takes a free arena, or makes one, and gives it back at the end. There are as many arenas as calls at
    // the same time. With a pool, the arena is for all threads on one image; else for one thread.
    class Lease {
    public:
        Lease(const Impl& impl, ThreadPool* pool);
        ~Lease();
        Lease(const Lease&) = delete;
        Lease& operator=(const Lease&) = delete;
        Arena& arena() const { return *arena_; }

    private:
        const Impl& impl_;
        std::vector<std::unique_ptr<Arena>>& arenas_;
        std::unique_ptr<Arena> arena_;
    };

    Graph graph;
    const Kernels& kernels;
    Budget budget;
    const Plan plan;
    const std::vector<Images> images;  // of each input
    const Executor executor;
    std::string isa, json;
    uint32_t checksum = 0;
    mutable std::mutex arenas_mutex;
    mutable std::vector<std::unique_ptr<Arena>> arenas_of_one, arenas_of_all;
};

inline Dimensions dimensions(const Shape& shape) { return {shape.channels, shape.height, shape.width}; }

}  // namespace bnew
