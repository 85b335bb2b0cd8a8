// The implementation of bnew::Model: a network that is ready to run.

#pragma once

#include <memory>
#include <mutex>
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
    template <class Input>
    void run(const Input* images, size_t count, float* results) const;

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
    const Images images;
    const Executor executor;
    std::string isa, json;
    uint32_t checksum = 0;
    mutable std::mutex arenas_mutex;
    mutable std::vector<std::unique_ptr<Arena>> arenas_of_one, arenas_of_all;
};

inline Dimensions dimensions(const Shape& shape) { return {shape.channels, shape.height, shape.width}; }

}  // namespace bnew
