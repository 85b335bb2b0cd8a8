// The interface of include/bnew_engine.h.

#include <algorithm>
#include <chrono>
#include <new>

#include "dispatch.h"
#include "network.h"
#include "ops/operator.h"

namespace bnew {
namespace {

constexpr int kMostThreads = 1024;

void check_threads(int threads) {
    if (threads < 1 || threads > kMostThreads)
        throw Error("threads is " + std::to_string(threads) + ", but must be from 1 to " +
                    std::to_string(kMostThreads));
}

}  // namespace

Model::Model(const std::string& path, int threads, const std::string& instruction_set, const Limits& limits,
             const ImageSize& size) {
    check_threads(threads);
    choose_kernels(instruction_set);  // outside of the try: its error does not concern the file
    try {
        *this = Model(Mapping(path).content(), threads, instruction_set, limits, size);
    } catch (const Error& error) {
        throw Error(path + ": " + error.what());
    }
}

Model::Model(std::span<const uint8_t> content, int threads, const std::string& instruction_set,
             const Limits& limits, const ImageSize& size) {
    check_threads(threads);
    const Kernels& kernels = choose_kernels(instruction_set);
    try {
        const File file(content);
        Budget budget(limits, file.size(), file.weights());
        Graph graph = Graph::read(file, budget, size);
        impl_ = std::make_unique<Impl>(std::move(graph), kernels, threads, budget);
        impl_->json = file.graph();
        impl_->checksum = file.checksum();
    } catch (const std::bad_alloc&) {
        throw Error("there is not enough memory for it");
    }
}

uint32_t checksum(std::span<const uint8_t> content) { return File(content).checksum(); }

Model::~Model() = default;
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;

Dimensions Model::input() const { return dimensions(impl_->value(0).shape); }
Dimensions Model::output() const { return dimensions(impl_->graph.outputs[0].shape); }
size_t Model::input_size() const { return impl_->size_of(0); }
size_t Model::output_size() const { return impl_->output_size(); }

std::vector<Input> Model::inputs() const {
    std::vector<Input> found;
    const Graph& graph = impl_->graph;
    for (size_t v = 0; v < graph.inputs.size(); ++v)
        found.push_back(
            {graph.values[v].name, dimensions(graph.values[v].shape), !graph.inputs[v].mean.empty()});
    return found;
}

std::vector<Result> Model::outputs() const {
    std::vector<Result> results;
    for (const Output& output : impl_->graph.outputs)
        results.push_back({output.name, output.size, impl_->size_of(output.value), output.integers});
    return results;
}

std::vector<std::pair<std::string, Dimensions>> Model::shapes() const {
    std::vector<std::pair<std::string, Dimensions>> found;
    for (const Value& value : impl_->graph.values) found.emplace_back(value.name, dimensions(value.shape));
    return found;
}

int Model::threads() const { return impl_->executor.threads(); }
const std::string& Model::isa() const { return impl_->isa; }
const std::vector<std::string>& Model::classes() const { return impl_->graph.classes; }
const std::string& Model::graph() const { return impl_->json; }
bool Model::normalises() const {
    const auto& inputs = impl_->graph.inputs;
    return std::none_of(inputs.begin(), inputs.end(), [](const auto& input) { return input.mean.empty(); });
}
uint32_t Model::checksum() const { return impl_->checksum; }
double Model::macs() const { return impl_->budget.macs(); }

void Model::run(std::span<const Batch> inputs, size_t count, float* results) const {
    impl_->run(inputs, count, results);
}

std::vector<NamedValue> Model::values(std::span<const Batch> image) const {
    impl_->check(image);
    std::vector<NamedValue> found;
    const Plan& plan = impl_->plan;
    double bytes = plan.whole.bytes;
    for (size_t v = 0; v < plan.values.size(); ++v)
        bytes += sizeof(float) * static_cast<double>(impl_->size_of(static_cast<int>(v)));
    impl_->budget.check_run(bytes, "the values of the network");
    const Arena arena(plan.whole, plan.scratch_bytes, 1);
    const auto add = [&](int index) {
        if (index < 0 || impl_->value(index).name.empty()) return;
        NamedValue& named = found.emplace_back();
        named.name = impl_->value(index).name;
        named.dimensions = dimensions(impl_->value(index).shape);
        named.data.resize(impl_->size_of(index));
        get(impl_->value(index), index, arena, named.data.data());
    };
    impl_->set(image, 0, arena, nullptr);
    for (size_t v = 0; v < plan.inputs; ++v) add(static_cast<int>(v));
    impl_->executor.run(arena, nullptr, [&](const Task& task) {
        add(plan.stages[static_cast<size_t>(task.index)].real);
        add(plan.stages[static_cast<size_t>(task.index)].bits);
    });
    return found;
}

std::vector<StageTime> Model::profile(std::span<const Batch> image, int repeats) const {
    impl_->check(image);
    using Clock = std::chrono::steady_clock;
    const Plan& plan = impl_->plan;
    std::vector<std::vector<double>> times(plan.stages.size() + 1);  // of the input, and of each stage
    ThreadPool* const pool = impl_->executor.pool();
    const Impl::Lease lease(*impl_, pool);
    std::unique_lock<std::mutex> lock;
    if (pool) lock = std::unique_lock(pool->mutex());
    for (int r = 0; r < repeats; ++r) {
        std::vector<double> spent(times.size());
        auto begin = Clock::now();
        const auto count = [&](size_t index) {
            const auto end = Clock::now();
            spent[index] += std::chrono::duration<double>(end - begin).count();
            begin = end;
        };
        impl_->set(image, 0, lease.arena(), pool);
        count(0);
        impl_->executor.run(lease.arena(), pool, [&](const Task& task) {
            // The time to move rows counts for the stage that needs their space: the next one.
            if (task.kind == Task::Kind::compute) count(static_cast<size_t>(task.index) + 1);
        });
        for (size_t s = 0; s < times.size(); ++s) times[s].push_back(spent[s]);
    }
    std::vector<StageTime> result;
    for (size_t s = 0; s < times.size(); ++s) {
        auto& t = times[s];
        std::sort(t.begin(), t.end());
        const double median = t.empty() ? 0 : t[t.size() / 2];
        if (s == 0) {
            result.push_back({"input", "input", median});
        } else {
            result.push_back({plan.stages[s - 1].name, plan.stages[s - 1].op->name, median});
        }
    }
    return result;
}

}  // namespace bnew
