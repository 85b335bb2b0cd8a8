#include "plan.h"

#include <algorithm>
#include <limits>

#include "include/bnew_error.h"
#include "ops/operator.h"
#include "ops/steps.h"
#include "strips.h"
#include "text.h"

namespace bnew {
namespace {

constexpr size_t kMostStages = 1 << 14;
// Work per number of a stage's result, for any operator: reading, the epilogue, writing.
constexpr double kMacsPerNumber = 8;

}  // namespace

Planner::Planner(Graph& graph, const Kernels& kernels, int threads, Budget& budget)
    : graph_(graph), kernels_(kernels), threads_(threads), budget_(budget) {
    plan_.values = graph.values;
    plan_.inputs = graph.inputs.size();
    for (const Output& output : graph.outputs) plan_.outputs.push_back(output.value);
}

Plan Planner::make() {
    for (Node& node : graph_.nodes) add_node(node);
    plan_.whole = make_schedule(plan_, 0);
    plan_.strips = make_schedule(plan_, 1);
    if (threads_ > 1) plan_.bands = make_schedule(plan_, threads_);
    for (const Stage& stage : plan_.stages)
        plan_.scratch_bytes = std::max(plan_.scratch_bytes, stage.scratch_bytes);
    check_run(plan_.strips, 1);
    if (threads_ > 1) check_run(plan_.bands, threads_);
    return std::move(plan_);
}

void Planner::check_run(const Schedule& schedule, int threads) const {
    const double scratch = static_cast<double>(plan_.scratch_bytes) * threads;
    budget_.check_run(schedule.bytes + scratch, "a run of the network");
}

// ---------------------------------------------------------------------------------------- stages

void Planner::add_node(Node& node) {
    Stage stage;
    stage.op = node.op;
    stage.name = node.name;
    stage.inputs = node.inputs;
    stage.shape = node.shape;
    if (node.op->prepare) node.op->prepare(*this, stage, node);
    finish(std::move(stage), node);
}

// Adds the stage with as many of the node's steps as fit its epilogue, and more stages for the other steps.
void Planner::finish(Stage stage, const Node& node) {
    if (!stage.op->fused && (!node.then.empty() || node.sign)) stage = next(std::move(stage));
    size_t step = 0;
    while (true) {
        StepChain chain;
        while (step < node.then.size() && chain.take(node.then[step])) ++step;
        set_epilogue(stage, chain);
        if (step == node.then.size()) break;
        stage = next(std::move(stage));
    }
    stage.real = node.output;
    if (node.sign) set_sign(stage, *node.sign);
    add(std::move(stage));
}

// Adds the stage with a new value as its result. Returns an identity stage that reads this value.
Stage Planner::next(Stage stage) {
    Stage after;
    after.op = find_operator("identity");
    after.name = stage.name;
    after.shape = stage.shape;
    after.inputs = {insert(std::move(stage))};
    return after;
}

void Planner::add(Stage stage) {
    if (plan_.stages.size() == kMostStages)
        throw Error("the network has more than " + std::to_string(kMostStages) + " stages");
    work(stage.shape, kMacsPerNumber, stage.name);
    plan_.stages.push_back(std::move(stage));
}

void Planner::keep(double bytes, const std::string& name) {
    budget_.keep(bytes, "the network up to node " + quote(name));
}

void Planner::work(const Shape& results, double macs_per_number, const std::string& name) {
    budget_.work(1.0 * results.channels * results.height * results.width * macs_per_number,
                 "the network up to node " + quote(name));
}

int Planner::add_value(const Shape& shape) {
    plan_.values.push_back({"", shape, false});
    return static_cast<int>(plan_.values.size()) - 1;
}

int Planner::to_real(int bits, const std::string& name) {
    Stage stage;
    stage.op = find_operator("to_real");
    stage.name = name;
    stage.inputs = {bits};
    stage.shape = shape_of(bits);
    return insert(std::move(stage));
}

int Planner::insert(Stage stage) {
    const int real = stage.real = add_value(stage.shape);
    add(std::move(stage));
    return real;
}

// Concatenates a value with itself until it has `channels` channels.
int Planner::repeated(int value, int channels, const std::string& name) {
    const Shape shape = shape_of(value);
    Stage stage;
    stage.op = find_operator("concat");
    stage.name = name;
    keep(4.0 * channels, name);
    stage.inputs.assign(static_cast<size_t>(channels / shape.channels), value);
    stage.shape = {channels, shape.height, shape.width};
    return insert(std::move(stage));
}

// ------------------------------------------------------------------------------------- epilogues

// Copies the numbers into the stage, filled up to whole groups.
template <class Numbers>
const float* Planner::keep_numbers(Stage& stage, const Numbers& numbers, float filling) {
    keep(4.0 * static_cast<double>(numbers.size() + kGroup), stage.name);
    Aligned<float> kept(static_cast<size_t>(round_up(static_cast<int64_t>(numbers.size()), kGroup)), filling);
    std::transform(numbers.begin(), numbers.end(), kept.begin(),
                   [](auto x) { return static_cast<float>(x); });
    return stage.numbers.emplace_back(std::move(kept)).data();
}

void Planner::set_epilogue(Stage& stage, const StepChain& chain) {
    Epilogue& e = stage.epilogue;
    if (chain.before().scaled || chain.before().shifted) {
        e.scale = keep_numbers(stage, chain.before().scale);
        e.shift = keep_numbers(stage, chain.before().shift);
    }
    if (chain.join != Join::none) {
        e.join = chain.join;
        const int channels = stage.shape.channels;
        const int others = shape_of(chain.other).channels;
        const bool repeat = others != channels && others % kGroup != 0;
        stage.other = repeat ? repeated(chain.other, channels, stage.name) : chain.other;
        e.other_channels = static_cast<int>(round_up(repeat ? channels : others, kGroup));
    }
    if (!chain.slope.empty()) e.slope = keep_numbers(stage, chain.slope);
    e.activation = chain.activation;
    e.low = chain.low;
    e.high = chain.high;
    if (chain.after().scaled) e.scale_out = keep_numbers(stage, chain.after().scale);
    if (chain.after().scaled || chain.after().shifted) e.shift_out = keep_numbers(stage, chain.after().shift);
}

void Planner::set_sign(Stage& stage, const Sign& sign) {
    stage.bits = sign.output;
    Epilogue& e = stage.epilogue;
    // The channels that fill up the last group must become clear bits, even if memory holds infinity.
    if (sign.scale.empty()) {
        std::vector<float> threshold(sign.shift);
        for (float& t : threshold) t = -t;
        e.sign_shift = keep_numbers(stage, threshold, std::numeric_limits<float>::quiet_NaN());
    } else {
        e.sign_scale = keep_numbers(stage, sign.scale);
        e.sign_shift = keep_numbers(stage, sign.shift, -1);
    }
}

Plan make_plan(Graph& graph, const Kernels& kernels, int threads, Budget& budget) {
    return Planner(graph, kernels, threads, budget).make();
}

}  // namespace bnew
