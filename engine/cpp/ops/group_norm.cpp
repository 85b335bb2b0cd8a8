// Normalisation of groups of channels over the image.

#include <limits>

#include "families.h"

namespace bnew {
namespace {

struct GroupNormArguments : NormArguments {
    int groups = 1;
};

struct Normalised : Prepared {
    GroupNorm norm;
};

}  // namespace

float read_eps(Fields& fields) {
    const auto eps = static_cast<float>(fields.at("eps").number(fields.what("eps")));
    expect(eps > 0 && eps <= std::numeric_limits<float>::max(), fields.what("eps") + " must be above 0");
    return eps;
}

Shape read_group_norm(GraphReader& reader, Fields& fields, Node& node) {
    const auto arguments = std::make_shared<GroupNormArguments>();
    arguments->eps = read_eps(fields);
    arguments->groups = fields.integer("groups", 1, kLargestSize);
    node.arguments = arguments;
    const Shape shape = reader.input(node);
    expect(shape.channels % arguments->groups == 0,
           fields.what("groups") + " must divide the number of channels, " + std::to_string(shape.channels));
    return shape;
}

void prepare_group_norm(Planner& planner, Stage& stage, Node& node) {
    constexpr double kMacsPerNumber = 2;        // for the two sums
    constexpr double kMacsPerGroup = 256;       // for a group of few numbers
    constexpr double kNanosecondsOfSums = 0.2;  // per number
    const auto& arguments = static_cast<const GroupNormArguments&>(*node.arguments);
    planner.work(stage.shape, kMacsPerNumber, stage.name);
    planner.work({arguments.groups, 1, 1}, kMacsPerGroup, stage.name);
    auto made = std::make_unique<Normalised>();
    made->norm = {stage.shape.height, stage.shape.width, stage.shape.channels, arguments.groups,
                  arguments.eps};
    stage.scratch_bytes = static_cast<size_t>(scratch_bytes(made->norm));
    stage.nanoseconds += kNanosecondsOfSums;
    stage.prepared = std::move(made);
}

void run_group_norm(const Call& call) {
    GroupNorm norm = static_cast<const Normalised&>(*call.stage.prepared).norm;
    norm.scratch = call.scratch;
    call.kernels.group_norm(norm, call.real(), call.epilogue, call.part);
}

}  // namespace bnew
