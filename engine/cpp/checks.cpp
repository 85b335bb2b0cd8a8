#include "include/bnew_checks.h"

#include <algorithm>
#include <chrono>

#include "dispatch.h"
#include "network.h"
#include "ops/operator.h"
#include "text.h"

namespace bnew {

NamedValue Checks::convolve(const Model& model, const std::string& name, const float* signs,
                            const Dimensions& size) {
    const Model::Impl& impl = *model.impl_;
    const auto& nodes = impl.graph.nodes;
    const auto found = std::find_if(nodes.begin(), nodes.end(), [&](const Node& node) {
        return node.op == find_operator("binary_conv") && node.name == name;
    });
    if (found == nodes.end()) throw Error("there is no binary_conv called " + quote(name));
    // A network of that one layer.
    const Shape in = impl.value(found->inputs[0]).shape;
    Graph graph;
    graph.inputs.emplace_back();
    graph.values = {{"x", in, false}, {"bits", in, true}, {"y", found->shape, false}};
    Node sign;
    sign.op = find_operator("identity");
    sign.name = name;
    sign.inputs = {0};
    sign.shape = in;
    sign.sign = Sign{{}, std::vector<float>(static_cast<size_t>(in.channels)), 1};
    Node conv = *found;
    conv.inputs = {1};
    conv.then.clear();
    conv.sign.reset();
    conv.output = 2;
    graph.nodes = {std::move(sign), std::move(conv)};
    graph.outputs = {{2, "", found->shape, {}}};
    const Model::Impl layer(std::move(graph), impl.kernels, 1, impl.budget.fresh());
    const Shape given{size.channels, size.height, size.width};
    if (given != in) throw Error(quote(name) + " takes " + to_string(in) + ", not " + to_string(given));
    if (std::any_of(signs, signs + layer.size_of(0), [](float x) { return x != 1 && x != -1; }))
        throw Error("the input of " + quote(name) + " must be -1 and +1");
    NamedValue result{name, dimensions(found->shape), std::vector<float>(layer.size_of(2))};
    const Batch batch = signs;
    layer.run({&batch, 1}, 1, result.data.data());
    return result;
}

double Checks::register_peak(const std::string& instruction_set, double seconds) {
    using Clock = std::chrono::steady_clock;
    const Kernels& kernels = choose_kernels(instruction_set);
    double best = 0;
    for (const auto end = Clock::now() + std::chrono::duration<double>(seconds); Clock::now() < end;) {
        const auto begin = Clock::now();
        const auto macs = static_cast<double>(kernels.peak(100'000));
        best = std::max(best, macs / std::chrono::duration<double>(Clock::now() - begin).count());
    }
    return best;
}

}  // namespace bnew
