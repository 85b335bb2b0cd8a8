#include "network.h"

#include <atomic>
#include <exception>

#include "text.h"

namespace bnew {
namespace {

std::vector<Images> images_of(const Graph& graph) {
    std::vector<Images> images;
    for (size_t v = 0; v < graph.inputs.size(); ++v) images.emplace_back(graph, v);
    return images;
}

}  // namespace

Model::Impl::Impl(Graph network, const Kernels& chosen, int threads, const Budget& limits)
    : graph(std::move(network)),
      kernels(chosen),
      budget(limits),
      plan(make_plan(graph, kernels, threads, budget)),
      images(images_of(graph)),
      executor(plan, kernels, threads),
      isa(kernels.name) {
    const Lease first(*this, executor.pool());
}

size_t Model::Impl::size_of(int index) const {
    const Shape& shape = value(index).shape;
    return static_cast<size_t>(shape.channels) * static_cast<size_t>(shape.height) *
           static_cast<size_t>(shape.width);
}

size_t Model::Impl::output_size() const {
    size_t size = 0;
    for (const Output& output : graph.outputs) size += size_of(output.value);
    return size;
}

Model::Impl::Lease::Lease(const Impl& impl, ThreadPool* pool)
    : impl_(impl), arenas_(pool ? impl.arenas_of_all : impl.arenas_of_one) {
    const std::lock_guard<std::mutex> lock(impl.arenas_mutex);
    if (!arenas_.empty()) {
        arena_ = std::move(arenas_.back());
        arenas_.pop_back();
        return;
    }
    const Plan& plan = impl.plan;
    try {
        arena_ = std::make_unique<Arena>(pool ? plan.bands : plan.strips, plan.scratch_bytes,
                                         pool ? pool->threads() : 1);
    } catch (const std::bad_alloc&) {
        throw Error("there is not enough memory for a run of the network");
    }
}

Model::Impl::Lease::~Lease() {
    const std::lock_guard<std::mutex> lock(impl_.arenas_mutex);
    arenas_.push_back(std::move(arena_));
}

void Model::Impl::check(std::span<const Batch> inputs) const {
    if (inputs.size() != images.size())
        throw Error("the network takes " + std::to_string(images.size()) + " inputs, not " +
                    std::to_string(inputs.size()));
    for (size_t v = 0; v < inputs.size(); ++v)
        if (std::holds_alternative<const uint8_t*>(inputs[v]) && graph.inputs[v].mean.empty())
            throw Error("the file does not say how bytes become " +
                        (inputs.size() > 1 ? quote(graph.values[v].name) : "input") +
                        " (no mean and std): give float32, or pack the network with mean and std");
}

void Model::Impl::set(std::span<const Batch> inputs, size_t i, const Arena& arena, ThreadPool* pool) const {
    for (size_t v = 0; v < inputs.size(); ++v) {
        const size_t begin = i * size_of(static_cast<int>(v));
        std::visit([&](const auto* batch) { images[v].set(batch + begin, arena, pool); }, inputs[v]);
    }
}

void Model::Impl::run(std::span<const Batch> inputs, size_t count, float* results) const {
    check(inputs);
    const size_t out = output_size();
    const auto one = [&](size_t i, const Arena& arena, ThreadPool* pool) {
        set(inputs, i, arena, pool);
        executor.run(arena, pool);
        float* to = results + i * out;
        for (const Output& output : graph.outputs) {
            get(value(output.value), output.value, arena, to);
            to += size_of(output.value);
        }
    };
    ThreadPool* const pool = executor.pool();
    if (!pool) {
        const Lease lease(*this, nullptr);
        for (size_t i = 0; i < count; ++i) one(i, lease.arena(), nullptr);
        return;
    }
    const std::lock_guard<std::mutex> lock(pool->mutex());
    const size_t threads = static_cast<size_t>(pool->threads());
    // Threads that compute whole images need no barrier. The remaining images are split among all threads.
    size_t done = 0;
    if (count >= threads) {
        std::vector<std::unique_ptr<Lease>> leases;
        for (size_t t = 0; t < threads; ++t) leases.push_back(std::make_unique<Lease>(*this, nullptr));
        std::vector<std::exception_ptr> failures(threads);
        const size_t whole = count - count % threads;
        std::atomic<size_t> next = 0;
        pool->run([&](int p) {
            const auto part = static_cast<size_t>(p);
            try {
                for (size_t i; (i = next.fetch_add(1)) < whole;) one(i, leases[part]->arena(), nullptr);
            } catch (...) {
                failures[part] = std::current_exception();
            }
        });
        for (const auto& failure : failures)
            if (failure) std::rethrow_exception(failure);
        done = whole;
    }
    const Lease lease(*this, pool);
    for (; done < count; ++done) one(done, lease.arena(), pool);
}

}  // namespace bnew
